"""The operators' YAML file of dependencies: read once by whoever composes a deployment, then passed on as text."""

from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from actors import yaml_file
from actors.declared import FIELDS, Declared, Misfit, checked, nearest, refuse
from admission.dependency import Dependency
from cluster.config import Settings

_EMPTY: Final = "dependencies: {}\n"
_SETTING: Final = "PENSTOCK_DEPENDENCIES"
_FIX: Final = f"name a file that can be read with {_SETTING}, or with `penstock up --dependencies FILE`"


class OperatorsFile(NamedTuple):
    """What a file says. ``named`` are all dependencies in it, also those that ``problems`` keep out of ``declared``."""

    declared: dict[str, Declared]
    named: frozenset[str]
    problems: list[str]


def with_operators_file(settings: Settings) -> Settings:
    """The settings with the content of the file that ``settings.dependencies`` names: they can go to processes on
    machines that do not have it. They are returned as they are where no file is named, or its content is there already.

    Raises:
        DefinitionError: the file cannot be read, or something in it is wrong; all of it is named.
    """
    if settings.dependencies is None or settings.dependencies_yaml:
        return settings
    place = settings.dependencies.expanduser().absolute()
    text = _read(place)
    problems = parsed(text, str(place)).problems
    if problems:
        raise refuse("the operators' file of dependencies cannot be used", problems)
    return settings.model_copy(update={"dependencies": place, "dependencies_yaml": text if text.strip() else _EMPTY})


def operators_file(settings: Settings) -> OperatorsFile:
    """What the operators' file says; nothing where there is none.

    Raises:
        DefinitionError: the file cannot be read. What is wrong in it is in the answer.
    """
    if settings.dependencies_yaml:
        named = settings.dependencies.name if settings.dependencies else f"{_SETTING}_YAML"
        return parsed(settings.dependencies_yaml, named)
    if settings.dependencies is None:
        return OperatorsFile({}, frozenset(), [])
    return parsed(_read(settings.dependencies), settings.dependencies.name)


def parsed(text: str, place: str) -> OperatorsFile:
    """What a text says; ``place`` is its name in problems."""
    content = yaml_file.parsed(text, place)
    if content.root is None:
        return OperatorsFile({}, frozenset(), content.problems)
    if content.problems:
        return OperatorsFile({}, _names_in(content.root), content.problems)
    return _Reading(content.root, place).content(content.value)


class _Reading:
    """Goes through a file's content and collects what is wrong, each with its line."""

    def __init__(self, root: yaml.Node, place: str) -> None:
        self._root = root
        self._place = place
        self._declared: dict[str, Declared] = {}
        self._problems: list[str] = []

    def content(self, content: Any) -> OperatorsFile:
        """All that a file says."""
        if not isinstance(content, dict):
            return _nothing(f"{self._place}: must have a mapping `dependencies:` of names to definitions")
        for key in content:
            if key != "dependencies":
                self._wrong((key,), f"{key}: {nearest(key, ['dependencies'])}")
        entries = content.get("dependencies")
        if entries is None:
            entries = {}
        if not isinstance(entries, dict):
            self._wrong(("dependencies",), "dependencies: must be a mapping of names to definitions")
            entries = {}
        for name, entry in entries.items():
            if not isinstance(name, str):
                self._wrong(("dependencies", name), f"dependency {name!r}: the name must be text: put it into quotes")
            else:
                self._entry(name, {} if entry is None else entry)
        return OperatorsFile(self._declared, frozenset(str(name) for name in entries), self._problems)

    def _entry(self, name: str, entry: Any) -> None:
        if not isinstance(entry, dict):
            self._wrong(("dependencies", name), f"dependency {name!r}: must be a mapping of {', '.join(FIELDS)}")
            return
        fields = dict(entry)
        found: list[Misfit] = []
        replaces = fields.pop("replaces_app", False)
        if not isinstance(replaces, bool):
            found.append(Misfit(("replaces_app",), "must be true or false"))
        for field in [field for field in fields if field not in (*FIELDS, "name")]:
            del fields[field]
            found.append(Misfit((str(field),), nearest(field, (*FIELDS, "replaces_app"))))
        definition = checked(name, fields)
        if isinstance(definition, Dependency) and not found:
            line = self._line(("dependencies", name))
            self._declared[name] = Declared(definition, f"{self._place}, line {line}", bool(replaces))
            return
        for misfit in found + (definition if isinstance(definition, list) else []):
            self._wrong(("dependencies", name, *misfit.path), misfit.of(name))

    def _wrong(self, path: tuple[Any, ...], text: str) -> None:
        self._problems.append(f"{self._place}, line {self._line(path)}: {text}")

    def _line(self, path: tuple[Any, ...]) -> int:
        return yaml_file.line_of(self._root, path)


def _read(place: Path) -> str:
    return yaml_file.read(place, "the operators' file of dependencies", _FIX)


def _nothing(problem: str) -> OperatorsFile:
    return OperatorsFile({}, frozenset(), [problem])


def _names_in(root: yaml.Node) -> frozenset[str]:
    """Names of dependencies in a file whose content is not looked at."""
    if not isinstance(root, yaml.MappingNode):
        return frozenset()
    for key, value in root.value:
        if key.value == "dependencies" and isinstance(value, yaml.MappingNode):
            return frozenset(str(name.value) for name, _ in value.value)
    return frozenset()
