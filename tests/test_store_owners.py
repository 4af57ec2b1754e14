"""What an owner writes, against a real server, and its lease; and what a late or racing owner cannot write."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

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
from cluster.errors import StoreUnsuitable
from cluster.lifecycle import RunState
from cluster.records import Append, Claim, Finish
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


# -------------------------------------------------------------------------------------------------------------- append


async def test_entries_are_appended_once_and_in_order(store: Store) -> None:
    run = await one(store)
    one_call = [Append(run.id, run.fence, 0, 1, [b"a"]), Append(run.id, run.fence, 1, 2, [b"b", b"c"])]
    for _ in range(3):
        assert await store.append(0, one_call) == {}
    assert await append(store, run, 3, b"d", finished=0) is None
    assert await append(store, run, 0, b"a") is None
    assert await reader.journal(store, run.id) == [b"a", b"b", b"c", b"d"]
    counts = await reader.batch_counts(store, "b")
    assert counts.steps == 3
    assert (await reader.deployment_counts(store)).steps == 3


async def test_a_journal_that_is_shorter_than_believed_is_a_gap(store: Store) -> None:
    run = await one(store)
    assert await append(store, run, 1, b"b") == "GAP"
    assert await append(store, run, 0, b"a") is None
    assert await append(store, run, 2, b"c") == "GAP"
    assert await reader.journal(store, run.id) == [b"a"]
    assert (await reader.batch_counts(store, "b")).steps == 1


async def test_a_gap_is_not_hidden_by_a_cancellation(store: Store) -> None:
    run = await one(store)
    assert await store.cancel(0, "cancelled", [run.id]) == ["asked"]
    assert await append(store, run, 1, b"b") == "GAP"
    assert await append(store, run, 0, b"a") == "CANCEL"
    assert await append(store, run, 0, b"a") == "CANCEL"
    assert await reader.journal(store, run.id) == [b"a"]


@pytest.mark.parametrize("entries", [0, 1, 4000, 4001, 12_001])
async def test_any_number_of_entries_goes_in_one_append(store: Store, entries: int) -> None:
    run, other = await one(store), await one(store, custom_id="other")
    written = [str(number).encode() for number in range(entries)]
    for _ in range(2):
        call = [Append(run.id, run.fence, 0, entries, written), Append(other.id, other.fence, 0, 1, [b"x"])]
        assert await store.append(0, call) == {}
    assert await reader.journal(store, run.id) == written
    assert await reader.journal(store, other.id) == [b"x"]
    assert (await reader.batch_counts(store, "b")).steps == entries + 1


async def test_one_stale_run_does_not_spoil_the_others(store: Store) -> None:
    runs = [await one(store, custom_id=str(number)) for number in range(3)]
    ended = await one(store, custom_id="ended")
    await finish(store, ended)
    call = [Append(run.id, run.fence - (run is runs[1]), 0, 1, [b"x"]) for run in runs]
    call += [Append(MISSING, 1, 0, 1, [b"x"]), Append(ended.id, ended.fence, 0, 1, [b"x"])]
    assert await store.append(0, call) == {runs[1].id: "STALE", MISSING: "STALE", ended.id: "STALE"}
    assert [await reader.journal(store, run.id) for run in runs] == [[b"x"], [], [b"x"]]
    assert (await reader.batch_counts(store, "b")).steps == 2


# ------------------------------------------------------------------------------------------------------------- compact


@pytest.mark.parametrize("before", [0, 1, 5])
async def test_a_checkpoint_replaces_the_journal_once(store: Store, before: int) -> None:
    run = await one(store)
    if before:
        await append(store, run, 0, *(b"s%d" % number for number in range(before)))
    for _ in range(3):
        assert await store.compact(run.id, run.fence, before, b"checkpoint") == "OK"
    assert await reader.journal(store, run.id) == [b"checkpoint"]
    assert (await reader.batch_counts(store, "b")).steps == before + 1
    assert await store.compact(run.id, run.fence, 1, b"another") == "OK"
    assert await reader.journal(store, run.id) == [b"another"]


async def test_a_checkpoint_over_another_journal_is_refused(store: Store) -> None:
    run = await one(store)
    await append(store, run, 0, b"a", b"b")
    assert await store.compact(run.id, run.fence, 3, b"checkpoint") == "GAP"
    assert await store.compact(run.id, run.fence, 1, b"checkpoint") == "GAP"
    assert await store.compact(run.id, run.fence + 1, 2, b"checkpoint") == "STALE"
    await finish(store, run)
    assert await store.compact(run.id, run.fence, 2, b"checkpoint") == "STALE"
    assert await reader.journal(store, run.id) == [b"a", b"b"]


# -------------------------------------------------------------------------------------------------------------- finish


@pytest.mark.parametrize("state", [RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED])
async def test_an_end_is_told_once(store: Store, state: RunState) -> None:
    run = await one(store)
    for _ in range(3):
        assert await finish(store, run, state, reason="why", output=b"out", error=b"err") is None
    record = await reader.record(store, run.id)
    assert record is not None
    assert (record.state, record.reason, record.output, record.error) == (state, "why", b"out", b"err")
    assert record.version == 4
    assert record.ended_ms is not None
    assert (await reader.batch_counts(store, "b")).by_state == {state.value: 1}
    other = RunState.FAILED if state is not RunState.FAILED else RunState.SUCCEEDED
    assert await finish(store, run, other, output=b"else") == "STALE"
    assert (await reader.record(store, run.id)) == record


async def test_a_terminal_run_does_not_change(store: Store) -> None:
    run = await one(store)
    await finish(store, run)
    before = Audit(store)
    assert await store.cancel(0, "late", [run.id]) == ["ended"]
    assert await park(store, run, 1) == "STALE"
    assert await append(store, run, 0, b"x") == "STALE"
    assert await store.release(0, "h1", "late", [(run.id, run.fence), (run.id, None)]) == 0
    assert await store.reap(0, "h1") == 0
    assert await submit(store, [new(store)]) == [0]
    after = Audit(store)
    assert after.runs == before.runs
    assert after.places(run.id) == {"ended:succeeded"}


async def test_confirmation_unknown_is_no_end(store: Store) -> None:
    run = await one(store)
    for _ in range(2):
        assert await finish(store, run, RunState.CONFIRMATION_UNKNOWN, reason="effect", error=b"e") is None
    assert await state_of(store, run.id) == "confirmation_unknown"
    assert await store.cancel(0, "no", [run.id]) == ["unknown"]
    audit = Audit(store)
    assert audit.ttl_ms["00"][f"run:{run.id}"] == -1
    assert audit.runs[run.id]["error"] == "e"


async def test_an_end_is_announced_to_the_batch(store: Store) -> None:
    first, second = await one(store, custom_id="1"), await one(store, custom_id="2")

    async def end() -> None:
        ends = [Finish(run.id, run.fence, RunState.SUCCEEDED, "", b"", b"") for run in (first, second)]
        assert await store.finish(0, "h1", ends) == {}

    assert await next_message(store, store.keys.batch_channel("b"), end) == "2"


async def test_what_becomes_unknown_is_announced_to_the_batch(store: Store) -> None:
    run = await one(store)
    channel = store.keys.batch_channel("b")
    told = await next_message(store, channel, lambda: finish(store, run, RunState.CONFIRMATION_UNKNOWN))
    assert told == "1"
    # It is no end: nothing of the batch is forgotten while somebody has still to say how it was.
    audit = Audit(store)
    assert (audit.ttl_ms["00"]["batch:b"], audit.ttl_ms["00"]["batch:b:runs"]) == (-1, -1)


# ---------------------------------------------------------------------------------------------- late and racing owners


LATE: dict[str, Callable[[Store, Claim], Awaitable[object]]] = {
    "append": lambda store, run: append(store, run, 1, b"late"),
    "append again": lambda store, run: append(store, run, 0, b"late"),
    "append with a gap": lambda store, run: append(store, run, 9, b"late"),
    "compact": lambda store, run: store.compact(run.id, run.fence, 1, b"late"),
    "finish": lambda store, run: finish(store, run, output=b"late"),
    "unknown": lambda store, run: finish(store, run, RunState.CONFIRMATION_UNKNOWN),
    "park": lambda store, run: park(store, run, 1),
    "release": lambda store, run: store.release(0, "h1", "late", [(run.id, run.fence)]),
    "child": lambda store, run: store.submit_child(child_of(run), parent=run.id, fence=run.fence),
    "reap": lambda store, run: store.reap(0, "h1"),
}


@pytest.mark.parametrize("act", LATE.values(), ids=LATE)
@pytest.mark.parametrize("found", ["queued", "running", "waiting", "succeeded"])
async def test_a_late_owner_never_writes(
    store: Store, act: Callable[[Store, Claim], Awaitable[object]], found: str
) -> None:
    late = await one(store)
    await append(store, late, 0, b"first")
    await store.reap(0, "h1")
    if found != "queued":
        now = (await claim(store, "h2"))[late.id]
        if found == "waiting":
            await park(store, now, FAR_MS, host="h2")
        elif found == "succeeded":
            await finish(store, now, host="h2")
    before = Audit(store)
    await asyncio.sleep(0.002)
    assert await act(store, late) in ("STALE", 0, False)
    after = Audit(store)
    assert (after.runs, after.lists, after.counts) == (before.runs, before.lists, before.counts)
    assert after.places(late.id) == before.places(late.id)


async def test_of_two_racing_owners_one_writes(store: Store, rival: Store) -> None:
    """The old owner writes on while another host takes the run away and goes on with it."""
    for number in range(25):
        run = await one(store, f"old{number}", str(number))

        async def old(run: Claim = run) -> list[str | None]:
            return [await append(store, run, length, b"old%d" % length) for length in range(6)]

        async def young(run: Claim = run, host: str = f"old{number}") -> Claim:
            await rival.reap(0, host)
            taken = (await claim(rival, "young"))[run.id]
            for length in range(len(taken.journal), len(taken.journal) + 3):
                assert await append(rival, taken, length, b"new%d" % length) is None
            assert await finish(rival, taken, host="young") is None
            return taken

        said, taken = await asyncio.gather(old(), young())
        journal = await reader.journal(store, run.id)
        accepted = said.index("STALE") if "STALE" in said else len(said)
        assert said == [None] * accepted + ["STALE"] * (len(said) - accepted)
        assert journal == [b"old%d" % n for n in range(accepted)] + [
            b"new%d" % n for n in range(accepted, accepted + 3)
        ]
        assert taken.journal == journal[:accepted]


@pytest.mark.parametrize("first", ["finish", "park", "release", "reap"])
async def test_of_two_ends_of_an_ownership_one_counts(store: Store, rival: Store, first: str) -> None:
    """What ends an ownership races with a reaper: exactly one of them moves the run."""
    ends: dict[str, Callable[[Claim, str], Awaitable[object]]] = {
        "finish": lambda run, host: finish(store, run, host=host),
        "park": lambda run, host: park(store, run, FAR_MS, host=host),
        "release": lambda run, host: store.release(0, host, "drain", [(run.id, run.fence)]),
        "reap": lambda run, host: store.reap(0, host),
    }
    for number in range(20):
        host = f"h{number}"
        run = await one(store, host, str(number))
        said, moved = await asyncio.gather(ends[first](run, host), rival.reap(0, host))
        won = said in (None, 1)
        assert won or said in ("STALE", 0)
        # A reaper counts what it took out of the owned set; the run itself moved once.
        record = await reader.record(store, run.id)
        assert record is not None
        assert record.version == 4
        if not won:
            assert moved == 1
            assert record.state is RunState.QUEUED
        for left in (await claim(store, "sweeper")).values():
            await finish(store, left, host="sweeper")
        await store.cancel(0, "done", [run.id])


# ---------------------------------------------------------------------------------------------------- hosts and leases


async def test_a_lease_is_registered_renewed_and_lost(redis_url: str) -> None:
    async with opened(settings_for(redis_url, lease_s=0.25)) as store:
        assert not (await store.heartbeat("h1")).standing
        first = await store.heartbeat("h1", json.dumps({"node": "n1"}))
        assert (first.standing, first.expired, first.live, first.draining) == (True, (), ("h1",), False)
        await store.heartbeat("h2", json.dumps({"node": "n2"}))
        await asyncio.sleep(0.3)
        second = await store.heartbeat("h2")
        assert (second.standing, second.expired, second.live) == (True, ("h1",), ("h2",))
        assert abs(second.server_ms - await store.server_ms()) < 1000
        hosts = await store.hosts()
        assert hosts["h1"]["lease_left_ms"] < 0 < hosts["h2"]["lease_left_ms"]
        await store.mark_draining("h2", draining=True)
        assert (await store.heartbeat("h2")).draining
        await store.mark_draining("h2", draining=False)
        assert not (await store.heartbeat("h2")).draining
        # A late host that nobody has buried yet may renew; a buried one may not.
        assert (await store.heartbeat("h1")).standing
        await store.forget_host("h1")
        assert not (await store.heartbeat("h1")).standing
        assert list(await store.hosts()) == ["h2"]


async def test_a_condemned_host_renews_its_lease_no_more(redis_url: str) -> None:
    async with opened(settings_for(redis_url, lease_s=0.25)) as store:
        for host in ("h1", "h2"):
            await store.heartbeat(host, json.dumps({"node": host}))
        assert not await store.condemn_host("h1", if_expired=True)
        assert (await store.heartbeat("h1")).standing
        await asyncio.sleep(0.3)
        assert (await store.heartbeat("h2")).expired == ("h1",)
        # Between somebody's look at its lease and the sentence it may have renewed it.
        assert (await store.heartbeat("h1")).standing
        assert not await store.condemn_host("h1", if_expired=True)
        assert await store.condemn_host("h1")
        assert not (await store.heartbeat("h1")).standing
        # Whoever has condemned it may die before its runs are taken: for all others its lease has run out.
        said = await store.heartbeat("h2")
        assert (said.expired, said.live) == (("h1",), ("h2",))
        assert await store.condemn_host("h1", if_expired=True)
        assert await store.condemn_host("nobody", if_expired=True)
        await store.forget_host("h1")
        assert (await store.heartbeat("h2")).expired == ()


async def test_the_number_of_partitions_is_fixed_at_the_first_start(redis_url: str) -> None:
    settings = settings_for(redis_url, partitions=4)
    async with opened(settings):
        pass
    silent = settings.model_copy(update={"partitions": 8})
    silent.model_fields_set.discard("partitions")
    async with opened(silent) as store:
        assert len(store.partitions) == 4
    with pytest.raises(StoreUnsuitable, match="has 4 partitions, and this process was told 8"):
        await Store.open(settings.model_copy(update={"partitions": 8}))
