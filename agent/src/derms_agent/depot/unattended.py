# SPDX-License-Identifier: Apache-2.0
"""What EVSEs may draw while nobody controls them, and which circuits that would be too much for. Pure.

Of an EVSE's fallback and what holds after its boot the higher counts; what is not known of it counts as its rating.
DERs do not count here, whatever they are set to: what they draw is in `base_load_a`, against which `der_loads` holds
their limits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from derms_agent.depot import circuit_loads
from derms_agent.depot.circuit_loads import Load
from derms_agent.model import Circuit, Connection, Evse, PerPhase, Phase, Value, apparent_a
from derms_agent.profiles.profile import Profile

# What adding a few hundred numbers may leave over.
TOLERANCE = 1e-9


def unattended_a(profile: Profile, evse: Evse, circuit: Circuit, settings: Mapping[str, Value]) -> float:
    """Return what an EVSE may draw by itself, in A on each of its conductors; `settings` by the names of points.

    What it falls back to in W it may draw with its least power factor.
    """
    between_lines = circuit.line_voltage_v
    phases, voltage_v = len(evse.phases), between_lines
    if phases == 1:
        voltage_v = between_lines / math.sqrt(3)
    elif circuit.connection is Connection.DELTA and phases < len(Phase):
        # One load between two lines, which a power stands on as on one conductor at their voltage.
        phases = 1
    active_a = profile.unattended_a(settings, evse.rating_a, voltage_v, phases)
    return apparent_a(active_a, evse.power_factor, evse.rating_a)


@dataclass(frozen=True, slots=True)
class Overload:
    """A circuit whose conductors, or whose apparent power in kVA, would be too much; None for what would not."""

    circuit: Circuit
    current: str | None
    apparent_kva: float | None

    def __str__(self) -> str:
        """Say what would flow, and what may."""
        found = [] if self.current is None else [f"{self.current}, rated {rating(self.circuit)}"]
        if self.apparent_kva is not None:
            found.append(f"{self.apparent_kva:.4g} kVA, rated {self.circuit.rating_kva:g} kVA")
        return f"circuit {self.circuit.name}: {', '.join(found)}"


def overloads(circuits: Mapping[str, Circuit], loads: Iterable[Load]) -> dict[str, Overload]:
    """Return the circuits that loads would be too much for, base loads included, in the order of the circuits."""
    worst = circuit_loads.worst(circuits, tuple(loads))
    found: dict[str, Overload] = {}
    for name, circuit in circuits.items():
        current = _over(worst[name].current_a, circuit.rating_a)
        kva = worst[name].apparent_va / 1000
        apparent = kva if circuit.rating_kva is not None and kva > circuit.rating_kva + TOLERANCE else None
        if current or apparent is not None:
            found[name] = Overload(circuit, current or None, apparent)
    return found


def rating(circuit: Circuit) -> str:
    """Return what a circuit's conductors may carry, in words."""
    if len(set(circuit.rating_a)) == 1:
        return f"{circuit.rating_a[0]:g} A"
    return f"{', '.join(f'{amperes:g}' for amperes in circuit.rating_a)} A"


def _over(worst_a: PerPhase, rating_a: PerPhase) -> str:
    """Return the phases that may carry more than their rating, and how much."""
    by_current: dict[float, list[str]] = {}
    for phase, current, rated in zip(Phase, worst_a, rating_a, strict=True):
        if current > rated + TOLERANCE:
            by_current.setdefault(round(current, 1), []).append(phase.value)
    return ", ".join(f"{current:g} A on {'/'.join(phases)}" for current, phases in by_current.items())
