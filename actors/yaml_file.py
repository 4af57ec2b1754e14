"""Operators' YAML files: read once by whoever composes a deployment, then passed on as text.

What is wrong in them is said with its line.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from actors.errors import DefinitionError

MAXIMUM_BYTES: Final = 64 * 1024
"""The text travels in an environment variable and in actors' arguments."""


class Content(NamedTuple):
    """What a text holds. ``root`` knows the lines; None: the text is empty, or no YAML. Where there are problems,
    ``value`` is None.
    """

    root: yaml.Node | None
    value: Any
    problems: list[str]


def read(place: Path, what: str, fix: str) -> str:
    """A file's text.

    Args:
        place: the file.
        what: what it is, for errors: ``the operators' file of …``.
        fix: what to do about a file that cannot be read.

    Raises:
        DefinitionError: it cannot be read, is too long, or is no text.
    """
    try:
        with place.expanduser().open("rb") as file:
            raw = file.read(MAXIMUM_BYTES + 1)
    except OSError as error:
        raise DefinitionError(f"{what} {place} cannot be read ({error.strerror}): {fix}") from None
    if len(raw) > MAXIMUM_BYTES:
        raise DefinitionError(f"{place} has more than {MAXIMUM_BYTES:,} bytes, which {what} does not need: {fix}")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DefinitionError(f"{place} is no text in UTF-8 (byte {error.start}): {fix}") from None


def parsed(text: str, place: str) -> Content:
    """What a text holds; ``place`` is its name in problems. Keys that are there twice are problems."""
    if len(text.encode()) > MAXIMUM_BYTES:
        return _nothing(f"{place} has {len(text.encode()):,} bytes, at most {MAXIMUM_BYTES:,} are read")
    try:
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return Content(None, None, [])
            twice = _keys_there_twice(root, place)
            return Content(root, None, twice) if twice else Content(root, loader.construct_document(root), [])
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f", line {mark.line + 1}" if mark else ""
        return _nothing(f"{place}{at}: no valid YAML: {error.problem or error.context}")
    except (yaml.YAMLError, ValueError) as error:
        return _nothing(f"{place}: no valid YAML: {' '.join(str(error).split())}")
    except RecursionError:
        return _nothing(f"{place}: no valid YAML: it is nested too deeply")


def line_of(root: yaml.Node, path: Sequence[Any]) -> int:
    """The line of a path's deepest part that is written out."""
    node, line = root, root.start_mark.line
    for part in path:
        if isinstance(node, yaml.MappingNode):
            pair = next((pair for pair in node.value if pair[0].value == str(part)), None)
            if pair is None:
                break
            node, line = pair[1], pair[0].start_mark.line
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
        else:
            break
    return int(line) + 1


def _nothing(problem: str) -> Content:
    return Content(None, None, [problem])


def _keys_there_twice(root: yaml.Node, place: str) -> list[str]:
    """YAML's parser would let the last one win without a word."""
    found: list[tuple[int, str]] = []
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))
        if not isinstance(node, yaml.MappingNode):
            waiting.extend(node.value)
            continue
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            waiting.append(value)
            if isinstance(key, yaml.ScalarNode):
                line, name = key.start_mark.line + 1, (key.tag, key.value)
                if name in lines:
                    found.append((line, f"{key.value!r} is there twice, first in line {lines[name]}: keep one"))
                lines.setdefault(name, line)
    return [f"{place}, line {line}: {problem}" for line, problem in sorted(found)]
