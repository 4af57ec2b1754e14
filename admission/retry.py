"""When an attempt has failed: try again, and after how long?

Full jitter (a uniform draw between zero and the exponential bound) spreads the retries of many callers that failed
at the same moment; see "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. Field names follow Temporal's
retry policy.
"""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class FailureClass(StrEnum):
    """What is known of a failed attempt's effect on the world: this, and no message, decides what may follow."""

    NOT_APPLIED = "not_applied"
    AMBIGUOUS = "ambiguous"
    REJECTED = "rejected"


class RetryPolicy(BaseModel):
    """How often and how long a step is tried. Durations in seconds.

    ``maximum_attempts`` counts the first one; it is always bounded. ``max_duration`` bounds the whole step: no
    attempt starts later than that after the first one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    initial_interval: float = Field(default=0.1, gt=0)
    backoff_coefficient: float = Field(default=2.0, ge=1)
    maximum_interval: float = Field(default=10.0, gt=0)
    maximum_attempts: int = Field(default=4, ge=1, le=1000)
    max_duration: float = Field(default=60.0, gt=0)

    def bound(self, attempt: int) -> float:
        """The longest pause after the given attempt (1 is the first), in seconds."""
        try:
            return min(self.maximum_interval, self.initial_interval * self.backoff_coefficient ** (attempt - 1))
        except OverflowError:
            return self.maximum_interval

    def pause(self, attempt: int, elapsed: float, draw: float) -> float | None:
        """Seconds to wait after a failed attempt, or None when it was the last one.

        Args:
            attempt: the attempt that failed, from 1.
            elapsed: seconds since the first attempt started.
            draw: a uniform random number in [0, 1).
        """
        if attempt >= self.maximum_attempts:
            return None
        pause = self.bound(attempt) * draw
        return None if elapsed + pause > self.max_duration else pause
