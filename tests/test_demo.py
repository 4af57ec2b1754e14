"""The demonstration: what it ends with, what it shows, and that nothing of it is left however it ends."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from cluster.ray_environment import held_signals
from penstock import demo_world
from penstock.demo import run_demo
from penstock.demo_display import HostLife, Kill, Outcome, Picture, Presenter, StateBar, Verdict, closing, live, plain
from penstock.demo_world import DemoError, Witness, batch_file, model_in_use
from penstock.views import BatchStatus
from refund_desk.running import running_world

ROOT = Path(__file__).parents[1]
SECRET = "sk-never-to-be-shown"


class Given:
    """A demonstration in a process group of its own, with an eye on every process and folder that it makes."""

    def __init__(self, tmp_path: Path, *arguments: str, **variables: str) -> None:
        self.mark = f"penstock-demo-test-{uuid.uuid4().hex}"
        self.temporary = tmp_path / "temporary"
        self.temporary.mkdir()
        self.output_path = tmp_path / "output"
        self.processes: set[psutil.Process] = set()
        self.folders: set[Path] = set()
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "PENSTOCK_"))
        }
        with self.output_path.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "penstock.cli", "demo", *arguments],
                cwd=ROOT,
                env={**environment, "TMPDIR": str(self.temporary), "DEMO_TEST_MARK": self.mark, **variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._watching = threading.Thread(target=self._watch)
        self._watching.start()

    @property
    def output(self) -> str:
        return self.output_path.read_text(encoding="utf-8")

    def _watch(self) -> None:
        demonstration = psutil.Process(self.process.pid)
        with contextlib.suppress(psutil.NoSuchProcess):
            while demonstration.is_running() and demonstration.status() != psutil.STATUS_ZOMBIE:
                for child in demonstration.children(recursive=True):
                    if child not in self.processes:
                        self._note(child)
                time.sleep(0.05)

    def _note(self, child: psutil.Process) -> None:
        self.processes.add(child)
        with contextlib.suppress(psutil.Error):
            # Of a local Ray cluster's folder and of the demonstration's own the janitors know.
            arguments = child.cmdline()
            if any(argument.endswith("janitor.py") for argument in arguments):
                self.folders.add(Path(arguments[-1]))

    def wait_for(self, text: str, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.05)

    def end(self, timeout_s: float = 100.0) -> int:
        code = self.process.wait(timeout_s)
        self._watching.join()
        return code

    def left(self, within_s: float) -> list[str]:
        """What is still there after so long."""
        deadline = time.monotonic() + within_s
        while True:
            found = [*self._living(), *(str(folder) for folder in self.folders if folder.exists())]
            found += [str(path) for path in self.temporary.iterdir()]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.1)

    def _living(self) -> Iterator[str]:
        for process in self.processes | set(psutil.process_iter()):
            with contextlib.suppress(psutil.Error):
                ours = process in self.processes or process.environ().get("DEMO_TEST_MARK") == self.mark
                if ours and process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    yield f"{process.pid} {process.name()}"

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._watching.join()
        for process in self.processes:
            with contextlib.suppress(psutil.Error):
                process.kill()


@pytest.fixture
def given(tmp_path: Path) -> Iterator[list[Given]]:
    demonstrations: list[Given] = []
    yield demonstrations
    for each in demonstrations:
        each.close()


@pytest.mark.ray
@pytest.mark.slow
def test_all_jobs_end_although_a_host_is_killed(tmp_path: Path, given: list[Given]) -> None:
    figures_path = tmp_path / "figures.json"
    demonstration = Given(tmp_path, "--jobs", "300", "--json", str(figures_path))
    given.append(demonstration)
    assert demonstration.end() == 0, demonstration.output
    figures = json.loads(figures_path.read_text(encoding="utf-8"))
    assert list(figures) == ["jobs", "by_state", "terminal", "steps", "migrated_runs", "duplicate_effects", "wall_s"]
    assert figures["jobs"] == 300
    assert figures["by_state"] == {"succeeded": 300}
    assert figures["terminal"] is True
    assert 3 * 300 <= figures["steps"] <= 4 * 300
    assert 0 < figures["migrated_runs"] <= 300
    assert figures["duplicate_effects"] == 0
    assert 0 < figures["wall_s"] < 60
    output = demonstration.output
    for said in ("300 jobs of the first 300 lines of", "SIGKILL to host-", "own, deterministic", "checker", "holds"):
        assert said in output
    assert "raylet" not in output
    assert "redis://" not in output
    assert len(demonstration.folders) == 2
    assert len(demonstration.processes) > 8
    assert demonstration.left(within_s=1.0) == []


@pytest.mark.ray
@pytest.mark.slow
def test_a_provider_of_models_is_asked_instead(tmp_path: Path, given: list[Given]) -> None:
    folder = tmp_path / "provider"
    folder.mkdir()
    with running_world(folder) as provider:
        demonstration = Given(
            tmp_path, "--jobs", "30", "--no-kill", OPENAI_BASE_URL=f"{provider.url}/v1", OPENAI_API_KEY=SECRET
        )
        given.append(demonstration)
        assert demonstration.end() == 0, demonstration.output
        assert provider.totals().requests_by_endpoint["model"] == 30
    assert "the model is at 127.0.0.1 (REFUND_DESK_MODEL does not say which)" in demonstration.output
    assert "no host" in demonstration.output
    assert SECRET not in demonstration.output
    assert demonstration.left(within_s=1.0) == []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("signals", "moment", "code", "within_s"),
    [
        ((signal.SIGINT, signal.SIGINT), "are submitted", 130, 1.0),
        ((signal.SIGTERM,), "starting", 143, 1.0),
        ((signal.SIGKILL,), "are submitted", -signal.SIGKILL, 20.0),
    ],
    ids=["ctrl-c twice", "terminated while it starts", "killed"],
)
def test_nothing_is_left_when_it_is_broken_off(
    tmp_path: Path, given: list[Given], signals: tuple[signal.Signals, ...], moment: str, code: int, within_s: float
) -> None:
    demonstration = Given(tmp_path, "--json", str(tmp_path / "figures.json"))
    given.append(demonstration)
    demonstration.wait_for(moment)
    time.sleep(1.5)
    for number in signals:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(demonstration.process.pid, number)  # as a terminal does it
        time.sleep(0.2)
    assert demonstration.end(60) == code, demonstration.output
    assert demonstration.left(within_s=within_s) == []
    assert "Traceback" not in demonstration.output
    assert not (tmp_path / "figures.json").exists()
    if code > 0:
        assert f"stopped by {signals[0].name}" in demonstration.output


# ------------------------------------------------------------------------------------------------- without a cluster


def quiet() -> Console:
    return Console(file=io.StringIO(), width=80)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("tree", "an installed Penstock comes without it. Get the source tree and run `make demo` there"),
        ("packages", "needs packages that are not installed (no_such_package)"),
        ("jobs", "--jobs 0: give at least 1"),
        ("json", "cannot be written to; give a file in a folder that exists"),
    ],
)
def test_what_cannot_be_given_is_explained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: str, said: str
) -> None:
    if change == "tree":
        monkeypatch.setattr(demo_world, "ROOT", tmp_path)
    if change == "packages":
        monkeypatch.setattr(demo_world, "NEEDED", ("no_such_package",))
    console = quiet()
    json_file = tmp_path / "no" / "such.json" if change == "json" else None
    handler = signal.getsignal(signal.SIGTERM)
    assert run_demo(jobs=0 if change == "jobs" else 10, json_file=json_file, console=console) == 1
    assert said in text_of(console)
    assert "Traceback" not in text_of(console)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_jobs_come_from_the_batch_file_and_its_maker(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = ROOT / "examples"
    whole = (examples / "refund_desk" / "jobs.jsonl").read_bytes()
    path, _ = batch_file(examples, 1_000)
    assert path == examples / "refund_desk" / "jobs.jsonl"
    some, name = batch_file(examples, 7)
    assert isinstance(some, io.BytesIO)
    assert whole.startswith(some.getvalue())
    assert some.getvalue().count(b"\n") == 7
    assert name.startswith("the first 7 lines of")
    more, _ = batch_file(examples, 1_003)
    assert isinstance(more, io.BytesIO)
    assert more.getvalue().startswith(whole)
    assert more.getvalue().count(b"\n") == 1_003
    with pytest.raises(DemoError, match="cannot be read"):
        batch_file(examples / "elsewhere", 1)


def test_the_model_is_named_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "REFUND_DESK_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    assert model_in_use() == "the outside world's own, deterministic"
    monkeypatch.setenv("OPENAI_BASE_URL", f"https://me:{SECRET}@models.example/v1?key={SECRET}")
    monkeypatch.setenv("REFUND_DESK_MODEL", "some-model")
    assert model_in_use() == "some-model at models.example"


@pytest.mark.parametrize("width", [10, 37, 80])
@pytest.mark.parametrize(
    "by_state",
    [
        {"queued": 1000},
        {"succeeded": 1000},
        {"succeeded": 998, "running": 1, "queued": 1},
        {"succeeded": 1, "failed": 1, "cancelled": 1, "confirmation_unknown": 1, "running": 1, "queued": 995},
        {"succeeded": 333, "running": 333, "waiting": 1, "queued": 333},
    ],
)
def test_the_bar_is_full_and_hides_nothing(width: int, by_state: dict[str, int]) -> None:
    console = Console(file=io.StringIO(), width=width)
    console.print(StateBar(by_state, sum(by_state.values())), end="")
    bar = text_of(console).rstrip("\n")
    assert len(bar) == width
    assert " " not in bar
    assert len(set(bar)) == len(
        {"█░▒"[("queued" in state) + 2 * (state in ("running", "waiting"))] for state in by_state}
    )


def status(by_state: dict[str, int], **counters: int) -> BatchStatus:
    total = sum(by_state.values())
    over = ("succeeded", "failed", "cancelled", "shed")
    ended = sum(count for state, count in by_state.items() if state in over)
    values = {"steps": 40, "migrations": 0, "migrated_runs": 0, **counters}
    return BatchStatus(
        batch="demo",
        total=total,
        by_state=by_state,
        ended=ended,
        terminal=ended == total,
        settled=ended + by_state.get("confirmation_unknown", 0) == total,
        **values,
    )


GOOD = Witness(requests=40, refunds=7, answers=10, repeated_keys=2, duplicate_effects=0)
KILLED = Kill("host-a-0~1", "host-a-0", 4711, at_s=3.25, runs=5, ended=4, taken_s=0.21, moved_s=1.5)


@pytest.mark.parametrize(
    ("by_state", "duplicates", "violations", "holds", "said"),
    [
        ({"succeeded": 10}, 0, (), True, "Every job has ended in one truthful state"),
        ({"succeeded": 9, "failed": 1}, 0, (), True, "Every job has ended in one truthful state"),
        ({"succeeded": 9, "running": 1}, 0, (), False, "1 jobs have not ended"),
        ({"succeeded": 9, "confirmation_unknown": 1}, 0, (), False, "1 jobs have not ended"),
        ({"succeeded": 10}, 3, (), False, "3 side effects happened more than once"),
        ({"succeeded": 10}, 0, ("run 00-1: it is in no index",), False, "run 00-1: it is in no index"),
    ],
)
def test_the_end_is_as_good_as_it_was(
    by_state: dict[str, int], duplicates: int, violations: tuple[str, ...], holds: bool, said: str
) -> None:
    outcome = Outcome(
        status=status(by_state, migrations=5, migrated_runs=5),
        wall_s=4.0,
        witness=GOOD._replace(duplicate_effects=duplicates),
        verdict=Verdict("10 runs", violations),
        kill=KILLED,
    )
    assert outcome.holds is holds
    console = quiet()
    console.print(closing(outcome))
    shown = " ".join(text_of(console).split())
    assert said in shown
    assert "host-a-0 (process 4711) by SIGKILL at 3.2 s, with 5 runs" in shown
    assert "taken over 0.21 s after the kill" in shown
    assert f"{duplicates}, by" in shown


def test_the_picture_shows_hosts_rates_and_the_dead() -> None:
    picture = Picture(jobs=10)
    picture.update(status({"queued": 10}, steps=0), 0.0)
    picture.update(status({"succeeded": 4, "running": 4, "queued": 2}, steps=20, migrated_runs=3), 2.0)
    picture.lives = [
        HostLife("host-a-0~1", "host-a-0", 4711, 0.0, registered=False, killed_at_s=1.5),
        HostLife("host-a-0~2", "host-a-0", 4713, 1.9, runs=1, lease_left_s=2.5, restarted=True),
        HostLife("host-b-0~1", "host-b-0", 4712, 0.0, runs=3, lease_left_s=2.9),
    ]
    assert picture.rates() == (10.0, 2.0)
    console = quiet()
    console.print(live(picture))
    shown = text_of(console)
    assert "4 of 10 jobs ended   2.0 s   10 steps/s   2 runs/s   3 runs migrated" in shown
    assert "SIGKILL at 1.5 s" in shown
    assert "restarted by Ray, back at 1.9 s" in shown
    assert max(map(len, shown.splitlines())) <= 80
    line = plain(picture)
    assert "succeeded=4 running=4 queued=2  10 steps/s  2 runs/s  host-a-0=1 host-b-0=3" in line


def test_without_a_terminal_there_are_plain_lines() -> None:
    console = quiet()
    presenter = Presenter(console)
    with presenter.busy("starting"), presenter.moving():
        presenter.start_clock()
        picture = Picture(jobs=10)
        picture.update(status({"queued": 10}), 0.0)
        presenter.show(picture)
        presenter.show(picture)  # too early for another one
        presenter.say("a [bracket] and a long line " + "x" * 80)
    lines = text_of(console).splitlines()
    assert len(lines) == 3
    assert lines[0].strip() == "starting"
    assert "queued=10" in lines[1]
    assert "a [bracket] and a long line" in lines[2]
    assert "\x1b" not in text_of(console)


def test_signals_are_held_back_once() -> None:
    reached: list[int] = []

    def held(times: int) -> None:
        with held_signals():
            for count in range(1, times + 1):
                signal.raise_signal(signal.SIGINT)
                reached.append(count)

    with pytest.raises(KeyboardInterrupt):
        held(1)
    assert reached == [1]
    with pytest.raises(KeyboardInterrupt):
        held(3)
    assert reached == [1, 1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
