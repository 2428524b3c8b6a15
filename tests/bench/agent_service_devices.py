# SPDX-License-Identifier: GPL-3.0-or-later
"""The chargers of the agent.service benchmarks, a process of its own: python -m tests.bench.agent_service_devices JSON.

Each is a Heidelberg Energy Control with a vehicle that takes what it is let. A place on the network is an address of
127.80.0.0/16, all at one port; behind it is one charger (Modbus/TCP, answers after a fixed time) or a serial line of
several (RTU over TCP, answers when the line would have carried request and reply). Prints its port, then answers a line
of commands on its input each with a line of JSON. Times are CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from dataclasses import astuple, dataclass, field
from typing import Any

from derms_agent.serial_line import silence_s, transaction_s
from pymodbus.framer import FramerRTU

NETWORK = "127.80"
LIMIT, FULL, LEAST = 261, 160, 60  # its register, and in 0.1 A what the vehicle takes and needs
READ_INPUT, WRITE_ONE, WRITE_SEVERAL = 4, 6, 16
TIMER_ERROR_S = 0.0015
_CHARGING = 7


def address(place: int) -> str:
    """Return the address of a place, counted from 0."""
    return f"{NETWORK}.{place // 250}.{place % 250 + 1}"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: when it came and was answered, whose, and its PDU's function, first register and count."""

    came_s: float
    answered_s: float
    number: int
    function: int
    first: int
    count: int


@dataclass(slots=True)
class Charger:
    """One charger's registers. It draws what its limit lets it; below 6 A nothing."""

    number: int
    silent: bool = False
    holding: dict[int, int] = field(
        default_factory=lambda: {257: 30_000, 258: 4, 259: 1, LIMIT: FULL, 262: 60},
    )

    def registers(self, function: int, first: int, count: int) -> list[int]:
        """Return what a read finds."""
        if function != READ_INPUT:
            return [self.holding.get(address, 0) for address in range(first, first + count)]
        drawn = self.holding[LIMIT] if self.holding[LIMIT] >= LEAST else 0
        shown = {4: 0x108, 5: _CHARGING, 6: drawn, 7: drawn, 8: drawn, 9: 300, 10: 230, 11: 230, 12: 230, 13: 1}
        shown |= {14: drawn * 69, 18: int(time.monotonic()) % 65536, 100: 16, 101: 6}
        return [shown.get(address, 0) for address in range(first, first + count)]


class Depot:
    """All chargers, and every write of a limit that one of them acknowledged: when, which, before, after.

    Where `noted`, every request as well.
    """

    def __init__(
        self, places: int, units: int, delay_s: float, baud_rate: int | None, more: dict[int, int], *, noted: bool
    ) -> None:
        self.chargers = [Charger(number) for number in range(places * units)]
        for charger in self.chargers:
            charger.holding |= more
        self.units, self.delay_s, self.baud_rate = units, delay_s, baud_rate
        self.written: list[tuple[float, int, int, int]] = []
        self.asked: list[Asked] | None = [] if noted else None

    def at(self, host: str, unit_id: int) -> Charger:
        """Return the charger at an address and unit id."""
        _, _, high, low = map(int, host.split("."))
        return self.chargers[(high * 250 + low - 1) * self.units + unit_id - 1]

    def executed(self, charger: Charger, request: bytes) -> bytes:
        """Execute a request (from its function on) and return the reply, the same."""
        function, first, count = request[0], int.from_bytes(request[1:3], "big"), int.from_bytes(request[3:5], "big")
        if function in {WRITE_ONE, WRITE_SEVERAL}:
            words = [count]
            if function == WRITE_SEVERAL:
                words = [int.from_bytes(request[at : at + 2], "big") for at in range(6, len(request), 2)]
            if first == LIMIT:
                self.written.append((time.monotonic(), charger.number, charger.holding[LIMIT], words[0]))
            charger.holding.update(zip(range(first, first + len(words)), words, strict=True))
            return request[:5]
        body = b"".join(word.to_bytes(2, "big") for word in charger.registers(function, first, count))
        return bytes([function, len(body)]) + body

    def obey(self, command: dict[str, Any]) -> object:
        """Do what the benchmark asks: fall silent, or tell of limits held, or of the writes since a time."""
        if command["ask"] == "silence":
            silent = set(command["chargers"])
            for charger in self.chargers:
                charger.silent = charger.number in silent
            return len(silent)
        if command["ask"] == "held":
            return [charger.holding[LIMIT] for charger in self.chargers]
        if command["ask"] == "asked":
            assert self.asked is not None
            return [astuple(one) for one in self.asked if one.came_s >= command["since_s"]]
        if command["ask"] == "drift":
            self.chargers[command["charger"]].holding[command["address"]] = command["word"]
            return None
        return [one for one in self.written if one[0] >= command["since_s"]]


class Place(asyncio.Protocol):
    """One connection: to a charger, or to the line behind a gateway. A client has one request in flight on it."""

    def __init__(self, depot: Depot) -> None:
        self._depot = depot
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._host = ""
        self._free_at_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport over."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._host = transport.get_extra_info("sockname")[0]
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        """Answer later. Each request is one segment here."""
        depot, came_s = self._depot, time.monotonic()
        if depot.baud_rate is None:
            charger = depot.at(self._host, data[6])
            self._loop.call_later(depot.delay_s, self._answer, charger, data[7:], data[:4], came_s, 0.0)
            return
        charger = depot.at(self._host, data[0])
        function, count = data[1], int.from_bytes(data[4:6], "big")
        reply_bytes = 5 + 2 * count if function not in {WRITE_ONE, WRITE_SEVERAL} else 8
        # The reply's last character comes before the silence that ends it, and the line is free only after that.
        begins_s = max(came_s, self._free_at_s)
        self._free_at_s = begins_s + transaction_s(depot.baud_rate, len(data), reply_bytes)
        due_s = self._free_at_s - silence_s(depot.baud_rate)
        wait_s = due_s - came_s - TIMER_ERROR_S
        self._loop.call_later(wait_s, self._answer, charger, data[1:-2], data[:1], came_s, due_s)

    def _answer(self, charger: Charger, request: bytes, head: bytes, came_s: float, due_s: float) -> None:
        """Execute and answer, on time: asyncio's timers are late, which the replies of a line would add up."""
        if charger.silent or self._transport is None:
            return
        while time.monotonic() < due_s:
            pass
        body = self._depot.executed(charger, request)
        if self._depot.baud_rate is None:
            self._transport.write(head + (len(body) + 1).to_bytes(2, "big") + b"\x01" + body)
        else:
            frame = head + body
            self._transport.write(frame + FramerRTU.compute_CRC(frame).to_bytes(2, "big"))
        if self._depot.asked is not None:
            first, count = int.from_bytes(request[1:3], "big"), int.from_bytes(request[3:5], "big")
            self._depot.asked.append(Asked(came_s, time.monotonic(), charger.number, request[0], first, count))


async def main(
    places: int,
    units: int = 1,
    delay_s: float = 0.02,
    baud_rate: int | None = None,
    *,
    holding: dict[str, int] | None = None,
    noted: bool = False,
) -> None:
    """Serve until the input is closed; `holding` is what each holds besides what it is delivered with."""
    more = {int(address): word for address, word in (holding or {}).items()}
    depot = Depot(places, units, delay_s, baud_rate, more, noted=noted)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Place(depot), "0.0.0.0", 0, backlog=2048)  # noqa: S104 -- all of 127/8
    print(server.sockets[0].getsockname()[1], flush=True)
    commands = asyncio.StreamReader(limit=2**20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        print(json.dumps(depot.obey(json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(main(**json.loads(sys.argv[1])))
