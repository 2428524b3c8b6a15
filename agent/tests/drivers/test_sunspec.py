# SPDX-License-Identifier: Apache-2.0
"""SunSpec devices whose registers are laid out here, by hand, from the models' definitions alone."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from derms_agent import profiles
from derms_agent.drivers.errors import NoAnswer, Refused
from derms_agent.drivers.interface import Priority
from derms_agent.drivers.modbus_device import ModbusDevice, Pace
from derms_agent.drivers.register_map import LayoutChanged
from derms_agent.drivers.settings import Outcome
from derms_agent.drivers.sunspec import NotSunSpec, discover
from derms_agent.drivers.sunspec_model import lay_out
from derms_agent.drivers.unit import Unit
from derms_agent.model import ProofKind, Quality, Reading, Setpoint
from derms_agent.profiles.profile import Control, Profile, Quantity

if TYPE_CHECKING:
    from agent.tests.drivers.conftest import Kit, MemoryBus, Request

pytestmark = pytest.mark.anyio

DER = (1, 701, 702, 703, 704, 705, 706, 707, 708, 709, 710, 711, 712, 713)
FORMATS = {1: "H", 2: "I", 4: "Q"}
UNIMPLEMENTED = {"int": 0x8000, "sunssf": 0x8000, "pad": 0x8000}
QUICK = Pace(poll_s=0.02, slow_s=0.05, settings_s=0.1, freshness_s=0.3, verify_s=0.1, verify_every_s=0.01)

VALUES: Mapping[int, Mapping[str, Any]] = {
    1: {"Mn": "Example Power", "Md": "ICU-50", "Vr": "1.2.3", "SN": "4711"},
    701: {
        "InvSt": 3,  # running
        "ConnSt": 1,
        "Alrm": 0,
        "W": 12345,
        "Var": -678,
        "Hz": 49987,
        "AL1": 181,
        "LLV": 4021,
        "VL1": 2321,
        "TotWhInj": 987654321,
        "TmpCab": -55,
        "W_SF": 1,
        "Var_SF": 0,
        "Hz_SF": -3,
        "A_SF": -1,
        "V_SF": -1,
        "TotWh_SF": 1,
        "Tmp_SF": -1,
    },
    702: {"WMaxRtg": 5000, "W_SF": 1},
    703: {"ES": 1},
    704: {
        "WMaxLimPctEna": 1,
        "WMaxLimPct": 885,
        "WMaxLimPct_SF": -1,
        "WSet": -2500,
        "WSetRvrt": 0,
        "WSetRvrtTms": 60,
        "WSet_SF": 1,
        "PFWInj.PF": 95,
        "PF_SF": -2,
    },
    705: {"NPt": 4, "NCrv": 2, "Crv[1].Pt[2].V": 980, "Crv[2].Pt[4].Var": -44, "V_SF": -1, "DeptRef_SF": 0},
    706: {"NPt": 2, "NCrv": 2},
    707: {"NPt": 1, "NCrvSet": 1},
    708: {"NPt": 1, "NCrvSet": 1},
    709: {"NPt": 1, "NCrvSet": 1},
    710: {"NPt": 1, "NCrvSet": 1},
    711: {"NCtl": 1},
    712: {"NPt": 2, "NCrv": 1},
    713: {"SoC": 735, "Pct_SF": -1, "WHAvail": 120},
    203: {"W": -4321, "W_SF": 0, "Hz": 5001, "Hz_SF": -2, "AphA": 63, "A_SF": -1, "PhVphA": 2305, "V_SF": -1},
}


def model_words(model: int, values: Mapping[str, Any]) -> list[int]:
    """Return a model's registers: what `values` has, and "not implemented" for the rest."""
    text = resources.files("sunspec2").joinpath(f"models/json/model_{model}.json").read_text()
    words: list[int] = []

    def put(group: Mapping[str, Any], prefix: str) -> None:
        for point in group.get("points", ()):
            words.extend(point_words(point, values.get(prefix + point["name"])))
        for inner in group.get("groups", ()):
            count = inner.get("count")
            times = (
                [""] if count is None else [f"[{index + 1}]" for index in range(values.get(count, 0) if count else 0)]
            )
            for index in times:
                put(inner, f"{prefix}{inner['name']}{index}.")

    put(json.loads(text)["group"], "")
    words[0], words[1] = model, len(words) - 2
    return words


def point_words(point: Mapping[str, Any], value: Any) -> Sequence[int]:
    size, type_ = point["size"], point["type"]
    if type_ == "string":
        return struct.unpack(f">{size}H", (value or "").encode().ljust(2 * size, b"\0"))
    if value is None:
        kind = type_.rstrip("0123456789")
        if kind in {"acc", "ipaddr", "eui", "float"} or size not in FORMATS:
            return (0x7FC0, 0) if kind == "float" else (0,) * size
        return (UNIMPLEMENTED.get(kind, 0xFFFF), *(0xFFFF if kind not in UNIMPLEMENTED else 0,) * (size - 1))
    code = FORMATS[size]
    return struct.unpack(f">{size}H", struct.pack(f">{code if value >= 0 else code.lower()}", value))


def image(models: Sequence[int] = DER, end: Sequence[int] = (0xFFFF, 0), **changed: Mapping[str, Any]) -> list[int]:
    words = [0x5375, 0x6E53]
    for model in models:
        words += model_words(model, {**VALUES.get(model, {}), **changed.get(f"m{model}", {})})
    return [*words, *end]


def opened(
    kit: Kit,
    words: Sequence[int],
    *,
    base: int = 40000,
    profile: Profile | None = None,
    strict: bool = True,
    evses: int = 0,
) -> tuple[ModbusDevice, MemoryBus]:
    bus = kit.bus(strict=strict)
    bus.put(base, *words)
    profile = profiles.load("sunspec_der") if profile is None else profile
    device = kit.device(profile.name, name="icu")
    device = replace(device, evses=tuple(replace(one, give_back_a=one.rating_a) for one in device.evses[:evses]))
    return ModbusDevice(device, profile, bus, pace=QUICK), bus


async def read_once(driver: ModbusDevice) -> Reading:
    for group in driver._groups:
        group.due_s = -1.0
    await driver._poll_once(lambda _: None)
    return driver.reading()


@pytest.mark.parametrize("strict", [True, False], ids=["refuses to be read past its end", "reads zeros past its end"])
@pytest.mark.parametrize("end", [(0xFFFF, 0), (0xFFFF,)], ids=["end with a length", "end without"])
async def test_fourteen_models_take_sixteen_requests_at_the_most(kit: Kit, strict: bool, end: tuple[int, ...]) -> None:
    words = image(end=end)
    assert 590 <= len(words) <= 700
    driver, bus = opened(kit, words, strict=strict)
    await driver.find_map()
    assert driver.found is not None
    assert [model.id for model in driver.found.models] == list(DER)
    assert len(bus.requests) <= 16
    assert max(request.count for request in bus.requests) == 125
    # All that was found is what lies there.
    at = 2
    for model in driver.found.models:
        assert (model.address, list(model.words)) == (40000 + at, words[at : at + model.length + 2])
        at += model.length + 2


async def test_a_device_that_takes_one_model_a_request_is_read_too(kit: Kit) -> None:
    words = image()
    starts, at = [], 2
    while words[at] != 0xFFFF:
        starts.append(40000 + at)
        at += words[at + 1] + 2
    driver, bus = opened(kit, words)

    def by_model(request: Request) -> Refused | None:
        # A read may go on into the next header, no further.
        inside = [start for start in starts if request.address < start < request.address + request.count - 2]
        return Refused("across models", 2) if len(inside) > 0 else None

    bus.fault = by_model
    await driver.find_map()
    assert driver.found is not None
    assert [model.id for model in driver.found.models] == list(DER)
    assert len(bus.requests) <= 2 * len(DER)


async def test_a_device_that_answers_nothing_past_its_end_is_read_too(kit: Kit) -> None:
    words = image(models=(1, 701))
    driver, bus = opened(kit, words, strict=False)
    bus.fault = lambda request: NoAnswer("no reply") if request.address + request.count > 40000 + len(words) else None
    await driver.find_map()
    assert driver.found is not None
    assert [model.id for model in driver.found.models] == [1, 701]


@pytest.mark.parametrize("base", [0, 50000])
async def test_the_other_base_addresses_are_found(kit: Kit, base: int) -> None:
    driver, _ = opened(kit, image(models=(1,)), base=base)
    await driver.find_map()
    assert driver.found is not None
    assert driver.found.base == base


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([0x1234, 0x5678, 1, 66], "0x1234 0x5678"),
        ([0x5375, 0x6E53, *[700, 1, 0] * 4000], "no end"),
        ([0x5375, 0x6E53, 1, 60000], "within 0 to 65535"),
    ],
)
async def test_what_is_no_map_is_told_as_such(kit: Kit, words: list[int], message: str) -> None:
    driver, _ = opened(kit, words, strict=False)
    with pytest.raises(NotSunSpec, match=message):
        await driver.find_map()


async def test_golden_values_with_consumption_positive(kit: Kit) -> None:
    driver, _ = opened(kit, image())
    values = (await read_once(driver)).values
    expected = {
        "manufacturer": "Example Power",
        "model_name": "ICU-50",
        "firmware": "1.2.3",
        "serial_number": "4711",
        "state": "running",
        "active_power": -123450,  # it generates
        "reactive_power": 678,
        "frequency": 49.987,
        "current_l1": 18.1,
        "voltage_l1": 232.1,
        "temperature": -5.5,
        "energy_injected": 9876543210,
        "rated_power": 50000,
        "generation_limit": 88.5,
        "power_setpoint": 25000,
        "failsafe_timeout": 60,
        "soc": 73.5,
    }
    assert {name: values.get(name) for name in expected} == expected
    # Not implemented, and a model that the device has not: absent, not a number.
    for name in ("apparent_power", "current_l2", "energy", "soc_reserve", "dc_power"):
        assert name not in values
    # Its scale factor is not implemented, so nobody knows what 120 means.
    assert "energy_available" not in values


async def test_points_in_groups_have_paths(kit: Kit) -> None:
    words = image()
    found = await discover(Unit(opened(kit, words)[1], 1, profiles.load("sunspec_der")))
    by_id = {model.id: model for model in found.models}
    curves = lay_out(705, by_id[705].words)
    assert by_id[705].words[curves["Crv[1].Pt[2].V"].offset] == 980
    assert by_id[705].words[curves["Crv[2].Pt[4].Var"].offset] == 0x10000 - 44
    assert "Crv[3].Pt[1].V" not in curves
    assert by_id[704].words[lay_out(704, by_id[704].words)["PFWInj.PF"].offset] == 95


def test_a_count_that_cannot_be_ends_with_the_model() -> None:
    words = model_words(705, {"NPt": 4, "NCrv": 2})
    names = [point["name"] for point in definition_points(705)]
    words[names.index("NCrv")] = 60000
    words[names.index("NPt")] = 60000
    fields = lay_out(705, words)
    assert max(field.offset + field.length for field in fields.values()) <= len(words)


def definition_points(model: int) -> list[dict[str, Any]]:
    text = resources.files("sunspec2").joinpath(f"models/json/model_{model}.json").read_text()
    return json.loads(text)["group"]["points"]  # type: ignore[no-any-return]


async def test_polls_read_the_needed_models_and_no_other(kit: Kit) -> None:
    driver, bus = opened(kit, image())
    await driver.find_map()
    assert driver.found is not None
    bus.requests.clear()
    await read_once(driver)
    wanted = {point.model for point in profiles.load("sunspec_der").sunspec_points.values()}
    for request in bus.requests:
        (model,) = [
            model
            for model in driver.found.models
            if model.address <= request.address and request.address + request.count <= model.address + model.length + 2
        ]
        assert model.id in wanted
    bus.requests.clear()
    await driver._poll_once(lambda _: None)
    # Each second: 701, 704 and 713, of which the first does not fit one request.
    assert len(bus.requests) <= 4


async def test_a_scale_factor_is_taken_along_with_each_value(kit: Kit) -> None:
    driver, bus = opened(kit, image())
    assert (await read_once(driver)).values["active_power"] == -123450
    words = image(m701={"W_SF": 2})
    bus.put(40000, *words)
    assert (await read_once(driver)).values["active_power"] == -1234500
    bus.put(40000, *image(m701={"W_SF": 77}))
    assert "active_power" not in (await read_once(driver)).values


async def test_models_that_moved_are_found_again_before_anything_is_believed(kit: Kit) -> None:
    driver, bus = opened(kit, image())
    await read_once(driver)
    bus.put(40000, *image(models=(1, 702, 701, 703, 704, 713)))
    moved = await read_once(driver)
    assert moved.problem is not None
    assert "expected model 701" in moved.problem
    again = await read_once(driver)
    assert (again.quality, again.values["active_power"]) == (Quality.GOOD, -123450)


async def test_a_setting_is_never_written_where_a_model_was_before(kit: Kit) -> None:
    driver, bus = opened(kit, image())
    await driver.find_map()
    bus.put(40000, *image(models=(1, 701, 703, 704, 713)))
    with pytest.raises(LayoutChanged, match="expected model 704"):
        await driver.write_settings({"failsafe_timeout": 30})
    assert not bus.writes
    (result,) = await driver.write_settings({"failsafe_timeout": 30})
    assert result.outcome is Outcome.CHANGED


async def test_a_setting_is_scaled_and_nothing_else_is_written(kit: Kit) -> None:
    driver, bus = opened(kit, image())
    await driver.find_map()
    assert driver.found is not None
    model = next(model for model in driver.found.models if model.id == 704)
    fields = lay_out(704, model.words)
    results = await driver.write_settings({"failsafe_power": 12345, "enter_service": "Disabled"})
    assert [result.outcome for result in results] == [Outcome.CHANGED, Outcome.CHANGED]
    # In tens of W, negative where it consumes, and towards zero.
    first, second = bus.writes
    assert (first.address, struct.pack(">2H", *first.words)) == (
        model.address + fields["WSetRvrt"].offset,
        struct.pack(">i", -1234),
    )
    assert (second.count, second.words) == (1, (0,))
    assert results[0].after == 12340
    again = await driver.write_settings({"failsafe_power": 12345})
    assert again[0].outcome is Outcome.OK


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generation_limit_fallback": 101}, "0 to 100 percent"),
        ({"failsafe_power": 1e12}, "fits int32"),
        ({"enter_service": "perhaps"}, "one of disabled, enabled"),
        ({"generation_limit": 50}, "expected a setting"),
    ],
)
async def test_values_that_cannot_be_are_refused(kit: Kit, changes: dict[str, Any], message: str) -> None:
    driver, bus = opened(kit, image(m704={"WMaxLimPctRvrt": 1000}))
    (result,) = await driver.write_settings(changes)
    assert result.outcome is Outcome.REFUSED
    assert message in result.detail
    assert not bus.writes


async def test_a_setpoint_reaches_a_sunspec_point(kit: Kit) -> None:
    profile = profiles.load("sunspec_der")
    point = replace(profile.sunspec_points["power_setpoint"], minimum=-11000, maximum=11000)
    profile = replace(
        profile,
        sunspec_points={**profile.sunspec_points, "power_setpoint": point},
        control=Control(point="power_setpoint", quantity=Quantity.POWER, minimum=0, step=10, gives_back=True),
    )
    driver, bus = opened(kit, image(), profile=profile, evses=1)
    proof = await driver.apply(Setpoint(evse="icu", p_w=7777))
    assert (proof.kind, proof.in_force) == (ProofKind.READ_BACK, 7770)
    assert bus.writes[-1].priority is Priority.SHED
    proof = await driver.apply(Setpoint(evse="icu", p_w=-5555))
    assert (proof.kind, proof.in_force) == (ProofKind.READ_BACK, -5550)  # nor does it give back more than that
    proof = await driver.apply(Setpoint(evse="icu", p_w=-99_999))
    assert (proof.kind, proof.in_force) == (ProofKind.READ_BACK, -11_000)


async def test_a_set_point_of_704_is_its_value_then_what_puts_it_in_force(kit: Kit) -> None:
    driver, bus = opened(kit, image(), evses=1)
    registers = await driver.find_map()
    names = ("power_setpoint", "power_setpoint_mode", "power_setpoint_enabled")
    at = {name: registers.spans(name)[0].address for name in names}
    for watts, words in ((4_321.0, -430), (-4_321.0, 430), (99.0, 0), (-99.0, 0), (0.0, 0)):
        written = len(bus.writes)
        proof = await driver.apply(Setpoint(evse="icu", p_w=watts))
        assert (proof.kind, proof.in_force) == (ProofKind.READ_BACK, -10 * words)
        assert [(write.address, write.words) for write in bus.writes[written:]] == [
            (at["power_setpoint"], ((words >> 16) & 0xFFFF, words & 0xFFFF)),
            (at["power_setpoint_mode"], (1,)),
            (at["power_setpoint_enabled"], (1,)),
        ]


async def test_of_a_set_point_that_is_replaced_meanwhile_neither_side_of_zero_stands(kit: Kit) -> None:
    driver, _ = opened(kit, image(), evses=1)
    await driver.apply(Setpoint(evse="icu", p_w=-4_000))
    (limit,) = driver._limits.values()
    for watts, stands in ((-5_000.0, -4_000.0), (-3_000.0, -3_000.0), (2_000.0, 0.0)):
        limit.wanted = -4_000.0
        driver.begin(Setpoint(evse="icu", p_w=watts))
        assert limit.wanted == stands


async def test_a_meter_is_read_from_whichever_model_it_has(kit: Kit) -> None:
    driver, _ = opened(kit, image(models=(1, 203)), profile=profiles.load("sunspec_meter"))
    values = (await read_once(driver)).values
    assert (values["active_power"], values["frequency"], values["current_l1"]) == (-4321, 50.01, 6.3)


async def test_points_that_control_needs_and_the_device_has_not_are_told(kit: Kit) -> None:
    driver, _ = opened(kit, image(models=(1, 701)))
    reading = await read_once(driver)
    assert reading.quality is Quality.GOOD
    assert reading.problem == (
        "the device has no power_setpoint, power_setpoint_mode, power_setpoint_enabled, generation_limit, soc"
    )


async def test_discovery_is_tried_again_when_the_device_comes_back(kit: Kit) -> None:
    driver, bus = opened(kit, image())
    bus.fault = lambda _: NoAnswer("no reply")
    readings: list[Reading] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(driver.run, readings.append)
        with anyio.fail_after(5):
            while len(readings) < 3:
                await anyio.sleep(0.01)
            assert {reading.quality for reading in readings} == {Quality.BAD}
            bus.fault = None
            while readings[-1].quality is not Quality.GOOD:
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()


def test_definitions_are_those_of_the_package_and_not_of_the_current_directory(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model_713.json").write_text('{"group": {"name": "forged", "points": []}}')
    monkeypatch.chdir(tmp_path)
    from derms_agent.drivers.sunspec_model import definition  # noqa: PLC0415

    definition.cache_clear()
    found = definition(713)
    assert found is not None
    assert found["name"] != "forged"
