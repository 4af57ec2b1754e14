"""A run's journal as invariants read it: of each step what was asked, what came of it, and what permitted it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from actors.contract import Tool
from actors.job import JobRecord
from actors.journal import Entry, ErrorRecord, Kind, Status, decode_error
from actors.receipts import IntentFacts, Receipt, decode_intent_facts, decode_receipt
from cluster.lifecycle import RunState
from cluster.records import RunRecord

_HIDDEN = (Kind.CHECKPOINT,)


@dataclass(frozen=True)
class RunStep:
    """One step of a run. Read-only.

    Attributes:
        path: its path in the run.
        kind: ``call``, ``child``, ``timer``, ``value``, ``approval`` …
        name: of the tool, or of a child's agent.
        status: ``ok``, ``failed``, or ``open`` where something must still follow.
        result: as JSON-like data; None where it failed or is open.
        error: why it failed.
        attempts: how often the tool was called.
        started_ms, ended_ms: epoch milliseconds.
        arguments_digest: of the canonical arguments; every call has it.
        arguments: of an effect, in order; secrets in them are masked. None for other steps, whose journal has the
            digest only.
        risk: of an effect, the tool's tier: ``write`` or ``irreversible``.
        idempotency_key: of an effect, what the other side was given.
        business_key: the agent's own key, where it gave one.
        identity: of the effect: calls with the same one are one effect.
        permission: what permitted the effect: decision, rule, version of the policy.
        approval: id of the approval, where one was needed.
        undoes: the step whose effect this one compensates.
        receipt: of an effect that has ended: state, by whom it is known, evidence. Its result is in ``result``.
    """

    path: str
    kind: str
    name: str
    status: str
    result: Any = None
    error: ErrorRecord | None = None
    attempts: int = 0
    started_ms: int = 0
    ended_ms: int = 0
    arguments_digest: str = ""
    arguments: tuple[Any, ...] | None = None
    risk: str = ""
    idempotency_key: str = ""
    business_key: str = ""
    identity: str = ""
    permission: Mapping[str, str] = field(default_factory=dict)
    approval: str = ""
    undoes: str = ""
    receipt: Receipt | None = None

    @property
    def is_effect(self) -> bool:
        """Whether it changes the world outside, or pretends to."""
        return bool(self.idempotency_key)

    @property
    def happened(self) -> bool:
        """Whether it is an effect that was applied (or pretended) at this step, and is none that an earlier step had
        caused under the same key.
        """
        by = self.receipt.by if self.receipt is not None else ""
        return self.is_effect and self.status == Status.OK and not by.startswith(("run ", "step "))

    def arguments_of(self, tool: Tool[Any, Any]) -> dict[str, Any]:
        """The arguments of an effect by the names that its tool gives them.

        Raises:
            ValueError: it is a step of another tool, or one without recorded arguments.
        """
        if tool.name != self.name or self.arguments is None:
            raise ValueError(f"step {self.path} ({self.name}) has no recorded arguments of tool {tool.name!r}")
        return dict(zip(tool.signature.names, self.arguments, strict=True))


@dataclass(frozen=True)
class RunJournal:
    """One run, as invariants and reports read it. Read-only.

    Attributes:
        run_id, custom_id, agent, version: which run it is.
        state: in which it ended.
        reason: the state's reason.
        tenant, grants, metadata: of its job.
        input, output: as JSON-like data.
        error: why it did not succeed.
        started_ms, ended_ms: epoch milliseconds.
        migrations: how often it moved.
        steps: in the order of their paths: of the agent's own task first, then of the tasks that it started.
        children: the runs that it started.
    """

    run_id: str
    custom_id: str
    agent: str
    version: str
    state: str
    reason: str = ""
    tenant: str = "default"
    grants: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    input: Any = None
    output: Any = None
    error: ErrorRecord | None = None
    started_ms: int | None = None
    ended_ms: int | None = None
    migrations: int = 0
    steps: tuple[RunStep, ...] = ()
    children: tuple["RunJournal", ...] = ()

    def calls(self, tool: Tool[Any, Any] | str) -> list[RunStep]:
        """The steps that call a tool, of this run and not of its children."""
        name = tool if isinstance(tool, str) else tool.name
        return [step for step in self.steps if step.kind == Kind.CALL and step.name == name]

    def all_runs(self) -> "Iterator[RunJournal]":
        """This run, its children, and theirs."""
        yield self
        for child in self.children:
            yield from child.all_runs()

    def effects(self) -> "Iterator[RunStep]":
        """The effects of this run and of all runs below it."""
        for run in self.all_runs():
            yield from (step for step in run.steps if step.is_effect)


def run_journal(
    record: RunRecord, job: JobRecord, entries: Sequence[Entry], children: Sequence[RunJournal] = ()
) -> RunJournal:
    """The view of a run.

    Args:
        record: the run's record.
        job: what its ``job`` says.
        entries: all of its entries, with those before a checkpoint.
        children: views of its child runs.
    """
    succeeded = record.state is RunState.SUCCEEDED
    return RunJournal(
        run_id=record.id,
        custom_id=record.custom_id,
        agent=record.agent,
        version=record.pinned,
        state=record.state.value,
        reason=record.reason,
        tenant=job.tenant,
        grants=job.grants,
        metadata=dict(job.metadata),
        input=job.input,
        output=_plain(record.output) if succeeded else None,
        error=decode_error(record.error) if record.error and not succeeded else None,
        started_ms=record.started_ms,
        ended_ms=record.ended_ms,
        migrations=record.migrations,
        steps=steps_of(entries),
        children=tuple(children),
    )


def steps_of(entries: Sequence[Entry]) -> tuple[RunStep, ...]:
    """The steps that entries tell of, in the order of their paths."""
    last: dict[str, Entry] = {}
    intents: dict[str, IntentFacts] = {}
    for entry in entries:
        if entry.kind in _HIDDEN:
            continue
        if entry.kind == Kind.INTENT and entry.facts:
            intents[entry.step] = decode_intent_facts(entry.facts)
        last[entry.step] = entry
    return tuple(_step(last[path], intents.get(path)) for path in sorted(last, key=place_of))


def place_of(path: str) -> tuple[tuple[int, int], ...]:
    """Where a path stands among the others of its run, whatever ended first: checkpoints in order, the steps of a task
    before those of the tasks that it started, both in order.
    """
    place: list[tuple[int, int]] = []
    for part in path.partition("!")[0].split("."):
        rank = 0 if part.isdigit() else 2 if part[:1] == "c" else 1
        number = part.lstrip("bc")
        place.append((rank, int(number) if number.isdigit() else 0))
    if not path.startswith("c"):
        place.insert(0, (2, 0))
    return tuple(place)


def _step(entry: Entry, intent: IntentFacts | None) -> RunStep:
    is_call = entry.kind in (Kind.CALL, Kind.INTENT, Kind.RESOLUTION)
    ok, failed = entry.status == Status.OK, entry.status == Status.FAILED
    step = RunStep(
        path=entry.step,
        kind=Kind.CALL.value if is_call else entry.kind,
        name=entry.name,
        status=entry.status,
        result=_plain(entry.payload) if ok else None,
        error=decode_error(entry.payload) if failed else None,
        attempts=entry.attempts,
        started_ms=entry.started_ms,
        ended_ms=entry.ended_ms,
        arguments_digest=entry.digest.hex(),
    )
    if intent is None:
        return step
    arguments = msgspec.json.decode(intent.arguments)
    return RunStep(
        **{name: getattr(step, name) for name in _OF_EVERY_STEP},
        arguments=tuple(arguments) if isinstance(arguments, list) else None,
        risk=intent.risk,
        idempotency_key=intent.key,
        business_key=intent.business_key,
        identity=intent.identity,
        permission=dict(intent.permission),
        approval=intent.approval,
        undoes=intent.undoes,
        receipt=decode_receipt(entry.facts) if entry.facts and entry.kind == Kind.CALL else None,
    )


_OF_EVERY_STEP = (
    "path", "kind", "name", "status", "result", "error", "attempts", "started_ms", "ended_ms", "arguments_digest",
)  # fmt: skip


def _plain(raw: bytes) -> Any:
    if not raw:
        return None
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return f"({len(raw)} bytes that are no JSON)"
