"""The law of the queue: order, fairness, guaranteed shares, truthful refusals with the right reason, bounds, caps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admission.admission_policy import STALE_MS, AdmissionPolicy, AgentPolicy, ClassPolicy, TenantPolicy
from admission.partition_queue import PartitionQueue
from admission.queue_answers import Accepted, Refused
from admission.queue_law import STORE_WAIT_MS, Arrival, Tally, ahead
from admission.retry_calendar import LONGEST_MS, NEVER, NO_ROOM_MS
from admission.values import CLASSES, Value, level_of_score, rank_of_score

NOW = 1_700_000_000_000
AMPLE = (ClassPolicy(pace=0.1, room=5.0),) * 5
ECHO = {"echo": AgentPolicy(cost_ms=1000.0)}


def queue_with(**fields: Any) -> PartitionQueue:
    queue = PartitionQueue()
    said: dict[str, Any] = {"v": 1, "at_ms": NOW, "drain": 10.0, "classes": AMPLE, "agents": ECHO} | fields
    queue.exchange(NOW, AdmissionPolicy(**said))
    return queue


def classes(rank: int, **fields: Any) -> tuple[ClassPolicy, ...]:
    return tuple(replace(each, **fields) if place == rank else each for place, each in enumerate(AMPLE))


def arrival(name: str = "x", value: str = "normal", **fields: Any) -> Arrival:
    said: dict[str, Any] = {"tenant": "t", "agent": "echo"} | fields
    return Arrival(name, Value.parse(value).level, **said)


def accepted(queue: PartitionQueue, *args: Any, now_ms: int = NOW, **fields: Any) -> Accepted:
    answer = queue.submit(now_ms, arrival(*args, **fields))
    assert isinstance(answer, Accepted), answer
    return answer


def refused(queue: PartitionQueue, *args: Any, now_ms: int = NOW, **fields: Any) -> Refused:
    answer = queue.submit(now_ms, arrival(*args, **fields))
    assert isinstance(answer, Refused), answer
    assert sum(sum(counts) for counts in queue.exchange(now_ms).refused.values()) >= 1
    return answer


# ------------------------------------------------------------------------------------------------------------- order

RUNS = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from([10, 50, 80]), st.sampled_from("abc"), st.integers(1, 20)),
    min_size=1,
    max_size=60,
)


@given(RUNS, st.integers(1, 7))
def test_a_better_level_always_goes_first_and_tenants_keep_their_own_order(
    runs: list[tuple[int, int, str, int]], limit: int
) -> None:
    queue = queue_with(agents={f"cost{each}": AgentPolicy(cost_ms=each * 100.0) for each in range(1, 21)})
    for number, (rank, inside, tenant, cost) in enumerate(runs):
        accepted(queue, f"{number:03}", f"{CLASSES[rank]}:{inside}", tenant=tenant, agent=f"cost{cost}")
    order = []
    while claimed := queue.claim(NOW, limit).runs:
        order += claimed
    assert len(order) == len(runs)
    assert [level_of_score(run.score) for run in order] == sorted(level_of_score(run.score) for run in order)
    by_line: dict[tuple[int, str], list[str]] = {}
    for run in order:
        by_line.setdefault((level_of_score(run.score), run.tenant), []).append(run.id)
    assert all(line == sorted(line) for line in by_line.values())


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 20)), min_size=2, max_size=120),
    st.sampled_from([(1.0, 1.0), (3.0, 1.0), (0.5, 2.0)]),
)
def test_while_both_wait_tenants_get_their_weights_part_to_within_a_run(
    runs: list[tuple[str, int]], weights: tuple[float, float]
) -> None:
    weight = dict(zip("ab", weights, strict=True))
    queue = queue_with(
        agents={f"cost{each}": AgentPolicy(cost_ms=each * 100.0) for each in range(1, 21)},
        tenants={name: TenantPolicy(weight=each) for name, each in weight.items()},
    )
    for number, (tenant, cost) in enumerate(runs):
        accepted(queue, f"{number:03}", tenant=tenant, agent=f"cost{cost}")
    left = {name: sum(tenant == name for tenant, _ in runs) for name in "ab"}
    served = dict.fromkeys("ab", 0.0)
    most = {
        name: max([cost * 100 / weight[name] for tenant, cost in runs if tenant == name], default=0) for name in "ab"
    }
    while all(left.values()):
        (run,) = queue.claim(NOW, 1).runs
        queue.end(run, run.cost_ms)
        served[run.tenant] += run.cost_ms / weight[run.tenant]
        left[run.tenant] -= 1
        # Goyal et al., theorem 1; one for rounding each run's charge.
        assert abs(served["a"] - served["b"]) <= most["a"] + most["b"] + len(runs)


def test_who_comes_back_from_idling_gets_its_part_and_no_arrears() -> None:
    queue = queue_with()
    for number in range(50):
        accepted(queue, f"a{number:02}", tenant="a")
    for _ in range(30):
        (run,) = queue.claim(NOW, 1).runs
        queue.end(run, 1000)
    for number in range(20):
        accepted(queue, f"b{number:02}", tenant="b")
    order = [run.tenant for run in queue.claim(NOW, 20).runs]
    assert order.count("b") in (9, 10, 11)


def test_what_a_run_really_took_counts() -> None:
    queue = queue_with()
    accepted(queue, "a0", tenant="a")
    (run,) = queue.claim(NOW, 1).runs
    queue.end(run, 10_000)  # ten times what was estimated
    for number in range(12):
        accepted(queue, f"a{number + 1:02}", tenant="a")
        accepted(queue, f"b{number:02}", tenant="b")
    first = [run.tenant for run in queue.claim(NOW, 10).runs]
    assert first.count("b") >= 9


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=120), st.integers(1, 5))
def test_a_class_with_a_share_gets_it_while_it_waits_whatever_is_more_valuable(
    arrivals: list[tuple[int, bool]], limit: int
) -> None:
    share = 0.2
    queue = queue_with(classes=classes(4, share=share), agents={"echo": AgentPolicy(cost_ms=1000.0)})
    for number in range(40):
        accepted(queue, f"low{number:02}", "best_effort")
    taken = {True: 0, False: 0}
    for number, (rank, _) in enumerate(arrivals):
        for more in range(limit):
            accepted(queue, f"{number:03}.{more}", CLASSES[min(rank, 3)])
        for run in queue.claim(NOW, limit).runs:
            taken[rank_of_score(run.score) == 4] += run.cost_ms
        if len(queue.claim(NOW, 0).runs) == 0 and queue.counts.tally.queued[4]:
            total = taken[True] + taken[False]
            assert taken[True] >= share * total - 1000 * (1 + share)
    assert taken[True] <= share * (taken[True] + taken[False]) + 1000


def test_without_a_share_the_least_valuable_class_may_starve() -> None:
    queue = queue_with()
    accepted(queue, "low", "best_effort")
    for number in range(50):
        accepted(queue, f"{number}", "critical")
        assert all(rank_of_score(run.score) == 0 for run in queue.claim(NOW, 1).runs)


# ------------------------------------------------------------------------------------------------------ predicted wait


@given(
    st.lists(st.integers(0, 50_000), min_size=5, max_size=5),
    st.integers(0, 4),
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5000)), max_size=20),
    st.integers(1, 16),
    st.floats(0.01, 1),
)
def test_what_is_worth_less_never_waits_less_and_what_comes_adds_to_it(
    queued: list[int], rank: int, fresh: list[tuple[int, int]], partitions: int, part: float
) -> None:
    policy = AdmissionPolicy(
        at_ms=NOW, partitions=partitions, drain=1.0,
        classes=tuple(
            ClassPolicy(ahead_ms=float(sum(queued[: each + 1])), own_ms=float(queued[each])) for each in range(5)
        ),
    )  # fmt: skip
    tally = Tally()
    before = ahead(policy, tally, NOW, rank, part)
    assert before.cost_ms == pytest.approx(sum(queued[:rank]) + part * queued[rank])
    for each, cost in fresh:
        tally.came(each, cost)
    here = [ahead(policy, tally, NOW, each, 1.0).cost_ms for each in range(5)]
    assert here == pytest.approx(sorted(here))
    assert all(
        now >= then - 1e-6 for now, then in zip(here, [sum(queued[: each + 1]) for each in range(5)], strict=True)
    )
    counted = ahead(policy, tally, NOW, 4, 1.0).cost_ms - sum(queued)
    total, times = sum(cost for _, cost in fresh), len(fresh)
    assert total - 1e-6 <= counted <= total * partitions + 1e-6
    if times <= 2:
        assert counted == pytest.approx(total)
    late = ahead(policy, tally, NOW + 10_000, rank, 1.0)
    assert late.cost_ms == sum(tally.queued_ms[: rank + 1]) * partitions


def test_what_the_policy_knows_of_is_forgotten_two_exchanges_later() -> None:
    queue = queue_with(partitions=4)
    for number in range(6):
        accepted(queue, f"{number}")
    tally = queue.counts.tally
    assert tally.fresh[2] == 6
    queue.exchange(NOW + 250)
    accepted(queue, "later")
    assert tally.fresh[2] == 7
    queue.exchange(NOW + 500)
    assert tally.fresh[2] == 1
    assert tally.queued[2] == 7
    queue.exchange(NOW + 750)
    assert tally.fresh[2] == 0
    assert tally.queued[2] == 7


def test_what_is_drained_meanwhile_counts_for_two_periods_at_most() -> None:
    policy = AdmissionPolicy(at_ms=NOW, drain=10.0, classes=classes(0, ahead_ms=9000.0, own_ms=9000.0))
    at = [ahead(policy, Tally(), NOW + age, 0, 1.0).cost_ms for age in (-50, 0, 100, 500, 4000)]
    assert at == [9000, 9000, 8000, 4000, 4000]


def test_a_light_tenant_waits_for_its_part_of_a_heavy_queue_only() -> None:
    heavy = classes(2, ahead_ms=100_000.0, own_ms=100_000.0, pace=0.1)
    queue = queue_with(classes=AMPLE)
    for number in range(100):
        accepted(queue, f"{number}", tenant="heavy")
    queue.exchange(NOW)
    queue.exchange(NOW, AdmissionPolicy(v=2, at_ms=NOW, drain=10.0, classes=heavy, agents=ECHO))
    assert accepted(queue, "h", tenant="heavy").wait_ms == pytest.approx(10_000)
    assert accepted(queue, "l", tenant="light").wait_ms < 500


def test_a_guaranteed_share_bounds_the_wait_behind_better_classes() -> None:
    busy = {"ahead_ms": 1e6, "own_ms": 1000.0, "pace": 100.0}
    without, with_share = (queue_with(classes=classes(4, **busy, share=share)) for share in (0.0, 0.1))
    assert refused(without, "x", "best_effort").wait_ms == 100 * 1e6
    # 1,000 ms of its own class at a tenth of a drain of 10.
    assert accepted(with_share, "x", "best_effort").wait_ms == pytest.approx(1000)


# ------------------------------------------------------------------------------------------------------- each reason


def test_too_long_a_queue_is_refused_and_told_when_there_is_room() -> None:
    queue = queue_with(classes=classes(2, ahead_ms=60_000.0, own_ms=60_000.0, max_wait_ms=5000))
    no = refused(queue, "x")
    assert (no.reason, no.wait_ms) == ("queue", 6000)
    assert no.come_back == (12_000, True)  # 60,000 of cost, and room for 5 a millisecond
    # The next one of the class comes as much later as a run of 1,000 takes of that room.
    assert refused(queue, "y").come_back == (12_200, True)
    assert accepted(queue, "z", max_wait_ms=6000).wait_ms == 6000
    assert accepted(queue, "better", "high").wait_ms == 0


def test_without_room_it_is_told_to_stay_away() -> None:
    queue = queue_with(classes=classes(2, ahead_ms=60_000.0, max_wait_ms=5000, room=0.0))
    assert refused(queue, "x").come_back == (NO_ROOM_MS, False)


def test_hosts_that_are_lost_are_the_reason_and_batch_work_still_comes_in() -> None:
    queue = queue_with(floor_ms=30_000.0, floor_reason="hosts")
    no = refused(queue, "x", max_wait_ms=5000)
    assert (no.reason, no.wait_ms, no.come_back.after_ms) == ("hosts", 30_000, 30_000)
    assert accepted(queue, "y").wait_ms == 30_000


def test_a_dependency_that_is_down_is_named() -> None:
    down = AgentPolicy(cost_ms=1000.0, until_ms=NOW + 8000, dependency="openai")
    queue = queue_with(agents={"echo": AgentPolicy(), "writer": down})
    no = refused(queue, "x", agent="writer", max_wait_ms=5000)
    assert (no.reason, no.come_back) == ("dependency:openai", (8000, True))
    assert accepted(queue, "y", max_wait_ms=5000).wait_ms == 0
    assert accepted(queue, "z", agent="writer", max_wait_ms=9000).wait_ms == 8000
    assert accepted(queue, "later", agent="writer", max_wait_ms=5000, now_ms=NOW + 8000).wait_ms < 5000


def test_memory_of_the_store_closes_a_class_and_child_runs_still_come_in() -> None:
    queue = queue_with(classes=classes(3, open=False))
    no = refused(queue, "x", "low")
    assert (no.reason, no.come_back.after_ms) == ("store", STORE_WAIT_MS)
    accepted(queue, "child", "low", kept=True)
    accepted(queue, "y", "normal")


def test_a_tenant_without_the_right_to_a_class_is_told_never() -> None:
    queue = queue_with(tenants={"t": TenantPolicy(ranks=(3, 4))})
    no = refused(queue, "x", "critical")
    assert (no.reason, no.come_back) == ("tenant_class", NEVER)
    accepted(queue, "y", "low")
    accepted(queue, "z", "critical", tenant="other")


def test_a_tenant_that_has_used_up_its_hour_is_told_until_when() -> None:
    queue = queue_with(tenants={"t": TenantPolicy(until_ms=NOW + 7000)})
    assert refused(queue, "x")[:2] == ("tenant_cost", (7000, True))
    assert refused(queue, "x", deadline_ms=NOW + 6000)[:2] == ("tenant_cost", NEVER)
    accepted(queue, "y", now_ms=NOW + 7000)


def test_a_flood_by_one_tenant_is_kept_out_and_is_nobodys_load() -> None:
    queue = queue_with(tenants={"t": TenantPolicy(left=3)})
    answers = [queue.submit(NOW, arrival(f"{number}")) for number in range(1000)]
    assert sum(isinstance(each, Accepted) for each in answers) == 3
    assert {each.reason for each in answers if isinstance(each, Refused)} == {"tenant_queued"}
    accepted(queue, "other", tenant="other")
    said = queue.exchange(NOW)
    assert said.classes[2].offered == 4
    # What leaves the queue makes place, without a word from the controller.
    assert [run.tenant for run in queue.claim(NOW, 3).runs].count("t") == 2
    accepted(queue, "again")
    accepted(queue, "and again")
    refused(queue, "too many")


def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    queue = queue_with(
        agents={"echo": AgentPolicy(p90_ms=4000.0)}, classes=classes(2, ahead_ms=30_000.0, own_ms=30_000.0)
    )
    for deadline in (0, NOW - 3_600_000, NOW, NOW + 3999):
        assert refused(queue, "x", deadline_ms=deadline)[:2] == ("deadline", NEVER)
    # Its queue is too long for it now (3 s), and when it is gone (6 s at the room) it will be too late, or not.
    assert refused(queue, "x", deadline_ms=NOW + 6999)[:2] == ("deadline", NEVER)
    assert accepted(queue, "y", deadline_ms=NOW + 7000).wait_ms == 3000
    slow = queue_with(
        agents={"echo": AgentPolicy(p90_ms=4000.0)}, classes=classes(2, ahead_ms=30_000.0, room=30.0, pace=1.0)
    )
    assert refused(slow, "x", deadline_ms=NOW + 20_000)[:2] == ("deadline", (1000, True))


def test_a_full_queue_sheds_what_is_worth_less_or_refuses() -> None:
    queue = queue_with(count_bound=3)
    accepted(queue, "a", "low")
    accepted(queue, "b1", "normal")
    accepted(queue, "b2", "normal")
    assert refused(queue, "c", "best_effort").reason == "queue_full"
    yes = accepted(queue, "d", "high")
    assert [(each.run.id, each.reason) for each in yes.evicted] == [("a", "queue_full")]
    assert yes.evicted[0].come_back.after_ms >= 1000
    # The heaviest tenant's newest run goes first inside a level, and a tenant never displaces itself there.
    assert refused(queue, "b3", "normal").reason == "queue_full"
    yes = accepted(queue, "e", "normal", tenant="light")
    assert [each.run.id for each in yes.evicted] == ["b2"]


def test_bytes_are_a_bound_too_and_nothing_is_shed_in_vain() -> None:
    queue = queue_with(bytes_bound=100)
    for name in "abcd":
        accepted(queue, name, "low", size_bytes=25)
    assert refused(queue, "e", "best_effort", size_bytes=1).reason == "queue_full"
    yes = accepted(queue, "f", "high", size_bytes=50)
    assert [each.run.id for each in yes.evicted] == ["d", "c"]
    accepted(queue, "g", "critical", size_bytes=50)
    assert refused(queue, "h", "high", size_bytes=60).reason == "queue_full"
    assert len(queue) == 2
    assert refused(queue, "i", "critical", size_bytes=101)[:2] == ("queue_full", NEVER)


def test_a_dry_run_lets_everything_in_and_says_what_it_would_do() -> None:
    queue = queue_with(
        dry_run=True, count_bound=1, tenants={"t": TenantPolicy(ranks=(0,))},
        classes=classes(2, ahead_ms=60_000.0, max_wait_ms=0),
    )  # fmt: skip
    assert accepted(queue, "a").would == "tenant_class"
    assert accepted(queue, "b", tenant="other").would == "queue"
    assert accepted(queue, "c", "best_effort", tenant="other").would == "queue_full"
    assert accepted(queue, "d", "high", tenant="other").evicted == ()
    assert queue.evict(NOW, 10) == []
    said = queue.exchange(NOW)
    assert not said.refused
    assert not said.shed
    assert said.would == {"tenant_class": [0, 0, 1, 0, 0], "queue": [0, 0, 1, 0, 0], "queue_full": [0, 0, 0, 0, 2]}


# ------------------------------------------------------------------------------------------------------------ shedding


def test_the_bottom_goes_while_it_would_wait_for_longer_than_it_may() -> None:
    queue = queue_with(classes=AMPLE)
    for number in range(10):
        accepted(queue, f"n{number}", "normal", max_wait_ms=5000)
        accepted(queue, f"l{number}", "low", max_wait_ms=5000)
    for _ in range(3):
        queue.exchange(NOW)
    # Hosts were lost: a hundredth of the drain is left, and 20,000 of cost wait for it.
    slow = tuple(
        ClassPolicy(ahead_ms=each, own_ms=10_000.0, queued=10, pace=0.4, room=1.0) for each in (0, 0, 1e4, 2e4, 2e4)
    )
    queue.exchange(NOW, AdmissionPolicy(v=2, at_ms=NOW, drain=2.5, classes=slow, agents=ECHO))
    gone = queue.evict(NOW, 100)
    assert [each.run.id for each in gone] == [f"l{number}" for number in reversed(range(10 - len(gone), 10))]
    assert {each.reason for each in gone} == {"queue"}
    # What is left of 12,500 of cost can be served within five seconds: 2,500 of it is of the low class.
    assert 7 <= len(gone) <= 9
    assert all(each.come_back.by_itself for each in gone)
    slots = [each.come_back.after_ms for each in gone]
    assert slots == sorted(slots)
    assert len(set(slots)) == len(slots)


def test_runs_that_were_started_and_child_runs_stay() -> None:
    queue = queue_with()
    accepted(queue, "started", "best_effort", max_wait_ms=1)
    (run,) = queue.claim(NOW, 1).runs
    queue.put_back(run, 10)
    accepted(queue, "child", "best_effort", kept=True)
    accepted(queue, "new", "best_effort", max_wait_ms=1000)
    queue.exchange(NOW, AdmissionPolicy(v=2, at_ms=NOW, drain=1.0, floor_ms=30_000.0, floor_reason="hosts"))
    gone = queue.evict(NOW, 10)
    assert [(each.run.id, each.reason) for each in gone] == [("new", "hosts")]
    assert len(queue) == 2


def test_what_waits_for_longer_than_it_may_is_over_when_it_is_claimed() -> None:
    queue = queue_with()
    accepted(queue, "short", max_wait_ms=1000)
    accepted(queue, "late", deadline_ms=NOW + 2000)
    accepted(queue, "fine")
    claimed = queue.claim(NOW + 2000, 5)
    assert [(run.id, why) for run, why in claimed.over] == [("short", "max_wait"), ("late", "deadline_exceeded")]
    assert [run.id for run in claimed.runs] == ["fine"]


# ----------------------------------------------------------------------------------------------- pauses and other caps


@pytest.mark.parametrize(
    ("what", "left"),
    [("queue", ""), ("class:high", "bc"), ("tenant:t", "b"), ("agent:echo", "c"), ("tenant:nobody", "abc")],
)
def test_what_is_paused_waits_in_its_place_and_comes_back(what: str, left: Sequence[str]) -> None:
    queue = queue_with()
    accepted(queue, "a", "high")
    accepted(queue, "b", "normal", tenant="other", agent="other")
    accepted(queue, "c", "low", agent="writer")
    expected = (
        []
        if what == "queue"
        else {"class:high": ["b", "c"], "tenant:t": ["b"], "agent:echo": ["b", "c"]}.get(what, ["a", "b", "c"])
    )
    queue.hold(what, '{"by": "ops"}')
    assert [run.id for run in queue.claim(NOW, 10).runs] == expected
    assert len(queue) == 3 - len(expected)
    assert queue.exchange(NOW).held == {what: '{"by": "ops"}'}
    assert queue.resume(what)
    assert sorted(expected + [run.id for run in queue.claim(NOW, 10).runs]) == ["a", "b", "c"]


def test_a_tenant_runs_no_more_than_it_may_and_others_go_on() -> None:
    queue = queue_with()
    queue.exchange(NOW, AdmissionPolicy(v=2, at_ms=NOW, agents=ECHO), {"t": 2})
    for number in range(4):
        accepted(queue, f"t{number}", "high")
    accepted(queue, "other", "low", tenant="other")
    first = queue.claim(NOW, 10).runs
    assert [run.id for run in first] == ["t0", "t1", "other"]
    said = queue.exchange(NOW)
    assert (said.classes[1].queued, said.classes[1].aside) == (0, 2)
    assert queue.claim(NOW, 10).runs == []
    queue.end(first[0], 5)
    assert [run.id for run in queue.claim(NOW, 10).runs] == ["t2"]
    queue.exchange(NOW, AdmissionPolicy(v=3, at_ms=NOW, agents=ECHO), {"t": 0})
    queue.end(first[1], 5)
    assert queue.claim(NOW, 10).runs == []
    queue.exchange(NOW, AdmissionPolicy(v=4, at_ms=NOW, agents=ECHO), {})
    assert [run.id for run in queue.claim(NOW, 10).runs] == ["t3"]


# ---------------------------------------------------------------------------------------------------- without a policy


def test_before_any_policy_all_is_let_in_in_fair_order() -> None:
    queue = PartitionQueue()
    for number in range(3):
        accepted(queue, f"a{number}", tenant="a")
    accepted(queue, "b", tenant="b")
    assert refused(queue, "late", deadline_ms=NOW - 1)[:2] == ("deadline", NEVER)
    assert [run.id for run in queue.claim(NOW, 4).runs] == ["a0", "b", "a1", "a2"]


def test_with_an_old_policy_the_queue_that_is_here_counts_for_all() -> None:
    queue = queue_with(partitions=4, classes=classes(2, ahead_ms=1e9, own_ms=1e9, max_wait_ms=5000, pace=0.1))
    assert refused(queue, "x").reason == "queue"
    now = NOW + STALE_MS + 1
    waits = []
    for number in range(20):
        answer = queue.submit(now, arrival(f"{number}"))
        if isinstance(answer, Refused):
            break
        waits.append(answer.wait_ms)
    # 1,000 of cost each, four partitions, a tenth of a millisecond for each: 400 ms a run.
    assert waits == pytest.approx([400.0 * number for number in range(13)])


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("level", 500), ("level", -1), ("max_wait_ms", -2), ("max_wait_ms", 2**60), ("deadline_ms", -2),
        ("deadline_ms", 10**18), ("size_bytes", -1), ("max_wait_ms", 1.5), ("level", True),
        ("deadline_ms", float("nan")), ("tenant", ""), ("agent", ""), ("id", ""),
    ],
)  # fmt: skip
def test_absurd_values_are_refused_by_name(field: str, value: Any) -> None:
    queue = queue_with()
    with pytest.raises(ValueError, match=field):
        queue.submit(NOW, arrival()._replace(**{field: value}))
    assert len(queue) == 0


@given(st.integers(0, 2**53), st.integers(0, 2**53))
def test_any_time_whatever_gets_an_answer(max_wait_ms: int, deadline_ms: int) -> None:
    queue = queue_with(classes=classes(2, ahead_ms=60_000.0, own_ms=60_000.0, room=0.001))
    answer = queue.submit(NOW, arrival(max_wait_ms=max_wait_ms, deadline_ms=deadline_ms))
    if isinstance(answer, Refused):
        assert -1 <= answer.come_back.after_ms <= LONGEST_MS
