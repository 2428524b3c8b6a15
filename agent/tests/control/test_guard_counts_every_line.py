# SPDX-License-Identifier: Apache-2.0
"""What the guard counts of lines behind transformers, of reactive power and of a circuit's kVA.

What flows is worked out by `control/network.py`, which shares no code with the guard's `worst_case.py`.
"""

from __future__ import annotations

import cmath
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derms_agent.control import guard, ledger
from derms_agent.control.ledger import Acknowledged, Amount, Ledger, Measured, Span, Station
from derms_agent.control.network import VECTOR_GROUPS, Network, circuit_currents, load_currents
from derms_agent.control.worst_case import BaseLoad, Caps, Circuits
from derms_agent.model import Circuit, Connection, Evse, LimitQuantity, Phase

THREE = tuple(Phase)
NEAR_A = 1e-6
VOLTS = 400 / math.sqrt(3)


def circuit(name: str, parent: str | None, connection: Connection, voltage_v: float, rating_kva: float = 0) -> Circuit:
    return Circuit(
        name=name,
        parent=parent,
        connection=connection,
        voltage_v=voltage_v,
        rating_a=(1000.0,) * 3,
        rating_kva=rating_kva or None,
    )


def station(name: str, on: str = "main", phases: tuple[Phase, ...] = THREE, *, angle_known: bool = True) -> Station:
    return Station(
        name=name,
        circuit=on,
        phases=phases,
        rating_a=32.0,
        reactive_a=20.0,
        lowest_a=-32.0,
        after_boot=Span(),
        fallback=Span(),
        watchdog_s=30.0,
        angle_known=angle_known,
    )


def told(stations: list[Station], amounts: dict[str, Amount]) -> Ledger:
    """Return the ledger of EVSEs that were told, and were seen to draw that for long."""
    book = ledger.started(stations, -200.0)
    for one in stations:
        amount = amounts[one.name]
        write, book = ledger.issue(book, one.name, amount, -100.0)
        active, reactive = ((value,) * 3 for value in amount)
        events: list[ledger.Event] = [
            ledger.Refreshed(one.name, -100.0),
            Acknowledged(one.name, write, -99.0),
            ledger.Armed(one.name, one.watchdog_s, one.fallback, -99.0),
        ]
        for at_s in range(-98, 1):
            events += [
                Measured(one.name, active, at_s, at_s, reactive),
                ledger.Refreshed(one.name, at_s),
            ]
        book = ledger.record(book, events)
    return book


TREES = st.tuples(
    st.sampled_from([400.0, 690.0, 10_000.0]),
    st.sampled_from([Connection.DELTA_WYE, Connection.WYE]),
    st.sampled_from([Connection.WYE, Connection.DELTA]),
    st.sampled_from([400.0, 480.0]),
)
WIRED = st.lists(
    st.tuples(
        st.sampled_from(["main", "trafo", "row"]), st.sampled_from([(p,) for p in THREE] + [THREE]), st.booleans()
    ),
    min_size=1,
    max_size=4,
)


@given(tree=TREES, wired=WIRED, spread_a=st.floats(0.0, 20.0), seed=st.integers(0, 1000))
@settings(max_examples=80)
def test_no_line_carries_more_than_is_counted_for_either_vector_group_at_any_ratio_of_voltages(
    tree: tuple[float, Connection, Connection, float],
    wired: list[tuple[str, tuple[Phase, ...], bool]],
    spread_a: float,
    seed: int,
) -> None:
    main_v, transformer, below, row_v = tree
    circuits = {
        "main": circuit("main", None, Connection.WYE, main_v),
        "trafo": circuit("trafo", "main", transformer, 400.0),
        "row": circuit("row", "trafo", below, row_v),
    }
    rng = random.Random(seed)  # noqa: S311 - a course of events, no secret
    stations = [station(f"e{index}", on, phases, angle_known=known) for index, (on, phases, known) in enumerate(wired)]
    spans = [Span(-rng.uniform(0, 32), rng.uniform(0, 32)) for _ in stations]
    evses = Circuits(circuits, stations)
    box = evses.box(
        [tuple(span if p in one.phases else Span() for p in THREE) for one, span in zip(stations, spans, strict=True)]  # type: ignore[misc]
    )
    counted = evses.extents(box, {"main": BaseLoad(), "trafo": BaseLoad(), "row": BaseLoad(spread_a=(spread_a,) * 3)})
    for _ in range(20):
        loads = {name: [0j, 0j, 0j] for name in circuits}
        for one, span in zip(stations, spans, strict=True):
            turn = 1 + 0j if one.angle_known else cmath.rect(1, rng.uniform(0, 2 * math.pi))
            flow = rng.choice([span.low, span.high, rng.uniform(span.low, span.high)]) * turn
            for line, current in enumerate(load_currents(circuits[one.circuit], one.phases)):
                loads[one.circuit][line] += current * flow
        for line in range(3):
            loads["row"][line] += cmath.rect(spread_a, rng.uniform(0, 2 * math.pi))
        flows = {name: (lines[0], lines[1], lines[2]) for name, lines in loads.items()}
        for group in VECTOR_GROUPS:
            for name, lines in circuit_currents(circuits, flows, group).items():
                for phase, current in zip(THREE, lines, strict=True):
                    if abs(current) > NEAR_A:
                        assert abs(current) <= counted[name, phase].any + NEAR_A, (name, phase, group)


@pytest.mark.parametrize("on", ["main", "trafo", "row"])
@pytest.mark.parametrize("phases", [*((phase,) for phase in THREE), THREE])
def test_of_a_single_evse_no_more_is_counted_than_its_lines_carry(on: str, phases: tuple[Phase, ...]) -> None:
    circuits = {
        "main": circuit("main", None, Connection.WYE, 690.0),
        "trafo": circuit("trafo", "main", Connection.DELTA_WYE, 400.0),
        "row": circuit("row", "trafo", Connection.DELTA, 400.0),
    }
    evses = Circuits(circuits, [station("one", on, phases)])
    span = Span(high=16.0)
    box = evses.box([tuple(span if phase in phases else Span() for phase in THREE)])  # type: ignore[list-item]
    counted = evses.extents(box, dict.fromkeys(circuits, BaseLoad()))
    evse = Evse(name="one", device="one", connector=1, circuit=on, phases=phases, rating_a=32.0)
    for name, lines in Network(circuits, [evse]).loads_of({"one": 16.0}).items():
        for phase, current in zip(THREE, lines, strict=True):
            found = counted.get((name, phase))
            assert (0.0 if found is None else found.any) == pytest.approx(current, abs=NEAR_A)


REACTIVE = "main", LimitQuantity.REACTIVE_POWER, None
NO_BASE = {"main": BaseLoad()}


@pytest.mark.parametrize(
    ("low_var", "high_var", "reactive_a", "over"),
    [
        (-2000.0, 6000.0, 8.0, False),
        (-6000.0, 5000.0, 8.0, True),
        (-6000.0, 2000.0, -8.0, False),
        (-5000.0, 6000.0, -8.0, True),
    ],
)
def test_reactive_power_is_held_within_its_own_limits_on_either_side(
    low_var: float, high_var: float, reactive_a: float, over: bool
) -> None:
    """8 A on three conductors are 5.5 kvar."""
    one = station("one")
    evses = Circuits({"main": circuit("main", None, Connection.WYE, 400.0)}, [one])
    caps: Caps = {REACTIVE: (low_var, high_var)}
    book = told([one], {"one": Amount(4.0, reactive_a)})
    found = guard.over(book, evses, caps, NO_BASE, 0.0)
    assert [(excess.circuit, excess.phase, excess.side) for excess in found] == [("main", None, "reactive")] * over
    before = told([one], {"one": Amount(4.0)})
    admission = guard.admit(before, {"one": Amount(4.0, reactive_a)}, 0.0, circuits=evses, caps=caps, base=NO_BASE)
    reached = max((abs(write.amount.reactive_a) for write in admission.writes), default=0.0)
    bound_var = high_var if reactive_a > 0 else -low_var
    assert 3 * VOLTS * reached <= bound_var + 1
    assert over or reached == abs(reactive_a)


def test_a_circuits_kva_holds_though_no_limit_names_it() -> None:
    stations = [station("one"), station("two")]
    evses = Circuits({"main": circuit("main", None, Connection.WYE, 400.0, rating_kva=15.0)}, stations)
    book = told(stations, {"one": Amount(6.0), "two": Amount(6.0)})
    wanted = {"one": Amount(16.0), "two": Amount(16.0)}
    admission = guard.admit(book, wanted, 0.0, circuits=evses, base=NO_BASE)
    told_a = {"one": 6.0, "two": 6.0} | {write.evse: write.amount.active_a for write in admission.writes}
    assert 13_800 <= 3 * VOLTS * sum(told_a.values()) <= 15_001
    reactive = {"main": BaseLoad(reactive_a=(15.0,) * 3)}
    assert not guard.over(told(stations, dict.fromkeys(wanted, Amount(7.5))), evses, {}, reactive, 0.0)
    (found,) = guard.over(told(stations, dict.fromkeys(wanted, Amount(8.5))), evses, {}, reactive, 0.0)
    assert (found.phase, found.limit) == (None, 15_000.0)
    assert found.found == pytest.approx(3 * VOLTS * math.hypot(17.0, 15.0), rel=0.01)
