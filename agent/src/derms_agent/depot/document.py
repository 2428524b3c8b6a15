# SPDX-License-Identifier: Apache-2.0
"""YAML that remembers where each key and value was written.

The text is composed into nodes once, in C where PyYAML was built with libyaml; the nodes keep the places, so that a
place costs something only when a problem is to be located. Stricter than YAML 1.1 on purpose: a key that is repeated is
a problem, and a number that YAML would read otherwise than a person does (010 as 8, 1:30 as 90) stays a text, which
what expects a number then refuses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import yaml

from derms_agent.depot.problem import Located, Path, Problem, Vaulted

Data: TypeAlias = "bool | int | float | str | list[Data] | dict[str, Data] | None"

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_VAULT = "!vault"
_TRUE = frozenset({"true", "yes", "on"})
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)\.[0-9]*(?:[eE][-+]?[0-9]+)?")
_SCALARS: Mapping[str, Callable[[str], Data]] = {
    **dict.fromkeys(("str", "timestamp", "value", "merge"), str),
    "int": lambda text: int(text) if _INTEGER.fullmatch(text) else text,
    "float": lambda text: float(text) if _FLOAT.fullmatch(text) else text,
    "bool": lambda text: text.lower() in _TRUE,
    "null": lambda _text: None,
    _VAULT: Vaulted,
}


@dataclass(frozen=True, slots=True)
class Document:
    """What a file holds; `problems` are those of its form, with which its content is not complete."""

    file: str
    data: Data
    root: yaml.Node | None
    problems: tuple[Located, ...]

    def locate(self, problem: Problem) -> Located:
        """Return the problem with the line and column of its path, or of as much of the path as there is."""
        key, node = None, self.root
        at_key = problem.at_key
        for part in problem.path:
            inner_key, inner = _step(node, part)
            if inner is None:
                at_key = True
                break
            key, node = inner_key, inner
        if node is None:
            return Located(problem, self.file, 1, 1)
        # An empty value has no place of its own, and a mapping in block style begins on the line below its key.
        place = key if key is not None and (at_key or not _has_own_place(node)) else node
        return Located(problem, self.file, place.start_mark.line + 1, place.start_mark.column + 1)


def parse(text: str, file: str) -> Document:
    """Return what a text holds; `file` is what its problems call it."""
    loader = _LOADER(text)
    try:
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = " ".join(part for part in (error.context, error.problem) if part)
        place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        return Document(file, None, None, (Located(Problem((), f"no YAML: {words}", "YAML"), file, *place),))
    except yaml.YAMLError as error:
        # A character that YAML does not allow; the error names the position in words only.
        return Document(file, None, None, (Located(Problem((), f"no YAML: {error}", "YAML"), file, 1, 1),))
    finally:
        loader.dispose()
    reader = _Reader(file)
    data = None if root is None else reader.value(root, ())
    return Document(file, data, root, tuple(reader.problems))


def _step(node: yaml.Node | None, part: str) -> tuple[yaml.Node | None, yaml.Node | None]:
    """Return the key and value nodes of one step of a path; where a key is repeated, the last."""
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in reversed(node.value) if key.value == part), (None, None))
    if isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
        return None, node.value[int(part)]
    return None, None


def _has_own_place(node: yaml.Node) -> bool:
    return (
        bool(node.value)
        if isinstance(node, yaml.ScalarNode)
        else isinstance(node, yaml.CollectionNode) and bool(node.flow_style)
    )


class _Reader:
    """Turns nodes into plain data and collects what is wrong with their form."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Located] = []
        self._open: set[int] = set()

    def report(self, node: yaml.Node, path: Path, found: str, expected: str) -> None:
        mark = node.start_mark
        self.problems.append(
            Located(Problem(path, found, expected, at_key=True), self.file, mark.line + 1, mark.column + 1)
        )

    def value(self, node: yaml.Node, path: Path) -> Data:
        """Return what a node holds."""
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open:
            self.report(node, path, "an anchor that holds itself", "a value that ends somewhere")
            return None
        self._open.add(id(node))
        if not node.tag.startswith(_TAG):
            self.report(node, path, f"the tag {node.tag}", "none here")
        result: Data
        if isinstance(node, yaml.MappingNode):
            result = self._mapping(node, path)
        else:
            result = [self.value(inner, (*path, str(index))) for index, inner in enumerate(node.value)]
        self._open.remove(id(node))
        return result

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Data]:
        result: dict[str, Data] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.report(key, path, "a key that is no text", "a name")
                continue
            name = key.value
            inner = (*path, name)
            if name in result:
                first = next(other for other, _value in node.value if other.value == name)
                self.report(key, inner, f"the key a second time (first on line {first.start_mark.line + 1})", "it once")
            result[name] = self.value(value, inner)
        return result

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Data:
        kind = node.tag.removeprefix(_TAG)
        meaning = _SCALARS.get(kind)
        if meaning is None:
            self.report(node, path, f"the tag {kind}", f"none, or {_VAULT} on a secret")
            return None
        return meaning(node.value)
