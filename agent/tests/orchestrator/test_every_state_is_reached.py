# SPDX-License-Identifier: Apache-2.0
"""Each state of a depot comes about by what it is said to mean, before weaker ones, and is what LEDs show."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from derms_agent.control import droop
from derms_agent.model import OperatingState, Rank, Reading
from derms_agent.orchestrator.asks import Ask
from derms_agent.orchestrator.led import Light, Pattern, pattern
from derms_agent.orchestrator.report import operating, troubles

if TYPE_CHECKING:
    from agent.tests.orchestrator.conftest import MakePlay, Play

    from derms_agent.control.state import Shown

GREEN = Pattern(green=Light.STEADY)
LEDS = {
    OperatingState.NORMAL: GREEN,
    OperatingState.LIMITED: GREEN,
    OperatingState.SHEDDING: GREEN,
    OperatingState.RESOURCE_CONSTRAINTS: Pattern(amber=Light.STEADY),
    OperatingState.FALLBACK: Pattern(amber=Light.FLASHING),
    OperatingState.NO_GRID_SYNC: Pattern(red=Light.FLASHING),
    OperatingState.FAULT: Pattern(red=Light.STEADY),
}
BOARD = "charger-003"
EVENT = Ask(id="e", source="grid event 7", rank=Rank.GRID, high_w=80_000.0)
CALM_HZ = droop.Settings(nominal_hz=50.0)


def shown(one: Play, seconds: int = 1) -> Shown:
    return operating(one.controller, one.step(seconds), one.now_s)


def set_droop(one: Play) -> None:
    one.controller.policy = replace(one.controller.policy, droop=CALM_HZ)


def lose_the_link(one: Play) -> None:
    one.controller.policy = replace(one.controller.policy, default_limit_w=40_000.0)
    one.controller.link_until_s = one.now_s


def test_leds_show_each_state_and_those_for_no_grid_sync_and_resource_constraints_as_the_manual_has_it() -> None:
    assert {state: pattern(state) for state in OperatingState} == LEDS


def test_from_nothing_to_a_fault_each_state_stands_before_those_that_are_weaker(charging: Play) -> None:
    """Nothing of what came before is over: one thing more is so each time."""
    one = charging
    assert one.site.evses
    limited = shown(one)
    assert limited.state is OperatingState.LIMITED
    assert "site limit 160 kVA" in limited.reason

    one.controller.put(EVENT)
    shed = shown(one, 3)
    assert shed.state is OperatingState.SHEDDING
    assert "grid event 7" in shed.reason

    one.boards_c[BOARD] = 69.5
    hot = shown(one, 3)
    assert hot.state is OperatingState.RESOURCE_CONSTRAINTS
    assert f"{BOARD} (charger of {BOARD} 69.5 degC" in hot.reason

    one.controller.forget(EVENT.id)
    lose_the_link(one)
    fallen_back = shown(one)
    assert fallen_back.state is OperatingState.FALLBACK
    assert fallen_back.reason == "the grid's link is lost: the default limit holds"

    one.frequency_hz = 47.0
    out_of_sync = shown(one)
    assert out_of_sync.state is OperatingState.NO_GRID_SYNC
    assert out_of_sync.reason == "the grid's frequency is 47.00 Hz"

    one.silent.add("charger-001")
    fault = shown(one, 8)
    assert fault.state is OperatingState.FAULT
    assert "charger-001 does not answer" in fault.reason


def test_a_depot_with_nobody_there_is_normal_and_its_silent_chargers_are_no_fault(play: MakePlay) -> None:
    one = play()
    assert shown(one, 30).state is OperatingState.NORMAL
    one.silent.add("charger-001")
    assert shown(one, 10).state is OperatingState.NORMAL


def test_where_no_charger_answers_each_is_on_its_own_fallback(play: MakePlay) -> None:
    one = play()
    one.step(30)
    one.silent = {name for name, device in one.site.devices.items() if device.evses}
    found = shown(one, 10)
    assert found.state is OperatingState.FALLBACK
    assert found.reason == "no EVSE answers: each is on its own fallback"


@pytest.mark.parametrize(
    ("high_w", "source", "state"),
    [(float("inf"), "grid event 7", OperatingState.LIMITED), (80_000.0, "grid event 7", OperatingState.SHEDDING)],
)
def test_an_event_is_a_shed_only_where_it_takes_power_off_and_once_it_has_begun(
    charging: Play, high_w: float, source: str, state: OperatingState
) -> None:
    one = charging
    begins_s = one.now_s + 10
    one.controller.put(replace(EVENT, high_w=high_w, source=source, start_s=begins_s))
    while one.now_s + 1 < begins_s:
        assert shown(one).state is OperatingState.LIMITED
    assert shown(one, 2).state is state


def test_an_event_that_finds_nothing_to_take_off_is_shown_all_the_same(play: MakePlay) -> None:
    one = play()
    one.step(30)
    one.controller.put(EVENT)
    found = shown(one)
    assert (found.state, found.reason) == (OperatingState.SHEDDING, "grid event 7")


def test_a_frequency_that_takes_power_off_is_a_shed_and_one_that_is_not_known_is_no_sync(charging: Play) -> None:
    one = charging
    set_droop(one)
    one.frequency_hz = 49.3
    found = shown(one, 30)
    assert found.state is OperatingState.SHEDDING
    assert found.reason.startswith("frequency droop, -26.")
    one.silent.add("grid")
    found = shown(one, 10)
    assert (found.state, found.reason) == (OperatingState.NO_GRID_SYNC, "the grid's frequency is not known")
    one.silent.clear()
    one.voltage_share = None
    found = shown(one, 10)
    assert (found.state, found.reason) == (OperatingState.NO_GRID_SYNC, "the grid's voltage is not known")
    one.voltage_share = 0.8
    assert shown(one).reason == "the grid's voltage is 80 % of nominal"


def test_what_is_asked_of_a_single_evse_limits_the_depot_and_its_rating_does_not(play: MakePlay) -> None:
    one = play()
    one.step(3)
    one.vehicles([BOARD])
    assert shown(one, 40).state is OperatingState.NORMAL
    one.controller.put(Ask(id="l", source="root: less", rank=Rank.OPERATOR, target=BOARD, high_w=6_000.0))
    found = shown(one, 20)
    assert (found.state, found.reason) == (OperatingState.LIMITED, "root: less")


def test_one_that_draws_more_than_its_limit_is_a_fault_and_an_alarm(charging: Play) -> None:
    one = charging
    one.frozen_a[BOARD] = one.limit_a[BOARD]
    one.controller.put(Ask(id="l", source="less", rank=Rank.OPERATOR, target=BOARD, high_w=4_200.0))
    found = shown(one, 18)
    assert found.state is OperatingState.FAULT
    assert f"{BOARD}: draws more than its limit" in found.reason
    about = {(name, kind): words for name, kind, words in alarms(one)}
    assert about[BOARD, "overdrawing"].startswith("draws more than its limit: ")
    assert "duty cycle of its control pilot" in about[BOARD, "overdrawing"]


def test_what_stays_over_its_limit_is_a_fault_and_an_alarm_with_its_line(charging: Play) -> None:
    """A base load that leaves less than nothing: there is nobody who could be lowered any more."""
    one = charging
    one.silent = {name for name, device in one.site.devices.items() if device.evses and name != "charger-001"}
    one.base_a = (300.0, 300.0, 300.0)
    found = shown(one, 45)
    assert found.state is OperatingState.FAULT
    assert "main could be over its limit" in found.reason
    assert any(kind == "over" and about.startswith("main") for about, kind, _ in alarms(one))


def test_what_a_device_says_of_itself_is_an_alarm_until_it_says_it_no_more(charging: Play) -> None:
    one = charging
    read = one.last["charger-001"]
    one.controller.take("charger-001", later(read, 0.1, problem="found no register 5004"), one.now_s)
    assert ("charger-001", "problem", "found no register 5004") in alarms(one)
    one.controller.take("charger-001", later(read, 0.2, problem=None), one.now_s)
    assert "problem" not in {kind for _, kind, _ in alarms(one)}


def later(reading: Reading, seconds: float, *, problem: str | None) -> Reading:
    return replace(
        reading,
        asked_at_s=reading.asked_at_s + seconds,
        answered_at_s=reading.answered_at_s + seconds,
        read_at_s=reading.read_at_s + seconds,
        problem=problem,
    )


def alarms(one: Play) -> list[tuple[str, str, str]]:
    outcome = one.controller.outcome
    assert outcome is not None
    return troubles(one.controller, outcome, one.now_s)
