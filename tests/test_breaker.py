"""The breaker: its transitions, its evidence, its probes. Against a naive account of the same calls."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import pairwise
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from admission.breaker import STAGES, BreakerMachine, BreakerState
from admission.dependency import Breaker

CLOSED, OPEN, PROBING = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.PROBING
BY_ITSELF = {(CLOSED, OPEN), (OPEN, PROBING), (PROBING, OPEN), (PROBING, CLOSED)}
HOSTS = ("a", "b", "c")

rates = st.sampled_from([0.1, 0.3, 0.5, 0.9, 1.0])
policies = st.builds(
    Breaker,
    failure_rate=rates,
    minimum_calls=st.integers(1, 30),
    window_s=st.sampled_from([1.0, 10.0, 16.0]),
    slow_call_s=st.sampled_from([None, 2.0]),
    slow_call_rate=rates,
    open_s=st.sampled_from([0.5, 5.0]),
    maximum_open_s=st.sampled_from([5.0, 40.0]),
)
draws = st.floats(0, 1, exclude_max=True)
few = st.integers(0, 12)
# Multiples of 1/64 s: sums are exact, and so is a round trip.
moments = st.integers(0, 64 * 30).map(lambda n: n / 64)


def bad_enough(policy: Breaker, calls: dict[str, list[tuple[int, int, int]]]) -> bool:
    """The condition as it is declared, from the bare list of calls, failed and slow ones of each source."""
    total = sum(each[0] for many in calls.values() for each in many)
    if total < policy.minimum_calls:
        return False
    heard = [source for source in calls if sum(each[0] for each in calls[source])]
    subsets = [heard] + ([[each for each in heard if each != left] for left in heard] if len(heard) > 1 else [])

    def holds(column: int, rate: float) -> bool:
        return all(
            sum(each[column] for source in subset for each in calls[source])
            / sum(each[0] for source in subset for each in calls[source])
            >= rate
            for subset in subsets
        )

    return holds(1, policy.failure_rate) or (policy.slow_call_s is not None and holds(2, policy.slow_call_rate))


class Life(RuleBasedStateMachine):
    """A breaker among hosts that report, probe, come back late and leave, operators, and hubs that die."""

    @initialize(policy=policies)
    def begin(self, policy: Breaker) -> None:
        self.policy = policy
        self.machine = BreakerMachine(policy)
        self.now = 1000.0
        self.heard: list[tuple[float, str, tuple[int, int, int]]] = []
        self.seen = (self.machine.state, self.machine.generation)
        self.begin_to_probe()

    def begin_to_probe(self, stage: int = 0) -> None:
        self.stage = stage
        self.air: list[float] = []  # when each probe was given
        self.answers = Counter[str]()

    def stage_failed(self) -> bool:
        lost = bool(self.air) and self.now - self.air[0] >= 60
        slow = self.policy.slow_call_s is not None and (
            self.answers["slow"] / STAGES[self.stage] >= self.policy.slow_call_rate
        )
        return lost or slow or self.answers["failed"] > 0

    def calls(self) -> dict[str, list[tuple[int, int, int]]]:
        slot_s = self.policy.window_s / 10
        oldest = floor(self.now / slot_s) - 9
        calls: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
        for at, source, counts in self.heard:
            if floor(at / slot_s) >= oldest:
                calls[source].append(counts)
        return calls

    def moved(self, *, forced: bool = False) -> bool:
        """Checks a step against the table; begins the naive account anew where there was a transition."""
        (before, generation), machine = self.seen, self.machine
        self.seen = (machine.state, machine.generation)
        if machine.generation == generation:
            assert machine.state is before
            assert not forced
            return False
        assert machine.generation == generation + 1
        assert forced or (before, machine.state) in BY_ITSELF
        assert machine.since == self.now
        assert machine.reason
        assert bool(machine.by) is forced
        self.heard = []
        self.begin_to_probe()
        return True

    @rule(seconds=moments)
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(source=st.sampled_from(HOSTS), succeeded=few, failed=few, slow=few)
    def report(self, source: str, succeeded: int, failed: int, slow: int) -> None:
        slow = min(slow, succeeded)
        machine = self.machine
        machine.record(self.now, source, succeeded=succeeded, failed=failed, slow=slow, generation=machine.generation)
        if machine.state is CLOSED:
            self.heard.append((self.now, source, (succeeded + failed, failed, slow)))
        elif machine.state is PROBING:
            failed = min(failed, len(self.air))
            succeeded = min(succeeded, len(self.air) - failed)
            self.answers.update(failed=failed, succeeded=succeeded, slow=min(slow, succeeded))
            self.air = self.air[failed + succeeded :]
        assert not self.moved()

    @rule(source=st.sampled_from(HOSTS), failed=few, age=st.integers(1, 3))
    def report_late(self, source: str, failed: int, age: int) -> None:
        before = self.machine.snapshot(self.now)
        self.machine.record(self.now, source, failed=failed, generation=self.machine.generation - age)
        assert self.machine.snapshot(self.now) == before

    @rule(draw=draws)
    def tick(self, draw: float) -> None:
        machine, policy = self.machine, self.policy
        before, until, stage, openings = machine.state, machine.until, machine.stage, machine.openings
        must_open = bad_enough(policy, self.calls()) if before is CLOSED else self.stage_failed()
        well = self.answers["succeeded"] == STAGES[self.stage]
        changed = machine.tick(self.now, draw)
        assert self.moved() is changed
        if before is CLOSED:
            assert changed is must_open
        elif before is OPEN:
            assert changed is (until is not None and until <= self.now)
        else:
            assert (machine.state is OPEN) is must_open
            assert (machine.state is CLOSED) is (well and not must_open and stage == STAGES[-1])
            if machine.state is PROBING and well:
                self.begin_to_probe(self.stage + 1)
        if machine.state is CLOSED:
            assert machine.openings == 0
        if changed and machine.state is OPEN:
            assert machine.openings == openings + 1
            assert machine.until is not None
            bare_s = min(policy.maximum_open_s, policy.open_s * 2**openings)
            assert 0.8 * bare_s - 1e-6 <= machine.until - self.now <= 1.2 * bare_s + 1e-6

    @rule(n=st.integers(1, 4))
    def give(self, n: int) -> None:
        available = self.machine.probes_available(self.now)
        if n > available:
            with pytest.raises(ValueError, match=f"{available} are available"):
                self.machine.probes_given(self.now, n)
            return
        self.machine.probes_given(self.now, n)
        self.air += [self.now] * n

    @rule(n=st.integers(0, 5))
    def give_back(self, n: int) -> None:
        self.machine.probes_returned(n)
        self.air = self.air[: max(0, len(self.air) - n)]

    @precondition(lambda self: self.machine.state is PROBING and self.machine.probes_in_the_air)
    @rule()
    def probes_succeed(self) -> None:
        self.report("a", succeeded=len(self.air), failed=0, slow=0)

    @rule(what=st.sampled_from(["open", "close", "probe"]))
    def force(self, what: str) -> None:
        if what == "open":
            self.machine.force_open(self.now, "ann", "it hurts")
        elif what == "close":
            self.machine.force_close(self.now, "ann")
        else:
            self.machine.force_probe(self.now, "ann")
        assert self.moved(forced=True)
        assert self.machine.state == {"open": OPEN, "close": CLOSED, "probe": PROBING}[what]

    @rule(source=st.sampled_from(HOSTS))
    def leave(self, source: str) -> None:
        self.machine.forget(source)
        self.heard = [each for each in self.heard if each[1] != source]

    @rule()
    def die(self) -> None:
        plain = json.loads(json.dumps(self.machine.snapshot(self.now)))
        other = BreakerMachine.restore(self.policy, plain, self.now)
        assert other.snapshot(self.now) == plain
        self.machine = other

    @invariant()
    def is_consistent(self) -> None:
        machine = self.machine
        calls = self.calls()
        assert machine.counts(self.now) == tuple(
            sum(each[column] for many in calls.values() for each in many) for column in range(3)
        )
        assert machine.probes_in_the_air == len(self.air)
        assert machine.stage == (STAGES[self.stage] if machine.state is PROBING else 0)
        free = machine.stage - len(self.air) - self.answers["succeeded"]
        assert machine.probes_available(self.now) == (0 if self.stage_failed() else free)
        assert len(self.air) <= machine.stage
        assert (machine.until is not None) <= (machine.state is OPEN)
        assert (machine.until is None and machine.state is OPEN) <= bool(machine.by)


TestLife = Life.TestCase


def opened(policy: Breaker, now: float = 0.0, draw: float = 0.5) -> BreakerMachine:
    machine = BreakerMachine(policy)
    machine.record(now, "a", failed=policy.minimum_calls, generation=0)
    assert machine.tick(now, draw)
    return machine


@given(policies, st.lists(st.tuples(st.sampled_from(HOSTS), few, few), max_size=20))
def test_it_does_not_open_below_the_minimum(policy: Breaker, reports: list[tuple[str, int, int]]) -> None:
    machine, calls = BreakerMachine(policy), 0
    for source, succeeded, failed in reports:
        if calls + succeeded + failed < policy.minimum_calls:
            calls += succeeded + failed
            machine.record(0.0, source, succeeded=succeeded, failed=failed, generation=0)
            assert not machine.tick(0.0, 0.5)


@given(policies, st.lists(st.tuples(few, few), min_size=1, max_size=20), st.integers(1, 3))
def test_one_bad_host_does_not_open_it_for_the_others(
    policy: Breaker, reports: list[tuple[int, int]], others: int
) -> None:
    machine = BreakerMachine(policy)
    for number in range(others):
        machine.record(0.0, f"good-{number}", succeeded=1, generation=0)
    for slow, failed in reports:
        machine.record(0.0, "bad", succeeded=slow, slow=slow, failed=failed, generation=0)
        assert not machine.tick(0.0, 0.5)


def test_a_host_alone_is_evidence_enough_and_two_bad_ones_are() -> None:
    policy = Breaker(minimum_calls=10)
    assert opened(policy).state is OPEN
    machine = BreakerMachine(policy)
    machine.record(0.0, "a", failed=100, generation=0)
    machine.record(0.0, "b", succeeded=9, generation=0)
    assert not machine.tick(0.0, 0.5)
    machine.record(0.0, "b", failed=9, generation=0)
    assert machine.tick(0.0, 0.5)
    assert machine.reason == "109 of 118 calls in 10s failed (breaker.failure_rate=0.5)"


def test_a_host_that_has_left_is_no_evidence() -> None:
    machine = BreakerMachine(Breaker(minimum_calls=10))
    machine.record(0.0, "a", failed=20, generation=0)
    machine.record(0.0, "b", succeeded=10, generation=0)
    machine.forget("a")
    machine.forget("never seen")
    assert machine.counts(0.0) == (10, 0, 0)
    assert not machine.tick(0.0, 0.5)


def test_slow_calls_open_it_where_it_is_declared_what_is_slow() -> None:
    machine = BreakerMachine(Breaker(slow_call_s=2, slow_call_rate=0.8))
    machine.record(0.0, "a", succeeded=20, slow=15, generation=0)
    assert not machine.tick(0.0, 0.5)
    machine.record(0.0, "a", succeeded=5, slow=5, generation=0)
    assert machine.tick(0.0, 0.5)
    assert machine.reason == "20 of 25 calls in 10s took longer than 2s (breaker.slow_call_rate=0.8)"
    indifferent = BreakerMachine(Breaker())
    indifferent.record(0.0, "a", succeeded=50, slow=50, generation=0)
    assert not indifferent.tick(0.0, 0.5)


def test_old_calls_are_no_evidence() -> None:
    machine = BreakerMachine(Breaker(minimum_calls=20, window_s=10))
    machine.record(0.0, "a", failed=19, generation=0)
    machine.record(9.9, "a", failed=0, generation=0)
    assert machine.counts(9.9) == (19, 19, 0)
    machine.record(10.0, "a", failed=1, generation=0)
    assert not machine.tick(10.0, 0.5)
    assert machine.counts(10.0) == (1, 1, 0)


def test_an_average_day() -> None:
    machine = opened(Breaker(open_s=5.0, maximum_open_s=60.0), now=100.0)
    assert (machine.until, machine.openings, machine.generation, machine.by) == (105.0, 1, 1, "")
    machine.record(101.0, "a", succeeded=50, generation=0)  # was on its way: says nothing of what is now
    assert not machine.tick(104.9, 0.5)
    assert machine.probes_available(104.9) == 0
    assert machine.tick(105.0, 0.5)
    assert (machine.state, machine.until, machine.generation) == (PROBING, None, 2)
    assert "failed" in machine.reason
    machine.probes_given(105.0, 1)
    machine.record(106.0, "a", failed=1, generation=2)
    assert machine.probes_available(106.0) == 0
    assert machine.tick(106.0, 0.5)
    assert (machine.state, machine.until, machine.openings) == (OPEN, 116.0, 2)
    assert machine.reason == "a probe failed"
    assert machine.tick(116.0, 0.5)
    for stage in STAGES:
        assert machine.stage == machine.probes_available(117.0) == stage
        machine.probes_given(117.0, stage)
        assert machine.probes_available(117.0) == 0
        machine.record(117.0, "a", succeeded=stage, generation=machine.generation)
        assert machine.tick(117.0, 0.5) is (stage == 4)
    assert (machine.state, machine.openings, machine.counts(117.0)) == (CLOSED, 0, (0, 0, 0))


@given(policies, draws)
def test_open_times_grow_and_are_bounded(policy: Breaker, draw: float) -> None:
    machine, now, times = opened(policy, draw=draw), 0.0, []
    for _ in range(1100):
        assert machine.until is not None
        times.append(machine.until - machine.since)
        now = machine.until
        assert machine.tick(now, draw)
        machine.probes_given(now, 1)
        machine.record(now, "a", failed=1, generation=machine.generation)
        assert machine.tick(now, draw)
        if len(times) > 20 and machine.openings < 1000:
            machine.openings += 500  # as after a year of it
    assert all(one <= other + 1e-6 for one, other in pairwise(times))
    assert times[0] == pytest.approx(policy.open_s * (0.8 + 0.4 * draw))
    assert times[-1] == pytest.approx(policy.maximum_open_s * (0.8 + 0.4 * draw))


@given(
    policies, st.lists(st.tuples(st.sampled_from(["give", "succeed", "return", "wait", "fail"]), moments), max_size=40)
)
def test_it_closes_within_seven_probes_once_the_dependency_is_well(
    policy: Breaker, before: list[tuple[str, float]]
) -> None:
    machine, now = opened(policy), 0.0
    for what, seconds in before:
        machine.tick(now, 0.5)
        if what == "give":
            machine.probes_given(now, machine.probes_available(now))
        elif what == "return":
            machine.probes_returned(1)
        elif what == "wait":
            now += seconds
        else:
            ended = {"succeeded": 1} if what == "succeed" else {"failed": 1}
            machine.record(now, "a", generation=machine.generation, **ended)
    # From here on every probe succeeds; those that were lost before are waited for.
    machine.probes_returned(machine.probes_in_the_air)
    probes = ticks = 0
    while machine.state is not CLOSED:
        ticks += 1
        assert ticks < 20
        if machine.until is not None:
            now = max(now, machine.until)
        machine.tick(now, 0.5)
        available = machine.probes_available(now)
        machine.probes_given(now, available)
        machine.record(now, "a", succeeded=available, generation=machine.generation)
        probes += available
    assert probes <= 7


def test_a_probe_that_is_lost_has_failed() -> None:
    machine = opened(Breaker(open_s=1, maximum_open_s=1))
    machine.tick(1.0, 0.5)
    machine.probes_given(1.0, 1)
    assert not machine.tick(60.9, 0.5)
    assert machine.tick(61.0, 0.5)
    assert (machine.state, machine.reason) == (OPEN, "a probe had no result within 1m")


def test_an_answer_counts_for_the_oldest_probe() -> None:
    machine = opened(Breaker(open_s=1, maximum_open_s=1))
    machine.tick(1.0, 0.5)
    machine.probes_given(1.0, 1)
    machine.record(1.0, "a", succeeded=1, generation=machine.generation)
    machine.tick(1.0, 0.5)
    machine.probes_given(2.0, 1)
    machine.probes_given(52.0, 1)
    machine.record(61.0, "a", succeeded=1, generation=machine.generation)
    assert not machine.tick(62.0, 0.5)
    assert machine.tick(112.0, 0.5)


def test_a_permit_that_is_returned_again_and_again_hides_no_lost_probe() -> None:
    machine, now = opened(Breaker(open_s=1, maximum_open_s=1)), 1.0
    machine.tick(now, 0.5)
    machine.probes_given(now, 1)
    machine.record(now, "a", succeeded=1, generation=machine.generation)
    machine.tick(now, 0.5)
    machine.probes_given(now, 2)
    while not machine.tick(now, 0.5):
        machine.probes_returned(1)
        machine.probes_given(now, 1)
        now += 0.25
        assert now <= 61.0
    assert machine.state is OPEN


def test_slow_probes_do_not_close_what_slow_calls_opened() -> None:
    machine = opened(Breaker(slow_call_s=2, slow_call_rate=0.5, open_s=1, maximum_open_s=1))
    for stage, slow in ((1, 0), (2, 0), (4, 2)):
        machine.tick(2.0, 0.5)
        machine.probes_given(2.0, stage)
        machine.record(2.0, "a", succeeded=stage, slow=slow, generation=machine.generation)
    assert machine.tick(2.0, 0.5)
    assert (machine.state, machine.reason) == (OPEN, "2 of 4 probes took longer than 2s")


def test_operators_rule() -> None:
    machine = BreakerMachine(Breaker(), now=3.0)
    assert machine.since == 3.0
    machine.force_open(5.0, "ann", "they asked us to")
    assert (machine.state, machine.by, machine.reason, machine.until) == (OPEN, "ann", "they asked us to", None)
    assert not machine.tick(1e9, 0.5)
    machine.force_probe(6.0, "bob")
    assert (machine.state, machine.by, machine.reason) == (PROBING, "bob", "they asked us to")
    machine.probes_given(6.0, 1)
    machine.force_probe(7.0, "bob")
    machine.record(7.0, "a", failed=1, generation=2)
    assert (machine.probes_available(7.0), machine.probes_in_the_air, machine.generation) == (1, 0, 3)
    machine.force_close(8.0, "ann")
    assert (machine.state, machine.by, machine.openings, machine.until) == (CLOSED, "ann", 0, None)
    machine.record(8.0, "a", failed=50, generation=4)
    assert machine.tick(8.0, 0.5)
    assert (machine.state, machine.by) == (OPEN, "")
    machine.force_close(9.0, "")
    assert (machine.by, machine.reason) == ("", "")
    machine.force_probe(9.0, "ann")
    assert machine.reason == "probed by hand"


def test_another_policy_keeps_what_is_known() -> None:
    machine = BreakerMachine(Breaker(minimum_calls=100, window_s=10))
    for second in range(10):
        machine.record(float(second), "a", failed=3, generation=0)
    machine.change_policy(Breaker(minimum_calls=10, window_s=5))
    assert machine.counts(9.0).calls == 15
    assert machine.tick(9.0, 0.5)
    machine = opened(Breaker(open_s=600, maximum_open_s=600))
    assert machine.until == 600.0
    machine.change_policy(Breaker(open_s=5, maximum_open_s=10))
    assert (machine.state, machine.until) == (OPEN, 12.0)


@given(policies, st.lists(st.tuples(moments, st.sampled_from(HOSTS), few, few), max_size=20), st.floats(-1e6, 1e6))
def test_a_snapshot_means_the_same_on_another_clock(
    policy: Breaker, reports: list[tuple[float, str, int, int]], origin: float
) -> None:
    machine, now = BreakerMachine(policy), 0.0
    for seconds, source, succeeded, failed in reports:
        now += seconds
        machine.record(now, source, succeeded=succeeded, failed=failed, generation=machine.generation)
        machine.tick(now, 0.5)
    plain = machine.snapshot(now)
    other = BreakerMachine.restore(policy, plain, origin)
    assert other.counts(origin) == machine.counts(now)
    assert (other.state, other.generation, other.openings, other.reason) == (
        machine.state, machine.generation, machine.openings, machine.reason,
    )  # fmt: skip
    if machine.until is None:
        assert other.until is None
    else:
        assert other.until is not None
        assert other.until - origin == pytest.approx(machine.until - now, abs=1e-6)


@pytest.mark.parametrize(
    "numbers", [{"succeeded": -1}, {"failed": -1}, {"slow": -1}, {"succeeded": 1, "slow": 2}], ids=str
)
def test_reports_that_cannot_be_are_named(numbers: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="host-1 reported"):
        BreakerMachine(Breaker()).record(0.0, "host-1", generation=0, **numbers)


def test_what_is_no_snapshot_is_refused() -> None:
    plain = BreakerMachine(Breaker()).snapshot(0.0)
    for broken in ({}, plain | {"state": "ajar"}, plain | {"window": None}, plain | {"probes": {"stage": 3}}):
        with pytest.raises(ValueError, match="no snapshot of a breaker"):
            BreakerMachine.restore(Breaker(), broken, 0.0)
    with pytest.raises(ValueError, match="-1 probes"):
        BreakerMachine(Breaker()).probes_returned(-1)


def test_a_clock_that_goes_back_loses_no_call() -> None:
    machine = BreakerMachine(Breaker(minimum_calls=20))
    machine.record(50.0, "a", failed=10, generation=0)
    machine.record(20.0, "a", failed=10, generation=0)
    assert machine.tick(50.0, 0.5)


def test_all_hosts_of_a_large_cluster_are_told_apart() -> None:
    machine, expected = BreakerMachine(Breaker(minimum_calls=10**6)), Counter[str]()
    for step in range(2000):
        machine.record(step / 100, f"host-{step % 128}", failed=1, succeeded=1, generation=0)
        expected["calls"] += 2 if step / 100 >= 10 else 0
    assert machine.counts(19.99).calls == expected["calls"]
