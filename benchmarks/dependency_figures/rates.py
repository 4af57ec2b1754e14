"""Rate error: how true a limit is kept by many hosts, and how much of it is made use of; beside two other ways.

All arms have the same demand in the same run: more than the limit, Zipf over the hosts, going to other hosts again and
again. What counts is when calls arrived at the provider.
"""

import asyncio
import time
from contextlib import AsyncExitStack

from benchmarks.dependency_agents import Permits
from benchmarks.dependency_figures.bench import Bench, Deployment, of
from benchmarks.dependency_figures.load import Arm, Shape, zipf
from benchmarks.figures import Figure, at_least, at_most, beside
from benchmarks.limit_simulation import Plan, simulate
from benchmarks.provider import analysis
from benchmarks.provider.arrivals import Arrival
from benchmarks.provider.conduct import NS

LOAD = 1.5


def others(limit: float, window_s: float, hosts: int) -> dict[str, Arm]:
    """The other ways to keep a limit, by name."""
    arms: dict[str, Arm] = {}
    for tool, name in (("aiolimiter", "aiolimiter in each host, rate/N"), ("redis", "a Redis round trip a call")):
        for burst, said in ((None, "full burst"), (1, "burst 1")):
            key = f"bench:{time.time_ns()}:{tool}:{burst}"
            permits = Permits(amount=limit, window_s=window_s, hosts=hosts, burst=burst, key=key)
            arms[f"{name}, {said}"] = Arm(tool=tool, value=f"{tool} {burst}", permits=permits)
    return arms


def measured(arrivals: list[Arrival], shape: Shape, limit: float, window_s: float) -> tuple[float, float]:
    """The worst sliding window as a share of the limit, and how much of the limit was used after the first window."""
    moments = analysis.moments(arrivals)
    start_ns = shape.begin_ns()
    first_ns, end_ns = start_ns + round(window_s * NS), start_ns + round(shape.span_s * NS)
    worst = analysis.worst_window(moments, window_s) / limit
    return worst, analysis.share_used(moments, limit, window_s, first_ns, end_ns)


async def rate_error(
    bench: Bench,
    command: str,
    hosts: tuple[int, ...] = (1, 4, 8),
    simulated: tuple[int, ...] = (32, 128),
    limit: int = 6000,
    window_s: float = 60.0,
    span_s: float = 130.0,
) -> list[Figure]:
    """Real hosts, at the same time, each number of them with a hub of its own; then simulated ones."""
    bench.provider.set_mode(latency_ms=20, jitter_ms=20)
    bench.provider.forget()
    compared = others(limit, window_s, hosts[-1])
    async with AsyncExitStack() as stack:
        deployments: list[Deployment] = []
        for count in hosts:
            deployment = await stack.enter_async_context(bench.hosts(count))
            rate = [{"resource": "requests", "amount": limit, "per": window_s}]
            await deployment.define("provider", rate=rate)
            deployments.append(deployment)
        started = []
        for count, deployment in zip(hosts, deployments, strict=True):
            arms = [Arm(value=f"{count} hosts"), *(compared.values() if count == hosts[-1] else ())]
            started.append(
                await deployment.shape(
                    span_s=span_s, rate=LOAD * limit / window_s, weights=zipf(count), move_s=span_s / 8, arms=arms
                )
            )
        for deployment, (batch, _) in zip(deployments, started, strict=True):
            await deployment.ended(batch)
    arrivals = bench.provider.arrivals()
    figures: list[Figure] = []
    for count, (_, shape) in zip(hosts, started, strict=True):
        worst, used = measured(of(arrivals, f"{count} hosts"), shape, limit, window_s)
        name = f"rate error: {count} {'host' if count == 1 else 'hosts'}"
        figures.append(at_most(f"{name}, worst window of {window_s:g} s", worst, "of the limit", 1.0, command))
        figures.append(at_least(f"{name}, use", used, "of the limit", 0.98, command))
    for name, arm in compared.items():
        worst, used = measured(of(arrivals, arm.value), started[-1][1], limit, window_s)
        figures.append(beside(f"rate error: {name}: {hosts[-1]} hosts, worst window", worst, "of the limit", command))
        figures.append(beside(f"rate error: {name}: {hosts[-1]} hosts, use", used, "of the limit", command))
    for count in simulated:
        figures += await asyncio.to_thread(simulated_hosts, count, limit, window_s, command)
    return figures


def simulated_hosts(hosts: int, limit: int, window_s: float, command: str) -> list[Figure]:
    """The same demand over so many hosts in virtual time, through the same pure code."""
    plan = Plan(hosts, limit, window_s, load=LOAD, span_s=2.5 * window_s, shuffle_s=window_s / 2)
    admitted = simulate(plan).admitted
    used = sum(at >= window_s for at in admitted) * window_s / (limit * (plan.span_s - window_s))
    name = f"rate error: {hosts} simulated hosts"
    return [
        at_most(
            f"{name}, worst window of {window_s:g} s",
            analysis.most_within(admitted, window_s) / limit,
            "of the limit",
            1.0,
            command,
        ),
        at_least(f"{name}, use", used, "of the limit", 0.98, command),
    ]
