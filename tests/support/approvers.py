"""Approvals in tests: keys, agents whose calls people have to approve, clients that decide, and hands in the store."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from hosting import Spine, until
from pydantic import SecretStr

from actors import approvals
from actors.errors import ApprovalDenied, NotPermitted
from admission.approval import Action, Decision, Request, Terms, new_request
from admission.signature import Keyring
from penstock import Client, Risk, Run, ToolCall, agent, tool
from penstock.approval_facts import ApprovalView

SECRET = "k1:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
OTHER = "k2:ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA="
KEYS = Keyring.parse(SECRET)
OTHERS = Keyring.parse(OTHER)
FORGED = Keyring({"k1": b"somebody else's key, of k1's name"})


def keys_setting(text: str = SECRET) -> dict[str, Any]:
    return {"approval_keys": SecretStr(text)}


class World:
    """What has really been called: the judge of every test here."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.amount = 100
        self.terms = Terms()
        self.holds = False


WORLD = World()


@tool(needs_approval=True, advisory=("note",))
async def pay(call: ToolCall, order: str, amount: int, note: str = "", token: str = "") -> str:
    """To be approved; what it is called with is noted down."""
    WORLD.calls.append((order, amount))
    return f"paid {amount} for {order}"


@agent("payer", version="1")
async def payer(run: Run, order: str) -> str:
    """Pays what the world says that the order costs, once that is approved."""
    return await run.call(pay, order, WORLD.amount, note="monthly", token="hunter2")


@tool()
async def wire(call: ToolCall, order: str, amount: int) -> str:
    WORLD.calls.append((order, amount))
    return "wired"


@agent("guarded", version="1")
async def guarded(run: Run, order: str) -> str:
    """Asks on the world's terms before it calls; says what it was told; lives on for a while if it is to."""
    engine, step = run._engine, run.next_step()
    values, _ = wire.signature.bind((order, WORLD.amount), {})
    try:
        await approvals.approved(engine, step, wire, values, WORLD.terms, rule="the test's")
    except ApprovalDenied as denied:
        told = f"{denied.error_class}: {denied.message} ({denied.ended_by})"
        if order == "stay":
            await run.sleep(60)
        return told
    done = await run.call(wire, order, WORLD.amount)
    if order == "stay":
        await run.sleep(60)
    return done


@tool(risk=Risk.WRITE, needs_approval=True, idempotent=True)
async def send(call: ToolCall, order: str) -> str:
    """An effect that people have to approve; while the world is holding calls, one that gets no answer."""
    WORLD.calls.append((order, call.idempotency_key))
    if WORLD.holds:
        await asyncio.Event().wait()
    return f"sent {order}"


@agent("sender", version="1")
async def sender(run: Run, order: str) -> str:
    """Says what became of it."""
    try:
        return await run.call(send, order)
    except (ApprovalDenied, NotPermitted) as refused:
        return f"{refused.error_class}: {refused.message}"


@contextlib.asynccontextmanager
async def client_of(deployment: Spine, **settings: Any) -> AsyncIterator[Client]:
    """A client of a test's deployment; its user is "alice" unless the test says another."""
    chosen = deployment.settings.model_copy(update={"user": "alice", **settings})
    async with Client(settings=chosen) as client:
        yield client


async def asked(client: Client, run_id: str) -> ApprovalView:
    """Waits until a run has asked, and for what."""
    found: list[ApprovalView] = []

    async def there() -> bool:
        found[:] = [each for each in await client.approvals() if each.run_id == run_id]
        return bool(found)

    await until(there, f"{run_id} asks for an approval")
    return found[0]


async def write(deployment: Spine, approval_id: str, **fields: bytes | str) -> None:
    """Somebody who can write to the store, and has no key, changes a record."""
    key = deployment.store.keys.approval(approval_id)
    await deployment.store.command(key, "HSET", key, *(part for pair in fields.items() for part in pair))


async def read(deployment: Spine, approval_id: str, *fields: str) -> list[bytes | None]:
    key = deployment.store.keys.approval(approval_id)
    found: list[bytes | None] = await deployment.store.command(key, "HMGET", key, *fields)
    return found


def an_action(**fields: str) -> Action:
    plain = {
        "deployment": "d", "run": "01-0123456789abcdef01234567", "step": "0", "tool": "pay", "agent": "payer",
        "agent_version": "1", "arguments": "aa", "risk": "write",
    }  # fmt: skip
    return Action(**(plain | fields))


def a_request(terms: Terms | None = None, *, keys: Keyring = KEYS, submitter: str = "sam", **fields: str) -> Request:
    return new_request(
        an_action(**fields), terms or Terms(expires_s=10), 1_000_000, shown='{"amount":1}', submitter=submitter,
        tenant="default", rule="", keys=keys,
    )  # fmt: skip


def said(
    request: Request, approver: str = "alice", *, yes: bool = True, at_ms: int = 1_000_500, keys: Keyring = KEYS,
    reason: str = "",
) -> Decision:  # fmt: skip
    decision = Decision(
        approval=request.id, action=request.action.digest, approver=approver, approve=yes, reason=reason, at_ms=at_ms
    )
    return decision.signed(keys)


def plain(model: Decision | Request) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(model.model_dump_json())
    return found
