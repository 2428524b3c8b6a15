# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may do what: services nothing but their service, operators what is written out for them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

SERVICES = ("derms-orchestrator", "derms-grid-gateway", "derms-historian", "derms-web")
OPERATOR = "olivia"
SAID_BY_THE_SERVICE = "charger 7 says hello"


@pytest.fixture(scope="module")
def service(root: Any) -> Iterator[str]:
    """Stand a program that talks in for the operators' page, until the host's next boot at the latest."""
    unit = f"[Service]\nUser=derms-web\nExecStart=sh -c 'echo {SAID_BY_THE_SERVICE}; exec sleep infinity'\n"
    root.check_output("printf %s > /run/systemd/system/derms-web.service && systemctl daemon-reload", unit)
    root.check_output("systemctl start derms-web.service && journalctl --namespace=derms --sync")
    yield "derms-web.service"
    root.check_output(
        "systemctl stop derms-web.service; rm /run/systemd/system/derms-web.service; systemctl daemon-reload"
    )


def as_operator(root: Any, command: str) -> Any:
    return root.run("runuser --login %s --command %s", OPERATOR, command)


@pytest.mark.parametrize("user", SERVICES)
def test_nobody_logs_in_as_a_service(root: Any, user: str) -> None:
    facts = root.check_output(f"getent passwd {user}; getent shadow {user}; id -nG {user}").splitlines()
    (_, _, uid, _, _, home, shell), (_, password, *_), groups = facts[0].split(":"), facts[1].split(":"), facts[2]
    assert shell.endswith("/nologin")
    assert password[0] in "!*"
    assert groups == "derms"
    assert int(uid) < 1000
    assert root.run(f"runuser --login {user} --command true").rc != 0
    assert root.run(f"runuser --user {user} -- test -w {home}").rc != 0


@pytest.mark.usefixtures("service")
@pytest.mark.parametrize(
    "command",
    [
        "/usr/bin/systemctl --no-pager status derms-web.service",
        "/usr/bin/systemctl --no-ask-password restart derms-web.service",
        "/usr/bin/journalctl --no-pager --namespace=derms",
        "/usr/bin/journalctl --no-pager --namespace=derms --unit derms-web.service",
    ],
)
def test_an_operator_may(root: Any, command: str) -> None:
    done = as_operator(root, f"sudo -n {command}")
    assert done.rc == 0, done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "/bin/sh -c id",
        "/usr/bin/systemctl --no-pager status ssh.service",
        "/usr/bin/systemctl status derms-web.service",
        "/usr/bin/systemctl --no-ask-password restart derms-firewall.service",
        "/usr/bin/systemctl --no-ask-password stop derms-web.service",
        "/usr/bin/systemctl --no-ask-password restart derms-web.service ssh.service",
        "/usr/bin/systemctl edit derms-web.service",
        "/usr/bin/journalctl --no-pager",
        "/usr/bin/journalctl --no-pager --namespace=derms --file=/var/log/auth.log",
        "SYSTEMD_PAGER=/bin/sh /usr/bin/journalctl --no-pager --namespace=derms",
        "-u derms-web /bin/true",
        "-e /etc/derms/agent.conf",
    ],
)
def test_an_operator_may_not(root: Any, command: str) -> None:
    done = as_operator(root, f"sudo -n {command}")
    assert done.rc != 0
    assert re.search(r"password is required|not allowed", done.stderr)


def test_no_command_of_an_operators_can_start_another(root: Any) -> None:
    listed = root.check_output("sudo -l -U %s", OPERATOR)
    rules = [line for line in listed.splitlines() if line.strip().startswith("(")]
    assert rules
    assert all("NOEXEC" in rule for rule in rules)
    assert "*" not in "".join(rules)


def test_noexec_is_enforced_here(root: Any) -> None:
    """A rule of the same kind for a shell: with NOEXEC it starts, and can start nothing."""
    rule = f"{OPERATOR} ALL=(root) NOPASSWD: NOEXEC: /bin/sh -c /usr/bin/id\n"
    root.check_output("printf %s > /etc/sudoers.d/zz-test && chmod 0440 /etc/sudoers.d/zz-test", rule)
    try:
        done = as_operator(root, "sudo -n /bin/sh -c /usr/bin/id")
    finally:
        root.check_output("rm /etc/sudoers.d/zz-test")
    assert "uid=0" not in done.stdout
    assert "ermission denied" in done.stderr


@pytest.mark.usefixtures("service")
def test_services_and_the_rest_of_the_host_log_apart(root: Any) -> None:
    assert SAID_BY_THE_SERVICE in root.check_output("journalctl --namespace=derms --boot --no-pager")
    assert not root.check_output("journalctl _SYSTEMD_UNIT=derms-web.service --boot --no-pager --quiet")
    assert "sshd" not in root.check_output("journalctl --namespace=derms --boot --no-pager")


@pytest.mark.usefixtures("service")
def test_an_operator_reads_the_services_journal_alone(root: Any) -> None:
    own = as_operator(root, "journalctl --namespace=derms --boot --no-pager --quiet")
    assert SAID_BY_THE_SERVICE in own.stdout
    rest = as_operator(root, "journalctl --system --boot --no-pager --quiet")
    assert not rest.stdout
    as_service = root.run("runuser --user derms-web -- journalctl --system --boot --no-pager --quiet")
    assert not as_service.stdout


def test_udev_reads_the_serial_adapters_rule(root: Any) -> None:
    rule = root.file("/etc/udev/rules.d/70-derms-serial.rules").content_string
    assert 'ATTRS{serial}=="A50285BI", SYMLINK+="derms/meter-bus", GROUP="derms"' in rule
    words = root.run("udevadm test /sys/devices/virtual/mem/null")
    read = words.stdout + words.stderr
    assert "70-derms-serial.rules" in read
    assert not [line for line in read.splitlines() if "70-derms-serial.rules:" in line]
