"""The world in virtual time: clients that submit, hosts with slots, a dependency, a store, and what strikes them.

Whoever decides is an arm (see ``arms``). Everything else is here, and is the same for all arms.
"""

import heapq
import math
import random
from collections.abc import Callable, Mapping
from typing import Any, Final

from admission.breaker import BreakerMachine, BreakerState
from admission.dependency import Breaker
from admission.queue_controller import HostState
from benchmarks.queue_simulation.arms.arm import Arm, Refusal
from benchmarks.queue_simulation.jobs import OVER, PARKED, QUEUED, RUNNING, Attempt, Job, Jobs
from benchmarks.queue_simulation.plan import DEPENDENCY, Plan, Strike
from benchmarks.queue_simulation.record import Record

PERIOD_MS: Final = 250.0
PROBE_MS: Final = 100.0
START_MS: Final = 1_000_000
"""The store's clock at the beginning."""


class Host:
    """A host: how many slots it has, which of them are put away while it drains, and what it runs."""

    __slots__ = ("draining", "gone_ms", "idle", "name", "running", "slots")

    def __init__(self, name: str, slots: int) -> None:
        self.name = name
        self.slots = slots
        self.draining = False
        self.gone_ms = math.inf
        self.idle = 0
        self.running: dict[Attempt, None] = {}


class World:
    """One simulation of one arm."""

    def __init__(self, plan: Plan, make: Callable[["World"], Arm]) -> None:
        self.plan = plan
        self.now = 0.0
        self.record = Record(plan)
        self.rng = random.Random(f"world {plan.seed}")
        self.jobs = Jobs(plan)
        self.hosts: dict[str, Host] = {}
        self.slowness = 1.0
        self.store_up = True
        self.dependency_up = True
        self.breaker = BreakerMachine(Breaker())
        self.breaker.has_others = plan.hosts > 1
        self.parked: dict[Attempt, None] = {}
        self.submissions = 0
        self._needs = [agent.dependency == DEPENDENCY for agent in plan.agents]
        self._events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._count = 0
        self._free: list[Host] = []
        self._held_back: list[tuple[Callable[[Any], None], Any]] = []
        self._filling = False
        self._dead: list[Host] = []
        self.arm = make(self)

    # Events

    def at(self, when_ms: float, happens: Callable[[Any], None], to: Any = None) -> None:
        """Something happens later."""
        self._count += 1
        heapq.heappush(self._events, (when_ms, self._count, happens, to))

    def run(self) -> Record:
        """Until everything is over that has a slot when the last job has come."""
        plan, events = self.plan, self._events
        for number in range(plan.hosts):
            self._join(Host(f"h{number}", plan.slots))
        self._tick(None)
        self.at(self.jobs.next_ms(0.0), self._arrive)
        for strike in plan.strikes:
            self.at(strike.at_ms, self._strike, strike)
            self.at(strike.over_ms, self._relieve, strike)
        while events and events[0][0] < plan.until_ms:
            self.now, _, happens, to = heapq.heappop(events)
            happens(to)
        self._bring_to_end()
        return self.record

    def _bring_to_end(self) -> None:
        while self._events:
            self.now, _, happens, to = heapq.heappop(self._events)
            if happens == self._end:
                happens(to)
        self.record.queued_at_end = self.arm.queued()
        self.record.parked_at_end = len(self.parked)
        self.record.running_at_end = sum(len(host.running) for host in self.hosts.values())

    def _tick(self, _: None) -> None:
        """What goes on all the time, once a period."""
        if self.store_up:
            if self.arm.has_breaker:
                self._probe()
            self.arm.tick(self.now)
            self.fill()
        self.record.sampled(self.now, self.arm.queued())
        self.at(self.now + PERIOD_MS, self._tick)

    # Clients

    def _arrive(self, _: None) -> None:
        job, service_ms = self.jobs.draw()
        self._submit(self._attempt(job, 1, service_ms, again=False))
        self.at(self.jobs.next_ms(self.now), self._arrive)

    def _attempt(self, job: Job, number: int, service_ms: float, *, again: bool) -> Attempt:
        partition = (job.number * 2_654_435_761 >> 7) % self.plan.partitions
        return Attempt(f"{job.number:09d}-{number}", job, number, service_ms, partition, again)

    def _submit(self, attempt: Attempt) -> None:
        self.submissions += 1
        attempt.came_ms = self.now
        attempt.deadline_ms = self.now + self.plan.classes[attempt.job.rank].deadline_ms
        self.record.came(attempt)
        if not self.store_up:
            attempt.state = OVER
            self.record.failed_to_submit += 1
            self._comes_back(attempt)
            return
        refusal = self.arm.submit(self.now, attempt)
        if refusal is not None:
            self.refused(attempt, refusal)
            return
        attempt.state = QUEUED
        self.record.accepted(attempt)
        if self.arm.deadlines:
            self.at(attempt.deadline_ms, self._time_out, attempt)
        if self._free:
            self.fill()

    def refused(self, attempt: Attempt, refusal: Refusal) -> None:
        """The arm refuses a run, or sheds one that is queued."""
        self.record.shed(attempt, self.now, refusal)
        attempt.state = OVER
        if attempt.lost:
            return
        if not attempt.job.obeys or refusal.after_ms is None:
            self._comes_back(attempt)
        elif refusal.by_itself and refusal.after_ms >= 0 and attempt.number < self.plan.clients.attempts:
            late_ms = self.rng.random() * 50.0
            self.at(self.now + refusal.after_ms + late_ms, self._come_back_as_told, attempt)
        else:
            self.record.gave_up += 1

    def _comes_back(self, attempt: Attempt) -> None:
        """The client comes back after a pause of its own, if it comes back at all."""
        if attempt.number < self.plan.clients.attempts:
            pause_ms = self.rng.expovariate(1.0 / self.plan.clients.pause_ms)
            self.at(self.now + pause_ms, self._come_back, attempt)
        else:
            self.record.gave_up += 1

    def _come_back_as_told(self, attempt: Attempt) -> None:
        self._submit(self._attempt(attempt.job, attempt.number + 1, attempt.service_ms, again=True))

    def _come_back(self, attempt: Attempt) -> None:
        service_ms = attempt.service_ms
        if attempt.first_ms >= 0:
            # It has run, in vain: another run of an agent takes another time.
            service_ms = self.jobs.service_ms(self.rng, attempt.job.agent)
        self._submit(self._attempt(attempt.job, attempt.number + 1, service_ms, again=False))

    def _time_out(self, attempt: Attempt) -> None:
        """A client has waited for as long as it does."""
        if attempt.state == OVER or attempt.lost:
            return
        if not self.store_up:
            self._held_back.append((self._time_out, attempt))
            return
        attempt.lost = True
        self.record.timed_out += 1
        if self.arm.cancels and attempt.state in (QUEUED, PARKED):
            self.drop(attempt)
        self._comes_back(attempt)

    def drop(self, attempt: Attempt) -> None:
        """A queued or parked run is over because its deadline is."""
        if attempt.state == PARKED:
            self.parked.pop(attempt, None)
        self.arm.dropped(self.now, attempt)
        attempt.state = OVER
        self.record.dropped += 1

    # Hosts

    def host_states(self) -> Mapping[str, HostState]:
        """The hosts whose leases hold."""
        return {
            host.name: HostState(float(host.slots), host.draining)
            for host in self.hosts.values()
            if self.now < host.gone_ms + self.plan.lease_ms
        }

    def fill(self) -> None:
        """Free slots take what the arm gives them."""
        if self._filling or not self.store_up:
            return
        self._filling = True
        while self._free:
            attempt = self.arm.take(self.now)
            if attempt is None:
                break
            self._start(attempt, self._free.pop())
        self._filling = False

    def _start(self, attempt: Attempt, host: Host) -> None:
        now, plan = self.now, self.plan
        attempt.state, attempt.host, attempt.start_ms = RUNNING, host, now
        attempt.stretch += 1
        attempt.generation = self.breaker.generation
        host.running[attempt] = None
        if attempt.first_ms < 0:
            attempt.first_ms = now
            if not self.arm.deadlines:
                attempt.deadline_ms = now + plan.classes[attempt.job.rank].deadline_ms
            self.record.started(attempt, now)
        takes_ms = attempt.left_ms * self.slowness
        if self._needs[attempt.job.agent]:
            if self.arm.has_breaker and self.breaker.state is not BreakerState.CLOSED:
                self.at(now + plan.hop_ms, self._park, (attempt, attempt.stretch))
                return
            if not self.dependency_up:
                self._hang(attempt)
                return
        self._ends(attempt, now + takes_ms)

    def _ends(self, attempt: Attempt, then_ms: float) -> None:
        """The stretch ends then, or at the end of the step in which the deadline passes, where the arm cancels."""
        answered_ms = then_ms
        if self.arm.cancels and then_ms > attempt.deadline_ms:
            step_ms, start_ms = self.plan.step_ms, attempt.start_ms
            steps = math.ceil(max(0.0, attempt.deadline_ms - start_ms) / step_ms)
            then_ms = min(then_ms, start_ms + max(1, steps) * step_ms)
        self.at(then_ms + self.plan.hop_ms, self._end, (attempt, attempt.stretch, then_ms, answered_ms))

    def _end(self, what: tuple[Attempt, int, float, float]) -> None:
        """A stretch is over; the last moment is when it would have been done, infinite where its call has failed."""
        attempt, stretch, then_ms, answered_ms = what
        if attempt.stretch != stretch:
            return
        if not self.store_up:
            self._held_back.append((self._end, (attempt, stretch, then_ms, max(answered_ms, self.now))))
            return
        host = attempt.host
        assert isinstance(host, Host)
        del host.running[attempt]
        in_time = answered_ms <= attempt.deadline_ms
        attempt.state = OVER
        self.record.ended(attempt, then_ms, in_time)
        self.arm.ended(self.now, attempt, then_ms - attempt.start_ms, in_time)
        if self._needs[attempt.job.agent]:
            self._called(host.name, answered_ms < math.inf, attempt.generation)
        if not in_time and not attempt.lost and self.arm.deadlines:
            attempt.lost = True
            self.record.failed += 1
            if self.now < self.plan.until_ms:
                self._comes_back(attempt)
        self._give_back(host)
        if self.now < self.plan.until_ms:
            self.fill()

    def _give_back(self, host: Host) -> None:
        if host.draining:
            host.idle += 1
        elif host.gone_ms == math.inf:
            self._free.append(host)

    def _join(self, host: Host) -> None:
        self.hosts[host.name] = host
        self._free.extend([host] * host.slots)

    # Strikes

    def _strike(self, strike: Strike) -> None:
        if strike.kind in ("drain", "kill"):
            for host in list(self.hosts.values())[: round(strike.part)]:
                if strike.kind == "drain":
                    host.draining = True
                    host.idle = self._free.count(host)
                else:
                    host.gone_ms = self.now
                    self._dead.append(host)
                    self.at(self.now + self.plan.lease_ms, self._reap, host)
                    for attempt in host.running:
                        attempt.stretch += 1
                self._free = [each for each in self._free if each is not host]
        elif strike.kind == "slow":
            self.slowness = strike.part
        elif strike.kind == "store":
            self.store_up = False
        elif strike.kind == "dependency":
            self.dependency_up = False
            for host in self.hosts.values():
                for attempt in [each for each in host.running if self._needs[each.job.agent]]:
                    attempt.stretch += 1
                    self._hang(attempt)
        else:
            raise ValueError(f"{strike.kind!r} is no kind of strike")

    def _relieve(self, strike: Strike) -> None:
        if strike.kind == "drain":
            for host in self.hosts.values():
                if host.draining:
                    host.draining = False
                    self._free.extend([host] * host.idle)
        elif strike.kind == "kill":
            dead, self._dead = self._dead, []
            for host in dead:
                self._join(Host(host.name + "'", host.slots))
        elif strike.kind == "slow":
            self.slowness = 1.0
        elif strike.kind == "store":
            self.store_up = True
            held_back, self._held_back = self._held_back, []
            for happens, to in held_back:
                happens(to)
        elif strike.kind == "dependency":
            self.dependency_up = True
        self.fill()

    def _reap(self, host: Host) -> None:
        """The lease of a host has run out: what it ran goes back into the queue."""
        if not self.store_up:
            self._held_back.append((self._reap, host))
            return
        del self.hosts[host.name]
        for attempt in host.running:
            spent_ms = self.now - attempt.start_ms
            attempt.state = QUEUED
            self.arm.put_back(self.now, attempt, spent_ms)
            if attempt.lost and self.arm.cancels:
                self.drop(attempt)
        self.fill()

    # The dependency

    def _hang(self, attempt: Attempt) -> None:
        """The run waits for an answer that does not come, and fails."""
        then_ms = self.now + self.plan.hang_ms + self.plan.hop_ms
        self.at(then_ms, self._end, (attempt, attempt.stretch, then_ms, math.inf))

    def _called(self, host: str, succeeded: bool, generation: int) -> None:
        self.breaker.record(
            self.now / 1000, host, succeeded=int(succeeded), failed=int(not succeeded), generation=generation
        )

    def _park(self, what: tuple[Attempt, int]) -> None:
        """A run that needs what is not to be called leaves its slot until it may be called again."""
        attempt, stretch = what
        if attempt.stretch != stretch:
            return
        if not self.store_up:
            self._held_back.append((self._park, what))
            return
        host = attempt.host
        assert isinstance(host, Host)
        del host.running[attempt]
        attempt.state = PARKED
        attempt.stretch += 1
        self.arm.park(self.now, attempt, self.now - attempt.start_ms)
        if attempt.lost:
            self.drop(attempt)
        else:
            self.parked[attempt] = None
        self._give_back(host)
        self.fill()

    def _probe(self) -> None:
        """The breaker's clock; while it probes, parked runs make a call each."""
        now_s = self.now / 1000
        self.breaker.tick(now_s, self.rng.random())
        if self.breaker.state is BreakerState.PROBING:
            count = self.breaker.probes_available(now_s)
            if count:
                self.breaker.probes_given(now_s, count)
                self.at(self.now + PROBE_MS, self._probed, (count, self.breaker.generation))
        elif self.breaker.state is BreakerState.CLOSED and self.parked:
            self.record.woken_ms = self.now
            parked, self.parked = self.parked, {}
            for attempt in parked:
                attempt.state = QUEUED
                self.arm.wake(self.now, attempt)

    def _probed(self, what: tuple[int, int]) -> None:
        for _ in range(what[0]):
            self._called("prober", self.dependency_up, what[1])
