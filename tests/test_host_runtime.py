"""Hosts: what they claim, how they leave, how they are lost and come back, and that nothing is lost with them."""

import asyncio
import json
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis
from hosting import Spine, output, spine, until

from actors.host_runtime import HostRuntime
from actors.scope import number_branches
from cluster import reader
from cluster.embedded import EmbeddedValkey
from cluster.keys import partition_of
from cluster.lifecycle import RunState
from penstock import Risk, Run, ToolCall, agent, tool

ROOT = Path(__file__).parents[1]
IDLE_CORE_SHARE = 0.02
BYTES_PER_RUN = 25 * 1024

MADE: Counter[str] = Counter()
GATES: dict[str, asyncio.Event] = {}
REACHED: dict[str, asyncio.Event] = {}


@pytest.fixture(autouse=True)
def clean() -> None:
    for kept in (MADE, GATES, REACHED):
        kept.clear()


def close(*names: str) -> None:
    for name in names:
        GATES[name], REACHED[name] = asyncio.Event(), asyncio.Event()


async def at(name: str) -> None:
    await asyncio.wait_for(REACHED[name].wait(), 5)


async def _enter(name: str) -> None:
    MADE[name] += 1
    if name in GATES:
        REACHED[name].set()
        await GATES[name].wait()


@tool()
async def work(call: ToolCall, name: str) -> str:
    await _enter(name)
    return name


@tool(risk=Risk.WRITE, idempotent=True)
async def pay(call: ToolCall, name: str) -> str:
    await _enter(name)
    return name


@tool()
async def pause(call: ToolCall, name: str, seconds: float) -> str:
    MADE[name] += 1
    await asyncio.sleep(seconds)
    return name


@agent("line", version="1")
async def line(run: Run, names: list[str]) -> list[str]:
    return [await run.call(work, name) for name in names]


@agent("payer", version="1")
async def payer(run: Run, names: list[str]) -> list[str]:
    return [await run.call(pay, name) for name in names]


@agent("pairs", version="1")
async def pairs(run: Run, names: list[str]) -> list[str]:
    """Effects without a gap: there is always one under way."""

    async def chain(name: str) -> str:
        return "".join([await run.call(pay, f"{name}{number}") for number in range(5)])

    return list(await asyncio.gather(*(chain(name) for name in names)))


@agent("pauses", version="1")
async def pauses(run: Run, name: str) -> str:
    for number in range(5):
        await run.call(pause, f"{name}/{number}", 0.15)
    return name


@agent("line", version="2")
async def line_of_today(run: Run, names: list[str]) -> list[str]:
    return [f"{await run.call(work, name)}, today" for name in names]


AGENTS = (line, payer, pairs, pauses)


@pytest.fixture
async def deployment(redis_url: str) -> AsyncIterator[Spine]:
    async with spine(redis_url, *AGENTS) as deployment:
        yield deployment


# Claiming


async def test_slots_bound_what_a_host_holds(redis_url: str) -> None:
    names = [f"n{number}" for number in range(23)]
    async with spine(redis_url, line, slots_per_host=7, partitions=8) as deployment:
        host = await deployment.host()
        close(*names)
        runs = [await deployment.submit(line, [name]) for name in names]
        await until(lambda: len(host.runs) == 7, "seven runs")
        await asyncio.sleep(0.3)  # a heartbeat and a poll
        assert len(host.runs) == 7
        assert await deployment.counts() == {"running": 7, "queued": 16}
        for name in names:
            GATES[name].set()
        for run_id in runs:
            assert (await deployment.end(run_id)).state is RunState.SUCCEEDED
        assert set(MADE.values()) == {1}


async def test_work_of_every_partition_is_found_without_waiting_for_a_poll(redis_url: str) -> None:
    async with spine(redis_url, line, partitions=8, heartbeat_s=5, lease_s=15) as deployment:
        await deployment.host()
        await deployment.host()
        started = time.monotonic()
        runs: list[str] = []
        while len({partition_of(run_id) for run_id in runs}) < 8:  # ids are random here, and so are their partitions
            runs.append(await deployment.submit(line, [str(len(runs))]))
        for run_id in runs:
            await deployment.end(run_id)
        assert time.monotonic() - started < 2


async def test_a_run_that_nobody_serves_says_so_and_is_taken_when_a_host_comes(deployment: Spine) -> None:
    await deployment.host(payer)
    run_id = await deployment.submit(line, ["a"])
    mine = await deployment.submit(payer, ["b"])
    await deployment.end(mine)

    async def said() -> bool:
        return (await deployment.record(run_id)).reason == "no host serves line@(any version)"

    await until(said, "the reason")
    await deployment.host(line)
    assert output(line, await deployment.end(run_id)) == ["a"]


async def test_hosts_of_different_apps_leave_each_others_runs_to_each_other(deployment: Spine) -> None:
    await deployment.host(payer)
    await deployment.host(line)
    runs = [(await deployment.submit(chosen, [f"{n}"]), chosen) for n in range(20) for chosen in (line, payer)]
    for run_id, chosen in runs:
        assert len(output(chosen, await deployment.end(run_id))) == 1


async def test_a_run_stays_with_the_version_that_it_started_with(deployment: Spine) -> None:
    old = await deployment.host(line)
    close("b")
    run_id = await deployment.submit(line, ["a", "b"])
    await at("b")
    await deployment.host(line_of_today)
    old_identity = await deployment.vanish(old)
    fresh = await deployment.submit(line, ["c"])
    await deployment.reap(old_identity)
    assert output(line_of_today, await deployment.end(fresh)) == ["c, today"]

    async def said() -> bool:
        return (await deployment.record(run_id)).reason == "no host serves line@1"

    await until(said, "the reason")
    GATES["b"].set()
    await deployment.host(line)
    assert output(line, await deployment.end(run_id)) == ["a", "b"]


# Leaving


async def test_draining_hands_runs_back_at_step_boundaries(deployment: Spine) -> None:
    first = await deployment.host()
    close("b")
    run_id = await deployment.submit(line, ["a", "b", "c"])
    await at("b")
    assert await asyncio.wait_for(first.drain(), 5) == 1
    record = await deployment.record(run_id)
    assert (record.state, record.reason) == (RunState.QUEUED, f"host {first.label} drains")
    await asyncio.sleep(0.5)  # heartbeats and polls: a draining host claims nothing, and stays draining
    assert first.draining
    assert (await deployment.record(run_id)).state is RunState.QUEUED
    GATES["b"].set()
    await deployment.host()
    assert output(line, await deployment.end(run_id)) == ["a", "b", "c"]
    assert MADE == {"a": 1, "b": 2, "c": 1}


async def test_draining_awaits_the_effects_under_way_and_starts_no_others(deployment: Spine) -> None:
    first = await deployment.host()
    close("x0", "y0")
    run_id = await deployment.submit(pairs, ["x", "y"])
    await at("x0")
    await at("y0")
    draining = asyncio.create_task(first.drain())
    await asyncio.sleep(0.05)
    GATES["x0"].set()
    await asyncio.sleep(0.05)
    assert not draining.done()
    assert (await deployment.record(run_id)).state is RunState.RUNNING
    GATES["y0"].set()
    assert await asyncio.wait_for(draining, 5) == 1
    assert MADE == {"x0": 1, "y0": 1}
    await deployment.host()
    assert output(pairs, await deployment.end(run_id)) == ["x0x1x2x3x4", "y0y1y2y3y4"]
    assert set(MADE.values()) == {1}


async def test_a_long_line_of_effects_is_handed_back_between_two_of_them(deployment: Spine) -> None:
    first = await deployment.host()
    close("e0")
    run_id = await deployment.submit(payer, [f"e{number}" for number in range(50)])
    await at("e0")
    draining = asyncio.create_task(first.drain())
    await asyncio.sleep(0.05)
    GATES["e0"].set()
    await asyncio.wait_for(draining, 5)
    assert MADE == {"e0": 1}
    assert (await deployment.record(run_id)).state is RunState.QUEUED


async def test_draining_by_the_store_and_undoing_it(deployment: Spine) -> None:
    first = await deployment.host()
    close("a")
    run_id = await deployment.submit(line, ["a"])
    await at("a")
    await deployment.store.mark_draining(first.host, draining=True)
    await deployment.state(run_id, RunState.QUEUED)
    assert (await deployment.store.hosts())[first.host]["draining"]
    GATES["a"].set()
    await deployment.store.mark_draining(first.host, draining=False)
    assert output(line, await deployment.end(run_id)) == ["a"]


async def test_a_claim_under_way_is_not_begun_on_a_host_that_starts_to_drain(deployment: Spine) -> None:
    first = await deployment.host()
    claims, asked, answer = first.store.claim, asyncio.Event(), asyncio.Event()

    async def slow_claim(*args: Any) -> Any:
        claimed = await claims(*args)
        if claimed is not None and claimed[1]:
            asked.set()
            await answer.wait()
        return claimed

    first.store.claim = slow_claim  # type: ignore[method-assign, assignment]
    run_id = await deployment.submit(line, ["a"])
    await asyncio.wait_for(asked.wait(), 5)
    draining = asyncio.create_task(first.drain())
    await asyncio.sleep(0.02)
    answer.set()
    await asyncio.wait_for(draining, 5)
    assert (await deployment.record(run_id)).state is RunState.QUEUED
    assert MADE == {}


async def test_a_host_that_stops_leaves_nothing_behind(deployment: Spine) -> None:
    first = await deployment.host()
    close("a")
    run_id = await deployment.submit(line, ["a"])
    sleeping = await deployment.submit(line, ["a"])
    await at("a")
    await asyncio.wait_for(first.stop(), 5)
    assert await deployment.store.hosts() == {}
    for run in (run_id, sleeping):
        assert (await deployment.record(run)).state is RunState.QUEUED
    GATES["a"].set()
    await asyncio.sleep(0.3)
    assert await deployment.store.hosts() == {}, "it came back"
    await deployment.host()
    assert output(line, await deployment.end(run_id)) == ["a"]


async def test_a_closed_host_leaves_no_task_behind(deployment: Spine) -> None:
    close("a")
    before = asyncio.all_tasks()
    host = await deployment.host()
    runs = [await deployment.submit(chosen, ["a"]) for chosen in (line, payer) for _ in range(5)]
    await at("a")
    await until(lambda: len(host.runs) == len(runs), "the claims")
    await host.abandon()
    deadline = time.monotonic() + 2
    while left := asyncio.all_tasks() - before:
        assert time.monotonic() < deadline, left
        await asyncio.sleep(0.01)


# Being lost


async def test_a_late_owner_is_refused_and_comes_back_under_another_name(deployment: Spine) -> None:
    """It was reaped while it worked: what it writes is refused, its runs are dropped, it serves on as somebody new."""
    late = await deployment.host()
    close("b", "e")
    names = [await deployment.submit(line, ["a", "b", "c"]), await deployment.submit(payer, ["e"])]
    await at("b")
    await at("e")
    identity = late.host
    heartbeats, first_beat = late.store.heartbeat, asyncio.Event()

    async def held(*args: Any) -> Any:
        await first_beat.wait()
        return await heartbeats(*args)

    late.store.heartbeat = held  # type: ignore[method-assign, assignment]
    fences = {run_id: (await deployment.record(run_id)).fence for run_id in names}
    for partition in deployment.store.partitions:
        await deployment.store.reap(partition, identity)
    await deployment.store.forget_host(identity)
    GATES["b"].set()
    GATES["e"].set()
    await until(lambda: not late.runs, "the late runs dropped")
    assert "c" not in MADE
    for run_id in names:
        record = await deployment.record(run_id)
        assert (record.state, record.fence > fences[run_id]) == (RunState.QUEUED, True)
        assert not any(entry.name == "work" and entry.step == "1" for entry in await deployment.journal(run_id))
    first_beat.set()
    await until(lambda: late.host != identity, "another identity")
    assert late.host.startswith(f"{late.label}~")
    assert output(line, await deployment.end(names[0])) == ["a", "b", "c"]
    assert output(payer, await deployment.end(names[1])) == ["e"]
    assert MADE == {"a": 1, "b": 2, "c": 1, "e": 2}
    assert list(await deployment.store.hosts()) == [late.host]


async def test_a_host_without_a_lease_starts_nothing(deployment: Spine) -> None:
    host = await deployment.host()
    close("a")
    run_id = await deployment.submit(line, ["a", "b"])
    await at("a")
    heartbeats, beat = host.store.heartbeat, asyncio.Event()

    async def held(*args: Any) -> Any:
        await beat.wait()
        return await heartbeats(*args)

    host.store.heartbeat = held  # type: ignore[method-assign, assignment]
    await until(lambda: not host.lease_holds(), "the end of its lease")
    GATES["a"].set()
    await asyncio.sleep(0.2)
    assert "b" not in MADE
    beat.set()
    assert output(line, await deployment.end(run_id)) == ["a", "b"]


async def test_a_host_that_is_fenced_in_one_partition_only_comes_back_anew(deployment: Spine) -> None:
    """Whoever reaped it died half-way: it must not ask for ever where it will never be given anything."""
    host = await deployment.host()
    close("a")
    run_id = await deployment.submit(line, ["a"])
    await at("a")
    identity = host.host
    other = 1 - partition_of(run_id)
    await deployment.store.reap(other, identity)
    await until(lambda: host.host != identity, "another identity")
    GATES["a"].set()
    assert output(line, await deployment.end(run_id)) == ["a"]
    runs = [await deployment.submit(line, [str(number)]) for number in range(8)]
    for run in runs:
        assert (await deployment.end(run)).state is RunState.SUCCEEDED
    await until(lambda: _gone(deployment, identity), "the old identity forgotten")


async def _gone(deployment: Spine, identity: str) -> bool:
    return identity not in await deployment.store.hosts()


async def test_a_host_of_the_same_label_buries_the_former_one(deployment: Spine) -> None:
    first = await deployment.host()
    close("a")
    run_id = await deployment.submit(line, ["a"])
    await at("a")
    identity = await deployment.vanish(first)
    GATES["a"].set()
    reborn = HostRuntime(deployment.settings, first.app, first.label, watchdog=False)
    deployment.hosts.append(reborn)
    await reborn.start()
    started = time.monotonic()
    assert output(line, await deployment.end(run_id)) == ["a"]
    assert time.monotonic() - started < deployment.settings.lease_s / 2, "it did not wait for the lease"
    assert await _gone(deployment, identity)


async def test_a_silent_host_is_reaped_when_its_lease_has_run_out(redis_url: str) -> None:
    async with spine(redis_url, line, lease_s=0.6) as deployment:
        first = await deployment.host()
        close("a")
        run_id = await deployment.submit(line, ["a"])
        await at("a")
        # It is on another network, say: nobody is connected to it.
        await deployment.vanish(first)
        GATES["a"].set()
        await deployment.host()
        assert output(line, await deployment.end(run_id)) == ["a"]
        assert (await deployment.record(run_id)).migrations == 1


async def test_a_run_that_kills_every_host_is_given_up(redis_url: str) -> None:
    async with spine(redis_url, line, max_losses=3) as deployment:
        close("deadly")
        run_id = await deployment.submit(line, ["fine", "deadly"])
        for _ in range(3):
            host = await deployment.host()
            REACHED["deadly"].clear()
            await at("deadly")
            await deployment.lose(host)
        await deployment.host()
        record = await deployment.end(run_id)
        assert (record.state, record.reason) == (RunState.FAILED, "too many hosts lost")
        assert (MADE["fine"], MADE["deadly"]) == (1, 3)


# The store fails


async def _cut(redis_url: str, host: HostRuntime) -> None:
    """Closes the connections of the host's lane, whatever is on its way on them."""
    async with redis.from_url(redis_url) as client:
        for lane in host.store._topology._lanes.values():
            me = await lane.command("CLIENT", "ID")
            await client.client_kill_filter(_id=str(me))


async def test_claims_whose_answer_was_lost_are_handed_back(redis_url: str) -> None:
    """Connections are cut while claims are in flight, again and again: all runs end, and no slot leaks."""
    async with spine(redis_url, *AGENTS, partitions=4, slots_per_host=30) as deployment:
        hosts = [await deployment.host() for _ in range(2)]
        runs: list[str] = []
        for burst in range(12):
            runs += await asyncio.gather(*(deployment.submit(pauses, f"{burst}.{n}") for n in range(15)))
            await _cut(redis_url, hosts[burst % 2])
        for run_id in runs:
            assert (await deployment.end(run_id)).state is RunState.SUCCEEDED
        assert await deployment.counts() == {"succeeded": len(runs)}
        await until(lambda: not any(host.runs for host in hosts), "free slots")
        for host in hosts:
            for partition in deployment.store.partitions:
                assert await deployment.store.owned(partition, host.host) == set()
        # Nothing was made twice but what runs did that were handed back before their entries were written.
        migrations = sum([(await deployment.record(run_id)).migrations for run_id in runs])
        assert MADE.total() - 5 * len(runs) <= migrations


async def test_a_stray_claim_is_handed_back(deployment: Spine) -> None:
    host = await deployment.host()
    claims, lost = host.store.claim, 0

    async def loses_one(*args: Any) -> Any:
        nonlocal lost
        answer = await claims(*args)
        if answer is not None and answer[1] and not lost:
            lost = len(answer[1])
            return answer[0], []
        return answer

    host.store.claim = loses_one  # type: ignore[method-assign, assignment]
    run_id = await deployment.submit(line, ["a"])
    await until(lambda: lost == 1, "the lost answer")
    assert (await deployment.record(run_id)).state is RunState.RUNNING
    await _cut(str(deployment.settings.redis_url.get_secret_value()), host)  # type: ignore[union-attr]
    record = await deployment.end(run_id)
    assert (output(line, record), record.fence) == (["a"], 3)


async def test_what_is_owned_and_not_driven_is_handed_back_in_the_end(redis_url: str) -> None:
    """The net below our own defects: here, a run whose engine is simply forgotten."""
    async with spine(redis_url, line, heartbeat_s=0.06, lease_s=1) as deployment:
        host = await deployment.host()
        close("a")
        run_id = await deployment.submit(line, ["a"])
        await at("a")
        host.runs.pop(run_id).drop()
        GATES["a"].set()
        record = await deployment.end(run_id)
        assert (output(line, record), record.migrations) == (["a"], 1)


async def test_the_store_is_killed_under_load_and_nothing_is_lost(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / "store") as server:
        async with spine(server.url, *AGENTS, partitions=4, lease_s=3) as deployment:
            hosts = [await deployment.host() for _ in range(2)]
            runs = await asyncio.gather(*(deployment.submit(pauses, str(number)) for number in range(200)))
            done = 0
            for _ in range(2):
                await until(lambda done=done: MADE.total() > done + 100, "some steps")  # type: ignore[misc]
                server.kill()
                await asyncio.sleep(0.2)
                # Before it is back: hosts go on at once.
                done = MADE.total()
                await asyncio.to_thread(server.start)
            for run_id in runs:
                assert (await deployment.end(run_id)).state is RunState.SUCCEEDED
            counts = await reader.batch_counts(deployment.store, "b")
            assert (counts.by_state, counts.steps) == ({"succeeded": 200}, 1000)
            journalled = [len(await deployment.journal(run_id)) for run_id in runs]
            assert set(journalled) == {5}
            # Steps are made again only where their entry had not been acknowledged, once for each time a run moved.
            assert MADE.total() - 1000 <= counts.migrations
            await until(lambda: not any(host.runs for host in hosts), "free slots")


async def test_waiting_runs_wake_after_the_store_was_killed(tmp_path: Path) -> None:
    @agent("nap", version="1")
    async def nap(run: Run, seconds: float) -> str:
        await run.sleep(seconds)
        return await run.call(work, "awake")

    with EmbeddedValkey(tmp_path / "store") as server:
        async with spine(server.url, nap) as deployment:
            await deployment.host()
            run_id = await deployment.submit(nap, 1.1)
            await deployment.waits(run_id)
            server.kill()
            await asyncio.to_thread(server.start)
            assert output(nap, await deployment.end(run_id)) == "awake"


# What a host costs

MEASURED = """
import asyncio, gc, json, os, sys, time
import psutil, uvloop
sys.path[:0] = {path!r}
from pydantic import SecretStr
from actors.host_runtime import HostRuntime
from actors.job import Job, new_run
from actors.registry import App
from cluster.config import Settings
from penstock import Run, ToolCall, agent, tool

@tool(timeout=300)
async def wait(call: ToolCall, seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds

@agent("waiter", version="1")
async def waiter(run: Run, text: str) -> float:
    first = await run.call(wait, 0.01)
    return await run.call(wait, 300.0)

async def main():
    settings = Settings(redis_url=SecretStr({url!r}), name={name!r}, slots_per_host=20000)
    host = HostRuntime(settings, App("t", {{"waiter": waiter}}), "h", node="n")
    await host.start()
    me = psutil.Process()
    if {runs}:
        await asyncio.sleep(0.5)
        gc.collect()
        before = me.memory_info().rss
        by_partition = {{}}
        for number in range({runs}):
            run = new_run(Job(custom_id=str(number), agent="waiter", input="x" * 200), "b", settings.partitions)
            by_partition.setdefault(int(run.id[:2], 16), []).append(run)
        while by_partition:
            for partition in list(by_partition):
                some, by_partition[partition] = by_partition[partition][:500], by_partition[partition][500:]
                await host.store.submit("b", partition, some)
                if not by_partition[partition]:
                    del by_partition[partition]
        while sum(engine.journal_length for engine in host.runs.values()) < {runs}:
            await asyncio.sleep(0.05)
        gc.collect()
        print(json.dumps([(me.memory_info().rss - before) / {runs}, len(host.runs)]), flush=True)
    else:
        await asyncio.sleep(1)
        spent = time.process_time()
        await asyncio.sleep({seconds})
        print(json.dumps([(time.process_time() - spent) / {seconds}, host._beats]), flush=True)

loop = uvloop.new_event_loop()
loop.run_until_complete(main())
os._exit(0)
"""


async def _measured(redis_url: str, name: str, *, runs: int = 0, seconds: float = 0) -> list[float]:
    path = [str(ROOT), str(ROOT / "tests" / "support")]
    code = textwrap.dedent(MEASURED).format(path=path, url=redis_url, name=name, runs=runs, seconds=seconds)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE, cwd=ROOT)
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    found: list[float] = json.loads(said)
    return found


async def test_an_idle_host_costs_next_to_nothing(redis_url: str) -> None:
    share, beats = await _measured(redis_url, "idle", seconds=4)
    print(f"an idle host takes {share:.2%} of a core")
    assert beats >= 4
    assert share < IDLE_CORE_SHARE


async def test_a_run_that_awaits_its_tool_takes_little_memory(redis_url: str) -> None:
    each, held = await _measured(redis_url, "memory", runs=10_000)
    print(f"{held} runs at once take {each / 1024:.1f} KiB of host memory each")
    assert held == 10_000
    assert each < BYTES_PER_RUN


async def test_numbering_branches_twice_is_numbering_them_once() -> None:
    loop = asyncio.get_running_loop()
    number_branches(loop)
    first = loop.get_task_factory()
    number_branches(loop)
    assert loop.get_task_factory() is first
    assert await asyncio.create_task(asyncio.sleep(0, "done")) == "done"


async def test_a_beat_before_a_new_name_is_registered_is_no_second_loss(
    deployment: Spine, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = await deployment.host()
    first = host.host
    register = host._register

    async def with_a_beat_before() -> None:
        await host._beat()
        await register()

    monkeypatch.setattr(host, "_register", with_a_beat_before)
    await deployment.reap(first)
    await until(lambda: host.host != first, "a new name")
    second = host.host
    for _ in range(3):
        await host._beat()
    assert host.host == second
    assert set(await deployment.store.hosts()) == {second}
