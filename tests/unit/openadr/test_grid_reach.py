# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook that says how far a depot's gateway reaches its utility, through ansible-playbook itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from agent.tests.grid_gateway.conftest import free_port

if TYPE_CHECKING:
    from agent.tests.grid_gateway.conftest import LabVtn

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
DEPOT = """\
plugin: derms.edge.depot
depot: small
site: {{limit_kva: 60}}
gateways: {{gateway-1: {{}}}}
circuits: {{main: {{voltage_v: 400, rating_a: 100}}}}
buses: {{front: {{gateway: gateway-1, transport: tcp, host: 127.0.0.1}}}}
devices: {{front: {{bus: front, unit_id: 255, profile: keba_p30, circuit: main, evses: {{rating_a: 16}}}}}}
{vtn}
"""


def reach(directory: Path, vtn: LabVtn, url: str | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it on a depot whose gateway is this machine, with the agent's code on this interpreter."""
    inventory, certificates, agent = (directory / name for name in ("inventory", "certificates", "agent/current/bin"))
    for made in (inventory / "host_vars", certificates, agent):
        made.mkdir(parents=True, exist_ok=True)
    declared = "" if url is None else f'vtn: {{url: "{url}", ven_name: small}}'
    (inventory / "depot.yml").write_text(DEPOT.format(vtn=declared))
    (inventory / "host_vars" / "gateway-1.yml").write_text(
        f"ansible_connection: local\nansible_become: false\nansible_python_interpreter: {sys.executable}\n"
    )
    theirs = vtn.authority.directory
    for name, file in (
        ("grid-gateway.crt", theirs / "ven.crt"),
        ("grid-gateway.key", theirs / "ven.key"),
        ("grid-gateway.ca.crt", vtn.authority.path),
    ):
        (certificates / name).unlink(missing_ok=True)
        (certificates / name).symlink_to(file)
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
        "ANSIBLE_HOME": str(directory / ".ansible"),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    options = ("-e", f"derms_grid_reach_certificates={certificates}", *arguments)
    return subprocess.run(
        ["ansible-playbook", "-i", inventory, "derms.edge.grid_reach", *options],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_gateway_that_reaches_its_utility(vtn: LabVtn, tmp_path: Path) -> None:
    run = reach(tmp_path, vtn, f"https://localhost:{vtn.port}", "-e", "derms_grid_reach_days=7")
    assert run.returncode == 0, run.stdout + run.stderr
    assert all(f"{stage}: ok" in run.stdout for stage in ("dns", "tcp", "tls", "client_certificate"))
    assert "registration_query: ok" in run.stdout
    assert (vtn.seen("registrations"), vtn.seen("polls")) == ([], 0)
    # The laboratory's certificate lasts for thirty days.
    short = reach(tmp_path, vtn, f"https://localhost:{vtn.port}", "-e", "derms_grid_reach_days=60")
    assert short.returncode != 0
    assert "days, expected more than 60" in short.stdout


def test_the_stage_that_fails_is_named_with_what_to_do_in_a_dry_run_as_well(vtn: LabVtn, tmp_path: Path) -> None:
    run = reach(tmp_path, vtn, f"https://localhost:{free_port()}", "--check")
    assert run.returncode != 0
    words = " ".join(run.stdout.split())
    assert "tcp: failed" in words
    assert "Connection refused; check the port in VTN_URL" in words


def test_a_depot_without_a_utility_is_left_out(vtn: LabVtn, tmp_path: Path) -> None:
    run = reach(tmp_path, vtn, None)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "depot small declares no vtn" in run.stdout
    assert "Look for the VTN" not in run.stdout
