"""How long the other side asked to be left alone, by the headers of its answer. Pure.

`Retry-After` is RFC 9110, section 10.2.3; `retry-after-ms` is what OpenAI and Azure add to it. The rate limit headers
are those that OpenAI (`x-ratelimit-*`) and Anthropic (`anthropic-ratelimit-*`) document for their APIs.
"""

import email.utils
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

BUSY_STATUSES: Final = frozenset({429, 503, 529})
"""The statuses that say "not now": rate limited, unavailable, overloaded (Anthropic)."""

_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_PIECE: Final = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h|d)"
_DURATION: Final = re.compile(f"(-?)((?:{_PIECE})+)")
_PIECES: Final = re.compile(_PIECE)
_UNITS_S: Final = {
    "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0,
}  # fmt: skip
_LONGEST_VALUE: Final = 100
_SHOWN: Final = 40
# HTTP dates have whole seconds: one that passed less than a second ago is no sign of a wrong clock.
_DATE_STEP_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Hint:
    """What an answer's headers say about when to come again.

    Attributes:
        seconds: leave it alone for so long; None where nothing usable was said.
        warning: names a header that made no sense, its value, and what was made of it; None where nothing was odd.
    """

    seconds: float | None = None
    warning: str | None = None


@dataclass(frozen=True, slots=True)
class _Wish:
    """One header's wish in seconds, which may still be absurd, and whether it was told as a moment."""

    seconds: float
    moment: bool = False


_Reader = Callable[[str, float], _Wish | None]


def asked_to_wait(headers: Mapping[str, str], *, now_epoch_s: float, maximum_s: float, status: int | None) -> Hint:
    """How long an answer asks its caller to wait.

    `retry-after-ms` counts first, then `Retry-After`, then, for an answer that says "not now" (429, 503, 529), the
    longest of the resets of those limits of which nothing remains, or of which it is not said what remains. Never
    raises, whatever the headers hold: what is negative, in the past or too long is clamped, what is no time is ignored.

    Args:
        headers: the answer's headers, in whatever case.
        now_epoch_s: the time, in seconds since 1970.
        maximum_s: the longest wait that is believed.
        status: the answer's status, where it has one.
    """
    said = {name.lower(): value.strip() for name, value in headers.items()}
    odd: list[str] = []
    for name, read in _ASKING:
        seconds = _asked(said, name, read, now_epoch_s, maximum_s, odd)
        if seconds is not None:
            return Hint(seconds, "; ".join(odd) or None)
    resets: list[float] = []
    if status in BUSY_STATUSES:
        for name, remaining, read in _RESETS:
            if _nothing_left(said.get(remaining)):
                seconds = _asked(said, name, read, now_epoch_s, maximum_s, odd)
                if seconds is not None:
                    resets.append(seconds)
    return Hint(max(resets, default=None), "; ".join(odd) or None)


def _asked(
    said: Mapping[str, str], name: str, read: _Reader, now_epoch_s: float, maximum_s: float, odd: list[str]
) -> float | None:
    """One header in seconds within bounds, or None; what is odd about it goes to ``odd``."""
    value = said.get(name)
    if value is None:
        return None
    shown = f"{name} {value[:_SHOWN]!r}"
    wish = read(value, now_epoch_s) if len(value) <= _LONGEST_VALUE else None
    if wish is None:
        odd.append(f"{shown} is no time: ignored")
        return None
    if wish.seconds < 0:
        if not wish.moment:
            odd.append(f"{shown} is negative: taken as 0 s")
        elif wish.seconds < -_DATE_STEP_S:
            odd.append(f"{shown} is {-wish.seconds:.0f} s in the past: taken as 0 s")
        return 0.0
    if wish.seconds > maximum_s:
        odd.append(f"{shown} is longer than the {maximum_s:g} s that are believed: taken as {maximum_s:g} s")
        return maximum_s
    return wish.seconds


def _nothing_left(remaining: str | None) -> bool:
    """Whether the remainder of a limit is zero or not told."""
    left = _number(remaining or "", 0.0)
    return left is None or left.seconds <= 0


def _number(value: str, _: float) -> _Wish | None:
    """Plain seconds. Not all that Python takes for a number: NaN, infinity and 1_000 are none."""
    return _Wish(float(value)) if _NUMBER.fullmatch(value) else None


def _milliseconds(value: str, now_epoch_s: float) -> _Wish | None:
    wish = _number(value, now_epoch_s)
    return None if wish is None else _Wish(wish.seconds / 1000)


def _number_or_date(value: str, now_epoch_s: float) -> _Wish | None:
    """Seconds, or a date in one of the three forms of HTTP; a date without a zone is UTC, as all of them are."""
    wish = _number(value, now_epoch_s)
    if wish is not None:
        return wish
    try:
        return _until(email.utils.parsedate_to_datetime(value), now_epoch_s)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _duration(value: str, now_epoch_s: float) -> _Wish | None:
    """A duration as Go writes it ("6m0s", "120ms", "1h2m3s"), or plain seconds."""
    matched = _DURATION.fullmatch(value)
    if matched is None:
        return _number(value, now_epoch_s)
    seconds = math.fsum(float(count) * _UNITS_S[unit] for count, unit in _PIECES.findall(matched[2]))
    return _Wish(-seconds if matched[1] else seconds)


def _moment(value: str, now_epoch_s: float) -> _Wish | None:
    """A moment as in RFC 3339."""
    try:
        return _until(datetime.fromisoformat(value), now_epoch_s)
    except (ValueError, OverflowError):
        return None


def _until(moment: datetime, now_epoch_s: float) -> _Wish:
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return _Wish(aware.timestamp() - now_epoch_s, moment=True)


_ASKING: Final[tuple[tuple[str, _Reader], ...]] = (("retry-after-ms", _milliseconds), ("retry-after", _number_or_date))
_RESETS: Final[tuple[tuple[str, str, _Reader], ...]] = (
    *(
        (f"x-ratelimit-reset-{resource}", f"x-ratelimit-remaining-{resource}", _duration)
        for resource in ("requests", "tokens")
    ),
    *(
        (f"anthropic-ratelimit-{resource}-reset", f"anthropic-ratelimit-{resource}-remaining", _moment)
        for resource in ("requests", "tokens", "input-tokens", "output-tokens")
    ),
)
