"""Tool calls as steps: recorded ones are answered, new ones are made and then recorded.

A read is made in the task that asks for it, and ends with it. An effect (:mod:`actors.effects`) is made in a task of
its own: whatever happens to the agent's code meanwhile (a branch that fails, a time-out, a cancellation), what has been
sent is awaited and recorded, and the run does not end or leave before.
"""

import asyncio
from typing import TYPE_CHECKING, Any

from actors import approvals, effects
from actors.attempts import NoMore
from actors.contract import Tool
from actors.journal import Kind, Status
from actors.scope import SCOPE
from actors.tool_step import ToolStep, keyed, no_more_outcome, recorded, tool_step
from admission.approval import DEFAULT_TERMS

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
        return recorded(tool, entry)
    # An open call is one that has waited before; an intent, one that may have been sent; a resolution says how it was.
    await engine.may_start(resumes=entry is not None and entry.kind in (Kind.INTENT, Kind.RESOLUTION))
    approval = ""
    if _needs_approval(tool, values):
        approval = await approvals.approved(engine, path, tool, values, DEFAULT_TERMS, business_key=business_key)
    step = tool_step(engine, path, tool, values, arguments, entry, business_key)
    step.approval = approval
    if tool.options.risk.is_effect:
        engine.services.tools.setdefault(tool.name, tool)
        engine.has_effects = True
        return await effects.make(step, entry)
    return await _read(step)


def _needs_approval(tool: Tool[Any, Any], values: list[Any]) -> bool:
    needs = tool.options.effect.needs_approval
    if not callable(needs):
        return needs
    keywords = tool.signature.keywords
    positional = len(values) - len(keywords)
    return needs(*values[:positional], **dict(zip(keywords, values[positional:], strict=True)))


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
