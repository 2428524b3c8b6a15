# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.derms.edge.plugins.module_utils import rollback
from ansible_collections.derms.edge.plugins.module_utils.iptables import restore_input, saved_text
from ansible_collections.derms.edge.plugins.module_utils.text_files import Attributes
from ansible_collections.derms.edge.plugins.modules import iptables_chains
from ansible_collections.derms.edge.plugins.modules.iptables_chains import (
    active_units,
    declared_chains,
    main,
    ufw_is_on,
)

CHAIN = {"name": "DERMS-INPUT", "hook": "INPUT", "rules": [{"rule": "-i lo -j ACCEPT"}, {"rule": "-j DROP"}]}


def rule(text: str, **options: Any) -> dict[str, Any]:
    return {"rule": text, "families": ["ipv4", "ipv6"], "from_blocks": None, **options}


def entry(name: str = "DERMS-INPUT", **options: Any) -> dict[str, Any]:
    return {"name": name, "table": "filter", "hook": None, "families": ["ipv4"], "rules": [], **options}


class Machine:
    """Answers as the programs of a machine would, with rules that print as they were written."""

    def __init__(self) -> None:
        self.loaded = {
            "iptables": "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n",
            "ip6tables": "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n",
        }
        self.programs = True
        self.refused_rule = "no such rule"
        self.active = ""
        self.told: list[list[str]] = []

    def run_command(self, argv: list[str], data: str = "", **_options: Any) -> tuple[int, str, str]:
        self.told.append(argv)
        if argv[0] == "unshare":
            refused = self.refused_rule in data
            return (2, "", "unknown option\nTry --help") if refused else (0, data, "")
        if argv[0].endswith("-save"):
            return 0, self.loaded[argv[0].removesuffix("-save")], ""
        if argv[0] == "systemctl":
            return 0, self.active, ""
        raise AssertionError(argv)

    def get_bin_path(self, name: str, required: bool = False) -> str | None:
        assert self.programs or not required
        return f"/usr/sbin/{name}" if self.programs else None


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    machine = Machine()
    monkeypatch.setattr(AnsibleModule, "run_command", machine.run_command)
    monkeypatch.setattr(AnsibleModule, "get_bin_path", machine.get_bin_path)
    monkeypatch.setattr(iptables_chains, "IPV6_INTERFACES", tmp_path)
    monkeypatch.setattr(iptables_chains, "UFW_CONFIGURATION", tmp_path / "ufw.conf")
    monkeypatch.setattr(rollback, "SNAPSHOTS", tmp_path / "rollback")
    return machine


@pytest.fixture
def result(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    assert not machine.told

    def dry_run(**options: Any) -> dict[str, Any]:
        arguments = {"chains": [CHAIN], "save_to": str(tmp_path), "_ansible_check_mode": True, **options}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            main()
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return answer

    return dry_run


def test_a_new_host_without_iptables_is_predicted_to_change(
    machine: Machine, result: Callable[..., dict[str, Any]]
) -> None:
    machine.programs = False
    answer = result()
    assert answer["changed"]
    assert len(answer["drift"]) == 6
    assert machine.told == []


def test_a_kernel_without_ipv6_is_said(
    result: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(iptables_chains, "IPV6_INTERFACES", tmp_path / "absent")
    answer = result()
    assert answer["notes"] == ["ipv6 is switched off in this kernel, so there are no rules for it"]
    assert len(answer["drift"]) == 3
    assert not any(one["what"].startswith("ipv6") for one in answer["drift"])


def test_in_sync_nothing_changes(
    machine: Machine, result: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chains = declared_chains([entry(hook="INPUT", rules=[rule("-j DROP")])], "ipv4")
    text = restore_input(chains).replace("*filter\n", "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j DERMS-INPUT\n")
    machine.loaded = {"iptables": text}
    (tmp_path / "ipv4.rules").write_text(saved_text(chains))
    mode = Attributes(Path(tmp_path).owner(), Path(tmp_path).group(), 0o600)
    monkeypatch.setattr(iptables_chains, "SAVED", mode)
    (tmp_path / "ipv4.rules").chmod(0o600)
    wanted = {"name": "DERMS-INPUT", "hook": "INPUT", "families": ["ipv4"], "rules": [{"rule": "-j DROP"}]}
    answer = result(chains=[wanted])
    assert answer["drift"] == []
    assert not answer["changed"]
    (tmp_path / "ipv4.rules").chmod(0o644)
    assert [one["is"] for one in result(chains=[wanted])["drift"]] == ["0644"]


def test_a_change_nobody_has_confirmed_is_a_difference(result: Callable[..., dict[str, Any]]) -> None:
    (rollback.SNAPSHOTS / "firewall").mkdir(parents=True)
    (rollback.SNAPSHOTS / "firewall" / "armed").touch()
    drift = result(rollback={"name": "firewall"})["drift"]
    assert drift[-1] == {"what": "roll-back firewall", "is": "armed", "should_be": "disarmed"}


def test_a_rule_that_iptables_refuses_is_named(machine: Machine, result: Callable[..., dict[str, Any]]) -> None:
    machine.refused_rule = "--foo"
    rules = [{"rule": "-i lo -j ACCEPT"}, {"rule": "-p tcp --foo -j DROP"}]
    answer = result(chains=[{**CHAIN, "rules": rules}])
    assert answer["failed"]
    assert "ipv4 filter DERMS-INPUT: the rule '-p tcp --foo -j DROP' is refused: unknown option" in answer["msg"]


@pytest.mark.parametrize("block", ["10.0.0.0/33", "depot-a", "10.0.0.1/8"])
def test_a_block_that_is_none_is_named(result: Callable[..., dict[str, Any]], block: str) -> None:
    for options in (
        {"chains": [{**CHAIN, "rules": [{"rule": "-j ACCEPT", "from_blocks": [block]}]}]},
        {"connection_blocks": [block]},
    ):
        answer = result(**options)
        assert answer["failed"]
        assert repr(block) in answer["msg"]


def test_a_connection_from_elsewhere_is_refused(
    result: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iptables_chains, "connection_source", lambda: ip_address("192.0.2.7"))
    assert "comes from 192.0.2.7" in result(connection_blocks=["10.0.0.0/8"])["msg"]
    assert not result(connection_blocks=["10.0.0.0/8", "192.0.2.0/24"]).get("failed")


def test_another_firewall_is_refused(machine: Machine, result: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    machine.active = "Id=ufw.service\nActiveState=active\n\nId=firewalld.service\nActiveState=inactive\n"
    units = ["ufw.service", "firewalld.service"]
    assert not result(refused_beside=units).get("failed")
    (tmp_path / "ufw.conf").write_text("# ENABLED=no\nENABLED=yes\n")
    assert "Another firewall is active: ufw.service" in result(refused_beside=units)["msg"]


def test_ufw_is_on_only_where_it_says_so() -> None:
    assert ufw_is_on('ENABLED="yes"\n')
    assert not ufw_is_on("#ENABLED=yes\nENABLED=no\n")
    assert not ufw_is_on("")


def test_a_unit_that_is_unknown_is_not_active() -> None:
    assert active_units("Id=a.service\nActiveState=inactive\n\nId=b.service\nActiveState=reloading\n") == ["b.service"]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([entry(), entry()], "declared twice"),
        ([entry("A", hook="INPUT"), entry("B", hook="INPUT")], "cannot both come first"),
        ([entry("A B")], "no name for a chain"),
        ([entry("A" * 29)], "no name for a chain"),
        ([entry(rules=[rule("-s depot-a -j ACCEPT")])], "'depot-a' is no IP block"),
    ],
)
def test_a_contradiction_is_named(entries: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        declared_chains(entries, "ipv4")
