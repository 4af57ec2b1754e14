"""Runs whose effect nobody could prove go on once somebody has said how it was: the script, against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from storehouse import (
    FAR_MS,
    MISSING,
    Audit,
    append,
    child_of,
    claim,
    finish,
    new,
    next_message,
    one,
    opened,
    park,
    settings_for,
    state_of,
    submit,
)

from cluster import reader
from cluster.lifecycle import RunState
from cluster.records import Claim, RunRecord
from cluster.settling import resolve, unknown_run_ids
from cluster.store import Store
from penstock.views import batch_status

UNKNOWN = RunState.CONFIRMATION_UNKNOWN


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    async with opened(settings_for(redis_url)) as made:
        yield made
        Audit(made).check()


async def unknown(store: Store, custom_id: str = "a", **fields: str) -> Claim:
    """A run with one entry whose effect nobody can prove."""
    run = await one(store, custom_id=custom_id, **fields)
    assert await append(store, run, 0, b"intent", finished=0) is None
    assert await finish(store, run, UNKNOWN, reason="effect x at step 0", error=b"error") is None
    return run


async def record_of(store: Store, run: Claim) -> RunRecord:
    record = await reader.record(store, run.id)
    assert record is not None
    return record


async def settle(store: Store, run: Claim, entry: bytes = b"said", *, length: int = 1) -> str:
    """Resolves a run as somebody does who has just read it."""
    return await resolve(store, run.id, (await record_of(store, run)).version, length, entry, "resolved by ann")


async def test_a_resolved_run_is_queued_at_its_place_with_what_was_said(store: Store) -> None:
    run, after = await unknown(store), await one(store, custom_id="later")
    await store.release(0, "h1", "drain", [(after.id, None)])
    before = await record_of(store, run)
    assert await settle(store, run) == "OK"
    record = await record_of(store, run)
    assert (record.state, record.version, record.reason) == (RunState.QUEUED, before.version + 1, "resolved by ann")
    assert (record.error, record.fence) == (b"", before.fence)
    assert await reader.journal(store, run.id) == [b"intent", b"said"]
    assert await reader.place(store, run.id) == 0
    audit = Audit(store)
    assert audit.places(run.id) == {"queue"}
    assert (await reader.batch_counts(store, "b")).by_state == {"queued": 2}
    found = (await claim(store, "h2", most=1))[run.id]
    assert (found.fence, found.journal, found.cancel) == (before.fence + 1, [b"intent", b"said"], "")


async def test_the_same_word_twice_is_taken_once(store: Store) -> None:
    run = await unknown(store)
    version = (await record_of(store, run)).version
    for _ in range(3):
        assert await resolve(store, run.id, version, 1, b"said", "why") == "OK"
    assert await resolve(store, run.id, version, 1, b"other", "why") == "state"
    await claim(store, "h2")
    # Also when the run has gone on meanwhile.
    assert await resolve(store, run.id, version, 1, b"said", "why") == "OK"
    assert await reader.journal(store, run.id) == [b"intent", b"said"]
    assert (await record_of(store, run)).state is RunState.RUNNING


async def test_to_look_once_more_adds_no_entry(store: Store) -> None:
    run = await unknown(store)
    assert await settle(store, run, b"") == "OK"
    assert await reader.journal(store, run.id) == [b"intent"]
    found = (await claim(store, "h2"))[run.id]
    assert await finish(store, found, UNKNOWN, host="h2") is None
    assert await settle(store, found, b"") == "OK"


async def test_of_many_at_once_one_is_first(store: Store) -> None:
    run = await unknown(store)
    words = await asyncio.gather(*(settle(store, run, b"said by %d" % person) for person in range(8)))
    assert sorted(words) == ["OK", *["state"] * 7]
    journal = await reader.journal(store, run.id)
    assert journal == [b"intent", b"said by %d" % words.index("OK")]


async def test_what_was_said_of_an_earlier_state_is_not_taken(store: Store) -> None:
    run = await unknown(store)
    seen = (await record_of(store, run)).version
    assert await settle(store, run, b"") == "OK"
    again = (await claim(store, "h2"))[run.id]
    await finish(store, again, UNKNOWN, host="h2")
    assert await resolve(store, run.id, seen, 1, b"late", "why") == "moved"
    assert await reader.journal(store, run.id) == [b"intent"]


async def test_what_cannot_be_resolved(store: Store) -> None:
    running, over, effect = await one(store, custom_id="1"), await one(store, custom_id="2"), await unknown(store)
    await finish(store, over)
    assert await settle(store, running, length=0) == "state"
    assert await settle(store, over, length=0) == "state"
    assert await settle(store, effect, length=0) == "journal"
    assert await settle(store, effect, length=2) == "journal"
    assert await resolve(store, MISSING, 3, 1, b"said", "why") == "missing"
    assert Audit(store).places(effect.id) == {"unknown"}


async def test_a_batch_that_was_over_goes_on(store: Store) -> None:
    run, other = await unknown(store), await one(store, custom_id="other")
    await finish(store, other)
    assert batch_status("b", await reader.batch_counts(store, "b")).settled
    # As if it had been about to be forgotten.
    for key in ("batch:b", "batch:b:runs"):
        await store.command(store.keys.of(0, key), "PEXPIRE", store.keys.of(0, key), 60_000)
    assert await settle(store, run) == "OK"
    status = batch_status("b", await reader.batch_counts(store, "b"))
    assert (status.settled, status.terminal, status.by_state) == (False, False, {"succeeded": 1, "queued": 1})
    audit = Audit(store)
    assert (audit.ttl_ms["00"]["batch:b"], audit.ttl_ms["00"]["batch:b:runs"]) == (-1, -1)
    await finish(store, (await claim(store, "h2"))[run.id], host="h2")
    assert batch_status("b", await reader.batch_counts(store, "b")).terminal
    assert Audit(store).ttl_ms["00"]["batch:b"] > 0


async def test_hosts_are_told_that_there_is_something_to_claim(store: Store) -> None:
    run = await unknown(store)
    assert await next_message(store, store.keys.wake_channel, lambda: settle(store, run)) == "00 249"


async def test_no_script_ends_it_for_its_deadline_before_its_host_has_settled_the_effect(store: Store) -> None:
    run = await unknown(store, deadline="+30")
    await asyncio.sleep(0.05)
    assert (await store.fire(0)).due == 0
    assert await settle(store, run) == "OK"
    Audit(store).check()
    assert (await store.fire(0)).due == 0
    found = (await claim(store, "h2"))[run.id]
    assert found.deadline_ms is not None
    assert found.deadline_ms < await store.server_ms()


async def test_a_deadline_that_passes_while_it_is_queued_waits_for_its_host_as_well(store: Store) -> None:
    run = await unknown(store, deadline="+60")
    assert await settle(store, run) == "OK"
    await asyncio.sleep(0.08)
    await store.fire(0)
    assert run.id in await claim(store, "h2")


async def test_what_is_cancelled_meanwhile_is_ended_by_its_host(store: Store) -> None:
    before, after = await unknown(store, "before"), await unknown(store, "after")
    assert await store.cancel(0, "enough", [before.id]) == ["unknown"]
    assert await settle(store, before) == "OK"
    assert await settle(store, after) == "OK"
    assert await store.cancel(0, "enough", [after.id, before.id]) == ["asked", "asked"]
    claims = await claim(store, "h2")
    assert {claims[run.id].cancel for run in (before, after)} == {"enough"}


async def test_a_parent_that_ended_meanwhile_takes_it_along(store: Store) -> None:
    parent = await one(store)
    child = child_of(parent)
    assert await store.submit_child(child, parent=parent.id, fence=parent.fence)
    run = (await claim(store, "h2"))[child.id]
    await finish(store, run, UNKNOWN, host="h2")
    await finish(store, parent, RunState.FAILED)
    assert await state_of(store, run.id) == "confirmation_unknown"
    assert await settle(store, run, length=0) == "OK"
    assert (await claim(store, "h2"))[run.id].cancel == "parent ended"


async def test_a_waiting_parent_is_woken_by_the_end_and_not_by_the_word(store: Store) -> None:
    parent = await one(store)
    child = child_of(parent)
    assert await store.submit_child(child, parent=parent.id, fence=parent.fence)
    run = (await claim(store, "h2"))[child.id]
    assert await park(store, parent, None, child.id) is None
    await finish(store, run, UNKNOWN, host="h2")
    assert await settle(store, run, length=0) == "OK"
    assert await state_of(store, parent.id) == "waiting"
    await finish(store, (await claim(store, "h2"))[run.id], host="h2")
    assert await state_of(store, parent.id) == "queued"


async def test_its_own_children_have_gone_on(store: Store) -> None:
    parent = await one(store)
    children = [child_of(parent, step) for step in "01"]
    for child in children:
        assert await store.submit_child(child, parent=parent.id, fence=parent.fence)
    claims = await claim(store, "h2")
    await finish(store, claims[children[0].id], host="h2")
    await finish(store, parent, UNKNOWN)
    await finish(store, claims[children[1].id], host="h2")
    assert await settle(store, parent, length=0) == "OK"
    found = (await claim(store, "h1"))[parent.id]
    # Both have ended: a run that waits for them is queued at once.
    assert await park(store, found, None, *(child.id for child in children)) is None
    assert await state_of(store, parent.id) == "queued"


async def test_a_late_owner_can_write_nothing(store: Store) -> None:
    run = await unknown(store)
    assert await settle(store, run) == "OK"
    for _ in range(2):
        assert await append(store, run, 2, b"late") == "STALE"
        assert await finish(store, run, UNKNOWN) == "STALE"
        await claim(store, "h2")
    assert await reader.journal(store, run.id) == [b"intent", b"said"]


async def test_hosts_that_died_under_it_are_forgotten(store: Store) -> None:
    run = await one(store)
    assert await append(store, run, 0, b"intent", finished=0) is None
    for number in range(2, 5):
        await store.reap(0, f"h{number - 1}")
        run = (await claim(store, f"h{number}"))[run.id]
    assert run.losses == 3
    assert await finish(store, run, UNKNOWN, host="h4") is None
    assert await settle(store, run, b"") == "OK"
    assert (await claim(store, "h5"))[run.id].losses == 0


async def test_it_goes_to_a_host_that_serves_its_version(store: Store) -> None:
    run = await unknown(store)
    assert await settle(store, run) == "OK"
    assert await claim(store, "h2", served=("echo", "2")) == {}
    assert "echo@1" in (await record_of(store, run)).reason
    assert run.id in await claim(store, "h3")


async def test_parking_mends_it(store: Store) -> None:
    """Once its owner has gone on, its deadline is a matter of timers again."""
    run = await unknown(store, deadline=str(FAR_MS))
    assert await settle(store, run) == "OK"
    found = (await claim(store, "h2"))[run.id]
    assert await park(store, found, None, host="h2") is None
    assert Audit(store).timer(run.id) == FAR_MS


async def test_all_unknown_runs_are_found_the_oldest_first(redis_url: str) -> None:
    async with opened(settings_for(redis_url, partitions=4)) as store:
        runs = [new(store, f"{number}") for number in range(40)]
        await submit(store, runs)
        claims = await claim(store)
        for each in list(claims.values())[:25]:
            await finish(store, each, UNKNOWN)
        found = [run_id async for page in unknown_run_ids(store) for run_id in page]
        assert sorted(found) == sorted(list(claims)[:25])
