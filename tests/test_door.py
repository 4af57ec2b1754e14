"""Admission at a real server: the door refuses, evicts, holds and shares; ``test_door_twin.py`` has the comparison."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from storehouse import Audit, claim, finish, new, opened, park, settings_for, submit

from admission.admission_policy import AdmissionPolicy, ClassPolicy, as_plain
from admission.queue_statistics import PartitionStatistics, bucket_of, from_plain
from cluster import admission
from cluster.records import Made, NewRun, Submitted
from cluster.store import Store

AMPLE = ClassPolicy(pace=0.1, room=1.0)
SERVED = ("echo", "1", "slow", "1")


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    async with opened(settings_for(redis_url)) as made:
        yield made
        Audit(made).check()


async def told(store: Store, policy: AdmissionPolicy, **options: Any) -> PartitionStatistics:
    """The only partition goes by this policy from now on, as the controller tells it."""
    shares = {rank: each.share for rank, each in enumerate(policy.classes)}
    tenants = [*policy.tenants.values(), policy.tenant_default]
    capped = any(tenant.places >= 0 for tenant in tenants) or bool(options.get("places"))
    plain = json.dumps(as_plain(policy))
    report = await admission.exchange(store, 0, policy.v, plain, shares=shares, capped=capped, **options)
    return from_plain(report.statistics)


async def published(store: Store, **fields: Any) -> AdmissionPolicy:
    made: dict[str, Any] = {"v": 1, "at_ms": await store.server_ms(), "drain": 10.0, "classes": (AMPLE,) * 5}
    policy = AdmissionPolicy(**(made | fields))
    assert (await told(store, policy)).v == policy.v
    return policy


async def asked_of(store: Store, run: NewRun) -> Submitted:
    (answer,) = await store.submit("b", 0, [run])
    return answer


def at(rank: int, number: int, store: Store, **fields: Any) -> NewRun:
    return new(store, f"{rank}-{number}", rank=rank, **fields)


async def test_without_a_policy_everybody_is_let_in(store: Store) -> None:
    assert (await asked_of(store, new(store))).made is Made.MADE


async def test_an_older_policy_does_not_come_back(store: Store) -> None:
    await published(store, v=7)
    assert (await told(store, AdmissionPolicy(v=6))).v == 7


async def test_tenants_of_a_level_take_turns(store: Store) -> None:
    await submit(store, [new(store, f"many-{number}", tenant="many") for number in range(6)])
    await submit(store, [new(store, f"few-{number}", tenant="few") for number in range(2)])
    answer = await store.claim(0, "h1", 4, SERVED)
    assert answer is not None
    assert sorted(each.custom_id.partition("-")[0] for each in answer[1]) == ["few", "few", "many", "many"]


async def test_what_is_worth_more_takes_the_place_of_what_is_worth_least(store: Store) -> None:
    await published(store, count_bound=3)
    low = [at(3, number, store) for number in range(3)]
    assert await submit(store, low) == [1, 1, 1]
    refused = await asked_of(store, at(4, 9, store))
    assert (refused.made, refused.reason, refused.by_itself) == (Made.REFUSED, "queue_full", True)
    assert refused.retry_after_ms >= 1000
    assert (await asked_of(store, at(1, 0, store))).made is Made.MADE
    (shed,) = [run for run in Audit(store).runs.values() if run["state"] == "shed"]
    assert (shed["reason"], shed["custom_id"]) == ("queue_full", "3-2")
    assert int(shed["retry_after_ms"]) >= 1000
    # The same job may come back, and is the same run.
    await published(store, v=2)
    assert (await asked_of(store, low[2])).made is Made.MADE
    assert Audit(store).runs[low[2].id]["state"] == "queued"


async def test_a_guaranteed_share_is_given_whatever_comes(store: Store) -> None:
    best_effort = replace(AMPLE, share=0.1)
    await published(store, classes=(AMPLE, AMPLE, AMPLE, AMPLE, best_effort))
    await submit(store, [at(0, number, store) for number in range(60)])
    await submit(store, [at(4, number, store) for number in range(60)])
    order: list[str] = []
    for _ in range(40):
        order += [each.custom_id[0] for each in (await claim(store, most=1)).values()]
    assert 3 <= order.count("4") <= 4


async def test_what_is_paused_waits_and_comes_back_to_its_place(store: Store) -> None:
    await submit(store, [new(store, f"a-{n}", tenant="acme") for n in range(2)] + [new(store, "b", tenant="other")])
    await admission.pause(store, "tenant:acme", {"by": "me", "why": "invoice", "at_ms": 1})
    assert [each.custom_id for each in (await claim(store)).values()] == ["b"]
    assert set(await admission.paused(store)) == {"tenant:acme"}
    assert await admission.resume(store, "tenant:acme")
    assert not await admission.resume(store, "tenant:acme")
    assert {each.custom_id for each in (await claim(store)).values()} == {"a-0", "a-1"}


async def test_what_ends_is_counted_by_tenant_and_agent(store: Store) -> None:
    await submit(store, [new(store)])
    (run,) = (await claim(store)).values()
    await store.command(store.keys.run(run.id), "HINCRBY", store.keys.run(run.id), "claimed", -5000)
    await finish(store, run)
    said = from_plain((await admission.exchange(store, 0)).statistics)
    assert said.agents["echo"].ended == 1
    assert 5000 <= said.agents["echo"].cost_ms < 6000
    assert sum(said.agents["echo"].service) == 1
    assert said.tenants["default"].served_ms == said.agents["echo"].cost_ms
    assert said.running == said.tenants["default"].running == 0


async def test_a_dry_run_ends_nothing_by_a_rule_that_is_only_tried_out(store: Store) -> None:
    brief = replace(AMPLE, max_wait_ms=1)
    await published(store, dry_run=True, classes=(brief,) * 5)
    mine = new(store, "own", max_wait="1")
    assert await submit(store, [new(store, "other"), mine]) == [1, 1]
    await asyncio.sleep(0.02)
    assert list(await claim(store)) == [new(store, "other").id]
    assert Audit(store).runs[mine.id]["state"] == "shed"


async def test_what_is_worse_than_what_waits_elsewhere_is_left(store: Store) -> None:
    await submit(store, [at(1, 0, store), at(3, 0, store), at(3, 1, store)])
    answer = await store.claim(0, "h1", 3, SERVED, 299)
    assert answer is not None
    assert [each.custom_id for each in answer[1]] == ["1-0"]
    assert answer[0] == 349
    assert len(await claim(store)) == 2


async def test_what_was_waited_for_a_dependency_that_was_down_is_no_service(store: Store) -> None:
    await submit(store, [new(store)])
    (run,) = (await claim(store)).values()
    await park(store, run, 1, reason="breaker crm")
    key = store.keys.run(run.id)
    for field, back_ms in (("started_ms", -60_000), ("outage_since", -59_000)):
        await store.command(key, "HINCRBY", key, field, back_ms)
    await asyncio.sleep(0.01)
    await store.fire(0)
    (run,) = (await claim(store)).values()
    await finish(store, run)
    service = from_plain((await admission.exchange(store, 0)).statistics).agents["echo"].service
    assert [bucket for bucket, count in enumerate(service) if count] == [bucket_of(1010)]
