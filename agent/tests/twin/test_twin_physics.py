# SPDX-License-Identifier: Apache-2.0
"""What must hold for every EVSE, vehicle and battery, whatever is asked of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derms_agent.model import Circuit, Connection, Phase
from derms_agent.twin import network, physics
from derms_agent.twin.physics import (
    Outlet,
    OutletInputs,
    OutletState,
    Storage,
    StorageInputs,
    StorageState,
    VehicleType,
    duty_percent,
)

vehicles = st.builds(
    VehicleType,
    name=st.just("any"),
    capacity_wh=st.floats(5_000, 500_000),
    power_w=st.floats(2_000, 43_000),
    phases=st.sampled_from([1, 3]),
    dc_power_w=st.floats(10_000, 400_000),
    lag_s=st.floats(0.5, 12),
    efficiency=st.floats(0.7, 0.99),
)
outlets = st.builds(
    Outlet,
    conductors=st.sampled_from([1, 2, 3]),
    rating_a=st.floats(6, 200),
    voltage_v=st.sampled_from([230.0, 400.0]),
    cable_a=st.sampled_from([13.0, 20.0, 32.0, math.inf]),
    dc=st.booleans(),
)
limits = st.lists(st.tuples(st.floats(0, 80), st.integers(1, 40)), min_size=1, max_size=12)


@settings(max_examples=50, deadline=None)
@given(outlet=outlets, vehicle=vehicles, soc=st.floats(0, 1), asked=limits, dt_s=st.sampled_from([0.1, 0.25, 0.5, 1.0]))
def test_energy_pilot_and_charge_stay_within_bounds(
    outlet: Outlet, vehicle: VehicleType, soc: float, asked: list[tuple[float, int]], dt_s: float
) -> None:
    state = physics.plug_in(OutletState(), vehicle, soc, 20)
    at_s, changed_s = 0.0, -math.inf
    pilots = [(0.0, 0.0)]
    lag_s = physics.DC_LAG_S if outlet.dc else vehicle.lag_s
    for limit_a, seconds in asked:
        for _ in range(round(seconds / dt_s)):
            at_s += dt_s
            before, state = state, physics.step(outlet, state, OutletInputs(limit_a), dt_s)
            if state.pilot_a != before.pilot_a:
                assert outlet.dc or at_s - changed_s >= 5 - 1e-9
                changed_s = at_s
            pilots.append((at_s, state.pilot_a))
            # What the pilot said within the vehicle's lag, and one step of resolution, is all that it may draw.
            seen = [pilot for when, pilot in pilots if when >= at_s - lag_s - 2 * dt_s]
            assert state.current_a <= max(seen) + 1e-9
            assert state.current_a <= min(outlet.cable_a, outlet.rating_a) + 1e-9
            assert state.vehicle is not None
            assert 0 <= state.vehicle.soc <= 1
    assert state.vehicle is not None
    stored_wh = (state.vehicle.soc - soc) * vehicle.capacity_wh
    assert stored_wh <= state.energy_wh * vehicle.efficiency + 1e-6 * vehicle.capacity_wh
    assert stored_wh == pytest.approx(state.energy_wh * vehicle.efficiency, rel=1e-6, abs=1e-6 * vehicle.capacity_wh)


@settings(max_examples=40, deadline=None)
@given(vehicle=vehicles, limit_a=st.floats(6, 32), lower=st.one_of(st.just(0.0), st.floats(6, 32)))
def test_a_vehicle_follows_in_time_up_and_down(vehicle: VehicleType, limit_a: float, lower: float) -> None:
    """The hold of the pilot, the vehicle's lag, and two steps: after that nothing above the limit flows."""
    outlet = Outlet(conductors=3, rating_a=32, voltage_v=230)
    state = physics.plug_in(OutletState(), vehicle, 0.2, 20)
    for _ in range(200):
        state = physics.step(outlet, state, OutletInputs(limit_a), 0.25)
    assert state.current_a > 0
    patience_s = physics.PILOT_HOLD_S + vehicle.lag_s + 0.5
    for _ in range(math.ceil(patience_s / 0.25)):
        state = physics.step(outlet, state, OutletInputs(min(limit_a, lower)), 0.25)
    assert state.current_a <= min(limit_a, lower)


def test_a_current_below_the_minimum_pauses_within_eight_seconds() -> None:
    vehicle = VehicleType(name="slow", capacity_wh=60_000, power_w=11_000, lag_s=7)
    outlet = Outlet(conductors=3, rating_a=32, voltage_v=230)
    state = physics.plug_in(OutletState(), vehicle, 0.2, 20)
    for _ in range(60):
        state = physics.step(outlet, state, OutletInputs(16), 1)
    for _ in range(9):
        state = physics.step(outlet, state, OutletInputs(5.9), 1)
    assert (state.current_a, state.pilot_a) == (0, 0)


def test_a_battery_tapers_fills_and_warms() -> None:
    vehicle = VehicleType(name="van", capacity_wh=75_000, power_w=11_000, dc_power_w=110_000, lag_s=1)
    outlet = Outlet(conductors=3, rating_a=200, voltage_v=230, dc=True)
    state = physics.plug_in(OutletState(), vehicle, 0.5, 20)
    course = []
    for _ in range(7200):
        state = physics.step(outlet, state, OutletInputs(200), 1)
        assert state.vehicle is not None
        course.append((state.vehicle.soc, state.power_w, state.vehicle.temperature_c))
    constant = [power for soc, power, _ in course[5:] if soc < 0.79]
    assert max(constant) - min(constant) < 1
    tapering = [power for soc, power, _ in course if 0.82 < soc < 0.99]
    assert tapering == sorted(tapering, reverse=True)
    assert tapering[-1] < 0.1 * tapering[0]
    assert course[-1][0] >= 0.998
    assert course[-1][1] == 0
    assert 25 < max(warm for _, _, warm in course) < 45


def test_a_pilot_says_what_the_standard_says() -> None:
    """IEC 61851-1, Annex A: 10 % 6 A, 26.7 % 16 A, 53.3 % 32 A, 85 % 51 A, 96 % 80 A; 100 %: no charging."""
    found = {amperes: round(duty_percent(amperes), 1) for amperes in (0, 5.9, 6, 16, 32, 51, 80)}
    assert found == {0: 100, 5.9: 100, 6: 10, 16: 26.7, 32: 53.3, 51: 85, 80: 96}


@settings(max_examples=40, deadline=None)
@given(
    asked=st.lists(st.tuples(st.floats(-80_000, 80_000), st.floats(-80_000, 80_000), st.integers(1, 3600)), max_size=8),
    soc=st.floats(0, 1),
)
def test_a_storage_inverter_keeps_to_its_rating_and_its_battery(
    asked: list[tuple[float, float, int]], soc: float
) -> None:
    storage = Storage()
    state = StorageState(soc)
    for power_w, reactive_var, dt_s in asked:
        state = physics.step_storage(storage, state, StorageInputs(power_w, reactive_var), dt_s)
        assert math.hypot(state.power_w, state.reactive_var) <= storage.rating_va * (1 + 1e-9)
        assert 0 <= state.soc <= 1
    stored_wh = (state.soc - soc) * storage.capacity_wh
    expected_wh = state.absorbed_wh * storage.efficiency - state.injected_wh / storage.efficiency
    assert stored_wh == pytest.approx(expected_wh, abs=1e-3)


def circuit(name: str, connection: Connection, parent: str | None = None, voltage_v: float = 400) -> Circuit:
    return Circuit(name=name, parent=parent, connection=connection, voltage_v=voltage_v, rating_a=(100, 100, 100))


def test_wye_circuits_add_phase_by_phase_up_the_tree() -> None:
    tree = {
        "main": circuit("main", Connection.WYE),
        "feeder": circuit("feeder", Connection.WYE, "main"),
        "socket": circuit("socket", Connection.SINGLE_PHASE, "feeder", 230),
    }
    loads = {
        "main": network.load_currents(tree["main"], (Phase.L1, Phase.L2, Phase.L3), 10),
        "feeder": network.load_currents(tree["feeder"], (Phase.L2,), 16),
    }
    found = network.circuit_currents(tree, loads)
    assert [abs(current) for current in found["main"]] == pytest.approx([10, 26, 10])
    assert [abs(current) for current in found["feeder"]] == pytest.approx([0, 16, 0])


def test_delta_circuits_add_by_phasors() -> None:
    """10 A between L1 and L2 and 10 A between L2 and L3: 10, 17.32 and 10 A in the lines, not 10, 20 and 10."""
    tree = {"main": circuit("main", Connection.DELTA)}
    load = network.add(
        network.load_currents(tree["main"], (Phase.L1, Phase.L2), 10),
        network.load_currents(tree["main"], (Phase.L2, Phase.L3), 10),
    )
    found = network.circuit_currents(tree, {"main": load})["main"]
    assert [abs(current) for current in found] == pytest.approx([10, 10 * math.sqrt(3), 10])
    assert sum(network.powers(tree["main"], found)[0]) == pytest.approx(2 * 400 * 10)


def test_a_load_between_two_lines_is_one_element() -> None:
    main = circuit("main", Connection.DELTA)
    assert (network.elements(main, 2), network.load_voltage(main, 2)) == (1, 400)
    one = network.currents_of(main, (Phase.L2, Phase.L3), 1)
    assert one == network.load_currents(main, (Phase.L2, Phase.L3), 1.0)
    assert abs(sum(one)) == pytest.approx(0)
    assert [abs(current) for current in one] == pytest.approx([0, 1, 1])


def test_a_delta_wye_transformer_spreads_a_phase_over_two_lines() -> None:
    """A single wye phase of 30 A draws 30 / sqrt(3) A in two of the delta's lines, at the same voltage."""
    tree = {"main": circuit("main", Connection.DELTA_WYE)}
    found = network.circuit_currents(tree, {"main": network.load_currents(tree["main"], (Phase.L1,), 30)})["main"]
    assert sorted(abs(current) for current in found) == pytest.approx([0, 30 / math.sqrt(3), 30 / math.sqrt(3)])


def test_reactive_power_is_told_from_active() -> None:
    main = circuit("main", Connection.WYE)
    active, reactive = network.powers(main, network.power_currents(main, 9_000, -3_000))
    assert (sum(active), sum(reactive)) == pytest.approx((9_000, -3_000))
