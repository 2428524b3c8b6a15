# SPDX-License-Identifier: Apache-2.0
"""The circuit tree as constraints on the currents of its EVSEs: exact as phasors, and as polygons for linear programs.

Voltages are taken as stiff and symmetric (L1 at 0, L2 at -120, L3 at +120 degrees) and EVSEs as unity power factor, so
an EVSE is one number, the A that flow in each of its conductors, and a circuit's conductor carries a sum of numbers
times fixed phasors. What a load adds to its own circuit:

- wye, single-phase, and whatever hangs on a delta-wye transformer: its current, at its line's angle, in each conductor;
- delta, two lines: the branch between them, I_AB at 30, I_BC at -90, I_CA at 150 degrees, in one line and back in the
  other; delta, one line: the branch from it to the next; delta, three lines: balanced line currents.

A circuit's currents go up to its parent by the ratio of their voltages; through a delta-wye transformer a delta line
carries the difference of two windings over √3. Which two depends on the vector group, which the depot file does not
name: both are constraints. Unity power factor is an assumption about EVSEs; what they draw in fact is for the guard.

**Why no schedule that fits can overload a circuit by drawing less.** Sums of phasors are not monotone: on a
transformer's delta side a branch that stops can raise a line. Vehicles draw less than they may whenever they like, and
a write may be late, so `fits` and the inner polygons ask for more than the sum itself: every conductor must hold for
*any* subset of what flows. A sum is as long as its greatest projection on a direction, and the greatest projection
over subsets drops what points backwards; it is therefore reached by one of the few subsets that lie within a half-plane
(`corners`), and a polygon's facet covers all subsets once its negative coefficients are zero. These loads are monotone.
Discharge gives no headroom: what charges and what discharges must each fit alone.

**Why a polygon is safe.** The phasors of a conductor span an arc of directions; so do their sums. The arc is cut into
equal steps: chords between points of the circle lie inside it (safe), tangents outside it (a bound), and a conductor
whose phasors all point the same way needs one facet, which is exact.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from derms_agent.model import SAME_VOLTAGE, Circuit, Connection, Evse, PerPhase, Phase

Floats: TypeAlias = "npt.NDArray[np.float64]"
Complexes: TypeAlias = "npt.NDArray[np.complex128]"
Indices: TypeAlias = "npt.NDArray[np.intp]"
Phasors: TypeAlias = "tuple[complex, complex, complex]"
"""Currents of L1, L2 and L3 in A."""
Touch: TypeAlias = "tuple[int, float, float, float]"
"""A corner that a branch loads: its index, what 1 A adds to it (real and imaginary part), and that squared."""

PHASES = tuple(Phase)
LINES: Phasors = (1 + 0j, cmath.rect(1, -2 * math.pi / 3), cmath.rect(1, 2 * math.pi / 3))
VECTOR_GROUPS = (-1, 1)
# A thousandth of a mA, so that rounding is no overload.
TOLERANCE_A = 1e-6
_SQRT3 = math.sqrt(3)
_RIGHT_ANGLE = math.pi / 2
_NOTHING = 1e-9


@dataclass(frozen=True, slots=True)
class Conductor:
    """What a limit may be set on: a line of a circuit in A, or all of a circuit in VA (`phase` None)."""

    circuit: str
    phase: Phase | None
    rating: float


@dataclass(frozen=True, slots=True)
class Polygon:
    """Linear constraints on the currents of branches: `coefficients @ branch currents <= limits`."""

    coefficients: Floats
    limits: Floats


def load_currents(circuit: Circuit, phases: tuple[Phase, ...]) -> Phasors:
    """Return what a load of 1 A in each of its conductors adds to the lines of its circuit."""
    lines = [0j, 0j, 0j]
    places = [PHASES.index(phase) for phase in phases]
    if circuit.connection is Connection.DELTA and len(places) < len(PHASES):
        here = places[0]
        there = places[1] if len(places) > 1 else (here + 1) % 3
        branch = (LINES[here] - LINES[there]) / _SQRT3
        lines[here], lines[there] = branch, -branch
    else:
        for place in places:
            lines[place] = LINES[place]
    return (lines[0], lines[1], lines[2])


def watts_per_a(circuit: Circuit, phases: tuple[Phase, ...]) -> float:
    """Return the W that a load takes for each A in its conductors."""
    if circuit.connection is Connection.DELTA and len(phases) < len(PHASES):
        return circuit.line_voltage_v
    return circuit.line_voltage_v / _SQRT3 * len(phases)


def circuit_currents(
    circuits: Mapping[str, Circuit], loads: Mapping[str, Phasors], vector_group: int = -1
) -> dict[str, Phasors]:
    """Return the line currents in A of each circuit, from what hangs on each directly; delta-wye: on its delta side."""
    children: dict[str | None, list[str]] = {}
    for name, circuit in circuits.items():
        children.setdefault(circuit.parent, []).append(name)
    result: dict[str, Phasors] = {}

    def visit(name: str) -> Phasors:
        circuit = circuits[name]
        total = list(loads.get(name, (0j, 0j, 0j)))
        for child in children.get(name, ()):
            ratio = circuits[child].line_voltage_v / circuit.line_voltage_v
            if abs(ratio - 1) <= SAME_VOLTAGE:
                ratio = 1.0
            for place, current in enumerate(visit(child)):
                total[place] += current * ratio
        if circuit.connection is Connection.DELTA_WYE:
            total = [(total[place] - total[(place + vector_group) % 3]) / _SQRT3 for place in range(3)]
        result[name] = (total[0], total[1], total[2])
        return result[name]

    for root in children.get(None, ()):
        visit(root)
    return result


class Network:
    """The constraints of one circuit tree. EVSEs that hang on the same circuit in the same way make up a branch.

    :param circuits: every circuit by name; each parent is among them
    :param evses: the EVSEs; their order is that of every array of currents
    """

    def __init__(self, circuits: Mapping[str, Circuit], evses: Iterable[Evse]) -> None:
        self.circuits = dict(circuits)
        wired = tuple(evses)
        self.evses = tuple(evse.name for evse in wired)
        self.place = {name: index for index, name in enumerate(self.evses)}
        self.rank_of_name: Indices = np.zeros(len(wired), dtype=np.intp)
        self.rank_of_name[sorted(range(len(wired)), key=self.evses.__getitem__)] = np.arange(len(wired))
        kinds: dict[tuple[str, tuple[Phase, ...]], int] = {}
        self.branch_of: Indices = np.array(
            [kinds.setdefault((evse.circuit, evse.phases), len(kinds)) for evse in wired], dtype=np.intp
        )
        self.branches = tuple(kinds)
        watts = [watts_per_a(self.circuits[evse.circuit], evse.phases) for evse in wired]
        self.watts_per_a: Floats = np.array(watts, dtype=float)
        self.conductors = tuple(_conductors(self.circuits))
        self._constraints, self._joins = self._unlike(self._coefficients())
        restricted, self._corner_of = _all_corners(self._constraints)
        # Few branches load a corner: what each of them adds there, corner by corner.
        self._corner_at, self._branch_at = np.nonzero(restricted)
        self._added_at: Complexes = restricted[self._corner_at, self._branch_at]
        self._branches_of: list[int] = self.branch_of.tolist()
        self._above: list[list[Touch]] = [
            [(corner, step.real, step.imag, abs(step) ** 2) for corner, step in enumerate(column) if step]
            for column in restricted.T.tolist()
        ]
        self.group_of = self._alike_at_root()[self.branch_of]

    def _coefficients(self) -> list[tuple[int, Complexes]]:
        """Return, for each conductor and vector group, what 1 A of each branch adds to it."""
        rows: list[tuple[int, Complexes]] = []
        for group in VECTOR_GROUPS:
            columns = [
                circuit_currents(self.circuits, {circuit: load_currents(self.circuits[circuit], phases)}, group)
                for circuit, phases in self.branches
            ]
            for index, conductor in enumerate(self.conductors):
                if conductor.phase is None:
                    row = [
                        complex(watts_per_a(self.circuits[circuit], phases) * self._beneath(circuit, conductor.circuit))
                        for circuit, phases in self.branches
                    ]
                else:
                    line = PHASES.index(conductor.phase)
                    row = [column[conductor.circuit][line] for column in columns]
                rows.append((index, np.array(row, dtype=complex)))
        return rows

    def _unlike(self, rows: list[tuple[int, Complexes]]) -> tuple[Complexes, Indices]:
        """Merge rows that differ by no more than a turn; return them, and pairs (conductor, constraint)."""
        unlike: dict[bytes, int] = {}
        kept: list[Complexes] = []
        joins: set[tuple[int, int]] = set()
        for conductor, row in rows:
            loaded = np.flatnonzero(np.abs(row) > _NOTHING)
            if not loaded.size:
                continue
            turned = row * (abs(row[loaded[0]]) / row[loaded[0]])
            key = (np.round(turned, 7) + 0.0).tobytes()
            if key not in unlike:
                unlike[key] = len(kept)
                kept.append(turned)
            joins.add((conductor, unlike[key]))
        constraints = np.array(kept, dtype=complex).reshape(len(kept), len(self.branches))
        return constraints, np.array(sorted(joins), dtype=np.intp).reshape(-1, 2)

    def _alike_at_root(self) -> Indices:
        """Return a number for each branch, the same for those that load the roots' conductors alike."""
        roots = {index for index, one in enumerate(self.conductors) if self.circuits[one.circuit].parent is None}
        of_roots = sorted({constraint for conductor, constraint in self._joins.tolist() if conductor in roots})
        columns = np.round(self._constraints[of_roots], 6)
        numbers: dict[bytes, int] = {}
        found = [numbers.setdefault((column + 0.0).tobytes(), len(numbers)) for column in columns.T]
        return np.array(found, dtype=np.intp)

    def hangs_on(self, place: int, circuit: str) -> bool:
        """Return whether an EVSE's current flows through a circuit."""
        return self._beneath(self.branches[self.branch_of[place]][0], circuit)

    def _beneath(self, circuit: str, above: str) -> bool:
        at: str | None = circuit
        while at is not None and at != above:
            at = self.circuits[at].parent
        return at is not None

    def limits(self, of_conductors: Mapping[tuple[str, Phase | None], float] | None = None) -> Floats:
        """Return the limit of each constraint, in A or VA: the ratings, and whatever is lower among those given.

        A limit below zero leaves nothing: it is taken as zero here, and what should then be given back is no matter of
        the network's.
        """
        given = {} if of_conductors is None else of_conductors
        each = np.array(
            [min(one.rating, given.get((one.circuit, one.phase), math.inf)) for one in self.conductors], dtype=float
        )
        limits = np.full(len(self._constraints), np.inf)
        if self._joins.size:
            np.minimum.at(limits, self._joins[:, 1], np.maximum(each[self._joins[:, 0]], 0.0))
        return limits

    def branch_currents(self, currents: Floats) -> Floats:
        """Return the sum of the EVSEs' currents of each branch."""
        return np.bincount(self.branch_of, weights=currents, minlength=len(self.branches)).astype(float)

    def loads(self, currents: Floats) -> Floats:
        """Return the load of each constraint in A or VA, the worst over all subsets of currents ≥ 0."""
        return self.branch_loads(self.branch_currents(currents))

    def _flows(self, sums: Floats) -> Complexes:
        """Return the phasor that branches' currents add up to at each corner."""
        sums = sums[self._branch_at]
        count = len(self._corner_of)
        flows = np.empty(count, dtype=complex)
        flows.real = np.bincount(self._corner_at, self._added_at.real * sums, count)
        flows.imag = np.bincount(self._corner_at, self._added_at.imag * sums, count)
        return flows

    def branch_loads(self, sums: Floats) -> Floats:
        """Return the load of each constraint in A or VA, as `loads` does, of branches' currents ≥ 0."""
        corners = np.abs(self._flows(sums))
        worst = np.zeros(len(self._constraints))
        np.maximum.at(worst, self._corner_of, corners)
        return worst

    def fits(self, currents: Floats, limits: Floats) -> bool:
        """Return whether no constraint is over its limit, whatever subset of the charging, or discharging, flows."""
        over = limits + TOLERANCE_A
        charging = bool(np.all(self.loads(np.maximum(currents, 0.0)) <= over))
        return charging and (
            not bool(np.any(currents < 0)) or bool(np.all(self.loads(np.maximum(-currents, 0.0)) <= over))
        )

    def branches_fit(self, sums: Floats, limits: Floats) -> bool:
        """Return whether no constraint is over its limit, as `fits` does, with branches' currents ≥ 0."""
        over = limits[self._corner_of] + TOLERANCE_A
        return bool((np.abs(self._flows(sums)) <= over).all())

    def rise(self, sums: Floats, rates: Floats, limits: Floats) -> float:
        """Return how many times `rates` may be added to branches' currents until the first constraint is met.

        Infinite where none ever is; 0 where one is met already.

        :param sums: of branches, as currents ≥ 0 that fit
        :param rates: of branches, ≥ 0
        """
        flows, steps = self._flows(sums), self._flows(rates)
        most = limits[self._corner_of]
        squares = steps.real**2 + steps.imag**2
        loaded = (squares > _NOTHING) & np.isfinite(most)
        if not loaded.any():
            return math.inf
        # |flow + step·x| = limit, for x.
        flows, steps, squares = flows[loaded], steps[loaded], squares[loaded]
        gaps = np.maximum(most[loaded] ** 2 - (flows.real**2 + flows.imag**2), 0.0)
        along = flows.real * steps.real + flows.imag * steps.imag
        return float(np.min((np.sqrt(along * along + squares * gaps) - along) / squares))

    def loads_of(self, currents: Mapping[str, float | Phasors]) -> dict[str, PerPhase]:
        """Return the exact line currents in A of each circuit, the greater of both vector groups.

        An EVSE's current is what flows in each of its conductors at unity power factor, or the phasors of the three
        lines of its circuit where they are known.
        """
        loads: dict[str, list[complex]] = {}
        for name, current in currents.items():
            circuit, phases = self.branches[self.branch_of[self.place[name]]]
            if isinstance(current, tuple):
                lines = current
            else:
                one, two, three = load_currents(self.circuits[circuit], phases)
                lines = (one * current, two * current, three * current)
            total = loads.setdefault(circuit, [0j, 0j, 0j])
            for place, line in enumerate(lines):
                total[place] += line
        sums: dict[str, Phasors] = {name: (total[0], total[1], total[2]) for name, total in loads.items()}
        groups = [circuit_currents(self.circuits, sums, group) for group in VECTOR_GROUPS]
        return {
            name: (
                max(abs(group[name][0]) for group in groups),
                max(abs(group[name][1]) for group in groups),
                max(abs(group[name][2]) for group in groups),
            )
            for name in self.circuits
        }

    def met(self, sums: Floats, limits: Floats, within: float = TOLERANCE_A) -> npt.NDArray[np.bool_]:
        """Return, for each branch, whether it loads a constraint that is at its limit, or `within` that many A or VA.

        :param sums: of branches, as currents ≥ 0
        """
        at_limit = self.branch_loads(sums) >= limits - within
        blocked: npt.NDArray[np.bool_] = np.any(np.abs(self._constraints[at_limit]) > _NOTHING, axis=0)
        return blocked

    def room(self, limits: Floats) -> Room:
        """Return the room under these limits while nothing flows."""
        return Room(self._branches_of, self._above, limits[self._corner_of].tolist())

    def polygon(self, limits: Floats, *, inner: bool, facets: int = 48) -> Polygon:
        """Return the constraints as facets on branch currents, `facets` of them to a full circle.

        Inner: what fits it, fits (`fits`). Outer: all that keeps every conductor's own phasor sum within its limit.
        """
        rows: list[Floats] = []
        bounds: list[float] = []
        for coefficients, limit in zip(self._constraints, limits, strict=True):
            for normal, reach in _facets(coefficients, facets, inner):
                projected = (coefficients * cmath.rect(1, -normal)).real
                projected[np.abs(projected) < _NOTHING] = 0.0
                rows.append(np.maximum(projected, 0.0) if inner else projected)
                bounds.append(limit * reach)
        return _needed(np.array(rows).reshape(len(rows), len(self.branches)), np.array(bounds))


class Room:
    """What is left under limits while EVSEs are raised one after the other; it only ever shrinks.

    Plain numbers rather than arrays: a raise touches the few conductors above one EVSE.
    """

    def __init__(self, branch_of: list[int], above: list[list[Touch]], limits: list[float]) -> None:
        self._branch_of = branch_of
        self._squares = [limit * limit for limit in limits]
        self._above = [[touch for touch in touches if limits[touch[0]] < math.inf] for touches in above]
        self._real, self._imaginary = [0.0] * len(limits), [0.0] * len(limits)
        self._last = [math.inf] * len(above)

    def left(self, place: int, useful_a: float = TOLERANCE_A) -> float:
        """Return by how many A one EVSE may rise, all else as it is; 0 may stand for less than `useful_a`."""
        branch = self._branch_of[place]
        if self._last[branch] < useful_a:
            return 0.0
        least = math.inf
        for corner, real, imaginary, square in self._above[branch]:
            # |flow + step·x| = limit, for x.
            flow, turned = self._real[corner], self._imaginary[corner]
            gap = self._squares[corner] - (flow * flow + turned * turned)
            if gap <= 0:
                least = 0.0
                break
            along = flow * real + turned * imaginary
            rise = (math.sqrt(along * along + square * gap) - along) / square
            least = min(least, rise)
        # Room only shrinks: what a branch had last is the most that it will have.
        self._last[branch] = least
        return least

    def may_have(self, place: int, useful_a: float) -> bool:
        """Return whether one EVSE may have so much left, as far as is known without another look."""
        return self._last[self._branch_of[place]] >= useful_a

    def take(self, place: int, current_a: float) -> None:
        """Let one EVSE have so many A more."""
        for corner, real, imaginary, _ in self._above[self._branch_of[place]]:
            self._real[corner] += real * current_a
            self._imaginary[corner] += imaginary * current_a


def _conductors(circuits: Mapping[str, Circuit]) -> Iterable[Conductor]:
    """Yield what may be limited: each line of each circuit, and each circuit as a whole."""
    for name, circuit in circuits.items():
        for phase, rating in zip(PHASES, circuit.rating_a, strict=True):
            yield Conductor(name, phase, rating)
        yield Conductor(name, None, math.inf if circuit.rating_kva is None else 1000 * circuit.rating_kva)


def _arc(coefficients: Complexes) -> tuple[float, float] | None:
    """Return the arc (start and width, in radians) that holds all directions; None where it is over 180 degrees."""
    angles = np.sort(np.angle(coefficients[np.abs(coefficients) > _NOTHING]))
    gaps = np.diff(np.append(angles, angles[0] + 2 * math.pi))
    widest = int(np.argmax(gaps))
    width = 2 * math.pi - float(gaps[widest])
    if width > math.pi + 1e-9:
        return None
    return float(angles[(widest + 1) % len(angles)]), width


def _facets(coefficients: Complexes, facets: int, inner: bool) -> Iterable[tuple[float, float]]:
    """Yield the normal and the distance (of the radius) of each facet that a sum of these phasors can meet."""
    arc = _arc(coefficients)
    start, width = (0.0, 2 * math.pi) if arc is None else arc
    steps = math.ceil(width * facets / (2 * math.pi) - 1e-6)
    if not steps:
        yield start, 1.0
        return
    step = width / steps
    for index in range(steps):
        # A chord stands between two points of the circle, a tangent on one of them.
        yield (start + (index + 0.5) * step, math.cos(step / 2)) if inner else (start + index * step, 1.0)
    if not inner:
        yield start + width, 1.0


def _needed(rows: Floats, bounds: Floats) -> Polygon:
    """Leave out facets without a finite limit or a load, and those that another makes superfluous for currents ≥ 0."""
    loaded = np.isfinite(bounds) & np.any(rows > 0, axis=1)
    rows, bounds = rows[loaded], bounds[loaded]
    order = np.argsort(bounds)
    kept: list[int] = []
    for index in order:
        # Another with at least these coefficients and at most this limit is the stricter one (limits are ≥ 0).
        if not (rows[kept] >= rows[index] - _NOTHING).all(axis=1).any():
            kept.append(int(index))
    return Polygon(rows[kept], bounds[kept])


def _all_corners(constraints: Complexes) -> tuple[Complexes, Indices]:
    """Return each constraint restricted to each subset of its phasors whose sum may be the longest, and whose it is."""
    rows: list[Complexes] = []
    owners: list[int] = []
    for index, coefficients in enumerate(constraints):
        for corner in corners(coefficients):
            rows.append(corner)
            owners.append(index)
    return np.array(rows, dtype=complex).reshape(len(rows), constraints.shape[1]), np.array(owners, dtype=np.intp)


def corners(coefficients: Complexes) -> list[Complexes]:
    """Return the phasors restricted to each subset within a half-plane, without those that another always exceeds."""
    loaded = np.abs(coefficients) > _NOTHING
    angles = np.unique(np.round(np.angle(coefficients[loaded]), 9))
    turns = np.unique(np.round(np.concatenate([angles - _RIGHT_ANGLE, angles + _RIGHT_ANGLE]) % (2 * math.pi), 9))
    between = (turns + np.roll(turns, -1) + np.where(np.arange(len(turns)) == len(turns) - 1, 2 * math.pi, 0)) / 2
    subsets = {
        tuple((loaded & ((coefficients * cmath.rect(1, -float(normal))).real > 0)).tolist()) for normal in between
    }
    result = []
    for subset in sorted(subsets, reverse=True):
        inside = np.array(subset)
        if inside.any() and not any(_exceeds(coefficients, np.array(other), inside) for other in subsets):
            result.append(np.where(inside, coefficients, 0))
    return result


def _exceeds(coefficients: Complexes, greater: npt.NDArray[np.bool_], subset: npt.NDArray[np.bool_]) -> bool:
    """Return whether adding `greater`'s other phasors never shortens a sum: none is over 90 degrees from any."""
    if bool(np.all(greater == subset)) or bool(np.any(subset & ~greater)):
        return False
    added = coefficients[greater & ~subset]
    return bool(np.all((coefficients[greater][:, None] * added.conjugate()).real >= -_NOTHING))
