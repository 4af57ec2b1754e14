"""From a command to the deployment: settings, an event loop, a client."""

import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from penstock.cli.outcome import Exit, Failure

if TYPE_CHECKING:
    from actors.registry import App
    from cluster.config import Settings
    from penstock.client import Client

T = TypeVar("T")


def environment_settings() -> "Settings":
    """What the environment says, without a running deployment."""
    from cluster.config import Settings

    return Settings()


def settings() -> "Settings":
    """The settings of the deployment that this process is to talk to."""
    from cluster.config import Settings, deployment_file

    try:
        return Settings.load()
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError) as error:
        place = deployment_file(environment_settings().home)
        fix = "remove it, and start the deployment again"
        raise Failure(f"{place} cannot be understood ({error}): {fix}", Exit.NO_STORE) from None


def in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end."""
    import uvloop

    # Libraries that lose a connection say so through logging; what matters of it is in our own errors.
    logging.getLogger().addHandler(logging.NullHandler())
    return uvloop.run(work)


@asynccontextmanager
async def connected(settings: "Settings", app: "App | None" = None) -> "AsyncIterator[Client]":
    """An open client."""
    from penstock.client import Client

    async with Client(settings=settings, app=app) as client:
        yield client


def ask(question: "Callable[[Client], Coroutine[Any, Any, T]]") -> T:
    """Asks the deployment one thing."""
    found = settings()

    async def work() -> T:
        async with connected(found) as client:
            return await question(client)

    return in_loop(work())
