# SPDX-License-Identifier: GPL-3.0-or-later
"""Dry runs of the whole site are in sync while fail2ban bans and unbans: its rules are not ours to compare."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, Gateway, call_hosts

# `make test-all` makes fifty on each platform.
DRY_RUNS = int(os.environ.get("DERMS_DRY_RUNS", "3"))
MANAGEMENT = ["10.213.8.0/24", "fd42:213:8::/64"]


@pytest.fixture(params=["ubuntu2204", "rhel9"])
def gateway(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    """Raise a fresh host of each platform that has a time source."""
    platform = str(request.param)
    name = f"e2e-bans-{platform}"
    call_hosts("up", name, "--platform", platform, "--fresh", "--ntp")
    directory = Path(os.environ.get("DERMS_HOSTS_DIR", "/var/lib/derms-hosts"))
    yield Gateway(name, platform, directory / "ssh" / "config")
    call_hosts("down", name)


@pytest.fixture
def inventory(gateway: Gateway, tmp_path: Path) -> Path:
    """Write an inventory of that one gateway, and converge it."""
    path = tmp_path / "hosts.json"
    variables = {
        "ansible_ssh_common_args": f"-F {gateway.ssh_config}",
        "derms_depot": "e2e",
        "derms_management_blocks": MANAGEMENT,
        "derms_internal_blocks": MANAGEMENT,
        "fail2ban_manage_repository": False,
        "mqtt_broker_manage_repository": False,
        "time_sync_sources": [{"address": "10.213.8.1", "kind": "server"}],
    }
    path.write_text(json.dumps({"derms_gateways": {"hosts": {gateway.name: {}}, "vars": variables}}), encoding="utf-8")
    site(path)
    return path


def site(inventory: Path, *words: str) -> str:
    """Run the whole site and return what it printed."""
    command = [str(Path(sys.prefix) / "bin" / "ansible-playbook"), f"--inventory={inventory}", "site.yml", *words]
    done = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def root(gateway: Gateway, command: str) -> str:
    done = gateway.run(f"sudo {command}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def bans(gateway: Gateway) -> Iterator[list[int]]:
    """Ban and unban, over and over; the list holds how often. Ends with what went wrong in the thread, if anything."""
    stop = threading.Event()
    rounds: list[int] = []
    problems: list[BaseException] = []

    def ban_and_unban() -> None:
        try:
            while not stop.is_set():
                address = f"203.0.113.{1 + len(rounds) % 200}"
                root(gateway, f"fail2ban-client set sshd banip {address}")
                stop.wait(1)
                root(gateway, f"fail2ban-client set sshd unbanip {address}")
                rounds.append(1)
                # A few bans in each dry run are enough; starting fail2ban-client takes a good part of a processor.
                stop.wait(1)
        except (AssertionError, subprocess.SubprocessError) as problem:
            problems.append(problem)

    thread = threading.Thread(target=ban_and_unban)
    thread.start()
    try:
        yield rounds
    finally:
        stop.set()
        thread.join()
    if problems:
        raise problems[0]


def test_every_dry_run_is_in_sync(gateway: Gateway, inventory: Path) -> None:
    with bans(gateway) as rounds:
        for number in range(DRY_RUNS):
            printed = site(inventory, "--check")
            assert "No Changes Required" in printed, f"dry run {number + 1}:\n{printed}"
    assert len(rounds) >= DRY_RUNS
    # What came and went was a rule in a chain of fail2ban's own, in the tables that the dry runs compared.
    root(gateway, "fail2ban-client set sshd banip 203.0.113.250")
    assert re.search(r"^-A f2b-sshd .*203\.0\.113\.250", root(gateway, "iptables-save"), re.MULTILINE)
