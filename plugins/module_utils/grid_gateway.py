# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What modules that ask the grid gateway share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule

OPTIONS = {
    "socket": {"type": "path", "default": "/run/derms/grid-gateway/ven.sock"},
    "agent_directory": {"type": "path", "default": "/opt/derms"},
}


def end_unknown(module: AnsibleModule, result: Mapping[str, Any], why: str) -> NoReturn:
    """End the module where the grid gateway could not be asked: a failure, but not of a dry run."""
    words = f"grid gateway unknown: {why}"
    found = {**result, "not_verified": [words]}
    if module.check_mode:
        module.exit_json(**found)
    module.fail_json(msg=words, **found)
    raise AssertionError("Ansible ends a module that failed")
