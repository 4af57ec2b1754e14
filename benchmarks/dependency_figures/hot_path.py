"""What a gate costs a call that may go: no message, no round trip, and a few microseconds.

A host and a hub in this process, so that every exchange between them can be counted and every pass timed.
"""

import asyncio
import gc
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import redis.asyncio as redis

from actors.gatekeeper import Gatekeeper, Link
from actors.host_runtime import HostRuntime
from actors.hub_runtime import HubRuntime
from actors.registry import load_app
from actors.reservation import ONE_REQUEST
from benchmarks.dependency_figures.bench import APP, Bench
from benchmarks.figures import Figure, at_most, beside
from cluster.config import Settings
from penstock.client import Client

NORMAL_RANK = 2


class Together:
    """A host and the hub of one dependency on one loop; ``exchanges`` counts what would be Ray calls."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.app = load_app(APP)
        self.hub = HubRuntime(settings, self.app.dependencies["provider"])
        self.host = HostRuntime(settings, self.app, "h0", links=self._link, watchdog=False)
        self.exchanges = 0

    def _link(self, name: str) -> Link:
        async def send(raw: bytes) -> bytes:
            assert name == "provider"
            self.exchanges += 1
            return self.hub.exchange(raw)

        return send

    @property
    def gatekeeper(self) -> Gatekeeper:
        """The gate of the dependency."""
        return self.host.gates.keepers["provider"]


@asynccontextmanager
async def together(url: str) -> AsyncIterator[tuple[Together, Client]]:
    """Starts both, and a client."""
    settings = Settings(redis_url=url, name=f"hot-path-{time.time_ns()}", slots_per_host=4)  # type: ignore[arg-type]
    both = Together(settings)
    await both.hub.start()
    await both.host.start()
    try:
        async with Client(settings=settings, app=both.app) as client:
            yield both, client
    finally:
        await both.host.stop()
        await both.hub.stop()


async def commands(url: str) -> int:
    """How many commands the store has served so far, those that scripts call included."""
    client = redis.Redis.from_url(url)
    try:
        found: dict[str, dict[str, Any]] = await client.info("commandstats")
        return sum(int(stats["calls"]) for stats in found.values())
    finally:
        await client.aclose()


async def passes_us(gatekeeper: Gatekeeper, calls: int) -> list[float]:
    """Microseconds to go in and out of the gate, of calls that may go; the gate talks to its hub meanwhile."""
    took: list[float] = []
    clock = time.perf_counter_ns
    while len(took) < calls:
        for _ in range(100):
            began = clock()
            passage = gatekeeper.try_pass(NORMAL_RANK, ONE_REQUEST, True)
            if passage is None:
                waited = await gatekeeper.passage(NORMAL_RANK, ONE_REQUEST, True)
                gatekeeper.done(waited, "succeeded")
                continue
            gatekeeper.gate.first_attempt("default")
            gatekeeper.done(passage, "succeeded")
            took.append((clock() - began) / 1000)
        await asyncio.sleep(0.002)
    return took


async def hot_path(bench: Bench, command: str) -> list[Figure]:
    """The figures, by the bench's store."""
    return await measure(bench.url, command)


async def measure(url: str, command: str, steps: int = 3000, rounds: int = 3, calls: int = 40_000) -> list[Figure]:
    """Steps that answer at once, with a gate and without, by turns."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    asked: dict[bool, float] = {True: 0, False: 0}
    exchanges = 0
    async with together(url) as (both, client):
        for gated in (False, True):
            await client.run("steps", {"count": 200, "gated": gated})
        gc.collect()
        gc.freeze()
        for _ in range(rounds):
            for gated in (False, True):
                commands_before, exchanges_before = await commands(url), both.exchanges
                took_s = float((await client.run("steps", {"count": steps, "gated": gated})).output)
                asked[gated] += (await commands(url) - commands_before) / rounds / steps
                rates[gated].append(steps / took_s)
                if gated:
                    exchanges += both.exchanges - exchanges_before
        took = sorted(await passes_us(both.gatekeeper, calls))
        gc.unfreeze()
    with_gate, without = statistics.median(rates[True]), statistics.median(rates[False])
    return [
        at_most(
            "hot path: Ray calls a call (four a second talk to the hub, however many calls)",
            exchanges / rounds / steps,
            "a call",
            0.01,
            command,
        ),
        at_most(
            "hot path: store commands a call more than without a gate (the hub's own four writes a second included)",
            asked[True] - asked[False],
            "a call",
            0.05,
            command,
        ),
        beside("hot path: store commands without a gate", asked[False], "a call", command),
        at_most("hot path: in and out of the gate, 99th percentile", took[len(took) * 99 // 100], "µs", 10, command),
        beside("hot path: in and out of the gate, median", took[len(took) // 2], "µs", command),
        beside("hot path: steps with a gate", with_gate, "steps/s", command),
        beside("hot path: steps without", without, "steps/s", command),
        beside("hot path: steps with a gate over without", with_gate / without, "ratio", command),
    ]
