# SPDX-License-Identifier: Apache-2.0
"""From devices' readings to what control looks at: each EVSE's currents and limit, each meter's sample. Pure.

Devices show amperes of their own conductors; here they become those of the supply's lines that they are wired to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from derms_agent.control.cycle import EvseImage
from derms_agent.control.metering import Generated
from derms_agent.control.thermal import Temperature
from derms_agent.model import Device, Evse, PerPhase, Phase, Quality, Reading, Value, per_phase
from derms_agent.orchestrator.site import Site
from derms_agent.profiles.profile import Profile, Quantity

PHASES = tuple(Phase)
DC_EFFICIENCY = 0.90
"""The least of a DC charger's rectifiers where it shows what it gives to the vehicle: 0.92 to 0.96 in data sheets."""
_SQRT3 = math.sqrt(3)
_Of: TypeAlias = "Callable[[str], Value | None]"
"""The values of one EVSE by the points' names."""
_CURRENTS = ("current_l1", "current_l2", "current_l3")
_POWERS = ("active_power_l1", "active_power_l2", "active_power_l3")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterSample:
    """One answer of a meter: A of each line, W of each phase and var of all where it has them; sampled in between.

    `current_a` is None where what flows is not known; the rest counts all the same.
    """

    circuit: str
    asked_s: float
    answered_s: float
    current_a: PerPhase | None
    active_w: PerPhase | None
    reactive_var: float | None
    frequency_hz: float | None
    voltage_share: float | None
    import_wh: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvseReading:
    """What one EVSE shows beside its image: W, Wh, percent, degC; None where it does not.

    `occupied`: a vehicle is there, or stationary storage, which always is. `free`: it shows that no limit of ours is in
    force, whatever its limit's point holds.
    """

    image: EvseImage
    occupied: bool
    power_w: float | None
    energy_wh: float | None
    soc_percent: float | None
    temperature: Temperature | None
    state: str | None
    free: bool = False


def evse_readings(site: Site, device: Device, reading: Reading) -> dict[str, EvseReading]:
    """Return what a device's reading says of each of its EVSEs; nothing where nothing was ever read."""
    if reading.answered_at_s == -math.inf:
        return {}
    profile = site.profiles[device.name]
    return {evse.name: _evse_reading(site, device, profile, evse, reading) for evse in device.evses}


def _evse_reading(site: Site, device: Device, profile: Profile, evse: Evse, reading: Reading) -> EvseReading:
    own = evse.name.removeprefix(device.name)

    def value(name: str) -> Value | None:
        found = reading.values.get(name + own) if own else None
        return reading.values.get(name) if found is None else found

    power_w = _number(value("active_power"))
    celsius = _number(value("temperature"))
    state = value("state")
    limit_a = _limit_a(site, profile, evse, value)
    return EvseReading(
        image=EvseImage(
            sent_s=reading.asked_at_s,
            answered_s=reading.answered_at_s,
            quality=reading.quality,
            current_a=_currents(site, evse, [_number(value(name)) for name in _CURRENTS], power_w, limit_a),
            limit_a=limit_a,
        ),
        occupied=_occupied(profile, value),
        power_w=power_w,
        energy_wh=_number(value("energy")),
        soc_percent=_number(value("soc")),
        temperature=None if celsius is None else Temperature(celsius, reading.asked_at_s),
        state=None if state is None else str(state),
        free=_free(profile, value),
    )


def _currents(
    site: Site, evse: Evse, shown: list[float | None], power_w: float | None, limit_a: float | None
) -> PerPhase | None:
    """Return what flows on the supply's lines; from the power, less favourably, where no current is shown.

    How much is lost on the way to the vehicle is not known. Where all that it shows may come from what its limit lets
    it draw or give, it does no more: a good rectifier at its limit would be taken for one that exceeds it. Of a current
    that is shown the least is active that may be: the rest is counted with what the device is told in W.
    Of what may give back only the power says which way it flows; its reactive current is no part of what it is told.
    Stationary storage shows the power of its AC side, and so does what shows currents; of all else it is the vehicle's.
    """
    phases = evse.phases or PHASES
    shown = [None if current is None else evse.power_factor * current for current in shown]
    if evse.stationary or (evse.lowest_a < 0 and shown[0] is not None):
        if power_w is None:
            return None
        shown = [power_w / _watts_per_a(site, evse)] * len(phases)
    elif shown[0] is None:
        if power_w is None:
            return None
        each = power_w / _watts_per_a(site, evse)
        # What is lost is drawn from the supply on top, and is missing there from what is given back.
        least, most = (each, each / DC_EFFICIENCY) if each > 0 else (each * DC_EFFICIENCY, each)
        held = limit_a is not None and limit_a * each > 0 and abs(least) <= abs(limit_a) < abs(most)
        each = limit_a if held and limit_a is not None else most
        shown = [each] * len(phases)
    if not evse.phases:
        most = max((current for current in shown if current is not None), key=abs)
        return (most, most, most)
    lines = [0.0, 0.0, 0.0]
    for phase, current in zip(phases, shown, strict=False):
        lines[PHASES.index(phase)] = 0.0 if current is None else current
    return (lines[0], lines[1], lines[2])


def _limit_a(site: Site, profile: Profile, evse: Evse, value: _Of) -> float | None:
    """Return the limit that a device shows, in A per conductor; a switch that is off is a limit of 0."""
    control = profile.control
    if control is None or _free(profile, value):
        return None
    if control.switch is not None and value(control.switch.point) == control.switch.off:
        return 0.0
    shown = _number(value(control.point))
    if shown is None or control.quantity is Quantity.CURRENT:
        return shown
    return shown / _watts_per_a(site, evse)


def _watts_per_a(site: Site, evse: Evse) -> float:
    volts, phases = site.voltage_v(evse), len(evse.phases or PHASES)
    return volts if phases == 1 else volts * phases / _SQRT3


def _free(profile: Profile, value: _Of) -> bool:
    """Return whether a device shows that it does as it likes: what puts a limit in force does not hold."""
    in_force = {} if profile.control is None else profile.control.in_force
    return any(value(point) not in {None, held} for point, held in in_force.items())


def _occupied(profile: Profile, value: _Of) -> bool:
    occupancy = profile.occupancy
    return occupancy is None or value(occupancy.point) not in occupancy.free


def meter_sample(site: Site, circuit: str, reading: Reading) -> MeterSample | None:
    """Return what a meter's reading says of its circuit, or None where it is no good one, or says nothing.

    A value that is missing is none, not 0: where one of a line that the circuit has is not there, the device may have
    refused it, or said that it has none, and what flows is not known. A meter need have no power per phase at all.
    What it has counted, and the grid's frequency and voltage, do not depend on that.
    """
    if reading.quality is not Quality.GOOD:
        return None
    values = reading.values
    currents = [_number(values.get(name)) for name in _CURRENTS]
    powers = [_number(values.get(name)) for name in _POWERS]
    at = site.depot.circuits[circuit]
    lines = [line for line, rating_a in enumerate(at.rating_a) if rating_a > 0]
    lacking = [powers[line] is None for line in lines]
    known = all(currents[line] is not None for line in lines) and (all(lacking) or not any(lacking))
    nominal_v = at.neutral_voltage_v
    voltage_v = _number(values.get("voltage_l1"))
    frequency_hz, import_wh = _number(values.get("frequency")), _number(values.get("energy"))
    if not known and voltage_v is frequency_hz is import_wh is None:
        return None
    active_w = None if all(lacking) else per_phase(0.0 if power is None else power for power in powers)
    return MeterSample(
        circuit=circuit,
        asked_s=reading.asked_at_s,
        answered_s=reading.answered_at_s,
        current_a=per_phase(0.0 if current is None else abs(current) for current in currents) if known else None,
        active_w=active_w if known else None,
        reactive_var=_number(values.get("reactive_power")) if known else None,
        frequency_hz=frequency_hz,
        voltage_share=None if voltage_v is None else voltage_v / nominal_v,
        import_wh=import_wh,
    )


def generated(site: Site, circuit: str, reading: Reading) -> Generated | None:
    """Return what the reading of a generator's meter says of it, in A of its circuit's lines; None: it is not known.

    Which way the meter counts does not matter, for it is taken by magnitude. Where it shows no current of a line, all
    of its power may be on that one.
    """
    if reading.quality is not Quality.GOOD:
        return None
    values = reading.values
    at = site.depot.circuits[circuit]
    volts = at.neutral_voltage_v
    power_w, reactive_var = _number(values.get("active_power")), _number(values.get("reactive_power"))
    current_a, reactive_a = [0.0] * 3, [0.0] * 3
    for line, name in enumerate(_CURRENTS):
        if at.rating_a[line] <= 0:
            continue
        shown = _number(values.get(name))
        if shown is None:
            if power_w is None or reactive_var is None:
                return None
            shown = math.hypot(power_w, reactive_var) / volts
        current_a[line] = reactive_a[line] = abs(shown)
        own_w = _number(values.get(_POWERS[line]))
        if own_w is not None:
            reactive_a[line] = math.sqrt(max(shown * shown - (own_w / volts) ** 2, 0.0))
        elif reactive_var is not None:
            reactive_a[line] = min(abs(shown), abs(reactive_var) / volts)
    return Generated(
        asked_s=reading.asked_at_s,
        answered_s=reading.answered_at_s,
        current_a=per_phase(current_a),
        reactive_a=per_phase(reactive_a),
        reactive_var=sum(reactive_a) * volts if reactive_var is None else abs(reactive_var),
    )


def _number(value: Value | None) -> float | None:
    if value is None or isinstance(value, str | bool) or not math.isfinite(value):
        return None
    return float(value)
