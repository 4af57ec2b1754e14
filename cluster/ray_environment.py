"""What Ray must be told by environment variables and private switches, before and while it starts."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType, MappingProxyType

__all__ = [
    "HEALTH_CHECKS",
    "LOOPBACK",
    "QUIET",
    "children_hear_interrupts",
    "children_outlive_hangup",
    "environment",
    "held_signals",
    "is_loopback",
    "no_ray_messages",
    "own_sigterm",
    "prepare_environment",
    "stay_on_loopback",
]

log = logging.getLogger("penstock.ray")

LOOPBACK = "127.0.0.1"
# Ray notices a dead node after 15 s to 65 s by default, with these after about 4 s.
HEALTH_CHECKS: Mapping[str, int] = MappingProxyType(
    {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 1000,
        "health_check_timeout_ms": 1000,
        "health_check_failure_threshold": 3,
    }
)
# Ray's record of every task and actor call: nobody reads it without a dashboard, and each host pays for it.
QUIET: Mapping[str, int] = MappingProxyType({"task_events_report_interval_ms": 0})


def is_loopback(address: str) -> bool:
    """Whether an ip:port is on this machine only."""
    return address.rpartition(":")[0].strip("[]") in ("localhost", LOOPBACK, "::1")


def prepare_environment(*, loopback: bool) -> None:
    """Set, for this process and its children, what Ray must be told before its first use. The user's words win.

    ``RAY_AUTH_MODE`` is always explicit. Unset, it means one thing to ``ray.init`` and another to a cluster, depending
    on whether a token file lies about, and they then fail to understand each other for 20 s. Our own clusters listen
    on loopback only and have it disabled; for another cluster a token that is there is used.
    """
    tokens = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    has_token = any(os.environ.get(name) for name in tokens) or Path("~/.ray/auth_token").expanduser().exists()
    os.environ.setdefault("RAY_AUTH_MODE", "token" if has_token and not loopback else "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Zero GPUs must not hide the GPUs of the machine from tasks; unset, Ray warns about a change to come.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Under `uv run` Ray would have every worker start a `uv run` of its own.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")


def stay_on_loopback(loopback: bool) -> None:
    """Make Ray take 127.0.0.1 for what it says (or not, for a cluster elsewhere).

    Ray replaces a loopback address by the machine's outward one before it connects, unless it thinks that this system
    has no clusters over several machines; then a cluster that listens on loopback only is never found.
    """
    from ray._private import ray_constants

    if not hasattr(ray_constants, "ENABLE_RAY_CLUSTER"):  # pragma: no cover - another Ray
        log.warning("this Ray has no ENABLE_RAY_CLUSTER: a cluster on loopback may not be found")
        return
    ray_constants.ENABLE_RAY_CLUSTER = not loopback


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables for the processes that Ray starts meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def own_sigterm() -> Iterator[None]:
    """Keep our SIGTERM handler while Ray starts nodes or connects.

    Every node replaces it by one that drains for 30 s and exits; a connection replaces it by one that exits, and below
    Python by one that prints a stack and dies. So it is installed again in any case.
    """
    from ray._private import utils

    handler = signal.getsignal(signal.SIGTERM)
    setter = getattr(utils, "set_sigterm_handler", None)
    if setter is not None:
        utils.set_sigterm_handler = lambda _handler: None
    try:
        yield
    finally:
        if setter is not None:
            utils.set_sigterm_handler = setter
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def children_outlive_hangup() -> Iterator[None]:
    """Processes that this thread starts meanwhile do not get SIGHUP, as when a terminal is closed.

    Ray's processes share their owner's group, so they would die under it at once, and it would wait for answers of the
    dead while it ends them in order. Ray does the same for Ctrl-C. Our own handler of SIGHUP goes on working.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def children_hear_interrupts() -> Iterator[None]:
    """Processes that this thread starts meanwhile do not ignore SIGINT.

    A shell without job control has its background commands ignore it, which their children inherit, and a Ray worker
    that ignores it cannot have a task of its cancelled: Ray interrupts the task's thread by it. This process itself
    goes on ignoring it.
    """
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    if not ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _ignore)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Ignores a signal here; unlike SIG_IGN, a handler is not inherited by other programs."""


@contextlib.contextmanager
def held_signals() -> Iterator[None]:
    """Hold back the first signal to end until afterwards; a second one comes through at once.

    For the half second in which Ray connects: broken off there, it counts as not connected, cannot be shut down, and
    the process crashes at its end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []

    def hold(number: int, _: FrameType | None) -> None:
        held.append(number)
        if len(held) > 1:
            restore()
            signal.raise_signal(number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # A handler that was not installed by Python is None here, and could not be installed again.
    before = {number: handler for number in ends if (handler := signal.getsignal(number)) is not None}
    for number in before:
        signal.signal(number, hold)
    try:
        yield
    finally:
        restore()
    if len(held) == 1:
        signal.raise_signal(held[0])


@contextlib.contextmanager
def no_ray_messages() -> Iterator[None]:
    """Keep Ray from printing its raylets' messages ("A worker died …") on this driver's standard output meanwhile.

    ``log_to_driver=False`` does not: those messages have a thread and a printer of their own.
    """
    from ray._private import worker

    printer = getattr(worker, "print_to_stdstream", None)
    if printer is None:  # pragma: no cover - another Ray
        yield
        return
    worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        worker.print_to_stdstream = printer
