"""Alerts and recording rules for Prometheus, each alert with its runbook.

The burn rates are those of Google's SRE workbook, chapter 5 ("Alerting on SLOs", multiwindow, multi-burn-rate): a page
when 2 % of a month's error budget is gone in an hour or 5 % in six, a ticket when 10 % are in a day or in three.
"""

from dataclasses import dataclass
from typing import Any, Final

import yaml

DEFAULT_OBJECTIVE: Final = 0.99
"""The part of runs that should succeed, of those that succeed or fail."""
RUNBOOKS: Final = "docs/runbooks"
_WINDOWS: Final = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
_PAGE, _TICKET = "page", "ticket"


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert.

    Attributes:
        name: of it, and of its runbook.
        expression: PromQL; it fires where that has had a value for ``lasts``.
        lasts: as Prometheus writes lengths of time.
        severity: ``page`` for what somebody has to look at now, ``ticket`` for what has time.
        summary: one line; ``{{ $labels.… }}`` and ``{{ $value }}`` are filled in by Prometheus.
        means: what is wrong, and what it is not.
        look: where the cause shows: a panel, and a command.
        do: what to do.
        over: when it is over.
    """

    name: str
    expression: str
    lasts: str
    severity: str
    summary: str
    means: str
    look: tuple[str, ...]
    do: tuple[str, ...]
    over: str


def recording_rules() -> list[dict[str, str]]:
    """The part of runs that failed, over each window that a burn rate looks at."""
    total = 'sum by (deployment) (rate(penstock_runs_ended_total{{state=~"{states}"}}[{window}]))'
    return [
        {
            "record": f"penstock:run_failures:ratio_rate{window}",
            "expr": f"{total.format(states='failed', window=window)}\n/\n"
            f"{total.format(states='failed|succeeded', window=window)}",
        }
        for window in _WINDOWS
    ]


def alerts(objective: float = DEFAULT_OBJECTIVE) -> list[Alert]:
    """All alerts.

    Args:
        objective: the part of runs that should succeed, above 0 and below 1.

    Raises:
        ValueError: it is not between them.
    """
    if not 0 < objective < 1:
        raise ValueError(f"the objective is {objective}: give the part of runs that should succeed, as in 0.99")
    return [*_burning(1 - objective), *_WAITS, *_DOUBTS, *_PARTS]


def rule_file(objective: float = DEFAULT_OBJECTIVE, runbooks: str = RUNBOOKS) -> str:
    """The rules as Prometheus reads them (YAML).

    Args:
        objective: the part of runs that should succeed.
        runbooks: where the runbooks are: a path or a URL, without a slash at its end.
    """
    groups = [
        {"name": "penstock-recording", "interval": "30s", "rules": recording_rules()},
        {"name": "penstock-alerts", "rules": [_rule(each, runbooks) for each in alerts(objective)]},
    ]
    return yaml.safe_dump({"groups": groups}, sort_keys=False, width=120, allow_unicode=True)


def _rule(alert: Alert, runbooks: str) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expression,
        "for": alert.lasts,
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": alert.summary,
            "description": f"{alert.means} Look at: {alert.look[0]}",
            "runbook_url": f"{runbooks}/{alert.name}.md",
        },
    }


def runbook(alert: Alert) -> str:
    """The alert's page in docs/runbooks."""
    urgency = "Somebody has to look at it now." if alert.severity == _PAGE else "It has time until the next day."
    lines = [
        f"# {alert.name}",
        "<!-- made by `make runbooks` from telemetry/alerts.py -->",
        f"{alert.means} {urgency}",
        "",
        "```promql",
        alert.expression,
        "```",
        f"It fires when this has had a value for {alert.lasts}.",
        "",
        "## Look",
        *(f"- {each}" for each in alert.look),
        "",
        "## Do",
        *(f"{number}. {each}" for number, each in enumerate(alert.do, 1)),
        "",
        "## Over",
        alert.over,
    ]
    return "\n".join(lines) + "\n"


def _burning(budget: float) -> list[Alert]:
    return [
        _burn("PenstockRunsFailFast", budget, _PAGE, (14.4, "1h", "5m"), (6.0, "6h", "30m")),
        _burn("PenstockRunsFailSlowly", budget, _TICKET, (3.0, "1d", "2h"), (1.0, "3d", "6h")),
    ]


def _burn(name: str, budget: float, severity: str, *pairs: tuple[float, str, str]) -> Alert:
    parts = []
    for factor, long, short in pairs:
        bound = f"{factor * budget:.6g}"
        over = [f"penstock:run_failures:ratio_rate{window} > {bound}" for window in (long, short)]
        parts.append(f"({over[0]} and {over[1]})")
    return Alert(
        name,
        "\nor\n".join(parts),
        "2m",
        severity,
        "{{ $value | humanizePercentage }} of runs fail in {{ $labels.deployment }}",
        "More runs fail than the objective allows. Runs that were shed or cancelled, and those of which nobody "
        "knows, do not count.",
        (
            'dashboard Overview, panel "Runs that ended": since when; Agents and tenants, "Runs over, by agent": whose',
            "`penstock runs --state failed`, then `penstock why RUN` and `penstock trace RUN` for two or three of them",
        ),
        (
            "Look for what they have in common: an agent's version, a dependency, a host.",
            "A version: `penstock pause --agent NAME` holds its runs and loses none; deploy the version before.",
            "A dependency: `penstock deps NAME`; `penstock deps open NAME` stops calls to it, and runs wait instead.",
        ),
        "The ratio over the shorter window is below the bound. Runs that have failed stay so.",
    )


_WAITS: Final = (
    Alert(
        "PenstockCriticalRunsWait",
        'penstock_queue_predicted_wait_seconds{class="critical"}\n'
        '  > 0.5 * penstock_queue_max_wait_seconds{class="critical"}',
        "1m",
        _PAGE,
        "critical runs of {{ $labels.deployment }} wait for {{ $value | humanizeDuration }}",
        "Critical runs wait for more than half of what they may, and are shed soon; less valuable ones already are.",
        (
            'dashboard Admission, panels "Predicted wait" and "Load": how much comes, and of which class',
            "`penstock queue`: depth, drain rate and what is shed; `penstock hosts`",
        ),
        (
            "Too few hosts: start more, or find out why they are gone.",
            "Too much critical work: whose? `penstock pause --tenant NAME`, or a cap in the rules of admission.",
            "Runs that take longer than they did: dashboard Dependencies.",
        ),
        "The predicted wait is below half of the greatest wait.",
    ),
    Alert(
        "PenstockValuableRunsShed",
        'sum by (deployment, class) (rate(penstock_shed_total{class=~"critical|high"}[5m])) > 0',
        "2m",
        _TICKET,
        "{{ $labels.class }} runs of {{ $labels.deployment }} are shed",
        "There is more work of high value than hosts can do, or a tenant is over its cap.",
        ('dashboard Admission, panel "Shed, by reason"', "`penstock queue`: reasons, and who is over a cap"),
        (
            "By the reason: `queue` and `hosts` want more hosts, `dependency:NAME` wants that dependency mended, "
            "`store` wants memory, `tenant_…` is that tenant's own cap.",
        ),
        "Nothing of these classes has been shed for five minutes. Who was shed was told when to come back.",
    ),
    Alert(
        "PenstockNobodyWorks",
        'sum by (deployment) (penstock_queue_depth) > 0 and on (deployment) penstock_hosts{state="live"} == 0',
        "1m",
        _PAGE,
        "runs of {{ $labels.deployment }} wait and no host is live",
        "Runs are queued and nobody claims them. Nothing is lost: they wait until their bounds.",
        ('dashboard Hosts, panel "Hosts"', "`penstock hosts`; `penstock doctor` on the machine"),
        (
            "Is Ray up? Is every host draining (`penstock drain HOST --undo`)?",
            "`penstock up` where there is no deployment.",
        ),
        "A host is live.",
    ),
)

_DOUBTS: Final = (
    Alert(
        "PenstockUnknownForLong",
        "penstock_unknown_oldest_seconds > 3600",
        "5m",
        _TICKET,
        "an effect in {{ $labels.deployment }} has been unknown for {{ $value | humanizeDuration }}",
        "Nobody can prove whether an effect happened; its run waits for a person.",
        (
            'dashboard Effects and approvals, panel "Unknown"',
            "`penstock unknown`: which effects, since when, who settles them",
        ),
        (
            "Ask the other side, with the key that `penstock unknown` shows.",
            "`penstock resolve RUN STEP --applied`, `--not-applied`, or `--ask-again` where it can be asked once more.",
        ),
        "Nothing has been unknown for longer than an hour.",
    ),
    Alert(
        "PenstockApprovalsExpire",
        "penstock_approvals_pending > 0 and penstock_approvals_next_expiry_seconds < 600",
        "1m",
        _TICKET,
        "an approval of {{ $labels.deployment }} expires in {{ $value }}",
        "Somebody is asked to approve an action, and the question is about to expire; its step is refused then.",
        (
            'dashboard Effects and approvals, panel "Approvals"',
            "`penstock approvals`: what is asked, of whom, until when",
        ),
        ("`penstock approve ID` or `penstock deny ID`.",),
        "It is decided, or has expired.",
    ),
)

_PARTS: Final = (
    Alert(
        "PenstockBreakerOpen",
        "penstock_dependency_breaker_open_seconds > 300",
        "1m",
        _TICKET,
        "{{ $labels.dependency }} has been closed to calls for {{ $value | humanizeDuration }}",
        "A dependency fails or is slow, so calls to it wait. Runs that need it wait unloaded; nothing is lost.",
        (
            'dashboard Dependencies, panel "Breakers"',
            "`penstock deps NAME`: why it opened, what the last probes came to; `penstock why RUN` of a run that waits",
        ),
        (
            "Is the dependency down? Tell whoever runs it.",
            "`penstock deps probe NAME` when it is back, `penstock deps close NAME` when you know better.",
        ),
        "The breaker has closed.",
    ),
    Alert(
        "PenstockHubSilent",
        "penstock_dependency_hub_age_seconds > 15 and on (deployment) sum by (deployment) (penstock_runs) > 0",
        "1m",
        _TICKET,
        "the hub of {{ $labels.dependency }} has been silent for {{ $value | humanizeDuration }}",
        "Nobody hands out permits. Hosts go on with a safe share of the limits: less goes through, never more.",
        ('dashboard Dependencies, panel "Hubs"', "`penstock deps`; Ray's dashboard for the actor"),
        ("Ray restarts hubs by itself: is there a node that may run one?",),
        "The hub has spoken within 15 seconds.",
    ),
    Alert(
        "PenstockHostLost",
        'penstock_hosts{state="expired"} > 0',
        "1m",
        _TICKET,
        "{{ $value }} hosts of {{ $labels.deployment }} have let their leases run out",
        "A host is dead or cut off, and nobody has taken over its runs for a minute, which any live host does at once.",
        ('dashboard Hosts, panels "Hosts" and "Lease age"', "`penstock hosts`; `penstock why RUN` of one of its runs"),
        ("Is any host live? Without one nobody reaps.", "Can live hosts reach the store? Their logs say so."),
        "No lease is out.",
    ),
    Alert(
        "PenstockHostIsLate",
        "penstock_host_loop_lag_seconds > 0.25",
        "5m",
        _TICKET,
        "the event loop of {{ $labels.host }} is {{ $value | humanizeDuration }} late",
        "Something in an agent or a tool blocks its host; all its runs are slow.",
        ('dashboard Hosts, panel "Event loops"', "the host's log names what blocks it"),
        ("Make it asynchronous, a plain function (it gets a thread), or a tool with `resources` (a process).",),
        "The lag is below a quarter of a second.",
    ),
    Alert(
        "PenstockControllerSilent",
        'penstock_controller_age_seconds{controller="admission"} > 30\n'
        'and on (deployment) penstock_hosts{state="live"} > 0',
        "1m",
        _TICKET,
        "the admission controller of {{ $labels.deployment }} has been silent for {{ $value | humanizeDuration }}",
        "The door goes by an old policy: order and bounds hold, predictions grow stale.",
        ('dashboard Admission, panel "Controller"', "`penstock queue` says how old its word is"),
        ("Ray restarts it by itself: is there a node that may run it? Can it reach the store?",),
        "It has spoken within 30 seconds.",
    ),
    Alert(
        "PenstockStoreNearlyFull",
        "penstock_store_memory_used_ratio > 0.85",
        "1m",
        _PAGE,
        "the store of {{ $labels.deployment }} is {{ $value | humanizePercentage }} full",
        "Admission sheds before the store refuses writes, the least valuable first; running runs go on.",
        ('dashboard Overview, panel "Store"', "`penstock queue`: `store` as a reason; `penstock admission show`"),
        ("Give it more memory, or shorten the retention of ended runs (`PENSTOCK_RETENTION`).",),
        "It is less than 85 % full.",
    ),
    Alert(
        "PenstockStoreUnreadable",
        "penstock_up == 0",
        "1m",
        _PAGE,
        "the store of {{ $labels.deployment }} cannot be read",
        "The exporter gets no answer within five seconds. Hosts wait for the store; nothing acknowledged is lost.",
        ("the exporter's log has the error", "`penstock doctor`; the server's own log and its machine"),
        ("Bring the server back. Runs go on by themselves, also after minutes.",),
        "The exporter can read it again.",
    ),
    Alert(
        "PenstockNoHeartbeat",
        "absent(penstock_up)",
        "2m",
        _PAGE,
        "nobody tells how Penstock is",
        "No exporter is scraped: whatever goes wrong now, no other alert will say it.",
        ("Prometheus' page of targets", "`penstock exporter` on a machine that reaches the store"),
        ("Start the exporter, or mend the scrape configuration.",),
        "`penstock_up` is there.",
    ),
)


def main(folder: str = RUNBOOKS) -> None:
    """Writes the runbooks."""
    from pathlib import Path

    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    for alert in alerts():
        (place / f"{alert.name}.md").write_text(runbook(alert), encoding="utf-8")


if __name__ == "__main__":
    main()
