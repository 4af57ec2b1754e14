"""Timers of waiting runs: the store has them, hosts look at a partition when its next one is due."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from cluster.store import Store


class Timers:
    """One host's looks at the store's timers, at most one ahead a partition.

    A host knows of the timers that it made and of those that it saw when it last looked; the poll with every heartbeat
    is the net for those of hosts that died.

    Args:
        store: the store.
        now_ms: the server's clock.
        keep: runs a coroutine in the background.
    """

    def __init__(
        self, store: Store, now_ms: Callable[[], int], keep: Callable[[Coroutine[Any, Any, Any]], Any]
    ) -> None:
        self._store = store
        self._now_ms = now_ms
        self._keep = keep
        self._loop = asyncio.get_running_loop()
        self._ahead: dict[int, asyncio.TimerHandle] = {}

    def at(self, partition: int, due_ms: int) -> None:
        """Looks when this is due, unless a look comes before it anyway: that one will tell what follows."""
        at = self._loop.time() + max(0, due_ms - self._now_ms() + 1) / 1000
        known = self._ahead.get(partition)
        if known is not None and not known.cancelled() and self._loop.time() < known.when() <= at:
            return
        if known is not None:
            known.cancel()
        self._ahead[partition] = self._loop.call_at(at, lambda: self._keep(self.look(partition)))

    async def look(self, partition: int) -> int:
        """Has everything fire that is due; how many runs of the partition could be claimed."""
        fired = await self._store.fire(partition)
        if fired.following_ms is not None:
            self.at(partition, self._now_ms() + fired.following_ms)
        return fired.queued

    def close(self) -> None:
        """Looks no more."""
        for timer in self._ahead.values():
            timer.cancel()
