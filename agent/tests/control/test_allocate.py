# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derms_agent.control.allocate import (
    Allocation,
    Params,
    Steps,
    allocate,
    circuit_limits,
    fair_shares,
    may_start_at_s,
    needs,
    reserved_a,
)
from derms_agent.control.limits import Bound, Place
from derms_agent.control.network import Floats, Network
from derms_agent.control.plan import Outlook, Plan, plan
from derms_agent.model import Circuit, Connection, Evse, LimitQuantity, Phase, Session

LINES = tuple(Phase)
BRANCHES = ((LINES[0], LINES[1]), (LINES[1], LINES[2]), (LINES[2], LINES[0]))
SITE_POWER: Place = ("site", LimitQuantity.ACTIVE_POWER, None)


def within(low: float = -math.inf, high: float = math.inf) -> Bound:
    return Bound(low, high)


def depot(count: int, rating_a: float = 60.0) -> tuple[Network, tuple[Evse, ...]]:
    """EVSEs between two lines behind a delta-wye transformer, every third of them on a pod."""
    circuits = {
        "primary": Circuit(
            name="primary",
            parent=None,
            connection=Connection.DELTA_WYE,
            voltage_v=480.0,
            rating_a=(rating_a * 0.44,) * 3,
        ),
        "secondary": Circuit(
            name="secondary", parent="primary", connection=Connection.DELTA, voltage_v=208.0, rating_a=(rating_a,) * 3
        ),
        "pod": Circuit(
            name="pod", parent="secondary", connection=Connection.DELTA, voltage_v=208.0, rating_a=(40.0,) * 3
        ),
    }
    evses = tuple(
        Evse(
            name=f"e{index}",
            device=f"e{index}",
            connector=1,
            circuit="pod" if index % 3 == 2 else "secondary",
            phases=BRANCHES[index * 7 % 3],
            rating_a=32.0,
        )
        for index in range(count)
    )
    return Network(circuits, evses), evses


def on_one_line(count: int, rating_a: float) -> tuple[Network, tuple[Evse, ...]]:
    circuit = Circuit(name="main", parent=None, connection=Connection.WYE, voltage_v=400.0, rating_a=(rating_a,) * 3)
    evses = tuple(
        Evse(name=f"e{index}", device=f"e{index}", connector=1, circuit="main", phases=(LINES[0],), rating_a=32.0)
        for index in range(count)
    )
    return Network({"main": circuit}, evses), evses


def session(name: str, *, hours: float | None = None, need_wh: float | None = None, **more: float) -> Session:
    return Session(
        evse=name,
        started_at_s=0.0,
        departure_at_s=None if hours is None else hours * 3600,
        energy_need_wh=need_wh,
        **more,  # type: ignore[arg-type]
    )


def share(
    network: Network,
    evses: tuple[Evse, ...],
    sessions: Mapping[str, Session],
    params: Params,
    *,
    bounds: Mapping[Place, Bound] | None = None,
    now_s: float = 0.0,
    previous: Mapping[str, Allocation] | None = None,
    with_plan: Plan | None = None,
) -> Mapping[str, Allocation]:
    return allocate(
        evses, sessions, bounds or {}, network, now_s=now_s, previous=previous or {}, plan=with_plan, params=params
    )


def amps(shared: Mapping[str, Allocation], network: Network) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.array([shared[name].current_a for name in network.evses])


COARSE = Steps(levels_a=(8.0, 16.0, 24.0, 32.0))
FINE = Steps(minimum_a=6.0, step_a=1.0)
ANY = Steps(minimum_a=0.0)
a_session = st.tuples(
    st.booleans(),
    st.one_of(st.none(), st.floats(0.1, 20.0)),
    st.one_of(st.none(), st.floats(0.0, 40_000.0)),
    st.floats(0, 9000),
)


@settings(max_examples=60, deadline=None)
@given(
    wanted=st.lists(a_session, min_size=1, max_size=14),
    rating_a=st.floats(0.0, 120.0),
    steps=st.lists(st.sampled_from([COARSE, FINE, ANY]), min_size=14, max_size=14),
    before=st.lists(st.sampled_from([0.0, 6.0, 8.0, 17.0, 32.0]), min_size=14, max_size=14),
    planned=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_never_above_a_limit_whatever_is_wished(
    *,
    wanted: list[tuple[bool, float | None, float | None, float]],
    rating_a: float,
    steps: list[Steps],
    before: list[float],
    planned: bool,
    seed: int,
) -> None:
    network, evses = depot(len(wanted), rating_a)
    sessions = {
        evse.name: session(evse.name, hours=hours, need_wh=need_wh, power_w=power_w)
        for evse, (here, hours, need_wh, power_w) in zip(evses, wanted, strict=True)
        if here
    }
    params = Params(steps={evse.name: one for evse, one in zip(evses, steps, strict=False)}, cycle_s=300.0)
    # Any plan at all, also one that asks for what no circuit bears.
    rng = random.Random(seed)  # noqa: S311
    wild = Plan(edges_s=(0.0, 3600.0), currents_a={evse.name: (rng.uniform(0, 99),) for evse in evses})
    previous = {
        evse.name: Allocation(evse=evse.name, current_a=current, power_w=208 * current, why="")
        for evse, current in zip(evses, before, strict=False)
    }
    shared = share(network, evses, sessions, params, previous=previous, with_plan=wild if planned else None)
    currents = amps(shared, network)
    assert network.fits(currents, network.limits())
    loads = network.loads_of({name: shared[name].current_a for name in network.evses})
    for name, circuit in network.circuits.items():
        assert max(loads[name]) <= max(circuit.rating_a) + 1e-5
    for evse, one in zip(evses, steps, strict=False):
        current = shared[evse.name].current_a
        assert 0 <= current <= 32
        assert current == 0 or evse.name in sessions
        assert one.down(current) == pytest.approx(current)
        assert shared[evse.name].power_w == pytest.approx(208 * current)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.floats(0.0, 100.0), st.floats(0.0, 1.0))
def test_a_lower_limit_never_gives_more_in_all(count: int, rating_a: float, part: float) -> None:
    network, evses = on_one_line(count, 200.0)
    sessions = {evse.name: session(evse.name, hours=1.0 + index, need_wh=9000.0) for index, evse in enumerate(evses)}
    line = ("main", LimitQuantity.CURRENT, Phase.L1)
    params = Params(otherwise=ANY)
    more = share(network, evses, sessions, params, bounds={line: within(high=rating_a)})
    less = share(network, evses, sessions, params, bounds={line: within(high=rating_a * part)})
    assert amps(less, network).sum() <= amps(more, network).sum() + 1e-6
    assert amps(less, network).sum() <= rating_a * part + 1e-5


def test_the_same_in_gives_the_same_out_in_any_order_of_the_mappings() -> None:
    network, evses = depot(12)
    sessions = {
        evse.name: session(evse.name, hours=2.0 + index % 3, need_wh=9000.0) for index, evse in enumerate(evses)
    }
    backwards = dict(reversed(sessions.items()))
    assert share(network, evses, sessions, Params()) == share(network, evses, backwards, Params())


def test_without_departures_everyone_gets_the_same_of_one_line() -> None:
    network, evses = on_one_line(4, 40.0)
    sessions = {evse.name: session(evse.name) for evse in evses}
    shared = share(network, evses, sessions, Params())
    assert [shared[evse.name].current_a for evse in evses] == pytest.approx([10.0] * 4, abs=0.02)


def test_what_one_cannot_take_goes_to_the_others() -> None:
    network, evses = on_one_line(3, 40.0)
    sessions = {evse.name: session(evse.name) for evse in evses}
    sessions["e0"] = replace(sessions["e0"], power_w=8.0 * float(network.watts_per_a[0]))
    shared = share(network, evses, sessions, Params())
    assert [shared[evse.name].current_a for evse in evses] == pytest.approx([8.0, 16.0, 16.0], abs=0.02)


def test_who_has_had_less_gets_more_until_all_have_had_the_same() -> None:
    network, evses = on_one_line(2, 30.0)
    sessions = {"e0": session("e0", delivered_wh=5000.0), "e1": session("e1", delivered_wh=1000.0)}
    shared = share(network, evses, sessions, Params())
    assert shared["e1"].current_a > shared["e0"].current_a


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.0, 32.0), min_size=2, max_size=12), st.floats(1.0, 90.0))
def test_fair_shares_are_max_min(tops: list[float], rating_a: float) -> None:
    network, _ = depot(len(tops), rating_a)
    limits = network.limits()
    shares = fair_shares(network, np.array(tops), np.zeros(len(tops)), limits)
    assert network.fits(shares, limits)
    for place, top in enumerate(tops):
        if shares[place] < top - 1e-2:
            # Whoever has less than they could take cannot be raised, were all who have more brought down to the same.
            raised = np.minimum(shares, shares[place] + 0.5)
            raised[place] += 0.5
            assert not network.fits(raised, limits) or shares[place] + 0.5 > top


def test_known_departures_leave_the_others_their_fair_share() -> None:
    network, evses = on_one_line(4, 40.0)
    sessions = {evse.name: session(evse.name, hours=2.0, need_wh=40_000.0) for evse in evses[:3]}
    sessions["e3"] = session("e3")
    params = Params()
    reserved = reserved_a(evses, sessions, {}, network, params)
    found = plan(
        network, needs(evses, sessions, {}, network, {}), network.limits(), reserved, now_s=0.0, outlook=Outlook()
    )
    shared = share(network, evses, sessions, params, with_plan=found)
    assert shared["e3"].current_a == pytest.approx(10.0, abs=0.02)
    assert amps(shared, network).sum() == pytest.approx(40.0, abs=1e-3)


def test_without_a_plan_least_laxity_comes_first() -> None:
    network, evses = on_one_line(2, 20.0)
    sessions = {"e0": session("e0", hours=9.0, need_wh=9000.0), "e1": session("e1", hours=1.0, need_wh=9000.0)}
    shared = share(network, evses, sessions, Params())
    assert shared["e1"].current_a == pytest.approx(20.0)
    assert shared["e0"].current_a == 0.0


a_parked = st.one_of(st.none(), st.tuples(st.floats(0.1, 12.0), st.floats(500.0, 60_000.0)))
"""A vehicle of which nothing is told, or its hours to departure and its need in Wh."""


def laxity_h(of: tuple[float, float], watts_per_a: float) -> float:
    hours, need_wh = of
    return hours - need_wh / (32.0 * watts_per_a)


@settings(max_examples=60, deadline=None)
@given(told=st.lists(a_parked, min_size=1, max_size=12), rating_a=st.floats(1.0, 120.0), plan_of_others=st.booleans())
def test_without_a_plan_fair_shares_are_kept_and_the_rest_is_for_those_who_can_least_wait(
    *, told: list[tuple[float, float] | None], rating_a: float, plan_of_others: bool
) -> None:
    network, evses = on_one_line(len(told), rating_a)
    watts = float(network.watts_per_a[0])
    sessions = {
        evse.name: session(evse.name) if of is None else session(evse.name, hours=of[0], need_wh=of[1])
        for evse, of in zip(evses, told, strict=True)
    }
    params = Params(otherwise=ANY)
    # A plan that was made before any of them came says nothing of them.
    older = Plan(edges_s=(-60.0, 9e3), currents_a={"gone": (9.0,)}) if plan_of_others else None
    shared = share(network, evses, sessions, params, with_plan=older)
    fair = reserved_a(evses, sessions, {}, network, params)
    known = [(laxity_h(of, watts), evse.name) for evse, of in zip(evses, told, strict=True) if of is not None]
    unmet = [name for _, name in known if shared[name].current_a < 32.0 - 1e-3]
    for evse, of, fair_a in zip(evses, told, fair, strict=True):
        if of is None:
            assert shared[evse.name].current_a >= fair_a - 1e-3
            assert not unmet or shared[evse.name].current_a <= fair_a + 1e-3
    # Nobody has had anything yet: whoever has to charge within the hour comes first, and of the others the least lax.
    for lax, name in known:
        if name in unmet:
            assert all(
                shared[other].current_a < 1e-3 for laxer, other in known if laxer > max(lax, 1.0) and other != name
            )


def longest_waits_s(
    sessions: dict[str, Session], rating_a: float, steps: Steps, hours: float, step_s: float = 300.0
) -> dict[str, float]:
    """Play hours without a plan on one line; return for how long each has got nothing at a time.

    That is of those that may not wait, while another charges that has had more.
    """
    network, evses = on_one_line(len(sessions), rating_a)
    watts = float(network.watts_per_a[0])
    params = Params(otherwise=steps, cycle_s=step_s)
    previous: Mapping[str, Allocation] = {}
    waited_s, longest_s = dict.fromkeys(sessions, 0.0), dict.fromkeys(sessions, 0.0)
    for now_s in np.arange(0.0, hours * 3600.0, step_s).tolist():
        shared = share(network, evses, sessions, params, now_s=now_s, previous=previous)
        assert amps(shared, network).sum() <= rating_a + 1e-5
        for name, before in list(sessions.items()):
            wh = shared[name].current_a * watts * step_s / 3600
            sessions[name] = one = replace(before, delivered_wh=before.delivered_wh + wh)
            left_wh = math.inf if one.energy_need_wh is None else one.energy_need_wh - one.delivered_wh
            if one.departure_at_s is not None and (one.departure_at_s <= now_s or left_wh <= 1.0):
                del sessions[name]
                continue
            lax_s = -math.inf
            if one.departure_at_s is not None:
                lax_s = one.departure_at_s - now_s - left_wh / (32.0 * watts) * 3600
            passed_over = lax_s <= params.look_s and any(
                shared[other].current_a > 0 and of.delivered_wh > one.delivered_wh for other, of in sessions.items()
            )
            waits = passed_over and shared[name].current_a <= 0
            waited_s[name] = waited_s[name] + step_s if waits else 0.0
            longest_s[name] = max(longest_s[name], waited_s[name])
        previous = shared
    return longest_s


def test_who_can_wait_and_needs_little_keeps_no_share_from_others() -> None:
    """It has had nothing for hours; what it could claim for that is not for whoever has had most."""
    sessions = {
        "e0": session("e0", hours=9.0, need_wh=500.0),
        "e1": session("e1", hours=16.0, need_wh=900_000.0),
        "e2": session("e2"),
    }
    assert longest_waits_s(sessions, 22.5, FINE, hours=12.0)["e2"] == 0.0
    assert sessions["e1"].delivered_wh == pytest.approx(sessions["e2"].delivered_wh, rel=0.1)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 4), st.floats(6.0, 40.0), st.sampled_from([FINE, Steps(), ANY]))
def test_where_nothing_is_told_all_have_their_turn(count: int, rating_a: float, steps: Steps) -> None:
    """Also on a line that holds no more than one of them at a time."""
    sessions = {f"e{number}": session(f"e{number}") for number in range(count)}
    longest_s = longest_waits_s(sessions, rating_a, steps, hours=16.0)
    # Each other one may come to be `even_s` ahead; steps and cycles make a turn longer.
    assert max(longest_s.values()) <= 2 * 3600.0 * (count - 1)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(a_parked, min_size=2, max_size=4), st.floats(1.01, 3.0), st.sampled_from([FINE, Steps(), ANY]), st.data()
)
def test_without_a_plan_nobody_starves(
    told: list[tuple[float, float] | None], room: float, steps: Steps, data: st.DataObject
) -> None:
    """Where somebody is told to need more than can ever be had, the others do not wait for that."""
    _network, evses = on_one_line(len(told), 32.0)
    sessions = {
        evse.name: session(evse.name) if of is None else session(evse.name, hours=of[0], need_wh=of[1])
        for evse, of in zip(evses, told, strict=True)
    }
    greedy = data.draw(st.sampled_from(evses)).name
    sessions[greedy] = session(greedy, hours=16.0, need_wh=900_000.0)
    longest_s = longest_waits_s(sessions, 6.0 * len(told) * room, steps, hours=12.0)
    assert max(longest_s.values()) <= 2 * 3600.0 * (len(told) - 1)


def test_less_than_the_minimum_is_nothing_and_steps_are_kept() -> None:
    network, evses = on_one_line(2, 21.0)
    sessions = {evse.name: session(evse.name, hours=1.0 + index, need_wh=9000.0) for index, evse in enumerate(evses)}
    shared = share(network, evses, sessions, Params(steps={"e0": COARSE}, otherwise=FINE))
    assert shared["e0"].current_a == 16.0
    assert shared["e1"].current_a == 0.0


@pytest.mark.parametrize(
    ("steps", "current", "down", "up"),
    [
        (COARSE, 7.9, 0.0, 8.0),
        (COARSE, 17.0, 16.0, 24.0),
        (COARSE, 40.0, 32.0, 32.0),
        (FINE, 6.0, 6.0, 6.0),
        (FINE, 12.3, 12.0, 13.0),
        (FINE, 5.0, 0.0, 6.0),
        (ANY, 3.3, 3.3, 3.3),
        (ANY, 0.0, 0.0, 0.0),
    ],
)
def test_steps(steps: Steps, current: float, down: float, up: float) -> None:
    assert (steps.down(current), steps.up(current)) == (down, up)


def test_an_evses_own_bounds_hold() -> None:
    network, evses = on_one_line(3, 90.0)
    sessions = {evse.name: session(evse.name, hours=2.0, need_wh=9000.0) for evse in evses}
    watts = float(network.watts_per_a[0])
    shared = share(
        network,
        evses,
        sessions,
        Params(),
        bounds={
            ("e0", LimitQuantity.CURRENT, Phase.L1): within(high=13.0),
            ("e1", LimitQuantity.ACTIVE_POWER, None): within(high=9.0 * watts),
            ("e2", LimitQuantity.ACTIVE_POWER, None): within(high=0.0),
        },
    )
    assert amps(shared, network) == pytest.approx([13.0, 9.0, 0.0])


def test_after_an_outage_evses_start_one_by_one() -> None:
    network, evses = on_one_line(40, 2000.0)
    sessions = {evse.name: session(evse.name, hours=5.0, need_wh=9000.0) for evse in evses}
    params = Params(energised_at_s=dict.fromkeys(sessions, 1000.0), spread_s=600.0, seed="north")
    counts = [
        int((amps(share(network, evses, sessions, params, now_s=now_s), network) > 0).sum())
        for now_s in (1000.0, 1150.0, 1300.0, 1450.0, 1600.0)
    ]
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert 2 <= counts[1] <= 20
    assert counts[-1] == 40
    elsewhere = replace(params, seed="south")
    assert may_start_at_s("e1", params) == may_start_at_s("e1", params) != may_start_at_s("e1", elsewhere)


def test_after_an_outage_those_wait_that_power_came_back_to_and_each_from_then_on() -> None:
    network, evses = on_one_line(3, 2000.0)
    sessions = {evse.name: session(evse.name, hours=5.0, need_wh=9000.0) for evse in evses}
    params = Params(energised_at_s={"e1": 1000.0, "e2": 1100.0}, spread_s=50.0)
    on = {
        now_s: (amps(share(network, evses, sessions, params, now_s=now_s), network) > 0).tolist()
        for now_s in (1000.0, 1050.0, 1100.0, 1150.0)
    }
    assert on == {
        1000.0: [True, False, False],
        1050.0: [True, True, False],
        1100.0: [True, True, False],
        1150.0: [True, True, True],
    }


def test_a_trembling_limit_moves_an_evse_at_most_once_in_five_minutes() -> None:
    network, evses = on_one_line(5, 200.0)
    sessions = {evse.name: session(evse.name, hours=20.0, need_wh=900_000.0) for evse in evses}
    rng = random.Random(3)  # noqa: S311
    for params in (Params(otherwise=FINE), Params()):
        previous: Mapping[str, Allocation] = {}
        moves: dict[str, list[tuple[int, int]]] = {evse.name: [] for evse in evses}
        for now in range(3000):
            bound = within(high=100.0 + rng.uniform(-3, 3))
            shared = share(
                network,
                evses,
                sessions,
                params,
                bounds={("main", LimitQuantity.CURRENT, Phase.L1): bound},
                now_s=float(now),
                previous=previous,
            )
            assert amps(shared, network).sum() <= bound.high + 1e-5
            for name, one in shared.items():
                change = one.current_a - previous[name].current_a if name in previous else 0.0
                if abs(change) > 1e-6:
                    moves[name].append((now, 1 if change > 0 else -1))
            previous = shared
        for moved in moves.values():
            reversals = [at for (_, was), (at, is_) in pairwise(moved) if was != is_ and at > 600]
            assert all(later - sooner >= 300 for sooner, later in pairwise(reversals))
        assert amps(previous, network).sum() > 90.0


@pytest.mark.parametrize("steps", [FINE, Steps()])
@pytest.mark.parametrize("seed", range(4))
def test_own_limits_that_come_and_go_amid_trembling_turn_an_evse_no_more_often_than_they_turn(
    seed: int, steps: Steps
) -> None:
    network, evses = on_one_line(5, 200.0)
    params = Params(otherwise=steps, hold_s=30.0)
    sessions = {evse.name: session(evse.name) for evse in evses}
    rng = random.Random(seed)  # noqa: S311
    begins = 600 + rng.randrange(60)
    turns_at = [begins]
    for _ in range(6):
        turns_at.append(turns_at[-1] + rng.randrange(40, 70))
    previous: Mapping[str, Allocation] = {}
    before_a: dict[str, float] = {}
    direction = dict.fromkeys(sessions, 0)
    turned: dict[str, list[int]] = {name: [] for name in sessions}
    for now in range(turns_at[-1] + 100):
        lowered = sum(now >= at for at in turns_at) % 2 == 1
        if not lowered:
            before_a = {name: one.current_a for name, one in previous.items()}
        bounds: dict[Place, Bound] = {
            ("main", LimitQuantity.CURRENT, Phase.L1): within(high=100.0 + rng.choice([-2.0, -1.0, 0.0, 1.0, 2.0]))
        }
        if lowered:
            for name in sessions:
                bounds[name, LimitQuantity.CURRENT, None] = within(high=max(before_a[name] - 0.3, 0.0))
        shared = share(network, evses, sessions, params, bounds=bounds, now_s=float(now), previous=previous)
        for name, one in shared.items():
            change = one.current_a - previous[name].current_a if previous else 0.0
            if abs(change) > 1e-6:
                if direction[name] * change < 0 and now > begins:
                    turned[name].append(now)
                direction[name] = 1 if change > 0 else -1
        previous = shared
    assert all(later - sooner >= 30 for places in turned.values() for sooner, later in pairwise(places))
    assert all(len(places) >= 6 for places in turned.values())


def test_after_a_lasting_lowering_it_rises_again() -> None:
    network, evses = on_one_line(1, 200.0)
    sessions = {"e0": session("e0", hours=20.0, need_wh=900_000.0)}
    line = ("main", LimitQuantity.CURRENT, Phase.L1)
    previous: Mapping[str, Allocation] = {}
    seen = []
    for now in range(0, 1500, 10):
        high = 10.0 if 100 <= now < 500 else 32.0
        previous = share(
            network, evses, sessions, Params(), bounds={line: within(high=high)}, now_s=now, previous=previous
        )
        seen.append(previous["e0"].current_a)
    assert seen[0] == 32.0
    assert seen[10] == 10.0
    assert seen[-1] == 32.0


def test_who_charges_goes_on_when_another_as_urgent_comes() -> None:
    network, evses = on_one_line(2, 10.0)
    first = {"e1": session("e1", hours=4.0, need_wh=9000.0)}
    running = share(network, evses, first, Params(otherwise=FINE))
    both = first | {"e0": session("e0", hours=3.9, need_wh=9000.0)}
    shared = share(network, evses, both, Params(otherwise=FINE), previous=running, now_s=1.0)
    assert shared["e1"].current_a == 10.0


def test_without_a_plan_two_that_are_alike_do_not_change_places_again_and_again() -> None:
    network, evses = on_one_line(2, 10.0)
    sessions = {evse.name: session(evse.name, hours=20.0, need_wh=9000.0) for evse in evses}
    previous: Mapping[str, Allocation] = {}
    for minute in range(50):
        previous = share(network, evses, sessions, Params(otherwise=FINE), now_s=60.0 * minute, previous=previous)
        assert (previous["e0"].current_a, previous["e1"].current_a) == (10.0, 0.0)
        had_wh = sessions["e0"].delivered_wh + previous["e0"].power_w / 60
        sessions["e0"] = replace(sessions["e0"], delivered_wh=had_wh)


def test_storage_charges_from_what_is_left_and_gives_first() -> None:
    network, evses = on_one_line(3, 40.0)
    watts = float(network.watts_per_a[0])
    sessions = {
        "e0": session("e0", hours=5.0, need_wh=30_000.0),
        "e1": session("e1", discharge_w=5000.0),
        "e2": session("e2", discharge_w=5000.0),
    }
    params = Params(storage=frozenset({"e2"}))
    own: dict[Place, Bound] = {
        ("e0", LimitQuantity.ACTIVE_POWER, None): within(low=0.0),
        ("e1", LimitQuantity.ACTIVE_POWER, None): within(low=-10.0 * watts),
        ("e2", LimitQuantity.ACTIVE_POWER, None): within(low=-10.0 * watts),
    }
    shared = share(network, evses, {"e0": sessions["e0"], "e2": sessions["e2"]}, params, bounds=own)
    assert amps(shared, network) == pytest.approx([32.0, 0.0, 8.0])
    asked = share(network, evses, sessions, params, bounds=own | {SITE_POWER: within(high=-13.0 * watts)})
    assert amps(asked, network) == pytest.approx([0.0, -3.0, -10.0])


def test_what_a_bound_asks_of_storage_at_the_least_does_not_wait() -> None:
    network, evses = on_one_line(1, 40.0)
    params = Params(storage=frozenset({"e0"}), otherwise=Steps(minimum_a=0.0, step_a=0.5))
    own: dict[Place, Bound] = {
        ("e0", LimitQuantity.ACTIVE_POWER, None): within(low=9.8 * float(network.watts_per_a[0]))
    }
    lowered = Allocation("e0", 0.0, 0.0, "", lowered_at_s=990.0)
    for bounds, current_a in (({}, 0.0), (own, 10.0)):
        shared = share(
            network, evses, {"e0": session("e0")}, params, bounds=bounds, previous={"e0": lowered}, now_s=1000.0
        )
        assert shared["e0"].current_a == current_a


def test_a_vehicle_that_comes_does_not_wait_for_storage_that_has_just_begun() -> None:
    network, evses = on_one_line(2, 20.0)
    params = Params(storage=frozenset({"e1"}))
    sessions = {"e1": session("e1")}
    began = share(network, evses, sessions, params, now_s=1000.0)
    assert began["e1"].current_a == 20.0
    shared = share(network, evses, sessions | {"e0": session("e0")}, params, previous=began, now_s=1010.0)
    assert amps(shared, network) == pytest.approx([20.0, 0.0])


def test_no_discharge_where_a_bound_forbids_it() -> None:
    network, evses = on_one_line(1, 40.0)
    sessions = {"e0": session("e0", discharge_w=5000.0)}
    bounds: dict[Place, Bound] = {
        SITE_POWER: within(high=-1000.0),
        ("e0", LimitQuantity.ACTIVE_POWER, None): within(low=0.0, high=5000.0),
    }
    assert share(network, evses, sessions, Params(), bounds=bounds)["e0"].current_a == 0.0


def test_site_power_is_a_limit_of_every_root() -> None:
    network, _ = on_one_line(3, 100.0)
    limits = circuit_limits(network, {SITE_POWER: within(high=4000.0)})
    assert network.fits(np.array([17.3, 0.0, 0.0]), limits)
    assert not network.fits(np.array([17.4, 0.0, 0.0]), limits)


def test_no_session_no_power_and_every_evse_is_told() -> None:
    network, evses = depot(5)
    shared = share(network, evses, {}, Params())
    assert set(shared) == {evse.name for evse in evses}
    assert all(one.current_a == 0 and one.why for one in shared.values())


def shares_by_halving(network: Network, tops: Floats, had: Floats, limits: Floats) -> Floats:
    """Work fair shares out a second, slow way: one level for all, halved until it fits, again and again."""
    currents, rising = np.zeros(len(tops)), tops > 0
    while rising.any():
        low, high = 0.0, float((had + tops).max()) + 1.0
        for _ in range(60):
            middle = (low + high) / 2
            fits = network.fits(np.where(rising, np.clip(middle - had, 0.0, tops), currents), limits)
            low, high = (middle, high) if fits else (low, middle)
        currents = np.where(rising, np.clip(low - had, 0.0, tops), currents)
        full = network.met(network.branch_currents(currents), limits, within=1e-3)[network.branch_of]
        if not (rising & full).any():
            break
        rising &= ~full
    return currents


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.one_of(st.just(0.0), st.floats(0.5, 32.0)), st.floats(0.0, 60.0)), min_size=1, max_size=14),
    st.floats(1.0, 90.0),
)
def test_fair_shares_are_those_found_by_halving(wanted: list[tuple[float, float]], rating_a: float) -> None:
    network, _ = depot(len(wanted), rating_a)
    tops, had = np.array(wanted).T
    shares = fair_shares(network, tops, had, network.limits())
    assert network.fits(shares, network.limits())
    assert shares == pytest.approx(shares_by_halving(network, tops, had, network.limits()), abs=0.01)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([COARSE, FINE, ANY, Steps(minimum_a=6.0, step_a=0.1), Steps()]), st.floats(6.0, 31.0))
def test_less_than_is_useful_comes_to_nothing(steps: Steps, current: float) -> None:
    current = steps.down(current)
    useful = steps.useful_a(current) if current else steps.lowest_a - 2e-6
    assert steps.down(current + useful + 5e-6) > current or current == 32.0
    if steps.step_a or steps.levels_a:
        assert steps.down(current + useful - 1e-6) == pytest.approx(current)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([COARSE, FINE, ANY]), st.integers(2, 9))
def test_no_plan_turns_an_evse_round_more_than_once_in_the_hold(seed: int, steps: Steps, count: int) -> None:
    network, evses = depot(count)
    rng = random.Random(seed)  # noqa: S311
    params = Params(otherwise=steps, hold_s=20.0)
    sessions = {
        evse.name: session(evse.name, hours=None if index % 3 == 0 else 9.0, need_wh=9e6)
        for index, evse in enumerate(evses)
    }
    previous: Mapping[str, Allocation] = {}
    turned: dict[str, list[int]] = {evse.name: [] for evse in evses}
    direction = dict.fromkeys(turned, 0)
    for now in range(150):
        if now % rng.choice([1, 7]) == 0:
            wild = Plan(edges_s=(0.0, 9e3), currents_a={evse.name: (rng.uniform(0, 32),) for evse in evses})
        shared = share(network, evses, sessions, params, now_s=float(now), previous=previous, with_plan=wild)
        assert network.fits(amps(shared, network), network.limits())
        for name, one in shared.items():
            change = one.current_a - previous[name].current_a if previous else 0.0
            if change:
                if direction[name] * change < 0:
                    turned[name].append(now)
                direction[name] = 1 if change > 0 else -1
            sessions[name] = replace(sessions[name], delivered_wh=sessions[name].delivered_wh + one.power_w / 60)
        previous = shared
    assert all(later - sooner >= params.hold_s for places in turned.values() for sooner, later in pairwise(places))
