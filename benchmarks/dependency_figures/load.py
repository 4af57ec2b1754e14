"""The app of the figures about dependencies: demand that has a shape, single calls, and calls of nothing.

Hosts cannot be aimed at from outside. So demand of a shape is made by one run on each host (deployments have one slot a
host for it), which looks up what its host's part is now.
"""

import asyncio
import time
from collections.abc import Iterator
from random import Random

from pydantic import BaseModel, Field

from actors.contract import ToolCall, agent, tool
from actors.core.outcome import Risk
from actors.run import Run
from benchmarks.dependency_agents import HOST, Calls, Made, Permits, caller, one, provider
from benchmarks.provider.conduct import NS


class Arm(BaseModel):
    """One of the ways to limit that are compared under the same demand; see :class:`Calls`."""

    tool: str = "provider"
    value: str = "normal"
    permits: Permits | None = None


class Shape(BaseModel):
    """Demand of many hosts.

    Attributes:
        hosts: labels of all hosts.
        start_at: when it begins, seconds of the system's clock.
        span_s: how long it lasts.
        rate: calls a second of all hosts together, for each arm; arrivals are Poisson.
        weights: what the hosts' parts are, the first host's first; by default all the same.
        move_s: every so often the parts go to other hosts; None: never.
        patience_s: calls that wait longer than this are not added to: so a host's demand moves with its part.
        arms: who all has this demand.
        seed: of all draws.
    """

    hosts: list[str]
    start_at: float
    span_s: float = Field(gt=0)
    rate: float = Field(gt=0)
    weights: list[float] | None = None
    move_s: float | None = Field(default=None, gt=0)
    patience_s: float = Field(default=2.0, gt=0)
    arms: list[Arm] = [Arm()]
    seed: int = 1

    def begin_ns(self) -> int:
        """When it begins, by the monotonic clock, which is the provider's."""
        return round((self.start_at + time.monotonic() - time.time()) * NS)

    def rates(self) -> Iterator[tuple[float, dict[str, float]]]:
        """Until when (seconds from the start) each host makes how many calls a second."""
        weights = self.weights or [1.0] * len(self.hosts)
        order, chance, at = list(self.hosts), Random(self.seed), 0.0
        while at < self.span_s:
            at = self.span_s if self.move_s is None else min(self.span_s, at + self.move_s)
            parts = dict(zip(order, weights, strict=True))
            yield at, {host: self.rate * part / sum(weights) for host, part in parts.items()}
            chance.shuffle(order)

    def moments(self, host: str, arm: str) -> Iterator[tuple[float, float]]:
        """When a host makes its calls, in seconds from the start, and how many a second it makes then."""
        chance, at = Random(f"{self.seed} {arm} {host}"), 0.0
        for until, rates in self.rates():
            rate = rates[host]
            while (at := at + chance.expovariate(rate)) < until:
                yield at, rate
            # The exponential distribution has no memory: to begin anew at the border changes nothing.
            at = until


def zipf(hosts: int) -> list[float]:
    """Parts of so many hosts: the first has twice that of the second, three times that of the third."""
    return [1 / rank for rank in range(1, hosts + 1)]


@agent("shaped", version="1")
async def shaped(run: Run, wanted: Shape) -> dict[str, Made]:
    """Makes its host's part of the calls, for all arms."""
    made = {arm.value: Made() for arm in wanted.arms}
    async with asyncio.TaskGroup() as group:
        for arm in wanted.arms:
            group.create_task(_drive(run, wanted, arm, made[arm.value]))
    return made


async def _drive(run: Run, wanted: Shape, arm: Arm, made: Made) -> None:
    call = Calls(calls=1, tool=arm.tool, value=arm.value, permits=arm.permits)
    pending: set[asyncio.Task[None]] = set()
    async with asyncio.TaskGroup() as group:
        for at, rate in wanted.moments(HOST, arm.value):
            if (early_s := wanted.start_at + at - time.time()) > 0:
                await asyncio.sleep(early_s)
            if len(pending) <= 1 + rate * wanted.patience_s:
                task = group.create_task(one(run, call, made))
                pending.add(task)
                task.add_done_callback(pending.discard)


@agent("single", version="1")
async def single(run: Run, wanted: Calls) -> Made:
    """One call, as one of many independent runs: whoever waits long for it is unloaded."""
    made = Made()
    await one(run, wanted, made)
    return made


# ---------------------------------------------------------------------------------------------- what a gate costs


@tool(risk=Risk.READ)
async def ungated(call: ToolCall) -> int:
    """Answers at once."""
    return call.attempt


@tool(risk=Risk.READ, dependency=provider.name)
async def gated(call: ToolCall) -> int:
    """Answers at once, behind the gate of a dependency."""
    return call.attempt


class Steps(BaseModel):
    """So many steps, one after the other, with a gate or without."""

    count: int = Field(ge=1)
    gated: bool


@agent("steps", version="1")
async def steps(run: Run, wanted: Steps) -> float:
    """Makes steps; how many seconds they took."""
    chosen = gated if wanted.gated else ungated
    began = time.perf_counter()
    for _ in range(wanted.count):
        await run.call(chosen)
    return time.perf_counter() - began


__all__ = ["Arm", "Shape", "Steps", "caller", "shaped", "single", "steps", "zipf"]
