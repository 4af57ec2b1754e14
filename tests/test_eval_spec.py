"""Specifications of evaluations: what they say, and what is said of wrong ones, with line and fix."""

from pathlib import Path
from typing import Any

import pytest

from actors.errors import DefinitionError
from actors.simulation import Fault, FaultKind, Simulation, drawn
from penstock.evals.invariants import BUILT_IN, found_invariant
from penstock.evals.serving import EvalError, pinned_versions
from penstock.evals.spec import Changes, EvalSpec, SpecError, load_spec, parsed_spec
from penstock.views import HostView

JOBS = "jobs:\n  - {custom_id: a, agent: shop, input: 1}\n"


def parsed(text: str, **changes: Any) -> EvalSpec:
    return parsed_spec(text, Path("evals/refunds.yaml"), Changes(**changes))


def refused(text: str, **changes: Any) -> list[tuple[int, str, str, str]]:
    with pytest.raises(SpecError) as caught:
        parsed(text, **changes)
    assert "evals/refunds.yaml" in str(caught.value)
    return [(each.line, each.field, each.reason, each.fix) for each in caught.value.problems]


def test_the_least_that_is_needed() -> None:
    spec = parsed(JOBS)
    assert (spec.name, spec.repeat, spec.threshold, spec.version_of("shop")) == ("refunds", 20, None, None)
    assert spec.invariants == ("one_effect_per_key",)
    assert spec.expectation_of(spec.jobs[0]) is None
    assert not spec.allows("pay")


def test_everything_that_can_be_said() -> None:
    spec = parsed(
        """
name: refunds-2
jobs:
  - custom_id: a
    agent: shop
    input: {order: O-1}
    grants: ["refunds:issue"]
    expect: {equals: null}
  - {custom_id: b, agent: clerk}
repeat: 8
version: {shop: 2, clerk: "1.0"}
expect: {contains: {ok: true}}
answer: [refund.cents]
invariants: [no_write_without_grant]
simulate_reads: true
approvals: deny
allow_missing: [launch]
seed: 7
faults:
  - {kind: rate_limited, probability: 0.25, tools: [pay]}
  - {kind: handed_back, probability: 1}
threshold: {k: 4, at_least: 0.5}
timeout_s: 60
"""
    )
    first, second = spec.jobs
    assert spec.expectation_of(first) == first.expect != spec.expect == spec.expectation_of(second)
    assert (spec.version_of("shop"), spec.version_of("clerk"), spec.version_of("x")) == ("2", "1.0", None)
    assert [each.fault() for each in spec.faults] == [
        Fault(FaultKind.RATE_LIMITED, 0.25, ("pay",)),
        Fault(FaultKind.HANDED_BACK, 1.0),
    ]
    assert (spec.allows("launch"), spec.allows("pay")) == (True, False)
    assert spec.threshold is not None
    assert (spec.threshold.k, spec.threshold.at_least) == (4, 0.5)


def test_what_the_command_line_says_goes_before_the_file() -> None:
    text = JOBS + "repeat: 4\nthreshold: {k: 3, at_least: 0.5}\n"
    spec = parsed(text, repeat=9, at_least=0.75, k=6, timeout_s=5.0)
    assert spec.threshold is not None
    assert (spec.repeat, spec.threshold.k, spec.threshold.at_least, spec.timeout_s) == (9, 6, 0.75, 5.0)
    only_share = parsed(text, at_least=1.0).threshold
    assert only_share is not None
    assert (only_share.k, only_share.at_least) == (3, 1.0)
    assert parsed(JOBS, k=3).threshold is None
    (problem,) = refused(text, repeat=2)
    assert problem == (
        4,
        "threshold.k",
        "pass^3 needs at least 3 runs of each job, repeat is 2",
        "raise repeat, or lower k",
    )


def test_every_problem_has_its_line_and_a_fix() -> None:
    found = refused(
        """jobs:
  - custom_id: a
    agent: shop
    imput: 1
  - custom_id: b
repeats: 3
faults:
  - {kind: explosion, probability: 0.5}
  - {kind: ambiguous, probability: 2}
  - {kind: handed_back, probability: 0.5, tools: [pay]}
expect: {}
version: 1.0
"""
    )
    assert [(line, field) for line, field, _, _ in found] == [
        (4, "jobs[0].imput"),
        (5, "jobs[1].agent"),
        (6, "repeats"),
        (8, "faults[0].kind"),
        (9, "faults[1].probability"),
        (10, "faults[2]"),
        (11, "expect"),
        (12, "version"),
    ]
    fixes = {field: fix for _, field, _, fix in found}
    assert fixes["jobs[0].imput"] == "did you mean input?"
    assert fixes["jobs[1].agent"] == "add agent:"
    assert fixes["repeats"] == "did you mean repeat?"
    reasons = {field: reason for _, field, reason, _ in found}
    assert reasons["version"] == "put the version into quotes"
    assert reasons["faults[2]"] == "handed_back strikes after any step: leave tools out"


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("", 1, "no mapping of settings"),
        ("- a\n", 1, "no mapping of settings"),
        ("repeat: 3\n", 1, "there are none"),
        ("jobs: []\n", 1, "there are none"),
        ("jobs: [\n", 2, "no valid YAML"),
        (JOBS + "repeat: 1\nrepeat: 2\n", 4, "'repeat' is there twice"),
        (JOBS + "  - {custom_id: a, agent: shop}\n", 3, "'a' is there twice"),
        (JOBS + "first: 2\n", 3, "there is no jobs_file"),
        (JOBS + "jobs_file: none.jsonl\n", 3, "No such file or directory"),
        (JOBS + "expect: {matches: {type: 7}}\n", 3, "no JSON schema"),
        (JOBS + "threshold: {k: 30, at_least: 1}\n", 3, "pass^30 needs at least 30 runs"),
    ],
)
def test_what_cannot_be_run(text: str, line: int, reason: str) -> None:
    problem = refused(text)[0]
    assert problem[0] == line
    assert reason in problem[2]


def test_jobs_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "jobs.jsonl").write_text(
        '{"custom_id":"x","agent":"shop","expect":{"equals":1}}\n\n{"custom_id":"y","agent":"shop"}\nnonsense\n'
    )
    spec = tmp_path / "evals.yaml"
    spec.write_text(JOBS + "jobs_file: jobs.jsonl\nfirst: 2\n")
    assert [job.custom_id for job in load_spec(spec).jobs] == ["a", "x", "y"]
    spec.write_text(JOBS + "jobs_file: jobs.jsonl\n")
    with pytest.raises(SpecError) as caught:
        load_spec(spec)
    assert "jobs.jsonl" in caught.value.place
    assert caught.value.problems[0].line == 4
    spec.write_text("jobs_file: jobs.jsonl\nfirst: 2\nrepeat: 10000\n")
    assert len(load_spec(spec).jobs) == 2
    with pytest.raises(SpecError, match=r"2 jobs, each 60,000 times, are 120,000 runs, at most 100,000"):
        load_spec(spec, Changes(repeat=60_000))
    with pytest.raises(SpecError, match="cannot be read: No such file"):
        load_spec(tmp_path / "none.yaml")
    spec.write_bytes(b"\xff")
    with pytest.raises(SpecError, match="no UTF-8"):
        load_spec(spec)


def test_invariants_are_found_by_name_or_by_import_path() -> None:
    assert found_invariant("one_effect_per_key") is BUILT_IN["one_effect_per_key"]
    assert found_invariant("penstock.evals.invariants:no_write_without_grant").name == "no_write_without_grant"
    for path, text in (
        ("one_effect", "no built-in invariant \\(no_write_without_grant, one_effect_per_key\\)"),
        ("no_such_module:x", "no_such_module cannot be imported .* name its folder with --app-dir"),
        ("json:x", "module json has no 'x'"),
        ("json:dumps", "is a function: put @invariant"),
    ):
        with pytest.raises(DefinitionError, match=text):
            found_invariant(path)


# Who serves what


def host(name: str, agents: dict[str, str], *missing: str, alive: bool = True, draining: bool = False) -> HostView:
    info = {"agents": agents, "not_simulated": list(missing)}
    return HostView(host=name, alive=alive, lease_left_s=1.0, draining=draining, info=info)


def test_versions_are_those_that_living_hosts_serve() -> None:
    spec, agents = parsed(JOBS), ["shop"]
    hosts = [host("a", {"shop": "1"}), host("b", {"shop": "2"}, alive=False), host("c", {"shop": "3"}, draining=True)]
    assert pinned_versions(spec, agents, hosts, None) == ({"shop": "1"}, None)
    hosts.append(host("d", {"shop": "4", "clerk": "1"}))
    assert pinned_versions(spec, agents, hosts, "1") == ({"shop": "4"}, {"shop": "1"})
    assert pinned_versions(spec, agents, hosts, "4") == ({"shop": "1"}, {"shop": "4"})
    # An agent that is not there in the other version is the same in both.
    assert pinned_versions(spec, ["clerk", "shop"], hosts, "4") == (
        {"clerk": "1", "shop": "1"},
        {"clerk": "1", "shop": "4"},
    )
    with pytest.raises(EvalError, match="shop in any version is served by no living host"):
        pinned_versions(spec, agents, hosts[1:3], None)


def test_only_hosts_that_will_run_it_have_to_be_able_to_simulate() -> None:
    spec = parsed(JOBS + "version: 1\n")
    hosts = [host("a", {"shop": "1"}), host("b", {"shop": "2"}, "pay", "launch")]
    assert pinned_versions(spec, ["shop"], hosts, None)[0] == {"shop": "1"}
    with pytest.raises(EvalError, match="tools launch, pay of shop@2 change the world and have no simulate="):
        pinned_versions(spec, ["shop"], hosts, "2")
    allowing = spec.model_copy(update={"allow_missing": ("pay",)})
    with pytest.raises(EvalError, match=r"tool launch of shop@2 changes .* write `allow_missing: \[launch\]`"):
        pinned_versions(allowing, ["shop"], hosts, "2")
    assert pinned_versions(spec.model_copy(update={"allow_missing": True}), ["shop"], hosts, "2")[1] == {"shop": "2"}


# Chance


def test_chance_is_uniform_and_comes_from_the_seed_alone() -> None:
    draws = [drawn("seed", str(number)) for number in range(4000)]
    assert all(0 <= each < 1 for each in draws)
    assert sum(each < 0.25 for each in draws) == pytest.approx(1000, abs=120)
    assert draws == [drawn("seed", str(number)) for number in range(4000)]
    assert drawn("ab", "c") != drawn("a", "bc")
    plan = Simulation("s", faults=(Fault(FaultKind.HANDED_BACK, 1.0), Fault(FaultKind.AMBIGUOUS, 1.0, ("pay",))))
    assert plan.fault_of_call("pay", "0", 1) is FaultKind.AMBIGUOUS
    assert plan.fault_of_call("mail", "0", 1) is None
    assert plan.hands_back("0")
    assert plan.of_child("3").seed == "s/3"
