# SPDX-License-Identifier: Apache-2.0
"""Derating against simulated plants that are not the model: other parameters, noise, delay, another loss curve."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derms_agent.control import thermal
from derms_agent.control.thermal import DEFAULTS, Learnt, Physics, Sensor, SensorKind, Temperature
from derms_agent.model import LimitQuantity, Quality, Rank

KINDS = tuple(SensorKind)
CYCLE_S = 5.0


def within(low: float, high: float, where: float) -> float:
    return low + (high - low) * where


@st.composite
def sensors(draw: st.DrawFn) -> Sensor:
    """Sensors with limits and physics of their own, the defaults among them."""
    if draw(st.booleans()):
        return DEFAULTS[draw(st.sampled_from(KINDS))]
    tau_low = draw(st.floats(120, 3000))
    rise_low = draw(st.floats(1, 30))
    cut_off = draw(st.floats(40, 90))
    return Sensor(
        name="any",
        kind=draw(st.sampled_from(KINDS)),
        cut_off_c=cut_off,
        physics=Physics(
            tau_s=(tau_low, tau_low * draw(st.floats(1, 20))),
            rise_k=(rise_low, rise_low * draw(st.floats(1, 20))),
            ambient_max_c=cut_off - draw(st.floats(2, 40)),
            loss_exponent=draw(st.sampled_from([1.0, 1.5, 2.0])),
        ),
        noise_k=draw(st.floats(0, 1.5)),
        taper_k=draw(st.floats(0.5, 5)),
    )


def simulate(  # noqa: PLR0917
    sensor: Sensor, seed: int, start_c: float, minutes: int, corner: tuple[float, float, float], exponent: float
) -> tuple[float, list[float]]:
    """Return the hottest that a plant got, and the shares that it was given.

    `corner` places its tau, rise and ambient temperature within the sensor's physics. The reading is as old, and the
    command as late, as the sensor allows; the noise is either end of its bound; the plant takes all that it may.
    """
    rng = random.Random(seed)  # noqa: S311
    physics = sensor.physics
    tau_s, rise_k = within(*physics.tau_s, corner[0]), within(*physics.rise_k, corner[1])
    air_c = within(physics.ambient_max_c - 40, physics.ambient_max_c, corner[2])
    sensed_steps = int((sensor.stale_after_s - 1) // CYCLE_S)
    follow_steps = int((sensor.follow_s - CYCLE_S) // CYCLE_S)
    temperatures, commands = [start_c] * (sensed_steps + 1), [0.0] * (follow_steps + 1)
    learnt, hottest_c, given = thermal.fresh(sensor), start_c, []
    now_s = 0.0
    for _ in range(int(minutes * 60 / CYCLE_S)):
        now_s += CYCLE_S
        noise_k = rng.choice([-1.0, 1.0, rng.uniform(-1, 1)]) * sensor.noise_k
        reading = Temperature(temperatures[-1 - sensed_steps] + noise_k, now_s - sensed_steps * CYCLE_S)
        carried = commands[-1 - follow_steps]
        learnt = thermal.learn(sensor, learnt, reading, carried, air_c)
        derating, learnt = thermal.derate(sensor, learnt, reading, now_s, air_c)
        commands.append(derating.share)
        # A vehicle that is slow to go down may be quick to go up.
        carried = max(commands[-1 - follow_steps :])
        settled_c = air_c + rise_k * carried**exponent
        temperatures.append(settled_c + (temperatures[-1] - settled_c) * math.exp(-CYCLE_S / tau_s))
        hottest_c = max(hottest_c, temperatures[-1])
        given.append(derating.share)
    return hottest_c, given


ends = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))


@settings(max_examples=60, deadline=None)
@given(
    sensor=sensors(),
    seed=st.integers(0, 2**32),
    below_k=st.floats(0, 30),
    corner=st.tuples(ends, ends, ends),
    exponent=st.floats(1, 2.5),
)
def test_a_possible_plant_never_gets_above_the_cut_off(
    sensor: Sensor, seed: int, below_k: float, corner: tuple[float, float, float], exponent: float
) -> None:
    # The plant's own losses need not follow the exponent that the sensor's model has.
    hottest_c, _ = simulate(sensor, seed, sensor.cut_off_c - below_k, 60, corner, exponent)
    assert hottest_c <= sensor.cut_off_c + 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_the_worst_plant_comes_near_the_cut_off_and_stays_below(kind: SensorKind) -> None:
    sensor = DEFAULTS[kind]
    hottest_c, given = simulate(sensor, 1, sensor.physics.ambient_max_c, 240, (0.0, 1.0, 1.0), 1.0)
    assert sensor.cut_off_c - 8 < hottest_c <= sensor.cut_off_c
    assert max(given) > 0


def test_a_cool_plant_is_not_held_back() -> None:
    sensor = DEFAULTS[SensorKind.BATTERY]
    _, given = simulate(sensor, 1, 10.0, 120, (0.5, 0.1, 0.0), 1.0)
    assert min(given) == 1.0


def test_what_is_learnt_lets_a_good_plant_take_more() -> None:
    sensor = DEFAULTS[SensorKind.BATTERY]
    before = thermal.share(sensor, thermal.fresh(sensor).estimate, 32.0, 30.0)
    _, given = simulate(replace(sensor, noise_k=0.1), 1, 32.0, 90, (0.6, 0.05, 0.75), 1.0)
    assert before < 0.9
    assert given[-1] == 1.0


def test_parameters_are_found_and_stay_possible() -> None:
    sensor = replace(DEFAULTS[SensorKind.ENCLOSURE], noise_k=0.05)
    tau_s, rise_k, air_c = 900.0, 12.0, 20.0
    learnt, celsius = thermal.fresh(sensor), 20.0
    for step in range(1, 6 * 60):
        load = 1.0 if step // 60 % 2 == 0 else 0.3
        settled_c = air_c + rise_k * load**2
        celsius = settled_c + (celsius - settled_c) * math.exp(-20 / tau_s)
        learnt = thermal.learn(sensor, learnt, Temperature(celsius, 20.0 * step), load, air_c)
    assert 1 / learnt.estimate.a == pytest.approx(tau_s, rel=0.15)
    assert learnt.estimate.b / learnt.estimate.a == pytest.approx(rise_k, rel=0.15)


@settings(max_examples=50, deadline=None)
@given(sensor=sensors(), seed=st.integers(0, 2**32))
def test_no_reading_drives_the_estimate_out_of_what_is_possible(sensor: Sensor, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    learnt = thermal.fresh(sensor)
    for step in range(200):
        reading = Temperature(rng.uniform(-20, 90), 20.0 * step)
        learnt = thermal.learn(sensor, learnt, reading, rng.uniform(-1, 1), rng.uniform(-20, 40))
        estimate, (tau_low, tau_high) = learnt.estimate, sensor.physics.tau_s
        assert 1 / tau_high - 1e-12 <= estimate.a <= 1 / tau_low + 1e-12
        assert sensor.physics.rise_k[0] / tau_high - 1e-12 <= estimate.b <= sensor.physics.rise_k[1] / tau_low + 1e-12
        assert estimate.aa >= 0
        assert estimate.bb >= 0


@settings(max_examples=200, deadline=None)
@given(
    sensor=sensors(),
    places=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
    one_c=st.floats(-30, 100),
    other_c=st.floats(-30, 100),
    air_c=st.one_of(st.none(), st.floats(-20, 60)),
)
def test_monotone_in_the_temperature(
    sensor: Sensor, places: tuple[float, float, float, float], one_c: float, other_c: float, air_c: float | None
) -> None:
    prior = thermal.fresh(sensor).estimate
    estimate = replace(
        prior,
        a=prior.a * (0.5 + places[0]),
        b=prior.b * (0.5 + places[1]),
        aa=prior.aa * places[2],
        bb=prior.bb * places[3],
    )
    cool, hot = sorted((one_c, other_c))
    more, less = (thermal.share(sensor, estimate, celsius, air_c) for celsius in (cool, hot))
    assert 0 <= less <= more <= 1
    if hot >= sensor.cut_off_c:
        assert less == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_share_falls_to_zero_without_a_jump_at_the_cut_off(kind: SensorKind) -> None:
    sensor = DEFAULTS[kind]
    estimate = thermal.fresh(sensor).estimate
    shares = [thermal.share(sensor, estimate, sensor.cut_off_c - step / 1000) for step in range(60_000)]
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert max(after - before for before, after in pairwise(shares)) < 0.05
    assert shares[-1] > 0.4


def test_the_defaults_cut_off_where_they_are_said_to() -> None:
    assert DEFAULTS[SensorKind.BATTERY].cut_off_c == 45
    assert DEFAULTS[SensorKind.ENCLOSURE].cut_off_c == 45
    assert {kind: DEFAULTS[kind].kind for kind in KINDS} == {kind: kind for kind in KINDS}


LOST = [
    None,
    Temperature(20.0, 1000.0 - 151.0),
    Temperature(20.0, 1001.0),
    Temperature(20.0, 1000.0, Quality.STALE),
    Temperature(20.0, 1000.0, Quality.BAD),
    Temperature(math.nan, 1000.0),
    Temperature(3276.7, 1000.0),
    Temperature(-273.0, 1000.0),
]


@pytest.mark.parametrize("reading", LOST)
def test_a_required_sensor_that_is_lost_stops_everything(reading: Temperature | None) -> None:
    sensor = replace(DEFAULTS[SensorKind.BATTERY], required=True)
    derating, _ = thermal.derate(sensor, thermal.fresh(sensor), reading, 1000.0)
    assert derating.share == 0
    assert "required" in derating.reason


@pytest.mark.parametrize("reading", LOST)
def test_a_sensor_that_falls_silent_lets_no_more_through_than_before(reading: Temperature | None) -> None:
    sensor = DEFAULTS[SensorKind.BATTERY]
    never_spoken, _ = thermal.derate(sensor, thermal.fresh(sensor), reading, 1000.0)
    assert never_spoken.share == 1
    hot, learnt = thermal.derate(sensor, thermal.fresh(sensor), Temperature(42.0, 990.0), 990.0)
    assert 0 < hot.share < 0.3
    for _ in range(3):
        silent, learnt = thermal.derate(sensor, learnt, reading, 1000.0)
        assert silent.share == hot.share
    back, _ = thermal.derate(sensor, learnt, Temperature(15.0, 1000.0), 1000.0, 15.0)
    assert back.share > hot.share


def test_nothing_is_learnt_without_air_or_across_a_gap() -> None:
    sensor = DEFAULTS[SensorKind.BATTERY]
    start = thermal.fresh(sensor)
    learnt: Learnt = start
    for step in range(50):
        learnt = thermal.learn(sensor, learnt, Temperature(20.0 + step, 20.0 * step), 1.0, None)
    for step in range(50):
        learnt = thermal.learn(sensor, learnt, Temperature(20.0 + step, 2000.0 + 600.0 * step), 1.0, 20.0)
    assert learnt.estimate == start.estimate


def test_a_derating_bounds_charge_and_discharge_of_each_target() -> None:
    warm = thermal.Derating(0.25, "enclosure-1 42.0 degC, cut-off 45 degC")
    found = thermal.limits(
        thermal.coolest([thermal.Derating(0.5, "x"), warm]), {"evse-1": 22_000.0, "evse-2": 11_000.0}
    )
    assert [(limit.target, limit.low, limit.high) for limit in found] == [
        ("evse-1", -5500.0, 5500.0),
        ("evse-2", -2750.0, 2750.0),
    ]
    assert {(limit.rank, limit.quantity) for limit in found} == {(Rank.THERMAL_AND_SOC, LimitQuantity.ACTIVE_POWER)}
    assert {limit.source for limit in found} == {warm.reason}
    assert thermal.coolest([]).share == 1


def test_physics_that_no_derating_can_hold_is_refused() -> None:
    battery = DEFAULTS[SensorKind.BATTERY]
    with pytest.raises(ValueError, match="warmest air"):
        replace(battery, physics=replace(battery.physics, ambient_max_c=45.0))
    with pytest.raises(ValueError, match="tau_s"):
        replace(battery.physics, tau_s=(0.0, 10.0))
    with pytest.raises(ValueError, match="exponent"):
        replace(battery.physics, loss_exponent=0.5)
    with pytest.raises(ValueError, match="span"):
        replace(battery, taper_k=0.0)
