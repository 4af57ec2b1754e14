"""The client: submit jobs, watch them, read what became of them. It talks to the store only and needs no Ray."""

import asyncio
import os
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sequence
from typing import IO, Any, Final, NamedTuple, Self, TypeAlias

import msgspec
from pydantic import BaseModel, SecretStr
from pydantic_core import to_jsonable_python

from actors.job import new_run
from actors.registry import App
from cluster import reader
from cluster.config import Settings
from cluster.keys import partition_of
from cluster.lifecycle import RunState
from cluster.records import Made, NewRun, RunRecord
from cluster.store import Store
from penstock import inspection
from penstock.approvals import ApprovalCalls
from penstock.batchfile import BatchFile, Scan
from penstock.catalog import Catalog
from penstock.checking import Facts, JobLike, as_job, checked
from penstock.dependencies import DependencyCalls
from penstock.errors import InvalidBatch, NoSuchBatch, NoSuchHost, NoSuchRun, WaitTimedOut
from penstock.lineage import LineageCalls
from penstock.names import check_batch_key, is_run_id
from penstock.policies import PolicyCalls
from penstock.submission import Submission, check_all, each_of
from penstock.trail import TrailCalls
from penstock.unknown import UnknownCalls
from penstock.views import (
    BatchStatus,
    DeploymentStatus,
    HostView,
    Problem,
    Result,
    RunSummary,
    RunView,
    SubmitProgress,
    SubmitReport,
    Why,
    batch_status,
    result_of,
)
from penstock.waiting import POLL_S, RunWaiter, signals, told_within, until_over

ProgressCallback: TypeAlias = Callable[[SubmitProgress], None]

_WATCH_PAUSE_S: Final = 0.02
_LINES_A_TURN: Final = 256


class _Open(NamedTuple):
    """What an open client has."""

    store: Store
    catalog: Catalog
    waiter: RunWaiter


class Client(DependencyCalls, LineageCalls, UnknownCalls, TrailCalls, PolicyCalls, ApprovalCalls):
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

    # Submitting

    async def submit(
        self, jobs: Iterable[JobLike] | AsyncIterable[JobLike], *, batch: str | None = None
    ) -> SubmitReport:
        """Submits jobs. When it returns, every job that it counts as accepted is durable.

        A list is checked as a whole before any of it is submitted, anything else job by job. The same job (by
        batch and ``custom_id``) is made once, however often it is submitted.

        Args:
            jobs: :class:`Job` objects or mappings with the same fields.
            batch: the batch's key; by default a new one, see the report.

        Raises:
            InvalidBatch: some jobs are not valid.
            SubmissionInterrupted: the store failed meanwhile; submit again under the batch that it names.
        """
        key = f"b-{uuid.uuid4().hex[:20]}" if batch is None else check_batch_key(batch)
        facts = await self._opened.catalog.facts()
        known_good, partitions = isinstance(jobs, Sequence), self.store.keys.partitions
        if isinstance(jobs, Sequence):
            await check_all(jobs, facts, key)
        async with Submission(self.store, key) as submission:
            await self.store.note_batch(key, facts.now_ms)
            position = 0
            async for item in each_of(jobs):
                position += 1
                job = as_job(position, item) if known_good else checked(position, item, facts)
                if isinstance(job, list):
                    await submission.finish()
                    raise InvalidBatch("", tuple(job), len(job), batch=key, accepted=submission.accepted)
                if submission.put(new_run(job, key, partitions, self.settings.user)):
                    await submission.turn()
            await submission.finish()
            return submission.report()

    async def submit_file(
        self,
        path: str | os.PathLike[str] | IO[bytes],
        *,
        batch: str | None = None,
        skip_invalid: bool = False,
        on_progress: ProgressCallback | None = None,
    ) -> SubmitReport:
        """Submits a batch file (JSON lines), see docs/batch-files.md.

        All of it is checked first; nothing is submitted when a line is bad, unless ``skip_invalid``.

        Args:
            path: the file, or an open binary one that can be read twice.
            batch: the batch's key; by default a digest of the content, so that the same file is the same batch.
            skip_invalid: leave bad lines out and submit the others.
            on_progress: told now and then how far it is.

        Raises:
            InvalidBatch: some lines are not valid.
            BatchFileError: the file cannot be read, or changed meanwhile.
            SubmissionInterrupted: the store failed meanwhile; submit the file again.
        """
        if batch is not None:
            check_batch_key(batch)
        facts = await self._opened.catalog.facts()
        with BatchFile(path) as file:
            scan = Scan(facts)

            def tell(phase: str, jobs: int) -> None:
                if on_progress is not None:
                    position, size = file.position_bytes, file.size_bytes
                    on_progress(
                        SubmitProgress(
                            phase=phase, done_bytes=position, total_bytes=size, jobs=jobs, problems=scan.problem_count
                        )
                    )

            for line in file.scan(scan, facts):
                if line % _LINES_A_TURN == 0:
                    tell("check", scan.jobs)
                    await asyncio.sleep(0)
            key = batch or f"f-{scan.digest}"
            if scan.problem_count and not skip_invalid:
                raise InvalidBatch(file.name, tuple(scan.problems), scan.problem_count, batch=key)
            async with Submission(self.store, key) as submission:
                await self.store.note_batch(key, facts.now_ms)
                for _, job in file.jobs(facts, scan.bad_lines):
                    if submission.put(new_run(job, key, self.store.keys.partitions, self.settings.user)):
                        await submission.turn()
                        tell("submit", submission.acknowledged)
                await submission.finish()
            tell("submit", submission.acknowledged)
            return msgspec.structs.replace(
                submission.report(),
                invalid_lines=len(scan.bad_lines),
                problem_count=scan.problem_count,
                problems=tuple(scan.problems),
            )

    async def run(self, agent: str, input: Any, *, timeout_s: float | None = None, **job_fields: Any) -> Result:
        """Submits one job and waits until it has ended, whatever its end, or nobody can prove how it went.

        Args:
            agent: the agent's name.
            input: its input: JSON-like data or a pydantic model.
            timeout_s: how long to wait at most; the run goes on without us.
            job_fields: further fields of :class:`Job`.

        Raises:
            InvalidBatch: the job is not valid.
            WaitTimedOut: ``timeout_s`` is over.
        """
        custom_id = job_fields.pop("custom_id", None) or uuid.uuid4().hex
        payload = to_jsonable_python(input) if isinstance(input, BaseModel) else input
        item = {"custom_id": custom_id, "agent": agent, "input": payload, **job_fields}
        store, waiter = self._opened.store, self._opened.waiter
        await waiter.ready()
        with waiter.place() as (batch, told):
            run = await self._one_run(item, batch)
            try:
                async with asyncio.timeout(timeout_s):
                    (answer,) = await store.submit(batch, partition_of(run.id), [run])
                    if answer.made is Made.OTHER:
                        reason = "another job with other content has this idempotency_key"
                        problem = Problem(1, "idempotency_key", reason, "use another key", str(custom_id))
                        raise InvalidBatch("", (problem,), 1, batch=batch)
                    return result_of(await until_over(store, run.id, told, ours=answer.made is Made.MADE))
            except TimeoutError:
                raise WaitTimedOut(f"run {run.id}", timeout_s or 0.0) from None

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

    async def watch(self, batch: str) -> AsyncGenerator[BatchStatus]:
        """A batch's status, now and whenever it changes, at most 50 times a second, until every run has ended.

        A batch with runs in ``confirmation_unknown`` does not end by itself: look at ``settled``.

        Raises:
            NoSuchBatch: there is no such batch.
        """
        async with signals(self.store, self.store.keys.batch_channel(batch)) as told:
            previous: BatchStatus | None = None
            while True:
                status = await self.status(batch)
                if status != previous:
                    yield status
                    previous = status
                if status.terminal:
                    return
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

    async def _one_run(self, item: dict[str, Any], batch: str) -> NewRun:
        """One checked run; facts that somebody asked for before are good enough to accept it, not to refuse it."""
        catalog = self._opened.catalog
        job = checked(1, item, await catalog.recent_facts())
        if isinstance(job, list):
            job = checked(1, item, await catalog.facts())
        if isinstance(job, list):
            raise InvalidBatch("", tuple(job), len(job), batch=batch)
        return new_run(job, batch, self.store.keys.partitions, self.settings.user)

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
