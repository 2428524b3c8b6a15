# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys, and the first login."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from tests.hosts.addresses import Address
from tests.hosts.programs import run
from tests.hosts.settings import Settings

USER = "deploy"


def ensure_key(settings: Settings) -> str:
    """Make the key that `deploy` accepts, unless it is there; return its public half."""
    key = settings.private_key
    if not key.exists():
        key.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test hosts", "-f", key)
    if owner := os.environ.get("SUDO_UID"):
        # Whoever called sudo may run Ansible as themselves, and ssh takes no key that it cannot read.
        os.chown(key, int(owner), -1)
    return key.with_name("id_ed25519.pub").read_text(encoding="utf-8")


def make_host_keys(root: Path) -> None:
    """Give a host keys of its own, as its first boot would."""
    for kind in ("ed25519", "ecdsa"):
        key = root / f"etc/ssh/ssh_host_{kind}_key"
        if not key.exists():
            run("ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "", "-f", key)


def known_host_lines(name: str, address: Address, public_key: str) -> str:
    """Return what known_hosts says of a host."""
    kind, key = public_key.split()[:2]
    return f"{name},{address.ipv4},{address.ipv6} {kind} {key}\n"


def write_known_hosts(settings: Settings, public_keys: Mapping[str, tuple[Address, str]]) -> None:
    """Write every host's real key, read from its own disk: nobody has to trust a first answer."""
    fresh = settings.known_hosts.with_suffix(".new")
    fresh.write_text(
        "".join(known_host_lines(name, address, key) for name, (address, key) in sorted(public_keys.items())),
        encoding="utf-8",
    )
    fresh.replace(settings.known_hosts)


def write_config(settings: Settings, addresses: Mapping[str, Address]) -> None:
    """Write what `ssh -F` and an inventory need to reach the hosts by name: address, user, key, known host key."""
    fresh = settings.ssh_config.with_suffix(".new")
    fresh.write_text(
        "".join(
            f"Host {name} {address.ipv4} {address.ipv6}\n"
            f"  HostName {address.ipv4}\n"
            f"  User {USER}\n"
            f"  IdentityFile {settings.private_key}\n"
            "  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {settings.known_hosts}\n"
            "  StrictHostKeyChecking yes\n"
            for name, address in sorted(addresses.items())
        ),
        encoding="utf-8",
    )
    fresh.replace(settings.ssh_config)


def command(settings: Settings, address: Address, *remote: str) -> list[str]:
    """Return the ssh command that logs in to a host as `deploy`."""
    return [
        "ssh",
        f"-oIdentityFile={settings.private_key}",
        "-oIdentitiesOnly=yes",
        f"-oUserKnownHostsFile={settings.known_hosts}",
        "-oStrictHostKeyChecking=yes",
        "-oConnectTimeout=3",
        f"{USER}@{address.ipv4}",
        *remote,
    ]


def greets(address: Address, *, timeout_s: float) -> bool:
    """Tell whether an SSH server greets at the address within the time."""
    deadline_s = time.monotonic() + timeout_s
    while (left_s := deadline_s - time.monotonic()) > 0:
        try:
            with socket.create_connection((str(address.ipv4), 22), timeout=min(left_s, 1.0)) as connection:
                if connection.recv(4) == b"SSH-":
                    return True
        except OSError:
            pass
        time.sleep(0.03)
    return False


def logs_in(settings: Settings, address: Address, *, timeout_s: float) -> bool:
    """Tell whether `deploy` can log in within the time; early on, a host greets before it lets anyone in."""
    deadline_s = time.monotonic() + timeout_s
    while (left_s := deadline_s - time.monotonic()) > 0:
        if not greets(address, timeout_s=left_s):
            return False
        login = subprocess.run(
            [*command(settings, address), "-oBatchMode=yes", "true"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        if login.returncode == 0:
            return True
        time.sleep(0.05)
    return False
