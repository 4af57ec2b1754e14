"""Reading what the store knows: records, journals, counts and listings, for people and for clients."""

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any, Final, NamedTuple

from cluster.errors import StoreUnavailable
from cluster.keys import partition_of
from cluster.lifecycle import TERMINAL, RunState
from cluster.records import BatchCounts, RunRecord
from cluster.store import Store

PAGE: Final = 500
# Scores of one level in a queue (admission/values.py has the order).
_LEVEL_SPAN: Final = 2**43
_READINGS: Final = 50
_COUNTERS: Final = frozenset({"total", "steps", "migrations", "migrated_runs", "arrivals"})
_INDEX_OF_STATE: Final = {
    RunState.QUEUED: ("queue", "unserved"),
    RunState.WAITING: ("waiting",),
    RunState.CONFIRMATION_UNKNOWN: ("unknown",),
}
_ENDED_INDEX_OF: Final = {state: f"ended:{state}" for state in sorted(TERMINAL)}


async def record(store: Store, run_id: str) -> RunRecord | None:
    """One run's record, or None where the store knows no such run (any more).

    Raises:
        ValueError: the text is no run id, or names a partition that this deployment does not have.
    """
    if partition_of(run_id) not in store.partitions:
        raise ValueError(f"run {run_id!r} names a partition that this deployment does not have")
    key = store.keys.run(run_id)
    flat = await store.command(key, "HGETALL", key)
    return _record(run_id, flat) if flat else None


async def records(store: Store, run_ids: list[str]) -> list[RunRecord]:
    """Records of many runs, in that order; runs that have expired are left out."""
    keys = [store.keys.run(run_id) for run_id in run_ids]
    flats = await asyncio.gather(*(store.command(key, "HGETALL", key) for key in keys))
    return [_record(run_id, flat) for run_id, flat in zip(run_ids, flats, strict=True) if flat]


async def journal(store: Store, run_id: str) -> list[bytes]:
    """One run's journal entries, oldest first."""
    key = store.keys.journal(run_id)
    entries: list[bytes] = await store.command(key, "LRANGE", key, 0, -1)
    return entries


async def archive(store: Store, run_id: str) -> list[bytes]:
    """What a run's checkpoints have replaced, oldest first, where it had effects."""
    key = store.keys.archive(run_id)
    entries: list[bytes] = await store.command(key, "LRANGE", key, 0, -1)
    return entries


async def history(store: Store, run_id: str) -> tuple[list[bytes], list[bytes]]:
    """All that is kept of a run's past: what a checkpoint has moved to the archive, and the journal."""
    key = store.keys.archive(run_id)
    while True:
        length = await store.command(key, "LLEN", key)
        entries, archived = await journal(store, run_id), await archive(store, run_id)
        if len(archived) == length:
            return archived, entries
        # A checkpoint came in between: what it moved would be there twice, or not at all.


class Past(NamedTuple):
    """A run's record and all of its entries, oldest first: those that checkpoints have replaced, and the journal."""

    record: RunRecord
    archive: list[bytes]
    journal: list[bytes]


async def past(store: Store, run_id: str) -> Past | None:
    """Record, archive and journal of one run as they were at one moment; None where there is no such run.

    Raises:
        ValueError: as :func:`record` does.
        StoreUnavailable: the run changed faster than it could be read.
    """
    for _ in range(_READINGS):
        before = await record(store, run_id)
        if before is None:
            return None
        archived, entries = await history(store, run_id)
        after = await record(store, run_id)
        # The head that an owner leaves comes with a state version of its own.
        if after is not None and after.version == before.version:
            return Past(before, archived, entries)
    raise StoreUnavailable(f"run {run_id} changes faster than it can be read: ask again")


async def place(store: Store, run_id: str) -> int | None:
    """How many runs of its partition are before a queued run; None when it is not in the queue."""
    key = store.keys.queues[partition_of(run_id)]
    rank: int | None = await store.command(key, "ZRANK", key, run_id)
    return rank


async def best_levels(store: Store, partitions: list[int]) -> list[int | None]:
    """The level of the best run that is queued or set aside in each partition; None where there is none."""
    keys = [store.keys.of(partition, name) for partition in partitions for name in ("queue", "unserved")]
    found = await asyncio.gather(*(store.command(key, "ZRANGE", key, 0, 0, "WITHSCORES") for key in keys))
    levels = [math.inf if not first else float(first[1]) // _LEVEL_SPAN for first in found]
    best = [min(pair) for pair in zip(levels[::2], levels[1::2], strict=True)]
    return [None if level == math.inf else int(level) for level in best]


async def batch_counts(store: Store, batch: str) -> BatchCounts:
    """A batch's counters: one read a partition, whatever the batch's size."""
    return await _sum_counts(store, f"batch:{batch}")


async def deployment_counts(store: Store) -> BatchCounts:
    """Counters of the whole deployment (runs of all batches and child runs)."""
    return await _sum_counts(store, "counts")


async def _sum_counts(store: Store, what: str) -> BatchCounts:
    keys = [store.keys.of(partition, what) for partition in store.partitions]
    total: dict[str, int] = {}
    for flat in await asyncio.gather(*(store.command(key, "HGETALL", key) for key in keys)):
        for i in range(0, len(flat), 2):
            name = flat[i].decode()
            total[name] = total.get(name, 0) + int(flat[i + 1])
    by_state = {name: count for name, count in total.items() if name not in _COUNTERS and count}
    return BatchCounts(
        total=total.get("total", sum(by_state.values())),
        by_state=by_state,
        steps=total.get("steps", 0),
        migrations=total.get("migrations", 0),
        migrated_runs=total.get("migrated_runs", 0),
    )


async def batch_run_ids(store: Store, batch: str) -> AsyncIterator[list[str]]:
    """Pages of a batch's run ids, partition by partition, each in order of submission."""
    for partition in store.partitions:
        key = store.keys.of(partition, f"batch:{batch}:runs")
        start = 0
        while True:
            page = await store.command(key, "LRANGE", key, start, start + PAGE - 1)
            if page:
                yield [item.decode() for item in page]
            if len(page) < PAGE:
                break
            start += PAGE


async def run_ids(store: Store, state: RunState | None, limit: int) -> list[str]:
    """Run ids by state, the newest ends and the next ones of every partition; any state when None."""
    hosts = list(await store.hosts()) if state in (None, RunState.RUNNING) else []
    live = [name for known, names in _INDEX_OF_STATE.items() if state in (None, known) for name in names]
    ended = [name for known, name in _ENDED_INDEX_OF.items() if state in (None, known)]
    questions: list[tuple[str, str, tuple[int, ...]]] = [
        *(("ZRANGE", name, (0, limit - 1)) for name in live),
        *(("SRANDMEMBER", f"owned:{host}", (limit,)) for host in hosts),
        *(("ZREVRANGE", name, (0, limit - 1)) for name in ended),
    ]
    keyed = [(word, store.keys.of(part, name), rest) for part in store.partitions for word, name, rest in questions]
    found = await asyncio.gather(*(store.command(key, word, key, *rest) for word, key, rest in keyed))
    return [item.decode() for answer in found for item in answer]


async def batches(store: Store, limit: int = 50) -> list[str]:
    """The newest batches' ids."""
    key = store.keys.batches
    return [item.decode() for item in await store.command(key, "ZREVRANGE", key, 0, limit - 1)]


async def catalog(store: Store) -> dict[str, str]:
    """Agents that have been served here: name → JSON of version and input schema."""
    return await store.fields(store.keys.catalog)


def _record(run_id: str, flat: list[Any]) -> RunRecord:
    raw = {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}

    def text(name: str) -> str:
        return raw.get(name, b"").decode() if isinstance(raw.get(name, b""), bytes) else str(raw[name])

    def number(name: str) -> int | None:
        value = text(name)
        return int(value) if value else None

    return RunRecord(
        id=run_id,
        state=RunState(text("state")),
        version=number("version") or 0,
        fence=number("fence") or 0,
        agent=text("agent"),
        pinned=text("pinned"),
        batch=text("batch"),
        custom_id=text("custom_id"),
        job=raw.get("job", b""),
        reason=text("reason"),
        since_ms=number("since") or 0,
        accepted_ms=number("accepted_ms") or 0,
        started_ms=number("started_ms"),
        ended_ms=number("ended_ms"),
        deadline_ms=number("deadline"),
        due_ms=number("due"),
        host=text("host"),
        migrations=number("migrations") or 0,
        parent=text("parent"),
        cancel=text("cancel"),
        output=raw.get("output", b""),
        error=raw.get("error", b""),
        readonly="readonly" in raw,
        lineage=text("lineage"),
        inherited=number("inherited"),
        promoted=raw.get("promoted", b""),
        demoted=raw.get("demoted", b""),
        head=text("head"),
        end_seal=text("end_seal"),
        retry_after_ms=number("retry_after_ms"),
        by_itself=text("by_itself") == "1",
    )
