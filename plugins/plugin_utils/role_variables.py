# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with a host's variables, measured against the argument specs of the roles.

Stricter than Ansible's own validation in one way: it never converts. Ansible checks a converted copy and hands the
original to the role, where the text "false" is true, and "a,b" is a list of three letters.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible.module_utils.common.validation import (
    check_mutually_exclusive,
    check_required_by,
    check_required_if,
    check_required_one_of,
    check_required_together,
)
from ansible_collections.derms.edge.plugins.plugin_utils.value_formats import format_of

SHOWN_CHARACTERS = 80
COMMAND_LINE = "<CLI option '-e'>"

# How much alike two names are before one counts as the other misspelt (0 … 1, difflib's ratio).
ALIKE_SITE = 0.6  # a name that begins with derms_ is ours: refused anyway, this only picks what to suggest
ALIKE_ROLE = 0.8  # a name that begins with a role's name may belong to somebody else's role of that name
ALIKE_OTHER = 0.9  # any other name: only its beginning can be misspelt
MOST_LETTERS_OFF = 2  # … and by no more letters than this, which spares comparing every name with every other

SITE_PREFIX = "derms_"

KINDS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "str": ("a text", lambda value: isinstance(value, (str, int, float)) and not isinstance(value, bool)),
    "path": ("a path", lambda value: isinstance(value, str)),
    "int": ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "float": ("a number", lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "list": ("a list", lambda value: isinstance(value, Sequence) and not isinstance(value, (str, bytes))),
    "dict": ("a mapping", lambda value: isinstance(value, Mapping)),
    "raw": ("anything", lambda _value: True),
}

RELATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "mutually_exclusive": check_mutually_exclusive,
    "required_together": check_required_together,
    "required_one_of": check_required_one_of,
    "required_if": check_required_if,
    "required_by": check_required_by,
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one variable."""

    variable: str
    found: str
    expected: str
    where: str = ""

    def __str__(self) -> str:
        """Return the problem as one line."""
        place = f" ({self.where})" if self.where else ""
        return f"{self.variable}: {self.found}; expected {self.expected}{place}"


@dataclass(frozen=True)
class Provenance:
    """What is known of where values come from."""

    place: Callable[[object], str]  # "file:line", or "" where it is not known
    is_secret: Callable[[object], bool]


@dataclass(frozen=True)
class Spot:
    """A value's full name, its place, and whether it may be shown."""

    variable: str
    place: str
    secret: bool

    def problem(self, value: object, expected: str) -> Problem:
        """Return the problem that this value is not what was expected."""
        if self.place == COMMAND_LINE and isinstance(value, str):
            expected += "; on the command line, only the JSON form keeps a type: -e '{\"name\": false}'"
        return Problem(self.variable, found(value, secret=self.secret), expected, self.place)


def found(value: object, *, secret: bool) -> str:
    """Return a value in words, and a secret's kind only."""
    if value is None:
        return "found nothing (null)"
    if isinstance(value, bool):
        return f"found {str(value).lower()}" if not secret else "found true or false"
    if isinstance(value, Mapping):
        return "found a mapping" if secret else f"found a mapping with {', '.join(map(str, value)) or 'no keys'}"
    if not isinstance(value, (str, int, float)):
        return f"found a list of {len(value)}" if isinstance(value, Sequence) else f"found a {type(value).__name__}"
    kind = "text" if isinstance(value, str) else "number"
    if secret:
        return f"found a {kind} that is not shown"
    shown = repr(str(value)) if isinstance(value, str) else str(value)
    if len(shown) > SHOWN_CHARACTERS:
        shown = f"{shown[:SHOWN_CHARACTERS]}…"
    return f"found the {kind} {shown}"


def nearest(name: str, names: Collection[str], alike: float) -> str:
    """Return the name that a misspelt one was most likely meant to be, or ""."""
    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=alike)), "")


def kind_words(option: Mapping[str, Any]) -> str:
    """Return what an option holds, in words."""
    words = KINDS.get(option.get("type", "str"), KINDS["raw"])[0]
    if "elements" in option:
        words += f" of {option['elements']}"
    if "choices" in option:
        words = "one of " + ", ".join(str(choice) for choice in option["choices"])
    return words


def first_sentence(option: Mapping[str, Any]) -> str:
    """Return the first paragraph of an option's description."""
    description = option.get("description", "")
    text = description if isinstance(description, str) else next(iter(description), "")
    return " ".join(str(text).split())


def missing(variable: str, option: Mapping[str, Any], place: str = "") -> Problem:
    """Return the problem that a required variable is not there."""
    return Problem(variable, "is missing", f"{kind_words(option)}: {first_sentence(option)}", place)


def value_problems(spot: Spot, option: Mapping[str, Any], value: object, known: Provenance) -> Iterator[Problem]:
    """Yield what is wrong with a value and everything inside it."""
    if value is None and not option.get("required") and "default" not in option:
        return
    kind = option.get("type", "str")
    words, is_kind = KINDS.get(kind, KINDS["raw"])
    if not is_kind(value):
        yield spot.problem(value, words)
        return
    inner: Iterator[Problem]
    if kind == "list":
        inner = list_problems(spot, option, value, known)
    elif kind == "dict" and "options" in option:
        inner = mapping_problems(spot, option, value, known)
    else:
        inner = choice_problems(spot, option, value)
    problems = list(inner)
    yield from problems
    # A format speaks of values that are otherwise right: a name that is no text has no letters to complain of.
    if not problems and (check := format_of(spot.variable, kind)) and (expected := check(value)):
        # What a format expects instead may quote the value.
        yield spot.problem(value, "a value of the right form" if spot.secret else expected)


def choice_problems(spot: Spot, option: Mapping[str, Any], value: object) -> Iterator[Problem]:
    """Yield a problem if there are choices and the value is none of them."""
    choices = option.get("choices")
    if choices is not None and str(value) not in {str(choice) for choice in choices}:
        suggestion = nearest(str(value), [str(choice) for choice in choices], ALIKE_SITE)
        yield spot.problem(value, kind_words(option) + (f", perhaps {suggestion}" if suggestion else ""))


def list_problems(spot: Spot, option: Mapping[str, Any], values: Any, known: Provenance) -> Iterator[Problem]:
    """Yield what is wrong with a list's entries."""
    element = {"type": option.get("elements", "raw"), "required": True}
    element.update({key: option[key] for key in ("choices", "options", *RELATIONS) if key in option})
    for index, value in enumerate(values):
        inner = Spot(
            f"{spot.variable}[{index}]", known.place(value) or spot.place, spot.secret or known.is_secret(value)
        )
        yield from value_problems(inner, element, value, known)


def mapping_problems(spot: Spot, option: Mapping[str, Any], values: Any, known: Provenance) -> Iterator[Problem]:
    """Yield what is wrong with a mapping's keys and with what they hold."""
    options: Mapping[str, Any] = option["options"]
    for key in values:
        if key not in options:
            yield unknown_key(f"{spot.variable}.{key}", str(key), options, known.place(key) or spot.place)
    for key, suboption in options.items():
        name = f"{spot.variable}.{key}"
        if key not in values:
            if suboption.get("required"):
                yield missing(name, suboption, spot.place)
            continue
        value = values[key]
        secret = spot.secret or suboption.get("no_log", False) or known.is_secret(value)
        yield from value_problems(Spot(name, known.place(value) or spot.place, secret), suboption, value, known)
    for relation in RELATIONS:
        if expected := relation_mismatch(relation, option.get(relation), values):
            yield Problem(spot.variable, "its keys do not go together", expected, spot.place)


def relation_mismatch(relation: str, terms: Any, values: Mapping[str, Any]) -> str:
    """Return what a relation between a mapping's keys demands, or "" if it holds."""
    try:
        RELATIONS[relation](terms, dict(values))
    except TypeError as error:  # these checks speak of keys only, never of what they hold
        return str(error)
    return ""


def unknown_key(variable: str, key: str, options: Mapping[str, Any], place: str) -> Problem:
    """Return the problem that a mapping holds a key that it has no use for."""
    suggestion = nearest(key, list(options), ALIKE_SITE)
    return Problem(
        variable, "no such key", f"perhaps {suggestion}" if suggestion else f"one of {', '.join(options)}", place
    )


def undeclared_problems(
    names: Mapping[str, str], declared: Collection[str], roles: Collection[str]
) -> Iterator[Problem]:
    """Yield a problem for each variable that no role declares and that was meant to be one of theirs.

    :param names: the host's variables and their places
    :param declared: what the roles declare
    :param roles: the roles' names, with which their variables begin
    """
    prefixes = tuple(f"{role}_" for role in roles)
    for name, place in names.items():
        if name in declared or name.startswith(("ansible_", "_")):
            continue
        if name.startswith(SITE_PREFIX):
            suggestion = nearest(name, declared, ALIKE_SITE)
        elif name.startswith(prefixes):
            suggestion = nearest(name, declared, ALIKE_ROLE)
        else:
            suggestion = nearest(
                name, [other for other in declared if abs(len(other) - len(name)) <= MOST_LETTERS_OFF], ALIKE_OTHER
            )
        if suggestion or name.startswith(SITE_PREFIX):
            yield Problem(
                name,
                "no such variable",
                f"perhaps {suggestion}" if suggestion else "one that docs/roles.md lists",
                place,
            )


def report(host: str, problems: Sequence[Problem]) -> str:
    """Return all that is wrong with a host's variables as one message."""
    count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
    lines = "".join(f"\n- {problem}" for problem in problems)
    return f"{count} in the variables of {host}; nothing was changed{lines}"
