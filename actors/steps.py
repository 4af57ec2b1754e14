"""Tool calls as steps: recorded ones are answered, new ones are made and then recorded.

A read is made in the task that asks for it, and ends with it. An effect is made in a task of its own: whatever happens
to the agent's code meanwhile (a branch that fails, a time-out, a cancellation), what has been sent is awaited and
recorded, and the run does not end or leave before.
"""

import asyncio
import functools
from typing import TYPE_CHECKING, Any

from actors.attempts import Outcome
from actors.contract import Tool
from actors.core.identity import idempotency_key
from actors.core.outcome import Unknown, after_crash
from actors.errors import PayloadTooLarge, StepFailed
from actors.journal import Entry, Kind, Status, decode_error, encode_error
from actors.scope import SCOPE
from actors.verdict import unknown

if TYPE_CHECKING:
    from actors.engine import RunEngine


async def call(
    engine: "RunEngine", path: str, tool: Tool[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """One tool call: recorded, or made and then recorded."""
    values, args_digest = tool.signature.bind(args, kwargs)
    entry = engine.ask(path, Kind.CALL, tool.name, args_digest)
    if entry is not None and entry.status != Status.OPEN:
        return _recorded(tool, entry)
    await engine.may_start(resumes=entry is not None)
    if tool.options.risk.is_effect:
        return await engine.effect(_effect(engine, path, tool, values, args_digest, entry))
    scope, task = SCOPE.get(), asyncio.current_task()
    if scope.owner is task:
        # Tasks that the tool starts are none of the agent's.
        scope.owner = None
    engine.active += 1
    try:
        return await _perform(engine, path, tool, values, args_digest, repeated=False)
    finally:
        scope.owner = scope.owner or task
        engine.active -= 1
        engine.step_over()


async def _effect(
    engine: "RunEngine", path: str, tool: Tool[Any, Any], values: list[Any], args_digest: bytes, entry: Entry | None
) -> Any:
    """Records that an effect is about to be caused, and causes it; after a crash, decides whether to send it again."""
    if entry is None:
        at_ms = engine.services.now_ms()
        intent = engine.entry(Kind.INTENT, path, tool.name, args_digest, Status.OPEN, b"", 0, at_ms)
        await engine.write([intent], 0)
    elif isinstance(after_crash(idempotent=tool.options.idempotent), Unknown):
        lost = "HostLost", "its host died between intent and receipt, and the tool is not idempotent"
        engine.abort(unknown(path, tool.name, Outcome(0, error=lost, unknown=True)))
    return await _perform(engine, path, tool, values, args_digest, repeated=entry is not None)


async def _perform(
    engine: "RunEngine", path: str, tool: Tool[Any, Any], values: list[Any], args_digest: bytes, *, repeated: bool
) -> Any:
    services = engine.services
    started_ms = services.now_ms()
    outcome = await services.attempts.perform(
        tool,
        values,
        run_id=engine.claim.id,
        step=path,
        key=functools.partial(idempotency_key, engine.lineage, path, tool.name, args_digest),
        tenant=engine.job.tenant,
        repeated=repeated,
        lease_renewed=services.lease_renewed,
    )
    if outcome.unknown:
        engine.abort(unknown(path, tool.name, outcome))
    error = outcome.error
    try:
        engine.check_size(f"the result of tool {tool.name!r}", outcome.payload)
    except PayloadTooLarge as too_large:
        error = "PayloadTooLarge", str(too_large)
    payload = outcome.payload if error is None else encode_error(*error, path)
    status = Status.OK if error is None else Status.FAILED
    entry = engine.entry(Kind.CALL, path, tool.name, args_digest, status, payload, outcome.attempts, started_ms)
    await engine.write([entry], 1)
    if error is not None:
        raise StepFailed(*error, path)
    return outcome.value


def _recorded(tool: Tool[Any, Any], entry: Entry) -> Any:
    if entry.status == Status.FAILED:
        error = decode_error(entry.payload)
        raise StepFailed(error.error_class, error.message, entry.step)
    return tool.signature.result.load(entry.payload)
