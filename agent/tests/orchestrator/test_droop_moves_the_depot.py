# SPDX-License-Identifier: Apache-2.0
"""The frequency's course through all of control: what vehicles draw, and what a successor goes on from."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from derms_agent.control import droop
from derms_agent.model import Rank
from derms_agent.orchestrator import handover
from derms_agent.orchestrator.asks import Ask

if TYPE_CHECKING:
    from agent.tests.orchestrator.conftest import MakePlay, Play

SETTINGS = droop.Settings(nominal_hz=50.0)
NAMES = ["charger-001", "charger-002", "charger-021"]
LOW_HZ = 49.5


@pytest.fixture
def steady(play: MakePlay) -> Play:
    """Return a depot with droop whose three vehicles draw all that they can."""
    one = play(droop=SETTINGS)
    one.step(3)
    one.vehicles(NAMES)
    one.step(45)
    assert [one.drawn_a(evse) for evse in one.site.evses if evse.name in NAMES] == [16.0] * 3
    return one


def drawn_a(one: Play) -> list[float]:
    return [one.drawn_a(evse) for evse in one.site.evses if evse.name in NAMES]


def bound_a(one: Play, name: str) -> float:
    outcome = one.controller.outcome
    assert outcome is not None
    held = [limit.high for limit in outcome.why[name].limits if limit.rank is Rank.DROOP]
    return min(held, default=float("inf")) / one.controller.watts_per_a(name)


def test_under_frequency_takes_the_curves_share_off_each_vehicle_from_what_it_drew_before(steady: Play) -> None:
    one = steady
    shift = droop.shift(SETTINGS, LOW_HZ)
    assert shift == pytest.approx(-(50 - 0.036 - LOW_HZ) / (50 * 0.05))
    one.frequency_hz = LOW_HZ
    for _ in range(90):
        one.step()
        # What was drawn before stands for as long as it lasts, and not what is drawn meanwhile.
        assert min(drawn_a(one)) >= 16.0 * (1 + shift) - 1.0
    for name in NAMES:
        assert bound_a(one, name) == pytest.approx(16.0 * (1 + shift), abs=0.005 * 16.0)
    assert all(current <= 16.0 * (1 + shift) + 0.1 for current in drawn_a(one))


def test_who_took_less_before_is_held_to_less(play: MakePlay) -> None:
    one = play(droop=SETTINGS)
    one.step(3)
    one.vehicles(NAMES)
    one.most_a["charger-001"] = 12.0
    one.step(60)
    one.frequency_hz = LOW_HZ
    one.step(60)
    shift_a = 16.0 * droop.shift(SETTINGS, LOW_HZ)
    assert bound_a(one, "charger-001") == pytest.approx(12.0 + shift_a, abs=0.1)
    assert bound_a(one, "charger-002") == pytest.approx(16.0 + shift_a, abs=0.1)


def test_over_frequency_asks_no_vehicle_for_more_than_it_may_have(steady: Play) -> None:
    one = steady
    one.frequency_hz = 50.6
    one.step(60)
    assert one.controller.memory().droop.output > 0.1
    assert drawn_a(one) == [16.0] * 3
    assert {bound_a(one, name) for name in NAMES} == {float("inf")}


def test_over_frequency_lifts_no_limit_of_a_vehicles(steady: Play) -> None:
    one = steady
    per_a = one.controller.watts_per_a(NAMES[0])
    one.controller.put(Ask(id="a", source="root", rank=Rank.OPERATOR, target=NAMES[0], high_w=8.0 * per_a))
    one.step(30)
    one.frequency_hz = 50.6
    one.step(60)
    assert one.controller.memory().droop.output > 0.1
    assert drawn_a(one)[0] == pytest.approx(8.0)


def test_a_frequency_that_is_not_seen_any_more_keeps_the_reduction_as_it_is(steady: Play) -> None:
    """The response goes no further by what the meter said last."""
    one = steady
    one.frequency_hz = LOW_HZ
    one.step(3)
    one.silent.add("grid")
    one.step(3)
    before = one.controller.memory().droop
    assert not before.known
    assert droop.shift(SETTINGS, LOW_HZ) < before.output < 0
    one.step(30)
    assert one.controller.memory().droop.output == before.output


def test_a_new_process_goes_on_with_the_reduction_from_what_was_drawn_before(steady: Play, play: MakePlay) -> None:
    one = steady
    one.most_a["charger-001"] = 12.0
    one.step(30)
    one.frequency_hz = LOW_HZ
    one.step(60)
    bounds = [bound_a(one, name) for name in NAMES]
    document = json.loads(json.dumps(handover.to_json(one.controller.memory()), allow_nan=False))
    heir = replace(one, controller=play(one.controller.state.ledger, droop=SETTINGS).controller)
    known = {name: one.controller.watts_per_a(name) for name in one.site.stations}
    heir.controller.remember(handover.from_json(document, known))
    heir.read()
    heir.now_s += 1
    heir.step(5)
    assert [bound_a(heir, name) for name in NAMES] == pytest.approx(bounds, abs=0.01)
    assert heir.controller.memory().droop.before_w == one.controller.memory().droop.before_w
