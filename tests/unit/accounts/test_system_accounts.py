# SPDX-License-Identifier: GPL-3.0-or-later
"""System accounts: what differs is named attribute by attribute, and only that is changed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.derms.edge.plugins.modules import system_accounts
from ansible_collections.derms.edge.plugins.modules.system_accounts import Group, User

USERS = """\
root:x:0:0:root:/root:/bin/bash
+@netgroup::::::
derms-web:x:995:997:DERMS operators' page:/nonexistent:/usr/sbin/nologin
ana:x:1000:1000::/home/ana:/bin/bash
"""
GROUPS = """\
root:x:0:
adm:x:4:syslog
derms:x:997:
derms-operators:x:996:ana
ana:x:1000:
"""
LOCKS = """\
root:*:19000:0:99999:7:::
derms-web:!:19000::::::
ana:!*:19000:0:99999:7:::
"""
WEB = User("derms-web", "derms", frozenset(), "DERMS operators' page", "/nonexistent", "/usr/sbin/nologin")
OPERATORS = Group("derms-operators", frozenset({"ana"}))


def found(**changes: str) -> system_accounts.Accounts:
    texts = {"passwd": USERS, "group": GROUPS, "shadow": LOCKS, **changes}
    return system_accounts.found_accounts(**texts)


def test_in_sync() -> None:
    assert found().users["derms-web"] == WEB
    assert system_accounts.user_drift(WEB, found()) == []
    assert system_accounts.user_commands(WEB, found()) == []
    assert system_accounts.group_drift(OPERATORS, found()) == []
    assert system_accounts.member_commands(OPERATORS, found()) == []
    assert system_accounts.group_commands(OPERATORS, found()) == []


def test_a_missing_user_is_made_without_home() -> None:
    historian = replace(WEB, name="derms-historian", comment="DERMS historian")
    (drift,) = system_accounts.user_drift(historian, found())
    assert drift == {"what": "user derms-historian", "is": "absent", "should_be": "present"}
    (command,) = system_accounts.user_commands(historian, found())
    assert command[:3] == ["useradd", "--system", "--no-create-home"]
    assert command[-1] == "derms-historian"


@pytest.mark.parametrize(
    ("changes", "drift", "command"),
    [
        (
            {"passwd": USERS.replace("/usr/sbin/nologin", "/bin/bash")},
            {"what": "user derms-web shell", "is": "/bin/bash", "should_be": "/usr/sbin/nologin"},
            ["usermod", "--shell", "/usr/sbin/nologin", "derms-web"],
        ),
        (
            {"passwd": USERS.replace("/nonexistent", "/home/x")},
            {"what": "user derms-web home", "is": "/home/x", "should_be": "/nonexistent"},
            ["usermod", "--home", "/nonexistent", "derms-web"],
        ),
        (
            {"group": GROUPS.replace("adm:x:4:syslog", "adm:x:4:syslog,derms-web")},
            {"what": "user derms-web other groups", "is": "adm", "should_be": "none"},
            ["usermod", "--groups", "", "derms-web"],
        ),
        (
            {"passwd": USERS.replace(":995:997:", ":995:4:")},
            {"what": "user derms-web primary group", "is": "adm", "should_be": "derms"},
            ["usermod", "--gid", "derms", "derms-web"],
        ),
        (
            {"passwd": USERS.replace(":995:997:", ":995:12345:")},
            {"what": "user derms-web primary group", "is": "12345", "should_be": "derms"},
            ["usermod", "--gid", "derms", "derms-web"],
        ),
        (
            {"shadow": LOCKS.replace("derms-web:!", "derms-web:$6$salt$hash")},
            {"what": "user derms-web password", "is": "set", "should_be": "locked"},
            ["usermod", "--lock", "derms-web"],
        ),
        (
            {"shadow": LOCKS.replace("derms-web:!", "derms-web:")},
            {"what": "user derms-web password", "is": "set", "should_be": "locked"},
            ["usermod", "--lock", "derms-web"],
        ),
    ],
)
def test_one_attribute_is_named_and_repaired(
    changes: dict[str, str], drift: dict[str, str], command: list[str]
) -> None:
    assert system_accounts.user_drift(WEB, found(**changes)) == [drift]
    assert system_accounts.user_commands(WEB, found(**changes)) == [command]


@pytest.mark.parametrize(
    ("members", "has", "command"),
    [
        ("ana,bob", "ana, bob", ["gpasswd", "--members", "ana", "derms-operators"]),
        ("", "none", ["gpasswd", "--members", "ana", "derms-operators"]),
    ],
)
def test_members_are_exact(members: str, has: str, command: list[str]) -> None:
    host = found(group=GROUPS.replace("996:ana", f"996:{members}"))
    assert system_accounts.group_drift(OPERATORS, host) == [
        {"what": "group derms-operators members", "is": has, "should_be": "ana"}
    ]
    assert system_accounts.member_commands(OPERATORS, host) == [command]


def test_a_missing_group_is_one_difference_and_gets_its_members() -> None:
    host = found(group=GROUPS.replace("derms-operators:x:996:ana\n", ""))
    (drift,) = system_accounts.group_drift(OPERATORS, host)
    assert drift["is"] == "absent"
    assert system_accounts.group_commands(OPERATORS, host) == [["groupadd", "--system", "derms-operators"]]
    assert len(system_accounts.member_commands(OPERATORS, host)) == 1


def test_members_left_alone() -> None:
    assert system_accounts.group_drift(Group("adm"), found()) == []
    assert system_accounts.member_commands(Group("adm"), found()) == []


def test_unknown_members() -> None:
    groups = [Group("derms-operators", frozenset({"ana", "nobody-here", "derms-web"}))]
    known = {"ana"}
    assert system_accounts.unknown_members(groups, [WEB], known.__contains__) == ["nobody-here"]


@pytest.mark.parametrize("check_mode", [True, False])
def test_module_makes_groups_then_users_then_members(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], check_mode: bool
) -> None:
    made: list[list[str]] = []
    monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda _self, name, **_options: name)
    monkeypatch.setattr(AnsibleModule, "run_command", lambda _self, argv, **_options: made.append(argv))
    params: dict[str, Any] = {
        "groups": [{"name": "tm-group", "members": ["tm-user"]}],
        "users": [{"name": "tm-user", "group": "tm-group"}],
        "_ansible_check_mode": check_mode,
    }
    with patch_module_args(params), pytest.raises(SystemExit):
        system_accounts.main()
    result = json.loads(capsys.readouterr().out)
    assert result["changed"] is True
    assert [entry["what"] for entry in result["drift"]] == ["group tm-group", "user tm-user"]
    assert [argv[0] for argv in made] == ([] if check_mode else ["groupadd", "useradd", "gpasswd"])


def test_module_refuses_a_member_nobody_knows(capsys: pytest.CaptureFixture[str]) -> None:
    params = {"groups": [{"name": "derms-operators", "members": ["no-such-user"]}]}
    with patch_module_args(params), pytest.raises(SystemExit):
        system_accounts.main()
    result = json.loads(capsys.readouterr().out)
    assert result["failed"] is True
    assert "no-such-user" in result["msg"]
