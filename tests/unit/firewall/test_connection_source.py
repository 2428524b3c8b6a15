# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path

import pytest
from ansible_collections.derms.edge.plugins.module_utils.connection_source import (
    client_address,
    connection_source,
    is_inside,
    parent_of,
)


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("192.0.2.7 50022 10.0.0.1 22", "192.0.2.7"),
        ("2001:db8::7 50022 2001:db8::1 22", "2001:db8::7"),
        ("fe80::7%eth0 50022 fe80::1%eth0 22", "fe80::7"),
        ("::ffff:192.0.2.7 50022 ::ffff:10.0.0.1 22", "192.0.2.7"),
    ],
)
def test_the_client_is_read_from_sshds_note(value: str, address: str) -> None:
    environment = f"HOME=/\0XSSH_CONNECTION=1\0SSH_CONNECTION={value}\0".encode()
    assert client_address(environment) == ip_address(address)


def test_without_sshd_there_is_no_client() -> None:
    assert client_address(b"HOME=/\0SSH_CONNECTION=\0") is None


def test_a_program_name_may_hold_brackets() -> None:
    assert parent_of("71 (sh) (x) S 70 71 71 0 -1") == 70


def process(proc: Path, number: int, parent: int, environment: bytes) -> None:
    directory = proc / str(number)
    directory.mkdir()
    (directory / "environ").write_bytes(environment)
    (directory / "stat").write_text(f"{number} (python3) S {parent} 0 0")


def test_the_processes_above_sudo_are_asked(tmp_path: Path) -> None:
    process(tmp_path, os.getpid(), 999_998, b"HOME=/root\0")
    process(tmp_path, 999_998, 999_997, b"SUDO_USER=deploy\0")
    process(tmp_path, 999_997, 1, b"SSH_CONNECTION=192.0.2.7 1 10.0.0.1 22\0")
    assert connection_source(tmp_path) == ip_address("192.0.2.7")


def test_a_run_on_the_host_itself_comes_from_nowhere(tmp_path: Path) -> None:
    process(tmp_path, os.getpid(), 1, b"HOME=/root\0")
    assert connection_source(tmp_path) is None


def test_an_address_is_looked_for_in_every_block() -> None:
    blocks = ["10.0.0.0/8", "2001:db8::/48"]
    assert is_inside(ip_address("10.1.2.3"), blocks)
    assert is_inside(ip_address("2001:db8::7"), blocks)
    assert not is_inside(ip_address("192.0.2.7"), blocks)
