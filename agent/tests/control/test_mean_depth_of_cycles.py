# SPDX-License-Identifier: Apache-2.0
"""The mean depth that is reported of a battery is over its cycles, and not over the depths that occurred."""

from __future__ import annotations

import pytest

from derms_agent.control import cycles
from derms_agent.control.cycles import Counted


def test_the_mean_depth_is_over_cycles_half_ones_included() -> None:
    counted = Counted()
    for percent in [80.0, *[70.0, 80.0] * 6, 20.0, 80.0]:
        counted = cycles.count(counted, percent)
    report = cycles.report(counted)
    assert report.by_depth == {10: pytest.approx(6), 60: pytest.approx(1)}
    assert report.mean_depth_percent == pytest.approx((6 * 10 + 60) / 7)
    assert report.deepest_percent == pytest.approx(60)
    assert report.equivalent_full_cycles == pytest.approx((6 * 10 + 60) / 100)
