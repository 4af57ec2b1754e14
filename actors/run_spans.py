"""A run's spans, made of its record and its journal alone: whatever died, whoever reads them sees the same trace.

A run is one trace with one root; each step is one span below it. What a fork has of its source belongs to the source's
trace. Content (inputs, results, the text of errors) is in none of them: only names, digests, states and times.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from actors.job import JobRecord, decode_job
from actors.journal import Entry, Kind, Status
from cluster.lifecycle import TERMINAL, RunState
from cluster.records import RunRecord
from telemetry import conventions as names
from telemetry.spans import AttributeValue, Span, SpanEvent, SpanKind, SpanLink, SpanStatus
from telemetry.trace_ids import TraceParent, run_trace_id, span_id

_NO_SPAN: Final = frozenset({Kind.VALUE.value, Kind.CHECKPOINT.value, Kind.ENDING.value})
_BAD_ENDS: Final = frozenset({RunState.FAILED, RunState.SHED, RunState.CONFIRMATION_UNKNOWN})
_LEAST_OF_KEY: Final = 16


def root_of(record: RunRecord) -> TraceParent:
    """The span of a run as a whole."""
    trace = run_trace_id(record.id, record.accepted_ms)
    return TraceParent(trace, span_id(trace, "run", record.id))


def step_span_id(trace_id: int, path: str) -> int:
    """The span of a step."""
    return span_id(trace_id, "step", path)


def relatives_of(record: RunRecord, entries: Sequence[Entry]) -> list[str]:
    """The runs that a run's spans are linked to: its parent, its source, its child runs."""
    job = _job(record)
    children = [_text(entry.payload) for entry in _own(record, entries) if _starts_child(entry)]
    return list(dict.fromkeys(filter(None, [record.parent, job.forked_from if job else "", *children])))


def spans_of(
    record: RunRecord, entries: Sequence[Entry], now_ms: int, relatives: Mapping[str, RunRecord] | None = None
) -> list[Span]:
    """The run's spans, the root first, then each step in the order in which it began.

    Args:
        record: the run.
        entries: all that is kept of its journal, archived ones first.
        now_ms: the store's clock; nothing of a run that goes on is shown to be later.
        relatives: records of runs that it has to do with (:func:`relatives_of`), for links; those that are not there
            are not linked to.
    """
    known, job = relatives or {}, _job(record)
    own = _own(record, entries)
    last_ms = record.ended_ms if record.ended_ms is not None else max(now_ms, record.accepted_ms)
    frame = _Frame(root_of(record), record.accepted_ms, max(last_ms, record.accepted_ms), record.state in TERMINAL)
    steps: dict[str, _Step] = {}
    for entry in own:
        if entry.kind not in _NO_SPAN:
            steps.setdefault(entry.step, _Step(entry.step)).entries.append(entry)
    spans = [_root(record, job, own, frame, known), *_queued(record, job, frame)]
    return spans + [step.span(frame, known) for step in steps.values()]


@dataclass(frozen=True, slots=True)
class _Frame:
    """The root, and the times between which everything of the run is: hosts only estimate the store's clock."""

    root: TraceParent
    from_ms: int
    to_ms: int
    ended: bool

    def within(self, at_ms: int) -> int:
        return min(max(at_ms, self.from_ms), self.to_ms)


def _root(
    record: RunRecord, job: JobRecord | None, entries: Sequence[Entry], frame: _Frame, known: Mapping[str, RunRecord]
) -> Span:
    attributes: dict[str, AttributeValue] = {
        names.OPERATION: names.INVOKE_AGENT,
        names.AGENT_NAME: record.agent,
        names.RUN: record.id,
        names.STATE: record.state.value,
        names.STATE_VERSION: record.version,
        names.FENCE: record.fence,
        names.MIGRATIONS: record.migrations,
    }
    said = {
        names.AGENT_VERSION: record.pinned,
        names.BATCH: record.batch,
        names.CUSTOM_ID: record.custom_id,
        names.REASON: record.reason,
        names.HOST: record.host,
        names.ERROR_TYPE: str(_mapping(record.error).get("class", "")),
        names.TENANT: job.tenant if job else "",
        names.VALUE: job.value if job else "",
    }
    attributes |= {name: text for name, text in said.items() if text}
    if job is not None and job.simulated:
        attributes[names.SIMULATED] = True
    if record.inherited:
        attributes[names.INHERITED] = record.inherited
    links = [
        SpanLink(root_of(known[run_id]), {names.LINK: why})
        for run_id, why in ((record.parent, "parent"), (job.forked_from if job else "", "forked from"))
        if run_id in known
    ]
    bad = record.state in _BAD_ENDS
    return Span(
        frame.root.trace_id, frame.root.span_id, 0, f"{names.INVOKE_AGENT} {record.agent}", SpanKind.INTERNAL,
        frame.from_ms, frame.to_ms if frame.ended else None,
        status=SpanStatus.ERROR if bad else SpanStatus.OK if record.state is RunState.SUCCEEDED else SpanStatus.UNSET,
        status_text=f"{record.state.value}: {record.reason}".removesuffix(": ") if bad else "",
        attributes=attributes, events=_marks(entries, frame), links=links,
    )  # fmt: skip


def _marks(entries: Sequence[Entry], frame: _Frame) -> list[SpanEvent]:
    """What takes no time: checkpoints, and that the run's effects are being undone."""
    words = {Kind.CHECKPOINT.value: "checkpoint", Kind.ENDING.value: "undoing its effects"}
    return [
        SpanEvent(words[entry.kind], frame.within(entry.ended_ms), {names.STEP: entry.step})
        for entry in entries
        if entry.kind in words
    ]


def _queued(record: RunRecord, job: JobRecord | None, frame: _Frame) -> list[Span]:
    """The wait for the first start."""
    if record.state is RunState.ACCEPTED:
        return []
    started = record.started_ms
    ended = frame.within(started) if started is not None else frame.to_ms if frame.ended else None
    return [
        Span(
            frame.root.trace_id, span_id(frame.root.trace_id, "queue"), frame.root.span_id, "queue", SpanKind.INTERNAL,
            frame.from_ms, ended, attributes={names.WAITED_FOR: "a host", names.VALUE: job.value if job else ""},
        )
    ]  # fmt: skip


@dataclass(slots=True)
class _Step:
    """The entries of one step."""

    path: str
    entries: list[Entry] = field(default_factory=list)

    def span(self, frame: _Frame, known: Mapping[str, RunRecord]) -> Span:
        first, last = self.entries[0], self.entries[-1]
        started = frame.within(min(entry.started_ms for entry in self.entries))
        ended = self._ended(last, frame)
        attributes: dict[str, AttributeValue] = {names.STEP: self.path, names.KIND: self._kind()}
        events: list[SpanEvent] = []
        links: list[SpanLink] = []
        for entry in self.entries:
            attributes |= _attributes(entry)
            event = _event(entry, frame)
            if event is not None:
                events.append(event)
            child = _text(entry.payload) if _starts_child(entry) else ""
            if child:
                attributes[names.CHILD_RUN] = child
                if child in known:
                    links.append(SpanLink(root_of(known[child]), {names.LINK: "child"}))
        if frame.ended and last.status == Status.OPEN and last.kind != Kind.TIMER:
            attributes[names.LEFT_OPEN] = True
        failed = last.status == Status.FAILED
        return Span(
            frame.root.trace_id, step_span_id(frame.root.trace_id, self.path), frame.root.span_id, self._name(first),
            SpanKind.CLIENT if self._kind() == "tool" else SpanKind.INTERNAL, started,
            None if ended is None else max(started, ended),
            status=SpanStatus.ERROR if failed else SpanStatus.OK if last.status == Status.OK else SpanStatus.UNSET,
            status_text=str(attributes.get(names.ERROR_TYPE, "")) if failed else "",
            attributes=attributes, events=events, links=links,
        )  # fmt: skip

    def _kind(self) -> str:
        kind = self.entries[0].kind
        return "tool" if kind in (Kind.CALL, Kind.INTENT, Kind.RESOLUTION) else kind

    def _name(self, first: Entry) -> str:
        words = {"tool": names.EXECUTE_TOOL, Kind.CHILD.value: names.INVOKE_AGENT, Kind.APPROVAL.value: "approval"}
        word = words.get(self._kind())
        return f"{word} {first.name}" if word else first.name

    def _ended(self, last: Entry, frame: _Frame) -> int | None:
        """None while it goes on. A timer has no entry for its end: it ends when it is due, or with the run."""
        if last.kind == Kind.TIMER:
            due = _number(last.payload)
            return frame.within(due) if frame.ended or due <= frame.to_ms else None
        if last.status != Status.OPEN:
            return frame.within(last.ended_ms)
        return frame.to_ms if frame.ended else None


def _attributes(entry: Entry) -> dict[str, AttributeValue]:
    """What one entry says of its step; a later one of the same step says it better."""
    facts, payload = _mapping(entry.facts), _mapping(entry.payload)
    permission = facts.get("permission")
    permission = permission if isinstance(permission, dict) else {}
    failed = entry.status == Status.FAILED
    said: dict[str, Any] = {
        names.PERMISSION: permission.get("decision"),
        names.PERMISSION_RULE: permission.get("rule"),
        names.PERMISSION_VERSION: permission.get("version"),
        names.RISK: facts.get("risk"),
        names.APPROVAL: facts.get("approval") or (payload.get("id") if entry.kind == Kind.APPROVAL else None),
        names.UNDOES: facts.get("undoes"),
        names.RECEIPT_BY: facts.get("by"),
        names.ERROR_TYPE: payload.get("class") if failed else None,
        names.STEP_END: payload.get("end") if failed else None,
        names.ENDED_BY: payload.get("ended_by") if failed else None,
        names.RECEIPT: facts.get("state"),
    }
    found: dict[str, AttributeValue] = {name: str(text) for name, text in said.items() if text}
    if entry.kind in (Kind.CALL, Kind.INTENT):
        found |= {names.OPERATION: names.EXECUTE_TOOL, names.TOOL_NAME: entry.name}
        found[names.ARGUMENTS_DIGEST] = entry.digest.hex()
    if entry.kind == Kind.CHILD:
        found |= {names.OPERATION: names.INVOKE_AGENT, names.AGENT_NAME: entry.name}
    if entry.kind == Kind.CALL and entry.status != Status.OPEN:
        found[names.ATTEMPTS] = entry.attempts
    if entry.kind == Kind.TIMER:
        found[names.DUE_MS] = _number(entry.payload)
    if facts.get("key"):
        # Whoever has the key could send the same call: only who knows it already can compare.
        key = hashlib.blake2b(str(facts["key"]).encode(), digest_size=_LEAST_OF_KEY).hexdigest()
        found[names.KEY_DIGEST] = key
    if facts.get("state"):
        found[names.EVIDENCE] = facts.get("evidence") is not None
    return found


def _event(entry: Entry, frame: _Frame) -> SpanEvent | None:
    """What happens on a step's way to its end."""
    at_ms, payload = frame.within(entry.ended_ms), _mapping(entry.payload)
    if entry.kind == Kind.INTENT:
        return SpanEvent("intent recorded", at_ms)
    if entry.kind == Kind.RESOLUTION:
        applied = payload.get("applied") is True
        return SpanEvent("resolved", at_ms, {names.RECEIPT: "applied" if applied else "not_applied"})
    if entry.kind == Kind.APPROVAL and entry.status == Status.OPEN:
        return SpanEvent("approval asked", at_ms)
    if entry.kind == Kind.CALL and entry.status == Status.OPEN:
        why = str(payload.get("why") or payload.get("dependency") or "")
        return SpanEvent("waits for its dependency", at_ms, {names.WAITED_FOR: why} if why else {})
    return None


def _own(record: RunRecord, entries: Sequence[Entry]) -> Sequence[Entry]:
    return entries[record.inherited or 0 :]


def _starts_child(entry: Entry) -> bool:
    return entry.kind == Kind.CHILD and entry.status == Status.OPEN


def _job(record: RunRecord) -> JobRecord | None:
    try:
        return decode_job(record.job)
    except (ValueError, msgspec.DecodeError):
        return None


def _mapping(raw: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(raw) if raw else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _number(raw: bytes) -> int:
    return int(raw) if raw.isdigit() else 0


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")
