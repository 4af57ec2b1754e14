"""Named points of the effect protocol at which a test may strike. Inert unless a test's own app installs a hook."""

from collections.abc import Callable
from typing import Final

POINTS: Final = (
    "before_intent",
    "after_intent",
    "after_begin",
    "before_call",
    "after_call",
    "after_settle",
    "after_journal",
)
"""In their order. The call itself is the tool's: a test strikes inside it for "sent" and for "applied, answer lost"."""

hook: Callable[[str, str, str], None] | None = None
"""Called with the point, the tool's name and the run's id. Nothing in Penstock sets it."""


def reach(point: str, tool: str, run_id: str) -> None:
    """Says that a run has come to this point."""
    if hook is not None:
        hook(point, tool, run_id)
