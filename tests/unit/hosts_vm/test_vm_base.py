# SPDX-License-Identifier: GPL-3.0-or-later
"""The virtual machine's base: what it follows from, and what must be the same when it goes on as when it was saved."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.hosts import ssh
from tests.hosts.addresses import address_of
from tests.hosts.host import boot_id, started_ticks
from tests.hosts.recipes import vm as recipe
from tests.hosts.settings import Settings, settings_from
from tests.hosts.vm import Machine, Record, base_of, own_settings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return settings under which an emulator and a key exist."""
    emulator = tmp_path / "bin" / recipe.QEMU
    emulator.parent.mkdir()
    emulator.write_text("7.2\n")
    emulator.chmod(0o755)
    monkeypatch.setenv("PATH", str(emulator.parent), prepend=os.pathsep)
    settings = settings_from({"DERMS_HOSTS_DIR": str(tmp_path)})
    key = own_settings(settings).private_key.with_suffix(".pub")
    key.parent.mkdir(parents=True)
    key.write_text("ssh-ed25519 AAAA\n")
    return settings


def words(state: Path | None) -> list[str]:
    return list(
        recipe.command(
            kernel=Path("/base/vmlinuz"),
            initrd=Path("/base/initrd.img"),
            disk=Path("/base/disk.qcow2"),
            tap="derms0-vm",
            mac="02:00:0a:d5:08:05",
            control=Path("/vm/control.sock"),
            state=state,
        )
    )


def test_a_machine_that_goes_on_is_the_one_that_was_saved() -> None:
    assert words(Path("/base/state")) == [*words(None), "-incoming", "exec:cat /base/state"]


def test_the_machine_is_emulated_in_software_whatever_the_processor_offers() -> None:
    assert words(None)[words(None).index("-accel") + 1].startswith("tcg")


def test_the_same_recipe_is_the_same_base(settings: Settings) -> None:
    assert base_of(settings) == base_of(settings)
    assert base_of(settings).directory.parent == settings.directory / "bases"


def test_another_emulator_needs_another_base(settings: Settings, tmp_path: Path) -> None:
    before = base_of(settings)
    (tmp_path / "bin" / recipe.QEMU).write_text("8.2\n")
    assert base_of(settings) != before


def test_another_key_needs_another_base(settings: Settings) -> None:
    before = base_of(settings)
    own_settings(settings).private_key.with_suffix(".pub").write_text("ssh-ed25519 BBBB\n")
    assert base_of(settings) != before


def test_another_network_needs_another_base(settings: Settings) -> None:
    elsewhere = settings_from({"DERMS_HOSTS_DIR": str(settings.directory), "DERMS_HOSTS_NET": "10.99.1.0/24"})
    assert base_of(elsewhere) != base_of(settings)


def test_the_machine_knows_both_its_addresses(settings: Settings) -> None:
    unit = recipe.network_unit(settings, address_of(settings, 5))
    assert "Address=10.213.8.5/24\nGateway=10.213.8.1\n" in unit
    assert "Address=fd42:213:8::5/64\n" in unit


def test_the_containers_list_of_keys_is_left_alone(settings: Settings) -> None:
    machine = Machine(settings)
    machine.tell_known_hosts("ssh-ed25519 CCCC vm")
    assert not settings.known_hosts.exists()
    assert machine.access.known_hosts.read_text() == "vm,10.213.8.5,fd42:213:8::5 ssh-ed25519 CCCC\n"


def test_a_login_is_given_the_time_that_an_emulated_machine_needs(settings: Settings) -> None:
    machine = Machine(settings)
    patient, hasty = machine.ssh_command("true"), ssh.command(machine.access, machine.address, "true")
    # Of an option that is given twice, ssh takes the first.
    assert next(word for word in patient if "ConnectTimeout" in word) not in hasty


def test_a_machine_runs_while_its_process_does(settings: Settings) -> None:
    machine = Machine(settings)
    assert not machine.alive()
    pid = os.getpid()
    ticks = started_ticks(pid)
    assert ticks is not None
    for record, alive in (
        (Record("/base", boot_id(), pid, ticks), True),
        (Record("/base", boot_id(), pid, ticks + 1), False),
        (Record("/base", "an earlier boot", pid, ticks), False),
    ):
        (settings.directory / "vm/vm.json").write_text(json.dumps(asdict(record)))
        assert machine.alive() is alive
