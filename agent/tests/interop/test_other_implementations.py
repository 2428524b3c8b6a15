# SPDX-License-Identifier: Apache-2.0
"""The transport against other implementations: libmodbus in C, jsmodbus and modbus-serial in JavaScript, mbpoll."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest

from derms_agent.drivers.errors import Refused
from derms_agent.drivers.interface import Priority
from derms_agent.drivers.modbus import ModbusBus
from derms_agent.model import Bus, Transport
from derms_agent.profiles.point import Table

pytestmark = pytest.mark.anyio

Start = Callable[[list[str]], int]


@asynccontextmanager
async def running(port: int, max_in_flight: int = 1) -> AsyncIterator[ModbusBus]:
    bus = ModbusBus(
        Bus(
            name="bus",
            gateway="gateway",
            transport=Transport.TCP,
            host="127.0.0.1",
            port=port,
            max_in_flight=max_in_flight,
        )
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bus.run)
        try:
            yield bus
        finally:
            tasks.cancel_scope.cancel()


async def read(bus: ModbusBus, address: int, count: int, table: Table = Table.HOLDING) -> tuple[int, ...]:
    return await bus.read(1, table, address, count, priority=Priority.POLL, deadline_s=5)


async def write(
    bus: ModbusBus, address: int, values: list[int], table: Table = Table.HOLDING, function: int | None = None
) -> None:
    await bus.write(1, table, address, values, priority=Priority.SHED, deadline_s=5, function=function)


def numbered(address: int, count: int) -> tuple[int, ...]:
    return tuple(range(address, address + count))


async def test_libmodbus_and_mbpoll(
    libmodbus_server: list[str], start: Start, mbpoll: Callable[..., list[int]]
) -> None:
    port = start(libmodbus_server)
    async with running(port) as bus:
        assert await read(bus, 100, 125) == numbered(100, 125)
        assert await read(bus, 65_411, 125, Table.INPUT) == numbered(65_411, 125)
        for table in (Table.COIL, Table.DISCRETE):
            assert await read(bus, 101, 2000, table) == tuple(address & 1 for address in range(101, 2101))
        await write(bus, 5004, [0xFFFF])
        await write(bus, 5005, [0x1234], function=16)
        await write(bus, 6000, list(range(40_000, 40_123)))
        await write(bus, 7, [0], Table.COIL)
        await write(bus, 8, [1], Table.COIL, 15)
        await write(bus, 1000, [1, 1, 0] * 656, Table.COIL)
        assert await read(bus, 6000, 123) == numbered(40_000, 123)
    # The server takes one client at a time, and ours has left.
    assert mbpoll(port, 5003, 4) == [5003, 0xFFFF, 0x1234, 5006]
    assert mbpoll(port, 5999, 125) == [5999, *range(40_000, 40_123), 6123]
    assert mbpoll(port, 6, 4, "0") == [0, 0, 1, 1]
    assert mbpoll(port, 998, 10, "0") == [0, 1, 1, 1, 0, 1, 1, 0, 1, 1]


async def test_a_thousand_reads_of_libmodbus(libmodbus_server: list[str], start: Start) -> None:
    async with running(start(libmodbus_server)) as bus:
        assert await read(bus, 0, 1) == (0,)
        for _ in range(1000):
            assert await read(bus, 1234, 2) == (1234, 1235)


async def test_jsmodbus_answers_out_of_order(
    javascript: Callable[[str], list[str]], start: Start, mbpoll: Callable[..., list[int]]
) -> None:
    port = start(javascript("jsmodbus_server.js"))
    finished: list[int] = []

    async def one(bus: ModbusBus, address: int) -> tuple[int, ...]:
        values = await read(bus, address, 10)
        finished.append(address)
        return values

    async with running(port, max_in_flight=6) as bus:
        addresses = [100 * number for number in range(1, 25)]
        replies = await asyncio.gather(*(one(bus, address) for address in addresses))
        assert list(replies) == [numbered(address, 10) for address in addresses]
        assert finished != addresses, "the server did answer out of order"
        await write(bus, 5004, [6000])
        await write(bus, 5010, [1, 0xFFFF, 3])
        assert await read(bus, 5004, 9) == (6000, 5005, 5006, 5007, 5008, 5009, 1, 0xFFFF, 3)
        assert mbpoll(port, 5004, 9) == [6000, 5005, 5006, 5007, 5008, 5009, 1, 0xFFFF, 3]


async def test_modbus_serial(
    javascript: Callable[[str], list[str]], start: Start, mbpoll: Callable[..., list[int]]
) -> None:
    port = start(javascript("modbus_serial_server.js"))
    async with running(port, max_in_flight=4) as bus:
        addresses = [100 * number for number in range(1, 25)]
        replies = await asyncio.gather(*(read(bus, address, 10) for address in addresses))
        assert list(replies) == [numbered(address, 10) for address in addresses]
        assert await read(bus, 101, 19, Table.COIL) == tuple(address & 1 for address in range(101, 120))
        assert await read(bus, 8, 1, Table.INPUT) == (8,)
        await write(bus, 5004, [6000])
        await write(bus, 5010, [1, 0xFFFF, 3])
        with pytest.raises(Refused, match="illegal data address"):
            await read(bus, 59_999, 2)
        assert mbpoll(port, 5003, 2) == [5003, 6000]
        assert mbpoll(port, 5009, 5) == [5009, 1, 0xFFFF, 3, 5013]
