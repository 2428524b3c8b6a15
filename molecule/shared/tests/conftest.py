# SPDX-License-Identifier: GPL-3.0-or-later
"""The converged gateway, as the tests see it: over SSH, and from each address that a block of the inventory holds."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import pytest
import testinfra


@dataclass(frozen=True)
class Gateway:
    """Where the gateway is and how it is logged in to."""

    name: str
    platform: str
    addresses: dict[int, str]
    user: str
    private_key: str
    ssh_options: str

    def login(self, *, sudo: bool) -> Any:
        """Return testinfra's view of the gateway, as the deployment user or as root."""
        return testinfra.get_host(
            f"ssh://{self.user}@{self.addresses[4]}",
            sudo=sudo,
            ssh_identity_file=self.private_key,
            ssh_extra_args=self.ssh_options,
            controlpersist=60,
        )


@pytest.fixture(scope="session")
def gateway() -> Gateway:
    """Return the gateway that verify.yml tests."""
    fields = json.loads(os.environ["DERMS_GATEWAY"])
    return Gateway(addresses={4: fields.pop("address"), 6: fields.pop("address6")}, **fields)


@pytest.fixture(scope="session")
def root(gateway: Gateway) -> Any:
    """Return the gateway as root sees it."""
    return gateway.login(sudo=True)


@pytest.fixture(scope="session")
def is_el(gateway: Gateway) -> bool:
    """Tell whether the gateway is one of RHEL's kind."""
    return gateway.platform == "rhel9"
