"""The client against a real server: submitting, waiting, looking, cancelling; runs are worked by hand."""

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from handwork import HOST, claim_all, end, hand, publish_catalog, settings_for
from pydantic import BaseModel
from valkey_cluster import ValkeyCluster

from actors.job import Job
from actors.journal import Entry, encode_entry
from cluster.config import Settings
from cluster.embedded import EmbeddedValkey
from cluster.errors import StoreUnavailable, StoreUnsuitable
from cluster.keys import partition_of
from cluster.lifecycle import RunState
from cluster.records import Append, Claim, Park
from penstock import Client, SyncClient
from penstock.errors import (
    InvalidBatch,
    InvalidBatchKey,
    NoSuchBatch,
    NoSuchHost,
    NoSuchRun,
    SubmissionInterrupted,
    WaitTimedOut,
)
from penstock.names import is_run_id


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return settings_for(redis_url, f"t-{uuid.uuid4().hex[:12]}")


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[Client]:
    async with Client(settings=settings) as opened:
        await publish_catalog(opened.store)
        yield opened


def job(number: int | str, text: str = "hello", **fields: Any) -> dict[str, Any]:
    return {"custom_id": f"job-{number}", "agent": "echo", "input": {"text": text}, **fields}


def write_jobs(path: Path, count: int, text: str = "hello") -> Path:
    path.write_text("".join(json.dumps(job(number, text)) + "\n" for number in range(count)))
    return path


# Submitting


async def test_the_same_jobs_are_made_once(client: Client) -> None:
    jobs = [job(number) for number in range(300)]
    first = await client.submit(jobs, batch="b")
    again = await client.submit([Job(**each) for each in jobs[:200]] + [Job(**job("new"))], batch="b")
    assert (first.accepted, first.existing, first.conflict_count) == (300, 0, 0)
    assert (again.accepted, again.existing, again.conflict_count) == (1, 200, 0)
    status = await client.status("b")
    assert (status.total, status.by_state, status.terminal) == (301, {"queued": 301}, False)


async def test_another_job_under_the_same_custom_id_is_a_conflict_and_changes_nothing(client: Client) -> None:
    await client.submit([job(1), job(2)], batch="b")
    report = await client.submit([job(1, "other"), job(2), job(3)], batch="b")
    assert (report.accepted, report.existing, report.conflict_count) == (1, 1, 1)
    (conflict,) = report.conflicts
    assert conflict.custom_id == "job-1"
    assert (await client.show(conflict.run_id)).input == {"text": "hello"}


async def test_jobs_from_code_get_a_batch_of_their_own(client: Client) -> None:
    first, second = await client.submit([job(1)]), await client.submit([job(1)])
    assert first.batch != second.batch
    assert (first.accepted, second.accepted) == (1, 1)


async def test_jobs_may_come_from_iterators_and_have_models_as_inputs(client: Client) -> None:
    class Input(BaseModel):
        text: str

    async def coming() -> AsyncIterator[dict[str, Any]]:
        for number in range(3):
            await asyncio.sleep(0)
            yield {**job(number), "input": Input(text="model")}

    assert (await client.submit(coming(), batch="a")).accepted == 3
    assert (await client.submit((Job(**job(number)) for number in range(5)), batch="g")).accepted == 5
    (run, *_) = await client.runs(batch="a")
    assert (await client.show(run.run_id)).input == {"text": "model"}


async def test_a_list_with_bad_jobs_is_refused_as_a_whole(client: Client) -> None:
    bad = [job(number) for number in range(500)]
    bad[3] = job(3, text=7)  # type: ignore[arg-type]
    bad[4]["agent"] = "ecko"
    bad[5]["colour"] = "red"
    with pytest.raises(InvalidBatch) as caught:
        await client.submit(bad, batch="b")
    assert [(each.line, each.field) for each in caught.value.problems] == [
        (4, "input.text"),
        (5, "agent"),
        (6, "colour"),
    ]
    assert "nothing was submitted" in str(caught.value)
    with pytest.raises(NoSuchBatch):
        await client.status("b")


async def test_an_iterator_with_a_bad_job_tells_what_went_before(client: Client) -> None:
    with pytest.raises(InvalidBatch, match=r"job 401 \(job-9\), agent: no agent") as caught:
        await client.submit((job(n) if n < 400 else job(9, agent="x") for n in range(500)), batch="b")
    assert caught.value.accepted == (await client.status("b")).total == 400


@pytest.mark.parametrize("batch", ["", "a:b", "a b", "{x}", "-x", "x" * 129, "0a-0123456789abcdef01234567"])
async def test_keys_that_would_mix_things_up_are_refused(client: Client, batch: str) -> None:
    with pytest.raises(InvalidBatchKey):
        await client.submit([job(1)], batch=batch)


async def test_a_key_that_makes_jobs_one_over_batches(client: Client) -> None:
    first = await client.submit([job(1, idempotency_key="k")], batch="a")
    second = await client.submit([job(1, idempotency_key="k")], batch="b")
    other = await client.submit([job(1, idempotency_key="k", tenant="other")], batch="b")
    assert (first.accepted, second.accepted, second.existing, other.accepted) == (1, 0, 1, 1)


async def test_a_file_is_one_batch_however_often_it_is_submitted(client: Client, tmp_path: Path) -> None:
    path = write_jobs(tmp_path / "jobs.jsonl", 700)
    told: list[str] = []
    first = await client.submit_file(path, on_progress=lambda progress: told.append(progress.phase))
    second = await client.submit_file(str(path))
    renamed = await client.submit_file(path.rename(tmp_path / "other.jsonl"))
    assert (first.accepted, second.accepted, renamed.accepted) == (700, 0, 0)
    assert first.batch == second.batch == renamed.batch
    assert told[0] == "check"
    assert told[-1] == "submit"
    elsewhere = await client.submit_file(tmp_path / "other.jsonl", batch="mine")
    assert (elsewhere.batch, elsewhere.accepted) == ("mine", 700)


async def test_a_bad_file_submits_nothing_or_what_is_good(client: Client, tmp_path: Path) -> None:
    path = write_jobs(tmp_path / "jobs.jsonl", 10)
    with path.open("a") as file:
        file.write(json.dumps(job(3)) + "\n{\n" + json.dumps(job("last")) + "\n")
    with pytest.raises(InvalidBatch, match=r"2 problems in .*nothing was submitted") as caught:
        await client.submit_file(path)
    assert [problem.line for problem in caught.value.problems] == [11, 12]
    with pytest.raises(NoSuchBatch):
        await client.status(caught.value.batch)
    report = await client.submit_file(path, skip_invalid=True)
    assert (report.accepted, report.invalid_lines, report.problem_count) == (11, 2, 2)
    assert report.batch == caught.value.batch


async def test_two_submitters_at_once_make_one_batch(client: Client, settings: Settings, tmp_path: Path) -> None:
    path = write_jobs(tmp_path / "jobs.jsonl", 3000)
    async with Client(settings=settings) as other:
        reports = await asyncio.gather(client.submit_file(path), other.submit_file(path))
    assert sum(report.accepted for report in reports) == 3000
    assert sum(report.existing for report in reports) == 3000
    status = await client.status(reports[0].batch)
    assert (status.total, status.by_state) == (3000, {"queued": 3000})
    claims = await claim_all(client.store, most=4000)
    assert len({claim.custom_id for claim in claims}) == len(claims) == 3000


SUBMITTER = """
import asyncio, sys
from pathlib import Path
from penstock import Client, Settings

async def main():
    async with Client(settings=Settings(name=sys.argv[1])) as client:
        print("ready", flush=True)
        print((await client.submit_file(Path(sys.argv[2]))).accepted, flush=True)

asyncio.run(main())
"""


async def test_a_killed_submitter_is_made_good_by_submitting_again(
    client: Client, settings: Settings, tmp_path: Path
) -> None:
    path = write_jobs(tmp_path / "jobs.jsonl", 12_000)
    assert settings.redis_url is not None
    process = subprocess.Popen(
        [sys.executable, "-c", SUBMITTER, settings.name, str(path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PENSTOCK_REDIS_URL": settings.redis_url.get_secret_value()},
        cwd=Path(__file__).parent.parent,
    )
    assert process.stdout is not None
    assert await asyncio.to_thread(process.stdout.readline) == b"ready\n"
    while not (batches := await client.deployment()).batches or batches.batches[0].total < 1000:
        assert process.poll() is None, "it was too fast to be killed"
        await asyncio.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    half = (await client.deployment()).batches[0]
    assert 1000 <= half.total < 12_000
    report = await client.submit_file(path)
    assert report.batch == half.batch
    assert report.accepted + report.existing == 12_000
    assert report.existing >= half.total
    assert (await client.status(half.batch)).by_state == {"queued": 12_000}


async def test_a_store_that_dies_meanwhile_is_named_and_submitting_again_completes(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / "store") as server:
        settings = settings_for(server.url, "t", store_timeout_s=0.5)
        async with Client(settings=settings) as client:
            await publish_catalog(client.store)

            def jobs() -> Any:
                for number in range(5000):
                    if number == 2500:
                        server.stop()
                    yield job(number)

            with pytest.raises(
                SubmissionInterrupted, match="Submit the same jobs again under the same batch"
            ) as caught:
                await client.submit(jobs(), batch="b")
            acknowledged = caught.value.report.accepted
            assert isinstance(caught.value.__cause__, StoreUnavailable)
        server.start()
        async with Client(settings=settings) as client:
            report = await client.submit([job(number) for number in range(5000)], batch="b")
            assert report.existing >= acknowledged, "acknowledged means durable"
            assert (await client.status("b")).total == 5000


# Waiting


async def test_run_returns_the_result_whatever_the_end(client: Client, settings: Settings) -> None:
    async with hand(settings, lambda claim: RunState.FAILED if "bad" in claim.custom_id else RunState.SUCCEEDED):
        good = await client.run("echo", {"text": "a"})
        bad = await client.run("echo", {"text": "a"}, custom_id="bad", tenant="acme")
    assert (good.state, good.output, good.error, good.succeeded) == ("succeeded", {"echo": good.custom_id}, None, True)
    assert (bad.state, bad.output, str(bad.error)) == ("failed", None, "Boom: by hand (step 0)")
    assert good.waited_s is not None
    assert good.ran_s is not None


async def test_run_costs_little_more_than_its_round_trips(client: Client, settings: Settings) -> None:
    async with hand(settings):
        await client.run("echo", {"text": "warm"})
        took = []
        for _ in range(60):
            started = time.perf_counter()
            await client.run("echo", {"text": "a"})
            took.append(time.perf_counter() - started)
    # Submit, claim, finish and read are four durable round trips here; the poll that is the net takes 500 ms.
    assert sorted(took)[len(took) // 2] < 0.05


async def test_many_runs_at_once_each_get_their_own_result(client: Client, settings: Settings) -> None:
    async with hand(settings):
        results = await asyncio.gather(*(client.run("echo", {"text": "a"}, custom_id=f"r-{n}") for n in range(300)))
    assert [result.output for result in results] == [{"echo": f"r-{n}"} for n in range(300)]


async def test_run_waits_no_longer_than_it_was_told_and_the_run_goes_on(client: Client) -> None:
    with pytest.raises(WaitTimedOut, match="it goes on"):
        await client.run("echo", {"text": "nobody works"}, timeout_s=0.1)
    (left,) = await client.runs(state="queued")
    assert left.agent == "echo"


async def test_run_of_a_job_that_another_submission_made(client: Client, settings: Settings) -> None:
    await client.submit([job("x", idempotency_key="k")], batch="b")
    waiting = asyncio.create_task(client.run("echo", {"text": "hello"}, idempotency_key="k"))
    await asyncio.sleep(0.05)
    await end(client.store, await claim_all(client.store))
    assert (await waiting).output == {"echo": "job-x"}
    with pytest.raises(InvalidBatch, match="another job with other content has this idempotency_key"):
        await client.run("echo", {"text": "other"}, idempotency_key="k")


async def test_run_of_a_bad_job_is_refused_and_a_new_agent_is_seen(client: Client) -> None:
    with pytest.raises(InvalidBatch, match=r"input\.text"):
        await client.run("echo", {"text": 1})
    with pytest.raises(InvalidBatch, match="no agent 'late'"):
        await client.run("late", None)
    await client.store.set_fields(client.store.keys.catalog, {"late": json.dumps({"version": "1", "input_schema": {}})})
    with pytest.raises(WaitTimedOut):
        await client.run("late", None, timeout_s=0.05)


async def test_run_ends_when_nobody_can_prove_how_it_went(client: Client, settings: Settings) -> None:
    async with hand(settings, lambda _: RunState.CONFIRMATION_UNKNOWN):
        took = []
        for _ in range(5):
            started = time.perf_counter()
            assert (await client.run("echo", {"text": "a"}, timeout_s=5)).state == "confirmation_unknown"
            took.append(time.perf_counter() - started)
    # It is told of it: the poll that is the net takes 500 ms.
    assert min(took) < 0.25


async def test_watch_tells_every_stage_until_the_end(client: Client) -> None:
    await client.submit([job(number) for number in range(20)], batch="b")
    seen = []

    async def work() -> None:
        for count in (5, 15):
            await asyncio.sleep(0.15)
            claims = (await claim_all(client.store))[:count]
            await end(client.store, claims, RunState.SUCCEEDED if count == 5 else RunState.FAILED)
            if count == 5:
                await client.cancel("b")

    async def watch() -> None:
        async for status in client.watch("b"):
            seen.append(status)

    working = asyncio.create_task(work())
    async with asyncio.timeout(10):
        await asyncio.sleep(0)
        watching = asyncio.create_task(watch())
        await working
        claims = [
            Claim(run.run_id, 1, "echo", run.custom_id, "b", b"", 0, None, 0, "", "", [])
            for run in await client.runs(batch="b", state="running")
        ]
        await end(client.store, claims, RunState.CANCELLED)
        await watching
    assert seen[0].by_state == {"queued": 20}
    assert not seen[0].terminal
    assert seen[-1].by_state == {"succeeded": 5, "cancelled": 15}
    assert (seen[-1].terminal, seen[-1].settled, seen[-1].ended, seen[-1].count(RunState.CANCELLED)) == (
        True,
        True,
        20,
        15,
    )


async def test_watching_ends_at_any_moment(client: Client) -> None:
    """Also when it ends while the connection to listen on is being made (redis-py can lose a cancellation there)."""
    await client.submit([job(1)], batch="b")
    async with asyncio.timeout(20):
        for moment in range(40):
            async with contextlib.aclosing(client.watch("b")) as statuses:
                await anext(statuses)
                await asyncio.sleep(moment * 0.0002)


async def test_unknown_runs_settle_a_batch_and_do_not_end_it(client: Client) -> None:
    await client.submit([job(1), job(2)], batch="b")
    claims = await claim_all(client.store)
    await end(client.store, claims[:1])
    await end(client.store, claims[1:], RunState.CONFIRMATION_UNKNOWN)
    status = await client.status("b")
    assert (status.terminal, status.settled, status.ended) == (False, True, 1)


# Looking


async def test_results_are_of_ended_runs_by_custom_id(client: Client) -> None:
    await client.submit([job(number) for number in range(1300)], batch="b")
    claims = await claim_all(client.store)
    await end(client.store, claims[:1200])
    await end(client.store, claims[1200:1210], RunState.FAILED)
    found = {result.custom_id: result async for result in client.results("b")}
    assert len(found) == 1210
    good = found[claims[0].custom_id]
    assert good.output == {"echo": claims[0].custom_id}
    assert is_run_id(good.run_id)
    assert good.accepted_ms <= (good.started_ms or 0) <= (good.ended_ms or 0)
    as_line = json.loads(msgspec.json.encode(found[claims[1200].custom_id]))
    said = {"class": "Boom", "message": "by hand", "step": "0", "end": "", "ended_by": ""}
    assert as_line["error"] == said
    with pytest.raises(NoSuchBatch):
        await anext(client.results("nothing"))


async def test_listing_by_batch_and_state(client: Client) -> None:
    await client.submit([job(number) for number in range(30)], batch="a")
    claims = (await claim_all(client.store))[:10]
    await end(client.store, claims)
    await client.submit([job(number) for number in range(5)], batch="b")
    assert len(await client.runs(limit=7)) == 7
    assert len(await client.runs(batch="a", limit=100)) == 30
    done = await client.runs(state=RunState.SUCCEEDED)
    assert {run.run_id for run in done} == {claim.id for claim in claims}
    assert {run.batch for run in await client.runs(state="queued")} == {"b"}
    with pytest.raises(ValueError, match="sleeping"):
        await client.runs(state="sleeping")


async def test_a_rare_state_is_found_among_many(client: Client) -> None:
    await client.submit([job(number) for number in range(1500)], batch="b")
    claims = await claim_all(client.store)
    await end(client.store, claims[700:703], RunState.FAILED)
    await asyncio.sleep(0.005)
    await end(client.store, claims[:700] + claims[703:])
    rare = {claim.id for claim in claims[700:703]}
    assert {run.run_id for run in await client.runs(state="failed", limit=5)} == rare
    assert {run.run_id for run in await client.runs(batch="b", state="failed")} == rare
    assert len(await client.runs(state="failed", limit=2)) == 2
    assert len(await client.runs(batch="b", state="succeeded", limit=600)) == 600
    assert await client.runs(state="shed") == await client.runs(batch="b", state="shed") == []


async def test_show_has_the_job_and_the_journal(client: Client) -> None:
    await client.submit([job(1, metadata={"k": "v"}, tenant="acme", value="high", deadline=500)], batch="b")
    (claim,) = await claim_all(client.store)
    entry = Entry(1, "call", "0", "get_order", b"\x01" * 16, "ok", b'{"total": 3}', 2, 1000, 1500)
    append = Append(claim.id, claim.fence, 0, 1, [encode_entry(entry)])
    assert await client.store.append(partition_of(claim.id), [append]) == {}
    shown = await client.show(claim.id)
    assert (shown.custom_id, shown.state, shown.host, shown.tenant, shown.value) == (
        "job-1",
        "running",
        HOST,
        "acme",
        "high",
    )
    assert shown.metadata == {"k": "v"}
    assert shown.deadline_ms == shown.accepted_ms + 500_000
    (step,) = shown.journal
    assert (step.step, step.kind, step.name, step.status, step.attempts, step.payload) == (
        "0",
        "call",
        "get_order",
        "ok",
        2,
        {"total": 3},
    )
    why = await client.why(claim.id)
    assert why.last_step.startswith("0 call get_order (ok, 2 attempts)")
    assert (await client.status("b")).steps == 1


@pytest.mark.parametrize("run_id", ["nothing", "00-0123456789abcdef01234567", "ff-0123456789abcdef01234567", "zz-x"])
async def test_a_run_that_is_not_there(client: Client, run_id: str) -> None:
    for ask in (client.show, client.why):
        with pytest.raises(NoSuchRun, match=run_id):
            await ask(run_id)


async def test_why_a_queued_run_waits(client: Client) -> None:
    await client.submit([job(number, max_wait=100, deadline=200) for number in range(40)], batch="b")
    run = (await client.runs(batch="b"))[-1]
    nobody = await client.why(run.run_id)
    assert "place " in nobody.owner
    assert "no host is alive" in nobody.next
    assert re.fullmatch(
        r"deadline 20[-T:\d]+Z, in (200|19\d)\.\d s: then it is cancelled; "
        r"max_wait 100 s, over in (100|9\d)\.\d s: then it is shed",
        nobody.bound,
    )
    await client.store.heartbeat(HOST, "{}")
    assert (await client.why(run.run_id)).next == "one of 1 hosts claims it when it has a free slot"
    await client.drain(HOST)
    assert "every host is draining" in (await client.why(run.run_id)).next


async def test_why_a_run_is_not_served(client: Client) -> None:
    await client.submit([job(1)], batch="b")
    for partition in client.store.partitions:
        await client.store.claim(partition, HOST, 10, ["other", "1"])
    (run,) = await client.runs(batch="b")
    why = await client.why(run.run_id)
    assert why.reason == "no host serves echo@(any version)"
    assert why.next.startswith("a host that serves echo starts")


async def test_why_a_running_run_and_what_the_watchdog_says(client: Client) -> None:
    await client.store.heartbeat(HOST, "{}")
    await client.submit([job(1)], batch="b")
    (claim,) = await claim_all(client.store)
    why = await client.why(claim.id)
    assert why.owner.startswith(f"host {HOST} (lease renewed, ")
    note = {"note": "blocks its host's event loop", "host": HOST, "blocked_s": 2.5, "at_ms": 1, "stack": "line 3\n x()"}
    await client.store.set_fields(client.store.keys.notes, {claim.id: json.dumps(note)})
    why = await client.why(claim.id)
    assert why.note.startswith(f"blocks its host's event loop (host {HOST}, blocked_s 2.5, ")
    assert "watchdog: blocks" in why.text
    await client.store.forget_host(HOST)
    assert "not registered any more" in (await client.why(claim.id)).owner


async def test_why_a_waiting_and_an_ended_run(client: Client) -> None:
    await client.submit([job(1), job(2)], batch="b")
    first, second = await claim_all(client.store)
    due_ms = await client.store.server_ms() + 60_000
    await client.store.park(partition_of(first.id), HOST, [Park(first.id, first.fence, "timer", due_ms, ())])
    why = await client.why(first.id)
    assert (why.state, why.reason, why.owner) == ("waiting", "timer", "the store's timers")
    assert "in 5" in why.bound or "in 60.0 s" in why.bound
    note = {"note": "blocks its host's event loop", "at_ms": 1}
    await client.store.set_fields(client.store.keys.notes, dict.fromkeys((first.id, second.id), json.dumps(note)))
    assert (await client.why(first.id)).note
    await end(client.store, [second], RunState.FAILED)
    why = await client.why(second.id)
    # What a watchdog said while it ran says nothing of its end.
    assert (why.reason, why.note) == ("Boom: by hand (step 0)", "")


# Changing


async def test_cancel_a_run_and_a_batch(client: Client) -> None:
    await client.submit([job(number) for number in range(700)], batch="b")
    claims = (await claim_all(client.store, most=10))[:3]
    await end(client.store, claims[:1])
    assert await client.cancel(claims[1].id) == 1
    assert (await client.show(claims[1].id)).cancel_requested == "cancelled by request"
    assert await client.cancel("b") == 699
    assert await client.cancel("b") == (await client.status("b")).by_state["running"]
    with pytest.raises(NoSuchRun):
        await client.cancel("00-0123456789abcdef01234567")
    with pytest.raises(NoSuchBatch):
        await client.cancel("nothing")


async def test_hosts_and_draining(client: Client) -> None:
    await client.store.heartbeat(HOST, json.dumps({"node": "n1", "slots": 10}))
    (host,) = await client.hosts()
    assert (host.host, host.alive, host.draining, host.info) == (HOST, True, False, {"node": "n1", "slots": 10})
    await client.drain(HOST)
    assert (await client.hosts())[0].draining
    await client.drain(HOST, undo=True)
    assert not (await client.hosts())[0].draining
    with pytest.raises(NoSuchHost, match=f"registered hosts: {HOST}"):
        await client.drain("other")


async def test_the_whole_deployment(client: Client) -> None:
    await client.store.heartbeat(HOST, "{}")
    await client.submit([job(1)], batch="first")
    await asyncio.sleep(0.002)
    await client.submit([job(1), job(2)], batch="second")
    seen = await client.deployment()
    assert (seen.total, seen.by_state) == (3, {"queued": 3})
    assert [(each.batch, each.total) for each in seen.batches] == [("second", 2), ("first", 1)]
    assert len(seen.hosts) == 1


async def test_on_a_cluster_of_three(valkey_cluster: ValkeyCluster, tmp_path: Path) -> None:
    settings = settings_for(valkey_cluster.url, f"t-{uuid.uuid4().hex[:12]}")
    async with hand(settings), Client(settings=settings) as client:
        report = await client.submit_file(write_jobs(tmp_path / "jobs.jsonl", 500))
        *_, last = [status async for status in client.watch(report.batch)]
        assert (last.total, last.by_state) == (500, {"succeeded": 500})
        assert len([result async for result in client.results(report.batch)]) == 500
        assert (await client.run("echo", {"text": "a"})).succeeded


async def test_no_store_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PENSTOCK_REDIS_URL", raising=False)
    with pytest.raises(StoreUnsuitable, match="penstock up"):
        await Client(settings=Settings.load(home=tmp_path)).open()
    with pytest.raises(StoreUnavailable, match="no store answers"):
        await Client("redis://:secret@127.0.0.1:1/0").open()
    with pytest.raises(RuntimeError, match="not open"):
        _ = Client("redis://127.0.0.1:1").store


# Without a loop


def test_the_synchronous_client_mirrors_every_method(settings: Settings, tmp_path: Path) -> None:
    public = {name for name in dir(Client) if not name.startswith("_")} - {"store", "result_pages"}
    assert public <= {name for name in dir(SyncClient) if not name.startswith("_")}
    with SyncClient(settings=settings) as client:
        loop = client._loop
        assert loop is not None
        asyncio.run_coroutine_threadsafe(publish_catalog(client._client.store), loop).result()
        report = client.submit_file(write_jobs(tmp_path / "jobs.jsonl", 30))
        assert client.submit((job(number) for number in range(3)), batch="b").accepted == 3
        statuses = client.watch(report.batch)
        assert next(statuses).by_state == {"queued": 30}
        asyncio.run_coroutine_threadsafe(_work(client._client), loop).result()
        assert list(statuses)[-1].terminal
        assert {result.custom_id for result in client.results(report.batch)} == {f"job-{n}" for n in range(30)}
        run = client.runs(batch="b")[0]
        assert client.show(run.run_id).batch == "b"
        assert client.why(run.run_id).state == "succeeded"
        assert client.cancel("b") == 0
        assert client.deployment().total == 33
        assert client.hosts() == []
        with pytest.raises(NoSuchHost):
            client.drain("x")
        with pytest.raises(WaitTimedOut):
            client.run("echo", {"text": "a"}, timeout_s=0.05)
        half = client.results(report.batch)
        next(half)
        half.close()
    with pytest.raises(RuntimeError, match="not open"):
        client.status("b")


async def _work(client: Client) -> None:
    await end(client.store, await claim_all(client.store))


# What is right whatever the order


@pytest.mark.parametrize("seed", range(3))
async def test_counts_add_up_after_submissions_in_any_order(client: Client, seed: int) -> None:
    draws = random.Random(seed)
    known: set[int] = set()
    for _ in range(6):
        numbers = draws.sample(range(400), draws.randint(1, 300))
        report = await client.submit([job(number) for number in numbers], batch="b")
        assert report.accepted == len(set(numbers) - known)
        assert report.existing == len(set(numbers) & known)
        known |= set(numbers)
    assert (await client.status("b")).total == len(known)
