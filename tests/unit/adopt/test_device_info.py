# SPDX-License-Identifier: GPL-3.0-or-later
"""device_info: what was read as it is returned, and what becomes of devices that could not be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from ansible_collections.derms.edge.plugins.modules import der_settings, device_info, device_scan
from derms_agent import device_state

if TYPE_CHECKING:
    from types import ModuleType

    from tests.unit.adopt.conftest import Play, RunningDepot


@pytest.mark.parametrize("check", [False, True])
def test_all_devices_are_read_and_can_be_pasted(play: Play, running_depot: RunningDepot, check: bool) -> None:
    result = play(device_info, check, depot=running_depot.document)
    assert [device["status"] for device in result["devices"]] == ["ok"] * 3
    assert (result["changed"], result["not_verified"], result["notes"]) == (False, [], [])
    front = result["devices"][0]
    assert front["settings"] == {"failsafe_current": 8.0, "failsafe_timeout": 45}
    assert {"state", "active_power", "current_limit"} <= front["state"].keys()
    pasted = yaml.safe_load(result["gathered"])["devices"]
    assert pasted == {name: declared for one in result["devices"] for name, declared in one["gathered"].items()}
    assert pasted["front"]["serial_number"] == str(front["identity"]["serial_number"])


def test_only_what_is_named_is_read(play: Play, running_depot: RunningDepot) -> None:
    result = play(device_info, depot=running_depot.document, only=["yard-*"])
    assert [device["name"] for device in result["devices"]] == ["yard-1", "yard-2"]
    assert result["scope"] == "devices yard-*"
    result = play(device_info, depot=running_depot.document, only=["yrad"])
    assert result["msg"] == "only: found yrad, expected a device of depot small, or a pattern of some"


def test_another_device_fails_and_other_firmware_is_a_note(play: Play, running_depot: RunningDepot) -> None:
    document = running_depot.document
    document["devices"]["front"] |= {"serial_number": "17", "firmware": "3.*"}
    result = play(device_info, depot=document)
    assert result["failed"]
    assert result["msg"].startswith("1 of 3 devices: front refused: found serial number ")
    assert "expected 17: another device answers here" in result["msg"]
    assert result["notes"] == ["front: found firmware 1, expected 3.*"]
    # All were tried, and the results are there.
    assert [device["status"] for device in result["devices"]] == ["refused", "ok", "ok"]


def test_a_device_that_does_not_answer_counts_as_failed(play: Play, running_depot: RunningDepot) -> None:
    document = running_depot.document
    document["devices"]["yard-3"] = {**document["devices"]["yard-2"], "unit_id": 3}
    result = play(device_info, depot=document)
    assert result["msg"].startswith("1 of 4 devices: yard-3 unreachable: unit 3,")
    excused = play(device_info, depot=document, max_failures="25%")
    assert "failed" not in excused
    assert [reason.split(":")[0] for reason in excused["not_verified"]] == ["yard-3 unreachable"]


@pytest.mark.usefixtures("no_agent")
def test_a_bare_gateway_knows_nothing_and_a_dry_run_does_not_fail_for_it(
    play: Play, running_depot: RunningDepot, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"depot": running_depot.document, "agent_directory": str(tmp_path)}
    result = play(device_info, check=True, **options)
    assert [(one["name"], one["status"]) for one in result["devices"]] == [
        ("front", "unknown"),
        ("yard-1", "unknown"),
        ("yard-2", "unknown"),
    ]
    why = f"the agent is not on this gateway yet: there is no {tmp_path}/current/bin/python"
    assert result["not_verified"] == [f"front, yard-1, yard-2 unknown: {why}"]
    assert result["gathered"] == ""
    assert play(device_info, **options)["failed"]


def test_an_agent_of_another_interface_is_unknown(
    play: Play, running_depot: RunningDepot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_state, "INTERFACE", 0)
    result = play(device_info, check=True, depot=running_depot.document)
    assert {device["detail"] for device in result["devices"]} == {
        "the agent's interface is version 0, the collection's 2"
    }


def test_a_depot_that_is_wrong_is_refused(play: Play, running_depot: RunningDepot) -> None:
    document = running_depot.document
    document["devices"]["front"]["profile"] = "kbea"
    assert play(device_info, depot=document)["msg"].startswith("depot: devices.front.profile: found the profile kbea;")
    assert play(device_info, depot=running_depot.document, gateway="g")["msg"] == (
        "gateway: found g, expected one of gateway-1"
    )


@pytest.mark.parametrize(("module", "options"), [(device_info, {}), (device_scan, {}), (der_settings, {"devices": []})])
def test_the_depot_is_not_repeated_by_a_refusal(
    play: Play, running_depot: RunningDepot, module: ModuleType, options: dict[str, Any]
) -> None:
    """It may hold secrets, as any result that failed is shown."""
    document = {**running_depot.document, "site": {"limit_kva": "S3CRET"}}
    refused = play(module, depot=document, **options)
    assert refused["failed"]
    assert "depot" not in refused.get("invocation", {"module_args": {}})["module_args"]
