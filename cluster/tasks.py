"""Ending asyncio tasks for good."""

import asyncio
from collections.abc import Iterable
from typing import Any, Final

_AGAIN_S: Final = 0.05


async def end(tasks: Iterable["asyncio.Task[Any]"]) -> None:
    """Cancels tasks until they have ended; what they end with is not looked at.

    Once is not always enough: redis-py connects by ``asyncio.wait_for``, which in Python 3.11 loses a cancellation
    that comes in the same turn of the loop as the answer.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        done, left = await asyncio.wait(left, timeout=_AGAIN_S)
        for task in done:
            if not task.cancelled():
                task.exception()
