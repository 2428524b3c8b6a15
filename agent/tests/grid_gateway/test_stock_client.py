# SPDX-License-Identifier: Apache-2.0
"""The defects of openleadr 0.5.36 that the gateway's own parts are there for, shown on openleadr's own.

Each has its counterpart beside: the gateway's test of the same defect. Should one of these fail with a newer openleadr,
the defect is mended there, and docs and comments that speak of it are to be looked at.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agent.tests.grid_gateway.conftest import Authority, LabVtn, free_port

CLIENT = Path(__file__).with_name("stock_client.py")
ROOT = Path(__file__).parents[3]
SEGMENTATION_FAULT = -11


def command(case: str, authority: Authority, port: int, **more: Any) -> list[str]:
    directory = authority.directory
    told = {
        "case": case, "url": f"https://localhost:{port}", "certificate": str(directory / "ven.crt"),
        "key": str(directory / "ven.key"), "authorities": str(authority.path), **more,
    }  # fmt: skip
    return [sys.executable, str(CLIENT), json.dumps(told)]


def ended(case: str, authority: Authority, port: int = 1) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TZ": "UTC"}
    return subprocess.run(command(case, authority, port), capture_output=True, timeout=60, check=False, env=environment)


WITHOUT_VTN = (
    "identifiers", "dotted", "cancelled_twice", "no_zone", "opt", "name", "away_at_start", "steady", "refused_once",
    "empty", "drip", "step_back", "zone_without_a_name", "answer_lost", "numeric_vtn", "lowercase_vtn",
    "events_misread", "ramp_up", "units", "one_list", "samples_lost", "workers", "status", "cancelled_beside", "pinned",
    "memory",
)  # fmt: skip


@pytest.fixture(scope="module")
def said(authority: Authority) -> dict[str, Any]:
    """Return what the client says of each case that needs no VTN."""
    return outcomes(" ".join(WITHOUT_VTN), authority, free_port())


def outcomes(cases: str, authority: Authority, port: int) -> dict[str, Any]:
    found = ended(cases, authority, port)
    assert found.returncode == 0, found.stderr.decode()[-2000:]
    told: dict[str, Any] = json.loads(found.stdout.decode().splitlines()[-1])
    return told


def test_1_a_doctype_crashes_the_process(authority: Authority) -> None:
    assert ended("doctype", authority).returncode == SEGMENTATION_FAULT


def test_2_a_vtn_that_is_away_at_the_start_ends_it_for_good(said: dict[str, Any]) -> None:
    assert said["away_at_start"] in {"returned", "Session is closed"}


def test_3_a_registration_that_is_refused_once_ends_it_for_good(said: dict[str, Any]) -> None:
    assert said["steady"] > 0
    assert said["refused_once"] == {"polls": 0, "registrations": 2}


def test_5_an_answer_without_a_body_is_an_exception(said: dict[str, Any]) -> None:
    assert said["empty"].startswith("TypeError")


def test_5_an_answer_that_drips_is_waited_for_without_end(said: dict[str, Any]) -> None:
    assert said["drip"] == "waits"


def test_6_a_clock_that_is_put_back_ends_the_polls(said: dict[str, Any]) -> None:
    assert said["steady"] > 0
    assert said["step_back"] == 0


def test_6_a_host_whose_zone_has_no_name_has_no_client(said: dict[str, Any]) -> None:
    assert "ZoneInfoNotFoundError" in said["zone_without_a_name"]


def test_7_an_event_whose_answer_was_lost_or_taken_by_another_is_not_asked_for(said: dict[str, Any]) -> None:
    found = said["answer_lost"]

    assert found.pop("polls") > 0
    assert found == {"asked": ["oadrPoll"], "events": 0}


def test_8_an_identifier_loses_its_zeros(said: dict[str, Any]) -> None:
    assert said["identifiers"] == 123


def test_8_an_identifier_with_dots_loses_the_message(said: dict[str, Any]) -> None:
    assert "ValueError" in said["dotted"]


def test_8_a_vtn_whose_id_is_a_number_is_opted_out_of(said: dict[str, Any]) -> None:
    assert said["numeric_vtn"] == [["200", "optOut"]]


def test_8_a_vtn_whose_id_is_in_small_letters_is_answered_with_an_error(said: dict[str, Any]) -> None:
    assert said["lowercase_vtn"] == "452"


def test_9_an_event_that_is_cancelled_twice_takes_the_others_with_it(said: dict[str, Any]) -> None:
    first, second, *third = said["cancelled_twice"]

    assert (first, third) == ("optIn", ["optOut", "optOut"]), (first, second, third)


def test_10_what_an_event_is_counts_for_nothing(said: dict[str, Any]) -> None:
    found = said["events_misread"]
    gone, first, lower, theirs, odd, _last = found["answers"]

    # Cancelled before it came: new all the same. A lower number replaces, and somebody else's event is opted in to.
    assert found["seen"][0] == ["new", "gone", 0]
    assert found["seen"][1:3] == [["new", "lower", 3], ["update", "lower", 1]]
    assert [gone, first, lower, theirs] == [["200", "optIn"]] * 4
    # A signal that it does not know is refused, opted in to, and handed over.
    assert odd == ["460", "optIn"]
    assert ["new", "odd", 0] in found["seen"]
    # Of the last list each of them was missing: cancelled by that, and held.
    assert found["held"] == ["gone", "lower", "theirs", "odd", "last"]


def test_11_a_time_without_a_zone_is_an_exception(said: dict[str, Any]) -> None:
    assert "AttributeError" in said["no_zone"]


def test_12_an_event_that_ramps_up_is_never_near(said: dict[str, Any]) -> None:
    assert said["ramp_up"] == "far"


def test_12_a_unit_is_lost_after_a_signal_without_one(said: dict[str, Any]) -> None:
    assert said["units"] == [True, False]


def test_13_reports_that_are_asked_for_together_have_their_data_points_together(said: dict[str, Any]) -> None:
    assert said["one_list"] == [["p1", "p2"], ["p1", "p2"]]


def test_13_a_report_that_does_not_arrive_is_lost(said: dict[str, Any]) -> None:
    assert said["samples_lost"] == 1  # of two


def test_13_each_registration_leaves_a_task_and_a_job_behind(said: dict[str, Any]) -> None:
    assert said["workers"] == {"tasks": 3, "jobs": 3}


def test_13_a_status_is_reported_as_a_number(said: dict[str, Any]) -> None:
    assert said["status"] == {"number": True, "status": False}


def test_13_a_report_that_the_answer_to_it_ends_goes_on(said: dict[str, Any]) -> None:
    assert said["cancelled_beside"] == ["a"]


def test_14_an_opt_is_not_valid(said: dict[str, Any]) -> None:
    assert said["opt"] != "valid"


def test_15_a_name_with_an_ampersand_is_not_valid(said: dict[str, Any]) -> None:
    assert "XMLSyntaxError" in said["name"]


def test_16_a_fingerprint_is_the_signers_only_and_six_seconds_are_too_long(said: dict[str, Any]) -> None:
    assert said["pinned"] == {"0": "oadrResponse", "6": None}


def test_18_no_answer_is_ever_forgotten(said: dict[str, Any]) -> None:
    assert said["memory"] == {"received": 0, "responded": 100}


def test_tls_1_2_is_spoken_without_a_word(authority: Authority, new_vtn: Callable[..., LabVtn]) -> None:
    vtn = new_vtn(more={"tls_minimum": "1.2", "tls_maximum": "1.2"})

    assert outcomes("tls_1_2", authority, vtn.port)["tls_1_2"] == "oadrCreatedPartyRegistration"


def test_4_and_5_a_vtn_that_has_forgotten_it_is_polled_for_ever(authority: Authority, vtn: LabVtn) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TZ": "UTC"}
    with subprocess.Popen(
        command("amnesia", authority, vtn.port, seconds=6),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as client:
        assert client.stdout is not None
        ven_id = json.loads(client.stdout.readline())
        vtn.do("forget", ven_id=ven_id)
        polls = vtn.seen("polls")
        client.wait(60)

    assert vtn.seen("polls") > polls
    assert len(vtn.seen("registrations")) == 1


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
