"""What people say of effects that nobody could prove, on real hosts: it is believed once, and never acted on twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from hosting import Spine, output, spine, until

from actors.journal import Entry, Kind, Status, decode_error, first_link, link_of, seal
from actors.receipts import decode_intent_facts, decode_receipt, decode_resolution
from actors.registry import App
from cluster import reader
from cluster.lifecycle import RunState
from cluster.records import EffectRecord, RunRecord
from penstock import Ambiguous, Applied, Client, NotApplied, RetryPolicy, Risk, Run, SyncClient, ToolCall, agent, tool
from penstock.errors import (
    AlreadyResolved,
    InvalidResolution,
    LookAgain,
    NoSuchRun,
    NotTheOpenEffect,
    NotUnknown,
)

ONCE = RetryPolicy(maximum_attempts=1)
MISSING = "00-0123456789abcdef01234567"


class Post:
    """The other side: what it has delivered, and whether its answers get lost."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.calls = 0
        self.asked = 0
        self.undone: list[str] = []
        self.lose = 1000
        self.hidden = False
        self.undo_is_lost = False

    def deliver(self, letter: str) -> str:
        self.calls += 1
        if self.lose:
            self.lose -= 1
            raise Ambiguous("no answer from https://ann:hunter2@post.example")
        self.sent.append(letter)
        return f"stamp for {letter}"


POST = Post()


@pytest.fixture(autouse=True)
def post() -> Post:
    POST.__init__()  # type: ignore[misc]
    return POST


async def look_up(call: ToolCall, letter: str) -> Applied[str] | None:
    POST.asked += 1
    if POST.hidden:
        raise NotApplied("closed for today")
    return Applied(f"stamp for {letter}", {"found": letter}) if letter in POST.sent else None


async def take_back(call: ToolCall, result: str | None, letter: str) -> None:
    if POST.undo_is_lost:
        raise Ambiguous("no answer")
    POST.undone.append(letter)


@tool(risk=Risk.WRITE, retry=ONCE, compensate=take_back, owner="the post room", settle_within=60)
async def send(call: ToolCall, letter: str) -> str:
    return POST.deliver(letter)


@tool(risk=Risk.IRREVERSIBLE, retry=ONCE)
async def shred(call: ToolCall, letter: str) -> None:
    POST.deliver(letter)


@tool(risk=Risk.WRITE, retry=ONCE, reconcile=look_up, lands_within=0.1)
async def send_and_ask(call: ToolCall, letter: str) -> str:
    return POST.deliver(letter)


@tool(risk=Risk.WRITE, retry=ONCE, idempotent=True)
async def send_safely(call: ToolCall, letter: str) -> str:
    return POST.deliver(letter)


@tool(risk=Risk.WRITE, retry=ONCE, idempotent=True, timeout=0.2, schedule_to_close=0.2)
async def send_quickly(call: ToolCall, letter: str) -> str:
    await asyncio.sleep(0.001)
    return POST.deliver(letter)


@tool()
async def read(call: ToolCall, letter: str) -> str:
    return letter.upper()


@agent("sender", version="1")
async def sender(run: Run, letter: str) -> str:
    read_as = await run.call(read, letter)
    return f"{await run.call(send, letter)}, {read_as}"


@agent("shredder", version="1")
async def shredder(run: Run, letter: str) -> str:
    await run.call(shred, letter)
    return "gone"


@agent("asker", version="1")
async def asker(run: Run, letter: str) -> str:
    return await run.call(send_and_ask, letter)


@agent("keyed", version="1")
async def keyed(run: Run, letter: str) -> str:
    return await run.effect(key="the letter").call(send, letter)


@agent("safe", version="1")
async def safe(run: Run, letter: str) -> str:
    return await run.call(send_safely, letter)


@agent("quick", version="1")
async def quick(run: Run, letter: str) -> str:
    return await run.call(send_quickly, letter)


@agent("branches", version="1")
async def branches(run: Run, letters: list[str]) -> list[str]:
    async def one(letter: str) -> str:
        await asyncio.sleep(0)
        await run.call(read, letter)
        return await run.call(send, letter)

    return list(await asyncio.gather(*(one(letter) for letter in letters)))


@agent("ask-in-branches", version="1")
async def ask_in_branches(run: Run, letters: list[str]) -> list[str]:
    async def one(letter: str) -> str:
        await asyncio.sleep(0)
        return await run.call(send_and_ask, letter)

    return list(await asyncio.gather(*(one(letter) for letter in letters)))


@agent("mixed", version="1")
async def mixed(run: Run, letter: str) -> list[str]:
    return list(await asyncio.gather(run.call(send, letter), run.call(send_and_ask, letter)))


@agent("failing", version="1")
async def failing(run: Run, letter: str) -> None:
    await run.call(send, letter)
    raise ValueError("no way to go on")


@agent("parent", version="1")
async def parent(run: Run, letter: str) -> str:
    return await run.spawn(sender, letter)


AGENTS = (sender, shredder, asker, keyed, safe, quick, branches, ask_in_branches, mixed, failing, parent)
TOOLS = [send, shred, send_and_ask, send_safely, send_quickly, read]


@pytest.fixture
async def deployment(redis_url: str) -> AsyncIterator[Spine]:
    async with spine(redis_url, *AGENTS, tools=TOOLS) as made:
        await made.host()
        yield made


@pytest.fixture
async def client(deployment: Spine) -> AsyncIterator[Client]:
    async with Client(settings=deployment.settings) as made:
        yield made


async def unknown(deployment: Spine, agent: Any = sender, payload: Any = "a", **fields: Any) -> RunRecord:
    """A run that has become unknown."""
    run_id = await deployment.submit(agent, payload, **fields)
    return await deployment.state(run_id, RunState.CONFIRMATION_UNKNOWN)


async def again(deployment: Spine, record: RunRecord) -> RunRecord:
    """The run once it has left that state and come back to it, or ended."""

    found = record

    async def back() -> bool:
        nonlocal found
        found = await deployment.record(record.id)
        return found.version > record.version + 1 and found.state not in (RunState.QUEUED, RunState.RUNNING)

    await until(back, f"{record.id} back")
    return found


async def effect_of(deployment: Spine, run_id: str, step: str = "1") -> EffectRecord:
    intent = next(e for e in await deployment.journal(run_id) if e.step == step and e.kind == Kind.INTENT)
    found = await deployment.store.effect(decode_intent_facts(intent.facts).identity)
    assert found is not None
    return found


def kinds(entries: list[Entry], step: str = "1") -> list[str]:
    return [entry.kind for entry in entries if entry.step == step]


# Seeing


async def test_an_unknown_effect_is_shown_from_all_sides(deployment: Spine, client: Client, post: Post) -> None:
    record = await unknown(deployment, payload="to https://ann:hunter2@home", tenant="north")
    (view,) = await client.unknown()
    assert (view.run_id, view.step, view.tool, view.agent) == (record.id, "1", "send", "sender")
    assert (view.tenant, view.owner, view.risk, view.batch) == ("north", "the post room", "write", "b")
    assert view.arguments == ["to https://***@home"]
    kept = await effect_of(deployment, record.id)
    assert (view.idempotency_key, view.state_version) == (kept.key, record.version)
    assert view.tried.attempts == 1
    assert view.tried.last_error == "Ambiguous: no answer from https://***@post.example"
    assert view.tried.reconciled == ""
    assert view.intended_ms is not None
    assert view.settle_by_ms is not None
    assert 59_000 < view.settle_by_ms - view.intended_ms <= 60_000
    assert not view.overdue
    assert view.command == f"penstock resolve {record.id} 1"
    (same,) = await client.unknown_of(record.id)
    assert msgspec.structs.replace(same, for_s=view.for_s) == view


async def test_the_longest_unknown_come_first_and_can_be_chosen(deployment: Spine, client: Client) -> None:
    first = await unknown(deployment, tenant="north")
    await asyncio.sleep(0.002)
    second = await unknown(deployment, shredder, tenant="south")
    assert [view.run_id for view in await client.unknown()] == [first.id, second.id]
    assert [view.run_id for view in await client.unknown(tenant="south")] == [second.id]
    assert [view.owner for view in await client.unknown(tool="shred")] == ["operators of south"]
    assert await client.unknown(tool="shred", tenant="north") == []
    assert len(await client.unknown(batch="b")) == 2
    assert await client.unknown(batch="other") == []


async def test_effects_that_were_caused_at_once_are_each_in_doubt(
    deployment: Spine, client: Client, post: Post
) -> None:
    record = await unknown(deployment, branches, ["a", "b"])
    views = await client.unknown_of(record.id)
    assert {view.step for view in views} == {"b0.1", "b1.1"}
    assert [view.arguments for view in views] == [["a"], ["b"]] or [view.arguments for view in views] == [["b"], ["a"]]
    await client.resolve(record.id, "b0.1", applied=True, result="by hand", by="ann")
    half = await again(deployment, record)
    assert half.state is RunState.CONFIRMATION_UNKNOWN
    (left,) = await client.unknown_of(record.id)
    assert left.step == "b1.1"
    with pytest.raises(AlreadyResolved, match="by ann"):
        await client.resolve(record.id, "b0.1", applied=False)
    await client.resolve(record.id, "b1.1", applied=True, result="too")
    assert output(branches, await deployment.end(record.id)) == ["by hand", "too"]
    assert post.calls == 2


async def test_what_reconcile_said_is_told(
    deployment: Spine, client: Client, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.core.effect.RECONCILE_FOR_S", 0.2)
    post.hidden = True
    record = await unknown(deployment, asker)
    (view,) = await client.unknown()
    assert view.tried.last_error == "Ambiguous: no answer from https://***@post.example"
    assert view.tried.reconciled.startswith("asked ")
    assert view.tried.reconciled.endswith("the last answer: NotApplied: closed for today")
    await client.ask_again(record.id, "0", by="ann")
    await again(deployment, record)
    (view,) = await client.unknown()
    assert view.tried.last_error == "Ambiguous: no answer from https://***@post.example"
    assert view.tried.attempts == 1


# Saying


async def test_applied_with_a_result_ends_the_step_with_it(deployment: Spine, client: Client, post: Post) -> None:
    record = await unknown(deployment)
    said = await client.resolve(
        record.id,
        "1",
        applied=True,
        result="stamp 7",
        evidence={"seen": "https://ann:pw@post/7"},
        by="ann",
        why="saw it",
    )
    assert (said.applied, said.by, said.why, said.tool) == (True, "ann", "saw it", "send")
    assert output(sender, await deployment.end(record.id)) == "stamp 7, A"
    assert (post.calls, post.sent) == (1, [])
    entries = await deployment.journal(record.id)
    assert kinds(entries) == [Kind.INTENT, Kind.RESOLUTION, Kind.CALL]
    receipt = decode_receipt(entries[-1].facts)
    assert (receipt.state, receipt.by, receipt.why) == ("applied", "person ann", "saw it")
    assert (receipt.evidence, receipt.attempts) == ({"seen": "https://***@post/7"}, 1)
    kept = await effect_of(deployment, record.id)
    assert kept.state == "applied"
    assert decode_receipt(kept.receipt).known_result == b'"stamp 7"'


async def test_the_chain_of_the_journal_holds(deployment: Spine, client: Client) -> None:
    record = await unknown(deployment)
    await client.resolve(record.id, "1", applied=True, result="stamp")
    await deployment.end(record.id)
    link = first_link(record.id, record.job)
    for raw in await reader.journal(deployment.store, record.id):
        assert seal(link, raw) == raw
        link = link_of(raw)


async def test_applied_without_a_result_is_null_where_the_tool_may_return_that(
    deployment: Spine, client: Client
) -> None:
    record = await unknown(deployment, shredder)
    await client.resolve(record.id, "0", applied=True)
    assert output(shredder, await deployment.end(record.id)) == "gone"


async def test_applied_without_a_result_that_the_agent_needs_fails_the_step(
    deployment: Spine, client: Client, post: Post
) -> None:
    record = await unknown(deployment)
    await client.resolve(record.id, "1", applied=True, by="ann")
    end = await deployment.end(record.id)
    error = decode_error(end.error)
    assert (end.state, error.error_class, error.step, error.ended_by) == (
        RunState.FAILED, "ResultUnknown", "1", "person ann",
    )  # fmt: skip
    # It was applied all the same: it is undone with its run.
    assert post.undone == ["a"]


async def test_a_result_that_does_not_fit_fails_the_step_by_name_and_keeps_the_word(
    deployment: Spine, client: Client
) -> None:
    record = await unknown(deployment)
    await client.resolve(record.id, "1", applied=True, result={"stamp": 7})
    error = decode_error((await deployment.end(record.id)).error)
    assert (error.error_class, error.step) == ("InvalidValue", "1")
    assert "tool 'send', result" in error.message
    assert (await effect_of(deployment, record.id)).state == "undone"


async def test_with_the_app_at_hand_a_result_is_checked_before_it_is_said(deployment: Spine) -> None:
    record = await unknown(deployment)
    app = App("test", {each.name: each for each in AGENTS}, {}, tuple(TOOLS))
    async with Client(settings=deployment.settings, app=app) as client:
        with pytest.raises(InvalidResolution, match="tool 'send', result: value: Input should be a valid string"):
            await client.resolve(record.id, "1", applied=True, result=7)
        assert (await deployment.record(record.id)).version == record.version
        await client.resolve(record.id, "1", applied=True, result="stamp")
    assert output(sender, await deployment.end(record.id)) == "stamp, A"


async def test_what_was_not_applied_is_caused_anew_once(deployment: Spine, client: Client, post: Post) -> None:
    record = await unknown(deployment)
    post.lose = 0
    await client.resolve(record.id, "1", applied=False, by="ann", why="not in the list")
    assert output(sender, await deployment.end(record.id)) == "stamp for a, A"
    assert (post.calls, post.sent) == (2, ["a"])
    entries = await deployment.journal(record.id)
    assert kinds(entries) == [Kind.INTENT, Kind.RESOLUTION, Kind.INTENT, Kind.CALL]
    word = decode_resolution(entries[-3].payload)
    assert (word.applied, word.by, word.why) == (False, "ann", "not in the list")


async def test_a_host_that_dies_while_it_causes_it_anew_does_not_do_so_twice(redis_url: str, post: Post) -> None:
    """The person's word was about the first call. It says nothing of the second one."""
    async with spine(redis_url, *AGENTS, tools=TOOLS) as deployment, Client(settings=deployment.settings) as client:
        host = await deployment.host()
        record = await unknown(deployment)
        inside, gate = asyncio.Event(), asyncio.Event()
        deliver = post.deliver

        async def held(call: ToolCall, letter: str) -> str:
            inside.set()
            post.lose = 0
            deliver(letter)
            await gate.wait()
            return "never said"

        function, send.function = send.function, held
        try:
            await client.resolve(record.id, "1", applied=False)
            await asyncio.wait_for(inside.wait(), 5)
            await deployment.lose(host)
        finally:
            send.function = function
        await deployment.host()
        later = await again(deployment, record)
        assert later.state is RunState.CONFIRMATION_UNKNOWN
        assert post.sent == ["a"]
        # And whoever looked at the first call only is not believed about the second one.
        with pytest.raises(LookAgain, match="about to be caused 2 times"):
            await client.resolve(record.id, "1", applied=False)
        with pytest.raises(LookAgain, match="has changed since then"):
            await client.resolve(record.id, "1", applied=False, version=record.version)
        (view,) = await client.unknown_of(record.id)
        assert view.command.endswith(f"--version {later.version}")
        await client.resolve(record.id, "1", applied=True, result="seen", version=view.state_version)
        assert output(sender, await deployment.end(record.id)) == "seen, A"
        assert post.sent == ["a"]


async def test_to_ask_again_asks_the_other_side(
    deployment: Spine, client: Client, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.core.effect.RECONCILE_FOR_S", 0.2)
    post.hidden = True
    record = await unknown(deployment, asker)
    post.hidden, asked = False, post.asked
    post.sent.append("a")
    said = await client.ask_again(record.id, "0", by="ann", why="they are open again")
    assert said.applied is None
    assert output(asker, await deployment.end(record.id)) == "stamp for a"
    assert (post.calls, post.asked) == (1, asked + 1)
    assert kinds(await deployment.journal(record.id), "0") == [Kind.INTENT, Kind.CALL]


async def test_to_ask_again_where_nobody_can_be_asked_leaves_it_unknown(
    deployment: Spine, client: Client, post: Post
) -> None:
    record = await unknown(deployment)
    before = (await client.unknown())[0].tried
    await client.ask_again(record.id, "1")
    assert (await again(deployment, record)).state is RunState.CONFIRMATION_UNKNOWN
    assert post.calls == 1
    # What was known of it is not forgotten by that.
    assert (await client.unknown())[0].tried == before


async def test_to_ask_again_where_the_key_is_honoured_sends_again(
    deployment: Spine, client: Client, post: Post
) -> None:
    record = await unknown(deployment, safe)
    post.lose = 0
    await client.ask_again(record.id, "0")
    assert output(safe, await deployment.end(record.id)) == "stamp for a"


async def test_how_long_people_take_is_not_the_steps_own_time(deployment: Spine, client: Client, post: Post) -> None:
    first, second = await unknown(deployment, quick, "a"), await unknown(deployment, quick, "b")
    await asyncio.sleep(0.3)
    post.lose = 0
    await client.ask_again(first.id, "0")
    await client.resolve(second.id, "0", applied=False)
    assert output(quick, await deployment.end(first.id)) == "stamp for a"
    assert output(quick, await deployment.end(second.id)) == "stamp for b"


async def test_of_two_people_at_once_one_is_believed(deployment: Spine, client: Client, post: Post) -> None:
    record = await unknown(deployment)
    post.lose = 0
    said = await asyncio.gather(
        client.resolve(record.id, "1", applied=True, result="hers", by="ann"),
        client.resolve(record.id, "1", applied=False, by="bob"),
        return_exceptions=True,
    )
    (refused,) = [each for each in said if isinstance(each, BaseException)]
    assert isinstance(refused, AlreadyResolved)
    assert refused.by in ("ann", "bob")
    assert refused.by in str(refused)
    end = output(sender, await deployment.end(record.id))
    assert (end, post.sent) == (("hers, A", []) if refused.by == "ann" else ("stamp for a, A", ["a"]))
    words = [e for e in await deployment.journal(record.id) if e.kind == Kind.RESOLUTION]
    assert [decode_resolution(word.payload).by for word in words] == [refused.by]


async def test_others_with_the_same_business_key_get_its_receipt(deployment: Spine, client: Client, post: Post) -> None:
    record = await unknown(deployment, keyed)
    other = await deployment.submit(keyed, "a")
    assert record.id in (await deployment.waits(other)).reason
    await client.resolve(record.id, "0", applied=True, result="stamp 7", by="ann")
    for run_id in (record.id, other):
        assert output(keyed, await deployment.end(run_id)) == "stamp 7"
    assert post.calls == 1


# Runs that end meanwhile


async def test_a_run_that_was_cancelled_meanwhile_ends_so_and_its_effect_is_undone(
    deployment: Spine, client: Client, post: Post
) -> None:
    record = await unknown(deployment)
    assert await client.cancel(record.id) == 1
    assert (await client.unknown())[0].cancel_requested == "cancelled by request"
    await client.resolve(record.id, "1", applied=True, result="stamp", by="ann")
    end = await deployment.end(record.id)
    assert (end.state, post.undone, post.calls) == (RunState.CANCELLED, ["a"], 1)
    assert (await effect_of(deployment, record.id)).state == "undone"
    assert kinds(await deployment.journal(record.id)) == [Kind.INTENT, Kind.RESOLUTION, Kind.CALL]


async def test_a_run_that_was_cancelled_meanwhile_causes_nothing_anew(
    deployment: Spine, client: Client, post: Post
) -> None:
    record = await unknown(deployment)
    post.lose = 0
    await client.cancel(record.id)
    await client.resolve(record.id, "1", applied=False)
    end = await deployment.end(record.id)
    assert (end.state, post.undone, post.calls) == (RunState.CANCELLED, [], 1)
    assert (await effect_of(deployment, record.id)).state == "not_applied"


@pytest.mark.parametrize("applied", [True, False])
async def test_a_run_whose_deadline_passed_meanwhile_is_cancelled_once_its_effect_is_settled(
    deployment: Spine, client: Client, post: Post, applied: bool
) -> None:
    record = await unknown(deployment, deadline=0.5)
    await asyncio.sleep(max(0.0, (record.deadline_ms or 0) - await deployment.store.server_ms()) / 1000 + 0.01)
    post.lose = 0
    await client.resolve(record.id, "1", applied=applied)
    end = await deployment.end(record.id)
    assert (end.state, end.reason.partition(";")[0]) == (RunState.CANCELLED, "deadline_exceeded")
    assert post.calls == 1
    assert post.undone == (["a"] if applied else [])
    assert (await effect_of(deployment, record.id)).state == ("undone" if applied else "not_applied")


async def test_branches_whose_deadline_passed_meanwhile_are_all_settled(
    deployment: Spine, client: Client, post: Post
) -> None:
    record = await unknown(deployment, branches, ["a", "b"], deadline=0.5)
    await asyncio.sleep(max(0.0, (record.deadline_ms or 0) - await deployment.store.server_ms()) / 1000 + 0.01)
    await client.resolve(record.id, "b0.1", applied=True, result="one")
    await again(deployment, record)
    await client.resolve(record.id, "b1.1", applied=True, result="two")
    end = await deployment.end(record.id)
    assert (end.state, sorted(post.undone), post.calls) == (RunState.CANCELLED, ["a", "b"], 2)


async def test_to_ask_again_after_the_deadline_asks_all_the_same(
    deployment: Spine, client: Client, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replaying takes several turns of the loop: the code must come to its open effects before it is stopped."""
    monkeypatch.setattr("actors.core.effect.RECONCILE_FOR_S", 0.2)
    post.hidden = True
    record = await unknown(deployment, ask_in_branches, ["a"], deadline=0.8)
    await asyncio.sleep(max(0.0, (record.deadline_ms or 0) - await deployment.store.server_ms()) / 1000 + 0.01)
    post.hidden = False
    post.sent.append("a")
    await client.ask_again(record.id, "b0.0")
    end = await again(deployment, record)
    assert (end.state, end.reason.partition(";")[0]) == (RunState.CANCELLED, "deadline_exceeded")
    assert (await effect_of(deployment, record.id, "b0.0")).state == "applied"


async def test_a_word_counts_in_a_cancelled_run_that_has_something_else_to_ask(
    deployment: Spine, client: Client, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.core.effect.RECONCILE_FOR_S", 0.2)
    post.hidden = True
    record = await unknown(deployment, mixed)
    assert len(await client.unknown()) == 2
    await client.cancel(record.id)
    post.hidden = False
    post.sent.append("a")
    await client.resolve(record.id, "0", applied=True, result="stamp")
    end = await again(deployment, record)
    assert (end.state, post.undone) == (RunState.CANCELLED, ["a"])
    states = [(await effect_of(deployment, record.id, step)).state for step in "01"]
    assert states == ["undone", "applied"], "only the first one says how it is undone"


async def test_a_word_about_a_step_that_the_code_does_not_ask_for_any_more_is_kept(redis_url: str, post: Post) -> None:
    changed = agent("sender", version="1")(_does_nothing)
    async with spine(redis_url, *AGENTS, tools=TOOLS) as deployment, Client(settings=deployment.settings) as client:
        host = await deployment.host()
        record = await unknown(deployment)
        await host.abandon()
        await deployment.host(changed)
        await client.resolve(record.id, "1", applied=True, result="stamp", by="ann")
        end = await deployment.end(record.id)
        assert (end.state, end.reason.partition(";")[0]) == (RunState.FAILED, "replay_divergence")
        assert (await effect_of(deployment, record.id)).state == "undone"
        assert post.undone == ["a"]


async def _does_nothing(run: Run, letter: str) -> str:
    return "nothing"


async def test_an_undoing_that_nobody_could_prove_is_settled_by_people(
    deployment: Spine, client: Client, post: Post
) -> None:
    post.lose, post.undo_is_lost = 0, True
    record = await unknown(deployment, failing)
    (view,) = await client.unknown()
    assert (view.step, view.tool, view.undoes) == ("0!undo", "send.compensate", "0")
    assert view.command == f"penstock resolve {record.id} '0!undo'"
    await client.resolve(record.id, "0!undo", applied=True, by="ann")
    end = await deployment.end(record.id)
    assert end.state is RunState.FAILED
    assert decode_error(end.error).undone == ["send at step 0"]
    assert decode_error(end.error).error_class == "ValueError"


async def test_an_undoing_that_did_not_happen_is_done_again(deployment: Spine, client: Client, post: Post) -> None:
    post.lose, post.undo_is_lost = 0, True
    record = await unknown(deployment, failing)
    post.undo_is_lost = False
    await client.resolve(record.id, "0!undo", applied=False)
    end = await deployment.end(record.id)
    assert (end.state, post.undone) == (RunState.FAILED, ["a"])


async def test_a_parent_waits_for_the_word_about_its_child(deployment: Spine, client: Client) -> None:
    run_id = await deployment.submit(parent, "a")
    await deployment.waits(run_id)

    async def there() -> bool:
        return bool(await client.unknown())

    await until(there, "the unknown effect")
    (view,) = await client.unknown()
    assert (view.agent, view.batch) == ("sender", "")
    await client.resolve(view.run_id, "1", applied=True, result="stamp")
    assert output(parent, await deployment.end(run_id)) == "stamp, A"


# Refused


async def test_what_cannot_be_resolved_says_why(deployment: Spine, client: Client) -> None:
    with pytest.raises(NoSuchRun):
        await client.resolve(MISSING, "1", applied=True)
    with pytest.raises(NoSuchRun):
        await client.ask_again("nonsense", "1")
    record = await unknown(deployment)
    with pytest.raises(NotTheOpenEffect, match=r"'0' .* is not in doubt; what is: step 1 \(send\): penstock resolve"):
        await client.resolve(record.id, "0", applied=True)
    await client.resolve(record.id, "1", applied=True, result="stamp", by="ann")
    end = await deployment.end(record.id)
    for act in (
        client.resolve(record.id, "1", applied=True, by="ann"),
        client.resolve(record.id, "1", applied=False),
        client.ask_again(record.id, "1"),
    ):
        with pytest.raises(
            AlreadyResolved, match=r"resolved by ann at .*: applied. Nothing was changed; the run is suc"
        ):
            await act
    with pytest.raises(NotUnknown, match="is succeeded, and not confirmation_unknown"):
        await client.resolve(record.id, "0", applied=True)
    with pytest.raises(NotUnknown):
        await client.unknown_of(record.id)
    assert (await deployment.record(record.id)).version == end.version


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"applied": False, "result": 1}, "not applied has no result"),
        ({"applied": True, "by": " "}, "say who you are"),
        ({"applied": True, "by": "a\nb"}, "say who you are"),
        ({"applied": True, "evidence": object()}, "cannot be written as JSON"),
        ({"applied": True, "evidence": "x" * 300_000}, "PENSTOCK_PAYLOAD_LIMIT_BYTES"),
    ],
)
async def test_what_cannot_be_recorded_changes_nothing(
    deployment: Spine, client: Client, said: dict[str, Any], why: str
) -> None:
    record = await unknown(deployment)
    with pytest.raises(InvalidResolution, match=why):
        await client.resolve(record.id, "1", **said)
    assert (await deployment.record(record.id)).version == record.version


async def test_a_journal_that_has_lost_the_intent_can_only_be_asked_after(deployment: Spine, client: Client) -> None:
    record = await unknown(deployment)
    key = deployment.store.keys.journal(record.id)
    await deployment.store.command(key, "LTRIM", key, 0, 0)
    (view,) = await client.unknown()
    assert (view.step, view.arguments, view.intended_ms) == ("1", None, None)
    with pytest.raises(InvalidResolution, match=r"no intent at step '1'.*--ask-again"):
        await client.resolve(record.id, "1", applied=True)
    await client.ask_again(record.id, "1")
    assert (await again(deployment, record)).version > record.version


async def test_a_batch_with_resolved_runs_comes_to_its_end(deployment: Spine, client: Client) -> None:
    await deployment.store.note_batch("b", 1)
    record = await unknown(deployment)
    assert (await client.status("b")).settled
    await client.resolve(record.id, "1", applied=True, result="stamp")
    async with asyncio.timeout(10), contextlib.aclosing(client.watch("b")) as statuses:
        last = [status async for status in statuses][-1]
    assert (last.terminal, last.by_state) == (True, {"succeeded": 1})


async def test_synchronous_code_can_do_the_same(deployment: Spine) -> None:
    records = [await unknown(deployment), await unknown(deployment, safe)]

    def people() -> None:
        with SyncClient(settings=deployment.settings) as client:
            assert {view.run_id for view in client.unknown()} == {record.id for record in records}
            assert client.unknown_of(records[0].id)[0].step == "1"
            client.resolve(records[0].id, "1", applied=True, result="stamp")
            POST.lose = 0
            client.ask_again(records[1].id, "0")

    await asyncio.to_thread(people)
    for record in records:
        assert (await deployment.end(record.id)).state is RunState.SUCCEEDED


async def test_entries_are_as_the_journal_wants_them(deployment: Spine, client: Client) -> None:
    record = await unknown(deployment)
    await client.resolve(record.id, "1", applied=True, result=None, why="see https://ann:pw@x")
    entries = await deployment.journal(record.id)
    intent = next(entry for entry in entries if entry.kind == Kind.INTENT)
    word = next(entry for entry in entries if entry.kind == Kind.RESOLUTION)
    assert (word.step, word.name, word.digest, word.status) == (intent.step, intent.name, intent.digest, Status.OK)
    assert (word.attempts, word.facts) == (1, intent.facts)
    said = decode_resolution(word.payload)
    assert said.result is not None
    assert (bytes(said.result), said.why) == (b"null", "see https://***@x")  # type: ignore[arg-type]
