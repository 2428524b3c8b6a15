# SPDX-License-Identifier: Apache-2.0
"""The ledger and the guard against a plant that does the worst its assumptions allow."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
import time
from dataclasses import dataclass, field
from typing import TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from derms_agent import profiles
from derms_agent.control import cycle, guard, ledger, limits
from derms_agent.control.guard import Admission, Purpose, Rules, admit
from derms_agent.control.ledger import (
    Acknowledged,
    Amount,
    Answered,
    Armed,
    Cause,
    Distrusted,
    Event,
    Ledger,
    Loads,
    Lost,
    Measured,
    NotExecuted,
    ReadBack,
    Replaced,
    Seen,
    Span,
    Station,
)
from derms_agent.control.worst_case import ANGLES, BaseLoad, Caps, Circuits, amperes_of, spans_of
from derms_agent.model import Circuit, Connection, Evse, LimitQuantity, PerPhase, Phase, Value
from derms_agent.profiles.profile import Refresh

THREE = tuple(Phase)
EPS = 1e-6
NO_BASE = {"main": BaseLoad()}


def station(name: str = "one", **known: object) -> Station:
    fields: dict[str, object] = {
        "name": name,
        "circuit": "main",
        "phases": THREE,
        "rating_a": 32.0,
        "after_boot": Span(high=32.0),
        "fallback": Span(high=6.0),
        "watchdog_s": 30.0,
    }
    return Station(**(fields | known))  # type: ignore[arg-type]


def circuit(name: str = "main", rating_a: float = 40.0, **known: object) -> Circuit:
    fields: dict[str, object] = {
        "name": name,
        "parent": None,
        "connection": Connection.WYE,
        "voltage_v": 400.0,
        "rating_a": (rating_a,) * 3,
    }
    return Circuit(**(fields | known))  # type: ignore[arg-type]


def proven(stations: list[Station], told: dict[str, float], now_s: float = 0.0) -> Ledger:
    """Return the ledger of EVSEs that were told, obeyed and were measured, until `now_s`."""
    book = ledger.started(stations, now_s - 100)
    for one in stations:
        write, book = ledger.issue(book, one.name, Amount(told[one.name]), now_s - 50)
        events: list[Event] = [
            ledger.Refreshed(one.name, now_s - 50),
            Acknowledged(one.name, write, now_s - 49),
            Armed(one.name, one.watchdog_s, one.fallback, now_s - 49),
        ]
        for ago in range(48, -1, -1):
            at_s = now_s - ago
            events += [
                Measured(one.name, (told[one.name],) * 3, at_s, at_s),
                ReadBack(one.name, Amount(told[one.name]), at_s, at_s),
            ]
            events.append(ledger.Refreshed(one.name, at_s))
        book = ledger.record(book, events)
    return book


def seen(book: Ledger, name: str, drawn_a: float, now_s: float) -> Ledger:
    """Return the ledger after an EVSE has answered each second until now, its watchdog fed, and was measured."""
    heard_s = book.entries[name].heard_s
    events: list[Event] = []
    while heard_s is not None and heard_s + 1 < now_s:
        heard_s += 1
        events += [Answered(name, heard_s, heard_s), ledger.Refreshed(name, heard_s)]
    events += [Measured(name, (drawn_a,) * 3, now_s, now_s), ledger.Refreshed(name, now_s)]
    return ledger.record(book, events)


# One claim after the other


def test_nothing_known_counts_as_the_rating() -> None:
    book = ledger.started([station()], 0.0)
    assert book.span("one", 0.0) == Span(high=32.0)


def test_a_proven_setpoint_is_all_that_counts() -> None:
    assert proven([station()], {"one": 10.0}).span("one", 0.0) == Span(high=10.0)


def test_a_write_counts_from_its_issue_and_an_acknowledgement_frees_nothing() -> None:
    book = proven([station()], {"one": 10.0})
    write, book = ledger.issue(book, "one", Amount(16.0), 0.0)
    assert book.span("one", 0.0).high == 16.0
    book = ledger.record(book, [Acknowledged("one", write, 0.5)])
    write, book = ledger.issue(book, "one", Amount(6.0), 1.0)
    book = ledger.record(book, [Acknowledged("one", write, 1.5)])
    assert book.span("one", 2.0).high == 16.0


@pytest.mark.parametrize(("drawn_a", "at_s", "counted_a"), [(6.0, 13.4, 16.0), (6.0, 13.5, 6.0), (9.0, 20.0, 16.0)])
def test_only_a_current_measured_after_the_follow_time_lets_a_decrease_go(
    drawn_a: float, at_s: float, counted_a: float
) -> None:
    book = proven([station()], {"one": 16.0})
    write, book = ledger.issue(book, "one", Amount(6.0), 1.0)
    book = ledger.record(book, [Acknowledged("one", write, 1.5)])
    assert seen(book, "one", drawn_a, at_s).entries["one"].span.high == counted_a


def test_a_lost_write_counts_with_the_old_value_until_one_of_them_is_disproven() -> None:
    book = proven([station()], {"one": 10.0})
    write, book = ledger.issue(book, "one", Amount(16.0), 0.0)
    book = ledger.record(book, [Lost("one", write, 1.0)])
    # It may arrive until 3 s after its issue: what is read before proves nothing.
    early = ledger.record(book, [ReadBack("one", Amount(10.0), 2.0, 2.1)])
    assert seen(early, "one", 10.0, 15.0).entries["one"].span.high == 16.0
    late = ledger.record(book, [ReadBack("one", Amount(10.0), 3.1, 3.2)])
    assert seen(late, "one", 10.0, 15.3).entries["one"].span.high == 10.0


def test_an_acknowledged_write_does_not_supersede_one_that_may_still_arrive() -> None:
    book = proven([station()], {"one": 10.0})
    first, book = ledger.issue(book, "one", Amount(16.0), 0.0)
    book = ledger.record(book, [Lost("one", first, 0.5)])
    second, book = ledger.issue(book, "one", Amount(6.0), 1.0)
    book = seen(ledger.record(book, [Acknowledged("one", second, 1.2)]), "one", 6.0, 14.0)
    assert book.span("one", 14.0).high == 16.0


def test_a_write_that_was_not_executed_leaves_what_it_covered() -> None:
    book = proven([station()], {"one": 16.0})
    write, book = ledger.issue(book, "one", Amount(6.0), 0.0)
    book = ledger.record(book, [Acknowledged("one", write, 0.5)])
    write, book = ledger.issue(book, "one", Amount(16.0), 1.0)
    book = ledger.record(book, [ReadBack("one", Amount(6.0), 1.2, 1.3), NotExecuted("one", write, 1.5)])
    assert book.span("one", 2.0).high == 16.0


def test_what_somebody_else_wrote_counts_once_it_is_read() -> None:
    book = ledger.record(proven([station()], {"one": 10.0}), [ReadBack("one", Amount(20.0), 1.0, 1.1)])
    assert book.span("one", 1.2).high == 20.0
    assert book.entries["one"].told_amount == Amount(20.0)


def test_silence_brings_in_the_fallback_once_the_watchdog_may_have_run_out() -> None:
    one = station(after_boot=Span(), fallback=Span(high=20.0), settings_last=True)
    book = proven([one], {"one": 10.0})
    assert book.span("one", 29.9).high == 10.0
    assert book.span("one", 30.0).high == 20.0


def test_silence_brings_in_the_after_boot_value_as_soon_as_a_restart_fits_in() -> None:
    book = proven([station(after_boot=Span(high=25.0), settings_last=True)], {"one": 10.0})
    assert book.span("one", 4.9).high == 10.0
    assert book.span("one", 5.0).high == 25.0


def test_without_a_watchdog_read_back_silence_counts_as_the_rating() -> None:
    one = station(after_boot=Span(), watchdog_s=None, boot_s=100.0)
    book = proven([one], {"one": 10.0})
    assert book.span("one", 4.9).high == 10.0
    assert book.span("one", 5.0).high == 32.0
    back = ledger.record(book, [Answered("one", 6.0, 6.1)])
    assert seen(back, "one", 10.0, 18.2).span("one", 18.2).high == 10.0


def test_a_restart_casts_doubt_on_settings_that_do_not_last() -> None:
    one = station(after_boot=Span(high=8.0), fallback=Span(high=6.0))
    book = ledger.advance(proven([one], {"one": 6.0}), 5.0)
    assert book.entries["one"].fallback is None
    assert book.span("one", 5.0).high == 32.0


def test_a_restart_counts_until_a_write_after_it_was_acknowledged_and_measured() -> None:
    book = ledger.record(proven([station()], {"one": 10.0}), [Answered("one", 9.0, 9.1)])
    assert seen(book, "one", 10.0, 40.0).entries["one"].span.high == 32.0
    write, book = ledger.issue(book, "one", Amount(10.0), 10.0)
    book = ledger.record(book, [Acknowledged("one", write, 10.5)])
    assert seen(book, "one", 10.0, 22.4).entries["one"].span.high == 32.0
    assert seen(book, "one", 10.0, 22.5).entries["one"].span.high == 10.0


@pytest.mark.parametrize(("shows_in_force", "counted_a"), [(False, 32.0), (True, 10.0)])
def test_what_is_read_back_excludes_a_restart_only_where_it_is_what_is_in_force(
    shows_in_force: bool, counted_a: float
) -> None:
    book = proven([station(shows_in_force=shows_in_force, watchdog_s=300.0)], {"one": 10.0})
    book = ledger.record(book, [Seen("one", Amount(10.0), (10.0,) * 3, float(at), float(at)) for at in range(8, 40)])
    assert book.span("one", 40.0).high == counted_a


def test_a_watchdog_that_ran_out_counts_at_the_rating_where_its_fallback_was_never_read() -> None:
    book = ledger.started([station()], -100.0)
    write, book = ledger.issue(book, "one", Amount(10.0), -50.0)
    book = ledger.record(book, [Acknowledged("one", write, -49.0)])
    samples = [Seen("one", Amount(10.0), (10.0,) * 3, float(at), float(at)) for at in range(-48, 1)]
    assert ledger.record(book, samples[:20]).span("one", -28.0).high == 10.0
    assert ledger.record(book, samples).span("one", 0.0).high == 32.0


@pytest.mark.parametrize(("now_s", "relied_on"), [(4.9, True), (5.1, False)])
def test_who_takes_no_writes_is_not_relied_on(now_s: float, relied_on: bool) -> None:
    book = proven([station()], {"one": 16.0})
    write, book = ledger.issue(book, "one", Amount(6.0), 0.0)
    book = seen(ledger.record(book, [Lost("one", write, 2.0)]), "one", 16.0, now_s)
    assert guard.reliable(book.entries["one"], book.stations["one"], now_s) is relied_on


@pytest.mark.parametrize(("now_s", "relied_on"), [(18.0, True), (19.0, False)])
def test_who_does_not_come_down_to_what_it_acknowledged_is_not_relied_on(now_s: float, relied_on: bool) -> None:
    book = proven([station()], {"one": 16.0})
    write, book = ledger.issue(book, "one", Amount(6.0), 1.0)
    book = seen(ledger.record(book, [Acknowledged("one", write, 1.5)]), "one", 9.0, now_s)
    assert guard.reliable(book.entries["one"], book.stations["one"], now_s) is relied_on


def test_an_uptime_excludes_a_restart() -> None:
    one = station(settings_last=True)
    silent = ledger.record(proven([one], {"one": 10.0}), [Answered("one", 9.0, 9.1, up_since_s=3.0)])
    assert silent.span("one", 9.2).high == 32.0
    up = ledger.record(proven([one], {"one": 10.0}), [Answered("one", 9.0, 9.1, up_since_s=-60.0)])
    assert up.entries["one"].span.high == 32.0 - 22.0


def test_a_watchdog_that_only_a_heartbeat_feeds_is_not_fed_by_writes() -> None:
    one = station(refreshed_by=Refresh.HEARTBEAT, watchdog_s=10.0, fallback=Span(high=20.0), boot_s=100.0)
    book = proven([one], {"one": 6.0})
    write, book = ledger.issue(book, "one", Amount(6.0), 11.0)
    book = ledger.record(book, [Acknowledged("one", write, 11.1)])
    assert seen_without_refresh(book, 25.0).span.high == 20.0
    book = ledger.record(book, [ledger.Refreshed("one", 25.0)])
    write, book = ledger.issue(book, "one", Amount(6.0), 25.5)
    book = ledger.record(book, [Acknowledged("one", write, 25.6), ledger.Refreshed("one", 37.0)])
    assert seen_without_refresh(book, 38.0).span.high == 20.0  # it ran out again in between
    book = ledger.record(book, [ledger.Refreshed("one", 38.0)])
    write, book = ledger.issue(book, "one", Amount(6.0), 38.5)
    book = ledger.record(book, [Acknowledged("one", write, 38.6), ledger.Refreshed("one", 47.0)])
    assert seen_without_refresh(book, 50.7).span.high == 6.0


def seen_without_refresh(book: Ledger, now_s: float) -> ledger.Entry:
    heard_s = book.entries["one"].heard_s or 0.0
    events: list[Event] = [Answered("one", heard_s + ago, heard_s + ago) for ago in range(1, int(now_s - heard_s))]
    return ledger.record(book, [*events, Measured("one", (6.0,) * 3, now_s, now_s)]).entries["one"]


def test_more_than_all_claims_counts_as_measured_and_as_the_rating_once_lost_sight_of() -> None:
    book = seen(proven([station()], {"one": 10.0}), "one", 20.0, 1.0)
    assert book.span("one", 1.0).high == 20.0
    assert book.span("one", 4.1).high == 32.0


def test_a_vehicle_on_one_phase_loads_one_and_unknown_phases_load_all() -> None:
    known = ledger.record(proven([station()], {"one": 10.0}), [Loads("one", (Phase.L2,), 0.0)])
    # It was seen to draw on all three a moment ago, which the guess about the vehicle does not undo.
    assert [span.high for span in guard.intervals(known, 0.0)["one"]] == [10.0, 10.0, 10.0]
    known = ledger.record(known, [Measured("one", (0.0, 10.0, 0.0), 1.0, 1.0)])
    assert [span.high for span in guard.intervals(known, 1.0)["one"]] == [0.0, 10.0, 0.0]
    unknown = proven([station(phases=())], {"one": 10.0})
    assert [span.high for span in guard.intervals(unknown, 0.0)["one"]] == [10.0, 10.0, 10.0]


def test_a_distrusted_evse_counts_as_its_rating_until_it_follows_again() -> None:
    book = ledger.record(proven([station()], {"one": 10.0}), [Distrusted("one", True, 0.0)])
    assert book.span("one", 1.0).high == 32.0
    book = seen(ledger.record(book, [Distrusted("one", False, 1.0)]), "one", 10.0, 13.0)
    assert book.span("one", 13.0).high == 10.0


def test_another_device_is_unknown() -> None:
    book = ledger.record(proven([station()], {"one": 10.0}), [Replaced("one", 0.0)])
    assert book.span("one", 0.0).high == 32.0


# Stations from profiles


@pytest.mark.parametrize(
    ("profile", "declared", "fallback_a", "after_boot_a", "watchdog_s"),
    [
        ("keba_p30", {"failsafe_current": 6, "failsafe_timeout": 30}, 6.0, 32.0, 30.0),
        ("alfen_ng9", {}, 32.0, 32.0, 60.0),
        ("heidelberg_energy_control", {"failsafe_current": 8}, 8.0, 32.0, 15.0),
        ("phoenix_charx", {}, 32.0, 32.0, None),
    ],
)
def test_a_station_takes_what_its_profile_says(
    profile: str, declared: dict[str, Value], fallback_a: float, after_boot_a: float, watchdog_s: float | None
) -> None:
    evse = Evse(name="one", device="one", connector=1, circuit="main", phases=THREE, rating_a=32.0)
    found = ledger.station_of(evse, profiles.load(profile), declared, voltage_v=400.0)
    assert found.fallback.high == pytest.approx(fallback_a)
    assert found.after_boot.high == after_boot_a
    if profile != "alfen_ng9":
        assert found.watchdog_s == watchdog_s


# The most that circuits may carry


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_corners_are_the_most_that_any_course_within_the_intervals_reaches(data: st.DataObject) -> None:  # noqa: C901
    top = data.draw(st.sampled_from([Connection.WYE, Connection.DELTA, Connection.DELTA_WYE]))
    below = data.draw(st.sampled_from([Connection.WYE, Connection.DELTA, Connection.DELTA_WYE]))
    circuits = {"main": circuit(connection=top), "part": circuit("part", parent="main", connection=below)}
    wired = data.draw(
        st.lists(
            st.tuples(st.sampled_from(["main", "part"]), st.sampled_from([(p,) for p in THREE] + [THREE])),
            min_size=1,
            max_size=4,
        )
    )
    factor = st.sampled_from([1.0, 1.0, 0.95, 0.8])  # of those below 1, each draws what it is told in W
    stations = [
        station(f"e{i}", circuit=name, phases=phases, power_factor=data.draw(factor))
        for i, (name, phases) in enumerate(wired)
    ]
    tree = Circuits(circuits, stations)
    ampere = st.floats(0, 32)
    spans = [
        Span(-data.draw(ampere), data.draw(ampere), -data.draw(ampere) / 4, data.draw(ampere) / 4) for _ in stations
    ]
    per_phase = [
        tuple(span if phase in one.phases else ledger.NOTHING for phase in THREE)
        for one, span in zip(stations, spans, strict=True)
    ]
    found = tree.extents(tree.box(per_phase), {name: BaseLoad() for name in circuits})  # type: ignore[arg-type]
    rng = random.Random(data.draw(st.integers(0, 1000)))  # noqa: S311 - a course of events, no secret
    reached: dict[str, list[float]] = {name: [0.0] * 3 for name in circuits}
    for _ in range(40):
        lines: dict[str, list[complex]] = {name: [0j] * 3 for name in circuits}
        for one, span in zip(stations, spans, strict=True):
            places = [THREE.index(phase) for phase in one.phases]
            for place in places:
                flow = complex(
                    rng.choice([span.low, span.high, rng.uniform(span.low, span.high)]),
                    -rng.choice([span.reactive_low, span.reactive_high]) if one.power_factor == 1 else 0.0,
                )
                if one.power_factor < 1:
                    carried_a = min(abs(flow) / one.power_factor, one.rating_a)
                    flow += rng.choice([-1j, 0j, 1j]) * math.sqrt(max(carried_a**2 - abs(flow) ** 2, 0.0))
                if circuits[one.circuit].connection is Connection.DELTA and len(places) == 1:
                    there = (place + 1) % 3
                    branch = (ANGLES[place] - ANGLES[there]) / math.sqrt(3) * flow
                    lines[one.circuit][place] += branch
                    lines[one.circuit][there] -= branch
                else:
                    lines[one.circuit][place] += ANGLES[place] * flow
        for name in ("part", "main"):
            if circuits[name].connection is Connection.DELTA_WYE:
                a, b, c = lines[name]
                lines[name] = [(a - b) / math.sqrt(3), (b - c) / math.sqrt(3), (c - a) / math.sqrt(3)]
            if name == "part":
                lines["main"] = [own + child for own, child in zip(lines["main"], lines["part"], strict=True)]
            for line in range(3):
                reached[name][line] = max(reached[name][line], abs(lines[name][line]))
    for name, line in itertools.product(circuits, range(3)):
        if (name, THREE[line]) in found:
            assert reached[name][line] <= found[name, THREE[line]].any + EPS


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_sums_that_grow_are_those_that_are_worked_out_anew(data: st.DataObject) -> None:
    circuits = {"main": circuit(connection=Connection.DELTA_WYE), "part": circuit("part", parent="main")}
    stations = [
        station(
            f"e{number}",
            circuit=data.draw(st.sampled_from(["main", "part"])),
            power_factor=data.draw(st.sampled_from([1.0, 0.95, 0.8])),
            angle_known=data.draw(st.booleans()),
        )
        for number in range(3)
    ]
    tree = Circuits(circuits, stations)
    ampere = st.floats(0, 40)
    before = [Span(-data.draw(ampere), data.draw(ampere), -1.0, 2.0) for _ in stations]
    after = [before[0].hull(Span(-data.draw(ampere), data.draw(ampere), -3.0, 1.0)), *before[1:]]
    old, new = (tree.sums(tree.box([(span,) * 3 for span in spans])) for spans in (before, after))
    for row in tree.touched[0]:
        grown = tree.grown(0, row, old[row], (before[0],) * 3, (after[0],) * 3)
        for found, expected in zip(grown, new[row], strict=True):
            assert found == pytest.approx(expected, abs=1e-6)


def in_watts(name: str, **known: object) -> Station:
    fields: dict[str, object] = {"rating_a": 125.0, "least_a": 1.0, "step_a": 0.001, "power_factor": 0.95}
    return station(name, **(fields | {"fallback": Span(), "after_boot": Span()} | known))


def told_a(stations: list[Station], rating_a: float, wanted: dict[str, float], **more: object) -> dict[str, float]:
    book = proven(stations, {one.name: 0.0 for one in stations})
    amounts = {name: Amount(active) for name, active in wanted.items()}
    admission = admit(
        book, amounts, 0.0, circuits=Circuits({"main": circuit(rating_a=rating_a)}, stations), base=NO_BASE,
        **more,  # type: ignore[arg-type]
    )  # fmt: skip
    return {write.evse: write.amount.active_a for write in admission.writes}


def test_what_is_told_w_loads_a_line_with_its_least_power_factor() -> None:
    found = told_a([in_watts("one"), in_watts("two")], 200.0, {"one": 110.0, "two": 110.0})
    assert sum(found.values()) == pytest.approx(0.95 * 200.0, abs=0.01)
    found = told_a([in_watts("one"), station("told-a", rating_a=125.0)], 200.0, {"one": 95.0, "told-a": 110.0})
    assert found == {"one": pytest.approx(95.0), "told-a": 100.0}


def test_what_is_told_w_loads_no_line_beyond_its_rating() -> None:
    assert told_a([in_watts("one")], 125.0, {"one": 125.0}) == {"one": 125.0}
    both = told_a([in_watts("one"), station("told-a", rating_a=25.0)], 150.0, {"one": 125.0, "told-a": 25.0})
    assert both == {"one": 125.0, "told-a": 25.0}


def test_what_is_told_w_is_counted_as_that_against_a_limit_in_w_and_with_its_power_factor_against_one_in_va() -> None:
    watts_per_a = math.sqrt(3) * 400.0
    stations = [in_watts("one"), in_watts("two")]
    wanted = {"one": 110.0, "two": 110.0}
    for quantity, most_a in ((LimitQuantity.ACTIVE_POWER, 200.0), (LimitQuantity.APPARENT_POWER, 190.0)):
        caps: Caps = {("main", quantity, None): (-math.inf, 200.0 * watts_per_a)}
        found = told_a(stations, 1000.0, wanted, caps=caps)
        assert sum(found.values()) == pytest.approx(most_a, abs=0.01)


def test_a_delta_line_is_counted_at_its_worst_corner() -> None:
    # Branch L1-L2 charges and branch L3-L1 charges; a discharge on L2-L3 does not meet L1, one on L3-L1 lowers it.
    stations = [station("ab", phases=(Phase.L1,)), station("ca", phases=(Phase.L3,), lowest_a=-32.0)]
    tree = Circuits({"main": circuit(connection=Connection.DELTA)}, stations)
    empty = ledger.NOTHING
    here, there = (ANGLES[0] - ANGLES[1]) / 3**0.5, (ANGLES[0] - ANGLES[2]) / 3**0.5
    box = tree.box([(Span(high=30.0), empty, empty), (empty, empty, Span(-20.0, 0.0))])
    assert abs(30 * here - 20 * there) < 30.0  # together they are less than one alone, which may stay alone
    assert tree.extents(box)["main", Phase.L1].any == pytest.approx(30.0)
    box = tree.box([(Span(-30.0, 30.0), empty, empty), (empty, empty, Span(-20.0, 5.0))])
    assert tree.extents(box)["main", Phase.L1].any == pytest.approx(abs(30 * here + 20 * there))


def test_base_load_is_measured_or_worst() -> None:
    tree = Circuits({"main": circuit(base_load_a=(20.0, 20.0, 20.0))}, [station()])
    box = tree.box([(Span(high=10.0),) * 3])
    assert tree.extents(box)["main", Phase.L1].any == pytest.approx(30.0)
    measured = BaseLoad(active_a=(5.0, -5.0, 0.0), spread_a=(1.0, 0.0, 0.0))
    known = tree.extents(box, {"main": measured})
    assert [known["main", phase].any for phase in THREE] == pytest.approx([16.0, 10.0, 10.0])
    assert known["main", None].any == pytest.approx(400 / 3**0.5 * 36.0)


# What is admitted


def over(book: Ledger, tree: Circuits, now_s: float, caps: Caps | None = None) -> bool:
    return bool(guard.over(book, tree, caps or {}, None, now_s))


def written(admission: Admission) -> dict[str, Amount]:
    return {write.evse: write.amount for write in admission.writes}


TWO = [station("one"), station("two")]
TREE = Circuits({"main": circuit()}, TWO)


def test_decreases_leave_at_once_and_increases_wait_for_the_measured_current() -> None:
    book = proven(TWO, {"one": 30.0, "two": 6.0})
    wanted = {"one": Amount(10.0), "two": Amount(30.0)}
    first = admit(book, wanted, 0.0, circuits=TREE)
    # 40 A less the 30 A that may still flow.
    assert written(first) == {"one": Amount(10.0), "two": Amount(10.0)}
    book = ledger.record(first.ledger, [Acknowledged(w.evse, w.id, 0.5) for w in first.writes])
    for at_s in range(1, 13):
        for name, drawn_a in (("one", 10.0), ("two", 10.0)):
            book = seen(book, name, drawn_a, float(at_s))
        step = admit(book, wanted, float(at_s), circuits=TREE)
        assert not step.writes, at_s
        assert step.held["two"] is not None
    book = seen(seen(book, "one", 10.0, 13.0), "two", 10.0, 13.0)
    assert written(admit(book, wanted, 13.0, circuits=TREE)) == {"two": Amount(30.0)}


def test_a_fallback_counts_against_ratings_while_all_is_well() -> None:
    """If this process died now, one would go up to its fallback while two still holds what it was told."""
    stations = [station("one", watchdog_s=20.0), station("two", watchdog_s=60.0)]
    tree = Circuits({"main": circuit(rating_a=30.0)}, stations)
    admission = admit(proven(stations, {"one": 0.0, "two": 10.0}), {"two": Amount(32.0)}, 0.0, circuits=tree)
    assert {write.evse: write.amount.active_a for write in admission.writes} == {"two": 24.0}
    assert admission.capped["two"].circuit == "main"


def test_a_fallback_counts_against_what_protects_a_circuit_and_not_against_what_the_grid_asks_for() -> None:
    stations = [station("one"), station("two")]
    tree = Circuits({"main": circuit(rating_a=60.0)}, stations)
    caps: Caps = {("main", LimitQuantity.CURRENT, None): (-60.0, 20.0)}
    book = proven(stations, {"one": 0.0, "two": 0.0})
    asked = admit(book, {"two": Amount(32.0)}, 0.0, circuits=tree, caps=caps, base=NO_BASE)
    assert [write.amount.active_a for write in asked.writes] == [20.0]
    protected = admit(book, {"two": Amount(32.0)}, 0.0, circuits=tree, caps=caps, kept=caps, base=NO_BASE)
    assert [write.amount.active_a for write in protected.writes] == [14.0]


def test_a_fallback_counts_beside_the_base_load_that_was_taken_off_a_rating() -> None:
    """Between 10 s and 60 s after this process died eight have fallen back, and two still hold what they were told."""
    quick = [station(f"quick-{number}", watchdog_s=10.0) for number in range(8)]
    slow = [station("slow-1", watchdog_s=60.0), station("slow-2", watchdog_s=60.0)]
    main = circuit(rating_a=100.0)
    tree = Circuits({"main": main}, [*slow, *quick])
    reading = limits.Metered(read_at_s=0.0, current_a=(40.0,) * 3, active_w=(40.0 * main.neutral_voltage_v,) * 3)
    found = limits.circuits(
        {"main": main}, limits.base_loads({"main": main}, {"main": reading}, now_s=0.0, fresh_s=5.0)
    )
    admission = admit(
        proven([*slow, *quick], {one.name: 0.0 for one in (*slow, *quick)}),
        {one.name: Amount(32.0) for one in slow},
        0.0,
        circuits=tree,
        caps=cycle.caps_of(limits.combine(found, 0.0), tree.circuits),
        kept=cycle.protecting(found, tree.circuits),
        base=NO_BASE,
    )
    told_a = [write.amount.active_a for write in admission.writes if write.purpose is Purpose.RAISE]
    assert told_a == [6.0, 6.0]
    assert sum(told_a) + 40.0 + sum(one.fallback.high for one in quick) == main.rating_a[0]


def test_what_is_given_back_is_held_against_a_rating_and_the_base_load_on_that_side() -> None:
    """A base load of 40 A leaves no less room for discharge; one that generates 40 A does."""
    stations = [station("one", lowest_a=-32.0), station("two", lowest_a=-32.0, fallback=Span(low=-20.0))]
    tree = Circuits({"main": circuit(rating_a=50.0)}, stations)
    book = proven(stations, {"one": 0.0, "two": 0.0})
    for low, high, told_a in ((-50.0, 10.0, -30.0), (-30.0, 30.0, -10.0)):
        kept: Caps = {("main", LimitQuantity.CURRENT, None): (low, high)}
        found = admit(book, {"one": Amount(-32.0)}, 0.0, circuits=tree, caps=kept, kept=kept, base=NO_BASE)
        assert written(found) == {"one": Amount(told_a)}


def test_fallbacks_that_are_too_much_by_themselves_leave_each_what_it_falls_back_to() -> None:
    """Nothing is gained by taking that away: it comes back by itself."""
    stations = [station("one"), station("two")]
    tree = Circuits({"main": circuit(rating_a=11.0)}, stations)
    book = proven(stations, {"one": 0.0, "two": 0.0})
    wanted = {"one": Amount(0.0), "two": Amount(9.0)}
    admission = admit(book, wanted, 0.0, circuits=tree, base=NO_BASE)
    assert [write.amount.active_a for write in admission.writes] == [6.0]


def test_an_evse_without_a_watchdog_has_no_fallback_to_count() -> None:
    stations = [station("one", watchdog_s=None, fallback=Span(high=32.0)), station("two")]
    tree = Circuits({"main": circuit(rating_a=30.0)}, stations)
    admission = admit(proven(stations, {"one": 0.0, "two": 10.0}), {"two": Amount(30.0)}, 0.0, circuits=tree)
    assert [write.amount.active_a for write in admission.writes] == [30.0]


def test_what_one_draws_too_much_is_taken_off_the_others_at_once() -> None:
    book = seen(proven(TWO, {"one": 20.0, "two": 20.0}), "one", 32.0, 0.5)
    book = ledger.record(seen(book, "two", 20.0, 0.5), [Distrusted("one", True, 0.5)])
    found = admit(book, {"one": Amount(20.0), "two": Amount(20.0)}, 0.5, circuits=TREE)
    assert found.over
    assert written(found) == {"two": Amount(8.0)}
    assert set(found.capped) == {"two"}


def test_a_silent_evse_at_its_rating_is_made_room_for() -> None:
    book = seen(proven(TWO, {"one": 20.0, "two": 20.0}), "two", 20.0, 6.0)
    assert written(admit(book, {"one": Amount(20.0), "two": Amount(20.0)}, 6.0, circuits=TREE))["two"] == Amount(8.0)


def answering(book: Ledger, name: str, until_s: float) -> Ledger:
    """Return the ledger after an EVSE has answered each second, its watchdog fed, but was not measured."""
    seconds = range(1, math.floor(until_s) + 1)
    return ledger.record(
        book, [event for at_s in seconds for event in (Answered(name, at_s, at_s), ledger.Refreshed(name, at_s))]
    )


AT_MOST_10: Caps = {("main", LimitQuantity.CURRENT, None): (-math.inf, 10.0)}
WANTED = {"one": Amount(16.0), "two": Amount(16.0)}


def test_who_is_not_measured_is_told_less_where_the_others_have_nothing_left_to_give() -> None:
    book = answering(seen(proven(TWO, {"one": 16.0, "two": 16.0}), "one", 16.0, 6.0), "two", 6.0)
    found = admit(book, WANTED, 6.0, circuits=TREE, caps=AT_MOST_10)
    assert written(found) == {"one": Amount(0.0), "two": Amount(10.0)}
    # Nothing is known of what it does then, so nobody gets what it was told to leave.
    assert found.ledger.span("two", 6.0).high == 16.0
    assert set(found.capped) == {"one", "two"}


def test_who_is_not_measured_stands_where_the_others_have_enough_to_give() -> None:
    book = answering(seen(proven(TWO, {"one": 16.0, "two": 16.0}), "one", 16.0, 6.0), "two", 6.0)
    enough: Caps = {("main", LimitQuantity.CURRENT, None): (-math.inf, 23.0)}
    assert written(admit(book, WANTED, 6.0, circuits=TREE, caps=enough)) == {"one": Amount(7.0)}


def test_who_is_silent_is_told_less_rather_than_the_same_again() -> None:
    book = seen(proven(TWO, {"one": 16.0, "two": 16.0}), "one", 16.0, 6.0)
    found = written(admit(book, WANTED, 6.0, circuits=TREE, caps=AT_MOST_10))
    assert found == {"one": Amount(0.0), "two": Amount(10.0)}


def test_who_was_measured_a_moment_ago_is_not_told_less_for_the_others() -> None:
    book = answering(seen(proven(TWO, {"one": 16.0, "two": 16.0}), "one", 16.0, 4.0), "two", 4.0)
    assert written(admit(book, WANTED, 4.0, circuits=TREE, caps=AT_MOST_10)) == {"one": Amount(0.0)}


def test_who_is_not_measured_after_a_start_has_a_moment_for_it() -> None:
    before = ledger.to_json(proven(TWO, {"one": 16.0, "two": 16.0}), "boot", 0.0)
    book = ledger.from_json(before, TWO, "boot", 0.0)
    for name in ("one", "two"):
        write, book = ledger.issue(book, name, Amount(16.0), 0.0)
        book = ledger.record(book, [Acknowledged(name, write, 0.1), ledger.Refreshed(name, 0.1)])
    early = answering(answering(book, "one", 4.0), "two", 4.0)
    assert not written(admit(early, WANTED, 4.0, circuits=TREE, caps=AT_MOST_10))
    late = answering(answering(book, "one", 6.0), "two", 6.0)
    assert (
        sum(amount.active_a for amount in written(admit(late, WANTED, 6.0, circuits=TREE, caps=AT_MOST_10)).values())
        <= 10
    )


def test_no_raise_while_over_even_where_the_interval_holds_it() -> None:
    book = proven(TWO, {"one": 30.0, "two": 10.0})
    write, book = ledger.issue(book, "one", Amount(6.0), 0.0)
    book = ledger.record(book, [Acknowledged("one", write, 0.2)])
    low: Caps = {("main", LimitQuantity.CURRENT, None): (-40.0, 35.0)}
    book = seen(seen(book, "one", 6.0, 1.0), "two", 10.0, 1.0)
    assert over(book, TREE, 1.0, low)
    found = admit(book, {"one": Amount(20.0), "two": Amount(10.0)}, 1.0, circuits=TREE, caps=low)
    assert not found.writes
    assert found.held["one"] is not None


def test_the_least_current_goes_to_as_many_as_fit_in_order_of_precedence() -> None:
    stations = [station(f"e{i}") for i in range(8)]
    tree = Circuits({"main": circuit()}, stations)
    book = proven(stations, {one.name: 0.0 for one in stations})
    wanted = {f"e{i}": Amount(16.0) for i in reversed(range(8))}
    found = admit(book, wanted, 0.0, circuits=tree)
    assert written(found) == {f"e{i}": Amount(6.0) for i in range(2, 8)}


def test_power_limits_count_import_and_export_apart() -> None:
    stations = [station("car"), station("van", lowest_a=-32.0)]
    tree = Circuits({"main": circuit(rating_a=100.0)}, stations)
    book = proven(stations, {"car": 0.0, "van": 0.0})
    caps: Caps = {("site", LimitQuantity.ACTIVE_POWER, None): (-5000.0, 11_085.0)}
    found = admit(book, {"van": Amount(-20.0), "car": Amount(32.0)}, 0.0, circuits=tree, caps=caps)
    assert amperes_of(circuit(), 3, 11_085.0) == pytest.approx(16.0, abs=1e-3)
    # The discharge does not let the car take more than 16 A; 5 kW may be given.
    assert written(found) == {"van": Amount(-7.0), "car": Amount(15.0)}


def test_a_turn_from_charging_to_discharging_passes_through_nothing() -> None:
    stations = [station("van", lowest_a=-32.0)]
    tree = Circuits({"main": circuit()}, stations)
    book = proven(stations, {"van": 20.0})
    caps: Caps = {("main", LimitQuantity.CURRENT, None): (-40.0, 10.0)}
    found = admit(book, {"van": Amount(-20.0)}, 0.0, circuits=tree, caps=caps)
    assert written(found) == {"van": Amount(0.0)}
    assert found.writes[0].purpose is Purpose.LOWER


def test_a_shed_overtakes_a_write_in_flight_and_nothing_else_does() -> None:
    book = proven(TWO, {"one": 10.0, "two": 6.0})
    first = admit(book, {"one": Amount(16.0)}, 0.0, circuits=TREE)
    assert written(first) == {"one": Amount(16.0)}
    assert not admit(first.ledger, {"one": Amount(20.0)}, 0.1, circuits=TREE).writes
    assert written(admit(first.ledger, {"one": Amount(8.0)}, 0.1, circuits=TREE)) == {"one": Amount(8.0)}


def test_a_lost_write_is_repeated_and_a_watchdog_is_fed() -> None:
    stations = [station("one", refresh_s=10.0)]
    tree = Circuits({"main": circuit()}, stations)
    book = proven(stations, {"one": 10.0})
    first = admit(book, {"one": Amount(8.0)}, 0.0, circuits=tree)
    book = seen(ledger.record(first.ledger, [Lost("one", first.writes[0].id, 1.0)]), "one", 10.0, 1.0)
    assert not admit(book, {"one": Amount(8.0)}, 1.0, circuits=tree).writes
    again = admit(seen(book, "one", 10.0, 2.0), {"one": Amount(8.0)}, 2.0, circuits=tree)
    assert [(w.amount, w.purpose) for w in again.writes] == [(Amount(8.0), Purpose.REPEAT)]
    book = ledger.record(again.ledger, [Acknowledged("one", again.writes[0].id, 2.5)])
    book = seen(book, "one", 8.0, 12.0)
    fed = admit(book, {"one": Amount(8.0)}, 12.0, circuits=tree)
    assert [(w.amount, w.purpose) for w in fed.writes][-1] == (Amount(8.0), Purpose.REPEAT)
    book = seen(ledger.record(fed.ledger, [Acknowledged("one", fed.writes[0].id, 12.5)]), "one", 8.0, 25.0)
    fed = admit(book, {"one": Amount(8.0)}, 25.0, circuits=tree)
    assert [(w.amount, w.purpose) for w in fed.writes] == [(Amount(8.0), Purpose.REFRESH)]


def test_refreshes_of_evses_that_were_told_at_once_part_and_none_is_late() -> None:
    """Twenty in 15 s are four in three cycles."""
    stations = [station(f"e{index}", refresh_s=15.0, watchdog_s=60.0) for index in range(20)]
    tree = Circuits({"main": circuit(rating_a=1000.0)}, stations)
    book = proven(stations, {one.name: 6.0 for one in stations})
    written: dict[int, list[str]] = {}
    last_s = dict.fromkeys((one.name for one in stations), 0.0)
    drawn_a: PerPhase = (6.0, 6.0, 6.0)
    for second in range(1, 121):
        book = ledger.record(book, [Seen(one.name, Amount(6.0), drawn_a, second, second) for one in stations])
        admission = admit(book, {}, float(second), circuits=tree)
        book = ledger.record(admission.ledger, [Acknowledged(w.evse, w.id, second + 0.1) for w in admission.writes])
        for write in admission.writes:
            assert second < 16 or second - last_s[write.evse] <= 15
            last_s[write.evse] = second
            written.setdefault(second, []).append(write.evse)
    assert max(len(names) for second, names in written.items() if second > 75) <= 2


def test_at_the_start_nothing_is_raised_beyond_what_is_seen_to_flow() -> None:
    book = ledger.started(TWO, 0.0)
    book = seen(seen(book, "one", 17.3, 1.0), "two", 0.0, 1.0)
    found = admit(book, {"one": Amount(20.0), "two": Amount(20.0)}, 1.0, circuits=TREE)
    assert written(found) == {"one": Amount(16.0), "two": Amount(0.0)}


def test_wanted_values_that_are_no_numbers_change_nothing() -> None:
    book = proven(TWO, {"one": 10.0, "two": 6.0})
    assert not admit(book, {"one": Amount(math.nan), "two": Amount(math.inf)}, 0.0, circuits=TREE).writes


# On disk


def test_a_successor_adopts_the_ledger_with_what_was_in_flight() -> None:
    book = proven(TWO, {"one": 10.0, "two": 6.0})
    first = admit(book, {"one": Amount(20.0)}, 0.0, circuits=TREE)
    stored = json.loads(json.dumps(ledger.to_json(first.ledger, "boot", 0.0)))
    same = ledger.from_json(stored, TWO, "boot", 2.0)
    assert same.span("one", 2.0).high == 20.0
    assert same.span("two", 2.0).high == 6.0
    assert same.next_write == first.ledger.next_write
    assert ledger.from_json(stored, TWO, "another boot", 2.0).span("two", 2.0).high == 32.0
    assert ledger.from_json(stored, TWO, "boot", -1.0).span("two", -1.0).high == 32.0
    assert ledger.from_json(stored, [*TWO, station("three")], "boot", 2.0).span("three", 2.0).high == 32.0


def test_a_predecessors_write_in_flight_may_still_arrive_after_a_successors_first() -> None:
    _write, book = ledger.issue(proven(TWO, {"one": 10.0, "two": 6.0}), "one", Amount(20.0), 0.0)
    book = ledger.from_json(ledger.to_json(book, "boot", 0.0), TWO, "boot", 1.0)
    write, book = ledger.issue(book, "one", Amount(6.0), 1.5)
    book = seen(ledger.record(book, [Acknowledged("one", write, 1.6)]), "one", 6.0, 20.0)
    assert book.entries["one"].span.high == 20.0


@pytest.mark.parametrize("broken", [{}, {"format": 9}, {"format": 1, "boot_id": "b", "saved_s": 0, "entries": []}])
def test_a_broken_ledger_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="found"):
        ledger.from_json(broken, TWO, "boot", 0.0)


# A plant that does its worst


@dataclass
class Plant:
    """A charger with its vehicle, as the assumptions allow: the truth, of which the guard sees what is answered."""

    station: Station
    register: float = 0.0
    in_force: list[tuple[float, float]] = field(default_factory=lambda: [(-1000.0, 0.0)])
    fed_s: float = 0.0
    silent_until_s: float = -1.0
    boots_at_s: float | None = None
    waiting: list[tuple[float, float]] = field(default_factory=list)
    stuck_a: float = 0.0

    def answers(self, now_s: float) -> bool:
        return now_s >= self.silent_until_s

    def execute(self, value: float, now_s: float) -> None:
        self.register = value
        self.fed_s = now_s
        self.in_force.append((now_s, value))

    def pass_to(self, now_s: float) -> None:
        for at_s, value in [entry for entry in self.waiting if entry[0] <= now_s]:
            self.execute(value, at_s)
        self.waiting = [entry for entry in self.waiting if entry[0] > now_s]
        if self.boots_at_s is not None and now_s >= self.boots_at_s:
            self.register = self.station.after_boot.high
            self.in_force.append((now_s, self.register))
            self.fed_s = now_s
            self.boots_at_s = None
        watchdog_s = self.station.watchdog_s
        if watchdog_s is not None and now_s - self.fed_s >= watchdog_s:
            self.in_force.append((now_s, self.station.fallback.high))

    def most_a(self, now_s: float) -> float:
        """Return the most that it may draw now."""
        since_s = now_s - self.station.follow_s
        last = [value for at_s, value in self.in_force if at_s <= since_s][-1:]
        return max([*last, *(value for at_s, value in self.in_force if at_s > since_s), self.stuck_a])


FATES = ("acked", "acked", "acked", "acked", "done_lost", "lost", "late", "refused", "silent")


Extents: TypeAlias = "dict[tuple[str, Phase | None], float]"


class Worst(RuleBasedStateMachine):
    """Every EVSE may do, at any time, the most that the assumptions allow it; see `ledger`."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.shift_s = 0.0
        self.stations = [
            station("rating", after_boot=Span(high=32.0), watchdog_s=10.0, refresh_s=4.0),
            station("fallback", after_boot=Span(high=10.0), fallback=Span(high=10.0), watchdog_s=12.0, refresh_s=4.0),
            station("held", after_boot=Span(high=20.0), watchdog_s=None, phases=(Phase.L2,), refresh_s=None),
            station("off", after_boot=Span(), fallback=Span(), watchdog_s=8.0, circuit="part", refresh_s=3.0),
        ]
        self.plants = {one.name: Plant(one) for one in self.stations}
        self.tree = Circuits(
            {"main": circuit(rating_a=63.0), "part": circuit("part", 24.0, parent="main")}, self.stations
        )
        self.book = ledger.started(self.stations, self.now_s)
        self.wanted = {one.name: Amount(0.0) for one in self.stations}
        self.caps: Caps = {}
        self.restarts_until_s = dict.fromkeys(self.plants, -math.inf)
        self.rng = random.Random(0)  # noqa: S311 - a course of events, no secret

    # What happens

    @rule(
        seconds=st.integers(1, 20),
        fates=st.lists(st.sampled_from(FATES), min_size=1, max_size=6),
        share=st.sampled_from([0.0, 0.5, 1.0]),
        seed=st.integers(0, 99),
    )
    def cycles(self, seconds: int, fates: list[str], share: float, seed: int) -> None:
        self.rng = random.Random(seed)  # noqa: S311 - a course of events, no secret
        fate = itertools.cycle(fates)
        for _ in range(seconds):
            self.cycle(fate, share)

    @rule(
        name=st.sampled_from(["rating", "fallback", "held", "off"]), current_a=st.sampled_from([0, 6, 10, 16, 20, 32])
    )
    def want(self, name: str, current_a: int) -> None:
        self.wanted[name] = Amount(float(current_a))

    @rule(high_a=st.sampled_from([20.0, 40.0, math.inf]))
    def cap(self, high_a: float) -> None:
        self.caps = {} if math.isinf(high_a) else {("main", LimitQuantity.CURRENT, None): (-high_a, high_a)}

    @rule(name=st.sampled_from(["rating", "fallback", "held", "off"]), seconds=st.integers(1, 30))
    def silence(self, name: str, seconds: int) -> None:
        self.plants[name].silent_until_s = self.now_s + seconds

    @rule(
        name=st.sampled_from(["rating", "fallback", "held", "off"]), seconds=st.integers(6, 20), share=st.floats(0, 1)
    )
    def reboot(self, name: str, seconds: int, share: float) -> None:
        plant = self.plants[name]
        if plant.boots_at_s is None and plant.answers(self.now_s):
            plant.silent_until_s = self.now_s + seconds
            # Assumption 3: whatever holds after a start holds no sooner than `boot_s` after the last answer.
            boot_s = plant.station.boot_s
            plant.boots_at_s = self.now_s + boot_s + share * (seconds - boot_s - 0.1)
            self.restarts_until_s[name] = plant.silent_until_s
            plant.waiting.clear()

    @rule(name=st.sampled_from(["rating", "fallback", "held", "off"]))
    def stick(self, name: str) -> None:
        """Let the vehicle go on at what it draws, however long, until it follows for good."""
        plant = self.plants[name]
        plant.stuck_a = 0.0 if plant.stuck_a else plant.most_a(self.now_s)

    @rule(reboots=st.booleans(), away_s=st.integers(0, 20))
    def restart(self, reboots: bool, away_s: int) -> None:
        stored = json.loads(json.dumps(ledger.to_json(self.book, "boot", self.now_s - self.shift_s)))
        for _ in range(away_s):
            self.elapse()
        if reboots:
            self.shift_s = self.now_s - 5.0
            self.book = ledger.from_json(stored, self.stations, f"boot {self.now_s}", self.now_s - self.shift_s)
        else:
            self.book = ledger.from_json(stored, self.stations, "boot", self.now_s - self.shift_s)
        for one in self.stations:
            self.watch(one.name)

    # What is always true

    @invariant()
    def the_truth_is_within_the_ledger(self) -> None:
        for name in self.plants:
            self.watch(name)

    def watch(self, name: str) -> None:
        plant = self.plants[name]
        counted = self.book.span(name, self.clock_s).high
        assert plant.most_a(self.now_s) <= counted + EPS, (name, self.now_s, self.book.entries[name])

    # How it goes

    @property
    def clock_s(self) -> float:
        return self.now_s - self.shift_s

    def elapse(self) -> None:
        for _ in range(2):
            self.now_s += 0.5
            for plant in self.plants.values():
                plant.pass_to(self.now_s)

    def cycle(self, fate: itertools.cycle[str], share: float) -> None:
        events: list[Event] = []
        for name, plant in self.plants.items():
            if not plant.answers(self.now_s):
                continue
            if self.book.entries[name].fallback is None:
                events.append(Armed(name, plant.station.watchdog_s, plant.station.fallback, self.clock_s))
            # Full truth at least for what is stuck; else any part of what it may draw.
            drawn_a = max(plant.stuck_a, plant.most_a(self.now_s) * share)
            loads = plant.station.phases
            currents = tuple(drawn_a if phase in loads else 0.0 for phase in THREE)
            at_s, active_a = self.clock_s, (currents[0], currents[1], currents[2])
            events.append(Seen(name, Amount(plant.register), active_a, at_s, at_s))
        self.book = self.recorded(events)
        before = self.book
        admission = admit(self.book, self.wanted, self.clock_s, circuits=self.tree, caps=self.caps)
        self.check(before, admission)
        self.book = admission.ledger
        self.the_truth_is_within_the_ledger()
        fates = [(write, next(fate)) for write in admission.writes]
        self.send(fates)
        self.elapse()
        self.answer(fates)
        self.the_truth_is_within_the_ledger()

    def recorded(self, events: list[Event]) -> Ledger:
        """Return the ledger after events: the same whether a reading comes as one event or as two."""
        apart: list[Event] = []
        for event in events:
            if isinstance(event, Seen):
                apart.append(ReadBack(event.evse, event.amount, event.sent_s, event.answered_s))
                apart.append(Measured(event.evse, event.active_a, event.sent_s, event.answered_s))
            else:
                apart.append(event)
        book = ledger.record(self.book, events)
        assert book == ledger.record(self.book, apart)
        return book

    def send(self, fates: list[tuple[guard.Write, str]]) -> None:
        for write, fate in fates:
            plant = self.plants[write.evse]
            if not plant.answers(self.now_s) or plant.boots_at_s is not None:
                continue
            if fate in {"acked", "done_lost"}:
                plant.waiting.append((self.now_s + 0.2, write.amount.active_a))
            elif fate == "late":
                plant.waiting.append((self.now_s + self.rng.uniform(0.2, 2.9), write.amount.active_a))
            elif fate == "silent":
                plant.silent_until_s = self.now_s + 3.0

    def answer(self, fates: list[tuple[guard.Write, str]]) -> None:
        events: list[Event] = []
        for write, fate in fates:
            plant = self.plants[write.evse]
            reached = plant.answers(self.now_s - 1.0) and plant.boots_at_s is None
            if fate == "acked" and reached and plant.register == write.amount.active_a:
                events.append(Acknowledged(write.evse, write.id, self.clock_s - 0.5))
            elif fate == "refused" and reached:
                events.append(NotExecuted(write.evse, write.id, self.clock_s - 0.5))
            else:
                events.append(Lost(write.evse, write.id, self.clock_s))
        self.book = ledger.record(self.book, events)

    def check(self, before: Ledger, admission: Admission) -> None:
        """No write raises a row that is, or would be, over; while it is over, no write tells more than before.

        Against the rating as well with whoever may be the first to fall back, if control died now.
        """
        self.check_rows(before, admission, self.extents(before), self.extents(admission.ledger), capped=True)
        earlier, later = self.extents(before, dying=True), self.extents(admission.ledger, dying=True)
        self.check_rows(before, admission, earlier, later, capped=False)

    def check_rows(
        self, before: Ledger, admission: Admission, earlier: Extents, later: Extents, *, capped: bool
    ) -> None:
        for row, extent in later.items():
            limit = self.limit(row, capped=capped)
            if extent > limit + 1e-3:
                assert extent <= earlier[row] + EPS, (row, admission.writes)
                for write in admission.writes:
                    one = before.stations[write.evse]
                    touches = row[1] in one.phases and row[0] in {one.circuit, "main"}
                    told = before.entries[write.evse].told_amount
                    if touches and told is not None:
                        assert write.amount.active_a <= told.active_a + EPS, (row, write)

    def extents(self, book: Ledger, *, dying: bool = False) -> Extents:
        spans = guard.intervals(book, self.clock_s)
        box = self.tree.box([spans[one.name] for one in self.tree.stations])
        if dying:
            entries = ledger.advance(book, self.clock_s).entries
            box = box.hull(
                self.tree.box(
                    [spans_of(one, ledger.fallback_of(entries[one.name], one), None) for one in self.tree.stations]
                )
            )
        return {row: extent.any for row, extent in self.tree.extents(box).items() if row[1] is not None}

    def limit(self, row: tuple[str, Phase | None], *, capped: bool) -> float:
        cap = self.caps.get((row[0], LimitQuantity.CURRENT, None), (0.0, math.inf))[1] if capped else math.inf
        return min(63.0 if row[0] == "main" else 24.0, cap)

    def teardown(self) -> None:
        """When all is quiet and there is room, what is wanted is reached."""
        self.caps = {}
        self.wanted = {name: Amount(12.0) for name in self.plants}
        for plant in self.plants.values():
            plant.stuck_a = 0.0
        for _ in range(45):
            for name, plant in self.plants.items():
                # One that restarts answers when that is over, wherever in it it booted; else a restart would be too
                # short to be noticed, which the ledger assumes it is not.
                if self.now_s >= self.restarts_until_s[name]:
                    plant.silent_until_s = self.now_s
            self.cycle(itertools.cycle(["acked"]), 0.9)
        told = {name: self.book.entries[name].told_amount for name in self.plants}
        assert told == self.wanted
        assert {name: self.book.span(name, self.clock_s).high for name in self.plants} == dict.fromkeys(told, 12.0)


TestWorst = Worst.TestCase
TestWorst.settings = settings(
    max_examples=8,
    stateful_step_count=8,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


# How fast


def test_a_thousand_evses_are_admitted_within_a_cycle() -> None:
    circuits = {"main": circuit(rating_a=8000.0)}
    stations = []
    for index in range(1000):
        feeder = f"feeder-{index // 20}"
        circuits.setdefault(feeder, circuit(feeder, 320.0, parent="main"))
        stations.append(station(f"e{index}", circuit=feeder))
    tree = Circuits(circuits, stations)
    rng = random.Random(0)  # noqa: S311 - a course of events, no secret
    book = proven(stations, {one.name: float(rng.choice([0, 6, 16])) for one in stations})
    wanted = {one.name: Amount(float(rng.choice([0, 6, 10, 16, 32]))) for one in stations}
    took_s = []
    for _ in range(5):
        began_s = time.process_time()
        admission = admit(book, wanted, 0.0, circuits=tree)
        took_s.append(time.process_time() - began_s)
    assert admission.writes
    # The goal is 20 ms (bench); ten times that here, for the machine may be busy.
    assert min(took_s) < 0.2


def test_rules_and_stations_are_plain() -> None:
    assert dataclasses.asdict(Rules())["retry_s"] == 2.0
    base: PerPhase = (0.0, 0.0, 0.0)
    assert BaseLoad().active_a == base
    assert Cause("setpoint") is Cause.SETPOINT
