"""Many hosts and one hub in virtual time, through the same pure code as the real ones: how true are the limits?

Demand is Zipf over the hosts and moves: every ``shuffle_s`` other hosts are the busy ones. Arrivals are Poisson.
Messages take ``latency_s`` each way, are lost now and then, and hosts come at moments of their own.
"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from admission.dependency import Dependency, Limit
from admission.exchange import RANKS
from admission.gate import Gate
from admission.hub import Hub
from admission.passage import Passage

_NORMAL: Final = RANKS.index("normal")
_COST: Final = {"requests": 1.0}
_MOST_WAITING: Final = 2000


@dataclass(frozen=True)
class Outcome:
    """What a simulation showed: admissions in order, and messages exchanged."""

    admitted: list[float]
    exchanges: int


@dataclass(frozen=True)
class Plan:
    """What is simulated; times in seconds."""

    hosts: int
    limit: float
    window_s: float
    load: float = 1.5
    span_s: float = 150.0
    shuffle_s: float = 30.0
    latency_s: float = 0.002
    lost_share: float = 0.001
    seed: int = 1


class _Simulation:
    """One hub, its hosts' gates, and a queue of events."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.admitted: list[float] = []
        self.exchanges = 0
        self._rng = random.Random(plan.seed)
        limit = Limit("requests", plan.limit, per=plan.window_s)
        self._hub = Hub(Dependency("simulated", [limit], breaker=None), 1, 0.0)
        self._names = [f"h{number}" for number in range(plan.hosts)]
        self._gates = {name: Gate(name, 0.0) for name in self._names}
        self._weights = [1 / (rank + 1) for rank in range(plan.hosts)]
        self._busy = dict(zip(self._names, self._weights, strict=True))
        self._events: list[tuple[float, int, Callable[[float, str], None], str]] = []
        self._count = 0

    def run(self) -> None:
        """Until the span is over."""
        for name in self._names:
            self._at(self._rng.random() * 0.25, self._exchange, name)
            self._at(self._rng.random(), self._arrive, name)
        self._at(self.plan.shuffle_s, self._shuffle, "")
        while self._events[0][0] <= self.plan.span_s:
            now, _, event, name = heapq.heappop(self._events)
            event(now, name)

    def _at(self, moment: float, event: Callable[[float, str], None], name: str) -> None:
        self._count += 1
        heapq.heappush(self._events, (moment, self._count, event, name))

    def _shuffle(self, now: float, _: str) -> None:
        """Other hosts are the busy ones."""
        weights = self._weights.copy()
        self._rng.shuffle(weights)
        self._busy = dict(zip(self._names, weights, strict=True))
        self._at(now + self.plan.shuffle_s, self._shuffle, "")

    def _arrive(self, now: float, name: str) -> None:
        plan, gate = self.plan, self._gates[name]
        passage = gate.try_pass(now, _NORMAL, _COST, True)
        if passage is not None:
            self._went(now, gate, passage)
        elif gate.line.waiting < _MOST_WAITING:
            gate.wait(now, _NORMAL, _COST, True, None)
        rate = plan.load * plan.limit / plan.window_s * self._busy[name] / sum(self._weights)
        self._at(now + self._rng.expovariate(rate), self._arrive, name)

    def _exchange(self, now: float, name: str) -> None:
        plan, gate, rng = self.plan, self._gates[name], self._rng
        self.exchanges += 1
        self._at(now + self._hub.period_s * rng.uniform(0.97, 1.03), self._exchange, name)
        report, since = gate.report(now)
        if rng.random() < plan.lost_share:
            gate.lost(since)
            return
        lease = self._hub.exchange(now + plan.latency_s, rng.random(), report)
        if rng.random() < plan.lost_share:
            gate.lost(since)
            return
        back = now + 2 * plan.latency_s
        gate.accept(now, back, lease)
        while (found := gate.next(back)) is not None:
            self._went(back, gate, found[1])

    def _went(self, now: float, gate: Gate, passage: Passage) -> None:
        gate.first_attempt("t")
        gate.done(now, passage, "succeeded")
        self.admitted.append(now)


def simulate(plan: Plan) -> Outcome:
    """Runs one plan."""
    simulation = _Simulation(plan)
    simulation.run()
    return Outcome(sorted(simulation.admitted), simulation.exchanges)
