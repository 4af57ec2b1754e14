"""The operators' YAML file with rules for admission: read once by whoever composes a deployment, passed on as text."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml
from pydantic import ValidationError

from actors import yaml_file
from actors.declared import nearest, refuse, words
from admission.admission_definition import AdmissionDefinition, ClassRule, TenantRule
from admission.values import CLASSES
from cluster.config import Settings

_EMPTY: Final = "classes: {}\n"
_SETTING: Final = "PENSTOCK_ADMISSION"
_FIX: Final = f"name a file that can be read with {_SETTING}, or with `penstock up --admission FILE`"
_KEY: Final = "[key]"
"""What pydantic calls the key of a mapping."""


class AdmissionText(NamedTuple):
    """Rules as they were written. ``definition`` is None where ``problems`` say what is wrong with them."""

    text: str
    place: str
    definition: AdmissionDefinition | None
    problems: list[str]

    def checked(self) -> AdmissionDefinition:
        """What they say.

        Raises:
            DefinitionError: something in them is wrong; all of it is named.
        """
        if self.definition is None:
            raise refuse("the rules for admission cannot be used", self.problems)
        return self.definition


def read_admission(place: Path, fix: str = _FIX) -> AdmissionText:
    """What a file says; ``fix`` is what to do about one that cannot be read.

    Raises:
        DefinitionError: it cannot be read.
    """
    return parsed(yaml_file.read(place, "the operators' file with rules for admission", fix), str(place))


def with_admission_file(settings: Settings) -> Settings:
    """The settings with the content of the file that ``settings.admission`` names: they can go to processes on machines
    that do not have it. They are returned as they are where no file is named, or its content is there already.

    Raises:
        DefinitionError: the file cannot be read, or something in it is wrong; all of it is named.
    """
    if settings.admission is None or settings.admission_yaml:
        return settings
    place = settings.admission.expanduser().absolute()
    said = read_admission(place)
    said.checked()
    return settings.model_copy(
        update={"admission": place, "admission_yaml": said.text if said.text.strip() else _EMPTY}
    )


def admission_of(settings: Settings) -> AdmissionText | None:
    """What the settings say; None where they say nothing.

    Raises:
        DefinitionError: the file cannot be read, or something in it is wrong; all of it is named.
    """
    if settings.admission_yaml:
        place = settings.admission.name if settings.admission else f"{_SETTING}_YAML"
        said = parsed(settings.admission_yaml, place)
    elif settings.admission is None:
        return None
    else:
        said = read_admission(settings.admission)
    said.checked()
    return said


def parsed(text: str, place: str) -> AdmissionText:
    """What a text says; ``place`` is its name in problems."""
    content = yaml_file.parsed(text, place)
    if content.problems:
        return AdmissionText(text, place, None, content.problems)
    if content.root is None:
        return AdmissionText(text, place, AdmissionDefinition(), [])
    if not isinstance(content.value, dict):
        problem = f"{place}: must be a mapping of {', '.join(AdmissionDefinition.model_fields)}"
        return AdmissionText(text, place, None, [problem])
    said = {str(field): value for field, value in content.value.items() if value is not None}
    try:
        definition = AdmissionDefinition.model_validate(said)
    except ValidationError as error:
        found = error.errors(include_url=False)
        deeper = {each["loc"][:-1] for each in found}  # a list is not too short when what is in it is wrong
        told = [each for each in found if each["type"] != "too_short" or each["loc"] not in deeper]
        return AdmissionText(text, place, None, [_problem(each, content.root, place) for each in told])
    except RecursionError:
        return AdmissionText(text, place, None, [f"{place}: it is nested too deeply"])
    return AdmissionText(text, place, definition, [])


def _problem(each: Any, root: yaml.Node, place: str) -> str:
    """One of pydantic's problems with its line, its class or tenant, and its fix."""
    path = tuple(each.get("ctx", {}).get("path") or each["loc"])
    key = path[-1:] == (_KEY,)
    path = path[:-1] if key else path
    where = _where(path)
    if key and path[0] == "classes":
        text = nearest(path[-1], CLASSES).replace("there is no such field", "there is no such class", 1)
        text = text.replace("known fields", "classes", 1)
    elif each["type"] == "too_short":
        text = "name at least one class, or leave it out for all of them"
    else:
        text = words(each, _known).replace("must be a valid dictionary", "must be a mapping", 1)
    return f"{place}, line {yaml_file.line_of(root, path)}: {where}: {text}" if where else f"{place}: {text}"


def _where(path: tuple[Any, ...]) -> str:
    match path:
        case ("classes", name, *rest):
            named = f"class {name!r}"
        case ("tenants", name, *rest):
            named = f"tenant {name!r}"
        case _:
            return ".".join(str(part) for part in path)
    return ", ".join(filter(None, (named, ".".join(str(part) for part in rest))))


def _known(path: tuple[Any, ...]) -> Iterable[str]:
    """The fields of what is at a path of the rules."""
    match path:
        case ():
            return AdmissionDefinition.model_fields
        case ("classes", _):
            return ClassRule.model_fields
        case _:
            return TenantRule.model_fields
