"""Start the world outside as a process of its own, and ask it what happened: for demonstrations and tests."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx2

from refund_desk.ledger import ActionHistory, ActionPage, KeyHistory, KeyPage, Totals, Witness

EXAMPLES = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.02


def command(directory: Path, *arguments: str) -> list[str]:
    """The command of a world that keeps its ledger and ready file in `directory`, on a port that the system chooses."""
    files = ["--ledger", str(directory / "ledger.db"), "--ready-file", str(directory / "ready.json")]
    return [sys.executable, "-m", "refund_desk.world", *files, *arguments]


def environment() -> dict[str, str]:
    """The environment in which `command` finds this package."""
    paths = [str(EXAMPLES), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def wait_until_ready(directory: Path, process: subprocess.Popen[bytes]) -> str:
    """The address of the world, once it listens. Raises RuntimeError if it ends or takes too long."""
    ready = directory / "ready.json"
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready.exists():
        if process.poll() is not None:
            raise RuntimeError(f"the world in {directory} ended with status {process.returncode} before it listened")
        if time.monotonic() > deadline:
            raise RuntimeError(f"the world in {directory} did not listen within {START_TIMEOUT_S:g} s")
        time.sleep(POLL_S)
    return str(json.loads(ready.read_text(encoding="utf-8"))["url"])


class RunningWorld:
    """A world in a process of its own. `http` is a client of it."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        """Start it and wait until it listens. A ready file that a killed world left in `directory` is removed."""
        (directory / "ready.json").unlink(missing_ok=True)
        self.ledger_path = directory / "ledger.db"
        self.process = subprocess.Popen(command(directory, *arguments), env=environment())
        try:
            self.url = wait_until_ready(directory, self.process)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        self.http = httpx2.Client(base_url=self.url, timeout=10)

    def set_faults(self, **switches: Mapping[str, float]) -> None:
        """Replace all faults by those of the named endpoints, as in `refunds={"lost_response_rate": 0.2}`."""
        self.http.put("/faults", json=switches).raise_for_status()

    def totals(self) -> Totals:
        """What the ledger counted."""
        return Totals.model_validate_json(self.http.get("/ledger").raise_for_status().content)

    def keys(self, page_size: int = 1_000) -> Iterator[KeyHistory]:
        """What came with each idempotency key."""
        after: str | None = ""
        while after is not None:
            response = self.http.get("/ledger/keys", params={"after": after, "limit": page_size})
            page = KeyPage.model_validate_json(response.raise_for_status().content)
            yield from page.keys
            after = page.next

    def order(self, action: str, *conducts: Mapping[str, float | str]) -> None:
        """Say what becomes of the next payments for an action, as in `{"hold_ms": 500, "closes": "before"}`."""
        self.http.put(f"/payments/conduct/{action}", json=list(conducts)).raise_for_status()

    def witness(self, action: str, *, quiet_s: float = 0.0) -> Witness:
        """What there is to say of an action, once nothing of it is under way or the time is over."""
        asked = {"quiet": quiet_s > 0, "wait_s": quiet_s}
        response = self.http.get(f"/payments/actions/{action}", params=asked, timeout=quiet_s + 10)
        return Witness.model_validate_json(response.raise_for_status().content)

    def actions(self, page_size: int = 10_000) -> Iterator[ActionHistory]:
        """How often each action was applied."""
        after: str | None = ""
        while after is not None:
            response = self.http.get("/ledger/actions", params={"after": after, "limit": page_size})
            page = ActionPage.model_validate_json(response.raise_for_status().content)
            yield from page.actions
            after = page.next

    def stop(self) -> int:
        """End it in order, and return its exit status. Kills it when it takes too long."""
        self.http.close()
        self.process.terminate()
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@contextlib.contextmanager
def running_world(directory: Path, *arguments: str) -> Iterator[RunningWorld]:
    """A world for the time of a `with` block; `arguments` as for `python -m refund_desk.world`."""
    world = RunningWorld(directory, *arguments)
    try:
        yield world
    finally:
        world.stop()
