"""Tenants share a level by weight: start-time fair queueing over estimated cost. Pure.

Start-time fair queueing is of Goyal, Vin and Cheng (SIGCOMM 1996). A run's start tag is the larger of the level's
virtual time and its tenant's finish tag; the queue serves the smallest start tag; the virtual time is that of the last
run that was served. Over cost that is only estimated and settled afterwards it is the virtual token counter of Sheng
et al. (OSDI 2024): a tenant that comes back from idling starts where the level is now, and what a run really took is
charged, or given back, when it ends. All numbers are whole and below 2**43, the same in Lua's doubles.
"""

import math
from typing import Final

from admission.values import LATEST

_HIGH_WATER: Final = 2**42


def charge_of(cost_ms: float, weight: float) -> int:
    """By how much virtual time a run of that cost moves its tenant on: at least 1, so that runs keep their order."""
    return max(1, math.floor(cost_ms / weight + 0.5))


class FairShare:
    """The counters of one partition.

    Forgetting is not to be noticed: a tag that the virtual time has reached says nothing more. Where tags would reach
    the end of a level's scores (after some 280 years of one slot's work in one standing queue), they stay there, and
    the order inside the level is lost until it is empty once.

    Attributes:
        charged_ms: estimated cost of all runs that came, and what ended ones took beyond it.
        returned_ms: what was given back: for runs that never started, and of ended ones that took less.
    """

    __slots__ = ("_finish", "_virtual", "charged_ms", "returned_ms")

    def __init__(self) -> None:
        self.charged_ms = 0
        self.returned_ms = 0
        self._virtual: dict[int, int] = {}
        self._finish: dict[int, dict[str, int]] = {}

    def due(self, level: int, tenant: str) -> int:
        """The virtual time at which a tenant's next run of a level would start."""
        virtual = self._virtual.get(level, 0)
        finish = self._finish.get(level)
        return virtual if finish is None else max(virtual, finish.get(tenant, 0))

    def virtual(self, level: int) -> int:
        """The level's virtual time."""
        return self._virtual.get(level, 0)

    def charge(self, level: int, tenant: str, cost_ms: int, weight: float) -> int:
        """A run comes: its start tag."""
        start = self.due(level, tenant)
        self._put(level, tenant, start + charge_of(cost_ms, weight))
        self.charged_ms += cost_ms
        return start

    def serve(self, level: int, start: int) -> None:
        """A run with this start tag is claimed."""
        if start > self._virtual.get(level, 0):
            self._virtual[level] = start

    def give_back(self, level: int, tenant: str, cost_ms: int, weight: float) -> None:
        """A run that was charged for leaves without ever having started."""
        self._put(level, tenant, self.due(level, tenant) - charge_of(cost_ms, weight))
        self.returned_ms += cost_ms

    def settle(self, level: int, tenant: str, cost_ms: int, real_ms: int, weight: float) -> None:
        """A run that was charged for is over: what it really took counts."""
        self._put(level, tenant, self.due(level, tenant) + math.floor((real_ms - cost_ms) / weight + 0.5))
        self.charged_ms += max(0, real_ms - cost_ms)
        self.returned_ms += max(0, cost_ms - real_ms)

    def forget(self, level: int, *, empty: bool) -> None:
        """Drops what says nothing any more; starts an empty level that has come far from its beginning again."""
        if empty and self._virtual.get(level, 0) >= _HIGH_WATER:
            self._virtual.pop(level)
            self._finish.pop(level, None)
            return
        virtual = self._virtual.get(level, 0)
        left = {tenant: finish for tenant, finish in self._finish.get(level, {}).items() if finish > virtual}
        if left:
            self._finish[level] = left
        else:
            self._finish.pop(level, None)

    @property
    def levels(self) -> list[int]:
        """Those of which anything is known."""
        return sorted(self._virtual.keys() | self._finish.keys())

    def _put(self, level: int, tenant: str, finish: int) -> None:
        finish = min(finish, LATEST)
        if finish > self._virtual.get(level, 0):
            self._finish.setdefault(level, {})[tenant] = finish
        elif level in self._finish:
            self._finish[level].pop(tenant, None)
