"""Tool calls as steps: recorded ones are answered, new ones are made and then recorded.

A read is made in the task that asks for it, and ends with it. An effect is made in a task of its own: whatever happens
to the agent's code meanwhile (a branch that fails, a time-out, a cancellation), what has been sent is awaited and
recorded, and the run does not end or leave before.
"""

import asyncio
import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from actors.asked import Asked, Interrupted
from actors.attempts import NoMore, Outcome
from actors.contract import Tool
from actors.core.identity import idempotency_key
from actors.core.outcome import StepEnd, Unknown, after_crash
from actors.errors import PayloadTooLarge, RunAborted, StepFailed
from actors.gatekeeper import Postponed
from actors.journal import Entry, Kind, Status, decode_error, encode_error
from actors.scope import SCOPE
from actors.verdict import unknown
from admission.passage import Passage

if TYPE_CHECKING:
    from actors.engine import RunEngine

_LATER: Final = 0.1
_LONG_S: Final = 30.0
_CLASSES: Final = {StepEnd.TIMED_OUT: "GateTimeout", StepEnd.REFUSED: "NotAdmissible"}


async def call(
    engine: "RunEngine", path: str, tool: Tool[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """One tool call: recorded, or made and then recorded."""
    values, args_digest = tool.signature.bind(args, kwargs)
    entry = engine.ask(path, Kind.CALL, tool.name, args_digest)
    if entry is not None and entry.status != Status.OPEN:
        return _recorded(tool, entry)
    # An open call is one that has waited before; an intent, one that may have been sent.
    resumes = entry is not None and entry.kind == Kind.INTENT
    await engine.may_start(resumes=resumes)
    step = _Step(engine, path, tool, args_digest, _asked(engine, path, tool, values, args_digest, entry))
    if not tool.options.risk.is_effect:
        return await _read(step)
    if not resumes:
        try:
            passage = await _admitted(step)
        except NoMore as no_more:
            return await step.record(_no_more(no_more))
        return await engine.effect(_effect(step, passage))
    return await engine.effect(_resumed(step))


@dataclass(frozen=True, slots=True)
class _Step:
    """A call that is not recorded yet."""

    engine: "RunEngine"
    path: str
    tool: Tool[Any, Any]
    args_digest: bytes
    asked: Asked

    def entry(self, kind: Kind, status: Status, payload: bytes, attempts: int) -> bytes:
        """An entry of this step."""
        engine = self.engine
        began_ms = engine.services.now_ms() - round((engine.services.clock() - self.asked.began) * 1000)
        return engine.entry(kind, self.path, self.tool.name, self.args_digest, status, payload, attempts, began_ms)

    def undo(self, passage: Passage | None) -> None:
        """Its call does not go after all: what the gate gave for it is for the next one."""
        if passage is not None and self.asked.gatekeeper is not None:
            self.asked.gatekeeper.undo(passage)

    async def record(self, outcome: Outcome) -> Any:
        """Records how the step ended; its value, or its error."""
        if outcome.unknown:
            self.engine.abort(unknown(self.path, self.tool.name, outcome))
        error, end, by = outcome.error, outcome.end, outcome.ended_by
        try:
            self.engine.check_size(f"the result of tool {self.tool.name!r}", outcome.payload)
        except PayloadTooLarge as too_large:
            error, end, by = ("PayloadTooLarge", str(too_large)), StepEnd.INVALID_RESULT, "PENSTOCK_PAYLOAD_LIMIT_BYTES"
        payload = outcome.payload if error is None else encode_error(*error, self.path, end.value, by)
        status = Status.OK if error is None else Status.FAILED
        await self.engine.write([self.entry(Kind.CALL, status, payload, outcome.attempts)], 1)
        if error is not None:
            raise StepFailed(*error, self.path, end.value, by)
        return outcome.value


def _asked(
    engine: "RunEngine", path: str, tool: Tool[Any, Any], values: list[Any], args_digest: bytes, entry: Entry | None
) -> Asked:
    services, is_effect = engine.services, tool.options.risk.is_effect
    now, now_ms = services.clock(), services.now_ms()
    waited_s = 0.0 if entry is None else max(0, now_ms - entry.started_ms) / 1000
    deadline_ms = engine.claim.deadline_ms
    return Asked(
        tool,
        values,
        run_id=engine.claim.id,
        step=path,
        agent=engine.claim.agent,
        tenant=engine.job.tenant,
        rank=engine.rank,
        key=functools.partial(idempotency_key, engine.lineage, path, tool.name, args_digest),
        repeated=entry is not None and entry.kind == Kind.INTENT,
        began=now - waited_s,
        run_deadline=math.inf if deadline_ms is None else now + (deadline_ms - now_ms) / 1000,
        lease_renewed=services.lease_renewed,
        stuck=functools.partial(engine.stuck, path, tool.name, is_effect=is_effect),
        rests=engine.rests if is_effect else None,
    )


async def _read(step: _Step) -> Any:
    """A call that may be repeated freely, in the task that asks for it."""
    engine = step.engine
    try:
        passage = await _admitted(step)
    except NoMore as no_more:
        return await step.record(_no_more(no_more))
    scope, task = SCOPE.get(), asyncio.current_task()
    if scope.owner is task:
        # Tasks that the tool starts are none of the agent's.
        scope.owner = None
    engine.active += 1
    try:
        return await step.record(await engine.services.attempts.perform(step.asked, passage))
    finally:
        scope.owner = scope.owner or task
        engine.active -= 1
        engine.step_over()


async def _admitted(step: _Step) -> Passage | None:
    """Waits at the gate; a wait that will be long unloads the run, when nothing else keeps it busy.

    Raises:
        NoMore: a bound of the step was reached first, or the call can never go.
    """
    engine, attempts, recorded = step.engine, step.engine.services.attempts, False
    passage: Passage | None = None
    while True:
        engine.active += 1
        try:
            passage = await attempts.admit(step.asked, may_postpone=True)
            break
        except Postponed as postponed:
            # Not all at the same moment, and never before it can be of use.
            for_s = postponed.for_s * (1 + _LATER * engine.services.draw()) if postponed.for_s < math.inf else _LONG_S
            for_s = min(for_s, max(0.0, min(step.asked.bounds(engine.services.clock()).values())), _LONG_S)
            if not recorded:
                # When the step began must outlive its being unloaded, or its bounds would begin anew each time.
                waits = {"dependency": postponed.dependency, "why": postponed.hindrance.text}
                await engine.write([step.entry(Kind.CALL, Status.OPEN, msgspec.json.encode(waits), 0)], 0)
                recorded = True
            reason = f"{postponed.hindrance.kind} {postponed.dependency}"
        finally:
            engine.active -= 1
        await engine.wait_until(step.path, engine.services.now_ms() + round(for_s * 1000), reason)
    try:
        await engine.may_start()
    except BaseException:
        step.undo(passage)
        raise
    return passage


async def _effect(step: _Step, passage: Passage | None) -> Any:
    """Records that an effect is about to be caused, and causes it."""
    try:
        await step.engine.write([step.entry(Kind.INTENT, Status.OPEN, b"", 0)], 0)
    except BaseException:
        step.undo(passage)
        raise
    return await _caused(step, passage)


async def _resumed(step: _Step) -> Any:
    """An effect whose intent is recorded, and whose outcome is not: its host died in between. Is it sent again?"""
    tool = step.tool
    if isinstance(after_crash(idempotent=tool.options.idempotent), Unknown):
        lost = "HostLost", "its host died between intent and receipt, and the tool is not idempotent"
        step.engine.abort(unknown(step.path, tool.name, Outcome(0, error=lost, unknown=True)))
    try:
        with step.engine.rests.rest(uncertain=True):
            passage = await step.engine.services.attempts.admit(step.asked, may_postpone=False)
    except Interrupted:
        raise RunAborted from None
    except NoMore as no_more:
        outcome = Outcome(
            0, error=("Unconfirmed", str(no_more)), unknown=True, end=StepEnd.UNKNOWN, ended_by=no_more.by
        )
        return await step.record(outcome)
    return await _caused(step, passage)


async def _caused(step: _Step, passage: Passage | None) -> Any:
    outcome = await step.engine.services.attempts.perform(step.asked, passage)
    if outcome.interrupted:
        if not outcome.ambiguous:
            # Nothing was applied: the intent is taken back, so that nobody has to prove that.
            reason = msgspec.json.encode(
                {"why": "interrupted between two attempts", "error": ": ".join(outcome.error or ())}
            )
            await step.engine.write([step.entry(Kind.CALL, Status.OPEN, reason, outcome.attempts)], 0)
        raise RunAborted
    return await step.record(outcome)


def _no_more(no_more: NoMore) -> Outcome:
    return Outcome(0, error=(_CLASSES[no_more.end], str(no_more)), end=no_more.end, ended_by=no_more.by)


def _recorded(tool: Tool[Any, Any], entry: Entry) -> Any:
    if entry.status == Status.FAILED:
        error = decode_error(entry.payload)
        raise StepFailed(error.error_class, error.message, entry.step, error.end, error.ended_by)
    return tool.signature.result.load(entry.payload)
