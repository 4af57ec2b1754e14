"""Many hosts and one hub in virtual time, through the same pure code as the real ones: how true are the limits?

Demand is Zipf over the hosts and moves: every ``shuffle_s`` other hosts are the busy ones. Arrivals are Poisson. Messages
take ``latency_s`` each way, are lost now and then, and hosts come at moments of their own.
"""

import heapq
import random
from dataclasses import dataclass

from admission.dependency import Dependency, Limit
from admission.exchange import RANKS
from admission.gate import Gate
from admission.hub import Hub


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


def simulate(plan: Plan) -> Outcome:
    """Runs one plan."""
    rng = random.Random(plan.seed)
    dependency = Dependency("simulated", [Limit("requests", plan.limit, per=plan.window_s)], breaker=None)
    hub = Hub(dependency, 1, 0.0)
    names = [f"h{number}" for number in range(plan.hosts)]
    gates = {name: Gate(name, 0.0) for name in names}
    cost = {"requests": 1.0}
    weights = [1 / (rank + 1) for rank in range(plan.hosts)]
    rate = plan.load * plan.limit / plan.window_s
    admitted: list[float] = []
    exchanges = 0
    events: list[tuple[float, int, str, str]] = []
    number = 0

    def at(moment: float, what: str, name: str) -> None:
        nonlocal number
        number += 1
        heapq.heappush(events, (moment, number, what, name))

    for name in names:
        at(rng.random() * 0.25, "exchange", name)
        at(rng.random(), "arrive", name)
    order = list(range(plan.hosts))
    at(plan.shuffle_s, "shuffle", "")
    busy = dict(zip(names, (weights[place] for place in order), strict=True))
    total = sum(weights)

    def let_go(name: str, now: float) -> None:
        gate = gates[name]
        while (found := gate.next(now)) is not None:
            gate.first_attempt("t")
            gate.done(now, found[1], "succeeded")
            admitted.append(now)

    while events:
        now, _, what, name = heapq.heappop(events)
        if now > plan.span_s:
            break
        if what == "shuffle":
            rng.shuffle(order)
            busy = dict(zip(names, (weights[place] for place in order), strict=True))
            at(now + plan.shuffle_s, "shuffle", "")
        elif what == "arrive":
            gate = gates[name]
            passage = gate.try_pass(now, 2, cost, True)
            if passage is not None:
                gate.done(now, passage, "succeeded")
                admitted.append(now)
            elif gate.line.waiting < 2000:
                gate.wait(now, RANKS.index("normal"), cost, True, None)
            at(now + rng.expovariate(rate * busy[name] / total), "arrive", name)
        elif what == "exchange":
            gate = gates[name]
            exchanges += 1
            report, since = gate.report(now)
            period_s = hub.period_s * rng.uniform(0.97, 1.03)
            at(now + period_s, "exchange", name)
            if rng.random() < plan.lost_share:
                gate.lost(since, report)
                continue
            lease = hub.exchange(now + plan.latency_s, rng.random(), report)
            if rng.random() >= plan.lost_share:
                gate.accept(now, now + 2 * plan.latency_s, lease)
                let_go(name, now + 2 * plan.latency_s)
    return Outcome(sorted(admitted), exchanges)


def worst_window(moments: list[float], window_s: float) -> int:
    """The most moments in any window of this length."""
    worst = first = 0
    for last, moment in enumerate(moments):
        while moment - moments[first] >= window_s:
            first += 1
        worst = max(worst, last - first + 1)
    return worst
