"""What people are told by a real admission controller; junk, and clients whose clocks are wrong, harm nobody."""

from __future__ import annotations

import asyncio
import json
import time
import types
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hosting import Spine, spine, until

from cluster import reader
from penstock import Client, Run, agent
from penstock.batchfile import KEPT_PROBLEMS
from penstock.errors import InvalidBatch, NoSuchBatch

HOURS_S = 5 * 3600.0
TRIAL = "tenants:\n  trial: {classes: [low, best_effort]}\n"


@agent("nap", version="1")
async def nap(run: Run, seconds: float) -> float:
    """Holds a slot."""
    await asyncio.sleep(seconds)
    return seconds


def job(name: str, **fields: Any) -> dict[str, Any]:
    return {"custom_id": name, "agent": "nap", "input": 0.3, **fields}


@pytest.fixture
async def busy(redis_url: str) -> AsyncIterator[tuple[Spine, Client]]:
    """Four slots that a tenant's 80 jobs keep busy for some 6 s, as the controller knows."""
    async with spine(redis_url, nap) as deployment, Client(settings=deployment.settings) as client:
        await deployment.host(slots_per_host=4)
        controller = await deployment.control()
        await client.set_admission(TRIAL)
        await until(lambda: "trial" in controller.controller.policy.tenants, "the rules are read")
        report = await client.submit([job(f"high-{number}", value="high", tenant="acme") for number in range(80)])
        assert report.accepted == 80
        await until(lambda: controller.controller.policy.agent("nap").cost_ms < 600, "the cost of a run is learned")
        await until(lambda: controller.controller.policy.classes[1].queued > 20, "the queue is seen")
        yield deployment, client


HURRIED = [
    job("short", value="low", max_wait=0.2), job("late", value="low", deadline=0.7),
    job("above itself", tenant="trial", value="critical"),
]  # fmt: skip


async def test_what_the_controller_says_is_what_people_see(busy: tuple[Spine, Client]) -> None:
    _, client = busy
    report = await client.submit(HURRIED, batch="b")
    assert {each.custom_id: each.reason for each in report.refusals} == {
        "short": "queue", "late": "deadline", "above itself": "tenant_class",
    }  # fmt: skip

    async def told() -> bool:
        seen = await client.queue()
        return any(each.per_s for each in seen.shedding)

    await until(told, "the controller tells of what is refused")
    view = await client.queue()
    assert view.controller.fresh
    assert (view.drain.hosts, view.drain.slots) == (1, 4.0)
    assert view.drain.rate is not None
    assert view.drain.rate > 0
    assert (view.classes[3].wait_s or 0) > 0.2
    assert [(each.tenant, each.weight) for each in view.tenants] == [("acme", 1.0)]
    assert (view.tenants[0].waits_s["high"] or 0) > 0
    assert {(each.what, each.value_class, each.reason, each.total) for each in view.shedding} == {
        ("refused", "low", "queue", 1), ("refused", "low", "deadline", 1), ("refused", "critical", "tenant_class", 1),
    }  # fmt: skip
    accepted = await client.submit([job("patient", value="low")], batch="b")
    assert accepted.last is not None
    assert accepted.last.wait_s > 0.2
    (run,) = await client.runs(batch="b")
    assert "predicted to start in " in (await client.why(run.run_id)).next


async def test_a_dry_run_accepts_all_and_says_what_it_would_have_refused(busy: tuple[Spine, Client]) -> None:
    deployment, client = busy
    (controller,) = deployment.controllers
    await client.set_admission(TRIAL + "dry_run: true\n")
    await until(lambda: controller.controller.policy.dry_run, "the dry run begins")
    await controller.step()
    report = await client.submit(HURRIED, batch="b")
    assert (report.accepted, report.refused) == (3, 0)
    view = await client.queue()
    assert view.dry_run
    assert {(each.what, each.value_class, each.reason) for each in view.shedding if each.what == "would"} == {
        ("would", "low", "queue"), ("would", "low", "deadline"), ("would", "critical", "tenant_class"),
    }  # fmt: skip
    assert not any("dry run" in note for note in view.notes), "the headline says it"


async def test_of_a_file_of_junk_nothing_is_submitted_and_others_go_on(
    busy: tuple[Spine, Client], tmp_path: Path
) -> None:
    _, client = busy
    file = tmp_path / "junk.jsonl"
    good = {10, 5000, 19_999}
    with file.open("w") as lines:
        for line in range(1, 20_001):
            said = job(f"good-{line}") if line in good else {"id": line, "agent": "npa", "deadline": -line}
            lines.write(json.dumps(said) + "\n")
    submitting = asyncio.create_task(client.submit_file(file, batch="junk"))
    other = await client.submit([job("other", value="critical")], batch="other")
    assert other.accepted == 1
    with pytest.raises(InvalidBatch) as caught:
        await submitting
    assert caught.value.problem_count >= 20_000 - len(good)
    assert len(caught.value.problems) == KEPT_PROBLEMS
    assert {each.line for each in caught.value.problems} <= set(range(1, 200)) - good
    with pytest.raises(NoSuchBatch):
        await client.status("junk")
    report = await client.submit_file(file, batch="junk", skip_invalid=True)
    assert (report.accepted, report.invalid_lines) == (len(good), 20_000 - len(good))
    assert {each.custom_id for each in await client.runs(batch="junk")} == {f"good-{line}" for line in good}


@pytest.mark.parametrize("ahead_s", [-HOURS_S, HOURS_S])
async def test_a_client_whose_clock_is_hours_wrong(
    busy: tuple[Spine, Client], monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    deployment, client = busy
    monkeypatch.setattr("penstock.catalog.time", types.SimpleNamespace(time=lambda: time.time() + ahead_s))
    before_ms = await deployment.store.server_ms()
    # Lengths of time are counted by the store's clock, whatever the client's says.
    assert (await client.submit([job("length", deadline="1h", max_wait="30m")], batch="b")).accepted == 1
    (run,) = await client.runs(batch="b")
    record = await reader.record(deployment.store, run.run_id)
    assert record is not None
    assert record.deadline_ms is not None
    assert abs(record.deadline_ms - before_ms - 3_600_000) < 5000
    # A moment that the client takes to be in an hour, and by the store's clock is not.
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + ahead_s + 3600))
    if ahead_s > 0:
        assert (await client.submit([job("moment", deadline=moment)], batch="b")).accepted == 1
        return
    with pytest.raises(InvalidBatch) as caught:
        await client.submit([job("moment", deadline=moment)], batch="b")
    (problem,) = caught.value.problems
    assert problem.field == "deadline"
    assert "by the store's clock; this machine's clock is 5 h behind it" in problem.reason
    assert "set this machine's clock right" in problem.fix
