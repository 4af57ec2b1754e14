"""The figures of admission, simulated: each part runs its plans through the arms and says what holds."""

import gc
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from benchmarks.figures import Figure, at_least, at_most, beside
from benchmarks.queue_simulation.analysis import (
    fairness,
    goodput,
    inversions,
    peak_to_mean,
    percentile,
    recovery_s,
    success,
    worth,
)
from benchmarks.queue_simulation.arms.arm import Arm
from benchmarks.queue_simulation.arms.dagor import Dagor
from benchmarks.queue_simulation.arms.penstock import Penstock, PenstockByWholeTime
from benchmarks.queue_simulation.arms.queues import CodelLifo, Fifo, FifoCancelling, Heap, Ideal, TailDrop
from benchmarks.queue_simulation.plan import DEPENDENCY, MIX, Agent, Clients, Plan, Strike, Tenant, steady
from benchmarks.queue_simulation.record import Record
from benchmarks.queue_simulation.world import World

Maker = Callable[[World], Arm]
LOADS: Final = {2: 90.0, 5: 90.0, 10: 60.0, 20: 30.0}
"""So many times the capacity, and how many seconds are measured."""
OTHERS: Final[tuple[tuple[str, Maker], ...]] = (
    (Fifo.name, Fifo),
    (FifoCancelling.name, FifoCancelling),
    (TailDrop.name, TailDrop),
    (Heap.name, Heap),
    (CodelLifo.name, CodelLifo),
    (Dagor.name, Dagor),
)
ARMS: Final = ((Penstock.name, Penstock), *OTHERS)
STRIKE_AT_MS: Final = 120_000.0
AFTER_MS: Final = 120_000.0
STRIKES: Final = {
    "capacity -90 % for 5 min": Strike("drain", STRIKE_AT_MS, 300_000, 27),
    "dependency down for 2 min": Strike("dependency", STRIKE_AT_MS, 120_000),
    "store paused for 30 s": Strike("store", STRIKE_AT_MS, 30_000),
    "a node with 3 of 30 hosts killed, back after 15 s": Strike("kill", STRIKE_AT_MS, 15_000, 3),
}
LONG: Final = tuple(
    Agent(name, share, mean_ms, 1.5, dependency)
    for name, share, mean_ms, dependency in (
        ("chat", 0.5, 16_000.0, ""), ("research", 0.2, 60_000.0, ""), ("clerk", 0.3, 30_000.0, DEPENDENCY),
    )
)  # fmt: skip
LONG_DEADLINES_MS: Final = (120_000, 180_000, 240_000, 300_000, 300_000)


def simulated(plan: Plan, make: Maker, what: str) -> Record:
    """One simulation; says on stderr that it goes on."""
    began = time.monotonic()
    # Hundreds of thousands of runs in no cycle: looking for cycles would take half of the time.
    gc.collect()
    gc.disable()
    try:
        record = World(plan, make).run()
    finally:
        gc.enable()
    print(f"  {what}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
    return record


def overload(command: str) -> list[Figure]:
    """1 to 4: the same work for all arms, at so many times the capacity."""
    figures: list[Figure] = []
    for load in LOADS:
        plan = steady(load, LOADS[load])
        ceiling = simulated(plan, Ideal, f"{load}x, ceiling")
        mine = simulated(plan, Penstock, f"{load}x, penstock")
        name, part = f"1 goodput at {load}x", goodput(mine) / goodput(ceiling) * 100
        of = f"{name}: penstock, of the zero-wait ceiling"
        figures.append(beside(f"{name}: zero-wait ceiling, of all slots", goodput(ceiling) * 100, "%", command))
        bound = {2: 98, 10: 99}.get(load)
        figures.append(at_least(of, part, "%", bound, command) if bound else beside(of, part, "%", command))
        values = [beside(f"1 value at {load}x: penstock", worth(mine) / worth(ceiling) * 100, "%", command)]
        for other, make in OTHERS:
            record = simulated(plan, make, f"{load}x, {other}")
            figures.append(beside(f"{name}: {other}", goodput(record) / goodput(ceiling) * 100, "%", command))
            values.append(beside(f"1 value at {load}x: {other}", worth(record) / worth(ceiling) * 100, "%", command))
        figures += values + _of_penstock(mine, load, command)
    return figures


def _of_penstock(mine: Record, load: int, command: str) -> list[Figure]:
    """2 to 4 at one load."""
    saved, wait_s = success(mine, 0) * 100, percentile(mine.waits_ms[0], 0.99) / 1000
    said, waited = f"2 critical work at {load}x: succeeded", f"2 critical work at {load}x: wait, p99"
    any_time, in_time = inversions(mine)
    shed_s = percentile(mine.shed_after_ms, 0.99) / 1000
    figures = [
        at_most(f"3 inversions at {load}x, of shed runs", any_time * 100, "%", 0.5, command),
        beside(f"3 the same at {load}x where it could have had the place", in_time * 100, "%", command),
        at_most(f"4 from arrival to eviction at {load}x, p99", shed_s, "s", 3, command),
    ]
    if load != 10:
        return [beside(said, saved, "%", command), beside(waited, wait_s, "s", command), *figures]
    return [at_least(said, saved, "%", 99.9, command), at_most(waited, wait_s, "s", 2, command), *figures]


def long_plan(load: float, max_wait_ms: int, seed: int = 1) -> Plan:
    """Runs of half a minute on the same two hundred slots: what waits is served seven times a second."""
    classes = tuple(
        replace(each, max_wait_ms=max_wait_ms, deadline_ms=deadline_ms)
        for each, deadline_ms in zip(MIX, LONG_DEADLINES_MS, strict=True)
    )
    return Plan(
        ((0.0, load),), until_ms=1_500_000, from_ms=300_000, agents=LONG, classes=classes, step_ms=1000, seed=seed
    )


def long_runs(command: str) -> list[Figure]:
    """1 to 3 with runs that are long beside their waits: the hard case for predictions."""
    figures: list[Figure] = []
    for load in (2, 10):
        for max_wait_ms in (5000, 2000):
            plan = long_plan(load, max_wait_ms)
            title = f"runs of 30 s, max_wait {max_wait_ms // 1000} s, {load}x"
            ceiling = simulated(plan, Ideal, f"{title}, ceiling")
            mine = simulated(plan, Penstock, title)
            any_time, in_time = inversions(mine)
            part = goodput(mine) / goodput(ceiling) * 100
            figures += [
                beside(f"1 {title}: goodput, of the ceiling", part, "%", command),
                beside(f"2 {title}: critical work succeeded", success(mine, 0) * 100, "%", command),
                at_most(f"3 {title}: inversions", any_time * 100, "%", 0.5, command),
                beside(f"3 {title}: where it could have had the place", in_time * 100, "%", command),
            ]
    return figures


def stricken(strike: Strike | None, load: float = 0.95) -> Plan:
    """A deployment of thirty hosts, nearly full, that is struck; without a strike it goes on as long as any."""
    over_ms = strike.over_ms if strike else max(each.over_ms for each in STRIKES.values())
    return Plan(((0.0, load),), until_ms=over_ms + AFTER_MS, hosts=30, slots=15, strikes=(strike,) if strike else ())


def metastability(command: str) -> list[Figure]:
    """5: what remains of a strike when it is over."""
    figures: list[Figure] = []
    bound_s = 2 * stricken(None).mean_ms / 1000
    for load in (0.95, 0.9, 1.0):
        arms: Sequence[tuple[str, Maker]] = ARMS if load == 0.95 else ((Penstock.name, Penstock),)
        for name, make in arms:
            compared = name in (Penstock.name, Fifo.name, Heap.name)
            twin = simulated(stricken(None, load), make, f"{name} at {load:g}, not struck")
            for what, strike in STRIKES.items():
                if compared or strike.kind == "drain":
                    mine = simulated(stricken(strike, load), make, f"{name} at {load:g}, {what}")
                    figures += _struck(name, what, load, strike, mine, twin, bound_s, command)
    strike = STRIKES["dependency down for 2 min"]
    twin, mine = (
        simulated(plan, PenstockByWholeTime, "service in a slot only") for plan in (stricken(None), stricken(strike))
    )
    took_s = min(recovery_s(mine, twin, mine.woken_ms), 9999.0)
    title = f"5 dependency down for 2 min, at 0.95: {PenstockByWholeTime.name}, it recovers after"
    figures.append(beside(title, took_s, "s", command))
    return sorted(figures, key=lambda each: (" at 0.95" not in each.name, each.name.split(":")[0]))


def _struck(
    name: str, what: str, load: float, strike: Strike, mine: Record, twin: Record, bound_s: float, command: str
) -> list[Figure]:
    over_ms, lag = strike.over_ms, ""
    if strike.kind == "dependency" and name == Penstock.name:
        # It is over when calls may be made again: the breaker has to find that out.
        lag = f" and {(mine.woken_ms - over_ms) / 1000:.1f} s until the breaker closes"
        over_ms = mine.woken_ms
    took_s = recovery_s(mine, twin, over_ms)
    title = f"5 {what}{lag}, at {load:g}: {name} recovers after"
    if name == Penstock.name:
        return [at_most(title, min(took_s, 9999.0), "s", round(bound_s, 2), command)]
    if took_s == math.inf:
        last = int(mine.plan.until_ms / mine.plan.bin_ms)
        left = sum(mine.useful.slots[last - 60 : last]) / sum(twin.useful.slots[last - 60 : last]) * 100
        return [beside(f"5 {what}, at {load:g}: {name} has not recovered after 2 min, goodput", left, "%", command)]
    return [beside(title, took_s, "s", command)]


def fair(command: str) -> list[Figure]:
    """6: twenty tenants of one class, whose demands are Zipf's and whose weights are 1 and 2."""
    tenants = tuple(Tenant(f"t{number}", 1 / (number + 1), 1.0 + number % 2) for number in range(20))
    classes = tuple(replace(each, share=float(rank == 2)) for rank, each in enumerate(MIX))
    figures: list[Figure] = []
    for load in (2, 5, 10):
        plan = replace(steady(load, 120.0), tenants=tenants, classes=classes)
        mine, fifo = (simulated(plan, make, f"fairness at {load}x") for make in (Penstock, TailDrop))
        title = f"6 fairness at {load}x: Jain's index of max-min shares"
        figures.append(at_least(f"{title}, penstock", fairness(mine), "", 0.98, command))
        figures.append(beside(f"{title}, tail drop", fairness(fifo), "", command))
    return figures


def burst_plan(only: int | None = None) -> Plan:
    """Seven tenths of the capacity, and once a hundred seconds of work within ten seconds; everybody obeys.

    Args:
        only: the rank of the one class that all jobs have; None for all classes.
    """
    classes = tuple(
        replace(each, deadline_ms=900_000.0, share=each.share if only is None else float(rank == only))
        for rank, each in enumerate(MIX)
    )
    load = ((0.0, 0.7), (60_000.0, 10.7), (70_000.0, 0.7))
    return Plan(load, until_ms=600_000, from_ms=30_000, classes=classes, clients=Clients(obey=1.0, attempts=10))


def retry_after(command: str) -> list[Figure]:
    """7: after a burst, who comes back when told to? With one class, and with all of them."""
    figures: list[Figure] = []
    for title, only in (("one class", 2), ("all classes", None)):
        mine = simulated(burst_plan(only), Penstock, f"burst, {title}")
        bins = [0] * len(mine.came_by_bin)
        for came_ms, _ in mine.told:
            bins[int(came_ms / mine.plan.bin_ms)] += 1
        told = [at for at, count in enumerate(bins) if count]
        last = told[-1] + 1 if told else 1
        admitted = sum(admitted for _, admitted in mine.told) / max(1, len(mine.told)) * 100
        after = int(75_000 / mine.plan.bin_ms)
        late = [admitted for came_ms, admitted in mine.told if came_ms >= 75_000]
        peak = peak_to_mean(mine.came_by_bin[after : max(last, after + 10)], 10)
        start = f"7 Retry-After, {title}:"
        figures += [
            beside(f"{start} came back on time", len(mine.told), "runs", command),
            beside(f"{start} were told not to come by themselves", mine.gave_up, "runs", command),
            at_least(f"{start} of those who come back on time, admitted", admitted, "%", 90, command),
            beside(f"{start} the same, after the burst", sum(late) / max(1, len(late)) * 100, "%", command),
            at_most(f"{start} all arrivals after the burst, busiest 5 s over the mean", peak, "", 2, command),
            beside(f"{start} the last one comes", (last * mine.plan.bin_ms - 70_000) / 1000, "s after it", command),
        ]
    return figures


PARTS: Final[dict[str, Callable[[str], list[Figure]]]] = {
    "overload": overload,
    "long-runs": long_runs,
    "metastability": metastability,
    "fairness": fair,
    "retry-after": retry_after,
}
