"""100,000 jobs at once, and a store that is about to be full."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import psutil
import redis.asyncio as redis

from actors.job import Job
from admission.values import CLASSES
from benchmarks.admission_figures.overload import APP, COMMAND, HOSTS
from benchmarks.bench import Bench, deployed, ended, now
from benchmarks.figures import Figure, at_least, at_most, beside
from penstock.client import Client
from penstock.submit_views import Refusal

JOBS: Final = 100_000
PAYLOAD: Final = "x" * 200
ROOM_BYTES: Final = 64 * 2**20
WRITERS: Final = 40
FLOOD_S: Final = 12.0


def _jobs(count: int) -> Iterator[Job]:
    for i in range(count):
        yield Job(custom_id=f"job-{i}", agent="does-little", input=PAYLOAD, value=CLASSES[i % len(CLASSES)])


async def figures(bench: Bench, count: int = JOBS) -> list[Figure]:
    """Figure 8, first half: nothing is lost, and memory is bounded and stated."""
    store = redis.Redis.from_url(bench.url)
    async with deployed(bench.settings(slots_per_host=100), APP, HOSTS) as client:
        small = await _client_growth(client, "small", count // 5)
        await ended(client, "small")
        before = await _used(store)
        began, peak = now(), asyncio.create_task(_peak(store))
        grown = await _client_growth(client, "flood", count)
        submitted = now() - began
        status = await ended(client, "flood")
        took = now() - began
        peak.cancel()
        await asyncio.gather(peak, return_exceptions=True)
        after = await _used(store)
        most = max(_PEAKS)
        found = sum([1 async for _ in client.results("flood")])
        queue = await client.queue()
    await store.aclose()
    lost = count - status.by_state.get("succeeded", 0)
    left = queue.queued + queue.aside + queue.running
    return [
        beside("flood: jobs submitted at once", count, "jobs", COMMAND),
        beside("flood: submitted in", submitted, "s", COMMAND),
        beside("flood: all of them had run in", took, "s", COMMAND),
        at_most("flood: jobs that did not succeed", lost, "jobs", 0, COMMAND),
        at_most("flood: results missing", count - found, "jobs", 0, COMMAND),
        at_most("flood: still counted as queued or running at the end", left, "runs", 0, COMMAND),
        beside("flood: the store's memory at its peak, a job", (most - before) / count / 1024, "KiB", COMMAND),
        beside("flood: the store's memory afterwards, a kept result", (after - before) / count / 1024, "KiB", COMMAND),
        beside("flood: the client's memory more, for a fifth of them", small / 2**20, "MiB", COMMAND),
        at_most("flood: the client's memory more", grown / 2**20, "MiB", 64, COMMAND),
    ]


_PEAKS: list[int] = [0]


async def _used(store: Any) -> int:
    return int((await store.info("memory"))["used_memory"])


async def _peak(store: Any) -> None:
    while True:
        _PEAKS.append(await _used(store))
        await asyncio.sleep(0.25)


async def _client_growth(client: Client, batch: str, count: int) -> int:
    """Submits; how much memory this process had more at most."""
    process = psutil.Process(os.getpid())
    before = most = process.memory_info().rss

    async def each() -> AsyncIterator[Job]:
        nonlocal most
        for i, job in enumerate(_jobs(count)):
            if i % 1000 == 0:
                most = max(most, process.memory_info().rss)
            yield job

    report = await client.submit(each(), batch=batch)
    assert report.accepted == count, report
    return max(most, process.memory_info().rss) - before


async def full(bench: Bench) -> list[Figure]:
    """Figure 8, second half: the store fills up while runs run. New ones are refused before a running run's write is.

    The server itself counts the writes that it refused.
    """
    store = redis.Redis.from_url(bench.url)
    async with deployed(bench.settings(slots_per_host=WRITERS), APP, HOSTS) as client:
        running = [Job(custom_id=f"w{i}", agent="takes-notes", input="", value="critical") for i in range(WRITERS)]
        await client.submit(running, batch="writers")
        await asyncio.sleep(1.0)
        await store.config_set("maxmemory", await _used(store) + ROOM_BYTES)
        before = await _refused_writes(store)
        try:
            first, accepted, refused = await _fill(client)
            fullest = (await store.info("memory"))["used_memory"] / (await store.info("memory"))["maxmemory"]
            status = await ended(client, "writers")
            writes = await _refused_writes(store) - before
        finally:
            await store.config_set("maxmemory", 0)
        await client.cancel("fill")
    await store.aclose()
    succeeded = status.by_state.get("succeeded", 0)
    order = [first[name] for name in reversed(CLASSES) if name in first]
    return [
        beside("full store: jobs accepted before the last class was closed", accepted, "jobs", COMMAND),
        at_least("full store: jobs refused for its memory", refused, "jobs", 1, COMMAND),
        beside("full store: how full it got", fullest, "of its limit", COMMAND),
        at_least("full store: the least valuable were refused first", order == sorted(order), "yes", 1, COMMAND),
        at_least("full store: classes that were closed", len(first), "classes", 2, COMMAND),
        at_most("full store: writes that the server refused", writes, "writes", 0, COMMAND),
        at_least("full store: running runs that succeeded", succeeded, "runs", WRITERS, COMMAND),
    ]  # fmt: skip


async def _refused_writes(store: Any) -> int:
    said = (await store.info("errorstats")).get("errorstat_OOM", {})
    return int(said.get("count", 0)) if isinstance(said, dict) else 0


async def _fill(client: Client) -> tuple[dict[str, int], int, int]:
    """Submits large jobs of all classes until the store has no room for any; in which turn each class was refused
    first, and how many jobs were accepted and refused.
    """
    first: dict[str, int] = {}
    accepted = refused = turn = 0
    began = now()
    while now() - began < FLOOD_S:
        jobs = [
            Job(custom_id=f"{turn}-{i}", agent="takes-notes", input="y" * 4000, value=CLASSES[i % len(CLASSES)])
            for i in range(100)
        ]
        gone: list[Refusal] = []
        report = await client.submit(jobs, batch="fill", on_refused=gone.append)
        accepted += report.accepted
        refused += report.refused
        for each in gone:
            name = CLASSES[int(each.custom_id.partition("-")[2]) % len(CLASSES)]
            first.setdefault(name, turn)
        turn += 1
        await asyncio.sleep(0.02)
    return first, accepted, refused
