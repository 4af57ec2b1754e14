"""Processes that we start and must be able to end: bound to their owner, and recognised again by pid and start time."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

__all__ = ["ProcessRecord", "end_all", "on_keeper_thread", "spawn_owned", "write_private"]

T = TypeVar("T")

_ON_LINUX = Path("/proc/self/stat").exists()

# Runs as the forked process, before it becomes the program. An interpreter of its own instead of preexec_fn, which is
# unsafe in a process with threads. Asking for the parent again closes the race with an owner that died meanwhile.
_LAUNCHER = """
import ctypes, os, signal, sys
os.umask(0o077)
if sys.platform == "linux":
    if ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0) != 0:
        sys.exit("cannot bind the process to its owner: prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the owner has gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def spawn_owned(
    command: Sequence[str], *, directory: Path, output_fd: int, kept_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a program that does not outlive this process, in a session of its own, with umask 077.

    On Linux the kernel SIGKILLs it when this process ends, however that ends (PDEATHSIG); other systems have no such
    thing. ``command`` is an absolute path and its arguments; what it prints goes to ``output_fd``; it inherits
    ``kept_fds``. The session of its own keeps a terminal's Ctrl-C from it: its owner ends it, in order.
    """
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]
    return on_keeper_thread(
        lambda: subprocess.Popen(
            launcher,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output_fd,
            stderr=output_fd,
            pass_fds=tuple(kept_fds),
            start_new_session=True,
        )
    )


class _Keeper:
    """One thread that lives as long as its process."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def call(self, function: Callable[[], T]) -> T:
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        with self._guard:
            # In a forked child the thread is not alive: the child has its own.
            if self._thread is None or not self._thread.is_alive():
                self._calls = queue.SimpleQueue()
                self._thread = threading.Thread(
                    target=self._serve, args=(self._calls,), name="penstock-keeper", daemon=True
                )
                self._thread.start()
            self._calls.put(run)
        return future.result()

    @staticmethod
    def _serve(calls: queue.SimpleQueue[Callable[[], None]]) -> None:
        while True:
            calls.get()()


_keeper = _Keeper()


def on_keeper_thread(function: Callable[[], T]) -> T:
    """Call ``function`` on the thread that lives as long as this process; return or raise what it does.

    PDEATHSIG fires when the *thread* that forked ends, so a caller's thread (of a pool, say) must not be the one.
    """
    return _keeper.call(function)


@dataclass(frozen=True)
class ProcessRecord:
    """A process as it can be found again: its pid may be another process's by then, its start time tells."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> ProcessRecord | None:
        """Record a process that exists now; None when there is none (a zombie is none)."""
        started = _start_of(pid)
        return None if started is None else cls(pid, started)

    def is_alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        return _start_of(self.pid) == self.started

    def send(self, number: signal.Signals) -> bool:
        """Signal this very process; False when it has gone."""
        if not self.is_alive():
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; False when it still runs after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while self.is_alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


def end_all(records: Iterable[ProcessRecord], *, timeout_s: float) -> list[ProcessRecord]:
    """End processes: SIGTERM to all, SIGKILL to those that are left after ``timeout_s``. Returns those that had to be.

    Never touches a process that only reuses a recorded pid.
    """
    asked = [record for record in records if record.send(signal.SIGTERM)]
    deadline = time.monotonic() + timeout_s
    left = [record for record in asked if not record.wait(max(0.0, deadline - time.monotonic()))]
    for record in left:
        record.send(signal.SIGKILL)
    for record in left:
        record.wait(2.0)
    return left


def _start_of(pid: int) -> str | None:
    """A text that no two processes of one pid share, within one boot of the machine."""
    if _ON_LINUX:
        try:
            # Fields after the command's name, which may itself hold spaces and brackets.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else f"{_boot_id()}:{fields[19]}"
    listed = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = listed.stdout.strip().partition(" ")
    return None if not started or state.startswith("Z") else started.strip()


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def write_private(path: Path, text: str) -> None:
    """Replace a file in one move; readable by its owner only (0600), from its first byte on."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        os.fchmod(fd, 0o600)
        file.write(text)
        file.flush()
        os.fsync(fd)
    temporary.replace(path)
