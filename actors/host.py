"""The Ray actor around a host."""

import asyncio
import contextlib
import gc
import logging
import os
from typing import Any, Final

import ray

from actors.host_runtime import HostRuntime
from actors.hub_link import RayLinks
from actors.registry import load_app
from cluster.config import Settings
from cluster.session import draining_nodes
from telemetry.log import configure_logging

_NODE_POLL_S: Final = 1.0
_COLLECTOR_THRESHOLDS: Final = (50_000, 20, 20)
_LOG: Final = logging.getLogger("penstock.host")


def _calm_collector() -> None:
    """Collects garbage less often: a host makes many short-lived objects that need no collector, beside many that
    live as long as their runs and that every full pass would visit.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTOR_THRESHOLDS)


class AgentHost:
    """Runs many agents on one event loop: a named, detached actor that Ray restarts for ever.

    Everything starts in the constructor, because that is all that a restart calls.
    """

    # Ray awaits the constructor of an async actor on the loop that its methods use.
    async def __init__(  # type: ignore[misc]
        self, settings: dict[str, Any], app: str, label: str, node: str
    ) -> None:
        configure_logging()
        chosen = Settings(**settings)
        self._runtime = HostRuntime(chosen, load_app(app, chosen), label, node=node, links=RayLinks(chosen.name))
        await self._runtime.start()
        _calm_collector()
        self._drain_watch = asyncio.get_running_loop().create_task(self._leave_with_node())

    async def _leave_with_node(self) -> None:
        """Drains when Ray drains this node: Ray itself would let the actor work on until it kills it."""
        node = ray.get_runtime_context().get_node_id()
        while node not in await asyncio.to_thread(draining_nodes):  # noqa: ASYNC110 - Ray has nothing to wait for
            await asyncio.sleep(_NODE_POLL_S)
        _LOG.warning("host %s: Ray drains its node", self._runtime.host)
        await self._runtime.drain()

    async def describe(self) -> dict[str, Any]:
        """Who this is now: label, identity, process, runs under way."""
        runtime = self._runtime
        return {
            "label": runtime.label,
            "host": runtime.host,
            "pid": os.getpid(),
            "runs": len(runtime.runs),
            "loop": type(asyncio.get_running_loop()).__module__,
        }

    async def leave(self) -> None:
        """Drains and gives up the lease; the actor can be killed then."""
        await self._runtime.stop()

    async def __ray_shutdown__(self) -> None:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._runtime.stop(), 10)
