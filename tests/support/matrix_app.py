"""The crash matrix's app: an agent that pays once, by a tool of each kind; its hosts are struck where a test orders it.

Environment:
    REFUND_DESK_WORLD_URL  where the payment services are
    STRIKES_DIRECTORY      where strikes are ordered
    NOBODY_URL             an address that refuses connections
    SILENT_URL             one that takes them and answers nothing
"""

import asyncio
import os
from typing import Any

import strikes
from pydantic import BaseModel

from penstock import Applied, Rejected, RetryPolicy, Risk, Run, ToolCall, agent, tool
from penstock.adapters import http
from refund_desk.ledger import Witness
from refund_desk.models import Payment, PaymentRequest
from refund_desk.tools import connections, world_url

TIMEOUT_S = 1.5
LANDS_WITHIN_S = 2.5
PATIENT = RetryPolicy(initial_interval=0.05, maximum_interval=0.2, maximum_attempts=8)
AMOUNT_CENTS = 100

strikes.install()


class Order(BaseModel):
    """What is to be paid once: by a tool of which kind."""

    kind: str
    action: str


async def _request(call: ToolCall, method: str, path: str, body: PaymentRequest | None = None) -> Any:
    """One request, to where the strike has left the world."""
    link = strikes.link_of(call.run_id)
    url = {strikes.CUT: os.environ["NOBODY_URL"], strikes.TIMEOUT: os.environ["SILENT_URL"]}.get(link) or world_url()
    headers = {"Content-Type": "application/json"}
    content = None if body is None else body.model_dump_json().encode()
    return await http.request(call, connections().http, method, url + path, content=content, headers=headers)


async def _pay(call: ToolCall, service: str, action: str) -> Payment:
    body = PaymentRequest(action=action, amount_cents=AMOUNT_CENTS, reference=call.idempotency_key)
    sending = asyncio.create_task(_request(call, "POST", f"/payments/{service}", body))
    try:
        for point, seen in ((strikes.SENT, "received=1"), (strikes.APPLIED, "carried_out=1")):
            strike = strikes.ordered(point, call.tool)
            if strike is not None:
                await connections().http.get(f"{world_url()}/payments/actions/{action}?{seen}&wait_s=10", timeout=11)
                strikes.carry_out(strike, call.run_id)
        return Payment.model_validate_json((await sending).content)
    finally:
        sending.cancel()


async def asked_by_reference(call: ToolCall, action: str) -> Applied[Payment] | None:
    """The payment with this call's reference."""
    try:
        response = await _request(call, "GET", f"/payments/referenced/{call.idempotency_key}")
    except Rejected:
        return None
    payment = Payment.model_validate_json(response.content)
    return Applied(payment, evidence={"payment_id": payment.payment_id})


@tool(risk=Risk.WRITE, timeout=TIMEOUT_S, retry=PATIENT, idempotent=True)
async def pay_idempotent(call: ToolCall, action: str) -> Payment:
    return await _pay(call, "keyed", action)


@tool(risk=Risk.WRITE, timeout=TIMEOUT_S, retry=PATIENT, reconcile=asked_by_reference, lands_within=LANDS_WITHIN_S)
async def pay_reconcilable(call: ToolCall, action: str) -> Payment:
    return await _pay(call, "referenced", action)


@tool(risk=Risk.WRITE, timeout=TIMEOUT_S, retry=PATIENT)
async def pay_neither(call: ToolCall, action: str) -> Payment:
    return await _pay(call, "plain", action)


@tool(timeout=TIMEOUT_S, retry=PATIENT)
async def paid(call: ToolCall, action: str) -> int:
    """How often it was paid so far."""
    response = await _request(call, "GET", f"/payments/actions/{action}")
    return Witness.model_validate_json(response.content).applied


TOOLS = {"idempotent": pay_idempotent, "reconcilable": pay_reconcilable, "neither": pay_neither}


@agent("pays-once", version="1")
async def pays_once(run: Run, order: Order) -> str:
    """Looks, pays, looks."""
    before = await run.call(paid, order.action)
    payment = await run.call(TOOLS[order.kind], order.action)
    await run.call(paid, order.action)
    return f"{payment.payment_id} after {before}"
