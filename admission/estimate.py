"""How many tokens will a call take? From what earlier calls took, for a reservation that is settled afterwards.

A reservation that is too small lets more calls through than the provider's limit allows, and one that is too large
(the largest output a model can give) leaves most of the limit unused. The 95th percentile of what was seen lies
between: one call in twenty is settled upwards. Percentiles are exact over the last 256 observations, by nearest rank:
the smallest value that at least 95 % of the observations do not exceed.
"""

from bisect import bisect_left, insort
from collections import deque
from typing import Final, Generic, TypeVar

WINDOW: Final = 256
PERCENT: Final = 95
ENOUGH: Final = 20
"""Below this many observations, the 95th percentile is the largest one, and one odd call would rule the estimate."""

_Value = TypeVar("_Value", int, tuple[float, int, int])


class _Recent(Generic[_Value]):
    """The last observations, in order of arrival and in order of size. Adding is O(log n) and a short move."""

    __slots__ = ("_arrived", "_ordered")

    def __init__(self) -> None:
        self._arrived: deque[_Value] = deque()
        self._ordered: list[_Value] = []

    def __len__(self) -> int:
        return len(self._arrived)

    def add(self, value: _Value) -> None:
        if len(self._arrived) == WINDOW:
            del self._ordered[bisect_left(self._ordered, self._arrived.popleft())]
        self._arrived.append(value)
        insort(self._ordered, value)

    def percentile(self) -> _Value:
        """The 95th, of at least one observation. Whole numbers, since 0.95 * n is not exact in floats."""
        rank = -(-PERCENT * len(self._ordered) // 100)
        return self._ordered[rank - 1]


class OutputEstimator:
    """Expected output tokens of the next call of one agent to one tool."""

    __slots__ = ("_recent",)

    def __init__(self) -> None:
        self._recent: _Recent[int] = _Recent()

    def observe(self, tokens: int) -> None:
        """Takes note of what a finished call put out.

        Raises:
            ValueError: it is below zero.
        """
        if tokens < 0:
            raise ValueError(f"output tokens {tokens} are below zero: give what the response says it used")
        self._recent.add(tokens)

    def estimate(self, maximum: int | None, default: int) -> int:
        """Tokens to reserve: the 95th percentile with at least 20 observations, else ``maximum``, else ``default``.

        Args:
            maximum: what the call itself allows (``max_tokens``); never exceeded. None where it sets no bound.
            default: what to reserve where nothing is known.
        """
        if len(self._recent) < ENOUGH:
            return default if maximum is None else maximum
        tokens = self._recent.percentile()
        return tokens if maximum is None else min(tokens, maximum)


class InputEstimator:
    """Expected input tokens of a request from its size in bytes.

    Begins with four bytes to a token, as English text has it, and follows the 95th percentile of what was observed from
    the first observation on: text in other scripts, or binary data, takes up to four times as many.
    """

    __slots__ = ("_recent",)

    def __init__(self) -> None:
        # The ratio orders; the whole numbers behind it make the estimate exact.
        self._recent: _Recent[tuple[float, int, int]] = _Recent()

    def observe(self, size_bytes: int, tokens: int) -> None:
        """Takes note of how many tokens a request of that size took. One of no bytes tells nothing and is left out.

        Raises:
            ValueError: one of them is below zero.
        """
        if size_bytes < 0 or tokens < 0:
            raise ValueError(f"{tokens} tokens of {size_bytes} bytes: neither can be below zero")
        if size_bytes:
            self._recent.add((tokens / size_bytes, tokens, size_bytes))

    def estimate(self, size_bytes: int) -> int:
        """Tokens of a request of that size, rounded up; at least 1.

        Raises:
            ValueError: the size is below zero.
        """
        if size_bytes < 0:
            raise ValueError(f"a request of {size_bytes} bytes: its size cannot be below zero")
        _, tokens, seen_bytes = self._recent.percentile() if self._recent else (0.25, 1, 4)
        return max(1, -(-size_bytes * tokens // seen_bytes))
