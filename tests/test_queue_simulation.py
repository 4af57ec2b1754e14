"""Overload in virtual time: nothing is lost, the same seed shows the same, and the law does what the others do not."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.queue_simulation.analysis import (
    fairness,
    goodput,
    inversions,
    jain,
    max_min_shares,
    recovery_s,
    success,
    worth,
)
from benchmarks.queue_simulation.arms.penstock import Penstock
from benchmarks.queue_simulation.arms.queues import Fifo, Ideal, TailDrop
from benchmarks.queue_simulation.figures import ARMS, Maker, burst_plan
from benchmarks.queue_simulation.plan import MIX, Clients, Plan, Strike, Tenant
from benchmarks.queue_simulation.record import Record, Timeline
from benchmarks.queue_simulation.scale import one
from benchmarks.queue_simulation.world import World

STRIKES = (
    Strike("dependency", 4000, 5000),
    Strike("kill", 8000, 4000, 2),
    Strike("store", 14_000, 3000),
    Strike("drain", 18_000, 4000, 4),
    Strike("slow", 23_000, 2000, 5),
)


def short(load: float, **said: object) -> Plan:
    return Plan(((0.0, load),), until_ms=30_000, from_ms=10_000, hosts=5, slots=10, **said)  # type: ignore[arg-type]


def run(plan: Plan, make: Maker = Penstock) -> Record:
    return World(plan, make).run()


def sums_up(record: Record) -> None:
    assert record.submitted == record.taken + record.refused + record.failed_to_submit
    ended = record.in_time + record.too_late + record.dropped + record.evicted
    assert record.taken == ended + record.queued_at_end + record.running_at_end + record.parked_at_end
    assert sum(record.reasons.values()) == record.refused + record.evicted


@pytest.mark.parametrize(("name", "make"), ARMS)
def test_every_run_ends_or_is_shed_or_is_still_there_whatever_strikes(name: str, make: Maker) -> None:
    record = run(short(2.5, strikes=STRIKES), make)
    sums_up(record)
    assert record.submitted > 1500
    assert record.failed_to_submit > 50
    assert record.in_time > 100
    assert max(record.useful.slots) <= 50.0001
    assert min(record.useful.slots) >= -0.0001


def test_whoever_is_shed_is_told_when_to_come_back_but_those_who_have_waited_their_time() -> None:
    record = run(short(4))
    assert record.refused > 1000
    assert record.evicted > 100
    assert record.without_retry_after == record.reasons["max_wait"]
    assert set(record.reasons) <= {"queue", "max_wait", "deadline"}


def test_the_same_seed_shows_the_same_and_another_one_something_else() -> None:
    first, second = (run(short(3, strikes=STRIKES)) for _ in range(2))
    other = run(short(3, strikes=STRIKES, seed=2))
    assert first.starts == second.starts
    assert first.sheds == second.sheds
    assert first.useful_ms == second.useful_ms
    assert first.starts != other.starts


def test_all_arms_are_offered_the_same_first_attempts() -> None:
    offered = {name: run(short(2), make).offered_ms for name, make in (("a", Penstock), ("b", Fifo), ("c", Ideal))}
    assert offered["a"] == offered["b"] == offered["c"]


def test_at_five_times_the_load_nearly_all_of_what_can_be_done_is_done_and_by_value() -> None:
    plan = replace(short(5), until_ms=50_000)
    ceiling, mine, fifo = (run(plan, make) for make in (Ideal, Penstock, Fifo))
    assert goodput(mine) >= 0.97 * goodput(ceiling)
    assert worth(mine) >= 0.97 * worth(ceiling)
    assert goodput(fifo) < 0.5 * goodput(mine)
    assert success(mine, 0) >= 0.995
    assert inversions(mine)[0] <= 0.01
    assert inversions(run(plan, TailDrop))[0] > 0.9


def test_fifo_stays_down_after_a_strike_and_the_law_comes_back() -> None:
    plan = Plan(((0.0, 0.9),), until_ms=110_000, hosts=10, slots=20)
    strike = Strike("drain", 30_000, 40_000, 9)
    took_s = {}
    for make in (Penstock, Fifo):
        mine, twin = run(replace(plan, strikes=(strike,)), make), run(plan, make)
        took_s[make.name] = recovery_s(mine, twin, strike.over_ms)
    assert took_s["penstock"] <= 5
    assert took_s["FIFO unbounded"] == math.inf


def test_tenants_get_their_max_min_shares() -> None:
    tenants = tuple(Tenant(f"t{number}", 1 / (number + 1), 1.0 + number % 2) for number in range(10))
    classes = tuple(replace(each, share=float(rank == 2)) for rank, each in enumerate(MIX))
    plan = replace(short(4, tenants=tenants, classes=classes), until_ms=70_000)
    mine, other = fairness(run(plan)), fairness(run(plan, TailDrop))
    assert mine >= 0.96
    assert mine > other + 0.1


def test_after_a_burst_those_who_come_back_on_time_are_let_in() -> None:
    load = ((0.0, 0.5), (10_000.0, 10.0), (13_000.0, 0.5))
    mine = run(replace(burst_plan(2), load=load, until_ms=90_000, from_ms=5000, hosts=5))
    sums_up(mine)
    assert len(mine.told) > 300
    late = [admitted for came_ms, admitted in mine.told if came_ms >= 15_000]
    assert sum(late) >= 0.8 * len(late)


def test_clients_who_obey_are_not_the_load() -> None:
    deaf, obedient = (run(short(3, clients=Clients(obey=obey))) for obey in (0.0, 1.0))
    assert deaf.submitted > 1.5 * obedient.submitted


def test_shares_inversions_and_stretches_are_what_they_should_be() -> None:
    assert max_min_shares([1, 10, 10], [1, 1, 1], 9) == pytest.approx([1, 4, 4])
    assert max_min_shares([10, 10], [1, 3], 8) == pytest.approx([2, 6])
    assert max_min_shares([1, 1], [1, 1], 8) == pytest.approx([1, 1])
    assert jain([2, 2, 2]) == pytest.approx(1)
    assert jain([1, 0, 0, 0]) == pytest.approx(0.25)
    record = Record(short(1))
    record.sheds = [(20_000.0, 20_000.0, 1, 2000, "queue"), (20_000.0, 20_000.0, 4, 2000, "queue")]
    assert inversions(record) == (0, 0)
    record.starts = [(19_999.0, 19_000.0, 2), (20_500.0, 20_000.0, 0)]
    assert inversions(record) == (0, 0)
    record.starts.append((25_000.0, 24_000.0, 2))
    assert inversions(record) == (1, 0)
    record.starts.insert(2, (21_000.0, 15_000.0, 3))
    assert inversions(record) == (1, 1)
    line = Timeline(4, 10.0)
    line.add(5.0, 25.0)
    line.add(12.0, 14.0)
    assert line.slots == pytest.approx([0.5, 1.2, 0.5, 0])


def test_a_small_size_of_the_large_one_adds_up() -> None:
    said = json.loads(json.dumps(one(20_000, 500)))
    assert said["served"] == 10_000
    assert all(0 < each < 1_000_000 for each in said["us"].values())


def test_pictures_are_drawn(tmp_path: Path) -> None:
    from benchmarks.queue_simulation.pictures import draw

    path = tmp_path / "picture.png"
    draw(path, "short", short(2), "all of it", 0, 30)
    assert path.read_bytes().startswith(b"\x89PNG")
