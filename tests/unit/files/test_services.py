# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.derms.edge.plugins.modules.services import (
    Clocks,
    WantedService,
    missing_drift,
    newest,
    own_unit_files,
    printed_second,
    runs,
    service_drift,
    shown_units,
    start_s,
    unit_name,
    wall_time_s,
    wanted_services,
)
from hypothesis import given
from hypothesis import strategies as st

# 2026-11-23 01:19:01 UTC, 100 s after boot; it is now 1,000 s after boot.
STARTED_S = 1795396741
STAMP = "Mon 2026-11-23 01:19:01 UTC"
CLOCKS = Clocks(wall_s=STARTED_S + 900.25, monotonic_s=1000.0)
WANTED = WantedService("chronyd.service", enabled=True, state="started")


def unit(**others: str) -> dict[str, str]:
    return {
        "Id": "chronyd.service",
        "LoadState": "loaded",
        "ActiveState": "active",
        "SubState": "running",
        "Result": "success",
        "UnitFileState": "enabled",
        "NeedDaemonReload": "no",
        "FragmentPath": "/usr/lib/systemd/system/chronyd.service",
        "DropInPaths": "",
        "Type": "notify",
        "RemainAfterExit": "no",
        "ActiveEnterTimestamp": STAMP,
        "ActiveEnterTimestampMonotonic": "100000000",
        "ExecMainStartTimestamp": STAMP,
        "ExecMainStartTimestampMonotonic": "100000000",
        "StateChangeTimestamp": STAMP,
        "StateChangeTimestampMonotonic": "100000000",
        **others,
    }


def named(
    wanted: WantedService, shown: dict[str, str], times_s: dict[str, float] | None = None
) -> list[tuple[str, str, str]]:
    differences, _verbs = service_drift(wanted, shown, times_s or {}, CLOCKS)
    return [(one["what"], one["is"], one["should_be"]) for one in differences]


def verbs(wanted: WantedService, shown: dict[str, str], times_s: dict[str, float] | None = None) -> list[str]:
    return service_drift(wanted, shown, times_s or {}, CLOCKS)[1]


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("sshd", "sshd.service"),
        ("apt-daily.timer", "apt-daily.timer"),
        ("getty@tty1", "getty@tty1.service"),
        ("app-1.2", "app-1.2.service"),
    ],
)
def test_a_name_without_suffix_is_a_service(name: str, full: str) -> None:
    assert unit_name(name) == full


def test_a_template_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="instance"):
        unit_name("getty@")


def test_blocks_of_systemctl_show_are_told_apart() -> None:
    words = "Id=a.service\nDropInPaths=/etc/x=y.conf\n\nId=b.service\nLoadState=not-found\n"
    assert shown_units(words) == [
        {"Id": "a.service", "DropInPaths": "/etc/x=y.conf"},
        {"Id": "b.service", "LoadState": "not-found"},
    ]


def test_a_printed_stamp_is_read_as_utc() -> None:
    assert printed_second(STAMP) == STARTED_S
    assert printed_second("") is None


def test_the_microseconds_since_boot_refine_the_printed_second() -> None:
    assert wall_time_s(STAMP, "100000000", CLOCKS) == pytest.approx(STARTED_S + 0.25)


@given(st.floats(min_value=-1e9, max_value=1e9))
def test_a_clock_that_was_set_since_moves_the_stamp_by_less_than_a_second(step_s: float) -> None:
    clocks = Clocks(CLOCKS.wall_s + step_s, CLOCKS.monotonic_s)
    found = wall_time_s(STAMP, "100000000", clocks)
    assert found is not None
    assert STARTED_S <= found < STARTED_S + 1


def test_what_has_not_started_has_no_time() -> None:
    assert start_s(unit(ActiveEnterTimestamp="", ActiveEnterTimestampMonotonic="0"), CLOCKS) is None


def test_a_unit_as_declared_needs_nothing() -> None:
    assert service_drift(WANTED, unit(), {"/etc/chrony.conf": STARTED_S - 5}, CLOCKS) == ([], [])


def test_a_stopped_unit_is_one_difference_even_where_its_configuration_is_newer() -> None:
    stopped = unit(ActiveState="inactive", SubState="dead")
    assert named(WANTED, stopped, {"/etc/chrony.conf": STARTED_S + 5}) == [("chronyd.service", "stopped", "started")]
    assert verbs(WANTED, stopped) == ["start"]


def test_a_failed_unit_is_called_that() -> None:
    assert named(WANTED, unit(ActiveState="failed")) == [("chronyd.service", "failed", "started")]


def test_a_unit_older_than_its_configuration_is_restarted() -> None:
    newer = {"/etc/a": STARTED_S - 9.0, "/etc/chrony.conf": STARTED_S + 0.5}
    assert named(WANTED, unit(), newer) == [
        ("chronyd.service", "started before /etc/chrony.conf was last changed", "restarted since")
    ]
    assert verbs(WANTED, unit(), newer) == ["restart"]


def test_a_unit_that_was_loaded_before_a_file_that_it_takes_up_is_reloaded_once(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch()
    os.utime(key, (STARTED_S + 5.0, STARTED_S + 5.0))
    wanted = replace(WANTED, reload=(str(tmp_path / "k*"),))
    assert named(wanted, unit()) == [("chronyd.service", f"loaded before {key} was last changed", "reloaded since")]
    assert verbs(wanted, unit()) == ["reload"]
    # A restart takes it up as well; a stopped unit is started.
    assert verbs(wanted, unit(), {"/etc/chrony.conf": STARTED_S + 1.0}) == ["restart"]
    assert verbs(wanted, unit(ActiveState="inactive")) == ["start"]
    reloaded = unit(StateChangeTimestamp="Mon 2026-11-23 01:19:07 UTC", StateChangeTimestampMonotonic="106000000")
    assert verbs(wanted, reloaded) == []


def test_a_unit_that_was_started_within_the_second_of_its_configuration_is_left_alone() -> None:
    assert verbs(WANTED, unit(), {"/etc/chrony.conf": STARTED_S + 0.2}) == []


def test_a_time_to_come_says_nothing() -> None:
    assert newest({"/etc/a": 50.0}, now_s=40.0) is None
    assert newest({"/etc/a": 50.0, "/etc/b": 30.0}, now_s=40.0) == ("/etc/b", 30.0)
    assert verbs(WANTED, unit(), {"/etc/chrony.conf": CLOCKS.wall_s + 3600}) == []


def test_a_restart_that_is_due_anyway_is_not_named_twice() -> None:
    entry = {
        "name": "chronyd",
        "enabled": True,
        "state": "started",
        "config": [],
        "reload": [],
        "restart_notified": True,
        "optional": False,
    }
    (checked,) = wanted_services([entry], check_mode=True)
    (real,) = wanted_services([entry], check_mode=False)
    newer = {"/etc/chrony.conf": STARTED_S + 5.0}
    assert verbs(checked, unit(), newer) == []
    assert verbs(real, unit(), newer) == ["restart"]


@pytest.mark.parametrize("state", ["enabled", "static", "generated", "alias", "indirect", "transient"])
def test_what_starts_at_boot_or_cannot_be_enabled_is_left_alone(state: str) -> None:
    assert named(WANTED, unit(UnitFileState=state)) == []


@pytest.mark.parametrize("state", ["disabled", "enabled-runtime", "linked"])
def test_what_does_not_start_at_boot_is_enabled(state: str) -> None:
    assert named(WANTED, unit(UnitFileState=state)) == [("chronyd.service at boot", state, "enabled")]


def test_a_masked_unit_is_unmasked_enabled_and_started() -> None:
    masked = unit(LoadState="masked", UnitFileState="masked", ActiveState="inactive", Type="")
    assert verbs(WANTED, masked) == ["unmask", "enable", "start"]


def test_an_unwanted_unit_is_stopped_and_disabled() -> None:
    unwanted = WantedService("cups.service", enabled=False, state="stopped", optional=True)
    assert verbs(unwanted, unit()) == ["disable", "stop"]
    assert verbs(unwanted, unit(UnitFileState="masked", ActiveState="inactive")) == []
    assert missing_drift(unwanted) == []


def test_a_kept_unit_is_neither_started_nor_stopped_but_not_left_with_an_old_configuration() -> None:
    kept = WantedService("systemd-journald@derms.service", enabled=True, state="kept")
    stopped = unit(UnitFileState="static", ActiveState="inactive")
    assert verbs(kept, stopped, {"/etc/x": STARTED_S + 5.0}) == []
    assert verbs(kept, unit(UnitFileState="static"), {"/etc/x": STARTED_S + 5.0}) == ["restart"]


def test_a_one_shot_unit_counts_as_started_once_it_has_run() -> None:
    done = unit(Type="oneshot", ActiveState="inactive", ActiveEnterTimestamp="", ActiveEnterTimestampMonotonic="0")
    never = {**done, "ExecMainStartTimestamp": "", "ExecMainStartTimestampMonotonic": "0"}
    assert runs(done, CLOCKS)
    assert not runs(never, CLOCKS)
    assert not runs({**done, "Result": "exit-code"}, CLOCKS)
    assert verbs(WANTED, done, {"/etc/x": STARTED_S + 5.0}) == ["restart"]


def test_a_unit_file_that_changed_on_disk_is_loaded_again() -> None:
    changed = unit(NeedDaemonReload="yes")
    assert named(WANTED, changed) == [("chronyd.service unit file", "changed on disk since it was loaded", "loaded")]
    newer = {"/etc/systemd/system/chronyd.service.d/x.conf": STARTED_S + 5.0}
    assert len(named(WANTED, changed, newer)) == 1
    assert verbs(WANTED, changed, newer) == ["restart", "daemon-reload"]


def test_only_the_hosts_own_unit_files_count_as_configuration() -> None:
    shown = unit(DropInPaths="/etc/systemd/system/x.d/a.conf /usr/lib/systemd/system/x.d/b.conf")
    assert own_unit_files(shown) == ["/etc/systemd/system/x.d/a.conf"]


def test_a_missing_unit_is_drift_unless_it_may_be_missing() -> None:
    assert [(one["is"], one["should_be"]) for one in missing_drift(WANTED)] == [
        ("not installed", "enabled and started")
    ]
    assert missing_drift(WantedService("x.service", enabled=True, state="started", optional=True)) == []
