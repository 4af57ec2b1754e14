"""From which partition a host claims next."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.claim_order import UNKNOWN, ClaimOrder, Wake, read_wake

NO_HOME: frozenset[int] = frozenset()


def order_of(levels: dict[int, float | None]) -> ClaimOrder:
    order = ClaimOrder()
    for partition, level in levels.items():
        order.queued(partition, level)
    return order


def drained(order: ClaimOrder, home: frozenset[int] = NO_HOME, most: int = 1) -> list[list[int]]:
    taken = []
    while order:
        taken.append(order.take(home, most))
    return taken


@pytest.mark.parametrize(("text", "wake"), [("0a 340", Wake(10, 340)), ("ff 0", Wake(255, 0)), ("07", Wake(7, None))])
def test_wake_messages_of_this_version_and_of_the_one_before(text: str, wake: Wake) -> None:
    assert read_wake(text) == wake


def test_the_best_level_goes_first_then_homes_then_any() -> None:
    order = order_of({0: 250, 1: 50, 2: 250, 3: 250})
    assert drained(order, frozenset({2})) == [[1], [2], [0], [3]]


def test_a_worse_home_waits_for_a_better_partition_elsewhere() -> None:
    assert drained(order_of({0: 51, 1: 50}), frozenset({0})) == [[1], [0]]


def test_equals_are_asked_together_and_no_others_with_them() -> None:
    assert drained(order_of({0: 9, 1: 4, 2: 4, 3: 4, 4: 9}), most=2) == [[1, 2], [3], [0, 4]]
    assert drained(order_of({0: 9, 1: 4, 2: 4, 3: 4, 4: 9}), frozenset({2, 0}), most=2) == [[2], [1, 3], [0], [4]]


def test_what_is_not_known_is_asked_first_and_what_has_no_order_last() -> None:
    order = order_of({0: 0, 1: None, 2: None})
    assert order.unknown() == [1, 2]
    order.learn(2, None)
    assert drained(order) == [[1], [0], [2]]


def test_what_is_known_stays_known_when_somebody_says_only_that_something_waits() -> None:
    order = order_of({0: 7, 1: 8})
    order.queued(1, None)
    assert drained(order) == [[0], [1]]


def test_something_better_is_heard_of_and_something_worse_changes_nothing() -> None:
    order = order_of({0: 100, 1: 150})
    order.queued(1, 50)
    order.queued(1, 400)
    assert drained(order) == [[1], [0]]


def test_after_missed_messages_nothing_is_taken_for_known() -> None:
    order = order_of({0: 7})
    order.suspect(range(3))
    order.queued(2, 400)
    assert order.unknown() == [0, 1, 2]
    order.learn(0, 9)
    order.learn(2, 8)
    order.learn(1, None)
    order.learn(1, 3)  # it was known by then
    assert drained(order) == [[2], [0], [1]]


def test_the_best_that_is_known() -> None:
    order = ClaimOrder()
    assert order.best is None
    order.queued(0, None)
    assert (order.best, bool(order), len(order)) == (None, True, 1)
    order.learn(0, 12)
    assert order.best == 12


@given(
    st.dictionaries(st.integers(0, 15), st.none() | st.integers(0, 499)),
    st.frozensets(st.integers(0, 15)),
    st.integers(1, 5),
)
def test_everything_is_asked_once_in_order_of_levels(
    levels: dict[int, int | None], home: frozenset[int], most: int
) -> None:
    asked = drained(order_of(dict(levels)), home, most)
    assert sorted(partition for group in asked for partition in group) == sorted(levels)

    def key(partition: int) -> tuple[float, bool]:
        level = levels[partition]
        return (UNKNOWN if level is None else level, partition not in home)

    keys = [[key(partition) for partition in group] for group in asked]
    assert all(0 < len(group) <= most and len(set(group)) == 1 for group in keys)
    assert keys == sorted(keys, key=lambda group: group[0])


def test_nothing_worse_is_wanted_than_the_class_of_what_waits_elsewhere() -> None:
    order = ClaimOrder()
    order.queued(0, 210)
    order.queued(1, 120)
    assert order.take(frozenset(), 1) == [1]
    assert order.worst_wanted == 299
    assert order.take(frozenset(), 1) == [0]
    assert order.worst_wanted is None
