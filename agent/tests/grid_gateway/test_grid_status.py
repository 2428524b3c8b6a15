# SPDX-License-Identifier: Apache-2.0
"""What `derms-agent status` says of the link to the utility."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from derms_agent import status

TERMS: dict[str, Any] = {"reports": ["TELEMETRY_USAGE"], "market_contexts": [], "resources": {}}
WELL: dict[str, Any] = {
    "vtn": "https://vtn.example:8443/OpenADR2/Simple/2.0b",
    "registered": True,
    "absent": False,
    "ven_id": "ven-7",
    "client_id": None,
    "vtn_id": "utility",
    "poll_s": 10.0,
    "heard_s_ago": 4.2,
    "link_lost": False,
    "trouble": None,
    "control_trouble": None,
    "events": [],
    "terms": TERMS,
    "terms_by_file": TERMS,
}


def event(name: str, phase: str, why: str | None = None, *, test: bool = False) -> dict[str, Any]:
    return {"event": name, "phase": phase, "why": why, "test": test}


def test_a_link_that_is_well_is_one_line_and_no_alarm() -> None:
    assert status.grid_lines(WELL) == [
        "grid      registered with utility as ven-7; last answer 4 s ago, polled every 10 s"
    ]
    assert status.grid_alarms(WELL) == []


def test_events_are_counted_and_a_refusal_says_why() -> None:
    events = [
        event("e1", "active"),
        event("e2", "far"),
        event("e3", "near", "the depot cannot obey: base load"),
        event("e4", "completed", "too late"),
        event("e5", "cancelled"),
        event("e6", "active", test=True),
    ]
    assert status.grid_lines({**WELL, "events": events})[1:] == [
        "          events: 1 active, 1 pending",
        "          opted out of e3: the depot cannot obey: base load",
    ]


def test_terms_that_are_not_the_depot_files_are_named() -> None:
    terms = {**TERMS, "market_contexts": ["http://utility.example/shed"], "resources": {"R1": "main"}}
    assert status.grid_lines({**WELL, "terms": terms})[1:] == [
        "          not as the depot file has it, but as was asked: market contexts, resources"
    ]


def test_what_is_wrong_is_an_alarm_with_the_words_that_the_log_has() -> None:
    ill = {
        **WELL,
        "registered": False,
        "heard_s_ago": 61.7,
        "link_lost": True,
        "trouble": "TLS Handshake Failure: unknown CA",
        "control_trouble": "it is gone",
        "unkept": "No space left on device",
    }
    assert status.grid_lines(ill) == [
        f"grid      not registered with {WELL['vtn']}; no valid answer for 62 s, polled every 10 s"
    ]
    assert status.grid_alarms(ill) == [
        "! VTN vtn.example: TLS Handshake Failure: unknown CA",
        "! VTN vtn.example: Heartbeat Timeout: no valid answer for 62 s",
        "! grid gateway: the orchestrator does not take events: it is gone",
        "! grid gateway: events cannot be kept: No space left on device",
    ]


def test_another_id_than_the_utility_gave_is_an_alarm() -> None:
    assert status.grid_alarms({**WELL, "client_id": "ven-7"}) == []
    other = {**WELL, "client_id": "depot-7"}
    assert status.grid_alarms(other) == ["! VTN vtn.example: knows this VEN as ven-7, and not by its CLIENT_ID depot-7"]
    assert status.grid_alarms({**other, "registered": False, "ven_id": None}) == []


def test_a_clock_that_events_would_be_late_or_early_by_is_an_alarm() -> None:
    assert status.grid_alarms({**WELL, "clock_off_s": -59.0}) == status.grid_alarms({**WELL, "clock_off_s": None}) == []
    assert status.grid_alarms({**WELL, "clock_off_s": -3600.4}) == [
        "! VTN vtn.example: this gateway's clock is -3600 s off the VTN's, and events go by it: chronyc tracking"
    ]


def test_the_vtn_is_named_once() -> None:
    ill = {**WELL, "trouble": "VTN vtn.example: unreachable: vtn.example:8443 takes no connection"}
    assert status.grid_alarms(ill) == ["! VTN vtn.example: unreachable: vtn.example:8443 takes no connection"]


@pytest.mark.parametrize("made", [False, True])
def test_a_service_that_was_started_and_is_silent_is_an_alarm_and_one_that_never_was_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], made: bool
) -> None:
    place = tmp_path / "grid-gateway"
    if made:
        place.mkdir()
    report = {
        "depot": "d", "gateway": "g", "at": "2026-11-26T14:00:00Z", "state": "normal", "reason": "no limit", "asks": [],
        "site": dict.fromkeys(
            ("power_w", "evse_power_w", "evse_limit_w", "limit_by", "counted_w", "base_w", "base_by"), None
        ),
        "circuits": [], "evses": [], "alarms": [], "version": "0",
        "cycle": {"count": 1, "median_ms": 1.0, "p99_ms": 1.0},
    }  # fmt: skip
    monkeypatch.setattr(status, "_answer", lambda _options, _verb: (status.WELL, report))
    options = Namespace(json=False, watch=False, grid_socket=place / "ven.sock")
    assert status._status(options) == status.WELL
    said = capsys.readouterr().out
    assert ("grid      derms-grid-gateway.service does not answer" in said) is made
    assert ("! grid gateway: " in said) is made
    assert ("no alarms" in said) is not made
