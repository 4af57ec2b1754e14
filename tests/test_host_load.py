"""A host measures its own load, tells it, and takes no more runs than it can hold."""

import asyncio
import os
import time
from pathlib import Path

import psutil
from hosting import spine, until

from actors.claim_order import read_wake
from actors.host_load import HostLoad
from actors.host_slots import Memory
from actors.machine_memory import MemoryProbe
from penstock import Run, ToolCall, agent, tool

GATES: dict[str, asyncio.Event] = {}
MIB = 2**20


@tool()
async def hold(call: ToolCall, name: str) -> str:
    await GATES[name].wait()
    return name


@agent("holder", version="1")
async def holder(run: Run, name: str) -> str:
    return await run.call(hold, name)


async def test_the_store_knows_how_many_slots_a_host_has_and_how_many_are_busy(redis_url: str) -> None:
    async with spine(redis_url, holder, slots_per_host=3) as deployment:
        GATES["a"] = asyncio.Event()
        host = await deployment.host()
        runs = [await deployment.submit(holder, "a") for _ in range(2)]

        async def both() -> bool:
            return bool((await deployment.store.hosts())[host.host].get("busy") == 2)

        await until(both, "two busy slots")
        info = (await deployment.store.hosts())[host.host]
        assert (info["slots"], info["cap"], info["limit"]) == (3, 3, "cap")
        GATES["a"].set()
        for run_id in runs:
            await deployment.end(run_id)
        identity = host.host
        await host.stop()
        assert identity not in await deployment.store.fields(deployment.store.keys.loads)


async def test_a_host_with_fewer_slots_claims_less_and_goes_on_when_it_has_them_again(redis_url: str) -> None:
    async with spine(redis_url, holder, slots_per_host=10) as deployment:
        GATES["b"] = asyncio.Event()
        host = await deployment.host()
        short = Memory(100 * MIB, 0, 16 * 1024 * MIB)
        for _ in range(2):
            host.load._slots.tick(5, short)
        assert host.load.slots == 4
        host.load._probe.look = lambda: short  # type: ignore[method-assign]
        runs = [await deployment.submit(holder, "b") for _ in range(10)]
        await until(lambda: len(host.runs) == 4, "four runs")
        await asyncio.sleep(0.3)  # a heartbeat and a poll
        assert len(host.runs) <= 4
        host.load._probe = MemoryProbe()
        await until(lambda: host.load.slots > 4 and len(host.runs) > 4, "a fifth run")
        GATES["b"].set()
        for run_id in runs:
            await deployment.end(run_id)


async def test_a_loop_that_is_always_late_is_noticed() -> None:
    load = HostLoad(100, lambda: 50, lambda: None)
    load.start()
    started = time.monotonic()
    while load.slots == 100 and time.monotonic() - started < 10:
        time.sleep(0.15)
        await asyncio.sleep(0)
    load.stop()
    assert load.slots == 40


def test_memory_is_this_process_and_what_the_machine_has() -> None:
    memory = MemoryProbe().look()
    process = psutil.Process(os.getpid())
    assert abs(memory.process - process.memory_info().rss) < 64 * MIB
    assert 0 < memory.available <= memory.total <= psutil.virtual_memory().total


def test_a_control_group_bounds_memory_without_what_the_kernel_can_drop(tmp_path: Path) -> None:
    """Version 2, inside a container and outside; the group with the least room counts."""
    groups = tmp_path / "cgroup"
    groups.write_text("0::/pods/mine\n")
    mount = tmp_path / "mount"

    def group(path: str, limit: str, used: int, cache: int) -> None:
        folder = mount / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\nactive_file 7\n")

    assert MemoryProbe(groups, mount).look().total == psutil.virtual_memory().total
    group("", "max", 1, 1)
    group("pods/mine", str(300 * MIB), 250 * MIB, 100 * MIB)
    found = MemoryProbe(groups, mount).look()
    assert (found.total, found.available) == (300 * MIB, 150 * MIB)
    group("pods", str(200 * MIB), 190 * MIB, 0)
    found = MemoryProbe(groups, mount).look()
    assert (found.total, found.available) == (200 * MIB, 10 * MIB)


def test_a_control_group_of_the_first_version(tmp_path: Path) -> None:
    groups = tmp_path / "cgroup"
    groups.write_text("4:memory:/somewhere/outside\n1:cpu:/\n0::/\n")
    folder = tmp_path / "mount" / "memory"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(str(100 * MIB))
    (folder / "memory.usage_in_bytes").write_text(str(120 * MIB))
    (folder / "memory.stat").write_text("total_inactive_file 0\n")
    found = MemoryProbe(groups, tmp_path / "mount").look()
    assert (found.total, found.available) == (100 * MIB, 0)
    (folder / "memory.limit_in_bytes").write_text("9223372036854771712")
    assert MemoryProbe(groups, tmp_path / "mount").look().total == psutil.virtual_memory().total


def test_a_message_that_is_none_is_refused() -> None:
    for text in ("", "zz", "00 x"):
        try:
            read_wake(text)
        except ValueError:
            continue
        raise AssertionError(text)
