"""Dashboards: right by their form, made of metrics that there are, and every query gets data from a real Prometheus."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from hosting import spine, until
from trail_app import AGENTS, TOOLS, mailing, paying
from typer.testing import CliRunner

from admission.dependency import Dependency, Limit
from cluster.admission import pause
from penstock import Run, ToolCall, agent, tool
from penstock.cli.app import cli
from penstock.cli.outcome import Exit
from penstock.exporter import Exporter
from telemetry.alerts import alerts, recording_rules, rule_file
from telemetry.catalogue import METRICS
from telemetry.dashboard_panels import DASHBOARDS
from telemetry.dashboards import as_json, text_of


@tool(dependency="model")
async def ask(call: ToolCall, order: str) -> str:
    return f"answer for {order}"


@agent("asking", version="1")
async def asking(run: Run, order: str) -> str:
    """A call to a dependency."""
    return await run.call(ask, order)


PROMETHEUS = shutil.which("prometheus")
# What is rightly missing in the proof below: its server has no limit of memory.
NOTHING_TO_SHOW = {"penstock_store_memory_used_ratio"}


def queries() -> list[tuple[str, str]]:
    return [
        (f"{each.title}, {panel.title}", query.expression)
        for each in DASHBOARDS
        for panel in each.panels
        for query in panel.queries
    ]


def test_ids_are_unique_and_panels_do_not_overlap() -> None:
    assert len({each.uid for each in DASHBOARDS}) == len({each.title for each in DASHBOARDS}) == len(DASHBOARDS) == 6
    for each in DASHBOARDS:
        made = as_json(each)
        assert len({panel["id"] for panel in made["panels"]}) == len(made["panels"])
        assert len({panel["title"] for panel in made["panels"]}) == len(made["panels"])
        taken: set[tuple[int, int]] = set()
        for panel in made["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken
            assert max(x for x, _ in cells) < 24
            taken |= cells
            assert len(panel["description"]) > 20
            assert panel["targets"]
        assert text_of(each) == text_of(each)
        used = set(re.findall(r"\$\{?([a-z]+)", text_of(each)))
        assert used <= {variable["name"] for variable in made["templating"]["list"]}


def test_queries_use_metrics_that_there_are() -> None:
    recorded = {rule["record"] for rule in recording_rules()}
    used: set[str] = set()
    for _, expression in queries():
        names = set(re.findall(r"penstock[a-z_:0-9]+", expression))
        assert names
        used |= names
    assert used <= METRICS.keys() | recorded
    shown_elsewhere = {"penstock_exporter_read_seconds", "penstock_exporter_errors_total", "penstock_dependency_limit"}
    assert METRICS.keys() - used - shown_elsewhere == {"penstock_runs_ended_total"} - used, "a metric nobody looks at"


def test_runbooks_name_panels_that_there_are() -> None:
    panels = {panel.title for each in DASHBOARDS for panel in each.panels}
    named = {name for alert in alerts() for text in alert.look for name in re.findall(r'"([^"]+)"', text)}
    assert named
    assert named <= panels


def test_everything_is_exported_and_the_same_again(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for _ in range(2):
        result = CliRunner().invoke(cli, ["dashboards", "export", str(folder)])
        assert result.exit_code == 0, result.output
    found = sorted(str(place.relative_to(folder)) for place in folder.rglob("*") if place.is_file())
    assert len(found) == 8
    for place in (folder / "dashboards").iterdir():
        assert json.loads(place.read_text(encoding="utf-8"))["uid"] == place.stem
    assert yaml.safe_load((folder / "rules" / "penstock.yaml").read_text(encoding="utf-8"))["groups"]
    assert yaml.safe_load((folder / "provisioning" / "penstock.yaml").read_text(encoding="utf-8"))["providers"]


def test_what_cannot_be_exported_is_said(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["dashboards", "export", str(tmp_path), "--objective", "99"])
    assert (result.exit_code, "0.99" in result.output) == (Exit.BAD_INPUT, True)
    (tmp_path / "file").write_text("", encoding="utf-8")
    result = CliRunner().invoke(cli, ["dashboards", "export", str(tmp_path / "file")])
    assert result.exit_code == Exit.BAD_INPUT
    assert "folder" in result.output


class Prometheus:
    """A real one, that scrapes every second and is asked."""

    def __init__(self, folder: Path, target: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._url = f"http://127.0.0.1:{free.getsockname()[1]}"
        (folder / "rules.yaml").write_text(rule_file().replace("interval: 30s", "interval: 1s"), encoding="utf-8")
        job = {"job_name": "penstock", "static_configs": [{"targets": [urllib.parse.urlsplit(target).netloc]}]}
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [job],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        assert PROMETHEUS is not None
        command = [PROMETHEUS, "--config.file=prometheus.yaml", "--storage.tsdb.path=data", "--log.level=error"]
        command.append(f"--web.listen-address={self._url.removeprefix('http://')}")
        self._process = subprocess.Popen(command, cwd=folder)

    def ask(self, query: str) -> list[dict[str, Any]]:
        """What it answers; nothing while it is not ready."""
        question = urllib.parse.urlencode({"query": query})
        try:
            with urllib.request.urlopen(f"{self._url}/api/v1/query?{question}", timeout=5) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 503:
                return []
            raise AssertionError(f"{query}: {error.read().decode()}") from None
        except OSError:
            return []
        assert found["status"] == "success", found
        result: list[dict[str, Any]] = found["data"]["result"]
        return result

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)


@pytest.mark.skipif(PROMETHEUS is None, reason="no Prometheus on this machine")
async def test_every_query_gets_data_from_a_real_prometheus(redis_url: str, tmp_path: Path) -> None:
    async with spine(redis_url, *AGENTS, asking, tools=(*TOOLS, ask)) as deployment:
        deployment.dependencies["model"] = Dependency(
            "model", rate=[Limit("requests", 100, per="1m")], max_concurrency=5
        )
        await deployment.start_hub("model")
        await deployment.control()
        await deployment.host()
        await pause(deployment.store, "tenant:late", {"by": "me"})
        await deployment.submit(paying, "17", tenant="late")
        with Exporter(deployment.settings) as exporter:
            prometheus = Prometheus(tmp_path, exporter.url)
            try:
                await until(lambda: bool(prometheus.ask("penstock_up")), "the first scrape")
                ended = 0
                # Counters have to move between scrapes, or their rates say nothing.
                for _ in range(4):
                    run_ids = [await deployment.submit(each, "17") for each in (paying, asking, mailing)]
                    for run_id in run_ids:
                        await deployment.end(run_id)
                    ended += 2
                    await asyncio.sleep(1.1)
                shed = await deployment.submit(paying, "17", tenant="late", max_wait=0.001)
                await deployment.end(shed)
                counted = f'penstock_runs_ended_total{{state="succeeded"}} == {ended}'
                await until(lambda: bool(prometheus.ask(counted)), "the last scrape")
                await until(lambda: bool(prometheus.ask("sum(penstock_shed_total) == 1")), "the shed run")
                await asyncio.sleep(1.1)
                for where, query in queries():
                    asked = re.sub(r"\$(deployment|dependency)", ".+", query).replace("$__rate_interval", "20s")
                    answer = await asyncio.to_thread(prometheus.ask, asked)
                    assert answer or any(name in query for name in NOTHING_TO_SHOW), f"{where}: no data for {asked}"
                for alert in alerts():
                    await asyncio.to_thread(prometheus.ask, alert.expression)
                (unknown,) = prometheus.ask('penstock_runs{state="confirmation_unknown"}')
                assert unknown["value"][1] == "4"
            finally:
                prometheus.close()
