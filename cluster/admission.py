"""Admission in the store: the controller's exchange with partitions, eviction, and what is paused."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from cluster import scripts
from cluster.lane import Argument
from cluster.records import PartitionReport
from cluster.store import Store


async def exchange(
    store: Store,
    partition: int,
    version: int = 0,
    policy: str = "",
    *,
    shares: Mapping[int, float] | None = None,
    places: Mapping[str, int | None] | None = None,
) -> PartitionReport:
    """Tells a partition what holds, and asks what there is.

    Args:
        store: the store.
        partition: which.
        version: of the policy; a partition that has a newer one keeps it.
        policy: JSON; '' leaves what is there.
        shares: guaranteed parts of what is claimed, by rank.
        places: runs that may be started beyond those that were said before, by tenant; a negative number takes places
            back, and None ends the bound.
    """
    said = ";".join(f"{rank}={share!r}" for rank, share in sorted((shares or {}).items()) if share > 0)
    arguments: list[Argument] = [version, policy, said]
    for tenant, more in (places or {}).items():
        arguments += (tenant, "off" if more is None else more)
    there, changed, counters, levels, best, since, queued = await store.call(scripts.EXCHANGE, partition, *arguments)
    return PartitionReport(
        there,
        {changed[i].decode(): changed[i + 1] for i in range(0, len(changed), 2)},
        {name: float(value) for name, value in _pairs(counters)},
        {int(level): int(float(value)) for level, value in _pairs(levels)},
        best,
        since,
        queued,
    )


def _pairs(flat: list[bytes]) -> list[tuple[str, str]]:
    return [(flat[i].decode(), flat[i + 1].decode()) for i in range(0, len(flat), 2)]


async def evict(store: Store, partition: int, most: int = 200) -> int:
    """Sheds what is worth least while it would wait for longer than it may; how many runs."""
    shed: int = await store.call(scripts.EVICT, partition, most)
    return shed


async def pause(store: Store, what: str, note: Mapping[str, Any]) -> None:
    """Has nothing started of it any more: ``queue``, ``tenant:NAME``, ``agent:NAME`` or ``rank:N``."""
    raw = json.dumps(dict(note))
    keys = [store.keys.of(partition, "held") for partition in store.partitions]
    await asyncio.gather(*(store.command(key, "HSET", key, what, raw) for key in keys))


async def resume(store: Store, what: str) -> bool:
    """Ends a pause; whether there was one. Hosts look at the queues at once."""
    keys = [store.keys.of(partition, "held") for partition in store.partitions]
    found = await asyncio.gather(*(store.command(key, "HDEL", key, what) for key in keys))
    for partition in store.partitions:
        await store.publish(store.keys.wake_channel, f"{partition:02x}")
    return any(found)


async def paused(store: Store) -> dict[str, dict[str, Any]]:
    """What is paused, by whom, why and since when."""
    key = store.keys.of(0, "held")
    return {what: json.loads(note) for what, note in (await store.fields(key)).items()}
