# SPDX-License-Identifier: Apache-2.0
"""One thing that is wrong with a depot file, in words that let a person mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

Path: TypeAlias = "tuple[str, ...]"
"""The keys that lead to a value from the top of the file, as they are written there; list indices in digits."""

# How much alike two names are before one counts as the other misspelt (0 … 1, difflib's ratio).
ALIKE = 0.6
SHOWN_CHARACTERS = 60
SHOWN_NAMES = 12


class Severity(str, Enum):
    """Whether a depot file can be used all the same."""

    ERROR = "error"
    WARNING = "warning"


class Vaulted(str):
    """The ciphertext of a value that was written with `!vault`: only Ansible can open it."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """What was found at a path and what was expected there.

    `at_key`: it is the path's last key that is wrong, or the mapping below it as a whole, rather than one value.
    """

    path: Path
    found: str
    expected: str
    nearest: str | None = None
    severity: Severity = Severity.ERROR
    at_key: bool = False

    def __str__(self) -> str:
        """Return the problem as one line, without its place in the file."""
        where = ".".join(self.path) or "the file"
        warning = "warning: " if self.severity is Severity.WARNING else ""
        nearest = f"; the nearest is {self.nearest}" if self.nearest else ""
        return f"{warning}{where}: found {self.found}; expected {self.expected}{nearest}"


@dataclass(frozen=True, slots=True)
class Located:
    """A problem and its place; line and column count from 1."""

    problem: Problem
    file: str
    line: int
    column: int

    def __str__(self) -> str:
        """Return the problem as one line that begins with its place."""
        return f"{self.file}:{self.line}:{self.column}: {self.problem}"


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the name that a misspelt one was most likely meant to be."""
    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=ALIKE)), None)


def one_of(names: Iterable[str]) -> str:
    """Return the names that would have been right, the first of them where they are many."""
    listed = list(names)
    if not listed:
        return "none: there is none"
    more = f" and {len(listed) - SHOWN_NAMES} more" if len(listed) > SHOWN_NAMES else ""
    return f"one of {', '.join(listed[:SHOWN_NAMES])}{more}"


def shown(value: object) -> str:
    """Return a value in words; an encrypted one is not shown."""
    if isinstance(value, Vaulted):
        return "an encrypted value"
    if isinstance(value, str):
        return f"the text {value if len(value) <= SHOWN_CHARACTERS else value[:SHOWN_CHARACTERS] + '…'!r}"
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(map(str, value))}" if value else "an empty mapping"
    if isinstance(value, Sequence):
        return f"the list {value!r}" if len(repr(value)) <= SHOWN_CHARACTERS else f"a list of {len(value)}"
    return "nothing" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
