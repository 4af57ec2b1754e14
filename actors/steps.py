"""Tool calls as steps: recorded ones are answered, new ones are made and then recorded.

A read is made in the task that asks for it, and ends with it. An effect (:mod:`actors.effects`) is made in a task of
its own: whatever happens to the agent's code meanwhile (a branch that fails, a time-out, a cancellation), what has been
sent is awaited and recorded, and the run does not end or leave before.
"""

import asyncio
from typing import TYPE_CHECKING, Any

from actors import approvals, effects, simulated
from actors.attempts import NoMore, Outcome
from actors.authority import asks_approval
from actors.contract import Tool
from actors.core.outcome import StepEnd
from actors.journal import Entry, Kind, Status
from actors.receipts import decode_intent_facts, decode_resolution
from actors.scope import SCOPE
from actors.tool_step import ToolStep, keyed, no_more_outcome, recorded, tool_step
from admission.approval import DEFAULT_TERMS, Terms
from admission.policy import Permission

if TYPE_CHECKING:
    from actors.engine import RunEngine


async def call(
    engine: "RunEngine",
    path: str,
    tool: Tool[Any, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    business_key: str = "",
) -> Any:
    """One tool call: recorded, or made and then recorded."""
    values, arguments = tool.signature.bind(args, kwargs)
    entry = engine.ask(path, Kind.CALL, tool.name, keyed(arguments, business_key))
    if entry is not None and entry.status != Status.OPEN and entry.kind != Kind.RESOLUTION:
        approvals.passed(engine, path)
        if business_key and engine.job.simulated and entry.status == Status.OK:
            simulated.remember(engine, business_key, arguments, path, entry.payload)
        return recorded(tool, entry)
    # An open call is one that has waited before; an intent, one that may have been sent; a resolution says how it was.
    await engine.may_start(resumes=entry is not None and entry.kind in (Kind.INTENT, Kind.RESOLUTION))
    step = tool_step(engine, path, tool, values, arguments, entry, business_key)
    refused = await _permitted(step, entry)
    if refused is not None:
        return await step.record(refused)
    if engine.job.simulated:
        return await simulated.observed(step, _made(step, entry))
    return await _made(step, entry)


async def _made(step: ToolStep, entry: Entry | None) -> Any:
    engine, tool = step.engine, step.tool
    if tool.options.risk.is_effect:
        engine.services.tools.setdefault(tool.name, tool)
        engine.has_effects = True
        return await effects.make(step, entry)
    if engine.job.simulated and simulated.pretends_read(step):
        return await simulated.read(step)
    return await _read(step)


async def _permitted(step: ToolStep, entry: Entry | None) -> Outcome | None:
    """How the step ends where the call is not permitted; None once it is, and people have approved what they have to.

    What was permitted when it began goes on under that; its approval is proved again. What people were asked they
    decide, whatever policy is in force by then, unless it denies the call.
    """
    engine, path, tool, values = step.engine, step.path, step.tool, step.asked.values
    asked = approvals.recorded(engine, path)
    if entry is not None and entry.kind in (Kind.INTENT, Kind.RESOLUTION):
        if entry.kind == Kind.RESOLUTION and decode_resolution(entry.payload).applied:
            approvals.passed(engine, path)
        elif asked is not None or asks_approval(tool, values) or _names_approval(entry):
            if entry.kind == Kind.INTENT:
                step.approval = approvals.proved(engine, path, tool, values, step.business_key)
            else:
                step.approval = await _approved(step, DEFAULT_TERMS, "")
        return None
    if asked is not None and asked.status == Status.FAILED:
        await _approved(step, DEFAULT_TERMS, "")  # raises what is recorded
    decision = engine.services.authority.decide(tool, values, job=engine.job, agent=engine.claim.agent)
    step.permission = decision.facts
    if decision.outcome is Permission.DENY:
        approvals.passed(engine, path)
        error = ("NotPermitted", decision.text)
        return Outcome(0, error=error, end=StepEnd.NOT_PERMITTED, ended_by=f"rule {decision.rule}")
    if asked is not None or decision.terms is not None:
        step.approval = await _approved(step, decision.terms or DEFAULT_TERMS, decision.rule)
        if entry is None:
            # The time that people took is none of the call's.
            step.asked.began = engine.services.clock()
    return None


async def _approved(step: ToolStep, terms: Terms, rule: str) -> str:
    return await approvals.approved(
        step.engine, step.path, step.tool, step.asked.values, terms, rule=rule, business_key=step.business_key
    )


def _names_approval(intent: Entry) -> bool:
    return bool(intent.facts and decode_intent_facts(intent.facts).approval)


async def _read(step: ToolStep) -> Any:
    """A call that may be repeated freely, in the task that asks for it."""
    engine = step.engine
    try:
        passage = await step.admitted()
    except NoMore as no_more:
        return await step.record(no_more_outcome(no_more))
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
