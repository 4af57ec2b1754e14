"""The deployment's policy in the store: the one in force, and those before it. Their meaning is not known here."""

from typing import Final

from cluster import documents
from cluster.documents import Document
from cluster.documents import DocumentRecord as PolicyRecord
from cluster.documents import DocumentSet as PolicySet
from cluster.store import Store

__all__ = ["KEPT", "PolicyRecord", "PolicySet", "policy_history", "policy_in_force", "policy_number", "put_policy"]

KEPT: Final = documents.KEPT
"""How many versions the history has."""


async def put_policy(
    store: Store, version: str, text: str, *, by: str, why: str = "", only_first: bool = False
) -> PolicySet:
    """Puts a policy in force, and tells all hosts; see :func:`cluster.documents.put`."""
    return await documents.put(store, _policy(store), version, text, by=by, why=why, only_first=only_first, kept=KEPT)


async def policy_number(store: Store) -> int:
    """The number of the policy in force, 0 where none was ever set: cheap to ask for again and again."""
    return await documents.number_of(store, _policy(store))


async def policy_in_force(store: Store) -> PolicyRecord | None:
    """The policy in force, or None where none was ever set."""
    return await documents.in_force(store, _policy(store))


async def policy_history(store: Store) -> list[PolicyRecord]:
    """What was in force lately, the newest first; the first one is in force."""
    return await documents.history_of(store, _policy(store))


def _policy(store: Store) -> Document:
    keys = store.keys
    return Document(keys.policy, keys.policy_history, keys.policy_channel)
