# SPDX-License-Identifier: Apache-2.0
"""RTU on a serial adapter, over a pair of pseudo-terminals: the device is the other end."""

from __future__ import annotations

import asyncio
import os
import tty
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest

from derms_agent.drivers.errors import ConnectionLost, NoAnswer, Unreachable
from derms_agent.drivers.interface import Priority
from derms_agent.drivers.modbus import ModbusBus
from derms_agent.model import Bus, Parity, Transport
from derms_agent.profiles.point import Table

if TYPE_CHECKING:
    from agent.tests.transport.conftest import Kit

pytestmark = pytest.mark.anyio


class Line:
    """The far end of a serial line, with one unit on it."""

    def __init__(self, crc: Callable[[bytes], bytes]) -> None:
        self.crc = crc
        self.master, self.slave = os.openpty()
        tty.setraw(self.slave)
        self.path = os.ttyname(self.slave)
        self.asked: list[bytes] = []
        self.delay_s = 0.0
        self.silent = False
        self._buffer = b""

    def receive(self) -> None:
        self._buffer += os.read(self.master, 1024)
        while len(self._buffer) >= 8:
            size = 8 if self._buffer[1] < 15 else 9 + self._buffer[6]
            if len(self._buffer) < size:
                return
            frame, self._buffer = self._buffer[:size], self._buffer[size:]
            assert self.crc(frame[:-2]) == frame[-2:]
            self.asked.append(frame)
            if not self.silent:
                asyncio.get_running_loop().call_later(self.delay_s, os.write, self.master, self.reply(frame))

    def reply(self, frame: bytes) -> bytes:
        body = frame[:6]
        if frame[1] in {3, 4}:
            address, count = int.from_bytes(frame[2:4], "big"), int.from_bytes(frame[4:6], "big")
            words = b"".join((address + index).to_bytes(2, "big") for index in range(count))
            body = frame[:2] + bytes([len(words)]) + words
        return body + self.crc(body)


@asynccontextmanager
async def lined(kit: Kit, baud_rate: int = 115_200) -> AsyncIterator[tuple[Line, Bus]]:
    line = Line(kit.crc)
    loop = asyncio.get_running_loop()
    loop.add_reader(line.master, line.receive)
    try:
        yield (
            line,
            Bus(
                name="line",
                gateway="gateway",
                transport=Transport.SERIAL,
                path=line.path,
                baud_rate=baud_rate,
                parity=Parity.NONE,
                timeout_s=0.2,
                gateway_timeout_s=0.2,
            ),
        )
    finally:
        loop.remove_reader(line.master)
        for end in (line.master, line.slave):
            os.close(end)


async def read(bus: ModbusBus, address: int = 100) -> tuple[int, ...]:
    return await bus.read(7, Table.INPUT, address, 10, priority=Priority.POLL, deadline_s=5)


async def test_reads_and_writes(kit: Kit) -> None:
    async with lined(kit) as (line, declared), kit.running(declared) as bus:
        assert await read(bus) == tuple(range(100, 110))
        await bus.write(7, Table.HOLDING, 261, [60], priority=Priority.SHED, deadline_s=5)
        await bus.write(7, Table.HOLDING, 257, [15, 16], priority=Priority.SHED, deadline_s=5)
        assert [frame[:-2].hex() for frame in line.asked] == [
            "07040064000a",
            "07060105003c",
            "07100101000204000f0010",
        ]


async def test_one_at_a_time_with_silence_between(kit: Kit) -> None:
    async with lined(kit, baud_rate=1200) as (line, declared), kit.running(declared) as bus:
        line.delay_s = 0.002
        begun = asyncio.get_running_loop().time()
        replies = await asyncio.gather(*(read(bus, 100 * number) for number in range(4)))
        assert [reply[0] for reply in replies] == [0, 100, 200, 300]
        assert asyncio.get_running_loop().time() - begun >= 3 * 3.5 * 11 / 1200


async def test_a_late_reply_is_never_taken_for_another(kit: Kit) -> None:
    async with lined(kit) as (line, declared), kit.running(declared) as bus:
        line.delay_s = 0.22
        with pytest.raises(NoAnswer):
            await read(bus, 100)
        line.delay_s = 0.0
        assert await read(bus, 500) == tuple(range(500, 510))


async def test_an_adapter_that_is_pulled_out(kit: Kit) -> None:
    async with lined(kit) as (line, declared):
        line.silent = True
        async with kit.running(declared) as bus:
            job = asyncio.ensure_future(read(bus))
            await anyio.sleep(0.05)
            asyncio.get_running_loop().remove_reader(line.master)
            os.close(line.master)
            with pytest.raises((ConnectionLost, Unreachable)):
                await job
            line.master, _ = os.openpty()
            os.close(_)


async def test_no_such_adapter(kit: Kit) -> None:
    declared = Bus(
        name="line", gateway="gateway", transport=Transport.SERIAL, path="/dev/ttyDERMS-none", baud_rate=19_200
    )
    async with kit.running(declared) as bus:
        with pytest.raises(Unreachable, match="ttyDERMS-none"):
            await read(bus)
