"""What clients get to see of a submission: values without behaviour."""

import msgspec


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong with one job.

    ``line`` counts from 1; for jobs that come from code it is their position. ``field`` is a path such as
    ``input.order_id``, empty where the line as a whole is meant.
    """

    line: int
    field: str
    reason: str
    fix: str
    custom_id: str = ""

    def __str__(self) -> str:
        """One line for people."""
        return self.text("line")

    def text(self, unit: str) -> str:
        """One line for people; ``unit`` is what ``line`` counts."""
        named = f" ({self.custom_id})" if self.custom_id else ""
        where = f"{unit} {self.line}{named}" + (f", {self.field}" if self.field else "")
        return f"{where}: {self.reason}; {self.fix}" if self.fix else f"{where}: {self.reason}"


class Conflict(msgspec.Struct, frozen=True):
    """A job that was refused because another job with other content holds its place in the batch."""

    custom_id: str
    run_id: str


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Where an accepted job is: about its place among all that is queued, 1 for the next one, and how long it is
    predicted to wait for its start.
    """

    custom_id: str
    run_id: str
    place: int
    wait_s: float


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A job that was refused: nothing of it is kept.

    ``reason`` is ``queue``, ``hosts``, ``dependency:NAME``, ``store``, ``deadline``, ``queue_full``, ``tenant_class``,
    ``tenant_cost`` or ``tenant_queued``. ``retry_after_s`` is when to come back: None for never with this job as it is.
    ``by_itself`` says whether a program should, without being asked to. ``line`` counts from 1; for jobs that come from
    code it is their position.
    """

    custom_id: str
    line: int
    reason: str
    retry_after_s: float | None
    by_itself: bool
    run_id: str


class RefusalReason(msgspec.Struct, frozen=True, kw_only=True):
    """How many jobs were refused for one reason: of these ``by_itself`` ones may come back by themselves, the first of
    all after ``first_s`` and the last after ``last_s``, and ``never`` ones cannot be accepted as they are.
    """

    reason: str
    count: int
    by_itself: int = 0
    never: int = 0
    first_s: float | None = None
    last_s: float | None = None


class SubmitReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a submission.

    ``accepted`` jobs are durable and queued: new ones, and those that had been shed and came again; ``first`` and
    ``last`` are those of them that are predicted to start first and last, None where nothing can be predicted.
    ``existing`` ones were there already with the same content, ``conflicts`` are there with other content and were left
    alone, ``invalid_lines`` were skipped because the caller said so. The lists are bounded; the counts are not.

    ``refused`` jobs left nothing behind: ``reasons`` says why, ``refusals`` has the first ones. Submitting them again
    under the same batch makes no other job twice. ``retries`` is how often refused jobs came back by the calendar, and
    ``waiting`` how many of them were still to come back when the submission was interrupted.
    """

    batch: str
    accepted: int
    existing: int
    first: Placement | None = None
    last: Placement | None = None
    refused: int = 0
    reasons: tuple[RefusalReason, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    retries: int = 0
    waiting: int = 0
    conflict_count: int = 0
    conflicts: tuple[Conflict, ...] = ()
    invalid_lines: int = 0
    problem_count: int = 0
    problems: tuple[Problem, ...] = ()


class SubmitProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a submission is. ``phase`` is ``check`` (nothing is submitted yet), ``submit``, or ``retry`` (refused
    jobs wait until they may come back). The bytes are of a file; 0 without one.

    ``jobs`` is how many were checked, or answered for by the store; of these ``accepted`` ones are queued, ``refused``
    ones are refused for good, and ``waiting`` ones are to come back, the next one in ``next_s``.
    """

    phase: str
    done_bytes: int
    total_bytes: int
    jobs: int
    problems: int
    accepted: int = 0
    refused: int = 0
    waiting: int = 0
    next_s: float = 0.0
