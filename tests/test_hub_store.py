"""Hubs and the store: what a successor goes on from, what operators say, and what hosts do without a hub."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hosting import Spine, output, spine, until

from actors.gatekeeper import Gatekeeper
from actors.hub_runtime import HubRuntime, Superseded
from actors.messages import decode_lease, encode_message
from admission.breaker import BreakerState
from admission.dependency import Breaker, Dependency, Limit
from admission.exchange import Demand, Outcomes, Report
from penstock import Run, ToolCall, agent, tool

DEPENDENCY = Dependency("d", [Limit("requests", 40, per=4)], breaker=Breaker(minimum_calls=4, open_s=5))


@tool(dependency="d")
async def read(call: ToolCall, number: int) -> int:
    return number


@agent("reader", version="1")
async def reader(run: Run, numbers: list[int]) -> int:
    return len(await asyncio.gather(*(run.call(read, number) for number in numbers)))


@pytest.fixture
async def deployment(redis_url: str) -> AsyncIterator[Spine]:
    async with spine(redis_url, reader, dependencies=[DEPENDENCY]) as deployment:
        yield deployment


async def tell(deployment: Spine, **fields: dict[str, Any]) -> None:
    """What ``penstock deps`` writes, and its word to the hub."""
    keys = deployment.store.keys
    plain = {name: json.dumps(value) for name, value in fields.items()}
    await deployment.store.set_fields(keys.dependency("d"), plain)
    await deployment.store.publish(keys.dependencies_channel, "changed d")


async def state(deployment: Spine) -> dict[str, Any]:
    fields = await deployment.store.fields(deployment.store.keys.dependency("d"))
    found: dict[str, Any] = json.loads(fields["state"])
    return found


async def test_operators_open_probe_close_and_set(deployment: Spine) -> None:
    hub = deployment.hubs["d"]
    for number, (do, then) in enumerate([("open", "open"), ("probe", "probing"), ("close", "closed")]):
        await tell(deployment, command={"id": str(number), "do": do, "by": "ann", "at_ms": 1, "reason": "a test"})
        await until(lambda then=then: hub.hub.breaker.state.value == then, then)  # type: ignore[misc]

        async def done(number: int = number) -> bool:
            return bool((await state(deployment))["command_done"] == str(number))

        await until(done, "command_done")
        assert hub.hub.breaker.by == "ann"
    await tell(deployment, override={"max_concurrency": 7})
    await until(lambda: hub.hub.dependency.max_concurrency == 7, "the override")
    await tell(deployment, override={"max_concurrency": -7})
    await until(lambda: hub.hub.dependency.max_concurrency is None, "one that is not valid is ignored")
    await tell(deployment, command={"id": "x", "do": "explode", "by": "ann", "at_ms": 1})
    await asyncio.sleep(0.1)
    assert hub.hub.breaker.state is BreakerState.CLOSED


async def test_a_successor_keeps_the_breaker_the_ledger_and_the_command_that_was_obeyed(deployment: Spine) -> None:
    first = deployment.hubs["d"]
    report = Report("h", 1, demands=[Demand(2, 6, {"requests": 1.0}, {"requests": 1.0})])
    granted = decode_lease(first.exchange(encode_message(report))).permits
    assert granted is not None
    assert granted["requests"] >= 1
    failed = Report("h", 2, epoch=first.hub.permit_epoch, held=1, outcomes=[Outcomes(0, failed=9)], balance=granted)
    assert decode_lease(first.exchange(encode_message(failed))).state == "open"
    await tell(deployment, command={"id": "1", "do": "close", "by": "ann", "at_ms": 1})
    await until(lambda: first.hub.breaker.by == "ann", "closed by hand")
    await tell(deployment, command={"id": "2", "do": "open", "by": "bob", "at_ms": 1, "reason": "by bob"})
    await until(lambda: first.hub.breaker.by == "bob", "opened by hand")
    await asyncio.sleep(0.1)
    epoch, generation = first.hub.epoch, first.hub.breaker.generation
    second = await deployment.start_hub("d")
    assert second.hub.epoch == epoch + 1
    assert second.hub.permit_epoch > first.hub.permit_epoch
    assert (second.hub.breaker.state, second.hub.breaker.by) == (BreakerState.OPEN, "bob")
    assert second.hub.breaker.generation == generation, "no command is obeyed twice"
    (use,) = second.hub.limiter.use(asyncio.get_running_loop().time())
    assert use["outstanding"] >= granted["requests"]
    await until(lambda: first.superseded, "the first one hears of it")
    with pytest.raises(Superseded):
        first.exchange(encode_message(Report("h", 3)))
    await first.abandon()


async def test_a_state_that_cannot_be_read_costs_a_window_and_no_hub(
    deployment: Spine, caplog: pytest.LogCaptureFixture
) -> None:
    await deployment.hubs["d"].abandon()
    keys = deployment.store.keys
    await deployment.store.set_fields(keys.dependency("d"), {"state": '{"v": 1}'})
    hub = await deployment.start_hub("d")
    assert "cannot be read" in caplog.text
    assert hub.hub.limiter.use(asyncio.get_running_loop().time())[0]["used"] == 40.0


async def test_without_a_hub_a_safe_share_and_then_all_again(
    deployment: Spine, caplog: pytest.LogCaptureFixture
) -> None:
    host = await deployment.host()
    run_id = await deployment.submit(reader, list(range(70)))
    gate = host.gates.keepers["d"].gate
    await until(lambda: gate.line.waiting > 0 and gate.lease is not None and bool(gate.lease.safe), "a share")
    deployment.hub_is_cut_off = True
    await until(lambda: gate.is_safe_mode, "safe mode")
    waiting = gate.line.waiting
    await until(lambda: gate.line.waiting < waiting, "some go on")
    assert "living on what is safe" in caplog.text
    deployment.hub_is_cut_off = False
    await until(lambda: not gate.is_safe_mode, "back")
    assert output(reader, await deployment.end(run_id)) == 70
    assert "answers again" in caplog.text


async def test_a_gate_leaves_when_nothing_happens_and_gives_all_back(deployment: Spine) -> None:
    host = await deployment.host()
    assert await deployment.result(reader, [1, 2, 3]) == 3
    hub = deployment.hubs["d"].hub
    await until(lambda: not hub.hosts, "left")
    assert hub.limiter.use(asyncio.get_running_loop().time())[0]["outstanding"] == 0
    keeper: Gatekeeper = host.gates.keepers["d"]
    assert keeper.gate.idle
    assert await deployment.result(reader, [1]) == 1


async def test_a_host_that_is_gone_for_the_store_is_buried(deployment: Spine) -> None:
    host = await deployment.host()
    assert await deployment.result(reader, [1, 2, 3]) == 3
    await deployment.lose(host)
    runtime: HubRuntime = deployment.hubs["d"]
    await until(lambda: not runtime.hub.hosts, "buried")
