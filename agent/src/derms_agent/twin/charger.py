# SPDX-License-Identifier: Apache-2.0
"""A charger as its profile describes it: registers in front, EVSEs with their vehicles behind, a watchdog between."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from derms_agent.model import Device, Value
from derms_agent.profiles.point import Point, PointType, Table
from derms_agent.profiles.profile import AfterBoot, Control, Fallback, Profile, Quantity, Refresh, Zero
from derms_agent.twin import physics
from derms_agent.twin.physics import Outlet, OutletInputs, OutletState
from derms_agent.twin.unit import Cell, RegisterMap
from derms_agent.twin.words import absent_words, from_words, to_words

_NOISE = 1e-9
_SENSORS = frozenset({"temperature", "soc"})
_KEEPS_FAILSAFE = "failsafe_persist"
_FAILSAFE = "failsafe_"
_SERIAL_NUMBERS = 100_000_000
_PERCENT = 100.0
_DC_VOLTS = 400.0
_DC_SHARE = 0.95
"""What a DC charger shows of the power that it draws: it measures behind its rectifiers."""


# What devices call their states differs; the first name that a profile knows is taken, whole before part.
_CHARGING = ("charging",)
_PAUSED = (
    "suspended by station",
    "vehicle requests, not allowed",
    "interrupted",
    "vehicle, not charging yet",
    "vehicle, ready",
    "vehicle",
    "ready",
)
_WAITING = (
    "suspended by vehicle",
    "vehicle, no request, allowed",
    "vehicle, ready",
    "vehicle",
    "ready",
)
_ENDED = ("finishing", "session stopped", *_WAITING)
_FREE = ("available", "authorised, waiting for a vehicle", "no vehicle, allowed", "no vehicle", "idle", "not ready")
_LETTERS = {_FREE: "A", _PAUSED: "B1", _WAITING: "B2", _ENDED: "B1", _CHARGING: "C2"}
_NORMAL = ("unlocked", "enabled", "released", "operative", "granted", "available", "modbus", "three", "ok", "none")


@dataclass(slots=True)
class _Limit:
    """What one connector was told: `written` in the control's quantity; None: nothing since the start.

    `in_force`, in that quantity too, `in_force_a`, in A per conductor, and `timeout_s` follow from it and the settings;
    they are kept, for each step of the physics asks for them.
    """

    written: float | None = None
    refreshed_s: float = 0.0
    lapsed: bool = False
    in_force: float = 0.0
    in_force_a: float = 0.0
    timeout_s: float = math.inf


class Charger:
    """A charger behind its unit id. `settings` are what it holds at its start, by the profile's names.

    `off`: it has no power, or starts. `frozen_duty` and `sensor_lost` are faults. `states` are its EVSEs by connector.
    """

    def __init__(
        self, device: Device, profile: Profile, outlets: Mapping[int, Outlet], settings: Mapping[str, Value]
    ) -> None:
        self.device = device
        self.profile = profile
        self.outlets = outlets
        self.states = dict.fromkeys(outlets, OutletState())
        self.off = False
        self.frozen_duty = False
        self.sensor_lost = False
        self.frequency_hz = 50.0
        self._limits = {connector: _Limit() for connector in outlets}
        self._map = RegisterMap(profile.points.values(), tuple(outlets), profile.wire)
        self._now_s = 0.0
        self._held: dict[Cell, Sequence[int]] | None = None
        self._factory = {
            (point.name, connector): to_words(point, _factory_value(profile, point))
            for point in profile.points.values()
            for connector in (outlets if point.stride else (1,))
            if point.writable or point.setting
        }
        self._memory = dict(self._factory)
        for name, value in settings.items():
            point = profile.points[name]
            for connector in outlets if point.stride else (1,):
                self._memory[name, connector] = to_words(point, _raw_state(point, value))
        self._sources: dict[str, Callable[[tuple[int, ...]], Value]] = {
            "active_power": lambda at: math.fsum(self._shown(c, self.states[c].power_w) for c in at),
            "energy": lambda at: math.fsum(self._shown(c, self.states[c].energy_wh) for c in at),
            "session_energy": lambda at: math.fsum(self._shown(c, self.states[c].session_wh) for c in at),
            "state": self._state,
            "applied_current": lambda at: self.limit_a(at[0]),
            "applied_power": lambda at: self.limit(at[0]),
            "minimum_dc_power": lambda at: self.outlets[at[0]].minimum_a * self._per_ampere(at[0]),
            "signalled_current": lambda at: self.states[at[0]].pilot_a,
            "fallback_in": lambda at: self._fallback_in_s(at[0]),
            "fallback_state": lambda at: "active" if self._limits[at[0]].lapsed else "inactive",
            "limit_in_use": lambda at: "unused" if self._limits[at[0]].written is None else "used",
            "cable": lambda at: "none" if self.states[at[0]].vehicle is None else "in station and vehicle",
            "cable_rating": lambda at: min(self.outlets[at[0]].cable_a, self.outlets[at[0]].rating_a),
            "charging_points": lambda _at: len(self.outlets),
            "station_power": lambda _at: math.fsum(state.power_w for state in self.states.values()),
            "dc_voltage": lambda at: 0.0 if self.states[at[0]].vehicle is None else _DC_VOLTS,
            "dc_current": lambda at: self._shown(at[0], self.states[at[0]].power_w) / _DC_VOLTS,
            "temperature": lambda at: max(self.states[c].temperature_c for c in at),
            "frequency": lambda _at: self.frequency_hz,
            "soc": lambda at: self._soc_percent(at[0]),
            "hardware_maximum": lambda at: self.outlets[at[0]].rating_a,
            "hardware_minimum": lambda at: self.outlets[at[0]].minimum_a,
            "manufacturer": lambda _at: profile.title.split()[0],
            "model_name": lambda _at: profile.title,
            "serial_number": lambda _at: str(zlib.crc32(device.name.encode()) % _SERIAL_NUMBERS),
            "firmware": lambda _at: "1",
        }
        for index, line in enumerate(("l1", "l2", "l3")):
            self._sources[f"current_{line}"] = lambda at, index=index: math.fsum(  # type: ignore[misc]
                self.states[c].current_a for c in at if index < self.states[c].conductors
            )
            self._sources[f"voltage_{line}"] = lambda at, index=index: (  # type: ignore[misc]
                self.outlets[at[0]].voltage_v if index < self.outlets[at[0]].conductors else 0.0
            )
        self._settle()

    def read(self, table: Table, address: int, count: int) -> list[int]:
        """Return registers (bits). Raises `Refusal`."""
        held = self._held
        return self._map.read(table, address, count, self._words if held is None else held.__getitem__)

    def write(self, table: Table, address: int, values: Sequence[int], function: int, now_s: float) -> None:
        """Write registers (bits). Raises `Refusal`, having written nothing."""
        for cell, words in self._map.targets(table, address, values, function, self._stored):
            self._memory[cell.point.name, cell.connector] = words
            self._settle()
            self._take(cell, words, now_s)
        self._settle()

    def requested(self, now_s: float) -> None:
        """Take note of a request."""
        fallback = self.profile.fallback
        if fallback is not None and fallback.refreshed_by is Refresh.REQUEST:
            lapsed = any(limit.lapsed for limit in self._limits.values())
            for limit in self._limits.values():
                limit.refreshed_s = now_s
                limit.lapsed = False
            if lapsed:
                self._settle()

    def boot(self, now_s: float) -> None:
        """Start anew: settings are kept, limits where the profile says so, sessions go on with the vehicle still in."""
        kept = self._failsafe_is_kept()
        for (name, connector), words in self._factory.items():
            setting = self.profile.points[name].setting
            if not setting or (name.startswith(_FAILSAFE) and not kept):
                self._memory[name, connector] = words
        fallback = self.profile.fallback
        held = fallback is not None and fallback.after_boot is AfterBoot.HELD
        for connector, limit in self._limits.items():
            self._limits[connector] = _Limit(limit.written if held else None, now_s)
        self.states = {connector: state._replace(ended=False) for connector, state in self.states.items()}
        self._settle()

    def hold(self, held: bool) -> None:
        """Stop, or resume, bringing the registers up to date."""
        self._held = {cell: self._words(cell) for cell in self._map.cells()} if held else None

    def step(self, now_s: float, dt_s: float, ambient_c: float) -> None:
        """Move all EVSEs on by `dt_s`, to `now_s`."""
        self._now_s = now_s
        self._watch(now_s)
        frozen_a = physics.FROZEN_PILOT_A if self.frozen_duty else None
        states, limits = self.states, self._limits
        for connector, outlet in self.outlets.items():
            inputs = OutletInputs(limits[connector].in_force_a, frozen_a, ambient_c, not self.off)
            states[connector] = physics.step(outlet, states[connector], inputs, dt_s)

    def limit(self, connector: int) -> float:
        """Return the limit in force, in the control's quantity (A per conductor, or W)."""
        return self._limits[connector].in_force

    def _settle(self) -> None:
        """Work out anew what follows from settings, writes and the watchdog."""
        fallback = self.profile.fallback
        for connector, limit in self._limits.items():
            limit.in_force = self._limit_in_force(connector)
            limit.in_force_a = limit.in_force / self._per_ampere(connector)
            if fallback is not None and fallback.refreshed_by is not Refresh.NONE:
                limit.timeout_s = self._timeout_s(fallback, connector)

    def _limit_in_force(self, connector: int) -> float:
        control, limit = self.profile.control, self._limits[connector]
        rating = self._rating(connector)
        if control is None or self._switched_off(connector):
            return 0.0 if control else rating
        if limit.lapsed:
            return self._fallback_value(connector)
        if limit.written is None:
            return self._after_boot_value(connector)
        return math.floor(limit.written / control.step + _NOISE) * control.step

    def limit_a(self, connector: int) -> float:
        """Return the limit in force in A per conductor."""
        return self._limits[connector].in_force_a

    def _per_ampere(self, connector: int) -> float:
        control, outlet = self.profile.control, self.outlets[connector]
        in_watts = control is not None and control.quantity is Quantity.POWER
        return outlet.voltage_v * outlet.conductors if in_watts else 1.0

    def _rating(self, connector: int) -> float:
        return self.outlets[connector].rating_a * self._per_ampere(connector)

    def _after_boot_value(self, connector: int) -> float:
        fallback = self.profile.fallback
        if fallback is None or fallback.after_boot in (AfterBoot.RATING, AfterBoot.HELD):
            return self._rating(connector)
        return 0.0 if fallback.after_boot is AfterBoot.OFF else self._fallback_value(connector)

    def _fallback_value(self, connector: int) -> float:
        """Return the fallback in the control's quantity; the rating where the profile does not say where it is."""
        fallback = self.profile.fallback
        if fallback is None:
            return self._rating(connector)
        if fallback.fixed is not None:
            return fallback.fixed
        per_ampere = self._per_ampere(connector)
        if fallback.current is not None:
            return self._number(fallback.current, connector) * per_ampere
        if fallback.power is not None:
            outlet = self.outlets[connector]
            amperes = self._number(fallback.power, connector) / (outlet.voltage_v * outlet.conductors)
            return amperes * per_ampere
        return self._rating(connector)

    def _watch(self, now_s: float) -> None:
        """Let the watchdog bite where its time is over."""
        for limit in self._limits.values():
            if not limit.lapsed and now_s - limit.refreshed_s > limit.timeout_s:
                limit.lapsed = True
                self._settle()

    def _timeout_s(self, fallback: Fallback, connector: int) -> float:
        """Return after what silence the fallback holds; infinity: never, for 0 turns a watchdog off."""
        value = fallback.current or fallback.power
        if fallback.off is not None and value is not None and self._number(value, connector) == fallback.off:
            return math.inf
        if fallback.timeout is None:
            return fallback.fixed_timeout_s or math.inf
        seconds = self._number(fallback.timeout, connector)
        return math.inf if seconds in (0, self.profile.points[fallback.timeout].absent) else seconds

    def _take(self, cell: Cell, words: Sequence[int], now_s: float) -> None:
        """Act on a write: a limit, a heartbeat."""
        control, fallback = self.profile.control, self.profile.fallback
        refreshed_by = Refresh.NONE if fallback is None else fallback.refreshed_by
        value = from_words(cell.point, words)
        if control is not None and cell.point.name == control.point:
            for connector in self._at(cell):
                self._set_limit(connector, control, float(value), refreshed_by, now_s)
        elif control is not None and control.switch is not None and cell.point.name == control.switch.point:
            for connector in self._at(cell):
                self._refresh(connector, refreshed_by, now_s)
        elif (
            fallback is not None
            and (beat := fallback.heartbeat) is not None
            and (cell.point.name, value)
            == (
                beat.point,
                beat.value,
            )
        ):
            for limit in self._limits.values():
                limit.refreshed_s = now_s

    def _set_limit(self, connector: int, control: Control, value: float, refreshed_by: Refresh, now_s: float) -> None:
        self._limits[connector].written = value
        self._refresh(connector, refreshed_by, now_s)
        if value == 0 and control.zero is Zero.ENDS_SESSION and self.states[connector].vehicle is not None:
            self.states[connector] = self.states[connector]._replace(ended=True)

    def _refresh(self, connector: int, refreshed_by: Refresh, now_s: float) -> None:
        limit = self._limits[connector]
        # After a heartbeat was missed the fallback stays until the limit is written again with the heartbeat back.
        if refreshed_by is Refresh.WRITE:
            limit.refreshed_s = now_s
        if now_s - limit.refreshed_s <= limit.timeout_s:
            limit.lapsed = False

    def _switched_off(self, connector: int) -> bool:
        control = self.profile.control
        if control is None or control.switch is None:
            return False
        point = self.profile.points[control.switch.point]
        return self._number(point.name, connector) == _raw_state(point, control.switch.off)

    def _failsafe_is_kept(self) -> bool:
        return _KEEPS_FAILSAFE not in self.profile.points or self._number(_KEEPS_FAILSAFE, 1) != 0

    def _number(self, name: str, connector: int) -> float:
        point = self.profile.points[name]
        words = self._memory.get((name, connector if point.stride else 1))
        return float(_factory_value(self.profile, point) if words is None else from_words(point, words))

    def _at(self, cell: Cell) -> tuple[int, ...]:
        """Return the connectors that a cell speaks for."""
        return (cell.connector,) if cell.of.stride else tuple(self.outlets)

    def _stored(self, cell: Cell) -> Sequence[int]:
        return self._memory[cell.of.name, cell.connector]

    def _words(self, cell: Cell) -> Sequence[int]:
        """Return what a cell reads as now."""
        point, of = cell.point, cell.of
        if self.sensor_lost and of.name in _SENSORS:
            return absent_words(point)
        control = self.profile.control
        if control is not None and of.name == control.point:
            connector = self._at(cell)[0]
            told = self._limits[connector].written
            return to_words(point, self.limit(connector) if told is None or point is not of else told)
        stored = self._memory.get((of.name, cell.connector))
        if stored is not None:
            return stored if point is of else to_words(point, from_words(of, stored))
        return to_words(point, self._value(point, cell))

    def _value(self, point: Point, cell: Cell) -> Value:
        source = self._sources.get(point.name)
        if source is None:
            return _factory_value(self.profile, point)
        return _raw_state(point, source(self._at(cell)))

    def _state(self, at: tuple[int, ...]) -> str:
        point, situation = self.profile.points["state"], self._situation(at[0])
        if point.states is None:
            # Letters of IEC 61851-1, where there is room with the 2 of a pilot that permits charging.
            return _LETTERS[situation][: 2 * point.length]
        return _first(tuple(point.states.values()), situation) or ""

    def _shown(self, connector: int, value: float) -> float:
        """Return a power or an energy as the charger's own meter has it."""
        return value * _DC_SHARE if self.outlets[connector].dc else value

    def _fallback_in_s(self, connector: int) -> float:
        """Return the time left of the watchdog, in s; beyond every register's range where there is none."""
        limit = self._limits[connector]
        left_s = limit.refreshed_s + limit.timeout_s - self._now_s
        return max(left_s, 0.0) if left_s < math.inf else float(1 << 64)

    def _situation(self, connector: int) -> tuple[str, ...]:
        state = self.states[connector]
        if state.vehicle is None:
            return _FREE
        if state.ended:
            return _ENDED
        if state.current_a > 0:
            return _CHARGING
        return _PAUSED if state.pilot_a < self.outlets[connector].minimum_a else _WAITING

    def _soc_percent(self, connector: int) -> float:
        vehicle = self.states[connector].vehicle
        return vehicle.soc * _PERCENT if vehicle is not None else 0.0


def _first(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    """Return the first of the wanted names that there is: whole, else as a beginning, else as a part."""
    tests: tuple[Callable[[str, str], bool], ...] = (str.__eq__, str.startswith, str.__contains__)
    for test in tests:
        for want in wanted:
            for name in names:
                if test(name, want):
                    return name
    return None


def _raw_state(point: Point, value: Value) -> Value:
    """Return the raw value of a named state; whatever else as it is, a number given as text where one is needed."""
    if point.states is not None and isinstance(value, str):
        return next((raw for raw, name in point.states.items() if name == value), 0)
    if isinstance(value, str) and point.type is not PointType.STRING:
        return float(value)
    return value


def _factory_value(profile: Profile, point: Point) -> float | str:
    """Return what a point holds before anybody wrote to it."""
    control, fallback = profile.control, profile.fallback
    if point.type is PointType.STRING:
        return ""
    if control is not None and control.switch is not None and point.name == control.switch.point:
        return float(_raw_state(point, control.switch.on))
    if fallback is not None and point.name == fallback.timeout:
        return fallback.fixed_timeout_s or float(point.absent or 0)
    if control is not None and fallback is not None and point.name == fallback.current and not point.writable:
        return control.minimum
    if point.states is not None:
        normal = _first(tuple(point.states.values()), _NORMAL)
        return float(_raw_state(point, normal)) if normal is not None else float(min(point.states))
    return point.minimum if point.minimum is not None and not point.or_zero else 0.0
