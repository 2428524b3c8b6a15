# SPDX-License-Identifier: Apache-2.0
"""Over- and under-frequency have a deadband and a slope of their own each (IEEE 1547-2018, 6.5.2.7)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derms_agent.control.droop import FULL_SWING, Settings, shift


@given(
    nominal_hz=st.sampled_from([50.0, 60.0]),
    deadbands=st.tuples(st.floats(0.017, 1.0), st.floats(0.017, 1.0)),
    ks=st.tuples(st.floats(0.02, 0.05), st.floats(0.02, 0.05)),
    beyond_hz=st.floats(0.0, 2.0),
)
def test_each_side_goes_by_its_own_deadband_and_its_own_k(
    nominal_hz: float, deadbands: tuple[float, float], ks: tuple[float, float], beyond_hz: float
) -> None:
    settings = Settings(
        nominal_hz=nominal_hz, deadband_of_hz=deadbands[0], deadband_uf_hz=deadbands[1], k_of=ks[0], k_uf=ks[1]
    )
    over, under = (min(beyond_hz / (nominal_hz * k), FULL_SWING) for k in ks)
    assert shift(settings, nominal_hz + deadbands[0] + beyond_hz) == pytest.approx(over, abs=1e-9)
    assert shift(settings, nominal_hz - deadbands[1] - beyond_hz) == pytest.approx(-under, abs=1e-9)
    assert shift(settings, nominal_hz + deadbands[0] * 0.999) == 0.0
    assert shift(settings, nominal_hz - deadbands[1] * 0.999) == 0.0
