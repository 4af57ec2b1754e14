"""Calls to dependencies on real hosts, with real hubs and a real store: gates, bounds, budgets, breakers, and ends."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hosting import Spine, output, spine, until

from actors.errors import StepFailed
from actors.journal import Kind, Status
from admission.dependency import Breaker, Dependency, Limit, RetryBudget
from admission.retry import RetryPolicy
from cluster.lifecycle import RunState
from penstock import NotApplied, RateLimited, Risk, Run, ToolCall, agent, tool

CALLS: defaultdict[str, list[float]] = defaultdict(list)
FAILURES: Counter[str] = Counter()
WISHES: dict[str, float] = {}
GATES: dict[str, asyncio.Event] = {}
SLOW: dict[str, float] = {}
WHERE: defaultdict[str, list[str]] = defaultdict(list)
BAD_HOSTS: set[str] = set()
UNDER_WAY: Counter[str] = Counter()
MOST: Counter[str] = Counter()

QUICK = RetryPolicy(initial_interval=0.01, maximum_interval=0.02, maximum_attempts=50, max_duration=30)
ONCE = RetryPolicy(maximum_attempts=1)


@pytest.fixture(autouse=True)
def clean() -> None:
    for kept in (CALLS, FAILURES, WISHES, GATES, SLOW, WHERE, BAD_HOSTS, UNDER_WAY, MOST):
        kept.clear()


async def asked(call: ToolCall, name: str) -> str:
    """What the dependency does with a call."""
    CALLS[name].append(time.monotonic())
    UNDER_WAY["all"] += 1
    MOST["all"] = max(MOST["all"], UNDER_WAY["all"])
    try:
        if name in GATES:
            await GATES[name].wait()
        await asyncio.sleep(SLOW.get(name, 0.0))
        if FAILURES[name] > 0:
            FAILURES[name] -= 1
            if name in WISHES:
                raise RateLimited("enough", retry_after=WISHES[name])
            raise NotApplied("down")
        return name
    finally:
        UNDER_WAY["all"] -= 1


@tool(dependency="d")
async def read(call: ToolCall, name: str) -> str:
    return await asked(call, name)


@tool(dependency="d", schedule_to_close=2.5, timeout=1)
async def bounded_read(call: ToolCall, name: str) -> str:
    return await asked(call, name)


@tool(dependency="d", retry=QUICK)
async def patient_read(call: ToolCall, name: str) -> str:
    return await asked(call, name)


@tool(dependency="d", retry=QUICK, schedule_to_close=1.5, timeout=1)
async def hurried_read(call: ToolCall, name: str) -> str:
    return await asked(call, name)


@tool(dependency="d", risk=Risk.WRITE, idempotent=True, retry=QUICK)
async def pay(call: ToolCall, name: str) -> str:
    return await asked(call, name)


@tool(dependency="d", risk=Risk.WRITE)
async def pay_once(call: ToolCall, name: str) -> str:
    return await asked(call, name)


TOOLS = {each.name: each for each in (read, bounded_read, patient_read, hurried_read, pay, pay_once)}


@agent("caller", version="1")
async def caller(run: Run, asks: list[tuple[str, str]]) -> list[str]:
    return [await run.call(TOOLS[name], what) for name, what in asks]


@agent("many", version="1")
async def many(run: Run, names: list[str]) -> int:
    return len(await asyncio.gather(*(run.call(read, name) for name in names)))


@agent("hopeful", version="1")
async def hopeful(run: Run, asks: list[tuple[str, str]]) -> str:
    try:
        for name, what in asks:
            await run.call(TOOLS[name], what)
    except StepFailed as error:
        return f"{error.end}|{error.ended_by}|{error.message}"
    return "well"


AGENTS = (caller, many, hopeful)


async def command(deployment: Spine, do: str, name: str = "d", **fields: Any) -> None:
    """What ``penstock deps`` does: a command in the store, and a word to the hub."""
    keys = deployment.store.keys
    wish = {"id": f"{do}-{time.monotonic()}", "do": do, "by": "ann", "at_ms": 0, **fields}
    await deployment.store.set_fields(keys.dependency(name), {"command": json.dumps(wish)})
    await deployment.store.publish(keys.dependencies_channel, f"changed {name}")


async def shown(deployment: Spine, name: str = "d") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((await deployment.store.fields(deployment.store.keys.dependency(name)))["state"])
    return found


async def reaches(deployment: Spine, state: str) -> None:
    async def there() -> bool:
        return bool((await shown(deployment))["breaker"]["state"] == state)

    await until(there, f"breaker {state}")


@pytest.fixture
async def plain(redis_url: str) -> AsyncIterator[Spine]:
    async with spine(redis_url, *AGENTS, dependencies=[Dependency("d", retry=ONCE)]) as deployment:
        await deployment.host()
        yield deployment


# Going, and limits


async def test_calls_go_and_the_hub_counts_them(plain: Spine) -> None:
    assert await plain.result(caller, [["read", "a"], ["pay", "b"], ["pay_once", "c"]]) == ["a", "b", "c"]

    async def counted() -> bool:
        return bool((await shown(plain))["totals"]["succeeded"] == 3)

    await until(counted, "three calls counted")


async def test_a_rate_holds_over_two_hosts(redis_url: str) -> None:
    limit = Dependency("d", [Limit("requests", 10, per=1)])
    async with spine(redis_url, *AGENTS, dependencies=[limit]) as deployment:
        for _ in range(2):
            await deployment.host()
        runs = [await deployment.submit(many, [f"{run}/{number}" for number in range(6)]) for run in range(4)]
        for run_id in runs:
            assert output(many, await deployment.end(run_id)) == 6
        moments = sorted(moment for calls in CALLS.values() for moment in calls)
        assert len(moments) == 24
        assert all(later - first >= 0.995 for first, later in zip(moments, moments[10:], strict=False))
        assert moments[-1] - moments[0] < 4.5


async def test_places_hold_over_two_hosts(redis_url: str) -> None:
    limit = Dependency("d", max_concurrency=3)
    async with spine(redis_url, *AGENTS, dependencies=[limit]) as deployment:
        for _ in range(2):
            await deployment.host()
        names = [[f"{run}/{number}" for number in range(5)] for run in range(4)]
        for name in (name for each in names for name in each):
            SLOW[name] = 0.05
        runs = [await deployment.submit(many, each) for each in names]
        for run_id in runs:
            assert output(many, await deployment.end(run_id)) == 5
        assert MOST["all"] == 3


async def test_the_more_valuable_goes_first(redis_url: str) -> None:
    limit = Dependency("d", max_concurrency=1)
    async with spine(redis_url, *AGENTS, dependencies=[limit]) as deployment:
        (host,) = [await deployment.host()]
        GATES["first"] = asyncio.Event()
        runs = [await deployment.submit(caller, [["read", "first"]])]
        await until(lambda: bool(CALLS["first"]), "the first call")
        for value in ("best_effort", "low", "normal", "high", "critical"):
            runs.append(await deployment.submit(caller, [["read", value]], value=value))
            await until(lambda: host.gates.keepers["d"].gate.line.waiting == len(runs) - 1, "it waits")
        GATES["first"].set()
        for run_id in runs:
            await deployment.end(run_id)
        order = sorted(CALLS, key=lambda name: CALLS[name][0])
        assert order == ["first", "critical", "high", "normal", "low", "best_effort"]


# Leaving while waiting


async def test_who_is_cancelled_at_the_gate_leaves_nothing_behind(redis_url: str) -> None:
    async with spine(redis_url, *AGENTS, dependencies=[Dependency("d", max_concurrency=1)]) as deployment:
        host = await deployment.host()
        GATES["first"] = asyncio.Event()
        first = await deployment.submit(caller, [["read", "first"]])
        await until(lambda: bool(CALLS["first"]), "the first call")
        before = asyncio.all_tasks()
        gate = host.gates.keepers["d"].gate
        waiting = [await deployment.submit(many, [f"w{number}" for number in range(5)]) for _ in range(3)]
        waiting.append(await deployment.submit(caller, [["pay", "p"]]))
        await until(lambda: gate.line.waiting == 16, "all wait")
        for run_id in waiting:
            await deployment.cancel(run_id)
            assert (await deployment.end(run_id)).state is RunState.CANCELLED
        assert (gate.line.waiting, host.attempts.waiting) == (0, {})
        await until(lambda: len(asyncio.all_tasks() - before) == 0, "no task more than before")
        GATES["first"].set()
        await deployment.end(first)
        assert gate.in_flight == 0
        assert await deployment.result(caller, [["read", "next"]]) == ["next"]
        assert "w0" not in CALLS
        assert "p" not in CALLS


async def test_what_a_run_waits_for_is_noted_under_its_hosts_present_name(redis_url: str) -> None:
    async with spine(redis_url, *AGENTS, dependencies=[Dependency("d", max_concurrency=1)]) as deployment:
        host = await deployment.host()
        names = ["one", "other"]
        for name in names:
            GATES[name] = asyncio.Event()
        runs = [await deployment.submit(caller, [["read", name]]) for name in names]

        async def is_noted() -> bool:  # of which run it is depends on which one goes first
            return len(await deployment.store.fields(deployment.store.keys.waits(host.host))) == 1

        await until(is_noted, "a note")
        first = host.host
        await deployment.reap(first)
        await until(lambda: host.host != first, "a new name")
        await until(is_noted, "a note under the new name")
        for name in names:
            GATES[name].set()
        for run_id in runs:
            assert (await deployment.end(run_id)).state is RunState.SUCCEEDED


@pytest.mark.parametrize("bound", ["schedule_to_close=2.5", "the run's deadline"])
async def test_a_bound_that_comes_first_at_the_gate_is_named(redis_url: str, bound: str) -> None:
    async with spine(redis_url, *AGENTS, dependencies=[Dependency("d", max_concurrency=1)]) as deployment:
        host = await deployment.host()
        GATES["first"] = asyncio.Event()
        first = await deployment.submit(caller, [["read", "first"]])
        await until(lambda: bool(CALLS["first"]), "the first call")
        fields = {} if bound.startswith("schedule") else {"deadline": datetime.now(UTC) + timedelta(seconds=0.6)}
        run_id = await deployment.submit(hopeful, [["bounded_read", "late"]], **fields)
        record = await deployment.end(run_id)
        assert "late" not in CALLS
        if record.state is RunState.SUCCEEDED:
            end, by, message = output(hopeful, record).split("|")
            assert (end, by) == ("timed_out", bound)
            assert "max_concurrency" in message
        else:
            assert (record.state, record.reason, bound) == (
                RunState.CANCELLED, "deadline_exceeded", "the run's deadline",
            )  # fmt: skip
        assert host.gates.keepers["d"].gate.line.waiting == 0
        GATES["first"].set()
        await deployment.end(first)


# Breakers


async def test_an_operator_opens_and_a_run_is_unloaded_and_goes_on(plain: Spine) -> None:
    await plain.result(caller, [["read", "before"]])
    await command(plain, "open", reason="maintenance")
    await reaches(plain, "open")
    run_id = await plain.submit(caller, [["read", "after"]])
    record = await plain.waits(run_id)
    assert record.reason == "breaker d"
    assert "after" not in CALLS
    await command(plain, "close")
    await reaches(plain, "closed")
    state = await shown(plain)
    assert state["breaker"]["by"] == "ann"
    opened = (await plain.journal(run_id))[-1]
    assert (opened.kind, opened.status) == (Kind.CALL, Status.OPEN)


async def test_a_breaker_opens_for_all_probes_and_closes(redis_url: str) -> None:
    breaker = Breaker(minimum_calls=4, window_s=5, open_s=0.4, maximum_open_s=0.5)
    dependency = Dependency("d", breaker=breaker, retry=QUICK, retry_budget=None)
    async with spine(redis_url, *AGENTS, dependencies=[dependency]) as deployment:
        for _ in range(2):
            await deployment.host()
        names = [f"n{number}" for number in range(12)]
        for name in names:
            FAILURES[name] = 1000
        runs = [await deployment.submit(caller, [["read", name]]) for name in names]
        await until(lambda: deployment.hubs["d"].hub.breaker.generation > 0, "it opens")
        FAILURES.clear()
        for run_id in runs:
            assert (await deployment.end(run_id)).state is RunState.SUCCEEDED
        assert deployment.hubs["d"].hub.breaker.generation >= 3, "opened, probed and closed"
        await reaches(deployment, "closed")


async def test_a_schedule_goes_on_while_the_run_is_unloaded(redis_url: str) -> None:
    async with spine(redis_url, *AGENTS, dependencies=[Dependency("d", retry=ONCE)]) as deployment:
        await deployment.host()
        await deployment.result(caller, [["read", "before"]])
        await command(deployment, "open", reason="maintenance")
        await reaches(deployment, "open")
        began = time.monotonic()
        run_id = await deployment.submit(hopeful, [["bounded_read", "never"]])
        await deployment.waits(run_id)
        end, by, _ = output(hopeful, await deployment.end(run_id)).split("|")
        assert (end, by) == ("timed_out", "schedule_to_close=2.5")
        assert 2.3 < time.monotonic() - began < 5
        assert "never" not in CALLS


# Retry-After


async def test_a_retry_after_stops_all_hosts(redis_url: str) -> None:
    dependency = Dependency("d", retry=QUICK)
    async with spine(redis_url, *AGENTS, dependencies=[dependency]) as deployment:
        hosts = [await deployment.host(slots_per_host=2) for _ in range(2)]
        await asyncio.gather(*(deployment.result(many, [f"w{number}"] * 3) for number in range(4)))
        FAILURES["limited"], WISHES["limited"] = 1, 0.9
        limited = asyncio.create_task(deployment.result(caller, [["read", "limited"]]))
        await until(lambda: bool(CALLS["limited"]), "the refusal")
        heard = CALLS["limited"][0]
        runs = [await deployment.submit(caller, [["read", f"n{number}"]]) for number in range(4)]
        assert await limited == ["limited"]
        for run_id in runs:
            await deployment.end(run_id)
        assert all(host.gates.keepers["d"].gate.lease for host in hosts)
        after = [moment for name, moments in CALLS.items() if name[0] == "n" for moment in moments]
        assert CALLS["limited"][1] - heard >= 0.9
        # News takes a moment to reach the other host, and nothing goes when it has.
        assert all(moment - heard >= 0.9 or moment - heard < 0.1 for moment in after)
        assert (await shown(deployment))["totals"]["rate_limited"] == 1


@pytest.mark.parametrize("wish", [-5.0, math.nan, math.inf, 1e12, -math.inf])
async def test_an_absurd_retry_after_is_clamped_and_said(
    redis_url: str, caplog: pytest.LogCaptureFixture, wish: float
) -> None:
    dependency = Dependency("d", retry=QUICK, maximum_retry_after_s=0.3)
    async with spine(redis_url, *AGENTS, dependencies=[dependency]) as deployment:
        await deployment.host()
        FAILURES["x"], WISHES["x"] = 1, wish
        assert await deployment.result(caller, [["read", "x"]]) == ["x"]
        assert len(CALLS["x"]) == 2
        assert "retry_after" in caplog.text
        assert str(wish) in caplog.text


# Retries


async def test_a_budget_bounds_retries_and_its_end_is_named(redis_url: str) -> None:
    budget = RetryBudget(ratio=0.0, reserve=3, per_second=0.0)
    dependency = Dependency("d", breaker=None, retry_budget=budget)
    async with spine(redis_url, *AGENTS, dependencies=[dependency]) as deployment:
        host = await deployment.host()
        FAILURES["x"] = 1000
        runs = [await deployment.submit(hopeful, [["hurried_read", "x"]], tenant="poor") for _ in range(4)]
        await until(lambda: len(CALLS["x"]) == 7, "first attempts and what the budget has")
        FAILURES["y"] = 2
        assert await deployment.result(caller, [["patient_read", "y"]], tenant="rich") == ["y"]
        for run_id in runs:
            end, by, message = output(hopeful, await deployment.end(run_id)).split("|")
            assert end == "budget_exhausted"
            assert by == "retry_budget of d; schedule_to_close=1.5"
            assert "'poor' had no retry left" in message
        assert len(CALLS["x"]) == 7
        assert host.attempts.waiting == {}
        state = await shown(deployment)
        assert state["budgets"]["poor"]["retries"] == 3


async def test_a_retry_that_waits_for_the_budget_gets_what_is_paid_in(redis_url: str) -> None:
    budget = RetryBudget(ratio=1.0, reserve=0, per_second=0.0)
    dependency = Dependency("d", breaker=None, retry_budget=budget)
    async with spine(redis_url, *AGENTS, dependencies=[dependency]) as deployment:
        await deployment.host()
        FAILURES["x"] = 3
        run_id = await deployment.submit(caller, [["patient_read", "x"]])
        await until(lambda: len(CALLS["x"]) == 2, "its own call paid for one")
        for number in range(3):
            await deployment.result(caller, [["read", f"payer{number}"]])
        assert output(caller, await deployment.end(run_id)) == ["x"]
        assert len(CALLS["x"]) == 4


# Effects


async def test_an_intent_comes_only_after_the_gate(redis_url: str) -> None:
    async with spine(redis_url, *AGENTS, dependencies=[Dependency("d", max_concurrency=1)]) as deployment:
        host = await deployment.host()
        GATES["first"] = asyncio.Event()
        first = await deployment.submit(caller, [["read", "first"]])
        await until(lambda: bool(CALLS["first"]), "the first call")
        run_id = await deployment.submit(caller, [["pay_once", "p"]])
        await until(lambda: host.gates.keepers["d"].gate.line.waiting == 1, "it waits")
        assert await deployment.journal(run_id) == []
        await deployment.lose(host)
        GATES["first"].set()
        await deployment.host()
        assert output(caller, await deployment.end(run_id)) == ["p"]
        assert [entry.kind for entry in await deployment.journal(run_id)] == [Kind.INTENT, Kind.CALL]
        assert len(CALLS["p"]) == 1
        await deployment.end(first)


@pytest.mark.parametrize("how", ["drain", "cancel"])
async def test_an_effect_between_two_attempts_can_be_taken_back(redis_url: str, how: str) -> None:
    budget = RetryBudget(ratio=0.0, reserve=0, per_second=0.0)
    dependency = Dependency("d", breaker=None, retry_budget=budget)
    async with spine(redis_url, *AGENTS, dependencies=[dependency]) as deployment:
        host = await deployment.host()
        FAILURES["p"] = 1
        run_id = await deployment.submit(caller, [["pay", "p"]])
        await until(lambda: [held.what for held in host.attempts.waiting.values()] == ["budget"], "it rests")
        if how == "cancel":
            await deployment.cancel(run_id)
            assert (await deployment.end(run_id)).state is RunState.CANCELLED
            assert len(CALLS["p"]) == 1
        else:
            await asyncio.wait_for(host.drain(), 3)
            await deployment.host()
            assert output(caller, await deployment.end(run_id)) == ["p"]
            assert len(CALLS["p"]) == 2
        journal = [(entry.kind, entry.status) for entry in await deployment.journal(run_id)]
        taken_back = [(Kind.INTENT, Status.OPEN), (Kind.CALL, Status.OPEN)]
        again = [(Kind.INTENT, Status.OPEN), (Kind.CALL, Status.OK)]
        assert journal == (taken_back if how == "cancel" else taken_back + again)
        assert host.gates.keepers["d"].gate.in_flight == 0
