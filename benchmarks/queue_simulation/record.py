"""What a simulation shows, taken down while it goes on. Times in milliseconds."""

from array import array
from itertools import accumulate
from typing import Final

from admission.values import CLASSES
from benchmarks.queue_simulation.arms.arm import Refusal
from benchmarks.queue_simulation.jobs import Attempt
from benchmarks.queue_simulation.plan import Plan

RANKS: Final = range(len(CLASSES))


class Timeline:
    """For how many slots something held, in stretches of time: added by stretch, read by bin."""

    def __init__(self, bins: int, bin_ms: float) -> None:
        self._bin_ms = bin_ms
        self._part = [0.0] * (bins + 2)
        self._whole = [0.0] * (bins + 2)

    def add(self, from_ms: float, to_ms: float) -> None:
        """It held from then to then."""
        for at_ms, sign in ((from_ms, 1.0), (to_ms, -1.0)):
            number = min(int(at_ms / self._bin_ms), len(self._part) - 2)
            self._part[number] += sign * max(0.0, (number + 1) * self._bin_ms - at_ms)
            self._whole[number + 1] += sign * self._bin_ms

    @property
    def slots(self) -> list[float]:
        """Mean slots in each bin."""
        whole = accumulate(self._whole)
        return [(each + part) / self._bin_ms for each, part in zip(whole, self._part, strict=True)][:-2]


class Record:
    """Of one simulation; "measured" is what falls into the plan's measured stretch of time.

    Attributes:
        useful_ms: measured slot time of runs that ended in time, by rank.
        tenant_ms: the same by tenant.
        offered_ms: measured service time of first attempts, by tenant.
        waits_ms: measured waits of runs for their first start, by rank.
        able, succeeded: runs that came early enough for their ends to be measured and that were not longer than their
            own deadlines, by rank; and how many of them succeeded.
        starts: (when, when it came, rank) of all first starts, in order of time.
        sheds: (when it came, when it was shed, rank, the longest that it would have waited, reason).
        shed_after_ms: how long the runs that were shed after they had been accepted had been there.
        told: (when it came, whether it was admitted) of runs that came when they were told to come back.
        useful: of runs that end in time.
        came_by_bin: submissions.
        critical_by_bin: critical runs that could succeed, and did, by the bin in which they came.
        wait_by_bin: sum and number of waits of runs, by the bin in which they started, by rank.
        queue_by_bin: how many are queued.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.useful_ms = [0.0] * len(RANKS)
        self.tenant_ms = [0.0] * len(plan.tenants)
        self.offered_ms = [0.0] * len(plan.tenants)
        self.waits_ms: list[array[float]] = [array("d") for _ in RANKS]
        self.able = [0] * len(RANKS)
        self.succeeded = [0] * len(RANKS)
        self.starts: list[tuple[float, float, int]] = []
        self.sheds: list[tuple[float, float, int, int, str]] = []
        self.shed_after_ms: array[float] = array("d")
        self.told: list[tuple[float, bool]] = []
        bins = int(plan.until_ms / plan.bin_ms) + 1
        self.useful = Timeline(bins, plan.bin_ms)
        self.came_by_bin = [0] * bins
        self.critical_by_bin = [[0, 0] for _ in range(bins)]
        self.wait_by_bin = [[[0.0, 0.0] for _ in RANKS] for _ in range(bins)]
        self.queue_by_bin = [0] * bins
        self.submitted = self.taken = self.refused = self.evicted = self.failed_to_submit = 0
        self.in_time = self.too_late = self.failed = self.timed_out = self.dropped = self.gave_up = 0
        self.queued_at_end = self.running_at_end = self.parked_at_end = 0
        self.without_retry_after = 0
        self.woken_ms = 0.0
        self.reasons: dict[str, int] = {}

    def came(self, attempt: Attempt) -> None:
        """A run was submitted."""
        self.submitted += 1
        number = int(attempt.came_ms / self.plan.bin_ms)
        self.came_by_bin[number] += 1
        rank = attempt.job.rank
        if attempt.service_ms <= self.plan.classes[rank].deadline_ms:
            self.able[rank] += self._counts(attempt)
            if rank == 0:
                self.critical_by_bin[number][0] += 1
        if attempt.number == 1 and attempt.came_ms >= self.plan.from_ms:
            self.offered_ms[attempt.job.tenant] += attempt.service_ms

    def _counts(self, attempt: Attempt) -> bool:
        deadline_ms = self.plan.classes[attempt.job.rank].deadline_ms
        return self.plan.from_ms <= attempt.came_ms <= self.plan.until_ms - deadline_ms

    def accepted(self, attempt: Attempt) -> None:
        """A run is queued."""
        self.taken += 1
        if attempt.again:
            self.told.append((attempt.came_ms, True))

    def shed(self, attempt: Attempt, now_ms: float, refusal: Refusal) -> None:
        """A run was refused, or shed later."""
        rank = attempt.job.rank
        if attempt.state:
            self.evicted += 1
            self.shed_after_ms.append(now_ms - attempt.came_ms)
        else:
            self.refused += 1
            if attempt.again:
                self.told.append((attempt.came_ms, False))
        self.without_retry_after += refusal.after_ms is None
        self.reasons[refusal.reason] = self.reasons.get(refusal.reason, 0) + 1
        if attempt.came_ms >= self.plan.from_ms:
            longest_ms = self.plan.classes[rank].max_wait_ms
            self.sheds.append((attempt.came_ms, now_ms, rank, longest_ms, refusal.reason))

    def started(self, attempt: Attempt, now_ms: float) -> None:
        """A run has got a slot for the first time."""
        rank = attempt.job.rank
        wait_ms = now_ms - attempt.came_ms
        if now_ms >= self.plan.from_ms:
            self.waits_ms[rank].append(wait_ms)
        self.starts.append((now_ms, attempt.came_ms, rank))
        number = int(now_ms / self.plan.bin_ms)
        here = self.wait_by_bin[number][rank]
        here[0] += wait_ms
        here[1] += 1

    def ended(self, attempt: Attempt, then_ms: float, in_time: bool) -> None:
        """A stretch of a run was its last one."""
        if not in_time:
            self.too_late += 1
            return
        self.in_time += 1
        plan, rank = self.plan, attempt.job.rank
        from_ms = attempt.start_ms
        self.useful.add(from_ms, min(then_ms, plan.until_ms))
        measured_ms = min(then_ms, plan.until_ms) - max(from_ms, plan.from_ms)
        if measured_ms > 0:
            self.useful_ms[rank] += measured_ms
            self.tenant_ms[attempt.job.tenant] += measured_ms
        if attempt.service_ms <= plan.classes[rank].deadline_ms:
            self.succeeded[rank] += self._counts(attempt)
            if rank == 0:
                self.critical_by_bin[int(attempt.came_ms / plan.bin_ms)][1] += 1

    def sampled(self, now_ms: float, queued: int) -> None:
        """How many are queued now."""
        self.queue_by_bin[int(now_ms / self.plan.bin_ms)] = queued
