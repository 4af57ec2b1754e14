"""How the world outside is served: one uvicorn process that says when it listens and ends when it is told to."""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

TRANSPORT = "refund_desk.transport"
LINUX_PR_SET_PDEATHSIG = 1


class NoAnswer(Response):
    """Closes the connection without a byte of answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cast(asyncio.Transport, scope[TRANSPORT]).abort()
        # The server must have noticed before the call ends, or it would answer 500 itself.
        while (await receive())["type"] != "http.disconnect":
            pass


class Protocol(HttpToolsProtocol):
    """HTTP as uvicorn speaks it; handlers can reach the connection, to close it without an answer."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        cast(dict[str, object], self.scope)[TRANSPORT] = self.transport


class Server(uvicorn.Server):
    """A server that says when it listens, and for which SIGTERM and Ctrl-C are the ordinary end."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own raises the signal again after a clean end, which would make the exit status a failure.
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def write_atomically(path: Path, value: object) -> None:
    """Write JSON so that a reader sees either nothing or all of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(value) + "\n", encoding="utf-8")
    partial.replace(path)


def die_with_parent(parent: int) -> None:
    """Ask the kernel to end this process when the thread that started it ends; `parent` is who that was."""
    if not sys.platform.startswith("linux"):
        raise SystemExit("--die-with-parent needs Linux")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(LINUX_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise SystemExit(f"--die-with-parent: prctl(PR_SET_PDEATHSIG): {os.strerror(code)}")
    if os.getppid() != parent:
        raise SystemExit("--die-with-parent: the parent had ended before this process was ready")
