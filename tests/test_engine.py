"""One run on a host and on the next one: what is repeated, what is not, and how it ends."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from uuid import UUID

import pytest
from hosting import Spine, output, spine, until

from actors.core.identity import Scope
from actors.core.parking import Parking, Wait, parking
from actors.journal import Kind, Status, decode_error
from actors.verdict import failure
from cluster.keys import partition_of
from cluster.lifecycle import RunState
from penstock import Ambiguous, NotApplied, RetryPolicy, Risk, Run, StepFailed, ToolCall, agent, tool


class Stage:
    """What the tools of a test have done, and the gates at which they wait."""

    def __init__(self) -> None:
        self.made: Counter[str] = Counter()
        self.keys: dict[str, set[str]] = {}
        self.closed: dict[str, asyncio.Event] = {}
        self.reached: dict[str, asyncio.Event] = {}

    def close(self, *names: str) -> None:
        for name in names:
            self.closed[name] = asyncio.Event()
            self.reached[name] = asyncio.Event()

    def open(self, name: str) -> None:
        self.closed[name].set()

    async def at(self, name: str) -> None:
        await asyncio.wait_for(self.reached[name].wait(), 5)

    async def enter(self, call: ToolCall, name: str) -> None:
        self.made[name] += 1
        self.keys.setdefault(name, set()).add(call.idempotency_key)
        if name in self.closed:
            self.reached[name].set()
            await self.closed[name].wait()


STAGE = Stage()
ONCE = RetryPolicy(maximum_attempts=1)


@pytest.fixture(autouse=True)
def stage() -> Stage:
    STAGE.__init__()  # type: ignore[misc]
    return STAGE


@tool()
async def work(call: ToolCall, name: str) -> str:
    await STAGE.enter(call, name)
    return name


@tool()
async def breaks(call: ToolCall, name: str) -> str:
    await STAGE.enter(call, name)
    raise ValueError(name)


@tool(risk=Risk.WRITE, idempotent=True)
async def pay(call: ToolCall, name: str) -> str:
    await STAGE.enter(call, name)
    return call.idempotency_key


@tool(risk=Risk.WRITE)
async def wire(call: ToolCall, name: str) -> str:
    await STAGE.enter(call, name)
    return name


@tool(risk=Risk.WRITE)
async def wire_in_vain(call: ToolCall, name: str) -> str:
    await STAGE.enter(call, name)
    raise Ambiguous("no answer")


@agent("line", version="1")
async def line(run: Run, names: list[str]) -> list[str]:
    """One step after the other."""
    return [await run.call(work, name) for name in names]


@agent("together", version="1")
async def together(run: Run, names: list[str]) -> list[str]:
    """All steps at once."""
    return await asyncio.gather(*(run.call(work, name) for name in names))


@agent("branches", version="1")
async def branches(run: Run, names: list[str]) -> list[str]:
    """Branches of two steps each, in a task group; the first one starts another."""

    async def branch(name: str) -> str:
        first = await run.call(work, f"{name}1")
        if name == "a":
            async with asyncio.TaskGroup() as inner:
                inner.create_task(branch("x"))
                inner.create_task(branch("y"))
        return first + await run.call(work, f"{name}2")

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(branch(name)) for name in names]
    return [task.result() for task in tasks]


@agent("chained", version="1")
async def chained(run: Run, names: list[str]) -> list[str]:
    """Each branch awaits the one before it ere it asks for its first step; the last one does not."""

    async def after(former: "asyncio.Task[str] | None", name: str) -> str:
        if former is not None:
            await former
        return await run.call(work, name)

    tasks: list[asyncio.Task[str]] = []
    for name in names[:-1]:
        tasks.append(asyncio.create_task(after(tasks[-1] if tasks else None, name)))
    tasks.append(asyncio.create_task(after(None, names[-1])))
    return await asyncio.gather(*tasks)


@agent("limited", version="1")
async def limited(run: Run, names: list[str]) -> list[str]:
    """At most two branches at a time."""
    permits = asyncio.Semaphore(2)

    async def branch(name: str) -> str:
        async with permits:
            return await run.call(work, name)

    return await asyncio.gather(*(branch(name) for name in names))


@agent("payer", version="1")
async def payer(run: Run, names: list[str]) -> list[str]:
    """One effect after the other."""
    return [await run.call(pay, name) for name in names]


@agent("wirer", version="1")
async def wirer(run: Run, names: list[str]) -> list[str]:
    return [await run.call(wire, name) for name in names]


@agent("vain", version="1")
async def vain(run: Run, name: str) -> str:
    return await run.call(wire_in_vain, name)


@agent("mixed", version="1")
async def mixed(run: Run, _: None) -> list[object]:
    """A step that fails, beside an effect."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_call(run, "breaks"))
        group.create_task(_call(run, "pay"))
    return []


async def _call(run: Run, name: str) -> object:
    return await run.call({"breaks": breaks, "pay": pay, "vain": wire_in_vain}[name], name)


AGENTS = (line, together, branches, chained, limited, payer, wirer, vain, mixed)


@pytest.fixture
async def deployment(redis_url: str) -> AsyncIterator[Spine]:
    async with spine(redis_url, *AGENTS) as deployment:
        yield deployment


async def moved(deployment: Spine, run_id: str) -> None:
    """The only host dies and another one takes its runs over."""
    assert await deployment.lose(deployment.hosts[-1]) == 1
    await deployment.host()


# Replay


async def test_finished_steps_are_not_repeated_by_the_next_host(deployment: Spine, stage: Stage) -> None:
    await deployment.host()
    stage.close("c")
    run_id = await deployment.submit(line, ["a", "b", "c", "d"])
    await stage.at("c")
    await moved(deployment, run_id)
    stage.open("c")
    record = await deployment.end(run_id)
    assert output(line, record) == ["a", "b", "c", "d"]
    assert (record.migrations, record.fence) == (1, 3)
    assert stage.made == {"a": 1, "b": 1, "c": 2, "d": 1}
    assert [entry.step for entry in await deployment.journal(run_id)] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("held", ["a", "b", "c"])
async def test_steps_at_once_replay_whichever_ended_first(deployment: Spine, stage: Stage, held: str) -> None:
    await deployment.host()
    stage.close(held)
    run_id = await deployment.submit(together, ["a", "b", "c"])
    await stage.at(held)
    await until(lambda: _journalled(deployment, run_id, 2), "two steps")
    await moved(deployment, run_id)
    stage.open(held)
    assert output(together, await deployment.end(run_id)) == ["a", "b", "c"]
    assert stage.made == {name: 1 + (name == held) for name in "abc"}


async def _journalled(deployment: Spine, run_id: str, count: int) -> bool:
    return len(await deployment.journal(run_id)) >= count


@pytest.mark.parametrize("held", ["a1", "a2", "b1", "c2", "x1", "y2"])
async def test_branches_replay_whichever_ended_first(deployment: Spine, stage: Stage, held: str) -> None:
    await deployment.host()
    stage.close(held)
    run_id = await deployment.submit(branches, ["a", "b", "c"])
    await stage.at(held)
    # Everything that does not wait for the held step is finished before the host dies.
    free = {"a1": 4, "a2": 9, "b1": 8, "c2": 9, "x1": 7, "y2": 8}[held]
    await until(lambda: _journalled(deployment, run_id, free), f"{free} steps")
    await moved(deployment, run_id)
    stage.open(held)
    assert output(branches, await deployment.end(run_id)) == ["a1a2", "b1b2", "c1c2"]
    assert stage.made == {f"{name}{part}": 1 + (f"{name}{part}" == held) for name in "abcxy" for part in "12"}


@pytest.mark.parametrize("chosen", ["chained", "limited"])
@pytest.mark.parametrize("held", ["b", "d"])
async def test_a_branch_has_its_number_from_where_it_was_started(
    deployment: Spine, stage: Stage, chosen: str, held: str
) -> None:
    agent_ = {"chained": chained, "limited": limited}[chosen]
    names = ["a", "b", "c", "d"]
    await deployment.host()
    stage.close(held)
    run_id = await deployment.submit(agent_, names)
    await stage.at(held)
    free = 2 if (chosen, held) == ("chained", "b") else 3
    await until(lambda: _journalled(deployment, run_id, free), f"{free} steps")
    await moved(deployment, run_id)
    stage.open(held)
    assert output(agent_, await deployment.end(run_id)) == names
    assert stage.made == {name: 1 + (name == held) for name in names}


def test_a_scope_numbers_steps_and_branches() -> None:
    root = Scope("task")
    first, second = root.branch("one"), root.branch("two")
    inner = second.branch("inner")
    assert [root.next_step(), second.next_step(), first.next_step(), inner.next_step(), root.next_step()] == [
        "0", "b1.0", "b0.0", "b1.b0.0", "1",
    ]  # fmt: skip


async def test_tasks_of_a_tool_are_none_of_the_agents(redis_url: str, stage: Stage) -> None:
    @tool()
    async def busy(call: ToolCall, name: str) -> str:
        async def part() -> str:
            await asyncio.sleep(0)
            return name

        await stage.enter(call, name)
        return "".join(await asyncio.gather(part(), part()))

    @agent("tooled", version="1")
    async def tooled(run: Run, _: None) -> list[str]:
        first = await run.call(busy, "a")

        async def branch() -> str:
            return await run.call(busy, "b") + await run.call(busy, "c")

        return [first, *await asyncio.gather(branch(), run.call(busy, "d"))]

    async with spine(redis_url, tooled) as deployment:
        await deployment.host()
        stage.close("c")
        run_id = await deployment.submit(tooled)
        await stage.at("c")
        await until(lambda: _journalled(deployment, run_id, 3), "three steps")
        await moved(deployment, run_id)
        stage.open("c")
        assert output(tooled, await deployment.end(run_id)) == ["aa", "bbcc", "dd"]
        assert stage.made == {"a": 1, "b": 1, "c": 2, "d": 1}


async def test_a_failed_step_is_recorded_and_raised_again(redis_url: str, stage: Stage) -> None:
    seen: list[tuple[str, str, str]] = []

    @agent("bold", version="1")
    async def bold(run: Run, _: None) -> str:
        try:
            await run.call(breaks, "bad")
        except StepFailed as error:
            seen.append((error.error_class, error.message, error.step))
        return await run.call(work, "plan b")

    async with spine(redis_url, bold) as deployment:
        await deployment.host()
        stage.close("plan b")
        run_id = await deployment.submit(bold)
        await stage.at("plan b")
        await moved(deployment, run_id)
        stage.open("plan b")
        assert output(bold, await deployment.end(run_id)) == "plan b"
        assert seen == [("ValueError", "bad", "0")] * 2
        assert stage.made["bad"] == 1
        first = (await deployment.journal(run_id))[0]
        assert (first.status, decode_error(first.payload).message) == (Status.FAILED, "bad")


async def test_time_chance_and_identifiers_are_recorded(redis_url: str, stage: Stage) -> None:
    seen: list[list[object]] = []

    @agent("dice", version="1")
    async def dice(run: Run, _: None) -> list[object]:
        drawn = [run.now(), run.random(), run.uuid(), run.random()]
        await run.call(work, "a")
        drawn.append(run.uuid())
        seen.append(drawn)
        await run.call(work, "b")
        return drawn

    async with spine(redis_url, dice) as deployment:
        await deployment.host()
        stage.close("b")
        run_id = await deployment.submit(dice)
        await stage.at("b")
        await moved(deployment, run_id)
        stage.open("b")
        record = await deployment.end(run_id)
        first, second = seen
        # The last value was drawn after the last step that the first host recorded: nothing has seen it yet.
        assert first[:4] == second[:4]
        now, random, uuid, other, _ = second
        assert abs(now.timestamp() * 1000 - record.accepted_ms) < 5000  # type: ignore[attr-defined]
        assert isinstance(uuid, UUID)
        assert random != other
        kinds = [(entry.kind, entry.step) for entry in await deployment.journal(run_id)]
        assert kinds == [*(("value", str(n)) for n in range(4)), ("call", "4"), ("value", "5"), ("call", "6")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("name", "the journal has call work (%), the code now asks for call breaks (%)"),
        ("kind", "the journal has call work (%), the code now asks for timer sleep (%)"),
        ("arguments", "the journal has call work (%), the code now asks for call work (%)"),
        ("fewer", "the journal has call work (%), the code ended without asking for it"),
        ("value", "the journal has call work (%), the code now asks for value random ()"),
    ],
)
@pytest.mark.parametrize("swallows", [False, True])
async def test_code_that_asks_for_something_else_is_found_out(
    redis_url: str, stage: Stage, change: str, said: str, swallows: bool
) -> None:
    life = 0

    @agent("fickle", version="1")
    async def fickle(run: Run, _: None) -> str:
        nonlocal life
        life += 1
        await run.call(work, "a")
        try:
            match change if life > 1 else "":
                case "name":
                    await run.call(breaks, "b")
                case "kind":
                    await run.sleep(0.001)
                case "arguments":
                    await run.call(work, "c")
                case "value":
                    run.random()
                case "fewer":
                    return "short"
                case _:
                    await run.call(work, "b")
        except BaseException:
            if not swallows:
                raise
            return "as if nothing had happened"
        await run.call(work, "held")
        return "long"

    async with spine(redis_url, fickle) as deployment:
        await deployment.host()
        stage.close("held")
        run_id = await deployment.submit(fickle)
        await stage.at("held")
        await moved(deployment, run_id)
        record = await deployment.end(run_id)
        assert (record.state, record.reason) == (RunState.FAILED, "replay_divergence")
        error = decode_error(record.error)
        assert (error.error_class, error.step) == ("ReplayDivergence", "1")
        for part in said.split("%"):
            assert part in error.message
        assert "give changed code a new version" in error.message
        assert stage.made == {"a": 1, "b": 1, "held": 1}


# Effects


async def test_an_effect_has_its_intent_in_the_journal_before_it_starts(deployment: Spine, stage: Stage) -> None:
    await deployment.host()
    stage.close("rent")
    run_id = await deployment.submit(payer, ["rent"])
    await stage.at("rent")
    (intent,) = await deployment.journal(run_id)
    assert (intent.kind, intent.name, intent.status) == (Kind.INTENT, "pay", Status.OPEN)
    stage.open("rent")
    record = await deployment.end(run_id)
    assert output(payer, record) == list(stage.keys["rent"])
    assert [entry.kind for entry in await deployment.journal(run_id)] == ["intent", "call"]


async def test_an_idempotent_effect_is_repeated_with_its_key(deployment: Spine, stage: Stage) -> None:
    await deployment.host()
    stage.close("rent")
    run_id = await deployment.submit(payer, ["rent", "food"])
    await stage.at("rent")
    await moved(deployment, run_id)
    stage.open("rent")
    assert output(payer, await deployment.end(run_id)) == [*stage.keys["rent"], *stage.keys["food"]]
    assert stage.made == {"rent": 2, "food": 1}
    assert (len(stage.keys["rent"]), len(stage.keys["food"])) == (1, 1)
    assert stage.keys["rent"] != stage.keys["food"]


async def test_another_effect_is_never_repeated(deployment: Spine, stage: Stage) -> None:
    await deployment.host()
    stage.close("rent")
    run_id = await deployment.submit(wirer, ["rent", "food"])
    await stage.at("rent")
    await moved(deployment, run_id)
    record = await deployment.end(run_id)
    assert (record.state, record.reason) == (RunState.CONFIRMATION_UNKNOWN, "effect wire at step 0")
    error = decode_error(record.error)
    assert (error.error_class, error.step) == ("ConfirmationUnknown", "0")
    assert "died between intent and receipt" in error.message
    assert stage.made == {"rent": 1}


async def test_an_effect_outlives_the_branch_that_failed_beside_it(deployment: Spine, stage: Stage) -> None:
    await deployment.host()
    stage.close("pay", "breaks")
    run_id = await deployment.submit(mixed)
    await stage.at("pay")
    stage.open("breaks")
    await until(lambda: _journalled(deployment, run_id, 2), "the failed step")
    await asyncio.sleep(0.05)
    assert (await deployment.record(run_id)).state is RunState.RUNNING
    stage.open("pay")
    record = await deployment.end(run_id)
    error = decode_error(record.error)
    assert (record.state, error.error_class, error.message, error.step) == (
        RunState.FAILED, "ValueError", "breaks", "b0.0",
    )  # fmt: skip
    assert {(entry.kind, entry.status) for entry in await deployment.journal(run_id)} == {
        ("intent", "open"), ("call", "failed"), ("call", "ok"),
    }  # fmt: skip


@pytest.mark.parametrize("way", ["timeout", "cancelled task", "left behind", "returned"])
async def test_an_effect_outlives_code_that_does_not_wait_for_it(redis_url: str, stage: Stage, way: str) -> None:
    @agent("hasty", version="1")
    async def hasty(run: Run, _: None) -> str:
        if way == "timeout":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await run.call(pay, "rent")
            await run.call(work, "next")
            return "went on"
        task = asyncio.create_task(_pay(run))
        await asyncio.wait_for(STAGE.reached["rent"].wait(), 5)
        if way == "cancelled task":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        elif way == "left behind":
            raise KeyError("gone")
        return "went on"

    async def _pay(run: Run) -> str:
        return await run.call(pay, "rent")

    async with spine(redis_url, hasty) as deployment:
        await deployment.host()
        stage.close("rent")
        run_id = await deployment.submit(hasty)
        await stage.at("rent")
        if way == "timeout":
            await until(lambda: stage.made["next"] == 1, "the next step")
        await asyncio.sleep(0.03)
        assert (await deployment.record(run_id)).state is RunState.RUNNING
        stage.open("rent")
        record = await deployment.end(run_id)
        assert record.state is (RunState.FAILED if way == "left behind" else RunState.SUCCEEDED)
        assert [e.status for e in await deployment.journal(run_id) if e.name == "pay"] == ["open", "ok"]
        assert stage.made["rent"] == 1


@pytest.mark.parametrize("way", ["cancelled", "failing", "finished"])
async def test_what_is_unknown_stays_unknown_whatever_else_happens(redis_url: str, stage: Stage, way: str) -> None:
    @agent("doubtful", version="1")
    async def doubtful(run: Run, _: None) -> str:
        task = asyncio.create_task(_call(run, "vain"))
        await asyncio.wait_for(STAGE.reached["vain"].wait(), 5)
        if way == "failing":
            raise KeyError("gone")
        if way == "cancelled":
            await task
        return "done"

    async with spine(redis_url, doubtful) as deployment:
        (host,) = [await deployment.host()]
        stage.close("vain")
        run_id = await deployment.submit(doubtful)
        await stage.at("vain")
        if way == "cancelled":
            assert await deployment.cancel(run_id) == "asked"
            engine = host.runs[run_id]
            await until(lambda: engine._verdict is not None, "the request to cancel")
        stage.open("vain")
        record = await deployment.end(run_id)
        assert record.state is RunState.CONFIRMATION_UNKNOWN
        assert record.reason == "effect wire_in_vain at step b0.0"


@pytest.mark.parametrize(("chosen", "end"), [("payer", RunState.CANCELLED), ("wirer", RunState.CONFIRMATION_UNKNOWN)])
async def test_a_cancelled_run_settles_the_effect_that_its_dead_host_left_open(
    deployment: Spine, stage: Stage, chosen: str, end: RunState
) -> None:
    host = await deployment.host()
    stage.close("rent")
    run_id = await deployment.submit({"payer": payer, "wirer": wirer}[chosen], ["rent", "food"])
    await stage.at("rent")
    identity = await deployment.vanish(host)
    assert await deployment.cancel(run_id) == "asked"
    assert await deployment.reap(identity) == 1
    stage.open("rent")
    await deployment.host()
    assert (await deployment.end(run_id)).state is end
    assert stage.made == {"rent": 1 + (chosen == "payer")}


async def test_a_run_that_forgets_its_open_effect_is_not_called_anything_else(redis_url: str, stage: Stage) -> None:
    life = 0

    @agent("forgetful", version="1")
    async def forgetful(run: Run, _: None) -> str:
        nonlocal life
        life += 1
        return await run.call(pay, "rent") if life == 1 else "what effect?"

    async with spine(redis_url, forgetful) as deployment:
        await deployment.host()
        stage.close("rent")
        run_id = await deployment.submit(forgetful)
        await stage.at("rent")
        await moved(deployment, run_id)
        record = await deployment.end(run_id)
        assert record.state is RunState.CONFIRMATION_UNKNOWN
        assert "would have ended as succeeded" in decode_error(record.error).message


async def test_keys_differ_between_runs_steps_and_children(redis_url: str, stage: Stage) -> None:
    @agent("child", version="1")
    async def child(run: Run, name: str) -> str:
        return await run.call(pay, name)

    @agent("parent", version="1")
    async def parent(run: Run, name: str) -> list[str]:
        return [
            await run.call(pay, name),
            await run.call(pay, name),
            await run.spawn(child, name),
            await run.spawn(child, name),
        ]

    async with spine(redis_url, child, parent) as deployment:
        await deployment.host()
        runs = [await deployment.submit(parent, "rent") for _ in range(2)]
        keys = [key for run_id in runs for key in output(parent, await deployment.end(run_id))]
        assert len(set(keys)) == 8


# Ends


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError


async def _raise(error: BaseException) -> None:
    raise error


async def _raise_when_cancelled(error: Exception) -> None:
    try:
        await asyncio.sleep(5)
    except asyncio.CancelledError:
        raise error from None


async def _group(*work: Coroutine[object, object, object]) -> None:
    async with asyncio.TaskGroup() as group:
        for part in work:
            group.create_task(part)


async def _cancel_own_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(5)


WAYS_TO_FAIL: dict[str, Callable[[Run], Awaitable[object]]] = {
    "raises": lambda run: _raise(KeyError("boo")),
    "step": lambda run: run.call(breaks, "bad"),
    "group": lambda run: _group(_call(run, "breaks")),
    "two": lambda run: _group(_raise_when_cancelled(KeyError("one")), _call(run, "breaks")),
    "exits": lambda run: _raise(SystemExit(3)),
    "interrupts": lambda run: _raise(KeyboardInterrupt()),
    "exits in a branch": lambda run: asyncio.gather(_raise(SystemExit(4))),
    "cancels itself": lambda run: _raise(asyncio.CancelledError()),
    "cancels its task": lambda run: _cancel_own_task(),
    "has no text": lambda run: _raise(Mute()),
    "odd text": lambda run: _raise(ValueError("\udcff")),
    "long text": lambda run: _raise(ValueError("x" * 5000)),
}


@agent("raiser", version="1")
async def raiser(run: Run, way: str) -> None:
    await WAYS_TO_FAIL[way](run)


@pytest.mark.parametrize(
    ("way", "error_class", "message", "step"),
    [
        ("raises", "KeyError", "'boo'", ""),
        ("step", "ValueError", "bad", "0"),
        ("group", "ValueError", "breaks", "b0.0"),
        ("two", "ExceptionGroup", "StepFailed: step b1.0 failed: ValueError: breaks; KeyError: 'one'", ""),
        ("exits", "SystemExit", "3", ""),
        ("interrupts", "KeyboardInterrupt", "", ""),
        ("exits in a branch", "AgentExit", "SystemExit: 4", ""),
        ("cancels itself", "CancelledError", "the agent cancelled itself", ""),
        ("cancels its task", "CancelledError", "the agent cancelled itself", ""),
        ("has no text", "Mute", "(its text cannot be made: RuntimeError)", ""),
        ("odd text", "ValueError", "\\udcff", ""),
        ("long text", "ValueError", "x" * 2000, ""),
    ],
)
async def test_code_that_raises_fails_its_run_and_nothing_else(
    redis_url: str, way: str, error_class: str, message: str, step: str
) -> None:
    async with spine(redis_url, raiser, line) as deployment:
        await deployment.host()
        error = await deployment.failure(raiser, way)
        assert (error.error_class, error.step) == (error_class, step)
        assert error.message.endswith(message)
        assert await deployment.result(line, ["the host lives"]) == ["the host lives"]


def test_a_group_of_one_is_that_one() -> None:
    inner = ExceptionGroup("outer", [ExceptionGroup("inner", [StepFailed("Odd", "text", "3")])])
    error = decode_error(failure(inner).error)
    assert (error.error_class, error.message, error.step) == ("Odd", "text", "3")


async def test_tasks_that_are_left_behind_end_with_their_run(redis_url: str, stage: Stage) -> None:
    left: list[asyncio.Task[object]] = []

    async def reads(run: Run) -> object:
        return await run.call(work, "held")

    async def stays(run: Run) -> object:
        try:
            return await asyncio.Event().wait()
        finally:
            await run.call(work, "after the end")

    @agent("untidy", version="1")
    async def untidy(run: Run, _: None) -> str:
        left.extend(asyncio.create_task(start(run)) for start in (reads, stays))
        await asyncio.wait_for(STAGE.reached["held"].wait(), 5)
        return "gone"

    async with spine(redis_url, untidy) as deployment:
        await deployment.host()
        stage.close("held")
        run_id = await deployment.submit(untidy)
        assert output(untidy, await deployment.end(run_id)) == "gone"
        await asyncio.wait(left)
        assert all(task.cancelled() for task in left)
        assert stage.made == {"held": 1}
        assert await deployment.journal(run_id) == []


@pytest.mark.parametrize("way", ["queued", "between steps", "in an effect", "in a read", "early"])
async def test_a_cancelled_run_ends_at_its_next_step(deployment: Spine, stage: Stage, way: str) -> None:
    stage.close("b")
    chosen = payer if way == "in an effect" else line
    if way == "queued":
        run_id = await deployment.submit(chosen, ["a", "b"])
        assert await deployment.cancel(run_id, "not wanted") == "cancelled"
        await deployment.host()
        record = await deployment.end(run_id)
        assert (record.state, record.reason, stage.made) == (RunState.CANCELLED, "not wanted", {})
        return
    host = await deployment.host()
    run_id = await deployment.submit(chosen, ["a", "b", "c"])
    if way == "early":
        # In the very turn in which the host has claimed it, before its code has run at all.
        await until(lambda: run_id in host.runs, "the claim")
        host.runs[run_id].request_cancel("cancelled")
    else:
        await stage.at("b")
        assert await deployment.cancel(run_id) == "asked"
    if way == "in an effect":
        await until(lambda: host.runs[run_id]._verdict is not None, "the request to cancel")
        await asyncio.sleep(0.03)
        assert (await deployment.record(run_id)).state is RunState.RUNNING
        stage.open("b")
    record = await deployment.end(run_id)
    assert (record.state, record.reason) == (RunState.CANCELLED, "cancelled")
    assert stage.made["c"] == 0
    await until(lambda: not host.runs, "the slot")
    if way == "in an effect":
        assert [entry.status for entry in await deployment.journal(run_id)] == ["open", "ok", "open", "ok"]


@pytest.mark.parametrize("way", ["queued", "running", "in an effect"])
async def test_a_run_past_its_deadline_is_cancelled(deployment: Spine, stage: Stage, way: str) -> None:
    stage.close("a")
    chosen = payer if way == "in an effect" else line
    if way != "queued":
        await deployment.host()
    run_id = await deployment.submit(chosen, ["a", "b"], deadline=0.15)
    if way == "queued":
        await asyncio.sleep(0.16)
        await deployment.host()
    elif way == "in an effect":
        await asyncio.sleep(0.3)
        assert (await deployment.record(run_id)).state is RunState.RUNNING
        stage.open("a")
    record = await deployment.end(run_id)
    assert (record.state, record.reason) == (RunState.CANCELLED, "deadline_exceeded")
    assert stage.made == ({} if way == "queued" else {"a": 1})
    if way == "running":
        assert record.ended_ms is not None
        assert 150 <= record.ended_ms - record.accepted_ms <= 400


async def test_a_run_that_waited_for_too_long_is_shed(deployment: Spine, stage: Stage) -> None:
    run_id = await deployment.submit(line, ["a"], max_wait=0.05)
    patient = await deployment.submit(line, ["b"], max_wait=30)
    await asyncio.sleep(0.06)
    await deployment.host()
    record = await deployment.end(run_id)
    assert (record.state, record.reason) == (RunState.SHED, "max_wait")
    assert output(line, await deployment.end(patient)) == ["b"]


@pytest.mark.parametrize("what", ["steps", "sleep", "returns"])
async def test_code_that_swallows_everything_is_stopped(
    redis_url: str, stage: Stage, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr("actors.execution.STOP_AGAIN_S", 0.05)
    over = asyncio.Event()

    @agent("stubborn", version="1")
    async def stubborn(run: Run, _: None) -> str:
        while not over.is_set():
            try:
                await run.call(work, "held")
            except BaseException:
                if what == "returns":
                    return "as if nothing had happened"
            if what == "sleep":
                try:
                    await asyncio.wait_for(over.wait(), 30)
                except asyncio.CancelledError:
                    continue
            await asyncio.sleep(0)
        return "over"

    async with spine(redis_url, stubborn, line) as deployment:
        host = await deployment.host()
        stage.close("held")
        run_id = await deployment.submit(stubborn)
        await stage.at("held")
        await deployment.cancel(run_id)
        record = await deployment.end(run_id)
        assert (record.state, record.reason, record.output) == (RunState.CANCELLED, "cancelled", b"")
        await until(lambda: not host.runs, "the slot")
        over.set()
        assert stage.made == {"held": 1}
        assert await deployment.result(line, ["the host lives"]) == ["the host lives"]


async def test_the_loops_end_says_nothing_of_its_runs(redis_url: str, stage: Stage) -> None:
    """asyncio.run cancels every task at its end: that is no end of a run."""
    run_id, name = await asyncio.to_thread(asyncio.run, _left_running(redis_url))
    async with spine(redis_url, line, name=name) as deployment:
        record = await deployment.record(run_id)
        assert record.state is RunState.RUNNING
        await deployment.host()
        # Its identity was never given up: its lease runs out.
        assert output(line, await deployment.end(run_id)) == ["a", "b"]


async def _left_running(redis_url: str) -> tuple[str, str]:
    async with spine(redis_url, line) as deployment:
        await deployment.host()
        STAGE.close("b")
        run_id = await deployment.submit(line, ["a", "b"])
        await STAGE.at("b")
        del STAGE.closed["b"]
        await deployment.hosts.pop()._watch.stop()  # nobody closes the rest of it
        return run_id, deployment.settings.name


async def test_a_store_that_is_full_delays_and_fails_nothing(redis_url: str, stage: Stage) -> None:
    """Also what does not go through the group commit: checkpoints, children, handing back."""
    from cluster.errors import StoreFull

    refusals = Counter[str]()

    @agent("saves", version="1")
    async def saves(run: Run, _: None) -> list[str]:
        if run.state is None:
            await run.checkpoint("there")
        return [*await run.spawn(line, ["a"]), await run.call(work, "b")]

    async with spine(redis_url, saves, line) as deployment:
        host = await deployment.host()
        for name in ("compact", "submit_child", "append", "finish", "park", "release"):
            taken = getattr(host.store, name)

            async def refuse_once(*args: object, _name: str = name, _taken: object = taken, **kwargs: object) -> object:
                refusals[_name] += 1
                if refusals[_name] == 1:
                    raise StoreFull("full")
                return await _taken(*args, **kwargs)  # type: ignore[operator]

            setattr(host.store, name, refuse_once)
        assert await deployment.result(saves) == ["a", "b"]
        assert all(refusals[name] > 1 for name in ("compact", "submit_child", "append", "finish", "park"))


async def test_a_journal_that_lost_entries_is_read_anew(deployment: Spine, stage: Stage) -> None:
    host = await deployment.host()
    stage.close("c")
    run_id = await deployment.submit(line, ["a", "b", "c", "d"])
    await stage.at("c")
    key = host.store.keys.journal(run_id)
    await host.store.command(key, "RPOP", key)
    stage.open("c")
    record = await deployment.end(run_id)
    assert output(line, record) == ["a", "b", "c", "d"]
    assert record.migrations == 1
    assert stage.made == {"a": 1, "b": 2, "c": 2, "d": 1}


NEWER = b"\x9a\x63\xa4call\xa10\xa4work\xc4\x00\xa2ok\xc4\x00\x01\x00\x00"


@pytest.mark.parametrize("raw", [b"\xc1", b"\x91\x01", NEWER])
async def test_a_journal_that_cannot_be_read_fails_the_run(deployment: Spine, stage: Stage, raw: bytes) -> None:
    host = await deployment.host()
    stage.close("b")
    run_id = await deployment.submit(line, ["a", "b"])
    await stage.at("b")
    identity = await deployment.vanish(host)
    key = deployment.store.keys.journal(run_id)
    await deployment.store.command(key, "RPUSH", key, raw)
    await deployment.reap(identity)
    await deployment.host()
    record = await deployment.end(run_id)
    assert record.state is RunState.FAILED
    error = decode_error(record.error)
    assert error.error_class == "ValueError"
    assert "not a journal entry" in error.message or "update it" in error.message


def test_a_run_is_unloaded_when_all_that_it_does_is_wait() -> None:
    timer, child = Wait(None, 5000), Wait("c1", None)

    def parked(*waits: Wait, active: int = 0) -> Parking | None:
        return parking(list(waits), active_steps=active, now_ms=1000, worth_ms=1000)

    assert parked(timer) == Parking("timer", 5000, ())
    assert parked(timer, child, Wait("c2", None)) == Parking("child", 5000, ("c1", "c2"))
    assert parked(child) == Parking("child", None, ("c1",))
    assert parked() is None
    assert parked(timer, active=1) is None
    assert parked(timer, Wait(None, 2000)) is None
    assert parked(timer, Wait(None, 2001)) == Parking("timer", 2001, ())


async def test_an_attempt_that_fails_between_two_hosts_keeps_its_key(redis_url: str, stage: Stage) -> None:
    @tool(risk=Risk.WRITE, idempotent=True, retry=RetryPolicy(initial_interval=0.001, maximum_attempts=3))
    async def flaky(call: ToolCall) -> str:
        name = f"try {stage.made.total()}"
        await stage.enter(call, name)
        if stage.made.total() < 3:
            raise NotApplied("busy")
        return call.idempotency_key

    @agent("flaky", version="1")
    async def flaky_agent(run: Run, _: None) -> str:
        return await run.call(flaky)

    async with spine(redis_url, flaky_agent) as deployment:
        await deployment.host()
        stage.close("try 1")
        run_id = await deployment.submit(flaky_agent)
        await stage.at("try 1")
        await moved(deployment, run_id)
        key = output(flaky_agent, await deployment.end(run_id))
        assert set().union(*stage.keys.values()) == {key}
        assert partition_of(run_id) in deployment.store.partitions
