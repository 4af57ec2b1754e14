"""Ends what a local Ray cluster leaves behind when its owner is killed, and removes its directory.

Ray's raylets and GCS die with their owner, by the kernel. Their agents notice, but then try for a minute to report it
to the dead GCS; and nobody removes the directory. So each local cluster has this small process beside it. It waits for
the end of its standard input, which comes when the owner closes it or dies in any way, ends every process that belongs
to the directory and removes it.

Run as ``python -I -S janitor.py DIRECTORY``: it stands alone, on the standard library.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

__all__ = ["KEEP_DIRECTORY", "processes_of", "sweep"]

KEEP_DIRECTORY = b"keep"
SWEEP_LIMIT_S = 20.0
SWEEP_PERIOD_S = 0.1


def processes_of(directory: Path) -> list[int]:
    """Process ids of a local Ray cluster, by its directory; zombies are none. Empty where there is no /proc.

    A process counts when it was started with the directory in ``RAY_TMPDIR``, or when it is one of Ray's own, by its
    name, with a file of the directory open: Ray's agents write their name over their environment. A mere driver, which
    has open files there too, does not count.
    """
    try:
        entries = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    except OSError:
        return []
    own = os.getpid()
    return [int(entry.name) for entry in entries if int(entry.name) != own and _belongs(entry, directory)]


def _belongs(entry: Path, directory: Path) -> bool:
    try:
        if (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX":
            return False
        if f"RAY_TMPDIR={directory}".encode() in (entry / "environ").read_bytes().split(b"\0"):
            return True
        if not (entry / "cmdline").read_bytes().startswith(b"ray::"):
            return False
        return any(_link(fd).startswith(f"{directory}/") for fd in (entry / "fd").iterdir())
    except OSError:  # another user's, or it has ended meanwhile
        return False


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def sweep(directory: Path, *, limit_s: float = SWEEP_LIMIT_S) -> list[int]:
    """SIGKILL the processes of a directory until none is left; returns those that still are after ``limit_s``."""
    deadline = time.monotonic() + limit_s
    quiet = 0
    while True:
        found = processes_of(directory)
        # Twice, because a process may have been starting another one while we looked.
        quiet = quiet + 1 if not found else 0
        if quiet == 2 or time.monotonic() > deadline:
            return found
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(SWEEP_PERIOD_S)


def main() -> None:
    """Wait for the end of the owner, then clean up."""
    directory = Path(sys.argv[1])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with its owner, not before
    said = sys.stdin.buffer.read()
    sweep(directory)
    if KEEP_DIRECTORY not in said:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
