"""Effects whose outcome nobody can prove: who has to look at which, and what they say of them."""

import asyncio
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python

from actors.contract import Tool
from actors.effect_options import HOOKS
from actors.errors import InvalidValue
from actors.job import decode_job
from actors.journal import (
    ENTRY_VERSION,
    Entry,
    Kind,
    Status,
    decode_entry,
    decode_error,
    encode_entry,
    first_link,
    link_of,
    seal,
)
from actors.receipts import Resolution, decode_resolution
from actors.registry import App
from cluster import reader, settling
from cluster.lifecycle import RunState
from cluster.records import EffectRecord, RunRecord
from cluster.store import Store
from penstock.errors import AlreadyResolved, InvalidResolution, LookAgain, NoSuchRun, NotTheOpenEffect, NotUnknown
from penstock.unknown_views import (
    Doubt,
    Resolved,
    UnknownEffect,
    UnknownRun,
    doubts,
    oldest_first,
    receipt_of,
    resolve_command,
    view_of,
    wanted,
)
from telemetry.redaction import redact, redacted

NOT_GIVEN: Final = object()
"""Stands for a result that nobody knows; None is one that is known to be null."""
_PAGE: Final = 50


class UnknownCalls:
    """What a client can ask and say of effects that nobody can prove."""

    _app: App | None

    @property
    def store(self) -> Store:
        """The open store."""
        raise NotImplementedError

    async def unknown(
        self,
        *,
        tenant: str | None = None,
        tool: str | None = None,
        batch: str | None = None,
        limit: int | None = None,
    ) -> list[UnknownEffect]:
        """Every effect whose outcome nobody can prove, the longest unknown first.

        Args:
            tenant: of this tenant only.
            tool: of this tool only.
            batch: of this batch's runs only.
            limit: as many as this are enough, whichever they are; all by default.
        """
        found: list[UnknownEffect] = []
        async for page in settling.unknown_run_ids(self.store):
            for start in range(0, len(page), _PAGE):
                views = await unknown_effects(self.store, page[start : start + _PAGE])
                found += (view for view in views if wanted(view, tenant, tool, batch))
                if limit is not None and len(found) >= limit:
                    return oldest_first(found)[:limit]
        return oldest_first(found)

    async def unknown_of(self, run_id: str) -> list[UnknownEffect]:
        """The effects of one run whose outcome nobody can prove.

        Raises:
            NoSuchRun: there is no such run.
            NotUnknown: it is in another state.
        """
        run = await self._unknown_run(run_id, None)
        return await _views(self.store, [run])

    async def resolve(
        self,
        run_id: str,
        step: str,
        *,
        applied: bool,
        evidence: Any = None,
        result: Any = NOT_GIVEN,
        by: str | None = None,
        why: str = "",
        version: int | None = None,
    ) -> Resolved:
        """Says what became of an effect that nobody could prove. It is recorded, and the run goes on from there.

        An applied effect ends its step with ``result``; without one, with null where the tool's result may be that,
        and otherwise the step fails as ``ResultUnknown``. One that was not applied is caused anew.

        Args:
            run_id: the run.
            step: its step, as :meth:`unknown` names it.
            applied: whether it happened.
            evidence: what proves that: a text, or anything that pydantic can write as JSON; kept with the receipt.
            result: what the tool would have returned, where that is known. It is checked here when the client has the
                app, and otherwise by the host, for which a bad one makes the step fail as ``InvalidValue``.
            by: who says so; by default ``settings.user`` (``PENSTOCK_USER``, or the user of this process).
            why: their reason.
            version: the run's state version when they looked at it (``state_version`` of the view). It is needed where
                the effect was about to be caused more than once: what is true of one time says nothing of the other.

        Raises:
            NoSuchRun: there is no such run.
            NotUnknown: it is in another state.
            LookAgain: something has changed since they looked, or it takes a ``version``.
            NotTheOpenEffect: another step of it is in doubt; the text names it.
            AlreadyResolved: somebody has said so before; the text names them.
            InvalidResolution: the result does not fit the tool, or something cannot be recorded.
        """
        said = self._said(applied, evidence, result, by, why)
        run = await self._unknown_run(run_id, step)
        doubt = _doubt(run, step, version)
        if doubt.entry is None:
            raise InvalidResolution(
                f"the journal of run {run_id} has no intent at step {step!r}: the store has lost what it had "
                f"acknowledged, and there is nothing to say it of. Have a host look: {resolve_command(run_id, step)} "
                "--ask-again"
            )
        said = self._checked_result(doubt.tool, said)
        known = await self.store.effect(doubt.facts.identity) if doubt.facts.identity else None
        at_ms = await self.store.server_ms()
        raw = _entry(run, doubt.entry, said, known, at_ms, self.store.settings.payload_limit_bytes)
        await self._take(
            run, step, raw, f"step {step} resolved by {said.by}: {'applied' if applied else 'not applied'}"
        )
        return Resolved(
            run_id=run_id, step=step, tool=doubt.tool, applied=applied, by=said.by, why=said.why, at_ms=at_ms
        )

    async def ask_again(
        self, run_id: str, step: str, *, by: str | None = None, why: str = "", version: int | None = None
    ) -> Resolved:
        """Has a host find out once more what became of an effect, as after a crash: by the tool's ``reconcile``, or by
        sending it again where the other side honours the key. Where the tool has neither, it stays unknown.

        Raises:
            NoSuchRun, NotUnknown, NotTheOpenEffect, AlreadyResolved, LookAgain, InvalidResolution: as in
                :meth:`resolve`.
        """
        said = self._said(False, None, NOT_GIVEN, by, why)
        run = await self._unknown_run(run_id, step)
        doubt = _doubt(run, step, run.record.version if version is None else version)
        reason = f"step {step} is asked after again, for {said.by}" + (f": {said.why}" if said.why else "")
        await self._take(run, step, b"", reason[:500])
        at_ms = await self.store.server_ms()
        return Resolved(run_id=run_id, step=step, tool=doubt.tool, applied=None, by=said.by, why=said.why, at_ms=at_ms)

    # Within

    async def _unknown_run(self, run_id: str, step: str | None) -> UnknownRun:
        """The run with its journal, if it is unknown; ``step`` is the one that somebody wants to speak of."""
        try:
            record = await reader.record(self.store, run_id)
        except ValueError:
            record = None
        if record is None:
            raise NoSuchRun(run_id)
        run = await _read(self.store, record)
        if record.state is not RunState.CONFIRMATION_UNKNOWN:
            if step is not None:
                await self._refuse_second(run, step)
            raise NotUnknown(run_id, record.state.value, record.reason)
        if step is not None and step not in {doubt.step for doubt in doubts(run)}:
            await self._refuse_second(run, step)
        return run

    async def _refuse_second(self, run: UnknownRun, step: str) -> None:
        """Raises AlreadyResolved where somebody has spoken of this step before."""
        key = self.store.keys.of(int(run.record.id[:2], 16), f"archive:{run.record.id}")
        older = [decode_entry(raw) for raw in await self.store.command(key, "LRANGE", key, 0, -1)]
        for entry in reversed(older + run.entries):
            if entry.step == step and entry.kind == Kind.RESOLUTION:
                said = decode_resolution(entry.payload)
                when = datetime.fromtimestamp(entry.ended_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
                raise AlreadyResolved(run.record.id, step, said.by, said.applied, when, run.record.state.value)

    async def _take(self, run: UnknownRun, step: str, entry: bytes, reason: str) -> None:
        """Has the word taken; if it is not, something has changed since the run was read."""
        record = run.record
        word = await settling.resolve(self.store, record.id, record.version, len(run.entries), entry, reason)
        if word != "OK":
            _doubt(await self._unknown_run(record.id, step), step, record.version)
            raise LookAgain(record.id, step, resolve_command(record.id, step))

    def _said(self, applied: bool, evidence: Any, result: Any, by: str | None, why: str) -> Resolution:
        """What somebody says, without credentials, as it can be recorded."""
        name = self.store.settings.user if by is None else by.strip()
        if not name or len(name) > 256 or not name.isprintable():
            raise InvalidResolution(f"by={by!r}: say who you are in 1 to 256 printable characters")
        if result is not NOT_GIVEN and not applied:
            raise InvalidResolution("an effect that was not applied has no result: give one only with applied")
        try:
            plain = redacted(to_jsonable_python(evidence))
            known = {} if result is NOT_GIVEN else {"result": msgspec.Raw(to_json(result))}
        except (PydanticSerializationError, ValueError) as error:
            raise InvalidResolution(f"this cannot be written as JSON: {error}") from None
        return Resolution(applied, name, redacted(why), plain, **known)

    def _checked_result(self, tool: str, said: Resolution) -> Resolution:
        """With the result as the tool's own would be recorded, where the app is at hand."""
        given = _result_in(said)
        declared = _tool_of(self._app, tool)
        if not given or declared is None:
            return said
        try:
            value = declared.signature.result
            return msgspec.structs.replace(said, result=msgspec.Raw(value.dump(value.load(given))))
        except InvalidValue as error:
            raise InvalidResolution(f"the result does not fit: {error}. Nothing was changed") from None


async def unknown_effects(store: Store, run_ids: list[str]) -> list[UnknownEffect]:
    """The effects of these runs that nobody can prove; runs that have gone on meanwhile are left out."""
    records = await reader.records(store, run_ids)
    unknown = [record for record in records if record.state is RunState.CONFIRMATION_UNKNOWN]
    return await _views(store, await asyncio.gather(*(_read(store, record) for record in unknown)))


async def _views(store: Store, runs: list[UnknownRun]) -> list[UnknownEffect]:
    pairs = [(run, doubt) for run in runs for doubt in doubts(run)]

    async def known(doubt: Doubt) -> EffectRecord | None:
        identity = doubt.facts.identity
        return await store.effect(identity) if identity else None

    now_ms = await store.server_ms()
    records = await asyncio.gather(*(known(doubt) for _, doubt in pairs))
    found = []
    for (run, doubt), record in zip(pairs, records, strict=True):
        view = view_of(run, doubt, record, now_ms)
        found.append(msgspec.structs.replace(view, arguments=redacted(view.arguments), tried=_masked(view)))
    return found


def _masked(view: UnknownEffect) -> Any:
    tried = view.tried
    return msgspec.structs.replace(tried, last_error=redact(tried.last_error), reconciled=redact(tried.reconciled))


async def _read(store: Store, record: RunRecord) -> UnknownRun:
    raws = await reader.journal(store, record.id)
    link = link_of(raws[-1]) if raws else first_link(record.id, record.job)
    error = decode_error(record.error) if record.error else None
    return UnknownRun(record, decode_job(record.job), error, [decode_entry(raw) for raw in raws], link)


def _doubt(run: UnknownRun, step: str, version: int | None) -> Doubt:
    """The doubt that somebody speaks of, if they have seen it as it is now."""
    record, there = run.record, doubts(run)
    for doubt in there:
        if doubt.step == step:
            command = resolve_command(record.id, step, record.version)
            if version is None and doubt.times > 1:
                raise LookAgain(record.id, step, command, f"it was about to be caused {doubt.times} times")
            if version not in (None, record.version):
                raise LookAgain(record.id, step, command)
            return doubt
    right = [f"step {each.step} ({each.tool}): {resolve_command(record.id, each.step)}" for each in there]
    raise NotTheOpenEffect(record.id, step, right)


def _entry(
    run: UnknownRun, intent: Entry, said: Resolution, known: EffectRecord | None, at_ms: int, limit_bytes: int
) -> bytes:
    """The sealed entry. It has the intent's facts, so that whoever reads it knows which record it settles; the step's
    own time begins anew with it.
    """
    payload = msgspec.json.encode(said)
    if len(payload) > limit_bytes:
        raise InvalidResolution(
            f"what you say has {len(payload)} bytes, the limit is {limit_bytes} (PENSTOCK_PAYLOAD_LIMIT_BYTES). Keep "
            "large evidence elsewhere and give a reference to it"
        )
    receipt = receipt_of(run.record.id, intent.step, known)
    entry = Entry(
        ENTRY_VERSION, Kind.RESOLUTION, intent.step, intent.name, intent.digest, Status.OK, payload,
        receipt.attempts if receipt else 0, at_ms, at_ms, intent.facts,
    )  # fmt: skip
    return seal(run.link, encode_entry(entry))


def _result_in(said: Resolution) -> bytes:
    return b"" if said.result is msgspec.UNSET else bytes(said.result)


def _tool_of(app: App | None, name: str) -> Tool[Any, Any] | None:
    """A tool of the app by its name, or the hook of one, as in ``refund.compensate``."""
    if app is None:
        return None
    by_name = {tool.name: tool for tool in app.tools}
    owner, _, which = name.rpartition(".")
    if name not in by_name and which in HOOKS and owner in by_name:
        return by_name[owner].hook(which)
    return by_name.get(name)
