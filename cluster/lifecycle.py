"""Every state of a run and every transition between them: the one table.

A run is *accepted* when the store has it, *queued* while it may be claimed, *running* while exactly one host owns it
(host, fence), *waiting* while it is unloaded and something that anybody can ask for must happen first, and then
exactly one of the ends. ``confirmation_unknown`` is not an end: nobody can prove whether an effect happened, and an
operator or a reconciler must say so before the run goes on.

The Lua scripts refuse a transition that has no row here: their table is generated from this one
(:func:`lua_table`), so that the store and the code cannot disagree. A waiting run goes back through the queue, never
straight to running: only a claim makes an owner.
"""

from enum import StrEnum
from typing import Final, NamedTuple


class RunState(StrEnum):
    """The states of DESIGN's run lifecycle; the values are what the store holds."""

    ACCEPTED = "accepted"
    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SHED = "shed"
    CONFIRMATION_UNKNOWN = "confirmation_unknown"


class Transition(NamedTuple):
    """One row: a run may go from ``source`` to ``target`` for this ``cause`` (for people)."""

    source: RunState
    target: RunState
    cause: str


TERMINAL: Final = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED, RunState.SHED})

TRANSITIONS: Final = (
    Transition(RunState.ACCEPTED, RunState.QUEUED, "enqueued by the submission that the store acknowledged"),
    Transition(RunState.QUEUED, RunState.RUNNING, "claimed by a host, with a new fence"),
    Transition(RunState.QUEUED, RunState.CANCELLED, "cancelled, or its deadline passed, before it was claimed"),
    Transition(RunState.QUEUED, RunState.SHED, "waited for longer than it may, or made room for what is worth more"),
    Transition(RunState.SHED, RunState.QUEUED, "submitted again: it was never started"),
    Transition(RunState.RUNNING, RunState.QUEUED, "handed back by a draining host, or taken from a dead one"),
    Transition(RunState.RUNNING, RunState.WAITING, "parked: timer, child or approval"),
    Transition(RunState.RUNNING, RunState.SUCCEEDED, "the agent returned"),
    Transition(RunState.RUNNING, RunState.FAILED, "the agent raised, diverged, broke its contract or killed hosts"),
    Transition(RunState.RUNNING, RunState.CANCELLED, "cancelled, or its deadline passed, at a step boundary"),
    Transition(RunState.RUNNING, RunState.CONFIRMATION_UNKNOWN, "nobody can prove an effect's outcome"),
    Transition(RunState.WAITING, RunState.QUEUED, "what it waited for has happened"),
    Transition(RunState.WAITING, RunState.CANCELLED, "cancelled, or its deadline passed, while it waited"),
    Transition(
        RunState.CONFIRMATION_UNKNOWN,
        RunState.QUEUED,
        "the effect was resolved to applied or not applied, or is to be asked after once more",
    ),
)

_ALLOWED: Final = frozenset((row.source, row.target) for row in TRANSITIONS)


def may_go(source: RunState, target: RunState) -> bool:
    """Whether the table has a row from ``source`` to ``target``."""
    return (source, target) in _ALLOWED


def lua_table() -> str:
    """The table as Lua source, for the scripts' prelude."""
    rows = ", ".join(f"['{row.source}>{row.target}']=true" for row in TRANSITIONS)
    ends = ", ".join(f"['{state}']=true" for state in sorted(TERMINAL))
    return f"local ALLOWED = {{{rows}}}\nlocal TERMINAL = {{{ends}}}\n"
