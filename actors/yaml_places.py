"""YAML that people wrote: its content, and on which line what is."""

from typing import Any, NamedTuple

import yaml


class YamlError(Exception):
    """The text cannot be used as it is. ``problems`` are lines (0 where there is none) and what is wrong there."""

    def __init__(self, problems: list[tuple[int, str]], root: yaml.Node | None = None) -> None:
        super().__init__("; ".join(text for _, text in problems))
        self.problems = problems
        self.root = root


class YamlText(NamedTuple):
    """A text that was read; ``root`` is None where there is nothing in it."""

    content: Any
    root: yaml.Node | None

    def line(self, path: tuple[Any, ...]) -> int:
        """The line of a path's deepest part that is written out; the first line is 1."""
        return 1 if self.root is None else line_of(self.root, path)


def read_yaml(text: str) -> YamlText:
    """The content of a text with one document.

    Raises:
        YamlError: it is no YAML, or a key is there twice, of which YAML's parser would let the last one win without a
            word.
    """
    try:
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return YamlText(None, None)
            twice = _keys_there_twice(root)
            if twice:
                raise YamlError(twice, root)
            return YamlText(loader.construct_document(root), root)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        raise YamlError([(line, f"no valid YAML: {error.problem or error.context}")]) from None
    except (yaml.YAMLError, ValueError) as error:
        raise YamlError([(0, f"no valid YAML: {' '.join(str(error).split())}")]) from None
    except RecursionError:
        raise YamlError([(0, "no valid YAML: it is nested too deeply")]) from None


def line_of(root: yaml.Node, path: tuple[Any, ...]) -> int:
    """The line of a path's deepest part that is written out; the first line is 1."""
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


def _keys_there_twice(root: yaml.Node) -> list[tuple[int, str]]:
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
    return sorted(found)
