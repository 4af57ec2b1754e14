"""Agents of the tests of trails: each leaves a trail of its own kind; and hands that reach into the store."""

from __future__ import annotations

import asyncio
from typing import Any

import redis

from actors.journal import encode_entry, link_of, seal
from cluster.store import Store
from penstock import Ambiguous, NotApplied, RetryPolicy, Risk, Run, ToolCall, agent, tool


async def seen(call: ToolCall, result: str, order: str) -> dict[str, str]:
    return {"statement": f"S-{order}"}


async def unpay(call: ToolCall, result: str | None, order: str) -> None:
    return None


@tool()
async def look_up(call: ToolCall, order: str) -> str:
    return f"order {order}"


@tool(risk=Risk.WRITE, idempotent=True, verify=seen, compensate=unpay)
async def pay(call: ToolCall, order: str) -> str:
    return f"receipt for {order}"


@tool(risk=Risk.WRITE, retry=RetryPolicy(maximum_attempts=1))
async def mail(call: ToolCall, order: str) -> str:
    raise Ambiguous("no answer")


@tool(retry=RetryPolicy(initial_interval=0.001, maximum_attempts=2))
async def never(call: ToolCall, order: str) -> str:
    raise NotApplied("nobody listens")


@agent("paying", version="1")
async def paying(run: Run, order: str) -> str:
    """A read, a value, an effect with evidence."""
    await run.call(look_up, order)
    run.random()
    return await run.call(pay, order)


@agent("mailing", version="1")
async def mailing(run: Run, order: str) -> str:
    """An effect that nobody can prove."""
    await run.call(look_up, order)
    return await run.call(mail, order)


@agent("parent", version="1")
async def parent(run: Run, order: str) -> str:
    """Waits, and has a child run."""
    await run.sleep(0.01)
    paid: str = await run.spawn(paying, order)
    return paid


@agent("sleeping", version="1")
async def sleeping(run: Run, order: str) -> str:
    """Waits for a long time."""
    await run.call(look_up, order)
    await run.sleep(1000)
    return order


@agent("long", version="1")
async def long(run: Run, pays: bool) -> int:
    """Drops its past three times, or keeps it, for it has an effect."""
    state: int = run.state or 0
    while state < 3:
        await run.call(look_up, str(state))
        if pays and state == 1:
            await run.call(pay, str(state))
        state += 1
        await run.checkpoint(state)
    await run.call(look_up, "last")
    return state


@agent("undoing", version="1")
async def undoing(run: Run, order: str) -> str:
    """Fails after it has paid."""
    await run.call(pay, order)
    return await run.call(never, order)


@tool(risk=Risk.WRITE, idempotent=True, scopes=["bank.transfer"])
async def transfer(call: ToolCall, order: str) -> str:
    return order


@agent("overreaching", version="1")
async def overreaching(run: Run, order: str) -> str:
    """Wants more than its job was granted."""
    return await run.call(transfer, order)


GATE = asyncio.Event()


@tool(timeout=30)
async def hold(call: ToolCall, order: str) -> str:
    await GATE.wait()
    return order


@agent("held", version="1")
async def held(run: Run, order: str) -> str:
    """Pays, and is held up until the test opens the gate."""
    await run.call(pay, order)
    return await run.call(hold, order)


@agent("idle", version="1")
async def idle(run: Run, order: str) -> str:
    """Has no steps."""
    return order


AGENTS = (paying, mailing, parent, sleeping, long, undoing, held, overreaching, idle)
TOOLS = (look_up, pay, mail, never, hold, transfer)


class Hands:
    """Somebody who has the store's password, and no scruples."""

    def __init__(self, store: Store) -> None:
        assert store.settings.redis_url is not None
        self._client: Any = redis.Redis.from_url(store.settings.redis_url.get_secret_value())
        self._keys = store.keys

    def close(self) -> None:
        self._client.close()

    def journal(self, run_id: str) -> list[bytes]:
        return list(self._client.lrange(self._keys.journal(run_id), 0, -1))

    def archive(self, run_id: str) -> list[bytes]:
        return list(self._client.lrange(self._keys.archive(run_id), 0, -1))

    def rewrite(self, run_id: str, entries: list[bytes], *, archive: bool = False) -> None:
        key = self._keys.archive(run_id) if archive else self._keys.journal(run_id)
        self._client.delete(key)
        if entries:
            self._client.rpush(key, *entries)

    def set_entry(self, run_id: str, place: int, raw: bytes) -> None:
        self._client.lset(self._keys.journal(run_id), place, raw)

    def remove_entry(self, run_id: str, raw: bytes) -> None:
        self._client.lrem(self._keys.journal(run_id), 1, raw)

    def insert_entry(self, run_id: str, before: bytes, raw: bytes) -> None:
        self._client.linsert(self._keys.journal(run_id), "BEFORE", before, raw)

    def cut(self, run_id: str, count: int = 1) -> None:
        self._client.rpop(self._keys.journal(run_id), count)

    def set(self, run_id: str, **fields: Any) -> None:
        self._client.hset(self._keys.run(run_id), mapping=fields)

    def get(self, run_id: str, field: str) -> bytes:
        found: bytes | None = self._client.hget(self._keys.run(run_id), field)
        return found or b""

    def remove(self, run_id: str, *fields: str) -> None:
        self._client.hdel(self._keys.run(run_id), *fields)

    def append(self, run_id: str, entry: Any) -> None:
        """An entry that is chained as it should be."""
        last = self.journal(run_id)[-1]
        self._client.rpush(self._keys.journal(run_id), seal(link_of(last), encode_entry(entry)))
