"""The package openai against real listeners: errors by what happened, tokens as used, one layer of retries."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import httpx2
import openai
import pytest
from listeners import Connection, Listener, answering, chunk, head, listening, refusing
from openai._exceptions import SubjectTokenProviderError
from pydantic import BaseModel

from actors.errors import RateLimited
from penstock import Ambiguous, NotApplied, Rejected, ToolCall, ToolError
from penstock.adapters import openai as adapter

KEY = "decide-1/key"
MESSAGES: Any = [{"role": "user", "content": "What is due?"}]
USAGE = {"prompt_tokens": 17, "completion_tokens": 3, "total_tokens": 20, "prompt_tokens_details": {"cached_tokens": 9}}
COMPLETION = {
    "id": "c-1", "object": "chat.completion", "created": 1, "model": "m", "usage": USAGE,
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": '{"cents": 5}'}}],
}  # fmt: skip
RESPONSE = {
    "id": "r-1", "object": "response", "created_at": 1, "model": "m", "output": [], "parallel_tool_calls": True,
    "tool_choice": "auto", "tools": [],
    "usage": {"input_tokens": 21, "output_tokens": 4, "total_tokens": 25},
}  # fmt: skip
EMBEDDINGS = {
    "object": "list", "model": "m", "usage": {"prompt_tokens": 6, "total_tokens": 6},
    "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
}  # fmt: skip


def made_call(*, effect: bool = False, timeout_s: float = 5.0, **more: Any) -> ToolCall:
    return ToolCall(
        "decide", "run", "1", 1, lambda: KEY, timeout_s, "default", time.monotonic,
        dependency="model", is_effect=effect, **more,
    )  # fmt: skip


def client_of(url: str, **options: Any) -> openai.AsyncOpenAI:
    settings: Any = {"base_url": f"{url}/v1", "api_key": "sk-hush-hush-hush-1", "max_retries": 0, **options}
    if "http_client" not in settings:
        settings["http_client"] = httpx2.AsyncClient(trust_env=False, verify=False)
    return openai.AsyncOpenAI(**settings)


async def ask(call: ToolCall, client: openai.AsyncOpenAI, **more: Any) -> Any:
    return await adapter.completion(call, client.chat.completions.create, model="m", messages=MESSAGES, **more)


async def failure(call: ToolCall, url: str, **more: Any) -> ToolError:
    async with client_of(url) as client:
        with pytest.raises(ToolError) as caught:
            await ask(call, client, **more)
    return caught.value


# ------------------------------------------------------------------------------------------------ what was used


async def test_a_completion_settles_its_tokens_and_sends_time_and_key() -> None:
    call = made_call()
    async with answering(body=COMPLETION) as listener, client_of(listener.url) as client:
        answer = await adapter.completion(
            call,
            client.chat.completions.create,
            model="m",
            messages=[{"role": "user", "content": "What is due?"}],
            extra_headers={"X-Mine": "1"},
        )
    assert answer.choices[0].message.content == '{"cents": 5}'
    assert call.usage == {"input_tokens": 17, "output_tokens": 3}
    ((line, headers, body),) = listener.requests
    assert line == "POST /v1/chat/completions HTTP/1.1"
    assert headers["idempotency-key"] == KEY
    assert headers["x-mine"] == "1"
    assert 4 < float(headers["x-stainless-read-timeout"]) <= 5
    assert json.loads(body)["model"] == "m"


async def test_other_methods_settle_as_well() -> None:
    class Decision(BaseModel):
        cents: int

    async with answering(body=COMPLETION) as listener, client_of(listener.url) as client:
        call = made_call()
        parsed = await adapter.completion(
            call, client.chat.completions.parse, model="m", messages=MESSAGES, response_format=Decision
        )
        assert parsed.choices[0].message.parsed == Decision(cents=5)
        assert call.usage == {"input_tokens": 17, "output_tokens": 3}
    async with answering(body=RESPONSE) as listener, client_of(listener.url) as client:
        call = made_call()
        await adapter.completion(call, client.responses.create, model="m", input="What is due?")
        assert call.usage == {"input_tokens": 21, "output_tokens": 4}
    async with answering(body=EMBEDDINGS) as listener, client_of(listener.url) as client:
        call = made_call()
        await adapter.completion(call, client.embeddings.create, model="m", input="x", encoding_format="float")
        assert call.usage == {"input_tokens": 6, "output_tokens": 0}


@pytest.mark.parametrize(
    ("usage", "told"),
    [
        (None, None),
        ({}, {}),
        ({"prompt_tokens": -1, "completion_tokens": 3}, {"output_tokens": 3}),
        ({"prompt_tokens": "many", "completion_tokens": None}, {}),
        ({"prompt_tokens": 5, "completion_tokens": 1.5}, {"input_tokens": 5}),
        ({"input_tokens": 5, "output_tokens": 2}, {"input_tokens": 5, "output_tokens": 2}),
    ],
)
async def test_what_a_server_says_of_usage_is_not_trusted(usage: Any, told: Any) -> None:
    call = made_call()
    async with answering(body={**COMPLETION, "usage": usage}) as listener, client_of(listener.url) as client:
        await ask(call, client)
    assert (call.usage or {}) == (told or {})


async def test_raw_responses_pass() -> None:
    async with answering(body=COMPLETION) as listener, client_of(listener.url) as client:
        raw = await adapter.completion(
            made_call(), client.chat.completions.with_raw_response.create, model="m", messages=MESSAGES
        )
    assert raw.parse().id == "c-1"


# ------------------------------------------------------------------------------------------------ what failures say


async def test_never_connected_is_not_applied() -> None:
    with refusing() as url:
        error = await failure(made_call(effect=True), url)
    assert type(error) is NotApplied
    assert "model: ConnectError" in str(error)


async def test_sent_and_never_answered_is_ambiguous() -> None:
    async def silent(connection: Connection) -> None:
        listener.requests.append(await connection.request())
        await connection.for_ever()

    async with listening(silent) as listener:
        error = await failure(made_call(timeout_s=0.3), listener.url)
    assert type(error) is Ambiguous
    assert "ReadTimeout" in str(error)
    assert len(listener.requests) == 1


async def test_sent_and_cut_off_is_ambiguous() -> None:
    async def cut(connection: Connection) -> None:
        await connection.request()

    async with listening(cut) as listener:
        assert type(await failure(made_call(effect=True), listener.url)) is Ambiguous


async def test_a_full_pool_is_not_applied() -> None:
    async def silent(connection: Connection) -> None:
        await connection.for_ever()

    limited = httpx2.AsyncClient(trust_env=False, limits=httpx2.Limits(max_connections=1))
    async with listening(silent) as listener, client_of(listener.url, http_client=limited) as client:
        first = asyncio.create_task(ask(made_call(), client))
        await asyncio.sleep(0.1)
        with pytest.raises(NotApplied, match="PoolTimeout"):
            await ask(made_call(effect=True, timeout_s=0.5), client)
        first.cancel()
        await asyncio.wait([first])


async def test_a_client_of_httpx_serves_as_well() -> None:
    legacy = httpx.AsyncClient(trust_env=False)
    async with answering(body=COMPLETION) as listener, client_of(listener.url, http_client=legacy) as client:
        assert (await ask(made_call(), client)).id == "c-1"
    with refusing() as url:
        async with client_of(url, http_client=httpx.AsyncClient(trust_env=False)) as client:
            with pytest.raises(NotApplied, match="ConnectError"):
                await ask(made_call(effect=True), client)


@pytest.mark.parametrize(
    ("status", "headers", "kind", "seconds"),
    [
        (400, {}, Rejected, None),
        (401, {}, Rejected, None),
        (404, {}, Rejected, None),
        (408, {}, Ambiguous, None),
        (409, {}, Ambiguous, None),
        (422, {}, Rejected, None),
        (429, {}, RateLimited, None),
        (429, {"retry-after-ms": "120"}, RateLimited, 0.12),
        (429, {"x-ratelimit-reset-requests": "1s", "x-ratelimit-remaining-requests": "0"}, RateLimited, 1.0),
        (429, {"x-ratelimit-reset-tokens": "6m0s", "x-ratelimit-remaining-tokens": "0"}, RateLimited, 60.0),
        (500, {}, Ambiguous, None),
        (503, {"Retry-After": "9"}, Ambiguous, 9.0),
        (529, {}, NotApplied, None),
    ],
)  # fmt: skip
async def test_a_status_says_what_is_known(
    status: int, headers: dict[str, str], kind: type[ToolError], seconds: float | None
) -> None:
    body = {"error": {"message": "no, not with sk-hush-hush-hush-1", "type": "t", "code": "c"}}
    async with answering(status, headers, body) as listener:
        error = await failure(made_call(maximum_retry_after_s=60.0), listener.url)
    assert type(error) is kind
    assert error.retry_after_s == seconds
    assert f"model: {status}: " in str(error)
    assert "no, not with" in str(error)
    assert "hush" not in str(error)
    assert len(listener.requests) == 1


async def test_no_money_left_is_no_rate_limit() -> None:
    error = {"message": "You exceeded your current quota", "type": "insufficient_quota", "code": "insufficient_quota"}
    async with answering(429, {"Retry-After": "1"}, {"error": error}) as listener:
        said = await failure(made_call(), listener.url)
    assert type(said) is Rejected
    assert "exceeded your current quota" in str(said)


async def test_an_answer_that_is_no_json_is_ambiguous() -> None:
    async with answering(body=b"{half") as listener:
        assert type(await failure(made_call(), listener.url)) is Ambiguous
    async with answering(body=b'{"\xff') as listener:
        assert type(await failure(made_call(), listener.url)) is Ambiguous


async def test_an_answer_that_is_of_no_use_was_paid_for() -> None:
    class Decision(BaseModel):
        cents: int

    cut = {**COMPLETION, "choices": [{**COMPLETION["choices"][0], "finish_reason": "length"}]}  # type: ignore[index]
    async with answering(body=cut) as listener, client_of(listener.url) as client:
        for effect, kind in ((False, Rejected), (True, Ambiguous)):
            call = made_call(effect=effect)
            parse = client.chat.completions.parse
            with pytest.raises(kind, match="LengthFinishReasonError"):
                await adapter.completion(call, parse, model="m", messages=MESSAGES, response_format=Decision)
            assert call.usage == {"input_tokens": 17, "output_tokens": 3}


async def test_errors_of_ones_own_calls_are_mapped() -> None:
    with refusing() as url:
        async with client_of(url) as client:
            with pytest.raises(NotApplied, match="the model"), adapter.mapped_errors(made_call(), "the model"):
                await client.models.list()
    with pytest.raises(Rejected, match="api_key"), adapter.mapped_errors(made_call()):
        openai.OpenAI(api_key=None, base_url="http://127.0.0.1:1", admin_api_key=None)
    with pytest.raises(ZeroDivisionError), adapter.mapped_errors(made_call()):
        _ = 1 / 0
    with pytest.raises(NotApplied, match="the tool's own word"), adapter.mapped_errors(made_call()):
        raise NotApplied("the tool's own word")


def test_errors_without_a_request_or_an_answer_say_what_is_known() -> None:
    def meant(error: openai.OpenAIError, *, effect: bool) -> type[Exception]:
        with pytest.raises(ToolError) as caught, adapter.mapped_errors(made_call(effect=effect)):
            raise error
        return type(caught.value)

    request = httpx2.Request("POST", "http://127.0.0.1:1")
    for error, read, wrote in (
        (SubjectTokenProviderError("no token"), NotApplied, NotApplied),
        (openai.WebSocketConnectionClosedError("gone", unsent_messages=[]), Ambiguous, Ambiguous),
        (openai.APIResponseValidationError(httpx2.Response(200, request=request), None), Ambiguous, Ambiguous),
        (openai.APIConnectionError(request=request), Ambiguous, Ambiguous),
        (openai.ContentFilterFinishReasonError(), Rejected, Ambiguous),
    ):
        assert (meant(error, effect=False), meant(error, effect=True)) == (read, wrote)


async def test_synchronous_clients_are_mapped() -> None:
    def tool(call: ToolCall, url: str) -> None:
        with openai.OpenAI(base_url=url, api_key="x", max_retries=0) as client, adapter.mapped_errors(call):
            client.chat.completions.create(model="m", messages=MESSAGES, timeout=call.remaining_s())

    async with answering(429, {"Retry-After": "2"}) as listener:
        with pytest.raises(RateLimited) as caught:
            await asyncio.to_thread(tool, made_call(), listener.url)
    assert caught.value.retry_after_s == 2


# ------------------------------------------------------------------------------------------------ what is refused


async def test_a_client_that_retries_by_itself_is_refused() -> None:
    repeating = httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(retries=1))
    async with answering(body=COMPLETION) as listener:
        async with client_of(listener.url, max_retries=2) as client:
            with pytest.raises(Rejected, match=r"max_retries=2.*max_retries=0"):
                await ask(made_call(), client)
            assert (await ask(made_call(), client.with_options(max_retries=0))).id == "c-1"
        async with client_of(listener.url, http_client=repeating) as client:
            with pytest.raises(Rejected, match="retries=1"):
                await ask(made_call(), client)
    assert len(listener.requests) == 1


async def test_what_is_no_method_of_a_client_is_refused() -> None:
    async def create(**_: Any) -> None:
        raise AssertionError("not reached")

    synchronous = openai.OpenAI(base_url="http://127.0.0.1:1", api_key="x", max_retries=0)
    methods: list[Any] = [create, synchronous.chat.completions.create, asyncio.sleep]
    for method in methods:
        with pytest.raises(Rejected, match="give a method of an AsyncOpenAI client"):
            await adapter.completion(made_call(), method, model="m")
    synchronous.close()


async def test_a_stream_is_for_stream() -> None:
    async with client_of("http://127.0.0.1:1") as client:
        with pytest.raises(Rejected, match=r"stream\(\)"):
            await ask(made_call(), client, stream=True)


def test_a_missing_package_is_named() -> None:
    code = (
        "import asyncio, sys, time; sys.modules['openai'] = None\n"
        "from penstock import ToolCall\n"
        "from penstock.adapters.openai import completion, mapped_errors\n"
        "call = ToolCall('t', 'r', '1', 1, lambda: 'k', 5.0, 'default', time.monotonic)\n"
        "async def create(): pass\n"
        "try:\n"
        "    asyncio.run(completion(call, create))\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
        "try:\n"
        "    with mapped_errors(call): 1 / 0\n"
        "except ZeroDivisionError as error:\n"
        "    print('as it is')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    said, mapped = done.stdout.splitlines()
    assert said.startswith("Rejected t: the package openai is needed: pip install 'openai>=3,<4'")
    assert mapped == "as it is"


# ------------------------------------------------------------------------------------------------ streams


def event(data: dict[str, Any], name: str | None = None) -> bytes:
    return chunk((f"event: {name}\n" if name else "").encode() + b"data: " + json.dumps(data).encode() + b"\n\n")


def delta(text: str, **more: Any) -> dict[str, Any]:
    choices = [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **more}


DONE = chunk(b"data: [DONE]\n\n") + chunk(b"")


class Streaming:
    """What a model's server sends, piece by piece, before it ends or stalls."""

    def __init__(self, *pieces: bytes, pause_s: float = 0.0, stall: bool = False) -> None:
        self.pieces = pieces
        self.pause_s = pause_s
        self.stall = stall
        self.asked: list[dict[str, Any]] = []

    async def __call__(self, connection: Connection) -> None:
        self.asked.append(json.loads((await connection.request())[2]))
        await connection.send(head(200, {"Content-Type": "text/event-stream"}, None))
        await connection.send(*self.pieces, pause_s=self.pause_s)
        if self.stall:
            await connection.for_ever()


async def streamed(call: ToolCall, listener: Listener, seen: list[str], **more: Any) -> None:
    async with (
        client_of(listener.url) as client,
        adapter.stream(call, client.chat.completions.create, model="m", messages=MESSAGES, **more) as pieces,
    ):
        async for piece in pieces:
            seen.extend(choice.delta.content or "" for choice in piece.choices)


async def test_a_stream_beats_and_settles_with_its_last_piece() -> None:
    last = event({**delta(""), "choices": [], "usage": USAGE})
    server = Streaming(*(event(delta(f"{number}")) for number in range(4)), last, DONE, pause_s=0.04)
    async with listening(server) as listener:
        call, seen = made_call(), list[str]()
        began_s = call.heard_at
        await streamed(call, listener, seen)
    assert seen == ["0", "1", "2", "3"]
    assert call.heard_at - began_s > 0.12
    assert call.usage == {"input_tokens": 17, "output_tokens": 3}
    assert server.asked[0]["stream"] is True
    assert server.asked[0]["stream_options"] == {"include_usage": True}


async def test_options_of_a_stream_are_the_callers() -> None:
    server = Streaming(event(delta("x")), DONE)
    async with listening(server) as listener:
        call = made_call()
        await streamed(call, listener, [], stream_options={"include_usage": False})
        await streamed(call, listener, [], stream_options=openai.omit)
    assert server.asked[0]["stream_options"] == {"include_usage": False}
    assert "stream_options" not in server.asked[1]
    assert call.usage is None


async def test_streamed_responses_settle_when_they_are_complete() -> None:
    server = Streaming(
        event({"type": "response.created", "sequence_number": 0, "response": {**RESPONSE, "usage": None}}, "x"),
        event({"type": "response.completed", "sequence_number": 1, "response": RESPONSE}, "x"),
        chunk(b""),
    )
    call = made_call()
    async with (
        listening(server) as listener,
        client_of(listener.url) as client,
        adapter.stream(call, client.responses.create, model="m", input="x") as pieces,
    ):
        assert [piece.type async for piece in pieces] == ["response.created", "response.completed"]
    assert call.usage == {"input_tokens": 21, "output_tokens": 4}
    assert "stream_options" not in server.asked[0]


@pytest.mark.parametrize(
    ("server", "named"),
    [
        (Streaming(event(delta("x")), stall=True), "ReadTimeout"),
        (Streaming(event(delta("x"))), "RemoteProtocolError"),
        (Streaming(event(delta("x")), event({"error": {"message": "overloaded"}}), DONE), "APIError: overloaded"),
        (Streaming(event(delta("x")), chunk(b"data: {half\n\n"), DONE), "no JSON"),
    ],
    ids=["stalls", "cut off", "error", "nonsense"],
)
async def test_a_stream_that_breaks_is_ambiguous(server: Streaming, named: str) -> None:
    seen: list[str] = []
    async with listening(server) as listener:
        with pytest.raises(Ambiguous, match=named):
            await streamed(made_call(timeout_s=0.5), listener, seen)
    assert seen == ["x"]


async def test_a_stream_that_is_refused_says_so() -> None:
    async with answering(429, {"Retry-After": "3"}) as listener:
        with pytest.raises(RateLimited) as caught:
            await streamed(made_call(), listener, [])
    assert caught.value.retry_after_s == 3
    with refusing() as url:
        nowhere = Listener(Streaming())
        nowhere.port = int(url.rpartition(":")[2])
        with pytest.raises(NotApplied):
            await streamed(made_call(effect=True), nowhere, [])


async def test_a_stream_that_is_left_is_closed() -> None:
    gone = asyncio.Event()

    async def endless(connection: Connection) -> None:
        try:
            await Streaming(event(delta("x")), event(delta("y")), stall=True)(connection)
        finally:
            gone.set()

    async def first(pieces: AsyncIterator[Any]) -> Any:
        async for piece in pieces:
            return piece
        raise AssertionError("nothing came")

    async with listening(endless) as listener, client_of(listener.url) as client:
        async with adapter.stream(made_call(), client.chat.completions.create, model="m", messages=MESSAGES) as pieces:
            assert (await first(pieces)).choices[0].delta.content == "x"
        await asyncio.wait_for(gone.wait(), 5)
