# SPDX-License-Identifier: Apache-2.0
"""The most that circuits may carry when each EVSE may do anything within its interval. Pure.

A line's current is a sum of phasors: of each EVSE and phase one real number (its active current), and one at a right
angle (its reactive current), each times a fixed phasor that follows from where it hangs and from the delta-wye
transformers above it. Loads whose phasors lie on one straight line add up to one interval, so a line's current is a sum
of few intervals times directions (one in a wye tree), however many EVSEs there are: a zonogon, whose largest modulus is
taken at a corner (the modulus is convex). All corners are looked at, which is the largest modulus itself, not a bound.
Delta primaries need that: there, less discharge can mean more current.

Interval ends that contain zero make the result monotone: an interval that grows takes nothing away. So generation and
discharge never give headroom, and if a set of increases fits together each part of it fits too.

What is of unknown angle (worst-case base load; EVSEs whose power factor is not known, or whose conductors in a delta
are not) is added to the modulus as it is: the triangle inequality. So is, on lines, what an EVSE that is told W may
draw with its least power factor, which is no more than its rating (`Station.apparent_a`); in a circuit's power its
reactive power stands beside what it is told, either way.

Each line and each circuit's power is looked at with its base load against its rating, at `any` corner; and, without
base load, against what caps its EVSEs now: `taken`, with nobody giving back, against the highest bound; `given`, with
nobody taking, against the lowest. Voltages are nominal and symmetric. A delta-wye transformer's vector group is not
declared, so both are counted.

Against a rating, and against what protects a circuit (`kept`: its rating less a base load that was measured), each EVSE
counts with what it falls back to as well (`Reach.alone`): whoever may draw more on its own than it was told does so
while others still hold what they were told. What protects a circuit has two sides, for a base load that is drawn leaves
less to be taken and no less to be given. Where the fallbacks by themselves are more than that, which the depot's
check rules out for the declared base load, it is they that may not be exceeded: to take away what an EVSE has up to its
fallback would not help.
"""

from __future__ import annotations

import cmath
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from derms_agent.control.ledger import NOTHING, Span, Station
from derms_agent.model import SAME_VOLTAGE, Circuit, Connection, LimitQuantity, PerPhase, Phase

PHASES = tuple(Phase)
ANGLES = (1 + 0j, cmath.rect(1, -2 * math.pi / 3), cmath.rect(1, 2 * math.pi / 3))

ROUNDING = 1e-6
"""What a limit may be exceeded by, of itself: arithmetic's own error."""

SITE = "site"
_SQRT3 = math.sqrt(3)
_ACTIVE, _REACTIVE, _LOOSE = range(3)
_NEAR = 1e-9
_TWO = 2

Floats: TypeAlias = "NDArray[np.float64]"
_Place: TypeAlias = "tuple[str, LimitQuantity, Phase | None]"
Caps: TypeAlias = "Mapping[_Place, tuple[float, float]]"
"""Lowest and highest of what the EVSEs beneath a circuit may take together, of a phase or of all (None): A, W, var, VA.

As `limits.combine` has it: base load is taken off already. "site" is the root circuit.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseLoad:
    """What flows on a circuit besides its EVSEs and its children, in A per conductor.

    `active_a` and `reactive_a` are what it is measured to be, `spread_a` how much more it may be at any angle. Where a
    circuit has none it counts as its declared worst case, at any angle. What is generated gives no headroom.
    """

    active_a: PerPhase = (0.0, 0.0, 0.0)
    reactive_a: PerPhase = (0.0, 0.0, 0.0)
    spread_a: PerPhase = (0.0, 0.0, 0.0)


class Extent(NamedTuple):
    """How far a row may go: its modulus at `any` corner, with nobody giving back, with nobody taking.

    The last two in A of a line, and in W for a circuit's power; reactive power (var) lowest and highest for the latter.
    """

    any: float
    taken: float
    given: float
    reactive_low: float = 0.0
    reactive_high: float = 0.0


@dataclass(frozen=True, slots=True)
class Excess:
    """A row over its limit: the circuit, its phase (None: its power), of which kind, how much, and the limit."""

    circuit: str
    phase: Phase | None
    side: str  # any, taken, given, reactive
    found: float
    limit: float


@dataclass(slots=True)
class _Row:
    """A line of a circuit, or a circuit's power, and what adds to it: parallel arrays, one place for each part.

    `capped_by` are the caps on its current, or its active power; `apparent_by` and `reactive_by` those on its power's
    other kinds; `kept_by` those that may protect it.
    """

    circuit: str
    phase: Phase | None
    rating: float
    directions: list[complex] = field(default_factory=list)
    loads: list[int] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    terms: list[int] = field(default_factory=list)
    factors: list[float] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    capped_by: list[_Place] = field(default_factory=list)
    apparent_by: list[_Place] = field(default_factory=list)
    reactive_by: list[_Place] = field(default_factory=list)
    kept_by: list[_Place] = field(default_factory=list)


Sums: TypeAlias = "list[list[float]]"
"""For each term of a row what its loads may add: up by taking, down by taking, up by giving, down by giving."""


class Reach(NamedTuple):
    """What EVSEs may add up to in each term of each row: as things are, and together with what they fall back to."""

    now: list[Sums]
    alone: list[Sums]


@dataclass(frozen=True, slots=True)
class Bound:
    """A row's limits: its rating, for EVSEs and base load together, and what caps the EVSEs without it.

    `rating_alone` (with base load) and those that are `kept` (without; `least_kept` is the lowest) may not be exceeded
    with fallbacks counted: the rating, and what protects the circuit, or if that is more, what fallbacks come to by
    themselves. The others are of any corner, of taking, of giving (a positive number), of reactive power; `base` is
    what the base load adds.
    """

    rating: float
    rating_alone: float
    kept_any: float
    kept_taken: float
    kept_given: float
    least_kept: float
    base: Sums
    any: float
    taken: float
    given: float
    reactive_low: float = -math.inf
    reactive_high: float = math.inf
    base_length: float = 0.0

    @property
    def least(self) -> float:
        """The lowest of all that caps the EVSEs alone; nothing that flows is below it."""
        return min(self.any, self.taken, self.given, self.reactive_high, -self.reactive_low)


class Box(NamedTuple):
    """Every load's interval on L1, L2 and L3: arrays of loads by 3, in A, consumption positive."""

    low: Floats
    high: Floats
    reactive_low: Floats
    reactive_high: Floats

    def hull(self, other: Box) -> Box:
        """Return the smallest box that contains both."""
        return Box(
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            np.minimum(self.reactive_low, other.reactive_low),
            np.maximum(self.reactive_high, other.reactive_high),
        )

    def is_same(self, other: Box) -> bool:
        """Whether both contain the same."""
        return all(np.array_equal(one, two) for one, two in zip(self, other, strict=True))


@dataclass(frozen=True, slots=True)
class Capped:
    """One row, and what of it can be taken back. `fits(caps)`: with these caps, in A, one for each load or for all.

    `weights` says what each part adds to each term, first of what adds, then of what takes away; `back_high` and
    `back_low` are what each part falls back to; `of_cap` is how much of it 1 A of a cap leaves.
    """

    row: _Row
    weights: Floats
    high: Floats
    low: Floats
    back_high: Floats
    back_low: Floats
    loads: NDArray[np.intp]
    capped: NDArray[np.bool_]
    of_cap: Floats

    def fits(self, caps: Floats | float, bound: Bound, side: str) -> bool:
        """Whether the row is within its limits on that side then."""
        of_parts = (caps if isinstance(caps, float) else caps[self.loads]) * self.of_cap
        limits = np.where(self.capped, of_parts, math.inf)
        high, low = np.minimum(self.high, limits), np.maximum(self.low, -limits)
        parts = np.array([high, low, np.maximum(high, self.back_high), np.minimum(low, self.back_low)])
        sums = (self.weights @ parts.T).tolist()
        terms = len(sums) // 2
        now, alone = [], []
        for up, down in zip(sums[:terms], sums[terms:], strict=True):
            now.append([up[0], down[0], down[1], up[1]])
            alone.append([up[2], down[2], down[3], up[3]])
        return all(excess.side != side for excess in _excesses(self.row, now, alone, bound))

    @property
    def members(self) -> NDArray[np.intp]:
        """The places of the loads that can be capped, each once."""
        return np.unique(self.loads[self.capped])


@dataclass(frozen=True, slots=True)
class _Parts:
    """What adds to the terms of rows, those that add and those that take away apart: places in `_vectors`, factors."""

    up: NDArray[np.intp]
    up_terms: NDArray[np.intp]
    up_factors: Floats
    down: NDArray[np.intp]
    down_terms: NDArray[np.intp]
    down_factors: Floats

    @classmethod
    def of(cls, places: NDArray[np.intp], terms: NDArray[np.intp], factors: Floats) -> _Parts:
        """Return the parts in these places."""
        up = factors > 0
        return cls(places[up], terms[up], factors[up], places[~up], terms[~up], factors[~up])

    def sums(self, terms: int, high: Floats, low: Floats) -> Sums:
        """Return what so many terms add up to, of the highest and lowest of each part."""
        up_taken = down_taken = up_given = down_given = [0.0] * terms
        if len(self.up):
            up_taken = np.bincount(self.up_terms, self.up_factors * high[self.up], terms).tolist()
            down_given = np.bincount(self.up_terms, self.up_factors * low[self.up], terms).tolist()
        if len(self.down):
            down_taken = np.bincount(self.down_terms, self.down_factors * high[self.down], terms).tolist()
            up_given = np.bincount(self.down_terms, self.down_factors * low[self.down], terms).tolist()
        return [list(term) for term in zip(up_taken, down_taken, up_given, down_given, strict=True)]


class Circuits:
    """A tree of circuits with the EVSEs that hang on it, worked out once.

    Raises ValueError for an EVSE or a parent on a circuit that there is not.
    """

    def __init__(self, circuits: Mapping[str, Circuit], stations: Sequence[Station]) -> None:
        self.circuits = dict(circuits)
        self.stations = tuple(stations)
        self.places = {station.name: place for place, station in enumerate(self.stations)}
        self._base_places = {name: len(self.stations) + place for place, name in enumerate(self.circuits)}
        self.loads = len(self.stations) + len(self.circuits)
        wanted = [(station.name, station.circuit) for station in self.stations]
        wanted += [(name, circuit.parent) for name, circuit in self.circuits.items() if circuit.parent is not None]
        for name, circuit_name in wanted:
            if circuit_name not in self.circuits:
                raise ValueError(f"{name}: found circuit {circuit_name!r}, expected one of {[*self.circuits]}")
        self.wired: Floats = np.array([loaded(station.phases or PHASES) for station in self.stations]).reshape(-1, 3)
        """1 for each phase that an EVSE is wired to, 0 for the others: loads by 3."""
        self.tolerance_a: Floats = np.array([station.tolerance_a for station in self.stations]).reshape(-1, 1)
        """What each EVSE's meter may err by, in A."""
        self.refreshes_per_s = math.fsum(1 / one.refresh_s for one in self.stations if one.refresh_s is not None)
        """How many EVSEs want to be told the same again, a second."""
        # Loads whose current may have any angle, by place; the rest have active and reactive current.
        self.loose = np.zeros(self.loads, dtype=bool)
        # Those with a power factor below 1 have active and reactive power, and on lines any angle within it.
        self._power_factor: Floats = np.ones((self.loads, 1))
        self._power_factor[: len(self.stations), 0] = [station.power_factor for station in self.stations]
        self._turned: NDArray[np.bool_] = self._power_factor < 1
        self._rating_a: Floats = np.full((self.loads, 1), math.inf)
        self._rating_a[: len(self.stations), 0] = [station.rating_a for station in self.stations]
        self._tangent = np.sqrt(1 / self._power_factor**2 - 1)
        self._rows: list[_Row] = []
        groups = (1, 2) if any(c.connection is Connection.DELTA_WYE for c in self.circuits.values()) else (1,)
        for group in groups:
            self._add_lines(group)
        self._add_powers()
        for row in self._rows:
            _finish(row, is_root=self.circuits[row.circuit].parent is None)
        self._firsts = [0]
        for row in self._rows:
            self._firsts.append(self._firsts[-1] + len(row.directions))
        self._arrays = [_arrays(row, self.loads, 0) for row in self._rows]
        self._weights = [_weights(row) for row in self._rows]
        self._loads_of_row = [np.array(row.loads, dtype=np.intp) for row in self._rows]
        self._of_caps = [self._of_cap(row) for row in self._rows]
        whole = [_arrays(row, self.loads, first) for row, first in zip(self._rows, self._firsts, strict=False)]
        loads = np.concatenate(self._loads_of_row)
        places, terms, factors = (np.concatenate(columns) for columns in zip(*whole, strict=True))
        evses = loads < len(self.stations)
        self._of_evses = _Parts.of(places[evses], terms[evses], factors[evses])
        self._of_base = _Parts.of(places[~evses], terms[~evses], factors[~evses])
        self.touched = _touched(self._rows, self.loads)
        self.alike = _alike(self.touched, self._turned)
        """For each load and row that it touches a number, the same for those that add to it in the same way."""

    # Building

    def _add_lines(self, group: int) -> None:
        """Add the rows of every line: `group` says which windings meet in a delta line."""
        rows = {
            (name, line): _Row(name, PHASES[line], circuit.rating_a[line])
            for name, circuit in self.circuits.items()
            for line in range(3)
        }
        for load, name, beneath, parts in self._parts(turned=True):
            for part, lines in parts:
                loose = part // 3 == _LOOSE
                for circuit, currents in self._upwards(name, lines, loose, beneath, group):
                    for line, current in enumerate(currents):
                        _put(rows[circuit, line], load, part, current)
        self._rows.extend(row for row in rows.values() if row.loads)

    def _add_powers(self) -> None:
        rows = {
            name: _Row(name, None, math.inf if circuit.rating_kva is None else circuit.rating_kva * 1000)
            for name, circuit in self.circuits.items()
        }
        for load, name, _beneath, parts in self._parts(turned=False):
            for part, lines in parts:
                circuit = self.circuits[name]
                volts = circuit.neutral_voltage_v
                if sum(abs(line) > _NEAR for line in lines) == _TWO:
                    volts = circuit.voltage_v
                kind = part // 3
                at: str | None = name
                while at is not None:
                    _put(rows[at], load, part, complex(0, volts) if kind == _REACTIVE else complex(volts))
                    at = self.circuits[at].parent
        self._rows.extend(row for row in rows.values() if row.loads)

    def _parts(self, *, turned: bool) -> Iterator[tuple[int, str, bool, list[tuple[int, list[complex]]]]]:
        """Yield each load's place, its circuit, whether it is beneath that one's transformer, and what it is made of.

        A part is a kind (active, reactive, loose) and a phase, with the phasors that one ampere of it puts on lines.

        :param turned: those with a power factor below 1 are loose
        """
        for place, station in enumerate(self.stations):
            delta = self.circuits[station.circuit].connection is Connection.DELTA
            phases = station.phases or PHASES
            between = delta and len(phases) < len(PHASES)
            self.loose[place] = not station.angle_known or (delta and not station.phases)
            loose = bool(self.loose[place] or (turned and self._turned[place]))
            yield place, station.circuit, True, _own_parts(phases, between, loose)
        for name, place in self._base_places.items():
            yield place, name, False, _own_parts(PHASES, False, None)

    def _upwards(
        self, name: str, lines: Sequence[complex], loose: bool, beneath: bool, group: int
    ) -> Iterator[tuple[str, list[complex]]]:
        """Yield each circuit from one up to its root, with what a load puts on its lines."""
        currents = list(lines)
        at = self.circuits[name]
        through = beneath
        while True:
            if at.connection is Connection.DELTA_WYE:
                if through:
                    currents = _delta_lines(currents, loose, group)
                elif loose:
                    # Whether it was measured before or behind the transformer is not said.
                    currents = [complex(max(abs(current) for current in currents))] * 3
            yield at.name, currents
            if at.parent is None:
                return
            above = self.circuits[at.parent]
            ratio = at.line_voltage_v / above.line_voltage_v
            if abs(ratio - 1) <= SAME_VOLTAGE:
                ratio = max(ratio, 1.0)
            currents = [current * ratio for current in currents]
            at, through = above, True

    def _of_cap(self, row: _Row) -> Floats:
        """Return how much of each part of a row 1 A of a cap on its load's active current leaves."""
        loads, kinds = np.array(row.loads, dtype=np.intp), np.array(row.parts, dtype=np.intp) // 3
        found = np.ones(len(loads))
        for kind, per_a in ((_REACTIVE, self._tangent), (_LOOSE, 1 / self._power_factor)):
            turned = self._turned[loads, 0] & (kinds == kind)
            found[turned] = per_a[loads[turned], 0]
        return found

    # Evaluating

    def box(self, spans: Sequence[tuple[Span, Span, Span]]) -> Box:
        """Return the box of what each EVSE may do on each phase, in the order of `stations`."""
        values = np.zeros((4, self.loads, 3))
        if spans:
            flat = itertools.chain.from_iterable(itertools.chain.from_iterable(spans))
            known = np.fromiter(flat, dtype=np.float64, count=len(spans) * 12).reshape(-1, 3, 4)
            values[:, : len(self.stations), :] = known.transpose(2, 0, 1)
        return Box(values[0], values[1], values[2], values[3])

    def box_of(self, spans: Sequence[Span], loaded: Floats, others: Mapping[int, tuple[Span, Span, Span]]) -> Box:
        """Return the box of what each EVSE may do on the phases that it loads; of `others`, what each may on each."""
        values = np.zeros((4, self.loads, 3))
        if spans:
            flat = itertools.chain.from_iterable(spans)
            known = np.fromiter(flat, dtype=np.float64, count=len(spans) * 4).reshape(-1, 4)
            values[:, : len(spans), :] = known.T[:, :, np.newaxis] * loaded
        for place, each in others.items():
            values[:, place, :] = np.transpose(each)
        return Box(values[0], values[1], values[2], values[3])

    def sums(self, box: Box) -> list[Sums]:
        """Return what the EVSEs may add up to in each term of each row."""
        return self._summed(self._of_evses, *self._vectors(box))

    def reach(self, box: Box, back: Box) -> Reach:
        """Return what the EVSEs may add up to, as they are and with what they fall back to (`back`)."""
        now, hull = self.sums(box), box.hull(back)
        return Reach(now, now.copy() if box.is_same(hull) else self.sums(hull))

    def base_sums(self, base: Mapping[str, BaseLoad]) -> list[Sums]:
        """Return what the base load may add up to in each term of each row."""
        high, low = np.zeros((3, self.loads, 3)), np.zeros((3, self.loads, 3))
        for name, place in self._base_places.items():
            known = base.get(name)
            if known is None:
                high[_LOOSE, place] = np.maximum(self.circuits[name].base_load_a, 0.0)
                continue
            high[_ACTIVE, place] = np.maximum(known.active_a, 0.0)
            low[_ACTIVE, place] = np.minimum(known.active_a, 0.0)
            high[_REACTIVE, place] = np.maximum(known.reactive_a, 0.0)
            low[_REACTIVE, place] = np.minimum(known.reactive_a, 0.0)
            high[_LOOSE, place] = known.spread_a
        return self._summed(self._of_base, high.reshape(-1), low.reshape(-1))

    def _summed(self, parts: _Parts, high: Floats, low: Floats) -> list[Sums]:
        found = parts.sums(self._firsts[-1], high, low)
        return [found[first:last] for first, last in itertools.pairwise(self._firsts)]

    def _vectors(self, box: Box) -> tuple[Floats, Floats]:
        """Return the highest and lowest of each part: by kind (active, reactive, loose), then load and phase."""
        high = np.zeros((3, self.loads, 3))
        low = np.zeros((3, self.loads, 3))
        known = ~self.loose[:, np.newaxis]
        high[_ACTIVE], low[_ACTIVE] = box.high * known, box.low * known
        high[_REACTIVE], low[_REACTIVE] = box.reactive_high * known, box.reactive_low * known
        loose = self._turned | ~known
        if loose.any():
            taken, given = self._apparent(box.high), self._apparent(-box.low)
            reactive = np.maximum(box.reactive_high, -box.reactive_low)
            high[_LOOSE] = np.where(loose, np.hypot(taken, reactive), 0.0)
            low[_LOOSE] = np.where(loose, -np.hypot(given, np.where(box.low < 0, reactive, 0.0)), 0.0)
        if self._turned.any():
            beside = self._tangent * np.maximum(box.high, -box.low) * known
            high[_REACTIVE] += beside
            low[_REACTIVE] -= beside
        return high.reshape(-1), low.reshape(-1)

    def _apparent(self, active_a: Floats) -> Floats:
        """Return the most that each load draws with active currents of 0 or more: `Station.apparent_a` of all."""
        return np.maximum(active_a, np.minimum(active_a / self._power_factor, self._rating_a))

    def extents(self, box: Box, base: Mapping[str, BaseLoad] | None = None) -> dict[tuple[str, Phase | None], Extent]:
        """Return how far each line (A) and circuit's power (VA, W, W, var, var) may go, base load included.

        The worse of both vector groups.
        """
        found: dict[tuple[str, Phase | None], Extent] = {}
        for row, sums, beside in zip(self._rows, self.sums(box), self.base_sums(base or {}), strict=True):
            extent = _extent(row, _added(sums, beside))
            before = found.get((row.circuit, row.phase))
            if before is not None:
                extent = Extent(*(max(pair) for pair in zip(before, extent, strict=True)))
            found[row.circuit, row.phase] = extent
        return found

    def bounds(self, caps: Caps, base: Mapping[str, BaseLoad], back: Box, kept: Caps) -> list[Bound]:
        """Return the limits of each row: the circuits' ratings, and what caps their EVSEs now; "site" is each root.

        `back` is what EVSEs fall back to, `kept` the caps that hold for that too.
        """
        return [
            _bound(row, beside, fallbacks, caps, kept)
            for row, beside, fallbacks in zip(self._rows, self.base_sums(base), self.sums(back), strict=True)
        ]

    def excess(self, row: int, now: Sums, alone: Sums, bound: Bound) -> Excess | None:
        """Return by what a row is over its limit; None where it is not."""
        return _excess(self._rows[row], now, alone, bound)

    def over(self, reach: Reach, bounds: Sequence[Bound]) -> dict[int, Excess]:
        """Return the rows that are over, each with by what."""
        found = {}
        for index, (row, now, alone, bound) in enumerate(zip(self._rows, *reach, bounds, strict=True)):
            excess = _excess(row, now, alone, bound)
            if excess is not None:
                found[index] = excess
        return found

    def capped(self, row: int, box: Box, back: Box, capped: NDArray[np.bool_]) -> Capped:
        """Return a row as a function of what some loads are capped to, in A."""
        high, low = self._vectors(box)
        back_high, back_low = self._vectors(back)
        places, loads = self._arrays[row][0], self._loads_of_row[row]
        return Capped(
            self._rows[row],
            self._weights[row],
            high[places],
            low[places],
            back_high[places],
            back_low[places],
            loads,
            capped[loads],
            self._of_caps[row],
        )

    def grown(self, load: int, row: int, sums: Sums, before: Sequence[Span], after: Sequence[Span]) -> Sums:
        """Return a row's sums when an EVSE's spans on L1, L2 and L3 change."""
        old, new = self._kinds(load, before), self._kinds(load, after)
        found = [list(term) for term in sums]
        for term, kind, phase, factor in self.touched[load][row]:
            low_0, high_0 = old[kind][phase]
            low_1, high_1 = new[kind][phase]
            up, down = (0, 3) if factor > 0 else (1, 2)
            found[term][up] += factor * (high_1 - high_0)
            found[term][down] += factor * (low_1 - low_0)
        return found

    def _kinds(self, load: int, spans: Sequence[Span]) -> list[list[tuple[float, float]]]:
        """Return lowest and highest of each kind and phase: what `_vectors` has of one load."""
        none = [(0.0, 0.0)] * 3
        loose, turned = bool(self.loose[load]), bool(self._turned[load])
        if not loose and not turned:
            return [
                [(span.low, span.high) for span in spans],
                [(span.reactive_low, span.reactive_high) for span in spans],
                none,
            ]
        anyhow = [_loose(span, self.stations[load]) for span in spans]
        if loose:
            return [none, none, anyhow]
        beside = [float(self._tangent[load, 0]) * max(span.high, -span.low) for span in spans]
        return [
            [(span.low, span.high) for span in spans],
            [(span.reactive_low - more, span.reactive_high + more) for span, more in zip(spans, beside, strict=True)],
            anyhow,
        ]


def _touched(rows: Sequence[_Row], loads: int) -> list[dict[int, list[tuple[int, int, int, float]]]]:
    """Return, for each load, the rows it touches, each with its parts there: term, kind, phase, factor."""
    touched: list[dict[int, list[tuple[int, int, int, float]]]] = [{} for _ in range(loads)]
    for index, row in enumerate(rows):
        by_load: dict[int, list[tuple[int, int, int, float]]] = {}
        for load, part, term, factor in zip(row.loads, row.parts, row.terms, row.factors, strict=True):
            by_load.setdefault(load, []).append((term, part // 3, part % 3, factor))
        for load, entries in by_load.items():
            touched[load][index] = entries
    return touched


def _alike(
    touched: Sequence[Mapping[int, Sequence[tuple[int, int, int, float]]]], turned: NDArray[np.bool_]
) -> list[dict[int, int]]:
    """Return a number for each load and row; one with a power factor below 1 is like no other: its rating counts."""
    known: dict[tuple[int, tuple[tuple[int, int, int, float], ...]], int] = {}
    return [
        {
            row: known.setdefault((load if turned[load] else -1, tuple(entries)), len(known))
            for row, entries in rows.items()
        }
        for load, rows in enumerate(touched)
    ]


def watts_per_a(circuit: Circuit, phases: int) -> float:
    """Return the W of a load per A in each of its conductors, at a power factor of 1 and the nominal voltage."""
    if circuit.connection is Connection.DELTA and phases < len(Phase):
        return circuit.voltage_v  # one load between two lines
    return circuit.neutral_voltage_v * phases


def amperes_of(circuit: Circuit, phases: int, power_w: float) -> float:
    """Return the A per conductor of a load at a power factor of 1, in the circuit's nominal voltage."""
    return power_w / watts_per_a(circuit, phases)


def _own_parts(phases: Sequence[Phase], between: bool, loose: bool | None) -> list[tuple[int, list[complex]]]:
    """Return the parts of one load. `loose`: of any angle; None: partly so. `between`: it hangs between two lines."""
    parts: list[tuple[int, list[complex]]] = []
    for phase in phases[:1] if between else phases:
        here = PHASES.index(phase)
        lines = [0j, 0j, 0j]
        if between:
            there = PHASES.index(phases[1]) if len(phases) > 1 else (here + 1) % 3
            current = (ANGLES[here] - ANGLES[there]) / _SQRT3
            lines[here], lines[there] = current, -current
        else:
            lines[here] = ANGLES[here]
        if loose is not True:
            parts.append((_ACTIVE * 3 + here, lines))
            parts.append((_REACTIVE * 3 + here, [-1j * line for line in lines]))
        if loose is not False:
            parts.append((_LOOSE * 3 + here, [complex(abs(line)) for line in lines]))
    return parts


def _delta_lines(windings: Sequence[complex], loose: bool, group: int) -> list[complex]:
    """Return what flows in the delta's lines: two windings meet in each, the next one or the one before."""
    others = [windings[(line + group) % 3] for line in range(3)]
    if loose:
        return [(own + other) / _SQRT3 for own, other in zip(windings, others, strict=True)]
    return [(own - other) / _SQRT3 for own, other in zip(windings, others, strict=True)]


def _put(row: _Row, load: int, part: int, current: complex) -> None:
    """Add a part to a row, in the term of its kind and direction; loose parts have none."""
    size = abs(current)
    if size < _NEAR:
        return
    kind = part // 3
    direction = complex(0) if kind == _LOOSE else current / size
    factor = size
    if kind != _LOOSE and (direction.imag < -_NEAR or (abs(direction.imag) <= _NEAR and direction.real < 0)):
        direction, factor = -direction, -size
    # Active and reactive current are kept apart even where they are parallel: who takes need not take both.
    for term, known in enumerate(row.directions):
        if abs(known - direction) < _NEAR and row.kinds[term] == kind:
            break
    else:
        term = len(row.directions)
        row.directions.append(direction)
        row.kinds.append(kind)
    row.loads.append(load)
    row.parts.append(part)
    row.terms.append(term)
    row.factors.append(factor)


def _finish(row: _Row, *, is_root: bool) -> None:
    """Order a row's terms by direction, for walking round the zonogon, and note what caps it."""
    targets = (row.circuit, SITE) if is_root else (row.circuit,)

    def capped(quantity: LimitQuantity, phases: tuple[Phase | None, ...]) -> list[_Place]:
        return [(target, quantity, phase) for target in targets for phase in phases]

    if row.phase is not None:
        row.capped_by = capped(LimitQuantity.CURRENT, (row.phase, None))
        row.kept_by = [place for place in row.capped_by if place[0] == row.circuit]
    else:
        row.capped_by = capped(LimitQuantity.ACTIVE_POWER, (None,))
        row.apparent_by = capped(LimitQuantity.APPARENT_POWER, (None,))
        row.reactive_by = capped(LimitQuantity.REACTIVE_POWER, (None,))
        row.kept_by = [place for place in row.apparent_by if place[0] == row.circuit]
    row.order = sorted(
        (term for term in range(len(row.directions)) if row.directions[term] != 0),
        key=lambda term: cmath.phase(row.directions[term]) % math.pi,
    )


def _arrays(row: _Row, loads: int, first: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """Return where a row's parts lie in `Circuits._vectors`, their terms counted from `first`, and their factors."""
    parts = np.array(row.parts, dtype=np.intp)
    places = (parts // 3 * loads + np.array(row.loads, dtype=np.intp)) * 3 + parts % 3
    return places, np.array(row.terms, dtype=np.intp) + first, np.array(row.factors, dtype=np.float64)


def _weights(row: _Row) -> Floats:
    """Return what each part of a row adds to each term: first of parts that add, then of those that take away."""
    terms, factors = np.array(row.terms, dtype=np.intp), np.array(row.factors, dtype=np.float64)
    found = np.zeros((2 * len(row.directions), len(factors)))
    found[np.where(factors > 0, terms, terms + len(row.directions)), np.arange(len(factors))] = factors
    return found


def _loose(span: Span, station: Station) -> tuple[float, float]:
    reactive = max(span.reactive_high, -span.reactive_low)
    given, taken = station.apparent_a(span.low), station.apparent_a(span.high)
    return -math.hypot(given, reactive if span.low < 0 else 0.0), math.hypot(taken, reactive)


def _extent(row: _Row, sums: Sums) -> Extent:
    """Return how far a row may go, at its corners."""
    loose_taken = loose_given = 0.0
    every: list[tuple[complex, float, float]] = []
    taken: list[tuple[complex, float, float]] = []
    given: list[tuple[complex, float, float]] = []
    reactive_low = reactive_high = 0.0
    active_taken = active_given = 0.0
    for term, (up_taken, down_taken, up_given, down_given) in enumerate(sums):
        kind = row.kinds[term]
        if kind == _LOOSE:
            loose_taken, loose_given = up_taken, -down_given
            continue
        if kind == _ACTIVE:
            active_taken, active_given = active_taken + up_taken, active_given - down_given
        else:
            reactive_low, reactive_high = reactive_low + down_taken + down_given, reactive_high + up_taken + up_given
    if row.phase is None:
        # A circuit's power: active and reactive power, of all conductors together.
        active = max(active_taken, active_given)
        reactive = max(reactive_high, -reactive_low)
        return Extent(
            math.hypot(active, reactive) + loose_taken + loose_given,
            active_taken + loose_taken,
            active_given + loose_given,
            reactive_low - loose_taken - loose_given,
            reactive_high + loose_taken + loose_given,
        )
    for term in row.order:
        up_taken, down_taken, up_given, down_given = sums[term]
        direction = row.directions[term]
        whole = (direction, down_taken + down_given, up_taken + up_given)
        if whole[1] == whole[2] == 0.0:
            continue
        every.append(whole)
        if row.kinds[term] == _REACTIVE:
            taken.append(whole)
            given.append(whole)
        else:
            taken.append((direction, down_taken, up_taken))
            given.append((direction, down_given, up_given))
    return Extent(
        _farthest(every) + loose_taken + loose_given, _farthest(taken) + loose_taken, _farthest(given) + loose_given
    )


def _any(row: _Row, sums: Sums) -> float:
    """Return how far a row may go at any corner: `_extent(row, sums).any`, without the rest."""
    if row.phase is None:
        return _extent(row, sums).any
    terms: list[tuple[complex, float, float]] = []
    for term in row.order:
        up_taken, down_taken, up_given, down_given = sums[term]
        low, high = down_taken + down_given, up_taken + up_given
        if low != 0.0 or high != 0.0:
            terms.append((row.directions[term], low, high))
    found = _farthest(terms)
    if len(row.order) < len(sums):
        for term, kind in enumerate(row.kinds):
            if kind == _LOOSE:
                found += sums[term][0] - sums[term][3]
    return found


def _farthest(terms: Sequence[tuple[complex, float, float]]) -> float:
    """Return the largest modulus of a sum of intervals times directions, which come ordered by angle in [0, π).

    The corners of the zonogon: from the lowest point, the edges in the order of their angles lead up one side, in the
    reverse order up the other.
    """
    if not terms:
        return 0.0
    if len(terms) == 1:
        return max(abs(terms[0][1]), abs(terms[0][2]))
    start = sum((direction * low for direction, low, _high in terms), 0j)
    edges = [direction * (high - low) for direction, low, high in terms]
    farthest = abs(start)
    for way in (edges, edges[::-1]):
        point = start
        for edge in way:
            point += edge
            farthest = max(farthest, abs(point))
    return farthest


def _length(sums: Sums) -> float:
    """Return a length that no corner exceeds: of all terms, whichever way they point."""
    length = 0.0
    for up_taken, down_taken, up_given, down_given in sums:
        length += up_taken - down_taken + up_given - down_given
    return length


def _added(one: Sums, other: Sums) -> Sums:
    return [[a + b for a, b in zip(first, second, strict=True)] for first, second in zip(one, other, strict=True)]


def _bound(row: _Row, base: Sums, fallbacks: Sums, caps: Caps, kept: Caps) -> Bound:
    reactive_low, reactive_high = -math.inf, math.inf
    low, high = _cap(caps, row.capped_by)
    kept_low, kept_high = _cap(kept, row.kept_by)
    if row.phase is not None:
        every = max(high, -low)
        any_kept, taken, given = max(kept_high, -kept_low), kept_high, -kept_low
    else:
        every = _cap(caps, row.apparent_by)[1]
        reactive_low, reactive_high = _cap(caps, row.reactive_by)
        any_kept, taken, given = kept_high, math.inf, math.inf  # apparent power has no sign
    alone, base_length, back_length = row.rating, _length(base), _length(fallbacks)
    if base_length + back_length > row.rating:
        alone = max(alone, _any(row, _added(fallbacks, base)))
    least_kept = min(any_kept, taken, given)
    if back_length > least_kept:
        back = _extent(row, fallbacks)
        any_kept, taken, given = max(any_kept, back.any), max(taken, back.taken), max(given, back.given)
        least_kept = min(any_kept, taken, given)
    return Bound(
        row.rating,
        alone,
        any_kept,
        taken,
        given,
        least_kept,
        base,
        every,
        high,
        -low,
        reactive_low,
        reactive_high,
        base_length,
    )


def _cap(caps: Caps, places: Sequence[_Place]) -> tuple[float, float]:
    """Return the highest low and the lowest high of the caps on some places."""
    low, high = -math.inf, math.inf
    for place in places:
        found = caps.get(place)
        if found is not None:
            low, high = max(low, found[0]), min(high, found[1])
    return low, high


def _excess(row: _Row, now: Sums, alone: Sums, bound: Bound) -> Excess | None:
    # No corner is farther than all terms laid end to end, so few rows need be looked at closely.
    length = _length(now)
    alone_length = length if alone is now else _length(alone)
    if length <= bound.least and alone_length + bound.base_length <= bound.rating and alone_length <= bound.least_kept:
        return None
    return next(_excesses(row, now, alone, bound), None)


def _excesses(row: _Row, now: Sums, alone: Sums, bound: Bound) -> Iterator[Excess]:
    length = _length(alone)
    if length + bound.base_length > bound.rating:
        for sums, rating in ((alone, bound.rating_alone), (now, bound.rating)):
            found = _any(row, _added(sums, bound.base))
            if found > rating * (1 + ROUNDING) + ROUNDING:
                yield Excess(row.circuit, row.phase, "any", found, rating)
            if bound.rating_alone == bound.rating:
                break  # what is now is within what is with fallbacks
    if length > bound.least_kept:
        extent = _extent(row, alone)
        yield from _beyond(
            row,
            ("any", extent.any, bound.kept_any),
            ("taken", extent.taken, bound.kept_taken),
            ("given", extent.given, bound.kept_given),
        )
    if _length(now) > bound.least:
        extent = _extent(row, now)
        yield from _beyond(
            row,
            ("any", extent.any, bound.any),
            ("taken", extent.taken, bound.taken),
            ("given", extent.given, bound.given),
            ("reactive", extent.reactive_high, bound.reactive_high),
            ("reactive", -extent.reactive_low, -bound.reactive_low),
        )


def _beyond(row: _Row, *sides: tuple[str, float, float]) -> Iterator[Excess]:
    """Yield the sides on which what is found is more than the limit."""
    for side, found, limit in sides:
        # What does not flow is not over, whatever the limit; a limit below zero cannot be met by taking less.
        if found > max(limit, 0.0) * (1 + ROUNDING) + ROUNDING:
            yield Excess(row.circuit, row.phase, side, found, limit)


def loaded(phases: Sequence[Phase]) -> list[float]:
    """Return 1 for each of L1, L2 and L3 that is among some phases, else 0."""
    return [1.0 if phase in phases else 0.0 for phase in PHASES]


def spans_of(station: Station, span: Span, phases: tuple[Phase, ...] | None) -> tuple[Span, Span, Span]:
    """Return a span on each phase that is loaded: all where that is not known, nothing on the others."""
    loaded = phases if phases is not None else (station.phases or PHASES)
    if len(loaded) == len(PHASES):
        return span, span, span
    return (
        span if Phase.L1 in loaded else NOTHING,
        span if Phase.L2 in loaded else NOTHING,
        span if Phase.L3 in loaded else NOTHING,
    )
