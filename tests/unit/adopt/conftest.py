# SPDX-License-Identifier: GPL-3.0-or-later
"""A running depot: the twin of a small depot file on loopback, and modules that are run against it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from derms_agent.depot import load
from derms_agent.depot.plain import depot_document

TWIN = Path(sys.executable).parent / "derms-twin"
DEPOT = """\
plugin: derms.edge.depot
depot: small
site: {{limit_kva: 60}}
gateways: {{gateway-1: {{}}}}
circuits: {{main: {{voltage_v: 400, rating_a: 100}}}}
buses:
  front: {{gateway: gateway-1, transport: tcp, host: 127.0.0.1, port: {}, timeout_s: 0.3}}
  yard: {{gateway: gateway-1, transport: tcp, host: 127.0.0.1, port: {}, timeout_s: 0.3}}
"""
DEVICES = """\
devices:
  front:
    bus: front
    unit_id: 255
    profile: keba_p30
    circuit: main
    settings: {failsafe_current: 8, failsafe_timeout: 45}
    evses: {rating_a: 16}
  yard-[1:2]:
    bus: yard
    unit_id: 1..2
    profile: heidelberg_energy_control
    circuit: main
    settings: {failsafe_current: 6, failsafe_timeout: 30}
    evses: {rating_a: 16}
"""


@dataclass(frozen=True)
class RunningDepot:
    """A depot that runs: its file, the same without devices, and the document of each."""

    file: Path
    bare_file: Path

    @property
    def document(self) -> dict[str, Any]:
        return depot_document(load(self.file))

    @property
    def bare_document(self) -> dict[str, Any]:
        return depot_document(load(self.bare_file))


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


@pytest.fixture(scope="session")
def running_depot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDepot]:
    directory = tmp_path_factory.mktemp("running")
    depot = RunningDepot(directory / "depot.yml", directory / "bare.yml")
    bare = DEPOT.format(*free_ports())
    depot.bare_file.write_text(bare)
    depot.file.write_text(bare + DEVICES)
    with subprocess.Popen([TWIN, depot.file], stdout=subprocess.PIPE, text=True) as twin:
        assert twin.stdout is not None
        try:
            assert any(line.startswith("ready") for line in twin.stdout)
            yield depot
        finally:
            twin.terminate()


@dataclass(frozen=True)
class Play:
    """Runs a module as on a gateway where the agent is not running."""

    directory: Path
    output: pytest.CaptureFixture[str]

    def __call__(self, module: ModuleType, check: bool = False, **options: Any) -> dict[str, Any]:
        given = {
            "gateway": "gateway-1",
            "socket": str(self.directory / "none.sock"),
            "state_directory": str(self.directory),
            "_ansible_check_mode": check,
            **options,
        }
        with patch_module_args(given), pytest.raises(SystemExit):
            module.main()
        result: dict[str, Any] = json.loads(self.output.readouterr().out)
        return result


@pytest.fixture
def play(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Play:
    return Play(tmp_path, capsys)


@pytest.fixture
def no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the agent be none that this interpreter could import."""
    monkeypatch.setitem(sys.modules, "derms_agent.device_state.calls", None)
