"""Which agents need which dependencies, learned from their runs' calls: who is to wait when one is down."""

from typing import Final

from actors.attempts import Attempts
from cluster.store import Store

_SAID_AGAIN_MS: Final = 3_600_000
_KEPT_MS: Final = 26 * _SAID_AGAIN_MS
"""What nobody has said for longer than a day is over: agents change."""
_BETWEEN: Final = "\n"


class DependencyUses:
    """What one host says of its agents: a write when something is new, and one an hour so that it stays known."""

    def __init__(self, store: Store, attempts: Attempts) -> None:
        self._store = store
        self._attempts = attempts
        self._said: dict[tuple[str, str], int] = {}

    async def write(self, now_ms: int) -> None:
        """Brings the store up to date; ``now_ms`` is its clock."""
        # What has been used since the last time: agents that went on using something say it again within the hour.
        used, self._attempts.uses = self._attempts.uses, set()
        new = {use for use in used if now_ms - self._said.get(use, -_SAID_AGAIN_MS) >= _SAID_AGAIN_MS}
        if not new:
            return
        try:
            await self._store.set_fields(self._store.keys.uses, {_BETWEEN.join(use): str(now_ms) for use in new})
        except BaseException:
            self._attempts.uses |= new
            raise
        self._said.update(dict.fromkeys(new, now_ms))


async def agents_by_dependency(store: Store, now_ms: int) -> dict[str, frozenset[str]]:
    """The agents that use each dependency, as hosts have said within the last day. What is older is removed."""
    said = await store.fields(store.keys.uses)
    old = [use for use, at_ms in said.items() if now_ms - int(at_ms) > _KEPT_MS]
    if old:
        await store.command(store.keys.uses, "HDEL", store.keys.uses, *old)
    found: dict[str, set[str]] = {}
    for use in said.keys() - set(old):
        agent, _, dependency = use.partition(_BETWEEN)
        found.setdefault(dependency, set()).add(agent)
    return {dependency: frozenset(agents) for dependency, agents in found.items()}
