"""The whole spine against a store in cluster mode: three servers, each with a third of the slots."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from deployment import (
    Desk,
    host_with_runs,
    kill,
    moved_s,
    refund_desk_at,
    until_hosts,
    until_settled,
    until_share_done,
)
from valkey_cluster import ValkeyCluster

from cluster.session import LocalRay

pytestmark = pytest.mark.ray

MOVED_FROM_DEAD_HOST_S = 2.0


@pytest.fixture
def desk(ray_cluster: LocalRay, valkey_cluster: ValkeyCluster, tmp_path: Path) -> Iterator[Desk]:
    with refund_desk_at(ray_cluster, valkey_cluster.url, tmp_path, name="cluster-mode") as desk:
        yield desk


async def test_the_spine_on_a_cluster_with_a_killed_host(desk: Desk, valkey_cluster: ValkeyCluster) -> None:
    batch = desk.batch("clustered", 120)
    async with desk.client() as client:
        assert client.store.clustered
        await until_hosts(client.store, 2)
        report = await client.submit(batch.jobs, batch=batch.key)
        assert (report.accepted, report.existing) == (120, 0)
        await until_share_done(client, batch, 0.3)
        host, info, runs = await host_with_runs(client, batch)
        struck = kill(info["pid"], signal.SIGKILL)
        took_s = await moved_s(client.store, runs, host, struck)
        print(f"cluster mode, SIGKILL of a host: its {len(runs)} runs were running elsewhere after {took_s:.3f} s")
        assert (await until_settled(client, batch)).by_state == {"succeeded": 120}
        assert took_s <= MOVED_FROM_DEAD_HOST_S
        await desk.judged(client, batch)
        results = {result.custom_id: result async for result in client.results(batch.key)}
        assert results.keys() == batch.custom_ids
        assert all(result.succeeded and result.output["answer_id"] for result in results.values())
        again = await client.submit(batch.jobs, batch=batch.key)
        assert (again.accepted, again.existing) == (0, 120)
        await until_hosts(client.store, 2, without=[host])
    for url in valkey_cluster.urls:
        with redis.Redis.from_url(url) as server:
            assert any(server.scan_iter("cluster-mode:{p*}:run:*", count=1000)), "a server holds no run"
