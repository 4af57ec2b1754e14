"""``penstock fork``, ``lineage`` and ``promote`` on a terminal, and what ``show`` and ``why`` say of a branch."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from family import call, chained, effect, entry
from handwork import claim_all, end, publish_catalog, settings_for
from storehouse import FAR_MS
from typer.testing import CliRunner, Result

from actors.job import Job, new_run
from actors.journal import Kind, Status, first_link
from cluster.keys import partition_of
from cluster.lifecycle import RunState
from cluster.records import Append, Claim, Park
from cluster.store import Store
from penstock import SyncClient
from penstock.cli.app import cli
from penstock.cli.outcome import Exit

JOURNAL = [call("0", name="look"), *effect("1"), entry(Kind.CHILD, "b0.0", Status.OPEN), call("2", name="look")]


class Desk:
    """A deployment with one running run, and the command line."""

    def __init__(self, redis_url: str, folder: Path) -> None:
        self.settings = settings_for(redis_url, f"t-{uuid.uuid4().hex[:12]}")
        self.folder = folder
        self._environment = {
            "PENSTOCK_REDIS_URL": redis_url,
            "PENSTOCK_NAME": self.settings.name,
            "PENSTOCK_HOME": str(folder / "home"),
            "COLUMNS": "200",
        }
        self.claim: Claim = self.with_store(self._begin)
        self.run = self.claim.id

    async def _begin(self, store: Store) -> Claim:
        await publish_catalog(store)
        job = Job(custom_id="order-17", agent="echo", input={"text": "x"})
        run = new_run(job, "b", store.keys.partitions)
        await store.submit("b", partition_of(run.id), [run])
        (claim,) = await claim_all(store)
        entries = chained(first_link(claim.id, claim.job), JOURNAL)
        await store.append(partition_of(run.id), [Append(claim.id, claim.fence, 0, 3, entries)])
        return claim

    def with_store(self, work: Callable[[Store], Any]) -> Any:
        async def run() -> Any:
            store = await Store.open(self.settings)
            try:
                return await work(store)
            finally:
                await store.close()

        return asyncio.run(run())

    def __call__(self, *arguments: str, stdin: bytes | None = None, code: Exit = Exit.OK) -> Result:
        result = CliRunner().invoke(cli, list(arguments), env=self._environment, input=stdin)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        assert result.exit_code == code, result.output
        return result

    def data(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json").stdout)

    def fork(self, *arguments: str) -> str:
        return self("fork", self.run, *arguments).stdout.strip()


@pytest.fixture
def desk(redis_url: str, tmp_path: Path) -> Desk:
    return Desk(redis_url, tmp_path)


def test_fork_prints_the_run_and_says_the_rest(desk: Desk) -> None:
    result = desk("fork", desk.run, "--at", "2", "--by", "ann", "--why", "another try", "--key", "k")
    fork = result.stdout.strip()
    assert result.stderr.splitlines() == [
        f"run {desk.run} forked at step 2: run {fork} has 3 entries of its journal",
        "under way at that point, and left to the source: step b0.0",
        f"it causes no effects before: penstock promote {fork} --why TEXT",
    ]
    again = desk("fork", desk.run, "--at", "2", "--key", "k")
    assert again.stdout.strip() == fork
    assert "was forked before at step 2" in again.stderr
    report = desk.data("fork", desk.run, "--at", "1")
    assert (report["inherited"], report["source"], report["agent_version"], report["left_open"]) == (
        1,
        desk.run,
        "1",
        [],
    )
    assert report["run_id"] != fork
    shown = desk("show", fork).stdout
    for words in (
        f"{desk.run} at step 2",
        "ann: another try",
        "3 journal entries",
        f"none until: penstock promote {fork}",
    ):
        assert words in shown, shown
    view = desk.data("show", fork)
    assert (view["forked_from"], view["forked_at"], view["may_cause_effects"]) == (desk.run, "2", False)


@pytest.mark.parametrize("given", ["json", "file", "stdin"])
def test_another_input_comes_from_anywhere(desk: Desk, given: str) -> None:
    text = '{"text": "other"}'
    (desk.folder / "input.json").write_text(text)
    option = {"json": text, "file": str(desk.folder / "input.json"), "stdin": "-"}[given]
    result = desk("fork", desk.run, "--at", "1", "--input", option, stdin=text.encode())
    assert "it has another input and a past" in result.stderr
    assert desk.data("show", result.stdout.strip())["input"] == {"text": "other"}
    assert "another input" not in desk("fork", desk.run, "--at", "start", "--input", option, stdin=text.encode()).stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--at", "b0.7"], "no step 'b0.7'; did you mean b0.0?"),
        (["--at", "zzzz"], "it has 0, 1, b0.0, 2; or 'start', or 'now'"),
        (["--at", "1", "--input", "{"], "--input is not JSON"),
        (["--at", "1", "--input", "no_such_file"], "give JSON, or the name of a file with it"),
        (["--at", "1", "--input", "NaN"], "--input is not JSON: NaN is no JSON value"),
        (["--at", "1", "--input", '{"text": 3}'], "the input cannot be taken: input.text"),
        (["--at", "1", "--version", "9"], "version '9' of agent 'echo' is not served here; versions: 1"),
        (["--at", "1", "--why", "w" * 2001], "--why has 2001 characters; give 2000 at most"),
        ([], "Missing option '--at'"),
    ],
)
def test_bad_wishes_are_told(desk: Desk, arguments: list[str], words: str) -> None:
    result = desk("fork", desk.run, *arguments, code=Exit.BAD_INPUT)
    assert words in result.stderr
    assert result.stdout == ""
    assert desk.data("lineage", desk.run)["root"]["below"] == []


def test_what_is_not_there_cannot_be_forked(desk: Desk) -> None:
    for run in ("00-0123456789abcdef01234567", "nonsense"):
        for command in (["fork", run, "--at", "1"], ["lineage", run], ["promote", run, "--why", "w"]):
            assert f"there is no run '{run}'" in desk(*command, code=Exit.FAILED).stderr


def test_promote_says_who_had_the_right(desk: Desk) -> None:
    fork = desk.fork("--at", "1")
    result = desk("promote", fork, "--why", "better", "--by", "ann")
    assert result.stderr == (
        f"run {fork} may cause effects now; it was with {desk.run}, which may cause none any more\n"
    )
    assert "had the right to effects already" in desk("promote", fork, "--why", "again").stderr
    back = desk.data("promote", desk.run, "--why", "no, that one")
    assert back == {"run_id": desk.run, "changed": True, "from": [fork]}
    assert "--why must say something" in desk("promote", fork, "--why", " ", code=Exit.BAD_INPUT).stderr
    assert "Missing option '--why'" in desk("promote", fork, code=Exit.BAD_INPUT).stderr


def test_promote_says_what_is_in_its_way(desk: Desk) -> None:
    assert "it has no other branches" in desk("promote", desk.run, "--why", "w", code=Exit.FAILED).stderr
    fork = desk.fork("--at", "1")

    async def fail(store: Store) -> None:
        await end(store, [desk.claim], RunState.CONFIRMATION_UNKNOWN)

    desk.with_store(fail)
    result = desk("promote", fork, "--why", "w", code=Exit.FAILED)
    assert f"run {desk.run} has an effect whose outcome nobody can prove: resolve it first" in result.stderr
    desk("cancel", fork)
    assert "it has ended (cancelled)" in desk("promote", fork, "--why", "w", code=Exit.FAILED).stderr


def test_lineage_is_a_tree(desk: Desk) -> None:
    first = desk.fork("--at", "2", "--by", "ann", "--why", "first try")
    second = desk("fork", first, "--at", "1", "--by", "ben").stdout.strip()
    desk("promote", second, "--why", "better", "--by", "ann")
    lines = desk("lineage", first).stdout.splitlines()
    assert lines[0].startswith(f"{desk.run}  running echo 1, for ")
    assert lines[0].endswith("no effects")
    assert lines[1].startswith(f"└── {first}  queued echo 1, forked at step 2, queue, for ")
    assert lines[1].endswith("no effects (ann: first try)")
    assert lines[2].startswith(f"    └── {second}  queued echo 1, forked at step 1")
    assert lines[2].endswith("may cause effects (ben)")
    assert lines[3].endswith(f"{second}, from {desk.run}, by ann: better")
    data = desk.data("lineage", second)
    assert data["root"]["below"][0]["below"][0]["promoted"]["why"] == "better"
    assert [note["from"] for note in data["promotions"]] == [[desk.run]]
    alone = desk("lineage", desk.fork("--at", "start")).stdout
    assert alone.splitlines()[0].startswith(desk.run)


def test_why_names_the_command_that_a_branch_waits_for(desk: Desk) -> None:
    fork = desk.fork("--at", "1")

    async def wait(store: Store) -> None:
        (claim,) = await claim_all(store)
        assert claim.id == fork
        parking = Park(fork, claim.fence, "promotion", FAR_MS, ())
        assert await store.park(partition_of(fork), "hand-1", [parking]) == {}

    desk.with_store(wait)
    said = desk("why", fork).stdout
    assert "promotion: it is a branch that may cause no effects, and its next step is one" in said
    assert f"next: penstock promote {fork} --why TEXT" in said


def test_the_synchronous_client_does_the_same(desk: Desk) -> None:
    with SyncClient(settings=desk.settings) as client:
        report = client.fork(desk.run, "1", why="from code")
        assert client.promote(report.run_id, why="from code").from_ == (desk.run,)
        view = client.lineage(desk.run)
    assert [node.run_id for node in view.nodes()] == [desk.run, report.run_id]
