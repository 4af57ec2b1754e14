"""Errors that tools raise, that agents see, and that end runs."""

import asyncio

from admission.retry import FailureClass
from telemetry.redaction import redact


class ToolError(Exception):
    """Base of the errors by which a tool says what is known of its effect on the world.

    ``retry_after_s`` is how long the other side asked to be left alone, where it did: no host calls it before.
    """

    failure_class = FailureClass.AMBIGUOUS

    def __init__(self, *args: object, retry_after_s: float | None = None) -> None:
        super().__init__(*args)
        self.retry_after_s = retry_after_s


class NotApplied(ToolError):
    """The world has not changed: never connected, refused, rate limited. Safe to try again."""

    failure_class = FailureClass.NOT_APPLIED


class RateLimited(NotApplied):
    """The other side refused because of its limits (429): not applied, and no sign that it is unwell.

    Args:
        message: what it said.
        retry_after: seconds until it may be asked again, where it said so.
    """

    def __init__(self, message: str = "rate limited", *, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after)


class Ambiguous(ToolError):
    """The world may have changed: a time-out after sending, a lost connection, a server error on a mutation."""

    failure_class = FailureClass.AMBIGUOUS


class Rejected(ToolError):
    """The other side has said no for good: another attempt would be refused as well."""

    failure_class = FailureClass.REJECTED


class PenstockError(Exception):
    """Base of the errors that Penstock raises in agents."""


class StepFailed(PenstockError):
    """A step has failed for good. ``error_class`` and ``message`` are those of its last attempt; ``end`` says how it
    ended (see :class:`StepEnd`), ``ended_by`` which field of which policy ended it.

    It is recorded: a replay raises it again.
    """

    def __init__(self, error_class: str, message: str, step: str, end: str = "", ended_by: str = "") -> None:
        ending = f" ({ended_by})" if "=" in ended_by else ""
        super().__init__(f"step {step} failed: {error_class}: {message}{ending}")
        self.error_class = error_class
        self.message = message
        self.step = step
        self.end = end
        self.ended_by = ended_by

    def __reduce__(self) -> tuple[type["StepFailed"], tuple[str, str, str, str, str]]:
        return (type(self), (self.error_class, self.message, self.step, self.end, self.ended_by))


class ChildFailed(StepFailed):
    """A child run ended without success; ``error_class`` is its error's class, or its state."""


class NotPermitted(StepFailed):
    """A policy, or a grant that the job does not have, forbids the call. Nothing was called. ``ended_by`` names the
    rule.
    """


class ApprovalDenied(StepFailed):
    """Somebody has looked at this exact action and said no, or nobody said yes in time. Nothing was called.

    ``message`` is the reason, and ``ended_by`` who denied it.
    """


class IdempotencyConflict(StepFailed):
    """The same key stands for an effect with other arguments. Nothing was called; ``message`` shows the digests of
    both, and the run that was first.
    """


_BY_END = {"not_permitted": NotPermitted, "approval_denied": ApprovalDenied, "conflict": IdempotencyConflict}


def step_failed(error_class: str, message: str, step: str, end: str = "", ended_by: str = "") -> StepFailed:
    """The error of a step that ended so."""
    return _BY_END.get(end, StepFailed)(error_class, message, step, end, ended_by)


class InvalidValue(PenstockError):
    """A value does not fit the annotation at a boundary: an input, an argument, a result."""


class PayloadTooLarge(PenstockError):
    """An encoded value exceeds the deployment's limit. The text names both and the fix."""

    def __init__(self, what: str, size: int, limit: int) -> None:
        super().__init__(
            f"{what} has {size} bytes, the limit is {limit} (PENSTOCK_PAYLOAD_LIMIT_BYTES). Keep large data elsewhere "
            "and pass a reference to it"
        )


class DefinitionError(PenstockError):
    """An agent, a tool or an app is declared in a way that cannot work. The text names it and the fix."""


class AgentExit(PenstockError):
    """A task of an agent's raised SystemExit or KeyboardInterrupt, which would have ended the host's event loop."""


def described(error: BaseException) -> tuple[str, str]:
    """An exception's class and text, whatever its author has done to it, without credentials in URLs."""
    try:
        return type(error).__name__, redact(str(error))
    except Exception as broken:
        return type(error).__name__, f"(its text cannot be made: {type(broken).__name__})"


class ReadOnlyBranch(Exception):
    """The store refused an intent: the run is of a branch that may cause no effects until it is promoted. Nothing was
    written. Agents never see it: whoever causes effects waits for the promotion, and tries again.
    """


class RunAborted(asyncio.CancelledError):
    """Ends a run's code from inside, past every ``except Exception``: it was cancelled, unloaded, fenced off, or
    must not go on. What the run becomes has been decided before this is raised.
    """
