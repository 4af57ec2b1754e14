"""Forks and promotions in the store: branches of one run, and which of them may cause effects."""

from typing import NamedTuple

from cluster import scripts
from cluster.keys import partition_of
from cluster.lane import Argument
from cluster.records import NewFork
from cluster.store import Store


class Promotion(NamedTuple):
    """What ``promote.lua`` answered: its word, and what belongs to it (runs, a step, a state)."""

    word: str
    more: tuple[str, ...]


async def fork(store: Store, new: NewFork) -> int | None:
    """Makes a fork: 1 made, 0 the same was there, -1 another one holds the id; None where its source is not there."""
    arguments: list[Argument] = [
        new.source, new.id, new.agent, new.version, new.custom_id, new.level, new.digest, new.job, new.lineage,
        new.tenant, "1" if new.readonly else "", len(new.archive), *new.archive, *new.journal,
    ]  # fmt: skip
    answer = await store.call(scripts.FORK, partition_of(new.source), *arguments)
    return None if answer == b"MISSING" else int(answer)


async def promote(store: Store, run_id: str, by: str, why: str) -> Promotion:
    """Gives a branch the right to effects and takes it from all others; ``promote.lua`` has the words."""
    word, *more = await store.call(scripts.PROMOTE, partition_of(run_id), run_id, by, why)
    return Promotion(word.decode(), tuple(each.decode() for each in more))


async def branches(store: Store, root: str) -> list[str]:
    """A root and all forks below it; nothing where nobody has forked."""
    key = store.keys.branches(root)
    return sorted(each.decode() for each in await store.command(key, "SMEMBERS", key))


async def children(store: Store, run_id: str) -> list[str]:
    """A run's child runs."""
    key = store.keys.children(run_id)
    return sorted(each.decode() for each in await store.command(key, "SMEMBERS", key))


async def promotions(store: Store, root: str) -> list[bytes]:
    """The promotions below a root, oldest first: JSON of when, which run, of which lineage, from whom, by whom, why."""
    key = store.keys.promotions(root)
    notes: list[bytes] = await store.command(key, "LRANGE", key, 0, -1)
    return notes
