"""Our Ray sessions: on loopback, quick to notice a dead node, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.janitor import processes_of
from cluster.processes import ProcessRecord
from cluster.ray_environment import prepare_environment
from cluster.session import (
    LocalRay,
    RaySessionError,
    connect,
    disconnect,
    draining_nodes,
)

ROOT = Path(__file__).parents[1]


def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> float:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout_s, "did not happen in time"
        time.sleep(0.05)
    return time.monotonic() - started


def on_node(node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


def test_two_nodes_run_actors_that_can_import_the_rooms(ray_driver: LocalRay) -> None:
    import ray

    @ray.remote(num_cpus=1)
    class Probe:
        def look(self) -> tuple[str, str, bool]:
            import cluster.session

            node = ray.get_runtime_context().get_node_id()
            return node, cluster.session.__file__, "RAY_TMPDIR" in os.environ

    probes = [Probe.remote() for _ in range(2)]  # type: ignore[attr-defined]
    seen = ray.get([probe.look.remote() for probe in probes])
    assert {node for node, _, _ in seen} == set(ray_driver.node_ids.values())
    assert all(file == str(ROOT / "cluster" / "session.py") for _, file, _ in seen)
    assert ray.get_runtime_context().namespace == "penstock"


def test_it_listens_on_loopback_only(ray_cluster: LocalRay) -> None:
    inodes = set()
    for pid in processes_of(ray_cluster.directory):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(fd)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                listening.append(fields[1].partition(":")[0])
    assert len(listening) > 3
    assert {address[-8:] for address in listening} == {"0100007F"}


def test_no_node_drains_and_then_one_does(ray_driver: LocalRay) -> None:
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]

    assert draining_nodes() == {}
    index = ray_driver.add_node()
    node = ray_driver.node_ids[index]

    import ray

    @ray.remote(num_cpus=1, scheduling_strategy=on_node(node))
    class Busy:
        def ready(self) -> bool:
            return True

    busy = Busy.remote()  # type: ignore[attr-defined]
    assert ray.get(busy.ready.remote())  # an idle node would leave at once
    deadline_ms = int(time.time() * 1000) + 60_000
    accepted, why = GcsClient(address=ray_driver.address).drain_node(
        node, DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION, "test", deadline_ms
    )
    assert accepted, why
    until(lambda: draining_nodes() == {node: deadline_ms})
    ray_driver.kill_node(index)
    until(lambda: draining_nodes() == {})


def test_a_killed_node_takes_its_workers_along_and_is_noticed(ray_driver: LocalRay) -> None:
    import ray

    index = ray_driver.add_node()
    node = ray_driver.node_ids[index]

    @ray.remote(num_cpus=1, max_restarts=0, scheduling_strategy=on_node(node))
    class Victim:
        def pid(self) -> int:
            return os.getpid()

    victim = Victim.remote()  # type: ignore[attr-defined]
    record = ProcessRecord.of(ray.get(victim.pid.remote()))
    assert record is not None
    ray_driver.kill_node(index)
    assert index not in ray_driver.node_ids
    assert record.wait(5.0)
    noticed_s = until(lambda: all(entry["NodeID"] != node for entry in ray.nodes() if entry["Alive"]))  # type: ignore[no-untyped-call]
    assert noticed_s < 8.0
    with pytest.raises(ValueError, match="no living node"):
        ray_driver.kill_node(index)
    with pytest.raises(ValueError, match="head"):
        ray_driver.kill_node(0)


def test_connecting_twice_is_refused_and_disconnecting_is_not(ray_driver: LocalRay) -> None:
    with pytest.raises(RaySessionError, match="already"):
        connect(ray_driver.address)
    disconnect()
    disconnect()
    with connect(ray_driver.address, namespace="other") as connection:
        assert connection.namespace == "other"


def test_a_wrong_address_fails_at_once_and_says_so() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(RaySessionError, match=f"no Ray cluster answers at 127.0.0.1:{port}"):
        connect(f"127.0.0.1:{port}")
    assert time.monotonic() - started < 2.0
    with pytest.raises(RaySessionError, match="expected ip:port"):
        connect("auto")


def test_without_the_fixtures_ray_does_not_start() -> None:
    import ray

    with pytest.raises(RuntimeError, match="may not start Ray"):
        ray.init()
    with pytest.raises(RaySessionError, match="may not start Ray"):
        LocalRay(nodes=1).start()


@pytest.mark.parametrize(("failure", "kept"), [(KeyboardInterrupt(), False), (OSError("disk"), True)])
def test_a_failed_start_keeps_its_logs_and_a_broken_off_one_nothing(
    monkeypatch: pytest.MonkeyPatch, failure: BaseException, kept: bool
) -> None:
    seen: list[Path] = []

    def fail(cluster: LocalRay) -> None:
        seen.append(cluster.directory)
        (cluster.directory / "ray" / "session_log").write_text("why")
        raise failure

    monkeypatch.setattr(LocalRay, "_start_nodes", fail)
    with pytest.raises((KeyboardInterrupt, RaySessionError)) as caught:
        LocalRay(nodes=1).start()
    assert seen[0].exists() == kept
    if kept:
        assert f"disk; see the logs in {seen[0]}" in str(caught.value)
        shutil.rmtree(seen[0])


@pytest.mark.parametrize(
    ("loopback", "token", "said", "mode"),
    [
        (True, None, None, "disabled"),
        (True, "t", None, "disabled"),
        (False, "t", None, "token"),
        (False, None, None, "disabled"),
        (True, None, "token", "token"),
        (False, "t", "disabled", "disabled"),
    ],
)
def test_the_authentication_mode_is_always_explicit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loopback: bool, token: str | None, said: str | None, mode: str
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    if said:
        monkeypatch.setenv("RAY_AUTH_MODE", said)
    if token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text(token)
    prepare_environment(loopback=loopback)
    assert os.environ["RAY_AUTH_MODE"] == mode


OWNER = """
import sys, time
import ray  # before anything of ours, as an application might
from cluster.session import LocalRay, connect

if __name__ == "__main__":
    local = LocalRay(nodes=1)
    local.start()
    connect(local.address)

    @ray.remote
    class Idle:
        def ready(self):
            return True

    idle = Idle.options(lifetime="detached", name="idle").remote()
    assert ray.get(idle.ready.remote())
    print(local.directory, flush=True)
    if sys.argv[1] == "stop":
        local.stop()
    else:
        time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_token_file_does_no_harm_and_nothing_is_left_behind(tmp_path: Path, end: str) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0123456789abcdef0123456789abcdef")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, end],
        cwd=ROOT,
        env={**environment, "HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with owner:
        assert owner.stdout is not None
        directory = Path(owner.stdout.readline().strip())
        assert directory.is_absolute()
        if end == "stop":
            assert owner.wait(20) == 0
            assert not directory.exists()
        else:
            assert len(processes_of(directory)) >= 6
            owner.kill()
            owner.wait()
    assert until(lambda: not directory.exists()) < 5.0
    assert not processes_of(directory)


def test_children_of_a_process_that_ignores_interrupts_hear_them() -> None:
    """As when a shell without job control starts us in the background."""
    program = (
        "import signal, subprocess, sys\n"
        "from cluster.ray_environment import children_hear_interrupts\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "ask = [sys.executable, '-c', 'import signal; print(signal.getsignal(signal.SIGINT) != signal.SIG_IGN)']\n"
        "with children_hear_interrupts():\n"
        "    print(subprocess.check_output(ask, text=True).strip())\n"
        "print(subprocess.check_output(ask, text=True).strip(), signal.getsignal(signal.SIGINT) == signal.SIG_IGN)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert said.split() == ["True", "False", "True"]
