"""What can go wrong in the world outside, switched per endpoint and decided by a seed.

The fate of a request depends on the seed, the endpoint, what the request is about, and how many requests about it
came before: never on the order in which concurrent requests happen to arrive. The same jobs meet the same faults.
"""

import hashlib
from enum import StrEnum
from typing import Annotated, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Rate = Annotated[float, Field(ge=0.0, le=1.0)]
Milliseconds = Annotated[float, Field(ge=0.0, le=600_000.0)]


class Endpoint(StrEnum):
    """The endpoints that agents use; these names are used in the ledger and in `PUT /faults`."""

    ORDERS = "orders"
    MODEL = "model"
    REFUNDS = "refunds"
    ANSWERS = "answers"


class Fate(StrEnum):
    """What becomes of one request."""

    SERVE = "serve"
    LOST_REQUEST = "lost_request"
    RATE_LIMITED = "rate_limited"
    ERROR = "error"
    LOST_RESPONSE = "lost_response"


class Faults(BaseModel):
    """The faults of one endpoint. A request has one fate, so the rates exclude each other: they add up to 1 at most."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latency_ms: Milliseconds = Field(default=0.0, description="waited before anything is done")
    latency_jitter_ms: Milliseconds = Field(default=0.0, description="up to this much more, evenly spread")
    error_rate: Rate = Field(default=0.0, description="answered with 500, nothing applied")
    rate_limited_rate: Rate = Field(default=0.0, description="answered with 429 and Retry-After, nothing applied")
    retry_after_s: Annotated[int, Field(ge=0, le=3_600)] = Field(default=1, description="what Retry-After says")
    lost_response_rate: Rate = Field(default=0.0, description="applied, then the connection closes unanswered")
    lost_request_rate: Rate = Field(default=0.0, description="the connection closes and nothing is applied")

    @model_validator(mode="after")
    def _one_fate_each(self) -> Self:
        total = self.error_rate + self.rate_limited_rate + self.lost_response_rate + self.lost_request_rate
        if total > 1.0 + 1e-9:
            msg = f"error_rate, rate_limited_rate, lost_response_rate and lost_request_rate add up to {total:g}, over 1"
            raise ValueError(msg)
        return self

    def fate(self, draw: float) -> Fate:
        """The fate that belongs to `draw`, a number from 0 up to but without 1."""
        for rate, fate in (
            (self.lost_request_rate, Fate.LOST_REQUEST),
            (self.rate_limited_rate, Fate.RATE_LIMITED),
            (self.error_rate, Fate.ERROR),
            (self.lost_response_rate, Fate.LOST_RESPONSE),
        ):
            if draw < rate:
                return fate
            draw -= rate
        return Fate.SERVE

    def delay_s(self, draw: float) -> float:
        """Seconds to wait first, for `draw` as in `fate`."""
        return (self.latency_ms + self.latency_jitter_ms * draw) / 1_000


class Switches(BaseModel):
    """The faults of every endpoint. An endpoint that is not named has none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    orders: Faults = Faults()
    model: Faults = Faults()
    refunds: Faults = Faults()
    answers: Faults = Faults()

    def of(self, endpoint: Endpoint) -> Faults | None:
        """The faults of `endpoint`, or None if there are none."""
        faults: Faults = getattr(self, endpoint.value)
        return None if faults == NO_FAULTS else faults


NO_FAULTS = Faults()


class Draws(NamedTuple):
    """Two independent numbers from 0 up to but without 1."""

    fate: float
    delay: float


class Dice:
    """Seeded draws for each request about each subject; forgets its counts when the faults are switched."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._seen: dict[tuple[Endpoint, str], int] = {}

    def roll(self, endpoint: Endpoint, subject: str) -> Draws:
        """The draws of the next request to `endpoint` about `subject`."""
        count = self._seen.get((endpoint, subject), 0) + 1
        self._seen[endpoint, subject] = count
        text = f"{self._seed}\n{endpoint}\n{subject}\n{count}"
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        # 53 bits are what a float holds: more could round up to 1.
        first, second = (int.from_bytes(part) >> 11 for part in (digest[:8], digest[8:]))
        return Draws(first / 2**53, second / 2**53)

    def forget(self) -> None:
        """Count from the start again."""
        self._seen.clear()
