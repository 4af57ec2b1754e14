"""Definitions of dependencies that come as data: checked, with what is wrong said in words for people."""

import dataclasses
import difflib
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from actors.errors import DefinitionError
from admission.dependency import RESOURCES, Breaker, Dependency, Limit, RetryBudget, as_plain, from_plain
from admission.retry import RetryPolicy

Path = tuple[str | int, ...]


def _names(declared: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(declared))


FIELDS: Final = tuple(name for name in _names(Dependency) if name != "name")
"""What can be said of a dependency besides its name."""
PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "breaker": _names(Breaker),
    "retry": tuple(RetryPolicy.model_fields),
    "retry_budget": _names(RetryBudget),
}
"""The fields of those fields that have fields of their own."""
_LIMIT_FIELDS: Final = (*_names(Limit), *RESOURCES)


class Declared(NamedTuple):
    """A definition and where it is from, as in ``shop.services.OPENAI`` or ``deps.yaml, line 3``."""

    definition: Dependency
    place: str
    replaces_app: bool = False


class Misfit(NamedTuple):
    """One thing that is wrong with a definition: the path of the field, and the problem with its fix."""

    path: Path
    text: str

    def of(self, name: str) -> str:
        """The problem in a line, with the dependency's name."""
        where = ".".join(str(part) for part in self.path)
        return f"dependency {name!r}, {where}: {self.text}" if where else f"dependency {name!r}: {self.text}"


def checked(name: str, fields: Mapping[str, Any]) -> Dependency | list[Misfit]:
    """The dependency that the fields define, or all that is wrong with them.

    The shape is that of :func:`admission.dependency.as_plain` without the name; a limit may also be written
    ``{"requests": 500, "per": "1m"}`` instead of ``{"resource": "requests", "amount": 500, "per": "1m"}``.
    """
    found: list[Misfit] = []
    plain = dict(fields)
    if "name" in plain:
        found.append(Misfit(("name",), "the name is said already: leave this field out"))
        del plain["name"]
    if "rate" in plain:
        plain["rate"] = _limits(plain["rate"], found)
    found += _no_numbers(plain)
    if found:
        return found
    try:
        return from_plain({**plain, "name": name})
    except ValidationError as error:
        return misfits(error)


def misfits(error: ValidationError) -> list[Misfit]:
    """What pydantic found wrong with a definition, in our words."""
    return [Misfit(tuple(each["loc"]), words(each, _known)) for each in error.errors(include_url=False)]


def problems_in_code(error: ValidationError) -> list[str]:
    """The same for a definition in Python, where arguments may have been given by their place."""
    positional = {kind.__name__: _names(kind) for kind in (Dependency, Limit, Breaker, RetryBudget)}
    problems = []
    for misfit in misfits(error):
        path: Path = misfit.path
        names = positional.get(error.title, ())
        if path and isinstance(path[0], int) and path[0] < len(names):
            path = (names[path[0]], *path[1:])
        problems.append(f"{'.'.join(str(part) for part in (error.title, *path))}: {misfit.text}")
    return problems


def differing(one: Dependency, other: Dependency) -> list[str]:
    """The fields in which two definitions differ; the order of their limits means nothing."""
    left, right = _comparable(one), _comparable(other)
    return [name for name in left if left[name] != right[name]]


def nearest(name: object, known: Iterable[str]) -> str:
    """Says that there is no field of this name, and which one may be meant."""
    fields = list(known)
    close = difflib.get_close_matches(str(name), fields, n=1)
    meant = f"did you mean {close[0]!r}? " if close else ""
    return f"there is no such field; {meant}known fields: {', '.join(fields)}"


def refuse(head: str, problems: list[str]) -> DefinitionError:
    """One error for all problems of one thing."""
    if len(problems) == 1:
        return DefinitionError(f"{head}: {problems[0]}")
    listed = "\n".join(f"  - {problem}" for problem in problems)
    return DefinitionError(f"{head}: {len(problems)} problems\n{listed}")


def _comparable(dependency: Dependency) -> dict[str, Any]:
    plain = as_plain(dependency)
    plain["rate"] = sorted(plain["rate"], key=lambda limit: (limit["resource"], limit["per"]))
    return plain


def _limits(rate: Any, found: list[Misfit]) -> Any:
    """The limits in their long form."""
    if not isinstance(rate, list | tuple):
        found.append(Misfit(("rate",), 'must be a list of limits, as in [{requests: 500, per: "1m"}]'))
        return rate
    return [_limit(limit, ("rate", place), found) for place, limit in enumerate(rate)]


def _limit(limit: Any, path: Path, found: list[Misfit]) -> Any:
    if isinstance(limit, Limit):
        return limit
    if not isinstance(limit, Mapping):
        found.append(Misfit(path, 'must be a limit, as in {requests: 500, per: "1m"}'))
        return limit
    unknown = [str(field) for field in limit if field not in _LIMIT_FIELDS]
    if unknown:
        found += [Misfit((*path, field), nearest(field, _LIMIT_FIELDS)) for field in unknown]
        return limit
    short = [resource for resource in RESOURCES if resource in limit]
    if not short:
        return limit
    if len(short) > 1 or "resource" in limit or "amount" in limit:
        several = ", ".join(str(field) for field in limit if field != "per")
        found.append(Misfit(path, f"{several} are too much for one limit: make one of each, with a window of its own"))
        return limit
    (resource,) = short
    rest = {field: value for field, value in limit.items() if field != resource}
    return {"resource": resource, "amount": limit[resource], **rest}


def _no_numbers(value: Any, path: Path = ()) -> list[Misfit]:
    """Truth values, which pydantic would take for the numbers 1 and 0."""
    if isinstance(value, bool):
        fix = "write null for none, or leave it out for the default" if not value else "leave it out for the default"
        return [Misfit(path, f"{str(value).lower()} is no value for it: {fix}")]
    if len(path) >= 3:
        return []
    if isinstance(value, Mapping):
        return [each for field, inner in value.items() for each in _no_numbers(inner, (*path, str(field)))]
    if isinstance(value, list | tuple):
        return [each for place, inner in enumerate(value) for each in _no_numbers(inner, (*path, place))]
    return []


def words(problem: Any, known: Callable[[Path], Iterable[str]]) -> str:
    """One of pydantic's problems in a few words; ``known`` are the fields of what is at a path."""
    kind, context, given = problem["type"], problem.get("ctx", {}), problem["input"]
    it_is = f" (it is {reprlib.repr(given)})" if isinstance(given, str | int | float) else ""
    bounds = {
        "greater_than": "must be above",
        "greater_than_equal": "must not be below",
        "less_than": "must be below",
        "less_than_equal": "must not be above",
    }
    if kind in bounds:
        bound = next(iter(context.values()))
        return f"{bounds[kind]} {'zero' if bound == 0 else format(bound, 'g')}{it_is}"
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return nearest(problem["loc"][-1], known(tuple(problem["loc"][:-1])))
    fixed = {
        "missing": "is missing: add it",
        "finite_number": "must be a finite number",
        "float_type": "must be a number",
        "float_parsing": "must be a number",
        "int_type": "must be a whole number",
        "int_parsing": "must be a whole number",
        "int_from_float": "must be a whole number",
        "string_type": "must be text",
        "bool_type": "must be true or false",
        "tuple_type": "must be a list",
        "mapping_type": "must be a mapping",
        "model_type": "must be a mapping of fields; leave it out for the default",
        "dataclass_type": "must be a mapping of fields",
    }
    text = fixed.get(kind)
    if text is None:
        return str(problem["msg"]).removeprefix("Value error, ").replace("Input should be", "must be", 1)
    return text if kind == "missing" else f"{text}{it_is}"


def _known(path: Path) -> Iterable[str]:
    if not path:
        return FIELDS
    return _LIMIT_FIELDS if path[0] == "rate" else PARTS.get(str(path[0]), ())
