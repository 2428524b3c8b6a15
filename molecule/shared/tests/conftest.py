# SPDX-License-Identifier: GPL-3.0-or-later
"""The converged gateway, as the tests see it: over SSH, and from each address that a block of the inventory holds."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
import testinfra

TIME_SOURCE = "10.213.8.1"


class Parameter(NamedTuple):
    """What the kernel holds, and whether this host may change it: in a container, much is its machine's."""

    value: str
    writable: bool


@dataclass(frozen=True)
class Gateway:
    """Where the gateway is and how it is logged in to."""

    name: str
    platform: str
    addresses: dict[int, str]
    user: str
    private_key: str
    ssh_options: str


@pytest.fixture(scope="session")
def gateway() -> Gateway:
    """Return the gateway that verify.yml tests."""
    fields = json.loads(os.environ["DERMS_GATEWAY"])
    return Gateway(addresses={4: fields.pop("address"), 6: fields.pop("address6")}, **fields)


@pytest.fixture(scope="session")
def root(gateway: Gateway) -> Iterator[Any]:
    """Yield the gateway as root sees it, over one connection for all commands."""
    # pytest's own directories have paths too long for a Unix socket.
    with TemporaryDirectory() as directory:
        yield testinfra.get_host(
            f"ssh://{gateway.user}@{gateway.addresses[4]}",
            sudo=True,
            ssh_identity_file=gateway.private_key,
            ssh_extra_args=gateway.ssh_options,
            controlpath=f"{directory}/control",
        )
        subprocess.run(
            ["ssh", "-O", "exit", "-o", f"ControlPath={directory}/control", gateway.name],
            capture_output=True,
            check=True,
        )


@pytest.fixture(scope="session")
def is_el(gateway: Gateway) -> bool:
    """Tell whether the gateway is one of RHEL's kind."""
    return gateway.platform == "rhel9"


@pytest.fixture(scope="session")
def kernel(root: Any) -> dict[str, Parameter]:
    """Return every parameter of the running kernel, by the name that sysctl gives it."""
    places = "/proc/sys/net /proc/sys/fs /proc/sys/kernel /proc/sys/vm"
    writable = set(root.check_output(f"find {places} -type f -writable").splitlines())
    # Some may only be written, or end a read early.
    shown = root.run(f"find {places} -type f -exec grep --no-messages --with-filename '' {{}} +").stdout
    rows = (line.partition(":") for line in shown.splitlines())
    return {
        path.removeprefix("/proc/sys/").replace("/", "."): Parameter(value.strip(), path in writable)
        for path, _, value in rows
    }


@pytest.fixture(scope="session")
def kernel_at_boot(root: Any) -> dict[str, int]:
    """Return what the kernel is told at each boot."""
    text = root.check_output("cat /etc/sysctl.d/90-derms.conf")
    return {name: int(value) for name, value in re.findall(r"^-?([^#;= ]+) *= *(\d+)$", text, re.MULTILINE)}


@pytest.fixture(scope="session")
def sshd(root: Any) -> dict[str, str]:
    """Return the configuration that sshd holds, all its files taken together."""
    lines = root.check_output("sshd -T").splitlines()
    return {name: value for name, _, value in (line.partition(" ") for line in lines)}
