"""Steps that wait or drop the past: durable timers, child runs, checkpoints."""

import asyncio
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import to_json

from actors.contract import Agent
from actors.core.identity import Scope
from actors.core.parking import Wait
from actors.errors import ChildFailed, InvalidValue, PayloadTooLarge, PenstockError, RunAborted
from actors.job import child_run
from actors.journal import ENTRY_VERSION, Entry, Kind, Status, decode_error, encode_entry, encode_error
from actors.schema import canonical_digest
from actors.scope import SCOPE, wake
from cluster.keys import child_run_id
from cluster.lifecycle import TERMINAL, RunState

if TYPE_CHECKING:
    from actors.engine import RunEngine

_LONGEST_SLEEP_S: Final = 3660 * 86400


async def sleep(engine: "RunEngine", path: str, seconds: float) -> None:
    """A durable timer: its due time is in the journal."""
    if not 0 <= seconds <= _LONGEST_SLEEP_S:
        raise InvalidValue(f"run.sleep({seconds!r}): give seconds from 0 to ten years")
    length = canonical_digest(float(seconds))
    entry = engine.ask(path, Kind.TIMER, "sleep", length)
    if entry is None:
        await engine.may_start()
        now_ms = engine.services.now_ms()
        due_ms = now_ms + round(seconds * 1000)
        await engine.record(
            engine.entry(Kind.TIMER, path, "sleep", length, Status.OPEN, str(due_ms).encode(), 1, now_ms)
        )
    else:
        due_ms = int(entry.payload)
    left_ms = due_ms - engine.services.now_ms()
    if left_ms <= 0:
        return
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    timer = loop.call_later(left_ms / 1000, wake, future)
    engine.waits[path] = (Wait(None, due_ms), future)
    try:
        await engine.waiting(path, future)
    finally:
        timer.cancel()


async def spawn(engine: "RunEngine", path: str, agent: Agent[Any, Any], payload: Any) -> Any:
    """A child run: made once, awaited unloaded."""
    plain = agent.input.plain(agent.input.check(payload))
    args_digest = canonical_digest(plain)
    entry = engine.ask(path, Kind.CHILD, agent.name, args_digest)
    child = child_run_id(engine.claim.id, path)
    at_ms = entry.started_ms if entry else engine.services.now_ms()
    if entry is None:
        await engine.may_start()
        opened = engine.entry(Kind.CHILD, path, agent.name, args_digest, Status.OPEN, child.encode(), 1, at_ms)
        await engine.record(opened, 0)
    elif entry.status != Status.OPEN:
        return _child_result(agent, entry)
    state, output, error = await _child_end(engine, path, child, agent, plain)
    ok = state is RunState.SUCCEEDED
    if not ok and not error:
        error = encode_error(state.value, f"child run {child} ended as {state.value}", path)
    closed = Entry(
        ENTRY_VERSION, Kind.CHILD, path, agent.name, args_digest, Status.OK if ok else Status.FAILED,
        output if ok else error, 1, at_ms, engine.services.now_ms(),
    )  # fmt: skip
    await engine.record(encode_entry(closed))
    return _child_result(agent, closed)


async def _child_end(
    engine: "RunEngine", path: str, child: str, agent: Agent[Any, Any], plain: Any
) -> tuple[RunState, bytes, bytes]:
    """How the child ended; makes it first where it does not exist (or a crash came between journal and submission)."""
    while True:
        outcome = await engine.services.child_outcome(child)
        if outcome is not None and outcome[0] in TERMINAL:
            return outcome
        future = asyncio.get_running_loop().create_future()
        engine.waits[path] = (Wait(child, None), future)
        if outcome is None:
            new = child_run(child, path, agent.name, plain, engine.job, engine.job.root or engine.claim.id)
            if not await engine.services.store.submit_child(new, parent=engine.claim.id, fence=engine.claim.fence):
                engine.drop()
                raise RunAborted
        await engine.waiting(path, future)


def _child_result(agent: Agent[Any, Any], entry: Entry) -> Any:
    if entry.status == Status.FAILED:
        error = decode_error(entry.payload)
        raise ChildFailed(error.error_class, error.message, entry.step)
    return agent.output.load(entry.payload)


async def checkpoint(engine: "RunEngine", state: Any) -> None:
    """Replaces the journal by ``state``; steps are numbered anew from here."""
    task = asyncio.current_task()
    if SCOPE.get().owner is not task or engine.busy:
        raise PenstockError(
            f"run {engine.claim.id}: checkpoint() while a step is under way, or from another task than the agent's "
            "own. Await all steps first"
        )
    await engine.may_start()
    if engine.replay:
        engine.replay.verify_end()
    payload = to_json(state)
    if len(payload) > engine.services.payload_limit_bytes:
        raise PayloadTooLarge(engine.too_large("the checkpoint", len(payload)))
    number = engine.checkpoints + 1
    now_ms = engine.services.now_ms()
    raw = engine.entry(Kind.CHECKPOINT, str(number), "checkpoint", b"", Status.OK, payload, 1, now_ms)
    answer = await engine.services.store.compact(engine.claim.id, engine.claim.fence, engine.journal_length, raw)
    if answer != "OK":
        engine.drop()
        raise RunAborted
    engine.compacted(payload, number)
    SCOPE.set(Scope(task, f"c{number}."))
