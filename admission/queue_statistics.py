"""What a partition tells the controller with each exchange. Data; decides nothing.

What is counted since the beginning only grows, so that an answer that was lost or came twice does no harm. Names of
fields are those of the JSON that ``exchange.lua`` answers; what is missing there is zero.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from admission.values import CLASSES

HISTOGRAM: Final = 40
"""Buckets of service times: bucket b counts times from 2**b to below 2**(b + 1) ms."""


def bucket_of(service_ms: int) -> int:
    """The bucket of a service time: in Lua ``select(2, math.frexp(ms)) - 1``, which is exact as well."""
    return min(HISTOGRAM, max(1, service_ms).bit_length()) - 1


@dataclass(slots=True)
class ClassStatistics:
    """A class in one partition: what is queued now, and what was since the beginning.

    Attributes:
        queued, queued_ms: runs that may be claimed, and their cost.
        aside, aside_ms: those that are set aside: paused, without a host that serves them, or over their tenant's cap.
        offered, offered_ms: all that came but those that came again after a refusal, and those that their tenants' caps
            kept out; refused ones too.
        accepted, again, started: how many were queued, how many of those came again after a refusal, and how many were
            claimed for the first time.
        evicted_ms: cost of what was evicted.
    """

    queued: int = 0
    queued_ms: int = 0
    aside: int = 0
    aside_ms: int = 0
    offered: int = 0
    offered_ms: int = 0
    accepted: int = 0
    again: int = 0
    started: int = 0
    evicted_ms: int = 0


@dataclass(slots=True)
class TenantStatistics:
    """A tenant in one partition.

    Attributes:
        queued: its runs that are queued or set aside.
        queued_ms: cost of those that may be claimed, by class.
        running: its runs that hosts have.
        served_ms: slot time that its runs have taken, since the beginning.
    """

    queued: int = 0
    queued_ms: list[int] = field(default_factory=lambda: [0] * len(CLASSES))
    running: int = 0
    served_ms: int = 0

    @property
    def idle(self) -> bool:
        """Whether nothing of it is here now."""
        return not (self.queued or self.running)


@dataclass(slots=True)
class AgentStatistics:
    """An agent in one partition, since the beginning.

    Attributes:
        ended: its runs that are over and had been started.
        cost_ms: slot time that those took.
        service: how many of those that succeeded took how long from their first start, without waits for dependencies
            that were down, by :func:`bucket_of`.
    """

    ended: int = 0
    cost_ms: int = 0
    service: list[int] = field(default_factory=lambda: [0] * HISTOGRAM)


@dataclass(slots=True)
class PartitionStatistics:
    """One partition.

    Attributes:
        partition: its number.
        at_ms: when, by the store's clock.
        v: the policy that it has.
        running: runs that hosts have.
        queued_bytes: of the jobs of all queued runs.
        classes: by rank.
        tenants, agents: by name.
        refused, shed, would: how many were refused at the door and shed later, and how many would have been without
            ``dry_run``, since the beginning: by reason and rank.
        bottom_level, bottom_max_wait_ms: of the run that would be evicted first; -1 where there is none.
        bottom_part: which part of its class goes before it here.
        places: how many runs of a tenant may run here at once, as it was told.
        held: what is paused here, as JSON by whom and why, by ``queue``, ``class:…``, ``tenant:…``, ``agent:…``.
    """

    partition: int = 0
    at_ms: int = 0
    v: int = 0
    running: int = 0
    queued_bytes: int = 0
    classes: list[ClassStatistics] = field(default_factory=lambda: [ClassStatistics() for _ in CLASSES])
    tenants: dict[str, TenantStatistics] = field(default_factory=dict)
    agents: dict[str, AgentStatistics] = field(default_factory=dict)
    refused: dict[str, list[int]] = field(default_factory=dict)
    shed: dict[str, list[int]] = field(default_factory=dict)
    would: dict[str, list[int]] = field(default_factory=dict)
    bottom_level: int = -1
    bottom_max_wait_ms: int = -1
    bottom_part: float = 1.0
    places: dict[str, int] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)


_PARTS: Final[Mapping[str, type[Any]]] = {"tenants": TenantStatistics, "agents": AgentStatistics}
_COUNTS: Final = ("refused", "shed", "would")


def as_plain(statistics: PartitionStatistics) -> dict[str, Any]:
    """As JSON-like data; :func:`from_plain` reads it again."""
    return asdict(statistics)


def from_plain(plain: Mapping[str, Any]) -> PartitionStatistics:
    """The statistics in JSON-like data. Empty tables may be lists, as Lua has it; lists may be too short."""
    said = _known(PartitionStatistics, plain)
    classes = [ClassStatistics(**_known(ClassStatistics, each)) for each in said.get("classes") or ()]
    said["classes"] = classes + [ClassStatistics() for _ in CLASSES[len(classes) :]]
    for name, kind in _PARTS.items():
        said[name] = {key: _part(kind, each) for key, each in dict(said.get(name) or {}).items()}
    for name in _COUNTS:
        said[name] = {key: _filled(each, len(CLASSES)) for key, each in dict(said.get(name) or {}).items()}
    for name in ("places", "held"):
        said[name] = dict(said.get(name) or {})
    return PartitionStatistics(**said)


def _known(kind: type[Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    return {each.name: plain[each.name] for each in fields(kind) if plain.get(each.name) is not None}


def _part(kind: type[Any], plain: Mapping[str, Any]) -> Any:
    said = _known(kind, plain)
    if "queued_ms" in said:
        said["queued_ms"] = _filled(said["queued_ms"], len(CLASSES))
    if "service" in said:
        said["service"] = _filled(said["service"], HISTOGRAM)
    return kind(**said)


def _filled(numbers: Any, length: int) -> list[int]:
    given = [int(number) for number in numbers or ()][:length]
    return given + [0] * (length - len(given))
