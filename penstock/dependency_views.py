"""What clients get to see of dependencies. Times are epoch milliseconds by the store's clock, durations seconds.

A hub of another version may say less, or other things: what cannot be read has its default and is named in ``unread``.
"""

import json
from typing import Any, Final

import msgspec

STALE_S: Final = 5.0
"""A hub that has been silent for longer than this is thought to be gone; its last word may not hold any more."""
UNKNOWN: Final = "unknown"


class BreakerView(msgspec.Struct, frozen=True, kw_only=True):
    """Whether calls go through: ``closed`` (they do), ``open`` (they do not), ``probing`` (a few do), ``unknown``.

    ``by`` is the operator who decided it, empty where the hub did. ``calls``, ``failed`` and ``slow`` are those of the
    breaker's window.
    """

    state: str = UNKNOWN
    since_ms: int | None = None
    reason: str = ""
    until_ms: int | None = None
    openings: int = 0
    by: str = ""
    calls: float = 0
    failed: float = 0
    slow: float = 0


class LimitView(msgspec.Struct, frozen=True, kw_only=True):
    """One limit: of ``amount`` in any window of ``per`` seconds, so much is ``used``, so much is ``outstanding`` (with
    hosts, not used yet) and so much ``available`` now.
    """

    resource: str
    amount: float
    per: float = 60.0
    used: float = 0
    outstanding: float = 0
    available: float = 0


class ConcurrencyView(msgspec.Struct, frozen=True, kw_only=True):
    """Calls under way in the whole cluster, and how many there may be (None: no bound)."""

    max: int | None = None
    in_flight: float = 0


class RetryAfterView(msgspec.Struct, frozen=True, kw_only=True):
    """The last Retry-After: how long, and when it was said."""

    seconds: float
    at_ms: int


class HubHostView(msgspec.Struct, frozen=True, kw_only=True):
    """A host as the hub knows it. ``breaker`` is its own where it alone fails; ``permits``: of the scarcest limit;
    ``places``: how many of its calls may be under way at once (None: no bound).
    """

    host: str
    in_flight: float = 0
    places: float | None = None
    waiting: float = 0
    permits: float = 0
    breaker: str = UNKNOWN
    silent_ms: float = 0


class BudgetView(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant's retry budget: retries that are ``available`` now, first ``calls`` and ``retries`` so far."""

    available: float = 0
    calls: float = 0
    retries: float = 0
    waiting: float = 0


class DependencyView(msgspec.Struct, frozen=True, kw_only=True):
    """A dependency as its hub has last described it.

    Attributes:
        name: its name.
        at_ms: when the hub spoke last; None when it never has.
        silent_s: how long ago that was.
        stale: whether that is too long ago to rely on.
        definition: what is in force, with what operators have set.
        override: what operators have set (``penstock deps set``); the hub may not have read it yet.
        epoch: counts the hub's lives.
        pace: by which factor limits are lowered after a Retry-After; 1 for not at all.
        not_before_ms: no call is made before this moment.
        waiting: calls that wait, by class.
        totals: counts since the dependency exists.
        command_done: the last command of an operator's that was obeyed.
        unread: fields of the hub's description that could not be understood.
    """

    name: str
    at_ms: int | None = None
    silent_s: float | None = None
    stale: bool = True
    epoch: int = 0
    definition: dict[str, Any] = {}
    override: dict[str, Any] = {}
    breaker: BreakerView = BreakerView()
    limits: tuple[LimitView, ...] = ()
    concurrency: ConcurrencyView = ConcurrencyView()
    pace: float | None = None
    not_before_ms: int | None = None
    retry_after: RetryAfterView | None = None
    waiting: dict[str, float] = {}
    hosts: tuple[HubHostView, ...] = ()
    budgets: dict[str, BudgetView] = {}
    totals: dict[str, float] = {}
    command_done: str = ""
    unread: tuple[str, ...] = ()

    @property
    def now_ms(self) -> float:
        """The moment at which this was read, by the store's clock."""
        return (self.at_ms or 0) + 1000 * (self.silent_s or 0.0)


class DependencyAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an operator's wish. It is in the store; ``confirmed`` says that the hub has obeyed it as well.

    A hub that does not answer obeys as soon as it is back.
    """

    confirmed: bool
    dependency: DependencyView


_OURS: Final = frozenset({"name", "silent_s", "stale", "override", "unread"})
_FIELDS: Final = tuple(field for field in msgspec.structs.fields(DependencyView) if field.name not in _OURS)


def dependency_view(name: str, state: bytes | None, override: bytes | None, now_ms: int) -> DependencyView:
    """The view that a hub's snapshot and the operators' changes tell."""
    said = json_object(state)
    found: dict[str, Any] = {}
    unread = ["state"] if state and not said else []
    for field in _FIELDS:
        if field.name in said:
            try:
                found[field.name] = msgspec.convert(said[field.name], field.type)
            except msgspec.ValidationError:
                unread.append(field.name)
    at_ms = found.get("at_ms")
    silent_s = None if at_ms is None else max(0, now_ms - at_ms) / 1000
    return DependencyView(
        name=name,
        silent_s=silent_s,
        stale=silent_s is None or silent_s > STALE_S,
        override=json_object(override),
        unread=tuple(unread),
        **found,
    )


def json_object(raw: bytes | None) -> dict[str, Any]:
    """The JSON object in these bytes; an empty one where there is none."""
    try:
        value = json.loads(raw) if raw else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
