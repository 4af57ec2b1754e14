"""The provider's HTTP: requests with a Content-Length over kept connections, one at a time on each; nothing else.

``POST /call`` is on the path that is measured, and so it is parsed by hand: a web framework would take more of the
processors than what is measured. The rest is for whoever conducts the benchmark.
"""

import asyncio
import re
import time
from collections import Counter
from typing import Annotated, Final, NamedTuple, cast

import msgspec

from benchmarks.provider.arrivals import Arrivals
from benchmarks.provider.conduct import DROPPED, FAILED, OK, OVERLOADED, RATE_LIMITED, Conduct, Mode, Verdict

LARGEST_HEAD: Final = 16_384
LARGEST_BODY: Final = 65_536
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,9})[ \t]*\r\n", re.IGNORECASE)
_UNSUPPORTED: Final = re.compile(rb"\r\n(transfer-encoding|expect):", re.IGNORECASE)
_CLOSE: Final = re.compile(rb"\r\nconnection:[ \t]*close[ \t]*\r\n", re.IGNORECASE)
_REASONS: Final = {
    OK: b"OK", 400: b"Bad Request", 404: b"Not Found", 405: b"Method Not Allowed", 413: b"Content Too Large",
    RATE_LIMITED: b"Too Many Requests", FAILED: b"Internal Server Error", 501: b"Not Implemented",
    OVERLOADED: b"Service Unavailable",
}  # fmt: skip
_BODIES: Final = {
    OK: b'{"ok":true}',
    RATE_LIMITED: b'{"error":{"message":"rate limit reached","type":"rate_limit_error"}}',
    FAILED: b'{"error":{"message":"the provider failed","type":"server_error"}}',
    OVERLOADED: b'{"error":{"message":"too many calls at once","type":"overloaded_error"}}',
}
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31)]


class Call(msgspec.Struct, forbid_unknown_fields=True):
    """What a caller says of its call."""

    host: str = ""
    tokens: Count = 0
    attempt: Count = 1
    value: str = msgspec.field(default="normal", name="class")


class Stats(msgspec.Struct):
    """How many calls there were since the arrivals were forgotten, by status, and how many are under way now."""

    arrivals: int
    under_way: int
    by_status: dict[int, int]


class Reply(NamedTuple):
    """An answer to whoever conducts the benchmark."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"


_call_of: Final = msgspec.json.Decoder(Call).decode
_mode_of: Final = msgspec.json.Decoder(Mode).decode


def response(status: int, body: bytes, headers: bytes = b"", content_type: bytes = b"application/json") -> bytes:
    """A whole response; ``headers`` are lines with their ends."""
    return b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n%b\r\n%b" % (
        status, _REASONS[status], content_type, len(body), headers, body,
    )  # fmt: skip


class Provider:
    """What all connections share: the mode, the arrivals, and how many calls are under way."""

    def __init__(self) -> None:
        self.conduct = Conduct(Mode())
        self.arrivals = Arrivals()
        self.by_status: Counter[int] = Counter()
        self.under_way = 0
        self._plain = {status: response(status, body) for status, body in _BODIES.items()}

    def answer(self, now_ns: int, verdict: Verdict) -> bytes:
        """The response to a call; empty for none."""
        status, window = verdict.status, self.conduct.window
        if status == DROPPED:
            return b""
        if window is None:
            return self._plain[status]
        headers = window.headers(now_ns)
        if wait_ms := verdict.retry_after_ms:
            headers += b"retry-after: %d\r\nretry-after-ms: %d\r\n" % (-(-wait_ms // 1000), wait_ms)
        return response(status, _BODIES[status], headers)

    def conducted(self, method: bytes, path: bytes, body: bytes) -> Reply:
        """Does what the one who conducts the benchmark asks for."""
        match method, path:
            case b"PUT", b"/mode":
                try:
                    mode = _mode_of(body)
                except msgspec.DecodeError as error:
                    return _refusal(400, f"the mode: {error}")
                self.conduct = self.conduct.changed(mode)
                return Reply(OK, b'{"at_ns":%d}' % time.monotonic_ns())
            case b"GET", b"/mode":
                return Reply(OK, msgspec.json.encode(self.conduct.mode))
            case b"GET", b"/arrivals":
                return Reply(OK, self.arrivals.encoded(), b"application/msgpack")
            case b"DELETE", b"/arrivals":
                self.arrivals = Arrivals()
                self.by_status = Counter()
                return Reply(OK, b'{"at_ns":%d}' % time.monotonic_ns())
            case b"GET", b"/stats":
                return Reply(OK, msgspec.json.encode(Stats(len(self.arrivals), self.under_way, self.by_status)))
            case _, b"/call" | b"/mode" | b"/arrivals" | b"/stats":
                return _refusal(405, f"{path.decode()} knows no {method.decode('latin-1')}")
        return _refusal(404, "there are /call, /mode, /arrivals and /stats")


class Connection(asyncio.Protocol):
    """One connection of a caller's."""

    def __init__(self, provider: Provider, loop: asyncio.AbstractEventLoop) -> None:
        self._provider = provider
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._unread = b""
        self._busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, _: Exception | None) -> None:
        # A call that is under way goes on, as it does at a real provider: nobody can take it back by leaving.
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._unread = self._unread + data if self._unread else data
        self._read()

    def _read(self) -> None:
        """Serves the requests that are there, one after the other."""
        while self._unread and not self._busy and self._transport is not None:
            end = self._unread.find(b"\r\n\r\n") + 4
            if end < 4:
                if len(self._unread) > LARGEST_HEAD:
                    self._end_with(_refusal(400, "the head is too large"))
                return
            head = self._unread[:end]
            if _UNSUPPORTED.search(head):
                return self._end_with(_refusal(501, "bodies need a Content-Length; Expect is not known"))
            found = _LENGTH.search(head)
            length = int(found[1]) if found else 0
            if length > LARGEST_BODY:
                return self._end_with(_refusal(413, f"the body has over {LARGEST_BODY} bytes"))
            if len(self._unread) < end + length:
                return
            body, self._unread = self._unread[end : end + length], self._unread[end + length :]
            self._serve(head, body)

    def _serve(self, head: bytes, body: bytes) -> None:
        closes = _CLOSE.search(head) is not None
        if head.startswith(b"POST /call "):
            return self._call(body, closes)
        words = head[: head.index(b"\r\n")].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return self._end_with(_refusal(400, "this is no HTTP/1.1 request"))
        reply = self._provider.conducted(words[0], words[1], body)
        self._send(response(reply.status, reply.body, b"", reply.content_type), closes)

    def _call(self, body: bytes, closes: bool) -> None:
        provider = self._provider
        try:
            call = _call_of(body)
        except msgspec.DecodeError as error:
            return self._end_with(_refusal(400, f"the call: {error}"))
        now_ns = time.monotonic_ns()
        verdict = provider.conduct.verdict(now_ns, call.host, provider.under_way)
        status = verdict.status
        arrivals = provider.arrivals
        number = arrivals.add(now_ns, status, call.host, call.attempt, call.tokens, call.value, verdict.retry_after_ms)
        provider.by_status[status] += 1
        data = provider.answer(now_ns, verdict)
        if verdict.delay_s <= 0:
            arrivals.ended(number, now_ns)
            return self._send(data, closes)
        provider.under_way += 1
        self._busy = True
        self._loop.call_later(verdict.delay_s, self._late, data, closes, arrivals, number)

    def _late(self, data: bytes, closes: bool, arrivals: Arrivals, number: int) -> None:
        self._provider.under_way -= 1
        arrivals.ended(number, time.monotonic_ns())
        self._busy = False
        self._send(data, closes)
        self._read()

    def _send(self, data: bytes, closes: bool) -> None:
        if self._transport is None:
            return
        if not data:
            self._transport.abort()
            self._transport = None
            return
        self._transport.write(data)
        if closes:
            self._transport.close()
            self._transport = None

    def _end_with(self, reply: Reply) -> None:
        """Refuses what cannot be read further."""
        self._unread = b""
        self._send(response(reply.status, reply.body, b"connection: close\r\n"), closes=True)


def _refusal(status: int, message: str) -> Reply:
    return Reply(status, msgspec.json.encode({"error": {"message": message, "type": "invalid_request_error"}}))


async def serve(host: str, port: int) -> tuple[asyncio.Server, int]:
    """Listens; returns the server and its port."""
    loop = asyncio.get_running_loop()
    provider = Provider()
    server = await loop.create_server(lambda: Connection(provider, loop), host, port, backlog=4096)
    return server, int(server.sockets[0].getsockname()[1])
