# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook that adopts a running depot, through ansible-playbook itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from derms_agent.depot import load

if TYPE_CHECKING:
    from tests.unit.adopt.conftest import RunningDepot

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent


@pytest.fixture
def inventory(running_depot: RunningDepot, tmp_path: Path) -> Path:
    """Return an inventory whose gateway is this machine, and that holds the depot without its devices."""
    directory = tmp_path / "inventory"
    (directory / "host_vars").mkdir(parents=True)
    (directory / "depot.yml").write_text(running_depot.bare_file.read_text())
    (directory / "host_vars" / "gateway-1.yml").write_text(
        f"ansible_connection: local\nansible_become: false\nansible_python_interpreter: {sys.executable}\n"
    )
    return directory


def adopt(inventory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    work = inventory.parent / "work"
    work.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
        "ANSIBLE_HOME": str(inventory.parent / ".ansible"),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PWD": str(work),
    }
    return subprocess.run(
        [
            "ansible-playbook",
            "-i",
            inventory,
            "derms.edge.adopt",
            "-e",
            "{derms_adopt_unit_ids: [1..2, 255]}",
            *arguments,
        ],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_running_depot_is_adopted_once(inventory: Path) -> None:
    file = inventory.parent / "work" / "small.adopted.yml"
    run = adopt(inventory)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{file} is complete" in run.stdout
    depot = load(file)
    assert {(name, device.profile) for name, device in depot.devices.items()} == {
        ("front-255", "keba_p30"),
        ("yard-1", "heidelberg_energy_control"),
        ("yard-2", "heidelberg_energy_control"),
    }
    assert depot.devices["front-255"].settings == {"failsafe_current": 8, "failsafe_timeout": 45}
    # What is there is kept, whatever it is, and nobody is asked.
    file.write_text("mine\n")
    again = adopt(inventory)
    assert again.returncode != 0
    assert f"derms_adopt_path: found the file {file}, expected none; nothing is overwritten" in again.stdout
    assert "Scan the buses" not in again.stdout
    assert file.read_text() == "mine\n"


def test_no_second_declaration_is_put_beside_the_first(inventory: Path) -> None:
    run = adopt(inventory, "-e", f"derms_adopt_directory={inventory}/sub")
    assert run.returncode != 0
    assert f"expected a path outside of the inventory {inventory}" in " ".join(run.stdout.split())
    assert "Scan the buses" not in run.stdout
    assert not (inventory / "sub").exists()


def test_where_nothing_answers_nothing_is_written(inventory: Path) -> None:
    run = adopt(inventory, "-e", "{derms_adopt_unit_ids: ['9']}")
    assert run.returncode != 0
    assert "depot small: no unit answers on any bus that could be asked; nothing was written" in " ".join(
        run.stdout.split()
    )
    assert list((inventory.parent / "work").iterdir()) == []
