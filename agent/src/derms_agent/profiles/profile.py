# SPDX-License-Identifier: Apache-2.0
"""A device profile: what a KEBA, an ABB or a SunSpec inverter looks like, and what it does when nobody speaks to it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from derms_agent.model import DeviceKind, Value
from derms_agent.profiles.point import REGISTERS, Access, Contradiction, OutOfRange, Point, PointType, Table

CANONICAL_UNITS: Mapping[str, str] = {
    "active_power": "W",
    "reactive_power": "var",
    "energy": "Wh",
    "session_energy": "Wh",
    "current_l1": "A",
    "current_l2": "A",
    "current_l3": "A",
    "voltage_l1": "V",
    "voltage_l2": "V",
    "voltage_l3": "V",
    "current_limit": "A",
    "power_limit": "W",
    "temperature": "degC",
    "enclosure_temperature": "degC",
    "ambient_temperature": "degC",
    "frequency": "Hz",
    "soc": "percent",
    "failsafe_current": "A",
    "failsafe_power": "W",
    "failsafe_timeout": "s",
}
"""What every profile calls the same is in the same unit."""
ENCLOSURE, CHARGER, AMBIENT = "enclosure", "charger", "ambient"

CANONICAL_TEXTS = frozenset({"manufacturer", "model_name", "serial_number", "firmware"})
"""Points that identify a device. A few devices keep the last two as whole numbers."""
ASSUMED_STEP_WH = 1000.0
"""What a register whose step nobody tells is taken to count in, until it rises: that tells."""
LEAST_POWER_FACTOR = 0.95
"""Of a device that is told W and whose profile does not say: data sheets of DC chargers say 0.98 and above at their
rating, and less is common at a part of it."""


class Protocol(str, Enum):
    """What is spoken over Modbus: plain registers at declared addresses, or SunSpec models that are discovered."""

    MODBUS = "modbus"
    SUNSPEC = "sunspec"


@dataclass(frozen=True, slots=True, kw_only=True)
class SunSpecPoint:
    """One value of a SunSpec device: a point of a model. `sign` is -1 where SunSpec counts generation positive.

    The value is in SunSpec's own unit with its scale factor applied, times `sign`. `alternatives` are other models that
    have the same point under the same name: it is read from the first that the device has, `model` before them.

    Raises `Contradiction` unless: it has a name, models between 1 and 65534 and a point; the sign is 1 or -1; minimum
    and maximum are on what can be written and not the wrong way round; a setting can be written.
    """

    name: str
    model: int
    point: str
    alternatives: tuple[int, ...] = ()
    unit: str = ""
    sign: int = 1
    access: Access = Access.READ
    minimum: float | None = None
    maximum: float | None = None
    setting: bool = False
    volatile: bool = False
    second_hand: bool = False

    def __post_init__(self) -> None:
        for name, text in (("name", self.name), ("point", self.point)):
            if not text:
                raise Contradiction((name,), repr(text), "a name")
        for name, model in (("model", self.model), *(("alternatives", model) for model in self.alternatives)):
            if not 1 <= model < REGISTERS - 1:
                raise Contradiction((name,), model, f"1 to {REGISTERS - 2}; {REGISTERS - 1} ends a SunSpec map")
        if self.sign not in {1, -1}:
            raise Contradiction(("sign",), self.sign, "1 or -1")
        bound = self.maximum if self.minimum is None else self.minimum
        if bound is not None and not self.writable:
            raise Contradiction(("maximum" if self.minimum is None else "minimum",), bound, "none on a point only read")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise Contradiction(("minimum",), self.minimum, f"at most the maximum of {self.maximum:g}")
        if self.setting and not self.writable:
            raise Contradiction(("setting",), "true", "a point that can be written")

    @property
    def readable(self) -> bool:
        """Whether it can be read."""
        return self.access is not Access.WRITE

    @property
    def writable(self) -> bool:
        """Whether it can be written."""
        return self.access is not Access.READ


class Refresh(str, Enum):
    """What keeps a device's watchdog from running out."""

    WRITE = "write"  # a write of the limit; reading does not count
    REQUEST = "request"  # any request
    HEARTBEAT = "heartbeat"  # a value written to a point of its own
    NONE = "none"  # there is no watchdog


class AfterBoot(str, Enum):
    """What a device allows from its start until it is first spoken to."""

    RATING = "rating"
    FALLBACK = "fallback"
    HELD = "held"  # the limit that was last written
    OFF = "off"


class Zero(str, Enum):
    """What a limit of zero does to a session."""

    PAUSES = "pauses"
    ENDS_SESSION = "ends_session"


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """The value that is written to a point, and how often at the least, in s, which is more than 0."""

    point: str
    value: int
    every_s: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.every_s) and self.every_s > 0):
            raise Contradiction(("every_s",), self.every_s, "more than 0 s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """What a device does when nobody speaks to it.

    The value is in the point `current` (A per conductor) or `power` (W), or is `fixed` in the control's own quantity;
    where none of the three is known, the rating is what must be counted, and so it is unless each point of `in_force`
    is known to hold what it says there. `off` is what the point holds where the device is told not to fall back at all.
    The time until then is in the point `timeout` (s), where 0 means that the watchdog is off; until a value for it is
    known it is `fixed_timeout_s`, which is the device's own, be it fixed or what it comes with. The points need not be
    settings: some devices show a value that only the vendor's tool can change.

    Raises `Contradiction` unless: at most one of current, power and fixed is given, `off` only with a point; `fixed` is
    not negative and `fixed_timeout_s` positive; where there is no watchdog, none of all that is, and what holds after a
    boot is not the fallback; a heartbeat is given just where it is what refreshes, and comes before the fixed time-out.
    """

    refreshed_by: Refresh
    after_boot: AfterBoot
    current: str | None = None
    power: str | None = None
    fixed: float | None = None
    off: float | None = None
    timeout: str | None = None
    fixed_timeout_s: float | None = None
    heartbeat: Heartbeat | None = None
    in_force: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = [name for name in ("current", "power", "fixed") if getattr(self, name) is not None]
        if len(given) > 1:
            raise Contradiction((given[1],), getattr(self, given[1]), f"none beside {given[0]}")
        if self.off is not None and self.current is None and self.power is None:
            raise Contradiction(("off",), self.off, "none without the point that holds it")
        if self.fixed is not None and not (math.isfinite(self.fixed) and self.fixed >= 0):
            raise Contradiction(("fixed",), self.fixed, "0 or more")
        if self.fixed_timeout_s is not None and not (math.isfinite(self.fixed_timeout_s) and self.fixed_timeout_s > 0):
            raise Contradiction(("fixed_timeout_s",), self.fixed_timeout_s, "more than 0 s")
        if self.refreshed_by is Refresh.NONE:
            self._check_no_watchdog()
        self._check_heartbeat()

    def _check_no_watchdog(self) -> None:
        for name in ("current", "power", "fixed", "off", "timeout", "fixed_timeout_s", "heartbeat"):
            if getattr(self, name) is not None:
                raise Contradiction((name,), getattr(self, name), "none where there is no watchdog")
        if self.after_boot is AfterBoot.FALLBACK:
            raise Contradiction(("after_boot",), self.after_boot.value, "another where there is no watchdog")

    def _check_heartbeat(self) -> None:
        beat = self.heartbeat
        if (beat is None) == (self.refreshed_by is Refresh.HEARTBEAT):
            expected = "a heartbeat" if beat is None else "none unless it is what refreshes"
            raise Contradiction(("heartbeat",), "one" if beat else "none", expected)
        if beat is not None and self.fixed_timeout_s is not None and beat.every_s >= self.fixed_timeout_s:
            expected = f"less than the time-out of {self.fixed_timeout_s:g} s"
            raise Contradiction(("heartbeat", "every_s"), beat.every_s, expected)

    @property
    def points(self) -> tuple[str, ...]:
        """The points that say what the device does, and when."""
        return (*(name for name in (self.current, self.power, self.timeout) if name is not None), *self.in_force)


class Quantity(str, Enum):
    """What a device's limit is in: A per conductor, or W for all of them together."""

    CURRENT = "current"
    POWER = "power"


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """A point that allows charging at all, and its two values."""

    point: str
    on: Value
    off: Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """How an EVSE's limit is written: `minimum` is the least above zero that it charges with, `step` its resolution.

    Both in A or W; the step is more than 0, the minimum not negative. `switch`: the limit's point takes no zero; 0 is
    written as the switch's off instead, and any other limit to the point first and then the switch's on. `in_force`:
    the limit holds only while these points hold these values; they are written after it, each time, in their order.
    `gives_back`: it takes limits below zero, which are what is given back.
    `power_factor`: the least with which a device draws what it is told in W; above 0 and at most 1.
    """

    point: str
    quantity: Quantity
    minimum: float
    step: float
    zero: Zero = Zero.PAUSES
    switch: Switch | None = None
    power_factor: float | None = None
    in_force: Mapping[str, Value] = field(default_factory=dict)
    gives_back: bool = False

    def __post_init__(self) -> None:
        if self.switch is not None and (self.in_force or self.gives_back):
            raise Contradiction(("switch",), self.switch.point, "none beside in_force or gives_back")
        if self.power_factor is not None and not 0 < self.power_factor <= 1:
            raise Contradiction(("power_factor",), self.power_factor, "more than 0 and at most 1")
        if self.power_factor is not None and self.quantity is not Quantity.POWER:
            raise Contradiction(("power_factor",), self.power_factor, "none where the limit is a current")
        if not (math.isfinite(self.minimum) and self.minimum >= 0):
            raise Contradiction(("minimum",), self.minimum, "0 or more")
        if not (math.isfinite(self.step) and self.step > 0):
            raise Contradiction(("step",), self.step, "more than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupancy:
    """How a charger shows that no vehicle is there: a point, and which of its values mean that.

    With any other value, and where the point cannot be read, a vehicle is taken to be there.
    """

    point: str
    free: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """What requests a device takes, where that is less than the protocol allows.

    `max_gap` is how many registers that nobody asked for may be read through to join two reads. `max_read` bounds what
    one read takes: where a device refuses two values at once, it is the length of one. `whole_writes`: a multi-register
    value is refused unless it is written at once. `write_function`: the only one of 5, 6, 15 and 16 that it takes.
    `idle_close_s`: it closes a silent connection.
    """

    max_read: int = 125
    max_write: int = 123
    max_gap: int = 0
    max_connections: int | None = None
    write_function: int | None = None
    whole_writes: bool = False
    delay_between_s: float = 0.0
    idle_close_s: float | None = None

    def __post_init__(self) -> None:
        for name, found, low, high in (
            ("max_read", self.max_read, 1, 125),
            ("max_write", self.max_write, 1, 123),
            ("max_gap", self.max_gap, 0, 123),
            ("max_connections", self.max_connections, 1, REGISTERS),
            ("delay_between_s", self.delay_between_s, 0, 60),
            ("idle_close_s", self.idle_close_s, 1, 86400),
        ):
            if found is not None and not low <= found <= high:
                raise Contradiction((name,), found, f"{low} to {high}")
        if self.write_function not in {None, 5, 6, 15, 16}:
            raise Contradiction(("write_function",), self.write_function, "5, 6, 15 or 16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What one kind of device looks like.

    `poll` names the points that control needs, read each second. `traps` are what bites an operator, in words;
    `never_write` are the PDU addresses of holding registers that no tool may touch.

    What a profile must be, or its constructor raises `Contradiction`:

    - name, title and source say something; a point is filed under its own name;
    - a Modbus profile has points and neither SunSpec points, models nor base addresses; a SunSpec profile has SunSpec
      points, the models it uses where a device has them, and base addresses, and no points; the models of each SunSpec
      point are among them;
    - points of one name mean one thing: the canonical ones are in their unit, `state` has named states;
    - every connector's points lie within the table; with one connector nothing strides;
    - no two points claim the same registers, unless they read disjoint bits of the same ones by masks;
    - one read, and one write, holds every point whole; a device that takes one register a write has no writable point
      of more;
    - what is never to be written is an address, and nothing that can be written lies on it;
    - what `poll` names exists and can be read, itself or by its readback, and is named once;
    - the control's point exists, is not a setting, can be written, is in A or W as its quantity says, and can hold the
      least limit, and zero unless a switch stands for that, and less than zero where that is to give back; its step is
      not finer than the point's; what it is in force by can be read and written and is not a setting;
    - the fallback's points exist, are numbers in A, W and s, and can be read, here or by readback, or be declared, as
      can what it is in force by; a fixed value needs a control to be in the quantity of;
    - the heartbeat's point exists and can be written with its value;
    - the occupancy's point can be read, and its values are named states of it, where it has such;
    - a charger has a control and says what it does unattended; a meter has neither.
    """

    name: str
    title: str
    kind: DeviceKind
    protocol: Protocol
    source: str
    points: Mapping[str, Point]
    sunspec_points: Mapping[str, SunSpecPoint]
    fallback: Fallback | None
    control: Control | None
    wire: Wire = Wire()
    connectors: int = 1
    models: tuple[int, ...] = ()
    base_addresses: tuple[int, ...] = ()
    never_write: tuple[int, ...] = ()
    traps: tuple[str, ...] = ()
    poll: tuple[str, ...] = ()
    occupancy: Occupancy | None = None
    settings: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """The names of what a depot file may declare for such a device."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", tuple(point.name for point in _all_points(self) if point.setting))
        for name in ("name", "title", "source"):
            if not getattr(self, name):
                raise Contradiction((name,), "nothing", "some words")
        if self.connectors < 1:
            raise Contradiction(("connectors",), self.connectors, "1 or more")
        _check_protocol(self)
        _check_units(self)
        _check_registers(self)
        _check_never_write(self)
        _check_poll(self)
        _check_control(self)
        _check_fallback(self)
        _check_occupancy(self)

    def point(self, name: str) -> Point | SunSpecPoint:
        """Return a point by its name, of whichever protocol. Raises KeyError."""
        found: Point | SunSpecPoint | None = self.points.get(name) or self.sunspec_points.get(name)
        if found is None:
            raise KeyError(name)
        return found

    def points_at(self, table: Table, address: int, count: int) -> tuple[Point, ...]:
        """Return the points, of any connector, that lie in or across those registers; SunSpec's lie anywhere."""
        return tuple(
            point
            for point in self.points.values()
            if point.table is table
            and any(
                address < point.address_of(connector) + point.length and point.address_of(connector) < address + count
                for connector in range(1, (self.connectors if point.stride else 1) + 1)
            )
        )

    def step(self, name: str) -> float | None:
        """Return what a point's value counts in, in its unit; None where the profile does not tell: floats, SunSpec."""
        point = self.points.get(name)
        floats = (PointType.F32, PointType.F64, PointType.STRING)
        return None if point is None or point.type in floats else abs(point.scale)

    @property
    def temperatures(self) -> Mapping[str, str]:
        """Which of the points that are polled shows the temperature of the enclosure, the charger, the air around it.

        A charger that is told W is a cabinet, whose air `temperature` tells of; of another it is the board's, and of an
        inverter that of its electronics.
        """
        found = {}
        if "temperature" in self.poll:
            cabinet = (
                self.kind is DeviceKind.CHARGER and self.control is not None and self.control.quantity is Quantity.POWER
            )
            found[ENCLOSURE if cabinet and "enclosure_temperature" not in self.poll else CHARGER] = "temperature"
        if "enclosure_temperature" in self.poll:
            found[ENCLOSURE] = "enclosure_temperature"
        if "ambient_temperature" in self.poll:
            found[AMBIENT] = "ambient_temperature"
        return found

    @property
    def control_points(self) -> tuple[str, ...]:
        """The names of what nobody but control writes.

        The limit, and the switch that stands for its zero; of a SunSpec device, whatever can be written and is no
        setting: what it is told for the moment.
        """
        told = tuple(point.name for point in self.sunspec_points.values() if point.writable and not point.setting)
        if self.control is None:
            return told
        switch = self.control.switch
        own = (self.control.point,) if switch is None else (self.control.point, switch.point)
        return (*own, *(name for name in told if name not in own))

    @property
    def power_factor(self) -> float:
        """The least with which the device draws what it is told in W; 1 where it is told A: these bound its draw."""
        if self.control is None or self.control.quantity is not Quantity.POWER:
            return 1.0
        return LEAST_POWER_FACTOR if self.control.power_factor is None else self.control.power_factor

    @property
    def shows_in_force(self) -> bool:
        """Whether what a device shows as its limit is what is in force, rather than what it was told."""
        point = None if self.control is None else self.points.get(self.control.point)
        return point is not None and point.readback is not None

    def watchdog_s(self, settings: Mapping[str, Value]) -> float | None:
        """Return after how long a silence, in s, the device falls back; None: never, or not as far as is known.

        `settings` are what is known to be in the device, declared or read back.
        """
        if self.fallback is None or self.fallback.refreshed_by is Refresh.NONE:
            return None
        if self.fallback.off is not None and self._fallback_setting(settings) == self.fallback.off:
            return None
        known = _number(settings, self.fallback.timeout)
        seconds = self.fallback.fixed_timeout_s if known is None else known
        return seconds if seconds is not None and seconds > 0 else None

    def unattended_a(self, settings: Mapping[str, Value], rating_a: float, voltage_v: float, phases: int) -> float:
        """Return what an EVSE may draw, in A per conductor, when nobody speaks to it and after it has booted.

        The larger of the two: fallback, and what holds from the boot on. The rating stands for each that is not known:
        no watchdog or one that is off, a fallback value that is neither declared nor read back, a limit that survives
        the boot. It is more than the rating only where the fallback itself is. `settings` as for `watchdog_s`;
        `voltage_v` is between lines for two or three phases and to neutral for one. A fallback in W is taken as active
        power shared evenly by the phases, as a DC charger's rectifier does. Raises ValueError for a rating or a voltage
        that is not positive, and for a number of phases other than 1, 2 or 3.
        """
        if not (rating_a > 0 and voltage_v > 0 and phases in {1, 2, 3}):
            raise ValueError(f"found {rating_a} A, {voltage_v} V, {phases} phases, expected positive ones and 1 to 3")
        if self.fallback is None:
            return rating_a
        fallback_a = self._fallback_a(settings, rating_a, voltage_v, phases)
        after_boot_a = {
            AfterBoot.RATING: rating_a,
            AfterBoot.HELD: rating_a,
            AfterBoot.FALLBACK: fallback_a,
            AfterBoot.OFF: 0.0,
        }[self.fallback.after_boot]
        return max(fallback_a, after_boot_a)

    def _fallback_setting(self, settings: Mapping[str, Value]) -> float | None:
        return None if self.fallback is None else _number(settings, self.fallback.current or self.fallback.power)

    def _fallback_a(self, settings: Mapping[str, Value], rating_a: float, voltage_v: float, phases: int) -> float:
        value = self.fallback_a(settings, voltage_v, phases)
        return rating_a if value is None or value < 0 else value

    def fallback_a(self, settings: Mapping[str, Value], voltage_v: float, phases: int) -> float | None:
        """Return what an EVSE falls back to, in A per conductor, below zero what it gives back; None: it is not known.

        `settings`, `voltage_v` and `phases` as for `unattended_a`.
        """
        if self.fallback is None or self.watchdog_s(settings) is None:
            return None
        if any(settings.get(name) != held for name, held in self.fallback.in_force.items()):
            return None
        in_watts = self.fallback.power is not None
        value = self._fallback_setting(settings)
        if self.fallback.fixed is not None and self.control is not None:
            value = self.fallback.fixed
            in_watts = self.control.quantity is Quantity.POWER
        if value is None or not in_watts:
            return value
        to_neutral_v = voltage_v if phases == 1 else voltage_v / math.sqrt(3)
        return value / (to_neutral_v * phases)


def nearest(name: str, names: Collection[str]) -> str | None:
    """Return the valid name that a mistaken one most likely meant, or None."""
    return next(iter(difflib.get_close_matches(name, sorted(names), n=1)), None)


def _number(settings: Mapping[str, Value], name: str | None) -> float | None:
    value = None if name is None else settings.get(name)
    if value is None or isinstance(value, bool | str) or not math.isfinite(value):
        return None
    return float(value)


def _all_points(profile: Profile) -> Iterator[Point | SunSpecPoint]:
    yield from profile.points.values()
    yield from profile.sunspec_points.values()


def _path(profile: Profile, name: str, *rest: str) -> tuple[str | int, ...]:
    return ("points" if name in profile.points else "sunspec_points", name, *rest)


def _find(profile: Profile, path: tuple[str | int, ...], name: str) -> Point | SunSpecPoint:
    try:
        return profile.point(name)
    except KeyError:
        names = [*profile.points, *profile.sunspec_points]
        raise Contradiction(path, name, "the name of a point", nearest(name, names)) from None


def _check_protocol(profile: Profile) -> None:
    sunspec = profile.protocol is Protocol.SUNSPEC
    for name, wanted in (
        ("points", not sunspec),
        ("sunspec_points", sunspec),
        ("models", sunspec),
        ("base_addresses", sunspec),
    ):
        if bool(getattr(profile, name)) != wanted:
            found, expected = ("none", "some") if wanted else ("some", "none")
            raise Contradiction((name,), found, f"{expected} where the protocol is {profile.protocol.value}")
    named: list[tuple[str, Point | SunSpecPoint]] = [*profile.points.items(), *profile.sunspec_points.items()]
    for name, point in named:
        if point.name != name:
            raise Contradiction(_path(profile, name, "name"), point.name, name)
    for name, sunspec_point in profile.sunspec_points.items():
        for model in (sunspec_point.model, *sunspec_point.alternatives):
            if model not in profile.models:
                expected = f"one of models: {', '.join(map(str, profile.models))}"
                raise Contradiction(("sunspec_points", name, "model"), model, expected)
    for place, address in enumerate(profile.base_addresses):
        if not 0 <= address < REGISTERS:
            raise Contradiction(("base_addresses", place), address, f"0 to {REGISTERS - 1}")


def _check_units(profile: Profile) -> None:
    for point in _all_points(profile):
        unit = CANONICAL_UNITS.get(point.name)
        if unit is not None and point.unit != unit:
            raise Contradiction(_path(profile, point.name, "unit"), point.unit or "none", unit)
    state = profile.points.get("state")
    if state is not None and state.states is None and state.type is not PointType.STRING:
        raise Contradiction(("points", "state", "states"), "none", "a name for each raw value, or a text")


def _check_registers(profile: Profile) -> None:
    claimed: list[tuple[str, int, int, Point]] = []
    for point in profile.points.values():
        if profile.connectors == 1 and point.stride:
            raise Contradiction(("points", point.name, "stride"), point.stride, "none, for there is one connector")
        last = point.address_of(profile.connectors)
        if last + point.length > REGISTERS:
            found = f"{point.stride}, so connector {profile.connectors} at {last}"
            raise Contradiction(("points", point.name, "stride"), found, f"addresses up to {REGISTERS - 1}")
        _check_request(profile, point)
        for connector in range(1, (profile.connectors if point.stride else 1) + 1):
            first = point.address_of(connector)
            claimed.append((point.table.value, first, first + point.length, point))
    claimed.sort(key=lambda claim: claim[:3])
    reach: list[tuple[str, int, int, Point]] = []
    for claim in claimed:
        reach = [other for other in reach if other[0] == claim[0] and other[2] > claim[1]]
        for other in reach:
            if not _shared(other, claim):
                found = f"{claim[1]}, within {other[3].name}"
                raise Contradiction(("points", claim[3].name, "address"), found, "registers that no other point claims")
        reach.append(claim)


def _shared(one: tuple[str, int, int, Point], two: tuple[str, int, int, Point]) -> bool:
    a, b = one[3].mask, two[3].mask
    return a is not None and b is not None and not a & b and one[:3] == two[:3]


def _check_request(profile: Profile, point: Point) -> None:
    if point.table not in {Table.HOLDING, Table.INPUT}:
        return
    wire = profile.wire
    if point.readable and point.length > wire.max_read:
        raise Contradiction(("points", point.name, "length"), point.length, f"at most wire.max_read, {wire.max_read}")
    longest = 1 if wire.write_function in {5, 6} else wire.max_write
    if point.writable and point.length > longest:
        raise Contradiction(
            ("points", point.name, "length"), point.length, f"at most {longest}, what one write carries"
        )


def _check_never_write(profile: Profile) -> None:
    for place, address in enumerate(profile.never_write):
        if not 0 <= address < REGISTERS:
            raise Contradiction(("never_write", place), address, f"0 to {REGISTERS - 1}")
        for point in profile.points.values():
            if not point.writable or point.table is not Table.HOLDING:
                continue
            for connector in range(1, (profile.connectors if point.stride else 1) + 1):
                if 0 <= address - point.address_of(connector) < point.length:
                    raise Contradiction(
                        ("never_write", place), address, f"an address outside {point.name}, which is written"
                    )


def _check_poll(profile: Profile) -> None:
    for place, name in enumerate(profile.poll):
        point = _find(profile, ("poll", place), name)
        if not _known(point):
            raise Contradiction(("poll", place), name, "a point that can be read, or has a readback")
        if profile.poll.index(name) != place:
            raise Contradiction(("poll", place), name, "each point once")


def _check_occupancy(profile: Profile) -> None:
    occupancy = profile.occupancy
    if occupancy is None:
        return
    point = _find(profile, ("occupancy", "point"), occupancy.point)
    if not _known(point):
        raise Contradiction(("occupancy", "point"), occupancy.point, "a point that can be read, or has a readback")
    states = None if not isinstance(point, Point) or point.states is None else tuple(point.states.values())
    for place, name in enumerate(occupancy.free):
        if states is not None and name not in states:
            expected = f"one of {', '.join(states)}"
            raise Contradiction(("occupancy", "free", place), name, expected, nearest(name, states))


def _known(point: Point | SunSpecPoint) -> bool:
    return point.readable or (isinstance(point, Point) and point.readback is not None)


def _check_control(profile: Profile) -> None:
    control = profile.control
    if control is None:
        if profile.kind is DeviceKind.CHARGER:
            raise Contradiction(("control",), "none", "one for a charger")
        return
    if profile.kind is DeviceKind.METER:
        raise Contradiction(("control",), "one", "none for a meter")
    point: Point | SunSpecPoint = _find(profile, ("control", "point"), control.point)
    if not point.writable or point.setting:
        raise Contradiction(("control", "point"), control.point, "a point that can be written and is not a setting")
    unit = "A" if control.quantity is Quantity.CURRENT else "W"
    if point.unit != unit:
        expected = f"a point in {unit} for a limit of {control.quantity.value}"
        raise Contradiction(("control", "point"), f"{control.point} in {point.unit or 'no unit'}", expected)
    if isinstance(point, Point):
        _check_limit(profile, control, point)
    _check_limit_in_force(profile, control)


def _check_limit_in_force(profile: Profile, control: Control) -> None:
    for name, held in control.in_force.items():
        point = _find(profile, ("control", "in_force", name), name)
        if not (point.writable and _known(point)) or point.setting:
            raise Contradiction(("control", "in_force", name), name, "a point to be read and written, and no setting")
        if isinstance(point, Point):
            _check_given(point, held, ("control", "in_force", name))


def _check_limit(profile: Profile, control: Control, point: Point) -> None:
    if point.type is PointType.STRING or point.states is not None or point.mask is not None:
        raise Contradiction(("control", "point"), control.point, "a number that has its registers to itself")
    if point.type not in {PointType.F32, PointType.F64} and control.step < abs(point.scale):
        raise Contradiction(("control", "step"), control.step, f"at least {abs(point.scale):g}, the point's own")
    _check_given(point, control.minimum, ("control", "minimum"))
    if control.gives_back:
        _check_given(point, -max(control.minimum, control.step), ("control", "gives_back"))
    if control.switch is None:
        _check_given(point, 0, ("control", "zero"))
    else:
        _check_switch(profile, control.switch)


def _check_switch(profile: Profile, switch: Switch) -> None:
    point = _find(profile, ("control", "switch", "point"), switch.point)
    if not point.writable or switch.on == switch.off:
        raise Contradiction(("control", "switch"), switch.point, "a point to be written, and two values")
    if isinstance(point, Point):
        _check_given(point, switch.on, ("control", "switch", "on"))
        _check_given(point, switch.off, ("control", "switch", "off"))


def _check_given(point: Point, value: Value, path: tuple[str | int, ...]) -> None:
    try:
        point.quantise(value)
    except OutOfRange as problem:
        raise Contradiction(path, value, f"what {point.name} can be given: {problem.expected}") from None


def _check_fallback(profile: Profile) -> None:
    fallback = profile.fallback
    if fallback is None:
        if profile.kind is DeviceKind.CHARGER:
            raise Contradiction(("fallback",), "none", "one for a charger; refreshed_by: none where it has no watchdog")
        return
    if profile.kind is DeviceKind.METER:
        raise Contradiction(("fallback",), "one", "none for a meter")
    for key, name, unit in (
        ("current", fallback.current, "A"),
        ("power", fallback.power, "W"),
        ("timeout", fallback.timeout, "s"),
    ):
        if name is None:
            continue
        point = _find(profile, ("fallback", key), name)
        if point.unit != unit:
            raise Contradiction(("fallback", key), f"{name} in {point.unit or 'no unit'}", f"a point in {unit}")
        if not (_known(point) or point.setting):
            raise Contradiction(("fallback", key), name, "a point that can be read, or a setting")
    _check_fallback_in_force(profile, fallback)
    if fallback.fixed is not None and profile.control is None:
        raise Contradiction(("fallback", "fixed"), fallback.fixed, "none without a control that says its quantity")
    if fallback.heartbeat is not None:
        _check_heartbeat(profile, fallback.heartbeat)


def _check_fallback_in_force(profile: Profile, fallback: Fallback) -> None:
    for name in fallback.in_force:
        point = _find(profile, ("fallback", "in_force", name), name)
        if not (_known(point) or point.setting):
            raise Contradiction(("fallback", "in_force", name), name, "a point that can be read, or a setting")


def _check_heartbeat(profile: Profile, heartbeat: Heartbeat) -> None:
    point = _find(profile, ("fallback", "heartbeat", "point"), heartbeat.point)
    if not point.writable:
        raise Contradiction(("fallback", "heartbeat", "point"), heartbeat.point, "a point that can be written")
    if isinstance(point, Point):
        _check_given(point, heartbeat.value, ("fallback", "heartbeat", "value"))
