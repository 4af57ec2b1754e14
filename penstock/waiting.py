"""Waiting for runs and batches to end: the store tells when something has, and a slow poll is the net below that."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Final

from cluster import reader
from cluster.lifecycle import TERMINAL, RunState
from cluster.records import RunRecord
from cluster.store import Store
from cluster.tasks import end
from penstock.errors import NoSuchRun

POLL_S: Final = 0.5
_FIRST_POLL_S: Final = 0.02
_SLOTS: Final = 64
_OVER: Final = TERMINAL | {RunState.CONFIRMATION_UNKNOWN}


@contextlib.asynccontextmanager
async def signals(store: Store, channel: str) -> AsyncIterator[asyncio.Event]:
    """An event that is set whenever ``channel`` is told something, or may have been told something."""
    told = asyncio.Event()

    async def listen() -> None:
        async for _ in store.listen(channel):
            told.set()

    listening = asyncio.create_task(listen(), name="penstock-signals")
    try:
        yield told
    finally:
        await end([listening])


async def told_within(told: asyncio.Event, seconds: float) -> bool:
    """Waits for the event, at most so long, and takes it back; whether it came."""
    try:
        async with asyncio.timeout(seconds):
            await told.wait()
    except TimeoutError:
        return False
    told.clear()
    return True


class RunWaiter:
    """Waits for single runs of one client without a subscription of its own for each.

    It listens on the channels of a fixed set of batches that only this client uses; each run goes into the batch with
    the fewest waiters, so that a message wakes few others than the one that it is meant for.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        prefix = f"run-{uuid.uuid4().hex[:16]}"
        self._batches = [f"{prefix}-{slot:02d}" for slot in range(_SLOTS)]
        self._waiters: dict[str, set[asyncio.Event]] = {batch: set() for batch in self._batches}
        self._channels = {store.keys.batch_channel(batch): batch for batch in self._batches}
        self._ready = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None

    async def ready(self) -> None:
        """Returns when messages are being heard, or soon: a store that does not let us listen is polled instead."""
        if self._listening is None:
            self._listening = asyncio.create_task(self._listen(), name="penstock-run-waiter")
        if not self._ready.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._ready.wait()

    @contextlib.contextmanager
    def place(self) -> Iterator[tuple[str, asyncio.Event]]:
        """A batch for one run, and the event that says that a run of this batch has ended."""
        batch = min(self._batches, key=lambda each: len(self._waiters[each]))
        told = asyncio.Event()
        self._waiters[batch].add(told)
        try:
            yield batch, told
        finally:
            self._waiters[batch].discard(told)

    async def close(self) -> None:
        """Stops listening."""
        if self._listening is not None:
            await end([self._listening])

    async def _listen(self) -> None:
        async for message in self._store.listen(*self._channels):
            self._ready.set()
            batches = self._batches if message is None else [self._channels[message[0]]]
            for batch in batches:
                for told in self._waiters[batch]:
                    told.set()


async def until_over(store: Store, run_id: str, told: asyncio.Event, *, ours: bool) -> RunRecord:
    """The record of a run when it has ended, or when nobody can prove how it went.

    Args:
        store: where the run is.
        run_id: the run.
        told: set when it may be time to look.
        ours: False when another submission made the run, so that messages about it go elsewhere: then it is polled,
            at first quickly.

    Raises:
        NoSuchRun: it is gone.
    """
    pause_s = POLL_S if ours else _FIRST_POLL_S
    if ours:
        await told_within(told, pause_s)
    while True:
        record = await reader.record(store, run_id)
        if record is None:
            raise NoSuchRun(run_id)
        if record.state in _OVER:
            return record
        await told_within(told, pause_s)
        pause_s = min(POLL_S, pause_s * 1.5)
