"""Should a run that waits be unloaded? Pure."""

from typing import NamedTuple


class Wait(NamedTuple):
    """One thing that a loaded run waits for: a child run (its id), or a moment, and why.

    ``pokes``: whoever knows that it has come true may say so before the moment (see ``prelude.lua``, ``poke``).
    """

    child: str | None
    due_ms: int | None
    reason: str = "timer"
    pokes: bool = False


class Parking(NamedTuple):
    """What the store is told when a run is unloaded."""

    reason: str
    due_ms: int | None
    children: tuple[str, ...]


def parking(waits: list[Wait], *, active_steps: int, now_ms: int, worth_ms: int) -> Parking | None:
    """How to park a run, or None when it stays loaded.

    It stays while a step is under way, and when its next timer is due within ``worth_ms``: unloading and replaying
    costs more than the memory for so short a time.
    """
    if active_steps or not waits:
        return None
    dues = [wait.due_ms for wait in waits if wait.due_ms is not None]
    due_ms = min(dues) if dues else None
    if due_ms is not None and due_ms - now_ms <= worth_ms:
        return None
    children = tuple(wait.child for wait in waits if wait.child is not None)
    first = min((wait for wait in waits if wait.due_ms is not None), key=lambda wait: wait.due_ms or 0, default=None)
    reason = "child" if children or first is None else first.reason
    return Parking(reason, due_ms, children)
