"""What waits and what is over, against a real server: park, fire, children, bounds, retention."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from storehouse import (
    FAR_MS,
    Audit,
    append,
    brief,
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
from cluster.config import Retention
from cluster.lifecycle import RunState
from cluster.store import Store


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    async with opened(settings_for(redis_url)) as made:
        yield made
        Audit(made).check()


@pytest.fixture
async def rival(store: Store) -> AsyncIterator[Store]:
    """Another process: a connection of its own to the same deployment."""
    async with opened(store.settings) as made:
        yield made


# ------------------------------------------------------------------------------------------------ park, fire, children


async def test_a_parked_run_fires_once(store: Store) -> None:
    run = await one(store)
    due_ms = await store.server_ms() + 60
    for _ in range(2):
        assert await park(store, run, due_ms) is None
    record = await reader.record(store, run.id)
    assert record is not None
    assert (record.state, record.reason, record.due_ms) == (RunState.WAITING, "timer", due_ms)
    assert await store.owned(0, "h1") == set()
    fired, following, queued = await store.fire(0)
    assert (fired, queued) == (0, 0)
    assert following is not None
    assert 0 < following <= 60
    await asyncio.sleep(0.08)
    assert [await store.fire(0), await store.fire(0)] == [(1, None, 1), (0, None, 1)]
    assert await park(store, run, due_ms) == "STALE"
    again = (await claim(store, "h2"))[run.id]
    assert again.fence > run.fence
    assert await park(store, run, due_ms) == "STALE"


async def test_a_deadline_comes_before_a_later_timer(store: Store) -> None:
    run = await one(store, deadline="+50")
    await park(store, run, FAR_MS)
    Audit(store).check()
    await asyncio.sleep(0.06)
    assert (await store.fire(0))[0] == 1
    record = await reader.record(store, run.id)
    assert record is not None
    assert (record.state, record.reason) == (RunState.CANCELLED, "deadline_exceeded")


async def test_a_run_that_waits_for_a_child_alone_has_no_timer(store: Store) -> None:
    parent = await one(store)
    child = child_of(parent)
    await store.submit_child(child, parent=parent.id, fence=parent.fence)
    assert await park(store, parent, None, child.id, reason="child") is None
    assert await store.fire(0) == (0, None, 1)
    claimed = (await claim(store))[child.id]
    assert claimed.parent == parent.id
    assert await state_of(store, parent.id) == "waiting"
    await finish(store, claimed)
    assert await state_of(store, parent.id) == "queued"
    await finish(store, claimed)
    assert (await claim(store))[parent.id].fence == parent.fence + 1


async def test_a_child_that_ended_first_wakes_its_parent_at_once(store: Store) -> None:
    parent = await one(store)
    first, second = child_of(parent, "0"), child_of(parent, "1")
    for child in (first, second):
        await store.submit_child(child, parent=parent.id, fence=parent.fence)
    await finish(store, (await claim(store))[second.id])
    assert await park(store, parent, FAR_MS, first.id, second.id) is None
    assert await state_of(store, parent.id) == "queued"
    assert Audit(store).timer(parent.id) is None


async def test_a_running_parents_host_is_told_of_its_child(store: Store) -> None:
    parent = await one(store)
    child = child_of(parent)
    await store.submit_child(child, parent=parent.id, fence=parent.fence)
    claimed = (await claim(store, "h2"))[child.id]
    told = await next_message(store, store.keys.host_channel("h1"), lambda: finish(store, claimed, host="h2"))
    assert told == f"child {parent.id}"


async def test_no_wake_up_is_lost_between_parking_and_a_childs_end(store: Store, rival: Store) -> None:
    for number in range(30):
        parent = await one(store, custom_id=str(number))
        child = child_of(parent)
        await store.submit_child(child, parent=parent.id, fence=parent.fence)
        claimed = (await claim(rival, "h2"))[child.id]
        await asyncio.gather(park(store, parent, None, child.id), finish(rival, claimed, host="h2"))
        assert await state_of(store, parent.id) == "queued"
        assert parent.id in await claim(store)


async def test_a_cancelled_run_is_not_parked(store: Store) -> None:
    run = await one(store)
    await store.cancel(0, "cancelled", [run.id])
    assert await park(store, run, FAR_MS) == "CANCEL"
    assert await state_of(store, run.id) == "running"


async def test_firing_takes_no_more_than_asked(store: Store) -> None:
    for number in range(5):
        await park(store, await one(store, custom_id=str(number)), 1000 + number)
    assert await store.fire(0, 3) == (3, 0, 3)
    Audit(store).check()
    assert await store.fire(0, 3) == (2, None, 5)
    assert len(await claim(store)) == 5


async def test_queued_runs_end_at_their_bounds_though_nobody_claims_them(store: Store) -> None:
    late = new(store, "late", agent="rare", deadline="+30")
    impatient = new(store, "impatient", agent="rare", max_wait="30", deadline=f"+{10**9}")
    await submit(store, [late, impatient, new(store, "patient", agent="rare", max_wait="100000")])
    await store.claim(0, "h1", 1, ("echo", "1"))
    Audit(store).check()
    await asyncio.sleep(0.04)
    fired, following, queued = await store.fire(0)
    assert (fired, queued) == (2, 1)
    assert following is not None
    assert following > 50_000
    assert (await reader.batch_counts(store, "b")).by_state == {"cancelled": 1, "shed": 1, "queued": 1}
    assert [await state_of(store, run.id) for run in (late, impatient)] == ["cancelled", "shed"]


async def test_a_deadline_holds_in_the_queue_after_every_way_back_into_it(store: Store) -> None:
    released = await one(store, custom_id="released", deadline="+60")
    fired = await one(store, custom_id="fired", deadline="+60")
    await store.release(0, "h1", "drain", [(released.id, released.fence)])
    await park(store, fired, 1)
    assert (await store.fire(0))[0] == 1
    Audit(store).check()
    await asyncio.sleep(0.08)
    assert (await store.fire(0))[0] == 2
    assert (await reader.batch_counts(store, "b")).by_state == {"cancelled": 2}


async def test_no_script_ends_a_run_that_was_torn_from_its_host(store: Store) -> None:
    """Its host may have died inside an effect: whoever claims it looks, and then obeys."""
    late, unwanted = await one(store, custom_id="late", deadline="+60"), await one(store, custom_id="unwanted")
    await store.reap(0, "h1")
    assert await store.cancel(0, "enough", [unwanted.id]) == ["asked"]
    await asyncio.sleep(0.08)
    assert (await store.fire(0)).due == 0
    claims = await claim(store, "h2")
    assert claims.keys() == {late.id, unwanted.id}
    assert claims[unwanted.id].cancel == "enough"
    # A run that was parked has no open effect: from there on the scripts may end it again.
    assert await park(store, claims[late.id], 1, host="h2") is None
    Audit(store).check()
    assert (await store.fire(0)).due == 1
    assert await state_of(store, late.id) == "cancelled"


# ----------------------------------------------------------------------------------------------------------- retention


async def test_ends_are_kept_as_long_as_their_state_says(redis_url: str) -> None:
    retention = Retention(succeeded_s=100, failed_s=200, cancelled_s=300, shed_s=400)
    async with opened(settings_for(redis_url, retention=retention)) as store:
        runs = {name: await one(store, custom_id=name) for name in ("succeeded", "failed", "cancelled")}
        for name, run in runs.items():
            await append(store, run, 0, b"x")
            await finish(store, run, RunState(name))
        shed, dropped = new(store, "shed", max_wait="1"), new(store, "dropped")
        await submit(store, [shed, dropped])
        await store.cancel(0, "no", [dropped.id])
        await asyncio.sleep(0.01)
        await store.fire(0)
        kept = {run.custom_id: run.id for run in runs.values()} | {"shed": shed.id, "dropped": dropped.id}
        audit = Audit(store)
        wanted = {"succeeded": 100, "failed": 200, "cancelled": 300, "shed": 400, "dropped": 300}
        for name, run_id in kept.items():
            left_s = audit.ttl_ms["00"][f"run:{run_id}"] / 1000
            assert wanted[name] - 10 < left_s <= wanted[name], name
            journal_s = audit.ttl_ms["00"].get(f"journal:{run_id}", left_s * 1000) / 1000
            assert abs(journal_s - left_s) < 1
        assert 390 < audit.ttl_ms["00"]["batch:b"] / 1000 <= 400
        assert 390 < audit.ttl_ms["00"]["batch:b:runs"] / 1000 <= 400
        audit.check()


async def test_each_index_of_ends_is_trimmed_by_its_own_retention(redis_url: str) -> None:
    retention = Retention(succeeded_s=0.05, failed_s=100, cancelled_s=0.05, shed_s=100)
    async with opened(settings_for(redis_url, retention=retention)) as store:
        runs = {name: await one(store, custom_id=name) for name in ("succeeded", "failed", "cancelled")}
        for name, run in runs.items():
            await finish(store, run, RunState(name))
        await submit(store, [new(store, "shed", max_wait="1")])
        await asyncio.sleep(0.01)
        await store.fire(0)
        for name, run in runs.items():
            assert Audit(store).places(run.id) == {f"ended:{name}"}
        await asyncio.sleep(0.1)
        await store.fire(0)
        left = {name for name in Audit(store).sorted["00"] if name.startswith("ended")}
        assert left == {"ended:failed", "ended:shed"}
        assert await reader.run_ids(store, RunState.FAILED, 9) == [runs["failed"].id]
        assert await reader.run_ids(store, RunState.SUCCEEDED, 9) == []


async def test_a_batch_is_not_forgotten_while_one_of_its_runs_goes_on(redis_url: str) -> None:
    async with opened(settings_for(redis_url, retention=brief())) as store:
        sleeper, done = await one(store, custom_id="sleeper"), await one(store, custom_id="done")
        await park(store, sleeper, FAR_MS)
        await finish(store, done)
        await asyncio.sleep(0.1)
        assert await reader.record(store, done.id) is None
        assert (await reader.batch_counts(store, "b")).by_state == {"waiting": 1, "succeeded": 1}
        await store.cancel(0, "over", [sleeper.id])
        await submit(store, [new(store, "more")])
        await asyncio.sleep(0.1)
        counts = await reader.batch_counts(store, "b")
        assert (counts.total, counts.by_state) == (3, {"queued": 1, "succeeded": 1, "cancelled": 1})


async def test_nothing_stays_behind_for_ever(redis_url: str) -> None:
    async with opened(settings_for(redis_url, retention=brief())) as store:
        parent = await one(store, deadline=f"+{10**9}")
        child = child_of(parent)
        await store.submit_child(child, parent=parent.id, fence=parent.fence)
        await append(store, parent, 0, b"x")
        await park(store, parent, None, child.id)
        await finish(store, (await claim(store))[child.id])
        await finish(store, (await claim(store))[parent.id])
        rare = [new(store, "rare", agent="rare"), new(store, "rarer", agent="rarer", max_wait="20")]
        await submit(store, rare)
        await claim(store)
        await store.cancel(0, "no", [rare[0].id])
        await asyncio.sleep(0.1)
        await store.fire(0)
        await asyncio.sleep(0.1)
        await store.fire(0)
        audit = Audit(store)
        assert set(audit.ttl_ms["00"]) == {"counts", "load", "fair"}
        assert audit.counts["00"]["counts"]["succeeded"] == 2
