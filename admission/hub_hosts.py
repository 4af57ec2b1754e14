"""What a hub knows of each host, and what it has counted. Data of :mod:`admission.hub`. Pure."""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from admission.breaker import BreakerMachine

SAFE_SHARE: Final = 0.8
_SMOOTHING: Final = 0.2
_MOST_TOLD: Final = 8
_MOST_ENTERED: Final = 2048


@dataclass(frozen=True, slots=True)
class Told:
    """What a host was told at a moment: a lease that may be the one that it goes by."""

    sequence: int
    at: float
    places: int
    safe: dict[str, float]


@dataclass(slots=True)
class HostFacts:
    """What the hub knows of one host."""

    sequence: int
    heard: float
    assumed: float
    out: dict[str, float] = field(default_factory=dict)
    demand: dict[int, float] = field(default_factory=dict)
    waiting: dict[int, float] = field(default_factory=dict)
    probes_wanted: int = 0
    in_flight: int = 0
    wanted_places: int = 0
    places: int = 0
    served: float = 0.0
    safe: dict[str, float] = field(default_factory=dict)
    own: BreakerMachine | None = None
    told: list[Told] = field(default_factory=list)
    entered: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_MOST_ENTERED))

    def entered_at(self, sequence: int) -> float:
        """When what a report told was entered as used: with it, or with the first one after it that arrived. The
        beginning of time where nobody knows any more: then nothing is given back.
        """
        if not self.entered or sequence < self.entered[0][0]:
            return -math.inf
        place = bisect_left(self.entered, sequence, key=lambda each: each[0])
        return self.entered[min(place, len(self.entered) - 1)][1]

    @property
    def most_places(self) -> int:
        """What it may have under way: an answer that took places away may not have arrived."""
        return max(self.in_flight, max((each.places for each in self.told), default=0))

    @property
    def most_safe(self) -> dict[str, float]:
        """The safe rates that it may go by."""
        found: dict[str, float] = {}
        for each in self.told:
            for name, rate in each.safe.items():
                found[name] = max(found.get(name, 0.0), rate)
        return found

    def tell(self, told: Told) -> None:
        """Keeps what it was told until it has taken a later lease; of many, what they have in common."""
        if len(self.told) >= _MOST_TOLD:
            first, second = self.told[:2]
            safe = {name: max(rate, second.safe.get(name, 0.0)) for name, rate in first.safe.items()}
            self.told[:2] = [Told(second.sequence, first.at, max(first.places, second.places), second.safe | safe)]
        self.told.append(told)


def safe_rates(
    host: HostFacts, hosts: Collection[HostFacts], rates: Mapping[str, float], period_s: float
) -> dict[str, float]:
    """A host's part of a safe share, by what it was served lately; together never more than the safe share.

    Args:
        host: the host.
        hosts: all of them, this one too.
        rates: units a second, by resource, that the limits allow.
        period_s: how often hosts come.
    """
    host.served *= 1.0 - _SMOOTHING * period_s
    total = sum(each.served for each in hosts)
    weight = host.served / total if total > 0 else 1.0 / len(hosts)
    safe: dict[str, float] = {}
    for resource, rate in rates.items():
        others = sum(each.most_safe.get(resource, 0.0) for each in hosts if each is not host)
        safe[resource] = max(0.0, min(SAFE_SHARE * rate * weight, SAFE_SHARE * rate - others))
    return safe


@dataclass(slots=True)
class Totals:
    """Counts since the hub's dependency was first seen."""

    succeeded: int = 0
    failed: int = 0
    slow: int = 0
    rate_limited: int = 0
    retries: int = 0
    abandoned: int = 0
