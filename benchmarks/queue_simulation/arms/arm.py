"""What an arm is: it lets runs in or refuses them, and says what a free slot takes next."""

from typing import NamedTuple, Protocol

from benchmarks.queue_simulation.jobs import Attempt


class Refusal(NamedTuple):
    """Why a run is refused or shed, after how many milliseconds it may come back (-1: never, None: nobody says), and
    whether a client should do so by itself.
    """

    reason: str
    after_ms: int | None = None
    by_itself: bool = True


class Arm(Protocol):
    """One way to decide.

    Attributes:
        name: for people.
        cancels: queued runs are dropped and running ones are stopped when their deadlines are over; without that the
            work is done for nobody.
        deadlines: they run from the submission; without that from the start, which only the ideal may do.
        has_breaker: runs that need a dependency that is down leave their slots, and the arm knows of it.
    """

    name: str
    cancels: bool
    deadlines: bool
    has_breaker: bool

    def submit(self, now_ms: float, attempt: Attempt) -> Refusal | None:
        """A run comes: None where it is queued."""

    def take(self, now_ms: float) -> Attempt | None:
        """The run that a free slot takes next."""

    def tick(self, now_ms: float) -> None:
        """A quarter of a second has passed."""

    def ended(self, now_ms: float, attempt: Attempt, slot_ms: float, in_time: bool) -> None:
        """A run that had a slot is over; this stretch took so long."""

    def dropped(self, now_ms: float, attempt: Attempt) -> None:
        """A run that has no slot is over: its deadline is. It is still as it was (queued or parked)."""

    def put_back(self, now_ms: float, attempt: Attempt, slot_ms: float) -> None:
        """A run has lost its host, and is queued again."""

    def park(self, now_ms: float, attempt: Attempt, slot_ms: float) -> None:
        """A run leaves its slot until :meth:`wake`."""

    def wake(self, now_ms: float, attempt: Attempt) -> None:
        """A parked run is queued again."""

    def queued(self) -> int:
        """How many runs are queued."""
