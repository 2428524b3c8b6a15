# SPDX-License-Identifier: Apache-2.0
"""Looks ahead over the sessions that are there: who charges when, until the last of them has left.

One linear program (HiGHS). Time is cut into slices at departures, and finer near now; within a slice nobody comes or
goes, constraints are convex, and so a constant current does as well as any other. A variable is the current of one EVSE
in one slice; constraints are the network's inner polygon on the branches' sums in each slice, each vehicle's need, and
what it can take. The objective is the energy delivered, where energy that comes sooner weighs more, and more so for a
vehicle that leaves soon: nothing is known of those that will arrive, but that they will want what is not used up by
then, and that a vehicle that stays can wait for a quiet hour.

A plan is advice. The cycle takes it as a wish, checks every ampere itself, and does without where there is none: where
a plan is late, old or failed, nothing is unsafe.

Currents are A per conductor; a need is a charge in A·s, which is energy over the EVSE's W per A.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from derms_agent.control.network import Floats, Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a vehicle is to get: A·s until its departure, at no more than `most_a`; `running` if it charges already."""

    evse: str
    charge_as: float
    departure_at_s: float
    most_a: float
    running: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """How a plan is made.

    Energy delivered at once weighs `1 + sooner`, later energy less, down to 1 with the time constant `fade_s`; of that
    bonus the part `leaving` is for vehicles that depart within a time of that order; `steady` is more of it for those
    that charge already, so that a new plan changes places only for a reason. `edges_s` are the slices near now,
    `variables` bounds the program's size, `time_limit_s` its time.
    """

    sooner: float = 1.0
    leaving: float = 0.5
    steady: float = 0.05
    fade_s: float = 18_000.0
    edges_s: tuple[float, ...] = (300.0, 900.0, 2_700.0, 8_100.0, 24_300.0)
    facets: int = 36
    variables: int = 8_000
    time_limit_s: float = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The currents in A of each EVSE in each slice; slice k is from `edges_s[k]` to `edges_s[k + 1]`.

    It is made at its first edge. Raises `ValueError` where there is none, or not one current for each slice.
    """

    edges_s: tuple[float, ...]
    currents_a: Mapping[str, tuple[float, ...]]

    def __post_init__(self) -> None:
        for evse, currents in self.currents_a.items():
            if len(currents) != len(self.edges_s) - 1:
                raise ValueError(
                    f"found {len(currents)} currents of {evse} and {len(self.edges_s)} edges in a plan, "
                    "expected a current between each two"
                )
        if not self.edges_s:
            raise ValueError("found a plan without edges, expected the time at which it was made")

    def current_a(self, evse: str, now_s: float) -> float:
        """Return what the plan gives an EVSE at a time; 0 for one that it does not know, and outside of its time."""
        return self.currents_at_a(now_s).get(evse, 0.0)

    def currents_at_a(self, now_s: float) -> Mapping[str, float]:
        """Return what the plan gives each EVSE that it knows at a time; nothing outside of its time."""
        index = bisect.bisect_right(self.edges_s, now_s) - 1
        if not 0 <= index < len(self.edges_s) - 1:
            return {}
        return {evse: currents[index] for evse, currents in self.currents_a.items()}

    def charge_as(self, evse: str, start_s: float, end_s: float) -> float:
        """Return the charge in A·s that the plan gives an EVSE from one time to another."""
        return self.charges_as(start_s, end_s).get(evse, 0.0)

    def charges_as(self, start_s: float, end_s: float) -> Mapping[str, float]:
        """Return the charge in A·s that the plan gives each EVSE that it knows from one time to another."""
        within = [
            (index, min(edge, end_s) - max(self.edges_s[index], start_s))
            for index, edge in enumerate(self.edges_s[1:])
            if edge > start_s and self.edges_s[index] < end_s
        ]
        return {
            evse: sum([currents[index] * length_s for index, length_s in within])
            for evse, currents in self.currents_a.items()
        }


def slices(needs: Sequence[Need], now_s: float, outlook: Outlook) -> tuple[float, ...]:
    """Return the edges of the plan's slices: the near ones, and departures, thinned out where there are too many."""
    last = max(need.departure_at_s for need in needs)
    near = [now_s + edge for edge in outlook.edges_s if now_s + edge < last]
    departures = sorted({need.departure_at_s for need in needs})
    room = max(outlook.variables // len(needs) - len(near), 2)
    if len(departures) > room:
        departures = [departures[round((index + 1) * len(departures) / room) - 1] for index in range(room)]
    return tuple(sorted({now_s, *near, *departures}))


def plan(
    network: Network, needs: Sequence[Need], limits: Floats, reserved_a: Floats, *, now_s: float, outlook: Outlook
) -> Plan | None:
    """Return the plan for these needs, or None where none could be made in time.

    :param limits: of the network's constraints (`Network.limits`), taken to last
    :param reserved_a: by EVSE, what those without a known departure are to have in the meantime
    """
    # Control's own process never plans: it starts without SciPy's second, and does without its 50 MiB.
    from scipy import sparse  # noqa: PLC0415
    from scipy.optimize import linprog  # noqa: PLC0415

    needs = [need for need in needs if need.charge_as > 0 and need.most_a > 0 and need.departure_at_s > now_s]
    if not needs:
        return Plan(edges_s=(now_s,), currents_a={})
    edges = np.array(slices(needs, now_s, outlook))
    lengths = np.diff(edges)
    departures = np.array([need.departure_at_s for need in needs])
    most = np.array([need.most_a for need in needs])
    charges = np.array([need.charge_as for need in needs])
    # In the slice in which it departs a vehicle can have its current for a part of the time.
    present = np.clip((departures[:, None] - edges[None, :-1]) / lengths[None, :], 0.0, 1.0)
    who, when = np.nonzero(present > 0)
    middle = (edges[:-1] + edges[1:]) / 2 - now_s
    soon = np.exp(-middle / outlook.fade_s)
    leaving = 1 - outlook.leaving + outlook.leaving * np.exp(-(departures - now_s) / outlook.fade_s)
    running = np.array([need.running for need in needs], dtype=float)
    weights = 1 + outlook.sooner * soon[when] * (leaving + outlook.steady * running)[who]

    polygon = network.polygon(limits, inner=True, facets=outlook.facets)
    spare = np.maximum(polygon.limits - polygon.coefficients @ network.branch_currents(reserved_a), 0.0)
    count, branches, steps = len(who), len(network.branches), len(lengths)
    sums = when * branches + network.branch_of[np.array([network.place[need.evse] for need in needs])[who]]
    columns = np.arange(count)
    tied = sparse.hstack(
        [
            sparse.csr_array((np.ones(count), (sums, columns)), shape=(steps * branches, count)),
            -sparse.eye_array(steps * branches),
        ]
    )
    circuits = sparse.hstack(
        [sparse.csr_array((steps * len(spare), count)), sparse.kron(sparse.eye_array(steps), polygon.coefficients)]
    )
    vehicles = sparse.csr_array((lengths[when], (who, columns)), shape=(len(needs), count + steps * branches))
    result = linprog(
        np.concatenate([-weights * lengths[when], np.zeros(steps * branches)]),
        A_ub=sparse.vstack([circuits, vehicles]).tocsr(),
        b_ub=np.concatenate([np.tile(spare, steps), charges]),
        A_eq=tied.tocsr(),
        b_eq=np.zeros(steps * branches),
        bounds=np.column_stack(
            [
                np.zeros(count + steps * branches),
                np.append((most[:, None] * present)[who, when], np.full(steps * branches, math.inf)),
            ]
        ),
        method="highs",
        options={"time_limit": outlook.time_limit_s},
    )
    if result.status != 0:
        return None
    currents = np.zeros((len(needs), steps))
    currents[who, when] = np.maximum(result.x[:count], 0.0)
    return Plan(
        edges_s=tuple(edges.tolist()),
        currents_a={need.evse: tuple(row) for need, row in zip(needs, currents.tolist(), strict=True)},
    )
