# SPDX-License-Identifier: Apache-2.0
"""The pure parts: what readings become, sessions, asks, and what is kept on disk."""

from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derms_agent import profiles
from derms_agent.control import demand, droop, limits, thermal
from derms_agent.control.allocate import Allocation
from derms_agent.control.cycle import EvseImage
from derms_agent.control.plan import Plan
from derms_agent.document_store import Store
from derms_agent.model import DeviceKind, Phase, Quality, Rank, Reading, Session, Value, per_phase
from derms_agent.orchestrator import handover
from derms_agent.orchestrator.api import ask_of
from derms_agent.orchestrator.asks import Ask, Clock, from_json, limits_of, moved, placed, to_json
from derms_agent.orchestrator.handover import Memory
from derms_agent.orchestrator.image import EvseReading, evse_readings, generated, meter_sample
from derms_agent.orchestrator.sessions import LONGEST_GAP_S, Metering, followed
from derms_agent.orchestrator.store import JOURNAL, LEDGER

if TYPE_CHECKING:
    from derms_agent.orchestrator.site import Site

W_PER_A = 400 * math.sqrt(3)


def seen(site: Site, device: str, values: dict[str, Value], **more: object) -> dict[str, EvseReading]:
    times = {"read_at_s": 5.0, "asked_at_s": 5.0, "answered_at_s": 5.1, **more}
    return evse_readings(site, site.devices[device], Reading(device=device, values=values, **times))  # type: ignore[arg-type]


# From readings to images


def test_the_currents_of_a_rotated_charger_are_those_of_the_supplys_lines(site: Site) -> None:
    """Wired L2, L3, L1: what its first conductor carries flows on the supply's L2."""
    found = seen(site, "charger-021", {"current_l1": 16.0, "current_l2": 0.0, "current_l3": 3.0})["charger-021"]
    assert found.image.current_a == (3.0, 16.0, 0.0)
    straight = seen(site, "charger-001", {"current_l1": 16.0, "current_l2": 0.0, "current_l3": 3.0})["charger-001"]
    assert straight.image.current_a == (16.0, 0.0, 3.0)


@pytest.mark.parametrize("phase", list(Phase))
def test_a_single_phase_charger_loads_the_line_that_it_is_wired_to(site: Site, phase: Phase) -> None:
    device = site.devices["charger-001"]
    wired = replace(device, evses=(replace(device.evses[0], phases=(phase,)),))
    reading = Reading("charger-001", {"current_l1": 10.0}, 5.0, asked_at_s=5.0, answered_at_s=5.1)
    current_a = evse_readings(site, wired, reading)["charger-001"].image.current_a
    assert current_a is not None
    assert current_a[list(Phase).index(phase)] == 10.0
    assert sum(current_a) == 10.0


@given(ac_w=st.floats(0.0, 75_000.0), efficiency=st.floats(0.9, 1.0), limit_share=st.floats(1.0, 2.0))
def test_a_dc_charger_that_keeps_its_limit_draws_no_more_than_its_power_is_taken_for(
    site: Site, ac_w: float, efficiency: float, limit_share: float
) -> None:
    shown: dict[str, Value] = {"active_power/1": ac_w * efficiency, "power_limit/1": ac_w * limit_share}
    image = seen(site, "fast-1", shown)["fast-1/1"].image
    assert image.current_a is not None
    assert min(image.current_a) >= ac_w / W_PER_A - 1e-6
    assert max(image.current_a) <= max(ac_w * efficiency / 0.9, 0.0) / W_PER_A + 1e-6
    assert seen(site, "fast-1", shown)["fast-1/2"].image.current_a is None


@pytest.mark.parametrize(
    ("shown_w", "limit_w", "amperes"),
    [
        (9_500.0, 10_000.0, 10_000.0 / W_PER_A),  # at its limit, with a rectifier of 0.95
        (10_500.0, 10_000.0, 10_500.0 / 0.9 / W_PER_A),  # surely over it
        (5_000.0, 10_000.0, 5_000.0 / 0.9 / W_PER_A),  # below it, whatever is lost
        (9_500.0, None, 9_500.0 / 0.9 / W_PER_A),  # it shows none
        (-9_000.0, None, -9_000.0 / W_PER_A),  # it gives back
    ],
)
def test_dc_power_counts_over_the_worst_rectifier_but_within_a_limit_that_may_hold(
    site: Site, shown_w: float, limit_w: float | None, amperes: float
) -> None:
    values: dict[str, Value] = {"active_power/2": shown_w}
    if limit_w is not None:
        values["power_limit/2"] = limit_w
    image = seen(site, "fast-1", values)["fast-1/2"].image
    assert image.current_a == pytest.approx((amperes,) * 3)
    assert image.limit_a == (None if limit_w is None else pytest.approx(limit_w / W_PER_A))


def test_of_the_currents_of_what_is_told_w_the_least_that_may_be_active_counts(site: Site) -> None:
    """Its reactive current stands beside what it is told; it would be taken for one that draws more than that."""
    device = site.devices["charger-001"]
    device = replace(device, evses=(replace(device.evses[0], power_factor=0.95),))
    values: dict[str, Value] = {f"current_l{line}": 20.0 for line in (1, 2, 3)}
    image = evse_readings(site, device, Reading("charger-001", values, 5.0, answered_at_s=5.1))["charger-001"].image
    assert image.current_a == pytest.approx((19.0,) * 3)


def giving_back(site: Site, **shown: Value) -> EvseReading:
    """Return what the first connector of a DC charger shows that may give back as much as it takes."""
    device = site.devices["fast-1"]
    first = replace(device.evses[0], give_back_a=device.evses[0].rating_a)
    reading = Reading("fast-1", {f"{name}/1": value for name, value in shown.items()}, 5.0, answered_at_s=5.1)
    return evse_readings(site, replace(device, evses=(first, *device.evses[1:])), reading)["fast-1/1"]


@given(
    ac_w=st.floats(-75_000.0, 75_000.0),
    efficiency=st.floats(0.9, 1.0),
    limit_share=st.sampled_from([None, 1.0, 1.05, 2.0]),
)
def test_a_dc_charger_that_gives_back_draws_more_than_the_vehicle_takes_and_gives_less_than_that_gives(
    site: Site, ac_w: float, efficiency: float, limit_share: float | None
) -> None:
    dc_w = ac_w * efficiency if ac_w > 0 else ac_w / efficiency
    limit: dict[str, Value] = {} if limit_share is None else {"power_limit": ac_w * limit_share}
    (amperes, _, _) = giving_back(site, active_power=dc_w, **limit).image.current_a or (math.nan,) * 3
    assert abs(amperes) >= abs(ac_w) / W_PER_A - 1e-6
    assert abs(amperes) <= abs(dc_w if dc_w < 0 else dc_w / 0.9) / W_PER_A + 1e-6
    assert amperes * ac_w >= 0
    if limit_share == 1.0 and efficiency > 0.9001:
        assert amperes == pytest.approx(ac_w / W_PER_A)


def test_the_power_of_what_shows_currents_is_that_of_the_supply_either_way(site: Site) -> None:
    currents: dict[str, Value] = {f"current_l{line}": 20.0 for line in (1, 2, 3)}
    for watts in (9_000.0, -9_000.0):
        assert giving_back(site, active_power=watts, **currents).image.current_a == pytest.approx(
            (watts / W_PER_A,) * 3
        )
    assert giving_back(site, **currents).image.current_a is None


def test_a_switch_that_is_off_is_a_limit_of_nothing(site: Site) -> None:
    def limit_a(**values: Value) -> float | None:
        return seen(site, "charger-021", {"current_limit": 16.0, **values})["charger-021"].image.limit_a

    assert limit_a(enabled="disabled") == 0.0
    assert limit_a(enabled="enabled") == 16.0
    assert limit_a() == 16.0


@pytest.mark.parametrize("name", profiles.names())
def test_each_charger_is_occupied_in_each_state_but_the_free_ones(site: Site, name: str) -> None:
    profile = profiles.load(name)
    occupancy = profile.occupancy
    if profile.kind is not DeviceKind.CHARGER or occupancy is None:
        assert profile.kind is not DeviceKind.CHARGER
        return
    device = replace(site.devices["charger-001"], profile=name)
    played = replace(site, profiles={**site.profiles, device.name: profile})
    point = profile.points[occupancy.point]
    # Others spell the states of IEC 61851 out.
    states = ["A", "B1", "B2", "C1", "C2", "E", "F"] if point.states is None else [*point.states.values()]

    def occupied(values: dict[str, Value]) -> bool:
        reading = Reading(device.name, values, 5.0, asked_at_s=5.0, answered_at_s=5.1)
        return evse_readings(played, device, reading)[device.name].occupied

    for state in states:
        assert occupied({occupancy.point: state}) is (state not in occupancy.free)
    # What is not known counts as a vehicle: it may draw.
    assert occupied({})


def test_what_was_never_read_says_nothing_and_what_is_no_number_is_none(site: Site) -> None:
    never = Reading("charger-001", {}, 0.0, quality=Quality.BAD)
    assert evse_readings(site, site.devices["charger-001"], never) == {}
    values: dict[str, Value] = {"current_l1": math.nan, "active_power": "x", "temperature": True}
    found = seen(site, "charger-001", values)["charger-001"]
    assert found.image.current_a is None
    assert found.power_w is None
    assert found.temperature is None


def test_a_meters_sample_has_magnitudes_of_currents_and_signs_of_powers(site: Site) -> None:
    values: dict[str, Value] = {f"current_l{line}": -5.0 * line for line in (1, 2, 3)}
    values |= {f"active_power_l{line}": -1000.0 * line for line in (1, 2, 3)}
    values |= {"voltage_l1": 400 / math.sqrt(3) * 0.9, "frequency": 49.9, "energy": 7.0}
    reading = Reading("grid", values, 5.0, asked_at_s=5.0, answered_at_s=5.1)
    sample = meter_sample(site, "main", reading)
    assert sample is not None
    assert sample.current_a == (5.0, 10.0, 15.0)
    assert sample.active_w == (-1000.0, -2000.0, -3000.0)
    assert sample.voltage_share == pytest.approx(0.9)
    assert (sample.frequency_hz, sample.import_wh, sample.reactive_var) == (49.9, 7.0, None)
    assert meter_sample(site, "main", replace(reading, quality=Quality.STALE)) is None
    assert meter_sample(site, "main", replace(reading, values={"active_power": 5.0})) is None


@pytest.mark.parametrize("lacking", ["current_l1", "current_l2", "active_power_l1", "active_power_l3"])
def test_a_meter_that_lacks_a_value_of_a_line_shows_nothing_of_its_circuit(site: Site, lacking: str) -> None:
    values: dict[str, Value] = {f"current_l{line}": 50.0 for line in (1, 2, 3)}
    values |= {f"active_power_l{line}": 11_000.0 for line in (1, 2, 3)}
    reading = Reading("grid", values, 5.0, asked_at_s=5.0, answered_at_s=5.1)
    assert meter_sample(site, "main", reading) is not None
    del values[lacking]
    assert meter_sample(site, "main", reading) is None
    values |= {"voltage_l1": 400 / math.sqrt(3), "frequency": 49.9, "energy": 7.0, "reactive_power": 5.0}
    apart = meter_sample(site, "main", reading)
    assert apart is not None
    assert (apart.current_a, apart.active_w, apart.reactive_var) == (None, None, None)
    assert apart.voltage_share == pytest.approx(1.0)
    assert (apart.frequency_hz, apart.import_wh) == (49.9, 7.0)
    # A circuit of one phase has no other to show.
    main = replace(site.depot.circuits["main"], rating_a=per_phase(63.0 * (lacking[-1] != line) for line in "123"))
    of_others = replace(site, depot=replace(site.depot, circuits={"main": main}))
    sample = meter_sample(of_others, "main", reading)
    assert sample is not None
    assert sample.active_w is not None


def test_a_meter_without_power_per_phase_still_shows_its_currents(site: Site) -> None:
    values: dict[str, Value] = {f"current_l{line}": 5.0 for line in (1, 2, 3)}
    sample = meter_sample(site, "main", Reading("grid", values, 5.0, asked_at_s=5.0, answered_at_s=5.1))
    assert sample is not None
    assert (sample.current_a, sample.active_w) == ((5.0, 5.0, 5.0), None)


def test_a_meter_of_a_circuit_that_lacks_a_line_need_not_show_that_one(site: Site) -> None:
    main = replace(site.depot.circuits["main"], rating_a=(63.0, 0.0, 63.0))
    lacking = replace(site, depot=replace(site.depot, circuits={**site.depot.circuits, "main": main}))
    values: dict[str, Value] = {
        f"{name}_l{line}": 230.0 * line for line in (1, 3) for name in ("current", "active_power")
    }
    sample = meter_sample(lacking, "main", Reading("grid", values, 5.0, asked_at_s=5.0, answered_at_s=5.1))
    assert sample is not None
    assert sample.current_a == sample.active_w == (230.0, 0.0, 690.0)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_generators_sample_is_by_magnitude_whichever_way_its_meter_counts(site: Site, sign: int) -> None:
    volts = 400 / math.sqrt(3)
    values: dict[str, Value] = {f"current_l{line}": 10.0 for line in (1, 2, 3)}
    values |= {f"active_power_l{line}": sign * 8.0 * volts for line in (1, 2, 3)}
    sample = generated(site, "main", Reading("sun", values, 5.0, asked_at_s=5.0, answered_at_s=5.1))
    assert sample is not None
    assert sample.current_a == (10.0, 10.0, 10.0)
    assert sample.reactive_a == pytest.approx((6.0, 6.0, 6.0))
    assert sample.reactive_var == pytest.approx(18 * volts)


def test_all_of_a_generator_may_be_on_a_line_that_it_does_not_show(site: Site) -> None:
    volts = 400 / math.sqrt(3)
    values: dict[str, Value] = {"active_power": -4.0 * volts, "reactive_power": 3.0 * volts}
    reading = Reading("sun", values, 5.0, asked_at_s=5.0, answered_at_s=5.1)
    found = generated(site, "main", reading)
    assert found is not None
    assert found.current_a == pytest.approx((5.0, 5.0, 5.0))
    assert found.reactive_a == pytest.approx((3.0, 3.0, 3.0))
    one_line = generated(site, "main", replace(reading, values={**values, "current_l1": 5.5}))
    assert one_line is not None
    assert one_line.current_a == pytest.approx((5.5, 5.0, 5.0))
    assert generated(site, "main", replace(reading, values={"current_l1": 5.0})) is None
    assert generated(site, "main", replace(reading, quality=Quality.STALE)) is None


# Sessions


def shows(at_s: float, power_w: float | None, energy_wh: float | None = None, *, occupied: bool = True) -> EvseReading:
    return EvseReading(
        image=EvseImage(sent_s=at_s, answered_s=at_s),
        occupied=occupied,
        power_w=power_w,
        energy_wh=energy_wh,
        soc_percent=None,
        temperature=None,
        state=None,
    )


def follow(*readings: EvseReading) -> Session | None:
    session: Session | None = None
    last: Metering | None = None
    for reading in readings:
        session, last = followed(session, last, "a", reading, reading.image.answered_s)
    return session


def test_energy_is_the_registers_where_it_goes_on() -> None:
    session = follow(shows(0, 11_000, 500.0), shows(10, 11_000, 540.0), shows(20, 11_000, 540.0), shows(30, 0, 600.0))
    assert session is not None
    assert session.started_at_s == 0
    assert session.delivered_wh == pytest.approx(100.0)


def test_energy_is_power_over_time_without_a_register() -> None:
    session = follow(shows(0, 0), shows(10, 7200), shows(20, 7200))
    assert session is not None
    assert session.delivered_wh == pytest.approx(10.0 + 20.0)


@pytest.mark.parametrize("jump_wh", [-1e6, 1e6])
def test_a_register_that_was_reset_or_replaced_is_bridged_by_power(jump_wh: float) -> None:
    session = follow(shows(0, 7200, 2e6), shows(10, 7200, 2e6 + jump_wh), shows(20, 7200, 2e6 + jump_wh + 20))
    assert session is not None
    assert session.delivered_wh == pytest.approx(40.0)


def test_over_a_long_silence_the_register_counts_and_power_alone_does_not() -> None:
    session = follow(shows(0, 11_000, 0.0), shows(3600, 11_000, 11_000.0))
    assert session is not None
    assert session.delivered_wh == pytest.approx(11_000.0)
    unmetered = follow(shows(0, 11_000), shows(3600, 11_000))
    assert unmetered is not None
    assert unmetered.delivered_wh == pytest.approx(11_000.0 * LONGEST_GAP_S / 3600)


def test_a_session_ends_when_the_vehicle_leaves_and_the_next_begins_at_nothing() -> None:
    assert follow(shows(0, 7200), shows(10, 7200), shows(11, 0, occupied=False)) is None
    session = follow(shows(0, 7200, 5.0), shows(10, 0, 25.0, occupied=False), shows(20, 7200, 40.0))
    assert session is not None
    assert session.started_at_s == 20
    assert session.delivered_wh == 0.0


@given(st.lists(st.tuples(st.floats(0.1, 100), st.floats(-50_000, 350_000), st.none() | st.floats(0, 1e7)), max_size=8))
def test_energy_never_falls_below_nothing(course: list[tuple[float, float, float | None]]) -> None:
    at_s, readings = 0.0, []
    for wait_s, power_w, energy_wh in course:
        at_s += wait_s
        readings.append(shows(at_s, power_w, energy_wh))
    session = follow(shows(0, 0), *readings)
    assert session is not None
    assert session.delivered_wh >= 0
    assert math.isfinite(session.delivered_wh)


# Asks

finite = st.floats(-1e9, 1e9)
unix_times = st.none() | st.floats(0, 3e10)


@given(finite | st.just(-math.inf), finite | st.just(math.inf), unix_times, unix_times, st.sampled_from(Rank))
def test_an_ask_comes_back_from_json_as_it_was(
    low_w: float, high_w: float, start: float | None, end: float | None, rank: Rank
) -> None:
    if rank.name.lower() not in {"grid", "operator", "price"}:
        return
    low_w, high_w = min(low_w, high_w), max(low_w, high_w)
    ask = placed(
        Ask(id="a", source="b", rank=rank, low_w=low_w, high_w=high_w, start_unix_s=start, end_unix_s=end), 9.0, 1e9
    )
    assert from_json(json.loads(json.dumps(to_json(ask), allow_nan=False))) == ask


@given(st.none() | finite)
def test_the_baseline_of_an_ask_comes_back_from_json(baseline_w: float | None) -> None:
    ask = Ask(id="a", source="b", rank=Rank.GRID, baseline_w=baseline_w)
    assert from_json(json.loads(json.dumps(to_json(ask), allow_nan=False))).baseline_w == baseline_w


def test_an_ask_that_was_stored_before_there_were_baselines_is_one_without() -> None:
    stored = {
        "id": "a", "source": "b", "rank": "grid", "target": "site", "high_w": 5.0, "end_s": 60.0, "put_by": "root",
    }  # fmt: skip
    ask = Ask(id="a", source="b", rank=Rank.GRID, high_w=5.0, end_s=60.0, put_by="root")
    assert (from_json(stored), from_json(stored).baseline_w) == (ask, None)


def test_another_baseline_is_no_news_to_control() -> None:
    asks = {Ask(id="a", source="b", rank=Rank.GRID, high_w=5.0, baseline_w=each) for each in (None, 1.0, 2.0)}
    assert len(asks) == 1


@pytest.mark.parametrize("lacks", ["id", "source", "rank", "target", "put_by"])
def test_an_ask_that_lacks_something_is_no_ask(lacks: str) -> None:
    stored = to_json(Ask(id="a", source="b", rank=Rank.GRID))
    del stored[lacks]
    with pytest.raises(KeyError):
        from_json(stored)


@pytest.mark.parametrize(
    "broken",
    [
        {"low_w": 6.0},
        {"high_w": "nan"},
        {"low_w": "-inf"},
        {"high_w": math.inf},
        {"baseline_w": "nan"},
        {"start_s": math.nan},
        {"end_unix_s": 253_402_300_800.0},
        {"start_unix_s": -62_135_596_801.0},
        {"start_unix_s": 1e18},
    ],
)
def test_an_ask_that_control_or_the_report_would_stumble_over_is_no_ask(broken: dict[str, object]) -> None:
    stored = {"id": "a", "source": "b", "rank": "grid", "target": "site", "high_w": 5.0, "put_by": "root"}
    assert from_json({**stored, "low_w": 5.0, "start_unix_s": -62_135_596_800.0, "end_unix_s": 253_402_300_799.0})
    (name,) = broken
    with pytest.raises(ValueError, match=f"^{name}: found .*, expected "):
        from_json({**stored, **broken})


finite = st.floats(-1e6, 1e6)


@given(
    shares=st.lists(st.tuples(finite, finite | st.just(-math.inf), finite | st.just(math.inf)), max_size=3),
    uptake_a=st.lists(finite, max_size=3),
    in_force=st.lists(st.tuples(finite, st.none() | finite), max_size=2),
    settled_s=st.none() | finite,
    currents_a=st.none() | st.lists(finite, max_size=3),
    samples=st.lists(st.tuples(finite, finite), max_size=3),
    moved_at_s=finite | st.just(-math.inf),
)
def test_memory_comes_back_from_json_as_it_was(  # noqa: PLR0917 - hypothesis hands in all of them
    shares: list[tuple[float, float, float]],
    uptake_a: list[float],
    in_force: list[tuple[float, float | None]],
    settled_s: float | None,
    currents_a: list[float] | None,
    samples: list[tuple[float, float]],
    moved_at_s: float,
) -> None:
    memory = Memory(
        shares={
            f"evse-{number}": Allocation(
                evse=f"evse-{number}",
                current_a=current_a,
                power_w=230.0 * current_a,
                why="as before",
                raised_at_s=at_s,
                lowered_at_s=at_s,
                cut_at_s=at_s,
                lasting_a=current_a,
                least_a=least_a,
                most_a=-least_a,
            )
            for number, (current_a, at_s, least_a) in enumerate(shares)
        },
        uptake_a={f"evse-{number}": amperes for number, amperes in enumerate(uptake_a)},
        in_force=frozenset(
            Ask(id=str(number), source="grid", rank=Rank.GRID, high_w=high_w, end_s=end_s)
            for number, (high_w, end_s) in enumerate(in_force)
        ),
        settled_s=settled_s,
        plan=None
        if currents_a is None
        else Plan(
            edges_s=tuple(300.0 * edge for edge in range(len(currents_a) + 1)), currents_a={"evse-0": tuple(currents_a)}
        ),
        samples=demand.Samples(tuple(demand.Sample(*one) for one in samples)),
        heat={
            f"evse-{number} charger": thermal.Learnt(
                thermal.Estimate(0.1, 0.2, 0.3, -0.4, 0.5), last_share=None if settled_s is None else 0.25 * number
            )
            for number in range(len(uptake_a))
        },
        wall=demand.Wall(12.0, -math.inf if settled_s is None else settled_s),
        droop=droop.State(
            at_s=settled_s, output=-0.5, direction=-1, moved_at_s=moved_at_s, known=True, before_w={"evse-1": 7.0}
        ),
    )
    watts_per_a = {f"evse-{number}": 230.0 for number in range(3)}
    stored = json.loads(json.dumps(handover.to_json(memory), allow_nan=False))
    assert handover.from_json(stored, watts_per_a) == memory
    fewer = handover.from_json(stored, {"evse-0": 230.0})
    assert {*fewer.shares, *fewer.uptake_a} <= {"evse-0"}


@pytest.mark.parametrize("lacks", ["shares", "uptake_a", "in_force", "settled_s", "plan", "samples", "droop"])
@pytest.mark.parametrize("nonsense", [None, "much"])
def test_memory_that_cannot_be_read_is_none(lacks: str, nonsense: str | None) -> None:
    stored = handover.to_json(Memory())
    broken = {name: value for name, value in stored.items() if name != lacks}
    if nonsense is not None:
        broken[lacks] = nonsense
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        handover.from_json(broken, {})


@pytest.mark.parametrize(
    "plan",
    [
        {"edges_s": [0.0, 300.0], "currents_a": {"evse-0": []}},
        {"edges_s": [0.0], "currents_a": {"evse-0": [6.0]}},
        {"edges_s": [], "currents_a": {}},
    ],
)
def test_a_plan_that_no_cycle_could_follow_is_refused(plan: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"in a plan, expected|a plan without edges"):
        handover.from_json({**handover.to_json(Memory()), "plan": plan}, {"evse-0": 230.0})


def test_after_a_restart_of_the_host_times_are_the_walls() -> None:
    ask = placed(Ask(id="a", source="b", rank=Rank.GRID, start_unix_s=1000.0, end_unix_s=1060.0), 50.0, 990.0)
    assert (ask.start_s, ask.end_s) == (60.0, 120.0)
    # A step of the wall's clock moves nothing while the host runs: only `placed` looks at it.
    assert not ask.in_force(59.9)
    assert ask.in_force(60.0)
    assert ask.in_force(119.9)
    assert ask.over(120.0)
    again = placed(ask, 5.0, 1030.0)
    assert (again.start_s, again.end_s) == (-25.0, 35.0)
    assert again.in_force(5.0)
    always = placed(Ask(id="a", source="b", rank=Rank.GRID), 5.0, 1030.0)
    assert (always.start_s, always.end_s) == (None, None)
    assert always.in_force(1e9)


def test_what_was_put_before_the_hosts_start_follows_the_clock_once_that_is_set() -> None:
    """A gateway whose clock stands still without power is behind until NTP has answered."""
    ask = Ask(id="a", source="b", rank=Rank.OPERATOR, start_unix_s=1000.0, end_unix_s=1060.0, goes_by=Clock.WALL)
    behind = placed(ask, 5.0, 405.0)
    assert (behind.start_s, behind.end_s) == (600.0, 660.0)
    assert moved(behind, 400.9) is behind  # it runs a little faster or slower, and that is no step
    again = moved(behind, 1025.0 - 10.0)
    assert (again.start_s, again.end_s) == (-15.0, 45.0)
    assert (again.start_unix_s, again.end_unix_s) == (1000.0, 1060.0)
    assert from_json(to_json(again)).goes_by is Clock.WALL
    for_good = placed(replace(ask, end_unix_s=None), 5.0, 405.0)
    assert moved(for_good, 1000.0).start_s == 0.0


def test_what_is_to_last_for_so_long_does_so_and_ends_by_the_clock_as_it_is_set_by_then() -> None:
    asked = {"name": "less", "high_w": 5.0, "duration_s": 60.0}
    ask = placed(ask_of(asked, "root", {"site": None}, 405.0), 5.0, 405.0)
    assert (ask.end_s, ask.end_unix_s) == (65.0, 465.0)
    again = moved(ask, 5000.0)
    assert (again.end_s, again.end_unix_s) == (65.0, 5065.0)
    assert moved(again, 5000.5) is again
    # After a restart of the host it is as any other.
    assert placed(from_json(to_json(again)), 10.0, 5030.0).end_s == 45.0


def test_what_is_put_with_its_times_stays_where_it_is_while_the_host_runs() -> None:
    asked = {"name": "less", "high_w": 5.0, "end": "2030-01-01T00:00:00Z"}
    for start in ({}, {"start": "2029-12-31T23:00:00Z"}):
        ask = placed(ask_of({**asked, **start}, "root", {"site": None}, 405.0), 5.0, 405.0)
        assert moved(ask, 5000.0) is ask


def test_the_base_load_is_taken_off_asks_on_the_site_alone() -> None:
    base = limits.BaseLoad(
        circuit="main",
        source="meter",
        low_a=(0.0,) * 3,
        high_a=(10.0,) * 3,
        low_w=0.0,
        high_w=7000.0,
        reactive_var=0.0,
        apparent_va=None,
    )
    targets = ("site", "main", "a")
    asks = [Ask(id=target, source=target, rank=Rank.GRID, target=target, high_w=10_000.0) for target in targets]
    assert [(one.target, one.high, one.rank) for one in limits_of(asks, base)] == [
        (limits.SITE, 3000.0, Rank.GRID),
        (limits.SITE, 3000.0, Rank.GRID),
        ("a", 10_000.0, Rank.GRID),
    ]


# On disk


def test_a_document_is_replaced_whole_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.load(LEDGER) == (None, None)
    store.save(LEDGER, {"a": [1, None]})
    store.save(LEDGER, {"a": 2})
    assert store.load(LEDGER) == ({"a": 2}, None)
    assert stat.S_IMODE((tmp_path / LEDGER).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [LEDGER]


def test_a_document_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.save(LEDGER, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.save(LEDGER, {"a": math.nan})

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        store.save(LEDGER, {"a": 2})
    monkeypatch.undo()
    assert store.load(LEDGER) == ({"a": 1}, None)


def test_what_is_on_disk_was_synced_before_it_was_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replaced = os.fsync, Path.replace

    def synced(number: int) -> None:
        order.append("sync")
        fsync(number)

    def put_in_place(path: Path, target: Path) -> Path:
        order.append("replace")
        return replaced(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", put_in_place)
    Store(tmp_path).save(LEDGER, {})
    assert order == ["sync", "replace", "sync"]


def test_a_journal_has_what_was_added_since_it_was_begun(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.records(JOURNAL) == []
    with pytest.raises(FileNotFoundError):
        store.append(JOURNAL, {"a": 1})  # it follows no ledger
    store.begin(JOURNAL)
    store.append(JOURNAL, {"a": 1})
    store.append(JOURNAL, {"a": 2})
    assert store.records(JOURNAL) == [{"a": 1}, {"a": 2}]
    assert stat.S_IMODE((tmp_path / JOURNAL).stat().st_mode) == 0o600
    store.begin(JOURNAL)
    assert store.records(JOURNAL) == []


def test_a_record_is_on_the_disk_before_anybody_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.begin(JOURNAL)
    sizes: list[int] = []
    fdatasync = os.fdatasync

    def synced(number: int) -> None:
        sizes.append(os.fstat(number).st_size)
        fdatasync(number)

    monkeypatch.setattr(os, "fdatasync", synced)
    store.append(JOURNAL, {"a": 1})
    store.append(JOURNAL, {"b": 2})
    assert sizes == [8, 16]


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_record_that_was_cut_off_is_none(tmp_path: Path, cut: int) -> None:
    store = Store(tmp_path)
    store.begin(JOURNAL)
    store.append(JOURNAL, {"a": 1})
    store.append(JOURNAL, {"b": 2})
    path = tmp_path / JOURNAL
    path.write_bytes(path.read_bytes()[:-cut])
    assert store.records(JOURNAL) == [{"a": 1}]


def test_a_journal_that_is_broken_before_its_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_bytes(b'{"a":1}\n{"b\n{"c":3}\n')
    with pytest.raises(ValueError, match="Unterminated string"):
        Store(tmp_path).records(JOURNAL)


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe"])
def test_a_broken_document_is_put_aside_and_said(tmp_path: Path, content: bytes) -> None:
    store = Store(tmp_path)
    (tmp_path / LEDGER).write_bytes(content)
    document, problem = store.load(LEDGER)
    assert document is None
    assert problem is not None
    assert f"{tmp_path / LEDGER}: " in problem
    assert "kept as ledger.json.unreadable" in problem
    assert (tmp_path / f"{LEDGER}.unreadable").read_bytes() == content
    assert store.load(LEDGER) == (None, None)


def test_only_the_planner_brings_scipy_along() -> None:
    code = "import sys, derms_agent.orchestrator.service; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
