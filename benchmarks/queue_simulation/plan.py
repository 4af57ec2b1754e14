"""What is simulated: work, clients, hosts and what strikes them. Data; times are in milliseconds."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from admission.values import CLASSES


@dataclass(frozen=True)
class ClassLoad:
    """A class: its part of all jobs, how long a job may take from its submission, how long it may wait, its worth."""

    share: float
    deadline_ms: float
    max_wait_ms: int
    worth: float


@dataclass(frozen=True)
class Agent:
    """An agent: its part of all jobs, lognormal service time, and the dependency that it calls ('' for none)."""

    name: str
    share: float
    mean_ms: float
    variation: float = 1.0
    dependency: str = ""


@dataclass(frozen=True)
class Tenant:
    """A tenant: its part of all jobs, and its weight."""

    name: str
    share: float
    weight: float = 1.0


@dataclass(frozen=True)
class Clients:
    """What clients do when they are refused or get no answer in time.

    Attributes:
        obey: part of them that comes back when it was told to, and not at all when it was told not to.
        attempts: how often a job is submitted at most.
        pause_ms: mean of the exponential pause after which the others come back, and all of them after a time-out.
    """

    obey: float = 0.7
    attempts: int = 4
    pause_ms: float = 1000.0


@dataclass(frozen=True)
class Strike:
    """Something goes wrong for some time.

    Attributes:
        kind: ``drain`` (``part`` hosts claim nothing more), ``slow`` (what starts takes ``part`` times as long),
            ``dependency`` (calls to it hang), ``store`` (nothing can be written or read), ``kill`` (``part`` hosts die
            with all that they run; others take their places afterwards).
        at_ms, for_ms: when, and for how long.
        part: how many hosts, or how slow.
    """

    kind: str
    at_ms: float
    for_ms: float
    part: float = 1.0

    @property
    def over_ms(self) -> float:
        """When it is over."""
        return self.at_ms + self.for_ms


MIX: Final = (
    ClassLoad(0.05, 12_000, 2000, 100),
    ClassLoad(0.10, 15_000, 2000, 30),
    ClassLoad(0.25, 20_000, 2000, 10),
    ClassLoad(0.30, 30_000, 2000, 3),
    ClassLoad(0.30, 30_000, 2000, 1),
)
"""Critical work is a twentieth: at ten times the capacity that is half of it. Everything is interactive."""
DEPENDENCY: Final = "crm"
AGENTS: Final = (
    Agent("chat", 0.5, 800.0),
    Agent("research", 0.2, 3000.0),
    Agent("clerk", 0.3, 1500.0, 1.0, DEPENDENCY),
)
TENANTS: Final = tuple(Tenant(f"t{number}", 1 / (number + 1), 1.0 + number % 2) for number in range(8))


@dataclass(frozen=True)
class Plan:
    """One simulation.

    Attributes:
        load: (from when, offered cost of first attempts as a multiple of capacity) in order of time.
        until_ms: no job is submitted and nothing is started after this; what runs is brought to its end.
        from_ms: what was before is not measured.
        hosts, slots: how many hosts, and how many slots each.
        partitions: of the store.
        classes, agents, tenants, clients, strikes: see there; shares are relative.
        hop_ms: between the end of a run and the start of the next one in its slot.
        step_ms: a run is cancelled at the end of the step during which its deadline passes.
        hang_ms: a call to a dependency that is down takes so long, and fails.
        lease_ms: a host that was killed is known to be lost after so long.
        seed: of everything that is drawn.
    """

    load: Sequence[tuple[float, float]]
    until_ms: float
    from_ms: float = 30_000.0
    hosts: int = 10
    slots: int = 20
    partitions: int = 8
    classes: tuple[ClassLoad, ...] = MIX
    agents: tuple[Agent, ...] = AGENTS
    tenants: tuple[Tenant, ...] = TENANTS
    clients: Clients = Clients()
    strikes: tuple[Strike, ...] = ()
    hop_ms: float = 2.0
    step_ms: float = 100.0
    hang_ms: float = 2000.0
    lease_ms: float = 3000.0
    bin_ms: float = 500.0
    seed: int = 1

    def __post_init__(self) -> None:
        if len(self.classes) != len(CLASSES):
            raise ValueError(f"{len(self.classes)} classes: there are {len(CLASSES)}, {', '.join(CLASSES)}")

    @cached_property
    def mean_ms(self) -> float:
        """Mean service time of a job."""
        total = sum(agent.share for agent in self.agents)
        return sum(agent.share * agent.mean_ms for agent in self.agents) / total

    @property
    def capacity(self) -> int:
        """Slots in all."""
        return self.hosts * self.slots

    @property
    def span_ms(self) -> float:
        """How long is measured."""
        return self.until_ms - self.from_ms


def steady(load: float, for_s: float = 90.0, **said: object) -> Plan:
    """The same load all the time; half a minute of it is not measured."""
    return Plan(load=((0.0, load),), until_ms=30_000.0 + for_s * 1000, **said)  # type: ignore[arg-type]
