"""What the figures about dependencies stand on: a store, a provider, one Ray node, and deployments on it."""

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final

from actors.job import Job
from benchmarks.bench import a_ray_node, a_store, deployed, ended
from benchmarks.dependency_agents import REDIS_VARIABLE
from benchmarks.dependency_figures.load import Shape
from benchmarks.provider.arrivals import Arrival
from benchmarks.provider.running import RunningProvider, running_provider
from cluster.config import Settings
from penstock.client import Client

APP: Final = "benchmarks.dependency_figures.load"
_numbers: Final = itertools.count(1)


class Bench:
    """A running store, Ray node and provider."""

    def __init__(self, url: str, provider: RunningProvider) -> None:
        self.url = url
        self.provider = provider

    @asynccontextmanager
    async def hosts(self, count: int, slots_per_host: int = 1) -> AsyncIterator["Deployment"]:
        """A deployment of its own with so many real hosts."""
        settings = Settings(
            redis_url=self.url,  # type: ignore[arg-type]
            name=f"dependencies-{next(_numbers)}-{time.time_ns() % 10**9}",
            slots_per_host=slots_per_host,
            partitions=max(8, count),
        )
        async with deployed(settings, APP, hosts_per_node=count) as client:
            yield Deployment(client, self.provider)


class Deployment:
    """Hosts under load, and the provider that they call."""

    def __init__(self, client: Client, provider: RunningProvider) -> None:
        self.client = client
        self.provider = provider
        self._jobs = itertools.count(1)

    async def labels(self) -> list[str]:
        """What the provider knows the hosts by."""
        return sorted(str(view.info["pid"]) for view in await self.client.hosts())

    async def define(self, name: str, **changes: Any) -> None:
        """Changes a dependency, and is sure that its hub has taken it over."""
        until = time.monotonic() + 20
        while True:
            with suppress(Exception):
                if (await self.client.set_dependency(name, changes)).confirmed:
                    return
            if time.monotonic() > until:
                raise TimeoutError(f"the hub of {name} has not confirmed {changes}")
            await asyncio.sleep(0.2)

    async def shape(self, **fields: Any) -> tuple[str, Shape]:
        """Starts demand of a shape on all hosts, soon; the batch and what was asked for."""
        hosts = await self.labels()
        shape = Shape(hosts=hosts, start_at=time.time() + 1.0, **fields)
        batch = f"shape-{next(self._jobs)}"
        payload = shape.model_dump()
        jobs = [Job(custom_id=f"{batch}-{number}", agent="shaped", input=payload) for number in range(len(hosts))]
        await self.client.submit(jobs, batch=batch)
        return batch, shape

    async def ended(self, batch: str) -> None:
        """Waits for the end of a batch, whose runs have to succeed."""
        last = await ended(self.client, batch)
        assert set(last.by_state) == {"succeeded"}, last

    async def single_calls(self, rate: float, until: float, calls: Sequence[dict[str, Any]], batch: str) -> int:
        """Submits runs of one call each at a constant rate for each of ``calls``, until a moment of the monotonic
        clock; how many of each. Whatever becomes of them, more come.
        """
        loop = asyncio.get_running_loop()
        began, made, chunk_s = loop.time(), 0, 0.1
        while (now := loop.time()) < until:
            due = math.floor((now - began) * rate) + 1
            jobs = [
                Job(custom_id=f"{batch}-{number}-{turn}", agent="single", input={"calls": 1} | fields)
                for number in range(made, due)
                for turn, fields in enumerate(calls)
            ]
            if jobs:
                await self.client.submit(jobs, batch=batch)
            made = due
            await asyncio.sleep(max(0.0, now + chunk_s - loop.time()))
        return made


def of(arrivals: Sequence[Arrival], value: str) -> list[Arrival]:
    """The arrivals of one arm."""
    return [arrival for arrival in arrivals if arrival.value == value]


@contextmanager
def running(hosts: int) -> Iterator[Bench]:
    """Starts the store, the provider and a Ray node with so many logical CPUs; stops all of them."""
    with (
        running_provider() as provider,
        a_store() as store,
        a_ray_node(hosts, provider.environment | {REDIS_VARIABLE: store.url}),
    ):
        yield Bench(store.url, provider)
