"""Texts that operators put in force for a whole deployment, and what was in force before. Their meaning is not known
here.
"""

from typing import Final, NamedTuple

import msgspec

from cluster import scripts
from cluster.store import Store

KEPT: Final = 50
"""How many versions a history has."""


class Document(NamedTuple):
    """Where a document is: the keys of what is in force and of its history, in one slot, and the channel that is told
    a number whenever another one is put in force.
    """

    key: str
    history: str
    channel: str


class DocumentRecord(msgspec.Struct, frozen=True):
    """A document that is, or was, in force (also an entry of the history, JSON).

    Attributes:
        number: grows with each change.
        version: digest of what it says.
        text: as it was written.
        since: when it was set, epoch milliseconds of the server's clock.
        by: who set it.
        why: their reason.
    """

    number: int
    version: str
    text: str
    since: int
    by: str = ""
    why: str = ""


class DocumentSet(NamedTuple):
    """What became of a document that was to be set: ``SET``, ``SAME`` (it was in force already) or ``KEPT`` (another
    one was there, and this one was only to begin with); the number and the time of the one in force.
    """

    word: str
    number: int
    since_ms: int


_DECODER: Final = msgspec.json.Decoder(DocumentRecord)
_FIELDS: Final = ("number", "version", "text", "since", "by", "why")


async def put(
    store: Store,
    document: Document,
    version: str,
    text: str,
    *,
    by: str,
    why: str = "",
    only_first: bool = False,
    kept: int = KEPT,
) -> DocumentSet:
    """Puts a document in force, and tells everybody. Doing it twice changes nothing the second time.

    Args:
        store: the deployment's.
        document: which.
        version: digest of what it says.
        text: what it says.
        by: who wants it.
        why: their reason.
        only_first: leave alone what is in force, if anything is.
        kept: how many versions the history has.
    """
    mode = "begin" if only_first else "set"
    word, number, since_ms = await store.call_keys(
        scripts.POLICY, (document.key, document.history), version, text, by, why, mode, kept, document.channel
    )
    return DocumentSet(word.decode(), number, since_ms)


async def number_of(store: Store, document: Document) -> int:
    """The number of the one in force, 0 where none was ever set: cheap to ask for again and again."""
    return int(await store.command(document.key, "HGET", document.key, "number") or 0)


async def in_force(store: Store, document: Document) -> DocumentRecord | None:
    """The one in force, or None where none was ever set."""
    key = document.key
    number, *texts, since, by, why = await store.command(key, "HMGET", key, *_FIELDS)
    if number is None:
        return None
    version, text = (each.decode() for each in texts)
    return DocumentRecord(int(number), version, text, int(since), (by or b"").decode(), (why or b"").decode())


async def history_of(store: Store, document: Document) -> list[DocumentRecord]:
    """What was in force lately, the newest first; the first one is in force."""
    key = document.history
    return [_DECODER.decode(raw) for raw in await store.command(key, "LRANGE", key, 0, KEPT - 1)]
