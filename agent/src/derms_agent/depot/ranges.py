# SPDX-License-Identifier: Apache-2.0
"""Ranges in names and values: `charger-[001:012]`, `10.213.9.[11:22]`, `1..12`."""

from __future__ import annotations

import re

# More than this in one range is a slip of the finger: a depot has at most about 1,000 chargers.
MOST_ENTRIES = 10_000
EXPECTED = "a range such as [1:12] or [001:012], both ends of the same width where the first begins with 0"
EXPECTED_UNITS = "a range such as 1..12, the first no higher than the last"

_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_BOUNDS = re.compile(r"(\d+):(\d+)(?::(\d+))?")
_UNITS = re.compile(r"(\d+)\.\.(\d+)")


class BadRange(ValueError):
    """A range that cannot be expanded; the message says what was expected instead."""


def has_range(text: str) -> bool:
    """Say whether a text is meant to stand for several."""
    return "[" in text or "]" in text


def expand(text: str) -> tuple[str, ...]:
    """Return what a text stands for: itself, or one text for each number of its range, zero-padded as its first.

    A third number is the step: `[1:9:2]`.

    :raises BadRange: the brackets hold no range, the range runs backwards, or there are two of them
    """
    if not has_range(text):
        return (text,)
    found = list(_BRACKETS.finditer(text))
    if len(found) != 1 or text.count("[") != 1 or text.count("]") != 1:
        raise BadRange("at most one range, in one pair of brackets")
    bounds = _BOUNDS.fullmatch(found[0][1])
    if bounds is None:
        raise BadRange(EXPECTED)
    first, last, step = bounds[1], bounds[2], int(bounds[3] or 1)
    padded = first.startswith("0") and len(first) > 1
    if int(first) > int(last) or step == 0 or (padded and len(first) != len(last)):
        raise BadRange(EXPECTED)
    width = len(first) if padded else 0
    before, after = text[: found[0].start()], text[found[0].end() :]
    return tuple(f"{before}{number:0{width}d}{after}" for number in _numbers(int(first), int(last), step))


def expand_units(value: int | str) -> tuple[int, ...]:
    """Return the unit ids that a number, or a text such as 1..12, stands for.

    :raises BadRange: the text is no range, or runs backwards
    """
    if isinstance(value, int):
        return (value,)
    bounds = _UNITS.fullmatch(value)
    if bounds is None or int(bounds[1]) > int(bounds[2]):
        raise BadRange(EXPECTED_UNITS)
    return tuple(_numbers(int(bounds[1]), int(bounds[2]), 1))


def _numbers(first: int, last: int, step: int) -> range:
    numbers = range(first, last + 1, step)
    if len(numbers) > MOST_ENTRIES:
        raise BadRange(f"a range of at most {MOST_ENTRIES}")
    return numbers
