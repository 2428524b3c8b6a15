# SPDX-License-Identifier: Apache-2.0
"""A declared profile out of plain mappings, as YAML gives them. Pure.

Whatever is wrong is said at once, each with device, key, what was found and what was expected.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from derms_agent.device_state.der import categories
from derms_agent.device_state.der.functions import FUNCTIONS, ONE_AT_A_TIME, DerProfile, EnterService, Function
from derms_agent.device_state.der.settings import Axis, Choice, Curve, Number, Points, Setting, settings_of
from derms_agent.profiles.profile import nearest

_CATEGORY = "category"
_KINDS = {"normal": categories.NORMAL, "abnormal": categories.ABNORMAL}
_PAIR = 2


class ProfileProblem(ValueError):
    """A profile that says what cannot be. `problems` has a sentence for each thing that is wrong."""

    def __init__(self, problems: Collection[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


def parse(device: str, declared: object) -> DerProfile:
    """Return the profile that is declared for a device. Raises ProfileProblem.

    `category: {normal: b, abnormal: iii}` brings the standard's defaults; what is declared beside it goes before them,
    key by key, and a function that is null is left out.
    """
    reader = _Reader(device)
    mapping = reader.mapping("", declared, (_CATEGORY, *FUNCTIONS))
    wanted = reader.defaults(mapping.get(_CATEGORY))
    for name in FUNCTIONS:
        if name not in mapping:
            continue
        if mapping[name] is None:
            wanted.pop(name, None)
            continue
        own = reader.mapping(name, mapping[name], tuple(settings_of(FUNCTIONS[name])))
        wanted[name] = {**wanted.get(name, {}), **own}
    functions = {name: reader.function(name, settings) for name, settings in wanted.items()}
    reader.expect_one([name for name in ONE_AT_A_TIME if name in functions and functions[name].turns_on])
    if reader.problems:
        raise ProfileProblem(reader.problems)
    return DerProfile(**functions)  # type: ignore[arg-type]


class _Reader:
    """Takes values for what they should be, and gathers what is wrong with them."""

    def __init__(self, device: str) -> None:
        self.problems: list[str] = []
        self._device = device

    def _report(self, key: str, found: object, expected: str) -> None:
        where = f"{self._device}: {key}" if key else self._device
        self.problems.append(f"{where}: found {'nothing' if found is None else repr(found)}, expected {expected}")

    def mapping(self, key: str, value: object, allowed: Collection[str]) -> dict[str, Any]:
        """Return a mapping without the keys that do not belong."""
        if not isinstance(value, Mapping):
            self._report(key, value, f"a mapping with some of {', '.join(allowed)}")
            return {}
        for name in value:
            if name not in allowed:
                close = nearest(str(name), allowed)
                hint = f" (did you mean {close}?)" if close else ""
                self._report(key, name, f"one of {', '.join(allowed)}{hint}")
        return {name: content for name, content in value.items() if name in allowed}

    def defaults(self, value: object) -> dict[str, dict[str, Any]]:
        """Return the settings that a category brings."""
        if value is None:
            return {}
        kinds: dict[str, str | None] = dict.fromkeys(_KINDS)
        for kind, found in self.mapping(_CATEGORY, value, tuple(_KINDS)).items():
            name = str(found).lower()
            if name in _KINDS[kind]:
                kinds[kind] = name
            else:
                self._report(f"{_CATEGORY}.{kind}", found, f"one of {', '.join(_KINDS[kind]).upper()}")
        found = categories.defaults(kinds["normal"], kinds["abnormal"])
        return {name: dict(default.settings) for name, default in found.items()}

    def function(self, name: str, values: Mapping[str, Any]) -> Function:
        """Return one function of the profile."""
        kind = FUNCTIONS[name]
        taken = {
            key: self._value(f"{name}.{key}", setting, values[key])
            for key, setting in settings_of(kind).items()
            if values.get(key) is not None
        }
        if not taken:
            self._report(name, dict(values) or None, f"at least one of {', '.join(settings_of(kind))}")
        function = kind(**taken)
        if isinstance(function, EnterService):
            self._below(name, "voltage_low_percent", "voltage_high_percent", taken)
            self._below(name, "frequency_low_hz", "frequency_high_hz", taken)
        return function

    def expect_one(self, enabled: Sequence[str]) -> None:
        """Report functions that are enabled together and may not be."""
        if len(enabled) > 1:
            of = ", ".join(ONE_AT_A_TIME)
            self._report(f"{enabled[-1]}.enabled", True, f"false beside {enabled[0]}: one of {of} is on at a time")

    def _below(self, name: str, low: str, high: str, taken: Mapping[str, Any]) -> None:
        if taken.get(low) is not None and taken.get(high) is not None and taken[low] >= taken[high]:
            self._report(f"{name}.{low}", taken[low], f"less than {high}, which is {taken[high]:g}")

    def _value(self, key: str, setting: Setting, value: Any) -> Any:
        if isinstance(setting, Number):
            return self._number(key, value, setting.low, setting.high, setting.quantity.unit)
        if isinstance(setting, Curve):
            return self._curve(key, setting, value)
        if isinstance(setting, Choice) and set(setting.names) != {"disabled", "enabled"}:
            if value not in setting.names:
                self._report(key, value, f"one of {', '.join(setting.names)}")
                return None
            return value
        if not isinstance(value, bool):
            self._report(key, value, "true or false")
            return None
        return value

    def _number(self, key: str, value: object, low: float, high: float, unit: str) -> float | None:
        wrong = isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value)
        if wrong or not low <= value <= high:  # type: ignore[operator]
            self._report(key, value, f"a number from {low:g} to {high:g} {unit}".rstrip())
            return None
        return value  # type: ignore[return-value]

    def _curve(self, key: str, curve: Curve, value: object) -> Points | None:
        expected = f"a list of [{curve.x.quantity.unit}, {curve.y.quantity.unit}]"
        if not isinstance(value, list | tuple):
            self._report(key, value, expected)
            return None
        points: list[tuple[float, float]] = []
        for number, pair in enumerate(value, start=1):
            if not isinstance(pair, list | tuple) or len(pair) != _PAIR:
                self._report(f"{key}[{number}]", pair, expected.removeprefix("a list of "))
                continue
            x, y = (
                self._coordinate(f"{key}[{number}]", axis, at)
                for axis, at in zip((curve.x, curve.y), pair, strict=True)
            )
            if x is not None and y is not None:
                points.append((x, y))
        if len(points) < len(value):
            return None
        if len(points) < curve.fewest:
            self._report(key, value, f"at least {curve.fewest} points")
        elif not curve.shape.fits(tuple(points)):
            self._report(key, value, f"points with {curve.shape.value}")
        return tuple(points)

    def _coordinate(self, key: str, axis: Axis, value: object) -> float | None:
        return self._number(key, value, axis.low, axis.high, axis.quantity.unit)
