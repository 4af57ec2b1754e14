"""What a failed attempt means for its step: again, failed, or unknown. Pure."""

from dataclasses import dataclass
from enum import IntEnum

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


@dataclass(frozen=True)
class TryAgain:
    """Another attempt follows after ``pause_s`` seconds."""

    pause_s: float


@dataclass(frozen=True)
class GiveUp:
    """The step has failed; it is known that the world was not changed, or that this does not matter."""


@dataclass(frozen=True)
class Unknown:
    """Nobody can prove whether the effect happened: the run must not go on until somebody says so."""


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
        elapsed: seconds since the first attempt started.
        policy: the tool's retry policy.
        draw: a uniform random number in [0, 1).
    """
    effect = risk.is_effect
    ambiguous = failure is FailureClass.AMBIGUOUS or (ambiguous_before and failure is FailureClass.NOT_APPLIED)
    if failure is FailureClass.REJECTED:
        # Answered: with a key that the remote honours, this is the answer for every earlier attempt as well.
        return Unknown() if effect and ambiguous_before and not idempotent else GiveUp()
    if effect and ambiguous and not idempotent:
        return Unknown()
    pause_s = policy.pause(attempt, elapsed, draw)
    if pause_s is not None:
        return TryAgain(pause_s)
    return Unknown() if effect and ambiguous else GiveUp()


def after_crash(*, idempotent: bool) -> Decision:
    """Decides for an effect whose intent is recorded and whose outcome is not: its host died in between."""
    return TryAgain(0.0) if idempotent else Unknown()
