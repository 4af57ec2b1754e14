"""A host's gate: what goes, in which order, and what is told of it; without a lease nothing goes."""

from __future__ import annotations

import math

import pytest
from gates import ONE, gate_with, leased, passed, went
from hypothesis import given
from hypothesis import strategies as st

from admission.exchange import LEFT_ALONE, Lease, News, Outcomes
from admission.gate import Gate

# Order


@given(
    arrivals=st.lists(st.tuples(st.integers(0, 4), st.sampled_from([1.0, 3.0]), st.booleans()), max_size=30),
    permits=st.lists(st.integers(0, 6), max_size=20),
)
def test_by_class_then_by_arrival_and_nobody_starves_a_large_one(
    arrivals: list[tuple[int, float, bool]], permits: list[int]
) -> None:
    gate = gate_with(0.0)
    waiting: list[tuple[int, int, float]] = []
    for number, (rank, requests, gives_up) in enumerate(arrivals):
        assert gate.try_pass(0.0, rank, {"requests": requests}, True) is None
        waiter = gate.wait(0.0, rank, {"requests": requests}, True, number)
        if gives_up:
            gate.give_up(waiter)
            gate.give_up(waiter)
        else:
            waiting.append((rank, number, requests))
    waiting.sort()
    assert gate.line.waiting == len(waiting) == sum(gate.line.counts())
    balance = 0.0
    for turn, count in enumerate(permits):
        gate.accept(0.0, 0.0, leased(float(count), sequence=turn + 2))
        balance += count
        expected = []
        while waiting and waiting[0][2] <= balance:
            balance -= waiting[0][2]
            expected.append(waiting.pop(0)[1])
        assert went(gate) == expected  # the first one waits: nobody behind it goes


def test_who_comes_does_not_overtake() -> None:
    gate = gate_with(0.0)
    gate.wait(0.0, 2, ONE, True, "first")
    gate.accept(0.0, 0.0, leased(3.0, sequence=2))
    assert passed(gate, rank=2) is None
    assert passed(gate, rank=3) is None
    assert passed(gate, rank=1) is not None  # it is worth more
    assert went(gate) == ["first"]
    assert passed(gate, rank=4) is not None


# What nobody may do without


@pytest.mark.parametrize(
    ("gate", "now"),
    [
        (Gate("h", 0.0), 0.0),
        (gate_with(), 1.0),
        (gate_with(not_before_s=0.5), 0.4),
        (gate_with(0.5), 0.0),
        (gate_with(state="open", not_before_s=math.inf), 0.9),
        (gate_with(state="probing"), 0.0),
        (gate_with(concurrency=0), 0.0),
    ],
    ids=["no lease", "lease over", "not before", "no permit", "open", "no probe", "no place"],
)
def test_what_is_not_known_to_be_allowed_is_not_done(gate: Gate, now: float) -> None:
    assert passed(gate, now) is None
    gate.wait(now, 0, ONE, True, "w")
    assert went(gate, now) == []
    assert gate.hindrance(now).text


@pytest.mark.parametrize("permits", [None, {}, {"requests": 5.0}])
def test_what_a_lease_leaves_out_is_not_unlimited(permits: dict[str, float] | None) -> None:
    gate = Gate("h", 0.0)
    gate.accept(0.0, 0.0, Lease(1, 1, permits=permits, most={"requests": 9.0, "tokens": 100.0}))
    assert gate.try_pass(0.0, 0, {"requests": 1.0, "tokens": 1.0}, True) is None
    assert gate.affordable() != math.inf


def test_without_limits_all_go() -> None:
    gate = gate_with(None)
    assert all(passed(gate) for _ in range(1000))


def test_places_bound_what_is_under_way() -> None:
    gate = gate_with(None, concurrency=2)
    first, second = passed(gate), passed(gate)
    assert first is not None
    assert second is not None
    assert passed(gate) is None
    gate.done(0.1, first, "succeeded")
    gate.done(0.1, first, "failed")
    gate.undo(first)
    assert gate.in_flight == 1
    assert passed(gate) is not None
    assert passed(gate) is None
    gate.accept(0.1, 0.1, leased(None, sequence=2, concurrency=1))  # fewer: those under way go on
    gate.done(0.2, second, "succeeded")
    assert passed(gate) is None


# Undone


def test_what_was_undone_goes_to_the_next_and_only_once() -> None:
    gate = gate_with(1.0)
    passage = passed(gate)
    assert passage is not None
    assert passed(gate) is None
    gate.undo(passage)
    gate.undo(passage)
    assert passed(gate) is not None
    assert passed(gate) is None


def test_what_was_undone_after_it_was_reported_is_the_hubs_again() -> None:
    gate = gate_with(2.0)
    passage = passed(gate)
    assert passage is not None
    gate.report(0.2)
    gate.undo(passage)
    assert gate.balance == {"requests": 1.0}
    report, _ = gate.report(0.5)
    assert report.settled == [(1, {"requests": -1.0})]
    assert gate.report(0.6)[0].settled == []


@pytest.mark.parametrize("how", ["another hub", "lease over", "safe"])
def test_what_was_undone_of_a_balance_that_is_over_is_gone(how: str) -> None:
    gate = gate_with(1.0)
    passage = passed(gate)
    assert passage is not None
    now = 0.5
    if how == "another hub":
        gate.accept(0.1, 0.1, Lease(2, 2, permits={"requests": 0.0}, most={"requests": 9.0}))
    elif how == "safe":
        now = 1.1
        gate.live_safely(now)
    else:
        now = 1.1
        gate.report(now)
    before = dict(gate.balance or {})
    gate.undo(passage)
    assert gate.balance == before
    assert gate.report(now)[0].settled == []


# Leases


def test_an_overtaken_or_doubled_lease_is_nothing() -> None:
    gate = gate_with(1.0, sequence=5)
    assert gate.accept(0.0, 0.0, leased(7.0, sequence=5, retries={"t": 1})) == {}
    gate.accept(0.0, 0.0, leased(7.0, sequence=4))
    assert gate.balance == {"requests": 1.0}
    gate.accept(0.0, 0.0, Lease(0, 9, permits={"requests": 7.0}))
    assert gate.balance == {"requests": 1.0}
    gate.accept(0.0, 0.0, leased(7.0, sequence=6))
    assert gate.balance == {"requests": 8.0}
    gate.accept(0.0, 0.0, Lease(2, 1, permits={"requests": 2.0}, most={"requests": 9.0}))
    assert gate.balance == {"requests": 2.0}, "what an earlier hub gave is counted as used by the next one"


def test_a_lease_holds_from_the_moment_at_which_it_was_asked_for() -> None:
    gate = Gate("h", 0.0)
    gate.accept(10.0, 10.9, leased(5.0))
    assert passed(gate, 10.99) is not None
    assert passed(gate, 11.0) is None
    report, _ = gate.report(11.0)
    assert report.balance == {"requests": 0.0}, "what nobody can use any more is said to be used"


def test_who_has_left_uses_nothing_until_it_is_asked_back() -> None:
    gate = gate_with(5.0, safe={"requests": 50.0})
    report, _ = gate.report(0.1, leaving=True)
    assert report.returned == {"requests": 5.0}
    assert passed(gate, 0.2) is None
    gate.live_safely(5.0)
    assert passed(gate, 5.0) is None
    gate.accept(5.0, 5.0, leased(1.0, sequence=2))
    assert passed(gate, 5.0) is not None


# The breaker


def test_probes_go_only_to_calls_that_may_probe_and_never_more_than_were_given() -> None:
    gate = gate_with(10.0, state="probing", generation=3, probes=2)
    for token, may_probe in enumerate([False, True, False, True, True]):
        gate.wait(0.0, 1, ONE, may_probe, token)
    assert passed(gate, rank=0, may_probe=False) is None
    assert went(gate) == [1, 3]
    gate.accept(0.0, 0.0, leased(10.0, sequence=2, state="probing", generation=3, probes=1, any_probe=True))
    assert went(gate) == [4]
    gate.accept(0.0, 0.0, leased(10.0, sequence=3, state="probing", generation=3, probes=1, any_probe=True))
    assert went(gate) == [0]


@pytest.mark.parametrize("how", ["undone", "ignored", "rate_limited", "unused"])
def test_a_probe_that_said_nothing_goes_back(how: str) -> None:
    gate = gate_with(10.0, state="probing", generation=3, probes=1)
    passage = None if how == "unused" else passed(gate)
    if passage is not None:
        gate.undo(passage) if how == "undone" else gate.done(0.1, passage, how)
    assert gate.report(0.2)[0].probes_returned == 1
    assert gate.report(0.3)[0].probes_returned == 0


def test_a_probe_of_an_earlier_time_of_probing_does_not_go_back() -> None:
    gate = gate_with(10.0, state="probing", generation=3, probes=1)
    passage = passed(gate)
    assert passage is not None
    gate.accept(0.0, 0.0, leased(10.0, sequence=2, state="probing", generation=5))
    gate.done(0.1, passage, "ignored")
    assert gate.report(0.2)[0].probes_returned == 0


def test_after_the_news_that_it_is_open_nothing_goes() -> None:
    gate = gate_with(10.0, generation=1)
    gate.wait(0.0, 1, ONE, True, "w")
    assert gate.news(0.0, News(1, "open", 2, 3.0, "4 of 4 failed"))
    assert passed(gate, 0.9, rank=0) is None
    assert went(gate, 0.9) == []
    what = gate.hindrance(0.5)
    assert (what.kind, what.text) == ("breaker", "4 of 4 failed")
    assert what.for_s == pytest.approx(2.5)
    assert not gate.news(0.5, News(1, "closed", 1, 0.0, "")), "of an earlier generation"
    assert not gate.news(0.5, News(0, "closed", 9, 0.0, "")), "of an earlier hub"
    assert went(gate, 0.9) == []
    gate.accept(0.9, 0.9, leased(1.0, sequence=2, generation=3))
    assert went(gate, 0.9) == ["w"]


@pytest.mark.parametrize("state", ["closed", "open"])
def test_after_the_news_of_a_retry_after_that_is_what_is_waited_for(state: str) -> None:
    gate = gate_with(10.0, state=state, generation=1)
    assert gate.news(0.0, News(1, "closed", 2, 3.0, LEFT_ALONE, stopped=True))
    what = gate.hindrance(0.5)
    assert (what.kind, what.text) == ("retry_after", LEFT_ALONE)
    assert what.for_s == pytest.approx(2.5)
    assert gate.news(0.6, News(1, "open", 3, 4.0, "4 of 4 failed"))
    assert gate.hindrance(0.6).kind == "breaker"


def test_probes_that_were_granted_before_the_news_do_not_go() -> None:
    gate = gate_with(10.0, state="probing", generation=3, probes=4)
    gate.news(0.0, News(1, "open", 4, 2.0, "a probe failed"))
    assert passed(gate, 0.1) is None
    assert passed(gate, 0.9) is None


def test_who_was_asked_to_stop_stops_at_once_and_a_lease_that_does_not_know_it_does_not_help() -> None:
    gate = gate_with(10.0)
    gate.stop(0.1, 5.0)
    assert passed(gate, 0.2) is None
    gate.accept(0.2, 0.2, leased(10.0, sequence=2))
    assert passed(gate, 0.9) is None
    assert gate.hindrance(0.9).kind == "retry_after"
    assert gate.report(1.0)[0].stop_s == pytest.approx(4.1)
    gate.accept(1.0, 1.0, leased(10.0, sequence=3))
    assert gate.report(1.3)[0].stop_s == 0.0, "told already"
    gate.accept(5.05, 5.05, leased(10.0, sequence=4))
    assert passed(gate, 5.0) is None
    assert passed(gate, 5.2) is not None


@pytest.mark.parametrize("heard", ["before the answer", "before and again before the answer", "the report was lost"])
def test_a_retry_after_is_told_until_a_report_with_it_was_answered(heard: str) -> None:
    gate = gate_with(10.0)
    if heard != "before the answer":
        gate.stop(0.1, 5.0)
    _, since = gate.report(0.2)
    if heard == "the report was lost":
        gate.lost(since)
    else:
        gate.stop(0.3, 9.0)
        gate.accept(0.2, 0.4, leased(10.0, sequence=2))
    assert gate.report(0.5)[0].stop_s == pytest.approx(4.6 if heard == "the report was lost" else 8.8)
    gate.accept(0.5, 0.6, leased(10.0, sequence=3))
    assert gate.report(0.7)[0].stop_s == 0.0


# Reports


def test_outcomes_go_to_the_generation_under_which_the_call_went() -> None:
    gate = Gate("h", 0.0, slow_call_s=0.5)
    gate.accept(0.0, 0.0, leased(10.0, generation=4))
    calls = [passed(gate) for _ in range(6)]
    gate.accept(0.0, 0.0, leased(10.0, sequence=2, generation=7))
    results = ["succeeded", "failed", "abandoned", "rate_limited", "ignored", "succeeded"]
    for number, (call, result) in enumerate(zip(calls, results, strict=True)):
        assert call is not None
        gate.done(0.1 if number else 0.9, call, result)
    report, since = gate.report(0.9)
    assert report.outcomes == [Outcomes(4, succeeded=2, failed=2, slow=1)]
    assert (report.rate_limited, report.abandoned, report.in_flight) == (1, 1, 0)
    gate.lost(since)
    again, _ = gate.report(1.0)
    assert again.outcomes == report.outcomes
    assert (again.rate_limited, again.abandoned) == (1, 1)


def test_of_a_lost_report_what_was_used_less_is_not_told_again_since_it_may_have_arrived() -> None:
    gate = gate_with(None)
    gate.accept(0.0, 0.0, Lease(1, 2, permits={"tokens": 100.0, "requests": 9.0}, most={"tokens": 1, "requests": 1}))
    less = gate.try_pass(0.0, 0, {"requests": 1.0, "tokens": 50.0}, True)
    more = gate.try_pass(0.0, 0, {"requests": 1.0, "tokens": 50.0}, True)
    assert less is not None
    assert more is not None
    gate.done(0.0, less, "succeeded", {"tokens": 10.0})
    gate.done(0.0, more, "succeeded", {"input_tokens": 40.0, "output_tokens": 30.0})
    report, since = gate.report(0.1)
    assert [deltas for _, deltas in report.settled] == [{"tokens": -40.0}, {"tokens": 20.0}]
    gate.lost(since)
    assert [deltas for _, deltas in gate.report(0.2)[0].settled] == [{"tokens": 20.0}]


def test_what_is_not_needed_goes_back_and_nothing_while_somebody_waits() -> None:
    gate = gate_with(50.0)
    report, _ = gate.report(0.1)
    assert report.returned["requests"] + report.balance["requests"] == 50.0
    assert report.returned["requests"] >= 45
    gate.accept(0.1, 0.1, leased(0.0, sequence=2, state="open", not_before_s=1.0))
    gate.wait(0.1, 0, ONE, True, "w")
    assert gate.report(0.2)[0].returned == {}


def test_retries_are_asked_for_until_they_are_granted() -> None:
    gate = gate_with(None)
    gate.want_retry("a")
    gate.want_retry("a")
    gate.want_retry("b")
    assert gate.report(0.1)[0].retries_wanted == {"a": 2, "b": 1}
    assert gate.accept(0.1, 0.1, leased(None, sequence=2, retries={"a": 1})) == {"a": 1}
    gate.want_retry("b", -1)
    assert gate.report(0.2)[0].retries_wanted == {"a": 1}
    gate.return_retry("a")
    assert gate.report(0.3)[0].retries_returned == {"a": 1}


def test_a_call_that_can_never_go_is_known() -> None:
    gate = gate_with(10.0)
    assert "takes 101 requests" in gate.impossible({"requests": 101.0})
    assert gate.impossible({"requests": 100.0}) == ""
    assert Gate("h", 0.0).impossible({"requests": 1e9}) == ""
