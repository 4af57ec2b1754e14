"""Child runs on hosts, when their parents end before them."""

import asyncio
from collections import Counter

import pytest
from hosting import Spine, spine, until

from actors.journal import Kind
from cluster.lifecycle import RunState
from penstock import Run, ToolCall, agent, tool

GATES: dict[str, asyncio.Event] = {}
CALLED: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def clean() -> None:
    CALLED.clear()
    for name in ("work", "look"):
        GATES[name] = asyncio.Event()


async def _call(name: str) -> None:
    CALLED[name] += 1
    await GATES[name].wait()


@tool()
async def work(call: ToolCall) -> None:
    await _call("work")


@tool()
async def look(call: ToolCall) -> None:
    await _call("look")


@agent("worker", version="1")
async def worker(run: Run, _: None) -> None:
    await run.call(work)


@agent("sleeper", version="1")
async def sleeper(run: Run, _: None) -> None:
    await run.sleep(3600)


@agent("family", version="1")
async def family(run: Run, end: str) -> None:
    """One child works and one sleeps; a parent that raises does it when the test lets it."""
    children = asyncio.gather(run.spawn(worker, None), run.spawn(sleeper, None))
    if end == "raises":
        await run.call(look)
        raise ValueError("no more")
    await children


async def children_of(deployment: Spine, run_id: str) -> dict[str, str]:
    """Agent → run id."""
    return {
        entry.name: entry.payload.decode() for entry in await deployment.journal(run_id) if entry.kind == Kind.CHILD
    }


@pytest.mark.parametrize("end", ["raises", "is cancelled", "is late"])
async def test_children_end_with_their_parent(redis_url: str, end: str) -> None:
    async with spine(redis_url, family, worker, sleeper) as deployment:
        await deployment.host()
        run_id = await deployment.submit(family, end, deadline=1.0 if end == "is late" else None)

        async def both() -> bool:
            children = await children_of(deployment, run_id)
            if len(children) < 2 or not CALLED["work"]:
                return False
            return (await deployment.record(children["sleeper"])).state is RunState.WAITING

        await until(both, "a child that works and a child that sleeps")
        children = await children_of(deployment, run_id)
        if end == "raises":
            GATES["look"].set()
        elif end == "is cancelled":
            await deployment.cancel(run_id)
        record = await deployment.end(run_id)
        assert record.state is (RunState.FAILED if end == "raises" else RunState.CANCELLED), record
        for child in children.values():
            assert (await deployment.end(child)).state is RunState.CANCELLED
        assert CALLED["work"] == 1
