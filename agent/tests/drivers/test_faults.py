# SPDX-License-Identifier: Apache-2.0
"""Random profiles × devices × faults: no register is written that nobody asked for, no wrong value passes for good.

The unit under test is the whole chain from driver to socket. Its other end is a server of this file, that knows bytes
only; each register holds a word made of its own address, so that an answer taken for another's shows. What values those
words mean is worked out here again, with `struct` alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from derms_agent.drivers.errors import BusError
from derms_agent.drivers.factory import open_device
from derms_agent.drivers.modbus import ModbusBus
from derms_agent.drivers.modbus_device import ModbusDevice, Pace
from derms_agent.drivers.settings import Outcome, SettingResult
from derms_agent.model import (
    Bus,
    Device,
    DeviceKind,
    Evse,
    Phase,
    Proof,
    ProofKind,
    Quality,
    Reading,
    Setpoint,
    Transport,
)
from derms_agent.profiles.point import Access, Order, Point, PointType, Table
from derms_agent.profiles.profile import (
    AfterBoot,
    Control,
    Fallback,
    Heartbeat,
    Profile,
    Protocol,
    Quantity,
    Refresh,
    Wire,
)

CODES = {
    PointType.U16: "H",
    PointType.I16: "h",
    PointType.U32: "I",
    PointType.I32: "i",
    PointType.U64: "Q",
    PointType.I64: "q",
    PointType.F32: "f",
    PointType.F64: "d",
}
SIZES = {"H": 1, "h": 1, "I": 2, "i": 2, "Q": 4, "q": 4, "f": 2, "d": 4}
TIMEOUT_S = 0.04
UNIT = 7
READ_HOLDING, READ_INPUT, WRITE_ONE, WRITE_MANY = 3, 4, 6, 16
PACE = Pace(
    poll_s=0.02,
    slow_s=0.03,
    settings_s=0.05,
    freshness_s=0.4,
    shed_s=0.4,
    verify_s=0.05,
    verify_every_s=0.02,
    configure_s=0.4,
    configure_verify_s=0.1,
)


class Misdeed(str, Enum):
    """What a device, a gateway or a network does to a request; those in the second group do it to its answer."""

    NONE = "none"
    SILENT = "silent"
    REFUSE = "refuse"
    HANG_UP = "hang up"
    DONE_AND_SILENT = "done and silent"
    LATE = "late"
    WRONG_UNIT = "wrong unit"
    WRONG_ID = "wrong id"
    WRONG_FUNCTION = "wrong function"
    SHORT = "short"
    LONG = "long"
    DRIBBLE = "dribble"
    WRONG_ECHO = "wrong echo"
    DONE_AND_HANG_UP = "done and hang up"


NOT_DONE = {Misdeed.SILENT, Misdeed.REFUSE, Misdeed.HANG_UP}


def word(table: Table, address: int) -> int:
    """Return what a register holds that nobody wrote; neighbours differ in both bytes."""
    return (address * 40503 + (977 if table is Table.HOLDING else 31)) % 65521


@dataclass
class Plant:
    """One unit's registers, and what is done to requests, one misdeed after the other; then none."""

    profile: Profile
    misdeeds: list[Misdeed]
    holding: dict[int, int] = field(default_factory=dict)
    written: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)

    def word(self, table: Table, address: int) -> int:
        return self.holding.get(address, word(table, address)) if table is Table.HOLDING else word(table, address)

    def words(self, table: Table, address: int, length: int) -> tuple[int, ...]:
        return tuple(self.word(table, address + at) for at in range(length))

    def answer(self, pdu: bytes, misdeed: Misdeed) -> bytes | None:
        """Do what a request says, unless the misdeed keeps it from being done, and return the answer's PDU."""
        if misdeed is Misdeed.REFUSE:
            return bytes((pdu[0] | 0x80, 4))
        if misdeed in NOT_DONE:
            return None
        function, address, count = struct.unpack(">BHH", pdu[:5])
        if function in {READ_HOLDING, READ_INPUT}:
            table = Table.HOLDING if function == READ_HOLDING else Table.INPUT
            found = self.words(table, address, count)
            return self._spoiled(bytes((function, 2 * count)) + struct.pack(f">{count}H", *found), misdeed)
        words = (count,) if function == WRITE_ONE else struct.unpack(f">{(len(pdu) - 6) // 2}H", pdu[6:])
        self.written.append((address, words))
        self.holding.update({address + at: written for at, written in enumerate(words)})
        echo = pdu[:5]
        if misdeed is Misdeed.WRONG_ECHO:
            echo = struct.pack(">BHH", function, address + 1, count)
        return self._spoiled(echo, misdeed)

    def _spoiled(self, pdu: bytes, misdeed: Misdeed) -> bytes:
        if misdeed is Misdeed.WRONG_FUNCTION:
            return bytes((pdu[0] ^ 7,)) + pdu[1:]
        if pdu[0] not in {READ_HOLDING, READ_INPUT}:
            return pdu
        if misdeed is Misdeed.SHORT:
            return bytes((pdu[0], pdu[1] - 2)) + pdu[2:-2]
        if misdeed is Misdeed.LONG:
            return bytes((pdu[0], pdu[1] + 2)) + pdu[2:] + b"\x12\x34"
        return pdu


def crc(frame: bytes) -> bytes:
    value = 0xFFFF
    for byte in frame:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0xA001 if value & 1 else 0)
    return value.to_bytes(2, "little")


async def next_request(reader: asyncio.StreamReader, *, rtu: bool) -> tuple[bytes, int, bytes]:
    """Return a request's transaction id (none in RTU), unit and PDU."""
    head = await reader.readexactly(7)
    if not rtu:
        return head[:2], head[6], await reader.readexactly(struct.unpack(">H", head[4:6])[0] - 1)
    frame = head + await reader.readexactly(head[6] + 2 if head[1] == WRITE_MANY else 1)
    assert crc(frame[:-2]) == frame[-2:]
    return b"", frame[0], frame[1:-2]


def reply(transaction: bytes, unit: int, pdu: bytes, misdeed: Misdeed) -> list[bytes]:
    """Return an answer's frame, in the parts in which it is sent."""
    named = unit + (misdeed is Misdeed.WRONG_UNIT)
    if transaction:
        number = struct.unpack(">H", transaction)[0] + (misdeed is Misdeed.WRONG_ID)
        frame = struct.pack(">HHHB", number & 0xFFFF, 0, len(pdu) + 1, named) + pdu
    else:
        frame = bytes((named,)) + pdu
        frame += crc(frame)
    return [frame[at : at + 1] for at in range(len(frame))] if misdeed is Misdeed.DRIBBLE else [frame]


@asynccontextmanager
async def served(plant: Plant, *, rtu: bool) -> AsyncIterator[int]:
    """Serve a plant on loopback and give the port."""
    misdeeds = iter(plant.misdeeds)
    connections: set[asyncio.StreamWriter] = set()

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(writer)
        try:
            while True:
                transaction, unit, pdu = await next_request(reader, rtu=rtu)
                assert unit == UNIT
                misdeed = next(misdeeds, Misdeed.NONE)
                answer = plant.answer(pdu, misdeed)
                if misdeed in {Misdeed.HANG_UP, Misdeed.DONE_AND_HANG_UP}:
                    return
                if answer is None or misdeed is Misdeed.DONE_AND_SILENT:
                    continue
                if misdeed is Misdeed.LATE:
                    await asyncio.sleep(1.5 * TIMEOUT_S)
                for part in reply(transaction, unit, answer, misdeed):
                    writer.write(part)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            connections.discard(writer)
            writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in list(connections):
            writer.close()
        await server.wait_closed()


def meaning(point: Point, words: tuple[int, ...]) -> object:
    """Return what a point's words mean: this file's own reading of the profile, not the agent's."""
    octets = b"".join(one.to_bytes(2, point.byte_order.value) for one in words)
    if point.type is PointType.STRING:
        return octets.split(b"\0")[0].decode("ascii", "replace").strip() or None
    if point.word_order is Order.LITTLE:
        octets = b"".join(octets[at : at + 2] for at in range(len(octets) - 2, -1, -2))
    if point.type is PointType.BITS:
        whole = int.from_bytes(octets, "big")
        assert point.mask is not None
        low = (point.mask & -point.mask).bit_length() - 1
        found = (whole & point.mask) >> low
        return found == 1 if point.mask.bit_count() == 1 else found
    found = struct.unpack(f">{CODES[point.type]}", octets)[0]
    if isinstance(found, float):
        return found * point.scale if math.isfinite(found) else None
    return float(Fraction(found) * Fraction(repr(point.scale)))


@st.composite
def plain_points(draw: st.DrawFn) -> dict[str, Point]:
    """Points of every type, apart from each other, two to a register where they are masked."""
    points: dict[str, Point] = {}
    address = draw(st.integers(100, 200))
    for number in range(draw(st.integers(3, 10))):
        address += draw(st.sampled_from([0, 0, 1, 3, 20]))
        type_ = draw(st.sampled_from(list(PointType)))
        table = draw(st.sampled_from([Table.HOLDING, Table.INPUT]))
        writable = table is Table.HOLDING and draw(st.booleans())
        access = Access.READ_WRITE if writable else Access.READ
        if type_ is PointType.BITS:
            for half, mask in (("low", 0x000F), ("high", 0x0100)):
                name = f"bits_{number}_{half}"
                points[name] = Point(
                    name=name,
                    table=table,
                    address=address,
                    type=type_,
                    length=1,
                    mask=mask,
                    access=access,
                    setting=writable,
                )
            address += 1
            continue
        text = type_ is PointType.STRING
        length = draw(st.integers(1, 6)) if text else SIZES[CODES[type_]]
        points[f"point_{number}"] = Point(
            name=f"point_{number}",
            table=table,
            address=address,
            type=type_,
            length=length,
            scale=1.0 if text else draw(st.sampled_from([1.0, 0.1, 0.001, 10.0])),
            word_order=Order.BIG if text else draw(st.sampled_from(list(Order))),
            byte_order=draw(st.sampled_from(list(Order))),
            access=access,
            setting=writable,
        )
        address += length
    return points


@st.composite
def made_profiles(draw: st.DrawFn) -> Profile:
    points = draw(plain_points())
    refreshed_by = draw(st.sampled_from([Refresh.WRITE, Refresh.REQUEST, Refresh.HEARTBEAT]))
    limit_type, scale = draw(st.sampled_from([(PointType.U16, 0.001), (PointType.U32, 0.1), (PointType.F32, 1.0)]))
    points["current_limit"] = Point(
        name="current_limit",
        table=Table.HOLDING,
        address=900,
        type=limit_type,
        length=SIZES[CODES[limit_type]],
        scale=scale,
        unit="A",
        access=Access.READ_WRITE,
        minimum=0,
        maximum=60,
    )
    points["failsafe_current"] = Point(
        name="failsafe_current",
        table=Table.HOLDING,
        address=910,
        type=PointType.U16,
        length=1,
        scale=0.1,
        unit="A",
        access=Access.READ_WRITE,
        setting=True,
        minimum=0,
        maximum=60,
    )
    if refreshed_by is Refresh.HEARTBEAT:
        points["heartbeat"] = Point(
            name="heartbeat", table=Table.HOLDING, address=920, type=PointType.U16, length=1, access=Access.WRITE
        )
    readable = [name for name, point in points.items() if point.readable]
    return Profile(
        name="made_up",
        title="Made-up device",
        kind=DeviceKind.CHARGER,
        protocol=Protocol.MODBUS,
        source="hypothesis",
        points=points,
        sunspec_points={},
        fallback=Fallback(
            refreshed_by=refreshed_by,
            after_boot=AfterBoot.RATING,
            current="failsafe_current",
            fixed_timeout_s=1.0,
            heartbeat=Heartbeat(point="heartbeat", value=0x55, every_s=0.5) if "heartbeat" in points else None,
        ),
        control=Control(point="current_limit", quantity=Quantity.CURRENT, minimum=6, step=0.1),
        wire=Wire(max_read=draw(st.sampled_from([8, 20, 125])), max_gap=draw(st.sampled_from([0, 1, 5]))),
        never_write=(890, 899, 903, 911),
        poll=tuple(draw(st.lists(st.sampled_from(readable), min_size=1, unique=True))),
    )


@dataclass(frozen=True)
class Course:
    """What is asked of a device, while its watchdog is fed and it is polled besides."""

    watts: tuple[float, ...]
    changes: tuple[dict[str, object], ...]


@dataclass
class Seen:
    """What the driver said."""

    readings: list[Reading] = field(default_factory=list)
    proofs: list[tuple[Proof, dict[int, int]]] = field(default_factory=list)
    results: list[SettingResult] = field(default_factory=list)


def a_value(point: Point, random: int) -> object:
    """Return a value that a point can hold."""
    if point.type is PointType.STRING:
        return "abcdefghijkl"[: random % (2 * point.length) + 1]
    if point.mask is not None:
        return bool(random % 2) if point.mask.bit_count() == 1 else random % 16
    return round(random % 50 * point.scale, 3)


@st.composite
def courses(draw: st.DrawFn, profile: Profile) -> Course:
    setting_points = [point for point in profile.points.values() if point.setting]
    changes = []
    for _ in range(draw(st.integers(0, 2))):
        chosen = draw(st.lists(st.sampled_from(setting_points), max_size=3, unique_by=lambda point: point.name))
        changes.append({point.name: a_value(point, draw(st.integers(0, 1000))) for point in chosen})
    watts = draw(st.lists(st.floats(0, 50_000), min_size=1, max_size=3))
    return Course(tuple(watts), tuple(changes))


def a_device() -> Device:
    evse = Evse(
        name="charger-1",
        device="charger-1",
        connector=1,
        circuit="main",
        phases=(Phase.L1, Phase.L2, Phase.L3),
        rating_a=32.0,
    )
    return Device(name="charger-1", kind=DeviceKind.CHARGER, bus="bus", unit_id=UNIT, profile="made_up", evses=(evse,))


async def go_through(profile: Profile, course: Course, plant: Plant, *, rtu: bool) -> Seen:
    seen = Seen()
    async with served(plant, rtu=rtu) as port:
        bus = ModbusBus(
            Bus(
                name="bus",
                gateway="",
                transport=Transport.RTU_OVER_TCP if rtu else Transport.TCP,
                host="127.0.0.1",
                port=port,
                timeout_s=TIMEOUT_S,
                gateway_timeout_s=TIMEOUT_S,
            )
        )
        driver = open_device(a_device(), profile, bus, pace=PACE)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bus.run)
            tasks.start_soon(driver.run, seen.readings.append)
            await follow(driver, course, plant, seen)
            tasks.cancel_scope.cancel()
    return seen


async def follow(driver: ModbusDevice, course: Course, plant: Plant, seen: Seen) -> None:
    await anyio.sleep(0.03)
    for watts in course.watts:
        proof = await driver.apply(Setpoint(evse="charger-1", p_w=watts, valid_for_s=1.0))
        seen.proofs.append((proof, dict(plant.holding)))
    for changes in course.changes:
        with contextlib.suppress(BusError):
            seen.results += await driver.write_settings(changes)  # type: ignore[arg-type]
    await anyio.sleep(0.1)


def registers(point: Point) -> Iterator[int]:
    yield from range(point.address, point.address + point.length)


def check(profile: Profile, course: Course, plant: Plant, seen: Seen) -> None:
    asked = {name for changes in course.changes for name in changes} | {"current_limit", "heartbeat"}
    allowed = {(point.address, point.length) for name, point in profile.points.items() if name in asked}
    for address, words in plant.written:
        assert (address, len(words)) in allowed, "a register was written that nobody asked for"
        assert not any(address + at in profile.never_write for at in range(len(words)))
    limit = profile.points["current_limit"]
    most_a = max(course.watts) / 690
    for address, words in plant.written:
        if address == limit.address:
            written_a = meaning(limit, words)
            assert isinstance(written_a, float)
            assert written_a <= min(most_a, 32.0) + 1e-9
    touched = {register for name in asked if name in profile.points for register in registers(profile.points[name])}
    for name, point in profile.points.items():
        if point.mask is not None and name not in asked:
            before = meaning(point, (word(point.table, point.address),))
            now = meaning(point, plant.words(point.table, point.address, point.length))
            assert now == before, "a neighbour's bits were written"
        if touched.isdisjoint(registers(point)) or (point.mask is not None and name not in asked):
            check_readings(point, seen.readings)
    check_words(profile, plant, seen)


def check_readings(point: Point, readings: list[Reading]) -> None:
    """Nobody wrote this point, so whatever is shown of it is what its registers hold."""
    words = tuple(word(point.table, address) for address in registers(point))
    expected = meaning(point, words)
    for reading in readings:
        if reading.quality is Quality.GOOD and point.name in reading.values:
            found = reading.values[point.name]
            if isinstance(expected, float) and isinstance(found, int | float):
                assert found == pytest.approx(expected, rel=1e-9), point
            else:
                assert found == expected, point


def check_words(profile: Profile, plant: Plant, seen: Seen) -> None:
    """Check that what is said to be in force, or changed, lies in the registers."""
    for proof, holding in seen.proofs:
        if proof.kind is ProofKind.READ_BACK:
            limit = profile.points["current_limit"]
            words = tuple(holding.get(address, word(Table.HOLDING, address)) for address in registers(limit))
            assert proof.in_force == pytest.approx(meaning(limit, words), rel=1e-6)
            assert proof.in_force is not None
            assert proof.in_force <= proof.asked * (1 + 1e-6)
        assert proof.kind is not ProofKind.ACKNOWLEDGED
    last = {result.name: result for result in seen.results}
    for name, result in last.items():
        if result.outcome in {Outcome.OK, Outcome.CHANGED}:
            point = profile.points[name]
            found = meaning(point, plant.words(point.table, point.address, point.length))
            wanted = result.wanted
            if isinstance(found, float):
                assert found == pytest.approx(wanted, rel=1e-6)
            else:
                assert found == wanted


MISDEEDS = st.lists(st.sampled_from(list(Misdeed)), max_size=25)


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.data(), MISDEEDS, st.booleans())
def test_nothing_unasked_is_written_and_nothing_wrong_is_good(
    data: st.DataObject, misdeeds: list[Misdeed], rtu: bool
) -> None:
    profile = data.draw(made_profiles())
    course = data.draw(courses(profile))
    plant = Plant(profile, misdeeds)
    seen = anyio.run(lambda: go_through(profile, course, plant, rtu=rtu))
    check(profile, course, plant, seen)


@pytest.mark.parametrize("rtu", [False, True], ids=["tcp", "rtu over tcp"])
@pytest.mark.parametrize("misdeed", list(Misdeed))
def test_each_misdeed_on_each_third_request(misdeed: Misdeed, rtu: bool) -> None:
    profile = SOME_PROFILE
    course = Course((11040, 0.0), ({"failsafe_current": 7.0, "lamp": 3, "fan": 6},))
    plant = Plant(profile, [Misdeed.NONE, Misdeed.NONE, misdeed] * 3)
    seen = anyio.run(lambda: go_through(profile, course, plant, rtu=rtu))
    check(profile, course, plant, seen)
    if misdeed is Misdeed.NONE:
        assert [proof.kind for proof, _ in seen.proofs] == [ProofKind.READ_BACK] * 2
        assert [result.outcome for result in seen.results] == [Outcome.CHANGED] * 3
        assert seen.readings[-1].quality is Quality.GOOD
        assert plant.written[:1] == [(900, (16000,))]


def _some_profile() -> Profile:
    def point(name: str, address: int, type_: PointType, **more: object) -> Point:
        return Point(
            name=name,
            table=more.pop("table", Table.HOLDING),  # type: ignore[arg-type]
            address=address,
            type=type_,
            length=more.pop("length", SIZES.get(CODES.get(type_, ""), 1)),  # type: ignore[arg-type]
            **more,  # type: ignore[arg-type]
        )

    writable = {"access": Access.READ_WRITE, "setting": True}
    points = [
        point("active_power", 100, PointType.I32, table=Table.INPUT, unit="W", word_order=Order.LITTLE),
        point("energy", 102, PointType.U64, table=Table.INPUT, unit="Wh", scale=0.1),
        point("serial_number", 300, PointType.STRING, length=4),
        point("lamp", 310, PointType.BITS, mask=0x00F0, **writable),
        point("fan", 310, PointType.BITS, mask=0x0F00, **writable),
        point(
            "current_limit", 900, PointType.U16, scale=0.001, unit="A", access=Access.READ_WRITE, minimum=0, maximum=60
        ),
        point("failsafe_current", 910, PointType.U16, scale=0.1, unit="A", minimum=0, maximum=60, **writable),
    ]
    return Profile(
        name="made_up",
        title="Made-up device",
        kind=DeviceKind.CHARGER,
        protocol=Protocol.MODBUS,
        source="typed",
        points={one.name: one for one in points},
        sunspec_points={},
        fallback=Fallback(
            refreshed_by=Refresh.WRITE, after_boot=AfterBoot.RATING, current="failsafe_current", fixed_timeout_s=1.0
        ),
        control=Control(point="current_limit", quantity=Quantity.CURRENT, minimum=6, step=0.1),
        never_write=(901,),
        poll=("active_power", "current_limit"),
    )


SOME_PROFILE = _some_profile()
