"""Calls that wait at a gate: by class, then by arrival. Pure."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from admission.exchange import RANKS, Demand, added


@dataclass(slots=True, eq=False)
class Waiter:
    """A call that waits. ``token`` is the caller's; ``over``: it has gone, or has given up."""

    rank: int
    cost: dict[str, float]
    may_probe: bool
    since: float
    token: Any
    over: bool = False


class Line:
    """Nobody overtakes a more valuable call, and a large one is not starved by small ones behind it."""

    __slots__ = ("_counts", "_queues", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self._queues: tuple[deque[Waiter], ...] = tuple(deque() for _ in RANKS)
        self._counts = [0] * len(RANKS)

    def __iter__(self) -> Iterator[Waiter]:
        """All that wait, in order."""
        for queue in self._queues:
            yield from (waiter for waiter in queue if not waiter.over)

    def put(self, waiter: Waiter) -> None:
        """Somebody comes."""
        self._queues[waiter.rank].append(waiter)
        self._counts[waiter.rank] += 1
        self.waiting += 1

    def leave(self, waiter: Waiter) -> None:
        """Somebody goes, or gives up."""
        if not waiter.over:
            waiter.over = True
            self._counts[waiter.rank] -= 1
            self.waiting -= 1

    def is_before(self, rank: int) -> bool:
        """Whether anybody of this class, or of a more valuable one, waits."""
        return any(self._counts[: rank + 1])

    def counts(self) -> list[int]:
        """How many wait, by class."""
        return list(self._counts)

    def heads(self) -> Iterator[Waiter]:
        """The first one of each class, the most valuable class first."""
        for queue in self._queues:
            while queue and queue[0].over:
                queue.popleft()
            if queue:
                yield queue[0]

    def first_probe(self) -> Waiter | None:
        """The first one that may probe."""
        for queue in self._queues:
            for waiter in queue:
                if not waiter.over and waiter.may_probe:
                    return waiter
        return None

    def demands(self) -> Iterator[Demand]:
        """What those that wait want, by class."""
        for rank, queue in enumerate(self._queues):
            waiting = [waiter for waiter in queue if not waiter.over] if self._counts[rank] else []
            if len(waiting) < len(queue):
                queue.clear()
                queue.extend(waiting)
            if not waiting:
                continue
            total: dict[str, float] = {}
            for waiter in waiting:
                total = added(total, waiter.cost)
            mean = {name: amount / len(waiting) for name, amount in total.items()}
            probes = sum(waiter.may_probe for waiter in waiting)
            yield Demand(rank, len(waiting), mean, waiting[0].cost, probes)
