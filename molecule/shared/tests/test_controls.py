# SPDX-License-Identifier: GPL-3.0-or-later
"""Every control that docs/hardening-controls.yml says was taken, looked at on the host by what it is verified by."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from conftest import TIME_SOURCE, Parameter

DOCUMENT = Path(__file__).parents[3] / "docs" / "hardening-controls.yml"
CONTROLS: list[dict[str, Any]] = yaml.safe_load(DOCUMENT.read_text(encoding="utf-8"))
TAKEN = [control for control in CONTROLS if control["decision"] == "taken"]


class Observed(NamedTuple):
    """The host as the checks look at it."""

    root: Any
    kernel: dict[str, Parameter]
    kernel_at_boot: dict[str, int]
    sshd: dict[str, str]


@pytest.fixture(scope="module")
def observed(root: Any, kernel: dict[str, Parameter], kernel_at_boot: dict[str, int], sshd: dict[str, str]) -> Observed:
    return Observed(root, kernel, kernel_at_boot, sshd)


def kernel_parameter(host: Observed, check: dict[str, Any]) -> None:
    """Hold for each interface that is there, where this kernel lets the host decide; and be told to it at boot."""
    name, value = check["kernel_parameter"], int(check["value"])
    pattern = re.compile(re.escape(name).replace(r"\*", "[^.]+"))
    found = {key: parameter for key, parameter in host.kernel.items() if pattern.fullmatch(key)}
    assert not {key for key, parameter in found.items() if parameter.writable and parameter.value != str(value)}
    # Where the kernel knows it and a container may not tell, it is declared for the day that it may.
    if found:
        assert host.kernel_at_boot[name] == value


def sshd_option(host: Observed, check: dict[str, Any]) -> None:
    """Be what sshd itself says that it holds, all its files taken together."""
    assert host.sshd[check["sshd_option"].lower()] == check["value"]


def sshd_option_not_set_by_us(host: Observed, check: dict[str, Any]) -> None:
    """Be left to the system's own policy."""
    option = check["sshd_option_not_set_by_us"]
    assert host.root.run(f"grep -iE '^[[:space:]]*{option}' /etc/ssh/sshd_config.d/00-derms.conf").rc == 1


def file(host: Observed, check: dict[str, Any]) -> None:
    """Have its mode and be root's; a host key of a kind that the host does not use need not be there."""
    shown = host.root.run("stat --format='%%U:%%G %%04a' %s", check["file"])
    if shown.rc and "ssh_host_" in check["file"]:
        return
    assert shown.stdout.split() == ["root:root", check["mode"]]


def unit(host: Observed, check: dict[str, Any]) -> None:
    """Run, under whichever name the system gives it, or not."""
    running = [host.root.run(f"systemctl is-active {name}").rc == 0 for name in check["unit"].split(" or ")]
    assert any(running) == check["running"]


def process(host: Observed, check: dict[str, Any]) -> None:
    """Run as its user."""
    assert check["user"] == "not root"
    users = host.root.check_output(f"ps -o user= -C {check['process']}").split()
    assert users
    assert "root" not in users


def time_source(host: Observed, _check: dict[str, Any]) -> None:
    """Be what chrony follows."""
    sources = host.root.check_output("chronyc -c sources").splitlines()
    assert [line.split(",")[2] for line in sources] == [TIME_SOURCE]


def both_families_alike(host: Observed) -> None:
    chains = {
        program: set(re.findall(r"^:(DERMS\S+)", host.root.check_output(program), re.MULTILINE))
        for program in ("iptables-save", "ip6tables-save")
    }
    assert chains["iptables-save"] == chains["ip6tables-save"] == {"DERMS-INPUT", "DERMS-FORWARD"}


def drop_last(host: Observed) -> None:
    """End each chain with a drop; test_firewall.py feels it from outside."""
    for program in ("iptables", "ip6tables"):
        for table, chain in (("filter", "DERMS-INPUT"), ("mangle", "DERMS-FORWARD")):
            rules = host.root.check_output(f"{program} -t {table} -S {chain}").splitlines()
            assert rules[-1] == f"-A {chain} -j DROP"


def loopback_is_open(host: Observed) -> None:
    for address in ("127.0.0.1", "::1"):
        connect = f"import socket; socket.create_connection(('{address}', 22), 3).close()"
        assert host.root.run("python3 -c %s", connect).rc == 0


def no_other_firewall(host: Observed) -> None:
    for name in ("ufw", "firewalld", "nftables"):
        assert host.root.run(f"systemctl is-active {name}").rc != 0


FIREWALL: dict[str, Callable[[Observed], None]] = {
    "ip6tables holds the same chains as iptables": both_families_alike,
    "input and forwarded packets that no rule accepts are dropped": drop_last,
    "packets of the loopback interface are accepted": loopback_is_open,
    "an active ufw or firewalld is dealt with as the role says": no_other_firewall,
}


def firewall(host: Observed, check: dict[str, Any]) -> None:
    """Be what the sentence says."""
    FIREWALL[check["firewall"]](host)


CHECKS: dict[str, Callable[[Observed, dict[str, Any]], None]] = {
    check.__name__: check
    for check in (kernel_parameter, sshd_option, sshd_option_not_set_by_us, file, unit, process, time_source, firewall)
}


def verifications() -> Iterator[Any]:
    """Yield each thing that a control is verified by."""
    for control in TAKEN:
        for check in control["verified_by"]:
            subject = next(str(check[kind]) for kind in CHECKS if kind in check)
            yield pytest.param(control, check, id=f"{control['id']}: {subject}")


@pytest.mark.parametrize(("control", "check"), list(verifications()))
def test_the_control_holds(observed: Observed, is_el: bool, control: dict[str, Any], check: dict[str, Any]) -> None:
    if control.get("on", "RedHat" if is_el else "Debian") != ("RedHat" if is_el else "Debian"):
        pytest.skip(f"is for {control['on']}")
    (kind,) = CHECKS.keys() & check.keys()
    CHECKS[kind](observed, check)


def test_every_control_that_was_taken_is_looked_at() -> None:
    assert len(TAKEN) > 50
    assert all(control["verified_by"] for control in TAKEN)
