"""Queues as others have them: FIFO, tail drop, strict order by value, CoDel with adaptive LIFO; and the ideal."""

import heapq
from collections import deque
from typing import TYPE_CHECKING, Final

from benchmarks.queue_simulation.arms.arm import Refusal
from benchmarks.queue_simulation.jobs import QUEUED, Attempt

if TYPE_CHECKING:
    from benchmarks.queue_simulation.world import World

RETRY_AFTER_MS: Final = 1000
"""Where somebody else's queue says when to come back, it is a constant, as in Ray Serve."""
QUEUE_FULL: Final = "queue_full"


class Fifo:
    """First in, first out, without a bound and without a thought of deadlines: what a queue of actor tasks is."""

    name = "FIFO unbounded"
    cancels = False
    deadlines = True
    has_breaker = False

    def __init__(self, world: "World") -> None:
        self._world = world
        self._queue: deque[Attempt] = deque()
        self._gone = 0  # of those in the queue, how many are over

    def submit(self, now_ms: float, attempt: Attempt) -> Refusal | None:
        """At the end."""
        self._put(attempt)
        return None

    def _put(self, attempt: Attempt) -> None:
        self._queue.append(attempt)

    def _pop(self) -> Attempt:
        return self._queue.popleft()

    def take(self, now_ms: float) -> Attempt | None:
        """The first one that is not over."""
        while len(self._queue):
            attempt = self._pop()
            if attempt.state == QUEUED:
                return attempt
            self._gone -= 1
        return None

    def tick(self, now_ms: float) -> None:
        """Nothing."""

    def ended(self, now_ms: float, attempt: Attempt, slot_ms: float, in_time: bool) -> None:
        """Nothing."""

    def dropped(self, now_ms: float, attempt: Attempt) -> None:
        """It is left where it is, and passed over when its turn comes."""
        self._gone += attempt.state == QUEUED

    def put_back(self, now_ms: float, attempt: Attempt, slot_ms: float) -> None:
        """At the end."""
        self._put(attempt)

    park = put_back

    def wake(self, now_ms: float, attempt: Attempt) -> None:
        """At the end."""
        self._put(attempt)

    def queued(self) -> int:
        """How many runs are queued."""
        return len(self._queue) - self._gone


class FifoCancelling(Fifo):
    """The same, but runs whose deadlines are over are dropped and cancelled."""

    name = "FIFO with deadlines"
    cancels = True


class TailDrop(FifoCancelling):
    """FIFO with a bound: two runs for each slot. Whoever comes when it is full is refused (Ray Serve's
    ``max_queued_requests``).
    """

    name = "tail drop"
    runs_a_slot = 2

    def submit(self, now_ms: float, attempt: Attempt) -> Refusal | None:
        """At the end, or not at all."""
        if self.queued() >= self.runs_a_slot * self._world.plan.capacity:
            return Refusal(QUEUE_FULL, RETRY_AFTER_MS)
        return super().submit(now_ms, attempt)


class Heap(Fifo):
    """The most valuable class first, inside it the oldest; nothing is ever refused (vLLM's priorities, Ray's heap of a
    user who wrote one).
    """

    name = "strict heap"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._heap: list[tuple[int, int, Attempt]] = []
        self._number = 0

    def _put(self, attempt: Attempt) -> None:
        self._number += 1
        heapq.heappush(self._heap, (attempt.job.rank, self._number, attempt))

    def take(self, now_ms: float) -> Attempt | None:
        """The best one."""
        return heapq.heappop(self._heap)[2] if self._heap else None

    def queued(self) -> int:
        """How many runs are queued."""
        return len(self._heap)


class Ideal(Heap):
    """The zero-wait ceiling: always the most valuable work there is, and nobody's deadline runs while it waits. It
    loses only what takes longer than its own deadline; that it cancels as the product does.
    """

    name = "zero-wait ceiling"
    cancels = True
    deadlines = False


class CodelLifo(FifoCancelling):
    """CoDel and adaptive LIFO as in Facebook's folly (Maurer, "Fail at Scale", 2015).

    While the queue was empty within the last :data:`INTERVAL_MS`, runs may wait for :data:`CALM_MS`, in order of
    arrival; otherwise only for :data:`TARGET_MS`, and the newest goes first. Folly's times are 100 ms and 5 ms, for
    requests of milliseconds; these are for runs of seconds.
    """

    name = "CoDel + LIFO"
    INTERVAL_MS = 2000.0
    CALM_MS = 5000.0
    TARGET_MS = 250.0

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._empty_ms = 0.0

    def _late(self, now_ms: float, attempt: Attempt) -> bool:
        return now_ms - attempt.came_ms > (self.TARGET_MS if self._standing(now_ms) else self.CALM_MS)

    def _standing(self, now_ms: float) -> bool:
        return now_ms - self._empty_ms > self.INTERVAL_MS

    def take(self, now_ms: float) -> Attempt | None:
        """The newest where the queue stands, else the oldest."""
        self._sweep(now_ms)
        while self._queue:
            attempt = self._queue.pop() if self._standing(now_ms) else self._queue.popleft()
            if attempt.state == QUEUED:
                return attempt
            self._gone -= 1
        self._empty_ms = now_ms
        return None

    def _sweep(self, now_ms: float) -> None:
        """Sheds from the old end. Runs that have had a slot are old, but they are not shed."""
        while self._queue and (self._queue[0].state != QUEUED or self._late(now_ms, self._queue[0])):
            attempt = self._queue[0]
            if attempt.state == QUEUED and attempt.first_ms >= 0:
                return
            self._queue.popleft()
            if attempt.state == QUEUED:
                self._world.refused(attempt, Refusal("codel", RETRY_AFTER_MS))
            else:
                self._gone -= 1

    def tick(self, now_ms: float) -> None:
        """Sheds also where no slot becomes free."""
        self._sweep(now_ms)
        if not self._queue:
            self._empty_ms = now_ms
