"""Runs with real journals, and forks of them, for tests of lineages: entries as engines write them."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from actors.core.forking import fork_point
from actors.job import JobRecord, decode_job, encode_job
from actors.journal import ENTRY_VERSION, Entry, Kind, Status, encode_entry, first_link, link_of, seal
from actors.receipts import IntentFacts, Receipt, encode_facts, encode_receipt
from cluster import lineage, reader
from cluster.keys import child_run_id, digest, fork_run_id
from cluster.records import Claim, NewFork, NewRun
from cluster.store import Store


def entry(
    kind: Kind, step: str, status: Status = Status.OK, payload: bytes = b"1", facts: bytes = b"", *, name: str = "pay"
) -> bytes:
    """One entry, not sealed yet."""
    return encode_entry(Entry(ENTRY_VERSION, kind, step, name, b"digest", status, payload, 1, 1, 2, facts))


def call(step: str, status: Status = Status.OK, *, applied: bool = False, name: str = "pay") -> bytes:
    facts = encode_receipt(Receipt("applied", evidence={"id": step})) if applied else b""
    return entry(Kind.CALL, step, status, facts=facts, name=name)


def intent(step: str, *, undoes: str = "", name: str = "pay") -> bytes:
    facts = encode_facts(IntentFacts(key="key", identity="identity", undoes=undoes))
    return entry(Kind.INTENT, step, Status.OPEN, b"", facts, name=name)


def effect(step: str, *, undoes: str = "") -> list[bytes]:
    """An effect that was applied."""
    return [intent(step, undoes=undoes), call(step, applied=True)]


def chained(first: bytes, entries: Iterable[bytes]) -> list[bytes]:
    link, sealed = first, []
    for raw in entries:
        sealed.append(seal(link, raw))
        link = link_of(sealed[-1])
    return sealed


def is_chained(first: bytes, entries: Iterable[bytes]) -> bool:
    given = list(entries)
    return chained(first, given) == given


def job(**fields: object) -> bytes:
    return encode_job(msgspec.structs.replace(JobRecord(1, {"text": "x"}), **fields))


def child_of(parent: Claim, step: str) -> NewRun:
    """A child run as engines make it: its custom_id is its lineage."""
    line = f"{lineage_of(parent)}/{step}"
    return NewRun(child_run_id(parent.id, step), line, "echo", 249, "d", job(root=line), "", "")


def lineage_of(claim: Claim) -> str:
    return decode_job(claim.job).root or claim.id


async def fork_of(store: Store, source: str, at: str, key: str, **fields: object) -> tuple[str, int | None]:
    """A fork as clients make it: its id, and what the store said."""
    record = await reader.record(store, source)
    assert record is not None
    point = fork_point(source, *await reader.history(store, source), at)
    known = decode_job(record.job)
    line = known.root or source
    run_id = fork_run_id(source, key)
    raw = encode_job(msgspec.structs.replace(known, root=line, forked_from=source, forked_at=at))
    sealed = point.sealed(first_link(run_id, raw))
    new = NewFork(
        source, run_id, record.agent, record.pinned, record.custom_id, 249, digest(source, at), raw, line, known.tenant,
        True, sealed.archive, sealed.journal,
    )._replace(**fields)  # type: ignore[arg-type]  # fmt: skip
    return run_id, await lineage.fork(store, new)
