# SPDX-License-Identifier: Apache-2.0
"""Chargers: their watchdogs, starts, refusals and states, under virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from derms_agent import profiles
from derms_agent.model import DeviceKind, Phase, Value
from derms_agent.profiles import Profile
from derms_agent.profiles.point import Point, Table
from derms_agent.profiles.profile import Quantity, Zero
from derms_agent.twin import (
    Arrivals,
    Fault,
    FaultKind,
    Refusal,
    Rehearsal,
    Scenario,
    Settings,
    Silence,
    VehicleType,
)

if TYPE_CHECKING:
    from agent.tests.twin.conftest import MakeDepot

NOBODY = Scenario(arrivals=Arrivals.NONE)
VAN = VehicleType(name="van", capacity_wh=75_000, power_w=22_000, lag_s=3)
HOLDING, INPUT = Table.HOLDING, Table.INPUT
KEBA = {"failsafe_current": 10, "failsafe_timeout": 30}


def write(twin: Rehearsal, address: int, *words: int, function: int | None = None) -> None:
    twin.write("bus-1", 1, HOLDING, address, words, function=function)


def read(twin: Rehearsal, table: Table, address: int, count: int) -> tuple[int, ...]:
    return twin.read("bus-1", 1, table, address, count)


def refusal(twin: Rehearsal, address: int, words: Sequence[int], function: int | None = None) -> int:
    before = [twin.limit_a("device-1")]
    with pytest.raises(Refusal) as caught:
        write(twin, address, *words, function=function)
    assert [twin.limit_a("device-1")] == before
    assert not twin.writes[-1].executed
    return caught.value.code


def test_kebas_watchdog_counts_writes_only(make_depot: MakeDepot) -> None:
    twin = Rehearsal(make_depot("keba_p30", settings=KEBA), scenario=NOBODY)
    write(twin, 5004, 16000)
    for _ in range(3):
        twin.advance(25)
        write(twin, 5004, 16000)
    assert twin.limit_a("device-1") == 16
    for _ in range(31):
        twin.advance(1)
        assert read(twin, HOLDING, 1100, 2) in ((0, 16000), (0, 10000))
    assert twin.limit_a("device-1") == 10
    assert read(twin, HOLDING, 1100, 2) == (0, 10000)
    write(twin, 5004, 16000)
    assert twin.limit_a("device-1") == 16


def test_a_watchdogs_time_and_value_are_settings_and_zero_is_off(make_depot: MakeDepot) -> None:
    twin = Rehearsal(make_depot("keba_p30", settings=KEBA), scenario=NOBODY)
    write(twin, 5004, 16000)
    write(twin, 5016, 8000)
    write(twin, 5018, 12)
    twin.advance(13)
    assert twin.limit_a("device-1") == 8
    write(twin, 5018, 0)
    write(twin, 5004, 16000)
    twin.advance(7200)
    assert twin.limit_a("device-1") == 16


def test_a_new_device_has_no_settings(make_depot: MakeDepot) -> None:
    twin = Rehearsal(
        make_depot("keba_p30", settings=KEBA), scenario=Scenario(arrivals=Arrivals.NONE, settings=Settings.FACTORY)
    )
    assert read(twin, HOLDING, 1600, 2) == (0, 0)
    assert read(twin, HOLDING, 1602, 2) == (0, 0)
    declared = Rehearsal(make_depot("keba_p30", settings=KEBA), scenario=NOBODY)
    assert read(declared, HOLDING, 1600, 2) == (0, 10000)
    assert read(declared, HOLDING, 1602, 2) == (0, 30)


def test_heidelbergs_watchdog_counts_any_request(make_depot: MakeDepot) -> None:
    """257 = 15000 ms, 262 = 8.0 A; input 5 is its state."""
    depot = make_depot("heidelberg_energy_control", settings={"failsafe_current": 8, "failsafe_timeout": 15})
    twin = Rehearsal(depot, scenario=NOBODY)
    assert read(twin, HOLDING, 257, 1) == (15000,)
    write(twin, 261, 120)
    for _ in range(6):
        twin.advance(14)
        read(twin, INPUT, 5, 1)
    assert twin.limit_a("device-1") == 12
    twin.advance(16)
    assert twin.limit_a("device-1") == 8
    assert read(twin, HOLDING, 261, 1) == (120,)
    assert twin.limit_a("device-1") == 12


def test_mennekes_wants_its_heartbeat_and_after_a_lapse_the_limit_again(make_depot: MakeDepot) -> None:
    """0D00h = 55AAh within 10 s; 16.0 A as f32 is 41 80 00 00, 8 A in 073Ah is a whole number."""
    depot = make_depot("mennekes_compact", settings={"failsafe_current": 8})
    twin = Rehearsal(depot, scenario=NOBODY)
    write(twin, 0x0302, 0x4180, 0x0000)
    for _ in range(5):
        twin.advance(8)
        write(twin, 0x0D00, 0x55AA)
    assert twin.limit_a("device-1") == 16
    twin.advance(8)
    write(twin, 0x0D00, 0x1234)
    write(twin, 0x0302, 0x4180, 0x0000)
    twin.advance(3)
    assert twin.limit_a("device-1") == 8
    assert read(twin, HOLDING, 0x0E01, 1) == (1,)
    write(twin, 0x0302, 0x4180, 0x0000)
    assert twin.limit_a("device-1") == 8
    write(twin, 0x0D00, 0x55AA)
    write(twin, 0x0D05, 1)
    write(twin, 0x0302, 0x4180, 0x0000)
    assert twin.limit_a("device-1") == 16
    assert read(twin, HOLDING, 0x0E01, 1) == (0,)


def test_kebas_limit_lasts_until_the_restart_and_its_failsafe_only_if_kept(make_depot: MakeDepot) -> None:
    for kept in (0, 1):
        twin = Rehearsal(make_depot("keba_p30", settings=KEBA, rating_a=20), scenario=NOBODY)
        twin.plug_in("device-1", VAN, 0.2)
        write(twin, 5020, kept)
        write(twin, 5004, 12000)
        twin.advance(20)
        assert twin.outlet("device-1").current_a == 12
        twin.fault("device-1", Fault(kind=FaultKind.REBOOT, for_s=8))
        twin.advance(4)
        assert twin.outlet("device-1").current_a == 0
        with pytest.raises(Silence):
            read(twin, HOLDING, 1100, 2)
        twin.advance(14)
        assert read(twin, HOLDING, 1100, 2) == (0, 20000)
        assert twin.outlet("device-1").current_a == 20
        assert read(twin, HOLDING, 1602, 2) == (0, 30 * kept)


def test_alfen_starts_with_its_safe_current(make_depot: MakeDepot) -> None:
    """1206 is what it applies, f32: 9 A is 41 10 00 00; 1214 says whether the limit is used."""
    twin = Rehearsal(make_depot("alfen_ng9", settings={"failsafe_current": 9}), scenario=NOBODY)
    assert read(twin, HOLDING, 1206, 2) == (0x4110, 0)
    assert read(twin, HOLDING, 1214, 1) == (0,)
    write(twin, 1210, 0x4140, 0)
    assert read(twin, HOLDING, 1206, 2) == (0x4140, 0)
    twin.advance(50)
    assert read(twin, HOLDING, 1208, 2) == (0, 10)
    twin.advance(11)
    assert read(twin, HOLDING, 1206, 2) == (0x4110, 0)


def test_alpitronic_ends_the_session_at_zero_and_pauses_below_its_minimum(make_depot: MakeDepot) -> None:
    """Limits are u32 in W at 100; 50 kW is 00 00 C3 50. The state at input 100: 3 charging, 5 suspended, 6 over."""
    twin = Rehearsal(make_depot("alpitronic_hyc", rating_a=200), scenario=NOBODY)
    twin.plug_in("device-1", VAN, 0.2)

    def drive(high: int, low: int) -> object:
        for _ in range(10):
            write(twin, 100, high, low)
            twin.advance(2)
        return read(twin, INPUT, 100, 1)[0], round(twin.outlet("device-1").power_w)

    assert drive(0, 50_000) == (3, 50_000)
    # On the DC side 5 % less than on the AC side, and the limit as it was written.
    assert read(twin, INPUT, 104, 2) == (0, 47_500)
    assert drive(0, 1547) == (5, 0)
    assert drive(0, 50_000) == (3, 50_000)
    assert drive(0, 0) == (6, 0)
    assert drive(0, 50_000) == (6, 0)
    twin.plug_in("device-1", VAN, 0.2)
    assert drive(0, 50_000) == (3, 50_000)


def test_charx_and_others_without_a_watchdog_hold_the_limit(make_depot: MakeDepot) -> None:
    twin = Rehearsal(make_depot("phoenix_charx"), scenario=NOBODY)
    write(twin, 1301, 10)
    twin.advance(86_400)
    assert twin.limit_a("device-1") == 10


@pytest.mark.parametrize(
    ("profile", "address", "words", "function", "code"),
    [
        pytest.param("keba_p30", 5004, (16000,), 16, 1, id="KEBA takes function 6 only"),
        pytest.param("keba_p30", 5004, (5000,), None, 3, id="below KEBA's 6 A"),
        pytest.param("keba_p30", 5004, (64000,), None, 3, id="above KEBA's 63 A"),
        pytest.param("keba_p30", 5005, (1,), None, 2, id="nothing there"),
        pytest.param("keba_p30", 1100, (1,), None, 2, id="only to be read"),
        pytest.param("alfen_ng9", 1210, (0x4140,), None, 3, id="half of Alfen's limit"),
        pytest.param("alfen_ng9", 1211, (0,), None, 3, id="the other half"),
        pytest.param("alfen_ng9", 1210, (0x7FC0, 0), None, 3, id="not a number"),
        pytest.param("abb_terra_ac", 0x4106, (60,), 6, 1, id="ABB takes function 16 only"),
        pytest.param("heidelberg_energy_control", 261, (50,), None, 3, id="5 A"),
        pytest.param("heidelberg_energy_control", 262, (60, 60), None, 2, id="one register too many"),
    ],
)
def test_what_a_device_refuses(  # noqa: PLR0917 - pytest passes them by name
    make_depot: MakeDepot, profile: str, address: int, words: tuple[int, ...], function: int | None, code: int
) -> None:
    twin = Rehearsal(make_depot(profile), scenario=NOBODY)
    assert refusal(twin, address, words, function) == code


def test_reads_across_points_and_gaps(make_depot: MakeDepot) -> None:
    keba = Rehearsal(make_depot("keba_p30"), scenario=NOBODY)
    for address, count in ((1008, 4), (999, 1), (5004, 1)):
        with pytest.raises(Refusal):
            read(keba, HOLDING, address, count)
    profile = profiles.load("keba_p30")
    gaps = {"keba_p30": replace(profile, wire=replace(profile.wire, max_read=125, max_gap=2))}
    generous = Rehearsal(make_depot("keba_p30"), scenario=NOBODY, profiles=gaps)
    # 1000 and 1004 are points, 1002 is none.
    assert read(generous, HOLDING, 1000, 6)[2:4] == (0, 0)
    heidelberg = Rehearsal(make_depot("heidelberg_energy_control"), scenario=NOBODY)
    assert len(read(heidelberg, INPUT, 4, 11)) == 11
    # 15 and 16 are no points, and the profile lets no request pass through them.
    with pytest.raises(Refusal) as caught:
        read(heidelberg, INPUT, 14, 5)
    assert caught.value.code == 2


def test_a_frozen_duty_ignores_the_registers(make_depot: MakeDepot) -> None:
    """What the manual calls a stuck duty: 53 %, so 32 A, while 1100 confirms 6 A."""
    twin = Rehearsal(make_depot("keba_p30"), scenario=NOBODY)
    twin.plug_in("device-1", VAN, 0.2)
    twin.fault("device-1", Fault(kind=FaultKind.FROZEN_DUTY))
    write(twin, 5004, 6000)
    twin.advance(20)
    assert read(twin, HOLDING, 1100, 2) == (0, 6000)
    assert twin.outlet("device-1").pilot_a == 32
    assert twin.outlet("device-1").current_a == pytest.approx(22_000 / 400 / 3**0.5)
    twin.clear("device-1")
    twin.advance(20)
    assert twin.outlet("device-1").current_a == 6


def test_a_lost_sensor_and_stale_registers(make_depot: MakeDepot) -> None:
    """Heidelberg's temperature, i16 at input 9, has no mark of absence: the far end of its range stands for it."""
    twin = Rehearsal(make_depot("heidelberg_energy_control"), scenario=NOBODY)
    twin.plug_in("device-1", VAN, 0.2)
    assert read(twin, INPUT, 9, 1) == (200,)
    twin.fault("device-1", Fault(kind=FaultKind.SENSOR_LOST))
    assert read(twin, INPUT, 9, 1) == (0x8000,)
    twin.clear()
    # Until the pilot is there: the vehicle requests, and is not allowed.
    assert read(twin, INPUT, 5, 1) == (6,)
    twin.fault("device-1", Fault(kind=FaultKind.STALE))
    twin.advance(10)
    assert read(twin, INPUT, 5, 1) == (6,)
    twin.clear()
    assert read(twin, INPUT, 5, 1) == (7,)


def drive(twin: Rehearsal, profile: Profile, amperes: float) -> None:
    """Ask for a current, or a pause, the way the profile says, for 24 s."""
    control, fallback = profile.control, profile.fallback
    assert control is not None
    limit = profile.points[control.point]
    factor = 400 * 3**0.5 if control.quantity is Quantity.POWER else 1.0
    pause = control.minimum / 2 if control.zero is Zero.ENDS_SESSION else 0.0
    orders: list[tuple[Point, Value]] = [(limit, amperes * factor or pause)]
    if control.switch is not None:
        switch = profile.points[control.switch.point]
        orders = [(switch, control.switch.on), *orders] if amperes else [(switch, control.switch.off)]
    if fallback is not None and fallback.heartbeat is not None:
        orders.insert(0, (profile.points[fallback.heartbeat.point], fallback.heartbeat.value))
    for _ in range(8):
        for point, value in orders:
            write(twin, point.address_of(1), *point.encode(value), function=profile.wire.write_function)
        twin.advance(3)


@pytest.mark.parametrize("name", [n for n in profiles.names() if profiles.load(n).kind is DeviceKind.CHARGER])
def test_every_profile_reads_sensibly_through_a_session(make_depot: MakeDepot, name: str) -> None:
    """All its points can be read; state and currents go with the vehicle; its own phases are its own, however wired."""
    profile = profiles.load(name)
    twin = Rehearsal(make_depot(name, phases=[(Phase.L2, Phase.L3, Phase.L1)]), scenario=NOBODY)

    def value(point: Point) -> object:
        return point.decode(read(twin, point.table, point.address_of(1), point.length))

    states = [value(profile.points["state"])]
    twin.plug_in("device-1", VAN, 0.2)
    drive(twin, profile, 10)
    assert twin.outlet("device-1").current_a == pytest.approx(10, abs=0.1)
    for point in profile.points.values():
        for shown in (point, point.readback):
            if shown is not None and shown.readable:
                found = value(shown)
                if point.name in {"current_l1", "current_l2", "current_l3"}:
                    assert found == pytest.approx(10, abs=0.1)
    states.append(value(profile.points["state"]))
    drive(twin, profile, 0)
    assert twin.outlet("device-1").current_a == 0
    states.append(value(profile.points["state"]))
    assert len(set(states)) == 3, states
