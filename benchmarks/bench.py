"""What the workloads stand on: one store, one Ray node with a host a CPU, and deployments with slots of their own."""

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import psutil
import uvloop

from actors.registry import load_app
from actors.supervisor import deploy, shutdown
from cluster.config import Settings
from cluster.embedded import EmbeddedValkey
from cluster.session import LocalRay, connect
from penstock.client import Client
from penstock.views import BatchStatus

T = TypeVar("T")
APP = "benchmarks.agents"
_ROOT: Final = Path(__file__).parents[1]


class Bench:
    """A running store and Ray node."""

    def __init__(self, url: str, store_pid: int) -> None:
        self.url = url
        self.store_pid = store_pid
        self._deployments = 0

    def settings(self, **changes: Any) -> Settings:
        """Settings of a deployment of its own."""
        self._deployments += 1
        return Settings(redis_url=self.url, name=f"bench-{self._deployments}", **changes)  # type: ignore[arg-type]

    @asynccontextmanager
    async def hosts(self, slots_per_host: int) -> AsyncIterator[Client]:
        """A deployment with real hosts, and a client to it."""
        async with deployed(self.settings(slots_per_host=slots_per_host), APP) as client:
            yield client


@asynccontextmanager
async def deployed(settings: Settings, app: str, hosts_per_node: int | None = None) -> AsyncIterator[Client]:
    """A deployment on the Ray node that this process is connected to, and a client to it."""
    await asyncio.to_thread(deploy, settings, app, hosts_per_node=hosts_per_node)
    try:
        async with Client(settings=settings, app=load_app(app)) as client:
            yield client
    finally:
        await asyncio.to_thread(shutdown, settings)


@contextmanager
def running(hosts: int) -> Iterator[Bench]:
    """Starts the store and a Ray node with so many CPUs; stops both."""
    with a_store() as store, a_ray_node(hosts):
        yield Bench(store.url, store.pid or 0)


@contextmanager
def a_store() -> Iterator[EmbeddedValkey]:
    """A store of its own, which leaves nothing behind."""
    with (
        tempfile.TemporaryDirectory(prefix="penstock-bench-") as directory,
        EmbeddedValkey(Path(directory)) as store,
    ):
        yield store


@contextmanager
def a_ray_node(cpus: int, environment: Mapping[str, str] | None = None) -> Iterator[None]:
    """A Ray node with so many logical CPUs, to which this process is connected; ``environment`` is its workers'."""
    ray = LocalRay(nodes=1, cpus_per_node=cpus, python_path=[_ROOT], extra_environment=environment or {})
    try:
        ray.start()
        with connect(ray.address):
            yield
    finally:
        ray.stop()


async def ended(client: Client, batch: str) -> BatchStatus:
    """The batch's status when all of its runs have ended."""
    last = await client.status(batch)
    async for status in client.watch(batch):
        last = status
    return last


async def settled(client: Client, batch: str) -> BatchStatus:
    """The batch's status when no run of it goes on by itself: each has ended, or is unknown."""
    async for status in client.watch(batch):
        if status.settled:
            return status
    return await client.status(batch)


async def host_processes(client: Client) -> list[psutil.Process]:
    """The hosts' processes."""
    return [psutil.Process(int(view.info["pid"])) for view in await client.hosts()]


async def busiest_host(client: Client) -> psutil.Process:
    """The process of the host that has the most runs now."""
    store = client.store
    runs: dict[int, int] = {}
    for view in await client.hosts():
        owned = await asyncio.gather(*(store.owned(partition, view.host) for partition in store.partitions))
        runs[int(view.info["pid"])] = sum(map(len, owned))
    return psutil.Process(max(runs, key=lambda pid: runs[pid]))


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """Processor time that they have used so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def now() -> float:
    """Seconds of a clock that only goes on."""
    return time.perf_counter()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine as hosts run theirs, on uvloop."""
    return uvloop.run(work)


def own_cpu_seconds() -> float:
    """Processor time of this process."""
    times = os.times()
    return times.user + times.system
