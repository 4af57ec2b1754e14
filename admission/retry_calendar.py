"""When those who were refused may come again: slots that the room for them can serve. Pure.

Each class of each partition has one cursor. A slot is never closer behind the one before than its own run takes of the
partition's part of the room, so that those who come back on time never come faster than they can be served: in any
stretch of time, the cost of slots in it is at most what the room serves in it, and one run's more. A slot also moves
the cursors of less valuable classes on: whoever has it goes before them. Without that, after a burst of 100 s of work,
one in three of those who came back on time was refused again; with it, one in seventy.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from admission.values import CLASSES

SHORTEST_MS: Final = 1000
NO_ROOM_MS: Final = 300_000
"""What those are told for whom there is no room in sight; they should not come again by themselves."""
LONGEST_MS: Final = 86_400_000
"""Beyond this nothing is promised."""


class ComeBack(NamedTuple):
    """When to come again.

    Attributes:
        after_ms: milliseconds from now; -1 for never: the job cannot be accepted as it is.
        by_itself: whether a client should come again without being told to.
    """

    after_ms: int
    by_itself: bool


NEVER: Final = ComeBack(-1, False)


class RetryCalendar:
    """One partition's cursors. ``phase`` (its place among all partitions, from 0 to below 1) keeps the first slots of
    different partitions apart.
    """

    __slots__ = ("_cursors", "_tenants", "phase")

    def __init__(self, phase: float = 0.0) -> None:
        self.phase = phase
        self._cursors = [0.0] * len(CLASSES)
        self._tenants: dict[str, float] = {}

    def book(
        self, now_ms: int, rank: int, wait_ms: float, spacings_ms: Sequence[float], before_ms: float = math.inf
    ) -> ComeBack:
        """The next slot of a class.

        Args:
            now_ms: the store's clock.
            rank: of the class.
            wait_ms: nobody comes before so much time has passed.
            spacings_ms: how long the run takes of the partition's part of the room that each class has; infinite where
                it has no room.
            before_ms: a slot after this moment is of no use, and is not booked.
        """
        spacing_ms = spacings_ms[rank]
        wait_ms = max(wait_ms, SHORTEST_MS)
        if not spacing_ms < math.inf:
            slot_ms = now_ms + max(wait_ms, NO_ROOM_MS)
            return NEVER if slot_ms > before_ms else ComeBack(math.ceil(slot_ms - now_ms), False)
        slot_ms = max(now_ms + wait_ms + spacing_ms * self.phase, self._cursors[rank] + spacing_ms)
        if slot_ms > before_ms:
            return NEVER
        if slot_ms - now_ms > LONGEST_MS:
            return ComeBack(LONGEST_MS, False)
        self._cursors[rank] = slot_ms
        for lower in range(rank + 1, len(CLASSES)):
            if spacings_ms[lower] < math.inf:
                # When it comes it goes first: it takes the room of less valuable ones, too.
                self._cursors[lower] = max(self._cursors[lower], now_ms + wait_ms) + spacings_ms[lower]
        return ComeBack(math.ceil(slot_ms - now_ms), True)

    def book_tenant(
        self, now_ms: int, tenant: str, wait_ms: float, spacing_ms: float, before_ms: float = math.inf
    ) -> ComeBack:
        """The next slot of a tenant that has as many runs queued as it may: as far apart as the whole drain would take
        for its runs. Without that, a flood that met its cap came back as a whole, once a second.

        Args:
            now_ms: the store's clock.
            tenant: which.
            wait_ms: nobody comes before so much time has passed.
            spacing_ms: how far it is from the slot before.
            before_ms: a slot after this moment is of no use, and is not booked.
        """
        cursor_ms = self._tenants.get(tenant, 0.0)
        slot_ms = now_ms + wait_ms + spacing_ms * self.phase
        if cursor_ms > now_ms:
            slot_ms = max(slot_ms, cursor_ms + spacing_ms)
        if slot_ms > before_ms:
            return NEVER
        if slot_ms - now_ms > LONGEST_MS:
            return ComeBack(LONGEST_MS, False)
        self._tenants[tenant] = slot_ms
        return ComeBack(math.ceil(slot_ms - now_ms), True)

    def forget(self, now_ms: int) -> None:
        """Tenants whose slots are over need no cursor."""
        for tenant in [name for name, slot_ms in self._tenants.items() if slot_ms <= now_ms]:
            del self._tenants[tenant]

    def cursor_ms(self, rank: int) -> float:
        """The last slot that was given to a class."""
        return self._cursors[rank]
