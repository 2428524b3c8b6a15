# SPDX-License-Identifier: Apache-2.0
"""Declared raw registers, converged and read as a profile's settings are.

What is compared, written and verified of one device is `drivers.settings`'; here are the order of devices, how many go
at once and for how long, and what became of each.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import anyio

from derms_agent import depot as depots
from derms_agent.device_state import run
from derms_agent.device_state.access import STATE_DIRECTORY, Access, same_endpoint
from derms_agent.device_state.calls import Unusable
from derms_agent.device_state.declared_registers import (
    POINT_PREFIX,
    Arguments,
    Declaration,
    DeclarationError,
    Registers,
    Target,
    declare,
)
from derms_agent.device_state.results import DeviceResult, Status, of_failure, of_settings, of_unknown, plain
from derms_agent.drivers import settings as drivers_settings
from derms_agent.drivers.errors import BusError, DeadlinePassed
from derms_agent.drivers.interface import Priority, RegisterBus
from derms_agent.drivers.settings import Outcome, SettingResult, Settings
from derms_agent.drivers.unit import Clock, Unit
from derms_agent.model import Depot
from derms_agent.profiles.notation import expecting
from derms_agent.profiles.point import Table
from derms_agent.socket_client import SOCKET

WAITING_S = 10.0
"""What a request may wait behind others on its bus, on top of its own time."""
DEPOT_FILE = Path("/etc/derms/depot.yml")

_Work: TypeAlias = Callable[["Target", "_Bounded"], Awaitable[DeviceResult]]


# What modules call


def converged(
    arguments: Arguments,
    *,
    check: bool,
    depot_file: Path = DEPOT_FILE,
    socket: Path = SOCKET,
    state_directory: Path = STATE_DIRECTORY,
) -> list[dict[str, Any]]:
    """See to it that registers hold what a module's arguments declare; return what became of each device.

    Raises Unusable, before anything is asked of a device.
    """
    declaration = _declared(arguments, depot_file, writes=True)

    async def work(access: Access) -> list[DeviceResult]:
        return await converge(declaration, access, check=check)

    return _asked(declaration, work, socket, state_directory)


def gathered(
    arguments: Arguments,
    *,
    depot_file: Path = DEPOT_FILE,
    socket: Path = SOCKET,
    state_directory: Path = STATE_DIRECTORY,
) -> list[dict[str, Any]]:
    """Read what a module's arguments name; return what each device holds. Raises Unusable."""
    declaration = _declared(arguments, depot_file, writes=False)

    async def work(access: Access) -> list[DeviceResult]:
        return await gather(declaration, access)

    return [_as_read(device) for device in _asked(declaration, work, socket, state_directory)]


def _as_read(device: dict[str, Any]) -> dict[str, Any]:
    """Return a plain result as of something that is only read."""
    registers = [
        {"name": one["name"], "outcome": one["outcome"], "value": one["before"], "unit": one["unit"]}
        | (one["registers_before"] or {"table": None, "address": None, "words": None})
        | {"detail": one["detail"]}
        for one in device["settings"]
    ]
    return {
        "name": device["name"],
        "status": device["status"],
        "changed": False,
        "values": device["before"],
        "registers": registers,
        "not_shown": [],
        "settings": [],
        "detail": device["detail"],
    }


def _declared(arguments: Arguments, depot_file: Path, *, writes: bool) -> Declaration:
    try:
        return declare(arguments, _depot(depot_file), writes=writes, same_endpoint=same_endpoint)
    except DeclarationError as problem:
        raise Unusable(str(problem)) from problem


def _depot(file: Path) -> Depot | None:
    """Return this gateway's depot, None where there is no file yet: nobody controls its devices then.

    Raises Unusable.
    """
    try:
        return depots.load(file)
    except FileNotFoundError:
        return None
    except (OSError, depots.DepotError) as problem:
        raise Unusable(f"{file} does not say which registers control owns: {problem}") from problem


def _asked(
    declaration: Declaration,
    work: Callable[[Access], Awaitable[list[DeviceResult]]],
    socket: Path,
    state_directory: Path,
) -> list[dict[str, Any]]:
    buses = {target.bus.name: target.bus for target in declaration.targets if target.bus is not None}
    try:
        results = run.with_buses(buses, work, socket=socket, state_directory=state_directory)
    except run.Unasked as problem:
        results = [of_unknown(target.name, str(problem)) for target in declaration.targets]
    return [plain(result) for result in results]


# To the devices


async def converge(
    declaration: Declaration, access: Access, *, check: bool, clock: Clock = time.monotonic
) -> list[DeviceResult]:
    """See to it that registers hold what is declared, and say what became of each device, in the order declared.

    `check` reads everything and writes nothing. Registers that a device never shows are written whenever another of its
    registers is, with `declaration.blind` also where no other is.
    """
    registers = declaration.registers
    unseen = not declaration.blind and not all(registers.readable(name) for name in registers.names)
    volatile = [name for name, point in registers.profile.points.items() if point.volatile]

    async def one(target: Target, bus: _Bounded) -> DeviceResult:
        settings = _settings(target, bus, declaration, clock)
        wanted = {name: value for name, value in target.wanted.items() if name not in volatile}
        try:
            words = await settings.words(volatile) if volatile else {}
            results = await settings.write(wanted, check=check or unseen)
            if unseen and not check and any(result.outcome is Outcome.WOULD_CHANGE for result in results):
                results = await settings.write(wanted)
        except BusError as failure:
            return bus.failed(target.name, failure)
        found = {result.name: result for result in results}
        found |= {name: _volatile(name, target, registers, words) for name in volatile}
        return _result(target, registers, found)

    return await _each(declaration, access, one, clock)


async def gather(declaration: Declaration, access: Access, *, clock: Clock = time.monotonic) -> list[DeviceResult]:
    """Read registers, and say what each holds and whether that is what is expected there. Nothing is written."""
    registers = declaration.registers

    async def one(target: Target, bus: _Bounded) -> DeviceResult:
        try:
            words = await _settings(target, bus, declaration, clock).words(registers.names)
        except BusError as failure:
            return bus.failed(target.name, failure)
        return _result(target, registers, {name: _read(name, registers, words) for name in registers.names})

    return await _each(declaration, access, one, clock)


async def _each(declaration: Declaration, access: Access, work: _Work, clock: Clock) -> list[DeviceResult]:
    """Do the work for each device, as many at once as the limits say, until too many have failed or the time is up."""
    limits, most = declaration.limits, declaration.most_failures
    total = anyio.CapacityLimiter(limits.total)
    per_bus = {target.bus_name: anyio.CapacityLimiter(limits.per_bus) for target in declaration.targets}
    until_s = clock() + declaration.deadline_s
    results: dict[str, DeviceResult] = {}
    failures = 0

    def why_not() -> str:
        if most is not None and failures > most:
            return f"not begun: of {len(declaration.targets)} devices {failures} failed, and {most} may"
        return f"not begun: the deadline of {declaration.deadline_s:g} s has passed" if clock() >= until_s else ""

    async def begin(target: Target, bus: RegisterBus) -> None:
        nonlocal failures
        async with per_bus[target.bus_name], total:
            why = why_not()
            if why:
                results[target.name] = of_unknown(target.name, why)
                return
            bounded = _Bounded(bus, until_s, limits.verify_s + limits.timeout_s, clock)
            results[target.name] = await work(target, bounded)
            failures += results[target.name].status not in {Status.OK, Status.CHANGED}

    async with anyio.create_task_group() as tasks:
        for target in declaration.targets:
            bus = access.buses.get(target.bus_name)
            if bus is not None:
                tasks.start_soon(begin, target, bus)
                continue
            missing = f"there is no depot file on this gateway that says what the bus {target.bus_name} is"
            results[target.name] = of_unknown(target.name, access.unknown.get(target.bus_name, missing))
    return [results[target.name] for target in declaration.targets]


def _settings(target: Target, bus: RegisterBus, declaration: Declaration, clock: Clock) -> Settings:
    registers, limits = declaration.registers, declaration.limits
    return Settings(
        Unit(bus, target.unit_id, registers.profile, clock),
        registers,
        deadline_s=limits.timeout_s + WAITING_S,
        verify_s=limits.verify_s,
        alike=registers.alike,
        unverified=registers.unverified,
    )


class _Bounded:
    """A bus on which no write begins after a time, and no read long after it: what was written may still be read back.

    Implements `derms_agent.drivers.interface.RegisterBus`.
    """

    def __init__(self, bus: RegisterBus, until_s: float, longer_s: float, clock: Clock) -> None:
        self._bus = bus
        self._until_s = until_s
        self._longer_s = longer_s
        self._clock = clock
        self._ran_out = False

    def failed(self, name: str, failure: BusError) -> DeviceResult:
        """Return what a device is that could not be read."""
        return of_unknown(name, str(failure)) if self._ran_out else of_failure(name, failure)

    def _left_s(self, deadline_s: float, until_s: float) -> float:
        left_s = min(deadline_s, until_s - self._clock())
        if left_s <= 0:
            self._ran_out = True
            raise DeadlinePassed("the deadline of the task has passed; nothing was sent")
        return left_s

    async def read(
        self, unit_id: int, table: Table, address: int, count: int, *, priority: Priority, deadline_s: float
    ) -> tuple[int, ...]:
        left_s = self._left_s(deadline_s, self._until_s + self._longer_s)
        return await self._bus.read(unit_id, table, address, count, priority=priority, deadline_s=left_s)

    async def write(
        self,
        unit_id: int,
        table: Table,
        address: int,
        values: Sequence[int],
        *,
        priority: Priority,
        deadline_s: float,
        function: int | None = None,
    ) -> None:
        left_s = self._left_s(deadline_s, self._until_s)
        await self._bus.write(unit_id, table, address, values, priority=priority, deadline_s=left_s, function=function)


# What became of it


def _volatile(name: str, target: Target, registers: Registers, words: Mapping[str, tuple[int, ...]]) -> SettingResult:
    result = _read(name, registers, words)
    if name not in target.wanted or result.outcome is not Outcome.OK:
        return result
    wanted = registers.held(name, target.wanted[name], {})
    alike = registers.alike(name, result.before, wanted)
    detail = "" if alike else f"holds {result.before}, not {wanted}; it changes by itself, so it is not written"
    return replace(result, wanted=wanted, detail=detail)


def _read(name: str, registers: Registers, words: Mapping[str, tuple[int, ...]]) -> SettingResult:
    (span,) = registers.spans(name)
    found = words.get(span.name)
    if found is None:
        detail = "the device refuses to show it"
        return SettingResult(name=name, outcome=Outcome.REFUSED, detail=detail)
    expected = registers.terms[name].expected
    as_expected, shown = expecting(expected)(found)
    value = registers.value(name, words)
    return SettingResult(
        name=name,
        outcome=Outcome.OK if as_expected else Outcome.VERIFY_FAILED,
        before=value,
        after=value,
        unit=registers.shown(name).unit,
        registers_before=drivers_settings.Registers(span.table, span.address, found),
        detail="" if as_expected else f"found {shown}, expected {expected}",
    )


def _result(target: Target, registers: Registers, found: Mapping[str, SettingResult]) -> DeviceResult:
    """Return a device's result, its registers in the order declared and by their own names."""
    return of_settings(
        target.name,
        (
            replace(
                found[name],
                name=name.removeprefix(POINT_PREFIX),
                detail=found[name].detail.replace(POINT_PREFIX, ""),
            )
            for name in registers.names
            if name in found
        ),
    )
