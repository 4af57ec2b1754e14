"""From which partition does a host claim next? Pure.

Partitions' queues are ordered by value, and hosts choose among partitions by the best level that waits in each: what
was put into a queue is told with its level, and a claim's answer tells the best level that is left. So the order by
value holds across partitions as far as a host has heard of them.
"""

import math
from collections.abc import Iterable
from typing import Final, NamedTuple

from admission.values import LEVELS_A_CLASS

UNKNOWN: Final = -1.0
"""Something waits, nobody has said how valuable: it may be the best, so it is asked before all others."""
NOTHING: Final = math.inf
"""Nothing that has an order waits (runs that are set aside may): asked after all others."""


class Wake(NamedTuple):
    """What was put into a queue: the partition, and the best level of it; None where that was not said."""

    partition: int
    level: int | None


def read_wake(text: str) -> Wake:
    """A message of the wake-up channel: the partition in hex, and the best level of what was queued.

    Scripts of an earlier version say the partition only.

    Raises:
        ValueError: it is no such message.
    """
    partition, _, level = text.partition(" ")
    return Wake(int(partition, 16), int(level) if level else None)


class ClaimOrder:
    """The partitions in which something waits, as one host knows it, and how valuable the best of it is.

    Levels are numbers, smaller ones are more valuable. Being wrong costs a call in vain: its answer says how it is.
    """

    def __init__(self) -> None:
        self._levels: dict[int, float] = {}

    def __bool__(self) -> bool:
        return bool(self._levels)

    def __len__(self) -> int:
        return len(self._levels)

    def queued(self, partition: int, level: float | None) -> None:
        """Something was put into a partition's queue; None: of a level that nobody said.

        Of a partition of which nothing is known, that is worth a look; where a level is known it stays.
        """
        known = self._levels.get(partition)
        if level is None:
            self._levels.setdefault(partition, UNKNOWN)
        elif known != UNKNOWN and (known is None or level < known):
            self._levels[partition] = level

    def suspect(self, partitions: Iterable[int]) -> None:
        """Messages may have been missed: whatever is known of these partitions, something better may wait there."""
        for partition in partitions:
            self._levels[partition] = UNKNOWN

    def unknown(self) -> list[int]:
        """Partitions of which it is not known what waits there."""
        return [partition for partition, level in self._levels.items() if level == UNKNOWN]

    def learn(self, partition: int, level: float | None) -> None:
        """Somebody has looked at a partition of which nothing was known; None: nothing with an order waits there."""
        if self._levels.get(partition) == UNKNOWN:
            self._levels[partition] = NOTHING if level is None else level

    def take(self, home: frozenset[int], most: int) -> list[int]:
        """The partitions to claim from now, at most so many; they are forgotten, until something is heard of them.

        All of them have the best level that is known, and are homes where any home has it: a home is a preference
        among equals.
        """
        best = min(self._levels.values(), default=NOTHING)
        equals = [partition for partition, level in self._levels.items() if level == best]
        chosen = ([partition for partition in equals if partition in home] or equals)[:most]
        for partition in chosen:
            del self._levels[partition]
        return chosen

    @property
    def worst_wanted(self) -> int | None:
        """What is worse than this is not to be claimed from the partitions that were just taken: better work is known
        to wait in another one. None where none is known to.

        The end of the class of the best that waits elsewhere: inside a class, exact order would have hosts ask for one
        run at a time.
        """
        best = self.best
        return None if best is None else int(best) // LEVELS_A_CLASS * LEVELS_A_CLASS + LEVELS_A_CLASS - 1

    @property
    def best(self) -> float | None:
        """The best level that waits, as far as it is known; None where nothing with a known level waits."""
        best = min(self._levels.values(), default=NOTHING)
        return None if best in (UNKNOWN, NOTHING) else best
