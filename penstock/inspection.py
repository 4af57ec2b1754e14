"""Reading for people: listings, one run from all sides, the whole deployment."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from actors.approval_keys import keyring
from actors.job import decode_job
from actors.journal import Entry, Kind, Status, decode_entry
from cluster import approvals, queue_reader, reader
from cluster.keys import partition_of
from cluster.lifecycle import TERMINAL, RunState
from cluster.records import RunRecord
from cluster.store import Store
from penstock.approval_facts import ApprovalView
from penstock.approval_views import approval_view
from penstock.explain import HeldNote, WhyFacts, explain
from penstock.queue_place import QueuePlace, queue_place
from penstock.unknown import unknown_effects
from penstock.views import (
    DeploymentStatus,
    HostView,
    JournalStep,
    RunSummary,
    RunView,
    Why,
    batch_status,
    decoded,
    retry_after_of,
    run_error,
    summary_of,
)

OVER: Final = TERMINAL | {RunState.CONFIRMATION_UNKNOWN}


async def is_noted(store: Store, batch: str) -> bool:
    """Whether a submission under this key has begun, also when no run of it was made."""
    return await store.command(store.keys.batches, "ZSCORE", store.keys.batches, batch) is not None


async def batch_records(store: Store, batch: str) -> AsyncIterator[list[RunRecord]]:
    """A batch's records in pages; the next page is on its way while the caller uses one."""
    coming: asyncio.Task[list[RunRecord]] | None = None
    try:
        async for run_ids in reader.batch_run_ids(store, batch):
            arrived, coming = coming, asyncio.create_task(reader.records(store, run_ids))
            if arrived is not None:
                yield await arrived
        if coming is not None:
            last, coming = coming, None
            yield await last
    finally:
        if coming is not None:
            coming.cancel()


async def listing(store: Store, batch: str | None, state: RunState | None, limit: int) -> list[RunSummary]:
    """Summaries of some runs: of a batch in the order of submission in each partition, else the newest first."""
    if batch is not None:
        return [summary_of(record) for record in await _of_batch(store, batch, state, limit)]
    run_ids = list(dict.fromkeys(await reader.run_ids(store, state, limit)))
    found: list[RunSummary] = []
    for start in range(0, len(run_ids), reader.PAGE):
        page = await reader.records(store, run_ids[start : start + reader.PAGE])
        found.extend(summary_of(record) for record in page if state in (None, record.state))
    found.sort(key=lambda each: (each.accepted_ms, each.run_id), reverse=True)
    return found[:limit]


async def _of_batch(store: Store, batch: str, state: RunState | None, limit: int) -> list[RunRecord]:
    found: list[RunRecord] = []
    if state is not None:
        there_are = (await reader.batch_counts(store, batch)).by_state.get(state.value, 0)
        limit = min(limit, there_are)
    async for run_ids in reader.batch_run_ids(store, batch):
        if len(found) >= limit:
            break
        wanted = run_ids if state is None else await _in_state(store, run_ids, state)
        found += await reader.records(store, wanted[: limit - len(found)])
    return found


async def _in_state(store: Store, run_ids: list[str], state: RunState) -> list[str]:
    """Those that are in a state, without reading what they hold besides."""
    keys = [store.keys.run(run_id) for run_id in run_ids]
    states = await asyncio.gather(*(store.command(key, "HGET", key, "state") for key in keys))
    wanted = state.value.encode()
    return [run_id for run_id, found in zip(run_ids, states, strict=True) if found == wanted]


async def view(store: Store, record: RunRecord) -> RunView:
    """All of one run."""
    job = decode_job(record.job)
    entries, waits_for = await asyncio.gather(reader.journal(store, record.id), open_approvals(store, record))
    return RunView(
        run_id=record.id,
        custom_id=record.custom_id,
        batch=record.batch,
        agent=record.agent,
        agent_version=record.pinned,
        state=record.state.value,
        state_version=record.version,
        fence=record.fence,
        reason=record.reason,
        since_ms=record.since_ms,
        accepted_ms=record.accepted_ms,
        started_ms=record.started_ms,
        ended_ms=record.ended_ms,
        deadline_ms=record.deadline_ms,
        due_ms=record.due_ms,
        host=record.host,
        migrations=record.migrations,
        parent=record.parent,
        cancel_requested=record.cancel,
        value=job.value,
        tenant=job.tenant,
        grants=job.grants,
        metadata=job.metadata,
        input=job.input,
        output=decoded(record.output),
        error=run_error(record.error),
        root=job.root,
        forked_from=job.forked_from,
        forked_at=job.forked_at,
        forked_by=job.forked_by,
        forked_why=job.forked_why,
        inherited=job.inherited,
        may_cause_effects=not record.readonly,
        journal=[journal_step(decode_entry(raw)) for raw in entries],
        by=job.by,
        approvals=waits_for,
        retry_after_s=retry_after_of(record),
    )


async def why(store: Store, record: RunRecord) -> Why:
    """The explanation of where a run is."""
    run_key, journal_key = store.keys.run(record.id), store.keys.journal(record.id)
    waits_key = store.keys.waits(record.host)
    place, max_wait, last, length, registered, now_ms, notes, held, waits_for = await asyncio.gather(
        reader.place(store, record.id),
        store.command(run_key, "HGET", run_key, "max_wait"),
        store.command(journal_key, "LINDEX", journal_key, -1),
        store.command(journal_key, "LLEN", journal_key),
        hosts(store),
        store.server_ms(),
        store.command(store.keys.notes, "HGET", store.keys.notes, record.id),
        store.command(waits_key, "HGET", waits_key, record.id),
        open_approvals(store, record),
    )
    last_step = journal_step(decode_entry(last)) if last else None
    doubts = await unknown_effects(store, [record.id]) if record.state is RunState.CONFIRMATION_UNKNOWN else []
    facts = WhyFacts(
        now_ms=now_ms,
        max_wait_ms=int(max_wait) if max_wait else None,
        place=place,
        unserved=record.state is RunState.QUEUED and place is None,
        hosts={host.host: host for host in registered},
        last_step=last_step,
        steps=length,
        error=run_error(record.error),
        note="" if record.state in TERMINAL else _note(notes, now_ms),
        held=_held(held) if record.state is RunState.RUNNING else None,
        waits_for=_waits_for(last_step) if record.state is RunState.WAITING else "",
        approvals=tuple(waits_for),
        doubts=doubts,
        queue=await _queue_place(store, record, now_ms) if record.state is RunState.QUEUED else None,
    )
    return explain(record, facts)


async def _queue_place(store: Store, record: RunRecord, now_ms: int) -> QueuePlace | None:
    """Where a queued run is, by the law that its partition's door goes by."""
    standing, queue = await asyncio.gather(
        queue_reader.standing(store, record.id), queue_reader.partition_queue(store, partition_of(record.id))
    )
    return queue_place(standing, queue, record.agent, now_ms)


async def open_approvals(store: Store, record: RunRecord) -> list[ApprovalView]:
    """The approvals that a run waits for, the next one to expire first."""
    if record.state in TERMINAL:
        return []
    now_ms, ids = await asyncio.gather(store.server_ms(), approvals.of_run(store, record.id))
    keys = keyring(store.settings.approval_keys)
    found = [approval_view(each, keys, now_ms) for each in await approvals.records(store, ids)]
    return sorted((each for each in found if each.state == "pending"), key=lambda each: each.expires_ms)


async def hosts(store: Store) -> list[HostView]:
    """The registered hosts, by name."""
    found: list[HostView] = []
    for host, info in sorted((await store.hosts()).items()):
        left_s = info.pop("lease_left_ms") / 1000
        draining = bool(info.pop("draining"))
        found.append(HostView(host=host, alive=left_s > 0, lease_left_s=left_s, draining=draining, info=info))
    return found


async def deployment(store: Store, batches: int) -> DeploymentStatus:
    """Counters, hosts and the newest batches."""
    counts, registered, keys = await asyncio.gather(
        reader.deployment_counts(store), hosts(store), reader.batches(store, batches)
    )
    by_batch = await asyncio.gather(*(reader.batch_counts(store, key) for key in keys))
    return DeploymentStatus(
        name=store.settings.name,
        total=counts.total,
        by_state=counts.by_state,
        steps=counts.steps,
        migrations=counts.migrations,
        hosts=registered,
        batches=[batch_status(key, each) for key, each in zip(keys, by_batch, strict=True)],
    )


def journal_step(entry: Entry) -> JournalStep:
    """One journal entry for people."""
    return JournalStep(
        step=entry.step,
        kind=entry.kind,
        name=entry.name,
        status=entry.status,
        attempts=entry.attempts,
        started_ms=entry.started_ms,
        ended_ms=entry.ended_ms,
        arguments_digest=entry.digest.hex(),
        payload=_payload(entry.payload),
    )


def _payload(raw: bytes) -> Any:
    try:
        return decoded(raw)
    except msgspec.DecodeError:
        return f"({len(raw)} bytes that are no JSON)"


def _held(raw: bytes | None) -> HeldNote | None:
    try:
        return None if raw is None else msgspec.json.decode(raw, type=HeldNote)
    except msgspec.DecodeError:
        return None  # written by a host of another version


def _waits_for(step: JournalStep | None) -> str:
    """What an open call says that it waits for."""
    found = step.payload if step is not None and step.status == Status.OPEN and step.kind == Kind.CALL else None
    return str(found.get("why", "")) if isinstance(found, dict) else ""


def _note(raw: bytes | None, now_ms: int) -> str:
    """What a watchdog wrote of the run, in one line: the note itself, then its facts, without long ones."""
    if not raw:
        return ""
    try:
        note = json.loads(raw)
    except ValueError:
        return raw.decode(errors="replace")
    if not isinstance(note, dict):
        return str(note)
    facts: list[str] = []
    for name, value in note.items():
        if name == "at_ms" and isinstance(value, int | float):
            facts.append(f"{max(0, now_ms - value) / 1000:.1f} s ago")
        elif name == "stack":
            facts.append(f"in {' '.join(str(value).split()[-12:])}")
        elif name != "note":
            facts.append(f"{name} {value}")
    return f"{note.get('note', '')} ({', '.join(facts)})" if facts else str(note.get("note", ""))
