# SPDX-License-Identifier: Apache-2.0
"""Every way in which pymodbus's own client fails, and what our transport does instead; one test for each.

The first half of a test shows the library's `AsyncModbusTcpClient` (3.16.1) wrong against the same server. If one of
those asserts fails after an upgrade, the library has changed, and our layer above it may become thinner.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest
from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ModbusException
from pymodbus.framer import FramerType
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from derms_agent.drivers.errors import BadReply, ConnectionLost, InvalidRequest, NoAnswer, Refused
from derms_agent.drivers.interface import Priority
from derms_agent.drivers.modbus import ModbusBus
from derms_agent.model import TransactionIds
from derms_agent.profiles.point import Table

if TYPE_CHECKING:
    from agent.tests.transport.conftest import Asked, Kit, Peer, Server

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def library(
    server: Server, *, timeout: float = 0.2, retries: int = 3, reconnect_delay: float = 0.1
) -> AsyncIterator[AsyncModbusTcpClient]:
    client = AsyncModbusTcpClient(
        "127.0.0.1",
        port=server.port,
        framer=FramerType.RTU if server.rtu else FramerType.SOCKET,
        timeout=timeout,
        retries=retries,
        reconnect_delay=reconnect_delay,
    )
    assert await client.connect()
    try:
        yield client
    finally:
        client.close()


async def read(bus: ModbusBus, address: int = 100, count: int = 10, unit_id: int = 1) -> tuple[int, ...]:
    return await bus.read(unit_id, Table.HOLDING, address, count, priority=Priority.POLL, deadline_s=5)


async def write(bus: ModbusBus, address: int = 100, values: tuple[int, ...] = (7,), unit_id: int = 1) -> None:
    await bus.write(unit_id, Table.HOLDING, address, values, priority=Priority.SHED, deadline_s=5)


def numbered(address: int, count: int = 10) -> tuple[int, ...]:
    return tuple(range(address, address + count))


async def test_peer_closes_mid_request(kit: Kit) -> None:
    async def hang_up(_asked: Asked, peer: Peer) -> None:
        peer.hang_up()

    async with kit.serving(hang_up) as server, library(server) as client:
        begun = time.monotonic()
        with pytest.raises(ModbusException):
            await client.read_holding_registers(100, count=10, device_id=1)
        assert time.monotonic() - begun >= 4 * 0.2, "the library waited for every time-out"
        assert server.accepted > 2, "and connected again meanwhile"

    async with kit.serving(hang_up) as server, kit.running(kit.bus_to(server, timeout_s=5.0)) as bus:
        begun = time.monotonic()
        with pytest.raises(ConnectionLost) as caught:
            await read(bus)
        assert time.monotonic() - begun < 0.5
        assert not caught.value.may_have_happened
        assert len(server.asked) == 1


async def test_a_write_to_a_silent_device_is_sent_once(kit: Kit) -> None:
    async with kit.serving(kit.silent) as server, library(server, timeout=0.1) as client:
        with pytest.raises(ModbusException):
            await client.write_register(100, 7, device_id=1)
        assert len(server.writes()) == 4

    async with kit.serving(kit.silent) as server, kit.running(kit.bus_to(server, timeout_s=0.1)) as bus:
        with pytest.raises(NoAnswer) as caught:
            await write(bus)
        assert caught.value.may_have_happened
        await anyio.sleep(0.5)
        assert len(server.writes()) == 1


async def test_a_write_whose_connection_breaks_is_sent_once(kit: Kit) -> None:
    async def hang_up_once(asked: Asked, peer: Peer) -> None:
        if peer.number == 1:
            peer.hang_up()
        else:
            await kit.good(asked, peer)

    async with kit.serving(hang_up_once) as server, library(server) as client:
        await client.write_register(100, 7, device_id=1)
        assert len(server.writes()) > 1

    async with kit.serving(hang_up_once) as server, kit.running(kit.bus_to(server)) as bus:
        with pytest.raises(ConnectionLost) as caught:
            await write(bus)
        assert caught.value.may_have_happened
        assert await read(bus) == numbered(100), "the bus is of use again"
        assert len(server.writes()) == 1


async def test_an_exception_reply_is_raised(kit: Kit) -> None:
    async def refuse(asked: Asked, peer: Peer) -> None:
        peer.reply(asked, bytes([asked.pdu[0] | 0x80, 2]))

    async with kit.serving(refuse) as server, library(server) as client:
        assert (await client.read_holding_registers(100, count=10, device_id=1)).isError(), "returned, not raised"

    for rtu in (False, True):
        async with kit.serving(refuse, rtu=rtu) as server, kit.running(kit.bus_to(server)) as bus:
            with pytest.raises(Refused, match="exception 2, illegal data address") as caught:
                await read(bus)
            assert caught.value.exception_code == 2
            assert not bus.unit(1).failures, "a unit that refuses is alive"


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        ("five registers for ten", bytes([3, 10]) + bytes(range(10))),
        ("function 4 for 3", bytes([4, 20]) + bytes(range(20))),
    ],
)
async def test_a_reply_to_something_else_is_refused(kit: Kit, name: str, reply: bytes) -> None:
    async def answer(asked: Asked, peer: Peer) -> None:
        peer.reply(asked, reply)

    async with kit.serving(answer) as server, library(server) as client:
        assert not (await client.read_holding_registers(100, count=10, device_id=1)).isError(), f"{name}: accepted"

    for rtu in (False, True):
        async with kit.serving(answer, rtu=rtu) as server, kit.running(kit.bus_to(server)) as bus:
            with pytest.raises(BadReply):
                await read(bus)


@pytest.mark.parametrize("values", [(7,), (7, 8)])
async def test_a_wrong_echo_of_a_write_is_refused(kit: Kit, values: tuple[int, ...]) -> None:
    async def echo_another(asked: Asked, peer: Peer) -> None:
        address, rest = (asked.address + 1).to_bytes(2, "big"), asked.pdu[3:5]
        peer.reply(asked, asked.pdu[:1] + address + rest)

    async def echo_another_value(asked: Asked, peer: Peer) -> None:
        peer.reply(asked, asked.pdu[:4] + bytes([asked.pdu[4] ^ 1]))

    for answer in (echo_another, echo_another_value):
        async with kit.serving(answer) as server, library(server) as client:
            assert not (await client.write_registers(100, list(values), device_id=1)).isError(), "accepted"
        for rtu in (False, True):
            async with kit.serving(answer, rtu=rtu) as server, kit.running(kit.bus_to(server)) as bus:
                with pytest.raises(BadReply) as caught:
                    await write(bus, values=values)
                assert caught.value.may_have_happened


async def late_first_reply(asked: Asked, peer: Peer) -> None:
    if asked.address == 100:
        await asyncio.sleep(0.3)
    peer.reply(asked, asked.good_reply())


async def test_a_late_rtu_reply_is_never_taken_for_another(kit: Kit) -> None:
    async with kit.serving(late_first_reply, rtu=True) as server, library(server, retries=0) as client:
        with pytest.raises(ModbusException):
            await client.read_holding_registers(100, count=10, device_id=1)
        await asyncio.sleep(0.05)
        server.answer = kit.silent  # nothing but the late reply comes now
        answer = await client.read_holding_registers(500, count=10, device_id=1)
        assert tuple(answer.registers) == numbered(100), "asked for 500, got 100"
        assert not answer.isError()

    async with kit.serving(late_first_reply, rtu=True) as server, kit.running(kit.bus_to(server, timeout_s=0.2)) as bus:
        with pytest.raises(NoAnswer):
            await read(bus, 100)
        assert await read(bus, 500) == numbered(500)
        assert server.accepted == 2, "closed, and opened again"


async def test_a_gateway_that_sends_the_late_reply_to_the_next_connection(kit: Kit) -> None:
    """Some gateways have one serial line and one notion of who is connected."""
    peers: list[Peer] = []

    async def answer(asked: Asked, peer: Peer) -> None:
        if asked.address == 100:

            async def late() -> None:
                await asyncio.sleep(0.35)  # within the gateway's own time-out, after ours
                peers[-1].reply(asked, asked.good_reply())

            late_replies.append(asyncio.ensure_future(late()))
        else:
            peer.reply(asked, asked.good_reply())

    late_replies: list[asyncio.Future[None]] = []
    async with (
        kit.serving(answer, rtu=True, greet=peers.append) as server,
        kit.running(kit.bus_to(server, timeout_s=0.2, gateway_timeout_s=0.4)) as bus,
    ):
        begun = time.monotonic()
        with pytest.raises(NoAnswer):
            await read(bus, 100)
        assert await read(bus, 500) == numbered(500)
        assert server.accepted_at_s[1] - begun >= 0.4, "the gateway’s time-out was waited out"


async def test_bytes_before_any_request_end_an_rtu_connection(kit: Kit) -> None:
    """A late reply that met a new connection all the same: that connection is not used."""

    def greet(peer: Peer) -> None:
        if peer.number == 1:
            body = bytes([1, 3, 20]) + bytes(20)
            peer.send(body + kit.crc(body))

    async with (
        kit.serving(kit.good, rtu=True, greet=greet) as server,
        kit.running(kit.bus_to(server, delay_after_connect_s=0.05)) as bus,
    ):
        assert await read(bus, 500) == numbered(500)
        assert server.accepted == 2


async def test_a_late_tcp_reply_is_dropped_by_its_transaction_id(kit: Kit) -> None:
    async with kit.serving(late_first_reply) as server, kit.running(kit.bus_to(server, timeout_s=0.2)) as bus:
        with pytest.raises(NoAnswer):
            await read(bus, 100)
        await anyio.sleep(0.15)
        assert await read(bus, 500) == numbered(500)
        assert server.accepted == 1, "the connection is kept"


async def test_no_second_connection(kit: Kit) -> None:
    """Asked while it reconnects, the library connects a second time, and forgets one past close()."""
    refuse = True

    def greet(peer: Peer) -> None:
        if refuse:
            peer.hang_up()

    async with kit.serving(kit.good, greet=greet) as server:
        client = AsyncModbusTcpClient("127.0.0.1", port=server.port, timeout=0.2, retries=0, reconnect_delay=0.05)
        await client.connect()
        await asyncio.sleep(0.02)
        refuse = False
        await asyncio.gather(*(client.connect() for _ in range(2)))
        await asyncio.sleep(0.2)
        assert server.most_open > 1
        client.close()
        await asyncio.sleep(0.1)
        assert server.open_now >= 1, "one leaked"

    async def answer_and_hang_up(asked: Asked, peer: Peer) -> None:
        await kit.good(asked, peer)
        peer.hang_up()

    async with kit.serving(answer_and_hang_up) as server:
        async with kit.running(kit.bus_to(server)) as bus:
            ends = time.monotonic() + 2
            while time.monotonic() < ends:
                await asyncio.gather(*(read(bus) for _ in range(3)), return_exceptions=True)
                await anyio.sleep(0.01)
            assert server.accepted > 3
            assert server.most_open == 1
        await anyio.sleep(0.05)
        assert server.open_now == 0


async def test_ending_at_any_moment_of_connecting_leaves_no_socket(kit: Kit) -> None:
    async with kit.serving(kit.silent) as server:
        for step in range(60):
            async with kit.running(kit.bus_to(server)):
                for _ in range(step % 12):
                    await asyncio.sleep(0)
                await anyio.sleep(step / 60_000)
        await anyio.sleep(0.1)
        assert server.open_now == 0
        assert server.most_open <= 1


async def test_a_second_run_is_refused(kit: Kit) -> None:
    async with kit.serving(kit.good) as server, kit.running(kit.bus_to(server)) as bus:
        assert await read(bus) == numbered(100)
        with pytest.raises(RuntimeError, match="running already"):
            await bus.run()
        assert await read(bus) == numbered(100)
        assert server.accepted == 1


async def test_a_gateway_that_rewrites_the_unit(kit: Kit) -> None:
    async def rewrite(asked: Asked, peer: Peer) -> None:
        peer.reply(asked, asked.good_reply(), unit_id=255)

    async with kit.serving(rewrite) as server, library(server, retries=0) as client:
        begun = time.monotonic()
        with pytest.raises(ModbusException):
            await client.read_holding_registers(100, count=10, device_id=1)
        assert time.monotonic() - begun >= 0.2, "only after the time-out"

    for rtu in (False, True):
        async with kit.serving(rewrite, rtu=rtu) as server, kit.running(kit.bus_to(server, timeout_s=5)) as bus:
            with pytest.raises(BadReply, match="the reply is unit 255’s"), anyio.fail_after(1):
                await read(bus)


async def test_transaction_id_policies(kit: Kit) -> None:
    wrong = 1

    async def answer(asked: Asked, peer: Peer) -> None:
        peer.reply(asked, asked.good_reply(), transaction_id=0 if wrong == 0 else asked.transaction_id + wrong)

    async with kit.serving(answer) as server, library(server, retries=0) as client:
        with pytest.raises(ModbusException):
            await client.read_holding_registers(100, count=10, device_id=1)
        wrong = 0
        assert not (await client.read_holding_registers(100, count=10, device_id=1)).isError(), "0 is always accepted"

    for policy, accepted in (
        (TransactionIds.STRICT, {"same"}),
        (TransactionIds.ZERO, {"same", "zero"}),
        (TransactionIds.IGNORE, {"same", "zero", "next"}),
    ):
        for name in ("same", "zero", "next"):
            reply_id = {"same": None, "zero": 0, "next": 9999}[name]

            async def reply(asked: Asked, peer: Peer, reply_id: int | None = reply_id) -> None:
                peer.reply(asked, asked.good_reply(), transaction_id=reply_id)

            async with (
                kit.serving(reply) as server,
                kit.running(kit.bus_to(server, timeout_s=0.2, transaction_ids=policy)) as bus,
            ):
                if name in accepted:
                    assert await read(bus) == numbered(100)
                else:
                    with pytest.raises((NoAnswer, BadReply)):
                        await read(bus)


@pytest.mark.parametrize("policy", [TransactionIds.ZERO, TransactionIds.IGNORE])
async def test_without_ids_of_its_own_a_time_out_ends_the_connection(kit: Kit, policy: TransactionIds) -> None:
    async def late(asked: Asked, peer: Peer) -> None:
        if asked.address == 100:
            await asyncio.sleep(0.3)
        peer.reply(asked, asked.good_reply(), transaction_id=0)

    options = {"transaction_ids": policy, "max_in_flight": 8, "timeout_s": 0.2}
    async with kit.serving(late) as server, kit.running(kit.bus_to(server, **options)) as bus:
        with pytest.raises(NoAnswer):
            await read(bus, 100)
        await anyio.sleep(0.05)
        for address in (500, 600, 700):
            assert await read(bus, address) == numbered(address)
        assert server.accepted == 2


@pytest.mark.parametrize("policy", TransactionIds)
@pytest.mark.parametrize("pause_s", [0.0, 0.02])
async def test_a_reply_that_comes_twice_is_not_the_next_requests(
    kit: Kit, policy: TransactionIds, pause_s: float
) -> None:
    async def twice(asked: Asked, peer: Peer) -> None:
        same = policy is TransactionIds.STRICT
        frame = peer.frame(asked, asked.good_reply(), transaction_id=None if same else 0)
        if peer.number > 1 or same:
            await asyncio.sleep(0.05)
            peer.send(frame)
        elif pause_s:
            peer.send(frame)
            await asyncio.sleep(pause_s)
            peer.send(frame)
        else:
            peer.send(frame + frame)

    async with kit.serving(twice) as server, kit.running(kit.bus_to(server, transaction_ids=policy)) as bus:
        first, second = await asyncio.gather(read(bus, 100), read(bus, 500), return_exceptions=True)
        if pause_s:
            assert first == numbered(100)
        await anyio.sleep(0.05)
        for found, address in ((first, 100), (second, 500)):
            assert found == numbered(address) or isinstance(found, BadReply | ConnectionLost)
        assert await read(bus, 900) == numbered(900)


@pytest.mark.parametrize("policy", [TransactionIds.ZERO, TransactionIds.IGNORE])
async def test_without_ids_of_its_own_an_unasked_reply_ends_the_connection(kit: Kit, policy: TransactionIds) -> None:
    async def twice(asked: Asked, peer: Peer) -> None:
        await kit.good(asked, peer)
        if peer.number == 1:
            await asyncio.sleep(0.05)
            await kit.good(asked, peer)

    async with kit.serving(twice) as server, kit.running(kit.bus_to(server, transaction_ids=policy)) as bus:
        assert await read(bus, 100) == numbered(100)
        await anyio.sleep(0.2)
        assert await read(bus, 500) == numbered(500)
        assert server.accepted == 2


async def test_several_in_flight(kit: Kit) -> None:
    flying = 0
    most = 0

    async def slow(asked: Asked, peer: Peer) -> None:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        await asyncio.sleep(0.1 - asked.address / 100_000)  # the last asked is the first answered
        flying -= 1
        peer.reply(asked, asked.good_reply())

    async with kit.serving(slow) as server, library(server) as client:
        begun = time.monotonic()
        await asyncio.gather(
            *(client.read_holding_registers(100 * number, count=10, device_id=1) for number in range(10))
        )
        assert time.monotonic() - begun > 0.8, "one after the other"

    for allowed in (1, 4, 10):
        most = 0
        async with kit.serving(slow) as server, kit.running(kit.bus_to(server, max_in_flight=allowed)) as bus:
            begun = time.monotonic()
            answers = await asyncio.gather(*(read(bus, 100 * number) for number in range(10)))
            assert list(answers) == [numbered(100 * number) for number in range(10)]
            assert most == allowed
            if allowed == 10:
                assert time.monotonic() - begun < 0.5


async def test_limits_are_checked_before_sending(kit: Kit) -> None:
    async with kit.serving(kit.good) as server, library(server) as client:
        await client.write_registers(100, [0] * 124, device_id=1)
        assert len(server.asked) == 1, "sent, though the protocol ends at 123"

    async with kit.serving(kit.good) as server, kit.running(kit.bus_to(server)) as bus:
        job = {"priority": Priority.POLL, "deadline_s": 1.0}
        for table, count in ((Table.HOLDING, 126), (Table.INPUT, 126), (Table.COIL, 2001), (Table.DISCRETE, 2001)):
            with pytest.raises(InvalidRequest):
                await bus.read(1, table, 0, count, **job)  # type: ignore[arg-type]
        for table, count in ((Table.HOLDING, 124), (Table.COIL, 1969), (Table.INPUT, 1), (Table.DISCRETE, 1)):
            with pytest.raises(InvalidRequest):
                await bus.write(1, table, 0, [0] * count, **job)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest):
            await bus.read(1, Table.HOLDING, 65_530, 10, **job)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest):
            await bus.write(1, Table.HOLDING, 0, [0x10000], **job)  # type: ignore[arg-type]
        assert not server.asked


async def test_connections_do_not_return_in_step(kit: Kit) -> None:
    """All lose their connection at once; the server takes each new one and closes it at once.

    Where this program itself stood still for a while, everything that was due comes at once, whatever the waits were:
    that shows nothing, and is tried again.
    """
    for _ in range(10):
        library_busiest, library_attempts, busiest, attempts, stood_still_s = await returns_of(kit, number := 40)
        if stood_still_s < STEP_S:
            break
    assert busiest <= number // 2
    assert library_busiest > busiest
    assert library_attempts >= 2 * attempts


STEP_S = 0.02
"""What comes within so short a time comes in step."""


async def returns_of(kit: Kit, number: int) -> tuple[int, int, int, int, float]:
    """Return how many of the library's connections came in an outage's busiest 20 ms, and how many in all.

    Then the same of the buses', and for how long at the most this program stood still meanwhile.
    """
    outage = False

    def greet(peer: Peer) -> None:
        peers.append(peer)
        if outage:
            peer.hang_up()

    def busiest(server: Server) -> int:
        at = server.accepted_at_s[number:]
        return max(sum(begun <= other < begun + STEP_S for other in at) for begun in at)

    peers: list[Peer] = []
    async with kit.serving(kit.good, greet=greet) as server:
        clients = [AsyncModbusTcpClient("127.0.0.1", port=server.port, reconnect_delay=0.1) for _ in range(number)]
        await asyncio.gather(*(client.connect() for client in clients))
        await asyncio.sleep(0.1)
        outage = True
        for peer in peers[:]:
            peer.hang_up()
        await asyncio.sleep(1)
        library_busiest, library_attempts = busiest(server), server.accepted - number
        for client in clients:
            client.close()

    outage = False
    peers.clear()
    async with kit.serving(kit.good, greet=greet) as server, anyio.create_task_group() as tasks:
        buses = [ModbusBus(kit.bus_to(server)) for _ in range(number)]
        for bus in buses:
            tasks.start_soon(bus.run)
        await asyncio.gather(*(read(bus) for bus in buses))
        outage = True
        for peer in peers[:]:
            peer.hang_up()
        stood_still_s, until_s = 0.0, anyio.current_time() + 1
        while (began_s := anyio.current_time()) < until_s:
            await anyio.sleep(STEP_S / 4)
            stood_still_s = max(stood_still_s, anyio.current_time() - began_s - STEP_S / 4)
        found = busiest(server), server.accepted - number
        tasks.cancel_scope.cancel()
    return (library_busiest, library_attempts, *found, stood_still_s)


async def test_half_open_connections_are_noticed(kit: Kit) -> None:
    async def answer(asked: Asked, peer: Peer) -> None:
        if peer.number > 1:
            await kit.good(asked, peer)

    async with kit.serving(answer) as server, library(server, timeout=0.05, retries=1) as client:
        for _ in range(4):
            with pytest.raises(ModbusException):
                await client.read_holding_registers(100, count=10, device_id=1)
        assert server.accepted == 1, "eight requests, and it still holds on"

    async with kit.serving(answer) as server, kit.running(kit.bus_to(server, timeout_s=0.05)) as bus:
        for _ in range(3):
            with pytest.raises(NoAnswer):
                await write(bus)
        await write(bus)
        assert server.accepted == 2
        assert len(server.asked) == 4


async def test_pipelining_is_not_the_default(kit: Kit) -> None:
    """The library's server answers one of several requests that come in one segment; so ours waits for each reply."""
    device = SimDevice(1, simdata=[SimData(0, values=list(range(2000)), datatype=DataType.REGISTERS)])
    theirs = ModbusTcpServer(device, address=("127.0.0.1", 0))
    await theirs.serve_forever(background=True)
    assert isinstance(theirs.transport, asyncio.Server)
    port = theirs.transport.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"".join(bytes([0, number, 0, 0, 0, 6, 1, 3, 0, 100, 0, 1]) for number in (1, 2, 3)))
    assert (await reader.readexactly(11))[1] == 1
    with pytest.raises(TimeoutError), anyio.fail_after(0.2):
        await reader.readexactly(1)
    writer.close()

    async with kit.serving(kit.good) as server, kit.running(kit.bus_to(server, port=port)) as bus:
        answers = await asyncio.gather(*(read(bus, 100 * number) for number in range(10)))
        assert list(answers) == [numbered(100 * number) for number in range(10)]
    await theirs.shutdown()  # type: ignore[no-untyped-call]
