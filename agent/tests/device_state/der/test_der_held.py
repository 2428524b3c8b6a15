# SPDX-License-Identifier: Apache-2.0
"""What a DER holds, read back into the depot file's `der_settings`: pasted there, nothing is left to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import yaml
from agent.tests.device_state.der.test_der_converge import EVERYTHING, profiles
from hypothesis import event, given, settings
from hypothesis import strategies as st

from derms_agent.device_state.declaration import declaration
from derms_agent.device_state.der.converge import converge
from derms_agent.device_state.der.held import Held, borne, held
from derms_agent.device_state.der.results import DerResult
from derms_agent.device_state.results import Status
from derms_agent.device_state.run import depot_of
from derms_agent.drivers.sunspec import FoundMap, discover
from derms_agent.grid_code import parse
from derms_agent.grid_code.functions import FUNCTIONS
from derms_agent.grid_code.settings import Number, settings_of

if TYPE_CHECKING:
    from agent.tests.device_state.der.conftest import Bench, Kit

CIRCUITS = {"main": {"voltage_v": 400, "rating_a": 250, "base_load_a": 200}}
CONTROLS = {("active_power_limit", "limit_percent"), ("active_power_limit", "enabled")}
MODELS = (1, 701, 702, 703, 704, 705, 706, 707, 708, 709, 710, 711, 712, 713, 802)


def found_in(bench: Bench) -> FoundMap:
    return anyio.run(discover, bench.unit)


def settings_in(bench: Bench) -> Held:
    return held(found_in(bench), bench.unit.profile)


def pasted(kit: Kit, bench: Bench, shown: Held) -> Mapping[str, Any] | None:
    """Return the `der_settings` of a depot file into which a device was pasted as its text."""
    depot = kit.depot()[0]
    own = borne(depot.circuits, {kit.name: ("main", shown)})[kit.name]
    text = declaration(depot.devices[kit.name], bench.unit.profile, {}, {}, own).text()
    document = {
        "plugin": "derms.edge.depot",
        "depot": "small",
        "site": {"limit_kva": 160},
        "gateways": {"gateway-1": {}},
        "circuits": CIRCUITS,
        "buses": {"bus-1": {"gateway": "gateway-1", "transport": "tcp", "host": "192.0.2.1"}},
        "devices": yaml.safe_load(text),
    }
    return depot_of(document).devices[kit.name].der_settings


def dry_run(kit: Kit, bench: Bench, declared: Mapping[str, Any]) -> DerResult:
    profile = parse(kit.name, declared, bench.unit.profile)
    result = anyio.run(lambda: converge(kit.name, bench.unit, profile, check=True, pace=kit.pace))
    assert not bench.twin.writes
    return result


def expect_no_drift(kit: Kit, bench: Bench) -> Held:
    shown = settings_in(bench)
    declared = pasted(kit, bench, shown)
    if declared is not None:
        result = dry_run(kit, bench, declared)
        assert (result.status, result.changed, result.detail) == (Status.OK, False, "")
    return shown


def test_everything_that_was_brought_in_is_read_back(bench: Bench, kit: Kit) -> None:
    wanted = {name: own for name, own in EVERYTHING.items() if name != "active_power_limit"}
    done = anyio.run(lambda: converge(kit.name, bench.unit, parse("x", wanted), check=False, pace=kit.pace))
    assert done.status is Status.CHANGED
    bench.twin.writes.clear()
    shown = expect_no_drift(kit, bench)
    assert shown.remarks == ()
    for name, own in wanted.items():
        assert own.items() <= shown.settings[name].items(), name
    # What control owns cannot be declared, and what the twin's controller does not have is not there.
    assert "active_power_limit" not in shown.settings
    assert "autonomous_reference_s" not in shown.settings["volt_var"]
    assert shown.settings["volt_var"]["autonomous_reference"] is False


def test_a_declared_setting_that_is_not_there_is_named(bench: Bench) -> None:
    bench.image.clear(703, "ESRmpTms")
    found = found_in(bench)
    without = replace(found, models=tuple(model for model in found.models if model.id != 711))
    declared = {"enter_service": {"ramp_s": 5, "delay_s": 10}, "frequency_droop": {"enabled": True}}
    assert held(without, bench.unit.profile, declared).remarks == (
        "der_settings: frequency_droop.enabled: declared, and the device does not have it",
        "der_settings: enter_service.ramp_s: declared, and the device does not have it",
    )


def test_what_cannot_be_declared_is_named_with_the_reason(bench: Bench, kit: Kit) -> None:
    image = bench.image
    image.set(705, "Crv.1.Pt.2.Var", 60)  # it rises
    image.set_raw(706, "Crv.1.ActPt", 9)
    image.set_raw(712, "Crv.1.DeptRef", 77)
    image.set(703, "ESVLo", 106)
    image.set(703, "ESVHi", 105)
    for path in ("PFWInjEna", "PFWAbsEna", "VarSetEna"):
        image.set_raw(704, path, 1)
    image.set(702, "WMax", image.get(702, "WMaxRtg") + 1000)
    shown = expect_no_drift(kit, bench)
    one = "of constant_power_factor, constant_reactive_power, volt_var, watt_var is on at a time"
    for remark in (
        "volt_var.points: found [[92.0, 44.0], [98.0, 60.0]",
        "volt_watt.points",
        "watt_var.dept_ref: found 'unknown 77', expected one of w_max_pct",
        "enter_service.voltage_low_percent: found 106.0, expected less than voltage_high_percent, which is 105",
        f"constant_reactive_power.enabled: found True, expected false beside constant_power_factor: one {one}",
        "limits.active_power_w: found 51000, expected at most 50000 W, which is WMaxRtg",
    ):
        assert any(one.startswith(f"der_settings: {remark}") for one in shown.remarks), (remark, shown.remarks)
    assert "points" not in shown.settings["volt_var"]
    assert shown.settings["enter_service"]["voltage_high_percent"] == 105
    assert shown.settings["constant_power_factor"]["enabled"] is True
    assert "enabled" not in shown.settings["constant_reactive_power"]


@pytest.mark.parametrize("base_load_a", [200.0, 10.0])
def test_limits_that_its_circuit_does_not_bear_are_named_and_left_out(
    bench: Bench, kit: Kit, base_load_a: float
) -> None:
    circuits = {"main": replace(kit.depot()[0].circuits["main"], base_load_a=(base_load_a,) * 3)}
    shown = borne(circuits, {kit.name: ("main", settings_in(bench))})[kit.name]
    if base_load_a > 100:
        assert (shown.settings["limits"]["charge_power_w"], shown.remarks) == (50_000, ())
    else:
        assert "limits" not in shown.settings
        why = "expected at most 10 A, its base_load_a: what DERs draw is part of that"
        assert shown.remarks == (f"der_settings: limits: found icu-1 to draw 72.17 A from circuit main, {why}",)


def _values(field: Any) -> st.SearchStrategy[int]:
    """Draw what a point's registers may hold, most of it near to what makes sense."""
    whole = st.integers(0, 2 ** (16 * field.size) - 1)
    if field.type == "sunssf":
        return st.integers(-4, 3) | st.sampled_from([-0x8000, 11])
    if field.symbols:
        return st.sampled_from(sorted(field.symbols)) | whole
    return st.integers(0, 1200) | whole


@st.composite
def drifts(draw: st.DrawFn, fields: Mapping[tuple[int, str], Any]) -> dict[tuple[int, str], int]:
    """Draw values for some of the points of models 702 to 712 that hold settings in force, scales included."""
    points = [
        key
        for key, field in fields.items()
        if 702 <= key[0] <= 712
        and not any(key[1].startswith(f"{group}.{number}.") for group in ("Crv", "Ctl") for number in (2, 3))
        and (field.writable or field.type == "sunssf")
    ]
    chosen = draw(st.lists(st.sampled_from(points), max_size=12, unique=True))
    return {key: draw(_values(fields[key])) for key in chosen}


@settings(max_examples=40)
@given(declared=profiles(), data=st.data(), lacking=st.sets(st.sampled_from(range(702, 713)), max_size=3))
def test_whatever_is_held_is_declared_as_it_is_or_named(
    *, kit: Kit, declared: dict[str, Any], data: st.DataObject, lacking: set[int]
) -> None:
    """Random settings by way of der_settings, then random registers beneath them; some models are not there."""
    bench = kit.bench([model for model in MODELS if model not in lacking])
    anyio.run(lambda: converge(kit.name, bench.unit, parse("x", declared), check=False, pace=kit.pace))
    bench.twin.writes.clear()
    image, drifted = bench.image, data.draw(drifts(bench.image.fields))
    for (model, path), value in drifted.items():
        image.set_raw(model, path, value)
    shown = expect_no_drift(kit, bench)
    event(f"{min(len(shown.remarks), 5)} remarks")
    assert {FUNCTIONS[name].model for name in shown.settings}.isdisjoint(lacking)
    rescaled = {model for model, path in drifted if image.fields[model, path].type == "sunssf"}
    for name, function in FUNCTIONS.items():
        there = function.model not in lacking
        for key, setting in settings_of(function).items():
            named = any(remark.startswith(f"der_settings: {name}.{key}") for remark in shown.remarks)
            is_declared = key in shown.settings.get(name, {})
            assert not (named and is_declared), (name, key)
            assert there or not (named or is_declared)
            assert not ((name, key) in CONTROLS and is_declared)
            if there and isinstance(setting, Number) and (name, key) not in CONTROLS and function.model not in rescaled:
                at = setting.path if function.group is None else f"{function.group}.1.{setting.path}"
                assert (named or is_declared) == (not math.isnan(image.get(function.model, at))), (name, key)
