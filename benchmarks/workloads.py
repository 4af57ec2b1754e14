"""The workloads: each through the public client and real hosts, beside its ideal or its floor."""

import asyncio
import os
import statistics
from typing import Any

import psutil
import ray
import redis.asyncio as redis

from actors.job import Job, new_run
from actors.journal import ENTRY_VERSION, Entry, Kind, Status, encode_entry
from actors.registry import load_app
from benchmarks.agents import STEPS
from benchmarks.bench import Bench, busiest_host, cpu_seconds, ended, host_processes, now, own_cpu_seconds
from benchmarks.figures import Figure, at_least, at_most, beside
from cluster import scripts
from cluster.keys import partition_of
from cluster.store import Store
from penstock.client import Client

COMMAND = "make figures-spine"
PAYLOAD = "x" * 1024


def jobs(count: int, agent: str, payload: Any) -> list[Job]:
    """So many jobs of one agent."""
    return [Job(custom_id=f"job-{i}", agent=agent, input=payload) for i in range(count)]


async def floor(bench: Bench, steps: int, at_once: int) -> float:
    """Steps a second that one pipelined redis-py connection appends with the same script and bytes."""
    store = await Store.open(bench.settings())
    partitions = store.keys.partitions
    runs = [new_run(job, "floor", partitions) for job in jobs(at_once, "five-steps", "")]
    by_partition: dict[int, list[tuple[str, int]]] = {}
    for partition in store.partitions:
        own = [run for run in runs if partition_of(run.id) == partition]
        await store.submit("floor", partition, own)
        claimed = await store.claim(partition, "floor-host", at_once, ["five-steps", "1"])
        assert claimed is not None
        by_partition[partition] = [(claim.id, claim.fence) for claim in claimed[1]]
    raw = f'"{PAYLOAD}"'.encode()
    entry = encode_entry(Entry(ENTRY_VERSION, Kind.CALL, "0", "echo", b"d" * 16, Status.OK, raw, 1, 1, 1))
    assert store.settings.redis_url is not None
    client = redis.Redis.from_url(store.settings.redis_url.get_secret_value(), single_connection_client=True)
    await client.script_load(scripts.APPEND.text)
    rounds = max(1, steps // at_once)
    started = now()
    for turn in range(rounds):
        pipeline = client.pipeline(transaction=False)
        for partition, owned in by_partition.items():
            arguments: list[Any] = [0]
            for run_id, fence in owned:
                arguments += (run_id, fence, turn, 1, 0, 1, entry)
            pipeline.evalsha(scripts.APPEND.sha, 1, store.keys.queues[partition], *arguments)
        answers = await pipeline.execute()
        assert not any(answers)
    took = now() - started
    await client.aclose()
    await store.close()
    return rounds * at_once / took


async def throughput(bench: Bench, runs: int = 1000, at_once: int = 200, rounds: int = 3) -> list[Figure]:
    """W1: runs of 5 steps of 1 KiB, so many at once; the median of some rounds."""
    rates, used = [], []
    async with bench.hosts(slots_per_host=at_once // (os.cpu_count() or 1)) as client:
        processes = await host_processes(client)
        for turn in range(rounds + 1):
            cpu, own, started = cpu_seconds(processes), own_cpu_seconds(), now()
            await client.submit(jobs(runs, "five-steps", PAYLOAD), batch=f"w1-{turn}")
            status = await ended(client, f"w1-{turn}")
            took = now() - started
            assert status.by_state == {"succeeded": runs}, status
            if turn:
                rates.append(runs * STEPS / took)
                used.append(((cpu_seconds(processes) - cpu) / took, (own_cpu_seconds() - own) / took))
    bare = await floor(bench, runs * STEPS, at_once)
    rate = statistics.median(rates)
    return [
        at_least("W1 durable steps a second", rate, "steps/s", 10_000, COMMAND),
        beside("W1 floor: same bytes, same script, one pipelined connection", bare, "steps/s", COMMAND),
        at_least("W1 share of the floor", rate / bare, "ratio", 0.20, COMMAND),
        beside("W1 processors used by hosts", statistics.median(u[0] for u in used), "cores", COMMAND),
        beside("W1 processors used by the client", statistics.median(u[1] for u in used), "cores", COMMAND),
    ]


async def many(bench: Bench, runs: int, seconds: float, bound: float, name: str, memory: bool) -> list[Figure]:
    """W2: all runs at once, five steps that take ``seconds`` each; the ideal is five times that."""
    async with bench.hosts(slots_per_host=runs) as client:
        processes = await host_processes(client)
        # A first small batch loads what is loaded once.
        await client.submit(jobs(20, "five-waits", 0.01), batch="warm")
        await ended(client, "warm")
        before = sum(process.memory_info().rss for process in processes)
        started = now()
        await client.submit(jobs(runs, "five-waits", seconds), batch="w2")
        watching = asyncio.create_task(ended(client, "w2"))
        await asyncio.sleep(seconds * STEPS * 0.6)
        during = sum(process.memory_info().rss for process in processes)
        status = await watching
        took = now() - started
        assert status.by_state == {"succeeded": runs}, status
    ideal = seconds * STEPS
    figures = [
        beside(f"{name} wall time", took, "s", COMMAND),
        at_most(f"{name} over the ideal of {ideal:g} s", took / ideal, "ratio", bound, COMMAND),
    ]
    if memory:
        figures.append(at_most(f"{name} host memory a run", (during - before) / runs / 1024, "KiB", 25, COMMAND))
    return figures


async def latency(bench: Bench, runs: int = 200) -> list[Figure]:
    """W3: one run of five steps at a time, from the client's call to its result."""
    async with bench.hosts(slots_per_host=100) as client:
        for _ in range(20):
            await client.run("five-steps", PAYLOAD)
        took = []
        for _ in range(runs):
            started = now()
            await client.run("five-steps", PAYLOAD)
            took.append((now() - started) * 1000)
        trip = await round_trip_ms(client)
    return [
        at_most("W3 a run of five steps, median", statistics.median(took), "ms", 5, COMMAND),
        beside("W3 99th percentile", statistics.quantiles(took, n=100)[98], "ms", COMMAND),
        beside("W3 floor: seven synced writes, one after the other", 7 * trip, "ms", COMMAND),
    ]


async def round_trip_ms(client: Client, count: int = 200) -> float:
    """Median time of one synced write."""
    key = client.store.keys.notes
    took = []
    for i in range(count):
        started = now()
        await client.store.command(key, "HSET", key, "bench", i)
        took.append((now() - started) * 1000)
    return statistics.median(took)


async def recovery(bench: Bench, runs: int = 200, seconds: float = 0.4, rounds: int = 3) -> list[Figure]:
    """W4: SIGKILL of a host half-way; the ideal is no kill at all."""
    over, moved = [], 0
    for _ in range(rounds):
        async with bench.hosts(slots_per_host=runs) as client:
            await client.submit(jobs(20, "five-waits", 0.01), batch="warm")
            await ended(client, "warm")
            started = now()
            await client.submit(jobs(runs, "five-waits", seconds), batch="w4")
            watching = asyncio.create_task(ended(client, "w4"))
            await asyncio.sleep(seconds * STEPS / 2 - (now() - started))
            (await busiest_host(client)).kill()
            status = await watching
            over.append(now() - started - seconds * STEPS)
            assert status.by_state == {"succeeded": runs}, status
            moved += status.migrated_runs
    assert moved, "the killed hosts had no runs: nothing was measured"
    return [
        at_most("W4 over the ideal after SIGKILL of a host, median", statistics.median(over), "s", 0.6, COMMAND),
        beside("W4 worst", max(over), "s", COMMAND),
        beside("W4 runs that moved, a kill", moved / rounds, "runs", COMMAND),
    ]


async def submission(bench: Bench, count: int = 100_000) -> list[Figure]:
    """Submitting, and the status of a large batch, with nobody running anything."""
    settings = bench.settings()
    async with Client(settings=settings) as client:
        await client.store.set_fields(client.store.keys.catalog, load_app("benchmarks.agents").catalog())
        batch = jobs(count, "five-steps", PAYLOAD)
        started = now()
        await client.submit(batch, batch="large")
        took = now() - started
        assert (await client.status("large")).total == count
        asked = []
        for _ in range(50):
            begun = now()
            await client.status("large")
            asked.append((now() - begun) * 1000)
    return [
        at_least(f"submitting {count:,} jobs of 1 KiB", count / took, "jobs/s", 20_000, COMMAND),
        at_most(f"status of a batch of {count:,}, slowest of 50", max(asked), "ms", 50, COMMAND),
    ]


class _Nothing:
    """An async actor that does nothing: what Ray itself costs for one."""

    async def pid(self) -> int:
        """Its process."""
        return os.getpid()


async def idle(bench: Bench, seconds: float = 15.0) -> list[Figure]:
    """What hosts that have nothing to do use, and the store for them, beside as many actors that are empty."""
    remote: Any = ray.remote(_Nothing)
    async with bench.hosts(slots_per_host=100) as client:
        processes = await host_processes(client)
        empty = [remote.options(num_cpus=0).remote() for _ in processes]
        bare = [psutil.Process(pid) for pid in await asyncio.gather(*(actor.pid.remote() for actor in empty))]
        store = [psutil.Process(bench.store_pid)]
        await asyncio.sleep(2)
        before = [cpu_seconds(each) for each in (processes, store, bare)]
        await asyncio.sleep(seconds)
        after = [cpu_seconds(each) for each in (processes, store, bare)]
        hosts, stored, nothing = ((end - start) / seconds * 100 for start, end in zip(before, after, strict=True))
        for actor in empty:
            ray.kill(actor)
    count = len(processes)
    unit = "% of a core"
    return [
        at_most(
            f"idle: {count} hosts and the store, over as many empty Ray actors",
            hosts + stored - nothing,
            unit,
            2,
            COMMAND,
        ),
        beside(f"idle: {count} hosts and the store, Ray's own threads included", hosts + stored, unit, COMMAND),
        beside(f"idle: {count} empty Ray actors", nothing, unit, COMMAND),
    ]
