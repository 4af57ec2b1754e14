"""Loading an app: a module whose agents are served."""

import importlib
import json
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from actors.contract import Agent
from actors.errors import DefinitionError


@dataclass(frozen=True)
class App:
    """An app's agents by name. ``path`` is the import path by which code reaches hosts."""

    path: str
    agents: dict[str, Agent[Any, Any]]

    def catalog(self) -> dict[str, str]:
        """What clients may know of the agents: name → JSON with version, input schema and description."""
        return {
            name: json.dumps(
                {
                    "version": served.version,
                    "app": self.path,
                    "description": (served.__doc__ or "").strip().partition("\n")[0],
                    "input_schema": served.input.adapter.json_schema(),
                }
            )
            for name, served in self.agents.items()
        }


def load_app(path: str) -> App:
    """Imports the module ``path`` and collects the agents in its namespace.

    Raises:
        DefinitionError: it cannot be imported, has no agents, or two of them share a name.
    """
    try:
        module = importlib.import_module(path)
    except ImportError as error:
        raise DefinitionError(
            f"app {path!r} cannot be imported ({error}). Give a module that is on the import path, as in "
            f"`--app my_package.app`, and its folder with `--app-dir`; searched {', '.join(sys.path[:5])} …"
        ) from error
    return app_of(module)


def app_of(module: ModuleType) -> App:
    """The app that a module is."""
    agents: dict[str, Agent[Any, Any]] = {}
    for found in vars(module).values():
        if isinstance(found, Agent):
            other = agents.setdefault(found.name, found)
            if other is not found:
                raise DefinitionError(
                    f"app {module.__name__!r} has two agents named {found.name!r}: {other.__qualname__} and "
                    f"{found.__qualname__}. Rename one, or serve its version from another app"
                )
    if not agents:
        raise DefinitionError(f"app {module.__name__!r} has no agents: declare some with @agent(...), or import them")
    return App(module.__name__, agents)
