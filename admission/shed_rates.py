"""What is refused and shed now, a second, by reason and class: for people. Pure."""

from collections.abc import Iterable
from typing import Final

from admission.drain import moved
from admission.queue_statistics import PartitionStatistics
from admission.values import CLASSES

AVERAGE_MS: Final = 10_000.0
LEAST: Final = 0.005
"""Below one in 200 seconds it is over."""
KINDS: Final = ("refused", "shed", "would")


class ShedRates:
    """Averages over the last ten seconds or so.

    Attributes:
        totals: (kind, reason, rank) → how many since the beginning.
        rates: the same → how many a second.
    """

    def __init__(self) -> None:
        self.totals: dict[tuple[str, str, int], int] = {}
        self.rates: dict[tuple[str, str, int], float] = {}
        self._begun = False

    def observe(self, partitions: Iterable[PartitionStatistics], for_ms: float) -> None:
        """Takes note of what partitions have counted since the beginning."""
        totals: dict[tuple[str, str, int], int] = {}
        for said in partitions:
            for kind in KINDS:
                for reason, counts in getattr(said, kind).items():
                    for rank in range(len(CLASSES)):
                        if counts[rank]:
                            totals[kind, reason, rank] = totals.get((kind, reason, rank), 0) + counts[rank]
        if for_ms > 0 and self._begun:
            for key in totals.keys() | self.rates.keys():
                grown = max(0, totals.get(key, 0) - self.totals.get(key, 0))
                rate = moved(self.rates.get(key, 0.0), 1000.0 * grown / for_ms, for_ms, AVERAGE_MS)
                if rate >= LEAST:
                    self.rates[key] = rate
                else:
                    self.rates.pop(key, None)
        self._begun = True
        self.totals = totals
