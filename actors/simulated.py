"""Effects of simulated runs: the tool says what would have come of it, and nothing is sent.

The call is recorded as a real one would be, with an intent and an end, and meets the faults of its run's plan under the
retry policy, the tier and the idempotence of the real tool. The store's records of effects are not touched.
"""

import dataclasses
import math
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import msgspec

from actors.attempts import Outcome
from actors.contract import Tool, ToolCall
from actors.core.outcome import StepEnd
from actors.errors import Ambiguous, NotApplied, RateLimited, RunAborted, StepFailed
from actors.journal import Entry, Kind
from actors.receipts import SIMULATED, Receipt, encode_receipt
from actors.simulation import FaultKind, Simulation
from actors.tool_step import ToolStep, recorded_payload
from actors.verdict import failed

if TYPE_CHECKING:
    from actors.engine import RunEngine


class _Pretence(Tool[Any, Any]):
    """A tool whose calls are answered by its ``simulate``, unless a fault strikes. Its options are the real ones, but
    it keeps to no dependency: nothing is asked of one.
    """

    def __init__(self, step: ToolStep, hook: Tool[Any, Any], values: list[Any]) -> None:
        tool, engine = step.tool, step.engine
        self.function, self.is_async = hook.function, hook.is_async
        self.name, self.signature = tool.name, tool.signature
        self.options = dataclasses.replace(
            tool.options,
            dependency=None,
            resources=None,
            retry=engine.services.attempts.retry_policy(tool),
            max_tokens=None,
            reserve=None,
        )
        self.earlier_attempts = 0
        self.struck_attempt = 0
        self._hook, self._values = hook, values
        self.plan: Simulation = engine.job.simulation

    def invoke(self, call: ToolCall, values: list[Any]) -> Any:
        """The answer, or a fault."""
        attempt = self.earlier_attempts + call.attempt
        self.struck_attempt = attempt
        match self.plan.fault_of_call(self.name, call.step, attempt):
            case FaultKind.NOT_APPLIED:
                raise NotApplied(f"simulated: attempt {attempt} was not applied")
            case FaultKind.RATE_LIMITED:
                raise RateLimited(f"simulated: attempt {attempt} was refused, the limit is reached")
            case FaultKind.AMBIGUOUS:
                raise Ambiguous(f"simulated: the answer to attempt {attempt} was lost")
        return self._hook.invoke(call, self._values)


async def effect(step: ToolStep, entry: Entry | None) -> Any:
    """Pretends an effect and records it.

    Raises:
        StepFailed: what a real call would fail with; NotPermitted where the tool has no ``simulate``.
    """
    if entry is None or entry.kind != Kind.INTENT:
        await step.engine.write([step.intent(simulated=True)], 0)
    before = step.engine.pretended.get(step.business_key) if step.business_key else None
    if before is not None:
        return await _same_key(step, *before)
    pretence = _pretence(step)
    if pretence is None:
        text = (
            f"tool {step.tool.name!r} has no simulate=, so its effect cannot be pretended in a simulated run: declare "
            f"one, as in @tool(..., simulate=simulate_{step.tool.name})"
        )
        refused = Outcome(0, error=("NotPermitted", text), end=StepEnd.NOT_PERMITTED, ended_by="simulate=")
        return await _record(step, refused)
    while True:
        outcome = await _tried(step, pretence)
        if outcome.interrupted:
            raise RunAborted
        if not outcome.unknown:
            value = await _record(step, outcome)
            remember(step.engine, step.business_key, step.arguments, step.path, outcome.payload)
            return value
        if step.tool.options.effect.reconcile is None:
            _unknown(step, outcome)
        by_reconcile = pretence.plan.was_applied(step.tool.name, step.path, pretence.struck_attempt)
        pretence.earlier_attempts = pretence.struck_attempt
        if by_reconcile:
            pretence.plan = msgspec.structs.replace(pretence.plan, faults=())
        elif pretence.earlier_attempts >= step.engine.services.attempts.retry_policy(step.tool).maximum_attempts:
            error = outcome.error or ("", "")
            return await _record(step, Outcome(outcome.attempts, error=error, end=StepEnd.ATTEMPTS_EXHAUSTED))


async def read(step: ToolStep) -> Any:
    """Pretends a call of a tool without an effect, and records it."""
    pretence = _pretence(step)
    assert pretence is not None
    engine = step.engine
    engine.active += 1
    try:
        outcome = await _tried(step, pretence)
        if outcome.interrupted:
            raise RunAborted
        return await _record(step, outcome)
    finally:
        engine.active -= 1
        engine.step_over()


def pretends_read(step: ToolStep) -> bool:
    """Whether this call of a tool without an effect is pretended as well."""
    return step.engine.job.simulation.reads and step.tool.hook("simulate") is not None


def remember(engine: "RunEngine", business_key: str, arguments: bytes, path: str, payload: bytes) -> None:
    """A key stands for one effect, also for a pretended one; further calls of this run get its result."""
    if business_key:
        engine.pretended.setdefault(business_key, (arguments, path, payload))


async def observed(step: ToolStep, work: Coroutine[Any, Any, Any]) -> Any:
    """Makes a step; once it is recorded, hands the run back where its plan says so. A replay comes by here no more."""
    try:
        value = await work
    except StepFailed:
        _hand_back(step)
        raise
    _hand_back(step)
    return value


def _hand_back(step: ToolStep) -> None:
    if step.engine.job.simulation.hands_back(step.path):
        step.engine.depart("simulated: handed back between two steps")


def _pretence(step: ToolStep) -> _Pretence | None:
    found = step.tool.call_of_hook("simulate", step.asked.values)
    return None if found is None else _Pretence(step, *found)


async def _tried(step: ToolStep, pretence: _Pretence) -> Outcome:
    asked = dataclasses.replace(step.asked, tool=pretence, repeated=False, run_deadline=math.inf, gatekeeper=None)
    return await step.engine.services.attempts.perform(asked, None)


async def _same_key(step: ToolStep, arguments: bytes, path: str, payload: bytes) -> Any:
    if arguments != step.arguments:
        text = f"key {step.business_key!r}: step {path} of this run was first, with other arguments"
        conflict = Outcome(0, error=("IdempotencyConflict", text), end=StepEnd.CONFLICT, ended_by=step.engine.claim.id)
        return await _record(step, conflict)
    value = recorded_payload(step.tool, payload)
    return await _record(step, Outcome(0, value, payload), by=f"step {path}")


async def _record(step: ToolStep, outcome: Outcome, by: str = "simulate") -> Any:
    facts = encode_receipt(Receipt(SIMULATED, by, error=outcome.error, attempts=outcome.attempts))
    return await step.record(outcome, facts)


def _unknown(step: ToolStep, outcome: Outcome) -> None:
    """A real run would be confirmation_unknown here until a person speaks; of this one everybody knows that nothing
    was sent, so it ends.
    """
    why = ": ".join(outcome.error or ())
    message = f"tool {step.tool.name!r}: {why}. Nobody could prove whether its effect happened"
    step.engine.abort(
        failed(
            "ConfirmationUnknown",
            message,
            step.path,
            "simulated: confirmation unknown",
            end=outcome.end.value,
            ended_by=outcome.ended_by,
        )
    )
