# SPDX-License-Identifier: GPL-3.0-or-later
"""A release that does not come up: taken back by itself on the first gateway, and kept from all others.

Before that, what goes wrong with the devices behind the first one. The gateways are one of each platform; what need not
end at the first is judged on both in the same run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import pytest

from tests.e2e.conftest import ROOT, Deployment, Gateway, Run, raised
from tests.small_depot import ADDRESS, FIRST_PORT, FULL_A, Charger, charging, declare, port_of, within

FIRST, SECOND = BOTH = ("upgrade-1", "upgrade-2")
AGENT = "sudo /opt/derms/current/bin/derms-agent"
# What the agent cannot do without; the rest of a site is converged elsewhere.
NEEDED = ("--tags", "service_accounts,logging,certificates,agent,grid_gateway")
SERVICES = ("--tags", "agent,grid_gateway")
# Nobody is there: the grid gateway runs, and says so.
VTN: dict[str, Any] = {"derms_vtn_url": f"https://{ADDRESS}:15029/"}
GRID_GATEWAY = "derms-grid-gateway.service"
UNITS = "/etc/systemd/system"
FALLBACK_MA, BY_HAND_MA = 6000, 10000


@dataclass(frozen=True)
class Fleet:
    """Two gateways with the release of this tree in service, the grid's too, and what is in the field."""

    first: Gateway
    second: Gateway
    deployment: Deployment
    chargers: dict[str, Charger]

    @property
    def both(self) -> tuple[Gateway, Gateway]:
        """Return the gateways."""
        return self.first, self.second

    def declare(self, **variables: Any) -> None:
        """Declare the depots, with more variables for both."""
        declare(self.deployment.inventory, BOTH, self.first.ssh_config, chargers=2, **variables)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Raise two gateways, have vehicles charge, and put the agent of this tree in service."""
    directory = tmp_path_factory.mktemp("fleet")
    deployment = Deployment(directory / "inventory", directory / "drift.json")
    with raised("ubuntu2204", FIRST) as (first,), raised("rhel9", SECOND) as (second,):
        # Side by side here; what is tested goes one after the other, which is the default.
        declare(deployment.inventory, BOTH, first.ssh_config, chargers=2, derms_serial=2, **VTN)
        with charging(deployment.inventory, FIRST) as one, charging(deployment.inventory, SECOND) as other:
            run = deployment.run(*NEEDED)
            assert run.status == 0, run.words
            yield Fleet(first, second, deployment, {FIRST: one, SECOND: other})


ENDS = 'sys.exit("this release does not come up")'
# Alive, and never ready: systemd itself would wait for a minute, and start it again.
HANGS = "import time; time.sleep(600); ended = 0"
HANGING_S = 15


def broken_release(directory: Path, breaks: str) -> Path:
    """Copy the agent's source, and break it where only the service comes by: the configuration is still checked."""
    source = directory / "agent"
    shutil.copytree(ROOT / "agent", source, ignore=shutil.ignore_patterns("tests", "__pycache__"))
    starts = source / "src" / "derms_agent" / "cli.py"
    text = starts.read_text()
    broken = text.replace("ended: int = service.run(options)", breaks)
    assert broken != text
    starts.write_text(broken)
    return source


def state(gateway: Gateway) -> dict[str, str]:
    """Return what an upgrade changes on a gateway."""
    asked = {
        "release": "readlink /opt/derms/current",
        "service": "systemctl show --property=ActiveState,MainPID,NRestarts derms-orchestrator",
        "releases": "ls -d /opt/derms/0*",
        "configuration": "sudo sha256sum /etc/derms/agent.conf /etc/derms/limits.conf /etc/derms/depot.yml",
        "unit": f"sha256sum {UNITS}/derms-orchestrator.service {UNITS}/derms.slice {UNITS}/{GRID_GATEWAY}",
    }
    return {name: gateway.run(command).stdout for name, command in asked.items()}


def gone_back(gateway: Gateway, before: dict[str, str]) -> None:
    """See that what an upgrade changes on a gateway is as before, and that all services run with that."""
    after = state(gateway)
    assert {name: after[name] for name in ("release", "configuration", "unit")} == {
        name: before[name] for name in ("release", "configuration", "unit")
    }
    report = json.loads(gateway.run(f"{AGENT} status --json").stdout)
    assert (report["version"], report["ready"]) == (before["release"].strip(), True)
    # After a reboot its start waits for the other's.
    within(30, lambda: gateway.run(f"systemctl is-active {GRID_GATEWAY}").stdout == "active\n")


def changed(run: Run, gateway: Gateway) -> set[tuple[str, bool]]:
    """Return what a run changed on a gateway, and whether it took that back; restarts follow from it."""
    entries = run.report["hosts"][gateway.name]
    return {(entry["what"], entry["rolled_back"]) for entry in entries if entry["should_be"] != "restarted"}


def fallback_ma(mbpoll: str, charger: int, *written_ma: int) -> int:
    """Return a charger's fallback, after it was set by hand where there is something to write."""
    at = ["-m", "tcp", "-a", "255", "-0", "-1", "-p", str(port_of(charger, FIRST_PORT)), ADDRESS]
    for value_ma in written_ma:
        write = [mbpoll, *at, "-t", "4", "-r", "5016", str(value_ma)]
        subprocess.run(write, capture_output=True, check=True, timeout=20)
    read = [mbpoll, *at, "-t", "4:int", "-B", "-r", "1600"]
    said = subprocess.run(read, capture_output=True, text=True, check=True, timeout=20).stdout
    (value,) = re.findall(r"^\[1600\]:\s+(\d+)", said, re.MULTILINE)
    return int(value)


def test_devices_are_chosen_by_name_and_a_dead_one_is_named_after_the_others_were_done(
    fleet: Fleet, mbpoll: str
) -> None:
    devices = ("--tags", "field_devices", "--limit", FIRST)
    for charger in (1, 2):
        assert fallback_ma(mbpoll, charger) == FALLBACK_MA
        assert fallback_ma(mbpoll, charger, BY_HAND_MA) == BY_HAND_MA

    run = fleet.deployment.run(*devices, "-e", "derms_only=charger-2,hall-0*")
    assert run.status == 1, run.words
    (reason,) = run.report["not_verified"]
    assert f"found hall-0*, expected a device of depot of-{FIRST}, or a pattern of some" in reason
    assert [fallback_ma(mbpoll, charger) for charger in (1, 2)] == [BY_HAND_MA, BY_HAND_MA]

    run = fleet.deployment.run(*devices, "-e", "derms_only=*-2")
    assert run.status == 0, run.words
    assert [(entry["device"], entry["what"]) for entry in run.report["hosts"][FIRST]] == [
        (f"of-{FIRST} charger-2", "failsafe_current")
    ]
    assert "devices *-2" in run.report["scope"]
    assert [fallback_ma(mbpoll, charger) for charger in (1, 2)] == [BY_HAND_MA, FALLBACK_MA]

    fleet.chargers[FIRST].send({"fault": "silent", "on": "charger-2"})
    run = fleet.deployment.run(*devices)
    assert run.status == 1, run.words
    assert run.report["status"] == "failed"
    (reason,) = run.report["not_verified"]
    assert "failed: 1 of 2 devices: charger-2 unreachable: " in reason
    assert [(entry["device"], entry["what"]) for entry in run.report["hosts"][FIRST]] == [
        (f"of-{FIRST} charger-1", "failsafe_current")
    ]
    assert fallback_ma(mbpoll, 1) == FALLBACK_MA

    # It may be left for later, and is not taken for verified.
    run = fleet.deployment.run(*devices, "-e", "field_devices_max_failures=1")
    assert run.report["status"] == "not_verified"
    (reason,) = run.report["not_verified"]
    assert reason.startswith(f"{FIRST}: charger-2 unreachable: "), reason
    assert run.status == 1
    assert "No Changes Required" not in run.words
    fleet.chargers[FIRST].send({"clear": "charger-2"})


def test_a_broken_release_goes_back_on_the_first_gateway_and_reaches_no_other(fleet: Fleet, tmp_path: Path) -> None:
    within(60, lambda: all(charger.drawn_a > 0.9 * FULL_A for charger in fleet.chargers.values()))
    before = {gateway.name: state(gateway) for gateway in (fleet.first, fleet.second)}

    # A new setting comes with it, which has to go back as well.
    broken = str(broken_release(tmp_path, ENDS))
    fleet.declare(agent_source=broken, agent_droop=True, grid_gateway_stop_timeout_s=21, **VTN)
    run = fleet.deployment.run(*NEEDED)
    assert run.status == 1, run.words

    gone_back(fleet.first, before[FIRST])
    kept = before[FIRST]["release"].strip()
    # It is what controls the charger: the vehicle comes down when that is asked of it, and goes up again.
    assert fleet.first.run(f"{AGENT} limit put test 5 --for 300").returncode == 0
    within(30, lambda: fleet.chargers[FIRST].drawn_a < 0.5 * FULL_A)
    assert fleet.first.run(f"{AGENT} limit remove test").returncode == 0
    within(60, lambda: fleet.chargers[FIRST].drawn_a > 0.9 * FULL_A)

    assert state(fleet.second) == before[SECOND]
    assert fleet.chargers[SECOND].drawn_a > 0.9 * FULL_A

    failed, left_out = run.report["not_verified"]
    assert failed.startswith(f"{FIRST}: derms.edge.agent : Put the agent's release in service: failed: "), failed
    assert "derms-orchestrator.service does not stay up" in failed
    assert f"Went back to {kept}, which is in service again." in failed
    assert left_out == f"{SECOND}: not reached, the run ended before"
    assert run.report["status"] == "failed"
    assert set(run.report["hosts"]) == {FIRST}
    assert {(entry["what"], entry["rolled_back"]) for entry in run.report["hosts"][FIRST]} == {
        ("agent", True),
        ("/etc/derms/limits.conf", True),
        (f"{UNITS}/{GRID_GATEWAY}", True),
    }
    assert f"3 changes rolled back on {FIRST}" in run.words
    assert "applied" not in run.words


def cut_off_once_switched(fleet: Fleet, gateway: Gateway, log: Path) -> None:
    """Deploy to a gateway, and cut its power once the link leads to another release."""
    ask = "readlink /opt/derms/current; cat /proc/sys/kernel/random/boot_id"
    kept, boot = gateway.run(ask).stdout.split()
    program = [str(Path(sys.prefix) / "bin" / "ansible-playbook"), "--inventory", str(fleet.deployment.inventory)]
    with log.open("wb") as output:
        run = subprocess.Popen(
            [*program, "--tags=agent", f"--limit={gateway.name}", "site.yml"],
            cwd=ROOT,
            env=fleet.deployment.environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        within(180, lambda: run.poll() is not None or gateway.run(ask).stdout.split()[0] != kept)
        assert run.poll() is None, log.read_text()
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    assert gateway.run("sudo systemd-run --on-active=1 systemctl reboot --force --force").returncode == 0
    # A login that the cut meets would hang.
    time.sleep(4)
    within(60, lambda: gateway.lets_in() and gateway.run(ask).stdout.split()[1] != boot)


def test_an_upgrade_that_was_cut_off_is_judged_by_the_next_run(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(fleet.second)
    # It stays up and is never ready: whoever waits for it decides, long before systemd would.
    changes: dict[str, Any] = {"agent_source": str(broken_release(tmp_path, HANGS)), "agent_droop": True, **VTN}
    fleet.declare(**changes)
    cut_off_once_switched(fleet, fleet.second, tmp_path / "log")
    assert state(fleet.second)["release"] != before["release"]

    fleet.declare(agent_health_timeout_s=HANGING_S, **changes)
    # The connection that Ansible had kept has gone with the power.
    monkeypatch.setenv("ANSIBLE_SSH_RETRIES", "2")
    run = fleet.deployment.run("--tags", "agent", "--limit", SECOND)
    assert run.status == 1, run.words
    (failed,) = run.report["not_verified"]
    assert f"within {HANGING_S} s; last: derms-orchestrator.service is activating" in failed, failed
    assert f"Went back to {before['release'].strip()}, which is in service again." in failed, failed
    assert changed(run, fleet.second) == {("agent", True)}
    gone_back(fleet.second, before)


def test_what_was_altered_in_service_is_put_back_and_the_service_restarted(fleet: Fleet) -> None:
    fleet.declare(derms_serial=2, **VTN)
    before = {gateway.name: state(gateway) for gateway in fleet.both}
    altered = {}
    for gateway in fleet.both:
        # Edited by hand, and what a power cut may leave.
        packages = gateway.run("ls -d /opt/derms/current/lib/python3*/site-packages").stdout.strip()
        altered[gateway.name] = (f"{packages}/derms_agent/orchestrator/site.py", f"{packages}/idna/core.py")
        edited, emptied = altered[gateway.name]
        done = gateway.run(f"echo '# by hand' | sudo tee -a {edited} && sudo truncate -s 0 {emptied}")
        assert done.returncode == 0, done.stderr
        # Gone, if the release were built anew.
        assert gateway.run("sudo touch /opt/derms/current/witness").returncode == 0

    run = fleet.deployment.run("--tags", "agent")
    assert run.status == 0, run.words
    for gateway in fleet.both:
        edited, emptied = altered[gateway.name]
        kept = before[gateway.name]["release"].strip()
        named = {what for what, _rolled_back in changed(run, gateway)}
        assert {path.replace("/current/", f"/{kept}/") for path in (edited, emptied)} <= named
        assert gateway.run(f"sudo tail -n 1 {edited}").stdout != "# by hand\n"
        assert gateway.run(f"sudo test -s {emptied} -a -f /opt/derms/current/witness").returncode == 0
        gone_back(gateway, before[gateway.name])
        assert state(gateway)["service"] != before[gateway.name]["service"]

    run = fleet.deployment.run("--dry-run", *SERVICES)
    assert (run.status, run.report["hosts"]) == (0, {FIRST: [], SECOND: []}), run.words


def test_a_unit_that_the_same_release_does_not_come_up_with_goes_back(fleet: Fleet) -> None:
    before = {gateway.name: state(gateway) for gateway in fleet.both}
    # A hundredth of a core: it cannot start in time.
    fleet.declare(derms_serial=2, agent_cpu_cores=0.01, agent_health_timeout_s=HANGING_S, **VTN)
    run = fleet.deployment.run("--tags", "agent")
    assert run.status == 1, run.words
    for gateway, failed in zip(fleet.both, run.report["not_verified"], strict=True):
        kept = before[gateway.name]["release"].strip()
        assert f"Went back to {kept} with the configuration before, which is in service again." in failed, failed
        assert changed(run, gateway) == {(f"{UNITS}/derms.slice", True)}
        gone_back(gateway, before[gateway.name])


def test_a_unit_that_the_grid_gateway_does_not_start_with_goes_back_and_nothing_else_is_restarted(fleet: Fleet) -> None:
    before = {gateway.name: state(gateway) for gateway in fleet.both}
    # By hand: it starts with this unit alone.
    drop_in = f"{UNITS}/{GRID_GATEWAY}.d/by-hand.conf"
    condition = f"[Service]\nExecStartPre=/bin/grep -q ^TimeoutStopSec=20$ {UNITS}/{GRID_GATEWAY}\n"
    for gateway in fleet.both:
        put = f"sudo sh -c 'printf %s \"$1\" >{drop_in}' sh {quote(condition)}"
        assert gateway.run(put).returncode == 0
    fleet.declare(derms_serial=2, grid_gateway_stop_timeout_s=21, **VTN)
    run = fleet.deployment.run(*SERVICES)
    assert run.status == 1, run.words
    for gateway, failed in zip(fleet.both, run.report["not_verified"], strict=True):
        kept = before[gateway.name]["release"].strip()
        assert f"{GRID_GATEWAY} does not start: " in failed, failed
        assert f"Went back to {kept} with the configuration before, which is in service again." in failed, failed
        assert changed(run, gateway) == {(f"{UNITS}/{GRID_GATEWAY}", True)}
        gone_back(gateway, before[gateway.name])
        assert state(gateway)["service"] == before[gateway.name]["service"]
        assert gateway.run(f"sudo rm {drop_in} && sudo systemctl daemon-reload").returncode == 0


def test_without_a_vtn_there_is_no_grid_gateway_any_more(fleet: Fleet) -> None:
    fleet.declare(derms_serial=2)
    run = fleet.deployment.run(*SERVICES)
    assert run.status == 0, run.words
    for gateway in fleet.both:
        assert (f"{UNITS}/{GRID_GATEWAY}", False) in changed(run, gateway)
        assert gateway.run(f"systemctl show -P LoadState -P ActiveState {GRID_GATEWAY}").stdout.split() == [
            "not-found",
            "inactive",
        ]
        report = json.loads(gateway.run(f"{AGENT} status --json").stdout)
        assert (report["ready"], report["grid"]) == (True, None)

    run = fleet.deployment.run("--dry-run", *SERVICES)
    assert (run.status, run.report["hosts"]) == (0, {FIRST: [], SECOND: []}), run.words
