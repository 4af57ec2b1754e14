"""Scripts that bring runs in and out of the queue, against a real server: submit, claim, reap, release, cancel."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from importlib.resources import files
from typing import Any

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

from admission.values import Value
from cluster import reader, scripts
from cluster.lifecycle import RunState
from cluster.records import Claim, Submitted
from cluster.store import Store

NORMAL = Value(2).level


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


# -------------------------------------------------------------------------------------------------- the scripts' texts


def test_each_script_says_what_it_does() -> None:
    names = {path.name.removesuffix(".lua") for path in (files("cluster") / "lua").iterdir()} - {"prelude", "door"}
    assert {script.name for script in scripts.ALL} == names
    for script in scripts.ALL:
        text = (files("cluster") / "lua" / f"{script.name}.lua").read_text()
        assert text.startswith(f"-- {script.name}: "), script.name
        for word in ("ARGV: ", "Returns", "Invariant: "):
            assert re.search(f"^-- {word}", text, re.MULTILINE), (script.name, word)


# -------------------------------------------------------------------------------------------------------------- submit


async def test_submitting_twice_makes_one_run(store: Store) -> None:
    run = new(store)
    assert await submit(store, [run, run]) == [1, 0]
    assert await submit(store, [run]) == [0]
    other = run._replace(job=b"other", digest="other")
    assert await submit(store, [other]) == [-1]
    record = await reader.record(store, run.id)
    assert record is not None
    assert (record.state, record.version, record.fence, record.job) == (RunState.QUEUED, 2, 0, b"job")
    assert [page async for page in reader.batch_run_ids(store, "b")] == [[run.id]]
    counts = await reader.batch_counts(store, "b")
    assert (counts.total, counts.by_state) == (1, {"queued": 1})


async def test_the_most_valuable_goes_first_then_the_earliest(store: Store) -> None:
    runs = [new(store, f"{rank}-{n}", rank=rank) for n in range(3) for rank in (3, 0, 4)]
    await submit(store, runs[:4])
    await submit(store, runs[4:])
    order = [each.custom_id for each in (await claim(store, most=20)).values()]
    assert order == [f"{rank}-{n}" for rank in (0, 3, 4) for n in range(3)]


async def test_one_call_takes_thousands_of_runs(store: Store) -> None:
    runs = [new(store, str(number)) for number in range(5000)]
    assert await submit(store, runs) == [1] * 5000
    assert await submit(store, runs) == [0] * 5000
    pages = [page async for page in reader.batch_run_ids(store, "b")]
    assert [run_id for page in pages for run_id in page] == [run.id for run in runs]
    assert (await reader.batch_counts(store, "b")).total == 5000
    assert await store.cancel(0, "enough", [run.id for run in runs]) == ["cancelled"] * 5000


async def test_two_submitters_of_one_batch_make_each_run_once(store: Store, rival: Store) -> None:
    runs = [new(store, str(number)) for number in range(300)]
    parts = [runs[start : start + 30] for start in range(0, 300, 30)]
    answers: list[list[Any]] = await asyncio.gather(
        *(each.submit("b", 0, part) for part in parts for each in (store, rival)), submit(store, runs)
    )
    made = [int(answer.made) if isinstance(answer, Submitted) else answer for each in answers for answer in each]
    assert sum(made) == 300
    assert (await reader.batch_counts(store, "b")).by_state == {"queued": 300}


async def test_a_child_is_made_by_its_parents_owner_only(store: Store) -> None:
    parent = await one(store)
    child = child_of(parent)
    assert await store.submit_child(child, parent=parent.id, fence=parent.fence)
    assert await store.submit_child(child, parent=parent.id, fence=parent.fence)
    assert not await store.submit_child(child_of(parent, "1"), parent=parent.id, fence=parent.fence + 1)
    await finish(store, parent)
    assert not await store.submit_child(child_of(parent, "2"), parent=parent.id, fence=parent.fence)
    audit = Audit(store)
    assert audit.runs.keys() == {parent.id, child.id}
    assert audit.runs[child.id]["parent"] == parent.id
    assert (await reader.batch_counts(store, "b")).total == 1


# --------------------------------------------------------------------------------------------------------------- claim


async def test_a_claim_returns_the_record_and_the_journal(store: Store) -> None:
    run = new(store, deadline=str(FAR_MS))
    await submit(store, [run])
    first = (await claim(store))[run.id]
    assert first == Claim(
        run.id, 1, "echo", "a", "b", b"job", 0, FAR_MS, first.accepted_ms, "", "", []
    )  # fmt: skip
    assert abs(first.accepted_ms - await store.server_ms()) < 5000
    assert await append(store, first, 0, b"one", b"two") is None
    assert await store.release(0, "h1", "drain", [(run.id, first.fence)]) == 1
    second = (await claim(store, "h2"))[run.id]
    assert (second.fence, second.migrations, second.journal) == (first.fence + 2, 1, [b"one", b"two"])
    record = await reader.record(store, run.id)
    assert record is not None
    assert (record.host, record.pinned, record.state) == ("h2", "1", RunState.RUNNING)


async def test_a_claim_takes_no_more_than_asked_and_says_what_is_left(store: Store) -> None:
    await submit(store, [new(store, str(number)) for number in range(5)])
    answer = await store.claim(0, "h1", 2, ("echo", "1"))
    assert answer is not None
    assert (answer[0], len(answer[1])) == (NORMAL, 2)
    assert await store.owned(0, "h1") == {each.id for each in answer[1]}
    assert await store.claim(0, "h2", 10, ("echo", "1")) is not None
    assert await store.claim(0, "h2", 10, ("echo", "1")) == (-1, [])


async def test_a_host_that_was_declared_dead_claims_nothing(store: Store) -> None:
    await submit(store, [new(store)])
    await store.reap(0, "h1")
    assert await store.claim(0, "h1", 10, ("echo", "1")) is None
    assert len(await claim(store, "h2")) == 1


async def test_runs_past_their_bounds_end_instead_of_being_claimed(store: Store) -> None:
    late, impatient = new(store, "late", deadline="+1"), new(store, "impatient", max_wait="1")
    both = new(store, "both", deadline=f"+{10**9}", max_wait="1")
    await submit(store, [late, impatient, both])
    await asyncio.sleep(0.01)
    assert await claim(store) == {}
    assert (await reader.batch_counts(store, "b")).by_state == {"cancelled": 1, "shed": 2}
    record = await reader.record(store, late.id)
    assert record is not None
    assert (record.state, record.reason, record.fence) == (RunState.CANCELLED, "deadline_exceeded", 0)
    record = await reader.record(store, impatient.id)
    assert record is not None
    assert (record.state, record.reason) == (RunState.SHED, "max_wait")


async def test_max_wait_bounds_the_first_start_only(store: Store) -> None:
    run = await one(store, max_wait="40")
    await asyncio.sleep(0.05)
    await store.release(0, "h1", "drain", [(run.id, run.fence)])
    assert await store.fire(0) == (0, None, 1)
    assert run.id in await claim(store)


async def test_the_unserved_wait_aside_for_a_host_that_serves_them(store: Store) -> None:
    run, other = new(store, "a", agent="rare"), new(store, "b", agent="echo")
    await submit(store, [run, other])
    assert list(await claim(store, "h1")) == [other.id]
    record = await reader.record(store, run.id)
    assert record is not None
    assert (record.state, record.reason) == (RunState.QUEUED, "no host serves rare@(any version)")
    assert await reader.place(store, run.id) is None
    Audit(store).check()
    assert await claim(store, "h1") == {}
    assert list(await claim(store, "h2", served=("rare", "3"))) == [run.id]


async def test_hosts_with_other_versions_do_not_hide_runs_from_each_other(store: Store) -> None:
    """Both kinds of host live on; whichever asks first, each run ends up where its version is served."""
    old = await one(store, "old", "a")
    await store.release(0, "old", "drain", [(old.id, None)])
    for _ in range(3):
        assert await claim(store, "new", served=("echo", "2")) == {}
    record = await reader.record(store, old.id)
    assert record is not None
    assert record.reason == "no host serves echo@1"
    again = (await claim(store, "old"))[old.id]
    assert again.fence == 3
    await submit(store, [new(store, "b")])
    (fresh,) = (await claim(store, "new", served=("echo", "2"))).values()
    assert (await reader.record(store, fresh.id)).pinned == "2"  # type: ignore[union-attr]


async def test_many_unserved_runs_come_back_in_their_order(store: Store) -> None:
    runs = [new(store, str(n), agent="rare", rank=4 - n % 5) for n in range(50)]
    await submit(store, runs)
    while (await store.claim(0, "h1", 7, ("echo", "1")))[0] >= 0:  # type: ignore[index]
        pass
    Audit(store).check()
    claimed = []
    while found := await claim(store, "h2", 7, ("rare", "1")):
        claimed += [each.custom_id for each in found.values()]
        Audit(store).check()
    assert claimed == [run.custom_id for run in sorted(runs, key=lambda run: run.level)]


async def test_an_expired_record_in_the_queue_is_passed_over(store: Store) -> None:
    run = new(store)
    await submit(store, [run])
    await store.command(store.keys.run(run.id), "DEL", store.keys.run(run.id))
    assert await claim(store) == {}
    for what in ("counts", "load", "batch:b", "batch:b:runs"):
        await store.command(store.keys.of(0, what), "DEL", store.keys.of(0, what))


async def test_racing_hosts_share_the_queue(store: Store, rival: Store) -> None:
    await submit(store, [new(store, str(number)) for number in range(400)])
    answers = await asyncio.gather(
        *(each.claim(0, host, 17, ("echo", "1")) for _ in range(20) for each, host in ((store, "h1"), (rival, "h2")))
    )
    claims = [each for answer in answers if answer for each in answer[1]]
    assert len(claims) == len({each.id for each in claims}) == 400
    assert len(await store.owned(0, "h1")) + len(await store.owned(0, "h2")) == 400


# ---------------------------------------------------------------------------------------------------- reap and release


async def test_a_dead_hosts_runs_go_back_to_the_queue(store: Store) -> None:
    runs = [await one(store, custom_id=str(number)) for number in range(7)]
    other = await one(store, "h2", "other")
    assert await store.reap(0, "h1", most=3) == 7
    assert await store.reap(0, "h1") == 0
    assert await state_of(store, other.id) == "running"
    claims = await claim(store, "h2")
    assert claims.keys() == {run.id for run in runs}
    assert {each.fence for each in claims.values()} == {3}
    counts = await reader.batch_counts(store, "b")
    assert (counts.migrations, counts.migrated_runs) == (7, 7)
    await store.reap(0, "h2")
    counts = await reader.batch_counts(store, "b")
    assert (counts.migrations, counts.migrated_runs) == (15, 8)


async def test_a_claim_tells_how_many_hosts_died_under_the_run(store: Store) -> None:
    """And nothing more comes of it here: its host ends the run, after a look at its journal."""
    await submit(store, [new(store)])
    for life in range(20):
        (run,) = (await claim(store, f"h{life}")).values()
        assert run.losses == life
        await store.reap(0, f"h{life}")
        assert await state_of(store, run.id) == "queued"


async def test_progress_forgives_losses(store: Store) -> None:
    await submit(store, [new(store)])
    said: list[int] = []
    for life in range(8):
        (run,) = (await claim(store, f"h{life}")).values()
        said.append(run.losses)
        if life in (2, 5):
            await append(store, run, len(run.journal), b"x")
        await store.reap(0, f"h{life}")
    assert said == [0, 1, 2, 1, 2, 3, 1, 2]


async def test_losses_are_forgiven_also_when_the_run_was_handed_back_after_its_progress(store: Store) -> None:
    run = await one(store, "h0")
    await store.reap(0, "h0")
    run = (await claim(store, "h1"))[run.id]
    await store.release(0, "h1", "drain", [(run.id, run.fence)])
    run = (await claim(store, "h1"))[run.id]
    assert run.losses == 1
    await append(store, run, 0, b"x")
    await store.release(0, "h1", "drain", [(run.id, run.fence)])
    assert (await claim(store, "h1"))[run.id].losses == 0


async def test_two_reapers_move_each_run_once(store: Store, rival: Store) -> None:
    for number in range(200):
        await submit(store, [new(store, str(number))])
    assert len(await claim(store, most=200)) == 200
    moved = await asyncio.gather(*(each.reap(0, "h1", most=7) for each in (store, rival)))
    assert sum(moved) == 200
    assert min(moved) > 0
    claims = await claim(rival, "h2", most=300)
    assert {each.fence for each in claims.values()} == {3}
    assert (await reader.batch_counts(store, "b")).migrations == 200


async def test_only_the_owner_hands_back(store: Store) -> None:
    run = await one(store)
    assert await store.release(0, "h2", "no", [(run.id, run.fence), (run.id, None)]) == 0
    assert await store.release(0, "h1", "no", [(run.id, run.fence + 1), (MISSING, None)]) == 0
    assert await store.release(0, "h1", "drain", [(run.id, None)]) == 1
    assert await store.release(0, "h1", "drain", [(run.id, run.fence)]) == 0
    record = await reader.record(store, run.id)
    assert record is not None
    assert (record.reason, record.migrations, record.fence) == ("drain", 1, 2)


async def test_a_claim_whose_answer_was_lost_is_handed_back(store: Store) -> None:
    await submit(store, [new(store)])
    await store.claim(0, "h1", 5, ("echo", "1"))
    strays = await store.owned(0, "h1")
    assert await store.release(0, "h1", "claim lost", [(stray, None) for stray in strays]) == 1
    assert len(await claim(store, "h2")) == 1


# -------------------------------------------------------------------------------------------------------------- cancel


async def test_each_state_is_cancelled_in_its_own_way(store: Store) -> None:
    queued, aside = new(store, "queued", deadline=f"+{10**9}"), new(store, "aside", agent="rare", max_wait="99999")
    running, waiting = await one(store, custom_id="running"), await one(store, custom_id="waiting")
    ended = await one(store, custom_id="ended")
    await park(store, waiting, FAR_MS)
    await finish(store, ended)
    await submit(store, [aside])
    await claim(store)
    await submit(store, [queued])
    ids = [queued.id, aside.id, running.id, waiting.id, ended.id, MISSING]
    assert await store.cancel(0, "asked", ids) == ["cancelled", "cancelled", "asked", "cancelled", "ended", "missing"]
    Audit(store).check()
    assert await store.cancel(0, "asked", ids) == ["ended", "ended", "asked", "ended", "ended", "missing"]
    record = await reader.record(store, running.id)
    assert record is not None
    assert (record.state, record.cancel) == (RunState.RUNNING, "asked")
    assert await finish(store, running, RunState.CANCELLED, reason="asked") is None


async def test_a_running_runs_host_is_told_to_cancel(store: Store) -> None:
    run = await one(store)
    told = await next_message(store, store.keys.host_channel("h1"), lambda: store.cancel(0, "x", [run.id]))
    assert told == f"cancel {run.id}"


async def test_the_wish_to_cancel_outlives_the_owner(store: Store) -> None:
    run = await one(store)
    await store.cancel(0, "enough", [run.id])
    await store.reap(0, "h1")
    assert (await claim(store, "h2"))[run.id].cancel == "enough"


async def test_children_go_with_their_parent(store: Store) -> None:
    parent = await one(store)
    middle, leaf = child_of(parent), child_of(parent, "1")
    for child in (middle, leaf):
        await store.submit_child(child, parent=parent.id, fence=parent.fence)
    claimed = (await claim(store, "h2"))[middle.id]
    grandchild = child_of(claimed)
    await store.submit_child(grandchild, parent=claimed.id, fence=claimed.fence)
    await park(store, claimed, None, grandchild.id, host="h2")
    await park(store, parent, None, middle.id, leaf.id)
    assert await store.cancel(0, "all", [parent.id, grandchild.id]) == ["cancelled", "ended"]
    # The leaf was claimed with the first child.
    assert await state_of(store, leaf.id) == "running"
    for run in (parent, middle, grandchild):
        assert await state_of(store, run.id) == "cancelled"
    assert (await reader.batch_counts(store, "b")).by_state == {"cancelled": 1}
