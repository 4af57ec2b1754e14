"""Sending runs to the store: grouped by partition, several calls in flight, in bounded memory."""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from typing import Final, NamedTuple, Self

from cluster.errors import StoreError
from cluster.keys import partition_of
from cluster.records import Made, NewRun, Submitted
from cluster.store import Store
from penstock.batchfile import KEPT_PROBLEMS
from penstock.checking import Facts, JobLike, checked
from penstock.errors import InvalidBatch, SubmissionInterrupted
from penstock.refusals import Placements, Refusals, RefusedCallback, refusal_of
from penstock.submit_views import Conflict, Problem, SubmitReport
from penstock.waiting_room import WaitingRoom

# A script call holds the server: 128 runs take it about 5 ms, which other clients hardly notice.
CALL_RUNS: Final = 128
CALL_BYTES: Final = 1024 * 1024
CALLS_IN_FLIGHT: Final = 12
KEPT_CONFLICTS: Final = 1000
_JOBS_A_TURN: Final = 256
_LOOK_S: Final = 0.5
"""How often somebody who waits for refused jobs to come back is told how far it is."""


class _Sent(NamedTuple):
    """A run on its way. ``place`` is the waiting room's, for one that has come back."""

    run: NewRun
    line: int
    place: int | None = None


class Submission:
    """One submission of one batch. ``put`` runs, ``await turn()`` when it says so, and ``await finish()``.

    Used as an asynchronous context manager, it leaves no call behind when its user is interrupted.

    Args:
        store: where to.
        batch: the batch's key.
        now_ms: the store's clock just now.
        retry: refused jobs come back by the calendar, until they are accepted or refused for good.
        refused: told of each job that is refused for good.
        on_wait: called now and then while refused jobs wait.
    """

    def __init__(
        self,
        store: Store,
        batch: str,
        now_ms: int,
        *,
        retry: bool = False,
        refused: RefusedCallback | None = None,
        on_wait: Callable[[], None] | None = None,
    ) -> None:
        self._store = store
        self._batch = batch
        self._retry = retry
        self._on_wait = on_wait
        self._clock_ahead_ms = now_ms - _local_ms()
        self._waiting: list[list[_Sent]] = [[] for _ in store.partitions]
        self._bytes = [0] * len(store.partitions)
        self._calls: set[asyncio.Task[None]] = set()
        self._conflicts: list[Conflict] = []
        self._conflict_count = 0
        self._placements = Placements()
        self._refusals = Refusals(refused)
        self._room = WaitingRoom()
        self.accepted = 0
        self.existing = 0
        self.retries = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        self._room.__exit__()

    @property
    def refused(self) -> int:
        """Jobs that were refused for good."""
        return self._refusals.count

    @property
    def waiting(self) -> int:
        """Jobs that are to come back."""
        return len(self._room)

    @property
    def next_s(self) -> float:
        """How long until the next one comes back."""
        at_ms = self._room.next_ms
        return 0.0 if at_ms is None else max(0.0, (at_ms - _local_ms()) / 1000)

    @property
    def acknowledged(self) -> int:
        """Jobs that the store has answered for."""
        return self.accepted + self.existing + self._conflict_count + self.refused + self.waiting

    def put(self, run: NewRun, line: int = 0) -> bool:
        """Takes a run; True when a group went on its way, so that the caller should ``await turn()``."""
        return self._put(_Sent(run, line))

    def wait(self, run: NewRun, back_ms: int) -> None:
        """Takes a run that is to come back at a moment of the store's clock, as it is brought back then (``retry``)."""
        self._room.add(back_ms - self._clock_ahead_ms, run, 0)

    async def turn(self) -> None:
        """Lets calls go out and answers come in; waits while enough of them are on their way.

        Raises:
            SubmissionInterrupted: the store failed.
        """
        await asyncio.sleep(0)
        self._bring_back()
        while len(self._calls) >= CALLS_IN_FLIGHT:
            await self._some()

    async def finish(self) -> None:
        """Sends what is left, and waits for every answer; with ``retry`` also until nothing waits any more.

        Raises:
            SubmissionInterrupted: the store failed.
        """
        await self.flush()
        while self._room:
            self._tell()
            await asyncio.sleep(min(self.next_s, _LOOK_S))
            while self._bring_back():
                await self.flush()
        self._tell()

    def report(self) -> SubmitReport:
        """What has become of the jobs so far."""
        return SubmitReport(
            batch=self._batch,
            accepted=self.accepted,
            existing=self.existing,
            first=self._placements.first,
            last=self._placements.last,
            refused=self.refused,
            reasons=self._refusals.reasons,
            refusals=tuple(self._refusals.kept),
            retries=self.retries,
            waiting=self.waiting,
            conflict_count=self._conflict_count,
            conflicts=tuple(self._conflicts),
        )

    def _put(self, sent: _Sent) -> bool:
        partition = partition_of(sent.run.id)
        group = self._waiting[partition]
        group.append(sent)
        self._bytes[partition] += len(sent.run.job)
        if len(group) < CALL_RUNS and self._bytes[partition] < CALL_BYTES:
            return False
        self._send(partition)
        return True

    def _bring_back(self) -> int:
        """Puts jobs whose time has come; how many."""
        if not self._room:
            return 0
        back = self._room.due(_local_ms(), CALL_RUNS)
        for each in back:
            self._put(_Sent(each.run._replace(again="1"), each.line, each.place))
        self.retries += len(back)
        return len(back)

    def _tell(self) -> None:
        if self._on_wait is not None and self._retry:
            self._on_wait()

    async def flush(self) -> None:
        """Sends what is left, and waits for every answer.

        Raises:
            SubmissionInterrupted: the store failed.
        """
        for partition, group in enumerate(self._waiting):
            if group:
                self._send(partition)
        while self._calls:
            await self._some()

    def _send(self, partition: int) -> None:
        group, self._waiting[partition] = self._waiting[partition], []
        self._bytes[partition] = 0
        self._calls.add(asyncio.create_task(self._call(partition, group)))

    async def _call(self, partition: int, group: list[_Sent]) -> None:
        answers = await self._store.submit(self._batch, partition, [sent.run for sent in group])
        for sent, answer in zip(group, answers, strict=True):
            match answer.made:
                case Made.MADE:
                    self.accepted += 1
                    self._placements.add(sent.run, answer)
                case Made.EXISTING:
                    self.existing += 1
                case Made.REFUSED:
                    self._refused(sent, answer)
                case Made.OTHER:
                    self._conflict_count += 1
                    if len(self._conflicts) < KEPT_CONFLICTS:
                        self._conflicts.append(Conflict(sent.run.custom_id, sent.run.id))

    def _refused(self, sent: _Sent, answer: Submitted) -> None:
        if not (self._retry and answer.by_itself and answer.retry_after_ms >= 0):
            self._refusals.add(refusal_of(sent.run, sent.line, answer))
            return
        run = sent.run
        if sent.place is None and run.deadline.startswith("+"):
            # Seconds from submission are from the first one: coming back gives nobody more time.
            now_ms = _local_ms() + self._clock_ahead_ms
            run = run._replace(deadline=str(now_ms + int(run.deadline)))
        self._room.add(_local_ms() + answer.retry_after_ms, run, sent.line, sent.place)

    async def _some(self) -> None:
        done, self._calls = await asyncio.wait(self._calls, return_when=asyncio.FIRST_COMPLETED)
        errors = [error for call in done if (error := call.exception()) is not None]
        if errors:
            if isinstance(errors[0], StoreError):
                raise SubmissionInterrupted(self.report(), errors[0]) from errors[0]
            raise errors[0]


def _local_ms() -> int:
    """A clock that nobody sets."""
    return time.monotonic_ns() // 1_000_000


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
