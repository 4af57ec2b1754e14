"""Jobs that the door refused: why, in words, and when to come back; all of them counted, the first ones kept."""

from collections.abc import Callable
from typing import Final, TypeAlias

import msgspec

from cluster.records import NewRun, Submitted
from penstock.submit_views import Placement, Refusal, RefusalReason

KEPT_REFUSALS: Final = 1000
RefusedCallback: TypeAlias = Callable[[Refusal], None]

_WORDS: Final = {
    "queue": "it would wait for longer than it may (its max_wait, or its class's)",
    "hosts": "no host is left to run it, and it may not wait until some come back",
    "store": "the store's memory is nearly full, and what its class is worth is not taken in any more",
    "deadline": "its deadline cannot be met",
    "queue_full": "the queue is full of what is worth as much or more",
    "tenant_class": "its tenant may not submit this class",
    "tenant_cost": "its tenant has used up what it may use in an hour",
    "tenant_queued": "its tenant has as many jobs queued as it may have",
    "tenant_running": "its tenant runs as much as it may",
    "max_wait": "it waited for as long as it may",
}


def in_words(reason: str) -> str:
    """What a reason of the door's means."""
    kind, _, name = reason.partition(":")
    if kind == "dependency" and name:
        return f"dependency {name}, which it needs, is not to be called for longer than it may wait"
    return _WORDS.get(reason, reason)


def come_back(retry_after_s: float | None, *, by_itself: bool) -> str:
    """When to come back, in words."""
    if retry_after_s is None:
        return "it cannot be accepted as it is"
    if by_itself:
        return f"come back in {retry_after_s:.1f} s"
    return f"nobody knows when there is room: look at `penstock queue`, and come back in {retry_after_s:.0f} s or later"


def refusal_of(run: NewRun, line: int, answer: Submitted) -> Refusal:
    """The refusal that the door answered with."""
    return Refusal(
        custom_id=run.custom_id,
        line=line,
        reason=answer.reason,
        retry_after_s=None if answer.retry_after_ms < 0 else answer.retry_after_ms / 1000,
        by_itself=answer.by_itself,
        run_id=run.id,
    )


class Refusals:
    """Counts refusals by reason and keeps the first ones. ``told`` hears of each."""

    def __init__(self, told: RefusedCallback | None = None) -> None:
        self._told = told
        self._reasons: dict[str, RefusalReason] = {}
        self.count = 0
        self.kept: list[Refusal] = []

    def add(self, refusal: Refusal) -> None:
        """One more."""
        self.count += 1
        had = self._reasons.get(refusal.reason) or RefusalReason(reason=refusal.reason, count=0)
        after_s = refusal.retry_after_s
        self._reasons[refusal.reason] = msgspec.structs.replace(
            had,
            count=had.count + 1,
            by_itself=had.by_itself + refusal.by_itself,
            never=had.never + (after_s is None),
            first_s=had.first_s if after_s is None else min(after_s, after_s if had.first_s is None else had.first_s),
            last_s=had.last_s if after_s is None else max(after_s, had.last_s or 0.0),
        )
        if len(self.kept) < KEPT_REFUSALS:
            self.kept.append(refusal)
        if self._told is not None:
            self._told(refusal)

    @property
    def reasons(self) -> tuple[RefusalReason, ...]:
        """By reason, the most frequent one first."""
        return tuple(sorted(self._reasons.values(), key=lambda each: (-each.count, each.reason)))


class Placements:
    """Which of the accepted ones is predicted to start first, and which last."""

    def __init__(self) -> None:
        self.first: Placement | None = None
        self.last: Placement | None = None

    def add(self, run: NewRun, answer: Submitted) -> None:
        """One more that was accepted."""
        if answer.wait_ms < 0:
            return
        if self.first is None or answer.wait_ms < self.first.wait_s * 1000:
            self.first = _placement(run, answer)
        if self.last is None or answer.wait_ms >= self.last.wait_s * 1000:
            self.last = _placement(run, answer)


def _placement(run: NewRun, answer: Submitted) -> Placement:
    return Placement(custom_id=run.custom_id, run_id=run.id, place=answer.place, wait_s=answer.wait_ms / 1000)
