"""What is declared of a dependency: its limits, its breaker, how calls to it are retried. Data; decides nothing.

A dependency is a service that tools call. Its state is one fact for the whole cluster.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from admission.retry import LONGEST_RETRY_AFTER_S, RetryPolicy

RESOURCES: Final = ("requests", "input_tokens", "output_tokens", "tokens")
DEFAULT_MAXIMUM_OPEN_S: Final = 5.0
_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)?\s*(ms|s|m|h|d)")
_SHORTEST_S: Final = 0.5
_LONGEST_S: Final = 31 * 86400.0
_CONFIG: Final = ConfigDict(extra="forbid", allow_inf_nan=False)

Cost = Mapping[str, float]
"""What a call takes of each resource; nothing of what it does not name, but one request where that is left out."""


def seconds_of(text: object) -> float:
    """Seconds of a duration: a number of seconds, or a text as in "1m", "500ms", "24h".

    Raises:
        ValueError: it is no duration, or not above zero.
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        seconds = float(text)
    else:
        matched = _DURATION.fullmatch(str(text).strip())
        if matched is None:
            raise ValueError(f'{text!r} is no duration: give seconds, or a number and ms, s, m, h or d, as in "1m"')
        seconds = float(matched[1] or 1) * _UNITS_S[matched[2]]
    if not 0 < seconds < math.inf:
        raise ValueError(f"{text!r} is no duration above zero")
    return seconds


@dataclass(frozen=True, config=_CONFIG)
class Limit:
    """At most ``amount`` of a resource in any window of ``per``.

    Attributes:
        resource: ``requests``, ``input_tokens``, ``output_tokens``, or ``tokens`` (both together, as OpenAI counts).
        amount: above zero.
        per: the window: seconds, or a text as in ``"1s"``, ``"1m"``, ``"1h"``, ``"1d"``.
    """

    resource: str
    amount: float = Field(gt=0)
    per: str | float = Field(default=60.0, kw_only=True)

    @property
    def window_s(self) -> float:
        """The window in seconds."""
        return float(self.per)

    @field_validator("resource")
    @classmethod
    def _known(cls, resource: str) -> str:
        if resource not in RESOURCES:
            raise ValueError(f"{resource!r} is no resource: use one of {', '.join(RESOURCES)}")
        return resource

    @field_validator("per", mode="before")
    @classmethod
    def _window(cls, per: object) -> float:
        seconds = seconds_of(per)
        if not _SHORTEST_S <= seconds <= _LONGEST_S:
            raise ValueError(f"{per!r}: windows are from {_SHORTEST_S:g} s to {_LONGEST_S / 86400:g} days")
        return seconds

    def __str__(self) -> str:
        return f"{self.amount:g} {self.resource} per {duration_text(self.window_s)}"


def _longest_open_s(said: dict[str, Any]) -> float:
    open_s: float = said.get("open_s", 0.0)
    return max(DEFAULT_MAXIMUM_OPEN_S, open_s)


@dataclass(frozen=True, config=_CONFIG)
class Breaker:
    """When calls to a dependency stop, and how they begin again. Durations in seconds.

    It opens when, within ``window_s``, at least ``minimum_calls`` ended and ``failure_rate`` of them failed, or
    ``slow_call_rate`` of them took longer than ``slow_call_s`` (None: no call is slow). It stays open for ``open_s``,
    twice as long after each probe that fails, at most ``maximum_open_s`` (5, or ``open_s`` if that is longer); then
    1, 2 and 4 calls probe.
    """

    failure_rate: float = Field(default=0.5, gt=0, le=1)
    minimum_calls: int = Field(default=20, ge=1)
    window_s: float = Field(default=10.0, ge=1, le=600)
    slow_call_s: float | None = Field(default=None, gt=0)
    slow_call_rate: float = Field(default=1.0, gt=0, le=1)
    open_s: float = Field(default=2.0, gt=0)
    maximum_open_s: float = Field(default_factory=_longest_open_s, gt=0)

    @model_validator(mode="after")
    def _grows(self) -> "Breaker":
        if self.maximum_open_s < self.open_s:
            raise ValueError(f"maximum_open_s {self.maximum_open_s:g} is below open_s {self.open_s:g}")
        return self


@dataclass(frozen=True, config=_CONFIG)
class RetryBudget:
    """How many retries all callers of one tenant may make together, so that retries cannot become the load.

    Each first attempt pays in ``ratio`` of a retry; where calls are so few that they pay in less than ``per_second``,
    that trickles in. At most ``reserve`` retries, or what ten seconds of calls pay in, are kept. The default is a
    little below a tenth, so that attempts stay within 1.1 times the calls also in a stretch that began with some kept.
    """

    ratio: float = Field(default=0.095, ge=0, le=1)
    reserve: float = Field(default=10.0, ge=0)
    per_second: float = Field(default=0.5, ge=0)


@dataclass(frozen=True, config=_CONFIG)
class Dependency:
    """A service that tools call, and what the whole cluster keeps to when it does.

    Attributes:
        name: what ``@tool(dependency=...)`` names.
        rate: limits over windows; all of them hold.
        max_concurrency: calls under way at once in the whole cluster; None for no bound.
        breaker: when calls stop; None for never.
        retry: for tools that have no policy of their own.
        retry_budget: bounds retries over all callers; None for no bound.
        maximum_retry_after_s: a longer Retry-After is clamped to this, with a warning.
    """

    name: str
    rate: Sequence[Limit] = ()
    max_concurrency: int | None = Field(default=None, ge=1, kw_only=True)
    breaker: Breaker | None = Field(default_factory=Breaker, kw_only=True)
    retry: RetryPolicy = Field(default_factory=RetryPolicy, kw_only=True)
    retry_budget: RetryBudget | None = Field(default_factory=RetryBudget, kw_only=True)
    maximum_retry_after_s: float = Field(default=LONGEST_RETRY_AFTER_S, gt=0, le=86400, kw_only=True)

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
            raise ValueError(f"{name!r}: a name has 1 to 63 letters, digits, dots, dashes or underscores")
        return name

    @field_validator("rate")
    @classmethod
    def _once(cls, rate: Sequence[Limit]) -> Sequence[Limit]:
        seen = [(limit.resource, limit.window_s) for limit in rate]
        for each in seen:
            if seen.count(each) > 1:
                raise ValueError(f"two limits for {each[0]} per {duration_text(each[1])}: keep one")
        return tuple(rate)


def duration_text(seconds: float) -> str:
    """A duration as people write it: the largest unit that divides it."""
    for unit in ("d", "h", "m", "s"):
        if seconds >= _UNITS_S[unit] and seconds % _UNITS_S[unit] == 0:
            return f"{seconds / _UNITS_S[unit]:g}{unit}"
    return f"{seconds:g}s" if seconds >= 1 else f"{seconds * 1000:g}ms"


def as_plain(dependency: Dependency) -> dict[str, Any]:
    """The declaration as JSON-like data; :func:`from_plain` reads it again."""
    from pydantic import TypeAdapter

    plain: dict[str, Any] = TypeAdapter(Dependency).dump_python(dependency, mode="json")
    return plain


def from_plain(plain: Mapping[str, Any]) -> Dependency:
    """The declaration in JSON-like data.

    Raises:
        pydantic.ValidationError: it is none.
    """
    from pydantic import TypeAdapter

    return TypeAdapter(Dependency).validate_python(dict(plain))
