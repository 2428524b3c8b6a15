# SPDX-License-Identifier: Apache-2.0
"""A register point: where a value lies in a device, how it is written there, and what it means.

Pure: words in, values out. Addresses are PDU addresses (zero-based), as in the Modbus Application Protocol V1.1b3.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction
from functools import lru_cache
from operator import itemgetter
from typing import TypeAlias

from derms_agent.model import Value


class Table(str, Enum):
    """One of the four tables of the Modbus data model."""

    HOLDING = "holding"
    INPUT = "input"
    COIL = "coil"
    DISCRETE = "discrete"


class PointType(str, Enum):
    """How a value is laid into registers. `BITS` is an unsigned field of `length` registers, read through `mask`."""

    U16 = "u16"
    I16 = "i16"
    U32 = "u32"
    I32 = "i32"
    U64 = "u64"
    I64 = "i64"
    F32 = "f32"
    F64 = "f64"
    STRING = "string"
    BITS = "bits"


class Access(str, Enum):
    """What may be done to a point. What is only written is compared through its `readback`, or is unknown."""

    READ = "read"
    WRITE = "write"
    READ_WRITE = "read_write"


class Order(str, Enum):
    """Which end of a value comes first: of its words in the registers, or of the bytes in a word."""

    BIG = "big"
    LITTLE = "little"


class Contradiction(ValueError):
    """A declaration that cannot be true. `path` leads to the field at fault, from the thing that was declared."""

    def __init__(self, path: tuple[str | int, ...], found: object, expected: str, nearest: str | None = None) -> None:
        hint = f" (did you mean {nearest}?)" if nearest else ""
        super().__init__(f"{'.'.join(map(str, path))}: found {found}, expected {expected}{hint}")
        self.path = path
        self.found = found
        self.expected = expected
        self.nearest = nearest


class OutOfRange(ValueError):
    """A value that a point cannot hold or may not be given."""

    def __init__(self, point: str, found: object, expected: str) -> None:
        super().__init__(f"{point}: found {found!r}, expected {expected}")
        self.point = point
        self.found = found
        self.expected = expected


Raw: TypeAlias = "int | float | str"

FIXED_LENGTHS: Mapping[PointType, int] = {
    PointType.U16: 1,
    PointType.I16: 1,
    PointType.U32: 2,
    PointType.I32: 2,
    PointType.F32: 2,
    PointType.U64: 4,
    PointType.I64: 4,
    PointType.F64: 4,
}
"""Registers of each type whose length is not a choice."""

FORMATS: Mapping[PointType, str] = {
    PointType.U16: ">H",
    PointType.I16: ">h",
    PointType.U32: ">I",
    PointType.I32: ">i",
    PointType.U64: ">Q",
    PointType.I64: ">q",
    PointType.F32: ">f",
    PointType.F64: ">d",
}

FLOATS = frozenset({PointType.F32, PointType.F64})
UNSIGNED = frozenset({PointType.U16, PointType.U32, PointType.U64, PointType.BITS})
BIT_TABLES = frozenset({Table.COIL, Table.DISCRETE})
WRITABLE_TABLES = frozenset({Table.HOLDING, Table.COIL})

REGISTERS = 0x10000
MAX_REGISTERS = 125
WORD = 16
LARGEST = 3.4028234663852886e38
"""The largest 32-bit float; no device is written more."""

NOISE = Fraction(1, 10**12)
"""How far, relatively, a number may lie off a step and still mean that step: what computing with doubles leaves over.

Without it 4156.92 W / (sqrt(3) * 400 V) = 5.999999999999999 A would be refused as less than the 6 A that it is.
"""


class Layout:
    """How a type lies in words: one conversion each way, put together once; a gateway decodes 40,000 values a second.

    `read` takes exactly `length` words (0 or 1 each for coils and discrete inputs) and gives the raw value.
    """

    __slots__ = ("read", "write")

    def __init__(self, type_: PointType, length: int, word_order: Order, byte_order: Order, *, bits: bool) -> None:
        self.read: Callable[[Sequence[int]], Raw]
        self.write: Callable[[Raw], tuple[int, ...]]
        if bits:
            self.read, self.write = _bit_layout(length)
            return
        words = struct.Struct(f"{'>' if byte_order is Order.BIG else '<'}{length}H")
        reverse = word_order is Order.LITTLE
        if type_ is PointType.STRING:
            self.read, self.write = _string_layout(words, length)
        elif type_ is PointType.BITS:
            self.read, self.write = _field_layout(words, length, reverse=reverse)
        else:
            self.read, self.write = _number_layout(words, struct.Struct(FORMATS[type_]), reverse=reverse)
        if type_ is PointType.U16 and byte_order is Order.BIG:
            self.read = itemgetter(0)


_Conversions: TypeAlias = "tuple[Callable[[Sequence[int]], Raw], Callable[[Raw], tuple[int, ...]]]"


def _number_layout(words: struct.Struct, number: struct.Struct, *, reverse: bool) -> _Conversions:
    pack_words, unpack_words, pack, unpack = words.pack, words.unpack, number.pack, number.unpack

    def read(registers: Sequence[int]) -> Raw:
        return unpack(pack_words(*registers))[0]  # type: ignore[no-any-return]

    def read_reversed(registers: Sequence[int]) -> Raw:
        return unpack(pack_words(*registers[::-1]))[0]  # type: ignore[no-any-return]

    def write(raw: Raw) -> tuple[int, ...]:
        return unpack_words(pack(raw))[:: -1 if reverse else 1]

    return read_reversed if reverse else read, write


def _field_layout(words: struct.Struct, length: int, *, reverse: bool) -> _Conversions:
    step = -1 if reverse else 1

    def read(registers: Sequence[int]) -> Raw:
        return int.from_bytes(words.pack(*registers[::step]), "big")

    def write(raw: Raw) -> tuple[int, ...]:
        return words.unpack(int(raw).to_bytes(2 * length, "big"))[::step]

    return read, write


def _string_layout(words: struct.Struct, length: int) -> _Conversions:
    def read(registers: Sequence[int]) -> Raw:
        return words.pack(*registers).split(b"\0", 1)[0].decode("ascii", "replace").strip()

    def write(raw: Raw) -> tuple[int, ...]:
        return words.unpack(str(raw).encode("ascii").ljust(2 * length, b"\0"))

    return read, write


def _bit_layout(length: int) -> _Conversions:
    def read(bits: Sequence[int]) -> Raw:
        return sum(1 << place for place, bit in enumerate(bits) if bit)

    def write(raw: Raw) -> tuple[int, ...]:
        return tuple(int(raw) >> place & 1 for place in range(length))

    return read, write


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One value of a device.

    value = raw * scale + offset, in `unit`. `length` is in registers (in bits for coils and discrete inputs).
    `minimum` and `maximum` bound what may be written, in `unit`; `or_zero` lets 0 be written besides, as devices do
    that take "0, or 6 to 16 A". `stride` is the distance between a device's connectors; 0: there is one for all.
    `states` names raw values. `absent` is the raw value that stands for "not there". `setting`: it holds configuration
    that a depot file may declare. `volatile`: it changes by itself, so it is never drift. `blind`: it can be written
    and never read, by any address. `second_hand`: the vendor's own document was not at hand for it. `secret`: its value
    is not shown.

    What a point must be, or its constructor raises `Contradiction`:

    - it has a name; its address and length lie within the 65536 registers (or bits) of its table, and within the 125
      registers that one request can read;
    - the length is that of its type; strings and bits state theirs; coils and discrete inputs are bits;
    - input registers and discrete inputs are not written;
    - the stride is 0 or at least the length;
    - only numbers have scale, offset, minimum and maximum, and floats no offset; the scale is finite and not 0;
    - a mask is on unsigned registers, fits them, and its bits are adjacent;
    - states are on whole numbers without scale or offset, fit the type (after the mask), and have distinct names;
    - the raw value that means absent is on a whole number and fits the type; no state has it;
    - minimum and maximum are on what can be written, are not the wrong way round, and are values that the point can
      hold: so rounding a permitted value never leaves the range; `or_zero` needs a range that excludes 0;
    - words of a string have one order;
    - a setting can be written, and be read, here or by readback, unless it is declared blind;
    - only what cannot be read has a readback or is blind, never both;
    - a readback can be read, is in the same unit, of the same kind (number, text, states), strides as the point does,
      and is neither a setting nor read back itself.
    """

    name: str
    table: Table
    address: int
    type: PointType
    length: int
    scale: float = 1.0
    offset: float = 0.0
    unit: str = ""
    access: Access = Access.READ
    word_order: Order = Order.BIG
    byte_order: Order = Order.BIG
    mask: int | None = None
    minimum: float | None = None
    maximum: float | None = None
    or_zero: bool = False
    stride: int = 0
    readback: Point | None = None
    states: Mapping[int, str] | None = None
    absent: int | None = None
    setting: bool = False
    volatile: bool = False
    blind: bool = False
    second_hand: bool = False
    secret: bool = False
    # value = (raw * factor + addend) / divisor in whole numbers: one rounding, so that 98661 mW reads 98.661 W.
    _factor: int = field(init=False, repr=False, compare=False)
    _addend: int = field(init=False, repr=False, compare=False)
    _divisor: int = field(init=False, repr=False, compare=False)
    _shift: int = field(init=False, repr=False, compare=False)
    _plain: bool = field(init=False, repr=False, compare=False)
    _flag: bool = field(init=False, repr=False, compare=False)
    _layout: Layout = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "_flag", _is_flag(self))
        _check_place(self)
        _check_meaning(self)
        scale, offset = _decimal(self.scale), _decimal(self.offset)
        divisor = math.lcm(scale.denominator, offset.denominator)
        put(self, "_divisor", divisor)
        put(self, "_factor", int(scale * divisor))
        put(self, "_addend", int(offset * divisor))
        put(self, "_shift", 0 if self.mask is None else (self.mask & -self.mask).bit_length() - 1)
        put(self, "_plain", scale == 1 and offset == 0)
        bits = self.table in BIT_TABLES
        put(self, "_layout", Layout(self.type, self.length, self.word_order, self.byte_order, bits=bits))
        _check_range(self)
        _check_access(self)
        if self.readback is not None:
            _check_readback(self, self.readback)

    @property
    def readable(self) -> bool:
        """Whether its own registers can be read."""
        return self.access is not Access.WRITE

    @property
    def writable(self) -> bool:
        """Whether it can be written."""
        return self.access is not Access.READ

    @property
    def is_flag(self) -> bool:
        """Whether it is one bit without names for its states, so that its value is a bool."""
        return self._flag

    def address_of(self, connector: int) -> int:
        """Return the PDU address for a connector, which counts from 1."""
        return self.address + self.stride * (connector - 1)

    def decode(self, words: Sequence[int]) -> Value | None:
        """Return the value that lies in `length` words (bits for coils and discrete inputs), in `unit`.

        None: the device has no such value, be it that the words hold `absent`, a float that is no finite number, or a
        string of nothing. A raw value that `states` does not name is told as "unknown 17". Raises ValueError for
        another number of words.
        """
        if len(words) != self.length:
            raise ValueError(f"{self.name}: found {len(words)} words, expected {self.length}")
        raw = self._layout.read(words)
        if raw == self.absent:
            return None
        if isinstance(raw, int):
            if self.mask is not None:
                raw = (raw & self.mask) >> self._shift
            if not self._plain:
                whole = raw * self._factor + self._addend
                return whole if self._divisor == 1 else whole / self._divisor
            if self.states is not None:
                return self.states.get(raw) or f"unknown {raw}"
            return raw == 1 if self._flag else raw
        if isinstance(raw, float):
            raw = raw if self._plain else raw * self._factor / self._divisor
            return raw if math.isfinite(raw) else None
        return raw or None

    def encode(self, value: Value) -> tuple[int, ...]:
        """Return the words (bits for coils) that hold `value`, which is in `unit`, a state's name, a text or a flag.

        A number between two steps becomes the one nearer to zero: what is written is a limit, a fallback or a time
        until a fallback, and none of them may become more than was asked for. 15.9996 A is 15.999 A where a device
        counts mA, 15.9 A where it counts 0.1 A; a float takes the next one that is not larger in size. Raises
        `OutOfRange`; ValueError for a masked point, for its registers hold more than it: see `replace_bits`.
        """
        if self.mask is not None:
            raise ValueError(f"{self.name}: found a point with a mask, expected one that has its registers to itself")
        return self._layout.write(self._raw(value))

    def quantise(self, value: Value) -> Value:
        """Return what the device will hold when `value` is written, in `unit`; see `encode`. Raises `OutOfRange`."""
        words = self.encode(value) if self.mask is None else self.replace_bits((0,) * self.length, value)
        held = self.decode(words)
        if held is None:
            raise OutOfRange(self.name, value, "a value that does not stand for an absent one")
        return held

    def replace_bits(self, current_words: Sequence[int], value: Value) -> tuple[int, ...]:
        """Return `current_words` with this point's bits set to `value` and every other bit as it was.

        Raises `OutOfRange`; ValueError for another number of words.
        """
        if self.mask is None:
            return self.encode(value)
        if len(current_words) != self.length:
            raise ValueError(f"{self.name}: found {len(current_words)} words, expected {self.length}")
        raw = int(self._raw(value)) << self._shift
        return self._layout.write(int(self._layout.read(current_words)) & ~self.mask | raw)

    def _raw(self, value: Value) -> Raw:
        if self.type is PointType.STRING:
            return self._raw_text(value)
        if self.states is not None:
            for raw, name in self.states.items():
                if name == value:
                    return raw
            raise OutOfRange(self.name, value, f"one of {', '.join(self.states.values())}")
        if self.is_flag:
            if value is True or value is False:
                return int(value)
            raise OutOfRange(self.name, value, "true or false")
        if isinstance(value, bool | str) or (isinstance(value, float) and not math.isfinite(value)):
            raise OutOfRange(self.name, value, "a number")
        if abs(value) > LARGEST:
            raise OutOfRange(self.name, value, f"at most {LARGEST:.3g} in size")
        self._check_bounds(value)
        return self._raw_float(value) if self.type in FLOATS else self._raw_whole(value)

    def _check_bounds(self, value: float) -> None:
        if value == 0 and self.or_zero:
            return
        slack = abs(value) * float(NOISE)
        low, high = self.minimum, self.maximum
        if (low is not None and value < low - slack) or (high is not None and value > high + slack):
            raise OutOfRange(
                self.name, value, f"{_span(low, high)}{' or 0' if self.or_zero else ''} {self.unit}".strip()
            )

    def _raw_text(self, value: Value) -> str:
        if not isinstance(value, str) or not value.isascii() or not value.isprintable():
            raise OutOfRange(self.name, value, "text in printable ASCII")
        if len(value) > 2 * self.length:
            raise OutOfRange(self.name, value, f"at most {2 * self.length} characters")
        return value

    def _raw_whole(self, value: float) -> int:
        raw = _nearest_whole(value, self._factor, self._addend, self._divisor)
        low, high = self._raw_range()
        if not low <= raw <= high:
            ends = sorted((end * self._factor + self._addend) / self._divisor for end in (low, high))
            raise OutOfRange(self.name, value, f"{ends[0]:.12g} to {ends[1]:.12g} {self.unit}".strip())
        if raw == self.absent and self.mask is None:
            raise OutOfRange(self.name, value, "a value that does not stand for an absent one")
        return raw

    def _raw_range(self) -> tuple[int, int]:
        if self.mask is not None:
            return 0, self.mask >> self._shift
        bits = self.length if self.table in BIT_TABLES else WORD * self.length
        return (0, 2**bits - 1) if self.type in UNSIGNED else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)

    def _raw_float(self, value: float) -> float:
        raw = float(value) if self._plain else float(_decimal(value) * self._divisor / self._factor)
        if self.type is PointType.F64:
            return raw
        try:
            nearest: float = struct.unpack(">f", struct.pack(">f", raw))[0]
        except OverflowError:  # its scale is below 1
            raise OutOfRange(self.name, value, "what a 32-bit float can hold") from None
        held = nearest if self._plain else nearest * self._factor / self._divisor
        if abs(held) > abs(value) * (1 + float(NOISE)):
            bits: int = struct.unpack(">I", struct.pack(">f", nearest))[0]
            nearest = struct.unpack(">f", struct.pack(">I", bits - 1))[0]  # the next one nearer to zero
        return nearest


def _decimal(number: float) -> Fraction:
    """Return what a person reads in a number: 0.1 is one tenth, not the double nearest to it."""
    return Fraction(number) if isinstance(number, int) else Fraction(repr(number))


# A shed writes few values to many devices, each encoded for the wire and for the read-back; exact fractions are slow.
@lru_cache(maxsize=4096, typed=True)
def _nearest_whole(value: float, factor: int, addend: int, divisor: int) -> int:
    """Return the whole number that stands for a value, or the next one that stands for less in size."""
    asked = _decimal(value)
    exact = (asked * divisor - addend) / factor
    raw = round(exact)
    if abs(exact - raw) > NOISE * max(Fraction(1), abs(exact)):
        raw = math.floor(exact) if (asked >= 0) == (factor > 0) else math.ceil(exact)
    return raw


def _span(low: float | None, high: float | None) -> str:
    if low is None:
        return f"at most {high:g}"
    return f"at least {low:g}" if high is None else f"{low:g} to {high:g}"


def _is_flag(point: Point) -> bool:
    if point.type is not PointType.BITS or point.states is not None:
        return False
    return point.mask.bit_count() == 1 if point.mask is not None else point.table in BIT_TABLES and point.length == 1


def _check_place(point: Point) -> None:
    if not point.name:
        raise Contradiction(("name",), repr(point.name), "a name")
    expected = FIXED_LENGTHS.get(point.type)
    if expected is not None and point.length != expected:
        raise Contradiction(("length",), point.length, f"{expected} registers for {point.type.value}")
    if point.table in BIT_TABLES and point.type is not PointType.BITS:
        raise Contradiction(("type",), point.type.value, f"bits in the table {point.table.value}")
    longest = MAX_REGISTERS * (WORD if point.table in BIT_TABLES else 1)
    if not 1 <= point.length <= longest:
        raise Contradiction(("length",), point.length, f"1 to {longest}, what one request can read")
    if not 0 <= point.address <= REGISTERS - point.length:
        raise Contradiction(
            ("address",), point.address, f"0 to {REGISTERS - point.length} for a length of {point.length}"
        )
    if point.stride != 0 and point.stride < point.length:
        raise Contradiction(("stride",), point.stride, f"0, or at least the length of {point.length}")
    if point.writable and point.table not in WRITABLE_TABLES:
        raise Contradiction(("access",), point.access.value, f"read in the table {point.table.value}")
    if point.type is PointType.STRING and point.word_order is not Order.BIG:
        raise Contradiction(("word_order",), point.word_order.value, "big for a string")


def _check_meaning(point: Point) -> None:
    number = point.type is not PointType.STRING and point.states is None and not point.is_flag
    if not math.isfinite(point.scale) or point.scale == 0:
        raise Contradiction(("scale",), point.scale, "a finite number other than 0")
    if not math.isfinite(point.offset) or (point.offset != 0 and point.type in FLOATS):
        raise Contradiction(("offset",), point.offset, "0 for a float" if point.type in FLOATS else "a finite number")
    for name, value, neutral in (("scale", point.scale, 1), ("offset", point.offset, 0)):
        if not number and value != neutral:
            raise Contradiction((name,), value, "none for texts, flags and named states")
    _check_mask(point)
    _check_states(point)


def _check_mask(point: Point) -> None:
    if point.mask is None:
        return
    if point.type not in UNSIGNED or point.table in BIT_TABLES:
        raise Contradiction(("mask",), f"{point.mask:#x}", "none but on unsigned registers")
    if not 0 < point.mask < 1 << WORD * point.length:
        raise Contradiction(("mask",), f"{point.mask:#x}", f"bits within {point.length} register(s)")
    field_ = point.mask // (point.mask & -point.mask)
    if field_ & (field_ + 1):
        raise Contradiction(("mask",), f"{point.mask:#x}", "adjacent bits")


def _check_states(point: Point) -> None:
    if point.absent is not None:
        if point.type in FLOATS or point.type is PointType.STRING:
            raise Contradiction(
                ("absent",), point.absent, "none: a float that is no number and an empty text are absent"
            )
        _check_fits(point, ("absent",), point.absent, masked=False)
    if point.states is None:
        return
    if point.type in FLOATS or point.type is PointType.STRING:
        raise Contradiction(("states",), point.type.value, "a type of whole numbers")
    if not point.states:
        raise Contradiction(("states",), "none", "at least one")
    names = list(point.states.values())
    for raw, name in point.states.items():
        _check_fits(point, ("states", raw), raw, masked=True)
        if not name or names.count(name) > 1:
            raise Contradiction(("states", raw), repr(name), "a name that no other state has")
        if raw == point.absent and point.mask is None:
            raise Contradiction(("states", raw), raw, "another than the raw value that means absent")


def _check_fits(point: Point, path: tuple[str | int, ...], raw: int, *, masked: bool) -> None:
    bits = point.length if point.table in BIT_TABLES else WORD * point.length
    low, high = (0, 2**bits - 1) if point.type in UNSIGNED else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if masked and point.mask is not None:
        high = point.mask // (point.mask & -point.mask)
    if not low <= raw <= high:
        raise Contradiction(path, raw, f"{low} to {high}, what {point.type.value} can hold")


def _check_range(point: Point) -> None:
    low, high = point.minimum, point.maximum
    if low is None and high is None:
        if point.or_zero:
            raise Contradiction(("or_zero",), "true", "a minimum or maximum that excludes 0")
        return
    name, bound = ("minimum", low) if low is not None else ("maximum", high)
    if not point.writable:
        raise Contradiction((name,), bound, "none on a point that is only read")
    if point.type is PointType.STRING or point.states is not None or point.is_flag:
        raise Contradiction((name,), bound, "none for texts, flags and named states")
    if low is not None and high is not None and low > high:
        raise Contradiction(("minimum",), low, f"at most the maximum of {high:g}")
    if point.or_zero and (low is None or low <= 0) and (high is None or high >= 0):
        raise Contradiction(("or_zero",), "true", "a minimum or maximum that excludes 0")
    for name, bound in (("minimum", low), ("maximum", high)):
        if bound is not None:
            _check_bound(point, name, bound)


def _check_bound(point: Point, name: str, bound: float) -> None:
    try:
        held = point.quantise(bound)
    except OutOfRange as problem:
        raise Contradiction((name,), bound, problem.expected) from None
    if point.type is not PointType.F32 and held != bound:
        raise Contradiction((name,), bound, f"a value that the point can hold, such as {held}")


def _check_access(point: Point) -> None:
    if point.setting and not point.writable:
        raise Contradiction(("setting",), "true", "a point that can be written")
    if point.readback is not None and point.readable:
        raise Contradiction(("readback",), point.readback.address, "none on a point that can itself be read")
    if point.blind and (point.readable or point.readback is not None):
        raise Contradiction(("blind",), "true", "a point that can be read neither here nor by a readback")
    if point.setting and not point.readable and point.readback is None and not point.blind:
        raise Contradiction(("setting",), "true", "a readback, or blind: true where its value can never be known")


def _check_readback(point: Point, readback: Point) -> None:
    if not readback.readable:
        raise Contradiction(("readback", "access"), readback.access.value, "read")
    if readback.readback is not None or readback.setting:
        raise Contradiction(("readback",), readback.name, "a point that is neither a setting nor read back itself")
    if readback.unit != point.unit:
        raise Contradiction(
            ("readback", "unit"), readback.unit or "none", f"{point.unit or 'none'}, as what is written"
        )
    if (readback.stride == 0) != (point.stride == 0):
        raise Contradiction(("readback", "stride"), readback.stride, "a stride where the point has one, else none")
    if _kind(readback) != _kind(point):
        raise Contradiction(("readback", "type"), _kind(readback), f"{_kind(point)}, as what is written")


def _kind(point: Point) -> str:
    if point.type is PointType.STRING:
        return "text"
    if point.states is not None:
        return f"states {', '.join(sorted(point.states.values()))}"
    return "flag" if point.is_flag else "number"
