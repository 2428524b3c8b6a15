# SPDX-License-Identifier: Apache-2.0
"""What is still to be delivered, the least that an EVSE can be set to, and for how long a lowering is held."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derms_agent.control.allocate import Allocation, Params, allocate, may_start_at_s, needs
from derms_agent.control.limits import Bound, Place
from derms_agent.control.network import Network
from derms_agent.control.plan import Plan
from derms_agent.model import Circuit, Connection, Evse, LimitQuantity, Phase, Session

VOLTS = 400 / math.sqrt(3)
LINE: Place = "main", LimitQuantity.CURRENT, Phase.L1


def on_one_line(count: int, rating_a: float) -> tuple[Network, tuple[Evse, ...]]:
    circuit = Circuit(name="main", parent=None, connection=Connection.WYE, voltage_v=400.0, rating_a=(rating_a,) * 3)
    evses = tuple(
        Evse(name=f"e{index}", device=f"e{index}", connector=1, circuit="main", phases=(Phase.L1,), rating_a=32.0)
        for index in range(count)
    )
    return Network({"main": circuit}, evses), evses


def session(name: str, hours: float | None, need_wh: float | None, delivered_wh: float = 0.0) -> Session:
    return Session(
        evse=name,
        started_at_s=0.0,
        departure_at_s=None if hours is None else hours * 3600,
        energy_need_wh=need_wh,
        delivered_wh=delivered_wh,
    )


def shared_a(
    network: Network,
    evses: tuple[Evse, ...],
    sessions: Mapping[str, Session],
    *,
    now_s: float = 0.0,
    previous: Mapping[str, Allocation] | None = None,
    plan: Plan | None = None,
    bounds: Mapping[Place, Bound] | None = None,
    params: Params | None = None,
) -> Mapping[str, Allocation]:
    return allocate(
        evses,
        sessions,
        bounds or {},
        network,
        now_s=now_s,
        previous=previous or {},
        plan=plan,
        params=params or Params(),
    )


@pytest.mark.parametrize(("line_a", "given_a"), [(5.99, 0.0), (6.0, 6.0), (6.5, 6.5), (31.0, 31.0)])
def test_an_ac_charger_of_which_nothing_is_declared_gets_six_amperes_or_nothing(line_a: float, given_a: float) -> None:
    network, evses = on_one_line(1, line_a)
    assert shared_a(network, evses, {"e0": session("e0", None, None)})["e0"].current_a == pytest.approx(given_a)


@given(need_wh=st.floats(0, 90_000), part=st.floats(0, 1.5))
def test_what_was_delivered_is_needed_no_more(need_wh: float, part: float) -> None:
    network, evses = on_one_line(1, 32.0)
    sessions = {"e0": session("e0", 5.0, need_wh, part * need_wh)}
    (found,) = needs(evses, sessions, {}, network, {})
    assert found.charge_as * VOLTS / 3600 == pytest.approx(max(need_wh * (1 - part), 0.0), abs=1e-3)
    assert (found.departure_at_s, found.most_a) == (5 * 3600.0, 32.0)


def test_no_more_is_planned_for_a_vehicle_than_it_takes_nor_than_its_own_limits_leave() -> None:
    network, evses = on_one_line(1, 32.0)
    slow = Session(evse="e0", started_at_s=0.0, departure_at_s=9e3, energy_need_wh=9e3, power_w=10 * VOLTS)
    own: Place = "e0", LimitQuantity.CURRENT, None
    for high_a, most_a in ((32.0, 10.0), (7.0, 7.0)):
        (found,) = needs(evses, {"e0": slow}, {own: Bound(-32.0, high_a)}, network, {})
        assert found.most_a == pytest.approx(most_a)


@pytest.mark.parametrize(("left_wh", "given_a"), [(-1.0, 0.0), (0.0, 0.0), (1.0, 15.59), (50.0, 32.0)])
def test_who_has_had_its_need_takes_no_more_and_leaves_the_line_to_the_others(left_wh: float, given_a: float) -> None:
    network, evses = on_one_line(2, 32.0)
    sessions = {"e0": session("e0", 5.0, 10_000.0, 10_000.0 - left_wh), "e1": session("e1", None, None)}
    shared = shared_a(network, evses, {"e0": sessions["e0"]})
    assert shared["e0"].current_a == pytest.approx(given_a, abs=0.01)
    if left_wh <= 0:
        assert shared_a(network, evses, sessions)["e1"].current_a == 32.0


def test_who_has_had_most_of_its_need_waits_for_who_has_had_less() -> None:
    """Both leave at once and need as much in all; there is room for one."""
    network, evses = on_one_line(2, 10.0)
    for had_wh, first in (((0.0, 9000.0), "e0"), ((9000.0, 0.0), "e1")):
        sessions = {
            name: session(name, 5.0, 10_000.0, delivered_wh)
            for name, delivered_wh in zip(("e0", "e1"), had_wh, strict=True)
        }
        shared = shared_a(network, evses, sessions)
        assert [name for name, one in shared.items() if one.current_a > 0] == [first]


def test_what_an_own_limit_lowered_is_raised_again_after_the_hold_and_no_sooner() -> None:
    network, evses = on_one_line(1, 40.0)
    sessions = {"e0": session("e0", None, None)}
    own: Place = "e0", LimitQuantity.CURRENT, None
    previous: Mapping[str, Allocation] = {}
    course = []
    for now_s in range(0, 1200, 5):
        high_a = 10.0 if 600 <= now_s < 650 else 32.0
        bounds = {own: Bound(-32.0, high_a), LINE: Bound(-40.0, 40.0)}
        previous = shared_a(network, evses, sessions, now_s=now_s, previous=previous, bounds=bounds)
        course.append((now_s, previous["e0"].current_a))
    held = [now_s for now_s, current_a in course if now_s >= 600 and current_a == 10.0]
    assert (held[0], held[-1]) == (600, 895)
    assert course[-1][1] == 32.0


def test_a_plan_decides_who_charges_now_and_one_whose_time_is_over_decides_nothing() -> None:
    network, evses = on_one_line(2, 10.0)
    sessions = {name: session(name, 9.0, 20_000.0) for name in ("e0", "e1")}
    for first, other in (("e0", "e1"), ("e1", "e0")):
        plan = Plan(edges_s=(0.0, 300.0, 4000.0), currents_a={first: (10.0, 10.0), other: (0.0, 0.0)})
        shared = shared_a(network, evses, sessions, now_s=10.0, plan=plan)
        assert (shared[first].current_a, shared[other].current_a) == (10.0, 0.0)
        late_s = 5000.0
        without = shared_a(network, evses, sessions, now_s=late_s)
        assert shared_a(network, evses, sessions, now_s=late_s, plan=plan)["e0"] == without["e0"]


@given(seeds=st.lists(st.text(max_size=12), min_size=2, max_size=2, unique=True), spread_s=st.floats(60, 600))
def test_starts_after_an_outage_are_within_the_spread_and_unlike_in_each_evse_and_under_each_seed(
    seeds: list[str], spread_s: float
) -> None:
    names = [f"e{index}" for index in range(40)]
    waits = []
    for seed in seeds:
        params = Params(energised_at_s=dict.fromkeys(names, 1000.0), spread_s=spread_s, seed=seed)
        found = [may_start_at_s(name, params) - 1000.0 for name in names]
        assert all(0.0 <= wait_s < spread_s for wait_s in found)
        assert len(set(found)) == len(names)
        assert max(found) - min(found) > spread_s / 2
        assert may_start_at_s("another", params) == -math.inf
        waits.append(found)
    assert sum(abs(one - other) < 1e-6 for one, other in zip(*waits, strict=True)) == 0


@pytest.mark.parametrize("names", [("e0", "e1"), ("e1", "e0")])
def test_what_no_plan_wishes_goes_to_a_vehicle_before_it_goes_to_storage(names: tuple[str, str]) -> None:
    vehicle, storage = names
    network, evses = on_one_line(2, 20.0)
    sessions = {vehicle: session(vehicle, 9.0, 20_000.0), storage: session(storage, None, None)}
    plan = Plan(edges_s=(0.0, 300.0, 40_000.0), currents_a={vehicle: (0.0, 1.0)})
    params = Params(storage=frozenset({storage}))
    shared = shared_a(network, evses, sessions, now_s=10.0, plan=plan, params=params)
    assert (shared[vehicle].current_a, shared[storage].current_a) == (20.0, 0.0)
