# SPDX-License-Identifier: Apache-2.0
"""The grid code's settings that a depot file declares for a DER: what is taken, and what is refused, and where."""

from __future__ import annotations

from typing import Any

import pytest

from derms_agent import profiles
from derms_agent.depot import check, examine
from derms_agent.depot.plain import depot_document, devices_of
from derms_agent.model import Depot

PROFILES = profiles.load_all()
FILE = """\
plugin: derms.edge.depot
depot: d
site: {limit_kva: 300}
gateways: {gateway-1: {}}
circuits: {main: {voltage_v: 400, rating_a: 400, base_load_a: 100}}
buses: {"icu-[1:2]": {gateway: gateway-1, transport: tcp, host: "192.0.2.[1:2]"}}
devices:
  icu-[1:2]:
    bus: icu-[1:2]
    unit_id: 1
    profile: sunspec_der
    circuit: main
    der_settings:
"""
CURVE = {"enabled": True, "points": [[92, 44], [98, 0], [102, 0], [108, -44]]}


def declared(devices: dict[str, Any], **parts: Any) -> tuple[Depot | None, list[str]]:
    document = {
        "plugin": "derms.edge.depot",
        "depot": "d",
        "site": {"limit_kva": 300},
        "gateways": {"gateway-1": {}},
        "circuits": {"main": {"voltage_v": 400, "rating_a": 400, "base_load_a": 100}},
        "buses": {"icu-[1:3]": {"gateway": "gateway-1", "transport": "tcp", "host": "192.0.2.[1:3]"}},
        **parts,
        "devices": devices,
    }
    depot, problems = check(document, PROFILES)
    return depot, [str(problem) for problem in problems]


def icu(number: int | str, **fields: Any) -> dict[str, Any]:
    return {"bus": f"icu-{number}", "unit_id": 1, "profile": "sunspec_der", "circuit": "main", **fields}


def test_what_is_declared_is_kept_as_it_was_said() -> None:
    off = {"constant_power_factor": {"enabled": False}, "watt_var": None}
    said = {"category": {"normal": "B", "abnormal": "III"}, "volt_var": CURVE, **off}
    depot, problems = declared({"icu-[1:2]": icu("[1:2]", der_settings=said), "icu-3": icu(3)})
    assert (problems, depot is not None) == ([], True)
    assert depot is not None
    assert [device.der_settings for device in depot.devices.values()] == [said, said, None]
    assert check(depot_document(depot), PROFILES) == (depot, ())
    plain = devices_of(depot, "gateway-1")
    assert (plain[0]["der_settings"], "der_settings" in plain[2]) == (said, False)


def test_a_device_says_it_whole_or_has_that_of_its_bus_or_profile() -> None:
    common = {"category": {"normal": "B"}}
    depot, problems = declared(
        {"icu-[1:2]": icu("[1:2]"), "icu-3": icu(3, der_settings={"volt_var": CURVE})},
        profile_defaults={"sunspec_der": {"der_settings": common}},
    )
    assert problems == []
    assert depot is not None
    assert [device.der_settings for device in depot.devices.values()] == [common, common, {"volt_var": CURVE}]


@pytest.mark.parametrize(
    ("written", "line", "said"),
    [
        (
            "      category: {normal: C}\n",
            14,
            "devices.icu-[1:2].der_settings.category.normal: found the text 'C'; expected one of A, B",
        ),
        (
            "      volt_vra: {enabled: true}\n",
            14,
            "devices.icu-[1:2].der_settings.volt_vra: found an unknown key; expected one of category, limits",
        ),
        (
            "      volt_var:\n        enabled: true\n        response_s: -5\n",
            16,
            "devices.icu-[1:2].der_settings.volt_var.response_s: found -5; expected a number from 0 to 86400 s",
        ),
        (
            "      volt_var:\n        points:\n          - [92, 44]\n          - [98, 144]\n",
            17,
            "der_settings.volt_var.points.1: found 144; expected a number from -100 to 100 percent",
        ),
        (
            f"      volt_var:\n        points: [{', '.join(f'[{90 + n}, 0]' for n in range(21))}]\n",
            15,
            "der_settings.volt_var.points: found a list of 21; expected at most 20 points",
        ),
        (
            "      volt_var: {enabled: true}\n      constant_power_factor: {enabled: true}\n",
            14,
            "der_settings.volt_var.enabled: found true; expected false beside constant_power_factor",
        ),
        ("      - volt_var\n", 13, "der_settings: found the list ['volt_var']; expected the grid code's settings by"),
    ],
)
def test_what_cannot_be_is_refused_with_line_key_found_and_expected(written: str, line: int, said: str) -> None:
    examined = examine(FILE + written, "depot.yml")
    (error,) = examined.errors
    assert examined.depot is None
    assert (error.line, said in str(error)) == (line, True), str(error)


def test_the_nearest_name_is_said_and_everything_at_once() -> None:
    examined = examine(f"{FILE}      volt_vra: {{}}\n      enter_service: {{delay_s: -1, ramp: 3}}\n", "depot.yml")
    assert [error.line for error in examined.errors] == [14, 15, 15]
    assert "the nearest is volt_var" in str(examined.errors[0])


def test_only_a_der_has_them() -> None:
    depot, problems = declared(
        {
            "icu-1": {
                **icu(1),
                "profile": "keba_p30",
                "evses": {"rating_a": 16},
                "der_settings": {"volt_var": CURVE},
            }
        }
    )
    assert depot is None
    (problem,) = problems
    assert problem.startswith("devices.icu-1.der_settings: found der_settings; expected none, for the profile keba_p30")


def test_a_secret_has_no_place_there() -> None:
    examined = examine(f"{FILE}      volt_var: {{dept_ref: !vault 'x'}}\n", "depot.yml")
    assert examined.depot is None
    assert "an encrypted value" in str(examined.errors[0])
    assert len(examined.errors) == 1


def test_what_only_control_writes_cannot_be_declared() -> None:
    examined = examine(f"{FILE}      active_power_limit: {{enabled: true, limit_percent: 70}}\n", "depot.yml")
    words = " of a device with the profile sunspec_der"
    assert [str(error).partition("active_power_limit.")[2] for error in examined.errors] == [
        f"enabled: found true; expected none: control owns generation_limit_enabled{words}",
        f"limit_percent: found 70; expected none: control owns generation_limit{words}",
    ]


def limited(number: int, **limits: float) -> dict[str, Any]:
    return icu(number, der_settings={"limits": limits})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        # 100 A of base load at 400 V are 69.3 kVA; 400 A of rating are 277 kVA.
        ({"charge_power_w": 34000}, {"charge_power_w": 34000}),
        ({"charge_power_w": 69000}, {"active_power_w": 200000}),
        ({"charge_power_w": 90000, "current_a": 99}, {}),
        ({"active_power_w": 138000}, {"apparent_power_va": 138000, "active_power_w": 200000}),
        ({"active_power_w": 400000, "current_a": 390}, {"nominal_voltage_v": 400}),
        ({"discharge_power_w": 400000, "active_power_w": 270000}, {}),
    ],
)
def test_limits_that_the_circuits_bear(first: dict[str, float], second: dict[str, float]) -> None:
    devices = {"icu-1": limited(1, **first), "icu-2": limited(2, **second) if second else icu(2)}
    assert declared(devices)[1] == []


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (
            {"charge_power_w": 36000},
            {"charge_apparent_power_va": 36000},
            "found icu-1, icu-2 to draw 103.9 A from circuit main; expected at most 100 A, its base_load_a",
        ),
        ({"charge_power_w": 80000}, {}, "found icu-1 to draw 115.5 A from circuit main; expected at most 100 A"),
        (
            {"active_power_w": 150000},
            {"current_a": 200},
            "found icu-1, icu-2 to inject more than is borne by circuit main: 416.5 A on L1/L2/L3, rated 400 A",
        ),
        ({"discharge_power_w": 300000}, {}, "found icu-1 to inject more than is borne by circuit main: 433 A"),
    ],
)
def test_limits_that_the_circuits_do_not_bear(first: dict[str, float], second: dict[str, float], said: str) -> None:
    depot, problems = declared({"icu-1": limited(1, **first), "icu-2": limited(2, **second) if second else icu(2)})
    assert depot is None
    assert said in problems[0]
    assert [problem.split(":")[0] for problem in problems] == [
        f"devices.icu-{number}.der_settings.limits" for number in range(1, 3 if second else 2)
    ]


def test_what_ders_inject_is_held_against_every_circuit_above() -> None:
    feeder = {"voltage_v": 400, "rating_a": 100, "base_load_a": 50}
    main = {"voltage_v": 400, "rating_a": 150, "base_load_a": 10}
    circuits = {"main": main, "roof-[1:2]": {"parent": "main", **feeder}}
    devices = {f"icu-{n}": {**limited(n, active_power_w=60000), "circuit": f"roof-{n}"} for n in (1, 2)}
    depot, problems = declared(devices, circuits=circuits)
    assert depot is None
    assert len(problems) == 2
    assert "icu-1, icu-2 to inject more than is borne by circuit main: 173.2 A" in problems[0]


def test_the_sum_of_what_flows_while_nobody_controls_has_ders_as_base_load_whatever_wmax_says() -> None:
    """A rating is nowhere declared of a DER: neither that nor its limits may lower or raise what EVSEs are held to."""
    box = {"bus": "icu-3", "unit_id": 255, "profile": "keba_p30", "circuit": "main", "evses": {"rating_a": 20}}
    circuits = {"main": {"voltage_v": 400, "rating_a": 119, "base_load_a": 100}}
    found = {
        str(limits): declared({"icu-1": limited(1, **limits), "box": box}, circuits=circuits)[1]
        for limits in ({"active_power_w": 0.0}, {"active_power_w": 80000.0}, {"charge_power_w": 0.0})
    }
    assert len({tuple(problems) for problems in found.values()}) == 1
    ((problem,),) = {tuple(problems) for problems in found.values()}
    assert "120 A on L1/L2/L3 when no EVSE is controlled" in problem
