"""Agents with effects, and the world that they change: counters in a store, which any number of calls may increase.

Environment:
    BENCH_REDIS_URL  where the counters are
"""

import asyncio
import os
from typing import Final

import redis.asyncio as redis
from pydantic import BaseModel

from penstock import Applied, Risk, Run, ToolCall, agent, tool

WORLD_VARIABLE: Final = "BENCH_REDIS_URL"
APPLIED: Final = "world:applied"
KEYS: Final = "world:keys"
KINDS: Final = ("idempotent", "reconcilable", "neither")
STEPS: Final = 5
_clients: dict[asyncio.AbstractEventLoop, "redis.Redis"] = {}


class Action(BaseModel):
    """What is to happen once. ``seconds`` is how long the world takes, half of it before and half after."""

    name: str
    kind: str
    seconds: float


def world() -> "redis.Redis":
    """The world's connection of the running event loop."""
    loop = asyncio.get_running_loop()
    if loop not in _clients:
        _clients[loop] = redis.Redis.from_url(os.environ[WORLD_VARIABLE])
    return _clients[loop]


async def find(call: ToolCall, action: Action) -> Applied[str] | None:
    """Whether the world knows the reference."""
    return Applied("done") if await world().hexists(KEYS, call.idempotency_key) else None


@tool(risk=Risk.WRITE, idempotent=True, timeout=30)
async def idempotent(call: ToolCall, action: Action) -> str:
    """The world counts each key once."""
    await asyncio.sleep(action.seconds / 2)
    if await world().hsetnx(KEYS, call.idempotency_key, action.name):
        await world().hincrby(APPLIED, action.name, 1)
    await asyncio.sleep(action.seconds / 2)
    return "done"


@tool(risk=Risk.WRITE, reconcile=find, lands_within=1, timeout=30)
async def reconcilable(call: ToolCall, action: Action) -> str:
    """The world counts each call, and can be asked by reference."""
    await asyncio.sleep(action.seconds / 2)
    async with world().pipeline(transaction=True) as pipeline:
        pipeline.hset(KEYS, call.idempotency_key, action.name)
        pipeline.hincrby(APPLIED, action.name, 1)
        await pipeline.execute()
    await asyncio.sleep(action.seconds / 2)
    return "done"


@tool(risk=Risk.WRITE, timeout=30)
async def neither(call: ToolCall, action: Action) -> str:
    """The world counts each call."""
    await asyncio.sleep(action.seconds / 2)
    await world().hincrby(APPLIED, action.name, 1)
    await asyncio.sleep(action.seconds / 2)
    return "done"


TOOLS: Final = {"idempotent": idempotent, "reconcilable": reconcilable, "neither": neither}


@tool()
async def echo(call: ToolCall, text: str) -> str:
    """Answers at once, with what it was given."""
    return text


@tool(risk=Risk.WRITE, idempotent=True)
async def change(call: ToolCall, text: str) -> str:
    """An effect that answers at once: what it costs is Penstock's."""
    return text


@tool(risk=Risk.IRREVERSIBLE, idempotent=True, needs_approval=True)
async def approved_change(call: ToolCall, text: str) -> str:
    """An effect that people have to approve."""
    return text


@agent("acts-once", version="1")
async def acts_once(run: Run, action: Action) -> str:
    """One effect."""
    return await run.call(TOOLS[action.kind], action)


@agent("five-reads", version="1")
async def five_reads(run: Run, text: str) -> int:
    """Five durable steps without an effect."""
    total = 0
    for _ in range(STEPS):
        total += len(await run.call(echo, text))
    return total


@agent("four-reads-and-an-effect", version="1")
async def four_reads_and_an_effect(run: Run, text: str) -> int:
    """Five durable steps, one of them an effect."""
    total = len(await run.call(change, text))
    for _ in range(STEPS - 1):
        total += len(await run.call(echo, text))
    return total


@agent("one-read", version="1")
async def one_read(run: Run, text: str) -> int:
    """One step without an effect."""
    return len(await run.call(echo, text))


@agent("one-effect", version="1")
async def one_effect(run: Run, text: str) -> int:
    """One effect."""
    return len(await run.call(change, text))


@agent("asks-first", version="1")
async def asks_first(run: Run, text: str) -> int:
    """One effect that has to be approved."""
    return len(await run.call(approved_change, text))
