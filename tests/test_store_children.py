"""Child runs and the ends of their parents, against a real server: who goes with whom, how deep and how wide."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from storehouse import (
    FAR_MS,
    Audit,
    child_of,
    claim,
    finish,
    next_message,
    one,
    opened,
    park,
    settings_for,
    state_of,
)

from cluster import reader, scripts
from cluster.lifecycle import RunState
from cluster.records import Claim
from cluster.store import Store


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    async with opened(settings_for(redis_url)) as made:
        yield made
        Audit(made).check()


async def family(store: Store) -> tuple[Claim, dict[str, str]]:
    """A running parent on h1, and a child of it in every state."""
    parent = await one(store)
    names = ("lost", "running", "timer", "unknown", "over", "queued", "aside")
    children = {name: child_of(parent, name) for name in names}
    children["aside"] = children["aside"]._replace(agent="rare")

    async def begin(host: str, *begun: str) -> dict[str, Claim]:
        for name in begun:
            assert await store.submit_child(children[name], parent=parent.id, fence=parent.fence)
        return await claim(store, host)

    await begin("h3", "lost")
    found = await begin("h2", "running", "timer", "unknown", "over")
    await park(store, found[children["timer"].id], FAR_MS, host="h2")
    await finish(store, found[children["unknown"].id], RunState.CONFIRMATION_UNKNOWN, host="h2")
    await finish(store, found[children["over"].id], host="h2")
    await begin("h2", "aside")
    await store.reap(0, "h3")
    assert await store.submit_child(children["queued"], parent=parent.id, fence=parent.fence)
    return parent, {name: run.id for name, run in children.items()}


async def states(store: Store, runs: dict[str, str]) -> dict[str, str]:
    return {name: await state_of(store, run_id) for name, run_id in runs.items()}


BEFORE = {
    "lost": "queued", "running": "running", "timer": "waiting", "unknown": "confirmation_unknown", "over": "succeeded",
    "queued": "queued", "aside": "queued",
}  # fmt: skip
AFTER = {**BEFORE, "timer": "cancelled", "queued": "cancelled", "aside": "cancelled"}


@pytest.mark.parametrize("end", [RunState.FAILED, RunState.CANCELLED])
async def test_a_run_that_does_not_succeed_takes_its_children_with_it(store: Store, end: RunState) -> None:
    parent, children = await family(store)
    assert await states(store, children) == BEFORE
    told = await next_message(store, store.keys.host_channel("h2"), lambda: finish(store, parent, end))
    assert told == f"cancel {children['running']}"
    assert await states(store, children) == AFTER
    for name, run_id in children.items():
        record = await reader.record(store, run_id)
        assert record is not None
        assert (record.cancel == "parent ended") == (name in ("running", "lost", "unknown")), name
        assert (record.reason == "parent ended") == (AFTER[name] == "cancelled"), name
    # One that was torn from its host is ended by the next one, which looks first.
    assert (await claim(store, "h4"))[children["lost"]].cancel == "parent ended"


@pytest.mark.parametrize("end", [RunState.SUCCEEDED, RunState.CONFIRMATION_UNKNOWN])
async def test_children_of_others_go_on(store: Store, end: RunState) -> None:
    """Nobody has said that a run's work is in vain when it succeeded, or when an effect of it is open."""
    parent, children = await family(store)
    await finish(store, parent, end)
    assert await states(store, children) == BEFORE


async def test_a_parent_that_ends_is_not_woken_by_the_children_that_end_with_it(store: Store) -> None:
    parent, children = await family(store)
    assert await park(store, parent, None, children["queued"], children["timer"]) is None
    assert await store.cancel(0, "enough", [parent.id]) == ["cancelled"]
    assert await states(store, children) == AFTER
    record = await reader.record(store, parent.id)
    assert record is not None
    # Queued, running, waiting, and the end: nothing between those.
    assert (record.state, record.version, record.reason) == (RunState.CANCELLED, 5, "enough")


async def test_children_of_a_run_that_is_asked_to_end_go_at_once(store: Store) -> None:
    parent, children = await family(store)
    assert await store.cancel(0, "enough", [parent.id]) == ["asked"]
    assert await states(store, children) == AFTER
    assert Audit(store).runs[children["running"]]["cancel"] == "enough"
    assert await state_of(store, parent.id) == "running"


async def by_claim(store: Store) -> None:
    assert await claim(store, "h5") == {}


async def by_fire(store: Store) -> None:
    await store.fire(0)


@pytest.mark.parametrize("ends", [by_claim, by_fire])
async def test_a_deadline_takes_the_children_that_are_queued_beside_their_parent(
    store: Store, ends: Callable[[Store], Awaitable[None]]
) -> None:
    parent = await one(store, deadline="+60")
    child = child_of(parent)
    assert await store.submit_child(child, parent=parent.id, fence=parent.fence)
    assert await store.release(0, "h1", "drain", [(parent.id, parent.fence)]) == 1
    await asyncio.sleep(0.08)
    await ends(store)
    assert [await state_of(store, run_id) for run_id in (parent.id, child.id)] == ["cancelled", "cancelled"]


async def test_a_tree_is_taken_however_deep_it_is(store: Store) -> None:
    depth = 300
    run = await one(store)
    first = run
    for _ in range(depth):
        child = child_of(run)
        assert await store.submit_child(child, parent=run.id, fence=run.fence)
        assert await park(store, run, FAR_MS, child.id) is None
        run = (await claim(store))[child.id]
    assert await store.cancel(0, "enough", [first.id]) == ["cancelled"]
    by_state = (await reader.deployment_counts(store)).by_state
    assert by_state == {"cancelled": depth, "running": 1}
    assert Audit(store).runs[run.id]["cancel"] == "parent ended"


async def test_one_call_takes_a_thousand_children_and_fire_the_others(store: Store) -> None:
    parent = await one(store)
    children = [child_of(parent, str(number)) for number in range(2500)]
    for part in range(0, 2500, 500):
        fields = [field for child in children[part : part + 500] for field in child]
        answers = await store.call(scripts.SUBMIT, 0, "", parent.id, parent.fence, *fields)
        assert [answer[0] for answer in answers] == [1] * 500
    await finish(store, parent, RunState.FAILED)
    left = []
    for _ in range(3):
        Audit(store).check()
        left.append((await reader.deployment_counts(store)).by_state.get("queued", 0))
        fired = await store.fire(0)
        # Whoever fired is to do it again at once while there is more.
        assert (fired.following_ms == 0) == (left[-1] > 1000)
    assert left == [1500, 500, 0]
    assert (await reader.deployment_counts(store)).by_state == {"failed": 1, "cancelled": 2500}
    assert "doomed" not in Audit(store).ttl_ms["00"]
