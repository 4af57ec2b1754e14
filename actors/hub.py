"""The Ray actor around a hub."""

import contextlib
import os
from typing import Any

from actors.hub_runtime import HubRuntime
from admission.dependency import from_plain
from cluster.config import Settings
from telemetry.log import configure_logging


class DependencyHub:
    """One dependency's hub: a named, detached actor that Ray restarts for ever; its state is in the store."""

    async def __init__(self, settings: dict[str, Any], dependency: dict[str, Any]) -> None:  # type: ignore[misc]
        configure_logging()
        self._runtime = HubRuntime(Settings(**settings), from_plain(dependency))
        await self._runtime.start()

    async def exchange(self, raw: bytes) -> bytes:
        """A host's report in, its lease out. A hub that has been superseded ends itself: Ray has another one."""
        if self._runtime.superseded:
            os._exit(1)
        return self._runtime.exchange(raw)

    async def define(self, dependency: dict[str, Any]) -> None:
        """The app's declaration, as it is now."""
        await self._runtime.define(dependency)

    async def leave(self) -> None:
        """Keeps the state; the actor can be killed then."""
        await self._runtime.stop()

    async def __ray_shutdown__(self) -> None:
        with contextlib.suppress(Exception):
            await self._runtime.stop()
