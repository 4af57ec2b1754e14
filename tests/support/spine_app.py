"""An app for hosts in other processes: the tests' own agents and tools, each to show one thing."""

import asyncio
import os
import threading
import time
from typing import Any

from penstock import Run, ToolCall, agent, tool


@tool()
async def echo(call: ToolCall, text: str) -> str:
    return text


@agent("echo", version="1")
async def echoes(run: Run, text: str) -> str:
    """Says what it is told, five times over."""
    said = [await run.call(echo, text) for _ in range(5)]
    return said[-1]


@agent("nap", version="1")
async def nap(run: Run, seconds: float) -> str:
    """Waits durably."""
    await run.sleep(seconds)
    return "awake"


@agent("blocker", version="1")
async def blocker(run: Run, text: str) -> str:
    """Never awaits again after its first step."""
    await run.call(echo, text)
    while True:
        time.sleep(0.05)


@tool()
async def blocks_a_little(call: ToolCall, seconds: float) -> str:
    time.sleep(seconds)
    return "done"


@agent("hesitant", version="1")
async def hesitant(run: Run, seconds: float) -> str:
    """Has a tool that blocks the loop for a while and then goes on."""
    return await run.call(blocks_a_little, seconds)


@tool(timeout=30)
async def slow(call: ToolCall, seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slow"


@agent("steps", version="1")
async def steps(run: Run, seconds: float) -> int:
    """Ten slow steps, one after the other."""
    for _ in range(10):
        await run.call(slow, seconds)
    return os.getpid()


@tool(resources={"num_cpus": 0.5}, timeout=60)
def sums(call: ToolCall, numbers: list[int], *, offset: int = 0) -> dict[str, int | str]:
    import ray

    context: Any = ray.get_runtime_context()
    return {
        "sum": sum(numbers) + offset,
        "pid": os.getpid(),
        "thread": threading.current_thread().name,
        "key": call.idempotency_key,
        "attempt": call.attempt,
        "cpus": str(context.get_assigned_resources().get("CPU")),
    }


@agent("sums", version="1")
async def heavy_sums(run: Run, numbers: list[int]) -> dict[str, int | str]:
    """Asks for Ray resources; says where it ran itself, too."""
    found = await run.call(sums, numbers, offset=100)
    return found | {"agent_pid": os.getpid()}


@tool(resources={"num_cpus": 0.5}, timeout=60)
async def sums_async(call: ToolCall, numbers: list[int]) -> int:
    await asyncio.sleep(0)
    return sum(numbers)


@agent("sums-async", version="1")
async def heavy_async(run: Run, numbers: list[int]) -> int:
    return await run.call(sums_async, numbers)


@tool(resources={"num_cpus": 0.5}, timeout=60)
def refuses(call: ToolCall, text: str) -> str:
    raise ValueError(f"no {text}")


@agent("refused", version="1")
async def refused(run: Run, text: str) -> str:
    return await run.call(refuses, text)


@tool(resources={"num_cpus": 1}, timeout=1.5)
def never_ends(call: ToolCall, path: str) -> str:
    with open(path, "a") as notes:
        notes.write(f"{os.getpid()}\n")
    try:
        while True:
            time.sleep(0.02)
    finally:
        with open(path, "a") as notes:
            notes.write("ended\n")


@agent("never-ends", version="1")
async def endless(run: Run, path: str) -> str:
    return await run.call(never_ends, path)
