"""Bounds on an attempt: the nearest one wins, is named, and is not escaped by code that swallows cancellations."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Final

from actors.contract import ToolCall

CANCEL_AGAIN_S: Final = 1.0
MOST_CANCELS: Final = 3


class Bound:
    """Like ``asyncio.timeout`` around a tool's attempt, with three differences.

    It says which bound it was; it also ends an attempt that has been silent for ``idle_s``; and it cancels again what
    goes on after it was cancelled, and in the end reports it by ``on_stuck``.
    """

    __slots__ = (
        "_call",
        "_cancelling",
        "_fired",
        "_handle",
        "_idle_s",
        "_loop",
        "_on_stuck",
        "_task",
        "_until",
        "said",
    )

    def __init__(self, call: ToolCall, idle_s: float | None, on_stuck: Callable[[], None]) -> None:
        self._call = call
        self._idle_s = idle_s
        self._on_stuck = on_stuck
        self._fired = 0
        self._handle: asyncio.TimerHandle | None = None
        self.said = ""

    def __enter__(self) -> "Bound":
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._until = self._loop.time() + self._call.timeout_s
        first = self._until if self._idle_s is None else min(self._until, self._call.heard_at + self._idle_s)
        self._handle = self._loop.call_at(first, self._due)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self._handle.cancel()
        if not self._fired:
            return
        left = 0
        for _ in range(self._fired):
            left = self._task.uncancel()
        if left <= self._cancelling and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise TimeoutError(self.said) from error

    def _due(self) -> None:
        now = self._loop.time()
        if not self._fired:
            self.said = self._over(now)
            if not self.said:
                return
        if self._fired >= MOST_CANCELS:
            self._handle = None
            self._on_stuck()
            return
        self._fired += 1
        self._handle = self._loop.call_later(CANCEL_AGAIN_S, self._due)
        self._task.cancel()

    def _over(self, now: float) -> str:
        """Which bound has been reached; where none has, looks again later."""
        call, idle_s = self._call, self._idle_s
        if now >= self._until:
            return f"no answer within {call.timeout_s:.4g} s ({call.bounded_by})"
        if idle_s is not None and now >= call.heard_at + idle_s:
            call.bounded_by = f"idle_timeout={idle_s:g}"
            return f"silent for {idle_s:g} s (idle_timeout)"
        again = self._until if idle_s is None else min(self._until, call.heard_at + idle_s)
        self._handle = self._loop.call_at(again, self._due)
        return ""


def nearest(bounds: dict[str, float]) -> tuple[str, float]:
    """The name and the seconds of the bound that comes first."""
    name = min(bounds, key=lambda each: bounds[each])
    return name, bounds[name]
