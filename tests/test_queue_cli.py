"""Submitting into a queue that refuses, holding it, and looking at it: the command line against a real server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from doors import SHUT, classes, tell
from handwork import HOST, claim_all, end, publish_catalog, settings_for
from typer.testing import CliRunner, Result

from admission.admission_policy import TenantPolicy
from cluster.config import Settings
from cluster.records import Claim
from cluster.store import Store
from penstock.cli.app import cli
from penstock.cli.outcome import Exit

ROOT = Path(__file__).parent.parent


class Deployment:
    """A store with a catalog, and the command line that finds it."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        assert settings.redis_url is not None
        self.environment = {
            "PENSTOCK_REDIS_URL": settings.redis_url.get_secret_value(),
            "PENSTOCK_NAME": settings.name,
            "PENSTOCK_PARTITIONS": "2",
            "PENSTOCK_HOME": str(folder / "home"),
            "COLUMNS": "200",
        }

    def __call__(self, *arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(cli, list(arguments), env=self.environment)
        assert "Traceback" not in result.output
        assert result.exit_code == code, result.output
        return result

    def data(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self(*arguments, "--json", code=code).stdout)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "penstock.cli", *arguments],
            env={**os.environ, **self.environment, "PYTHONPATH": str(ROOT)},
            cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def file(self, *jobs: dict[str, Any]) -> str:
        place = self.folder / "jobs.jsonl"
        lines = ({"custom_id": f"j{n}", "agent": "echo", "input": {"text": "x"}} | job for n, job in enumerate(jobs))
        place.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(place)

    def with_store(self, work: Callable[[Store], Awaitable[Any]]) -> Any:
        async def go() -> Any:
            store = await Store.open(self.settings)
            try:
                return await work(store)
            finally:
                await store.close()

        return asyncio.run(go())

    def tell(self, **fields: Any) -> None:
        self.with_store(lambda store: tell(store, **fields))

    def claim(self) -> list[Claim]:
        claims: list[Claim] = self.with_store(claim_all)
        return claims


@pytest.fixture
def deployment(redis_url: str, tmp_path: Path) -> Deployment:
    made = Deployment(settings_for(redis_url, f"t-{uuid.uuid4().hex[:12]}", partitions=2), tmp_path)
    made.with_store(publish_catalog)
    return made


# Submitting


def test_a_batch_of_which_some_is_refused(deployment: Deployment) -> None:
    deployment.tell(classes=classes(low=SHUT), tenants={"trial": TenantPolicy(ranks=(4,))})
    file = deployment.file({}, {"value": "low", "max_wait": "5s"}, {"tenant": "trial"}, {"value": "high:99"})
    refused = deployment.folder / "refused.jsonl"
    result = deployment("submit", file, "--batch", "b", "--refused", str(refused), code=Exit.REFUSED)
    assert result.stdout == "b\n"
    assert "batch b: 2 accepted, 2 refused" in result.stderr
    assert "predicted starts: in 0.0 s" in result.stderr
    assert "its tenant may not submit this class" in result.stderr
    assert "--retry-shed" in result.stderr
    lines = [json.loads(line) for line in refused.read_text().splitlines()]
    assert {(line["custom_id"], line["line"], line["reason"], line["by_itself"]) for line in lines} == {
        ("j1", 2, "queue", True), ("j2", 3, "tenant_class", False),
    }  # fmt: skip
    report = deployment.data("submit", file, "--batch", "b", code=Exit.REFUSED)
    assert (report["accepted"], report["existing"], report["refused"]) == (0, 2, 2)
    assert {each["reason"] for each in report["reasons"]} == {"queue", "tenant_class"}


def test_a_batch_that_is_refused_as_a_whole_is_not_watched(deployment: Deployment) -> None:
    deployment.tell(tenant_default=TenantPolicy(ranks=(4,)))
    result = deployment("submit", deployment.file({}), "--watch", code=Exit.REFUSED)
    assert "0 accepted, 1 refused" in result.stderr
    assert "come back when there is room" not in result.stderr
    bad = deployment("submit", deployment.file({}), "--refused", "/nowhere/refused.jsonl", code=Exit.FAILED)
    assert "/nowhere/refused.jsonl" in bad.stderr


def test_interrupted_while_refused_jobs_wait(deployment: Deployment) -> None:
    deployment.tell(classes=classes(low=SHUT))
    file = deployment.file({}, {"value": "low", "max_wait": 5})
    process = deployment.start("submit", file, "--batch", "b", "--retry-shed")
    assert process.stderr is not None
    assert "1 accepted, 1 to come back" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=20)
    assert process.returncode == Exit.INTERRUPTED
    assert "interrupted while submitting (1 accepted, 1 to come back" in told
    deployment.tell()
    done = deployment("submit", file, "--batch", "b", "--retry-shed")
    assert "1 accepted, 1 were there already" in done.stderr


# Holding


def test_pause_and_resume(deployment: Deployment) -> None:
    deployment("submit", deployment.file({"tenant": "acme"}, {}, {"value": "low"}), "--batch", "b")
    told = deployment("pause", "--tenant", "acme", "--why", "invoice unpaid").stderr
    assert "tenant acme is paused" in told
    assert "penstock resume --tenant acme" in told
    deployment("pause", "--class", "low")
    claims = deployment.claim()
    assert [claim.custom_id for claim in claims] == ["j1"]
    deployment.with_store(lambda store: end(store, claims))
    (held,) = [
        run for run in map(json.loads, deployment("runs", "--json").stdout.splitlines()) if run["custom_id"] == "j0"
    ]
    why = deployment.data("why", held["run_id"])
    assert why["reason"].startswith("tenant acme is paused by ")
    assert "invoice unpaid" in why["reason"]
    view = deployment.data("queue")
    assert [pause["what"] for pause in view["paused"]] == ["class:low", "tenant:acme"]
    assert (view["queued"], view["aside"]) == (0, 2)
    still = deployment("resume", "--class", "low").stderr
    assert "class low goes on" in still
    assert "still paused: tenant acme is paused by" in still
    assert deployment.data("resume", "--tenant", "acme")["was_paused"] is True
    assert sorted(claim.custom_id for claim in deployment.claim()) == ["j0", "j2"]
    deployment("pause", "--agent", "echo", "--json")
    deployment("resume", "--agent", "echo")


def test_the_whole_queue_is_paused(deployment: Deployment) -> None:
    deployment("pause", "--why", "the store moves")
    assert "1 accepted" in deployment("submit", deployment.file({}), "--batch", "b").stderr
    assert deployment.claim() == []
    assert "! the whole queue is paused by " in deployment("queue").stdout
    deployment("resume")
    assert len(deployment.claim()) == 1


@pytest.mark.parametrize(
    ("arguments", "told", "code"),
    [
        (["pause", "--agent", "ecco"], "there is no agent 'ecco'; did you mean 'echo'?", Exit.FAILED),
        (["pause", "--class", "huge"], "there is no class 'huge'; classes: critical", Exit.BAD_INPUT),
        (["pause", "--tenant", "a", "--agent", "echo"], "cannot be paused together", Exit.BAD_INPUT),
        (["pause", "--tenant", "a\nb"], "can be no tenant's name", Exit.BAD_INPUT),
        (["pause", "--why", "x" * 1001], "the reason has 1,001 characters", Exit.BAD_INPUT),
        (["resume", "--tenant", "nobody"], "tenant nobody was not paused", Exit.FAILED),
        (["resume"], "the whole queue was not paused", Exit.FAILED),
    ],
)
def test_what_cannot_be_held(deployment: Deployment, arguments: list[str], told: str, code: int) -> None:
    assert told in deployment(*arguments, code=code).stderr


# Looking


def test_the_queue_without_a_controller(deployment: Deployment) -> None:
    deployment("submit", deployment.file({}, {"tenant": "acme"}, {"value": "high"}), "--batch", "b")
    shown = deployment("queue").stdout
    assert "3 queued, 0 running" in shown
    assert "no admission controller has said anything yet" in shown
    view = deployment.data("queue", "--tenant", "acme")
    assert [(each["tenant"], each["queued"]) for each in view["tenants"]] == [("acme", 1)]
    assert {each["name"]: each["queued"] for each in view["classes"] if each["queued"]} == {"high": 1, "normal": 2}


def test_why_tells_place_and_predicted_start(deployment: Deployment) -> None:
    deployment.tell(classes=classes(normal=SHUT))
    deployment.with_store(lambda store: store.heartbeat(HOST, "{}"))
    deployment("submit", deployment.file({}, {"value": "high"}), "--batch", "b")
    run = json.loads(deployment("runs", "--state", "queued", "--json").stdout.splitlines()[0])
    why = deployment.data("why", run["run_id"])
    assert "predicted to start in " in why["next"]
    assert "about place " in why["next"]


def test_watching_the_queue(deployment: Deployment) -> None:
    process = deployment.start("queue", "--watch", "--json")
    assert process.stdout is not None
    first, second = (json.loads(process.stdout.readline()) for _ in range(2))
    assert second["now_ms"] > first["now_ms"]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == Exit.INTERRUPTED
