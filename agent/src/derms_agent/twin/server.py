# SPDX-License-Identifier: Apache-2.0
"""The depot in real time: each bus of the network at its own address and port, with the timing of its line.

Its framing and its codec are its own (`frames`, `pdu`, `words`), so that a mistake of the agent's client is not
answered by the same mistake. Everything runs in the event loop's own callbacks, without a task for each connection.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TypeAlias

from derms_agent.model import Bus, Depot, Transport
from derms_agent.profiles.profile import Profile, Wire
from derms_agent.serial_line import TURNAROUND_S, character_s, silence_s
from derms_agent.twin import frames, pdu
from derms_agent.twin.faults import Fault, FaultKind
from derms_agent.twin.frames import Frame, NotModbus
from derms_agent.twin.rehearsal import Rehearsal
from derms_agent.twin.scenario import Scenario

TICK_S = 0.25
DEFAULT_BAUD_RATE = 19_200
QUEUE_LENGTH = 32
"""Requests that a Modbus gateway keeps waiting for its serial line; more are dropped, as gateways do."""

_BROKEN_FRAME_S = 0.5
_LEAST_PAUSE_S = 0.001
_BACKLOG = 1024

Address: TypeAlias = "tuple[str, int]"
Listen: TypeAlias = "Callable[[str, int], socket.socket]"


class CannotListen(OSError):
    """An address of the depot cannot be served from here."""


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises `CannotListen`, which names the address and what is the matter with it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        reason = {
            errno.EADDRNOTAVAIL: "this machine has no such address; give it one, or use --namespace",
            errno.EADDRINUSE: "something else listens there",
            errno.EACCES: "ports below 1024 take root, or the capability to bind them",
        }.get(error.errno or 0, str(error))
        raise CannotListen(error.errno, f"{host} port {port}: {reason}") from error
    made.setblocking(False)
    return made


@dataclass(slots=True, eq=False)
class _Job:
    """A request on its way over a serial line."""

    connection: _Connection
    frame: Frame


class _Connection(asyncio.Protocol):
    """One client's connection to a bus."""

    def __init__(self, bus: _BusServer) -> None:
        self._bus = bus
        self._buffer = bytearray()
        self._heard_s = 0.0
        self._dribbled_until_s = 0.0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a client in, unless the device has as many as it bears, or starts."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("a bus is served over TCP")
        if not self._bus.admits():
            transport.abort()
            return
        self.transport = transport
        self._heard_s = self._bus.loop.time()
        self._bus.connections.add(self)
        if self._bus.idle_close_s is not None:
            self._bus.loop.call_later(self._bus.idle_close_s, self._close_if_idle, self._bus.idle_close_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client; what it asked for on a serial line is still done."""
        del exc
        self.transport = None
        self._bus.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Take requests off the stream, in their order."""
        now_s = self._bus.loop.time()
        if self._bus.rtu and now_s - self._heard_s > _BROKEN_FRAME_S:
            self._buffer.clear()
        self._heard_s = now_s
        self._buffer += data
        try:
            while self.transport is not None and (frame := self._bus.take(self._buffer)) is not None:
                self._bus.take_request(self, frame)
        except NotModbus:
            self._buffer.clear()
            if not self._bus.rtu and self.transport is not None:
                self.transport.abort()

    def send(self, content: bytes) -> None:
        """Send what is left of a reply if its client is still there."""
        if self.transport is not None:
            self.transport.write(content)

    def dribble(self, content: bytes, pause_s: float) -> None:
        """Send a reply one byte at a time, behind one that still trickles."""
        loop = self._bus.loop
        at_s = max(loop.time(), self._dribbled_until_s)
        # Callbacks of one moment have no order, so that there must be a pause.
        pause_s = max(pause_s, _LEAST_PAUSE_S)
        for index in range(len(content)):
            loop.call_at(at_s, self.send, content[index : index + 1])
            at_s += pause_s
        self._dribbled_until_s = at_s

    def _close_if_idle(self, after_s: float) -> None:
        if self.transport is None:
            return
        left_s = self._heard_s + after_s - self._bus.loop.time()
        if left_s <= 0:
            self.transport.close()
        else:
            self._bus.loop.call_later(left_s, self._close_if_idle, after_s)


class _BusServer:
    """One bus: a device's own endpoint, or a Modbus gateway with a serial line behind it."""

    def __init__(
        self, bus: Bus, depot: Rehearsal, wires: list[Wire], loop: asyncio.AbstractEventLoop, latency_s: float
    ):
        self.bus = bus
        self.loop = loop
        self.rtu = bus.transport is Transport.RTU_OVER_TCP
        self.take = frames.take_rtu if self.rtu else frames.take_mbap
        self.connections: set[_Connection] = set()
        self.idle_close_s = min((w.idle_close_s for w in wires if w.idle_close_s is not None), default=None)
        self._most = min((w.max_connections for w in wires if w.max_connections is not None), default=None)
        self._depot = depot
        self._latency_s = latency_s
        self._baud_rate = bus.baud_rate if bus.baud_rate or not self.rtu else DEFAULT_BAUD_RATE
        self._queue: deque[_Job] = deque()
        self._busy = False

    def admits(self) -> bool:
        """Whether one more client may connect."""
        if self._most is not None and len(self.connections) >= self._most:
            return False
        return not self.is_starting()

    def is_starting(self) -> bool:
        """Whether what listens here is itself without power; a Modbus gateway stays up while its units start."""
        if self._baud_rate is not None:
            return False
        here = [unit_id for name, unit_id in self._depot.units if name == self.bus.name]
        return bool(here) and all(FaultKind.REBOOT in self._depot.faults_of(self.bus.name, unit_id) for unit_id in here)

    def drop(self) -> None:
        """Break off all connections."""
        for connection in list(self.connections):
            if connection.transport is not None:
                connection.transport.abort()

    def take_request(self, connection: _Connection, frame: Frame) -> None:
        """Answer a request, at once or through the line."""
        if self._baud_rate is None:
            answer = self._depot.answer(self.bus.name, frame.unit_id, frame.pdu)
            faults = self._depot.faults_of(self.bus.name, frame.unit_id)
            if answer is not None:
                self._after(self._latency_s + _slow_s(faults), connection, frame, answer, faults)
        elif len(self._queue) < QUEUE_LENGTH:
            self._queue.append(_Job(connection, frame))
            if not self._busy:
                self._next(self._baud_rate)

    def _after(
        self, delay_s: float, connection: _Connection, frame: Frame, answer: bytes, faults: Mapping[FaultKind, Fault]
    ) -> None:
        if delay_s > 0:
            self.loop.call_later(delay_s, self._deliver, connection, frame, answer, faults)
        else:
            self._deliver(connection, frame, answer, faults)

    def _next(self, baud_rate: int) -> None:
        """Put the next request on the line."""
        self._busy = bool(self._queue)
        if not self._busy:
            return
        job = self._queue.popleft()
        size = len(job.frame.pdu) + frames.RTU_OVERHEAD
        heard_s = self.loop.time() + size * character_s(baud_rate) + silence_s(baud_rate)
        self.loop.call_at(heard_s, self._heard, job, baud_rate, heard_s)

    def _heard(self, job: _Job, baud_rate: int, heard_s: float) -> None:
        """Let the unit execute the request, and the line carry its answer, or nothing until the gateway gives up."""
        name, frame = self.bus.name, job.frame
        answer = self._depot.answer(name, frame.unit_id, frame.pdu)
        faults = self._depot.faults_of(name, frame.unit_id)
        wait_s = TURNAROUND_S + self._latency_s + _slow_s(faults)
        if answer is None or wait_s > self.bus.gateway_timeout_s:
            self.loop.call_at(heard_s + self.bus.gateway_timeout_s, self._given_up, job, baud_rate)
            return
        size = len(answer) + frames.RTU_OVERHEAD
        done_s = heard_s + wait_s + size * character_s(baud_rate) + silence_s(baud_rate)
        self.loop.call_at(done_s, self._done, job, answer, faults, baud_rate)

    def _given_up(self, job: _Job, baud_rate: int) -> None:
        """Go on without an answer: a gateway that speaks Modbus/TCP says so, one that passes RTU through is silent."""
        if not self.rtu:
            refusal = pdu.exception_reply(job.frame.pdu[0], pdu.Code.GATEWAY_TARGET_SILENT)
            self._deliver(job.connection, job.frame, refusal, {})
        self._next(baud_rate)

    def _done(self, job: _Job, answer: bytes, faults: Mapping[FaultKind, Fault], baud_rate: int) -> None:
        self._deliver(job.connection, job.frame, answer, faults)
        self._next(baud_rate)

    def _deliver(self, connection: _Connection, frame: Frame, answer: bytes, faults: Mapping[FaultKind, Fault]) -> None:
        if FaultKind.DISCONNECT in faults:
            if connection.transport is not None:
                connection.transport.close()
            return
        unit_id = frame.unit_id + (FaultKind.WRONG_UNIT in faults)
        if frame.transaction_id is None:
            content = frames.rtu(unit_id, answer)
        else:
            content = frames.mbap(frame.transaction_id + (FaultKind.WRONG_TRANSACTION_ID in faults), unit_id, answer)
        if FaultKind.BYTE_DRIBBLE in faults:
            connection.dribble(content, faults[FaultKind.BYTE_DRIBBLE].delay_s)
        else:
            connection.send(content)


def _slow_s(faults: Mapping[FaultKind, Fault]) -> float:
    return faults[FaultKind.SLOW].delay_s if FaultKind.SLOW in faults else 0.0


class Twin(Rehearsal):
    """A depot in real time. `now_s` is that since `serve`; before it, time stands still, or is moved by `advance`.

    As an asynchronous context it closes what it serves at its end.
    """

    def __init__(
        self,
        depot: Depot,
        seed: int = 0,
        *,
        scenario: Scenario | None = None,
        profiles: Mapping[str, Profile] | None = None,
        ambient_c: float = 20.0,
    ) -> None:
        self._started_s: float | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._servers: list[asyncio.Server] = []
        self._buses: dict[str, _BusServer] = {}
        super().__init__(depot, seed, scenario=scenario, profiles=profiles, ambient_c=ambient_c)

    @property
    def now_s(self) -> float:
        """The time, in s from the start."""
        if self._started_s is None:
            return super().now_s
        return asyncio.get_running_loop().time() - self._started_s

    async def serve(
        self,
        bind: Callable[[str, int], Address] = lambda host, port: (host, port),
        *,
        latency_s: float = 0.0,
        listen: Listen = listen,
    ) -> dict[str, Address]:
        """Listen for every bus of the network, let time run, and return each bus's real address and port.

        `bind` turns a bus's declared address into the one to listen at; port 0 takes any. `latency_s` is how long every
        device takes to answer, on a serial line beyond the turnaround. Raises `CannotListen`, listening nowhere.
        """
        loop = asyncio.get_running_loop()
        addresses: dict[str, Address] = {}
        try:
            for name, bus in self.depot.buses.items():
                if bus.host is None or bus.transport is Transport.SERIAL:
                    continue
                made = listen(*bind(bus.host, bus.port))
                server = self._buses[name] = _BusServer(bus, self, self._wires(name), loop, latency_s)
                self._servers.append(await loop.create_server(partial(_Connection, server), sock=made))
                host, port = made.getsockname()[:2]
                addresses[name] = (host, port)
        except OSError:
            await self.close()
            raise
        self._started_s = loop.time() - self._moved_to_s
        self._catch_up()
        return addresses

    async def close(self) -> None:
        """Stop time, and listen no more."""
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        for server in self._servers:
            server.close()
        for bus in self._buses.values():
            bus.drop()
        for server in self._servers:
            await server.wait_closed()
        self._servers.clear()
        self._buses.clear()

    async def __aenter__(self) -> Twin:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def fault(self, on: str, fault: Fault) -> None:
        """Give a device or a bus a fault; what starts anew drops its connections. Raises ValueError."""
        super().fault(on, fault)
        for server in self._buses.values():
            if server.is_starting():
                server.drop()

    def _wires(self, bus: str) -> list[Wire]:
        return [self._profiles[device.profile].wire for device in self.depot.devices.values() if device.bus == bus]

    def _catch_up(self) -> None:
        """Move the depot on to now, and so again and again."""
        self.advance(self.now_s - self._moved_to_s)
        self._tick = asyncio.get_running_loop().call_later(TICK_S, self._catch_up)
