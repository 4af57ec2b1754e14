"""What a run of an agent costs, and how long it takes, from those that have ended; what a tenant has used up. Pure."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

from admission.admission_policy import DEFAULT_COST_MS
from admission.queue_statistics import HISTOGRAM

WINDOW: Final = 100
"""The mean is that of all runs until there were so many, then it forgets."""
ENOUGH: Final = 10
FULL: Final = 1000.0
MOST_AT_ONCE: Final = 0.02
"""What succeeds within one period counts as at most this part of all that is known of service times: what ends together
may have waited together, for a store or a dependency that was away, and says little of the next runs.
"""
FADES_MS: Final = 5000.0
PERCENT: Final = 0.9
HOUR_MS: Final = 3_600_000
_SLOT_MS: Final = 60_000


class ServiceEstimate:
    """One agent.

    Attributes:
        cost_ms: the mean slot time of ended runs.
        seen: how many of them it is made of, at most :data:`WINDOW`.
    """

    __slots__ = ("_counts", "_total", "cost_ms", "seen")

    def __init__(self) -> None:
        self.cost_ms = float(DEFAULT_COST_MS)
        self.seen = 0
        self._counts = [0.0] * HISTOGRAM
        self._total = 0.0

    def observe(self, ended: int, cost_ms: int, service: Sequence[int]) -> None:
        """Takes note of runs that ended.

        Args:
            ended: how many.
            cost_ms: slot time that they took together.
            service: how many of them took how long, by :func:`admission.queue_statistics.bucket_of`.
        """
        if ended > 0:
            self.seen = min(WINDOW, self.seen + ended)
            self.cost_ms += (cost_ms / ended - self.cost_ms) * min(1.0, ended / self.seen)
        came = sum(service)
        part = min(1.0, max(FULL / 10, self._total) * MOST_AT_ONCE / came) if came and self._total >= ENOUGH else 1.0
        self._total += came * part
        self._counts = [had + more * part for had, more in zip(self._counts, service, strict=True)]
        while self._total > FULL:
            self._counts = [count / 2 for count in self._counts]
            self._total /= 2

    def fade(self, for_ms: float) -> None:
        """Some time has passed in which runs were refused for their deadlines and none succeeded: service times are
        forgotten, with a time constant of :data:`FADES_MS`.

        An estimate that is too long keeps out the very runs that would put it right. After a dependency had been down
        for two minutes, and runs had waited for it, the agents that need it were refused for good.
        """
        part = math.exp(-max(0.0, for_ms) / FADES_MS)
        self._counts = [count * part for count in self._counts]
        self._total *= part

    @property
    def p90_ms(self) -> float:
        """Nine of ten runs take no longer; 0 while fewer than ten have been seen. Linear inside a bucket."""
        if self._total < ENOUGH:
            return 0.0
        left = PERCENT * self._total
        for bucket, count in enumerate(self._counts):
            if count >= left:
                return 2.0**bucket * (1.0 + left / count)
            left -= count
        return 2.0**HISTOGRAM

    def snapshot(self) -> dict[str, Any]:
        """What the next controller needs, as JSON data."""
        return {"cost_ms": self.cost_ms, "seen": self.seen, "counts": [round(count, 3) for count in self._counts]}

    @classmethod
    def restore(cls, plain: Mapping[str, Any]) -> Self:
        """The estimate of a snapshot."""
        estimate = cls()
        estimate.cost_ms, estimate.seen = float(plain["cost_ms"]), int(plain["seen"])
        counts = [float(count) for count in plain["counts"]][:HISTOGRAM]
        estimate._counts[: len(counts)] = counts
        estimate._total = sum(counts)
        return estimate


class HourlyCost:
    """Slot time that a tenant has used within the last hour, to a minute."""

    __slots__ = ("_slots", "used_ms")

    def __init__(self) -> None:
        self.used_ms = 0
        self._slots: deque[tuple[int, int]] = deque()  # (index of the minute, slot time), oldest first

    def observe(self, now_ms: int, cost_ms: int) -> None:
        """Takes note of what it has used."""
        here = now_ms // _SLOT_MS
        while self._slots and (self._slots[0][0] + 1) * _SLOT_MS + HOUR_MS <= now_ms:
            self.used_ms -= self._slots.popleft()[1]
        if cost_ms > 0:
            self.used_ms += cost_ms
            if self._slots and self._slots[-1][0] >= here:
                index, had_ms = self._slots[-1]
                self._slots[-1] = (index, had_ms + cost_ms)
            else:
                self._slots.append((here, cost_ms))

    def until_ms(self, allowed_ms: float) -> int:
        """When it is below what it may use, if it uses nothing more; 0 where it is so now."""
        left_ms = self.used_ms
        for index, cost_ms in self._slots:
            if left_ms < allowed_ms:
                break
            left_ms -= cost_ms
            if left_ms < allowed_ms:
                return (index + 1) * _SLOT_MS + HOUR_MS
        return 0

    def snapshot(self) -> list[list[int]]:
        """What the next controller needs, as JSON data."""
        return [list(each) for each in self._slots]

    @classmethod
    def restore(cls, plain: Sequence[Sequence[int]]) -> Self:
        """The hour of a snapshot."""
        hour = cls()
        hour._slots.extend((int(index), int(cost_ms)) for index, cost_ms in plain)
        hour.used_ms = sum(cost_ms for _, cost_ms in hour._slots)
        return hour
