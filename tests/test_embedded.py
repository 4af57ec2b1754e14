"""The embedded store: durable, private, supervised, and never left behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from valkey_cluster import ValkeyCluster

from cluster.embedded import EmbeddedValkey, EmbeddedValkeyError
from cluster.processes import ProcessRecord

ROOT = Path(__file__).parents[1]


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def answers(server: EmbeddedValkey) -> bool:
    try:
        with redis.Redis.from_url(server.url) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False


def test_acknowledged_writes_survive_a_sigkill(tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path / "store")
    with server:
        url, first = server.url, server.pid
        with redis.Redis.from_url(url) as client:
            for number in range(200):
                client.rpush("log", number)
            server.kill()
            assert not answers(server)
            server.start()
            assert server.url == url
            assert server.pid not in (None, first)
            assert client.llen("log") == 200


def test_settings_that_make_it_durable_and_local_are_in_force(valkey: EmbeddedValkey) -> None:
    wanted = {
        "appendonly": "yes",
        "appendfsync": "always",
        "no-appendfsync-on-rewrite": "no",
        "aof-use-rdb-preamble": "yes",
        "maxmemory-policy": "noeviction",
        "save": "",
        "bind": "127.0.0.1",
    }
    with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
        said = {name: client.config_get(name)[name] for name in wanted}
    assert said == wanted


def test_everything_it_writes_is_private(tmp_path: Path) -> None:
    directory = tmp_path / "store"
    directory.mkdir(mode=0o755)
    with EmbeddedValkey(directory) as server:
        with redis.Redis.from_url(server.url) as client:
            client.set("a", 1)
            client.bgrewriteaof()
        paths = [directory, *directory.rglob("*")]
        assert len(paths) > 7
        for path in paths:
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode == (0o700 if path.is_dir() else 0o600), path


def test_the_password_is_neither_on_the_command_line_nor_in_the_repr(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as server:
        assert server.password not in Path(f"/proc/{server.pid}/cmdline").read_text()
        assert server.password not in Path(f"/proc/{server.pid}/environ").read_text()
        assert server.password not in repr(server)
        with redis.Redis(port=server.port) as client, pytest.raises(redis.AuthenticationError):
            client.ping()


def test_a_second_object_over_the_directory_keeps_port_and_password(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as server:
        url = server.url
        with redis.Redis.from_url(url) as client:
            client.set("a", "1")
    with EmbeddedValkey(tmp_path) as server:
        assert server.url == url
        with redis.Redis.from_url(url) as client:
            assert client.get("a") == b"1"


def test_a_password_of_any_shape_is_quoted(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path, password='a "b" \\c #d @/:é') as server, redis.Redis.from_url(server.url) as client:
        assert client.ping()


def test_supervision_brings_it_back_at_the_same_port(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as server:
        server.supervise(backoff_s=0.05)
        url = server.url
        with redis.Redis.from_url(url) as client:
            client.set("a", "1")
        for time_killed in range(1, 4):
            server.kill()
            until(lambda count=time_killed: server.restarts == count)  # type: ignore[misc]
            assert server.url == url
            assert answers(server)
        with redis.Redis.from_url(url) as client:
            assert client.get("a") == b"1"
    assert server.pid is None
    time.sleep(0.3)
    assert not answers(server)


def test_restart_keeps_data_and_supervision(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as server:
        server.supervise(backoff_s=0.05)
        with redis.Redis.from_url(server.url) as client:
            client.set("a", "1")
        server.restart()
        with redis.Redis.from_url(server.url) as client:
            assert client.get("a") == b"1"
        server.kill()
        until(lambda: server.restarts == 1 and answers(server))


def test_a_frozen_server_is_still_stopped(tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path)
    server.start()
    assert server.pid is not None
    record = ProcessRecord.of(server.pid)
    assert record is not None
    os.kill(server.pid, signal.SIGSTOP)
    server.stop(timeout_s=0.3)
    assert not record.is_alive()
    assert not server.pid_path.exists()


def test_it_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    time.sleep(0.2)
    assert answers(server)
    server.stop()


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as server:
        with pytest.raises(EmbeddedValkeyError, match=f"in use by another embedded store \\(pid {server.pid}\\)"):
            EmbeddedValkey(tmp_path).start()
        assert answers(server)


def test_a_file_for_a_directory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(EmbeddedValkeyError, match="cannot hold the embedded store"):
        EmbeddedValkey(path).start()
    with pytest.raises(EmbeddedValkeyError, match="cannot hold the embedded store"):
        EmbeddedValkey(path / "below").start()


def test_a_taken_port_is_named(tmp_path: Path, valkey: EmbeddedValkey) -> None:
    with pytest.raises(EmbeddedValkeyError, match=f"port {valkey.port} at 127.0.0.1 is in use"):
        EmbeddedValkey(tmp_path, port=valkey.port).start()
    with EmbeddedValkey(tmp_path) as server:
        assert server.port != valkey.port


def test_a_server_that_refuses_its_settings_shows_its_log_but_not_the_password(tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path, extra_settings={"no-such-setting": "1"})
    with pytest.raises(EmbeddedValkeyError, match="no-such-setting") as caught:
        server.start()
    assert "ended at once" in str(caught.value)
    assert server.password not in str(caught.value)
    assert server.pid is None
    with EmbeddedValkey(tmp_path) as server:  # the directory is free again
        assert answers(server)


@pytest.mark.parametrize(
    ("extra", "password"),
    [
        ({"appendfsync": "no"}, None),
        ({"bind": "0.0.0.0"}, None),
        ({"maxmemory": "1\nrequirepass x"}, None),
        ({"x y": "1"}, None),
        ({}, ""),
        ({}, "a\nb"),
    ],
)
def test_settings_that_would_undo_ours_are_refused(tmp_path: Path, extra: dict[str, str], password: str | None) -> None:
    with pytest.raises(ValueError, match=r"extra_settings|password"):
        EmbeddedValkey(tmp_path, extra_settings=extra, password=password)


def test_nothing_is_known_before_the_first_start(tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path)
    with pytest.raises(EmbeddedValkeyError, match="no port"):
        _ = server.port
    with pytest.raises(EmbeddedValkeyError, match="no password"):
        _ = server.url
    with pytest.raises(EmbeddedValkeyError, match="does not run"):
        server.supervise()
    server.stop()
    server.kill()


OWNER = """
import sys, time
from pathlib import Path
from cluster.embedded import EmbeddedValkey
server = EmbeddedValkey(Path(sys.argv[1]))
server.start()
server.supervise()
print(server.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its owner")
def test_a_killed_owner_leaves_no_server_behind(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    record = ProcessRecord.of(int(owner.stdout.readline()))
    assert record is not None
    owner.kill()
    owner.wait()
    assert record.wait(2.0)
    owner.stdout.close()
    with EmbeddedValkey(tmp_path) as server:  # and the directory is free for the next owner
        assert answers(server)


def test_a_reused_pid_is_not_the_recorded_process() -> None:
    own = ProcessRecord.of(os.getpid())
    assert own is not None
    assert own.is_alive()
    other = ProcessRecord(own.pid, own.started + "0")
    assert not other.is_alive()
    assert not other.send(signal.SIGKILL)


def test_a_cluster_of_three_forms(valkey_cluster: ValkeyCluster) -> None:
    with redis.RedisCluster.from_url(valkey_cluster.url) as client:
        for number in range(50):
            client.set(f"{{p{number}}}:a", number)
        assert [int(client.get(f"{{p{number}}}:a") or -1) for number in range(50)] == list(range(50))
        assert len(client.get_primaries()) == 3
