"""What a run waits for and what it drops: timers, children, checkpoints. Nothing of a waiting run is in any host."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from hosting import Spine, output, spine, until

from actors.journal import Kind, Status, decode_error
from cluster.keys import child_run_id
from cluster.lifecycle import RunState
from penstock import PenstockError, Run, StepFailed, ToolCall, agent, tool

LATE_MS = 200
CLOCK_S = 0.005  # hosts estimate the store's clock
MADE: Counter[str] = Counter()
GATES: dict[str, asyncio.Event] = {}
REACHED: dict[str, asyncio.Event] = {}


@pytest.fixture(autouse=True)
def clean() -> None:
    for store in (MADE, GATES, REACHED):
        store.clear()


def close(name: str) -> None:
    GATES[name], REACHED[name] = asyncio.Event(), asyncio.Event()


async def at(name: str) -> None:
    await asyncio.wait_for(REACHED[name].wait(), 5)


@tool()
async def work(call: ToolCall, name: str) -> str:
    MADE[name] += 1
    if name in GATES:
        REACHED[name].set()
        await GATES[name].wait()
    return name


@agent("nap", version="1")
async def nap(run: Run, seconds: float) -> float:
    """Sleeps between two steps; how long it was by the store's clock."""
    await run.call(work, "before")
    went = run.now()
    await run.sleep(seconds)
    woke = run.now()
    await run.call(work, "after")
    return (woke - went).total_seconds()


@agent("leaf", version="1")
async def leaf(run: Run, name: str) -> str:
    if name == "bad":
        raise ValueError("no good")
    if name == "sleepy":
        await run.sleep(60)
    return await run.call(work, name)


@agent("parent", version="1")
async def parent(run: Run, names: list[str]) -> list[str]:
    """Children one after the other."""
    await run.call(work, "parent")
    return [await run.spawn(leaf, name) for name in names]


@agent("family", version="1")
async def family(run: Run, names: list[str]) -> list[str]:
    """Children at once."""
    return await asyncio.gather(*(run.spawn(leaf, name) for name in names))


@agent("grandparent", version="1")
async def grandparent(run: Run, names: list[str]) -> list[str]:
    return [*await run.spawn(parent, names), *await run.spawn(family, names)]


@agent("careful", version="1")
async def careful(run: Run, name: str) -> list[str]:
    try:
        return [await run.spawn(leaf, name)]
    except StepFailed as error:
        return [type(error).__name__, error.error_class, error.message, error.step]


AGENTS = (nap, leaf, parent, family, grandparent, careful)


@pytest.fixture
async def deployment(redis_url: str) -> AsyncIterator[Spine]:
    async with spine(redis_url, *AGENTS) as deployment:
        yield deployment


# Timers


async def test_a_short_sleep_stays_in_memory(deployment: Spine) -> None:
    host = await deployment.host()
    run_id = await deployment.submit(nap, 0.3)
    await until(lambda: run_id in host.runs and bool(host.runs[run_id].waits), "the wait")
    await asyncio.sleep(0.1)
    assert run_id in host.runs
    record = await deployment.end(run_id)
    assert 0.3 - CLOCK_S <= output(nap, record) <= 0.3 + LATE_MS / 1000
    assert (record.migrations, record.fence) == (0, 1)
    assert MADE == {"before": 1, "after": 1}


async def test_a_long_sleep_is_unloaded_and_wakes_on_time(deployment: Spine) -> None:
    host = await deployment.host()
    run_id = await deployment.submit(nap, 1.3)
    record = await deployment.waits(run_id)
    assert (record.reason, record.host in ("", host.host)) == ("timer", True)
    assert record.due_ms is not None
    assert not host.runs
    timer = (await deployment.journal(run_id))[-1]
    assert (timer.kind, timer.status, int(timer.payload)) == (Kind.TIMER, Status.OPEN, record.due_ms)
    record = await deployment.end(run_id)
    assert 1.3 - CLOCK_S <= output(nap, record) <= 1.3 + LATE_MS / 1000
    assert MADE == {"before": 1, "after": 1}
    assert (record.migrations, record.fence) == (0, 2)


async def test_a_sleeping_run_survives_its_host_and_wakes_on_time_elsewhere(deployment: Spine) -> None:
    first = await deployment.host()
    run_id = await deployment.submit(nap, 1.4)
    await deployment.waits(run_id)
    await deployment.host()
    assert await deployment.lose(first) == 0
    assert 1.4 - CLOCK_S <= output(nap, await deployment.end(run_id)) <= 1.4 + LATE_MS / 1000
    assert MADE == {"before": 1, "after": 1}


async def test_a_sleep_in_memory_goes_on_elsewhere(deployment: Spine) -> None:
    first = await deployment.host()
    run_id = await deployment.submit(nap, 0.9)
    await until(lambda: run_id in first.runs and bool(first.runs[run_id].waits), "the wait")
    assert await deployment.lose(first) == 1
    await deployment.host()
    assert 0.9 - CLOCK_S <= output(nap, await deployment.end(run_id)) <= 0.9 + LATE_MS / 1000


async def test_a_sleep_that_was_over_before_its_run_came_back(deployment: Spine) -> None:
    first = await deployment.host()
    run_id = await deployment.submit(nap, 0.2)
    await until(lambda: run_id in first.runs and bool(first.runs[run_id].waits), "the wait")
    await deployment.lose(first)
    await asyncio.sleep(0.25)
    await deployment.host()
    started = time.monotonic()
    await deployment.end(run_id)
    assert time.monotonic() - started < 0.2


async def test_many_timers_of_one_partition_fire_each_at_its_time(redis_url: str) -> None:
    async with spine(redis_url, nap, partitions=1) as deployment:
        await deployment.host()
        await deployment.host()
        wanted = [1.1 + number * 0.07 for number in range(12)]
        runs = [await deployment.submit(nap, seconds) for seconds in reversed(wanted)]
        took = [output(nap, await deployment.end(run_id)) for run_id in reversed(runs)]
        late = [said - seconds for said, seconds in zip(took, wanted, strict=True)]
        assert min(late) >= -CLOCK_S
        assert max(late) <= LATE_MS / 1000


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), 1e12])
async def test_a_sleep_that_makes_no_sense_is_refused(deployment: Spine, seconds: float) -> None:
    await deployment.host()
    error = await deployment.failure(nap, str(seconds))
    assert error.error_class == "InvalidValue"
    assert "give seconds from 0 to ten years" in error.message


async def test_waits_in_branches_wake_the_run_for_the_first_of_them(redis_url: str) -> None:
    @agent("branches", version="1")
    async def branches(run: Run, _: None) -> list[float]:
        start = run.now()

        async def branch(seconds: float) -> float:
            await run.sleep(seconds)
            woke = run.now()
            await run.call(work, str(seconds))
            return (woke - start).total_seconds()

        return list(await asyncio.gather(branch(1.2), branch(2.6), branch(0.1)))

    async with spine(redis_url, branches) as deployment:
        host = await deployment.host()
        run_id = await deployment.submit(branches)
        await deployment.waits(run_id)
        assert MADE == {"0.1": 1}
        await until(lambda: MADE["1.2"] == 1, "the first long sleep")
        await deployment.waits(run_id)
        assert not host.runs
        record = await deployment.end(run_id)
        for said, wanted in zip(output(branches, record), (1.2, 2.6, 0.1), strict=True):
            assert wanted - CLOCK_S <= said <= wanted + LATE_MS / 1000 + 0.1
        assert MADE == {"0.1": 1, "1.2": 1, "2.6": 1}
        assert record.fence == 3


async def test_a_branch_that_only_waited_leaves_the_rest_to_be_unloaded(redis_url: str) -> None:
    @agent("idle-branch", version="1")
    async def idle_branch(run: Run, _: None) -> str:
        await asyncio.gather(run.sleep(0.15), run.sleep(30))
        return "never"

    async with spine(redis_url, idle_branch) as deployment:
        await deployment.host()
        # The short sleep keeps the run loaded; nothing follows it, and then only the long one is left.
        await deployment.waits(await deployment.submit(idle_branch))


# Cancelling and deadlines of waiting runs


async def test_a_waiting_run_is_cancelled_at_once(deployment: Spine) -> None:
    await deployment.host()
    run_id = await deployment.submit(nap, 60)
    await deployment.waits(run_id)
    assert await deployment.cancel(run_id, "not wanted") == "cancelled"
    record = await deployment.record(run_id)
    assert (record.state, record.reason) == (RunState.CANCELLED, "not wanted")
    assert MADE == {"before": 1}


async def test_a_waiting_run_ends_at_its_deadline(deployment: Spine) -> None:
    await deployment.host()
    run_id = await deployment.submit(nap, 60, deadline=0.6)
    await deployment.waits(run_id)
    record = await deployment.end(run_id)
    assert (record.state, record.reason) == (RunState.CANCELLED, "deadline_exceeded")
    assert record.ended_ms is not None
    assert 600 <= record.ended_ms - record.accepted_ms <= 600 + LATE_MS


async def test_cancelling_reaches_the_children(deployment: Spine) -> None:
    await deployment.host()
    close("running")
    run_id = await deployment.submit(family, ["running", "sleepy", "fine"])
    await at("running")
    await deployment.waits(run_id)
    await until(lambda: MADE["fine"] == 1, "the third child")
    children = [child_run_id(run_id, str(number)) for number in range(3)]
    await deployment.state(children[1], RunState.WAITING)
    await deployment.state(children[2], RunState.SUCCEEDED)
    await deployment.waits(run_id)
    assert await deployment.cancel(run_id) == "cancelled"
    ends = [(await deployment.end(child)).state for child in children]
    assert ends == [RunState.CANCELLED, RunState.CANCELLED, RunState.SUCCEEDED]
    assert (await deployment.record(run_id)).state is RunState.CANCELLED


@pytest.mark.parametrize("way", ["cancel first", "wakes first"])
async def test_a_run_that_is_cancelled_while_it_is_being_unloaded(redis_url: str, way: str) -> None:
    """The store says CANCEL to the parking, and something may have woken the run before it said so."""
    told = asyncio.Event()

    @agent("restless", version="1")
    async def restless(run: Run, _: None) -> str:
        await run.spawn(leaf, "child")
        return "done"

    async with spine(redis_url, restless, leaf) as deployment:
        host = await deployment.host()
        close("child")
        parks = host.store.park

        async def slow_park(*args: object) -> object:
            run_id = next(iter(host.runs))
            # Not by the host's message, which would find the run leaving: its mark is what the parking meets.
            await host.store.command(host.store.keys.run(run_id), "HSET", host.store.keys.run(run_id), "cancel", "x")
            if way == "wakes first":
                host.runs[run_id].child_ended()
                await asyncio.sleep(0.02)
            told.set()
            return await parks(*args)  # type: ignore[arg-type]

        host.store.park = slow_park  # type: ignore[method-assign, assignment]
        run_id = await deployment.submit(restless)
        await at("child")
        await asyncio.wait_for(told.wait(), 5)
        record = await deployment.end(run_id)
        assert (record.state, record.reason) == (RunState.CANCELLED, "cancelled")
        await until(lambda: run_id not in host.runs, "the slot")
        assert record.fence == 1


# Children


async def test_a_parent_is_unloaded_while_its_child_runs(deployment: Spine) -> None:
    host = await deployment.host()
    close("child")
    run_id = await deployment.submit(parent, ["child"])
    await at("child")
    record = await deployment.waits(run_id)
    assert record.reason == "child"
    child = await deployment.record(child_run_id(run_id, "1"))
    assert (child.state, child.parent, child.agent, child.batch) == (RunState.RUNNING, run_id, "leaf", "")
    assert list(host.runs) == [child.id]
    GATES["child"].set()
    assert output(parent, await deployment.end(run_id)) == ["child"]
    assert MADE == {"parent": 1, "child": 1}
    assert [(e.kind, e.status) for e in await deployment.journal(run_id)] == [
        ("call", "ok"),
        ("child", "open"),
        ("child", "ok"),
    ]


async def test_children_one_after_the_other_at_once_and_nested(deployment: Spine) -> None:
    await deployment.host()
    await deployment.host()
    names = ["a", "b", "c", "d"]
    run_id = await deployment.submit(grandparent, names)
    assert output(grandparent, await deployment.end(run_id)) == names * 2
    assert {"parent": 1} | dict.fromkeys(names, 2) == MADE
    assert await deployment.counts() == {"succeeded": 11}


async def test_a_child_that_fails_is_an_error_of_its_step(deployment: Spine) -> None:
    await deployment.host()
    assert await deployment.result(careful, "bad") == ["ChildFailed", "ValueError", "no good", "0"]
    error = await deployment.failure(parent, ["fine", "bad"])
    assert (error.error_class, error.message, error.step) == ("ValueError", "no good", "2")


async def test_a_child_that_was_cancelled_is_an_error_of_its_step(deployment: Spine) -> None:
    await deployment.host()
    run_id = await deployment.submit(careful, "sleepy")
    child = child_run_id(run_id, "0")
    await deployment.waits(run_id)
    await deployment.state(child, RunState.WAITING)
    await deployment.cancel(child)
    said = output(careful, await deployment.end(run_id))
    assert said == ["ChildFailed", "cancelled", f"child run {child} ended as cancelled", "0"]


@pytest.mark.parametrize("when", ["the parent waits", "the child is being made"])
async def test_the_parents_host_dies_while_the_child_runs(deployment: Spine, when: str) -> None:
    first = await deployment.host()
    close("child")
    run_id = await deployment.submit(parent, ["child"])
    if when == "the parent waits":
        await at("child")
        await deployment.waits(run_id)
        assert await deployment.lose(first) == 1  # the child
    else:
        made = asyncio.Event()
        submit = first.store.submit_child

        async def never_answers(*args: object, **kwargs: object) -> bool:
            made.set()
            await asyncio.Event().wait()
            return await submit(*args, **kwargs)  # type: ignore[arg-type]

        first.store.submit_child = never_answers  # type: ignore[method-assign]
        await asyncio.wait_for(made.wait(), 5)
        assert await deployment.lose(first) == 1  # the parent, whose journal names a child that does not exist
    await deployment.host()
    GATES["child"].set()
    assert output(parent, await deployment.end(run_id)) == ["child"]
    assert MADE["parent"] == 1
    assert await deployment.counts() == {"succeeded": 2}


async def test_a_child_that_ends_before_its_parent_waits_is_not_missed(redis_url: str) -> None:
    @agent("busy-parent", version="1")
    async def busy_parent(run: Run, _: None) -> list[str]:
        return list(await asyncio.gather(run.spawn(leaf, "child"), run.call(work, "held")))

    async with spine(redis_url, busy_parent, leaf) as deployment:
        host = await deployment.host()
        close("held")
        run_id = await deployment.submit(busy_parent)
        await at("held")
        child = child_run_id(run_id, "0")
        await deployment.end(child)

        # The parent stays loaded for its step, and hears of its child's end meanwhile.
        async def closed() -> bool:
            return [e.status for e in await deployment.journal(run_id) if e.kind == Kind.CHILD] == ["open", "ok"]

        await until(closed, "the child's result in the parent's journal")
        assert run_id in host.runs
        GATES["held"].set()
        assert output(busy_parent, await deployment.end(run_id)) == ["child", "held"]


# Checkpoints


async def test_a_checkpoint_drops_the_journal_and_is_where_a_replay_starts(redis_url: str) -> None:
    @agent("saver", version="1")
    async def saver(run: Run, count: int) -> list[object]:
        done: list[str] = run.state or []
        while len(done) < count:
            done.append(await run.call(work, f"step {len(done)}"))
            done.append(str(len(done)) if run.random() < 2 else "")
            await run.checkpoint(done)
        return [*done, await run.call(work, "last")]

    async with spine(redis_url, saver) as deployment:
        await deployment.host()
        close("step 4")
        run_id = await deployment.submit(saver, 8)
        await at("step 4")
        (entry,) = await deployment.journal(run_id)
        assert (entry.kind, entry.step) == (Kind.CHECKPOINT, "2")
        await deployment.lose(deployment.hosts[-1])
        await deployment.host()
        GATES["step 4"].set()
        close("last")
        await at("last")
        assert [(e.kind, e.step) for e in await deployment.journal(run_id)] == [("checkpoint", "4")]
        await deployment.lose(deployment.hosts[-1])
        await deployment.host()
        GATES["last"].set()
        said = output(saver, await deployment.end(run_id))
        assert said == ["step 0", "1", "step 2", "3", "step 4", "5", "step 6", "7", "last"]
        assert MADE == {"step 0": 1, "step 2": 1, "step 4": 2, "step 6": 1, "last": 2}
        assert [e.step for e in await deployment.journal(run_id)] == ["4", "c4.0"]


async def test_waits_and_children_after_a_checkpoint(redis_url: str) -> None:
    @agent("staged", version="1")
    async def staged(run: Run, _: None) -> list[object]:
        if run.state is None:
            first = await run.spawn(leaf, "same")
            await run.checkpoint({"first": first})
        await run.sleep(1.1)
        # The same step number as before the checkpoint, and another child.
        second = await asyncio.gather(run.spawn(leaf, "same"), run.spawn(leaf, "same"))
        return [run.state["first"], *second]

    async with spine(redis_url, staged, leaf) as deployment:
        await deployment.host()
        run_id = await deployment.submit(staged)
        await deployment.waits(run_id)
        assert output(staged, await deployment.end(run_id)) == ["same"] * 3
        assert MADE == {"same": 3}
        assert await deployment.counts() == {"succeeded": 4}


async def test_a_checkpoint_in_the_middle_of_steps_is_refused(redis_url: str) -> None:
    @agent("unsafe", version="1")
    async def unsafe(run: Run, way: str) -> str:
        async def saves() -> None:
            await run.checkpoint(1)

        if way == "step":
            task = asyncio.create_task(_work(run))
            await asyncio.wait_for(REACHED["held"].wait(), 5)
            try:
                await run.checkpoint(1)
            finally:
                task.cancel()
        else:
            await asyncio.create_task(saves())
        return "saved"

    async def _work(run: Run) -> str:
        return await run.call(work, "held")

    async with spine(redis_url, unsafe) as deployment:
        await deployment.host()
        close("held")
        for way in ("step", "other task"):
            error = await deployment.failure(unsafe, way)
            assert error.error_class == PenstockError.__name__
            assert "Await all steps first" in error.message


async def test_a_checkpoint_that_comes_too_early_on_replay_is_a_divergence(redis_url: str) -> None:
    life = 0

    @agent("skips", version="1")
    async def skips(run: Run, _: None) -> str:
        nonlocal life
        life += 1
        if life == 1:
            await run.call(work, "a")
            return await run.call(work, "held")
        try:
            await run.checkpoint(1)
        except Exception:
            return "swallowed"
        return "saved"

    async with spine(redis_url, skips) as deployment:
        await deployment.host()
        close("held")
        run_id = await deployment.submit(skips)
        await at("held")
        await deployment.lose(deployment.hosts[-1])
        await deployment.host()
        record = await deployment.end(run_id)
        assert (record.state, record.reason) == (RunState.FAILED, "replay_divergence")
        assert decode_error(record.error).step == "0"
