# SPDX-License-Identifier: Apache-2.0
"""Frequency droop: the curve, its response, and that noise moves nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from derms_agent.control import droop
from derms_agent.control.droop import ALLOWABLE, Category, Responder, Settings, State
from derms_agent.model import LimitQuantity, Rank

DEFAULT = Settings()
NOISE_HZ = 0.020


@st.composite
def allowed_settings(draw: st.DrawFn) -> Settings:
    """Any settings that a category allows, at 50 and 60 Hz."""
    spans = ALLOWABLE[draw(st.sampled_from(tuple(Category)))]

    def of(span: droop.Range) -> float:
        return draw(st.one_of(st.sampled_from([span.low, span.high]), st.floats(span.low, span.high)))

    return Settings(
        nominal_hz=draw(st.sampled_from([50.0, 60.0])),
        deadband_of_hz=of(spans.deadband_hz),
        deadband_uf_hz=of(spans.deadband_hz),
        k_of=of(spans.k),
        k_uf=of(spans.k),
        response_s=of(spans.response_s),
    )


def run(
    settled: Settings, frequencies: Iterable[float | None], dt_s: float = 1.0, state: State | None = None
) -> list[State]:
    states = [State() if state is None else state]
    at_s = states[0].at_s or 0.0
    for index, frequency_hz in enumerate(frequencies, start=1):
        states.append(droop.step(settled, states[-1], frequency_hz, at_s + index * dt_s))
    return states[1:]


def reversals(outputs: Iterable[float]) -> int:
    """Count how often an output turns round, by however little."""
    turned, direction, before = 0, 0.0, None
    for output in outputs:
        if before is not None and output != before:
            sign = math.copysign(1.0, output - before)
            turned += direction not in (0.0, sign)
            direction = sign
        before = output
    return turned


# --- the curve --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frequency_hz", "expected"),
    [
        (60.0, 0.0),
        (60.036, 0.0),
        (59.964, 0.0),
        (60.186, 0.05),  # 0.15 Hz beyond the deadband, over 60 Hz x 0.05 = 3 Hz for all of its power
        (59.814, -0.05),
        (59.364, -0.2),
        (63.036, 1.0),
        (66.036, 2.0),
        (80.0, 2.0),
        (40.0, -2.0),
    ],
)
def test_the_default_curve(frequency_hz: float, expected: float) -> None:
    assert droop.shift(DEFAULT, frequency_hz) == pytest.approx(expected, abs=1e-9)


def test_a_peers_table_is_divided_by_its_step() -> None:
    # 0 kW at 49.8 Hz, 11 kW at 50.0 Hz: half of it half-way. The peer, which forgets the step, gives 1.1 kW at 49.9 Hz.
    table = Settings(nominal_hz=50.0, deadband_uf_hz=0.0, deadband_of_hz=0.0, k_uf=0.2 / 50.0)
    assert [11 + 11 * droop.shift(table, hz) for hz in (50.0, 49.9, 49.85, 49.8)] == pytest.approx([11, 5.5, 2.75, 0])
    state = run(table, [49.9] * 60)[-1]
    state = replace(state, before_w={"evse-1": 11_000.0})
    (limit,) = droop.limits(state, [Responder(name="evse-1", rated_w=11_000.0, floor_w=0.0, ceiling_w=11_000.0)])
    assert limit.high == pytest.approx(5500, abs=55)


@given(settled=allowed_settings(), one_hz=st.floats(45, 65), apart_hz=st.floats(0, 0.5))
def test_the_curve_is_continuous_and_consumption_never_falls_with_frequency(
    settled: Settings, one_hz: float, apart_hz: float
) -> None:
    change = droop.shift(settled, one_hz + apart_hz) - droop.shift(settled, one_hz)
    assert -1e-12 <= change <= settled.gain * apart_hz + 1e-9


def test_allowable_ranges_are_the_standards() -> None:
    assert {category: droop.outside(DEFAULT, category) for category in Category} == dict.fromkeys(Category, ())
    fastest = Settings(deadband_of_hz=0.017, deadband_uf_hz=0.017, k_of=0.02, k_uf=0.02, response_s=0.2)
    assert droop.outside(fastest, Category.III) == ()
    assert len(droop.outside(fastest, Category.II)) == 3
    assert droop.outside(Settings(deadband_uf_hz=0.01), Category.I) == (
        "found 0.01 for deadband_uf_hz, expected 0.017 to 1 in category I",
    )


@pytest.mark.parametrize(
    "wrong", [{"k_of": 0.0}, {"response_s": -1.0}, {"deadband_of_hz": -0.1}, {"nominal_hz": math.nan}]
)
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="found a"):
        Settings(**wrong)


# --- in time ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    settled=allowed_settings(),
    path=st.lists(st.tuples(st.floats(-1.5, 1.5), st.integers(400, 500)), min_size=1, max_size=4),
    dt_s=st.sampled_from([0.5, 1.0]),
)
def test_exact_in_steady_state(settled: Settings, path: list[tuple[float, int]], dt_s: float) -> None:
    state = State(at_s=0.0)
    for off_hz, seconds in path:
        frequency_hz = settled.nominal_hz + off_hz
        state = run(settled, [frequency_hz] * round(seconds / dt_s), dt_s, state)[-1]
        assert abs(state.output - droop.shift(settled, frequency_hz)) <= 0.005


@settings(max_examples=40, deadline=None)
@example(settled=Settings(deadband_of_hz=0.017, k_of=0.03, k_uf=0.03), off_hz=[0.0, 0.03125, 0.03125], down=True)
@given(settled=allowed_settings(), off_hz=st.lists(st.floats(-1.5, 1.5), min_size=2, max_size=6), down=st.booleans())
def test_exact_soon_after_changes_that_do_not_turn_round(settled: Settings, off_hz: list[float], down: bool) -> None:
    settle_s = max(60, 10 * settled.response_s)
    first, *others = sorted(off_hz, reverse=down)
    # The way from the first may turn the output round, which waits for calm; none after it does, however small.
    state = run(settled, [settled.nominal_hz + first] * round(settle_s + settled.calm_s), 1.0, State(at_s=0.0))[-1]
    for off in others:
        frequency_hz = settled.nominal_hz + off
        state = run(settled, [frequency_hz] * round(settle_s), 1.0, state)[-1]
        assert abs(state.output - droop.shift(settled, frequency_hz)) <= 0.005


@pytest.mark.parametrize("dt_s", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("step_hz", [-1.0, 1.0])
def test_ninety_percent_at_the_open_loop_response_time(dt_s: float, step_hz: float) -> None:
    settled = replace(DEFAULT, noise_hz=0.0)
    # The first reading sets the clock: the change is counted from it.
    states = run(settled, [60.0, *[60.0 + step_hz] * round(10 / dt_s)], dt_s)
    final = droop.shift(settled, 60.0 + step_hz)
    assert states[round(5 / dt_s)].output / final == pytest.approx(0.9, abs=1e-6)
    assert all(0 <= state.output / final <= 1 for state in states)


def test_the_step_between_readings_does_not_matter() -> None:
    settled = replace(DEFAULT, noise_hz=0.0)
    ends = [run(settled, [60.0, *[59.5] * round(4 / dt_s)], dt_s)[-1].output for dt_s in (0.1, 0.5, 1.0, 4.0)]
    assert ends == pytest.approx([ends[0]] * 4)


def white(rng: random.Random) -> Callable[[float], float]:
    return lambda _at_s: rng.uniform(-NOISE_HZ, NOISE_HZ)


def sine(rng: random.Random) -> Callable[[float], float]:
    period_s, phase = math.exp(rng.uniform(0.5, 6)), rng.uniform(0, 6.3)
    return lambda at_s: NOISE_HZ * math.sin(2 * math.pi * at_s / period_s + phase)


def walk(rng: random.Random) -> Callable[[float], float]:
    at, stride = 0.0, rng.choice([0.0005, 0.002, 0.01])

    def drawn(_at_s: float) -> float:
        nonlocal at
        at = min(max(at + rng.uniform(-stride, stride), -NOISE_HZ), NOISE_HZ)
        return at

    return drawn


@settings(max_examples=40, deadline=None)
@given(
    settled=allowed_settings(),
    centre_hz=st.floats(-0.3, 0.3),
    kind=st.sampled_from([white, sine]),
    seed=st.integers(0, 2**32),
)
def test_noise_reverses_the_output_at_most_once_in_five_minutes(
    settled: Settings, centre_hz: float, kind: Callable[[random.Random], Callable[[float], float]], seed: int
) -> None:
    noise = kind(random.Random(seed))  # noqa: S311
    outputs = [
        state.output for state in run(settled, (settled.nominal_hz + centre_hz + noise(at_s) for at_s in range(1800)))
    ]
    assert max(reversals(outputs[start : start + 300]) for start in range(60, 1500, 20)) <= 1
    # A charger's steps: 1 A of 32.
    stepped = [math.floor(output * 32) for output in outputs]
    assert max(reversals(stepped[start : start + 300]) for start in range(60, 1500, 20)) <= 1


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("centre_hz", [0.0, 0.036, -0.05, 0.2])
def test_slow_wandering_within_the_noise_reverses_no_more_than_once_in_five_minutes(
    seed: int, centre_hz: float
) -> None:
    noise = walk(random.Random(seed))  # noqa: S311
    outputs = [state.output for state in run(DEFAULT, (60.0 + centre_hz + noise(at_s) for at_s in range(3600)))]
    worst = max(reversals(outputs[start : start + 300]) for start in range(60, 3300, 20))
    assert worst <= 1
    moves = [(at_s, math.copysign(1.0, now - was)) for at_s, (was, now) in enumerate(pairwise(outputs)) if now != was]
    assert all(later - sooner >= 300 for (sooner, was), (later, now) in pairwise(moves) if sooner > 60 and was != now)


def test_noise_within_the_deadband_asks_for_nothing() -> None:
    rng = random.Random(1)  # noqa: S311
    assert {state.output for state in run(DEFAULT, (60 + rng.uniform(-0.036, 0.036) for _ in range(1000)))} == {0.0}


def test_it_goes_back_to_nothing_after_a_disturbance_amid_noise() -> None:
    rng = random.Random(1)  # noqa: S311
    noise = white(rng)
    disturbed = run(DEFAULT, (59.7 + noise(0) for _ in range(60)))[-1]
    assert disturbed.output < -0.07
    after = run(DEFAULT, (60 + noise(0) for _ in range(400)), 1.0, disturbed)
    assert after[-1].output == 0.0
    assert reversals([disturbed.output, *(state.output for state in after)]) == 0
    assert droop.remember(after[-1], {"evse-1": 5.0}).before_w == {"evse-1": 5.0}


@pytest.mark.parametrize("delay", [0, 3, 12])
@pytest.mark.parametrize("loop_gain", [0.01, 0.3, 0.9])
def test_no_limit_cycle_where_the_fleet_moves_the_frequency(delay: int, loop_gain: float) -> None:
    # The grid without the fleet is at -0.3 Hz; the fleet's own response, late, lifts it again.
    state, outputs = State(), [0.0] * (delay + 1)
    for at_s in range(1, 1500):
        lifted_hz = -outputs[-1 - delay] * loop_gain / DEFAULT.gain
        state = droop.step(DEFAULT, state, 60 - 0.3 + lifted_hz, float(at_s))
        outputs.append(state.output)
    assert max(outputs[-900:]) - min(outputs[-900:]) <= 2 * NOISE_HZ * DEFAULT.gain
    assert max(reversals(outputs[start : start + 300]) for start in range(600, 1200, 20)) <= 1
    assert state.output == pytest.approx(-0.264 * DEFAULT.gain / (1 + loop_gain), abs=0.007)


def test_time_does_not_run_backwards() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        droop.step(DEFAULT, State(at_s=5.0), 60.0, 4.0)


@pytest.mark.parametrize("unknown", [None, math.nan, 0.0, math.inf])
def test_an_unknown_frequency_keeps_a_reduction_and_gives_up_an_increase(unknown: float | None) -> None:
    low = run(DEFAULT, [59.5] * 60)[-1]
    high = run(DEFAULT, [60.5] * 60)[-1]
    assert droop.step(DEFAULT, low, unknown, 100.0).output == low.output < -0.1
    assert droop.step(DEFAULT, high, unknown, 100.0).output == 0.0
    assert not droop.step(DEFAULT, low, unknown, 100.0).known


# --- what is asked of whom --------------------------------------------------------------------------------------------


def responder(name: str, **changes: Any) -> Responder:
    return replace(Responder(name=name, rated_w=10_000.0, floor_w=-10_000.0, ceiling_w=10_000.0), **changes)


def asked(output: float, before_w: dict[str, float], *responders: Responder) -> dict[str, tuple[float, float]]:
    found = droop.limits(State(output=output, before_w=before_w), responders)
    assert all(limit.rank is Rank.DROOP and limit.quantity is LimitQuantity.ACTIVE_POWER for limit in found)
    return {limit.target: (limit.low, limit.high) for limit in found}


def test_load_falls_in_under_frequency_and_rises_in_over_frequency() -> None:
    both = (responder("a"), responder("b", raises=False))
    before_w = {"a": 4000.0, "b": -3000.0}
    assert asked(-0.2, before_w, *both) == {"a": (-math.inf, 2000.0), "b": (-math.inf, -5000.0)}
    assert asked(0.2, before_w, *both) == {"a": (6000.0, math.inf), "b": (-1000.0, math.inf)}
    assert asked(0.5, before_w, *both) == {"a": (9000.0, math.inf), "b": (0.0, math.inf)}
    assert asked(0.0, before_w, *both) == {}


def test_nothing_is_asked_that_a_device_cannot_do() -> None:
    assert asked(-2.0, {"a": 4000.0}, responder("a", floor_w=0.0)) == {"a": (-math.inf, 0.0)}
    assert asked(2.0, {"a": 4000.0}, responder("a", ceiling_w=7000.0)) == {"a": (7000.0, math.inf)}


def test_devices_with_a_droop_of_their_own_are_left_out() -> None:
    assert set(asked(-0.2, {}, responder("icu", own_droop=True), responder("evse"))) == {"evse"}


def test_what_was_drawn_before_stands_while_something_is_asked() -> None:
    calm = droop.remember(State(), {"a": 4000.0})
    disturbed = run(DEFAULT, [59.5] * 30, 1.0, replace(calm, at_s=0.0))[-1]
    assert droop.remember(disturbed, {"a": 100.0}).before_w == {"a": 4000.0}


def test_a_vehicle_that_comes_amid_a_disturbance_is_not_locked_out() -> None:
    assert asked(-0.2, {}, responder("new")) == {"new": (-math.inf, 8000.0)}
    assert asked(0.2, {}, responder("new")) == {"new": (2000.0, math.inf)}
