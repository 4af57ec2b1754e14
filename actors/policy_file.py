"""The operators' YAML file with the policy: read once by whoever composes a deployment, then passed on as text."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml
from pydantic import ValidationError

from actors import yaml_file
from actors.declared import nearest, refuse, words
from actors.tool_facts import ToolFacts
from admission.conditions import OPERATORS
from admission.policy import Approval, Otherwise, Policy, Rule, covered
from cluster.config import Settings

_EMPTY: Final = "rules: []\n"
_SETTING: Final = "PENSTOCK_POLICY"
_FIX: Final = f"name a file that can be read with {_SETTING}, or with `penstock up --policy FILE`"


class PolicyText(NamedTuple):
    """A policy as it was written. ``policy`` is None where ``problems`` say what is wrong with it."""

    text: str
    place: str
    policy: Policy | None
    problems: list[str]
    root: yaml.Node | None = None

    def checked(self) -> Policy:
        """The policy.

        Raises:
            DefinitionError: something in it is wrong; all of it is named.
        """
        if self.policy is None:
            raise refuse("the policy cannot be used", self.problems)
        return self.policy

    def misfits(self, tools: Mapping[str, ToolFacts], agents: Iterable[str]) -> list[str]:
        """Names in its rules that these tools and agents do not have, each with its line. Patterns may match nothing,
        so that apps can share a policy.
        """
        found: list[str] = []
        for place, rule in enumerate(self.policy.rules if self.policy else ()):
            missing = _unknown("tools", rule.tools, tools) + _unknown("agents", rule.agents, agents)
            missing += _unknown_arguments(rule, tools) if not missing else []
            found += [self._at(("rules", place, *path), f"rule {rule.name!r}, {text}") for path, text in missing]
        return found

    def _at(self, path: tuple[Any, ...], text: str) -> str:
        line = 1 if self.root is None else yaml_file.line_of(self.root, path)
        return f"{self.place}, line {line}: {text}"


def read_policy(place: Path, fix: str = _FIX) -> PolicyText:
    """What a file says; ``fix`` is what to do about one that cannot be read.

    Raises:
        DefinitionError: it cannot be read.
    """
    return parsed(yaml_file.read(place, "the operators' file with the policy", fix), str(place))


def with_policy_file(settings: Settings) -> Settings:
    """The settings with the content of the file that ``settings.policy`` names: they can go to processes on machines
    that do not have it. They are returned as they are where no file is named, or its content is there already.

    Raises:
        DefinitionError: the file cannot be read, or something in it is wrong; all of it is named.
    """
    if settings.policy is None or settings.policy_yaml:
        return settings
    place = settings.policy.expanduser().absolute()
    said = read_policy(place)
    said.checked()
    return settings.model_copy(update={"policy": place, "policy_yaml": said.text if said.text.strip() else _EMPTY})


def policy_of(settings: Settings) -> PolicyText | None:
    """What the settings say; None where they say nothing.

    Raises:
        DefinitionError: the file cannot be read, or something in it is wrong; all of it is named.
    """
    if settings.policy_yaml:
        said = parsed(settings.policy_yaml, settings.policy.name if settings.policy else f"{_SETTING}_YAML")
    elif settings.policy is None:
        return None
    else:
        said = read_policy(settings.policy)
    said.checked()
    return said


def parsed(text: str, place: str) -> PolicyText:
    """What a text says; ``place`` is its name in problems."""
    content = yaml_file.parsed(text, place)
    if content.problems:
        return PolicyText(text, place, None, content.problems)
    if content.root is None:
        return PolicyText(text, place, Policy(), [])
    if not isinstance(content.value, dict):
        problem = f"{place}: must be a mapping of {', '.join(Policy.model_fields)}"
        return PolicyText(text, place, None, [problem])
    said = {field: value for field, value in content.value.items() if value is not None}
    try:
        policy = Policy.model_validate({str(field): value for field, value in said.items()})
    except ValidationError as error:
        root = content.root
        problems = [_problem(each, said, root, place) for each in error.errors(include_url=False)]
        return PolicyText(text, place, None, problems, root)
    except RecursionError:
        return PolicyText(text, place, None, [f"{place}: it is nested too deeply"])
    return PolicyText(text, place, policy, [], content.root)


def _problem(each: Any, said: Mapping[str, Any], root: yaml.Node, place: str) -> str:
    """One of pydantic's problems with its line, its rule and its fix."""
    path = tuple(each.get("ctx", {}).get("path") or each["loc"])
    shown, rule = path, ""
    if path[:1] == ("rules",) and len(path) > 1 and isinstance(path[1], int):
        name = _name_of(said.get("rules"), path[1])
        rule, shown = f"rule {name!r}" if name else f"rule {path[1] + 1}", path[2:]
    where = ", ".join(part for part in (rule, ".".join(str(part) for part in shown)) if part)
    text = words(each, _known)
    return f"{place}, line {yaml_file.line_of(root, path)}: {where}: {text}" if where else f"{place}: {text}"


def _name_of(rules: Any, place: int) -> str:
    rule = rules[place] if isinstance(rules, list) and place < len(rules) else None
    name = rule.get("name") if isinstance(rule, dict) else None
    return name if isinstance(name, str) else ""


def _known(path: tuple[Any, ...]) -> Iterable[str]:
    """The fields of what is at a path of a policy."""
    match path:
        case ():
            return Policy.model_fields
        case ("rules", _):
            return Rule.model_fields
        case ("rules", _, "when", _):
            return OPERATORS
        case ("otherwise",):
            return Otherwise.model_fields
        case _:
            return Approval.model_fields


def _unknown(field: str, names: tuple[str, ...], known: Iterable[str]) -> list[tuple[tuple[Any, ...], str]]:
    have = list(known)
    missing = [(place, name) for place, name in enumerate(names) if not name.endswith("*") and name not in have]
    kind = field.removesuffix("s")
    return [((field, place), f"{field}: {_no_such(kind, name, have)}") for place, name in missing]


def _unknown_arguments(rule: Rule, tools: Mapping[str, ToolFacts]) -> list[tuple[tuple[Any, ...], str]]:
    """Conditions on arguments that none of the tools has that the rule is about."""
    meant = [facts for name, facts in tools.items() if _is_about(rule, name, facts)]
    have = sorted({argument for facts in meant for argument in facts.arguments})
    found: list[tuple[tuple[Any, ...], str]] = []
    for path in rule.when if meant else ():
        first = path.partition(".")[0]
        if first not in have:
            found.append((("when", path), f"when.{path}: {_no_such('argument', first, have)}"))
    return found


def _is_about(rule: Rule, name: str, facts: ToolFacts) -> bool:
    return covered(name, rule.tools) and (not rule.tiers or facts.risk in rule.tiers)


def _no_such(kind: str, name: str, known: list[str]) -> str:
    said = nearest(name, known).replace("there is no such field", f"there is no {kind} {name!r}", 1)
    return said.replace("known fields", f"known {kind}s", 1)
