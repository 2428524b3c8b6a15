# SPDX-License-Identifier: Apache-2.0
"""What answers on a depot's buses, declared or not: which profile fits it, and what it holds. Nothing is written.

A bus is asked at the lowest priority and never for more than half of the time, so that whoever else uses it keeps most
of it. A unit that answers neither of two questions counts as not there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import anyio

from derms_agent import profiles as built_in
from derms_agent.depot import ranges
from derms_agent.device_state.access import Access
from derms_agent.device_state.fit import Fit, best, fit, sunspec_fit
from derms_agent.device_state.gather import Gathered, read
from derms_agent.device_state.results import Status
from derms_agent.drivers.configured_device import ConfiguredDevice
from derms_agent.drivers.errors import (
    BadReply,
    BusError,
    DeadlinePassed,
    NotAllowed,
    Refused,
    Unreachable,
)
from derms_agent.drivers.interface import Priority, RegisterBus
from derms_agent.drivers.modbus.bus import GATEWAY_PATH_UNAVAILABLE
from derms_agent.drivers.modbus_device import IDENTITY
from derms_agent.drivers.register_map import ModbusMap
from derms_agent.drivers.sunspec import BASE_ADDRESSES, FoundMap, discover
from derms_agent.drivers.unit import Unit
from derms_agent.model import Bus, Depot, Device, DeviceKind, Evse, Transport, Value
from derms_agent.profiles.point import Table
from derms_agent.profiles.profile import Profile, Protocol

LINE_UNITS = tuple(range(1, 33))
"""Tried on a serial line where nothing else is said: as many as one RS-485 segment drives."""
ENDPOINT_UNITS = (1, 2, 255)
"""Tried at an endpoint of its own: what such devices come with, be it one charger or two sockets."""
SERIAL_UNITS = range(1, 248)
TARGET_SILENT = 11
"""The exception by which a Modbus gateway says that the unit did not answer (V1.1b3, clause 7)."""
PAUSE_S = 0.05
LONGEST_PAUSE_S = 5.0
DEADLINE_S = 10.0
"""What one request may take, waiting behind everything else on its bus included."""
MOST_SILENT = 3
"""Questions in a row that a unit which has answered others may leave unanswered before it is judged by those."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A unit that answered, or that is declared and did not.

    `profile` is what fits beyond doubt, or what is declared; None where several do, or none. `gathered` is what was
    read from it by that profile. `shows` says in words what it is where no profile fits. `rating_a` is what a charger's
    hardware allows, as it says itself. `also`: it answers to these unit ids as well.
    """

    bus: str
    unit_id: int
    declared: Device | None = None
    profile: str | None = None
    fits: tuple[Fit, ...] = ()
    gathered: Gathered | None = None
    shows: str = ""
    rating_a: float | None = None
    also: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Scanned:
    """What became of a bus: its units, and where it could not be asked, or not to the end, why."""

    bus: str
    status: Status
    detail: str = ""
    units: tuple[Found, ...] = ()


def units_to_try(bus: Bus, given: Iterable[str] = ()) -> tuple[int, ...]:
    """Return the unit ids to try on a bus, those that are given as far as it can have them. Raises BadRange."""
    line = bus.transport is not Transport.TCP or bus.baud_rate is not None
    named = [number for text in given for number in _numbers(text)]
    if not named:
        return LINE_UNITS if line else ENDPOINT_UNITS
    possible = range(256) if bus.transport is Transport.TCP else SERIAL_UNITS
    return tuple(dict.fromkeys(number for number in named if number in possible))


def _numbers(text: str) -> Sequence[int]:
    numbers = (int(text),) if text.strip().isdecimal() else ranges.expand_units(text.strip())
    if max(numbers) > 255:  # noqa: PLR2004 - what a byte holds
        raise ranges.BadRange("unit ids from 0 to 255")
    return numbers


async def scan(
    depot: Depot, access: Access, to_try: Mapping[str, Sequence[int]], *, deadline_s: float = 1800.0
) -> list[Scanned]:
    """Return what answers on buses. `to_try` are unit ids by bus; `deadline_s` is for all."""
    until_s = anyio.current_time() + deadline_s
    own = [depot.buses[name] for name in to_try]
    done: dict[str, Scanned] = {}

    async def of_one_bus(bus: Bus) -> None:
        done[bus.name] = await _BusScan(depot, bus, access.buses[bus.name], to_try[bus.name], until_s).whole()

    async with anyio.create_task_group() as tasks:
        for bus in own:
            if bus.name in access.buses:
                tasks.start_soon(of_one_bus, bus)
            else:
                why = access.unknown.get(bus.name, "its bus is not this gateway's")
                done[bus.name] = Scanned(bus.name, Status.UNKNOWN, why)
    return [done[bus.name] for bus in own]


class SparingBus:
    """A bus that is only read, and for no more than half of the time; implements `RegisterBus`."""

    def __init__(self, bus: RegisterBus) -> None:
        self._bus = bus
        self.sent = False
        """Whether anything was ever sent on it, as far as is known."""
        self.problem = ""
        """What became of the last request, where it went wrong."""

    async def read(
        self,
        unit_id: int,
        table: Table,
        address: int,
        count: int,
        *,
        priority: Priority,  # noqa: ARG002 - nothing here is urgent
        deadline_s: float,
    ) -> tuple[int, ...]:
        """Read registers from a PDU address on, then leave the bus alone for as long as that took. Raises BusError."""
        began_s = anyio.current_time()
        try:
            words = await self._bus.read(
                unit_id, table, address, count, priority=Priority.CONFIGURATION, deadline_s=deadline_s
            )
        except BusError as failure:
            self.sent |= not isinstance(failure, Unreachable | DeadlinePassed)
            self.problem = str(failure)
            await self._pause(began_s)
            raise
        self.sent = True
        self.problem = ""
        await self._pause(began_s)
        return words

    async def _pause(self, began_s: float) -> None:
        await anyio.sleep(min(LONGEST_PAUSE_S, max(PAUSE_S, anyio.current_time() - began_s)))

    async def write(self, *_request: object, **_options: object) -> None:
        """Refuse. Raises NotAllowed."""
        raise NotAllowed("a scan writes nothing")


class _Silent(Exception):
    """A unit that is not there."""


@dataclass(slots=True)
class _Unit:
    """One unit that is asked, and whether it has ever answered; `silent` counts questions in a row that it did not."""

    bus: SparingBus
    unit_id: int
    answered: bool = False
    silent: int = 0

    async def words(self, table: Table, address: int, count: int) -> tuple[int, ...] | None:
        """Return what it answers, None where it refuses. Raises _Silent."""
        try:
            words = await self.bus.read(
                self.unit_id, table, address, count, priority=Priority.CONFIGURATION, deadline_s=DEADLINE_S
            )
        except BusError as failure:
            self.take(failure)
            return None
        self.answered, self.silent = True, 0
        return words

    def take(self, failure: BusError) -> None:
        """Note a failed question. Raises _Silent once the unit must be taken not to be there."""
        absent = isinstance(failure, Refused) and failure.exception_code in {GATEWAY_PATH_UNAVAILABLE, TARGET_SILENT}
        if isinstance(failure, Refused | BadReply) and not absent:
            self.answered, self.silent = True, 0
            return
        self.silent += 1
        if absent or isinstance(failure, Unreachable) or self.silent >= (MOST_SILENT if self.answered else 2):
            raise _Silent


class _BusScan:
    def __init__(self, depot: Depot, bus: Bus, way: RegisterBus, unit_ids: Sequence[int], until_s: float) -> None:
        self._depot = depot
        self._bus = bus
        self._sparing = SparingBus(way)
        self._declared = {device.unit_id: device for device in depot.devices.values() if device.bus == bus.name}
        self._unit_ids = sorted({*unit_ids, *self._declared})
        self._until_s = until_s

    async def whole(self) -> Scanned:
        units: list[Found] = []
        for unit_id in self._unit_ids:
            if anyio.current_time() >= self._until_s:
                why = f"not come to units from {unit_id} on before the deadline"
                return Scanned(self._bus.name, Status.UNKNOWN, why, tuple(units))
            found = await self._one(unit_id)
            if found is not None:
                units.append(found)
            if not self._sparing.sent:
                return Scanned(self._bus.name, Status.UNREACHABLE, self._sparing.problem, tuple(units))
        none = not any(found.gathered is None or found.gathered.answered for found in units)
        tried = ", ".join(map(str, self._unit_ids))
        detail = f"none of the units {tried or 'that were named'} answers" if none else ""
        return Scanned(self._bus.name, Status.OK, detail, without_repeats(units))

    async def _one(self, unit_id: int) -> Found | None:
        device = self._declared.get(unit_id)
        if device is None:
            return await self._identified(unit_id)
        gathered = await self._read(device)
        as_declared = Found(
            bus=self._bus.name, unit_id=unit_id, declared=device, profile=device.profile, gathered=gathered
        )
        if gathered.answered or gathered.status is not Status.REFUSED:
            return as_declared
        other = await self._identified(unit_id)
        return as_declared if other is None else replace(other, declared=device)

    async def _read(self, device: Device) -> Gathered:
        return await read(
            ConfiguredDevice(
                device,
                built_in.load(device.profile),
                self._sparing,
                configure_s=DEADLINE_S,
                clock=anyio.current_time,
            )
        )

    async def _identified(self, unit_id: int) -> Found | None:
        """Return what a unit is, None where there is none."""
        unit = _Unit(self._sparing, unit_id)
        found = Found(bus=self._bus.name, unit_id=unit_id)
        models: FoundMap | None = None
        fits: list[Fit] = []
        try:
            if not await _is_there(unit):
                return None
            models = await _models(unit)
            for profile in built_in.load_all().values():
                if models is not None and profile.protocol is Protocol.SUNSPEC:
                    fits.append(sunspec_fit(profile, models))
                elif models is None and profile.protocol is Protocol.MODBUS and await _may_be(unit, profile):
                    fits.append(fit(profile, await _shown(unit, profile)))
            taken, possible = best(fits)
            if taken is None:
                return replace(found, fits=possible, shows=_words(models))
            profile = built_in.load(taken.profile)
            device = await self._device(unit, profile)
            rating_a = await _rating_a(unit, profile)
        except _Silent:
            return replace(found, shows="it stopped answering while it was asked") if unit.answered else None
        gathered = await self._read(device)
        return replace(found, profile=taken.profile, fits=possible, gathered=gathered, rating_a=rating_a)

    async def _device(self, unit: _Unit, profile: Profile) -> Device:
        """Return a device with as many EVSEs as it has, each of no known circuit and rating."""
        declared = self._declared.get(unit.unit_id)
        name = f"{self._bus.name}-{unit.unit_id}" if declared is None else declared.name
        while declared is None and name in self._depot.devices:
            name += "-found"
        connectors = await _connectors(unit, profile)
        evses = tuple(
            Evse(
                name=name if len(connectors) == 1 else f"{name}/{connector}",
                device=name,
                connector=connector,
                circuit="",
                phases=(),
                rating_a=1.0,
            )
            for connector in connectors
        )
        return Device(
            name=name,
            kind=profile.kind,
            bus=self._bus.name,
            unit_id=unit.unit_id,
            profile=profile.name,
            evses=evses,
        )


def without_repeats(units: Sequence[Found]) -> tuple[Found, ...]:
    """Return units, each device once: some answer to whatever unit id they are asked by."""
    first: dict[object, int] = {}
    kept: list[Found] = []
    for found in sorted(units, key=lambda one: one.declared is None):
        serial_number = None if found.gathered is None else found.gathered.identity.get("serial_number")
        same = (found.profile, serial_number)
        if serial_number is None or same not in first:
            first[same] = len(kept)
            kept.append(found)
        elif found.declared is None:
            at = first[same]
            kept[at] = replace(kept[at], also=(*kept[at].also, found.unit_id))
        else:
            kept.append(found)
    return tuple(sorted(kept, key=lambda one: one.unit_id))


async def _is_there(unit: _Unit) -> bool:
    """Ask two questions, each of which any unit answers, be it with a refusal. Raises _Silent."""
    for table, address in ((Table.HOLDING, BASE_ADDRESSES[0]), (Table.INPUT, 0)):
        await unit.words(table, address, 1)
        if unit.answered:
            return True
    return False


async def _models(unit: _Unit) -> FoundMap | None:
    """Return a unit's SunSpec models, None where it has none. Raises _Silent."""
    for profile in built_in.load_all().values():
        if profile.protocol is Protocol.SUNSPEC:
            try:
                return await discover(Unit(unit.bus, unit.unit_id, profile), Priority.CONFIGURATION, DEADLINE_S)
            except BusError as failure:
                unit.take(failure)
                return None
    return None


def _bare(profile: Profile) -> ModbusMap:
    """Return where a profile's points lie, those that each connector has for itself at the first."""
    return ModbusMap(Device(name="", kind=profile.kind, bus="", unit_id=0, profile=profile.name), profile)


async def _seen(unit: _Unit, registers: ModbusMap, name: str) -> tuple[Value | None, tuple[int, ...]] | None:
    """Return a value with its words, None where the unit refuses it. Raises _Silent."""
    (span,) = registers.spans(name)
    words = await unit.words(span.table, span.address, span.length)
    return None if words is None else (registers.value(name, {span.name: words}), words)


async def _may_be(unit: _Unit, profile: Profile) -> bool:
    """Return whether a unit answers where a profile's devices have what shows that they live. Raises _Silent."""
    registers = _bare(profile)
    alive = [name for name in (*profile.poll[:1], *sorted(IDENTITY, reverse=True)) if name in registers.names]
    for name in alive[:2]:
        if await _seen(unit, registers, name) is not None:
            return True
    return False


async def _shown(unit: _Unit, profile: Profile) -> dict[str, tuple[Value | None, Sequence[int]] | None]:
    """Return what a unit shows of each of a profile's points, None for those that it refuses. Raises _Silent."""
    registers = _bare(profile)
    names = [name for name in registers.names if registers.readable(name)]
    words: dict[str, tuple[int, ...]] = {}
    waiting = list(registers.plan(names))
    while waiting:
        block = waiting.pop()
        answer = await unit.words(block.table, block.address, block.count)
        if answer is not None:
            words |= block.split(answer)
        elif len(block.spans) > 1:
            waiting.extend(block.apart())
    return {
        name: (registers.value(name, words), words[span.name]) if span.name in words else None
        for name in names
        for span in registers.spans(name)
    }


async def _connectors(unit: _Unit, profile: Profile) -> tuple[int, ...]:
    """Return the connectors that a charger has; none for what is no charger. Raises _Silent."""
    if profile.kind is not DeviceKind.CHARGER:
        return ()
    if profile.connectors == 1:
        return (1,)
    counted = await _number(unit, profile, "charging_points")
    if counted is not None:
        return tuple(range(1, min(profile.connectors, int(counted)) + 1))
    point = next(profile.points[name] for name in profile.poll if profile.points[name].stride)
    there = [1]
    for connector in range(2, profile.connectors + 1):
        if await unit.words(point.table, point.address_of(connector), point.length) is None:
            break
        there.append(connector)
    return tuple(there)


async def _rating_a(unit: _Unit, profile: Profile) -> float | None:
    """Return what a charger says that its hardware allows, in A per conductor. Raises _Silent."""
    return await _number(unit, profile, "hardware_maximum")


async def _number(unit: _Unit, profile: Profile, name: str) -> float | None:
    """Return a value above 0, None where a unit has none. Raises _Silent."""
    registers = _bare(profile)
    seen = await _seen(unit, registers, name) if name in registers.names else None
    value = None if seen is None else seen[0]
    return float(value) if isinstance(value, int | float) and value > 0 else None


def _words(models: FoundMap | None) -> str:
    if models is None:
        return "what it shows fits no profile"
    return f"SunSpec models {', '.join(str(model.id) for model in models.models)}"
