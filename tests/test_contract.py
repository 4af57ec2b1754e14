"""What users write: declarations, values at every boundary, errors that say what is known."""

import asyncio
import datetime as dt
import math
import re
import threading
from collections import Counter
from decimal import Decimal
from enum import Enum
from types import ModuleType
from uuid import UUID

import pytest
from hosting import output, spine
from pydantic import BaseModel, ConfigDict, Field

from actors.attempts import classify
from actors.core.outcome import GiveUp, TryAgain, Unknown, after_crash, after_failure
from actors.job import ValueClass
from actors.registry import app_of, load_app
from actors.schema import Signature, Value
from admission.exchange import RANKS
from admission.retry import FailureClass
from cluster.lifecycle import RunState
from penstock import (
    Ambiguous,
    DefinitionError,
    InvalidValue,
    NotApplied,
    Rejected,
    RetryPolicy,
    Risk,
    Run,
    StepFailed,
    ToolCall,
    agent,
    tool,
)

AT_ONCE = RetryPolicy(initial_interval=0.001, maximum_interval=0.001, maximum_attempts=4)
ONCE = RetryPolicy(maximum_attempts=1)


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Line(BaseModel):
    name: str
    count: int = Field(ge=1)
    price: Decimal = Decimal("1.50")


class Order(BaseModel):
    id: UUID
    at: dt.datetime
    colour: Colour
    lines: list[Line]
    tags: frozenset[str] = frozenset()
    note: str | None = None


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    at: dt.datetime
    amounts: tuple[int, ...]


ORDER = {
    "id": "6c7e2c5e-62a1-4f4f-9a3b-5d1b8d4b7b11",
    "at": "2026-01-02T03:04:05Z",
    "colour": "red",
    "lines": [{"name": "nut", "count": 3}],
    "tags": ["b", "a"],
}


# Declarations


@tool(name="fetch", risk=Risk.WRITE, idempotent=True, timeout=2)
async def get_thing(call: ToolCall, name: str, count: int = 3, *, colour: Colour = Colour.RED) -> str:
    """Gets it."""
    return f"{name} {count} {colour.value}"


@agent("reader", version="7")
async def reads(run: Run, order: Order) -> Line:
    """Reads an order."""
    assert isinstance(order, Order)
    return order.lines[0]


def test_a_declaration_keeps_what_the_function_says() -> None:
    assert (get_thing.name, get_thing.__doc__, get_thing.is_async) == ("fetch", "Gets it.", True)
    assert get_thing.options.risk is Risk.WRITE
    assert repr(get_thing) == "<tool 'fetch' write>"
    assert (reads.name, reads.version) == ("reader", "7")
    assert repr(reads) == "<agent 'reader' version '7'>"


async def test_a_direct_call_is_refused_with_the_fix() -> None:
    with pytest.raises(DefinitionError, match=re.escape("await run.call(get_thing, ...)")):
        get_thing(None, "x")
    with pytest.raises(DefinitionError, match=re.escape("await run.spawn(reads, input)")):
        reads(None, None)
    assert await get_thing.function(None, "x") == "x 3 red"


def test_declarations_that_cannot_work_are_refused() -> None:
    with pytest.raises(DefinitionError, match="timeout is 0"):
        tool(timeout=0)
    with pytest.raises(DefinitionError, match="resources \\['gpus'\\]"):
        tool(resources={"gpus": 1})
    with pytest.raises(DefinitionError, match="importable: define it at module level"):

        @tool(resources={"num_cpus": 1})
        def local(call: ToolCall) -> None: ...

    for name in ("", "a b", "a@1", "a:b", "x" * 129, "a\n"):
        with pytest.raises(DefinitionError, match="1 to 128 printable"):
            agent(name, version="1")
        with pytest.raises(DefinitionError, match="1 to 128 printable"):
            agent("fine", version=name)
    with pytest.raises(DefinitionError, match="must be a coroutine function"):

        @agent("plain", version="1")  # type: ignore[arg-type]
        def plain(run: Run, text: str) -> str:
            return text

    with pytest.raises(DefinitionError, match="the run and one input"):

        @agent("two", version="1")  # type: ignore[arg-type]
        async def two(run: Run, one: str, other: str) -> None: ...

    with pytest.raises(DefinitionError, match="the run and one input"):

        @agent("named", version="1")  # type: ignore[arg-type]
        async def named(run: Run, *, text: str) -> None: ...

    with pytest.raises(DefinitionError, match=r"\*rest cannot be recorded"):

        @tool()
        async def rest(call: ToolCall, *rest: str) -> None: ...

    with pytest.raises(DefinitionError, match="first parameter must be the call"):
        Signature(lambda: None, "tool 'none'")
    with pytest.raises(DefinitionError, match="cannot be validated"):

        @tool()
        async def thread(call: ToolCall, held: threading.Thread) -> None: ...


def test_an_app_is_the_agents_of_a_module() -> None:
    module = ModuleType("orders")
    module.reads = module.again = reads  # type: ignore[attr-defined]
    app = app_of(module)
    assert app.agents == {"reader": reads}
    assert '"version": "7"' in app.catalog()["reader"]
    assert "Reads an order." in app.catalog()["reader"]

    @agent("reader", version="8")
    async def other(run: Run, text: str) -> None: ...

    module.other = other  # type: ignore[attr-defined]
    with pytest.raises(DefinitionError, match="two agents named 'reader'"):
        app_of(module)
    with pytest.raises(DefinitionError, match="has no agents"):
        app_of(ModuleType("empty"))
    with pytest.raises(DefinitionError, match="cannot be imported"):
        load_app("no_such_app_anywhere")
    assert "echo" in load_app("spine_app").agents


# Values


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (str, "a"),
        (int, 2**60),
        (float, math.inf),
        (bytes, b"\xff\x00"),
        (bool, True),
        (None, None),
        (dt.date, dt.date(2026, 1, 2)),
        (dt.timedelta, dt.timedelta(seconds=1.5)),
        (Decimal, Decimal("0.10")),
        (Colour, Colour.BLUE),
        (tuple[int, str], (1, "a")),
        (frozenset[str], frozenset({"a", "b"})),
        (dict[str, list[int]], {"a": [1]}),
        (str | None, None),
        (Line, Line(name="nut", count=1)),
        (list[Line], [Line(name="nut", count=1)]),
    ],
)
def test_what_is_recorded_is_read_back_as_it_was(annotation: object, value: object) -> None:
    boundary = Value(annotation, "here")
    assert boundary.load(boundary.dump(boundary.check(value))) == value


def test_not_a_number_is_read_back_too() -> None:
    boundary = Value(float, "here")
    assert math.isnan(boundary.load(boundary.dump(math.nan)))


def test_the_same_arguments_have_the_same_digest_however_they_are_given() -> None:
    signature = get_thing.signature
    first = signature.bind(("x",), {})
    assert first == signature.bind(("x", 3), {"colour": Colour.RED})
    assert first == signature.bind((), {"count": 3, "name": "x"})
    assert first[1] != signature.bind(("x", 4), {})[1]


def test_the_digest_does_not_depend_on_the_order_in_which_a_set_is_kept() -> None:
    async def takes(call: ToolCall, tags: set[str], nested: dict[str, frozenset[int]]) -> None: ...

    signature = Signature(takes, "tool 'takes'")
    names = [f"name-{number}" for number in range(50)]
    # Sets of equal items that were filled in another order, and grew on the way, are walked in another order.
    one, other = set(names), {*(f"other-{n}" for n in range(500)), *names}
    other -= {f"other-{n}" for n in range(500)}
    assert one == other
    assert list(one) != list(other)
    nested = {"a": frozenset({8, 0}), "b": frozenset({0, 8})}
    assert signature.bind((one, nested), {})[1] == signature.bind((other, nested), {})[1]


def test_every_misfit_of_an_argument_is_named() -> None:
    with pytest.raises(InvalidValue, match=r"tool 'fetch', argument 'count': value: Input should be a valid integer"):
        get_thing.signature.bind(("x", "many"), {})
    with pytest.raises(InvalidValue, match="missing a required argument: 'name'"):
        get_thing.signature.bind((), {})
    with pytest.raises(InvalidValue, match="unexpected keyword argument 'size'"):
        get_thing.signature.bind(("x",), {"size": 1})
    with pytest.raises(InvalidValue, match=r"lines\.0\.count: .*; lines\.1\.name: "):
        reads.input.check({**ORDER, "lines": [{"name": "a", "count": 0}, {"count": 1}]})


async def test_typed_inputs_and_outputs_cross_every_boundary(redis_url: str) -> None:
    @tool()
    async def shorten(call: ToolCall, order: Order, at_most: int = 1, *, colour: Colour = Colour.BLUE) -> Order:
        assert isinstance(order, Order)
        return order.model_copy(update={"lines": order.lines[:at_most], "colour": colour})

    @tool()
    async def as_plain(call: ToolCall, order: Order) -> Order:
        return order.model_dump()  # type: ignore[return-value]

    @agent("typed", version="1")
    async def typed(run: Run, order: Order) -> Order:
        short = await run.call(shorten, order, 1, colour=Colour.RED)
        assert isinstance(short, Order)
        same = await run.call(as_plain, order=short)
        assert isinstance(same, Order)
        return await run.call(shorten, same)

    @agent("strict", version="1")
    async def strict(run: Run, given: Strict) -> dict[str, object]:
        return {"year": given.at.year, "sum": sum(given.amounts)}

    async with spine(redis_url, typed, strict) as deployment:
        await deployment.host()
        found = await deployment.result(typed, ORDER)
        assert isinstance(found, Order)
        assert (found.colour, found.tags, found.at.year) == (Colour.BLUE, frozenset({"a", "b"}), 2026)
        # Strict models take from JSON what JSON can say: a text for a moment, a list for a tuple.
        said = await deployment.result(strict, {"at": "2026-01-02T03:04:05Z", "amounts": [1, 2]})
        assert said == {"year": 2026, "sum": 3}


async def test_values_that_do_not_fit_fail_the_run_and_name_the_boundary(redis_url: str) -> None:
    @tool()
    async def liar(call: ToolCall, text: str) -> int:
        return text  # type: ignore[return-value]

    @tool()
    async def unwritable(call: ToolCall) -> object:
        return threading.Lock()

    @agent("fussy", version="1")
    async def fussy(run: Run, what: str) -> int:
        match what:
            case "argument":
                await run.call(liar, 5)  # type: ignore[arg-type]
            case "result":
                await run.call(liar, "five")
            case "unwritable":
                await run.call(unwritable)
            case "caught":
                with pytest.raises(StepFailed, match="InvalidValue"):
                    await run.call(liar, "five")
                return 1
        return "no number"  # type: ignore[return-value]

    async with spine(redis_url, fussy) as deployment:
        await deployment.host()
        said = {
            what: await deployment.failure(fussy, what) for what in (7, "argument", "result", "unwritable", "output")
        }
        assert {error.error_class for error in said.values()} == {"InvalidValue"}
        assert said[7].message == "agent 'fussy', argument 'what': value: Input should be a valid string"
        assert said["argument"].message == "tool 'liar', argument 'text': value: Input should be a valid string"
        assert said["result"].message.startswith("tool 'liar', result: value: Input should be a valid integer")
        assert said["result"].step == "0"
        assert said["unwritable"].message.startswith("tool 'unwritable', result: PydanticSerializationError")
        assert said["output"].message.startswith("agent 'fussy', result: value: Input should be a valid integer")
        assert await deployment.result(fussy, "caught") == 1


# Where tools run, and for how long


async def test_sync_tools_run_in_threads_and_do_not_hold_up_the_loop(redis_url: str) -> None:
    release, here = threading.Event(), threading.get_ident()

    @tool(timeout=5)
    def waits(call: ToolCall, name: str) -> tuple[str, bool, bool]:
        return name, release.wait(5), threading.get_ident() == here

    @tool()
    async def opens(call: ToolCall) -> str:
        release.set()
        return "open"

    @tool()
    def hands_on(call: ToolCall) -> str:
        async def later() -> str:
            return "later"

        return later()  # type: ignore[return-value]

    @agent("threads", version="1")
    async def threads(run: Run, _: None) -> list[object]:
        blocked = [run.call(waits, name) for name in "abc"]
        return [*await asyncio.gather(*blocked, run.call(opens)), await run.call(hands_on)]

    async with spine(redis_url, threads) as deployment:
        await deployment.host()
        found = await deployment.result(threads)
        assert found == [["a", True, False], ["b", True, False], ["c", True, False], "open", "later"]


async def test_a_timeout_bounds_every_attempt(redis_url: str) -> None:
    made: Counter[str] = Counter()

    @tool(timeout=0.05, retry=RetryPolicy(initial_interval=0.001, maximum_attempts=3))
    async def hangs(call: ToolCall) -> str:
        made["hangs"] += 1
        assert 0 < call.remaining_s() <= call.timeout_s == 0.05
        await asyncio.sleep(30)
        return "never"

    @tool(timeout=0.05, risk=Risk.WRITE)
    async def hangs_in_effect(call: ToolCall) -> str:
        await asyncio.sleep(30)
        return "never"

    @tool(timeout=30, retry=ONCE)
    async def own_timeout(call: ToolCall) -> str:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(30)
        return "never"

    @tool(retry=ONCE)
    async def cancelled_inside(call: ToolCall) -> str:
        task = asyncio.create_task(asyncio.sleep(30))
        task.cancel()
        await task
        return "never"

    @tool(retry=ONCE)
    async def leaves(call: ToolCall) -> str:
        raise SystemExit(3)

    @tool(retry=ONCE)
    def leaves_thread(call: ToolCall) -> str:
        raise SystemExit(4)

    tools = {made.name: made for made in (hangs, hangs_in_effect, own_timeout, cancelled_inside, leaves, leaves_thread)}

    @agent("slow", version="1")
    async def slow(run: Run, name: str) -> str:
        return await run.call(tools[name])

    async with spine(redis_url, slow) as deployment:
        await deployment.host()
        error = await deployment.failure(slow, "hangs")
        assert (error.error_class, error.step) == ("TimeoutError", "0")
        assert error.message == "no answer within 0.05 s (timeout)"
        assert made["hangs"] == 3
        record = await deployment.end(await deployment.submit(slow, "hangs_in_effect"))
        assert record.state is RunState.CONFIRMATION_UNKNOWN
        assert (await deployment.failure(slow, "own_timeout")).error_class == "TimeoutError"
        assert (await deployment.failure(slow, "cancelled_inside")).error_class == "CancelledError"
        assert (await deployment.failure(slow, "leaves")).error_class == "SystemExit"
        assert (await deployment.failure(slow, "leaves_thread")).error_class == "SystemExit"


async def test_a_sync_effect_that_got_no_thread_is_known_not_to_have_happened(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.invocation.SYNC_TOOL_THREADS", 1)
    release, held = threading.Event(), threading.Event()

    @tool(timeout=10)
    def holds(call: ToolCall) -> None:
        held.set()
        release.wait(10)

    @tool(timeout=0.1, risk=Risk.WRITE, retry=ONCE)
    def pays(call: ToolCall) -> None:
        raise AssertionError("it never got a thread")

    @agent("crowded", version="1")
    async def crowded(run: Run, name: str) -> None:
        await run.call({"holds": holds, "pays": pays}[name])

    async with spine(redis_url, crowded) as deployment:
        await deployment.host()
        holding = await deployment.submit(crowded, "holds")
        await asyncio.to_thread(held.wait, 5)
        error = await deployment.failure(crowded, "pays")
        assert error.error_class == "NotApplied"
        assert "none of the 1 threads" in error.message
        release.set()
        assert (await deployment.end(holding)).state is RunState.SUCCEEDED


# Failures and retries


def test_errors_decide_by_their_class() -> None:
    for effect in (False, True):
        assert classify(NotApplied("x"), effect=effect) is FailureClass.NOT_APPLIED
        assert classify(Ambiguous("x"), effect=effect) is FailureClass.AMBIGUOUS
        assert classify(Rejected("x"), effect=effect) is FailureClass.REJECTED
        assert classify(ConnectionRefusedError(), effect=effect) is FailureClass.NOT_APPLIED
        assert classify(TimeoutError(), effect=effect) is FailureClass.AMBIGUOUS
        assert classify(ConnectionResetError(), effect=effect) is FailureClass.AMBIGUOUS
    assert classify(ValueError(), effect=False) is FailureClass.REJECTED
    assert classify(ValueError(), effect=True) is FailureClass.AMBIGUOUS


@pytest.mark.parametrize(
    ("failure", "risk", "idempotent", "before", "decision"),
    [
        ("not_applied", Risk.READ, False, False, TryAgain),
        ("ambiguous", Risk.READ, False, False, TryAgain),
        ("rejected", Risk.READ, False, False, GiveUp),
        ("ambiguous", Risk.DRAFT, False, True, TryAgain),
        ("not_applied", Risk.WRITE, False, False, TryAgain),
        ("ambiguous", Risk.WRITE, False, False, Unknown),
        ("not_applied", Risk.WRITE, False, True, Unknown),
        ("ambiguous", Risk.IRREVERSIBLE, True, False, TryAgain),
        ("rejected", Risk.WRITE, False, False, GiveUp),
        ("rejected", Risk.WRITE, False, True, Unknown),
        ("rejected", Risk.WRITE, True, True, GiveUp),
    ],
)
def test_what_a_failed_attempt_means(
    failure: str, risk: Risk, idempotent: bool, before: bool, decision: type[object]
) -> None:
    facts = {"risk": risk, "idempotent": idempotent, "ambiguous_before": before, "elapsed": 0.0, "draw": 0.5}
    policy = RetryPolicy(maximum_attempts=3)
    said = after_failure(FailureClass(failure), attempt=1, policy=policy, **facts)  # type: ignore[arg-type]
    assert isinstance(said, decision)
    last = after_failure(FailureClass(failure), attempt=3, policy=policy, **facts)  # type: ignore[arg-type]
    assert not isinstance(last, TryAgain)
    unproven = risk.is_effect and failure != "rejected" and (failure == "ambiguous" or before)
    assert isinstance(last, Unknown) is (unproven or decision is Unknown)


def test_a_crash_in_an_effect_repeats_it_only_by_its_key() -> None:
    assert after_crash(idempotent=True) == TryAgain(0.0)
    assert isinstance(after_crash(idempotent=False), Unknown)


async def test_retries_by_error_class_and_one_key_for_all_attempts(redis_url: str) -> None:
    errors = {"not_applied": NotApplied, "ambiguous": Ambiguous, "rejected": Rejected, "value": ValueError}
    seen: dict[str, list[tuple[int, str]]] = {}

    async def attempt(call: ToolCall, name: str) -> str:
        mine = seen.setdefault(f"{call.tool} {name}", [])
        mine.append((call.attempt, call.idempotency_key))
        if len(mine) < 3:
            raise errors[name]("not yet")
        return "at last"

    tools = {
        "read": tool(name="read", retry=AT_ONCE)(attempt),
        "write": tool(name="write", risk=Risk.WRITE, retry=AT_ONCE)(attempt),
        "idempotent": tool(name="idempotent", risk=Risk.WRITE, idempotent=True, retry=AT_ONCE)(attempt),
    }

    @agent("tries", version="1")
    async def tries(run: Run, what: list[str]) -> str:
        return await run.call(tools[what[0]], what[1])

    expected = {
        ("read", "not_applied"): (3, RunState.SUCCEEDED),
        ("read", "ambiguous"): (3, RunState.SUCCEEDED),
        ("read", "rejected"): (1, RunState.FAILED),
        ("read", "value"): (1, RunState.FAILED),
        ("write", "not_applied"): (3, RunState.SUCCEEDED),
        ("write", "ambiguous"): (1, RunState.CONFIRMATION_UNKNOWN),
        ("write", "rejected"): (1, RunState.FAILED),
        ("write", "value"): (1, RunState.CONFIRMATION_UNKNOWN),
        ("idempotent", "ambiguous"): (3, RunState.SUCCEEDED),
        ("idempotent", "value"): (3, RunState.SUCCEEDED),
    }
    async with spine(redis_url, tries) as deployment:
        await deployment.host()
        runs = {what: await deployment.submit(tries, list(what)) for what in expected}
        for what, run_id in runs.items():
            record = await deployment.end(run_id)
            attempts = seen[" ".join(what)]
            assert (len(attempts), record.state) == expected[what], (what, record)
            assert [number for number, _ in attempts] == list(range(1, len(attempts) + 1))
            assert len({key for _, key in attempts}) == 1
            assert (await deployment.journal(run_id))[-1].attempts in (0, len(attempts))
        keys = [attempts[0][1] for attempts in seen.values()]
        assert len(set(keys)) == len(keys)


async def test_the_call_says_whose_it_is(redis_url: str) -> None:
    @tool()
    async def tells(call: ToolCall) -> list[object]:
        return [call.tool, call.run_id, call.step, call.attempt, call.tenant]

    @agent("told", version="3")
    async def told(run: Run, _: None) -> list[object]:
        mine = [run.id, run.agent, run.version, run.batch, run.custom_id, run.tenant, dict(run.metadata), run.state]
        return [await run.call(tells), mine]

    async with spine(redis_url, told) as deployment:
        await deployment.host()
        run_id = await deployment.submit(told, tenant="acme", metadata={"a": "b"})
        call, run = output(told, await deployment.end(run_id))
        assert call == ["tells", run_id, "0", 1, "acme"]
        assert run[:4] == [run_id, "told", "3", "b"]
        assert run[5:] == ["acme", {"a": "b"}, None]


async def test_what_is_too_large_is_refused_with_the_limit(redis_url: str) -> None:
    @tool()
    async def makes(call: ToolCall, size: int) -> str:
        return "x" * size

    @agent("large", version="1")
    async def large(run: Run, what: list[object]) -> str:
        where, size = what
        assert isinstance(size, int)
        match where:
            case "tool":
                return str(len(await run.call(makes, size)))
            case "checkpoint":
                await run.checkpoint("x" * size)
            case "child":
                await run.spawn(large, ["x" * size, 0])
        return "x" * size

    async with spine(redis_url, large, payload_limit_bytes=2000) as deployment:
        await deployment.host()
        for where, step in (("tool", "0"), ("checkpoint", ""), ("child", ""), ("agent", "")):
            error = await deployment.failure(large, [where, 3000])
            assert (error.error_class, error.step) == ("PayloadTooLarge", step), where
            assert "the limit is 2000 (PENSTOCK_PAYLOAD_LIMIT_BYTES)" in error.message
        assert len(await deployment.result(large, ["agent", 1998])) == 1998


def test_gates_know_the_classes_of_jobs_in_their_order() -> None:
    """Two rooms have the list, since the lower one cannot import the upper one's."""
    assert [value.value for value in ValueClass] == list(RANKS)
