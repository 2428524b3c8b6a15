# SPDX-License-Identifier: Apache-2.0
"""A declared profile out of plain mappings, as YAML gives them. Pure.

Whatever is wrong is said at once, each with device, key, what was found and what was expected.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from derms_agent.grid_code import categories
from derms_agent.grid_code.functions import FUNCTIONS, ONE_AT_A_TIME, DerProfile, EnterService, Function
from derms_agent.grid_code.settings import Axis, Choice, Curve, Number, Points, Setting, settings_of
from derms_agent.profiles.profile import Profile, nearest

_CATEGORY = "category"
_KINDS = {"normal": categories.NORMAL, "abnormal": categories.ABNORMAL}
_PAIR = 2
_MOST_POINTS = 20
"""What any curve of SunSpec's has room for where that is fixed (models 126 to 145); NPt says what a device takes."""

Path: TypeAlias = "tuple[str, ...]"
"""The keys that lead to a value in a profile; list indices in digits, from 0."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """What was found at a path of a profile, and what was expected there. `at_key`: the path's last key is wrong."""

    path: Path
    found: object
    expected: str
    nearest: str | None = None
    at_key: bool = False

    def text(self, device: str) -> str:
        """Return it as one line; points of a curve are counted from 1."""
        path, found = (self.path[:-1], self.path[-1]) if self.at_key else (self.path, self.found)
        dotted = "".join(f"[{int(part) + 1}]" if part.isdigit() else f".{part}" for part in path).removeprefix(".")
        where = f"{device}: {dotted}" if dotted else device
        hint = f" (did you mean {self.nearest}?)" if self.nearest else ""
        return f"{where}: found {'nothing' if found is None else repr(found)}, expected {self.expected}{hint}"


class ProfileProblem(ValueError):
    """A profile that says what cannot be; `mistakes` has each thing that is wrong."""

    def __init__(self, device: str, mistakes: Collection[Mistake]) -> None:
        super().__init__("; ".join(mistake.text(device) for mistake in mistakes))
        self.mistakes = tuple(mistakes)


def parse(device: str, declared: object, of: Profile | None = None) -> DerProfile:
    """Return the profile that is declared for a device. Raises ProfileProblem.

    `of` is the profile by which the agent speaks to the device: what its control owns there cannot be declared.

    `category: {normal: b, abnormal: iii}` brings the standard's defaults; what is declared beside it goes before them,
    key by key, and a function that is null is left out.
    """
    reader = _Reader()
    mapping = reader.mapping((), declared, (_CATEGORY, *FUNCTIONS))
    wanted = reader.defaults(mapping.get(_CATEGORY))
    for name in FUNCTIONS:
        if name not in mapping:
            continue
        if mapping[name] is None:
            wanted.pop(name, None)
            continue
        own = reader.mapping((name,), mapping[name], tuple(settings_of(FUNCTIONS[name])))
        wanted[name] = {**wanted.get(name, {}), **own}
    functions = {name: reader.function(name, settings) for name, settings in wanted.items()}
    if of is not None:
        reader.expect_not_controls(functions, of)
    reader.expect_one([name for name in ONE_AT_A_TIME if name in functions and functions[name].turns_on])
    if reader.mistakes:
        raise ProfileProblem(device, reader.mistakes)
    return DerProfile(**functions)  # type: ignore[arg-type]


def controls_own(of: Profile) -> dict[tuple[str, str], str]:
    """Return the settings, by function and key, that nobody but control writes, each with its point's name."""
    points = (of.sunspec_points[name] for name in of.control_points if name in of.sunspec_points)
    own = {(point.model, point.point): point.name for point in points}
    return {
        (name, key): own[function.model, setting.path]
        for name, function in FUNCTIONS.items()
        for key, setting in settings_of(function).items()
        if not isinstance(setting, Curve) and (function.model, setting.path) in own
    }


class _Reader:
    """Takes values for what they should be, and gathers what is wrong with them."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []

    def _report(self, path: Path, found: object, expected: str) -> None:
        self.mistakes.append(Mistake(path, found, expected))

    def mapping(self, path: Path, value: object, allowed: Collection[str]) -> dict[str, Any]:
        """Return a mapping without the keys that do not belong."""
        if not isinstance(value, Mapping):
            self._report(path, value, f"a mapping with some of {', '.join(allowed)}")
            return {}
        for name in map(str, value):
            if name not in allowed:
                expected, close = f"one of {', '.join(allowed)}", nearest(name, allowed)
                self.mistakes.append(Mistake((*path, name), name, expected, close, at_key=True))
        return {name: content for name, content in value.items() if name in allowed}

    def defaults(self, value: object) -> dict[str, dict[str, Any]]:
        """Return the settings that a category brings."""
        if value is None:
            return {}
        kinds: dict[str, str | None] = dict.fromkeys(_KINDS)
        for kind, found in self.mapping((_CATEGORY,), value, tuple(_KINDS)).items():
            name = str(found).lower()
            if name in _KINDS[kind]:
                kinds[kind] = name
            else:
                self._report((_CATEGORY, kind), found, f"one of {', '.join(_KINDS[kind]).upper()}")
        found = categories.defaults(kinds["normal"], kinds["abnormal"])
        return {name: dict(default.settings) for name, default in found.items()}

    def function(self, name: str, values: Mapping[str, Any]) -> Function:
        """Return one function of the profile."""
        kind = FUNCTIONS[name]
        taken = {
            key: self._value((name, key), setting, values[key])
            for key, setting in settings_of(kind).items()
            if values.get(key) is not None
        }
        if not taken:
            self._report((name,), dict(values) or None, f"at least one of {', '.join(settings_of(kind))}")
        function = kind(**taken)
        if isinstance(function, EnterService):
            self._below(name, "voltage_low_percent", "voltage_high_percent", taken)
            self._below(name, "frequency_low_hz", "frequency_high_hz", taken)
        return function

    def expect_not_controls(self, functions: Mapping[str, Function], of: Profile) -> None:
        """Report settings that lie where nobody but control writes."""
        for (name, key), point in controls_own(of).items():
            value = getattr(functions.get(name), key, None)
            if value is not None:
                expected = f"none: control owns {point} of a device with the profile {of.name}"
                self._report((name, key), value, expected)

    def expect_one(self, enabled: Sequence[str]) -> None:
        """Report functions that are enabled together and may not be."""
        if len(enabled) > 1:
            of = ", ".join(ONE_AT_A_TIME)
            self._report((enabled[-1], "enabled"), True, f"false beside {enabled[0]}: one of {of} is on at a time")

    def _below(self, name: str, low: str, high: str, taken: Mapping[str, Any]) -> None:
        if taken.get(low) is not None and taken.get(high) is not None and taken[low] >= taken[high]:
            self._report((name, low), taken[low], f"less than {high}, which is {taken[high]:g}")

    def _value(self, path: Path, setting: Setting, value: Any) -> Any:
        if isinstance(setting, Number):
            return self._number(path, value, setting.low, setting.high, setting.quantity.unit)
        if isinstance(setting, Curve):
            return self._curve(path, setting, value)
        if isinstance(setting, Choice) and set(setting.names) != {"disabled", "enabled"}:
            if value not in setting.names:
                self._report(path, value, f"one of {', '.join(setting.names)}")
                return None
            return value
        if not isinstance(value, bool):
            self._report(path, value, "true or false")
            return None
        return value

    def _number(self, path: Path, value: object, low: float, high: float, unit: str) -> float | None:
        wrong = isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value)
        if wrong or not low <= value <= high:  # type: ignore[operator]
            self._report(path, value, f"a number from {low:g} to {high:g} {unit}".rstrip())
            return None
        return value  # type: ignore[return-value]

    def _curve(self, path: Path, curve: Curve, value: object) -> Points | None:
        expected = f"a list of [{curve.x.quantity.unit}, {curve.y.quantity.unit}]"
        if not isinstance(value, list | tuple):
            self._report(path, value, expected)
            return None
        points: list[tuple[float, float]] = []
        for index, pair in enumerate(value):
            if not isinstance(pair, list | tuple) or len(pair) != _PAIR:
                self._report((*path, str(index)), pair, expected.removeprefix("a list of "))
                continue
            x, y = (
                self._coordinate((*path, str(index)), axis, at)
                for axis, at in zip((curve.x, curve.y), pair, strict=True)
            )
            if x is not None and y is not None:
                points.append((x, y))
        if len(points) < len(value):
            return None
        if len(points) < curve.fewest:
            self._report(path, value, f"at least {curve.fewest} points")
        elif len(points) > _MOST_POINTS:
            self._report(path, value, f"at most {_MOST_POINTS} points")
        elif not curve.shape.fits(tuple(points)):
            self._report(path, value, f"points with {curve.shape.value}")
        return tuple(points)

    def _coordinate(self, path: Path, axis: Axis, value: object) -> float | None:
        return self._number(path, value, axis.low, axis.high, axis.quantity.unit)
