# SPDX-License-Identifier: Apache-2.0
"""Barrier, taper and prediction, each by itself: the argument of one holds whatever the other two say."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derms_agent.control import thermal
from derms_agent.control.thermal import DEFAULTS, Estimate, Sensor, SensorKind

KINDS = tuple(SensorKind)
WHERE = st.floats(0, 1)


def heated_c(celsius: float, air_c: float, rise_k: float, tau_s: float, seconds: float) -> float:
    """Return the temperature of a first-order plant after a time under a steady load."""
    settled_c = air_c + rise_k
    return settled_c + (celsius - settled_c) * math.exp(-seconds / tau_s)


def certain(sensor: Sensor, where: tuple[float, float]) -> Estimate:
    """Return an estimate that is sure of some possible tau and rise."""
    tau_s, rise_k = (low + (high - low) * at for at, (low, high) in zip(where, ends(sensor), strict=True))
    return Estimate(1 / tau_s, rise_k / tau_s, 0.0, 0.0, 0.0)


def ends(sensor: Sensor) -> tuple[tuple[float, float], tuple[float, float]]:
    return sensor.physics.tau_s, sensor.physics.rise_k


@pytest.mark.parametrize("kind", KINDS)
@given(where=st.tuples(WHERE, WHERE), above_k=st.floats(0, 60), air_c=st.floats(-40, 45))
def test_nothing_flows_from_the_cut_off_on_though_the_air_is_so_cold_that_the_plant_would_cool(
    kind: SensorKind, where: tuple[float, float], above_k: float, air_c: float
) -> None:
    sensor = DEFAULTS[kind]
    assert thermal.share(sensor, certain(sensor, where), sensor.cut_off_c + above_k, air_c) == 0.0
    just_below = thermal.share(sensor, certain(sensor, where), sensor.cut_off_c - 0.01, air_c)
    assert just_below <= 0.01 / sensor.taper_k + 1e-9


@pytest.mark.parametrize("kind", KINDS)
@given(where=st.tuples(WHERE, WHERE), off_k=st.floats(-3, 3))
def test_what_is_above_the_balance_cannot_heat_to_the_cut_off_until_the_next_command_is_in_force(
    kind: SensorKind, where: tuple[float, float], off_k: float
) -> None:
    """The worst that is possible: full load in the warmest air, seen late, off by the noise, followed late."""
    plain = DEFAULTS[kind]
    # Without the other two: the taper begins at once, and the prediction looks nowhere.
    sensor = replace(plain, taper_k=1e-3, margin_k=0.0, horizon_s=1e-3)
    physics = sensor.physics
    settled_c = physics.ambient_max_c + physics.rise_k[1]
    cooled = math.exp(-(sensor.stale_after_s + sensor.follow_s) / physics.tau_s[0])
    # What a plant at the brink, read as much too cool as it may be, gets to by then is the cut-off.
    brink_c = (sensor.cut_off_c - settled_c * (1 - cooled)) / cooled - sensor.noise_k
    celsius = min(brink_c + off_k, sensor.cut_off_c - 0.01)
    left = thermal.share(sensor, certain(sensor, where), celsius)
    balance = (sensor.cut_off_c - physics.ambient_max_c) / physics.rise_k[1]
    if celsius >= brink_c:
        assert left <= balance + 1e-9
    elif celsius < brink_c - sensor.taper_k:
        assert left == 1.0  # nor is anything held back sooner than that


@pytest.mark.parametrize("kind", KINDS)
@given(
    where=st.tuples(WHERE, WHERE),
    below_k=st.floats(0, 60),
    cooler_k=st.one_of(st.none(), st.floats(0, 60)),
    noise=st.sampled_from([-1.0, 0.0, 1.0]),
)
def test_at_the_end_of_the_horizon_the_plant_that_is_known_is_below_the_cut_off_by_the_margin(
    kind: SensorKind, where: tuple[float, float], below_k: float, cooler_k: float | None, noise: float
) -> None:
    sensor = DEFAULTS[kind]
    physics = sensor.physics
    tau_s, rise_k = (low + (high - low) * at for at, (low, high) in zip(where, ends(sensor), strict=True))
    air_c = physics.ambient_max_c - (cooler_k or 0.0)
    celsius = sensor.cut_off_c - below_k
    shown_c = None if cooler_k is None else air_c
    left = thermal.share(sensor, certain(sensor, where), celsius, shown_c)
    if left <= 0.0:
        return
    settled_k = rise_k * left**physics.loss_exponent
    predicted_c = heated_c(celsius + noise * sensor.noise_k, air_c, settled_k, tau_s, sensor.horizon_s)
    assert predicted_c <= sensor.cut_off_c - sensor.margin_k + 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_possible_is_reckoned_with_before_anything_is_learnt(kind: SensorKind) -> None:
    sensor = DEFAULTS[kind]
    fresh = thermal.fresh(sensor).estimate
    for step in range(200):
        celsius = sensor.cut_off_c - 0.2 * step
        left = thermal.share(sensor, fresh, celsius)
        least = min(
            thermal.share(sensor, certain(sensor, (at_tau, at_rise)), celsius)
            for at_tau in (0.0, 0.1, 0.3, 1.0)
            for at_rise in (0.0, 0.5, 1.0)
        )
        assert left <= least + 1e-9
