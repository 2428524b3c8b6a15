# SPDX-License-Identifier: Apache-2.0
"""The worst that circuits can carry while nobody controls the EVSEs: a bound that holds whatever their power factors.

What is known of an EVSE that nobody speaks to is one number, the most A that it may draw on each of its conductors. The
angles between the currents are not known, so each step takes the worst of them:

- **wye, single_phase**: the current of a line conductor is the phasor sum of what its loads draw from it, and by the
  triangle inequality no more than the plain sum of their magnitudes; it is reached when all have the same power factor.
- **delta** (three conductors, no neutral; loads between lines): an EVSE names the conductors that it is wired to, and
  draws at most its own bound from each of them. The current of a line is again the phasor sum of what hangs on it, and
  the plain sum its bound. (A sum over the two branches of a line, without the angle between them, would count a
  three-phase EVSE twice.)
- **delta_wye**: a transformer whose delta side the circuit is; what hangs on it is on its wye side. Two windings meet
  in each delta line: I_A = (I_a - I_b) / √3, all referred to the delta side's voltage. The magnitude is at most
  (|I_a| + |I_b|) / √3, which is reached when the two currents are opposite: impossible for loads of one power factor,
  possible for any. Which two meet depends on the vector group, which the file does not name, so the greater of both
  neighbours counts. For a balanced load of one power factor the bound is 2 / √3 = 1.15 times what flows.

A bound of sums is monotone: no EVSE that draws more lowers any circuit's load. That would not hold for phasor sums of
known angles (facts on delta primaries), which is why generation and discharge never count here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from derms_agent.model import SAME_VOLTAGE, Circuit, Connection, PerPhase, Phase

PHASES = tuple(Phase)
_SQRT3 = math.sqrt(3)


@dataclass(frozen=True, slots=True)
class Load:
    """What one EVSE may draw by itself: at most `current_a` on each of the conductors."""

    circuit: str
    phases: tuple[Phase, ...]
    current_a: float


@dataclass(frozen=True, slots=True)
class Worst:
    """The most that a circuit may carry: A per conductor, and VA for all of them together."""

    current_a: PerPhase
    apparent_va: float


def apparent_va(circuit: Circuit, phases: Sequence[Phase], current_a: float) -> float:
    """Return the apparent power in VA of a load that draws a current on each of the conductors."""
    between_lines = circuit.line_voltage_v
    if circuit.connection is Connection.DELTA and len(phases) < len(PHASES):
        return between_lines * current_a  # one load between two lines
    return between_lines / _SQRT3 * current_a * len(phases)


def worst(circuits: Mapping[str, Circuit], loads: Sequence[Load]) -> dict[str, Worst]:
    """Return the worst load of each circuit, base loads included; every parent must exist, and there is no cycle."""
    currents = {name: [0.0, 0.0, 0.0] for name in circuits}
    powers = dict.fromkeys(circuits, 0.0)
    for load in loads:
        for phase in load.phases:
            currents[load.circuit][PHASES.index(phase)] += load.current_a
        powers[load.circuit] += apparent_va(circuits[load.circuit], load.phases, load.current_a)
    result: dict[str, Worst] = {}
    for circuit in _children_first(circuits):
        beneath = currents[circuit.name]
        if circuit.connection is Connection.DELTA_WYE:
            beneath = _delta_lines(beneath)
        own = [current + base for current, base in zip(beneath, circuit.base_load_a, strict=True)]
        between_lines = circuit.line_voltage_v
        power = powers[circuit.name] + sum(circuit.base_load_a) * between_lines / _SQRT3
        result[circuit.name] = Worst((own[0], own[1], own[2]), power)
        if circuit.parent is None:
            continue
        ratio = between_lines / circuits[circuit.parent].line_voltage_v
        if abs(ratio - 1) <= SAME_VOLTAGE:
            ratio = 1.0
        above = currents[circuit.parent]
        for index, current in enumerate(own):
            above[index] += current * ratio
        powers[circuit.parent] += power
    return result


def _delta_lines(windings: Sequence[float]) -> list[float]:
    """Return the bound of each delta line over the two windings that may meet in it."""
    return [
        (own + max(other for place, other in enumerate(windings) if place != index)) / _SQRT3
        for index, own in enumerate(windings)
    ]


def _children_first(circuits: Mapping[str, Circuit]) -> Iterator[Circuit]:
    """Yield every circuit after all that hang on it."""

    def depth(circuit: Circuit) -> int:
        steps = 0
        while circuit.parent is not None:
            circuit, steps = circuits[circuit.parent], steps + 1
        return steps

    yield from sorted(circuits.values(), key=depth, reverse=True)


def cycle_through(parents: Mapping[str, str | None], name: str) -> tuple[str, ...]:
    """Return the circuits that lead from a circuit back to itself, or nothing if none do."""
    chain = [name]
    above = parents.get(name)
    while above is not None and above not in chain:
        chain.append(above)
        above = parents.get(above)
    return (*chain, name) if above == name else ()
