"""Calling models with the package openai, under the call's time, key, token reservation and error classes.

    answer = await completion(call, client.chat.completions.create, model="...", messages=[...])

The package is not imported here: whoever has a client has imported it.
"""

import contextlib
import importlib
import inspect
import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final, TypeVar

from actors.contract import ToolCall
from actors.errors import Ambiguous, NotApplied, Rejected, ToolError
from penstock.adapters import meaning
from penstock.adapters.http import refuse_repeats, timeout_of

__all__ = ["completion", "mapped_errors", "stream"]

T = TypeVar("T")

# A 429 that no waiting helps: https://platform.openai.com/docs/guides/error-codes
_NO_MONEY_LEFT: Final = "insufficient_quota"
_NO_JSON: Final = (json.JSONDecodeError, UnicodeDecodeError)
_BEFORE_SENDING: Final = ("SubjectTokenProviderError",)
_UNDER_WAY: Final = ("APIError", "WebSocketConnectionClosedError", "WebSocketQueueFullError")


@contextlib.contextmanager
def mapped_errors(call: ToolCall, where: str = "") -> Iterator[None]:
    """Turns what the package openai raises inside into the errors by which a tool says what is known.

    By status as :func:`penstock.adapters.http.check` says, but a 429 for want of money is :class:`Rejected`; without an
    answer by what happened on the wire, as :func:`penstock.adapters.http.mapped_errors` says. For clients that are not
    asynchronous too.

    Args:
        call: the call.
        where: what is called, for people; the dependency's name by default.
    """
    with _mapped(call, meaning.place_of(call, where)):
        yield


async def completion(
    call: ToolCall, create: Callable[..., Awaitable[T]], /, *, where: str = "", **parameters: Any
) -> T:
    """Calls one method of an `AsyncOpenAI` client, and tells the call which tokens were used.

    For `chat.completions.create`, `chat.completions.parse`, `responses.create`, `embeddings.create` and their like. The
    request gets what is left of the attempt and the header Idempotency-Key. Prompt tokens that came from a cache
    are input tokens as well.

    Args:
        call: the call.
        create: the method, of a client with `max_retries=0`.
        where: what is called, for people; the dependency's name by default.
        parameters: what the method takes.

    Raises:
        ToolError: as :func:`mapped_errors` says.
    """
    place = meaning.place_of(call, where)
    if parameters.get("stream"):
        raise Rejected(f"{place}: stream=True is for penstock.adapters.openai.stream()")
    prepared = _prepared(call, create, place, parameters)
    with _mapped(call, place):
        try:
            answer = await create(**prepared)
        except _NO_JSON as error:
            raise Ambiguous(f"{place}: answered, but not with JSON: {meaning.shown(str(error))}") from error
        except Exception as error:
            _settle(call, getattr(error, "completion", None))  # refused or cut short by the model, and paid for
            raise
    _settle(call, answer)
    return answer


@contextlib.asynccontextmanager
async def stream(
    call: ToolCall, create: Callable[..., Awaitable[Any]], /, *, where: str = "", **parameters: Any
) -> AsyncIterator[AsyncIterator[Any]]:
    """As :func:`completion`, with an answer that comes in pieces: each is a sign of life (`call.heartbeat()`).

        async with stream(call, client.chat.completions.create, model="...", messages=[...]) as pieces:
            async for piece in pieces: ...

    Chat completions are asked for their usage (`stream_options`), which comes with the last piece: read to the end.
    Once the answer has begun, whatever breaks is :class:`Ambiguous`.
    """
    place = meaning.place_of(call, where)
    prepared = _prepared(call, create, place, {**parameters, "stream": True})
    if type(_owner_of(create)).__name__ == "AsyncCompletions":
        prepared.setdefault("stream_options", {"include_usage": True})
    with _mapped(call, place):
        source: Any = await create(**prepared)
    pieces = _pieces(call, source, place)
    try:
        with _mapped(call, place, begun=True):
            yield pieces
    finally:
        await pieces.aclose()
        await source.close()


async def _pieces(call: ToolCall, source: Any, place: str) -> AsyncGenerator[Any, None]:
    call.heartbeat()
    try:
        async for piece in source:
            call.heartbeat()
            _settle(call, piece)
            _settle(call, getattr(piece, "response", None))
            yield piece
    except _NO_JSON as error:
        raise Ambiguous(f"{place}: a piece of the answer is no JSON: {meaning.shown(str(error))}") from error


def _prepared(call: ToolCall, create: Any, place: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters with time and key. Raises Rejected for a client that retries by itself, or is none."""
    package = _package(place)
    client = getattr(_owner_of(create), "_client", None)
    if not isinstance(client, package.AsyncOpenAI):
        raise Rejected(
            f"{place}: give a method of an AsyncOpenAI client, as in completion(call, client.chat.completions.create, "
            "...); around anything else, use mapped_errors"
        )
    if client.max_retries:
        raise Rejected(
            f"{place}: the client has max_retries={client.max_retries}. One layer retries, and that is Penstock, which "
            "keeps the dependency's retry budget: make the client with max_retries=0"
        )
    refuse_repeats(client._client, place)
    connect_s, read_s, write_s, pool_s = timeout_of(call)
    time_out = package.Timeout(connect=connect_s, read=read_s, write=write_s, pool=pool_s)
    headers = {"Idempotency-Key": call.idempotency_key, **(parameters.get("extra_headers") or {})}
    return {"timeout": time_out, **parameters, "extra_headers": headers}


def _owner_of(create: Any) -> Any:
    """The object that a method is of, also where the package has wrapped the method (`with_raw_response`)."""
    return getattr(inspect.unwrap(create, stop=inspect.ismethod), "__self__", None)


def _package(place: str) -> Any:
    try:
        return importlib.import_module("openai")
    except ImportError as error:
        raise Rejected(f"{place}: the package openai is needed: pip install 'openai>=3,<4' ({error})") from error


def _mapped(call: ToolCall, place: str, *, begun: bool = False) -> contextlib.AbstractContextManager[None]:
    return meaning.mapped(lambda error: _meant(call, error, place), begun=begun)


def _meant(call: ToolCall, error: Exception, place: str) -> ToolError | None:
    """What an error of the package says; None for any other error."""
    package: Any = sys.modules.get("openai")
    if package is None or not isinstance(error, package.OpenAIError):
        return meaning.of_transport(error, place)  # of the stream, read past the package
    said = f"{place}: {type(error).__name__}: {meaning.shown(str(error))}"
    if isinstance(error, package.APIStatusError):
        return _of_status(call, error, place)
    if isinstance(error, package.APIConnectionError):
        return meaning.of_transport(error.__cause__, place) or Ambiguous(said)
    kinds = {base.__name__ for base in type(error).__mro__}
    if not kinds.isdisjoint(_BEFORE_SENDING):
        return NotApplied(said)
    # The rest is mostly a setting that is wrong, or an answer that is of no use: another attempt would mend nothing.
    return Ambiguous(said) if call.is_effect or not kinds.isdisjoint(_UNDER_WAY) else Rejected(said)


def _of_status(call: ToolCall, error: Any, place: str) -> ToolError:
    if error.status_code == 429 and _NO_MONEY_LEFT in (error.code, error.type):
        return Rejected(f"{place}: 429: {meaning.shown(error.message)}")
    headers = error.response.headers
    kind = meaning.kind_of_status(call, error.status_code, headers) or (Ambiguous if call.is_effect else Rejected)
    return meaning.of_status(kind, call, error.status_code, headers, error.message, place)


def _settle(call: ToolCall, answer: Any) -> None:
    """Tells the call what an answer says of its usage; what it says nothing of stays reserved."""
    usage = getattr(answer, "usage", None)
    if usage is None:
        return
    # Embeddings have no output, and say so by leaving it out.
    absent = 0 if not hasattr(usage, "completion_tokens") and not hasattr(usage, "output_tokens") else None
    output_tokens = _count(usage, "completion_tokens", "output_tokens")
    call.used(
        input_tokens=_count(usage, "prompt_tokens", "input_tokens"),
        output_tokens=absent if output_tokens is None else output_tokens,
    )


def _count(usage: Any, *names: str) -> int | None:
    """The first of these counts that makes sense: servers that only resemble OpenAI's may send anything."""
    found = (getattr(usage, name, None) for name in names)
    return next((count for count in found if type(count) is int and count >= 0), None)
