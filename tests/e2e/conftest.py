# SPDX-License-Identifier: GPL-3.0-or-later
"""Test hosts for whole-host tests; where this machine cannot run them, the run ends with status 3 and the reason."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CANNOT_RUN = 3
HOSTS = (sys.executable, "-m", "tests.hosts")
HOSTS_DIR = Path(os.environ.get("DERMS_HOSTS_DIR", "/var/lib/derms-hosts"))
LONGEST_RUN_S = 600
LONGEST_FIRST = ("test_dry_runs_amid_bans.py", "test_demo.py", "test_bad_input.py", "test_upgrade.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that none of them is left for one worker alone at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST_FIRST)


@dataclass(frozen=True)
class Gateway:
    """A test host, and how to log in to it."""

    name: str
    platform: str
    ssh_config: Path

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command over a connection of its own, never over one that stands already."""
        ssh = [
            "ssh",
            "-F",
            str(self.ssh_config),
            "-o",
            "ControlPath=none",
            "-o",
            "ConnectTimeout=2",
            "-o",
            "BatchMode=yes",
        ]
        # Never this process's own input: ssh would make it non-blocking, which Ansible refuses.
        return subprocess.run(
            [*ssh, self.name, command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def lets_in(self) -> bool:
        """Tell whether a new login works now."""
        return self.run("true").returncode == 0


@dataclass(frozen=True)
class Run:
    """What a run printed and reported."""

    status: int
    words: str
    report: dict[str, Any]


def run_program(command: list[str], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program of the checkout to its end; all that it says is in its output."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=LONGEST_RUN_S,
    )


@dataclass(frozen=True)
class Deployment:
    """./deploy on an inventory, as an operator would."""

    inventory: Path
    report: Path

    def command(self, *words: str) -> list[str]:
        return [sys.executable, str(ROOT / "deploy"), "--no-progress", "-i", str(self.inventory), *words]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "DERMS_DRIFT_JSON": str(self.report)}

    def run(self, *words: str) -> Run:
        """Run it to its end."""
        done = run_program(self.command(*words), self.environment())
        return Run(done.returncode, done.stdout, json.loads(self.report.read_text()) if self.report.exists() else {})


def call_hosts(*words: str) -> str:
    done = subprocess.run([*HOSTS, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == CANNOT_RUN:
        pytest.exit((done.stderr.strip() or done.stdout.strip()).splitlines()[-1], returncode=CANNOT_RUN)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def raised(platform: str, *names: str) -> Iterator[list[Gateway]]:
    """Raise fresh hosts; take them down afterwards, whatever happened."""
    call_hosts("up", *names, "--platform", platform, "--fresh")
    listed = {host["name"]: host for host in json.loads(call_hosts("list", "--json"))}
    try:
        yield [Gateway(name, listed[name]["platform"], HOSTS_DIR / "ssh" / "config") for name in names]
    finally:
        call_hosts("down", *names)


@pytest.fixture(scope="module", params=["ubuntu2204", "rhel9"])
def gateway(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    """Raise a fresh host of each platform."""
    platform = str(request.param)
    # A name of its own for each module, so that two of them can run at once.
    name = f"{request.module.__name__.rpartition('.test_')[2]}-{platform}".replace("_", "-")
    with raised(platform, name) as (one,):
        yield one


@pytest.fixture(scope="session")
def mbpoll() -> str:
    """Give a Modbus reader that is not ours."""
    if not shutil.which("mbpoll"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "install", "-y", "-q", "mbpoll"], env=environment, check=True, capture_output=True)
    return "mbpoll"
