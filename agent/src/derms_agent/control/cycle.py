# SPDX-License-Identifier: Apache-2.0
"""One cycle: what was read in, what is to be written out. Pure; the caller stores the ledger and sends the writes.

`image -> obedience -> limits -> allocate -> guard -> writes`, each a function of what came before:

1. **Events.** What became of the last cycle's writes, and every reading, go into the ledger. A reading that is stale is
   no reading: the ledger counts without it.
2. **Obedience** compares what each EVSE was told with what it draws; who does not follow is not trusted by the ledger.
3. **Limits** come from the caller, for only it knows their sources, and meet in `combine`.
4. **Allocate** shares out what is left. EVSEs that cannot be relied on are left out, and what the ledger counts for
   them is taken off the circuits above them (by magnitude, which is never too little), and so is what idle EVSEs fall
   back to, so that it plans with what there is.
5. **Guard** lets through what cannot overload anything; whatever `allocate` says, no EVSE gets more than its own
   bounds, and none, relied on or not, goes on to give back more than these.
6. **Why**, for each EVSE: what it is told, and whose limits hold it there, in the order of their ranks.

Nothing in here waits, and nothing depends on anything but its arguments, so a cycle can be replayed from its inputs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import Protocol, TypeAlias

from derms_agent.control import guard, obedience, shed
from derms_agent.control.guard import Admission, Rules, Write
from derms_agent.control.ledger import (
    NOTHING,
    Amount,
    Answered,
    Distrusted,
    Event,
    Ledger,
    Measured,
    ReadBack,
    Seen,
    Span,
    Station,
    fallback_of,
    fresh,
    record,
)
from derms_agent.control.limits import SITE, Bound, Combined, Place, Target, bounds_on
from derms_agent.control.obedience import Allowance, Following, Obedience, Sample
from derms_agent.control.worst_case import (
    PHASES,
    BaseLoad,
    Caps,
    Circuits,
    Excess,
    amperes_of,
    spans_of,
    watts_per_a,
)
from derms_agent.model import Circuit, Limit, LimitQuantity, PerPhase, Phase, Quality, Rank


class Allocated(Protocol):
    """What an EVSE is to get: `allocate.Allocation`."""

    @property
    def current_a(self) -> float:
        """A per conductor."""
        ...

    @property
    def why(self) -> str:
        """The reason in words."""
        ...


Bounds: TypeAlias = "Mapping[Place, Bound]"
Combine: TypeAlias = "Callable[[Iterable[Limit], float], Combined]"
Allocate: TypeAlias = "Callable[[Sequence[str], Bounds, float], Mapping[str, Allocated]]"
"""EVSEs that can be relied on, the bounds, and now, in: what each gets, out. The caller binds all else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvseImage:
    """The last reading of one EVSE. A of the supply's L1, L2 and L3; `limit_a` as the device shows it, A per conductor.

    It was asked for at `sent_s` and answered at `answered_s`. None: the device does not have it.
    """

    sent_s: float
    answered_s: float
    quality: Quality = Quality.GOOD
    current_a: PerPhase | None = None
    limit_a: float | None = None
    up_since_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a cycle is given. `events`: what became of writes, in order. `base` as the guard takes it; None: worst.

    `idle`: EVSEs that will be given nothing, for nobody is there.
    """

    now_s: float
    image: Mapping[str, EvseImage]
    limits: tuple[Limit, ...]
    events: tuple[Event, ...] = ()
    base: Mapping[str, BaseLoad] | None = None
    idle: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class State:
    """What a cycle hands to the next."""

    ledger: Ledger
    obedience: Mapping[str, Obedience] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Why:
    """What holds one EVSE: the limits in force on its way to the root, strongest rank first, and what else there is."""

    told_a: float
    wanted_a: float
    limits: tuple[Limit, ...]
    words: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a cycle comes to: writes to send once `state.ledger` is stored, and what the page, LED and log are told.

    `faults`: what to check, in words; `fallback`: EVSEs that are silent. They and `held` are what the operating state
    is made of. `doubted`: EVSEs that cannot be relied on, silent or not: the others have what those may take taken off.
    Reasons are worked out when they are asked for, so that no write waits for words.
    """

    state: State
    writes: tuple[Write, ...]
    why: Mapping[str, Why]
    bounds: Bounds
    admission: Admission
    faults: tuple[str, ...]
    fallback: tuple[str, ...]
    doubted: frozenset[str]

    @property
    def held(self) -> tuple[Limit, ...]:
        """The limits that keep some EVSE below what allocation or guard would give, each once."""
        found = {id(limit): limit for reason in self.why.values() for limit in reason.limits}
        return tuple(dict.fromkeys(found.values()))


@dataclass(frozen=True, slots=True)
class _Place:
    """What is looked up for one EVSE in each cycle, worked out once.

    `phases` are those that it may load; `above` its circuit and all above that; `allowance` its own in obedience;
    `watts_per_a` what is between its power and its current.
    """

    station: Station
    phases: frozenset[Phase]
    above: tuple[str, ...]
    allowance: Allowance
    watts_per_a: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycle:
    """What stays the same from cycle to cycle."""

    circuits: Circuits
    combine: Combine
    allocate: Allocate
    rules: Rules = field(default_factory=Rules)
    allowance: Allowance = field(default_factory=Allowance)
    _places: Mapping[str, _Place] = field(init=False, repr=False, compare=False)
    _last_reserved: dict[tuple[tuple[str, Span], ...], Mapping[Place, tuple[float, float]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Work out what is looked up in each cycle."""
        object.__setattr__(self, "_places", {one.name: self._place(one) for one in self.circuits.stations})

    def _place(self, one: Station) -> _Place:
        phases = one.phases or PHASES
        return _Place(
            one,
            frozenset(phases),
            tuple(_upwards(self.circuits.circuits, one.circuit)),
            dataclasses.replace(self.allowance, follow_s=one.follow_s),
            watts_per_a(self.circuits.circuits[one.circuit], len(phases)),
        )

    def run(self, state: State, inputs: Inputs) -> Outcome:
        """Return what one cycle comes to."""
        now_s = inputs.now_s
        book = record(state.ledger, (*inputs.events, *readings(inputs.image)))
        book, verdicts = self._judged(book, state.obedience, now_s)
        stations = self.circuits.stations
        standing = guard.standing(book, self.circuits, now_s, self.rules)
        book = standing.ledger
        bounds = self.combine(inputs.limits, now_s)
        relied = [one.name for one, is_relied in zip(stations, standing.reliable, strict=True) if is_relied]
        kept = protecting(inputs.limits, self.circuits.circuits)
        left, allocated, wanted = self._shared(book, bounds, kept, relied, inputs.idle, now_s)
        admission = guard.admit_standing(
            standing, wanted, caps=caps_of(bounds, self.circuits.circuits), kept=kept, base=inputs.base
        )
        entries = admission.ledger.entries
        return Outcome(
            State(admission.ledger, verdicts),
            admission.writes,
            Reasons(self._places, admission, allocated, left, verdicts),
            bounds,
            admission,
            tuple(
                f"{name}: {words}"
                for name, verdict in verdicts.items()
                if verdict.state is not Following.FOLLOWING and (words := obedience.advice(verdict))
            ),
            tuple(
                one.name
                for one, is_relied in zip(stations, standing.reliable, strict=True)
                if not is_relied and entries[one.name].silent_for_s(now_s) >= one.silent_s
            ),
            frozenset(self._places).difference(relied),
        )

    def shed(
        self, state: State, limits: tuple[Limit, ...], idle: frozenset[str], now_s: float
    ) -> tuple[State, tuple[Write, ...]]:
        """Return what limits that have just come call for and that no cycle need be waited for: decreases.

        `limits` are all that hold. The state's ledger counts the writes; it is to be stored before they leave.
        """
        book, circuits = state.ledger, self.circuits
        kept = protecting(limits, circuits.circuits)
        answering = [
            one.name for one in circuits.stations if shed.answers(book.entries[one.name], one, now_s, self.rules)
        ]
        _, _, wanted = self._shared(book, self.combine(limits, now_s), kept, answering, idle, now_s)
        writes, book = shed.lowered(book, wanted, now_s)
        return State(book, state.obedience), writes

    def _shared(  # noqa: PLR0917 - what the shares are made from
        self,
        book: Ledger,
        bounds: Combined,
        kept: Caps,
        relied: Sequence[str],
        idle: frozenset[str],
        now_s: float,
    ) -> tuple[Combined, Mapping[str, Allocated], Mapping[str, Amount]]:
        """Return what is left for those that are relied on, their shares, and those within each one's own bounds."""
        left = self._left(bounds, book, set(relied), now_s)
        left = self._kept_free(left, kept, book, idle.intersection(relied))
        allocated = self.allocate(relied, left, now_s)
        wanted = {
            name: Amount(_within(place, allocation.current_a, bounds.of.get(name)))
            for name, allocation in allocated.items()
            if (place := self._places.get(name)) is not None
        }
        return left, allocated, wanted | self._ended(book, bounds, wanted)

    def _ended(self, book: Ledger, bounds: Combined, besides: Container[str]) -> dict[str, Amount]:
        """Return what EVSEs that would stand as they were told are to give back at the most: a reserve is passed, say.

        Whoever cannot be relied on may well take that, and else its discharge would be fed for ever.
        """
        found = {}
        for name, place in self._places.items():
            told = None if name in besides else book.entries[name].told_amount
            if told is None or told.active_a >= 0:
                continue
            active_a = min(_within(place, told.active_a, bounds.of.get(name)), 0.0)
            if active_a > told.active_a:
                found[name] = Amount(active_a)
        return found

    def _judged(
        self, book: Ledger, before: Mapping[str, Obedience], now_s: float
    ) -> tuple[Ledger, Mapping[str, Obedience]]:
        """Return the verdicts, and the ledger that trusts only those who follow, or will."""
        verdicts: dict[str, Obedience] = {}
        events: list[Event] = []
        entries = book.entries
        for name, place in self._places.items():
            entry = entries[name]
            claims, measured = entry.claims, entry.measured
            seen = measured is not None and fresh(entry, place.station, now_s)
            sample = Sample(
                claims.told_amount,
                measured or (),
                entry.measured_s if seen else None,
                claims.confirmed,
                None if claims.told is None else claims.told.since_s,
            )
            verdict = obedience.judge(before.get(name) or obedience.unproven(now_s), sample, now_s, place.allowance)
            verdicts[name] = verdict
            if verdict.believed == claims.distrusted:
                events.append(Distrusted(name, not verdict.believed, now_s))
        return record(book, events) if events else book, verdicts

    def _left(self, bounds: Combined, book: Ledger, relied: set[str], now_s: float) -> Combined:
        """Return the bounds of the circuits less what the ledger counts for EVSEs that cannot be relied on."""
        taken = self._taken(
            (one, guard.phase_spans(book.entries[one.name], one, now_s))
            for one in self.circuits.stations
            if one.name not in relied
        )
        if not taken:
            return bounds
        left: dict[Place, Bound] = {}
        for place, (low, high) in taken.items():
            bound = bounds.get(place)
            if bound is not None:
                left[place] = Bound(
                    min(bound.low - low, 0.0) if bound.low <= 0 else bound.low,
                    max(bound.high - high, 0.0) if bound.high >= 0 else bound.high,
                    bound.low_by,
                    bound.high_by,
                )
        return bounds.changed(left)

    def _kept_free(self, left: Combined, kept: Caps, book: Ledger, idle: Iterable[str]) -> Combined:
        """Return bounds in which what protects circuits is less by what idle EVSEs fall back to.

        The guard counts that whatever they are told; those that are given something use it.
        """
        back = [
            (self._places[name].station, fallback)
            for name in sorted(idle)
            if (fallback := fallback_of(book.entries[name], self._places[name].station)) != NOTHING
        ]
        if not back or not kept:
            return left
        reserved = self._reserved(tuple((one.name, fallback) for one, fallback in back))
        found: dict[Place, Bound] = {}
        for place, (low, high) in kept.items():
            bound, (_low, back_high) = left.get(place), reserved.get(place, (0.0, 0.0))
            if bound is not None and back_high > 0 and high - back_high < bound.high:
                low_by = high_by = bound.high_by
                if high_by is not None:
                    source = f"{high_by.source}, less {back_high:.0f} that idle EVSEs fall back to"
                    low_by = high_by = dataclasses.replace(high_by, source=source)
                if bound.low_by is not bound.high_by:
                    low_by = bound.low_by
                found[place] = Bound(max(bound.low, low), max(high - back_high, 0.0), low_by, high_by)
        return left.changed(found) if found else left

    def _taken(self, stations: Iterable[tuple[Station, Sequence[Span]]]) -> dict[Place, tuple[float, float]]:
        """Return what EVSEs with these spans on L1, L2 and L3 may take together of each bound above them."""
        taken: dict[Place, tuple[float, float]] = {}
        for one, spans in stations:
            for place, low, high in _counted(self.circuits.circuits, one, spans):
                before = taken.get(place, (0.0, 0.0))
                taken[place] = (before[0] + low, before[1] + high)
        return taken

    def _reserved(self, back: tuple[tuple[str, Span], ...]) -> Mapping[Place, tuple[float, float]]:
        """Return what EVSEs that fall back may take of each bound above them."""
        known = self._last_reserved.get(back)
        if known is None:
            stations = [(self._places[name].station, fallback) for name, fallback in back]
            known = self._taken((one, spans_of(one, fallback, None)) for one, fallback in stations)
            self._last_reserved.clear()  # it changes when a vehicle comes or goes
            self._last_reserved[back] = known
        return known


class Reasons(Mapping[str, Why]):
    """Why each EVSE is told what it is told: worked out for those that are asked for."""

    def __init__(
        self,
        places: Mapping[str, _Place],
        admission: Admission,
        allocated: Mapping[str, Allocated],
        bounds: Bounds,
        verdicts: Mapping[str, Obedience],
    ) -> None:
        self._places, self._admission, self._allocated = places, admission, allocated
        self._bounds, self._verdicts = bounds, verdicts
        self._above: dict[tuple[str, frozenset[Phase]], list[_Ranked]] = {}

    def __iter__(self) -> Iterator[str]:
        """Return the EVSEs' names."""
        return iter(self._places)

    def __len__(self) -> int:
        """Return how many EVSEs there are."""
        return len(self._places)

    def __getitem__(self, name: str) -> Why:
        """Return why one EVSE is told what it is told."""
        place, admission = self._places[name], self._admission
        told = admission.ledger.entries[name].told_amount
        allocation, verdict = self._allocated.get(name), self._verdicts[name]
        words = [allocation.why] if allocation is not None else ["cannot be relied on"]
        if name in admission.capped:
            words.append(f"taken back for {_named(admission.capped[name])}")
        if name in admission.held:
            excess = admission.held[name]
            words.append("waits for its last write" if excess is None else f"waits for {_named(excess)}")
        if verdict.state is not Following.FOLLOWING:
            words.append(verdict.state.value)
        return Why(
            math.nan if told is None else told.active_a,
            admission.targets[name].active_a,
            self._in_force(place),
            "; ".join(filter(None, words)),
        )

    @cached_property
    def _by_target(self) -> Mapping[str, list[tuple[Phase | None, Bound]]]:
        found: dict[str, list[tuple[Phase | None, Bound]]] = {}
        for (target, _quantity, phase), bound in self._bounds.items():
            found.setdefault(target, []).append((phase, bound))
        return found

    def _in_force(self, place: _Place) -> tuple[Limit, ...]:
        """Return whose limits bound an EVSE from its own to the site's, by rank, then from the EVSE upwards."""
        key = place.station.circuit, place.phases
        above = self._above.get(key)
        if above is None:
            above = self._above[key] = [
                entry
                for order, target in enumerate(place.above, start=1)
                for entry in self._ranked(target, order, place.phases)
            ]
        found = sorted((*self._ranked(place.station.name, 0, place.phases), *above), key=itemgetter(0, 1))
        return tuple(dict.fromkeys(limit for _rank, _order, limit in found))

    def _ranked(self, target: str, order: int, phases: frozenset[Phase]) -> Iterator[_Ranked]:
        for phase, bound in self._by_target.get(target, ()):
            if phase is None or phase in phases:
                for limit in (bound.high_by, bound.low_by):
                    if limit is not None:
                        yield limit.rank, order, limit


_Ranked: TypeAlias = "tuple[Rank, int, Limit]"
"""A limit with its rank and how far up the tree it is."""


def readings(image: Mapping[str, EvseImage]) -> list[Event]:
    """Return what readings say: only good ones say anything, and each as of when it was asked for."""
    events: list[Event] = []
    for name, seen in image.items():
        if seen.quality is not Quality.GOOD:
            continue
        if seen.up_since_s is not None or (seen.limit_a is None and seen.current_a is None):
            # Any other reading says by itself that the device answered.
            events.append(Answered(name, seen.sent_s, seen.answered_s, seen.up_since_s))
        if seen.limit_a is not None and seen.current_a is not None:
            events.append(Seen(name, Amount(seen.limit_a), seen.current_a, seen.sent_s, seen.answered_s))
        elif seen.limit_a is not None:
            events.append(ReadBack(name, Amount(seen.limit_a), seen.sent_s, seen.answered_s))
        elif seen.current_a is not None:
            events.append(Measured(name, seen.current_a, seen.sent_s, seen.answered_s))
    return events


def _within(place: _Place, current_a: float, own: Target | None) -> float:
    """Return a current within the bounds of the EVSE itself, in A per conductor."""
    low, high = place.station.lowest_a, place.station.rating_a
    if own is not None:
        least, most = own.range_a(place.station.phases or PHASES, place.watts_per_a)
        low, high = max(low, least), min(high, most)
    if low <= current_a <= high:
        return current_a
    return min(max(current_a, low), high) if low <= high else 0.0


def caps_of(bounds: Bounds, circuits: Mapping[str, Circuit]) -> Caps:
    """Return the bounds of circuits, and of the site, as the guard takes them."""
    return {place: (bound.low, bound.high) for place, bound in bounds_on(bounds, (*circuits, SITE))}


def protecting(limits: Iterable[Limit], circuits: Mapping[str, Circuit]) -> Caps:
    """Return what protects circuits, lowest and highest by place: it holds for EVSEs left on their own as well."""
    found: dict[Place, tuple[float, float]] = {}
    for limit in limits:
        if limit.rank is Rank.PROTECTION and limit.target in circuits:
            for phase in limit.phases or (None,):
                place = limit.target, limit.quantity, phase
                low, high = found.get(place, (-math.inf, math.inf))
                found[place] = max(low, limit.low), min(high, limit.high)
    return found


def _upwards(circuits: Mapping[str, Circuit], name: str) -> list[str]:
    """Return a circuit and all above it; "site" stands above the root."""
    found = [name]
    while (parent := circuits[found[-1]].parent) is not None:
        found.append(parent)
    return [*found, "site"]


def _counted(circuits: Mapping[str, Circuit], one: Station, spans: Sequence[Span]) -> list[tuple[Place, float, float]]:
    """Return what one EVSE may take of each bound above it, by magnitude; beyond a transformer on any phase."""
    found: list[tuple[Place, float, float]] = []
    own = circuits[one.circuit]
    worst = Span()
    for span in spans:
        worst = worst.hull(span)
    watts = 1.0 / amperes_of(own, len(one.phases or PHASES), 1.0)
    each = own.connection.value in {"single_phase", "wye"}
    for name in _upwards(circuits, one.circuit):
        at = circuits.get(name)
        each = each and (at is None or at.connection.value in {"single_phase", "wye"})
        ratio = (
            1.0
            if at is None
            else max(1.0, own.line_voltage_v / at.line_voltage_v)
            if each
            else own.line_voltage_v / at.line_voltage_v * _WIDEST
        )
        for phase, span in zip(PHASES, spans, strict=True):
            low, high = _apparent(one, span if each else worst)
            found.append(((name, LimitQuantity.CURRENT, phase), low * ratio, high * ratio))
        found.append(((name, LimitQuantity.ACTIVE_POWER, None), worst.low * watts, worst.high * watts))
        low, high = _apparent(one, worst)
        found.append(((name, LimitQuantity.APPARENT_POWER, None), low * watts, high * watts))
    return found


def _apparent(one: Station, span: Span) -> tuple[float, float]:
    return one.apparent_a(span.low), one.apparent_a(span.high)


_WIDEST = 2 / math.sqrt(3)
"""What a line may carry behind a delta-wye transformer, of what flows in two of its windings."""


def _named(excess: Excess) -> str:
    line = "its power" if excess.phase is None else excess.phase.value
    return f"{excess.circuit}, {line}: {excess.found:.1f} of {excess.limit:.1f}"
