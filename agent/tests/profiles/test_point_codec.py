# SPDX-License-Identifier: Apache-2.0
"""The point codec against struct's own packing, and against what a limit may never become."""

import math
import struct
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derms_agent.profiles.point import (
    FIXED_LENGTHS,
    FORMATS,
    Access,
    Order,
    OutOfRange,
    Point,
    PointType,
    Table,
)

WHOLE = sorted(set(FIXED_LENGTHS) - {PointType.F32, PointType.F64})


def point(kind: PointType, **fields: object) -> Point:
    defaults: dict[str, object] = {
        "name": "p",
        "table": Table.HOLDING,
        "address": 0,
        "type": kind,
        "length": FIXED_LENGTHS.get(kind, 1),
        "access": Access.READ_WRITE,
    }
    return Point(**{**defaults, **fields})  # type: ignore[arg-type]


def words_of(data: bytes) -> tuple[int, ...]:
    return tuple(data[i] << 8 | data[i + 1] for i in range(0, len(data), 2))


def laid_out(kind: PointType, raw: float, word_order: Order, byte_order: Order) -> tuple[int, ...]:
    """Lay a raw value out the plain way: pack it, cut it into words, turn words and bytes around."""
    data = struct.pack(FORMATS[kind], raw)
    pairs = [data[i : i + 2] for i in range(0, len(data), 2)]
    if word_order is Order.LITTLE:
        pairs.reverse()
    if byte_order is Order.LITTLE:
        pairs = [pair[::-1] for pair in pairs]
    return words_of(b"".join(pairs))


def bounds(kind: PointType) -> tuple[int, int]:
    bits = 16 * FIXED_LENGTHS[kind]
    return (0, 2**bits - 1) if kind.value.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


orders = st.sampled_from(list(Order))
scales = st.sampled_from([1, 0.1, 0.01, 0.001, 10, 1000, 0.5, -1, -0.1])


@given(st.sampled_from(WHOLE), orders, orders, st.data())
def test_whole_numbers_lie_as_struct_says_and_return_unharmed(
    kind: PointType, word_order: Order, byte_order: Order, data: st.DataObject
) -> None:
    raw = data.draw(st.integers(*bounds(kind)))
    it = point(kind, word_order=word_order, byte_order=byte_order)
    words = laid_out(kind, raw, word_order, byte_order)
    assert it.decode(words) == raw
    assert it.encode(raw) == words


@given(st.sampled_from([PointType.F32, PointType.F64]), orders, orders, st.data())
def test_floats_lie_as_struct_says_and_return_unharmed(
    kind: PointType, word_order: Order, byte_order: Order, data: st.DataObject
) -> None:
    wide = st.floats(-3.4e38, 3.4e38)
    narrow = st.floats(width=32, allow_nan=False, allow_infinity=False)
    raw = data.draw(narrow if kind is PointType.F32 else wide)
    it = point(kind, word_order=word_order, byte_order=byte_order)
    words = laid_out(kind, raw, word_order, byte_order)
    assert it.decode(words) == raw
    assert it.encode(raw) == words


@pytest.mark.parametrize("words", [(0x7FC0, 0), (0xFFC0, 0), (0xFFFF, 0xFFFF), (0x7F80, 0), (0xFF80, 0)])
def test_a_float_that_is_no_finite_number_is_absent(words: tuple[int, int]) -> None:
    assert point(PointType.F32).decode(words) is None
    assert point(PointType.F32, scale=1000).decode(words) is None
    assert point(PointType.F64).decode((0x7FF8, 0, 0, 0)) is None


@given(st.sampled_from(WHOLE), scales, st.integers(-1000, 1000), st.data())
def test_a_scaled_value_is_the_nearest_double_and_encodes_to_its_own_raw_value(
    kind: PointType, scale: float, offset: int, data: st.DataObject
) -> None:
    low, high = bounds(kind)
    raw = data.draw(st.integers(max(low, -(10**12)), min(high, 10**12)))
    it = point(kind, scale=scale, offset=offset)
    value = it.decode(laid_out(kind, raw, Order.BIG, Order.BIG))
    assert value == float(Fraction(str(scale)) * raw + offset)
    assert it.encode(value) == laid_out(kind, raw, Order.BIG, Order.BIG)


@given(scales, st.floats(0, 60))
def test_a_limit_is_never_rounded_up(scale: float, asked: float) -> None:
    held = point(PointType.U32 if scale > 0 else PointType.I32, scale=scale).quantise(asked)
    assert isinstance(held, int | float)
    assert asked - abs(scale) < held <= asked * (1 + 1e-11)


@given(st.floats(0, 64))
def test_a_float_limit_is_never_rounded_up(asked: float) -> None:
    for it in (point(PointType.F32), point(PointType.F32, scale=1000), point(PointType.F64)):
        held = it.quantise(asked)
        assert isinstance(held, float)
        assert held <= asked * (1 + 1e-11)
        assert held >= asked * (1 - 2e-7) - 1e-40


@given(scales.filter(lambda scale: scale > 0), st.floats(-60, 0))
def test_a_limit_of_discharge_does_not_grow_either(scale: float, asked: float) -> None:
    held = point(PointType.I32, scale=scale).quantise(asked)
    assert isinstance(held, int | float)
    assert asked * (1 + 1e-11) <= held <= 0


@pytest.mark.parametrize(
    ("scale", "asked", "raw"),
    [
        (0.001, 15.9996, 15999),
        (0.1, 15.9996, 159),
        (1, 15.9996, 15),
        (0.1, 0.3, 3),  # the double 0.3 is less than three tenths, and is not two of them
        (0.1, 0.1 + 0.2, 3),
        (0.1, 5.999999999999999, 60),  # what 4156.92 W / (sqrt(3) * 400 V) comes to: 6 A, not a pause
        (0.1, 5.9999999, 59),
        (0.001, 16, 16000),
    ],
)
def test_known_roundings(scale: float, asked: float, raw: int) -> None:
    assert point(PointType.U16, scale=scale).encode(asked) == (raw,)


def test_a_minimum_holds_against_noise_but_not_against_less() -> None:
    it = point(PointType.U16, scale=0.1, minimum=6, maximum=16)
    assert it.encode(5.999999999999999) == (60,)
    for asked in (5.99, 16.1, 0, -1):
        with pytest.raises(OutOfRange, match="expected 6 to 16"):
            it.encode(asked)
    assert replace(it, or_zero=True).encode(0) == (0,)
    with pytest.raises(OutOfRange, match="6 to 16 or 0"):
        replace(it, or_zero=True).encode(3)


@pytest.mark.parametrize("value", [-1, 65536, math.inf, -math.inf, math.nan, "7", True, 10**400, 1e300])
def test_what_does_not_fit_is_refused_with_found_and_expected(value: object) -> None:
    with pytest.raises(OutOfRange) as refused:
        point(PointType.U16).encode(value)  # type: ignore[arg-type]
    assert refused.value.found is value or refused.value.found == value
    assert refused.value.expected
    with pytest.raises(OutOfRange):
        point(PointType.F32).encode(1e300)


def test_the_range_is_told_in_the_points_unit() -> None:
    with pytest.raises(OutOfRange, match=r"expected 0 to 65\.535 A"):
        point(PointType.U16, scale=0.001, unit="A").encode(70)


def test_the_raw_value_that_means_absent_is_absent_and_never_written() -> None:
    it = point(PointType.I16, absent=-0x8000, scale=0.1)
    assert it.decode((0x8000,)) is None
    assert it.decode((0x7FFF,)) == 3276.7
    with pytest.raises(OutOfRange, match="absent"):
        it.encode(-3276.8)


STATES = {0: "idle", 3: "charging"}


def test_states_go_by_name_and_an_unknown_one_is_told() -> None:
    it = point(PointType.U16, states=STATES)
    assert it.decode((3,)) == "charging"
    assert it.decode((9,)) == "unknown 9"
    assert it.encode("idle") == (0,)
    with pytest.raises(OutOfRange, match="idle, charging"):
        it.encode("chraging")


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=10), orders)
def test_texts_return_unharmed(text: str, byte_order: Order) -> None:
    it = point(PointType.STRING, length=5, byte_order=byte_order)
    assert it.decode(it.encode(text)) == text


def test_texts_end_at_the_first_zero_and_an_empty_one_is_absent() -> None:
    it = point(PointType.STRING, length=3)
    assert it.decode((0x4332, 0x0041, 0x4242)) == "C2"
    assert it.decode((0x2020, 0x4332, 0x2020)) == "C2"
    assert it.decode((0, 0, 0)) is None
    assert replace(it, byte_order=Order.LITTLE).decode((0x3243, 0, 0)) == "C2"
    for wrong in ("1234567", "ä", "a\nb", 7):
        with pytest.raises(OutOfRange):
            it.encode(wrong)


@given(st.integers(0, 15), st.integers(0, 2**32 - 1))
def test_a_masked_field_is_read_alone_and_written_without_its_neighbours(value: int, current: int) -> None:
    it = point(PointType.BITS, length=2, mask=0x00F0_0000)
    words = (current >> 16, current & 0xFFFF)
    written = it.replace_bits(words, value)
    assert it.decode(written) == value
    raw = written[0] << 16 | written[1]
    assert raw & ~0x00F0_0000 == current & ~0x00F0_0000
    with pytest.raises(ValueError, match="mask"):
        it.encode(value)
    with pytest.raises(OutOfRange):
        it.replace_bits(words, 16)


def test_one_bit_is_a_flag() -> None:
    it = point(PointType.BITS, mask=0x0100)
    assert it.decode((0x0100,)) is True
    assert it.decode((0xFEFF,)) is False
    assert it.replace_bits((0xFFFF,), False) == (0xFEFF,)
    with pytest.raises(OutOfRange, match="true or false"):
        it.replace_bits((0,), 1 + 1)
    coil = point(PointType.BITS, table=Table.COIL)
    assert coil.decode((1,)) is True
    assert coil.encode(True) == (1,)


def test_coils_count_from_the_lowest_bit() -> None:
    it = point(PointType.BITS, table=Table.COIL, length=4)
    assert it.decode((1, 0, 1, 1)) == 0b1101
    assert it.encode(0b1101) == (1, 0, 1, 1)


@pytest.mark.parametrize("words", [(), (1,), (1, 2, 3)])
def test_another_number_of_words_is_refused(words: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected 2"):
        point(PointType.U32).decode(words)


def test_a_connector_is_a_stride_further() -> None:
    it = point(PointType.U16, address=1301, stride=1000)
    assert [it.address_of(connector) for connector in (1, 2, 12)] == [1301, 2301, 12301]
