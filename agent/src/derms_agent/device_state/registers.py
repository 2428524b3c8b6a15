# SPDX-License-Identifier: Apache-2.0
"""Declared raw registers, converged and read as a profile's settings are.

What is compared, written and verified of one device is `drivers.settings`'; here are the order of devices, how many go
at once and for how long, and what became of each.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeAlias

import anyio

from derms_agent.device_state.declared_registers import POINT_PREFIX, Declaration, Registers, Target
from derms_agent.drivers.errors import (
    BusError,
    DeadlinePassed,
    InvalidRequest,
    NotAllowed,
    Overloaded,
    Refused,
    Withdrawn,
)
from derms_agent.drivers.interface import Pending, Priority, RegisterBus
from derms_agent.drivers.settings import Outcome, SettingResult, Settings
from derms_agent.drivers.unit import Clock, Unit
from derms_agent.model import Value
from derms_agent.profiles.notation import expecting
from derms_agent.profiles.point import Table

WAITING_S = 10.0
"""What a request may wait behind others on its bus, on top of its own time."""


class Status(str, Enum):
    """What became of a device."""

    OK = "ok"
    CHANGED = "changed"
    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    VERIFY_FAILED = "verify_failed"
    INDETERMINATE = "indeterminate"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterResult:
    """One register of one device. `address` is a PDU address; raw words are those of the register, first to last."""

    name: str
    outcome: Outcome
    table: Table
    address: int
    unit: str = ""
    wanted: Value | None = None
    before: Value | None = None
    after: Value | None = None
    raw_before: tuple[int, ...] | None = None
    raw_after: tuple[int, ...] | None = None
    volatile: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceResult:
    """What became of a device and of each of its registers, in the order declared."""

    name: str
    status: Status
    registers: tuple[RegisterResult, ...] = ()
    detail: str = ""
    begun: bool = True

    @property
    def changed(self) -> bool:
        """Whether a register holds something else than before, or in check mode would."""
        return any(
            result.outcome in {Outcome.CHANGED, Outcome.WOULD_CHANGE}
            or (result.outcome is Outcome.VERIFY_FAILED and result.after != result.before)
            for result in self.registers
        )

    @property
    def failed(self) -> bool:
        """Whether it was begun and something went wrong."""
        return self.begun and self.status not in {Status.OK, Status.CHANGED, Status.UNKNOWN}


# To the devices

_Work: TypeAlias = Callable[["Target", "_Bounded"], Awaitable[DeviceResult]]


async def converge(
    declaration: Declaration,
    buses: Mapping[str, RegisterBus],
    unknown: Mapping[str, str],
    *,
    check: bool,
    clock: Clock = time.monotonic,
) -> tuple[DeviceResult, ...]:
    """See to it that registers hold what is declared, and say what became of each device, in the order declared.

    `unknown` says of buses that may not be asked why. `check` reads everything and writes nothing.
    """
    registers = declaration.registers
    volatile = [name for name, point in registers.profile.points.items() if point.volatile]

    async def one(target: Target, bus: _Bounded) -> DeviceResult:
        settings = _settings(target, bus, declaration, clock)
        wanted = {name: value for name, value in target.wanted.items() if name not in volatile}
        try:
            words = await settings.words(volatile) if volatile else {}
            found = {result.name: result for result in await settings.write(wanted, check=check)}
        except BusError as failure:
            return DeviceResult(name=target.name, status=_status_of(failure), detail=str(failure))
        found |= {name: _volatile(name, target, registers, words) for name in volatile}
        return _result(target, registers, found, ran_out=bus.ran_out)

    return await _each(declaration, buses, unknown, one, clock)


async def gather(
    declaration: Declaration,
    buses: Mapping[str, RegisterBus],
    unknown: Mapping[str, str],
    *,
    clock: Clock = time.monotonic,
) -> tuple[DeviceResult, ...]:
    """Read registers, and say what each holds and whether that is what is expected there. Nothing is written."""
    registers = declaration.registers

    async def one(target: Target, bus: _Bounded) -> DeviceResult:
        try:
            words = await _settings(target, bus, declaration, clock).words(registers.names)
        except BusError as failure:
            return DeviceResult(name=target.name, status=_status_of(failure), detail=str(failure))
        return _result(target, registers, {name: _read(name, registers, words) for name in registers.names})

    return await _each(declaration, buses, unknown, one, clock)


async def _each(
    declaration: Declaration,
    buses: Mapping[str, RegisterBus],
    unknown: Mapping[str, str],
    work: _Work,
    clock: Clock,
) -> tuple[DeviceResult, ...]:
    """Do the work for each device, as many at once as the limits say, until too many have failed or the time is up."""
    limits = declaration.limits
    total = anyio.CapacityLimiter(limits.total)
    per_bus = {target.bus_name: anyio.CapacityLimiter(limits.per_bus) for target in declaration.targets}
    until_s = clock() + limits.deadline_s
    results: dict[str, DeviceResult] = {}

    def why_not() -> str:
        failures = sum(result.failed for result in results.values())
        most = declaration.most_failures
        if most is not None and failures > most:
            return f"not begun: {failures} of {len(declaration.targets)} devices failed, and {most} may"
        return f"not begun: the deadline of {limits.deadline_s:g} s has passed" if clock() >= until_s else ""

    async def begin(target: Target) -> None:
        bus = buses.get(target.bus_name)
        if bus is None:
            why = unknown.get(target.bus_name) or f"no depot file on this gateway says what bus {target.bus_name} is"
        else:
            async with per_bus[target.bus_name], total:
                why = why_not()
                if not why:
                    bounded = _Bounded(bus, until_s, limits.verify_s + limits.timeout_s, clock)
                    results[target.name] = await work(target, bounded)
                    return
        results[target.name] = DeviceResult(name=target.name, status=Status.UNKNOWN, detail=why, begun=False)

    async with anyio.create_task_group() as tasks:
        for target in declaration.targets:
            tasks.start_soon(begin, target)
    return tuple(results[target.name] for target in declaration.targets)


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

    `ran_out`: a request was refused for that. Implements `derms_agent.drivers.interface.RegisterBus`.
    """

    def __init__(self, bus: RegisterBus, until_s: float, longer_s: float, clock: Clock) -> None:
        self._bus = bus
        self._until_s = until_s
        self._longer_s = longer_s
        self._clock = clock
        self.ran_out = False

    def _left_s(self, deadline_s: float, until_s: float) -> float:
        left_s = min(deadline_s, until_s - self._clock())
        if left_s <= 0:
            self.ran_out = True
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

    def submit_write(
        self,
        unit_id: int,
        table: Table,
        address: int,
        values: Sequence[int],
        *,
        priority: Priority,
        deadline_s: float,
        function: int | None = None,
    ) -> Pending:
        left_s = self._left_s(deadline_s, self._until_s)
        return self._bus.submit_write(
            unit_id, table, address, values, priority=priority, deadline_s=left_s, function=function
        )


# What became of it


def _status_of(failure: BusError) -> Status:
    """Return what a device is whose registers could not be read; nothing was written to it."""
    if isinstance(failure, Refused | NotAllowed | InvalidRequest):
        return Status.REFUSED
    if isinstance(failure, DeadlinePassed | Withdrawn | Overloaded):
        return Status.UNKNOWN
    return Status.UNREACHABLE


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
    value = registers.value(name, words)
    expected = registers.terms[name].expected
    as_expected, shown = expecting(expected)(found)
    return SettingResult(
        name=name,
        outcome=Outcome.OK if as_expected else Outcome.VERIFY_FAILED,
        before=value,
        after=value,
        raw_before=found,
        raw_after=found,
        detail="" if as_expected else f"found {shown}, expected {expected}",
    )


def _result(
    target: Target, registers: Registers, found: Mapping[str, SettingResult], *, ran_out: bool = False
) -> DeviceResult:
    names = [name for name in registers.names if name in found]
    status, worst = _status([found[name] for name in names], registers, ran_out=ran_out)
    detail = "; ".join(f"{one.name}: {one.detail}" for one in worst if one.detail).replace(POINT_PREFIX, "")
    results = tuple(_register_result(registers, found[name]) for name in names)
    return DeviceResult(name=target.name, status=status, registers=results, detail=detail)


def _register_result(registers: Registers, result: SettingResult) -> RegisterResult:
    point = registers.profile.points[result.name]
    shown = registers.shown(result.name)

    def raw(words: tuple[int, ...] | None, value: Value | None) -> tuple[int, ...] | None:
        # Of registers that are shared, the bits that are ours: the others may change meanwhile.
        if shown.mask is None or words is None or value is None:
            return words
        return shown.replace_bits((0,) * shown.length, value)

    return RegisterResult(
        name=result.name.removeprefix(POINT_PREFIX),
        outcome=result.outcome,
        table=point.table,
        address=point.address,
        unit=point.unit,
        wanted=result.wanted,
        before=result.before,
        after=result.after,
        raw_before=raw(result.raw_before, result.before),
        raw_after=raw(result.raw_after, result.after),
        volatile=point.volatile,
        detail=result.detail.replace(POINT_PREFIX, ""),
    )


_WORST = (
    (Outcome.INDETERMINATE, Status.INDETERMINATE),
    (Outcome.VERIFY_FAILED, Status.VERIFY_FAILED),
    (Outcome.REFUSED, Status.REFUSED),
    (Outcome.UNKNOWN, Status.UNKNOWN),
    (Outcome.CHANGED, Status.CHANGED),
    (Outcome.WOULD_CHANGE, Status.CHANGED),
)


def _status(
    results: Sequence[SettingResult], registers: Registers, *, ran_out: bool
) -> tuple[Status, list[SettingResult]]:
    """Return the worst that became of a device's registers, and those of which it did."""
    for outcome, status in _WORST:
        worst = [result for result in results if result.outcome is outcome]
        if worst and status is Status.UNKNOWN:
            # What can be read is unknown only where the device was lost before the write.
            lost = any(registers.readable(result.name) for result in worst) and not ran_out
            return (Status.UNREACHABLE if lost else Status.UNKNOWN), worst
        if worst:
            return status, worst
    return Status.OK, []
