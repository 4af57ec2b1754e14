"""What a run's record and its journal entries say, as rows of its trail.

Whatever is in them: a trail has to be readable also where somebody has tampered with it.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec

from actors.core.chain import checkpoint_facts
from actors.core.outcome import StepEnd
from actors.job import JobRecord, decode_job
from actors.journal import Entry, ErrorRecord, Kind, Status, decode_entry, link_of
from cluster.lifecycle import TERMINAL, RunState
from cluster.records import EffectRecord, RunRecord
from penstock.trail_views import TrailRow

LINK_SHOWN: Final = 8
_DETAIL_SHOWN: Final = 300
_REFUSALS: Final = {
    StepEnd.NOT_PERMITTED.value: "denied",
    StepEnd.APPROVAL_DENIED.value: "refused",
    StepEnd.CONFLICT.value: "conflict",
}
_STATES: Final = {"applied": "applied", "not_applied": "not applied", "unknown": "unknown", "simulated": "simulated"}


class OpenEffect(NamedTuple):
    """An intent that no entry has closed: where it is, and its effect's record."""

    step: str
    tool: str
    identity: str
    undoes: str


class Fork(msgspec.Struct, frozen=True):
    """What a job's record says of a fork: its source, the step, who made it and why, the source's chain where they
    parted (hex), and how many entries it has of it.
    """

    forked_from: str = ""
    forked_at: str = ""
    forked_by: str = ""
    forked_why: str = ""
    forked_link: str = ""
    inherited: int = 0


def fork_of(record: RunRecord) -> Fork:
    """What the job says of a fork; nothing where the run is none, or the job cannot be read."""
    try:
        return msgspec.msgpack.decode(record.job, type=Fork)
    except (ValueError, msgspec.DecodeError):
        return Fork()


def job_of(record: RunRecord) -> JobRecord | None:
    """The job; None where it cannot be read."""
    try:
        return decode_job(record.job)
    except (ValueError, msgspec.DecodeError):
        return None


def opening_rows(record: RunRecord, first_link: str) -> Iterator[TrailRow]:
    """Who asked for what, and when it began."""
    job, run_id = job_of(record), record.id
    facts: dict[str, Any] = {"agent": record.agent, "batch": record.batch, "custom_id": record.custom_id}
    if job is None:
        detail, by = "the job cannot be read", ""
    else:
        facts |= {
            "tenant": job.tenant, "value": job.value, "grants": list(job.grants), "metadata": job.metadata,
            "input": job.input, "root": job.root, "simulated": job.simulated, "deadline_ms": record.deadline_ms,
        }  # fmt: skip
        by = ", for ".join(part for part in (record.parent and f"run {record.parent}", job.by) if part) or "not named"
        parts = [
            f"agent {record.agent}",
            f"batch {record.batch}, {record.custom_id}" if record.batch else "",
            f"tenant {job.tenant}",
            f"grants {', '.join(job.grants)}" if job.grants else "no grants",
            "simulated" if job.simulated else "",
        ]
        detail = "; ".join(part for part in parts if part)
    yield TrailRow(
        at_ms=record.accepted_ms, run_id=run_id, step="", what="asked", by=by, detail=detail,
        link=first_link[:LINK_SHOWN], facts=facts,
    )  # fmt: skip
    fork = fork_of(record)
    if fork.forked_from:
        detail = f"from run {fork.forked_from} at step {fork.forked_at}"
        yield TrailRow(
            at_ms=record.accepted_ms, run_id=run_id, step="", what="forked", by=fork.forked_by,
            detail=f"{detail}: {fork.forked_why}" if fork.forked_why else detail, facts=msgspec.structs.asdict(fork),
        )  # fmt: skip
    if record.started_ms is not None:
        moved = record.migrations
        times = "once" if moved == 1 else f"{moved} times"
        where = f"moved to another host {times}, last to" if moved else "on"
        yield TrailRow(
            at_ms=record.started_ms, run_id=run_id, step="", what="started", by="" if moved else f"host {record.host}",
            detail=f"version {record.pinned}, {where} {record.host}",
            facts={"version": record.pinned, "host": record.host, "migrations": moved},
        )  # fmt: skip


def promotion_rows(record: RunRecord) -> Iterator[TrailRow]:
    """When the run got, or lost, its right to effects for the last time, by whom and why."""
    for what, raw in (("promoted", record.promoted), ("demoted", record.demoted)):
        note = _dict(raw)
        if note:
            at_ms = note.get("at_ms")
            other = f"run {note.get('run', '?')} has the right to effects now; " if what == "demoted" else ""
            yield TrailRow(
                at_ms=at_ms if isinstance(at_ms, int) else 0, run_id=record.id, step="", what=what,
                by=str(note.get("by", "")), detail=f"{other}{note.get('why', '')}", facts=note,
            )  # fmt: skip


def closing_row(record: RunRecord) -> TrailRow:
    """The end, or where it stands now."""
    state, error = record.state, _error(record.error)
    ended = state in TERMINAL
    by = ""
    if ended or state is RunState.CONFIRMATION_UNKNOWN:
        by = f"host {record.host}, its owner" if record.end_seal else "the store"
    parts = [record.reason if record.reason != state.value else ""]
    if error is not None:
        parts.append(_said(error))
        parts += [f"undone: {each}" for each in error.undone]
        parts += [f"still applied: {each}" for each in error.still_applied]
    if record.cancel and state is not RunState.CANCELLED:
        parts.append(f"cancellation was asked for: {record.cancel}")
    facts: dict[str, Any] = {"state": state.value, "reason": record.reason, "host": record.host}
    if state is RunState.SUCCEEDED:
        facts["output"] = _json(record.output)
        parts.append(_short(facts["output"]))
    return TrailRow(
        at_ms=record.ended_ms or record.since_ms, run_id=record.id, step="",
        what=("ended: " if ended else "now: ") + state.value, by=by, detail="; ".join(part for part in parts if part),
        link=record.end_seal[:LINK_SHOWN] if by else "", facts=facts,
    )  # fmt: skip


def record_row(run_id: str, effect: OpenEffect, found: EffectRecord | None) -> TrailRow:
    """What the store has of an effect whose outcome is in no entry."""
    if found is None:
        said, facts, at_ms = "nobody has begun it", {}, 0
    else:
        receipt = _json(found.receipt)
        facts = {"state": found.state, "owner": found.owner, "key": found.key, "receipt": receipt}
        tried = receipt.get("error") if isinstance(receipt, dict) else None
        why = f": {': '.join(map(str, tried))}" if isinstance(tried, list) else ""
        said, at_ms = f"{found.state}{why}", found.since_ms
    return TrailRow(
        at_ms=at_ms, run_id=run_id, step=effect.step, what="effect's record", by="the store",
        detail=f"{effect.tool}: {said}", facts=facts,
    )  # fmt: skip


class Entries:
    """A run's entries, told one after the other."""

    def __init__(self, run_id: str, agent: str) -> None:
        self._children: dict[str, str] = {}
        self._run_id = run_id
        self._agent = agent
        self._open: dict[str, OpenEffect] = {}

    @property
    def children(self) -> list[str]:
        """The runs that it has started, in that order."""
        return list(dict.fromkeys(self._children.values()))

    @property
    def open_effects(self) -> list[OpenEffect]:
        """Intents that nothing has closed."""
        return list(self._open.values())

    def rows(self, raws: list[bytes]) -> Iterator[TrailRow]:
        """The rows of all entries, in their order."""
        for place, raw in enumerate(raws):
            link = link_of(raw).hex()[:LINK_SHOWN]
            try:
                entry = decode_entry(raw)
            except ValueError as error:
                yield TrailRow(
                    at_ms=0, run_id=self._run_id, step="?", what="unreadable", detail=str(error), link=link, place=place
                )
                continue
            for what, by, detail, facts in self._told(entry):
                yield TrailRow(
                    at_ms=entry.ended_ms or entry.started_ms, run_id=self._run_id, step=entry.step, what=what, by=by,
                    detail=detail, link=link, place=place, facts=facts,
                )  # fmt: skip

    def _told(self, entry: Entry) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
        """What, by whom, detail, facts: of one entry."""
        facts, payload = _dict(entry.facts), _json(entry.payload)
        common: dict[str, Any] = {
            "kind": entry.kind, "name": entry.name, "status": entry.status, "attempts": entry.attempts,
            "arguments_digest": entry.digest.hex(), "facts": facts,
        }  # fmt: skip
        match entry.kind:
            case Kind.INTENT:
                yield from self._intent(entry, facts, common)
            case Kind.CALL:
                yield (*self._call(entry, facts, payload), common | {"payload": payload})
            case Kind.APPROVAL:
                yield (*_approval(entry, payload), common | {"payload": payload})
            case Kind.RESOLUTION:
                if isinstance(payload, dict) and payload.get("applied") is False:
                    self._open.pop(entry.step, None)
                yield (*_resolution(entry, payload), common | {"payload": payload})
            case Kind.CHILD:
                told = self._child(entry)
                yield (*told, common | {"payload": payload, "child": self._children.get(entry.step, "")})
            case Kind.CHECKPOINT:
                yield "checkpoint", "", _checkpoint(entry), common
            case Kind.ENDING:
                reason = _reason(payload)
                said = f"{entry.name}: {reason}" if reason not in ("", entry.name) else entry.name
                yield "ending", "", f"{said}; its effects are undone first", common
            case Kind.TIMER:
                yield "timer", "", f"until {moment(payload)}", common | {"payload": payload}
            case Kind.VALUE:
                yield "value", "", f"{entry.name} {_short(payload)}", common | {"payload": payload}
            case _:
                yield entry.kind, "", f"{entry.name} {_short(payload)}".strip(), common | {"payload": payload}

    def _intent(
        self, entry: Entry, facts: dict[str, Any], common: dict[str, Any]
    ) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
        undoes = str(facts.get("undoes", ""))
        self._open[entry.step] = OpenEffect(entry.step, entry.name, str(facts.get("identity", "")), undoes)
        permission = facts.get("permission")
        if isinstance(permission, dict) and permission:
            said = dict(permission)
            decision, rule = said.pop("decision", "allow"), said.pop("rule", "")
            version = said.pop("version", "")
            by = " ".join(part for part in ("policy", version and f"version {version}") if part)
            more = "".join(f", {name} {value}" for name, value in said.items())
            yield "permitted", by, f"{decision}" + (f" by {rule}" if rule else "") + more, {"permission": permission}
        parts = [
            f"{entry.name}({_arguments(facts.get('arguments', []))})",
            facts.get("risk", ""),
            f"key {facts['key']}" if facts.get("key") else "",
            f"business key {facts['business_key']}" if facts.get("business_key") else "",
            f"approval {facts['approval']}" if facts.get("approval") else "",
            f"to undo step {undoes}" if undoes else "",
            "simulated: nothing is sent" if facts.get("simulated") else "",
        ]
        yield "intent", f"agent {self._agent}", ", ".join(part for part in parts if part), common

    def _call(self, entry: Entry, facts: dict[str, Any], payload: Any) -> tuple[str, str, str]:
        effect = self._open.pop(entry.step, None)
        if entry.status == Status.OPEN:
            said = payload if isinstance(payload, dict) else {}
            why = ": ".join(str(said[name]) for name in ("why", "error") if said.get(name))
            if effect is not None:
                return "withdrawn", "", f"{entry.name}: {why}; nothing was applied"
            return "waited", str(said.get("dependency", "")), f"{entry.name}: {why}"
        error = _error(entry.payload) if entry.status == Status.FAILED else None
        tried = f"{entry.attempts} attempts" if entry.attempts > 1 else ""
        failure = "" if error is None else _said(error)
        if "state" in facts:
            what = _STATES.get(str(facts["state"]), str(facts["state"]))
            if effect is not None and effect.undoes:
                what = {"applied": "undone", "not applied": "not undone"}.get(what, what)
            known = facts.get("error")
            parts = [
                tried,
                f"evidence {_short(facts['evidence'])}" if facts.get("evidence") is not None else "",
                f"why: {facts['why']}" if facts.get("why") else "",
                failure or (": ".join(map(str, known)) if isinstance(known, list) else ""),
            ]
            by = str(facts.get("by", "tool"))
            return what, by, "; ".join([entry.name, *(part for part in parts if part)])
        if error is not None:
            what = _REFUSALS.get(error.end, "failed")
            return (
                what,
                error.ended_by if what != "failed" else "",
                "; ".join(filter(None, [entry.name, tried, failure])),
            )
        took = f"{max(0, entry.ended_ms - entry.started_ms)} ms"
        return "called", "tool", "; ".join(filter(None, [entry.name, tried, took]))

    def _child(self, entry: Entry) -> tuple[str, str, str]:
        if entry.status == Status.OPEN:
            child = entry.payload.decode(errors="replace")
            self._children[entry.step] = child
            return "child started", f"agent {self._agent}", f"{entry.name} as run {child}"
        error = _error(entry.payload) if entry.status == Status.FAILED else None
        return "child ended", "", entry.name + (f"; {_said(error)}" if error else "")


def _approval(entry: Entry, payload: Any) -> tuple[str, str, str]:
    """An approval that is asked for, was given, or was not: its request, what was granted, or an error."""
    said = payload if isinstance(payload, dict) else {}
    if entry.status == Status.OPEN:
        terms = said.get("terms")
        needed = terms.get("needed", 1) if isinstance(terms, dict) else 1
        parts = [
            f"approval {said['id']}" if said.get("id") else "",
            f"arguments {said['shown']}" if said.get("shown") else "",
            f"{needed} people needed" if needed != 1 else "",
        ]
        rule = said.get("rule")
        return "approval asked", f"rule {rule}" if rule else "", _joined(entry.name, parts)
    if entry.status == Status.OK:
        by = said.get("approved_by", [])
        parts = [
            f"approval {said['approval']}" if said.get("approval") else "",
            str(said.get("why", "")),
            "simulated" if said.get("simulated") else "",
        ]
        return "approved", ", ".join(map(str, by)) if isinstance(by, list) else str(by), _joined(entry.name, parts)
    error = _error(entry.payload)
    return "refused", "" if error is None else error.ended_by, _joined(entry.name, [_said(error) if error else ""])


def _joined(name: str, parts: list[str]) -> str:
    return "; ".join([name, *(part for part in parts if part)])


def _resolution(entry: Entry, payload: Any) -> tuple[str, str, str]:
    said = payload if isinstance(payload, dict) else {}
    parts = [
        f"{entry.name}: {'applied' if said.get('applied') else 'not applied'}",
        str(said.get("why", "")),
        f"evidence {_short(said['evidence'])}" if said.get("evidence") is not None else "",
    ]
    return "resolved", f"person {said.get('by', '?')}", "; ".join(part for part in parts if part)


def _reason(payload: Any) -> str:
    return str(payload.get("reason", "")) if isinstance(payload, dict) else ""


def _checkpoint(entry: Entry) -> str:
    facts = checkpoint_facts(entry)
    if facts is None:
        return f"number {entry.step}"
    kept = "kept in the archive" if facts.kept else "dropped"
    before = "1 entry before it was" if facts.replaced == 1 else f"{facts.replaced:,} entries before it were"
    return f"number {entry.step}; {before} {kept}"


def _error(raw: bytes) -> ErrorRecord | None:
    try:
        return msgspec.json.decode(raw, type=ErrorRecord) if raw else None
    except msgspec.DecodeError:
        return ErrorRecord("?", "the error cannot be read")


def _said(error: ErrorRecord) -> str:
    by = f" ({error.ended_by})" if error.ended_by else ""
    return f"{error.error_class}: {error.message}{by}" if error.message else f"{error.error_class}{by}"


def _json(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw) if raw else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return f"({len(raw)} bytes that are no JSON)"


def _dict(raw: bytes) -> dict[str, Any]:
    found = _json(raw)
    return found if isinstance(found, dict) else {}


def _arguments(found: Any) -> str:
    return _short(found)[1:-1] if isinstance(found, list) else _short(found)


def moment(at_ms: Any) -> str:
    """A moment in UTC, or whatever is in its place."""
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(sep=" ", timespec="milliseconds")[:-6] + "Z"
    except (TypeError, ValueError, OverflowError, OSError):
        return _short(at_ms)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _DETAIL_SHOWN else f"{text[:_DETAIL_SHOWN]} …"
