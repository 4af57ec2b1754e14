"""What is scarce is divided: never more than there is, by class first, in proportion inside a class, and in turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admission.split import Deficits, Turns, quantum, whole_shares

AMOUNTS = st.floats(0, 100, allow_nan=False).map(lambda amount: round(amount, 3))
DEMANDS = st.dictionaries(
    st.sampled_from("abcdef"), st.dictionaries(st.integers(0, 5), AMOUNTS, max_size=4), min_size=1, max_size=6
)
WANTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 12), max_size=6)


@given(available=AMOUNTS, demands=DEMANDS)
def test_a_quantum_is_never_more_than_wanted_nor_all_more_than_there_is(
    available: float, demands: dict[str, dict[int, float]]
) -> None:
    parts = {host: quantum(available, demands, host) for host in demands}
    wanted = {host: sum(ranks.values()) for host, ranks in demands.items()}
    assert sum(parts.values()) == pytest.approx(min(available, sum(wanted.values())), abs=1e-6)
    for host, part in parts.items():
        assert 0 <= part <= wanted[host] + 1e-9


@given(available=AMOUNTS, demands=DEMANDS)
def test_classes_come_strictly_in_order_and_shares_inside_one_are_in_proportion(
    available: float, demands: dict[str, dict[int, float]]
) -> None:
    ranks = sorted({rank for wanted in demands.values() for rank in wanted})
    left, expected = available, dict.fromkeys(demands, 0.0)
    for rank in ranks:
        total = sum(wanted.get(rank, 0.0) for wanted in demands.values())
        for host, wanted in demands.items():
            expected[host] += wanted.get(rank, 0.0) * (1.0 if total <= left else left / total)
        left = max(0.0, left - total)
    for host in demands:
        assert quantum(available, demands, host) == pytest.approx(expected[host], abs=1e-6)


def test_who_is_not_there_gets_nothing() -> None:
    assert quantum(10, {"a": {0: 5.0}}, "b") == 0.0
    assert quantum(10, {}, "a") == 0.0


def test_a_deficit_is_remembered_and_never_above_what_is_wanted() -> None:
    deficits = Deficits()
    served = 0
    for _ in range(100):
        owed = deficits.credit("a", 0.3, 5.0)
        while owed >= 1:
            served, owed = served + 1, owed - 1
            deficits.served("a", 1.0)
    assert served in (29, 30)
    assert deficits.credit("a", 100.0, 2.0) == 2.0
    deficits.served("a", 5.0)  # a call that was larger than what was owed
    assert deficits.credit("a", 1.0, 9.0) == -2.0
    deficits.forget("a")
    assert deficits.credit("a", 1.0, 9.0) == 1.0


@given(total=st.integers(0, 30), wants=WANTS)
def test_shares_of_places_are_max_min_fair(total: int, wants: dict[str, int]) -> None:
    shares = whole_shares(total, wants)
    assert sum(shares.values()) == pytest.approx(min(total, sum(wants.values())))
    for host, share in shares.items():
        assert 0 <= share <= wants[host]
        if share < wants[host] - 1e-9:  # nobody who is denied something has less than anybody else
            assert share >= max(shares.values()) - 1e-9


@given(total=st.integers(0, 30), changes=st.lists(WANTS, min_size=1, max_size=20))
def test_places_are_never_more_than_there_are_nor_than_wanted(total: int, changes: list[dict[str, int]]) -> None:
    turns = Turns()
    for wants in changes:
        places = turns.places(total, wants)
        assert places.keys() == wants.keys()
        assert sum(places.values()) == min(total, sum(wants.values()))
        assert all(0 <= places[host] <= wants[host] for host in wants)


@given(total=st.integers(1, 12), wants=WANTS.filter(bool))
def test_over_time_everybody_gets_the_share(total: int, wants: dict[str, int]) -> None:
    turns, rounds = Turns(), 200
    given_to = dict.fromkeys(wants, 0)
    for _ in range(rounds):
        for host, places in turns.places(total, wants).items():
            given_to[host] += places
    for host, share in whole_shares(total, wants).items():
        assert abs(given_to[host] - rounds * share) <= 2, (host, share)
