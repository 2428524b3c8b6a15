# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the SSH connection that a module runs over comes from."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Union

if TYPE_CHECKING:
    from collections.abc import Sequence

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]


def client_address(environment: bytes) -> Optional[Address]:
    """Return the client that sshd noted in a process's environment, or nothing."""
    for entry in environment.split(b"\0"):
        name, _equals, value = entry.partition(b"=")
        if name == b"SSH_CONNECTION" and value:
            # A link-local address carries its interface, which says nothing about the block.
            address = ipaddress.ip_address(value.split()[0].decode().partition("%")[0])
            return getattr(address, "ipv4_mapped", None) or address
    return None


def parent_of(stat_line: str) -> int:
    """Return the parent from a line of /proc/PID/stat; the program's name in it may hold anything, brackets too."""
    return int(stat_line.rpartition(")")[2].split()[1])


def connection_source(proc: Path = Path("/proc")) -> Optional[Address]:
    """Return the address that this process is controlled from; nothing where it is not controlled over SSH.

    sudo drops SSH_CONNECTION, so the processes above are asked too, up to sshd's own child, which has it.
    """
    process = os.getpid()
    while process > 1:
        try:
            address = client_address((proc / str(process) / "environ").read_bytes())
            process = parent_of((proc / str(process) / "stat").read_text())
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            return None
        if address is not None:
            return address
    return None


def is_inside(address: Address, blocks: Sequence[str]) -> bool:
    """Tell whether one of the blocks holds the address."""
    return any(address in ipaddress.ip_network(block) for block in blocks)
