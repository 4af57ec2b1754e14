"""Calling out by HTTP: with httpx or httpx2, under the call's time, key and error classes.

    response = await http.request(call, client, "POST", "/refunds", json=refund)

An effect makes one request and no more: what is known of a request that failed says nothing of one before it.
"""

import asyncio
import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Final, Protocol, TypeVar

from actors.contract import ToolCall
from actors.errors import Ambiguous, Rejected, ToolError
from penstock.adapters import meaning
from telemetry.redaction import redact

__all__ = ["check", "mapped_errors", "request", "stream", "timeout_of"]

Meanings = Mapping[int, type[ToolError]]

_SHORTEST_S: Final = 0.001
_LONGEST_CONNECT_S: Final = 5.0
_GLIMPSE_S: Final = 0.5
_GLIMPSE_BYTES: Final = 4_000
_LONGEST_PLACE: Final = 200


class Answer(Protocol):
    """What httpx.Response and httpx2.Response have in common, as far as it is needed here."""

    status_code: int

    @property
    def headers(self) -> Any:
        """The headers, by name in whatever case."""

    @property
    def content(self) -> bytes:
        """The body, once it is read."""


R = TypeVar("R", bound=Answer)
R_co = TypeVar("R_co", bound=Answer, covariant=True)


class AsyncClient(Protocol[R_co]):
    """httpx.AsyncClient or httpx2.AsyncClient."""

    @property
    def is_closed(self) -> bool:
        """Whether it can be used no more."""

    def build_request(self, *args: Any, **kwargs: Any) -> Any:
        """Makes a request."""

    async def send(self, *args: Any, **kwargs: Any) -> R_co:
        """Sends a request."""


def timeout_of(call: ToolCall) -> tuple[float, float, float, float]:
    """What is left of the attempt, as `timeout=` of a request: seconds to connect, read, write, and for the pool.

    Waiting for a connection of the pool and connecting (TCP, then TLS) end before the attempt does: the call is then
    known as not applied, where the attempt's own end would leave it open.
    """
    left_s = max(call.remaining_s(), _SHORTEST_S)
    return min(left_s / 4, _LONGEST_CONNECT_S), left_s, left_s, left_s * 0.4


@contextlib.contextmanager
def mapped_errors(call: ToolCall, where: str = "", *, meanings: Meanings | None = None) -> Iterator[None]:
    """Turns what httpx and httpx2 raise inside into the errors by which a tool says what is known.

    Never connected: :class:`NotApplied`. Cannot be sent (a bad URL, an illegal header): :class:`Rejected`. Sent and
    no answer, or half of one: :class:`Ambiguous`. An error of `raise_for_status()`: as :func:`check` says. For clients
    that are not asynchronous too. Put one request inside, and follow no redirects of an effect.

    Args:
        call: the call.
        where: what is called, for people; the dependency's name by default.
        meanings: as in :func:`check`.
    """
    with _mapped(call, meaning.place_of(call, where), meanings):
        yield


def check(call: ToolCall, response: Answer, where: str = "", *, meanings: Meanings | None = None) -> None:
    """Raises what a response means where it is a failure.

    2xx and 3xx are none, but for an effect 301, 307 and 308 are: it was not done here. 429, and 403 with Retry-After:
    :class:`RateLimited`. 425 and 529: :class:`NotApplied`. 408, 409 and all other 5xx: :class:`Ambiguous`, since none
    of them proves that nothing was done. Other 4xx: :class:`Rejected`. What Retry-After and the rate limit headers say
    goes along.

    Args:
        call: the call.
        response: what was answered, of httpx or httpx2.
        where: what was called, for people; the dependency's name by default.
        meanings: what statuses mean at this service, where it says more, as in ``{409: Rejected}``.
    """
    place = meaning.place_of(call, where)
    kind = meaning.kind_of_status(call, response.status_code, response.headers, meanings)
    if kind is not None:
        raise meaning.of_status(kind, call, response.status_code, response.headers, _text_of(response), place)


async def request(
    call: ToolCall,
    client: AsyncClient[R],
    method: str,
    url: object,
    *,
    where: str = "",
    meanings: Meanings | None = None,
    **options: Any,
) -> R:
    """Sends one request and reads the whole answer; raises what it means where that is a failure.

    The request gets what is left of the attempt. An effect gets the header Idempotency-Key, and its redirects are not
    followed: a later request's failure would be taken for its own.

    Args:
        call: the call.
        client: an asynchronous client of httpx or httpx2, without retries of its own.
        method: as in `client.request`.
        url: as in `client.request`.
        where: what is called, for people; method and URL without its query by default.
        meanings: as in :func:`check`.
        options: everything else that `client.request` takes.
    """
    place = where or _place(method, url)
    response = await _answered(call, client, method, url, place, meanings, options)
    with _mapped(call, place, meanings, begun=True):
        await _read(response)
    return response


@contextlib.asynccontextmanager
async def stream(
    call: ToolCall,
    client: AsyncClient[R],
    method: str,
    url: object,
    *,
    where: str = "",
    meanings: Meanings | None = None,
    **options: Any,
) -> AsyncIterator[R]:
    """As :func:`request`, but the answer is read inside: each piece that comes is a sign of life (`call.heartbeat()`).

    Iterate `response.aiter_bytes()`, `aiter_lines()` and the like. The answer has begun, so a connection that breaks
    now is :class:`Ambiguous`, whatever else is called inside.
    """
    place = where or _place(method, url)
    response: Any = await _answered(call, client, method, url, place, meanings, options)
    try:
        call.heartbeat()
        response.stream = _beating(response.stream)(response.stream, call)
        with _mapped(call, place, meanings, begun=True):
            yield response
    finally:
        await response.aclose()


def refuse_repeats(client: Any, place: str) -> None:
    """Raises Rejected for a client of httpx or httpx2 that connects again by itself."""
    transports = [getattr(client, "_transport", None), *getattr(client, "_mounts", {}).values()]
    repeats = max(getattr(getattr(transport, "_pool", None), "_retries", 0) for transport in transports)
    if repeats:
        raise Rejected(
            f"{place}: the client's transport has retries={repeats}. One layer retries, and that is Penstock, which "
            "keeps the dependency's retry budget: make the transport with retries=0"
        )


async def _answered(
    call: ToolCall,
    client: AsyncClient[R],
    method: str,
    url: object,
    place: str,
    meanings: Meanings | None,
    options: dict[str, Any],
) -> R:
    """Sends a request and returns the head of its answer, which is no failure."""
    sending = {name: options.pop(name) for name in ("auth", "follow_redirects") if name in options}
    options.setdefault("timeout", timeout_of(call))
    outgoing = _made(client, method, url, place, options)
    if call.is_effect:
        outgoing.headers.setdefault("Idempotency-Key", call.idempotency_key)
        sending.setdefault("follow_redirects", False)
    with _mapped(call, place, meanings):
        response = await client.send(outgoing, stream=True, **sending)
    kind = meaning.kind_of_status(call, response.status_code, response.headers, meanings)
    if kind is None:
        return response
    text = await _glimpse(response)
    raise meaning.of_status(kind, call, response.status_code, response.headers, text, place)


def _made(client: Any, method: str, url: object, place: str, options: dict[str, Any]) -> Any:
    """The request, still unsent: so whatever goes wrong here is known not to have happened."""
    if not inspect.iscoroutinefunction(getattr(client, "send", None)):
        raise Rejected(f"{place}: {type(client).__name__} is no AsyncClient of httpx or httpx2; see mapped_errors")
    if client.is_closed:
        raise Rejected(f"{place}: the client is closed; a closed client cannot be used again, make another one")
    refuse_repeats(client, place)
    try:
        return client.build_request(method, url, **options)
    except Exception as error:
        text = meaning.shown(str(error))
        raise Rejected(f"{place}: no request can be made of this: {type(error).__name__}: {text}") from error


async def _read(response: Any) -> None:
    try:
        await response.aread()
    except BaseException:
        await response.aclose()
        raise


async def _glimpse(response: Any) -> str:
    """The beginning of a failure's text, if it comes at once: what the failure means is known without it."""
    seen = bytearray()
    try:
        async with asyncio.timeout(_GLIMPSE_S):
            async for piece in response.aiter_bytes():
                seen += piece
                if len(seen) >= _GLIMPSE_BYTES:
                    break
    except Exception:  # noqa: S110 - whatever is wrong with the text, the status has been answered
        pass
    finally:
        await response.aclose()
    return bytes(seen).decode(errors="replace") or _text_of(response)


def _text_of(response: Any) -> str:
    try:
        content: bytes = response.content
    except RuntimeError:  # a stream that nobody has read
        return ""
    return content[:_GLIMPSE_BYTES].decode(errors="replace")


def _mapped(
    call: ToolCall, place: str, meanings: Meanings | None, *, begun: bool = False
) -> contextlib.AbstractContextManager[None]:
    return meaning.mapped(lambda error: _meant(call, error, place, meanings), begun=begun)


def _meant(call: ToolCall, error: Exception, place: str, meanings: Meanings | None) -> ToolError | None:
    answer = meaning.answer_in(error)
    if answer is None:
        return meaning.of_transport(error, place)
    kind = meaning.kind_of_status(call, answer.status_code, answer.headers, meanings)
    if kind is None:
        # `raise_for_status()` raises for redirects as well; one like 303 may have done what was asked.
        kind = Ambiguous if call.is_effect else Rejected
    return meaning.of_status(kind, call, answer.status_code, answer.headers, _text_of(answer), place)


class _Beating:
    """A body that tells the call of each piece that arrives."""

    def __init__(self, body: Any, call: ToolCall) -> None:
        self._body = body
        self._call = call

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._body:
            self._call.heartbeat()
            yield piece

    async def aclose(self) -> None:
        await self._body.aclose()


def _beating(body: Any) -> type[Any]:
    """A class of such bodies that the response's own library accepts."""
    return _beating_kind(next(kind for kind in type(body).__mro__ if kind.__name__ == "AsyncByteStream"))


@functools.cache
def _beating_kind(base: type[Any]) -> type[Any]:
    return type("Beating", (_Beating, base), {})


def _place(method: str, url: object) -> str:
    """Method and URL for people, without user, password, query and fragment."""
    address = redact(str(url)).partition("?")[0].partition("#")[0]
    return f"{method.upper()} {address[:_LONGEST_PLACE]}"
