# SPDX-License-Identifier: GPL-3.0-or-later
"""Security updates, and what the host shows to the network."""

from __future__ import annotations

import re
from typing import Any

LISTENERS = {"tcp/22", "udp/123", "tcp/8883"}


def test_security_updates_come_every_day_and_nothing_else_does(root: Any, is_el: bool) -> None:
    if is_el:
        settings = dict(
            re.findall(r"^(\w+) *= *(\S+)", root.file("/etc/dnf/automatic.conf").content_string, re.MULTILINE)
        )
        assert (settings["upgrade_type"], settings["apply_updates"]) == ("security", "yes")
        assert root.service("dnf-automatic.timer").is_enabled
        assert root.service("dnf-automatic.timer").is_running
    else:
        settings = dict(re.findall(r'^(\S+) "(.*)";$', root.check_output("apt-config dump"), re.MULTILINE))
        assert settings["APT::Periodic::Unattended-Upgrade"] == "1"
        assert settings["APT::Periodic::Update-Package-Lists"] == "1"
        origins = re.findall(r'^Unattended-Upgrade::(?:Origins-Pattern|Allowed-Origins):: "(.*)";$',
                             root.check_output("apt-config dump"), re.MULTILINE)  # fmt: skip
        assert origins
        assert all("ecurity" in origin for origin in origins)
        for timer in ("apt-daily.timer", "apt-daily-upgrade.timer"):
            assert root.service(timer).is_enabled
            assert root.service(timer).is_running


def test_no_update_reboots_a_gateway_by_itself(root: Any, is_el: bool) -> None:
    if is_el:
        assert re.search(r"^reboot *= *never$", root.file("/etc/dnf/automatic.conf").content_string, re.MULTILINE)
    else:
        assert 'Unattended-Upgrade::Automatic-Reboot "false";' in root.check_output("apt-config dump").splitlines()


def test_nothing_listens_but_what_a_gateway_is_for(root: Any) -> None:
    rows = (line.split() for line in root.check_output("ss -Hlntu").splitlines())
    outward = {
        f"{kind}/{local.rpartition(':')[2]}"
        for kind, _, _, _, local, *_ in rows
        if not re.match(r"127\.|\[::1\]|\[?::ffff:127", local)
    }
    assert outward <= LISTENERS
