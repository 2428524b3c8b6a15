# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.derms.edge.plugins.plugin_utils.wheelhouse import WheelhouseError, opened

FILES = {"agent_conf": "agent.conf", "limits_conf": "limits.conf", "depot": "depot.yml"}
TIMEOUT_S = 120


class ActionModule(ActionBase):  # type: ignore[misc] # Ansible's classes carry no types
    """Judge the agent's configuration on the control node."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what the files say; fail with a line for each mistake in them."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, options = self.validate_argument_spec(
            {
                "source": {"type": "path", "required": True},
                **{name: {"type": "str", "required": True} for name in FILES},
            }
        )
        try:
            with opened(Path(options["source"])) as source:
                result.update(changed=False, summary=checked(source, options))
        except WheelhouseError as error:
            raise AnsibleActionFail(str(error)) from error
        return result


def checked(source: Path, texts: Mapping[str, str]) -> str:
    """Return what check-config says of files with these texts.

    :raises AnsibleActionFail: they have mistakes
    """
    with TemporaryDirectory() as directory:
        words = []
        for name, file in FILES.items():
            path = Path(directory, file)
            path.touch(0o600)
            path.write_text(texts[name], encoding="utf-8")
            words += [f"--{name.replace('_', '-')}", str(path)]
        done = subprocess.run(
            [sys.executable, "-m", "derms_agent.cli", "check-config", *words],
            env={**os.environ, "PYTHONPATH": str(source.absolute() / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        said = f"{done.stderr}{done.stdout}".replace(f"{directory}/", "/etc/derms/").strip()
    if done.returncode:
        raise AnsibleActionFail(f"the agent would refuse its configuration:\n{said}")
    return done.stdout.strip()
