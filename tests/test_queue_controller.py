"""The controller: policies from what is seen, running caps that hold whatever is lost, what people are told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from admission.admission_definition import AdmissionDefinition
from admission.admission_policy import AdmissionPolicy, as_plain, from_plain
from admission.partition_queue import PartitionQueue
from admission.queue_answers import Accepted, Refused
from admission.queue_controller import (
    FORCED_OPEN_MS,
    DependencyState,
    HostState,
    Observations,
    QueueController,
    left_each,
)
from admission.queue_law import Arrival
from admission.queue_statistics import PartitionStatistics
from admission.queue_view import view
from admission.running_caps import UNUSED_MS, Here, RunningCap
from admission.values import CLASSES, Value

NOW = 1_700_000_000_000


class Deployment:
    """A controller and its partitions in virtual time; hosts are only a number of slots."""

    def __init__(self, partitions: int = 2, slots: float = 10, **definition: Any) -> None:
        self.now = NOW
        self.definition = AdmissionDefinition.model_validate(definition)
        self.queues = [PartitionQueue(each, partitions) for each in range(partitions)]
        self.controller = QueueController(partitions)
        self.hosts = {"h": HostState(slots)}
        self.dependencies: dict[str, DependencyState] = {}
        self.memory: float | None = None
        self.policy = AdmissionPolicy()
        self.places: dict[int, dict[str, int]] = {}
        self.number = 0
        self.period()
        self.period()

    def period(self, times: int = 1) -> None:
        for _ in range(times):
            said = [
                queue.exchange(self.now, self.policy, self.places.get(place)) for place, queue in enumerate(self.queues)
            ]
            self.seen = Observations(said, self.hosts, self.dependencies, self.memory, self.definition)
            decision = self.controller.step(self.now, self.seen)
            self.policy = from_plain(json.loads(json.dumps(as_plain(decision.policy), allow_nan=False)))
            self.places = {place: dict(each) for place, each in decision.places.items()}
            self.evict = decision.evict
            self.now += 250

    def submit(self, value: str = "normal", tenant: str = "t", agent: str = "echo", **more: Any) -> Accepted | Refused:
        self.number += 1
        queue = self.queues[self.number % len(self.queues)]
        return queue.submit(self.now, Arrival(f"{self.number:05}", Value.parse(value).level, tenant, agent, **more))

    def told(self) -> dict[str, Any]:
        told = view(self.controller, self.seen)
        assert json.loads(json.dumps(told, allow_nan=False)) == told
        return told


def test_before_any_host_everything_is_let_in_and_this_is_said() -> None:
    made = Deployment(slots=0)
    assert all(isinstance(made.submit(max_wait_ms=0), Accepted) for _ in range(100))
    made.period(2)
    told = made.told()
    assert made.policy.drain is None
    assert "no host was ever there" in told["words"][0]
    assert told["classes"][2]["queued"] == 100
    assert told["classes"][2]["wait_ms"] is None


def test_the_predicted_wait_is_what_is_queued_by_the_drain() -> None:
    made = Deployment(slots=10)
    answers = [made.submit() for _ in range(100)]
    made.period(2)
    assert made.policy.classes[2].own_ms == 100_000
    assert made.told()["classes"][2]["wait_ms"] == pytest.approx(10_000, rel=0.05)
    assert made.told()["classes"][3]["wait_ms"] > 10_000  # better classes may go on coming
    assert made.told()["classes"][0]["wait_ms"] == 0
    assert isinstance(made.submit(max_wait_ms=5000), Refused)
    assert isinstance(made.submit("critical", max_wait_ms=50), Accepted)
    assert all(isinstance(each, Accepted) for each in answers)


def test_policies_rise_also_after_a_new_controller_has_begun() -> None:
    made = Deployment()
    made.period(5)
    v = made.policy.v
    made.controller.agents["echo"] = made.controller.agents.get("echo") or _known(2000)
    kept = json.loads(json.dumps(made.controller.snapshot()))
    made.controller = QueueController(2)
    made.controller.restore(kept)
    made.period()
    assert made.policy.v > v
    assert made.policy.drain == 10
    assert made.policy.agent("echo").cost_ms == 2000
    with pytest.raises(ValueError, match="no snapshot"):
        made.controller.restore({"drain": 1})


def _known(cost_ms: int) -> Any:
    from admission.service_estimate import ServiceEstimate

    estimate = ServiceEstimate()
    estimate.observe(1, cost_ms, [0] * 40)
    return estimate


def test_costs_and_service_times_are_learned_from_runs_that_end() -> None:
    made = Deployment()
    for _ in range(40):
        made.submit()
    for queue in made.queues:
        for run in queue.claim(made.now, 20).runs:
            queue.end(run, 3000, 9000)
    made.period(2)
    assert made.policy.agent("echo").cost_ms == 3000
    assert 8192 <= made.policy.agent("echo").p90_ms <= 16_384
    answer = made.submit(deadline_ms=made.now + 8000)
    assert isinstance(answer, Refused)
    assert answer.reason == "deadline"


def test_a_service_time_that_keeps_all_runs_out_is_forgotten() -> None:
    made = Deployment()
    for _ in range(300):
        made.submit()
    for queue in made.queues:
        for run in queue.claim(made.now, 200).runs:
            queue.end(run, 1000, 60_000)  # all of them waited for something that was down
    made.period(2)
    p90_ms = made.policy.agent("echo").p90_ms
    assert p90_ms > 32_768
    made.period(200)
    assert made.policy.agent("echo").p90_ms == p90_ms  # while nobody is refused for it, it is the best that is known
    refused = 0
    while isinstance(made.submit(deadline_ms=made.now + 20_000), Refused):
        refused += 1
        made.period()
    assert refused <= 80
    assert made.policy.agent("echo").p90_ms == 0


def test_lost_hosts_are_said_after_a_moment_and_forgotten_when_one_is_back() -> None:
    made = Deployment()
    made.hosts = {"h": HostState(10, draining=True)}
    made.period(4)
    assert made.policy.floor_ms == 0
    made.period(8)
    assert (made.policy.floor_ms, made.policy.floor_reason, made.policy.drain) == (30_000, "hosts", 10)
    assert "all hosts are lost" in made.told()["words"][0]
    answer = made.submit(max_wait_ms=5000)
    assert isinstance(answer, Refused) or answer.wait_ms == 0  # the policy is on its way
    made.period()
    answer = made.submit(max_wait_ms=5000)
    assert isinstance(answer, Refused)
    assert answer.reason == "hosts"
    made.hosts = {"h": HostState(4)}
    made.period(2)
    assert made.policy.floor_ms == 0
    assert made.policy.drain == pytest.approx(4)


def test_a_dependency_that_is_down_holds_the_agents_that_need_it() -> None:
    made = Deployment()
    made.dependencies = {
        "openai": DependencyState(made.now + 9000, frozenset({"writer", "reader"})),
        "crm": DependencyState(None, frozenset({"writer"})),
        "old": DependencyState(made.now - 1, frozenset({"echo"})),
    }
    made.period()
    assert made.policy.agents["reader"].dependency == "openai"
    writer = made.policy.agents["writer"]
    assert (writer.dependency, writer.until_ms) == ("crm", made.now - 250 + FORCED_OPEN_MS)
    assert "echo" not in made.policy.agents
    assert any("crm is not to be called" in line for line in made.told()["words"])


def test_memory_closes_classes_from_below_and_opens_them_with_some_distance() -> None:
    made = Deployment()
    opened = []
    for memory in (0.5, 0.8, 0.86, 0.845, 0.83, 0.98, None):
        made.memory = memory
        made.period()
        made.period()
        opened.append([each.open for each in made.policy.classes].count(True))
    assert opened == [5, 4, 3, 3, 4, 0, 5]


def test_a_store_that_fills_up_fast_is_closed_before_it_is_full() -> None:
    made = Deployment()
    opened = []
    for memory in (0.70, 0.78, 0.86):
        made.memory = memory
        made.period()
        opened.append([each.open for each in made.policy.classes].count(True))
    # It will be at 0.86, and at 0.94, at the next look.
    assert opened == [5, 3, 1]


def test_caps_and_bounds_of_the_definition_are_in_the_policy() -> None:
    made = Deployment(
        partitions=2,
        classes={"critical": {"max_wait": "5s"}, "low": {"share": 0.1}},
        tenants={"acme": {"weight": 3, "classes": ["low"], "max_queued": 7}},
        other_tenants={"max_queued": 100, "max_running": 5},
        max_queued=1001,
        max_queued_bytes="1KB",
        dry_run=True,
    )
    policy = made.policy
    assert policy.classes[0].max_wait_ms == 5000
    assert policy.classes[3].share == 0.1
    assert (policy.count_bound, policy.bytes_bound, policy.dry_run) == (501, 500, True)
    assert policy.tenant("acme").ranks == (3,)
    assert policy.tenant("acme").weight == 3
    assert policy.tenant("acme").places == -1
    assert policy.tenant("new").places == 2
    assert policy.tenant("new").left == left_each(100, 2)
    for _ in range(20):
        made.submit(tenant="busy")
    made.period(2)
    assert made.policy.tenant("busy").left == left_each(80, 2)


@given(st.integers(-5, 10**6), st.integers(1, 256))
def test_parts_of_a_cap_add_up_to_all_of_it_and_to_little_more(left: int, partitions: int) -> None:
    each = left_each(left, partitions)
    assert each * partitions >= max(0, left) or each == left
    assert 0 <= each <= max(0, left)
    if partitions == 1:
        assert each == max(0, left)


def test_a_tenant_that_has_used_up_its_hour_is_out_until_it_has_passed() -> None:
    made = Deployment(tenants={"t": {"cost_per_hour": "10s"}})
    made.submit()
    made.period()
    queue = made.queues[1]
    (run,) = queue.claim(made.now, 1).runs
    queue.end(run, 12_000)
    made.period(2)
    answer = made.submit()
    assert isinstance(answer, Refused)
    assert answer.reason == "tenant_cost"
    assert 3_500_000 < answer.come_back.after_ms <= 3_660_000
    assert isinstance(made.submit(tenant="other"), Accepted)
    made.now += 3_660_000
    made.period(2)
    assert isinstance(made.submit(), Accepted)


def test_an_overload_leaves_no_room_and_a_burst_does() -> None:
    flood, burst = Deployment(), Deployment(classes={"normal": {"max_wait": "5s"}})
    for _ in range(400):
        for _ in range(8):
            flood.submit()
        flood.period()
    assert flood.policy.classes[2].room < 0
    for _ in range(500):
        burst.submit()
    burst.period(2)
    assert burst.policy.classes[2].room > 0.9 * 10
    slots = []
    for _ in range(50):
        answer = burst.submit()
        assert isinstance(answer, Refused)
        assert answer.come_back.by_itself
        slots.append(answer.come_back.after_ms)
    # Room for about ten runs a second.
    assert 4 <= (max(slots) - min(slots)) / 1000 <= 6


def test_a_large_batch_of_all_classes_is_not_refused_for_what_has_just_come_of_it() -> None:
    made = Deployment(slots=10)
    for _ in range(40):
        answers = [made.submit(value) for value in CLASSES for _ in range(100)]
        assert all(isinstance(each, Accepted) for each in answers)
        made.period()
    last = made.policy.classes[4]
    assert made.policy.drain is not None
    assert last.ahead_ms == 20_000_000
    longest_ms = 20_000_000 / made.policy.drain + last.more_ms
    assert made.told()["classes"][4]["wait_ms"] == pytest.approx(longest_ms, rel=0.01)
    assert 60_000 < last.more_ms < 3_600_000
    assert isinstance(made.submit("best_effort", max_wait_ms=5000), Refused)


def test_partitions_are_told_to_shed_when_the_drain_breaks_in() -> None:
    made = Deployment(slots=100, classes={"normal": {"max_wait": "5s"}})
    for _ in range(100):
        made.submit()
    made.period(2)
    assert made.evict == {}
    made.hosts = {"h": HostState(1)}
    made.period(2)
    assert set(made.evict) == {0, 1}
    shed = 0
    for _ in range(8):
        for place, most in made.evict.items():
            shed += len(made.queues[place].evict(made.now, most))
        made.period()
    assert made.evict == {}
    left = sum(len(queue) for queue in made.queues)
    assert left + shed == 100
    assert 3 <= left <= 7  # five seconds of one slot
    told = made.told()
    assert {(row["what"], row["reason"], row["class"]) for row in told["shedding"]} == {("shed", "queue", "normal")}


def test_people_are_told_who_waits_how_long_and_what_is_paused() -> None:
    made = Deployment(slots=10, tenants={"heavy": {"weight": 1}, "paying": {"weight": 4, "max_running": 3}})
    for _ in range(200):
        made.submit(tenant="heavy")
    for _ in range(20):
        made.submit(tenant="paying")
    for queue in made.queues:
        queue.hold("agent:echo", '{"by": "ops"}')
    made.period(2)
    rows = {row["tenant"]: row for row in made.told()["tenants"]}
    assert rows["heavy"]["queued"] == 200
    assert rows["paying"]["max_running"] == 3
    assert rows["paying"]["wait_ms"]["normal"] < rows["heavy"]["wait_ms"]["normal"] / 5
    assert made.told()["paused"] == {"agent:echo": '{"by": "ops"}'}
    assert "agent:echo is paused" in made.told()["words"]


def test_a_partition_that_does_not_answer_is_taken_as_it_was() -> None:
    made = Deployment()
    for _ in range(10):
        made.submit()
    made.period(2)
    said = made.seen.partitions
    decision = made.controller.step(made.now, Observations(said[:1], made.hosts))
    assert decision.policy.classes[2].queued == 10
    decision = made.controller.step(made.now, Observations([], {}))
    assert decision.policy.classes[2].queued == 10


def test_absurd_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        QueueController(0)


@given(st.integers(1, 4), st.lists(st.integers(0, 10**6), min_size=1, max_size=4))
def test_anything_that_partitions_may_say_makes_a_policy(partitions: int, numbers: list[int]) -> None:
    controller = QueueController(partitions)
    now = 0
    for number in numbers:
        now += number
        said = PartitionStatistics(number % partitions, now, running=number)
        said.classes[number % 5].queued_ms = number
        said.classes[number % 5].offered_ms = number * number
        decision = controller.step(now, Observations([said], {"h": HostState(number % 7)}, memory=number / 10**6))
        assert from_plain(json.loads(json.dumps(as_plain(decision.policy), allow_nan=False))) == decision.policy
        view(controller, Observations([said], {}))


# ------------------------------------------------------------------------------------------------------ running caps


@settings(max_examples=200)
@given(
    st.integers(1, 12),
    st.integers(1, 6),
    st.lists(
        st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.booleans(), st.booleans()), min_size=6, max_size=6),
        max_size=25,
    ),
)
def test_a_cap_holds_whichever_words_are_lost_or_late(
    most: int, partitions: int, periods: list[list[tuple[int, int, bool, bool]]]
) -> None:
    cap = RunningCap(most, partitions)
    allowed = [most // partitions] * partitions  # what each really goes by
    heard = [0] * partitions
    running, waiting = [0] * partitions, [0] * partitions
    last: dict[int, Here] = {place: Here(0, 0, allowed[place]) for place in range(partitions)}
    for v, period in enumerate(periods, 1):
        given = cap.allowances(v * 250, last)
        assert all(each >= 0 for each in given.values())
        for place in range(partitions):
            came, went, reached, answered = period[place]
            if reached:
                allowed[place], heard[place] = given[place], v
            waiting[place] += came
            running[place] -= min(went, running[place])
            started = min(waiting[place], max(0, allowed[place] - running[place]))
            running[place], waiting[place] = running[place] + started, waiting[place] - started
            assert sum(running) <= most
            if reached and answered:
                last[place] = Here(running[place], waiting[place], allowed[place], True)
            else:
                last[place] = last[place]._replace(heard=False)


def test_allowances_go_where_runs_wait_and_come_back_when_nobody_does() -> None:
    cap = RunningCap(4, 8)
    assert cap.unasked == 0
    here = {place: Here(0, 5 if place < 2 else 0, 0) for place in range(8)}
    given = cap.allowances(0, here)
    assert sorted(given.values()) == [0, 0, 0, 0, 0, 0, 2, 2]
    wide = RunningCap(16, 8)
    here = {place: Here(0, 0, 2) for place in range(8)}
    assert set(wide.allowances(0, here).values()) == {2}
    here[0] = Here(2, 9, 2)
    first = wide.allowances(250, here)
    here = {place: Here(here[place].running, here[place].waiting, first[place]) for place in range(8)}
    assert wide.allowances(500, here)[0] == 11


def test_one_place_comes_to_every_partition_in_turn() -> None:
    cap = RunningCap(1, 4)
    told = dict.fromkeys(range(4), 0)
    held = dict.fromkeys(range(4), 0)
    for step in range(400):
        told = cap.allowances(step * (UNUSED_MS // 4), {place: Here(0, 3, told[place]) for place in range(4)})
        assert sum(told.values()) <= 1
        for place, each in told.items():
            held[place] += each
    assert min(held.values()) > 50
