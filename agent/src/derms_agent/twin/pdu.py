# SPDX-License-Identifier: Apache-2.0
"""Modbus requests as a device sees them: taken apart, answered, refused (MODBUS Application Protocol V1.1b3).

Independent of the agent's own client code on purpose: two readings of one specification check each other.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from derms_agent.profiles.point import BIT_TABLES, Table

READ_TABLES = {1: Table.COIL, 2: Table.DISCRETE, 3: Table.HOLDING, 4: Table.INPUT}

_WRITE_COIL, _WRITE_REGISTER, _WRITE_COILS, _WRITE_REGISTERS = 5, 6, 15, 16
_MOST_BITS_READ, _MOST_WORDS_READ = 2000, 125
_MOST_BITS_WRITTEN, _MOST_WORDS_WRITTEN = 1968, 123
_COIL_VALUES = {0x0000: 0, 0xFF00: 1}
_SHORT_REQUEST, _LONG_HEADER = 5, 6
_ADDRESSES = 0x10000


class Code(IntEnum):
    """Exception codes (clause 7) that the twin's devices give."""

    ILLEGAL_FUNCTION = 1
    ILLEGAL_ADDRESS = 2
    ILLEGAL_VALUE = 3
    DEVICE_FAILURE = 4
    GATEWAY_TARGET_SILENT = 0x0B


class Refusal(Exception):
    """A request is answered with an exception code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"Modbus exception {code}")
        self.code = code


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """`count` registers, or bits, from a PDU address on."""

    function: int
    table: Table
    address: int
    count: int


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """Registers, or bits, to be written from a PDU address on."""

    function: int
    table: Table
    address: int
    values: tuple[int, ...]


def parse(pdu: bytes) -> ReadRequest | WriteRequest:
    """Take a request apart, in the order of the specification's state diagrams: function, quantity, address.

    Raises `Refusal`.
    """
    function = pdu[0]
    if function in READ_TABLES:
        return _read_request(function, pdu)
    if function in (_WRITE_COIL, _WRITE_REGISTER):
        return _single_write(function, pdu)
    if function in (_WRITE_COILS, _WRITE_REGISTERS):
        return _multiple_write(function, pdu)
    raise Refusal(Code.ILLEGAL_FUNCTION)


def _read_request(function: int, pdu: bytes) -> ReadRequest:
    if len(pdu) != _SHORT_REQUEST:
        raise Refusal(Code.ILLEGAL_VALUE)
    address, count = struct.unpack(">HH", pdu[1:])
    table = READ_TABLES[function]
    if not 1 <= count <= (_MOST_BITS_READ if table in BIT_TABLES else _MOST_WORDS_READ):
        raise Refusal(Code.ILLEGAL_VALUE)
    if address + count > _ADDRESSES:
        raise Refusal(Code.ILLEGAL_ADDRESS)
    return ReadRequest(function, table, address, count)


def _single_write(function: int, pdu: bytes) -> WriteRequest:
    if len(pdu) != _SHORT_REQUEST:
        raise Refusal(Code.ILLEGAL_VALUE)
    address, value = struct.unpack(">HH", pdu[1:])
    if function == _WRITE_REGISTER:
        return WriteRequest(function, Table.HOLDING, address, (value,))
    if value not in _COIL_VALUES:
        raise Refusal(Code.ILLEGAL_VALUE)
    return WriteRequest(function, Table.COIL, address, (_COIL_VALUES[value],))


def _multiple_write(function: int, pdu: bytes) -> WriteRequest:
    if len(pdu) < _LONG_HEADER:
        raise Refusal(Code.ILLEGAL_VALUE)
    address, count, size = struct.unpack(">HHB", pdu[1:_LONG_HEADER])
    content = pdu[_LONG_HEADER:]
    bits = function == _WRITE_COILS
    wanted = (count + 7) // 8 if bits else 2 * count
    most = _MOST_BITS_WRITTEN if bits else _MOST_WORDS_WRITTEN
    if not 1 <= count <= most or size != wanted or len(content) != wanted:
        raise Refusal(Code.ILLEGAL_VALUE)
    if address + count > _ADDRESSES:
        raise Refusal(Code.ILLEGAL_ADDRESS)
    if not bits:
        return WriteRequest(function, Table.HOLDING, address, struct.unpack(f">{count}H", content))
    values = tuple(content[i // 8] >> i % 8 & 1 for i in range(count))
    return WriteRequest(function, Table.COIL, address, values)


def read_reply(request: ReadRequest, values: Sequence[int]) -> bytes:
    """Return the reply that carries these registers or bits."""
    if request.table in BIT_TABLES:
        packed = bytearray((len(values) + 7) // 8)
        for index, bit in enumerate(values):
            packed[index // 8] |= bit << index % 8
        return bytes((request.function, len(packed))) + bytes(packed)
    return struct.pack(f">BB{len(values)}H", request.function, 2 * len(values), *values)


def write_reply(pdu: bytes) -> bytes:
    """Return the reply to an executed write: function, address, and the value or quantity."""
    return pdu[:_SHORT_REQUEST]


def exception_reply(function: int, code: int) -> bytes:
    """Return a refusal."""
    return bytes((function | 0x80, code))
