"""What a partition counts of its runs, for its own law and for the controller. Pure."""

from dataclasses import replace

from admission.ordered_runs import Queued
from admission.queue_law import Tally
from admission.queue_statistics import (
    AgentStatistics,
    ClassStatistics,
    PartitionStatistics,
    TenantStatistics,
    bucket_of,
)
from admission.values import CLASSES


class PartitionCounts:
    """Counts by class, tenant and agent.

    Attributes:
        tally: what the predicted wait is made of.
        queued_bytes: of the jobs of all queued runs, with those that are set aside.
        running: runs that hosts have.
    """

    def __init__(self) -> None:
        self.tally = Tally()
        self.queued_bytes = 0
        self.running = 0
        self._classes = [ClassStatistics() for _ in CLASSES]
        self._tenants: dict[str, TenantStatistics] = {}
        self._agents: dict[str, AgentStatistics] = {}
        self._refused: dict[str, list[int]] = {}
        self._shed: dict[str, list[int]] = {}
        self._would: dict[str, list[int]] = {}
        self._net: dict[str, int] = {}
        self._earlier_net: dict[str, int] = {}
        self._told_idle: dict[str, int] = {}

    def net(self, tenant: str) -> int:
        """How many more of a tenant's runs are queued here than the policy knows of."""
        return self._net.get(tenant, 0) + self._earlier_net.get(tenant, 0)

    def running_of(self, tenant: str) -> int:
        """How many runs of a tenant hosts have."""
        found = self._tenants.get(tenant)
        return 0 if found is None else found.running

    # The door

    def offered(self, rank: int, cost_ms: int) -> None:
        """Somebody wants to come, and not because of an earlier refusal."""
        self._classes[rank].offered += 1
        self._classes[rank].offered_ms += cost_ms

    def refused(self, reason: str, rank: int) -> None:
        """Somebody was refused."""
        _count(self._refused, reason, rank)

    def would(self, reason: str, rank: int) -> None:
        """Somebody would have been refused."""
        _count(self._would, reason, rank)

    def shed(self, reason: str, rank: int) -> None:
        """Somebody was shed."""
        _count(self._shed, reason, rank)

    def came(self, run: Queued, rank: int, *, again: bool) -> None:
        """A new run is queued."""
        self.tally.came(rank, run.cost_ms)
        mine = self._classes[rank]
        mine.accepted += 1
        mine.again += again
        self._enter(run, rank)

    def evicted(self, reason: str, run: Queued, rank: int) -> None:
        """A run was taken out by the law, after :meth:`left`."""
        self.tally.shed(rank, run.cost_ms)
        self._classes[rank].evicted_ms += run.cost_ms
        _count(self._shed, reason, rank)

    # The queue

    def back(self, run: Queued, rank: int) -> None:
        """A run is queued again that was not."""
        self.tally.add(rank, run.cost_ms)
        self._enter(run, rank)

    def _enter(self, run: Queued, rank: int) -> None:
        self._tenant(run.tenant).queued_ms[rank] += run.cost_ms
        self._stay(run)

    def left(self, run: Queued, rank: int) -> None:
        """A run is in the queue no more."""
        self.tally.take(rank, run.cost_ms)
        self._tenant(run.tenant).queued_ms[rank] -= run.cost_ms
        self._leave(run)

    def left_aside(self, run: Queued, rank: int) -> None:
        """A run that was set aside is gone."""
        self._classes[rank].aside -= 1
        self._classes[rank].aside_ms -= run.cost_ms
        self._leave(run)

    def _leave(self, run: Queued) -> None:
        self.queued_bytes -= run.size_bytes
        self._tenant(run.tenant).queued -= 1
        self._net[run.tenant] = self._net.get(run.tenant, 0) - 1

    def set_aside(self, run: Queued, rank: int) -> None:
        """A run that has left the queue is set aside."""
        self._classes[rank].aside += 1
        self._classes[rank].aside_ms += run.cost_ms
        self._stay(run)

    def brought_back(self, run: Queued, rank: int) -> None:
        """A run that was set aside is in the queue again."""
        self.left_aside(run, rank)
        self.tally.add(rank, run.cost_ms)
        self._tenant(run.tenant).queued_ms[rank] += run.cost_ms
        self._stay(run)

    def _stay(self, run: Queued) -> None:
        self.queued_bytes += run.size_bytes
        self._tenant(run.tenant).queued += 1
        self._net[run.tenant] = self._net.get(run.tenant, 0) + 1

    # Hosts

    def started(self, run: Queued, rank: int) -> None:
        """A host has a run that has left the queue."""
        self.running += 1
        self._tenant(run.tenant).running += 1
        self._classes[rank].started += run.used_ms < 0

    def stopped(self, run: Queued, slot_ms: int) -> None:
        """A host has a run no more."""
        self.running -= 1
        tenant = self._tenant(run.tenant)
        tenant.running -= 1
        tenant.served_ms += slot_ms

    def ended(self, run: Queued, service_ms: int) -> None:
        """A run is over that had been started; ``service_ms`` from its start, or -1 where it did not succeed."""
        agent = self._agents.get(run.agent)
        if agent is None:
            agent = self._agents[run.agent] = AgentStatistics()
        agent.ended += 1
        agent.cost_ms += run.used_ms
        if service_ms >= 0:
            agent.service[bucket_of(service_ms)] += 1

    # The controller

    def exchanged(self) -> PartitionStatistics:
        """Everything, as it is now; what the controller has been told twice is not counted as new any more."""
        self.tally.exchanged()
        self._earlier_net, self._net = self._net, {}
        for mine, queued, queued_ms in zip(self._classes, self.tally.queued, self.tally.queued_ms, strict=True):
            mine.queued, mine.queued_ms = queued, queued_ms
        self._forget_tenants()
        tenants = {name: replace(each, queued_ms=list(each.queued_ms)) for name, each in self._tenants.items()}
        return PartitionStatistics(
            running=self.running,
            queued_bytes=self.queued_bytes,
            classes=[replace(each) for each in self._classes],
            tenants=tenants,
            agents={name: replace(each, service=list(each.service)) for name, each in self._agents.items()},
            refused={reason: list(each) for reason, each in self._refused.items()},
            shed={reason: list(each) for reason, each in self._shed.items()},
            would={reason: list(each) for reason, each in self._would.items()},
        )

    def _forget_tenants(self) -> None:
        """Drops those of whom nothing is here and nothing has changed since the controller was told so."""
        idle = {name: each.served_ms for name, each in self._tenants.items() if each.idle}
        for name, served_ms in idle.items():
            if self._told_idle.get(name) == served_ms:
                del self._tenants[name]
        self._told_idle = {name: served_ms for name, served_ms in idle.items() if name in self._tenants}

    def _tenant(self, name: str) -> TenantStatistics:
        tenant = self._tenants.get(name)
        if tenant is None:
            tenant = self._tenants[name] = TenantStatistics()
        return tenant


def _count(counts: dict[str, list[int]], reason: str, rank: int) -> None:
    counts.setdefault(reason, [0] * len(CLASSES))[rank] += 1
