"""Three payment services of the world outside, which differ in what they offer to somebody whose answer was lost.

    keyed        applies each Idempotency-Key once, and answers it again with the first answer
    referenced   takes a reference of the caller's, by which it can be asked later; pays as often as it is told to
    plain        neither: pays as often as it is told to, and nobody can ask it anything

What becomes of the next requests about one action can be ordered (`PUT /payments/conduct/{action}`): when it is
applied, when it is answered, whether the connection is closed. A request that was received is applied whatever becomes
of the connection: that is how an effect comes to be applied after nobody expects it any more.
"""

import asyncio
import hashlib
import json
import secrets
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Annotated, cast

from fastapi import FastAPI, Query, Request, Response
from pydantic import BaseModel, ConfigDict, ValidationError

from refund_desk.faults import Milliseconds
from refund_desk.ledger import (
    ActionPage,
    Ledger,
    Outcome,
    PaymentRow,
    Seen,
    Witness,
    read_actions,
    read_applied,
    read_payment,
)
from refund_desk.models import Payment, PaymentRequest
from refund_desk.serving import TRANSPORT, NoAnswer

JSON_TYPE = "application/json"
LONGEST_WAIT_S = 30.0


class Service(StrEnum):
    """The payment services."""

    KEYED = "keyed"
    REFERENCED = "referenced"
    PLAIN = "plain"


class Closes(StrEnum):
    """When the connection is closed without an answer, if it is."""

    NEVER = ""
    BEFORE = "before"
    AFTER = "after"


class Conduct(BaseModel):
    """What becomes of a request: the connection may close; applied after `hold_ms`, answered `answer_ms` later."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hold_ms: Milliseconds = 0.0
    answer_ms: Milliseconds = 0.0
    closes: Closes = Closes.NEVER


class Payments:
    """The three services over one ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._usual = Conduct()
        self._ordered: dict[str, deque[Conduct]] = defaultdict(deque)
        self._seen: dict[str, Seen] = defaultdict(Seen)
        self._changed = asyncio.Condition()

    def add_to(self, app: FastAPI) -> None:
        """Adds the routes."""
        for service in Service:
            app.add_api_route(f"/payments/{service}", self.pay_at(service), methods=["POST"])
        app.add_api_route("/payments/referenced/{reference}", self.ask, methods=["GET"])
        app.add_api_route("/payments/conduct", self.put_usual, methods=["PUT"])
        app.add_api_route("/payments/conduct/{action}", self.put_conduct, methods=["PUT"])
        app.add_api_route("/payments/actions/{action}", self.witness, methods=["GET"])
        app.add_api_route("/ledger/actions", self.actions, methods=["GET"])

    # For those who pay

    def pay_at(self, service: Service) -> Callable[[Request], Awaitable[Response]]:
        """The handler of one service."""

        async def pay(request: Request) -> Response:
            """Pay, as often as this service does."""
            return await self._pay(service, request)

        return pay

    async def _pay(self, service: Service, request: Request) -> Response:
        try:
            body = PaymentRequest.model_validate_json(await request.body())
        except ValidationError as error:
            return _refused(422, str(error))
        key = request.headers.get("idempotency-key", "")
        if service is Service.KEYED and not key:
            return _refused(400, "the header Idempotency-Key is needed")
        ordered = self._ordered.get(body.action)
        conduct = ordered.popleft() if ordered else self._usual
        await self._saw(body.action, "received")
        try:
            if conduct.closes is Closes.BEFORE:
                cast(asyncio.Transport, request.scope[TRANSPORT]).abort()
            await _pause(conduct.hold_ms)
            outcome, answer = self._ledger.pay(_row(service, key, body), once_per_key=service is Service.KEYED)
            await self._ledger.committed()
            await self._saw(body.action, "carried_out")
            await _pause(conduct.answer_ms)
        finally:
            await self._saw(body.action, "over")
        if conduct.closes is not Closes.NEVER:
            return NoAnswer()
        if outcome is Outcome.CONFLICT:
            return _refused(422, f"the Idempotency-Key {key!r} was used with another body")
        return Response(answer, 200, None, JSON_TYPE)

    async def ask(self, reference: str) -> Response:
        """Tell the first payment with this reference."""
        await self._ledger.committed()
        found = await asyncio.to_thread(read_payment, self._ledger.path, Service.REFERENCED.value, reference)
        if found is None:
            return _refused(404, f"no payment has the reference {reference[:80]!r}")
        return Response(found, 200, None, JSON_TYPE)

    # For those who judge

    async def put_usual(self, conduct: Conduct) -> Conduct:
        """Say what becomes of all requests about which nothing else is ordered."""
        self._usual = conduct
        return conduct

    async def put_conduct(self, action: str, conducts: list[Conduct]) -> list[Conduct]:
        """Say what becomes of the next requests about an action."""
        self._ordered[action] = deque(conducts)
        return conducts

    async def witness(
        self,
        action: str,
        received: Annotated[int, Query(ge=0)] = 0,
        carried_out: Annotated[int, Query(ge=0)] = 0,
        quiet: bool = False,
        wait_s: Annotated[float, Query(ge=0, le=LONGEST_WAIT_S)] = 0.0,
    ) -> Witness:
        """Tell what was seen of an action, once there is as much to see as asked for, or the time is over.

        `quiet` waits until nothing of what was received is under way.
        """

        def enough() -> bool:
            seen = self._seen[action]
            idle = not quiet or seen.received == seen.over
            return seen.received >= received and seen.carried_out >= carried_out and idle

        try:
            async with asyncio.timeout(wait_s), self._changed:
                await self._changed.wait_for(enough)
        except TimeoutError:
            pass
        await self._ledger.committed()
        return Witness(
            seen=self._seen[action], applied=await asyncio.to_thread(read_applied, self._ledger.path, action)
        )

    async def actions(self, after: str = "", limit: Annotated[int, Query(ge=1, le=10_000)] = 1_000) -> ActionPage:
        """Tell how often each action was applied, page by page."""
        await self._ledger.committed()
        return await asyncio.to_thread(read_actions, self._ledger.path, after, limit)

    async def _saw(self, action: str, what: str) -> None:
        seen = self._seen[action]
        self._seen[action] = seen.model_copy(update={what: getattr(seen, what) + 1})
        async with self._changed:
            self._changed.notify_all()


async def _pause(ms: float) -> None:
    if ms > 0:
        await asyncio.sleep(ms / 1_000)


def _row(service: Service, key: str, body: PaymentRequest) -> PaymentRow:
    payment_id = f"P-{secrets.token_hex(8)}"
    answer = Payment(payment_id=payment_id, action=body.action, amount_cents=body.amount_cents).model_dump_json()
    digest = hashlib.blake2b(body.model_dump_json().encode(), digest_size=16).digest()
    return PaymentRow(service.value, body.action, key, body.reference, digest, answer.encode())


def _refused(status: int, message: str) -> Response:
    return Response(json.dumps({"error": {"message": message}}), status, None, JSON_TYPE)
