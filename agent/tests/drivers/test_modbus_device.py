# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from derms_agent import profiles
from derms_agent.drivers.errors import BusError, NoAnswer, Refused, Unreachable
from derms_agent.drivers.factory import open_device
from derms_agent.drivers.interface import Priority
from derms_agent.drivers.modbus_device import ModbusDevice, Pace
from derms_agent.drivers.register_map import ModbusMap
from derms_agent.drivers.settings import Outcome
from derms_agent.model import Circuit, Connection, Device, Phase, ProofKind, Quality, Reading, Setpoint
from derms_agent.profiles.point import Table
from derms_agent.profiles.profile import Profile, Refresh

if TYPE_CHECKING:
    from agent.tests.drivers.conftest import Kit, MemoryBus, Request

pytestmark = pytest.mark.anyio

QUICK = Pace(
    poll_s=0.05,
    slow_s=0.1,
    settings_s=0.2,
    freshness_s=0.2,
    shed_s=0.5,
    verify_s=0.1,
    verify_every_s=0.01,
    configure_s=0.5,
    configure_verify_s=0.2,
)
KEBA_LIMIT, KEBA_ENABLED, KEBA_OFFERED = 5004, 5014, 1101
HEIDELBERG_LIMIT, HEIDELBERG_TIMEOUT, HEIDELBERG_FAILSAFE = 261, 257, 262


def fill(bus: MemoryBus, device: Device, profile: Profile) -> None:
    """Let a unit have every register that its profile reads, all zero."""
    registers = ModbusMap(device, profile)
    for name in registers.names:
        if registers.readable(name):
            for span in registers.spans(name):
                bus.put(span.address, *(0,) * span.length, table=span.table)


def opened(
    kit: Kit, name: str, *, pace: Pace = QUICK, bus: MemoryBus | None = None, reads_back: bool = True, **made: Any
) -> tuple[ModbusDevice, MemoryBus]:
    profile = profiles.load(name)
    device = kit.device(name, **made)
    bus = kit.bus() if bus is None else bus
    fill(bus, device, profile)
    driver = open_device(device, profile, bus, pace=pace, reads_back=reads_back)
    return driver, bus


def keba(kit: Kit, *, obedient: bool = True, **made: Any) -> tuple[ModbusDevice, MemoryBus]:
    driver, bus = opened(kit, "keba_p30", **made)
    if obedient:
        bus.mirrors[KEBA_LIMIT] = KEBA_OFFERED  # the low word of what 1100 shows
    return driver, bus


@asynccontextmanager
async def running(driver: ModbusDevice) -> AsyncIterator[list[Reading]]:
    readings: list[Reading] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(driver.run, readings.append)
        yield readings
        tasks.cancel_scope.cancel()


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    with anyio.fail_after(within_s):
        while not condition():
            await anyio.sleep(0.005)


def sent(bus: MemoryBus) -> list[tuple[int, tuple[int, ...]]]:
    return [(request.address, request.words) for request in bus.writes]


# What is written for a setpoint


@pytest.mark.parametrize(
    ("p_w", "milliamperes"),
    [
        (11040, 16000),  # 16 A on three phases at 230 V
        (11039, 15998),  # 15.99855 A: the mA below
        (4140, 6000),
        (22080, 32000),
        (50000, 32000),  # never above the rating
    ],
)
async def test_watts_become_amperes_rounded_down(kit: Kit, p_w: float, milliamperes: int) -> None:
    driver, bus = keba(kit)
    proof = await driver.apply(Setpoint(evse="charger-1", p_w=p_w))
    assert sent(bus) == [(KEBA_LIMIT, (milliamperes,)), (KEBA_ENABLED, (1,))]
    assert all(request.priority is Priority.SHED for request in bus.writes)
    assert (proof.kind, proof.in_force) == (ProofKind.READ_BACK, milliamperes / 1000)


async def test_the_cable_and_the_phases_bound_the_current(kit: Kit) -> None:
    driver, bus = keba(kit, cable_a=20.0, phases=(Phase.L2,))
    await driver.apply(Setpoint(evse="charger-1", p_w=2300))
    await driver.apply(Setpoint(evse="charger-1", p_w=7360))
    assert [words for address, words in sent(bus) if address == KEBA_LIMIT] == [(10000,), (20000,)]


async def test_below_the_minimum_a_switch_is_turned_off_and_the_limit_left_alone(kit: Kit) -> None:
    driver, bus = keba(kit)
    proof = await driver.apply(Setpoint(evse="charger-1", p_w=4139))
    assert sent(bus) == [(KEBA_ENABLED, (0,))]
    assert (proof.kind, proof.asked, proof.in_force) == (ProofKind.ACKNOWLEDGED, 0.0, 0.0)


async def test_whoever_compares_polls_is_not_read_back_for_what_they_show(kit: Kit) -> None:
    driver, bus = opened(kit, "heidelberg_energy_control", rating_a=16.0, reads_back=False)
    before = await driver.apply(Setpoint(evse="charger-1", p_w=6900))
    assert before.kind is ProofKind.READ_BACK  # it was never polled
    async with running(driver) as readings:
        await until(lambda: bool(readings))
    bus.requests.clear()
    proof = await driver.apply(Setpoint(evse="charger-1", p_w=6210))
    assert sent(bus)[-1] == (HEIDELBERG_LIMIT, (90,))
    assert (proof.kind, proof.in_force) == (ProofKind.ACKNOWLEDGED, 9.0)
    assert not bus.reads


async def test_a_limit_in_force_is_waited_for_whoever_asks(kit: Kit) -> None:
    driver, bus = keba(kit, reads_back=False)
    async with running(driver) as readings:
        await until(lambda: bool(readings))
    bus.requests.clear()
    proof = await driver.apply(Setpoint(evse="charger-1", p_w=6900))
    assert proof.kind is ProofKind.READ_BACK
    assert bus.reads


async def test_a_device_without_a_switch_is_told_zero(kit: Kit) -> None:
    driver, bus = opened(kit, "heidelberg_energy_control", rating_a=16.0)
    proof = await driver.apply(Setpoint(evse="charger-1", p_w=4000))
    assert sent(bus) == [(HEIDELBERG_LIMIT, (0,))]
    assert (proof.kind, proof.in_force) == (ProofKind.READ_BACK, 0)


async def test_zero_is_obeyed_where_it_ends_the_session_and_said_so(kit: Kit) -> None:
    driver, bus = opened(kit, "alpitronic_hyc", evses=2, rating_a=250.0)
    proof = await driver.apply(Setpoint(evse="charger-1/2", p_w=1000))
    assert sent(bus) == [(200, (0, 0))]
    assert "ends the session" in proof.detail
    proof = await driver.apply(Setpoint(evse="charger-1/1", p_w=90000.9))
    assert sent(bus)[1:] == [(100, (90000 >> 16, 90000 & 0xFFFF))]
    assert proof.detail == ""


async def test_a_float_register_never_holds_more_than_was_asked_for(kit: Kit) -> None:
    driver, bus = opened(kit, "alfen_ng9")
    await driver.apply(Setpoint(evse="charger-1", p_w=16.1 * 690))
    ((address, words),) = sent(bus)
    assert address == 1210
    assert 16.0999 < struct.unpack(">f", struct.pack(">2H", *words))[0] <= 16.1


async def test_discharge_of_a_charger_that_cannot_is_zero(kit: Kit) -> None:
    driver, bus = opened(kit, "heidelberg_energy_control", rating_a=16.0)
    proof = await driver.apply(Setpoint(evse="charger-1", p_w=-5000, q_var=100))
    assert sent(bus) == [(HEIDELBERG_LIMIT, (0,))]
    assert "least" in proof.detail
    assert "reactive" in proof.detail


@pytest.mark.parametrize(
    "setpoint",
    [
        Setpoint(evse="charger-2", p_w=5000),
        Setpoint(evse="charger-1", p_w=math.nan),
        Setpoint(evse="charger-1", p_w=math.inf),
        Setpoint(evse="charger-1", p_w=5000, valid_for_s=0),
    ],
)
async def test_what_means_nothing_is_refused_and_not_sent(kit: Kit, setpoint: Setpoint) -> None:
    driver, bus = keba(kit)
    assert (await driver.apply(setpoint)).kind is ProofKind.REFUSED
    assert not bus.requests


async def test_the_circuit_gives_the_voltage(kit: Kit) -> None:
    profile = profiles.load("heidelberg_energy_control")
    device = kit.device("heidelberg_energy_control", rating_a=16.0)
    bus = kit.bus(strict=False)
    circuit = Circuit(name="main", parent=None, connection=Connection.WYE, voltage_v=480, rating_a=(100, 100, 100))
    driver = open_device(device, profile, bus, circuits={"main": circuit}, pace=QUICK)
    await driver.apply(Setpoint(evse="charger-1", p_w=10 * 3 * 480 / math.sqrt(3)))
    assert sent(bus) == [(HEIDELBERG_LIMIT, (100,))]
    assert replace(circuit, connection=Connection.SINGLE_PHASE, voltage_v=230).neutral_voltage_v == 230


async def test_several_evses_need_a_limit_for_each(kit: Kit) -> None:
    with pytest.raises(ValueError, match="has one limit"):
        opened(kit, "keba_p30", evses=2)


# What becomes of it


async def test_a_device_that_holds_more_than_asked_has_refused(kit: Kit) -> None:
    driver, bus = keba(kit, obedient=False)
    bus.put(KEBA_OFFERED, 32000)
    proof = await driver.apply(Setpoint(evse="charger-1", p_w=11040))
    assert (proof.kind, proof.in_force) == (ProofKind.REFUSED, 32.0)


async def test_a_device_that_holds_less_obeys(kit: Kit) -> None:
    driver, bus = keba(kit, obedient=False)
    bus.put(KEBA_OFFERED, 13000)
    proof = await driver.apply(Setpoint(evse="charger-1", p_w=11040))
    assert (proof.kind, proof.in_force) == (ProofKind.READ_BACK, 13.0)
    assert "less" in proof.detail


async def test_a_device_that_takes_its_time_is_given_it(kit: Kit) -> None:
    driver, bus = keba(kit, obedient=False)
    bus.put(KEBA_OFFERED, 32000)
    seen = 0

    def follow(request: Request) -> None:
        nonlocal seen
        seen += not request.words
        if seen == 3:
            bus.put(KEBA_OFFERED, 16000)

    bus.fault = follow
    proof = await driver.apply(Setpoint(evse="charger-1", p_w=11040))
    assert (proof.kind, proof.in_force) == (ProofKind.READ_BACK, 16.0)


async def test_a_write_in_doubt_is_read_back_and_never_sent_again(kit: Kit) -> None:
    driver, bus = opened(kit, "heidelberg_energy_control", rating_a=16.0)
    bus.fault = lambda request: NoAnswer("no reply", may_have_happened=True) if request.words else None
    proof = await driver.apply(Setpoint(evse="charger-1", p_w=6900))
    assert len(bus.writes) == 1
    assert (proof.kind, proof.in_force) == (ProofKind.READ_BACK, 10.0)


async def test_a_write_in_doubt_that_does_not_show_is_indeterminate(kit: Kit) -> None:
    driver, bus = opened(kit, "heidelberg_energy_control", rating_a=16.0)

    def lose(request: Request) -> BusError | None:
        if request.words:
            return NoAnswer("no reply", may_have_happened=True)
        bus.put(HEIDELBERG_LIMIT, 160)
        return None

    bus.fault = lose
    proof = await driver.apply(Setpoint(evse="charger-1", p_w=6900))
    assert len(bus.writes) == 1
    assert (proof.kind, proof.in_force) == (ProofKind.INDETERMINATE, 16.0)
    bus.fault = lambda _: NoAnswer("no reply", may_have_happened=True)
    proof = await driver.apply(Setpoint(evse="charger-1", p_w=6900))
    assert (proof.kind, proof.in_force) == (ProofKind.INDETERMINATE, None)
    assert len(bus.writes) == 2


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (Unreachable("no connection"), ProofKind.UNSENT),
        (Refused("exception 4", 4), ProofKind.REFUSED),
        (Refused("gateway exception 11", 11, may_have_happened=True), ProofKind.INDETERMINATE),
    ],
)
async def test_failures_are_told_apart(kit: Kit, failure: BusError, kind: ProofKind) -> None:
    driver, bus = keba(kit)
    bus.fault = lambda _: failure
    proof = await driver.apply(Setpoint(evse="charger-1", p_w=11040))
    assert (proof.kind, proof.in_force) == (kind, None)
    assert len(bus.writes) == 1


async def test_half_of_a_limit_and_its_switch_is_indeterminate(kit: Kit) -> None:
    driver, bus = keba(kit)
    bus.fault = lambda request: Refused("exception 4", 4) if request.address == KEBA_ENABLED else None
    proof = await driver.apply(Setpoint(evse="charger-1", p_w=11040))
    assert proof.kind is ProofKind.INDETERMINATE
    assert "in part" in proof.detail


@pytest.mark.parametrize("known", [False, True])
async def test_the_newest_setpoint_wins_and_an_older_one_never_follows_it(kit: Kit, known: bool) -> None:
    driver, bus = opened(kit, "heidelberg_energy_control", rating_a=16.0, bus=kit.bus(takes_s=0.02))
    if known:
        await driver.find_map()
    kinds: list[ProofKind] = []

    async def apply(p_w: float) -> None:
        kinds.append((await driver.apply(Setpoint(evse="charger-1", p_w=p_w))).kind)

    async with anyio.create_task_group() as tasks:
        for p_w in (11040, 8280, 6900, 4140):
            tasks.start_soon(apply, p_w)
    # What found the bus free was sent, and nobody waits for its answer; those that waited behind it never are.
    assert sent(bus) == [(HEIDELBERG_LIMIT, (value,)) for value in ((160, 60) if known else (60,))]
    assert kinds.count(ProofKind.READ_BACK) == 1
    assert kinds.count(ProofKind.UNSENT) == (2 if known else 1)
    assert kinds.count(ProofKind.INDETERMINATE) == (1 if known else 2)


async def test_setpoints_are_with_the_bus_before_anybody_waits(kit: Kit) -> None:
    driver, bus = opened(kit, "heidelberg_energy_control", rating_a=16.0)
    await driver.find_map()
    begun = driver.begin(Setpoint(evse="charger-1", p_w=6900))
    await anyio.wait_all_tasks_blocked()
    assert sent(bus) == [(HEIDELBERG_LIMIT, (100,))]
    proof = await driver.finish(begun)
    assert (proof.kind, proof.in_force) == (ProofKind.READ_BACK, 10.0)
    assert sent(bus) == [(HEIDELBERG_LIMIT, (100,))], "it is written once"


async def test_a_setpoint_that_a_newer_one_overtook_before_it_was_finished_is_not_written(kit: Kit) -> None:
    driver, bus = opened(kit, "heidelberg_energy_control", rating_a=16.0)
    await driver.find_map()
    bus.held = anyio.Event()
    first, second, third = (driver.begin(Setpoint(evse="charger-1", p_w=p_w)) for p_w in (11040, 8280, 6900))
    assert (await driver.finish(second)).kind is ProofKind.UNSENT
    bus.held.set()
    assert (await driver.finish(third)).kind is ProofKind.READ_BACK
    assert sent(bus) == [(HEIDELBERG_LIMIT, (160,)), (HEIDELBERG_LIMIT, (100,))]
    assert (await driver.finish(first)).kind in {ProofKind.INDETERMINATE, ProofKind.READ_BACK}
    assert sent(bus)[-1] == (HEIDELBERG_LIMIT, (100,))


async def test_a_setpoint_that_nobody_waits_for_any_longer_is_not_sent(kit: Kit) -> None:
    driver, bus = opened(kit, "heidelberg_energy_control", rating_a=16.0, bus=kit.bus(takes_s=0.05))
    await driver.find_map()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(driver.read_settings)  # keeps the bus busy
        await anyio.sleep(0.01)
        begun = driver.begin(Setpoint(evse="charger-1", p_w=6900))
        with anyio.move_on_after(0.01) as waited:
            await driver.finish(begun)
        assert waited.cancelled_caught
    assert not sent(bus)
    assert (await driver.apply(Setpoint(evse="charger-1", p_w=4140))).kind is ProofKind.READ_BACK


async def test_the_watchdog_never_writes_an_old_limit_after_a_newer_one(kit: Kit) -> None:
    driver, bus = opened(kit, "alfen_ng9")
    await driver.apply(Setpoint(evse="charger-1", p_w=22080))
    bus.requests.clear()
    bus.held = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(driver.read_settings)  # keeps the bus busy
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(driver._feed, 5.0)  # 32 A again, queued behind it
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(driver.apply, Setpoint(evse="charger-1", p_w=6900))  # overtakes
        await anyio.wait_all_tasks_blocked()
        bus.held.set()
    amperes = [struct.unpack(">f", struct.pack(">2H", *words))[0] for _, words in sent(bus)]
    assert amperes == [10.0]
    await driver._feed(5.0)
    assert sent(bus)[-1] == sent(bus)[0]
    assert bus.requests[-1].priority is Priority.WATCHDOG


# The watchdog


async def fed(driver: ModbusDevice, for_s: float, valid_for_s: float = 60) -> None:
    async with running(driver):
        await driver.apply(Setpoint(evse="charger-1", p_w=6900, valid_for_s=valid_for_s))
        await anyio.sleep(for_s)


async def test_a_watchdog_that_counts_writes_is_fed_the_same_limit_again(kit: Kit) -> None:
    driver, bus = keba(kit, settings={"failsafe_timeout": 1})
    bus.put(1602, 0, 1)
    await fed(driver, 1.2)
    beats = [request for request in bus.writes if request.priority is Priority.WATCHDOG]
    assert {request.words for request in beats if request.address == KEBA_LIMIT} == {(10000,)}
    # Its time-out is 1 s: at least one beat a third of that.
    assert len([request for request in beats if request.address == KEBA_LIMIT]) >= 3


async def test_a_heartbeat_has_a_register_of_its_own(kit: Kit) -> None:
    driver, bus = opened(kit, "mennekes_compact")
    await fed(driver, 0.05)
    # A device that fell back takes no limit before the heartbeat.
    assert sent(bus)[0] == (0x0D00, (0x55AA,))


async def test_a_device_for_which_any_request_counts_is_asked_when_polls_are_late(kit: Kit) -> None:
    late = replace(QUICK, poll_s=30.0)
    driver, bus = opened(kit, "heidelberg_energy_control", rating_a=16.0, pace=late, settings={"failsafe_timeout": 1})
    await driver.find_map()
    bus.put(HEIDELBERG_TIMEOUT, 1000)
    await fed(driver, 0.3)
    await driver._poll_once(lambda _: None)
    bus.requests.clear()
    await fed(driver, 1.1)
    beats = [request for request in bus.requests if request.priority is Priority.WATCHDOG and not request.words]
    assert len(beats) >= 3


@pytest.mark.parametrize(
    ("p_w", "repeated"), [(11040, 10.0), (4140, 6.0)], ids=["a raise is not brought after", "a decrease is"]
)
async def test_what_was_not_sent_is_not_raised_to_by_the_watchdog(kit: Kit, p_w: float, repeated: float) -> None:
    driver, bus = opened(kit, "alfen_ng9")
    await driver.apply(Setpoint(evse="charger-1", p_w=6900))
    bus.fault = lambda _: Unreachable("no connection")
    assert (await driver.apply(Setpoint(evse="charger-1", p_w=p_w))).kind is ProofKind.UNSENT
    bus.fault = None
    bus.requests.clear()
    await driver._feed(5.0)
    assert [struct.unpack(">f", struct.pack(">2H", *words))[0] for _, words in sent(bus)] == [repeated]


async def test_a_first_setpoint_that_was_not_sent_is_not_fed(kit: Kit) -> None:
    driver, bus = opened(kit, "alfen_ng9")
    bus.fault = lambda _: Unreachable("no connection")
    await driver.apply(Setpoint(evse="charger-1", p_w=6900))
    bus.fault = None
    bus.requests.clear()
    await driver._feed(5.0)
    assert not bus.writes


async def test_nothing_is_fed_once_a_setpoint_is_no_longer_valid(kit: Kit) -> None:
    driver, bus = keba(kit, settings={"failsafe_timeout": 1})
    bus.put(1602, 0, 1)
    async with running(driver):
        await driver.apply(Setpoint(evse="charger-1", p_w=6900, valid_for_s=0.1))
        await anyio.sleep(0.3)
        bus.requests.clear()
        await anyio.sleep(0.6)
    assert not bus.writes


async def test_a_renewed_setpoint_goes_on_being_fed(kit: Kit) -> None:
    driver, bus = keba(kit, settings={"failsafe_timeout": 1})
    bus.put(1602, 0, 1)
    async with running(driver):
        await driver.apply(Setpoint(evse="charger-1", p_w=6900, valid_for_s=0.1))
        driver.renew("charger-1", 60)
        await anyio.sleep(0.3)
        bus.requests.clear()
        await anyio.sleep(0.6)
    assert bus.writes


@pytest.mark.parametrize(("fallback", "written"), [(60, [60]), (160, [])])
async def test_a_lapsed_setpoint_is_lowered_to_the_fallback_where_polls_keep_the_device_going(
    kit: Kit, fallback: int, written: list[int]
) -> None:
    driver, bus = opened(kit, "heidelberg_energy_control", rating_a=16.0)
    bus.put(HEIDELBERG_TIMEOUT, 1000)
    bus.put(HEIDELBERG_FAILSAFE, fallback)
    async with running(driver) as readings:
        await until(lambda: len(readings) > 2)
        await driver.apply(Setpoint(evse="charger-1", p_w=6900, valid_for_s=0.05))
        bus.requests.clear()
        await anyio.sleep(0.7)
    assert [request.words[0] for request in bus.writes] == written


def test_every_profile_is_fed_within_a_third_of_its_time_out(kit: Kit) -> None:
    for name, profile in profiles.load_all().items():
        if profile.fallback is None or profile.fallback.refreshed_by is Refresh.NONE:
            continue
        driver = open_device(kit.device(name), profile, kit.bus())
        timeout_s = driver.watchdog_s()
        assert timeout_s is not None, name
        assert driver.beat_s() <= timeout_s / 3, name


# Readings


async def test_points_are_read_at_their_own_pace(kit: Kit) -> None:
    driver, bus = keba(kit)
    bus.put(1020, 0x0000, 0x2B20)  # 11040 mW
    bus.put(1014, 0x0001, 0x0002)
    async with running(driver) as readings:
        await until(lambda: len(readings) >= 12)
    last = readings[-1]
    assert (last.quality, last.values["active_power"], last.values["serial_number"]) == (Quality.GOOD, 11.04, 65538)
    assert last.values["state"] == "starting"
    asked = [request.address for request in bus.reads]
    assert asked.count(1020) > asked.count(1502) > asked.count(1014) > 0
    assert all(request.priority is Priority.POLL for request in bus.reads)


async def test_a_reading_turns_stale_by_the_clock_even_while_the_bus_hangs(kit: Kit) -> None:
    driver, bus = keba(kit)
    async with running(driver) as readings:
        await until(lambda: bool(readings))
        bus.takes_s = 0.7  # nothing fails, and nothing comes
        hung_at = anyio.current_time()
        await until(lambda: readings[-1].quality is Quality.STALE)
        assert anyio.current_time() - hung_at < QUICK.freshness_s + 0.1


async def test_a_device_that_never_answered_is_bad_and_one_that_fell_silent_stale(kit: Kit) -> None:
    driver, bus = keba(kit)
    silent = NoAnswer("no reply")
    bus.fault = lambda _: silent
    async with running(driver) as readings:
        await until(lambda: bool(readings))
        assert (readings[-1].quality, readings[-1].values, readings[-1].problem) == (Quality.BAD, {}, "no reply")
        bus.fault = None
        await until(lambda: readings[-1].quality is Quality.GOOD)
        assert readings[-1].problem is None
        bus.fault = lambda _: silent
        await until(lambda: readings[-1].quality is Quality.STALE)
        assert readings[-1].problem == "no reply"


async def test_a_point_that_the_device_has_not_does_not_take_its_neighbours_along(kit: Kit) -> None:
    driver, bus = opened(kit, "heidelberg_energy_control", rating_a=16.0)
    bus.put(14, 3456, table=Table.INPUT)
    del bus.input[9]  # the temperature, in the midst of what is read at once
    async with running(driver) as readings:
        await until(lambda: len(readings) >= 5)
    assert readings[-1].values["active_power"] == 3456
    assert "temperature" not in readings[-1].values
    assert readings[-1].problem == "the device has no temperature"
    # It is asked for again only when settings are.
    assert (
        sum(request.table is Table.INPUT and request.count == 1 and request.address == 9 for request in bus.reads) <= 2
    )


async def test_several_connectors_have_values_of_their_own(kit: Kit) -> None:
    driver, bus = opened(kit, "alpitronic_hyc", evses=2, rating_a=250.0)
    bus.put(104, 0, 11000, table=Table.INPUT)
    bus.put(204, 0, 22000, table=Table.INPUT)
    async with running(driver) as readings:
        await until(lambda: bool(readings))
    values = readings[-1].values
    assert (values["active_power/1"], values["active_power/2"]) == (11000, 22000)
    assert "active_power" not in values


# Settings


async def test_settings_are_compared_as_the_device_holds_them(kit: Kit) -> None:
    driver, bus = opened(kit, "heidelberg_energy_control", rating_a=16.0)
    bus.put(HEIDELBERG_FAILSAFE, 60)
    bus.put(HEIDELBERG_TIMEOUT, 15000)
    assert (await driver.read_settings())["failsafe_current"] == 6
    results = await driver.write_settings({"failsafe_current": 6.04, "failsafe_timeout": 20})
    assert [(result.name, result.outcome) for result in results] == [
        ("failsafe_current", Outcome.OK),
        ("failsafe_timeout", Outcome.CHANGED),
    ]
    assert sent(bus) == [(HEIDELBERG_TIMEOUT, (20000,))]
    assert (results[1].before, results[1].after) == (15, 20)
    assert all(request.priority is Priority.CONFIGURATION for request in bus.requests)
    again = await driver.write_settings({"failsafe_current": 6.04, "failsafe_timeout": 20})
    assert {result.outcome for result in again} == {Outcome.OK}


async def test_a_check_reads_and_never_writes(kit: Kit) -> None:
    driver, bus = opened(kit, "keba_p30")
    results = await driver.write_settings(
        {"failsafe_current": 10, "failsafe_timeout": 0, "failsafe_persist": "kept"}, check=True
    )
    outcomes = {result.name: result.outcome for result in results}
    assert outcomes == {
        "failsafe_current": Outcome.WOULD_CHANGE,
        "failsafe_timeout": Outcome.OK,
        "failsafe_persist": Outcome.UNKNOWN,
    }
    assert not bus.writes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"failsafe_curent": 6, "failsafe_timeout": 20}, "did you mean failsafe_current"),
        ({"failsafe_timeout": 20, "failsafe_current": 99}, "failsafe_current"),
        ({"failsafe_timeout": 20, "current_limit": 6}, "expected a setting"),
    ],
)
async def test_with_one_mistake_nothing_is_written(kit: Kit, changes: dict[str, float], message: str) -> None:
    driver, bus = opened(kit, "heidelberg_energy_control", rating_a=16.0)
    results = await driver.write_settings(changes)
    assert not bus.writes
    refused = [result for result in results if result.outcome is Outcome.REFUSED]
    assert len(refused) == 1
    assert message in refused[0].detail
    assert {result.outcome for result in results} == {Outcome.REFUSED, Outcome.UNKNOWN}


async def test_a_setting_in_doubt_is_read_back_and_ends_the_run_if_it_does_not_show(kit: Kit) -> None:
    driver, bus = opened(kit, "heidelberg_energy_control", rating_a=16.0)
    bus.fault = lambda request: NoAnswer("no reply", may_have_happened=True) if request.words else None
    (result,) = await driver.write_settings({"failsafe_current": 6})
    assert (result.outcome, result.after) == (Outcome.CHANGED, 6)

    def lose(request: Request) -> BusError | None:
        if request.words:
            return NoAnswer("no reply", may_have_happened=True)
        return NoAnswer("no reply") if bus.writes else None

    bus.requests.clear()
    bus.fault = lose
    first, second = await driver.write_settings({"failsafe_current": 8, "failsafe_timeout": 30})
    assert (first.outcome, second.outcome) == (Outcome.INDETERMINATE, Outcome.UNKNOWN)
    assert len(bus.writes) == 1


async def test_a_device_that_acknowledges_and_does_not_hold_is_caught(kit: Kit) -> None:
    driver, bus = keba(kit, obedient=False)
    (result,) = await driver.write_settings({"failsafe_current": 10})
    assert sent(bus) == [(5016, (10000,))]
    assert (result.outcome, result.after) == (Outcome.VERIFY_FAILED, 0)


async def test_what_can_only_be_written_is_never_called_changed(kit: Kit) -> None:
    driver, bus = opened(kit, "keba_p30")
    (result,) = await driver.write_settings({"failsafe_persist": "kept"})
    assert sent(bus) == [(5020, (1,))]
    assert result.outcome is Outcome.UNKNOWN


async def test_a_device_that_cannot_be_read_raises_and_is_not_written(kit: Kit) -> None:
    driver, bus = opened(kit, "heidelberg_energy_control", rating_a=16.0)
    bus.fault = lambda _: Unreachable("no connection")
    with pytest.raises(Unreachable):
        await driver.write_settings({"failsafe_current": 6})
    assert not bus.writes
