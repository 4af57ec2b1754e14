"""Every metric that Penstock exports, declared once: the exporter, the documentation and the tests go by it.

``python -m telemetry.catalogue`` prints docs/metrics.md.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

LABEL_VALUES: Final = 100
"""So many values of an unbounded label (agent, tenant, dependency, host) are told apart; all others are ``_other``."""
OTHER: Final = "_other"


class MetricKind(StrEnum):
    """As in Prometheus."""

    GAUGE = "gauge"
    COUNTER = "counter"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: in Prometheus, with its unit last; counters end in ``_total``.
        kind: whether it goes up and down, or only up.
        help: what it counts or measures.
        labels: beside ``deployment``, which all of them have.
    """

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(f"penstock_{name}", MetricKind.GAUGE, text, labels)


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(f"penstock_{name}_total", MetricKind.COUNTER, text, labels)


GROUPS: Final[dict[str, tuple[Metric, ...]]] = {
    "Runs": (
        _gauge("runs", "Runs that have not ended, by state; confirmation_unknown ones need somebody", "state"),
        _counter("runs_ended", "Runs that succeeded, failed or were cancelled", "state"),
        _counter("runs_started", "Runs that were claimed for the first time", "class"),
        _counter("steps", "Steps that were recorded"),
        _counter("migrations", "Times that a run was handed back or taken from a host that was lost"),
        _gauge("unknown_oldest_seconds", "Age of the oldest run of whose effect nobody knows; 0 where there is none"),
        _gauge("approvals_pending", "Approvals that people are asked for"),
        _gauge("approvals_next_expiry_seconds", "Until the next of them expires; 0 where there is none"),
    ),
    "Admission": (
        _gauge("queue_depth", "Runs that may be claimed", "class"),
        _gauge("queue_aside", "Queued runs that may not start: paused, served by no host, over a cap", "class"),
        _gauge("queue_predicted_wait_seconds", "Predicted wait of a run that comes now; missing: unknown", "class"),
        _gauge("queue_max_wait_seconds", "How long a run waits at most before it is shed, by default", "class"),
        _gauge("queue_load_ratio", "What comes, as a part of what hosts can do; missing: unknown", "class"),
        _gauge("queue_drain_rate", "Slot-seconds a second that hosts take off the queue; missing: unknown"),
        _counter("runs_offered", "Jobs that came to the door, refused ones too, returns not counted", "class"),
        _counter("runs_accepted", "Jobs that were queued, returns too", "class"),
        _counter("shed", "Jobs refused at the door, or shed later (when: door, queue)", "class", "reason", "when"),
        _gauge("paused", "1 for what people have paused", "what"),
        _gauge("controller_age_seconds", "Since the controller spoke last; missing: never", "controller"),
    ),
    "Agents and tenants": (
        _counter("agent_runs_ended", "Runs that are over and had been started", "agent"),
        _counter("agent_slot_seconds", "Slot time that those took", "agent"),
        _gauge("tenant_queued", "Runs that are queued", "tenant"),
        _gauge("tenant_running", "Runs that hosts have", "tenant"),
        _counter("tenant_slot_seconds", "Slot time that the tenant's runs have taken", "tenant"),
    ),
    "Dependencies": (
        _gauge("dependency_breaker_state", "0 closed, 1 probing, 2 open; missing: unknown", "dependency"),
        _gauge("dependency_breaker_open_seconds", "For how long it has not been closed; 0: it is", "dependency"),
        _gauge("dependency_breaker_openings", "Openings in a row; 0 once it has stayed closed", "dependency"),
        _gauge("dependency_limit", "What may be used in the limit's window", "dependency", "resource"),
        _gauge("dependency_used_ratio", "Used or lent, as a part of the limit", "dependency", "resource"),
        _gauge("dependency_in_flight", "Calls under way", "dependency"),
        _gauge("dependency_in_flight_limit", "How many there may be; missing: any", "dependency"),
        _gauge("dependency_waiting", "Calls that wait at gates", "dependency", "class"),
        _gauge("dependency_pace_ratio", "By which factor limits are lowered after a Retry-After", "dependency"),
        _gauge("dependency_retries_available", "Retries left in the budgets of all tenants", "dependency"),
        _gauge("dependency_hub_age_seconds", "Since the hub spoke last", "dependency"),
    ),
    "Hosts": (
        _gauge("hosts", "Hosts by state: live, draining, expired", "state"),
        _gauge("host_lease_age_seconds", "Since the host renewed its lease", "host"),
        _gauge("host_runs", "Runs that it has", "host"),
        _gauge("host_slots", "Runs that it can bear now", "host"),
        _gauge("host_loop_lag_seconds", "How late its event loop is", "host"),
    ),
    "Store and exporter": (
        _gauge("up", "1 when the store could be read"),
        _gauge("store_memory_used_ratio", "How full the fullest server is; missing: it has no limit"),
        _gauge("store_ping_seconds", "How long the store took to answer"),
        _gauge("exporter_read_seconds", "How long reading everything took"),
        _counter("exporter_errors", "Times that the store could not be read in time"),
    ),
}
METRICS: Final[dict[str, Metric]] = {metric.name: metric for group in GROUPS.values() for metric in group}


_INTRODUCTION: Final = f"""\
# Metrics
<!-- made by `make metrics-doc` from telemetry/catalogue.py -->
`penstock exporter` serves these for Prometheus, and so does a local deployment (`penstock up` says where). They are
read from the store with each scrape, so that they are true whatever died; when the store cannot be read within five
seconds, only `penstock_up` 0 and the exporter's own are served. All have the label `deployment`. Of agents, tenants,
dependencies and hosts {LABEL_VALUES} each are told apart, all others are `{OTHER}`. What nobody knows is missing.
"""


def document() -> str:
    """docs/metrics.md."""
    lines = [_INTRODUCTION.rstrip()]
    for group, metrics in GROUPS.items():
        lines += ["", f"## {group}", "| metric | kind | labels | what it says |", "|---|---|---|---|"]
        lines += [
            f"| `{each.name}` | {each.kind} | {', '.join(f'`{label}`' for label in each.labels)} | {each.help} |"
            for each in metrics
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    import sys

    sys.stdout.write(document())
