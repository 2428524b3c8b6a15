# SPDX-License-Identifier: Apache-2.0
"""What is asked of a whole site, and what a circuit can carry in VA, holds with the base load beside the EVSEs."""

from __future__ import annotations

import cmath
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derms_agent.control import limits
from derms_agent.control.limits import Ask, BaseLoad, Tariff
from derms_agent.model import Circuit, Connection, LimitQuantity, Rank

RATING_KVA = 100.0


def measured(low_w: float, high_w: float, reactive_var: float = 0.0) -> BaseLoad:
    return BaseLoad(
        circuit="main",
        source="measured",
        low_a=limits.NO_FLOW,
        high_a=limits.NO_FLOW,
        low_w=low_w,
        high_w=high_w,
        reactive_var=reactive_var,
        apparent_va=None,
    )


@given(
    base_w=st.floats(-80_000, 80_000),
    low_w=st.floats(-90_000, 90_000),
    span_w=st.floats(0, 90_000),
    share=st.floats(0, 1),
    rank=st.sampled_from([Rank.GRID, Rank.OPERATOR, Rank.PRICE]),
)
def test_a_site_whose_evses_keep_what_an_ask_leaves_them_keeps_the_ask_on_import_and_on_export(
    base_w: float, low_w: float, span_w: float, share: float, rank: Rank
) -> None:
    """As long as the base load alone does: EVSEs need not take what it feeds in, nor give back what it draws."""
    low_w, high_w = min(low_w, 0.0), max(low_w + span_w, 0.0)
    found = limits.asked(Ask(source="ask", low_w=low_w, high_w=high_w), rank, measured(min(base_w, 0), max(base_w, 0)))
    evses_w = found.low + share * (found.high - found.low)
    assert min(low_w, base_w) - 1e-6 <= base_w + evses_w <= max(high_w, base_w) + 1e-6
    # And no more is taken off than that: at its end, an ask is used up.
    if low_w <= base_w <= high_w:
        assert base_w + found.high == pytest.approx(high_w if base_w >= 0 else high_w + base_w)
        assert base_w + found.low == pytest.approx(low_w if base_w <= 0 else low_w + base_w)


@given(
    base=st.tuples(st.floats(0, 70_000), st.floats(0, 70_000)),
    backwards=st.booleans(),
    share=st.floats(0, 1),
    angle=st.floats(-math.pi, math.pi),
)
def test_what_evses_take_at_any_angle_beside_a_measured_load_is_within_a_circuits_kva(
    base: tuple[float, float], backwards: bool, share: float, angle: float
) -> None:
    active_w, reactive_var = base
    load = measured(-active_w, 0.0, reactive_var) if backwards else measured(0.0, active_w, reactive_var)
    circuit = Circuit(
        name="main",
        parent=None,
        connection=Connection.WYE,
        voltage_v=400.0,
        rating_a=(250.0,) * 3,
        rating_kva=RATING_KVA,
    )
    (found,) = (
        one
        for one in limits.circuits({"main": circuit}, {"main": load})
        if one.quantity is LimitQuantity.APPARENT_POWER
    )
    flow = complex(-active_w if backwards else active_w, reactive_var)
    together = abs(flow + cmath.rect(share * found.high, angle))
    assert together <= max(RATING_KVA * 1000, abs(flow)) + 1e-6
    assert found.high == pytest.approx(max(RATING_KVA * 1000 - abs(flow), 0.0))


@pytest.mark.parametrize(("per_kwh", "holds"), [(0.399, False), (0.4, True), (0.41, True)])
def test_a_price_is_dear_from_the_very_price_on_that_is_said_to_be(per_kwh: float, holds: bool) -> None:
    period = Tariff(per_kwh=per_kwh, start_s=0.0, end_s=10.0)
    found = limits.price([period], measured(0.0, 0.0), dear_per_kwh=0.4, dear_w=5000.0)
    assert len(found) == holds
