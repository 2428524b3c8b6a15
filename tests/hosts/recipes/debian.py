# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian 12: the packages that both platforms' bases are made of, taken from wherever this machine takes its own."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.hosts.programs import run, run_contained

SUITE = "bookworm"

# What either base needs to be a host at all: systemd, Ansible's Python, a network, SSH and sudo.
COMMON_PACKAGES = (
    "acl",
    "ca-certificates",
    "dbus",
    "iproute2",
    "iputils-ping",
    "kmod",
    "less",
    "libpam-systemd",
    "netbase",
    "openssh-client",
    "openssh-server",
    "procps",
    "python3",
    "sudo",
    "systemd",
    "systemd-sysv",
    "udev",
)

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

BUILD_PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "apt-ftparchive": "apt-utils",
    "dpkg-deb": "dpkg",
    KEYRING: "debian-archive-keyring",
}


def suites_stanza(stanza: str) -> str | None:
    """Return a deb822 stanza if it is Debian 12's own main archive, else nothing."""
    fields = dict(re.findall(r"^(\S+?):[ \t]*(.*)$", stanza, re.MULTILINE))
    suites, components = fields.get("Suites", "").split(), fields.get("Components", "").split()
    wanted = bool(suites) and all(suite.startswith(SUITE) for suite in suites) and "main" in components
    return stanza.strip() + "\n" if wanted and fields.get("Enabled", "yes") != "no" else None


def debian_sources(lists: Iterable[str], stanza_files: Iterable[str]) -> str:
    """Return the sources of Debian 12 among a machine's apt sources, in deb822 form; empty if it has none."""
    stanzas = [
        kept
        for text in stanza_files
        for stanza in re.split(r"\n\s*\n", text)
        if (kept := suites_stanza(stanza)) is not None
    ]
    one_line = re.compile(
        rf"^deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>{SUITE}\S*)\s+(?P<components>.*\bmain\b.*)$"
    )
    for line in "\n".join(lists).splitlines():
        if match := one_line.match(line.strip()):
            options = dict(option.split("=", 1) for option in (match["options"] or "").split())
            signed_by = f"Signed-By: {options['signed-by']}\n" if "signed-by" in options else ""
            uri, suite, components = match["uri"], match["suite"], match["components"]
            stanzas.append(f"Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: {components}\n{signed_by}")
    return "\n".join(stanzas)


def acquire_options(dump: str) -> str:
    """Return how this machine fetches packages (proxy, certificates, dates), out of `apt-config dump`."""
    unrelated = tuple(
        f"Acquire::{name}" for name in ("IndexTargets", "Languages", "Changelogs", "cdrom", "GzipIndexes")
    )
    return "".join(
        f"{line}\n"
        for line in dump.splitlines()
        if line.startswith("Acquire::") and not line.startswith(unrelated) and not line.endswith(' "";')
    )


def bootstrap(root: Path, packages: Sequence[str], repository: Path, offered: Sequence[str]) -> None:
    """Install packages into an empty root; put what else hosts may install, with all it needs, into a directory.

    On a machine that is not Debian 12 itself, mmdebstrap's own default sources are used.
    """
    apt = Path("/etc/apt")
    sources = debian_sources(
        (
            path.read_text(encoding="utf-8")
            for path in [apt / "sources.list", *apt.glob("sources.list.d/*.list")]
            if path.exists()
        ),
        (path.read_text(encoding="utf-8") for path in sorted(apt.glob("sources.list.d/*.sources"))),
    )
    (repository / "partial").mkdir(parents=True)
    download = [
        "apt-get", "--yes", "--quiet", "--download-only",
        "--option=APT::Install-Recommends=false",
        "--option=APT::Sandbox::User=root",
        f"--option=Dir::Cache::archives={repository}",
        "install", *offered,
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        options, source_file = Path(scratch, "options"), Path(scratch, "debian.sources")
        options.write_text(acquire_options(run("apt-config", "dump")), encoding="utf-8")
        source_file.write_text(sources, encoding="utf-8")
        run_contained(
            "mmdebstrap",
            "--mode=root",
            "--variant=minbase",
            f"--include={','.join([*COMMON_PACKAGES, *packages])}",
            f"--aptopt={options}",
            # Neither a base nor a host has anything on its disk that must survive a power cut.
            "--dpkgopt=force-unsafe-io",
            # Another distribution's keyring knows nothing of Debian's keys; Debian's is a package there.
            *([] if sources else [f"--keyring={KEYRING}"]),
            f'--customize-hook=APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" {shlex.join(download)}',
            SUITE,
            root,
            *([source_file] if sources else []),
        )
    (repository / "partial").rmdir()
    (repository / "lock").unlink(missing_ok=True)
    for leftover in (root / "etc/apt/apt.conf.d/99mmdebstrap", root / "etc/apt/sources.list"):
        leftover.unlink(missing_ok=True)
    for source in (root / "etc/apt/sources.list.d").iterdir():
        source.unlink()


def make_host(root: Path) -> None:
    """Turn a fresh root into a server that nobody has touched yet: no keys, no identity, one ordinary user."""
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    (root / "etc/machine-id").write_text("", encoding="utf-8")
    (root / "var/lib/dbus/machine-id").unlink(missing_ok=True)
    (root / "etc/hostname").write_text("localhost\n", encoding="utf-8")
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").write_text("", encoding="utf-8")
    (root / "srv/packages").mkdir(parents=True)
    run("chroot", root, "useradd", "--create-home", "--shell", "/bin/bash", "--comment", "Deployment", "deploy")
    # No password will ever match, and the account is not locked either: keys work with PAM and without.
    run("chroot", root, "usermod", "--password", "*", "deploy")
    sudoers = root / "etc/sudoers.d/deploy"
    sudoers.write_text("deploy ALL=(ALL:ALL) NOPASSWD: ALL\n", encoding="utf-8")
    sudoers.chmod(0o440)
    # There is no terminal to log in at.
    run(
        "chroot",
        root,
        "systemctl",
        "mask",
        "console-getty.service",
        "getty.target",
        "systemd-networkd-wait-online.service",
    )


def add_drop_in(root: Path, unit: str, text: str) -> None:
    """Adapt a unit to what a test host lacks, in the vendor's place: /etc stays the roles' own."""
    directory = root / "usr/lib/systemd/system" / f"{unit}.d"
    directory.mkdir(parents=True)
    (directory / "10-test-host.conf").write_text(text, encoding="utf-8")


def never_fire(root: Path, *timers: str) -> None:
    """Leave timers as they are, enabled or not, but keep them from starting package work in the middle of a test."""
    for timer in timers:
        add_drop_in(root, timer, "[Timer]\nOnCalendar=\nOnBootSec=\nOnUnitInactiveSec=\nOnCalendar=2099-01-01\n")
