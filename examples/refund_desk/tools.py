"""What the agent of the refund desk may do: read an order, ask a model, refund, answer.

Every tool says by its exception what is known about the call that failed, since that decides about retries. Penstock's
adapters do that for what can go wrong on the way; here is only what they cannot know: what an answer must look like.

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

from penstock import Ambiguous, Rejected, Risk, ToolCall, tool
from penstock.adapters import http
from penstock.adapters.openai import completion
from refund_desk.dependencies import MODEL, ORDERS, PAYMENTS, TICKETS
from refund_desk.models import Answer, AnswerRequest, Decision, Order, Refund, RefundRequest, Ticket

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Body = TypeVar("Body", bound=BaseModel)

WORLD_URL = "REFUND_DESK_WORLD_URL"
DEFAULT_MODEL = "world-model-1"
# Each request looks at every connection of its pool: many more of them cost more time than they save.
DEFAULT_CONNECTIONS = 64
KEEPALIVE_S = 30.0
EXCERPT = 300
# A decision is one short JSON object; models that think first need more than it takes to write it down.
LONGEST_DECISION = 1_000

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


async def ask(call: ToolCall, method: str, path: str, answer: type[Body], body: BaseModel | None = None) -> Body:
    """Send one request to the world and validate what comes back."""
    # Reads carry the key as well, so that the world's ledger can tell which of them came again.
    headers = {"Idempotency-Key": call.idempotency_key}
    content = None
    if body is not None:
        headers["Content-Type"] = "application/json"
        content = body.model_dump_json().encode()
    where = f"{method} {path}"
    response = await http.request(
        call, connections().http, method, world_url() + path, where=where, content=content, headers=headers
    )
    try:
        return answer.model_validate_json(response.content)
    except ValidationError as error:
        # It was answered with success, so it did happen; but what came back is not what was promised.
        raise Ambiguous(f"{where}: the answer is no {answer.__name__}: {error}") from error


@tool(dependency=ORDERS.name, risk=Risk.READ, timeout=5)
async def get_order(call: ToolCall, order_id: str) -> Order:
    """Read an order."""
    return await ask(call, "GET", f"/orders/{order_id}", Order)


@tool(dependency=MODEL.name, risk=Risk.READ, timeout=30, max_tokens=LONGEST_DECISION)
async def decide(call: ToolCall, ticket: Ticket, order: Order) -> Decision:
    """Ask the model what to do about a ticket."""
    client = await connections().model()
    question = json.dumps({"ticket": ticket.model_dump(), "order": order.model_dump(mode="json")})
    answer = await completion(
        call,
        client.chat.completions.create,
        model=os.environ.get("REFUND_DESK_MODEL") or DEFAULT_MODEL,
        messages=[{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": question}],
        response_format={"type": "json_object"},
        max_completion_tokens=LONGEST_DECISION,
        seed=int.from_bytes(hashlib.blake2b(ticket.ticket_id.encode(), digest_size=4).digest()),
    )
    content = answer.choices[0].message.content if answer.choices else None
    try:
        return Decision.model_validate_json(content or "")
    except ValidationError as error:
        raise Rejected(f"the model gave no decision, but {(content or 'nothing')[:EXCERPT]!r}") from error


async def pretend_refund(call: ToolCall, order_id: str, amount_cents: int, reason: str) -> Refund:
    """What a refund would have brought, for evaluations."""
    return Refund(refund_id=f"simulated-{call.run_id}", order_id=order_id, amount_cents=amount_cents)


async def pretend_answer(call: ToolCall, answer: AnswerRequest) -> Answer:
    """What an answer would have brought, for evaluations."""
    return Answer(answer_id=f"simulated-{call.run_id}", **answer.model_dump())


@tool(
    dependency=PAYMENTS.name,
    risk=Risk.WRITE,
    timeout=10,
    idempotent=True,
    scopes=["refunds:issue"],
    simulate=pretend_refund,
)
async def issue_refund(call: ToolCall, order_id: str, amount_cents: int, reason: str) -> Refund:
    """Pay back `amount_cents` of an order. The payment service applies each idempotency key once."""
    return await ask(
        call, "POST", "/refunds", Refund, RefundRequest(order_id=order_id, amount_cents=amount_cents, reason=reason)
    )


@tool(
    dependency=TICKETS.name,
    risk=Risk.WRITE,
    timeout=10,
    idempotent=True,
    scopes=["answers:write"],
    simulate=pretend_answer,
)
async def write_answer(call: ToolCall, answer: AnswerRequest) -> Answer:
    """Answer the customer. The ticket service writes each idempotency key once."""
    return await ask(call, "POST", "/answers", Answer, answer)
