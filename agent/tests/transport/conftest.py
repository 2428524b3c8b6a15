# SPDX-License-Identifier: Apache-2.0
"""Scripted Modbus servers on loopback, which answer byte by byte what a test wants, and the buses that meet them.

Nothing of pymodbus is used on this side, so that a mistake shared by both ends cannot pass. Every register holds its
own address, so that a reply taken for another's shows in its values.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace

import anyio
import pytest

from derms_agent.drivers.modbus import ModbusBus
from derms_agent.model import Bus, Transport


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def crc(frame: bytes) -> bytes:
    """Return the checksum of an RTU frame, bit by bit as MODBUS over Serial Line V1.02, clause 6.2.2 has it."""
    value = 0xFFFF
    for byte in frame:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0xA001 if value & 1 else 0)
    return value.to_bytes(2, "little")


@dataclass(frozen=True)
class Asked:
    """A request as the server got it."""

    transaction_id: int
    unit_id: int
    pdu: bytes
    at_s: float
    connection: int

    @property
    def address(self) -> int:
        return int.from_bytes(self.pdu[1:3], "big")

    @property
    def count(self) -> int:
        return int.from_bytes(self.pdu[3:5], "big")

    def good_reply(self) -> bytes:
        """Return the reply PDU of a device whose every register holds its own address."""
        if self.pdu[0] in {3, 4}:
            words = b"".join((self.address + index).to_bytes(2, "big") for index in range(self.count))
            return bytes([self.pdu[0], len(words)]) + words
        return self.pdu[:5]


@dataclass
class Peer:
    """One connection, seen from the server."""

    number: int
    rtu: bool
    writer: asyncio.StreamWriter

    def reply(self, asked: Asked, pdu: bytes, unit_id: int | None = None, transaction_id: int | None = None) -> None:
        self.send(self.frame(asked, pdu, unit_id, transaction_id))

    def frame(self, asked: Asked, pdu: bytes, unit_id: int | None = None, transaction_id: int | None = None) -> bytes:
        body = bytes([asked.unit_id if unit_id is None else unit_id]) + pdu
        if self.rtu:
            return body + crc(body)
        used = asked.transaction_id if transaction_id is None else transaction_id
        return used.to_bytes(2, "big") + bytes(2) + len(body).to_bytes(2, "big") + body

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def hang_up(self) -> None:
        self.writer.close()


Answer = Callable[[Asked, Peer], Awaitable[None]]


@dataclass
class Server:
    """A server whose every answer the test wrote; it counts what it was asked and by how many at a time."""

    answer: Answer
    rtu: bool
    greet: Callable[[Peer], None] | None = None
    port: int = 0
    asked: list[Asked] = field(default_factory=list)
    accepted_at_s: list[float] = field(default_factory=list)
    sessions: set[asyncio.Task[None]] = field(default_factory=set)
    open_now: int = 0
    most_open: int = 0

    @property
    def accepted(self) -> int:
        return len(self.accepted_at_s)

    def writes(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.pdu[0] in {5, 6, 15, 16}]

    def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.sessions.add(asyncio.ensure_future(self.serve(reader, writer)))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted_at_s.append(time.monotonic())
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        peer = Peer(self.accepted, self.rtu, writer)
        answers: set[asyncio.Task[None]] = set()
        try:
            if self.greet is not None:
                self.greet(peer)
            while True:
                asked = await self.next_request(reader, peer.number)
                self.asked.append(asked)
                answers.add(asyncio.ensure_future(self.answer(asked, peer)))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open_now -= 1
            for answer in answers:
                answer.cancel()
            writer.close()

    async def next_request(self, reader: asyncio.StreamReader, connection: int) -> Asked:
        if self.rtu:
            head = await reader.readexactly(7)
            more = 1 if head[1] < 15 else head[6] + 2
            frame = head + await reader.readexactly(more)
            assert crc(frame[:-2]) == frame[-2:]
            return Asked(0, frame[0], frame[1:-2], time.monotonic(), connection)
        head = await reader.readexactly(7)
        assert head[2:4] == bytes(2)
        pdu = await reader.readexactly(int.from_bytes(head[4:6], "big") - 1)
        return Asked(int.from_bytes(head[:2], "big"), head[6], pdu, time.monotonic(), connection)


async def good(asked: Asked, peer: Peer) -> None:
    """Answer as a good device does."""
    peer.reply(asked, asked.good_reply())


async def silent(_asked: Asked, _peer: Peer) -> None:
    """Answer nothing."""


@asynccontextmanager
async def serving(
    answer: Answer, *, rtu: bool = False, greet: Callable[[Peer], None] | None = None
) -> AsyncIterator[Server]:
    """Serve on a free port of loopback."""
    server = Server(answer, rtu, greet)
    listener = await asyncio.start_server(server.take, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for session in server.sessions:
            session.cancel()
        await asyncio.gather(*server.sessions, return_exceptions=True)


def bus_to(server: Server, **more: object) -> Bus:
    """Return a bus that ends at a server; a test that waits for time-outs shortens them."""
    bus = Bus(
        name="bus",
        gateway="gateway",
        transport=Transport.RTU_OVER_TCP if server.rtu else Transport.TCP,
        host="127.0.0.1",
        port=server.port,
        timeout_s=1.0,
        gateway_timeout_s=0.2,
    )
    return replace(bus, **more)  # type: ignore[arg-type]


@asynccontextmanager
async def running(bus: Bus | ModbusBus) -> AsyncIterator[ModbusBus]:
    """Run a bus."""
    modbus = bus if isinstance(bus, ModbusBus) else ModbusBus(bus)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(modbus.run)
        try:
            yield modbus
        finally:
            tasks.cancel_scope.cancel()


@dataclass(frozen=True)
class Kit:
    """What the tests in this folder share; a fixture, for test folders are no packages."""

    serving: Callable[..., AbstractAsyncContextManager[Server]] = serving
    running: Callable[[Bus | ModbusBus], AbstractAsyncContextManager[ModbusBus]] = running
    bus_to: Callable[..., Bus] = bus_to
    good: Answer = good
    silent: Answer = silent
    crc: Callable[[bytes], bytes] = crc


@pytest.fixture
def kit() -> Kit:
    return Kit()
