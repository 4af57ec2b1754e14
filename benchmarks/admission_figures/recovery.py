"""Figure 5 at small size: a trigger under a load close to the capacity, and what is left of it when it is gone."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Final

import redis.asyncio as redis

from benchmarks.admission_figures.crowd import Crowd, Stream, served_s
from benchmarks.admission_figures.overload import APP, CAPACITY, COMMAND, HOSTS, MEAN_S, SLOTS
from benchmarks.bench import Bench, busiest_host, deployed
from benchmarks.figures import Figure, at_least, beside
from penstock.client import Client

LOAD: Final = 0.9
BEFORE_S: Final = 8.0
AFTER_S: Final = 10.0
PAUSED_S: Final = 5.0


async def figures(bench: Bench) -> list[Figure]:
    """A store that stands still, and a host that is killed."""
    store = redis.Redis.from_url(bench.url)

    async def pause(_: Client) -> None:
        await store.client_pause(int(PAUSED_S * 1000))
        await asyncio.sleep(PAUSED_S)

    async def kill(client: Client) -> None:
        process = await busiest_host(client)
        os.kill(process.pid, signal.SIGKILL)
        await asyncio.sleep(1.0)
        while len(await client.hosts()) < HOSTS:  # noqa: ASYNC110 - Ray starts it again
            await asyncio.sleep(0.05)

    found = [*await _one(bench, "store paused", pause), *await _one(bench, "host killed", kill)]
    await store.aclose()
    return found


async def _one(bench: Bench, name: str, trigger: Callable[[Client], Awaitable[None]]) -> list[Figure]:
    async with deployed(bench.settings(slots_per_host=SLOTS), APP, HOSTS) as client:
        crowd = Crowd(client, "load", MEAN_S, 5, comes_back=True, max_wait=3.0, deadline=8.0)
        streams = [Stream("high", 0.5 * LOAD * CAPACITY), Stream("low", 0.5 * LOAD * CAPACITY)]
        began_ms = await client.store.server_ms()
        await crowd.offer(streams, BEFORE_S)
        loading = asyncio.create_task(crowd.offer(streams, 60.0))
        struck_ms = await client.store.server_ms()
        await trigger(client)
        over_ms = await client.store.server_ms()
        await asyncio.sleep(2 * MEAN_S + AFTER_S)
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        runs = await crowd.ended()
    # Soon: two mean run lengths.
    before = served_s(runs, began_ms + 3000, struck_ms) / ((struck_ms - began_ms) / 1000 - 3)
    from_ms = over_ms + 2 * MEAN_S * 1000
    after = served_s(runs, from_ms, from_ms + AFTER_S * 1000) / AFTER_S
    return [
        beside(f"recovery, {name}: the trigger's length", (over_ms - struck_ms) / 1000, "s", COMMAND),
        at_least(f"recovery, {name}: goodput soon after it over before", after / before, "ratio", 0.95, COMMAND),
    ]  # fmt: skip
