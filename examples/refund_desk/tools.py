"""What the agent of the refund desk may do: read an order, ask a model, refund, answer.

Every tool says by its exception what is known about the call that failed, since that decides about retries:
`NotApplied` (it never happened), `Ambiguous` (it may have happened), `Rejected` (it was refused, and would be again).

Environment:
    REFUND_DESK_WORLD_URL    where orders, payments and tickets are; needed
    OPENAI_BASE_URL          where the model is; default: the world's own
    OPENAI_API_KEY           its key; the world needs none
    REFUND_DESK_MODEL        its name
    REFUND_DESK_CONNECTIONS  connections per process at most; default 64
"""

import asyncio
import hashlib
import importlib
import json
import os
from typing import TYPE_CHECKING, TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from penstock import Ambiguous, NotApplied, Rejected, RetryPolicy, Risk, ToolCall, tool
from refund_desk.models import Answer, AnswerRequest, Decision, Order, Refund, RefundRequest, Ticket

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Body = TypeVar("Body", bound=BaseModel)

WORLD_URL = "REFUND_DESK_WORLD_URL"
DEFAULT_MODEL = "world-model-1"
# Each request looks at every connection of its pool: many more of them cost more time than they save.
DEFAULT_CONNECTIONS = 64
KEEPALIVE_S = 30.0
CONNECT_TIMEOUT_S = 2.0
SHORTEST_TIMEOUT_S = 0.001
EXCERPT = 300

# Rate limits and lost answers are everyday events here: be more patient than by default.
PATIENT = RetryPolicy(initial_interval=0.1, maximum_interval=5.0, maximum_attempts=8)

INSTRUCTIONS = """You decide about refunds. You are given a ticket and its order as JSON; amounts are in cents.
Answer with one JSON object and nothing else: {"refund_cents": <integer, 0 for none>, "reason": "<one sentence>"}."""


class Connections:
    """The clients of one event loop: one HTTP client, and an OpenAI client that shares its connections."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        limit = int(os.environ.get("REFUND_DESK_CONNECTIONS") or DEFAULT_CONNECTIONS)
        self.http = httpx2.AsyncClient(
            limits=httpx2.Limits(max_connections=limit, max_keepalive_connections=limit, keepalive_expiry=KEEPALIVE_S),
        )
        self._model: AsyncOpenAI | None = None
        self._importing = asyncio.Lock()

    async def model(self) -> "AsyncOpenAI":
        """The client of the model, without retries of its own: one layer retries, and it is not this one."""
        if self._model is None:
            # The import takes a second or two: only those who need it wait, and the event loop goes on meanwhile.
            async with self._importing:
                await asyncio.to_thread(importlib.import_module, "openai.resources.chat.completions")
        if self._model is None:
            from openai import AsyncOpenAI

            self._model = AsyncOpenAI(
                base_url=os.environ.get("OPENAI_BASE_URL") or f"{world_url()}/v1",
                api_key=os.environ.get("OPENAI_API_KEY") or "unused",
                max_retries=0,
                http_client=self.http,
            )
        return self._model


_connections: Connections | None = None


def connections() -> Connections:
    """The connections of the running event loop, made at the first call."""
    global _connections
    loop = asyncio.get_running_loop()
    if _connections is None or _connections.loop is not loop:
        _connections = Connections(loop)
    return _connections


def world_url() -> str:
    """Where the world is, without a slash at the end. Raises `Rejected` if nobody said."""
    url = os.environ.get(WORLD_URL, "").rstrip("/")
    if not url:
        raise Rejected(f"{WORLD_URL} is not set: set it to the address of the outside world, http://host:port")
    return url


def timeout_of(call: ToolCall) -> httpx2.Timeout:
    """What is left of this attempt's time; connecting gets less of it."""
    left_s = max(call.remaining_s(), SHORTEST_TIMEOUT_S)
    return httpx2.Timeout(left_s, connect=min(left_s, CONNECT_TIMEOUT_S))


def failure_of(error: BaseException, where: str) -> Exception:
    """What a transport error means: a request that never left was not applied, any other may have been."""
    text = f"{where}: {type(error).__name__}: {error}"
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout):
        return NotApplied(text)
    if isinstance(error, httpx2.LocalProtocolError | httpx2.UnsupportedProtocol | httpx2.InvalidURL):
        return Rejected(text)
    return Ambiguous(text)


def refusal_of(status: int, body: str, where: str) -> Exception:
    """What a status over 399 means."""
    text = f"{where}: {status}: {body[:EXCERPT]}"
    if status == 429:
        return NotApplied(text)
    return Ambiguous(text) if status >= 500 else Rejected(text)


async def ask(call: ToolCall, method: str, path: str, answer: type[Body], body: BaseModel | None = None) -> Body:
    """Send one request to the world, with the step's idempotency key, and validate what comes back."""
    headers = {"idempotency-key": call.idempotency_key}
    content = None
    if body is not None:
        headers["content-type"] = "application/json"
        content = body.model_dump_json().encode()
    where = f"{method} {path}"
    try:
        response = await connections().http.request(
            method, world_url() + path, content=content, headers=headers, timeout=timeout_of(call)
        )
    except (httpx2.RequestError, httpx2.InvalidURL) as error:
        raise failure_of(error, where) from error
    if response.status_code != 200:
        raise refusal_of(response.status_code, response.text, where)
    try:
        return answer.model_validate_json(response.content)
    except ValidationError as error:
        # It was answered with success, so it did happen; but what came back is not what was promised.
        raise Ambiguous(f"{where}: the answer is no {answer.__name__}: {error}") from error


@tool(dependency="orders", risk=Risk.READ, timeout=5, retry=PATIENT)
async def get_order(call: ToolCall, order_id: str) -> Order:
    """Read an order."""
    return await ask(call, "GET", f"/orders/{order_id}", Order)


@tool(dependency="model", risk=Risk.READ, timeout=30, retry=PATIENT)
async def decide(call: ToolCall, ticket: Ticket, order: Order) -> Decision:
    """Ask the model what to do about a ticket."""
    client = await connections().model()
    import openai  # by now this costs nothing

    question = json.dumps({"ticket": ticket.model_dump(), "order": order.model_dump(mode="json")})
    seed = int.from_bytes(hashlib.blake2b(ticket.ticket_id.encode(), digest_size=4).digest())
    where = "the model"
    try:
        completion = await client.chat.completions.create(
            model=os.environ.get("REFUND_DESK_MODEL") or DEFAULT_MODEL,
            messages=[{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": question}],
            response_format={"type": "json_object"},
            seed=seed,
            extra_headers={"Idempotency-Key": call.idempotency_key},
            timeout=timeout_of(call),
        )
    except openai.APIStatusError as error:
        raise refusal_of(error.status_code, error.message, where) from error
    except openai.APIConnectionError as error:
        raise failure_of(error.__cause__ or error, where) from error
    except openai.OpenAIError as error:
        raise Rejected(f"{where}: {type(error).__name__}: {error}") from error
    content = completion.choices[0].message.content if completion.choices else None
    try:
        return Decision.model_validate_json(content or "")
    except ValidationError as error:
        raise Rejected(f"{where} gave no decision, but {(content or 'nothing')[:EXCERPT]!r}") from error


@tool(dependency="payments", risk=Risk.WRITE, timeout=10, idempotent=True, retry=PATIENT)
async def issue_refund(call: ToolCall, order_id: str, amount_cents: int, reason: str) -> Refund:
    """Pay back `amount_cents` of an order. The payment service applies each idempotency key once."""
    return await ask(
        call, "POST", "/refunds", Refund, RefundRequest(order_id=order_id, amount_cents=amount_cents, reason=reason)
    )


@tool(dependency="tickets", risk=Risk.WRITE, timeout=10, idempotent=True, retry=PATIENT)
async def write_answer(call: ToolCall, answer: AnswerRequest) -> Answer:
    """Answer the customer. The ticket service writes each idempotency key once."""
    return await ask(call, "POST", "/answers", Answer, answer)
