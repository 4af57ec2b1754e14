"""The exporter: its figures are those of records and counters, whatever died; that the store is away is said."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hosting import Spine, spine, until
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from trail_app import AGENTS, TOOLS, mailing, overreaching, paying, sleeping

from admission.queue_statistics import AgentStatistics, PartitionStatistics
from cluster.admission import pause
from cluster.config import Settings
from cluster.embedded import EmbeddedValkey
from cluster.lifecycle import RunState
from penstock.exporter import Exporter, ExporterError
from penstock.metric_samples import Bounded, Sample
from telemetry.catalogue import METRICS, document

ROOT = Path(__file__).resolve().parents[1]
Scraped = dict[str, dict[tuple[tuple[str, str], ...], float]]


def scraped(url: str) -> Scraped:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found: Scraped = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "deployment"}
            found.setdefault(sample.name, {})[tuple(sorted(labels.items()))] = sample.value
    return found


def value(found: Scraped, name: str, **labels: str) -> float:
    return found[name][tuple(sorted(labels.items()))]


@pytest.fixture
async def deployment(redis_url: str) -> AsyncIterator[Spine]:
    async with spine(redis_url, *AGENTS, tools=TOOLS) as made:
        yield made


async def in_thread(url: str) -> Scraped:
    return await asyncio.to_thread(scraped, url)


async def test_figures_agree_with_records(deployment: Spine) -> None:
    await deployment.control()
    host = await deployment.host()
    ends = [await deployment.submit(agent, "17") for agent in (paying, paying, paying, mailing)]
    records = [await deployment.end(run_id) for run_id in ends]
    waits = await deployment.submit(sleeping, "17")
    await deployment.state(waits, RunState.WAITING)
    await pause(deployment.store, "tenant:late", {"by": "me"})
    late = await deployment.submit(paying, "17", tenant="late", value="low")
    with Exporter(deployment.settings) as exporter:

        async def all_there() -> bool:
            found = await in_thread(exporter.url)
            return value(found, "penstock_host_runs", host=host.label) == 0 and "penstock_queue_drain_rate" in found

        await until(all_there, "the host's and the controller's word")
        found = await in_thread(exporter.url)
    assert found.keys() <= METRICS.keys()
    for name, values in found.items():
        assert all(tuple(sorted(METRICS[name].labels)) == tuple(label for label, _ in labels) for labels in values)
    assert value(found, "penstock_up") == 1
    assert value(found, "penstock_runs_ended_total", state="succeeded") == 3
    assert value(found, "penstock_runs", state="confirmation_unknown") == 1
    assert value(found, "penstock_runs", state="waiting") == 1
    assert value(found, "penstock_runs", state="queued") == 1
    assert value(found, "penstock_runs_started_total", **{"class": "normal"}) == 5
    assert value(found, "penstock_paused", what="tenant:late") == 1
    assert (
        value(found, "penstock_queue_depth", **{"class": "low"})
        + value(found, "penstock_queue_aside", **{"class": "low"})
        == 1
    )
    assert value(found, "penstock_tenant_queued", tenant="late") == 1
    assert value(found, "penstock_agent_runs_ended_total", agent="paying") == 3
    (unknown,) = (record for record in records if record.state is RunState.CONFIRMATION_UNKNOWN)
    age_s = (await deployment.store.server_ms() - unknown.since_ms) / 1000
    assert value(found, "penstock_unknown_oldest_seconds") == pytest.approx(age_s, abs=2)
    assert value(found, "penstock_hosts", state="live") == 1
    assert value(found, "penstock_controller_age_seconds", controller="admission") < 5
    assert late.startswith(late[:2])


async def test_what_died_is_still_counted(deployment: Spine) -> None:
    host = await deployment.host()
    await deployment.end(await deployment.submit(paying, "17"))
    with Exporter(deployment.settings) as exporter:
        before = await in_thread(exporter.url)
        await deployment.lose(host)
        after = await in_thread(exporter.url)
    assert value(before, "penstock_hosts", state="live") == 1
    assert value(after, "penstock_hosts", state="live") == 0
    for name in ("penstock_steps_total", "penstock_runs_ended_total"):
        assert after[name] == before[name]


async def test_refused_and_shed_jobs_are_counted_by_reason(deployment: Spine) -> None:
    await deployment.submit(overreaching, "17", max_wait=0.001)
    host = await deployment.host()
    with Exporter(deployment.settings) as exporter:

        async def shed() -> bool:
            found = await in_thread(exporter.url)
            return sum(found.get("penstock_shed_total", {}).values()) == 1

        await until(shed, "the shed job in the metrics")
        found = await in_thread(exporter.url)
    (labels,) = (labels for labels, count in found["penstock_shed_total"].items() if count)
    assert dict(labels)["class"] == "normal"
    assert dict(labels)["reason"]
    assert host.label


def test_a_store_that_is_away_is_said(tmp_path: Path) -> None:
    store = EmbeddedValkey(tmp_path / "store")
    store.start()
    assert store.pid is not None
    try:
        settings = Settings(name=f"t{uuid.uuid4().hex[:8]}", redis_url=SecretStr(store.url), home=tmp_path)
        with Exporter(settings) as exporter:
            assert value(scraped(exporter.url), "penstock_up") == 1
            os.kill(store.pid, signal.SIGSTOP)
            try:
                began = time.monotonic()
                found = scraped(exporter.url)
                assert time.monotonic() - began < 9
            finally:
                os.kill(store.pid, signal.SIGCONT)
            assert value(found, "penstock_up") == 0
            assert value(found, "penstock_exporter_errors_total") == 1
            assert "penstock_runs" not in found, "what is not known is not shown"
            assert value(scraped(exporter.url), "penstock_up") == 1
    finally:
        store.stop()


def test_an_address_in_use_is_refused(redis_url: str, tmp_path: Path) -> None:
    settings = Settings(name=f"t{uuid.uuid4().hex[:8]}", redis_url=SecretStr(redis_url), home=tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ExporterError, match="--port"), Exporter(settings, port=taken.getsockname()[1]):
            pass


def test_the_command_serves_until_it_is_ended(redis_url: str, tmp_path: Path) -> None:
    environment = os.environ | {
        "PENSTOCK_REDIS_URL": redis_url, "PENSTOCK_NAME": f"t{uuid.uuid4().hex[:8]}", "PENSTOCK_HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = [sys.executable, "-m", "penstock.cli", "exporter", "--port", "0"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/metrics", said)
        assert found, said
        assert value(scraped(found[0]), "penstock_up") == 1
        process.terminate()
        assert process.wait(10) == 0


def test_names_are_bounded() -> None:
    partition = PartitionStatistics(agents={f"agent-{i}": AgentStatistics(ended=1) for i in range(300)})
    bounded, name = Bounded(), "penstock_agent_runs_ended_total"
    samples = [Sample(name, (agent,), float(facts.ended)) for agent, facts in partition.agents.items()]
    first = bounded.total(samples, {name: ("agent",)})[name]
    assert len(first) == 101
    assert first[("_other",)] == 200
    # Whatever order they come in, and whoever is new: who was told apart stays so, so that counters only grow.
    again = bounded.total([Sample(name, ("agent-new",), 5.0), *reversed(samples)], {name: ("agent",)})[name]
    assert again[("_other",)] == 205
    assert first.keys() == again.keys()


def test_the_catalogue_is_documented() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8") == document(), "run `make metrics-doc`"
    for name, metric in METRICS.items():
        assert name.endswith("_total") == (metric.kind == "counter")
        assert not {"run", "step", "custom_id", "batch"} & set(metric.labels), "those have no bound"
