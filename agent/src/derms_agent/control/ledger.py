# SPDX-License-Identifier: Apache-2.0
"""What each EVSE may draw or give at this moment if everything that cannot be excluded were so. Pure, and plain JSON.

For each EVSE the ledger holds **claims**: spans of current, in A per conductor, that may be in force, each with its
cause. A claim is opened before what may cause it can happen, and ends only by a proof that it is over; even
then it counts on for `follow_s`, and until a current measured after that lies within what is left. The interval of an
EVSE is the hull of its claims, of zero (a vehicle need not take what it may), and of what is measured on each phase.

Events, and what they do to the claims (`record`):

- **issued**: a claim for the value, before the write leaves. In flight, it may be executed at any moment.
- **acknowledged**: the write was executed between its issue and the answer. What was surely executed before its issue
  is superseded; a write that may still arrive (in flight, or lost less than `late_s` ago) is not.
- **lost** (timed out, connection gone): it may have happened, and may yet happen until `late_s` after its issue.
- **not executed** (never sent, or refused): its claim goes.
- **read back**: the device shows what it was told. That value gets a claim if it has none; all others that can no
  longer arrive are superseded. It says nothing about fallback or boot unless the device shows what is in force.
- **measured**: ends nothing by itself; it lets go of what was superseded `follow_s` before. More than all claims allow
  counts as it is, and if it is lost sight of then, as the rating.
- **answered** (any answer): ends the silence. A gap in which the device could have restarted leaves the after-boot
  claim, until a write is acknowledged or the device's own uptime excludes it.
- **time alone** (`advance`): silence of `boot_s` opens the after-boot claim, and casts doubt on volatile settings; a
  watchdog that was not surely refreshed in time opens the fallback claim; silence of `silent_s` without a watchdog that
  was read back opens one for the rating.
- **restart of this process** (`from_json`): the claims are on disk since before the writes left. Under the same boot id
  the boot-time clock goes on; under another all ages are unknown, so all devices count as silent for ever.

So each claim's life contains the time in which it is in force, and an EVSE's current always lies in its interval, by
induction over those events, as long as the hardware does what is assumed of it:

1. no limit reaches a device but by our writes, its fallback, its start, or what a later read-back shows;
2. an EVSE's current lies, at any time, between zero and the limits in force within the last `follow_s`, or it is slower
   but does not go up again once it was measured within them; if not, obedience says so (`Distrusted`);
3. a restart takes at least `boot_s` without an answer, and leaves what the profile says;
4. a write that nobody answered is executed within `late_s` of its issue or never;
5. the watchdog is not quicker than the time-out that was read back, and falls back to the value that was read back;
6. meters err by at most `tolerance_a`, and no EVSE draws more than its rating.

Current is active current, consumption positive, with reactive current beside it (A per conductor, positive for
reactive power taken up). Times are those of one clock that counts on during suspend (boot time), in s.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, TypeAlias

from derms_agent.model import Evse, PerPhase, Phase, Value, apparent_a
from derms_agent.profiles.profile import AfterBoot, Profile, Refresh

SAME_A = 0.05
"""Values nearer than this, in A, are one as far as a register's resolution can tell."""

_PLAIN = ("heard_s", "refreshed_s", "measured_s", "overrun", "watchdog_s", "unproven_s")
FORMAT = 1
"""The version of the ledger's JSON."""


class Amount(NamedTuple):
    """What an EVSE is told: active and reactive current in A per conductor; negative active current is discharge."""

    active_a: float
    reactive_a: float = 0.0

    def is_near(self, other: Amount) -> bool:
        """Whether both are one, as far as a register's resolution can tell."""
        return abs(self.active_a - other.active_a) <= SAME_A and abs(self.reactive_a - other.reactive_a) <= SAME_A


class Span(NamedTuple):
    """An interval of active and one of reactive current, in A per conductor. Both contain zero."""

    low: float = 0.0
    high: float = 0.0
    reactive_low: float = 0.0
    reactive_high: float = 0.0

    def hull(self, other: Span) -> Span:
        """Return the smallest span that contains both."""
        if self.holds(other):
            return self
        if other.holds(self):
            return other
        return Span(
            min(self.low, other.low),
            max(self.high, other.high),
            min(self.reactive_low, other.reactive_low),
            max(self.reactive_high, other.reactive_high),
        )

    def holds(self, other: Span, tolerance_a: float = 0.0) -> bool:
        """Whether the other lies within this one."""
        return (
            other.low >= self.low - tolerance_a
            and other.high <= self.high + tolerance_a
            and other.reactive_low >= self.reactive_low - tolerance_a
            and other.reactive_high <= self.reactive_high + tolerance_a
        )


NOTHING = Span()


def span_of(amount: Amount) -> Span:
    """Return what an EVSE may do that is told an amount: anything from nothing to that."""
    active, reactive = amount
    if reactive == 0.0:
        return Span(0.0, active) if active > 0.0 else Span(min(0.0, active))
    return Span(min(0.0, active), max(0.0, active), min(0.0, reactive), max(0.0, reactive))


@dataclass(frozen=True, slots=True, kw_only=True)
class Station:
    """What is known of an EVSE before anything is read: A per conductor, s.

    `phases` are the supply's conductors that it is wired to; empty: unknown, and each is counted. `angle_known`: it
    draws at a power factor of 1, or reactive current is told apart; else its current may have any angle. `lowest_a`
    (0 or less) is the most that it can give back; `reactive_a` bounds reactive current either way. `power_factor` is
    the least of one that is told W: all its currents here are active then, and its conductors may carry that over it,
    up to `rating_a` (`apparent_a`). `fallback` and `watchdog_s` are declared; what was read back comes by `Armed` and
    stands before them. `settings_last`: what was read back holds through a restart. `refreshed_by` says what keeps the
    watchdog from running out. `refresh_s`: how often the guard is to write the same value again; None: somebody else
    sees to it. `shows_in_force`: its read-back is the limit in force, not just what it was told. `least_a` and `step_a`
    are the least it works with above nothing, and its resolution.
    """

    name: str
    circuit: str
    phases: tuple[Phase, ...]
    rating_a: float
    after_boot: Span
    fallback: Span
    watchdog_s: float | None = None
    refreshed_by: Refresh = Refresh.WRITE
    refresh_s: float | None = None
    settings_last: bool = False
    shows_in_force: bool = False
    angle_known: bool = True
    lowest_a: float = 0.0
    reactive_a: float = 0.0
    power_factor: float = 1.0
    least_a: float = 6.0
    step_a: float = 1.0
    follow_s: float = 12.0
    boot_s: float = 5.0
    silent_s: float = 5.0
    fresh_s: float = 3.0
    late_s: float = 3.0
    tolerance_a: float = 0.5

    @property
    def rating(self) -> Span:
        """All that it can do."""
        return Span(self.lowest_a, self.rating_a, -self.reactive_a, self.reactive_a)

    def apparent_a(self, active_a: float) -> float:
        """Return the most that a conductor carries with an active current, in A; with its sign."""
        return math.copysign(apparent_a(abs(active_a), self.power_factor, self.rating_a), active_a)


def station_of(
    evse: Evse, profile: Profile, settings: Mapping[str, Value], *, voltage_v: float, **known: Any
) -> Station:
    """Return the station of a declared EVSE; `known` overrides single fields of it.

    `settings` are those declared; `voltage_v` is between lines for two or three phases and to neutral for one. The
    profile's own rule (`Profile.unattended_a`) is the larger of fallback and after-boot value; the fallback alone is
    that of the same device if it started at nothing.
    """
    fallback = after_boot = all_of(evse)
    refreshed_by, least_a, step_a = Refresh.NONE, 6.0, 1.0
    if profile.fallback is not None:
        refreshed_by = profile.fallback.refreshed_by
        fallback = fallback_alone(evse, profile, settings, voltage_v)
        after = profile.fallback.after_boot
        after_boot = {AfterBoot.OFF: NOTHING, AfterBoot.FALLBACK: fallback}.get(after, after_boot)
    if profile.control is not None:
        per_ampere = 1.0
        if profile.control.quantity.value == "power":
            to_neutral_v = voltage_v if len(evse.phases) == 1 else voltage_v / math.sqrt(3)
            per_ampere = to_neutral_v * len(evse.phases)
        least_a, step_a = profile.control.minimum / per_ampere, profile.control.step / per_ampere
    fields: dict[str, Any] = {
        "name": evse.name,
        "circuit": evse.circuit,
        "phases": evse.phases,
        "rating_a": evse.rating_a,
        "power_factor": evse.power_factor,
        "lowest_a": evse.lowest_a,
        "after_boot": after_boot,
        "fallback": fallback,
        "watchdog_s": profile.watchdog_s(settings),
        "refreshed_by": refreshed_by,
        "least_a": least_a,
        "step_a": step_a,
    }
    return Station(**(fields | known))


def all_of(evse: Evse) -> Span:
    """Return all that an EVSE can do by its rating, either way."""
    return Span(evse.lowest_a, evse.rating_a)


def fallback_alone(evse: Evse, profile: Profile, settings: Mapping[str, Value], voltage_v: float) -> Span:
    """Return what an EVSE may do once it has fallen back, whatever holds after its start; all where it is not known."""
    fallback_a = profile.fallback_a(settings, voltage_v, len(evse.phases))
    if fallback_a is None or fallback_a < evse.lowest_a:
        return all_of(evse)
    return span_of(Amount(fallback_a))


class Cause(str, Enum):
    """Why a claim stands."""

    SETPOINT = "setpoint"
    FALLBACK = "fallback"
    AFTER_BOOT = "after_boot"
    UNPROVEN = "unproven"  # silent, with no watchdog that was read back
    UNKNOWN = "unknown"  # nothing was told since nothing was known
    DISOBEYS = "disobeys"  # it was seen to draw more than its limit
    LOST_SIGHT = "lost_sight"  # it drew more than its claims when last measured

    __hash__ = str.__hash__  # of the same value, and not worked out anew each time


class Claim(NamedTuple):
    """A span that may be in force. `since_s`: from when on; for a write its issue.

    `write` is a write's id. `executed_by_s`: it is executed by then or never; None while it is in flight. `ended_s`: it
    is proven not to be in force after that; None while it may be. `acknowledged`: it was in force, for a proof says so.
    """

    span: Span
    cause: Cause
    since_s: float
    write: int | None = None
    executed_by_s: float | None = None
    ended_s: float | None = None
    acknowledged: bool = False


class Claims(tuple[Claim, ...]):
    """All claims on one EVSE, and what follows from them, worked out once: they stay the same for many cycles.

    `span` is their hull. `told`, None where nothing is known, is the claim of what the device was last told, as far as
    that may be in force, `told_amount` what that is, `confirmed` whether the device acknowledged it or shows it. `open`
    is why there are claims that are not over; `distrusted`: one is that it was seen to draw more than its limit.
    `ended_s` is when the first of those that are over ended, infinite where none is. `at_rest`: what the device was
    told is proven, and all else is over, and not let go yet only because it was more than that.
    """

    span: Span
    told: Claim | None
    told_amount: Amount | None
    confirmed: bool
    open: frozenset[Cause]
    distrusted: bool
    ended_s: float
    at_rest: bool

    def __init__(self, _claims: Iterable[Claim]) -> None:
        found = NOTHING
        told: Claim | None = None
        causes: list[Cause] = []
        first_s = math.inf
        for claim in self:
            span, cause, since_s, _write, _executed_by_s, ended_s, _acknowledged = claim
            if found is NOTHING:
                found = span
            elif span is not found and not found.holds(span):
                found = span if span.holds(found) else found.hull(span)
            if ended_s is not None:
                first_s = min(first_s, ended_s)
                continue
            causes.append(cause)
            if cause is Cause.SETPOINT and (told is None or since_s >= told.since_s):
                told = claim
        self.span, self.told, self.open, self.ended_s = found, told, frozenset(causes), first_s
        self.told_amount = None if told is None else amount_of(told.span)
        self.confirmed = told is not None and told.acknowledged
        self.distrusted = Cause.DISOBEYS in self.open
        self.at_rest = (
            told is not None
            and len(causes) == 1
            and told.acknowledged
            and told.executed_by_s is not None
            and (len(self) == 1 or not any(claim is not told and told.span.holds(claim.span) for claim in self))
        )


class Entry(NamedTuple):
    """What the ledger knows of one EVSE.

    `heard_s`, `refreshed_s`: when it last surely answered, and when its watchdog was last surely refreshed. `measured`:
    active and reactive current on L1, L2 and L3, sampled at `measured_s` or later. `watchdog_s` and `fallback`: as read
    back, None where not. `phases`: what the vehicle loads; None: what the EVSE is wired to. `overrun`: what was
    measured was more than the claims. `unproven_s`: since then writes leave, and none is known to have got there.
    """

    claims: Claims
    heard_s: float | None = None
    refreshed_s: float | None = None
    measured: PerPhase | None = None
    measured_reactive: PerPhase = (0.0, 0.0, 0.0)
    measured_s: float | None = None
    watchdog_s: float | None = None
    fallback: Span | None = None
    phases: tuple[Phase, ...] | None = None
    overrun: bool = False
    unproven_s: float | None = None

    @property
    def span(self) -> Span:
        """The hull of all claims."""
        return self.claims.span

    @property
    def told(self) -> Claim | None:
        """The claim of what the device was last told, as far as that may be in force; None: nothing is known."""
        return self.claims.told

    @property
    def told_amount(self) -> Amount | None:
        """What the device was last told."""
        return self.claims.told_amount

    @property
    def distrusted(self) -> bool:
        """Whether it was seen to draw more than its limit, and not yet to follow again."""
        return self.claims.distrusted

    def silent_for_s(self, now_s: float) -> float:
        """Return for how long nothing has been heard of the device, in s."""
        return math.inf if self.heard_s is None else now_s - self.heard_s


def amount_of(span: Span) -> Amount:
    """Return the amount that a setpoint's span was made of."""
    return Amount(span.low + span.high, span.reactive_low + span.reactive_high)


def unknown(station: Station, now_s: float) -> Entry:
    """Return the entry of an EVSE of which nothing is known: it may do all that it can."""
    by_s = now_s + station.late_s  # somebody else's last write may still arrive
    claim = Claim(span=station.rating, cause=Cause.UNKNOWN, since_s=now_s, executed_by_s=by_s)
    return Entry(claims=Claims((claim,)))


# What can happen


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The device confirmed a write; its answer came at `answered_s`."""

    evse: str
    write: int
    answered_s: float


@dataclass(frozen=True, slots=True)
class Lost:
    """A write may have happened or not, and nobody waits for its answer any more."""

    evse: str
    write: int
    at_s: float


@dataclass(frozen=True, slots=True)
class NotExecuted:
    """A write was never sent, or the device refused it."""

    evse: str
    write: int
    at_s: float


class ReadBack(NamedTuple):  # as `Measured`, made for each EVSE in each cycle: in a third of a dataclass's time
    """The device holds this value as its limit. It was asked at `sent_s` and answered at `answered_s`."""

    evse: str
    amount: Amount
    sent_s: float
    answered_s: float


class Measured(NamedTuple):
    """What flows, on L1, L2 and L3 of the supply, in A; sampled between `sent_s` and `answered_s`."""

    evse: str
    active_a: PerPhase
    sent_s: float
    answered_s: float
    reactive_a: PerPhase = (0.0, 0.0, 0.0)


class Seen(NamedTuple):
    """One reading that showed both: what the device holds as its limit, and what flows. `ReadBack`, then `Measured`."""

    evse: str
    amount: Amount
    active_a: PerPhase
    sent_s: float
    answered_s: float


@dataclass(frozen=True, slots=True)
class Answered:
    """The device answered something. `up_since_s`: by its own uptime it has not started later than then."""

    evse: str
    sent_s: float
    answered_s: float
    up_since_s: float | None = None


@dataclass(frozen=True, slots=True)
class Refreshed:
    """The watchdog was surely fed by something other than a write of ours or a plain request, not before `at_s`."""

    evse: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Armed:
    """The settings were read back, asked for at `sent_s`: the watchdog's time-out (None: it has none), its fallback."""

    evse: str
    watchdog_s: float | None
    fallback: Span
    sent_s: float


@dataclass(frozen=True, slots=True)
class Distrusted:
    """Obedience says that the EVSE draws more than its limit, or that it follows again."""

    evse: str
    distrusted: bool
    at_s: float


@dataclass(frozen=True, slots=True)
class Loads:
    """The vehicle is known to load these of the supply's phases only; None: as wired."""

    evse: str
    phases: tuple[Phase, ...] | None
    at_s: float


@dataclass(frozen=True, slots=True)
class Replaced:
    """Another device answers in its place, or its record is worth nothing: all it may do is unknown again."""

    evse: str
    at_s: float


Event: TypeAlias = (
    "Acknowledged | Lost | NotExecuted | ReadBack | Measured | Seen | Answered | "
    "Refreshed | Armed | Distrusted | Loads | Replaced"
)


@dataclass(frozen=True, slots=True)
class Ledger:
    """Every EVSE's entry, and the id that the next write gets. `stations` are not part of its JSON."""

    stations: Mapping[str, Station]
    entries: Mapping[str, Entry] = field(default_factory=dict)
    next_write: int = 1

    def span(self, evse: str, now_s: float) -> Span:
        """Return what an EVSE may do now on its worst phase."""
        return interval(self.stations[evse], advanced(self.entries[evse], self.stations[evse], now_s), now_s)


def started(stations: Iterable[Station], now_s: float) -> Ledger:
    """Return the ledger of EVSEs of which nothing is known."""
    by_name = {station.name: station for station in stations}
    return Ledger(by_name, {name: unknown(station, now_s) for name, station in by_name.items()})


def advance(ledger: Ledger, now_s: float) -> Ledger:
    """Return the ledger with what silence alone has brought about until now."""
    stations = ledger.stations
    entries = {name: advanced(entry, stations[name], now_s) for name, entry in ledger.entries.items()}
    return dataclasses.replace(ledger, entries=entries)


def record(ledger: Ledger, events: Iterable[Event]) -> Ledger:
    """Return the ledger after events, in the order in which they became known; unknown EVSEs and writes are nothing."""
    entries, stations = dict(ledger.entries), ledger.stations
    for event in events:
        name = event.evse
        entry = entries.get(name)
        if entry is not None:
            entries[name] = _after(entry, stations[name], event)
    return dataclasses.replace(ledger, entries=entries)


def issue(ledger: Ledger, evse: str, amount: Amount, now_s: float) -> tuple[int, Ledger]:
    """Return the id of a write that is about to leave, and the ledger that counts it. It is for the guard to call."""
    entry = issued(ledger.entries[evse], ledger.next_write, amount, now_s)
    return ledger.next_write, dataclasses.replace(
        ledger, entries={**ledger.entries, evse: entry}, next_write=ledger.next_write + 1
    )


def issued(entry: Entry, write: int, amount: Amount, now_s: float) -> Entry:
    """Return the entry with the claim of a write that is about to leave."""
    claim = Claim(span=span_of(amount), cause=Cause.SETPOINT, since_s=now_s, write=write)
    unproven_s = now_s if entry.unproven_s is None else entry.unproven_s
    return entry._replace(claims=Claims((*entry.claims, claim)), unproven_s=unproven_s)


def advanced(entry: Entry, station: Station, now_s: float) -> Entry:
    """Return an entry with what silence alone has brought about until now."""
    silent_s = entry.silent_for_s(now_s)
    added: list[Claim] = []
    if silent_s >= station.boot_s:
        if not _open(entry, Cause.AFTER_BOOT):
            since_s = now_s if entry.heard_s is None else entry.heard_s
            added.append(_timeless(station.after_boot, Cause.AFTER_BOOT, since_s))
        if not station.settings_last and entry.fallback is not None:
            entry = entry._replace(watchdog_s=None, fallback=None)
    proven = entry.fallback is not None
    watchdog_s = entry.watchdog_s if proven else station.watchdog_s
    if silent_s >= station.silent_s and (not proven or watchdog_s is None) and not _open(entry, Cause.UNPROVEN):
        added.append(_timeless(station.rating, Cause.UNPROVEN, now_s))
    if (
        watchdog_s is not None
        and (entry.refreshed_s is None or now_s - entry.refreshed_s >= watchdog_s)
        and not _open(entry, Cause.FALLBACK)
    ):
        fallback = station.rating if entry.fallback is None else entry.fallback
        added.append(_timeless(fallback, Cause.FALLBACK, now_s))
    stale = entry.measured_s is not None and now_s - entry.measured_s > station.fresh_s
    if stale and entry.overrun and not _open(entry, Cause.LOST_SIGHT):
        added.append(_timeless(station.rating, Cause.LOST_SIGHT, now_s))
    return entry._replace(claims=Claims((*entry.claims, *added))) if added else entry


def fresh(entry: Entry, station: Station, now_s: float) -> bool:
    """Whether what was measured is still worth something."""
    return entry.measured_s is not None and now_s - entry.measured_s <= station.fresh_s


def interval(station: Station, entry: Entry, now_s: float) -> Span:
    """Return what an EVSE may do on its worst phase."""
    span = entry.span
    return span.hull(measured_span(entry)) if entry.overrun and fresh(entry, station, now_s) else span


def fallback_of(entry: Entry, station: Station) -> Span:
    """Return what an EVSE may do on its own once its watchdog runs out: as read back, until then as declared."""
    watchdog_s, fallback = (
        (station.watchdog_s, station.fallback) if entry.fallback is None else (entry.watchdog_s, entry.fallback)
    )
    return NOTHING if watchdog_s is None else fallback


def _timeless(span: Span, cause: Cause, since_s: float) -> Claim:
    return Claim(span=span, cause=cause, since_s=since_s, executed_by_s=since_s)


def _open(entry: Entry, cause: Cause) -> bool:
    return cause in entry.claims.open


def measured_span(entry: Entry) -> Span:
    """Return what was measured last, all phases together."""
    return NOTHING if entry.measured is None else _flowing(entry.measured, entry.measured_reactive)


def _flowing(active_a: PerPhase, reactive_a: PerPhase) -> Span:
    low, high = min(0.0, *active_a), max(0.0, *active_a)
    if reactive_a == _UNITY:
        return Span(low, high)
    return Span(low, high, min(0.0, *reactive_a), max(0.0, *reactive_a))


def _holds(span: Span, active_a: PerPhase, tolerance_a: float) -> bool:
    """Whether active currents lie within a span."""
    one, two, three = active_a
    low, high = span.low - tolerance_a, span.high + tolerance_a
    return low <= one <= high and low <= two <= high and low <= three <= high


def _ended(entry: Entry, causes: Sequence[Cause], at_s: float) -> Entry:
    """Return an entry in which open claims of these causes are over."""
    if entry.claims.open.isdisjoint(causes):
        return entry
    return _with(
        entry,
        (
            claim._replace(ended_s=at_s) if claim.cause in causes and claim.ended_s is None else claim
            for claim in entry.claims
        ),
    )


def _arrived(claim: Claim, by_s: float) -> bool:
    """Whether a write was executed by then or never will be."""
    return claim.executed_by_s is not None and claim.executed_by_s <= by_s


def _with(entry: Entry, claims: Iterable[Claim]) -> Entry:
    """Return an entry with other claims. One that is over adds nothing where a proven setpoint covers it.

    That one ends later. A write in flight covers nothing, for it may turn out not to have happened.
    """
    kept = tuple(claims)
    openly = [claim.span for claim in kept if claim.acknowledged and claim.ended_s is None]
    if openly and len(openly) < len(kept):
        kept = tuple(
            claim for claim in kept if claim.ended_s is None or not any(span.holds(claim.span) for span in openly)
        )
    if len(kept) == len(entry.claims) and all(map(operator.is_, kept, entry.claims)):
        return entry
    return entry._replace(claims=Claims(kept))


def _after(entry: Entry, station: Station, event: Event) -> Entry:  # noqa: C901, PLR0911, PLR0912 - a table
    match event:  # what comes most often, first
        case Seen():
            return _seen(entry, station, event)
        case Measured():
            return _sampled(_heard(entry, station, event.sent_s, event.answered_s), station, event)
        case ReadBack():
            return _read_back(entry, station, event)
        case Answered():
            return _excluded(_heard(entry, station, event.sent_s, event.answered_s), event.up_since_s)
        case Acknowledged():
            return _acknowledged(entry, station, event)
        case Lost():
            return _lost(entry, station, event)
        case NotExecuted():
            return entry._replace(claims=Claims(c for c in entry.claims if c.write != event.write))
        case Refreshed():
            entry = advanced(entry, station, event.at_s)  # it may have run out before
            return entry._replace(refreshed_s=_latest(entry.refreshed_s, event.at_s))
        case Armed():
            return _armed(entry, station, event)
        case Distrusted():
            if not event.distrusted:
                return _ended(entry, (Cause.DISOBEYS,), event.at_s)
            if entry.distrusted:
                return entry
            claim = _timeless(station.rating, Cause.DISOBEYS, event.at_s)
            return entry._replace(claims=Claims((*entry.claims, claim)))
        case Loads():
            return entry._replace(phases=event.phases)
        case Replaced():
            return _replaced(entry, station, event)


def _replaced(entry: Entry, station: Station, event: Replaced) -> Entry:
    """Return the entry of a device of which all is unknown again, but for when it was last written to.

    What may still arrive is not written anew in each second in which it shows that nothing has.
    """
    lately = [
        claim.since_s
        for claim in entry.claims
        if claim.write is not None and event.at_s - claim.since_s < station.late_s
    ]
    return unknown(station, event.at_s)._replace(unproven_s=max(lately, default=entry.unproven_s))


def _latest(known_s: float | None, at_s: float) -> float:
    return at_s if known_s is None else max(known_s, at_s)


def _heard(entry: Entry, station: Station, sent_s: float, answered_s: float) -> Entry:
    """Return an entry whose device answered: first what the silence until then has brought about, then its end."""
    if entry.heard_s is not None and sent_s <= entry.heard_s:
        return entry
    entry = advanced(entry, station, answered_s)
    entry = _ended(entry, _UNPROVEN, answered_s)
    refreshed_s = entry.refreshed_s
    if station.refreshed_by is Refresh.REQUEST:
        refreshed_s = _latest(refreshed_s, sent_s)
    entry = Entry(entry.claims, sent_s, refreshed_s, *entry[3:])
    if station.refreshed_by is Refresh.REQUEST and _watched(entry, station, answered_s):
        entry = _ended(entry, _FALLBACK, answered_s)
    return entry


_UNPROVEN = (Cause.UNPROVEN,)
_FALLBACK = (Cause.FALLBACK,)
_UNITY: PerPhase = (0.0, 0.0, 0.0)


def _watched(entry: Entry, station: Station, at_s: float) -> bool:
    """Whether the watchdog was fed so lately that it cannot have run out."""
    watchdog_s = station.watchdog_s if entry.fallback is None else entry.watchdog_s
    return watchdog_s is None or (entry.refreshed_s is not None and at_s - entry.refreshed_s < watchdog_s)


def _acknowledged(entry: Entry, station: Station, event: Acknowledged) -> Entry:
    for written in entry.claims:
        if written.write == event.write:
            break
    else:
        return entry
    issued_s = written.since_s
    if entry.heard_s is None or issued_s > entry.heard_s:
        entry = _heard(entry, station, issued_s, event.answered_s)
    if station.refreshed_by is Refresh.WRITE or station.refreshed_by is Refresh.REQUEST:
        entry = entry._replace(refreshed_s=_latest(entry.refreshed_s, issued_s), unproven_s=None)
    else:
        entry = entry._replace(unproven_s=None)
    watched = _watched(entry, station, event.answered_s)
    claims = []
    for claim in entry.claims:
        if claim.write == event.write:
            claims.append(Claim(*claim[:4], event.answered_s, claim.ended_s, True))
            continue
        cause = claim.cause
        over = claim.ended_s is None and (
            cause is Cause.AFTER_BOOT
            or (cause is Cause.FALLBACK and watched)
            or ((cause is Cause.SETPOINT or cause is Cause.UNKNOWN) and _arrived(claim, issued_s))
        )
        claims.append(claim._replace(ended_s=event.answered_s) if over else claim)
    return _with(entry, claims)


def _lost(entry: Entry, station: Station, event: Lost) -> Entry:
    return entry._replace(
        claims=Claims(
            claim._replace(executed_by_s=max(event.at_s, claim.since_s + station.late_s))
            if claim.write == event.write
            else claim
            for claim in entry.claims
        ),
    )


def _seen(entry: Entry, station: Station, event: Seen) -> Entry:
    """Return an entry after a reading. Nearly all show nothing new; those need not be looked at in two steps."""
    _evse, amount, active_a, sent_s, answered_s = event
    claims, heard_s, refreshed_s, _a, _r, measured_s, watchdog_s, fallback, phases, overrun, _u = entry
    if (
        claims.at_rest
        and not overrun
        and heard_s is not None
        and heard_s < sent_s < claims.ended_s + station.follow_s
        and answered_s - heard_s < station.boot_s
        and answered_s - heard_s < station.silent_s
        and (measured_s is None or measured_s <= sent_s)
        and claims.told_amount is not None
        and (claims.told_amount == amount or claims.told_amount.is_near(amount))
        and _watched(entry, station, answered_s)
        and _holds(claims.span, active_a, station.tolerance_a)
    ):
        if station.refreshed_by is Refresh.REQUEST:
            refreshed_s = _latest(refreshed_s, sent_s)
        return Entry(claims, sent_s, refreshed_s, active_a, _UNITY, sent_s, watchdog_s, fallback, phases, False, None)
    entry = _read_back(entry, station, ReadBack(event.evse, amount, sent_s, answered_s))
    entry = _heard(entry, station, sent_s, answered_s)
    return _sampled(entry, station, Measured(event.evse, active_a, sent_s, answered_s))


def _read_back(entry: Entry, station: Station, event: ReadBack) -> Entry:
    entry = _shown(_heard(entry, station, event.sent_s, event.answered_s), event)
    if not station.shows_in_force:
        return entry
    over = [Cause.AFTER_BOOT]
    if all(_arrived(claim, event.sent_s) for claim in entry.claims if claim.cause is Cause.UNKNOWN):
        over.append(Cause.UNKNOWN)
    if _watched(entry, station, event.answered_s):
        over.append(Cause.FALLBACK)
    return _ended(entry, over, event.answered_s)


def _shown(entry: Entry, event: ReadBack) -> Entry:
    """Return an entry whose setpoints are what the device shows, and what may still arrive."""
    told = entry.claims.told
    if told is not None and entry.claims.at_rest and amount_of(told.span).is_near(event.amount):
        return entry if entry.unproven_s is None else entry._replace(unproven_s=None)
    claims: list[Claim] = []
    found = changed = False
    for claim in entry.claims:
        after = claim
        if claim.cause is Cause.SETPOINT and claim.ended_s is None and claim.executed_by_s is not None:
            if amount_of(claim.span).is_near(event.amount):
                found = True
                after = claim if claim.acknowledged else claim._replace(acknowledged=True)
            elif _arrived(claim, event.sent_s):
                after = claim._replace(ended_s=event.answered_s)
        changed = changed or after is not claim or claim.ended_s is not None
        claims.append(after)
    if not found:
        claims.append(
            Claim(
                span=span_of(event.amount),
                cause=Cause.SETPOINT,
                since_s=event.sent_s,
                executed_by_s=event.answered_s,
                acknowledged=True,
            )
        )
    if changed or not found:
        entry = _with(entry, claims)
    if found and entry.unproven_s is not None and entry.told is not None and entry.told.acknowledged:
        entry = entry._replace(unproven_s=None)
    return entry


def _sampled(entry: Entry, station: Station, event: Measured) -> Entry:
    """Return an entry with what was measured, rid of what was over `follow_s` before and does not show any more."""
    if entry.measured_s is not None and event.sent_s < entry.measured_s:
        return entry
    claims = entry.claims
    sample = _flowing(event.active_a, event.reactive_a)
    if event.sent_s >= claims.ended_s + station.follow_s or Cause.LOST_SIGHT in claims.open:
        rest = Claims(
            [
                claim
                for claim in claims
                if claim.cause is not Cause.LOST_SIGHT
                and (claim.ended_s is None or event.sent_s < claim.ended_s + station.follow_s)
            ]
        )
        if rest and rest.span.holds(sample, station.tolerance_a):
            claims = rest
    overrun = not claims.span.holds(sample, station.tolerance_a)
    # A new entry as a whole: by `_replace` it would take three times as long, for each EVSE in each cycle.
    return Entry(
        claims,
        entry.heard_s,
        entry.refreshed_s,
        event.active_a,
        event.reactive_a,
        event.sent_s,
        entry.watchdog_s,
        entry.fallback,
        entry.phases,
        overrun,
        entry.unproven_s,
    )


def _excluded(entry: Entry, up_since_s: float | None) -> Entry:
    """Return an entry without the restarts that the device's own uptime excludes."""
    if up_since_s is None or not _open(entry, Cause.AFTER_BOOT):
        return entry
    return entry._replace(
        claims=Claims(
            claim
            for claim in entry.claims
            if claim.cause is not Cause.AFTER_BOOT or claim.ended_s is not None or claim.since_s < up_since_s
        ),
    )


def _armed(entry: Entry, station: Station, event: Armed) -> Entry:
    """Return an entry with settings that were read back; a fallback that grew may be in force where one already is."""
    entry = entry._replace(watchdog_s=event.watchdog_s, fallback=event.fallback)
    if _open(entry, Cause.FALLBACK) and not any(
        claim.cause is Cause.FALLBACK and claim.span.holds(event.fallback) for claim in entry.claims
    ):
        claim = _timeless(event.fallback, Cause.FALLBACK, event.sent_s)
        entry = entry._replace(claims=Claims((*entry.claims, claim)))
    return advanced(entry, station, event.sent_s)


# On disk


def to_json(ledger: Ledger, boot_id: str, now_s: float) -> dict[str, Any]:
    """Return the ledger as plain JSON. Whoever issues writes stores it before they leave."""
    return {
        "format": FORMAT,
        "boot_id": boot_id,
        "saved_s": now_s,
        "next_write": ledger.next_write,
        "entries": {name: _entry_json(entry) for name, entry in ledger.entries.items()},
    }


def _entry_json(entry: Entry) -> dict[str, Any]:
    return {
        **{name: getattr(entry, name) for name in _PLAIN},
        "measured": None if entry.measured is None else list(entry.measured),
        "measured_reactive": list(entry.measured_reactive),
        "fallback": None if entry.fallback is None else list(entry.fallback),
        "phases": None if entry.phases is None else [phase.value for phase in entry.phases],
        "claims": [
            {
                "span": list(claim.span),
                "cause": claim.cause.value,
                **{name: getattr(claim, name) for name in ("since_s", "write", "executed_by_s", "ended_s")},
                "acknowledged": claim.acknowledged,
            }
            for claim in entry.claims
        ],
    }


def from_json(stored: Mapping[str, Any], stations: Iterable[Station], boot_id: str, now_s: float) -> Ledger:
    """Return the ledger that a predecessor left, for the stations that there are now.

    Under the same boot id its times still mean something; writes in flight may arrive until `late_s` from now at the
    latest. Under another, or with a clock that went back, how old anything is cannot be known: no device has been heard
    or measured, and what was over has been so since now. Settings have to be read back again in any case: while the
    agent was away others may have changed them. An EVSE that is not in it is unknown. Raises ValueError for a ledger
    that cannot be read; `started` stands for it then.
    """
    try:
        if stored["format"] != FORMAT:
            raise ValueError(f"found format {stored['format']}, expected {FORMAT}")
        saved_s = float(stored["saved_s"])
        known_age = stored["boot_id"] == boot_id and saved_s <= now_s
        by_name = {station.name: station for station in stations}
        entries = {
            name: _adopted(_entry_from(stored["entries"][name]), station, known_age, now_s)
            if name in stored["entries"]
            else unknown(station, now_s)
            for name, station in by_name.items()
        }
        return Ledger(by_name, entries, int(stored["next_write"]))
    except (KeyError, TypeError, AttributeError) as problem:
        raise ValueError(f"found a ledger without what it must hold: {problem!r}") from problem


def _entry_from(stored: Mapping[str, Any]) -> Entry:
    measured, fallback, phases = stored["measured"], stored["fallback"], stored["phases"]
    reactive = stored["measured_reactive"]
    claims = Claims(
        Claim(
            span=Span(*map(_number, claim["span"])),
            cause=Cause(claim["cause"]),
            since_s=_number(claim["since_s"]),
            write=claim["write"],
            executed_by_s=_time(claim["executed_by_s"]),
            ended_s=_time(claim["ended_s"]),
            acknowledged=claim["acknowledged"],
        )
        for claim in stored["claims"]
    )
    if not claims:
        raise ValueError("found an EVSE without a claim, expected one at least")
    return Entry(
        claims=claims,
        heard_s=_time(stored["heard_s"]),
        refreshed_s=_time(stored["refreshed_s"]),
        measured=None if measured is None else _three(measured),
        measured_reactive=_three(reactive),
        measured_s=_time(stored["measured_s"]),
        watchdog_s=_time(stored["watchdog_s"]),
        fallback=None if fallback is None else Span(*map(_number, fallback)),
        phases=None if phases is None else tuple(Phase(phase) for phase in phases),
        overrun=stored["overrun"],
        unproven_s=_time(stored["unproven_s"]),
    )


def _number(found: object) -> float:
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise ValueError(f"found {found!r}, expected a number")
    return found


def _time(found: object) -> float | None:
    return None if found is None else _number(found)


def _three(found: Sequence[object]) -> PerPhase:
    first, second, third = map(_number, found)
    return first, second, third


def _adopted(entry: Entry, station: Station, known_age: bool, now_s: float) -> Entry:
    claims = []
    for claim in entry.claims:
        executed_by_s = now_s + station.late_s if claim.executed_by_s is None else claim.executed_by_s
        if known_age:
            claims.append(claim._replace(executed_by_s=executed_by_s))
            continue
        in_flight = claim.cause is Cause.SETPOINT and not claim.acknowledged
        claims.append(
            claim._replace(
                since_s=now_s,
                executed_by_s=now_s + station.late_s if in_flight else now_s,
                ended_s=None if claim.ended_s is None else now_s,
            )
        )
    entry = entry._replace(claims=Claims(claims), watchdog_s=None, fallback=None, phases=None)
    if not known_age:
        entry = entry._replace(heard_s=None, refreshed_s=None, measured_s=None, measured=None, unproven_s=None)
        if entry.overrun:
            lost = _timeless(station.rating, Cause.LOST_SIGHT, now_s)
            entry = entry._replace(claims=Claims((*entry.claims, lost)), overrun=False)
    return advanced(entry, station, now_s)
