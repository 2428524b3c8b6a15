# SPDX-License-Identifier: Apache-2.0
"""Raw registers as they are declared for devices that no profile describes. Pure.

`declare` goes from the arguments of `modbus_registers` and `modbus_registers_info` to what is to be asked of whom, or
to everything that is wrong with them. Each register becomes a profile's point, so it is laid out, bounded and checked
as those are.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias, TypeGuard, TypeVar

from derms_agent import profiles
from derms_agent.drivers.register_map import ModbusMap, Words, same
from derms_agent.drivers.writes import COIL_FUNCTIONS, REGISTER_FUNCTIONS, WRITE_SINGLE, Forbidden, Write
from derms_agent.model import Bus, Depot, Device, DeviceKind, Transport, Value
from derms_agent.profiles.notation import AddressBase, AddressError, pdu_address
from derms_agent.profiles.point import (
    BIT_TABLES,
    FIXED_LENGTHS,
    FLOATS,
    WORD,
    WRITABLE_TABLES,
    Access,
    Contradiction,
    Order,
    OutOfRange,
    Point,
    PointType,
    Table,
)
from derms_agent.profiles.profile import Profile, Protocol, Wire, nearest

T = TypeVar("T")
Arguments: TypeAlias = Mapping[str, Any]
"""What a module was given, of the types that its argument spec says."""

HIGHEST_SERIAL_UNIT = 247
HIGHEST_PORT = 65535
MOST_BITS = 64
"""In one field: what a whole number of any other type can hold as well."""
DEADLINE_S = 120.0
LEAST_SCALE, LARGEST_SCALE = 1e-12, 1e12
"""Beyond these a value is no more a number that a double can tell from its neighbours."""
WIRE_LIMITS = ("max_read", "max_write", "max_gap")
"""Which of the limits are what a device takes in one request."""

POINT_PREFIX = "register "
"""What a register's name is preceded by as a point, so that no name of a person's is taken for one that means more."""
_KEYS = {"minimum": "min", "maximum": "max"}
_NOWHERE = Device(name="", kind=DeviceKind.METER, bus="", unit_id=1, profile="")


class DeclarationError(ValueError):
    """A declaration that is not to be carried out. Its text has a line for each problem."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many devices at once, on one bus and on all, and how long a device may take.

    `timeout_s` is for an answer; one that does not show what was written is read again for `verify_s`. Raises
    Contradiction.
    """

    per_bus: int = 1
    total: int = 200
    timeout_s: float = 1.0
    verify_s: float = 3.0

    def __post_init__(self) -> None:
        for key, found in (("per_bus", self.per_bus), ("global", self.total)):
            if found < 1:
                raise Contradiction((key,), found, "1 or more")
        for key in ("timeout_s", "verify_s"):
            found_s = getattr(self, key)
            if not (math.isfinite(found_s) and found_s > 0):
                raise Contradiction((key,), found_s, "more than 0 s")


@dataclass(frozen=True, slots=True)
class Target:
    """One device, and what its registers are to hold. `bus`: None where it names one of a depot that is not known."""

    name: str
    bus: Bus | None
    bus_name: str
    unit_id: int
    wanted: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a declaration says of a register that a profile's point does not."""

    tolerance: float = 0.0
    function: int | None = None
    verified: bool = True
    expected: str | None = None


class Registers(ModbusMap):
    """Where declared registers lie, by the names of their points."""

    def __init__(self, profile: Profile, terms: Mapping[str, Terms]) -> None:
        super().__init__(_NOWHERE, profile)
        self.profile = profile
        self.terms = terms

    @property
    def unverified(self) -> frozenset[str]:
        """The names of what is not read back after a write."""
        return frozenset(name for name, terms in self.terms.items() if not terms.verified)

    def write(self, name: str, value: Value, words: Words) -> Write:
        """Return the request that writes it, by the function that was declared."""
        return replace(super().write(name, value, words), function=self.terms[name].function)

    def shown(self, name: str) -> Point:
        """Return the point that its value is read from."""
        point = self.profile.points[name]
        return point if point.readback is None else point.readback

    def alike(self, name: str, found: Value | None, wanted: Value | None) -> bool:
        """Whether a register holds what it should: exactly, but for what a float and the declaration tolerate."""
        tolerance = self.terms[name].tolerance
        if tolerance and _is_number(found) and _is_number(wanted):
            return abs(found - wanted) <= tolerance * (1 + 1e-9)
        return same(found, wanted) if self.shown(name).type in FLOATS else found == wanted

    def check(self, name: str, value: Value) -> None:
        """Raise OutOfRange or Forbidden where the value cannot be written."""
        point = self.profile.points[name]
        self.held(name, value, {})
        self.write(name, value, {name: (0,) * point.length})


@dataclass(frozen=True, slots=True)
class Declaration:
    """What is to be asked of whom.

    After `deadline_s` no device is begun, and none once more than `most_failures` have failed; None: all are tried.
    `blind`: what a device never shows is written in any case.
    """

    registers: Registers
    targets: tuple[Target, ...]
    limits: Limits = Limits()
    deadline_s: float = DEADLINE_S
    most_failures: int | None = None
    blind: bool = False


# From arguments to a declaration


def declare(
    arguments: Arguments,
    depot: Depot | None = None,
    *,
    writes: bool = True,
    same_endpoint: Callable[[str, str], bool] = operator.eq,
) -> Declaration:
    """Return what a module's arguments declare.

    `writes`: registers have values that they are to hold; otherwise they are read only. With a depot, nothing is
    declared that control or `device_settings` answers for. Raises DeclarationError, with every problem that was found.
    """
    problems: list[str] = []
    registers = _registers(arguments, problems, writes=writes)
    limits = _try(problems, ("limits",), partial(_limits, arguments.get("limits") or {})) or Limits()
    targets = _targets(arguments, depot, limits, same_endpoint, problems)
    if writes and registers is not None:
        targets = _with_values(targets, arguments, registers, problems)
        if depot is not None:
            problems += _not_ours(targets, registers, depot)
    deadline_s = _try(problems, (), partial(_deadline_s, arguments)) or DEADLINE_S
    most = _try(problems, (), partial(_most_failures, arguments, len(targets)))
    if problems or registers is None:
        raise DeclarationError(problems)
    return Declaration(registers, targets, limits, deadline_s, most, bool(arguments.get("blind")))


def _try(problems: list[str], path: tuple[str | int, ...], make: Callable[[], T]) -> T | None:
    """Return what is made, or None and note what is wrong with it, under its path in the arguments."""
    try:
        return make()
    except Contradiction as problem:
        where = ".".join(str(_KEYS.get(str(key), key)) for key in (*path, *problem.path))
        problems.append(f"{where}: found {problem.found}, expected {problem.expected}")
    except AddressError as problem:
        problems.append(f"{'.'.join(map(str, (*path, 'address')))}: {problem}")
    return None


def _limits(given: Arguments) -> Limits:
    named = {{"global": "total"}.get(key, key): value for key, value in given.items() if key not in WIRE_LIMITS}
    return Limits(**{key: value for key, value in named.items() if value is not None})


def _deadline_s(arguments: Arguments) -> float:
    found_s = _number(arguments, "deadline_s", DEADLINE_S)
    if not (math.isfinite(found_s) and found_s > 0):
        raise Contradiction(("deadline_s",), found_s, "more than 0 s")
    return found_s


def _most_failures(arguments: Arguments, devices: int) -> int | None:
    """Return how many devices may fail before no further one is begun; None: all are tried, whatever fails."""
    given = str(arguments.get("max_failures") or "0")
    number, percent, rest = given.partition("%")
    if not number.isdecimal() or rest:
        raise Contradiction(("max_failures",), given, "a number or a percentage, such as 2 or 5%")
    most = devices * int(number) // 100 if percent else int(number)
    return most if arguments.get("on_error") == "fail" else None


def _registers(arguments: Arguments, problems: list[str], *, writes: bool) -> Registers | None:
    points: dict[str, Point] = {}
    terms: dict[str, Terms] = {}
    base = AddressBase(arguments["address_base"])
    wire = _try(problems, ("limits",), partial(_wire, arguments.get("limits") or {})) or Wire()
    for place, given in enumerate(arguments["registers"]):
        name = str(given["name"])
        path = ("registers", name or place)
        if not name or "/" in name:
            problems.append(f"registers.{place}.name: found {name!r}, expected a name without a slash")
            continue
        if POINT_PREFIX + name in points:
            problems.append(f"registers.{name}.name: found it twice, expected each name once")
            continue
        point = _try(problems, path, partial(_point, given, base, writes=writes))
        if point is not None:
            points[point.name] = point
            terms[point.name] = _try(problems, path, partial(_terms, given, point)) or Terms()
            _try(problems, path, partial(_check_lengths, point, wire))
    if not arguments["registers"]:
        problems.append("registers: found none, expected at least one")
    if problems:
        return None
    profile = _try(problems, ("registers",), partial(_profile, points, wire))
    return None if profile is None else Registers(profile, terms)


def _wire(given: Arguments) -> Wire:
    return Wire(**{key: given[key] for key in WIRE_LIMITS if given.get(key) is not None})


def _profile(points: Mapping[str, Point], wire: Wire) -> Profile:
    try:
        return Profile(
            name="declared",
            title="device as declared",
            kind=DeviceKind.METER,  # it is not controlled, which is all that a kind says here
            protocol=Protocol.MODBUS,
            source="the arguments of the module",
            points=points,
            sunspec_points={},
            fallback=None,
            control=None,
            wire=wire,
        )
    except Contradiction as problem:
        path = tuple(str(key).removeprefix(POINT_PREFIX) for key in problem.path if key != "points")
        found = str(problem.found).replace(POINT_PREFIX, "")
        raise Contradiction(path, found, problem.expected.replace("point", "register")) from None


def _check_lengths(point: Point, wire: Wire) -> None:
    """Check what a profile leaves to the bus: bits, and functions that take one register."""
    if point.readable and point.length > wire.max_read:
        raise Contradiction(("length",), point.length, f"at most limits.max_read, {wire.max_read}")
    if point.readback is not None and point.readback.length > wire.max_read:
        raise Contradiction(("readback_type",), point.readback.type.value, f"at most {wire.max_read} registers")


def _point(given: Arguments, base: AddressBase, *, writes: bool) -> Point:
    name = POINT_PREFIX + str(given["name"])
    named = None if given.get("table") is None else Table(given["table"])
    table, address = pdu_address(given["address"], base, named)
    if writes and table not in WRITABLE_TABLES:
        raise Contradiction(("table",), table.value, "holding or coil, which can be written")
    kind = PointType(given["type"])
    mask = given.get("mask")
    elsewhere = given.get("readback_address") is not None
    only_written = bool(given.get("write_only")) or elsewhere
    if mask is not None and given.get("write_only"):
        raise Contradiction(("mask",), f"{mask:#x}", "none where it is only written: its other bits must be read first")
    if given.get("volatile") and given.get("write_only") and not elsewhere:
        raise Contradiction(("volatile",), "true", "something that can be read")
    access = Access.READ if not writes else Access.WRITE if only_written else Access.READ_WRITE
    return Point(
        name=name,
        table=table,
        address=address,
        type=kind,
        length=_length(given, kind, table),
        scale=_scale(given, "scale"),
        offset=_offset(given),
        unit=given.get("unit") or "",
        access=access,
        word_order=Order(given.get("word_order") or Order.BIG),
        byte_order=Order(given.get("byte_order") or Order.BIG),
        mask=mask,
        minimum=given.get("min"),
        maximum=given.get("max"),
        readback=_readback(given, base, name) if elsewhere else None,
        setting=writes,
        volatile=bool(given.get("volatile")),
        blind=only_written and not elsewhere,
    )


def _readback(given: Arguments, base: AddressBase, name: str) -> Point:
    """Return where the register's value is shown, in its own layout but for what is said to differ."""
    try:
        named = Table(given.get("readback_table") or Table.HOLDING) if base is not AddressBase.MODICON else None
        table, address = pdu_address(given["readback_address"], base, named)
    except AddressError as problem:
        raise Contradiction(("readback_address",), given["readback_address"], str(problem)) from None
    kind = PointType(given.get("readback_type") or given["type"])
    alike = kind.value == given["type"]
    return Point(
        name=name,
        table=table,
        address=address,
        type=kind,
        length=_length(given, kind, table) if alike else FIXED_LENGTHS.get(kind, 1),
        scale=_scale(given, "scale" if given.get("readback_scale") is None else "readback_scale"),
        offset=_offset(given),
        unit=given.get("unit") or "",
        word_order=Order(given.get("word_order") or Order.BIG),
        byte_order=Order(given.get("byte_order") or Order.BIG),
        mask=given.get("mask") if alike else None,
    )


def _length(given: Arguments, kind: PointType, table: Table) -> int:
    length = given.get("length")
    if length is not None:
        most = MOST_BITS if table in BIT_TABLES else MOST_BITS // WORD
        if kind is PointType.BITS and not 1 <= length <= most:
            raise Contradiction(("length",), length, f"1 to {most} for bits in the table {table.value}")
        return int(length)
    if kind in FIXED_LENGTHS:
        return FIXED_LENGTHS[kind]
    if kind is PointType.BITS and (table in BIT_TABLES or given.get("mask") is not None):
        return 1
    raise Contradiction(("length",), "none", f"one for {kind.value}")


def _number(given: Arguments, key: str, default: float) -> float:
    found = given.get(key)
    return default if found is None else float(found)


def _scale(given: Arguments, key: str) -> float:
    found = _number(given, key, 1.0)
    if not LEAST_SCALE <= abs(found) <= LARGEST_SCALE:
        raise Contradiction((key,), found, f"{LEAST_SCALE:g} to {LARGEST_SCALE:g} in size")
    return found


def _offset(given: Arguments) -> float:
    found = _number(given, "offset", 0.0)
    if not abs(found) <= LARGEST_SCALE:
        raise Contradiction(("offset",), found, f"at most {LARGEST_SCALE:g} in size")
    return found


def _terms(given: Arguments, point: Point) -> Terms:
    tolerance = _number(given, "tolerance", 0.0)
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise Contradiction(("tolerance",), tolerance, "0 or more")
    if tolerance and (point.type is PointType.STRING or point.is_flag):
        raise Contradiction(("tolerance",), tolerance, "none for texts and flags")
    asked = str(given.get("write_fc") or "auto")
    function = None if asked == "auto" else int(asked)
    if function is not None:
        functions = COIL_FUNCTIONS if point.table is Table.COIL else REGISTER_FUNCTIONS
        if function not in functions:
            expected = f"{' or '.join(map(str, sorted(functions)))} in the table {point.table.value}"
            raise Contradiction(("write_fc",), function, expected)
        if function in WRITE_SINGLE and point.length > 1:
            raise Contradiction(("write_fc",), function, f"one that writes {point.length} at once: a value goes whole")
    return Terms(tolerance, function, given.get("verify", "readback") != "none", given.get("expect"))


def _targets(
    arguments: Arguments,
    depot: Depot | None,
    limits: Limits,
    same_endpoint: Callable[[str, str], bool],
    problems: list[str],
) -> tuple[Target, ...]:
    targets: dict[str, Target] = {}
    units: dict[tuple[str, int], str] = {}
    for place, given in enumerate(arguments["devices"]):
        name = str(given["name"])
        if not name or name in targets:
            problems.append(f"devices.{place}.name: found {name!r}, expected a name that no other device has")
            continue
        target = _try(problems, ("devices", name), partial(_target, given, depot, limits, same_endpoint))
        if target is None:
            continue
        if depot is not None:
            problems += _not_here(target, arguments.get("gateway"), depot)
        other = units.setdefault((target.bus_name, target.unit_id), name)
        if other != name:
            problems.append(f"devices.{name}.unit_id: found {target.unit_id}, expected another than {other} has there")
        targets[name] = target
    return tuple(targets.values())


def _target(given: Arguments, depot: Depot | None, limits: Limits, same_endpoint: Callable[[str, str], bool]) -> Target:
    unit_id = 1 if given.get("unit_id") is None else int(given["unit_id"])
    if bool(given.get("bus")) == bool(given.get("host")):
        raise Contradiction(("host",), "neither or both", "either bus or host")
    bus_name = str(given.get("bus"))
    bus = _declared_bus(given, depot) if given.get("bus") else _endpoint(given, depot, limits, same_endpoint)
    serial = bus is not None and bus.transport is not Transport.TCP
    low, high = (1, HIGHEST_SERIAL_UNIT) if serial else (0, 255)
    if not low <= unit_id <= high:
        raise Contradiction(("unit_id",), unit_id, f"{low} to {high}")
    return Target(str(given["name"]), bus, bus_name if bus is None else bus.name, unit_id)


def _declared_bus(given: Arguments, depot: Depot | None) -> Bus | None:
    name = str(given["bus"])
    for key in ("port", "framer"):
        if given.get(key) is not None:
            raise Contradiction((key,), given[key], f"none beside bus: the depot file says how {name} is reached")
    if depot is None:
        return None
    if name not in depot.buses:
        raise Contradiction(("bus",), name, f"a bus of {depot.name}", nearest(name, depot.buses))
    return depot.buses[name]


def _endpoint(given: Arguments, depot: Depot | None, limits: Limits, same_endpoint: Callable[[str, str], bool]) -> Bus:
    """Return the bus that is at an endpoint: the depot's where it has one there, for a bus has one master."""
    port = 502 if given.get("port") is None else int(given["port"])
    if not 1 <= port <= HIGHEST_PORT:
        raise Contradiction(("port",), port, f"1 to {HIGHEST_PORT}")
    bus = Bus(
        name=f"{given['host']}:{port}",
        gateway="",
        transport=Transport(given.get("framer") or Transport.TCP),
        host=str(given["host"]),
        port=port,
        timeout_s=limits.timeout_s,
        gateway_timeout_s=limits.timeout_s,
    )
    declared = () if depot is None else depot.buses.values()
    return next((one for one in declared if same_endpoint(one.endpoint, bus.endpoint)), bus)


def _not_here(target: Target, gateway: str | None, depot: Depot) -> Iterator[str]:
    """Yield why a bus of the depot is not this gateway's to ask: each has one master."""
    if target.bus is None or not target.bus.gateway or len(depot.gateways) == 1:
        return
    if gateway not in depot.gateways:
        yield f"gateway: found {gateway or 'none'}, expected this gateway's name, one of {', '.join(depot.gateways)}"
    elif target.bus.gateway != gateway:
        found = f"{target.bus_name}, a bus of {target.bus.gateway}"
        yield f"devices.{target.name}.bus: found {found}, expected one of {gateway}"


def _with_values(
    targets: tuple[Target, ...], arguments: Arguments, registers: Registers, problems: list[str]
) -> tuple[Target, ...]:
    """Return the targets with what their registers are to hold: the registers' values, or the devices' own."""
    common = {str(given["name"]): given.get("value") for given in arguments["registers"]}
    own = {str(given["name"]): given.get("values") or {} for given in arguments["devices"]}
    for name, value in common.items():
        if value is not None:
            problems += _wrong(registers, name, value, f"registers.{name}.value")
    found = []
    for target in targets:
        for name, value in own[target.name].items():
            problems += _wrong(registers, str(name), value, f"devices.{target.name}.values.{name}")
        values = {**common, **own[target.name]}
        for name in common:
            if values[name] is None and not registers.profile.points[POINT_PREFIX + name].volatile:
                problems.append(f"registers.{name}.value: found none for {target.name}, expected one")
        wanted = {POINT_PREFIX + str(name): value for name, value in values.items() if value is not None}
        found.append(replace(target, wanted=wanted))
    return tuple(found)


def _wrong(registers: Registers, name: str, value: object, path: str) -> tuple[str, ...]:
    if POINT_PREFIX + name not in registers.names:
        names = [known.removeprefix(POINT_PREFIX) for known in registers.names]
        hint = nearest(name, names)
        return (f"{path}: found {name}, expected a register" + (f" (did you mean {hint}?)" if hint else ""),)
    if not isinstance(value, bool | int | float | str):
        return (f"{path}: found {value!r}, expected a number, a text, or true or false",)
    try:
        registers.check(POINT_PREFIX + name, value)
    except OutOfRange as problem:
        return (f"{path}: found {problem.found!r}, expected {problem.expected}",)
    except Forbidden as problem:
        return (f"{path}: {str(problem).replace(POINT_PREFIX, '')}",)
    return ()


def _not_ours(targets: Iterable[Target], registers: Registers, depot: Depot) -> Iterator[str]:
    """Yield what a depot's control or its settings answer for: nobody else writes it."""
    owners: dict[tuple[str, int], list[Device]] = {}
    for device in depot.devices.values():
        owners.setdefault((device.bus, device.unit_id), []).append(device)
    for target in targets:
        for device in owners.get((target.bus_name, target.unit_id), ()):
            profile = profiles.load(device.profile)
            for name in target.wanted:
                point = registers.profile.points[name]
                why = None if point.volatile else _owner(profile, point)
                if why is not None:
                    yield (
                        f"devices.{target.name}, register {name.removeprefix(POINT_PREFIX)}: found {point.table.value} "
                        f"{point.address} of {device.name} to be written, expected none: {why}"
                    )


def _owner(profile: Profile, point: Point) -> str | None:
    """Return why nobody writes these registers of a device with a profile as they are; None: anybody may."""
    if profile.protocol is Protocol.SUNSPEC:
        return "device_settings and der_settings write a SunSpec device's models, wherever it has them"
    fallback = profile.fallback
    settings = () if fallback is None else fallback.points
    beat = None if fallback is None or fallback.heartbeat is None else fallback.heartbeat.point
    for other in profile.points_at(point.table, point.address, point.length):
        if other.name == beat or other.name in profile.control_points:
            return f"control owns {other.name} of a {profile.title}"
        if other.name in settings and other.writable:
            return f"device_settings writes {other.name}, in the order that keeps every circuit within its rating"
    if point.table is Table.HOLDING and any(
        point.address <= at < point.address + point.length for at in profile.never_write
    ):
        return f"such a register of a {profile.title} is never to be written"
    return None


def _is_number(value: Value | None) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
