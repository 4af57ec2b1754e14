"""Hosts tell which agents' calls go to which dependencies, once."""

from hosting import spine, until

from actors.dependency_uses import DependencyUses, agents_by_dependency
from admission.dependency import Dependency
from penstock import Run, ToolCall, agent, tool

MODEL, MAIL = Dependency(name="model"), Dependency(name="mail")
HOUR_MS = 3_600_000


@tool(dependency="model")
async def think(call: ToolCall, text: str) -> str:
    return text


@tool(dependency="mail")
async def send(call: ToolCall, text: str) -> str:
    return text


@tool()
async def echo(call: ToolCall, text: str) -> str:
    return text


@agent("thinker", version="1")
async def thinker(run: Run, text: str) -> str:
    return await run.call(think, text)


@agent("writer", version="1")
async def writer(run: Run, text: str) -> str:
    return await run.call(send, await run.call(think, text))


@agent("parrot", version="1")
async def parrot(run: Run, text: str) -> str:
    return await run.call(echo, text)


async def test_what_agents_call_is_known_after_a_heartbeat(redis_url: str) -> None:
    async with spine(redis_url, thinker, writer, parrot, dependencies=(MODEL, MAIL)) as deployment:
        host, store = await deployment.host(), deployment.store
        for each in (thinker, writer, parrot):
            await deployment.result(each, "x")
        expected = {"model": frozenset({"thinker", "writer"}), "mail": frozenset({"writer"})}

        async def known() -> bool:
            return await agents_by_dependency(store, host.now_ms()) == expected

        await until(known, "all that agents use")


async def test_it_is_said_once_an_hour_and_forgotten_after_a_day(redis_url: str) -> None:
    async with spine(redis_url, thinker, dependencies=(MODEL,)) as deployment:
        host, store = await deployment.host(heartbeat_s=60, lease_s=180), deployment.store
        uses = DependencyUses(store, host.attempts)
        now_ms = 10 * HOUR_MS

        async def said(at_ms: int) -> dict[str, str]:
            await deployment.result(thinker, "x")
            await uses.write(at_ms)
            return await store.fields(store.keys.uses)

        assert await said(now_ms) == {"thinker\nmodel": str(now_ms)}
        assert await said(now_ms + HOUR_MS - 1) == {"thinker\nmodel": str(now_ms)}
        assert await said(now_ms + HOUR_MS) == {"thinker\nmodel": str(now_ms + HOUR_MS)}
        later_ms = now_ms + 27 * HOUR_MS
        assert await agents_by_dependency(store, later_ms) == {"model": {"thinker"}}
        assert await agents_by_dependency(store, later_ms + 1) == {}
        assert await store.fields(store.keys.uses) == {}
