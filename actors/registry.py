"""Loading an app: a module whose agents are served, with the tools and dependencies that belong to them."""

import difflib
import importlib
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from actors.contract import Agent, Tool
from actors.declared import Declared, differing, problems_in_code, refuse
from actors.dependency_file import OperatorsFile, operators_file
from actors.errors import DefinitionError
from actors.namespaces import is_a, reachable
from actors.policy_file import PolicyText, policy_of
from actors.tool_facts import facts_of
from admission.dependency import Dependency
from admission.retry import RetryPolicy
from cluster.config import Settings


@dataclass(frozen=True)
class App:
    """An app's agents by name. ``path`` is the import path by which code reaches hosts.

    ``dependencies`` are those of the app and of the operators' file, by name; ``tools`` those that were found.
    """

    path: str
    agents: dict[str, Agent[Any, Any]]
    dependencies: dict[str, Dependency] = field(default_factory=dict)
    tools: tuple[Tool[Any, Any], ...] = ()

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


def not_simulated(tools: Iterable[Tool[Any, Any]]) -> list[str]:
    """Names of the tools that change the world and cannot be simulated: a simulated run may not call them."""
    return sorted({tool.name for tool in tools if tool.options.risk.is_effect and tool.options.effect.simulate is None})


def load_app(path: str, settings: Settings | None = None) -> App:
    """Imports the module ``path`` and collects the agents in its namespace, their tools and dependencies.

    Args:
        path: the module's import path.
        settings: name the operators' files, or hold their content. None for clients, which serve nothing and may not
            know of a file: then a tool's dependency may also be defined nowhere.

    Raises:
        DefinitionError: it cannot be imported, has no agents, or two of them share a name; or its dependencies cannot
            work, or the policy names what it does not have, with all that is wrong with them.
    """
    try:
        module = importlib.import_module(path)
    except ImportError as error:
        raise DefinitionError(
            f"app {path!r} cannot be imported ({error}). Give a module that is on the import path, as in "
            f"`--app my_package.app`, and its folder with `--app-dir`; searched {', '.join(sys.path[:5])} …"
        ) from error
    except ValidationError as error:
        raise refuse(f"app {path!r} cannot be loaded, {_place_of(error)}", problems_in_code(error)) from error
    if settings is None:
        return app_of(module)
    return app_of(module, operators_file(settings), policy_of(settings))


def app_of(module: ModuleType, operators: OperatorsFile | None = None, policy: PolicyText | None = None) -> App:
    """The app that a module is, together with what the operators' file says (None: nobody knows), if it can be served
    under a policy.

    Raises:
        DefinitionError: see :func:`load_app`.
    """
    agents: dict[str, Agent[Any, Any]] = {}
    for found in vars(module).values():
        if is_a(found, Agent):
            other = agents.setdefault(found.name, found)
            if other is not found:
                raise DefinitionError(
                    f"app {module.__name__!r} has two agents named {found.name!r}: {other.__qualname__} and "
                    f"{found.__qualname__}. Rename one, or serve its version from another app"
                )
    if not agents:
        raise DefinitionError(f"app {module.__name__!r} has no agents: declare some with @agent(...), or import them")
    found_all = _Collection(operators)
    found_all.collect(module)
    found_all.add_operators()
    for tool in found_all.tools.values():
        found_all.check(tool)
    if policy is not None:
        found_all.problems += policy.misfits({tool.name: facts_of(tool) for tool in found_all.tools.values()}, agents)
    if found_all.problems:
        raise refuse(f"app {module.__name__!r} cannot be served", found_all.problems)
    dependencies = {name: declared.definition for name, declared in sorted(found_all.declared.items())}
    return App(module.__name__, agents, dependencies, tuple(found_all.tools.values()))


class _Collection:
    """An app's tools and dependencies, and all that is wrong with them."""

    def __init__(self, operators: OperatorsFile | None) -> None:
        self._operators = operators or OperatorsFile({}, frozenset(), [])
        self._knows_all = operators is not None
        self.declared: dict[str, Declared] = {}
        self.tools: dict[int, Tool[Any, Any]] = {}
        self.problems: list[str] = []

    def collect(self, module: ModuleType) -> None:
        """Takes what the app declares."""
        for namespace in reachable(module):
            for variable, value in list(namespace.values.items()):
                if is_a(value, Tool):
                    self.tools.setdefault(id(value), value)
                elif is_a(value, Dependency):
                    self._add(Declared(value, f"{namespace.name}.{variable}"))

    def _add(self, declared: Declared) -> None:
        name = declared.definition.name
        other = self.declared.setdefault(name, declared)
        fields = differing(other.definition, declared.definition)
        if fields:
            self.problems.append(
                f"dependency {name!r} is defined in {other.place} and in {declared.place}, and their "
                f"{_listed(fields)}. Keep one of them and import it"
            )

    def add_operators(self) -> None:
        """Takes what the operators' file declares."""
        self.problems += self._operators.problems
        for name, declared in self._operators.declared.items():
            other = self.declared.get(name)
            fields = differing(other.definition, declared.definition) if other else []
            if other and fields and not declared.replaces_app:
                self.problems.append(
                    f"dependency {name!r} is defined in {other.place} and in {declared.place}, and their "
                    f"{_listed(fields)}. Remove one of them, or write `replaces_app: true` into the file's"
                )
            else:
                self.declared[name] = declared

    def check(self, tool: Tool[Any, Any]) -> None:
        """Looks at what a tool says of its dependency."""
        name, own = tool.options.dependency, tool.options.retry
        declared = self.declared.get(name) if name is not None else None
        at = f"tool {tool.name!r} ({tool.__module__}.{tool.__qualname__})"
        if name is not None and declared is None and self._knows_all and name not in self._operators.named:
            close = difflib.get_close_matches(name, self.declared, n=1)
            meant = f"did you mean {close[0]!r}? If not, define it" if close else "Define it"
            self.problems.append(
                f"{at} names the dependency {name!r}, which is defined nowhere. {meant} beside the tool or in the app, "
                f"as in `{_variable(name)} = Dependency({name!r})`, or in the operators' file (PENSTOCK_DEPENDENCIES)"
            )
        if own is not None:
            self._check_duration(at, "its retry policy", own, tool.options.schedule_to_close_s)
        elif declared is not None:
            whose = f"the retry policy of its dependency {name!r} ({declared.place})"
            self._check_duration(at, whose, declared.definition.retry, tool.options.schedule_to_close_s)

    def _check_duration(self, at: str, whose: str, policy: RetryPolicy, bound_s: float | None) -> None:
        """A duration that nobody has set is no promise: the nearer bound wins."""
        set_by_somebody = "max_duration" in policy.model_fields_set and policy.maximum_attempts > 1
        if bound_s is not None and set_by_somebody and policy.max_duration > bound_s:
            self.problems.append(
                f"{at}: {whose} goes on for {policy.max_duration:g} s (max_duration), but its whole step may take "
                f"{bound_s:g} s only (schedule_to_close). Lower the first or raise the second"
            )


def _listed(fields: list[str]) -> str:
    return f"{', '.join(fields)} differ{'s' if len(fields) == 1 else ''}"


def _variable(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name).upper()


def _place_of(error: BaseException) -> str:
    """The line of the app's code that raised it."""
    place, trace = "somewhere", error.__traceback__
    while trace is not None:
        if not str(trace.tb_frame.f_globals.get("__name__", "")).startswith("pydantic"):
            place = f"{trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return place
