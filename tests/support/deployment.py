"""The refund desk for real: hosts on a Ray cluster, a store, and the world outside; and the means to hurt them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from actors.supervisor import deploy, shutdown
from cluster import session
from cluster.config import Settings
from cluster.janitor import processes_of
from cluster.lifecycle import TERMINAL, RunState
from cluster.session import LocalRay
from cluster.store import Store
from penstock import Client
from penstock.history import HistoryReport, check_batch
from penstock.views import BatchStatus
from refund_desk.ledger import KeyHistory
from refund_desk.make_jobs import GRANTS, MESSAGES
from refund_desk.running import RunningWorld, running_world

ROOT = Path(__file__).parents[2]
APP = "refund_desk.app"
POLL_S = 0.01
# A job is 3 or 4 steps; with these it takes one to two seconds, so that every fault hits the middle of something.
SLOW_WORLD = {
    "orders": {"latency_ms": 200.0, "latency_jitter_ms": 200.0},
    "model": {"latency_ms": 300.0, "latency_jitter_ms": 500.0},
    "refunds": {"latency_ms": 200.0, "latency_jitter_ms": 300.0},
    "answers": {"latency_ms": 200.0, "latency_jitter_ms": 300.0},
}
QUICK_WORLD = {endpoint: {"latency_ms": 10.0, "latency_jitter_ms": 20.0} for endpoint in SLOW_WORLD}


@dataclass(frozen=True)
class Batch:
    """Jobs that nobody else has, with tickets and orders of their own."""

    key: str
    jobs: tuple[dict[str, Any], ...]
    known_keys: frozenset[str]

    @property
    def custom_ids(self) -> frozenset[str]:
        return frozenset(job["custom_id"] for job in self.jobs)


@dataclass
class Desk:
    """A deployed refund desk."""

    cluster: LocalRay
    settings: Settings
    world: RunningWorld
    jobs_made: int = 0

    def batch(self, key: str, count: int) -> Batch:
        """A new batch; not submitted yet."""
        first = self.jobs_made + 1
        self.jobs_made += count
        known = frozenset(history.idempotency_key for history in self.world.keys(10_000))
        return Batch(key, tuple(job(number) for number in range(first, first + count)), known)

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        async with Client(settings=self.settings) as client:
            yield client

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """This process as a driver, whose actors know where the world is."""
        variables = {"REFUND_DESK_WORLD_URL": self.world.url}
        with session.connect(self.cluster.address, runtime_env={"env_vars": variables}):
            yield

    def deploy(self) -> None:
        with self.connected():
            deploy(self.settings, APP)

    def shutdown(self) -> None:
        with self.connected():
            shutdown(self.settings)

    def ledger_of(self, batch: Batch) -> list[KeyHistory]:
        """What the world counted of a batch: all keys that it did not know before."""
        return [key for key in self.world.keys(10_000) if key.idempotency_key not in batch.known_keys]

    def submitter(self, batch: Batch, *, backwards: bool = False) -> subprocess.Popen[str]:
        """A process that is ready to submit a batch, slowly; from its last job to its first when ``backwards``.

        It begins when it is told a line.
        """
        url = self.settings.redis_url
        assert url is not None
        variables = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, [ROOT, ROOT / "examples", ROOT / "tests" / "support"])),
            "PENSTOCK_NAME": self.settings.name,
            "PENSTOCK_REDIS_URL": url.get_secret_value(),
            "PENSTOCK_HOME": str(self.settings.home),
            "PENSTOCK_PARTITIONS": str(self.settings.partitions),
        }
        numbers = [int(job["custom_id"].rpartition("-")[2]) for job in batch.jobs]
        first, last, step = (numbers[-1], numbers[0], -1) if backwards else (numbers[0], numbers[-1], 1)
        process = subprocess.Popen(
            [sys.executable, "-m", "submitter", batch.key, str(first), str(last + step), str(step)],
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    async def judged(self, client: Client, batch: Batch, *, attempts_per_loss: int = 1) -> HistoryReport:
        """The history checker's report on a settled batch; fails the test when it does not hold."""
        report = await check_batch(
            client.store,
            batch.key,
            self.ledger_of(batch),
            accepted=batch.custom_ids,
            attempts_per_loss=attempts_per_loss,
        )
        print(report)
        assert report.holds, str(report)
        assert report.duplicate_effects == 0
        assert report.runs == len(batch.jobs)
        return report

    def supervisor_pids(self) -> list[int]:
        """The process of this deployment's supervisor; none while Ray restarts it."""
        return [pid for pid in processes_of(self.cluster.directory) if b"ray::Supervisor" in _command(pid)]

    def log_of(self, pid: int) -> str:
        """What a worker process of the cluster has logged so far."""
        logs = (self.cluster.directory / "ray").glob(f"session_2*/logs/worker-*-{pid}.err")
        return "\n".join(log.read_text(errors="replace") for log in logs)


def job(number: int) -> dict[str, Any]:
    """The number-th job: a ticket about an order of its own."""
    ticket = {"ticket_id": f"T-{number}", "order_id": f"O-{number}", "message": MESSAGES[number % len(MESSAGES)]}
    return {"custom_id": f"ticket-{number}", "agent": "refund-desk", "input": ticket, "grants": list(GRANTS)}


@contextlib.contextmanager
def refund_desk_at(
    cluster: LocalRay, redis_url: str, directory: Path, *, name: str, **more_settings: Any
) -> Iterator[Desk]:
    """A refund desk for the time of a `with` block, with a slow but faultless world."""
    settings = Settings(name=name, redis_url=SecretStr(redis_url), home=directory, **more_settings)
    with running_world(directory) as world:
        world.set_faults(**SLOW_WORLD)
        desk = Desk(cluster, settings, world)
        try:
            desk.deploy()
            yield desk
        finally:
            desk.shutdown()


# ------------------------------------------------------------------------------------------------------- watching


async def until_share_done(client: Client, batch: Batch, share: float, timeout_s: float = 30.0) -> BatchStatus:
    """Waits until about this share of a batch's steps is finished."""
    wanted = share * 3.5 * len(batch.jobs)
    async with asyncio.timeout(timeout_s):
        while (status := await client.status(batch.key)).steps < wanted:  # noqa: ASYNC110 - polls a store
            await asyncio.sleep(POLL_S)
    assert not status.terminal, "the batch was over before the fault"
    return status


async def until_settled(client: Client, batch: Batch, timeout_s: float = 60.0) -> BatchStatus:
    """Waits for the end of a batch."""
    until = time.monotonic() + timeout_s
    while not (status := await client.status(batch.key)).settled:
        assert time.monotonic() < until, f"{status}; hosts: {await client.store.hosts()}"
        await asyncio.sleep(POLL_S)
    return status


async def host_with_runs(
    client: Client, batch: Batch, *, node: str | None = None
) -> tuple[str, dict[str, Any], list[str]]:
    """A living host (of a node) that has runs of a batch: its id, what it says of itself, its runs."""
    while True:
        assert not (await client.status(batch.key)).terminal, "the batch was over before the fault"
        for host, info in (await client.store.hosts()).items():
            if info["lease_left_ms"] > 0 and (node is None or node.startswith(info["node"])):
                runs = await runs_of(client.store, host)
                if len(runs) >= 5:
                    return host, info, runs
        await asyncio.sleep(POLL_S)


async def runs_of(store: Store, host: str) -> list[str]:
    """The runs that a host owns."""
    owned = await asyncio.gather(*(store.owned(partition, host) for partition in store.partitions))
    return sorted(run for runs in owned for run in runs)


async def moved_s(store: Store, run_ids: Sequence[str], host: str, since: float, timeout_s: float = 20.0) -> float:
    """Seconds from ``since`` until all these runs are with another host than ``host`` (or have ended)."""
    left = set(run_ids)
    async with asyncio.timeout(timeout_s):
        while left:
            asked = list(left)
            for run_id, (state, owner) in zip(asked, await _owners(store, asked), strict=True):
                if state in TERMINAL or (state == RunState.RUNNING and owner != host):
                    left.remove(run_id)
            if left:
                await asyncio.sleep(POLL_S)
    return time.monotonic() - since


async def _owners(store: Store, run_ids: list[str]) -> list[tuple[str, str]]:
    keys = [store.keys.run(run_id) for run_id in run_ids]
    answers = await asyncio.gather(*(store.command(key, "HMGET", key, "state", "host") for key in keys))
    return [(state.decode(), host.decode() if host else "") for state, host in answers]


async def until_hosts(store: Store, count: int, *, without: Sequence[str] = (), timeout_s: float = 20) -> set[str]:
    """Waits until so many hosts live, none of them one of ``without``."""
    async with asyncio.timeout(timeout_s):
        while True:
            live = {host for host, info in (await store.hosts()).items() if info["lease_left_ms"] > 0}
            if len(live) == count and not live.intersection(without):
                return live
            await asyncio.sleep(0.05)


def tell(process: subprocess.Popen[str], line: str) -> None:
    """Writes a line to a process."""
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def kill(pid: int, number: int) -> float:
    """Sends a signal; the moment of it."""
    os.kill(pid, number)
    return time.monotonic()


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
