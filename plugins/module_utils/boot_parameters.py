# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What sysctl.d gives the kernel at boot: which of several files has the last word on a parameter."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Dict, List, Optional

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# sysctl.d(5): of two files with one name the one in the earlier directory is read, and files are read by name.
DIRECTORIES = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d")

# A pattern yields to a plain name at boot, wherever that stands. These two are named by distributions.
NAMED_BESIDE_PATTERN = ("all", "default")


@dataclass(frozen=True)
class Assignment:
    """One line that sets a parameter."""

    name: str
    value: str
    path: str
    number: int


def parameter_path(name: str) -> str:
    """Return a parameter's path below /proc/sys. Whichever of . and / comes first is the separator."""
    separator = re.search(r"[./]", name)
    if separator is None or separator.group() == "/":
        return name
    return name.translate(str.maketrans("./", "/."))


def parameter_name(path: str) -> str:
    """Return the name that a path below /proc/sys is known by: the inverse of parameter_path."""
    return path.translate(str.maketrans("./", "/."))


def comparable(value: str) -> str:
    """Return a value in the form in which two that mean the same are equal: white space and leading zeros aside."""
    return " ".join(str(int(word)) if re.fullmatch(r"[+-]?\d+", word) else word for word in value.split())


def assignments(path: str, text: str) -> List[Assignment]:
    """Return every line of a sysctl.d file that sets something."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        name, separator, value = line.strip().partition("=")
        if separator and not line.lstrip().startswith(("#", ";")):
            plain = parameter_name(parameter_path(name.strip().lstrip("-").strip()))
            found.append(Assignment(plain, comparable(value), path, number))
    return found


def reading_order(paths: Iterable[str]) -> List[str]:
    """Return the files that are read at boot, in the order in which they are."""
    rank = {directory: place for place, directory in enumerate(DIRECTORIES)}
    first: Dict[str, str] = {}
    for path in sorted(paths, key=lambda one: rank[str(PurePosixPath(one).parent)]):
        first.setdefault(PurePosixPath(path).name, path)
    return [first[name] for name in sorted(first)]


def last_words(texts: Mapping[str, str]) -> Dict[str, Assignment]:
    """Return the assignment that has the last word on each name, of files given in their reading order."""
    return {one.name: one for path, text in texts.items() for one in assignments(path, text)}


def expanded_names(name: str) -> List[str]:
    """Return the names under which a parameter is written for boot."""
    if "*" not in name:
        return [name]
    return [*(name.replace("*", known) for known in NAMED_BESIDE_PATTERN), name]


def overriding(name: str, value: str, own_path: str, texts: Mapping[str, str]) -> List[Assignment]:
    """Return other files' assignments that, at boot, win over ours with another value."""
    last = last_words(texts).get(name)
    winners = [last] if last and last.path != own_path and last.value != comparable(value) else []
    if "*" in name:
        plain = set(expanded_names(name)) - {name}
        winners += [
            one
            for one in last_words(texts).values()
            if "*" not in one.name
            and one.name not in plain
            and one.path != own_path
            and fnmatch.fnmatchcase(parameter_path(one.name), parameter_path(name))
            and one.value != comparable(value)
        ]
    return winners


def without_lines(text: str, numbers: Iterable[int], reason: str) -> str:
    """Return a text in which the numbered lines are comments that say why."""
    silenced = set(numbers)
    lines = [f"# {reason}: {line}" if number in silenced else line for number, line in enumerate(text.splitlines(), 1)]
    return "\n".join(lines) + "\n"


def rendered(parameters: Sequence[Mapping[str, Optional[str]]], heading: str) -> str:
    """Return the sysctl.d file that holds the parameters, each under its reason and source."""
    lines = [f"# {heading}"]
    for one in parameters:
        lines.append("")
        lines += [f"# {' '.join(words.split())}" for words in (one.get("reason"), one.get("source")) if words]
        lines += [f"{name} = {comparable(str(one['value']))}" for name in expanded_names(str(one["name"]))]
    return "\n".join(lines) + "\n"
