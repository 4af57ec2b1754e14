"""The command line against a real server: what it prints where, its exit codes, and that nothing secret is shown."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from handwork import HOST, claim_all, end, hand, publish_catalog, settings_for
from typer.testing import CliRunner, Result

from cluster.config import Settings
from cluster.lifecycle import RunState
from cluster.records import Claim
from cluster.store import Store
from penstock.cli.app import cli
from penstock.cli.outcome import Exit, plain
from penstock.doctor import check_python, check_ray_auth, judge_hosts, judge_store
from penstock.views import HostView

ROOT = Path(__file__).parent.parent


class Deployment:
    """A deployment of one test: its settings, the command line in its environment, and hands to work it."""

    def __init__(self, settings: Settings, folder: Path, environment: dict[str, str]) -> None:
        self.settings = settings
        self.folder = folder
        self.environment = environment

    def __call__(self, *arguments: str, stdin: bytes | None = None) -> Result:
        result = CliRunner().invoke(cli, list(arguments), env=self.environment, input=stdin)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        assert self.password not in result.output
        return result

    @property
    def password(self) -> str:
        url = self.settings.redis_url
        assert url is not None
        return url.get_secret_value().partition("@")[0].rpartition(":")[2]

    def data(self, *arguments: str) -> Any:
        """The one JSON value that a command writes."""
        result = self(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """The command line in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "penstock.cli", *arguments],
            env={**os.environ, **self.environment, "PYTHONPATH": str(ROOT)},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def file(self, count: int, name: str = "jobs.jsonl", **fields: Any) -> str:
        path = self.folder / name
        jobs = ({"custom_id": f"j-{n}", "agent": "echo", "input": {"text": "x"}, **fields} for n in range(count))
        path.write_text("".join(json.dumps(job) + "\n" for job in jobs))
        return str(path)

    def work(self, state: RunState = RunState.SUCCEEDED, most: int = 1000) -> list[str]:
        """Ends ``most`` queued runs; their ids."""

        async def claim_and_end(store: Store) -> list[str]:
            claims = (await claim_all(store))[:most]
            await end(store, claims, state)
            return [claim.id for claim in claims]

        ended: list[str] = self.with_store(claim_and_end)
        return ended

    def with_store(self, work: Callable[[Store], Any]) -> Any:
        async def run() -> Any:
            store = await Store.open(self.settings)
            try:
                return await work(store)
            finally:
                await store.close()

        return asyncio.run(run())


@pytest.fixture
def penstock(redis_url: str, tmp_path: Path) -> Deployment:
    settings = settings_for(redis_url, f"t-{uuid.uuid4().hex[:12]}")
    environment = {
        "PENSTOCK_REDIS_URL": redis_url,
        "PENSTOCK_NAME": settings.name,
        "PENSTOCK_HOME": str(tmp_path / "home"),
        "COLUMNS": "200",
    }
    made = Deployment(settings, tmp_path, environment)
    made.with_store(publish_catalog)
    return made


@pytest.fixture
def worked(penstock: Deployment) -> Iterator[Deployment]:
    """A deployment whose runs end as soon as they are queued; those of tenant ``bad`` fail."""
    stop, ready = threading.Event(), threading.Event()

    def decide(claim: Claim) -> RunState:
        return RunState.FAILED if b"bad" in claim.job else RunState.SUCCEEDED

    async def work() -> None:
        async with hand(penstock.settings, decide):
            ready.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=lambda: asyncio.run(work()))
    thread.start()
    assert ready.wait(10)
    yield penstock
    stop.set()
    thread.join()


def test_submit_prints_the_batch_and_says_the_rest(penstock: Deployment) -> None:
    file = penstock.file(30)
    first = penstock("submit", file)
    assert first.exit_code == 0
    batch = first.stdout.strip()
    assert batch.startswith("f-")
    assert first.stderr == f"batch {batch}: 30 accepted\n"
    again = penstock("submit", file)
    assert again.stdout.strip() == batch
    assert "0 accepted, 30 were there already" in again.stderr
    other = penstock.data("submit", file, "--batch", "mine")
    assert (other["batch"], other["accepted"], other["existing"]) == ("mine", 30, 0)


def test_submit_reads_the_standard_input(penstock: Deployment) -> None:
    content = Path(penstock.file(3)).read_bytes()
    result = penstock("submit", "-", "--batch", "b", stdin=content)
    assert result.exit_code == 0, result.output
    assert penstock.data("status", "b")["total"] == 3


def test_a_bad_file_is_told_line_by_line_and_not_submitted(penstock: Deployment) -> None:
    file = Path(penstock.file(3))
    with file.open("a") as writer:
        writer.write('{\n{"custom_id": "j-1", "agent": "ecko", "input": {"text": 3}}\n')
    result = penstock("submit", str(file))
    assert (result.exit_code, result.stdout) == (Exit.BAD_INPUT, "")
    for words in ("not JSON", "no agent 'ecko'", "did you mean 'echo'?", "'j-1' is already on line 2"):
        assert words in result.stderr
    assert f"error: 3 problems in {file}; nothing was submitted" in result.stderr
    found = penstock("submit", str(file), "--json")
    assert found.exit_code == Exit.BAD_INPUT
    assert [problem["line"] for problem in json.loads(found.stdout)["problems"]] == [4, 5, 5]
    skipped = penstock("submit", str(file), "--skip-invalid")
    assert skipped.exit_code == 0
    assert "3 accepted, 2 bad lines left out" in skipped.stderr


def test_only_the_first_problems_are_shown(penstock: Deployment) -> None:
    file = penstock.file(150, agent="nobody")
    result = penstock("submit", file)
    assert "… and 50 more" in result.stderr
    assert "150 problems" in result.stderr


def test_conflicts_are_named(penstock: Deployment) -> None:
    penstock("submit", penstock.file(3), "--batch", "b")
    result = penstock("submit", penstock.file(4, "other.jsonl", value="high"), "--batch", "b")
    assert result.exit_code == Exit.BAD_INPUT
    assert "1 accepted, 3 refused" in result.stderr
    assert "conflict: j-0 is run 0" in result.stderr


def test_the_app_checks_inputs_by_its_own_models(penstock: Deployment) -> None:
    (penstock.folder / f"shop_{penstock.settings.name[2:]}.py").write_text(
        "from typing import Annotated\n"
        "from pydantic import AfterValidator, BaseModel\n"
        "from penstock import Run, agent\n"
        "def even(n: int) -> int:\n"
        "    if n % 2: raise ValueError('must be even')\n"
        "    return n\n"
        "class Input(BaseModel):\n"
        "    n: Annotated[int, AfterValidator(even)]\n"
        "@agent('evens', version='1')\n"
        "async def evens(run: Run, i: Input) -> int:\n"
        "    return i.n\n"
    )
    file = penstock.file(1, agent="evens", input={"n": 3})
    app = ("--app", f"shop_{penstock.settings.name[2:]}", "--app-dir", str(penstock.folder))
    result = penstock("submit", file, *app)
    assert result.exit_code == Exit.BAD_INPUT
    assert "must be even" in result.stderr
    missing = penstock("submit", file, "--app", "no_such_module")
    assert missing.exit_code == Exit.BAD_INPUT
    assert "app 'no_such_module' cannot be imported" in missing.stderr


def test_submit_and_watch_ends_as_the_batch_ends(worked: Deployment) -> None:
    good = worked("submit", worked.file(40), "--watch")
    assert good.exit_code == 0, good.output
    assert "ended" in good.stdout
    assert "40 of 40 ended; 40 succeeded" in good.stderr
    bad = worked("submit", worked.file(10, tenant="bad"), "--watch", "--json", "--batch", "bad")
    assert bad.exit_code == Exit.NOT_ALL_SUCCEEDED
    lines = [json.loads(line) for line in bad.stdout.splitlines()]
    assert lines[0]["accepted"] == 10
    assert (lines[-1]["by_state"], lines[-1]["terminal"]) == ({"failed": 10}, True)
    assert "10 of 10 runs did not succeed" in bad.stderr


def test_watch_ends_with_the_time_given_and_with_unknown_outcomes(penstock: Deployment) -> None:
    penstock("submit", penstock.file(4), "--batch", "b")
    late = penstock("watch", "b", "--timeout", "0.1")
    assert late.exit_code == Exit.TIMED_OUT
    assert "penstock watch b" in late.stderr
    penstock.work(RunState.CONFIRMATION_UNKNOWN)
    unknown = penstock("watch", "b")
    assert unknown.exit_code == Exit.UNKNOWN
    assert "the outcome of 4 runs cannot be proved" in unknown.stderr
    assert "settled, with unknown outcomes" in unknown.stdout
    assert penstock("results", "b").exit_code == Exit.UNKNOWN


def test_interrupting_a_watch_leaves_the_batch_alone(penstock: Deployment) -> None:
    process = penstock.start("submit", penstock.file(20), "--watch", "--batch", "b")
    assert process.stderr is not None
    seen = [process.stderr.readline(), process.stderr.readline()]
    assert "0 of 20 ended" in seen[1], seen
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert process.returncode == Exit.INTERRUPTED
    assert "batch b goes on. Watch it again: penstock watch b" in error
    assert "Traceback" not in error
    penstock.work()
    again = penstock("watch", "b")
    assert again.exit_code == 0
    assert "succeeded" in again.stdout


def test_results_are_json_lines(penstock: Deployment) -> None:
    penstock("submit", penstock.file(30), "--batch", "b")
    penstock.work(most=20)
    some = penstock("results", "b")
    assert some.exit_code == Exit.NOT_ALL_SUCCEEDED
    assert "10 of 30 runs have not ended" in some.stderr
    lines = [json.loads(line) for line in some.stdout.splitlines()]
    assert len({line["custom_id"] for line in lines}) == 20
    assert all(line["output"] == {"echo": line["custom_id"]} for line in lines)
    process = penstock.start("results", "b")
    out, error = process.communicate(timeout=20)
    assert (len(out.splitlines()), process.returncode) == (20, Exit.NOT_ALL_SUCCEEDED), error


def test_a_reader_that_has_enough_is_no_error(penstock: Deployment) -> None:
    penstock("submit", penstock.file(3000), "--batch", "b")
    penstock.work(most=3000)
    process = penstock.start("results", "b")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(20) in (Exit.NO_READER, Exit.OK)
    assert error == ""


def test_status_of_a_batch_and_of_the_deployment(penstock: Deployment) -> None:
    penstock("submit", penstock.file(5), "--batch", "b")
    penstock.work(most=2)
    assert penstock.data("status", "b")["by_state"] == {"succeeded": 2, "running": 3}
    assert "batch b: going on" in penstock("status", "b").stdout
    whole = penstock.data("status")
    assert (whole["total"], whole["batches"][0]["batch"], whole["hosts"]) == (5, "b", [])
    assert "0 of 0 hosts alive, 5 runs" in penstock("status").stdout


def test_runs_show_and_why(penstock: Deployment) -> None:
    penstock("submit", penstock.file(5, metadata={"k": "v"}), "--batch", "b")
    penstock.with_store(lambda store: store.heartbeat(HOST, '{"node": "n1"}'))
    ended = penstock.work(RunState.FAILED, most=2)
    listed = penstock("runs", "--batch", "b", "--state", "failed", "--json")
    assert {json.loads(line)["run_id"] for line in listed.stdout.splitlines()} == set(ended)
    assert ended[0] in penstock("runs").stdout
    assert len(penstock("runs", "--limit", "3", "--json").stdout.splitlines()) == 3
    shown = penstock("show", ended[0]).stdout
    assert "Boom: by hand (step 0)" in shown
    assert penstock.data("show", ended[0])["error"]["class"] == "Boom"
    why = penstock("why", ended[0])
    assert "is failed, for" in why.stdout
    assert "reason: Boom: by hand (step 0)" in why.stdout
    assert penstock.data("why", ended[0])["state"] == "failed"
    assert penstock("runs", "--state", "queued").stderr == "no runs\n"


def test_cancel_hosts_and_drain(penstock: Deployment) -> None:
    penstock("submit", penstock.file(5), "--batch", "b")
    assert penstock.data("cancel", "b") == {"target": "b", "cancelled": 5}
    assert penstock("cancel", "b").stderr == "nothing was left to cancel\n"
    assert "no hosts are registered" in penstock("hosts").stderr
    penstock.with_store(lambda store: store.heartbeat(HOST, '{"node": "n1"}'))
    assert penstock.data("drain", HOST) == {"host": HOST, "draining": True}
    assert penstock.data("hosts")["draining"] is True
    assert "draining" in penstock("hosts").stdout
    assert "claims runs again" in penstock("drain", HOST, "--undo").stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("status", "nothing"), Exit.FAILED, "there is no batch 'nothing'"),
        (("watch", "nothing"), Exit.FAILED, "there is no batch 'nothing'"),
        (("results", "nothing"), Exit.FAILED, "there is no batch 'nothing'"),
        (("runs", "--batch", "nothing"), Exit.FAILED, "there is no batch 'nothing'"),
        (("show", "nothing"), Exit.FAILED, "there is no run 'nothing'"),
        (("why", "00-0123456789abcdef01234567"), Exit.FAILED, "there is no run"),
        (("cancel", "nothing"), Exit.FAILED, "there is no batch 'nothing'"),
        (("drain", "nothing"), Exit.FAILED, "there is no host 'nothing'"),
        (("runs", "--state", "asleep"), Exit.BAD_INPUT, "states: accepted, queued"),
        (("submit", "/nothing.jsonl"), Exit.BAD_INPUT, "cannot be read"),
        (("submit", "/dev/null", "--batch", "a:b"), Exit.BAD_INPUT, "batch key 'a:b' cannot be used"),
        (("submit",), Exit.BAD_INPUT, "Missing argument"),
        (("up",), Exit.BAD_INPUT, "penstock up --app"),
        (("nonsense",), Exit.BAD_INPUT, "No such command"),
    ],
)
def test_expected_errors_are_one_line_with_their_own_code(
    penstock: Deployment, arguments: tuple[str, ...], code: Exit, said: str
) -> None:
    result = penstock(*arguments)
    assert result.exit_code == code, result.output
    assert said in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("environment", "code", "said"),
    [
        ({"PENSTOCK_REDIS_URL": "redis://:hunter2@127.0.0.1:1/0"}, Exit.NO_STORE, "no store answers"),
        ({"PENSTOCK_REDIS_URL": None}, Exit.NO_STORE, "penstock up"),
        ({"PENSTOCK_LEASE_S": "soon", "PENSTOCK_PARTITIONS": "0"}, Exit.BAD_INPUT, "PENSTOCK_LEASE_S: Input should be"),
        ({"PENSTOCK_PARTITIONS": "9"}, Exit.NO_STORE, "has 8 partitions"),
    ],
)
def test_without_a_usable_store(
    penstock: Deployment, environment: dict[str, str | None], code: Exit, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        penstock.environment.pop(name, None)
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            penstock.environment[name] = value
    result = penstock("status")
    assert result.exit_code == code, result.output
    assert said in result.stderr
    assert "hunter2" not in result.output


def test_a_wrong_password_is_not_repeated(penstock: Deployment) -> None:
    url = penstock.environment["PENSTOCK_REDIS_URL"]
    penstock.environment["PENSTOCK_REDIS_URL"] = url.replace(penstock.password, "hunter2")
    result = penstock("status")
    assert result.exit_code == Exit.NO_STORE
    assert "the store refuses us" in result.stderr
    assert "hunter2" not in result.output


def test_a_damaged_deployment_file_is_named(penstock: Deployment) -> None:
    home = penstock.folder / "home"
    home.mkdir()
    (home / "deployment.json").write_text("{")
    for command in ("status", "doctor"):
        result = penstock(command)
        assert result.exit_code == Exit.NO_STORE
        assert "deployment.json cannot be understood" in result.stderr


def test_doctor(penstock: Deployment) -> None:
    result = penstock("doctor", "--json")
    found = {check["name"]: check["verdict"] for check in json.loads(result.stdout)}
    assert result.exit_code == 0, result.output
    assert found["store version"] == found["store durability"] == found["packages"] == found["python"] == "ok"
    assert found["hosts"] == "warn"
    assert "appendfsync always" in penstock("doctor").stdout
    penstock("submit", penstock.file(2))
    waiting = penstock("doctor")
    assert waiting.exit_code == Exit.FAILED
    assert "2 runs wait for one" in waiting.stdout
    penstock.environment["PENSTOCK_REDIS_URL"] = "redis://:hunter2@127.0.0.1:1/0"
    down = penstock("doctor", "--json")
    assert down.exit_code == Exit.NO_STORE
    assert "hunter2" not in down.output


def test_what_the_doctor_thinks_of_servers() -> None:
    def verdicts(version: str, **settings: str) -> dict[str, str]:
        told = {name.replace("_", "-"): value for name, value in settings.items()}
        return {check.name: check.verdict for check in judge_store({"redis_version": version}, told or None)}

    good = {"appendonly": "yes", "appendfsync": "always", "maxmemory": "1gb", "maxmemory_policy": "noeviction"}
    assert set(verdicts("7.2.4", **good).values()) == {"ok"}
    assert verdicts("6.2.0", **good)["store version"] == "fail"
    assert verdicts("7.2.4", **{**good, "appendfsync": "everysec"})["store durability"] == "warn"
    assert verdicts("7.2.4", **{**good, "appendonly": "no"})["store durability"] == "warn"
    assert verdicts("7.2.4", **{**good, "maxmemory_policy": "allkeys-lru"})["store memory"] == "fail"
    assert verdicts("7.2.4")["store settings"] == "warn"


def test_what_the_doctor_thinks_of_machines(tmp_path: Path) -> None:
    assert check_python((3, 11, 7)).verdict == "ok"
    assert check_python((3, 10, 1)).verdict == check_python((3, 15, 0)).verdict == "fail"
    assert check_ray_auth({}, tmp_path).verdict == "ok"
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").touch()
    assert check_ray_auth({}, tmp_path).verdict == "warn"
    assert check_ray_auth({"RAY_AUTH_MODE": "token"}, tmp_path).verdict == "ok"
    lost = HostView(host="a", alive=False, lease_left_s=-3, draining=False, info={})
    assert judge_hosts([lost], 0).verdict == "warn"
    assert judge_hosts([lost], 3).verdict == "fail"


def test_down_without_a_deployment(penstock: Deployment) -> None:
    result = penstock("down")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no deployment is running" in result.stderr


def test_help_tells_the_exit_codes_and_client_commands_leave_ray_alone(penstock: Deployment) -> None:
    text = " ".join(penstock("--help").stdout.split())
    assert "5 the outcome of some runs is unknown" in text
    assert "130 interrupted" in text
    code = (
        "import sys; from penstock.cli.app import cli; cli(['status'], standalone_mode=False); "
        "print('ray' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **penstock.environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_what_a_terminal_would_obey_is_not_printed() -> None:
    assert plain("a\x1b[31mb\x07\tc\n") == "a�[31mb�\tc\n"


def test_submitting_a_file_from_the_shell_is_quick(penstock: Deployment) -> None:
    started = time.perf_counter()
    process = penstock.start("submit", penstock.file(5000))
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert time.perf_counter() - started < 10
