"""The admission controller against a real server, with real hosts: what it publishes holds at the doors."""

import asyncio
import json
from typing import Any

import pytest
from hosting import Spine, spine, until

from actors.job import Job, new_run
from cluster import reader
from cluster.admission_rules import put_rules
from cluster.keys import partition_of
from cluster.lifecycle import RunState
from cluster.queue_reader import explanation
from cluster.records import Made, Submitted
from penstock import Run, agent


@agent("nap", version="1")
async def nap(run: Run, seconds: float) -> float:
    """Holds a slot."""
    await asyncio.sleep(seconds)
    return seconds


_together: dict[str, int] = {}
_most: dict[str, int] = {}


@agent("counted", version="1")
async def counted(run: Run, key: str) -> None:
    """Counts how many of its kind run at once."""
    _together[key] = _together.get(key, 0) + 1
    _most[key] = max(_most.get(key, 0), _together[key])
    try:
        await asyncio.sleep(0.03)
    finally:
        _together[key] -= 1


async def offer(deployment: Spine, name: str, number: int, payload: Any = 0.2, **fields: Any) -> list[Submitted]:
    """So many jobs, and what the doors say."""
    answers: list[Submitted] = []
    for index in range(number):
        job = Job(custom_id=f"{fields.get('value', 'normal')}-{index}", agent=name, input=payload, **fields)
        run = new_run(job, "b", deployment.store.keys.partitions)
        answers += await deployment.store.submit("b", partition_of(run.id), [run])
    return answers


async def told(deployment: Spine) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(await explanation(deployment.store) or b"{}")
    return said


async def test_the_drain_and_what_runs_cost_are_learned_and_doors_predict_by_them(redis_url: str) -> None:
    async with spine(redis_url, nap) as deployment:
        await deployment.host(slots_per_host=4)
        controller = await deployment.control()
        await offer(deployment, "nap", 30, 0.1)
        # 30 runs of 0.1 s on 4 slots are over after 0.75 s.
        await until(lambda: controller.controller.policy.agent("nap").cost_ms < 250, "the cost of a run is learned")
        assert controller.controller.policy.agent("nap").cost_ms >= 95
        assert controller.controller.drain.slots == 4
        await offer(deployment, "nap", 40, 1.0, value="high")
        await until(lambda: controller.controller.policy.classes[1].queued > 20, "the queue is seen")
        (answer,) = await offer(deployment, "nap", 1, 0.1, value="low")
        assert answer.made is Made.MADE
        assert answer.wait_ms > 300
        (refused,) = await offer(deployment, "nap", 1, 0.1, value="best_effort", max_wait=0.05)
        assert refused.made is Made.REFUSED
        assert refused.reason == "queue"
        assert refused.retry_after_ms > 0


async def test_what_can_no_more_be_started_in_time_is_shed_with_a_time_to_come_back(redis_url: str) -> None:
    async with spine(redis_url, nap) as deployment:
        await deployment.host(slots_per_host=2)
        await deployment.control()
        cheap = await offer(deployment, "nap", 20, 0.2, value="best_effort", max_wait=20)
        assert all(each.made is Made.MADE for each in cheap)
        await offer(deployment, "nap", 120, 0.5, value="critical")

        async def shed() -> bool:
            return (await deployment.counts()).get("shed", 0) >= 5

        await until(shed, "the least valuable ones are shed")
        ids = [new_run(Job(custom_id=f"best_effort-{i}", agent="nap", input=0.2), "b", 2).id for i in range(20)]
        records = [await reader.record(deployment.store, run_id) for run_id in ids]
        gone = [each for each in records if each is not None and each.state is RunState.SHED]
        assert gone
        key = deployment.store.keys.run(gone[0].id)
        assert int(await deployment.store.command(key, "HGET", key, "retry_after_ms")) > 0

        async def seen() -> bool:
            said = await told(deployment)
            return bool(said["classes"][0]["queued"] > 50 and said["shedding"])

        await until(seen, "people are told of the queue, and of what is shed")
        counts = await deployment.counts()
        assert sum(counts.values()) == 140, counts


async def test_a_tenants_runs_never_exceed_its_cap_and_all_of_them_come_to_their_turn(redis_url: str) -> None:
    async with spine(redis_url, counted) as deployment:
        await put_rules(deployment.store, "v", "tenants: {acme: {max_running: 3}}\n", by="test")
        await deployment.control()
        for _ in range(2):
            await deployment.host(slots_per_host=20)
        await offer(deployment, "counted", 40, "capped", tenant="acme")
        await offer(deployment, "counted", 40, "free", tenant="other", value="low")

        async def over() -> bool:
            return (await deployment.counts()).get("succeeded", 0) == 80

        await until(over, "all runs end")
        assert _most["capped"] <= 3
        assert _most["free"] > 3


async def test_rules_hold_as_soon_as_they_are_set(redis_url: str) -> None:
    async with spine(redis_url, nap) as deployment:
        controller = await deployment.control()
        assert (await offer(deployment, "nap", 1, value="high", tenant="trial"))[0].made is Made.MADE
        await put_rules(deployment.store, "v", "tenants: {trial: {classes: [low]}}\n", by="test")
        await until(lambda: "trial" in controller.controller.policy.tenants, "the rules are read")
        await controller.step()
        (answer,) = await offer(deployment, "nap", 1, value="normal", tenant="trial")
        assert answer.made is Made.REFUSED
        assert answer.reason == "tenant_class"
        assert answer.retry_after_ms == -1
        assert (await offer(deployment, "nap", 1, value="low", tenant="trial"))[0].made is Made.MADE


async def test_rules_that_cannot_be_read_leave_those_before(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with spine(redis_url, nap) as deployment:
        await put_rules(deployment.store, "one", "max_queued: 7\n", by="test")
        controller = await deployment.control()
        assert controller.controller.policy.count_bound == 4
        await put_rules(deployment.store, "two", "of_a_later_version: 1\n", by="test")
        await until(lambda: "cannot be read here" in caplog.text, "the problem is told")
        await controller.step()
        assert controller.controller.policy.count_bound == 4


async def test_hosts_that_are_lost_are_told_as_the_reason(redis_url: str) -> None:
    async with spine(redis_url, nap, lease_s=0.6) as deployment:
        host = await deployment.host()
        controller = await deployment.control()
        await until(lambda: controller.controller.drain.slots > 0, "the host is seen")
        await deployment.lose(host)
        await until(lambda: controller.controller.policy.floor_ms > 0, "the loss is seen")
        (answer,) = await offer(deployment, "nap", 1, max_wait=10)
        assert answer.made is Made.REFUSED
        assert answer.reason == "hosts"
        said = await told(deployment)
        await until(lambda: _lost(deployment), "people are told")
        assert said["v"] == 1


async def _lost(deployment: Spine) -> bool:
    return any("all hosts are lost" in word for word in (await told(deployment))["words"])


async def test_a_later_controller_goes_on_from_what_the_one_before_has_learned(redis_url: str) -> None:
    async with spine(redis_url, nap) as deployment:
        await deployment.host(slots_per_host=4)
        first = await deployment.control()
        await offer(deployment, "nap", 12, 0.05)
        await until(lambda: first.controller.policy.agent("nap").cost_ms < 500, "the cost of a run is learned")
        learned = first.controller.agents["nap"].cost_ms
        version = first.controller.policy.v
        await first.stop()
        second = await deployment.control()
        assert second.controller.agents["nap"].cost_ms == pytest.approx(learned, rel=0.01)
        assert second.controller.policy.v > version
        third = await deployment.control()
        await until(lambda: second.superseded, "the earlier one has heard of it")
        assert not third.superseded


async def test_without_a_controller_doors_go_on(redis_url: str) -> None:
    async with spine(redis_url, nap) as deployment:
        await deployment.host(slots_per_host=4)
        controller = await deployment.control()
        await controller.abandon()
        answers = await offer(deployment, "nap", 10, 0.01)
        assert all(each.made is Made.MADE for each in answers)

        async def over() -> bool:
            return (await deployment.counts()).get("succeeded", 0) == 10

        await until(over, "all runs end")
