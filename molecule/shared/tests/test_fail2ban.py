# SPDX-License-Identifier: GPL-3.0-or-later
"""Bans: the jails run, and each one's rules are in front of the gateway's own."""

from __future__ import annotations

from typing import Any

import pytest

# Of TEST-NET-3: nobody's.
STRANGER = "203.0.113.77"


@pytest.mark.parametrize("jail", ["sshd", "derms-web", "recidive"])
def test_the_jail_runs_on_the_journal(root: Any, jail: str) -> None:
    status = root.check_output("fail2ban-client status %s", jail)
    assert "Journal matches" in status


def test_management_is_never_banned(root: Any) -> None:
    ignored = root.check_output("fail2ban-client get sshd ignoreip").split()
    assert {"10.213.8.1", "fd42:213:8::1"} <= {entry.removesuffix("/32").removesuffix("/128") for entry in ignored}


def test_a_ban_comes_before_what_lets_in(root: Any) -> None:
    root.check_output("fail2ban-client set sshd banip %s", STRANGER)
    try:
        hooks = [line.split()[-1] for line in root.check_output("iptables -S INPUT").splitlines() if " -j " in line]
        assert hooks.index("f2b-sshd") < hooks.index("DERMS-INPUT")
        assert STRANGER in root.check_output("iptables -S f2b-sshd")
    finally:
        root.check_output("fail2ban-client set sshd unbanip %s", STRANGER)


def test_it_runs_at_boot(root: Any) -> None:
    assert root.service("fail2ban").is_enabled
