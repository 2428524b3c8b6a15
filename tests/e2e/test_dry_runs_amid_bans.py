# SPDX-License-Identifier: GPL-3.0-or-later
"""Dry runs of the whole site are in sync while fail2ban bans and unbans: its rules are not ours to compare.

What they judge, the agent and a charger's settings among it, was deployed by the built collection, installed elsewhere,
without a checkout: the checkout's dry runs would name whatever that did otherwise.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import small_depot
from tests.e2e.conftest import ROOT, Gateway, call_hosts

# `make test-all` makes fifty on each platform.
DRY_RUNS = int(os.environ.get("DERMS_DRY_RUNS", "3"))
PLAYBOOK = (str(Path(sys.prefix) / "bin" / "ansible-playbook"),)
# Both platforms may be under way at once.
FIRST_PORTS = {"ubuntu2204": 15041, "rhel9": 15042}


@pytest.fixture(params=["ubuntu2204", "rhel9"])
def gateway(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    """Raise a fresh host of each platform that has a time source."""
    platform = str(request.param)
    name = f"e2e-bans-{platform}"
    call_hosts("up", name, "--platform", platform, "--fresh", "--ntp")
    directory = Path(os.environ.get("DERMS_HOSTS_DIR", "/var/lib/derms-hosts"))
    yield Gateway(name, platform, directory / "ssh" / "config")
    call_hosts("down", name)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the collection and install it; return the directory of collections that holds it alone."""
    built, collections = tmp_path_factory.mktemp("built"), tmp_path_factory.mktemp("collections")
    galaxy = [str(Path(sys.prefix) / "bin" / "ansible-galaxy"), "collection", "install", "--no-deps", "-p"]
    run([str(ROOT / "tools" / "build_collection"), str(built)], built)
    run([*galaxy, str(collections), *map(str, built.iterdir())], built, ANSIBLE_COLLECTIONS_PATH=str(collections))
    return collections


@pytest.fixture
def inventory(gateway: Gateway, installed: Path, tmp_path: Path) -> Iterator[Path]:
    """Write an inventory of a depot with that one gateway, and converge it by the installed collection.

    Its charger too, which is as it left the factory.
    """
    directory = tmp_path / "inventory"
    small_depot.declare(directory, [gateway.name], gateway.ssh_config, first_port=FIRST_PORTS[gateway.platform])
    with small_depot.played(directory / f"{gateway.name}.yml", "--factory-settings"):
        run(
            [*PLAYBOOK, f"--inventory={directory}", "derms.edge.site"],
            tmp_path,
            ANSIBLE_COLLECTIONS_PATH=str(installed),
        )
        yield directory


def run(command: Sequence[str], directory: Path, **settings: str) -> str:
    """Run a program with the project's own settings and others; return what it printed."""
    done = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), **settings},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
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
    assert root(gateway, "systemctl is-active derms-orchestrator") == "active\n"
    with bans(gateway) as rounds:
        for number in range(DRY_RUNS):
            printed = run([*PLAYBOOK, f"--inventory={inventory}", "site.yml", "--check"], ROOT)
            assert "No Changes Required" in printed, f"dry run {number + 1}:\n{printed}"
    assert len(rounds) >= DRY_RUNS
    # What came and went was a rule in a chain of fail2ban's own, in the tables that the dry runs compared.
    root(gateway, "fail2ban-client set sshd banip 203.0.113.250")
    assert re.search(r"^-A f2b-sshd .*203\.0\.113\.250", root(gateway, "iptables-save"), re.MULTILINE)
