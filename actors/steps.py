"""Tool calls as steps: recorded ones are answered, new ones are made and then recorded.

A read is made in the task that asks for it, and ends with it. An effect (:mod:`actors.effects`) is made in a task of
its own: whatever happens to the agent's code meanwhile (a branch that fails, a time-out, a cancellation), what has been
sent is awaited and recorded, and the run does not end or leave before.
"""

import asyncio
from typing import TYPE_CHECKING, Any

from actors import approvals, effects, simulated
from actors.attempts import NoMore, Outcome
from actors.contract import Tool
from actors.core.outcome import StepEnd
from actors.journal import Entry, Kind, Status
from actors.receipts import decode_intent_facts
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

    What was permitted when it began goes on under that; its approval is proved again.
    """
    engine, tool, values = step.engine, step.tool, step.asked.values
    if entry is not None and entry.kind in (Kind.INTENT, Kind.RESOLUTION):
        if entry.facts and decode_intent_facts(entry.facts).approval:
            step.approval = await approvals.approved(
                engine, step.path, tool, values, DEFAULT_TERMS, business_key=step.business_key
            )
        return None
    decision = engine.services.authority.decide(tool, values, job=engine.job, agent=engine.claim.agent)
    step.permission = decision.facts
    if decision.outcome is Permission.DENY:
        error = ("NotPermitted", decision.text)
        return Outcome(0, error=error, end=StepEnd.NOT_PERMITTED, ended_by=f"rule {decision.rule}")
    if decision.terms is not None:
        terms = Terms.model_validate(decision.terms.model_dump())
        step.approval = await approvals.approved(
            engine, step.path, tool, values, terms, rule=decision.rule, business_key=step.business_key
        )
    return None


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
