"""Reading what partitions know of their queues, for people; nothing is changed, and no controller is needed."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final, NamedTuple

from cluster.admission import statistics_of
from cluster.keys import partition_of
from cluster.reader import PAGE
from cluster.records import NewRun
from cluster.store import Store

_LEVEL_SPAN: Final = 2**43
_CLASS_SPAN: Final = 100 * _LEVEL_SPAN
"""Scores of one level and of one class in a queue (admission/values.py has the order)."""
_SHED_FIELDS: Final = (
    "state", "job", "ended_ms", "retry_after_ms", "by_itself",
    "custom_id", "agent", "order", "digest", "deadline", "max_wait", "pinned", "tenant",
)  # fmt: skip
_CLASSES: Final = 5


class PartitionQueue(NamedTuple):
    """One partition: its statistics as JSON-like data (``admission/queue_statistics.py`` has the names), all of its
    counters, and the policy that is in force there (JSON; empty where it has none).
    """

    statistics: dict[str, Any]
    counters: dict[str, str]
    policy: bytes


class Standing(NamedTuple):
    """Where a queued run is.

    Attributes:
        order: its place in the order of all; -1 where its record says none.
        place: how many runs of its partition go before it; None while it is set aside.
        before: those by class.
        tenant: its tenant.
    """

    order: int
    place: int | None
    before: tuple[int, ...]
    tenant: str


class ShedRun(NamedTuple):
    """A run that was shed, as it may be submitted again, and from when on (epoch ms; None where nobody should come back
    by itself).
    """

    run: NewRun
    back_ms: int | None


async def shed_runs(store: Store, batch: str, since_ms: int) -> AsyncIterator[ShedRun]:
    """Runs of a batch that were shed since a moment of the server's clock, and still are."""
    for partition in store.partitions:
        key, start = store.keys.of(partition, "ended:shed"), 0
        while True:
            page = await store.command(key, "ZRANGE", key, since_ms, "+inf", "BYSCORE", "LIMIT", start, PAGE)
            found = await asyncio.gather(*(_shed_run(store, item.decode(), batch) for item in page))
            for each in found:
                if each is not None:
                    yield each
            if len(page) < PAGE:
                break
            start += PAGE


async def _shed_run(store: Store, run_id: str, batch: str) -> ShedRun | None:
    """The run, if it is one of the batch; read a few fields first, since most may be of others."""
    key = store.keys.run(run_id)
    if await store.command(key, "HGET", key, "batch") != batch.encode():
        return None
    state, job, ended, after, by_itself, *texts = await store.command(key, "HMGET", key, *_SHED_FIELDS)
    if state != b"shed" or job is None:
        return None
    custom_id, agent, order, digest, deadline, max_wait, pinned, tenant = ((text or b"").decode() for text in texts)
    run = NewRun(
        run_id, custom_id, agent, int(float(order or 0)) // _LEVEL_SPAN, digest, job, deadline, max_wait, pinned, tenant
    )
    may = by_itself == b"1" and after is not None and int(after) >= 0
    return ShedRun(run, int(ended or 0) + int(after) if may else None)


async def partition_queue(store: Store, partition: int) -> PartitionQueue:
    """What one partition knows of its queue."""
    keys = store.keys
    load, held, admission = (keys.of(partition, what) for what in ("load", "held", "admission"))
    counters, paused, policy = await asyncio.gather(
        store.fields(load), store.fields(held), store.command(admission, "HMGET", admission, "policy", "v")
    )
    statistics = statistics_of(counters) | {"partition": partition, "held": paused, "v": int(policy[1] or 0)}
    return PartitionQueue(statistics, counters, policy[0] or b"")


async def partition_queues(store: Store) -> list[PartitionQueue]:
    """The same of all partitions."""
    return list(await asyncio.gather(*(partition_queue(store, partition) for partition in store.partitions)))


async def explanation(store: Store) -> bytes:
    """What the admission controller has said last (JSON); empty where none has ever said anything."""
    key = store.keys.admission
    return await store.command(key, "HGET", key, "explanation") or b""


async def standing(store: Store, run_id: str) -> Standing:
    """Where a queued run is."""
    partition = partition_of(run_id)
    run, queue = store.keys.run(run_id), store.keys.queues[partition]
    said, place = await asyncio.gather(
        store.command(run, "HMGET", run, "order", "tenant"), store.command(queue, "ZRANK", queue, run_id)
    )
    order = int(float(said[0])) if said[0] else -1
    rank = order // _CLASS_SPAN
    before = await asyncio.gather(
        *(
            store.command(queue, "ZCOUNT", queue, each * _CLASS_SPAN, f"({min(order, (each + 1) * _CLASS_SPAN)}")
            for each in range(_CLASSES)
            if each <= rank
        )
    )
    return Standing(order, place, tuple(before), (said[1] or b"").decode())
