# SPDX-License-Identifier: Apache-2.0
"""What an offset in percent comes to, whichever way a VTN writes a percentage."""

from __future__ import annotations

import pytest
from agent.tests.grid_gateway.test_events import BASELINE_W, HOUR, NOW, at, bounds, dispatch, event, held
from hypothesis import given
from hypothesis import strategies as st


def offset_w(value: float) -> float | None:
    """Return what a percent offset bounds the site to."""
    offset = dispatch(value, "x-loadControlPercentOffset", None, "LOAD_CONTROL")
    return at(bounds(held(event("e1", offset))), NOW + HOUR)


@pytest.mark.parametrize(
    ("value", "share"),
    [(-100, 0.0), (-20, 0.8), (-1.5, 0.985), (-1, 0.0), (-0.2, 0.8), (0, 1.0), (0.2, 1.002), (1, 1.01), (20, 1.2)],
)
def test_a_percent_offset_that_may_be_meant_either_way_is_what_leaves_less_to_draw(value: float, share: float) -> None:
    assert offset_w(value) == pytest.approx(share * BASELINE_W)


@given(st.floats(-1.0, 1.0))
def test_a_percent_offset_up_to_one_is_kept_in_both_readings(value: float) -> None:
    high_w = offset_w(value)

    assert high_w is not None
    assert high_w <= BASELINE_W * (1.0 + value / 100.0)
    assert high_w <= BASELINE_W * (1.0 + value)
