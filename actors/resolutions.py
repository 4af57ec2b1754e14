"""What people have said of effects in a run that ends without asking for those effects again: it was cancelled, say, or
its code has changed. What was said is true all the same.
"""

from typing import TYPE_CHECKING

import msgspec

from actors.errors import InvalidValue
from actors.journal import Entry, Kind, Status, encode_error
from actors.receipts import (
    APPLIED,
    NOT_APPLIED,
    Receipt,
    decode_intent_facts,
    decode_resolution,
    encode_receipt,
)

if TYPE_CHECKING:
    from actors.engine import RunEngine


async def close_resolved(engine: "RunEngine", resolutions: list[Entry]) -> None:
    """Settles the records of these effects, and records those that were applied, so that they can be undone.

    Raises:
        RunAborted: the run is not this host's any more.
    """
    for entry in resolutions:
        await _close(engine, entry)


async def _close(engine: "RunEngine", entry: Entry) -> None:
    said, identity = decode_resolution(entry.payload), decode_intent_facts(entry.facts).identity
    state = APPLIED if said.applied else NOT_APPLIED
    receipt = Receipt(state, f"person {said.by}", said.result, None, said.evidence, entry.attempts, said.why)
    store, owner, fence = engine.services.store, f"{engine.claim.id}:{entry.step}", engine.claim.fence
    record, raw = await store.effect(identity), encode_receipt(receipt)
    if record is not None and record.owner == owner:
        await engine.services.committer.insist(lambda: store.settle_effect(identity, owner, fence, state, raw))
    if said.applied:
        await engine.write([_call(engine, entry, receipt)], 1)


def _call(engine: "RunEngine", entry: Entry, receipt: Receipt) -> bytes:
    """The entry that closes an applied effect as its step would have."""
    tool, result = engine.services.tools.get(entry.name), receipt.known_result
    status = Status.OK
    try:
        if tool is not None:
            result = result or b"null"
            tool.signature.result.load(result)
        elif not result:
            raise InvalidValue("nobody knows it")
    except InvalidValue as error:
        text = f"tool {entry.name!r}: it was applied ({receipt.by}), its result cannot be used: {error}"
        result, status = encode_error("ResultUnknown", text, entry.step, "invalid_result", receipt.by), Status.FAILED
    facts = encode_receipt(msgspec.structs.replace(receipt, result=msgspec.UNSET))
    return engine.entry(
        Kind.CALL, entry.step, entry.name, entry.digest, status, result, entry.attempts, entry.started_ms, facts
    )
