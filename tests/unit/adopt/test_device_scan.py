# SPDX-License-Identifier: GPL-3.0-or-later
"""device_scan: what a running depot becomes, and what is said of buses that could not be scanned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible.template import trust_as_template
from ansible_collections.derms.edge.plugins.filter.adopted_depot import adopted_depot, plain
from ansible_collections.derms.edge.plugins.modules import device_scan
from derms_agent.depot import examine

if TYPE_CHECKING:
    from tests.unit.adopt.conftest import Play, RunningDepot


def test_a_running_depot_becomes_a_depot_file(play: Play, running_depot: RunningDepot) -> None:
    result = play(device_scan, depot=running_depot.bare_document, unit_ids=["1..2", "255"])
    assert [(one["name"], one["profile"], one["outcome"]) for one in result["units"]] == [
        ("front-255", "keba_p30", "found"),
        ("yard-1", "heidelberg_energy_control", "found"),
        ("yard-2", "heidelberg_energy_control", "found"),
    ]
    assert [(bus["name"], bus["status"], bus["units"]) for bus in result["buses"]] == [
        ("front", "ok", 1),
        ("yard", "ok", 2),
    ]
    assert (result["changed"], result["notes"], result["not_verified"]) == (False, [], [])
    depot = examine(result["gathered"], "gathered").depot
    assert depot is not None
    assert depot.devices["yard-2"].settings["failsafe_current"] == 6
    made = adopted_depot(running_depot.bare_document, result["units"])
    assert made == {"text": result["gathered"], "lacks": []}


def test_a_bus_without_units_is_a_note_and_one_that_is_gone_a_failure(play: Play, running_depot: RunningDepot) -> None:
    document = running_depot.bare_document
    result = play(device_scan, depot=document, unit_ids=["9"])
    assert result["notes"] == ["front: none of the units 9 answers", "yard: none of the units 9 answers"]
    document["buses"]["front"]["port"] = 1
    result = play(device_scan, depot=document, unit_ids=["1"])
    assert result["msg"].startswith("1 of 2 buses: front unreachable: ")
    assert [one["name"] for one in result["units"]] == ["yard-1"]
    result = play(device_scan, depot=document, unit_ids=["1"], max_failures="100%")
    assert [one.split(":")[0] for one in result["not_verified"]] == ["front unreachable"]


@pytest.mark.usefixtures("no_agent")
def test_on_a_bare_gateway_buses_are_unknown(play: Play, running_depot: RunningDepot, tmp_path: Path) -> None:
    options: dict[str, Any] = {"depot": running_depot.bare_document, "agent_directory": str(tmp_path)}
    result = play(device_scan, check=True, **options)
    assert [(bus["name"], bus["status"]) for bus in result["buses"]] == [("front", "unknown"), ("yard", "unknown")]
    assert (result["units"], result["gathered"]) == ([], "")
    assert play(device_scan, **options)["failed"]


def test_what_is_asked_for_wrongly_is_refused(play: Play, running_depot: RunningDepot) -> None:
    document = running_depot.bare_document
    assert play(device_scan, depot=document, unit_ids=["1-9"])["msg"].startswith("unit_ids: expected a range such as")
    assert play(device_scan, depot=document, circuit="c")["msg"] == "circuit: found c, expected one of main"


def test_what_ansible_adds_to_values_is_not_in_the_file(running_depot: RunningDepot) -> None:
    text = trust_as_template("a")
    assert type(plain({text: [text, 1, 1.5, True, None]})["a"][0]) is str
    document = {**running_depot.bare_document, "vtn": {"url": "https://v.example", "ven_name": text}}
    assert "ven_name: a}" in adopted_depot(document, [])["text"]
