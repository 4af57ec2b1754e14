"""The controller: from what partitions, hosts and hubs say, the policy that all doors go by. Pure.

Once a period the shell around it has every partition exchange the last policy for its statistics, looks at hosts, hubs
and the store's memory, and asks for the next policy. The controller decides nothing about single runs: doors do, with
the policy, and go on doing so when the controller is gone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from admission.admission_definition import AdmissionDefinition, TenantRule
from admission.admission_policy import ANY, DEFAULT_PERIOD_MS, AdmissionPolicy, AgentPolicy, ClassPolicy, TenantPolicy
from admission.drain import Drain, Loads
from admission.queue_law import DEADLINE, HOSTS, Tally, predicted
from admission.queue_statistics import AgentStatistics, PartitionStatistics
from admission.running_caps import Here, RunningCap
from admission.service_estimate import HourlyCost, ServiceEstimate
from admission.shed_rates import ShedRates
from admission.values import CLASSES, rank_of_level

LEAST_PART: Final = 0.001
"""At least this part of the drain is taken to be left for a class."""
LOAD_LASTS_MS: Final = 60_000.0
"""Better classes are taken to come as they do now for so long, and no longer."""
CLOSING_AT: Final = (0.97, 0.94, 0.90, 0.85, 0.80)
"""How full the store's memory may be before a class is closed, by rank."""
REOPENS_BELOW: Final = 0.01
HOSTS_LOST_AFTER_MS: Final = 2000
HOSTS_LOST_WAIT_MS: Final = 30_000
FORCED_OPEN_MS: Final = 60_000
"""A breaker that is open until somebody closes it is taken to be so for this long."""
MOST_EVICTED: Final = 500
AGENTS_KEPT: Final = 2000


@dataclass(frozen=True, slots=True)
class DependencyState:
    """A dependency that is not to be called now.

    Attributes:
        until_ms: until when, by the store's clock; None where nobody knows.
        agents: those that need it.
    """

    until_ms: int | None
    agents: frozenset[str]


@dataclass(frozen=True, slots=True)
class HostState:
    """A live host: effective slots, and whether it takes nothing more."""

    slots: float
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Observations:
    """What the controller is told, once a period.

    Attributes:
        partitions: what partitions have said since the last time; one that did not answer is left out.
        hosts: live hosts by identity.
        dependencies: those that are not to be called, by name.
        memory: how full the store's fullest node is, from 0 to 1; None where it has no bound.
        definition: what operators want.
    """

    partitions: Sequence[PartitionStatistics]
    hosts: Mapping[str, HostState]
    dependencies: Mapping[str, DependencyState] = field(default_factory=dict)
    memory: float | None = None
    definition: AdmissionDefinition = field(default_factory=AdmissionDefinition)


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done.

    Attributes:
        policy: for all partitions.
        places: partition → tenant → how many of its runs may run there at once; for the exchange with the policy.
        evict: partitions that are to shed from their bottom, after they have the policy, and how many runs at most.
    """

    policy: AdmissionPolicy
    places: Mapping[int, Mapping[str, int]]
    evict: Mapping[int, int]


class QueueController:
    """One deployment's. Times are the store's clock, in milliseconds.

    Attributes:
        heard: what each partition has last said.
        drain, loads, agents, costs: what is estimated.
        rates: what is refused and shed now.
        policy: the last one.
    """

    def __init__(self, partitions: int, period_ms: int = DEFAULT_PERIOD_MS) -> None:
        if partitions < 1 or period_ms < 1:
            raise ValueError(f"{partitions} partitions, a period of {period_ms} ms: both must be at least 1")
        self.partitions = partitions
        self.period_ms = period_ms
        self.heard: dict[int, PartitionStatistics] = {}
        self.drain = Drain()
        self.loads = Loads()
        self.agents: dict[str, ServiceEstimate] = {}
        self.costs: dict[str, HourlyCost] = {}
        self.rates = ShedRates()
        self.policy = AdmissionPolicy(partitions=partitions, period_ms=period_ms)
        self._caps: dict[str, RunningCap] = {}
        self._open = [True] * len(CLASSES)
        self._memory: float | None = None
        self._at_ms: int | None = None

    def step(self, now_ms: int, seen: Observations) -> Decision:
        """One period.

        Args:
            now_ms: the store's clock.
            seen: how things are.
        """
        for_ms = 0 if self._at_ms is None else max(0, now_ms - self._at_ms)
        self._at_ms = now_ms
        self._take_in(now_ms, for_ms, seen)
        memory = self._memory_soon(seen.memory)
        self._open = [_stays_open(was, memory, rank) for rank, was in enumerate(self._open)]
        at_ms = min((said.at_ms for said in seen.partitions), default=self.policy.at_ms)
        policy = self._policy(now_ms, at_ms, seen)
        self.policy = policy
        places = self._places(now_ms, seen.definition)
        return Decision(policy, places, self._evictions())

    def _memory_soon(self, memory: float | None) -> float | None:
        """How full the store will be at the next look, if it goes on filling up as it did since the last one: what is
        accepted until then cannot be taken back.
        """
        before, self._memory = self._memory, memory
        if memory is None or before is None:
            return memory
        return memory + max(0.0, memory - before)

    # What is seen

    def _take_in(self, now_ms: int, for_ms: int, seen: Observations) -> None:
        offered_ms, offered = [0.0] * len(CLASSES), 0
        spent: dict[str, int] = {}
        too_late, learned = 0, dict[str, AgentStatistics]()
        for said in seen.partitions:
            before = self.heard.get(said.partition)
            self.heard[said.partition] = said
            if before is None:
                # Nobody knows since when it has counted.
                continue
            for rank, (old, new) in enumerate(zip(before.classes, said.classes, strict=True)):
                offered_ms[rank] += grown(old.offered_ms, new.offered_ms)
                offered += grown(old.offered, new.offered)
            for name, tenant in said.tenants.items():
                had = before.tenants.get(name)
                spent[name] = spent.get(name, 0) + grown(0 if had is None else had.served_ms, tenant.served_ms)
            too_late += sum(said.refused.get(DEADLINE, ())) - sum(before.refused.get(DEADLINE, ()))
            for name, agent in said.agents.items():
                _add_grown(learned.setdefault(name, AgentStatistics()), before.agents.get(name), agent)
        self._learn(learned, for_ms if too_late > 0 else 0)
        self.rates.observe(self.heard.values(), for_ms)
        self._spend(now_ms, spent, seen.definition)
        slots = sum(host.slots for host in seen.hosts.values() if not host.draining)
        busy = sum(said.running for said in self.heard.values())
        queued = sum(each.queued for said in self.heard.values() for each in said.classes)
        paused = any("queue" in said.held for said in self.heard.values())
        self.drain.observe(now_ms, slots, busy, queued, paused=paused)
        self.loads.observe(offered_ms, offered, for_ms, self.drain.rate)

    def _learn(self, learned: Mapping[str, AgentStatistics], refused_for_ms: int) -> None:
        """From runs that ended; where runs were refused for their deadlines, from that none succeeded."""
        for name, said in learned.items():
            estimate = self.agents.get(name)
            if estimate is None and (said.ended or any(said.service)):
                if len(self.agents) >= AGENTS_KEPT:
                    self.agents.pop(next(iter(self.agents)))
                estimate = self.agents[name] = ServiceEstimate()
            if estimate is not None:
                estimate.observe(said.ended, said.cost_ms, said.service)
                if not any(said.service):
                    estimate.fade(refused_for_ms)

    def _spend(self, now_ms: int, spent: Mapping[str, int], definition: AdmissionDefinition) -> None:
        for name, cost_ms in spent.items():
            if cost_ms and definition.of_tenant(name).cost_per_hour is not None:
                self.costs.setdefault(name, HourlyCost()).observe(now_ms, cost_ms)
        for name, hour in list(self.costs.items()):
            hour.observe(now_ms, 0)
            if not hour.used_ms:
                del self.costs[name]

    # The policy

    def _policy(self, now_ms: int, at_ms: int, seen: Observations) -> AdmissionPolicy:
        definition = seen.definition
        lost = self.drain.lost_for_ms(now_ms) >= HOSTS_LOST_AFTER_MS
        # A controller that begins goes on above what partitions have.
        v = 1 + max(self.policy.v, *(said.v for said in self.heard.values()), 0)
        return AdmissionPolicy(
            v=v,
            at_ms=at_ms,
            partitions=self.partitions,
            period_ms=self.period_ms,
            dry_run=definition.dry_run,
            drain=self.drain.rate,
            classes=self._classes(definition),
            agents=self._agents(now_ms, seen.dependencies),
            tenants=self._tenants(definition),
            tenant_default=self._tenant(definition.other_tenants, 0, 0),
            floor_ms=float(HOSTS_LOST_WAIT_MS) if lost else 0.0,
            floor_reason=HOSTS if lost else "",
            count_bound=_part(definition.max_queued, self.partitions),
            bytes_bound=_part(definition.max_queued_bytes, self.partitions),
        )

    def _classes(self, definition: AdmissionDefinition) -> tuple[ClassPolicy, ...]:
        drain = self.drain.rate
        made: list[ClassPolicy] = []
        ahead_ms, better_pace, better_room = 0, 0.0, 0.0
        for rank in range(len(CLASSES)):
            rule = definition.of_class(rank)
            own_ms = sum(said.classes[rank].queued_ms for said in self.heard.values())
            ahead_ms += own_ms
            pace = noise = room = 0.0
            more_ms = -1.0
            if drain is not None and drain > 0:
                part = max(1.0 - better_pace / drain, LEAST_PART)
                pace, noise = 1.0 / (drain * part), self.loads.noise(better_pace, drain) / (2.0 * part)
                more_ms = better_pace / drain * LOAD_LASTS_MS
                room = drain * max(1.0 - better_room / drain, rule.share) - self.loads.room[rank]
            made.append(
                ClassPolicy(
                    ahead_ms=float(ahead_ms),
                    own_ms=float(own_ms),
                    queued=sum(said.classes[rank].queued for said in self.heard.values()),
                    pace=pace,
                    noise=noise,
                    more_ms=more_ms,
                    room=room,
                    max_wait_ms=round(rule.max_wait * 1000),
                    share=rule.share,
                    open=self._open[rank],
                )
            )
            better_pace += self.loads.pace[rank]
            better_room += self.loads.room[rank]
        return tuple(made)

    def _agents(self, now_ms: int, dependencies: Mapping[str, DependencyState]) -> dict[str, AgentPolicy]:
        until: dict[str, tuple[int, str]] = {}
        for name, state in dependencies.items():
            until_ms = now_ms + FORCED_OPEN_MS if state.until_ms is None else state.until_ms
            for agent in state.agents:
                if until_ms > now_ms:
                    until[agent] = max(until.get(agent, (0, "")), (until_ms, name))
        made: dict[str, AgentPolicy] = {}
        for agent in self.agents.keys() | until.keys():
            known = self.agents.get(agent)
            until_ms, name = until.get(agent, (0, ""))
            cost_ms = AgentPolicy().cost_ms if known is None else float(max(1, round(known.cost_ms)))
            p90_ms = 0.0 if known is None else float(round(known.p90_ms))
            made[agent] = AgentPolicy(cost_ms, p90_ms, until_ms, name)
        return made

    def _tenants(self, definition: AdmissionDefinition) -> dict[str, TenantPolicy]:
        """Those for whom other things hold than for tenants in general."""
        queued = self._queued_by_tenant(definition)
        made: dict[str, TenantPolicy] = {}
        for name in definition.tenants.keys() | queued.keys() | self.costs.keys():
            rule = definition.of_tenant(name)
            hour, until_ms = self.costs.get(name), 0
            if hour is not None and rule.cost_per_hour is not None:
                until_ms = hour.until_ms(rule.cost_per_hour * 1000)
            policy = self._tenant(rule, queued.get(name, 0), until_ms)
            if policy != self._tenant(definition.other_tenants, 0, 0):
                made[name] = policy
        return made

    def _queued_by_tenant(self, definition: AdmissionDefinition) -> dict[str, int]:
        """How many runs are queued of tenants that have a cap on that."""
        queued: dict[str, int] = {}
        for said in self.heard.values():
            for name, tenant in said.tenants.items():
                if tenant.queued and definition.of_tenant(name).max_queued is not None:
                    queued[name] = queued.get(name, 0) + tenant.queued
        return queued

    def _tenant(self, rule: TenantRule, queued: int, until_ms: int) -> TenantPolicy:
        left = ANY
        if rule.max_queued is not None:
            left = left_each(rule.max_queued - queued, self.partitions)
        places = ANY if rule.max_running is None else rule.max_running // self.partitions
        return TenantPolicy(rule.weight, rule.ranks, left, until_ms, places)

    # Running caps and evictions

    def _places(self, now_ms: int, definition: AdmissionDefinition) -> dict[int, dict[str, int]]:
        present: dict[str, int] = {}
        for said in self.heard.values():
            for name, tenant in said.tenants.items():
                most = definition.of_tenant(name).max_running
                if most is not None and not tenant.idle:
                    present[name] = most
        for name, cap in list(self._caps.items()):
            if name in present:
                continue
            most = definition.of_tenant(name).max_running
            # A tenant that has nothing is forgotten when no partition goes by more than it does unasked.
            if most is not None and any(said.places.get(name, 0) > cap.unasked for said in self.heard.values()):
                present[name] = most
            else:
                del self._caps[name]
        places: dict[int, dict[str, int]] = {partition: {} for partition in self.heard}
        for name, most in present.items():
            cap = self._caps.setdefault(name, RunningCap(most, self.partitions))
            cap.most = most
            here = {partition: self._here(said, name, cap) for partition, said in self.heard.items()}
            for partition, allowed in cap.allowances(now_ms, here).items():
                places[partition][name] = allowed
        return places

    def _here(self, said: PartitionStatistics, name: str, cap: RunningCap) -> Here:
        tenant = said.tenants.get(name)
        running, waiting = (0, 0) if tenant is None else (tenant.running, tenant.queued)
        # The policy that was made in this step is not out yet.
        heard = said.v >= self.policy.v - 1
        return Here(running, waiting, said.places.get(name, cap.unasked), heard)

    def _evictions(self) -> dict[int, int]:
        """Partitions whose last run is predicted to wait for longer than it may."""
        wanted: dict[int, int] = {}
        nothing, agent = Tally(), AgentPolicy()
        for partition, said in self.heard.items():
            if said.bottom_level >= 0 and said.bottom_max_wait_ms >= 0:
                rank = rank_of_level(said.bottom_level)
                wait = predicted(self.policy, nothing, self.policy.at_ms, rank, said.bottom_part, agent)
                if wait.wait_ms > said.bottom_max_wait_ms:
                    wanted[partition] = MOST_EVICTED
        return wanted

    # The next incarnation

    def snapshot(self) -> dict[str, Any]:
        """What the next controller needs, as JSON data."""
        return {
            "drain": self.drain.snapshot(),
            "loads": self.loads.snapshot(),
            "agents": {name: each.snapshot() for name, each in self.agents.items()},
            "costs": {name: each.snapshot() for name, each in self.costs.items()},
        }

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Goes on from a snapshot.

        Raises:
            ValueError: it is none.
        """
        try:
            drain, loads = Drain.restore(plain["drain"]), Loads.restore(plain["loads"])
            agents = {str(name): ServiceEstimate.restore(each) for name, each in plain["agents"].items()}
            costs = {str(name): HourlyCost.restore(each) for name, each in plain["costs"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"no snapshot of an admission controller: {error!r}") from error
        self.drain, self.loads, self.agents, self.costs = drain, loads, agents, costs


def _add_grown(to: AgentStatistics, before: AgentStatistics | None, said: AgentStatistics) -> None:
    """Adds what has come to an agent's counters since; they begin anew when whoever counts has forgotten them."""
    before = before if before is not None and before.ended <= said.ended else AgentStatistics()
    to.ended += said.ended - before.ended
    to.cost_ms += max(0, said.cost_ms - before.cost_ms)
    to.service = [
        each + max(0, new - old) for each, old, new in zip(to.service, before.service, said.service, strict=True)
    ]


def grown(before: int, after: int) -> int:
    """By how much a counter grew that only grows, and begins anew when whoever counts has forgotten it."""
    return after - before if after >= before else after


def left_each(left: int, partitions: int) -> int:
    """How many of the runs that a tenant may still queue each partition may take.

    Runs fall into partitions by chance, and the doors do not ask each other. With an equal part each, runs would be
    refused while there is room; so each may take two standard deviations more, and one. A flood can take the tenant
    that far beyond its cap, until the next policy.
    """
    if left <= 0:
        return 0
    mean = left / partitions
    return min(left, math.ceil(mean if partitions == 1 else mean + 2 * math.sqrt(mean) + 1))


def _part(total: int | None, partitions: int) -> int:
    """A partition's part of a bound; 0 where there is none."""
    return 0 if total is None else -(-total // partitions)


def _stays_open(was: bool, memory: float | None, rank: int) -> bool:
    if memory is None:
        return True
    return memory < CLOSING_AT[rank] - (0.0 if was else REOPENS_BELOW)
