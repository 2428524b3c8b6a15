# SPDX-License-Identifier: Apache-2.0
"""Reads profiles from YAML: strictly, so that a mistake is answered with its file, line, column and what was expected.

The built-in profiles are package data beside this module; a person's own lie in any directory.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import yaml

from derms_agent.model import DeviceKind, Value
from derms_agent.profiles.point import FIXED_LENGTHS, Access, Contradiction, Order, Point, PointType, Table
from derms_agent.profiles.profile import (
    AfterBoot,
    Control,
    Fallback,
    Heartbeat,
    Occupancy,
    Profile,
    Protocol,
    Quantity,
    Refresh,
    SunSpecPoint,
    Switch,
    Wire,
    Zero,
    nearest,
)

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable  # from Python 3.11 on

SUFFIX = ".yml"

_T = TypeVar("_T")
_E = TypeVar("_E", bound=Enum)
_Path: TypeAlias = "tuple[str | int, ...]"
_Convert: TypeAlias = "Callable[[_Place], object]"


class ProfileError(ValueError):
    """A profile that cannot be taken. `line` and `column` count from 1; `key` is the dotted way to what is at fault."""

    def __init__(
        self,
        file: str,
        line: int,
        column: int,
        key: str,
        *,
        found: object,
        expected: str,
        nearest_name: str | None = None,
    ) -> None:
        hint = f" (did you mean {nearest_name}?)" if nearest_name else ""
        at = f"{key}: " if key else ""
        super().__init__(f"{file}:{line}:{column}: {at}found {found}, expected {expected}{hint}")
        self.file = file
        self.line = line
        self.column = column
        self.key = key
        self.found = found
        self.expected = expected
        self.nearest = nearest_name


# In C where PyYAML was built with libyaml: a profile takes a fifth of the time.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """One YAML node and the way to it; `key` is the node of the last step, where that is a key."""

    file: str
    node: yaml.Node
    path: _Path
    key: yaml.Node | None = None

    def error(self, found: object, expected: str, nearest_name: str | None = None) -> ProfileError:
        mark = self.node.start_mark
        key = ".".join(map(str, self.path))
        return ProfileError(
            self.file, mark.line + 1, mark.column + 1, key, found=found, expected=expected, nearest_name=nearest_name
        )

    def at_key(self) -> _Place:
        """Return the place of this value's key."""
        return self if self.key is None else _Place(self.file, self.key, self.path)

    def scalar(self) -> object:
        if not isinstance(self.node, yaml.ScalarNode):
            raise self.error(_kind(self.node), "a single value")
        return _construct(self.node)

    def items(self) -> dict[object, _Place]:
        """Return a mapping's values by key. A key that comes twice is an error, not the last one's victory."""
        if not isinstance(self.node, yaml.MappingNode):
            raise self.error(_kind(self.node), "a mapping of names to values")
        found: dict[object, _Place] = {}
        for key_node, value_node in self.node.value:
            here = _Place(self.file, key_node, (*self.path, str(getattr(key_node, "value", "?"))))
            key = here.scalar()
            if key in found:
                raise here.error("it a second time", "each key once")
            found[key] = _Place(self.file, value_node, (*self.path, cast("str | int", key)), key_node)
        return found

    def entries(self) -> tuple[_Place, ...]:
        if not isinstance(self.node, yaml.SequenceNode):
            raise self.error(_kind(self.node), "a list")
        return tuple(_Place(self.file, node, (*self.path, place)) for place, node in enumerate(self.node.value))


def _construct(node: yaml.ScalarNode) -> object:
    """Return a scalar as YAML's safe types have it, less what only surprises.

    A plain `on`, `off`, `yes` or `no` is the word that it looks like; a number is decimal or 0x…: 0512 is no octal.
    """
    if node.style or node.tag.endswith(":str"):  # a plain one's is None, or empty where it was read in C
        return str(node.value)
    if node.tag.endswith(":bool"):
        return {"true": True, "false": False}.get(node.value.lower(), node.value)
    if node.tag.endswith(":int") and node.value.lstrip("+-").replace("_", "").isdecimal():
        return int(node.value)
    loader = yaml.SafeLoader("")
    try:
        return cast("object", loader.construct_object(node))
    finally:
        loader.dispose()


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return repr(node.value) if node.value else "nothing"


def _text(place: _Place) -> str:
    value = place.scalar()
    if not isinstance(value, str) or not value.strip():
        raise place.error(_kind(place.node), "text")
    return value.strip()


def _whole(place: _Place) -> int:
    value = place.scalar()
    if isinstance(value, bool) or not isinstance(value, int):
        raise place.error(_kind(place.node), "a whole number")
    return value


def _real(place: _Place) -> float:
    value = place.scalar()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise place.error(_kind(place.node), "a number")
    return value


def _flag(place: _Place) -> bool:
    value = place.scalar()
    if not isinstance(value, bool):
        raise place.error(_kind(place.node), "true or false")
    return value


def _value(place: _Place) -> Value:
    value = place.scalar()
    if not isinstance(value, int | float | str | bool):
        raise place.error(_kind(place.node), "a value")
    return value


def _one_of(kind: type[_E]) -> Callable[[_Place], _E]:
    names = [str(member.value) for member in kind]

    def convert(place: _Place) -> _E:
        value = place.scalar()
        if value not in names:
            raise place.error(_kind(place.node), f"one of {', '.join(names)}", nearest(str(value), names))
        return kind(value)

    return convert


def _list_of(convert: Callable[[_Place], _T]) -> Callable[[_Place], tuple[_T, ...]]:
    return lambda place: tuple(convert(entry) for entry in place.entries())


def _states(place: _Place) -> Mapping[int, str]:
    states: dict[int, str] = {}
    for key, value in place.items().items():
        if isinstance(key, bool) or not isinstance(key, int):
            raise value.at_key().error(repr(key), "a raw value, a whole number, before the colon")
        states[key] = _text(value)
    return MappingProxyType(states)


def _take(place: _Place, known: Mapping[str, _Convert], required: Collection[str]) -> dict[str, Any]:
    """Return a mapping's values, converted. A key that nobody knows is an error, as is one that is missing."""
    values: dict[str, Any] = {}
    for key, value in place.items().items():
        if key not in known:
            raise value.at_key().error(
                "a key that is not known here", f"one of {', '.join(known)}", nearest(str(key), known)
            )
        values[str(key)] = known[str(key)](value)
    for key in required:
        if key not in values:
            raise place.error(f"no {key}", f"one: required are {', '.join(required)}")
    return values


def _build(place: _Place, make: Callable[..., _T], values: Mapping[str, Any]) -> _T:
    """Call a constructor, and say at which line and column of the file lies what it refuses."""
    try:
        return make(**values)
    except Contradiction as problem:
        raise _located(place, problem) from problem


def _located(place: _Place, problem: Contradiction) -> ProfileError:
    at = place
    for step in problem.path:
        below = _below(at, step)
        if below is None:
            break
        at = below
    key = ".".join(map(str, (*place.path, *problem.path)))
    mark = at.node.start_mark
    return ProfileError(
        place.file,
        mark.line + 1,
        mark.column + 1,
        key,
        found=problem.found,
        expected=problem.expected,
        nearest_name=problem.nearest,
    )


def _below(place: _Place, step: str | int) -> _Place | None:
    if isinstance(place.node, yaml.SequenceNode):
        entries = place.entries()
        return entries[step] if isinstance(step, int) and step < len(entries) else None
    return place.items().get(step) if isinstance(place.node, yaml.MappingNode) else None


_POINT: Mapping[str, _Convert] = {
    "table": _one_of(Table),
    "address": _whole,
    "type": _one_of(PointType),
    "length": _whole,
    "scale": _real,
    "offset": _real,
    "unit": _text,
    "access": _one_of(Access),
    "word_order": _one_of(Order),
    "byte_order": _one_of(Order),
    "mask": _whole,
    "minimum": _real,
    "maximum": _real,
    "or_zero": _flag,
    "stride": _whole,
    "states": _states,
    "absent": _whole,
    "setting": _flag,
    "volatile": _flag,
    "blind": _flag,
    "second_hand": _flag,
    "secret": _flag,
}
_READBACK_KEYS = ("table", "address", "type", "length", "scale", "offset", "unit", "word_order", "byte_order", "mask")
_READBACK: Mapping[str, _Convert] = {
    **{key: _POINT[key] for key in (*_READBACK_KEYS, "stride", "states", "absent", "second_hand")},
}
_INHERITED = frozenset(_READBACK) - {"address", "length", "mask", "absent"}


def _point(place: _Place, word_order: Order) -> Point:
    name = str(place.path[-1])
    values = _take(place, {**_POINT, "readback": lambda at: at}, ("table", "address", "type"))
    readback = values.pop("readback", None)
    values.setdefault("word_order", Order.BIG if values["type"] is PointType.STRING else word_order)
    if readback is not None:
        values["readback"] = _readback(readback, values)
    return _build(place, Point, {"name": name, **_with_length(place, values)})


def _readback(place: _Place, point: Mapping[str, Any]) -> Point:
    """Read where a value is read back: laid out as the point it belongs to, unless it says otherwise."""
    values = {key: value for key, value in point.items() if key in _INHERITED}
    values |= _take(place, _READBACK, ("address",))
    return _build(place, Point, {"name": str(place.path[-2]), **_with_length(place, values)})


def _with_length(place: _Place, values: dict[str, Any]) -> dict[str, Any]:
    if "length" not in values:
        kind = values["type"]
        if kind is PointType.STRING:
            raise place.error("no length", "one in registers, for a string")
        values["length"] = FIXED_LENGTHS.get(kind, 1)
    return values


_SUNSPEC_POINT: Mapping[str, _Convert] = {
    "model": _whole,
    "point": _text,
    "alternatives": _list_of(_whole),
    **{key: _POINT[key] for key in ("unit", "access", "minimum", "maximum", "setting", "volatile", "second_hand")},
    "sign": _whole,
}


def _sunspec_point(place: _Place) -> SunSpecPoint:
    values = _take(place, _SUNSPEC_POINT, ("model", "point"))
    return _build(place, SunSpecPoint, {"name": str(place.path[-1]), **values})


def _values(place: _Place) -> Mapping[str, Value]:
    return MappingProxyType({str(name): _value(value) for name, value in place.items().items()})


def _section(
    make: Callable[..., _T], known: Mapping[str, _Convert], required: Collection[str]
) -> Callable[[_Place], _T]:
    return lambda place: _build(place, make, _take(place, known, required))


_heartbeat = _section(Heartbeat, {"point": _text, "value": _whole, "every_s": _real}, ("point", "value", "every_s"))
_fallback = _section(
    Fallback,
    {
        "refreshed_by": _one_of(Refresh),
        "after_boot": _one_of(AfterBoot),
        "current": _text,
        "power": _text,
        "fixed": _real,
        "off": _real,
        "timeout": _text,
        "fixed_timeout_s": _real,
        "heartbeat": _heartbeat,
        "in_force": _values,
    },
    ("refreshed_by", "after_boot"),
)
_switch = _section(Switch, {"point": _text, "on": _value, "off": _value}, ("point", "on", "off"))
_control = _section(
    Control,
    {
        "point": _text,
        "quantity": _one_of(Quantity),
        "minimum": _real,
        "step": _real,
        "zero": _one_of(Zero),
        "switch": _switch,
        "power_factor": _real,
        "in_force": _values,
        "gives_back": _flag,
    },
    ("point", "quantity", "minimum", "step"),
)
_occupancy = _section(Occupancy, {"point": _text, "free": _list_of(_text)}, ("point", "free"))
_wire = _section(
    Wire,
    {
        "max_read": _whole,
        "max_write": _whole,
        "max_gap": _whole,
        "max_connections": _whole,
        "write_function": _whole,
        "whole_writes": _flag,
        "delay_between_s": _real,
        "idle_close_s": _real,
    },
    (),
)


def _named(convert: Callable[[_Place], _T]) -> Callable[[_Place], Mapping[str, _T]]:
    def read_each(place: _Place) -> Mapping[str, _T]:
        found: dict[str, _T] = {}
        for key, value in place.items().items():
            if not isinstance(key, str):
                raise value.at_key().error(repr(key), "a name before the colon")
            found[key] = convert(value)
        return MappingProxyType(found)

    return read_each


def _as_is(place: _Place) -> _Place:
    return place


_PROFILE: Mapping[str, _Convert] = {
    "name": _text,
    "title": _text,
    "kind": _one_of(DeviceKind),
    "protocol": _one_of(Protocol),
    "source": _text,
    "word_order": _one_of(Order),
    "points": _as_is,
    "sunspec_points": _named(_sunspec_point),
    "fallback": _fallback,
    "control": _control,
    "wire": _wire,
    "connectors": _whole,
    "models": _list_of(_whole),
    "base_addresses": _list_of(_whole),
    "never_write": _list_of(_whole),
    "traps": _list_of(_text),
    "poll": _list_of(_text),
    "occupancy": _occupancy,
}


def parse(text: str, file: str) -> Profile:
    """Return the profile that `text` declares; `file` is what errors call it. Raises `ProfileError`."""
    try:
        node = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise ProfileError(file, line, column, "", found=problem.problem or "a mistake", expected="YAML") from problem
    except yaml.YAMLError as problem:
        raise ProfileError(file, 1, 1, "", found=str(problem).splitlines()[0], expected="YAML") from problem
    if node is None:
        raise ProfileError(file, 1, 1, "", found="nothing", expected="a profile")
    place = _Place(file, node, ())
    values = _take(place, _PROFILE, ("name", "title", "kind", "source"))
    word_order: Order = values.pop("word_order", Order.BIG)
    points = values.pop("points", None)
    empty: Mapping[str, Any] = MappingProxyType({})
    defaults = {"protocol": Protocol.MODBUS, "sunspec_points": empty, "fallback": None, "control": None}
    values["points"] = empty if points is None else _named(lambda at: _point(at, word_order))(points)
    return _build(place, Profile, {**defaults, **values})


def read(path: Path) -> Profile:
    """Return the profile in a YAML file, which is named as the profile is. Raises `ProfileError` and OSError."""
    return _parse_named(path.read_bytes(), str(path), path.stem)


def _parse_named(content: bytes, file: str, name: str) -> Profile:
    try:
        text = content.decode()
    except UnicodeDecodeError as problem:
        found = f"byte {content[problem.start]:#04x} at {problem.start}"
        raise ProfileError(file, 1, 1, "", found=found, expected="UTF-8") from problem
    profile = parse(text, file)
    if profile.name != name:
        raise ProfileError(file, 1, 1, "name", found=profile.name, expected=f"{name}, as the file is called")
    return profile


@functools.cache
def _built_in() -> Mapping[str, Traversable]:
    files = (entry for entry in resources.files("derms_agent.profiles").iterdir() if entry.name.endswith(SUFFIX))
    return MappingProxyType({entry.name.removesuffix(SUFFIX): entry for entry in sorted(files, key=lambda e: e.name)})


def names() -> tuple[str, ...]:
    """Return the names of the built-in profiles, in alphabetical order."""
    return tuple(_built_in())


@functools.cache
def load(name: str) -> Profile:
    """Return a built-in profile. Raises KeyError, with the nearest name, where there is none of that name."""
    entry = _built_in().get(name)
    if entry is None:
        meant = nearest(name, names())
        raise KeyError(f"found profile {name}, expected one of {', '.join(names())}{f' ({meant}?)' if meant else ''}")
    return _parse_named(entry.read_bytes(), entry.name, name)


def load_all(*directories: Path) -> Mapping[str, Profile]:
    """Return the built-in profiles by name, and those in each directory's `*.yml` files.

    A name that is taken is an error: two profiles of one name would be told apart by nobody. Raises `ProfileError`, and
    NotADirectoryError for what is no directory.
    """
    found = {name: load(name) for name in names()}
    for directory in directories:
        if not directory.is_dir():
            raise NotADirectoryError(f"found {directory}, expected a directory of profiles")
        for path in sorted(directory.glob(f"*{SUFFIX}")):
            profile = read(path)
            if profile.name in found:
                raise ProfileError(
                    str(path), 1, 1, "name", found=profile.name, expected="a name that no other profile has"
                )
            found[profile.name] = profile
    return MappingProxyType(found)
