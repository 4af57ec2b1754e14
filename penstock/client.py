"""The client: submit jobs, watch them, read what became of them. It talks to the store only and needs no Ray."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Final, NamedTuple, Self

from pydantic import SecretStr

from actors.registry import App
from cluster import reader
from cluster.config import Settings
from cluster.keys import partition_of
from cluster.lifecycle import RunState
from cluster.records import RunRecord
from cluster.store import Store
from penstock import inspection
from penstock.admission_rules import AdmissionCalls
from penstock.approvals import ApprovalCalls
from penstock.catalog import Catalog
from penstock.checking import Facts
from penstock.coming_back import ComingBack
from penstock.dependencies import DependencyCalls
from penstock.errors import NoSuchBatch, NoSuchHost, NoSuchRun
from penstock.lineage import LineageCalls
from penstock.names import is_run_id
from penstock.policies import PolicyCalls
from penstock.queueing import QueueCalls
from penstock.submitting import SubmitCalls
from penstock.tracing import TraceCalls
from penstock.trail import TrailCalls
from penstock.unknown import UnknownCalls
from penstock.views import (
    BatchStatus,
    DeploymentStatus,
    HostView,
    Result,
    RunSummary,
    RunView,
    Why,
    batch_status,
    result_of,
)
from penstock.waiting import POLL_S, RunWaiter, signals, told_within

_WATCH_PAUSE_S: Final = 0.02


class _Open(NamedTuple):
    """What an open client has."""

    store: Store
    catalog: Catalog
    waiter: RunWaiter


class Client(
    SubmitCalls,
    QueueCalls,
    DependencyCalls,
    LineageCalls,
    UnknownCalls,
    TraceCalls,
    TrailCalls,
    PolicyCalls,
    ApprovalCalls,
    AdmissionCalls,
):
    """A deployment as its users see it. Use it as ``async with Client() as client``, in one event loop.

    Every method may raise :class:`cluster.errors.StoreError` when the store cannot be reached or used.

    Args:
        redis_url: the deployment's store; by default from ``PENSTOCK_REDIS_URL`` or the running local deployment.
        settings: all settings at once, instead.
        app: the deployment's app where it is at hand: inputs are then checked by its own models, and otherwise by
            the JSON schemas that hosts have published.
    """

    def __init__(
        self, redis_url: str | None = None, *, settings: Settings | None = None, app: App | None = None
    ) -> None:
        if settings is None:
            settings = Settings.load() if redis_url is None else Settings.load(redis_url=SecretStr(redis_url))
        elif redis_url is not None:
            raise TypeError("give either redis_url or settings, not both")
        self.settings = settings
        self._app = app
        self._open: _Open | None = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Connects; ``async with`` does it by itself."""
        if self._open is None:
            store = await Store.open(self.settings)
            self._open = _Open(store, Catalog(store, self._app), RunWaiter(store))

    async def close(self) -> None:
        """Closes the connections. Whatever was submitted goes on."""
        opened, self._open = self._open, None
        if opened is not None:
            await opened.waiter.close()
            await opened.store.close()

    @property
    def store(self) -> Store:
        """The open store."""
        return self._opened.store

    # Watching

    async def status(self, batch: str) -> BatchStatus:
        """Where a batch stands: a few counters, whatever its size.

        Raises:
            NoSuchBatch: nothing was ever submitted under this key, or its retention is over.
        """
        status = batch_status(batch, await reader.batch_counts(self.store, batch))
        if status.total == 0 and not await inspection.is_noted(self.store, batch):
            raise NoSuchBatch(batch)
        return status

    async def deployment(self, *, batches: int = 10) -> DeploymentStatus:
        """The whole deployment: its counters, hosts and newest batches."""
        return await inspection.deployment(self.store, batches)

    async def watch(
        self, batch: str, *, retry_shed: bool = False, on_wait: Callable[[int, float], None] | None = None
    ) -> AsyncGenerator[BatchStatus]:
        """A batch's status, now and whenever it changes, at most 50 times a second, until every run has ended.

        A batch with runs in ``confirmation_unknown`` does not end by itself: look at ``settled``.

        Args:
            batch: the batch's key.
            retry_shed: runs that are shed come back by the calendar, and the batch has not ended before each of them
                has another end, or is refused for good.
            on_wait: told now and then how many of these wait, and for how many seconds the next one does.

        Raises:
            NoSuchBatch: there is no such batch.
        """
        channel = self.store.keys.batch_channel(batch)
        async with signals(self.store, channel) as told, ComingBack(self.store, batch, on_wait) as coming_back:
            previous: BatchStatus | None = None
            while True:
                status = await self.status(batch)
                shed = retry_shed and status.count(RunState.SHED) > 0
                if shed and status.settled and not await coming_back.nothing_left():
                    continue
                if status != previous:
                    yield status
                    previous = status
                if status.terminal:
                    return
                if shed:
                    coming_back.begin()
                await asyncio.sleep(_WATCH_PAUSE_S)
                await told_within(told, POLL_S - _WATCH_PAUSE_S)

    async def results(self, batch: str) -> AsyncGenerator[Result]:
        """The results of a batch, in no particular order: of every run that has ended, or is ``confirmation_unknown``.

        Raises:
            NoSuchBatch: there is no such batch.
        """
        async for page in self.result_pages(batch):
            for result in page:
                yield result

    async def result_pages(self, batch: str) -> AsyncGenerator[list[Result]]:
        """The same in pages, for whoever wants to write many at a time."""
        await self.status(batch)
        async for page in inspection.batch_records(self.store, batch):
            ended = [result_of(record) for record in page if record.state in inspection.OVER]
            if ended:
                yield ended

    # Looking closer

    async def runs(
        self, *, batch: str | None = None, state: RunState | str | None = None, limit: int = 50
    ) -> list[RunSummary]:
        """Some runs, the newest first; of one batch in the order of submission in each partition.

        Raises:
            NoSuchBatch: there is no such batch.
            ValueError: no such state.
        """
        wanted = None if state is None else RunState(state)
        if batch is not None:
            await self.status(batch)
        return await inspection.listing(self.store, batch, wanted, limit)

    async def show(self, run_id: str) -> RunView:
        """Everything that the store knows of a run, with its journal.

        Raises:
            NoSuchRun: there is no such run.
        """
        return await inspection.view(self.store, await self._record(run_id))

    async def why(self, run_id: str) -> Why:
        """Why a run is where it is.

        Raises:
            NoSuchRun: there is no such run.
        """
        return await inspection.why(self.store, await self._record(run_id))

    async def hosts(self) -> list[HostView]:
        """The registered hosts."""
        return await inspection.hosts(self.store)

    # Changing things

    async def cancel(self, run_or_batch: str) -> int:
        """Cancels a run, or all runs of a batch; children go with their parents.

        Queued and waiting runs end at once, running ones at their next step boundary, those whose effect is unproven
        once somebody has resolved that. Runs that have ended are left alone.

        Returns:
            How many runs were cancelled, or are going to be.

        Raises:
            NoSuchRun, NoSuchBatch: there is none.
        """
        if is_run_id(run_or_batch):
            await self._record(run_or_batch)
            return await self._cancel([run_or_batch])
        await self.status(run_or_batch)
        count = 0
        async for page in reader.batch_run_ids(self.store, run_or_batch):
            count += await self._cancel(page)
        return count

    async def drain(self, host: str, *, undo: bool = False) -> None:
        """Asks a host to claim nothing more and to hand its runs back, or (``undo``) to go on claiming.

        Raises:
            NoSuchHost: no host of this name is registered.
        """
        known = await self.store.hosts()
        if host not in known:
            raise NoSuchHost(host, list(known))
        await self.store.mark_draining(host, draining=not undo)

    # Within

    @property
    def _opened(self) -> "_Open":
        if self._open is None:
            raise RuntimeError("the client is not open: use `async with Client() as client`, or await client.open()")
        return self._open

    @property
    def _catalog(self) -> Catalog:
        return self._opened.catalog

    @property
    def _waiter(self) -> RunWaiter:
        return self._opened.waiter

    async def _facts(self) -> Facts:
        return await self._opened.catalog.facts()

    async def _record(self, run_id: str) -> RunRecord:
        try:
            record = await reader.record(self.store, run_id)
        except ValueError:
            raise NoSuchRun(run_id) from None
        if record is None:
            raise NoSuchRun(run_id)
        return record

    async def _cancel(self, run_ids: list[str]) -> int:
        words = await self.store.cancel(partition_of(run_ids[0]), "cancelled by request", run_ids)
        return sum(word in ("cancelled", "asked", "unknown") for word in words)
