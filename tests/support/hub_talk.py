"""The talk of one hub and its hosts, word by word: all messages arrive, unless a test says otherwise."""

from __future__ import annotations

from admission.dependency import Dependency
from admission.exchange import Lease
from admission.gate import Gate
from admission.hub import Hub


class Talk:
    """Some gates and a hub whose messages all arrive."""

    def __init__(self, dependency: Dependency, hosts: int = 1) -> None:
        self.now = 0.0
        self.hub = Hub(dependency, 1, 0.0)
        self.gates = [Gate(f"h{number}", 0.0) for number in range(hosts)]

    def exchange(self, number: int = 0, *, heard: bool = True) -> Lease:
        gate = self.gates[number]
        report, since = gate.report(self.now)
        lease = self.hub.exchange(self.now, 0.5, report)
        if heard:
            gate.accept(self.now, self.now, lease)
        else:
            gate.lost(since)
        return lease

    def turn(self, seconds: float = 0.25) -> None:
        self.now += seconds
        for number in range(len(self.gates)):
            self.exchange(number)

    def fail(self, number: int, count: int) -> None:
        gate = self.gates[number]
        for _ in range(count):
            passage = gate.try_pass(self.now, 2, {"requests": 1.0}, True)
            assert passage is not None
            gate.done(self.now, passage, "failed")

    def succeed(self, number: int, count: int) -> None:
        gate = self.gates[number]
        for _ in range(count):
            passage = gate.try_pass(self.now, 2, {"requests": 1.0}, True)
            assert passage is not None
            gate.done(self.now, passage, "succeeded")


def may_go(gate: Gate, now: float) -> bool:
    passage = gate.try_pass(now, 2, {"requests": 1.0}, True)
    if passage is not None:
        gate.undo(passage)
    return passage is not None
