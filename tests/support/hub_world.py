"""A hub and its gates in virtual time, in a world where messages are lost, late and doubled, and everybody may die."""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from admission.dependency import Dependency
from admission.exchange import ANSWER_WITHIN_S, RANKS, Lease
from admission.gate import Gate
from admission.hub import Hub
from admission.hub_record import restore, snapshot
from admission.passage import Passage


@dataclass(frozen=True)
class Faults:
    """How bad the world is: shares of messages, and mean seconds between events (0 for never)."""

    lost: float = 0.0
    late: float = 0.0
    doubled: float = 0.0
    undone: float = 0.0
    cut_off_every_s: float = 0.0
    host_dies_every_s: float = 0.0
    hub_dies_every_s: float = 0.0
    longest_cut_s: float = 8.0
    redefined_every_s: float = 0.0
    renamed_every_s: float = 0.0


@dataclass(eq=False)
class Host:
    """One host: its gate, and the calls that are under way."""

    gate: Gate
    alive: bool = True
    cut_off_until: float = -1.0
    calls: set[Passage] = field(default_factory=set)
    waiting_retries: int = 0


class HubWorld:
    """Runs for ``span_s`` virtual seconds; ``uses`` are the moments at which calls really went, with what they took."""

    def __init__(
        self,
        dependency: Dependency,
        faults: Faults,
        *,
        hosts: int = 3,
        rate: float = 20.0,
        call_s: float = 0.5,
        cost: Callable[[random.Random], dict[str, float]] = lambda _: {"requests": 1.0},
        seed: int = 0,
    ) -> None:
        self.rng = random.Random(seed)
        self.dependency = dependency
        self.faults = faults
        self.rate = rate
        self.call_s = call_s
        self.cost = cost
        self.now = 0.0
        self.hub: Hub | None = Hub(dependency, 1, 0.0)
        self.kept, self.kept_at, self.epoch = json.dumps(snapshot(self.hub, 0.0)), 0.0, 1
        self.hosts: dict[str, Host] = {}
        self.uses: list[tuple[float, dict[str, float]]] = []
        self.most_in_flight = 0
        self.safe_uses: list[float] = []
        self.retries_granted = 0
        self.first_attempts = 0
        self._numbers = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        for _ in range(hosts):
            self._new_host()
        self._every(faults.cut_off_every_s, self._cut_off)
        self._every(faults.host_dies_every_s, self._host_dies)
        self._every(faults.hub_dies_every_s, self._hub_dies)
        self._every(faults.redefined_every_s, self._redefine)
        self._every(faults.renamed_every_s, self._rename)
        self.at(0.2, self._keep)

    # Time

    def at(self, after_s: float, what: Callable[[], None]) -> None:
        self._numbers += 1
        heapq.heappush(self._events, (self.now + after_s, self._numbers, what))

    def _every(self, mean_s: float, what: Callable[[], None]) -> None:
        if mean_s:

            def again() -> None:
                what()
                self.at(self.rng.expovariate(1 / mean_s), again)

            self.at(self.rng.expovariate(1 / mean_s), again)

    def run(self, span_s: float) -> HubWorld:
        while self._events and self._events[0][0] <= span_s:
            self.now, _, what = heapq.heappop(self._events)
            what()
            under_way = sum(host.gate.in_flight for host in self.hosts.values() if host.alive)
            self.most_in_flight = max(self.most_in_flight, under_way)
        return self

    # Hosts

    def _new_host(self) -> None:
        self._numbers += 1
        name = f"h{self._numbers}"
        host = self.hosts[name] = Host(Gate(name, self.now))
        self.at(self.rng.random() * 0.2, lambda: self._send(host))
        self.at(self.rng.random(), lambda: self._arrive(host))

    def _arrive(self, host: Host) -> None:
        if not host.alive:
            return
        gate, cost = host.gate, self.cost(self.rng)
        rank = self.rng.randrange(len(RANKS))
        passage = gate.try_pass(self.now, rank, cost, True)
        if passage is not None:
            self._go(host, passage)
        elif gate.line.waiting < 30:
            waiter = gate.wait(self.now, rank, cost, True, None)
            if self.rng.random() < 0.1:
                self.at(self.rng.random(), lambda: gate.give_up(waiter))
        busy = 1.0 if self.rng.random() < 0.7 else 0.1
        self.at(self.rng.expovariate(self.rate * busy / 3), lambda: self._arrive(host))

    def _go(self, host: Host, passage: Passage) -> None:
        gate = host.gate
        if self.rng.random() < self.faults.undone:

            def undo() -> None:
                gate.undo(passage)
                gate.undo(passage)
                self._let_go(host)

            self.at(self.rng.choice([0.0, 0.4]), undo)
            return
        gate.first_attempt("t")
        self.first_attempts += 1
        used = {name: float(round(amount * self.rng.choice([1.0, 0.2]))) for name, amount in passage.cost.items()}
        actual = {"requests": passage.cost.get("requests", 1.0)} | {
            name: amount for name, amount in used.items() if name != "requests"
        }
        self.uses.append((self.now, actual))
        if gate.is_safe_mode:
            self.safe_uses.append(self.now)
        host.calls.add(passage)

        def done() -> None:
            gate.done(self.now, passage, "succeeded", {name: n for name, n in actual.items() if name != "requests"})
            gate.done(self.now, passage, "failed")
            host.calls.discard(passage)
            if self.rng.random() < 0.5:
                host.waiting_retries += 1
                gate.want_retry("t")
            self._let_go(host)

        self.at(self.rng.random() * 2 * self.call_s, done)

    def _let_go(self, host: Host) -> None:
        while host.alive and (found := host.gate.next(self.now)) is not None:
            self._go(host, found[1])

    # Messages

    def _delay_s(self) -> float:
        return self.rng.random() * (2.5 if self.rng.random() < self.faults.late else 0.02)

    def _reaches(self, host: Host) -> bool:
        return self.now >= host.cut_off_until and self.rng.random() >= self.faults.lost

    def _send(self, host: Host) -> None:
        if not host.alive:
            return
        gate, sent_at = host.gate, self.now
        report, since = gate.report(self.now)
        answered = [False]

        def over() -> None:
            if not answered[0] and host.alive:
                answered[0] = True
                gate.lost(since)
                gate.live_safely(self.now)
                self._let_go(host)
                self.at(0.1, lambda: self._send(host))

        def answer(lease: Lease) -> None:
            if answered[0] or not host.alive:
                return
            answered[0] = True
            granted = gate.accept(sent_at, self.now, lease)
            gate.accept(sent_at, self.now, lease)
            for count in granted.values():
                self.retries_granted += count
                host.waiting_retries -= count
            self._let_go(host)
            self.at(lease.period_s, lambda: self._send(host))

        def arrive() -> None:
            if self.hub is not None:
                lease = self.hub.exchange(self.now, self.rng.random(), report)
                if self._reaches(host):
                    self.at(self._delay_s(), lambda: answer(lease))

        self.at(ANSWER_WITHIN_S if self.hub is not None else 0.01, over)
        for _ in range(1 + (self.rng.random() < self.faults.doubled)):
            if self._reaches(host):
                self.at(self._delay_s(), arrive)

    # Misfortune

    def _cut_off(self) -> None:
        for host in self.hosts.values():
            if self.rng.random() < 0.5:
                host.cut_off_until = self.now + self.rng.random() * self.faults.longest_cut_s

    def _host_dies(self) -> None:
        name = self.rng.choice([name for name, host in self.hosts.items() if host.alive])
        self.hosts[name].alive = False
        self._new_host()
        self._bury_later(self.hosts[name].gate.host)

    def _rename(self) -> None:
        """A host that was taken for dead lives on under another name."""
        gate = self.rng.choice([host for host in self.hosts.values() if host.alive]).gate
        self._numbers += 1
        former = gate.host
        gate.rename(f"h{self._numbers}")
        self._bury_later(former)

    def _bury_later(self, name: str) -> None:
        def bury() -> None:
            if self.hub is not None and name in self.hub.hosts:
                self.hub.bury(self.now, name)

        self.at(2.0 + self.rng.random(), bury)

    def _keep(self) -> None:
        """The hub's state is written once in a while, and what is written is a little older than the next grants."""
        if self.hub is not None:
            self.hub.tick(self.now, self.rng.random())
            self.kept, self.kept_at = json.dumps(snapshot(self.hub, self.now)), self.now
        self.at(0.2, self._keep)

    def _hub_dies(self) -> None:
        self.hub = None
        self.at(self.rng.choice([0.05, 0.5, 3.0, 10.0]), self._hub_comes)

    def _hub_comes(self) -> None:
        if self.hub is not None:
            return
        self.epoch += 1
        self.hub = Hub(self.dependency, self.epoch, self.now)
        restore(self.hub, self.now, json.loads(self.kept), self.now - self.kept_at)
        self.kept, self.kept_at = json.dumps(snapshot(self.hub, self.now)), self.now

    def _redefine(self) -> None:
        if self.hub is not None:
            plain: dict[str, Any] = {"maximum_retry_after_s": 10.0 + self.rng.random()}
            fields = {name: getattr(self.dependency, name) for name in ("name", "rate", "max_concurrency", "breaker")}
            self.hub.redefine(Dependency(**fields, **plain), self.now)

    # Judging

    def worst(self, resource: str, window_s: float) -> float:
        """The most of a resource that was used in any window."""
        total, first, worst = 0.0, 0, 0.0
        amounts = [(moment, cost.get(resource, 0.0)) for moment, cost in self.uses]
        for moment, amount in amounts:
            total += amount
            while moment - amounts[first][0] >= window_s:
                total -= amounts[first][1]
                first += 1
            worst = max(worst, total)
        return worst
