"""When an attempt has failed: try again, and after how long?

Full jitter (a uniform draw between zero and the exponential bound) spreads the retries of many callers that failed
at the same moment; see "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. Field names follow Temporal's
retry policy.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

LONGEST_RETRY_AFTER_S: Final = 3600.0
"""What a dependency may ask for (Retry-After) and is believed, where nothing else is declared of it."""


class FailureClass(StrEnum):
    """What is known of a failed attempt's effect on the world: this, and no message, decides what may follow."""

    NOT_APPLIED = "not_applied"
    AMBIGUOUS = "ambiguous"
    REJECTED = "rejected"


class RetryPolicy(BaseModel):
    """How often and how long a step is tried. Durations in seconds.

    ``maximum_attempts`` counts the first one; it is always bounded. ``max_duration`` bounds the whole step: no
    attempt starts later than that after the first one. ``retryable`` says which failures may be tried again at all;
    it allows, and never makes it safe: an effect that is ambiguous is still not repeated without a key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    initial_interval: float = Field(default=0.1, gt=0)
    backoff_coefficient: float = Field(default=2.0, ge=1)
    maximum_interval: float = Field(default=10.0, gt=0)
    maximum_attempts: int = Field(default=4, ge=1, le=1000)
    max_duration: float = Field(default=60.0, gt=0)
    retryable: tuple[FailureClass, ...] = (FailureClass.NOT_APPLIED, FailureClass.AMBIGUOUS)

    @field_validator("retryable")
    @classmethod
    def _may_be_repeated(cls, retryable: tuple[FailureClass, ...]) -> tuple[FailureClass, ...]:
        if FailureClass.REJECTED in retryable:
            raise ValueError(
                "rejected is never retried: the dependency has answered, and would answer the same again; "
                "use not_applied and ambiguous, or raise NotApplied in the tool where another attempt can help"
            )
        # One order and no doubles, so that policies that mean the same are equal.
        return tuple(each for each in FailureClass if each in retryable)

    @model_validator(mode="after")
    def _fits_together(self) -> "RetryPolicy":
        if self.initial_interval > self.maximum_interval:
            raise ValueError(
                f"initial_interval {self.initial_interval:g} is above maximum_interval {self.maximum_interval:g}: "
                "lower the first or raise the second"
            )
        if self.maximum_attempts > 1 and self.initial_interval > self.max_duration:
            raise ValueError(
                f"initial_interval {self.initial_interval:g} is above max_duration {self.max_duration:g}: the first "
                "pause may outlast the step; raise max_duration, or set maximum_attempts to 1 for no retry"
            )
        return self

    def bound(self, attempt: int) -> float:
        """The longest pause after the given attempt (1 is the first), in seconds. Never smaller for a later attempt."""
        try:
            return min(self.maximum_interval, self.initial_interval * self.backoff_coefficient ** (attempt - 1))
        except OverflowError:
            return self.maximum_interval

    def after(
        self, attempt: int, elapsed: float, draw: float, at_least_s: float = 0.0, *, failure: FailureClass | None = None
    ) -> float | str:
        """What follows a failed attempt: seconds to wait, or the field that made it the last one, as in
        ``retry.maximum_attempts=4``.

        Args:
            attempt: the attempt that failed, from 1.
            elapsed: seconds since the first attempt started.
            draw: a uniform random number in [0, 1).
            at_least_s: what the dependency asked for (Retry-After), in seconds. May be above ``maximum_interval``: to
                come back sooner is to be refused again. Only ``max_duration`` bounds it.
            failure: how the attempt failed, to be held against ``retryable``; None where the caller has done so.
        """
        if failure is not None and failure not in self.retryable:
            return f"retry.retryable={','.join(self.retryable)}"
        if attempt >= self.maximum_attempts:
            return f"retry.maximum_attempts={self.maximum_attempts}"
        pause = max(self.bound(attempt) * draw, at_least_s)
        return f"retry.max_duration={self.max_duration:g}" if elapsed + pause > self.max_duration else pause

    def pause(
        self, attempt: int, elapsed: float, draw: float, at_least_s: float = 0.0, *, failure: FailureClass | None = None
    ) -> float | None:
        """The seconds of :meth:`after`, or None when it was the last attempt."""
        after = self.after(attempt, elapsed, draw, at_least_s, failure=failure)
        return None if isinstance(after, str) else after

    def why_last(
        self, attempt: int, elapsed: float, draw: float, at_least_s: float = 0.0, *, failure: FailureClass | None = None
    ) -> str | None:
        """The field of :meth:`after`, or None when it was not the last attempt."""
        after = self.after(attempt, elapsed, draw, at_least_s, failure=failure)
        return after if isinstance(after, str) else None

    def schedule(self, draws: Sequence[float]) -> list[float]:
        """The pauses after attempts 1, 2, … as they would be if attempts took no time, as far as the draws go."""
        pauses: list[float] = []
        elapsed = 0.0
        for attempt, draw in enumerate(draws, start=1):
            pause = self.pause(attempt, elapsed, draw)
            if pause is None:
                break
            pauses.append(pause)
            elapsed += pause
        return pauses
