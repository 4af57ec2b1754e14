"""DAGOR, the overload control of WeChat's services."""

from collections import deque
from typing import TYPE_CHECKING, Final

from benchmarks.queue_simulation.arms.arm import Refusal
from benchmarks.queue_simulation.arms.queues import RETRY_AFTER_MS, FifoCancelling
from benchmarks.queue_simulation.jobs import Attempt

if TYPE_CHECKING:
    from benchmarks.queue_simulation.world import World

COHORTS: Final = 128


class Dagor(FifoCancelling):
    """Zhou et al., "Overload control for scaling WeChat microservices" (SoCC 2018): a level, and a threshold on it.

    A run's level is its business priority (its class) and, inside that, a cohort to which its user is hashed. A server
    is overloaded when the mean queueing time of what was started within the last window (a second, or so many runs) is
    above a bound. Then the threshold moves so that ``ALPHA`` less than was admitted in the window would have been let
    in, by the window's histogram of arrivals by level; otherwise so that ``BETA`` more of them would. What was let in
    is served in order of arrival.

    The published bound is 20 ms for requests of milliseconds, time-outs are 500 ms, and 5 % and 1 % are the steps. For
    runs of seconds these constants served the most value at ten times the load, of seven sets that were tried (bounds
    of 100 to 500 ms, ALPHA of 5 to 20 %, BETA of 1 to 10 %); with the paper's steps and a bound of 100 ms it served
    nearly as much value there, and a twentieth less goodput at twice the load.
    """

    name = "DAGOR"
    ALPHA = 0.05
    BETA = 0.02
    BOUND_MS = 250.0
    TIMEOUT_MS = 2000.0
    WINDOW_MS = 1000.0
    WINDOW_RUNS = 2000

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._levels = len(world.plan.classes) * COHORTS
        self._threshold = self._levels
        self._came = [0] * self._levels
        self._admitted = 0
        self._since_ms = 0.0
        self._waits: deque[float] = deque()

    def submit(self, now_ms: float, attempt: Attempt) -> Refusal | None:
        """Below the threshold, or not at all."""
        cohort = (attempt.job.number * 2_246_822_519 >> 9) % COHORTS
        level = attempt.job.rank * COHORTS + cohort
        self._came[level] += 1
        if level >= self._threshold:
            return Refusal("level", RETRY_AFTER_MS)
        self._admitted += 1
        return super().submit(now_ms, attempt)

    def take(self, now_ms: float) -> Attempt | None:
        """The oldest that has not waited for too long."""
        while (attempt := super().take(now_ms)) is not None:
            wait_ms = now_ms - attempt.came_ms
            if attempt.first_ms >= 0:
                break
            self._waits.append(wait_ms)
            if wait_ms <= self.TIMEOUT_MS:
                break
            self._world.refused(attempt, Refusal("timeout", RETRY_AFTER_MS))
        return attempt

    def tick(self, now_ms: float) -> None:
        """At the end of a window the threshold moves."""
        if now_ms - self._since_ms < self.WINDOW_MS and sum(self._came) < self.WINDOW_RUNS:
            return
        # A window in which nothing was started at all while runs waited is one of overload.
        mean_ms = sum(self._waits) / len(self._waits) if self._waits else self.BOUND_MS * 2 * bool(self.queued())
        wanted = self._admitted * (1 - self.ALPHA if mean_ms > self.BOUND_MS else 1 + self.BETA)
        if mean_ms > self.BOUND_MS:
            self._lower(wanted)
        else:
            self._raise(wanted)
        self._came = [0] * self._levels
        self._admitted, self._since_ms = 0, now_ms
        self._waits.clear()

    def _lower(self, wanted: float) -> None:
        below = sum(self._came[: self._threshold])
        while self._threshold > 1 and below > wanted:
            self._threshold -= 1
            below -= self._came[self._threshold]

    def _raise(self, wanted: float) -> None:
        below = sum(self._came[: self._threshold])
        while self._threshold < self._levels and below <= wanted:
            below += self._came[self._threshold]
            self._threshold += 1
