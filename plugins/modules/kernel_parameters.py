#!/usr/bin/python
# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: kernel_parameters
short_description: Kernel parameters, as they run and as they come back at boot
version_added: 0.1.0
author: DERMS Edge developers (@derms-edge)
description:
  - Holds a list of kernel parameters, in the running kernel and in a file of sysctl.d.
  - The running kernel is read and written through C(/proc/sys), and every write is read back.
  - Another file that would win at boot is found. Its line becomes a comment where the file is under C(/etc).
  - What a container cannot write belongs to its host's kernel. It is reported as such, and is no drift. On a machine
    with a kernel of its own it is a failure.
options:
  parameters:
    description: The parameters.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description:
          - The name, such as C(net.ipv4.tcp_syncookies). Where a part contains a dot, use slashes between the parts.
          - C(*) stands for every entry there is, such as every network interface.
        type: str
        required: true
      value:
        description: The value. White space between several numbers does not matter.
        type: str
        required: true
      reason:
        description: Why; written into the file as a comment.
        type: str
      source:
        description: Who asks for it; written into the file as a comment.
        type: str
      when_missing:
        description: What to do where the kernel does not know the parameter.
        type: str
        choices: [fail, skip]
        default: fail
  path:
    description: The file of sysctl.d.
    type: path
    default: /etc/sysctl.d/90-derms.conf
attributes:
  check_mode:
    description: Predicts the change.
    support: full
  diff_mode:
    description: Returns one entry for the running kernel and one for each file.
    support: full
  platform:
    description: Where it works.
    support: full
    platforms: linux
"""

EXAMPLES = r"""
- name: Large socket buffers
  derms.edge.kernel_parameters:
    parameters:
      - name: net.core.rmem_max
        value: 26214400
        reason: Bursts of telemetry at 60 Hz fit into a socket's buffer
"""

RETURN = r"""
drift:
  description: Every difference between what is declared and what was found.
  type: list
  elements: dict
  returned: always
  sample:
    - what: net.ipv4.tcp_syncookies (running)
      is: '0'
      should_be: '1'
held_by_host:
  description: Parameters that this container cannot write, and that its host holds at another value.
  type: list
  elements: dict
  returned: always
  sample:
    - name: net.core.rmem_max
      is: '212992'
      should_be: '26214400'
notes:
  description: What was found and is reported, but is not drift.
  type: list
  elements: str
  returned: always
  sample:
    - "the host's kernel holds what this container cannot write: net.core.rmem_max is 212992, should be 26214400"
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.derms.edge.plugins.module_utils.boot_parameters import (
    DIRECTORIES,
    Assignment,
    comparable,
    expanded_names,
    last_words,
    overriding,
    parameter_name,
    parameter_path,
    reading_order,
    rendered,
    without_lines,
)
from ansible_collections.derms.edge.plugins.module_utils.text_files import (
    Attributes,
    Drift,
    WantedFile,
    drift,
    file_diff,
    file_drift,
    group_id,
    look_at,
    owner_id,
    replace_file,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

PROC_SYS = Path("/proc/sys")
# systemd, podman and docker each leave one of these.
CONTAINER_SIGNS = ("/run/systemd/container", "/run/.containerenv", "/.dockerenv")
HEADING = "Held by derms.edge.kernel_parameters; changes made here by hand are drift."
NOT_SET = "not set"
NOT_KNOWN = "not known"
ROOTS_OWN = Attributes("root", "root", 0o644)


class RefusalError(Exception):
    """Why the declared state cannot be reached."""


@dataclass(frozen=True)
class Running:
    """One parameter of the running kernel; value None where the kernel does not show it."""

    name: str
    wanted: str
    value: str | None
    writable: bool
    skipped_when_missing: bool = False

    def deviates(self) -> bool:
        """Tell whether the kernel holds another value, or none."""
        return self.value != self.wanted


@dataclass
class Plan:
    """What differs, and what is done about it."""

    drift: list[Drift] = field(default_factory=list)
    held_by_host: list[dict[str, str]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    impossible: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """Return what is reported but is not drift: a line for all that the host holds, one for what is not there."""
        lines = []
        if self.held_by_host:
            values = "; ".join(
                f"{one['name']} is {one['is']}, should be {one['should_be']}" for one in self.held_by_host
            )
            lines.append(f"the host's kernel holds what this container cannot write: {values}")
        if self.unknown:
            lines.append(f"this kernel does not know {', '.join(self.unknown)}")
        return lines


def running_plan(parameters: Sequence[Running], *, container: bool) -> Plan:
    """Return what is to be done about the running kernel."""
    plan = Plan()
    for one in parameters:
        if not one.deviates():
            continue
        if one.value is not None and one.writable:
            plan.drift.append(drift(f"{one.name} (running)", one.value, one.wanted))
        elif one.value is None and one.skipped_when_missing:
            plan.unknown.append(one.name)
        elif container:
            has = one.value if one.value is not None else NOT_KNOWN
            plan.held_by_host.append({"name": one.name, "is": has, "should_be": one.wanted})
        elif one.value is not None:
            plan.impossible.append(f"{one.name} is {one.value}, should be {one.wanted}, and cannot be written")
        else:
            plan.impossible.append(f"{one.name} is not known to this kernel")
    return plan


def boot_drift(wanted: Mapping[str, str], own_path: str, texts: Mapping[str, str]) -> list[Drift]:
    """Return what would come back differently at boot, and what our file sets beyond what is declared."""
    now = last_words(texts)
    differences = []
    for name, value in wanted.items():
        last = now.get(name)
        if last is None:
            differences.append(drift(f"{name} (boot)", NOT_SET, value))
        elif last.value != value:
            place = "" if last.path == own_path else f" ({last.path}:{last.number})"
            differences.append(drift(f"{name} (boot)", f"{last.value}{place}", value))
        elif "*" in name:
            differences += [
                drift(f"{other.name} (boot)", f"{other.value} ({other.path}:{other.number})", value)
                for other in overriding(name, value, own_path, texts)
            ]
    return differences + [
        drift(f"{name} (boot)", one.value, NOT_SET)
        for name, one in now.items()
        if one.path == own_path and name not in wanted
    ]


def overrides(wanted: Mapping[str, str], own_path: str, texts: Mapping[str, str]) -> list[Assignment]:
    """Return each line of another file that wins at boot with another value, texts holding our file as it is to be."""
    found = {(one.path, one.number): one for name in wanted for one in overriding(name, wanted[name], own_path, texts)}
    return list(found.values())


def is_container() -> bool:
    """Tell whether the kernel is somebody else's."""
    return any(Path(sign).exists() for sign in CONTAINER_SIGNS)


def read_running(declared: Sequence[Mapping[str, Any]]) -> list[Running]:
    """Return every declared parameter as the kernel holds it, patterns by each entry they match."""
    found = []
    for one in declared:
        wanted, missing_is_well = comparable(one["value"]), one["when_missing"] == "skip"
        path = parameter_path(one["name"])
        matches = sorted(PROC_SYS.glob(path)) if "*" in path else [PROC_SYS / path]
        for place in matches or [PROC_SYS / path]:
            name = parameter_name(str(place.relative_to(PROC_SYS)))
            value = comparable(place.read_text()) if place.exists() else None
            # The permission bits bind root as well here, so this is the answer that a write would get.
            found.append(Running(name, wanted, value, os.access(place, os.W_OK), missing_is_well))
    return found


def boot_texts(own_path: str) -> dict[str, str]:
    """Return the files that are read at boot, ours included though it may be missing, by path in their order."""
    paths = [str(path) for directory in DIRECTORIES for path in Path(directory).glob("*.conf")]
    texts = {}
    for path in reading_order({*paths, own_path}):
        place = Path(path)
        texts[path] = place.read_text(errors="surrogateescape") if place.is_file() else ""
    return texts


def refuse_contradictions(declared: Sequence[Mapping[str, Any]], own_path: str) -> None:
    """Refuse a parameter declared twice, a name that leaves /proc/sys, and a file that is not read at boot."""
    names = [name for one in declared for name in expanded_names(one["name"])]
    for name in names:
        if names.count(name) > 1:
            raise RefusalError(f"{name}: declared more than once")
        if {"", ".", ".."} & set(parameter_path(name).split("/")):
            raise RefusalError(f"{name}: not a parameter's name")
    if str(Path(own_path).parent) not in DIRECTORIES or not own_path.endswith(".conf"):
        raise RefusalError(f"{own_path}: systemd reads *.conf of {', '.join(DIRECTORIES)}")


class Kernel:
    """The parameters of this kernel and the files that bring them back at boot."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.declared: list[dict[str, Any]] = module.params["parameters"]
        self.path: str = module.params["path"]
        refuse_contradictions(self.declared, self.path)
        self.wanted = {name: comparable(one["value"]) for one in self.declared for name in expanded_names(one["name"])}
        self.text = rendered(self.declared, HEADING)
        self.texts = boot_texts(self.path)
        self.running = read_running(self.declared)

    def plan(self) -> Plan:
        """Return what differs, in the running kernel and at boot."""
        plan = running_plan(self.running, container=is_container())
        boot = boot_drift(self.wanted, self.path, self.texts)
        own = file_drift(WantedFile(self.path, self.text.encode(), ROOTS_OWN), look_at(self.path))
        # Lines of our file are named by their parameter; by themselves only where none of those differs.
        boot += [one for one in own if not boot or one["what"] != self.path]
        plan.drift += boot
        for line in self.overrides():
            if not line.path.startswith("/etc/"):
                plan.impossible.append(
                    f"{line.path}:{line.number} sets {line.name} to {line.value} at boot, after {self.path}; "
                    "it belongs to a package, so give our file a later name"
                )
        return plan

    def overrides(self) -> list[Assignment]:
        """Return the lines of other files that would still win once our file is as declared."""
        return overrides(self.wanted, self.path, {**self.texts, self.path: self.text})

    def files(self) -> list[WantedFile]:
        """Return every file as it is to be."""
        files = [WantedFile(self.path, self.text.encode(), ROOTS_OWN)]
        lines = self.overrides()
        for path in sorted({line.path for line in lines if line.path.startswith("/etc/")}):
            numbers = [line.number for line in lines if line.path == path]
            text = without_lines(self.texts[path], numbers, f"overrides {self.path}, so derms.edge switched it off")
            # 99-sysctl.conf is a link to sysctl.conf: the file is written, the link stays.
            place = str(Path(path).resolve())
            found = look_at(place)
            files.append(
                WantedFile(place, text.encode(errors="surrogateescape"), found.attributes if found else ROOTS_OWN)
            )
        return [one for one in files if file_drift(one, look_at(one.path))]

    def diff(self, plan: Plan) -> list[dict[str, str]]:
        """Return before and after of the running kernel and of each file."""
        running = [one for one in plan.drift if one["what"].endswith("(running)")]
        shown = {
            "before_header": "running kernel",
            "after_header": "running kernel",
            "before": "".join(f"{one['what']} = {one['is']}\n" for one in running),
            "after": "".join(f"{one['what']} = {one['should_be']}\n" for one in running),
        }
        return [shown] * bool(running) + [file_diff(one, look_at(one.path)) for one in self.files()]

    def write(self) -> None:
        """Write the files, then the running kernel, and read it back."""
        for one in self.files():
            replace_file(
                one.path,
                one.content or b"",
                owner=owner_id(one.attributes.owner) or 0,
                group=group_id(one.attributes.group) or 0,
                mode=one.attributes.mode,
                label=self._label,
            )
        # Some parameters reset others (ip_forward does), so what a first pass leaves is written once more.
        for _pass in range(2):
            for parameter in read_running(self.declared):
                if parameter.deviates() and parameter.value is not None and parameter.writable:
                    self._write_running(parameter)
        left = running_plan(read_running(self.declared), container=is_container()).drift
        if left:
            words = "; ".join(f"{one['what']} is {one['is']}, should be {one['should_be']}" for one in left)
            raise RefusalError(f"the kernel took the values and holds others: {words}")

    def _write_running(self, parameter: Running) -> None:
        try:
            (PROC_SYS / parameter_path(parameter.name)).write_text(parameter.wanted + "\n")
        except OSError as error:
            raise RefusalError(f"{parameter.name}: the kernel refuses {parameter.wanted}: {error.strerror}") from error

    def _label(self, candidate: str) -> None:
        if self.module.selinux_enabled():
            self.module.set_context_if_different(candidate, self.module.selinux_default_context(self.path), False)


def main() -> None:
    """Compare the kernel and the files with what is declared, and write what differs."""
    module = AnsibleModule(
        argument_spec={
            "parameters": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "value": {"type": "str", "required": True},
                    "reason": {"type": "str"},
                    "source": {"type": "str"},
                    "when_missing": {"type": "str", "choices": ["fail", "skip"], "default": "fail"},
                },
            },
            "path": {"type": "path", "default": "/etc/sysctl.d/90-derms.conf"},
        },
        supports_check_mode=True,
    )
    try:
        kernel = Kernel(module)
        plan = kernel.plan()
        if plan.impossible:
            raise RefusalError(f"nothing was written: {'; '.join(plan.impossible)}")
        diff = kernel.diff(plan)
        if plan.drift and not module.check_mode:
            kernel.write()
    except (RefusalError, OSError) as error:
        module.fail_json(msg=str(error))
    else:
        module.exit_json(
            changed=bool(plan.drift), drift=plan.drift, diff=diff, held_by_host=plan.held_by_host, notes=plan.notes()
        )


if __name__ == "__main__":
    main()
