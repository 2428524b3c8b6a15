# SPDX-License-Identifier: GPL-3.0-or-later
"""Nobody is locked out: a change that shuts everybody out is undone by the host itself, within a minute.

The controller is killed, and the connection that it left behind is closed, right after the change: nothing but the host
is left to undo it. Logins are tried over new connections only, for an established one outlives what let it in.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.e2e.conftest import ROOT, Gateway

LONGEST_LOCKOUT_S = 60
LONGEST_CONVERGE_S = 300
NETWORK = ["10.213.8.0/24", "fd42:213:8::/64"]
# What the rollback role prints first: the change is in force, and not confirmed yet.
CHANGED = "TASK [derms.edge.rollback"


@dataclass(frozen=True)
class Lockout:
    """A role, and variables of it that shut everybody out."""

    role: str
    variables: dict[str, Any]


FIREWALL = Lockout("firewall", {"derms_management_blocks": ["192.0.2.0/24"], "firewall_admit_any_controller": True})
SSHD = Lockout("baseline", {"baseline_sshd_options": [{"option": "PubkeyAuthentication", "value": "no"}]})


class Controller:
    """A control node of its own for each test: inventory, play and connections."""

    def __init__(self, directory: Path, sockets: Path, gateway: Gateway, role: str) -> None:
        self.directory = directory
        self.sockets = sockets
        inventory = {
            "all": {
                "hosts": {gateway.name: {}},
                "vars": {
                    "ansible_ssh_common_args": f"-F {gateway.ssh_config}",
                    "ansible_user": "deploy",
                    "derms_depot": "e2e",
                    "derms_management_blocks": NETWORK,
                    "derms_internal_blocks": NETWORK,
                    "derms_web_blocks": NETWORK,
                    "derms_der_blocks": [],
                },
            }
        }
        play = {
            "hosts": "all",
            "become": True,
            "gather_facts": True,
            "gather_subset": ["!all", "!min", "distribution", "service_mgr", "pkg_mgr", "virtual"],
            "roles": [f"derms.edge.{role}"],
        }
        (directory / "inventory.json").write_text(json.dumps(inventory), encoding="utf-8")
        (directory / "play.json").write_text(json.dumps([play]), encoding="utf-8")

    def start(self, log: Path, variables: dict[str, Any], *words: str) -> subprocess.Popen[bytes]:
        """Start a run in a process group of its own."""
        command = [
            str(Path(sys.prefix) / "bin" / "ansible-playbook"),
            f"--inventory={self.directory / 'inventory.json'}",
            f"--extra-vars={json.dumps(variables)}",
            *words,
            str(self.directory / "play.json"),
        ]
        environment = {**os.environ, "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.sockets)}
        with log.open("wb") as output:
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def converge(self, variables: dict[str, Any], *words: str) -> tuple[int, str]:
        """Run to the end; return the status and what was printed."""
        log = self.directory / "run.log"
        status = self.start(log, variables, *words).wait(timeout=LONGEST_CONVERGE_S)
        return status, log.read_text(encoding="utf-8")

    def kill_once_changed(self, variables: dict[str, Any]) -> float:
        """Run until the change is in force, kill the run, close its connections; return when that was."""
        log = self.directory / "killed.log"
        run = self.start(log, variables)
        deadline_s = time.monotonic() + LONGEST_CONVERGE_S
        while CHANGED not in log.read_text(encoding="utf-8"):
            assert run.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < deadline_s, log.read_text(encoding="utf-8")
            time.sleep(0.05)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        killed_s = time.monotonic()
        # ssh keeps the connection for a later run, in a process that has left the group.
        for socket in self.sockets.iterdir():
            close = ["ssh", "-O", "exit", "-o", f"ControlPath={socket}", "gateway"]
            subprocess.run(close, capture_output=True, check=True, timeout=10)
        return killed_s


@pytest.fixture(params=[FIREWALL, SSHD], ids=["firewall", "sshd"])
def lockout(request: pytest.FixtureRequest) -> Lockout:
    chosen = request.param
    assert isinstance(chosen, Lockout)
    return chosen


@pytest.fixture
def controller(tmp_path: Path, gateway: Gateway, lockout: Lockout) -> Iterator[Controller]:
    """Return the control node of a gateway that is in sync."""
    # pytest's own directory is too long a path for a Unix socket.
    with TemporaryDirectory() as sockets:
        controller = Controller(tmp_path, Path(sockets), gateway, lockout.role)
        status, words = controller.converge({})
        assert status == 0, words
        yield controller


def test_a_new_login_works_within_a_minute_of_a_killed_run(
    gateway: Gateway, controller: Controller, lockout: Lockout
) -> None:
    killed_s = controller.kill_once_changed(lockout.variables)
    assert not gateway.lets_in(), "the change was meant to shut everybody out"
    while not gateway.lets_in():
        assert time.monotonic() - killed_s < LONGEST_LOCKOUT_S
    status, words = controller.converge({}, "--check")
    assert status == 0, words
    assert "changed=0 " in words, words


@pytest.mark.parametrize("lockout", [FIREWALL], ids=["firewall"], indirect=True)
def test_the_run_says_that_its_change_was_undone(gateway: Gateway, controller: Controller, lockout: Lockout) -> None:
    status, words = controller.converge({**lockout.variables, "firewall_rollback_after_s": 20})
    assert status != 0, words
    assert "The host has undone it by itself" in words
    assert gateway.lets_in()


@pytest.mark.parametrize("lockout", [FIREWALL], ids=["firewall"], indirect=True)
def test_a_run_from_outside_the_management_blocks_is_refused(
    gateway: Gateway, controller: Controller, lockout: Lockout
) -> None:
    status, words = controller.converge({**lockout.variables, "firewall_admit_any_controller": False})
    assert status != 0, words
    assert "none of the blocks that may use SSH holds that address" in words
    assert gateway.lets_in()
