#!/usr/bin/python
# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: exposure
short_description: What a host listens on, and whether mandatory access control stands behind it
version_added: 0.1.0
author: DERMS Edge developers (@derms-edge)
description:
  - Reads which sockets accept traffic from elsewhere, and reports those that are not expected.
  - Reads whether AppArmor or SELinux is on, and reports it.
  - Nothing is changed.
options:
  expected:
    description: What the host is to listen on, as C(tcp/22).
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Reads only.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
  platform:
    description: Where it works.
    support: full
    platforms: linux
"""

EXAMPLES = r"""
- name: Report what the host shows to the network
  derms.edge.exposure:
    expected: [tcp/22, udp/123]
"""

RETURN = r"""
listeners:
  description: Every socket that accepts traffic from elsewhere.
  type: list
  elements: dict
  returned: always
  sample:
    - port: tcp/22
      address: 0.0.0.0
      program: sshd
access_control:
  description: The state of AppArmor and SELinux.
  type: str
  returned: always
  sample: AppArmor is on
notes:
  description: The state of access control, and the sockets that are not expected.
  type: list
  elements: str
  returned: always
  sample: [AppArmor is on, 'tcp/111 is open on 0.0.0.0 (rpcbind) and not among the expected']
"""

import ipaddress
import sys
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# /proc/net/tcp: st 0A is LISTEN. A UDP socket without a peer (07) takes datagrams from anybody.
OPEN_STATES = {"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"}


def address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the address that /proc/net prints as words of the processor's byte order."""
    words = (bytes.fromhex(text[start : start + 8]) for start in range(0, len(text), 8))
    packed = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    address = ipaddress.ip_address(packed)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def open_sockets(kind: str, table: str) -> list[tuple[str, str, str]]:
    """Return port, address and inode of each socket of a /proc/net table that can be reached from elsewhere."""
    found = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        local, peer, state, inode = fields[1], fields[2], fields[3], fields[9]
        address = address_of(local.partition(":")[0])
        unconnected = int(peer.rpartition(":")[2], 16) == 0
        if state == OPEN_STATES[kind] and unconnected and not address.is_loopback:
            found.append((f"{kind[:3]}/{int(local.partition(':')[2], 16)}", str(address), inode))
    return found


def access_control(selinux_enforcing: str | None, apparmor_enabled: str | None) -> str:
    """Say which mandatory access control is on."""
    if selinux_enforcing is not None:
        return "SELinux is enforcing" if selinux_enforcing.strip() == "1" else "SELinux is on, but permissive"
    if apparmor_enabled is not None and apparmor_enabled.strip() == "Y":
        return "AppArmor is on"
    return "neither SELinux nor AppArmor is on in this kernel"


def unexpected(listeners: Iterable[dict[str, str]], expected: Iterable[str]) -> list[str]:
    """Say which sockets are open and not expected."""
    known = set(expected)
    return [
        f"{one['port']} is open on {one['address']} ({one['program']}) and not among the expected"
        for one in listeners
        if one["port"] not in known
    ]


def programs_by_inode() -> dict[str, str]:
    """Return the program behind each socket of every process."""
    programs = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "comm").read_text().strip()
            links = [str(link.readlink()) for link in (process / "fd").iterdir()]
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            # It ended while it was being read, or a container does not show it even to root.
            continue
        programs.update({link[len("socket:[") : -1]: name for link in links if link.startswith("socket:[")})
    return programs


def text_of(path: str) -> str | None:
    """Return what a file of the kernel says; None where the kernel has no such file."""
    place = Path(path)
    return place.read_text() if place.exists() else None


def main() -> None:
    """Read and report."""
    module = AnsibleModule(
        argument_spec={"expected": {"type": "list", "elements": "str", "default": []}}, supports_check_mode=True
    )
    programs = programs_by_inode()
    listeners = [
        {"port": port, "address": address, "program": programs.get(inode, "unknown program")}
        for kind in OPEN_STATES
        for port, address, inode in open_sockets(kind, text_of(f"/proc/net/{kind}") or "")
    ]
    state = access_control(text_of("/sys/fs/selinux/enforce"), text_of("/sys/module/apparmor/parameters/enabled"))
    notes = [state, *unexpected(listeners, module.params["expected"])]
    module.exit_json(changed=False, listeners=listeners, access_control=state, notes=notes)


if __name__ == "__main__":
    main()
