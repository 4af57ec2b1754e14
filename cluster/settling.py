"""Runs whose effect nobody could prove: which there are, and the one call that lets such a run go on."""

import uuid
from collections.abc import AsyncIterator

from cluster import scripts
from cluster.keys import digest, partition_of
from cluster.reader import PAGE
from cluster.store import Store


async def unknown_run_ids(store: Store) -> AsyncIterator[list[str]]:
    """Pages of the runs in ``confirmation_unknown``, partition by partition, the longest unknown first in each."""
    for partition in store.partitions:
        key = store.keys.of(partition, "unknown")
        # All at once: an index by place would skip runs while others leave it.
        members = await store.command(key, "ZRANGE", key, 0, -1)
        for start in range(0, len(members), PAGE):
            yield [member.decode() for member in members[start : start + PAGE]]


async def resolve(store: Store, run_id: str, version: int, length: int, entry: bytes, reason: str) -> str:
    """Lets a run in ``confirmation_unknown`` go on: it is queued at its place in the order.

    Args:
        store: where the run is.
        run_id: the run.
        version: its state version, as the caller has read it.
        length: how many entries its journal has, as the caller has read it.
        entry: what somebody said of the effect, as a sealed journal entry; empty to have a host look once more.
        reason: why it is queued, for people.

    Returns:
        The word of ``resolve.lua``: OK (also when the same entry was taken before), missing, state, moved or journal.
    """
    token = digest(run_id, entry) if entry else uuid.uuid4().hex
    word = await store.call(scripts.RESOLVE, partition_of(run_id), run_id, version, length, entry, token, reason)
    return str(word.decode())
