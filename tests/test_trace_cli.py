"""``penstock trace`` on runs of real hosts and a real server."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from hosting import spine
from trail_app import AGENTS, TOOLS, mailing, parent, paying
from typer.testing import CliRunner

from penstock.cli.app import cli
from penstock.cli.outcome import Exit
from penstock.client import Client


@pytest.fixture
def runs(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A run of each agent, by its name; the command line finds their deployment."""
    name = f"t{uuid.uuid4().hex[:12]}"
    for variable, value in {
        "PENSTOCK_REDIS_URL": redis_url,
        "PENSTOCK_NAME": name,
        "PENSTOCK_HOME": str(tmp_path / "home"),
        "COLUMNS": "220",
    }.items():
        monkeypatch.setenv(variable, value)

    async def work() -> dict[str, str]:
        made: dict[str, str] = {}
        async with spine(redis_url, *AGENTS, tools=TOOLS, name=name) as deployment:
            await deployment.host()
            for agent in (paying, mailing, parent):
                made[agent.name] = await deployment.submit(agent, "17")
                await deployment.end(made[agent.name])
        return made

    return asyncio.run(work())


def traced(*arguments: str, code: Exit = Exit.OK) -> str:
    result = CliRunner().invoke(cli, ["trace", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    return result.output


def data(run_id: str) -> Any:
    return json.loads(traced(run_id, "--json"))


def test_a_waterfall_shows_every_step(runs: dict[str, str]) -> None:
    shown = traced(runs["paying"])
    found = data(runs["paying"])
    root, queue, *steps = found["spans"]
    assert (root["name"], root["parent_id"], queue["name"]) == ("invoke_agent paying", "", "queue")
    assert steps, "the agent has steps"
    for span in found["spans"]:
        assert span["name"] in shown
        assert span["ended_ms"] is not None
    assert found["trace_id"] in shown
    assert "█" in shown
    assert all(span["parent_id"] == root["span_id"] for span in found["spans"][1:])
    receipts = [span["attributes"].get("penstock.receipt") for span in steps]
    assert "applied" in receipts


def test_parent_and_child_are_linked_both_ways(runs: dict[str, str]) -> None:
    above = data(runs["parent"])
    (step,) = (span for span in above["spans"] if span["attributes"].get("penstock.child.run.id"))
    below = data(step["attributes"]["penstock.child.run.id"])
    assert below["trace_id"] != above["trace_id"]
    assert [link["trace_id"] for link in step["links"]] == [below["trace_id"]]
    assert [link["span_id"] for link in below["spans"][0]["links"]] == [above["spans"][0]["span_id"]]


def test_a_run_that_is_not_there_is_named(runs: dict[str, str]) -> None:
    wrong = "00-" + "f" * 24
    assert wrong in traced(wrong, code=Exit.FAILED)
    assert "no-run" in traced("no-run", code=Exit.FAILED)


def test_whoever_asks_gets_the_same(runs: dict[str, str]) -> None:
    async def from_python() -> str:
        async with Client() as client:
            return (await client.trace(runs["mailing"])).trace_id

    assert asyncio.run(from_python()) == data(runs["mailing"])["trace_id"]
