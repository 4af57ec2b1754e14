"""The law of the queue: how long will a run wait, may it come in, when may it come again? Pure.

W = cost ahead / what is drained of it. The cost ahead of a run is what the controller last said is queued in better
classes and in its own, the latter by the part that goes before it in this partition, plus what has come here since,
less what the hosts have taken off meanwhile. The same arithmetic, in the same order, is in ``cluster/lua``: doubles, no
other numbers.

While a run waits, better ones go on coming, and take the part rho of the drain D, on average. In a short wait that says
little: in t milliseconds the work that comes, and the work that ends, differ from it by about b * sqrt(t) * D. A run is
refused, or shed, only when even a favourable course of things would be too late for it: when W with

    W * (1 - rho) + b * sqrt(W) = cost ahead / D

is too long, and never sooner than the whole drain could serve what is ahead. With averages alone, runs were refused of
which less valuable ones were started a moment later, when there was room after all: with 200 slots, runs of 30 s, a
``max_wait`` of 5 s and twice the load, one refusal in ten; so it is one in a hundred. In large deployments b is small.

Nor does the load of the last seconds go on for ever. Better classes are taken to come as they do now for a minute more
(``more_ms`` = rho * 60 s): then W is at most cost ahead / D + ``more_ms``. Without that, a large batch of several
classes, all of which may wait for a day, was refused in part while it was being submitted: with what had just come of
better classes as the load of days to come, the others had a thousandth of the drain.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from admission.admission_policy import (
    DEFAULT_MAX_WAIT_MS,
    STALE_MS,
    AdmissionPolicy,
    AgentPolicy,
    ClassPolicy,
    TenantPolicy,
)
from admission.retry_calendar import NEVER, SHORTEST_MS, ComeBack, RetryCalendar
from admission.values import CLASSES, LEVELS, LEVELS_A_CLASS

QUEUE: Final = "queue"
HOSTS: Final = "hosts"
STORE: Final = "store"
DEADLINE: Final = "deadline"
QUEUE_FULL: Final = "queue_full"
TENANT_CLASS: Final = "tenant_class"
TENANT_COST: Final = "tenant_cost"
TENANT_QUEUED: Final = "tenant_queued"
DEPENDENCY: Final = "dependency:"
REASONS: Final = (QUEUE, HOSTS, STORE, DEADLINE, QUEUE_FULL, TENANT_CLASS, TENANT_COST, TENANT_QUEUED)
"""Why a run is refused or shed, besides ``dependency:NAME``, and ``max_wait`` where it has waited for that long."""

SEEN_ONCE: Final = 2
"""So many runs that came since the policy may have come to this partition alone; more of them come to all."""
STORE_WAIT_MS: Final = 30_000
LONGEST_CAP_WAIT_MS: Final = 300_000
_LONGEST_MS: Final = 2**53


class Arrival(NamedTuple):
    """A run that wants to be queued.

    Attributes:
        id: the run's.
        level: of its value (:attr:`admission.values.Value.level`).
        tenant, agent: whose, and what it runs.
        max_wait_ms: how long it may wait for its first start; -1 for its class's default.
        deadline_ms: by the store's clock; -1 for none.
        size_bytes: of its job.
        again: it comes again by the calendar after a refusal: that is no new load.
        kept: it may not be refused, as child runs and forks.
    """

    id: str
    level: int
    tenant: str
    agent: str
    max_wait_ms: int = -1
    deadline_ms: int = -1
    size_bytes: int = 0
    again: bool = False
    kept: bool = False

    @property
    def rank(self) -> int:
        """Of its class."""
        return self.level // LEVELS_A_CLASS


class Verdict(NamedTuple):
    """What the law says of an arrival.

    Attributes:
        reason: why it is refused; '' where it is not.
        wait_ms: how long it is predicted to wait for its start.
        come_back: when it may come again, where it is refused.
    """

    reason: str
    wait_ms: float
    come_back: ComeBack = NEVER


class Wait(NamedTuple):
    """A predicted wait, what causes it (``queue``, ``hosts`` or ``dependency:NAME``), and the place in the queue: about
    how many runs of the deployment go before it, and one.
    """

    wait_ms: float
    reason: str
    place: int = 1


class Tally:
    """What a partition knows of its own queue: all that is queued (and not set aside), and what has come and gone that
    the policy cannot know of yet.

    A policy is made of what partitions said one exchange ago. So what has come since the exchange before the last one
    counts: two stretches, of which the older one goes with each exchange.
    """

    __slots__ = ("_earlier", "_recent", "evicted_ms", "fresh", "fresh_ms", "queued", "queued_ms")

    def __init__(self) -> None:
        self.queued = [0] * len(CLASSES)
        self.queued_ms = [0] * len(CLASSES)
        self.fresh = [0] * len(CLASSES)
        self.fresh_ms = [0] * len(CLASSES)
        self.evicted_ms = [0] * len(CLASSES)
        self._recent = _Stretch()
        self._earlier = _Stretch()

    def came(self, rank: int, cost_ms: int) -> None:
        """A new run was queued."""
        self.add(rank, cost_ms)
        self.fresh[rank] += 1
        self.fresh_ms[rank] += cost_ms
        self._recent.fresh[rank] += 1
        self._recent.fresh_ms[rank] += cost_ms

    def shed(self, rank: int, cost_ms: int) -> None:
        """The law has shed a run that was queued, and was taken."""
        self.evicted_ms[rank] += cost_ms
        self._recent.evicted_ms[rank] += cost_ms

    def add(self, rank: int, cost_ms: int) -> None:
        """A run is queued, not for the first time."""
        self.queued[rank] += 1
        self.queued_ms[rank] += cost_ms

    def take(self, rank: int, cost_ms: int) -> None:
        """A run is queued no more."""
        self.queued[rank] -= 1
        self.queued_ms[rank] -= cost_ms

    def exchanged(self) -> None:
        """The older stretch is what the policy knows of."""
        old = self._earlier
        for rank in range(len(CLASSES)):
            self.fresh[rank] -= old.fresh[rank]
            self.fresh_ms[rank] -= old.fresh_ms[rank]
            self.evicted_ms[rank] -= old.evicted_ms[rank]
        self._earlier, self._recent = self._recent, _Stretch()


class _Stretch:
    __slots__ = ("evicted_ms", "fresh", "fresh_ms")

    def __init__(self) -> None:
        self.fresh = [0] * len(CLASSES)
        self.fresh_ms = [0] * len(CLASSES)
        self.evicted_ms = [0] * len(CLASSES)


class Ahead(NamedTuple):
    """What goes before a run: cost in all, cost of its own class alone, and how many runs."""

    cost_ms: float
    own_ms: float
    runs: float


def ahead(policy: AdmissionPolicy, tally: Tally, now_ms: int, rank: int, part: float) -> Ahead:
    """What goes before a run of a class, of which ``part`` of its own class goes before it (0 to 1)."""
    age_ms = max(0, now_ms - policy.at_ms)
    if age_ms > STALE_MS:
        return _ahead_here(policy.partitions, tally, rank, part)
    fresh_ms = evicted_ms = queued = fresh = 0  # of better classes
    for each in range(rank):
        fresh_ms += tally.fresh_ms[each]
        evicted_ms += tally.evicted_ms[each]
        queued += policy.classes[each].queued
        fresh += tally.fresh[each]
    count = fresh + tally.fresh[rank]
    # What comes more often than now and then comes to the other partitions as well.
    times = (SEEN_ONCE + (count - SEEN_ONCE) * policy.partitions) / count if count > SEEN_ONCE else 1.0
    mine = policy.classes[rank]
    better_ms = max(0.0, mine.ahead_ms - mine.own_ms + fresh_ms * times - evicted_ms * policy.partitions)
    own_ms = mine.own_ms + tally.fresh_ms[rank] * times - tally.evicted_ms[rank] * policy.partitions
    own_ms = max(0.0, own_ms) * part
    drained_ms = (policy.drain or 0.0) * min(age_ms, 2 * policy.period_ms)
    runs = queued + fresh * times + (mine.queued + tally.fresh[rank] * times) * part
    return Ahead(max(0.0, better_ms + own_ms - drained_ms), max(0.0, own_ms - max(0.0, drained_ms - better_ms)), runs)


def _ahead_here(partitions: int, tally: Tally, rank: int, part: float) -> Ahead:
    """The same without a word from the controller: what is queued here, as if it were so everywhere."""
    better = better_ms = 0
    for each in range(rank):
        better += tally.queued[each]
        better_ms += tally.queued_ms[each]
    own_ms = tally.queued_ms[rank] * part * partitions
    return Ahead(better_ms * partitions + own_ms, own_ms, (better + tally.queued[rank] * part) * partitions)


def charged_ms(agent: AgentPolicy) -> int:
    """What a run of an agent is charged: whole milliseconds, at least one."""
    return max(1, math.floor(agent.cost_ms + 0.5))


def part_ahead(before: int, queued: int) -> float:
    """What part of its class goes before a run that has ``before`` of the ``queued`` runs of its class before it here.

    The expected rank among those of other partitions (Laplace's rule): with few runs here, it is taken to be late.
    """
    return (before + 1) / (queued + 1)


def _favourable(mine: ClassPolicy, drain: float | None, cost_ms: float) -> float:
    """How long a cost takes to be served: the root of the equation above, with ``pace`` = 1 / (D * (1 - rho)) and
    ``noise`` = b / (2 * (1 - rho)).
    """
    wait_ms = cost_ms * mine.pace
    if wait_ms <= 0 or not drain:
        return 0.0
    root = wait_ms / (math.sqrt(mine.noise * mine.noise + wait_ms) + mine.noise)
    wait_ms = max(root * root, cost_ms / drain)
    return min(wait_ms, cost_ms / drain + mine.more_ms) if mine.more_ms >= 0 else wait_ms


def predicted(policy: AdmissionPolicy, tally: Tally, now_ms: int, rank: int, part: float, agent: AgentPolicy) -> Wait:
    """How long a run will wait for its start, and why."""
    before = ahead(policy, tally, now_ms, rank, part)
    mine = policy.classes[rank]
    wait_ms, reason = _favourable(mine, policy.drain, before.cost_ms), QUEUE
    if mine.share > 0 and policy.drain:
        # A guaranteed share is there whatever better classes want, so that it waits for its own class only.
        wait_ms = min(wait_ms, before.own_ms / (mine.share * policy.drain))
    if policy.floor_ms > wait_ms:
        wait_ms, reason = policy.floor_ms, policy.floor_reason or HOSTS
    if agent.until_ms - now_ms > wait_ms:
        wait_ms, reason = float(agent.until_ms - now_ms), DEPENDENCY + agent.dependency
    return Wait(wait_ms, reason, 1 + math.floor(before.runs))


def caps(
    policy: AdmissionPolicy, now_ms: int, arrival: Arrival, agent: AgentPolicy, tenant: TenantPolicy, net: int
) -> Verdict | None:
    """What is refused whatever is queued: nobody's load, and no place in the calendar.

    Args:
        policy: in force.
        now_ms: the store's clock.
        arrival: the run.
        agent: what is known of its agent.
        tenant: what its tenant may do.
        net: how many more of the tenant's runs are queued here than when the policy was made.
    """
    if arrival.rank not in tenant.ranks:
        return Verdict(TENANT_CLASS, 0.0)
    if 0 <= arrival.deadline_ms < now_ms + max(1.0, agent.p90_ms):
        # Also a deadline that is just now: nothing is over in no time.
        return Verdict(DEADLINE, 0.0)
    if tenant.until_ms > now_ms:
        left_ms = tenant.until_ms - now_ms
        late = 0 <= arrival.deadline_ms < tenant.until_ms + agent.p90_ms
        return Verdict(TENANT_COST, 0.0, NEVER if late else ComeBack(left_ms, True))
    if 0 <= tenant.left <= net:
        mine = policy.classes[arrival.rank]
        wait_ms = min(max(mine.own_ms * mine.pace, float(SHORTEST_MS)), float(LONGEST_CAP_WAIT_MS))
        # When exactly, the calendar says.
        return Verdict(TENANT_QUEUED, 0.0, ComeBack(math.ceil(wait_ms), True))
    return None


def capped(
    policy: AdmissionPolicy,
    calendar: RetryCalendar,
    now_ms: int,
    arrival: Arrival,
    agent: AgentPolicy,
    verdict: Verdict,
) -> ComeBack:
    """When a run that its tenant's caps refuse may come again."""
    if verdict.reason != TENANT_QUEUED:
        return verdict.come_back
    spacing_ms = charged_ms(agent) * policy.partitions * policy.classes[arrival.rank].pace
    before_ms = arrival.deadline_ms - agent.p90_ms if arrival.deadline_ms >= 0 else math.inf
    return calendar.book_tenant(now_ms, arrival.tenant, verdict.come_back.after_ms, spacing_ms, before_ms)


def judged(
    policy: AdmissionPolicy, now_ms: int, arrival: Arrival, agent: AgentPolicy, wait: Wait, max_wait_ms: int
) -> str:
    """Why an arrival that its tenant's caps allow is refused; '' where it is not."""
    if not policy.classes[arrival.rank].open:
        return STORE
    if wait.wait_ms > max_wait_ms:
        return wait.reason
    if 0 <= arrival.deadline_ms < now_ms + wait.wait_ms + agent.p90_ms:
        return DEADLINE
    return ""


def max_wait_of(policy: AdmissionPolicy | None, arrival: Arrival) -> int:
    """How long a run may wait for its first start; -1 for as long as it takes."""
    if arrival.kept:
        return -1
    if arrival.max_wait_ms >= 0:
        return arrival.max_wait_ms
    return DEFAULT_MAX_WAIT_MS if policy is None else policy.classes[arrival.rank].max_wait_ms


def come_back(
    policy: AdmissionPolicy,
    tally: Tally,
    calendar: RetryCalendar,
    now_ms: int,
    rank: int,
    cost_ms: int,
    agent: AgentPolicy,
    deadline_ms: int,
    reason: str,
) -> ComeBack:
    """When a refused or shed run may come again: its slot in the calendar, at which all that it would have waited for
    is over, and what is queued in its class and in better ones has gone.
    """
    room = policy.classes[rank].room
    wait_ms = max(policy.floor_ms, float(agent.until_ms - now_ms))
    if reason == STORE:
        wait_ms = max(wait_ms, float(STORE_WAIT_MS))
    if room > 0:
        wait_ms = max(wait_ms, ahead(policy, tally, now_ms, rank, 1.0).cost_ms / room)
    before_ms = deadline_ms - agent.p90_ms if deadline_ms >= 0 else math.inf
    spacings_ms = [cost_ms * policy.partitions / each.room if each.room > 0 else math.inf for each in policy.classes]
    return calendar.book(now_ms, rank, wait_ms, spacings_ms, before_ms)


def check(arrival: Arrival) -> None:
    """Refuses what makes no sense.

    Raises:
        ValueError: a field is outside of its bounds; it is named.
    """
    bounds: Sequence[tuple[str, int, int, int]] = (
        ("level", arrival.level, 0, LEVELS - 1),
        ("max_wait_ms", arrival.max_wait_ms, -1, _LONGEST_MS),
        ("deadline_ms", arrival.deadline_ms, -1, _LONGEST_MS),
        ("size_bytes", arrival.size_bytes, 0, _LONGEST_MS),
    )
    for name, value, least, most in bounds:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(
                f"run {arrival.id!r:.80}: {name} {value!r:.40} must be a whole number from {least} to {most}"
            )
    for name, text in (("id", arrival.id), ("tenant", arrival.tenant), ("agent", arrival.agent)):
        if not text:
            raise ValueError(f"run {arrival.id!r:.80}: {name} must be a text that is not empty")
