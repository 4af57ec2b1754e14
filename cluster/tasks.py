"""Keeping asyncio tasks that nobody waits for, and ending tasks for good."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
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


class KeptTasks:
    """Tasks that are started and not waited for: each is held until it has ended, and what it fails with is logged.

    Args:
        log: where.
        owner: what to call whoever keeps them, as it is called by then.
    """

    def __init__(self, log: logging.Logger, owner: Callable[[], str]) -> None:
        self._log = log
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Starts one."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def end(self) -> None:
        """Ends all of them, but for the one that asks for it."""
        await end(task for task in self._tasks if task is not asyncio.current_task())

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._log.error("%s: %s failed", self._owner(), task.get_name(), exc_info=task.exception())
