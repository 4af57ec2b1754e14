"""Which hosts should exist? Pure: nodes and hosts in, actions out."""

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Place:
    """One host's place: a node and a number on it. ``label`` is the host's stable name."""

    node: str
    index: int

    @property
    def label(self) -> str:
        """The host's name, also of its actor."""
        return f"host-{self.node[:8]}-{self.index}"


def home_partitions(me: str, live: tuple[str, ...], partitions: int) -> frozenset[int]:
    """The partitions that a host claims from first; together the living hosts' homes are all of them.

    A host that mostly serves few partitions writes to few, and a group commit is the cheaper the fewer it spans. It
    is a preference: when its homes are empty a host claims anywhere. With more hosts than partitions some share one.
    """
    hosts = sorted(live)
    if me not in hosts:
        return frozenset(range(partitions))
    rank = hosts.index(me)
    if len(hosts) >= partitions:
        return frozenset({rank % partitions})
    return frozenset(range(rank, partitions, len(hosts)))


@dataclass(frozen=True)
class Changes:
    """What the supervisor has to do."""

    create: tuple[Place, ...]
    remove: tuple[Place, ...]


def reconcile(cpus_by_node: dict[str, int], existing: frozenset[Place], hosts_per_node: int | None) -> Changes:
    """Hosts to create and to remove so that every living node has its hosts.

    Args:
        cpus_by_node: living nodes and their CPUs.
        existing: places that have a host now.
        hosts_per_node: a fixed number, or None for one a CPU.
    """
    wanted = {
        Place(node, index)
        for node, cpus in cpus_by_node.items()
        for index in range(cpus if hosts_per_node is None else hosts_per_node)
    }
    return Changes(tuple(sorted(wanted - existing)), tuple(sorted(existing - wanted)))
