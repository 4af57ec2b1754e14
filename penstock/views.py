"""What clients get to see: values without behaviour. Times are epoch milliseconds by the store's clock."""

from typing import Any

import msgspec

from cluster.lifecycle import TERMINAL, RunState
from cluster.records import BatchCounts, RunRecord
from penstock.approval_facts import ApprovalView

_UNKNOWN = RunState.CONFIRMATION_UNKNOWN.value


class BatchStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Where a batch stands. ``by_state`` has a key for every state that is not zero.

    ``migrations`` counts moves to another host, ``migrated_runs`` the runs that moved. ``terminal`` says that every
    run has ended; ``settled`` also counts runs whose effect nobody can prove (``confirmation_unknown``): nothing
    goes on by itself any more.
    """

    batch: str
    total: int
    by_state: dict[str, int]
    steps: int
    migrations: int
    migrated_runs: int
    ended: int
    terminal: bool
    settled: bool

    def count(self, state: RunState) -> int:
        """How many runs are in ``state``."""
        return self.by_state.get(state.value, 0)


def batch_status(batch: str, counts: BatchCounts) -> BatchStatus:
    """The status that a batch's counters tell."""
    ended = sum(counts.by_state.get(state.value, 0) for state in TERMINAL)
    return BatchStatus(
        batch=batch,
        total=counts.total,
        by_state=counts.by_state,
        steps=counts.steps,
        migrations=counts.migrations,
        migrated_runs=counts.migrated_runs,
        ended=ended,
        terminal=ended >= counts.total,
        settled=ended + counts.by_state.get(_UNKNOWN, 0) >= counts.total,
    )


class RunError(msgspec.Struct, frozen=True):
    """Why a run did not succeed: the error's class, its message and the step that it came from ('' for the agent).

    ``end`` says how that step ended (``attempts_exhausted``, ``timed_out`` ...), ``ended_by`` which field of which
    policy ended it.
    """

    error_class: str = msgspec.field(name="class")
    message: str = ""
    step: str = ""
    end: str = ""
    ended_by: str = ""

    def __str__(self) -> str:
        """One line for people."""
        place = ", ".join(part for part in (self.step and f"step {self.step}", self.ended_by) if part)
        at = f" ({place})" if place else ""
        return f"{self.error_class}: {self.message}{at}" if self.message else f"{self.error_class}{at}"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one run. ``waited_s`` is from acceptance to the first start, ``ran_s`` from there to the end.

    A run that was ``shed`` was never started: ``reason`` says why, ``retry_after_s`` how long after its end to come
    back (None where nobody knows, or where it cannot be accepted as it is), ``by_itself`` whether a program should come
    back then, without being asked to. Submitting the same job again makes it this run again.
    """

    custom_id: str
    run_id: str
    state: str
    output: Any = None
    error: RunError | None = None
    reason: str = ""
    accepted_ms: int
    started_ms: int | None = None
    ended_ms: int | None = None
    migrations: int = 0
    waited_s: float | None = None
    ran_s: float | None = None
    retry_after_s: float | None = None
    by_itself: bool = False

    @property
    def succeeded(self) -> bool:
        """Whether the agent returned."""
        return self.state == RunState.SUCCEEDED


def decoded(raw: bytes) -> Any:
    """The value of JSON bytes; None where there are none."""
    return msgspec.json.decode(raw) if raw else None


def run_error(raw: bytes) -> RunError | None:
    """The error that a record or a journal entry holds, if it holds one."""
    return msgspec.json.decode(raw, type=RunError) if raw else None


def result_of(record: RunRecord) -> Result:
    """The result that a record tells."""
    started, ended = record.started_ms, record.ended_ms
    return Result(
        custom_id=record.custom_id,
        run_id=record.id,
        state=record.state.value,
        output=decoded(record.output),
        error=run_error(record.error),
        reason=record.reason,
        accepted_ms=record.accepted_ms,
        started_ms=started,
        ended_ms=ended,
        migrations=record.migrations,
        waited_s=None if started is None else (started - record.accepted_ms) / 1000,
        ran_s=None if started is None or ended is None else (ended - started) / 1000,
        retry_after_s=retry_after_of(record),
        by_itself=record.by_itself,
    )


def retry_after_of(record: RunRecord) -> float | None:
    """When a run that was shed may come back, in seconds from its end; None where that is not so."""
    after_ms = record.retry_after_ms
    return None if record.state is not RunState.SHED or after_ms is None or after_ms < 0 else after_ms / 1000


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a listing."""

    run_id: str
    custom_id: str
    batch: str
    agent: str
    state: str
    reason: str
    since_ms: int
    accepted_ms: int
    host: str
    migrations: int


def summary_of(record: RunRecord) -> RunSummary:
    """The summary of a record. The host is named only while it owns the run."""
    return RunSummary(
        run_id=record.id,
        custom_id=record.custom_id,
        batch=record.batch,
        agent=record.agent,
        state=record.state.value,
        reason=record.reason,
        since_ms=record.since_ms,
        accepted_ms=record.accepted_ms,
        host=record.host if record.state is RunState.RUNNING else "",
        migrations=record.migrations,
    )


class JournalStep(msgspec.Struct, frozen=True, kw_only=True):
    """One journal entry. ``status`` is ok, failed or open (something must still follow at the same step)."""

    step: str
    kind: str
    name: str
    status: str
    attempts: int
    started_ms: int
    ended_ms: int
    arguments_digest: str
    payload: Any = None


class RunView(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the store knows of one run.

    ``root`` is its lineage, where it is a fork or a child run. A fork has the first ``inherited`` entries of its
    archive and journal from ``forked_from``; a branch whose ``may_cause_effects`` is False waits to be promoted.
    ``by`` is who submitted its job; ``approvals`` are those that it waits for. ``retry_after_s`` is for a run that was
    shed, see :class:`Result`.
    """

    run_id: str
    custom_id: str
    batch: str
    agent: str
    agent_version: str
    state: str
    state_version: int
    fence: int
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
    cancel_requested: str
    value: str
    tenant: str
    grants: tuple[str, ...]
    metadata: dict[str, str]
    input: Any
    output: Any
    error: RunError | None
    journal: list[JournalStep]
    root: str = ""
    forked_from: str = ""
    forked_at: str = ""
    forked_by: str = ""
    forked_why: str = ""
    inherited: int = 0
    may_cause_effects: bool = True
    by: str = ""
    approvals: list[ApprovalView] = []
    retry_after_s: float | None = None


class Why(msgspec.Struct, frozen=True, kw_only=True):
    """Why a run is where it is: for what it waits, since when, who owns the wait, what bounds it, what comes next."""

    run_id: str
    custom_id: str
    state: str
    reason: str
    since_ms: int
    for_s: float
    owner: str
    bound: str
    next: str
    last_step: str = ""
    note: str = ""

    @property
    def text(self) -> str:
        """The same for people, a line each."""
        lines = [
            f"run {self.run_id} ({self.custom_id}) is {self.state}, for {self.for_s:.1f} s",
            f"reason: {self.reason}",
            f"owner: {self.owner}",
            f"bound: {self.bound}",
            f"next: {self.next}",
        ]
        if self.last_step:
            lines.append(f"last step: {self.last_step}")
        if self.note:
            lines.append(f"watchdog: {self.note}")
        return "\n".join(lines)


class HostView(msgspec.Struct, frozen=True, kw_only=True):
    """A registered host. ``lease_left_s`` below zero: it has not renewed its lease, and its runs move elsewhere."""

    host: str
    alive: bool
    lease_left_s: float
    draining: bool
    info: dict[str, Any]


class DeploymentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The whole deployment: counters over all batches and child runs, its hosts and its newest batches."""

    name: str
    total: int
    by_state: dict[str, int]
    steps: int
    migrations: int
    hosts: list[HostView]
    batches: list[BatchStatus]
