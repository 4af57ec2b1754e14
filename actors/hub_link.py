"""How a host reaches a hub: as a Ray actor, by its name, wherever it lives now."""

import asyncio
from typing import Any

from actors.gatekeeper import Link


class NoHub(Exception):
    """There is no way to a hub just now."""


def unreachable(name: str) -> Link:
    """The link of a host that was given none: calls to its dependencies wait until their bounds."""

    async def nowhere(_: bytes) -> bytes:
        raise NoHub(f"this host has no way to the hub of {name}")

    return nowhere


def hub_actor_name(deployment: str, dependency: str) -> str:
    """The hub's name in Ray."""
    return f"{deployment}-hub-{dependency}"


class RayLinks:
    """Links to the hubs of one deployment. A handle is dropped when a call fails, and looked up anew by its name."""

    def __init__(self, deployment: str) -> None:
        self._deployment = deployment
        self._handles: dict[str, Any] = {}

    def __call__(self, dependency: str) -> Link:
        """The link to one dependency's hub."""

        async def send(raw: bytes) -> bytes:
            handle = self._handles.get(dependency)
            if handle is None:
                handle = self._handles[dependency] = await asyncio.to_thread(self._find, dependency)
            try:
                answer: bytes = await handle.exchange.remote(raw)
            except BaseException:
                self._handles.pop(dependency, None)
                raise
            return answer

        return send

    def _find(self, dependency: str) -> Any:
        import ray

        try:
            # In the deployment's own namespace: that of this process is the one of whoever has deployed it.
            return ray.get_actor(hub_actor_name(self._deployment, dependency), namespace=self._deployment)
        except ValueError:
            raise NoHub(f"there is no hub actor of {dependency}") from None
