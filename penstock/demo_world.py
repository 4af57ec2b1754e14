"""The demonstration's outside world: the example's HTTP server in a process of its own, and what its ledger says."""

import contextlib
import importlib.util
import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, NamedTuple, Self
from urllib.parse import urlsplit

import httpx

from actors.errors import PenstockError
from cluster.valkey_conf import choose_port

ROOT: Final = Path(__file__).resolve().parents[1]
APP: Final = "refund_desk.app"
WORLD_URL: Final = "REFUND_DESK_WORLD_URL"
NEEDED: Final = ("fastapi", "uvicorn", "httptools", "openai", "httpx2")
# Long enough that a kill meets calls that are under way, in the order of what such services really take.
LATENCY: Final = {
    "orders": {"latency_ms": 20, "latency_jitter_ms": 40},
    "model": {"latency_ms": 100, "latency_jitter_ms": 200},
    "refunds": {"latency_ms": 20, "latency_jitter_ms": 40},
    "answers": {"latency_ms": 10, "latency_jitter_ms": 20},
}
_STOP_S: Final = 10.0
_ANSWER_S: Final = 30.0
_LOG_TAIL_BYTES: Final = 2_000


class Witness(NamedTuple):
    """What the world's ledger says of what was done to it."""

    requests: int
    refunds: int
    answers: int
    repeated_keys: int
    duplicate_effects: int


class AskedKey(NamedTuple):
    """What came with one idempotency key at one endpoint, for the history checker."""

    endpoint: str
    idempotency_key: str
    order_id: str | None
    requests: int
    applied: int


class DemoError(PenstockError):
    """The demonstration cannot be given here; the text says why and what to do."""


def examples_folder() -> Path:
    """The folder with the example. Raises DemoError where the source tree or the example's packages are missing."""
    folder = ROOT / "examples"
    if not (folder / "refund_desk" / "app.py").is_file():
        raise DemoError(
            f"the demonstration needs the example in the source tree, and there is no {folder / 'refund_desk'}: an "
            "installed Penstock comes without it. Get the source tree and run `make demo` there"
        )
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise DemoError(
            f"the example needs packages that are not installed ({', '.join(missing)}): "
            "run `make demo`, or install them with `pip install -e '.[example]'` in the source tree"
        )
    return folder


def batch_file(examples: Path, jobs: int) -> tuple[Path | BinaryIO, str]:
    """The first ``jobs`` jobs of the example's batch file, and their name for people. More are made by its maker."""
    path = examples / "refund_desk" / "jobs.jsonl"
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise DemoError(f"{path} cannot be read ({error.strerror}): get a whole source tree") from None
    if jobs == len(lines):
        return path, "examples/refund_desk/jobs.jsonl"
    if jobs < len(lines):
        return io.BytesIO(b"".join(lines[:jobs])), f"the first {jobs:,} lines of examples/refund_desk/jobs.jsonl"
    from refund_desk.make_jobs import jobs as made  # the same jobs, and then more of them

    text = "".join(json.dumps(job, separators=(",", ":")) + "\n" for job in itertools.islice(made(jobs), jobs))
    return io.BytesIO(text.encode()), f"{jobs:,} jobs as refund_desk.make_jobs makes them"


def model_in_use() -> str:
    """Which model the agents will ask, for people and without any secret."""
    address = os.environ.get("OPENAI_BASE_URL", "")
    if not address:
        return "the outside world's own, deterministic"
    name = os.environ.get("REFUND_DESK_MODEL")
    host = urlsplit(address).hostname or "OPENAI_BASE_URL"
    return f"{name} at {host}" if name else f"at {host} (REFUND_DESK_MODEL does not say which)"


class World:
    """The world outside, in a process of its own that ends with this one. Use it as a context manager.

    The port is chosen before, so that everything else can start while the world does. Start it in the main thread:
    on Linux the kernel ends it when the thread that started it ends.
    """

    def __init__(self, directory: Path, examples: Path) -> None:
        self.directory = directory
        self.port = choose_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._examples = examples
        self._log = directory / "world.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._http = httpx.Client(base_url=self.url, timeout=_ANSWER_S, trust_env=False)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start its process; :meth:`ready` waits for it."""
        from refund_desk.running import command, environment

        bound = ["--die-with-parent"] if sys.platform == "linux" else []
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command(self.directory, "--port", str(self.port), *bound),
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a terminal's Ctrl-C is for us: we end the world, in order
            )

    def ready(self) -> None:
        """Wait until it listens, and give it its latencies. Raises DemoError with the end of its log."""
        from refund_desk.running import wait_until_ready

        assert self._process is not None
        try:
            wait_until_ready(self.directory, self._process)
            self._http.put("/faults", json=LATENCY).raise_for_status()
        except (RuntimeError, httpx.HTTPError) as error:
            tail = self._log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
            raise DemoError(f"the outside world did not start: {error}; it says:\n{tail}") from None

    def witness(self) -> Witness:
        """What the ledger counted of all that was asked before. Raises DemoError when the world does not answer."""
        said = self._ask("/ledger")
        return Witness(
            requests=said["requests"],
            refunds=said["refunds_applied"],
            answers=said["answers_applied"],
            repeated_keys=said["repeated_keys"],
            duplicate_effects=said["duplicate_refunds"] + said["duplicate_answers"],
        )

    def keys(self) -> list[AskedKey]:
        """What came with each idempotency key. Raises DemoError when the world does not answer."""
        found: list[AskedKey] = []
        after: str | None = ""
        while after is not None:
            page = self._ask("/ledger/keys", after=after, limit="2000")
            found.extend(AskedKey(**key) for key in page["keys"])
            after = page["next"]
        return found

    def _ask(self, path: str, **parameters: str) -> Any:
        try:
            return self._http.get(path, params=parameters).raise_for_status().json()
        except httpx.HTTPError as error:
            raise DemoError(f"the outside world at {self.url} does not tell its ledger: {error}") from None

    def stop(self) -> None:
        """End it in order, or by force when that takes too long."""
        self._http.close()
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
        if process.poll() is None:
            process.kill()
            process.wait()
