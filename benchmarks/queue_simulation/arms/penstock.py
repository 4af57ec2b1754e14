"""The product: its doors, its queues and its controller, driven as the store's scripts and the actors drive them."""

from typing import TYPE_CHECKING, Final

from admission.admission_definition import AdmissionDefinition, ClassRule, TenantRule
from admission.breaker import BreakerState
from admission.ordered_runs import Queued
from admission.partition_queue import MAX_WAIT, PartitionQueue
from admission.queue_answers import Evicted, Refused
from admission.queue_controller import Decision, DependencyState, Observations, QueueController
from admission.queue_law import Arrival
from admission.values import CLASSES, Value
from benchmarks.queue_simulation.arms.arm import Refusal
from benchmarks.queue_simulation.jobs import PARKED, QUEUED, Attempt
from benchmarks.queue_simulation.plan import DEPENDENCY, Plan

if TYPE_CHECKING:
    from benchmarks.queue_simulation.world import World

CLOCK_MS: Final = 1_000_000
"""The store's clock at the beginning."""
LEVELS: Final = [Value(rank).level for rank in range(len(CLASSES))]


def definition_of(plan: Plan) -> AdmissionDefinition:
    """What operators would write for a plan."""
    waits_s = [each.max_wait_ms / 1000 for each in plan.classes]
    classes = {name: ClassRule(max_wait=wait_s) for name, wait_s in zip(CLASSES, waits_s, strict=True)}
    tenants = {each.name: TenantRule(weight=each.weight) for each in plan.tenants if each.weight != 1}
    return AdmissionDefinition.model_validate({"classes": classes, "tenants": tenants})


class Penstock:
    """The law of ``admission``, as it is."""

    name = "penstock"
    cancels = True
    deadlines = True
    has_breaker = True
    parked_time_counts = False
    """Service times are from the first start, also with the time in which a run was parked for a dependency."""

    def __init__(self, world: "World") -> None:
        plan = world.plan
        self._world = world
        self.queues = [PartitionQueue(each, plan.partitions) for each in range(plan.partitions)]
        self.controller = QueueController(plan.partitions)
        self._definition = definition_of(plan)
        self._decision = Decision(self.controller.policy, {}, {})
        self._runs: dict[str, Attempt] = {}
        self._turn = 0
        self._tenants = [each.name for each in plan.tenants]
        self._agents = [each.name for each in plan.agents]
        self._needs = frozenset(each.name for each in plan.agents if each.dependency)

    def submit(self, now_ms: float, attempt: Attempt) -> Refusal | None:
        """Through the partition's door."""
        job, now = attempt.job, CLOCK_MS + int(now_ms)
        arrival = Arrival(
            attempt.id, LEVELS[job.rank], self._tenants[job.tenant], self._agents[job.agent], -1,
            CLOCK_MS + int(attempt.deadline_ms), 0, attempt.again,
        )  # fmt: skip
        answer = self.queues[attempt.partition].submit(now, arrival)
        if isinstance(answer, Refused):
            return Refusal(answer.reason, answer.come_back.after_ms, answer.come_back.by_itself)
        attempt.run = answer.run
        self._runs[attempt.id] = attempt
        if answer.run.max_wait_ms >= 0:
            self._world.at(now_ms + answer.run.max_wait_ms, self._waited, attempt)
        for each in answer.evicted:
            self._shed(each)
        return None

    def _shed(self, gone: Evicted) -> None:
        attempt = self._runs.pop(gone.run.id)
        self._world.refused(attempt, Refusal(gone.reason, gone.come_back.after_ms, gone.come_back.by_itself))

    def _waited(self, attempt: Attempt) -> None:
        """The timer of a run's longest wait."""
        if attempt.state == QUEUED and attempt.first_ms < 0 and self._world.store_up:
            if self.queues[attempt.partition].leave(_run(attempt), MAX_WAIT):
                self._over(attempt, MAX_WAIT)
        elif attempt.state == QUEUED and attempt.first_ms < 0:
            self._world.at(self._world.now + 1000.0, self._waited, attempt)

    def _over(self, attempt: Attempt, reason: str) -> None:
        """A queued run whose time was over is shed (where it has waited for too long) or dropped."""
        self._runs.pop(attempt.id, None)
        if reason == MAX_WAIT:
            self._world.refused(attempt, Refusal(MAX_WAIT))

    def take(self, now_ms: float) -> Attempt | None:
        """From a partition whose best waiting level is the best of all, in turns."""
        now, queues = CLOCK_MS + int(now_ms), self.queues
        count = len(queues)
        while True:
            best, chosen = -1, -1
            for step in range(1, count + 1):
                number = (self._turn + step) % count
                level = queues[number].best_level
                if level >= 0 and (best < 0 or level < best):
                    best, chosen = level, number
            if chosen < 0:
                return None
            self._turn = chosen
            claimed = queues[chosen].claim(now, 1)
            for run, reason in claimed.over:
                attempt = self._runs[run.id]
                if reason == MAX_WAIT:
                    self._over(attempt, reason)
                else:
                    # Its deadline's timer is due in this very millisecond.
                    attempt.run = None
            if claimed.runs:
                attempt = self._runs[claimed.runs[0].id]
                attempt.run = claimed.runs[0]
                return attempt

    def tick(self, now_ms: float) -> None:
        """An exchange with every partition, evictions where the last decision wants them, the next decision."""
        now, world = CLOCK_MS + int(now_ms), self._world
        last = self._decision
        said = [queue.exchange(now, last.policy, last.places.get(number)) for number, queue in enumerate(self.queues)]
        for number, most in last.evict.items():
            for each in self.queues[number].evict(now, most):
                self._shed(each)
        breaker = world.breaker
        dependencies = {}
        if breaker.state is BreakerState.OPEN and breaker.until is not None:
            until_ms = CLOCK_MS + round(breaker.until * 1000)
            dependencies[DEPENDENCY] = DependencyState(until_ms, self._needs)
        seen = Observations(said, world.host_states(), dependencies, None, self._definition)
        self._decision = self.controller.step(now, seen)

    def ended(self, now_ms: float, attempt: Attempt, slot_ms: float, in_time: bool) -> None:
        """Its owner says so."""
        self._runs.pop(attempt.id)
        service_ms = -1
        if in_time:
            spent_ms = max(0, _run(attempt).used_ms) + int(slot_ms)
            service_ms = int(now_ms - attempt.first_ms) if self.parked_time_counts else spent_ms
        self.queues[attempt.partition].end(_run(attempt), int(slot_ms), service_ms)

    def dropped(self, now_ms: float, attempt: Attempt) -> None:
        """Cancelled at its deadline."""
        self._runs.pop(attempt.id, None)
        queue = self.queues[attempt.partition]
        if attempt.state == PARKED:
            queue.end_parked(_run(attempt))
        elif attempt.run is not None:
            queue.leave(_run(attempt))

    def put_back(self, now_ms: float, attempt: Attempt, slot_ms: float) -> None:
        """Reaped."""
        attempt.run = self.queues[attempt.partition].put_back(_run(attempt), int(slot_ms))

    def park(self, now_ms: float, attempt: Attempt, slot_ms: float) -> None:
        """Parked at a gate."""
        attempt.run = self.queues[attempt.partition].park(_run(attempt), int(slot_ms))

    def wake(self, now_ms: float, attempt: Attempt) -> None:
        """Its gate is open again."""
        attempt.run = self.queues[attempt.partition].wake(_run(attempt))

    def queued(self) -> int:
        """In all partitions."""
        return sum(map(len, self.queues))


class PenstockByWholeTime(Penstock):
    """The same, if the time for which a dependency was waited for counted as service."""

    name = "penstock, if parked time counted as service"
    parked_time_counts = True


def _run(attempt: Attempt) -> Queued:
    assert isinstance(attempt.run, Queued)
    return attempt.run
