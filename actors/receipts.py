"""Receipts: what is known of an effect, by whom, and what proves it."""

from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import msgspec
from pydantic import JsonValue

R = TypeVar("R")
APPLIED: Final = "applied"
NOT_APPLIED: Final = "not_applied"
UNKNOWN: Final = "unknown"
SIMULATED: Final = "simulated"
UNDONE: Final = "undone"
ASKED_AFTER: Final = "; reconcile was asked "
"""Parts what came of a call from what came of asking after it, in an error's message."""


@dataclass(frozen=True)
class Applied(Generic[R]):
    """What a tool's ``reconcile`` returns when the other side has applied the effect.

    Attributes:
        result: what the tool would have returned.
        evidence: what proves it: the other side's id of it, say. It is kept with the receipt.
    """

    result: R
    evidence: JsonValue = None


class Receipt(msgspec.Struct, frozen=True, omit_defaults=True):
    """The durable outcome of an effect (JSON).

    Attributes:
        state: ``applied``, ``not_applied`` or ``unknown``; ``simulated`` where nothing was sent. Of a record in the
            store also ``undone``: it was applied, and then another effect has undone it.
        by: who knows: ``tool`` (its answer), ``reconcile``, ``person NAME``, or ``run RUN`` whose receipt it was first;
            of a simulated one ``simulate``, or ``step STEP`` of this run, which had the same key.
        result: the tool's result as JSON, when it was applied and the result is known.
        error: class and message, when it was not, or when nobody knows.
        evidence: what ``verify``, ``reconcile`` or a person gave as proof.
        attempts: how often the tool was called for it, as far as this owner knows.
        why: a person's reason.
        key: what the other side was given as the key, where that is another one than the intent says: something that
            had been undone was caused anew.
    """

    state: str
    by: str = "tool"
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: tuple[str, str] | None = None
    evidence: Any = None
    attempts: int = 0
    why: str = ""
    key: str = ""

    @property
    def known_result(self) -> bytes:
        """JSON of the result; empty where it is not known."""
        return b"" if self.result is msgspec.UNSET else bytes(self.result)


encode_receipt: Final = msgspec.json.Encoder().encode
_DECODER: Final = msgspec.json.Decoder(Receipt)


def decode_receipt(raw: bytes) -> Receipt:
    """The receipt in ``raw``.

    Raises:
        ValueError: it is none.
    """
    try:
        return _DECODER.decode(raw)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a receipt: {error}") from None


class Resolution(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a person says of an effect whose outcome was unknown: the payload of a ``resolution`` entry (JSON).

    ``result`` is the tool's result as JSON, where the person knows it.
    """

    applied: bool
    by: str
    why: str = ""
    evidence: Any = None
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


decode_resolution: Final = msgspec.json.Decoder(Resolution).decode


class IntentFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an intent says beside its step: the ``facts`` of an ``intent`` entry (JSON).

    Attributes:
        key: what the other side was given as the idempotency key.
        identity: of the effect's record in the store.
        business_key: the agent's own key, where it gave one.
        arguments: the tool's arguments as a JSON array; secrets in them are masked.
        risk: the tool's tier.
        permission: what permitted it: decision, rule, version of the policy.
        approval: id of the approval, where one was needed.
        undoes: the step whose effect this one compensates.
        simulated: nothing is sent.
        owner: who settles an unknown outcome; empty for the tenant's operators.
        settle_by_ms: when an unknown outcome should have been settled (epoch milliseconds).
    """

    key: str
    identity: str
    arguments: msgspec.Raw = msgspec.Raw(b"[]")
    business_key: str = ""
    risk: str = ""
    permission: dict[str, str] = {}
    approval: str = ""
    undoes: str = ""
    simulated: bool = False
    owner: str = ""
    settle_by_ms: int = 0


encode_facts: Final = msgspec.json.Encoder().encode
decode_intent_facts: Final = msgspec.json.Decoder(IntentFacts).decode
