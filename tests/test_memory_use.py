"""How full the store is."""

import uuid
from pathlib import Path

import pytest
from pydantic import SecretStr
from valkey_cluster import ValkeyCluster

from cluster.config import Settings
from cluster.embedded import EmbeddedValkey
from cluster.store import Store


async def _use(url: str) -> float | None:
    store = await Store.open(Settings(redis_url=SecretStr(url), name=f"t{uuid.uuid4().hex[:12]}"))
    try:
        return await store.memory_use()
    finally:
        await store.close()


async def test_a_server_without_a_limit_is_never_full(redis_url: str) -> None:
    assert await _use(redis_url) is None


async def test_a_server_with_a_limit_says_how_full_it_is(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path, extra_settings={"maxmemory": "64mb"}) as server:
        store = await Store.open(Settings(redis_url=SecretStr(server.url), name="t"))
        before = await store.memory_use()
        for number in range(32):
            await store.command("fill", "SET", f"fill{number}", b"x" * 2**20)
        after = await store.memory_use()
        await store.close()
    assert before is not None
    assert after is not None
    assert before < 0.4 < 0.5 <= after < 1


async def test_of_a_cluster_the_fullest_server_counts(valkey_cluster: ValkeyCluster) -> None:
    import redis

    url = valkey_cluster.nodes[0].url
    assert await _use(url) is None
    fullest = valkey_cluster.nodes[1]
    with redis.Redis.from_url(fullest.url) as client:
        used = client.info("memory")["used_memory"]
        client.config_set("maxmemory", used * 2)
        try:
            assert await _use(url) == pytest.approx(0.5, abs=0.2)
        finally:
            client.config_set("maxmemory", 0)
