"""A partition's queue under random histories: nothing vanishes, counters add up, order and caps hold."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from admission.admission_policy import AdmissionPolicy, AgentPolicy, ClassPolicy, TenantPolicy
from admission.ordered_runs import Queued
from admission.partition_queue import PartitionQueue
from admission.queue_answers import Accepted, Refused
from admission.queue_law import DEPENDENCY, REASONS, Arrival
from admission.values import CLASSES, level_of_score, rank_of_score

TENANTS = ("acme", "beta", "gamma")
AGENTS = ("echo", "slow")
CLASS = st.builds(
    ClassPolicy,
    ahead_ms=st.integers(0, 100_000).map(float),
    pace=st.sampled_from([0.0, 0.01, 0.5, 10.0]),
    room=st.sampled_from([-1.0, 0.5, 8.0]),
    max_wait_ms=st.sampled_from([0, 1000, 20_000, 86_400_000]),
    share=st.sampled_from([0.0, 0.0, 0.1, 0.4]),
    open=st.sampled_from([True, True, True, False]),
)
TENANT = st.builds(
    TenantPolicy,
    weight=st.sampled_from([0.5, 1.0, 3.0]),
    ranks=st.sampled_from([(0, 1, 2, 3, 4), (2, 3, 4)]),
    left=st.sampled_from([-1, -1, 0, 3]),
    until_ms=st.sampled_from([0, 0, 0, 10**9]),
    places=st.sampled_from([-1, -1, 0, 2]),
)
AGENT = st.builds(
    AgentPolicy,
    cost_ms=st.sampled_from([0.2, 1000.0, 30_000.5]),
    p90_ms=st.sampled_from([0.0, 5000.0]),
    until_ms=st.sampled_from([0, 0, 5000]),
    dependency=st.just("models"),
)
POLICIES = st.fixed_dictionaries(
    {
        "partitions": st.sampled_from([1, 8]),
        "dry_run": st.sampled_from([False, False, False, True]),
        "drain": st.sampled_from([None, 0.5, 20.0]),
        "classes": st.tuples(*[CLASS] * 5),
        "tenants": st.dictionaries(st.sampled_from(TENANTS), TENANT),
        "agents": st.dictionaries(st.sampled_from(AGENTS), AGENT),
        "floor_ms": st.sampled_from([0.0, 0.0, 30_000.0]),
        "count_bound": st.sampled_from([0, 0, 6]),
        "bytes_bound": st.sampled_from([0, 0, 100]),
    }
)
HOLDS = ("queue", "class:normal", "tenant:acme", "agent:slow")


class QueueMachine(RuleBasedStateMachine):
    """Keeps the records that a store would keep, and recounts everything from them."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = PartitionQueue(3, 8)
        self.now = 1000
        self.next = 0
        self.queued: dict[str, Queued] = {}
        self.running: dict[str, Queued] = {}
        self.parked: dict[str, Queued] = {}
        self.accepted = self.ended = self.shed = self.cancelled = self.refused = 0
        self.served_ms = 0

    @initialize(policy=POLICIES)
    def begin(self, policy: dict[str, Any]) -> None:
        self.publish(policy, {})

    # The door

    @rule(
        rank=st.integers(0, 4),
        number=st.sampled_from([0, 50, 99]),
        tenant=st.sampled_from(TENANTS),
        agent=st.sampled_from(AGENTS),
        max_wait=st.sampled_from([-1, -1, 0, 500, 50_000]),
        within=st.sampled_from([None, None, -5, 0, 3000, 600_000]),
        size=st.sampled_from([0, 10, 60, 200]),
        kept=st.sampled_from([False, False, False, True]),
        again=st.booleans(),
        times=st.integers(1, 4),
    )
    def submit(self, rank: int, number: int, tenant: str, agent: str, **other: Any) -> None:
        deadline = -1 if other["within"] is None else max(0, self.now + other["within"])
        for _ in range(other["times"]):
            self.next += 1
            arrival = Arrival(
                f"r{self.next}", rank * 100 + 99 - number, tenant, agent, other["max_wait"], deadline, other["size"],
                other["again"], other["kept"],
            )  # fmt: skip
            answer = self.queue.submit(self.now, arrival)
            if isinstance(answer, Refused):
                self.check_refused(arrival, answer)
            else:
                self.check_accepted(arrival, answer)

    def check_refused(self, arrival: Arrival, answer: Refused) -> None:
        self.refused += 1
        assert not arrival.kept
        assert not self.queue.policy.dry_run
        assert answer.reason in REASONS or answer.reason.startswith(DEPENDENCY)
        after_ms, by_itself = answer.come_back
        assert after_ms >= 1 or (after_ms == -1 and not by_itself)
        if arrival.deadline_ms >= 0 and after_ms >= 0:
            assert self.now + after_ms <= arrival.deadline_ms + 1, "come back when it is too late"

    def check_accepted(self, arrival: Arrival, answer: Accepted) -> None:
        run, policy = answer.run, self.queue.policy
        assert level_of_score(run.score) == arrival.level
        assert run.id == arrival.id
        assert answer.place >= 1
        if not arrival.kept and not policy.dry_run:
            assert not answer.would
            assert answer.wait_ms <= run.max_wait_ms
            if arrival.deadline_ms >= 0:
                p90_ms = policy.agent(arrival.agent).p90_ms
                assert self.now + answer.wait_ms + p90_ms <= arrival.deadline_ms
                assert arrival.deadline_ms > self.now
        self.accepted += 1
        for each in answer.evicted:
            self.check_evicted(each.run)
            assert each.run.score > run.score, "something more valuable had to leave"
        self.queued[run.id] = run
        if policy.count_bound and not arrival.kept and not policy.dry_run:
            assert len(self.queue) <= policy.count_bound

    def check_evicted(self, run: Queued) -> None:
        assert run.evictable
        assert self.queued.pop(run.id) == run
        self.shed += 1

    # Hosts

    @rule(limit=st.integers(0, 5), serves=st.sampled_from([None, None, ("echo",), ()]))
    def claim(self, limit: int, serves: tuple[str, ...] | None) -> None:
        claimed = self.queue.claim(self.now, limit, serves)
        for run, why in claimed.over:
            assert self.queued.pop(run.id) == run
            assert run.deadline_ms >= 0 if why == "deadline_exceeded" else run.used_ms < 0
            self.shed += why == "max_wait"
            self.cancelled += why != "max_wait"
            if run.used_ms >= 0:
                self.served_ms += run.used_ms
        assert len(claimed.runs) <= limit
        for run in claimed.runs:
            before = self.queued.pop(run.id)
            assert before._replace(used_ms=run.used_ms) == run
            self.running[run.id] = run
            self.check_may_run(run, serves)
        if all(rule.share == 0 for rule in self.queue.policy.classes):
            assert claimed.runs == sorted(claimed.runs)
            for run in claimed.runs:
                better = [each for each in self.queued.values() if each < run]
                assert all(self.may_not_run(each, serves) for each in better), "somebody better was passed over"

    def check_may_run(self, run: Queued, serves: tuple[str, ...] | None) -> None:
        assert serves is None or run.agent in serves
        names = {"queue", f"class:{CLASSES[rank_of_score(run.score)]}", f"tenant:{run.tenant}", f"agent:{run.agent}"}
        assert not names & self.queue.held.keys()
        places = self.places_of(run.tenant)
        assert places < 0 or self.runs_of(run.tenant) <= places

    def may_not_run(self, run: Queued, serves: tuple[str, ...] | None) -> bool:
        names = {f"class:{CLASSES[rank_of_score(run.score)]}", f"tenant:{run.tenant}", f"agent:{run.agent}"}
        places = self.places_of(run.tenant)
        stopped = bool(names & self.queue.held.keys()) or (0 <= places <= self.runs_of(run.tenant))
        return stopped or (serves is not None and run.agent not in serves)

    def places_of(self, tenant: str) -> int:
        return self.queue.places.get(tenant, self.queue.policy.tenant(tenant).places)

    def runs_of(self, tenant: str) -> int:
        return sum(run.tenant == tenant for run in self.running.values())

    @precondition(lambda self: self.running)
    @rule(data=st.data(), how=st.sampled_from(["end", "park", "back"]), slot_ms=st.integers(0, 40_000))
    def stop(self, data: st.DataObject, how: str, slot_ms: int) -> None:
        run = self.running.pop(data.draw(st.sampled_from(sorted(self.running))))
        if how == "end":
            self.queue.end(run, slot_ms, data.draw(st.sampled_from([-1, slot_ms])))
            self.ended += 1
            self.served_ms += run.used_ms + slot_ms
        elif how == "park":
            self.parked[run.id] = self.queue.park(run, slot_ms)
        else:
            back = self.queue.put_back(run, slot_ms)
            assert back.score == run.score
            assert not back.evictable
            self.queued[run.id] = back

    @precondition(lambda self: self.parked)
    @rule(data=st.data(), over=st.booleans())
    def wake(self, data: st.DataObject, over: bool) -> None:
        run = self.parked.pop(data.draw(st.sampled_from(sorted(self.parked))))
        if over:
            self.queue.end_parked(run)
            self.ended += 1
            self.served_ms += run.used_ms
        else:
            self.queued[run.id] = self.queue.wake(run)

    # Leaving

    @precondition(lambda self: self.queued)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        run = self.queued.pop(data.draw(st.sampled_from(sorted(self.queued))))
        assert self.queue.leave(run)
        assert not self.queue.leave(run)
        self.cancelled += 1
        if run.used_ms >= 0:
            self.served_ms += run.used_ms

    @rule(most=st.integers(0, 5))
    def evict(self, most: int) -> None:
        evicted = self.queue.evict(self.now, most)
        assert len(evicted) <= most
        assert not (evicted and self.queue.policy.dry_run)
        for each in evicted:
            self.check_evicted(each.run)
            assert each.reason in REASONS or each.reason.startswith(DEPENDENCY)
        if evicted:
            # Bottom first: nothing that may be evicted and is worth less is left in the queue.
            worst = min(each.run.score for each in evicted)
            left = [run for run in self.queued.values() if run.evictable and run.score > worst]
            looked = [run for run in self.queued.values() if not run.evictable and run.score > worst]
            assert not [run for run in left if self.queue._queue.has(run)] or len(looked) >= 16

    # The controller and operators

    @rule(policy=POLICIES, places=st.dictionaries(st.sampled_from(TENANTS), st.integers(0, 3)))
    def publish(self, policy: dict[str, Any], places: dict[str, int]) -> None:
        v = self.queue.policy.v
        newer = AdmissionPolicy(v=v + 1, at_ms=self.now - 250, **policy)
        said = self.queue.exchange(self.now, newer, places)
        assert self.queue.policy is newer
        assert said.v == v + 1
        assert said.places == places
        self.queue.exchange(self.now, AdmissionPolicy(v=v), {"acme": 99})
        assert self.queue.policy is newer
        assert self.queue.places == places

    @rule(what=st.sampled_from(HOLDS))
    def hold(self, what: str) -> None:
        self.queue.hold(what)

    @rule(what=st.sampled_from(HOLDS))
    def resume(self, what: str) -> None:
        was = what in self.queue.held
        assert self.queue.resume(what) == was
        assert what not in self.queue.held

    @rule(ms=st.sampled_from([0, 10, 400, 6000, 30_000]))
    def later(self, ms: int) -> None:
        self.now += ms

    # What must always hold

    @invariant()
    def nothing_vanishes(self) -> None:
        assert len(self.queue) == len(self.queued)
        assert all(run in self.queue for run in self.queued.values())
        there = len(self.queued) + len(self.running) + len(self.parked)
        assert self.accepted == there + self.ended + self.shed + self.cancelled

    @invariant()
    def costs_are_conserved(self) -> None:
        fair = self.queue.fair
        alive = [*self.queued.values(), *self.running.values(), *self.parked.values()]
        assert fair.charged_ms - fair.returned_ms == self.served_ms + sum(run.cost_ms for run in alive)

    def teardown(self) -> None:
        self.counters_add_up()

    @rule()
    def counters_add_up(self) -> None:
        said = self.queue.exchange(self.now)
        ranks = [rank_of_score(run.score) for run in self.queued.values()]
        for rank, each in enumerate(said.classes):
            assert each.queued + each.aside == ranks.count(rank)
            costs = [run.cost_ms for run in self.queued.values() if rank_of_score(run.score) == rank]
            assert each.queued_ms + each.aside_ms == sum(costs)
            assert min(each.queued, each.aside, each.queued_ms, each.aside_ms) >= 0
        assert said.running == len(self.running)
        assert said.queued_bytes == sum(run.size_bytes for run in self.queued.values())
        for tenant in TENANTS:
            mine = said.tenants.get(tenant)
            assert (mine.queued if mine else 0) == sum(run.tenant == tenant for run in self.queued.values())
            assert (mine.running if mine else 0) == self.runs_of(tenant)
        assert sum(sum(counts) for counts in said.shed.values()) == self.shed
        assert sum(sum(counts) for counts in said.refused.values()) == self.refused
        assert sum(each.accepted for each in said.classes) == self.accepted

    @invariant()
    def the_best_level_is_told(self) -> None:
        if "queue" not in self.queue.held and not self.queue.held and not len(self.queue._aside) and self.queued:
            assert self.queue.best_level == level_of_score(min(self.queued.values()).score)


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
