# SPDX-License-Identifier: Apache-2.0
"""The end of a demand interval is no spurt, and a wall's clock that was stepped is not believed for a whole one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derms_agent.control import demand
from derms_agent.control.demand import Cap, Sample, Samples, Windows

CAP = Cap(cap_w=60_000.0, windows=Windows.ALIGNED)
AIM_W = CAP.cap_w * (1 - CAP.spare)


@given(drawn=st.floats(0, 1), at_s=st.floats(1, 899))
def test_what_an_interval_has_saved_is_spread_over_a_tenth_of_one_at_least(drawn: float, at_s: float) -> None:
    """Else all of it would flow in the last second, and stop with it."""
    samples = Samples((Sample(0.0, 0.0), Sample(at_s, drawn * AIM_W * at_s / 3600)))
    allowed_w = demand.allowed_w(CAP, samples, at_s, 1e6, 0.0)
    saved_ws = (1 - drawn) * AIM_W * at_s
    assert allowed_w == pytest.approx(AIM_W + saved_ws / max(900.0 - at_s, 90.0), rel=1e-6)
    assert drawn * AIM_W * at_s + allowed_w * (900.0 - at_s) <= CAP.cap_w * 900.0 * (1 + 1e-9)


@pytest.mark.parametrize("step_s", [-3600.0, -1.5, 1.5, 7.0, 86_400.0])
def test_a_clock_that_was_stepped_is_believed_again_after_a_whole_interval_and_no_sooner(step_s: float) -> None:
    wall = demand.looked(None, 100.0, 0.0)
    assert wall.steady(CAP, 0.0)
    wall = demand.looked(wall, 100.4, 1000.0)  # slewed
    assert wall.steady(CAP, 1000.0)
    wall = demand.looked(wall, 100.0 + step_s, 2000.0)
    for later_s in (0.0, 1.0, 450.0, 899.9):
        wall = demand.looked(wall, 100.0 + step_s, 2000.0 + later_s)
        assert not wall.steady(CAP, 2000.0 + later_s)
    assert wall.steady(CAP, 2900.0)
    begin_s = wall.begin_s(CAP, 2900.0)
    assert (begin_s + 100.0 + step_s) % 900.0 == pytest.approx(0.0, abs=1e-6)
    assert begin_s <= 2900.0 < begin_s + 900.0
