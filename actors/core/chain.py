"""The chain of a run's journal: each entry ends with a hash over itself, keyed with the last bytes of the one before.

The chain begins at the job as it was accepted (:func:`actors.journal.first_link`), goes through the entries that
checkpoints have put into the archive and through the journal, and ends at the *head*: the last link as the run's owner
knew it when it let the run go, kept in the run's record. The owner also seals the run's end with the head as the key (a
host that ends itself, and does not know the head, with the chain's start).
So a changed entry, one that is missing, was inserted or moved, a tail that was cut off, and an outcome that was changed
afterwards are found by whoever computes it again (:mod:`actors.core.proof`).

A chain of hashes without a secret proves this against accidents and against hands that change a part. Somebody who can
write everything can compute everything anew: against that, keep a run's anchor (:func:`actors.core.proof.anchor_of`)
where they cannot write. It is the hash chain of Schneier and Kelsey, "Secure Audit Logs to Support Computer Forensics"
(ACM TISSEC 2(2), 1999), without their key that evolves.
"""

import hashlib
from typing import Final, NamedTuple

import msgspec

from actors.journal import CHAIN_BYTES, Entry, Kind

# Written by people's words, not by the run's owner: they may follow the head that the owner has anchored.
WORDS: Final = frozenset({Kind.APPROVAL.value, Kind.RESOLUTION.value})
_OF_TRAIL: Final = WORDS | {Kind.INTENT.value, Kind.ENDING.value}


class CheckpointFacts(msgspec.Struct, frozen=True):
    """The ``facts`` of a checkpoint's entry (JSON): what it is chained to, also where that is gone.

    Attributes:
        after: the link of the entry before it (hex).
        replaced: how many entries the journal had.
        kept: they are in the archive now.
    """

    after: str
    replaced: int
    kept: bool


encode_checkpoint_facts: Final = msgspec.json.Encoder().encode
_CHECKPOINT_FACTS: Final = msgspec.json.Decoder(CheckpointFacts)


class Ended(NamedTuple):
    """What is sealed of a run's end (also of ``confirmation_unknown``): who it was, and what became of it."""

    run_id: str
    job: bytes
    agent: str
    version: str
    batch: str
    custom_id: str
    parent: str
    state: str
    reason: str
    output: bytes
    error: bytes


def seal_of_end(head: bytes, ended: Ended) -> str:
    """The seal of a run's end (hex): BLAKE2b, keyed with the last link of its journal, over its parts and lengths."""
    state = hashlib.blake2b(digest_size=CHAIN_BYTES, key=head)
    for part in ended:
        raw = part.encode() if isinstance(part, str) else part
        state.update(len(raw).to_bytes(8, "big"))
        state.update(raw)
    return state.hexdigest()


def is_of_trail(entry: Entry) -> bool:
    """Whether a run that has such an entry keeps its past when a checkpoint replaces it, and for ever from then on: it
    has effects, or somebody has decided something about them.
    """
    if entry.kind == Kind.CHECKPOINT:
        facts = checkpoint_facts(entry)
        return facts is not None and facts.kept
    return bool(entry.facts) or entry.kind in _OF_TRAIL


def checkpoint_facts(entry: Entry) -> CheckpointFacts | None:
    """What a checkpoint's entry says of what it replaced; None where it is none, or says nothing."""
    if entry.kind != Kind.CHECKPOINT:
        return None
    try:
        return _CHECKPOINT_FACTS.decode(entry.facts)
    except msgspec.DecodeError:
        return None
