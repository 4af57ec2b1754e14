"""Submitting jobs: from code, from a file, or one of them whose end is waited for."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from typing import IO, Any, Final, TypeAlias

import msgspec
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from actors.job import new_run
from cluster.config import Settings
from cluster.keys import partition_of
from cluster.records import Made, NewRun
from cluster.store import Store
from penstock.batchfile import BatchFile, Scan
from penstock.catalog import Catalog
from penstock.checking import JobLike, as_job, checked
from penstock.errors import InvalidBatch, Refused, WaitTimedOut
from penstock.names import check_batch_key
from penstock.refusals import RefusedCallback, refusal_of
from penstock.submission import Submission, check_all, each_of
from penstock.submit_views import Problem, SubmitProgress, SubmitReport
from penstock.views import Result, result_of
from penstock.waiting import RunWaiter, until_over

ProgressCallback: TypeAlias = Callable[[SubmitProgress], None]

_LINES_A_TURN: Final = 256


class SubmitCalls:
    """What a client can submit."""

    settings: Settings

    @property
    def store(self) -> Store:
        """The open store."""
        raise NotImplementedError

    @property
    def _catalog(self) -> Catalog:
        raise NotImplementedError

    @property
    def _waiter(self) -> RunWaiter:
        raise NotImplementedError

    async def submit(
        self,
        jobs: Iterable[JobLike] | AsyncIterable[JobLike],
        *,
        batch: str | None = None,
        retry_refused: bool = False,
        on_refused: RefusedCallback | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> SubmitReport:
        """Submits jobs. When it returns, every job that it counts as accepted is durable.

        A list is checked as a whole before any of it is submitted, anything else job by job. The same job (by
        batch and ``custom_id``) is made once, however often it is submitted.

        Args:
            jobs: :class:`Job` objects or mappings with the same fields.
            batch: the batch's key; by default a new one, see the report.
            retry_refused: refused jobs come back when the door has told them to, until they are accepted or refused
                for good; this may take as long as the queue does. They wait in a temporary file.
            on_refused: told of each job that is refused for good; the report has the first ones only.
            on_progress: told now and then how far it is.

        Raises:
            InvalidBatch: some jobs are not valid.
            SubmissionInterrupted: the store failed meanwhile; submit again under the batch that it names.
        """
        key = f"b-{uuid.uuid4().hex[:20]}" if batch is None else check_batch_key(batch)
        facts = await self._catalog.facts()
        known_good, partitions = isinstance(jobs, Sequence), self.store.keys.partitions
        if isinstance(jobs, Sequence):
            await check_all(jobs, facts, key)
        progress, now_ms = _Progress(on_progress), await self.store.server_ms()
        async with Submission(
            self.store, key, now_ms, retry=retry_refused, refused=on_refused, on_wait=progress.tell
        ) as submission:
            progress.submission = submission
            await self.store.note_batch(key, facts.now_ms)
            position = 0
            async for item in each_of(jobs):
                position += 1
                job = as_job(position, item) if known_good else checked(position, item, facts)
                if isinstance(job, list):
                    await submission.flush()
                    raise InvalidBatch("", tuple(job), len(job), batch=key, accepted=submission.accepted)
                if submission.put(new_run(job, key, partitions, self.settings.user), position):
                    await submission.turn()
                    progress.tell("submit")
            await submission.finish()
            return submission.report()

    async def submit_file(
        self,
        path: str | os.PathLike[str] | IO[bytes],
        *,
        batch: str | None = None,
        skip_invalid: bool = False,
        retry_refused: bool = False,
        on_refused: RefusedCallback | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> SubmitReport:
        """Submits a batch file (JSON lines), see docs/batch-files.md.

        All of it is checked first; nothing is submitted when a line is bad, unless ``skip_invalid``.

        Args:
            path: the file, or an open binary one that can be read twice.
            batch: the batch's key; by default a digest of the content, so that the same file is the same batch.
            skip_invalid: leave bad lines out and submit the others.
            retry_refused: as for :meth:`submit`.
            on_refused: as for :meth:`submit`.
            on_progress: told now and then how far it is.

        Raises:
            InvalidBatch: some lines are not valid.
            BatchFileError: the file cannot be read, or changed meanwhile.
            SubmissionInterrupted: the store failed meanwhile; submit the file again.
        """
        if batch is not None:
            check_batch_key(batch)
        facts = await self._catalog.facts()
        with BatchFile(path) as file:
            scan = Scan(facts)
            progress = _Progress(on_progress, file, scan)
            for line in file.scan(scan, facts):
                if line % _LINES_A_TURN == 0:
                    progress.tell("check")
                    await asyncio.sleep(0)
            key = batch or f"f-{scan.digest}"
            if scan.problem_count and not skip_invalid:
                raise InvalidBatch(file.name, tuple(scan.problems), scan.problem_count, batch=key)
            now_ms = await self.store.server_ms()
            async with Submission(
                self.store, key, now_ms, retry=retry_refused, refused=on_refused, on_wait=progress.tell
            ) as submission:
                progress.submission = submission
                await self.store.note_batch(key, now_ms)
                for line, job in file.jobs(facts, scan.bad_lines):
                    if submission.put(new_run(job, key, self.store.keys.partitions, self.settings.user), line):
                        await submission.turn()
                        progress.tell("submit")
                await submission.finish()
            progress.tell("submit")
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
            Refused: it was not queued; the error says why, and when to come back.
            WaitTimedOut: ``timeout_s`` is over.
        """
        custom_id = job_fields.pop("custom_id", None) or uuid.uuid4().hex
        payload = to_jsonable_python(input) if isinstance(input, BaseModel) else input
        item = {"custom_id": custom_id, "agent": agent, "input": payload, **job_fields}
        store, waiter = self.store, self._waiter
        await waiter.ready()
        with waiter.place() as (batch, told):
            run = await self._one_run(item, batch)
            try:
                async with asyncio.timeout(timeout_s):
                    (answer,) = await store.submit(batch, partition_of(run.id), [run])
                    if answer.made is Made.REFUSED:
                        raise Refused(refusal_of(run, 1, answer))
                    if answer.made is Made.OTHER:
                        reason = "another job with other content has this idempotency_key"
                        problem = Problem(1, "idempotency_key", reason, "use another key", str(custom_id))
                        raise InvalidBatch("", (problem,), 1, batch=batch)
                    return result_of(await until_over(store, run.id, told, ours=answer.made is Made.MADE))
            except TimeoutError:
                raise WaitTimedOut(f"run {run.id}", timeout_s or 0.0) from None

    async def _one_run(self, item: dict[str, Any], batch: str) -> NewRun:
        """One checked run; facts that somebody asked for before are good enough to accept it, not to refuse it."""
        job = checked(1, item, await self._catalog.recent_facts())
        if isinstance(job, list):
            job = checked(1, item, await self._catalog.facts())
        if isinstance(job, list):
            raise InvalidBatch("", tuple(job), len(job), batch=batch)
        return new_run(job, batch, self.store.keys.partitions, self.settings.user)


class _Progress:
    """Tells how far a submission is, if anybody wants to know."""

    def __init__(
        self, callback: ProgressCallback | None, file: BatchFile | None = None, scan: Scan | None = None
    ) -> None:
        self._callback = callback
        self._file = file
        self._scan = scan
        self.submission: Submission | None = None

    def tell(self, phase: str = "retry") -> None:
        """How far it is now; the scan's count of jobs holds until there is a submission."""
        if self._callback is None:
            return
        file, scan, submission = self._file, self._scan, self.submission
        checked_jobs = 0 if scan is None else scan.jobs
        self._callback(
            SubmitProgress(
                phase=phase,
                done_bytes=0 if file is None else file.position_bytes,
                total_bytes=0 if file is None else file.size_bytes,
                jobs=checked_jobs if submission is None else submission.acknowledged,
                problems=0 if scan is None else scan.problem_count,
                accepted=0 if submission is None else submission.accepted,
                refused=0 if submission is None else submission.refused,
                waiting=0 if submission is None else submission.waiting,
                next_s=0.0 if submission is None else submission.next_s,
            )
        )
