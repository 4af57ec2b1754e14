"""What refusing costs, and how soon what can no more be started in time is shed."""

import asyncio
import statistics
from typing import Final

from actors.job import Job, new_run
from benchmarks.admission_figures.crowd import AGENT, Crowd, Stream
from benchmarks.admission_figures.overload import APP, CAPACITY, COMMAND, HOSTS, MEAN_S, SLOTS
from benchmarks.bench import Bench, deployed, now
from benchmarks.figures import Figure, at_least, at_most, beside
from cluster.keys import partition_of
from cluster.records import Made, NewRun
from penstock.client import Client

ALONE: Final = 2000
A_CALL: Final = 50
SECONDS: Final = 5.0


def _hopeless(client: Client, batch: str, count: int) -> list[NewRun]:
    jobs = (
        Job(custom_id=f"{batch}-{i}", agent=AGENT, input=1.0, value="best_effort", max_wait=0.1) for i in range(count)
    )
    return [new_run(job, batch, client.store.keys.partitions) for job in jobs]


async def figures(bench: Bench) -> list[Figure]:
    """Figure 4 on a queue of a minute."""
    async with deployed(bench.settings(slots_per_host=SLOTS), APP, HOSTS) as client:
        crowd = Crowd(client, "full", MEAN_S, 4)
        await crowd.burst(Stream("normal", 0.0), round(60 * CAPACITY))
        await asyncio.sleep(1.0)
        took = sorted([await _timed(client, [run]) for run in _hopeless(client, "alone", ALONE)])
        rate, accepted = await _sustained(client)
        await client.cancel("full")
    return [
        at_most("refusal: one at a time, 99th percentile", took[int(0.99 * ALONE)] * 1000, "ms", 10, COMMAND),
        beside("refusal: one at a time, median", statistics.median(took) * 1000, "ms", COMMAND),
        at_least("refusal: sustained", rate, "refusals/s", 10_000, COMMAND),
        at_most("refusal: accepted among them", accepted, "runs", 0, COMMAND),
    ]


async def _timed(client: Client, runs: list[NewRun]) -> float:
    began = now()
    (answer,) = await client.store.submit("alone", partition_of(runs[0].id), runs)
    assert answer.made is Made.REFUSED, answer
    return now() - began


async def _sustained(client: Client) -> tuple[float, int]:
    """Refusals a second, of callers that bring some runs at a time; how many were accepted."""
    made = _hopeless(client, "many", 40 * A_CALL * len(client.store.partitions))
    parts: dict[int, list[NewRun]] = {}
    for run in made:
        parts.setdefault(partition_of(run.id), []).append(run)
    refused = accepted = 0
    began = now()

    async def ask(partition: int, runs: list[NewRun]) -> None:
        nonlocal refused, accepted
        at = 0
        while now() - began < SECONDS:
            some = runs[at : at + A_CALL]
            at = (at + A_CALL) % max(1, len(runs) - A_CALL)
            for answer in await client.store.submit("many", partition, some):
                refused += answer.made is Made.REFUSED
                accepted += answer.made is Made.MADE

    await asyncio.gather(*(ask(partition, runs) for partition, runs in parts.items()))
    return refused / (now() - began), accepted


async def evictions(bench: Bench) -> list[Figure]:
    """From the moment at which better runs make a wait too long, to the moment at which its run is shed."""
    async with deployed(bench.settings(slots_per_host=SLOTS), APP, HOSTS) as client:
        learned = Crowd(client, "learned", MEAN_S, 1)
        await learned.offer([Stream("normal", CAPACITY)], 6.0)
        await learned.ended()
        doomed = Crowd(client, "doomed", MEAN_S, 2, max_wait=20.0)
        await doomed.burst(Stream("best_effort", 0.0), round(15 * CAPACITY))
        await asyncio.sleep(0.5)
        better = Crowd(client, "better", MEAN_S, 3)
        began_ms = await client.store.server_ms()
        await better.burst(Stream("critical", 0.0), round(40 * CAPACITY))
        await client.cancel("better")
        runs = await doomed.ended()
    shed = sorted(
        (each.result.ended_ms - began_ms) / 1000
        for each in runs
        if each.result is not None and each.result.state == "shed" and each.result.ended_ms
    )
    return [
        beside("eviction: shed when forty seconds of better work came", len(shed), "runs", COMMAND),
        at_most("eviction: until the last of them was shed", shed[-1] if shed else float("nan"), "s", 3, COMMAND),
    ]
