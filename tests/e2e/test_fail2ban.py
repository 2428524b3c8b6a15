# SPDX-License-Identifier: GPL-3.0-or-later
"""Bans for real: a stranger who fails to log in is shut out, the management block never is."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from shlex import quote

import pytest

from tests.e2e.conftest import ROOT, Gateway, call_hosts

STRANGER = "e2e-stranger"
MANAGEMENT = "10.213.8.1"
LONGEST_BAN_S = 60
MAX_RETRY = 3
# A ban that comes while a login is under way leaves ssh without an answer, for which it would wait for minutes.
FAIL_TO_LOG_IN = (
    "timeout 8 ssh -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectTimeout=3"
    " -o PreferredAuthentications=publickey -i /nonexistent root@{address} true"
)
WEB_UNIT = "[Service]\nExecStart=/bin/sh -c 'while read line; do echo \"$line\"; done </run/derms-web-says'\n"


def playbook(directory: Path, gateway: Gateway, *words: str) -> str:
    """Run the roles of this test against the gateway and return what the run printed."""
    inventory = {
        "all": {
            "hosts": {gateway.name: {}},
            "vars": {
                "ansible_ssh_common_args": f"-F {gateway.ssh_config}",
                "ansible_user": "deploy",
                "derms_depot": "e2e",
                "derms_management_blocks": [f"{MANAGEMENT}/32"],
                "derms_internal_blocks": [f"{MANAGEMENT}/32"],
                "fail2ban_manage_repository": False,
                "fail2ban_max_retry": MAX_RETRY,
            },
        }
    }
    play = {
        "hosts": "all",
        "become": True,
        "gather_facts": True,
        "gather_subset": ["!all", "!min", "distribution", "service_mgr", "pkg_mgr", "virtual"],
        "roles": ["derms.edge.service_accounts", "derms.edge.fail2ban"],
    }
    (directory / "inventory.json").write_text(json.dumps(inventory), encoding="utf-8")
    (directory / "play.json").write_text(json.dumps([play]), encoding="utf-8")
    command = [
        str(Path(sys.prefix) / "bin" / "ansible-playbook"),
        f"--inventory={directory / 'inventory.json'}",
        str(directory / "play.json"),
        *words,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def stranger(gateway: Gateway) -> Iterator[Gateway]:
    """Raise a second host, outside the management block."""
    call_hosts("up", STRANGER, "--platform", "ubuntu2204", "--fresh")
    yield Gateway(STRANGER, "ubuntu2204", gateway.ssh_config)
    call_hosts("down", STRANGER)


@pytest.fixture(scope="module")
def addresses(gateway: Gateway, stranger: Gateway) -> dict[str, str]:
    """Give each host's IPv4 address."""
    listed = {host["name"]: host for host in json.loads(call_hosts("list", "--json"))}
    return {name: listed[name]["address"] for name in (gateway.name, stranger.name)}


@pytest.fixture(scope="module")
def converged(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Converge the gateway, and give a way to run again."""
    directory = tmp_path_factory.mktemp("fail2ban")
    playbook(directory, gateway)

    def again(*words: str) -> str:
        return playbook(directory, gateway, *words)

    return again


def root(gateway: Gateway, command: str) -> str:
    done = gateway.run(f"sudo {command}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def banned(gateway: Gateway, jail: str) -> list[str]:
    line = root(gateway, f"fail2ban-client status {jail}").rpartition("Banned IP list:")[2]
    return line.split()


def await_ban(gateway: Gateway, jail: str, address: str, meanwhile: Callable[[], object] = lambda: None) -> None:
    deadline = time.monotonic() + LONGEST_BAN_S
    while address not in banned(gateway, jail):
        assert time.monotonic() < deadline, f"{address} is not banned by {jail}"
        meanwhile()
        time.sleep(0.5)


def is_refused(stranger: Gateway, address: str) -> bool:
    """Fail to log in; tell whether by a refusal, for a busy machine may not answer in time."""
    done = stranger.run(FAIL_TO_LOG_IN.format(address=address))
    assert done.returncode != 0
    return "Permission denied" in done.stderr


def reaches_ssh(stranger: Gateway, address: str) -> bool:
    return stranger.run(f"timeout 3 bash -c 'exec 3<>/dev/tcp/{address}/22'").returncode == 0


@pytest.mark.usefixtures("converged")
def test_a_stranger_who_fails_to_log_in_is_shut_out(
    gateway: Gateway, stranger: Gateway, addresses: dict[str, str]
) -> None:
    target = addresses[gateway.name]
    assert reaches_ssh(stranger, target)
    # Who guesses does not stop to wait for the ban, and may be cut off by it.
    await_ban(gateway, "sshd", addresses[STRANGER], lambda: is_refused(stranger, target))
    assert not reaches_ssh(stranger, target)


def test_a_ban_is_no_drift(converged: Callable[..., str], gateway: Gateway, addresses: dict[str, str]) -> None:
    assert addresses[STRANGER] in banned(gateway, "sshd")
    assert "No Changes Required" in converged("--check")


def test_the_ban_ends_and_access_comes_back(gateway: Gateway, stranger: Gateway, addresses: dict[str, str]) -> None:
    root(gateway, f"fail2ban-client set sshd unbanip {addresses[STRANGER]}")
    assert reaches_ssh(stranger, addresses[gateway.name])


@pytest.mark.usefixtures("converged")
def test_failures_count_that_the_journal_reads_late(
    gateway: Gateway, stranger: Gateway, addresses: dict[str, str]
) -> None:
    """As on a busy host: by then their processes have ended, and their unit and program cannot be looked up."""
    root(gateway, "systemctl kill --signal=STOP systemd-journald")
    try:
        refused, deadline = 0, time.monotonic() + 20 * MAX_RETRY
        while refused < MAX_RETRY:
            assert time.monotonic() < deadline, f"refused {refused} times only"
            refused += is_refused(stranger, addresses[gateway.name])
    finally:
        root(gateway, "systemctl kill --signal=CONT systemd-journald")
    await_ban(gateway, "sshd", addresses[STRANGER])
    root(gateway, f"fail2ban-client set sshd unbanip {addresses[STRANGER]}")


@pytest.mark.usefixtures("converged")
def test_the_management_block_is_never_banned(gateway: Gateway, addresses: dict[str, str]) -> None:
    for _attempt in range(2 * MAX_RETRY):
        command = FAIL_TO_LOG_IN.format(address=addresses[gateway.name])
        assert subprocess.run(command.split(), capture_output=True, check=False).returncode != 0
    deadline = time.monotonic() + LONGEST_BAN_S
    while root(gateway, "journalctl --unit=fail2ban --no-pager").count(f"Ignore {MANAGEMENT} by ip") < MAX_RETRY:
        assert time.monotonic() < deadline, "the failures were not seen"
        time.sleep(0.5)
    assert MANAGEMENT not in banned(gateway, "sshd")
    assert gateway.lets_in()


@pytest.mark.usefixtures("converged")
def test_failures_on_the_operators_page_are_banned(gateway: Gateway) -> None:
    """The page's line, from the page's unit, in the services' journal; the name tries to pass for an address."""
    root(gateway, f"sh -c 'printf %s \"$1\" >/run/systemd/system/derms-web.service' sh {quote(WEB_UNIT)}")
    root(gateway, "sh -c 'mkfifo /run/derms-web-says; systemctl daemon-reload; systemctl start derms-web'")
    line = 'authentication failure from 203.0.113.7 for user "ana from 203.0.113.8"'
    root(gateway, f"sh -c 'for n in 1 2 3; do echo \"$1\"; done >/run/derms-web-says' sh {quote(line)}")
    await_ban(gateway, "derms-web", "203.0.113.7")
    assert "203.0.113.8" not in banned(gateway, "derms-web")


def test_who_is_banned_again_and_again_is_banned_everywhere(gateway: Gateway) -> None:
    for _ban in range(3):
        root(gateway, "fail2ban-client set sshd banip 203.0.113.9")
        root(gateway, "fail2ban-client set sshd unbanip 203.0.113.9")
        time.sleep(1.1)  # fail2ban counts one failure of an address a second
    await_ban(gateway, "recidive", "203.0.113.9")


def test_a_jail_switched_off_is_named_and_repaired(gateway: Gateway, converged: Callable[..., str]) -> None:
    root(gateway, "fail2ban-client stop sshd")
    found = converged("--check")
    assert "fail2ban jail sshd" in found
    assert "1 change required" in found
    converged()
    assert "No Changes Required" in converged("--check")
