# SPDX-License-Identifier: Apache-2.0
"""What a function's declared settings mean for the registers of one device, and what has to be written. Pure.

Adopting a stored set replaces the first one whole. So a set that is to be adopted gets, beside what was asked for, what
the first set holds now: what nobody asked for stays as it is. Points beyond a curve's last are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from derms_agent.device_state.der.registers import ModelRegisters
from derms_agent.drivers.settings import Outcome, Registers, SettingResult
from derms_agent.drivers.writes import Forbidden, Write
from derms_agent.grid_code.functions import Function
from derms_agent.grid_code.settings import Choice, Curve, Number, Switch, settings_of
from derms_agent.profiles.point import OutOfRange
from derms_agent.profiles.profile import Profile

Words = Mapping[str, "tuple[int, ...]"]

IN_FORCE = 1
"""The number of the set that holds; it is only read."""
_READ_WRITE = 0
_POINT = re.compile(r"(.*)Pt\[(\d+)\]\.\w+")
_SETS = {"Crv": ("AdptCrvReq", "AdptCrvRslt", "RvrtCrv"), "Ctl": ("AdptCtlReq", "AdptCtlRslt", "RvrtCtl")}


class Unfit(ValueError):
    """Settings that a device cannot hold. `problems` has a sentence for each."""

    def __init__(self, problems: Collection[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One point that was asked for: where it is in force, and the words that it must hold."""

    name: str
    path: str
    words: tuple[int, ...]
    unit: str


@dataclass(frozen=True, slots=True)
class Adoption:
    """A stored set that is to be adopted: its number, what is written into it, and what shows how that goes.

    `target` is what the first set must hold then, what was not asked for included.
    """

    index: int
    staged: tuple[Write, ...]
    request: Write
    result: str
    target: Words


@dataclass(frozen=True, slots=True)
class FunctionPlan:
    """What has to be written for one function, in this order: a set and its adoption, values, switches."""

    name: str
    function: Function
    registers: ModelRegisters
    wanted: tuple[Wanted, ...]
    adoption: Adoption | None
    values: tuple[Write, ...]
    switches: tuple[Write, ...]

    @property
    def changes(self) -> bool:
        """Whether anything has to be written."""
        return self.adoption is not None or bool(self.values or self.switches)

    def predicted(self) -> ModelRegisters:
        """Return the registers as they will be when all is written."""
        return self.registers.patched({each.path: each.words for each in self.wanted})

    def states(self, after: ModelRegisters | None, reached: Outcome, missed: Outcome) -> tuple[SettingResult, ...]:
        """Return what became of every register value that was asked for.

        `reached`: of those that hold now what they did not; `missed`: of those that do not hold it.
        """
        return tuple(self._state(each, after, reached, missed) for each in self.wanted)

    def _state(self, wanted: Wanted, after: ModelRegisters | None, reached: Outcome, missed: Outcome) -> SettingResult:
        registers, path = self.registers, wanted.path
        before, now = registers.words(path), None if after is None else after.words(path)
        outcome = missed if now != wanted.words else Outcome.OK if before == wanted.words else reached
        span = registers.span(path)
        return SettingResult(
            name=wanted.name,
            outcome=outcome,
            unit=wanted.unit,
            wanted=registers.shown(path, wanted.words),
            before=registers.value(path),
            after=None if after is None else after.value(path),
            registers_before=Registers(span.table, span.address, before),
            registers_wanted=Registers(span.table, span.address, wanted.words),
        )


def shown(function: Function, registers: ModelRegisters) -> dict[str, Any]:
    """Return the values in force of the settings that a function declares, as a profile would say them."""
    return {key: in_force(type(function), key, registers) for key in _declared(function)}


def _declared(function: Function) -> list[str]:
    return [key for key in settings_of(function) if getattr(function, key) is not None]


def in_force(function: type[Function], key: str, registers: ModelRegisters) -> Any:
    """Return the value in force of one setting, as a profile would say it; None where the device does not have it."""
    prefix, setting = _in_force(function), settings_of(function)[key]
    if isinstance(setting, Curve):
        return _curve_shown(prefix, setting, registers)
    value = registers.value(setting.path if isinstance(setting, Switch) else prefix + setting.path)
    return value if isinstance(setting, Number) else {"enabled": True, "disabled": False}.get(str(value), value)


def _curve_shown(prefix: str, curve: Curve, registers: ModelRegisters) -> list[list[Any]] | None:
    count = registers.number(prefix + curve.count)
    if count is None:
        return None
    paths = (curve.paths(number) for number in range(1, count + 1))
    there = takewhile(lambda pair: prefix + pair[0] in registers.fields, paths)
    return [[registers.value(prefix + path) for path in pair] for pair in there]


def _in_force(function: Function | type[Function]) -> str:
    return "" if function.group is None else f"{function.group}[{IN_FORCE}]."


def plan_function(name: str, function: Function, registers: ModelRegisters, profile: Profile) -> FunctionPlan:
    """Return what has to be written so that a device holds a function's settings. Raises Unfit."""
    wanted = _Encoder(name, function, registers).wanted()
    switches = {setting.path for setting in settings_of(function).values() if isinstance(setting, Switch)}
    differing = {each.path: each.words for each in wanted if registers.words(each.path) != each.words}
    turned = {path: words for path, words in differing.items() if path in switches}
    valued = {path: words for path, words in differing.items() if path not in switches}
    try:
        adoption = None
        if function.group is not None and valued:
            adoption = _adoption(name, function.group, registers, valued, profile)
            valued = {}
        values = _values(registers, {each.path: each.words for each in wanted}, valued, profile)
        turns = tuple(write for path in turned for write in registers.writes({path: turned[path]}, profile))
    except (OutOfRange, Forbidden) as problem:
        raise Unfit([str(problem)]) from None
    return FunctionPlan(name, function, registers, wanted, adoption, values, turns)


def _values(registers: ModelRegisters, wanted: Words, differing: Words, profile: Profile) -> tuple[Write, ...]:
    """Return the writes of what is not in sets. What a model synchronises (`PFWInj.PF`, `.Ext`) goes out together."""
    written = dict(differing)
    for group in {path.partition(".")[0] for path in differing if "." in path}:
        for path in registers.fields:
            if path.startswith(f"{group}.") and registers.implemented(path):
                written[path] = wanted.get(path, registers.words(path))
    return registers.writes(written, profile)


def _adoption(name: str, group: str, registers: ModelRegisters, differing: Words, profile: Profile) -> Adoption:
    """Return which set is to be adopted, and what it needs. Raises Unfit."""
    request, result, reversion = _SETS[group]
    target = _target(group, registers, differing)
    free = _free_sets(group, reversion, registers)
    if not free:
        sets = _count_of_sets(group, registers)
        found = f"{name}: found {sets} sets in model {registers.found.id} and none to write"
        raise Unfit([f"{found}, expected at least one beside the first, which is in force"])
    free = _quiet_sets(name, group, free, registers, target)
    staged = {index: _staged(group, index, registers, target) for index in free}
    index = min(free, key=lambda each: (len(staged[each]), each))
    return Adoption(
        index,
        registers.writes(staged[index], profile),
        registers.writes({request: registers.count(f"{name}.{request}", request, index)}, profile)[0],
        result,
        target,
    )


def _count_of_sets(group: str, registers: ModelRegisters) -> int:
    return sum(1 for path in registers.fields if re.fullmatch(rf"{group}\[\d+\]\.ReadOnly", path))


def _free_sets(group: str, reversion: str, registers: ModelRegisters) -> tuple[int, ...]:
    """Return the sets that may be written: not the one in force, nor the one that a running reversion falls back to."""
    kept = registers.number(reversion) if registers.number("RvrtTms") else None
    return tuple(
        index
        for index in range(IN_FORCE + 1, _count_of_sets(group, registers) + 1)
        if index != kept and registers.words(f"{group}[{index}].ReadOnly") == (_READ_WRITE,)
    )


def _target(group: str, registers: ModelRegisters, differing: Words) -> dict[str, tuple[int, ...]]:
    """Return what the first set must hold: what is asked for, and of the rest what it holds now."""
    prefix = f"{group}[{IN_FORCE}]."
    becomes = registers.patched(differing)
    target: dict[str, tuple[int, ...]] = {}
    for path, field in becomes.fields.items():
        if not path.startswith(prefix) or not field.writable:
            continue
        point = _POINT.fullmatch(path)
        if point is not None and int(point[2]) > (becomes.number(f"{point[1]}ActPt") or 0):
            continue
        if becomes.implemented(path):
            target[path] = becomes.words(path)
    return target


def _quiet_sets(
    name: str, group: str, free: tuple[int, ...], registers: ModelRegisters, target: Words
) -> tuple[int, ...]:
    """Return the sets that bring nothing into force but the target. Raises Unfit where there is none.

    What the first set does not show cannot be kept: it would become what the adopted set has there.
    """
    more = {index: _brought(group, index, registers, target) for index in free}
    quiet = tuple(index for index in free if not more[index])
    if not quiet:
        found = f"{name}: found {', '.join(more[free[0]])} in set {free[0]}, and no such value in force"
        raise Unfit([f"{found}, expected it to be declared, for adopting the set brings it into force"])
    return quiet


def _brought(group: str, index: int, registers: ModelRegisters, target: Words) -> list[str]:
    prefix = f"{group}[{index}]."
    return [
        path.removeprefix(prefix)
        for path, field in registers.fields.items()
        if path.startswith(prefix)
        and field.writable
        and _POINT.fullmatch(path) is None
        and f"{group}[{IN_FORCE}].{path.removeprefix(prefix)}" not in target
        and registers.implemented(path)
        and registers.value(path) != 0
    ]


def _staged(group: str, index: int, registers: ModelRegisters, target: Words) -> dict[str, tuple[int, ...]]:
    """Return what of a stored set has to be written so that it is the target."""
    prefix = f"{group}[{index}]."
    there = {prefix + path.partition(".")[2]: words for path, words in target.items()}
    return {path: words for path, words in there.items() if registers.words(path) != words}


class _Encoder:
    """Turns a function's settings into the words of the points in force, and gathers what cannot be."""

    def __init__(self, name: str, function: Function, registers: ModelRegisters) -> None:
        self._name = name
        self._function = function
        self._registers = registers
        self._prefix = _in_force(function)
        self._problems: list[str] = []
        self._wanted: list[Wanted] = []

    def wanted(self) -> tuple[Wanted, ...]:
        """Return every point that is asked for. Raises Unfit."""
        for key, setting in settings_of(self._function).items():
            value = getattr(self._function, key)
            if value is None:
                continue
            name = f"{self._name}.{key}"
            try:
                if isinstance(setting, Curve):
                    self._curve(name, setting, value)
                elif isinstance(setting, Number):
                    self._number(name, setting, value)
                else:
                    self._named(name, setting, value)
            except OutOfRange as problem:
                self._problems.append(str(problem))
        if self._problems:
            raise Unfit(self._problems)
        return tuple(self._wanted)

    def _add(self, name: str, path: str, words: tuple[int, ...], unit: str = "") -> None:
        self._wanted.append(Wanted(name, path, words, unit))

    def _missing(self, name: str, path: str) -> bool:
        """Note a point that the device does not have, neither in force nor in a set that could be adopted."""
        registers, group = self._registers, self._function.group
        paths = [path]
        if group is not None and path.startswith(self._prefix):
            rest = path.removeprefix(self._prefix)
            paths = [f"{group}[{index}].{rest}" for index in range(1, _count_of_sets(group, registers) + 1)]
        if any(registers.implemented(each) for each in paths):
            return False
        self._problems.append(f"{name}: found no {path} in model {registers.found.id}, expected a device that has it")
        return True

    def _number(self, name: str, number: Number, value: float) -> None:
        path = self._prefix + number.path
        if self._missing(name, path):
            return
        rating = None if number.rating is None else self._registers.value(number.rating)
        if isinstance(rating, int | float) and value > rating:
            raise OutOfRange(name, value, f"at most {rating:g} {number.quantity.unit}, which is {number.rating}")
        self._add(name, path, self._registers.encoded(name, path, value, number.quantity), number.quantity.unit)

    def _named(self, name: str, setting: Choice | Switch, value: str | bool) -> None:
        path = setting.path if isinstance(setting, Switch) else self._prefix + setting.path
        if not self._missing(name, path):
            symbol = value if isinstance(value, str) else "enabled" if value else "disabled"
            self._add(name, path, self._registers.symbol(name, path, symbol))

    def _curve(self, name: str, curve: Curve, points: tuple[tuple[float, float], ...]) -> None:
        registers = self._registers
        count = self._prefix + curve.count
        if self._missing(name, count):
            return
        last = [] if not points else [self._prefix + path for path in curve.paths(len(points))]
        if any(path not in registers.fields for path in last):
            most = registers.number("NPt")
            raise OutOfRange(name, len(points), f"at most {most} points, which is NPt of model {registers.found.id}")
        encoded: list[Wanted] = []
        for number, point in enumerate(points, start=1):
            for path, axis, value in zip(curve.paths(number), (curve.x, curve.y), point, strict=True):
                label = f"{name}[{number}].{axis.point}"
                words = registers.encoded(label, self._prefix + path, value, axis.quantity)
                encoded.append(Wanted(label, self._prefix + path, words, axis.quantity.unit))
        held = registers.patched({each.path: each.words for each in encoded})
        steps = tuple(
            tuple(held.value(self._prefix + path) for path in curve.paths(number))
            for number in range(1, len(points) + 1)
        )
        if not curve.shape.fits(steps):  # type: ignore[arg-type]
            raise OutOfRange(
                name, [list(each) for each in steps], f"points with {curve.shape.value} in the device's steps"
            )
        self._add(name, count, registers.count(name, count, len(points)))
        self._wanted += encoded
