"""The store's server is killed under running agents: what it has acknowledged is there when it comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest
from deployment import Desk, refund_desk_at, until_hosts, until_settled, until_share_done
from pydantic import SecretStr

from cluster.config import Settings
from cluster.embedded import EmbeddedValkey
from cluster.session import LocalRay
from penstock import Client

LONGER_THAN_THE_LEASE_S = 4.0


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path / "valkey") as server:
        yield server


@pytest.fixture
def desk(ray_cluster: LocalRay, own_valkey: EmbeddedValkey, tmp_path: Path) -> Iterator[Desk]:
    with refund_desk_at(ray_cluster, own_valkey.url, tmp_path, name="faults-store") as desk:
        yield desk


async def test_a_killed_store(desk: Desk, own_valkey: EmbeddedValkey) -> None:
    """Once it stays away for longer than the hosts' leases, and twice its supervision brings it back at once."""
    batch = desk.batch("store-killed", 120)
    async with desk.client() as client:
        hosts = await until_hosts(client.store, 2)
        await client.submit(batch.jobs, batch=batch.key)
        await until_share_done(client, batch, 0.2)
        own_valkey.kill()
        struck = monotonic()
        await asyncio.sleep(LONGER_THAN_THE_LEASE_S)
        own_valkey.start()
        away_s = monotonic() - struck
        own_valkey.supervise()
        for share in (0.4, 0.6):
            before = (await until_share_done(client, batch, share)).steps
            print(f"SIGKILL of the store at {before} steps (it had been away for {away_s:.1f} s before)")
            own_valkey.kill()
        assert (await until_settled(client, batch)).by_state == {"succeeded": 120}
        assert own_valkey.restarts == 2
        report = await desk.judged(client, batch)
        after = await until_hosts(client.store, 2)
        print(f"hosts that came back under their own name: {len(hosts & after)}; migrations: {report.migrations}")


async def test_a_store_that_is_killed_while_it_is_asked_is_found_again(own_valkey: EmbeddedValkey) -> None:
    """No Ray: one client that asks all the time. Each kill hits writes and reads that are under way."""
    settings = Settings(name="asked", redis_url=SecretStr(own_valkey.url))
    async with Client(settings=settings) as client:
        for _ in range(8):
            asking = asyncio.gather(*(client.store.server_ms() for _ in range(100)))
            await asyncio.sleep(0.002)
            own_valkey.kill()
            own_valkey.start()
            struck = monotonic()
            assert len(await asking) == 100
            assert monotonic() - struck < 3.0
