"""Writes that count only when a replica has them, with two real servers."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import redis
from hosting import spine
from pydantic import SecretStr

from actors.job import Job, new_run
from actors.journal import decode_error
from actors.receipts import decode_intent_facts
from cluster.config import Settings
from cluster.embedded import EmbeddedValkey
from cluster.errors import StoreUnavailable
from cluster.keys import partition_of
from cluster.lifecycle import RunState
from cluster.records import Made, NewRun
from cluster.store import Store
from penstock import Risk, Run, ToolCall, agent, tool

SENT: list[float] = []


@tool(risk=Risk.WRITE, replicas=1, timeout=0.5, schedule_to_close=1.0)
async def send(call: ToolCall, number: float) -> None:
    SENT.append(number)


@agent("careful", version="1")
async def careful(run: Run, number: float) -> None:
    SENT.clear()
    await run.call(send, number)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[EmbeddedValkey, EmbeddedValkey]]:
    """A primary and its replica, in touch."""
    with EmbeddedValkey(tmp_path / "primary") as primary, EmbeddedValkey(tmp_path / "replica") as replica:
        with redis.Redis.from_url(primary.url) as client:
            # By default a primary waits for five seconds whether more replicas come.
            client.config_set("repl-diskless-sync-delay", 0)
        follow(replica, primary)
        yield primary, replica


def follow(replica: EmbeddedValkey, primary: EmbeddedValkey) -> None:
    """Makes one server the other's replica, and waits until it is."""
    password = unquote(urlsplit(primary.url).password or "")
    with redis.Redis.from_url(replica.url) as client:
        client.config_set("masterauth", password)
        client.replicaof("127.0.0.1", str(primary.port))
    with redis.Redis.from_url(primary.url) as client:
        for _ in range(100):
            client.set("touched", 1)
            if client.wait(1, 100) == 1:
                return
    raise AssertionError("the replica does not follow")


def settings_of(primary: EmbeddedValkey) -> Settings:
    """Every write must be with one replica; calls give up soon."""
    return Settings(redis_url=SecretStr(primary.url), name="replicated", store_replicas=1, store_timeout_s=2.5)


def some_runs(settings: Settings, count: int) -> dict[int, list[NewRun]]:
    """New runs by partition."""
    found: dict[int, list[NewRun]] = {}
    for number in range(count):
        run = new_run(Job(custom_id=f"job-{number}", agent="nobody"), "batch", settings.partitions)
        found.setdefault(partition_of(run.id), []).append(run)
    return found


async def test_an_acknowledged_write_is_with_the_replica(pair: tuple[EmbeddedValkey, EmbeddedValkey]) -> None:
    primary, replica = pair
    store = await Store.open(settings_of(primary))
    runs = some_runs(store.settings, 100)
    answers = await asyncio.gather(*(store.submit("batch", partition, group) for partition, group in runs.items()))
    primary.kill()
    with redis.Redis.from_url(replica.url) as client:
        kept = [client.hget(store.keys.run(run.id), "state") for group in runs.values() for run in group]
    await store.close()
    assert {answer.made for group in answers for answer in group} == {Made.MADE}
    assert kept == [b"queued"] * 100


async def test_without_the_replica_nothing_is_acknowledged(pair: tuple[EmbeddedValkey, EmbeddedValkey]) -> None:
    primary, replica = pair
    store = await Store.open(settings_of(primary))
    replica.kill()
    partition, runs = next(iter(some_runs(store.settings, 10).items()))
    with pytest.raises(StoreUnavailable, match="replicas have the last write"):
        await store.submit("batch", partition, runs)
    replica.restart()
    follow(replica, primary)
    # The primary had it all the time; asking again is safe, and is now answered.
    assert {each.made for each in await store.submit("batch", partition, runs)} == {Made.EXISTING}
    await store.close()


async def test_an_effect_goes_on_when_a_replica_has_its_intent(pair: tuple[EmbeddedValkey, EmbeddedValkey]) -> None:
    primary, replica = pair
    async with spine(primary.url, careful) as deployment:
        await deployment.host()
        run_id = await deployment.submit(careful, 0.0)
        record = await deployment.end(run_id)
        assert record.state is RunState.SUCCEEDED
        identity = decode_intent_facts((await deployment.journal(run_id))[0].facts).identity
        with redis.Redis.from_url(replica.url) as client:
            assert client.hget(deployment.store.keys.effect(identity), "state") == b"applied"


async def test_an_effect_is_not_sent_while_no_replica_has_its_intent(
    pair: tuple[EmbeddedValkey, EmbeddedValkey],
) -> None:
    primary, replica = pair
    replica.stop()
    async with spine(primary.url, careful) as deployment:
        await deployment.host()
        record = await deployment.end(await deployment.submit(careful, 0.0))
        assert record.state is RunState.FAILED
        assert decode_error(record.error).error_class == "NotReplicated"
        assert SENT == []
