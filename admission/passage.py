"""Calls under way at a gate, what holds others back, and what is to be told of both. Data of :mod:`admission.gate`."""

from dataclasses import dataclass, field

from admission.exchange import Outcomes


@dataclass(slots=True, eq=False)
class Passage:
    """A call under way: under which generations it was let through, what was reserved for it, out of which balance
    (they are numbered), and which report was the last before it.
    """

    generation: int
    own: int
    began: float
    cost: dict[str, float]
    is_probe: bool = False
    balance: int = 0
    reported: int = 0
    over: bool = False


@dataclass(frozen=True, slots=True)
class Hindrance:
    """What holds a call back: ``kind`` (limit, breaker, retry_after, concurrency, hub), in words, and for how long as
    far as anybody knows (None: until something changes, any moment; infinite: until an operator says so).
    """

    kind: str
    text: str
    for_s: float | None


@dataclass(slots=True)
class Since:
    """What has happened since the last report that the hub has answered."""

    outcomes: dict[tuple[int, int], Outcomes] = field(default_factory=dict)
    rate_limited: int = 0
    retries: int = 0
    abandoned: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    settled: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    retries_returned: dict[str, int] = field(default_factory=dict)

    def ended(self, passage: Passage, result: str, *, slow: bool) -> None:
        """Counts a call that has ended, in the words of :meth:`admission.gate.Gate.done`."""
        if result == "rate_limited":
            self.rate_limited += 1
        elif result != "ignored":
            outcomes = self._of((passage.generation, passage.own))
            if result == "succeeded":
                outcomes.succeeded += 1
                outcomes.slow += slow
            else:
                outcomes.failed += 1
                self.abandoned += result == "abandoned"

    def again(self, lost: "Since") -> None:
        """Takes in what has to be told again. What calls have used less than was reserved for them is left out: the hub
        may have heard of it, and twice would be too much.
        """
        for key, outcomes in lost.outcomes.items():
            kept = self._of(key)
            kept.succeeded += outcomes.succeeded
            kept.failed += outcomes.failed
            kept.slow += outcomes.slow
        self.rate_limited += lost.rate_limited
        self.abandoned += lost.abandoned
        self.retries += lost.retries
        for told_by, deltas in lost.settled:
            more = {name: delta for name, delta in deltas.items() if delta > 0}
            if more:
                self.settled.append((told_by, more))

    def _of(self, key: tuple[int, int]) -> Outcomes:
        found = self.outcomes.get(key)
        if found is None:
            found = self.outcomes[key] = Outcomes(key[0], own=key[1])
        return found
