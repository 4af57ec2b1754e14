"""The door against a real server: the scripts decide as the law does, and refuse, evict, hold and share as it says."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from storehouse import Audit, claim, finish, new, opened, settings_for, submit

from admission.admission_policy import AdmissionPolicy, AgentPolicy, ClassPolicy, TenantPolicy, as_plain
from admission.queue_law import Accepted, Asked, Here, Refused, door
from admission.values import CLASS_SPAN
from cluster import admission
from cluster.records import Made, NewRun, Submitted
from cluster.store import Store

AMPLE = ClassPolicy(pace=0.1, room=1.0)


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    async with opened(settings_for(redis_url)) as made:
        yield made
        Audit(made).check()


async def published(store: Store, **fields: Any) -> AdmissionPolicy:
    """A policy that the only partition goes by from now on."""
    fields = {"v": 1, "at_ms": await store.server_ms(), "drain": 10.0, "classes": (AMPLE,) * 5} | fields
    policy = AdmissionPolicy(**fields)
    shares = {rank: each.share for rank, each in enumerate(policy.classes)}
    report = await admission.exchange(store, 0, policy.v, json.dumps(as_plain(policy)), shares=shares)
    assert report.version == policy.v
    return policy


async def asked_of(store: Store, run: NewRun) -> Submitted:
    (answer,) = await store.submit("b", 0, [run])
    return answer


def at(rank: int, number: int, store: Store, **fields: Any) -> NewRun:
    return new(store, f"{rank}-{number}", rank=rank, **fields)


async def here_of(store: Store, run: NewRun, asked: Asked) -> tuple[Here, int]:
    """What the partition knows, read from the outside, and its clock."""
    report = await admission.exchange(store, 0)
    counters = report.counters
    fair = await store.fields(store.keys.of(0, "fair"))
    start = max(int(fair.get(f"v:{run.level}", b"0")), int(fair.get(f"f:{run.level}:{run.tenant}", b"0")))
    order = run.level * 2**43 + start
    key = store.keys.queues[0]
    before = await store.command(key, "ZCOUNT", key, asked.rank * CLASS_SPAN, f"({order}")
    all_of_class = counters.get(f"queued:{asked.rank}", 0)
    last = await store.command(key, "ZRANGE", key, 0, 0, "REV", "WITHSCORES")
    here = Here(
        fraction=before / all_of_class if all_of_class else 1.0,
        queued_ms=[counters.get(f"queued_ms:{rank}", 0.0) for rank in range(5)],
        fresh_ms=[counters.get(f"fresh_ms:{rank}", 0.0) for rank in range(5)],
        gone_ms=[counters.get(f"fresh_gone_ms:{rank}", 0.0) for rank in range(5)],
        fresh=int(counters.get("fresh", 0)),
        fresh_of_tenant=int(counters.get(f"fresh_of:{run.tenant}", 0)),
        count=report.queued,
        size=int(counters.get("bytes", 0)),
        outranks=bool(last) and float(last[1]) > order,
        slot_ms=counters.get(f"slot:{asked.rank}", 0.0),
    )
    return here, await store.server_ms()


# ----------------------------------------------------------------------------------------------- the law and the script

CLASSES = st.builds(
    ClassPolicy,
    ahead_ms=st.integers(0, 200_000).map(float),
    own_ms=st.integers(0, 50_000).map(float),
    pace=st.sampled_from([0.0, 0.01, 0.125, 2.0]),
    room=st.sampled_from([-1.0, 0.0, 0.5, 8.0]),
    max_wait_ms=st.sampled_from([1000, 20_000, 86_400_000]),
    open=st.sampled_from([True, True, True, False]),
)
TENANTS = st.builds(
    TenantPolicy,
    weight=st.sampled_from([0.5, 1.0, 3.0]),
    ranks=st.sampled_from([(0, 1, 2, 3, 4), (2, 3, 4)]),
    left=st.sampled_from([-1, 0, 3]),
    until_ms=st.sampled_from([0, 0, 10**13]),
)
AGENTS = st.builds(
    AgentPolicy,
    cost_ms=st.sampled_from([1.0, 1000.0, 30_000.5]),
    p90_ms=st.sampled_from([0.0, 5_000.0]),
    until_ms=st.sampled_from([0, 10**13]),
    dependency=st.just("models"),
)
POLICIES = st.fixed_dictionaries(
    {
        "partitions": st.sampled_from([1, 8]),
        "drain": st.sampled_from([None, 0.5, 20.0]),
        "classes": st.tuples(*[CLASSES] * 5),
        "tenants": st.dictionaries(st.sampled_from(["acme", "other"]), TENANTS),
        "agents": st.dictionaries(st.sampled_from(["echo", "slow"]), AGENTS),
        "floor_ms": st.sampled_from([0.0, 30_000.0]),
        "floor_reason": st.just("hosts"),
        "count_bound": st.sampled_from([0, 6]),
        "bytes_bound": st.sampled_from([0, 100]),
    }
)
RUNS = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.sampled_from(["default", "acme", "other"]),
        st.sampled_from(["echo", "slow"]),
        st.sampled_from(["", "", "500", "50000"]),
        st.sampled_from(["", "", "-1000", "3000", "600000"]),
    ),
    min_size=1,
    max_size=15,
)


def as_law(answer: Submitted) -> tuple[Any, ...]:
    if answer.made is Made.REFUSED:
        return "refused", answer.reason, answer.by_itself
    assert answer.made is Made.MADE
    return ("accepted",)


def as_script(decision: Accepted | Refused) -> tuple[Any, ...]:
    if isinstance(decision, Refused):
        return "refused", decision.reason, decision.by_itself
    return ("accepted",)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(policy=POLICIES, runs=RUNS, claims=st.integers(0, 3))
async def test_the_door_decides_as_the_law_does(
    redis_url: str, policy: dict[str, Any], runs: list[tuple[Any, ...]], claims: int
) -> None:
    async with opened(settings_for(redis_url)) as store:
        in_force = await published(store, **policy)
        for number, (rank, tenant, agent, max_wait, left) in enumerate(runs):
            deadline = str(await store.server_ms() + int(left)) if left else ""
            run = at(rank, number, store, tenant=tenant, agent=agent, max_wait=max_wait, deadline=deadline)
            wait, moment = int(max_wait) if max_wait else None, int(deadline) if deadline else None
            asked = Asked(rank, tenant, agent, wait, moment, len(run.job))
            here, now_ms = await here_of(store, run, asked)
            decision = door(in_force, asked, here, now_ms)
            answer = await asked_of(store, run)
            assert as_law(answer) == as_script(decision), (asked, here, decision, answer)
            # The script's clock is some milliseconds later.
            if isinstance(decision, Accepted):
                assert abs(answer.wait_ms - decision.wait_ms) <= 500, (decision, answer)
            elif decision.retry_after_ms > 0:
                assert abs(answer.retry_after_ms - decision.retry_after_ms) <= 500, (decision, answer)
            if number == len(runs) // 2:
                await store.claim(0, "h1", claims, ("echo", "1", "slow", "1"))
        Audit(store).check()


# ----------------------------------------------------------------------------------------------------------- in the small


async def test_without_a_policy_everybody_is_let_in(store: Store) -> None:
    answer = await asked_of(store, new(store))
    assert answer == Submitted(Made.MADE, -1, -1)


async def test_an_older_policy_does_not_come_back(store: Store) -> None:
    await published(store, v=7)
    report = await admission.exchange(store, 0, 6, json.dumps(as_plain(AdmissionPolicy(v=6))))
    assert report.version == 7


async def test_tenants_of_a_level_take_turns(store: Store) -> None:
    await submit(store, [new(store, f"many-{number}", tenant="many") for number in range(6)])
    await submit(store, [new(store, f"few-{number}", tenant="few") for number in range(2)])
    answer = await store.claim(0, "h1", 4, ("echo", "1"))
    assert answer is not None
    assert sorted(each.custom_id.partition("-")[0] for each in answer[1]) == ["few", "few", "many", "many"]


async def test_a_weight_is_a_tenants_part(store: Store) -> None:
    await published(store, tenants={"heavy": TenantPolicy(weight=3.0)})
    await submit(store, [new(store, f"{name}-{n}", tenant=name) for n in range(12) for name in ("heavy", "light")])
    answer = await store.claim(0, "h1", 8, ("echo", "1"))
    assert answer is not None
    names = [each.custom_id.partition("-")[0] for each in answer[1]]
    assert abs(names.count("heavy") - 6) <= 1


async def test_what_is_worth_more_takes_the_place_of_what_is_worth_least(store: Store) -> None:
    await published(store, count_bound=3)
    low = [at(3, number, store) for number in range(3)]
    assert await submit(store, low) == [1, 1, 1]
    refused = await asked_of(store, at(4, 9, store))
    assert (refused.made, refused.reason, refused.by_itself) == (Made.REFUSED, "queue_full", True)
    assert refused.retry_after_ms >= 1000
    assert (await asked_of(store, at(1, 0, store))).made is Made.MADE
    audit = Audit(store)
    (shed,) = [run for run in audit.runs.values() if run["state"] == "shed"]
    assert (shed["reason"], shed["custom_id"]) == ("queue_full", "3-2")
    assert int(shed["retry_after_ms"]) >= 1000
    # The same job may come back, and is the same run.
    await published(store, v=2)
    assert (await asked_of(store, low[2])).made is Made.MADE
    assert Audit(store).runs[low[2].id]["state"] == "queued"


async def test_the_bottom_goes_while_it_would_wait_too_long(store: Store) -> None:
    runs = [at(2, number, store, max_wait="60000") for number in range(10)]
    await submit(store, [*runs, at(0, 0, store, max_wait="60000")])
    slow = ClassPolicy(ahead_ms=11_000, own_ms=10_000, pace=10.0, room=1.0)
    await published(store, classes=(AMPLE, AMPLE, slow, AMPLE, AMPLE))
    assert await admission.evict(store, 0) == 5
    states = [run["state"] for run in Audit(store).runs.values() if run["custom_id"].startswith("2-")]
    assert sorted(states) == ["queued"] * 5 + ["shed"] * 5
    assert await admission.evict(store, 0) == 0


async def test_a_guaranteed_share_is_given_whatever_comes(store: Store) -> None:
    best_effort = ClassPolicy(pace=0.1, room=1.0, share=0.1)
    await published(store, classes=(AMPLE, AMPLE, AMPLE, AMPLE, best_effort))
    await submit(store, [at(0, number, store) for number in range(60)])
    await submit(store, [at(4, number, store) for number in range(60)])
    order = []
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


async def test_a_paused_queue_gives_nothing(store: Store) -> None:
    await submit(store, [new(store)])
    await admission.pause(store, "queue", {"by": "me"})
    assert await claim(store) == {}
    await admission.resume(store, "queue")
    assert len(await claim(store)) == 1


async def test_a_tenant_starts_no_more_than_it_has_places(store: Store) -> None:
    await submit(store, [new(store, str(number), tenant="acme") for number in range(5)])
    report = await admission.exchange(store, 0, places={"acme": 2})
    assert report.places == {"acme": 2}
    first = await claim(store)
    assert len(first) == 2
    assert await claim(store) == {}
    assert (await admission.exchange(store, 0, places={"acme": -5})).places == {"acme": 0}
    assert (await admission.exchange(store, 0, places={"acme": 1})).places == {"acme": 1}
    assert len(await claim(store)) == 1
    await admission.exchange(store, 0, places={"acme": None})
    assert len(await claim(store)) == 2


async def test_what_ends_is_counted_by_class_tenant_and_agent(store: Store) -> None:
    run = next(iter((await _claimed(store, 1)).values()))
    await store.command(store.keys.run(run.id), "HINCRBY", store.keys.run(run.id), "claimed", -5000)
    await finish(store, run)
    counters = (await admission.exchange(store, 0)).counters
    assert counters["agent_runs:echo"] == 1
    assert 5000 <= counters["agent_ms:echo"] < 6000
    assert counters["served_of:default"] == counters["served_ms:2"] == counters["agent_ms:echo"]
    assert counters["running:default"] == 0


async def test_in_a_dry_run_everything_is_let_in_and_counted(store: Store) -> None:
    shut = ClassPolicy(pace=0.1, room=1.0, open=False)
    await published(store, dry_run=True, classes=(shut,) * 5)
    assert (await asked_of(store, new(store))).made is Made.MADE
    assert (await admission.exchange(store, 0)).counters["would_refuse:2:store"] == 1


async def _claimed(store: Store, count: int) -> dict[str, Any]:
    await submit(store, [new(store, str(number)) for number in range(count)])
    return await claim(store)
