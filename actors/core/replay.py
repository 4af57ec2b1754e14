"""Replay: a run's past as answers to its questions, or proof that it asks different ones.

Pure: entries in, answers out. A step is known by its path, which depends on the order in which the agent's code asks
and not on the order in which steps end, so branches that run at once replay in any order.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from actors.core.chain import is_of_trail
from actors.journal import Entry, Kind, Status

# An intent is recorded under the effect's own path and closed by its call, or by what a person says of it.
_SAME_STEP: Final = {Kind.INTENT.value: Kind.CALL.value, Kind.RESOLUTION.value: Kind.CALL.value}


class Asked(NamedTuple):
    """The identity of a step: what a replay must ask again at the same path."""

    kind: str
    name: str
    digest: bytes

    def __str__(self) -> str:
        return f"{self.kind} {self.name} ({self.digest.hex()[:12]})"


class Divergence(Exception):
    """A replay asked for another step than the journal has, or did not ask for one that it has."""

    def __init__(self, step: str, recorded: Asked, asked: Asked | None) -> None:
        self.step = step
        self.recorded = recorded
        self.asked = asked
        wanted = f"the code now asks for {asked}" if asked else "the code ended without asking for it"
        super().__init__(
            f"step {step}: the journal has {recorded}, {wanted}. An agent must ask for the same steps when it is "
            "replayed: use run.now(), run.random() and run.uuid(), and give changed code a new version"
        )


class Replay:
    """The recorded steps that have not been asked for yet."""

    __slots__ = ("_by_step", "checkpoint", "ending", "has_effects")

    def __init__(self, entries: Iterable[Entry]) -> None:
        by_step: dict[str, Entry] = {}
        self.checkpoint: Entry | None = None
        self.ending: Entry | None = None
        self.has_effects = False
        for entry in entries:
            self.has_effects = self.has_effects or is_of_trail(entry)
            if entry.kind == Kind.CHECKPOINT:
                # Everything before a checkpoint is behind the run.
                self.checkpoint = entry
                by_step.clear()
            elif entry.kind == Kind.ENDING:
                # The agent's code is over: what follows only undoes its effects.
                self.ending = entry
            else:
                # The later entry of a step closes the earlier one.
                by_step[entry.step] = entry
        self._by_step = by_step

    def __bool__(self) -> bool:
        return bool(self._by_step)

    def ask(self, step: str, asked: Asked) -> Entry | None:
        """The recorded entry of a step (closed, or still open), or None when this is new ground.

        Raises:
            Divergence: the journal has something else there.
        """
        entry = self._by_step.pop(step, None)
        if entry is None:
            return None
        recorded = Asked(_SAME_STEP.get(entry.kind, entry.kind), entry.name, entry.digest)
        if recorded != asked:
            raise Divergence(step, recorded, asked)
        return entry

    def recorded(self, step: str) -> Entry | None:
        """The recorded entry of a step that has not been asked for yet; it stays there."""
        return self._by_step.get(step)

    def drop(self, step: str) -> Entry | None:
        """Takes a step out that is not asked for any more, because what it was needed for is behind the run."""
        return self._by_step.pop(step, None)

    def open_effect(self) -> Entry | None:
        """An effect whose intent is recorded, whose outcome is not, and that has not been asked for again."""
        return next((entry for entry in self._by_step.values() if entry.kind == Kind.INTENT), None)

    def resolutions(self) -> list[Entry]:
        """What people have said of effects, and nobody has asked for again."""
        return [entry for entry in self._by_step.values() if entry.kind == Kind.RESOLUTION]

    def verify_end(self) -> None:
        """To be called when the agent has returned.

        Raises:
            Divergence: the journal has steps that the code never asked for.
        """
        for step, entry in self._by_step.items():
            if entry.status != Status.OPEN:
                raise Divergence(step, Asked(_SAME_STEP.get(entry.kind, entry.kind), entry.name, entry.digest), None)
