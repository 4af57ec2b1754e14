"""Approvals in the store: who may make, decide and use one is the scripts' to say, whoever calls and how often."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from storehouse import Audit, brief, finish, next_message, one, opened, park, settings_for, state_of

from cluster import approvals
from cluster.keys import partition_of, partition_of_approval
from cluster.lifecycle import RunState
from cluster.records import Claim
from cluster.store import Store

LATER_MS = 60_000


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    async with opened(settings_for(redis_url)) as store:
        yield store


def new_id() -> str:
    return f"a00-{uuid.uuid4().hex[:24]}"


async def ask(store: Store, run: Claim, approval: str, *, in_ms: int = LATER_MS, fence: int | None = None) -> str:
    expires_ms = await store.server_ms() + in_ms
    asked = await approvals.ask(
        store, approval, run.id, run.fence if fence is None else fence, expires_ms=expires_ms, tool="pay", request=b"r"
    )
    return asked.word


async def decide(
    store: Store, approval: str, who: str = "ann", *, seen: int = 0, becomes: str = "approved", raw: bytes | None = None
) -> str:
    return await approvals.decide(store, approval, who, raw or f"{who} says".encode(), seen=seen, becomes=becomes)


async def use(store: Store, run: Claim, approval: str, raw: bytes = b"use", fence: int | None = None) -> str:
    return (await approvals.use(store, approval, run.id, run.fence if fence is None else fence, raw)).word


async def test_an_approval_is_made_once_by_the_runs_owner_only(store: Store) -> None:
    run, approval = await one(store), new_id()
    assert await ask(store, run, approval, fence=run.fence - 1) == "STALE"
    assert await approvals.record(store, approval) is None
    assert [await ask(store, run, approval) for _ in range(2)] == ["pending", "pending"]
    assert await approvals.pending(store) == [approval]
    assert await approvals.of_run(store, run.id) == [approval]
    Audit(store).check()
    await store.cancel(partition_of(run.id), "no more", [run.id])
    assert await ask(store, run, new_id()) == "CANCEL"
    assert await approvals.pending(store) == [approval]


async def test_a_decision_wakes_the_run_and_is_told(store: Store) -> None:
    run, approval = await one(store), new_id()
    await ask(store, run, approval)
    await park(store, run, 4_000_000_000_000, reason="approval")

    async def act() -> None:
        assert await decide(store, approval) == "ok"

    assert await next_message(store, store.keys.approvals_channel, act) == f"approved {approval}"
    assert await state_of(store, run.id) == "queued"
    assert (await approvals.pending(store), await approvals.closed(store)) == ([], [approval])
    assert await approvals.decided_before(store, "pay") == [approval]
    assert await decide(store, approval) == "ok"  # the same one, sent again
    assert await decide(store, approval, raw=b"something else") == "approved"
    Audit(store).check()


async def test_a_decision_between_the_look_and_the_parking_is_not_lost(store: Store) -> None:
    run, approval = await one(store), new_id()
    assert await ask(store, run, approval) == "pending"
    await decide(store, approval)
    await park(store, run, 4_000_000_000_000, reason="approval")
    assert await state_of(store, run.id) == "queued"


async def test_people_who_decide_at_once_know_of_each_other(store: Store) -> None:
    run, approval = await one(store), new_id()
    await ask(store, run, approval)
    assert await decide(store, approval, "ann", becomes="") == "ok"
    assert await decide(store, approval, "bob", seen=0, becomes="") == "again"
    assert await decide(store, approval, "ann", seen=1, raw=b"more") == "twice"
    assert await decide(store, approval, "bob", seen=1, becomes="approved") == "ok"
    record = await approvals.record(store, approval)
    assert record is not None
    assert (record.state, sorted(record.decisions)) == ("approved", [b"ann says", b"bob says"])
    assert await decide(store, approval, "cid", seen=2, becomes="denied") == "approved"
    assert await decide(store, new_id()) == "missing"
    Audit(store).check()


async def test_it_is_used_once_and_again_only_by_the_step_that_used_it(store: Store) -> None:
    run, approval = await one(store), new_id()
    other = await one(store, custom_id="other")
    await ask(store, run, approval)
    assert await use(store, run, approval) == "pending"
    await decide(store, approval)
    assert await use(store, run, approval, fence=run.fence - 1) == "STALE"
    assert await use(store, other, approval) == "foreign"
    assert await use(store, run, approval) == "used"
    assert await approvals.use(store, approval, run.id, run.fence, b"other") == approvals.Used("used", b"use")
    assert await decide(store, approval, "bob", seen=1) == "used"
    assert await use(store, run, new_id()) == "missing"
    Audit(store).check()


async def test_nobody_decides_or_uses_what_has_expired(store: Store) -> None:
    run, late, unused, quiet = await one(store), new_id(), new_id(), new_id()
    for approval in (late, unused, quiet):
        await ask(store, run, approval, in_ms=60)
    await decide(store, unused)
    await asyncio.sleep(0.07)
    assert await decide(store, late) == "expired"
    assert await use(store, run, unused) == "expired"
    assert await approvals.pending(store) == [quiet]
    await store.fire(0)
    assert await approvals.pending(store) == []
    assert await ask(store, run, quiet) == "expired"
    Audit(store).check()


@pytest.mark.parametrize("approved", [False, True])
async def test_cancelling_and_approving_one_after_the_other(store: Store, approved: bool) -> None:
    """Whichever comes first: nothing is used, and the later one is told."""
    waiting, running = await one(store), await one(store, custom_id="running")
    first, second = new_id(), new_id()
    await ask(store, waiting, first)
    await ask(store, running, second)
    await park(store, waiting, 4_000_000_000_000, reason="approval")
    if approved:
        assert [await decide(store, each) for each in (first, second)] == ["ok", "ok"]
    answers = await store.cancel(0, "stop", [waiting.id, running.id])
    assert answers == ["cancelled", "asked"]
    assert await decide(store, first, "bob", seen=int(approved)) == "over"
    assert await decide(store, second, "bob", seen=int(approved)) == "over"
    assert await use(store, running, second) == "CANCEL"
    assert await use(store, waiting, first) == "STALE"
    record = await approvals.record(store, first)
    assert record is not None
    assert record.state == "void"
    Audit(store).check()


async def test_an_approval_is_kept_as_long_as_its_run(redis_url: str) -> None:
    async with opened(settings_for(redis_url, retention=brief())) as store:
        run, approval, denied = await one(store), new_id(), new_id()
        await ask(store, run, approval)
        await ask(store, run, denied)
        await decide(store, denied, becomes="denied")
        await finish(store, run, RunState.FAILED)
        audit = Audit(store)
        audit.check()
        assert {each["state"] for each in audit.approvals.values()} == {"void", "denied"}
        await asyncio.sleep(0.06)
        await store.fire(0)
        assert await approvals.record(store, approval) is None
        assert await approvals.closed(store) == await approvals.pending(store) == []
        assert not Audit(store).approvals


def test_an_approvals_id_names_its_partition() -> None:
    assert partition_of_approval("a1f-0123456789abcdef01234567") == 31
    for text in ("1f-0123456789abcdef01234567", "a1f-01", "", "a1f-0123456789abcdef01234567\n"):
        with pytest.raises(ValueError, match="no approval's id"):
            partition_of_approval(text)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("decide"), st.sampled_from("abc"), st.sampled_from(["", "approved", "denied"])),
        st.tuples(st.just("use"), st.booleans(), st.just("")),
        st.tuples(st.sampled_from(["cancel", "expire", "ask"]), st.just(""), st.just("")),
    ),
    max_size=8,
)


class Model:
    """What an approval and its run should be like."""

    def __init__(self, store: Store, run: Claim, approval: str) -> None:
        self.store, self.run, self.approval = store, run, approval
        self.state, self.said, self.cancelled, self.kept = "pending", list[str](), False, b""

    async def decide(self, who: str, becomes: str) -> None:
        word = await decide(self.store, self.approval, who, seen=len(self.said), becomes=becomes)
        open_to_all = not self.cancelled and self.state == "pending"
        if who in self.said:
            assert word == "ok"  # sent again
        elif not open_to_all:
            assert word == ("over" if self.cancelled else self.state)
        else:
            assert word == "ok"
            self.said.append(who)
            self.state = becomes or self.state

    async def use(self, raw: str, fence: int) -> None:
        found = await approvals.use(self.store, self.approval, self.run.id, fence, raw.encode())
        if fence != self.run.fence or self.cancelled:
            assert found.word == ("CANCEL" if fence == self.run.fence else "STALE")
            return
        if self.state == "approved":
            self.state, self.kept = "used", raw.encode()
        assert (found.word, found.use) == (self.state, self.kept)

    async def cancel(self) -> None:
        await self.store.cancel(0, "stop", [self.run.id])
        self.cancelled = True

    async def expire(self) -> None:
        key, index = self.store.keys.approval(self.approval), self.store.keys.of(0, "approvals")
        await self.store.command(key, "HSET", key, "expires", 1)
        await self.store.command(index, "ZADD", index, "XX", 1, self.approval)
        await self.store.fire(0)
        if self.state == "pending" or (self.state == "approved" and not self.cancelled):
            self.state = "expired"
        await self.ask()

    async def ask(self) -> None:
        assert await ask(self.store, self.run, self.approval) == ("CANCEL" if self.cancelled else self.state)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_whatever_happens_it_is_used_once_at_most_and_only_when_approved(
    redis_url: str, steps: list[tuple[str, str | bool, str]]
) -> None:
    async def check() -> None:
        async with opened(settings_for(redis_url)) as store:
            run, approval = await one(store), new_id()
            await ask(store, run, approval)
            model = Model(store, run, approval)
            for number, (what, who, becomes) in enumerate(steps):
                if what == "decide":
                    await model.decide(str(who), becomes)
                elif what == "use":
                    await model.use(str(number), run.fence - (not who))
                else:
                    await {"cancel": model.cancel, "expire": model.expire, "ask": model.ask}[what]()
            Audit(store).check()

    asyncio.run(check())
