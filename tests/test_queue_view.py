"""What people are told of the queue: put together from counters and the controller's word; places by the law."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from admission.admission_definition import AdmissionDefinition
from admission.admission_policy import AdmissionPolicy, AgentPolicy, ClassPolicy, as_plain
from admission.queue_controller import HostState, Observations, QueueController
from admission.queue_statistics import PartitionStatistics, TenantStatistics
from admission.queue_view import view as explanation
from admission.values import CLASSES, Value, score_of
from cluster.lifecycle import RunState
from cluster.queue_reader import PartitionQueue, Standing
from cluster.records import RunRecord
from penstock import explain_queue
from penstock.queue_place import queue_place
from penstock.queue_reading import explanation_of, pauses, queue_view, with_rates
from penstock.queue_views import QueueView

NOW_MS = 1_800_000_000_000


def partition(number: int = 0, **fields: Any) -> PartitionStatistics:
    made = PartitionStatistics(partition=number, at_ms=NOW_MS, v=7, **fields)
    return made


def queued(rank: int, count: int, **more: int) -> PartitionStatistics:
    made = partition()
    made.classes[rank].queued, made.classes[rank].queued_ms = count, count * 1000
    for name, value in more.items():
        setattr(made.classes[rank], name, value)
    return made


def said(partitions: list[PartitionStatistics], definition: AdmissionDefinition | None = None) -> bytes:
    """What a controller says that has seen this, and before that as much of nothing."""
    definition = definition or AdmissionDefinition()
    controller = QueueController(len(partitions))
    hosts = {"h": HostState(4.0)}
    controller.step(NOW_MS - 250, Observations([partition(each.partition) for each in partitions], hosts))
    seen = Observations(partitions, hosts, definition=definition)
    controller.step(NOW_MS, seen)
    return json.dumps(explanation(controller, seen)).encode()


def told(partitions: list[PartitionStatistics], raw: bytes, age_ms: int = 100, **more: Any) -> QueueView:
    rules = more.pop("rules", AdmissionDefinition())
    return queue_view("t", NOW_MS + age_ms, partitions, explanation_of(raw), rules, **more)


def test_counts_and_predictions() -> None:
    partitions = [queued(2, 40, started=9, aside=3)]
    partitions[0].tenants = {"acme": TenantStatistics(queued=40, queued_ms=[0, 0, 40_000, 0, 0], running=2)}
    partitions[0].running = 2
    partitions[0].refused = {"queue": [0, 0, 12, 0, 0]}
    view = told(partitions, said(partitions))
    assert (view.queued, view.aside, view.running) == (40, 3, 2)
    assert (view.controller.fresh, view.controller.policy, view.drain.slots) == (True, 7, 4.0)
    normal = view.classes[2]
    assert (normal.name, normal.queued, normal.started, normal.max_wait_s) == ("normal", 40, 9, 86_400)
    assert normal.wait_s == pytest.approx(10, rel=0.2)
    (tenant,) = view.tenants
    assert (tenant.tenant, tenant.queued, tenant.running, tenant.queued_s) == ("acme", 40, 2, 40)
    assert tenant.waits_s["normal"] is not None
    (row,) = view.shedding
    assert (row.what, row.reason, row.value_class, row.total) == ("refused", "queue", "normal", 12)
    assert row.per_s is not None
    assert row.per_s > 0
    assert not [note for note in view.notes if "/s of" in note], "they have rows of their own"
    assert msgspec.json.decode(msgspec.json.encode(view), type=QueueView) == view


def test_one_tenant_alone_also_one_that_has_nothing() -> None:
    partitions = [partition(tenants={"acme": TenantStatistics(queued=1), "other": TenantStatistics(queued=2)})]
    rules = AdmissionDefinition.model_validate({"tenants": {"idle": {"max_queued": 5}}})
    assert [each.tenant for each in told(partitions, b"").tenants] == ["other", "acme"]
    (only,) = told(partitions, b"", tenant="idle", rules=rules).tenants
    assert (only.tenant, only.queued, only.max_queued) == ("idle", 0, 5)


def test_without_a_controller_counts_hold_and_nothing_is_predicted() -> None:
    partitions = [queued(1, 5)]
    never = told(partitions, b"")
    assert (never.queued, never.controller.age_s, never.classes[1].wait_s) == (5, None, None)
    assert "no admission controller has said anything yet" in never.notes[0]
    partitions[0].shed = {"max_wait": [0, 2, 0, 0, 0]}
    late = told(partitions, said(partitions), age_ms=60_000)
    assert (late.controller.fresh, late.controller.age_s, late.drain.rate) == (False, 60, None)
    assert "said nothing for 60 s" in late.notes[0]
    assert [(each.total, each.per_s) for each in late.shedding] == [(2, None)]
    partitions[0].shed = {"max_wait": [0, 12, 0, 0, 0]}
    later = told(partitions, said(partitions), age_ms=65_000)
    assert with_rates(later, None) == later
    assert with_rates(later, late).shedding[0].per_s == 2.0


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"classes": 5}', b"\xff"])
def test_what_cannot_be_understood_counts_as_nothing(raw: bytes) -> None:
    assert explanation_of(raw) is None


def test_of_another_version_what_is_known_is_taken() -> None:
    known = explanation_of(b'{"v": 9, "at_ms": 5, "wonders": [1], "drain": {"rate": 2.5, "phase": "moon"}}')
    assert known is not None
    assert (known.at_ms, known.drain.rate) == (5, 2.5)


def test_what_is_paused_by_whom_and_whether_everywhere() -> None:
    note = json.dumps({"by": "ann", "why": "invoice", "at_ms": NOW_MS})
    found = pauses(
        [
            partition(0, held={"tenant:acme": note, "queue": "{}", "agent:a": "no json", "class:low": "[]"}),
            partition(1, held={"queue": "{}", "agent:a": "no json", "class:low": "[]"}),
        ]
    )
    assert [each.what for each in found] == ["queue", "agent:a", "class:low", "tenant:acme"]
    assert str(found[0]) == "the whole queue is paused by somebody"
    assert str(found[3]) == "tenant acme is paused by ann: invoice (in 1 partitions only: pause it again)"


# The place of a run


def place_of(standing: Standing, partition_queue: PartitionQueue, now_ms: int = NOW_MS) -> Any:
    found = queue_place(standing, partition_queue, "echo", now_ms)
    assert found is not None
    return found


def queue_of(counts: dict[int, int], policy: AdmissionPolicy | None = None, **held: str) -> PartitionQueue:
    classes = [{"queued": counts.get(rank, 0), "queued_ms": 1000 * counts.get(rank, 0)} for rank in range(5)]
    raw = b"" if policy is None else json.dumps(as_plain(policy)).encode()
    return PartitionQueue({"classes": classes, "held": held}, {}, raw)


def order_of(value: Value, start: int = 0) -> int:
    return score_of(value.level, start)


def test_a_place_and_a_prediction_by_the_law() -> None:
    classes = tuple(
        ClassPolicy(ahead_ms=10_000.0 * (rank + 1), own_ms=10_000, queued=10, pace=0.5) for rank in range(5)
    )  # fmt: skip
    policy = AdmissionPolicy(v=1, at_ms=NOW_MS - 100, partitions=2, drain=0.0, classes=classes)
    queue = queue_of({1: 5, 2: 5}, policy)
    found = place_of(Standing(order_of(Value(2, 80)), 7, (0, 5, 2), "acme"), queue)
    # All that is better, and three of six of its own class.
    assert (found.value, found.ahead_s, found.wait_s) == (Value(2, 80), 25.0, None if not found.wait_s else 12.5)
    assert (found.before, found.place, found.cause, found.stale) == ((("high", 5), ("normal", 2)), 26, "queue", False)


def test_a_prediction_names_what_causes_it() -> None:
    now = AdmissionPolicy(
        v=1, at_ms=NOW_MS, drain=1.0, agents={"echo": AgentPolicy(until_ms=NOW_MS + 9000, dependency="models")}
    )
    found = place_of(Standing(order_of(Value(0)), 0, (0,), "acme"), queue_of({0: 1}, now))
    assert (found.wait_s, found.cause) == (9.0, "dependency:models")
    assert place_of(Standing(order_of(Value(0)), 0, (0,), "acme"), queue_of({0: 1})).wait_s is None
    assert place_of(Standing(order_of(Value(0)), 0, (0,), "a"), queue_of({0: 1}, now), NOW_MS + 60_000).stale


@given(
    st.binary(max_size=60) | st.sampled_from([b"[]", b"5", b'{"classes": 7}', b'{"classes": [3]}', b'{"drain": "x"}'])
)
def test_a_policy_that_makes_no_sense_is_no_reason_to_fail(raw: bytes) -> None:
    queue = queue_of({2: 3})._replace(policy=raw)
    assert place_of(Standing(order_of(Value(2)), 0, (0, 0, 0), "acme"), queue).place >= 1


@pytest.mark.parametrize("order", [-1, 2**60])
def test_a_run_of_no_level_has_no_place(order: int) -> None:
    assert queue_place(Standing(order, None, (), ""), queue_of({}), "echo", NOW_MS) is None


@pytest.mark.parametrize("what", ["queue", "class:normal", "tenant:acme", "agent:echo"])
def test_why_says_who_paused_it(what: str) -> None:
    note = json.dumps({"by": "ann", "why": "because", "at_ms": NOW_MS})
    found = place_of(
        Standing(order_of(Value(2)), None, (), "acme"), queue_of({}, None, **{what: note, "tenant:x": "{}"})
    )
    reason, owner, following = explain_queue.queued(record(), None, found, [], NOW_MS)
    assert "is paused by ann: because, since 2027-01-15T08:00:00Z" in reason
    assert owner.startswith("ann; partition 00")
    kind, _, name = what.partition(":")
    assert following.startswith(f"penstock resume --{kind} {name};" if name else "penstock resume;")


def test_why_says_that_its_tenant_runs_as_much_as_it_may() -> None:
    found = place_of(Standing(order_of(Value(2)), None, (), "acme"), queue_of({}))
    capped = record(reason="tenant_running: 2 runs of tenant acme at once here")
    reason, _, following = explain_queue.queued(capped, None, found, [], NOW_MS)
    assert (reason, "a run of tenant acme ends" in following) == (capped.reason, True)
    unserved = record(reason="no host serves echo@(any version)")
    assert "a host that serves echo starts" in explain_queue.queued(unserved, None, found, [], NOW_MS)[2]


def test_why_says_when_a_shed_run_may_come_back() -> None:
    def next_of(**fields: Any) -> str:
        return explain_queue.shed(record(state=RunState.SHED, reason="queue", ended_ms=NOW_MS, **fields), NOW_MS)[1]

    assert next_of(retry_after_ms=5000, by_itself=True).startswith(
        "come back at 2027-01-15T08:00:05Z, in 5.0 s; submit"
    )
    assert "or later: nobody knows when there is room" in next_of(retry_after_ms=300_000)
    assert "cannot be accepted as it is" in next_of(retry_after_ms=-1)
    assert next_of().startswith("nothing by itself; submit the same job again")


def record(**fields: Any) -> RunRecord:
    made: dict[str, Any] = {
        "id": "00-" + "0" * 24, "state": RunState.QUEUED, "version": 2, "fence": 0, "agent": "echo", "pinned": "",
        "batch": "b", "custom_id": "c", "job": b"", "reason": "queue", "since_ms": NOW_MS, "accepted_ms": NOW_MS,
        "started_ms": None, "ended_ms": None, "deadline_ms": None, "due_ms": None, "host": "", "migrations": 0,
        "parent": "", "cancel": "", "output": b"", "error": b"",
    }  # fmt: skip
    return RunRecord(**(made | fields))


def test_classes_are_those_of_the_law() -> None:
    assert [each.name for each in told([partition()], b"").classes] == list(CLASSES)
