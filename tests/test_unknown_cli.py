"""The command line for effects that nobody can prove: what it shows, what it takes, and what it refuses, by name."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from hosting import Spine, spine
from typer.testing import CliRunner, Result

from actors.journal import Kind
from actors.receipts import decode_resolution
from cluster.lifecycle import RunState
from penstock import Ambiguous, Applied, NotApplied, RetryPolicy, Risk, Run, ToolCall, agent, tool
from penstock.cli.app import cli
from penstock.cli.outcome import Exit
from penstock.cli.unknown import listing, settle_by, tried
from penstock.unknown_views import Tried, UnknownEffect

MISSING = "00-0123456789abcdef01234567"
ONCE = RetryPolicy(maximum_attempts=1)


async def no_answer(call: ToolCall, order: str) -> Applied[str] | None:
    raise NotApplied("closed")


@tool(risk=Risk.IRREVERSIBLE, retry=ONCE, owner="the post room", settle_within=7200)
async def send(call: ToolCall, to: str, order: str) -> str:
    raise Ambiguous("no answer from https://ann:hunter2@post")


@tool(risk=Risk.WRITE, retry=ONCE, reconcile=no_answer, lands_within=0.01)
async def refund(call: ToolCall, order: str) -> str:
    raise Ambiguous("timed out")


@agent("notify", version="1")
async def notify(run: Run, order: str) -> str:
    return await run.call(send, "mia", order)


@agent("refunds", version="1")
async def refunds(run: Run, order: str) -> str:
    return await run.effect(key=f"refund:{order}").call(refund, order)


class Penstock:
    """The command line against a deployment whose host runs in a thread."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.spine: Spine
        self.loop: asyncio.AbstractEventLoop

    def __call__(self, *arguments: str) -> Result:
        result = CliRunner().invoke(cli, list(arguments), env=self.environment)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "hunter2" not in result.output
        return result

    def data(self, *arguments: str) -> Any:
        result = self(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def refused(self, *arguments: str) -> tuple[int, str]:
        result = self(*arguments)
        assert result.stdout == ""
        return result.exit_code, " ".join(result.stderr.split())

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def unknown(self, order: str = "O-1", agent: Any = notify, **fields: Any) -> str:
        """A run that has become unknown."""

        async def become() -> str:
            run_id = await self.spine.submit(agent, order, **fields)
            await self.spine.state(run_id, RunState.CONFIRMATION_UNKNOWN)
            return run_id

        found: str = self.do(become())
        return found

    def ended(self, run_id: str) -> str:
        return str(self.do(self.spine.end(run_id)).state.value)

    def words(self, run_id: str) -> list[Any]:
        """What was said of a run's effects."""
        entries = self.do(self.spine.journal(run_id))
        return [decode_resolution(entry.payload) for entry in entries if entry.kind == Kind.RESOLUTION]


@pytest.fixture
def penstock(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Penstock]:
    monkeypatch.setattr("actors.core.effect.RECONCILE_FOR_S", 0.05)
    monkeypatch.delenv("PENSTOCK_USER", raising=False)
    made = Penstock(
        {"PENSTOCK_REDIS_URL": redis_url, "PENSTOCK_HOME": str(tmp_path), "COLUMNS": "300", "PENSTOCK_USER": "ann"}
    )
    ready, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        async with spine(redis_url, notify, refunds, tools=[send, refund]) as deployment:
            await deployment.host()
            await deployment.store.note_batch("b", await deployment.store.server_ms())
            made.spine, made.loop = deployment, asyncio.get_running_loop()
            made.environment["PENSTOCK_NAME"] = deployment.settings.name
            ready.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(10)
    yield made
    stop.set()
    thread.join()


def test_nothing_is_in_doubt(penstock: Penstock) -> None:
    result = penstock("unknown")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "no effect is in doubt\n")
    assert penstock("unknown", "--json").output == ""
    assert "for somebody's word" not in penstock("status").output


def test_effects_in_doubt_are_listed(penstock: Penstock) -> None:
    first = penstock.unknown(tenant="north")
    second = penstock.unknown("O-2", refunds, tenant="south")
    result = penstock("unknown")
    rows = [line for line in result.stdout.splitlines() if "-" in line[:4]]
    assert [row.split()[:3] for row in rows] == [[first, "0", "send"], [second, "0", "refund"]]
    for words in (
        '"mia", "O-1"',
        "north",
        "the post room",
        "within 120 min",
        "called once: Ambiguous: no answer from",
    ):
        assert words in rows[0], words
    for words in ('"O-2"', "operators of south", "within 24 h", "timed out; reconcile"):
        assert words in rows[1], words
    assert "settle one: penstock resolve RUN STEP" in result.stderr
    for chosen in (["--tenant", "south"], ["--tool", "refund"]):
        assert [each["run_id"] for each in [penstock.data("unknown", *chosen)]] == [second]
    lines = penstock("unknown", "--json", "--batch", "b").stdout.splitlines()
    assert [json.loads(line)["run_id"] for line in lines] == [first, second]


def test_all_that_is_known_of_one(penstock: Penstock) -> None:
    run = penstock.unknown("O-2", refunds)
    found = penstock("unknown", run)
    for words in ("refund (write)", "refund:O-2", "O-2", "Ambiguous: timed out", "the last answer: NotApplied: closed"):
        assert words in found.stdout, words
    assert f"penstock resolve {run} 0 --applied" in found.stderr
    assert f"penstock resolve {run} 0 --not-applied" in found.stderr
    assert f"penstock resolve {run} 0 --ask-again" in found.stderr
    view = penstock.data("unknown", run)
    assert view["business_key"] == "refund:O-2"
    assert view["tried"]["attempts"] == 1


@pytest.mark.parametrize("command", ["status", "batch", "show", "why"])
def test_whoever_looks_at_an_unknown_run_is_told_how_to_settle_it(penstock: Penstock, command: str) -> None:
    run = penstock.unknown()
    arguments = {"status": ("status",), "batch": ("status", "b")}.get(command, (command, run))
    assert f"penstock resolve {run} 0" in penstock(*arguments).output
    assert json.loads(penstock(*arguments, "--json").stdout)
    assert penstock(*arguments, "--json").stderr == ""


def test_why_names_the_owner_and_the_bound(penstock: Penstock) -> None:
    run = penstock.unknown()
    penstock("cancel", run)
    said = penstock.data("why", run)
    assert said["owner"] == "the post room"
    assert said["bound"].startswith("to be settled by ")
    assert "--applied | --not-applied | --ask-again; it ends then (cancelled by request)" in said["next"]


def test_many_are_not_all_told_at_once(penstock: Penstock) -> None:
    runs = [penstock.unknown(f"O-{number}") for number in range(5)]
    said = penstock("status", "b").stderr
    assert "5 runs wait for somebody's word on an effect (penstock unknown --batch b)" in said
    assert sum(run in said for run in runs) == 3


def test_applied_with_a_result(penstock: Penstock) -> None:
    run = penstock.unknown()
    result = penstock("resolve", run, "0", "--applied", "--result", '"m-1"', "--evidence", "outbox", "--why", "looked")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith(f"run {run}, step 0 (send): applied; said by ann. The run goes on")
    assert penstock.ended(run) == "succeeded"
    assert penstock.data("show", run)["output"] == "m-1"
    (word,) = penstock.words(run)
    assert (word.applied, word.by, word.why, word.evidence) == (True, "ann", "looked", "outbox")
    assert "penstock resolve" not in penstock("show", run).stderr


def test_evidence_may_be_json(penstock: Penstock) -> None:
    run = penstock.unknown()
    answer = penstock.data("resolve", run, "0", "--applied", "--evidence", '{"id": 7}', "--by", "bob")
    assert (answer["applied"], answer["by"], answer["tool"]) == (True, "bob", "send")
    assert penstock.words(run)[0].evidence == {"id": 7}
    assert penstock.ended(run) == "failed"


def test_not_applied_and_ask_again(penstock: Penstock) -> None:
    first, second = penstock.unknown(), penstock.unknown("O-2", refunds)
    said = penstock("resolve", first, "0", "--not-applied", "--why", "not in the outbox")
    assert "not applied, it is done again" in said.stderr
    assert "a host asks once more" in penstock("resolve", second, "0", "--ask-again").stderr
    assert [word.applied for word in penstock.words(first)] == [False]
    assert penstock.words(second) == []


REFUSED: list[tuple[str, list[str], Exit, str]] = [
    ("no choice", [], Exit.BAD_INPUT, "say one of --applied, --not-applied and --ask-again; you gave none of them"),
    ("two choices", ["--applied", "--not-applied"], Exit.BAD_INPUT, "you gave more than one"),
    ("three", ["--applied", "--not-applied", "--ask-again"], Exit.BAD_INPUT, "you gave more than one"),
    ("result of nothing", ["--not-applied", "--result", "1"], Exit.BAD_INPUT, "give no --result with it"),
    ("evidence of nothing", ["--ask-again", "--evidence", "x"], Exit.BAD_INPUT, "says nothing yet"),
    ("no JSON", ["--applied", "--result", "m-1"], Exit.BAD_INPUT, "--result 'm-1' is no JSON"),
    ("nobody", ["--applied", "--by", " "], Exit.BAD_INPUT, "say who you are"),
    ("another version", ["--applied", "--version", "3"], Exit.FAILED, "the run has changed since then"),
    ("no app", ["--applied", "--app", "no_such_app"], Exit.BAD_INPUT, "'no_such_app' cannot be imported"),
]


def test_what_is_wrong_is_named_and_changes_nothing(penstock: Penstock) -> None:
    run = penstock.unknown()
    before = penstock.data("show", run)
    for what, options, wanted, said in REFUSED:
        code, error = penstock.refused("resolve", run, "0", *options)
        assert (code, said in error) == (wanted, True), (what, error)
    code, error = penstock.refused("resolve", run, "7", "--applied")
    assert code == Exit.BAD_INPUT
    assert f"step '7' of run {run} is not in doubt; what is: step 0 (send): penstock resolve {run} 0" in error
    code, error = penstock.refused("resolve", MISSING, "0", "--applied")
    assert (code, "there is no run" in error) == (Exit.FAILED, True)
    code, error = penstock.refused("unknown", run, "--tool", "send")
    assert (code, "not both" in error) == (Exit.BAD_INPUT, True)
    assert penstock.data("show", run) == before


def test_what_was_resolved_before_says_by_whom(penstock: Penstock) -> None:
    run = penstock.unknown()
    penstock("resolve", run, "0", "--applied", "--result", '"m"', "--by", "bob")
    penstock.ended(run)
    code, error = penstock.refused("resolve", run, "0", "--not-applied")
    assert code == Exit.FAILED
    assert "was resolved by bob at " in error
    assert ": applied. Nothing was changed; the run is succeeded" in error
    code, error = penstock.refused("unknown", run)
    assert code == Exit.FAILED
    assert f"run {run} is succeeded, and not confirmation_unknown" in error


def test_a_result_is_checked_by_the_tools_at_hand(penstock: Penstock, tmp_path: Path) -> None:
    run = penstock.unknown()
    (tmp_path / f"post_{run[3:]}.py").write_text(
        "from penstock import Risk, Run, ToolCall, agent, tool\n"
        "@tool(risk=Risk.IRREVERSIBLE)\n"
        "async def send(call: ToolCall, to: str, order: str) -> str: ...\n"
        "@agent('notify', version='1')\n"
        "async def notify(run: Run, order: str) -> str:\n"
        "    return await run.call(send, 'mia', order)\n"
    )
    app = ["--app", f"post_{run[3:]}", "--app-dir", str(tmp_path)]
    code, error = penstock.refused("resolve", run, "0", "--applied", "--result", "7", *app)
    assert code == Exit.BAD_INPUT
    assert "the result does not fit: tool 'send', result: value: Input should be a valid string" in error
    assert penstock("resolve", run, "0", "--applied", "--result", '"m"', *app).exit_code == 0
    assert penstock.ended(run) == "succeeded"


def test_the_user_of_the_process_speaks_by_default(penstock: Penstock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "carol")
    del penstock.environment["PENSTOCK_USER"]
    run = penstock.unknown()
    assert penstock.data("resolve", run, "0", "--applied")["by"] == "carol"


def view(**fields: Any) -> UnknownEffect:
    known: dict[str, Any] = {
        "run_id": MISSING, "step": "0", "tool": "t", "agent": "a", "batch": "", "custom_id": "c", "tenant": "default",
        "owner": "o", "state_version": 4, "command": "", "since_ms": 1_000_000, "for_s": 10.0,
    }  # fmt: skip
    return UnknownEffect(**(known | fields))


def test_how_late_it_is() -> None:
    assert settle_by(view()) == ""
    assert settle_by(view(settle_by_ms=1_010_000 + 60_000)) == "within 60 s"
    assert settle_by(view(settle_by_ms=1_010_000 - 7_200_000, overdue=True)) == "overdue by 2 h"


def test_what_was_tried_in_a_line() -> None:
    assert tried(view(tried=Tried(last_error="lost")), 50) == "lost"
    assert tried(view(tried=Tried(attempts=3, last_error="lost", reconciled="asked 2 times")), 50) == (
        "called 3 times: lost; reconcile asked 2 times"
    )
    assert tried(view(tried=Tried(last_error="x" * 99)), 50) == "x" * 49 + "…"


def test_what_a_terminal_would_obey_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    listing([view(tool="a\x1b[31m", arguments=["\x1b[2J"])])
    assert "\x1b" not in capsys.readouterr().out
