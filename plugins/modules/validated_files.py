#!/usr/bin/python
# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: validated_files
short_description: Configuration files, checked as part of the whole configuration before they are written
version_added: 0.1.0
author: DERMS Edge developers (@derms-edge)
description:
  - Holds a list of files, and the directories they live in, as declared.
  - Before anything is written the candidates are stood in their place inside a private mount namespace, which only the
    checkers see, and the checkers judge the whole configuration there, in check mode as well.
  - If one of them objects, nothing is written.
  - Every file is replaced in one step, and is never readable for anybody who may not read the result.
options:
  files:
    description: The files.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Absolute path.
        type: path
        required: true
      content:
        description:
          - The text. A last line without a line feed gets one.
          - Where it is secret, set O(files[].no_diff).
        type: str
      owner:
        description: The owner's name or number.
        type: str
        default: root
      group:
        description: The group's name or number.
        type: str
        default: root
      mode:
        description: The mode, octal, as a string.
        type: str
        default: '0644'
      state:
        description:
          - Whether there is to be such a file.
          - With V(existing), a file that is there keeps its content, and only its owner, group and mode are held.
        type: str
        choices: [present, absent, existing]
        default: present
      no_diff:
        description: Keep the content out of the diff and of the drift.
        type: bool
        default: false
  directories:
    description: Directories, made before the files.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Absolute path.
        type: path
        required: true
      owner:
        description: The owner's name or number.
        type: str
        default: root
      group:
        description: The group's name or number.
        type: str
        default: root
      mode:
        description: The mode, octal, as a string.
        type: str
        default: '0755'
      state:
        description: Whether there is to be such a directory. Only an empty one is removed.
        type: str
        choices: [present, absent]
        default: present
  validate:
    description:
      - Commands, each a list of words, that judge the whole configuration. They run when a file is to change.
      - One whose program is not installed yet is left out and named in RV(not_validated).
    type: list
    elements: list
    default: []
  effective:
    description:
      - What the software itself must answer when asked for its configuration, whatever other files say.
      - It is asked in every run, with the candidates in place.
    type: dict
    suboptions:
      command:
        description: The question, such as C([sshd, -T]), answered by lines C(name value).
        type: list
        elements: str
        required: true
      expected:
        description: Each name and its value. Names are compared without regard to case.
        type: dict
        required: true
      sources:
        description:
          - Files or patterns that may say otherwise, in the order in which they are read. They serve to name the line.
        type: list
        elements: str
        default: []
      first_line:
        description:
          - The line that gives the declared files precedence, and the file that it is put on top of.
          - It is only written where the answer is otherwise not the expected one.
        type: dict
        suboptions:
          path:
            description: The file.
            type: path
            required: true
          line:
            description: The line.
            type: str
            required: true
  rollback:
    description:
      - Arm a roll-back in the same step as the change, so that nothing between the two can prevent it.
      - It is disarmed by M(derms.edge.rollback) once a new connection has been made.
    type: dict
    suboptions:
      name:
        description: The roll-back's name.
        type: str
        required: true
      after_s:
        description: After how many seconds the old files come back.
        type: int
        default: 45
      commands:
        description: Commands, each a list of words, that make the old files effective again.
        type: list
        elements: list
        default: []
  keep:
    description:
      - Copy files before the first of O(files) is changed, for M(derms.edge.agent_release) to go back to.
      - Copies that are there stay, for they are older; without a release in service there is nothing to go back to.
    type: dict
    suboptions:
      directory:
        description: Where copies are kept.
        type: path
        required: true
      link:
        description: The link to the release in service, which the copies belong to.
        type: path
        required: true
      files:
        description: What is copied, with what other tasks change among it.
        type: list
        elements: path
        required: true
attributes:
  check_mode:
    description: Predicts the change, the checkers included.
    support: full
  diff_mode:
    description: Returns one entry for each file and directory.
    support: full
  platform:
    description: Where it works.
    support: full
    platforms: posix
"""

EXAMPLES = r"""
- name: Keep passwords out of SSH
  derms.edge.validated_files:
    files:
      - path: /etc/ssh/sshd_config.d/00-derms.conf
        content: |
          PasswordAuthentication no
        mode: '0600'
    validate:
      - [sshd, -t]
    effective:
      command: [sshd, -T]
      expected:
        PasswordAuthentication: 'no'
      sources:
        - /etc/ssh/sshd_config
        - /etc/ssh/sshd_config.d/*.conf
    rollback:
      name: sshd
      commands:
        - [systemctl, reload, ssh]
"""

RETURN = r"""
drift:
  description: Every difference between what is declared and what was found.
  type: list
  elements: dict
  returned: always
  sample:
    - what: /etc/ssh/sshd_config.d/00-derms.conf
      is: PasswordAuthentication yes
      should_be: PasswordAuthentication no
not_validated:
  description: Checkers whose program is not installed, as command lines.
  type: list
  elements: str
  returned: always
  sample: ['sshd -t']
"""

import os
import re
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.derms.edge.plugins.module_utils.kept_files import KeptFiles
from ansible_collections.derms.edge.plugins.module_utils.private_mounts import (
    Answer,
    Candidate,
    TrialError,
    answers_on_trial,
)
from ansible_collections.derms.edge.plugins.module_utils.rollback import arm, is_pending
from ansible_collections.derms.edge.plugins.module_utils.text_files import (
    Attributes,
    Drift,
    Found,
    WantedDirectory,
    WantedFile,
    directory_drift,
    drift,
    drift_diff,
    file_bytes,
    file_diff,
    file_drift,
    group_id,
    look_at,
    octal_mode,
    owner_id,
    replace_file,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def wanted_file(entry: dict[str, Any]) -> WantedFile | None:
    """Return a file as declared; None where only an existing one's attributes are, and there is none."""
    path = os.path.normpath(entry["path"])
    attributes = Attributes(entry["owner"], entry["group"], octal_mode(entry["mode"]))
    if entry["state"] == "absent":
        return WantedFile(path, None, attributes, entry["no_diff"])
    if entry["state"] == "existing":
        found = look_at(path)
        return WantedFile(path, found.content, attributes, True) if found and found.content is not None else None
    if entry["content"] is None:
        raise ValueError(f"{path}: content is missing")
    return WantedFile(path, file_bytes(entry["content"]), attributes, entry["no_diff"])


def wanted_directories(declared: list[dict[str, Any]]) -> list[WantedDirectory]:
    """Return the declared directories, a parent before what it contains."""
    return sorted(
        (
            WantedDirectory(
                os.path.normpath(entry["path"]),
                Attributes(entry["owner"], entry["group"], octal_mode(entry["mode"])),
                entry["state"] == "present",
            )
            for entry in declared
        ),
        key=lambda directory: directory.path.count("/"),
    )


def refuse_unusable_paths(paths: list[str]) -> None:
    """Refuse a path that is relative or declared twice."""
    for path in paths:
        if not path.startswith("/") or path == "/":
            raise ValueError(f"{path}: an absolute path below / is needed")
        if paths.count(path) > 1:
            raise ValueError(f"{path}: declared more than once")


def answered_values(words: str) -> dict[str, list[str]]:
    """Return the values that a program names for each of its settings, by lower-case name."""
    values: dict[str, list[str]] = {}
    for line in words.splitlines():
        name, _separator, value = line.strip().partition(" ")
        values.setdefault(name.lower(), []).append(value.strip())
    return values


def command_line(argv: list[str]) -> str:
    """Return a command as it is named in a message: a script among its words is not printed."""
    return " ".join("…" if "\n" in word else word for word in argv)


# So much of a checker's words is shown: the end, where the reason stands.
MOST_WORDS = 2000

# OpenSSH up to 9.x answers a setting's older spelling.
SAME_VALUE = {"without-password": "prohibit-password"}


def same_value(has: str, should: str) -> bool:
    """Compare two values as the software does: by case only where it matters to nobody."""
    first, second = (SAME_VALUE.get(value.lower(), value.lower()) for value in (has, should))
    return first == second


def overridden(expected: dict[str, str], answered: dict[str, list[str]]) -> dict[str, str]:
    """Return the settings whose answer is not the expected one, with that answer.

    A setting that takes several values is answered in as many lines, in two of the same where a file is read twice.
    """
    found = {name: " ".join(dict.fromkeys(answered.get(name.lower(), ["not answered"]))) for name in expected}
    return {name: value for name, value in found.items() if not same_value(value, expected[name])}


def where_set(name: str, sources: list[tuple[str, str]], own: set[str]) -> str:
    """Return the first place, as file:line, where somebody else's file sets a name; empty where none does."""
    for path, text in sources:
        if path in own:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if re.match(rf"\s*{re.escape(name)}[\s=]", line, re.IGNORECASE):
                return f"{path}:{number}"
    return ""


def with_first_line(content: bytes, line: str) -> bytes:
    """Return a content that begins with a line, which stands nowhere else in it."""
    rest = [other for other in content.splitlines() if other.strip() != line.encode()]
    return b"\n".join([line.encode(), *rest]) + b"\n"


def directory_diff(path: str, differences: list[Drift]) -> dict[str, str]:
    """Return before and after of a directory in the form that Ansible's --diff prints."""
    return {"before_header": path, "after_header": path, **drift_diff(differences)}


def known(number: int | None) -> int:
    """Return the number of a user or group whose existence has been checked."""
    if number is None:
        raise ValueError("a user or group was taken away during the run")
    return number


def matching(patterns: list[str]) -> list[str]:
    """Return the files that absolute patterns match, in the patterns' order."""
    return [str(path) for one in patterns for path in sorted(Path("/").glob(one.lstrip("/"))) if path.is_file()]


class RefusalError(Exception):
    """Why nothing was written."""


class Change:
    """What is to change on this host, and how it is brought about."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.files = [one for one in map(wanted_file, module.params["files"]) if one]
        self.directories = wanted_directories(module.params["directories"])
        paths = [one.path for one in self.directories] + [one.path for one in self.files]
        refuse_unusable_paths(paths)
        self.found: dict[str, Found | None] = {path: look_at(path) for path in paths}
        self.not_validated: list[str] = []
        self.overridden: list[Drift] = []
        rollback = module.params["rollback"]
        # A run that was cut off between its change and the confirmation leaves a roll-back that is about to undo it.
        self.unconfirmed = bool(rollback) and is_pending(rollback["name"])
        # A file that is given a first line; what that line is needed for is the drift, not the line.
        self.reordered: set[str] = set()

    def changed_files(self) -> list[WantedFile]:
        """Return the files that are not as declared."""
        return [one for one in self.files if file_drift(one, self.found[one.path]) or self._label_drift(one)]

    def changed_directories(self) -> list[WantedDirectory]:
        """Return the directories that are not as declared."""
        return [one for one in self.directories if directory_drift(one, self.found[one.path])]

    def drift(self) -> list[Drift]:
        """Return every difference."""
        differences = [entry for one in self.directories for entry in directory_drift(one, self.found[one.path])]
        for one in self.files:
            named = file_drift(one, self.found[one.path])
            differences += [entry for entry in named if entry["what"] not in self.reordered]
            differences += self._label_drift(one)
        if self.unconfirmed:
            name = self.module.params["rollback"]["name"]
            differences.append(drift(f"roll-back {name}", "about to undo an unconfirmed change", "confirmed"))
        return differences + self.overridden

    def _label_drift(self, wanted: WantedFile) -> list[Drift]:
        if wanted.content is None or self.found[wanted.path] is None or not self.module.selinux_enabled():
            return []
        has = (self.module.selinux_context(wanted.path) or [""] * 3)[2]
        should = (self.module.selinux_default_context(wanted.path) or [""] * 3)[2]
        return [drift(f"{wanted.path} SELinux type", has, should)] if should and has != should else []

    def _candidates(self) -> list[Candidate]:
        """Return the changed files; an owner who is yet to be created is stood in for by root."""
        return [
            Candidate(
                one.path,
                one.content,
                owner_id(one.attributes.owner) or 0,
                group_id(one.attributes.group) or 0,
                one.attributes.mode,
            )
            for one in self.changed_files()
        ]

    def _runnable(self, argv: list[str]) -> list[str] | None:
        """Return a command with its program's path; note it where the program is not installed."""
        program = self.module.get_bin_path(argv[0])
        if program is None:
            self.not_validated.append(" ".join(argv))
            return None
        return [program, *argv[1:]]

    def _ask(self, commands: list[list[str]]) -> list[Answer]:
        """Return the commands' answers where the candidates stand in their place; an objection ends the run."""
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "LANG": "C"}
        try:
            answers = answers_on_trial(self._candidates(), commands, environment) if commands else []
        except TrialError as error:
            raise RefusalError(
                f"the candidates could not be checked, so nothing was written: {error}. "
                "It takes root and the permission to make a mount namespace (CAP_SYS_ADMIN)."
            ) from error
        for answer in answers:
            if answer.status != 0:
                words = answer.stderr.strip() or answer.stdout.strip() or f"exit status {answer.status}"
                raise RefusalError(
                    f"{command_line(answer.argv)} objects, so nothing was written: {words[-MOST_WORDS:]}"
                )
        return answers

    def try_out(self) -> None:
        """Let the checkers judge the candidates."""
        commands = self.module.params["validate"] if self.changed_files() else []
        runnable = [self._runnable([str(word) for word in argv]) for argv in commands]
        self._ask([argv for argv in runnable if argv])

    def ask_for_effect(self) -> None:
        """Ask the software itself; give the declared files precedence where something else overrides them."""
        effective = self.module.params["effective"]
        command = self._runnable(effective["command"]) if effective else None
        if command is None:
            return
        expected = {name: str(value) for name, value in effective["expected"].items()}
        deviating = self._deviating(command, expected)
        own = {entry["path"] for entry in self.module.params["files"] if entry["state"] == "present"}
        sources = [(path, Path(path).read_text(errors="replace")) for path in matching(effective["sources"])]
        for name, value in deviating.items():
            place = where_set(name, sources, own)
            found = f"{value} ({place})" if place else value
            self.overridden.append(drift(f"{name} (effective)", found, expected[name]))
        if deviating and effective["first_line"]:
            self._put_first(**effective["first_line"])
            deviating = self._deviating(command, expected)
        if deviating:
            words = "; ".join(f"{one['what']} is {one['is']}, should be {one['should_be']}" for one in self.overridden)
            raise RefusalError(f"the declared files would not take effect, so nothing was written: {words}")

    def _deviating(self, command: list[str], expected: dict[str, str]) -> dict[str, str]:
        (answer,) = self._ask([command])
        return overridden(expected, answered_values(answer.stdout))

    def _put_first(self, path: str, line: str) -> None:
        found = look_at(path)
        if found is None or found.content is None:
            raise RefusalError(f"{path} is no regular file, so the line {line!r} cannot be put on top of it")
        declared = {one.path: one.attributes for one in self.files}
        first = WantedFile(path, with_first_line(found.content, line), declared.get(path, found.attributes))
        self.files = [one for one in self.files if one.path != path] + [first]
        self.found[path] = found
        self.reordered.add(path)

    def diff(self) -> list[dict[str, str]]:
        """Return before and after of everything that changes."""
        directories = [
            directory_diff(one.path, directory_drift(one, self.found[one.path])) for one in self.changed_directories()
        ]
        return directories + [file_diff(one, self.found[one.path]) for one in self.changed_files()]

    def apply(self) -> None:
        """Keep what is to be kept and arm the roll-back, then bring the directories and files about."""
        self._refuse_unknown_owners()
        files, directories = self.changed_files(), self.changed_directories()
        keep = self.module.params["keep"]
        if keep and files:
            KeptFiles(keep["files"], Path(keep["directory"])).keep(Path(keep["link"]))
        rollback = self.module.params["rollback"]
        if rollback and (files or self.unconfirmed):
            commands = [[str(word) for word in argv] for argv in rollback["commands"]]
            arm(self.module, rollback["name"], rollback["after_s"], [one.path for one in files], commands)
        for directory in directories:
            self._apply_directory(directory)
        for one in files:
            self._apply_file(one)

    def _refuse_unknown_owners(self) -> None:
        for path, attributes in [(one.path, one.attributes) for one in self.files] + [
            (one.path, one.attributes) for one in self.directories
        ]:
            if owner_id(attributes.owner) is None:
                raise RefusalError(f"{path}: there is no user {attributes.owner}, so nothing was written")
            if group_id(attributes.group) is None:
                raise RefusalError(f"{path}: there is no group {attributes.group}, so nothing was written")

    def _apply_directory(self, wanted: WantedDirectory) -> None:
        path = Path(wanted.path)
        if not wanted.present:
            path.rmdir()
            return
        if self.found[wanted.path] is None:
            path.mkdir(mode=0o700)
            self.module.set_default_selinux_context(wanted.path, False)
        elif path.is_symlink() or not path.is_dir():
            raise RefusalError(f"{wanted.path} is in the way: it is not a directory")
        os.chown(path, known(owner_id(wanted.attributes.owner)), known(group_id(wanted.attributes.group)))
        path.chmod(wanted.attributes.mode)

    def _apply_file(self, wanted: WantedFile) -> None:
        if wanted.content is None:
            Path(wanted.path).unlink()
            return
        found = self.found[wanted.path]
        if found is not None and found.content == wanted.content:
            # Only what differs is touched: a newer time would have services restarted.
            os.chown(wanted.path, known(owner_id(wanted.attributes.owner)), known(group_id(wanted.attributes.group)))
            Path(wanted.path).chmod(wanted.attributes.mode)
            self._label_as(wanted.path, wanted.path)
            return
        replace_file(
            wanted.path,
            wanted.content,
            owner=known(owner_id(wanted.attributes.owner)),
            group=known(group_id(wanted.attributes.group)),
            mode=wanted.attributes.mode,
            label=lambda candidate: self._label_as(candidate, wanted.path),
        )

    def _label_as(self, candidate: str, path: str) -> None:
        if self.module.selinux_enabled():
            self.module.set_context_if_different(candidate, self.module.selinux_default_context(path), False)


def main() -> None:
    """Compare, check, and write what differs."""
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str"},
                    "owner": {"type": "str", "default": "root"},
                    "group": {"type": "str", "default": "root"},
                    "mode": {"type": "str", "default": "0644"},
                    "state": {"type": "str", "choices": ["present", "absent", "existing"], "default": "present"},
                    "no_diff": {"type": "bool", "default": False},
                },
            },
            "directories": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "owner": {"type": "str", "default": "root"},
                    "group": {"type": "str", "default": "root"},
                    "mode": {"type": "str", "default": "0755"},
                    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
                },
            },
            "validate": {"type": "list", "elements": "list", "default": []},
            "effective": {
                "type": "dict",
                "options": {
                    "command": {"type": "list", "elements": "str", "required": True},
                    "expected": {"type": "dict", "required": True},
                    "sources": {"type": "list", "elements": "str", "default": []},
                    "first_line": {
                        "type": "dict",
                        "options": {
                            "path": {"type": "path", "required": True},
                            "line": {"type": "str", "required": True},
                        },
                    },
                },
            },
            "keep": {
                "type": "dict",
                "options": {
                    "directory": {"type": "path", "required": True},
                    "link": {"type": "path", "required": True},
                    "files": {"type": "list", "elements": "path", "required": True},
                },
            },
            "rollback": {
                "type": "dict",
                "options": {
                    "name": {"type": "str", "required": True},
                    "after_s": {"type": "int", "default": 45},
                    "commands": {"type": "list", "elements": "list", "default": []},
                },
            },
        },
        supports_check_mode=True,
    )
    # What is kept out of the diff must not come back as an argument either: Ansible prints a result's at -vvv.
    module.no_log_values.update(one["content"] for one in module.params["files"] if one["no_diff"] and one["content"])
    try:
        change = Change(module)
        change.try_out()
        change.ask_for_effect()
        result: dict[str, Any] = {
            "changed": bool(change.changed_files() or change.changed_directories() or change.unconfirmed),
            "drift": change.drift(),
            "diff": change.diff(),
        }
        if result["changed"] and not module.check_mode:
            change.apply()
    except (RefusalError, ValueError, OSError) as error:
        module.fail_json(msg=str(error))
    else:
        module.exit_json(not_validated=change.not_validated, **result)


if __name__ == "__main__":
    main()
