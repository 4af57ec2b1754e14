"""The provider's client: one small protocol over kept connections, so that little of a call's cost is the client's.

It says by penstock's errors what is known of a call that failed: whether it was ever sent, and what came back.
"""

import asyncio
import os
import re
from typing import Final, cast
from urllib.parse import urlsplit

import msgspec

from actors.errors import Ambiguous, NotApplied, RateLimited, Rejected
from benchmarks.provider.running import URL_VARIABLE

CONNECT_TIMEOUT_S: Final = 2.0
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_RETRY_AFTER: Final = re.compile(rb"\r\nretry-after(-ms)?: *(\d+)(?=\r\n)", re.IGNORECASE)
_text: Final = msgspec.json.Encoder().encode


class Lost(Exception):
    """The connection ended before the answer was there."""


class Answer(msgspec.Struct):
    """A response: its status, its head with all headers, its body."""

    status: int
    head: bytes
    body: bytes

    @property
    def retry_after_s(self) -> float | None:
        """What it asks for; milliseconds go before seconds, since they say it more exactly."""
        found = {unit: int(number) for unit, number in _RETRY_AFTER.findall(self.head)}
        if b"-ms" in found:
            return found[b"-ms"] / 1000
        return found.get(b"")


class _Connection(asyncio.Protocol):
    """One kept connection: at most one request at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._unread = b""
        self._waiter: asyncio.Future[Answer] | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's.
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(Lost(str(error or "it was closed")))

    def data_received(self, data: bytes) -> None:
        self._unread = self._unread + data if self._unread else data
        end = self._unread.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        head = self._unread[:end]
        found = _LENGTH.search(head)
        length = int(found[1]) if found else 0
        if len(self._unread) < end + length or self._waiter is None or self._waiter.done():
            return
        answer = Answer(int(head[9:12]), head, self._unread[end : end + length])
        self._unread = self._unread[end + length :]
        self._waiter.set_result(answer)

    async def ask(self, request: bytes) -> Answer:
        """Sends a request and waits for its answer. Raises Lost."""
        assert self.transport is not None, "only open connections are used"
        self._waiter = self._loop.create_future()
        self.transport.write(request)
        return await self._waiter

    def abort(self) -> None:
        """Ends it without waiting for anything."""
        if self.transport is not None:
            self.transport.abort()


class ProviderClient:
    """A client for one event loop. It opens as many connections as there are calls at once, and keeps them."""

    def __init__(self, url: str) -> None:
        """Takes the provider's address, as in ``http://127.0.0.1:8080``. Opens nothing yet."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or not parts.port:
            raise Rejected(f"the provider's URL is {url!r}: give http://host:port in {URL_VARIABLE}")
        self.url = url
        self.loop = asyncio.get_running_loop()
        self._host, self._port = parts.hostname, parts.port
        self._idle: list[_Connection] = []
        self._head = f"POST /call HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-length: ".encode()

    async def call(self, *, host: str, tokens: int = 0, attempt: int = 1, value: str = "normal") -> Answer:
        """One call. There is no time-out but that of connecting: cancel it, and its connection is closed.

        Raises:
            NotApplied: it was never sent, or refused because the provider is overloaded.
            RateLimited: it was refused because of the provider's limits, until its ``retry_after_s``.
            Ambiguous: nobody knows whether it happened: no answer, or a server error.
            Rejected: the provider does not understand it.
        """
        body = _text({"host": host, "tokens": tokens, "attempt": attempt, "class": value})
        connection = await self._connection()
        try:
            answer = await connection.ask(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))
        except Lost as lost:
            raise Ambiguous(f"the provider at {self.url}: no answer: {lost}") from None
        except BaseException:
            # The answer to this call must not be taken for that to the next one.
            connection.abort()
            raise
        self._idle.append(connection)
        if answer.status == 200:
            return answer
        raise _refusal(answer)

    async def _connection(self) -> _Connection:
        """A connection that is free now. The one that was used last has the best chance to be still open."""
        while self._idle:
            connection = self._idle.pop()
            if connection.transport is not None and not connection.transport.is_closing():
                return connection
        loop = self.loop
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(lambda: _Connection(loop), self._host, self._port)
        except OSError as error:
            raise NotApplied(f"the provider at {self.url} cannot be reached: {error}") from None
        return connection

    def close(self) -> None:
        """Ends the connections that are idle."""
        while self._idle:
            self._idle.pop().abort()


def _refusal(answer: Answer) -> Exception:
    """What a status other than 200 says of the call."""
    text = f"the provider: {answer.status}: {answer.body[:300].decode(errors='replace')}"
    if answer.status == 429:
        return RateLimited(text, retry_after=answer.retry_after_s)
    if answer.status == 503:
        return NotApplied(text, retry_after_s=answer.retry_after_s)
    return Ambiguous(text) if answer.status >= 500 else Rejected(text)


_client: ProviderClient | None = None


def client() -> ProviderClient:
    """The client of the running event loop, for the provider at ``PROVIDER_URL``; made at the first call."""
    global _client
    if _client is None or _client.loop is not asyncio.get_running_loop():
        url = os.environ.get(URL_VARIABLE)
        if not url:
            raise Rejected(f"{URL_VARIABLE} is not set: start the hosts with the environment of a running provider")
        _client = ProviderClient(url)
    return _client
