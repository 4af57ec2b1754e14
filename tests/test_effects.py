"""The effect protocol on real hosts and a real server: what is caused once, asked after, inherited, refused, undone."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from hosting import Spine, output, spine, until

from actors.core.effect import Next, after_begin, reconcile_pause
from actors.journal import Entry, Kind, decode_error
from actors.receipts import decode_intent_facts, decode_receipt
from cluster.keys import digest, effect_identity
from cluster.lifecycle import RunState
from penstock import (
    Ambiguous,
    Applied,
    IdempotencyConflict,
    NotApplied,
    RetryPolicy,
    Risk,
    Run,
    ToolCall,
    agent,
    tool,
)

ONCE = RetryPolicy(maximum_attempts=1)


class World:
    """What a remote side has applied, by order, and how it behaves."""

    def __init__(self) -> None:
        self.applied: list[str] = []
        self.undone: list[str] = []
        self.calls = 0
        self.asked = 0
        self.lose: list[str] = []
        self.lands = True
        self.gate: asyncio.Event | None = None
        self.inside = asyncio.Event()
        self.hidden = 0
        self.stuck_undo = False

    async def pay(self, order: str) -> str:
        self.calls += 1
        self.inside.set()
        if self.gate is not None:
            await self.gate.wait()
        lost = self.lose.pop(0) if self.lose else ""
        if lost != "before":
            self.applied.append(order)
        if lost:
            raise Ambiguous(f"no answer ({lost})")
        return f"receipt for {order}"


WORLD = World()


@pytest.fixture(autouse=True)
def world() -> World:
    WORLD.__init__()  # type: ignore[misc]
    return WORLD


async def find(call: ToolCall, order: str) -> Applied[str] | None:
    WORLD.asked += 1
    if WORLD.hidden:
        WORLD.hidden -= 1
        raise NotApplied("cannot be asked now")
    return Applied(f"receipt for {order}", {"found": order}) if order in WORLD.applied else None


async def look(call: ToolCall, result: str, order: str) -> dict[str, str]:
    if order not in WORLD.applied or WORLD.hidden:
        raise NotApplied("not to be seen")
    return {"seen": result}


async def undo(call: ToolCall, result: str | None, order: str) -> None:
    if WORLD.stuck_undo:
        raise NotApplied("the till is closed")
    WORLD.undone.append(order)


def imagine(call: ToolCall, order: str) -> str:
    return f"imagined receipt for {order}"


@tool(risk=Risk.WRITE, retry=ONCE)
async def pay(call: ToolCall, order: str) -> str:
    return await WORLD.pay(order)


@tool(risk=Risk.WRITE, reconcile=find, lands_within=0.3, compensate=undo, simulate=imagine, timeout=2)
async def pay_and_ask(call: ToolCall, order: str) -> str:
    return await WORLD.pay(order)


@tool(risk=Risk.WRITE, verify=look, retry=ONCE)
async def pay_and_look(call: ToolCall, order: str) -> str:
    return await WORLD.pay(order)


@tool(risk=Risk.WRITE, idempotent=True, compensate=undo)
async def pay_safely(call: ToolCall, order: str) -> str:
    return await WORLD.pay(order)


@agent("payer", version="1")
async def payer(run: Run, order: str) -> str:
    return await run.call(pay, order)


@agent("asker", version="1")
async def asker(run: Run, order: str) -> str:
    return await run.call(pay_and_ask, order)


@agent("looker", version="1")
async def looker(run: Run, order: str) -> str:
    return await run.call(pay_and_look, order)


@agent("keyed", version="1")
async def keyed(run: Run, order: str) -> str:
    return await run.effect(key="the payment").call(pay, order)


@agent("handler", version="1")
async def handler(run: Run, order: str) -> str:
    try:
        return await run.effect(key="the payment").call(pay, order)
    except IdempotencyConflict as conflict:
        return conflict.message


@agent("failing", version="1")
async def failing(run: Run, orders: list[str]) -> None:
    for order in orders:
        await run.call(pay_and_ask, order)
    await run.call(pay, "mail")
    raise ValueError("no way to go on")


@agent("failing-safely", version="1")
async def failing_safely(run: Run, orders: list[str]) -> None:
    for order in orders:
        await run.call(pay_safely, order)
    raise ValueError("no way to go on")


@agent("checkpointed", version="1")
async def checkpointed(run: Run, order: str) -> None:
    if run.state is None:
        await run.call(pay_and_ask, order)
        await run.checkpoint({"paid": order})
    raise ValueError("after the checkpoint")


@agent("sleeper", version="1")
async def sleeper(run: Run, order: str) -> None:
    await run.call(pay_and_ask, order)
    await run.sleep(3600)


AGENTS = (sleeper, payer, asker, looker, keyed, handler, failing, failing_safely, checkpointed)


@pytest.fixture
async def deployment(redis_url: str) -> AsyncIterator[Spine]:
    async with spine(redis_url, *AGENTS, tools=[pay, pay_and_ask, pay_and_look, pay_safely]) as made:
        yield made


def closing(entries: list[Entry], step: str = "0") -> Entry:
    return next(entry for entry in reversed(entries) if entry.step == step and entry.kind == Kind.CALL)


# The record


async def test_an_effect_leaves_an_intent_a_receipt_and_a_record(deployment: Spine, world: World) -> None:
    await deployment.host()
    run_id = await deployment.submit(asker, "17")
    await deployment.end(run_id)
    intent, call = await deployment.journal(run_id)
    facts = decode_intent_facts(intent.facts)
    assert bytes(facts.arguments) == b'["17"]'
    assert facts.risk == "write"
    record = await deployment.store.effect(facts.identity)
    assert record is not None
    assert (record.state, record.owner, record.key) == ("applied", f"{run_id}:0", facts.key)
    assert decode_receipt(record.receipt).state == decode_receipt(call.facts).state == "applied"


async def test_a_business_key_stands_for_one_effect_of_all_runs(deployment: Spine, world: World) -> None:
    await deployment.host()
    first, second = [await deployment.submit(keyed, "17") for _ in range(2)]
    ends = [await deployment.end(run_id) for run_id in (first, second)]
    assert {output(keyed, end) for end in ends} == {"receipt for 17"}
    assert world.applied == ["17"]
    by = {decode_receipt(closing(await deployment.journal(run_id)).facts).by for run_id in (first, second)}
    assert "tool" in by
    assert by & {f"run {first}", f"run {second}"}


async def test_tenants_have_keys_of_their_own(deployment: Spine, world: World) -> None:
    await deployment.host()
    for tenant in ("north", "south"):
        await deployment.result(keyed, "17", tenant=tenant)
    assert world.applied == ["17", "17"]


async def test_the_same_key_for_something_else_is_refused(deployment: Spine, world: World) -> None:
    await deployment.host()
    first = await deployment.submit(keyed, "17")
    await deployment.end(first)
    message = await deployment.result(handler, "18")
    assert first in message
    assert message.count("arguments") == 1
    assert world.applied == ["17"]
    error = await deployment.failure(keyed, "19")
    assert (error.error_class, error.end) == ("IdempotencyConflict", "conflict")


async def test_who_comes_while_another_is_at_it_waits_for_the_receipt(deployment: Spine, world: World) -> None:
    world.gate = asyncio.Event()
    await deployment.host()
    first = await deployment.submit(keyed, "17")
    await asyncio.wait_for(world.inside.wait(), 5)
    second = await deployment.submit(keyed, "17")
    record = await deployment.waits(second)
    assert first in record.reason
    world.gate.set()
    for run_id in (first, second):
        assert output(keyed, await deployment.end(run_id)) == "receipt for 17"
    assert world.calls == 1


async def test_a_record_of_a_run_that_ended_without_an_intent_is_void(deployment: Spine, world: World) -> None:
    store = deployment.store
    dead = await deployment.submit(payer, "x")
    await deployment.cancel(dead)
    identity = effect_identity("default", "key", "the payment")
    await store.begin_effect(identity, f"{dead}:0", 1, digest("17"), "pay", "k")
    await store.begin_effect(identity, f"{dead}:0", 1, digest("17"), "pay", "k")
    await deployment.host()
    # Its arguments are others than those of the void claim: that is no conflict either.
    assert await deployment.result(keyed, "17") == "receipt for 17"


# Lost answers


async def test_what_was_applied_is_found_out_and_not_done_again(deployment: Spine, world: World) -> None:
    world.lose = ["after"]
    await deployment.host()
    run_id = await deployment.submit(asker, "17")
    assert output(asker, await deployment.end(run_id)) == "receipt for 17"
    assert (world.calls, world.applied) == (1, ["17"])
    receipt = decode_receipt(closing(await deployment.journal(run_id)).facts)
    assert (receipt.by, receipt.evidence) == ("reconcile", {"found": "17"})


async def test_what_was_not_applied_is_done_again_and_not_before_that_is_sure(deployment: Spine, world: World) -> None:
    world.lose = ["before"]
    await deployment.host()
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await deployment.result(asker, "17") == "receipt for 17"
    assert (world.calls, world.applied) == (2, ["17"])
    assert world.asked > 1
    assert loop.time() - began >= 0.3


async def test_a_host_that_died_in_the_call_is_asked_after(deployment: Spine, world: World) -> None:
    world.gate = asyncio.Event()
    host = await deployment.host()
    run_id = await deployment.submit(asker, "17")
    await asyncio.wait_for(world.inside.wait(), 5)
    await deployment.lose(host)
    world.applied.append("17")  # it arrived
    world.gate = None
    await deployment.host()
    assert output(asker, await deployment.end(run_id)) == "receipt for 17"
    assert world.applied == ["17"]


async def test_an_effect_that_was_never_begun_is_caused_though_it_could_not_be_proved_otherwise(
    deployment: Spine, world: World
) -> None:
    world.gate = asyncio.Event()
    host = await deployment.host()
    run_id = await deployment.submit(payer, "17")
    await asyncio.wait_for(world.inside.wait(), 5)
    await deployment.lose(host)
    (intent,) = await deployment.journal(run_id)
    # As if the host had died between the intent and the record.
    key = deployment.store.keys.effect(decode_intent_facts(intent.facts).identity)
    await deployment.store.command(key, "DEL", key)
    world.gate = None
    await deployment.host()
    assert output(payer, await deployment.end(run_id)) == "receipt for 17"


async def test_a_receipt_that_the_journal_does_not_know_of_is_taken(deployment: Spine, world: World) -> None:
    world.gate = asyncio.Event()
    host = await deployment.host()
    run_id = await deployment.submit(payer, "17")
    await asyncio.wait_for(world.inside.wait(), 5)
    (intent,) = await deployment.journal(run_id)
    await deployment.lose(host)
    facts = decode_intent_facts(intent.facts)
    receipt = b'{"state":"applied","result":"receipt for 17","evidence":"seen"}'
    assert await deployment.store.settle_effect(facts.identity, f"{run_id}:0", 1, "applied", receipt)
    world.gate = None
    await deployment.host()
    assert output(payer, await deployment.end(run_id)) == "receipt for 17"
    assert world.calls == 1
    assert decode_receipt(closing(await deployment.journal(run_id)).facts).evidence == "seen"


async def test_a_late_owner_does_not_call(deployment: Spine, world: World) -> None:
    identity = effect_identity("default", "key", "the payment")
    store = deployment.store
    assert (await store.begin_effect(identity, "run:0", 2, "a", "pay", "k")).word == "new"
    assert (await store.begin_effect(identity, "run:0", 1, "a", "pay", "k")).word == "stale"
    assert not await store.settle_effect(identity, "run:0", 1, "not_applied", b"{}")
    assert await store.settle_effect(identity, "run:0", 1, "applied", b"{}")


async def test_what_cannot_be_asked_after_for_long_is_unknown(
    deployment: Spine, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.core.effect.RECONCILE_FOR_S", 0.2)
    world.lose, world.hidden = ["after"], 1000
    await deployment.host()
    run_id = await deployment.submit(asker, "17")
    record = await deployment.end(run_id)
    assert record.state is RunState.CONFIRMATION_UNKNOWN
    assert "reconcile was asked" in decode_error(record.error).message
    (intent,) = await deployment.journal(run_id)
    kept = await deployment.store.effect(decode_intent_facts(intent.facts).identity)
    assert kept is not None
    assert kept.state == "unknown"


# Evidence


async def test_evidence_is_kept_with_the_receipt(deployment: Spine, world: World) -> None:
    await deployment.host()
    run_id = await deployment.submit(looker, "17")
    await deployment.end(run_id)
    receipt = decode_receipt(closing(await deployment.journal(run_id)).facts)
    assert receipt.evidence == {"seen": "receipt for 17"}


async def test_what_the_tool_says_and_nobody_sees_is_unknown(deployment: Spine, world: World) -> None:
    world.hidden = 1000
    await deployment.host()
    record = await deployment.end(await deployment.submit(looker, "17"))
    assert record.state is RunState.CONFIRMATION_UNKNOWN
    assert "verify does not see it" in decode_error(record.error).message


# Undoing


async def test_a_failed_run_undoes_its_effects_in_reverse_order(deployment: Spine, world: World) -> None:
    await deployment.host()
    run_id = await deployment.submit(failing, ["1", "2", "3"])
    record = await deployment.end(run_id)
    assert record.state is RunState.FAILED
    assert world.undone == ["3", "2", "1"]
    error = decode_error(record.error)
    assert error.error_class == "ValueError"
    assert error.undone == ["pay_and_ask at step 2", "pay_and_ask at step 1", "pay_and_ask at step 0"]
    assert error.still_applied == ["pay at step 3 (nothing declared undoes it)"]
    assert "3 undone" in record.reason
    undos = [entry for entry in await deployment.journal(run_id) if entry.step.endswith("!undo")]
    assert [entry.kind for entry in undos] == [Kind.INTENT, Kind.CALL] * 3
    assert all(decode_receipt(entry.facts).state == "applied" for entry in undos if entry.kind == Kind.CALL)


async def test_what_cannot_be_undone_is_named(deployment: Spine, world: World) -> None:
    world.stuck_undo = True
    await deployment.host()
    record = await deployment.end(await deployment.submit(failing, ["1"]))
    assert record.state is RunState.FAILED
    assert "still applied: " in record.reason
    assert "pay_and_ask at step 0" in record.reason
    assert any("the till is closed" in each for each in decode_error(record.error).still_applied)


async def test_effects_before_a_checkpoint_are_undone_too(deployment: Spine, world: World) -> None:
    await deployment.host()
    await deployment.end(await deployment.submit(checkpointed, "17"))
    assert world.undone == ["17"]


async def test_undoing_goes_on_where_a_dead_host_left_it(deployment: Spine, world: World) -> None:
    world.stuck_undo = True
    host = await deployment.host()
    run_id = await deployment.submit(failing_safely, ["1", "2"])

    async def undoing() -> bool:
        return any(entry.kind == Kind.ENDING for entry in await deployment.journal(run_id))

    await until(undoing, "the undoing")
    await deployment.lose(host)
    assert (await deployment.record(run_id)).state is RunState.QUEUED
    world.stuck_undo, calls = False, world.calls
    await deployment.host()
    record = await deployment.end(run_id)
    assert sorted(set(world.undone)) == ["1", "2"]
    assert record.state is RunState.FAILED
    assert world.calls == calls  # the agent's code has not run again


# Decisions


@pytest.mark.parametrize(
    ("word", "intent_open", "idempotent", "can_ask", "has_key", "following"),
    [
        ("new", False, False, False, False, Next.CALL),
        ("new", True, False, False, False, Next.CALL),
        ("mine", False, False, False, False, Next.CALL),
        ("mine", True, True, True, False, Next.CALL_AGAIN),
        ("mine", True, False, True, False, Next.ASK),
        ("mine", True, False, False, False, Next.UNKNOWN),
        ("done", True, False, False, False, Next.INHERIT),
        ("busy", False, True, True, True, Next.WAIT),
        ("unknown", False, True, True, True, Next.WAIT),
        ("conflict", False, True, True, True, Next.REFUSE),
        ("conflict", False, True, True, False, Next.STOP),
        ("stale", True, True, True, True, Next.LEAVE),
    ],
)
def test_what_follows_begin(
    word: str, intent_open: bool, idempotent: bool, can_ask: bool, has_key: bool, following: Next
) -> None:
    assert (
        after_begin(word, intent_open=intent_open, idempotent=idempotent, can_ask=can_ask, has_business_key=has_key)
        is following
    )


def test_asking_never_passes_the_moment_from_which_a_no_counts() -> None:
    now, tries, asked = 0.0, 1, [0.0]
    while (pause_s := reconcile_pause(tries, now, 5.0, 0.0)) is not None:
        now, tries = now + pause_s, tries + 1
        asked.append(now)
    assert 5.0 in asked
    assert 60.0 <= asked[-1] <= 65.0


# A run that waits when it is to end


@pytest.mark.parametrize("way", ["cancelled", "deadline"])
async def test_a_waiting_run_undoes_its_effects_before_it_is_cancelled(
    deployment: Spine, world: World, way: str
) -> None:
    await deployment.host()
    fields = {"deadline": 1.2} if way == "deadline" else {}
    run_id = await deployment.submit(sleeper, "17", **fields)
    await deployment.waits(run_id)
    if way == "cancelled":
        assert await deployment.cancel(run_id) == "asked"
    record = await deployment.end(run_id)
    assert record.state is RunState.CANCELLED
    assert record.reason.startswith("cancelled" if way == "cancelled" else "deadline_exceeded")
    assert world.undone == ["17"]


# Permission


@pytest.fixture
async def strict(redis_url: str) -> AsyncIterator[Spine]:
    """A deployment without a policy: effects need a grant."""
    async with spine(redis_url, payer, policy_yaml="") as made:
        yield made


async def test_without_a_grant_nothing_is_written(strict: Spine, world: World) -> None:
    await strict.host()
    error = await strict.failure(payer, "17")
    assert (error.error_class, error.end) == ("NotPermitted", "not_permitted")
    assert "tool:pay" in error.message
    assert world.calls == 0


async def test_what_permitted_an_effect_is_in_its_intent(strict: Spine, world: World) -> None:
    await strict.host()
    run_id = await strict.submit(payer, "17", grants=("tool:pay",))
    await strict.end(run_id)
    intent, _ = await strict.journal(run_id)
    assert decode_intent_facts(intent.facts).permission["decision"] == "allow"
