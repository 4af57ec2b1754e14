"""How loaded a host is: measures how late its own timers are and its memory, and says how many runs it can hold."""

import asyncio
import json
import time
from collections.abc import Callable

from actors.host_slots import SAMPLE_S, WINDOW_S, HostSlots
from actors.machine_memory import MemoryProbe


class HostLoad:
    """Measures on the current event loop, from :meth:`start` on.

    Args:
        cap: the static cap of slots.
        busy: how many runs the host holds.
        more: is called when there are more slots than before.
    """

    def __init__(self, cap: int, busy: Callable[[], int], more: Callable[[], None]) -> None:
        self._busy = busy
        self._more = more
        self._probe = MemoryProbe()
        self._slots = HostSlots(cap, self._probe.look())
        self._loop = asyncio.get_running_loop()
        self._window_ends = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begins to measure."""
        self._window_ends = time.monotonic() + WINDOW_S
        self._next()

    def stop(self) -> None:
        """Measures no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def slots(self) -> int:
        """How many runs the host can hold just now."""
        return self._slots.slots

    @property
    def free(self) -> int:
        """How many more it can take; negative when it holds more than it should."""
        return self._slots.slots - self._busy()

    def report(self) -> str:
        """What others are told with the heartbeat (JSON)."""
        slots = self._slots
        told = {
            "slots": slots.slots,
            "cap": slots.cap,
            "busy": self._busy(),
            "limit": slots.limit,
            "lag_ms": round(slots.lag_s * 1000, 1),
        }
        return json.dumps(told)

    def _next(self) -> None:
        # Not by the loop's clock: that stands still while the loop is busy.
        self._timer = self._loop.call_later(SAMPLE_S, self._measure, time.monotonic() + SAMPLE_S)

    def _measure(self, due: float) -> None:
        now = time.monotonic()
        self._slots.measured(now - due)
        if now >= self._window_ends:
            before = self._slots.slots
            self._slots.tick(self._busy(), self._probe.look())
            self._window_ends = now + WINDOW_S
            if self._slots.slots > before:
                self._more()
        self._next()
