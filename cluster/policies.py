"""The deployment's policy in the store: the one in force, and those before it. Their meaning is not known here."""

from typing import Final, NamedTuple

import msgspec

from cluster import scripts
from cluster.store import Store

KEPT: Final = 50
"""How many versions the history has."""


class PolicyRecord(msgspec.Struct, frozen=True):
    """A policy that is, or was, in force (also an entry of the history, JSON).

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


class PolicySet(NamedTuple):
    """What became of a policy that was to be set: ``SET``, ``SAME`` (it was in force already) or ``KEPT`` (another one
    was there, and this one was only to begin with); the number and the time of the one in force.
    """

    word: str
    number: int
    since_ms: int


_DECODER: Final = msgspec.json.Decoder(PolicyRecord)
_FIELDS: Final = ("number", "version", "text", "since", "by", "why")


async def put_policy(
    store: Store, version: str, text: str, *, by: str, why: str = "", only_first: bool = False
) -> PolicySet:
    """Puts a policy in force, and tells all hosts. Doing it twice changes nothing the second time.

    Args:
        store: the deployment's.
        version: digest of what it says.
        text: the policy.
        by: who wants it.
        why: their reason.
        only_first: leave alone what is in force, if anything is.
    """
    keys = store.keys
    mode = "begin" if only_first else "set"
    word, number, since_ms = await store.call_keys(
        scripts.POLICY, (keys.policy, keys.policy_history), version, text, by, why, mode, KEPT, keys.policy_channel
    )
    return PolicySet(word.decode(), number, since_ms)


async def policy_number(store: Store) -> int:
    """The number of the policy in force, 0 where none was ever set: cheap to ask for again and again."""
    key = store.keys.policy
    return int(await store.command(key, "HGET", key, "number") or 0)


async def policy_in_force(store: Store) -> PolicyRecord | None:
    """The policy in force, or None where none was ever set."""
    key = store.keys.policy
    number, *texts, since, by, why = await store.command(key, "HMGET", key, *_FIELDS)
    if number is None:
        return None
    version, text = (each.decode() for each in texts)
    return PolicyRecord(int(number), version, text, int(since), (by or b"").decode(), (why or b"").decode())


async def policy_history(store: Store) -> list[PolicyRecord]:
    """What was in force lately, the newest first; the first one is in force."""
    key = store.keys.policy_history
    return [_DECODER.decode(raw) for raw in await store.command(key, "LRANGE", key, 0, KEPT - 1)]
