"""What a host and a hub tell each other, once a period: demand and outcomes up, permits and states down.

Every duration is relative: monotonic clocks do not compare across processes. A message may be lost. A host says what it
*has*, not what it took, so that the hub can tell what was used, and takes a lost answer for use: never the other way.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from admission.values import CLASSES

VERSION = 1
ANSWER_WITHIN_S = 1.0
"""So long a host waits for an answer, and so long after its end a lease may still be in force somewhere."""
LEFT_ALONE = "the other side asked to be left alone (Retry-After)"
RANKS = CLASSES


@dataclass(slots=True)
class Demand:
    """Calls that a host would make, of one class.

    Attributes:
        rank: index of the class, 0 for the most valuable; calls that are only foreseen come after all classes.
        calls: how many.
        cost: what one of them takes, on average, by resource.
        largest: what the first in line takes.
        probes: how many of them may probe a dependency that was down: those that may be repeated.
    """

    rank: int
    calls: float
    cost: dict[str, float]
    largest: dict[str, float]
    probes: int = 0


@dataclass(slots=True)
class Outcomes:
    """How calls ended that were let through in one generation of the breaker (``slow`` ones have succeeded)."""

    generation: int
    succeeded: int = 0
    failed: int = 0
    slow: int = 0
    own: int = 0


@dataclass(slots=True)
class Report:
    """From a host to a hub.

    Attributes:
        host: the host's identity.
        sequence: counts up; an older one than the last is ignored.
        epoch: of the hub whose permits these are; permits of an earlier hub are not taken back.
        demands: what waits, by class, and what is foreseen until the next report.
        balance: permits that it has and has not used, by resource.
        returned: permits that it gives back unused, by resource; they are no part of the balance any more.
        in_flight: calls under way.
        outcomes: since the last report.
        rate_limited, retries, abandoned: counts since the last report.
        settled: (the first report that told of the use, actual minus reserved by resource).
        stop_s: the longest Retry-After that is still in force, in seconds from now.
        calls: first attempts since the last report, by tenant.
        retries_wanted: retries that wait for the budget, by tenant.
        retries_returned: granted retries that nobody wanted any more, by tenant.
        probes_returned: granted probes that nobody could use.
        leaving: it will not come again; whatever it has is given back.
        held: the sequence of the last lease that it has taken: only then what that one took away is away.
        places: the concurrency that it goes by.
    """

    host: str
    sequence: int
    epoch: int = 0
    v: int = VERSION
    demands: list[Demand] = field(default_factory=list)
    balance: dict[str, float] = field(default_factory=dict)
    returned: dict[str, float] = field(default_factory=dict)
    in_flight: int = 0
    outcomes: list[Outcomes] = field(default_factory=list)
    rate_limited: int = 0
    retries: int = 0
    abandoned: int = 0
    settled: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    stop_s: float = 0.0
    calls: dict[str, int] = field(default_factory=dict)
    retries_wanted: dict[str, int] = field(default_factory=dict)
    retries_returned: dict[str, int] = field(default_factory=dict)
    probes_returned: int = 0
    leaving: bool = False
    held: int = 0
    places: int = 0


@dataclass(slots=True)
class Lease:
    """From a hub to a host; it holds for ``lifetime_s`` from the moment at which the host sent its report.

    Attributes:
        epoch: the hub's incarnation; a host never goes back to an earlier one.
        sequence: of the report that it answers.
        state: closed, open or probing.
        generation: of the breaker; the host hands it back with outcomes.
        own: of the breaker that this host has for itself, because it alone fails.
        why: what holds calls back, in words; empty when nothing does.
        stopped: it is a Retry-After that holds them back.
        not_before_s: no call before so many seconds have passed.
        permits: what is added to the host's balance, by resource; None when no rate is limited. What ``most`` names is
            limited, whatever is said here.
        probes: calls that may go while probing; ``any_probe``: also one that may not be repeated.
        concurrency: how many calls may be under way at once on this host; None for no bound.
        retries: retries that are granted, by tenant; None when they are not bounded.
        safe: units a second, by resource, that the host may use when no hub answers.
        lifetime_s, period_s: how long this holds, and when to come again.
        most: the most that one call can ever take, by resource.
        saturated: there is more demand than room: coming earlier brings nothing.
        scarce: which limit is the scarce one, in words.
        definition: what is declared of the dependency, as plain data, for a host whose last lease was of another
            declaration or another hub; None for one that goes by it already.
    """

    epoch: int
    sequence: int
    v: int = VERSION
    state: str = "closed"
    generation: int = 0
    own: int = 0
    why: str = ""
    stopped: bool = False
    not_before_s: float = 0.0
    permits: dict[str, float] | None = None
    probes: int = 0
    any_probe: bool = False
    concurrency: int | None = None
    retries: dict[str, int] | None = None
    safe: dict[str, float] | None = None
    lifetime_s: float = 0.5
    period_s: float = 0.25
    most: dict[str, float] = field(default_factory=dict)
    saturated: bool = False
    scarce: str = ""
    definition: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class News:
    """From a hub to all hosts, ahead of their next leases: those fields of a lease that cannot wait."""

    epoch: int
    state: str
    generation: int
    not_before_s: float
    why: str
    stopped: bool = False


def added(left: Mapping[str, float], right: Mapping[str, float], times: float = 1.0) -> dict[str, float]:
    """``left + times * right``, by name."""
    total = dict(left)
    for name, amount in right.items():
        total[name] = total.get(name, 0.0) + times * amount
    return total
