#!/usr/bin/python
# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: system_accounts
short_description: System groups and users, held as a whole
version_added: 0.1.0
description:
  - Holds a list of system groups and users as declared, in one step, and names every attribute that differs.
  - A user is held to exactly the groups declared, without a home directory of its own and without a password.
  - Other users and groups are left alone, and nothing is ever removed.
author: DERMS Edge developers (@derms-edge)
attributes:
  check_mode:
    support: full
    description: Predicts the change.
  diff_mode:
    support: full
    description: Returns every attribute that differs.
  platform:
    support: full
    platforms: posix
    description: Linux with the shadow tools (useradd, usermod, groupadd, gpasswd).
options:
  groups:
    description: The groups, made before the users.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The group's name.
        type: str
        required: true
      members:
        description:
          - Users that are in this group besides those whose primary group it is; all of them, and no others.
          - Without it the members are left alone. They have to exist already.
        type: list
        elements: str
  users:
    description: The users.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The user's name.
        type: str
        required: true
      group:
        description: The primary group.
        type: str
        required: true
      groups:
        description: All other groups.
        type: list
        elements: str
        default: []
      comment:
        description: What the user is for.
        type: str
        default: ''
      home:
        description: The home directory, which is not made.
        type: path
        default: /nonexistent
      shell:
        description: The login shell.
        type: path
        default: /usr/sbin/nologin
"""

EXAMPLES = r"""
- name: Hold the historian's account
  derms.edge.system_accounts:
    groups:
      - name: derms
      - name: derms-operators
        members: [ana]
    users:
      - name: derms-historian
        group: derms
"""

RETURN = r"""
drift:
  description: Every difference between what is declared and what was found.
  type: list
  elements: dict
  returned: always
  sample:
    - what: user derms-historian shell
      is: /bin/bash
      should_be: /usr/sbin/nologin
"""

import pwd
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.derms.edge.plugins.module_utils.text_files import Drift, drift_diff


@dataclass(frozen=True)
class Group:
    """A group as declared; members None leaves them alone."""

    name: str
    members: Optional[frozenset[str]] = None


@dataclass(frozen=True)
class User:
    """A user, as declared or as found."""

    name: str
    group: str
    groups: frozenset[str]
    comment: str
    home: str
    shell: str
    has_password: bool = False


@dataclass(frozen=True)
class Accounts:
    """What the host has."""

    groups: dict[str, frozenset[str]] = field(default_factory=dict)
    users: dict[str, User] = field(default_factory=dict)


def records(text: str, fields: int) -> list[list[str]]:
    """Split a file of the passwd family into its records, without what is none."""
    rows = [line.split(":") for line in text.splitlines()]
    return [row for row in rows if len(row) >= fields and not row[0].startswith(("#", "+", "-"))]


def found_accounts(passwd: str, group: str, shadow: str) -> Accounts:
    """Read the host's accounts from the text of its files."""
    group_rows = records(group, 4)
    name_of = {gid: name for name, _password, gid, *_rest in group_rows}
    members = {row[0]: frozenset(name for name in row[3].split(",") if name) for row in group_rows}
    # Everything but a hash is no password: "!" and "*" lock, and an empty field lets everybody in.
    passwords = {row[0]: not row[1].startswith(("!", "*")) for row in records(shadow, 2)}
    users = {
        name: User(
            name=name,
            group=name_of.get(gid, gid),
            groups=frozenset(other for other, inside in members.items() if name in inside),
            comment=comment,
            home=home,
            shell=shell,
            has_password=passwords.get(name, False),
        )
        for name, _password, _uid, gid, comment, home, shell, *_rest in records(passwd, 7)
    }
    return Accounts(members, users)


def listed(names: frozenset[str]) -> str:
    """Give names as people read them."""
    return ", ".join(sorted(names)) or "none"


def group_drift(wanted: Group, found: Accounts) -> list[Drift]:
    """Name what differs of a group."""
    members = found.groups.get(wanted.name)
    if members is None:
        return [{"what": f"group {wanted.name}", "is": "absent", "should_be": "present"}]
    if wanted.members is None or wanted.members == members:
        return []
    return [{"what": f"group {wanted.name} members", "is": listed(members), "should_be": listed(wanted.members)}]


def shown(user: User) -> dict[str, str]:
    """Give a user's attributes as text."""
    return {
        "primary group": user.group,
        "other groups": listed(user.groups),
        "comment": user.comment or "none",
        "home": user.home,
        "shell": user.shell,
        "password": "set" if user.has_password else "locked",
    }


def user_drift(wanted: User, found: Accounts) -> list[Drift]:
    """Name what differs of a user."""
    has = found.users.get(wanted.name)
    if has is None:
        return [{"what": f"user {wanted.name}", "is": "absent", "should_be": "present"}]
    before, after = shown(has), shown(wanted)
    return [
        {"what": f"user {wanted.name} {name}", "is": before[name], "should_be": after[name]}
        for name in after
        if before[name] != after[name]
    ]


def group_commands(wanted: Group, found: Accounts) -> list[list[str]]:
    """Give the commands that make a group as declared, its members apart."""
    return [] if wanted.name in found.groups else [["groupadd", "--system", wanted.name]]


def member_commands(wanted: Group, found: Accounts) -> list[list[str]]:
    """Give the commands that give a group its members, who may have to be made first."""
    if wanted.members is None or wanted.members == found.groups.get(wanted.name, frozenset()):
        return []
    return [["gpasswd", "--members", ",".join(sorted(wanted.members)), wanted.name]]


def user_commands(wanted: User, found: Accounts) -> list[list[str]]:
    """Give the commands that make a user as declared."""
    options = {
        "--gid": (wanted.group, "group"),
        "--groups": (",".join(sorted(wanted.groups)), "groups"),
        "--comment": (wanted.comment, "comment"),
        "--home-dir": (wanted.home, "home"),
        "--shell": (wanted.shell, "shell"),
    }
    has = found.users.get(wanted.name)
    if has is None:
        words = [word for option, (value, _name) in options.items() for word in (option, value)]
        return [["useradd", "--system", "--no-create-home", *words, wanted.name]]
    differing = {
        option: value for option, (value, name) in options.items() if getattr(has, name) != getattr(wanted, name)
    }
    words = [
        word for option, value in differing.items() for word in ("--home" if option == "--home-dir" else option, value)
    ]
    commands = [["usermod", *words, wanted.name]] if words else []
    return commands + ([["usermod", "--lock", wanted.name]] if has.has_password else [])


def unknown_members(groups: list[Group], users: list[User], exists: Any) -> list[str]:
    """Name the members that neither exist nor are declared."""
    declared = {user.name for user in users}
    members = {name for group in groups for name in group.members or ()}
    return sorted(name for name in members - declared if not exists(name))


def user_exists(name: str) -> bool:
    """Say whether the host knows a user, wherever it takes its users from."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def main() -> None:
    """Compare, and bring about what differs."""
    module = AnsibleModule(
        argument_spec={
            "groups": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "members": {"type": "list", "elements": "str"},
                },
            },
            "users": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "group": {"type": "str", "required": True},
                    "groups": {"type": "list", "elements": "str", "default": []},
                    "comment": {"type": "str", "default": ""},
                    "home": {"type": "path", "default": "/nonexistent"},
                    "shell": {"type": "path", "default": "/usr/sbin/nologin"},
                },
            },
        },
        supports_check_mode=True,
    )
    groups = [
        Group(one["name"], None if one["members"] is None else frozenset(one["members"]))
        for one in module.params["groups"]
    ]
    users = [User(**{**one, "groups": frozenset(one["groups"])}) for one in module.params["users"]]
    unknown = unknown_members(groups, users, user_exists)
    if unknown:
        module.fail_json(msg=f"There is no such user, so no group takes it in: {', '.join(unknown)}.")
    texts = [Path("/etc", name).read_text(encoding="utf-8", errors="replace") for name in ("passwd", "group", "shadow")]
    found = found_accounts(*texts)

    drift = [entry for group in groups for entry in group_drift(group, found)]
    drift += [entry for user in users for entry in user_drift(user, found)]
    commands = [argv for group in groups for argv in group_commands(group, found)]
    commands += [argv for user in users for argv in user_commands(user, found)]
    commands += [argv for group in groups for argv in member_commands(group, found)]
    if not module.check_mode:
        for argv in commands:
            module.run_command([module.get_bin_path(argv[0], required=True), *argv[1:]], check_rc=True)
    module.exit_json(
        changed=bool(commands),
        drift=drift,
        diff=drift_diff(drift),
    )


if __name__ == "__main__":
    main()
