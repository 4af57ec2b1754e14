"""Trails of runs on real hosts and a real server: what they tell, and that hands in the store are found."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec
import pytest
from approvers import asked, client_of, keys_setting, send, sender
from hosting import Spine, spine, until
from trail_app import (
    AGENTS,
    GATE,
    TOOLS,
    Hands,
    held,
    idle,
    long,
    mailing,
    overreaching,
    parent,
    paying,
    sleeping,
    undoing,
)

from actors.journal import (
    ENTRY_VERSION,
    Entry,
    Kind,
    Status,
    decode_entry,
    encode_entry,
    encode_error,
    first_link,
    link_of,
    seal,
)
from actors.receipts import IntentFacts, Receipt, Resolution, encode_facts, encode_receipt
from cluster.lifecycle import RunState
from penstock.client import Client
from penstock.errors import NoSuchRun
from penstock.sync_client import SyncClient
from penstock.trail import DamagedRecord
from penstock.trail_rows import Entries, moment
from penstock.trail_views import TrailRow, TrailVerification


@pytest.fixture
async def deployment(redis_url: str) -> AsyncIterator[Spine]:
    async with spine(redis_url, *AGENTS, tools=TOOLS) as made:
        yield made


@pytest.fixture
async def client(deployment: Spine) -> AsyncIterator[Client]:
    async with Client(settings=deployment.settings) as made:
        yield made


@pytest.fixture
def hands(deployment: Spine) -> Iterator[Hands]:
    made = Hands(deployment.store)
    yield made
    made.close()


def words(rows: list[TrailRow]) -> list[str]:
    return [row.what for row in rows]


def row(rows: list[TrailRow], what: str) -> TrailRow:
    return next(each for each in rows if each.what == what)


def broken(found: TrailVerification) -> list[tuple[str, int | None]]:
    return [(finding.what, finding.place) for finding in found.findings]


# What is told


async def test_a_trail_goes_from_the_job_to_the_end(deployment: Spine, client: Client) -> None:
    await deployment.host()
    run_id = await deployment.submit(paying, "17", grants=("payments",), tenant="shop")
    await deployment.end(run_id)
    trail = await client.trail(run_id, verify=True)
    assert words(trail.rows) == [
        "asked", "started", "called", "value", "permitted", "intent", "applied", "ended: succeeded",
    ]  # fmt: skip
    asked = trail.rows[0]
    assert "tenant shop" in asked.detail
    assert "grants payments" in asked.detail
    assert asked.facts["input"] == "17"
    permitted = row(trail.rows, "permitted")
    assert permitted.facts["permission"]["decision"] == "allow"
    assert permitted.by.startswith("policy")
    intent = row(trail.rows, "intent")
    assert intent.by == "agent paying@1"
    assert 'pay("17")' in intent.detail
    assert f"key {intent.facts['facts']['key']}" in intent.detail
    applied = row(trail.rows, "applied")
    assert applied.by == "tool"
    assert 'evidence {"statement": "S-17"}' in applied.detail
    end = trail.rows[-1]
    assert end.by.endswith("its owner")
    assert end.facts["output"] == "receipt for 17"
    assert [each.place for each in trail.rows] == [None, None, 0, 1, 2, 2, 3, None]
    assert all(len(each.link) == 8 for each in trail.rows if each.what != "started")
    found = trail.verification
    assert found is not None
    assert found.holds
    assert (found.entries, found.chained, found.sealed_by, found.notes) == (4, 4, "owner", [])


async def test_a_run_without_steps_has_a_trail(deployment: Spine, client: Client) -> None:
    await deployment.host()
    run_id = await deployment.submit(idle, "x")
    await deployment.end(run_id)
    trail = await client.trail(run_id, verify=True)
    assert words(trail.rows) == ["asked", "started", "ended: succeeded"]
    assert trail.verification is not None
    assert trail.verification.holds


async def test_what_nobody_can_prove_is_in_the_trail_with_the_effects_record(
    deployment: Spine, client: Client, hands: Hands
) -> None:
    await deployment.host()
    run_id = await deployment.submit(mailing, "17")
    await deployment.end(run_id)
    trail = await client.trail(run_id, verify=True)
    assert words(trail.rows)[-3:] == ["intent", "effect's record", "now: confirmation_unknown"]
    assert "unknown: Ambiguous: no answer" in row(trail.rows, "effect's record").detail
    assert trail.verification is not None
    assert trail.verification.holds
    assert trail.verification.sealed_by == "owner"
    # A person's word follows the head that the owner anchored.
    intent = decode_entry(hands.journal(run_id)[-1])
    said = Resolution(False, "kim", "the post office says no", {"letter": 3})
    hands.append(
        run_id, Entry(ENTRY_VERSION, Kind.RESOLUTION, intent.step, intent.name, intent.digest, Status.OK,
                      msgspec.json.encode(said), 0, intent.ended_ms, intent.ended_ms),
    )  # fmt: skip
    trail = await client.trail(run_id, verify=True)
    resolved = row(trail.rows, "resolved")
    assert resolved.by == "person kim"
    assert resolved.detail == 'mail: not applied; the post office says no; evidence {"letter": 3}'
    assert trail.verification is not None
    assert trail.verification.holds


async def test_a_child_run_is_linked_and_told_with_deep(deployment: Spine, client: Client, hands: Hands) -> None:
    await deployment.host()
    run_id = await deployment.submit(parent, "17")
    await deployment.end(run_id)
    trail = await client.trail(run_id)
    assert words(trail.rows) == [
        "asked", "started", "timer", "child started", "child ended", "ended: succeeded",
    ]  # fmt: skip
    child = row(trail.rows, "child started").detail.rpartition(" ")[2]
    deep = await client.trail(run_id, deep=True, verify=True)
    assert {each.run_id for each in deep.rows} == {run_id, child}
    told = [(each.run_id == child, each.what) for each in deep.rows]
    assert deep.rows[-1].what == "ended: succeeded"
    assert told.index((False, "child started")) < told.index((True, "asked")) < told.index((True, "applied"))
    assert told.index((True, "ended: succeeded")) < told.index((False, "child ended"))
    assert row([each for each in deep.rows if each.run_id == child], "asked").by == f"run {run_id}"
    found = deep.verification
    assert found is not None
    assert found.holds
    assert [each.run_id for each in found.children] == [child]
    # What is broken in the child is broken in the whole.
    hands.cut(child)
    assert (await client.verify_trail(run_id)).holds
    found = await client.verify_trail(run_id, deep=True)
    assert not found.holds
    assert found.first is not None
    assert (found.first[0], found.first[1].what) == (child, "cut_off")


async def test_effects_that_were_undone(deployment: Spine, client: Client) -> None:
    await deployment.host()
    run_id = await deployment.submit(undoing, "17")
    await deployment.end(run_id)
    trail = await client.trail(run_id, verify=True)
    assert words(trail.rows) == [
        "asked", "started", "permitted", "intent", "applied", "failed", "ending", "intent", "undone", "ended: failed",
    ]  # fmt: skip
    assert "2 attempts; NotApplied: nobody listens" in row(trail.rows, "failed").detail
    assert "to undo step 0" in trail.rows[7].detail
    assert "undone: pay at step 0" in trail.rows[-1].detail
    assert trail.verification is not None
    assert trail.verification.holds, trail.verification.findings


async def test_a_run_that_moves_keeps_one_chain(deployment: Spine, client: Client) -> None:
    GATE.clear()
    first = await deployment.host()
    run_id = await deployment.submit(held, "17")
    await until(lambda: steps_of(client, run_id, 2), "its first step")
    found = await client.verify_trail(run_id)
    assert found.holds
    assert found.notes == ["no owner has anchored the head: a tail that was cut off would not be seen"]
    assert await deployment.lose(first) == 1
    second = await deployment.host()
    await deployment.state(run_id, RunState.RUNNING)
    GATE.set()
    await deployment.end(run_id)
    trail = await client.trail(run_id, verify=True)
    assert words(trail.rows) == ["asked", "started", "permitted", "intent", "applied", "called", "ended: succeeded"]
    assert row(trail.rows, "started").detail == f"version 1, moved to another host once, last to {second.host}"
    assert trail.verification is not None
    assert trail.verification.holds
    assert (trail.verification.chained, trail.verification.notes) == (3, [])


async def steps_of(client: Client, run_id: str, count: int) -> bool:
    return (await client.verify_trail(run_id)).entries == count


async def test_a_waiting_run_that_is_cancelled_was_ended_by_the_store(
    deployment: Spine, client: Client, hands: Hands
) -> None:
    host = await deployment.host()
    run_id = await deployment.submit(sleeping, "17")
    await deployment.waits(run_id)
    found = await client.verify_trail(run_id)
    assert found.holds
    assert (found.sealed_by, found.notes) == ("", [])
    await deployment.cancel(run_id, "asked by kim")
    trail = await client.trail(run_id, verify=True)
    assert row(trail.rows, "started").by == f"host {host.host}"
    assert (trail.rows[-1].what, trail.rows[-1].by) == ("ended: cancelled", "the store")
    assert trail.verification is not None
    assert trail.verification.holds
    assert trail.verification.sealed_by == "nobody"
    assert trail.verification.notes == ["ended by the store (cancelled: asked by kim): no owner has sealed its end"]
    hands.cut(run_id)
    assert broken(await client.verify_trail(run_id)) == [("cut_off", None)]


async def test_a_run_that_was_never_started_was_ended_by_the_store(deployment: Spine, client: Client) -> None:
    run_id = await deployment.submit(paying, "17")
    await deployment.cancel(run_id)
    trail = await client.trail(run_id, verify=True)
    assert words(trail.rows) == ["asked", "ended: cancelled"]
    assert trail.verification is not None
    assert trail.verification.holds
    assert trail.verification.sealed_by == "nobody"


async def test_what_was_not_permitted(deployment: Spine, client: Client) -> None:
    await deployment.host()
    run_id = await deployment.submit(overreaching, "17")
    await deployment.end(run_id)
    trail = await client.trail(run_id, verify=True)
    assert words(trail.rows) == ["asked", "started", "denied", "ended: failed"]
    denied = row(trail.rows, "denied")
    assert denied.by.startswith("rule ")
    assert denied.detail.startswith("transfer; NotPermitted: ")
    assert trail.verification is not None
    assert trail.verification.holds


async def test_who_approved_what(redis_url: str) -> None:
    async with spine(redis_url, sender, tools=[send], **keys_setting()) as deployment, client_of(deployment) as client:
        await deployment.host()
        sent, refused = [await deployment.submit(sender, order, grants=("write",)) for order in ("o-1", "o-2")]
        await client.approve((await asked(client, sent)).id, reason="fine")
        await client.deny((await asked(client, refused)).id, reason="too much", by="bob")
        for run_id in (sent, refused):
            await deployment.end(run_id)
        trail = await client.trail(sent, verify=True)
        assert words(trail.rows)[2:] == [
            "approval asked", "approved", "permitted", "intent", "applied", "ended: succeeded",
        ]  # fmt: skip
        approved, intent = row(trail.rows, "approved"), row(trail.rows, "intent")
        assert approved.by == "alice"
        assert approved.detail.endswith("; fine")
        number = approved.facts["payload"]["approval"]
        assert f"approval {number}" in row(trail.rows, "approval asked").detail
        assert f"approval {number}" in intent.detail
        assert trail.verification is not None
        assert trail.verification.holds, trail.verification.findings
        trail = await client.trail(refused, verify=True)
        assert words(trail.rows)[2:] == ["approval asked", "refused", "ended: succeeded"]
        assert row(trail.rows, "refused").by == "bob"
        assert "too much" in row(trail.rows, "refused").detail
        assert trail.verification is not None
        assert trail.verification.holds, trail.verification.findings


# Checkpoints


async def test_a_checkpoint_drops_the_past_of_a_run_without_effects(
    deployment: Spine, client: Client, hands: Hands
) -> None:
    await deployment.host()
    run_id = await deployment.submit(long, False)
    await deployment.end(run_id)
    assert hands.archive(run_id) == []
    trail = await client.trail(run_id, verify=True)
    assert words(trail.rows) == ["asked", "started", "checkpoint", "called", "ended: succeeded"]
    assert row(trail.rows, "checkpoint").detail == "number 3; 2 entries before it were dropped"
    found = trail.verification
    assert found is not None
    assert found.holds
    assert found.notes == ["checkpoint 3 has dropped 2 entries before it: proved from there on"]
    entries = hands.journal(run_id)
    checkpoint = decode_entry(entries[0])
    hands.set_entry(run_id, 0, encode_entry(msgspec.structs.replace(checkpoint, payload=b"2")))
    assert not (await client.verify_trail(run_id)).holds
    hands.set_entry(run_id, 0, entries[0])
    hands.set(run_id, job=hands.get(run_id, "job") + b" ")
    assert broken(await client.verify_trail(run_id)) == [("outcome_changed", None)]


async def test_a_checkpoint_keeps_the_past_of_a_run_with_effects(
    deployment: Spine, client: Client, hands: Hands
) -> None:
    await deployment.host()
    run_id = await deployment.submit(long, True)
    await deployment.end(run_id)
    archive = hands.archive(run_id)
    trail = await client.trail(run_id, verify=True)
    assert words(trail.rows)[2:-1] == [
        "checkpoint", "called", "permitted", "intent", "applied", "checkpoint", "called", "checkpoint", "called",
    ]  # fmt: skip
    found = trail.verification
    assert found is not None
    assert found.holds, found.findings
    assert found.notes == ["checkpoint 1 has dropped 1 entry before it: proved from there on"]
    for tampered in (archive[1:], archive[:-1], [], [archive[1], archive[0], *archive[2:]], [*archive, archive[-1]]):
        hands.rewrite(run_id, tampered, archive=True)
        assert not (await client.verify_trail(run_id)).holds
    hands.rewrite(run_id, [], archive=True)
    assert broken(await client.verify_trail(run_id)) == [("missing", 0)]
    hands.rewrite(run_id, archive, archive=True)
    assert (await client.verify_trail(run_id)).holds


async def test_a_run_that_moves_after_a_kept_checkpoint_goes_on_keeping(
    deployment: Spine, client: Client, hands: Hands
) -> None:
    """The next owner has never seen the effect: the checkpoint tells it."""
    await deployment.host()
    run_id = await deployment.submit(long, True)
    await deployment.end(run_id)
    marks = [decode_entry(raw) for raw in [*hands.archive(run_id), *hands.journal(run_id)]]
    kept = [b'"kept":true' in each.facts for each in marks if each.kind == Kind.CHECKPOINT]
    assert kept == [False, True, True]


# Hands in the store


def _changed(hands: Hands, run_id: str) -> None:
    entry = decode_entry(hands.journal(run_id)[0])
    hands.set_entry(run_id, 0, encode_entry(msgspec.structs.replace(entry, payload=b'"order 18"')))


def _receipt(hands: Hands, run_id: str) -> None:
    entry = decode_entry(hands.journal(run_id)[-1])
    facts = encode_receipt(Receipt("not_applied"))
    hands.set_entry(run_id, -1, encode_entry(msgspec.structs.replace(entry, facts=facts)))


def _removed(hands: Hands, run_id: str) -> None:
    hands.remove_entry(run_id, hands.journal(run_id)[2])


def _inserted(hands: Hands, run_id: str) -> None:
    entries = hands.journal(run_id)
    hands.insert_entry(run_id, entries[2], entries[0])


def _swapped(hands: Hands, run_id: str) -> None:
    entries = hands.journal(run_id)
    hands.set_entry(run_id, 0, entries[1])
    hands.set_entry(run_id, 1, entries[0])


TAMPERINGS: dict[str, tuple[Callable[[Hands, str], Any], str, int | None]] = {
    "an entry": (_changed, "changed", 0),
    "a receipt": (_receipt, "changed", 3),
    "an entry removed": (_removed, "changed", 2),
    "an entry inserted": (_inserted, "inserted", 2),
    "entries swapped": (_swapped, "moved", 0),
    "the tail": (lambda hands, run_id: hands.cut(run_id), "cut_off", None),
    "the whole journal": (lambda hands, run_id: hands.cut(run_id, 4), "cut_off", None),
    "the state": (lambda hands, run_id: hands.set(run_id, state="failed"), "outcome_changed", None),
    "the output": (lambda hands, run_id: hands.set(run_id, output='"receipt for 18"'), "outcome_changed", None),
    "the error": (lambda hands, run_id: hands.set(run_id, error="{}"), "outcome_changed", None),
    "the reason": (lambda hands, run_id: hands.set(run_id, reason="because"), "outcome_changed", None),
    "the agent": (lambda hands, run_id: hands.set(run_id, agent="mailing"), "outcome_changed", None),
    "the batch": (lambda hands, run_id: hands.set(run_id, batch="other"), "outcome_changed", None),
    "the seal": (lambda hands, run_id: hands.set(run_id, end_seal="00" * 16), "outcome_changed", None),
    "the seal removed": (lambda hands, run_id: hands.remove(run_id, "end_seal"), "seal_missing", None),
    "the head": (lambda hands, run_id: hands.set(run_id, head="00" * 16), "cut_off", None),
    "the head removed": (lambda hands, run_id: hands.remove(run_id, "head"), "outcome_changed", None),
    "head and seal removed": (lambda hands, run_id: hands.remove(run_id, "head", "end_seal"), "seal_missing", None),
    "the job": (lambda hands, run_id: hands.set(run_id, job=hands.get(run_id, "job") + b"\xc0"), "changed", 0),
}


@pytest.mark.parametrize("what", TAMPERINGS)
async def test_hands_in_the_store_are_found(deployment: Spine, client: Client, hands: Hands, what: str) -> None:
    await deployment.host()
    run_id = await deployment.submit(paying, "17")
    await deployment.end(run_id)
    assert (await client.verify_trail(run_id)).holds
    act, finding, place = TAMPERINGS[what]
    act(hands, run_id)
    found = await client.verify_trail(run_id)
    assert not found.holds
    assert broken(found)[0] == (finding, place), found.findings
    # Whatever was done: the trail itself can still be read.
    assert (await client.trail(run_id)).rows


async def test_a_waiting_run_has_its_head_anchored(deployment: Spine, client: Client, hands: Hands) -> None:
    await deployment.host()
    run_id = await deployment.submit(sleeping, "17")
    await deployment.waits(run_id)
    assert (await client.verify_trail(run_id)).holds
    hands.cut(run_id)
    assert broken(await client.verify_trail(run_id)) == [("cut_off", None)]


async def test_a_record_that_cannot_be_read_is_said(deployment: Spine, client: Client, hands: Hands) -> None:
    await deployment.host()
    run_id = await deployment.submit(paying, "17")
    await deployment.end(run_id)
    hands.set(run_id, state="gone")
    with pytest.raises(DamagedRecord, match="'gone'"):
        await client.verify_trail(run_id)
    for missing in ("00-0123456789abcdef01234567", "ff-0123456789abcdef01234567", "nonsense"):
        with pytest.raises(NoSuchRun):
            await client.trail(missing)


async def test_a_job_and_entries_that_cannot_be_read_are_told(deployment: Spine, client: Client, hands: Hands) -> None:
    await deployment.host()
    run_id = await deployment.submit(paying, "17")
    await deployment.end(run_id)
    hands.set(run_id, job=b"\x93", error=b"[")
    hands.set_entry(run_id, 1, b"nonsense")
    entry = decode_entry(hands.journal(run_id)[2])
    odd = msgspec.structs.replace(entry, facts=b"[1", payload=b"{", ended_ms=2**62)
    hands.set_entry(run_id, 2, encode_entry(odd))
    rows = (await client.trail(run_id)).rows
    assert rows[0].detail == "the job cannot be read"
    assert "unreadable" in words(rows)
    assert moment(2**62) == str(2**62)


async def test_an_anchor_that_is_kept_elsewhere(deployment: Spine, client: Client, hands: Hands) -> None:
    await deployment.host()
    run_id = await deployment.submit(sleeping, "17")
    await deployment.waits(run_id)
    before = (await client.verify_trail(run_id)).anchor
    await deployment.cancel(run_id)
    found = await client.verify_trail(run_id, kept=before)
    assert found.holds
    after = found.anchor
    assert after != before
    assert (await client.verify_trail(run_id, kept=after)).holds
    # Nobody has sealed this end: in the store it can be changed, and only the anchor knows.
    hands.set(run_id, reason="nobody knows")
    assert (await client.verify_trail(run_id, kept=before)).holds
    found = await client.verify_trail(run_id, kept=after)
    assert broken(found) == [("anchor_not_found", None)]


async def test_what_a_person_said_of_an_unknown_effect(deployment: Spine, client: Client) -> None:
    await deployment.host()
    run_id = await deployment.submit(mailing, "17")
    await deployment.end(run_id)
    before = (await client.verify_trail(run_id)).anchor
    await client.resolve(run_id, "1", applied=True, evidence={"letter": 3}, result="sent", by="kim", why="I saw it")
    await deployment.state(run_id, RunState.SUCCEEDED)
    trail = await client.trail(run_id, verify=True, kept=before)
    assert words(trail.rows)[3:] == ["permitted", "intent", "resolved", "applied", "ended: succeeded"]
    resolved, applied = trail.rows[5:7]
    assert resolved.by == applied.by == "person kim"
    assert resolved.detail == 'mail: applied; I saw it; evidence {"letter": 3}'
    assert "why: I saw it" in applied.detail
    found = trail.verification
    assert found is not None
    assert found.holds
    assert found.notes == ["the anchor that was kept is in the chain, 2 entries before its end"]


async def test_a_fork_and_its_promotion(deployment: Spine, client: Client) -> None:
    await deployment.host()
    source = await deployment.submit(sleeping, "17")
    await deployment.waits(source)
    fork = (await client.fork(source, "1", why="another try", by="lee")).run_id
    await deployment.waits(fork)
    await client.promote(fork, why="it was better", by="kim")
    trail = await client.trail(fork, verify=True)
    assert words(trail.rows)[:2] == ["asked", "forked"]
    forked, promoted = row(trail.rows, "forked"), row(trail.rows, "promoted")
    assert (forked.by, forked.detail) == ("lee", f"from run {source} at step 1: another try")
    assert (promoted.by, promoted.detail) == ("kim", "it was better")
    assert trail.verification is not None
    assert trail.verification.holds, trail.verification.findings
    assert trail.verification.notes[-1] == f"forked from run {source}: its first entry is that run's"
    trail = await client.trail(source, verify=True)
    demoted = row(trail.rows, "demoted")
    assert (demoted.by, demoted.detail) == ("kim", f"run {fork} has the right to effects now; it was better")
    assert trail.verification is not None
    assert trail.verification.holds, trail.verification.findings


async def test_a_fork_that_was_made_by_hand_is_proved_against_its_source(
    deployment: Spine, client: Client, hands: Hands
) -> None:
    """Made by hand, as a fork that had been parted at step 2: one entry of its own job's chain, then its own."""
    await deployment.host()
    source, run_id = [await deployment.submit(paying, "17") for _ in range(2)]
    for each in (source, run_id):
        await deployment.end(each)
    theirs = hands.journal(source)
    fork = {
        "forked_from": source, "forked_at": "1", "forked_by": "kim", "forked_why": "another try",
        "forked_link": link_of(theirs[0]).hex(), "inherited": 1,
    }  # fmt: skip
    job = msgspec.msgpack.encode({"v": 1, "input": "17", **fork})
    link, entries = first_link(run_id, job), []
    for raw in [theirs[0], *hands.journal(run_id)[1:]]:
        entries.append(seal(link, raw))
        link = link_of(entries[-1])
    hands.rewrite(run_id, entries)
    hands.set(run_id, job=job, state="cancelled", end_seal="", head="")
    trail = await client.trail(run_id, verify=True)
    forked = row(trail.rows, "forked")
    assert (forked.by, forked.detail) == ("kim", f"from run {source} at step 1: another try")
    assert trail.verification is not None
    assert trail.verification.holds, trail.verification.findings
    assert trail.verification.notes[-1] == f"forked from run {source}: its first entry is that run's"
    hands.set_entry(source, 0, theirs[1])
    assert ("source_differs", None) in broken(await client.verify_trail(run_id))
    hands.set(source, state="gone")
    assert "cannot be read any more" in (await client.verify_trail(run_id)).notes[-1]


async def test_the_sync_client_has_trails(deployment: Spine) -> None:
    await deployment.host()
    run_id = await deployment.submit(paying, "17")
    await deployment.end(run_id)

    def ask() -> tuple[int, bool]:
        with SyncClient(settings=deployment.settings) as client:
            return len(client.trail(run_id).rows), client.verify_trail(run_id).holds

    assert await asyncio.to_thread(ask) == (8, True)


# Rows of entries that the hosts of these tests do not write


def told(*entries: Entry) -> list[TrailRow]:
    return list(Entries("00-0123456789abcdef01234567", "a@1").rows([encode_entry(each) for each in entries]))


def made(kind: Kind, status: Status, payload: bytes = b"", facts: bytes = b"", attempts: int = 1) -> Entry:
    return Entry(ENTRY_VERSION, kind, "3", "refund", b"d", status, payload, attempts, 1000, 1020, facts)


def test_what_permitted_and_who_approved_an_intent() -> None:
    facts = IntentFacts(
        key="k1", identity="i1", arguments=msgspec.Raw(b'["O-1","***"]'), business_key="refund:O-1",
        risk="irreversible", approval="a-9",
        permission={"decision": "approve", "rule": "refunds-over-50", "version": "7"},
    )  # fmt: skip
    permitted, intent = told(made(Kind.INTENT, Status.OPEN, facts=encode_facts(facts)))
    assert (permitted.what, permitted.by, permitted.detail) == (
        "permitted", "policy version 7", "approve by refunds-over-50",
    )  # fmt: skip
    assert intent.detail == ('refund("O-1", "***"), irreversible, key k1, business key refund:O-1, approval a-9')


@pytest.mark.parametrize(
    ("entry", "what", "by", "detail"),
    [
        (
            made(Kind.CALL, Status.OPEN, b'{"dependency":"bank","why":"limit"}'), "waited", "bank", "refund: limit",
        ),
        (
            made(Kind.CALL, Status.FAILED, encode_error("NotPermitted", "no grant", "3", "not_permitted", "rule 4")),
            "denied", "rule 4", "refund; NotPermitted: no grant (rule 4)",
        ),
        (
            made(Kind.CALL, Status.FAILED, encode_error("ApprovalDenied", "too much", "3", "approval_denied", "kim")),
            "refused", "kim", "refund; ApprovalDenied: too much (kim)",
        ),
        (
            made(Kind.CALL, Status.OK, b"1", encode_receipt(Receipt("applied", "reconcile", evidence=[1])), 2),
            "applied", "reconcile", "refund; 2 attempts; evidence [1]",
        ),
        (
            made(Kind.CALL, Status.OK, b"1", encode_receipt(Receipt("applied", "person kim", why="I saw it"))),
            "applied", "person kim", "refund; why: I saw it",
        ),
        (made(Kind.CALL, Status.OK, b"1", b'{"state":"simulated"}'), "simulated", "tool", "refund"),
        (
            made(Kind.APPROVAL, Status.OK, b'{"approval":"a-9","approved_by":["kim","lee"],"why":"fine"}'),
            "approved", "kim, lee", "refund; approval a-9; fine",
        ),
        (
            made(Kind.APPROVAL, Status.OPEN, b'{"id":"a-9","terms":{"needed":2},"shown":"[\\"O-1\\"]","rule":"big"}'),
            "approval asked", "rule big", 'refund; approval a-9; arguments ["O-1"]; 2 people needed',
        ),
        (
            made(Kind.APPROVAL, Status.FAILED, encode_error("Denied", "too much", "3", "approval_denied", "kim")),
            "refused", "kim", "refund; Denied: too much (kim)",
        ),
        (made(Kind.RESOLUTION, Status.OK, b'{"applied":true,"by":"kim"}'), "resolved", "person kim", "refund: applied"),
        (made(Kind.VALUE, Status.OK, b"0.5"), "value", "", "refund 0.5"),
        (made(Kind.ENDING, Status.OK, b"[]"), "ending", "", "refund; its effects are undone first"),
    ],
)  # fmt: skip
def test_each_kind_of_entry_is_told(entry: Entry, what: str, by: str, detail: str) -> None:
    (found,) = told(entry)
    assert (found.what, found.by, found.detail) == (what, by, detail)


def test_an_intent_that_was_withdrawn_is_no_wait() -> None:
    intent = made(Kind.INTENT, Status.OPEN, facts=encode_facts(IntentFacts("k", "i")))
    entries = Entries("00-0123456789abcdef01234567", "a@1")
    raws = [encode_entry(intent), encode_entry(made(Kind.CALL, Status.OPEN, b'{"why":"it is to end"}'))]
    rows = list(entries.rows(raws))
    assert rows[1].what == "withdrawn"
    assert rows[1].detail == "refund: it is to end; nothing was applied"
    assert entries.open_effects == []


def test_nothing_in_an_entry_breaks_the_trail() -> None:
    odd = [
        b"",
        b"null",
        b"[]",
        b"[1,2]",
        b'"text"',
        b"{}",
        b'{"a":',
        b"\xff\xfe",
        b'{"class":3}',
        b'{"by":{"x":1}}',
        b"1e400",
    ]
    for kind in [*Kind, "unheard of"]:
        for status in Status:
            for raw in odd:
                entry = Entry(ENTRY_VERSION, str(kind), "0", "n", b"", status.value, raw, 1, -5, 2**60, raw)
                assert told(entry), (kind, status, raw)
