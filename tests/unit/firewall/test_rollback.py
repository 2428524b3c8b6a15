# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, cast

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.derms.edge.plugins.module_utils import rollback
from ansible_collections.derms.edge.plugins.module_utils.rollback import Snapshot, merged, restore_script, unit_text


class FailedError(Exception):
    """The module has failed."""


@dataclass
class Host:
    """Stands in for the module: records what systemd is told."""

    told: list[list[str]] = field(default_factory=list)
    refused: str = ""

    def run_command(self, argv: list[str]) -> tuple[int, str, str]:
        self.told.append(argv)
        return (1, "", "refused") if self.refused and self.refused in argv else (0, "inactive\n", "")

    def fail_json(self, **result: Any) -> NoReturn:
        raise FailedError(result["msg"])

    def arm(self, paths: list[Path], commands: list[list[str]]) -> None:
        rollback.arm(cast(AnsibleModule, self), "firewall", 45, [str(path) for path in paths], commands)

    def disarm(self) -> bool:
        return rollback.disarm(cast(AnsibleModule, self), "firewall")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    (tmp_path / "units").mkdir()
    (tmp_path / "boot_id").write_text("this boot\n")
    monkeypatch.setattr(rollback, "SNAPSHOTS", tmp_path / "lib" / "derms" / "rollback")
    monkeypatch.setattr(rollback, "UNITS", tmp_path / "units")
    monkeypatch.setattr(rollback, "BOOT_ID", tmp_path / "boot_id")
    return Host()


def fire() -> None:
    subprocess.run(["/bin/sh", str(rollback.SNAPSHOTS / "firewall" / "restore")], check=True, capture_output=True)


def test_an_unconfirmed_change_is_undone(host: Host, tmp_path: Path) -> None:
    changed, new, ran = tmp_path / "it's changed", tmp_path / "new", tmp_path / "ran"
    changed.write_text("before")
    changed.chmod(0o640)
    host.arm([changed, new], [["false"], ["touch", str(ran)]])
    changed.write_text("after")
    changed.chmod(0o600)
    new.write_text("after")
    fire()
    assert changed.read_text() == "before"
    assert changed.stat().st_mode & 0o777 == 0o640
    assert not new.exists()
    assert ran.exists()
    assert list((tmp_path / "units").rglob("*.service")) == []
    with pytest.raises(FailedError, match="already fired"):
        host.disarm()


def test_after_a_reboot_only_files_are_put_back(host: Host, tmp_path: Path) -> None:
    new, ran = tmp_path / "new", tmp_path / "ran"
    host.arm([new], [["touch", str(ran)]])
    new.write_text("after")
    rollback.BOOT_ID.write_text("the next boot\n")
    fire()
    assert not new.exists()
    assert not ran.exists()


def test_a_confirmed_change_stays(host: Host, tmp_path: Path) -> None:
    new = tmp_path / "new"
    host.arm([new], [])
    new.write_text("after")
    script = rollback.SNAPSHOTS / "firewall" / "restore"
    kept = tmp_path / "restore"
    kept.write_text(script.read_text())
    assert rollback.is_pending("firewall")
    assert host.disarm()
    # Even if the timer had come in the same moment.
    subprocess.run(["/bin/sh", str(kept)], check=True)
    assert new.read_text() == "after"
    assert not (rollback.SNAPSHOTS / "firewall").exists()
    assert list((tmp_path / "units").rglob("*.service")) == []
    assert not host.disarm()


def test_only_one_of_the_two_decides(host: Host, tmp_path: Path) -> None:
    new = tmp_path / "new"
    host.arm([new], [])
    new.write_text("after")
    # The run that confirms has decided, and was cut off.
    directory = rollback.SNAPSHOTS / "firewall"
    (directory / "armed").rename(directory / "confirmed")
    fire()
    assert new.exists()
    assert host.disarm()


def test_a_restore_that_a_power_cut_stopped_is_done_again(host: Host, tmp_path: Path) -> None:
    new = tmp_path / "new"
    host.arm([new], [])
    directory = rollback.SNAPSHOTS / "firewall"
    (directory / "armed").rename(directory / "fired")
    new.write_text("after")
    fire()
    assert not new.exists()


def test_a_second_change_before_the_confirmation_keeps_the_older_state(host: Host, tmp_path: Path) -> None:
    path, other, log = tmp_path / "path", tmp_path / "other", tmp_path / "log"
    path.write_text("first")
    other.write_text("other")
    host.arm([path], [["sh", "-c", f"echo first >> {log}"]])
    path.write_text("second")
    host.arm([path, other], [["sh", "-c", f"echo second >> {log}"]])
    path.write_text("third")
    other.write_text("third")
    fire()
    assert path.read_text() == "first"
    assert other.read_text() == "other"
    assert log.read_text() == "second\nfirst\n"


def test_after_a_firing_the_next_change_starts_anew(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "path"
    path.write_text("first")
    host.arm([path], [])
    fire()
    path.write_text("second")
    host.arm([path], [])
    path.write_text("third")
    fire()
    assert path.read_text() == "second"


def test_what_cannot_be_put_back_or_armed_is_refused(host: Host, tmp_path: Path) -> None:
    with pytest.raises(FailedError, match="neither a file nor a link"):
        host.arm([tmp_path], [])
    host.refused = "daemon-reload"
    with pytest.raises(FailedError, match="cannot be set up"):
        host.arm([tmp_path / "path"], [])


def test_a_link_is_put_back_as_a_link(host: Host, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("elsewhere")
    host.arm([link], [])
    link.unlink()
    link.write_text("a file")
    fire()
    assert link.is_symlink()
    assert str(link.readlink()) == "elsewhere"


def test_the_timer_starts_the_unit_that_the_next_boot_starts_too(host: Host, tmp_path: Path) -> None:
    host.arm([], [])
    timer = next(argv for argv in host.told if argv[0] == "systemd-run")
    assert "--unit=derms-rollback-firewall.service" in timer
    assert "--on-active=45s" in timer
    wanted = tmp_path / "units" / "sysinit.target.wants" / "derms-rollback-firewall.service"
    assert "Before=sysinit.target network-pre.target" in wanted.read_text()


def test_joined_roll_backs_end_in_the_earliest_state() -> None:
    earlier = Snapshot({"a": "1", "b": None}, [["x"]])
    later = Snapshot({"b": "2", "c": "3"}, [["y"], ["x"]])
    assert merged(earlier, later) == Snapshot({"a": "1", "b": None, "c": "3"}, [["y"], ["x"]])


def test_names_with_quotes_do_no_harm(tmp_path: Path) -> None:
    script = restore_script("x", tmp_path, tmp_path, "boot", Snapshot({"/a b'c": None}, [["echo", "$(id)"]]))
    assert "rm -f '/a b'\"'\"'c'" in script
    assert "echo '$(id)'" in script
    assert "ExecStart=/bin/sh /x/restore" in unit_text("x", Path("/x/restore"))
