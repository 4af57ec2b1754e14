"""Estimates of tokens against a naive account of everything observed."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admission.estimate import InputEstimator, OutputEstimator

tokens = st.integers(0, 10**6)
sizes = st.integers(0, 10**6)


def naive_percentile(values: list[Fraction]) -> Fraction:
    """The smallest value that at least 95 % of the last 256 do not exceed."""
    last = values[-256:]
    return min(each for each in set(last) if sum(other <= each for other in last) * 100 >= 95 * len(last))


# Few different values, so that equal ones leave the window before others do; and long enough to fill it.
many = st.one_of(
    st.lists(tokens, max_size=40),
    st.lists(st.integers(0, 5), min_size=250, max_size=320),
)


@given(many, st.none() | tokens, tokens)
def test_outputs_are_the_exact_percentile_of_the_last(observed: list[int], maximum: int | None, default: int) -> None:
    estimator = OutputEstimator()
    for each in observed:
        estimator.observe(each)
    estimate = estimator.estimate(maximum, default)
    if len(observed) < 20:
        assert estimate == (default if maximum is None else maximum)
    else:
        exact = naive_percentile([Fraction(each) for each in observed])
        assert estimate == (exact if maximum is None else min(exact, maximum))
    assert maximum is None or estimate <= maximum


@given(st.lists(st.tuples(sizes, tokens), max_size=40), sizes)
def test_inputs_follow_the_percentile_of_tokens_per_byte(observed: list[tuple[int, int]], size: int) -> None:
    estimator = InputEstimator()
    for each in observed:
        estimator.observe(*each)
    ratios = [Fraction(seen, size_bytes) for size_bytes, seen in observed if size_bytes]
    ratio = naive_percentile(ratios) if ratios else Fraction(1, 4)
    assert estimator.estimate(size) == max(1, ceil(size * ratio))


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3)), min_size=250, max_size=320), sizes)
def test_inputs_forget_what_is_old(observed: list[tuple[int, int]], size: int) -> None:
    estimator = InputEstimator()
    for each in observed:
        estimator.observe(*each)
    ratio = naive_percentile([Fraction(seen, size_bytes) for size_bytes, seen in observed])
    assert estimator.estimate(size) == max(1, ceil(size * ratio))


def test_rare_long_outputs_do_not_rule() -> None:
    estimator = OutputEstimator()
    for number in range(1000):
        estimator.observe(4000 if number % 25 == 0 else 100)
    assert estimator.estimate(8000, 500) == 100
    for _ in range(15):
        estimator.observe(4000)
    assert estimator.estimate(8000, 500) == 4000
    assert estimator.estimate(1000, 500) == 1000


def test_the_257th_observation_drives_out_the_first() -> None:
    estimator = OutputEstimator()
    for each in [1000] * 13 + [1] * 243:
        estimator.observe(each)
    assert estimator.estimate(None, 0) == 1000
    estimator.observe(1)
    assert estimator.estimate(None, 0) == 1


def test_what_was_seen_is_what_is_expected_again() -> None:
    estimator = InputEstimator()
    assert [estimator.estimate(size) for size in (0, 1, 4, 5, 4000)] == [1, 1, 1, 2, 1000]
    estimator.observe(0, 50)
    assert estimator.estimate(4000) == 1000
    estimator.observe(49, 22)
    assert estimator.estimate(49) == 22
    assert estimator.estimate(490) == 220


def test_numbers_below_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="output tokens -1"):
        OutputEstimator().observe(-1)
    for size, count in ((-1, 0), (1, -1)):
        with pytest.raises(ValueError, match="neither can be below zero"):
            InputEstimator().observe(size, count)
    with pytest.raises(ValueError, match="-5 bytes"):
        InputEstimator().estimate(-5)
