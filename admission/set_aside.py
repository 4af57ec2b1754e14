"""Queued runs that may not start now, by what keeps them: in the store the sorted sets ``aside:KEY``. Pure."""

from typing import Final

from admission.ordered_runs import OrderedRuns, Queued

RUNNING: Final = "running"
"""Kinds of keys: ``running`` for tenants that have as many runs running as they may have, ``held`` for what is paused,
``agent`` for agents that no host has served that has asked.
"""
HELD: Final = "held"
AGENT: Final = "agent"


def key_of(kind: str, name: str) -> str:
    """A key: a kind, and what of that kind."""
    return f"{kind}\n{name}"


class SetAside:
    """Runs by key, each in the queue's order."""

    __slots__ = ("_length", "_runs")

    def __init__(self) -> None:
        self._runs: dict[str, OrderedRuns] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def by_key(self) -> list[str]:
        """The keys under which anything is."""
        return sorted(self._runs)

    def add(self, key: str, run: Queued) -> None:
        """Sets a run aside."""
        self._runs.setdefault(key, OrderedRuns()).add(run)
        self._length += 1

    def take(self, key: str, most: int) -> list[Queued]:
        """Takes out the best ones of a key."""
        runs = self._runs[key]
        taken = [runs.pop_first() for _ in range(min(most, len(runs)))]
        self._drop(key, len(taken))
        return taken

    def remove(self, run: Queued) -> bool:
        """Takes one run out; whether it was there."""
        for key, runs in self._runs.items():
            if runs.remove(run):
                self._drop(key, 1)
                return True
        return False

    def has(self, run: Queued) -> bool:
        """Whether a run is set aside."""
        return any(runs.has(run) for runs in self._runs.values())

    def _drop(self, key: str, count: int) -> None:
        self._length -= count
        if not len(self._runs[key]):
            del self._runs[key]
