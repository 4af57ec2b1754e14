"""The numbering of steps in the task that runs now, and a small tool of those that wait."""

import asyncio
from contextvars import ContextVar
from typing import Final

from actors.core.identity import Scope

SCOPE: Final[ContextVar[Scope]] = ContextVar("penstock_scope")


def wake(future: "asyncio.Future[None]") -> None:
    """Ends a wait, once."""
    if not future.done():
        future.set_result(None)
