"""A whole Ray node dies in the middle of a batch, as when a machine loses its power."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest
from deployment import (
    Desk,
    host_with_runs,
    moved_s,
    refund_desk_at,
    until_hosts,
    until_settled,
    until_share_done,
)

from cluster.embedded import EmbeddedValkey
from cluster.session import LocalRay

pytestmark = pytest.mark.ray

MOVED_FROM_DEAD_NODE_S = 5.0


@pytest.fixture
def desk(ray_cluster: LocalRay, valkey: EmbeddedValkey, tmp_path: Path) -> Iterator[Desk]:
    with refund_desk_at(ray_cluster, valkey.url, tmp_path, name="faults-node") as desk:
        yield desk


async def test_a_killed_node(desk: Desk) -> None:
    """A third node joins, gets a host, gets all runs, and dies: the shared cluster is left as it was."""
    batch = desk.batch("node-killed", 120)
    async with desk.client() as client:
        others = await until_hosts(client.store, 2)
        index = desk.cluster.add_node()
        node = desk.cluster.node_ids[index]
        (newcomer,) = await until_hosts(client.store, 3) - others
        for host in others:
            await client.drain(host)
        await client.submit(batch.jobs, batch=batch.key)
        await until_share_done(client, batch, 0.3)
        host, _, runs = await host_with_runs(client, batch, node=node)
        assert host == newcomer
        for other in others:
            await client.drain(other, undo=True)
        struck = monotonic()
        desk.cluster.kill_node(index)
        took_s = await moved_s(client.store, runs, host, struck)
        print(f"SIGKILL of a node: its {len(runs)} runs were running elsewhere after {took_s:.3f} s")
        assert (await until_settled(client, batch)).by_state == {"succeeded": 120}
        assert took_s <= MOVED_FROM_DEAD_NODE_S
        report = await desk.judged(client, batch)
        assert report.migrated_runs > 0
        assert await until_hosts(client.store, 2) == others
