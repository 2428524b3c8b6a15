# SPDX-License-Identifier: Apache-2.0
"""The reserve: what a battery may give."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derms_agent.control import soc
from derms_agent.control.soc import Battery, Policy
from derms_agent.model import LimitQuantity, Rank, Session

POLICY = Policy()
FULL = Battery(target="evse-1", soc_percent=80.0, read_at_s=1000.0, discharge_w=10_000.0, capacity_wh=60_000.0)


def given_w(battery: Battery, now_s: float = 1000.0, policy: Policy = POLICY) -> float:
    (limit,) = soc.reserve(battery, now_s, policy)
    assert (limit.target, limit.quantity, limit.rank) == (
        battery.target,
        LimitQuantity.ACTIVE_POWER,
        Rank.THERMAL_AND_SOC,
    )
    assert limit.high == math.inf
    assert limit.source
    return -limit.low


def test_a_full_battery_gives_what_it_can() -> None:
    assert given_w(FULL) == 10_000.0


@pytest.mark.parametrize("percent", [None, math.nan, -1.0, 100.5, 20.0, 19.9, 0.0, math.inf])
def test_nothing_at_or_below_the_reserve_or_of_unknown_charge(percent: float | None) -> None:
    assert given_w(replace(FULL, soc_percent=percent)) == 0


@pytest.mark.parametrize("read_at_s", [None, 939.9, 1000.1, math.nan])
def test_nothing_from_a_stale_reading(read_at_s: float | None) -> None:
    assert given_w(replace(FULL, read_at_s=read_at_s)) == 0


def test_the_reserve_is_the_depots() -> None:
    at_half = replace(FULL, soc_percent=50.0)
    assert given_w(at_half, policy=Policy(reserve_percent=50.0)) == 0
    assert given_w(at_half, policy=Policy(reserve_percent=40.0)) == 10_000.0


def test_it_fades_out_before_the_reserve() -> None:
    near = [given_w(replace(FULL, soc_percent=20 + step / 100)) for step in range(200)]
    assert near == sorted(near)
    assert near[0] == 0
    assert any(0 < watts < 10_000 for watts in near)


def test_the_older_the_reading_the_less_is_given() -> None:
    # 10 kW for 15 s and the reading's age is 41.7 Wh and 27.8 Wh for each 10 s, of the 600 Wh that 1 % is.
    low = replace(FULL, soc_percent=20.5)
    given = [given_w(low, 1000.0 + age_s, Policy(horizon_s=360.0)) for age_s in (0.0, 30.0, 60.0)]
    assert given == pytest.approx([2583.3, 1750.0, 916.7], abs=0.1)


def test_a_battery_of_unknown_size_is_taken_for_a_small_one() -> None:
    low = replace(FULL, soc_percent=21.0)
    assert given_w(replace(low, capacity_wh=None)) < given_w(low)
    assert given_w(replace(FULL, capacity_wh=0.0)) == 0


@settings(max_examples=40, deadline=None)
@given(
    start=st.floats(0, 100),
    capacity_wh=st.floats(10_000, 400_000),
    watts=st.floats(0, 150_000),
    every_s=st.integers(1, 60),
    follow_s=st.integers(0, 14),
)
def test_a_battery_that_obeys_never_gets_below_the_reserve(
    start: float, capacity_wh: float, watts: float, every_s: int, follow_s: int
) -> None:
    percent, read, read_at_s, commands = start, start, 0.0, [0.0] * (follow_s + 1)
    for now_s in range(1, 900):
        if now_s % every_s == 0:
            read, read_at_s = percent, float(now_s)
        battery = Battery(target="b", soc_percent=read, read_at_s=read_at_s, discharge_w=watts, capacity_wh=capacity_wh)
        commands.append(given_w(battery, float(now_s)))
        if percent <= 20:
            assert commands[-1] == 0
        percent -= max(commands[-1 - follow_s :]) / 3600 / capacity_wh * 100
    assert percent >= min(start, 20) - 1e-9


def test_a_session_is_a_battery() -> None:
    session = Session(evse="evse-1", started_at_s=0.0, discharge_w=5000.0, soc_percent=60.0, soc_read_at_s=10.0)
    assert soc.of_session(session, 50_000.0) == Battery(
        target="evse-1", soc_percent=60.0, read_at_s=10.0, discharge_w=5000.0, capacity_wh=50_000.0
    )
    assert given_w(soc.of_session(replace(session, soc_percent=None))) == 0


# What storage may take


def taken_w(battery: Battery, charge_w: float = 10_000.0, now_s: float = 1000.0) -> float:
    (limit,) = soc.full(battery, charge_w, now_s, POLICY)
    assert (limit.target, limit.quantity, limit.rank) == (
        battery.target,
        LimitQuantity.ACTIVE_POWER,
        Rank.THERMAL_AND_SOC,
    )
    assert limit.low == -math.inf
    assert limit.source
    return limit.high


def test_storage_takes_nothing_when_it_is_full_or_nobody_knows() -> None:
    assert taken_w(FULL) == 10_000.0
    for percent in (None, math.nan, -1.0, 100.0, 100.5):
        assert taken_w(replace(FULL, soc_percent=percent)) == 0
    for read_at_s in (None, 939.9, 1000.1, math.nan):
        assert taken_w(replace(FULL, read_at_s=read_at_s)) == 0
    assert taken_w(replace(FULL, capacity_wh=None)) == 0
    near = [taken_w(replace(FULL, soc_percent=98 + step / 100)) for step in range(201)]
    assert near == sorted(near, reverse=True)
    assert any(0 < watts < 10_000 for watts in near)


@given(
    st.floats(0.0, 100.0),
    st.floats(1_000.0, 200_000.0),
    st.floats(0.0, 100_000.0),
    st.floats(0.0, 60.0),
    st.floats(0.0, 100.0),
)
def test_neither_end_is_passed_by_the_time_that_the_next_limit_holds(
    percent: float, capacity_wh: float, power_w: float, age_s: float, reserve: float
) -> None:
    """At full power since the reading, and at the limit for as long as that takes to be replaced."""
    policy = Policy(reserve_percent=reserve)
    battery = replace(FULL, soc_percent=percent, capacity_wh=capacity_wh, discharge_w=power_w, read_at_s=1000.0 - age_s)
    (low,), (high,) = soc.reserve(battery, 1000.0, policy), soc.full(battery, power_w, 1000.0, policy)
    moved_wh = power_w * age_s / 3600
    if low.low < 0:
        left_wh = percent / 100 * capacity_wh - moved_wh + low.low * policy.follow_s / 3600
        assert left_wh >= reserve / 100 * capacity_wh - 1e-6 * capacity_wh
    if high.high > 0:
        filled_wh = percent / 100 * capacity_wh + moved_wh + high.high * policy.follow_s / 3600
        assert filled_wh <= capacity_wh * (1 + 1e-6)
