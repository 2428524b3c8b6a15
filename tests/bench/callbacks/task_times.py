# SPDX-License-Identifier: GPL-3.0-or-later
"""Says how long each task took."""

from __future__ import annotations

import time
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: task_times
type: aggregate
short_description: Print the wall time of each task of a run, from its start to its last result
description: What a task takes on the controller is in it, its templates above all.
"""


class CallbackModule(CallbackBase):  # type: ignore[misc] # Ansible's code carries no types
    """Notes when tasks start and when their results come."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "task_times"

    def __init__(self) -> None:
        super().__init__()
        self._started_s: dict[str, float] = {}
        self._taken_s: dict[str, float] = {}

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:  # noqa: ARG002 (Ansible's signature)
        """Note the time."""
        self._started_s[task.name] = time.monotonic()

    def _came(self, result: Any, **_: Any) -> None:
        self._taken_s[result.task.name] = time.monotonic() - self._started_s[result.task.name]

    v2_runner_on_ok = _came
    v2_runner_on_failed = _came

    def v2_playbook_on_stats(self, stats: Any) -> None:  # noqa: ARG002 (Ansible's signature)
        """Print the times."""
        for name, taken_s in self._taken_s.items():
            self._display.display(f"task took {taken_s:.3f} s: {name}")
