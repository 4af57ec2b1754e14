"""How many runs of a tenant may run at once in each partition, so that all together never exceed its cap. Pure.

Each partition goes by an allowance: it starts no run of the tenant while that many run there. A host's slot that comes
free is used again at once, without the controller; the controller moves allowances to where runs wait. What one
partition gives up is given to another one only when it has said that it goes by less, and that less is running.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from admission.split import Turns

UNUSED_MS: Final = 5000
"""An allowance that is not used for so long, though a run waits for it, moves on."""


class Here(NamedTuple):
    """A tenant in one partition, as the partition has last said.

    Attributes:
        running: runs that run.
        waiting: runs that wait.
        told: the allowance that it goes by.
        heard: it has said so after the last word that it was sent.
    """

    running: int
    waiting: int
    told: int
    heard: bool = True


class RunningCap:
    """One tenant's cap over all partitions.

    The law: the sum over partitions of what they go by, or have running where that is more, never exceeds ``most``,
    whichever of the last words they have heard.
    """

    __slots__ = ("_sent", "_turns", "_unused", "most", "partitions")

    def __init__(self, most: int, partitions: int) -> None:
        self.most = most
        self.partitions = partitions
        self._sent: dict[int, int] = {}
        self._unused: dict[int, tuple[int, int]] = {}  # since when, with how many running
        self._turns = Turns()

    @property
    def unasked(self) -> int:
        """What a partition goes by that was told nothing: an equal part, rounded down."""
        return self.most // self.partitions

    def allowances(self, now_ms: int, here: Mapping[int, Here]) -> dict[int, int]:
        """What each partition is to go by from now on.

        Args:
            now_ms: a clock.
            here: what each partition has last said, all of them.
        """
        given: dict[int, int] = {}
        wants: dict[str, int] = {}
        bound: dict[int, int] = {}
        for partition, (running, waiting, told, heard) in here.items():
            # It may go by any of the words that it has not answered.
            sent = told if heard else max(told, self._sent.get(partition, told))
            used = min(max(0, told - running), waiting)
            if used and self._rests(now_ms, partition, running):
                used = 0
            elif not used:
                self._unused.pop(partition, None)
            given[partition] = running + used
            wants[str(partition)] = waiting - used
            bound[partition] = max(running, sent)
        free = max(0, self.most - sum(bound.values()))
        for name, more in self._turns.places(free, {name: want for name, want in wants.items() if want}).items():
            given[int(name)] += more
            wants[name] -= more
            free -= more
        if not any(wants.values()):
            self._spread(given, bound, free)
        self._sent = {
            each: more if here[each].heard else max(more, self._sent.get(each, more)) for each, more in given.items()
        }
        return given

    def _rests(self, now_ms: int, partition: int, running: int) -> bool:
        """Whether a partition has not used for long what it may, though a run waits there."""
        since, before = self._unused.get(partition, (now_ms, running))
        if before != running:
            since = now_ms
        rests = now_ms - since >= UNUSED_MS
        self._unused[partition] = (now_ms if rests else since, running)
        return rests

    def _spread(self, given: dict[int, int], bound: Mapping[int, int], free: int) -> None:
        """What nobody waits for goes to all alike, so that whoever comes need not wait for the controller."""
        for partition in sorted(given):
            idle = max(0, self.unasked - given[partition])
            within = min(idle, max(0, bound[partition] - given[partition]))
            beyond = min(idle - within, free)
            given[partition] += within + beyond
            free -= beyond
