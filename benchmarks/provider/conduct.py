"""How the provider treats a call: what it was told to do, and what follows from it. Time and chance are arguments."""

import math
from collections import deque
from dataclasses import dataclass
from random import Random
from typing import Annotated, Final

import msgspec

NS: Final = 1_000_000_000
DROPPED: Final = 0
OK: Final = 200
RATE_LIMITED: Final = 429
FAILED: Final = 500
OVERLOADED: Final = 503

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=600_000)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]


class Quota(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """At most ``amount`` calls are let through in any window of ``window_s`` seconds, by an exact count.

    Attributes:
        amount: calls in a window.
        window_s: length of the window, half open: two calls just so far apart do not share one.
        retry_after_s: what a 429 asks for; None for the time until there is room again.
        strict: until a Retry-After has passed, every call is answered 429, even where there is room.
    """

    amount: Annotated[int, msgspec.Meta(ge=1)]
    window_s: Seconds
    retry_after_s: Seconds | None = None
    strict: bool = False


class Mode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the provider does. A call that is refused (429, 503) is answered at once, any other after the latency.

    Attributes:
        latency_ms: how long a call takes.
        jitter_ms: up to so much more, uniformly drawn.
        fail_share: share of calls that are answered 500.
        fail_hosts: labels of the callers whom that concerns; empty for all.
        drop_share: share of calls whose connection is closed in the place of an answer.
        quota: the rate limit; None for none.
        maximum_concurrency: more calls than this at once are answered 503; None for no bound.
        seed: of all draws.
    """

    latency_ms: Milliseconds = 0.0
    jitter_ms: Milliseconds = 0.0
    fail_share: Share = 0.0
    fail_hosts: tuple[str, ...] = ()
    drop_share: Share = 0.0
    quota: Quota | None = None
    maximum_concurrency: Annotated[int, msgspec.Meta(ge=1)] | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a call. ``status`` is DROPPED for none; ``retry_after_ms`` is 0 unless the status is 429."""

    status: int
    delay_s: float = 0.0
    retry_after_ms: int = 0


class Window:
    """The calls that were let through within the last window: an exact sliding window, not an estimate of one."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self._window_ns = round(quota.window_s * NS)
        self._let_through: deque[int] = deque()
        self._closed_until_ns = 0

    def retry_after_ms(self, now_ns: int) -> int:
        """0 when the call is let through, and then it counts; otherwise whole milliseconds until it may come again."""
        through = self._let_through
        while through and now_ns - through[0] >= self._window_ns:
            through.popleft()
        if now_ns < self._closed_until_ns:
            return _milliseconds(self._closed_until_ns - now_ns)
        if len(through) < self.quota.amount:
            through.append(now_ns)
            return 0
        asked = self.quota.retry_after_s
        wait_ms = _milliseconds(through[0] + self._window_ns - now_ns if asked is None else asked * NS)
        if self.quota.strict:
            self._closed_until_ns = now_ns + wait_ms * NS // 1000
        return wait_ms

    def headers(self, now_ns: int) -> bytes:
        """What OpenAI's API says of its limits with every answer."""
        through = self._let_through
        left = self.quota.amount - len(through)
        reset_ms = _milliseconds(through[-1] + self._window_ns - now_ns) if through else 0
        text = (
            f"x-ratelimit-limit-requests: {self.quota.amount}\r\nx-ratelimit-remaining-requests: {left}\r\n"
            f"x-ratelimit-reset-requests: {duration(reset_ms)}\r\n"
        )
        return text.encode()


class Conduct:
    """Decides about calls by one mode."""

    def __init__(self, mode: Mode, window: Window | None = None) -> None:
        self.mode = mode
        self._random = Random(mode.seed)
        if mode.quota is None:
            self.window: Window | None = None
        elif window is not None and window.quota == mode.quota:
            self.window = window
        else:
            self.window = Window(mode.quota)

    def changed(self, mode: Mode) -> "Conduct":
        """Another mode. A quota that stays the same goes on counting, another one starts with an empty window."""
        return Conduct(mode, self.window)

    def verdict(self, now_ns: int, host: str, under_way: int) -> Verdict:
        """What becomes of a call that arrives now, while so many others are under way."""
        mode = self.mode
        if mode.maximum_concurrency is not None and under_way >= mode.maximum_concurrency:
            return Verdict(OVERLOADED)
        if self.window is not None and (wait_ms := self.window.retry_after_ms(now_ns)):
            return Verdict(RATE_LIMITED, 0.0, wait_ms)
        # The same draws for every call, so that one share's change does not move the others' fate.
        slower, fails, drops = self._random.random(), self._random.random(), self._random.random()
        delay_s = (mode.latency_ms + mode.jitter_ms * slower) / 1000
        if fails < mode.fail_share and (not mode.fail_hosts or host in mode.fail_hosts):
            return Verdict(FAILED, delay_s)
        return Verdict(DROPPED if drops < mode.drop_share else OK, delay_s)


def duration(milliseconds: int) -> str:
    """A duration as OpenAI's headers write it: ``"120ms"``, ``"1.5s"``, ``"6m0s"``."""
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, left = divmod(milliseconds, 60_000)
    return (f"{minutes}m" if minutes else "") + f"{left / 1000:g}s"


def _milliseconds(duration_ns: float) -> int:
    """Rounded up, so that whoever waits so long has waited long enough."""
    return max(1, math.ceil(duration_ns / 1_000_000))
