"""How many runs can a host hold just now? Pure: measurements and the time in, a number out.

The least of three: the static cap, what its event loop can serve in time, and what its memory has room for. The latter
two go up by addition and down by multiplication (AIMD; Chiu and Jain 1989), with a band between in which nothing
changes, and are never below one. Runs that are there stay; a host that has more than its slots claims nothing
meanwhile.

A loop's lag is the median of a window's measurements: one run that blocks for a moment, or a collection of garbage, is
no standing lag (CoDel's point about queues). Two windows must agree before anything is taken away.
"""

import statistics
from typing import Final, NamedTuple

WINDOW_S: Final = 1.0
SAMPLE_S: Final = 0.1
LAG_MOST_S: Final = 0.05
LAG_CALM_S: Final = 0.025
MEMORY_LEAST: Final = 0.10
MEMORY_LEAST_BYTES: Final = 512 * 1024 * 1024
"""That much memory is left alone: the part of all there is, or the bytes, whichever is less."""
MEMORY_CALM: Final = 1.5
"""Times that much is enough for more."""
DECREASE: Final = 0.8
STEPS: Final = 50
"""So many additions go from nothing to the cap."""
_LEAST_SAMPLES: Final = 3
_BAD_WINDOWS: Final = 2
_LEAST_RUN_BYTES: Final = 32 * 1024
_GAIN: Final = 0.2


class Memory(NamedTuple):
    """Bytes: what this process has, what can still be had (of the machine, or of the group that bounds the process, if
    that is less), and how much there is at all.
    """

    process: int
    available: int
    total: int


class _Limit:
    """One quantity that is raised by steps and lowered by a factor."""

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self.slots = cap
        self._step = max(1, -(-cap // STEPS))
        self._bad = 0

    def bad(self, busy: int) -> None:
        """A window was bad. What is not used is taken away at once: taking it away in parts would change nothing."""
        self._bad += 1
        if self._bad >= _BAD_WINDOWS:
            self.slots = max(1, int(min(self.slots, max(busy, 1)) * DECREASE))

    def fair(self) -> None:
        """A window was neither bad nor calm."""
        self._bad = 0

    def calm(self, most: float) -> None:
        """A window was calm; ``most``: what it may be raised to."""
        self._bad = 0
        self.slots = int(max(self.slots, min(self.slots + self._step, self.cap, most)))


class HostSlots:
    """One host's effective slots.

    Args:
        cap: the static cap, at least 1.
        memory: at the start, when it holds no run.
    """

    def __init__(self, cap: int, memory: Memory) -> None:
        self.cap = cap
        self.lag_s = 0.0
        self._samples: list[float] = []
        self._lag = _Limit(cap)
        self._memory = _Limit(cap)
        self._idle_bytes = memory.process
        self._run_bytes = float(_LEAST_RUN_BYTES)

    @property
    def slots(self) -> int:
        """How many runs it can hold."""
        return max(1, min(self.cap, self._lag.slots, self._memory.slots))

    @property
    def limit(self) -> str:
        """What its slots are limited by: ``cap``, ``lag`` or ``memory``."""
        if self.slots == self.cap:
            return "cap"
        return "lag" if self._lag.slots <= self._memory.slots else "memory"

    def measured(self, lag_s: float) -> None:
        """A timer of the loop was so late."""
        self._samples.append(max(0.0, lag_s))

    def tick(self, busy: int, memory: Memory) -> None:
        """A window is over.

        Args:
            busy: runs that it holds.
            memory: as it is now.
        """
        # A loop that stood still has few samples, and it has claimed nothing either: the next window tells.
        if len(self._samples) >= _LEAST_SAMPLES:
            self.lag_s = statistics.median(self._samples)
            self._samples = []
            if self.lag_s > LAG_MOST_S:
                self._lag.bad(busy)
            elif self.lag_s > LAG_CALM_S:
                self._lag.fair()
            else:
                self._lag.calm(self.cap)
        self._tick_memory(busy, memory)

    def _tick_memory(self, busy: int, memory: Memory) -> None:
        self._idle_bytes = min(self._idle_bytes, memory.process)
        # How much a run takes can be told when there are many for this host: else what a process keeps of its past
        # would be taken for theirs.
        telling = busy > 0 and 2 * busy >= self.slots
        seen = (memory.process - self._idle_bytes) / busy if telling else 0.0
        self._run_bytes += (max(seen, _LEAST_RUN_BYTES) - self._run_bytes) * _GAIN
        least = min(memory.total * MEMORY_LEAST, MEMORY_LEAST_BYTES)
        spare = memory.available - least
        if spare < 0:
            self._memory.bad(busy)
            return
        most = busy + spare / self._run_bytes
        if memory.available >= least * MEMORY_CALM:
            self._memory.calm(most)
        else:
            self._memory.fair()
        # What there is room for bounds it at once, and not only after it has been used up.
        self._memory.slots = max(1, min(self._memory.slots, int(most)))
