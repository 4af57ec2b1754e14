"""Strikes at named points inside a host's process, ordered by a file that a test writes: once each, whatever restarts.

The app of the hosts calls :func:`install`; its tools ask :func:`ordered` for the points that only they can reach.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Final

import msgspec

from actors import crash_points

DIRECTORY: Final = "STRIKES_DIRECTORY"
KILLED, FROZEN, STORE_KILLED, CUT, TIMEOUT = "host killed", "host frozen", "store killed", "connection cut", "timeout"
FAULTS: Final = (KILLED, FROZEN, STORE_KILLED, CUT, TIMEOUT)
SENT, APPLIED = "sent", "applied"
"""Points inside the call: the other side has the request; it has applied it, and its answer is not here yet."""

POINTS: Final = (*crash_points.POINTS[:4], SENT, APPLIED, *crash_points.POINTS[4:])


class Strike(msgspec.Struct, frozen=True):
    """What is to happen, where, to whom. ``pids`` are those of the store."""

    number: int
    point: str
    fault: str
    tool: str
    store_pid: int = 0


def order(directory: Path, strike: Strike) -> None:
    """Has the next one who comes to the point struck, instead of what was ordered before."""
    partial = directory / "strike.partial"
    partial.write_bytes(msgspec.json.encode(strike))
    partial.replace(directory / "strike.json")


def struck_pid(directory: Path, number: int) -> int | None:
    """The process that was struck, once it was."""
    try:
        return int((directory / f"struck-{number}").read_text() or 0) or None
    except FileNotFoundError:
        return None


# In the hosts' processes

_links: dict[str, str] = {}


def install() -> None:
    """From now on this process is struck where it is ordered."""
    if os.environ.get(DIRECTORY):
        crash_points.hook = _reached


def ordered(point: str, tool: str) -> Strike | None:
    """What is ordered for a point and was not carried out yet."""
    directory = os.environ.get(DIRECTORY)
    if not directory:
        return None
    try:
        strike = msgspec.json.decode((Path(directory) / "strike.json").read_bytes(), type=Strike)
    except FileNotFoundError:
        return None
    if (strike.point, strike.tool) != (point, tool) or (Path(directory) / f"struck-{strike.number}").exists():
        return None
    return strike


def carry_out(strike: Strike, run_id: str) -> None:
    """Strikes this process, the store, or what this process has to do with the world; once."""
    marker = Path(os.environ[DIRECTORY]) / f"struck-{strike.number}"
    try:
        descriptor = os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return
    os.write(descriptor, str(os.getpid()).encode())
    os.close(descriptor)
    if strike.fault == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    elif strike.fault == FROZEN:
        # To this very thread: what is sent to the process may reach another one first, and this one goes on.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
    elif strike.fault == STORE_KILLED:
        os.kill(strike.store_pid, signal.SIGKILL)
    elif strike.point not in (SENT, APPLIED):
        # Inside the call it is the world that closes the connection, or that is silent.
        _links[run_id] = strike.fault


def link_of(run_id: str) -> str:
    """What becomes of the run's next request on its way: '', CUT (nobody is there) or TIMEOUT (nobody answers)."""
    return _links.pop(run_id, "")


def _reached(point: str, tool: str, run_id: str) -> None:
    strike = ordered(point, tool)
    if strike is not None:
        carry_out(strike, run_id)
