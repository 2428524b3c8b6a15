# SPDX-License-Identifier: GPL-3.0-or-later
"""SSH, as sshd itself says it and as somebody without a key finds it."""

from __future__ import annotations

import re
import shlex
import subprocess
from typing import Any

import pytest
from conftest import Gateway

EXPECTED = {
    "permitrootlogin": "no",
    "pubkeyauthentication": "yes",
    "passwordauthentication": "no",
    "kbdinteractiveauthentication": "no",
    "gssapiauthentication": "no",
    "hostbasedauthentication": "no",
    "ignorerhosts": "yes",
    "permitemptypasswords": "no",
    "permituserenvironment": "no",
    "usepam": "yes",
    "x11forwarding": "no",
    "disableforwarding": "yes",
    "loglevel": "VERBOSE",
    "maxauthtries": "4",
    "maxsessions": "10",
    "maxstartups": "10:30:60",
    "logingracetime": "60",
    "clientaliveinterval": "30",
    "clientalivecountmax": "4",
    "banner": "/etc/issue.net",
}
# What CIS asks to be kept out; RHEL keeps it out by its crypto policy, which the stand-in does not have.
WEAK = re.compile(r"cbc|3des|arcfour|md5|umac-64|hmac-sha1|diffie-hellman-group(1|14|-exchange)-sha1")


@pytest.fixture(scope="module")
def effective(root: Any) -> dict[str, str]:
    """Return the configuration that sshd runs with, all its files taken together."""
    lines = root.check_output("sshd -T").splitlines()
    return {name: value for name, _, value in (line.partition(" ") for line in lines)}


@pytest.mark.parametrize("option", EXPECTED)
def test_sshd_holds_the_option(effective: dict[str, str], option: str) -> None:
    assert effective[option] == EXPECTED[option]


@pytest.mark.parametrize("kind", ["ciphers", "macs", "kexalgorithms"])
def test_no_weak_algorithm_is_offered(effective: dict[str, str], is_el: bool, kind: str) -> None:
    if not is_el:
        assert not [name for name in effective[kind].split(",") if WEAK.search(name)]


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


def test_configuration_and_keys_are_roots_own(root: Any) -> None:
    files = root.check_output("stat -c '%U:%G %a %n' /etc/ssh/sshd_config /etc/ssh/ssh_host_*_key").splitlines()
    assert len(files) > 1
    assert {line.rpartition(" ")[0] for line in files} == {"root:root 600"}
