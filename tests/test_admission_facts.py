"""What the admission controller reads beside the queues."""

import asyncio
import json
from typing import Any

import pytest
from hosting import spine, until

from actors.admission_facts import FORCED_OPEN_MS, HostFact, Outage, Outages, closed_until_ms, host_fact, hosts
from admission.dependency import Dependency
from penstock import Run, ToolCall, agent, tool

MODEL = Dependency(name="model")
GATE: dict[str, asyncio.Event] = {}


@tool(dependency="model")
async def think(call: ToolCall, text: str) -> str:
    if text in GATE:
        await GATE[text].wait()
    return text


@agent("thinker", version="1")
async def thinker(run: Run, text: str) -> str:
    return await run.call(think, text)


@pytest.mark.parametrize(
    ("info", "fact"),
    [
        ({"slots": 3, "cap": 9, "busy": 2, "lease_left_ms": 1, "draining": False}, HostFact("h", 3, 2, True, True)),
        ({"slots": 3, "busy": 2, "lease_left_ms": 0, "draining": False}, HostFact("h", 3, 2, False, False)),
        ({"slots": 3, "busy": 2, "lease_left_ms": 1, "draining": True}, HostFact("h", 3, 2, True, False)),
        ({"slots": 2000, "lease_left_ms": 1, "draining": False}, HostFact("h", 2000, 0, True, True)),
    ],
)
def test_a_host_as_it_says(info: dict[str, Any], fact: HostFact) -> None:
    assert host_fact("h", info) == fact


@pytest.mark.parametrize(
    ("state", "until_ms"),
    [
        ({"breaker": {"state": "closed", "until_ms": None}, "not_before_ms": None}, 0),
        ({"breaker": {"state": "probing", "until_ms": 5000}}, 0),
        ({"breaker": {"state": "open", "until_ms": 5000}}, 5000),
        ({"breaker": {"state": "open", "until_ms": 1000}}, 0),
        ({"breaker": {"state": "open", "until_ms": None}}, 1000 + FORCED_OPEN_MS),
        ({"breaker": {"state": "closed"}, "not_before_ms": 7000}, 7000),
        ({"breaker": {"state": "open", "until_ms": 5000}, "not_before_ms": 7000}, 7000),
        ({"breaker": {"state": "open", "until_ms": "soon"}}, 0),
        ({}, 0),
    ],
)
def test_how_long_a_dependency_is_down(state: dict[str, Any], until_ms: int) -> None:
    assert closed_until_ms(json.dumps(state).encode(), 1000) == until_ms


async def test_of_a_real_deployment(redis_url: str) -> None:
    async with spine(redis_url, thinker, dependencies=(MODEL,), slots_per_host=4) as deployment:
        store = deployment.store
        await deployment.host()
        away = await deployment.host(slots_per_host=7)
        await deployment.result(thinker, "x")
        identity = await deployment.vanish(away)

        async def gone() -> bool:
            found = await hosts(store)
            return all(not host.claims for host in found if host.name == identity)

        await until(gone, "the lease's end")
        GATE["y"] = asyncio.Event()
        run_id = await deployment.submit(thinker, "y")

        async def busy() -> bool:
            return [host for host in await hosts(store) if host.claims] == [
                HostFact(deployment.hosts[0].host, 4, 1, True, True)
            ]

        await until(busy, "one busy slot of one living host")
        GATE["y"].set()
        await deployment.end(run_id)

        outages = Outages(store)

        async def known() -> bool:
            return "thinker\nmodel" in await store.fields(store.keys.uses)

        await until(known, "what the agent uses")
        assert await outages.look(await store.server_ms()) == []
        hub = deployment.hubs["model"]
        hub.hub.command("open", "me", "test", asyncio.get_running_loop().time())
        await hub._write()
        now_ms = await store.server_ms()
        (outage,) = await outages.look(now_ms)
        assert outage == Outage("model", now_ms + FORCED_OPEN_MS, frozenset({"thinker"}))
