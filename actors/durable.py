"""Steps that wait or drop the past: durable timers, child runs, checkpoints."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec
from pydantic_core import to_json

from actors.contract import Agent
from actors.core.chain import CheckpointFacts, encode_checkpoint_facts
from actors.core.parking import Wait
from actors.core.replay import Divergence
from actors.errors import ChildFailed, InvalidValue, PenstockError, RunAborted
from actors.job import child_run
from actors.journal import ENTRY_VERSION, Entry, Kind, Status, decode_error, encode_entry, encode_error
from actors.schema import canonical_digest
from cluster.keys import child_run_id
from cluster.lifecycle import TERMINAL, RunState

if TYPE_CHECKING:
    from actors.engine import RunEngine

_LONGEST_SLEEP_S: Final = 3660 * 86400


def value(engine: "RunEngine", path: str, name: str, produce: Callable[[], Any]) -> Any:
    """A recorded value. It is written with the next step, before anything that depends on it can be."""
    entry = engine.ask(path, Kind.VALUE, name, b"")
    if entry is not None:
        return msgspec.json.decode(entry.payload)
    made = produce()
    at_ms = engine.services.now_ms()
    engine.later(engine.entry(Kind.VALUE, path, name, b"", Status.OK, msgspec.json.encode(made), 1, at_ms))
    return made


def state(engine: "RunEngine") -> Any:
    """The last checkpoint's state."""
    return None if engine.checkpoint is None else msgspec.json.decode(engine.checkpoint)


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
    await engine.wait_until(path, due_ms, "timer")


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
    end, output, error = await _child_end(engine, path, child, agent, plain)
    ok = end is RunState.SUCCEEDED
    if not ok and not error:
        error = encode_error(end.value, f"child run {child} ended as {end.value}", path)
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
        # Asking is a step under way: the run must not be unloaded without this child among its waits.
        engine.active += 1
        try:
            outcome = await _outcome(engine, child)
            if outcome is not None and outcome[0] in TERMINAL:
                return outcome
            future = asyncio.get_running_loop().create_future()
            engine.waits[path] = (Wait(child, None), future)
            if outcome is None:
                await _make_child(engine, path, child, agent, plain)
        except BaseException:
            engine.waits.pop(path, None)
            raise
        finally:
            engine.active -= 1
            engine.step_over()
        await engine.waiting(path, future)


async def _outcome(engine: "RunEngine", run_id: str) -> tuple[RunState, bytes, bytes] | None:
    """State, output and error of a run; None when there is none."""
    store = engine.services.store
    key = store.keys.run(run_id)
    state, output, error = await store.command(key, "HMGET", key, "state", "output", "error")
    return None if state is None else (RunState(state.decode()), output or b"", error or b"")


async def _make_child(engine: "RunEngine", path: str, child: str, agent: Agent[Any, Any], plain: Any) -> None:
    # The step is part of the lineage: two children that ask for the same things are not one.
    # Versions that are evaluated beside each other must not do each other's work.
    version = agent.version if engine.job.simulated else ""
    new = child_run(child, agent.name, plain, engine.job, f"{engine.lineage}/{path}", version)
    engine.check_size(f"the input of agent {agent.name!r}", new.job)
    submit, claim = engine.services.store.submit_child, engine.claim
    if not await engine.services.committer.insist(lambda: submit(new, parent=claim.id, fence=claim.fence)):
        engine.drop()
        raise RunAborted


def _child_result(agent: Agent[Any, Any], entry: Entry) -> Any:
    if entry.status == Status.FAILED:
        error = decode_error(entry.payload)
        raise ChildFailed(error.error_class, error.message, entry.step)
    return agent.output.load(entry.payload)


async def checkpoint(engine: "RunEngine", state: Any) -> None:
    """Replaces the journal by ``state``; steps are numbered anew from here."""
    if engine.busy or not engine.is_driven_here():
        raise PenstockError(
            f"run {engine.claim.id}: checkpoint() while a step is under way, or from another task than the agent's "
            "own. Await all steps first"
        )
    await engine.may_start()
    if engine.replay:
        try:
            engine.replay.verify_end()
        except Divergence as error:
            engine.diverged(error)
    payload = to_json(state)
    engine.check_size("the checkpoint", payload)
    number = engine.checkpoints + 1
    now_ms = engine.services.now_ms()
    compact, claim, length = engine.services.store.compact, engine.claim, engine.journal_length
    # Effects of the past have a trail, and may have to be undone.
    facts = encode_checkpoint_facts(CheckpointFacts(engine.head, length, engine.has_effects))
    raw = engine.entry(Kind.CHECKPOINT, str(number), "checkpoint", b"", Status.OK, payload, 1, now_ms, facts)
    raw = engine.sealed(raw)
    answer = await engine.services.committer.insist(
        lambda: compact(claim.id, claim.fence, length, raw, archive=engine.has_effects)
    )
    if answer == "GAP":
        engine.lost_track("its owner lost track of the journal")
    if answer != "OK":
        engine.drop()
        raise RunAborted
    engine.compacted(payload, number)
