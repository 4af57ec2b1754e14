"""Sending runs to the store: grouped by partition, several calls in flight, in bounded memory."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from typing import Final, Self

from cluster.errors import StoreError
from cluster.keys import partition_of
from cluster.records import Made, NewRun
from cluster.store import Store
from penstock.batchfile import KEPT_PROBLEMS
from penstock.checking import Facts, JobLike, checked
from penstock.errors import InvalidBatch, SubmissionInterrupted
from penstock.views import Conflict, Problem, SubmitReport

# A script call holds the server: 128 runs take it about 5 ms, which other clients hardly notice.
CALL_RUNS: Final = 128
CALL_BYTES: Final = 1024 * 1024
CALLS_IN_FLIGHT: Final = 12
KEPT_CONFLICTS: Final = 1000
_JOBS_A_TURN: Final = 256


class Submission:
    """One submission of one batch. ``put`` runs, ``await turn()`` when it says so, and ``await finish()``.

    Used as an asynchronous context manager, it leaves no call behind when its user is interrupted.
    """

    def __init__(self, store: Store, batch: str) -> None:
        self._store = store
        self._batch = batch
        self._waiting: list[list[NewRun]] = [[] for _ in store.partitions]
        self._bytes = [0] * len(store.partitions)
        self._calls: set[asyncio.Task[None]] = set()
        self._conflicts: list[Conflict] = []
        self._conflict_count = 0
        self.accepted = 0
        self.existing = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    @property
    def acknowledged(self) -> int:
        """Jobs that the store has answered for."""
        return self.accepted + self.existing + self._conflict_count

    def put(self, run: NewRun) -> bool:
        """Takes a run; True when a group went on its way, so that the caller should ``await turn()``."""
        partition = partition_of(run.id)
        group = self._waiting[partition]
        group.append(run)
        self._bytes[partition] += len(run.job)
        if len(group) < CALL_RUNS and self._bytes[partition] < CALL_BYTES:
            return False
        self._send(partition)
        return True

    async def turn(self) -> None:
        """Lets calls go out and answers come in; waits while enough of them are on their way.

        Raises:
            SubmissionInterrupted: the store failed.
        """
        await asyncio.sleep(0)
        while len(self._calls) >= CALLS_IN_FLIGHT:
            await self._some()

    async def finish(self) -> None:
        """Sends what is left, and waits for every answer.

        Raises:
            SubmissionInterrupted: the store failed.
        """
        for partition, group in enumerate(self._waiting):
            if group:
                self._send(partition)
        while self._calls:
            await self._some()

    def report(self) -> SubmitReport:
        """What has become of the jobs so far."""
        return SubmitReport(
            batch=self._batch,
            accepted=self.accepted,
            existing=self.existing,
            conflict_count=self._conflict_count,
            conflicts=tuple(self._conflicts),
        )

    def _send(self, partition: int) -> None:
        group, self._waiting[partition] = self._waiting[partition], []
        self._bytes[partition] = 0
        self._calls.add(asyncio.create_task(self._call(partition, group)))

    async def _call(self, partition: int, group: list[NewRun]) -> None:
        answers = await self._store.submit(self._batch, partition, group)
        for run, answer in zip(group, answers, strict=True):
            if answer.made is Made.MADE:
                self.accepted += 1
            elif answer.made is Made.EXISTING:
                self.existing += 1
            else:
                self._conflict_count += 1
                if len(self._conflicts) < KEPT_CONFLICTS:
                    self._conflicts.append(Conflict(run.custom_id, run.id))

    async def _some(self) -> None:
        done, self._calls = await asyncio.wait(self._calls, return_when=asyncio.FIRST_COMPLETED)
        errors = [error for call in done if (error := call.exception()) is not None]
        if errors:
            if isinstance(errors[0], StoreError):
                raise SubmissionInterrupted(self.report(), errors[0]) from errors[0]
            raise errors[0]


async def check_all(jobs: Sequence[JobLike], facts: Facts, batch: str) -> None:
    """Checks jobs as a whole, without holding up the event loop.

    Raises:
        InvalidBatch: some are not valid.
    """
    kept: list[Problem] = []
    count = 0
    for position, item in enumerate(jobs, 1):
        found = checked(position, item, facts)
        if isinstance(found, list):
            count += len(found)
            kept.extend(found[: KEPT_PROBLEMS - len(kept)])
        if position % _JOBS_A_TURN == 0:
            await asyncio.sleep(0)
    if count:
        raise InvalidBatch("", tuple(kept), count, batch=batch)


async def each_of(jobs: Iterable[JobLike] | AsyncIterable[JobLike]) -> AsyncIterator[JobLike]:
    """Jobs, wherever they come from."""
    if isinstance(jobs, AsyncIterable):
        async for job in jobs:
            yield job
    else:
        for job in jobs:
            yield job
