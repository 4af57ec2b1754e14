"""The command `penstock eval` against real hosts: tables, JSON, page, exit codes; and pages of hand-made findings."""

from __future__ import annotations

import asyncio
import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hosting import Spine, spine
from typer.testing import CliRunner, Result

from penstock import Risk, Run, RunJournal, ToolCall, agent, tool
from penstock.cli.app import cli
from penstock.cli.outcome import Exit
from penstock.evals.analysis import JudgedRun, VersionReport, analysed, compared
from penstock.evals.journal import RunStep
from penstock.evals.page import page
from penstock.evals.paths import Way
from penstock.evals.pictures import tree
from penstock.evals.running import Evaluation
from penstock.evals.spec import EvalSpec


@tool(risk=Risk.WRITE, simulate=lambda call, what: f"pretended {what}")
async def ship(call: ToolCall, what: str) -> str:
    raise AssertionError("never")


@tool()
async def weigh(call: ToolCall, what: str) -> int:
    return len(what)


@agent("shipper", version="1")
async def shipper(run: Run, what: str) -> str:
    """Ships what is light, and in half of its runs also what is heavy."""
    if await run.call(weigh, what) < 5 or run.random() < 0.5:
        return await run.call(ship, what)
    return "too heavy"


@agent("shipper", version="2")
async def careless(run: Run, what: str) -> str:
    return await run.call(ship, what)


CHECKS = """
from penstock import RunJournal, invariant


@invariant
def nothing_heavy(run: RunJournal) -> str | None:
    return f"shipped {run.input}" if len(run.input) > 5 and run.calls("ship") else None
"""
SPEC = """
name: shipping
jobs:
  - {custom_id: light, agent: shipper, input: cup}
  - {custom_id: heavy, agent: shipper, input: cupboard}
repeat: 16
version: 1
"""


class Reader(HTMLParser):
    """What a page has."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href", "action")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    return reader


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "evals.yaml"
    path.write_text(SPEC)
    return path


def invoked(deployment: Spine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs a command as a process of its own would, beside the hosts of this test's loop."""
    url = deployment.settings.redis_url
    assert url is not None
    for name, value in (("REDIS_URL", url.get_secret_value()), ("NAME", deployment.settings.name), ("HOME", tmp_path)):
        monkeypatch.setenv(f"PENSTOCK_{name}", str(value))

    monkeypatch.setattr(sys, "path", sys.path[:])

    async def run(*arguments: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, cli, ["eval", *arguments])

    return run


async def test_the_command(redis_url: str, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with spine(redis_url, tools=[ship, weigh]) as deployment:
        run = invoked(deployment, monkeypatch, tmp_path)
        refused = await run(str(written))
        assert refused.exit_code == Exit.BAD_INPUT
        assert "no agent 'shipper'" in refused.stderr or "no living host" in refused.stderr
        await deployment.host(shipper)
        await deployment.host(careless)

        done = await run(str(written))
        assert done.exit_code == Exit.OK, done.output
        assert "evaluation shipping: 2 jobs, each 16 times, of shipper@1" in done.stdout
        assert "light" in done.stdout
        assert "16/16" in done.stdout
        assert "after weigh (step 2): " in done.stdout
        assert "all invariants hold" in done.stderr
        assert "no threshold was set" in done.stderr

        missed = await run(str(written), "--min-pass", "1", "--k", "17", "--json", "--repeat", "17")
        found = json.loads(missed.stdout)
        assert missed.exit_code == Exit.OK  # nothing was expected of the output: each run that succeeds passes
        assert (found["version"]["runs"], found["threshold"]) == (34, {"k": 17, "at_least": 1.0})

        written.write_text(SPEC.replace("input: cupboard", "input: cupboard, expect: {equals: too heavy}"))
        report = tmp_path / "report.html"
        below = await run(str(written), "--min-pass", "1", "--page", str(report), "--against", "2")
        assert below.exit_code == Exit.NOT_ALL_SUCCEEDED, below.output
        assert "below the wanted 100.0%" in below.stderr
        assert "beside shipper@2" in below.stdout
        reader = read(report.read_text())
        assert reader.tags["svg"] == 4
        assert "script" not in reader.tags
        assert reader.links == []

        (tmp_path / "checks_of_shipping.py").write_text(CHECKS)
        written.write_text(SPEC + "invariants: ['checks_of_shipping:nothing_heavy']\n")
        broken = await run(str(written), "--app-dir", str(tmp_path))
        assert broken.exit_code == Exit.FAILED, broken.output
        assert "violations of invariants in 32 runs" in broken.stderr
        assert "shipped cupboard" in broken.stdout


async def test_wrong_usage(redis_url: str, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with spine(redis_url, shipper, tools=[ship, weigh]) as deployment:
        await deployment.host()
        run = invoked(deployment, monkeypatch, tmp_path)
        for arguments, text in (
            ((str(tmp_path / "none.yaml"),), "cannot be read"),
            ((str(written), "--k", "30", "--min-pass", "1"), "pass^30 needs at least 30 runs"),
            ((str(written), "--page", str(tmp_path / "no" / "r.html")), "there is no folder"),
            ((str(written), "--against", "7"), "this deployment has shipper@1 only"),
            ((str(written), "--min-pass", "2"), ""),
        ):
            result = await run(*arguments)
            assert result.exit_code == Exit.BAD_INPUT, result.output
            assert text in result.stderr
        late = await run(str(written), "--timeout", "0.001")
        assert late.exit_code == Exit.TIMED_OUT


# Pages of hand-made findings


def finding(*sequences: tuple[str, ...], job: str = "job", missed: bool = False) -> VersionReport:
    runs = [
        JudgedRun(
            job,
            place,
            RunJournal(
                f"run-{place}", job, "agent", "1", "succeeded", output=f"<u>{place}</u>", started_ms=0, ended_ms=place,
                steps=tuple(RunStep(str(n), "call", name, "ok", attempts=1) for n, name in enumerate(names)),
            ),
            ("<i>no</i>",) if missed else (),
            (("law", "a & b"),) if missed else (),
        )
        for place, names in enumerate(sequences)
    ]  # fmt: skip
    return analysed(runs, {"agent": "1"}, "batch")


def test_a_page_shows_what_is_wrong_and_escapes_all_of_it() -> None:
    spec = EvalSpec.model_validate({"jobs": [{"custom_id": "job", "agent": "a"}], "threshold": {"k": 1, "at_least": 1}})
    ours, other = finding(("<x>", "y"), ("<x>",), (), missed=True, job="<job>"), finding(("z",), job="<job>")
    html = page(Evaluation(spec, 3, ours, other, compared(ours, other)))
    reader = read(html)
    assert reader.tags["svg"] == 3
    assert "b" in reader.tags  # of the facts
    for raw in ("<x>", "<job>", "<u>", "<i>no", "a & b"):
        assert raw not in html
    assert "Invariants are violated, 3 times." in html
    assert "pass^1 is 0.0%, at least 100.0% is wanted." in html
    assert "&lt;i&gt;no&lt;/i&gt;" in html


def test_a_page_of_one_run_and_of_very_many_ways() -> None:
    spec = EvalSpec.model_validate({"jobs": [{"custom_id": "job", "agent": "a"}]})
    assert read(page(Evaluation(spec, 1, finding(("x",))))).tags["svg"] == 3
    many = finding(*(tuple(f"{number:07b}") for number in range(100)))
    html = page(Evaluation(spec, 100, many))
    assert "76 more ways are not drawn" in html
    assert read(html).tags["rect"] < 24 * 2 * 3 + 3


def test_a_tree_has_a_box_for_each_shared_stretch_and_a_line_for_each_way_on() -> None:
    reader = read(tree([Way(("a", "b", "c"), 3, 3), Way(("a", "b"), 2, 0), Way(("a", "d"), 1, 1)], "ways"))
    # a → b → (c | end), a → d
    assert (reader.tags["rect"], reader.tags["path"]) == (5 * 3, 4)
