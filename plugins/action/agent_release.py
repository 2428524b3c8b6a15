# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.derms.edge.plugins.plugin_utils.wheelhouse import (
    TARGETS,
    Target,
    Wheel,
    WheelhouseError,
    batches,
    built_wheel,
    cached_path,
    fetch,
    opened,
    packed,
    parsed_lock,
    release_version,
    require_programs,
)

MODULE = "derms.edge.agent_release"
# On a cellular link of 1 Mbit/s a minute's worth: no more than that is sent again after the line was cut.
PARCEL_BYTES = 8 << 20


class ActionModule(ActionBase):  # type: ignore[misc] # Ansible's classes carry no types
    """Make a release's wheels on the control node, and send the gateway those that it lacks."""

    # Only some states do, and those make their own directory: one needs no gateway at all.
    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = True

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask the gateway what it has; outside check mode send what is missing and have the release built."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = dict(task_vars or {})
        arguments = dict(self._task.args)
        try:
            if arguments.get("state") in {"installed", "obtainable"}:
                if not arguments.get("source"):
                    raise AnsibleActionFail(f"state {arguments['state']} needs source")
                require_programs()
                with opened(Path(str(arguments["source"])).expanduser()) as source:
                    if arguments["state"] == "installed":
                        result.update(self._installed(source, arguments, variables))
            else:
                result.update(self._execute_module(MODULE, arguments, task_vars=variables))
        except (WheelhouseError, subprocess.TimeoutExpired) as error:
            raise AnsibleActionFail(str(error)) from error
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)  # noqa: SLF001 (as every action does)
        return result

    def _installed(self, source: Path, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        if not arguments.get("cache"):
            raise AnsibleActionFail("state installed needs cache")
        cache = Path(str(arguments["cache"])).expanduser()
        locks = {target: lock_text(source, target) for target in TARGETS}
        arguments["releases"] = [
            {
                "python": target.python,
                "machine": target.machine,
                "version": release_version(source, lock, target),
            }
            for target, lock in locks.items()
        ]
        first: dict[str, Any] = self._execute_module(MODULE, arguments, task_vars=variables)
        if first.get("failed") or self._task.check_mode or not first["to_build"]:
            return first
        target = Target(first["python"], first["machine"])
        locked = parsed_lock(locks[target], target.lock_name)
        fetch(locked, target, cache)
        own, own_path = built_wheel(source, first["version"], cache)
        wheels = [(own, own_path), *((wheel, cached_path(cache, wheel)) for wheel in locked)]
        self._send(
            [(wheel, path) for wheel, path in wheels if first["wheels"].get(wheel.file) != wheel.sha256], variables
        )
        arguments["requirements"] = "".join(f"{wheel.lock_line}\n" for wheel, _path in wheels)
        second: dict[str, Any] = self._execute_module(MODULE, arguments, task_vars=variables)
        second["sent"] = [wheel.file for wheel, _path in wheels if first["wheels"].get(wheel.file) != wheel.sha256]
        return second

    def _send(self, lacking: list[tuple[Wheel, Path]], variables: dict[str, Any]) -> None:
        """Send wheels, and have each parcel kept before the next is sent.

        A parcel is one file, for each one takes the link's latency several times.
        """
        shell = self._connection._shell  # noqa: SLF001 (as every action does)
        for parcel in batches(lacking, PARCEL_BYTES):
            directory = self._make_tmp_path()
            with packed(parcel) as archive:
                sent = self._transfer_file(str(archive), shell.join_path(directory, archive.name))
            self._fixup_perms2([directory, sent])
            kept = self._execute_module(
                MODULE,
                {"state": "stored", "upload": sent, "directory": self._task.args.get("directory", "/opt/derms")},
                task_vars=variables,
            )
            self._remove_tmp_path(directory, force=True)
            if kept.get("failed"):
                raise AnsibleActionFail(f"the gateway could not keep its wheels: {kept.get('msg')}")


def lock_text(source: Path, target: Target) -> str:
    """Return a target's lock.

    :raises WheelhouseError: it is not there
    """
    path = source / "locks" / target.lock_name
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise WheelhouseError(f"{path}: found no lock, expected one as `make lock` writes it: {error}") from error
