"""The agents that the benchmarks run: five steps that answer at once, or after a while."""

import asyncio

from penstock import Run, ToolCall, agent, tool

STEPS = 5


@tool()
async def echo(call: ToolCall, text: str) -> str:
    """Answers at once, with what it was given."""
    return text


@tool(timeout=60)
async def wait(call: ToolCall, seconds: float) -> float:
    """Answers after a while, as a remote service would."""
    await asyncio.sleep(seconds)
    return seconds


@agent("five-steps", version="1")
async def five_steps(run: Run, text: str) -> int:
    """Five durable steps, each with the input as its result."""
    total = 0
    for _ in range(STEPS):
        total += len(await run.call(echo, text))
    return total


@agent("five-waits", version="1")
async def five_waits(run: Run, seconds: float) -> int:
    """Five durable steps that take ``seconds`` each."""
    for _ in range(STEPS):
        await run.call(wait, seconds)
    return STEPS
