# SPDX-License-Identifier: GPL-3.0-or-later
"""Logs: who reads them, and that they do not fill the disk."""

from __future__ import annotations

import re
from typing import Any

import pytest

LOG = "/var/log/derms/engine.log"


def test_the_group_reads_and_only_root_writes(root: Any) -> None:
    assert root.check_output("stat -c '%a %U:%G' /var/log/derms") == "750 root:derms"


def test_a_large_log_is_rotated_and_its_heir_keeps_mode_and_owner(root: Any) -> None:
    owned = root.check_output(f"stat -c '%a %U:%G' {LOG}")
    assert owned == "660 derms-orchestrator:derms"
    root.check_output(f"truncate -s 21M {LOG}")
    try:
        root.check_output("logrotate --state /run/logrotate-test /etc/logrotate.conf")
        assert root.check_output(f"stat -c '%a %U:%G' {LOG}") == owned
        assert int(root.check_output(f"stat -c %s {LOG}")) < 1 << 20
        assert len(root.check_output("ls /var/log/derms").split()) == 2
    finally:
        root.check_output(f"rm -f {LOG}-* /run/logrotate-test")


def test_the_whole_logrotate_configuration_is_sound(root: Any) -> None:
    words = root.run("logrotate --debug /etc/logrotate.conf")
    assert words.rc == 0
    assert "error:" not in words.stderr + words.stdout
    assert root.service("logrotate.timer").is_enabled
    assert root.service("logrotate.timer").is_running


@pytest.mark.parametrize("journal", ["journald.conf", "journald@derms.conf"])
def test_a_journal_is_kept_and_bounded(root: Any, journal: str) -> None:
    merged = root.check_output("systemd-analyze cat-config systemd/%s", journal)
    settings = dict(re.findall(r"^(\w+)=(.+)$", merged, re.MULTILINE))
    assert settings["Storage"] == "persistent"
    assert int(settings["SystemMaxUse"].removesuffix("M")) <= 1024
