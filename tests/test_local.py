"""Deployments: up and down, one at a home, and nothing left behind however they end."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr

from cluster.config import Settings, deployment_file
from cluster.janitor import processes_of
from cluster.processes import ProcessRecord
from cluster.session import LocalRay, connect
from penstock.connected import down_connected
from penstock.deployment import Deployment, DeploymentError, Footprint
from penstock.local import LocalDeployment, down, load_deployment, up

ROOT = Path(__file__).parents[1]
APP = """
from penstock import Run, agent


@agent("echo", version="1")
async def echo(run: Run, text: str) -> str:
    return text
"""


@pytest.fixture
def app_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "app"
    directory.mkdir()
    (directory / "echo_app.py").write_text(APP)
    return directory


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.delenv("PENSTOCK_REDIS_URL", raising=False)
    directory = tmp_path / "home"
    yield directory
    down(directory)


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def footprint_of(home: Path) -> Footprint:
    footprint = Footprint.read(home)
    assert footprint is not None
    return footprint


def daemon_of(home: Path) -> ProcessRecord:
    daemon = footprint_of(home).daemon
    assert daemon is not None
    return daemon


def hosts_of(deployment: Deployment) -> list[str]:
    """Asked from another process: a test's own can be in one Ray cluster only."""
    code = (
        "import sys, ray; from cluster.session import connect; connect(sys.argv[1], namespace=sys.argv[2]);"
        "print(*sorted(ray.util.list_named_actors()))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, deployment.ray_address, deployment.name],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return said.stdout.split()


def test_up_serves_and_down_ends_everything_but_the_data(home: Path, app_dir: Path) -> None:
    deployment = up(home, app="echo_app", app_dir=app_dir, nodes=2)
    assert deployment.is_alive()
    assert deployment.embedded_store
    assert load_deployment(home) == deployment
    assert deployment.redis_url.get_secret_value() not in repr(deployment)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    for path in home.iterdir():
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path

    found = Settings.load(home=home)
    assert found.redis_url == deployment.redis_url
    assert found.partitions == deployment.partitions
    named = hosts_of(deployment)
    assert len([name for name in named if name.startswith("penstock-host-")]) == 2
    assert "penstock-supervisor" in named
    with redis.Redis.from_url(deployment.redis_url.get_secret_value()) as client:
        client.set("kept", "1")

    with pytest.raises(DeploymentError, match=r"already running at .* `penstock down`"):
        up(home, app="echo_app", app_dir=app_dir)

    footprint = footprint_of(home)
    assert footprint.ray_directory is not None
    assert len(footprint.processes) >= 4
    assert down(home)
    assert not footprint.is_running()
    assert not footprint.ray_directory.exists()
    assert load_deployment(home) is None
    assert not down(home)
    log = (home / "daemon.log").read_text()
    assert "ending the deployment" in log
    assert "Traceback" not in log

    again = up(home, app="echo_app", app_dir=app_dir, nodes=1)
    assert again.redis_url == deployment.redis_url
    with redis.Redis.from_url(again.redis_url.get_secret_value()) as client:
        assert client.get("kept") == b"1"


@pytest.mark.chaos
def test_a_killed_background_process_takes_everything_along(home: Path, app_dir: Path) -> None:
    first = up(home, app="echo_app", app_dir=app_dir, nodes=1)
    footprint = footprint_of(home)
    assert footprint.ray_directory is not None
    os.kill(daemon_of(home).pid, signal.SIGKILL)
    until(lambda: not footprint.is_running(), 5.0)
    until(lambda: footprint.ray_directory is not None and not footprint.ray_directory.exists(), 5.0)
    assert not first.is_alive()
    second = up(home, app="echo_app", app_dir=app_dir, nodes=1)  # cleans up what is recorded, and starts
    assert second.is_alive()
    os.kill(daemon_of(home).pid, signal.SIGKILL)
    down(home)
    assert load_deployment(home) is None
    assert Footprint.read(home) is None


@pytest.mark.chaos
def test_a_killed_ray_node_is_replaced(home: Path, app_dir: Path) -> None:
    deployment = up(home, app="echo_app", app_dir=app_dir, nodes=2)
    raylets = [
        record
        for record in footprint_of(home).processes
        if b"/raylet\0" in Path(f"/proc/{record.pid}/cmdline").read_bytes()
    ]
    assert len(raylets) == 2
    raylets[1].send(signal.SIGKILL)
    until(lambda: "starting another one" in (home / "daemon.log").read_text())

    def hosts() -> int:
        return len([name for name in hosts_of(deployment) if "-host-" in name])

    until(lambda: hosts() == 2, 40.0)


@pytest.mark.parametrize(
    ("app", "said"),
    [
        ("no_such_app", "app 'no_such_app' cannot be imported"),
        ("broken_app", "ZeroDivisionError"),
        ("empty_app", "has no agents"),
    ],
)
def test_an_app_that_cannot_be_served_fails_at_once_and_says_why(
    home: Path, app_dir: Path, app: str, said: str
) -> None:
    (app_dir / "broken_app.py").write_text("1 / 0\n")
    (app_dir / "empty_app.py").write_text("")
    started = time.monotonic()
    with pytest.raises(DeploymentError, match=said) as caught:
        up(home, app=app, app_dir=app_dir)
    assert "did not start (exit code 1)" in str(caught.value)
    assert time.monotonic() - started < 10.0
    assert load_deployment(home) is None
    assert Footprint.read(home) is None


def test_a_deployment_that_is_not_ready_in_time_is_ended(home: Path, app_dir: Path) -> None:
    (app_dir / "slow_app.py").write_text("import time\ntime.sleep(60)\n")
    with pytest.raises(DeploymentError, match=r"was not ready within 1\.5 s"):
        up(home, app="slow_app", app_dir=app_dir, timeout_s=1.5)
    assert Footprint.read(home) is None
    assert not down(home)


def test_sigterm_in_the_middle_of_the_start_leaves_nothing(home: Path, app_dir: Path) -> None:
    home.mkdir()
    command = [sys.executable, "-m", "penstock.local", "--home", str(home), "--app", "echo_app"]
    process = subprocess.Popen([*command, "--app-dir", str(app_dir)], cwd=ROOT, stderr=subprocess.DEVNULL)
    until(lambda: Footprint.path(home).exists() and bool(footprint_of(home).processes))
    footprint = footprint_of(home)
    time.sleep(0.7)  # Ray is starting now
    process.terminate()
    assert process.wait(30) == 0
    assert not footprint.is_running()
    assert Footprint.read(home) is None


def test_only_the_recorded_process_is_ended(home: Path) -> None:
    own = ProcessRecord.of(os.getpid())
    assert own is not None
    home.mkdir()
    reused = ProcessRecord(own.pid, "another boot:1")
    Footprint(home, reused, [reused], None).write()
    assert not down(home)
    assert Footprint.read(home) is None


@pytest.mark.parametrize("file", ["deployment.json", "daemon.json"])
@pytest.mark.parametrize("text", ["", "[]", '{"version": 99}'])
def test_a_damaged_record_is_named(home: Path, file: str, text: str) -> None:
    home.mkdir()
    (home / file).write_text(text)
    with pytest.raises(DeploymentError, match=f"{file} cannot be understood"):
        down(home)
    (home / file).unlink()


def test_a_home_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeploymentError, match="cannot be the home of a deployment"):
        up(tmp_path / "file", app="echo_app")


def test_settings_reach_the_background_process(home: Path, app_dir: Path, redis_url: str) -> None:
    settings = Settings(home=home, name="other", partitions=3, redis_url=SecretStr(redis_url))
    deployment = up(home, app="echo_app", app_dir=app_dir, nodes=1, settings=settings)
    assert (deployment.name, deployment.partitions) == ("other", 3)
    assert deployment.redis_url.get_secret_value() == redis_url
    assert not deployment.embedded_store
    assert not (home / "store").exists()
    assert "other-supervisor" in hosts_of(deployment)
    assert down(home)
    with redis.Redis.from_url(redis_url) as client:
        assert client.ping()  # somebody else's store stays


@pytest.mark.ray
def test_a_deployment_in_this_process(home: Path, app_dir: Path, request: pytest.FixtureRequest) -> None:
    import ray

    assert not ray.is_initialized()
    with LocalDeployment(home, app="echo_app", app_dir=app_dir, nodes=1) as local:
        assert local.deployment.daemon is not None
        assert local.deployment.daemon.pid == os.getpid()
        assert ray.is_initialized()
        assert local.ray is not None
        directory = local.ray.directory
        with pytest.raises(DeploymentError, match=f"already running at {home} \\(process {os.getpid()}\\)"):
            up(home, app="echo_app")
    assert not ray.is_initialized()
    assert not processes_of(directory)
    assert not deployment_file(home).exists()


def test_a_deployment_on_an_existing_cluster(home: Path, app_dir: Path, redis_url: str, ray_cluster: LocalRay) -> None:
    address = ray_cluster.address
    with pytest.raises(DeploymentError, match="needs a store that all its nodes can reach"):
        up(home, app="echo_app", app_dir=app_dir, address=address)
    settings = Settings(home=home, name="connected")
    deployment = up(home, app="echo_app", app_dir=app_dir, address=address, redis_url=redis_url, settings=settings)
    assert deployment.daemon is None
    assert deployment.is_alive()
    with pytest.raises(DeploymentError, match=f"is on the Ray cluster at {address}"):
        up(home, app="echo_app", app_dir=app_dir)
    assert len([name for name in hosts_of(deployment) if name.startswith("connected-host-")]) == 2
    down_connected(deployment)
    with connect(address, namespace="connected"):
        import ray

        until(lambda: ray.util.list_named_actors() == [])
    assert load_deployment(home) is None
