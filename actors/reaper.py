"""Taking over from the dead: their runs go back to the queue, with fences that they do not have."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from cluster.store import Store

_LOG: Final = logging.getLogger("penstock.host")


class Reaper:
    """Reaps hosts that somebody takes for dead, each once at a time. Being wrong costs work and nothing else."""

    def __init__(self, store: Store, keep: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._store = store
        self._keep = keep
        self._reaping: set[str] = set()

    def reap_soon(self, host: str, *, if_expired: bool = False) -> None:
        """Takes all runs of a host away from it, in a task; ``if_expired``: unless it has renewed its lease by then."""
        if host not in self._reaping:
            self._reaping.add(host)
            self._keep(self._reap(host, if_expired))

    async def _reap(self, host: str, if_expired: bool) -> None:
        try:
            # First of all: a host that renewed its lease while its runs are being taken would go on with them.
            if not await self._store.condemn_host(host, if_expired=if_expired):
                return
            moved = await asyncio.gather(*(self._store.reap(p, host) for p in self._store.partitions))
            await self._store.forget_host(host)
            _LOG.warning("host %s was lost: %d runs taken over by the living", host, sum(moved))
        finally:
            self._reaping.discard(host)

    async def bury_namesakes(self, label: str, host: str) -> None:
        """An actor has one life at a time: earlier ones with this label are over."""
        for other, info in (await self._store.hosts()).items():
            if info.get("label") == label and other != host:
                self.reap_soon(other)
