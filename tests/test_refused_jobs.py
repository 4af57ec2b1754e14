"""Refused jobs: told with reason and Retry-After, counted, brought back by the calendar; evicted ones come back too."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tracemalloc
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from doors import SHUT, classes, tell
from handwork import HOST, claim_all, end, publish_catalog, settings_for
from hosting import until
from hypothesis import given
from hypothesis import strategies as st

from admission.admission_policy import ClassPolicy, TenantPolicy
from cluster import admission, reader
from cluster.config import Settings
from cluster.errors import StoreUnavailable
from cluster.lifecycle import RunState
from cluster.records import NewRun, Submitted
from penstock import Client, PenstockError
from penstock.errors import Refused, SubmissionInterrupted
from penstock.refusals import KEPT_REFUSALS, Refusals, come_back, in_words
from penstock.submit_views import Refusal, SubmitProgress
from penstock.waiting_room import WaitingRoom


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return settings_for(redis_url, f"t-{uuid.uuid4().hex[:12]}", partitions=2)


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[Client]:
    async with Client(settings=settings) as opened:
        await publish_catalog(opened.store)
        yield opened


def job(number: int | str, **fields: Any) -> dict[str, Any]:
    return {"custom_id": f"job-{number}", "agent": "echo", "input": {"text": "x"}, **fields}


# Told


async def test_without_a_controller_everything_is_accepted_and_nothing_is_predicted(client: Client) -> None:
    report = await client.submit([job(number) for number in range(5)], batch="b")
    assert (report.accepted, report.refused, report.first, report.last) == (5, 0, None, None)


async def test_accepted_ones_have_a_place_and_a_predicted_wait(client: Client) -> None:
    await tell(client.store, classes=classes(normal=ClassPolicy(5000, 5000, 5, pace=0.1, room=1.0)))
    report = await client.submit([job("n"), job("h", value="high"), job("c", value="critical:99")], batch="b")
    assert report.accepted == 3
    assert report.first is not None
    assert report.last is not None
    assert report.first.custom_id != "job-n"
    assert (report.last.custom_id, report.last.place > 1) == ("job-n", True)
    assert 0.3 < report.last.wait_s < 1.5


async def test_refused_ones_are_told_by_reason_with_line_and_time(client: Client, tmp_path: Path) -> None:
    allowed = TenantPolicy(ranks=(3, 4))
    await tell(client.store, classes=classes(normal=SHUT), tenants={"trial": allowed})
    lines = [
        job(1, value="high"), job(2, max_wait=5), job(3, tenant="trial", value="critical"), job(4, deadline=0.001),
        job(5, max_wait="30s"),
    ]  # fmt: skip
    file = tmp_path / "jobs.jsonl"
    file.write_text("\n" + "\n".join(json.dumps(line) for line in lines))
    told: list[Refusal] = []
    report = await client.submit_file(file, on_refused=told.append)
    assert (report.accepted, report.refused, report.retries, report.waiting) == (1, 4, 0, 0)
    by_id = {each.custom_id: each for each in report.refusals}
    assert {name: (each.line, each.reason, each.by_itself) for name, each in by_id.items()} == {
        "job-2": (3, "queue", True),
        "job-3": (4, "tenant_class", False),
        "job-4": (5, "deadline", False),
        "job-5": (6, "queue", True),
    }
    assert by_id["job-3"].retry_after_s is by_id["job-4"].retry_after_s is None
    assert (by_id["job-2"].retry_after_s or 0) >= 1
    assert sorted(told, key=lambda each: each.line) == sorted(report.refusals, key=lambda each: each.line)
    reasons = {each.reason: each for each in report.reasons}
    assert (reasons["queue"].count, reasons["queue"].by_itself, reasons["tenant_class"].never) == (2, 2, 1)
    assert report.reasons[0].reason == "queue"
    # Nothing of them is kept, and the same file later makes only what is missing.
    assert (await client.status(report.batch)).total == 1
    await tell(client.store)
    again = await client.submit_file(file)
    assert (again.accepted, again.existing, again.refused) == (4, 1, 0)


async def test_a_flood_by_one_tenant_leaves_the_others_alone(client: Client) -> None:
    await tell(client.store, tenants={"flood": TenantPolicy(left=5)})
    others = [job(f"other-{number}", tenant=f"t{number}") for number in range(20)]
    flood = [job(f"flood-{number}", tenant="flood") for number in range(3000)]
    report = await client.submit([*flood, *others], batch="b")
    assert report.accepted == 20 + 2 * 5
    assert [(each.reason, each.count) for each in report.reasons] == [("tenant_queued", 2990)]
    assert len(report.refusals) == KEPT_REFUSALS
    first = await claim_all(client.store, most=8)
    assert sum(not claim.custom_id.startswith("job-flood") for claim in first) >= 12, "they take turns"


async def test_a_refused_run_raises_what_it_was_refused_for(client: Client) -> None:
    await tell(client.store, classes=classes(normal=SHUT, low=ClassPolicy(1e6, 1e6, 60, pace=1.0, room=-1.0)))
    with pytest.raises(Refused, match=r"was refused \(queue\).*come back in \d+\.\d s") as caught:
        await client.run("echo", {"text": "x"}, max_wait=5)
    assert isinstance(caught.value, PenstockError)
    assert (caught.value.reason, caught.value.by_itself) == ("queue", True)
    assert (caught.value.retry_after_s or 0) >= 1
    with pytest.raises(Refused, match="nobody knows when there is room") as hopeless:
        await client.run("echo", {"text": "x"}, max_wait=5, value="low")
    assert (hopeless.value.by_itself, (hopeless.value.retry_after_s or 0) >= 300) == (False, True)
    with pytest.raises(Refused, match="its deadline cannot be met; it cannot be accepted as it is") as late:
        await client.run("echo", {"text": "x"}, deadline=0.001)
    assert late.value.retry_after_s is None


@pytest.mark.parametrize(
    ("reason", "words"),
    [("queue", "longer than it may"), ("dependency:models", "dependency models"), ("of the future", "of the future")],
)
def test_reasons_in_words(reason: str, words: str) -> None:
    assert words in in_words(reason)
    assert come_back(None, by_itself=False) == "it cannot be accepted as it is"


def test_a_million_refusals_are_counted_and_a_thousand_kept() -> None:
    told = 0

    def tell_of(_: Refusal) -> None:
        nonlocal told
        told += 1

    refusals = Refusals(tell_of)
    tracemalloc.start()
    for number in range(50_000):
        after_s = None if number % 5 == 0 else number / 10
        refusals.add(
            Refusal(
                custom_id=f"job-{number}", line=number, reason=("queue", "store")[number % 2], retry_after_s=after_s,
                by_itself=after_s is not None, run_id="",
            )
        )  # fmt: skip
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1_000_000
    assert (refusals.count, told, len(refusals.kept)) == (50_000, 50_000, KEPT_REFUSALS)
    queue = next(each for each in refusals.reasons if each.reason == "queue" or each.reason == "store")
    assert (queue.count, queue.never, queue.by_itself) == (25_000, 5000, 20_000)
    store = next(each for each in refusals.reasons if each.reason == "queue")
    assert (store.first_s, store.last_s) == (0.2, 4999.8)


# Coming back


async def test_refused_jobs_come_back_until_they_are_in(client: Client) -> None:
    await tell(client.store, classes=classes(normal=SHUT))
    seen: list[SubmitProgress] = []
    jobs = [job(number, max_wait=5) for number in range(300)] + [job("never", tenant="t", deadline=0.001)]
    submitting = asyncio.create_task(
        client.submit(iter(jobs), batch="b", retry_refused=True, on_progress=seen.append)
    )  # fmt: skip
    await until(lambda: any(each.waiting == 300 for each in seen), "all of them wait")
    assert not submitting.done()
    await tell(client.store)
    report = await asyncio.wait_for(submitting, 20)
    assert (report.accepted, report.refused, report.waiting) == (300, 1, 0)
    assert report.retries >= 300
    assert [each.reason for each in report.reasons] == ["deadline"]
    assert (await client.status("b")).total == 300
    phases = {each.phase for each in seen}
    assert {"submit", "retry"} <= phases
    # They said that they came again: that is no new load.
    statistics = (await admission.exchange(client.store, 0)).statistics["classes"][2]
    assert statistics["again"] == statistics["accepted"]


async def test_coming_back_gives_nobody_a_later_deadline_and_makes_no_other_job_of_it(client: Client) -> None:
    await tell(client.store, classes=classes(normal=SHUT))
    before_ms = await client.store.server_ms()
    submitting = asyncio.create_task(client.submit([job(1, deadline=30)], batch="b", retry_refused=True))
    await asyncio.sleep(0.2)
    await tell(client.store)
    assert (await asyncio.wait_for(submitting, 10)).accepted == 1
    (run,) = await client.runs(batch="b")
    record = await reader.record(client.store, run.run_id)
    assert record is not None
    assert record.deadline_ms is not None
    assert abs(record.deadline_ms - before_ms - 30_000) < 700
    assert record.accepted_ms - before_ms >= 1000
    assert (await client.submit([job(1, deadline=30)], batch="b")).existing == 1


async def test_who_should_not_come_back_by_itself_is_refused_for_good(client: Client) -> None:
    await tell(client.store, classes=classes(low=ClassPolicy(1e6, 1e6, 60, pace=1.0, room=-1.0)))
    report = await client.submit([job(1, value="low", max_wait=5)], retry_refused=True)
    (refusal,) = report.refusals
    assert (refusal.by_itself, refusal.retry_after_s is not None, report.retries) == (False, True, 0)


async def test_an_interruption_leaves_nothing_behind_and_tells_how_far_it_was(client: Client) -> None:
    await tell(client.store, classes=classes(normal=SHUT))
    seen: list[SubmitProgress] = []
    submitting = asyncio.create_task(
        client.submit(
            [job(1, max_wait=5), job(2, value="high")], batch="b", retry_refused=True, on_progress=seen.append
        )
    )
    await until(lambda: bool(seen) and seen[-1].waiting == 1)
    submitting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await submitting
    assert (seen[-1].accepted, seen[-1].next_s > 0) == (1, True)
    assert (await client.submit([job(1, max_wait=5), job(2, value="high")], batch="b")).existing == 1


async def test_a_store_that_fails_meanwhile_says_who_waited(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    await tell(client.store, classes=classes(normal=SHUT))
    real = client.store.submit
    calls = 0

    async def fails_later(batch: str, partition: int, runs: list[NewRun]) -> list[Submitted]:
        nonlocal calls
        calls += 1
        if any(run.again for run in runs):
            raise StoreUnavailable("gone")
        return await real(batch, partition, runs)

    monkeypatch.setattr(client.store, "submit", fails_later)
    with pytest.raises(SubmissionInterrupted, match="1 acknowledged jobs") as caught:
        await client.submit([job(1, max_wait=5), job(2, value="high")], batch="b", retry_refused=True)
    assert (caught.value.report.accepted, caught.value.report.refused) == (1, 0)


@given(
    st.lists(st.tuples(st.integers(0, 50), st.binary(max_size=40)), max_size=60),
    st.lists(st.integers(0, 60), max_size=20),
)
def test_the_waiting_room_gives_back_what_is_due_in_order(kept: list[tuple[int, bytes]], looks: list[int]) -> None:
    with WaitingRoom() as room:
        left = dict[int, tuple[int, bytes]]()
        for line, (at_ms, raw) in enumerate(kept):
            room.add(at_ms, NewRun(f"r{line}", "c", "a", 1, "d", raw, "", ""), line)
            left[line] = at_ms, raw
        for now_ms in sorted(looks):
            back = room.due(now_ms, 7)
            due = sorted(at_ms for at_ms, _ in left.values() if at_ms <= now_ms)
            assert len(back) == min(7, len(due))
            assert [left[each.line][0] for each in back] == due[: len(back)]
            for each in back:
                assert each.run.job == left.pop(each.line)[1]
                if each.line % 3 == 0:  # refused again: it stays where it is written
                    room.add(now_ms + 20, each.run, each.line, each.place)
                    left[each.line] = now_ms + 20, each.run.job
            assert len(room) == len(left)
            assert room.next_ms == min((at_ms for at_ms, _ in left.values()), default=None)


def test_those_who_wait_take_little_memory() -> None:
    with WaitingRoom() as room:
        tracemalloc.start()
        for number in range(20_000):
            room.add(number, NewRun(f"r{number}", "c", "a", 1, "d", b"x" * 2000, "", ""), number)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < 100 * 20_000


# Evicted


async def evicted(client: Client, count: int = 3) -> list[str]:
    """Submits jobs to the batch, and has them shed for what comes; their ids."""
    await tell(client.store, count_bound=count)
    low = [job(f"low-{number}", value="low") for number in range(2 * count)]
    assert (await client.submit(low, batch="b")).accepted >= count
    before = await client.runs(batch="b", state=RunState.QUEUED)
    await client.submit([job(f"high-{number}", value="high") for number in range(200)], batch="other")
    shed = [each.run_id for each in await client.runs(batch="b", state=RunState.SHED)]
    assert sorted(shed) == sorted(each.run_id for each in before)
    return shed


async def test_what_was_evicted_ends_as_shed_and_tells_when_to_come_back(client: Client) -> None:
    shed = await evicted(client)
    results = [each async for each in client.results("b")]
    assert {each.state for each in results} == {"shed"}
    assert all(each.reason == "queue_full" and each.by_itself for each in results)
    assert all(each.retry_after_s is not None and each.retry_after_s >= 1 for each in results)
    assert (await client.status("b")).count(RunState.SHED) == len(shed)
    view = await client.show(shed[0])
    assert (view.retry_after_s or 0) >= 1
    why = await client.why(shed[0])
    assert why.reason == "queue_full: the queue is full of what is worth as much or more"
    assert why.next.startswith("come back at 20")
    assert "becomes this run again" in why.next
    # The same job again is this run again.
    await tell(client.store)
    names = {each.run_id: each.custom_id for each in await client.runs(batch="b")}
    report = await client.submit([job(names[shed[0]].removeprefix("job-"), value="low")], batch="b")
    assert (report.accepted, report.existing) == (1, 0)
    record = await reader.record(client.store, shed[0])
    assert record is not None
    assert (record.state, record.retry_after_ms, record.by_itself) == (RunState.QUEUED, None, False)


async def test_a_watch_can_bring_back_what_was_shed(client: Client) -> None:
    shed = await evicted(client)
    await tell(client.store)
    waits: list[tuple[int, float]] = []
    await client.store.heartbeat(HOST, json.dumps({"node": "here"}))

    async def work() -> None:
        while True:
            await end(client.store, await claim_all(client.store))
            await asyncio.sleep(0.02)

    working = asyncio.create_task(work())
    try:
        async with asyncio.timeout(20):
            statuses = [
                each async for each in client.watch("b", retry_shed=True, on_wait=lambda *told: waits.append(told))
            ]
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    assert statuses[-1].terminal
    assert statuses[-1].by_state == {"succeeded": len(shed)}
    assert waits[0][0] == len(shed)


async def test_a_watch_ends_when_what_was_shed_is_refused_for_good(client: Client) -> None:
    shed = await evicted(client)
    await tell(client.store, tenant_default=TenantPolicy(ranks=(0, 1)))
    async with asyncio.timeout(20):
        statuses = [each async for each in client.watch("b", retry_shed=True)]
    assert statuses[-1].by_state == {"shed": len(shed)}
