"""Finding what belongs to an app: the namespaces that its agents and tools can see."""

import inspect
from collections import deque
from collections.abc import Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from actors.contract import Agent, Tool
from admission.dependency import Dependency

_DECLARATIONS = (Agent, Tool, Dependency)


class Namespace(NamedTuple):
    """Names and their values: a module's, or those that a function has from the functions around it."""

    name: str
    values: Mapping[str, Any]


def reachable(module: ModuleType) -> Iterator[Namespace]:
    """The module's namespace first, then those of everything declared in it, and so on.

    Followed are agents, tools, modules that hold declarations, and functions and modules of the same package.
    """
    root = module.__name__.partition(".")[0]
    waiting = deque([Namespace(module.__name__, vars(module))])
    seen = {id(vars(module))}
    while waiting:
        namespace = waiting.popleft()
        yield namespace
        for value in list(namespace.values.values()):
            for identity, found in _seen_by(value, root):
                if identity not in seen:
                    seen.add(identity)
                    waiting.append(found)


def is_a(value: Any, kind: type) -> bool:
    """``isinstance`` without asking the value: proxies of some libraries do work, or fail, when they are asked."""
    return issubclass(type(value), kind)


def _seen_by(value: Any, root: str) -> Iterator[tuple[int, Namespace]]:
    if is_a(value, Agent) or is_a(value, Tool):
        yield from _around(inspect.unwrap(value.function))
    elif is_a(value, FunctionType):
        if _root(value.__globals__) == root:
            yield from _around(value)
    elif is_a(value, ModuleType):
        names = vars(value)
        if _root(names) == root or any(is_a(held, kind) for held in list(names.values()) for kind in _DECLARATIONS):
            yield id(names), Namespace(value.__name__, names)


def _around(function: Any) -> Iterator[tuple[int, Namespace]]:
    """What a function's code can name: its module's names, and those of the functions around it."""
    if not is_a(function, FunctionType):
        return
    names = function.__globals__
    yield id(names), Namespace(str(names.get("__name__", function.__module__)), names)
    if function.__closure__:
        held = {}
        for name, cell in zip(function.__code__.co_freevars, function.__closure__, strict=True):
            try:
                held[name] = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
        yield id(function.__closure__), Namespace(f"{function.__module__}.{function.__qualname__}", held)


def _root(names: Mapping[str, Any]) -> str:
    return str(names.get("__name__", "")).partition(".")[0]
