"""Which hosts should exist, and which partitions are theirs first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.placement import Place, home_partitions, reconcile

nodes = st.text("0123456789abcdef", min_size=8, max_size=12)
clusters = st.dictionaries(nodes, st.integers(0, 6), max_size=6)
places = st.frozensets(st.builds(Place, nodes, st.integers(0, 8)), max_size=12)


@given(clusters, places, st.none() | st.integers(0, 4))
def test_reconciling_converges_and_then_does_nothing(
    cpus: dict[str, int], existing: frozenset[Place], per_node: int | None
) -> None:
    changes = reconcile(cpus, existing, per_node)
    assert not set(changes.create) & existing
    assert set(changes.remove) <= existing
    after = (existing | set(changes.create)) - set(changes.remove)
    assert {place.node for place in after} <= cpus.keys()
    for node, count in cpus.items():
        wanted = count if per_node is None else per_node
        assert sorted(place.index for place in after if place.node == node) == list(range(wanted))
    again = reconcile(cpus, after, per_node)
    assert (again.create, again.remove) == ((), ())


@given(clusters, places)
def test_hosts_that_fit_are_left_alone(cpus: dict[str, int], existing: frozenset[Place]) -> None:
    changes = reconcile(cpus, existing, None)
    for place in existing:
        assert (place in changes.remove) == (place.index >= cpus.get(place.node, 0))


def test_the_order_is_stable() -> None:
    changes = reconcile({"b": 2, "a": 1}, frozenset({Place("z", 1), Place("y", 0)}), None)
    assert changes.create == (Place("a", 0), Place("b", 0), Place("b", 1))
    assert changes.remove == (Place("y", 0), Place("z", 1))
    assert Place("0123456789ab", 3).label == "host-01234567-3"


@given(st.sets(st.text(min_size=1), min_size=1, max_size=20), st.integers(1, 32))
def test_every_partition_is_somebodys_home(hosts: set[str], partitions: int) -> None:
    live = tuple(hosts)
    homes = {host: home_partitions(host, live, partitions) for host in hosts}
    assert frozenset().union(*homes.values()) == frozenset(range(partitions))
    assert all(homes.values())
    sizes = [len(home) for home in homes.values()]
    assert max(sizes) - min(sizes) <= 1
    if len(hosts) <= partitions:
        assert sum(sizes) == partitions
    assert homes == {host: home_partitions(host, live[::-1], partitions) for host in hosts}


def test_an_unknown_host_is_at_home_everywhere() -> None:
    assert home_partitions("new", ("a", "b"), 4) == {0, 1, 2, 3}
