"""Alerts: Prometheus' own tool says that the rules are right, and that each fires when it should and only then."""

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from telemetry.alerts import alerts, recording_rules, rule_file, runbook
from telemetry.catalogue import METRICS

ROOT = Path(__file__).resolve().parents[1]
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool (of Prometheus) is not on this machine")
D = 'deployment="d"'


def ended(failed: str, succeeded: str) -> dict[str, str]:
    return {
        f'penstock_runs_ended_total{{{D},state="failed"}}': failed,
        f'penstock_runs_ended_total{{{D},state="succeeded"}}': succeeded,
    }


UP = {f"penstock_up{{{D}}}": "1x20"}
# Of each alert: series for which it fires, when to look, and series that are just not bad enough.
CASES: Final[dict[str, tuple[dict[str, str], str, dict[str, str]]]] = {
    "PenstockRunsFailFast": (ended("0+20x200", "0+80x200"), "90m", ended("0+5x200", "0+95x200")),
    "PenstockRunsFailSlowly": (ended("0+5x400", "0+95x400"), "300m", ended("0+5x400", "0+995x400")),
    "PenstockCriticalRunsWait": (
        {
            f'penstock_queue_predicted_wait_seconds{{{D},class="critical"}}': "20x10",
            f'penstock_queue_max_wait_seconds{{{D},class="critical"}}': "30x10",
        },
        "5m",
        {
            f'penstock_queue_predicted_wait_seconds{{{D},class="critical"}}': "10x10",
            f'penstock_queue_max_wait_seconds{{{D},class="critical"}}': "30x10",
        },
    ),
    "PenstockValuableRunsShed": (
        {f'penstock_shed_total{{{D},class="high",reason="queue",when="door"}}': "0+6x20"},
        "10m",
        {f'penstock_shed_total{{{D},class="low",reason="queue",when="door"}}': "0+6x20"},
    ),
    "PenstockNobodyWorks": (
        {f'penstock_queue_depth{{{D},class="low"}}': "3x10", f'penstock_hosts{{{D},state="live"}}': "0x10"},
        "5m",
        {f'penstock_queue_depth{{{D},class="low"}}': "3x10", f'penstock_hosts{{{D},state="live"}}': "1x10"},
    ),
    "PenstockUnknownForLong": (
        {f"penstock_unknown_oldest_seconds{{{D}}}": "3600+60x20"},
        "10m",
        {f"penstock_unknown_oldest_seconds{{{D}}}": "600+60x20"},
    ),
    "PenstockApprovalsExpire": (
        {
            f"penstock_approvals_pending{{{D}}}": "1x20",
            f"penstock_approvals_next_expiry_seconds{{{D}}}": "900-60x12",
        },
        "8m",
        {f"penstock_approvals_pending{{{D}}}": "0x20", f"penstock_approvals_next_expiry_seconds{{{D}}}": "0x20"},
    ),
    "PenstockBreakerOpen": (
        {f'penstock_dependency_breaker_open_seconds{{{D},dependency="model"}}': "0+60x20"},
        "9m",
        {f'penstock_dependency_breaker_open_seconds{{{D},dependency="model"}}': "60 120 180 240 0x20"},
    ),
    "PenstockHubSilent": (
        {
            f'penstock_dependency_hub_age_seconds{{{D},dependency="model"}}': "0+10x20",
            f'penstock_runs{{{D},state="running"}}': "1x20",
        },
        "6m",
        {
            f'penstock_dependency_hub_age_seconds{{{D},dependency="model"}}': "0+10x20",
            f'penstock_runs{{{D},state="running"}}': "0x20",
        },
    ),
    "PenstockHostLost": (
        {f'penstock_hosts{{{D},state="expired"}}': "1x20"},
        "5m",
        {f'penstock_hosts{{{D},state="expired"}}': "0 1 0x20"},
    ),
    "PenstockHostIsLate": (
        {f'penstock_host_loop_lag_seconds{{{D},host="h"}}': "0.4x20"},
        "8m",
        {f'penstock_host_loop_lag_seconds{{{D},host="h"}}': "0.1x20"},
    ),
    "PenstockControllerSilent": (
        {
            f'penstock_controller_age_seconds{{{D},controller="admission"}}': "0+20x20",
            f'penstock_hosts{{{D},state="live"}}': "2x20",
        },
        "6m",
        {
            f'penstock_controller_age_seconds{{{D},controller="admission"}}': "1x20",
            f'penstock_hosts{{{D},state="live"}}': "2x20",
        },
    ),
    "PenstockStoreNearlyFull": (
        {f"penstock_store_memory_used_ratio{{{D}}}": "0.9x20"},
        "3m",
        {f"penstock_store_memory_used_ratio{{{D}}}": "0.8x20"},
    ),
    "PenstockStoreUnreadable": ({f"penstock_up{{{D}}}": "0x20"}, "3m", {f"penstock_up{{{D}}}": "1 0 1x20"}),
    "PenstockNoHeartbeat": ({}, "5m", UP),
}


def test_every_alert_has_a_case() -> None:
    assert [alert.name for alert in alerts()] == list(CASES)


def _tests() -> Iterable[dict[str, Any]]:
    for name, (bad, at, good) in CASES.items():
        for series, samples in ((bad, [{"labels": "{}", "value": 1}]), (good, [])):
            yield {
                "interval": "1m",
                "input_series": [{"series": key, "values": values} for key, values in series.items()],
                "promql_expr_test": [
                    {
                        "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}})',
                        "eval_time": at,
                        "exp_samples": samples,
                    }
                ],
            }


@needs_promtool
def test_each_alert_fires_when_it_should_and_is_silent_otherwise(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(rule_file(), encoding="utf-8")
    tests = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": list(_tests())}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests), encoding="utf-8")
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", "tests.yaml"]):
        assert PROMTOOL is not None
        done = subprocess.run([PROMTOOL, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_a_threshold_that_is_wrong_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(rule_file().replace("> 0.85", "> 0.95"), encoding="utf-8")
    tests = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": list(_tests())}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests), encoding="utf-8")
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, "test", "rules", "tests.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0


def test_rules_use_metrics_that_there_are() -> None:
    recorded = {rule["record"] for rule in recording_rules()}
    for expression in [*(alert.expression for alert in alerts()), *(rule["expr"] for rule in recording_rules())]:
        used = set(re.findall(r"penstock[a-z_:0-9]+", expression))
        assert used
        assert used <= METRICS.keys() | recorded


def test_every_alert_has_its_runbook() -> None:
    folder = ROOT / "docs" / "runbooks"
    assert {place.stem for place in folder.glob("*.md")} == set(CASES)
    for alert in alerts():
        assert (folder / f"{alert.name}.md").read_text(encoding="utf-8") == runbook(alert), "run `make runbooks`"


def test_the_objective_is_checked() -> None:
    with pytest.raises(ValueError, match=r"0\.99"):
        alerts(99)
    assert "0.0144" in rule_file(0.999)
