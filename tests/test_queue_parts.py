"""The parts of the queue: runs in order, fair shares, the calendar, the drain, estimates."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admission.drain import BURST, Drain, Loads
from admission.fair_share import FairShare, charge_of
from admission.ordered_runs import OrderedRuns, Queued
from admission.retry_calendar import LONGEST_MS, NEVER, NO_ROOM_MS, SHORTEST_MS, RetryCalendar
from admission.service_estimate import HOUR_MS, HourlyCost, ServiceEstimate
from admission.values import LATEST

# ---------------------------------------------------------------------------------------------------------- in order


@given(
    st.lists(st.tuples(st.sampled_from(["add", "add", "add", "first", "remove"]), st.integers(0, 30)), max_size=80),
    st.integers(0, 4000),
)
def test_ordered_runs_are_as_a_sorted_list(actions: list[tuple[str, int]], bulk: int) -> None:
    ordered, model = OrderedRuns(), list[Queued]()
    for number in range(bulk):
        run = Queued(number * 7919 % 1000, f"bulk{number}", "t", "a", 1)
        ordered.add(run)
        model.append(run)
    model.sort()
    for number, (action, score) in enumerate(actions):
        run = Queued(score, f"{number}", "t", "a", 1)
        if action == "add":
            ordered.add(run)
            model.append(run)
            model.sort()
        elif action == "first" and model:
            assert ordered.pop_first() == model.pop(0)
        elif action == "remove":
            found = model[score % len(model)] if model else run
            assert ordered.remove(found) == (found in model)
            if found in model:
                model.remove(found)
        assert not ordered.has(run) or run in model
        assert len(ordered) == len(model)
        assert ordered.first() == (model[0] if model else None)
        assert ordered.before(score) == sum(each.score < score for each in model)
        assert ordered.first_from(score) == next((each for each in model if each.score >= score), None)
    assert list(ordered) == model
    assert list(ordered.from_bottom()) == model[::-1]


# -------------------------------------------------------------------------------------------------------- fair share


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 10_000), st.integers(0, 20_000)), max_size=60),
    st.data(),
)
def test_what_was_charged_less_what_was_given_back_is_what_was_served(
    runs: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    fair = FairShare()
    served = 0
    for tenant, cost, real in runs:
        start = fair.charge(7, tenant, cost, 2.0)
        fate = data.draw(st.sampled_from(["served", "served", "left"]))
        if fate == "left":
            fair.give_back(7, tenant, cost, 2.0)
        else:
            fair.serve(7, start)
            fair.settle(7, tenant, cost, real, 2.0)
            served += real
        fair.forget(7, empty=data.draw(st.booleans()))
    assert fair.charged_ms - fair.returned_ms == served


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=30), st.floats(0.01, 100))
def test_a_tenant_that_took_everything_back_is_due_as_before(costs: list[int], weight: float) -> None:
    fair = FairShare()
    fair.serve(3, 17)
    for cost in costs:
        fair.charge(3, "a", cost, weight)
    assert fair.due(3, "a") == 17 + sum(charge_of(cost, weight) for cost in costs)
    for cost in costs:
        fair.give_back(3, "a", cost, weight)
    assert fair.due(3, "a") == 17
    assert fair.levels == [3]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 1000)), min_size=1, max_size=40))
def test_forgetting_is_not_to_be_noticed(steps: list[tuple[str, int]]) -> None:
    one, other = FairShare(), FairShare()
    for tenant, cost in steps:
        assert one.charge(0, tenant, cost, 1.0) == other.charge(0, tenant, cost, 1.0)
        if cost % 3 == 0:
            for each in (one, other):
                each.serve(0, one.due(0, tenant))
        if cost % 2 == 0:
            one.settle(0, tenant, cost, cost * 2, 1.0)
            other.settle(0, tenant, cost, cost * 2, 1.0)
        one.forget(0, empty=False)
        assert all(one.due(0, each) == other.due(0, each) for each in "ab")


def test_tags_stay_below_the_end_of_their_level_and_begin_anew_when_it_is_empty() -> None:
    fair = FairShare()
    for _ in range(3):
        start = fair.charge(1, "a", LATEST // 2, 0.01)
        assert 0 <= start <= LATEST
        fair.serve(1, start)
    assert fair.due(1, "a") == LATEST
    fair.forget(1, empty=True)
    assert fair.due(1, "a") == 0


# ---------------------------------------------------------------------------------------------------------- calendar


@given(
    st.lists(st.tuples(st.integers(0, 500), st.floats(0, 60_000), st.integers(1, 30_000)), min_size=1, max_size=60),
    st.floats(0.01, 50),
    st.integers(1, 8),
)
def test_slots_never_collide_beyond_the_room(asked: list[tuple[int, float, int]], room: float, partitions: int) -> None:
    calendar = RetryCalendar(0.25)
    now, slots = 1_000_000, list[tuple[float, float]]()
    for later_ms, wait_ms, cost_ms in asked:
        now += later_ms
        spacing = cost_ms * partitions / room
        back = calendar.book(now, 2, wait_ms, [spacing] * 5)
        if back.by_itself:
            assert back.after_ms >= max(SHORTEST_MS, math.floor(wait_ms))
            slots.append((now + back.after_ms, cost_ms))
        else:
            assert back.after_ms == LONGEST_MS
    # In any stretch between two slots: no more cost than this partition's part of the room serves, after the first.
    for first in range(len(slots)):
        cost = 0.0
        for last in range(first + 1, len(slots)):
            cost += slots[last][1]
            # Times are told in whole milliseconds.
            assert cost <= (slots[last][0] - slots[first][0] + 1) * room / partitions + 1e-6


def test_without_room_nobody_comes_by_itself() -> None:
    calendar = RetryCalendar()
    assert calendar.book(0, 0, 0, [math.inf] * 5) == (NO_ROOM_MS, False)
    assert calendar.book(0, 0, 10.0 * NO_ROOM_MS, [math.inf] * 5) == (10 * NO_ROOM_MS, False)
    assert calendar.cursor_ms(0) == 0


def test_a_slot_after_the_deadline_is_not_booked() -> None:
    calendar = RetryCalendar()
    assert calendar.book(0, 0, 5000, [100] * 5, before_ms=4000) == NEVER
    assert calendar.book(0, 0, 5000, [math.inf] * 5, before_ms=4000) == NEVER
    assert calendar.book(0, 1, 5000, [100] * 5, before_ms=5100) == (5000, True)
    assert calendar.book(0, 0, 5000, [100] * 5) == (5000, True)


def test_a_slot_takes_the_room_of_less_valuable_classes_too() -> None:
    calendar, spacings = RetryCalendar(), [100.0, 200.0, math.inf, 400.0, 400.0]
    assert calendar.book(0, 1, 2000, spacings) == (2000, True)
    assert calendar.book(0, 1, 2000, spacings) == (2200, True)
    # Two of 400 of its room, and its own.
    assert calendar.book(0, 3, 2000, spacings) == (3200, True)
    assert calendar.book(0, 4, 2000, spacings) == (3600, True)
    assert calendar.book(0, 2, 2000, spacings) == (NO_ROOM_MS, False)
    # More valuable ones do not wait for it.
    assert calendar.book(0, 0, 2000, spacings) == (2000, True)


def test_partitions_begin_one_after_the_other() -> None:
    slots = sorted(RetryCalendar(each / 8).book(0, 0, 2000, [800] * 5).after_ms for each in range(8))
    assert slots == [2000 + 100 * each for each in range(8)]


# ------------------------------------------------------------------------------------------------------------- drain


def test_before_any_host_nothing_is_known() -> None:
    drain = Drain()
    drain.observe(0, 0, 0, 100)
    assert drain.rate is None
    assert drain.lost_for_ms(10_000) == 0


def test_the_last_drain_holds_when_all_hosts_are_lost() -> None:
    drain = Drain()
    drain.observe(250, 20, 20, 100)
    assert drain.rate == 20
    drain.observe(500, 0, 0, 100)
    assert drain.rate == 20
    assert drain.lost_for_ms(3500) == 3000
    drain.observe(4000, 10, 0, 100)
    assert drain.rate == pytest.approx(10)
    assert drain.lost_for_ms(4000) == 0


def test_efficiency_is_learned_while_there_is_enough_to_do_and_forgiven_otherwise() -> None:
    drain, now = Drain(), 0
    for _ in range(400):
        now += 250
        drain.observe(now, 100, 40, 1000)
    assert drain.efficiency == pytest.approx(0.4, abs=0.01)
    assert drain.rate == pytest.approx(40, abs=1)
    for _ in range(8):
        now += 250
        drain.observe(now, 100, 40, 10)  # fewer wait than there are free slots: that proves nothing
    assert drain.efficiency > 0.4
    for _ in range(400):
        now += 250
        drain.observe(now, 100, 0, 1000, paused=True)
    assert drain.efficiency == pytest.approx(1.0, abs=0.05)


@given(
    st.lists(st.tuples(st.integers(0, 5000), st.floats(0, 100), st.integers(0, 300), st.integers(0, 9)), max_size=50)
)
def test_the_drain_is_within_its_bounds(steps: list[tuple[int, float, int, int]]) -> None:
    drain, now = Drain(), 0
    for later, slots, busy, queued in steps:
        now += later
        drain.observe(now, slots, busy, queued)
        assert 0.05 <= drain.efficiency <= 1
        if slots:
            assert drain.rate == slots * drain.efficiency
    assert Drain.restore(drain.snapshot()).rate == drain.rate


def test_a_burst_is_no_load_that_goes_on_but_an_overload_is() -> None:
    burst, flood = Loads(), Loads()
    burst.observe([0, 0, 1e9, 0, 0], 10**6, 250, 10.0)
    assert burst.room[2] < 0.1 * 10
    assert burst.pace[2] < 0.06 * 10
    for _ in range(480):
        flood.observe([0, 0, 250 * 40, 0, 0], 10, 250, 10.0)
    assert flood.room[2] > 10
    assert flood.pace[2] == pytest.approx(BURST * 10, rel=0.01)
    assert Loads.restore(flood.snapshot()).room == flood.room


# --------------------------------------------------------------------------------------------------------- estimates


def test_a_mean_begins_with_the_first_run_and_follows_later_ones() -> None:
    estimate = ServiceEstimate()
    assert estimate.cost_ms == 1000
    assert estimate.p90_ms == 0
    estimate.observe(1, 40_000, [0] * 40)
    assert estimate.cost_ms == 40_000
    estimate.observe(3, 0, [0] * 40)
    assert estimate.cost_ms == 10_000
    for _ in range(20):
        estimate.observe(50, 50 * 2000, [0] * 40)
    assert estimate.cost_ms == pytest.approx(2000, rel=0.01)
    assert ServiceEstimate.restore(estimate.snapshot()).cost_ms == estimate.cost_ms


@given(st.lists(st.integers(1, 2**30), min_size=10, max_size=200))
def test_the_p90_is_within_its_bucket(times: list[int]) -> None:
    estimate = ServiceEstimate()
    for each in times:
        service = [0] * 40
        service[each.bit_length() - 1] += 1
        estimate.observe(0, 0, service)
    exact = sorted(times)[math.ceil(0.9 * len(times)) - 1]
    assert exact / 2 <= estimate.p90_ms <= exact * 2 + 1


def test_an_hour_is_used_up_and_comes_back_minute_by_minute() -> None:
    hour = HourlyCost()
    hour.observe(0, 500)
    hour.observe(120_000, 700)
    assert hour.until_ms(1201) == 0
    assert hour.until_ms(1200) == HOUR_MS + 60_000
    assert hour.until_ms(600) == HOUR_MS + 180_000
    again = HourlyCost.restore(hour.snapshot())
    for each in (hour, again):
        each.observe(HOUR_MS + 60_000, 0)
        assert each.used_ms == 700
        assert each.until_ms(700) == HOUR_MS + 180_000
        each.observe(3 * HOUR_MS, 0)
        assert each.used_ms == 0
        assert each.until_ms(1) == 0


def test_a_flood_that_met_its_cap_comes_back_one_after_the_other() -> None:
    calendar = RetryCalendar(0.5)
    slots = [calendar.book_tenant(1_000_000, "flood", 1000, 250.0) for _ in range(400)]
    assert [each.after_ms for each in slots] == [1125 + 250 * number for number in range(400)]
    assert calendar.book_tenant(1_000_000, "other", 1000, 250.0).after_ms == 1125
    assert calendar.book_tenant(1_000_000, "other", 1000, 250.0, before_ms=1_001_200) == NEVER
    calendar.forget(3_000_000)
    assert calendar.book_tenant(3_000_000, "flood", 1000, 250.0).after_ms == 1125
