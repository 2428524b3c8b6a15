# SPDX-License-Identifier: GPL-3.0-or-later
"""The clock: kept by chrony, from the declared source, and by nothing else."""

from __future__ import annotations

from typing import Any

from conftest import TIME_SOURCE


def test_chrony_follows_the_declared_source_and_no_other(root: Any) -> None:
    # waitsync: tries, largest correction in seconds, largest skew in ppm, seconds between tries.
    root.check_output("chronyc waitsync 60 1 0 0.5")
    sources = [line.split(",") for line in root.check_output("chronyc -c sources").splitlines()]
    assert [source[2] for source in sources] == [TIME_SOURCE]
    assert root.check_output("chronyc -c tracking").split(",")[2] == "2", "one stratum below a stratum-one source"


def test_the_clock_has_one_keeper_at_boot(root: Any, is_el: bool) -> None:
    assert root.service("chronyd" if is_el else "chrony").is_enabled
    assert not root.service("systemd-timesyncd").is_running
    assert root.run("systemctl is-enabled systemd-timesyncd").stdout.strip() not in ("enabled", "enabled-runtime")


def test_nobody_is_served_and_nobody_commands_from_outside(root: Any) -> None:
    assert not root.run("ss -Hlnu 'sport = :323 or sport = :123'").stdout
