"""The group commit: what all runs of a host want written goes out together, fenced, a few writes at a time.

Runs hand over what they want written and await its future; one flush a turn of the event loop sends all of it, one
script call a partition and kind. While ``IN_FLIGHT`` flushes are unanswered the next one gathers, so that batches
grow with load by themselves and a lone run waits for nobody.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeAlias, TypeVar

from cluster.errors import StoreFull, StoreUnavailable
from cluster.keys import partition_of
from cluster.records import Append, Finish, Park
from cluster.store import Store

IN_FLIGHT: Final = 2
_REFUSED_PAUSE_S: Final = 0.5
_LOG: Final = logging.getLogger("penstock.host")

_Answer: TypeAlias = "asyncio.Future[str | None]"
_T = TypeVar("_T")
_Item = TypeVar("_Item", Append, Finish, Park)


class _Group:
    """What one partition is sent in one flush."""

    __slots__ = ("appends", "finishes", "parks")

    def __init__(self) -> None:
        self.appends: list[tuple[Append, _Answer]] = []
        self.finishes: list[tuple[Finish, _Answer]] = []
        self.parks: list[tuple[Park, _Answer]] = []


class Committer:
    """Writes for all runs of one host. Futures resolve to None, or to the script's exception for the run
    (STALE, GAP, CANCEL).
    """

    def __init__(self, store: Store, host: Callable[[], str]) -> None:
        self._store = store
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._groups: dict[int, _Group] = {}
        self._others: list[tuple[Callable[[], Awaitable[Any]], asyncio.Future[Any]]] = []
        self._scheduled = False
        self._in_flight = 0
        self._closed = False

    def append(self, entry: Append) -> _Answer:
        """Journal entries of one run."""
        answer: _Answer = self._loop.create_future()
        self._group(entry.run_id).appends.append((entry, answer))
        return answer

    def finish(self, end: Finish) -> _Answer:
        """A run's end; it goes out after the appends that were handed over before it."""
        answer: _Answer = self._loop.create_future()
        self._group(end.run_id).finishes.append((end, answer))
        return answer

    def park(self, parking: Park) -> _Answer:
        """A run's unloading."""
        answer: _Answer = self._loop.create_future()
        self._group(parking.run_id).parks.append((parking, answer))
        return answer

    def along(self, call: Callable[[], Awaitable[_T]]) -> "asyncio.Future[_T]":
        """Any other call that may be made twice: it goes out together with the next flush."""
        answer: asyncio.Future[_T] = self._loop.create_future()
        self._others.append((call, answer))
        self._schedule()
        return answer

    def _schedule(self) -> None:
        if not self._scheduled and self._in_flight < IN_FLIGHT:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _group(self, run_id: str) -> _Group:
        partition = partition_of(run_id)
        group = self._groups.get(partition)
        if group is None:
            group = self._groups[partition] = _Group()
            self._schedule()
        return group

    def _flush(self) -> None:
        """Sends everything; tasks start in the order they are made, so a run's appends go before its end."""
        self._scheduled = False
        if not self._groups and not self._others:
            return
        groups, self._groups = self._groups, {}
        others, self._others = self._others, []
        sends: list[Coroutine[Any, Any, None]] = [self._make(*other) for other in others]
        for partition, group in groups.items():
            if group.appends:
                sends.append(self._send(self._store.append, partition, group.appends))
            if group.finishes:
                sends.append(self._send(self._finish, partition, group.finishes))
            if group.parks:
                sends.append(self._send(self._park, partition, group.parks))
        self._in_flight += 1
        left = len(sends)

        def one_done(_: "asyncio.Task[None]") -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self._in_flight -= 1
                if self._groups or self._others:
                    self._schedule()

        for send in sends:
            self._loop.create_task(send).add_done_callback(one_done)

    async def _finish(self, partition: int, ends: list[Finish]) -> dict[str, str]:
        return await self._store.finish(partition, self._host(), ends)

    async def _park(self, partition: int, parks: list[Park]) -> dict[str, str]:
        return await self._store.park(partition, self._host(), parks)

    async def _make(self, call: Callable[[], Awaitable[Any]], answer: "asyncio.Future[Any]") -> None:
        try:
            made = await self.insist(call)
        except BaseException as error:
            if not answer.done():
                answer.set_exception(error)
                answer.exception()
            if not isinstance(error, Exception):
                raise
            return
        if not answer.done():
            answer.set_result(made)

    async def insist(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """Makes a call, which may be made twice, until the store takes it.

        Raises:
            StoreUnavailable: the host has been closed meanwhile.
        """
        while True:
            try:
                return await call()
            except (StoreFull, StoreUnavailable) as error:
                if self._closed:
                    raise
                _LOG.warning("the store does not take a write: %s; trying again", error)
                await asyncio.sleep(_REFUSED_PAUSE_S)

    def close(self) -> None:
        """Nothing is sent again any more: the connection is about to be closed."""
        self._closed = True

    async def _send(
        self,
        write: Callable[[int, list[_Item]], Awaitable[dict[str, str]]],
        partition: int,
        items: list[tuple[_Item, _Answer]],
    ) -> None:
        """One script call; it may be sent twice, so that a full or absent store only delays it."""
        payload = [item for item, _ in items]
        try:
            exceptions = await self.insist(lambda: write(partition, payload))
        except BaseException as error:
            for _, answer in items:
                if not answer.done():
                    answer.set_exception(error)
                    answer.exception()
            if not isinstance(error, Exception):
                raise
            if not self._closed:
                _LOG.exception("partition %02x: a write failed", partition)
            return
        if not exceptions:
            for _, answer in items:
                if not answer.done():
                    answer.set_result(None)
            return
        for item, answer in items:
            if not answer.done():
                answer.set_result(exceptions.get(item.run_id))
