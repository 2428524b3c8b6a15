# SPDX-License-Identifier: Apache-2.0
"""Bytes of requests and replies, against those that the standard prints, and against arbitrary ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derms_agent.drivers.errors import BadReply, BusError, InvalidRequest, NoAnswer, Refused
from derms_agent.drivers.modbus.frames import (
    MBAP_FRAMER,
    RTU_FRAMER,
    Request,
    read_request,
    rtu_reply_bytes,
    rtu_values_of,
    values_of,
    write_request,
)
from derms_agent.profiles.point import Table

# Requests, replies and values as printed in MODBUS Application Protocol V1.1b3, clauses 6.1 to 6.6, 6.11 and 6.12; its
# addresses are in the PDU as printed here.
EXAMPLES = [
    (read_request(1, Table.COIL, 0x13, 0x13), "01 0013 0013", "01 03 CD6B05", "1011001111010110101"),
    (read_request(1, Table.DISCRETE, 0xC4, 0x16), "02 00C4 0016", "02 03 ACDB35", "0011010111011011101011"),
    (read_request(1, Table.HOLDING, 0x6B, 3), "03 006B 0003", "03 06 022B 0000 0064", [555, 0, 100]),
    (read_request(1, Table.INPUT, 8, 1), "04 0008 0001", "04 02 000A", [10]),
    (write_request(1, Table.COIL, 0xAC, [1]), "05 00AC FF00", "05 00AC FF00", []),
    (write_request(1, Table.HOLDING, 1, [3]), "06 0001 0003", "06 0001 0003", []),
    (
        write_request(1, Table.COIL, 0x13, [1, 0, 1, 1, 0, 0, 1, 1, 1, 0]),
        "0F 0013 000A 02 CD01",
        "0F 0013 000A",
        [],
    ),
    (write_request(1, Table.HOLDING, 1, [0xA, 0x102]), "10 0001 0002 04 000A 0102", "10 0001 0002", []),
]


@pytest.mark.parametrize(("request_", "asked", "answered", "values"), EXAMPLES)
def test_the_standards_examples(request_: Request, asked: str, answered: str, values: str | list[int]) -> None:
    assert request_.pdu == bytes.fromhex(asked)
    assert values_of(request_, 1, bytes.fromhex(answered)) == tuple(int(value) for value in values)
    assert len(bytes.fromhex(answered)) == request_.reply_bytes


def test_framed_bytes() -> None:
    """Checked by hand: header per MODBUS Messaging on TCP/IP V1.0b, 3.1.3; checksum of 01 03 00 00 00 0A is C5 CD."""
    request = read_request(1, Table.HOLDING, 0, 10)
    assert MBAP_FRAMER.encode(request.pdu, 1, 0x1501) == bytes.fromhex("1501 0000 0006 01 03 0000 000A")
    assert RTU_FRAMER.encode(request.pdu, 1, 0) == bytes.fromhex("01 03 0000 000A C5CD")


def test_a_forced_function() -> None:
    assert write_request(1, Table.HOLDING, 1, [3], 16).pdu == bytes.fromhex("10 0001 0001 02 0003")
    assert write_request(1, Table.COIL, 1, [1], 15).pdu == bytes.fromhex("0F 0001 0001 01 01")
    for table, values, function in ((Table.HOLDING, [1, 2], 6), (Table.HOLDING, [1], 5), (Table.COIL, [1], 16)):
        with pytest.raises(InvalidRequest):
            write_request(1, table, 1, values, function)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: read_request(256, Table.HOLDING, 0, 1),
        lambda: read_request(-1, Table.HOLDING, 0, 1),
        lambda: read_request(1, Table.HOLDING, 0, 0),
        lambda: read_request(1, Table.HOLDING, 0, 126),
        lambda: read_request(1, Table.DISCRETE, 0, 2001),
        lambda: read_request(1, Table.HOLDING, 65_535, 2),
        lambda: read_request(1, Table.HOLDING, -1, 2),
        lambda: write_request(1, Table.HOLDING, 0, []),
        lambda: write_request(1, Table.HOLDING, 0, [0] * 124),
        lambda: write_request(1, Table.COIL, 0, [0] * 1969),
        lambda: write_request(1, Table.COIL, 0, [2]),
        lambda: write_request(1, Table.HOLDING, 0, [-1]),
        lambda: write_request(1, Table.INPUT, 0, [1]),
    ],
)
def test_what_no_request_may_ask(ask: Callable[[], Request]) -> None:
    with pytest.raises(InvalidRequest):
        ask()


def test_limits_themselves_are_allowed() -> None:
    assert read_request(1, Table.HOLDING, 65_411, 125).reply_bytes == 252
    assert read_request(1, Table.COIL, 0, 2000).reply_bytes == 252
    assert len(write_request(255, Table.HOLDING, 65_413, [0xFFFF] * 123).pdu) == 252
    assert len(write_request(1, Table.COIL, 0, [1] * 1968).pdu) == 252


def test_exceptions() -> None:
    read, write = read_request(1, Table.HOLDING, 0, 1), write_request(1, Table.HOLDING, 0, [1])
    with pytest.raises(Refused, match="exception 2, illegal data address") as refused:
        values_of(read, 1, bytes([0x83, 2]))
    assert refused.value.exception_code == 2
    for code, may_have_happened in ((1, False), (4, True), (5, True), (6, False), (10, False), (99, False)):
        with pytest.raises(Refused) as refused:
            values_of(write, 1, bytes([0x86, code]))
        assert refused.value.may_have_happened == may_have_happened
    with pytest.raises(NoAnswer) as silent:
        values_of(write, 1, bytes([0x86, 11]))
    assert silent.value.may_have_happened


tables = st.sampled_from(Table)
reads = st.builds(read_request, st.integers(1, 247), tables, st.integers(0, 60_000), st.integers(1, 125))
writes = st.builds(
    write_request,
    st.integers(1, 247),
    st.just(Table.HOLDING),
    st.integers(0, 60_000),
    st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=123),
)
requests = st.one_of(reads, writes)


@given(requests, st.integers(0, 255), st.binary(min_size=2, max_size=252))
def test_arbitrary_replies_are_good_only_if_they_are(request_: Request, unit_id: int, pdu: bytes) -> None:
    try:
        values = values_of(request_, unit_id, pdu)
    except BusError:
        return
    assert unit_id == request_.unit_id
    assert pdu[0] == request_.function
    assert pdu == request_.echo or (pdu[1] == len(pdu) - 2 == request_.reply_bytes - 2)
    assert len(values) == (0 if request_.writes else request_.count)


@given(requests, st.data())
def test_any_changed_byte_of_an_rtu_reply_is_noticed(request_: Request, data: st.DataObject) -> None:
    body = bytes([request_.unit_id]) + (
        request_.echo or bytes([request_.function, request_.reply_bytes - 2]) + bytes(request_.reply_bytes - 2)
    )
    frame = RTU_FRAMER.encode(body[1:], body[0], 0)
    assert rtu_reply_bytes(request_, frame) == len(frame)
    assert len(rtu_values_of(request_, frame)) == (0 if request_.writes else request_.count)
    at = data.draw(st.integers(0, len(frame) - 1))
    changed = bytearray(frame)
    changed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BadReply):  # noqa: PT012 -- either may notice it
        if rtu_reply_bytes(request_, bytes(changed)) != len(changed):
            raise BadReply("of another length")
        rtu_values_of(request_, bytes(changed))


@given(requests, st.binary(min_size=1, max_size=300))
def test_a_begun_frame_never_promises_more_than_a_reply(request_: Request, begun: bytes) -> None:
    try:
        promised = rtu_reply_bytes(request_, begun)
    except BadReply:
        return
    assert promised in {0, 5, request_.reply_bytes + 3}
