"""What happens to a dependency's hosts while they are at work: operators change it, and hosts get another name."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict

import pytest
from hosting import Spine, output, spine, until
from hub_talk import Talk, may_go

from admission.dependency import Breaker, Dependency, Limit
from penstock import NotApplied, RateLimited, RetryPolicy, Run, StepFailed, ToolCall, agent, tool

CALLS: defaultdict[str, int] = defaultdict(int)
GATES: dict[str, asyncio.Event] = {}


@pytest.fixture(autouse=True)
def clean() -> None:
    CALLS.clear()
    GATES.clear()


@tool(dependency="d")
async def work(call: ToolCall, name: str) -> str:
    CALLS[name] += 1
    if name in GATES:
        await GATES[name].wait()
    if name.startswith("fails"):
        raise NotApplied("down")
    if name.startswith("limited") and CALLS[name] == 1:
        raise RateLimited("enough", retry_after=1000.0)
    return name


@agent("worker", version="1")
async def worker(run: Run, name: str) -> str:
    try:
        return await run.call(work, name)
    except StepFailed as error:
        return str(error.ended_by)


async def change(deployment: Spine, **fields: object) -> None:
    """What ``penstock deps set`` does."""
    keys = deployment.store.keys
    await deployment.store.set_fields(keys.dependency("d"), {"override": json.dumps(fields)})
    await deployment.store.publish(keys.dependencies_channel, "changed d")


def test_under_another_name_a_host_uses_nothing_that_its_earlier_name_was_given() -> None:
    talk = Talk(Dependency("d", [Limit("requests", 100, per=10)], max_concurrency=3, breaker=None))
    gate = talk.gates[0]
    for _ in range(4):
        gate.wait(talk.now, 2, {"requests": 1.0}, True, None)
    talk.turn()
    talk.turn()
    assert gate.next(talk.now) is not None
    granted = sum(talk.hub.limiter.use(talk.now)[0][part] for part in ("used", "outstanding"))
    report, _ = gate.report(talk.now)  # its answer comes when the name is another one already
    late = talk.hub.exchange(talk.now, 0.5, report)
    gate.rename("h0-again")
    gate.accept(talk.now, talk.now, late)
    assert gate.balance == {"requests": 0.0}
    assert gate.next(talk.now) is None
    gate.live_safely(talk.now + 9)
    assert gate.next(talk.now + 9) is None, "the hub counts no safe share for this name"
    lease = talk.exchange()
    assert set(talk.hub.hosts) == {"h0", "h0-again"}
    assert talk.hub.hosts["h0-again"].in_flight == 1, "what was under way goes on under the new name"
    assert lease.concurrency == 0, "the earlier name may have the three places still"
    talk.hub.bury(talk.now, "h0")
    use = talk.hub.limiter.use(talk.now)[0]
    assert use["used"] + use["outstanding"] >= granted
    for _ in range(8):
        talk.turn()
        gate.next(talk.now)
    assert gate.lease is not None
    assert gate.lease.concurrency == 3
    assert gate.in_flight == 3
    gate.live_safely(talk.now + 9)
    assert gate.is_safe_mode


def test_under_another_name_a_host_goes_on_where_nothing_is_limited() -> None:
    talk = Talk(Dependency("d"))
    talk.turn()
    gate = talk.gates[0]
    gate.rename("h0-again")
    assert may_go(gate, talk.now)
    gate.live_safely(talk.now + 9)
    assert may_go(gate, talk.now + 9)


async def test_a_host_that_comes_back_anew_has_a_new_name_at_the_hub_too(redis_url: str) -> None:
    dependency = Dependency("d", [Limit("requests", 100, per=1)], max_concurrency=4)
    async with spine(redis_url, worker, dependencies=[dependency]) as deployment:
        host = await deployment.host()
        GATES["held"] = asyncio.Event()
        held = await deployment.submit(worker, "held")
        await until(lambda: CALLS["held"] == 1, "a call under way")
        gate, first, hub = host.gates.keepers["d"].gate, host.host, deployment.hubs["d"].hub
        await until(lambda: set(hub.hosts) == {first}, "the hub knows it")
        await deployment.reap(first)
        await until(lambda: host.host != first, "a new name")
        assert gate.host == host.host
        await until(lambda: set(hub.hosts) == {host.host}, "the hub has buried the earlier name alone")
        # The hub hears of calls with the next report; the held run is dropped and claimed anew meanwhile.
        await until(lambda: hub.hosts[host.host].in_flight == gate.in_flight, "the hub counts what is under way")
        assert await deployment.result(worker, "next") == "next"
        GATES["held"].set()
        assert await deployment.result(worker, "last") == "last"
        await deployment.end(held)
        await until(lambda: gate.in_flight == 0, "all have ended")


async def test_what_operators_set_holds_for_the_next_call_on_every_host(redis_url: str) -> None:
    quick = RetryPolicy(initial_interval=0.01, maximum_interval=0.02, maximum_attempts=2)
    dependency = Dependency("d", breaker=None, retry=quick, retry_budget=None)
    async with spine(redis_url, worker, dependencies=[dependency]) as deployment:
        host = await deployment.host()
        assert output(worker, await deployment.end(await deployment.submit(worker, "fails/a"))).endswith("attempts=2")
        retry = quick.model_copy(update={"maximum_attempts": 5}).model_dump(mode="json")
        await change(deployment, retry=retry, maximum_retry_after_s=0.2, breaker={"slow_call_s": 3.0})
        keeper = host.gates.keepers["d"]
        await until(lambda: deployment.hubs["d"].hub.dependency.maximum_retry_after_s == 0.2, "the hub has heard")
        # A gate that is at rest hears of it with its next call; one that is not, within a period.
        assert await deployment.result(worker, "any") == "any"
        await until(lambda: keeper.dependency.retry.maximum_attempts == 5, "the host has heard")
        assert keeper.gate.slow_call_s == 3.0
        assert keeper.dependency.breaker == Breaker(slow_call_s=3.0)
        assert (await deployment.result(worker, "fails/b")).endswith("attempts=5")
        assert CALLS["fails/b"] == 5
        began = time.monotonic()
        assert await deployment.result(worker, "limited") == "limited"
        assert time.monotonic() - began < 5, "a Retry-After of 1000 s is 0.2 s"
