# SPDX-License-Identifier: Apache-2.0
"""The demand cap: a site that obeys never has a mean above it, whatever the meter and the cycles do."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derms_agent.control import demand
from derms_agent.control.demand import Cap, Sample, Samples, Windows
from derms_agent.control.limits import NO_FLOW, SITE, BaseLoad, combine
from derms_agent.model import Limit, LimitQuantity, Rank
from derms_agent.profiles.profile import ASSUMED_STEP_WH

CAP_W = 100_000.0
ALIGNED = Cap(cap_w=CAP_W, windows=Windows.ALIGNED)
SLIDING = Cap(cap_w=CAP_W)
NO_BASE = BaseLoad(
    circuit="main", source="none", low_a=NO_FLOW, high_a=NO_FLOW, low_w=0, high_w=0, reactive_var=0, apparent_va=None
)


def run(
    cap: Cap, seed: int, most_w: float, obeyed: float, step_wh: float = 0.0, *, declared: bool = True
) -> tuple[list[float], float]:
    """Return a site's power, second by second for an hour, and its largest demand.

    It draws what it is allowed, or a random part of that, up to `most_w`; `obeyed` is how often it draws all. Its meter
    is read, and its limit worked out, at random moments; in between the last limits hold by their own times. The first
    quarter's limit is not obeyed in any way: nothing is measured before the agent starts, at a random second. The
    register counts in steps, which its profile tells where they are `declared`.
    """
    rng = random.Random(seed)  # noqa: S311
    samples, energy_ws = Samples(), 0.0
    start_s = rng.randrange(900)
    powers: list[float] = [rng.uniform(0, CAP_W)] * start_s
    energy_ws = sum(powers)
    next_s, in_force_w, since_read_w = start_s, CAP_W, CAP_W
    limits: tuple[Limit, ...] = ()
    for now_s in range(start_s, 3600):
        begin_s = now_s // 900 * 900
        if now_s == next_s:
            if rng.random() < 0.8:
                wh = energy_ws / 3600
                shown_wh = wh // step_wh * step_wh if step_wh else wh
                samples = demand.add(samples, Sample(float(now_s), shown_wh), cap)
                since_read_w = in_force_w
            unmeasured_w = max(since_read_w, CAP_W)
            counted_wh = step_wh
            if not declared:
                counted_wh = ASSUMED_STEP_WH if samples.rise_wh is None else samples.rise_wh
            limits = demand.limits(
                cap,
                samples,
                NO_BASE,
                float(now_s),
                unmeasured_w=unmeasured_w,
                window_begin_s=float(begin_s),
                step_wh=counted_wh,
            )
            next_s = now_s + rng.choice([1, 1, 1, 2, 5, 30])
        in_force_w = combine(limits, float(now_s))[SITE, LimitQuantity.ACTIVE_POWER, None].high
        since_read_w = max(since_read_w, in_force_w)
        drawn_w = min(in_force_w, most_w) * (1.0 if rng.random() < obeyed else rng.random())
        powers.append(drawn_w)
        energy_ws += drawn_w
    sums = [0.0]
    for power in powers:
        sums.append(sums[-1] + power)
    step = 900 if cap.windows is Windows.ALIGNED else 1
    means = [(sums[begin + 900] - sums[begin]) / 900 for begin in range(0, 2701, step)]
    return powers, max(means)


@settings(max_examples=25, deadline=None)
@given(
    windows=st.sampled_from(Windows),
    seed=st.integers(0, 2**32),
    most_w=st.floats(CAP_W / 2, 10 * CAP_W),
    obeyed=st.sampled_from([0.1, 0.9, 1.0]),
)
def test_a_site_that_obeys_never_exceeds_the_cap(windows: Windows, seed: int, most_w: float, obeyed: float) -> None:
    _, peak_w = run(Cap(cap_w=CAP_W, windows=windows), seed, most_w, obeyed)
    assert peak_w <= CAP_W * (1 + 1e-9)


@settings(max_examples=25, deadline=None)
@given(
    windows=st.sampled_from(Windows),
    seed=st.integers(0, 2**32),
    step_wh=st.sampled_from([1.0, 10.0, 100.0, 1000.0, 5000.0]),
    declared=st.booleans(),
    obeyed=st.sampled_from([0.9, 1.0]),
)
def test_a_register_that_counts_in_steps_hides_nothing(
    windows: Windows, seed: int, step_wh: float, declared: bool, obeyed: float
) -> None:
    # What nobody told is assumed until the first rise; a coarser register than that has to be declared.
    told = declared or step_wh > ASSUMED_STEP_WH
    _, peak_w = run(Cap(cap_w=CAP_W, windows=windows), seed, 10 * CAP_W, obeyed, step_wh, declared=told)
    assert peak_w <= CAP_W * (1 + 1e-9)


@pytest.mark.parametrize("windows", Windows)
def test_a_step_of_the_register_is_used_up_once(windows: Windows) -> None:
    cap = Cap(cap_w=CAP_W, windows=windows)
    samples = Samples(tuple(Sample(100.0 * at, at // 2 * 1000.0) for at in range(9)))
    without = demand.used_ws(samples.kept, 0.0, 800.0, CAP_W)
    assert demand.used_ws(samples.kept, 0.0, 800.0, CAP_W, 3.6e6) == without + 3.6e6
    allowed_w = [demand.allowed_w(cap, samples, 800.0, CAP_W, 0.0, step_wh) for step_wh in (0.0, 1000.0, 30_000.0)]
    assert allowed_w == sorted(allowed_w, reverse=True)
    assert allowed_w[-1] == 0.0
    # One reading alone says nothing that a step could hide.
    assert demand.used_ws(samples.kept[:1], 0.0, 800.0, CAP_W, 3.6e6) == CAP_W * 800


def test_the_least_rise_is_no_less_than_a_step() -> None:
    samples = Samples()
    for second, wh in enumerate((5.0, 5.0, 7.0, 7.0, 8.0, 12.0, 12.0)):
        samples = demand.add(samples, Sample(float(second), wh), SLIDING)
    assert samples.rise_wh == 1.0
    assert demand.add(samples, Sample(10.0, 0.0), SLIDING).rise_wh is None


@pytest.mark.parametrize("windows", Windows)
def test_little_is_wasted(windows: Windows) -> None:
    powers, _ = run(Cap(cap_w=CAP_W, windows=windows), 3, 10 * CAP_W, 1.0)
    assert sum(powers[1800:]) / 1800 > 0.95 * CAP_W
    steady = powers[1800:]
    assert max(abs(after - before) for before, after in pairwise(steady)) < 0.25 * CAP_W


def test_aligned_gives_what_was_saved() -> None:
    samples = Samples((Sample(0.0, 0.0), Sample(600.0, 0.0)))
    allowed_w = demand.allowed_w(ALIGNED, samples, 600.0, CAP_W, 0.0)
    assert allowed_w == pytest.approx(0.98 * CAP_W * 900 / 300)
    assert demand.allowed_w(SLIDING, samples, 600.0, CAP_W, None) == pytest.approx(0.98 * CAP_W)


def test_aligned_goes_back_to_the_cap_at_the_seam_without_a_cycle() -> None:
    samples = Samples((Sample(0.0, 0.0), Sample(600.0, 0.0)))
    limits = demand.limits(ALIGNED, samples, NO_BASE, 600.0, unmeasured_w=CAP_W, window_begin_s=0.0)
    highs = [
        combine(limits, now_s)[SITE, LimitQuantity.ACTIVE_POWER, None].high for now_s in (600.0, 899.9, 900.0, 5e3)
    ]
    assert highs == pytest.approx([2.94 * CAP_W, 2.94 * CAP_W, CAP_W, CAP_W])
    assert {limit.rank for limit in limits} == {Rank.OPERATOR}


def test_what_was_overdrawn_is_taken_back() -> None:
    # Twice the cap for five minutes: 10 of the interval's 15 minutes are used up.
    samples = Samples((Sample(0.0, 0.0), Sample(300.0, 2 * CAP_W * 300 / 3600)))
    assert demand.allowed_w(ALIGNED, samples, 300.0, CAP_W, 0.0) == pytest.approx((0.98 * 900 - 600) / 600 * CAP_W)
    spent = Samples((Sample(0.0, 0.0), Sample(300.0, 3.1 * CAP_W * 300 / 3600)))
    assert demand.allowed_w(ALIGNED, spent, 300.0, CAP_W, 0.0) == 0
    assert demand.allowed_w(SLIDING, spent, 900.0, CAP_W, None) == 0


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.tuples(st.floats(10, 300), st.floats(0, 1.5 * CAP_W)), min_size=1, max_size=12),
    unmeasured_w=st.floats(CAP_W, 3 * CAP_W),
    silent_s=st.floats(0, 20),
)
def test_sliding_gives_the_most_that_no_later_stretch_forbids(
    parts: list[tuple[float, float]], unmeasured_w: float, silent_s: float
) -> None:
    kept = [Sample(0.0, 0.0)]
    for span_s, watts in parts:
        kept.append(Sample(kept[-1].at_s + span_s, kept[-1].import_wh + watts * span_s / 3600))
    now_s = kept[-1].at_s + silent_s
    allowed_w = demand.allowed_w(SLIDING, Samples(tuple(kept)), now_s, unmeasured_w, None)
    least_w = 0.98 * CAP_W
    for ahead_s in range(1, 901):
        used = demand.used_ws(kept, now_s - 900 + ahead_s, now_s, unmeasured_w)
        least_w = min(least_w, (900 * CAP_W - used) / ahead_s)
    assert allowed_w <= max(least_w, 0.0) + 1e-6
    # The steps of a second hide little; sooner than the first of them, only nothing may be safe.
    assert allowed_w >= least_w - 0.05 * CAP_W or demand.used_ws(kept, now_s - 899, now_s, unmeasured_w) > 898 * CAP_W


def test_a_stretch_above_the_cap_is_paid_back_while_it_is_in_sight() -> None:
    # 0.5 C for 300 s, then 1.2 C for 600 s: 870 of 900 are used, and what leaves first leaves slowly.
    wh = [min(second, 300) * 0.5 * CAP_W / 3600 + max(second - 300, 0) * 1.2 * CAP_W / 3600 for second in range(901)]
    kept = tuple(Sample(float(second), reading) for second, reading in enumerate(wh))
    # In 300 s the stretch holds all 720 and what comes until then: (900 - 720) / 300.
    assert demand.allowed_w(SLIDING, Samples(kept), 900.0, 1.2 * CAP_W, None) == pytest.approx(0.6 * CAP_W, rel=0.01)
    # With readings far apart, the 150 of the first 300 s may all lie at their end: (900 - 870) / 175.
    apart = Samples((kept[0], kept[300], kept[900]))
    assert demand.allowed_w(SLIDING, apart, 900.0, 1.2 * CAP_W, None) == pytest.approx(CAP_W * 30 / 175)


def test_what_nobody_measured_counts_as_most() -> None:
    # Started in the middle of an interval: the time before may have gone at 150 kW.
    begun = Samples((Sample(300.0, 5000.0),))
    assert demand.allowed_w(ALIGNED, begun, 300.0, 150_000.0, 0.0) == pytest.approx((0.98 * 900 - 450) / 600 * CAP_W)
    assert demand.allowed_w(ALIGNED, Samples(), 300.0, 150_000.0, 0.0) == pytest.approx(
        (0.98 * 900 - 450) / 600 * CAP_W
    )
    # A meter that has been silent for 100 s.
    silent = Samples((Sample(0.0, 0.0), Sample(200.0, 0.0)))
    assert demand.allowed_w(ALIGNED, silent, 300.0, 150_000.0, 0.0) == pytest.approx((0.98 * 900 - 150) / 600 * CAP_W)


def test_a_reading_that_straddles_the_begin_counts_as_little_as_is_safe() -> None:
    # 1 kWh in the 100 s around the begin: all of it may lie after it (36 kW would not explain more than 60 s of 100).
    around = [Sample(-40.0, 0.0), Sample(60.0, 1000.0)]
    assert demand.used_ws(around, 0.0, 60.0, 150_000.0) == pytest.approx(3_600_000)
    assert demand.used_ws(around, 0.0, 60.0, 40_000.0) == pytest.approx(40_000 * 60)
    # The register says more than was thought possible: its own mean counts.
    assert demand.used_ws(around, 0.0, 60.0, 10_000.0) == pytest.approx(36_000 * 60)


def test_readings_are_few_and_cover_the_window() -> None:
    samples = Samples()
    for second in range(4000):
        samples = demand.add(samples, Sample(float(second), second * 20.0), SLIDING)
    assert len(samples.kept) < 110
    assert samples.kept[0].at_s <= 3999 - 900 < samples.kept[1].at_s
    assert samples.kept[-1].at_s == 3999
    assert demand.used_ws(samples.kept, 3099.0, 3999.0, 72_000.0) == pytest.approx(900 * 72_000)


def test_a_register_that_ran_backwards_was_replaced() -> None:
    samples = Samples((Sample(0.0, 5000.0), Sample(10.0, 5100.0)))
    assert demand.add(samples, Sample(20.0, 3.0), SLIDING).kept == (Sample(20.0, 3.0),)
    assert demand.add(samples, Sample(10.0, 5100.0), SLIDING) == samples
    assert demand.add(samples, Sample(9.0, 3.0), SLIDING) == samples


def test_the_base_load_comes_off() -> None:
    base = BaseLoad(
        circuit="main",
        source="b",
        low_a=NO_FLOW,
        high_a=NO_FLOW,
        low_w=0,
        high_w=60_000.0,
        reactive_var=0,
        apparent_va=None,
    )
    (limit,) = demand.limits(SLIDING, Samples((Sample(0.0, 0.0), Sample(900.0, 0.0))), base, 900.0, unmeasured_w=CAP_W)
    assert limit.low == -math.inf
    assert limit.high == pytest.approx(38_000.0)


def test_a_begin_that_does_not_hold_now_is_refused() -> None:
    for begin_s in (None, 1.0, -900.0):
        with pytest.raises(ValueError, match="begin of the interval"):
            demand.allowed_w(ALIGNED, Samples(), 0.0, CAP_W, begin_s)
    with pytest.raises(ValueError, match="cap of 0 or more"):
        Cap(cap_w=-1.0)
