"""Approvals on real hosts with a real store: a run waits unloaded, goes on at once, and nothing else gets through.

Whoever can write to the store and has no key is played by hands that change records and journals.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest
from approvers import (
    FORGED,
    KEYS,
    OTHER,
    SECRET,
    WORLD,
    asked,
    client_of,
    guarded,
    keys_setting,
    payer,
    read,
    said,
    send,
    sender,
    wire,
    write,
)
from hosting import Spine, output, spine, until

from actors.approvals import Granted, Proof, action_of
from actors.contract import agent
from actors.errors import ApprovalDenied, NotPermitted
from actors.job import JobRecord, decode_job
from actors.journal import Kind, Status, decode_entry, decode_error, encode_entry
from actors.receipts import IntentFacts, decode_intent_facts, encode_facts
from actors.run import Run
from admission.approval import Decision, Request, Terms, Use
from admission.approval_errors import (
    ActionChanged,
    AlreadyApproved,
    AlreadyDenied,
    ApprovalExpired,
    ApprovalRefused,
    ApprovalUsed,
    DecisionReplayed,
    ForgedApproval,
    NoApprovalKeys,
    NoSuchApproval,
    NotAnApprover,
    RunIsOver,
    SelfApproval,
)
from cluster import approvals
from cluster.keys import partition_of
from cluster.lifecycle import RunState
from cluster.store import Store
from penstock.approval_facts import ApprovalView
from penstock.approvals import InvalidDecision
from penstock.client import Client


@pytest.fixture(autouse=True)
def fresh_world() -> None:
    WORLD.__init__()  # type: ignore[misc]


async def unloaded(deployment: Spine, client: Client, order: str = "o-1", **fields: Any) -> ApprovalView:
    """A run that has asked, and that no host has."""
    run_id = await deployment.submit(guarded, order, **fields)
    view = await asked(client, run_id)
    await deployment.waits(run_id)
    return view


async def told(deployment: Spine, view: ApprovalView) -> str:
    """What the agent was told, and that nothing was called."""
    said = output(guarded, await deployment.end(view.run_id))
    assert WORLD.calls == []
    return str(said)


async def decide_by_hand(store: Store, view: ApprovalView, raw: bytes, by: str = "alice") -> None:
    """A decision in the record, as the scripts would have put it there, and the run is woken."""
    assert await approvals.decide(store, view.id, by, raw, seen=0, becomes="approved") == "ok"


async def request_of(deployment: Spine, view: ApprovalView) -> Request:
    (raw,) = await read(deployment, view.id, "request")
    return Request.model_validate_json(raw or b"")


# The good way


async def test_an_approved_call_goes_on_within_a_second(redis_url: str) -> None:
    async with spine(redis_url, payer, **keys_setting()) as deployment, client_of(deployment) as client:
        await deployment.host()
        await deployment.host()
        took: list[float] = []
        for number in range(5):
            run_id = await deployment.submit(payer, f"o-{number}")
            view = await asked(client, run_id)
            record = await deployment.waits(run_id)
            assert record.reason == "approval"
            assert record.due_ms is not None
            assert abs(record.due_ms - view.expires_ms) < 100
            began = time.monotonic()
            await client.approve(view.id, reason="fine")
            record = await deployment.end(run_id)
            took.append(time.monotonic() - began)
            assert output(payer, record) == f"paid 100 for o-{number}"
        print(f"approved → ended: {', '.join(f'{1000 * seconds:.0f}' for seconds in took)} ms")
        assert max(took) < 1
        assert [order for order, _ in WORLD.calls] == [f"o-{number}" for number in range(5)]


async def test_what_is_shown_has_no_secrets_and_all_that_helps(redis_url: str) -> None:
    async with spine(redis_url, payer, **keys_setting()) as deployment, client_of(deployment) as client:
        await deployment.host()
        earlier = await asked(client, await deployment.submit(payer, "o-0"))
        await client.deny(earlier.id, reason="too much", by="bob")
        view = await asked(client, await deployment.submit(payer, "o-1"))
        assert view.arguments == {"order": "o-1", "amount": 100, "note": "monthly", "token": "***"}
        assert (view.advisory, view.problem, view.who_may, view.risk) == (("note",), "", "anybody", "read")
        details = await client.approval(view.id)
        assert [(each.kind, each.status) for each in details.steps] == [("approval", "open")]
        assert [(each.id, str(each.decisions[0])) for each in details.before] == [(earlier.id, "bob denied: too much")]
        assert "hunter2" not in repr(details)
        assert [each.id for each in await client.approvals()] == [view.id]
        assert [(each.id, each.state) for each in await client.approvals(all=True)] == [
            (view.id, "pending"),
            (earlier.id, "denied"),
        ]
        with pytest.raises(NoSuchApproval, match="approvals --all"):
            await client.approval("a00-0123456789abcdef01234567")
        with pytest.raises(NoSuchApproval, match="no approval's id"):
            await client.approve("x")
        with pytest.raises(InvalidDecision, match="approver"):
            await client.approve(view.id, by="a\nb")


async def test_the_journal_says_who_approved_what_and_proves_it(redis_url: str) -> None:
    async with spine(redis_url, payer, **keys_setting()) as deployment, client_of(deployment) as client:
        await deployment.host()
        run_id = await deployment.submit(payer, "o-1")
        view = await asked(client, run_id)
        await client.approve(view.id, reason="fine")
        await deployment.end(run_id)
        opened, closed, called = await deployment.journal(run_id)
        assert [(each.kind, each.step, each.status) for each in (opened, closed, called)] == [
            ("approval", "0!approval", "open"),
            ("approval", "0!approval", "ok"),
            ("call", "0", "ok"),
        ]
        assert msgspec.json.decode(closed.payload, type=Granted) == Granted(view.id, ("alice",), "fine")
        proof = msgspec.json.decode(closed.facts, type=Proof)
        for kind, raw in ((Request, proof.request), (Decision, proof.decisions[0]), (Use, proof.use)):
            kind.model_validate_json(bytes(raw)).check_signature(KEYS, view.id)
        assert bytes(proof.request) == opened.payload


async def test_denied_is_a_value_that_the_agent_handles_and_a_replay_raises_again(redis_url: str) -> None:
    async with spine(redis_url, guarded, **keys_setting()) as deployment, client_of(deployment) as client:
        first = await deployment.host()
        view = await unloaded(deployment, client, "stay")
        await client.deny(view.id, reason="not now", by="bob")
        await until(lambda: _has_slept(deployment, view.run_id), "it goes on after the denial")
        for kind, error in ((client.approve, AlreadyDenied), (client.deny, AlreadyDenied)):
            with pytest.raises(error, match="bob denied it: not now"):
                await kind(view.id, reason="x")
        await deployment.vanish(first)
        WORLD.amount = 1  # another call would be a divergence; the denial is replayed before it comes to that
        entries = await deployment.journal(view.run_id)
        assert decode_error(entries[1].payload).message == "not now"
        assert WORLD.calls == []


async def _has_slept(deployment: Spine, run_id: str) -> bool:
    return any(entry.kind == Kind.TIMER for entry in await deployment.journal(run_id))


async def test_as_many_people_as_the_terms_need(redis_url: str) -> None:
    WORLD.terms = Terms(needed=2, approvers=("ann", "bob", "cid"))
    async with spine(redis_url, guarded, **keys_setting()) as deployment, client_of(deployment) as client:
        await deployment.host()
        view = await unloaded(deployment, client)
        assert (await client.approve(view.id, by="ann")).progress == "pending, 1 of 2"
        with pytest.raises(DecisionReplayed, match="once"):
            await client.approve(view.id, by="ann")
        assert (await deployment.record(view.run_id)).state is RunState.WAITING
        await client.approve(view.id, by="bob")
        assert output(guarded, await deployment.end(view.run_id)) == "wired"
        # Two at the same moment: each knows of the other, and the run goes on.
        view = await unloaded(deployment, client, "o-2")
        await asyncio.gather(client.approve(view.id, by="ann"), client.approve(view.id, by="cid"))
        assert output(guarded, await deployment.end(view.run_id)) == "wired"
        assert [order for order, _ in WORLD.calls] == ["o-1", "o-2"]


async def test_hosts_may_die_while_a_run_waits_and_when_it_goes_on(redis_url: str) -> None:
    async with spine(redis_url, guarded, **keys_setting()) as deployment, client_of(deployment) as client:
        view = await _asked_and_left(deployment, client)
        await client.approve(view.id)
        await deployment.lose(await deployment.host())
        await deployment.host()
        assert output(guarded, await deployment.end(view.run_id)) == "wired"


async def _asked_and_left(deployment: Spine, client: Client, order: str = "o-1") -> ApprovalView:
    """A run that waits for an approval, and no host that would go on with it."""
    host = await deployment.host()
    view = await unloaded(deployment, client, order)
    await deployment.lose(host)
    return view


async def test_a_simulated_run_has_a_simulated_approver(redis_url: str) -> None:
    async with spine(redis_url, payer, guarded, **keys_setting()) as deployment:
        run_id = await deployment.submit(guarded, "o-1")
        await _change_job(deployment, run_id, simulated=True)
        await deployment.host()
        assert output(guarded, await deployment.end(run_id)) == "wired"
        (entry, _) = await deployment.journal(run_id)
        granted = msgspec.json.decode(entry.payload, type=Granted)
        assert (granted.approved_by, granted.simulated) == (("simulated approver",), True)


async def _change_job(deployment: Spine, run_id: str, **fields: Any) -> None:
    key = deployment.store.keys.run(run_id)
    job: JobRecord = msgspec.structs.replace(decode_job((await deployment.record(run_id)).job), **fields)
    await deployment.store.command(key, "HSET", key, "job", msgspec.msgpack.encode(job))


async def test_keys_are_rotated_while_runs_wait(redis_url: str) -> None:
    async with spine(redis_url, guarded, **keys_setting()) as deployment, client_of(deployment) as client:
        view = await _asked_and_left(deployment, client)
        async with client_of(deployment, **keys_setting(f"{SECRET},{OTHER}")) as newer:
            await newer.approve(view.id)
        await deployment.host(**keys_setting(f"{OTHER},{SECRET}"))
        assert output(guarded, await deployment.end(view.run_id)) == "wired"


# Each refusal has its own error, and nothing is called


async def test_other_arguments_after_the_approval_are_a_divergence(redis_url: str) -> None:
    async with spine(redis_url, guarded, **keys_setting()) as deployment, client_of(deployment) as client:
        view = await _asked_and_left(deployment, client)
        await client.approve(view.id)
        WORLD.amount = 9_999
        await deployment.host()
        record = await deployment.end(view.run_id)
        assert (record.state, record.reason) == (RunState.FAILED, "replay_divergence")
        assert WORLD.calls == []


async def test_other_arguments_under_the_journals_digest_are_seen(redis_url: str) -> None:
    """Somebody makes the journal fit the changed call; what was approved is still another action."""
    async with spine(redis_url, guarded, **keys_setting()) as deployment, client_of(deployment) as client:
        WORLD.amount = 9_999
        (other,) = await deployment.journal((await _asked_and_left(deployment, client)).run_id)
        WORLD.amount = 100
        view = await _asked_and_left(deployment, client)
        await client.approve(view.id)
        with pytest.raises(ActionChanged):
            await client.approve(view.id, action="0" * 64, by="bob")
        WORLD.amount = 9_999
        (entry,) = await deployment.journal(view.run_id)
        await _put_entry(deployment, view.run_id, msgspec.structs.replace(entry, digest=other.digest))
        await deployment.host()
        assert (await told(deployment, view)).startswith("ActionChanged: it is of another action: arguments changed")


async def _put_entry(deployment: Spine, run_id: str, entry: Any, index: int = 0) -> None:
    key = deployment.store.keys.journal(run_id)
    await deployment.store.command(key, "LSET", key, index, encode_entry(entry))


async def test_a_decision_on_another_approval_is_none_on_this_one(redis_url: str) -> None:
    async with spine(redis_url, guarded, **keys_setting()) as deployment, client_of(deployment) as client:
        await deployment.host()
        WORLD.terms = Terms(needed=2)
        other, view = await unloaded(deployment, client, "other"), await unloaded(deployment, client)
        await client.approve(other.id)
        with pytest.raises(DecisionReplayed):
            await client.approve(other.id)
        (stolen,) = await read(deployment, other.id, "by:alice")
        await decide_by_hand(deployment.store, view, stolen or b"")
        assert (await told(deployment, view)).startswith("DecisionReplayed: 'alice' has decided on")


async def test_nothing_is_decided_or_made_after_it_has_expired(redis_url: str) -> None:
    WORLD.terms = Terms(expires_s=1.3)
    async with spine(redis_url, guarded, **keys_setting()) as deployment, client_of(deployment) as client:
        host = await deployment.host()
        quiet, approved = await unloaded(deployment, client, "quiet"), await unloaded(deployment, client, "approved")
        await deployment.lose(host)
        await client.approve(approved.id)
        await until(lambda: _is_past(deployment, approved), "it expires")
        with pytest.raises(ApprovalExpired):
            await client.approve(quiet.id)
        assert [each.state for each in await client.approvals(all=True)] == ["expired", "expired"]
        assert await client.approvals() == []
        await deployment.host()
        for view, count in ((quiet, 0), (approved, 1)):
            text = f"ApprovalExpired: {count} of 1 needed had approved it when it expired (approval.expires_s=1.3)"
            assert await told(deployment, view) == text


async def _is_past(deployment: Spine, view: ApprovalView) -> bool:
    return await deployment.store.server_ms() > view.expires_ms


async def test_a_run_on_a_host_is_told_when_it_expires(redis_url: str) -> None:
    WORLD.terms = Terms(expires_s=0.3)
    async with spine(redis_url, guarded, **keys_setting()) as deployment, client_of(deployment) as client:
        await deployment.host()
        view = await asked(client, await deployment.submit(guarded, "o-1"))
        assert (await told(deployment, view)).startswith("ApprovalExpired")
        with pytest.raises(ApprovalExpired):
            await client.approve(view.id)


async def test_an_approval_is_used_once(redis_url: str) -> None:
    async with spine(redis_url, guarded, **keys_setting()) as deployment, client_of(deployment) as client:
        await deployment.host()
        view = await unloaded(deployment, client, "stay")
        await client.approve(view.id)
        await until(lambda: _has_slept(deployment, view.run_id), "it goes on")
        for again in (client.approve, client.deny):
            with pytest.raises(ApprovalUsed, match="alice approved it, and its action has begun"):
                await again(view.id, by="bob", reason="x")
        assert WORLD.calls == [("stay", 100)]
        # The same call in another step, or another run, is another action.
        WORLD.calls.clear()
        other = await unloaded(deployment, client, "other")
        assert other.action != view.action
        use, decision = await read(deployment, view.id, "use", "by:alice")
        await write(deployment, other.id, state="used", use=use or b"", **{"by:alice": decision or b""})
        await _wake(deployment, other)
        assert (await told(deployment, other)).startswith("DecisionReplayed")


async def test_the_use_of_another_approval_is_none_of_this_one(redis_url: str) -> None:
    async with spine(redis_url, guarded, **keys_setting()) as deployment, client_of(deployment) as client:
        host = await deployment.host()
        first = await unloaded(deployment, client, "stay")
        await client.approve(first.id)
        await until(lambda: _has_slept(deployment, first.run_id), "it goes on")
        WORLD.calls.clear()
        view = await unloaded(deployment, client)
        await deployment.lose(host)
        (use,) = await read(deployment, first.id, "use")
        await client.approve(view.id)
        await write(deployment, view.id, state="used", use=use or b"")
        await deployment.host()
        assert (await told(deployment, view)).startswith("ApprovalUsed: the use is of")


async def _wake(deployment: Spine, view: ApprovalView) -> None:
    """The run's wait is made to be over."""
    timers = deployment.store.keys.of(partition_of(view.run_id), "timers")
    await deployment.store.command(timers, "ZADD", timers, 1, view.run_id)


@pytest.mark.parametrize("case", ["another key", "unknown key", "no decision", "changed", "no decision at all"])
async def test_a_forged_approval_is_none(redis_url: str, case: str) -> None:
    async with spine(redis_url, guarded, **keys_setting()) as deployment, client_of(deployment) as client:
        await deployment.host()
        view = await unloaded(deployment, client)
        request = await request_of(deployment, view)
        good = said(request, "mallory", at_ms=request.asked_ms + 1)
        forged = {
            "another key": said(request, "mallory", at_ms=request.asked_ms + 1, keys=FORGED),
            "unknown key": good.model_copy(update={"key": "k9"}),
            "changed": good.model_copy(update={"approver": "alice"}),
        }
        if case == "no decision at all":
            await write(deployment, view.id, state="approved")
            await _wake(deployment, view)
        else:
            raw = forged[case].model_dump_json().encode() if case in forged else b"yes, do"
            await decide_by_hand(deployment.store, view, raw, "mallory")
        error = "UnknownApprovalKey" if case == "unknown key" else "ForgedApproval"
        assert (await told(deployment, view)).startswith(error)


async def test_a_changed_request_is_shown_as_such_and_cannot_be_approved(redis_url: str) -> None:
    """Otherwise people could be made to approve what they have not seen."""
    async with spine(redis_url, guarded, **keys_setting()) as deployment, client_of(deployment) as client:
        await deployment.host()
        WORLD.amount = 1_000_000
        view = await unloaded(deployment, client)
        request = await request_of(deployment, view)
        harmless = request.model_copy(update={"shown": '{"order":"o-1","amount":1}'})
        await write(deployment, view.id, request=harmless.model_dump_json().encode())
        (shown,) = await client.approvals()
        assert shown.problem.startswith("ForgedApproval")
        with pytest.raises(ForgedApproval):
            await client.approve(view.id)
        for state, raw in (("pending", b"{}"), ("dancing", request.model_dump_json().encode())):
            await write(deployment, view.id, request=raw, state=state)
            assert (await client.approval(view.id)).approval.problem.startswith("ForgedApproval")
            with pytest.raises(ForgedApproval):
                await client.approve(view.id)
        assert WORLD.calls == []


@pytest.mark.parametrize("case", ["no proof", "other terms", "simulated"])
async def test_a_journal_that_says_approved_is_not_believed(redis_url: str, case: str) -> None:
    async with spine(redis_url, guarded, **keys_setting()) as deployment, client_of(deployment) as client:
        WORLD.terms = Terms(needed=2)
        view = await _asked_and_left(deployment, client)
        (entry,) = await deployment.journal(view.run_id)
        granted = Granted(view.id, ("mallory",), simulated=case == "simulated")
        request = Request.model_validate_json(entry.payload)
        lax = request.model_copy(update={"terms": Terms()}).model_dump_json().encode()
        facts = msgspec.json.encode(Proof(msgspec.Raw(lax))) if case == "other terms" else b""
        forged = msgspec.structs.replace(
            entry, status=Status.OK.value, payload=msgspec.json.encode(granted), facts=facts
        )  # fmt: skip
        await _put_entry(deployment, view.run_id, forged)
        await _wake(deployment, view)
        await deployment.host()
        record = await deployment.end(view.run_id)
        assert (record.state, decode_error(record.error).error_class) == (RunState.FAILED, "ForgedApproval")
        assert WORLD.calls == []


async def test_the_terms_are_those_that_were_asked(redis_url: str) -> None:
    """Neither the record's expiry nor the journal's terms can be stretched."""
    WORLD.terms = Terms(approvers=("bob",), expires_s=1.2)
    async with spine(redis_url, guarded, **keys_setting()) as deployment, client_of(deployment) as client:
        host = await deployment.host()
        late, view = await unloaded(deployment, client, "late"), await unloaded(deployment, client)
        await deployment.lose(host)
        (entry,) = await deployment.journal(view.run_id)
        lax = Request.model_validate_json(entry.payload).model_copy(update={"terms": Terms()})
        await _put_entry(
            deployment, view.run_id, msgspec.structs.replace(entry, payload=lax.model_dump_json().encode())
        )  # fmt: skip
        await client.approve(late.id, by="bob")
        await write(deployment, late.id, expires=str(late.expires_ms + 3_600_000))
        await until(lambda: _is_past(deployment, late), "it expires")
        await deployment.host()
        assert (await told(deployment, late)).startswith("ApprovalExpired")
        assert (await told(deployment, view)).startswith("ForgedApproval: the signature of its request")


async def test_people_without_the_right_are_refused_by_client_and_by_host(redis_url: str) -> None:
    WORLD.terms = Terms(approvers=("bob", "sam"), self_approval=False)
    async with spine(redis_url, guarded, **keys_setting()) as deployment, client_of(deployment) as client:
        run_id = await deployment.submit(guarded, "o-1")
        await _change_job(deployment, run_id, by="sam")
        await deployment.host()
        view = await asked(client, run_id)
        await deployment.waits(run_id)
        assert (view.submitter, view.who_may) == ("sam", "bob or sam, but not who submitted the job (sam)")
        with pytest.raises(NotAnApprover, match="'alice' may not decide it"):
            await client.approve(view.id)
        with pytest.raises(SelfApproval, match="'sam' has submitted the job"):
            await client.approve(view.id, by="sam")
        # Somebody with a key goes round the client.
        raw = said(await request_of(deployment, view), "sam", at_ms=view.asked_ms + 1).model_dump_json().encode()
        await decide_by_hand(deployment.store, view, raw, "sam")
        assert (await told(deployment, view)).startswith("SelfApproval")


async def test_a_decision_after_the_cancellation_is_refused(redis_url: str) -> None:
    async with spine(redis_url, guarded, **keys_setting()) as deployment, client_of(deployment) as client:
        await deployment.host()
        view = await unloaded(deployment, client)
        await deployment.cancel(view.run_id)
        with pytest.raises(RunIsOver, match="has ended as cancelled"):
            await client.approve(view.id)
        assert (await client.approval(view.id)).approval.state == "void"
        assert (await deployment.record(view.run_id)).state is RunState.CANCELLED
        assert WORLD.calls == []


async def test_a_cancellation_after_the_decision_wins_while_nothing_has_begun(redis_url: str) -> None:
    async with spine(redis_url, guarded, **keys_setting()) as deployment, client_of(deployment) as client:
        view = await _asked_and_left(deployment, client)
        await client.approve(view.id)
        with pytest.raises(AlreadyApproved):
            await client.approve(view.id, by="bob")
        await deployment.cancel(view.run_id)
        await deployment.host()
        with pytest.raises(RunIsOver):
            await client.approve(view.id, by="bob")
        assert (await client.approval(view.id)).approval.state == "void"
        assert (await deployment.record(view.run_id)).state is RunState.CANCELLED
        assert WORLD.calls == []


async def test_approving_and_cancelling_at_once(redis_url: str) -> None:
    """Whoever wins, all agree: what was cancelled before it was used was not called."""
    async with spine(redis_url, guarded, **keys_setting()) as deployment, client_of(deployment) as client:
        await deployment.host()
        seen = set()
        for number in range(12):
            WORLD.calls.clear()
            view = await unloaded(deployment, client, f"o-{number}")
            both = (_after(0.0, client.approve(view.id)), _after(number / 600, deployment.cancel(view.run_id)))
            answers = await asyncio.gather(*(both if number % 2 else reversed(both)), return_exceptions=True)
            refused = [each for each in answers if isinstance(each, ApprovalRefused)]
            assert all(isinstance(each, RunIsOver) for each in refused)
            record = await deployment.end(view.run_id)
            state = (await client.approval(view.id)).approval.state
            seen.add((record.state.value, state, len(WORLD.calls)))
            assert (state == "used") or WORLD.calls == []
            assert not refused or (record.state is RunState.CANCELLED and state == "void")
            assert state in ("used", "void")
        print(f"approving and cancelling at once came to {sorted(seen)}")


async def _after(seconds: float, work: Coroutine[Any, Any, Any]) -> Any:
    await asyncio.sleep(seconds)
    return await work


async def test_a_forks_approval_is_its_own(redis_url: str) -> None:
    """A journal that was copied with an approval in it: whatever it says was for the run that it comes from."""
    async with spine(redis_url, guarded, **keys_setting()) as deployment, client_of(deployment) as client:
        origin = await _asked_and_left(deployment, client)
        await client.approve(origin.id)
        key = deployment.store.keys.journal(origin.run_id)
        copied = await deployment.store.command(key, "LRANGE", key, 0, -1)
        await deployment.cancel(origin.run_id)
        fork = await deployment.submit(guarded, "o-1")
        await _change_job(deployment, fork, forked_from=origin.run_id)
        run, journal = deployment.store.keys.run(fork), deployment.store.keys.journal(fork)
        await deployment.store.command(journal, "RPUSH", journal, *copied)
        await deployment.store.command(run, "HSET", run, "started_ms", 1, "pinned", "1")
        await deployment.host()
        view = await asked(client, fork)
        assert (view.run_id, view.action != origin.action, WORLD.calls) == (fork, True, [])
        await client.approve(view.id)
        assert output(guarded, await deployment.end(fork)) == "wired"
        assert [decode_entry(raw).status for raw in copied] == ["open"]


async def test_without_keys_nothing_is_asked_and_nothing_is_called(redis_url: str) -> None:
    async with spine(redis_url, guarded) as deployment, client_of(deployment) as client:
        await deployment.host()
        said = output(guarded, await deployment.end(await deployment.submit(guarded, "o-1")))
        assert said.startswith("NoApprovalKeys: this process has no key")
        assert "PENSTOCK_APPROVAL_KEYS" in said
        assert (WORLD.calls, await client.approvals(all=True)) == ([], [])
        async with client_of(deployment, **keys_setting()) as keyed:
            await deployment.host(**keys_setting())
            await deployment.lose(deployment.hosts[0])
            view = await unloaded(deployment, keyed)
            with pytest.raises(NoApprovalKeys):
                await client.approve(view.id)


async def test_bad_keys_are_refused_when_a_host_starts(redis_url: str) -> None:
    async with spine(redis_url, guarded) as deployment:
        with pytest.raises(ValueError, match="PENSTOCK_APPROVAL_KEYS: key 1: write id:base64"):
            await deployment.host(**keys_setting("nonsense"))


async def test_an_action_is_the_call_and_nothing_less(redis_url: str) -> None:
    async with spine(redis_url, guarded, **keys_setting()) as deployment, client_of(deployment) as client:
        host = await deployment.host()
        run_id = await deployment.submit(guarded, "stay")
        view = await asked(client, run_id)
        engine = host.runs.get(run_id)
        if engine is not None:
            values, _ = wire.signature.bind(("stay", 100), {})
            assert action_of(engine, "0", wire, values).digest == view.action
            assert action_of(engine, "1", wire, values).digest != view.action
            assert action_of(engine, "0", wire, values, "key").digest != view.action


# Effects, and policies


async def test_an_effect_goes_on_under_its_approval_after_its_host_died(redis_url: str) -> None:
    """The intent names it; it is proved again before the effect is sent again, and nobody is asked twice."""
    async with spine(redis_url, sender, **keys_setting()) as deployment, client_of(deployment) as client:
        WORLD.holds = True
        host = await deployment.host()
        run_id = await deployment.submit(sender, "o-1")
        view = await asked(client, run_id)
        await client.approve(view.id)
        await until(lambda: bool(WORLD.calls), "the effect is sent")
        await deployment.lose(host)
        WORLD.holds = False
        await deployment.host()
        assert output(sender, await deployment.end(run_id)) == "sent o-1"
        assert len(WORLD.calls) == 2
        assert len(set(WORLD.calls)) == 1
        facts = [
            decode_intent_facts(each.facts).approval
            for each in await deployment.journal(run_id)
            if each.kind == Kind.INTENT
        ]
        assert facts == [view.id]
        assert [each.id for each in await client.approvals(all=True)] == [view.id]


@pytest.mark.parametrize("kept", ["nothing", "what was asked"])
async def test_an_intent_without_the_approval_that_it_needs_is_not_sent(redis_url: str, kept: str) -> None:
    """Somebody writes an intent into the journal, as if the call had been permitted."""
    async with spine(redis_url, sender, **keys_setting()) as deployment, client_of(deployment) as client:
        host = await deployment.host()
        run_id = await deployment.submit(sender, "o-1")
        await asked(client, run_id)
        await deployment.waits(run_id)
        await deployment.lose(host)
        (entry,) = await deployment.journal(run_id)
        values, arguments = send.signature.bind(("o-1",), {})
        facts = encode_facts(IntentFacts(key="k", identity="i", arguments=msgspec.Raw(send.signature.dump(values))))
        forged = msgspec.structs.replace(
            entry, kind=Kind.INTENT.value, step="0", digest=arguments, payload=b"", facts=facts
        )  # fmt: skip
        key = deployment.store.keys.journal(run_id)
        if kept == "nothing":
            await _put_entry(deployment, run_id, forged)
        else:
            await deployment.store.command(key, "RPUSH", key, encode_entry(forged))
        timers = deployment.store.keys.of(partition_of(run_id), "timers")
        await deployment.store.command(timers, "ZADD", timers, 1, run_id)
        await deployment.host()
        record = await deployment.end(run_id)
        assert record.state is RunState.CONFIRMATION_UNKNOWN
        assert "no approval, which it needs" in decode_error(record.error).message
        assert WORLD.calls == []


def policy(outcome: str, **rule: Any) -> str:
    wanted = {"name": "r", "outcome": outcome, "tools": "wire", **rule}
    open_to_all = {"name": "rest", "outcome": "allow", "tiers": ["read", "write"]}
    return json.dumps({"rules": [wanted, open_to_all]})


@agent("plain", version="1")
async def plain(run: Run, order: str) -> str:
    """Calls what needs an approval only where a policy says so."""
    try:
        return await run.call(wire, order, 1)
    except (ApprovalDenied, NotPermitted) as refused:
        return f"{refused.error_class}: {refused.message}"


async def test_what_was_asked_is_decided_on_its_own_terms_whatever_the_policy_is_by_then(redis_url: str) -> None:
    first = policy("approve", approval={"approvers": ["ann"], "needed": 1})
    fields = keys_setting() | {"policy_yaml": first}
    async with spine(redis_url, plain, **fields) as deployment, client_of(deployment) as client:
        host = await deployment.host()
        view = await asked(client, await deployment.submit(plain, "o-1"))
        await deployment.waits(view.run_id)
        assert (view.approvers, view.rule) == (("ann",), "r")
        await client.set_policy(policy("allow"), by="mallory")
        await _wake(deployment, view)
        await until(lambda: _has_woken(deployment, view), "it looks again")
        assert WORLD.calls == []
        with pytest.raises(NotAnApprover):
            await client.approve(view.id)
        await client.approve(view.id, by="ann")
        assert output(plain, await deployment.end(view.run_id)) == "wired"
        assert host.runs == {}


async def _has_woken(deployment: Spine, view: ApprovalView) -> bool:
    record = await deployment.record(view.run_id)
    return record.fence > 1 and record.state is RunState.WAITING


async def test_a_policy_that_denies_by_then_ends_the_wait(redis_url: str) -> None:
    fields = keys_setting() | {"policy_yaml": policy("approve")}
    async with spine(redis_url, plain, **fields) as deployment, client_of(deployment) as client:
        host = await deployment.host()
        view = await asked(client, await deployment.submit(plain, "o-1"))
        await deployment.waits(view.run_id)
        await deployment.lose(host)
        await client.approve(view.id)
        await client.set_policy(policy("deny", reason="no more"), by="ann")
        await deployment.host()
        assert output(plain, await deployment.end(view.run_id)).startswith("NotPermitted: ")
        assert WORLD.calls == []
        assert (await client.approval(view.id)).approval.state == "void"


# Who says why it waits


async def test_why_and_show_name_the_approval(redis_url: str) -> None:
    WORLD.terms = Terms(approvers=("ann", "bob"), needed=2)
    async with spine(redis_url, guarded, **keys_setting()) as deployment, client_of(deployment) as client:
        await deployment.host()
        view = await unloaded(deployment, client)
        await client.approve(view.id, by="ann")
        why = await client.why(view.run_id)
        assert why.reason == f"approval {view.id}: wire (read) at step 0, pending, 1 of 2"
        assert why.owner == "ann or bob; 2 needed"
        assert why.bound.startswith("expires ")
        assert f"penstock approve {view.id}" in why.next
        shown = await client.show(view.run_id)
        assert [each.id for each in shown.approvals] == [view.id]
        await client.approve(view.id, by="bob")
        await deployment.end(view.run_id)
        assert (await client.show(view.run_id)).approvals == []


async def test_a_watch_tells_of_each_change(redis_url: str) -> None:
    async with spine(redis_url, guarded, **keys_setting()) as deployment, client_of(deployment) as client:
        await deployment.host()
        views = client.watch_approvals()
        coming = asyncio.create_task(anext(views))
        view = await unloaded(deployment, client, "stay")
        heard = [await asyncio.wait_for(coming, 5)]
        await client.approve(view.id)
        while heard[-1].state != "used":
            heard.append(await asyncio.wait_for(anext(views), 5))
        await views.aclose()
        assert {each.id for each in heard} == {view.id}
        assert [each.state for each in heard if each.state != "approved"] == ["pending", "used"]


async def test_a_job_says_who_submitted_it_and_is_the_same_for_everybody(redis_url: str) -> None:
    async with spine(redis_url, guarded, **keys_setting()) as deployment:
        await deployment.host()
        job = {"custom_id": "one", "agent": "guarded", "input": "o-1"}
        async with client_of(deployment) as alice, client_of(deployment, user="bob") as bob:
            assert (await alice.submit([job], batch="b1")).accepted == 1
            assert (await bob.submit([job], batch="b1")).existing == 1
            (run,) = await alice.runs(batch="b1")
            assert (await asked(alice, run.run_id)).submitter == "alice"
            assert (await bob.show(run.run_id)).by == "alice"
