"""Retries as a pure decision: bounds, jitter, attempts and time."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from admission.retry import FailureClass, RetryPolicy

positive = st.floats(min_value=1e-9, max_value=1e12)


@st.composite
def policies_that_fit(draw: st.DrawFn) -> RetryPolicy:
    initial = draw(positive)
    return RetryPolicy(
        initial_interval=initial,
        backoff_coefficient=draw(st.floats(min_value=1, max_value=1e300)),
        maximum_interval=draw(st.floats(min_value=initial, max_value=1e13)),
        maximum_attempts=draw(st.integers(1, 1000)),
        max_duration=draw(st.floats(min_value=initial, max_value=1e13)),
    )


policies = policies_that_fit()
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


@given(policies, st.lists(draws, max_size=50))
def test_a_schedule_is_what_a_step_does(policy: RetryPolicy, drawn: list[float]) -> None:
    schedule = policy.schedule(drawn)
    assert len(schedule) <= min(len(drawn), policy.maximum_attempts - 1)
    elapsed = 0.0
    for attempt, (pause, draw) in enumerate(zip(schedule, drawn, strict=False), start=1):
        assert pause == policy.pause(attempt, elapsed, draw) == policy.bound(attempt) * draw
        assert 0 <= pause <= policy.bound(attempt) <= policy.bound(attempt + 1)
        elapsed += pause
    assert elapsed <= policy.max_duration
    if len(schedule) < len(drawn):
        assert policy.why_last(len(schedule) + 1, elapsed, drawn[len(schedule)])


def test_a_schedule_adds_up() -> None:
    policy = RetryPolicy(initial_interval=10, maximum_interval=10, max_duration=25)
    assert policy.schedule([0.9, 0.9, 0.9]) == [9.0, 9.0]
    assert policy.schedule([0.9, 0.9, 0.5]) == [9.0, 9.0, 5.0]


waits = st.floats(0, 1e13) | st.just(0.0)


@given(policies, st.integers(1, 1100), st.floats(0, 1e13), draws, waits, st.none() | st.sampled_from(FailureClass))
def test_there_is_a_pause_or_a_field_that_ended_it(
    policy: RetryPolicy, attempt: int, elapsed: float, draw: float, at_least_s: float, failure: FailureClass | None
) -> None:
    pause = policy.pause(attempt, elapsed, draw, at_least_s=at_least_s, failure=failure)
    field = policy.why_last(attempt, elapsed, draw, at_least_s=at_least_s, failure=failure)
    assert (pause is None) is (field is not None)
    if pause is not None:
        assert pause == max(at_least_s, policy.bound(attempt) * draw)
        assert elapsed + pause <= policy.max_duration
    elif failure is FailureClass.REJECTED:
        assert field == "retry.retryable=not_applied,ambiguous"
    elif attempt >= policy.maximum_attempts:
        assert field == f"retry.maximum_attempts={policy.maximum_attempts}"
    else:
        assert field == f"retry.max_duration={policy.max_duration:g}"
        assert elapsed + max(at_least_s, policy.bound(attempt)) > policy.max_duration


def test_a_retry_after_is_waited_for_or_ends_the_step() -> None:
    policy = RetryPolicy(maximum_interval=1.0, max_duration=60)
    assert policy.pause(1, 0.0, 0.5, at_least_s=20.0) == 20.0
    assert policy.pause(1, 0.0, 0.5, at_least_s=0.01) == 0.05
    assert policy.pause(2, 40.0, 0.0, at_least_s=20.0) == 20.0
    assert policy.pause(2, 41.0, 0.0, at_least_s=20.0) is None
    assert policy.why_last(2, 41.0, 0.0, at_least_s=20.0) == "retry.max_duration=60"
    assert policy.pause(1, 0.0, 0.5, at_least_s=math.inf) is None


def test_the_author_says_what_may_be_tried_again() -> None:
    only = RetryPolicy(retryable=(FailureClass.NOT_APPLIED,))
    assert only.pause(1, 0.0, 0.5, failure=FailureClass.NOT_APPLIED) == 0.05
    assert only.pause(1, 0.0, 0.5, failure=FailureClass.AMBIGUOUS) is None
    assert only.why_last(1, 0.0, 0.5, failure=FailureClass.AMBIGUOUS) == "retry.retryable=not_applied"
    assert RetryPolicy(retryable=()).why_last(1, 0.0, 0.5, failure=FailureClass.AMBIGUOUS) == "retry.retryable="
    both = (FailureClass.AMBIGUOUS, FailureClass.NOT_APPLIED, FailureClass.AMBIGUOUS)
    assert RetryPolicy(retryable=both) == RetryPolicy()
    assert RetryPolicy.model_validate_json(only.model_dump_json()) == only


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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"retryable": ["ambiguous", "rejected"]}, "rejected is never retried"),
        ({"retryable": ["sometimes"]}, "retryable"),
        ({"initial_interval": 20}, "initial_interval 20 is above maximum_interval 10"),
        ({"max_duration": 0.05}, "initial_interval 0.1 is above max_duration 0.05"),
    ],
)
def test_policies_that_contradict_themselves_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RetryPolicy.model_validate(fields)


def test_a_single_attempt_needs_no_time_for_a_pause() -> None:
    assert RetryPolicy(maximum_attempts=1, max_duration=0.05).schedule([0.5]) == []


def test_a_policy_is_a_value() -> None:
    assert hash(RetryPolicy()) == hash(RetryPolicy())
    with pytest.raises(ValidationError):
        RetryPolicy().maximum_attempts = 9  # type: ignore[misc]
    assert [FailureClass(each.value) for each in FailureClass] == list(FailureClass)
