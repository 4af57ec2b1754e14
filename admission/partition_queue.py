"""One partition's queue, as the store's scripts keep it: the same law, in Python. Pure.

The scripts of ``cluster/lua`` are its twins: a property test drives both through the same histories. The simulator
drives this one alone, in virtual time. Whoever drives it keeps the runs' records: it hands out :class:`Queued`, and is
given them back.
"""

from collections.abc import Collection, Mapping
from itertools import islice
from typing import Final

from admission.admission_policy import AdmissionPolicy, AgentPolicy
from admission.fair_share import FairShare
from admission.ordered_runs import OrderedRuns, Queued
from admission.partition_counts import PartitionCounts
from admission.queue_answers import Accepted, Claimed, Evicted, Refused
from admission.queue_law import (
    QUEUE_FULL,
    Arrival,
    Verdict,
    Wait,
    capped,
    caps,
    charged_ms,
    check,
    come_back,
    judged,
    max_wait_of,
    part_ahead,
    predicted,
)
from admission.queue_statistics import PartitionStatistics
from admission.retry_calendar import NEVER, RetryCalendar
from admission.set_aside import AGENT, HELD, RUNNING, SetAside, key_of
from admission.values import (
    CLASS_SPAN,
    CLASSES,
    level_of_score,
    rank_of_score,
    score_of,
    start_of_score,
)

MOST_LOOKED: Final = 256
"""One claim looks at no more runs than this beyond those that it takes."""
EVICT_LOOK: Final = 16
"""So many runs at the bottom are looked at for one that may be evicted."""
MAX_WAIT: Final = "max_wait"
DEADLINE_EXCEEDED: Final = "deadline_exceeded"


_FIRST: Final = AdmissionPolicy()


class PartitionQueue:
    """The queue of one of ``partitions``. Times are the store's clock, in milliseconds."""

    def __init__(self, partition: int = 0, partitions: int = 1) -> None:
        self.partition = partition
        self.policy = _FIRST
        self.fair = FairShare()
        self.calendar = RetryCalendar(partition / partitions)
        self.counts = PartitionCounts()
        self.places: dict[str, int] = {}
        self.held: dict[str, str] = {}
        self._queue = OrderedRuns()
        self._aside = SetAside()
        self._credit = [0.0] * len(CLASSES)

    def __len__(self) -> int:
        """Queued runs, with those that are set aside."""
        return len(self._queue) + len(self._aside)

    def __contains__(self, run: Queued) -> bool:
        return self._queue.has(run) or self._aside.has(run)

    @property
    def best_level(self) -> int:
        """The level of the best run that may be claimed; -1 where there is none."""
        first = self._queue.first()
        return -1 if first is None or "queue" in self.held else level_of_score(first.score)

    # The door

    def submit(self, now_ms: int, arrival: Arrival) -> Accepted | Refused:
        """A new run comes. One that is there already must not be given again.

        Raises:
            ValueError: it makes no sense.
        """
        check(arrival)
        policy, rank = self.policy, arrival.rank
        agent, tenant = policy.agent(arrival.agent), policy.tenant(arrival.tenant)
        verdict = None
        if not arrival.kept:
            verdict = caps(policy, now_ms, arrival, agent, tenant, self.counts.net(arrival.tenant))
            if verdict is not None and not policy.dry_run:
                self.counts.refused(verdict.reason, rank)
                return Refused(verdict.reason, capped(policy, self.calendar, now_ms, arrival, agent, verdict), 0.0)
        cost_ms = charged_ms(agent)
        if not arrival.again:
            self.counts.offered(rank, cost_ms)
        score = score_of(arrival.level, self.fair.due(arrival.level, arrival.tenant))
        wait = self._wait(now_ms, score, agent)
        max_wait_ms = max_wait_of(policy, arrival)
        displaced: list[Queued] | None = []
        reason = verdict.reason if verdict is not None else ""
        if not arrival.kept and not reason:
            reason = judged(policy, now_ms, arrival, agent, wait, max_wait_ms)
            if not reason:
                displaced = self._displaced(score, arrival.size_bytes)
                reason = QUEUE_FULL if displaced is None else ""
        if reason and not policy.dry_run:
            return self._refuse(now_ms, arrival, Verdict(reason, wait.wait_ms), cost_ms, agent)
        evicted: list[Evicted] = []
        if displaced and policy.dry_run:
            # One for one: those before it would not be there any more.
            self.counts.would(QUEUE_FULL, rank_of_score(displaced[0].score))
        elif displaced:
            evicted = [self._evict(now_ms, each, QUEUE_FULL) for each in displaced]
        if reason:
            self.counts.would(reason, rank)
        if policy.dry_run and not arrival.kept:
            # What operators only try out ends nothing: the job's own bound does.
            max_wait_ms = arrival.max_wait_ms
        start = self.fair.charge(arrival.level, arrival.tenant, cost_ms, tenant.weight)
        run = Queued(
            score_of(arrival.level, start), arrival.id, arrival.tenant, arrival.agent, cost_ms, tenant.weight,
            max_wait_ms, arrival.deadline_ms, now_ms, arrival.size_bytes, arrival.kept,
        )  # fmt: skip
        self._queue.add(run)
        self.counts.came(run, rank, again=arrival.again)
        return Accepted(run, wait.wait_ms, wait.place, tuple(evicted), reason)

    def predicted(self, now_ms: int, run: Queued) -> Wait:
        """How long a queued run will still wait for its start, why, and its place."""
        return self._wait(now_ms, run.score, self.policy.agent(run.agent))

    def _wait(self, now_ms: int, score: int, agent: AgentPolicy) -> Wait:
        rank = rank_of_score(score)
        queued = self.counts.tally.queued[rank]
        # Everything in better classes goes before it, too: the difference is what of its own class does.
        better = sum(self.counts.tally.queued[:rank])
        part = part_ahead(self._queue.before(score) - better, queued) if queued else 1.0
        return predicted(self.policy, self.counts.tally, now_ms, rank, part, agent)

    def _refuse(self, now_ms: int, arrival: Arrival, verdict: Verdict, cost_ms: int, agent: AgentPolicy) -> Refused:
        self.counts.refused(verdict.reason, arrival.rank)
        if 0 < self.policy.bytes_bound < arrival.size_bytes:
            return Refused(verdict.reason, NEVER, verdict.wait_ms)
        again = come_back(
            self.policy, self.counts.tally, self.calendar, now_ms, arrival.rank, cost_ms, agent, arrival.deadline_ms,
            verdict.reason,
        )  # fmt: skip
        return Refused(verdict.reason, again, verdict.wait_ms)

    def _displaced(self, score: int, size_bytes: int) -> list[Queued] | None:
        """What has to leave so that a run with this score fits into the queue's bounds; None where it may not come."""
        policy = self.policy
        over = len(self) + 1 - policy.count_bound if policy.count_bound else 0
        over_bytes = self.counts.queued_bytes + size_bytes - policy.bytes_bound if policy.bytes_bound else 0
        leaving: list[Queued] = []
        for run in islice(self._queue.from_bottom(), EVICT_LOOK):
            if (over <= 0 and over_bytes <= 0) or run.score <= score:
                break
            if run.evictable:
                leaving.append(run)
                over -= 1
                over_bytes -= run.size_bytes
        return leaving if over <= 0 and over_bytes <= 0 else None

    # Shedding

    def evict(self, now_ms: int, most: int) -> list[Evicted]:
        """Sheds from the bottom, while what is there is predicted to wait for longer than it may."""
        gone: list[Evicted] = []
        while len(gone) < most and not self.policy.dry_run:
            run = self._bottom()
            if run is None or run.max_wait_ms < 0:
                break
            wait = self.predicted(now_ms, run)
            if wait.wait_ms <= run.max_wait_ms:
                break
            gone.append(self._evict(now_ms, run, wait.reason))
        return gone

    def _bottom(self) -> Queued | None:
        """The run that would be evicted first."""
        return next((run for run in islice(self._queue.from_bottom(), EVICT_LOOK) if run.evictable), None)

    def _evict(self, now_ms: int, run: Queued, reason: str) -> Evicted:
        rank = rank_of_score(run.score)
        self._queue.remove(run)
        self.counts.left(run, rank)
        self.counts.evicted(reason, run, rank)
        self._give_back(run)
        again = come_back(
            self.policy, self.counts.tally, self.calendar, now_ms, rank, run.cost_ms, self.policy.agent(run.agent),
            run.deadline_ms, reason,
        )  # fmt: skip
        return Evicted(run, reason, again)

    def leave(self, run: Queued, reason: str = "") -> bool:
        """A queued run is over: cancelled, or shed by its own timer (then with ``max_wait`` as the reason). Whether it
        was queued.
        """
        rank = rank_of_score(run.score)
        if self._queue.remove(run):
            self.counts.left(run, rank)
        elif self._aside.remove(run):
            self.counts.left_aside(run, rank)
        else:
            return False
        self._over(run, reason)
        return True

    def _over(self, run: Queued, reason: str) -> None:
        if reason == MAX_WAIT:
            self.counts.shed(reason, rank_of_score(run.score))
        if run.used_ms < 0:
            self._give_back(run)
        else:
            self._settle(run)

    def _give_back(self, run: Queued) -> None:
        self.fair.give_back(level_of_score(run.score), run.tenant, run.cost_ms, run.weight)

    def _settle(self, run: Queued) -> None:
        self.fair.settle(level_of_score(run.score), run.tenant, run.cost_ms, run.used_ms, run.weight)

    # Hosts

    def claim(
        self, now_ms: int, limit: int, serves: Collection[str] | None = None, worst: int | None = None
    ) -> Claimed:
        """The best runs become a host's.

        Classes with a guaranteed share that have something queued get credit for all that is claimed, and go first as
        soon as that covers their first run. What may not start now is set aside until it may.

        Args:
            now_ms: the store's clock.
            limit: how many at most.
            serves: the agents that the host serves; None for all.
            worst: the worst level that is wanted; what a share owes is started in any case.
        """
        if "queue" in self.held:
            return Claimed([], [])
        self._bring_back(limit, serves)
        runs: list[Queued] = []
        over: list[tuple[Queued, str]] = []
        for _ in range(limit + MOST_LOOKED):
            run = self._next(worst) if len(runs) < limit else None
            if run is None:
                break
            rank = rank_of_score(run.score)
            self.counts.left(run, rank)
            late = _late(now_ms, run)
            if late:
                self._over(run, late)
                over.append((run, late))
                continue
            key = self._hindrance(run, rank, serves)
            if key:
                self._aside.add(key, run)
                self.counts.set_aside(run, rank)
                continue
            self.fair.serve(level_of_score(run.score), start_of_score(run.score))
            self._credited(rank, run.cost_ms)
            self.counts.started(run, rank)
            runs.append(run if run.used_ms >= 0 else run._replace(used_ms=0))
        return Claimed(runs, over)

    def _next(self, worst: int | None) -> Queued | None:
        """Takes out what is to start next."""
        queued = self.counts.tally.queued
        for rank, rule in enumerate(self.policy.classes):
            if rule.share > 0 and queued[rank]:
                head = self._queue.first_from(rank * CLASS_SPAN)
                if head is not None and self._credit[rank] >= head.cost_ms:
                    self._queue.remove(head)
                    return head
        first = self._queue.first()
        if first is None or (worst is not None and level_of_score(first.score) > worst):
            return None
        return self._queue.pop_first()

    def _credited(self, rank: int, cost_ms: int) -> None:
        """A run of a class was claimed: what that means for classes with a share."""
        for each, rule in enumerate(self.policy.classes):
            if rule.share > 0:
                if not self.counts.tally.queued[each]:
                    self._credit[each] = 0.0
                    continue
                credit = self._credit[each] + cost_ms * rule.share
                self._credit[each] = max(0.0, credit - cost_ms) if each == rank else credit

    def _hindrance(self, run: Queued, rank: int, serves: Collection[str] | None) -> str:
        """Under which key a run is to be set aside; '' where it may start."""
        if serves is not None and run.agent not in serves:
            return key_of(AGENT, run.agent)
        if self.held:
            for name in (f"class:{CLASSES[rank]}", f"tenant:{run.tenant}", f"agent:{run.agent}"):
                if name in self.held:
                    return key_of(HELD, name)
        places = self._places(run.tenant)
        return key_of(RUNNING, run.tenant) if 0 <= places <= self.counts.running_of(run.tenant) else ""

    def _places(self, tenant: str) -> int:
        """How many runs of a tenant may run here at once; -1 for any."""
        given = self.places.get(tenant)
        return self.policy.tenant(tenant).places if given is None else given

    def _bring_back(self, limit: int, serves: Collection[str] | None) -> None:
        """Runs that were set aside and may start now come back to their places in the queue, the best ones first."""
        for key in self._aside.by_key():
            kind, _, name = key.partition("\n")
            most = limit
            if kind == RUNNING:
                places = self._places(name)
                most = limit if places < 0 else min(limit, places - self.counts.running_of(name))
            elif name in self.held if kind == HELD else serves is not None and name not in serves:
                continue
            for run in self._aside.take(key, most):
                self._queue.add(run)
                self.counts.brought_back(run, rank_of_score(run.score))

    def put_back(self, run: Queued, slot_ms: int) -> Queued:
        """A claimed run is handed back, or taken from a lost host: it is queued at its old place.

        Args:
            run: as :meth:`claim` returned it.
            slot_ms: slot time that it has taken since.
        """
        return self.wake(self.park(run, slot_ms))

    def park(self, run: Queued, slot_ms: int) -> Queued:
        """A claimed run is unloaded: it holds no slot, and is not queued until :meth:`wake`."""
        self.counts.stopped(run, slot_ms)
        return run._replace(used_ms=max(0, run.used_ms) + slot_ms)

    def wake(self, run: Queued) -> Queued:
        """A parked run is queued again, at its old place."""
        self._queue.add(run)
        self.counts.back(run, rank_of_score(run.score))
        return run

    def end(self, run: Queued, slot_ms: int, service_ms: int = -1) -> None:
        """A claimed run is over.

        Args:
            run: as :meth:`claim` returned it.
            slot_ms: slot time that it has taken since.
            service_ms: from its first start, if it succeeded; else -1.
        """
        self.end_parked(self.park(run, slot_ms), service_ms)

    def end_parked(self, run: Queued, service_ms: int = -1) -> None:
        """A parked run is over."""
        self._settle(run)
        self.counts.ended(run, service_ms)

    # Operators and the controller

    def hold(self, what: str, note: str = "{}") -> None:
        """Pauses ``queue``, ``class:NAME``, ``tenant:NAME`` or ``agent:NAME``; ``note`` says by whom and why."""
        self.held[what] = note

    def resume(self, what: str) -> bool:
        """Ends a pause; whether there was one. What it held comes back with the next claims."""
        return self.held.pop(what, None) is not None

    def exchange(
        self, now_ms: int, policy: AdmissionPolicy | None = None, places: Mapping[str, int] | None = None
    ) -> PartitionStatistics:
        """Takes the controller's word, unless it is an older one, and says how things are here.

        Args:
            now_ms: the store's clock.
            policy: the new policy.
            places: how many runs of each capped tenant may run here at once from now on.
        """
        if policy is not None and policy.v >= self.policy.v:
            self.policy = policy
            if places is not None:
                self.places = dict(places)
        for level in self.fair.levels:
            low = score_of(level, 0)
            empty = self._queue.before(low) == self._queue.before(score_of(level + 1, 0))
            self.fair.forget(level, empty=empty)
        self.calendar.forget(now_ms)
        bottom = self._bottom()
        said = self.counts.exchanged()
        said.partition, said.at_ms, said.v = self.partition, now_ms, self.policy.v
        said.places, said.held = dict(self.places), dict(self.held)
        if bottom is not None:
            rank = rank_of_score(bottom.score)
            before = self._queue.before(bottom.score) - sum(self.counts.tally.queued[:rank])
            said.bottom_level, said.bottom_max_wait_ms = level_of_score(bottom.score), bottom.max_wait_ms
            said.bottom_part = part_ahead(before, self.counts.tally.queued[rank])
        return said


def _late(now_ms: int, run: Queued) -> str:
    """Why a queued run's time is over; '' where it is not."""
    if 0 <= run.deadline_ms <= now_ms:
        return DEADLINE_EXCEEDED
    if run.used_ms < 0 <= run.max_wait_ms and run.accepted_ms + run.max_wait_ms <= now_ms:
        return MAX_WAIT
    return ""
