# SPDX-License-Identifier: Apache-2.0
"""What devices are and hold, in a depot file's own form: read back, it declares what was read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from derms_agent import profiles as built_in
from derms_agent.depot import check
from derms_agent.depot.plain import depot_document
from derms_agent.device_state import identity
from derms_agent.device_state.converge import chosen
from derms_agent.device_state.declaration import declaration, section
from derms_agent.device_state.gather import Gathered, gather, plain, text
from derms_agent.device_state.results import Status
from derms_agent.device_state.run import depot_of
from derms_agent.drivers import configured_device, sunspec
from derms_agent.model import Depot, Device, DeviceKind, Evse, Phase, Value
from derms_agent.profiles import Point, Profile
from derms_agent.twin import Fault, FaultKind

if TYPE_CHECKING:
    from agent.tests.device_state.conftest import Field, Played

PROFILES = {name: built_in.load(name) for name in built_in.names()}
DECLARED: Mapping[str, Mapping[str, Value]] = {
    "abb_terra_ac": {"failsafe_timeout": 40},
    "alfen_ng9": {"phases": "one"},
    "heidelberg_energy_control": {"failsafe_current": 7.5, "failsafe_timeout": 31, "standby": "prevented"},
    "keba_p30": {"failsafe_current": 8, "failsafe_timeout": 45, "failsafe_persist": "kept"},
    "mennekes_compact": {"failsafe_current": 9},
    "phoenix_charx": {"failsafe_current": 10, "failsafe_timeout": 70},
    "sunspec_der": {"failsafe_power": 2000, "failsafe_timeout": 90, "soc_reserve": 25, "generation_limit_fallback": 60},
}


def every_kind() -> dict[str, Any]:
    """Return a depot with a device of each built-in profile, on a bus of its own."""
    devices, buses = {}, {}
    for number, (name, profile) in enumerate(PROFILES.items(), start=1):
        bus = f"bus-{number}"
        buses[bus] = {"gateway": "gateway-1", "transport": "tcp", "host": f"192.0.2.{number}"}
        devices[name] = {"bus": bus, "unit_id": 1, "profile": name, "circuit": "main"}
        devices[name] |= {"settings": dict(DECLARED[name])} if name in DECLARED else {}
        if profile.kind is DeviceKind.CHARGER:
            one = {"rating_a": 16}
            devices[name]["evses"] = one if profile.connectors == 1 else {"1": one, "2": one}
    main = {"voltage_v": 400, "rating_a": 400, "base_load_a": 10, "allocator": "gateway-1"}
    return {"buses": buses, "devices": devices, "circuits": {"main": main}, "site": {"limit_kva": 300}}


async def gathered(field: Field, *only: str) -> dict[str, Gathered]:
    async with field.opened() as access:
        devices = chosen(field.depot, "gateway-1", only, configured=False)
        return {one.device.name: one for one in await gather(field.depot, devices, access)}


def read_back(depot: Depot, found: Mapping[str, Gathered]) -> Depot:
    """Return the depot with what was gathered pasted into its file."""
    pasted = yaml.safe_load(text(depot, found.values()))
    return depot_of({**depot_document(depot), "meters": {}, **pasted})


@pytest.mark.anyio
async def test_each_kind_of_device_is_pasted_back_as_it_is_held(played: Played) -> None:
    async with played(**every_kind()) as field:
        found = await gathered(field)
        assert field.writes() == []
        assert {one.status for one in found.values()} == {Status.OK}
        again = read_back(field.depot, found)
        for name, declared in DECLARED.items():
            assert declared.items() <= again.devices[name].settings.items()
        for name, device in field.depot.devices.items():
            assert set(again.devices[name].settings) == set(PROFILES[name].settings)
            der_settings = plain(found[name])["der_settings"] or None
            assert (der_settings is not None) == (name == "sunspec_der")
            assert replace(again.devices[name], settings={}, serial_number=None, firmware=None) == replace(
                device, settings={}, der_settings=der_settings
            )
            shown = {point: str(value) for point, value in found[name].identity.items()}
            assert again.devices[name].serial_number == shown.get("serial_number")
            assert again.devices[name].firmware == shown.get("firmware")
        # What is declared from then on is what answers.
        assert {one.status for one in (await gathered(replace(field, depot=again))).values()} == {Status.OK}


def redeclared(field: Field, name: str, **fields: Any) -> Field:
    """Return the same devices, one of them declared otherwise."""
    other = replace(field.depot.devices[name], **fields)
    return replace(field, depot=replace(field.depot, devices={**field.depot.devices, name: other}))


@pytest.mark.anyio
async def test_identity_state_and_settings_are_told_apart(played: Played) -> None:
    async with played(**every_kind()) as field:
        keba = plain((await gathered(field, "keba_p30"))["keba_p30"])
        assert keba["identity"].keys() == {"serial_number", "firmware"}
        assert keba["state"].keys() == set(PROFILES["keba_p30"].poll)
        assert (keba["state"]["state"], keba["state"]["current_limit"]) == ("ready", 16.0)
        assert keba["settings"] == {"failsafe_current": 8.0, "failsafe_timeout": 45}
        assert (keba["status"], keba["changed"], keba["ieee1547"]) == ("ok", False, None)
        (der,) = (await gathered(field, "sunspec_der")).values()
        assert plain(der)["ieee1547"] == {"capable": True, "missing": []}
        assert der.identity["manufacturer"] == "DERMS Edge"


@pytest.mark.anyio
async def test_a_device_that_does_not_answer_leaves_the_others_and_is_named(played: Played) -> None:
    async with played() as field:
        field.twin.fault("yard-1", Fault(kind=FaultKind.SILENT))
        field.twin.fault("yard-2", Fault(kind=FaultKind.EXCEPTION, code=4))
        found = await gathered(field)
        assert {name: one.status.value for name, one in found.items()} == {
            "yard-1": "unreachable", "yard-2": "refused", "yard-3": "ok", "yard-4": "ok", "front-1": "ok",
            "front-2": "ok",
        }  # fmt: skip
        pasted = text(field.depot, found.values())
        assert "  # yard-1 unreachable: unit 1, read holding registers 257 to 259: no reply within 1 s\n" in pasted
        assert set(yaml.safe_load(pasted)["devices"]) == {"yard-3", "yard-4", "front-1", "front-2"}
        assert plain(found["yard-1"])["gathered"] == {}


@pytest.mark.anyio
async def test_to_another_device_nothing_is_written(played: Played) -> None:
    async with played() as field:
        serial_number = str((await gathered(field, "front-1"))["front-1"].identity["serial_number"])
        for name in ("front-1", "front-2"):
            field.holds(name, failsafe_timeout=45)
        meant = redeclared(redeclared(field, "front-1", serial_number=serial_number), "front-2", serial_number="17")
        done = await meant.run("front-*")
        assert (done["front-1"].status, done["front-2"].status) == (Status.CHANGED, Status.REFUSED)
        assert {write.bus for write in field.writes()} == {"front-1"}
        found = (await gathered(meant, "front-2"))["front-2"]
        other = found.identity["serial_number"]
        why = f"found serial number {other}, expected 17: another device answers here"
        assert done["front-2"].detail == found.detail == why
        assert (found.status, found.answered) == (Status.REFUSED, True)
        assert f"  # {why}\n" in text(field.depot, [found])


@pytest.mark.anyio
async def test_a_device_of_which_only_the_identity_is_declared_is_checked(played: Played) -> None:
    async with played() as field:
        bare = redeclared(field, "front-1", settings={})
        assert "front-1" not in await bare.run("front-*")
        meant = redeclared(bare, "front-1", serial_number="17")
        done = await meant.run("front-*")
        assert {name: one.status for name, one in done.items()} == {"front-1": Status.REFUSED, "front-2": Status.OK}
        serial_number = str((await gathered(field, "front-1"))["front-1"].identity["serial_number"])
        assert (await redeclared(bare, "front-1", serial_number=serial_number).run("front-1"))[
            "front-1"
        ].status is Status.OK


@pytest.mark.anyio
@pytest.mark.parametrize(("declared", "note"), [("1", ""), ("?", ""), ("1.14.*", "found firmware 1, expected 1.14.*")])
async def test_other_firmware_is_named_and_blocks_nothing(played: Played, declared: str, note: str) -> None:
    async with played() as field:
        field.holds("front-1", failsafe_timeout=45)
        meant = redeclared(field, "front-1", firmware=declared)
        assert (await gathered(meant, "front-1"))["front-1"].note == note
        done = (await meant.run("front-1"))["front-1"]
        assert (done.status, done.note) == (Status.CHANGED, note)


def device(profile: Profile, settings: Mapping[str, Value] | None = None, connectors: int = 1) -> Device:
    evses = tuple(
        Evse(
            name="a" if connectors == 1 else f"a/{number}", device="a", connector=number, circuit="main",
            phases=tuple(Phase), rating_a=16,
        )
        for number in range(1, connectors + 1)
    )  # fmt: skip
    return Device(
        name="a", kind=profile.kind, bus="line", unit_id=1, profile=profile.name, settings=settings or {}, evses=evses
    )


@pytest.mark.anyio
async def test_a_controller_that_cannot_do_ieee_1547_is_named_and_converged(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sunspec.discover

    async def lacking(*given: Any) -> sunspec.FoundMap:
        found = await whole(*given)
        return replace(found, models=tuple(model for model in found.models if model.id not in {711, 712}))

    monkeypatch.setattr(configured_device, "discover", lacking)
    async with played(**every_kind()) as field:
        note = "cannot do IEEE 1547-2018: found no SunSpec model 711 (frequency droop), 712 (watt-var)"
        done = (await field.run("sunspec_der"))["sunspec_der"]
        assert (done.status, done.note) == (Status.OK, note)
        found = await gathered(field, "sunspec_der", "sunspec_meter")
        assert plain(found["sunspec_der"])["ieee1547"] == {"capable": False, "missing": [711, 712]}
        assert found["sunspec_der"].note == note
        assert (plain(found["sunspec_meter"])["ieee1547"], found["sunspec_meter"].note) == (None, "")


def test_what_shows_no_serial_number_is_not_known_to_be_the_one_declared() -> None:
    declared = replace(device(PROFILES["keba_p30"]), serial_number="17", firmware="3.*")
    assert "found no serial number, expected 17" in identity.another(declared.serial_number, {"firmware": 3})
    assert identity.another(declared.serial_number, {"serial_number": 17}) == ""
    assert identity.another(None, {"serial_number": 17}) == ""
    assert identity.other_firmware(declared, {}) == "found no firmware, expected 3.*"


def test_what_cannot_be_declared_is_left_out_and_named() -> None:
    heidelberg = PROFILES["heidelberg_energy_control"]
    found: dict[str, Value] = {"failsafe_current": 3.0, "failsafe_timeout": 30.0, "standby": "unknown 7"}
    made = declaration(device(heidelberg), heidelberg, {}, found)
    assert made.document["settings"] == {"failsafe_timeout": 30}
    assert "failsafe_current: 3.0 A, expected 6 to 16 or 0 A" in made.remarks
    assert "standby: unknown 7, expected one of allowed, prevented" in made.remarks
    charx = PROFILES["phoenix_charx"]
    made = declaration(
        device(charx, connectors=2),
        charx,
        {"firmware": "[1]"},
        {"failsafe_current/1": 6, "failsafe_current/2": 8, "failsafe_timeout/1": 60, "failsafe_timeout/2": 60},
    )
    assert made.document["settings"] == {"failsafe_timeout": 60}
    assert "firmware" not in made.document
    assert made.remarks == (
        "failsafe_current: failsafe_current/1 6, failsafe_current/2 8; one value is declared for all connectors",
        "firmware: [1], which cannot be declared",
    )


def test_a_device_cannot_speak_outside_of_its_comment() -> None:
    keba = PROFILES["keba_p30"]
    found = Gathered(device=device(keba), status=Status.REFUSED, detail="no\nplugin: evil\x1b[2J\u2028x: y")
    depot = depot_of({**every_kind(), "plugin": "derms.edge.depot", "depot": "d", "gateways": {"gateway-1": {}}})
    assert yaml.safe_load(text(depot, [found])) == {"devices": {}}
    assert section("devices", []) == "devices: {}\n"


@st.composite
def held(draw: Any) -> tuple[str, dict[str, Value]]:
    """Return what a device of a built-in profile may hold: any raw value of each of its settings."""
    profile = PROFILES[draw(st.sampled_from([name for name in PROFILES if PROFILES[name].settings]))]
    values: dict[str, Value] = {}
    for name in profile.settings:
        point = profile.point(name)
        if isinstance(point, Point):
            words = draw(st.tuples(*[st.integers(0, 2**16 - 1)] * point.length))
            value = point.decode(words)
        else:
            value = draw(st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6) | st.text(max_size=8))
        if value is not None and draw(st.booleans()):
            values[name] = value
    return profile.name, values


@given(held(), st.text(max_size=12), st.integers(0, 2**32))
def test_whatever_a_device_shows_its_declaration_is_taken(
    shown: tuple[str, dict[str, Value]], firmware: str, serial_number: int
) -> None:
    """Each setting is declared as it was read, or named; the form and the values are what a depot file may hold."""
    profile, values = PROFILES[shown[0]], shown[1]
    found: dict[str, Value] = {
        name: value
        for name, value in (("firmware", firmware), ("serial_number", serial_number))
        if name in profile.points or name in profile.sunspec_points
    }
    connectors = 1 if profile.kind is DeviceKind.CHARGER else 0
    made = declaration(device(profile, connectors=connectors), profile, found, values)
    pasted = yaml.safe_load(made.text())["a"]
    declared = pasted.get("settings", {})
    named = {remark.partition(":")[0] for remark in made.remarks}
    assert set(declared) | named >= set(values)
    assert all(
        declared[name] == pytest.approx(values[name]) for name in declared if not isinstance(declared[name], str)
    )
    document = {
        **every_kind(),
        "plugin": "derms.edge.depot",
        "depot": "d",
        "gateways": {"gateway-1": {}},
        "devices": {"a": {**pasted, "bus": "bus-1"}},
    }
    # A watchdog that a bus cannot feed, and a fallback that a circuit does not bear, are told of the whole depot.
    problems = [str(one) for one in check(document, PROFILES)[1] if one.path[:1] == ("devices",)]
    assert [one for one in problems if "watchdog" not in one] == []
