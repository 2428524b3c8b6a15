# SPDX-License-Identifier: Apache-2.0
"""What a module asks, as it asks it: a process of the release, one request in, one answer out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import derms_agent
from derms_agent.device_state import INTERFACE
from derms_agent.device_state.__main__ import NICENESS
from derms_agent.device_state.calls import CALLS

AS_RELEASED = f"""\
import runpy, sys
sys.path.append({str(Path(derms_agent.__file__).parents[1])!r})
runpy.run_module("derms_agent.device_state", run_name="__main__")
"""
"""`-m derms_agent.device_state`, wherever these tests have the package from: -I heeds no PYTHONPATH."""
GIVING_WAY = """\
import os
from derms_agent.device_state.__main__ import give_way
give_way()
print(os.nice(0), os.sched_getscheduler(0) == os.SCHED_BATCH)
"""


def asked(
    directory: Path, document: Mapping[str, Any], *, interface: int = INTERFACE, gateway: str = "gateway-1"
) -> dict[str, Any]:
    """Return the answer to a dry run of a depot, at whose addresses nobody is."""
    paths = {"socket": str(directory / "socket"), "state_directory": str(directory)}
    given = {"document": document, "gateway": gateway, "check": True, "deadline_s": 0.0, **paths}
    request = {"interface": interface, "call": "settings", "arguments": given}
    command = [sys.executable, "-I", "-c", AS_RELEASED]
    done = subprocess.run(command, input=json.dumps(request), cwd=directory, check=True, capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_a_request_is_answered(tmp_path: Path, document: Mapping[str, Any]) -> None:
    # Whatever lies where the module runs is not imported.
    (tmp_path / "json.py").write_text("raise SystemExit('not this one')", encoding="utf-8")
    answer = asked(tmp_path, document)
    assert answer["interface"] == INTERFACE
    assert {(one["status"], one["detail"]) for one in answer["result"]} == {
        ("unknown", "not come to before the deadline")
    }


def test_what_cannot_be_done_is_said(tmp_path: Path, document: Mapping[str, Any]) -> None:
    answer = asked(tmp_path, document, gateway="gateway-9")
    assert answer == {
        "interface": INTERFACE,
        "unusable": "gateway: found gateway-9, expected one of gateway-1, gateway-2",
    }


def test_a_request_by_another_interface_is_not_carried_out(tmp_path: Path) -> None:
    assert asked(tmp_path, {}, interface=INTERFACE + 1) == {"interface": INTERFACE}


@pytest.mark.parametrize("call", CALLS)
def test_every_call_is_there(call: str) -> None:
    module, name = CALLS[call]
    assert callable(getattr(__import__(module, fromlist=[name]), name))


def test_the_agent_has_the_processor_first() -> None:
    done = subprocess.run([sys.executable, "-c", GIVING_WAY], check=True, capture_output=True, text=True)
    niceness, batch = done.stdout.split()
    assert int(niceness) >= NICENESS
    assert batch == "True"
