"""What the store is asked about effects: claiming their records, settling them, reading them."""

import asyncio
from collections.abc import Sequence
from typing import Any

from cluster import scripts
from cluster.config import Settings
from cluster.keys import Keys
from cluster.lane import Argument
from cluster.records import EffectBegun, EffectRecord
from cluster.scripts import Script


class EffectCalls:
    """The part of a store that concerns effects; :class:`cluster.store.Store` is the whole."""

    settings: Settings
    keys: Keys

    async def call_keys(self, script: Script, keys: Sequence[str], *arguments: Argument) -> Any:
        """Calls a script."""
        raise NotImplementedError

    async def command(self, key: str, *arguments: Argument) -> Any:
        """Sends one command."""
        raise NotImplementedError

    async def begin_effect(
        self, identity: str, owner: str, fence: int, arguments: str, tool: str, key: str, *, void_owner: str = ""
    ) -> EffectBegun:
        """Claims an effect before it is caused; ``effect_begin.lua`` has the words."""
        word, held_by, first, receipt, since_ms, handed = await self.call_keys(
            scripts.EFFECT_BEGIN, [self.keys.effect(identity)], owner, fence, arguments, tool, key, void_owner
        )
        return EffectBegun(word.decode(), held_by.decode(), first.decode(), receipt, since_ms, handed.decode())

    async def settle_effect(self, identity: str, owner: str, fence: int, state: str, receipt: bytes) -> bool:
        """Keeps what became of an effect; False when it is not this owner's (any more)."""
        kept_ms = int(self.settings.retention.effects_s * 1000)
        answer = await self.call_keys(
            scripts.EFFECT_SETTLE, [self.keys.effect(identity)], owner, fence, state, receipt, kept_ms
        )
        return bool(answer == b"OK")

    async def replicated(self, key: str, replicas: int, within_ms: int = 1000) -> bool:
        """Whether so many replicas have all that was written before to the server of ``key`` (a hash)."""
        # A write of its own, since a connection that was made anew meanwhile has nothing else to wait for.
        mark = self.command(key, "HSET", key, "replicas", replicas)
        _, have = await asyncio.gather(mark, self.command(key, "WAIT", replicas, within_ms))
        return int(have) >= replicas

    async def effect(self, identity: str) -> EffectRecord | None:
        """One effect's record, or None where there is none (any more)."""
        key = self.keys.effect(identity)
        fields = ("state", "owner", "arguments", "tool", "key", "receipt", "since")
        state, owner, arguments, tool, handed, receipt, since = await self.command(key, "HMGET", key, *fields)
        if state is None:
            return None
        return EffectRecord(
            state.decode(),
            owner.decode(),
            arguments.decode(),
            tool.decode(),
            handed.decode(),
            receipt or b"",
            int(since),
        )
