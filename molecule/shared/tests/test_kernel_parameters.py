# SPDX-License-Identifier: GPL-3.0-or-later
"""What bursts of telemetry need of the kernel. What hardening asks of it: test_controls.py."""

from __future__ import annotations

import pytest
from conftest import Parameter

# 25 MiB (reference manual, step 1), and what follows from it.
TELEMETRY = {
    "net.core.rmem_max": 26214400,
    "net.core.wmem_max": 26214400,
    "net.core.rmem_default": 1048576,
    "net.core.netdev_max_backlog": 5000,
    "net.core.netdev_budget": 600,
    "net.core.netdev_budget_usecs": 8000,
    "net.ipv4.udp_rmem_min": 16384,
}


@pytest.mark.parametrize("name", TELEMETRY)
def test_the_kernel_holds_it_where_the_host_may_tell(kernel: dict[str, Parameter], name: str) -> None:
    if name in kernel and kernel[name].writable:
        assert kernel[name].value == str(TELEMETRY[name])


@pytest.mark.parametrize("name", TELEMETRY)
def test_the_kernel_is_told_at_boot(kernel_at_boot: dict[str, int], name: str) -> None:
    assert kernel_at_boot[name] == TELEMETRY[name]


def test_files_stand_in_for_the_limits_where_they_were_asked_for(kernel: dict[str, Parameter], is_el: bool) -> None:
    """On one platform the limits are set and read, on the other the role meets a kernel that is not the host's own."""
    assert kernel["net.core.rmem_max"].writable != is_el
