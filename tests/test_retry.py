"""Retries as a pure decision: bounds, jitter, attempts and time."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from admission.retry import FailureClass, RetryPolicy

positive = st.floats(min_value=1e-9, max_value=1e12)
policies = st.builds(
    RetryPolicy,
    initial_interval=positive,
    backoff_coefficient=st.floats(min_value=1, max_value=1e300),
    maximum_interval=positive,
    maximum_attempts=st.integers(1, 1000),
    max_duration=positive,
)
draws = st.floats(0, 1, exclude_max=True)


@given(policies, st.integers(1, 10**6))
def test_bounds_grow_up_to_the_maximum(policy: RetryPolicy, attempt: int) -> None:
    here, after = policy.bound(attempt), policy.bound(attempt + 1)
    assert 0 < here <= after <= policy.maximum_interval
    assert policy.bound(1) == min(policy.initial_interval, policy.maximum_interval)


@given(policies, st.integers(1, 1100), st.floats(0, 1e12), draws)
def test_a_pause_is_bounded_in_number_and_in_time(
    policy: RetryPolicy, attempt: int, elapsed: float, draw: float
) -> None:
    pause = policy.pause(attempt, elapsed, draw)
    if pause is None:
        assert attempt >= policy.maximum_attempts or elapsed + policy.bound(attempt) * draw > policy.max_duration
    else:
        assert attempt < policy.maximum_attempts
        assert 0 <= pause <= policy.bound(attempt)
        assert elapsed + pause <= policy.max_duration


@given(policies, st.integers(1, 999), draws, draws)
def test_a_larger_draw_never_waits_shorter(policy: RetryPolicy, attempt: int, one: float, other: float) -> None:
    low, high = (policy.pause(attempt, 0.0, draw) for draw in sorted((one, other)))
    if high is not None:
        assert low is not None
        assert low <= high


@given(policies, draws)
def test_a_step_ends(policy: RetryPolicy, draw: float) -> None:
    elapsed, attempt = 0.0, 1
    while (pause := policy.pause(attempt, elapsed, draw)) is not None:
        elapsed += pause
        attempt += 1
    assert attempt <= policy.maximum_attempts
    assert elapsed <= policy.max_duration * (1 + 1e-9)


def test_the_defaults() -> None:
    policy = RetryPolicy()
    assert [policy.bound(attempt) for attempt in (1, 2, 3, 4, 8, 100)] == [0.1, 0.2, 0.4, 0.8, 10.0, 10.0]
    assert policy.pause(3, 0.0, 0.5) == pytest.approx(0.2)
    assert policy.pause(4, 0.0, 0.5) is None
    assert policy.pause(1, 59.99, 0.5) is None
    assert RetryPolicy(maximum_attempts=1).pause(1, 0.0, 0.0) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"initial_interval": 0}, {"initial_interval": math.inf}, {"backoff_coefficient": 0.9}, {"max_duration": -1},
        {"maximum_interval": math.nan}, {"maximum_attempts": 0}, {"maximum_attempts": 1001}, {"attempts": 3},
        {"backoff_coefficient": math.inf}, {"max_duration": math.inf},
    ],
)  # fmt: skip
def test_policies_without_a_bound_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        RetryPolicy.model_validate(fields)


def test_a_policy_is_a_value() -> None:
    assert hash(RetryPolicy()) == hash(RetryPolicy())
    with pytest.raises(ValidationError):
        RetryPolicy().maximum_attempts = 9  # type: ignore[misc]
    assert [FailureClass(each.value) for each in FailureClass] == list(FailureClass)
