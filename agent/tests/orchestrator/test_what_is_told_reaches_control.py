# SPDX-License-Identifier: Apache-2.0
"""What is told of sessions and what a plan says: through the orchestrator to control."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from agent.tests.orchestrator.conftest import SETTLED_S, new_controller

from derms_agent.control.plan import Plan
from derms_agent.model import Rank
from derms_agent.orchestrator import handover, planning
from derms_agent.orchestrator.asks import Ask
from derms_agent.orchestrator.controller import PLAN_LASTS_S, Told
from derms_agent.orchestrator.report import Alarms, Running, report

if TYPE_CHECKING:
    from agent.tests.orchestrator.conftest import MakePlay, Play

    from derms_agent.orchestrator.site import Site

YARD = [f"charger-00{number}" for number in range(1, 9)]
RUNNING = Running(cycles=1, median_ms=1.0, p99_ms=1.0, last_ms=1.0, buses={}, unix_s=1_795_000_000.0)


def told_of(one: Play, names: list[str], hours: float, need_wh: float) -> None:
    for name in names:
        one.controller.tell(name, Told(departure_at_s=one.now_s + hours * 3600, energy_need_wh=need_wh))


def squeezed(one: Play, high_w: float = 20_000.0) -> Ask:
    """Leave the yard little, by a limit."""
    ask = Ask(id="yard", source="root: yard", rank=Rank.OPERATOR, target="yard", high_w=high_w)
    one.controller.put(ask)
    return ask


def test_the_planner_is_asked_for_what_was_told_and_leaves_the_others_their_share(charging: Play) -> None:
    one = charging
    squeezed(one)
    told_of(one, YARD[:4], 2.0, 30_000.0)
    one.step(2)
    controller = one.controller
    needs = {need.evse: need for need in controller.needs()}
    assert set(needs) == set(YARD[:4])
    for name, need in needs.items():
        delivered_wh = controller.sessions[name].delivered_wh
        assert need.departure_at_s == pytest.approx(one.now_s + 2 * 3600, abs=3)
        assert need.charge_as * controller.watts_per_a(name) / 3600 == pytest.approx(30_000.0 - delivered_wh, abs=1)
    found = planning.answer(planning.question(controller, controller.needs(), one.now_s))
    assert found is not None
    at_once_w = sum(amperes * controller.watts_per_a(name) for name, amperes in found.currents_at_a(one.now_s).items())
    # Half of those that hang there are not known of: half of it is theirs, and the limit holds for all.
    assert at_once_w == pytest.approx(10_000.0, rel=0.1)


def arrived(play: MakePlay, high_w: float) -> Play:
    """Return a depot at whose yard vehicles have just come to every EVSE, and none charges yet."""
    one = play()
    squeezed(one, high_w)
    one.step(25)
    one.vehicles(YARD)
    one.read()
    return one


def test_what_the_plan_says_is_who_charges(play: MakePlay) -> None:
    one = arrived(play, 13_000.0)
    told_of(one, YARD, 10.0, 40_000.0)
    now_s, first = one.now_s, YARD[5:8]
    one.controller.plan = Plan(
        edges_s=(now_s, now_s + 300.0, now_s + 36_000.0),
        currents_a={name: (6.0, 6.0) if name in first else (0.0, 0.0) for name in YARD},
    )
    one.step(30)
    assert {name for name in YARD if one.limit_a[name] > 0} == set(first)


def test_a_new_process_goes_on_from_its_predecessors_plan(play: MakePlay) -> None:
    one, heir = arrived(play, 13_000.0), arrived(play, 13_000.0)
    now_s, first = one.now_s, YARD[5:8]
    one.controller.plan = Plan(
        edges_s=(now_s - 60.0, now_s, now_s + 36_000.0),
        currents_a={name: (0.0, 6.0 if name in first else 0.0) for name in YARD},
    )
    document = json.loads(json.dumps(handover.to_json(one.controller.memory()), allow_nan=False))
    known = {name: one.controller.watts_per_a(name) for name in one.site.stations}
    heir.controller.remember(handover.from_json(document, known))
    told_of(heir, YARD, 10.0, 40_000.0)
    heir.step(30)
    assert {name for name in YARD if heir.limit_a[name] > 0} == set(first)


def test_without_a_plan_the_vehicle_that_can_least_wait_charges(play: MakePlay) -> None:
    one = arrived(play, 4_500.0)
    told_of(one, YARD, 40.0, 40_000.0)
    told_of(one, [YARD[6]], 4.0, 40_000.0)
    one.step(30)
    assert [name for name in YARD if one.limit_a[name] > 0] == [YARD[6]]


def test_who_tells_a_departure_does_not_wait_for_those_that_tell_none(play: MakePlay) -> None:
    one = arrived(play, 40_000.0)
    told_of(one, [YARD[6]], 3.0, 20_000.0)
    one.step(SETTLED_S)
    fair_w = 40_000.0 / len(YARD)
    assert one.limit_a[YARD[6]] * one.controller.watts_per_a(YARD[6]) >= fair_w - 1000.0


def test_a_plan_that_was_made_long_ago_is_none(play: MakePlay) -> None:
    one = arrived(play, 5_000.0)
    told_of(one, YARD, 10.0, 40_000.0)
    told_of(one, [YARD[6]], 4.0, 40_000.0)
    now_s = one.now_s
    one.controller.plan = Plan(
        edges_s=(now_s - PLAN_LASTS_S + 30.0, now_s + 36_000.0),
        currents_a={name: (7.0 if name == YARD[2] else 0.0,) for name in YARD},
    )
    one.step(25)
    assert [name for name in YARD if one.limit_a[name] > 0] == [YARD[2]]
    one.step(340)
    assert [name for name in YARD if one.limit_a[name] > 0] == [YARD[6]]


def test_the_next_vehicle_is_not_taken_for_one_that_takes_as_little_as_the_last(charging: Play) -> None:
    one, name = charging, YARD[2]
    one.most_a[name] = 7.0
    one.step(60)
    assert one.controller.rated_w(name) < 9 * one.controller.watts_per_a(name)
    del one.most_a[name]
    one.step(3)
    one.most_a[name] = 16.0
    one.step(2)
    assert one.controller.rated_w(name) == 16.0 * one.controller.watts_per_a(name)


def test_every_evse_says_which_limits_hold_it_the_strongest_rank_first(charging: Play) -> None:
    one = charging
    squeezed(one)
    one.step(20)
    outcome = one.step()
    found = report(one.controller, outcome, Alarms(), RUNNING, one.now_s)
    by_name = {evse["name"]: evse for evse in found["evses"]}
    for name in YARD:
        assert "root: yard" in by_name[name]["limited_by"]
        assert by_name[name]["why"]
        ranks = [limit.rank for limit in outcome.why[name].limits]
        assert ranks == sorted(ranks)
        sources = [limit.source for limit in outcome.why[name].limits]
        assert f"rating of {name}" in sources
        assert f"vehicle at {name}" in sources
        assert any(source.startswith("circuit yard") for source in sources)
        assert any(source.startswith("circuit main") for source in sources)
        assert any(source.startswith("site limit") for source in sources)
    assert "root: yard" not in by_name["charger-021"]["limited_by"]


def test_a_depot_starts_after_an_outage_unlike_another_and_unlike_the_last_time(site: Site) -> None:
    elsewhere = replace(site, depot=replace(site.depot, name="another"))
    seeds = set()
    for where in (site, elsewhere):
        for boot in ("boot-1", "boot-2"):
            plain = new_controller(where)
            controller = type(plain)(site=where, policy=plain.policy, state=plain.state, boot_id=boot)
            seeds.add(controller.params.seed)
    assert len(seeds) == 4
