"""What hosts said of a dependency in the last while: counts by source in slots of time."""

from collections import deque
from collections.abc import Callable, Mapping
from math import floor
from operator import attrgetter
from typing import Any, Final, NamedTuple, Self

SLOTS: Final = 10


class Counts(NamedTuple):
    """Calls that ended, those of them that failed, and those that were slow."""

    calls: int = 0
    failed: int = 0
    slow: int = 0

    def plus(self, other: "Counts") -> "Counts":
        """Both together."""
        return Counts(self.calls + other.calls, self.failed + other.failed, self.slow + other.slow)

    def minus(self, other: "Counts") -> "Counts":
        """These without the others."""
        return Counts(self.calls - other.calls, self.failed - other.failed, self.slow - other.slow)


failed_of: Final[Callable[[Counts], int]] = attrgetter("failed")
slow_of: Final[Callable[[Counts], int]] = attrgetter("slow")


class Window:
    """Counts by source in the last ten slots of time, with running sums, so that a look at a healthy one is cheap."""

    __slots__ = ("_slots", "by_source", "slot_s", "total")

    def __init__(self, slot_s: float) -> None:
        self.slot_s = slot_s
        self.total = Counts()
        self.by_source: dict[str, Counts] = {}  # without those that have no calls
        self._slots: deque[tuple[int, dict[str, Counts]]] = deque()  # by index of the slot, oldest first

    def add(self, now: float, source: str, counts: Counts) -> None:
        """Enters calls that ended. Where the clock went back, into the newest slot."""
        self.advance(now)
        here = floor(now / self.slot_s)
        if not self._slots or self._slots[-1][0] < here:
            self._slots.append((here, {}))
        sources = self._slots[-1][1]
        sources[source] = sources.get(source, Counts()).plus(counts)
        self.by_source[source] = self.by_source.get(source, Counts()).plus(counts)
        self.total = self.total.plus(counts)

    def advance(self, now: float) -> Counts:
        """Drops what is too old; what remains in all."""
        oldest = floor(now / self.slot_s) - SLOTS + 1
        while self._slots and self._slots[0][0] < oldest:
            for source, counts in self._slots.popleft()[1].items():
                self._drop(source, counts)
        return self.total

    def reaches(self, bad: Callable[[Counts], int], rate: float) -> bool:
        """Whether the share of bad calls reaches the rate: in all together and, where there are several sources, with
        any one of them left out. Meaningless without calls.
        """
        total, sources = self.total, self.by_source
        # Divided and not multiplied: 3 / 30 is the very number that 0.1 is, and 0.1 * 3 is not 0.3.
        if bad(total) / total.calls < rate:
            return False
        if len(sources) == 1:
            return True
        rests = (total.minus(counts) for counts in sources.values())
        return all(bad(rest) / rest.calls >= rate for rest in rests)

    def forget(self, source: str) -> None:
        """Drops all that one source said."""
        for _, sources in self._slots:
            counts = sources.pop(source, None)
            if counts is not None:
                self._drop(source, counts)

    def _drop(self, source: str, counts: Counts) -> None:
        self.total = self.total.minus(counts)
        rest = self.by_source[source].minus(counts)
        if rest.calls:
            self.by_source[source] = rest
        else:
            del self.by_source[source]

    def clear(self) -> None:
        """Drops everything."""
        self.total = Counts()
        self.by_source.clear()
        self._slots.clear()

    def resized(self, slot_s: float) -> "Window":
        """The same counts in slots of another length; each one's time is known to within an old slot."""
        if slot_s == self.slot_s:
            return self
        other = Window(slot_s)
        for index, sources in self._slots:
            for source, counts in sources.items():
                other.add(index * self.slot_s, source, counts)
        return other

    def snapshot(self, now: float) -> dict[str, Any]:
        """As JSON data, slots by age."""
        self.advance(now)
        here = floor(now / self.slot_s)
        slots = [
            [here - index, {source: list(counts) for source, counts in sources.items()}]
            for index, sources in self._slots
            if sources
        ]
        return {"slot_s": self.slot_s, "slots": slots}

    @classmethod
    def restore(cls, plain: Mapping[str, Any], now: float) -> Self:
        """The window of a snapshot that was taken at `now`."""
        window = cls(float(plain["slot_s"]))
        here = floor(now / window.slot_s)
        for age, sources in plain["slots"]:
            for source, counts in sources.items():
                # The middle of the slot: its begin, as a float, may lie in the slot before.
                window.add((here - int(age) + 0.5) * window.slot_s, str(source), Counts(*map(int, counts)))
        return window
