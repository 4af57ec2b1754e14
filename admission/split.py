"""Dividing what is scarce among hosts: by class first, by demand inside a class, with a memory for fractions.

Deficit round robin (Shreedhar and Varghese, SIGCOMM 1995) over the dominant share of each call (Ghodsi et al., NSDI
2011), with quanta in proportion to demand: a host that could not be served a whole call keeps its claim for the next
time, and loses it when it wants nothing any more. Pure.
"""

from collections.abc import Iterable, Mapping
from typing import Final

_TINY: Final = 1e-12


def quantum(available: float, demands: Mapping[str, Mapping[int, float]], host: str) -> float:
    """What a host should get of ``available`` now, when all hosts want what ``demands`` says.

    Args:
        available: what there is, as a share of the limit.
        demands: host → rank of the class → how much it wants, in the same unit; lower ranks go first.
        host: whose part is asked for.
    """
    left, part = available, 0.0
    for rank in sorted({rank for wanted in demands.values() for rank in wanted}):
        total = sum(wanted.get(rank, 0.0) for wanted in demands.values())
        mine = demands.get(host, {}).get(rank, 0.0)
        if total > 0:
            part += mine * min(1.0, left / total)
        left -= min(left, total)
        if left <= _TINY:
            break
    return part


class Deficits:
    """What each host was promised and not given yet, as a share of the limit."""

    def __init__(self) -> None:
        self._owed: dict[str, float] = {}

    def credit(self, host: str, part: float, most: float) -> float:
        """Adds a quantum; what the host may take now. Never more than ``most``, which is what it wants."""
        owed = min(self._owed.get(host, 0.0) + part, most)
        self._owed[host] = owed
        return owed

    def served(self, host: str, amount: float) -> None:
        """The host was given this much; less than nothing when one whole call was more than it was owed."""
        self._owed[host] = self._owed.get(host, 0.0) - amount

    def leads(self, host: str, others: Iterable[str]) -> bool:
        """Whether nobody of the others is owed more: then the round goes on to the host that a large call waits at."""
        owed = self._owed.get(host, 0.0)
        return all(self._owed.get(other, 0.0) <= owed for other in others)

    def forget(self, host: str) -> None:
        """The host wants nothing, or is gone."""
        self._owed.pop(host, None)


def whole_shares(total: int, wants: Mapping[str, int]) -> dict[str, float]:
    """Max-min fair shares of ``total`` indivisible places: nobody gets more than it wants, nobody who wants more gets
    less than anybody else. Fractions are to be served by turns.
    """
    shares: dict[str, float] = {}
    left, hungry = float(total), sorted(wants, key=lambda host: (wants[host], host))
    for position, host in enumerate(hungry):
        fair = left / (len(hungry) - position)
        shares[host] = min(float(wants[host]), fair)
        left -= shares[host]
    return shares


class Turns:
    """Whole places out of fractional shares: over time everybody gets its share."""

    def __init__(self) -> None:
        self._credit: dict[str, float] = {}

    def places(self, total: int, wants: Mapping[str, int]) -> dict[str, int]:
        """How many places each host has in this turn.

        Args:
            total: places there are.
            wants: how many each host could use.
        """
        shares = whole_shares(total, wants)
        given = {host: int(share + 1e-9) for host, share in shares.items()}
        left = min(total, round(sum(shares.values()))) - sum(given.values())
        part = {host: share - given[host] for host, share in shares.items()}
        for host, fraction in part.items():
            self._credit[host] = self._credit.get(host, 0.0) + fraction
        for host in sorted((each for each in part if part[each] > 1e-9), key=lambda each: -self._credit[each])[:left]:
            given[host] += 1
            self._credit[host] -= 1.0
        for gone in [host for host in self._credit if host not in wants]:
            del self._credit[gone]
        return given
