"""Where a queued run is, and when it is predicted to start: by the law that doors go by. Pure."""

import json
from dataclasses import dataclass
from typing import Any, Final

from admission.admission_policy import STALE_MS, AdmissionPolicy
from admission.admission_policy import from_plain as policy_of
from admission.queue_law import Tally, ahead, part_ahead, predicted
from admission.queue_statistics import from_plain
from admission.values import CLASSES, LEVELS, Value, level_of_score, rank_of_score, value_of_level
from cluster.queue_reader import PartitionQueue, Standing
from penstock.queue_reading import pauses
from penstock.queue_views import PauseView

_STRETCHES: Final = ("recent", "earlier")


@dataclass(frozen=True)
class QueuePlace:
    """A queued run's place.

    Attributes:
        value: how much it is worth.
        tenant: whose it is.
        place: about its place in the whole deployment, 1 for the next one.
        before: runs of its partition that go before it, by class.
        ahead_s: slot-seconds of work before it, in the whole deployment.
        wait_s: how long it is predicted to wait from now; None where nobody can tell.
        cause: why: ``queue``, ``hosts`` or ``dependency:NAME``.
        age_s: how old what the controller said is; None where it has never said anything.
        paused: what holds it; None where nothing does.
    """

    value: Value
    tenant: str
    place: int
    before: tuple[tuple[str, int], ...]
    ahead_s: float
    wait_s: float | None
    cause: str
    age_s: float | None
    paused: PauseView | None

    @property
    def stale(self) -> bool:
        """Whether the controller has been silent for too long to go by what it said."""
        return self.age_s is not None and self.age_s * 1000 > STALE_MS


def queue_place(standing: Standing, queue: PartitionQueue, agent: str, now_ms: int) -> QueuePlace | None:
    """A queued run's place; None where its record says none.

    Args:
        standing: where it is.
        queue: its partition.
        agent: what it runs.
        now_ms: the store's clock.
    """
    level = level_of_score(standing.order)
    if not 0 <= level < LEVELS:
        return None
    rank = rank_of_score(standing.order)
    policy = _policy(queue.policy)
    tally = _tally(queue)
    own = standing.before[rank] if rank < len(standing.before) else 0
    part = part_ahead(own, tally.queued[rank]) if tally.queued[rank] else 1.0
    wait = predicted(policy, tally, now_ms, rank, part, policy.agent(agent))
    told = bool(policy.drain) or wait.wait_ms > 0
    return QueuePlace(
        value=value_of_level(level),
        tenant=standing.tenant,
        place=wait.place,
        before=tuple((CLASSES[each], count) for each, count in enumerate(standing.before) if count),
        ahead_s=ahead(policy, tally, now_ms, rank, part).cost_ms / 1000,
        wait_s=wait.wait_ms / 1000 if told else None,
        cause=wait.reason,
        age_s=max(0, now_ms - policy.at_ms) / 1000 if policy.at_ms else None,
        paused=_held(queue, rank, standing.tenant, agent),
    )


def _policy(raw: bytes) -> AdmissionPolicy:
    """What the partition's door goes by; the default where it has nothing that can be read."""
    try:
        said: Any = json.loads(raw) if raw else {}
        return policy_of(said)
    except (ValueError, TypeError, AttributeError, KeyError):
        return AdmissionPolicy()


def _tally(queue: PartitionQueue) -> Tally:
    """What the partition's door knows of its own queue."""
    tally, statistics = Tally(), from_plain(queue.statistics)
    for rank, said in enumerate(statistics.classes):
        tally.queued[rank], tally.queued_ms[rank] = said.queued, said.queued_ms
        for what, counts in (
            ("fresh", tally.fresh), ("fresh_ms", tally.fresh_ms), ("evicted_ms", tally.evicted_ms)
        ):  # fmt: skip
            counts[rank] = sum(int(queue.counters.get(f"{each}:{what}:{rank}", 0)) for each in _STRETCHES)
    return tally


def _held(queue: PartitionQueue, rank: int, tenant: str, agent: str) -> PauseView | None:
    """What is paused of it, the widest first."""
    what = ("queue", f"class:{CLASSES[rank]}", f"tenant:{tenant}", f"agent:{agent}")
    found = {each.what: each for each in pauses([from_plain(queue.statistics)])}
    return next((found[each] for each in what if each in found), None)
