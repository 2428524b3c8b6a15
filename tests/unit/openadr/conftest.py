# SPDX-License-Identifier: GPL-3.0-or-later
"""A laboratory VTN with its authority, the services of a gateway, and modules that are run against them."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from agent.tests.grid_gateway.conftest import authority, lasting_vtn, new_vtn, stranger, vtn

__all__ = ["authority", "lasting_vtn", "new_vtn", "stranger", "vtn"]


@dataclass(frozen=True)
class Play:
    """Runs a module as Ansible does, and returns its result."""

    output: pytest.CaptureFixture[str]

    def __call__(self, module: ModuleType, check: bool = False, **options: Any) -> dict[str, Any]:
        given = {**options, "_ansible_check_mode": check, "_ansible_diff": True}
        with patch_module_args(given), pytest.raises(SystemExit):
            module.main()
        result: dict[str, Any] = json.loads(self.output.readouterr().out)
        return result


@pytest.fixture
def play(capsys: pytest.CaptureFixture[str]) -> Play:
    return Play(capsys)


@pytest.fixture
def no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the agent be none that this interpreter could import."""
    monkeypatch.setitem(sys.modules, "derms_agent.device_state.calls", None)
