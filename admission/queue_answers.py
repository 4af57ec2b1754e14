"""What a partition's queue answers: to who submits, who claims, and who sheds. Data; decides nothing."""

from typing import NamedTuple

from admission.ordered_runs import Queued
from admission.retry_calendar import ComeBack


class Evicted(NamedTuple):
    """A run that was shed: why, and when it may come again."""

    run: Queued
    reason: str
    come_back: ComeBack


class Accepted(NamedTuple):
    """A run that is queued now.

    Attributes:
        run: it.
        wait_ms: how long it is predicted to wait.
        place: about how many runs of the deployment go before it, and one.
        evicted: what had to leave for it.
        would: why it would have been refused, in a dry run; else ''.
    """

    run: Queued
    wait_ms: float
    place: int
    evicted: tuple[Evicted, ...] = ()
    would: str = ""


class Refused(NamedTuple):
    """A run that was not queued: why, when it may come again, and how long it would have waited."""

    reason: str
    come_back: ComeBack
    wait_ms: float


class Claimed(NamedTuple):
    """Runs that are a host's now, and queued ones whose time was over: each with ``max_wait`` (shed) or
    ``deadline_exceeded`` (cancelled).
    """

    runs: list[Queued]
    over: list[tuple[Queued, str]]
