"""``penstock trail`` on a real terminal's terms: what it prints where, and its exit codes."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hosting import spine
from trail_app import AGENTS, TOOLS, Hands, mailing, parent, paying
from typer.testing import CliRunner, Result

from penstock.cli.app import cli
from penstock.cli.outcome import Exit


class Desk:
    """A deployment in which some runs have ended, and the command line."""

    def __init__(self, redis_url: str, folder: Path) -> None:
        self.name = f"t{uuid.uuid4().hex[:12]}"
        self.runs: dict[str, str] = {}
        self._environment = {
            "PENSTOCK_REDIS_URL": redis_url,
            "PENSTOCK_NAME": self.name,
            "PENSTOCK_HOME": str(folder / "home"),
            "COLUMNS": "200",
        }
        self.hands: Hands
        asyncio.run(self._work(redis_url))

    async def _work(self, redis_url: str) -> None:
        async with spine(redis_url, *AGENTS, tools=TOOLS, name=self.name) as deployment:
            await deployment.host()
            for agent in (paying, mailing, parent):
                self.runs[agent.name] = run_id = await deployment.submit(agent, "17")
                await deployment.end(run_id)
            self.hands = Hands(deployment.store)

    def __call__(self, *arguments: str) -> Result:
        result = CliRunner().invoke(cli, ["trail", *arguments], env=self._environment)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        return result

    def data(self, *arguments: str, code: Exit = Exit.OK) -> Any:
        result = self(*arguments, "--json")
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)


@pytest.fixture
def desk(redis_url: str, tmp_path: Path) -> Iterator[Desk]:
    made = Desk(redis_url, tmp_path)
    yield made
    made.hands.close()


def test_a_trail_is_a_table_or_json(desk: Desk) -> None:
    run_id = desk.runs["paying"]
    result = desk(run_id)
    assert result.exit_code == 0
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"trail of run {run_id} (job-")
    assert lines[0].endswith("agent paying: succeeded")
    assert lines[2].split() == ["time", "step", "what", "by", "whom", "detail", "link"]
    for words in (
        "asked",
        "agent paying@1",
        'pay("17"), write, key ',
        'evidence {"statement": "S-17"}',
        "ended: succeeded",
    ):
        assert words in result.stdout
    data = desk.data(run_id)
    assert data["verification"] is None
    assert [row["what"] for row in data["rows"]] == [
        "asked", "started", "called", "value", "permitted", "intent", "applied", "ended: succeeded",
    ]  # fmt: skip


def test_a_trail_that_holds(desk: Desk) -> None:
    run_id = desk.runs["paying"]
    result = desk(run_id, "--verify")
    assert result.exit_code == 0
    assert f"run {run_id}: the chain holds: 4 of 4 entries proved, head " in result.stdout
    assert "its end sealed by its owner" in result.stdout
    assert desk.data(run_id, "--verify")["verification"]["holds"] is True
    unknown = desk(desk.runs["mailing"], "--verify")
    assert unknown.exit_code == 0
    assert "now: confirmation_unknown" in unknown.stdout


def test_a_broken_trail_names_its_first_place(desk: Desk) -> None:
    run_id = desk.runs["paying"]
    entries = desk.hands.journal(run_id)
    desk.hands.rewrite(run_id, [entries[0], entries[2], entries[1], entries[3]])
    result = desk(run_id, "--verify")
    assert result.exit_code == Exit.FAILED
    assert "the chain is broken at 3 places: 1 of 4 entries" in result.stdout
    assert result.stderr.startswith(
        f"error: the trail of run {run_id} is broken, first at: entry 1 (intent pay at step 2): moved: "
    )
    data = desk.data(run_id, "--verify", code=Exit.FAILED)
    assert [finding["what"] for finding in data["verification"]["findings"]] == ["moved", "inserted", "inserted"]
    assert desk(run_id).exit_code == 0


def test_an_anchor_is_printed_and_kept_and_compared(desk: Desk) -> None:
    run_id = desk.runs["paying"]
    printed = desk(run_id, "--head")
    assert printed.exit_code == 0
    anchor = printed.stdout.strip()
    assert len(anchor) == 32
    assert desk.data(run_id, "--head") == {"run_id": run_id, "head": anchor}
    result = desk(run_id, "--against", anchor)
    assert result.exit_code == 0
    assert "note: the anchor that was kept is the seal of this end" in result.stdout
    result = desk(run_id, "--verify", "--against", "00" * 16)
    assert result.exit_code == Exit.FAILED
    assert "anchor not found" in result.stderr
    assert desk(run_id, "--against", "no hex").exit_code == Exit.BAD_INPUT
    desk.hands.cut(run_id)
    broken = desk(run_id, "--head")
    assert (broken.exit_code, broken.stdout) == (Exit.FAILED, "")


def test_child_runs_with_deep(desk: Desk) -> None:
    run_id = desk.runs["parent"]
    data = desk.data(run_id, "--deep", "--verify")
    (child,) = data["verification"]["children"]
    assert {row["run_id"] for row in data["rows"]} == {run_id, child["run_id"]}
    table = desk(run_id, "--deep", "--verify").stdout
    assert f"  run {child['run_id']}: the chain holds" in table
    assert "time" in table.splitlines()[2]
    assert "run" in table.splitlines()[2].split()
    desk.hands.cut(child["run_id"])
    result = desk(run_id, "--deep", "--verify")
    assert result.exit_code == Exit.FAILED
    assert f"the trail of run {child['run_id']} is broken, first at: cut off: " in result.stderr


def test_runs_that_are_not_there_or_cannot_be_read(desk: Desk) -> None:
    assert desk("00-0123456789abcdef01234567").exit_code == Exit.FAILED
    assert "there is no run" in desk("nonsense", "--verify").stderr
    run_id = desk.runs["paying"]
    desk.hands.set(run_id, state="gone")
    result = desk(run_id, "--verify")
    assert result.exit_code == Exit.FAILED
    assert "'gone' is not a valid RunState" in result.stderr


def test_entries_cannot_write_to_the_terminal(desk: Desk) -> None:
    run_id = desk.runs["paying"]
    desk.hands.set(run_id, reason="\x1b[2Jgone")
    result = desk(run_id, "--verify")
    assert "\x1b" not in result.output
