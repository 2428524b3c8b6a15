# SPDX-License-Identifier: Apache-2.0
"""Which writes may leave now, so that nothing that may happen overloads a circuit. Pure.

The ledger (`ledger.py`) holds for each EVSE an interval that contains its current whatever happens; `worst_case.py`
adds intervals up to the most that each line and each circuit's power may carry. A *row* is one of those. The guard
takes what is wanted and says what is written.

**What it keeps to.** For every row, with U the ledger's upper bound of it:

1. No write raises U where U is over its limit or would be after it.
2. While U is over, each write to an EVSE that the row sees tells it no more than it was told before.

For ratings, and for what else protects circuits, U contains each EVSE's fallback always, not only once its watchdog may
have run out: when this process dies, watchdogs run out one after the other, and one EVSE may go up to its fallback
while another still holds what it was told. So U holds through our death, until all have fallen back.

**Why.** A write of v adds the claim [0, v] (or [v, 0]) to the EVSE's; so U can only grow with it, and does not at all
where the EVSE's interval held it already. So a decrease, and the same value again, leave U as it is: they may leave at
once, and U falls when the old value's claim is let go (by a proof of the write and a current measured `follow_s` after
it; an acknowledgement alone frees nothing). Anything else leaves only after U was worked out with its claim in it, in
every row that the EVSE touches, together with all writes of the same cycle that left before it; and only where none of
these rows is over now. So (1) and (2) hold for each write alone, whatever the others' order.

From (1), by induction over events, U is at most its limit at all times, except after an event that is not a write:

- *acknowledged, read back*: claims end, none begins but for a value that somebody else wrote; U does not change yet.
- *measured*: claims are let go, U falls; or the EVSE draws more than its claims, which is disobedience.
- *timed out*: the claim stays as it is.
- *silent, rebooted*: fallback, after-boot value, rating come in. That the sum of all of them stays within every rating
  is checked before the agent starts; with some EVSEs silent and others not it need not, so `admit` looks ahead:
- *base load steps up, a limit falls, an EVSE disobeys*: U may be over.

**What it does then.** `admit` works out the rows as they will be once what is wanted is reached and proven, those EVSEs
that cannot be relied on (silent, not obeying, not taking writes, or not measured) standing as they are. Where that is
over, what is wanted of the others is capped, alike for all in the row, until it fits, and written at once. So an
EVSE's excess is taken off the others in the same cycle. Where the others have nothing left to give, those that cannot
be relied on are told less as well: a charger whose meter is broken still takes what it is told. Nobody gets anything
for that, since what they may do stays counted.

**Progress.** What is wanted, after those caps, fits in every row. Once all lower writes are acknowledged, and measured
`follow_s` later, the ledger is the hull of what each was told, within the wanted; then every raise fits, in any order,
for every subset of what fits does (monotone). A write that got no answer is repeated every `retry_s`; so is
one after which something else may be in force (fallback, restart, a lost write), with the value last told, which is
neutral.

**Restart of this process.** The caller stores the ledger that `admit` returns, or a journal of its writes since one
was stored (`journal.py`), before it lets the writes out. Its successor adopts that (`ledger.from_json`), so a write
that left is always counted. What is assumed of the hardware stands in `ledger.py`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from derms_agent.control.ledger import (
    Amount,
    Cause,
    Entry,
    Ledger,
    Span,
    Station,
    advance,
    advanced,
    amount_of,
    fallback_of,
    fresh,
    issued,
    span_of,
)
from derms_agent.control.worst_case import BaseLoad, Bound, Box, Caps, Circuits, Excess, Reach, Sums, loaded, spans_of

_Fits: TypeAlias = "Callable[[NDArray[np.float64]], bool]"
_Spans: TypeAlias = "tuple[Span, Span, Span]"
_NONE = Amount(0.0)
_UNITY = (0.0, 0.0, 0.0)
_ROUNDING = 1e-6
_HALVINGS = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How the guard works.

    `retry_s`: how soon a write is repeated that got no answer, or after which something else may be in force.
    `grace_s`: for how long an EVSE is relied on to take writes, or to follow, beyond what it is allowed.
    `least_raise_a`: a smaller part of a raise waits. `early_share`: so much of its time after the last write an EVSE
    may be refreshed already, where few others are in the same cycle; else those that were told at the same moment would
    burden the same cycle, and the same bus, for ever.
    """

    retry_s: float = 2.0
    grace_s: float = 5.0
    least_raise_a: float = 1.0
    early_share: float = 0.7


class Purpose(str, Enum):
    """What a write is for."""

    LOWER = "lower"
    RAISE = "raise"
    REPEAT = "repeat"  # the same value, for something else may be in force
    REFRESH = "refresh"  # the same value, for its watchdog


@dataclass(frozen=True, slots=True)
class Write:
    """A write that may leave: its id, for the events that tell what became of it."""

    id: int
    evse: str
    amount: Amount
    purpose: Purpose


class Admission(NamedTuple):
    """The writes that may leave, in this order, and the ledger that counts them, to be stored before.

    `over`: the rows whose worst case is over now. `targets`: what is to be reached, after what had to be taken off.
    `capped`, `held`: for each EVSE whose wanted value was taken back, or waits, the row because of which; None: it
    waits for itself.
    """

    writes: tuple[Write, ...]
    ledger: Ledger
    over: tuple[Excess, ...]
    targets: Mapping[str, Amount]
    capped: Mapping[str, Excess]
    held: Mapping[str, Excess | None]


class _Growth(NamedTuple):
    """By how much the highs of an EVSE's phases grow, in A: of what it may do now, and with its fallback."""

    now: float
    alone: float

    def is_no_less(self, other: _Growth) -> bool:
        """Whether neither is less than the other's."""
        return self.now >= other.now and self.alone >= other.alone


@dataclass(slots=True)
class _Raise:
    """A raise that asks to be let through: from `base`, which is no raise, towards `target`."""

    place: int
    base: Amount
    target: Amount


def reliable(entry: Entry, station: Station, now_s: float, rules: Rules = Rules()) -> bool:
    """Whether an EVSE can be counted on to do soon what it is told, and to show it."""
    claims, heard_s, unproven_s = entry.claims, entry.heard_s, entry.unproven_s
    if heard_s is None or now_s - heard_s >= station.silent_s or not fresh(entry, station, now_s) or claims.distrusted:
        return False
    if unproven_s is not None and now_s - unproven_s >= rules.grace_s:
        return False
    return now_s - claims.ended_s < station.follow_s + rules.grace_s


def may_heed(entry: Entry, station: Station, now_s: float, rules: Rules) -> bool:
    """Whether an EVSE that cannot be relied on is worth telling less: it may do it, and just not show it.

    One that is not measured is given `grace_s` first: after the start of this process, that takes a moment.
    """
    told = entry.claims.told
    if told is None or fresh(entry, station, now_s):
        return told is not None
    unmeasured_since_s = entry.measured_s
    if unmeasured_since_s is None:
        unmeasured_since_s = told.since_s if told.acknowledged else now_s
    return now_s - unmeasured_since_s >= rules.grace_s


class Standing(NamedTuple):
    """A ledger `advance`d to a moment, with its entries and who is `reliable`, both in the order of the stations."""

    ledger: Ledger
    circuits: Circuits
    now_s: float
    rules: Rules
    entries: list[Entry]
    reliable: list[bool]


def standing(ledger: Ledger, circuits: Circuits, now_s: float, rules: Rules = Rules()) -> Standing:
    """Return how the EVSEs stand now. `circuits` holds the ledger's stations."""
    ledger = advance(ledger, now_s)
    entries = [ledger.entries[one.name] for one in circuits.stations]
    relied = [reliable(entry, one, now_s, rules) for entry, one in zip(entries, circuits.stations, strict=True)]
    return Standing(ledger, circuits, now_s, rules, entries, relied)


def phase_spans(entry: Entry, station: Station, now_s: float) -> tuple[Span, Span, Span]:
    """Return what an EVSE may do on L1, L2 and L3. `entry` is `advanced` to now."""
    known = spans_of(station, entry.claims.span, entry.phases)
    if entry.measured is None or not fresh(entry, station, now_s):
        return known
    if entry.measured_reactive == _UNITY and (entry.phases is None or len(station.phases) != len(known) - 1):
        for span, active in zip(known, entry.measured, strict=True):
            if not span.low - station.tolerance_a <= active <= span.high + station.tolerance_a:
                break
        else:
            return known
    spans = list(known)
    for line, (active, reactive) in enumerate(zip(entry.measured, entry.measured_reactive, strict=True)):
        if active == reactive == 0.0:
            continue  # each span holds nothing
        flowing = span_of(Amount(active, reactive))
        if not spans[line].holds(flowing, station.tolerance_a):
            spans[line] = spans[line].hull(flowing)
    if len(station.phases) == len(known) - 1:
        both = spans[0].hull(spans[1]).hull(spans[2])  # between two lines of a delta it is one current
        return spans_of(station, both, None)
    return spans[0], spans[1], spans[2]


def intervals(ledger: Ledger, now_s: float) -> dict[str, tuple[Span, Span, Span]]:
    """Return what each EVSE may do now, in A on L1, L2 and L3."""
    return {
        name: phase_spans(advanced(entry, ledger.stations[name], now_s), ledger.stations[name], now_s)
        for name, entry in ledger.entries.items()
    }


def over(  # noqa: PLR0917 - those of `admit`
    ledger: Ledger,
    circuits: Circuits,
    caps: Caps,
    base: Mapping[str, BaseLoad] | None,
    now_s: float,
    kept: Caps | None = None,
) -> tuple[Excess, ...]:
    """Return the rows whose worst case is over its limit now."""
    known = _Known(standing(ledger, circuits, now_s))
    box, back = known.box(), known.back()
    return tuple(circuits.over(circuits.reach(box, back), circuits.bounds(caps, base or {}, back, kept or {})).values())


def admit(
    ledger: Ledger,
    wanted: Mapping[str, Amount],
    now_s: float,
    *,
    circuits: Circuits,
    caps: Caps | None = None,
    kept: Caps | None = None,
    base: Mapping[str, BaseLoad] | None = None,
    rules: Rules = Rules(),
) -> Admission:
    """Return which writes may leave now, and the ledger with them in it.

    `wanted` is in order of precedence; an EVSE that is not in it stands as it was told. `circuits` holds the ledger's
    stations. `caps` bound circuits beyond their ratings, and `kept`, which are among them, whatever EVSEs do on their
    own; `base` is the circuits' base load, the declared worst where absent.
    """
    return admit_standing(standing(ledger, circuits, now_s, rules), wanted, caps=caps, kept=kept, base=base)


def admit_standing(
    standing: Standing,
    wanted: Mapping[str, Amount],
    *,
    caps: Caps | None = None,
    kept: Caps | None = None,
    base: Mapping[str, BaseLoad] | None = None,
) -> Admission:
    """Return what `admit` does, of what is known of the ledger already."""
    return _Admitting(standing, wanted, caps or {}, kept or {}, base or {}).run()


class _Known:
    """What each EVSE may do on each phase, and what it falls back to: for all at once, and for single ones on demand.

    On nearly all EVSEs it is one span on each phase that is loaded. What is measured beyond that is looked for in
    arrays, and worked out for those alone where it may be so.
    """

    def __init__(self, at: Standing) -> None:
        self._at, circuits = at, at.circuits
        self.loaded = circuits.wired
        told = [place for place, entry in enumerate(at.entries) if entry.phases is not None]
        if told:
            self.loaded = circuits.wired.copy()
            for place in told:
                self.loaded[place] = loaded(at.entries[place].phases or ())
        self._spans = [entry.claims.span for entry in at.entries]
        self._backs = [fallback_of(entry, one) for entry, one in zip(at.entries, circuits.stations, strict=True)]
        self._beyond = {
            place: phase_spans(at.entries[place], circuits.stations[place], at.now_s)
            for place in sorted({*told, *self._flowing_beyond()})
        }

    def _flowing_beyond(self) -> list[int]:
        """Return the EVSEs on which more may flow than their claims say."""
        count, entries = len(self._at.entries), self._at.entries
        flows = itertools.chain.from_iterable([entry.measured or _UNITY for entry in entries])
        measured = np.fromiter(flows, dtype=np.float64, count=3 * count).reshape(count, 3)
        tolerance_a = self._at.circuits.tolerance_a
        low = np.array([span.low for span in self._spans]).reshape(count, 1) * self.loaded - tolerance_a
        high = np.array([span.high for span in self._spans]).reshape(count, 1) * self.loaded + tolerance_a
        beyond = ~((low <= measured) & (measured <= high)).all(axis=1)
        turned = [place for place, entry in enumerate(entries) if entry.measured_reactive != _UNITY]
        return [*np.flatnonzero(beyond).tolist(), *turned]

    def box(self) -> Box:
        """Return the box of what EVSEs may do."""
        return self._at.circuits.box_of(self._spans, self.loaded, self._beyond)

    def back(self) -> Box:
        """Return the box of what EVSEs fall back to."""
        return self._at.circuits.box_of(self._backs, self.loaded, {})

    def spans(self, place: int) -> _Spans:
        """Return what an EVSE may do on each phase."""
        found = self._beyond.get(place)
        return self._of(place, self._spans[place]) if found is None else found

    def fallback(self, place: int) -> _Spans:
        """Return what an EVSE falls back to on each phase."""
        return self._of(place, self._backs[place])

    def grow(self, place: int, spans: _Spans) -> None:
        """Count that an EVSE may do more from now on."""
        self._beyond[place] = spans

    def _of(self, place: int, span: Span) -> _Spans:
        return spans_of(self._at.circuits.stations[place], span, self._at.entries[place].phases)


class _Admitting:
    """One call of `admit`: what it works on."""

    def __init__(
        self, at: Standing, wanted: Mapping[str, Amount], caps: Caps, kept: Caps, base: Mapping[str, BaseLoad]
    ) -> None:
        self.ledger, self.circuits, self.rules, self.now_s = at.ledger, at.circuits, at.rules, at.now_s
        circuits = at.circuits
        self.stations = circuits.stations
        self.entries, self.reliable = list(at.entries), at.reliable
        self.told = [entry.claims.told for entry in self.entries]
        self.known = _Known(at)
        self.back: Box = self.known.back()
        self.bounds: list[Bound] = circuits.bounds(caps, base, self.back, kept)
        self.box: Box = self.known.box()
        self.loaded = self.known.loaded
        self.reach: Reach = circuits.reach(self.box, self.back)
        self.over = circuits.over(self.reach, self.bounds)
        places = circuits.places
        order = [places[name] for name in wanted if name in places]
        asked = set(order)
        self.order = [*order, *(place for place in range(len(self.stations)) if place not in asked)]
        self.references = [self._reference(place) for place in range(len(self.stations))]
        self.targets = [self._wish(place, wanted.get(station.name)) for place, station in enumerate(self.stations)]
        self.capped: dict[str, Excess] = {}
        self.held: dict[str, Excess | None] = {}
        self.writes: list[Write] = []
        self.early: list[tuple[float, int]] = []
        self.next_write = at.ledger.next_write
        self.full: dict[tuple[int, int], tuple[_Growth, Excess]] = {}

    def run(self) -> Admission:
        self._fit()
        raises = []
        for place in self.order:
            if self._settled(place):
                continue
            asked = self._lower(place)
            if asked is not None:
                raises.append(asked)
        self._raise(raises)
        self._refresh_early()
        entries = {station.name: entry for station, entry in zip(self.stations, self.entries, strict=True)}
        ledger = dataclasses.replace(
            self.ledger, entries={**self.ledger.entries, **entries}, next_write=self.next_write
        )
        targets = {station.name: target for station, target in zip(self.stations, self.targets, strict=True)}
        return Admission(tuple(self.writes), ledger, tuple(self.over.values()), targets, self.capped, self.held)

    # What is to be reached

    def _reference(self, place: int) -> Amount:
        """Return what an EVSE was told; where that is unknown, what it is seen to draw, so surely may."""
        entry, station = self.entries[place], self.stations[place]
        told = entry.claims.told_amount
        if told is not None:
            return told
        if entry.measured is None or not fresh(entry, station, self.now_s):
            return _NONE
        return Amount(_stepped(max(0.0, max(entry.measured) - station.tolerance_a), station))

    def _wish(self, place: int, wanted: Amount | None) -> Amount:
        """Return what is wanted of an EVSE, within what it can do; one that cannot be relied on is not told more."""
        station, reference = self.stations[place], self.references[place]
        if wanted is None:
            return reference
        active, reactive = wanted
        if reactive != 0.0 or not station.lowest_a <= active <= station.rating_a:  # what is no number neither
            if not (math.isfinite(active) and math.isfinite(reactive)):
                return reference
            active = min(max(active, station.lowest_a), station.rating_a)
            reactive = min(max(reactive, -station.reactive_a), station.reactive_a)
        wish = Amount(_on_step(active, station.step_a, station.least_a), reactive)
        return wish if self.reliable[place] else _no_more(reference, wish)

    def _fit(self) -> None:
        """Cap what is wanted until the rows fit, as they will be once it is reached.

        First of those that can be relied on, the others standing as they are; where that is not enough, of the others
        too. What they may do stays counted until it is known that they do less.
        """
        if not self._fit_those(self.reliable):
            self._fit_those(
                [
                    known or may_heed(entry, station, self.now_s, self.rules)
                    for known, entry, station in zip(self.reliable, self.entries, self.stations, strict=True)
                ]
            )

    def _fit_those(self, heeding: Sequence[bool]) -> bool:
        """Cap what is wanted of these, and return whether all rows fit then."""
        box = self._ahead(np.flatnonzero(heeding), self.box, grown=False)
        tried: set[tuple[int, str]] = set()
        while True:
            # In steady state what is ahead is what is: then its rows are known.
            same = box.is_same(self.box)
            found = self.over if same else self.circuits.over(self.circuits.reach(box, self.back), self.bounds)
            row = next((row for row, excess in found.items() if (row, excess.side) not in tried), None)
            if row is None:
                return not found
            tried.add((row, found[row].side))
            changed = []
            for place in self._cap(row, found[row], box, heeding):
                self.capped.setdefault(self.stations[place].name, found[row])
                changed.append(place)
            box = self._ahead(changed, box, grown=False)

    def _ahead(self, places: Iterable[int], box: Box, *, grown: bool) -> Box:
        """Return a box with the targets of these EVSEs: instead of what they may do now, or `grown` by it."""
        chosen = np.array([*places], dtype=np.intp)
        flat = itertools.chain.from_iterable([self.targets[place] for place in chosen])
        targets = np.fromiter(flat, dtype=np.float64, count=2 * len(chosen)).reshape(-1, 2)
        loaded = self.loaded[chosen]
        values = []
        for part, bound in zip(box, (0, 0, 1, 1), strict=True):
            low = part is box.low or part is box.reactive_low
            told = targets[:, bound, np.newaxis] * loaded
            told = np.minimum(told, 0.0) if low else np.maximum(told, 0.0)
            changed = part.copy()
            changed[chosen] = (np.minimum if low else np.maximum)(part[chosen], told) if grown else told
            values.append(changed)
        return Box(*values)

    def _cap(self, row: int, excess: Excess, box: Box, heeding: Sequence[bool]) -> list[int]:
        """Take back targets until a row fits, or nothing is left to take back. Return the places that changed."""
        may = np.zeros(self.circuits.loads, dtype=bool)
        for place, target in enumerate(self.targets):
            may[place] = heeding[place] and {
                "taken": target.active_a > 0,
                "given": target.active_a < 0,
            }.get(excess.side, target != _NONE)
        capped = self.circuits.capped(row, box, self.back, may)
        members = [int(place) for place in capped.members]
        rank = {place: index for index, place in enumerate(self.order)}
        members.sort(key=lambda place: rank[place])
        bound = self.bounds[row]
        amounts = [self.targets[place] for place in members]
        kinds = {(self.stations[place].step_a, self.stations[place].least_a) for place in members}
        low, high = 0.0, max(map(_size, amounts), default=0.0)
        for _ in range(_HALVINGS):
            if _alike(low, high, amounts, kinds):
                break
            middle = (low + high) / 2
            low, high = (middle, high) if capped.fits(middle, bound, excess.side) else (low, middle)
        alike = {place: _limited(self.targets[place], low, self.stations[place]) for place in members}
        some = self._some(members, low, lambda caps: capped.fits(caps, bound, excess.side))
        chosen = max((alike, some), key=lambda option: math.fsum(_size(amount) for amount in option.values()))
        changed = [place for place in members if chosen[place] != self.targets[place]]
        for place in changed:
            self.targets[place] = chosen[place]
        return changed

    def _some(self, members: Sequence[int], cap_a: float, fits: _Fits) -> dict[int, Amount]:
        """Return targets where as many as fit, by precedence, keep the least they work with, and the others nothing."""
        least = {
            place: _limited(self.targets[place], max(cap_a, self.stations[place].least_a), self.stations[place])
            for place in members
        }

        def caps(count: int) -> NDArray[np.float64]:
            found = np.zeros(self.circuits.loads)
            for place in members[:count]:
                found[place] = _size(least[place])
            return found

        low, high = 0, len(members)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(caps(middle)) else (low, middle - 1)
        return {place: least[place] if index < low else _NONE for index, place in enumerate(members)}

    # What is written

    def _settled(self, place: int) -> bool:
        """Whether an EVSE was told its target, nothing else may be in force, and it need not be told again yet."""
        entry, claim = self.entries[place], self.told[place]
        if claim is None or not entry.claims.at_rest or entry.unproven_s is not None:
            return False
        return self.targets[place] == self.references[place] and not self._is_due(place, claim.since_s)

    def _lower(self, place: int) -> _Raise | None:
        """Write at once what is no raise; return what is left of the way to the target, where that is one."""
        entry = self.entries[place]
        told, target = entry.claims.told_amount, self.targets[place]
        base = _no_more(self.references[place], target)
        in_flight = [claim.span for claim in entry.claims if claim.write is not None and claim.executed_by_s is None]
        if in_flight:
            # A shed does not wait for an answer; all else does.
            if told is not None and not base.is_near(told) and all(s.holds(span_of(base)) for s in in_flight):
                self._write(place, base, Purpose.LOWER)
            else:
                self._hold(place, told, target)
            return None
        if told is None and self._waits(-math.inf, entry):
            self._hold(place, told, target)
            return None
        turns_round = told is not None and told.active_a * target.active_a < 0
        if self.reliable[place] and not target.is_near(base) and not turns_round:
            return _Raise(place, base, target)
        # What turns round goes to nothing first: that is a decrease, which waits for no disk.
        self._write_base(place, base)
        self._hold(place, base, target)
        return None

    def _hold(self, place: int, told: Amount | None, target: Amount) -> None:
        if told is None or not told.is_near(target):
            self.held.setdefault(self.stations[place].name, None)

    def _write_base(self, place: int, base: Amount) -> None:
        """Write what is no raise, where it is not what the EVSE was told, or has to be told again."""
        entry, told = self.entries[place], self.told[place]
        if told is None or not base.is_near(amount_of(told.span)):
            if told is None or not self._waits(told.since_s, entry):
                self._write(place, base, Purpose.LOWER)
            return
        since_s = self.now_s - told.since_s
        doubtful = entry.unproven_s is not None or (
            len(entry.claims) > 1
            and any(claim.ended_s is None and claim is not told and claim.cause in _REWRITTEN for claim in entry.claims)
        )
        if doubtful and since_s >= self.rules.retry_s:
            self._write(place, base, Purpose.REPEAT)
        elif self._is_due(place, told.since_s):
            self._write(place, base, Purpose.REFRESH)

    def _is_due(self, place: int, told_s: float) -> bool:
        """Whether an EVSE's watchdog wants to be fed by the same write again."""
        station, watchdog_s = self.stations[place], self.entries[place].watchdog_s
        refresh_s = station.refresh_s
        if refresh_s is None:
            return False
        if watchdog_s is not None and station.watchdog_s is not None and watchdog_s < station.watchdog_s:
            # As many beats for one that is quicker than declared.
            refresh_s *= watchdog_s / station.watchdog_s
        left_s = refresh_s - (self.now_s - told_s)
        if 0 < left_s <= refresh_s * (1 - self.rules.early_share):
            self.early.append((left_s, place))
        return left_s <= 0

    def _refresh_early(self) -> None:
        """Refresh those that are next, as far as this cycle has written less than its share of all refreshes."""
        if not self.early:
            return
        written = {write.evse for write in self.writes}
        spare = math.ceil(self.circuits.refreshes_per_s) - len(written)
        for _left_s, place in sorted(self.early)[: max(0, spare)]:
            told = self.entries[place].claims.told_amount
            if told is not None and self.stations[place].name not in written:
                self._write(place, told, Purpose.REFRESH)

    def _waits(self, since_s: float, entry: Entry) -> bool:
        """Whether an EVSE that did not take the last writes is left alone for a moment."""
        return entry.unproven_s is not None and self.now_s - max(since_s, entry.unproven_s) < self.rules.retry_s

    def _raise(self, raises: Sequence[_Raise]) -> None:
        """Let raises through as far as every row stays within its limit with them, in order of precedence."""
        if not raises:
            return
        box = self._ahead([asked.place for asked in raises], self.box, grown=True)
        together = self.circuits.reach(box, self.back)
        # What all of them together leave within its limit, each subset does: only the other rows are looked at again.
        binding = self.circuits.over(together, self.bounds)
        for asked in raises:
            self._raise_one(asked, binding)

    def _raise_one(self, asked: _Raise, binding: Mapping[int, Excess]) -> None:
        place, name = asked.place, self.stations[asked.place].name
        rows = [row for row in self.circuits.touched[place] if row in binding]  # both are in the rows' order
        amount, excess = self._most(asked, rows)  # nothing fits in a row that is over already
        if excess is not None:
            self.held[name] = excess
        if amount.is_near(asked.base):
            self._write_base(place, asked.base)
            return
        after = self._with(place, amount)
        for row in rows:
            self.reach.now[row], self.reach.alone[row] = self._grown(place, row, after)
        self.known.grow(place, after)
        self._write(place, amount, Purpose.RAISE)

    def _most(self, asked: _Raise, rows: Sequence[int]) -> tuple[Amount, Excess | None]:
        """Return how far a raise may go, and the row that holds the rest back."""
        excess = self._excess(asked.place, asked.target, rows) if rows else None
        if excess is None:
            return asked.target, None
        station = self.stations[asked.place]
        way = asked.target.active_a - asked.base.active_a
        steps = max(1, math.ceil(max(abs(way), abs(asked.target.reactive_a - asked.base.reactive_a)) / station.step_a))
        least = min(steps, max(1, math.ceil(self.rules.least_raise_a / station.step_a)))
        if abs(asked.base.active_a) < station.least_a <= abs(asked.target.active_a):
            least = max(least, math.ceil((station.least_a - abs(asked.base.active_a)) / station.step_a))
        if self._excess(asked.place, _part(asked, least, steps, station), rows) is not None:
            return asked.base, excess
        low, high = least, steps - 1
        while low < high:
            middle = (low + high + 1) // 2
            fits = self._excess(asked.place, _part(asked, middle, steps, station), rows) is None
            low, high = (middle, high) if fits else (low, middle - 1)
        return _part(asked, low, steps, station), excess

    def _excess(self, place: int, amount: Amount, rows: Sequence[int]) -> Excess | None:
        """Return the first of some rows that would be over if an EVSE were told an amount."""
        after = self._with(place, amount)
        growth = self._growth(place, after)
        alike = self.circuits.alike[place]
        for row in rows:
            # Rows only fill up: what failed once fails again for an EVSE that hangs there in the same way.
            key = row, alike[row]
            failed = self.full.get(key)
            if failed is not None and growth is not None and growth.is_no_less(failed[0]):
                return failed[1]
            excess = self.circuits.excess(row, *self._grown(place, row, after), self.bounds[row])
            if excess is not None:
                if growth is not None and (failed is None or failed[0].is_no_less(growth)):
                    self.full[key] = growth, excess
                return excess
        return None

    def _grown(self, place: int, row: int, after: _Spans) -> tuple[Sums, Sums]:
        """Return a row's sums, as things are and with fallbacks, when an EVSE may do more."""
        before, back = self.known.spans(place), self.known.fallback(place)
        return (
            self.circuits.grown(place, row, self.reach.now[row], before, after),
            self.circuits.grown(place, row, self.reach.alone[row], _hull(before, back), _hull(after, back)),
        )

    def _growth(self, place: int, after: _Spans) -> _Growth | None:
        before, back = self.known.spans(place), self.known.fallback(place)
        now, alone = _growth(before, after), _growth(_hull(before, back), _hull(after, back))
        return None if now is None or alone is None else _Growth(now, alone)

    def _with(self, place: int, amount: Amount) -> tuple[Span, Span, Span]:
        """Return what an EVSE may do on each phase with a write of an amount on its way."""
        return _hull(
            self.known.spans(place), spans_of(self.stations[place], span_of(amount), self.entries[place].phases)
        )

    def _write(self, place: int, amount: Amount, purpose: Purpose) -> None:
        self.writes.append(Write(self.next_write, self.stations[place].name, amount, purpose))
        self.entries[place] = issued(self.entries[place], self.next_write, amount, self.now_s)
        self.next_write += 1


_REWRITTEN = frozenset({Cause.SETPOINT, Cause.FALLBACK, Cause.AFTER_BOOT, Cause.UNKNOWN})
"""What may be in force until a write is proven."""


def _hull(one: _Spans, other: _Spans) -> _Spans:
    if one[0] is one[1] is one[2] and other[0] is other[1] is other[2]:  # as on nearly all that have three phases
        each = one[0].hull(other[0])
        return each, each, each
    return one[0].hull(other[0]), one[1].hull(other[1]), one[2].hull(other[2])


def _growth(before: Sequence[Span], after: Sequence[Span]) -> float | None:
    """Return by how much the highs of all phases grow; None where that is not all, or not the same for each."""
    grown = after[0].high - before[0].high
    if before[0] is before[1] is before[2] and after[0] is after[1] is after[2]:
        before, after = before[:1], after[:1]
    for old, new in zip(before, after, strict=True):
        if abs(new.high - old.high - grown) > _ROUNDING or (old.low, *old[2:]) != (new.low, *new[2:]):
            return None
    return grown


def _stepped(active_a: float, station: Station) -> float:
    """Return the next amount towards zero that an EVSE can hold."""
    return _on_step(active_a, station.step_a, station.least_a)


@lru_cache(maxsize=4096)  # few currents come again and again
def _on_step(active_a: float, step_a: float, least_a: float) -> float:
    size = abs(active_a)
    if step_a > 0:
        size = min(size, math.floor(size / step_a + _ROUNDING) * step_a)
    if size < least_a - _ROUNDING:
        return 0.0
    return math.copysign(size, active_a)


def _no_more_of(told: float, wanted: float) -> float:
    if told * wanted <= 0:
        return 0.0
    return wanted if abs(wanted) <= abs(told) else told


def _no_more(told: Amount, wanted: Amount) -> Amount:
    """Return the part of the way from what an EVSE was told to what is wanted that is a raise in no respect."""
    return Amount(_no_more_of(told.active_a, wanted.active_a), _no_more_of(told.reactive_a, wanted.reactive_a))


def _size(amount: Amount) -> float:
    return max(abs(amount.active_a), abs(amount.reactive_a))


def _limited(amount: Amount, cap_a: float, station: Station) -> Amount:
    """Return an amount with neither part more than a cap."""
    active = math.copysign(min(abs(amount.active_a), cap_a), amount.active_a)
    reactive = math.copysign(min(abs(amount.reactive_a), cap_a), amount.reactive_a)
    return Amount(_stepped(active, station) if active != amount.active_a else active, reactive)


def _alike(low: float, high: float, amounts: Sequence[Amount], kinds: Iterable[tuple[float, float]]) -> bool:
    """Whether all caps from one to another leave the same of some amounts; `kinds`: steps, and leasts, in A."""
    return all(_on_step(low, *kind) == _on_step(high, *kind) for kind in kinds) and not any(
        amount.reactive_a or low < abs(amount.active_a) <= high for amount in amounts
    )


def _part(asked: _Raise, step: int, steps: int, station: Station) -> Amount:
    """Return a raise cut off after some of its steps."""
    share = step / steps
    way = asked.target.active_a - asked.base.active_a
    active = asked.base.active_a + math.copysign(min(step * station.step_a, abs(way)), way)
    return Amount(
        active if way else asked.base.active_a,
        asked.base.reactive_a + share * (asked.target.reactive_a - asked.base.reactive_a),
    )
