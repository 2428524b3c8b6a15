# SPDX-License-Identifier: GPL-3.0-or-later
"""SSH, as somebody without a key finds it. Its options: test_controls.py."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest
from conftest import Gateway

# What CIS asks to be kept out; RHEL keeps it out by its crypto policy, which the stand-in does not have.
WEAK = re.compile(r"cbc|3des|arcfour|md5|umac-64|hmac-sha1|diffie-hellman-group(1|14|-exchange)-sha1")


@pytest.mark.parametrize("kind", ["ciphers", "macs", "kexalgorithms"])
def test_no_weak_algorithm_is_offered(sshd: dict[str, str], is_el: bool, kind: str) -> None:
    if not is_el:
        assert not [name for name in sshd[kind].split(",") if WEAK.search(name)]


@pytest.mark.parametrize("user", ["deploy", "root"])
def test_nobody_is_asked_for_a_password(gateway: Gateway, user: str) -> None:
    ssh = ["ssh", *shlex.split(gateway.ssh_options), "-oBatchMode=yes", "-oControlPath=none"]
    answer = subprocess.run(
        [*ssh, "-oPreferredAuthentications=none", f"{user}@{gateway.addresses[4]}", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Permission denied (publickey)" in answer.stderr
    assert "Authorised use only" in answer.stderr


def test_root_gets_in_with_no_key_either(gateway: Gateway) -> None:
    ssh = ["ssh", *shlex.split(gateway.ssh_options), "-oBatchMode=yes", "-oControlPath=none", "-i", gateway.private_key]
    answer = subprocess.run([*ssh, f"root@{gateway.addresses[4]}", "true"], capture_output=True, check=False)
    assert answer.returncode == 255


def test_nothing_is_tunnelled_past_the_firewall(gateway: Gateway) -> None:
    ssh = ["ssh", *shlex.split(gateway.ssh_options), "-oBatchMode=yes", "-oControlPath=none", "-i", gateway.private_key]
    answer = subprocess.run(
        [*ssh, "-W", "127.0.0.1:22", f"{gateway.user}@{gateway.addresses[4]}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "open failed" in answer.stderr
    assert "OpenSSH" not in answer.stdout
