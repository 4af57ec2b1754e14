"""What the demonstration stands on, and how all of it ends: signals, a home of its own, store, Ray, the world."""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Self

from cluster import janitor
from cluster.config import Settings
from cluster.ray_environment import environment, no_ray_messages
from penstock.connected import import_path
from penstock.demo_world import APP, WORLD_URL, World, examples_folder
from penstock.local import LocalDeployment
from penstock.sync_client import SyncClient

NODES: Final = 2
# Few enough that the queue is seen, many enough that each host has a crowd of agents when it is killed.
SLOTS_PER_HOST: Final = 128
_SIGNALS: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)
)


class Interrupted(KeyboardInterrupt):
    """Somebody asked the demonstration to end. A KeyboardInterrupt, because event loops let only that one through."""


class Interrupts:
    """Turns the first signal to end into :class:`Interrupted` and ignores the following ones; a context manager.

    After :meth:`disarm` nothing is raised any more, so that cleaning up is never interrupted.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._armed = True
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            # In place of SIG_IGN: that one would be inherited by whatever is started meanwhile.
            self._before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def disarm(self) -> None:
        """From now on signals are only noted."""
        self._armed = False

    def check(self) -> None:
        """Raise, if a signal came where its exception was lost (in a callback of some library)."""
        if self._armed and self.number is not None:
            raise Interrupted

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        first, self.number = self.number is None, self.number or number
        if first and self._armed:
            raise Interrupted


@dataclass(frozen=True)
class Stage:
    """Everything that was started."""

    settings: Settings
    world: World
    client: SyncClient
    examples: Path
    hosts: int


def build(stack: contextlib.ExitStack) -> Stage:
    """Start all of it, side by side where that helps; ``stack`` ends it again, in the opposite order.

    Raises DemoError, DeploymentError, and what store and Ray raise.
    """
    examples = examples_folder()
    stack.enter_context(import_path(examples))
    stack.enter_context(_quiet_logs())
    home = stack.enter_context(temporary_home())
    world = World(home, examples)
    # Never the user's own deployment: neither its home nor a store from the environment.
    settings = Settings(home=home, name="demo", redis_url=None, slots_per_host=SLOTS_PER_HOST)
    local = LocalDeployment(home, app=APP, app_dir=examples, nodes=NODES, settings=settings)
    stack.enter_context(world)
    # Hosts inherit the environment, and with it OPENAI_BASE_URL, OPENAI_API_KEY and REFUND_DESK_MODEL.
    with environment({WORLD_URL: world.url}):
        stack.enter_context(local)
    world.ready()
    stack.enter_context(no_ray_messages())  # it would tell at length of the host that we kill
    client = stack.enter_context(SyncClient(settings=local.settings))
    return Stage(local.settings, world, client, examples, len(client.hosts()))


@contextlib.contextmanager
def temporary_home() -> Iterator[Path]:
    """A private directory that is removed at the end, by the janitor's process even if this one is killed."""
    home = Path(tempfile.mkdtemp(prefix="penstock-demo-"))
    try:
        watching = subprocess.Popen(
            [sys.executable, "-I", "-S", str(janitor.__file__), str(home)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            yield home
        finally:
            watching.communicate()
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def _quiet_logs() -> Iterator[None]:
    """Of this process's own log only what is wrong: the rest is for whoever runs a deployment."""
    logger = logging.getLogger("penstock")
    before = logger.level
    logger.setLevel(os.environ.get("PENSTOCK_LOG_LEVEL") or logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
