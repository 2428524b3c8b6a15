# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts' time source speaks NTP."""

from __future__ import annotations

import struct

import pytest

from tests.hosts.ntp_server import answer, timestamp

# Leap indicator 3, version 4, client; poll 2^6 s; the client's own time in the last field.
REQUEST = bytes([0xE3, 0, 6, 0]) + bytes(36) + b"CLIENTTX"


def test_the_epoch_is_1900() -> None:
    assert timestamp(0.5) == struct.pack("!II", 2_208_988_800, 2**31)


def test_seconds_wrap_in_2036() -> None:
    assert timestamp(2**32 - 2_208_988_800 + 1) == struct.pack("!II", 1, 0)


def test_a_client_is_answered_as_by_a_stratum_one_server() -> None:
    reply = answer(REQUEST, 100.0, 100.25)
    assert reply is not None
    assert len(reply) == 48
    assert reply[0] == 4 << 3 | 4
    assert reply[1:3] == bytes([1, 6])
    assert reply[24:32] == b"CLIENTTX"
    assert (reply[32:40], reply[40:48]) == (timestamp(100.0), timestamp(100.25))


@pytest.mark.parametrize(
    "datagram", [b"", REQUEST[:47], bytes([0xE4]) + REQUEST[1:]], ids=["empty", "short", "a server's"]
)
def test_whatever_is_no_clients_request_gets_no_answer(datagram: bytes) -> None:
    assert answer(datagram, 0.0, 0.0) is None
