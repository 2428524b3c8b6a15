# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import cmath
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derms_agent.control.network import Network
from derms_agent.model import Circuit, Connection, Evse, Phase

L1, L2, L3 = Phase
BRANCHES = ((L1, L2), (L2, L3), (L3, L1))


def circuit(
    name: str, parent: str | None, connection: Connection, voltage_v: float, rating_a: float, **more: float
) -> Circuit:
    return Circuit(
        name=name,
        parent=parent,
        connection=connection,
        voltage_v=voltage_v,
        rating_a=(rating_a,) * 3,
        rating_kva=more.get("kva"),
    )


def evse(name: str, at: str, *phases: Phase) -> Evse:
    return Evse(name=name, device=name, connector=1, circuit=at, phases=phases, rating_a=32.0)


def transformer(secondary_a: float = 100.0, primary_a: float = 40.0) -> Network:
    """One EVSE on each branch of the secondary of a delta-wye transformer of four to one."""
    return Network(
        {
            "primary": circuit("primary", None, Connection.DELTA_WYE, 208 * 4 / math.sqrt(3), primary_a),
            "secondary": circuit("secondary", "primary", Connection.DELTA, 208.0, secondary_a),
        },
        [evse(name, "secondary", *phases) for name, phases in zip("xyz", BRANCHES, strict=True)],
    )


def by_hand(x: float, y: float, z: float) -> tuple[list[float], list[float]]:
    """Secondary and primary line currents as the page of the sessions gives them."""
    ab, bc, ca = (cmath.rect(value, math.radians(angle)) for value, angle in ((x, 30), (y, -90), (z, 150)))
    a, b, c = ab - ca, bc - ab, ca - bc
    return [abs(a), abs(b), abs(c)], [abs(a - c) / 4, abs(b - a) / 4, abs(c - b) / 4]


amps = st.floats(0.0, 120.0)


@settings(deadline=None)
@given(amps, amps, amps)
def test_line_currents_are_those_of_the_formulas(x: float, y: float, z: float) -> None:
    loads = transformer().loads_of({"x": x, "y": y, "z": z})
    secondary, primary = by_hand(x, y, z)
    assert loads["secondary"] == pytest.approx(secondary, abs=1e-9)
    assert max(loads["primary"]) == pytest.approx(max(primary), abs=1e-9)


@settings(deadline=None)
@given(st.lists(amps, min_size=3, max_size=3))
def test_what_fits_holds_for_every_subset_of_it(currents: list[float]) -> None:
    network = transformer()
    fits = network.fits(np.array(currents), network.limits())
    subsets = [
        by_hand(*(value * on for value, on in zip(currents, mask, strict=True)))
        for mask in itertools.product((0, 1), repeat=3)
    ]
    over = max(max(max(secondary) - 100, max(primary) - 40) for secondary, primary in subsets)
    if abs(over) > 1e-5:
        assert fits is (over < 0)


def test_a_branch_that_stops_may_raise_a_primary_line() -> None:
    network = transformer(secondary_a=1000.0, primary_a=20.0)
    assert max(by_hand(30.0, 80.0, 0.0)[1]) < 20.0 or max(by_hand(0.0, 80.0, 0.0)[1]) >= 20.0
    together = np.array([40.0, 80.0, 0.0])
    exact = max(network.loads_of({"x": 40.0, "y": 80.0})["primary"])
    assert network.loads(together).max() >= exact


@settings(max_examples=60, deadline=None)
@given(st.lists(amps, min_size=3, max_size=3), st.sampled_from([12, 24, 48]))
def test_inner_polygon_is_inside_and_outer_outside(currents: list[float], facets: int) -> None:
    network = transformer()
    limits = network.limits()
    flows = np.array(currents)
    inner, outer = (network.polygon(limits, inner=side, facets=facets) for side in (True, False))
    branches = network.branch_currents(flows)
    if np.all(inner.coefficients @ branches <= inner.limits):
        assert network.fits(flows, limits)
    secondary, primary = by_hand(*currents)
    if max(secondary) <= 100 and max(primary) <= 40:
        assert np.all(outer.coefficients @ branches <= outer.limits + 1e-6)


@settings(deadline=None)
@given(st.permutations(range(3)), st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3))
def test_room_is_exactly_what_is_left(order: list[int], parts: list[float]) -> None:
    network = transformer()
    limits = network.limits()
    room = network.room(limits)
    currents = np.zeros(3)
    for place, part in zip(order, parts, strict=True):
        left = room.left(place)
        step = np.zeros(3)
        step[place] = left
        assert network.fits(currents + step * 0.9999, limits)
        step[place] = left + 1e-3
        assert not network.fits(currents + step, limits)
        room.take(place, left * part)
        currents[place] += left * part
    assert network.fits(currents, limits)


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 60.0), min_size=3, max_size=3), st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3))
def test_branches_rise_until_the_first_constraint_is_met(sums: list[float], rates: list[float]) -> None:
    network, limits = transformer(), transformer().limits()
    at, rate = np.array(sums), np.array(rates)
    if not network.branches_fit(at, limits) or rate.max() < 1e-3:
        return
    rise = network.rise(at, rate, limits)
    assert network.branches_fit(at + rate * rise * 0.9999, limits)
    assert not network.branches_fit(at + rate * (rise + 1e-2), limits)
    assert network.met(at + rate * rise, limits, within=1e-3)[rate > 0].any()
    assert network.rise(at, np.zeros(3), limits) == math.inf


def test_single_phase_evses_load_their_own_line_of_a_wye_feeder() -> None:
    network = Network(
        {
            "main": circuit("main", None, Connection.WYE, 400.0, 50.0, kva=20.0),
            "feeder": circuit("feeder", "main", Connection.WYE, 400.0, 40.0),
        },
        [evse("one", "feeder", L2), evse("three", "main", L3, L1, L2)],
    )
    assert network.loads_of({"one": 10.0, "three": 5.0}) == {
        "main": pytest.approx((5.0, 15.0, 5.0)),
        "feeder": pytest.approx((0.0, 10.0, 0.0)),
    }
    limits = network.limits()
    assert network.fits(np.array([40.0, 10.0]), limits)
    assert not network.fits(np.array([40.0, 10.1]), limits)
    # 3 · 230.9 V · 28.87 A = 20 kVA
    assert network.fits(np.array([0.0, 28.86]), limits)
    assert not network.fits(np.array([0.0, 28.88]), limits)


def test_a_delta_load_on_one_phase_goes_back_through_the_next() -> None:
    network = Network({"main": circuit("main", None, Connection.DELTA, 230.0, 50.0)}, [evse("one", "main", L3)])
    assert network.loads_of({"one": 10.0})["main"] == pytest.approx((10.0, 0.0, 10.0))
    assert network.watts_per_a[0] == pytest.approx(230.0)


def test_discharge_makes_no_room() -> None:
    network = Network(
        {"main": circuit("main", None, Connection.WYE, 400.0, 30.0)},
        [evse("one", "main", L1), evse("two", "main", L1)],
    )
    limits = network.limits()
    assert network.fits(np.array([30.0, -30.0]), limits)
    assert not network.fits(np.array([31.0, -30.0]), limits)
    assert not network.fits(np.array([0.0, -31.0]), limits)


def test_a_lower_limit_holds_and_a_higher_does_not_lift_the_rating() -> None:
    network = Network({"main": circuit("main", None, Connection.WYE, 400.0, 30.0)}, [evse("one", "main", L1)])
    assert network.fits(np.array([20.0]), network.limits({("main", L1): 20.0}))
    assert not network.fits(np.array([20.1]), network.limits({("main", L1): 20.0}))
    assert not network.fits(np.array([30.1]), network.limits({("main", L1): 90.0}))
    assert not network.fits(np.array([0.1]), network.limits({("main", L1): -5.0}))


def test_unlike_ratings_of_a_transformers_lines_hold_for_either_vector_group() -> None:
    network = Network(
        {
            "primary": Circuit(
                name="primary",
                parent=None,
                connection=Connection.DELTA_WYE,
                voltage_v=400.0,
                rating_a=(10.0, 50.0, 50.0),
            ),
            "secondary": circuit("secondary", "primary", Connection.WYE, 400.0, 100.0),
        },
        [evse(line.value, "secondary", line) for line in Phase],
    )
    for place in (1, 2):
        # Whichever of L2 and L3 meets L1's winding in the first line, the line carries 1/√3 of it.
        currents = np.zeros(3)
        currents[place] = 10.0 * math.sqrt(3) + 0.1
        assert not network.fits(currents, network.limits())
