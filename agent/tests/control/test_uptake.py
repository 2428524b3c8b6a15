# SPDX-License-Identifier: Apache-2.0
"""What a vehicle is believed to take: comes down to what it draws, and never keeps it from more."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derms_agent.control.uptake import Habit, learnt_a

HABIT = Habit()
currents = st.floats(0.0, 80.0)
bounds = st.one_of(st.just(math.inf), st.floats(HABIT.least_a, 100.0))


def settled_a(bound_a: float, takes_a: float, most_a: float = 32.0, samples: int = 20) -> float:
    """Return the bound of a vehicle that is offered all of it, up to what the EVSE can give."""
    for _ in range(samples):
        offered_a = min(bound_a, most_a)
        bound_a = learnt_a(bound_a, offered_a, min(offered_a, takes_a))
    return bound_a


def test_what_a_vehicle_does_not_take_is_given_up() -> None:
    assert learnt_a(math.inf, 32.0, 10.0) == 10.0 + HABIT.margin_a


def test_one_that_takes_all_is_not_bounded() -> None:
    assert learnt_a(math.inf, 16.0, 15.8) == math.inf


def test_a_share_that_is_small_says_nothing_about_the_vehicle() -> None:
    assert learnt_a(20.0, 8.0, 8.0) == 20.0


def test_an_offer_of_nothing_says_nothing() -> None:
    assert learnt_a(20.0, 0.0, 0.0) == 20.0
    assert learnt_a(math.inf, 0.0, 0.0) == math.inf
    assert learnt_a(20.0, 16.0, math.nan) == 20.0


def test_a_taper_is_followed_down_in_steps() -> None:
    bound_a, seen = math.inf, []
    for takes_a in [32.0 - step / 100 for step in range(3000)]:
        bound_a = learnt_a(bound_a, min(bound_a, 32.0), min(bound_a, takes_a))
        seen.append(bound_a)
        assert takes_a < bound_a
        assert bound_a <= max(takes_a + HABIT.margin_a + HABIT.step_a, HABIT.least_a) or bound_a == math.inf
    assert len(set(seen)) <= 30 / HABIT.step_a + 2


@given(bound_a=bounds, takes_a=currents)
def test_nobody_starves(bound_a: float, takes_a: float) -> None:
    most_a = 32.0
    assert settled_a(bound_a, takes_a, most_a) >= min(takes_a, most_a)


@given(bound_a=bounds, takes_a=st.floats(0.0, 31.0))
def test_what_lies_idle_is_the_margin_and_a_step(bound_a: float, takes_a: float) -> None:
    bound_a = settled_a(bound_a, takes_a)
    assert bound_a <= max(takes_a + HABIT.margin_a, HABIT.least_a) + HABIT.step_a + 1e-9
    assert settled_a(bound_a, takes_a, samples=1) == bound_a, "it does not flap"


@given(bound_a=bounds, offered_a=currents, drawn_a=currents)
def test_a_bound_leaves_room_above_what_is_drawn(bound_a: float, offered_a: float, drawn_a: float) -> None:
    after_a = learnt_a(bound_a, offered_a, min(drawn_a, offered_a))
    assert after_a >= HABIT.least_a
    if offered_a > 0:
        assert after_a >= min(bound_a, min(drawn_a, offered_a) + HABIT.margin_a)


@given(bound_a=bounds, offered_a=currents, drawn_a=currents)
def test_it_comes_down_only_for_a_draw_below_the_offer(bound_a: float, offered_a: float, drawn_a: float) -> None:
    if learnt_a(bound_a, offered_a, drawn_a) < bound_a:
        assert drawn_a < offered_a - HABIT.tolerance_a


@pytest.mark.parametrize("wrong", [{"margin_a": 0.5}, {"tolerance_a": -0.1}, {"growth": 1.0}, {"least_a": 0.0}])
def test_a_habit_that_would_flap_or_starve_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected tolerance_a < margin_a"):
        Habit(**wrong)
