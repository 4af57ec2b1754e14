"""What is known of a batch, from three witnesses: records and journals, counters and indices, the world outside."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from actors.core.identity import idempotency_key
from actors.job import decode_job
from actors.journal import Entry, Kind, Status, decode_entry
from cluster import reader
from cluster.keys import partition_of
from cluster.lifecycle import TERMINAL
from cluster.records import BatchCounts, RunRecord
from cluster.store import Store

_SORTED_INDICES: Final = ("queue", "unserved", "waiting", "unknown", *(f"ended:{state}" for state in sorted(TERMINAL)))


class WitnessedKey(Protocol):
    """What the world outside says of one idempotency key at one of its endpoints.

    ``order_id`` is what the requests were about: two effects that were applied to one thing at one endpoint are
    duplicates, also under different keys. None where the world does not say.
    """

    @property
    def endpoint(self) -> str: ...  # noqa: D102

    @property
    def idempotency_key(self) -> str: ...  # noqa: D102

    @property
    def order_id(self) -> str | None: ...  # noqa: D102

    @property
    def requests(self) -> int: ...  # noqa: D102

    @property
    def applied(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class RunHistory:
    """One run: its record, its journal, and the indices of its partition that it is in (``owned:HOST`` is one)."""

    record: RunRecord
    journal: tuple[Entry, ...]
    indices: tuple[str, ...]
    root: str = ""

    def key_of(self, entry: Entry) -> str:
        """The idempotency key under which a step's requests went out."""
        return idempotency_key(self.root or self.record.id, entry.step, entry.name, entry.digest)

    @property
    def compacted(self) -> bool:
        """Whether a checkpoint has replaced a part of the journal."""
        return any(entry.kind == Kind.CHECKPOINT for entry in self.journal)


@dataclass(frozen=True)
class BatchFacts:
    """All that is known of a batch.

    Args:
        batch: its key.
        listed: run ids as the batch lists them.
        runs: those runs, as far as they have records.
        children: runs that they spawned, and so on.
        counts: the batch's counters.
        ledger: what the world outside counted, or None where nobody asked it.
        accepted: the ``custom_id`` of every job that was acknowledged, or None where nobody kept them.
        exclusive: the ledger has seen this batch only, so that every effect in it must be in a journal.
        attempts_per_loss: attempts that an owner may have made of a step before it was lost: 1 in a world without
            faults, otherwise the tools' ``maximum_attempts``.
    """

    batch: str
    listed: tuple[str, ...]
    runs: tuple[RunHistory, ...]
    children: tuple[RunHistory, ...]
    counts: BatchCounts
    ledger: tuple[WitnessedKey, ...] | None = None
    accepted: frozenset[str] | None = None
    exclusive: bool = True
    attempts_per_loss: int = 1


async def read_facts(store: Store, batch: str) -> BatchFacts:
    """What the store knows of a batch. Read it once the batch has settled: it is no snapshot."""
    listed: list[str] = []
    runs: list[RunHistory] = []
    async for page in reader.batch_run_ids(store, batch):
        listed += page
        runs += await _histories(store, page)
    children: list[RunHistory] = []
    wanted = _spawned(runs)
    while wanted:
        found = await _histories(store, wanted)
        children += found
        wanted = _spawned(found)
    counts = await reader.batch_counts(store, batch)
    return BatchFacts(batch, tuple(listed), tuple(runs), tuple(children), counts)


def _spawned(runs: Iterable[RunHistory]) -> list[str]:
    """Children by the entries that opened them."""
    return [
        entry.payload.decode()
        for run in runs
        for entry in run.journal
        if entry.kind == Kind.CHILD and entry.status == Status.OPEN
    ]


async def _histories(store: Store, run_ids: list[str]) -> list[RunHistory]:
    records = await reader.records(store, list(dict.fromkeys(run_ids)))
    journals = await asyncio.gather(*(reader.journal(store, record.id) for record in records))
    indices = await _indices(store, records)
    return [
        RunHistory(record, tuple(map(decode_entry, raw)), tuple(indices[record.id]), decode_job(record.job).root)
        for record, raw in zip(records, journals, strict=True)
    ]


async def _indices(store: Store, records: list[RunRecord]) -> dict[str, list[str]]:
    """The indices that each run is in: one question an index, partition and page."""
    by_partition: dict[int, list[str]] = defaultdict(list)
    for record in records:
        by_partition[partition_of(record.id)].append(record.id)
    hosts = {record.host for record in records if record.host} | set(await store.hosts())
    found: dict[str, list[str]] = {record.id: [] for record in records}

    async def ask(partition: int, name: str, word: str, members: list[str]) -> None:
        key = store.keys.of(partition, name)
        for member, answer in zip(members, await store.command(key, word, key, *members), strict=True):
            if answer is not None and answer != 0:
                found[member].append(name)

    questions = [
        ask(partition, name, word, members)
        for partition, members in by_partition.items()
        for word, names in (("ZMSCORE", _SORTED_INDICES), ("SMISMEMBER", [f"owned:{host}" for host in sorted(hosts)]))
        for name in names
    ]
    await asyncio.gather(*questions)
    return found
