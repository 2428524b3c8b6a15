# SPDX-License-Identifier: Apache-2.0
"""A whole depot in one process under virtual time: devices, vehicles, circuits, meters, and what goes wrong.

Nothing here knows of sockets or of a clock: `advance` moves time, and the same seed and scenario always give the same
course. `derms_agent.twin.server` puts it on the network in real time.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TypeAlias

from derms_agent import profiles as built_in
from derms_agent.model import Circuit, Depot, Device, DeviceKind, Evse, Measures, PerPhase
from derms_agent.profiles.point import Table
from derms_agent.profiles.profile import Profile, Protocol, Quantity
from derms_agent.twin import network, pdu, physics
from derms_agent.twin.actions import (
    ALL,
    Action,
    Clear,
    PlugIn,
    SetBaseLoad,
    SetCharge,
    SetFault,
    SetFrequency,
    Unplug,
)
from derms_agent.twin.arrivals import Visit, homes, visits
from derms_agent.twin.charger import Charger
from derms_agent.twin.curves import ADOPTION_FAULTS
from derms_agent.twin.faults import DEFAULT_BOOT_S, Fault, FaultKind, targets
from derms_agent.twin.meter import Reading, RegisterMeter, SunSpecMeter
from derms_agent.twin.network import Phasors
from derms_agent.twin.physics import Outlet, Storage
from derms_agent.twin.scenario import Arrivals, Scenario, Settings
from derms_agent.twin.storage import StorageInverter
from derms_agent.twin.unit import Unit

STEP_S = 1.0
NOMINAL_HZ = 50.0
WRITES_KEPT = 100_000
_READ_FUNCTIONS = {table: function for function, table in reversed(pdu.READ_TABLES.items())}
_NO_FAULTS: Mapping[FaultKind, Fault] = MappingProxyType({})
_UNKNOWN_OUTLET = Outlet(conductors=3, rating_a=16.0, voltage_v=230.0)

Meter: TypeAlias = "RegisterMeter | SunSpecMeter"


@dataclass(frozen=True, slots=True)
class Write:
    """A write that reached a device, be it executed or not. `at_s` counts from the twin's start."""

    at_s: float
    bus: str
    unit: int
    table: Table
    address: int
    words: tuple[int, ...]
    function: int
    executed: bool


class Silence(Exception):
    """No answer would come."""


class Rehearsal:
    """A depot in motion.

    `seed` decides who comes and how vehicles react. `profiles` adds to, or replaces, the built-in ones. `step_s` is the
    longest step of the physics. `writes` records every write that arrives, the last `WRITES_KEPT` of them.
    """

    def __init__(
        self,
        depot: Depot,
        seed: int = 0,
        *,
        scenario: Scenario | None = None,
        profiles: Mapping[str, Profile] | None = None,
        step_s: float = STEP_S,
        ambient_c: float = 20.0,
    ) -> None:
        self.depot = depot
        self.writes: deque[Write] = deque(maxlen=WRITES_KEPT)
        self.write_count = 0
        self.chargers: dict[str, Charger] = {}
        self.inverters: dict[str, StorageInverter] = {}
        self.meters: dict[str, Meter] = {}
        self.currents: dict[str, Phasors] = {}
        self._scenario = scenario or Scenario()
        self._profiles = dict(profiles or {})
        self._step_s = step_s
        self._ambient_c = ambient_c
        self._moved_to_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._faults: dict[str, dict[FaultKind, Fault]] = {}
        self._frequency: tuple[tuple[float, float], ...] = ((0.0, NOMINAL_HZ),)
        share = self._scenario.base_load_share
        self._base_load: dict[str, Phasors] = {
            name: _in_phase((c.base_load_a[0] * share, c.base_load_a[1] * share, c.base_load_a[2] * share))
            for name, c in depot.circuits.items()
        }
        self._measures = {meter.device: meter.measures for meter in depot.meters.values()}
        self._hangs_on: dict[str, Circuit] = {}
        self.units: dict[tuple[str, int], Unit] = {}
        for device in depot.devices.values():
            self.units[device.bus, device.unit_id] = self._unit(device)
        self._evses = {evse.name: evse for evse in depot.places()}
        self._outlets = {evse.name: (self.chargers[evse.device], evse.connector) for evse in depot.places()}
        self._per_ampere: dict[tuple[str, int], Phasors] = {
            (evse.name, loaded): network.currents_of(depot.circuits[evse.circuit], evse.phases, loaded)
            for evse in depot.places()
            for loaded in range(len(evse.phases) + 1)
        }
        self._tree = network.Tree(depot.circuits)
        self._schedule_all(seed)
        self._measure(0.0, self.frequency_hz)

    @property
    def now_s(self) -> float:
        """The time, in s from the start."""
        return self._moved_to_s

    @property
    def moved_to_s(self) -> float:
        """The time that all states are of, in s from the start: in real time, up to a tick before now."""
        return self._moved_to_s

    @property
    def frequency_hz(self) -> float:
        """The grid's frequency now."""
        return _interpolated(self._frequency, self._moved_to_s)

    def advance(self, seconds: float) -> None:
        """Move time on."""
        until_s = self._moved_to_s + seconds
        self._run_events()
        while self._moved_to_s < until_s:
            next_s = min(until_s, self._moved_to_s + self._step_s)
            if self._events:
                next_s = min(next_s, self._events[0][0])
            dt_s = next_s - self._moved_to_s
            self._moved_to_s = next_s
            self._move(dt_s)
            self._run_events()

    def read(self, bus: str, unit_id: int, table: Table, address: int, count: int) -> tuple[int, ...]:
        """Read registers (bits) as over the bus, in no time. Raises `Refusal`, `Silence`."""
        return self._perform(bus, unit_id, pdu.ReadRequest(_READ_FUNCTIONS[table], table, address, count))

    def write(
        self,
        bus: str,
        unit_id: int,
        table: Table,
        address: int,
        values: tuple[int, ...],
        *,
        function: int | None = None,
    ) -> None:
        """Write registers (bits) as over the bus, in no time. Raises `Refusal`, `Silence`."""
        if function is None:
            single, several = (6, 16) if table is Table.HOLDING else (5, 15)
            function = single if len(values) == 1 else several
        self._perform(bus, unit_id, pdu.WriteRequest(function, table, address, values))

    def answer(self, bus: str, unit_id: int, request: bytes) -> bytes | None:
        """Return the reply to a request's PDU; None: there is none."""
        try:
            parsed = pdu.parse(request)
            values = self._perform(bus, unit_id, parsed)
        except pdu.Refusal as refusal:
            known = (bus, unit_id) in self.units
            return pdu.exception_reply(request[0], refusal.code) if known else None
        except Silence:
            return None
        if isinstance(parsed, pdu.WriteRequest):
            return pdu.write_reply(request)
        if FaultKind.SHORT_REPLY in self.faults_of(bus, unit_id):
            values = values[: (len(values) + 1) // 2]
        return pdu.read_reply(parsed, values)

    def faults_of(self, bus: str, unit_id: int) -> Mapping[FaultKind, Fault]:
        """Return the faults in force for a unit: its bus's and its own."""
        if not self._faults:
            return _NO_FAULTS
        unit = self.units.get((bus, unit_id))
        own = {} if unit is None else self._faults.get(unit.device.name, {})
        return {**self._faults.get(bus, {}), **own}

    def faults(self) -> dict[str, tuple[Fault, ...]]:
        """Return all faults in force, by device or bus."""
        return {on: tuple(kinds.values()) for on, kinds in self._faults.items()}

    def do(self, action: Action) -> None:
        """Do what a scenario, or somebody at the socket, asks for."""
        match action:
            case SetFault(on, fault):
                self.fault(on, fault)
            case Clear(on):
                self.clear(None if on == ALL else on)
            case PlugIn(evse, vehicle, soc):
                self.plug_in(evse, vehicle, soc)
            case Unplug(evse):
                self.unplug(evse)
            case SetCharge(on, soc):
                self.inverters[on].state = self.inverters[on].state._replace(soc=soc)
            case SetFrequency(trace):
                now_s = self._moved_to_s
                self._frequency = ((now_s, self.frequency_hz), *((now_s + at_s, hertz) for at_s, hertz in trace))
            case SetBaseLoad(circuit, amperes):
                self._base_load[circuit] = _in_phase(amperes)

    def fault(self, on: str, fault: Fault) -> None:
        """Give a device or a bus a fault. Raises ValueError where it cannot have it."""
        if on not in targets(self.depot, fault.kind):
            raise ValueError(f"found {on}, expected a device or bus that can have the fault {fault.kind.value}")
        self._faults.setdefault(on, {})[fault.kind] = fault
        self._show_fault(on, fault.kind, present=True)
        lasts_s = DEFAULT_BOOT_S if fault.kind is FaultKind.REBOOT and fault.for_s is None else fault.for_s
        if lasts_s is not None:
            self._at(self.now_s + lasts_s, partial(self._end_fault, on, fault))

    def clear(self, on: str | None = None) -> None:
        """End the faults of a device or a bus; of all without a name."""
        for name in [on] if on is not None else list(self._faults):
            for fault in list(self._faults.get(name, {}).values()):
                self._end_fault(name, fault)

    def plug_in(self, evse: str, vehicle: physics.VehicleType, soc: float) -> None:
        """Plug a vehicle in, in the place of one that is there. `soc` is a fraction."""
        charger, connector = self._outlets[evse]
        charger.states[connector] = physics.plug_in(
            physics.unplug(charger.states[connector]), vehicle, soc, self._ambient_c
        )

    def unplug(self, evse: str) -> None:
        """Let an EVSE's vehicle leave."""
        charger, connector = self._outlets[evse]
        charger.states[connector] = physics.unplug(charger.states[connector])

    def outlet(self, evse: str) -> physics.OutletState:
        """Return an EVSE's physical state."""
        charger, connector = self._outlets[evse]
        return charger.states[connector]

    def outlet_of(self, evse: str) -> Outlet:
        """Return what an EVSE physically is."""
        charger, connector = self._outlets[evse]
        return charger.outlets[connector]

    def limit_a(self, evse: str) -> float:
        """Return the limit that an EVSE's charger has in force, in A per conductor."""
        charger, connector = self._outlets[evse]
        return charger.limit_a(connector)

    def _unit(self, device: Device) -> Unit:
        profile = self._profiles.get(device.profile)
        if profile is None:
            profile = self._profiles[device.profile] = built_in.load(device.profile)
        if profile.kind is DeviceKind.METER:
            kind = SunSpecMeter if profile.protocol is Protocol.SUNSPEC else RegisterMeter
            circuit = self._hangs_on[device.name] = self._metered(device)
            meter = self.meters[device.name] = kind(device, profile, circuit)
            return meter
        settings = device.settings if self._scenario.settings is Settings.DECLARED else {}
        if profile.protocol is Protocol.SUNSPEC:
            circuit = self._hangs_on[device.name] = self._circuit(device)
            inverter = StorageInverter(device, profile, settings, circuit.voltage_v, _storage(device, circuit))
            self.inverters[device.name] = inverter
            return inverter
        outlets = {evse.connector: self._build_outlet(evse, profile) for evse in device.evses} or {1: _UNKNOWN_OUTLET}
        charger = Charger(device, profile, outlets, settings)
        self.chargers[device.name] = charger
        return charger

    def _build_outlet(self, evse: Evse, profile: Profile) -> Outlet:
        control = profile.control
        circuit = self.depot.circuits[evse.circuit]
        conductors = network.elements(circuit, len(evse.phases))
        volts = network.load_voltage(circuit, len(evse.phases))
        direct = control is not None and control.quantity is Quantity.POWER
        minimum = physics.MINIMUM_PILOT_A if control is None else control.minimum
        return Outlet(
            conductors=conductors,
            rating_a=evse.rating_a,
            voltage_v=volts,
            cable_a=float("inf") if evse.cable_a is None else evse.cable_a,
            minimum_a=minimum / (volts * conductors) if direct else max(minimum, physics.MINIMUM_PILOT_A),
            dc=direct,
        )

    def _circuit(self, device: Device) -> Circuit:
        """Return the circuit that a device hangs on; the first root where it says none."""
        if device.circuit is not None:
            return self.depot.circuits[device.circuit]
        return next(circuit for circuit in self.depot.circuits.values() if circuit.parent is None)

    def _metered(self, device: Device) -> Circuit:
        meter = next((meter for meter in self.depot.meters.values() if meter.device == device.name), None)
        return self._circuit(device) if meter is None else self.depot.circuits[meter.circuit]

    def _at(self, at_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), what))

    def _run_events(self) -> None:
        while self._events and self._events[0][0] <= self._moved_to_s:
            heapq.heappop(self._events)[2]()

    def _schedule_all(self, seed: int) -> None:
        for event in self._scenario.events:
            self._at(event.at_s, partial(self.do, event.action))
        if self._scenario.arrivals is Arrivals.DEFAULT:
            own = homes(self.depot)
            for evse in self._evses:
                self._expect(evse, visits(evse, own.get(evse), seed).__next__)

    def _expect(self, evse: str, next_visit: Callable[[], Visit]) -> None:
        """Let the next vehicle come and go, and then expect the one after it."""
        visit = next_visit()
        self._at(visit.arrives_s, partial(self.plug_in, evse, visit.vehicle, visit.soc))

        def leave() -> None:
            self.unplug(evse)
            self._expect(evse, next_visit)

        self._at(visit.leaves_s, leave)

    def _move(self, dt_s: float) -> None:
        """Move everything on by `dt_s`, to now."""
        now_s, hertz = self._moved_to_s, self.frequency_hz
        for charger in self.chargers.values():
            charger.frequency_hz = hertz
            charger.step(now_s, dt_s, self._ambient_c)
        for inverter in self.inverters.values():
            inverter.frequency_hz = hertz
            inverter.step(now_s, dt_s, self._ambient_c)
        self._measure(dt_s, hertz)

    def _measure(self, dt_s: float, hertz: float) -> None:
        """Add up what flows, and let the meters see it."""
        generated: dict[str, Phasors] = {}
        for name, inverter in self.inverters.items():
            circuit = self._hangs_on[name]
            flow = network.power_currents(circuit, inverter.state.power_w, inverter.state.reactive_var)
            generated[circuit.name] = network.add(generated.get(circuit.name, network.NONE), flow)
        loads = dict(self._base_load)
        for name, flow in generated.items():
            loads[name] = network.add(loads[name], flow)
        for evse in self._evses.values():
            charger, connector = self._outlets[evse.name]
            state = charger.states[connector]
            amperes = state.current_a
            if amperes:
                a, b, c = self._per_ampere[evse.name, state.conductors]
                x, y, z = loads[evse.circuit]
                loads[evse.circuit] = (x + a * amperes, y + b * amperes, z + c * amperes)
        self.currents = self._tree.currents(loads)
        for name, unit in self.meters.items():
            circuit_name, measures = self._hangs_on[name].name, self._measures.get(name, Measures.CIRCUIT)
            if measures is Measures.CIRCUIT:
                seen = self.currents[circuit_name]
            elif measures is Measures.LOAD:
                seen = self._base_load[circuit_name]
            else:
                seen = generated.get(circuit_name, network.NONE)
            unit.step(seen, hertz, dt_s)

    def _perform(self, bus: str, unit_id: int, request: pdu.ReadRequest | pdu.WriteRequest) -> tuple[int, ...]:
        """Carry a request out. Raises `Refusal`, `Silence`."""
        unit = self.units.get((bus, unit_id))
        if unit is None:
            raise Silence
        executed = False
        try:
            values = self._carry_out(unit, request, self.faults_of(bus, unit_id))
            executed = True
        finally:
            if isinstance(request, pdu.WriteRequest):
                self._record(bus, unit_id, request, executed=executed)
        return values

    def _carry_out(
        self, unit: Unit, request: pdu.ReadRequest | pdu.WriteRequest, faults: Mapping[FaultKind, Fault]
    ) -> tuple[int, ...]:
        if FaultKind.SILENT in faults or FaultKind.REBOOT in faults:
            raise Silence
        if FaultKind.EXCEPTION in faults:
            raise pdu.Refusal(faults[FaultKind.EXCEPTION].code)
        unit.requested(self.now_s)
        if isinstance(request, pdu.ReadRequest):
            return tuple(unit.read(request.table, request.address, request.count))
        unit.write(request.table, request.address, request.values, request.function, self.now_s)
        return ()

    def _record(self, bus: str, unit_id: int, request: pdu.WriteRequest, *, executed: bool) -> None:
        at = (request.table, request.address, request.values, request.function)
        self.writes.append(Write(self.now_s, bus, unit_id, *at, executed))
        self.write_count += 1

    def _end_fault(self, on: str, fault: Fault) -> None:
        kinds = self._faults.get(on, {})
        if kinds.get(fault.kind) is not fault:
            return
        del kinds[fault.kind]
        if not kinds:
            del self._faults[on]
        self._show_fault(on, fault.kind, present=False)

    def _show_fault(self, on: str, kind: FaultKind, *, present: bool) -> None:
        """Let a device itself have a fault that is not one of its line."""
        charger, inverter = self.chargers.get(on), self.inverters.get(on)
        for powered in (charger, inverter):
            if powered is None:
                continue
            if kind is FaultKind.SENSOR_LOST:
                powered.sensor_lost = present
            elif kind is FaultKind.REBOOT:
                powered.off = present
        if charger is not None and kind is FaultKind.FROZEN_DUTY:
            charger.frozen_duty = present
        if inverter is not None and kind in ADOPTION_FAULTS:
            inverter.adoption_fault(kind, present=present)
        unit = charger or inverter or self.meters.get(on)
        if unit is not None and kind is FaultKind.STALE:
            unit.hold(present)
        elif unit is not None and kind is FaultKind.REBOOT and not present:
            unit.boot(self.now_s)


def _storage(device: Device, circuit: Circuit) -> Storage:
    """Return what a device's storage physically is: as declared, where control may use it."""
    declared = next((evse for evse in device.evses if evse.capacity_wh is not None), None)
    if declared is None or declared.capacity_wh is None:
        return Storage()
    rating_va = declared.rating_a * circuit.neutral_voltage_v * len(declared.phases)
    return Storage(rating_va=rating_va, capacity_wh=declared.capacity_wh)


def readings(rehearsal: Rehearsal) -> dict[str, Reading]:
    """Return what each meter measures, by its device."""
    return {name: meter.reading for name, meter in rehearsal.meters.items()}


def _in_phase(amperes: PerPhase) -> Phasors:
    a, b, c = network.ANGLES
    return (a * amperes[0], b * amperes[1], c * amperes[2])


def _interpolated(corners: tuple[tuple[float, float], ...], at: float) -> float:
    """Return the value on straight lines between corners; before the first and after the last, theirs."""
    before_at, before = corners[0]
    for corner_at, value in corners:
        if corner_at > at:
            if corner_at == before_at:
                return value
            return before + (value - before) * (at - before_at) / (corner_at - before_at)
        before_at, before = corner_at, value
    return before
