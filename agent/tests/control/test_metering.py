# SPDX-License-Identifier: Apache-2.0
"""The base load out of a meter and EVSEs that are sampled at other moments."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derms_agent.control.metering import Drawn, Rules, Shown, bracket, clearest, metered, reached
from derms_agent.model import Circuit, Connection, Evse, PerPhase, Phase


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
    assert bracket(meter, [drawn(1.0, 16.0), drawn(5.5, 16.0)]) is None
    assert bracket(meter, [drawn(4.5, 16.0), drawn(5.5, 6.0)]) == (on_all(6.0), on_all(16.0))
    assert metered(meter, [None]).evse_low_a == on_all(0.0)


@pytest.mark.parametrize(
    ("connection", "voltage_v", "within"),
    [(Connection.WYE, 400.0, True), (Connection.DELTA_WYE, 400.0, False), (Connection.WYE, 10_000.0, False)],
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
