# SPDX-License-Identifier: Apache-2.0
"""Whole depots: what is metered is what flows, the same seed is the same day, and a large one is quick."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from derms_agent import profiles
from derms_agent.model import DeviceKind, Measures, Meter, Phase
from derms_agent.profiles.point import Table
from derms_agent.twin import Arrivals, Rehearsal, Scenario, VehicleType

if TYPE_CHECKING:
    from agent.tests.twin.conftest import MakeDepot

CHARGERS = [name for name in profiles.names() if profiles.load(name).kind is DeviceKind.CHARGER]
ROTATED = ((Phase.L1, Phase.L2, Phase.L3), (Phase.L2, Phase.L3, Phase.L1), (Phase.L3,))


def test_the_meter_is_the_sum_of_all_at_every_moment(make_depot: MakeDepot) -> None:
    names = [*CHARGERS, *CHARGERS, "sunspec_meter"]
    phases = [ROTATED[number % 3] for number in range(len(names))]
    depot = make_depot(*names, phases=phases, base_load_a=(30, 20, 10))
    twin = Rehearsal(depot, 3, scenario=Scenario(base_load_share=0.5))
    loaded = 0
    for _ in range(100):
        twin.advance(97)
        expected = [15.0, 10.0, 5.0]
        for evse in depot.evses():
            state = twin.outlet(evse.name)
            for phase in evse.phases[: state.conductors]:
                expected[int(phase.value[1]) - 1] += state.current_a
        reading = next(iter(twin.meters.values())).reading
        assert reading.currents_a == pytest.approx(expected)
        assert sum(reading.powers_w) == pytest.approx(sum(expected) * 400 / 3**0.5)
        loaded += sum(expected) > 30
    assert loaded > 50


def test_a_meter_can_stand_for_a_load_or_a_generator(make_depot: MakeDepot) -> None:
    depot = make_depot(
        "heidelberg_energy_control", "sunspec_der", "sunspec_meter", "sunspec_meter", base_load_a=(9, 9, 9)
    )
    meters = {
        "device-3": Meter(name="device-3", device="device-3", measures=Measures.LOAD, circuit="main"),
        "device-4": Meter(name="device-4", device="device-4", measures=Measures.GENERATOR, circuit="main"),
    }
    twin = Rehearsal(replace(depot, meters=meters), scenario=Scenario(arrivals=Arrivals.NONE, base_load_share=1))
    twin.plug_in("device-1", VehicleType(name="any", capacity_wh=60_000, power_w=11_000), 0.2)
    image = twin.inverters["device-2"].image
    twin.write("bus-2", 1, Table.HOLDING, image.address(704, "WSet"), (0, 7000))
    twin.write("bus-2", 1, Table.HOLDING, image.address(704, "WSetEna"), (1,))
    twin.advance(30)
    assert twin.meters["device-3"].reading.currents_a == pytest.approx((9, 9, 9))
    assert sum(twin.meters["device-4"].reading.powers_w) == pytest.approx(-7000)


def test_the_same_seed_is_the_same_day_and_another_is_another(make_depot: MakeDepot) -> None:
    depot = make_depot(*CHARGERS, "sunspec_meter")

    def hour(seed: int, step_s: float) -> list[float]:
        twin = Rehearsal(depot, seed)
        course = []
        for _ in range(round(3600 / step_s)):
            twin.advance(step_s)
            course.append(sum(next(iter(twin.meters.values())).reading.powers_w))
        return course

    assert hour(1, 600) == hour(1, 600)
    assert hour(1, 600) != hour(2, 600)


def test_a_day_passes_in_seconds(make_depot: MakeDepot) -> None:
    """24 hours of 14 EVSEs; energy at the meter is that of the EVSEs."""
    depot = make_depot(*CHARGERS, *CHARGERS, "sunspec_meter")
    twin = Rehearsal(depot, 1, step_s=5)
    start_s = time.perf_counter()
    twin.advance(24 * 3600)
    took_s = time.perf_counter() - start_s
    drawn_wh = sum(twin.outlet(evse.name).energy_wh for evse in depot.evses())
    assert drawn_wh > 100_000
    assert next(iter(twin.meters.values())).reading.imported_wh == pytest.approx(drawn_wh)
    assert took_s < 20, took_s


def test_a_thousand_chargers_for_ten_minutes(make_depot: MakeDepot, capsys: pytest.CaptureFixture[str]) -> None:
    depot = make_depot(*(CHARGERS[number % len(CHARGERS)] for number in range(1000)), "sunspec_meter")
    start_s = time.perf_counter()
    twin = Rehearsal(depot, 1)
    built_s = time.perf_counter() - start_s
    twin.advance(600)
    took_s = time.perf_counter() - start_s - built_s
    with capsys.disabled():
        print(f"\n1,000 chargers: built in {built_s:.2f} s, ten minutes in {took_s:.2f} s")  # noqa: T201
    assert sum(next(iter(twin.meters.values())).reading.powers_w) > 1_000_000
    assert took_s < 60, took_s
