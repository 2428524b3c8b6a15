# SPDX-License-Identifier: GPL-3.0-or-later
"""The two ends of the agent.bus benchmarks, each a process of its own: python -m tests.bench.agent_bus_ends ROLE JSON.

A server role prints its port and serves until its input is closed; a client role prints its findings as JSON. Times
that both ends know are CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

REGISTERS = 40
BEAT_S = 0.02  # devices whose turn falls into the same beat are woken together
TIMER_ERROR_S = 0.0015
READ = Callable[[], Awaitable[object]]


class SlowDevice(asyncio.Protocol):
    """A Modbus/TCP device that answers each request `delay_s` after it came, and falls silent at a given time."""

    def __init__(self, delay_s: float, silent_at_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._delay_s = delay_s
        self._silent_at_s = silent_at_s
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport over."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer later. Each request is one segment here: a client of these benchmarks has one in flight."""
        count = data[11]
        reply = data[:4] + (3 + 2 * count).to_bytes(2, "big") + data[6:8] + bytes([2 * count]) + bytes(2 * count)
        self._loop.call_later(self._delay_s, self._answer, reply)

    def _answer(self, reply: bytes) -> None:
        assert self._transport is not None
        if time.monotonic() < self._silent_at_s:
            self._transport.write(reply)


class SharedLine(asyncio.Protocol):
    """A Modbus gateway that speaks RTU over TCP, with the timing of the serial line behind it."""

    def __init__(self, baud_rate: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._baud_rate = baud_rate
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport over."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer when request, turnaround, reply and both silences would have passed over the line."""
        from derms_agent.serial_line import transaction_s  # noqa: PLC0415
        from pymodbus.framer import FramerRTU  # noqa: PLC0415 -- only this role needs it

        body = data[:6] if data[1] == 6 else data[:2] + bytes([2 * data[5]]) + bytes(2 * data[5])
        reply = body + FramerRTU.compute_CRC(body).to_bytes(2, "big")
        line_s = transaction_s(self._baud_rate, len(data), len(reply))
        due_s = time.monotonic() + line_s
        self._loop.call_later(line_s - TIMER_ERROR_S, self._answer, reply, due_s)

    def _answer(self, reply: bytes, due_s: float) -> None:
        """Answer on time: asyncio's timers are late by up to a millisecond, which twelve replies would add up."""
        assert self._transport is not None
        while time.monotonic() < due_s:
            pass
        self._transport.write(reply)


async def serve(protocol: Callable[[], asyncio.Protocol]) -> None:
    """Serve on a free port, print it, and end when the input is closed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


class Polls:
    """What one device's polls came to: when each good one was sent and answered."""

    def __init__(self) -> None:
        self.sent_s: list[float] = []
        self.answered_s: list[float] = []

    def oldest_s(self, begin_s: float, end_s: float) -> float:
        """Return the greatest age that a value had within a window, counted from its request."""
        known = [self.sent_s[index] for index, at in enumerate(self.answered_s) if at <= begin_s][-1:]
        oldest = 0.0
        for sent, answered in zip(self.sent_s, self.answered_s, strict=True):
            if begin_s < answered <= end_s:
                oldest = max(oldest, answered - known[0]) if known else oldest
                known = [sent]
        return max(oldest, end_s - known[0]) if known else end_s - begin_s

    def latencies_s(self, begin_s: float, end_s: float) -> list[float]:
        """Return how long the replies of a window took."""
        pairs = zip(self.sent_s, self.answered_s, strict=True)
        return [answered - sent for sent, answered in pairs if begin_s < answered <= end_s]


async def poll(read: READ, polls: Polls, first_s: float, failures: tuple[type[Exception], ...]) -> None:
    """Read once a second, at the same fraction of each."""
    at_s = first_s
    while True:
        await asyncio.sleep(max(0.0, at_s - time.monotonic()))
        sent_s = time.monotonic()
        try:
            await read()
        except failures:
            pass
        else:
            polls.sent_s.append(sent_s)
            polls.answered_s.append(time.monotonic())
        at_s += 1.0
        while at_s < time.monotonic():
            at_s += 1.0


async def ours(ports: list[int]) -> tuple[list[READ], list[Any], list[asyncio.Task[None]], tuple[type[Exception], ...]]:
    """Return a read for each port through the agent's own bus, and the buses."""
    from derms_agent.drivers.errors import BusError  # noqa: PLC0415
    from derms_agent.drivers.interface import Priority  # noqa: PLC0415
    from derms_agent.drivers.modbus import ModbusBus  # noqa: PLC0415
    from derms_agent.model import Bus, Transport  # noqa: PLC0415
    from derms_agent.profiles.point import Table  # noqa: PLC0415

    def reads(bus: ModbusBus) -> READ:
        return lambda: bus.read(1, Table.HOLDING, 100, REGISTERS, priority=Priority.POLL, deadline_s=2.0)

    buses = [
        ModbusBus(Bus(name=f"bus-{number}", gateway="g", transport=Transport.TCP, host="127.0.0.1", port=port))
        for number, port in enumerate(ports)
    ]
    tasks = [asyncio.create_task(bus.run()) for bus in buses]
    while not all(bus.connected for bus in buses):
        await asyncio.sleep(0.05)
    return [reads(bus) for bus in buses], buses, tasks, (BusError,)


async def library(
    ports: list[int],
) -> tuple[list[READ], list[Any], list[asyncio.Task[None]], tuple[type[Exception], ...]]:
    """Return a read for each port through pymodbus's own client."""
    from pymodbus.client import AsyncModbusTcpClient  # noqa: PLC0415
    from pymodbus.exceptions import ModbusException  # noqa: PLC0415

    def reads(client: AsyncModbusTcpClient) -> READ:
        return lambda: client.read_holding_registers(100, count=REGISTERS, device_id=1)

    logging.disable(logging.ERROR)
    clients = [AsyncModbusTcpClient("127.0.0.1", port=port, timeout=1, retries=0) for port in ports]
    for client in clients:
        await client.connect()
    return [reads(client) for client in clients], clients, [], (ModbusException,)


async def declare_dead(buses: list[Any], silent_at_s: float, declared_s: list[float]) -> None:
    """Note for each bus how long after a time its device is declared dead."""
    await asyncio.sleep(max(0.0, silent_at_s - time.monotonic()))
    waiting = list(buses)
    while waiting:
        now_s = time.monotonic()
        dead = [bus for bus in waiting if bus.unit(1).dead(now_s)]
        declared_s += [now_s - silent_at_s] * len(dead)
        waiting = [bus for bus in waiting if bus not in dead]
        await asyncio.sleep(0.05)


async def poll_devices(
    client: str, ports: list[int], dying: int, windows: list[tuple[float, float]], silent_at_s: float
) -> dict[str, Any]:
    """Poll devices and say, for each window of time, what it cost and how old values grew.

    The last `dying` ports are those of devices that fall silent.
    """
    reads, buses, tasks, failures = await (ours if client == "ours" else library)(ports)
    first_s = time.monotonic() + 0.5
    polls = [Polls() for _ in reads]
    beats = round(1 / BEAT_S)
    for number, read in enumerate(reads):
        at_s = first_s + number % beats * BEAT_S
        tasks.append(asyncio.create_task(poll(read, polls[number], at_s, failures)))
    declared_s: list[float] = []
    living = len(reads) - dying
    if dying:
        tasks.append(asyncio.create_task(declare_dead(buses[living:], silent_at_s, declared_s)))
    found = []
    for begin_s, end_s in windows:
        await asyncio.sleep(max(0.0, begin_s - time.monotonic()))
        cpu_s = time.process_time()
        await asyncio.sleep(max(0.0, end_s - time.monotonic()))
        cpu = (time.process_time() - cpu_s) / (end_s - begin_s)
        latencies = sorted(latency for one in polls[:living] for latency in one.latencies_s(begin_s, end_s))
        found.append(
            {
                "cpu": cpu,
                "oldest_s": max(one.oldest_s(begin_s, end_s) for one in polls[:living]),
                "reads": len(latencies),
                "p99_s": latencies[int(len(latencies) * 0.99)] if latencies else float("inf"),
            }
        )
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return {
        "windows": found,
        "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "declared_s": max(declared_s, default=float("inf")) if len(declared_s) == dying else float("inf"),
    }


async def sequential(port: int, reads: int, registers: int) -> dict[str, Any]:
    """Read one after the other over one connection."""
    from derms_agent.drivers.interface import Priority  # noqa: PLC0415
    from derms_agent.drivers.modbus import ModbusBus  # noqa: PLC0415
    from derms_agent.model import Bus, Transport  # noqa: PLC0415
    from derms_agent.profiles.point import Table  # noqa: PLC0415

    bus = ModbusBus(Bus(name="bus", gateway="g", transport=Transport.TCP, host="127.0.0.1", port=port))
    running = asyncio.create_task(bus.run())
    await bus.read(1, Table.HOLDING, 100, registers, priority=Priority.POLL, deadline_s=5)
    begun_s = time.monotonic()
    for _ in range(reads):
        await bus.read(1, Table.HOLDING, 100, registers, priority=Priority.POLL, deadline_s=5)
    rate = reads / (time.monotonic() - begun_s)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return {"rate": rate}


async def shed(port: int, units: int, times: int) -> dict[str, Any]:
    """Write a limit to every unit of a shared line at once while all are polled, and say how long each round took."""
    from derms_agent.drivers.errors import BusError  # noqa: PLC0415
    from derms_agent.drivers.interface import Priority  # noqa: PLC0415
    from derms_agent.drivers.modbus import ModbusBus  # noqa: PLC0415
    from derms_agent.model import Bus, Transport  # noqa: PLC0415
    from derms_agent.profiles.point import Table  # noqa: PLC0415

    line = {"transport": Transport.RTU_OVER_TCP, "baud_rate": 19_200}
    bus = ModbusBus(Bus(name="bus", gateway="g", host="127.0.0.1", port=port, **line))  # type: ignore[arg-type]
    running = [asyncio.create_task(bus.run())]

    def reads(unit_id: int) -> READ:
        return lambda: bus.read(unit_id, Table.INPUT, 5, 10, priority=Priority.POLL, deadline_s=2.0)

    async def write(unit_id: int, value: int) -> None:
        await bus.write(unit_id, Table.HOLDING, 261, [value], priority=Priority.SHED, deadline_s=2.0)

    polls = [Polls() for _ in range(units)]
    first_s = time.monotonic() + 0.5  # all at once, which is the worst that a shed can meet
    for unit_id, one in enumerate(polls, 1):
        running.append(asyncio.create_task(poll(reads(unit_id), one, first_s, (BusError,))))
    rounds_s = []
    await asyncio.sleep(1.5)
    for number in range(times):
        await asyncio.sleep(0.4 + 0.137 * (number % 7))
        begun_s = time.monotonic()
        await asyncio.gather(*(write(unit_id, 60 + number) for unit_id in range(1, units + 1)))
        rounds_s.append(time.monotonic() - begun_s)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    return {"rounds_s": rounds_s, "polls": sum(len(one.sent_s) for one in polls)}


CLIENTS: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
    "poll": poll_devices,
    "sequential": sequential,
    "shed": shed,
}
SERVERS: dict[str, Callable[..., asyncio.Protocol]] = {"devices": SlowDevice, "line": SharedLine}


async def main(role: str, arguments: dict[str, Any]) -> None:
    """Play a role."""
    if role in SERVERS:
        await serve(lambda: SERVERS[role](**arguments))
    else:
        print(json.dumps(await CLIENTS[role](**arguments)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
