# SPDX-License-Identifier: Apache-2.0
"""The twin on the wire, by bytes typed from the specifications' own examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from derms_agent.model import Bus, DeviceKind, Transport
from derms_agent.profiles import Profile
from derms_agent.profiles.point import Access, Order, Point, PointType, Table
from derms_agent.profiles.profile import Protocol
from derms_agent.twin import Twin
from derms_agent.twin.frames import crc16
from derms_agent.twin.words import from_words, to_words

if TYPE_CHECKING:
    from agent.tests.twin.conftest import Ask, MakeDepot

pytestmark = pytest.mark.anyio


def loopback(_host: str, _port: int) -> tuple[str, int]:
    return ("127.0.0.1", 0)


def example_profile() -> Profile:
    """Return a device with the registers of the examples in MODBUS Application Protocol V1.1b3, clause 6."""

    def point(name: str, table: Table, address: int, **more: object) -> Point:
        fields: dict[str, object] = {"type": PointType.U16, "length": 1, "access": Access.READ_WRITE} | more
        return Point(name=name, table=table, address=address, **fields)  # type: ignore[arg-type]

    points = [
        *(point(f"holding_{address}", Table.HOLDING, address) for address in (1, 2, 107, 108, 109)),
        point("coils_19", Table.COIL, 19, type=PointType.BITS, length=19),
        point("coil_172", Table.COIL, 172, type=PointType.BITS),
        point("frequency", Table.INPUT, 8, access=Access.READ, scale=5.0, unit="Hz"),
        point("answer", Table.HOLDING, 300, minimum=1, maximum=42),
    ]
    return Profile(
        name="example",
        title="Example",
        kind=DeviceKind.METER,
        protocol=Protocol.MODBUS,
        source="MODBUS Application Protocol V1.1b3, clause 6",
        points={point.name: point for point in points},
        sunspec_points={},
        fallback=None,
        control=None,
    )


# Request and reply as MBAP header and PDU; what is to be read is written first.
EXAMPLES = [
    pytest.param(
        "00 01 00 00 00 0d 01 10 00 6b 00 03 06 02 2b 00 00 00 64 00 02 00 00 00 06 01 03 00 6b 00 03",
        "00 01 00 00 00 06 01 10 00 6b 00 03 00 02 00 00 00 09 01 03 06 02 2b 00 00 00 64",
        id="6.3 read holding registers",
    ),
    pytest.param("15 01 00 00 00 06 01 04 00 08 00 01", "15 01 00 00 00 05 01 04 02 00 0a", id="6.4 read input"),
    pytest.param(
        "00 01 00 00 00 0a 01 0f 00 13 00 13 03 cd 6b 05 00 02 00 00 00 06 01 01 00 13 00 13",
        "00 01 00 00 00 06 01 0f 00 13 00 13 00 02 00 00 00 06 01 01 03 cd 6b 05",
        id="6.1 read coils",
    ),
    pytest.param("00 07 00 00 00 06 01 05 00 ac ff 00", "00 07 00 00 00 06 01 05 00 ac ff 00", id="6.5 write coil"),
    pytest.param("00 07 00 00 00 06 01 06 00 01 00 03", "00 07 00 00 00 06 01 06 00 01 00 03", id="6.6 write register"),
    pytest.param(
        "00 07 00 00 00 0b 01 10 00 01 00 02 04 00 0a 01 02",
        "00 07 00 00 00 06 01 10 00 01 00 02",
        id="6.12 write registers",
    ),
    pytest.param("00 09 00 00 00 06 01 03 04 a1 00 01", "00 09 00 00 00 03 01 83 02", id="7 unknown address"),
    pytest.param("00 09 00 00 00 06 01 03 00 6b 00 00", "00 09 00 00 00 03 01 83 03", id="7 no quantity"),
    pytest.param("00 09 00 00 00 06 01 03 00 6b 00 7e", "00 09 00 00 00 03 01 83 03", id="7 quantity of 126"),
    pytest.param("00 09 00 00 00 06 01 05 00 ac 12 34", "00 09 00 00 00 03 01 85 03", id="7 no coil value"),
    pytest.param("00 09 00 00 00 06 01 06 01 2c 00 2b", "00 09 00 00 00 03 01 86 03", id="7 value out of range"),
    pytest.param("00 09 00 00 00 06 01 06 00 08 00 2b", "00 09 00 00 00 03 01 86 02", id="7 nothing to write there"),
    pytest.param("00 09 00 00 00 02 01 2b", "00 09 00 00 00 03 01 ab 01", id="7 unknown function"),
    pytest.param("00 09 00 00 00 06 07 03 00 6b 00 01", "", id="another unit"),
    pytest.param("00 09 00 01 00 06 01 03 00 6b 00 01", "closed", id="no Modbus"),
]


@pytest.mark.parametrize(("request_bytes", "reply"), EXAMPLES)
async def test_a_device_answers_as_the_specification_says(
    make_depot: MakeDepot, ask: Ask, request_bytes: str, reply: str
) -> None:
    async with Twin(make_depot("example"), profiles={"example": example_profile()}) as twin:
        addresses = await twin.serve(loopback)
        assert await ask(addresses["bus-1"], request_bytes) == reply


async def test_requests_in_pieces_and_in_one_segment_are_told_apart(make_depot: MakeDepot, ask: Ask) -> None:
    one = "00 01 00 00 00 06 01 04 00 08 00 01 "
    async with Twin(make_depot("example"), profiles={"example": example_profile()}) as twin:
        addresses = await twin.serve(loopback)
        got = await ask(addresses["bus-1"], one + one.replace("00 01 00", "00 02 00", 1) + one[:20])
        assert got == "00 01 00 00 00 05 01 04 02 00 0a 00 02 00 00 00 05 01 04 02 00 0a"


@pytest.mark.parametrize(
    ("point", "value", "words"),
    [
        (Point(name="p", table=Table.HOLDING, address=0, type=PointType.U32, length=2), 0x01020304, (0x0102, 0x0304)),
        (
            Point(name="p", table=Table.HOLDING, address=0, type=PointType.U32, length=2, word_order=Order.LITTLE),
            0x01020304,
            (0x0304, 0x0102),
        ),
        (
            Point(name="p", table=Table.HOLDING, address=0, type=PointType.U32, length=2, byte_order=Order.LITTLE),
            0x01020304,
            (0x0201, 0x0403),
        ),
        (Point(name="p", table=Table.HOLDING, address=0, type=PointType.I16, length=1, scale=0.1), -1.5, (0xFFF1,)),
        (Point(name="p", table=Table.HOLDING, address=0, type=PointType.F32, length=2), 16.0, (0x4180, 0)),
        (Point(name="p", table=Table.HOLDING, address=0, type=PointType.STRING, length=2), "AB", (0x4142, 0)),
        (
            Point(name="p", table=Table.HOLDING, address=0, type=PointType.BITS, length=1, mask=0x0F00),
            5,
            (0x0500,),
        ),
    ],
)
async def test_values_lie_in_words_as_typed_by_hand(point: Point, value: float | str, words: tuple[int, ...]) -> None:
    assert to_words(point, value) == words
    assert from_words(point, words) == pytest.approx(value)


async def test_rtu_over_tcp(make_depot: MakeDepot, ask: Ask) -> None:
    """Two frames that every text on Modbus has: C5 CD after 01 03 00 00 00 0A, 76 87 after 11 03 00 6B 00 03."""
    assert crc16(bytes.fromhex("01 03 00 00 00 0a")).to_bytes(2, "little").hex() == "c5cd"
    assert crc16(bytes.fromhex("11 03 00 6b 00 03")).to_bytes(2, "little").hex() == "7687"
    line = Bus(name="line", gateway="g", transport=Transport.RTU_OVER_TCP, host="203.0.113.1", baud_rate=115200)
    async with Twin(make_depot("example", line=line), profiles={"example": example_profile()}) as twin:
        addresses = await twin.serve(loopback)
        wrong = await ask(addresses["line"], "01 03 00 6b 00 03 00 00")
        # Bit by bit as MODBUS over Serial Line V1.02, clause 6.2.2, by hand: 01 03 00 6b 00 03 gives 74 17.
        right = await ask(addresses["line"], "01 03 00 6b 00 03 74 17")
        assert (wrong, right) == ("", "01 03 06 00 00 00 00 00 00 21 75")
