# SPDX-License-Identifier: Apache-2.0
"""One open link to a Modbus endpoint: what is sent over it, and whose reply came back.

This replaces pymodbus's client and transaction layer, and keeps its PDU classes and framers. That layer cannot be made
right from outside, by its source and by measurement (pymodbus 3.16.1):

- `TransactionManager.execute` sends a request again after each time-out, writes too: four times by default, and with
  `retries=0` it still neither fails the pending future when the peer closes nor notices until the time-out.
- Its future takes whatever the framer decoded last: over RTU a late reply is the next request's answer.
- It connects from `execute` and from its reconnecting task alike, so two connections may live, one past `close()`.
- One lock around a request keeps several from being in flight at once.

Why a late reply is never taken for another's:

- Modbus/TCP with `TransactionIds.STRICT` pairs by transaction id, and an id that went unanswered is not used again on
  the same link before its reply came after all; a reply with an id that is not in flight is dropped, and a peer that
  sends many of them is hung up on.
- RTU carries no id, nor does a gateway that blanks or counts its own. There one request is in flight at the most, and
  after it went unanswered (or anything came that is not its reply) the link is closed for good: a late reply goes to a
  dead socket. `bus.ModbusBus` opens the next link only when the gateway's own time-out is over as well, for some
  gateways send a late reply to whoever is connected then. What comes on a new link before anything was asked closes it.

What no client can tell: a reply that nobody asked for, of the same unit, function and length as the one in flight just
then, where no id tells them apart. The device would have to answer one request twice, in time for the next.

Why a write is sent at most once: `send` is called once for an exchange, and nothing here keeps a request's bytes after
it. What the kernel has not taken yet is thrown away when the link is closed.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, Protocol, TypeAlias, TypeVar

import anyio
from pymodbus.transport.serialtransport import create_serial_connection

from derms_agent.drivers.errors import BadReply, BusError, ConnectionLost
from derms_agent.drivers.modbus.frames import (
    MAX_MBAP_LENGTH,
    MBAP_FRAMER,
    MBAP_HEADER_BYTES,
    MIN_MBAP_LENGTH,
    RTU_FRAMER,
    Request,
    rtu_reply_bytes,
    rtu_values_of,
    values_of,
)
from derms_agent.model import Bus, Parity, TransactionIds, Transport

MAX_STRANGERS = 16
"""Replies in a row that nothing in flight asked for, before a peer is hung up on."""

MAX_UNANSWERED_IDS = 1000
"""Transaction ids of one link that may be set aside because a late reply might still bear them."""

_LAST_TRANSACTION_ID = 0xFFFF
_PARITY_LETTERS = {Parity.EVEN: "E", Parity.ODD: "O", Parity.NONE: "N"}

Outcome: TypeAlias = "tuple[int, ...] | BusError"


class Exchange(Protocol):
    """What is sent: the connection only looks at its request."""

    @property
    def request(self) -> Request:
        """The request."""
        ...


E = TypeVar("E", bound=Exchange)


class Connection(asyncio.Protocol, ABC, Generic[E]):
    """One link from its opening to its end; it is never opened again.

    `settled` is called once for each exchange that was sent and not forgotten, with its values or what went wrong.
    `ended` is called once, before the exchanges that the end leaves unanswered are settled.
    """

    def __init__(self, settled: Callable[[E, Outcome], None], ended: Callable[[], None]) -> None:
        self.closed = anyio.Event()
        self.answered = False
        """Whether a good reply has come."""
        self.heard = False
        """Whether anything has come since the owner last set this to False."""
        self.hung_up = False
        """Whether the owner closed it."""
        self.problem = ""
        """What ended the link, in words; empty while it stands."""
        self._settled = settled
        self._ended = ended
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._in_flight: dict[int, E] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport over."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 -- both kinds are; this tells the type checker
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail at once whatever waits for a reply: nobody will ever send it."""
        problem = "the peer closed the connection" if exc is None else f"the connection broke: {exc}"
        self._end(problem, ConnectionLost)
        self.closed.set()

    def send(self, exchange: E) -> None:
        """Send an exchange's request, once. What becomes of it is told to `settled`."""
        if self._transport is None:
            raise RuntimeError("the connection has ended")
        self._transport.write(self._frame(exchange))

    def close(self, why: str) -> None:
        """Hang up; nothing is sent any more. `closed` is set when the socket is gone."""
        self.hung_up = self.hung_up or not self.problem
        self._hang_up(why, ConnectionLost)

    @abstractmethod
    def forget(self, exchange: E) -> None:
        """Wait no longer for an exchange's reply. Where replies carry no id, close the connection afterwards."""

    @property
    def worn_out(self) -> bool:
        """Whether the owner should open a new link in place of this one."""
        return False

    @abstractmethod
    def _frame(self, exchange: E) -> bytes:
        """Remember an exchange as in flight, and return its bytes."""

    def _out_of_step(self, found: str) -> None:
        """Hang up because of bytes that make no sense here, so that nothing after them may be believed either."""
        self._hang_up(found, BadReply)

    def _hang_up(self, why: str, kind: type[BusError]) -> None:
        transport = self._transport
        if transport is not None:
            self._end(why, kind)
            self._abort(transport)

    def _abort(self, transport: asyncio.Transport) -> None:
        transport.abort()

    def _end(self, problem: str, kind: type[BusError]) -> None:
        if self.problem:
            return
        self.problem = problem
        self._transport = None
        self._buffer = b""
        unanswered = list(self._in_flight.values())
        self._in_flight.clear()
        self._ended()
        for exchange in unanswered:
            request = exchange.request
            self._settled(exchange, kind(f"{request}: {problem}", may_have_happened=request.writes))


class TcpConnection(Connection[E]):
    """Modbus/TCP: replies are paired by transaction id, so several requests may be in flight."""

    def __init__(
        self, settled: Callable[[E, Outcome], None], ended: Callable[[], None], transaction_ids: TransactionIds
    ) -> None:
        super().__init__(settled, ended)
        self._transaction_ids = transaction_ids
        self._last_id = 0
        self._unanswered_ids: set[int] = set()
        self._strangers = 0

    def forget(self, exchange: E) -> None:
        """Wait no longer for an exchange's reply; if it still comes, its id is a stranger's."""
        for transaction_id, other in self._in_flight.items():
            if other is exchange:
                del self._in_flight[transaction_id]
                self._unanswered_ids.add(transaction_id)
                return

    @property
    def worn_out(self) -> bool:
        """Whether so many requests went unanswered that a new link is due."""
        return len(self._unanswered_ids) >= MAX_UNANSWERED_IDS

    def _frame(self, exchange: E) -> bytes:
        request = exchange.request
        transaction_id = self._last_id % _LAST_TRANSACTION_ID + 1  # never 0: some gateways blank it to that
        while transaction_id in self._unanswered_ids or transaction_id in self._in_flight:
            transaction_id = transaction_id % _LAST_TRANSACTION_ID + 1
        self._last_id = transaction_id
        self._in_flight[transaction_id] = exchange
        return MBAP_FRAMER.encode(request.pdu, request.unit_id, transaction_id)

    def data_received(self, data: bytes) -> None:
        """Take frames out of the stream; hang up on the first header that is none."""
        self.heard = True
        buffer = self._buffer + data if self._buffer else data
        while len(buffer) > MBAP_HEADER_BYTES:
            length = buffer[4] << 8 | buffer[5]
            if buffer[2] or buffer[3] or not MIN_MBAP_LENGTH <= length <= MAX_MBAP_LENGTH:
                self._out_of_step(f"found {buffer[:MBAP_HEADER_BYTES].hex()}, expected a Modbus/TCP header")
                return
            used, unit_id, transaction_id, pdu = MBAP_FRAMER.decode(buffer)
            if not used:
                break
            buffer = buffer[used:]
            exchange = self._take(transaction_id)
            if exchange is not None and buffer and self._transaction_ids is not TransactionIds.STRICT:
                # Settling it sends the next request, and what follows here would be taken for that one's reply.
                self._in_flight[transaction_id] = exchange
                self._out_of_step(f"{len(buffer)} bytes came after the reply")
                return
            if exchange is not None:
                self._strangers = 0
                self._reply(exchange, unit_id, pdu)
            elif not self._stranger(transaction_id):
                return
            if self.problem:  # whoever was told of the reply has hung up
                return
        self._buffer = buffer

    def _take(self, transaction_id: int) -> E | None:
        exchange = self._in_flight.pop(transaction_id, None)
        if exchange is None and self._in_flight:
            lenient = self._transaction_ids
            if lenient is TransactionIds.IGNORE or (lenient is TransactionIds.ZERO and not transaction_id):
                exchange = self._in_flight.popitem()[1]
        return exchange

    def _reply(self, exchange: E, unit_id: int, pdu: bytes) -> None:
        try:
            values = values_of(exchange.request, unit_id, pdu)
        except BusError as error:
            self._settled(exchange, error)
            return
        self.answered = True
        self._settled(exchange, values)

    def _stranger(self, transaction_id: int) -> bool:
        """Drop a reply that nothing in flight asked for; return whether the connection still stands."""
        self._strangers += 1
        self._unanswered_ids.discard(transaction_id)
        if self._transaction_ids is not TransactionIds.STRICT:
            self._out_of_step(f"a reply with transaction id {transaction_id} came though nothing was asked")
        elif self._strangers > MAX_STRANGERS:
            self._out_of_step(f"{self._strangers} replies in a row had another transaction id")
        return not self.problem


class RtuConnection(Connection[E]):
    """RTU frames over TCP or a serial line: one request in flight, and the next bytes are its reply or the end."""

    def forget(self, exchange: E) -> None:
        """Wait no longer for an exchange's reply. The connection must be closed, for it may still come."""
        if self._in_flight.get(0) is exchange:
            self._in_flight.clear()

    def _frame(self, exchange: E) -> bytes:
        if self._in_flight:
            raise RuntimeError("RTU carries one request at a time")
        self._in_flight[0] = exchange
        return RTU_FRAMER.encode(exchange.request.pdu, exchange.request.unit_id, 0)

    def data_received(self, data: bytes) -> None:
        """Gather the reply; hang up on whatever cannot be it."""
        self.heard = True
        if self.problem:
            return  # a serial port may still deliver what it had read
        exchange = self._in_flight.get(0)
        if exchange is None:
            self._out_of_step(f"{len(data)} bytes came though nothing was asked")
            return
        frame = self._buffer = self._buffer + data
        try:
            expected = rtu_reply_bytes(exchange.request, frame)
            if not expected or len(frame) < expected:
                return
            if len(frame) > expected:
                self._out_of_step(f"{len(frame) - expected} bytes too many came")
                return
            values = rtu_values_of(exchange.request, frame)
        except BadReply as error:
            self._in_flight.clear()
            self._out_of_step(str(error))
            self._settled(exchange, error)
            return
        except BusError as error:
            self._take(exchange, error)
            return
        self.answered = True
        self._take(exchange, values)

    def _take(self, exchange: E, outcome: Outcome) -> None:
        self._buffer = b""
        self._in_flight.clear()
        self._settled(exchange, outcome)


class SerialConnection(RtuConnection[E]):
    """RTU frames on a serial adapter."""

    def __init__(self, settled: Callable[[E, Outcome], None], ended: Callable[[], None]) -> None:
        super().__init__(settled, ended)
        self.opened = anyio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport over."""
        super().connection_made(transport)
        self.opened.set()

    def _abort(self, transport: asyncio.Transport) -> None:
        transport.abort()
        self.closed.set()  # pymodbus's serial transport closes at once, and tells nobody


async def open_connection(bus: Bus, settled: Callable[[E, Outcome], None], ended: Callable[[], None]) -> Connection[E]:
    """Open the link to a bus. The caller bounds the time; when it is cancelled, no socket stays behind.

    :raises OSError: nothing there takes the connection
    :raises ValueError: the bus lacks its host, path or baud rate
    """
    loop = asyncio.get_running_loop()
    if bus.transport is Transport.SERIAL:
        return await _open_serial(bus, SerialConnection(settled, ended))
    if bus.host is None:
        raise ValueError(f"bus {bus.name}: found no host, expected one for {bus.transport.value}")

    def new() -> Connection[E]:
        if bus.transport is Transport.TCP:
            return TcpConnection(settled, ended, bus.transaction_ids)
        return RtuConnection(settled, ended)

    _, connection = await loop.create_connection(new, bus.host, bus.port)
    return connection


async def _open_serial(bus: Bus, connection: SerialConnection[E]) -> SerialConnection[E]:
    if bus.path is None or bus.baud_rate is None:
        raise ValueError(f"bus {bus.name}: found no path or no baud rate, expected both for serial")
    transport, _ = await create_serial_connection(
        asyncio.get_running_loop(),
        lambda: connection,
        bus.path,
        baudrate=bus.baud_rate,
        bytesize=8,
        parity=_PARITY_LETTERS[bus.parity],
        stopbits=1,
    )
    try:
        await connection.opened.wait()
    except BaseException:
        transport.abort()
        raise
    return connection
