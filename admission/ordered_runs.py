"""Queued runs in order: what a sorted set is in the store. Pure.

A sorted list in blocks: every operation is a bisection over blocks and one inside a block, and a move of at most a
block. That is O(sqrt n) on paper and faster than any tree in Python at the sizes that a partition has.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

_BLOCK: Final = 1024


class Queued(NamedTuple):
    """A run that waits, or has waited, for its start. It orders by its score, then by its id.

    Attributes:
        score: its place in the queue.
        id: the run's.
        tenant, agent: whose, and what it runs.
        cost_ms: what was estimated and charged for it, in milliseconds of a slot.
        weight: its tenant's when it was charged.
        max_wait_ms: how long it may wait for its first start; -1 for as long as it takes.
        deadline_ms: by the store's clock; -1 for none.
        accepted_ms: when it came, by the store's clock.
        size_bytes: of its job.
        kept: it may not be refused or evicted (child runs, forks).
        used_ms: slot time that it has taken so far; -1 where it was never started.
    """

    score: int
    id: str
    tenant: str
    agent: str
    cost_ms: int
    weight: float = 1.0
    max_wait_ms: int = -1
    deadline_ms: int = -1
    accepted_ms: int = 0
    size_bytes: int = 0
    kept: bool = False
    used_ms: int = -1

    @property
    def evictable(self) -> bool:
        """Whether something more valuable may take its place."""
        return not self.kept and self.used_ms < 0


class OrderedRuns:
    """Runs by score and id."""

    __slots__ = ("_blocks", "_lasts", "_length")

    def __init__(self) -> None:
        self._blocks: list[list[Queued]] = []
        self._lasts: list[Any] = []  # the last one of each block
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Queued]:
        for block in self._blocks:
            yield from block

    def add(self, run: Queued) -> None:
        """Puts a run into its place."""
        self._length += 1
        if not self._blocks:
            self._blocks.append([run])
            self._lasts.append(run)
            return
        at = min(bisect_left(self._lasts, run), len(self._blocks) - 1)
        block = self._blocks[at]
        if run > block[-1]:
            block.append(run)
        else:
            insort(block, run)
        if len(block) > 2 * _BLOCK:
            self._blocks.insert(at + 1, block[_BLOCK:])
            self._lasts.insert(at, block[_BLOCK - 1])
            del block[_BLOCK:]
            at += 1
        self._lasts[at] = self._blocks[at][-1]

    def remove(self, run: Queued) -> bool:
        """Takes a run out; whether it was there."""
        at = bisect_left(self._lasts, run)
        if at == len(self._blocks):
            return False
        block = self._blocks[at]
        place = bisect_left(block, run)
        if block[place] != run:
            return False
        del block[place]
        self._shrunk(at)
        return True

    def has(self, run: Queued) -> bool:
        """Whether a run is here."""
        return self._at(run) == run

    def first_from(self, score: int) -> Queued | None:
        """The best one that has at least this score."""
        return self._at((score,))

    def _at(self, key: tuple[Any, ...]) -> Queued | None:
        """The best one from a place on."""
        at = bisect_left(self._lasts, key)
        if at == len(self._blocks):
            return None
        block: list[Any] = self._blocks[at]
        found: Queued = block[bisect_left(block, key)]
        return found

    def first(self) -> Queued | None:
        """The best one."""
        return self._blocks[0][0] if self._blocks else None

    def pop_first(self) -> Queued:
        """Takes the best one out; there must be one."""
        run = self._blocks[0].pop(0)
        self._shrunk(0)
        return run

    def from_bottom(self) -> Iterator[Queued]:
        """All of them, the worst one first."""
        for block in reversed(self._blocks):
            yield from reversed(block)

    def before(self, score: int) -> int:
        """How many have a smaller score."""
        at = bisect_left(self._lasts, (score,))
        if at == len(self._blocks):
            return self._length
        block: list[Any] = self._blocks[at]
        return sum(map(len, self._blocks[:at])) + bisect_left(block, (score,))

    def _shrunk(self, at: int) -> None:
        self._length -= 1
        block = self._blocks[at]
        if block:
            self._lasts[at] = block[-1]
        else:
            del self._blocks[at], self._lasts[at]
