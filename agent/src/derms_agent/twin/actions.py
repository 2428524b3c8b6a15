# SPDX-License-Identifier: Apache-2.0
"""What can be done to a running twin, and how it is said: one mapping each, in a scenario file and on the socket alike.

{fault: slow, on: charger-003, ms: 300, for_s: 60}
{clear: charger-003}
{plug_in: charger-001, soc_percent: 30, vehicle: van-7}
{unplug: charger-001}
{charge: icu, soc_percent: 40}
{frequency_hz: [[0, 50.0], [5, 49.8]]}
{base_load: main, a: [40, 40, 35]}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from derms_agent.depot.document import Data
from derms_agent.depot.problem import Path, Problem, nearest
from derms_agent.model import Depot, DeviceKind, PerPhase
from derms_agent.twin.faults import LARGEST_CODE, Fault, FaultKind, targets
from derms_agent.twin.physics import VehicleType

ALL = "all"
_SOMETIME_S = 1e9
_PHASES = 3
_KILO = 1000.0
_PERCENT = 100.0


@dataclass(frozen=True, slots=True)
class SetFault:
    """A device or a bus gets a fault; one of the same kind is replaced."""

    on: str
    fault: Fault


@dataclass(frozen=True, slots=True)
class Clear:
    """A device or a bus, or `all` of them, loses its faults."""

    on: str


@dataclass(frozen=True, slots=True)
class PlugIn:
    """A vehicle is plugged in. `soc` is a fraction."""

    evse: str
    vehicle: VehicleType
    soc: float


@dataclass(frozen=True, slots=True)
class Unplug:
    """An EVSE's vehicle leaves."""

    evse: str


@dataclass(frozen=True, slots=True)
class SetCharge:
    """An inverter's battery has another charge, `soc` as a fraction."""

    on: str
    soc: float


@dataclass(frozen=True, slots=True)
class SetFrequency:
    """The grid's frequency (Hz) follows these corners: seconds from now on, and the value; straight lines between."""

    trace: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class SetBaseLoad:
    """A circuit's base load, in A for each of L1, L2 and L3."""

    circuit: str
    amperes: PerPhase


Action: TypeAlias = "SetFault | Clear | PlugIn | Unplug | SetCharge | SetFrequency | SetBaseLoad"


class Reader:
    """Turns plain data into actions on one depot and collects every problem on the way."""

    def __init__(self, depot: Depot) -> None:
        self.depot = depot
        self.problems: list[Problem] = []
        self._verbs: dict[str, Callable[[Path, dict[str, Data]], Action | None]] = {
            "fault": self._fault,
            "clear": self._clear,
            "plug_in": self._plug_in,
            "unplug": self._unplug,
            "charge": self._charge,
            "frequency_hz": self._frequency,
            "base_load": self._base_load,
        }

    def action(self, path: Path, value: Data, beside: tuple[str, ...] = ()) -> Action | None:
        """Return the action that a mapping stands for; None: there is a problem with it. `beside`: keys of others."""
        if not isinstance(value, dict):
            self._report(path, value, "a mapping with one of " + ", ".join(self._verbs))
            return None
        verbs = [verb for verb in self._verbs if verb in value]
        if len(verbs) != 1:
            unknown = next((key for key in value if key not in beside), None)
            if not verbs and unknown is not None:
                self._report((*path, unknown), unknown, "one of " + ", ".join(self._verbs), self._verbs, at_key=True)
            else:
                found = " and ".join(verbs) or "nothing to do"
                self.problems.append(Problem(path, found, "exactly one of " + ", ".join(self._verbs), at_key=True))
            return None
        before = len(self.problems)
        fields = {key: inner for key, inner in value.items() if key not in beside}
        action = self._verbs[verbs[0]](path, fields)
        return action if len(self.problems) == before else None

    def number(self, path: Path, value: Data, low: float, high: float) -> float:
        """Return a number within bounds; a problem where it is none."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self._report(path, value, f"a number from {low:g} to {high:g}")
            return low
        return float(value)

    def name(self, path: Path, value: Data, names: Mapping[str, object] | tuple[str, ...], what: str) -> str:
        """Return one of these names; a problem where it is none."""
        if not isinstance(value, str) or value not in names:
            self._report(path, value, what, names)
            return ""
        return value

    def keys(self, path: Path, fields: Mapping[str, Data], allowed: tuple[str, ...]) -> None:
        """Report every key that does not belong."""
        for key in fields:
            if key not in allowed:
                self._report((*path, key), key, "one of " + ", ".join(allowed), allowed, at_key=True)

    def _report(
        self,
        path: Path,
        found: Data,
        expected: str,
        names: Mapping[str, object] | tuple[str, ...] = (),
        *,
        at_key: bool = False,
    ) -> None:
        close = nearest(found, names) if isinstance(found, str) else None
        self.problems.append(Problem(path, "nothing" if found is None else repr(found), expected, close, at_key=at_key))

    def _fault(self, path: Path, fields: dict[str, Data]) -> Action:
        self.keys(path, fields, ("fault", "on", "ms", "code", "for_s"))
        kinds = tuple(kind.value for kind in FaultKind)
        kind = self.name((*path, "fault"), fields["fault"], kinds, "one of " + ", ".join(kinds)) or FaultKind.SILENT
        fault = Fault(kind=FaultKind(kind))
        on = self.name(
            (*path, "on"), fields.get("on"), targets(self.depot, fault.kind), f"a device or bus that can be {kind}"
        )
        if fields.get("ms") is not None:
            fault = replace(fault, ms=self.number((*path, "ms"), fields["ms"], 0, 600_000))
        if fields.get("code") is not None:
            fault = replace(fault, code=int(self.number((*path, "code"), fields["code"], 1, LARGEST_CODE)))
        if fields.get("for_s") is not None:
            fault = replace(fault, for_s=self.number((*path, "for_s"), fields["for_s"], 0, _SOMETIME_S))
        return SetFault(on, fault)

    def _clear(self, path: Path, fields: dict[str, Data]) -> Action:
        self.keys(path, fields, ("clear",))
        names = (ALL, *self.depot.devices, *self.depot.buses)
        return Clear(self.name((*path, "clear"), fields["clear"], names, f"a device, a bus, or {ALL}"))

    def _plug_in(self, path: Path, fields: dict[str, Data]) -> Action:
        self.keys(
            path,
            fields,
            ("plug_in", "vehicle", "soc_percent", "capacity_kwh", "power_kw", "dc_power_kw", "phases", "lag_s"),
        )
        evse = self._evse((*path, "plug_in"), fields["plug_in"])
        vehicle = VehicleType(name="visitor", capacity_wh=60_000, power_w=11_000)
        if fields.get("vehicle") is not None:
            known = self.depot.vehicles
            name = self.name((*path, "vehicle"), fields["vehicle"], known, "a vehicle of the depot")
            if name:
                vehicle = vehicle_type(self.depot, name)

        def number(key: str, otherwise: float, low: float, high: float) -> float:
            return otherwise if fields.get(key) is None else self.number((*path, key), fields[key], low, high)

        vehicle = replace(
            vehicle,
            capacity_wh=number("capacity_kwh", vehicle.capacity_wh / _KILO, 1, 2000) * _KILO,
            power_w=number("power_kw", vehicle.power_w / _KILO, 1, 100) * _KILO,
            dc_power_w=number("dc_power_kw", vehicle.dc_power_w / _KILO, 1, 4000) * _KILO,
            lag_s=number("lag_s", vehicle.lag_s, 0, 60),
            phases=int(number("phases", vehicle.phases, 1, _PHASES)),
        )
        return PlugIn(evse, vehicle, number("soc_percent", 30, 0, 100) / _PERCENT)

    def _unplug(self, path: Path, fields: dict[str, Data]) -> Action:
        self.keys(path, fields, ("unplug",))
        return Unplug(self._evse((*path, "unplug"), fields["unplug"]))

    def _charge(self, path: Path, fields: dict[str, Data]) -> Action:
        self.keys(path, fields, ("charge", "soc_percent"))
        inverters = tuple(name for name, device in self.depot.devices.items() if device.kind is DeviceKind.INVERTER)
        on = self.name((*path, "charge"), fields["charge"], inverters, "an inverter of the depot")
        return SetCharge(on, self.number((*path, "soc_percent"), fields.get("soc_percent"), 0, 100) / _PERCENT)

    def _evse(self, path: Path, value: Data) -> str:
        return self.name(path, value, tuple(evse.name for evse in self.depot.places()), "an EVSE of the depot")

    def _frequency(self, path: Path, fields: dict[str, Data]) -> Action:
        self.keys(path, fields, ("frequency_hz",))
        value = fields["frequency_hz"]
        here = (*path, "frequency_hz")
        if not isinstance(value, list):
            return SetFrequency(((0.0, self._hertz(here, value)),))
        trace: list[tuple[float, float]] = []
        earliest = 0.0
        for index, corner in enumerate(value):
            at = (*here, str(index))
            if not isinstance(corner, list) or len(corner) != len(("seconds", "hertz")):
                self._report(at, corner if isinstance(corner, str) else None, "[seconds from now, Hz]")
                continue
            earliest = self.number((*at, "0"), corner[0], earliest, _SOMETIME_S)
            trace.append((earliest, self._hertz((*at, "1"), corner[1])))
        if not trace:
            self._report(here, None, "at least one [seconds from now, Hz]")
        return SetFrequency(tuple(trace))

    def _hertz(self, path: Path, value: Data) -> float:
        return self.number(path, value, 40, 70)

    def _base_load(self, path: Path, fields: dict[str, Data]) -> Action:
        self.keys(path, fields, ("base_load", "a"))
        circuit = self.name((*path, "base_load"), fields["base_load"], self.depot.circuits, "a circuit of the depot")
        value = fields.get("a")
        here = (*path, "a")
        if not isinstance(value, list) or len(value) != _PHASES:
            self._report(here, None, "three currents in A, for L1, L2 and L3")
            return SetBaseLoad(circuit, (0.0, 0.0, 0.0))
        l1, l2, l3 = (self.number((*here, str(i)), value[i], 0, 100_000) for i in range(_PHASES))
        return SetBaseLoad(circuit, (l1, l2, l3))


def vehicle_type(depot: Depot, name: str) -> VehicleType:
    """Return one of the depot's vehicles as the twin simulates it."""
    vehicle = depot.vehicles[name]
    return VehicleType(name=name, capacity_wh=vehicle.capacity_wh, power_w=vehicle.power_w, phases=vehicle.phases)
