# SPDX-License-Identifier: Apache-2.0
"""The serial numbers and the firmware that a depot file declares."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derms_agent import profiles
from derms_agent.depot import check, examine
from derms_agent.depot.plain import depot_document, devices_of
from derms_agent.model import Depot

PROFILES = profiles.load_all()


def declared(devices: dict[str, Any], **parts: Any) -> tuple[Depot | None, list[str]]:
    document = {
        "plugin": "derms.edge.depot",
        "depot": "d",
        "site": {"limit_kva": 300},
        "gateways": {"gateway-1": {}},
        "circuits": {"main": {"voltage_v": 400, "rating_a": 400}},
        "buses": {
            "end-[1:3]": {"gateway": "gateway-1", "transport": "tcp", "host": "192.0.2.[1:3]"},
            "line": {"gateway": "gateway-1", "transport": "rtu_over_tcp", "host": "192.0.2.9", "baud_rate": 115200},
        },
        **parts,
        "devices": devices,
    }
    depot, problems = check(document, PROFILES)
    return depot, [str(problem) for problem in problems]


def keba(**fields: Any) -> dict[str, Any]:
    return {
        "bus": "end-[1:3]",
        "unit_id": 255,
        "profile": "keba_p30",
        "circuit": "main",
        "evses": {"rating_a": 16},
        **fields,
    }


def test_a_list_of_serial_numbers_runs_in_step_with_the_names() -> None:
    depot, problems = declared({"box-[1:3]": keba(serial_number=[17041, "0042", "A-7"], firmware="3.10.*")})
    assert (problems, depot is not None) == ([], True)
    assert depot is not None
    assert [device.serial_number for device in depot.devices.values()] == ["17041", "0042", "A-7"]
    assert {device.firmware for device in depot.devices.values()} == {"3.10.*"}
    assert check(depot_document(depot), PROFILES) == (depot, ())
    assert [(one["serial_number"], one["firmware"]) for one in devices_of(depot, "gateway-1")][1] == ("0042", "3.10.*")


def test_firmware_may_be_a_default_and_needs_not_be_said() -> None:
    depot, problems = declared({"box-[1:3]": keba()}, profile_defaults={"keba_p30": {"firmware": "3.*"}})
    assert problems == []
    assert depot is not None
    assert {(device.serial_number, device.firmware) for device in depot.devices.values()} == {(None, "3.*")}
    depot, _ = declared({"box-[1:3]": keba()})
    assert depot is not None
    assert {device.firmware for device in depot.devices.values()} == {None}
    assert "firmware" not in devices_of(depot, "gateway-1")[0]


@pytest.mark.parametrize(
    ("field", "value", "found", "expected"),
    [
        ("serial_number", ["1", "2"], "the list ['1', '2']", "one for each of the 3 that box-[1:3] stands for"),
        ("serial_number", "17", "the serial number 17 for box-2", "one of its own: box-1 has this one; of a range, a"),
        ("serial_number", [], "the list []", "a serial number, or where the name is a range a list"),
        ("serial_number", 1.5, "1.5", "a serial number, or where the name is a range a list"),
        ("firmware", 3, "3", "a firmware's version as the device tells it, in quotes"),
        ("firmware", "3.[1:2]", "the text '3.[1:2]'", "a firmware's version as the device tells it, in quotes"),
    ],
)
def test_what_cannot_be_meant_is_refused(field: str, value: object, found: str, expected: str) -> None:
    _, problems = declared({"box-[1:3]": keba(**{field: value})})
    wanted = f"devices.box-[1:3].{field}: found {found}; expected {expected}"
    assert any(problem.startswith(wanted) for problem in problems), problems


def test_what_a_device_does_not_show_cannot_be_declared_of_it() -> None:
    box = {"bus": "line", "unit_id": 1, "profile": "heidelberg_energy_control", "circuit": "main"}
    _, problems = declared({"box": {**box, "serial_number": "1", "firmware": "1", "evses": {"rating_a": 16}}})
    why = "expected none, for a device of the profile heidelberg_energy_control does not show its"
    assert problems == [
        f"devices.box.firmware: found a firmware; {why} firmware",
        f"devices.box.serial_number: found a serial number; {why} serial number",
    ]


def test_a_serial_number_is_one_devices_only() -> None:
    _, problems = declared(
        {"a": keba(bus="end-1", serial_number=7), "b": keba(bus="end-2", serial_number="7"), "c": keba(bus="end-3")}
    )
    assert problems == [
        "devices.b.serial_number: found the serial number 7 for b; expected one of its own: a has this one"
    ]


def test_a_meter_has_them_as_well_unless_it_is_declared_elsewhere() -> None:
    grid = {"bus": "end-1", "unit_id": 1, "profile": "sunspec_meter", "measures": "circuit", "circuit": "main"}
    depot, problems = declared({}, meters={"grid": {**grid, "serial_number": "M1", "firmware": "1.?"}})
    assert problems == []
    assert depot is not None
    assert (depot.devices["grid"].serial_number, depot.devices["grid"].firmware) == ("M1", "1.?")
    meter = {"device": "box", "measures": "load", "circuit": "main", "serial_number": "M1"}
    _, problems = declared({"box": keba(bus="end-1")}, meters={"grid": meter})
    (problem,) = problems
    assert problem.startswith("meters.grid.serial_number: found serial_number beside device; expected none")


def test_yaml_keeps_a_number_as_a_person_wrote_it() -> None:
    text = """\
plugin: derms.edge.depot
depot: d
site: {limit_kva: 300}
gateways: {gateway-1: {}}
circuits: {main: {voltage_v: 400, rating_a: 400}}
buses: {end: {gateway: gateway-1, transport: tcp, host: 192.0.2.1}}
devices:
  box: {bus: end, unit_id: 255, profile: keba_p30, circuit: main, serial_number: 00017, evses: {rating_a: 16}}
"""
    depot = examine(text, "f").depot
    assert depot is not None
    assert depot.devices["box"].serial_number == "00017"


@given(
    st.lists(
        st.text(st.characters(exclude_characters="[]", codec="utf-8"), min_size=1), min_size=3, max_size=3, unique=True
    )
)
def test_every_text_is_a_serial_number(numbers: list[str]) -> None:
    depot, problems = declared({"box-[1:3]": keba(serial_number=numbers)})
    assert problems == []
    assert depot is not None
    assert [device.serial_number for device in depot.devices.values()] == numbers
