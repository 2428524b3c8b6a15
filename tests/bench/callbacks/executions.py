# SPDX-License-Identifier: GPL-3.0-or-later
"""Counts what a run executes on hosts."""

from __future__ import annotations

from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: executions
type: aggregate
short_description: Print how many modules a run executed
description: Each item of a loop counts; what runs on the controller alone (includes, facts that are set) does not.
"""

ON_THE_CONTROLLER = {
    "add_host", "assert", "debug", "fail", "group_by", "import_role", "import_tasks", "include_role", "include_tasks",
    "include_vars", "meta", "set_fact", "validate_argument_spec", "preflight", "certificates_inspect",
}  # fmt: skip


class CallbackModule(CallbackBase):  # type: ignore[misc] # Ansible's code carries no types
    """Counts results of modules."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "executions"

    def __init__(self) -> None:
        super().__init__()
        self._count = 0

    def _add(self, result: Any) -> None:
        if result.task.action.rpartition(".")[2] in ON_THE_CONTROLLER or "results" in result.result:
            return
        self._count += 1

    v2_runner_on_ok = _add
    v2_runner_on_failed = _add
    v2_runner_item_on_ok = _add
    v2_runner_item_on_failed = _add

    def v2_playbook_on_stats(self, stats: Any) -> None:  # noqa: ARG002 (Ansible's signature)
        """Print the count."""
        self._display.display(f"module executions: {self._count}")
