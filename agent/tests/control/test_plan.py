# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derms_agent.control.network import Network
from derms_agent.control.plan import Need, Outlook, plan, slices
from derms_agent.model import Circuit, Connection, Evse, Phase

HOUR_S = 3600.0
LINES = tuple(Phase)


def depot(count: int, rating_a: float) -> Network:
    return Network(
        {
            "main": Circuit(
                name="main", parent=None, connection=Connection.WYE, voltage_v=400.0, rating_a=(rating_a,) * 3
            )
        },
        [
            Evse(
                name=f"e{index}",
                device=f"e{index}",
                connector=1,
                circuit="main",
                phases=(LINES[index % 3],),
                rating_a=32.0,
            )
            for index in range(count)
        ],
    )


def need(index: int, charge_ah: float, hours: float, most_a: float = 32.0) -> Need:
    return Need(evse=f"e{index}", charge_as=charge_ah * HOUR_S, departure_at_s=hours * HOUR_S, most_a=most_a)


def nothing(network: Network) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.zeros(len(network.evses))


def test_who_leaves_first_is_charged_first() -> None:
    network = depot(4, 20.0)
    # e0 and e3 are on the same line: 20 Ah until hour 1, and 40 Ah until hour 3, at 20 A.
    found = plan(
        network, [need(0, 20, 1), need(3, 40, 3)], network.limits(), nothing(network), now_s=0.0, outlook=Outlook()
    )
    assert found is not None
    assert found.charge_as("e0", 0.0, HOUR_S) == pytest.approx(20 * HOUR_S)
    assert found.charge_as("e3", HOUR_S, 3 * HOUR_S) == pytest.approx(40 * HOUR_S)


def test_what_is_reserved_is_left_alone() -> None:
    network = depot(4, 20.0)
    reserved = np.array([0.0, 0.0, 0.0, 12.0])
    found = plan(network, [need(0, 100, 2)], network.limits(), reserved, now_s=0.0, outlook=Outlook())
    assert found is not None
    assert found.current_a("e0", 10.0) == pytest.approx(8.0)


def test_nothing_to_plan() -> None:
    network = depot(2, 20.0)
    found = plan(
        network, [need(0, 0, 2), need(1, 5, -1)], network.limits(), nothing(network), now_s=0.0, outlook=Outlook()
    )
    assert found is not None
    assert found.current_a("e0", 0.0) == 0.0


def test_a_plan_that_takes_too_long_is_none() -> None:
    network = depot(90, 20.0)
    wanted = [need(index, 30 + index, 1 + index / 7) for index in range(90)]
    assert (
        plan(network, wanted, network.limits(), nothing(network), now_s=0.0, outlook=Outlook(time_limit_s=0.0)) is None
    )


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.1, 60.0), st.floats(0.1, 12.0), st.floats(0.0, 32.0)), min_size=1, max_size=9),
    st.floats(0.0, 60.0),
)
def test_a_plan_fits_at_every_time_and_gives_no_more_than_is_needed(
    wanted: list[tuple[float, float, float]], rating_a: float
) -> None:
    network = depot(len(wanted), rating_a)
    needs = [need(index, *one) for index, one in enumerate(wanted)]
    found = plan(network, needs, network.limits(), nothing(network), now_s=0.0, outlook=Outlook())
    assert found is not None
    for edge in found.edges_s[:-1]:
        currents = np.array([found.current_a(name, edge) for name in network.evses])
        assert network.fits(currents * (1 - 1e-6), network.limits())
    for one in needs:
        assert found.charge_as(one.evse, 0.0, 1e9) <= one.charge_as * (1 + 1e-6) + 1
        assert found.current_a(one.evse, 0.0) <= one.most_a + 1e-6
        assert found.current_a(one.evse, one.departure_at_s + 1) < 1e-6


def test_slices_are_thinned_for_large_fleets_and_reach_the_last_departure() -> None:
    needs = [need(0, 1, 1 + index / 50) for index in range(500)]
    edges = slices(needs, 0.0, Outlook(variables=5_000))
    assert edges[0] == 0.0
    assert edges[-1] == needs[-1].departure_at_s
    assert len(edges) <= 12
