"""The scripts do what the queue in Python does: both go through the same histories, and say the same of each step.

A theme bounds what is drawn so that its part of the law bites in most histories: drawn from everything at once, nearly
all of them passed by it.
"""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from storehouse import Audit, new, opened, settings_for

from admission.admission_policy import AdmissionPolicy, AgentPolicy, ClassPolicy, TenantPolicy, as_plain
from admission.ordered_runs import Queued
from admission.partition_queue import PartitionQueue
from admission.queue_answers import Accepted, Evicted
from admission.queue_law import Arrival
from admission.queue_statistics import PartitionStatistics, from_plain
from cluster import admission
from cluster.lifecycle import RunState
from cluster.records import Claim, Finish, Made, NewRun
from cluster.store import Store
from examples import examples

SERVED = ("echo", "1", "slow", "1")
TENANTS = ("default", "acme", "other")
FAR_MS = 10**13
PATIENT_MS = 150
"""The clock of a script is not that of its twin; no bound of the test is that close."""
SETTLED_S = 0.003
"""Policies count what was drained in two of their periods of 1 ms: after this, both clocks are beyond that."""

AMPLE = ClassPolicy(pace=0.1, room=1.0)
AGENTS = st.fixed_dictionaries(
    {
        "echo": st.builds(AgentPolicy, cost_ms=st.sampled_from([1.0, 1000.0])),
        "slow": st.builds(AgentPolicy, cost_ms=st.sampled_from([1000.0, 30_000.5])),
    }
)


def five(classes: st.SearchStrategy[ClassPolicy]) -> st.SearchStrategy[tuple[ClassPolicy, ...]]:
    return st.tuples(*[classes] * 5)


def policies(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[AdmissionPolicy]:
    given_fields: dict[str, st.SearchStrategy[Any]] = {
        "classes": st.just((AMPLE,) * 5),
        "partitions": st.sampled_from([1, 8]),
        "drain": st.just(10.0),
        "agents": AGENTS,
        "period_ms": st.just(1),
        # How old it is; the twin and the scripts go by their own line of queued runs when it is stale.
        "at_ms": st.sampled_from([0, 0, 0, -10_000]),
    }
    return st.builds(AdmissionPolicy, **(given_fields | fields))


def submissions(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    given_fields = {
        "rank": st.sampled_from([2, 2, 2, 3, 0, 1, 4]),
        "number": st.sampled_from([50, 50, 90, 10]),
        "tenant": st.sampled_from(TENANTS),
        "agent": st.sampled_from(["echo", "slow"]),
        "max_wait": st.just(""),
        "left": st.just(""),
        "size": st.just(3),
        "again": st.just(""),
    } | fields
    # Some come in one call.
    return st.tuples(st.just("submit"), st.lists(st.fixed_dictionaries(given_fields), min_size=1, max_size=3))


CLAIM = st.tuples(st.just("claim"), st.integers(1, 4), st.sampled_from([None, None, 199, 299]))
TOOK_MS = st.sampled_from([0, 400, 9000])
FINISH = st.tuples(st.just("finish"), st.booleans(), TOOK_MS)
RELEASE = st.tuples(st.just("release"), TOOK_MS)
CANCEL = st.tuples(st.just("cancel"), st.integers(0, 5))
EVICT = st.tuples(st.just("evict"), st.integers(1, 3))
HOLD = st.tuples(st.just("hold"), st.sampled_from(["queue", "tenant:acme", "agent:slow", "class:normal", "class:low"]))
RESUME = st.tuples(st.just("resume"))

LATE = submissions(left=st.sampled_from(["20000", "64000"]))


class Theme(NamedTuple):
    """Policies of one kind, and the steps that concern what they say."""

    policies: st.SearchStrategy[AdmissionPolicy]
    steps: tuple[st.SearchStrategy[tuple[Any, ...]], ...]


THEMES = {
    "waits": Theme(
        policies(
            classes=five(
                st.builds(
                    ClassPolicy,
                    ahead_ms=st.integers(50_000, 200_000).map(float),
                    own_ms=st.integers(0, 50_000).map(float),
                    queued=st.integers(0, 100),
                    pace=st.sampled_from([0.0, 0.01, 0.125, 2.0]),
                    noise=st.sampled_from([0.0, 3.0, 80.0]),
                    more_ms=st.sampled_from([-1.0, 0.0, 2000.0]),
                    room=st.just(1.0),
                    max_wait_ms=st.sampled_from([5000, 86_400_000, 86_400_000]),
                    share=st.sampled_from([0.0, 0.0, 0.25]),
                )
            ),
            drain=st.sampled_from([None, 0.0, 0.5, 8.0]),
            floor_ms=st.sampled_from([0.0, 0.0, 30_000.0]),
            floor_reason=st.sampled_from(["", "hosts"]),
            dry_run=st.sampled_from([False, False, False, True]),
            agents=st.fixed_dictionaries(
                {name: st.builds(AgentPolicy, p90_ms=st.sampled_from([0.0, 15_000.0])) for name in ("echo", "slow")}
            ),
        ),
        (
            submissions(),
            submissions(),
            submissions(left=st.sampled_from(["20000", "64000"])),
            CLAIM,
            EVICT,
            EVICT,
            CANCEL,
        ),
    ),
    "bounds": Theme(
        policies(
            count_bound=st.sampled_from([0, 3, 4, 6]),
            bytes_bound=st.sampled_from([0, 0, 4, 12, 15]),
            dry_run=st.sampled_from([False, False, False, True]),
        ),
        (submissions(size=st.sampled_from([1, 3, 7])), submissions(), submissions(), CLAIM, RELEASE, CANCEL),
    ),
    "caps": Theme(
        policies(
            tenants=st.dictionaries(
                st.sampled_from(TENANTS),
                st.builds(
                    TenantPolicy,
                    ranks=st.sampled_from([(0, 1, 2, 3, 4), (0, 1, 2, 3, 4), (2, 3, 4)]),
                    left=st.sampled_from([-1, 0, 1, 3]),
                    until_ms=st.sampled_from([0, 0, 0, FAR_MS]),
                    places=st.sampled_from([-1, -1, 0, 1, 2]),
                ),
                min_size=1,
            ),
            classes=five(st.builds(ClassPolicy, own_ms=st.just(40_000.0), pace=st.sampled_from([0.0, 0.1, 20.0]))),
        ),
        (submissions(), submissions(left=st.sampled_from(["", "3000"])), CLAIM, CLAIM, FINISH, RELEASE, CANCEL),
    ),
    "shares": Theme(
        policies(classes=five(st.builds(ClassPolicy, share=st.sampled_from([0.0, 0.1, 0.2])))),
        (
            submissions(rank=st.integers(0, 4)),
            submissions(rank=st.integers(0, 4)),
            submissions(rank=st.integers(0, 4)),
            CLAIM,
            FINISH,
        ),
    ),
    "pauses": Theme(
        policies(),
        (submissions(), submissions(agent=st.sampled_from(["slow", "unserved"])), CLAIM, CLAIM, HOLD, RESUME, CANCEL),
    ),
    "calendar": Theme(
        policies(
            classes=five(
                st.builds(
                    ClassPolicy,
                    ahead_ms=st.just(60_000.0),
                    own_ms=st.just(20_000.0),
                    pace=st.sampled_from([0.001, 2.0, 2.0]),
                    room=st.sampled_from([-1.0, 0.0, 0.5, 0.5, 8.0]),
                    max_wait_ms=st.just(1000),
                    open=st.sampled_from([True, True, True, False]),
                )
            ),
            agents=st.fixed_dictionaries(
                {
                    "echo": st.just(AgentPolicy(cost_ms=1000.0, p90_ms=5000.0)),
                    "slow": st.builds(
                        AgentPolicy,
                        cost_ms=st.just(30_000.5),
                        until_ms=st.sampled_from([0, FAR_MS]),
                        dependency=st.just("models"),
                    ),
                }
            ),
            drain=st.just(0.5),
        ),
        (
            submissions(left=st.sampled_from(["", "", "-1000", "31000", "640000"]), again=st.sampled_from(["", "1"])),
            submissions(max_wait=st.sampled_from(["", "50000", "86400000"])),
            EVICT,
        ),
    ),
    "fairness": Theme(
        policies(
            tenants=st.fixed_dictionaries(
                {name: st.builds(TenantPolicy, weight=st.sampled_from([0.5, 1.0, 3.0])) for name in TENANTS}
            )
        ),
        (
            submissions(rank=st.just(2), number=st.just(50)),
            submissions(rank=st.just(2), number=st.just(50)),
            submissions(rank=st.just(2), number=st.just(50)),
            CLAIM,
            FINISH,
            FINISH,
            RELEASE,
            CANCEL,
        ),
    ),
}


class Both:
    def __init__(self, store: Store, partitions: int) -> None:
        self.store = store
        self.twin = PartitionQueue(0, partitions)
        self.version = 0
        self.queued: dict[str, Queued] = {}
        self.running: dict[str, tuple[Claim, Queued]] = {}
        self.shed: dict[str, Evicted] = {}
        self.number = 0

    async def exchange(self, policy: AdmissionPolicy) -> None:
        """The policy's own ``at_ms`` says how old it is."""
        self.version += 1
        now_ms = await self.store.server_ms()
        policy = replace(policy, v=self.version, at_ms=now_ms + policy.at_ms)
        said, here = self.twin.exchange(now_ms, policy, {}), await told(self.store, policy)
        for plain in (said, here):
            plain.at_ms = 0
            plain.held = dict.fromkeys(plain.held, "")
            for agent in plain.agents.values():
                agent.service = []
        assert _some(said) == _some(here)
        await asyncio.sleep(SETTLED_S)

    async def submit(self, asked: list[dict[str, Any]]) -> None:
        now_ms = await self.store.server_ms()
        runs = [self._run(now_ms, each) for each in asked]
        decisions = [self.twin.submit(now_ms, _arrival(run)) for run in runs]
        answers = await self.store.submit("b", 0, runs)
        for run, decision, answer in zip(runs, decisions, answers, strict=True):
            if isinstance(decision, Accepted):
                assert answer.made is Made.MADE, (run, decision, answer)
                assert answer.place == decision.place
                self._same_wait(run, decision.wait_ms, answer.wait_ms)
                for each in decision.evicted:
                    self._gone(each)
                self.queued[run.id] = decision.run
                continue
            assert (answer.made, answer.reason) == (Made.REFUSED, decision.reason), (run, decision, answer)
            assert answer.by_itself == decision.come_back.by_itself
            assert abs(answer.retry_after_ms - decision.come_back.after_ms) <= PATIENT_MS, (run, decision, answer)

    def _run(self, now_ms: int, asked: dict[str, Any]) -> NewRun:
        self.number += 1
        deadline = str(now_ms + int(asked["left"])) if asked["left"] else ""
        run = new(
            self.store, str(self.number), rank=asked["rank"], tenant=asked["tenant"], agent=asked["agent"],
            max_wait=asked["max_wait"], deadline=deadline, job=b"j" * asked["size"],
        )  # fmt: skip
        return run._replace(level=asked["rank"] * 100 + 99 - asked["number"], again=asked["again"])

    def _same_wait(self, run: NewRun, said_ms: float, answered_ms: int) -> None:
        policy = self.twin.policy
        if policy.agent(run.agent).until_ms:
            assert abs(answered_ms - said_ms) <= PATIENT_MS
        elif not policy.drain and said_ms == 0:
            assert answered_ms == -1
        else:
            assert answered_ms == math.ceil(said_ms), (run, said_ms, answered_ms)

    def _gone(self, evicted: Evicted) -> None:
        del self.queued[evicted.run.id]
        self.shed[evicted.run.id] = evicted

    async def claim(self, most: int, worst: int | None) -> None:
        claimed = self.twin.claim(await self.store.server_ms(), most, SERVED[::2], worst)
        answer = await self.store.claim(0, "h1", most, SERVED, worst)
        assert answer is not None
        assert [each.id for each in answer[1]] == [run.id for run in claimed.runs]
        assert answer[0] == self.twin.best_level
        for over, _ in claimed.over:
            del self.queued[over.id]
        for mine, run in zip(answer[1], claimed.runs, strict=True):
            del self.queued[run.id]
            self.running[run.id] = mine, run

    async def finish(self, succeeded: bool, took_ms: int) -> None:
        for run_id in list(self.running)[:1]:
            claimed, run = self.running.pop(run_id)
            await self._took(run_id, took_ms)
            state = RunState.SUCCEEDED if succeeded else RunState.FAILED
            assert await self.store.finish(0, "h1", [Finish(run_id, claimed.fence, state, "", b"", b"")]) == {}
            self.twin.end(run, await self._spent(run_id) - max(0, run.used_ms), 1 if succeeded else -1)

    async def release(self, took_ms: int) -> None:
        for run_id in list(self.running)[:1]:
            claimed, run = self.running.pop(run_id)
            await self._took(run_id, took_ms)
            await self.store.release(0, "h1", "drain", [(run_id, claimed.fence)])
            self.queued[run_id] = self.twin.put_back(run, await self._spent(run_id) - max(0, run.used_ms))

    async def _took(self, run_id: str, took_ms: int) -> None:
        """It was claimed so much earlier."""
        key = self.store.keys.run(run_id)
        await self.store.command(key, "HINCRBY", key, "claimed", -took_ms)

    async def _spent(self, run_id: str) -> int:
        key = self.store.keys.run(run_id)
        return int(await self.store.command(key, "HGET", key, "slot_ms") or 0)

    async def evict(self, most: int) -> None:
        gone = self.twin.evict(await self.store.server_ms(), most)
        assert await admission.evict(self.store, 0, most) == len(gone)
        for each in gone:
            self._gone(each)

    async def hold(self, what: str) -> None:
        self.twin.hold(what)
        await admission.pause(self.store, what, {})

    async def resume(self) -> None:
        for what in list(self.twin.held):
            assert self.twin.resume(what) == await admission.resume(self.store, what)

    async def cancel(self, which: int) -> None:
        for run_id in list(self.queued)[which : which + 1]:
            run = self.queued.pop(run_id)
            assert self.twin.leave(run)
            assert await self.store.cancel(0, "no", [run_id]) == ["cancelled"]

    def compare(self) -> None:
        """What is queued, in which order, and what was shed, why and until when."""
        audit = Audit(self.store)
        audit.check()
        for run_id, run in self.queued.items():
            assert audit.runs[run_id]["state"] == "queued"
            assert int(audit.runs[run_id]["order"]) == run.score
        for run_id, gone in self.shed.items():
            assert (audit.runs[run_id]["state"], audit.runs[run_id]["reason"]) == ("shed", gone.reason)
            assert abs(int(audit.runs[run_id]["retry_after_ms"]) - gone.come_back.after_ms) <= PATIENT_MS
            assert audit.runs[run_id]["by_itself"] == str(int(gone.come_back.by_itself))
        shed = {run_id for run_id, run in audit.runs.items() if run["state"] == "shed"}
        assert shed == self.shed.keys()


def _arrival(run: NewRun) -> Arrival:
    bounds = [int(text) if text else -1 for text in (run.max_wait, run.deadline)]
    return Arrival(
        run.id, run.level, run.tenant, run.agent, bounds[0], bounds[1], size_bytes=len(run.job), again=bool(run.again)
    )


async def told(store: Store, policy: AdmissionPolicy) -> PartitionStatistics:
    """The only partition goes by this policy from now on, as the controller tells it."""
    shares = {rank: each.share for rank, each in enumerate(policy.classes)}
    capped = any(tenant.places >= 0 for tenant in [*policy.tenants.values(), policy.tenant_default])
    report = await admission.exchange(
        store, 0, policy.v, json.dumps(as_plain(policy)), shares=shares, capped=capped, places={}
    )
    return from_plain(report.statistics)


def _some(said: PartitionStatistics) -> PartitionStatistics:
    """Without tenants and agents of which all is zero: the one keeps them longer than the other."""
    said.tenants = {name: each for name, each in said.tenants.items() if not each.idle}
    said.agents = {name: each for name, each in said.agents.items() if each.ended}
    return said


@pytest.mark.parametrize("theme", THEMES)
@settings(max_examples=examples(25), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
async def test_the_scripts_do_what_the_twin_does(redis_url: str, theme: str, data: st.DataObject) -> None:
    drawn, steps = THEMES[theme]
    policy = data.draw(drawn)
    exchanges = st.tuples(st.just("exchange"), drawn.map(lambda each: replace(each, partitions=policy.partitions)))
    history = data.draw(st.lists(st.one_of(*steps, *steps, exchanges), min_size=15, max_size=50))
    async with opened(settings_for(redis_url)) as store:
        both = Both(store, policy.partitions)
        await both.exchange(policy)
        for what, *arguments in history:
            await getattr(both, what)(*arguments)
        await both.exchange(policy)
        both.compare()
