# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo, from a host as installed to No Changes Required, and down again: what a newcomer runs first."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import CANNOT_RUN, HOSTS_DIR, call_hosts, run_program

BRIDGE = os.environ.get("DERMS_HOSTS_BRIDGE", "derms0")


@pytest.fixture(scope="module")
def shown() -> Iterator[str]:
    """Raise the demo, which checks what it shows; yield what it printed. One that stands already is left alone."""
    if os.geteuid() != 0:
        pytest.exit("a network namespace needs root", returncode=CANNOT_RUN)
    if (HOSTS_DIR / "demo-field.pid").exists():
        pytest.skip("the demo stands: make demo-down")
    try:
        raised = run_program(["tools/demo", "up"])
        assert raised.returncode == 0, raised.stdout
        yield raised.stdout
        (address,) = (one["address"] for one in json.loads(call_hosts("list", "--json")) if one["name"] == "gateway-1")
    finally:
        lowered = run_program(["tools/demo", "down"])
    assert lowered.returncode == 0, lowered.stdout
    # Its interface goes at once, and not some time after its namespace: `make demo` may follow.
    assert not Path("/sys/class/net", f"{BRIDGE}-{address.rpartition('.')[2]}").exists()
    namespaces = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert not re.findall(rf"derms-field|derms-utility|{BRIDGE}\.gateway-1", namespaces)


def test_a_gateway_as_installed_becomes_a_depots_controller(shown: str) -> None:
    parts = re.split(r"^\S*\[(\d)/8\] ", shown, flags=re.MULTILINE)
    last = dict(zip(parts[1::2], parts[2::2], strict=True))["8"]
    assert "No Changes Required" in last
    assert "\nThe demo depot stands (" in last
