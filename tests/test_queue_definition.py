"""What operators say about admission, and the policy as JSON: nonsense is refused, other versions are read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from admission import queue_statistics
from admission.admission_definition import AdmissionDefinition
from admission.admission_policy import AdmissionPolicy, AgentPolicy, ClassPolicy, TenantPolicy, as_plain, from_plain
from admission.queue_statistics import AgentStatistics, PartitionStatistics, TenantStatistics, bucket_of


def test_nothing_said_bounds_nothing() -> None:
    nothing = AdmissionDefinition()
    assert nothing.version == "default"
    assert nothing.of_class(0).max_wait == 86_400
    assert nothing.of_class(4).share == 0
    anybody = nothing.of_tenant("anybody")
    assert (anybody.weight, anybody.ranks, anybody.max_queued, anybody.max_running) == (
        1.0,
        (0, 1, 2, 3, 4),
        None,
        None,
    )


def test_durations_sizes_and_names_are_read() -> None:
    said = AdmissionDefinition.model_validate(
        {
            "classes": {"critical": {"max_wait": "5s"}, "low": {"max_wait": 90, "share": 0.02}},
            "tenants": {"acme": {"weight": 3, "classes": "low", "max_running": 2, "cost_per_hour": "2h"}},
            "other_tenants": {"max_queued": 10},
            "max_queued_bytes": "1.5 GB",
        }
    )
    assert said.of_class(0).max_wait == 5
    assert said.of_class(3).max_wait == 90
    assert said.of_tenant("acme").ranks == (3,)
    assert said.of_tenant("acme").cost_per_hour == 7200
    assert said.of_tenant("acme").max_queued is None
    assert said.of_tenant("other").max_queued == 10
    assert said.max_queued_bytes == 1_500_000_000
    assert len(said.version) == 12
    assert said.version == AdmissionDefinition.model_validate_json(said.model_dump_json()).version


@pytest.mark.parametrize(
    ("said", "where", "what"),
    [
        ({"classes": {"crit": {}}}, ("classes", "crit"), "'critical', 'high'"),
        ({"classes": {"low": {"max_wait": -1}}}, ("classes", "low", "max_wait"), "no duration above zero"),
        ({"classes": {"low": {"max_wait": "1000d"}}}, ("classes", "low", "max_wait"), "longer than a year"),
        ({"classes": {"low": {"share": 0.6}}}, ("classes", "low", "share"), "less than or equal to 0.5"),
        ({"classes": {"low": {"share": "nan"}}}, ("classes", "low", "share"), "finite"),
        ({"classes": {name: {"share": 0.4} for name in ("low", "high", "normal")}}, (), "at most 0.9"),
        ({"tenants": {"a": {"weight": 0}}}, ("tenants", "a", "weight"), "greater than or equal to 0.01"),
        ({"tenants": {"a": {"weight": True}}}, ("tenants", "a", "weight"), "no number"),
        ({"tenants": {"a": {"classes": []}}}, ("tenants", "a", "classes"), "at least 1 item"),
        ({"tenants": {"a": {"max_running": 0}}}, ("tenants", "a", "max_running"), "greater than or equal to 1"),
        ({"tenants": {"a": {"max_queued": 1.5}}}, ("tenants", "a", "max_queued"), "valid integer"),
        ({"tenants": {"": {}}}, ("tenants", ""), "printable"),
        ({"tenants": {7: {}}}, ("tenants", 7), "printable"),
        ({"max_queued_bytes": "lots"}, ("max_queued_bytes",), "no size"),
        ({"max_queued": -5}, ("max_queued",), "greater than or equal to 1"),
        ({"dry_run": "perhaps"}, ("dry_run",), "boolean"),
        ({"max_wait": 5}, ("max_wait",), "not permitted"),
    ],
)
def test_what_makes_no_sense_is_refused_at_its_place(said: Any, where: tuple[str, ...], what: str) -> None:
    with pytest.raises(ValidationError) as caught:
        AdmissionDefinition.model_validate(said)
    (problem,) = caught.value.errors()
    assert tuple(problem["loc"])[: len(where)] == where
    assert what in problem["msg"]


COSTS = st.floats(0, 1e12)
POLICIES = st.builds(
    AdmissionPolicy,
    v=st.integers(0, 10**9),
    drain=st.none() | st.floats(0.001, 1e6),
    classes=st.tuples(*[st.builds(ClassPolicy, ahead_ms=COSTS, own_ms=COSTS, room=st.floats(-1e6, 1e6))] * 5),
    agents=st.dictionaries(st.text(max_size=3), st.builds(AgentPolicy, cost_ms=COSTS, until_ms=st.integers(0, 2**50))),
    tenants=st.dictionaries(
        st.text(max_size=3), st.builds(TenantPolicy, ranks=st.sets(st.integers(0, 4)).map(lambda s: tuple(sorted(s))))
    ),
)


@given(POLICIES)
def test_a_policy_is_read_as_it_is_written(policy: AdmissionPolicy) -> None:
    plain = as_plain(policy)
    assert None not in plain.values()
    assert from_plain(json.loads(json.dumps(plain, allow_nan=False))) == policy


def test_a_policy_of_another_version_is_read() -> None:
    assert from_plain({}) == AdmissionPolicy()
    newer = {"v": 3, "news": 1, "agents": [], "classes": [{"pace": 2, "hue": "red"}], "tenant_default": {"x": 1}}
    assert from_plain(newer) == AdmissionPolicy(v=3, classes=(ClassPolicy(pace=2), *[ClassPolicy()] * 4))


def test_statistics_are_read_as_they_are_written_and_as_lua_writes_them() -> None:
    said = PartitionStatistics(3, 5, 7, tenants={"a": TenantStatistics(1, [1, 2, 3, 4, 5])}, held={"queue": "{}"})
    said.agents["x"] = AgentStatistics(2, 30)
    said.refused["queue"] = [0, 1, 0, 0, 0]
    assert queue_statistics.from_plain(json.loads(json.dumps(queue_statistics.as_plain(said)))) == said
    lua = {"partition": 1, "tenants": [], "classes": [{"queued": 2}], "refused": {"queue": [1]}, "agents": {"x": {}}}
    read = queue_statistics.from_plain(lua)
    assert read.classes[0].queued == 2
    assert len(read.classes) == 5
    assert read.tenants == {}
    assert read.refused == {"queue": [1, 0, 0, 0, 0]}
    assert read.agents == {"x": AgentStatistics()}


@given(st.integers(0, 2**45))
def test_a_bucket_has_times_from_its_power_of_two_on(service_ms: int) -> None:
    bucket = bucket_of(service_ms)
    assert 0 <= bucket < queue_statistics.HISTOGRAM
    assert service_ms < 2 ** (bucket + 1) or bucket == queue_statistics.HISTOGRAM - 1
    assert service_ms >= 2**bucket or service_ms <= 1
