"""Tools that ask for Ray resources, and the actors around hosts, on a real cluster."""

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import spine_app
from hosting import PATIENCE_S, Spine, output, spine
from pydantic import SecretStr

from actors.journal import decode_error
from actors.supervisor import SUPERVISOR, deploy, shutdown
from cluster.config import Settings
from cluster.embedded import EmbeddedValkey
from cluster.lifecycle import RunState
from cluster.session import LocalRay, connect, disconnect

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def settings(ray_cluster: LocalRay, valkey: EmbeddedValkey) -> Iterator[Settings]:
    """The tests' app on both nodes of the shared cluster: starting hosts takes seconds, so once for this file."""
    url = SecretStr(valkey.url)
    settings = Settings(redis_url=url, name=f"ray-{uuid.uuid4().hex[:8]}", partitions=2, heartbeat_s=0.5, lease_s=3)
    connect(ray_cluster.address)
    deploy(settings, "spine_app")
    yield settings
    shutdown(settings)
    disconnect()


@pytest.fixture
async def deployment(settings: Settings, valkey: EmbeddedValkey) -> AsyncIterator[Spine]:
    chosen = settings.model_dump(exclude={"redis_url", "dependencies"})
    async with spine(valkey.url, **chosen) as deployment:
        yield deployment


def supervisor_of(settings: Settings) -> Any:
    import ray

    return ray.get_actor(f"{settings.name}-{SUPERVISOR}", namespace=settings.name)


async def described(settings: Settings) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = await supervisor_of(settings).describe.remote()
    return found


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


async def test_hosts_take_no_cpu_and_heavy_tools_do(deployment: Spine, tmp_path: Path) -> None:
    hosts = await described(deployment.settings)
    assert len(hosts) == 2
    assert {host["loop"] for host in hosts} == {"uvloop"}
    assert len({host["pid"] for host in hosts} | {os.getpid()}) == 3

    found = await deployment.result(spine_app.heavy_sums, [1, 2, 3])
    assert found["sum"] == 106
    assert found["cpus"] == "0.5"
    assert found["attempt"] == 1
    assert len(found["key"]) == 24
    assert found["agent_pid"] in {host["pid"] for host in hosts}
    assert found["pid"] not in {host["pid"] for host in hosts}

    assert await deployment.result(spine_app.heavy_async, [4, 5]) == 9
    error = await deployment.failure(spine_app.refused, "way")
    assert (error.error_class, error.message, error.step) == ("ValueError", "no way", "0")

    await _cancelled_when_its_time_is_over(deployment, tmp_path / "notes")
    await _many_at_once(deployment)


async def _cancelled_when_its_time_is_over(deployment: Spine, notes: Path) -> None:
    record = await deployment.end(await deployment.submit(spine_app.endless, str(notes)))
    assert record.state is RunState.FAILED
    assert decode_error(record.error).error_class == "TimeoutError"
    # Each attempt was a task of its own, and each was ended in its worker, so that the CPU is free again.
    await until(lambda: notes.read_text().splitlines().count("ended") == 4, "the ends of all attempts")
    assert len(notes.read_text().splitlines()) == 8


async def _many_at_once(deployment: Spine) -> None:
    """More than there are CPUs for: they wait for their turn, and the hosts go on with everything else."""
    heavy = [await deployment.submit(spine_app.heavy_sums, [number]) for number in range(8)]
    light = await asyncio.gather(*(deployment.result(spine_app.echoes, str(number)) for number in range(20)))
    assert light == [str(number) for number in range(20)]
    for number, run_id in enumerate(heavy):
        assert output(spine_app.heavy_sums, await deployment.end(run_id))["sum"] == number + 100


async def test_a_supervisor_that_dies_comes_back_and_touches_no_run(deployment: Spine) -> None:
    import ray

    before = {host["host"]: host["pid"] for host in await described(deployment.settings)}
    runs = [await deployment.submit(spine_app.steps, 0.25) for _ in range(6)]
    for run_id in runs:
        await deployment.state(run_id, RunState.RUNNING)
    supervisor = supervisor_of(deployment.settings)
    ray.kill(supervisor, no_restart=False)
    for run_id in runs:
        record = await deployment.end(run_id)
        assert output(spine_app.steps, record) in before.values()
        assert (record.migrations, record.fence) == (0, 1)
    deadline = time.monotonic() + 15
    after: dict[str, int] = {}
    while after != before:
        assert time.monotonic() < deadline, (before, after)
        try:
            after = {host["host"]: host["pid"] for host in await described(deployment.settings)}
        except ray.exceptions.RayActorError:
            await asyncio.sleep(0.1)
