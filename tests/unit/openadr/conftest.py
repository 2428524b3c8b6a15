# SPDX-License-Identifier: GPL-3.0-or-later
"""A laboratory VTN with its authority, the services of a gateway, and modules that are run against them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from agent.tests.grid_gateway.conftest import LabVtn, authority, lasting_vtn, new_vtn, stranger, vtn
from agent.tests.grid_gateway.test_grid_service import START_S, Gateway, within

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


@pytest.fixture
def running(vtn: LabVtn, tmp_path: Path) -> Iterator[Gateway]:
    """Run the orchestrator and the grid gateway, registered with the VTN."""
    if os.getuid() != 0:
        pytest.skip("the orchestrator takes bounds from named users only: run as root")
    made = Gateway(tmp_path, vtn)
    try:
        made.start("orchestrator")
        made.start("grid-gateway")
        within(START_S, lambda: made.answers("o.sock"))
        within(START_S, lambda: (made.answers("g.sock") or {}).get("registered"))
        yield made
    finally:
        for service in tuple(made.processes):
            made.end(service)
