"""The hub is killed again and again: nothing above the limit, little below it."""

import asyncio
import os
import signal
import time
from typing import Any

import ray

from actors.hub_link import hub_actor_name
from benchmarks.dependency_figures.bench import Bench, Deployment
from benchmarks.figures import Figure, at_least, at_most, beside
from benchmarks.provider import analysis
from benchmarks.provider.conduct import NS

NORMAL = 0.95
STEP_S = 0.1
SMOOTHED_S = 2.0
MEANWHILE_S = 5.0


async def kill_hub(deployment: Deployment, dependency: str) -> int:
    """SIGKILL of the hub's process; the moment of it."""
    name = deployment.client.store.settings.name
    actor: Any = ray.get_actor(hub_actor_name(name, dependency), namespace=name)
    pid = int(await actor.__ray_call__.remote(_pid))
    os.kill(pid, signal.SIGKILL)
    return time.monotonic_ns()


def _pid(_: Any) -> int:
    return os.getpid()


async def begun_again(deployment: Deployment, dependency: str, epoch: int, timeout_s: float = 20.0) -> int:
    """Waits until a later hub has begun; the moment of it."""
    store = deployment.client.store
    key = store.keys.dependency(dependency)
    async with asyncio.timeout(timeout_s):
        while int(await store.command(key, "HGET", key, "epoch")) <= epoch:  # noqa: ASYNC110 - polls a store
            await asyncio.sleep(0.02)
    return time.monotonic_ns()


async def hub_kill(
    bench: Bench,
    command: str,
    hosts: int = 8,
    limit: int = 1000,
    window_s: float = 10.0,
    kills: int = 3,
    every_s: float = 30.0,
    first_s: float = 15.0,
) -> list[Figure]:
    """More demand than the limit all the time, and a kill every so many seconds."""
    provider = bench.provider
    provider.set_mode(latency_ms=20, jitter_ms=20)
    provider.forget()
    killed, restarted = [], []
    async with bench.hosts(hosts) as deployment:
        await deployment.define("provider", rate=[{"resource": "requests", "amount": limit, "per": window_s}])
        span_s = first_s + kills * every_s
        batch, shape = await deployment.shape(span_s=span_s, rate=1.5 * limit / window_s)
        begin_ns = round((shape.start_at + time.monotonic() - time.time()) * NS)
        end_ns = begin_ns + round(span_s * NS)
        for number in range(kills):
            due_ns = begin_ns + round((first_s + number * every_s) * NS)
            await asyncio.sleep((due_ns - time.monotonic_ns()) / NS)
            epoch = (await deployment.client.dependency("provider")).epoch
            assert epoch is not None
            killed.append(await kill_hub(deployment, "provider"))
            restarted.append(await begun_again(deployment, "provider", epoch))
        await asyncio.sleep((end_ns - time.monotonic_ns()) / NS)
        moments = analysis.moments(provider.arrivals())
        await deployment.client.cancel(batch)
    rate = limit / window_s
    meanwhile = [analysis.share_used(moments, limit, window_s, at, at + round(MEANWHILE_S * NS)) for at in killed]
    # Against what goes through undisturbed in the same run, which windows of a few seconds keep below the limit.
    settled_ns = begin_ns + round(min(MEANWHILE_S, first_s / 2) * NS)
    usual = analysis.share_used(moments, limit, window_s, settled_ns, killed[0])
    back = [_back_s(moments, at, rate) for at in restarted]
    used = analysis.share_used(moments, limit, window_s, begin_ns, end_ns)
    down = [(start - kill) / NS for kill, start in zip(killed, restarted, strict=True)]
    return [
        at_most(
            f"hub kill: worst window of {window_s:g} s over {kills} kills",
            analysis.worst_window(moments, window_s) / limit,
            "of the limit",
            1.0,
            command,
        ),
        at_least(
            f"hub kill: worst {MEANWHILE_S:g} s from a kill",
            min(meanwhile) / usual,
            "of the undisturbed",
            0.75,
            command,
        ),
        beside(
            f"hub kill: the same {MEANWHILE_S:g} s as a share of the limit", min(meanwhile), "of the limit", command
        ),
        beside("hub kill: use before the first kill", usual, "of the limit", command),
        at_most("hub kill: from the restart back to 95 %, worst", max(back), "s", 3, command),
        beside("hub kill: from the kill to the restart, worst", max(down), "s", command),
        beside("hub kill: use over all", used, "of the limit", command),
    ]


def _back_s(moments: list[int], restarted_ns: int, rate: float, within_s: float = 12.0) -> float:
    """Seconds from the restart until two seconds begin that have what they should."""
    for step in range(round(within_s / STEP_S)):
        at_ns = restarted_ns + round(step * STEP_S * NS)
        if analysis.between(moments, at_ns, at_ns + round(SMOOTHED_S * NS)) >= NORMAL * rate * SMOOTHED_S:
            return step * STEP_S
    return within_s
