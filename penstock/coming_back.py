"""Runs of a batch that were shed come back by the calendar, while somebody watches the batch."""

import asyncio
from collections.abc import Callable
from typing import Self

from cluster.queue_reader import shed_runs
from cluster.store import Store
from cluster.tasks import end
from penstock.submission import Submission


class ComingBack:
    """Brings back what was shed of one batch, round by round: a round takes all that was shed since the one before, and
    lasts until each of them is queued again, or refused for good. A context manager.

    A shed run's record has all that is needed to submit it again: no file is, and it stays the run that it was.

    Args:
        store: where the batch is.
        batch: its key.
        on_wait: told now and then during a round how many wait, and for how many seconds the next one does.
    """

    def __init__(self, store: Store, batch: str, on_wait: Callable[[int, float], None] | None = None) -> None:
        self._store = store
        self._batch = batch
        self._on_wait = on_wait
        self._since_ms = 0
        self._round: asyncio.Task[int] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._round is not None:
            await end([self._round])

    def begin(self) -> None:
        """Begins a round, unless one is going on.

        Raises:
            SubmissionInterrupted: the store failed in the one before.
        """
        if self._round is None or self._round.done():
            if self._round is not None:
                self._round.result()
            self._round = asyncio.create_task(self._bring(), name="penstock-coming-back")

    async def nothing_left(self) -> bool:
        """Waits for the round's end, and looks once more: whether there was nothing to bring back any more.

        Raises:
            SubmissionInterrupted: the store failed.
        """
        if self._round is not None:
            going, self._round = self._round, None
            if await going:
                return False
        return await self._bring() == 0

    async def _bring(self) -> int:
        """One round; how many runs it took."""
        now_ms, taken = await self._store.server_ms(), 0

        def tell() -> None:
            if self._on_wait is not None and submission.waiting:
                self._on_wait(submission.waiting, submission.next_s)

        async with Submission(self._store, self._batch, now_ms, retry=True, on_wait=tell) as submission:
            async for shed in shed_runs(self._store, self._batch, self._since_ms):
                if shed.back_ms is not None:
                    submission.wait(shed.run, shed.back_ms)
                    taken += 1
            self._since_ms = now_ms
            await submission.finish()
        return taken
