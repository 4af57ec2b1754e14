"""Journal entries: the durable record of one step (msgpack array, its first item the version).

An entry is *open* while something must still follow it at the same step: an effect's intent, a timer, a child.
Payloads are JSON of validated values. Entries of one run are chained: each ends with a hash over the one before it and
over itself, so that whoever reads the journal can tell whether an entry was changed or is missing.
"""

import hashlib
from enum import StrEnum
from typing import Final

import msgspec

ENTRY_VERSION: Final = 2
CHAIN_BYTES: Final = 16


class Kind(StrEnum):
    """What kind of step an entry records."""

    CALL = "call"
    INTENT = "intent"
    VALUE = "value"
    TIMER = "timer"
    CHILD = "child"
    CHECKPOINT = "checkpoint"
    APPROVAL = "approval"
    RESOLUTION = "resolution"
    ENDING = "ending"


class Status(StrEnum):
    """How the step stands: done, failed for good, or open."""

    OK = "ok"
    FAILED = "failed"
    OPEN = "open"


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """One journal entry. Times are epoch milliseconds, estimated from the server's clock.

    ``facts`` (JSON, or empty) is what is known about the step beside its outcome: of an intent the key, the arguments
    and what permitted it, of an effect's end the receipt with its evidence. ``chain`` ties it to the entry before it
    (:func:`seal`); entries of version 1 have none.

    ``step`` is the path of the step in the run ("3", or "b0.1" for the second step of the first task that the
    agent started; "c2.0" for the first step after the second checkpoint); ``digest`` is of its canonical arguments.
    """

    v: int
    kind: str
    step: str
    name: str
    digest: bytes
    status: str
    payload: bytes
    attempts: int
    started_ms: int
    ended_ms: int
    facts: bytes = b""
    chain: bytes = bytes(CHAIN_BYTES)


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Entry)
encode_entry = _ENCODER.encode


def decode_entry(raw: bytes) -> Entry:
    """The entry in ``raw``.

    Raises:
        ValueError: it is no entry, or one of a newer version than this process reads.
    """
    try:
        entry = _DECODER.decode(raw)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a journal entry: {error}") from None
    if entry.v > ENTRY_VERSION:
        raise ValueError(f"journal entry has version {entry.v}; this process reads up to {ENTRY_VERSION}: update it")
    return entry


_INTENT_MARK: Final = _ENCODER.encode(Kind.INTENT.value)


def is_intent(raw: bytes) -> bool:
    """Whether an encoded entry is an effect's intent, without decoding it: its kind stands after two single bytes."""
    return raw.startswith(_INTENT_MARK, 2)


def first_link(run_id: str, job: bytes) -> bytes:
    """What the first entry of a run is chained to: the job as it was accepted."""
    state = hashlib.blake2b(run_id.encode(), digest_size=CHAIN_BYTES)
    state.update(job)
    return state.digest()


def seal(link: bytes, raw: bytes) -> bytes:
    """The encoded entry, chained to the one that ``link`` (its last bytes) belongs to."""
    body = raw[:-CHAIN_BYTES]
    return body + hashlib.blake2b(body, digest_size=CHAIN_BYTES, key=link).digest()


def link_of(raw: bytes) -> bytes:
    """What the entry after this one is chained to."""
    return raw[-CHAIN_BYTES:]


class ErrorRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error as results and journals show it (JSON): with how its step ended, and by which field of which policy.

    Of a run: which of its effects were undone, and which are still applied.
    """

    error_class: str = msgspec.field(name="class")
    message: str = ""
    step: str = ""
    end: str = ""
    ended_by: str = ""
    undone: list[str] = []
    still_applied: list[str] = []


def encode_error(error_class: str, message: str, step: str = "", end: str = "", ended_by: str = "") -> bytes:
    """JSON of an error; long messages are cut, since they may quote a whole payload."""
    # Lone surrogates (from undecodable file names, say) have no place in JSON.
    plain = message[:2000].encode("utf-8", "backslashreplace").decode("utf-8")
    return msgspec.json.encode(ErrorRecord(error_class, plain, step, end, ended_by))


def encode_error_record(
    error: ErrorRecord | None, state: str, reason: str, undone: list[str], still_applied: list[str]
) -> bytes:
    """JSON of a run's error, with what became of its effects; where it had none, of its state and reason."""
    known = error or ErrorRecord(state, reason)
    return msgspec.json.encode(msgspec.structs.replace(known, undone=undone, still_applied=still_applied))


def decode_error(raw: bytes) -> ErrorRecord:
    """The error in ``raw``."""
    return msgspec.json.decode(raw, type=ErrorRecord)
