"""From what is known of a deployment to samples of metrics. Pure, but that it remembers which names it tells apart."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from admission.queue_statistics import PartitionStatistics
from admission.values import CLASSES
from cluster.lifecycle import TERMINAL, RunState
from cluster.records import BatchCounts
from penstock.dependency_views import DependencyView
from penstock.queue_views import QueueView
from telemetry.catalogue import LABEL_VALUES, OTHER

_BREAKER_STATES: Final = {"closed": 0, "probing": 1, "open": 2}
_COUNTED_ENDS: Final = tuple(sorted(TERMINAL - {RunState.SHED}))
_BOUNDED: Final = frozenset({"agent", "tenant", "dependency", "host"})


class Sample(NamedTuple):
    """One value of a metric; ``labels`` in the catalogue's order."""

    name: str
    labels: tuple[str, ...]
    value: float


@dataclass(frozen=True, slots=True)
class DeploymentFacts:
    """What was read of a deployment at one moment (epoch milliseconds of the store's clock).

    ``unknown_since_ms`` and ``approval_expires_ms`` are of the oldest unknown run and of the next approval to expire;
    ``hosts`` as :meth:`cluster.store.Store.hosts` tells them.
    """

    now_ms: int
    counts: BatchCounts
    partitions: Sequence[PartitionStatistics]
    queue: QueueView
    dependencies: Sequence[DependencyView]
    hosts: Mapping[str, Mapping[str, Any]]
    lease_s: float
    unknown_since_ms: int | None
    approvals: int
    approval_expires_ms: int | None
    memory: float | None
    ping_s: float


def samples_of(facts: DeploymentFacts) -> Iterator[Sample]:
    """All samples, names not bounded yet."""
    yield from _runs(facts)
    yield from _admission(facts)
    yield from _shares(facts.partitions)
    for dependency in facts.dependencies:
        yield from _dependency(dependency)
    yield from _hosts(facts)
    yield Sample("penstock_store_ping_seconds", (), facts.ping_s)
    if facts.memory is not None:
        yield Sample("penstock_store_memory_used_ratio", (), facts.memory)


def _runs(facts: DeploymentFacts) -> Iterator[Sample]:
    by_state = facts.counts.by_state
    for state in RunState:
        if state not in TERMINAL:
            yield Sample("penstock_runs", (state.value,), by_state.get(state.value, 0))
    for state in _COUNTED_ENDS:
        yield Sample("penstock_runs_ended_total", (state.value,), by_state.get(state.value, 0))
    yield Sample("penstock_steps_total", (), facts.counts.steps)
    yield Sample("penstock_migrations_total", (), facts.counts.migrations)
    since, expires = facts.unknown_since_ms, facts.approval_expires_ms
    yield Sample("penstock_unknown_oldest_seconds", (), 0 if since is None else _seconds(facts.now_ms - since))
    yield Sample("penstock_approvals_pending", (), facts.approvals)
    yield Sample(
        "penstock_approvals_next_expiry_seconds", (), 0 if expires is None else _seconds(expires - facts.now_ms)
    )


def _admission(facts: DeploymentFacts) -> Iterator[Sample]:
    queue = facts.queue
    for each in queue.classes:
        known: dict[str, float | None] = {
            "queue_depth": each.queued,
            "queue_aside": each.aside,
            "queue_predicted_wait_seconds": each.wait_s,
            "queue_max_wait_seconds": each.max_wait_s,
            "queue_load_ratio": each.load,
        }
        for name, value in known.items():
            if value is not None:
                yield Sample(f"penstock_{name}", (each.name,), value)
    for rank, name in enumerate(CLASSES):
        of_class = [partition.classes[rank] for partition in facts.partitions]
        yield Sample("penstock_runs_offered_total", (name,), sum(each.offered for each in of_class))
        yield Sample("penstock_runs_accepted_total", (name,), sum(each.accepted for each in of_class))
        yield Sample("penstock_runs_started_total", (name,), sum(each.started for each in of_class))
    for when, tables in (
        ("door", [partition.refused for partition in facts.partitions]),
        ("queue", [partition.shed for partition in facts.partitions]),
    ):
        for reason in sorted({reason for table in tables for reason in table}):
            for rank, name in enumerate(CLASSES):
                total = sum(table[reason][rank] for table in tables if reason in table)
                yield Sample("penstock_shed_total", (name, reason, when), total)
    for pause in queue.paused:
        yield Sample("penstock_paused", (pause.what,), 1)
    if queue.drain.rate is not None:
        yield Sample("penstock_queue_drain_rate", (), queue.drain.rate)
    if queue.controller.age_s is not None:
        yield Sample("penstock_controller_age_seconds", ("admission",), queue.controller.age_s)


def _shares(partitions: Iterable[PartitionStatistics]) -> Iterator[Sample]:
    for partition in partitions:
        for name, agent in partition.agents.items():
            yield Sample("penstock_agent_runs_ended_total", (name,), agent.ended)
            yield Sample("penstock_agent_slot_seconds_total", (name,), agent.cost_ms / 1000)
        for name, tenant in partition.tenants.items():
            yield Sample("penstock_tenant_queued", (name,), tenant.queued)
            yield Sample("penstock_tenant_running", (name,), tenant.running)
            yield Sample("penstock_tenant_slot_seconds_total", (name,), tenant.served_ms / 1000)


def _dependency(view: DependencyView) -> Iterator[Sample]:
    name, breaker = view.name, view.breaker
    known: dict[str, float | None] = {
        "breaker_openings": breaker.openings,
        "in_flight": view.concurrency.in_flight,
        "in_flight_limit": view.concurrency.max,
        "pace_ratio": view.pace,
        "retries_available": sum(each.available for each in view.budgets.values()) if view.budgets else None,
        "hub_age_seconds": view.silent_s,
    }
    state = _BREAKER_STATES.get(breaker.state)
    if state is not None:
        since = breaker.since_ms if state else None
        known["breaker_state"] = state
        known["breaker_open_seconds"] = 0 if since is None else _seconds(view.now_ms - since)
    for what, value in known.items():
        if value is not None:
            yield Sample(f"penstock_dependency_{what}", (name,), value)
    for limit in view.limits:
        labels = (name, limit.resource)
        yield Sample("penstock_dependency_limit", labels, limit.amount)
        if limit.amount > 0:
            used = (limit.used + limit.outstanding) / limit.amount
            yield Sample("penstock_dependency_used_ratio", labels, used)
    for value_class, waiting in view.waiting.items():
        yield Sample("penstock_dependency_waiting", (name, value_class), waiting)


def _hosts(facts: DeploymentFacts) -> Iterator[Sample]:
    states = dict.fromkeys(("live", "draining", "expired"), 0)
    freshest: dict[str, Mapping[str, Any]] = {}
    for host, info in facts.hosts.items():
        left = info["lease_left_ms"]
        states["expired" if left < 0 else "draining" if info["draining"] else "live"] += 1
        label = str(info.get("label", host))
        if label not in freshest or freshest[label]["lease_left_ms"] < left:
            freshest[label] = info
    for state, count in states.items():
        yield Sample("penstock_hosts", (state,), count)
    for label, info in freshest.items():
        yield Sample(
            "penstock_host_lease_age_seconds", (label,), _seconds(facts.lease_s * 1000 - info["lease_left_ms"])
        )
        for what, field_name, per in (("runs", "busy", 1), ("slots", "slots", 1), ("loop_lag_seconds", "lag_ms", 1000)):
            if field_name in info:
                yield Sample(f"penstock_host_{what}", (label,), info[field_name] / per)


def _seconds(milliseconds: float) -> float:
    return max(0.0, milliseconds / 1000)


@dataclass(slots=True)
class Bounded:
    """Adds up samples of the same labels, with a bounded number of names: the first ones that came are told apart."""

    most: int = LABEL_VALUES
    _seen: dict[tuple[str, str], dict[str, None]] = field(default_factory=dict)

    def total(
        self, samples: Iterable[Sample], labels_of: Mapping[str, Sequence[str]]
    ) -> dict[str, dict[tuple[str, ...], float]]:
        """Metric → labels → value. Ages and states of what is not told apart are the greatest of them."""
        found: dict[str, dict[tuple[str, ...], float]] = {}
        for sample in samples:
            labels = tuple(
                self._name(sample.name, label, value) if label in _BOUNDED else value
                for label, value in zip(labels_of[sample.name], sample.labels, strict=True)
            )
            values = found.setdefault(sample.name, {})
            if sample.name.endswith(("_seconds", "_state", "_ratio")) and labels in values:
                values[labels] = max(values[labels], sample.value)
            else:
                values[labels] = values.get(labels, 0) + sample.value
        return found

    def _name(self, metric: str, label: str, value: str) -> str:
        seen = self._seen.setdefault((metric, label), {})
        if value in seen or len(seen) < self.most:
            seen[value] = None
            return value
        return OTHER
