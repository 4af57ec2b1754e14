"""Admission in the store: the controller's exchange with partitions, eviction, and what is paused."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from cluster import scripts
from cluster.lane import Argument
from cluster.store import Store

_LISTS = {"queued_ms": 5, "service": 40}
_RANKS = 5


class PartitionReport(NamedTuple):
    """What a partition says to the controller: its statistics as JSON-like data (``admission/queue_statistics.py`` has
    the names), and the best level of what may be claimed there, -1 where nothing may.
    """

    statistics: dict[str, Any]
    best_level: int


async def exchange(
    store: Store,
    partition: int,
    version: int = 0,
    policy: str = "",
    *,
    shares: Mapping[int, float] | None = None,
    capped: bool = False,
    places: Mapping[str, int] | None = None,
) -> PartitionReport:
    """Tells a partition what holds, and asks how things are there.

    Args:
        store: the store.
        partition: which.
        version: of the policy; a partition that has a newer one keeps it.
        policy: JSON; '' leaves what is there.
        shares: guaranteed parts of what is claimed, by rank.
        capped: whether the policy bounds how many runs of some tenant may run at once.
        places: how many runs of a tenant may run at once in this partition, by tenant, where it is not what the policy
            says; None leaves what is there.
    """
    said = ";".join(f"{rank}={share!r}" for rank, share in sorted((shares or {}).items()) if share > 0)
    arguments: list[Argument] = [version, policy, said, "1" if capped else "", "" if places is None else "1"]
    for tenant, most in (places or {}).items():
        arguments += (tenant, most)
    answer = await store.call(scripts.EXCHANGE, partition, *arguments)
    there, now_ms, counters, here, held, last, best = answer
    statistics = statistics_of(_pairs(counters))
    statistics |= {"partition": partition, "at_ms": now_ms, "v": there, "held": _pairs(held)}
    statistics["places"] = {tenant: int(most) for tenant, most in _pairs(here).items()}
    if last:
        statistics |= {"bottom_level": last[0], "bottom_max_wait_ms": last[1], "bottom_part": float(last[2])}
    return PartitionReport(statistics, best)


def _pairs(flat: list[bytes]) -> dict[str, str]:
    return {flat[i].decode(): flat[i + 1].decode() for i in range(0, len(flat), 2)}


def statistics_of(counters: Mapping[str, str]) -> dict[str, Any]:
    """The counters by what they count: names are KIND:…, see ``prelude.lua``."""
    classes: list[dict[str, int]] = [{} for _ in range(_RANKS)]
    found: dict[str, Any] = {"tenants": {}, "agents": {}, "refused": {}, "shed": {}, "would": {}}
    for name, value in counters.items():
        kind, _, rest = name.partition(":")
        if name in ("running", "bytes"):
            found["queued_bytes" if name == "bytes" else name] = int(value)
        elif kind == "c":
            rank, _, what = rest.partition(":")
            classes[int(rank)][what] = int(value)
        elif kind in ("t", "a"):
            what, _, whose = rest.partition(":")
            _put(found["tenants" if kind == "t" else "agents"].setdefault(whose, {}), what, int(value))
        elif kind in ("refused", "shed", "would"):
            rank, _, reason = rest.partition(":")
            found[kind].setdefault(reason, [0] * _RANKS)[int(rank)] = int(value)
    return found | {"classes": classes}


def _put(facts: dict[str, Any], what: str, value: int) -> None:
    """Fields that end in a number are places of a list."""
    name = what.rstrip("0123456789")
    if name in _LISTS and name != what:
        facts.setdefault(name, [0] * _LISTS[name])[int(what[len(name) :])] = value
    else:
        facts[what] = value


async def evict(store: Store, partition: int, most: int = 200) -> int:
    """Sheds what is worth least while it would wait for longer than it may; how many runs."""
    shed: int = await store.call(scripts.EVICT, partition, most)
    return shed


async def pause(store: Store, what: str, note: Mapping[str, Any]) -> None:
    """Has nothing started of it any more: ``queue``, ``class:NAME``, ``tenant:NAME`` or ``agent:NAME``."""
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
