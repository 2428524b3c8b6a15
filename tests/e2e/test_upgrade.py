# SPDX-License-Identifier: GPL-3.0-or-later
"""A release that does not come up: taken back by itself on the first gateway, and kept from all others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, Deployment, Gateway, raised
from tests.small_depot import FULL_A, Charger, charging, declare, within

FIRST, SECOND = BOTH = ("upgrade-1", "upgrade-2")
AGENT = "sudo /opt/derms/current/bin/derms-agent"
# What the agent cannot do without; the rest of a site is converged elsewhere.
NEEDED = ("--tags", "service_accounts,logging,certificates,agent")


@dataclass(frozen=True)
class Fleet:
    """Two gateways with the release of this tree in service, and what is in the field."""

    first: Gateway
    second: Gateway
    deployment: Deployment
    chargers: dict[str, Charger]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """Raise two gateways, have vehicles charge, and put the agent of this tree in service."""
    deployment = Deployment(tmp_path / "inventory", tmp_path / "drift.json")
    with raised("ubuntu2204", *BOTH) as (first, second):
        # Side by side here; what is tested goes one after the other, which is the default.
        declare(deployment.inventory, BOTH, first.ssh_config, derms_serial=2)
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
        "unit": "sha256sum /etc/systemd/system/derms-orchestrator.service /etc/systemd/system/derms.slice",
    }
    return {name: gateway.run(command).stdout for name, command in asked.items()}


def test_a_broken_release_goes_back_on_the_first_gateway_and_reaches_no_other(fleet: Fleet, tmp_path: Path) -> None:
    within(60, lambda: all(charger.drawn_a > 0.9 * FULL_A for charger in fleet.chargers.values()))
    before = {gateway.name: state(gateway) for gateway in (fleet.first, fleet.second)}

    # A new setting comes with it, which has to go back as well.
    changes = {"agent_source": str(broken_release(tmp_path / "ends", ENDS)), "agent_demand_cap_kw": 30}
    declare(fleet.deployment.inventory, BOTH, fleet.first.ssh_config, **changes)
    run = fleet.deployment.run(*NEEDED)
    assert run.status == 1, run.words

    after = state(fleet.first)
    kept = before[FIRST]["release"].strip()
    assert {name: after[name] for name in ("release", "configuration", "unit")} == {
        name: before[FIRST][name] for name in ("release", "configuration", "unit")
    }
    report = json.loads(fleet.first.run(f"{AGENT} status --json").stdout)
    assert (report["version"], report["ready"]) == (kept, True)
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
    }
    assert f"2 changes rolled back on {FIRST}" in run.words
    assert "applied" not in run.words

    # Another one stays up and is never ready: whoever waits for it decides, long before systemd would.
    changes = {"agent_source": str(broken_release(tmp_path / "hangs", HANGS)), "agent_health_timeout_s": HANGING_S}
    declare(fleet.deployment.inventory, BOTH, fleet.first.ssh_config, **changes)
    run = fleet.deployment.run("--tags", "agent")
    assert run.status == 1, run.words
    failed, _left_out = run.report["not_verified"]
    assert f"within {HANGING_S} s; last: derms-orchestrator.service is activating" in failed, failed
    assert f"Went back to {kept}, which is in service again." in failed, failed
    after = state(fleet.first)
    assert {name: after[name] for name in ("release", "configuration", "unit")} == {
        name: before[FIRST][name] for name in ("release", "configuration", "unit")
    }
    report = json.loads(fleet.first.run(f"{AGENT} status --json").stdout)
    assert (report["version"], report["ready"]) == (kept, True)
    assert state(fleet.second) == before[SECOND]
