"""Reading for people: records, journals, counts, listings, over partitions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from storehouse import FAR_MS, append, claim, finish, new, opened, park, settings_for, submit

from cluster import reader
from cluster.keys import partition_of
from cluster.lifecycle import RunState
from cluster.store import Store


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    async with opened(settings_for(redis_url, partitions=4)) as made:
        yield made


async def test_a_record_is_read_back_whole(store: Store) -> None:
    run = new(store, "é", deadline=str(FAR_MS), job=b"\x00\xff", agent="echo")
    await submit(store, [run])
    queued = await reader.record(store, run.id)
    assert queued is not None
    assert (queued.id, queued.custom_id, queued.batch, queued.job) == (run.id, "é", "b", b"\x00\xff")
    assert (queued.deadline_ms, queued.started_ms, queued.ended_ms, queued.due_ms) == (FAR_MS, None, None, None)
    assert (queued.host, queued.pinned, queued.parent, queued.cancel, queued.migrations) == ("", "", "", "", 0)
    claimed = (await claim(store))[run.id]
    await append(store, claimed, 0, b"one", b"\xff\x00")
    assert await reader.journal(store, run.id) == [b"one", b"\xff\x00"]
    await finish(store, claimed, RunState.FAILED, reason="r", output=b"\x00", error=b"\xff")
    ended = await reader.record(store, run.id)
    assert ended is not None
    assert (ended.state, ended.reason, ended.output, ended.error) == (RunState.FAILED, "r", b"\x00", b"\xff")
    assert ended.accepted_ms <= (ended.started_ms or 0) <= (ended.ended_ms or 0) == ended.since_ms


async def test_what_is_not_there(store: Store) -> None:
    missing = "03-0123456789abcdef01234567"
    assert await reader.record(store, missing) is None
    assert await reader.journal(store, missing) == []
    assert await reader.place(store, missing) is None
    assert await reader.records(store, [missing, missing]) == []
    with pytest.raises(ValueError, match="partition that this deployment does not have"):
        await reader.record(store, "04-0123456789abcdef01234567")
    with pytest.raises(ValueError, match="is no run id"):
        await reader.record(store, "nonsense")
    counts = await reader.batch_counts(store, "nothing")
    assert (counts.total, counts.by_state, counts.steps) == (0, {}, 0)
    assert [page async for page in reader.batch_run_ids(store, "nothing")] == []
    assert await reader.batches(store) == []
    assert await reader.catalog(store) == {}


async def test_records_keep_the_order_that_was_asked_for(store: Store) -> None:
    runs = [new(store, str(number)) for number in range(40)]
    await submit(store, runs)
    wanted = [run.id for run in runs[::-1]]
    assert [record.id for record in await reader.records(store, wanted)] == wanted


async def test_a_batch_is_listed_in_pages(store: Store) -> None:
    runs = [new(store, str(number)) for number in range(2500)]
    await submit(store, runs)
    pages = [page async for page in reader.batch_run_ids(store, "b")]
    assert max(len(page) for page in pages) == reader.PAGE
    listed = [run_id for page in pages for run_id in page]
    assert len(listed) == len(set(listed)) == 2500
    by_partition = [[run.id for run in runs if partition_of(run.id) == number] for number in range(4)]
    assert listed == [run_id for ids in by_partition for run_id in ids]


async def test_places_in_the_queue_are_counted_from_its_head(store: Store) -> None:
    runs = [new(store, str(number)) for number in range(30)]
    await submit(store, runs)
    for partition in range(4):
        mine = [run.id for run in runs if partition_of(run.id) == partition]
        assert [await reader.place(store, run_id) for run_id in mine] == list(range(len(mine)))


async def test_counts_are_sums_over_partitions(store: Store) -> None:
    await submit(store, [new(store, str(number)) for number in range(60)])
    await submit(store, [new(store, str(number), batch="other") for number in range(5)], batch="other")
    claims = list((await claim(store)).values())
    for run in [run for run in claims if run.batch == "b"][:20]:
        await append(store, run, 0, b"x", b"y")
        await finish(store, run)
    await store.reap(partition_of(claims[-1].id), "h1")
    counts = await reader.batch_counts(store, "b")
    assert counts.total == sum(counts.by_state.values()) == 60
    assert counts.by_state["succeeded"] == 20
    assert counts.steps == 40
    whole = await reader.deployment_counts(store)
    assert whole.total == 65
    assert whole.migrations == counts.migrations + (await reader.batch_counts(store, "other")).migrations > 0


async def test_runs_are_found_by_their_state(store: Store) -> None:
    await store.heartbeat("h1", "{}")
    await submit(store, [new(store, str(number)) for number in range(24)])
    claims = list((await claim(store)).values())
    for run in claims[:4]:
        await finish(store, run)
    for run in claims[4:8]:
        await park(store, run, FAR_MS)
    for run in claims[8:12]:
        await finish(store, run, RunState.CONFIRMATION_UNKNOWN)
    for run in claims[12:16]:
        await store.release(partition_of(run.id), "h1", "drain", [(run.id, run.fence)])
    await submit(store, [new(store, f"rare{number}", agent="rare") for number in range(4)])
    await store.claim(0, "h2", 100, ("other", "1"))
    wanted = {
        RunState.SUCCEEDED: {run.id for run in claims[:4]},
        RunState.WAITING: {run.id for run in claims[4:8]},
        RunState.CONFIRMATION_UNKNOWN: {run.id for run in claims[8:12]},
        RunState.RUNNING: {run.id for run in claims[16:]},
    }
    for state, ids in wanted.items():
        assert set(await reader.run_ids(store, state, 100)) == ids
    assert len(set(await reader.run_ids(store, RunState.QUEUED, 100))) == 8
    assert len(set(await reader.run_ids(store, None, 100))) == 28
    assert len(await reader.run_ids(store, RunState.RUNNING, 1)) <= 4


async def test_a_rare_end_is_found_below_many_others(store: Store) -> None:
    await submit(store, [new(store, str(number)) for number in range(120)])
    claims = list((await claim(store)).values())
    ends = {RunState.FAILED: claims[:3], RunState.CANCELLED: claims[3:5], RunState.SUCCEEDED: claims[5:]}
    for state, ended in ends.items():
        for run in ended:
            await finish(store, run, state)
    shed = [new(store, f"shed{number}", max_wait="1") for number in range(4)]
    await submit(store, shed)
    await asyncio.sleep(0.01)
    for partition in store.partitions:
        await store.fire(partition)
    for state, ended in ends.items():
        assert set(await reader.run_ids(store, state, 100)) == {run.id for run in ended}
    assert set(await reader.run_ids(store, RunState.SHED, 100)) == {run.id for run in shed}
    found = await reader.run_ids(store, RunState.SUCCEEDED, 2)
    assert [sum(partition_of(run_id) == each for run_id in found) for each in store.partitions] == [2] * 4
    assert len(await reader.run_ids(store, None, 200)) == 124


async def test_the_newest_batch_comes_first(store: Store) -> None:
    for number, batch in enumerate(("old", "young", "middle")):
        await store.note_batch(batch, [1, 3, 2][number])
    await store.note_batch("old", 99)
    assert await reader.batches(store) == ["young", "middle", "old"]
    assert await reader.batches(store, 1) == ["young"]


async def test_batches_that_are_forgotten_leave_the_index(store: Store) -> None:
    for number in range(5):
        await store.note_batch(f"forgotten{number}", number)
    await submit(store, [new(store, batch="kept")], batch="kept")
    await store.note_batch("kept", 5)
    for number in range(4):
        await store.note_batch(f"young{number}", 10**12 + number)
    assert await reader.batches(store) == ["young3", "young2", "young1", "young0", "kept"]
