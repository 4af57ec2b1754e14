"""Bounds on a tool's attempt: which one fires is named, and tools that swallow cancellations cost no host anything."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator

import pytest
from hosting import Spine, output, spine, until

from actors import bounds
from actors.errors import StepFailed
from actors.invocation import Invocation
from actors.journal import decode_error
from admission.dependency import Dependency
from admission.retry import RetryPolicy
from cluster.lifecycle import RunState
from penstock import Risk, Run, ToolCall, agent, tool

ONCE = RetryPolicy(maximum_attempts=1)
RELEASE = threading.Event()
BUDGETS: list[float] = []


async def _stubborn() -> str:
    until_s = time.monotonic() + 5
    while time.monotonic() < until_s and not RELEASE.is_set():
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            continue
    return "in the end"


@tool(dependency="d", timeout=0.2, retry=ONCE)
async def stubborn_read(call: ToolCall) -> str:
    return await _stubborn()


@tool(dependency="d", timeout=0.2, retry=ONCE, risk=Risk.WRITE, idempotent=True)
async def stubborn_pay(call: ToolCall) -> str:
    return await _stubborn()


@tool(dependency="d", timeout=0.2, retry=ONCE)
def stubborn_thread(call: ToolCall) -> str:
    RELEASE.wait(5)
    return "in the end"


@tool(dependency="d", idle_timeout=0.3, timeout=20, retry=ONCE)
async def stream(call: ToolCall, beats: int) -> str:
    for _ in range(beats):
        await asyncio.sleep(0.1)
        call.heartbeat()
    await asyncio.sleep(0.0 if beats >= 5 else 5.0)
    return "streamed"


@tool(timeout=1, schedule_to_close=1.0)
async def quick(call: ToolCall) -> str:
    BUDGETS.append(call.remaining_s())
    await asyncio.sleep(0)
    return "quick"


TOOLS = {each.name: each for each in (stubborn_read, stubborn_pay, stubborn_thread)}


@agent("one", version="1")
async def one(run: Run, name: str) -> str:
    return await run.call(TOOLS[name])


@agent("streams", version="1")
async def streams(run: Run, beats: int) -> str:
    try:
        return await run.call(stream, beats)
    except StepFailed as error:
        return f"{error.error_class}: {error.message}"


@agent("quick", version="1")
async def quickly(run: Run, _: None) -> str:
    return await run.call(quick)


@pytest.fixture
async def deployment(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Spine]:
    monkeypatch.setattr(bounds, "CANCEL_AGAIN_S", 0.1)
    RELEASE.clear()
    BUDGETS.clear()
    dependency = Dependency("d", max_concurrency=1)
    async with spine(redis_url, one, streams, quickly, dependencies=[dependency]) as deployment:
        await deployment.host()
        yield deployment
        RELEASE.set()


@pytest.mark.parametrize("name", list(TOOLS))
async def test_a_tool_that_goes_on_ends_its_run_and_frees_its_place(
    deployment: Spine, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    record = await deployment.end(await deployment.submit(one, name))
    if name == "stubborn_pay":
        assert record.state is RunState.CONFIRMATION_UNKNOWN
    else:
        assert record.state is RunState.FAILED
        expected = "ToolIgnoresCancellation" if name == "stubborn_read" else "TimeoutError"
        assert decode_error(record.error).error_class == expected
    assert ("does not stop" in caplog.text) or ("goes on in a thread" in caplog.text)
    (host,) = deployment.hosts
    gate = host.gates.keepers["d"].gate
    await until(lambda: gate.in_flight == 0, "its place is free")
    assert await deployment.result(streams, 5) == "streamed"
    await until(lambda: host.runs == {}, "all runs have left")
    RELEASE.set()
    await asyncio.sleep(0.05)
    assert gate.in_flight == 0
    assert host.attempts.waiting == {}


@pytest.mark.parametrize(("beats", "said"), [(8, "streamed"), (2, "silent for 0.3 s (idle_timeout)")])
async def test_a_stream_lives_as_long_as_it_says_so(deployment: Spine, beats: int, said: str) -> None:
    began = time.monotonic()
    assert said in await deployment.result(streams, beats)
    assert time.monotonic() - began < 3


async def test_a_tool_is_told_what_is_left(deployment: Spine) -> None:
    assert output(quickly, await deployment.end(await deployment.submit(quickly, None))) == "quick"
    assert 0.5 < BUDGETS[0] <= 1.0


async def test_threads_that_are_lost_are_replaced_and_found_again() -> None:
    RELEASE.clear()
    invocation = Invocation()
    call = ToolCall("t", "r", "0", 1, lambda: "k", 0.05, "default", asyncio.get_running_loop().time)
    for lost in range(1, 4):
        with pytest.raises(TimeoutError, match="no answer within"):
            await invocation.run(stubborn_thread, call, [], lambda: None)
        assert invocation.lost_threads == lost
    RELEASE.set()
    await until(lambda: invocation.lost_threads == 0, "found again")
    invocation.close()


def test_the_nearest_bound_is_the_one_that_comes_first() -> None:
    assert bounds.nearest({"a": 3.0, "b": 2.0, "c": 9.0}) == ("b", 2.0)
