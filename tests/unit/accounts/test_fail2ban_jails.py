# SPDX-License-Identifier: GPL-3.0-or-later
"""fail2ban's jails: a stopped one is named and started, and a ban is nobody's drift."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.derms.edge.plugins.modules import fail2ban_jails

CLIENT = "/usr/bin/fail2ban-client"


class FakeServer:
    """A fail2ban that knows its jails, and may have one that another file switches off."""

    def __init__(self, running: list[str] | None, switched_off: str | None = None, refuses: bool = False) -> None:
        self.running = running
        self.switched_off = switched_off
        self.refuses = refuses
        self.asked: list[list[str]] = []

    def run(self, argv: list[str]) -> tuple[int, str, str]:
        words = argv[1:]
        self.asked.append(words)
        if self.running is None:
            return 255, "", "ERROR Failed to access socket path"
        if words == ["status"]:
            names = ", ".join(sorted(self.running))
            return 0, f"Status\n|- Number of jail:\t{len(self.running)}\n`- Jail list:\t{names}\n", ""
        if self.refuses:
            return 255, "", "ERROR NOK: no such filter"
        if words[-1] != self.switched_off:
            self.running.append(words[-1])
        return 0, "OK\n", ""


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(server: FakeServer | None, **params: Any) -> dict[str, Any]:
        monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda _self, _name: CLIENT if server else None)
        if server:
            monkeypatch.setattr(AnsibleModule, "run_command", server.run)
        arguments = {"jails": ["sshd", "recidive"], "settle_s": 0, **params}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            fail2ban_jails.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return run


@pytest.mark.parametrize(
    ("status", "jails"),
    [
        ("Status\n|- Number of jail:\t2\n`- Jail list:\tsshd, recidive\n", ["recidive", "sshd"]),
        ("Status\n|- Number of jail:\t0\n`- Jail list:\t\n", []),
        ("", []),
    ],
)
def test_status(status: str, jails: list[str]) -> None:
    assert fail2ban_jails.jails_of(status) == jails


def test_in_sync_beside_jails_of_others(play: Any) -> None:
    result = play(FakeServer(["sshd", "recidive", "nginx"]))
    assert (result["changed"], result["drift"]) == (False, [])


def test_stopped_jail_is_started_alone(play: Any) -> None:
    server = FakeServer(["recidive"])
    result = play(server)
    assert result["drift"] == [{"what": "fail2ban jail sshd", "is": "stopped", "should_be": "running"}]
    assert result["changed"] is True
    assert [words for words in server.asked if words != ["status"]] == [["reload", "--if-exists", "sshd"]]


def test_check_mode_only_asks(play: Any) -> None:
    server = FakeServer(["recidive"])
    result = play(server, _ansible_check_mode=True)
    assert (result["changed"], result["running"]) == (True, ["recidive"])
    assert server.asked == [["status"]]


@pytest.mark.parametrize("server", [None, FakeServer(None)])
def test_check_mode_without_fail2ban_has_nothing_to_say(play: Any, server: FakeServer | None) -> None:
    result = play(server, _ansible_check_mode=True)
    assert (result["changed"], result["drift"]) == (False, [])


def test_a_notified_restart_speaks_for_the_jails(play: Any) -> None:
    result = play(FakeServer(["recidive"]), _ansible_check_mode=True, restart_notified=True)
    assert (result["changed"], result["drift"]) == (False, [])


def test_jails_that_are_just_starting_are_waited_for(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeServer(["recidive"])
    monkeypatch.setattr("time.sleep", lambda _s: (server.running or []).append("sshd"))
    result = play(server, settle_s=5)
    assert (result["changed"], result["drift"]) == (False, [])


def test_silent_server_fails(play: Any) -> None:
    assert play(FakeServer(None))["failed"] is True


def test_refusal_is_said_in_fail2bans_words(play: Any) -> None:
    assert "no such filter" in play(FakeServer(["recidive"], refuses=True))["msg"]


def test_jail_that_another_file_switches_off(play: Any) -> None:
    result = play(FakeServer(["recidive"], switched_off="sshd"))
    assert result["failed"] is True
    assert "Another file" in result["msg"]
