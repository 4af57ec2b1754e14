"""What clients of a deployment are told when something cannot be done; each text names the thing and the fix."""

from actors.errors import PenstockError
from penstock.refusals import come_back, in_words
from penstock.submit_views import Problem, Refusal, SubmitReport


class ClientError(PenstockError):
    """Base of the errors that the client raises; the store's own (``StoreUnavailable`` …) pass through as they are."""


class NoSuchRun(ClientError):
    """The store knows no such run: it never existed, or its retention is over."""

    def __init__(self, run_id: str) -> None:
        super().__init__(
            f"there is no run {run_id!r}: it was never submitted here, or its retention is over. "
            "`penstock runs` lists those that there are"
        )
        self.run_id = run_id


class NoSuchBatch(ClientError):
    """The store knows no such batch: it never existed, or its retention is over."""

    def __init__(self, batch: str) -> None:
        super().__init__(
            f"there is no batch {batch!r}: nothing was submitted under this key, or its retention is over. "
            "`penstock status` lists the newest batches"
        )
        self.batch = batch


class CannotFork(ClientError):
    """A run cannot be forked so; nothing was made."""

    def __init__(self, run_id: str, at: str, reason: str) -> None:
        super().__init__(f"run {run_id} was not forked at step {at!r}: {reason}")
        self.run_id = run_id
        self.at = at
        self.reason = reason


class CannotPromote(ClientError):
    """A branch cannot have the right to effects now; nothing was changed. ``word`` is that of ``promote.lua``, ``run``
    and ``step`` are what is in its way.
    """

    def __init__(self, run_id: str, word: str, run: str = "", step: str = "") -> None:
        reasons = {
            "ended": f"it has ended ({run}): fork it where it should go on, and promote the fork",
            "child": f"it is a child of run {run} and goes with it: promote that one (or fork this one first)",
            "alone": "it has no other branches, and may cause effects",
            "busy": (
                f"run {run} has an effect under way at step {step}: try again when its outcome is recorded "
                f"(penstock why {run})"
            ),
            "unknown": (
                f"run {run} has an effect whose outcome nobody can prove: resolve it first (penstock why {run})"
            ),
            "undone": (
                f"run {run} has undone the effect of step {step}, which this branch takes for applied: fork at step "
                f"{step}, or before it"
            ),
        }
        super().__init__(f"run {run_id} was not promoted: {reasons.get(word, word)}")
        self.run_id = run_id
        self.word = word
        self.run = run
        self.step = step


class NoSuchHost(ClientError):
    """No host of this name is registered."""

    def __init__(self, host: str, known: list[str]) -> None:
        there_are = ", ".join(sorted(known)) if known else "none at all"
        super().__init__(f"there is no host {host!r}; registered hosts: {there_are}")
        self.host = host


class InvalidText(ClientError, ValueError):
    """A text that cannot be kept: a reason that is too long, or a name that nothing can have."""


class InvalidBatchKey(ClientError):
    """A batch key that cannot be used."""

    def __init__(self, batch: str, reason: str) -> None:
        super().__init__(f"batch key {batch!r} cannot be used: {reason}")
        self.batch = batch


class InvalidBatch(ClientError):
    """Jobs of a batch are not valid. ``problems`` holds the first ones, ``problem_count`` says how many there are.

    ``place`` is the file's name, empty for jobs from code. ``accepted`` is how many jobs had been submitted by then:
    always 0 for a file or a list, which are checked as a whole before anything is submitted; jobs that come from an
    iterator are checked one after the other.
    """

    def __init__(
        self, place: str, problems: tuple[Problem, ...], problem_count: int, *, batch: str = "", accepted: int = 0
    ) -> None:
        so_far = f"{accepted} jobs before them were submitted" if accepted else "nothing was submitted"
        counted = "1 problem" if problem_count == 1 else f"{problem_count} problems"
        unit = "line" if place else "job"
        listed = "\n".join(f"  {problem.text(unit)}" for problem in problems[:10])
        more = f"\n  … and {problem_count - 10} more" if problem_count > 10 else ""
        super().__init__(f"{counted} in {place or 'the jobs'}, {so_far}:\n{listed}{more}")
        self.place = place
        self.problems = problems
        self.problem_count = problem_count
        self.batch = batch
        self.accepted = accepted


class Refused(ClientError):
    """The door did not let a job in: nothing of it is kept, and nothing happened.

    Attributes:
        reason: ``queue``, ``hosts``, ``dependency:NAME``, ``store``, ``deadline``, ``queue_full``, ``tenant_class``,
            ``tenant_cost`` or ``tenant_queued``.
        retry_after_s: when to come back; None: never with this job as it is.
        by_itself: whether a program should come back then without being asked to.
        refusal: all of it.
    """

    def __init__(self, refusal: Refusal) -> None:
        when = come_back(refusal.retry_after_s, by_itself=refusal.by_itself)
        super().__init__(
            f"job {refusal.custom_id!r} was refused ({refusal.reason}): {in_words(refusal.reason)}; {when}"
        )
        self.refusal = refusal
        self.reason = refusal.reason
        self.retry_after_s = refusal.retry_after_s
        self.by_itself = refusal.by_itself


class BatchFileError(ClientError):
    """A batch file cannot be read, or changed while it was read."""


class SubmissionInterrupted(ClientError):
    """The store failed in the middle of a submission. Some jobs are in: ``report`` counts those that it acknowledged.

    Submitting the same jobs again under ``batch`` completes it and makes no job twice.
    """

    def __init__(self, report: SubmitReport, cause: BaseException) -> None:
        waiting = f", {report.waiting} waited to come back" if report.waiting else ""
        super().__init__(
            f"the submission of batch {report.batch!r} was interrupted after {report.accepted + report.existing} "
            f"acknowledged jobs{waiting}: {cause}. Submit the same jobs again under the same batch key: no job is made "
            "twice"
        )
        self.report = report
        self.batch = report.batch


class UnusableSpec(ClientError):
    """A specification, of an evaluation for example, cannot be used as it is."""


class WaitTimedOut(ClientError, TimeoutError):
    """The wait for a run or a batch is over, and it has not ended. It goes on without us."""

    def __init__(self, what: str, timeout_s: float) -> None:
        super().__init__(
            f"{what} has not ended within {timeout_s:g} s; it goes on (`penstock why` tells for what it waits)"
        )


class NotUnknown(ClientError):
    """A run whose effects are not in doubt (any more): there is nothing to resolve."""

    def __init__(self, run_id: str, state: str, reason: str) -> None:
        because = f" ({reason})" if reason else ""
        super().__init__(
            f"run {run_id} is {state}{because}, and not confirmation_unknown: no effect of it waits for anybody's "
            "word. `penstock unknown` lists those that do"
        )
        self.run_id = run_id
        self.state = state


class NotTheOpenEffect(ClientError):
    """A step of an unknown run that is not the one in doubt."""

    def __init__(self, run_id: str, step: str, right: list[str]) -> None:
        there_is = " and ".join(right) if right else "none that its journal has"
        super().__init__(f"step {step!r} of run {run_id} is not in doubt; what is: {there_is}")
        self.run_id = run_id
        self.step = step


class AlreadyResolved(ClientError):
    """Somebody has said what became of this effect before. ``by`` is who, ``applied`` what they said."""

    def __init__(self, run_id: str, step: str, by: str, applied: bool, when: str, state: str) -> None:
        said = "applied" if applied else "not applied"
        super().__init__(
            f"step {step} of run {run_id} was resolved by {by} at {when}: {said}. Nothing was changed; the run is "
            f"{state}"
        )
        self.run_id = run_id
        self.step = step
        self.by = by
        self.applied = applied


class LookAgain(ClientError):
    """An effect in doubt is not what it was when somebody looked at it, or may not be."""

    def __init__(self, run_id: str, step: str, command: str, because: str = "the run has changed since then") -> None:
        super().__init__(
            f"step {step} of run {run_id}: {because}, so that what was true of it before may not be true any more. "
            f"Nothing was changed. Look at it again (penstock unknown {run_id}), then: {command} …"
        )
        self.run_id = run_id
        self.step = step


class InvalidResolution(ClientError):
    """What was said of an effect cannot be recorded. Nothing was changed."""
