"""The agents of the figures of admission: one holds a slot, one goes on writing while the store fills up."""

import asyncio
from typing import Final

from penstock import Run, ToolCall, agent, tool

WRITTEN: Final = "x" * 512
NOTES: Final = 60


@agent("holds-a-slot", version="1")
async def holds_a_slot(run: Run, seconds: float) -> None:
    """Takes a slot for so long and makes no step."""
    await asyncio.sleep(seconds)


@tool()
async def note(call: ToolCall, text: str) -> str:
    """A step whose result is kept in the store."""
    await asyncio.sleep(0.2)
    return text


@agent("takes-notes", version="1")
async def takes_notes(run: Run, text: str) -> int:
    """Goes on writing to the store for a quarter of a minute."""
    for _ in range(NOTES):
        await run.call(note, WRITTEN)
    return NOTES


@agent("does-little", version="1")
async def does_little(run: Run, text: str) -> int:
    """Ends at once."""
    return len(text)
