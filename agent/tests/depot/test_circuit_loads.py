# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import cmath
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derms_agent.depot.circuit_loads import Load, Worst, cycle_through, worst
from derms_agent.model import Circuit, Connection, PerPhase, Phase

L1, L2, L3 = Phase
THREE = (L1, L2, L3)


def circuit(
    name: str,
    parent: str | None = None,
    connection: Connection = Connection.WYE,
    voltage_v: float = 400,
    base_load_a: PerPhase = (0, 0, 0),
) -> Circuit:
    return Circuit(
        name=name,
        parent=parent,
        connection=connection,
        voltage_v=voltage_v,
        rating_a=(1000, 1000, 1000),
        base_load_a=base_load_a,
    )


def of(*circuits: Circuit) -> dict[str, Circuit]:
    return {one.name: one for one in circuits}


def test_a_wye_circuit_sums_each_conductor_and_its_children() -> None:
    circuits = of(circuit("feeder", "main"), circuit("main", base_load_a=(10, 0, 0)))
    loads = [Load("feeder", THREE, 16), Load("feeder", (L2,), 20), Load("main", (L3, L1), 5)]
    result = worst(circuits, loads)
    assert result["feeder"].current_a == pytest.approx((16, 36, 16))
    assert result["main"].current_a == pytest.approx((31, 36, 21))
    to_neutral = 400 / math.sqrt(3)
    assert result["feeder"].apparent_va == pytest.approx(to_neutral * (16 + 36 + 16))
    assert result["main"].apparent_va == pytest.approx(to_neutral * (31 + 36 + 21))


def test_a_single_phase_circuit_hangs_on_three_without_a_transformer() -> None:
    circuits = of(circuit("main"), circuit("branch", "main", Connection.SINGLE_PHASE, 230))
    result = worst(circuits, [Load("branch", (L2,), 32)])
    assert result["main"].current_a == pytest.approx((0, 32, 0))
    assert result["branch"].apparent_va == pytest.approx(32 * 230)


def test_a_delta_circuit_with_loads_between_lines() -> None:
    result = worst(
        of(circuit("main", connection=Connection.DELTA)), [Load("main", (L1, L2), 32), Load("main", THREE, 10)]
    )
    assert result["main"].current_a == pytest.approx((42, 42, 10))
    assert result["main"].apparent_va == pytest.approx(400 * 32 + math.sqrt(3) * 400 * 10)


def test_a_transformers_delta_side_is_referred_to_its_voltage() -> None:
    circuits = of(circuit("supply", connection=Connection.DELTA_WYE, voltage_v=20_000), circuit("busbar", "supply"))
    balanced = worst(circuits, [Load("busbar", THREE, 1000)])["supply"]
    # 1000 A at 400 V are 20 A at 20 kV; the bound may be 2 / sqrt(3) of it, and no less than it.
    assert balanced.current_a == pytest.approx((20 * 2 / math.sqrt(3),) * 3)
    assert balanced.apparent_va == pytest.approx(math.sqrt(3) * 400 * 1000)
    lone = worst(circuits, [Load("busbar", (L1,), 1000)])["supply"]
    assert lone.current_a == pytest.approx((20 / math.sqrt(3),) * 3)


PHASES = st.sampled_from([THREE, (L1,), (L2,), (L3,), (L1, L2), (L2, L3), (L1, L3)])
LOADS = st.lists(st.tuples(st.sampled_from(["main", "a", "b", "c"]), PHASES, st.floats(0, 100)), max_size=12)
CONNECTIONS = st.sampled_from([Connection.WYE, Connection.DELTA, Connection.DELTA_WYE])


@given(loads=LOADS, which=st.integers(0, 11), more=st.floats(0, 100), connections=st.tuples(*[CONNECTIONS] * 4))
def test_more_of_any_load_is_never_less_anywhere(
    loads: list[tuple[str, tuple[Phase, ...], float]],
    which: int,
    more: float,
    connections: tuple[Connection, Connection, Connection, Connection],
) -> None:
    main, a, b, c = connections
    circuits = of(
        circuit("main", None, main, 10_000),
        circuit("a", "main", a),
        circuit("b", "a", b),
        circuit("c", "main", c, 690),
    )
    before = worst(circuits, [Load(*load) for load in loads])
    raised = [Load(*load) for load in loads]
    if which < len(loads):
        name, phases, current = loads[which]
        raised[which] = Load(name, phases, current + more)
    else:
        raised.append(Load("b", THREE, more))
    after = worst(circuits, raised)
    for name in circuits:
        assert all(new >= old - 1e-9 for new, old in zip(after[name].current_a, before[name].current_a, strict=True))
        assert after[name].apparent_va >= before[name].apparent_va - 1e-6


@given(
    magnitudes=st.lists(st.tuples(*[st.floats(0, 100)] * 3), min_size=1, max_size=5),
    angles=st.lists(st.tuples(*[st.floats(-math.pi, math.pi)] * 3), min_size=5, max_size=5),
    connection=st.sampled_from([Connection.WYE, Connection.DELTA_WYE]),
    turn=st.sampled_from([1, 2]),
)
def test_no_phasor_sum_exceeds_the_bound(
    magnitudes: list[tuple[float, float, float]],
    angles: list[tuple[float, float, float]],
    connection: Connection,
    turn: int,
) -> None:
    """Each load a phasor on each conductor; through a transformer two windings meet, by its vector group."""
    sums = [sum(cmath.rect(one[k], angle[k]) for one, angle in zip(magnitudes, angles, strict=False)) for k in range(3)]
    lines = (
        sums if connection is Connection.WYE else [(sums[k] - sums[(k + turn) % 3]) / math.sqrt(3) for k in range(3)]
    )
    loads = [Load("main", (phase,), one[k]) for one in magnitudes for k, phase in enumerate(THREE)]
    bound: Worst = worst(of(circuit("main", connection=connection)), loads)["main"]
    assert all(abs(line) <= limit + 1e-6 for line, limit in zip(lines, bound.current_a, strict=True))


def test_cycles() -> None:
    parents = {"a": "b", "b": "c", "c": "a", "d": "a", "e": None}
    assert cycle_through(parents, "a") == ("a", "b", "c", "a")
    assert cycle_through(parents, "d") == ()
    assert cycle_through(parents, "e") == ()
    assert cycle_through({"a": "a"}, "a") == ("a", "a")
