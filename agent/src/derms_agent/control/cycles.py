# SPDX-License-Identifier: Apache-2.0
"""What a battery's life has been spent on: full cycles and their depths, counted while it happens.

Rainflow counting after ASTM E1049-85, 5.4.4: the history of the state of charge is reduced to its reversals, and three
of them at a time are looked at. X is the newest range, Y the one before. While X >= Y: where Y holds the history's
start it counts as half a cycle and the start moves on; otherwise Y is one cycle and its two reversals go. The rule only
looks at the newest reversals, so that it can be carried out reversal by reversal: the state is the reversals that are
left, and feeding a history in pieces counts the same as counting it whole. What is left counts as half cycles in
`report`, without being taken from the state.

**Nothing is lost.** Each range that is taken or left accounts for its own travel, once for a half cycle and twice for a
full one, so that the sum of 2 * count * depth is the whole travel between reversals. Equivalent full cycles are half of
the travel over 100 %.

**It stays small.** Changes below `smallest_percent` are no reversals (a reading's noise wears no battery), and readings
count in steps of `_STEP_PERCENT`. The ranges that are left fall strictly (a range not below the one before is taken at
once), each is a whole number of steps and at most 100 %: there are never more than 1,000 of them. Counted cycles are
kept as a histogram over depth.

A gap in the readings, and a drive between two sessions, is travel like any other: the battery was discharged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

_STEP_PERCENT = 0.1
_FULL_PERCENT = 100.0
_TWO_RANGES = 3  # reversals
DEPTH_BIN_PERCENT = 10
"""Depths are reported in bins of 10 %, each named by its upper end."""


@dataclass(frozen=True, slots=True)
class Counted:
    """The cycles of one battery so far.

    `reversals`: those that no counted cycle has taken, in steps of 0.1 %, the newest one still moving. `full` and
    `half` say how many cycles of which depth (in steps) were taken.
    """

    reversals: tuple[int, ...] = ()
    full: Mapping[int, int] = field(default_factory=dict)
    half: Mapping[int, int] = field(default_factory=dict)


def count(counted: Counted, soc_percent: float, smallest_percent: float = 1.0) -> Counted:
    """Return the count after one more reading of the state of charge.

    A reading that is not a number between 0 and 100 says nothing and changes nothing.
    """
    if not 0 <= soc_percent <= _FULL_PERCENT:
        return counted
    value = round(soc_percent / _STEP_PERCENT)
    stack = list(counted.reversals)
    if not stack:
        return replace(counted, reversals=(value,))
    smallest = max(round(smallest_percent / _STEP_PERCENT), 1)
    if len(stack) > 1 and (value - stack[-1]) * (stack[-1] - stack[-2]) > 0:
        stack[-1] = value  # on in the same direction
    elif abs(value - stack[-1]) >= smallest:
        stack.append(value)
    else:
        return counted
    full, half = dict(counted.full), dict(counted.half)
    _take(stack, full, half)
    return Counted(tuple(stack), full, half)


def _take(stack: list[int], full: dict[int, int], half: dict[int, int]) -> None:
    """Take every cycle that the newest range closes.

    The newest reversal may still move on, but only away: X grows, and what it closes now it would close later too.
    """
    while len(stack) >= _TWO_RANGES:
        newest, before = abs(stack[-1] - stack[-2]), abs(stack[-2] - stack[-3])
        if newest < before:
            return
        if len(stack) == _TWO_RANGES:
            half[before] = half.get(before, 0) + 1
            del stack[0]
        else:
            full[before] = full.get(before, 0) + 1
            del stack[-3:-1]


@dataclass(frozen=True, slots=True)
class Report:
    """A battery's cycles. `by_depth`: how many (halves count 0.5) in each bin, named by its upper end in percent."""

    equivalent_full_cycles: float
    deepest_percent: float
    mean_depth_percent: float
    by_depth: Mapping[int, float]


def cycles(counted: Counted) -> Mapping[float, float]:
    """Return how many cycles there were of each depth in percent, what is left over as half cycles included."""
    found: dict[int, float] = {}
    for taken, weight in ((counted.full, 1.0), (counted.half, 0.5)):
        for depth, number in taken.items():
            found[depth] = found.get(depth, 0.0) + weight * number
    for first, second in pairwise(counted.reversals):
        depth = abs(second - first)
        found[depth] = found.get(depth, 0.0) + 0.5
    return {depth * _STEP_PERCENT: number for depth, number in sorted(found.items())}


def report(counted: Counted) -> Report:
    """Return a battery's equivalent full cycles and how deep its cycles were; the mean is over cycles."""
    found = cycles(counted)
    number = sum(found.values())
    travel_percent = sum(2 * weight * depth for depth, weight in found.items())
    by_depth: dict[int, float] = {}
    for depth, weight in found.items():
        upper = -(-round(depth / _STEP_PERCENT) // round(DEPTH_BIN_PERCENT / _STEP_PERCENT)) * DEPTH_BIN_PERCENT
        by_depth[upper] = by_depth.get(upper, 0.0) + weight
    return Report(
        travel_percent / (2 * _FULL_PERCENT),
        max(found, default=0.0),
        travel_percent / (2 * number) if number else 0.0,
        by_depth,
    )
