"""The world outside, for the refund desk: orders, payments, tickets and a model, in one HTTP server of its own.

    python -m refund_desk.world --port 0 --ledger ledger.db --ready-file ready.json

It listens on 127.0.0.1 only, writes `{"port", "url", "pid"}` to the ready file once it listens, and ends on SIGTERM. It
knows nothing of Penstock: its ledger is an independent witness of what agents did to it (see `ledger`), and
`PUT /faults` makes it as unreliable as the real one (see `faults`).
"""

import argparse
import asyncio
import gc
import hashlib
import json
import os
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import uvicorn
from fastapi import FastAPI, Query, Request, Response
from pydantic import BaseModel, TypeAdapter, ValidationError

from refund_desk.chat import ChatRequest, complete, digest_of
from refund_desk.faults import Dice, Endpoint, Fate, Faults, Switches
from refund_desk.ledger import Effect, KeyPage, Ledger, Outcome, Totals, read_keys, read_totals
from refund_desk.models import Answer, AnswerRequest, Order, OrderId, OrderStatus, Refund, RefundRequest
from refund_desk.payments import Payments
from refund_desk.serving import NoAnswer, Protocol, Server, die_with_parent, write_atomically

HOST = "127.0.0.1"
LONGEST_KEY = 255
JSON_TYPE = "application/json"

Body = TypeVar("Body", bound=BaseModel)
order_ids: TypeAdapter[str] = TypeAdapter(OrderId)


class Reply(NamedTuple):
    """An answer that is not sent yet, and what the ledger says about it."""

    outcome: Outcome
    content: bytes
    status: int = 200
    headers: dict[str, str] | None = None


class Asked(NamedTuple):
    """What a request is about. `subject` is what decides its fate; see `faults`."""

    endpoint: Endpoint
    idempotency_key: str | None
    order_id: str | None
    subject: str


def refusal(outcome: Outcome, status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> Reply:
    """A reply that says no, in the shape that OpenAI-compatible clients know."""
    error = {"message": message, "type": kind, "param": None, "code": None}
    return Reply(outcome, json.dumps({"error": error}).encode(), status, headers)


def invalid(error: ValidationError) -> Reply:
    """A 422 that names each field and what is wrong with it."""
    faults = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in error.errors())
    return refusal(Outcome.INVALID, 422, "invalid_request_error", faults)


def find_order(seed: int, order_id: str) -> Order:
    """The order with this id; the same for the same seed."""
    digest = hashlib.blake2b(f"{seed}\n{order_id}".encode(), digest_size=8).digest()
    statuses = list(OrderStatus)
    return Order(
        order_id=order_id,
        customer=f"C-{int.from_bytes(digest[:2])}",
        status=statuses[digest[2] % len(statuses)],
        total_cents=500 + int.from_bytes(digest[3:7]) % 49_500,
    )


def respond(reply: Reply) -> Response:
    return Response(reply.content, reply.status, reply.headers, JSON_TYPE)


class World:
    """The four services. Handlers take the bare request: what FastAPI adds around a body costs more than they do."""

    def __init__(self, seed: int, ledger: Ledger) -> None:
        self.seed = seed
        self.ledger = ledger
        self.switches = Switches()
        self.dice = Dice(seed)

    async def get_order(self, request: Request) -> Response:
        """Tell an order."""
        order_id: str = request.path_params["order_id"]
        key = request.headers.get("idempotency-key")
        try:
            order_ids.validate_python(order_id)
        except ValidationError:
            reply = refusal(Outcome.NOT_FOUND, 404, "not_found", f"there is no order {order_id[:80]!r}")
            return self._unserved(Asked(Endpoint.ORDERS, key, None, order_id), reply)

        def work() -> Reply:
            return Reply(Outcome.OK, find_order(self.seed, order_id).model_dump_json().encode())

        return await self._serve(Asked(Endpoint.ORDERS, key, order_id, order_id), work)

    async def chat(self, request: Request) -> Response:
        """Let the model decide (OpenAI-compatible, without streaming)."""
        key = request.headers.get("idempotency-key")
        try:
            body = ChatRequest.model_validate_json(await request.body())
        except ValidationError as error:
            return self._unserved(Asked(Endpoint.MODEL, key, None, ""), invalid(error))
        if body.stream:
            reply = refusal(Outcome.INVALID, 400, "invalid_request_error", "stream: this model does not stream")
            return self._unserved(Asked(Endpoint.MODEL, key, None, ""), reply)

        def work() -> Reply:
            return Reply(Outcome.OK, json.dumps(complete(self.seed, body)).encode())

        return await self._serve(Asked(Endpoint.MODEL, key, None, digest_of(self.seed, body).hex()), work)

    async def refund(self, request: Request) -> Response:
        """Apply a refund once per key."""

        def effect(key: str, digest: bytes, body: RefundRequest) -> Effect | Reply:
            total = find_order(self.seed, body.order_id).total_cents
            if body.amount_cents > total:
                message = f"amount_cents: {body.amount_cents} is over the total of order {body.order_id}, {total}"
                return refusal(Outcome.INVALID, 422, "invalid_request_error", message)
            refund_id = f"R-{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}"
            refund = Refund(refund_id=refund_id, order_id=body.order_id, amount_cents=body.amount_cents)
            response = refund.model_dump_json().encode()
            return Effect(Endpoint.REFUNDS, key, body.order_id, body.amount_cents, digest, response)

        return await self._mutate(request, Endpoint.REFUNDS, RefundRequest, effect)

    async def answer(self, request: Request) -> Response:
        """Write an answer to a ticket once per key."""

        def effect(key: str, digest: bytes, body: AnswerRequest) -> Effect | Reply:
            answer_id = f"A-{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}"
            response = Answer(answer_id=answer_id, **body.model_dump()).model_dump_json().encode()
            return Effect(Endpoint.ANSWERS, key, body.ticket_id, body.refund_cents, digest, response)

        return await self._mutate(request, Endpoint.ANSWERS, AnswerRequest, effect)

    async def get_faults(self) -> Switches:
        """Tell which faults are switched on."""
        return self.switches

    async def put_faults(self, switches: Switches) -> Switches:
        """Replace all faults, and start their draws again."""
        self.switches = switches
        self.dice.forget()
        return switches

    async def get_ledger(self) -> Totals:
        """Tell the totals of the ledger, of all that was asked before this request."""
        await self.ledger.committed()
        return await asyncio.to_thread(read_totals, self.ledger.path)

    async def get_keys(self, after: str = "", limit: Annotated[int, Query(ge=1, le=10_000)] = 1_000) -> KeyPage:
        """Tell what came with each idempotency key, page by page."""
        await self.ledger.committed()
        return await asyncio.to_thread(read_keys, self.ledger.path, after, limit)

    async def _mutate(
        self,
        request: Request,
        endpoint: Endpoint,
        kind: type[Body],
        effect_of: Callable[[str, bytes, Body], Effect | Reply],
    ) -> Response:
        key = request.headers.get("idempotency-key")
        try:
            body = kind.model_validate_json(await request.body())
        except ValidationError as error:
            return self._unserved(Asked(endpoint, key, None, ""), invalid(error))
        order_id: str = getattr(body, "order_id", "")
        asked = Asked(endpoint, key, order_id, order_id)
        if key is None or not 0 < len(key) <= LONGEST_KEY:
            message = f"the header Idempotency-Key is needed, with 1 to {LONGEST_KEY} characters"
            return self._unserved(asked, refusal(Outcome.INVALID, 400, "invalid_request_error", message))

        def work() -> Reply:
            digest = hashlib.blake2b(body.model_dump_json().encode(), digest_size=16).digest()
            effect = effect_of(key, digest, body)
            if isinstance(effect, Reply):
                return effect
            outcome, response = self.ledger.apply(effect)
            if outcome is Outcome.CONFLICT:
                message = f"the Idempotency-Key {key!r} was used with another body"
                return refusal(outcome, 422, "idempotency_error", message)
            return Reply(outcome, response)

        return await self._serve(asked, work)

    def _unserved(self, asked: Asked, reply: Reply) -> Response:
        """Refuse what is wrong as it stands; faults do not matter to it."""
        self.ledger.record(asked.endpoint, asked.idempotency_key, asked.order_id, reply.outcome)
        return respond(reply)

    async def _serve(self, asked: Asked, work: Callable[[], Reply]) -> Response:
        """Let the request meet its fate; do `work`, which must not await, if that is part of it."""
        faults = self.switches.of(asked.endpoint)
        fate = Fate.SERVE
        if faults is not None:
            draws = self.dice.roll(asked.endpoint, asked.subject)
            fate = faults.fate(draws.fate)
            await asyncio.sleep(faults.delay_s(draws.delay))
        reply = refuse(fate, faults) if faults is not None else None
        if reply is None:
            reply = work()
        outcome = Outcome.LOST_RESPONSE if fate is Fate.LOST_RESPONSE else reply.outcome
        self.ledger.record(asked.endpoint, asked.idempotency_key, asked.order_id, outcome)
        if asked.endpoint in (Endpoint.REFUNDS, Endpoint.ANSWERS):
            try:
                await self.ledger.committed()
            except sqlite3.Error as error:
                return respond(refusal(Outcome.ERROR, 500, "server_error", f"the ledger did not commit: {error}"))
        if outcome in (Outcome.LOST_REQUEST, Outcome.LOST_RESPONSE):
            return NoAnswer()
        return respond(reply)


def refuse(fate: Fate, faults: Faults) -> Reply | None:
    """The reply of a request whose fate is not to be worked on, or None."""
    if fate is Fate.LOST_REQUEST:
        return Reply(Outcome.LOST_REQUEST, b"")
    if fate is Fate.RATE_LIMITED:
        headers = {"retry-after": str(faults.retry_after_s)}
        return refusal(Outcome.RATE_LIMITED, 429, "rate_limit_error", "too many requests, by /faults", headers)
    if fate is Fate.ERROR:
        return refusal(Outcome.ERROR, 500, "server_error", "an error, by /faults")
    return None


def create_app(world: World) -> FastAPI:
    """The HTTP side of `world`."""
    app = FastAPI(title="The world outside of the refund desk", version="1")
    app.add_api_route("/orders/{order_id}", world.get_order, methods=["GET"])
    app.add_api_route("/v1/chat/completions", world.chat, methods=["POST"])
    app.add_api_route("/refunds", world.refund, methods=["POST"])
    app.add_api_route("/answers", world.answer, methods=["POST"])
    app.add_api_route("/faults", world.get_faults, methods=["GET"])
    app.add_api_route("/faults", world.put_faults, methods=["PUT"])
    app.add_api_route("/ledger", world.get_ledger, methods=["GET"])
    app.add_api_route("/ledger/keys", world.get_keys, methods=["GET"])
    Payments(world.ledger).add_to(app)
    return app


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="refund_desk.world", description=__doc__, allow_abbrev=False)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 (default) lets the system choose")
    parser.add_argument("--ledger", type=Path, required=True, help="SQLite file; made if missing, else carried on")
    parser.add_argument("--ready-file", type=Path, help="JSON file that is written when the server listens")
    parser.add_argument("--seed", type=int, default=0, help="decides orders, the model's answers, and faults")
    parser.add_argument("--die-with-parent", action="store_true", help="end when the process that started this ends")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    parent = os.getppid()
    options = parse_arguments(arguments)
    if options.die_with_parent:
        die_with_parent(parent)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, options.port))
        ledger = Ledger(options.ledger)
    except (OSError, OverflowError) as error:
        raise SystemExit(f"cannot listen on {HOST}:{options.port}: {error}") from error
    except sqlite3.Error as error:
        raise SystemExit(f"cannot use {options.ledger} as the ledger: {error}") from error
    port: int = listener.getsockname()[1]

    def on_ready() -> None:
        if options.ready_file is not None:
            write_atomically(options.ready_file, {"port": port, "url": f"http://{HOST}:{port}", "pid": os.getpid()})

    config = uvicorn.Config(
        create_app(World(options.seed, ledger)),
        loop="uvloop",
        http=Protocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        date_header=False,
        backlog=2_048,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=3,
    )
    gc.collect()
    gc.freeze()  # what is here now stays: the collector need not look at it again
    try:
        Server(config, on_ready).run([listener])
    finally:
        ledger.close()
        if options.ready_file is not None:
            options.ready_file.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
