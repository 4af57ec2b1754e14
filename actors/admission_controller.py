"""The Ray actor around the admission controller."""

import contextlib
import os
from typing import Any

from actors.admission_runtime import AdmissionRuntime
from cluster.config import Settings
from telemetry.log import configure_logging

ADMISSION = "admission"
"""Its name in Ray, after the deployment's."""


class AdmissionController:
    """A deployment's admission controller: a named, detached actor that Ray restarts for ever."""

    async def __init__(self, settings: dict[str, Any]) -> None:  # type: ignore[misc]
        configure_logging()
        self._runtime = AdmissionRuntime(Settings(**settings))
        await self._runtime.start()

    async def describe(self) -> dict[str, Any]:
        """Its process, and the policy that it has published last."""
        return {"pid": os.getpid(), "policy": self._runtime.controller.policy.v, "gone": self._runtime.superseded}

    async def leave(self) -> None:
        """Keeps what it knows; the actor can be killed then."""
        await self._runtime.stop()

    async def __ray_shutdown__(self) -> None:
        with contextlib.suppress(Exception):
            await self._runtime.stop()
