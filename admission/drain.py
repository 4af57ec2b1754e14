"""How much queued cost the hosts take off in a millisecond, and how much is offered to them. Pure.

Averages over time are exponential: a value counts by how long it held, and is forgotten with a time constant.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

from admission.admission_policy import DEFAULT_COST_MS
from admission.values import CLASSES

EFFICIENCY_MS: Final = 10_000.0
UNPROVEN_MS: Final = 30_000.0
LEAST_EFFICIENCY: Final = 0.05
PACE_LOAD_MS: Final = 10_000.0
ROOM_LOAD_MS: Final = 60_000.0
DEVIATIONS: Final = 2.5
BURST: Final = 2.0
"""What is offered within one period counts as at most so many times the drain: a burst is in the queue, and there it is
counted already; it does not go on.
"""


def moved(old: float, new: float, for_ms: float, constant_ms: float) -> float:
    """An average after a new value has held for some time."""
    return old + (new - old) * -math.expm1(-max(0.0, for_ms) / constant_ms)


class Drain:
    """The drain: slots of hosts, by how well they are used while there is enough to do.

    Where there is not enough to do, nothing is learned of the efficiency, and it slowly goes back to 1: an estimate
    that is too low would keep runs out, and so keep itself from being put right.

    Attributes:
        slots: effective slots of hosts that live and do not drain.
        busy: runs that hosts have.
        efficiency: from 0.05 to 1.
        lost_since_ms: since when there is no host any more; None while there is one, or never was one.
    """

    __slots__ = ("_at_ms", "_enough", "_rate", "busy", "efficiency", "lost_since_ms", "slots")

    def __init__(self) -> None:
        self.slots = 0.0
        self.busy = 0
        self.efficiency = 1.0
        self.lost_since_ms: int | None = None
        self._rate: float | None = None
        self._at_ms: int | None = None
        self._enough = False

    @property
    def rate(self) -> float | None:
        """Cost a millisecond; the last one where all hosts are lost, None where there never was one."""
        return self._rate

    def observe(self, now_ms: int, slots: float, busy: int, queued: int, *, paused: bool = False) -> None:
        """Takes note of how things are.

        Args:
            now_ms: the store's clock.
            slots: effective slots of hosts that live and do not drain.
            busy: runs that hosts have.
            queued: runs that could be claimed.
            paused: nothing may be claimed.
        """
        for_ms = 0 if self._at_ms is None else max(0, now_ms - self._at_ms)
        self._at_ms = now_ms if self._at_ms is None else max(self._at_ms, now_ms)
        enough = slots > 0 and not paused and queued >= max(1.0, slots - busy)
        if enough and self._enough:
            self.efficiency = moved(self.efficiency, min(1.0, busy / slots), for_ms, EFFICIENCY_MS)
        elif not enough and slots > 0:
            self.efficiency = moved(self.efficiency, 1.0, for_ms, UNPROVEN_MS)
        self.efficiency = min(1.0, max(LEAST_EFFICIENCY, self.efficiency))
        self._enough, self.slots, self.busy = enough, slots, busy
        if slots > 0:
            self._rate, self.lost_since_ms = slots * self.efficiency, None
        elif self._rate is not None and self.lost_since_ms is None:
            self.lost_since_ms = now_ms

    def lost_for_ms(self, now_ms: int) -> int:
        """How long there has been no host; 0 while there is one, or never was one."""
        return 0 if self.lost_since_ms is None else max(0, now_ms - self.lost_since_ms)

    def snapshot(self) -> dict[str, Any]:
        """What the next controller needs, as JSON data."""
        return {"efficiency": self.efficiency, "rate": self._rate}

    @classmethod
    def restore(cls, plain: Mapping[str, Any]) -> Self:
        """The drain of a snapshot."""
        drain = cls()
        drain.efficiency = min(1.0, max(LEAST_EFFICIENCY, float(plain["efficiency"])))
        drain._rate = None if plain.get("rate") is None else float(plain["rate"])
        return drain


class Loads:
    """What is offered of each class, in cost a millisecond, as two averages: ``pace`` follows within ten seconds and
    says how much of the drain better classes take; ``room`` follows within a minute and says what is left for those
    that are to come again later. ``run_ms`` is what one run costs.
    """

    __slots__ = ("pace", "room", "run_ms")

    def __init__(self) -> None:
        self.run_ms = float(DEFAULT_COST_MS)
        self.pace = [0.0] * len(CLASSES)
        self.room = [0.0] * len(CLASSES)

    def observe(self, offered_ms: Sequence[float], runs: int, for_ms: float, drain: float | None) -> None:
        """Takes note of what was offered.

        Args:
            offered_ms: cost that came since the last time, by rank.
            runs: in how many runs.
            for_ms: how long that is.
            drain: cost a millisecond, where it is known.
        """
        if for_ms <= 0:
            return
        if runs > 0:
            self.run_ms = moved(self.run_ms, sum(offered_ms) / runs, for_ms, PACE_LOAD_MS)
        most = math.inf if drain is None else BURST * drain
        for rank, cost_ms in enumerate(offered_ms):
            rate = min(cost_ms / for_ms, most)
            self.pace[rank] = moved(self.pace[rank], rate, for_ms, PACE_LOAD_MS)
            self.room[rank] = moved(self.room[rank], rate, for_ms, ROOM_LOAD_MS)

    def noise(self, load: float, drain: float) -> float:
        """By how much what is served of a class may differ from the average in t milliseconds, as a multiple of
        sqrt(t) * drain: :data:`DEVIATIONS` standard deviations of the work of independent runs that come (of better
        classes, ``load`` a millisecond) and that end, when their costs are spread exponentially.
        """
        return DEVIATIONS * math.sqrt((load + drain) * 2.0 * self.run_ms) / drain

    def snapshot(self) -> dict[str, Any]:
        """What the next controller needs, as JSON data."""
        return {"pace": list(self.pace), "room": list(self.room), "run_ms": self.run_ms}

    @classmethod
    def restore(cls, plain: Mapping[str, Any]) -> Self:
        """The loads of a snapshot."""
        loads = cls()
        loads.run_ms = max(1.0, float(plain["run_ms"]))
        for name in ("pace", "room"):
            given = [max(0.0, float(each)) for each in plain[name]][: len(CLASSES)]
            getattr(loads, name)[: len(given)] = given
        return loads
