# SPDX-License-Identifier: Apache-2.0
"""Cycle counting against the standard's own example and against an independent count of whole histories."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derms_agent.control import cycles
from derms_agent.control.cycles import Counted


def counted(history: list[float], smallest_percent: float = 1.0) -> Counted:
    state = Counted()
    for percent in history:
        state = cycles.count(state, percent, smallest_percent)
    return state


def whole(history: list[int]) -> Counter[int]:
    """Return twice the number of cycles of each range, from a whole history of reversals, by another rule.

    The four-point rule takes an inner range that lies within both of its neighbours, wherever it is; what is left
    counts as halves, which is what the three-point rule makes of such a residue.
    """
    points = [
        value
        for index, value in enumerate(history)
        if index in (0, len(history) - 1) or (value - history[index - 1]) * (history[index + 1] - value) < 0
    ]
    found: Counter[int] = Counter()
    index = 0
    while index + 3 < len(points):
        before, inner, after = (abs(points[index + k + 1] - points[index + k]) for k in range(3))
        if inner <= before and inner <= after:
            found[inner] += 2
            del points[index + 1 : index + 3]
            index = 0
        else:
            index += 1
    for first, second in pairwise(points):
        found[abs(second - first)] += 1
    return found


def test_the_standards_example() -> None:
    # ASTM E1049-85, figure 6: ranges 3, 4, 6, 8, 9 count 0.5, 1.5, 0.5, 1, 0.5.
    history = [50 + 5 * value for value in (-2, 1, -3, 5, -1, 3, -4, 4, -2)]
    found = cycles.cycles(counted([float(value) for value in history]))
    assert {depth / 5: number for depth, number in found.items()} == pytest.approx(
        {3: 0.5, 4: 1.5, 6: 0.5, 8: 1.0, 9: 0.5}
    )


def test_the_report_of_a_week_of_days() -> None:
    report = cycles.report(counted([80.0, *[20.0, 80.0] * 7]))
    assert report.equivalent_full_cycles == pytest.approx(7 * 0.6)
    assert report.deepest_percent == pytest.approx(60)
    assert report.mean_depth_percent == pytest.approx(60)
    assert report.by_depth == {60: pytest.approx(7)}


def test_nothing_yet() -> None:
    assert cycles.report(Counted()) == cycles.Report(0.0, 0.0, 0.0, {})
    assert cycles.report(counted([50.0])).equivalent_full_cycles == 0


def test_noise_is_no_cycle() -> None:
    assert cycles.report(counted([50 + 0.4 * (-1) ** n for n in range(1000)])).equivalent_full_cycles == 0
    noisy = counted([20 + n / 20 + 0.3 * (-1) ** n for n in range(1190)])
    assert cycles.report(noisy).by_depth == {60: 0.5}


@pytest.mark.parametrize("wrong", [math.nan, -1.0, 101.0, math.inf])
def test_a_reading_that_is_none_changes_nothing(wrong: float) -> None:
    state = counted([50.0, 70.0])
    assert cycles.count(state, wrong) == state


histories = st.lists(st.integers(0, 100), min_size=1, max_size=60)


@settings(max_examples=150, deadline=None)
@given(history=histories)
def test_it_counts_what_a_whole_history_counts(history: list[int]) -> None:
    plain = [value for index, value in enumerate(history) if index == 0 or value != history[index - 1]]
    found = {round(depth): 2 * number for depth, number in cycles.cycles(counted([float(v) for v in history])).items()}
    assert found == dict(whole(plain))


@settings(max_examples=200, deadline=None)
@given(history=st.lists(st.floats(0, 100), min_size=1, max_size=80))
def test_no_travel_is_lost_and_the_state_stays_small(history: list[float]) -> None:
    state = counted(history, 0.0)
    steps = [round(percent / 0.1) for percent in history]
    travel = sum(abs(after - before) for before, after in pairwise(steps)) * 0.1
    assert cycles.report(state).equivalent_full_cycles == pytest.approx(travel / 200)
    ranges = [abs(b - a) for a, b in pairwise(state.reversals)]
    assert ranges == sorted(set(ranges), reverse=True)
