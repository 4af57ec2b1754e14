"""Values, levels and scores: one order, the same numbers in sorted sets, Lua and Python."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admission.values import (
    CLASSES,
    LATEST,
    LEVELS,
    Value,
    level_of_score,
    rank_of_level,
    rank_of_score,
    score_of,
    start_of_score,
    value_of_level,
)

VALUES = st.builds(Value, st.integers(0, 4), st.integers(0, 99))
STARTS = st.integers(0, LATEST)


@given(VALUES)
def test_a_value_is_read_as_it_is_written(value: Value) -> None:
    assert Value.parse(str(value)) == value
    assert Value.parse(f"{value.name}:{value.number}") == value
    assert value_of_level(value.level) == value
    assert 0 <= value.level < LEVELS
    assert rank_of_level(value.level) == value.rank


@given(VALUES, VALUES, STARTS, STARTS)
def test_a_better_value_goes_first_whenever_its_tenant_is_due(one: Value, other: Value, start: int, late: int) -> None:
    if (one.rank, -one.number) < (other.rank, -other.number):
        assert one.level < other.level
        assert score_of(one.level, start) < score_of(other.level, late)


@given(VALUES, STARTS)
def test_a_score_is_whole_in_a_double_and_says_all_of_it(value: Value, start: int) -> None:
    score = score_of(value.level, start)
    assert float(score) == score
    assert score < 2**53
    assert (level_of_score(score), start_of_score(score)) == (value.level, start)
    assert rank_of_score(score) == value.rank
    # As Lua has it.
    assert float(score) // 2.0**43 == value.level
    assert float(score) % 2.0**43 == start


@pytest.mark.parametrize(
    "text", ["", "High", "urgent", "high:", "high:100", "high:-1", "high:5.5", "high:٣", "high:1:2", " high", 3, None]
)
def test_what_is_no_value_is_refused_with_the_fix(text: object) -> None:
    with pytest.raises(ValueError, match=r"high:80|number inside a class"):
        Value.parse(text)


def test_a_class_alone_is_its_middle() -> None:
    assert [Value.parse(name).level for name in CLASSES] == [49, 149, 249, 349, 449]
