"""A deployment worked by hand: the test claims runs and ends them through the store, as a host does."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from pydantic import SecretStr

from cluster.config import Settings
from cluster.keys import partition_of
from cluster.lifecycle import RunState
from cluster.records import Claim, Finish
from cluster.store import Store
from cluster.tasks import end as end_tasks

ECHO_SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "order_id": {"type": "string", "pattern": "^O-[0-9]{1,12}$"}},
    "required": ["text"],
    "additionalProperties": False,
}
HOST = "hand-1"


def settings_for(redis_url: str, name: str, **more: Any) -> Settings:
    return Settings(name=name, redis_url=SecretStr(redis_url), **more)


async def publish_catalog(store: Store) -> None:
    entry = {"version": "1", "app": "by_hand", "input_schema": ECHO_SCHEMA}
    await store.set_fields(store.keys.catalog, {"echo": json.dumps(entry)})


async def claim_all(store: Store, *, most: int = 1000) -> list[Claim]:
    """Every queued run of every partition becomes the hand's."""
    claims: list[Claim] = []
    for partition in store.partitions:
        answer = await store.claim(partition, HOST, most, ["echo", "1"])
        assert answer is not None
        claims += answer[1]
    return claims


async def end(store: Store, claims: list[Claim], state: RunState = RunState.SUCCEEDED) -> None:
    """Ends claimed runs; the output of each is its custom id."""
    by_partition: dict[int, list[Finish]] = {}
    for claim in claims:
        output = json.dumps({"echo": claim.custom_id}).encode() if state is RunState.SUCCEEDED else b""
        error = b"" if output else json.dumps({"class": "Boom", "message": "by hand", "step": "0"}).encode()
        finish = Finish(claim.id, claim.fence, state, "", output, error)
        by_partition.setdefault(partition_of(claim.id), []).append(finish)
    for partition, ends in by_partition.items():
        assert await store.finish(partition, HOST, ends) == {}


@contextlib.asynccontextmanager
async def hand(
    settings: Settings, decide: Callable[[Claim], RunState] = lambda _: RunState.SUCCEEDED
) -> AsyncIterator[Store]:
    """A registered host that ends every run as soon as it is queued, as ``decide`` says."""
    store = await Store.open(settings)
    await publish_catalog(store)
    await store.heartbeat(HOST, json.dumps({"node": "here"}))

    async def work() -> None:
        async for _ in store.listen(store.keys.wake_channel):
            while claims := await claim_all(store):
                for claim in claims:
                    await end(store, [claim], decide(claim))

    working = asyncio.create_task(work())
    try:
        yield store
    finally:
        await end_tasks([working])
        await store.close()
