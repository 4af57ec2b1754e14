"""The law of the door: may a run join the queue, how long will it wait, when is it to come back? Pure.

A partition's door (cluster/lua/submit.lua) decides by the policy that the controller has published and by what it knows
itself; this is the same arithmetic, in the same order, and a test compares the two on the same histories. All times are
milliseconds of the store's clock, all costs milliseconds of a host's slot.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from admission.admission_policy import ANY, STALE_MS, AdmissionPolicy

COUNTED_ONCE: Final = 2
"""So many of a period's arrivals say nothing about other partitions: they may be the only ones."""
NEVER: Final = -1
"""As a time to come back: not with this job as it is."""
LEAST_RETRY_MS: Final = 1000
NO_ROOM_RETRY_MS: Final = 300_000
STORE_RETRY_MS: Final = 30_000


class Asked(NamedTuple):
    """A run that asks to be queued.

    ``max_wait_ms`` and ``deadline_ms`` (a moment) are None where the job says nothing of them.
    """

    rank: int
    tenant: str
    agent: str
    max_wait_ms: int | None = None
    deadline_ms: int | None = None
    size: int = 0


class Here(NamedTuple):
    """What a partition knows.

    Attributes:
        fraction: the part of its queued runs of the same class that would be ahead, 1 where it has none.
        queued_ms: queued cost by rank.
        fresh_ms: what of it has come since the policy was installed here, by rank.
        fresh: how many runs that were.
        gone_ms: queued cost that was evicted since then, by rank.
        fresh_of_tenant: how many of them were of the same tenant.
        count: queued runs.
        size: bytes of their jobs.
        outranks: whether the run would go before the last one of the queue, and that one may be shed.
        slot_ms: what the class's calendar was at last.
    """

    fraction: float
    queued_ms: Sequence[float]
    fresh_ms: Sequence[float]
    fresh: int
    gone_ms: Sequence[float]
    fresh_of_tenant: int
    count: int
    size: int
    outranks: bool
    slot_ms: float


class Accepted(NamedTuple):
    """It may join. ``wait_ms``: the predicted wait, -1 where nothing can be predicted; ``evicts``: the last one of the
    queue has to go for it.
    """

    wait_ms: int
    evicts: bool = False


class Refused(NamedTuple):
    """It may not. ``retry_after_ms``: when to come back, -1 for never with this job; ``by_itself``: whether a program
    should, without somebody's asking; ``slot_ms``: what the class's calendar is now.
    """

    reason: str
    retry_after_ms: int
    by_itself: bool
    slot_ms: float


def cost_ahead(policy: AdmissionPolicy, rank: int, here: Here, now_ms: int) -> float:
    """Cost that is served before a run of this class, in the whole deployment, as far as one partition can tell."""
    better = sum(here.queued_ms[:rank])
    own = here.queued_ms[rank] * here.fraction
    age_ms = now_ms - policy.at_ms
    if age_ms > STALE_MS:
        return (better + own) * policy.partitions
    fresh = sum(here.fresh_ms[:rank]) + here.fresh_ms[rank] * here.fraction
    mean = sum(here.fresh_ms) / here.fresh if here.fresh else 0.0
    elsewhere = max(0.0, fresh - COUNTED_ONCE * mean) * (policy.partitions - 1)
    known = policy.classes[rank]
    # What was evicted here was evicted everywhere.
    gone = (sum(here.gone_ms[:rank]) + here.gone_ms[rank] * here.fraction) * policy.partitions
    told = known.ahead_ms - known.own_ms * (1 - here.fraction) - gone
    drained = (policy.drain or 0.0) * min(max(age_ms, 0), 2 * policy.period_ms)
    return max(0.0, told + fresh + elsewhere - drained)


class Wait(NamedTuple):
    """A predicted wait, and what causes most of it."""

    ms: int
    reason: str


def predicted_wait(policy: AdmissionPolicy, rank: int, agent: str, ahead_ms: float, now_ms: int) -> Wait:
    """How long a run will wait that has this cost ahead of it; -1 where nothing can be predicted."""
    wait = (
        Wait(math.ceil(policy.classes[rank].pace * ahead_ms), "queue")
        if policy.drain is not None
        else Wait(-1, "queue")
    )
    if policy.floor_ms > wait.ms and policy.floor_ms > 0:
        wait = Wait(math.ceil(policy.floor_ms), policy.floor_reason)
    known = policy.agent(agent)
    if known.until_ms > now_ms and known.until_ms - now_ms > wait.ms:
        wait = Wait(known.until_ms - now_ms, f"dependency:{known.dependency}")
    return wait


def door(policy: AdmissionPolicy | None, asked: Asked, here: Here, now_ms: int) -> Accepted | Refused:
    """Whether a run may join the queue."""
    late = asked.deadline_ms is not None and asked.deadline_ms <= now_ms
    if policy is None:
        return Refused("deadline", NEVER, False, here.slot_ms) if late else Accepted(-1)
    tenant, known = policy.tenant(asked.tenant), policy.classes[asked.rank]
    if asked.rank not in tenant.ranks:
        return Refused("tenant_class", NEVER, False, here.slot_ms)
    p90_ms = policy.agent(asked.agent).p90_ms
    if late or (asked.deadline_ms is not None and now_ms + p90_ms > asked.deadline_ms):
        return Refused("deadline", NEVER, False, here.slot_ms)
    ahead = cost_ahead(policy, asked.rank, here, now_ms)
    wait = predicted_wait(policy, asked.rank, asked.agent, ahead, now_ms)
    if not known.open:
        return _later(policy, asked, here, "store", max(STORE_RETRY_MS, wait.ms), ahead, now_ms)
    if tenant.until_ms > now_ms:
        return Refused("tenant_cost", max(LEAST_RETRY_MS, tenant.until_ms - now_ms), True, here.slot_ms)
    if tenant.left != ANY and here.fresh_of_tenant >= tenant.left:
        return _later(policy, asked, here, "tenant_queued", wait.ms, ahead, now_ms)
    max_wait_ms = known.max_wait_ms if asked.max_wait_ms is None else asked.max_wait_ms
    if wait.ms > max_wait_ms:
        return _later(policy, asked, here, wait.reason, wait.ms - max_wait_ms, ahead, now_ms)
    if asked.deadline_ms is not None and now_ms + wait.ms + p90_ms > asked.deadline_ms:
        return Refused("deadline", NEVER, False, here.slot_ms)
    full = (policy.count_bound and here.count >= policy.count_bound) or (
        policy.bytes_bound and here.size + asked.size > policy.bytes_bound
    )
    if full and not here.outranks:
        return _later(policy, asked, here, "queue_full", wait.ms, ahead, now_ms)
    return Accepted(wait.ms, bool(full))


def _later(
    policy: AdmissionPolicy, asked: Asked, here: Here, reason: str, least_ms: float, ahead_ms: float, now_ms: int
) -> Refused:
    """Refused until the class has room for it: each refused run gets a slot of its own in the class's calendar."""
    room = policy.classes[asked.rank].room
    if room <= 0:
        return Refused(reason, NO_ROOM_RETRY_MS, False, here.slot_ms)
    cost_ms = policy.agent(asked.agent).cost_ms
    earliest = now_ms + max(LEAST_RETRY_MS, least_ms)
    slot = max(earliest, here.slot_ms + cost_ms * policy.partitions / room)
    return Refused(reason, math.ceil(slot - now_ms), True, slot)


def is_hopeless(policy: AdmissionPolicy, rank: int, agent: str, max_wait_ms: int, ahead_ms: float, now_ms: int) -> bool:
    """Whether the last run of a queue is to be evicted: it will wait for longer than it may."""
    if policy.drain is None:
        return False
    return predicted_wait(policy, rank, agent, ahead_ms, now_ms).ms > max_wait_ms
