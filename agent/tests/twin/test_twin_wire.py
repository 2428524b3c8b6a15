# SPDX-License-Identifier: Apache-2.0
"""Faults as they show on the wire, the timing of a serial line, and an independent reader."""

from __future__ import annotations

import asyncio
import shutil
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from derms_agent import profiles
from derms_agent.model import Bus, Transport
from derms_agent.profiles.point import Table
from derms_agent.twin import CannotListen, Fault, FaultKind, Twin, server

if TYPE_CHECKING:
    from agent.tests.twin.conftest import Ask, MakeDepot

pytestmark = pytest.mark.anyio

# Heidelberg's two voltages at input registers 10 and 11: 231 V.
READ = "00 05 00 00 00 06 01 04 00 0a 00 02"
GOOD = "00 05 00 00 00 07 01 04 04 00 e7 00 e7"
# Its limit, 261 = 10.0 A.
WRITE = "00 06 00 00 00 06 01 06 01 05 00 64"
LINE = Bus(
    name="line",
    gateway="g",
    transport=Transport.RTU_OVER_TCP,
    host="203.0.113.1",
    baud_rate=9600,
    gateway_timeout_s=0.3,
)
# The same read as RTU to unit 1, with the CRC by the specification's algorithm.
RTU_READ = "01 04 00 0a 00 02 51 c9"


def loopback(_host: str, _port: int) -> tuple[str, int]:
    return ("127.0.0.1", 0)


@pytest.mark.parametrize(
    ("fault", "reply"),
    [
        (Fault(kind=FaultKind.SILENT), ""),
        (Fault(kind=FaultKind.EXCEPTION, code=6), "00 05 00 00 00 03 01 84 06"),
        (Fault(kind=FaultKind.WRONG_UNIT), "00 05 00 00 00 07 02 04 04 00 e7 00 e7"),
        (Fault(kind=FaultKind.WRONG_TRANSACTION_ID), "00 06 00 00 00 07 01 04 04 00 e7 00 e7"),
        (Fault(kind=FaultKind.SHORT_REPLY), "00 05 00 00 00 05 01 04 02 00 e7"),
        (Fault(kind=FaultKind.DISCONNECT), "closed"),
        (Fault(kind=FaultKind.REBOOT, for_s=0.5), "closed"),
        (Fault(kind=FaultKind.SLOW, ms=100), GOOD),
        (Fault(kind=FaultKind.BYTE_DRIBBLE, ms=10), GOOD),
    ],
    ids=lambda value: value.kind.value if isinstance(value, Fault) else "",
)
@pytest.mark.parametrize("on", ["device-1", "bus-1"])
async def test_a_fault_shows_until_it_is_cleared(
    make_depot: MakeDepot, ask: Ask, fault: Fault, reply: str, on: str
) -> None:
    if fault.kind is FaultKind.REBOOT and on == "bus-1":
        pytest.skip("a bus does not reboot")
    async with Twin(make_depot("heidelberg_energy_control")) as twin:
        address = (await twin.serve(loopback))["bus-1"]
        twin.fault(on, fault)
        assert await ask(address, READ) == reply
        twin.clear()
        assert await ask(address, READ) == GOOD


async def test_slow_and_dribbling_answers_take_their_time(make_depot: MakeDepot) -> None:
    async with Twin(make_depot("heidelberg_energy_control")) as twin:
        address = (await twin.serve(loopback))["bus-1"]
        for kind, ms, least_s in ((FaultKind.SLOW, 120, 0.12), (FaultKind.BYTE_DRIBBLE, 10, 0.12)):
            twin.fault("device-1", Fault(kind=kind, ms=ms))
            reader, writer = await asyncio.open_connection(*address)
            start_s = time.monotonic()
            writer.write(bytes.fromhex(READ))
            await asyncio.wait_for(reader.readexactly(13), 2)
            assert least_s <= time.monotonic() - start_s < least_s + 0.1
            writer.close()
            twin.clear("device-1")


async def test_a_fault_ends_by_itself(make_depot: MakeDepot, ask: Ask) -> None:
    async with Twin(make_depot("heidelberg_energy_control")) as twin:
        address = (await twin.serve(loopback))["bus-1"]
        twin.fault("bus-1", Fault(kind=FaultKind.SILENT, for_s=0.2))
        assert await ask(address, READ) == ""
        await asyncio.sleep(0.4)
        assert await ask(address, READ) == GOOD


async def test_every_write_is_recorded_also_what_is_not_executed(make_depot: MakeDepot, ask: Ask) -> None:
    async with Twin(make_depot("heidelberg_energy_control")) as twin:
        address = (await twin.serve(loopback))["bus-1"]
        assert await ask(address, WRITE) == WRITE
        twin.fault("device-1", Fault(kind=FaultKind.SILENT))
        assert await ask(address, WRITE) == ""
        twin.clear()
        twin.fault("device-1", Fault(kind=FaultKind.DISCONNECT))
        assert await ask(address, WRITE) == "closed"
        first = twin.writes[0]
        assert (first.bus, first.unit, first.table, first.address, first.words, first.function) == (
            "bus-1",
            1,
            Table.HOLDING,
            261,
            (100,),
            6,
        )
        assert [write.executed for write in twin.writes] == [True, False, True]
        times = [write.at_s for write in twin.writes]
        assert times == sorted(times)
        assert times[0] < times[-1]


async def test_a_device_takes_no_more_clients_than_its_profile_says(make_depot: MakeDepot, ask: Ask) -> None:
    """Alfen: two masters. 306, two registers: f32 400 / sqrt(3) = 0xE6F0AB / 2^16, exponent 7 (IEEE 754)."""
    read = "00 01 00 00 00 06 01 03 01 32 00 02"
    async with Twin(make_depot("alfen_ng9")) as twin:
        address = (await twin.serve(loopback))["bus-1"]
        held = [await asyncio.open_connection(*address) for _ in range(2)]
        await asyncio.sleep(0.05)
        assert await ask(address, read) == "closed"
        held[0][1].close()
        await asyncio.sleep(0.05)
        got = await ask(address, read)
        held[1][1].close()
        assert got == "00 01 00 00 00 07 01 03 04 43 66 f0 ab"


async def test_a_silent_connection_is_closed_where_the_profile_says_so(make_depot: MakeDepot) -> None:
    alfen = profiles.load("alfen_ng9")
    impatient = replace(alfen, wire=replace(alfen.wire, idle_close_s=1))
    async with Twin(make_depot("alfen_ng9"), profiles={"alfen_ng9": impatient}) as twin:
        address = (await twin.serve(loopback))["bus-1"]
        reader, writer = await asyncio.open_connection(*address)
        start_s = time.monotonic()
        assert await asyncio.wait_for(reader.read(1), 3) == b""
        assert 0.9 < time.monotonic() - start_s < 1.5
        writer.close()


async def test_a_serial_line_takes_its_time(make_depot: MakeDepot) -> None:
    """Ten registers at 9600 baud: 33 characters of 11 bits, two silences of 3.5 characters, 10 ms: 55.8 ms."""
    async with Twin(make_depot("heidelberg_energy_control", line=LINE)) as twin:
        address = (await twin.serve(loopback))["line"]
        reader, writer = await asyncio.open_connection(*address)
        took_s = []
        for _ in range(5):
            start_s = time.monotonic()
            # Ten input registers from 4 on are defined: 4 to 13.
            writer.write(bytes.fromhex("01 04 00 04 00 0a 31 cc"))
            await asyncio.wait_for(reader.readexactly(25), 1)
            took_s.append(time.monotonic() - start_s)
        writer.close()
        assert 0.0553 <= min(took_s) < 0.065, took_s


async def test_a_line_carries_one_transaction_at_a_time_whoever_asks(make_depot: MakeDepot) -> None:
    """Two clients at once: the second waits for the first; a silent unit holds both up for the gateway's time-out."""
    depot = make_depot("heidelberg_energy_control", "heidelberg_energy_control", line=LINE)
    async with Twin(depot) as twin:
        address = (await twin.serve(loopback))["line"]

        async def timed(request: str, size: int) -> float:
            reader, writer = await asyncio.open_connection(*address)
            start_s = time.monotonic()
            writer.write(bytes.fromhex(request))
            await asyncio.wait_for(reader.readexactly(size), 2)
            took_s = time.monotonic() - start_s
            writer.close()
            return took_s

        # 8 + 9 characters, two silences, 10 ms: 37.5 ms each.
        pairs = [sorted(await asyncio.gather(timed(RTU_READ, 9), timed(RTU_READ, 9))) for _ in range(4)]
        assert 0.037 <= min(first for first, _ in pairs) < 0.05, pairs
        assert 0.074 <= min(second for _, second in pairs) < 0.095, pairs
        # Unit 9 is not there.
        _, absent = await asyncio.open_connection(*address)
        absent.write(bytes.fromhex("09 04 00 0a 00 02 50 81"))
        await asyncio.sleep(0.005)
        assert 0.33 <= await timed(RTU_READ, 9) < 0.45
        absent.close()


async def test_absent_and_silent_units_behind_a_gateway(make_depot: MakeDepot, ask: Ask) -> None:
    """RTU passed through is silent; a gateway that speaks Modbus/TCP says 0B once its own time is over."""
    translated = replace(LINE, transport=Transport.TCP, gateway_timeout_s=0.1)
    absent = {
        LINE: ("09 04 00 0a 00 02 50 81", ""),
        translated: ("00 05 00 00 00 06 09 04 00 0a 00 02", "00 05 00 00 00 03 09 84 0b"),
    }
    for line, (request, reply) in absent.items():
        async with Twin(make_depot("heidelberg_energy_control", line=line)) as twin:
            address = (await twin.serve(loopback))["line"]
            assert await ask(address, request) == reply


async def test_what_answers_after_the_gateways_time_out_is_lost_but_done(make_depot: MakeDepot, ask: Ask) -> None:
    async with Twin(make_depot("heidelberg_energy_control", line=LINE)) as twin:
        address = (await twin.serve(loopback))["line"]
        twin.fault("device-1", Fault(kind=FaultKind.SLOW, ms=400))
        assert await ask(address, "01 06 01 05 00 64 99 dc") == ""
        assert [write.executed for write in twin.writes] == [True]


async def test_a_wrong_transaction_id_takes_a_framing_that_has_one(make_depot: MakeDepot) -> None:
    twin = Twin(make_depot("heidelberg_energy_control", line=LINE))
    with pytest.raises(ValueError, match="wrong_transaction_id"):
        twin.fault("device-1", Fault(kind=FaultKind.WRONG_TRANSACTION_ID))


async def test_an_address_that_this_machine_lacks_is_named(make_depot: MakeDepot) -> None:
    twin = Twin(make_depot("keba_p30"))
    with pytest.raises(CannotListen) as caught:
        await twin.serve()
    assert (
        caught.value.strerror
        == "203.0.113.1 port 502: this machine has no such address; give it one, or use --namespace"
    )


async def test_a_port_in_use_is_named(make_depot: MakeDepot) -> None:
    taken = server.listen("127.0.0.1", 0)
    port = taken.getsockname()[1]
    with pytest.raises(CannotListen, match="something else listens there"):
        await Twin(make_depot("keba_p30")).serve(lambda _host, _port: ("127.0.0.1", port))
    taken.close()


@pytest.mark.skipif(shutil.which("mbpoll") is None, reason="mbpoll is not installed: apt-get install mbpoll")
async def test_mbpoll_reads_the_same(make_depot: MakeDepot) -> None:
    """References of mbpoll count from 1: -r 1037 is PDU address 1036, KEBA's energy; -B: the high word first."""
    async with Twin(make_depot("keba_p30", "heidelberg_energy_control", "sunspec_der")) as twin:
        addresses = await twin.serve(loopback)

        async def poll(bus: str, *arguments: str) -> list[str]:
            host, port = addresses[bus]
            command = ("mbpoll", "-m", "tcp", "-p", str(port), "-a", "1", "-1", *arguments, host)
            process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
            out, _ = await asyncio.wait_for(process.communicate(), 5)
            return [line.split("\t")[-1].strip() for line in out.decode().splitlines() if line.startswith("[")]

        assert await poll("bus-1", "-t", "4:int", "-B", "-r", "1041", "-c", "1") == ["231"]
        assert await poll("bus-2", "-t", "3", "-r", "11", "-c", "3") == ["231", "231", "231"]
        assert await poll("bus-3", "-t", "4:hex", "-r", "40001", "-c", "4") == ["0x5375", "0x6E53", "0x0001", "0x0042"]
        host, port = addresses["bus-2"]
        write = await asyncio.create_subprocess_exec(
            *("mbpoll", "-m", "tcp", "-p", str(port), "-a", "1", "-t", "4", "-r", "262", host, "70"),
            stdout=asyncio.subprocess.DEVNULL,
        )
        assert await asyncio.wait_for(write.wait(), 5) == 0
        assert await poll("bus-2", "-t", "4", "-r", "262", "-c", "1") == ["70"]
