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


WITHOUT_VTN = ("identifiers", "dotted", "cancelled_twice", "no_zone", "opt", "name", "away_at_start")


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


def test_8_an_identifier_loses_its_zeros(said: dict[str, Any]) -> None:
    assert said["identifiers"] == 123


def test_8_an_identifier_with_dots_loses_the_message(said: dict[str, Any]) -> None:
    assert "ValueError" in said["dotted"]


def test_9_an_event_that_is_cancelled_twice_takes_the_others_with_it(said: dict[str, Any]) -> None:
    first, second, *third = said["cancelled_twice"]

    assert (first, third) == ("optIn", ["optOut", "optOut"]), (first, second, third)


def test_11_a_time_without_a_zone_is_an_exception(said: dict[str, Any]) -> None:
    assert "AttributeError" in said["no_zone"]


def test_14_an_opt_is_not_valid(said: dict[str, Any]) -> None:
    assert said["opt"] != "valid"


def test_15_a_name_with_an_ampersand_is_not_valid(said: dict[str, Any]) -> None:
    assert "XMLSyntaxError" in said["name"]


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
