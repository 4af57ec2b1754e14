"""Real listeners that answer as a test says: byte by byte, late, half, or never."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

Behaviour = Callable[["Connection"], Awaitable[None]]


class Connection:
    """One connection from a client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(self) -> tuple[str, dict[str, str], bytes]:
        """The first line, the headers by name in lower case, and the body."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        return head[0], headers, await self.reader.readexactly(int(headers.get("content-length", 0)))

    async def send(self, *pieces: bytes, pause_s: float = 0.0) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(pause_s)

    async def for_ever(self) -> None:
        """Until the client has gone."""
        await self.reader.read()


class Listener:
    """A listener on a port of its own, with what it was asked."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self.connections = 0
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._behaviour(Connection(reader, writer))
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def listening(behaviour: Behaviour) -> AsyncIterator[Listener]:
    listener = Listener(behaviour)
    server = await asyncio.start_server(listener.serve, "127.0.0.1", 0)
    listener.port = server.sockets[0].getsockname()[1]
    try:
        yield listener
    finally:
        server.close()


def head(status: int, headers: dict[str, str], length: int | None) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in headers.items())]
    lines.append("Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@contextlib.asynccontextmanager
async def answering(
    status: int = 200, headers: dict[str, str] | None = None, body: bytes | dict[str, Any] = b"{}"
) -> AsyncIterator[Listener]:
    """A listener that answers every request alike."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    said = {"Content-Type": "application/json", **(headers or {})}

    async def behaviour(connection: Connection) -> None:
        while True:
            listener.requests.append(await connection.request())
            await connection.send(head(status, said, len(content)) + content)

    async with listening(behaviour) as listener:
        yield listener


@contextlib.contextmanager
def refusing() -> Any:
    """The URL of a port on which nobody listens, and that nobody else gets meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"
