"""Clients that offer runs at a rate, whether hosts keep up or not, and what became of each run."""

import asyncio
import heapq
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from actors.job import Job, new_run
from benchmarks.bench import ended, now
from cluster.keys import partition_of
from cluster.records import Made, NewRun
from penstock.client import Client
from penstock.views import Result

AGENT: Final = "holds-a-slot"
TICK_S: Final = 0.05


class Stream(NamedTuple):
    """Runs of one class and tenant, so many a second on average."""

    value: str
    rate: float
    tenant: str = "default"


@dataclass
class Offered:
    """One run, as its client sees it.

    Attributes:
        value, tenant: of its job.
        seconds: how long it takes.
        at_s: when it was offered first, from the beginning.
        refusals: reasons, one for each time.
        back_at_s: when it came back.
        admitted: whether it was queued in the end.
    """

    value: str
    tenant: str
    seconds: float
    at_s: float
    run: NewRun
    refusals: list[str] = field(default_factory=list)
    back_at_s: list[float] = field(default_factory=list)
    admitted: bool = False
    result: Result | None = None


class Crowd:
    """Poisson arrivals of runs whose lengths are spread exponentially.

    Args:
        client: an open client.
        batch: under which they are submitted.
        mean_s: how long a run takes on average.
        seed: of arrivals and lengths.
        comes_back: whether who is refused comes back when told to.
        job: further fields of each job.
    """

    def __init__(
        self, client: Client, batch: str, mean_s: float, seed: int, *, comes_back: bool = False, **job: Any
    ) -> None:
        self._client = client
        self._batch = batch
        self._mean_s = mean_s
        self._random = random.Random(seed)
        self._comes_back = comes_back
        self._job = job
        self._began = 0.0
        self._returning: list[tuple[float, str]] = []
        self.runs: dict[str, Offered] = {}
        self.door_s: list[float] = []

    async def offer(self, streams: Sequence[Stream], seconds: float) -> None:
        """Offers for so long, and lets nobody wait for an answer before the next ones come."""
        if not self._began:
            self._began = now()
            await self._client.store.note_batch(self._batch, await self._client.store.server_ms())
        until, at_s, asking = self._elapsed() + seconds, self._elapsed(), set[asyncio.Task[None]]()
        while at_s < until:
            fresh = [self._made(stream, at_s) for stream in streams for _ in range(self._arrivals(stream.rate))]
            for part in self._by_partition([*fresh, *self._back(at_s)]):
                asking.add(asyncio.create_task(self._submit(part)))
            at_s += TICK_S
            await asyncio.sleep(max(0.0, at_s - self._elapsed()))
        await asyncio.gather(*asking)

    async def burst(self, stream: Stream, count: int) -> None:
        """Offers so many at once, and stays until nobody is about to come back any more."""
        self._began = now()
        await self._client.store.note_batch(self._batch, await self._client.store.server_ms())
        made = [self._made(stream, 0.0) for _ in range(count)]
        await asyncio.gather(*(self._submit(part) for part in self._by_partition(made)))
        while self._returning:
            await asyncio.sleep(max(0.0, self._returning[0][0] - self._elapsed()))
            await asyncio.gather(*(self._submit(part) for part in self._by_partition(self._back(self._elapsed()))))

    def _elapsed(self) -> float:
        return now() - self._began

    def _arrivals(self, rate: float) -> int:
        """A draw from Poisson's distribution (Knuth's way: small means only)."""
        left, count = math.exp(-rate * TICK_S), 0
        draw = self._random.random()
        while draw > left:
            draw *= self._random.random()
            count += 1
        return count

    def _made(self, stream: Stream, at_s: float) -> Offered:
        seconds = self._random.expovariate(1 / self._mean_s)
        fields = {"value": stream.value, "tenant": stream.tenant, **self._job}
        job = Job(custom_id=f"{len(self.runs)}", agent=AGENT, input=seconds, **fields)
        run = new_run(job, self._batch, self._client.store.keys.partitions)
        offered = self.runs[run.id] = Offered(stream.value, stream.tenant, seconds, at_s, run)
        return offered

    def _back(self, at_s: float) -> list[Offered]:
        found = []
        while self._returning and self._returning[0][0] <= at_s:
            offered = self.runs[heapq.heappop(self._returning)[1]]
            offered.back_at_s.append(at_s)
            offered.run = offered.run._replace(again="1")
            found.append(offered)
        return found

    @staticmethod
    def _by_partition(offered: Iterable[Offered]) -> list[list[Offered]]:
        parts: dict[int, list[Offered]] = {}
        for each in offered:
            parts.setdefault(partition_of(each.run.id), []).append(each)
        return list(parts.values())

    async def _submit(self, part: list[Offered]) -> None:
        began = now()
        runs = [each.run for each in part]
        answers = await self._client.store.submit(self._batch, partition_of(runs[0].id), runs)
        self.door_s.append(now() - began)
        for each, answer in zip(part, answers, strict=True):
            each.admitted = answer.made is Made.MADE
            if answer.made is Made.REFUSED:
                each.refusals.append(answer.reason)
                if self._comes_back and answer.by_itself and answer.retry_after_ms >= 0:
                    due = self._elapsed() + answer.retry_after_ms / 1000
                    heapq.heappush(self._returning, (due, each.run.id))

    async def ended(self) -> list[Offered]:
        """Waits until nothing of it is queued or runs; all that was offered, with results."""
        await ended(self._client, self._batch)
        async for result in self._client.results(self._batch):
            self.runs[result.run_id].result = result
        return list(self.runs.values())


def served_s(runs: Iterable[Offered], begin_ms: float, end_ms: float) -> float:
    """Slot time, within a stretch of the store's clock, of runs that succeeded."""
    total = 0.0
    for each in runs:
        result = each.result
        if result is not None and result.succeeded and result.started_ms and result.ended_ms:
            total += max(0.0, min(result.ended_ms, end_ms) - max(result.started_ms, begin_ms))
    return total / 1000
