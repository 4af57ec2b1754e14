"""The history checker: what must be true of a batch once it has settled, whatever died meanwhile.

It compares three witnesses: the runs' records and journals, the store's counters and indices, and the ledger of the
world outside, which knows nothing of Penstock. :func:`judge` is pure: facts in, report out. :func:`check_batch` reads
the facts (:mod:`penstock.history_facts`) and judges them.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from actors.journal import Entry, Kind, Status, decode_error
from actors.receipts import decode_resolution
from cluster.lifecycle import TERMINAL, RunState
from cluster.store import Store
from penstock.history_facts import BatchFacts, RunHistory, WitnessedKey, read_facts

__all__ = ["BatchFacts", "HistoryReport", "RunHistory", "Violation", "WitnessedKey", "check_batch", "judge"]

_INDEX_OF: Final = {
    RunState.QUEUED: ("queue", "unserved"),
    RunState.WAITING: ("waiting",),
    RunState.CONFIRMATION_UNKNOWN: ("unknown",),
    **{state: (f"ended:{state}",) for state in TERMINAL},
}
_SETTLED: Final = TERMINAL | {RunState.CONFIRMATION_UNKNOWN}
# Errors of a step whose call was answered with success: the effect is in the world, only its result could not be used.
_ANSWERED: Final = frozenset({"InvalidValue", "PayloadTooLarge", "ResultUnknown"})
_FROM_AN_OWNER: Final = frozenset(
    {RunState.RUNNING, RunState.SUCCEEDED, RunState.FAILED, RunState.CONFIRMATION_UNKNOWN}
)
_FIRST_VERSION: Final = 2  # accepted, queued


@dataclass(frozen=True)
class Violation:
    """One thing that must not be. ``run`` and ``step`` are empty where it is about the batch."""

    run: str
    step: str
    text: str

    def __str__(self) -> str:
        """One line for people."""
        where = f"run {self.run}" if self.run else "batch"
        return f"{where}, step {self.step}: {self.text}" if self.step else f"{where}: {self.text}"


@dataclass(frozen=True)
class HistoryReport:
    """What the checker found.

    ``duplicate_effects`` and ``repeated_requests`` are counted from the ledger alone: effects applied beyond the
    first, and requests beyond the first of each key (both 0 without a ledger). A repeated request is no violation
    while a lost host or a retry explains it. ``unknown`` lists the runs whose effect nobody can prove.
    """

    batch: str
    runs: int
    children: int
    by_state: dict[str, int]
    steps: int
    effects: int
    migrations: int
    migrated_runs: int
    duplicate_effects: int
    repeated_requests: int
    unknown: tuple[str, ...]
    violations: tuple[Violation, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing is violated."""
        return not self.violations

    def __str__(self) -> str:
        """A few lines for people; at most twenty violations."""
        states = ", ".join(f"{count} {state}" for state, count in sorted(self.by_state.items()))
        lines = [
            f"batch {self.batch}: {self.runs} runs ({states}), {self.steps} steps, {self.effects} effects, "
            f"{self.migrations} migrations of {self.migrated_runs} runs, {self.repeated_requests} repeated requests, "
            f"{self.duplicate_effects} duplicate effects, {len(self.violations)} violations",
            *map(str, self.violations[:20]),
        ]
        return "\n".join(lines)


async def check_batch(
    store: Store,
    batch: str,
    ledger_keys: Iterable[WitnessedKey] | None = None,
    *,
    accepted: Collection[str] | None = None,
    exclusive: bool = True,
    attempts_per_loss: int = 1,
) -> HistoryReport:
    """Reads a batch that has settled and judges it; the arguments are those of :class:`BatchFacts`.

    Raises:
        StoreError: the store cannot be read.
    """
    facts = dataclasses.replace(
        await read_facts(store, batch),
        ledger=None if ledger_keys is None else tuple(ledger_keys),
        accepted=None if accepted is None else frozenset(accepted),
        exclusive=exclusive,
        attempts_per_loss=attempts_per_loss,
    )
    return judge(facts)


# ------------------------------------------------------------------------------------------------------- judging


def judge(facts: BatchFacts) -> HistoryReport:
    """States every invariant once and lists what breaks them. Pure."""
    everyone = (*facts.runs, *facts.children)
    by_key = _by_key(facts.ledger or ())
    effects = _effects(everyone, by_key)
    found = [*_acceptance(facts), *_counters(facts)]
    for run in everyone:
        found += (*_end(run), *_place(run), *_fences(run), *_journal(run, effects))
        if facts.ledger is not None:
            found += _witnessed(run, by_key, effects, facts.attempts_per_loss)
    duplicates = _duplicates(facts.ledger or ())
    found += (
        Violation("", "", f"{about} had {times} effects applied by {endpoint}: one is right")
        for (endpoint, about), times in duplicates.items()
    )
    if facts.ledger is not None and facts.exclusive:
        found += _unaccounted(everyone, facts.ledger)
    states = Counter(run.record.state for run in facts.runs)
    return HistoryReport(
        batch=facts.batch,
        runs=len(facts.runs),
        children=len(facts.children),
        by_state={state.value: count for state, count in states.items()},
        steps=facts.counts.steps,
        effects=sum(_is_effect(entry, effects) for run in everyone for entry in _finished(run)),
        migrations=sum(run.record.migrations for run in facts.runs),
        migrated_runs=sum(run.record.migrations > 0 for run in facts.runs),
        duplicate_effects=sum(times - 1 for times in duplicates.values()),
        repeated_requests=sum(max(0, key.requests - 1) for key in facts.ledger or ()),
        unknown=tuple(run.record.id for run in everyone if run.record.state is RunState.CONFIRMATION_UNKNOWN),
        violations=tuple(found),
    )


def _acceptance(facts: BatchFacts) -> Iterator[Violation]:
    """Every accepted job is one run, and nothing else is."""
    for run_id, times in Counter(facts.listed).items():
        if times > 1:
            yield Violation(run_id, "", f"the batch lists it {times} times")
    for run_id in set(facts.listed) - {run.record.id for run in facts.runs}:
        yield Violation(run_id, "", "the batch lists it, and it has no record")
    made = Counter(run.record.custom_id for run in facts.runs)
    for custom_id, times in made.items():
        if times > 1:
            yield Violation("", "", f"job {custom_id!r} has {times} runs")
    if facts.accepted is not None:
        for custom_id in sorted(facts.accepted - made.keys()):
            yield Violation("", "", f"job {custom_id!r} was accepted and has no run")
        for custom_id in sorted(made.keys() - facts.accepted):
            yield Violation("", "", f"job {custom_id!r} has a run and was never accepted")


def _counters(facts: BatchFacts) -> Iterator[Violation]:
    """The batch's counters say what a recount over its records and journals says."""
    states = Counter(run.record.state.value for run in facts.runs)
    counted = facts.counts
    pairs: list[tuple[str, object, object]] = [
        ("total", counted.total, len(facts.runs)),
        ("by_state", counted.by_state, dict(states)),
        ("migrations", counted.migrations, sum(run.record.migrations for run in facts.runs)),
        ("migrated_runs", counted.migrated_runs, sum(run.record.migrations > 0 for run in facts.runs)),
    ]
    if not any(run.compacted for run in facts.runs):
        steps = sum(_counts_as_step(entry) for run in facts.runs for entry in run.journal)
        pairs.append(("steps", counted.steps, steps))
    for name, said, recounted in pairs:
        if said != recounted:
            yield Violation("", "", f"the counter {name} says {said}, a recount says {recounted}")


def _counts_as_step(entry: Entry) -> bool:
    return entry.kind == Kind.TIMER or (entry.kind in (Kind.CALL, Kind.CHILD) and entry.status != Status.OPEN)


def _end(run: RunHistory) -> Iterator[Violation]:
    """The run is at exactly one end, or honestly unknown; no end hides an effect that nobody can prove."""
    state = run.record.state
    if state not in _SETTLED:
        yield Violation(run.record.id, "", f"it has not ended: {state.value} ({run.record.reason})")
    if (state in TERMINAL) != (run.record.ended_ms is not None):
        yield Violation(run.record.id, "", f"it is {state.value}, and its end is at {run.record.ended_ms}")
    if state in TERMINAL:
        for entry in _last(run):
            if entry.kind == Kind.INTENT:
                text = f"nobody can prove whether {entry.name} was applied, yet the run says {state.value}"
                yield Violation(run.record.id, entry.step, text)


def _place(run: RunHistory) -> Iterator[Violation]:
    """The run is in the one index that belongs to its state, and in no other."""
    record = run.record
    right = _INDEX_OF.get(record.state, (f"owned:{record.host}",))
    if len(run.indices) != 1 or run.indices[0] not in right:
        where = ", ".join(run.indices) or "none"
        yield Violation(record.id, "", f"it is {record.state.value} and in these indices: {where}; right: {right[0]}")


def _fences(run: RunHistory) -> Iterator[Violation]:
    """Each claim and each migration raises the fence by one, and each migration takes something from a claimant.
    Each of them, and each end, is also one transition and so one version.
    """
    record = run.record
    owned_at_end = record.state in _FROM_AN_OWNER
    if record.fence < 2 * record.migrations + owned_at_end:
        text = f"fence {record.fence} is too low for {record.migrations} migrations and {record.state.value}"
        yield Violation(record.id, "", text)
    least = _FIRST_VERSION + record.fence + (record.state in _SETTLED)
    if record.version < least:
        yield Violation(record.id, "", f"version {record.version} is below {least}, which fence {record.fence} implies")


def _journal(run: RunHistory, effects: frozenset[str]) -> Iterator[Violation]:
    """Every step is in the journal once, and an effect's intent is before its outcome."""
    seen: set[tuple[str, str]] = set()
    intended: set[str] = set()
    for entry in run.journal:
        if entry.kind == Kind.CHECKPOINT:
            continue  # its number is no step's path
        if entry.kind == Kind.CALL and entry.status == Status.OPEN:
            # It waits at a gate; an intent before it is taken back, since nothing was applied.
            seen.discard((entry.step, "open"))
            intended.discard(entry.step)
            continue
        if entry.kind == Kind.RESOLUTION:
            # A person's word about an intent. What did not happen is intended anew, or has failed.
            seen.discard((entry.step, "open"))
            if not _says_applied(entry):
                intended.discard(entry.step)
            continue
        same = "open" if entry.status == Status.OPEN else "finished"
        if (entry.step, same) in seen:
            yield Violation(run.record.id, entry.step, f"{entry.kind} {entry.name} is in the journal twice as {same}")
        seen.add((entry.step, same))
        if entry.kind == Kind.INTENT:
            intended.add(entry.step)
        elif _is_effect(entry, effects) and entry.attempts and entry.step not in intended:
            yield Violation(run.record.id, entry.step, f"effect {entry.name} was finished without an intent before it")


def _witnessed(
    run: RunHistory, by_key: dict[str, list[WitnessedKey]], effects: frozenset[str], attempts_per_loss: int
) -> Iterator[Violation]:
    """The journal and the ledger agree: on what was applied, and on how often it was asked for."""
    record = run.record
    for entry in _finished(run):
        witnesses = by_key.get(run.key_of(entry), [])
        requests = sum(witness.requests for witness in witnesses)
        earlier = sum(each.attempts for each in run.journal if each.step == entry.step and _is_earlier(each))
        bound = entry.attempts + earlier + record.migrations * attempts_per_loss
        if requests > bound:
            text = (
                f"{entry.name} was requested {requests} times; {entry.attempts} attempts and {record.migrations} "
                f"migrations explain {bound}"
            )
            yield Violation(record.id, entry.step, text)
        if not _is_effect(entry, effects):
            continue
        applied = sum(witness.applied for witness in witnesses)
        right = _happened(entry)
        if applied != right:
            says = "happened" if right else "never happened"
            yield Violation(record.id, entry.step, f"the run says that {entry.name} {says}; applied {applied} times")
    for entry in _last(run):
        applied = sum(witness.applied for witness in by_key.get(run.key_of(entry), ()))
        if entry.kind == Kind.CALL and entry.status == Status.OPEN and applied:
            text = f"the run says that nothing of {entry.name} was under way any more; applied {applied} times"
            yield Violation(record.id, entry.step, text)


def _last(run: RunHistory) -> Iterable[Entry]:
    """The last entry of each step: it closes those before it, also an intent that was taken back."""
    return {entry.step: entry for entry in run.journal if entry.kind != Kind.CHECKPOINT}.values()


def _happened(entry: Entry) -> bool:
    """Whether a finished effect says that the world was changed."""
    return entry.status == Status.OK or decode_error(entry.payload).error_class in _ANSWERED


def _says_applied(entry: Entry) -> bool:
    return entry.kind == Kind.RESOLUTION and decode_resolution(entry.payload).applied


def _is_earlier(entry: Entry) -> bool:
    """Whether an entry tells of calls that its step's end does not count."""
    return entry.status == Status.OPEN or (entry.kind == Kind.RESOLUTION and not _says_applied(entry))


def _duplicates(ledger: Iterable[WitnessedKey]) -> dict[tuple[str, str], int]:
    """Endpoint and thing → effects applied, where there are more than one."""
    applied: Counter[tuple[str, str]] = Counter()
    for key in ledger:
        applied[key.endpoint, key.order_id or key.idempotency_key] += key.applied
    return {thing: times for thing, times in applied.items() if times > 1}


def _unaccounted(runs: Sequence[RunHistory], ledger: Iterable[WitnessedKey]) -> Iterator[Violation]:
    """Nothing was applied of which no journal knows. Journals that a checkpoint has cut cannot tell."""
    if any(run.compacted for run in runs):
        return
    known = {run.key_of(entry) for run in runs for entry in run.journal if entry.kind in (Kind.INTENT, Kind.CALL)}
    for key in ledger:
        if key.applied and key.idempotency_key not in known:
            about = f" (about {key.order_id})" if key.order_id else ""
            yield Violation("", "", f"{key.endpoint} applied {key.idempotency_key}{about}, which is in no journal")


def _by_key(ledger: Iterable[WitnessedKey]) -> dict[str, list[WitnessedKey]]:
    by_key: dict[str, list[WitnessedKey]] = defaultdict(list)
    for key in ledger:
        by_key[key.idempotency_key].append(key)
    return dict(by_key)


def _effects(runs: Iterable[RunHistory], by_key: dict[str, list[WitnessedKey]]) -> frozenset[str]:
    """Names of the tools that change the world: some run has an intent of them, or the world says so."""
    return frozenset(
        entry.name
        for run in runs
        for entry in run.journal
        if entry.kind == Kind.INTENT
        or (entry.kind == Kind.CALL and any(witness.applied for witness in by_key.get(run.key_of(entry), ())))
    )


def _is_effect(entry: Entry, effects: frozenset[str]) -> bool:
    return entry.kind == Kind.CALL and entry.status != Status.OPEN and entry.name in effects


def _finished(run: RunHistory) -> Iterator[Entry]:
    """Finished tool calls."""
    return (entry for entry in run.journal if entry.kind == Kind.CALL and entry.status != Status.OPEN)
