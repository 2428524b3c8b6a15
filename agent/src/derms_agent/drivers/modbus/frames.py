# SPDX-License-Identifier: Apache-2.0
"""Requests and replies of Modbus, and the strict reading of the latter.

Pure: bytes in, words out. pymodbus's PDU classes and framers put requests into bytes and take replies apart; what they
accept in a reply is checked here first, because they do not: pymodbus 3.16.1 takes five registers for ten, function 4
for 3, and never compares a write's echo. After MODBUS Application Protocol V1.1b3, clauses 4.1 and 6, and MODBUS
Messaging on TCP/IP V1.0b, clause 3.1.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from pymodbus.framer import FramerRTU, FramerSocket
from pymodbus.pdu import DecodePDU, ModbusPDU
from pymodbus.pdu.bit_message import (
    ReadCoilsRequest,
    ReadCoilsResponse,
    ReadDiscreteInputsRequest,
    WriteMultipleCoilsRequest,
    WriteSingleCoilRequest,
)
from pymodbus.pdu.register_message import (
    ReadHoldingRegistersRequest,
    ReadHoldingRegistersResponse,
    ReadInputRegistersRequest,
    WriteMultipleRegistersRequest,
    WriteSingleRegisterRequest,
)

from derms_agent.drivers.errors import BadReply, InvalidRequest, NoAnswer, Refused
from derms_agent.profiles.point import Table

MAX_READ_REGISTERS = 125
MAX_WRITE_REGISTERS = 123
MAX_READ_BITS = 2000
MAX_WRITE_BITS = 1968
ADDRESSES = 0x10000
HIGHEST_UNIT = 255

MBAP_HEADER_BYTES = 7
MIN_MBAP_LENGTH = 3  # unit, function and one byte more: the shortest reply, an exception
MAX_MBAP_LENGTH = 254
EXCEPTION = 0x80
EXCEPTION_PDU_BYTES = 2
READ_REPLY_HEAD_BYTES = 2  # function and byte count, before the values
RTU_HEAD_BYTES = 2  # unit and function, which say whose reply it is
RTU_FRAMING_BYTES = 3  # unit and checksum, around a PDU

FUNCTION_NAMES = {
    1: "read coils",
    2: "read discrete inputs",
    3: "read holding registers",
    4: "read input registers",
    5: "write single coil",
    6: "write single register",
    15: "write multiple coils",
    16: "write multiple registers",
}
EXCEPTION_NAMES = {
    1: "illegal function",
    2: "illegal data address",
    3: "illegal data value",
    4: "server device failure",
    5: "acknowledge",
    6: "server device busy",
    8: "memory parity error",
    10: "gateway path unavailable",
    11: "gateway target device failed to respond",
}
_TARGET_FAILED = 11
# The device began, or says that it is still at it: a write may have been carried out.
_MAY_HAVE_HAPPENED = frozenset({4, 5})
_BIT_FUNCTIONS = frozenset({1, 2})
_READS: dict[Table, tuple[type[ModbusPDU], int]] = {
    Table.COIL: (ReadCoilsRequest, MAX_READ_BITS),
    Table.DISCRETE: (ReadDiscreteInputsRequest, MAX_READ_BITS),
    Table.HOLDING: (ReadHoldingRegistersRequest, MAX_READ_REGISTERS),
    Table.INPUT: (ReadInputRegistersRequest, MAX_READ_REGISTERS),
}
_SINGLE_WRITE = {Table.COIL: 5, Table.HOLDING: 6}
_MULTIPLE_WRITE = {Table.COIL: 15, Table.HOLDING: 16}

MBAP_FRAMER = FramerSocket(DecodePDU(False))
RTU_FRAMER = FramerRTU(DecodePDU(False))


@dataclass(frozen=True, slots=True)
class Request:
    """One request, ready to be framed, and what its good reply looks like.

    `pdu` begins with the function code. `reply_bytes` is the length of a good reply's PDU. `echo` is the whole good
    reply of a write, and empty for a read.
    """

    unit_id: int
    function: int
    address: int
    count: int
    pdu: bytes
    reply_bytes: int
    echo: bytes = b""

    @property
    def writes(self) -> bool:
        """Whether the request changes something in the device."""
        return bool(self.echo)

    def __str__(self) -> str:
        """Say in words what is asked of whom."""
        name = FUNCTION_NAMES[self.function]
        return f"unit {self.unit_id}, {name} {self.address} to {self.address + self.count - 1}"


@lru_cache(maxsize=4096)  # a poll asks the same again and again
def read_request(unit_id: int, table: Table, address: int, count: int) -> Request:
    """Return the request that reads `count` registers or bits from a PDU address on.

    :raises InvalidRequest: more than 125 registers or 2,000 bits, or outside the table
    """
    pdu_class, most = _READS[table]
    _check_range(unit_id, address, count, most, f"read from {table.value}")
    pdu = pdu_class(address=address, count=count)
    function = pdu_class.function_code
    body_bytes = (count + 7) // 8 if function in _BIT_FUNCTIONS else 2 * count
    return Request(
        unit_id, function, address, count, bytes((function,)) + pdu.encode(), READ_REPLY_HEAD_BYTES + body_bytes
    )


def write_request(
    unit_id: int, table: Table, address: int, values: Sequence[int], function: int | None = None
) -> Request:
    """Return the request that writes registers, or coils (0 or 1), from a PDU address on.

    `function` forces a function code; None takes 6 or 5 for one value and 16 or 15 for more.

    :raises InvalidRequest: more than 123 registers or 1,968 coils, outside the table, a value that does not fit, a
        table that cannot be written, or a function that does not write it
    """
    return _write_request(unit_id, table, address, tuple(values), function)


@lru_cache(maxsize=4096)  # a shed tells many units the same
def _write_request(unit_id: int, table: Table, address: int, values: tuple[int, ...], function: int | None) -> Request:
    if table not in _SINGLE_WRITE:
        raise InvalidRequest(f"found a write to {table.value}, expected holding or coil")
    most, top = (MAX_WRITE_BITS, 1) if table is Table.COIL else (MAX_WRITE_REGISTERS, 0xFFFF)
    _check_range(unit_id, address, len(values), most, f"write to {table.value}")
    for value in values:
        if not 0 <= value <= top:
            raise InvalidRequest(f"found the value {value} to write to {table.value}, expected 0 to {top}")
    single, multiple = _SINGLE_WRITE[table], _MULTIPLE_WRITE[table]
    if function is None:
        function = single if len(values) == 1 else multiple
    if function == single and len(values) != 1:
        raise InvalidRequest(f"found {len(values)} values for function {single}, expected one")
    if function not in {single, multiple}:
        raise InvalidRequest(f"found function {function} for {table.value}, expected {single} or {multiple}")
    pdu = bytes((function,)) + _write_pdu(function, address, values).encode()
    # The reply to 5 and 6 repeats the request, that to 15 and 16 its address and quantity: five bytes each.
    return Request(unit_id, function, address, len(values), pdu, 5, pdu[:5])


def _write_pdu(function: int, address: int, values: Sequence[int]) -> ModbusPDU:
    if function == WriteSingleRegisterRequest.function_code:
        return WriteSingleRegisterRequest(address=address, registers=list(values))
    if function == WriteMultipleRegistersRequest.function_code:
        return WriteMultipleRegistersRequest(address=address, registers=list(values))
    bits = [bool(value) for value in values]
    if function == WriteSingleCoilRequest.function_code:
        return WriteSingleCoilRequest(address=address, bits=bits)
    return WriteMultipleCoilsRequest(address=address, bits=bits)


def _check_range(unit_id: int, address: int, count: int, most: int, what: str) -> None:
    if not 0 <= unit_id <= HIGHEST_UNIT:
        raise InvalidRequest(f"found unit {unit_id}, expected 0 to {HIGHEST_UNIT}")
    if not 1 <= count <= most:
        raise InvalidRequest(f"found {count} values to {what}, expected 1 to {most} in one request")
    if not 0 <= address <= ADDRESSES - count:
        raise InvalidRequest(f"found address {address} for {count} values, expected 0 to {ADDRESSES - count}")


def values_of(request: Request, unit_id: int, pdu: bytes) -> tuple[int, ...]:
    """Return the values that a reply carries: registers, bits as 0 and 1, or none for a write.

    `pdu` has at least two bytes.

    :raises Refused: the device answered with an exception
    :raises NoAnswer: a gateway says that the unit did not answer it (exception 11)
    :raises BadReply: unit, function, length, byte count, or the echo of a write is not what was asked for
    """
    if unit_id != request.unit_id:
        raise _bad(request, f"the reply is unit {unit_id}’s")
    if pdu[0] != request.function:
        if pdu[0] == request.function | EXCEPTION and len(pdu) == EXCEPTION_PDU_BYTES:
            raise _exception(request, pdu[1])
        raise _bad(request, f"the reply has function {pdu[0]} and {len(pdu)} bytes")
    if request.echo:
        if pdu != request.echo:
            raise _bad(request, f"the echo is {pdu.hex()}, expected {request.echo.hex()}")
        return ()
    values_bytes = request.reply_bytes - READ_REPLY_HEAD_BYTES
    if len(pdu) != request.reply_bytes or pdu[1] != values_bytes:
        found = len(pdu) - READ_REPLY_HEAD_BYTES
        raise _bad(request, f"the reply has {found} bytes of values and says {pdu[1]}, expected {values_bytes}")
    if request.function in _BIT_FUNCTIONS:
        bits = ReadCoilsResponse()
        bits.decode(pdu[1:])
        return tuple(int(bit) for bit in bits.bits[: request.count])
    registers = ReadHoldingRegistersResponse()
    registers.decode(pdu[1:])
    return tuple(registers.registers)


def _bad(request: Request, found: str) -> BadReply:
    return BadReply(f"{request}: {found}", may_have_happened=request.writes)


def _exception(request: Request, code: int) -> Refused | NoAnswer:
    said = f"{request}: exception {code}, {EXCEPTION_NAMES.get(code, 'not defined by the standard')}"
    if code == _TARGET_FAILED:
        return NoAnswer(said, may_have_happened=request.writes)
    return Refused(said, code, may_have_happened=request.writes and code in _MAY_HAVE_HAPPENED)


def rtu_reply_bytes(request: Request, begun: bytes) -> int:
    """Return how long the frame is that has begun to arrive, checksum included; 0 while it cannot be told yet.

    A frame that cannot be the reply is refused by its first bytes, so that nobody waits for a length that it made up.

    :raises BadReply: it is no reply to this request
    """
    if begun[0] != request.unit_id:
        raise _bad(request, f"the reply is unit {begun[0]}’s")
    if len(begun) < RTU_HEAD_BYTES:
        return 0
    if begun[1] == request.function | EXCEPTION:
        return EXCEPTION_PDU_BYTES + RTU_FRAMING_BYTES
    if begun[1] != request.function:
        raise _bad(request, f"the reply has function {begun[1]}")
    values_bytes = request.reply_bytes - READ_REPLY_HEAD_BYTES
    if len(begun) > RTU_HEAD_BYTES and not request.echo and begun[RTU_HEAD_BYTES] != values_bytes:
        raise _bad(request, f"the reply says {begun[RTU_HEAD_BYTES]} bytes of values, expected {values_bytes}")
    return request.reply_bytes + RTU_FRAMING_BYTES


def rtu_values_of(request: Request, frame: bytes) -> tuple[int, ...]:
    """Return the values that a whole RTU frame carries.

    :raises BusError: as in `values_of`; `BadReply` also for a wrong checksum
    """
    _, unit_id, _, pdu = RTU_FRAMER.decode(frame)
    # pymodbus hunts for a frame anywhere in what it gets; only one that fills it from end to end is taken.
    if len(pdu) != len(frame) - RTU_FRAMING_BYTES:
        raise _bad(request, "the reply’s checksum is wrong")
    return values_of(request, unit_id, pdu)
