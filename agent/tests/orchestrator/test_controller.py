# SPDX-License-Identifier: Apache-2.0
"""Control's whole course over the demo depot, in virtual time."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from agent.tests.orchestrator.conftest import METER_AT_S, Play, new_controller

from derms_agent.control import demand, droop, thermal
from derms_agent.control import ledger as book
from derms_agent.control.guard import Purpose
from derms_agent.model import LimitQuantity, Proof, ProofKind, Rank, Value
from derms_agent.orchestrator import handover
from derms_agent.orchestrator.asks import Ask
from derms_agent.orchestrator.controller import ASKED_AGAIN_S, WAKES_S, Told
from derms_agent.orchestrator.site import site_of
from derms_agent.profiles.profile import Profile

if TYPE_CHECKING:
    from agent.tests.orchestrator.conftest import MakePlay

    from derms_agent.control.guard import Write
    from derms_agent.orchestrator.site import Site

SITE_VA = 160_000.0
BASE_W = 3 * 20.0 * 400 / math.sqrt(3)
SETTLED_S = 40
BOOT = "boot-1"


def ask(high_w: float, **more: object) -> Ask:
    fields: dict[str, object] = {"id": "less", "source": "somebody", "rank": Rank.OPERATOR, **more}
    return Ask(high_w=high_w, **fields)  # type: ignore[arg-type]


def test_vehicles_take_what_the_site_leaves_beside_its_base_load_and_never_more(play: MakePlay) -> None:
    one = play()
    one.step(3)
    one.vehicles()
    for _ in range(SETTLED_S):
        outcome = one.step()
        assert one.drawn_w() + BASE_W <= SITE_VA + 1
        assert one.told_w() + BASE_W <= SITE_VA + 1
    assert one.drawn_w() + BASE_W > 0.95 * SITE_VA
    assert not outcome.faults
    assert not outcome.fallback
    assert one.controller.stays_over == ()


@pytest.mark.parametrize("names", [None, ["fast-1/1", "fast-1/2"]])
def test_no_raise_exceeds_the_sites_kva_whatever_the_chargers_power_factor(
    play: MakePlay, names: list[str] | None
) -> None:
    one = play(limit_va=SITE_VA if names is None else 100_000.0)
    one.power_factor, one.base_a = 0.95, (2.0,) * 3
    one.step(3)
    one.vehicles(names)
    limit_va = one.controller.policy.limit_va
    for _ in range(4 * SETTLED_S):
        one.step()
        flows_va = abs(sum(one.flows_a())) * 400 / math.sqrt(3)
        assert flows_va <= limit_va + 1
    assert flows_va > 0.9 * limit_va


def test_no_line_carries_more_than_its_rating_whatever_the_power_factor_of_those_told_w(site: Site) -> None:
    fast = replace(site.depot.circuits["fast"], rating_a=(150.0,) * 3)
    depot = replace(site.depot, circuits={**site.depot.circuits, "fast": fast})
    one = Play(new_controller(site_of(depot, site.gateway, shed_s=2.0)), base_a=(2.0,) * 3, power_factor=0.95)
    one.step(3)
    one.vehicles(["fast-1/1", "fast-1/2"])
    for _ in range(4 * SETTLED_S):
        one.step()
        flows_a = sum(one.drawn_a(evse) for evse in one.site.evses) / one.power_factor
        assert flows_a <= 150.0 + 0.01
    assert flows_a > 0.97 * 150.0


def test_what_a_generator_gives_is_not_given_to_vehicles(sunny: Play) -> None:
    one = sunny
    for _ in range(2 * SETTLED_S):
        one.step()
        assert one.told_w() + 3 * BASE_W <= SITE_VA + 1
    # What a rectifier loses is not known, and counts as base load.
    assert all(60.0 <= amperes < 70.0 for amperes in one.controller.base["main"].high_a)
    assert one.told_w() + 3 * BASE_W > 0.9 * SITE_VA
    one.sun_a = (0.0,) * 3
    before = one.told_w()
    one.step(SETTLED_S)
    assert one.told_w() == pytest.approx(before)


def test_the_declared_worst_is_drawn_while_nobody_knows_what_is_generated(sunny: Play) -> None:
    one = sunny
    one.step(SETTLED_S)
    assert one.controller.informed()
    assert one.controller.base["main"].measured
    one.silent.add("sun")
    one.step(8)
    assert not one.controller.base["main"].measured


@pytest.mark.parametrize(("rating_a", "measured"), [(20.0, True), (500.0, False)])
def test_a_generator_on_its_own_circuit_counts_at_its_rating_while_its_meter_sleeps(
    sunny: Play, rating_a: float, measured: bool
) -> None:
    """The lesser of that and the declared worst case."""
    depot = sunny.site.depot
    roof = replace(depot.circuits["main"], name="roof", parent="main", rating_a=(rating_a,) * 3, base_load_a=(0.0,) * 3)
    sun = replace(depot.meters["sun"], circuit="roof")
    depot = replace(depot, circuits={**depot.circuits, "roof": roof}, meters={**depot.meters, "sun": sun})
    one = Play(new_controller(site_of(depot, sunny.site.gateway, shed_s=2.0)), base_a=(5.0,) * 3)
    one.step(3)
    one.vehicles()
    one.step(SETTLED_S)
    one.silent.add("sun")
    one.step(SETTLED_S)
    base = one.controller.base["main"]
    assert base.measured is measured
    assert "sun" in base.source
    assert min(base.high_a) >= 5.0
    if measured:
        assert max(base.high_a) < 50.0
    assert one.told_w() + 3 * 5 * 400 / math.sqrt(3) <= SITE_VA + 1


def test_no_vehicle_is_offered_more_than_its_own_limit(charging: Play) -> None:
    one = charging
    one.controller.policy = replace(one.controller.policy, limit_va=1e6)
    one.step(SETTLED_S)
    assert all(one.limit_a[evse.name] <= evse.limit_a for evse in one.site.evses)
    fast = [one.limit_a[f"fast-1/{connector}"] for connector in (1, 2)]
    assert fast == [pytest.approx(110.0, abs=0.5)] * 2


def test_a_charger_with_a_good_rectifier_is_not_taken_for_one_that_overdraws(play: MakePlay) -> None:
    one = play()
    one.step(3)
    one.vehicles(["fast-1/1", "fast-1/2"])
    for _ in range(2 * SETTLED_S):
        assert not one.step().faults
    assert one.drawn_w() > 0.9 * 2 * 110 * 400 * math.sqrt(3) * 0.9


def test_an_ask_is_obeyed_with_the_writes_of_one_cycle(charging: Play) -> None:
    one = charging
    one.controller.put(ask(SITE_VA / 2))
    one.step()
    assert one.told_w() + BASE_W <= SITE_VA / 2 + 1
    assert one.drawn_w() + BASE_W <= SITE_VA / 2 + 1
    for _ in range(SETTLED_S):
        one.step()
        assert one.drawn_w() + BASE_W <= SITE_VA / 2 + 1
    assert one.drawn_w() + BASE_W > 0.9 * SITE_VA / 2
    assert one.controller.forget("less")
    assert not one.controller.forget("less")
    one.step(2 * SETTLED_S)
    assert one.drawn_w() + BASE_W > 0.9 * SITE_VA


def test_an_ask_lowers_ahead_of_the_cycle_what_the_cycle_would_lower(charging: Play) -> None:
    one = charging
    one.read()
    one.controller.put(ask(SITE_VA / 2))
    decreases = one.controller.shed(one.now_s + 0.3)
    told_a = {write.evse: write.amount.active_a for write in decreases}
    assert all(amperes < one.limit_a[name] for name, amperes in told_a.items())
    assert one.told_w() + BASE_W <= SITE_VA / 2 + 1
    entries = one.controller.state.ledger.entries
    assert {name: entries[name].told_amount.active_a for name in told_a} == told_a  # type: ignore[union-attr]
    for write in decreases:
        one.limit_a[write.evse] = write.amount.active_a
        one.controller.proved(write.evse, write.id, taken(write.evse), one.now_s + 0.4)
    assert one.controller.shed(one.now_s + 0.5) == ()
    assert [write for write in one.cycle().writes if write.evse in told_a and write.purpose is Purpose.LOWER] == []
    one.step(SETTLED_S)
    assert one.drawn_w() + BASE_W <= SITE_VA / 2 + 1


def test_nothing_is_lowered_ahead_of_the_first_cycle_or_without_an_ask(charging: Play, play: MakePlay) -> None:
    one = play()
    one.controller.put(ask(0.0))
    one.read()
    assert one.controller.shed(one.now_s + 0.3) == ()
    assert charging.controller.shed(charging.now_s) == ()


def test_those_that_were_raised_lately_are_lowered_with_the_others(charging: Play) -> None:
    one = charging
    one.controller.put(ask(SITE_VA / 2))
    one.step(SETTLED_S)
    one.controller.forget("less")
    one.step(SETTLED_S)
    before = dict(one.limit_a)
    one.controller.put(ask(SITE_VA / 2))
    one.step()
    # The 22 kW chargers are alike; each has less than before.
    alike = [name for name in before if not name.startswith("fast")]
    assert max(one.limit_a[name] for name in alike) < max(before[name] for name in alike)


def taken(evse: str) -> Proof:
    return Proof(evse=evse, kind=ProofKind.ACKNOWLEDGED, asked=0.0, in_force=0.0)


def test_an_acknowledgement_is_not_believed_of_one_that_showed_more_than_it_acknowledged(charging: Play) -> None:
    one = charging
    name = "charger-001"
    full_a = one.limit_a[name]
    entries = one.controller.state.ledger.entries

    def writes_that_are_acknowledged_and_not_taken(seconds: int) -> bool:
        for _ in range(seconds):
            one.step()
            one.limit_a[name] = full_a
        return one.controller.state.ledger.entries[name].unproven_s is None

    assert entries[name].unproven_s is None
    one.controller.put(ask(one.controller.watts_per_a(name) * 6.0, target=name))
    assert not writes_that_are_acknowledged_and_not_taken(12)
    assert one.controller.outcome is not None
    assert "cannot be relied on" in one.controller.outcome.why[name].words
    for _ in range(6):
        one.step()  # now it takes what it is told
    assert one.controller.state.ledger.entries[name].unproven_s is None
    assert one.limit_a[name] == pytest.approx(6.0)


@pytest.mark.parametrize(("seconds", "meter", "chargers"), [(5, False, True), (20, True, True), (8, True, False)])
def test_after_a_link_was_lost_vehicles_charge_again_as_soon_as_what_was_counted_is_free(
    charging: Play, seconds: int, meter: bool, chargers: bool
) -> None:
    one = charging
    before_w = one.drawn_w()
    found = {name for name, device in one.site.devices.items() if device.evses} if chargers else set()
    one.silent = found | ({"grid"} if meter else set())
    one.step(seconds)
    one.silent = set()
    assert one.told_w() < 0.95 * before_w
    for _ in range(20):
        one.step()
        assert one.drawn_w() + BASE_W <= SITE_VA + 1
        assert one.told_w() + BASE_W <= SITE_VA + 1
    assert one.drawn_w() > 0.97 * before_w


def test_a_link_that_comes_and_goes_has_no_other_vehicle_start_again_and_again(charging: Play) -> None:
    one = charging
    began_s = one.now_s
    for second in range(290):
        # While it is lost its rating counts, so that the others go to nothing.
        one.silent = {"fast-1"} if second % 26 < 6 else set()
        one.step()
        assert one.drawn_w() + BASE_W <= SITE_VA + 1
    by_evse: dict[str, list[tuple[float, float]]] = {}
    for at_s, name, amperes in one.writes:
        if at_s >= began_s and not name.startswith("fast-1"):
            by_evse.setdefault(name, []).append((at_s, amperes))
    started = 0
    for name, writes in by_evse.items():
        starts = [now_s for (_, was_a), (now_s, is_a) in pairwise(writes) if was_a == 0 < is_a]
        started += len(starts)
        assert len(starts) <= 1, (name, starts)
    assert started >= len(by_evse)


def test_an_ask_holds_from_its_start_to_its_end(charging: Play) -> None:
    one = charging
    start_s, end_s = one.now_s + 10, one.now_s + 40
    one.controller.put(ask(50_000.0, start_s=start_s, end_s=end_s))
    one.step(8)
    assert one.drawn_w() > 100_000
    one.step(5)
    assert one.drawn_w() + BASE_W <= 50_001
    one.step(80)
    assert one.drawn_w() > 100_000
    assert one.controller.asks == {}


@pytest.mark.parametrize(
    ("target", "beneath"), [("yard", "charger-00"), ("front", "charger-02"), ("fast-1/1", "fast-1/1")]
)
def test_an_ask_on_a_part_of_the_depot_lowers_that_part(charging: Play, target: str, beneath: str) -> None:
    one = charging
    one.controller.policy = replace(one.controller.policy, limit_va=1e6)
    one.step(SETTLED_S)
    before = dict(one.limit_a)
    one.controller.put(ask(20_000.0, target=target))
    one.step()

    def watts(limits_a: dict[str, float], *, inside: bool) -> float:
        return sum(
            amperes * one.controller.watts_per_a(name)
            for name, amperes in limits_a.items()
            if name.startswith(beneath) is inside
        )

    assert watts(one.limit_a, inside=True) <= 20_001
    assert watts(before, inside=True) > 20_001
    assert watts(one.limit_a, inside=False) >= watts(before, inside=False) - 1


def test_an_ask_on_something_that_is_no_more_does_no_harm(charging: Play) -> None:
    one = charging
    one.controller.put(ask(1.0, target="charger-gone"))
    before = one.told_w()
    one.step(5)
    assert one.told_w() >= before - 2000


def heir_of(one: Play, play: MakePlay, *, away_s: float = 3, remembers: bool = True, **policy: object) -> Play:
    """Return what goes on from what a process left on disk, as soon as it is informed."""
    controller = one.controller
    at_s = one.now_s + away_s
    stored = json.loads(json.dumps(book.to_json(controller.state.ledger, BOOT, one.now_s), allow_nan=False))
    heir = play(book.from_json(stored, one.site.stations.values(), BOOT, at_s), **policy)
    for kept in controller.asks.values():
        heir.controller.put(kept)
    unix_s = 1_800_000_000.0
    for name, session in controller.sessions.items():
        left = {"started_unix_s": unix_s, "departure_unix_s": None, "delivered_wh": session.delivered_wh}
        heir.controller.recall(name, {**left, "energy_need_wh": None, "vehicle": None}, at_s, unix_s)
    if remembers:
        document = json.loads(json.dumps(handover.to_json(controller.memory()), allow_nan=False))
        known = {name: controller.watts_per_a(name) for name in one.site.stations}
        heir.controller.remember(handover.from_json(document, known))
    heir.now_s, heir.limit_a, heir.most_a = at_s, dict(one.limit_a), dict(one.most_a)
    while not heir.controller.informed():
        heir.read()
        heir.now_s += 1
    return heir


def lowered(heir: Play, one: Play) -> list[tuple[float, str, float]]:
    """Return the writes that took from an EVSE what the predecessor, had it gone on, would have left it."""
    left_a = dict(one.limit_a)
    while one.now_s < heir.now_s:
        one.step()
        left_a = {name: min(left_a[name], amperes) for name, amperes in one.limit_a.items()}
    return [write for write in heir.writes if write[2] < left_a[write[1]] - 0.05]


def test_a_new_process_keeps_what_its_predecessor_told(charging: Play, play: MakePlay) -> None:
    one = charging
    one.step(60)
    heir = heir_of(one, play)
    for name, amperes in one.limit_a.items():
        told = heir.controller.state.ledger.entries[name].told_amount
        assert told is not None
        assert told.active_a == pytest.approx(amperes)
    heir.step(SETTLED_S)
    assert lowered(heir, one) == []
    assert heir.drawn_w() == pytest.approx(one.drawn_w(), rel=0.005)


def test_a_new_process_leaves_who_was_raised_and_who_waits_as_they_are(play: MakePlay) -> None:
    """Who came later waits while who was raised just now keeps it: that is no less so for a successor."""
    one = play()
    one.step(3)
    first = [evse.name for evse in one.site.evses if evse.name.startswith("charger")][::2]
    one.vehicles(first)
    one.controller.put(ask(30_000.0))
    one.step(SETTLED_S)
    one.vehicles()
    one.step(5)
    heir, forgetful = heir_of(one, play), heir_of(one, play, remembers=False)
    for goes_on in (heir, forgetful):
        goes_on.step(SETTLED_S)
    assert lowered(heir, one) == []
    assert lowered(forgetful, one) != []


def test_a_new_process_knows_what_vehicles_take(play: MakePlay) -> None:
    """What the slow ones leave, the others have, and keep."""
    one = play()
    one.step(3)
    one.vehicles()
    slow = [evse.name for evse in one.site.evses if evse.name.startswith("charger")][::3]
    one.most_a |= dict.fromkeys(slow, 7.0)
    one.step(SETTLED_S)
    one.controller.put(ask(80_000.0))  # which lets shares move anew
    one.step(SETTLED_S)
    assert all(one.limit_a[name] <= 8.5 for name in slow)
    heir, forgetful = heir_of(one, play), heir_of(one, play, remembers=False)
    assert all(heir.controller.rated_w(name) < 9 * heir.controller.watts_per_a(name) for name in slow)
    for goes_on in (heir, forgetful):
        goes_on.step(SETTLED_S)
    assert lowered(heir, one) == []
    assert lowered(forgetful, one) != []


def test_a_new_process_knows_what_the_demand_interval_has_had(charging: Play, play: MakePlay) -> None:
    one = charging
    cap = demand.Cap(cap_w=100_000.0, window_s=120.0)
    one.controller.policy = replace(one.controller.policy, demand_cap=cap)
    one.step(130)
    one.controller.put(ask(90_000.0))  # which lets shares move anew
    one.step(SETTLED_S)
    before_w = one.drawn_w()
    assert before_w > 30_000
    heir = heir_of(one, play, demand_cap=cap)
    heir.step(SETTLED_S)
    assert heir.drawn_w() >= 0.95 * before_w
    # Without, all that it does not know of counts for the most that the site may draw.
    forgetful = heir_of(one, play, remembers=False, demand_cap=cap)
    forgetful.step(SETTLED_S)
    assert forgetful.drawn_w() < 0.5 * before_w


def test_without_a_ledger_nobody_is_trusted_with_less_than_its_rating(play: MakePlay) -> None:
    one = play()
    one.silent = {"fast-1"}
    one.step(2)
    outcome = one.step()
    assert "main" in {excess.circuit for excess in outcome.admission.over}
    assert one.told_w() == 0


def test_a_silent_charger_counts_at_its_rating_and_the_others_leave_it_that_room(charging: Play) -> None:
    one = charging
    one.silent = {"fast-1"}
    one.step(30)
    outcome = one.step()
    assert set(outcome.fallback) == {"fast-1/1", "fast-1/2"}
    rated_w = 2 * 110 * 400 * math.sqrt(3)
    others_w = one.told_w() - sum(
        one.limit_a[name] * one.controller.watts_per_a(name) for name in ("fast-1/1", "fast-1/2")
    )
    assert others_w + BASE_W <= max(SITE_VA - rated_w, 0.0) + BASE_W
    before_w = one.told_w()
    one.silent = set()
    outcome = one.step(SETTLED_S)
    assert not outcome.fallback
    assert one.told_w() > before_w


def test_one_that_a_shed_did_not_reach_is_raised_with_the_others_once_the_shed_is_over(charging: Play) -> None:
    """It did not follow what it never got; that is no reason to hold it when it has followed what it did get."""
    one = charging
    one.deaf = {"charger-003", "charger-004"}
    before_a = {name: one.limit_a[name] for name in one.deaf}
    one.controller.put(ask(30_000.0))
    outcome = one.step(20)
    assert [words.split(":")[0] for words in outcome.faults] == ["charger-003", "charger-004"]
    one.deaf = set()
    one.step(3)
    assert all(one.limit_a[name] < amperes - 1 for name, amperes in before_a.items())
    one.controller.forget("less")
    outcome = one.step(15)
    assert outcome.faults == ()
    assert all(one.limit_a[name] > amperes - 1 for name, amperes in before_a.items())


def test_a_vehicle_that_follows_late_what_came_late_is_not_taken_for_one_that_takes_less(play: MakePlay) -> None:
    """A write may take 2 s to arrive, and a slow vehicle 12 s from then: none of that is what the vehicle takes."""
    one, name = play(), "charger-003"
    one.step(3)
    one.vehicles([name])
    one.controller.put(ask(5_000.0, target=name))
    one.step(20)
    low_a = one.most_a[name] = one.limit_a[name]
    assert 6 <= low_a < 8
    arrives_at_once = one.take_write
    late: list[tuple[float, Write]] = []

    def arrives_late(write: Write, at_s: float) -> None:
        if write.evse == name and write.purpose is Purpose.RAISE and not late:
            late.append((at_s + 2.0, write))
        else:
            arrives_at_once(write, at_s)

    one.take_write = arrives_late  # type: ignore[method-assign]
    one.controller.forget("less")
    one.step()
    ((arrived_s, raised),) = late
    one.step(2)
    arrives_at_once(raised, arrived_s)
    limits_a = []
    while one.now_s < arrived_s + 40:
        if one.now_s >= arrived_s + 12:
            one.most_a[name] = 16.0
        one.step()
        limits_a.append(one.limit_a[name])
    assert limits_a[0] > low_a + 2
    assert min(limits_a) >= limits_a[0] - 0.5


def test_a_shed_that_is_over_before_the_next_cycle_is_not_taken_for_what_a_vehicle_takes(play: MakePlay) -> None:
    """A reading from within it, which comes when as much is offered again, shows less than that."""
    one, name = play(), "charger-003"
    one.step(3)
    one.vehicles([name])
    one.step(40)
    before_a, before_w = one.limit_a[name], one.controller.sessions[name].power_w
    one.controller.put(ask(5_000.0, target=name))
    for write in one.controller.shed(one.now_s):
        one.take_write(write, one.now_s)
    assert one.limit_a[name] < before_a - 5
    within_s, within = one.now_s, one.shown(name)
    one.controller.forget("less")
    one.cycle()
    assert one.limit_a[name] == before_a
    one.take(name, within, within_s)
    assert one.controller.sessions[name].power_w == before_w


def test_the_default_limit_holds_once_the_grids_link_is_lost(charging: Play) -> None:
    one = charging
    one.controller.policy = replace(one.controller.policy, default_limit_w=40_000.0)
    assert not one.controller.link_lost(one.now_s)
    one.controller.link_until_s = one.now_s + 5
    one.step(4)
    assert one.drawn_w() > 100_000
    one.step(4)
    assert one.controller.link_lost(one.now_s)
    assert one.drawn_w() + BASE_W <= 40_001
    assert one.controller.site_bound(one.controller.outcome)[1].startswith("default limit")  # type: ignore[arg-type]
    # An event of the grid that is in force stands in its place until it ends.
    one.controller.put(ask(60_000.0, rank=Rank.GRID, end_s=one.now_s + 60))
    assert not one.controller.link_lost(one.now_s)
    one.step(50)
    assert 40_001 < one.drawn_w() + BASE_W <= 60_001
    one.step(15)
    assert one.drawn_w() + BASE_W <= 40_001


def test_what_cannot_be_lowered_is_said(charging: Play) -> None:
    one = charging
    can = one.controller.honour(ask(50_000.0), one.now_s)
    assert can.can
    assert can.reachable_w == pytest.approx(BASE_W, rel=0.25)
    assert "base load" in can.why
    assert not one.controller.honour(ask(5_000.0), one.now_s).can
    one.silent = {"fast-1"}
    one.step(30)
    cannot = one.controller.honour(ask(50_000.0), one.now_s)
    assert not cannot.can
    assert cannot.why.startswith("2 EVSEs take no orders")
    assert cannot.reachable_w >= 2 * 110 * 400 * math.sqrt(3)
    assert one.controller.honour(ask(1_000.0, target="yard"), one.now_s).can
    assert one.controller.honour(ask(1_000.0, target="charger-001"), one.now_s).can
    assert not one.controller.honour(ask(1_000.0, target="fast-1/2"), one.now_s).can
    assert not one.controller.honour(ask(1_000.0, target="fast"), one.now_s).can


def test_what_was_told_of_a_session_lasts_until_the_vehicle_leaves(charging: Play) -> None:
    one = charging
    controller = one.controller
    controller.tell("charger-003", Told(departure_at_s=one.now_s + 3600, vehicle="van-03"))
    controller.tell("charger-003", Told(energy_need_wh=20_000.0))
    one.step(5)
    session = controller.sessions["charger-003"]
    assert session.vehicle == "van-03"
    assert session.departure_at_s == pytest.approx(one.now_s + 3595)
    assert session.energy_need_wh == 20_000.0
    assert session.delivered_wh > 0
    with pytest.raises(KeyError):
        controller.tell("charger-999", Told(vehicle="x"))
    del one.most_a["charger-003"]
    one.step(2)
    assert "charger-003" not in controller.sessions
    one.vehicles()
    one.step(2)
    assert controller.sessions["charger-003"].energy_need_wh is None
    assert controller.sessions["charger-003"].delivered_wh < 100


def test_of_what_is_told_and_what_the_device_shows_of_the_charge_the_newest_counts(charging: Play) -> None:
    one = charging
    controller, name = one.controller, "fast-1/1"

    def shows(percent: float, at_s: float) -> None:
        one.take("fast-1", {**one.shown("fast-1"), "soc/1": percent}, at_s)

    def charge() -> tuple[float | None, float | None]:
        session = controller.sessions[name]
        return session.soc_percent, session.soc_read_at_s

    shows(50.0, one.now_s + 1)
    assert charge() == (50.0, one.now_s + 1)
    controller.tell(name, Told(soc_percent=54.0, soc_read_at_s=one.now_s + 3))
    assert charge() == (54.0, one.now_s + 3)
    shows(51.0, one.now_s + 2)
    assert charge() == (54.0, one.now_s + 3)
    shows(52.0, one.now_s + 4)
    assert charge() == (52.0, one.now_s + 4)
    controller.tell(name, Told(vehicle="van-03"))
    assert charge() == (52.0, one.now_s + 4)


def test_a_charge_of_nothing_that_a_device_shows_leaves_what_was_told(charging: Play) -> None:
    one = charging
    controller, name = one.controller, "fast-1/1"
    told_at_s = one.now_s
    controller.tell(name, Told(soc_percent=54.0, soc_read_at_s=told_at_s))
    one.take("fast-1", {**one.shown("fast-1"), "soc/1": 0.0}, one.now_s + 1)
    session = controller.sessions[name]
    assert (session.soc_percent, session.soc_read_at_s) == (54.0, told_at_s)
    one.take("fast-1", {**one.shown("fast-1"), "soc/1": 1.0}, one.now_s + 2)
    assert controller.sessions[name].soc_percent == 1.0


def test_a_new_process_takes_up_the_sessions_that_still_are(play: MakePlay) -> None:
    one = play()
    unix_s = 1_800_000_000.0
    stored = {
        "started_unix_s": unix_s - 600,
        "departure_unix_s": unix_s + 1200,
        "energy_need_wh": 9000.0,
        "delivered_wh": 4000.0,
        "vehicle": "van-01",
    }
    for name in ("charger-001", "charger-002"):
        one.controller.recall(name, stored, one.now_s, unix_s)
    session = one.controller.sessions["charger-001"]
    assert session.started_at_s == one.now_s - 600
    assert session.departure_at_s == one.now_s + 1200
    one.vehicles(["charger-001"])
    one.step(3)
    assert one.controller.sessions["charger-001"].energy_need_wh == 9000.0
    assert one.controller.sessions["charger-001"].vehicle == "van-01"
    assert one.controller.sessions["charger-001"].delivered_wh >= 4000.0
    assert "charger-002" not in one.controller.sessions
    for broken in ({}, {**stored, "delivered_wh": "much"}, {**stored, "delivered_wh": None}):
        with pytest.raises((KeyError, TypeError, ValueError)):
            one.controller.recall("charger-003", broken, one.now_s, unix_s)


def test_a_rise_of_the_base_load_takes_power_from_the_vehicles_at_once(charging: Play) -> None:
    one = charging
    one.step(40)
    one.base_a = (80.0, 80.0, 80.0)
    one.step(2)
    assert one.told_w() + 3 * 80 * 400 / math.sqrt(3) <= SITE_VA + 1
    assert one.drawn_w() + 3 * 80 * 400 / math.sqrt(3) <= SITE_VA + 1


def test_without_its_meter_the_declared_base_load_counts(charging: Play) -> None:
    one = charging
    one.silent = {"grid"}
    one.step(10)
    assert one.controller.base["main"].high_w == pytest.approx((60 + 55 + 55) * 400 / math.sqrt(3), rel=0.2)
    assert one.told_w() + (60 + 55 + 55) * 400 / math.sqrt(3) <= SITE_VA + 1


def test_what_a_meter_that_lacks_a_line_counts_and_its_frequency_are_known_all_the_same(charging: Play) -> None:
    one = charging
    controller = one.controller
    controller.policy = replace(controller.policy, demand_cap=demand.Cap(cap_w=50_000.0))
    at_s = one.now_s + METER_AT_S
    values: dict[str, Value] = {"current_l2": 5.0, "current_l3": 5.0, "frequency": 49.7, "energy": 2e6}
    one.take("grid", values, at_s)
    sample = controller.meter("main", at_s)
    assert sample is not None
    assert (sample.frequency_hz, sample.current_a) == (49.7, None)
    assert [each.import_wh for each in controller.memory().samples.kept] == [2e6]
    one.silent.add("grid")
    one.step(8)
    assert not controller.base["main"].measured


def test_readings_are_urgent_where_something_happened(charging: Play) -> None:
    one = charging
    one.urgent.clear()
    one.step()
    assert not one.urgent
    del one.most_a["charger-001"]
    one.step()
    assert one.urgent == ["charger-001"]


@pytest.mark.parametrize(
    ("course_hz", "wakes"),
    [
        ((50.0, 50.03, 49.97, 50.0), (False, False, False, False)),  # noise within the deadband of 36 mHz
        ((49.9, 49.9, 49.895, 49.8), (True, False, False, True)),  # it leaves, and moves on
        ((50.1, 50.02, 50.0), (True, True, False)),  # it comes back
        ((47.0, 47.0), (True, False)),
    ],
)
def test_an_excursion_of_the_frequency_is_urgent_and_noise_is_not(
    charging: Play, course_hz: tuple[float, ...], wakes: tuple[bool, ...]
) -> None:
    one = charging
    one.controller.policy = replace(one.controller.policy, droop=droop.Settings(nominal_hz=50.0))
    one.step()
    seen = []
    for frequency_hz in course_hz:
        one.urgent.clear()
        one.frequency_hz = frequency_hz
        one.step()
        seen.append("grid" in one.urgent)
    assert tuple(seen) == wakes


def test_without_droop_only_what_is_beyond_ride_through_is_urgent(charging: Play) -> None:
    one = charging
    for frequency_hz, wakes in ((49.5, False), (48.7, True), (48.6, False), (49.5, True)):
        one.urgent.clear()
        one.frequency_hz = frequency_hz
        one.step()
        assert ("grid" in one.urgent) is wakes


CAP_W = 60_000.0
QUARTER_S = 150
"""Stands for 15 minutes."""


def aligned(play: MakePlay, unix_s: float) -> Play:
    """Return a depot with a vehicle at each EVSE and a cap on the quarters of the wall's clock, which says `unix_s`."""
    one = play(demand_cap=demand.Cap(cap_w=CAP_W, windows=demand.Windows.ALIGNED, window_s=QUARTER_S))
    one.wall_ahead_s = unix_s - one.now_s
    return one


def capped_w(one: Play) -> float:
    """Return what all limits of the site leave its EVSEs now."""
    assert one.controller.outcome is not None
    return one.controller.outcome.bounds["site", LimitQuantity.ACTIVE_POWER, None].high


def test_a_cap_on_the_clocks_quarters_lets_an_interval_use_what_it_has_not_and_keeps_each_below(play: MakePlay) -> None:
    one = aligned(play, 1_800_000_000.0)  # a quarter begins
    one.step(QUARTER_S - 60)
    one.vehicles()
    one.step(50)
    # Little was used before: more than the cap flows now, which intervals that slide would not let.
    assert one.drawn_w() + BASE_W > 1.5 * CAP_W
    one.step(10)
    assert sum(one.imported_w[:QUARTER_S]) / QUARTER_S <= CAP_W
    one.step(QUARTER_S)
    assert 0.75 * CAP_W < sum(one.imported_w[QUARTER_S : 2 * QUARTER_S]) / QUARTER_S <= CAP_W * 1.001


@pytest.mark.parametrize("step_s", [-3600.0 * 24 * 365, -70.0, 20.0, 3600.0 * 24 * 365 * 30])
def test_a_step_of_the_walls_clock_leaves_no_more_than_intervals_that_slide(play: MakePlay, step_s: float) -> None:
    one = aligned(play, 1_800_000_000.0)
    one.step(QUARTER_S - 60)
    one.vehicles()
    one.step(30)
    sliding = one.twin()
    sliding.controller.policy = replace(
        sliding.controller.policy,
        demand_cap=demand.Cap(cap_w=CAP_W, windows=demand.Windows.SLIDING, window_s=QUARTER_S),
    )
    assert one.wall_ahead_s is not None
    one.wall_ahead_s += step_s
    for other in (one, sliding):
        other.step()
    assert capped_w(one) <= capped_w(sliding)
    began = len(one.imported_w)
    one.step(QUARTER_S + 20)
    # Every stretch that ends within an interval's length of the step is below the cap, whichever clock the meter has.
    stretches = [
        sum(one.imported_w[end - QUARTER_S : end]) / QUARTER_S for end in range(began + 60, len(one.imported_w) - 20)
    ]
    assert max(stretches) <= CAP_W * 1.001


def test_a_walls_clock_that_is_slewed_is_not_stepped() -> None:
    known = demand.looked(None, 1000.0, 5.0)
    assert demand.looked(known, 1000.4, 6.0) == known
    assert demand.looked(known, 998.0, 7.0) == demand.Wall(998.0, 7.0)


def test_without_a_walls_clock_and_after_a_reload_quarters_slide(play: MakePlay) -> None:
    one = aligned(play, 0.0)
    one.wall_ahead_s = None
    one.step(5)
    assert capped_w(one) <= CAP_W
    one = aligned(play, 1_800_000_000.0)
    cap, policy = one.controller.policy.demand_cap, one.controller.policy
    one.controller.policy = replace(policy, demand_cap=None)
    one.step(5)
    one.controller.policy = replace(policy, demand_cap=cap)
    one.step(5)
    assert capped_w(one) <= CAP_W


def test_a_new_process_knows_that_the_walls_clock_was_stepped(play: MakePlay) -> None:
    one = aligned(play, 1_800_000_000.0)
    one.step(3)
    assert one.wall_ahead_s is not None
    one.wall_ahead_s += 100.0
    one.step(3)
    stored = json.loads(json.dumps(handover.to_json(one.controller.memory()), allow_nan=False))
    memory = handover.from_json(stored, {})
    assert memory.wall == demand.Wall(one.wall_ahead_s, one.now_s - 3 + 0.6)
    heir = play()
    heir.controller.remember(memory)
    assert heir.controller.memory().wall == memory.wall


BOARD = "charger-003"


def cooled_w(one: Play, name: str = BOARD) -> float:
    bound = one.controller.cooled(name)
    return math.inf if bound is None else bound.high


def test_a_sensor_that_falls_silent_keeps_its_derating(charging: Play) -> None:
    one = charging
    one.boards_c[BOARD] = 68.5
    one.step(3)
    derated_w = cooled_w(one)
    assert derated_w < 0.8 * one.controller.rated_w(BOARD)
    del one.boards_c[BOARD]
    for _ in range(60):
        one.step()
        assert cooled_w(one) <= derated_w
        assert one.drawn_a(one.site.evses[one.site.network.place[BOARD]]) * one.controller.watts_per_a(BOARD) <= (
            derated_w + 1
        )


def test_the_next_vehicle_at_a_hot_charger_is_derated_as_the_one_before(charging: Play) -> None:
    one = charging
    controller = one.controller
    one.boards_c[BOARD] = 68.5
    controller.tell(BOARD, Told(battery=thermal.Temperature(44.8, one.now_s)))
    one.step(3)
    both_w = cooled_w(one)
    del one.boards_c[BOARD]
    most_a = one.most_a.pop(BOARD)
    one.step(3)
    charger_w = cooled_w(one)
    assert both_w < charger_w < 0.8 * controller.rated_w(BOARD)  # the battery has left, the board is there
    one.most_a[BOARD] = most_a
    one.step(10)
    assert cooled_w(one) == charger_w
    one.boards_c[BOARD] = 30.0
    one.step(2)
    assert cooled_w(one) == math.inf


def test_what_was_never_heard_of_derates_nothing(charging: Play) -> None:
    charging.step(3)
    assert cooled_w(charging) == math.inf


def test_a_new_process_keeps_the_derating_of_a_silent_sensor(charging: Play, play: MakePlay) -> None:
    one = charging
    one.boards_c[BOARD] = 68.5
    one.step(3)
    derated_w = cooled_w(one)
    del one.boards_c[BOARD]
    heir = heir_of(one, play)
    heir.step(10)
    assert cooled_w(heir) == pytest.approx(derated_w)


@pytest.mark.parametrize("off_s", [-0.01, 0.0, 0.01])
def test_a_frozen_pilot_is_reported_within_fifteen_seconds_of_the_setpoint(charging: Play, off_s: float) -> None:
    one = charging
    one.frozen_a[BOARD] = one.limit_a[BOARD]
    one.controller.put(ask(6.0 * one.controller.watts_per_a(BOARD), target=BOARD))
    began = len(one.writes)
    second = 0
    while not one.step().faults:
        second += 1
        one.now_s += off_s * (-1) ** second
    issued_s = next(at_s for at_s, name, _ in one.writes[began:] if name == BOARD)
    assert 12.0 < one.now_s - 1 + 0.6 - issued_s <= 15.0


def airy(site: Site, celsius: float, seconds: int, *, tau_s: float, rise_k: float, air_c: float, **policy: Any) -> Play:
    """Return the depot after a board that is a first-order plant was watched for a while, and the air around it."""
    profile = site.profiles[BOARD]
    air = replace(profile.points["temperature"], name="ambient_temperature", address=4000)
    shows_air = replace(
        profile,
        points={**profile.points, "ambient_temperature": air},
        poll=(*profile.poll, "ambient_temperature"),
    )
    one = Play(new_controller(replace(site, profiles={**site.profiles, BOARD: shows_air}), **policy))
    one.air_c[BOARD] = air_c
    one.vehicles([BOARD])
    evse = one.site.evses[one.site.network.place[BOARD]]
    for second in range(seconds):
        if second % 600 == 300:  # it cools as well as it heats
            one.most_a.clear()
        elif second % 600 == 0:
            one.vehicles([BOARD])
        share = one.drawn_a(evse) / evse.limit_a
        celsius += (air_c - celsius) / tau_s + rise_k * share**2 / tau_s
        one.boards_c[BOARD] = round(celsius, 1)
        one.step()
    return one


def test_how_a_charger_heats_is_learnt_where_the_air_is_measured(site: Site) -> None:
    one = airy(site, 20.0, 1800, tau_s=600.0, rise_k=20.0, air_c=20.0)
    learnt = one.controller.memory().heat[f"{BOARD} charger"]
    fresh = thermal.fresh(thermal.DEFAULTS[thermal.SensorKind.CHARGER])
    assert learnt.estimate != fresh.estimate
    assert 1 / learnt.estimate.a == pytest.approx(600.0, rel=0.25)
    assert learnt.estimate.b / learnt.estimate.a == pytest.approx(20.0, rel=0.25)
    # It stays with the device: the next vehicle does not begin anew.
    one.most_a.clear()
    one.step(2)
    assert one.controller.memory().heat[f"{BOARD} charger"].estimate.a == pytest.approx(learnt.estimate.a, rel=0.02)


def test_whatever_was_learnt_nothing_flows_at_the_cut_off_and_less_the_hotter_it_is(site: Site) -> None:
    cool = airy(site, 20.0, 900, tau_s=600.0, rise_k=6.0, air_c=20.0)
    cool.vehicles([BOARD])
    left_w = []
    for tenths in range(600, 710, 5):
        cool.boards_c[BOARD] = tenths / 10
        cool.step()
        left_w.append(min(cooled_w(cool), cool.controller.rated_w(BOARD)))
    assert left_w == sorted(left_w, reverse=True)
    assert left_w[-2:] == [0.0, 0.0]
    assert left_w[0] > 0.0


def test_how_a_battery_heats_is_learnt_of_its_own_session_where_the_air_is_told(charging: Play) -> None:
    one, name = charging, f"{BOARD} battery"
    for second in range(0, 400, 20):
        told = thermal.Temperature(20.0 + second / 60, one.now_s)
        one.controller.tell(BOARD, Told(battery=told, air=thermal.Temperature(18.0, one.now_s)))
        one.step(20)
    fresh = thermal.fresh(thermal.DEFAULTS[thermal.SensorKind.BATTERY])
    assert one.controller.memory().heat[name].estimate != fresh.estimate
    del one.most_a[BOARD]
    one.step(2)
    assert name not in one.controller.memory().heat


def test_a_required_battery_that_is_told_of_once_a_minute_charges(charging: Play) -> None:
    one, name = charging, "charger-003"
    controller = one.controller
    sensor = replace(controller.policy.battery_sensor, required=True)
    controller.policy = replace(controller.policy, battery_sensor=sensor)
    drawn_a = []
    for second in range(600):
        if second % 60 == 0 and second != 240:  # one of them is lost
            controller.tell(name, Told(battery=thermal.Temperature(20.0, one.now_s)))
        one.step()
        drawn_a.append(one.limit_a[name])
    assert min(drawn_a[60:]) >= 6.0
    one.step(160)
    assert one.limit_a[name] == 0.0


def test_one_reading_without_a_required_sensors_value_is_no_lost_sensor(charging: Play) -> None:
    one, name = charging, "charger-003"
    controller = one.controller
    one.boards_c[name] = 30.0
    one.step(2)
    sensor = replace(controller.policy.charger_sensor, required=True)
    controller.policy = replace(controller.policy, charger_sensor=sensor)
    del one.boards_c[name]
    one.step(1)
    assert one.limit_a[name] > 0.0
    one.step(int(sensor.stale_after_s))
    assert one.limit_a[name] == 0.0


def test_without_the_air_nothing_is_learnt(charging: Play) -> None:
    one = charging
    for second in range(100):
        one.boards_c[BOARD] = 20.0 + second / 10
        one.step()
    fresh = thermal.fresh(thermal.DEFAULTS[thermal.SensorKind.CHARGER])
    assert one.controller.memory().heat[f"{BOARD} charger"].estimate == fresh.estimate


@pytest.mark.parametrize("kind", list(thermal.SensorKind))
def test_a_sensor_of_each_kind_can_be_required_of_every_evse(charging: Play, kind: thermal.SensorKind) -> None:
    one = charging
    policy, which = one.controller.policy, f"{kind.value}_sensor"
    one.controller.policy = replace(policy, **{which: replace(getattr(policy, which), required=True)})
    if kind is thermal.SensorKind.CHARGER:
        one.boards_c[BOARD] = 30.0
    elif kind is thermal.SensorKind.BATTERY:
        one.controller.tell(BOARD, Told(battery=thermal.Temperature(20.0, one.now_s)))
    one.step(15)
    shows = {BOARD} if kind is not thermal.SensorKind.ENCLOSURE else set()
    for evse in one.site.evses:
        assert (one.limit_a[evse.name] > 6) is (evse.name in shows), evse.name


def test_the_step_of_the_import_register_is_its_profiles_or_no_more_than_it_rises_by(
    play: MakePlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it may hide is used up: less is left with a coarse register than with a fine one."""
    left_w = {}
    for step_wh in (None, 1.0, 200.0):
        one = play(demand_cap=demand.Cap(cap_w=CAP_W, window_s=QUARTER_S))
        one.wall_ahead_s = 0.0
        one.base_a = (70.0, 70.0, 70.0)
        with monkeypatch.context() as patched:
            if step_wh is not None:
                patched.setattr(Profile, "step", lambda _self, _name, step_wh=step_wh: step_wh)
            one.step(QUARTER_S + 20)
        left_w[step_wh] = capped_w(one)
    assert left_w[200.0] < left_w[None] < left_w[1.0]


def test_a_vehicle_that_took_nothing_is_asked_again_and_meanwhile_leaves_others_the_room(play: MakePlay) -> None:
    """One that sleeps until shortly before it departs, or takes long to wake up, is not forgotten for good."""
    one = play(limit_va=1e6)
    one.step(3)
    one.vehicles()
    asleep = "charger-003"
    one.most_a[asleep] = 0.0
    one.step(int(WAKES_S) // 2)
    assert one.limit_a[asleep] >= 6.0
    one.step(SETTLED_S + int(WAKES_S))
    assert one.limit_a[asleep] == 0.0
    one.vehicles()
    one.step(int(ASKED_AGAIN_S) + SETTLED_S)
    assert one.drawn_a(one.site.evses[one.site.network.place[asleep]]) >= 6.0


def test_a_vehicle_that_takes_less_than_the_least_that_it_can_be_offered_keeps_that(charging: Play) -> None:
    one = charging
    one.controller.policy = replace(one.controller.policy, limit_va=1e6)
    one.most_a["charger-003"] = 2.0
    one.step(3 * SETTLED_S)
    assert one.limit_a["charger-003"] == pytest.approx(6.0)


def test_what_chargers_do_after_a_silence_is_not_taken_for_what_their_vehicles_take(charging: Play) -> None:
    """They may have started anew, at nothing, whatever they were told before."""
    one = charging
    one.controller.policy = replace(one.controller.policy, limit_va=1e6)
    one.step(SETTLED_S)
    one.silent = set(one.site.devices)
    one.step(int(WAKES_S))
    one.limit_a.clear()
    one.silent = set()
    one.step()
    for evse in one.site.evses:
        assert one.controller.rated_w(evse.name) == pytest.approx(evse.limit_a * one.controller.watts_per_a(evse.name))


RAMP_W_PER_S = 1000.0


def rises(one: Play, since_s: float) -> dict[str, list[tuple[float, float, float]]]:
    """Return each EVSE's writes since a time that tell it more than it stood at: from, to, and after how long."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    stands: dict[str, tuple[float, float]] = {}
    for at_s, name, amperes in one.writes:
        before_a, before_s = stands.get(name, (0.0, -math.inf))
        if amperes > before_a + 0.05 and at_s >= since_s:
            found.setdefault(name, []).append((before_a, amperes, at_s - before_s))
        if abs(amperes - before_a) > 0.05:
            stands[name] = amperes, at_s
    return found


@pytest.mark.parametrize("ramp_w_per_s", [RAMP_W_PER_S, None])
def test_a_ramp_slows_what_rises_and_nothing_that_falls(play: MakePlay, ramp_w_per_s: float | None) -> None:
    one = play(limit_va=1e6, ramp_w_per_s=ramp_w_per_s)
    one.step(3)
    one.vehicles([evse.name for evse in one.site.evses if evse.name.startswith("charger")])
    one.step(SETTLED_S)
    before_w = one.drawn_w()
    assert before_w > 0.99 * sum(16.0 * one.controller.watts_per_a(name) for name in one.most_a)
    began_s = one.now_s
    one.controller.put(ask(0.6 * before_w + BASE_W, end_s=began_s + 60))
    one.step(2)
    assert one.drawn_w() <= 0.6 * before_w + 1
    one.step(SETTLED_S + 60)
    assert one.drawn_w() > 0.99 * before_w
    rate_a = RAMP_W_PER_S / one.controller.watts_per_a("charger-001")
    found = [each for name in one.most_a for each in rises(one, began_s + 3).get(name, [])]
    assert found
    within = [
        after_a <= 6.05 if before_a < 6.0 else after_a - before_a <= rate_a * min(after_s, 1.0) + 0.15
        for before_a, after_a, after_s in found
    ]
    assert all(within) is (ramp_w_per_s is not None)
    if ramp_w_per_s is not None:
        # It is no slower than that, by more than what steps and cycles make of it.
        assert max(after_a - before_a for before_a, after_a, _ in found if before_a >= 6.0) > 0.8 * rate_a


def test_a_slow_ramp_rises_all_the_same_and_takes_nothing_back(play: MakePlay) -> None:
    one = play(limit_va=1e6, ramp_w_per_s=10.0)
    one.step(3)
    one.vehicles(["fast-1/1"])
    one.step(600)
    found = [amperes for _, name, amperes in one.writes if name == "fast-1/1"]
    assert found == sorted(found)
    assert found[-1] == pytest.approx(10.0 * 600 / one.controller.watts_per_a("fast-1/1"), rel=0.1)
    assert found[-1] > one.site.stations["fast-1/1"].least_a + 1
