"""httpx and httpx2 against real listeners: what a failure says is what happened on the wire."""

from __future__ import annotations

import asyncio
import email.utils
import logging
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from listeners import Connection, answering, chunk, head, listening, refusing

from actors.errors import RateLimited
from penstock import Ambiguous, NotApplied, Rejected, ToolCall, ToolError
from penstock.adapters import http, meaning

LIBRARIES: Any = [httpx, httpx2]
KEY = "refund-1/key"


def made_call(*, effect: bool = False, timeout_s: float = 5.0, **more: Any) -> ToolCall:
    return ToolCall(
        "refund", "run", "1", 1, lambda: KEY, timeout_s, "default", time.monotonic,
        dependency="payments", is_effect=effect, **more,
    )  # fmt: skip


@pytest.fixture(params=LIBRARIES, ids=lambda library: library.__name__)
def library(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
async def client(library: Any) -> AsyncIterator[Any]:
    async with library.AsyncClient(trust_env=False, verify=False) as client:
        yield client


async def failure(call: ToolCall, client: Any, url: str, **options: Any) -> ToolError:
    with pytest.raises(ToolError) as caught:
        await http.request(call, client, "POST" if call.is_effect else "GET", url, **options)
    return caught.value


both = pytest.mark.parametrize("effect", [False, True], ids=["read", "effect"])


# ------------------------------------------------------------------------------------------ what happened on the wire


@both
async def test_a_refused_connection_is_not_applied(client: Any, effect: bool) -> None:
    with refusing() as url:
        error = await failure(made_call(effect=effect), client, f"{url}/refunds?key=1")
    assert type(error) is NotApplied
    assert "ConnectError" in str(error)
    assert f"{url}/refunds: " in str(error)


async def test_a_name_that_is_not_there_is_not_applied(client: Any) -> None:
    assert type(await failure(made_call(effect=True), client, "http://nobody.invalid/")) is NotApplied


async def test_a_connection_that_is_not_made_in_time_is_not_applied(client: Any) -> None:
    """A backlog of one that is full: the kernel drops what comes, and the attempt must not end before we know."""
    import socket

    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        await asyncio.sleep(0.05)
        began_s = time.monotonic()
        async with asyncio.timeout(1.0):
            error = await failure(
                made_call(effect=True, timeout_s=1.0), client, f"http://127.0.0.1:{full.getsockname()[1]}"
            )
    assert type(error) is NotApplied
    assert "ConnectTimeout" in str(error)
    assert time.monotonic() - began_s < 0.9


async def test_a_full_pool_is_not_applied(library: Any) -> None:
    async def silent(connection: Connection) -> None:
        await connection.for_ever()

    limits = library.Limits(max_connections=1)
    async with listening(silent) as listener, library.AsyncClient(trust_env=False, limits=limits) as client:
        first = asyncio.create_task(failure(made_call(timeout_s=3.0), client, listener.url))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(1.0):
            second = await failure(made_call(effect=True, timeout_s=1.0), client, listener.url)
        assert type(second) is NotApplied
        assert "PoolTimeout" in str(second)
        first.cancel()
        await asyncio.wait([first])
    assert listener.connections == 1


async def test_no_tls_there_is_not_applied(client: Any) -> None:
    async with answering() as listener:
        secure = listener.url.replace("http:", "https:")
        error = await failure(made_call(effect=True, timeout_s=1.0), client, secure)
    assert type(error) is NotApplied
    assert listener.requests == []


async def test_a_proxy_that_refuses_is_not_applied(library: Any) -> None:
    async with answering(403) as proxy, library.AsyncClient(proxy=proxy.url) as client:
        assert type(await failure(made_call(effect=True), client, "https://payments.invalid/refunds")) is NotApplied


@both
async def test_sent_and_never_answered_is_ambiguous(client: Any, effect: bool) -> None:
    async def silent(connection: Connection) -> None:
        listener.requests.append(await connection.request())
        await connection.for_ever()

    async with listening(silent) as listener:
        error = await failure(made_call(effect=effect, timeout_s=0.2), client, listener.url)
    assert type(error) is Ambiguous
    assert "ReadTimeout" in str(error)
    assert len(listener.requests) == 1


@pytest.mark.parametrize("half", [b"", b"HTTP/1.1 20", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"])
async def test_sent_and_cut_off_is_ambiguous(client: Any, half: bytes) -> None:
    async def cut(connection: Connection) -> None:
        await connection.request()
        await connection.send(half)

    async with listening(cut) as listener:
        assert type(await failure(made_call(effect=True), client, listener.url)) is Ambiguous


async def test_reset_before_the_request_was_read_is_ambiguous(client: Any) -> None:
    async def reset(connection: Connection) -> None:
        connection.writer.transport.abort()

    async with listening(reset) as listener:
        assert type(await failure(made_call(effect=True), client, listener.url)) is Ambiguous


async def test_an_answer_that_is_no_http_is_ambiguous(client: Any) -> None:
    async def nonsense(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"220 mail.example ESMTP\r\n\r\n")

    async with listening(nonsense) as listener:
        assert type(await failure(made_call(effect=True), client, listener.url)) is Ambiguous


async def test_a_body_that_cannot_be_decoded_is_ambiguous(client: Any) -> None:
    async with answering(headers={"Content-Encoding": "gzip"}, body=b"no gzip") as listener:
        assert type(await failure(made_call(effect=True), client, listener.url)) is Ambiguous


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "127.0.0.1/x", "http://host:port/", "\x00"])
async def test_a_url_that_cannot_be_used_is_rejected(client: Any, url: str) -> None:
    assert type(await failure(made_call(effect=True), client, url)) is Rejected


async def test_a_header_that_cannot_be_sent_is_rejected_and_not_shown(client: Any) -> None:
    async with answering() as listener:
        error = await failure(
            made_call(effect=True), client, listener.url, headers={"Authorization": "Bearer hush-hush\n"}
        )
    assert type(error) is Rejected
    assert "hush" not in str(error)
    assert listener.requests == []


async def test_what_cannot_be_made_a_request_is_rejected(client: Any) -> None:
    async with answering() as listener:
        for options in ({"json": object()}, {"no_such_option": 1}, {"headers": {"X": object()}}):
            assert type(await failure(made_call(effect=True), client, listener.url, **options)) is Rejected
    assert listener.connections == 0


# ------------------------------------------------------------------------------------------------------- statuses

STATUSES = [
    (400, Rejected), (401, Rejected), (403, Rejected), (404, Rejected), (408, Ambiguous), (409, Ambiguous),
    (410, Rejected), (422, Rejected), (423, Rejected), (425, NotApplied), (429, RateLimited), (500, Ambiguous),
    (501, Ambiguous), (502, Ambiguous), (503, Ambiguous), (504, Ambiguous), (529, NotApplied), (599, Ambiguous),
]  # fmt: skip


@both
@pytest.mark.parametrize(("status", "kind"), STATUSES)
async def test_a_status_says_what_is_known(status: int, kind: type[ToolError], effect: bool) -> None:
    async with (
        answering(status, body=b"what was wrong") as listener,
        httpx2.AsyncClient(trust_env=False, verify=False) as client,
    ):
        error = await failure(made_call(effect=effect), client, listener.url)
        assert type(error) is kind
        assert f"{status}: what was wrong" in str(error)
        assert error.retry_after_s is None


@both
@pytest.mark.parametrize("status", [200, 201, 204, 302, 303, 304])
async def test_what_is_no_failure_comes_back(client: Any, status: int, effect: bool) -> None:
    async with answering(status, {"Location": "/elsewhere"}, body=b"" if status in (204, 304) else b"{}") as listener:
        response = await http.request(made_call(effect=effect), client, "POST", listener.url)
    assert response.status_code == status
    assert response.is_closed


@pytest.mark.parametrize("status", [301, 307, 308])
async def test_an_effect_that_is_to_go_elsewhere_was_not_done(library: Any, status: int) -> None:
    async with (
        answering(status, {"Location": "/elsewhere"}) as listener,
        library.AsyncClient(trust_env=False, follow_redirects=True) as client,
    ):
        assert type(await failure(made_call(effect=True), client, listener.url)) is Rejected
        assert len(listener.requests) == 1
        assert type(await failure(made_call(), client, listener.url)) is Ambiguous, "too many redirects"


async def test_a_followed_redirect_never_speaks_for_an_effect(library: Any) -> None:
    """303 says that it was done: a refused connection to the page that it names must not undo that."""
    with refusing() as nowhere:
        async with (
            answering(303, {"Location": nowhere}) as listener,
            library.AsyncClient(trust_env=False, follow_redirects=True) as client,
        ):
            response = await http.request(made_call(effect=True), client, "POST", listener.url)
            assert response.status_code == 303
            assert type(await failure(made_call(), client, listener.url)) is NotApplied


@pytest.mark.parametrize(
    ("status", "kind", "headers", "seconds"),
    [
        (429, RateLimited, {"Retry-After": "7"}, 7.0),
        (429, RateLimited, {"Retry-After": "7", "retry-after-ms": "6500"}, 6.5),
        (429, RateLimited, {"x-ratelimit-reset-tokens": "6m0s", "x-ratelimit-remaining-tokens": "0"}, 60.0),
        (403, RateLimited, {"Retry-After": "20"}, 20.0),
        (503, Ambiguous, {"retry-after": "3"}, 3.0),
        (500, Ambiguous, {"retry-after": "3"}, 3.0),
        (529, NotApplied, {"Retry-After": "2.5"}, 2.5),
        (400, Rejected, {"Retry-After": "5"}, None),
    ],
)
async def test_how_long_to_wait_goes_along(
    status: int, kind: type[ToolError], headers: dict[str, str], seconds: float | None
) -> None:
    call = made_call(effect=True, maximum_retry_after_s=60.0)
    async with answering(status, headers) as listener, httpx.AsyncClient(trust_env=False, verify=False) as client:
        error = await failure(call, client, listener.url)
    assert type(error) is kind
    assert error.retry_after_s == seconds


async def test_a_date_is_counted_from_now(client: Any) -> None:
    async with answering(429, {"Retry-After": email.utils.formatdate(time.time() + 30, usegmt=True)}) as listener:
        error = await failure(made_call(), client, listener.url)
    assert error.retry_after_s == pytest.approx(30, abs=2)


async def test_odd_headers_are_in_the_error_and_once_in_the_log(
    client: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meaning, "_odd_told_at", {})
    monkeypatch.setattr(logging.getLogger("penstock"), "propagate", True)
    async with answering(429, {"Retry-After": "-5"}) as listener:
        errors = [await failure(made_call(), client, listener.url) for _ in range(3)]
    assert all("retry-after '-5' is negative: taken as 0 s" in str(error) for error in errors)
    assert errors[0].retry_after_s == 0
    (line,) = [record.getMessage() for record in caplog.records if record.name == "penstock.adapters"]
    assert "payments, called by tool refund" in line
    assert "retry-after '-5'" in line


async def test_a_service_may_mean_something_else_by_a_status(client: Any) -> None:
    async with answering(409, {"Retry-After": "1"}) as listener:
        error = await failure(made_call(effect=True), client, listener.url, meanings={409: Rejected})
        assert type(error) is Rejected
        limited = await failure(made_call(effect=True), client, listener.url, meanings={409: RateLimited})
        assert (type(limited), limited.retry_after_s) == (RateLimited, 1.0)


async def test_a_failure_whose_text_never_ends_is_known_at_once(client: Any) -> None:
    async def talkative(connection: Connection) -> None:
        await connection.request()
        await connection.send(head(429, {"Retry-After": "4"}, None) + chunk(b"slow down"))
        await connection.for_ever()

    async with listening(talkative) as listener:
        began_s = time.monotonic()
        error = await failure(made_call(effect=True, timeout_s=30), client, listener.url)
    assert (type(error), error.retry_after_s) == (RateLimited, 4.0)
    assert "slow down" in str(error)
    assert time.monotonic() - began_s < 5


async def test_a_failure_leaves_the_connection_usable(client: Any) -> None:
    async with answering(429, body=b"x" * 2_000) as listener:
        for _ in range(3):
            await failure(made_call(), client, listener.url)
    assert listener.connections == 1
    assert len(listener.requests) == 3


# --------------------------------------------------------------------------------------------- what is sent, and shown


async def test_effects_carry_their_key_and_reads_do_not(client: Any) -> None:
    async with answering() as listener:
        await http.request(made_call(effect=True), client, "POST", listener.url, json={"cents": 5})
        await http.request(made_call(), client, "GET", listener.url)
        await http.request(made_call(effect=True), client, "POST", listener.url, headers={"idempotency-key": "mine"})
    assert [headers.get("idempotency-key") for _, headers, _ in listener.requests] == [KEY, None, "mine"]
    assert listener.requests[0][2].replace(b" ", b"") == b'{"cents":5}'


async def test_a_base_url_and_options_are_the_clients_own(library: Any) -> None:
    async with answering(body=b'{"id": 1}') as listener, library.AsyncClient(base_url=listener.url) as client:
        response = await http.request(made_call(), client, "GET", "/orders/1", params={"full": 1}, auth=("me", "hush"))
        assert response.json() == {"id": 1}
        error = await failure(made_call(timeout_s=5), client, "/orders/1", timeout=0.000_001)
        assert "GET /orders/1: " in str(error)
    assert listener.requests[0][0] == "GET /orders/1?full=1 HTTP/1.1"
    assert listener.requests[0][1]["authorization"].startswith("Basic ")


def test_the_parts_of_a_time_out_end_before_the_attempt() -> None:
    connect_s, read_s, write_s, pool_s = http.timeout_of(made_call(timeout_s=2.0))
    assert pool_s + 2 * connect_s < 2.0
    assert read_s == write_s == pytest.approx(2.0, abs=0.1)
    assert http.timeout_of(made_call(timeout_s=600.0))[0] == 5.0
    assert all(0 < part <= 0.001 for part in http.timeout_of(made_call(timeout_s=0.0)))
    for library in LIBRARIES:
        assert library.Timeout(http.timeout_of(made_call(timeout_s=2.0))).connect == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("part", ["transport", "mounts"])
async def test_a_client_that_repeats_by_itself_is_refused(library: Any, part: str) -> None:
    transport = library.AsyncHTTPTransport(retries=2)
    made = library.AsyncClient(**{part: {"http://": transport} if part == "mounts" else transport})
    async with made as client, answering() as listener:
        error = await failure(made_call(effect=True), client, listener.url)
    assert type(error) is Rejected
    assert "retries=2" in str(error)
    assert "retries=0" in str(error)
    assert listener.connections == 0


async def test_a_client_of_the_wrong_kind_or_closed_is_refused(library: Any) -> None:
    async with answering() as listener:
        with library.Client() as synchronous:
            assert "is no AsyncClient" in str(await failure(made_call(effect=True), synchronous, listener.url))
        async with library.AsyncClient() as closed:
            pass
        error = await failure(made_call(effect=True), closed, listener.url)
    assert type(error) is Rejected
    assert "closed" in str(error)
    assert listener.connections == 0


async def test_errors_are_short_and_keep_secrets(client: Any) -> None:
    body = b'{"error": "no such key: sk-proj-abcdefghijkl", "api_key": "hush hush", "at": "https://x.y/z?sig=hush"} '
    body += b"Authorization: Bearer hush1234hush " * 100
    async with answering(401, body=body) as listener:
        url = listener.url.replace("//", "//user:hush@") + "/a?token=hush#hush"
        error = await failure(made_call(), client, url)
    text = str(error)
    assert "hush" not in text
    assert "abcdefghijkl" not in text
    assert "no such key" in text
    assert "https://x.y/z?***" in text
    assert "\n" not in text
    assert len(text) < 500


@pytest.mark.parametrize(
    "kept",
    [
        "token limit exceeded: 4096 tokens", "input_tokens: 17, output_tokens: 3", "The key was used with another body",
        "Rate limit reached for gpt in organization org-a on tokens per min (TPM): Limit 1, Used 1",
        "authentication failed", "basic authentication failed",
    ],
)  # fmt: skip
def test_plain_words_are_kept(kept: str) -> None:
    assert meaning.shown(kept) == kept


@given(st.text(max_size=2_000))
def test_any_text_can_be_shown(text: str) -> None:
    assert len(meaning.shown(text)) <= meaning.EXCERPT


def test_showing_is_quick_whatever_is_shown() -> None:
    began_s = time.process_time()
    for text in ("a" * 100_000, "http://" * 20_000, "secret=" * 20_000, '"' * 100_000, "bearer " * 20_000):
        meaning.shown(text)
    assert time.process_time() - began_s < 1


# ------------------------------------------------------------------------------------------------------- streams


class Beats:
    """Counts the signs of life of a call."""

    def __init__(self, **options: Any) -> None:
        self.at: list[float] = []
        self.call = made_call(**options)

    def seen(self) -> None:
        if not self.at or self.call.heard_at != self.at[-1]:
            self.at.append(self.call.heard_at)


def dripping(pieces: int, pause_s: float, ending: Callable[[Connection], Any]) -> Callable[[Connection], Any]:
    async def drip(connection: Connection) -> None:
        await connection.request()
        await connection.send(head(200, {}, None))
        await connection.send(*(chunk(b"piece %d\n" % number) for number in range(pieces)), pause_s=pause_s)
        await ending(connection)

    return drip


async def ended(connection: Connection) -> None:
    await connection.send(chunk(b""))


async def stalled(connection: Connection) -> None:
    await connection.for_ever()


async def cut_off(connection: Connection) -> None:
    connection.writer.transport.abort()


async def test_each_piece_of_a_stream_is_a_sign_of_life(client: Any) -> None:
    async with listening(dripping(4, 0.05, ended)) as listener:
        beats, lines = Beats(), []
        before = beats.call.heard_at
        async with http.stream(beats.call, client, "GET", listener.url) as response:
            async for line in response.aiter_lines():
                beats.seen()
                lines.append(line)
    assert lines == [f"piece {number}" for number in range(4)]
    assert before < beats.at[0]
    assert beats.at[-1] - beats.at[0] > 0.1
    assert len(beats.at) >= 4


async def test_pieces_count_though_no_line_ends(client: Any) -> None:
    async def endless_line(connection: Connection) -> None:
        await connection.request()
        await connection.send(head(200, {}, None), *(chunk(b"x") for _ in range(4)), pause_s=0.05)
        await connection.send(chunk(b"\n"), chunk(b""))

    async with listening(endless_line) as listener:
        call = made_call()
        began_s = call.heard_at
        async with http.stream(call, client, "GET", listener.url) as response:
            assert [line async for line in response.aiter_lines()] == ["xxxx"]
    assert call.heard_at - began_s > 0.1


@pytest.mark.parametrize("ending", [stalled, cut_off])
async def test_a_stream_that_breaks_is_ambiguous(client: Any, ending: Any) -> None:
    async with listening(dripping(2, 0.0, ending)) as listener:
        seen = b""

        async def read() -> None:
            nonlocal seen
            async with http.stream(made_call(timeout_s=0.3), client, "GET", listener.url) as response:
                async for piece in response.aiter_bytes():
                    seen += piece

        with pytest.raises(Ambiguous):
            await read()
    assert seen == b"piece 0\npiece 1\n"


async def test_a_stream_that_is_left_is_closed(client: Any) -> None:
    async with listening(dripping(2, 0.0, stalled)) as listener:
        async with http.stream(made_call(), client, "GET", listener.url) as response:
            async for _ in response.aiter_bytes():
                break
        assert response.is_closed
        with pytest.raises(ValueError, match="mine"):
            async with http.stream(made_call(), client, "GET", listener.url) as response:
                raise ValueError("mine")
        assert response.is_closed


async def test_a_stream_that_fails_says_so_before_it_begins(client: Any) -> None:
    async with answering(429, {"Retry-After": "2"}, b"slow down") as listener:
        with pytest.raises(RateLimited, match="slow down") as caught:
            async with http.stream(made_call(), client, "GET", listener.url):
                raise AssertionError("not reached")
        assert caught.value.retry_after_s == 2
    with refusing() as url, pytest.raises(NotApplied):
        async with http.stream(made_call(effect=True), client, "POST", url):
            raise AssertionError("not reached")


async def test_once_it_has_begun_nothing_else_speaks_for_the_stream(client: Any) -> None:
    """A refused connection of another request inside says nothing of the effect that is being answered."""
    async with answering() as listener:
        with refusing() as nowhere, pytest.raises(Ambiguous, match="while it answered"):
            async with http.stream(made_call(effect=True), client, "POST", listener.url):
                await client.get(nowhere)
        with pytest.raises(NotApplied, match="the tool's own word"):
            async with http.stream(made_call(effect=True), client, "POST", listener.url):
                raise NotApplied("the tool's own word")


# --------------------------------------------------------------------------------------- without `request`


async def test_errors_of_ones_own_requests_are_mapped(client: Any, library: Any) -> None:
    call = made_call(effect=True)
    with refusing() as url, pytest.raises(NotApplied, match="payments: ConnectError"), http.mapped_errors(call):
        await client.post(url)
    async with answering(503, {"Retry-After": "3"}) as listener:
        with pytest.raises(Ambiguous, match="the refunds: 503") as caught, http.mapped_errors(call, "the refunds"):
            (await client.post(listener.url)).raise_for_status()
        assert caught.value.retry_after_s == 3
        response = await client.post(listener.url)
        with pytest.raises(Ambiguous, match="payments: 503"):
            http.check(call, response)
    with pytest.raises(Rejected), http.mapped_errors(call):
        await client.post("ftp://127.0.0.1")
    with pytest.raises(ZeroDivisionError), http.mapped_errors(call):
        _ = 1 / 0


async def test_redirects_that_were_raised_are_mapped(client: Any) -> None:
    async with answering(303, {"Location": "/done"}) as listener:
        for effect, kind in ((True, Ambiguous), (False, Rejected)):
            with pytest.raises(kind), http.mapped_errors(made_call(effect=effect)):
                (await client.post(listener.url)).raise_for_status()


async def test_hooks_that_raise_are_mapped(library: Any) -> None:
    async def strict(response: Any) -> None:
        response.raise_for_status()

    async with answering(429) as listener, library.AsyncClient(event_hooks={"response": [strict]}) as client:
        assert type(await failure(made_call(), client, listener.url)) is RateLimited


async def test_synchronous_clients_are_mapped(library: Any) -> None:
    def tool(call: ToolCall, url: str) -> int:
        with library.Client(trust_env=False) as client, http.mapped_errors(call):
            response = client.post(url, timeout=http.timeout_of(call))
            http.check(call, response)
            status: int = response.status_code
            return status

    async with answering() as fine, answering(529) as overloaded:
        assert await asyncio.to_thread(tool, made_call(effect=True), fine.url) == 200
        with pytest.raises(NotApplied, match="529"):
            await asyncio.to_thread(tool, made_call(effect=True), overloaded.url)
    with refusing() as url, pytest.raises(NotApplied):
        await asyncio.to_thread(tool, made_call(effect=True), url)


async def test_cancelling_ends_the_request_and_is_not_mapped(client: Any) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def silent(connection: Connection) -> None:
        await connection.request()
        asked.set()
        await connection.for_ever()
        gone.set()

    async with listening(silent) as listener:
        asking = asyncio.create_task(http.request(made_call(), client, "GET", listener.url))
        await asyncio.wait_for(asked.wait(), 5)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.wait_for(gone.wait(), 5)


def test_the_adapters_import_no_client() -> None:
    code = (
        "import sys; from penstock.adapters import http, openai; "
        "print([name for name in ('httpx', 'httpx2', 'openai', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
