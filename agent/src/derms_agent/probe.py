# SPDX-License-Identifier: Apache-2.0
"""`derms-agent probe`: whether a device answers, at which address, with what, and how fast.

It asks the bus directly, so it is for a gateway whose agent is stopped, or for a machine that has none. It only reads.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import anyio

from derms_agent import depot as depots
from derms_agent import profiles
from derms_agent.drivers.errors import BusError, Refused
from derms_agent.drivers.factory import open_buses
from derms_agent.drivers.interface import Priority
from derms_agent.drivers.modbus import ModbusBus
from derms_agent.drivers.register_map import ModbusMap
from derms_agent.drivers.sunspec import BASE_ADDRESSES
from derms_agent.drivers.sunspec_model import MARK
from derms_agent.model import Bus, Depot, Device, Transport
from derms_agent.profiles.notation import AddressBase, AddressError, expecting, hexadecimal, pdu_address
from derms_agent.profiles.point import REGISTERS, Point, Table
from derms_agent.profiles.profile import Profile, Protocol, nearest

ALIVE, NOT_ALIVE, USAGE = 0, 1, 2
MODBUS_PORT = 502
MODPOLL_ADDRESS = 40001
SUNSPEC_MARK = "SunS"
MOST_REGISTERS = 125

BASES = """\
An address means nothing without the base that it counts from. 40001 is
  --address-base one      register 40000 of the protocol: modpoll -r 40001, where a SunSpec device answers SunS
  --address-base zero     register 40001 of the protocol: what most vendors' lists call 40001, but not all
  --address-base modicon  holding register 0 of the protocol: the leading 4 names the table"""


class UsageError(ValueError):
    """What was asked for cannot be asked of a device. Its text says what would be right."""


@dataclass(frozen=True, slots=True)
class Question:
    """One read, and what its answer should be. `address` is a PDU address; `judge` gives (as expected, found)."""

    table: Table
    address: int
    count: int
    expected: str
    judge: Callable[[Sequence[int]], tuple[bool, str]]


@dataclass(frozen=True, slots=True)
class Target:
    """A unit to be asked; the first question that it answers as expected is the one that counts."""

    name: str
    bus: str
    unit_id: int
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of a target. Latencies are in s, of the tries that were answered; the bus was connected before."""

    name: str
    endpoint: str
    unit_id: int
    table: str
    address: int
    address_base: str = AddressBase.ZERO.value
    count: int
    expected: str
    found: str
    alive: bool
    tries: int
    latencies_s: tuple[float, ...]


def _sunspec_questions(bases: Iterable[int]) -> tuple[Question, ...]:
    def judge(words: Sequence[int]) -> tuple[bool, str]:
        found = tuple(words) == MARK
        return found, SUNSPEC_MARK if found else hexadecimal(words)

    return tuple(Question(Table.HOLDING, base, len(MARK), SUNSPEC_MARK, judge) for base in bases)


def liveness(device: Device, profile: Profile) -> tuple[Question, ...]:
    """Return what shows that a device is the one declared: SunSpec's mark, or the first point that control polls."""
    if profile.protocol is Protocol.SUNSPEC:
        return _sunspec_questions(profile.base_addresses or BASE_ADDRESSES)
    registers = ModbusMap(device, profile)
    names = [name for name in registers.names if registers.readable(name)]
    name = next((name for polled in profile.poll for name in names if name.partition("/")[0] == polled), names[0])
    (span,) = registers.spans(name)
    point = profile.points[name.partition("/")[0]]

    def judge(words: Sequence[int]) -> tuple[bool, str]:
        value = registers.value(name, {span.name: words})
        if value is None:
            return False, f"absent ({hexadecimal(words)})"
        return not str(value).startswith("unknown "), f"{value} {point.unit}".strip()

    return (Question(span.table, span.address, span.length, _expectation(name, point), judge),)


def _expectation(name: str, point: Point) -> str:
    if point.states is not None:
        return f"{name}: a known state"
    return f"{name}: a value in {point.unit}" if point.unit else f"{name}: a value"


def depot_targets(depot: Depot, names: Sequence[str]) -> tuple[Target, ...]:
    """Return a target for each device of a depot, or where names are given for those."""
    return tuple(
        Target(device.name, _bus_of(depot, device.bus), device.unit_id, liveness(device, profiles.load(device.profile)))
        for device in depot.devices.values()
        if not names or device.name in names
    )


def _bus_of(depot: Depot, bus: str) -> str:
    return f"{depot.name} {bus}"


async def probe(buses: Mapping[str, ModbusBus], targets: Iterable[Target], tries: int) -> tuple[Answer, ...]:
    """Ask every target as often as `tries` says: buses at once, the units of one bus one after the other."""
    order = tuple(targets)
    answers: dict[Target, Answer] = {}

    async def ask_all(bus: ModbusBus, name: str) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bus.run)
            await _connected(bus)
            for target in order:
                if target.bus == name:
                    answers[target] = await _ask(bus, target, tries)
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for name in dict.fromkeys(target.bus for target in order):
            tasks.start_soon(ask_all, buses[name], name)
    return tuple(answers[target] for target in order)


async def _connected(bus: ModbusBus) -> None:
    """Wait until a connection stands or an attempt has failed, so that no latency has a connection's in it."""
    with anyio.move_on_after(bus.bus.connect_timeout_s + bus.bus.delay_after_connect_s + 1):
        while not bus.connected and bus.problem is None:
            await anyio.sleep(0.005)


async def _ask(bus: ModbusBus, target: Target, tries: int) -> Answer:
    latencies: list[float] = []
    alive, found, question = False, "", target.questions[0]
    for question in target.questions:
        latencies = []
        alive, found = False, ""
        for _ in range(tries):
            started = time.monotonic()
            try:
                words = await bus.read(
                    target.unit_id,
                    question.table,
                    question.address,
                    question.count,
                    priority=Priority.POLL,
                    deadline_s=2 * bus.bus.timeout_s + bus.bus.gateway_timeout_s,
                )
            except Refused as refusal:
                found = str(refusal)
                break
            except BusError as failure:
                found = found or str(failure)
                continue
            latencies.append(time.monotonic() - started)
            alive, found = question.judge(words)
        if alive:
            break
    return Answer(
        name=target.name,
        endpoint=_endpoint(bus.bus),
        unit_id=target.unit_id,
        table=question.table.value,
        address=question.address,
        count=question.count,
        expected=question.expected,
        found=found,
        alive=alive,
        tries=tries,
        latencies_s=tuple(latencies),
    )


def _endpoint(bus: Bus) -> str:
    return str(bus.path) if bus.transport is Transport.SERIAL else f"{bus.host}:{bus.port}"


def _milliseconds(latencies_s: Sequence[float]) -> str:
    if not latencies_s:
        return "-"
    shown = (min(latencies_s), statistics.median(latencies_s), max(latencies_s))
    return " / ".join(f"{1000 * latency:.1f}" for latency in shown)


HEADINGS = (
    "device",
    "endpoint",
    "unit",
    "register",
    "modpoll -r",
    "expected",
    "found",
    "answered",
    "ms min / med / max",
    "",
)


def table(answers: Sequence[Answer]) -> str:
    """Return the answers in aligned columns. Registers are PDU addresses, base zero; `modpoll -r` counts from one."""
    rows = [HEADINGS]
    for answer in answers:
        short = answer.found if answer.alive or not answer.found else "see below"
        rows.append(
            (
                answer.name,
                answer.endpoint,
                str(answer.unit_id),
                f"{answer.table} {answer.address} × {answer.count}",
                str(answer.address + 1),
                answer.expected,
                short,
                f"{len(answer.latencies_s)} of {answer.tries}",
                _milliseconds(answer.latencies_s),
                "alive" if answer.alive else "NOT ALIVE",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"{answer.name}: {answer.found}" for answer in answers if not answer.alive]
    dead = sum(not answer.alive for answer in answers)
    lines.append(f"{len(answers) - dead} of {len(answers)} alive")
    return "\n".join(lines)


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb `probe`."""
    parser = verbs.add_parser(
        "probe",
        help="ask devices whether they are alive",
        description="Asks one endpoint, or every device of a depot, for what it must know, and says what it answered.",
        epilog=BASES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("depot", nargs="?", type=Path, help="a depot file, or an inventory directory with depot files")
    parser.add_argument("--device", action="append", default=[], metavar="NAME", help="only this one; can be repeated")
    one = parser.add_argument_group("one endpoint instead of a depot")
    one.add_argument("--host", help="name or address of a Modbus/TCP device or gateway")
    one.add_argument("--port", type=int, default=MODBUS_PORT, help="%(default)s if not given")
    one.add_argument("--unit", type=int, default=1, help="unit id; %(default)s if not given")
    one.add_argument("--framer", choices=("tcp", "rtu_over_tcp"), default="tcp", help="%(default)s if not given")
    one.add_argument("--address", type=int, help="first register; needs --address-base. Not given: 40001 in base one")
    one.add_argument("--address-base", choices=[base.value for base in AddressBase], help="see below")
    one.add_argument("--table", choices=("holding", "input"), help="holding if not given; base modicon names it itself")
    one.add_argument("--count", type=int, default=10, help="registers to read; %(default)s if not given")
    one.add_argument("--expect", metavar="TEXT", help="what the registers begin with, as text or 0x… words")
    parser.add_argument("--tries", type=int, default=3, help="reads of each unit; %(default)s if not given")
    parser.add_argument("--timeout", type=float, help="s for one answer; the depot's own, or 1, if not given")
    parser.add_argument("--json", action="store_true", help="print a list of objects instead of a table")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Probe what the options say, print it, and return the exit status: 0 all alive, 1 some not, 2 usage."""
    try:
        buses, targets = _asked(options)
    except (UsageError, AddressError, OSError, depots.NoDepotFile, depots.DepotError, profiles.ProfileError) as problem:
        sys.stderr.write(f"{problem}\n")
        return USAGE
    answers = anyio.run(probe, buses, targets, options.tries)
    sys.stdout.write(
        f"{json.dumps([asdict(answer) for answer in answers], indent=2) if options.json else table(answers)}\n"
    )
    return ALIVE if all(answer.alive for answer in answers) else NOT_ALIVE


def _asked(options: argparse.Namespace) -> tuple[Mapping[str, ModbusBus], tuple[Target, ...]]:
    if (options.depot is None) == (options.host is None):
        raise UsageError("found neither or both, expected either a depot or --host")
    if options.tries < 1 or (options.timeout is not None and not (0 < options.timeout < math.inf)):
        raise UsageError(f"found {options.tries} tries of {options.timeout} s, expected at least 1 of more than 0 s")
    if options.host is not None:
        return _endpoint_asked(options)
    found = [depots.load(file) for file in depots.files(options.depot)]
    known = [name for depot in found for name in depot.devices]
    for name in options.device:
        if name not in known:
            hint = nearest(name, known)
            raise UsageError(f"found --device {name}, expected a device" + (f" (did you mean {hint}?)" if hint else ""))
    if options.timeout is not None:
        found = [_with_timeout(depot, options.timeout) for depot in found]
    buses = {_bus_of(depot, name): bus for depot in found for name, bus in open_buses(depot).items()}
    return buses, tuple(target for depot in found for target in depot_targets(depot, options.device))


def _with_timeout(depot: Depot, timeout_s: float) -> Depot:
    return replace(depot, buses={name: replace(bus, timeout_s=timeout_s) for name, bus in depot.buses.items()})


def _endpoint_asked(options: argparse.Namespace) -> tuple[Mapping[str, ModbusBus], tuple[Target, ...]]:
    if options.device:
        raise UsageError("found --device beside --host, expected it with a depot only")
    if (options.address is None) != (options.address_base is None):
        raise UsageError(f"found one of --address and --address-base, expected both or none.\n{BASES}")
    if not 0 <= options.unit <= 255 or not 1 <= options.port < REGISTERS or not 1 <= options.count <= MOST_REGISTERS:  # noqa: PLR2004
        raise UsageError(
            f"found unit {options.unit}, port {options.port}, count {options.count}, "
            f"expected 0 to 255, 1 to 65535, 1 to {MOST_REGISTERS}"
        )
    expected = options.expect
    if options.address is None:
        registers, address = pdu_address(MODPOLL_ADDRESS, AddressBase.ONE)
        expected = expected or SUNSPEC_MARK
    else:
        named = None if options.table is None else Table(options.table)
        registers, address = pdu_address(options.address, AddressBase(options.address_base), named)
    if address + options.count > REGISTERS:
        raise UsageError(f"found {options.count} registers from {address} on, expected all within 0 to 65535")
    question = Question(registers, address, options.count, expected or "any answer", expecting(expected))
    bus = Bus(
        name=options.host,
        gateway="",
        transport=Transport(options.framer),
        host=options.host,
        port=options.port,
        timeout_s=options.timeout or 1.0,
    )
    return {bus.name: ModbusBus(bus)}, (Target(options.host, bus.name, options.unit, (question,)),)
