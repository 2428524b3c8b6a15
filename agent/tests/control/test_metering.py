# SPDX-License-Identifier: Apache-2.0
"""The base load out of a meter and EVSEs that are sampled at other moments."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count, takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derms_agent.control.metering import (
    Drawn,
    Generated,
    Most,
    Rules,
    Shown,
    bracket,
    clearest,
    metered,
    most_of,
    reached,
    seen_from,
    standing,
)
from derms_agent.control.metering import (
    given as gave,
)
from derms_agent.model import Circuit, Connection, Evse, Measures, Meter, PerPhase, Phase


def on_all(amperes: float) -> PerPhase:
    return (amperes, amperes, amperes)


def shown(at_s: float, amperes: float) -> Shown:
    return Shown(asked_s=at_s, answered_s=at_s + 0.05, current_a=on_all(amperes), active_w=on_all(230 * amperes))


def drawn(at_s: float, amperes: float) -> Drawn:
    return Drawn(at_s, at_s + 0.05, on_all(amperes), on_all(amperes))


def course(start_s: float, from_a: float, to_a: float, ramp_s: float, at_s: float) -> float:
    """Return the current of an EVSE that goes one way from one value to another."""
    share = min(max((at_s - start_s) / ramp_s, 0.0), 1.0)
    return from_a + (to_a - from_a) * share


moves = st.tuples(st.floats(1, 8), st.floats(0, 32), st.floats(0, 32), st.floats(0.1, 5.0), st.floats(0, 0.94))


@given(st.lists(moves, min_size=1, max_size=6), st.floats(0, 50), st.floats(0, 0.94))
def test_a_steady_base_load_lies_within_what_is_found(
    evses: list[tuple[float, float, float, float, float]], base_a: float, phase_s: float
) -> None:
    meters = []
    for second in range(2, 9):
        at_s = second + phase_s
        flows = base_a + sum(course(*move[:4], at_s + 0.02) for move in evses)
        meter = shown(at_s, flows)
        brackets = [
            bracket(meter, [drawn(n + move[4], course(*move[:4], n + move[4] + 0.02)) for n in range(12)])
            for move in evses
        ]
        meters.append(metered(meter, brackets))
        one = meters[-1]
        assert one.current_a[0] - one.evse_high_a[0] <= base_a + 1e-6
        assert one.current_a[0] - one.evse_low_a[0] >= base_a - 1e-6
    chosen = clearest(meters, 8.5 + phase_s)
    assert chosen is not None
    assert chosen.current_a[0] - chosen.evse_low_a[0] >= base_a - 1e-6


def test_of_several_the_one_with_the_narrowest_brackets_stands() -> None:
    steady = metered(shown(1.0, 40.0), [(on_all(20.0), on_all(20.0))])
    ramping = metered(shown(2.0, 50.0), [(on_all(20.0), on_all(36.0))])
    assert clearest([steady, ramping], 2.5) == steady


def test_a_sample_with_an_evse_that_is_not_known_is_no_clear_one() -> None:
    clear = metered(shown(1.0, 40.0), [(on_all(20.0), on_all(20.0)), (on_all(20.0), on_all(20.0))])
    blurred = metered(shown(2.0, 40.0), [(on_all(20.0), on_all(20.0)), None])
    assert clearest([clear, blurred], 2.5) == clear


@pytest.mark.parametrize(("age_s", "stands"), [(2.9, "clear"), (3.1, "clear"), (4.9, "clear"), (5.1, "blurred")])
def test_what_is_known_stands_beside_what_is_not_until_it_is_no_longer_fresh(age_s: float, stands: str) -> None:
    clear = metered(shown(1.0, 40.0), [(on_all(20.0), on_all(20.0)), (on_all(20.0), on_all(20.0))])
    blurred = metered(shown(3.5, 40.0), [(on_all(20.0), on_all(20.0)), None])
    assert clear.complete
    assert not blurred.complete
    assert clearest([clear, blurred], 1.0 + age_s) == {"clear": clear, "blurred": blurred}[stands]


def test_a_rise_that_a_newer_sample_proves_stands_at_once() -> None:
    before = metered(shown(1.0, 40.0), [(on_all(20.0), on_all(20.0))])
    risen = metered(shown(2.0, 90.0), [(on_all(20.0), on_all(36.0))])
    assert clearest([before, risen], 2.5) == risen


def test_what_is_old_does_not_stand() -> None:
    old = metered(shown(1.0, 20.0), [(on_all(20.0), on_all(20.0))])
    wide = metered(shown(8.0, 50.0), [(on_all(10.0), on_all(36.0))])
    assert clearest([old, wide], 8.5) == wide


def test_an_evse_that_is_not_sampled_on_both_sides_may_have_drawn_nothing() -> None:
    meter = shown(5.0, 40.0)
    assert bracket(meter, [drawn(4.5, 16.0)]) is None
    assert bracket(meter, [drawn(0.5, 16.0), drawn(5.5, 16.0)]) is None
    assert bracket(meter, [drawn(4.5, 16.0), drawn(5.5, 6.0)]) == (on_all(6.0), on_all(16.0))
    assert metered(meter, [None]).evse_low_a == on_all(0.0)


@pytest.mark.parametrize(
    ("connection", "voltage_v", "within"),
    [
        (Connection.WYE, 400.0, True),
        (Connection.DELTA_WYE, 400.0, False),
        (Connection.WYE, 10_000.0, False),
        (Connection.WYE, 208.0, False),
    ],
)
def test_amperes_count_only_where_no_transformer_lies_between(
    connection: Connection, voltage_v: float, within: bool
) -> None:
    circuits = {
        "main": Circuit(name="main", parent=None, connection=connection, voltage_v=voltage_v, rating_a=on_all(100)),
        "yard": Circuit(name="yard", parent="main", connection=Connection.WYE, voltage_v=400.0, rating_a=on_all(100)),
    }
    evse = Evse(name="a", device="a", connector=1, circuit="yard", phases=(Phase.L1,), rating_a=32.0)
    assert reached(circuits, (evse,), "main") == ((evse,) if within else None)
    assert reached(circuits, (evse,), "yard") == (evse,)


@given(st.floats(0, 60), st.floats(2, 60), st.floats(2.0, 8.0), st.lists(moves, max_size=4))
def test_a_rise_of_the_base_load_shows_at_once_beside_steady_evses_and_else_once_nothing_older_stands(
    base_a: float, rise_a: float, rises_s: float, moving: list[tuple[float, float, float, float, float]]
) -> None:
    def loads(at_s: float) -> float:
        return base_a + (rise_a if at_s >= rises_s else 0.0)

    meters = []
    for at_s in (float(second) for second in range(2, 14)):
        meter = shown(at_s, loads(at_s) + sum(course(*move[:4], at_s + 0.02) for move in moving))
        meters.append(
            metered(
                meter,
                [bracket(meter, [drawn(n + m[4], course(*m[:4], n + m[4] + 0.02)) for n in range(17)]) for m in moving],
            )
        )
        chosen = clearest(meters, at_s + 0.1)
        assert chosen is not None
        most_a = chosen.current_a[0] - chosen.evse_low_a[0]
        held_s = 0.0 if not moving else Rules().hold_s
        assert most_a >= loads(at_s + 0.1 - held_s - 0.1) - 1e-6


ENDS_S = 40.0


def polls(rng: random.Random, period_s: float, first_s: float, late_s: float) -> list[tuple[float, float]]:
    """Return when a device is asked and has answered: at an even pace, each time up to so much late."""
    asked = [
        first_s + index * period_s + rng.uniform(0, late_s)
        for index in takewhile(lambda index: first_s + index * period_s < ENDS_S, count())
    ]
    return [(at_s, at_s + rng.uniform(0.02, 0.2)) for at_s in asked]


def polled(
    rng: random.Random, period_s: float, first_s: float, late_s: float, drawn_a: Sequence[Callable[[float], float]]
) -> tuple[list[tuple[float, float]], list[list[Drawn]]]:
    """Return the meter's polls, and of each EVSE what it showed; each value is of some moment of its poll."""
    trails = []
    for one in drawn_a:
        trail = []
        for asked_s, answered_s in polls(rng, period_s, first_s, late_s):
            shows = on_all(one(rng.uniform(asked_s, answered_s)))
            trail.append(Drawn(asked_s, answered_s, shows, shows))
        trails.append(trail)
    return polls(rng, period_s, 0.0, late_s), trails


def known_by(now_s: float, shown: list[Shown], trails: list[list[Drawn]]) -> tuple[list[Shown], list[list[Drawn]]]:
    """Return what control has at a moment: the last eight answers of each."""
    return (
        [one for one in shown if one.answered_s <= now_s][-8:],
        [[one for one in trail if one.answered_s <= now_s][-8:] for trail in trails],
    )


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    period_s=st.floats(0.8, 2.0),
    first_s=st.sampled_from([-0.2, -0.05, -0.01, 0.0, 0.01, 0.05, 0.2]),
    late_s=st.sampled_from([0.0, 0.1, 0.3, 0.5]),
    evses=st.integers(1, 12),
)
def test_meter_and_evses_polled_in_phase_take_no_vehicle_for_base_load(
    seed: int, period_s: float, first_s: float, late_s: float, evses: int
) -> None:
    rng = random.Random(seed)  # noqa: S311
    asked, trails = polled(rng, period_s, first_s, late_s, [lambda _at_s: 16.0] * evses)
    shown = [
        Shown(asked_s=a_s, answered_s=b_s, current_a=on_all(16.0 * evses + 5), active_w=on_all(0)) for a_s, b_s in asked
    ]
    for now_s in (10.0 + 0.25 * step for step in range(100)):
        one = standing(*known_by(now_s, shown, trails), now_s)
        assert one is not None
        assert one.complete
        assert one.current_a[0] - one.evse_low_a[0] == pytest.approx(5.0)
        assert now_s - one.read_at_s <= Rules().fresh_s


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    period_s=st.floats(0.8, 2.4),
    first_s=st.floats(-0.5, 0.5),
    late_s=st.floats(0.0, 0.5),
    moving=st.lists(moves, max_size=4),
    rises_s=st.floats(12.0, 30.0),
    rise_a=st.floats(0.0, 60.0),
)
def test_polled_in_phase_the_base_load_is_not_under_estimated_for_longer_than_a_sample_is_fresh(
    *,
    seed: int,
    period_s: float,
    first_s: float,
    late_s: float,
    moving: list[tuple[float, float, float, float, float]],
    rises_s: float,
    rise_a: float,
) -> None:
    rng = random.Random(seed)  # noqa: S311

    def load_a(at_s: float) -> float:
        return 5.0 + (rise_a if at_s >= rises_s else 0.0)

    evses = [partial(course, move[0] + 12, *move[1:4]) for move in moving]
    asked, trails = polled(rng, period_s, first_s, late_s, evses)
    shown = []
    for asked_s, answered_s in asked:
        at_s = rng.uniform(asked_s, answered_s)
        flows = load_a(at_s) + sum(one(at_s) for one in evses)
        shown.append(Shown(asked_s=asked_s, answered_s=answered_s, current_a=on_all(flows), active_w=on_all(0)))
    for now_s in (10.0 + 0.25 * step for step in range(100)):
        one = standing(*known_by(now_s, shown, trails), now_s)
        if one is not None and now_s - one.read_at_s <= Rules().fresh_s:
            assert one.current_a[0] - one.evse_low_a[0] >= load_a(now_s - Rules().fresh_s) - 1e-6


# Generators


def generated(at_s: float, amperes: float) -> Generated:
    return Generated(
        asked_s=at_s,
        answered_s=at_s + 0.05,
        current_a=on_all(amperes),
        reactive_a=on_all(0.0),
        reactive_var=0.0,
    )


def test_a_generator_gave_the_most_of_what_its_samples_around_show() -> None:
    meter = shown(5.0, 20.0)
    found = gave(meter, [generated(3.5, 90.0), generated(4.5, 30.0), generated(5.5, 40.0), generated(6.5, 80.0)])
    assert found is not None
    assert found.current_a == on_all(40.0)
    assert gave(meter, [generated(4.5, 40.0)]) is None


def test_a_meter_shows_no_base_load_while_nobody_knows_what_is_generated() -> None:
    meters = [shown(1.0, 20.0), shown(2.0, 20.0)]
    around = [generated(at_s, 40.0) for at_s in (0.5, 1.5, 2.5)]
    known = standing(meters, [], 2.6, generators=[around])
    assert known is not None
    assert known.generated_a == on_all(40.0)
    # The second sample waits for what the generator shows after it, or, where that answers no more, says nothing.
    for now_s in (2.1, 4.5):
        first = standing(meters, [], now_s, generators=[around[:2]])
        assert first is not None
        assert first.read_at_s == 1.0
    assert standing(meters, [], 2.6, generators=[around, []]) is None


def test_load_that_rises_behind_a_generator_that_rises_as_well_stands_at_once() -> None:
    sun = [generated(0.5, 10.0), generated(1.4, 10.0), generated(1.6, 60.0), generated(2.5, 60.0)]
    evse = [drawn(0.5, 0.0), drawn(1.5, 0.0), drawn(2.5, 5.0)]
    found = standing([shown(1.0, 20.0), shown(2.0, 20.0)], [evse], 2.6, generators=[sun])
    assert found is not None
    assert found.generated_a == on_all(60.0)


def test_a_generator_behind_a_transformer_may_be_on_any_line_at_any_angle() -> None:
    wye, delta_wye = Connection.WYE, Connection.DELTA_WYE

    def circuit(name: str, parent: str | None, connection: Connection, voltage_v: float) -> Circuit:
        return Circuit(name=name, parent=parent, connection=connection, voltage_v=voltage_v, rating_a=on_all(100))

    circuits = {
        "grid": circuit("grid", None, wye, 4000.0),
        "transformer": circuit("transformer", "grid", delta_wye, 400.0),
        "yard": circuit("yard", "transformer", wye, 400.0),
        "roof": circuit("roof", "yard", wye, 400.0),
    }
    sample = generated(1.0, 30.0)
    assert seen_from(circuits, "roof", "roof", sample) == seen_from(circuits, "yard", "roof", sample) == sample
    for above, ratio in (("transformer", 1.0), ("grid", 0.1)):
        found = seen_from(circuits, above, "roof", sample)
        assert found.current_a == found.reactive_a == pytest.approx(on_all(30 * ratio * 2 / 3**0.5))
    with pytest.raises(ValueError, match="expected it to be above"):
        seen_from(circuits, "roof", "yard", sample)


def test_a_silent_generator_counts_at_the_most_once_nothing_better_is_fresh() -> None:
    meters = [shown(1.0, 20.0), shown(4.0, 20.0), shown(7.0, 20.0)]
    most = [Most("sun", generated(0.0, 63.0))]
    around = [generated(at_s, 40.0) for at_s in (0.5, 1.5)]
    sure = standing(meters, [], 5.9, generators=[around], most=most)
    assert sure is not None
    assert (sure.generated_a, sure.unheard) == (on_all(40.0), ())
    guessed = standing(meters, [], 7.5, generators=[around], most=most)
    assert guessed is not None
    assert (guessed.read_at_s, guessed.generated_a, guessed.unheard) == (7.0, on_all(63.0), ("sun",))
    two = standing(meters, [], 7.5, generators=[around, []], most=[most[0], None])
    assert two is None


def test_of_a_meter_without_power_per_phase_a_sample_stands_as_of_any_other() -> None:
    meters = [replace(shown(at_s, 20.0), active_w=None) for at_s in (1.0, 2.0)]
    known = standing(meters, [[drawn(at_s, 5.0) for at_s in (0.5, 1.5, 2.5)]], 2.6)
    assert known is not None
    assert (known.active_w, known.current_a, known.evse_high_a) == (None, on_all(20.0), on_all(5.0))


def test_the_most_of_a_generator_is_known_where_its_circuit_is_its_own() -> None:
    main = Circuit(name="main", parent=None, connection=Connection.WYE, voltage_v=400.0, rating_a=on_all(100))
    roof = Circuit(
        name="roof",
        parent="main",
        connection=Connection.WYE,
        voltage_v=400.0,
        rating_a=on_all(40),
        base_load_a=on_all(2),
    )
    circuits = {"main": main, "roof": roof}
    sun = Meter(name="sun", device="sun", measures=Measures.GENERATOR, circuit="roof")
    found = most_of(circuits, [], "main", sun)
    assert found is not None
    assert (found.meter, found.generated.current_a, found.generated.reactive_a) == ("sun", on_all(42), on_all(42))
    assert found.generated.reactive_var == pytest.approx(3 * 42 * roof.neutral_voltage_v)
    evse = Evse(name="a", device="a", connector=1, circuit="roof", phases=(Phase.L1,), rating_a=16.0)
    assert most_of(circuits, [evse], "main", sun) is None
    assert most_of(circuits, [], "main", replace(sun, circuit="main")) is None
