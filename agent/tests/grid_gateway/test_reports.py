# SPDX-License-Identifier: Apache-2.0
"""TELEMETRY_STATUS says of the site, and of each of the utility's resources, whether it obeys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from lxml import etree

from derms_agent.grid_gateway import messages, reports
from derms_agent.grid_gateway.events import Bound
from derms_agent.grid_gateway.incoming import ReportRequest
from derms_agent.grid_gateway.messages import LAST_KNOWN, ReportInterval, ResourceStatus

RESOURCES = {"R-all": "site", "R-hall": "hall", "R-one": "evse-1", "R-gone": "evse-9"}
NOW = 1_764_182_400.0


def evse(name: str, circuit: str, power_w: float | None, following: str = "following") -> dict[str, Any]:
    return {"name": name, "circuit": circuit, "power_w": power_w, "measured_a": None, "following": following}


def report(*evses: Mapping[str, Any], power_w: float = 50_000.0, state: str = "normal") -> dict[str, Any]:
    return {
        "state": state,
        "site": {"power_w": power_w, "evse_power_w": 40_000.0},
        "circuits": [
            {"name": "main", "parent": None}, {"name": "hall", "parent": "main"}, {"name": "row", "parent": "hall"},
            {"name": "yard", "parent": "main"},
        ],
        "evses": list(evses),
    }  # fmt: skip


def bound(target: str, high_w: float) -> Bound:
    return Bound(
        name=target,
        key=("v", "e"),
        target=target,
        high_w=high_w,
        start_unix_s=0,
        end_unix_s=9,
        source="e",
        baseline_w=7e4,
    )


def statuses(status: Mapping[str, Any] | None, *in_force: Bound) -> dict[str, ResourceStatus]:
    found = reports.points(status, in_force, RESOURCES)
    assert {*found} == {*reports.data_points(reports.offers(RESOURCES))}
    return {name.removeprefix("status-"): point.status for name, point in found.items() if point.status is not None}


def overridden(status: Mapping[str, Any] | None, *in_force: Bound) -> set[str]:
    return {name for name, one in statuses(status, *in_force).items() if one.manual_override}


@pytest.mark.parametrize("following", ["overdrawing", "recovering"])
def test_an_evse_that_does_not_follow_shows_in_every_resource_that_it_is_part_of(following: str) -> None:
    """However much room the depot makes for it elsewhere, in the site as well: the VTN learns of the shed check."""
    status = report(evse("evse-1", "row", 9000.0, following), evse("evse-2", "yard", 9000.0))
    assert overridden(status, bound("site", 60_000.0)) == {"site-status", "R-all", "R-hall", "R-one"}
    other = report(evse("evse-1", "row", 9000.0), evse("evse-2", "yard", 9000.0, following))
    assert overridden(other, bound("site", 60_000.0)) == {"site-status", "R-all"}


@pytest.mark.parametrize("following", ["following", "unproven", "suspect"])
def test_one_that_follows_or_is_not_judged_yet_overrides_nothing(following: str) -> None:
    assert not overridden(report(evse("evse-1", "row", 9000.0, following)), bound("site", 60_000.0))


def test_a_place_that_draws_more_than_its_own_bound_does_not_obey() -> None:
    status = report(evse("evse-1", "row", 9000.0), evse("evse-2", "row", 2000.0), evse("evse-3", "yard", 9000.0))
    assert overridden(status, bound("hall", 10_400.0)) == {"R-hall"}
    assert not overridden(status, bound("hall", 10_600.0))  # within half a kW
    assert overridden(status, bound("evse-1", 8000.0)) == {"R-one"}
    assert overridden(report(power_w=61_000.0), bound("site", 60_000.0)) == {"site-status", "R-all"}


def test_a_place_is_held_to_the_tightest_bound_on_itself() -> None:
    status = report(evse("evse-1", "row", 9000.0))
    found = statuses(status, bound("site", 60_000.0), bound("site", 50_000.0), bound("hall", 20_000.0))
    assert {name: (one.setpoint_w, one.normal_w) for name, one in found.items()} == {
        "site-status": (50_000.0, 70_000.0), "R-all": (50_000.0, 70_000.0), "R-hall": (20_000.0, None),
        "R-one": (None, None), "R-gone": (None, None),
    }  # fmt: skip


def test_a_place_is_online_while_one_of_its_evses_answers() -> None:
    status = report(evse("evse-1", "row", None), evse("evse-2", "row", 0.0))
    assert {name for name, one in statuses(status).items() if one.online} == {"site-status", "R-all", "R-hall"}
    assert not {name for name, one in statuses(report(state="fault")).items() if one.online}


def test_without_the_orchestrator_all_is_the_last_known_and_nothing_online() -> None:
    found = reports.points(None, (), RESOURCES)
    assert {found[name].quality for name in found if found[name].status is not None} == {LAST_KNOWN}
    assert not any(one.online or one.manual_override for one in statuses(None).values())


def test_circuits_in_a_ring_end() -> None:
    status = {
        **report(evse("evse-1", "a", 1.0)),
        "circuits": [{"name": "a", "parent": "b"}, {"name": "b", "parent": "a"}],
    }
    assert statuses(status)["R-one"].online


def test_metadata_and_report_follow_the_schema() -> None:
    offered = reports.offers(RESOURCES)
    root = etree.fromstring(messages.register_report("r", "v", offered, NOW))
    assert [one.text for one in root.iter("{*}resourceID")] == ["site", "site", "site", *RESOURCES]
    found = reports.points(report(evse("evse-1", "row", 9000.0, "overdrawing")), (bound("hall", 1.0),), RESOURCES)
    sent = messages.Report(
        report_id="1", request_id="q", specifier=offered[1].specifier, name=reports.STATUS, created_unix_s=NOW,
        intervals=tuple(ReportInterval(NOW, 10.0, (found[one.id],)) for one in offered[1].points),
    )  # fmt: skip
    root = etree.fromstring(messages.update_report("r", "v", (sent,)))
    shown = [(one.text, one.getnext().findtext("{*}oadrManualOverride")) for one in root.iter("{*}rID")]
    assert shown == [
        ("site-status", "true"), ("status-R-all", "true"), ("status-R-hall", "true"), ("status-R-one", "true"),
        ("status-R-gone", "false"),
    ]  # fmt: skip


def test_what_was_offered_and_asked_for_is_read_again() -> None:
    assert reports.from_json(reports.to_json((), ["a"])) == ((), ("a",))
    assert reports.from_json({"version": 1, "requests": []}) == ((), ("site-power", "evse-power", "site-status"))


def test_a_report_that_is_begun_again_after_a_restart_ends_when_it_would_have() -> None:
    request = ReportRequest(
        id="r", specifier="telemetry-usage", granularity_s=1.0, report_back_s=10.0, data_points=("site-power",),
        duration_s=3600.0,
    )  # fmt: skip
    first = reports.begun(request, 100.0, NOW)
    assert (first.start_s, first.end_s) == (100.0, 3700.0)
    (kept,), _ = reports.from_json(reports.to_json((first.request,), ()))
    again = reports.begun(kept, 1100.0, NOW + 1000)
    assert (again.start_s, again.end_s, again.send_s) == (1100.0, 3700.0, 1110.0)
    # One that is to start later, and one without an end.
    later = reports.begun(replace(request, start_unix_s=NOW + 60), 100.0, NOW)
    assert (later.start_s, later.end_s) == (160.0, 3760.0)
    assert reports.begun(replace(request, duration_s=0.0), 100.0, NOW).end_s == math.inf


def test_what_is_known_in_part_and_is_over_a_bound_already_is_said_to_be_over() -> None:
    status = {**report(evse("a", "row", 40_000.0), evse("b", "row", None)), "site": {"evse_power_w": 40_000.0}}
    assert overridden(status, bound("site", 39_000.0)) == {"site-status", "R-all"}
    assert overridden(status, bound("site", 41_000.0)) == set()
