"""One effect's record in the store, as the steps that share it use it: claimed, settled, inherited, refused."""

import asyncio
from typing import TYPE_CHECKING, Final

from actors.attempts import Outcome
from actors.core.outcome import StepEnd
from actors.errors import InvalidValue, RunAborted
from actors.receipts import ASKED_AFTER, UNKNOWN, Receipt, decode_receipt, encode_receipt
from actors.tool_step import ToolStep
from cluster.lifecycle import TERMINAL
from cluster.records import EffectBegun

if TYPE_CHECKING:
    from collections.abc import Awaitable

_REPLICAS_AGAIN_S: Final = 0.1


def begin(step: ToolStep, void_owner: str = "") -> "Awaitable[EffectBegun]":
    """Claims the record, together with what else is written now. ``void_owner``: whose claim :func:`is_void`."""
    store, fence = step.engine.services.store, step.engine.claim.fence
    return step.engine.services.committer.along(
        lambda: store.begin_effect(
            step.identity, step.owner, fence, step.arguments.hex(), step.tool.name, step.key(), void_owner=void_owner
        )
    )


async def is_void(step: ToolStep, owner: str) -> bool:
    """Whether a record's owner can never cause the effect: a run that has ended has no open intent, and one that may
    cause no effects can write none.
    """
    store = step.engine.services.store
    run_id, _, path = owner.partition(":")
    key = store.keys.run(run_id)
    state, read_only = await store.command(key, "HMGET", key, "state", "readonly")
    if state is None or state.decode() in TERMINAL:
        return True
    return read_only == b"1" and not await step.engine.services.has_open_intent(run_id, path)


async def replicated(step: ToolStep, within_s: float) -> bool:
    """Waits until as many replicas as the tool asks for have what was written for this effect; False if not in time."""
    replicas, services = step.tool.options.effect.replicas, step.engine.services
    keys = services.store.keys.run(step.engine.claim.id), services.store.keys.effect(step.identity)
    deadline = services.clock() + within_s
    for key in keys if replicas else ():
        while not await services.store.replicated(key, replicas):
            if services.clock() >= deadline:
                return False
            await asyncio.sleep(_REPLICAS_AGAIN_S)
    return True


async def settle(step: ToolStep, receipt: Receipt) -> None:
    """Keeps what became of the effect.

    Raises:
        RunAborted: a later owner of the run has the record.
    """
    engine, raw = step.engine, encode_receipt(receipt)
    store, fence = engine.services.store, engine.claim.fence
    settled = await engine.services.committer.along(
        lambda: store.settle_effect(step.identity, step.owner, fence, receipt.state, raw)
    )
    if not settled:
        engine.drop()
        raise RunAborted


def outcome_of(step: ToolStep, receipt: Receipt) -> Outcome:
    """The step's outcome by a receipt that says that it was applied."""
    raw, result = receipt.known_result, step.tool.signature.result
    if not raw and receipt.error is not None:
        return Outcome(receipt.attempts, error=receipt.error, end=StepEnd.INVALID_RESULT, ended_by=receipt.by)
    try:
        return Outcome(receipt.attempts, result.load(raw or b"null"), raw or b"null")
    except InvalidValue as error:
        said = ("InvalidValue", str(error))
        if not raw:
            said = "ResultUnknown", f"tool {step.tool.name!r}: it was applied ({receipt.by}), its result is not known"
        return Outcome(receipt.attempts, error=said, end=StepEnd.INVALID_RESULT, ended_by=receipt.by)


def lost_call(begun: EffectBegun, why: str) -> Outcome:
    """A call whose outcome is not known: what its last owner has said of it, or else ``why``."""
    said = decode_receipt(begun.receipt) if begun.receipt else Receipt(UNKNOWN)
    error, message = said.error or ("HostLost", why)
    return Outcome(said.attempts, error=(error, message.partition(ASKED_AFTER)[0]), unknown=True, end=StepEnd.UNKNOWN)


def conflict(step: ToolStep, begun: EffectBegun) -> Outcome:
    """The outcome where the record is of other arguments: refused, or, between branches, for a person to settle."""
    run_id, _, path = begun.owner.partition(":")
    what = f"key {step.business_key!r}" if step.business_key else f"step {step.path} of this lineage"
    text = (
        f"{what}: run {run_id} (step {path}) was first, with arguments {begun.arguments[:12]}; "
        f"tool {step.tool.name!r} is asked now with {step.arguments.hex()[:12]}"
    )
    end = StepEnd.CONFLICT if step.business_key else StepEnd.UNKNOWN
    return Outcome(0, error=("IdempotencyConflict", text), unknown=not step.business_key, end=end, ended_by=run_id)
