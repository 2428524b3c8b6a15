# SPDX-License-Identifier: Apache-2.0
"""Storage that a depot file lets control use: what is taken, what is refused, and where."""

from __future__ import annotations

from typing import Any

import pytest

from derms_agent import profiles
from derms_agent.depot import check
from derms_agent.depot.plain import depot_document, device_document, devices_of, totals
from derms_agent.model import Depot, Phase

PROFILES = profiles.load_all()
ARMED = {"failsafe_power": 0, "failsafe_timeout": 60, "failsafe_enabled": "enabled"}


def declared(devices: dict[str, Any], **parts: Any) -> tuple[Depot | None, list[str]]:
    document = {
        "plugin": "derms.edge.depot",
        "depot": "d",
        "site": {"limit_kva": 100},
        "gateways": {"gateway-1": {}},
        "circuits": {"main": {"voltage_v": 400, "rating_a": 100, "base_load_a": 40}},
        "buses": {"bus-[1:3]": {"gateway": "gateway-1", "transport": "tcp", "host": "192.0.2.[1:3]"}},
        **parts,
        "devices": devices,
    }
    depot, problems = check(document, PROFILES)
    return depot, [str(problem) for problem in problems]


def store(number: int = 1, **fields: Any) -> dict[str, Any]:
    common = {"bus": f"bus-{number}", "unit_id": 1, "profile": "sunspec_der", "circuit": "main", "settings": ARMED}
    return {**common, "storage": {"rating_a": 50, "capacity_kwh": 80}, **fields}


def test_it_is_one_that_gets_setpoints_and_no_place_for_vehicles() -> None:
    depot, problems = declared({"store": store()})
    assert problems == []
    assert depot is not None
    (one,) = depot.evses()
    assert (one.name, one.stationary, one.capacity_wh) == ("store", True, 80_000.0)
    assert (one.limit_a, one.lowest_a, one.phases) == (50.0, -50.0, tuple(Phase))
    assert depot.places() == ()
    assert totals(depot)["evses"] == 0


def test_a_device_without_it_gets_none_whatever_else_is_declared() -> None:
    fields: dict[str, Any] = {"der_settings": {"volt_var": {"enabled": True}}, "settings": ARMED}
    depot, problems = declared({"icu": {key: value for key, value in store(**fields).items() if key != "storage"}})
    assert problems == []
    assert depot is not None
    assert depot.evses() == ()


@pytest.mark.parametrize("settings", [{"frequency_droop": {"enabled": True}}, {"category": {"abnormal": "III"}}])
def test_one_that_follows_the_frequency_by_itself_is_refused(settings: dict[str, Any]) -> None:
    _, problems = declared({"store": store(der_settings=settings)})
    assert len(problems) == 1
    assert "frequency_droop: found one that is on; expected enabled: false" in problems[0]
    _, problems = declared({"store": store(der_settings={**settings, "frequency_droop": {"enabled": False}})})
    assert problems == []


def test_what_is_written_out_for_a_gateway_is_the_same_depot() -> None:
    less = {"rating_a": 50, "capacity_kwh": 80.5, "cable_a": 40, "phases": ["L2", "L3", "L1"], "give_back_a": 30}
    none = {"rating_a": 10, "capacity_kwh": 20, "give_back_a": 0}
    vehicles = {"van": {"capacity_kwh": 60, "power_kw": 11, "give_back_kw": 10}}
    depot, problems = declared({"store-1": store(), "store-2": store(2, storage=none)}, vehicles=vehicles)
    assert problems == []
    assert depot is not None
    assert check(depot_document(depot), PROFILES) == (depot, ())
    assert depot.vehicles["van"].give_back_w == 10_000.0
    one, _ = declared({"store": store(storage=less)})
    assert one is not None
    assert device_document(one.devices["store"])["storage"] == less
    (evse,) = one.evses()
    assert (evse.limit_a, evse.lowest_a) == (40.0, -30.0)
    (plain,) = devices_of(one, "gateway-1")
    assert (plain["evses"], plain["storage"]["give_back_a"], plain["storage"]["capacity_kwh"]) == ([], 30.0, 80.5)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"storage": {"rating_a": 50}}, "devices.store.storage: found no capacity_kwh"),
        (
            {"storage": {"rating_a": 50, "capacity_kwh": 80, "power_kw": 3}},
            "devices.store.storage.power_kw: found an unk",
        ),
        (
            {"storage": {"rating_a": 50, "capacity_kwh": 80, "give_back_a": 51}},
            "storage.give_back_a: found 51; expected at",
        ),
        ({"settings": {**ARMED, "failsafe_power": -1}}, "settings.failsafe_power: found -1; expected 0 or more"),
        (
            {"settings": {**ARMED, "failsafe_timeout": 1}},
            "settings.failsafe_timeout: found a watchdog of 1 s; expected",
        ),
        ({"profile": "sunspec_meter", "settings": {}}, "storage: found storage that control may use; expected none"),
        (
            {"profile": "keba_p30", "settings": {}, "evses": {"rating_a": 16}},
            "storage: found storage on a charger; expected evses",
        ),
        ({"evses": {"rating_a": 16}}, "evses: found EVSEs on a device of kind inverter; expected none"),
        ({"storage": {"rating_a": 61, "capacity_kwh": 80}}, "1 × sunspec_der 61 A (its rating); base_load_a 40"),
    ],
)
def test_what_control_could_not_use_safely_is_refused(fields: dict[str, Any], expected: str) -> None:
    depot, problems = declared({"store": store(**fields)})
    assert depot is None
    assert any(expected in problem for problem in problems), problems


def test_no_charger_gives_back_whose_profile_has_no_set_point_for_it() -> None:
    charger = {"bus": "bus-2", "unit_id": 1, "profile": "keba_p30", "circuit": "main"}
    depot, problems = declared({"charger": {**charger, "evses": {"rating_a": 16, "give_back_a": 16}}})
    assert depot is None
    assert any("evses.give_back_a: found 16; expected 0, for the profile keba_p30 has no" in one for one in problems)


def test_what_it_gives_back_is_counted_once() -> None:
    meters = {"pv": {"device": "store", "measures": "generator", "circuit": "main"}}
    depot, problems = declared({"store": store()}, meters=meters)
    assert depot is None
    assert any("meters.pv.device: found store, which control may tell to give back" in one for one in problems)


def test_what_it_draws_is_in_no_base_load() -> None:
    limits = {"limits": {"charge_power_w": 34_000, "discharge_power_w": 34_000}}
    depot, problems = declared({"store": store(der_settings=limits)})
    assert problems == []
    assert depot is not None
    icu = {key: value for key, value in store(der_settings=limits).items() if key != "storage"}
    _, problems = declared({"icu": icu})
    assert any("base_load_a" in one for one in problems)
