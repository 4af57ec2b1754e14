"""The history checker finds what it is there to find: every invariant is broken once, on paper and in a real store."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import SecretStr

from actors.core.identity import idempotency_key
from actors.job import Job, new_run
from actors.journal import ENTRY_VERSION, Entry, Kind, Status, encode_entry, encode_error
from cluster.config import Settings
from cluster.keys import child_run_id, job_run_id, partition_of
from cluster.lifecycle import RunState
from cluster.records import Append, BatchCounts, Finish, Made, RunRecord
from cluster.store import Store
from penstock.history import BatchFacts, RunHistory, check_batch, judge


@dataclass(frozen=True)
class Key:
    """A line of a ledger."""

    endpoint: str
    idempotency_key: str
    order_id: str | None
    requests: int
    applied: int


def entry(step: str, kind: Kind, name: str, status: Status = Status.OK, **more: Any) -> Entry:
    fields: dict[str, Any] = {"payload": b'"done"', "attempts": 1, "digest": name.encode(), **more}
    return Entry(
        ENTRY_VERSION, kind, step, name, fields["digest"], status, fields["payload"], fields["attempts"], 10, 20
    )


JOURNAL = (
    entry("0", Kind.CALL, "read"),
    entry("1", Kind.INTENT, "pay", Status.OPEN, payload=b"", attempts=0),
    entry("1", Kind.CALL, "pay"),
)
ACCEPTED = frozenset({"calm", "moved"})
CALM, MOVED = (job_run_id("batch:b", custom_id, 8) for custom_id in ("calm", "moved"))


def record(run_id: str, custom_id: str, **more: Any) -> RunRecord:
    fields: dict[str, Any] = {
        "state": RunState.SUCCEEDED, "version": 4, "fence": 1, "agent": "a", "pinned": "1", "batch": "b", "job": b"",
        "reason": "", "since_ms": 30, "accepted_ms": 1, "started_ms": 2, "ended_ms": 30, "deadline_ms": None,
        "due_ms": None, "host": "h~1", "migrations": 0, "parent": "", "cancel": "", "output": b"{}", "error": b"",
    }  # fmt: skip
    return RunRecord(id=run_id, custom_id=custom_id, **{**fields, **more})


def key_of(run_id: str, step: Entry) -> str:
    return idempotency_key(run_id, step.step, step.name, step.digest)


def good() -> BatchFacts:
    """Two runs: one without a fault, one that moved once, after the world had been asked to pay."""
    calm = RunHistory(record(CALM, "calm"), JOURNAL, ("ended:succeeded",))
    moved = RunHistory(record(MOVED, "moved", fence=3, version=6, migrations=1), JOURNAL, ("ended:succeeded",))
    ledger = (
        Key("orders", key_of(CALM, JOURNAL[0]), "O-1", 1, 0),
        Key("refunds", key_of(CALM, JOURNAL[2]), "O-1", 1, 1),
        Key("orders", key_of(MOVED, JOURNAL[0]), "O-2", 1, 0),
        Key("refunds", key_of(MOVED, JOURNAL[2]), "O-2", 2, 1),
    )
    counts = BatchCounts(total=2, by_state={"succeeded": 2}, steps=4, migrations=1, migrated_runs=1)
    return BatchFacts("b", (CALM, MOVED), (calm, moved), (), counts, ledger, ACCEPTED)


def change_run(facts: BatchFacts, **changes: Any) -> BatchFacts:
    """Changes the first run: fields of its history, or of its record."""
    run = facts.runs[0]
    of_history = {name: changes.pop(name) for name in ("journal", "indices", "root") if name in changes}
    changed = dataclasses.replace(run, record=dataclasses.replace(run.record, **changes), **of_history)
    return dataclasses.replace(facts, runs=(changed, *facts.runs[1:]))


def change_counts(facts: BatchFacts, **changes: Any) -> BatchFacts:
    return dataclasses.replace(facts, counts=dataclasses.replace(facts.counts, **changes))


def change_ledger(facts: BatchFacts, line: int, **changes: Any) -> BatchFacts:
    ledger: list[Any] = list(facts.ledger or ())
    ledger[line] = dataclasses.replace(ledger[line], **changes)
    return dataclasses.replace(facts, ledger=tuple(ledger))


def test_what_is_right_holds() -> None:
    report = judge(good())
    assert report.violations == ()
    assert report.holds
    assert report.by_state == {"succeeded": 2}
    assert (report.runs, report.steps, report.effects) == (2, 4, 2)
    assert (report.migrations, report.migrated_runs) == (1, 1)
    assert (report.duplicate_effects, report.repeated_requests) == (0, 1)
    assert "2 runs (2 succeeded), 4 steps, 2 effects, 1 migrations of 1 runs" in str(report)


def test_without_a_ledger_the_rest_is_judged() -> None:
    report = judge(dataclasses.replace(good(), ledger=None))
    assert report.holds
    assert (report.duplicate_effects, report.repeated_requests) == (0, 0)
    assert not judge(change_run(dataclasses.replace(good(), ledger=None), indices=())).holds


def test_what_people_said_is_part_of_the_history() -> None:
    facts = change_ledger(change_run(good(), journal=SAID, version=8, fence=3), 1, requests=2)
    report = judge(facts)
    assert report.violations == ()
    unpaid = change_ledger(change_run(good(), journal=(*DENIED, NOT_PAID)), 1, applied=0)
    assert judge(unpaid).violations == ()
    unsure = entry("1", Kind.CALL, "pay", Status.FAILED, payload=encode_error("ResultUnknown", "no result", "1"))
    assert judge(change_run(good(), journal=(*SAID[:-1], unsure))).holds
    # Two intents explain two requests, and not a third one.
    assert not judge(change_ledger(facts, 1, requests=3)).holds


FAILED_PAY = entry("1", Kind.CALL, "pay", Status.FAILED, payload=encode_error("Rejected", "no", "1"))
BAD_RESULT = entry("1", Kind.CALL, "pay", Status.FAILED, payload=encode_error("InvalidValue", "odd", "1"))

NOT_PAID = entry("1", Kind.CALL, "pay", Status.FAILED, payload=encode_error("GateTimeout", "late", "1"), attempts=0)
# What people said of an intent: that it had not happened, and, of the one that followed, that it had.
DENIED = (*JOURNAL[:2], entry("1", Kind.RESOLUTION, "pay", payload=b'{"applied":false,"by":"ann"}'))
SAID = (*DENIED, JOURNAL[1], entry("1", Kind.RESOLUTION, "pay", payload=b'{"applied":true,"by":"bob"}'), JOURNAL[2])

BROKEN: list[tuple[str, Callable[[BatchFacts], BatchFacts]]] = [
    ("has not ended: running", lambda f: change_run(f, state=RunState.RUNNING, indices=("owned:h~1",), ended_ms=None)),
    ("succeeded, and its end is at None", lambda f: change_run(f, ended_ms=None)),
    ("the batch lists it 2 times", lambda f: dataclasses.replace(f, listed=(CALM, *f.listed))),
    ("lists it, and it has no record", lambda f: dataclasses.replace(f, listed=(*f.listed, CALM[:-1] + "x"))),
    ("job 'moved' has 2 runs", lambda f: change_run(f, custom_id="moved")),
    ("job 'lost' was accepted and has no run", lambda f: dataclasses.replace(f, accepted=ACCEPTED | {"lost"})),
    ("job 'calm' has a run and was never accepted", lambda f: dataclasses.replace(f, accepted=frozenset({"moved"}))),
    ("counter total says 3, a recount says 2", lambda f: change_counts(f, total=3)),
    ("counter by_state", lambda f: change_counts(f, by_state={"succeeded": 1, "failed": 1})),
    ("counter steps says 5, a recount says 4", lambda f: change_counts(f, steps=5)),
    ("counter migrations says 0", lambda f: change_counts(f, migrations=0)),
    ("counter migrated_runs says 2", lambda f: change_counts(f, migrated_runs=2)),
    ("in these indices: ended:succeeded, owned:h~1", lambda f: change_run(f, indices=("ended:succeeded", "owned:h~1"))),
    ("in these indices: none", lambda f: change_run(f, indices=())),
    ("in these indices: queue; right: ended", lambda f: change_run(f, indices=("queue",))),
    ("fence 0 is too low", lambda f: change_run(f, fence=0)),
    ("fence 2 is too low for 1 migrations", lambda f: change_run(f, fence=2, version=9, migrations=1)),
    ("version 3 is below 4", lambda f: change_run(f, version=3)),
    ("call read is in the journal twice as finished", lambda f: change_run(f, journal=(*JOURNAL, JOURNAL[0]))),
    ("call pay is in the journal twice as finished", lambda f: change_run(f, journal=(*SAID, SAID[-1]))),
    ("intent pay is in the journal twice as open", lambda f: change_run(f, journal=(*SAID[:4], *SAID[3:]))),
    ("effect pay was finished without an intent", lambda f: change_run(f, journal=(*DENIED, SAID[-1]))),
    ("says that pay never happened; applied 1 times", lambda f: change_run(f, journal=(*DENIED, NOT_PAID))),
    ("intent pay is in the journal twice as open", lambda f: change_run(f, journal=(JOURNAL[1], *JOURNAL))),
    ("effect pay was finished without an intent", lambda f: change_run(f, journal=(JOURNAL[0], JOURNAL[2]))),
    ("finished without an intent", lambda f: change_run(f, journal=(JOURNAL[0], JOURNAL[2], JOURNAL[1]))),
    ("fence 0 is too low for 0 migrations and failed", lambda f: change_run(f, state=RunState.FAILED, fence=0)),
    ("nobody can prove whether pay was applied", lambda f: change_run(f, journal=JOURNAL[:2], state=RunState.FAILED)),
    ("pay happened; applied 0 times", lambda f: change_ledger(f, 1, applied=0)),
    ("pay happened; applied 2 times", lambda f: change_ledger(f, 1, applied=2)),
    ("pay never happened; applied 1 times", lambda f: change_run(f, journal=(*JOURNAL[:2], FAILED_PAY))),
    ("read was requested 2 times; 1 attempts and 0 migrations explain 1", lambda f: change_ledger(f, 0, requests=2)),
    ("pay was requested 3 times; 1 attempts and 1 migrations explain 2", lambda f: change_ledger(f, 3, requests=3)),
    ("O-1 had 2 effects applied by refunds", lambda f: change_ledger(f, 3, order_id="O-1")),
    ("O-1 had 2 effects applied by refunds", lambda f: change_ledger(f, 1, applied=2)),
    ("(about O-1), which is in no journal", lambda f: change_ledger(f, 1, idempotency_key="stray")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "tamper"), BROKEN, ids=[f"{number}-{text}" for number, (text, _) in enumerate(BROKEN)]
)
def test_what_is_wrong_is_found(text: str, tamper: Callable[[BatchFacts], BatchFacts]) -> None:
    report = judge(tamper(good()))
    assert any(text in str(violation) for violation in report.violations), str(report)
    assert text in str(report)


def test_a_duplicate_is_counted() -> None:
    assert judge(change_ledger(good(), 3, order_id="O-1")).duplicate_effects == 1
    assert judge(change_ledger(good(), 1, applied=3)).duplicate_effects == 2


def test_an_answer_that_cannot_be_used_is_still_an_effect() -> None:
    assert judge(change_run(good(), journal=(*JOURNAL[:2], BAD_RESULT))).holds


WAITED = entry("1", Kind.CALL, "pay", Status.OPEN, payload=b"{}", attempts=0)
TAKEN_BACK = entry("1", Kind.CALL, "pay", Status.OPEN, payload=b"{}", attempts=1)


def test_a_call_that_waited_at_a_gate_before_its_intent_is_right() -> None:
    assert judge(change_run(good(), journal=(JOURNAL[0], WAITED, *JOURNAL[1:]))).holds


def test_an_intent_that_was_taken_back_and_made_again_is_right_and_its_attempts_count() -> None:
    facts = change_run(good(), journal=(*JOURNAL[:2], TAKEN_BACK, *JOURNAL[1:]))
    assert judge(facts).holds
    assert judge(change_ledger(facts, 1, requests=2)).holds
    assert not judge(change_ledger(facts, 1, requests=3)).holds


def test_an_intent_that_was_taken_back_proves_that_nothing_happened() -> None:
    journal = (*JOURNAL[:2], TAKEN_BACK)
    facts = change_run(good(), journal=journal, state=RunState.CANCELLED, indices=("ended:cancelled",))
    facts = change_counts(facts, by_state={"succeeded": 1, "cancelled": 1}, steps=3)
    report = judge(change_ledger(facts, 1, requests=1, applied=0))
    assert report.holds, str(report)


def test_an_intent_that_was_taken_back_and_was_applied_is_found() -> None:
    journal = (*JOURNAL[:2], TAKEN_BACK)
    facts = change_run(good(), journal=journal, state=RunState.CANCELLED, indices=("ended:cancelled",))
    facts = change_counts(facts, by_state={"succeeded": 1, "cancelled": 1}, steps=3)
    assert not judge(change_ledger(facts, 1, requests=1, applied=1)).holds


def test_an_effect_that_is_finished_after_its_intent_was_taken_back_needs_another_one() -> None:
    journal = (*JOURNAL[:2], TAKEN_BACK, JOURNAL[2])
    assert not judge(change_run(good(), journal=journal)).holds


def test_unknown_is_honest_and_listed() -> None:
    facts = change_run(
        good(), state=RunState.CONFIRMATION_UNKNOWN, journal=JOURNAL[:2], indices=("unknown",), ended_ms=None
    )
    facts = change_counts(facts, by_state={"succeeded": 1, "confirmation_unknown": 1}, steps=3)
    for applied in (0, 1):
        report = judge(change_ledger(facts, 1, applied=applied))
        assert report.holds, str(report)
        assert report.unknown == (CALM,)


def test_more_attempts_of_a_lost_owner_are_allowed_where_the_world_has_faults() -> None:
    facts = change_ledger(good(), 3, requests=9)
    assert not judge(facts).holds
    assert judge(dataclasses.replace(facts, attempts_per_loss=8)).holds


def test_a_ledger_that_saw_others_too() -> None:
    facts = good()
    facts = dataclasses.replace(facts, ledger=(*(facts.ledger or ()), Key("refunds", "others", "O-9", 1, 1)))
    assert not judge(facts).holds
    assert judge(dataclasses.replace(facts, exclusive=False)).holds


def test_a_journal_that_a_checkpoint_has_cut_does_not_accuse() -> None:
    journal = (entry("1", Kind.CHECKPOINT, "checkpoint"), *JOURNAL[1:])
    facts = change_counts(change_run(good(), journal=journal), steps=99)
    assert judge(facts).holds


def test_a_child_has_its_parents_keys_and_is_not_counted_in_the_batch() -> None:
    child_id = child_run_id(CALM, "2")
    child = RunHistory(record(child_id, "child", batch="", parent=CALM), JOURNAL, ("ended:succeeded",), root=CALM)
    facts = dataclasses.replace(good(), children=(child,))
    report = judge(facts)
    assert (report.holds, report.runs, report.children, report.effects) == (True, 2, 1, 3)
    assert not judge(dataclasses.replace(facts, children=(dataclasses.replace(child, root=""),))).holds


# ------------------------------------------------------------------------------------------------- in a real store


async def finished_batch(store: Store) -> tuple[list[str], list[Key]]:
    """Three runs worked by hand, one of them after its first host was lost; their ids and the ledger."""
    jobs = [Job(custom_id=f"c{number}", agent="a") for number in range(3)]
    runs = {run.id: run for run in (new_run(job, "b", store.keys.partitions) for job in jobs)}
    for run in runs.values():
        assert (await store.submit("b", partition_of(run.id), [run]))[0].made is Made.MADE
    lost = partition_of(next(iter(runs)))
    claimed = await store.claim(lost, "h~1", 1, ["a", "1"])
    assert claimed is not None
    assert await store.reap(lost, "h~1") == 1
    for partition in store.partitions:
        answer = await store.claim(partition, "h~2", 10, ["a", "1"])
        assert answer is not None
        for claim in answer[1]:
            entries = [encode_entry(each) for each in JOURNAL]
            assert await store.append(partition, [Append(claim.id, claim.fence, 0, 2, entries)]) == {}
            end = Finish(claim.id, claim.fence, RunState.SUCCEEDED, "", b"{}", b"")
            assert await store.finish(partition, "h~2", [end]) == {}
    ledger = [Key("refunds", key_of(run_id, JOURNAL[2]), f"O-{run_id}", 1, 1) for run_id in runs]
    return list(runs), ledger


async def test_a_batch_in_a_real_store(redis_url: str) -> None:
    store = await Store.open(Settings(name=f"history-{uuid.uuid4().hex[:8]}", redis_url=SecretStr(redis_url)))
    try:
        run_ids, ledger = await finished_batch(store)
        report = await check_batch(store, "b", ledger, accepted=["c0", "c1", "c2"])
        assert report.holds, str(report)
        assert (report.runs, report.effects, report.migrations) == (3, 3, 1)

        run_id = run_ids[0]
        partition = partition_of(run_id)
        owned, counts = store.keys.of(partition, "owned:h~2"), store.keys.of(partition, "batch:b")
        await store.command(owned, "SADD", owned, run_id)
        await store.command(counts, "HINCRBY", counts, "steps", 1)
        journal = store.keys.journal(run_id)
        await store.command(journal, "RPUSH", journal, encode_entry(JOURNAL[0]))
        await store.command(store.keys.run(run_id), "HSET", store.keys.run(run_id), "fence", 0)
        report = await check_batch(store, "b", [*ledger[1:], ledger[2]])
        texts = "\n".join(map(str, report.violations))
        for text in ("owned:h~2", "journal twice", "fence 0 is too low", "applied 0 times", "applied 2 times"):
            assert text in texts
        assert report.duplicate_effects == 1
    finally:
        await store.close()


async def test_an_unknown_batch_is_empty_and_loses_nothing_but_what_was_accepted(redis_url: str) -> None:
    store = await Store.open(Settings(name=f"history-{uuid.uuid4().hex[:8]}", redis_url=SecretStr(redis_url)))
    try:
        assert (await check_batch(store, "none")).holds
        assert not (await check_batch(store, "none", accepted=["c0"])).holds
    finally:
        await store.close()
