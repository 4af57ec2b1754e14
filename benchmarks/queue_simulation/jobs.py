"""Jobs and when they come: Poisson arrivals with a load that changes in steps, drawn from seeds."""

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from benchmarks.queue_simulation.plan import Plan

NEW: Final = 0
QUEUED: Final = 1
RUNNING: Final = 2
PARKED: Final = 3
OVER: Final = 4


class Job:
    """What a client wants done: class, tenant, agent, and what the client does when it is refused."""

    __slots__ = ("agent", "number", "obeys", "rank", "tenant")

    def __init__(self, number: int, rank: int, tenant: int, agent: int, obeys: bool) -> None:
        self.number = number
        self.rank = rank
        self.tenant = tenant
        self.agent = agent
        self.obeys = obeys


class Attempt:
    """A job, submitted once more: a run.

    Attributes:
        id: of the run.
        number: 1 for the first attempt.
        service_ms: how long it takes once it has a slot.
        came_ms, deadline_ms: when it was submitted, and until when its client waits.
        again: it comes when it was told to come back.
        state: NEW, QUEUED, RUNNING, PARKED or OVER.
        lost: its client waits no longer.
        run: what the arm knows it by.
        start_ms, host, left_ms: of the stretch that runs now: since when, where, and how long it still takes.
        first_ms: when it was first started; -1 where it was not.
        generation: of the breaker when the stretch began.
        stretch: counts stretches, so that the end of one that was broken off is not taken for that of another.
    """

    __slots__ = (
        "again", "came_ms", "deadline_ms", "first_ms", "generation", "host", "id", "job", "left_ms", "lost", "number",
        "partition", "run", "service_ms", "start_ms", "state", "stretch",
    )  # fmt: skip

    def __init__(self, id: str, job: Job, number: int, service_ms: float, partition: int, again: bool) -> None:
        self.id = id
        self.job = job
        self.number = number
        self.service_ms = service_ms
        self.partition = partition
        self.again = again
        self.came_ms = self.deadline_ms = 0.0
        self.state = NEW
        self.lost = False
        self.run: object = None
        self.start_ms = self.first_ms = -1.0
        self.left_ms = service_ms
        self.host: object = None
        self.stretch = 0
        self.generation = 0


class Jobs:
    """Draws jobs; the same ones in the same order whatever becomes of them."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._rng = random.Random(f"jobs {plan.seed}")
        self._classes = cumulated([each.share for each in plan.classes])
        self._agents = cumulated([each.share for each in plan.agents])
        self._tenants = cumulated([each.share for each in plan.tenants])
        self._shapes = [lognormal(each.mean_ms, each.variation) for each in plan.agents]
        self._rates = [load * plan.capacity / plan.mean_ms for _, load in plan.load]
        self._from_ms = [from_ms for from_ms, _ in plan.load]
        self._count = 0

    def next_ms(self, now_ms: float) -> float:
        """When the next job comes. Arrivals have no memory: at each change of the load they begin anew."""
        at = bisect_right(self._from_ms, now_ms) - 1
        while True:
            rate = self._rates[at]
            then_ms = now_ms + self._rng.expovariate(rate) if rate > 0 else math.inf
            if at + 1 == len(self._rates) or then_ms < self._from_ms[at + 1]:
                return then_ms
            at += 1
            now_ms = self._from_ms[at]

    def draw(self) -> tuple[Job, float]:
        """The next job and its service time."""
        rng = self._rng
        self._count += 1
        agent = bisect_right(self._agents, rng.random())
        job = Job(
            self._count, bisect_right(self._classes, rng.random()), bisect_right(self._tenants, rng.random()), agent,
            rng.random() < self._plan.clients.obey,
        )  # fmt: skip
        return job, rng.lognormvariate(*self._shapes[agent])

    def service_ms(self, rng: random.Random, agent: int) -> float:
        """How long another run of an agent takes."""
        return rng.lognormvariate(*self._shapes[agent])


def cumulated(shares: Sequence[float]) -> list[float]:
    """Where each share ends, of 1; without the last one, so that no draw is beyond it."""
    total = sum(shares)
    return [each / total for each in accumulate(shares)][:-1]


def lognormal(mean: float, variation: float) -> tuple[float, float]:
    """Mu and sigma of the lognormal distribution with this mean and coefficient of variation."""
    square = math.log1p(variation * variation)
    return math.log(mean) - square / 2, math.sqrt(square)
