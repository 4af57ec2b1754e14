"""The store's side of approvals: who asks, who decides, who uses. Requests, decisions and uses are bytes here: what is
signed in them is not this room's to judge, and the state that a record says is believed by nobody without them.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from cluster import scripts
from cluster.keys import partition_of, partition_of_approval
from cluster.store import Store

MOST: Final = 1000
_BY: Final = "by:"


class Asked(NamedTuple):
    """What a run learns of its approval: ``word`` is its state, or ``STALE`` or ``CANCEL``."""

    word: str
    now_ms: int = 0
    use: bytes = b""
    decisions: tuple[bytes, ...] = ()


class Used(NamedTuple):
    """What became of a use; ``use`` is the one that counts. ``approval_use.lua`` has the words."""

    word: str
    use: bytes


@dataclass(frozen=True)
class ApprovalRecord:
    """An approval as the store has it. ``closed_ms`` is when nobody could decide it any more."""

    id: str
    state: str
    run: str
    tool: str
    request: bytes
    decisions: tuple[bytes, ...]
    use: bytes
    expires_ms: int
    closed_ms: int | None


async def ask(
    store: Store, approval_id: str, run_id: str, fence: int, *, expires_ms: int, tool: str, request: bytes
) -> Asked:
    """Makes a run's approval, or looks at it."""
    answer = await store.call(
        scripts.APPROVAL_ASK, partition_of(run_id), approval_id, run_id, fence, expires_ms, tool, request
    )
    if isinstance(answer, bytes):
        return Asked(answer.decode())
    state, now_ms, use, *decisions = answer
    return Asked(state.decode(), now_ms, use, tuple(decisions))


async def decide(store: Store, approval_id: str, approver: str, decision: bytes, *, seen: int, becomes: str) -> str:
    """Keeps a decision; the words of ``approval_decide.lua``."""
    partition = partition_of_approval(approval_id)
    answer = await store.call(scripts.APPROVAL_DECIDE, partition, approval_id, approver, decision, seen, becomes)
    return str(answer.decode())


async def use(store: Store, approval_id: str, run_id: str, fence: int, use: bytes) -> Used:
    """Uses an approval."""
    word, kept = await store.call(scripts.APPROVAL_USE, partition_of(run_id), approval_id, run_id, fence, use)
    return Used(word.decode(), kept)


async def record(store: Store, approval_id: str) -> ApprovalRecord | None:
    """One approval, or None where there is none (any more).

    Raises:
        ValueError: the text is no approval's id, or names a partition that this deployment does not have.
    """
    if partition_of_approval(approval_id) not in store.partitions:
        raise ValueError(f"approval {approval_id!r} names a partition that this deployment does not have")
    key = store.keys.approval(approval_id)
    flat = await store.command(key, "HGETALL", key)
    return _record(approval_id, flat) if flat else None


async def records(store: Store, approval_ids: Iterable[str]) -> list[ApprovalRecord]:
    """Many of them, in that order; those that are gone are left out."""
    found = await asyncio.gather(*(record(store, each) for each in approval_ids))
    return [each for each in found if each is not None]


async def pending(store: Store, most: int = MOST) -> list[str]:
    """Ids of those that can be decided, the next ones to expire first in each partition."""
    return await _ids(store, "approvals", "ZRANGE", most)


async def closed(store: Store, most: int = MOST) -> list[str]:
    """Ids of those that cannot be decided any more, the last ones first in each partition."""
    return await _ids(store, "decided", "ZREVRANGE", most)


async def decided_before(store: Store, tool: str, most: int = 20) -> list[str]:
    """Ids of those of one tool that people have decided on, the last ones first in each partition."""
    return await _ids(store, f"decided:{tool}", "ZREVRANGE", most)


async def of_run(store: Store, run_id: str) -> list[str]:
    """Ids of a run's approvals."""
    key = store.keys.of(partition_of(run_id), f"approvals:{run_id}")
    return sorted(each.decode() for each in await store.command(key, "SMEMBERS", key))


async def _ids(store: Store, what: str, word: str, most: int) -> list[str]:
    keys = [store.keys.of(partition, what) for partition in store.partitions]
    found = await asyncio.gather(*(store.command(key, word, key, 0, most - 1) for key in keys))
    return [each.decode() for page in found for each in page]


def _record(approval_id: str, flat: list[bytes]) -> ApprovalRecord:
    raw = {flat[i].decode(errors="replace"): flat[i + 1] for i in range(0, len(flat), 2)}
    closed_ms = raw.get("closed")
    return ApprovalRecord(
        id=approval_id,
        state=raw.get("state", b"").decode(errors="replace"),
        run=raw.get("run", b"").decode(errors="replace"),
        tool=raw.get("tool", b"").decode(errors="replace"),
        request=raw.get("request", b""),
        decisions=tuple(value for name, value in raw.items() if name.startswith(_BY)),
        use=raw.get("use", b""),
        expires_ms=int(raw.get("expires", b"0")),
        closed_ms=int(closed_ms) if closed_ms else None,
    )
