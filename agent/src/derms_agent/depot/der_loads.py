# SPDX-License-Identifier: Apache-2.0
"""What DERs may draw and inject by the limits that are declared for them (`limits` of `der_settings`). Pure.

A DER has no EVSE and no place of its own in the sum of what flows while nobody controls (`unattended`): what it draws
is in its circuit's `base_load_a`, whatever WMax says, and what it injects gives nobody headroom. (One whose storage
control may use has a place there, and what it draws is in no base load.) So declared limits are
held against that: what the DERs on a circuit may draw against its base load, and what those beneath it may inject
against its ratings, with no load at all to take it off. Of a limit in W it is the least current that counts, that at a
power factor of one. What is not declared is not known here; no limit is ever set above the rating that a DER tells.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from derms_agent.depot.circuit_loads import Load, apparent_va
from derms_agent.depot.unattended import TOLERANCE, overloads
from derms_agent.grid_code.functions import Limits
from derms_agent.model import Circuit, Phase

_NONE = (0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class TooMuch:
    """What a DER may do by its limits together with others, and what its circuits bear."""

    found: str
    expected: str


def too_much(
    circuits: Mapping[str, Circuit], declared: Mapping[str, tuple[str, Limits]], used: Collection[str] = ()
) -> dict[str, TooMuch]:
    """Return the DERs whose limits the circuits could not bear.

    `declared` has each one's circuit and limits; `used` are those whose storage control may use.
    """
    in_base = {name: one for name, one in declared.items() if name not in used}
    return {**dict(_injected(circuits, declared)), **dict(_drawn(circuits, in_base))}


def _drawn(
    circuits: Mapping[str, Circuit], declared: Mapping[str, tuple[str, Limits]]
) -> Iterator[tuple[str, TooMuch]]:
    by_circuit: dict[str, dict[str, float]] = {}
    for name, (circuit, limits) in declared.items():
        powers = (limits.charge_power_w, limits.charge_apparent_power_va)
        if any(power is not None for power in powers):
            amperes = _amperes(circuits[circuit], *powers, current_a=limits.current_a)
            by_circuit.setdefault(circuit, {})[name] = amperes
    for circuit, drawn in by_circuit.items():
        base = circuits[circuit].base_load_a
        borne = min(base[list(Phase).index(phase)] for phase in _phases(circuits[circuit]))
        if sum(drawn.values()) > borne + TOLERANCE:
            found = f"{', '.join(drawn)} to draw {sum(drawn.values()):.4g} A from circuit {circuit}"
            expected = f"at most {borne:g} A, its base_load_a: what DERs draw is part of that"
            yield from ((name, TooMuch(found, expected)) for name in drawn)


def _injected(
    circuits: Mapping[str, Circuit], declared: Mapping[str, tuple[str, Limits]]
) -> Iterator[tuple[str, TooMuch]]:
    loads: dict[str, Load] = {}
    for name, (circuit, limits) in declared.items():
        whole = (limits.active_power_w, limits.apparent_power_va)
        storage = (limits.discharge_power_w, limits.discharge_apparent_power_va)
        bounds = whole if any(power is not None for power in (*whole, limits.current_a)) else storage
        amperes = _amperes(circuits[circuit], *bounds, current_a=limits.current_a)
        if amperes:
            loads[name] = Load(circuit, _phases(circuits[circuit]), amperes)
    without_load = {name: replace(circuit, base_load_a=_NONE) for name, circuit in circuits.items()}
    for over in overloads(without_load, loads.values()).values():
        beneath = [name for name, load in loads.items() if over.circuit.name in _above(circuits, load.circuit)]
        found = f"{', '.join(beneath)} to inject more than is borne by {over}"
        yield from ((name, TooMuch(found, "limits within the circuits' ratings")) for name in beneath)


def _amperes(circuit: Circuit, *powers_va: float | None, current_a: float | None) -> float:
    """Return what the smallest of some limits allows, in A on each conductor; 0 where there is none."""
    of_one_ampere = apparent_va(circuit, _phases(circuit), 1.0)
    allowed = [power / of_one_ampere for power in powers_va if power is not None]
    return min([*allowed, *([] if current_a is None else [current_a])], default=0.0)


def _phases(circuit: Circuit) -> tuple[Phase, ...]:
    there = tuple(phase for phase, amperes in zip(Phase, circuit.rating_a, strict=True) if amperes)
    return there or tuple(Phase)


def _above(circuits: Mapping[str, Circuit], name: str | None) -> Iterator[str]:
    while name is not None:
        yield name
        name = circuits[name].parent
