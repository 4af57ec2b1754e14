"""The scripts on three servers in cluster mode."""

from __future__ import annotations

import asyncio

import redis
from storehouse import (
    Audit,
    append,
    child_of,
    claim,
    finish,
    new,
    one,
    opened,
    park,
    primaries,
    settings_for,
    state_of,
    submit,
)
from valkey_cluster import ValkeyCluster

from cluster import reader
from cluster.keys import partition_of
from cluster.records import Claim

# ------------------------------------------------------------------------------------------------------------- cluster


async def test_all_scripts_on_a_cluster(valkey_cluster: ValkeyCluster) -> None:
    settings = settings_for(valkey_cluster.url, partitions=8, lease_s=0.3)
    async with opened(settings) as store, opened(settings) as rival:
        assert store.clustered
        runs = [new(store, str(number), max_wait="600000") for number in range(200)]
        assert len({partition_of(run.id) for run in runs}) == 8
        answers = await asyncio.gather(submit(store, runs), submit(rival, runs))
        assert sum(map(sum, answers)) == 200
        claims: dict[str, Claim] = (await claim(store, "h1", 15)) | (await claim(rival, "h2"))
        assert len(claims) == 200
        owners = {
            run_id: host for host in ("h1", "h2") for p in store.partitions for run_id in await store.owned(p, host)
        }
        said = await asyncio.gather(*(append(store, run, 0, b"x") for run in claims.values()))
        assert set(said) == {None}
        kinds: list[list[Claim]] = [list(claims.values())[n::5] for n in range(5)]
        for run in kinds[0]:
            assert await finish(store, run, host=owners[run.id]) is None
        for run in kinds[1]:
            assert await park(store, run, 1, host=owners[run.id]) is None
        for run in kinds[2]:
            assert await store.release(partition_of(run.id), owners[run.id], "drain", [(run.id, run.fence)]) == 1
        for run in kinds[3]:
            assert await store.compact(run.id, run.fence, 1, b"checkpoint") == "OK"
            assert await store.submit_child(child_of(run), parent=run.id, fence=run.fence)
        for run in kinds[4]:
            assert await store.cancel(partition_of(run.id), "no", [run.id]) == ["asked"]
        moved = [await rival.reap(p, host) for p in store.partitions for host in ("h1", "h2")]
        assert sum(moved) == 80
        fired = [await store.fire(p) for p in store.partitions]
        assert sum(found.due for found in fired) == 40
        Audit(store).check()
        late = await asyncio.gather(*(append(rival, run, 1, b"late") for run in claims.values()))
        assert set(late) == {"STALE"}
        again = await claim(store, "h3", 1000)
        assert len(again) == 40 * 5
        counts = await reader.batch_counts(store, "b")
        assert counts.by_state == {"succeeded": 40, "running": 160}
        assert (counts.total, counts.steps, counts.migrations) == (200, 240, 120)
        assert (await store.heartbeat("h3", "{}")).standing
        assert (await store.heartbeat("h3")).live == ("h3",)


async def test_a_partition_that_moves_to_another_node_is_followed(valkey_cluster: ValkeyCluster) -> None:
    async with opened(settings_for(valkey_cluster.url)) as store:
        run = await one(store, max_wait="600000")
        with redis.Redis.from_url(valkey_cluster.url) as client:
            slot = client.execute_command("CLUSTER", "KEYSLOT", store.keys.queues[0])
        source = _migrate(valkey_cluster, slot)
        try:
            assert await append(store, run, 0, b"x") is None
            assert await finish(store, run) is None
            Audit(store).check()
        finally:
            _migrate(valkey_cluster, slot, back_to=source)
        assert await state_of(store, run.id) == "succeeded"


def _migrate(cluster: ValkeyCluster, slot: int, *, back_to: str | None = None) -> str:
    """Moves a slot with its keys to another node, or to a given one; returns the id of the node that had it."""
    nodes = primaries(cluster.url)
    source = next(node for node in nodes if any(slot in slots for slots in node.slots))
    target = next(node for node in nodes if (node.id == back_to if back_to else node is not source))
    server = next(each for each in cluster.nodes if f":{each.port}/" in target.url)
    with redis.Redis.from_url(source.url) as out, redis.Redis.from_url(target.url) as into:
        into.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        out.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        while keys := out.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            where = "MIGRATE", "127.0.0.1", server.port, "", 0, 5000, "AUTH", server.password
            out.execute_command(*where, "KEYS", *keys)
        for node in (target, *nodes):
            with redis.Redis.from_url(node.url) as client:
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", target.id)
    return source.id
