# SPDX-License-Identifier: Apache-2.0
"""From a depot file's content to the model: ranges expanded, defaults merged, references resolved.

Goes on after a problem: what is wrong with one entry keeps that entry out, and its name counts as known, so that one
mistake yields one problem and all mistakes are found at once.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from derms_agent.depot import circuit_loads, ranges
from derms_agent.depot.declared import Entry, Found, Layer, evse_layers, expanded, first, merged_settings
from derms_agent.depot.problem import Path, Problem, Severity, Vaulted, nearest, one_of, shown
from derms_agent.model import (
    Bus,
    Circuit,
    Connection,
    Depot,
    Device,
    DeviceKind,
    Evse,
    Gateway,
    GridLevel,
    Measures,
    Meter,
    Parity,
    PerPhase,
    Phase,
    PriceLimit,
    Site,
    TransactionIds,
    Transport,
    Value,
    Vehicle,
    Vtn,
    per_phase,
)
from derms_agent.profiles import OutOfRange, Point, Profile, SunSpecPoint

SECTIONS = ("gateways", "circuits", "buses", "devices", "meters", "vehicles")
# Every unit answers 0 on a serial line, and 248 to 255 are reserved there (MODBUS over Serial Line V1.02, clause 2.2).
SERIAL_UNITS = range(1, 248)
LEAST_CONDUCTORS_ON_DELTA = 2
_ONE = {"gateways": "gateway", "circuits": "circuit", "buses": "bus", "devices": "device"}


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the devices of an entry have in common on one bus."""

    profile: Profile
    unit_id: Found | None
    circuit: Found | None
    firmware: str | None
    der_settings: Mapping[str, Any] | None
    settings: Mapping[str, Value]
    setting_paths: Mapping[str, Path]
    sound: bool
    evses: Sequence[tuple[int, Sequence[Layer]]]
    storage: Layer | None


@dataclass(frozen=True, slots=True)
class _EvseSpec:
    """An EVSE, or the storage, of each of an entry's devices on a circuit."""

    connector: int
    circuit: str
    phases: tuple[Phase, ...]
    rating_a: float
    cable_a: float | None
    give_back_a: float
    capacity_wh: float | None = None


class Assembly:
    """Takes a file's content apart, section by section, into parts of the model and problems."""

    def __init__(self, data: Mapping[str, Any], profiles: Mapping[str, Profile], refused: Iterable[Path]) -> None:
        self.data = data
        self.profiles = profiles
        self.found: dict[Problem, None] = {}
        self.gateways: dict[str, Gateway] = {}
        self.circuits: dict[str, Circuit] = {}
        self.buses: dict[str, Bus] = {}
        self.devices: dict[str, Device] = {}
        self.meters: dict[str, Meter] = {}
        self.vehicles: dict[str, Vehicle] = {}
        self.network: dict[str, tuple[str, ...]] = {}
        self.entry_of: dict[tuple[str, str], Entry] = {}
        refused = list(refused)
        self._refused = {path[:2] for path in refused}
        self.refused_sections = {path[:1] for path in refused}
        self._known: dict[str, dict[str, str]] = {section: self._names(section) for section in SECTIONS}
        # Devices whose settings are in doubt: what follows from them would be said of the wrong ones.
        self.doubtful: set[str] = set()
        self._shapes: dict[tuple[Path, str | None], _Shape | None] = {}
        self._units: dict[tuple[str, int], str] = {}
        self._serial_numbers: dict[tuple[str, str], str] = {}
        self._sound: dict[tuple[str, Path], bool] = {}
        self._evse_specs: dict[tuple[int, str | None], Sequence[_EvseSpec]] = {}
        self._ends: dict[tuple[str, str], str] = {}

    def report(
        self,
        path: Path,
        found: str,
        expected: str,
        *,
        nearest_name: str | None = None,
        severity: Severity = Severity.ERROR,
        at_key: bool = False,
    ) -> None:
        """Keep a problem, once."""
        self.found.setdefault(Problem(path, found, expected, nearest_name, severity, at_key))

    def assemble(self) -> None:
        """Take the whole file apart."""
        for entry in self._entries("gateways"):
            for name, values in entry.rows():
                self.gateways[name] = Gateway(name=name, address=(values or {}).get("address"))
        for entry in self._entries("circuits"):
            self._circuit(entry)
        self._circuit_tree()
        for entry in self._entries("buses"):
            self._bus(entry)
        self._profile_defaults()
        for entry in self._entries("devices"):
            self._devices_of(entry)
        for entry in self._entries("meters"):
            self._meters_of(entry)
        for entry in self._entries("vehicles"):
            self._vehicles_of(entry)
        self._blocks()

    def setting_path(self, entry: Entry, bus: str, name: str | None) -> Path | None:
        """Return where a setting of an entry's devices on a bus was written, or None where it was not."""
        shape = self._shape(entry, bus)
        return shape.setting_paths.get(name) if shape and name else None

    def depot(self) -> Depot:
        """Return the depot; only where no error was found."""
        site, vtn = self.data["site"], self.data.get("vtn")
        default_limit_kw = site.get("default_limit_kw")
        return Depot(
            name=self.data["depot"],
            region=self.data.get("region"),
            utility=self.data.get("utility"),
            site=Site(
                limit_va=site["limit_kva"] * 1000.0,
                default_limit_w=None if default_limit_kw is None else default_limit_kw * 1000.0,
                soc_reserve_percent=site.get("soc_reserve_percent", 20.0),
            ),
            gateways=self.gateways,
            buses=self.buses,
            devices=self.devices,
            circuits=self.circuits,
            meters=self.meters,
            vehicles=self.vehicles,
            vtn=_vtn(vtn) if vtn else None,
            network=self.network,
        )

    # --- names ----------------------------------------------------------------------------------------------------

    def _section(self, section: str) -> Mapping[str, Any]:
        values = self.data.get(section)
        return values if isinstance(values, Mapping) else {}

    def _names(self, section: str) -> dict[str, str]:
        """Return every name of a section, those of refused entries too, and the key that it is declared by."""
        names: dict[str, str] = {}
        for key in self._section(section):
            try:
                expanded_names = ranges.expand(key)
            except ranges.BadRange:
                expanded_names = (key,)
            for name in expanded_names:
                names.setdefault(name, key)
        return names

    def _entries(self, section: str) -> Iterable[Entry]:
        """Yield a section's entries that are whole; report what is wrong with the ranges of the others."""
        for key, values in self._section(section).items():
            if (section, key) in self._refused:
                continue
            entry = expanded(section, key, values or {})
            if not isinstance(entry, Entry):
                self.found.update(dict.fromkeys(entry))
                continue
            for name in entry.names:
                other = self._known[section][name]
                if other != key:
                    self.report(entry.path, f"{name} a second time", f"a name that {other} does not hold", at_key=True)
                self.entry_of[section, name] = entry
            yield entry

    def _unknown(self, section: str, path: Path, name: str) -> bool:
        """Report a reference to a name that its section does not hold; say whether it was one."""
        known = self._known[section]
        if name in known:
            return False
        self.report(path, f"the {_ONE[section]} {name}", one_of(known), nearest_name=nearest(name, known))
        return True

    # --- circuits -------------------------------------------------------------------------------------------------

    def _circuit(self, entry: Entry) -> None:
        for name, values in entry.rows():
            parent, allocator = values.get("parent"), values.get("allocator")
            if parent is not None and self._unknown("circuits", (*entry.path, "parent"), parent):
                parent = None
            if allocator is not None and self._unknown("gateways", (*entry.path, "allocator"), allocator):
                allocator = None
            connection = Connection(values.get("connection", "wye"))
            rating = _each_phase(values["rating_a"])
            phases = sum(amperes > 0 for amperes in rating)
            if connection is Connection.SINGLE_PHASE and phases != 1:
                expected = "a list of L1, L2 and L3 with one above 0, such as [32, 0, 0], for the circuit has one phase"
                self.report((*entry.path, "rating_a"), shown(values["rating_a"]), expected)
                rating = _each_phase(max(rating))
            elif not phases:
                self.report((*entry.path, "rating_a"), shown(values["rating_a"]), "a phase with more than 0 A")
            base = values.get("base_load_a", 0.0)
            lacking = [phase for phase, rated in zip(Phase, rating, strict=True) if not rated]
            # A single number for a circuit that lacks phases is that of the phases which it has.
            base_load = (
                _each_phase(base)
                if isinstance(base, list)
                else per_phase(0.0 if phase in lacking else float(base) for phase in Phase)
            )
            self.circuits[name] = Circuit(
                name=name,
                parent=parent,
                connection=connection,
                voltage_v=float(values["voltage_v"]),
                rating_a=rating,
                rating_kva=values.get("rating_kva"),
                base_load_a=base_load,
                allocator=allocator,
            )

    def _circuit_tree(self) -> None:
        """Cut cycles, drop parents that were refused, find each tree's allocator, compare phases with the parent's."""
        parents = {name: circuit.parent for name, circuit in self.circuits.items()}
        for name in self.circuits:
            path = (*self.entry_of["circuits", name].path, "parent")
            if parents[name] not in self.circuits:
                parents[name] = None
            elif cycle := circuit_loads.cycle_through(parents, name):
                self.report(path, f"a cycle: {' under '.join(cycle)}", "a parent that does not hang on this circuit")
                parents[name] = None
        for name, circuit in list(self.circuits.items()):
            allocator = self._allocator(circuit, parents)
            self.circuits[name] = replace(circuit, parent=parents[name], allocator=allocator)
        shared_out: dict[str, str] = {}
        for name, circuit in self.circuits.items():
            if circuit.parent is None:
                self._one_tree(name, circuit.allocator, shared_out)
                continue
            above = self.circuits[circuit.parent]
            lacking = [
                phase.value
                for phase, own, fed in zip(Phase, circuit.rating_a, above.rating_a, strict=True)
                if own and not fed
            ]
            if lacking:
                path = (*self.entry_of["circuits", name].path, "rating_a")
                self.report(path, f"{', '.join(lacking)}, which its parent {above.name} lacks", "phases of the parent")

    def _one_tree(self, root: str, allocator: str | None, shared_out: dict[str, str]) -> None:
        """Refuse a second tree for a gateway: what "the site" is would not be known."""
        entry = self.entry_of["circuits", root]
        if allocator is None or "parent" in entry.values:
            return  # that was refused, and is told of
        first = shared_out.setdefault(allocator, root)
        if first != root:
            self.report(
                entry.path,
                f"a second tree for {allocator}, which shares out that of {first}",
                f"a parent that it has in common with {first}, the site's supply, or a gateway of its own",
                at_key=True,
            )

    def _allocator(self, circuit: Circuit, parents: Mapping[str, str | None]) -> str | None:
        """Return the allocator that a circuit is to have: the root's own, and none below it."""
        path = self.entry_of["circuits", circuit.name].path
        root = circuit.name
        while (above := parents[root]) is not None:
            root = above
        if root != circuit.name:
            if circuit.allocator is not None:
                expected = f"none, for the whole tree of {root} has one allocator, set there"
                self.report((*path, "allocator"), f"a second allocator, {circuit.allocator}", expected)
            return None
        if circuit.allocator is not None or "allocator" in self.entry_of["circuits", root].values:
            return circuit.allocator
        gateways = list(self._known["gateways"])
        if len(gateways) == 1:
            return gateways[0]
        self.report(
            path, "no allocator", f"allocator: the gateway that shares this tree out, {one_of(gateways)}", at_key=True
        )
        return None

    # --- buses ----------------------------------------------------------------------------------------------------

    def _bus(self, entry: Entry) -> None:
        transport = Transport(entry.values["transport"])
        self._bus_fields(entry, transport)
        for name, values in entry.rows():
            self._unknown("gateways", (*entry.path, "gateway"), values["gateway"])
            bus = Bus(
                name=name,
                **{
                    field: value
                    for field, value in values.items()
                    if field not in ("transport", "transaction_ids", "parity", "device_defaults")
                },
                transport=transport,
                transaction_ids=TransactionIds(values.get("transaction_ids", "strict")),
                parity=Parity(values.get("parity", "even")),
            )
            end = (bus.gateway, bus.path or "") if transport is Transport.SERIAL else (bus.host or "", str(bus.port))
            other = self._ends.setdefault(end, name)
            if other != name:
                field, words = (
                    ("path", end[1]) if transport is Transport.SERIAL else ("host", f"{end[0]} port {end[1]}")
                )
                expected = f"an endpoint of its own, for {other} has this one, and one connection leads to each"
                self.report((*entry.path, field), words, expected)
            self.buses[name] = bus

    def _bus_fields(self, entry: Entry, transport: Transport) -> None:
        serial = transport is Transport.SERIAL
        needed = {
            Transport.TCP: ("host",),
            Transport.RTU_OVER_TCP: ("host", "baud_rate"),
            Transport.SERIAL: ("path", "baud_rate"),
        }
        for field in needed[transport]:
            if field not in entry.values:
                words = {
                    "host": "host: where its Modbus server listens",
                    "baud_rate": "baud_rate: the speed of its serial line, by which its time is reckoned",
                    "path": "path: the serial adapter, such as /dev/derms/meter_bus",
                }
                self.report(
                    entry.path, f"no {field} on a bus with transport {transport.value}", words[field], at_key=True
                )
        for field in ("host", "port") if serial else ("path", "parity"):
            if field in entry.values:
                expected = f"no {field}, for the transport is {transport.value}"
                self.report((*entry.path, field), f"{field} {entry.values[field]}", expected, at_key=True)

    # --- devices --------------------------------------------------------------------------------------------------

    def _profile_defaults(self) -> None:
        for name in self._section("profile_defaults"):
            if name not in self.profiles:
                self._unknown_profile(("profile_defaults", name), name, at_key=True)

    def _unknown_profile(self, path: Path, name: str, *, at_key: bool = False) -> None:
        self.report(
            path, f"the profile {name}", one_of(self.profiles), nearest_name=nearest(name, self.profiles), at_key=at_key
        )

    def _layers(self, entry: Entry, bus: str | None) -> list[Layer]:
        layers = [Layer(entry.path, entry.values)]
        if bus is not None:
            declared = self.entry_of["buses", bus]
            defaults = declared.values.get("device_defaults")
            if defaults:
                layers.append(Layer((*declared.path, "device_defaults"), defaults))
        profile = first(layers, "profile")
        of_profile = self._section("profile_defaults").get(profile.value) if profile else None
        if profile and of_profile and ("profile_defaults", profile.value) not in self._refused:
            layers.append(Layer(("profile_defaults", profile.value), of_profile))
        return layers

    def _shape(self, entry: Entry, bus: str) -> _Shape | None:
        """Return what an entry's devices on a bus have in common, or None where their profile is not known."""
        key = (entry.path, self.entry_of["buses", bus].key)
        if key not in self._shapes:
            self._shapes[key] = self._new_shape(entry, self._layers(entry, bus))
        return self._shapes[key]

    def _new_shape(self, entry: Entry, layers: Sequence[Layer]) -> _Shape | None:
        named = first(layers, "profile")
        if named is None:
            expected = "profile: what kind of device it is, here or under the bus's device_defaults"
            self.report(entry.path, "no profile", expected, at_key=True)
            return None
        profile = self.profiles.get(named.value)
        if profile is None:
            self._unknown_profile(named.path, named.value)
            return None
        settings = merged_settings(layers)
        sound = all(self._is_sound(profile, name, setting) for name, setting in settings.items())
        circuit, firmware = first(layers, "circuit"), first(layers, "firmware")
        if firmware is not None:
            self._shown_by(profile, "firmware", firmware.path)
        der_settings = first(layers, "der_settings")
        if der_settings is not None:
            self._der_settings(profile, der_settings, controlled="storage" in entry.values)
        return _Shape(
            profile=profile,
            unit_id=first(layers, "unit_id"),
            circuit=circuit,
            firmware=None if firmware is None else firmware.value,
            der_settings=None if der_settings is None else der_settings.value,
            settings={name: setting.value for name, setting in settings.items()},
            setting_paths={name: setting.path for name, setting in settings.items()},
            sound=sound,
            evses=self._connectors(entry, profile, layers),
            storage=self._storage(entry, profile, settings),
        )

    def _storage(self, entry: Entry, profile: Profile, settings: Mapping[str, Found]) -> Layer | None:
        """Return what an entry says of storage that control may use; report a device that control could not use so."""
        if "storage" not in entry.values:
            return None
        path = (*entry.path, "storage")
        if profile.kind is DeviceKind.CHARGER:
            self.report(path, "storage on a charger", "evses, which say where vehicles plug in", at_key=True)
            return None
        if profile.control is None or not profile.control.gives_back:
            expected = f"none, for the profile {profile.name} has no set-point for what is taken and given back"
            self.report(path, "storage that control may use", expected, at_key=True)
            return None
        named = None if profile.fallback is None else profile.fallback.power or profile.fallback.current
        fallback = settings.get(named) if named is not None else None
        if fallback is not None and isinstance(fallback.value, (int, float)) and fallback.value < 0:
            expected = "0 or more: what it gives back while nobody controls it would go on below the reserve"
            self.report(fallback.path, shown(fallback.value), expected)
        return Layer(path, entry.values["storage"])

    def _is_sound(self, profile: Profile, name: str, setting: Found) -> bool:
        """Say whether a setting is one that the profile has and can hold; report it if not, once for its place."""
        key = (profile.name, setting.path)
        if key not in self._sound:
            self._sound[key] = self._setting(profile, name, setting)
        return self._sound[key]

    def _setting(self, profile: Profile, name: str, setting: Found) -> bool:
        settable = profile.settings
        if name not in settable:
            found = f"{name}, which the profile {profile.name} does not have as a setting"
            self.report(setting.path, found, one_of(settable), nearest_name=nearest(name, settable), at_key=True)
            return False
        point = profile.point(name)
        secret = isinstance(point, Point) and point.secret
        if isinstance(setting.value, Vaulted):
            if not secret:
                self.report(setting.path, "an encrypted value", "a plain one, for the setting is no secret")
            return secret
        expected = refused_by(point, setting.value)
        if expected:
            found = "a value that is not shown" if secret else shown(setting.value)
            self.report(setting.path, found, f"{expected}, by the profile {profile.name}")
        return not expected

    def _der_settings(self, profile: Profile, declared: Found, *, controlled: bool) -> None:
        """Report what is wrong with what a device is to hold by the grid's code.

        One whose storage is `controlled` follows the frequency by what it is told: by itself it could take or give up
        to its rating on top of that, and no ledger would count it.
        """
        # Few depots declare any, and a module's run would pay for it with each.
        from derms_agent.grid_code import ProfileProblem, parse  # noqa: PLC0415
        from derms_agent.grid_code.functions import FUNCTIONS  # noqa: PLC0415

        if not {function.model for function in FUNCTIONS.values()} <= set(profile.models):
            expected = f"none, for the profile {profile.name} is not that of a DER with SunSpec's models 702 to 712"
            self.report(declared.path, "der_settings", expected, at_key=True)
            return
        try:
            of_frequency = parse(profile.name, declared.value, profile).frequency_droop
            if controlled and of_frequency is not None and of_frequency.turns_on:
                expected = "enabled: false where control may use the storage, which then follows it by DROOP"
                self.report((*declared.path, "frequency_droop"), "one that is on", expected, at_key=True)
        except ProfileProblem as problem:
            for mistake in problem.mistakes:
                self.report(
                    (*declared.path, *mistake.path),
                    "an unknown key" if mistake.at_key else shown(mistake.found),
                    mistake.expected,
                    nearest_name=mistake.nearest,
                    at_key=mistake.at_key,
                )

    def _shown_by(self, profile: Profile, point: str, path: Path) -> None:
        """Report what is declared of a device's identity and no such device shows."""
        if point not in profile.points and point not in profile.sunspec_points:
            words = point.replace("_", " ")
            expected = f"none, for a device of the profile {profile.name} does not show its {words}"
            self.report(path, f"a {words}", expected, at_key=True)

    def _serial_number(self, entry: Entry, name: str, values: Mapping[str, Any], profile: Profile) -> str | None:
        """Return a device's serial number, which no other device of its profile has; None where any will do."""
        if "serial_number" not in values:
            return None
        path = (*entry.path, "serial_number")
        self._shown_by(profile, "serial_number", path)
        serial_number = str(values["serial_number"])
        other = self._serial_numbers.setdefault((profile.name, serial_number), name)
        if other != name:
            expected = f"one of its own: {other} has this one"
            if len(entry.names) > 1:
                expected += "; of a range, a list with one for each of its devices"
            self.report(path, f"the serial number {serial_number} for {name}", expected)
        return serial_number

    def _connectors(
        self, entry: Entry, profile: Profile, layers: Sequence[Layer]
    ) -> Sequence[tuple[int, Sequence[Layer]]]:
        connectors = evse_layers(layers)
        if profile.kind is not DeviceKind.CHARGER:
            if connectors:
                path = connectors[0][1][0].path
                self.report(path, f"EVSEs on a device of kind {profile.kind.value}", "none", at_key=True)
            return []
        if not connectors:
            expected = "evses: at least one, such as {rating_a: 32}, for the device is a charger"
            self.report(entry.path, "no evses", expected, at_key=True)
        for number, fields in connectors:
            if number > profile.connectors:
                expected = f"a connector from 1 to {profile.connectors}, as the profile {profile.name} has"
                self.report(fields[0].path, f"connector {number}", expected, at_key=True)
        return connectors

    def _devices_of(self, entry: Entry) -> None:
        for name, values in entry.rows():
            bus = values["bus"]
            if self._unknown("buses", (*entry.path, "bus"), bus) or bus not in self.buses:
                continue
            shape = self._shape(entry, bus)
            if shape is None:
                continue
            unit_id = self._unit_id(entry, name, values, shape)
            circuit = values.get("circuit", shape.circuit.value if shape.circuit else None)
            circuit_path = shape.circuit.path if shape.circuit else entry.path
            if circuit is not None and self._unknown("circuits", circuit_path, circuit):
                continue
            alone = len(shape.evses) == 1 or shape.storage is not None
            evses = [
                Evse(
                    name=name if alone else f"{name}/{spec.connector}",
                    device=name,
                    connector=spec.connector,
                    circuit=spec.circuit,
                    phases=spec.phases,
                    rating_a=spec.rating_a,
                    cable_a=spec.cable_a,
                    power_factor=shape.profile.power_factor,
                    give_back_a=spec.give_back_a,
                    capacity_wh=spec.capacity_wh,
                )
                for spec in self._evses(entry, shape, circuit)
            ]
            if not shape.sound:
                self.doubtful.add(name)
            self.devices[name] = Device(
                name=name,
                kind=shape.profile.kind,
                bus=bus,
                unit_id=unit_id,
                profile=shape.profile.name,
                settings=shape.settings,
                evses=tuple(evses),
                circuit=circuit,
                serial_number=self._serial_number(entry, name, values, shape.profile),
                firmware=shape.firmware,
                der_settings=shape.der_settings,
            )

    def _unit_id(self, entry: Entry, name: str, values: Mapping[str, Any], shape: _Shape) -> int:
        bus = self.buses[values["bus"]]
        if "unit_id" not in values and shape.unit_id is None:
            self.report(entry.path, "no unit_id", "unit_id: the unit's number on its bus", at_key=True)
            return 0
        path = shape.unit_id.path if shape.unit_id else (*entry.path, "unit_id")
        unit_id = int(values.get("unit_id", shape.unit_id.value if shape.unit_id else 0))
        if bus.transport is not Transport.TCP and unit_id not in SERIAL_UNITS:
            self.report(path, f"unit {unit_id}", "a unit from 1 to 247, for the bus is a serial line")
        elif unit_id > 255:  # noqa: PLR2004 (what a byte holds; a range escapes the schema's check)
            self.report(path, f"unit {unit_id}", "a unit from 0 to 255")
        other = self._units.setdefault((bus.name, unit_id), name)
        if other != name:
            self.report(
                path, f"unit {unit_id} of bus {bus.name} for {name}", f"a unit of its own: {other} has this one"
            )
        return unit_id

    def _evses(self, entry: Entry, shape: _Shape, circuit: str | None) -> Sequence[_EvseSpec]:
        """Return the EVSEs that each device of a shape has on a circuit."""
        key = (id(shape), circuit)
        if key not in self._evse_specs:
            specs = [self._evse(entry, number, fields, circuit, shape.profile) for number, fields in shape.evses]
            if shape.storage is not None:
                specs.append(self._evse(entry, 1, [shape.storage], circuit, shape.profile))
            self._evse_specs[key] = [spec for spec in specs if spec]
        return self._evse_specs[key]

    def _evse(
        self, entry: Entry, connector: int, fields: Sequence[Layer], circuit: str | None, profile: Profile
    ) -> _EvseSpec | None:
        path = fields[0].path
        rating = first(fields, "rating_a")
        if rating is None:
            self.report(path, "no rating_a", "rating_a: a number of A above 0, per conductor", at_key=True)
        own = first(fields, "circuit")
        if own is not None:
            if self._unknown("circuits", own.path, own.value):
                return None
            circuit = own.value
        if circuit is None:
            self.report(entry.path, "no circuit", "circuit: the circuit that feeds the charger", at_key=True)
        on = None if circuit is None else self.circuits.get(circuit)
        if on is None or rating is None:
            return None
        cable, capacity = first(fields, "cable_a"), first(fields, "capacity_kwh")
        return _EvseSpec(
            connector=connector,
            circuit=on.name,
            phases=self._phases(fields, on),
            rating_a=float(rating.value),
            cable_a=None if cable is None else float(cable.value),
            give_back_a=self._given_back_a(fields, profile, rating, storage=capacity is not None),
            capacity_wh=None if capacity is None else capacity.value * 1000.0,
        )

    def _given_back_a(self, fields: Sequence[Layer], profile: Profile, rating: Found, *, storage: bool) -> float:
        """Return what may be given back: of storage as much as it takes, of an EVSE nothing, unless it is said."""
        given = first(fields, "give_back_a")
        if given is None:
            return float(rating.value) if storage else 0.0
        if given.value > rating.value:
            self.report(given.path, shown(given.value), f"at most rating_a, {rating.value:g}")
        if given.value > 0 and not (profile.control is not None and profile.control.gives_back):
            expected = f"0, for the profile {profile.name} has no set-point for what is given back"
            self.report(given.path, shown(given.value), expected)
        return float(given.value)

    def _phases(self, fields: Sequence[Layer], circuit: Circuit) -> tuple[Phase, ...]:
        """Return an EVSE's conductors: those that it names, or all that its circuit has."""
        there = tuple(phase for phase, amperes in zip(Phase, circuit.rating_a, strict=True) if amperes) or tuple(Phase)
        named = first(fields, "phases")
        if named is None:
            return there
        phases = tuple(Phase(name) for name in named.value)
        lacking = [phase.value for phase in phases if phase not in there]
        if lacking:
            words = f"phases of {circuit.name}: {', '.join(phase.value for phase in there)}"
            self.report(named.path, f"{', '.join(lacking)}, which the circuit {circuit.name} lacks", words)
            phases = tuple(phase for phase in phases if phase in there) or there
        elif circuit.connection is Connection.DELTA and len(phases) < LEAST_CONDUCTORS_ON_DELTA:
            expected = "at least two conductors, such as [L1, L2], for a delta has no neutral"
            self.report(named.path, f"only {phases[0].value}", expected)
        return phases

    # --- meters and vehicles --------------------------------------------------------------------------------------

    def _meters_of(self, entry: Entry) -> None:
        refers = "device" in entry.values
        if refers:
            for field in ("bus", "unit_id", "profile", "serial_number", "firmware", "settings"):
                if field in entry.values:
                    expected = "none, for the meter is a device that is declared elsewhere"
                    self.report((*entry.path, field), f"{field} beside device", expected, at_key=True)
        elif "bus" not in entry.values:
            expected = "bus, unit_id and profile of the meter, or device: the device that measures"
            self.report(entry.path, "no bus", expected, at_key=True)
            return
        for name, values in entry.rows():
            device = values["device"] if refers else name
            if self._unknown("circuits", (*entry.path, "circuit"), values["circuit"]):
                continue
            if refers and self._unknown("devices", (*entry.path, "device"), device):
                continue
            if not refers and name in self._known["devices"]:
                expected = "a name that no device has, or device: the device that measures"
                self.report(entry.path, f"{name}, which is a device too", expected, at_key=True)
                continue
            meter = Meter(name=name, device=device, measures=Measures(values["measures"]), circuit=values["circuit"])
            self._measured_twice(entry, meter)
            self.meters[name] = meter
        if not refers:
            self._devices_of(entry)

    def _measured_twice(self, entry: Entry, meter: Meter) -> None:
        """Report a generator's meter on what control may use: what that gives back would count twice."""
        known = self.devices.get(meter.device)
        if known is None or meter.measures is not Measures.GENERATOR:
            return
        if any(evse.stationary or evse.lowest_a < 0 for evse in known.evses):
            found = f"{meter.device}, which control may tell to give back, as a generator"
            self.report((*entry.path, "device"), found, "none: what it gives back is known without a meter")

    def _vehicles_of(self, entry: Entry) -> None:
        for name, values in entry.rows():
            self.vehicles[name] = Vehicle(
                name=name,
                capacity_wh=values["capacity_kwh"] * 1000.0,
                power_w=values["power_kw"] * 1000.0,
                phases=values.get("phases", 3),
                give_back_w=values.get("give_back_kw", 0.0) * 1000.0,
            )

    def _blocks(self) -> None:
        for name, blocks in self._section("network").items():
            if ("network", name) in self._refused:
                continue
            for index, block in enumerate(blocks):
                if expected := _block_mistake(block):
                    self.report(("network", name, str(index)), shown(block), expected)
            self.network[name] = tuple(blocks)


LEVELS = {"moderate": 1, "high": 2, "special": 3}
"""OpenADR's names of the levels of SIMPLE."""


def _vtn(said: Mapping[str, Any]) -> Vtn:
    """Return the utility's server from what the file says of it."""
    levels = {
        LEVELS[name]: GridLevel(
            limit_w=level["limit_kw"] * 1000.0 if "limit_kw" in level else None,
            baseline_percent=level.get("baseline_percent"),
        )
        for name, level in said.get("levels", {}).items()
    }
    price = said.get("price_limit")
    price_limit = price and PriceLimit(
        currency=price["currency"],
        above_per_kwh=float(price["above_per_kwh"]),
        limit_w=price["limit_kw"] * 1000.0,
    )
    lists = {name: tuple(said.get(name, ())) for name in ("market_contexts", "groups")}
    return Vtn(**{**said, "levels": levels, "price_limit": price_limit, **lists})


def _each_phase(value: float | Sequence[float]) -> PerPhase:
    return per_phase(map(float, value)) if isinstance(value, Sequence) else (float(value),) * 3


def refused_by(point: Point | SunSpecPoint, value: Value) -> str:
    """Return what a point expects instead of a value, or "" if it can hold it."""
    if isinstance(point, Point):
        try:
            point.quantise(value)
        except OutOfRange as refusal:
            return refusal.expected
        return ""
    # Which type a SunSpec point has is in its model's definition, which the driver reads.
    low, high = point.minimum, point.maximum
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if (low is None and high is None) or (number and (low is None or value >= low) and (high is None or value <= high)):  # type: ignore[operator]
        return ""
    bounds = [f"{words} {bound:g}" for words, bound in (("at least", low), ("at most", high)) if bound is not None]
    return f"a number {' and '.join(bounds)} {point.unit}".rstrip()


def _block_mistake(text: str) -> str:
    """Return what was expected instead of a text that is no block, or "" if it is one."""
    try:
        ipaddress.ip_network(text)
    except ValueError:
        try:
            return f"a block without host bits: {ipaddress.ip_network(text, strict=False)}"
        except ValueError:
            return "a block in CIDR notation, such as 192.0.2.0/24 or 2001:db8::/32"
    return ""
