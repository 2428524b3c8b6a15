# SPDX-License-Identifier: Apache-2.0
"""The scheduling of a bus, against real servers: who goes first, who gives way, what a dead unit costs."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from derms_agent.drivers.errors import (
    BadReply,
    BusError,
    ConnectionLost,
    DeadlinePassed,
    InvalidRequest,
    NoAnswer,
    Overloaded,
    Unreachable,
    Withdrawn,
)
from derms_agent.drivers.interface import Priority, RegisterBus
from derms_agent.drivers.modbus import ModbusBus
from derms_agent.drivers.modbus.bus import Job
from derms_agent.drivers.modbus.connection import MAX_UNANSWERED_IDS, TcpConnection
from derms_agent.model import TransactionIds
from derms_agent.profiles.point import Table

if TYPE_CHECKING:
    from agent.tests.transport.conftest import Asked, Kit, Peer

pytestmark = pytest.mark.anyio


def read(
    bus: RegisterBus,
    address: int = 100,
    *,
    unit_id: int = 1,
    priority: Priority = Priority.POLL,
    deadline_s: float = 5.0,
) -> Coroutine[Any, Any, tuple[int, ...]]:
    return bus.read(unit_id, Table.HOLDING, address, 2, priority=priority, deadline_s=deadline_s)


def shed(bus: RegisterBus, unit_id: int = 1, value: int = 6, deadline_s: float = 5.0) -> Coroutine[Any, Any, None]:
    return bus.write(unit_id, Table.HOLDING, 261, [value], priority=Priority.SHED, deadline_s=deadline_s)


async def outcome(job: Coroutine[Any, Any, object]) -> object:
    """Return what a job gives, or its error."""
    try:
        return await job
    except BusError as error:
        return error


def slowly(kit: Kit, seconds: float) -> Any:
    async def answer(asked: Asked, peer: Peer) -> None:
        await asyncio.sleep(seconds)
        await kit.good(asked, peer)

    return answer


@pytest.mark.parametrize("rtu", [False, True])
async def test_urgent_jobs_go_first_and_equals_in_turn(kit: Kit, rtu: bool) -> None:
    async with kit.serving(slowly(kit, 0.01), rtu=rtu) as server, kit.running(kit.bus_to(server)) as bus:
        await read(bus)
        server.asked.clear()
        priorities = [3, 2, 3, 1, 2, 0, 1, 0]
        jobs = [read(bus, 1000)]  # this one is sent at once, and is not broken off for any other
        jobs += [read(bus, 10 * index, priority=Priority(priority)) for index, priority in enumerate(priorities)]
        await asyncio.gather(*jobs)
        order = [asked.address // 10 for asked in server.asked]
        assert order == [100, 5, 7, 3, 6, 1, 4, 0, 2]


async def test_a_shed_waits_for_one_transaction_at_the_most(kit: Kit) -> None:
    async with kit.serving(slowly(kit, 0.02), rtu=True) as server, kit.running(kit.bus_to(server)) as bus:
        polls = [asyncio.ensure_future(read(bus, 10 * index)) for index in range(20)]
        await anyio.sleep(0.05)
        before = len(server.asked)
        await shed(bus)
        assert [asked.pdu[0] for asked in server.asked[before:]][:1] == [6]
        assert await asyncio.gather(*polls) == [(10 * index, 10 * index + 1) for index in range(20)]


async def test_a_full_queue_refuses_the_least_urgent(kit: Kit) -> None:
    async with kit.serving(slowly(kit, 0.05)) as server:
        small = ModbusBus(kit.bus_to(server), most_waiting=3)
        async with kit.running(small) as bus:
            await read(bus)
            jobs = [read(bus, 0)]
            jobs += [read(bus, 10 * index, priority=Priority.CONFIGURATION) for index in (1, 2, 3, 4)]
            jobs += [read(bus, 50), read(bus, 60, priority=Priority.SHED)]
            found = await asyncio.gather(*(outcome(job) for job in jobs))
            refused = [index for index, one in enumerate(found) if isinstance(one, Overloaded)]
            assert refused == [2, 3, 4], "the newcomer when all are equal, then the last of the lowest"
            assert [asked.address for asked in server.asked[1:]] == [0, 60, 50, 10]


async def test_deadlines_cover_waiting(kit: Kit) -> None:
    async with kit.serving(slowly(kit, 0.1)) as server, kit.running(kit.bus_to(server)) as bus:
        begun = time.monotonic()
        first, second = await asyncio.gather(read(bus, 0), outcome(read(bus, 10, deadline_s=0.05)))
        assert first == (0, 1)
        assert isinstance(second, DeadlinePassed)
        assert not second.may_have_happened
        assert time.monotonic() - begun < 0.15
        assert [asked.address for asked in server.asked] == [0]


async def test_a_job_waits_for_the_first_connection_until_its_deadline(kit: Kit) -> None:
    async with kit.serving(kit.good) as server:
        bus = ModbusBus(kit.bus_to(server))
        early = asyncio.ensure_future(read(bus, 500))
        with pytest.raises(DeadlinePassed):
            await read(bus, deadline_s=0.02)
        async with kit.running(bus):
            assert await early == (500, 501)


@pytest.mark.parametrize("rtu", [False, True])
async def test_a_deadline_after_sending_leaves_the_reply_to_its_own_request(kit: Kit, rtu: bool) -> None:
    async with kit.serving(slowly(kit, 0.1), rtu=rtu) as server, kit.running(kit.bus_to(server)) as bus:
        await read(bus)
        with pytest.raises(NoAnswer, match="deadline") as caught:
            await shed(bus, deadline_s=0.03)
        assert caught.value.may_have_happened
        assert await read(bus, 500) == (500, 501)
        assert server.accepted == 1, "its reply came and was recognised; there was no need to close"
        assert len(server.writes()) == 1


@pytest.mark.parametrize("rtu", [False, True])
async def test_a_cancelled_caller_leaves_nothing_behind(kit: Kit, rtu: bool) -> None:
    async with kit.serving(slowly(kit, 0.1), rtu=rtu) as server, kit.running(kit.bus_to(server)) as bus:
        await read(bus)
        sent = asyncio.ensure_future(shed(bus))
        waiting = asyncio.ensure_future(shed(bus, value=7))
        await anyio.sleep(0.03)
        sent.cancel()
        waiting.cancel()
        await asyncio.gather(sent, waiting, return_exceptions=True)
        assert await read(bus, 500) == (500, 501), "not the echo of the write whose caller is gone"
        assert [asked.pdu[3:] for asked in server.writes()] == [b"\x00\x06"], "what had not been sent never is"
        assert not bus._waiting
        assert server.accepted == 1


def submitted(bus: ModbusBus, value: int, unit_id: int = 1) -> Job:
    return bus.submit_write(unit_id, Table.HOLDING, 0, [value], priority=Priority.SHED, deadline_s=5.0)


async def test_what_is_submitted_has_left_before_anybody_waits_for_it(kit: Kit) -> None:
    async with kit.serving(slowly(kit, 0.02)) as server, contextlib.AsyncExitStack() as stack:
        buses = [await stack.enter_async_context(kit.running(kit.bus_to(server))) for _ in range(5)]
        for bus in buses:
            await read(bus)
        server.asked.clear()
        jobs = [submitted(bus, value) for value, bus in enumerate(buses)]
        assert all(job.sent_at_s is not None for job in jobs), "an idle bus sends within the call"
        for job in jobs:
            assert await job == ()
        assert sorted(asked.pdu[-1] for asked in server.writes()) == list(range(5))


@pytest.mark.parametrize("rtu", [False, True])
async def test_what_is_withdrawn_is_not_sent_and_ends_at_once(kit: Kit, rtu: bool) -> None:
    async with kit.serving(slowly(kit, 0.05), rtu=rtu) as server, kit.running(kit.bus_to(server)) as bus:
        await read(bus)
        sent, waiting, last = (submitted(bus, value) for value in (6, 7, 8))
        sent.withdraw()
        waiting.withdraw()
        assert waiting.future.done()
        assert list(bus._waiting) == [last], "it takes nobody's place in the queue"
        with pytest.raises(Withdrawn) as failure:
            await waiting
        assert not failure.value.may_have_happened
        assert await last == ()
        assert await sent == (), "what was sent is answered"
        assert [asked.pdu[-1] for asked in server.writes()] == [6, 8]
        assert not bus._waiting


async def test_a_caller_that_goes_while_the_line_becomes_free_has_nothing_sent(kit: Kit) -> None:
    async with kit.serving(slowly(kit, 0.05)) as server, kit.running(kit.bus_to(server)) as bus:
        await read(bus)
        first, second = submitted(bus, 6), submitted(bus, 7)
        second.future.cancel()  # as asyncio does to what a cancelled task waits for, before that has its turn
        assert await first == ()
        await anyio.sleep(0.1)
        assert [asked.pdu[-1] for asked in server.writes()] == [6]


async def test_a_dead_unit_delays_its_neighbours_by_one_time_out_at_the_most(kit: Kit) -> None:
    async def answer(asked: Asked, peer: Peer) -> None:
        if asked.unit_id != 3:
            await asyncio.sleep(0.005)
            await kit.good(asked, peer)

    async with kit.serving(answer, rtu=True) as server, kit.running(kit.bus_to(server, timeout_s=0.3)) as bus:
        slowest = 0.0

        async def poll(unit_id: int, ends: float) -> list[object]:
            nonlocal slowest
            found = []
            while time.monotonic() < ends:
                begun = time.monotonic()
                found.append(await outcome(read(bus, 100, unit_id=unit_id)))
                if unit_id != 3:
                    slowest = max(slowest, time.monotonic() - begun)
                await anyio.sleep(0.02)
            return found

        ends = time.monotonic() + 3
        one, two, three, four = await asyncio.gather(*(poll(unit_id, ends) for unit_id in (1, 2, 3, 4)))
        assert slowest < 0.3 + 0.3, "one time-out, and the reconnect"
        units = [asked.unit_id for asked in server.asked]
        assert (3, 3) not in itertools.pairwise(units), "the others went between"
        for neighbour in (one, two, four):
            assert all(reply == (100, 101) for reply in neighbour)
            assert len(neighbour) > 30
        assert not any(isinstance(reply, tuple) for reply in three)
        assert sum(isinstance(reply, NoAnswer) for reply in three) <= 6, "it is asked rarely"
        assert bus.unit(3).dead(time.monotonic())
        assert not bus.unit(1).dead(time.monotonic())


async def test_sheds_to_dead_units_go_out_but_never_twice_in_a_row(kit: Kit) -> None:
    async def answer(asked: Asked, peer: Peer) -> None:
        if asked.unit_id < 10:
            await kit.good(asked, peer)

    async with kit.serving(answer) as server, kit.running(kit.bus_to(server, timeout_s=0.15)) as bus:
        for _ in range(3):
            await asyncio.gather(*(outcome(shed(bus, unit_id)) for unit_id in (11, 12)))
        assert isinstance(await outcome(read(bus, unit_id=11)), (Unreachable, NoAnswer))
        assert isinstance(await outcome(read(bus, unit_id=11)), Unreachable), "not asked again so soon"
        await read(bus, unit_id=1)
        server.asked.clear()
        jobs = [outcome(shed(bus, unit_id)) for unit_id in (11, 12, 11, 1, 2)]
        jobs += [outcome(read(bus, unit_id=unit_id)) for unit_id in (3, 4, 5)]
        found = await asyncio.gather(*jobs)
        assert [isinstance(one, NoAnswer) for one in found] == [True] * 3 + [False] * 5
        units = [asked.unit_id for asked in server.asked]
        assert units == [11, 1, 2, 12, 3, 11, 4, 5]


async def test_what_waits_for_a_unit_when_it_is_declared_dead(kit: Kit) -> None:
    async def answer(asked: Asked, peer: Peer) -> None:
        if asked.unit_id == 1:
            await kit.good(asked, peer)

    async with kit.serving(answer) as server, kit.running(kit.bus_to(server, timeout_s=0.15)) as bus:
        await read(bus)
        server.asked.clear()
        to_dead = [outcome(shed(bus, 3)) for _ in range(5)] + [outcome(read(bus, unit_id=3)) for _ in range(4)]
        to_living = [read(bus) for _ in range(3)]
        found = await asyncio.gather(*to_dead, *to_living)
        assert [type(one) for one in found[:5]] == [NoAnswer] * 5, "its sheds still go out, each once"
        assert [type(one) for one in found[5:9]] == [Unreachable] * 4, "its polls do not"
        assert found[9:] == [(100, 101)] * 3
        assert [asked.unit_id for asked in server.asked] == [3, 3, 3, 1, 3, 1, 3, 1]


async def test_a_unit_that_returns_is_polled_again(kit: Kit) -> None:
    back = False

    async def answer(asked: Asked, peer: Peer) -> None:
        if back:
            await kit.good(asked, peer)

    async with kit.serving(answer) as server, kit.running(kit.bus_to(server, timeout_s=0.05)) as bus:
        for _ in range(3):
            assert isinstance(await outcome(read(bus)), NoAnswer)
        assert bus.unit(1).dead(time.monotonic())
        back = True
        with anyio.fail_after(5):
            while isinstance(await outcome(read(bus)), BusError):
                await anyio.sleep(0.02)
        assert not bus.unit(1).dead(time.monotonic())
        assert bus.unit(1).failures == 0
        assert bus.unit(1).last_good_s == pytest.approx(time.monotonic(), abs=0.5)


async def test_a_device_that_falls_silent_is_dead_within_three_seconds(kit: Kit) -> None:
    async with kit.serving(kit.good) as server, kit.running(kit.bus_to(server, timeout_s=1.0)) as bus:
        await read(bus)
        server.answer = kit.silent
        silent = time.monotonic()
        next_poll = silent + 1  # the first poll after the last good reply comes a second later
        while not bus.unit(1).dead(time.monotonic()):
            assert time.monotonic() - silent < 3
            if time.monotonic() >= next_poll:
                next_poll += 1
                await outcome(read(bus))
            await anyio.sleep(0.02)
        assert time.monotonic() - silent > 1


async def test_a_gateways_word_that_a_unit_is_silent_counts_as_its_silence(kit: Kit) -> None:
    async def answer(asked: Asked, peer: Peer) -> None:
        peer.reply(asked, bytes([asked.pdu[0] | 0x80, 11]))

    async with kit.serving(answer) as server, kit.running(kit.bus_to(server)) as bus:
        with pytest.raises(NoAnswer, match="exception 11") as caught:
            await shed(bus)
        assert caught.value.may_have_happened
        assert bus.unit(1).failures == 1


async def test_pauses_that_a_device_needs(kit: Kit) -> None:
    options = {"delay_after_connect_s": 0.15, "delay_between_s": 0.05}
    async with kit.serving(slowly(kit, 0.01)) as server, kit.running(kit.bus_to(server, **options)) as bus:
        await asyncio.gather(*(read(bus, 10 * index) for index in range(4)))
        at = [asked.at_s for asked in server.asked]
        assert at[0] - server.accepted_at_s[0] >= 0.14
        assert all(later - earlier >= 0.055 for earlier, later in itertools.pairwise(at))


async def test_refused_connections_fail_jobs_at_once_and_are_tried_again(kit: Kit) -> None:
    async with kit.serving(kit.good) as server:
        port = server.port
    async with kit.running(kit.bus_to(server)) as bus:
        with pytest.raises(Unreachable, match="cannot connect"):
            await read(bus)
        begun = time.monotonic()
        with pytest.raises(Unreachable):
            await shed(bus)
        assert time.monotonic() - begun < 0.05
        assert not bus.connected
        assert bus.problem is not None
        listener = await asyncio.start_server(server.take, "127.0.0.1", port)
        with anyio.fail_after(5):
            while not bus.connected:
                await anyio.sleep(0.02)
        assert await read(bus, 500) == (500, 501)
        listener.close()


async def test_stopping_ends_every_job(kit: Kit) -> None:
    async with kit.serving(kit.silent) as server:
        bus = ModbusBus(kit.bus_to(server, timeout_s=5))
        async with kit.running(bus):
            jobs = [asyncio.ensure_future(outcome(job)) for job in (shed(bus), read(bus), read(bus))]
            await anyio.sleep(0.05)
        found = await asyncio.gather(*jobs)
        assert [type(one) for one in found] == [ConnectionLost, Unreachable, Unreachable]
        with pytest.raises(Unreachable, match="stopped"):
            await read(bus)
        server.answer = kit.good
        async with kit.running(bus):
            while not bus.connected:
                await anyio.sleep(0.01)
            assert await read(bus, 500) == (500, 501), "a bus can be run again"


@pytest.mark.parametrize("rtu", [False, True])
@pytest.mark.parametrize("garbage", [bytes(range(256)) * 4000, b"\x00\x01\x00\x00\xff\xff\x01\x03", b"\xff" * 9])
async def test_garbage_ends_the_connection_and_not_the_bus(kit: Kit, rtu: bool, garbage: bytes) -> None:
    async def answer(asked: Asked, peer: Peer) -> None:
        if peer.number == 1:
            peer.send(garbage)
        else:
            await kit.good(asked, peer)

    async with kit.serving(answer, rtu=rtu) as server, kit.running(kit.bus_to(server)) as bus:
        with pytest.raises(BadReply):
            await read(bus)
        assert await read(bus, 500) == (500, 501)
        assert server.accepted == 2


async def test_an_id_that_went_unanswered_is_not_used_again(kit: Kit) -> None:
    """The 65,535th request after it would bear the same id, and its late reply could be taken for that one's."""
    async with kit.serving(kit.silent) as server, kit.running(kit.bus_to(server, timeout_s=0.15)) as bus:
        assert isinstance(await outcome(shed(bus)), NoAnswer)
        lost = server.asked[-1].transaction_id
        server.answer = kit.good
        connection = bus._connection
        assert isinstance(connection, TcpConnection)
        for last in (lost - 2, lost - 1, 0xFFFE):
            connection._last_id = last % 0xFFFF
            await asyncio.gather(read(bus), read(bus))
        assert len(server.asked) == 7
        assert lost not in {asked.transaction_id for asked in server.asked[1:]}
        assert 0 not in {asked.transaction_id for asked in server.asked}


async def test_a_link_with_many_unanswered_ids_is_replaced(kit: Kit) -> None:
    async def answer(asked: Asked, peer: Peer) -> None:
        if asked.unit_id == 1:
            await kit.good(asked, peer)

    async with kit.serving(answer) as server, kit.running(kit.bus_to(server, timeout_s=0.15)) as bus:
        for unanswered, accepted in ((MAX_UNANSWERED_IDS - 2, 1), (MAX_UNANSWERED_IDS - 1, 2)):
            await read(bus)
            assert isinstance(bus._connection, TcpConnection)
            bus._connection._unanswered_ids = set(range(40_000, 40_000 + unanswered))
            assert isinstance(await outcome(shed(bus, 2)), NoAnswer)
            await read(bus)
            assert server.accepted == accepted


async def test_several_dead_units_at_once_do_not_end_a_connection(kit: Kit) -> None:
    async def answer(asked: Asked, peer: Peer) -> None:
        if asked.unit_id == 1:
            await kit.good(asked, peer)

    options = {"timeout_s": 0.15, "max_in_flight": 8}
    async with kit.serving(answer) as server, kit.running(kit.bus_to(server, **options)) as bus:
        for _ in range(4):
            await asyncio.gather(read(bus), *(outcome(shed(bus, unit_id)) for unit_id in range(2, 9)))
        assert server.accepted == 1


async def test_a_flood_of_strangers_is_hung_up_on(kit: Kit) -> None:
    async def flood(asked: Asked, peer: Peer) -> None:
        for _ in range(40):
            peer.reply(asked, asked.good_reply(), transaction_id=asked.transaction_id + 7)

    async with kit.serving(flood) as server, kit.running(kit.bus_to(server, timeout_s=5)) as bus:
        with pytest.raises(BadReply, match="another transaction id"), anyio.fail_after(1):
            await read(bus)


@pytest.mark.parametrize("rtu", [False, True])
async def test_a_reply_byte_by_byte(kit: Kit, rtu: bool) -> None:
    async def dribble(asked: Asked, peer: Peer) -> None:
        for byte in peer.frame(asked, asked.good_reply()):
            peer.send(bytes([byte]))
            await asyncio.sleep(0.002)

    async with kit.serving(dribble, rtu=rtu) as server, kit.running(kit.bus_to(server)) as bus:
        assert await read(bus, 500) == (500, 501)
        await shed(bus)
        assert server.accepted == 1


async def test_two_replies_in_one_segment(kit: Kit) -> None:
    waiting: list[Asked] = []

    async def in_pairs(asked: Asked, peer: Peer) -> None:
        waiting.append(asked)
        if len(waiting) == 2:
            peer.send(b"".join(peer.frame(one, one.good_reply()) for one in reversed(waiting)))
            waiting.clear()

    async with kit.serving(in_pairs) as server, kit.running(kit.bus_to(server, max_in_flight=2)) as bus:
        assert tuple(await asyncio.gather(read(bus, 100), read(bus, 200))) == ((100, 101), (200, 201))


@pytest.mark.parametrize("fault", ["checksum", "too many"])
async def test_an_rtu_reply_with_a_wrong_checksum_or_a_byte_too_many(kit: Kit, fault: str) -> None:
    async def answer(asked: Asked, peer: Peer) -> None:
        frame = peer.frame(asked, asked.good_reply())
        bad = frame[:-1] + bytes([frame[-1] ^ 1]) if fault == "checksum" else frame + b"\x00"
        peer.send(bad if peer.number == 1 else frame)

    async with kit.serving(answer, rtu=True) as server, kit.running(kit.bus_to(server)) as bus:
        with pytest.raises(BadReply, match=fault):
            await read(bus)
        assert await read(bus) == (100, 101)


async def test_the_broadcast_of_a_serial_line_is_refused(kit: Kit) -> None:
    async with kit.serving(kit.good, rtu=True) as server, kit.running(kit.bus_to(server)) as bus:
        with pytest.raises(InvalidRequest, match="broadcast"):
            await shed(bus, unit_id=0)
        assert not server.asked
    async with kit.serving(kit.good) as server, kit.running(kit.bus_to(server)) as bus:
        assert await read(bus, 500, unit_id=0) == (500, 501), "over Modbus/TCP, 0 is a unit like any other"


async def test_only_strict_ids_allow_several_in_flight(kit: Kit) -> None:
    flying = most = 0

    async def slow(asked: Asked, peer: Peer) -> None:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        await asyncio.sleep(0.01)
        flying -= 1
        await kit.good(asked, peer)

    options = {"max_in_flight": 8, "transaction_ids": TransactionIds.IGNORE}
    async with kit.serving(slow) as server, kit.running(kit.bus_to(server, **options)) as bus:
        await asyncio.gather(*(read(bus, 10 * index) for index in range(8)))
        assert most == 1
