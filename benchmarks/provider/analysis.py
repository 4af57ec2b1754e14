"""What arrivals say. Moments are nanoseconds of one monotonic clock, in order; durations are seconds."""

from bisect import bisect_left
from collections.abc import Sequence

from benchmarks.provider.arrivals import UNDER_WAY, Arrival
from benchmarks.provider.conduct import NS, OVERLOADED, RATE_LIMITED


def moments(arrivals: Sequence[Arrival]) -> list[int]:
    """When they arrived."""
    return [arrival.at_ns for arrival in arrivals]


def let_through(arrivals: Sequence[Arrival]) -> list[Arrival]:
    """Those that the provider did not refuse: they succeeded, failed or lost their connection."""
    return [arrival for arrival in arrivals if arrival.status not in (RATE_LIMITED, OVERLOADED)]


def worst_window(moments_ns: Sequence[int], window_s: float, weights: Sequence[float] | None = None) -> float:
    """The most that arrived within any window of the given length; see :func:`most_within`."""
    return most_within(moments_ns, round(window_s * NS), weights)


def most_within(moments: Sequence[float], window: float, weights: Sequence[float] | None = None) -> float:
    """The most within any window of the given length, in the moments' own unit: exact, by two pointers.

    A window is half open: two moments that are just so far apart do not share one. ``weights`` says what each moment
    counts (its tokens, say); 1 by default.
    """
    worst, inside, first = 0.0, 0.0, 0
    for last, moment in enumerate(moments):
        inside += 1 if weights is None else weights[last]
        while moment - moments[first] >= window:
            inside -= 1 if weights is None else weights[first]
            first += 1
        worst = max(worst, inside)
    return worst


def between(moments_ns: Sequence[int], start_ns: int, end_ns: int) -> int:
    """How many arrived from ``start_ns`` on and before ``end_ns``."""
    return bisect_left(moments_ns, end_ns) - bisect_left(moments_ns, start_ns)


def share_used(moments_ns: Sequence[int], limit: float, window_s: float, start_ns: int, end_ns: int) -> float:
    """How much of a limit was made use of in a span of time; 1 is all of it."""
    if end_ns <= start_ns:
        raise ValueError(f"the span from {start_ns} to {end_ns} is empty")
    return between(moments_ns, start_ns, end_ns) * window_s * NS / (limit * (end_ns - start_ns))


def per_second(moments_ns: Sequence[int], start_ns: int, end_ns: int) -> list[int]:
    """How many arrived in each whole second from ``start_ns`` on; a last second that is cut short is left out."""
    return [between(moments_ns, at, at + NS) for at in range(start_ns, end_ns - NS + 1, NS)]


def after(arrivals: Sequence[Arrival], moment_ns: int) -> list[Arrival]:
    """Those that arrived later than a moment."""
    return [arrival for arrival in arrivals if arrival.at_ns > moment_ns]


def under_way_at(arrivals: Sequence[Arrival], moment_ns: int) -> int:
    """How many had arrived by a moment and had not ended by then."""
    return sum(
        arrival.at_ns <= moment_ns and (arrival.ended_ns == UNDER_WAY or arrival.ended_ns > moment_ns)
        for arrival in arrivals
    )


def maximum_concurrency(arrivals: Sequence[Arrival]) -> int:
    """The most that were under way at once. What ends in the moment in which another begins does not overlap it."""
    changes = [(arrival.at_ns, 1) for arrival in arrivals if arrival.ended_ns != arrival.at_ns]
    changes += [(arrival.ended_ns, -1) for arrival in arrivals if arrival.ended_ns not in (UNDER_WAY, arrival.at_ns)]
    now = most = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


def before_retry_after(arrivals: Sequence[Arrival], grace_s: float = 0.0) -> list[Arrival]:
    """Those that arrived although a 429 before them had asked to wait for longer.

    ``grace_s`` is how long after a 429 a call may still arrive that had been sent before the answer was there.
    """
    early = []
    asked_at_ns = until_ns = 0
    for arrival in arrivals:
        if asked_at_ns + grace_s * NS < arrival.at_ns < until_ns:
            early.append(arrival)
        if arrival.retry_after_s and arrival.at_ns >= until_ns:
            asked_at_ns = arrival.at_ns
        if arrival.retry_after_s:
            until_ns = max(until_ns, arrival.at_ns + round(arrival.retry_after_s * NS))
    return early
