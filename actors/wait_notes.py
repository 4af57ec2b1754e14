"""What runs wait for in a host's memory, written down for ``penstock why``: people ask the store, not hosts."""

import json
import math
from collections.abc import Callable
from typing import Any, Final

from actors.asked import Asked, Held
from actors.attempts import Attempts
from actors.bounds import nearest
from cluster.store import Store

_WORTH_S: Final = 0.5
_MOST: Final = 500
_KEPT_S: Final = 15


class WaitNotes:
    """Writes what is waited for for some time, and takes back what is over: two commands a beat for all runs."""

    def __init__(self, store: Store, host: Callable[[], str], attempts: Attempts) -> None:
        self._store = store
        self._host = host
        self._key = ""
        self._attempts = attempts
        self._written: dict[str, str] = {}

    async def write(self, now: float, now_ms: int) -> None:
        """Brings the store up to date.

        Args:
            now: the host's clock, as in what is held.
            now_ms: the store's clock.
        """
        key = self._store.keys.waits(self._host())
        if key != self._key:
            # Another life of the host: people look under its new name. Notes of the old one soon go by themselves.
            self._key, self._written = key, {}
        notes: dict[str, str] = {}
        for asked, held in list(self._attempts.waiting.items()):
            if now - held.since >= _WORTH_S and len(notes) < _MOST:
                notes.setdefault(asked.run_id, json.dumps(_note(asked, held, now, now_ms)))
        changed = {run_id: note for run_id, note in notes.items() if self._written.get(run_id) != note}
        gone = self._written.keys() - notes.keys()
        if changed:
            await self._store.set_fields(key, changed)
        if gone:
            await self._store.command(key, "HDEL", key, *gone)
        if notes:
            await self._store.command(key, "EXPIRE", key, _KEPT_S)
        self._written = notes


def _note(asked: Asked, held: Held, now: float, now_ms: int) -> dict[str, Any]:
    def at_ms(moment: float) -> int:
        # To half a second, so that the same wait makes the same note in every beat.
        return round((now_ms + (moment - now) * 1000) / 500) * 500

    bound, left_s = nearest(asked.bounds(now))
    note: dict[str, Any] = {
        "what": held.what,
        "step": asked.step,
        "tool": asked.tool.name,
        "dependency": asked.tool.options.dependency or "",
        "since_ms": at_ms(held.since),
        "bound": bound,
        "bound_ms": at_ms(now + left_s),
    }
    if held.attempt > 1:
        note["attempt"] = held.attempt
        note["last_error"] = held.last_error[:200]
    if held.until is not None:
        note["until_ms"] = at_ms(held.until)
    if held.what == "gate" and asked.gatekeeper is not None:
        hindrance = asked.gatekeeper.hindrance()
        note["kind"], note["text"] = hindrance.kind, hindrance.text
        if hindrance.for_s is not None and hindrance.for_s < math.inf:
            note["until_ms"] = at_ms(now + hindrance.for_s)
    return note
