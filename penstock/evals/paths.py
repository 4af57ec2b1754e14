"""Which ways the runs of a job take: sequences of steps, and where they part. Pure."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from actors.journal import Kind
from actors.schema import canonical_digest
from penstock.evals.journal import RunJournal, RunStep

_SHOWN: Final = (Kind.CALL, Kind.CHILD)
_END: Final = "end"


class Way(msgspec.Struct, frozen=True):
    """A sequence of steps, as names, how many runs took it, and how many of them passed."""

    steps: tuple[str, ...]
    runs: int
    passed: int = 0


class Branch(msgspec.Struct, frozen=True):
    """Where runs go on: the next step's name ("end: STATE" where they end), and how many of them passed in the end."""

    step: str
    runs: int
    passed: int


class Parting(msgspec.Struct, frozen=True):
    """A place at which runs that have gone the same way go on differently.

    Attributes:
        position: of the first step that differs, from 0.
        path: of that step in the run.
        before: names of the steps up to there, which the runs share.
        branches: how they go on, most runs first.
        because: the first thing before it that was not the same in all of them: the result or the arguments of a shared
            step, or a random number that the agent drew; empty where nothing on record differs.
    """

    position: int
    path: str
    before: tuple[str, ...]
    branches: tuple[Branch, ...]
    because: str = ""


class Taken(NamedTuple):
    """One run's way."""

    steps: tuple[RunStep, ...]
    end: str
    passed: bool
    values: tuple[RunStep, ...] = ()


def taken(run: RunJournal, *, passed: bool) -> Taken:
    """The way of a run: its tool calls and child runs, in the order of their paths."""
    steps = tuple(step for step in run.steps if step.kind in _SHOWN)
    values = tuple(step for step in run.steps if step.kind == Kind.VALUE and step.name == "random")
    return Taken(steps, f"{_END}: {run.state}", passed, values)


def name_of(step: RunStep) -> str:
    """A step's name as ways show it."""
    return f"spawn {step.name}" if step.kind == Kind.CHILD else step.name


def ways(runs: Iterable[Taken]) -> list[Way]:
    """The distinct sequences of steps, the most common first, then in the order of their names."""
    counts: Counter[tuple[str, ...]] = Counter()
    passed: Counter[tuple[str, ...]] = Counter()
    for each in runs:
        names = tuple(name_of(step) for step in each.steps)
        counts[names] += 1
        passed[names] += each.passed
    return [Way(names, count, passed[names]) for names, count in sorted(counts.items(), key=lambda i: (-i[1], i[0]))]


def partings(runs: Sequence[Taken]) -> list[Parting]:
    """All places at which runs part, the first one first: the inner nodes with more than one branch of the trie that
    the runs' sequences make.
    """
    found: list[Parting] = []
    groups: list[tuple[int, Sequence[Taken]]] = [(0, runs)]
    while groups:
        position, group = groups.pop(0)
        branches = _branches(group, position)
        if len(branches) > 1:
            found.append(_parting(group, position, branches))
        for name, members in branches.items():
            if not name.startswith(_END):
                groups.append((position + 1, members))
    return sorted(found, key=lambda each: (each.position, each.before))


def _branches(group: Sequence[Taken], position: int) -> dict[str, list[Taken]]:
    branches: dict[str, list[Taken]] = {}
    for each in group:
        name = name_of(each.steps[position]) if position < len(each.steps) else each.end
        branches.setdefault(name, []).append(each)
    return branches


def _parting(group: Sequence[Taken], position: int, branches: dict[str, list[Taken]]) -> Parting:
    one = max(group, key=lambda each: len(each.steps))
    return Parting(
        position=position,
        path=one.steps[position].path if position < len(one.steps) else "",
        before=tuple(name_of(step) for step in one.steps[:position]),
        branches=tuple(
            Branch(name, len(members), sum(each.passed for each in members))
            for name, members in sorted(branches.items(), key=lambda item: (-len(item[1]), item[0]))
        ),
        because=_because(group, position),
    )


def _because(group: Sequence[Taken], position: int) -> str:
    for place in range(position):
        step = group[0].steps[place]
        name = f"step {step.path} ({name_of(step)})"
        if (asked := len({each.steps[place].arguments_digest for each in group})) > 1:
            return f"{name} was asked with {asked} different sets of arguments"
        if (answers := len({_outcome(each.steps[place]) for each in group})) > 1:
            return f"{name} gave {answers} different results"
    drawn = {tuple((step.path, step.result) for step in each.values) for each in group}
    return f"the agent drew {len(drawn)} different random numbers" if len(drawn) > 1 else ""


def _outcome(step: RunStep) -> bytes:
    error = step.error.error_class if step.error is not None else ""
    return canonical_digest([step.status, error, step.result])
