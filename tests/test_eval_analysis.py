"""The numbers of evaluations: estimators against hand-made cases and laws, ways and where they part, answers."""

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.journal import ErrorRecord
from actors.receipts import Receipt
from penstock.evals.analysis import JudgedRun, analysed, answer_of, compared
from penstock.evals.expectation import Expectation, part_of
from penstock.evals.invariants import invariant, no_write_without_grant, one_effect_per_key
from penstock.evals.journal import RunJournal, RunStep, place_of
from penstock.evals.paths import partings, taken, ways
from penstock.evals.statistics import (
    Passes,
    exact_difference,
    fisher_exact,
    pass_hat,
    pass_hat_of_jobs,
    quantiles,
    wilson,
)


@st.composite
def passes(draw: st.DrawFn, least: int = 1, most: int = 12) -> Passes:
    runs = draw(st.integers(least, most))
    return Passes(draw(st.integers(0, runs)), runs)


# Estimators


@given(passes(), st.data())
def test_pass_hat_is_the_share_of_choices_of_k_runs_in_which_all_pass(each: Passes, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, each.runs))
    results = [True] * each.passed + [False] * (each.runs - each.passed)
    choices = list(itertools.combinations(results, k))
    assert pass_hat(each, k) == pytest.approx(sum(map(all, choices)) / len(choices))


@given(passes())
def test_pass_hat_begins_with_the_rate_and_never_rises(each: Passes) -> None:
    curve = [pass_hat(each, k) for k in range(1, each.runs + 1)]
    assert curve[0] == pytest.approx(each.passed / each.runs)
    assert curve == sorted(curve, reverse=True)
    assert curve[-1] == (each.passed == each.runs)


def test_pass_hat_by_hand() -> None:
    assert pass_hat(Passes(3, 4), 2) == 0.5
    assert pass_hat_of_jobs([Passes(3, 4), Passes(4, 4)], 2) == 0.75
    assert math.isnan(pass_hat_of_jobs([], 1))
    for k in (0, 5):
        with pytest.raises(ValueError, match="from 1 to the number of runs"):
            pass_hat(Passes(3, 4), k)


def test_fisher_by_hand() -> None:
    # The lady tasting tea, 3 of 4 cups right: 34/70 two-sided. 0 against 5 of 5: 2/252.
    assert fisher_exact(Passes(3, 4), Passes(1, 4)) == pytest.approx(34 / 70)
    assert fisher_exact(Passes(0, 5), Passes(5, 5)) == pytest.approx(2 / 252)
    # Freeman and Halton's convention, as R's fisher.test(matrix(c(1, 9, 11, 3), 2)) has it.
    assert fisher_exact(Passes(1, 10), Passes(11, 14)) == pytest.approx(0.002759456185220, rel=1e-9)
    assert fisher_exact(Passes(4, 4), Passes(9, 9)) == 1.0


@given(passes(), passes())
def test_fisher_is_the_share_of_deals_that_are_not_more_likely(ours: Passes, theirs: Passes) -> None:
    passed, runs = ours.passed + theirs.passed, ours.runs + theirs.runs
    deals = [math.comb(passed, n) * math.comb(runs - passed, ours.runs - n) for n in range(ours.runs + 1)]
    wanted = sum(each for each in deals if each <= deals[ours.passed]) / math.comb(runs, ours.runs)
    assert fisher_exact(ours, theirs) == pytest.approx(wanted)
    assert fisher_exact(ours, theirs) == pytest.approx(fisher_exact(theirs, ours))


@given(st.lists(st.tuples(passes(most=4), passes(most=4)), min_size=1, max_size=3))
def test_the_test_over_several_jobs_counts_every_deal_of_every_job(jobs: list[tuple[Passes, Passes]]) -> None:
    chances: dict[int, float] = {0: 1.0}
    for ours, theirs in jobs:
        passed, runs = ours.passed + theirs.passed, ours.runs + theirs.runs
        deals = [True] * passed + [False] * (runs - passed)
        combinations = list(itertools.combinations(deals, ours.runs))
        merged: dict[int, float] = {}
        for before, chance in chances.items():
            for deal in combinations:
                merged[before + sum(deal)] = merged.get(before + sum(deal), 0.0) + chance / len(combinations)
        chances = merged
    seen = chances[sum(ours.passed for ours, _ in jobs)]
    wanted = sum(chance for chance in chances.values() if chance <= seen * (1 + 1e-9))
    assert exact_difference(jobs) == pytest.approx(wanted)


def test_jobs_that_always_differ_alike_are_seen_where_pooled_rates_hide_them() -> None:
    easy, hard = (Passes(20, 20), Passes(12, 20)), (Passes(8, 20), Passes(0, 20))
    both = exact_difference([easy, hard])
    assert both < min(fisher_exact(*easy), fisher_exact(*hard)) < 0.05
    assert exact_difference([easy, easy[::-1]]) == 1.0


def test_many_jobs_take_no_long_time_and_stay_a_probability() -> None:
    jobs = [(Passes(n % 20, 20), Passes((n * 7) % 21, 20)) for n in range(300)]
    assert 0.0 <= exact_difference(jobs) <= 1.0


@given(passes())
def test_wilsons_interval_holds_the_rate(each: Passes) -> None:
    low, high = wilson(each)
    assert 0.0 <= low <= each.passed / each.runs <= high <= 1.0


def test_wilson_by_hand() -> None:
    assert wilson(Passes(10, 10)) == pytest.approx((0.7224672, 1.0), abs=1e-6)
    assert wilson(Passes(0, 0)) == (0.0, 1.0)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1))
def test_quantiles_are_values_in_order(values: list[float]) -> None:
    found = quantiles(values)
    assert found is not None
    four = [found.minimum, found.median, found.p90, found.maximum]
    assert four == sorted(four)
    assert set(four) <= set(values)
    assert (found.minimum, found.maximum) == (min(values), max(values))


def test_quantiles_by_hand() -> None:
    found = quantiles(range(1, 11))
    assert found is not None
    assert (found.median, found.p90) == (5, 9)
    assert quantiles([]) is None


# Ways


def call(path: str, name: str, result: Any = None, **fields: Any) -> RunStep:
    return RunStep(path, "call", name, fields.pop("status", "ok"), result=result, attempts=1, **fields)


def effect(path: str, name: str, key: str, by: str = "simulate", **fields: Any) -> RunStep:
    return call(path, name, idempotency_key=key, receipt=Receipt("simulated", by), **fields)


def run(*steps: RunStep, output: Any = "yes", state: str = "succeeded", **fields: Any) -> RunJournal:
    return RunJournal(
        fields.pop("run_id", "r"), "job", "agent", "1", state, output=output, steps=steps,
        started_ms=1000, ended_ms=3000, **fields,
    )  # fmt: skip


def test_paths_have_one_order_whatever_ends_first() -> None:
    wanted = ["0", "2", "10", "b0.0", "b0.3", "b0.b1.0", "b2.0", "c1.0", "c1.b0.0", "c2.0", "c10.1"]
    mixed = wanted[::-1]
    assert sorted(mixed, key=place_of) == wanted


def test_ways_are_counted_and_partings_named_with_their_cause() -> None:
    looked = call("0", "look", {"total": 5})
    short = [run(looked, call("1", "decide", "no"), call("2", "answer")) for _ in range(3)]
    long = [run(looked, call("1", "decide", "yes"), call("2", "refund"), call("3", "answer")) for _ in range(5)]
    all_taken = [taken(each, passed=each in long) for each in short + long]
    first, second = ways(all_taken)
    assert (first.steps, first.runs) == (("look", "decide", "refund", "answer"), 5)
    assert (second.steps, second.runs) == (("look", "decide", "answer"), 3)
    (parting,) = partings(all_taken)
    assert (parting.position, parting.path, parting.before) == (2, "2", ("look", "decide"))
    assert [(each.step, each.runs, each.passed) for each in parting.branches] == [("refund", 5, 5), ("answer", 3, 0)]
    assert parting.because == "step 1 (decide) gave 2 different results"


def test_runs_that_end_earlier_part_from_those_that_go_on() -> None:
    failed = run(call("0", "look"), state="failed", error=ErrorRecord("Boom"))
    all_taken = [taken(each, passed=True) for each in (failed, run(call("0", "look"), call("1", "answer")))]
    (parting,) = partings(all_taken)
    assert {each.step for each in parting.branches} == {"answer", "end: failed"}
    assert parting.path == "1"


def test_other_arguments_and_random_numbers_are_causes_too() -> None:
    one = run(call("0", "look", arguments_digest="a"), call("1", "left"))
    two = run(call("0", "look", arguments_digest="b"), call("1", "right"))
    (parting,) = partings([taken(one, passed=True), taken(two, passed=True)])
    assert parting.because == "step 0 (look) was asked with 2 different sets of arguments"
    drawn = [
        run(RunStep("0", "value", "random", "ok", result=number), call("1", name))
        for number, name in ((0.1, "left"), (0.9, "right"))
    ]
    (parting,) = partings([taken(each, passed=True) for each in drawn])
    assert (parting.position, parting.because) == (0, "the agent drew 2 different random numbers")


names = st.lists(st.sampled_from("abc"), max_size=5)


@given(st.lists(names, min_size=1, max_size=12))
def test_partings_are_the_forks_of_the_trie(sequences: list[list[str]]) -> None:
    runs = [run(*(call(str(place), name) for place, name in enumerate(each))) for each in sequences]
    found = partings([taken(each, passed=True) for each in runs])
    distinct = {tuple(each) for each in sequences}
    # Each fork with n branches makes n - 1 ways more out of one.
    assert sum(len(each.branches) - 1 for each in found) == len(distinct) - 1
    for parting in found:
        through = [each for each in sequences if tuple(each[: parting.position]) == parting.before]
        assert sum(branch.runs for branch in parting.branches) == len(through)
    assert sum(way.runs for way in ways([taken(each, passed=True) for each in runs])) == len(sequences)


# Answers and the whole report


def test_answers_agree_whatever_the_order_of_their_fields() -> None:
    one, other = run(output={"a": 1, "b": [2]}), run(output={"b": [2], "a": 1})
    assert answer_of(one, ()) == answer_of(other, ()) == '{"a":1,"b":[2]}'
    assert answer_of(run(output={"refund": {"cents": 5}, "id": "x"}), ["refund.cents"]) == '{"refund.cents":5}'
    assert answer_of(run(state="failed", error=ErrorRecord("Boom")), ()) == "(failed: Boom)"


def test_the_report_of_a_version() -> None:
    good = [JudgedRun("a", n, run(call("0", "look"), output=1, run_id=f"a{n}")) for n in range(3)]
    bad = JudgedRun("a", 3, run(call("0", "look"), output=2, run_id="a3"), ("output: expected 1, it is 2",))
    broken = [JudgedRun("b", n, run(output=1, run_id=f"b{n}"), (), (("law", "no"),)) for n in range(4)]
    report = analysed([*good, bad, *broken], {"agent": "1"}, "batch")
    first, second = report.jobs
    assert (first.job, first.runs, first.passed, first.agreement) == ("a", 4, 3, 0.75)
    assert (second.passed, second.agreement, second.by_state) == (0, 1.0, {"succeeded": 4})
    assert first.pass_hat == (0.75, 0.5, 0.25, 0.0)
    assert report.pass_hat == (0.375, 0.25, 0.125, 0.0)
    first_broken = report.violations[0]
    assert (first_broken.run_id, first_broken.invariant, first_broken.text) == ("b0", "law", "no")
    assert (report.missed_count, report.passed, report.runs) == (5, 3, 8)
    assert first.seconds is not None
    assert first.seconds.median == 2.0
    assert report.missed[0].reasons == ("output: expected 1, it is 2",)
    assert report.missed[1].reasons == ("invariant law: no",)
    other = analysed([JudgedRun("a", n, run(output=1)) for n in range(4)], {"agent": "2"}, "other")
    difference = compared(report, other)
    assert (difference.rate, difference.other_rate) == (0.75, 1.0)
    assert difference.p == pytest.approx(fisher_exact(Passes(3, 4), Passes(4, 4)))
    assert [each.job for each in difference.jobs] == ["a"]


# Expectations


def test_expectations_say_what_is_missing() -> None:
    assert Expectation(equals={"a": 1}).misfits({"a": 1.0}) == []
    assert Expectation(equals=1).misfits(True) == ["output: expected 1, it is True"]
    assert Expectation(equals=None).misfits(None) == []
    part = Expectation(contains={"refund": {"cents": 5}, "tags": ["a", "b"]})
    assert part.misfits({"refund": {"cents": 5, "id": 1}, "tags": ["a", "b"], "more": 1}) == []
    assert part.misfits({"refund": {"cents": 6}, "tags": ["a", "c"]}) == [
        "output.refund.cents: expected 5, it is 6",
        "output.tags.1: expected 'b', it is 'c'",
    ]
    assert part.misfits({"tags": ["a"]}) == [
        "output.refund: is missing",
        "output.tags: expected ['a', 'b'], it is ['a']",
    ]
    schema = Expectation(matches={"properties": {"cents": {"maximum": 5}}})
    assert schema.misfits({"cents": 4}) == []
    assert schema.misfits({"cents": 6})[0].startswith("output.cents: 6 is greater than the maximum of 5")


def test_parts_of_an_output() -> None:
    value = {"lines": [{"cents": 5}], "text": "abc"}
    assert part_of(value, "lines.0.cents") == 5
    assert [part_of(value, path) for path in ("lines.1", "text.0", "nothing", "lines.x")] == [None] * 4


# Invariants


def test_one_effect_per_key_looks_into_children_and_past_inherited_receipts() -> None:
    assert not one_effect_per_key.violations(run(effect("0", "pay", "k1"), effect("1", "pay", "k2")))
    inherited = run(effect("0", "pay", "k"), effect("1", "pay", "k", by="step 0"), effect("2", "pay", "k", by="run x"))
    assert not one_effect_per_key.violations(inherited)
    assert not one_effect_per_key.violations(run(effect("0", "pay", "k", status="failed"), effect("1", "pay", "k")))
    twice = run(effect("0", "pay", "k", business_key="order-1"), children=(run(effect("0", "pay", "k")),))
    (text,) = one_effect_per_key.violations(twice)
    assert text == "step 0 (pay) of child agent and step 0 (pay) both happened under key 'k'"


def test_no_write_without_grant_wants_a_permission_on_record() -> None:
    allowed = effect("0", "pay", "a", permission={"decision": "allow", "rule": "default"})
    approved = effect("1", "pay", "b", permission={"decision": "approve"}, approval="ap-1")
    undoing = effect("2!undo", "pay.compensate", "c", undoes="0")
    refused = effect("3", "pay", "d", status="failed")
    assert not no_write_without_grant.violations(run(allowed, approved, undoing, refused))
    for step, text in (
        (effect("0", "pay", "a"), "no permission is on record"),
        (effect("0", "pay", "a", permission={"decision": "deny"}), "although the decision was 'deny'"),
        (effect("0", "pay", "a", permission={"decision": "approve"}), "needed an approval, and none is on record"),
    ):
        assert text in no_write_without_grant.violations(run(step))[0]


def test_what_an_invariant_may_say() -> None:
    def says(value: Any) -> tuple[str, ...]:
        @invariant
        def law(_: RunJournal) -> Any:
            """Everything is in order."""
            if isinstance(value, Exception):
                raise value
            return value

        return law.violations(run())

    assert says(None) == says(True) == says([]) == ()
    assert says(False) == ("Everything is in order.",)
    assert says("no") == ("no",)
    assert says(["a", "b"]) == ("a", "b")
    assert says(AssertionError("3 > 2")) == ("3 > 2",)
    assert says(KeyError("total")) == ("KeyError: 'total'",)
    assert says(7) == ("TypeError: 'int' object is not iterable",)
