# SPDX-License-Identifier: Apache-2.0
"""Currents in the depot's circuits: phasors, added up the tree. Pure.

Voltages are taken as stiff and symmetric: L1 at 0, L2 at -120, L3 at +120 degrees. What is connected between lines, or
behind a delta-wye transformer, adds to two conductors with its own angle, which no sum of magnitudes can tell.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Mapping
from typing import TypeAlias

from derms_agent.model import Circuit, Connection, Phase

Phasors: TypeAlias = "tuple[complex, complex, complex]"
"""Currents of L1, L2 and L3 in A."""

NONE: Phasors = (0j, 0j, 0j)
ANGLES: Phasors = (1 + 0j, cmath.rect(1, -2 * math.pi / 3), cmath.rect(1, 2 * math.pi / 3))
_SQRT3 = math.sqrt(3)
_ENDS = 2
_INDEX = {Phase.L1: 0, Phase.L2: 1, Phase.L3: 2}


def add(one: Phasors, other: Phasors) -> Phasors:
    """Return the sum, conductor by conductor."""
    return (one[0] + other[0], one[1] + other[1], one[2] + other[2])


def neutral_voltage(circuit: Circuit) -> float:
    """Return the voltage from a line to neutral, in V."""
    return circuit.voltage_v if circuit.connection is Connection.SINGLE_PHASE else circuit.voltage_v / _SQRT3


def elements(circuit: Circuit, conductors: int) -> int:
    """Return how many elements a load has, in each of which the current of its conductors flows.

    In a delta circuit two conductors are the two ends of one.
    """
    return 1 if circuit.connection is Connection.DELTA and conductors <= _ENDS else conductors


def load_voltage(circuit: Circuit, conductors: int) -> float:
    """Return the voltage across one element of a load, in V: between lines for what has one in a delta circuit."""
    between_lines = circuit.connection is Connection.DELTA and conductors <= _ENDS
    return circuit.voltage_v if between_lines else neutral_voltage(circuit)


def load_currents(circuit: Circuit, phases: tuple[Phase, ...], current_a: float) -> Phasors:
    """Return the line currents of a load that draws `current_a` in each of its conductors, at unity power factor."""
    currents = [0j, 0j, 0j]
    indices = [_INDEX[phase] for phase in phases]
    if circuit.connection is Connection.DELTA and len(indices) == _ENDS:
        here, there = indices
        between = (ANGLES[here] - ANGLES[there]) / _SQRT3 * current_a
        currents[here] += between
        currents[there] -= between
    else:
        for index in indices:
            currents[index] += ANGLES[index] * current_a
    return (currents[0], currents[1], currents[2])


def currents_of(circuit: Circuit, phases: tuple[Phase, ...], loaded: int) -> Phasors:
    """Return the line currents of an EVSE per A of a vehicle that loads so many of its elements.

    In a delta circuit one element lies between two conductors.
    """
    between_lines = circuit.connection is Connection.DELTA and loaded == 1
    return load_currents(circuit, phases[: _ENDS if between_lines else loaded], 1.0)


def power_currents(circuit: Circuit, power_w: float, reactive_var: float) -> Phasors:
    """Return the line currents of a symmetric three-phase load."""
    current = complex(power_w, -reactive_var) / (3 * neutral_voltage(circuit))
    return (ANGLES[0] * current, ANGLES[1] * current, ANGLES[2] * current)


class Tree:
    """Circuits and how they hang together, worked out once."""

    def __init__(self, circuits: Mapping[str, Circuit]) -> None:
        self._order: list[tuple[str, list[tuple[str, float]], bool]] = []
        children: dict[str, list[tuple[str, float]]] = {name: [] for name in circuits}
        for name, circuit in circuits.items():
            if circuit.parent is not None:
                ratio = neutral_voltage(circuit) / neutral_voltage(circuits[circuit.parent])
                children[circuit.parent].append((name, ratio))

        def add(name: str) -> None:
            for child, _ratio in children[name]:
                add(child)
            self._order.append((name, children[name], circuits[name].connection is Connection.DELTA_WYE))

        for name, circuit in circuits.items():
            if circuit.parent is None:
                add(name)

    def currents(self, loads: Mapping[str, Phasors]) -> dict[str, Phasors]:
        """Return the line currents of every circuit, from what hangs on each directly, its children's included.

        Those of a delta-wye circuit are on its delta side, at its own voltage.
        """
        result: dict[str, Phasors] = {}
        for name, children, delta_wye in self._order:
            a, b, c = loads.get(name, NONE)
            for child, ratio in children:
                x, y, z = result[child]
                a, b, c = a + x * ratio, b + y * ratio, c + z * ratio
            result[name] = ((a - b) / _SQRT3, (b - c) / _SQRT3, (c - a) / _SQRT3) if delta_wye else (a, b, c)
        return result


def circuit_currents(circuits: Mapping[str, Circuit], loads: Mapping[str, Phasors]) -> dict[str, Phasors]:
    """Return the line currents of every circuit, as `Tree.currents` does."""
    return Tree(circuits).currents(loads)


def powers(circuit: Circuit, currents: Phasors) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return active (W) and reactive (var) power per phase, against the line-to-neutral voltages."""
    volts = neutral_voltage(circuit)
    a, b, c = currents
    one, two, three = volts * a.conjugate(), volts * ANGLES[1] * b.conjugate(), volts * ANGLES[2] * c.conjugate()
    return (one.real, two.real, three.real), (one.imag, two.imag, three.imag)
