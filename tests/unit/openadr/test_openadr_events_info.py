# SPDX-License-Identifier: GPL-3.0-or-later
"""openadr_events_info against the services of a gateway as processes, and openleadr's VTN."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ansible_collections.derms.edge.plugins.modules import openadr_events_info

from agent.tests.grid_gateway.test_grid_service import Gateway, within

if TYPE_CHECKING:
    from tests.unit.openadr.conftest import Play


def test_events_that_are_on_and_to_come(play: Play, running: Gateway) -> None:
    ven_id = running.ask("g.sock", "status")["ven_id"]
    now = int(time.time())
    told = {"ven_id": ven_id, "length_s": 600}
    running.vtn.do("add", values=[1], event_id="0001", start=now - 60, **told)
    power = {"name": "LOAD_DISPATCH", "kind": "setpoint", "unit": True}
    running.vtn.do("add", values=[40, 30], event_id="later", start=now + 7200, **power, **told)
    running.vtn.do("add", values=[1], event_id="over", start=now - 7200, **told)
    running.vtn.do("add", values=[3], event_id="drill", start=now + 9000, test=True, **told)
    # Known before the orchestrator has the bounds: of the one that is on, and of the one to come that is no test.
    within(20, lambda: sum(bool(one["bounds"]) for one in running.ask("g.sock", "event.list")) == 2)
    assert len(running.ask("g.sock", "event.list")) == 4
    polls = running.vtn.seen("polls")

    result = play(openadr_events_info, socket=str(running.directory / "g.sock"))

    assert (result["changed"], result["notes"], result["not_verified"]) == (False, [], [])
    assert [(one["id"], one["state"]) for one in result["events"]] == [
        ("0001", "active"),
        ("later", "pending"),
        ("drill", "pending"),
    ]
    active, later, drill = result["events"]
    assert active["limits"] == [{"target": "site", "high_w": 50_000.0, "start": active["start"], "end": active["end"]}]
    assert (active["opt"], active["why"], active["duration_s"]) == ("optIn", "", 600.0)
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now + 7200))
    (signal,) = later["signals"]
    assert (signal["name"], signal["type"], signal["unit"], later["start"]) == ("LOAD_DISPATCH", "setpoint", "W", at)
    # The VTN speaks of kW.
    assert [(one["value"], one["duration_s"]) for one in signal["intervals"]] == [(40e3, 600.0), (30e3, 600.0)]
    assert (drill["test"], drill["limits"]) == (True, [])
    assert (result["link"]["registered"], result["link"]["ven_id"], result["link"]["trouble"]) == (True, ven_id, None)
    # Only the service has polled, once a second.
    assert running.vtn.seen("polls") - polls <= 3


def test_no_service_is_unknown_in_a_dry_run_and_a_failure_otherwise(play: Play, tmp_path: Path) -> None:
    socket = str(tmp_path / "none.sock")
    result = play(openadr_events_info, check=True, socket=socket)
    assert (result["events"], result["link"]) == ([], {})
    assert result["not_verified"][0].startswith(f"grid gateway unknown: {socket}: No such file")
    assert play(openadr_events_info, socket=socket)["failed"]


@pytest.mark.usefixtures("no_agent")
def test_a_bare_gateway(play: Play, tmp_path: Path) -> None:
    result = play(openadr_events_info, check=True, agent_directory=str(tmp_path))
    assert "the agent is not on this gateway yet" in result["not_verified"][0]
    assert play(openadr_events_info, agent_directory=str(tmp_path))["failed"]
