# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's parameters, as the kernel itself shows them."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import pytest

FILE = "/etc/sysctl.d/90-derms.conf"

# A * stands for every network interface, with `all` and `default`.
EXPECTED = {
    "net/core/rmem_max": 26214400,
    "net/core/wmem_max": 26214400,
    "net/core/rmem_default": 1048576,
    "net/core/netdev_max_backlog": 5000,
    "net/core/netdev_budget": 600,
    "net/core/netdev_budget_usecs": 8000,
    "net/ipv4/udp_rmem_min": 16384,
    "net/ipv4/conf/*/send_redirects": 0,
    "net/ipv4/conf/*/accept_source_route": 0,
    "net/ipv6/conf/*/accept_source_route": 0,
    "net/ipv4/conf/*/accept_redirects": 0,
    "net/ipv6/conf/*/accept_redirects": 0,
    "net/ipv4/conf/*/secure_redirects": 0,
    "net/ipv4/conf/*/log_martians": 1,
    "net/ipv4/icmp_echo_ignore_broadcasts": 1,
    "net/ipv4/icmp_ignore_bogus_error_responses": 1,
    "net/ipv4/conf/*/rp_filter": 1,
    "net/ipv4/tcp_syncookies": 1,
    "net/ipv6/conf/*/accept_ra": 0,
    "net/ipv4/icmp_ratelimit": 100,
    "net/ipv4/icmp_ratemask": 88089,
    "net/ipv4/conf/all/arp_ignore": 1,
    "net/ipv4/conf/all/arp_announce": 2,
    "net/ipv4/tcp_rfc1337": 1,
    "fs/protected_hardlinks": 1,
    "fs/protected_symlinks": 1,
    "fs/suid_dumpable": 0,
    "kernel/core_uses_pid": 1,
    "kernel/kptr_restrict": 2,
    "kernel/sysrq": 0,
    "kernel/randomize_va_space": 2,
    "kernel/yama/ptrace_scope": 1,
    "vm/mmap_min_addr": 65536,
    "net/ipv4/ip_forward": 0,
    "net/ipv6/conf/all/forwarding": 0,
}
UNKNOWN_TO_SOME_KERNELS = {"kernel/sysrq", "kernel/yama/ptrace_scope"}


class Parameter(NamedTuple):
    """What one file of /proc/sys holds."""

    value: int
    writable: bool


@pytest.fixture(scope="module")
def running(root: Any) -> dict[str, Parameter]:
    """Return the parameters that the kernel knows, in one login."""
    patterns = " ".join(f"/proc/sys/{key}" for key in EXPECTED)
    shown = root.check_output(
        f"for file in {patterns}; do [ -e $file ] || continue;"
        ' if [ -w $file ]; then w=1; else w=0; fi; echo "$file $w $(cat $file)"; done'
    )
    rows = (line.split() for line in shown.splitlines())
    return {path.removeprefix("/proc/sys/"): Parameter(int(value), writable == "1") for path, writable, value in rows}


@pytest.fixture(scope="module")
def declared(root: Any) -> dict[str, int]:
    """Return what the kernel is told at each boot."""
    lines = re.findall(r"^-?([^#;= ]+) *= *(\d+)$", root.check_output(f"cat {FILE}"), re.MULTILINE)
    return {name.replace(".", "/"): int(value) for name, value in lines}


@pytest.mark.parametrize("key", EXPECTED)
def test_the_kernel_holds_it_or_cannot_be_told_in_here(running: dict[str, Parameter], key: str) -> None:
    pattern = re.compile(re.escape(key).replace(r"\*", "[^/]+"))
    found = {name: parameter for name, parameter in running.items() if pattern.fullmatch(name)}
    assert not {name for name, (value, writable) in found.items() if writable and value != EXPECTED[key]}


@pytest.mark.parametrize("key", EXPECTED)
def test_the_kernel_is_told_at_boot_unless_no_kernel_here_knows_it(declared: dict[str, int], key: str) -> None:
    if key in declared or key not in UNKNOWN_TO_SOME_KERNELS:
        assert declared[key] == EXPECTED[key]


def test_most_parameters_are_in_this_hosts_own_hands(running: dict[str, Parameter]) -> None:
    assert sum(parameter.writable for parameter in running.values()) > len(running) / 2
