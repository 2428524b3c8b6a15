# SPDX-License-Identifier: Apache-2.0
"""Limits from their sources, and how they meet."""

from __future__ import annotations

import cmath
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derms_agent.control import limits
from derms_agent.control.limits import Ask, BaseLoad, Metered, Ramp, Tariff, combine
from derms_agent.model import (
    Circuit,
    Connection,
    Evse,
    Limit,
    LimitQuantity,
    Phase,
    Quality,
    Rank,
    Session,
)

ACTIVE, CURRENT, APPARENT = LimitQuantity.ACTIVE_POWER, LimitQuantity.CURRENT, LimitQuantity.APPARENT_POWER
VOLTS = 400 / math.sqrt(3)


def limit(low: float, high: float, rank: Rank, source: str = "", **changes: object) -> Limit:
    plain = Limit(
        target="t", quantity=ACTIVE, low=low, high=high, rank=rank, source=source or f"{rank.name} {low} {high}"
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def met(*found: Limit, now_s: float = 0.0) -> limits.Bound:
    return combine(found, now_s)["t", ACTIVE, None]


# --- combine ----------------------------------------------------------------------------------------------------------


def test_an_evses_range_is_what_each_kind_of_bound_leaves_it_and_apparent_power_is_for_both_directions() -> None:
    on_one = limits.Target(
        {
            ("e", APPARENT, None): limits.Bound(0.0, 2300.0),
            ("e", CURRENT, Phase.L2): limits.Bound(-1.0, 1.0),
            ("e", ACTIVE, None): limits.Bound(-1150.0, 4600.0),
        }
    )
    assert on_one.range_a((Phase.L1,), 230.0) == pytest.approx((-5.0, 10.0))
    assert on_one.range_a((Phase.L1, Phase.L2), 460.0) == pytest.approx((-1.0, 1.0))
    assert limits.Target({("e", APPARENT, None): limits.Bound(0.0, 2300.0)}).range_a((Phase.L1,), 230.0) == (
        -10.0,
        10.0,
    )


@pytest.mark.parametrize("watts", [-20_000.0, 20_000.0])
@pytest.mark.parametrize("apparent_va", [None, 20_000.0])
def test_a_base_load_above_the_sites_limit_leaves_nothing_and_asks_for_nothing(
    watts: float, apparent_va: float | None
) -> None:
    base = BaseLoad(
        circuit="main",
        source="base load",
        low_a=limits.NO_FLOW,
        high_a=limits.NO_FLOW,
        low_w=min(watts, 0.0),
        high_w=max(watts, 0.0),
        reactive_var=0.0,
        apparent_va=apparent_va,
    )
    (found,) = limits.site(10_000.0, base)
    side_w = found.high if watts > 0 else found.low
    assert side_w == 0.0
    assert found.low <= 0.0 <= found.high


def test_a_base_load_above_a_circuits_rating_asks_nothing_of_evses() -> None:
    main = Circuit(name="main", parent=None, connection=Connection.WYE, voltage_v=400.0, rating_a=(50.0,) * 3)
    base = BaseLoad(
        circuit="main",
        source="base load",
        low_a=(-80.0, 0.0, 0.0),
        high_a=(0.0, 80.0, 0.0),
        low_w=-80.0 * VOLTS,
        high_w=80.0 * VOLTS,
        reactive_var=0.0,
        apparent_va=None,
    )
    found = {limit.phases: (limit.low, limit.high) for limit in limits.circuits({"main": main}, {"main": base})}
    assert found == {(Phase.L1,): (0.0, 50.0), (Phase.L2,): (-50.0, 0.0), (Phase.L3,): (-50.0, 50.0)}


def test_bounds_meet_and_name_who_set_them() -> None:
    bound = met(
        limit(-10, 50, Rank.PROTECTION, "circuit"), limit(-5, 80, Rank.GRID, "event"), limit(-9, 40, Rank.PRICE, "dear")
    )
    assert (bound.low, bound.high, bound.sources, bound.clipped) == (-5, 40, ("event", "dear"), ())


def test_of_equal_bounds_the_higher_rank_is_named() -> None:
    assert met(limit(0, 5, Rank.PRICE, "dear"), limit(0, 5, Rank.PROTECTION, "circuit")).sources == ("circuit",)


def test_a_lower_rank_with_nothing_in_common_is_clipped_and_reported() -> None:
    bound = met(
        limit(0, 11, Rank.PROTECTION, "cable"), limit(20, 30, Rank.GRID, "event"), limit(-9, 5, Rank.PRICE, "dear")
    )
    assert (bound.low, bound.high) == (11, 11)
    assert bound.clipped == (
        limits.Clip("event", Rank.GRID, "cable", Rank.PROTECTION, 20, 30, 11),
        limits.Clip("dear", Rank.PRICE, "event", Rank.GRID, -9, 5, 11),
    )


def test_a_shed_below_a_floor_stops_at_the_floor() -> None:
    bound = met(limit(-7, -7, Rank.GRID, "discharge"), limit(0, math.inf, Rank.THERMAL_AND_SOC, "reserve"))
    assert (bound.low, bound.high) == (0, 0)
    (clip,) = bound.clipped
    assert (clip.loser, clip.winner, clip.given) == ("discharge", "reserve", 0)


@pytest.mark.parametrize(
    ("one", "other", "kept"),
    [((5, 9), (1, 3), 3), ((-3, -1), (-9, -5), -3), ((2, 5), (-5, -2), 0), ((0, 5), (-5, -2), 0)],
)
def test_one_rank_in_two_minds_gives_what_is_nearest_to_nothing(
    one: tuple[float, float], other: tuple[float, float], kept: float
) -> None:
    bound = met(limit(*one, Rank.GRID, "one"), limit(*other, Rank.GRID, "other"))
    assert (bound.low, bound.high) == (kept, kept)
    assert {"one", "other"} == {name for clip in bound.clipped for name in (clip.loser, clip.winner)}


@pytest.mark.parametrize(("now_s", "holds"), [(9.999, False), (10.0, True), (19.999, True), (20.0, False)])
def test_in_force_from_the_start_to_before_the_end(now_s: float, holds: bool) -> None:
    assert (("t", ACTIVE, None) in combine([limit(0, 1, Rank.GRID, start_s=10.0, end_s=20.0)], now_s)) is holds
    assert met(limit(0, 1, Rank.GRID, start_s=10.0), limit(0, 2, Rank.GRID), now_s=now_s).high == (
        1 if now_s >= 10 else 2
    )


def test_each_phase_and_quantity_for_itself() -> None:
    found = combine(
        [
            limit(-16, 16, Rank.PROTECTION, quantity=CURRENT, phases=(Phase.L1, Phase.L3)),
            limit(-9, 9, Rank.GRID, quantity=CURRENT, phases=(Phase.L3,)),
            limit(0, 5, Rank.GRID),
        ],
        0.0,
    )
    assert {place: bound.high for place, bound in found.items()} == {
        ("t", CURRENT, Phase.L1): 16,
        ("t", CURRENT, Phase.L3): 9,
        ("t", ACTIVE, None): 5,
    }


@pytest.mark.parametrize(("low", "high"), [(math.nan, 1.0), (0.0, math.nan), (2.0, 1.0)])
def test_what_is_no_interval_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="two numbers"):
        combine([limit(low, high, Rank.GRID)], 0.0)


ends = st.one_of(st.integers(-5, 5).map(float), st.sampled_from([-math.inf, math.inf]))
intervals = st.tuples(ends, ends).map(sorted).filter(lambda pair: pair[0] < math.inf and pair[1] > -math.inf)
some = st.lists(st.tuples(intervals, st.sampled_from(Rank)), min_size=1, max_size=9)


@settings(max_examples=150, deadline=None)
@given(drawn=some, seed=st.integers(0, 2**32))
def test_higher_ranks_stand_whatever_lower_ones_say_and_in_any_order(
    drawn: list[tuple[list[float], Rank]], seed: int
) -> None:
    found = [limit(low, high, rank, f"{index}") for index, ((low, high), rank) in enumerate(drawn)]
    bound = met(*found)
    assert bound.low <= bound.high
    shuffled = found[:]
    random.Random(seed).shuffle(shuffled)  # noqa: S311
    assert met(*shuffled) == bound
    for rank in Rank:
        upper = [one for one in found if one.rank <= rank]
        if upper:
            above = met(*upper)
            assert above.low <= bound.low <= bound.high <= above.high
    # A limit that the result breaks was clipped, and it is said by whom.
    broken = {one.source for one in found if not one.low <= bound.low <= bound.high <= one.high}
    assert broken <= {clip.loser for clip in bound.clipped}
    for clip in bound.clipped:
        assert clip.winner_rank <= clip.loser_rank
        assert clip.winner != clip.loser
    if not bound.clipped:
        assert (bound.low, bound.high) == (max(one.low for one in found), min(one.high for one in found))


# --- base load --------------------------------------------------------------------------------------------------------

MAIN = Circuit(
    name="main",
    parent=None,
    connection=Connection.WYE,
    voltage_v=400.0,
    rating_a=(250.0, 250.0, 250.0),
    rating_kva=160.0,
    base_load_a=(20.0, 30.0, 40.0),
)
FEEDER = Circuit(
    name="feeder",
    parent="main",
    connection=Connection.WYE,
    voltage_v=400.0,
    rating_a=(100.0, 100.0, 100.0),
    base_load_a=(5.0, 5.0, 5.0),
)
TREE = {"main": MAIN, "feeder": FEEDER}


def phasor_reading(base: list[complex], evse_a: float, at_s: float = 0.0) -> Metered:
    """Return what a meter shows of a base load (A, real part active) and EVSEs at a power factor of 1."""
    total = [current + evse_a for current in base]
    return Metered(
        read_at_s=at_s,
        current_a=(abs(total[0]), abs(total[1]), abs(total[2])),
        active_w=(total[0].real * VOLTS, total[1].real * VOLTS, total[2].real * VOLTS),
        reactive_var=sum(current.imag for current in total) * VOLTS,
        evse_low_a=(evse_a, evse_a, evse_a),
        evse_high_a=(evse_a, evse_a, evse_a),
    )


def test_the_configured_worst_case_holds_its_childrens() -> None:
    found = limits.base_loads(TREE, {}, 0.0, 5.0)
    assert found["feeder"].high_a == (5, 5, 5)
    assert found["main"].high_a == pytest.approx((25, 35, 45))
    assert found["main"].low_a == (0, 0, 0)
    assert found["main"].apparent_va == pytest.approx(105 * VOLTS)
    assert "configured worst case" in found["main"].source


def test_a_good_meter_counts_instead() -> None:
    reading = phasor_reading([3 + 4j, 6 + 0j, 0 + 8j], 50.0)
    found = limits.base_loads(TREE, {"main": reading}, 5.0, 5.0)["main"]
    assert found.high_a == pytest.approx((5, 6, 8))
    assert found.high_w == pytest.approx(9 * VOLTS)
    assert found.reactive_var == pytest.approx(12 * VOLTS)
    assert found.apparent_va is None
    assert "measured" in found.source


@pytest.mark.parametrize(
    "change",
    [
        {"read_at_s": -0.1},
        {"read_at_s": 5.1},
        {"quality": Quality.STALE},
        {"quality": Quality.BAD},
        {"active_w": None},
        {"current_a": (math.nan, 1.0, 1.0)},
        {"reactive_var": math.inf},
    ],
)
def test_a_stale_or_bad_meter_counts_as_the_worst_case(change: dict[str, object]) -> None:
    reading = replace(phasor_reading([0j, 0j, 0j], 0.0), **change)  # type: ignore[arg-type]
    found = limits.base_loads(TREE, {"main": reading}, 5.0, 5.0)["main"]
    assert found.high_a == pytest.approx((25, 35, 45))
    assert "stale or bad" in found.source


def test_a_childs_measurement_is_part_of_its_parents_worst_case() -> None:
    found = limits.base_loads(TREE, {"feeder": phasor_reading([1 + 0j, 2 + 0j, -3 + 0j], 16.0)}, 0.0, 5.0)
    assert found["main"].high_a == pytest.approx((21, 32, 40))
    assert found["main"].low_a == pytest.approx((0, 0, -3))


def test_generation_gives_no_headroom_and_consumption_none_to_export() -> None:
    base = limits.base_loads(TREE, {"main": phasor_reading([-30 + 0j, -30 + 0j, 30 + 0j], 10.0)}, 0.0, 5.0)
    found = {
        one.phases: (one.low, one.high) for one in limits.circuits(TREE, base) if one.target == "main" and one.phases
    }
    assert found[Phase.L1,] == pytest.approx((-220, 250))
    assert found[Phase.L3,] == pytest.approx((-250, 220))


def test_reactive_power_that_a_meter_does_not_show_is_what_its_currents_and_powers_leave() -> None:
    """No less than it is, whichever way it turns on each phase."""
    base = [40 + 60j, 20 - 15j, 30 + 0j]
    reading = replace(phasor_reading(base, 10.0), reactive_var=None)
    found = limits.base_loads(TREE, {"main": reading}, 0.0, 5.0)["main"]
    assert found.reactive_var == pytest.approx(75 * VOLTS)
    (of_site,) = limits.site(100_000.0, found, offered_w=1e6)
    assert of_site.high == pytest.approx(math.sqrt(100_000**2 - (75 * VOLTS) ** 2) - 90 * VOLTS)


def test_what_one_phase_generates_leaves_no_more_to_the_others() -> None:
    reading = phasor_reading([50 + 0j, -50 + 0j, 0j], 10.0)
    found = limits.base_loads(TREE, {"main": reading}, 0.0, 5.0)["main"]
    assert (found.low_w, found.high_w) == pytest.approx((-50 * VOLTS, 50 * VOLTS))
    (of_site,) = limits.site(30_000.0, found)
    assert of_site.high == pytest.approx(30_000 - 50 * VOLTS)


def test_what_a_generator_with_a_meter_gives_leaves_no_more_to_evses() -> None:
    """A load of 60 A and 20 A reactive beside 40 A from a generator; on L2 the generator gives more than is drawn."""
    load, gives = 60 + 20j, 40.0
    reading = replace(
        phasor_reading([load - gives, 10 - gives + 0j, load - gives], 16.0), generated_a=(gives, gives, gives)
    )
    found = limits.base_loads(TREE, {"main": reading}, 0.0, 5.0)["main"]
    assert found.high_a == pytest.approx((abs(load), 10, abs(load)))
    assert found.low_a == pytest.approx((-abs(gives + 20j), -gives, -abs(gives + 20j)))
    assert found.high_w == pytest.approx(130 * VOLTS)
    assert found.low_w == pytest.approx(-3 * gives * VOLTS)
    assert "generators" in found.source


@settings(max_examples=100, deadline=None)
@given(
    load=st.complex_numbers(max_magnitude=150).map(lambda one: complex(abs(one.real), one.imag)),
    gives=st.complex_numbers(max_magnitude=150).map(lambda one: complex(-abs(one.real), one.imag)),
    evse_a=st.floats(0, 80),
)
def test_load_or_generator_alone_is_within_what_their_meters_show(load: complex, gives: complex, evse_a: float) -> None:
    reading = replace(
        phasor_reading([load + gives] * 3, evse_a),
        generated_a=(abs(gives.real),) * 3,
        generated_reactive_a=(abs(gives.imag),) * 3,
        generated_var=3 * abs(gives.imag) * VOLTS,
    )
    found = limits.base_loads({"main": MAIN}, {"main": reading}, 0.0, 5.0)["main"]
    for flow in (load, gives, load + gives):
        assert abs(flow) <= found.high_a[0] + 1e-6 if flow.real >= 0 else abs(flow) <= -found.low_a[0] + 1e-6
        assert found.low_w - 1e-6 <= 3 * flow.real * VOLTS <= found.high_w + 1e-6
        assert 3 * abs(flow.imag) * VOLTS <= found.reactive_var + 1e-6


def test_through_a_transformer_a_line_carries_two_windings_and_the_ratio_of_voltages() -> None:
    medium = replace(MAIN, voltage_v=4000.0, base_load_a=(0.0, 0.0, 0.0))
    transformer = replace(
        FEEDER, name="transformer", connection=Connection.DELTA_WYE, voltage_v=400.0, base_load_a=(0.0, 0.0, 0.0)
    )
    below = replace(FEEDER, parent="transformer", voltage_v=400.0, base_load_a=(30.0, 20.0, 10.0))
    tree = {"main": medium, "transformer": replace(transformer, parent="main"), "feeder": below}
    found = limits.base_loads(tree, {}, 0.0, 5.0)
    root = math.sqrt(3)
    assert found["transformer"].high_a == pytest.approx((50 / root, 50 / root, 40 / root))
    assert found["main"].high_a == pytest.approx((5 / root, 5 / root, 4 / root))
    single = replace(FEEDER, connection=Connection.SINGLE_PHASE, voltage_v=230.0, base_load_a=(5.0, 0.0, 0.0))
    assert limits.base_loads({"main": MAIN, "feeder": single}, {}, 0.0, 5.0)["main"].high_a == pytest.approx(
        (25, 30, 40)
    )


@settings(max_examples=100, deadline=None)
@given(
    base=st.lists(st.complex_numbers(max_magnitude=150), min_size=3, max_size=3),
    before_a=st.floats(0, 80),
    share=st.floats(-1, 1),
)
def test_within_the_limits_the_true_phasor_sum_is_within_the_rating(
    base: list[complex], before_a: float, share: float
) -> None:
    reading = phasor_reading(base, before_a)
    load = limits.base_loads({"main": MAIN}, {"main": reading}, 0.0, 5.0)
    for one in limits.circuits({"main": MAIN}, load):
        if one.quantity is CURRENT:
            index = limits.PHASES.index(one.phases[0])
            evse_a = share * one.high if share > 0 else -share * one.low
            assert abs(base[index] + evse_a) <= max(250.0, abs(base[index])) + 1e-6


# --- sources ----------------------------------------------------------------------------------------------------------


def measured(p_w: float, q_var: float) -> BaseLoad:
    return BaseLoad(
        circuit="main",
        source="measured",
        low_a=limits.NO_FLOW,
        high_a=limits.NO_FLOW,
        low_w=min(p_w, 0.0),
        high_w=max(p_w, 0.0),
        reactive_var=abs(q_var),
        apparent_va=None,
    )


def test_a_circuits_kva_and_amperes_less_the_base_load() -> None:
    base = limits.base_loads(TREE, {}, 0.0, 5.0)
    found = {(one.target, one.quantity, one.phases): one for one in limits.circuits(TREE, base)}
    assert found["main", CURRENT, (Phase.L2,)].high == pytest.approx(215)
    assert found["feeder", CURRENT, (Phase.L2,)].high == pytest.approx(95)
    assert found["main", APPARENT, ()].high == pytest.approx(160_000 - 105 * VOLTS)
    assert ("feeder", APPARENT, ()) not in found
    assert {one.rank for one in found.values()} == {Rank.PROTECTION}


def test_a_base_load_above_the_rating_leaves_nothing_but_a_standstill() -> None:
    flooded = replace(MAIN, base_load_a=(300.0, 300.0, 300.0))
    for one in limits.circuits({"main": flooded}, limits.base_loads({"main": flooded}, {}, 0.0, 5.0)):
        assert one.low <= 0 == one.high


def test_the_site_limit_has_reactive_power_in_it() -> None:
    load = replace(measured(20_000, 60_000), evse_taken_w=60_000.0, evse_given_w=80_000.0)
    (found,) = limits.site(100_000.0, load)
    assert (found.target, found.quantity, found.rank) == ("site", ACTIVE, Rank.PROTECTION)
    assert found.high == pytest.approx(60_000)
    assert found.low == pytest.approx(-80_000)
    (to_lower,) = limits.site(100_000.0, replace(load, evse_taken_w=70_000.0))
    assert to_lower.high == pytest.approx(60_000)
    (to_raise,) = limits.site(100_000.0, measured(20_000, 60_000))
    assert to_raise.high == pytest.approx(100_000 - math.hypot(20_000, 60_000))
    assert to_raise.low == pytest.approx(-40_000)
    for offered_w, high_w in ((50_000.0, 50_000.0), (70_000.0, 60_000.0)):
        (stands,) = limits.site(100_000.0, measured(20_000, 60_000), offered_w=offered_w)
        assert stands.high == pytest.approx(high_w)
    (with_evses,) = limits.site(100_000.0, replace(load, reactive_var=50_000.0), evse_var=10_000)
    assert with_evses.high == pytest.approx(60_000)
    (over,) = limits.site(100_000.0, measured(20_000, 100_000))
    assert (over.low, over.high) == (0, 0)


@settings(max_examples=200, deadline=None)
@given(
    base=st.complex_numbers(max_magnitude=150_000).map(lambda one: complex(abs(one.real), one.imag)),
    drawn=st.floats(0, 50_000),
    angles=st.tuples(st.floats(-1.5, 1.5), st.floats(-1.5, 1.5)),
    share=st.floats(0, 1),
)
def test_a_raise_keeps_within_the_sites_kva_at_any_power_factor(
    base: complex, drawn: float, angles: tuple[float, float], share: float
) -> None:
    """EVSEs that are told A draw so many VA at an angle that is measured once they draw it."""
    now, then = (cmath.rect(1.0, angle) for angle in angles)
    evses_a = drawn * now / VOLTS / 3
    flow_a = base / VOLTS / 3 + evses_a
    reading = Metered(
        read_at_s=0.0,
        current_a=(abs(flow_a),) * 3,
        active_w=(flow_a.real * VOLTS,) * 3,
        reactive_var=3 * flow_a.imag * VOLTS,
        evse_low_a=(abs(evses_a),) * 3,
        evse_high_a=(abs(evses_a),) * 3,
    )
    load = limits.base_loads({"main": MAIN}, {"main": reading}, 0.0, 5.0)["main"]
    (found,) = limits.site(160_000.0, load)
    raised = max(found.high - drawn, 0.0) * share
    assert abs(base + drawn * now + raised * then) <= max(160_000.0, abs(base + drawn * now)) + 1e-3


def test_chargers_that_are_told_watts_may_draw_more_volt_amperes() -> None:
    (empty,) = limits.site(100_000.0, measured(0.0, 0.0), power_factor=0.95)
    assert empty.high == pytest.approx(95_000)
    (assumed,) = limits.site(100_000.0, replace(measured(0.0, 0.0), apparent_va=40_000.0), power_factor=0.95)
    assert assumed.high == pytest.approx(57_000)


def test_once_a_raise_is_measured_the_rest_of_the_sites_limit_follows() -> None:
    """At a power factor of 0.96 each, beside a base load that has one of 0.6."""
    evse_w = 0.0
    for _ in range(12):
        load = replace(measured(30_000, 40_000 + 0.28 * evse_w), evse_taken_w=0.96 * evse_w)
        (found,) = limits.site(100_000.0, load, power_factor=0.95)
        assert found.high >= 0.96 * evse_w
        evse_w = found.high / 0.96
        assert abs(complex(30_000 + 0.96 * evse_w, 40_000 + 0.28 * evse_w)) <= 100_000 + 1e-6
    assert abs(complex(30_000 + 0.96 * evse_w, 40_000 + 0.28 * evse_w)) > 99_500


@settings(max_examples=100, deadline=None)
@given(
    base=st.complex_numbers(max_magnitude=150_000),
    evse_var=st.floats(0, 50_000),
    known=st.booleans(),
    share=st.floats(-1, 1),
    sign=st.sampled_from([-1, 1]),
)
def test_a_site_within_its_limit_is_within_its_kva(
    base: complex, evse_var: float, known: bool, share: float, sign: int
) -> None:
    load = measured(base.real, base.imag)
    if not known:
        load = replace(load, apparent_va=abs(base))
    (found,) = limits.site(160_000.0, load, evse_var)
    flow = complex(share * found.high if share > 0 else -share * found.low, sign * evse_var)
    assert found.low <= 0 <= found.high
    # Where the base load alone is over, what is admitted only lowers it.
    if flow.real:
        assert abs(base + flow) <= max(160_000, abs(base + complex(0, flow.imag))) + 1e-3


def test_events_the_operator_and_prices_by_rank_and_time() -> None:
    base = measured(20_000, 0)
    (event,) = limits.grid([Ask(source="event 7", high_w=50_000, start_s=10, end_s=20)], base)
    assert (event.high, event.low, event.rank, event.start_s, event.end_s) == (30_000, -math.inf, Rank.GRID, 10, 20)
    (stop,) = limits.grid([Ask(source="stop", high_w=10_000)], base)
    assert stop.high == 0
    (feed,) = limits.grid([Ask(source="feed in", high_w=-5000)], base)
    assert feed.high == -25_000
    (no_export,) = limits.operator([Ask(source="no export", low_w=0.0)], measured(-3000, 0))
    assert (no_export.low, no_export.high, no_export.rank) == (0, math.inf, Rank.OPERATOR)
    (one,) = limits.operator([Ask(source="bay 4", high_w=7000, target="evse-4")], base)
    assert (one.target, one.high) == ("evse-4", 7000)
    periods = [Tariff(per_kwh=0.5, start_s=0, end_s=10), Tariff(per_kwh=0.2, start_s=10, end_s=20)]
    (dear,) = limits.price(periods, base, dear_per_kwh=0.4, dear_w=25_000)
    assert (dear.high, dear.start_s, dear.end_s, dear.rank) == (5000, 0, 10, Rank.PRICE)


def test_ratings_of_evse_cable_and_vehicle() -> None:
    evse = Evse(
        name="e", device="d", connector=1, circuit="main", phases=(Phase.L2, Phase.L3), rating_a=32.0, cable_a=20.0
    )
    current, vehicle = limits.ratings(evse)
    assert (current.low, current.high, current.phases, current.source) == (-20, 20, evse.phases, "cable of e")
    assert (vehicle.low, vehicle.high) == (0, math.inf)
    session = Session(evse="e", started_at_s=0.0, power_w=7400.0, discharge_w=5000.0)
    assert [(one.low, one.high, one.rank) for one in limits.ratings(replace(evse, cable_a=None), session)] == [
        (-32, 32, Rank.PROTECTION),
        (-5000, 7400, Rank.PROTECTION),
    ]


def test_a_ramp_counts_from_the_previous_setpoint_and_gives_way() -> None:
    evse = Evse(name="t", device="d", connector=1, circuit="main", phases=(Phase.L1,), rating_a=32.0)
    (found,) = limits.ramp(evse, Ramp(up_per_s=0.5), 10.0, 100.0, 104.0)
    assert (found.low, found.high) == (-math.inf, 12)
    (both,) = limits.ramp(evse, Ramp(up_per_s=0.5, down_per_s=1.0), 10.0, 100.0, 104.0)
    assert (both.low, both.high) == (6, 12)
    shed = replace(found, low=-math.inf, high=0.0, rank=Rank.GRID, source="shed")
    bound = combine([both, shed], 0.0)["t", CURRENT, Phase.L1]
    assert (bound.high, bound.clipped[0].loser) == (0, "ramp of t")
    with pytest.raises(ValueError, match="after now"):
        limits.ramp(evse, Ramp(), 10.0, 100.0, 99.0)


def test_the_test_plant_is_right() -> None:
    reading = phasor_reading([cmath.rect(10, 0.5)] * 3, 6.0)
    assert reading.current_a[0] == pytest.approx(abs(cmath.rect(10, 0.5) + 6))
