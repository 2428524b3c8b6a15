# SPDX-License-Identifier: Apache-2.0
"""The SunSpec devices, decoded by pysunspec2, which shares no code with the twin's own writer."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from sunspec2.modbus.client import SunSpecModbusClientDevice

from derms_agent.model import Phase
from derms_agent.profiles.point import Table
from derms_agent.twin import Arrivals, Fault, FaultKind, Refusal, Rehearsal, Scenario, VehicleType
from derms_agent.twin.actions import SetCharge, SetFrequency

if TYPE_CHECKING:
    from agent.tests.twin.conftest import MakeDepot

NOBODY = Scenario(arrivals=Arrivals.NONE, base_load_share=1.0)
VAN = VehicleType(name="van", capacity_wh=75_000, power_w=22_000, lag_s=1)
HOLDING = Table.HOLDING


class Reader(SunSpecModbusClientDevice):  # type: ignore[misc]
    """pysunspec2's device with its socket taken out."""

    def __init__(self, twin: Rehearsal, bus: str) -> None:
        super().__init__()
        self.twin, self.bus = twin, bus

    def connect(self, *_args: object, **_kwargs: object) -> None: ...

    def disconnect(self) -> None: ...

    def read(self, address: float, count: float, *_args: object) -> bytes:
        # The library computes both with a division, so that they come as floats.
        words: list[int] = []
        address, count = int(address), int(count)
        while count:
            size = min(count, 125)
            words += self.twin.read(self.bus, 1, HOLDING, address, size)
            address, count = address + size, count - size
        return struct.pack(f">{len(words)}H", *words)

    def write(self, address: int, content: bytes) -> None:
        self.twin.write(self.bus, 1, HOLDING, address, struct.unpack(f">{len(content) // 2}H", content))

    def point(self, model: int, name: str) -> Any:
        found = self.models[model][0].points[name]
        found.read()
        return found.cvalue


def reader(twin: Rehearsal, bus: str) -> Reader:
    device = Reader(twin, bus)
    device.scan()
    return device


def test_the_first_registers(make_depot: MakeDepot) -> None:
    """SunSpec Device Information Model Specification: "SunS", then the common model, 66 long."""
    twin = Rehearsal(make_depot("sunspec_der"), scenario=NOBODY)
    assert twin.read("bus-1", 1, HOLDING, 40000, 4) == (0x5375, 0x6E53, 1, 66)
    for address, table in ((39999, HOLDING), (0, HOLDING), (40000, Table.INPUT)):
        with pytest.raises(Refusal):
            twin.read("bus-1", 1, table, address, 4)


def test_all_models_are_found_in_order_up_to_the_end(make_depot: MakeDepot) -> None:
    twin = Rehearsal(make_depot("sunspec_der", "sunspec_meter"), scenario=NOBODY)
    models = [model.model_id for model in reader(twin, "bus-1").model_list]
    assert models == [1, *range(701, 715), 802]
    assert [model.model_id for model in reader(twin, "bus-2").model_list] == [1, 203]


def test_the_meter_shows_what_flows(make_depot: MakeDepot) -> None:
    depot = make_depot("heidelberg_energy_control", "sunspec_meter", base_load_a=(10, 20, 30))
    first = depot.devices["device-1"]
    single = replace(first, evses=(replace(first.evses[0], phases=(Phase.L2,)),))
    twin = Rehearsal(replace(depot, devices={**depot.devices, "device-1": single}), scenario=NOBODY)
    twin.plug_in("device-1", VAN, 0.2)
    twin.write("bus-1", 1, HOLDING, 261, (100,))
    for _ in range(360):
        twin.read("bus-1", 1, HOLDING, 261, 1)
        twin.advance(10)
    meter = reader(twin, "bus-2")
    volts = 400 / 3**0.5
    assert [meter.point(203, f"Aph{phase}") for phase in "ABC"] == pytest.approx([10, 30, 30], abs=0.11)
    assert meter.point(203, "PhVphA") == pytest.approx(volts, abs=0.1)
    assert meter.point(203, "W") == pytest.approx(70 * volts, abs=20)
    assert meter.point(203, "WphB") == pytest.approx(30 * volts, abs=20)
    assert meter.point(203, "Hz") == 50
    # An hour of base load, and of the vehicle but for its first seconds.
    assert meter.point(203, "TotWhImp") == pytest.approx(70 * volts, rel=0.005)
    # An accumulator that never counted is not told from one that is not there.
    assert meter.point(203, "TotWhExp") is None


def test_a_setpoint_charges_and_discharges_and_reverts(make_depot: MakeDepot) -> None:
    twin = Rehearsal(make_depot("sunspec_der", "sunspec_meter", settings={}), scenario=NOBODY)
    der, meter = reader(twin, "bus-1"), reader(twin, "bus-2")
    controls = der.models[704][0]

    def put(**values: float) -> None:
        for name, value in values.items():
            controls.points[name].cvalue = value
            controls.points[name].write()

    put(WSet=20_000, WSetRvrt=-5_000, WSetRvrtTms=60, WSetEna=1)
    twin.advance(10)
    assert der.point(701, "W") == pytest.approx(20_000, abs=10)
    assert meter.point(203, "W") == pytest.approx(-20_000, abs=40)
    assert meter.point(203, "Aph" + "A") == pytest.approx(20_000 / 3 / 231, abs=0.2)
    assert 45 <= der.point(704, "WSetRvrtRem") <= 55
    twin.advance(3600 - 10)
    assert der.point(701, "W") == pytest.approx(-5_000, abs=10)
    assert der.point(713, "SoC") > 50
    put(VarSet=8_000, VarSetMod=4, VarSetEna=1, WMaxLimPct=10, WMaxLimPctEna=1, WSet=20_000, WSetEna=1)
    twin.advance(10)
    assert der.point(701, "W") == pytest.approx(5_000, abs=10)
    assert der.point(701, "Var") == pytest.approx(8_000, abs=10)


def test_a_curve_is_adopted_and_the_first_is_read_only(make_depot: MakeDepot) -> None:
    twin = Rehearsal(make_depot("sunspec_der"), scenario=NOBODY)
    der = reader(twin, "bus-1")
    model = der.models[705][0]
    second = model.groups["Crv"][1]
    second.groups["Pt"][0].points["V"].cvalue = 93.5
    model.write()
    first = model.groups["Crv"][0].groups["Pt"][0].points["V"]
    model.read()
    assert first.cvalue == 92
    first.cvalue = 90
    with pytest.raises(Refusal):
        model.write()
    model.points["AdptCrvReq"].cvalue = 2
    model.points["AdptCrvReq"].write()
    assert der.point(705, "AdptCrvRslt") == 0
    twin.advance(2)
    assert der.point(705, "AdptCrvRslt") == 1
    model.read()
    assert first.cvalue == 93.5
    model.points["AdptCrvReq"].cvalue = 9
    model.points["AdptCrvReq"].write()
    twin.advance(2)
    assert der.point(705, "AdptCrvRslt") == 2


def test_droop_follows_a_frequency_trace(make_depot: MakeDepot) -> None:
    """49.8 Hz is 0.164 Hz below the deadband of 0.036 Hz; with k = 0.05, 6.56 % of 50 kW are injected: 3,280 W."""
    twin = Rehearsal(make_depot("sunspec_der"), scenario=NOBODY)
    der = reader(twin, "bus-1")
    der.models[711][0].points["Ena"].cvalue = 1
    der.models[711][0].points["Ena"].write()
    twin.do(SetFrequency(((0.0, 50.0), (10.0, 49.8))))
    twin.advance(5)
    assert der.point(701, "Hz") == pytest.approx(49.9, abs=0.001)
    twin.advance(10)
    assert der.point(701, "Hz") == pytest.approx(49.8)
    assert der.point(701, "W") == pytest.approx(3_280, abs=10)


def test_what_a_sunspec_device_refuses(make_depot: MakeDepot) -> None:
    twin = Rehearsal(make_depot("sunspec_der"), scenario=NOBODY)
    image = twin.inverters["device-1"].image
    for model, name, words, code in (
        (701, "W", (1,), 2),
        (704, "WSet", (1,), 3),
        (704, "WSetEna", (7,), 3),
    ):
        with pytest.raises(Refusal) as caught:
            twin.write("bus-1", 1, HOLDING, image.address(model, name), words)
        assert caught.value.code == code, name


def test_a_lost_sensor_reads_as_unimplemented_and_a_stale_meter_stands(make_depot: MakeDepot) -> None:
    twin = Rehearsal(make_depot("sunspec_der", "sunspec_meter", base_load_a=(10, 10, 10)), scenario=NOBODY)
    der, meter = reader(twin, "bus-1"), reader(twin, "bus-2")
    assert (der.point(713, "SoC"), der.point(802, "SoC")) == (50, 50)
    twin.fault("device-1", Fault(kind=FaultKind.SENSOR_LOST))
    assert der.point(713, "SoC") is None
    assert der.point(802, "SoC") is None
    assert der.point(701, "TmpCab") is None
    twin.clear()
    assert der.point(713, "SoC") == 50
    twin.advance(60)
    twin.fault("device-2", Fault(kind=FaultKind.STALE))
    before = meter.point(203, "TotWhImp")
    twin.advance(3600)
    assert meter.point(203, "TotWhImp") == before
    twin.clear()
    assert meter.point(203, "TotWhImp") > before + 6_000


def test_declared_settings_are_in_the_registers_and_kept(make_depot: MakeDepot) -> None:
    depot = make_depot("sunspec_der", settings={"failsafe_power": -4_000, "failsafe_timeout": 30, "soc_reserve": 20})
    twin = Rehearsal(depot, scenario=NOBODY)
    der = reader(twin, "bus-1")
    for _ in range(2):
        assert der.point(704, "WSetRvrt") == 4_000
        assert der.point(704, "WSetRvrtTms") == 30
        assert der.point(802, "SoCRsvMin") == 20
        twin.fault("device-1", Fault(kind=FaultKind.REBOOT, for_s=1))
        twin.advance(2)


def test_its_battery_has_the_charge_that_is_asked_for(make_depot: MakeDepot) -> None:
    twin = Rehearsal(make_depot("sunspec_der"), scenario=NOBODY)
    ((name, inverter),) = twin.inverters.items()
    twin.do(SetCharge(name, 0.25))
    assert inverter.image.get(713, "SoC") != 25.0
    inverter.read(Table.HOLDING, inverter.image.base, 2)
    assert inverter.image.get(713, "SoC") == 25.0


def test_a_setting_that_is_a_name_is_held_as_its_number(make_depot: MakeDepot) -> None:
    for name, number in (("enabled", 1), ("disabled", 0)):
        twin = Rehearsal(make_depot("sunspec_der", settings={"failsafe_enabled": name}), scenario=NOBODY)
        (inverter,) = twin.inverters.values()
        assert inverter.image.raw(704, "WSetEnaRvrt") == number
