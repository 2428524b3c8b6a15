# SPDX-License-Identifier: Apache-2.0
"""One state for page, LED and log: every combination, by the order that is stated."""

from __future__ import annotations

import math
from itertools import product

import pytest

from derms_agent.control import state
from derms_agent.control.limits import Bound
from derms_agent.control.state import Grid, Held, Known, Resource
from derms_agent.model import Limit, LimitQuantity, OperatingState, Rank

ORDER = (
    OperatingState.FAULT,
    OperatingState.NO_GRID_SYNC,
    OperatingState.FALLBACK,
    OperatingState.RESOURCE_CONSTRAINTS,
    OperatingState.SHEDDING,
    OperatingState.LIMITED,
    OperatingState.NORMAL,
)


def test_every_combination_shows_the_first_that_is_true() -> None:
    seen = set()
    for fault, sync, fallback, amber, shed, *held in product((False, True), repeat=5 + len(Rank)):
        known = Known(
            faults=("evse-3 draws more than its limit",) if fault else (),
            out_of_sync="the grid's frequency is 57.10 Hz" if sync else None,
            fallback="the grid's link is lost" if fallback else None,
            constrained="the fleet is hot" if amber else None,
            shedding=("event 7",) if shed else (),
            held=tuple(Held(rank.name, rank) for rank, is_held in zip(Rank, held, strict=True) if is_held),
        )
        by_grid = held[Rank.GRID] or held[Rank.DROOP]
        true = (fault, sync, fallback, amber, shed or by_grid, any(held), True)
        expected = next(name for name, is_true in zip(ORDER, true, strict=True) if is_true)
        shown = state.shown(known)
        assert shown.state is expected
        assert shown.reason
        seen.add(shown.state)
    assert seen == set(OperatingState) == set(ORDER)


@pytest.mark.parametrize(
    ("known", "expected", "reason"),
    [
        (Known(faults=("a", "b", "a"), constrained="c"), OperatingState.FAULT, "a; b"),
        (Known(shedding=("event 7",), held=(Held("droop", Rank.DROOP),)), OperatingState.SHEDDING, "event 7; droop"),
        (Known(held=(Held("circuit main", Rank.PROTECTION),)), OperatingState.LIMITED, "circuit main"),
        (Known(), OperatingState.NORMAL, "no limit holds anything back"),
    ],
)
def test_the_reason_is_that_of_the_state(known: Known, expected: OperatingState, reason: str) -> None:
    assert state.shown(known) == state.Shown(expected, reason)


@pytest.mark.parametrize(
    ("frequency_hz", "voltage_share", "required", "expected"),
    [
        (60.0, 1.0, True, None),
        (58.8, 0.88, True, None),
        (61.2, 1.1, True, None),
        (58.79, 1.0, True, "the grid's frequency is 58.79 Hz"),
        (61.21, 1.0, False, "the grid's frequency is 61.21 Hz"),
        (math.nan, 1.0, True, "the grid's frequency is nan Hz"),
        (60.0, 0.87, True, "the grid's voltage is 87 % of nominal"),
        (60.0, 1.11, False, "the grid's voltage is 111 % of nominal"),
        (None, 1.0, True, "the grid's frequency is not known"),
        (60.0, None, True, "the grid's voltage is not known"),
        (None, None, False, None),
    ],
)
def test_out_of_sync(
    frequency_hz: float | None, voltage_share: float | None, required: bool, expected: str | None
) -> None:
    assert (
        state.out_of_sync(Grid(frequency_hz=frequency_hz, voltage_share=voltage_share, required=required)) == expected
    )


def resource(name: str, wanted_w: float, low_w: float, high_w: float) -> Resource:
    limit = Limit(
        target=name,
        quantity=LimitQuantity.ACTIVE_POWER,
        low=low_w,
        high=high_w,
        source=f"battery of {name}",
        rank=Rank.THERMAL_AND_SOC,
    )
    return Resource(name=name, wanted_w=wanted_w, bound=Bound(low_w, high_w, limit, limit))


def test_the_fleet_is_constrained_when_together_it_cannot() -> None:
    hot, cool = resource("hot", 10_000, -1000, 1000), resource("cool", 10_000, -50_000, 50_000)
    assert state.constrained([]) is None
    assert state.constrained([hot, cool]) is None
    assert state.constrained([hot]) == "the fleet can take 1.0 kW of 10.0: hot (battery of hot)"
    empty = resource("empty", -10_000, 0, math.inf)
    assert state.constrained([empty]) == "the fleet can give 0.0 kW of 10.0: empty (battery of empty)"
    assert state.constrained([empty, resource("full", 0, -20_000, math.inf)]) is None
