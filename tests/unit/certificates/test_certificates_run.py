# SPDX-License-Identifier: GPL-3.0-or-later
"""Authorities and certificates as a run makes them on the control node, through ansible-playbook itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cryptography.x509 import load_pem_x509_certificate

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
CANARY = "canary-4be107"

INVENTORY = f"""
all:
  vars:
    ansible_connection: local
    derms_management_blocks: [192.0.2.0/24]
    derms_internal_blocks: [192.0.2.0/24]
    certificates_ca_passphrase: {CANARY}
    certificates_issued:
      - name: web
        common_name: derms-web
        usage: both
        subject_alt_names: ["{{{{ inventory_hostname }}}}", 192.0.2.7]
  hosts:
    nord1: {{derms_depot: nord}}
    nord2: {{derms_depot: nord}}
    sued1: {{derms_depot: sued}}
"""
# The role's own tasks, except those that reach out to the gateway.
PLAYBOOK = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {name: derms.edge.certificates, tasks_from: inspect}
    - ansible.builtin.include_role: {name: derms.edge.certificates, tasks_from: inspect}
"""


def run(directory: Path, *arguments: str) -> tuple[str, list[dict[str, Any]]]:
    """Run the playbook and return its output and what each of the two inspections came to on each host."""
    (directory / "ansible.cfg").touch()
    (directory / "hosts.yml").write_text(INVENTORY)
    (directory / "play.yml").write_text(PLAYBOOK)
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_CONFIG": str(directory / "ansible.cfg"),
        "ANSIBLE_HOME": str(directory / ".ansible"),
        "ANSIBLE_DIFF_ALWAYS": "true",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    process = subprocess.run(
        ["ansible-playbook", "-i", "hosts.yml", "play.yml", *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    (play,) = (play for play in json.loads(process.stdout)["plays"] if play["tasks"])
    inspections = [task["hosts"] for task in play["tasks"] if "Inspect" in task["task"]["name"]]
    assert len(inspections) == 2
    return process.stdout + process.stderr, inspections


def test_a_run_makes_one_authority_a_depot_and_is_then_content(tmp_path: Path) -> None:
    pki = tmp_path / ".pki"
    _output, (predicted, _again) = run(tmp_path, "--check")
    assert {host: result["changed"] for host, result in predicted.items()} == dict.fromkeys(predicted, True)
    assert [one["what"] for one in predicted["nord2"]["drift"]] == ["the depot's authority", "certificate web"]
    assert {host: result["make_authority"] for host, result in predicted.items()} == {
        "nord1": True,
        "nord2": False,
        "sued1": True,
    }
    assert not pki.exists()

    output, (_before, after) = run(tmp_path)
    assert {host: result["to_issue"] for host, result in after.items()} == {"nord1": [], "nord2": [], "sued1": []}
    assert CANARY not in output
    assert "PRIVATE KEY" not in output
    authorities = {name: load_pem_x509_certificate((pki / name / "ca.crt").read_bytes()) for name in ("nord", "sued")}
    for depot, host in (("nord", "nord1"), ("nord", "nord2"), ("sued", "sued1")):
        leaf = load_pem_x509_certificate((pki / depot / host / "web.crt").read_bytes())
        leaf.verify_directly_issued_by(authorities[depot])
    assert (pki / "nord" / "ca.key").read_text().startswith("-----BEGIN ENCRYPTED")
    assert {path.stat().st_mode & 0o777 for path in pki.rglob("*") if path.is_file()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in pki.rglob("*") if path.is_dir()} == {0o700}
