# SPDX-License-Identifier: Apache-2.0
"""Values into registers and back, for the twin only: written on `struct` so that it shares no fault with the agent."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from derms_agent.model import Value
from derms_agent.profiles.point import BIT_TABLES, Order, Point, PointType

_FLOAT = {PointType.F32: ">f", PointType.F64: ">d"}
_SIGNED = {PointType.I16, PointType.I32, PointType.I64}


def _wire_order(words: Sequence[int], point: Point) -> tuple[int, ...]:
    """Swap words and bytes between big-endian and the point's own order; it is its own inverse."""
    if point.byte_order is Order.LITTLE:
        words = [(word >> 8) | (word << 8 & 0xFF00) for word in words]
    if point.word_order is Order.LITTLE and point.type is not PointType.STRING:
        words = words[::-1]
    return tuple(words)


def _to_bytes(point: Point, value: Value) -> bytes:
    size = 2 * point.length
    if point.type is PointType.STRING:
        return str(value).encode("utf-8")[:size].ljust(size, b"\0")
    number = (float(value) - point.offset) / point.scale
    if point.type in _FLOAT:
        return struct.pack(_FLOAT[point.type], number)
    signed = point.type in _SIGNED
    bits = 8 * size - signed
    raw = min(max(round(number), -(1 << bits) if signed else 0), (1 << bits) - 1)
    if point.mask is not None:
        raw = raw << _shift(point.mask) & point.mask
    return raw.to_bytes(size, "big", signed=signed)


def _shift(mask: int) -> int:
    return (mask & -mask).bit_length() - 1


def to_words(point: Point, value: Value) -> tuple[int, ...]:
    """Return the registers (bits) that hold a value in the point's unit; what does not fit saturates."""
    if point.table in BIT_TABLES:
        return tuple(int(value) >> place & 1 for place in range(point.length))
    return _wire_order(struct.unpack(f">{point.length}H", _to_bytes(point, value)), point)


def from_words(point: Point, words: Sequence[int]) -> Value:
    """Return what registers (bits) hold, in the point's unit."""
    if point.table in BIT_TABLES:
        return sum(bit << place for place, bit in enumerate(words))
    raw_bytes = struct.pack(f">{point.length}H", *_wire_order(words, point))
    if point.type is PointType.STRING:
        return raw_bytes.rstrip(b"\0").decode("utf-8", "replace")
    if point.type in _FLOAT:
        return float(struct.unpack(_FLOAT[point.type], raw_bytes)[0]) * point.scale + point.offset
    raw = int.from_bytes(raw_bytes, "big", signed=point.type in _SIGNED)
    if point.mask is not None:
        raw = (raw & point.mask) >> _shift(point.mask)
    return raw * point.scale + point.offset


def absent_words(point: Point) -> tuple[int, ...]:
    """Return what stands for "no sensor": the point's own mark, else not-a-number, else the far end of its range."""
    if point.table in BIT_TABLES:
        return (0,) * point.length
    if point.type in _FLOAT and point.absent is None:
        return to_words(point, float("nan"))
    size = 2 * point.length
    raw = point.absent
    if raw is None:
        raw = 1 << (8 * size - 1) if point.type in _SIGNED else (1 << 8 * size) - 1
    raw_bytes = (raw & ((1 << 8 * size) - 1)).to_bytes(size, "big")
    return _wire_order(struct.unpack(f">{point.length}H", raw_bytes), point)
