# SPDX-License-Identifier: Apache-2.0
"""The event engine: what is held, how it is answered, and what is bounded when."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derms_agent.control.limits import BaseLoad
from derms_agent.grid_gateway import control_link, events
from derms_agent.grid_gateway.control_link import ControlLink, Honour
from derms_agent.grid_gateway.events import Bound, Received, State
from derms_agent.grid_gateway.incoming import (
    BrokenEvent,
    Code,
    DistributeEvent,
    Event,
    Interval,
    Signal,
    Status,
    Targets,
    Unit,
)
from derms_agent.grid_gateway.messages import Opt, Window
from derms_agent.grid_gateway.signals import Away, Rules
from derms_agent.model import GridLevel, PriceLimit, Rank
from derms_agent.orchestrator import asks
from derms_agent.orchestrator.api import ask_of
from derms_agent.orchestrator.asks import Ask

NOW = 1_800_000_000.0
HOUR = 3600.0
KW = Unit("powerReal", "W", 1000.0)
RULES = Rules(
    ven_id="ven-1",
    vtn_id="vtn-1",
    site_limit_w=200_000.0,
    levels={1: GridLevel(limit_w=60_000.0), 2: GridLevel(baseline_percent=50), 3: GridLevel(limit_w=0.0)},
    resources={"depot": "site", "bay-1": "charger-001"},
    groups=frozenset({"north"}),
)
BASELINE_W = 100_000.0


def intervals(start: float, *each: tuple[float, float]) -> tuple[Interval, ...]:
    found = []
    for length, value in each:
        found.append(Interval(start, length, value))
        start += length
    return tuple(found)


def simple(level: float = 1, start: float = NOW + HOUR, length: float = HOUR) -> Signal:
    return Signal(id="s", name="SIMPLE", type="level", intervals=intervals(start, (length, level)))


def dispatch(value: float, kind: str = "setpoint", unit: Unit | None = KW, name: str = "LOAD_DISPATCH") -> Signal:
    return Signal(id="s", name=name, type=kind, intervals=intervals(NOW + HOUR, (HOUR, value)), unit=unit)


def event(id: str = "e1", *signals: Signal, start: float = NOW + HOUR, length: float = HOUR, **more: object) -> Event:  # noqa: A002
    kept = {
        "modification": 0, "status": Status.FAR, "market_context": "http://utility.example/shed",
        "created_unix_s": NOW, **more,
    }  # fmt: skip
    return Event(
        id=id,
        start_unix_s=start,
        duration_s=length,
        signals=signals or (simple(1, start, length),),
        **kept,  # type: ignore[arg-type]
    )


def receive(
    state: State,
    *found: Event | BrokenEvent,
    now: float = NOW,
    vtn: str = "vtn-1",
    luck: float = 0.0,
    rules: Rules = RULES,
) -> Received:
    return events.receive(state, DistributeEvent("r1", vtn, found), rules, now, lambda: luck)


def held(*found: Event, rules: Rules = RULES, luck: float = 0.0) -> State:
    return receive(State(), *found, rules=rules, luck=luck).state


def bounds(
    state: State, now: float = NOW, baseline_w: float | None = BASELINE_W, rules: Rules = RULES
) -> tuple[Bound, ...]:
    return events.bounds(state, rules, now, baseline_w)


def at(found: Iterable[Bound], unix_s: float, target: str = "site") -> float | None:
    """Return what is bounded at a moment; there is never more than one bound at a place."""
    there = [one for one in found if one.start_unix_s <= unix_s < one.end_unix_s and one.target == target]
    assert len(there) <= 1, there
    return there[0].high_w if there else None


def answered(received: Received) -> list[tuple[str, int, int, Opt]]:
    return [(one.event_id, one.modification, one.code, one.opt) for one in received.responses]


# Signals


@pytest.mark.parametrize(
    ("signal", "high_w"),
    [
        (simple(0), None),
        (simple(1), 60_000.0),
        (simple(2), 50_000.0),
        (simple(3), 0.0),
        (dispatch(40), 40_000.0),
        (dispatch(40, unit=Unit("powerReal", "W", 1.0)), 40.0),
        (dispatch(-30, "delta"), 70_000.0),
        (dispatch(0.25, "multiplier", None), 25_000.0),
        (dispatch(0.5, "x-loadControlCapacity", None, "LOAD_CONTROL"), 100_000.0),
        (dispatch(1, "x-loadControlLevelOffset", None, "LOAD_CONTROL"), 60_000.0),
        (dispatch(-20, "x-loadControlPercentOffset", None, "LOAD_CONTROL"), 80_000.0),
        (dispatch(-100, "x-loadControlPercentOffset", None, "LOAD_CONTROL"), 0.0),
        (dispatch(15, "x-loadControlSetpoint", KW, "LOAD_CONTROL"), 15_000.0),
    ],
)
def test_what_a_signal_bounds(signal: Signal, high_w: float | None) -> None:
    received = receive(State(), event("e1", signal))

    assert answered(received) == [("e1", 0, 200, Opt.IN)]
    assert at(bounds(received.state), NOW + HOUR) == high_w
    assert at(bounds(received.state), NOW + HOUR - 1) is None
    assert at(bounds(received.state), NOW + 2 * HOUR) is None


@pytest.mark.parametrize(
    ("signal", "code"),
    [
        (simple(4), Code.INVALID_DATA),
        (simple(1.5), Code.INVALID_DATA),
        (dispatch(40, unit=None), Code.INVALID_DATA),
        (dispatch(40, unit=Unit("powerApparent", "VA", 1.0)), Code.INVALID_DATA),
        (dispatch(-0.5, "multiplier", None), Code.INVALID_DATA),
        (dispatch(50, "x-loadControlCapacity", None, "LOAD_CONTROL"), Code.INVALID_DATA),
        (dispatch(-0.5, "x-loadControlCapacity", None, "LOAD_CONTROL"), Code.INVALID_DATA),
        (dispatch(-100.5, "x-loadControlPercentOffset", None, "LOAD_CONTROL"), Code.INVALID_DATA),
        (dispatch(40, name="BID_LOAD"), Code.SIGNAL_NOT_SUPPORTED),
        (dispatch(40, "price", None, "BID_PRICE"), Code.SIGNAL_NOT_SUPPORTED),
        (dispatch(40, name="CHARGE_STATE"), Code.SIGNAL_NOT_SUPPORTED),
        (dispatch(40, name="x-theirs"), Code.SIGNAL_NOT_SUPPORTED),
        (dispatch(40, "price"), Code.SIGNAL_NOT_SUPPORTED),
    ],
)
def test_a_signal_that_cannot_be_obeyed_is_opted_out_of_and_bounds_nothing(
    signal: Signal, code: Code
) -> None:  # defect 10
    received = receive(State(), event("e1", signal))

    assert answered(received) == [("e1", 0, code, Opt.OUT)]
    assert received.accepted == ()
    assert bounds(received.state) == ()


def test_a_level_that_the_depot_file_says_nothing_of_is_not_supported() -> None:
    received = receive(State(), event(), rules=replace(RULES, levels={}))

    assert answered(received) == [("e1", 0, Code.SIGNAL_NOT_SUPPORTED, Opt.OUT)]


def test_simple_beside_another_signal_is_for_those_that_know_no_other() -> None:
    state = held(event("e1", simple(3), dispatch(40)))

    assert at(bounds(state), NOW + HOUR) == 40_000.0


def test_simple_counts_beside_a_price_which_bounds_nothing() -> None:
    price = Signal(
        id="p", name="ELECTRICITY_PRICE", type="price", unit=Unit("currencyPerKWh", "EUR", 1.0),
        intervals=intervals(NOW + HOUR, (HOUR, 0.3)),
    )  # fmt: skip
    state = held(event("e1", simple(1), price))

    assert at(bounds(state), NOW + HOUR) == 60_000.0
    assert [one.value for one in events.prices(state, RULES, NOW)] == [0.3]


def test_what_is_not_known_of_the_baseline_is_no_power() -> None:
    state = held(event("e1", dispatch(-30, "delta")), event("e2", dispatch(0.5, "multiplier", None)))

    assert at(bounds(state, baseline_w=None), NOW + HOUR) == -30_000.0


def test_prices_are_a_schedule_and_bound_nothing() -> None:
    price = Signal(
        id="p", name="ELECTRICITY_PRICE", type="price", unit=Unit("currencyPerKWh", "EUR", 1.0),
        intervals=intervals(NOW + HOUR, (HOUR, 0.3), (HOUR, 0.1)),
    )  # fmt: skip
    received = receive(State(), event("e1", price, length=2 * HOUR))

    assert answered(received) == [("e1", 0, 200, Opt.IN)]
    assert bounds(received.state) == ()
    assert [(one.start_unix_s - NOW, one.value, one.unit) for one in events.prices(received.state, RULES, NOW)] == [
        (HOUR, 0.3, "EUR"),
        (2 * HOUR, 0.1, "EUR"),
    ]


EUR = Unit("currencyPerKWh", "EUR", 1.0)
DEAR = replace(RULES, price_limit=PriceLimit(currency="EUR", above_per_kwh=0.3, limit_w=20_000.0))


def priced(*values: float, unit: Unit | None = EUR, kind: str = "price") -> Signal:
    each = intervals(NOW + HOUR, *((HOUR, value) for value in values))
    return Signal(id="p", name="ELECTRICITY_PRICE", type=kind, unit=unit, intervals=each)


def test_a_price_above_the_one_that_the_depot_file_names_is_a_limit_of_the_lowest_rank() -> None:
    received = receive(State(), event("e1", priced(0.3, 0.31, 0.1), length=3 * HOUR), rules=DEAR)

    assert answered(received) == [("e1", 0, 200, Opt.IN)]
    (dear,) = bounds(received.state, rules=DEAR)
    assert (dear.start_unix_s - NOW, dear.end_unix_s - NOW) == (2 * HOUR, 3 * HOUR)
    assert (dear.target, dear.high_w, dear.rank, dear.baseline_w) == ("site", 20_000.0, Rank.PRICE, None)
    assert dear.source == "price of OpenADR event e1"


@pytest.mark.parametrize(
    ("signal", "high_w"),
    [
        (priced(400, unit=Unit("currencyPerKWh", "EUR", 0.001)), 20_000.0),
        (priced(200, unit=Unit("currencyPerKWh", "EUR", 0.001)), None),
        (priced(9, unit=Unit("currencyPerKWh", "USD", 1.0)), None),
        (priced(9, unit=Unit("currencyPerKW", "EUR", 1.0)), None),
        (priced(9, unit=None), None),
        (priced(9, kind="priceRelative"), None),
        (priced(9, kind="priceMultiplier"), None),
    ],
)
def test_a_price_counts_in_the_currency_that_the_depot_file_names(signal: Signal, high_w: float | None) -> None:
    received = receive(State(), event("e1", signal), rules=DEAR)

    assert answered(received) == [("e1", 0, 200, Opt.IN)]
    assert at(bounds(received.state, rules=DEAR), NOW + HOUR) == high_w


def test_a_price_stands_beside_what_the_grid_asks_for_and_has_a_priority_of_its_own() -> None:
    mild = event("mild", priced(0.2), priority=1)
    state = held(event("e1", priced(0.4), dispatch(40)), event("e2", priced(0.5), priority=2), rules=DEAR)
    found = {one.rank: (one.high_w, one.name) for one in bounds(state, rules=DEAR)}
    assert {rank: high_w for rank, (high_w, _name) in found.items()} == {Rank.GRID: 40_000.0, Rank.PRICE: 20_000.0}
    assert len({name for _high_w, name in found.values()}) == len(found)
    # What the event of the highest priority says is cheap is so.
    state = receive(state, event("e1", priced(0.4), dispatch(40)), mild, rules=DEAR).state
    assert [one.rank for one in bounds(state, rules=DEAR)] == [Rank.GRID]


async def put(bound: Bound) -> Ask:
    """Return what a bound is to the orchestrator once it has come over its socket, by a clock that shows 50 s."""

    class Socket(control_link._Connection):
        async def ask(self, verb: str, **arguments: Any) -> Any:
            assert verb == "limit.put"
            found.append(asks.placed(ask_of(arguments, "gateway", {"site": None}, NOW), 50.0, NOW))
            return {"can_honour": True, "why": ""}

    found: list[Ask] = []
    link = ControlLink(Path("/nonexistent"))
    link._orders = Socket(Path("/nonexistent"))
    assert await link.put(bound) == Honour(True, "")
    return found[0]


@pytest.mark.anyio
async def test_a_bound_is_a_limit_of_the_grid_by_the_clock_of_the_host() -> None:
    (bound,) = bounds(held(event()))
    ask = await put(bound)
    none = (0.0, 0.0, 0.0)
    base = BaseLoad(
        circuit="main", source="meter", low_a=none, high_a=none, low_w=0.0, high_w=0.0, reactive_var=0.0,
        apparent_va=None,
    )  # fmt: skip
    (limit,) = asks.limits_of([ask], base)

    assert (limit.start_s, limit.end_s, limit.high, limit.rank) == (50.0 + HOUR, 50.0 + 2 * HOUR, 60_000.0, Rank.GRID)
    assert "e1" in limit.source
    assert ask.baseline_w == BASELINE_W
    assert (await put(replace(bound, baseline_w=None))).baseline_w is None


# Modifications: defects 9 and 10


def test_a_higher_number_replaces() -> None:
    state = held(event())
    received = receive(state, event("e1", simple(3), modification=1))

    assert answered(received) == [("e1", 1, 200, Opt.IN)]
    assert at(bounds(received.state), NOW + HOUR) == 0.0


def test_the_same_number_changes_nothing_and_is_answered_again() -> None:
    state = held(event())
    received = receive(state, event("e1", simple(3)), now=NOW + 10)

    assert answered(received) == [("e1", 0, 200, Opt.IN)]
    assert received.state == state


def test_a_lower_number_is_refused_and_what_is_known_stands() -> None:
    state = held(event(modification=5))
    received = receive(state, event("e1", simple(3), modification=4))

    assert answered(received) == [("e1", 4, Code.OUT_OF_SEQUENCE, Opt.OUT)]
    assert received.state == state


@pytest.mark.parametrize("modification", [0, 1])
def test_a_cancelled_event_ends_and_may_be_cancelled_again(modification: int) -> None:
    state = held(event("e1"), event("e2"))
    cancelled = event("e1", modification=modification, status=Status.CANCELLED)
    once = receive(state, cancelled, event("e2"))
    twice = receive(once.state, cancelled, event("e2"), now=NOW + 60)

    assert answered(once) == answered(twice) == [("e1", modification, 200, Opt.IN), ("e2", 0, 200, Opt.IN)]
    assert twice.state == once.state
    assert {one.key[1] for one in bounds(twice.state)} == {"e2"}


@pytest.mark.parametrize("status", [Status.CANCELLED, Status.COMPLETED])
def test_an_event_ends_whatever_else_is_wrong_with_the_message_that_ends_it(status: Status) -> None:
    state = held(event("e1", modification=2))
    broken = BrokenEvent(code=Code.INVALID_DATA, why="no", id="e1", modification=3, status=status)
    ended = receive(state, broken)

    assert bounds(ended.state) == ()
    assert answered(ended) == [("e1", 3, 200, Opt.IN)]
    assert receive(ended.state, broken) == ended
    # Not by a lower number, nor one that nobody knows.
    for other in (replace(broken, modification=1), replace(broken, id="e2"), replace(broken, id=None)):
        received = receive(state, other, event("e1", modification=2))
        assert received.state == state
        assert [one.code for one in received.responses if one.opt is Opt.OUT] == [
            Code.INVALID_DATA for _ in range(other.id is not None)
        ]


@pytest.mark.parametrize("status", [Status.CANCELLED, Status.COMPLETED])
def test_an_event_that_comes_ended_never_begins(status: Status) -> None:
    received = receive(
        State(), event("e1", simple(3, NOW - HOUR, 2 * HOUR), start=NOW - HOUR, length=2 * HOUR, status=status)
    )

    assert answered(received) == [("e1", 0, 200, Opt.IN)]
    assert received.accepted == ()
    assert bounds(received.state) == ()


def test_an_event_that_is_no_longer_listed_is_cancelled_by_that_and_stands_again_when_it_is() -> None:
    state = receive(held(event("e1"), event("e2")), event("e2")).state

    assert {one.key[1] for one in bounds(state)} == {"e2"}
    assert state.events["vtn-1", "e1"].phase(NOW) is Status.CANCELLED
    assert at(bounds(receive(state, event("e1")).state), NOW + HOUR) == 60_000.0


def test_an_empty_list_cancels_all() -> None:
    assert bounds(receive(held(event("e1"), event("e2"))).state) == ()


def test_a_broken_event_is_answered_and_its_neighbours_stand() -> None:
    state = held(event("e1"), event("e2"))
    received = receive(state, BrokenEvent(code=Code.INVALID_DATA, why="no", id="e1", modification=2), event("e2"))

    assert answered(received) == [("e1", 2, Code.INVALID_DATA, Opt.OUT), ("e2", 0, 200, Opt.IN)]
    assert received.state == state


def test_where_an_event_cannot_be_told_none_is_taken_for_unlisted() -> None:
    state = held(event("e1"))

    assert receive(state, BrokenEvent(code=Code.INVALID_DATA, why="no id")).state == state


# Who it is for


def test_what_the_depot_lacked_is_judged_again_when_it_is_listed_again_and_a_choice_is_not() -> None:
    less = replace(RULES, levels={}, market_contexts=frozenset({"http://utility.example/shed"}))
    other = event("e2", market_context="http://utility.example/other")
    state = receive(State(), event("e1"), other, rules=less).state
    assert bounds(state) == ()
    again = receive(state, event("e1"), other)
    assert [one[2:] for one in answered(again)] == [(200, Opt.IN)] * 2
    assert again.state.events["vtn-1", "e1"].fraction == state.events["vtn-1", "e1"].fraction

    away = replace(RULES, unavailable=(Away(Window(NOW + HOUR, HOUR)),))
    assert answered(receive(held(event(), rules=away), event())) == [("e1", 0, 200, Opt.OUT)]


def test_what_the_depot_cannot_go_by_any_more_it_takes_no_part_in_any_more() -> None:
    state = held(event("e1"), event("e2", dispatch(40)), event("e3", targets=Targets(resources=("bay-1",))))
    fewer = replace(RULES, levels={2: GridLevel(limit_w=0.0)}, resources={})
    after = events.rejudged(state, fewer, NOW)

    assert {key[1]: one.refusal.code for key, one in after.events.items() if one.refusal is not None} == {
        "e1": Code.SIGNAL_NOT_SUPPORTED,
        "e3": Code.TARGET_MISMATCH,
    }
    assert {one.key[1] for one in bounds(after, rules=fewer)} == {"e2"}
    # What is over was taken part in, and a time that was opted out of later is for what comes later.
    assert events.rejudged(state, fewer, NOW + 3 * HOUR) == state
    assert events.rejudged(state, replace(RULES, unavailable=(Away(Window(NOW, 9 * HOUR)),)), NOW) == state


def test_another_id_of_the_ven_leaves_what_came_for_the_one_before() -> None:
    state = held(event(targets=Targets(vens=("ven-1",))))
    renamed = replace(RULES, ven_id="ven-9")

    assert at(bounds(state, rules=renamed), NOW + HOUR) == 60_000.0
    assert events.rejudged(state, renamed, NOW) == state
    again = receive(state, event(targets=Targets(vens=("ven-9",))), rules=renamed)
    assert answered(again) == [("e1", 0, 200, Opt.IN)]
    assert at(bounds(again.state, rules=renamed), NOW + HOUR) == 60_000.0


def test_another_vtn_is_refused_and_changes_nothing() -> None:
    state = held(event("e1"))
    received = receive(state, event("e2"), vtn="vtn-2")

    assert answered(received) == [("e2", 0, Code.INVALID_ID, Opt.OUT)]
    assert received.state == state


def test_the_events_of_a_vtn_that_is_no_longer_registered_with_are_cancelled() -> None:
    open_ended = event("e1", simple(1, NOW - HOUR, 0.0), start=NOW - HOUR, length=0.0)
    before = held(open_ended)
    moved = replace(RULES, vtn_id="vtn-2")
    both = receive(before, event("e1", simple(3)), vtn="vtn-2", rules=moved).state
    after = events.of_vtn(both, "vtn-2", NOW)

    assert {one.key for one in bounds(both)} == {("vtn-1", "e1"), ("vtn-2", "e1")}
    assert {one.key for one in bounds(after)} == {("vtn-2", "e1")}
    assert after.events["vtn-1", "e1"].phase(NOW) is Status.CANCELLED
    assert events.of_vtn(after, "vtn-2", NOW + 60) is after
    # It stands again where that VTN has the VEN again, and still lists it.
    again = events.of_vtn(receive(after, open_ended, now=NOW + 60).state, "vtn-1", NOW + 60)
    assert {one.key for one in bounds(again, NOW + 60)} == {("vtn-1", "e1")}


@pytest.mark.parametrize("vtn", ["0", "00123", "lower", "1.2.3"])
def test_any_text_is_a_vtn_id(vtn: str) -> None:  # defect 8
    assert answered(receive(State(), event(), vtn=vtn, rules=replace(RULES, vtn_id=vtn))) == [("e1", 0, 200, Opt.IN)]


@pytest.mark.parametrize(
    ("targets", "places"),
    [
        (Targets(), {"site"}),
        (Targets(vens=("ven-1",)), {"site"}),
        (Targets(vens=("ven-0", "ven-1")), {"site"}),
        (Targets(groups=("north",)), {"site"}),
        (Targets(resources=("bay-1",)), {"charger-001"}),
        (Targets(vens=("ven-1",), resources=("bay-1", "depot")), {"charger-001", "site"}),
        (Targets(vens=("ven-2",)), None),
        (Targets(groups=("south",)), None),
        (Targets(resources=("bay-9",)), None),
        (Targets(vens=("ven-1",), resources=("bay-9",)), None),
        (Targets(parties=("p",)), None),
        (Targets(others=1), None),
    ],
)
def test_targets(targets: Targets, places: set[str] | None) -> None:
    received = receive(State(), event(targets=targets))

    assert {one.target for one in bounds(received.state)} == (places or set())
    code, opt = (200, Opt.IN) if places else (Code.TARGET_MISMATCH, Opt.OUT)
    assert answered(received) == [("e1", 0, code, opt)]


@pytest.mark.parametrize(
    ("of_event", "of_signal", "places"),
    [
        (Targets(), Targets(vens=("ven-1",)), {"site"}),
        (Targets(), Targets(groups=("north",)), {"site"}),
        (Targets(), Targets(resources=("bay-1",)), {"charger-001"}),
        (Targets(vens=("ven-1",)), Targets(vens=("ven-1",), resources=("bay-1", "bay-9")), {"charger-001"}),
        (Targets(resources=("bay-1",)), Targets(), {"charger-001"}),
        # To name the VEN or the site does not widen what the event is for.
        (Targets(resources=("bay-1",)), Targets(vens=("ven-1",)), {"charger-001"}),
        (Targets(resources=("bay-1",)), Targets(resources=("depot",)), {"charger-001"}),
        (Targets(), Targets(vens=("ven-2",)), None),
        (Targets(vens=("ven-1",)), Targets(resources=("bay-9",)), None),
        (Targets(), Targets(groups=("south",)), None),
        (Targets(), Targets(others=1), None),
        (Targets(vens=("ven-2",)), Targets(resources=("bay-1",)), None),
    ],
)
def test_targets_of_a_signal(of_event: Targets, of_signal: Targets, places: set[str] | None) -> None:
    received = receive(State(), event("e1", replace(simple(3), targets=of_signal), targets=of_event))

    assert {one.target for one in bounds(received.state)} == (places or set())
    code, opt = (200, Opt.IN) if places else (Code.TARGET_MISMATCH, Opt.OUT)
    assert answered(received) == [("e1", 0, code, opt)]


@pytest.mark.parametrize(
    "signal",
    [
        simple(2),
        dispatch(-3, "delta"),
        dispatch(0.5, "multiplier", None),
        dispatch(0.5, "x-loadControlCapacity", None, "LOAD_CONTROL"),
        dispatch(2, "x-loadControlLevelOffset", None, "LOAD_CONTROL"),
        dispatch(-50, "x-loadControlPercentOffset", None, "LOAD_CONTROL"),
    ],
)
@pytest.mark.parametrize("of_signal", [False, True])
def test_a_share_of_what_the_site_draws_is_nothing_for_a_part_of_it(signal: Signal, of_signal: bool) -> None:
    part, mixed = Targets(resources=("bay-1",)), Targets(resources=("depot", "bay-1"))
    for targets in (part, mixed):
        found = replace(signal, targets=targets) if of_signal else signal
        received = receive(State(), event("e1", found, targets=Targets() if of_signal else targets))
        if of_signal and targets is mixed:  # to name the site is to name all that the event is for: the site alone
            assert {one.target for one in bounds(received.state)} == {"site"}
            continue
        assert answered(received) == [("e1", 0, Code.SIGNAL_NOT_SUPPORTED, Opt.OUT)]
        assert bounds(received.state) == ()
        (answer,) = received.responses
        assert "charger-001" in answer.description


def test_a_part_of_the_site_has_no_ramp_and_no_baseline_of_the_whole() -> None:
    found = bounds(held(event("e1", dispatch(7), targets=Targets(resources=("bay-1",)), ramp_up_s=600.0)))

    assert [(one.high_w, one.start_unix_s, one.baseline_w) for one in found] == [(7_000.0, NOW + HOUR, None)]


def test_a_signal_for_others_leaves_those_beside_it() -> None:
    for_others = replace(dispatch(0), targets=Targets(others=1))
    price = Signal(
        id="p", name="ELECTRICITY_PRICE", type="price", unit=Unit("currencyPerKWh", "EUR", 1.0),
        intervals=intervals(NOW + HOUR, (HOUR, 0.3)), targets=Targets(vens=("ven-2",)),
    )  # fmt: skip
    received = receive(State(), event("e1", for_others, price, simple(1)))

    assert answered(received) == [("e1", 0, 200, Opt.IN)]
    assert [(one.target, one.high_w) for one in bounds(received.state)] == [("site", 60_000.0)]
    assert events.prices(received.state, RULES, NOW) == ()


def test_simple_counts_where_the_other_signal_is_for_another_place() -> None:
    state = held(event("e1", simple(1), replace(dispatch(7), targets=Targets(resources=("bay-1",)))))

    assert {(one.target, one.high_w) for one in bounds(state)} == {("site", 60_000.0), ("charger-001", 7_000.0)}


def test_a_market_context_that_the_depot_is_not_in() -> None:
    rules = replace(RULES, market_contexts=frozenset({"http://utility.example/other"}))
    received = receive(State(), event(), rules=rules)

    assert answered(received) == [("e1", 0, Code.NOT_RECOGNIZED, Opt.OUT)]


def test_an_event_in_a_time_that_the_depot_has_opted_out_of() -> None:
    rules = replace(RULES, unavailable=(Away(Window(NOW + 1.5 * HOUR, HOUR)),))
    received = receive(State(), event("e1"), event("e2", start=NOW + 3 * HOUR), rules=rules)

    assert answered(received) == [("e1", 0, 200, Opt.OUT), ("e2", 0, 200, Opt.IN)]


def test_opting_out_of_a_market_context_leaves_the_others() -> None:
    shed, other = "http://utility.example/shed", "http://utility.example/other"
    rules = replace(RULES, unavailable=(Away(Window(NOW + HOUR, HOUR), other),))
    received = receive(State(), event("e1", market_context=shed), event("e2", market_context=other), rules=rules)

    assert answered(received) == [("e1", 0, 200, Opt.IN), ("e2", 0, 200, Opt.OUT)]
    assert {one.key[1] for one in bounds(received.state, rules=rules)} == {"e1"}


def test_an_event_that_is_over_is_not_taken_part_in() -> None:
    assert answered(receive(State(), event(start=NOW - 2 * HOUR))) == [("e1", 0, 200, Opt.OUT)]


def test_no_answer_where_none_is_wanted() -> None:
    broken = BrokenEvent(code=Code.INVALID_DATA, why="no", id="e0", response_required=False)
    received = receive(State(), broken, event("e1", response_required=False), event("e2"))

    assert [one.event_id for one in received.responses] == ["e2"]
    assert {key[1] for key in received.accepted} == {"e1", "e2"}


def test_a_test_is_answered_and_bounds_nothing() -> None:
    received = receive(State(), event(test=True))

    assert answered(received) == [("e1", 0, 200, Opt.IN)]
    assert received.accepted == ()
    assert bounds(received.state) == ()


def test_opting_out_ends_what_an_event_bounds() -> None:
    state = events.opted_out(held(event()), ("vtn-1", "e1"), "base load 50 kW")

    assert bounds(state) == ()
    assert answered(receive(state, event())) == [("e1", 0, 200, Opt.OUT)]


# Time


def test_a_random_start_is_drawn_once_and_moves_the_whole_event() -> None:
    state = held(event(startafter_s=600.0), luck=0.5)
    (bound,) = bounds(state)
    (again,) = bounds(receive(state, event(startafter_s=600.0, modification=1), luck=0.9).state)

    assert (bound.start_unix_s, bound.end_unix_s) == (NOW + HOUR + 300.0, NOW + 2 * HOUR + 300.0)
    assert (again.start_unix_s, again.end_unix_s) == (bound.start_unix_s, bound.end_unix_s)


def test_an_event_in_force_that_is_cancelled_is_let_go_within_its_startafter() -> None:
    state = held(event(startafter_s=600.0), luck=0.5)
    cancelled = event(startafter_s=600.0, modification=1, status=Status.CANCELLED)
    once = receive(state, cancelled, now=NOW + 1.5 * HOUR).state
    (bound,) = bounds(once, NOW + 1.5 * HOUR)

    assert bound.end_unix_s == NOW + 1.5 * HOUR + 300.0
    assert bounds(receive(once, cancelled, now=NOW + 1.5 * HOUR + 60).state, NOW + 1.5 * HOUR) == (bound,)


def test_so_is_one_that_is_no_longer_listed_and_one_that_is_said_to_be_over() -> None:
    state = held(event(startafter_s=600.0), luck=0.5)
    now = NOW + 1.5 * HOUR
    left_out, completed = receive(state, now=now).state, event(startafter_s=600.0, status=Status.COMPLETED)
    for ended in (left_out, receive(state, completed, now=now).state, events.of_vtn(state, "vtn-2", now)):
        assert [one.end_unix_s for one in bounds(ended, now)] == [now + 300.0]
    # Cancelled in so many words after that: no later. Over at its end: not before the random part of that.
    cancelled = event(startafter_s=600.0, modification=1, status=Status.CANCELLED)
    assert bounds(receive(left_out, cancelled, now=now + 60).state, now)[0].end_unix_s == now + 300.0
    assert bounds(receive(state, completed, now=NOW + 2 * HOUR).state, now)[0].end_unix_s == NOW + 2 * HOUR + 300.0


@pytest.mark.parametrize("step_s", [HOUR, -HOUR])
def test_what_has_ended_does_not_begin_again_with_a_step_of_the_clock(step_s: float) -> None:
    begun = event(start=NOW - HOUR, length=9 * HOUR)
    cancelled = replace(begun, modification=1, status=Status.CANCELLED)
    state = receive(held(begun), cancelled).state
    after = events.stepped(state, step_s)

    assert bounds(after, NOW + step_s) == ()
    # Where the step was not seen, for there was nobody to see it, the next list of events says so.
    assert bounds(receive(state, cancelled, now=NOW - HOUR / 2).state, NOW - HOUR / 2) == ()


def test_an_event_that_seemed_over_by_a_clock_that_was_ahead_is_taken_part_in_after_all() -> None:
    ahead = receive(State(), event(), now=NOW + 3 * HOUR)
    assert answered(ahead) == [("e1", 0, 200, Opt.OUT)]
    right = receive(ahead.state, event())

    assert answered(right) == [("e1", 0, 200, Opt.IN)]
    assert at(bounds(right.state), NOW + HOUR) == 60_000.0


@pytest.mark.anyio
async def test_an_open_end_lasts_until_it_is_cancelled() -> None:
    open_ended = event("e1", simple(1, length=0.0), length=0.0)
    (bound,) = bounds(held(open_ended), NOW + 1000 * HOUR)

    assert math.isinf(bound.end_unix_s)
    assert (await put(bound)).end_s is None
    ended = receive(held(open_ended), replace(open_ended, status=Status.CANCELLED), now=NOW + 2 * HOUR).state
    assert bounds(ended, NOW + 2 * HOUR) == ()


def test_a_baseline_is_frozen_at_the_start() -> None:
    state = held(event("e1", dispatch(-30, "delta")))
    early = events.frozen(state, NOW + HOUR - 1, 80_000.0)
    begun = events.frozen(early, NOW + HOUR, 90_000.0)
    later = events.frozen(begun, NOW + HOUR + 60, 20_000.0)

    assert early == state
    assert later == begun
    assert at(bounds(later, NOW + HOUR, 20_000.0), NOW + HOUR) == 60_000.0
    assert bounds(later, NOW + HOUR)[0].baseline_w == 90_000.0


def test_the_baseline_of_an_event_is_that_of_the_next_for_as_long_as_nothing_else_is_known() -> None:
    later = event("e2", dispatch(0.5, "multiplier", None), start=NOW + 1.5 * HOUR, length=2 * HOUR)
    state = events.frozen(held(event("e1"), later, event("e3", test=True)), NOW + HOUR, 90_000.0)
    state = events.frozen(state, NOW + 1.5 * HOUR, 80_000.0)

    found = [events.latest_baseline_w(state, NOW + after * HOUR, 900.0) for after in (0.9, 1.1, 1.6, 3.7, 3.8)]
    assert found == [None, 90_000.0, 80_000.0, 80_000.0, None]


@pytest.mark.parametrize(("ramp_s", "begin"), [(600.0, NOW + HOUR), (-600.0, NOW + HOUR - 600.0)])
def test_a_ramp_leads_from_the_baseline_to_what_is_wanted(ramp_s: float, begin: float) -> None:
    found = bounds(held(event(ramp_up_s=ramp_s)))
    there = [at(found, begin + 60.0 * step) for step in range(11)]

    assert at(found, begin - 1) is None
    assert there == sorted(filter(None, there), reverse=True)
    assert there[0] == 96_000.0
    assert there[9] == there[10] == 60_000.0


@pytest.mark.parametrize(("recovery_s", "begin"), [(600.0, NOW + 2 * HOUR), (-600.0, NOW + 2 * HOUR - 600.0)])
def test_recovery_leads_back(recovery_s: float, begin: float) -> None:
    found = bounds(held(event(recovery_s=recovery_s)))
    back = [at(found, begin + 60.0 * step) for step in range(10)]

    assert at(found, begin - 1) == 60_000.0
    assert back == sorted(filter(None, back))
    assert back[-1] == 96_000.0
    assert at(found, begin + 601.0) is None


def test_what_an_event_is_now() -> None:
    state = held(event(notification_s=600.0))
    seen = [state.events["vtn-1", "e1"].phase(NOW + after) for after in (0, HOUR - 600, HOUR, 2 * HOUR)]

    assert seen == [Status.FAR, Status.NEAR, Status.ACTIVE, Status.COMPLETED]


# Several events


def test_a_higher_priority_counts_where_events_overlap() -> None:
    state = held(
        event("low", simple(3), priority=2),
        event("none", simple(3)),
        event("high", simple(1, NOW + 1.25 * HOUR, HOUR / 2), start=NOW + 1.25 * HOUR, length=HOUR / 2, priority=1),
    )
    found = bounds(state)

    assert [at(found, NOW + after * HOUR) for after in (1.0, 1.3, 1.8)] == [0.0, 60_000.0, 0.0]


def test_a_ramp_before_or_after_an_event_lifts_nothing_of_a_lower_priority() -> None:
    state = held(
        event("low", simple(3, NOW, 9 * HOUR), start=NOW, length=9 * HOUR, priority=2),
        event("high", priority=1, ramp_up_s=-600.0, recovery_s=600.0),
    )
    found = bounds(state)

    assert [at(found, NOW + HOUR + after_s) for after_s in (-300.0, 0.0, HOUR - 1, HOUR, HOUR + 300.0)] == [
        0.0, 60_000.0, 60_000.0, 0.0, 0.0,
    ]  # fmt: skip


def test_level_0_of_a_higher_priority_lifts_a_lower_one() -> None:
    assert bounds(held(event("low", simple(3), priority=2), event("high", simple(0), priority=1))) == ()


def test_the_tightest_counts_of_those_with_the_same_priority() -> None:
    assert at(bounds(held(event("a", simple(1)), event("b", dispatch(40)))), NOW + HOUR) == 40_000.0


# Properties


PHASES = st.sampled_from([Status.FAR, Status.ACTIVE, Status.CANCELLED, Status.COMPLETED])


@st.composite
def some_events(draw: st.DrawFn) -> Event:
    start = NOW + draw(st.integers(-20, 20)) * 600.0
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    signal = draw(
        st.sampled_from([("SIMPLE", "level", None), ("LOAD_DISPATCH", "delta", KW), ("BID_LOAD", "setpoint", KW)])
    )
    value = st.integers(0, 3)
    return event(
        draw(st.sampled_from(["a", "b", "c"])),
        Signal(id="s", name=signal[0], type=signal[1], unit=signal[2],
               intervals=intervals(start, *((600.0 * length, float(draw(value))) for length in lengths))),
        start=start, length=600.0 * sum(lengths), modification=draw(st.integers(0, 2)), status=draw(PHASES),
        priority=draw(st.integers(0, 2)), test=draw(st.booleans()), startafter_s=draw(st.sampled_from([0.0, 300.0])),
        ramp_up_s=draw(st.sampled_from([0.0, 600.0, -600.0])), recovery_s=draw(st.sampled_from([0.0, 600.0, -600.0])),
    )  # fmt: skip


MESSAGES = st.lists(st.lists(some_events(), max_size=3, unique_by=lambda one: one.id), max_size=5)


def played(lists: list[list[Event]], luck: float = 0.5) -> State:
    state = State()
    for number, listed in enumerate(lists):
        state = receive(state, *listed, now=NOW + 60.0 * number, luck=luck).state
    return state


@settings(max_examples=50)
@given(MESSAGES)
def test_there_is_never_more_than_one_bound_at_a_place(lists: list[list[Event]]) -> None:
    found = bounds(played(lists))

    for place in {one.target for one in found}:
        own = sorted((one for one in found if one.target == place), key=lambda one: one.start_unix_s)
        for before, after in pairwise(own):
            assert before.end_unix_s <= after.start_unix_s
    assert len({one.name for one in found}) == len(found)


@settings(max_examples=50)
@given(MESSAGES)
def test_the_state_outlives_the_process(lists: list[list[Event]]) -> None:
    state = played(lists)

    assert events.from_json(json.loads(json.dumps(events.to_json(state), allow_nan=False))) == state


@settings(max_examples=50)
@given(MESSAGES)
def test_the_same_message_again_changes_nothing(lists: list[list[Event]]) -> None:
    state = played(lists)
    listed = lists[-1] if lists else []
    once = receive(state, *listed, now=NOW + 600.0)
    twice = receive(once.state, *listed, now=NOW + 600.0)

    assert twice == once


@settings(max_examples=50)
@given(MESSAGES, st.integers(0, 100))
def test_nothing_is_bounded_by_an_event_that_has_ended_or_was_opted_out_of(
    lists: list[list[Event]], after: int
) -> None:
    state, now = played(lists), NOW + 600.0 * after
    for bound in bounds(state, now):
        one = state.events[bound.key]
        assert one.refusal is None
        assert not one.event.test
        assert one.ended_unix_s is None or bound.end_unix_s <= one.ended_unix_s


@settings(max_examples=50)
@given(MESSAGES, some_events())
def test_an_event_is_answered_for_each_time_it_comes(lists: list[list[Event]], one: Event) -> None:
    received = receive(played(lists), one, now=NOW + 600.0)

    assert [(answer.event_id, answer.modification) for answer in received.responses] == [(one.id, one.modification)]


def test_what_has_long_been_over_is_forgotten() -> None:  # defect 18
    state = State()
    for number in range(400):
        state = receive(
            state, event(f"e{number}", simple(1, NOW, 60.0), start=NOW, length=60.0), now=NOW + number
        ).state

    assert len(state.events) == 400
    assert len(receive(state, now=NOW + 8 * 86400.0).state.events) == 0


def test_no_number_of_events_fills_the_disk() -> None:
    state = State()
    for number in range(6):
        many = [event(f"e{number}.{each}", start=NOW - 2 * HOUR) for each in range(500)]
        state = receive(state, *many, now=NOW + number).state

    assert len(state.events) == events.MOST_HELD
