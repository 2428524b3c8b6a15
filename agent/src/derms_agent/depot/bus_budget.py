# SPDX-License-Identifier: Apache-2.0
"""How long a serial line is busy with its units: one sweep of the points that control needs, a shed, the watchdogs.

The line carries one transaction at a time, so a sweep is the sum of its transactions. With ten registers a unit, 500 ms
are enough for 8, 15 or 29 units at 9,600, 19,200 or 115,200 baud. Beyond that nothing breaks at once: values only get
older. What does break is software whose every unit is polled by a loop of its own with a time-out: its queue grows
until no answer comes in time, which is what is known as "more than 50 chargers on a single serial bus".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from derms_agent import serial_line
from derms_agent.model import Bus
from derms_agent.profiles.point import Point, Table
from derms_agent.profiles.profile import Profile, Protocol, Refresh

SWEEP_LIMIT_S = 0.5
"""The oldest that a value of control may be by the bus's own doing."""
USABLE_S = 0.99 * SWEEP_LIMIT_S
"""What a plan may use of it: the arithmetic knows nothing of the clocks and the scheduling of those who take part."""
CONTROL_CYCLE_S = 1.0
"""How often control writes setpoints, and with them what their watchdogs wait for."""

# A profile that names no points for control costs what the facts page calls a transaction.
ASSUMED_REGISTERS = 10
# Where a SunSpec device keeps a model is found out on the device; a model is read whole, at most by one full read.
SUNSPEC_MODEL_REGISTERS = 125
SUNSPEC_LIMIT_REGISTERS = 2  # int32, as model 704 has it
_BITS_PER_REGISTER = 16


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit of a bus: its profile, and how many EVSEs it carries."""

    profile: Profile
    evses: int


@dataclass(frozen=True, slots=True)
class Budget:
    """What a line's units take: `sweep_s` to read all, `shed_s` to write each EVSE's limit while a read is running.

    `fitting`: how many such units could be read within the limit.
    """

    units: int
    sweep_s: float
    shed_s: float
    fitting: int


def budget(bus: Bus, units: Sequence[Unit]) -> Budget | None:
    """Return a bus's budget, or None where no serial line is known to be behind it."""
    if bus.baud_rate is None or not units:
        return None
    costs = _costs(bus, bus.baud_rate, units)
    sweep_s = sum(cost.sweep_s for cost in costs)
    shed_s = max(cost.longest_read_s for cost in costs) + sum(cost.limits_s for cost in costs)
    return Budget(len(units), sweep_s, shed_s, int(USABLE_S / (sweep_s / len(units))))


def refresh_s(bus: Bus, units: Sequence[Unit]) -> float:
    """Return how long a unit's watchdog may have to wait for its next refresh, in s, at the worst.

    A refresh goes before every poll, but it comes once in a control cycle, waits for a transaction that runs, for the
    refreshes of all the other units, and for one unit that does not answer. Where any request refreshes, a whole sweep
    may go before it. Without a serial line only the cycle and the time-out are left.
    """
    waiting_s = CONTROL_CYCLE_S + bus.timeout_s
    if bus.baud_rate is None or not units:
        return waiting_s
    costs = _costs(bus, bus.baud_rate, units)
    by_request = any(_refreshed_by(unit) is Refresh.REQUEST for unit in units)
    sweep_s = sum(cost.sweep_s for cost in costs) if by_request else 0.0
    return waiting_s + max(cost.longest_read_s for cost in costs) + sum(cost.refresh_s for cost in costs) + sweep_s


@dataclass(frozen=True, slots=True)
class _Cost:
    """How long the line is busy with one unit, in s: all its reads, the longest, its limits, its watchdog's writes."""

    sweep_s: float
    longest_read_s: float
    limits_s: float
    refresh_s: float


def _costs(bus: Bus, baud_rate: int, units: Sequence[Unit]) -> list[_Cost]:
    """Return each unit's cost; units of one profile with as many EVSEs have the same."""
    known: dict[tuple[str, int], _Cost] = {}
    costs: list[_Cost] = []
    for unit in units:
        key = (unit.profile.name, unit.evses)
        if key not in known:
            known[key] = _cost(bus, baud_rate, unit)
        costs.append(known[key])
    return costs


def _cost(bus: Bus, baud_rate: int, unit: Unit) -> _Cost:
    pause_s = max(bus.delay_between_s, unit.profile.wire.delay_between_s)
    reads = [serial_line.read_s(baud_rate, registers) + pause_s for registers in _blocks(unit)]
    limits_s = unit.evses * sum(seconds + pause_s for seconds in _limit_steps_s(baud_rate, unit.profile))
    refreshes_s = {
        Refresh.WRITE: limits_s,
        Refresh.HEARTBEAT: serial_line.write_s(baud_rate, 1) + pause_s,
    }
    return _Cost(sum(reads), max(reads), limits_s, refreshes_s.get(_refreshed_by(unit), 0.0))


def _limit_steps_s(baud_rate: int, profile: Profile) -> Iterator[float]:
    """Yield how long each request takes by which the limit of an EVSE is written, and put in force."""
    steps = [_limit_registers(profile), *([1] * len(profile.control.in_force) if profile.control else [])]
    for registers in steps:
        if profile.protocol is Protocol.SUNSPEC:  # whose model and scale are looked at before each write
            yield serial_line.read_s(baud_rate, SUNSPEC_MODEL_REGISTERS)
        yield serial_line.write_s(baud_rate, registers)


def _limit_registers(profile: Profile) -> int:
    """Return how many registers the limit of an EVSE is long."""
    if profile.protocol is Protocol.SUNSPEC:
        return SUNSPEC_LIMIT_REGISTERS
    point = profile.points.get(profile.control.point) if profile.control else None
    return point.length if point else 1


def _refreshed_by(unit: Unit) -> Refresh:
    return unit.profile.fallback.refreshed_by if unit.profile.fallback else Refresh.NONE


def _blocks(unit: Unit) -> Iterator[int]:
    """Yield how many registers each read of a unit's control points takes, neighbours joined as its profile allows."""
    profile = unit.profile
    if profile.protocol is Protocol.SUNSPEC:
        models = {profile.sunspec_points[name].model for name in profile.poll if name in profile.sunspec_points}
        yield from [SUNSPEC_MODEL_REGISTERS] * max(len(models), 1)
        return
    polled = [profile.points[name] for name in profile.poll if name in profile.points]
    # What can only be written is read back from elsewhere.
    polled = [point if point.readable or point.readback is None else point.readback for point in polled]
    if not polled:
        yield ASSUMED_REGISTERS
        return
    for table in Table:
        spans = sorted(set(_spans(polled, table, max(unit.evses, 1))))
        yield from (_registers(table, count) for count in _joined(spans, profile))


def _spans(points: Sequence[Point], table: Table, connectors: int) -> Iterator[tuple[int, int]]:
    """Yield the first address of each point, and the first behind it."""
    for point in points:
        if point.table is not table:
            continue
        for connector in range(1, (connectors if point.stride else 1) + 1):
            first = point.address_of(connector)
            yield first, first + point.length


def _joined(spans: Sequence[tuple[int, int]], profile: Profile) -> Iterator[int]:
    """Yield the lengths of the blocks that sorted spans come to."""
    if not spans:
        return
    first, end = spans[0]
    for start, stop in spans[1:]:
        if start - end > profile.wire.max_gap or stop - first > profile.wire.max_read:
            yield end - first
            first, end = start, stop
        else:
            end = max(end, stop)
    yield end - first


def _registers(table: Table, count: int) -> int:
    """Return how many registers a count of a table's entries is as long as."""
    return count if table in (Table.HOLDING, Table.INPUT) else -(-count // _BITS_PER_REGISTER)
