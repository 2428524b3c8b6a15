# SPDX-License-Identifier: Apache-2.0
"""The defects of openleadr 0.5.36 that the gateway's own parts are there for, shown on openleadr's own.

Should one of these fail with a newer openleadr, the defect is mended there, and docs and comments that speak of it are
to be looked at. The numbers are those of the tests here, and these are the gateway's tests of the same defects:

 1  test_what_crashes_the_library_is_refused_before_a_parser_has_it, test_a_doctype_is_refused_in_whatever_encoding
 2  test_a_vtn_that_is_away_at_the_start_is_found_when_it_comes
 3  test_3_a_registration_that_is_refused_is_asked_for_until_it_is_given
 4  test_a_vtn_that_has_forgotten_the_ven_has_it_register_anew
 5  test_an_answer_that_is_none_ends_nothing, test_a_body_that_drips_is_cut_off, and that of 4
 6  test_a_step_of_the_clock_stops_no_poll, test_6_a_host_in_another_zone_reads_and_writes_the_same_times
 7  test_an_event_whose_answer_was_lost_on_the_way_is_asked_for_again, test_7_what_a_second_poller_takes_is_asked_for,
    test_7_whoever_looks_how_far_a_vtn_can_be_reached_takes_nothing
 8  test_an_identifier_is_the_text_that_was_sent, test_any_text_is_a_vtn_id
 9  test_a_cancelled_event_ends_and_may_be_cancelled_again, test_a_broken_event_is_answered_and_its_neighbours_stand
10  test_an_event_that_comes_ended_never_begins, test_a_lower_number_is_refused_and_what_is_known_stands,
    test_an_event_that_is_no_longer_listed_is_cancelled_by_that_and_stands_again_when_it_is, test_targets,
    test_a_signal_that_cannot_be_obeyed_is_opted_out_of_and_bounds_nothing
11  test_a_time_without_a_zone_is_utc
12  test_what_an_event_is_now, test_a_ramp_leads_from_the_baseline_to_what_is_wanted,
    test_units_of_one_signal_are_none_of_the_next
13  test_a_status_is_reported_once_where_it_is_asked_for_once, test_a_status_is_a_resource_status_and_no_number,
    test_a_report_shows_what_was_drawn_and_after_an_outage_what_was_drawn_meanwhile,
    test_a_report_that_is_asked_for_without_how_often_to_send_it, test_the_end_of_a_report_in_the_answer_to_another,
    test_13_no_report_leaves_a_task_behind
14  test_an_opt_has_its_time, test_times_that_the_depot_opts_out_of
15  test_a_text_arrives_as_it_was_given
16  test_a_certificate_without_the_fingerprint_is_sent_nothing, test_a_pinned_certificate_is_the_only_one,
    test_a_message_of_another_time, test_a_message_that_was_wrapped
17  test_17_an_event_is_obeyed_whatever_its_current_value_says; it is the VTN's, which is a process of its own each time
18  test_what_has_long_been_over_is_forgotten, test_no_number_of_events_fills_the_disk
"""

from __future__ import annotations

import json
import os
import re
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


def test_the_gateways_tests_of_the_same_defects_are_there() -> None:
    texts = [path.read_text(encoding="utf-8") for path in CLIENT.parent.glob("test_*.py")]
    named = re.findall(r"\btest_\w+", __doc__ or "")

    assert named
    assert not [name for name in named if not any(f"def {name}(" in text for text in texts)]


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

    assert found["polls"] > 0
    assert found["sent"] == ["oadrPoll"]


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
