"""What the store's room hands out and takes: bytes and facts, no agents."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cluster.lifecycle import RunState


class NewRun(NamedTuple):
    """A run to be made: what ``submit`` writes. Times are texts as the script wants them ('' for none).

    ``level`` is how valuable the run is, smaller ones go first; the tenant is who shares a level with others.
    ``version`` is the agent's version that the run is pinned to from the start; '' for the one that claims it first.
    ``again`` is '1' for one that was refused and comes again when it was told to.
    """

    id: str
    custom_id: str
    agent: str
    level: int
    digest: str
    job: bytes
    deadline: str
    max_wait: str
    version: str = ""
    tenant: str = ""
    again: str = ""


class Made(enum.IntEnum):
    """What a submission came to."""

    MADE = 1
    EXISTING = 0
    OTHER = -1
    REFUSED = -2


class Submitted(NamedTuple):
    """The door's answer for one run.

    Attributes:
        made: whether it was made, the same job was there already, another job holds its id, or it was refused.
        place: about how many runs of the deployment go before a run that was made, and one.
        wait_ms: its predicted wait; -1 where nothing can be predicted.
        reason: why it was refused.
        retry_after_ms: when to come back; -1 for never with this job.
        by_itself: whether a program should come back without being asked to.
    """

    made: Made
    place: int = 1
    wait_ms: int = 0
    reason: str = ""
    retry_after_ms: int = -1
    by_itself: bool = False


class NewFork(NamedTuple):
    """A fork to be made: what ``fork`` writes. ``version`` is the agent's, '' for any; ``lineage`` is its source's too;
    ``archive`` and ``journal`` are what it begins with.
    """

    source: str
    id: str
    agent: str
    version: str
    custom_id: str
    level: int
    digest: str
    job: bytes
    lineage: str
    tenant: str
    readonly: bool
    archive: Sequence[bytes]
    journal: Sequence[bytes]


class Claim(NamedTuple):
    """A run that has just become this host's, with all that is needed to go on with it.

    ``losses``: how many hosts died under it since its journal has grown for the last time. ``readonly``: it is of a
    branch that may cause no effects.
    """

    id: str
    fence: int
    agent: str
    custom_id: str
    batch: str
    job: bytes
    migrations: int
    deadline_ms: int | None
    accepted_ms: int
    parent: str
    cancel: str
    journal: list[bytes]
    losses: int = 0
    readonly: bool = False


class Append(NamedTuple):
    """Entries of one run for the group commit; ``length`` is how many its journal had before, ``intents`` how many of
    the entries are intents of effects.
    """

    run_id: str
    fence: int
    length: int
    finished_steps: int
    entries: list[bytes]
    intents: int = 0


class Finish(NamedTuple):
    """The end of one run (or ``confirmation_unknown``).

    ``head`` is the last link of the journal as its owner believes it, ``seal`` the owner's seal of the end (both hex):
    they let the run's trail be verified.
    """

    run_id: str
    fence: int
    state: RunState
    reason: str
    output: bytes
    error: bytes
    head: str = ""
    seal: str = ""


class Fired(NamedTuple):
    """What a look at a partition's timers found: runs that were due, ms until the next one (None: nothing waits), and
    how many runs could be claimed.
    """

    due: int
    following_ms: int | None
    queued: int


class Park(NamedTuple):
    """One run that is to be unloaded until ``due_ms`` or until one of its children ends; ``head`` as in
    :class:`Finish`.
    """

    run_id: str
    fence: int
    reason: str
    due_ms: int | None
    children: tuple[str, ...]
    head: str = ""


@dataclass(frozen=True)
class RunRecord:
    """A run as the store knows it. Times are epoch milliseconds of the server's clock.

    ``lineage`` is set for forks only, ``inherited`` is how many journal entries a fork has of its source; ``promoted``
    and ``demoted`` are how the run got, or lost, its right to effects for the last time (JSON).
    ``retry_after_ms`` is when a run that was shed may come back, counted from its end, None where that was not said,
    and ``by_itself`` whether a program should then, without being asked to.
    ``head`` is the last link of the journal that an owner has anchored, ``end_seal`` the owner's seal of its end (hex;
    empty where there is none).
    """

    id: str
    state: RunState
    version: int
    fence: int
    agent: str
    pinned: str
    batch: str
    custom_id: str
    job: bytes
    reason: str
    since_ms: int
    accepted_ms: int
    started_ms: int | None
    ended_ms: int | None
    deadline_ms: int | None
    due_ms: int | None
    host: str
    migrations: int
    parent: str
    cancel: str
    output: bytes
    error: bytes
    readonly: bool = False
    lineage: str = ""
    inherited: int | None = None
    promoted: bytes = b""
    demoted: bytes = b""
    head: str = ""
    end_seal: str = ""
    retry_after_ms: int | None = None
    by_itself: bool = False


@dataclass(frozen=True)
class BatchCounts:
    """A batch's counters, summed over partitions. ``by_state`` has a key for every state that is not zero."""

    total: int
    by_state: dict[str, int]
    steps: int
    migrations: int
    migrated_runs: int


@dataclass(frozen=True)
class Heartbeat:
    """The answer to a heartbeat: whether this identity still stands, and who is late."""

    standing: bool
    expired: tuple[str, ...]
    draining: bool
    live: tuple[str, ...]
    server_ms: int


class EffectBegun(NamedTuple):
    """What ``effect_begin`` found; ``word`` is the script's, the others are of the record as it was, but for ``key``:
    what the other side is to be given.
    """

    word: str
    owner: str
    arguments: str
    receipt: bytes
    since_ms: int
    key: str = ""


class EffectRecord(NamedTuple):
    """An effect as the store knows it: ``begun``, ``applied``, ``not_applied``, ``unknown``, or ``undone``: it was
    applied, and another effect has undone it.
    """

    state: str
    owner: str
    arguments: str
    tool: str
    key: str
    receipt: bytes
    since_ms: int


class HubRecord(NamedTuple):
    """What the store has for a dependency's hub: JSON texts, '' where there is none."""

    epoch: int
    state: str
    override: str
    command: str
    server_ms: int
