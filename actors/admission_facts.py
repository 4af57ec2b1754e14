"""What the admission controller reads beside the queues: hosts, dependencies that are down, and who needs them."""

import asyncio
import logging
from typing import Any, Final, NamedTuple

import msgspec

from actors.dependency_uses import agents_by_dependency
from cluster.store import Store

FORCED_OPEN_MS: Final = 300_000
"""How long a breaker is taken to stay open that an operator has opened: nobody knows, and it is said anew each time."""
_SELDOM_MS: Final = 2000
_LOG: Final = logging.getLogger("penstock.admission")


class HostFact(NamedTuple):
    """One registered host, as it said with its last heartbeat.

    Attributes:
        name: its identity.
        slots: how many runs it can hold just now.
        busy: how many it holds.
        lives: whether its lease holds.
        claims: whether it takes new ones: it lives, and does not drain.
    """

    name: str
    slots: int
    busy: int
    lives: bool
    claims: bool


class Outage(NamedTuple):
    """A dependency that is not to be called before ``until_ms`` (the store's clock), and the agents that need it."""

    dependency: str
    until_ms: int
    agents: frozenset[str]


class _Breaker(msgspec.Struct, frozen=True):
    state: str = "closed"
    until_ms: int | None = None


class _HubState(msgspec.Struct, frozen=True):
    """What concerns admission of a hub's state (``admission/hub_record.py`` writes it)."""

    breaker: _Breaker = _Breaker()
    not_before_ms: int | None = None


_DECODER: Final = msgspec.json.Decoder(_HubState)


async def hosts(store: Store) -> list[HostFact]:
    """All registered hosts."""
    return [host_fact(name, info) for name, info in sorted((await store.hosts()).items())]


def host_fact(name: str, info: dict[str, Any]) -> HostFact:
    """What a host's info says; hosts of an earlier version say their static cap only."""
    lives = info["lease_left_ms"] > 0
    claims = lives and not info["draining"]
    return HostFact(name, int(info.get("slots", 0)), int(info.get("busy", 0)), lives, claims)


def closed_until_ms(state: bytes, now_ms: int) -> int:
    """Until when a dependency is not to be called, as its hub's state says; 0 where it may be called."""
    try:
        said = _DECODER.decode(state)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        _LOG.warning("a hub's state cannot be read: %s", error)
        return 0
    opened = 0
    if said.breaker.state == "open":
        opened = now_ms + FORCED_OPEN_MS if said.breaker.until_ms is None else said.breaker.until_ms
    until_ms = max(opened, said.not_before_ms or 0)
    return until_ms if until_ms > now_ms else 0


class Outages:
    """Looks for dependencies that are down. Their names, and who needs them, change seldom and are read seldom."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._names: list[str] = []
        self._agents: dict[str, frozenset[str]] = {}
        self._read_at_ms = -_SELDOM_MS

    async def look(self, now_ms: int) -> list[Outage]:
        """Those that are down at ``now_ms`` (the store's clock)."""
        store, keys = self._store, self._store.keys
        if now_ms - self._read_at_ms >= _SELDOM_MS:
            names = await store.command(keys.dependencies, "SMEMBERS", keys.dependencies)
            self._names = sorted(name.decode() for name in names)
            self._agents = await agents_by_dependency(store, now_ms)
            self._read_at_ms = now_ms
        known = [keys.dependency(name) for name in self._names]
        states = await asyncio.gather(*(store.command(key, "HGET", key, "state") for key in known))
        found = {name: closed_until_ms(state, now_ms) for name, state in zip(self._names, states, strict=True) if state}
        nobody: frozenset[str] = frozenset()
        return [Outage(name, until, self._agents.get(name, nobody)) for name, until in found.items() if until]
