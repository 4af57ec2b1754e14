"""What a failed attempt means for its step: again, failed, or unknown. Pure."""

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final

from admission.retry import FailureClass, RetryPolicy


class Risk(IntEnum):
    """Risk tiers of tools, from harmless to final."""

    READ = 0
    DRAFT = 1
    WRITE = 2
    IRREVERSIBLE = 3

    @property
    def is_effect(self) -> bool:
        """Whether a call of this tier changes the world outside."""
        return self >= Risk.WRITE


class StepEnd(StrEnum):
    """How a step ended. Each but the first comes with the policy field, or the party, that ended it."""

    SUCCEEDED = "succeeded"
    REJECTED = "rejected"
    NOT_RETRYABLE = "not_retryable"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    RETRIES_EXPIRED = "retries_expired"
    BUDGET_EXHAUSTED = "budget_exhausted"
    TIMED_OUT = "timed_out"
    REFUSED = "refused"
    INVALID_RESULT = "invalid_result"
    NOT_PERMITTED = "not_permitted"
    APPROVAL_DENIED = "approval_denied"
    CONFLICT = "conflict"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class TryAgain:
    """Another attempt follows after ``pause_s`` seconds."""

    pause_s: float


@dataclass(frozen=True)
class GiveUp:
    """The step has failed; it is known that the world was not changed, or that this does not matter."""

    end: StepEnd = StepEnd.REJECTED
    by: str = ""


@dataclass(frozen=True)
class Unknown:
    """Nobody can prove whether the effect happened: the run must not go on until somebody says so."""

    by: str = ""


Decision = TryAgain | GiveUp | Unknown


def after_failure(
    failure: FailureClass,
    *,
    risk: Risk,
    idempotent: bool,
    ambiguous_before: bool,
    attempt: int,
    elapsed: float,
    policy: RetryPolicy,
    draw: float,
    at_least_s: float = 0.0,
) -> Decision:
    """Decides by the failure's class, never by its message.

    An effect that was ambiguous once stays so until an attempt of an idempotent tool is answered: a later refusal
    to connect says nothing of the earlier attempt.

    Args:
        failure: what the tool said of its last attempt.
        risk: the tool's tier.
        idempotent: whether the remote side honours the step's idempotency key.
        ambiguous_before: whether an earlier attempt of this step was ambiguous.
        attempt: the attempt that failed, from 1.
        elapsed: seconds since the first attempt started, without what the gate held it up.
        policy: the tool's retry policy.
        draw: a uniform random number in [0, 1).
        at_least_s: seconds that the other side asked to be left alone.
    """
    effect = risk.is_effect
    ambiguous = failure is FailureClass.AMBIGUOUS or (ambiguous_before and failure is FailureClass.NOT_APPLIED)
    if failure is FailureClass.REJECTED:
        # Answered: with a key that the remote honours, this is the answer for every earlier attempt as well.
        by = "the tool's answer"
        return Unknown(by) if effect and ambiguous_before and not idempotent else GiveUp(StepEnd.REJECTED, by)
    if effect and ambiguous and not idempotent:
        return Unknown("idempotent=False")
    after = policy.after(attempt, elapsed, draw, at_least_s, failure=failure)
    if not isinstance(after, str):
        return TryAgain(after)
    return Unknown(after) if effect and ambiguous else GiveUp(_END_BY[after.partition("=")[0]], after)


_END_BY: Final = {
    "retry.retryable": StepEnd.NOT_RETRYABLE,
    "retry.maximum_attempts": StepEnd.ATTEMPTS_EXHAUSTED,
    "retry.max_duration": StepEnd.RETRIES_EXPIRED,
}


def after_no_more(end: StepEnd, by: str, *, risk: Risk, ambiguous: bool) -> Decision:
    """Decides for a step that may make no further attempt, because of a bound above its retry policy.

    Args:
        end: how it would end.
        by: the bound.
        risk: the tool's tier.
        ambiguous: whether an earlier attempt may have been applied.
    """
    return Unknown(by) if risk.is_effect and ambiguous else GiveUp(end, by)


def after_crash(*, idempotent: bool) -> Decision:
    """Decides for an effect whose intent is recorded and whose outcome is not: its host died in between."""
    return TryAgain(0.0) if idempotent else Unknown()
