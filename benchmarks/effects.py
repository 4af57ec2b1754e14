"""``make figures-effects``: what effects cost, and what becomes of them when hosts are killed."""

import argparse
import asyncio
import base64
import os
import secrets
import signal
import statistics
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil
import redis.asyncio as redis
from pydantic import SecretStr

from actors.host_runtime import HostRuntime
from actors.job import Job
from actors.registry import load_app
from benchmarks.bench import Bench, a_ray_node, a_store, busiest_host, deployed, ended, now, run, settled
from benchmarks.effect_agents import APPLIED, KINDS, STEPS, WORLD_VARIABLE
from benchmarks.figures import Figure, at_least, at_most, beside, show, write
from cluster.lifecycle import RunState
from penstock.client import Client

COMMAND: Final = "make figures-effects"
APP: Final = "benchmarks.effect_agents"
PAYLOAD: Final = "x" * 1024
GRANTS: Final = ("write", "irreversible")
_POLL_S: Final = 0.005


def jobs(count: int, agent: str) -> list[Job]:
    """So many jobs of one agent."""
    return [Job(custom_id=f"job-{i}", agent=agent, input=PAYLOAD, grants=GRANTS) for i in range(count)]


async def throughput(bench: Bench, runs: int = 1000, at_once: int = 200, rounds: int = 3) -> list[Figure]:
    """W1 with one effect in five steps beside W1 without, in turns; the median of some rounds."""
    rates: dict[str, list[float]] = {"five-reads": [], "four-reads-and-an-effect": []}
    async with deployed(bench.settings(slots_per_host=at_once // (os.cpu_count() or 1)), APP) as client:
        for turn in range(rounds + 1):
            for agent, found in rates.items():
                started = now()
                await client.submit(jobs(runs, agent), batch=f"{agent}-{turn}")
                status = await ended(client, f"{agent}-{turn}")
                took = now() - started
                assert status.by_state == {"succeeded": runs}, status
                if turn:
                    found.append(runs * STEPS / took)
    without, with_effect = (statistics.median(found) for found in rates.values())
    return [
        beside("effects: W1 steps a second without effects", without, "steps/s", COMMAND),
        beside("effects: W1 steps a second, one step in five an effect", with_effect, "steps/s", COMMAND),
        at_least("effects: W1 with effects over W1 without", with_effect / without, "ratio", 0.6, COMMAND),
    ]


async def latency(bench: Bench, runs: int = 150) -> list[Figure]:
    """A lone run of one step at a time: a read, and an effect."""
    medians = {}
    async with deployed(bench.settings(slots_per_host=100), APP) as client:
        for agent in ("one-read", "one-effect"):
            took = []
            for _ in range(runs + 10):
                started = now()
                await client.run(agent, PAYLOAD, grants=GRANTS)
                took.append((now() - started) * 1000)
            medians[agent] = statistics.median(took[10:])
    return [
        beside("effects: a lone run of one read, median", medians["one-read"], "ms", COMMAND),
        beside("effects: a lone run of one effect, median", medians["one-effect"], "ms", COMMAND),
    ]


async def waits(bench: Bench) -> list[Figure]:
    """How often a lone run waits for the store, one wait after the other: counted at the host's group commit."""
    settings = bench.settings(slots_per_host=10)
    counts = {}
    host = HostRuntime(settings, load_app(APP), "counted", watchdog=False)
    await host.start()
    try:
        committer, flushes = host.committer, 0
        flush = committer._flush

        def counted() -> None:
            nonlocal flushes
            flushes += bool(committer._groups or committer._others)
            flush()

        committer._flush = counted  # type: ignore[method-assign]
        async with Client(settings=settings, app=host.app) as client:
            for agent in ("one-read", "one-effect"):
                await client.run(agent, PAYLOAD, grants=GRANTS)
                flushes = 0
                await client.run(agent, PAYLOAD, grants=GRANTS)
                counts[agent] = flushes
    finally:
        await host.stop()
    more = counts["one-effect"] - counts["one-read"]
    return [at_most("effects: group commits of an effect beyond those of a read", more, "commits", 2, COMMAND)]


async def approval(bench: Bench, runs: int = 20) -> list[Figure]:
    """From a person's yes to the end of the run that waited for it, unloaded."""
    key = SecretStr("bench:" + base64.b64encode(secrets.token_bytes(32)).decode())
    took = []
    async with deployed(bench.settings(slots_per_host=10, approval_keys=key), APP) as client:
        for _ in range(runs):
            asked = asyncio.create_task(client.run("asks-first", PAYLOAD, grants=GRANTS))
            while not (found := await client.approvals()):  # noqa: ASYNC110 - a store
                await asyncio.sleep(_POLL_S)
            while (await client.show(found[0].run_id)).state != RunState.WAITING:  # noqa: ASYNC110
                await asyncio.sleep(_POLL_S)
            started = now()
            await client.approve(found[0].id, by="somebody else")
            assert (await asked).state == RunState.SUCCEEDED
            took.append(now() - started)
    return [
        at_most("effects: from an approval to the end of its run, worst", max(took), "s", 1, COMMAND),
        beside("effects: from an approval to the end of its run, median", statistics.median(took), "s", COMMAND),
    ]


async def kills(bench: Bench, count: int = 10_000, every_s: float = 3.0, seconds: float = 0.4) -> list[Figure]:
    """So many effects of three kinds of tools, a host killed every few seconds; the world's counters judge."""
    settings = bench.settings(slots_per_host=75)
    world = redis.Redis.from_url(bench.url, decode_responses=True)
    made = [
        Job(
            custom_id=f"action-{i}",
            agent="acts-once",
            input={"name": f"action-{i}", "kind": KINDS[i % len(KINDS)], "seconds": seconds},
            grants=GRANTS,
        )
        for i in range(count)
    ]
    killed = 0

    async def strike(client: Client) -> None:
        nonlocal killed
        while True:
            await asyncio.sleep(every_s)
            with suppress(psutil.NoSuchProcess, ValueError):
                process = await busiest_host(client)
                os.kill(process.pid, signal.SIGKILL)
                killed += 1

    async with deployed(settings, APP) as client:
        await client.submit(made, batch="kills")
        striking = asyncio.create_task(strike(client))
        status = await settled(client, "kills")
        striking.cancel()
        unknown = await client.unknown(limit=count)
        results = {result.custom_id: result async for result in client.results("kills")}
    applied = {name: int(times) for name, times in (await world.hgetall(APPLIED)).items()}
    await world.aclose()
    duplicates = sum(times - 1 for times in applied.values() if times > 1)
    succeeded = [job for job in made if results[job.custom_id].state == RunState.SUCCEEDED]
    lost = sum(job.custom_id not in applied for job in succeeded)
    doubtful = [job for job in made if results[job.custom_id].state == RunState.CONFIRMATION_UNKNOWN]
    provable = sum(KINDS.index("neither") != i % len(KINDS) for i, job in enumerate(made) if job in doubtful)
    unlisted = len({job.custom_id for job in doubtful}) - len(unknown)
    others = count - len(succeeded) - len(doubtful)
    assert status.total == count
    return [
        beside("effects: hosts killed under them", killed, "kills", COMMAND),
        at_least("effects: made in all", count, "effects", count, COMMAND),
        at_most("effects: applied more than once", duplicates, "effects", 0, COMMAND),
        at_most("effects: called applied, and not applied", lost, "effects", 0, COMMAND),
        at_most("effects: runs that ended in any other way", others, "runs", 0, COMMAND),
        beside("effects: unknown", len(doubtful), "runs", COMMAND),
        at_most("effects: unknown though it can be proved", provable, "runs", 0, COMMAND),
        at_most("effects: unknown and not listed", unlisted, "runs", 0, COMMAND),
    ]


PARTS: Final[dict[str, Callable[[Bench], Coroutine[Any, Any, list[Figure]]]]] = {
    "waits": waits,
    "latency": latency,
    "throughput": throughput,
    "approval": approval,
    "kills": kills,
}


def main() -> int:
    """Runs the parts that are asked for; exit code 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="which ones; all by default")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    figures: list[Figure] = []
    with a_store() as store:
        os.environ[WORLD_VARIABLE] = store.url
        with a_ray_node(os.cpu_count() or 1, {WORLD_VARIABLE: store.url}):
            bench = Bench(store.url, store.pid or 0)
            for part in arguments.parts or PARTS:
                print(f"{part} …", file=sys.stderr, flush=True)
                figures += run(PARTS[part](bench))
    show(figures, "Effects")
    if arguments.json:
        write(figures, arguments.json)
    return 0 if all(figure.holds is not False for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
