"""How a host comes by runs: it claims where the most valuable work waits, while it has free slots."""

import asyncio
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from actors.claim_order import ClaimOrder, read_wake
from actors.engine import RunEngine
from cluster import reader
from cluster.keys import partition_of
from cluster.records import Claim

if TYPE_CHECKING:
    from actors.host_runtime import HostRuntime

_CLAIM_MOST: Final = 64
_CLAIM_WORTH: Final = 8
_LOG: Final = logging.getLogger("penstock.host")


class Claiming:
    """One host's claims. ``lock`` is held while a claim may be under way, so that no run slips past a departure."""

    def __init__(self, host: "HostRuntime") -> None:
        self._host = host
        self.lock = asyncio.Lock()
        self.order = ClaimOrder()
        self.home: frozenset[int] = frozenset()
        self._work = asyncio.Event()
        self._served = [part for agent in host.app.agents.values() for part in (agent.name, agent.version)]

    def look(self, partitions: Iterable[int]) -> None:
        """Something waits in these partitions, it is not known what."""
        for partition in partitions:
            self.order.queued(partition, None)
        self._work.set()

    def look_everywhere(self) -> None:
        """Anything may wait anywhere: messages have been missed."""
        self.order.suspect(self._host.store.partitions)
        self._work.set()

    def woken(self, text: str) -> None:
        """A wake-up message has come."""
        self.order.queued(*read_wake(text))
        self._work.set()

    def freed(self) -> None:
        """There may be room for more."""
        if self.order:
            self._work.set()

    async def claim_for_ever(self) -> None:
        """Claims whenever there is something to claim and room for it."""
        host = self._host
        while True:
            await self._work.wait()
            self._work.clear()
            while self.order and not host.draining:
                free = host.load.free
                if free <= 0:
                    break
                await host.lease_renewed()
                try:
                    await self._claim_some(free)
                except Exception as error:
                    _LOG.warning("host %s: claiming failed: %s", host.host, error)
                    await asyncio.sleep(0.2)

    async def _claim_some(self, free: int) -> None:
        """Asks as many partitions of equal value at once as there is room to fill; each keeps its place until it is
        found empty.
        """
        store, unknown = self._host.store, self.order.unknown()
        if unknown and len(self.order) > 1:
            for partition, level in zip(unknown, await reader.best_levels(store, unknown), strict=True):
                self.order.learn(partition, level)
        partitions = self.order.take(self.home, max(1, free // _CLAIM_WORTH))
        most = max(1, min(_CLAIM_MOST, free // len(partitions)))
        async with self.lock:
            host = self._host.host
            if self._host.draining:
                return
            worst = self.order.worst_wanted
            claims = (store.claim(partition, host, most, self._served, worst) for partition in partitions)
            answers = await asyncio.gather(*claims, return_exceptions=True)
            for partition, answer in zip(partitions, answers, strict=True):
                if answer is None or isinstance(answer, BaseException):
                    self.order.queued(partition, None)
                    continue
                if answer[0] >= 0:
                    self.order.queued(partition, answer[0])
                for claim in answer[1]:
                    self._begin(claim)
        if None in answers:
            await self._host.identity_lost(host)
        for error in (answer for answer in answers if isinstance(answer, BaseException)):
            raise error

    def _begin(self, claim: Claim) -> None:
        host = self._host
        old = host.runs.get(claim.id)
        if old is not None:
            old.drop()
        try:
            engine = RunEngine(claim, host.app.agents[claim.agent], host)
        except ValueError as error:
            _LOG.error("run %s cannot be read here: %s", claim.id, error)
            host.keep(self._release_unread(claim, str(error)))
            return
        host.runs[claim.id] = engine
        engine.start()
        if host.draining:
            engine.depart(host.drains)

    async def _release_unread(self, claim: Claim, reason: str) -> None:
        """Leaves a run to hosts of a newer version; not at once, or a lone host would claim it again for ever."""
        await asyncio.sleep(self._host.settings.heartbeat_s)
        host = self._host
        await host.store.release(partition_of(claim.id), host.host, reason, [(claim.id, claim.fence)])

    async def release_strays(self) -> None:
        """Hands back what this host owns by the store and knows nothing of.

        After a lost connection that is a claim whose answer was lost; at other times, a defect of ours.
        """
        store = self._host.store
        async with self.lock:
            host = self._host.host
            for partition in store.partitions:
                strays = await store.owned(partition, host) - self._host.runs.keys()
                if strays:
                    _LOG.warning("host %s: %d claims were never heard of; handed back", host, len(strays))
                    await store.release(partition, host, "claim lost", [(stray, None) for stray in strays])
        self.look_everywhere()
