"""Hub and gates together: no loss, delay, doubling or death of anybody lets more through than the limits."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hub_talk import Talk, may_go
from hub_world import Faults, HubWorld
from hypothesis import given, settings
from hypothesis import strategies as st

from admission.breaker import BreakerState
from admission.dependency import Breaker, Dependency, Limit, RetryBudget, as_plain
from admission.exchange import Demand, Outcomes, Report
from admission.gate import Gate
from admission.hub import Hub
from admission.hub_hosts import SAFE_SHARE
from admission.hub_record import news, restore, snapshot, view

BUDGET = RetryBudget(ratio=0.1, reserve=2, per_second=0.5)
DEPENDENCIES = [
    Dependency("d", [Limit("requests", 100, per=10)], breaker=None, max_concurrency=9, retry_budget=BUDGET),
    Dependency("d", [Limit("requests", 20, per=2)], breaker=None, max_concurrency=7, retry_budget=BUDGET),
    Dependency("d", [Limit("requests", 12, per=12)], breaker=None, retry_budget=BUDGET),
    Dependency("d", [Limit("requests", 300, per=60), Limit("input_tokens", 2000, per=20)], breaker=None),
]
ALL_FAULTS = Faults(0.01, 0.02, 0.05, 0.05, 6, 5, 8, 8, 5, 7)
FAULTS = [
    Faults(lost=0.02, late=0.02, doubled=0.1, undone=0.1),
    Faults(cut_off_every_s=5, undone=0.05),
    Faults(lost=0.01, late=0.01, host_dies_every_s=3),
    Faults(hub_dies_every_s=6),
    Faults(redefined_every_s=1.5),
    Faults(lost=0.01, late=0.02, renamed_every_s=2, undone=0.05),
    Faults(cut_off_every_s=5, renamed_every_s=3),
    ALL_FAULTS,
]


def cost(rng: random.Random) -> dict[str, float]:
    return {"requests": 1.0, "input_tokens": float(rng.choice([10, 20, 90]))}


@settings(max_examples=60)
@given(dependency=st.sampled_from(DEPENDENCIES), faults=st.sampled_from(FAULTS), seed=st.integers(0, 10**6))
def test_whatever_is_lost_late_doubled_or_dead_the_limits_hold(
    dependency: Dependency, faults: Faults, seed: int
) -> None:
    rate = 4 * dependency.rate[0].amount / dependency.rate[0].window_s + 20
    world = HubWorld(dependency, faults, rate=rate, seed=seed, cost=cost).run(25.0)
    for limit in dependency.rate:
        assert world.worst(limit.resource, limit.window_s) <= limit.amount, limit
    if dependency.max_concurrency is not None:
        assert world.most_in_flight <= dependency.max_concurrency


@settings(max_examples=10)
@given(dependency=st.sampled_from(DEPENDENCIES[:3]), seed=st.integers(0, 10**6))
def test_in_a_world_without_faults_the_limits_are_used(dependency: Dependency, seed: int) -> None:
    limit = dependency.rate[0]
    rate = 10 * limit.amount / limit.window_s
    world = HubWorld(dependency, Faults(), rate=rate, call_s=0.02, seed=seed).run(30.0)
    assert len(world.uses) >= 0.7 * limit.amount / limit.window_s * 28
    assert world.worst("requests", limit.window_s) <= limit.amount


@settings(max_examples=15)
@given(faults=st.sampled_from([Faults(), FAULTS[0], FAULTS[1]]), seed=st.integers(0, 10**6))
def test_retries_are_within_the_budget(faults: Faults, seed: int) -> None:
    world = HubWorld(DEPENDENCIES[0], faults, rate=100, seed=seed).run(20.0)
    assert world.retries_granted > 0
    assert world.retries_granted <= BUDGET.reserve + BUDGET.ratio * world.first_attempts + BUDGET.per_second * 20


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6))
def test_without_a_hub_all_hosts_together_keep_to_the_safe_share(seed: int) -> None:
    dependency = Dependency("d", [Limit("requests", 100, per=10)], breaker=None)
    world = HubWorld(dependency, Faults(lost=0.01), hosts=4, rate=100, seed=seed).run(8.0)
    world.hub = None
    world.run(40.0)
    rate = SAFE_SHARE * 10
    safely = [moment for moment in world.safe_uses if moment > 10.0]
    assert 0.5 * rate * 30 <= len(safely) <= rate * 30 + len(world.hosts)
    assert world.worst("requests", 10) <= 100


# The talk of one hub and its hosts, word by word

BREAKING = Dependency("d", breaker=Breaker(minimum_calls=4, open_s=1, maximum_open_s=4))


def test_one_bad_host_is_stopped_alone_and_the_others_go_on() -> None:
    talk = Talk(BREAKING, hosts=3)
    talk.turn()
    talk.fail(0, 30)
    talk.succeed(1, 30)
    talk.succeed(2, 30)
    talk.turn()
    assert talk.hub.breaker.state is BreakerState.CLOSED
    assert [may_go(gate, talk.now) for gate in talk.gates] == [False, True, True]
    assert "for this host only" in talk.gates[0].hindrance(talk.now).text
    for _ in range(20):  # it probes by itself, and comes back
        talk.turn()
        talk.gates[0].wait(talk.now, 2, {"requests": 1.0}, True, None)
        talk.exchange(0)
        while (found := talk.gates[0].next(talk.now)) is not None:
            talk.gates[0].done(talk.now, found[1], "succeeded")
    assert may_go(talk.gates[0], talk.now)


def test_when_all_fail_all_stop_and_no_more_probes_go_than_the_stage_has() -> None:
    talk = Talk(BREAKING, hosts=4)
    talk.turn()
    for number in range(4):
        talk.fail(number, 5)
    talk.turn()
    talk.turn()
    assert not any(may_go(gate, talk.now) for gate in talk.gates)
    talk.now += 1.3
    for gate in talk.gates:
        for _ in range(10):
            gate.wait(talk.now, 2, {"requests": 1.0}, True, None)
    probes = []
    for stage in (1, 2, 4):
        under_way = []
        for _ in range(3):
            talk.turn()
            for gate in talk.gates:
                while (found := gate.next(talk.now)) is not None:
                    under_way.append((gate, found[1]))
        probes.append(len(under_way))
        assert len(under_way) == stage
        for gate, passage in under_way:
            gate.done(talk.now, passage, "succeeded")
    talk.turn()
    talk.turn()
    assert talk.hub.breaker.state is BreakerState.CLOSED
    assert all(gate.next(talk.now) is not None for gate in talk.gates)


def test_news_are_told_once_and_only_when_something_is_new() -> None:
    talk = Talk(BREAKING)
    assert news(talk.hub, 0.0) is None
    talk.hub.command("open", "ann", "maintenance", 0.0)
    told = news(talk.hub, 0.0)
    assert told is not None
    assert (told["state"], told["why"]) == ("open", "maintenance")
    assert news(talk.hub, 0.1) is None
    talk.hub.command("close", "ann", "", 0.2)
    told = news(talk.hub, 0.2)
    assert told is not None
    assert told["state"] == "closed"
    with pytest.raises(ValueError, match="no command"):
        talk.hub.command("explode", "ann", "", 0.2)


def test_a_retry_after_stops_all_hosts_and_is_clamped() -> None:
    talk = Talk(Dependency("d", [Limit("requests", 100, per=1)], maximum_retry_after_s=20), hosts=3)
    for _ in range(3):
        for gate in talk.gates:
            gate.wait(talk.now, 2, {"requests": 1.0}, True, None)
        talk.turn()
    talk.gates[0].stop(talk.now, 1e9)
    talk.exchange(0)
    talk.exchange(1)
    assert talk.hub.limiter.stopped_until == pytest.approx(talk.now + 20)
    assert not may_go(talk.gates[1], talk.now)
    assert talk.gates[1].hindrance(talk.now).kind == "retry_after"
    shown = view(talk.hub, talk.now, 1_000_000)
    assert shown["retry_after"] == {"seconds": 20.0, "at_ms": 1_000_000}
    assert shown["not_before_ms"] == 1_020_000


def test_places_that_were_taken_away_are_given_to_nobody_before_the_host_has_heard_of_it() -> None:
    talk = Talk(Dependency("d", max_concurrency=4), hosts=2)
    first, second = talk.gates
    for _ in range(8):
        first.wait(0.0, 2, {"requests": 1.0}, True, None)
    assert talk.exchange(0).concurrency == 4
    while first.next(0.0) is not None:
        pass
    for waiter in list(first.line):
        first.give_up(waiter)
    for _ in range(8):
        second.wait(0.0, 2, {"requests": 1.0}, True, None)
    for passage_count in range(4):
        assert first.in_flight == 4 - passage_count
        first.in_flight -= 1
    talk.now = 0.3
    talk.exchange(1)
    fewer = talk.exchange(0, heard=False).concurrency
    assert fewer is not None
    assert fewer < 4
    assert talk.exchange(1).concurrency == 0, "the other one goes by its four places"
    talk.exchange(0)
    assert talk.exchange(1).concurrency == 0, "it has not said that it has heard"
    for _ in range(12):
        talk.turn()
    assert second.lease is not None
    assert second.lease.concurrency == 4


@pytest.mark.parametrize("has_rate", [True, False])
def test_a_successor_goes_on_where_the_last_hub_was(has_rate: bool) -> None:
    rate = [Limit("requests", 100, per=10)] if has_rate else []
    dependency = Dependency("d", rate, breaker=Breaker(minimum_calls=4, open_s=2), max_concurrency=5)
    talk = Talk(dependency)
    talk.hub.totals.succeeded = 7
    for _ in range(5):
        talk.gates[0].wait(0.0, 2, {"requests": 1.0}, True, None)
    for _ in range(4):
        talk.turn()
        while (found := talk.gates[0].next(talk.now)) is not None:
            talk.gates[0].done(talk.now, found[1], "failed")
    assert talk.hub.breaker.state is BreakerState.OPEN
    plain = json.loads(json.dumps(snapshot(talk.hub, talk.now), allow_nan=False))
    later = Hub(dependency, 2, 1000.0)
    restore(later, 1000.0, plain, 0.5)
    assert later.breaker.state is BreakerState.OPEN
    assert later.breaker.until is not None
    assert talk.hub.breaker.until is not None
    assert later.breaker.until - 1000.0 == pytest.approx(talk.hub.breaker.until - talk.now - 0.5)
    assert (later.totals.succeeded, later.totals.failed) == (7, talk.hub.totals.failed)
    assert later.hosts["h0"].most_places == talk.hub.hosts["h0"].most_places
    if has_rate:
        (before,), (after,) = talk.hub.limiter.use(talk.now), later.limiter.use(1000.0)
        assert after["used"] + after["outstanding"] >= before["used"] + before["outstanding"] + 5
    stranger = later.exchange(1000.0, 0.5, Report("new", 1, demands=[Demand(2, 3, {}, {})]))
    assert stranger.concurrency == 0, "others may have places that the snapshot does not know of"
    known = later.exchange(1000.1, 0.5, Report("h0", 9, epoch=4096, in_flight=2, places=4))
    assert known.concurrency is not None
    assert known.concurrency <= 4


def test_a_host_that_says_nothing_is_taken_to_live_on_its_safe_share_at_once() -> None:
    talk = Talk(Dependency("d", [Limit("requests", 100, per=10)], breaker=None))
    gate = talk.gates[0]
    for _ in range(12):
        gate.wait(talk.now, 2, {"requests": 1.0}, True, None)
        talk.turn()
        while gate.next(talk.now) is not None:
            pass
    safe = talk.hub.hosts["h0"].most_safe["requests"]
    assert safe == pytest.approx(SAFE_SHARE * 9.9)
    # What it has is used by then, too.
    before = sum(talk.hub.limiter.use(talk.now)[0][part] for part in ("used", "outstanding"))
    talk.hub.tick(talk.now + 1.9, 0.5)
    since = talk.hub.hosts["h0"].told[0].at + talk.hub.lifetime_s
    assert talk.hub.limiter.use(talk.now + 1.9)[0]["used"] == pytest.approx(before + safe * (talk.now + 1.9 - since))
    # What it says then is heard, and the time in between is not forgotten.
    talk.now += 1.9
    talk.exchange(0)
    assert talk.hub.limiter.use(talk.now)[0]["used"] >= before + safe * 0.8


def test_nobody_waits_for_places_that_a_silent_host_only_wanted() -> None:
    talk = Talk(Dependency("d", max_concurrency=4), hosts=2)
    for gate in talk.gates:
        for _ in range(8):
            gate.wait(0.0, 2, {"requests": 1.0}, True, None)
    for _ in range(4):
        talk.turn()
    assert [host.places for host in talk.hub.hosts.values()] == [2, 2]
    talk.hub.hosts["h0"].told = []  # nothing that it might still go by
    talk.now += 1.9
    talk.exchange(1)
    talk.now += 0.25
    assert talk.exchange(1).concurrency == 4


def test_who_leaves_gives_all_back_and_is_forgotten() -> None:
    talk = Talk(Dependency("d", [Limit("requests", 100, per=10)], max_concurrency=3))
    gate = talk.gates[0]
    gate.wait(0.0, 2, {"requests": 1.0}, True, None)
    talk.turn()
    assert talk.hub.limiter.use(talk.now)[0]["outstanding"] > 0
    report, _ = gate.report(talk.now, leaving=True)
    lease = talk.hub.exchange(talk.now, 0.5, report)
    gate.accept(talk.now, talk.now, lease)
    assert talk.hub.hosts == {}
    assert talk.hub.limiter.use(talk.now)[0]["outstanding"] == 0
    assert not may_go(gate, talk.now)
    assert gate.balance is not None


def test_another_declaration_keeps_the_ledger_and_takes_no_old_permits_back() -> None:
    talk = Talk(Dependency("d", [Limit("requests", 10, per=10)], breaker=None))
    for _ in range(30):
        talk.gates[0].wait(0.0, 2, {"requests": 1.0}, True, None)
    for _ in range(20):
        talk.turn()
    used = talk.hub.limiter.use(talk.now)[0]
    talk.hub.redefine(Dependency("d", [Limit("requests", 20, per=10)], breaker=None), talk.now)
    after = talk.hub.limiter.use(talk.now)[0]
    assert after["used"] + after["outstanding"] == pytest.approx(used["used"] + used["outstanding"], abs=0.05)
    epoch = talk.gates[0].lease.epoch if talk.gates[0].lease else 0
    talk.exchange(0)
    assert talk.gates[0].lease is not None
    assert talk.gates[0].lease.epoch > epoch


def test_hosts_are_told_a_declaration_until_they_go_by_it() -> None:
    talk = Talk(Dependency("d"))
    assert talk.exchange().definition == as_plain(talk.hub.dependency), "the app's own may be another one"
    assert talk.exchange().definition is None
    talk.hub.redefine(Dependency("d", maximum_retry_after_s=7), talk.now)
    told = [talk.exchange(heard=heard).definition for heard in (False, True, True)]
    assert told == [as_plain(talk.hub.dependency), as_plain(talk.hub.dependency), None]


def test_evidence_of_before_a_transition_says_nothing() -> None:
    hub = Hub(BREAKING, 1, 0.0)
    outcomes: list[Any] = [Outcomes(hub.breaker.generation, failed=4)]
    hub.exchange(0.0, 0.5, Report("a", 1, outcomes=outcomes))
    assert hub.breaker.state is BreakerState.OPEN
    hub.command("close", "ann", "", 0.1)
    hub.exchange(0.2, 0.5, Report("a", 2, outcomes=outcomes))
    assert hub.breaker.counts(0.2).calls == 0


def test_what_a_host_had_that_is_buried_counts_as_used() -> None:
    talk = Talk(Dependency("d", [Limit("requests", 100, per=10)], breaker=None))
    talk.gates[0].wait(0.0, 2, {"requests": 1.0}, True, None)
    talk.turn()
    granted = talk.hub.limiter.use(talk.now)[0]["outstanding"]
    assert granted >= 1
    talk.hub.bury(talk.now, "h0")
    after = talk.hub.limiter.use(talk.now)[0]
    assert (after["outstanding"], after["used"]) == (0.0, granted)


def test_after_a_restart_no_places_are_given_before_hosts_have_said_what_they_have() -> None:
    dependency = Dependency("d", max_concurrency=5)
    later = Hub(dependency, 2, 100.0)
    restore(later, 100.0, snapshot(Hub(dependency, 1, 0.0), 0.0), 0.2)
    wish = [Demand(2, 9, {"requests": 1.0}, {"requests": 1.0})]
    assert later.exchange(100.1, 0.5, Report("a", 1, demands=wish)).concurrency == 0
    assert later.exchange(100.2, 0.5, Report("b", 7, epoch=4096, demands=wish, places=2)).concurrency == 2
    given_to = later.exchange(later.places.learns_until + 0.3, 0.5, Report("a", 2, epoch=8192, held=1, demands=wish))
    assert given_to.concurrency is not None
    assert 1 <= given_to.concurrency <= 3


@pytest.mark.parametrize("window_s", [2.0, 60.0])
def test_a_host_that_comes_on_time_is_not_taken_to_live_on_its_safe_share(window_s: float) -> None:
    """Nothing is assumed beside what it says: it would be counted twice, and the limit not be made use of."""
    hub = Hub(Dependency("d", [Limit("requests", 100, per=window_s)], breaker=None), 1, 0.0)
    gate, now, went = Gate("a", 0.0), 0.0, 0
    while now < 3 * window_s:
        while gate.line.waiting < 200:
            gate.wait(now, 2, {"requests": 1.0}, True, None)
        report, _ = gate.report(now)
        gate.accept(now, now, hub.exchange(now, 0.5, report))
        while (found := gate.next(now)) is not None:
            gate.done(now, found[1], "succeeded")
            went += 1
        now += hub.period_s
    assert 270 <= went <= 300 + 100 * hub.period_s / window_s
