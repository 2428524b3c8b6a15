# SPDX-License-Identifier: GPL-3.0-or-later
"""The check as a playbook meets it: merged variables, vaults and places, through ansible-playbook itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
CANARY = "canary-71c2f0"

PLAYBOOK = """
- hosts: all
  gather_facts: false
  any_errors_fatal: true
  tasks:
    - ansible.builtin.import_role: {name: derms.edge.preflight, rolespec_validate: false}
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.debug: {msg: the first change}
"""
RIGHT = """
derms_depot: nord
derms_management_blocks: [192.0.2.0/24]
derms_internal_blocks: [10.0.0.0/8]
"""


def run(directory: Path, group_vars: str, *arguments: str, vaulted: str = "") -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_CONFIG": str(directory / "ansible.cfg"),
        "ANSIBLE_HOME": str(directory / ".ansible"),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    variables = directory / "group_vars" / "all"
    variables.mkdir(parents=True)
    (directory / "ansible.cfg").touch()
    (directory / "play.yml").write_text(PLAYBOOK)
    (directory / "hosts").write_text("gw1\ngw2\n")
    (directory / "password").write_text("open sesame")
    (variables / "main.yml").write_text(group_vars)
    if vaulted:
        vault = variables / "vault.yml"
        vault.write_text(vaulted)
        encrypt = ["ansible-vault", "encrypt", "--vault-password-file", str(directory / "password"), str(vault)]
        subprocess.run(encrypt, env=environment, check=True, capture_output=True)
    return subprocess.run(
        ["ansible-playbook", "-i", "hosts", "--vault-password-file", "password", "play.yml", *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def results(process: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """Return what each play's one task came to on gw1."""
    plays = json.loads(process.stdout)["plays"]
    return [play["tasks"][0]["hosts"]["gw1"] for play in plays if play["tasks"]]


def test_right_variables_pass_whatever_they_are_made_of(tmp_path: Path) -> None:
    group_vars = f"""{RIGHT}
somebody_elses: anything
derms_web_blocks: "{{{{ [derms_internal_blocks[0], vault_block] }}}}"
derms_vtn_url: "https://{{{{ ansible_facts['hostname'] }}}}/"
certificates_ca_passphrase: "{{{{ vault_passphrase }}}}"
"""
    vaulted = f"vault_block: 198.51.100.0/24\nvault_passphrase: {CANARY}\n"
    process = run(tmp_path, group_vars, vaulted=vaulted)
    checked, changed = results(process)
    assert checked["problems"] == []
    assert changed["msg"] == "the first change"
    assert CANARY not in process.stdout + process.stderr


def test_everything_wrong_is_named_at_once_with_its_place(tmp_path: Path) -> None:
    group_vars = f"""derms_depot: Nord
derms_internal_blocks:
  - 10.0.0.1/8
  - banana
derms_web_blocks: "{{{{ no_such_thing }}}}"
derms_der_blocks: ["{{{{ vault_block }}}}", "x{{{{ vault_block }}}}"]
derms_managment_blocks: [192.0.2.0/24]
certificates_provided:
  - {{name: ven, certificate: a, private_key: [{CANARY}], sertificate: b}}
"""
    process = run(tmp_path, group_vars, "-e", "derms_serial=2", vaulted=f"vault_block: {CANARY}\n")
    (checked,) = results(process)
    assert process.returncode != 0
    found = {one["variable"]: (one["found"], one["expected"], one["where"]) for one in checked["problems"]}
    places = {name: where.removeprefix("group_vars/all/") for name, (_found, _expected, where) in found.items()}
    assert places == {
        "derms_depot": "main.yml:1:14",
        "derms_serial": "<CLI option '-e'>",
        "derms_management_blocks": "",
        "derms_internal_blocks[0]": "main.yml:3:5",
        "derms_internal_blocks[1]": "main.yml:4:5",
        "derms_web_blocks": "main.yml:5:19",
        "derms_der_blocks[0]": "vault.yml:1:14",
        "derms_der_blocks[1]": "main.yml:6:41",
        "derms_managment_blocks": "main.yml:7:25",
        "certificates_provided[0].private_key": "main.yml:9:46",
        "certificates_provided[0].sertificate": "main.yml:9:63",
        "certificates_provided[0].ca": "main.yml:9:5",
    }
    assert "10.0.0.0/8" in found["derms_internal_blocks[0]"][1]
    assert "derms_management_blocks" in found["derms_managment_blocks"][1]
    assert "'no_such_thing' is undefined" in found["derms_web_blocks"][0]
    assert "JSON" in found["derms_serial"][1]
    assert CANARY not in process.stdout + process.stderr


@pytest.mark.parametrize(
    ("wrong", "place"),
    [
        ("derms_depot: [1]", "host_vars/gw2.yml:1:14"),
        # An empty value knows no place of its own; the file that held the name before must not be blamed for it.
        ("derms_depot:", ""),
    ],
)
def test_one_host_ends_the_run_for_all(tmp_path: Path, wrong: str, place: str) -> None:
    (tmp_path / "host_vars").mkdir()
    (tmp_path / "host_vars" / "gw2.yml").write_text(f"{wrong}\n")
    process = run(tmp_path, RIGHT)
    (play,) = (play for play in json.loads(process.stdout)["plays"] if play["tasks"])
    (problem,) = play["tasks"][0]["hosts"]["gw2"]["problems"]
    assert (problem["variable"], problem["where"]) == ("derms_depot", place)
