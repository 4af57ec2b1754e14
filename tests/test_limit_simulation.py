"""Many hosts on one hub in virtual time: the worst window is never above the limit, and nearly all of it is used."""

from __future__ import annotations

import pytest

from benchmarks.limit_simulation import Plan, simulate
from benchmarks.provider.analysis import most_within


@pytest.mark.parametrize("hosts", [1, 8, 32])
def test_limits_hold_and_are_used(hosts: int) -> None:
    plan = Plan(hosts=hosts, limit=600, window_s=60.0, span_s=130.0)
    outcome = simulate(plan)
    assert most_within(outcome.admitted, plan.window_s) <= plan.limit
    late = [moment for moment in outcome.admitted if 60 <= moment < 120]
    assert len(late) >= 0.94 * plan.limit


def test_a_short_window_and_lost_messages_hold_too() -> None:
    plan = Plan(hosts=4, limit=50, window_s=1.0, span_s=30.0, lost_share=0.02, seed=3)
    assert most_within(simulate(plan).admitted, plan.window_s) <= plan.limit


def test_the_judge_counts_windows_that_begin_anywhere() -> None:
    assert most_within([0.5, 1.0, 1.25, 1.5, 1.75], 1.0) == 4
    assert most_within([], 1.0) == 0
