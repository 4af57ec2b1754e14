"""Forks and promotions against a real server: what is made, who may append intents, what is refused and forgotten."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from family import call, chained, child_of, effect, entry, fork_of, intent, is_chained, job
from storehouse import (
    FAR_MS,
    MISSING,
    Audit,
    append,
    brief,
    claim,
    finish,
    new,
    one,
    opened,
    park,
    settings_for,
    submit,
)

from actors.core.forking import START
from actors.job import decode_job
from actors.journal import Kind, Status, decode_entry, first_link
from cluster import lineage, reader
from cluster.keys import fork_run_id
from cluster.lifecycle import RunState
from cluster.records import Append, Claim, RunRecord
from cluster.store import Store


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    async with opened(settings_for(redis_url)) as made:
        yield made
        Audit(made).check()


async def started(store: Store, *entries: bytes, custom_id: str = "a") -> Claim:
    """A running run with a sealed journal."""
    run = await one(store, custom_id=custom_id, job=job())
    sealed = chained(first_link(run.id, run.job), entries)
    assert await append(store, run, 0, *sealed) is None
    return run


async def record(store: Store, run_id: str) -> RunRecord:
    found = await reader.record(store, run_id)
    assert found is not None
    return found


async def forked(store: Store, source: str, at: str, key: str = "k") -> str:
    run_id, answer = await fork_of(store, source, at, key)
    assert answer == 1
    return run_id


async def mine(store: Store, run_id: str, host: str = "h2") -> Claim:
    return (await claim(store, host))[run_id]


async def intend(store: Store, run: Claim, step: str = "9") -> str | None:
    """Tries to append an intent after what the run has."""
    length = len(await reader.journal(store, run.id))
    said = await store.append(0, [Append(run.id, run.fence, length, 0, [intent(step)], 1)])
    return said.get(run.id)


async def done(store: Store, run: Claim, step: str = "9") -> None:
    length = len(await reader.journal(store, run.id))
    assert await append(store, run, length, call(step, applied=True)) is None


async def entitled(store: Store, *run_ids: str) -> list[bool]:
    return [not (await record(store, run_id)).readonly for run_id in run_ids]


async def promoted(store: Store, run_id: str) -> tuple[str, ...]:
    answer = await lineage.promote(store, run_id, "ann", "because")
    assert answer.word == "promoted", answer
    return answer.more


# ---------------------------------------------------------------------------------------------------------------- forks


async def test_a_fork_begins_with_its_sources_past_and_the_source_is_not_touched(store: Store) -> None:
    run = await started(store, call("0"), *effect("1"), call("2"))
    before = await record(store, run.id), await reader.journal(store, run.id)
    fork = await forked(store, run.id, "2")
    assert (await record(store, run.id), await reader.journal(store, run.id)) == before
    found = await record(store, fork)
    assert fork[:2] == run.id[:2]
    assert (found.state, found.agent, found.pinned, found.readonly) == (RunState.QUEUED, "echo", "1", True)
    assert (found.lineage, found.inherited, found.parent, found.batch) == (run.id, 3, "", "")
    assert decode_job(found.job).forked_from == run.id
    taken = await mine(store, fork)
    assert taken.readonly
    assert not run.readonly
    assert [decode_entry(raw).step for raw in taken.journal] == ["0", "1", "1"]
    assert is_chained(first_link(fork, taken.job), taken.journal)
    assert (await record(store, fork)).started_ms is not None
    assert await lineage.branches(store, run.id) == sorted([run.id, fork])


async def test_the_same_fork_is_made_once(store: Store) -> None:
    run = await started(store, call("0"), call("1"))
    first = await forked(store, run.id, "1")
    assert await fork_of(store, run.id, "1", "k") == (first, 0)
    assert await fork_of(store, run.id, "0", "k") == (first, -1)
    assert await forked(store, run.id, "1", "other") != first
    assert len(await claim(store, "h2")) == 2


async def test_a_fork_at_the_start_has_no_past(store: Store) -> None:
    run = await started(store, call("0"))
    taken = await mine(store, await forked(store, run.id, START))
    assert taken.journal == []
    assert (await record(store, taken.id)).inherited == 0


async def test_a_fork_of_an_unpinned_run_may_run_in_any_version(store: Store) -> None:
    run = new(store, job=job())
    await submit(store, [run])
    fork = await forked(store, run.id, START)
    assert (await record(store, fork)).pinned == ""
    claims = await claim(store, "h9", served=("echo", "7"))
    assert claims.keys() == {run.id, fork}


async def test_a_fork_of_what_is_not_there_makes_nothing(store: Store) -> None:
    run = await started(store, call("0"))
    fields = await record(store, run.id)
    await store.command("", "DEL", store.keys.run(run.id))
    await store.command("", "DEL", store.keys.of(0, "counts"), store.keys.of(0, "batch:b"))
    await store.command("", "DEL", store.keys.of(0, "owned:h1"), store.keys.of(0, "load"))
    from cluster.records import NewFork

    gone = NewFork(
        run.id, fork_run_id(run.id, "k"), "echo", "1", "a", 249, "d", fields.job, run.id, "default", True, [], []
    )
    assert await lineage.fork(store, gone) is None


async def test_a_fork_takes_the_archive_of_checkpoints_along(store: Store) -> None:
    run = await started(store, *effect("0"))
    whole = chained(
        first_link(run.id, run.job), [*effect("0"), entry(Kind.CHECKPOINT, "1"), call("c1.0"), call("c1.1")]
    )
    assert await store.compact(run.id, run.fence, 2, whole[2], archive=True) == "OK"
    assert await append(store, run, 1, *whole[3:]) is None
    late = await forked(store, run.id, "c1.1", "late")
    archive, journal = await reader.history(store, late)
    assert (len(archive), [decode_entry(raw).step for raw in journal]) == (2, ["1", "c1.0"])
    assert is_chained(first_link(late, (await record(store, late)).job), [*archive, *journal])
    early = await forked(store, run.id, "0", "early")
    assert await reader.history(store, early) == ([], [])
    nested = await forked(store, late, "c1.0", "nested")
    assert [len(part) for part in await reader.history(store, nested)] == [2, 1]
    assert (await record(store, nested)).lineage == run.id


async def test_long_pasts_are_copied_in_parts(store: Store) -> None:
    run = await started(store, *(call(str(number)) for number in range(9000)))
    fork = await forked(store, run.id, "8999")
    assert len(await reader.journal(store, fork)) == 8999


async def test_a_fork_of_a_child_wakes_nobody_and_has_its_lineage(store: Store) -> None:
    parent = await started(store, entry(Kind.CHILD, "0", Status.OPEN))
    child = child_of(parent, "0")
    assert await store.submit_child(child, parent=parent.id, fence=parent.fence)
    fork = await forked(store, child.id, START)
    claims = await claim(store, "h2")
    assert await park(store, parent, None, child.id, reason="child") is None
    assert await finish(store, claims[fork], host="h2") is None
    assert (await record(store, parent.id)).state is RunState.WAITING
    assert (await record(store, fork)).lineage == f"{parent.id}/0"
    assert await lineage.branches(store, parent.id) == sorted([parent.id, child.id, fork])
    assert await finish(store, claims[child.id], host="h2") is None
    assert (await record(store, parent.id)).state is RunState.QUEUED


# ------------------------------------------------------------------------------------------------- the right to effects


async def test_a_read_only_branch_appends_anything_but_intents(store: Store) -> None:
    run = await started(store, call("0"), call("1"))
    fork = await mine(store, await forked(store, run.id, "1"))
    assert await intend(store, fork) == "READONLY"
    # Nothing of the same write is there either, and a late owner hears that it is late.
    both = Append(fork.id, fork.fence, 1, 0, [entry(Kind.VALUE, "1"), intent("2")], 1)
    assert await store.append(0, [both]) == {fork.id: "READONLY"}
    assert await store.append(0, [both._replace(fence=fork.fence - 1)]) == {fork.id: "STALE"}
    assert len(await reader.journal(store, fork.id)) == 1
    assert await append(store, fork, 1, call("1")) is None
    assert await intend(store, run) is None


async def test_promotion_moves_the_right_in_one_step(store: Store) -> None:
    run = await started(store, call("0"), call("1"))
    first, second = await forked(store, run.id, "1", "1"), await forked(store, run.id, "1", "2")
    forks = await claim(store, "h2")
    assert await promoted(store, first) == (run.id,)
    assert await entitled(store, run.id, first, second) == [False, True, False]
    assert [await intend(store, each) for each in (run, forks[first], forks[second])] == ["READONLY", None, "READONLY"]
    await done(store, forks[first])
    assert await promoted(store, second) == (first,)
    assert await promoted(store, run.id) == (second,)
    assert await entitled(store, run.id, first, second) == [True, False, False]
    assert (await lineage.promote(store, run.id, "ann", "again")).word == "owner"
    notes = [json.loads(raw) for raw in await lineage.promotions(store, run.id)]
    assert [(note["run"], note["from"], note["by"], note["why"]) for note in notes] == [
        (first, [run.id], "ann", "because"), (second, [first], "ann", "because"), (run.id, [second], "ann", "because"),
    ]  # fmt: skip
    mark = json.loads((await record(store, second)).demoted)
    assert (mark["run"], mark["lineage"]) == (run.id, run.id)
    assert json.loads((await record(store, run.id)).promoted) == notes[-1]


async def test_a_branch_that_waits_for_its_promotion_is_queued_at_once(store: Store) -> None:
    run = await started(store, call("0"))
    waiting, running = await forked(store, run.id, "0", "w"), await forked(store, run.id, "0", "r")
    forks = await claim(store, "h2")
    assert await park(store, forks[waiting], FAR_MS, host="h2", reason="promotion") is None
    await promoted(store, waiting)
    found = await record(store, waiting)
    assert (found.state, found.reason) == (RunState.QUEUED, "promoted")
    again = await mine(store, waiting)
    assert not again.readonly
    # One that is about to be unloaded does not miss it.
    await promoted(store, running)
    assert await park(store, forks[running], FAR_MS, host="h2", reason="promotion") is None
    assert (await record(store, running)).state is RunState.QUEUED


async def test_an_effect_under_way_is_waited_for(store: Store) -> None:
    run = await started(store, call("0"))
    fork = await forked(store, run.id, "0")
    assert await intend(store, run, "1") is None
    assert await lineage.promote(store, fork, "ann", "w") == ("busy", (run.id, "1"))
    # Its host may die: the intent stays open, and so does the question.
    await store.reap(0, "h1")
    assert await lineage.promote(store, fork, "ann", "w") == ("busy", (run.id, "1"))
    again = await mine(store, run.id)
    assert await append(store, again, 2, entry(Kind.CALL, "1", Status.OPEN, b"{}")) is None
    assert await promoted(store, fork) == (run.id,)


async def test_an_unproven_effect_is_resolved_first(store: Store) -> None:
    run = await started(store, call("0"), intent("1"))
    fork = await forked(store, run.id, "0")
    assert await finish(store, run, RunState.CONFIRMATION_UNKNOWN) is None
    assert await lineage.promote(store, fork, "ann", "w") == ("unknown", (run.id,))
    assert await entitled(store, run.id, fork) == [True, False]


async def test_what_has_ended_is_not_promoted_and_gives_its_right_away(store: Store) -> None:
    run = await started(store, call("0"), intent("1"), call("1"))
    first, second = await forked(store, run.id, "0", "1"), await forked(store, run.id, "0", "2")
    assert await finish(store, run, RunState.FAILED) is None
    assert await lineage.promote(store, run.id, "ann", "w") == ("ended", ("failed",))
    assert await promoted(store, first) == (run.id,)
    assert await finish(store, (await claim(store, "h2"))[first], host="h2") is None
    assert await promoted(store, second) == (first,)


async def test_who_is_no_branch_is_not_promoted(store: Store) -> None:
    run = await started(store, call("0"))
    assert await lineage.promote(store, MISSING, "ann", "w") == ("missing", ())
    assert await lineage.promote(store, run.id, "ann", "w") == ("alone", ())
    child = child_of(run, "1")
    assert await store.submit_child(child, parent=run.id, fence=run.fence)
    await forked(store, run.id, "0")
    assert await lineage.promote(store, child.id, "ann", "w") == ("child", (run.id,))


async def test_a_branch_that_counts_on_an_effect_that_was_undone_is_not_promoted(store: Store) -> None:
    run = await started(store, *effect("0"), call("1"))
    late, early = await forked(store, run.id, "1", "late"), await forked(store, run.id, "0", "early")
    assert await append(store, run, 3, *effect("0!undo", undoes="0")) is None
    assert await finish(store, run, RunState.FAILED) is None
    assert await lineage.promote(store, late, "ann", "w") == ("undone", (run.id, "0"))
    assert await promoted(store, early) == (run.id,)


# ----------------------------------------------------------------------------------------------------------- child runs


async def spawn(store: Store, parent: Claim, step: str, host: str = "h3") -> Claim:
    child = child_of(parent, step)
    assert await store.submit_child(child, parent=parent.id, fence=parent.fence)
    return (await claim(store, host))[child.id]


async def test_child_runs_have_the_right_of_their_branch(store: Store) -> None:
    run = await started(store, call("0"))
    fork = await mine(store, await forked(store, run.id, "0"))
    old, other = await spawn(store, run, "5"), await spawn(store, fork, "5")
    below = await spawn(store, other, "0")
    assert await entitled(store, run.id, old.id, fork.id, other.id, below.id) == [True, True, False, False, False]
    assert [await intend(store, each) for each in (old, other, below)] == [None, "READONLY", "READONLY"]
    assert await lineage.promote(store, fork.id, "ann", "w") == ("busy", (old.id, "9"))
    await done(store, old)
    assert await park(store, below, FAR_MS, host="h3", reason="promotion") is None
    assert await promoted(store, fork.id) == (run.id,)
    assert await entitled(store, run.id, old.id, fork.id, other.id, below.id) == [False, False, True, True, True]
    assert (await record(store, below.id)).state is RunState.QUEUED
    late = await spawn(store, run, "6")
    assert late.readonly


async def test_a_fork_of_a_child_takes_the_right_of_that_lineage_only(store: Store) -> None:
    run = await started(store, call("0"))
    child = await spawn(store, run, "5")
    fork = await forked(store, child.id, START)
    assert await promoted(store, fork) == (child.id,)
    assert await entitled(store, run.id, child.id, fork) == [True, False, True]
    assert await promoted(store, child.id) == (fork,)
    assert await promoted(store, fork) == (child.id,)
    # Its parent's promotion takes everything below it back.
    assert await promoted(store, run.id) == ()
    assert await entitled(store, run.id, child.id, fork) == [True, True, False]


async def test_a_child_that_is_made_after_its_lineage_was_given_away_is_read_only(store: Store) -> None:
    run = await started(store, call("0"))
    fork = await mine(store, await forked(store, run.id, "0"))
    ahead = await spawn(store, fork, "5")
    other = await forked(store, ahead.id, START)
    await promoted(store, other)
    late = await spawn(store, run, "5")
    assert late.readonly
    assert await entitled(store, run.id, fork.id, ahead.id, other, late.id) == [True, False, False, True, False]
    assert await promoted(store, run.id) == ()
    assert await entitled(store, run.id, other, late.id) == [True, False, True]
    assert not (await spawn(store, run, "6")).readonly
    # What was given away by itself once is not any more, also for a child that is made later, of another branch.
    third = await mine(store, await forked(store, run.id, "0", "third"))
    assert await promoted(store, third.id) == (run.id,)
    assert not (await spawn(store, third, "5")).readonly
    assert (await spawn(store, run, "7")).readonly


# ----------------------------------------------------------------------------------------------------------- forgetting


async def test_a_lineage_of_which_nothing_is_left_is_forgotten(redis_url: str) -> None:
    async with opened(settings_for(redis_url, retention=brief())) as store:
        run = await started(store, call("0"))
        fork = await forked(store, run.id, "0")
        await promoted(store, fork)
        await finish(store, run)
        key = store.keys.of(0, "lineages")

        async def look() -> bool:
            await store.command(key, "ZADD", key, "XX", 1, run.id)
            await store.fire(0)
            return bool(await lineage.branches(store, run.id))

        await asyncio.sleep(0.06)
        assert await look()
        assert await store.command(key, "ZSCORE", key, run.id) > b"1"
        await finish(store, (await claim(store, "h2"))[fork], host="h2")
        await asyncio.sleep(0.06)
        assert not await look()
        assert await lineage.promotions(store, run.id) == []
        assert await store.command(key, "EXISTS", key, store.keys.of(0, f"holders:{run.id}")) == 0
