"""What a record says: goodput, value, inversions, fairness, recovery."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from benchmarks.queue_simulation.record import Record

NEAR_MS: Final = 10_000.0
RECOVERED: Final = 0.95
ONSET_MS: Final = 10_000.0
LASTING_MS: Final = 30_000.0


def goodput(record: Record) -> float:
    """Part of all slots that were used for work that ended in time."""
    return sum(record.useful_ms) / (record.plan.span_ms * record.plan.capacity)


def worth(record: Record) -> float:
    """The same by what the classes are worth: worth served in a slot, on average."""
    served = sum(each.worth * useful for each, useful in zip(record.plan.classes, record.useful_ms, strict=True))
    return served / (record.plan.span_ms * record.plan.capacity)


def success(record: Record, rank: int) -> float:
    """Part of a class's runs that succeeded, without those that were longer than their own deadlines."""
    return record.succeeded[rank] / record.able[rank] if record.able[rank] else math.nan


def percentile(values: Sequence[float], part: float) -> float:
    """The value that so many are not above; 0 for no values."""
    if not len(values):
        return 0.0
    return sorted(values)[min(len(values) - 1, math.ceil(part * len(values)) - 1)]


def inversions(record: Record) -> tuple[float, float]:
    """Part of shed runs of all classes but the last for whom one less valuable that came within ten seconds of them
    was started after they came: at any time; and before they would have had to start at the latest, so that they could
    have had its place.
    """
    last = len(record.plan.classes) - 1
    by_rank: list[list[tuple[float, float, int]]] = [[] for _ in range(last + 1)]
    for start in record.starts:
        for rank in range(start[2]):
            by_rank[rank].append(start)
    whens = [[start[0] for start in starts] for starts in by_rank]
    counted = any_time = in_time = 0
    longest_ms = max(each.max_wait_ms for each in record.plan.classes)
    for came_ms, _, rank, max_wait_ms, reason in record.sheds:
        if rank == last or reason.startswith("dependency"):
            continue
        counted += 1
        starts, at = by_rank[rank], bisect_left(whens[rank], came_ms)
        while at < len(starts) and starts[at][0] <= came_ms + NEAR_MS + longest_ms:
            if abs(starts[at][1] - came_ms) <= NEAR_MS:
                any_time += 1
                in_time += starts[at][0] <= came_ms + max_wait_ms
                break
            at += 1
    return (any_time / counted, in_time / counted) if counted else (0.0, 0.0)


def max_min_shares(demands: Sequence[float], weights: Sequence[float], total: float) -> list[float]:
    """What each one gets of a total: its weight's part, or what it wants where that is less and others share the rest
    (max-min fairness).
    """
    shares = [0.0] * len(demands)
    wanting = {number for number, demand in enumerate(demands) if demand > 0}
    while wanting and total > 1e-9:
        level = min(
            total / sum(weights[each] for each in wanting),
            min((demands[each] - shares[each]) / weights[each] for each in wanting),
        )
        for each in wanting:
            shares[each] += level * weights[each]
        total -= level * sum(weights[each] for each in wanting)
        wanting = {each for each in wanting if demands[each] - shares[each] > 1e-9 * demands[each]}
    return shares


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness (1984): 1 where all are equal, 1/n where one has everything."""
    squares = sum(each * each for each in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 0.0


def fairness(record: Record) -> float:
    """Jain's index of what tenants got, as parts of their max-min shares of all that was served."""
    weights = [each.weight for each in record.plan.tenants]
    shares = max_min_shares(record.offered_ms, weights, sum(record.tenant_ms))
    return jain([got / share for got, share in zip(record.tenant_ms, shares, strict=True) if share > 0])


def beside_twin(record: Record, twin: Record, for_ms: float) -> list[float]:
    """Goodput from each bin on, for so long, as a part of that of the same jobs without the strike."""
    count = int(for_ms / record.plan.bin_ms)
    mine, other = record.useful.slots, twin.useful.slots
    last = int(record.plan.until_ms / record.plan.bin_ms) - count
    return [sum(mine[at : at + count]) / max(1e-9, sum(other[at : at + count])) for at in range(last + 1)]


def recovery_s(record: Record, twin: Record, over_ms: float) -> float:
    """How long after a strike goodput is at 95 % of what it would be: from when on it is so for ten seconds, and for
    all stretches of thirty seconds until the end; infinite where it never is.

    Beside a twin that gets the same jobs, since goodput at a load below 1 moves with them by more than that.
    """
    onset, lasting = beside_twin(record, twin, ONSET_MS), beside_twin(record, twin, LASTING_MS)
    first = math.ceil(over_ms / record.plan.bin_ms)
    at = len(lasting)
    while at > first and lasting[at - 1] >= RECOVERED:
        at -= 1
    while at < len(lasting) and onset[at] < RECOVERED:
        at += 1
    return math.inf if at == len(lasting) else max(0.0, at * record.plan.bin_ms - over_ms) / 1000


def peak_to_mean(counts: Sequence[int], each: int) -> float:
    """The busiest stretch of so many bins over the mean one."""
    whole = [sum(counts[at : at + each]) for at in range(0, len(counts) - each + 1, each)]
    return max(whole) / (sum(whole) / len(whole)) if sum(whole) else 0.0
