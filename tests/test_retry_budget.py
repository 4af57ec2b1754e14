"""The retry budget: never more retries than its law allows, over any stretch of any history."""

from __future__ import annotations

import json
from math import floor
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admission.budget import BudgetLedger, Budgets
from admission.dependency import RetryBudget

policies = st.builds(
    RetryBudget,
    ratio=st.sampled_from([0.0, 0.1, 0.2, 1.0]),
    reserve=st.sampled_from([0.0, 1.0, 2.5, 10.0]),
    per_second=st.sampled_from([0.0, 0.5, 3.0]),
)
steps = st.lists(
    st.tuples(
        st.integers(0, 64 * 12).map(lambda n: n / 64) | st.just(0.0),
        st.sampled_from(["calls", "take", "give_back", "die"]),
        st.integers(0, 40),
    ),
    max_size=30,
)


class Moment(NamedTuple):
    at: float
    available: float
    calls: int
    taken: int


@given(policies, steps)
def test_no_stretch_of_a_history_has_more_retries_than_were_paid_for(
    policy: RetryBudget, history: list[tuple[float, str, int]]
) -> None:
    ledger, now, moments = BudgetLedger(policy), 500.0, [Moment(500.0, policy.reserve, 0, 0)]
    for seconds, what, n in history:
        now += seconds
        available, taken = ledger.available(now), 0
        assert available >= 0
        if what == "calls":
            ledger.calls(now, n)
        elif what == "take":
            taken = ledger.take(now, n)
            assert taken == min(n, floor(available + 1e-9))
        elif what == "give_back":
            before = ledger.total_retries
            ledger.give_back(now, n)
            taken = ledger.total_retries - before
            assert taken == -min(n, before)
        else:
            plain = json.loads(json.dumps(ledger.snapshot(now)))
            ledger = BudgetLedger.restore(policy, plain, now)
            assert ledger.snapshot(now) == plain
        moments.append(Moment(now, available, n if what == "calls" else 0, taken))
        recent = sum(each.calls for each in moments if floor(each.at) > floor(now) - 10)
        assert ledger.available(now) <= max(policy.reserve, policy.ratio * recent) + 1e-6
    assert ledger.total_calls == sum(each.calls for each in moments)
    assert ledger.total_retries == sum(each.taken for each in moments) >= 0
    for first in range(len(moments)):
        for last in range(first, len(moments)):
            stretch = moments[first : last + 1]
            paid = policy.ratio * sum(each.calls for each in stretch)
            trickled = policy.per_second * (stretch[-1].at - stretch[0].at)
            assert sum(each.taken for each in stretch) <= stretch[0].available + paid + trickled + 1e-6


@given(policies, steps)
def test_it_is_what_a_naive_bucket_says(policy: RetryBudget, history: list[tuple[float, str, int]]) -> None:
    ledger, now, kept = BudgetLedger(policy), 0.0, policy.reserve
    heard: list[tuple[float, int]] = []

    def paid() -> float:
        return policy.ratio * sum(n for at, n in heard if floor(at) > floor(now) - 10)

    def bound() -> float:
        return max(policy.reserve, paid())

    ledger.available(now)
    for seconds, what, n in history:
        # In steps of 1/64 s, as the bound falls whenever calls become too old.
        for _ in range(int(seconds * 64)):
            trickle = policy.per_second / 64 if paid() < policy.per_second * 10 else 0.0
            now += 1 / 64
            kept = min(kept + trickle, bound())
        if what == "calls":
            heard.append((now, n))
            kept = min(kept + policy.ratio * n, bound())
            ledger.calls(now, n)
        elif what == "take":
            granted = ledger.take(now, n)
            assert granted == min(n, floor(kept + 1e-6)) or abs(kept - round(kept)) < 1e-5
            kept = max(0.0, kept - granted)
        assert ledger.available(now) == pytest.approx(kept, abs=1e-6)


def test_a_dependency_that_fails_outright_gets_a_tenth_more() -> None:
    ledger, attempts = BudgetLedger(RetryBudget(ratio=0.1, reserve=10, per_second=0.5)), 0
    for second in range(600):
        ledger.calls(float(second), 100)
        attempts += 100 + ledger.take(float(second), 300)
    assert attempts <= 1.1 * 60_000 + 10 + 0.5 * 600
    assert attempts >= 1.1 * 60_000


def test_ten_calls_pay_for_a_retry() -> None:
    ledger = BudgetLedger(RetryBudget(ratio=0.1, reserve=2, per_second=0))
    assert ledger.take(0.0, 5) == 2
    for _ in range(10):
        assert ledger.take(0.0, 1) == 0
        ledger.calls(0.0, 1)
    assert ledger.take(0.0, 5) == 1


def test_calls_count_for_ten_seconds() -> None:
    ledger = BudgetLedger(RetryBudget(ratio=1, reserve=0, per_second=0))
    ledger.calls(100.0, 5)
    ledger.calls(101.0, 2)
    assert [ledger.available(now) for now in (101.0, 109.9, 110.0, 111.0)] == [7, 7, 2, 0]


def test_few_calls_live_on_the_trickle() -> None:
    ledger = BudgetLedger(RetryBudget(ratio=0.1, reserve=3, per_second=0.5))
    assert ledger.take(100.0, 9) == 3
    assert ledger.take(101.0, 9) == 0
    assert ledger.available(103.0) == 1.5
    assert ledger.available(1000.0) == 3


def test_the_trickle_is_not_on_top_of_what_many_calls_pay_in() -> None:
    ledger = BudgetLedger(RetryBudget(ratio=0.1, reserve=0, per_second=0.5))
    taken = 0
    for second in range(100, 200):
        ledger.calls(float(second), 60)
        taken += ledger.take(float(second), 1000)
    assert taken == 600
    assert [ledger.take(200.0 + seconds, 1000) for seconds in (1, 8, 10, 12)] == [0, 0, 0, 0]
    assert ledger.available(1000.0) == 0  # with no reserve there is nowhere to keep it


def test_what_is_given_back_can_be_taken_again_and_no_more() -> None:
    ledger = BudgetLedger(RetryBudget(reserve=10, per_second=0))
    assert ledger.take(0.0, 4) == 4
    ledger.give_back(0.0, 3)
    assert (ledger.available(0.0), ledger.total_retries) == (9.0, 1)
    ledger.give_back(0.0, 50)
    assert (ledger.available(0.0), ledger.total_retries) == (10.0, 0)


def test_a_clock_that_goes_back_pays_nothing() -> None:
    ledger = BudgetLedger(RetryBudget(reserve=10, per_second=1))
    ledger.take(100.0, 10)
    for now in (50.0, 100.0, 50.0, 100.0):
        ledger.calls(now, 0)
        assert ledger.available(now) == 0
    assert ledger.available(101.0) == 1


def test_another_policy_holds_from_now_on() -> None:
    budgets = Budgets(RetryBudget(reserve=10, per_second=1))
    budgets.take("acme", 0.0, 8)
    budgets.change_policy(2.0, RetryBudget(reserve=3, per_second=0))
    assert budgets.available("acme", 100.0) == 3
    assert budgets.available("other", 100.0) == 3


def test_tenants_have_their_own() -> None:
    budgets = Budgets(RetryBudget(ratio=0.1, reserve=5, per_second=0))
    assert budgets.take("acme", 0.0, 9) == 5
    assert budgets.take("other", 0.0, 2) == 2
    budgets.calls("acme", 0.0, 50)
    budgets.give_back("other", 0.0, 1)
    budgets.give_back("never seen", 0.0, 1)
    assert budgets.view(0.0) == {
        "acme": {"available": 5.0, "calls": 50, "retries": 5},
        "other": {"available": 4.0, "calls": 0, "retries": 1},
    }
    assert budgets.available("never seen", 0.0) == 5
    assert budgets.tenants == ("acme", "other")


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 10)), max_size=60),
)
def test_tenants_by_turns_make_no_retries(maximum: int, history: list[tuple[int, bool, int]]) -> None:
    policy = RetryBudget(ratio=0.1, reserve=5, per_second=0)
    budgets, calls, retries = Budgets(policy, maximum_tenants=maximum), 0, 0
    used: list[str] = []
    for number, pays, n in history:
        tenant = f"tenant-{number}"
        if pays:
            budgets.calls(tenant, 0.0, n)
            calls += n
        else:
            foreseen = floor(budgets.available(tenant, 0.0) + 1e-9)
            taken = budgets.take(tenant, 0.0, n)
            assert taken == min(n, foreseen)
            retries += taken
        used = [*(each for each in used if each != tenant), tenant][-maximum:]
        assert budgets.tenants == tuple(used)
    assert retries <= maximum * policy.reserve + policy.ratio * calls + 1e-6


def test_budgets_survive_as_json() -> None:
    policy = RetryBudget(reserve=5, per_second=0.5)
    budgets = Budgets(policy)
    for number in (3, 1, 2):
        budgets.calls(f"tenant-{number}", 90.0 + number, 10 * number)
        budgets.take(f"tenant-{number}", 90.0 + number, number)
    plain = json.loads(json.dumps(budgets.snapshot(95.0), sort_keys=True))
    other = Budgets.restore(policy, plain, 95.0)
    assert other.tenants == budgets.tenants
    assert other.view(95.0) == budgets.view(95.0)
    # Another clock, and two seconds during which nobody looked.
    later = Budgets.restore(policy, plain, 1000.0 - 2.0)
    assert later.view(1000.0) == budgets.view(97.0)
    assert Budgets.restore(policy, plain, 95.0, maximum_tenants=2).tenants == budgets.tenants[1:]


def test_what_cannot_be_is_refused() -> None:
    policy = RetryBudget()
    ledger = BudgetLedger(policy)
    for act in (ledger.calls, ledger.take, ledger.give_back):
        with pytest.raises(ValueError, match=r"-1 .*below zero"):
            act(0.0, -1)
    for broken in ({}, {"slots": 3}, ledger.snapshot(0.0) | {"kept": "much"}):
        with pytest.raises(ValueError, match="no snapshot of a retry budget"):
            BudgetLedger.restore(policy, broken, 0.0)
    for nothing in ({}, {"tenants": 3}, {"tenants": [["acme"]]}):
        with pytest.raises(ValueError, match="no snapshot of retry budgets"):
            Budgets.restore(policy, nothing, 0.0)
    with pytest.raises(ValueError, match="maximum_tenants 0"):
        Budgets(policy, maximum_tenants=0)
