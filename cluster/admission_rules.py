"""The operators' rules for admission in the store: those in force, and those before them, as texts."""

from cluster import documents
from cluster.documents import Document, DocumentRecord, DocumentSet
from cluster.store import Store


async def put_rules(
    store: Store, version: str, text: str, *, by: str, why: str = "", only_first: bool = False
) -> DocumentSet:
    """Puts rules in force, and tells the controller; see :func:`cluster.documents.put`."""
    return await documents.put(store, _rules(store), version, text, by=by, why=why, only_first=only_first)


async def rules_number(store: Store) -> int:
    """The number of the rules in force, 0 where none were ever set: cheap to ask for again and again."""
    return await documents.number_of(store, _rules(store))


async def rules_in_force(store: Store) -> DocumentRecord | None:
    """The rules in force, or None where none were ever set."""
    return await documents.in_force(store, _rules(store))


async def rules_history(store: Store) -> list[DocumentRecord]:
    """What was in force lately, the newest first; the first ones are in force."""
    return await documents.history_of(store, _rules(store))


def _rules(store: Store) -> Document:
    keys = store.keys
    return Document(keys.admission_rules, keys.admission_rules_history, keys.admission_channel)
