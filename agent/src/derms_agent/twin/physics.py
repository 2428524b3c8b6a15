# SPDX-License-Identifier: Apache-2.0
"""How a depot moves: pilots, vehicles, batteries. Pure: a state, its inputs and a time span in, the next state out.

Units are A per conductor, V, W, var, Wh, degC and s; state of charge is a fraction; consumption is positive. Chance is
no part of it: whoever builds a vehicle draws its lag.

Sources: pilot and its timing, IEC 61851-1 (Annex A: duty cycle d from 10 to 85 % means 0.6 A per percent, above it
2.5 A per percent beyond 64); the 5 s between changes of a pilot and what slow vehicles take after it, EVerest issue
762.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

PILOT_HOLD_S = 5.0
MINIMUM_PILOT_A = 6.0
FROZEN_PILOT_A = 32.0
STOP_LAG_S = 3.0
"""A vehicle has 3 s to stop once the pilot no longer permits charging (IEC 61851-1, Annex A)."""

DC_LAG_S = 1.5
SHORTEST_LAG_S, LONGEST_LAG_S = 1.0, 7.0
"""After the pilot, so 6 to 12 s after a setpoint that a charger had to hold back for the whole `PILOT_HOLD_S`."""

_LINEAR_TO_A = 51.0
_FULL_SOC = 0.999
_HOT_FROM_C, _HOT_TO_C = 45.0, 55.0
_BATTERY_WH_PER_K = 0.00185  # of each Wh of capacity: 1 kJ/(kg K) at 150 Wh/kg
_BATTERY_COOLING_S = 7200.0
_HEAT_IN_BATTERY = 0.5  # of what charging loses; the rest stays in the charger on board or in the cabinet
_ENCLOSURE_RISE_K, _ENCLOSURE_COOLING_S = 20.0, 900.0
_SLEW_PER_S = 0.5  # of an inverter's rating
_SECONDS_PER_HOUR = 3600.0


def duty_percent(pilot_a: float) -> float:
    """Return the duty cycle that announces a current; 100: a steady pilot, which does not permit charging."""
    if pilot_a < MINIMUM_PILOT_A:
        return 100.0
    return pilot_a / 0.6 if pilot_a <= _LINEAR_TO_A else pilot_a / 2.5 + 64.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VehicleType:
    """What a vehicle is: `power_w` on AC over `phases`, `dc_power_w` on DC, and how long it takes to follow a pilot.

    `dc_power_w` also is what constant voltage tapers from: from `taper_soc` on, power falls in line with what is
    missing to full.
    """

    name: str
    capacity_wh: float
    power_w: float
    phases: int = 3
    dc_power_w: float = 90_000.0
    lag_s: float = 3.0
    efficiency: float = 0.92
    taper_soc: float = 0.8


class VehicleState(NamedTuple):
    """A vehicle plugged in. `pending` are pilots it has yet to follow, each with the seconds until it will."""

    soc: float
    temperature_c: float = 20.0
    allowed_a: float = 0.0
    pending: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlet:
    """What an EVSE is: its conductors, what its cable carries, the least it charges with; `dc`: without a pilot."""

    conductors: int
    rating_a: float
    voltage_v: float
    cable_a: float = math.inf
    minimum_a: float = MINIMUM_PILOT_A
    dc: bool = False


class OutletState(NamedTuple):
    """An EVSE at one moment. `current_a` flows in each of `conductors`; energies are counted on the AC side."""

    pilot_a: float = 0.0
    pilot_age_s: float = PILOT_HOLD_S
    current_a: float = 0.0
    conductors: int = 0
    power_w: float = 0.0
    energy_wh: float = 0.0
    session_wh: float = 0.0
    temperature_c: float = 20.0
    ended: bool = False
    vehicle_type: VehicleType | None = None
    vehicle: VehicleState | None = None


class OutletInputs(NamedTuple):
    """What acts on an EVSE: its limit, a pilot stuck in hardware, the air, and whether it has power at all."""

    limit_a: float
    frozen_pilot_a: float | None = None
    ambient_c: float = 20.0
    powered: bool = True


def plug_in(state: OutletState, vehicle_type: VehicleType, soc: float, temperature_c: float) -> OutletState:
    """Return the EVSE with a vehicle, which follows the pilot that stands there once its lag is over."""
    vehicle = VehicleState(soc, temperature_c, 0.0, ((vehicle_type.lag_s, state.pilot_a),))
    return state._replace(session_wh=0.0, ended=False, vehicle_type=vehicle_type, vehicle=vehicle)


def unplug(state: OutletState) -> OutletState:
    """Return the EVSE without a vehicle."""
    return state._replace(
        current_a=0.0, conductors=0, power_w=0.0, session_wh=0.0, ended=False, vehicle_type=None, vehicle=None
    )


def step(outlet: Outlet, state: OutletState, inputs: OutletInputs, dt_s: float) -> OutletState:
    """Move an EVSE and its vehicle on by `dt_s`."""
    if not inputs.powered:
        return _dark(state)
    pilot_a, age_s = _pilot(outlet, state, inputs, dt_s)
    before_a, _age_s, current_a, _cond, _power, energy_wh, session_wh, enclosure_c, ended, kind, vehicle = state
    ambient_c = inputs.ambient_c
    load = current_a / outlet.rating_a
    warmest_c = ambient_c + _ENCLOSURE_RISE_K * load * load
    temperature_c = _approach(enclosure_c, warmest_c, dt_s / _ENCLOSURE_COOLING_S)
    if kind is None or vehicle is None:
        if (pilot_a, age_s, temperature_c) == (before_a, state.pilot_age_s, enclosure_c):
            return state
        return state._replace(pilot_a=pilot_a, pilot_age_s=age_s, temperature_c=temperature_c)
    soc, battery_c, allowed_a, pending = vehicle
    if pending or pilot_a != before_a:
        allowed_a, pending = _follow(outlet, kind, vehicle, pilot_a if pilot_a != before_a else None, dt_s)
    conductors = outlet.conductors if outlet.dc else min(kind.phases, outlet.conductors)
    volts = outlet.voltage_v * conductors
    current_a = _wanted_a(outlet, kind, vehicle, allowed_a, volts)
    power_w = current_a * volts
    drawn_wh = power_w * dt_s / _SECONDS_PER_HOUR
    room_wh = (1.0 - soc) * kind.capacity_wh / kind.efficiency
    if drawn_wh > room_wh:
        current_a *= room_wh / drawn_wh
        power_w *= room_wh / drawn_wh
        drawn_wh = room_wh
    if drawn_wh:
        soc = min(soc + drawn_wh * kind.efficiency / kind.capacity_wh, 1.0)
    battery_c = _battery_c(kind, battery_c, power_w, ambient_c, dt_s)
    return OutletState(
        pilot_a,
        age_s,
        current_a,
        conductors,
        power_w,
        energy_wh + drawn_wh,
        session_wh + drawn_wh,
        temperature_c,
        ended,
        kind,
        VehicleState(soc, battery_c, allowed_a, pending),
    )


def _dark(state: OutletState) -> OutletState:
    """Return an EVSE without power: contactor open, no pilot, and a vehicle that waits for one."""
    vehicle = state.vehicle and state.vehicle._replace(allowed_a=0.0, pending=())
    return state._replace(
        pilot_a=0.0, pilot_age_s=PILOT_HOLD_S, current_a=0.0, conductors=0, power_w=0.0, vehicle=vehicle
    )


def _pilot(outlet: Outlet, state: OutletState, inputs: OutletInputs, dt_s: float) -> tuple[float, float]:
    """Return the pilot and its age: a new limit shows once the last change is `PILOT_HOLD_S` old (at once on DC)."""
    wanted = 0.0 if inputs.limit_a < outlet.minimum_a or state.ended else min(inputs.limit_a, outlet.rating_a)
    if inputs.frozen_pilot_a is not None:
        wanted = inputs.frozen_pilot_a
    age_s = min(state.pilot_age_s + dt_s, PILOT_HOLD_S)
    if wanted == state.pilot_a or (age_s < PILOT_HOLD_S and not outlet.dc):
        return state.pilot_a, age_s
    return wanted, 0.0


def _follow(
    outlet: Outlet, kind: VehicleType, vehicle: VehicleState, new_pilot_a: float | None, dt_s: float
) -> tuple[float, tuple[tuple[float, float], ...]]:
    """Let pilots come into force whose time is over; line a new one up behind them."""
    allowed_a = vehicle.allowed_a
    waiting = []
    for due_s, pilot_a in vehicle.pending:
        if due_s <= dt_s:
            allowed_a = pilot_a
        else:
            waiting.append((due_s - dt_s, pilot_a))
    if new_pilot_a is not None:
        lag_s = DC_LAG_S if outlet.dc else kind.lag_s
        waiting.append((lag_s if new_pilot_a >= outlet.minimum_a else min(lag_s, STOP_LAG_S), new_pilot_a))
        # A stop overtakes what still waits: nothing may come into force after it.
        waiting = [entry for entry in waiting if entry[0] <= waiting[-1][0]]
    return allowed_a, tuple(waiting)


def _wanted_a(outlet: Outlet, kind: VehicleType, vehicle: VehicleState, allowed_a: float, volts: float) -> float:
    if allowed_a < outlet.minimum_a or vehicle.soc >= _FULL_SOC:
        return 0.0
    constant_voltage_w = kind.dc_power_w * (1.0 - vehicle.soc) / (1.0 - kind.taper_soc)
    power_w = min(kind.dc_power_w if outlet.dc else kind.power_w, constant_voltage_w)
    if vehicle.temperature_c > _HOT_FROM_C:
        power_w *= max((_HOT_TO_C - vehicle.temperature_c) / (_HOT_TO_C - _HOT_FROM_C), 0.0)
    return min(allowed_a, outlet.cable_a, power_w / volts)


def _battery_c(kind: VehicleType, now_c: float, power_w: float, ambient_c: float, dt_s: float) -> float:
    heat_w = power_w * (1.0 - kind.efficiency) * _HEAT_IN_BATTERY
    wh_per_k = kind.capacity_wh * _BATTERY_WH_PER_K
    warmest_c = ambient_c + heat_w * _BATTERY_COOLING_S / _SECONDS_PER_HOUR / wh_per_k
    return _approach(now_c, warmest_c, dt_s / _BATTERY_COOLING_S)


def _approach(value: float, goal: float, spans: float) -> float:
    """Return an exponential approach after `spans` time constants; exact for any step."""
    return goal if value == goal else goal + (value - goal) * math.exp(-spans)


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """What a storage inverter is; its efficiency holds for either way."""

    rating_va: float = 50_000.0
    capacity_wh: float = 100_000.0
    efficiency: float = 0.96


class StorageState(NamedTuple):
    """A storage inverter at one moment; charging is positive, and so is reactive power that it takes up."""

    soc: float = 0.5
    power_w: float = 0.0
    reactive_var: float = 0.0
    absorbed_wh: float = 0.0
    injected_wh: float = 0.0
    temperature_c: float = 25.0


class StorageInputs(NamedTuple):
    """What a storage inverter is asked for."""

    power_w: float = 0.0
    reactive_var: float = 0.0
    ambient_c: float = 20.0


def step_storage(storage: Storage, state: StorageState, inputs: StorageInputs, dt_s: float) -> StorageState:
    """Move a storage inverter on: it slews to what is asked, within its rating and what its battery holds."""
    reach = _SLEW_PER_S * storage.rating_va * dt_s
    power_w = _towards(state.power_w, _bound(inputs.power_w, storage.rating_va), reach)
    hours = dt_s / _SECONDS_PER_HOUR
    room_w = (1.0 - state.soc) * storage.capacity_wh / storage.efficiency / hours
    held_w = state.soc * storage.capacity_wh * storage.efficiency / hours
    power_w = min(max(power_w, -held_w), room_w)
    stored_w = power_w * storage.efficiency if power_w >= 0 else power_w / storage.efficiency
    left_var = math.sqrt(max(storage.rating_va**2 - power_w**2, 0.0))
    reactive_var = _bound(_towards(state.reactive_var, inputs.reactive_var, reach), left_var)
    warmest_c = inputs.ambient_c + _ENCLOSURE_RISE_K * (math.hypot(power_w, reactive_var) / storage.rating_va) ** 2
    return StorageState(
        min(max(state.soc + stored_w * hours / storage.capacity_wh, 0.0), 1.0),
        power_w,
        reactive_var,
        state.absorbed_wh + max(power_w, 0.0) * hours,
        state.injected_wh + max(-power_w, 0.0) * hours,
        _approach(state.temperature_c, warmest_c, dt_s / _ENCLOSURE_COOLING_S),
    )


def _bound(value: float, most: float) -> float:
    return min(max(value, -most), most)


def _towards(value: float, goal: float, reach: float) -> float:
    return value + _bound(goal - value, reach)
