"""Offered far more than hosts can do: goodput, critical work, fairness, inversions, and how refused ones fare."""

import statistics
from collections.abc import Sequence
from typing import Final

from admission.values import CLASSES
from benchmarks.admission_figures.crowd import Crowd, Offered, Stream, served_s
from benchmarks.bench import Bench, deployed
from benchmarks.figures import Figure, at_least, at_most, beside
from penstock.client import Client

APP: Final = "benchmarks.admission_agents"
COMMAND: Final = "make figures-admission"
HOSTS: Final = 2
SLOTS: Final = 20
MEAN_S: Final = 0.5
CAPACITY: Final = HOSTS * SLOTS / MEAN_S
MAX_WAIT_S: Final = 5.0
DEADLINE_S: Final = 15.0
WARM_S: Final = 6.0
MEASURED_S: Final = 34.0
INVERTED_WITHIN_S: Final = 10.0
FACTORS: Final = (2, 5, 10, 20)
WEIGHTS: Final = {"one": 1, "other": 1, "twice": 2, "four": 4}
RULES: Final = "tenants: {one: {weight: 1}, other: {weight: 1}, twice: {weight: 2}, four: {weight: 4}}\n"


def mix(factor: float) -> list[Stream]:
    """So many times the capacity: critical work less than half of it, the rest alike among the other classes."""
    critical = 0.4
    others = (factor - critical) / (len(CLASSES) - 1)
    return [Stream(name, CAPACITY * (others if rank else critical)) for rank, name in enumerate(CLASSES)]


async def figures(bench: Bench, factors: Sequence[int] = FACTORS) -> list[Figure]:
    """Figures 1 to 3 at small size."""
    found: list[Figure] = []
    async with deployed(bench.settings(slots_per_host=SLOTS), APP, HOSTS) as client:
        ceiling = await _ceiling(client)
        found.append(beside("overload: slots in use when there is always enough to do", ceiling, "of all", COMMAND))
        for factor in factors:
            crowd = Crowd(client, f"x{factor}", MEAN_S, factor, max_wait=MAX_WAIT_S, deadline=DEADLINE_S)
            begin_ms = await client.store.server_ms()
            await crowd.offer(mix(factor), WARM_S + MEASURED_S)
            runs = await crowd.ended()
            found += _one(runs, crowd, factor, begin_ms + WARM_S * 1000, ceiling)
    return found


async def _ceiling(client: Client) -> float:
    """The part of all slots that is in use while hosts always have enough to do."""
    crowd = Crowd(client, "ceiling", MEAN_S, 0)
    begin_ms = await client.store.server_ms()
    await crowd.offer([Stream("normal", 1.5 * CAPACITY)], WARM_S + MEASURED_S)
    runs = await crowd.ended()
    return _part(runs, begin_ms + WARM_S * 1000)


def _part(runs: Sequence[Offered], from_ms: float) -> float:
    return served_s(runs, from_ms, from_ms + MEASURED_S * 1000) / (HOSTS * SLOTS * MEASURED_S)


def _one(runs: Sequence[Offered], crowd: Crowd, factor: int, from_ms: float, ceiling: float) -> list[Figure]:
    name = f"overload {factor}x"
    target = {2: 0.98}.get(factor, 0.99)
    goodput = _part(runs, from_ms) / ceiling
    critical = [each for each in runs if each.value == "critical" and each.seconds < DEADLINE_S]
    succeeded = [each.result for each in critical if each.result is not None and each.result.succeeded]
    waits = sorted(each.waited_s for each in succeeded if each.waited_s is not None)
    refused = sum(bool(each.refusals) for each in runs)
    shed = sum(each.result is not None and each.result.state == "shed" for each in runs)
    door = sorted(crowd.door_s)
    return [
        beside(f"{name}: offered", len(runs) / (WARM_S + MEASURED_S), "runs/s", COMMAND),
        at_least(f"{name}: goodput over the ceiling", goodput, "ratio", target, COMMAND),
        at_least(f"{name}: critical runs that succeeded", len(succeeded) / len(critical), "ratio", 0.999, COMMAND),
        at_most(f"{name}: critical runs' wait, 99th percentile", waits[int(0.99 * len(waits))], "s", 2, COMMAND),
        at_most(f"{name}: shed though a less valuable one was started", inversions(runs), "ratio", 0.005, COMMAND),
        beside(f"{name}: refused at the door", refused / len(runs), "ratio", COMMAND),
        beside(f"{name}: shed later", shed / len(runs), "ratio", COMMAND),
        beside(f"{name}: a door's answer, median", statistics.median(door) * 1000, "ms", COMMAND),
    ]  # fmt: skip


def inversions(runs: Sequence[Offered]) -> float:
    """Which part of what was refused or shed was so though a run of a less valuable class, that came within ten
    seconds of it, was started. Of those that came while the load lasted, ten seconds from both its ends: before the
    queue is full, and when nothing comes any more, all classes are started.
    """
    ranks = {name: rank for rank, name in enumerate(CLASSES)}
    started: dict[int, list[float]] = {rank: [] for rank in range(len(CLASSES))}
    begin_s, end_s = WARM_S + INVERTED_WITHIN_S, WARM_S + MEASURED_S - INVERTED_WITHIN_S
    for each in runs:
        if each.result is not None and each.result.started_ms:
            started[ranks[each.value]].append(each.at_s)
    late = [each for each in runs if begin_s <= each.at_s <= end_s]
    lost = [each for each in late if not each.admitted or (each.result is not None and each.result.state == "shed")]
    worse = 0
    for each in lost:
        below = (at_s for rank in range(ranks[each.value] + 1, len(CLASSES)) for at_s in started[rank])
        worse += any(abs(at_s - each.at_s) <= INVERTED_WITHIN_S for at_s in below)
    return worse / len(lost) if lost else 0.0


async def fairness(bench: Bench) -> list[Figure]:
    """Figure 6 at small size: four tenants of different weights in one class, each of which wants all there is."""
    found: list[Figure] = []
    for factor in (2, 10):
        settings = bench.settings(slots_per_host=SLOTS, admission_yaml=RULES)
        async with deployed(settings, APP, HOSTS) as client:
            await client.set_admission(RULES, place="the figures' rules")
            crowd = Crowd(client, "fair", MEAN_S, factor, max_wait=MAX_WAIT_S, deadline=DEADLINE_S)
            begin_ms = await client.store.server_ms()
            streams = [Stream("normal", factor * CAPACITY / len(WEIGHTS), tenant) for tenant in WEIGHTS]
            await crowd.offer(streams, WARM_S + MEASURED_S)
            runs = await crowd.ended()
        shares = _max_min(factor)
        from_ms = begin_ms + WARM_S * 1000
        served = {
            tenant: served_s((each for each in runs if each.tenant == tenant), from_ms, from_ms + MEASURED_S * 1000)
            for tenant in WEIGHTS
        }
        total = sum(served.values())
        got = [served[tenant] / total / shares[tenant] for tenant in WEIGHTS]
        jain = sum(got) ** 2 / (len(got) * sum(each * each for each in got))
        found.append(at_least(f"fairness {factor}x: Jain's index of max-min shares", jain, "index", 0.98, COMMAND))
    return found


def _max_min(factor: float) -> dict[str, float]:
    """Each tenant's part by weight, but no more than it wants; what is left goes to the others (max-min)."""
    wants, left = dict.fromkeys(WEIGHTS, factor / len(WEIGHTS)), 1.0
    given: dict[str, float] = {}
    while wants:
        weight = sum(WEIGHTS[tenant] for tenant in wants)
        content = {tenant: want for tenant, want in wants.items() if want <= left * WEIGHTS[tenant] / weight}
        if not content:
            given |= {tenant: left * WEIGHTS[tenant] / weight for tenant in wants}
            break
        given |= content
        left -= sum(content.values())
        wants = {tenant: want for tenant, want in wants.items() if tenant not in content}
    return given


async def returns(bench: Bench, count: int = 2000) -> list[Figure]:
    """Figure 7 at small size: a burst of which most are refused, and come back when they were told to."""
    async with deployed(bench.settings(slots_per_host=SLOTS), APP, HOSTS) as client:
        learned = Crowd(client, "learned", MEAN_S, 1)
        await learned.offer([Stream("normal", CAPACITY)], WARM_S)
        await learned.ended()
        crowd = Crowd(client, "burst", MEAN_S, 7, comes_back=True, max_wait=MAX_WAIT_S)
        await crowd.burst(Stream("normal", 0.0), count)
        runs = await crowd.ended()
    back = [each for each in runs if each.back_at_s]
    times = sorted(at_s for each in back for at_s in each.back_at_s)
    at_first = sum(len(each.refusals) == 1 and each.admitted for each in back)
    admitted = sum(each.admitted for each in runs)
    seconds = [0] * (int(times[-1]) + 1)
    for at_s in times:
        seconds[int(at_s)] += 1
    busy = seconds[int(times[0]) :]
    return [
        beside("returns: refused of a burst", len(back), "runs", COMMAND),
        at_least("returns: admitted when they came back first", at_first / len(back), "ratio", 0.9, COMMAND),
        at_least("returns: admitted in the end", admitted / len(runs), "ratio", 1.0, COMMAND),
        at_most("returns: busiest second over the mean", max(busy) / statistics.mean(busy), "ratio", 2, COMMAND),
        beside("returns: until the last one had come", times[-1], "s", COMMAND),
    ]  # fmt: skip
