# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in for Ubuntu 22.04: Debian 12, which says so itself."""

from __future__ import annotations

from pathlib import Path

from tests.hosts.programs import run, run_contained
from tests.hosts.recipes import debian
from tests.hosts.recipes.platform import Platform

PACKAGES = ("python3-apt", "systemd-timesyncd")

# Everything that the roles or their tests install, and what makes a virtual machine of this; hosts are offline.
OFFERED = (
    "acl",
    "apparmor",
    "auditd",
    "ca-certificates",
    "chrony",
    "cron",
    "fail2ban",
    "firewalld",
    "initramfs-tools",
    "iptables",
    "libpam-pwquality",
    "linux-image-cloud-amd64",
    "logrotate",
    "mosquitto",
    "mosquitto-clients",
    "nftables",
    "openssl",
    "python3-systemd",
    "rsyslog",
    "sshpass",
    "ufw",
    "unattended-upgrades",
)


def build(root: Path, repository: Path) -> None:
    """Bootstrap Debian 12, and leave it the offline repository as its only source."""
    debian.bootstrap(root, PACKAGES, repository, OFFERED)
    index = run("apt-ftparchive", "--db", "", "packages", repository)
    (repository / "Packages").write_text(index.replace(f"{repository}/", "./"), encoding="utf-8")
    # Labelled as Debian labels its own, so that unattended-upgrades finds the origins that it is configured for.
    release = run(
        "apt-ftparchive",
        *(
            option
            for field, value in {
                "Origin": "Debian",
                "Label": "Debian",
                "Suite": "stable",
                "Codename": debian.SUITE,
            }.items()
            for option in ("--option", f"APT::FTPArchive::Release::{field}={value}")
        ),
        "release",
        repository,
    )
    (repository / "Release").write_text(release, encoding="utf-8")

    debian.make_host(root)
    (root / "etc/apt/sources.list.d/offline.sources").write_text(
        "Types: deb\nURIs: file:/srv/packages\nSuites: ./\nTrusted: yes\n", encoding="utf-8"
    )
    debian.never_fire(root, "apt-daily.timer", "apt-daily-upgrade.timer")
    # chronyd runs, measures and reports without the right to set this machine's clock, which no test host has.
    debian.add_drop_in(
        root,
        "chrony.service",
        "[Unit]\nConditionCapability=\n[Service]\nExecStart=\nExecStart=!/usr/sbin/chronyd $DAEMON_OPTS -x\n",
    )
    update = 'mount --bind "$2" "$1/srv/packages" && chroot "$1" apt-get --quiet update'
    run_contained("sh", "-c", update, "sh", root, repository)


PLATFORM = Platform(
    name="ubuntu2204",
    programs=debian.BUILD_PROGRAMS,
    sources=(Path(__file__), Path(debian.__file__)),
    build=build,
)
