"""Start a provider as a process of its own, tell it what to do, and ask it what came."""

import http.client
import json
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any, Final

import msgspec

from benchmarks.provider.arrivals import Arrival, decode_arrivals
from benchmarks.provider.conduct import Mode
from benchmarks.provider.server import Stats
from cluster.processes import spawn_owned

URL_VARIABLE: Final = "PROVIDER_URL"
START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 10.0
ANSWER_TIMEOUT_S: Final = 30.0
_ROOT: Final = Path(__file__).resolve().parents[2]


class RunningProvider:
    """A provider in a process of its own, which the kernel ends when this process ends (on Linux).

    ``url`` is what callers need in ``PROVIDER_URL``: hosts inherit it from Ray's processes, so give ``environment`` to
    the :class:`~cluster.session.LocalRay` that is started after it.
    """

    def __init__(self, port: int = 0) -> None:
        """Starts it and waits until it listens.

        Raises:
            RuntimeError: it ended first, or took too long.
        """
        reading, writing = os.pipe()
        command = [sys.executable, "-m", "benchmarks.provider", "--port", str(port), "--ready-fd", str(writing)]
        try:
            self.process = spawn_owned(command, directory=_ROOT, output_fd=2, kept_fds=(writing,))
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        try:
            self.url: str = _ready(reading)["url"]
        except BaseException:
            self.kill()
            raise
        finally:
            os.close(reading)
        self._address = self.url.removeprefix("http://")

    @property
    def environment(self) -> dict[str, str]:
        """What processes that call it need in their environment."""
        return {URL_VARIABLE: self.url}

    @property
    def port(self) -> int:
        """Where it listens on loopback."""
        return int(self._address.rpartition(":")[2])

    def set_mode(self, mode: Mode | None = None, **fields: Any) -> int:
        """Replaces the whole mode: by this one, or by one with these fields; without any, a provider that just works.

        Returns the moment since when it holds, by the monotonic clock in nanoseconds.

        Raises:
            RuntimeError: the provider refused it; the text says why.
        """
        body = msgspec.json.encode(mode if mode is not None else fields)
        return int(json.loads(self._ask("PUT", "/mode", body))["at_ns"])

    def arrivals(self) -> list[Arrival]:
        """The calls since the last :meth:`forget`, in the order of their arrival."""
        return decode_arrivals(self._ask("GET", "/arrivals"))

    def forget(self) -> int:
        """Begins a new list of arrivals; returns since when."""
        return int(json.loads(self._ask("DELETE", "/arrivals"))["at_ns"])

    def stats(self) -> Stats:
        """Counts, which cost less to ask for than all arrivals."""
        return msgspec.json.decode(self._ask("GET", "/stats"), type=Stats)

    def stop(self) -> int:
        """Ends it in order, and returns its exit status. Kills it when it takes too long."""
        self.process.terminate()
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        except TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """Ends it at once; whoever has sent it a call gets no answer."""
        self.process.kill()
        return self.process.wait()

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        connection = http.client.HTTPConnection(self._address, timeout=ANSWER_TIMEOUT_S)
        try:
            connection.request(method, path, body, {"connection": "close"})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise RuntimeError(f"the provider at {self.url}: {method} {path}: {answer.status}: {content.decode()}")
        return content


def _ready(reading: int) -> dict[str, Any]:
    """The ready line, from a pipe that ends when the provider does."""
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([reading], [], [], START_TIMEOUT_S)[0]:
            raise RuntimeError(f"the provider did not listen within {START_TIMEOUT_S:g} s")
        piece = os.read(reading, 4096)
        if not piece:
            raise RuntimeError("the provider ended before it listened; standard error has its reason")
        line += piece
    said: dict[str, Any] = json.loads(line)
    return said


@contextmanager
def running_provider(mode: Mode | None = None) -> Iterator[RunningProvider]:
    """A provider for the time of a ``with`` block, in the given mode."""
    provider = RunningProvider()
    try:
        if mode is not None:
            provider.set_mode(mode)
        yield provider
    finally:
        provider.stop()
