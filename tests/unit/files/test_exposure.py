# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import sys

import pytest
from ansible_collections.derms.edge.plugins.modules.exposure import access_control, address_of, open_sockets, unexpected

ANY = str(address_of("00000000"))
HEADING = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
little_endian = pytest.mark.skipif(sys.byteorder != "little", reason="the samples are from a little-endian kernel")


def row(local: str, peer: str, state: str, inode: int) -> str:
    return f"   0: {local} {peer} {state} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1\n"


@little_endian
def test_addresses_are_read_in_the_kernels_byte_order() -> None:
    assert str(address_of("0100007F")) == "127.0.0.1"
    assert str(address_of("00000000000000000000000001000000")) == "::1"
    assert str(address_of("0000000000000000FFFF00000100007F")) == "127.0.0.1"


@little_endian
def test_only_what_can_be_reached_from_elsewhere_is_open() -> None:
    table = HEADING + row("00000000:0016", "00000000:0000", "0A", 1) + row("0100007F:0277", "00000000:0000", "0A", 2)
    table += row("1108D50A:0016", "0108D50A:9000", "01", 3)
    assert open_sockets("tcp", table) == [("tcp/22", ANY, "1")]


@little_endian
def test_a_udp_socket_with_a_peer_hears_nobody_else() -> None:
    table = HEADING + row("00000000:007B", "00000000:0000", "07", 1) + row("1108D50A:9000", "0108D50A:007B", "01", 2)
    assert open_sockets("udp", table) == [("udp/123", ANY, "1")]


def test_what_is_not_expected_is_said_with_its_program() -> None:
    listeners = [
        {"port": "tcp/22", "address": "::", "program": "sshd"},
        {"port": "tcp/111", "address": ANY, "program": "rpcbind"},
    ]
    assert unexpected(listeners, ["tcp/22"]) == [f"tcp/111 is open on {ANY} (rpcbind) and not among the expected"]


@pytest.mark.parametrize(
    ("selinux", "apparmor", "said"),
    [
        ("1", None, "SELinux is enforcing"),
        ("0", "N\n", "SELinux is on, but permissive"),
        (None, "Y\n", "AppArmor is on"),
        (None, None, "neither SELinux nor AppArmor is on in this kernel"),
    ],
)
def test_access_control_is_said(selinux: str | None, apparmor: str | None, said: str) -> None:
    assert access_control(selinux, apparmor) == said
