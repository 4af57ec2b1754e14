"""What the controller publishes, and every partition's door goes by. Data; decides nothing.

Each partition's hash ``admission`` has it as JSON in the field ``policy``. Every field has a default, and fields that
are not known are left out, so that old and new versions understand each other. What is not known is left out of the
JSON as well (Lua's decoder has no good word for null).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, TypeVar

from admission.values import CLASSES

DEFAULT_COST_MS: Final = 1000
"""What a run is taken to cost, in milliseconds of a host's slot, where nothing is known of its agent."""
DEFAULT_MAX_WAIT_MS: Final = 86_400_000
DEFAULT_PERIOD_MS: Final = 250
STALE_MS: Final = 5000
"""A policy that is older than this says nothing of queues any more; what else it says still holds."""
ANY: Final = -1
"""No bound."""

_Part = TypeVar("_Part")


@dataclass(frozen=True, slots=True)
class ClassPolicy:
    """What holds for one class.

    Attributes:
        ahead_ms: queued cost of this class and of better ones in the whole deployment, without what is set aside.
        own_ms: queued cost of this class alone.
        queued: how many runs of this class alone are queued.
        pace: milliseconds of waiting for each millisecond of cost ahead, on average, since better classes go on
            coming; 0 where the drain is not known.
        noise: how uncertain that is, in square roots of milliseconds (see :func:`admission.queue_law.predicted`).
        more_ms: by how much what still comes of better classes can make a wait longer at most; -1: any.
        room: cost a millisecond that is left for runs that come back after a refusal; at most 0 where none is.
        max_wait_ms: how long a run may wait that does not say it.
        share: the guaranteed part of the drain, from 0 to 1.
        open: whether the store's memory allows new runs of it.
    """

    ahead_ms: float = 0.0
    own_ms: float = 0.0
    queued: int = 0
    pace: float = 0.0
    noise: float = 0.0
    more_ms: float = -1.0
    room: float = 0.0
    max_wait_ms: int = DEFAULT_MAX_WAIT_MS
    share: float = 0.0
    open: bool = True


@dataclass(frozen=True, slots=True)
class AgentPolicy:
    """What is known of an agent's runs.

    Attributes:
        cost_ms: the slot time that one takes, on average.
        p90_ms: nine of ten end within so many milliseconds of their first start; 0 where that is not known.
        until_ms: a dependency that it needs is not to be called before then (the store's clock); 0 for none.
        dependency: which.
    """

    cost_ms: float = float(DEFAULT_COST_MS)
    p90_ms: float = 0.0
    until_ms: int = 0
    dependency: str = ""


@dataclass(frozen=True, slots=True)
class TenantPolicy:
    """What a tenant may do.

    Attributes:
        weight: its part of a level's drain, relative to others'.
        ranks: the classes that it may submit.
        left: how many more of its runs may be queued, in each partition, than when the policy was made; -1: any.
        until_ms: it has used up what it may use in an hour, until then (the store's clock); 0: it has not.
        places: how many of its runs may run at once in a partition that was told nothing else; -1: any.
    """

    weight: float = 1.0
    ranks: tuple[int, ...] = tuple(range(len(CLASSES)))
    left: int = ANY
    until_ms: int = 0
    places: int = ANY


@dataclass(frozen=True, slots=True)
class AdmissionPolicy:
    """One policy, the same for all partitions.

    Attributes:
        v: rises with each policy; a partition never goes back to an earlier one.
        at_ms: when the partitions said what it was made of, by the store's clock.
        partitions: how many the deployment has.
        period_ms: how often there is a new one.
        dry_run: everything is accepted; what would have been refused is only counted.
        drain: cost a millisecond that the hosts take off the queue; None where no host was ever there.
        classes: by rank.
        agents: by name; others have the defaults.
        tenants: by name; ``tenant_default`` holds for others.
        floor_ms: no run is predicted to wait less than this (all hosts are lost), and why.
        count_bound, bytes_bound: how many runs, and bytes of jobs, may be queued in each partition; 0: any.
    """

    v: int = 0
    at_ms: int = 0
    partitions: int = 1
    period_ms: int = DEFAULT_PERIOD_MS
    dry_run: bool = False
    drain: float | None = None
    classes: tuple[ClassPolicy, ...] = (ClassPolicy(),) * len(CLASSES)
    agents: Mapping[str, AgentPolicy] = field(default_factory=dict)
    tenants: Mapping[str, TenantPolicy] = field(default_factory=dict)
    tenant_default: TenantPolicy = TenantPolicy()
    floor_ms: float = 0.0
    floor_reason: str = ""
    count_bound: int = 0
    bytes_bound: int = 0

    def agent(self, name: str) -> AgentPolicy:
        """What is known of an agent."""
        return self.agents.get(name, _UNKNOWN_AGENT)

    def tenant(self, name: str) -> TenantPolicy:
        """What a tenant may do."""
        return self.tenants.get(name, self.tenant_default)


_UNKNOWN_AGENT: Final = AgentPolicy()
_MAPS: Final[Mapping[str, type[Any]]] = {"agents": AgentPolicy, "tenants": TenantPolicy}


def as_plain(policy: AdmissionPolicy) -> dict[str, Any]:
    """The policy as JSON-like data; :func:`from_plain` reads it again."""
    plain = _flat(policy)
    plain["classes"] = [_flat(each) for each in policy.classes]
    for name in _MAPS:
        plain[name] = {key: _flat(each) for key, each in getattr(policy, name).items()}
    plain["tenant_default"] = _flat(policy.tenant_default)
    return plain


def from_plain(plain: Mapping[str, Any]) -> AdmissionPolicy:
    """The policy in JSON-like data, of this version or another."""
    said = _known(AdmissionPolicy, plain)
    if "classes" in said:
        classes = [_part(ClassPolicy, each) for each in said["classes"][: len(CLASSES)]]
        said["classes"] = tuple(classes) + (ClassPolicy(),) * (len(CLASSES) - len(classes))
    for name, kind in _MAPS.items():
        # An empty table of Lua's may have come back as a list.
        said[name] = {key: _part(kind, each) for key, each in dict(said.get(name) or {}).items()}
    if "tenant_default" in said:
        said["tenant_default"] = _part(TenantPolicy, said["tenant_default"])
    return AdmissionPolicy(**said)


def _flat(part: Any) -> dict[str, Any]:
    """What a part says, without what is not known."""
    return {each.name: value for each in fields(part) if (value := getattr(part, each.name)) is not None}


def _known(kind: type[Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    return {each.name: plain[each.name] for each in fields(kind) if plain.get(each.name) is not None}


def _part(kind: type[_Part], plain: Mapping[str, Any]) -> _Part:
    said = _known(kind, plain)
    if "ranks" in said:
        said["ranks"] = tuple(said["ranks"])
    return kind(**said)
