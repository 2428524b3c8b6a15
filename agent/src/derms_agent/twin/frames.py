# SPDX-License-Identifier: Apache-2.0
"""What surrounds a PDU on the wire: the MBAP header of Modbus/TCP, and address and CRC of Modbus RTU.

MODBUS Messaging on TCP/IP Implementation Guide V1.0b, clause 3.1.3; MODBUS over Serial Line V1.02, clauses 2.5.1 and
6.2.2.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_MBAP = struct.Struct(">HHHB")
_LEAST_LENGTH, _MOST_LENGTH = 2, 254
_CRC_START, _CRC_POLYNOMIAL = 0xFFFF, 0xA001
_RTU_FIXED = 8  # address, function, two words, CRC
_RTU_COUNTED = {15: 6, 16: 6, 23: 10}  # where the byte count stands in requests of variable length
_RTU_MASK_WRITE, _RTU_MASK_WRITE_SIZE = 22, 10
_FIXED_FUNCTIONS = range(1, 7)
RTU_OVERHEAD = 3  # address and CRC


class Frame(NamedTuple):
    """One request: `transaction_id` is None where the framing has none."""

    transaction_id: int | None
    unit_id: int
    pdu: bytes


class NotModbus(Exception):
    """The byte stream can no longer be told apart into frames."""


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (_CRC_POLYNOMIAL if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


_CRC = _crc_table()


def crc16(content: bytes) -> int:
    """Return the CRC of an RTU frame; it is sent low byte first."""
    crc = _CRC_START
    for byte in content:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
    return crc


def mbap(transaction_id: int, unit_id: int, pdu: bytes) -> bytes:
    """Return a Modbus/TCP frame."""
    return _MBAP.pack(transaction_id & 0xFFFF, 0, len(pdu) + 1, unit_id & 0xFF) + pdu


def rtu(unit_id: int, pdu: bytes) -> bytes:
    """Return an RTU frame."""
    content = bytes((unit_id & 0xFF,)) + pdu
    return content + struct.pack("<H", crc16(content))


def take_mbap(buffer: bytearray) -> Frame | None:
    """Take the first whole frame off a buffer; None: it is not all there yet. Raises `NotModbus`."""
    if len(buffer) < _MBAP.size:
        return None
    transaction_id, protocol, length, unit_id = _MBAP.unpack_from(buffer)
    if protocol != 0 or not _LEAST_LENGTH <= length <= _MOST_LENGTH:
        raise NotModbus(f"protocol {protocol}, length {length}")
    end = _MBAP.size - 1 + length
    if len(buffer) < end:
        return None
    pdu = bytes(buffer[_MBAP.size : end])
    del buffer[:end]
    return Frame(transaction_id, unit_id, pdu)


def take_rtu(buffer: bytearray) -> Frame | None:
    """Take the first whole request off a buffer; None: it is not all there yet.

    Raises `NotModbus` for a wrong CRC or a function whose length is not known: a gateway drops what it has and waits
    for silence.
    """
    size = _rtu_size(buffer)
    if size is None or len(buffer) < size:
        return None
    content, check = bytes(buffer[: size - 2]), buffer[size - 2 : size]
    if crc16(content) != int.from_bytes(check, "little"):
        raise NotModbus("wrong CRC")
    del buffer[:size]
    return Frame(None, content[0], content[1:])


def _rtu_size(buffer: bytearray) -> int | None:
    if len(buffer) < RTU_OVERHEAD - 1:
        return None
    function = buffer[1]
    if function in _FIXED_FUNCTIONS:
        return _RTU_FIXED
    if function == _RTU_MASK_WRITE:
        return _RTU_MASK_WRITE_SIZE
    count_at = _RTU_COUNTED.get(function)
    if count_at is None:
        raise NotModbus(f"function {function}")
    return None if len(buffer) <= count_at else count_at + 1 + buffer[count_at] + 2
