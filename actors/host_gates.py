"""The gates of one host, one for each dependency that its app declares."""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from actors.gatekeeper import Gatekeeper, Link
from admission.dependency import Dependency

_LOG: Final = logging.getLogger("penstock.gate")


class HostGates:
    """Makes them, tells them news, closes them."""

    def __init__(self, dependencies: Mapping[str, Dependency], host: str, links: Callable[[str], Link]) -> None:
        self.keepers = {name: Gatekeeper(dependency, host, links(name)) for name, dependency in dependencies.items()}

    def hear(self, text: str) -> None:
        """What was said on the dependencies' channel: news of a hub (``news NAME JSON``) concern us."""
        word, _, rest = text.partition(" ")
        name, _, told = rest.partition(" ")
        keeper = self.keepers.get(name)
        if word != "news" or keeper is None:
            return
        try:
            keeper.news(json.loads(told))
        except (ValueError, msgspec.ValidationError) as error:
            _LOG.warning("news of dependency %s cannot be read: %s", name, error)

    def rename(self, host: str) -> None:
        """This host has another identity from now on: hubs forget the earlier one when the store does."""
        for keeper in self.keepers.values():
            keeper.rename(host)

    async def close(self) -> None:
        """Gives back what this host has."""
        await asyncio.gather(*(keeper.close() for keeper in self.keepers.values()))

    def abandon(self) -> None:
        """Stops all talk and tells nobody."""
        for keeper in self.keepers.values():
            keeper.abandon()
