# SPDX-License-Identifier: Apache-2.0
"""The event engine: what is held of the VTN's events, how each is answered, and which bounds are in force. Pure.

`receive` takes an oadrDistributeEvent, which lists all events that the VTN has for this VEN:

- A lower modification number than is known is refused, the same again is answered as before, a higher one replaces.
- An event that is cancelled or completed ends; one that comes so, and is not known, never begins. Ending it once more
  changes nothing.
- An event that is no longer listed is cancelled by that. Should it be listed again unchanged, it stands again.
  So is one of another VTN than the VEN is registered with, once that has said what it has: `of_vtn`.
- A broken event, or one that is refused, changes nothing for the others.

An event begins somewhere within its startafter; where is drawn once, when it first comes. Its baseline is frozen at its
start. Test events are answered and shown, and bound nothing. While several events bound the same place, those with
the highest priority count (1 is the highest, 0 is none), and of these the tightest.

Times are s since 1970; the caller brings the time and the luck. Keys are (vtnID, eventID).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from typing import Any, TypeAlias

from derms_agent.grid_gateway import signals
from derms_agent.grid_gateway.incoming import (
    ENDED,
    BrokenEvent,
    Code,
    DistributeEvent,
    Event,
    Interval,
    Signal,
    Status,
    Targets,
    Unit,
)
from derms_agent.grid_gateway.messages import EventResponse, Opt
from derms_agent.grid_gateway.signals import Refusal, Rules
from derms_agent.model import OPENADR, Rank
from derms_agent.one_line import one_line

VERSION = 1
KEPT_S = 7 * 86400.0
"""How long an event that is over is still known, so that it is answered as before."""
MOST_HELD = 2000
RAMP_STEPS = 10
_SOURCE_LENGTH = 150
_OVER = Refusal(Code.OK, "its time is over")

Key: TypeAlias = "tuple[str, str]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """An event that is known. `ended_unix_s`: it is cut short then. `fraction`: where in its startafter it begins.

    `ven_id` is whom it came for: it is for this depot still where the VTN gives the VEN another id. `promised`: the
    depot was asked whether it can obey, and what it then said the VTN may rely on.
    """

    event: Event
    fraction: float
    received_unix_s: float
    refusal: Refusal | None = None
    ended_unix_s: float | None = None
    implied: bool = False
    baseline_w: float | None = None
    ven_id: str = ""
    promised: bool = False

    @property
    def start_unix_s(self) -> float:
        """When it begins."""
        return self.event.start_unix_s + self.fraction * self.event.startafter_s

    @property
    def end_unix_s(self) -> float:
        """When it ends; infinite where that is open."""
        planned = self.start_unix_s + self.event.duration_s if self.event.duration_s else math.inf
        return planned if self.ended_unix_s is None else min(planned, self.ended_unix_s)

    @property
    def first_effect_unix_s(self) -> float:
        """When it first changes anything: its start, or the beginning of a ramp before it."""
        return self.start_unix_s + min(0.0, self.event.ramp_up_s)

    @property
    def actuated(self) -> bool:
        """Whether it is to be obeyed in its time."""
        return self.refusal is None and not self.event.test

    def phase(self, now_unix_s: float) -> Status:
        """Return what it is now, as OpenADR names it."""
        if self.ended_unix_s is not None and self.ended_unix_s <= now_unix_s:
            completed = self.event.status is Status.COMPLETED
            return Status.COMPLETED if completed else Status.CANCELLED
        if now_unix_s >= self.end_unix_s:
            return Status.COMPLETED
        if now_unix_s >= self.start_unix_s:
            return Status.ACTIVE
        near_s = max(abs(self.event.ramp_up_s), self.event.notification_s)
        return Status.NEAR if now_unix_s >= self.start_unix_s - near_s else Status.FAR


@dataclass(frozen=True, slots=True)
class State:
    """All events that are known."""

    events: Mapping[Key, Held] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Received:
    """The state after a message, how its events are answered, and which of them the depot is about to obey."""

    state: State
    responses: tuple[EventResponse, ...]
    accepted: tuple[Key, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What an event bounds at a place, from `start_unix_s` to `end_unix_s` (infinite: until it is cancelled), in W."""

    name: str
    key: Key
    target: str
    high_w: float
    start_unix_s: float
    end_unix_s: float
    source: str
    baseline_w: float | None = None
    rank: Rank = Rank.GRID


@dataclass(frozen=True, slots=True)
class Price:
    """A price, or with a `kind` other than price a change of it, per unit of energy."""

    start_unix_s: float
    end_unix_s: float
    value: float
    kind: str
    unit: str


# Receiving


def receive(
    state: State, message: DistributeEvent, rules: Rules, now_unix_s: float, draw: Callable[[], float]
) -> Received:
    """Return what a message changes, and how its events are answered.

    :param draw: gives a number from 0 up to 1, not included; called once for each event that is new
    """
    if message.vtn_id != rules.vtn_id:
        why = f"found vtnID {message.vtn_id}, expected {rules.vtn_id}"
        answers = (
            EventResponse(
                event_id=one.id, modification=one.modification, opt=Opt.OUT, code=Code.INVALID_ID, description=why
            )
            for one in message.events
            if one.id is not None and one.response_required
        )
        return Received(state, tuple(answers))
    held = dict(state.events)
    responses: list[EventResponse] = []
    accepted: list[Key] = []
    for one in message.events:
        if isinstance(one, BrokenEvent):
            refusal: Refusal | None = Refusal(one.code, one.why)
            ends = held.get((message.vtn_id, one.id or ""))
            # What else is wrong with it does not matter to an event that is to end.
            if ends is not None and one.status in ENDED and one.modification >= ends.event.modification:
                held[message.vtn_id, ends.event.id] = _ended(ends, one.modification, one.status, now_unix_s)
                refusal = ends.refusal
            if one.id is not None and one.response_required:
                responses.append(_answer(one.id, one.modification, refusal))
            continue
        key = (message.vtn_id, one.id)
        known = held.get(key)
        if known is not None and one.modification < known.event.modification:
            why = f"found modification {one.modification}, expected {known.event.modification} or more"
            refusal = Refusal(Code.OUT_OF_SEQUENCE, why)
        else:
            held[key] = _updated(known, one, rules, now_unix_s, draw)
            refusal = held[key].refusal
            if held[key].actuated and held[key].end_unix_s > now_unix_s:
                accepted.append(key)
        if one.response_required:
            responses.append(_answer(one.id, one.modification, refusal))
    if all(one.id is not None for one in message.events):
        listed = {(message.vtn_id, str(one.id)) for one in message.events}
        unlisted = {key for key in held.keys() - listed if key[0] == message.vtn_id}
        held = {key: _left_out(one, now_unix_s) if key in unlisted else one for key, one in held.items()}
    return Received(pruned(State(held), now_unix_s), tuple(responses), tuple(accepted))


def _answer(event_id: str, modification: int, refusal: Refusal | None) -> EventResponse:
    if refusal is None:
        return EventResponse(event_id=event_id, modification=modification, opt=Opt.IN)
    return EventResponse(
        event_id=event_id, modification=modification, opt=Opt.OUT, code=refusal.code, description=refusal.why
    )


def _updated(known: Held | None, event: Event, rules: Rules, now_unix_s: float, draw: Callable[[], float]) -> Held:
    """Return what is held of an event that comes with no lower number than is known."""
    if event.status in ENDED:
        if known is None:
            return Held(event=event, fraction=0.0, received_unix_s=now_unix_s, ended_unix_s=0.0)
        return _ended(known, event.modification, event.status, now_unix_s)
    same = known is not None and event.modification == known.event.modification
    if known is not None and same and not _to_judge_again(known):
        return replace(known, ended_unix_s=None, implied=False, promised=False) if known.implied else known
    fresh = Held(
        event=event,
        fraction=draw() if known is None else known.fraction,
        received_unix_s=now_unix_s if known is None else known.received_unix_s,
        refusal=judged(event, rules, now_unix_s),
        ven_id=rules.ven_id,
    )
    if known is not None and fresh.first_effect_unix_s <= now_unix_s:
        fresh = replace(fresh, baseline_w=known.baseline_w)
    return fresh


def _to_judge_again(known: Held) -> bool:
    """Whether an event that was refused is judged again when it is listed again: not where that was a choice.

    The depot may have been given what it lacked since, and a clock that was wrong been put right. What waits for a
    baseline waits for that: see `reconsidered`.
    """
    waits = (Code.OK, Code.DEPLOYMENT_ERROR)
    return known.refusal is not None and (known.refusal.code not in waits or known.refusal == _OVER)


def _ended(known: Held, modification: int, status: Status, now_unix_s: float) -> Held:
    """Return an event that the VTN ends."""
    # What it asked for until then is what was known, whatever comes along with its end.
    said = replace(known.event, modification=modification, status=status)
    return replace(known, event=said, ended_unix_s=_let_go_unix_s(known, now_unix_s), implied=False)


def _let_go_unix_s(known: Held, now_unix_s: float) -> float:
    """Return when an event that is ended now is let go: somewhere within its startafter where it has begun.

    To end it once more makes that no later.
    """
    later_s = known.fraction * known.event.startafter_s if known.start_unix_s <= now_unix_s else 0.0
    return min(now_unix_s + later_s, math.inf if known.ended_unix_s is None else known.ended_unix_s)


def _left_out(held: Held, now_unix_s: float) -> Held:
    if held.ended_unix_s is not None or held.end_unix_s <= now_unix_s:
        return held
    return replace(held, ended_unix_s=_let_go_unix_s(held, now_unix_s), implied=True)


def stepped(state: State, by_s: float) -> State:
    """Return the state after a step of the wall's clock, ahead where above 0: what ended stays as long ago as it is."""
    return State(
        {
            key: replace(
                held,
                received_unix_s=held.received_unix_s + by_s,
                ended_unix_s=None if held.ended_unix_s is None else held.ended_unix_s + by_s,
            )
            for key, held in state.events.items()
        }
    )


def of_vtn(state: State, vtn_id: str | None, now_unix_s: float) -> State:
    """Return the state where the events of every other VTN are cancelled, of all where there is none any more.

    Nobody is left who could do so.
    """
    others = {key: _left_out(held, now_unix_s) for key, held in state.events.items() if key[0] != vtn_id}
    due = {key: held for key, held in others.items() if held is not state.events[key]}
    return State({**state.events, **due}) if due else state


def judged(event: Event, rules: Rules, now_unix_s: float) -> Refusal | None:
    """Return why the depot does not take part in an event, or None where it does."""
    if rules.market_contexts and event.market_context not in rules.market_contexts:
        return Refusal(Code.NOT_RECOGNIZED, f"found market context {event.market_context}: not one of this depot's")
    if signals.places(event, rules) is None:
        return Refusal(Code.TARGET_MISMATCH, "found targets that are none of this depot's")
    refusal = signals.refused(event, rules)
    if refusal is not None:
        return refusal
    ends_unix_s = event.start_unix_s + event.duration_s if event.duration_s else math.inf
    if ends_unix_s + event.startafter_s <= now_unix_s:
        return _OVER
    if any(away.meets(event, ends_unix_s) for away in rules.unavailable):
        return Refusal(Code.OK, "the depot has opted out for this time")
    return None


def opted_out(state: State, key: Key, why: str, code: Code = Code.OK) -> State:
    """Return the state where the depot does not take part in an event after all, which is then not obeyed."""
    return State({**state.events, key: replace(state.events[key], refusal=Refusal(code, why))})


def reconsidered(state: State, now_unix_s: float) -> State:
    """Return the state where the depot takes part after all in what it could not judge without a baseline."""
    due = {
        key: replace(held, refusal=None, promised=False)
        for key, held in state.events.items()
        if held.refusal is not None and held.refusal.code is Code.DEPLOYMENT_ERROR and held.end_unix_s > now_unix_s
    }
    return State({**state.events, **due}) if due else state


def baseless(state: State, rules: Rules, now_unix_s: float) -> frozenset[Key]:
    """Return the events that are not over and ask for something relative to a baseline that they do not have yet."""
    return frozenset(
        key
        for key, held in state.events.items()
        if held.actuated
        and held.baseline_w is None
        and held.end_unix_s > now_unix_s
        and signals.leans_on_baseline(held.event, _rules_of(held, rules))
    )


def unpromised(state: State, until_unix_s: float) -> frozenset[Key]:
    """Return the events of before a time that are to be obeyed, and that the depot was not asked about yet."""
    return frozenset(
        key
        for key, held in state.events.items()
        if held.actuated and not held.promised and held.first_effect_unix_s < until_unix_s
    )


def promised(state: State, until_unix_s: float) -> State:
    """Return the state where the depot stands by all events of before a time that it has not opted out of."""
    due = {key: replace(state.events[key], promised=True) for key in unpromised(state, until_unix_s)}
    return State({**state.events, **due}) if due else state


def frozen(state: State, now_unix_s: float, baseline_w: float | None) -> State:
    """Return the state with the baselines of the events that have begun: what the site drew until then.

    So the depot is asked about them once more.
    """
    if baseline_w is None:
        return state
    due = {
        key: replace(held, baseline_w=baseline_w, promised=False)
        for key, held in state.events.items()
        if held.baseline_w is None and held.first_effect_unix_s <= now_unix_s < held.end_unix_s
    }
    return State({**state.events, **due}) if due else state


def latest_baseline_w(state: State, now_unix_s: float, within_s: float) -> float | None:
    """Return the baseline of the event that began last of those that hold or have held within so long; None: none."""
    found = [
        (held.start_unix_s, held.baseline_w)
        for held in state.events.values()
        if held.actuated
        and held.baseline_w is not None
        and held.first_effect_unix_s <= now_unix_s < held.end_unix_s + within_s
    ]
    return max(found)[1] if found else None


def rejudged(state: State, rules: Rules, now_unix_s: float) -> State:
    """Return the state where the depot takes no part any more in what it cannot go by under other rules.

    A time that it opts out of is for the events that come after that.
    """
    always = replace(rules, unavailable=())
    due = {
        key: replace(held, refusal=refusal)
        for key, held in state.events.items()
        if held.actuated
        and held.end_unix_s > now_unix_s
        and (refusal := judged(held.event, _rules_of(held, always), -math.inf)) is not None
    }
    return State({**state.events, **due}) if due else state


def _rules_of(held: Held, rules: Rules) -> Rules:
    return replace(rules, ven_id=held.ven_id) if held.ven_id else rules


def pruned(state: State, now_unix_s: float) -> State:
    """Return the state without what has long been over, and without the oldest of what is over beyond a number."""
    over = sorted(
        ((held.end_unix_s, key) for key, held in state.events.items() if held.end_unix_s <= now_unix_s), reverse=True
    )
    room = max(0, MOST_HELD - (len(state.events) - len(over)))
    gone = {key for place, (end, key) in enumerate(over) if place >= room or _known_until(state, key, end) < now_unix_s}
    return State({key: held for key, held in state.events.items() if key not in gone}) if gone else state


def _known_until(state: State, key: Key, end_unix_s: float) -> float:
    return max(end_unix_s, state.events[key].received_unix_s) + KEPT_S


# Bounds


@dataclass(frozen=True, slots=True)
class _Span:
    """What one event wants at a place for a while; `high_w` None: nothing, which also overrides lower priorities."""

    start_unix_s: float
    end_unix_s: float
    high_w: float | None
    order: float
    key: Key


def bounds(
    state: State, rules: Rules, now_unix_s: float, baseline_w: float | None, until_unix_s: float = math.inf
) -> tuple[Bound, ...]:
    """Return what is bounded from now on, for each place one after the other, without overlap.

    :param baseline_w: what stands for the baseline of an event that is still to begin; None: it is not known
    :param until_unix_s: bounds that begin later are left out
    """
    wanted: dict[tuple[str, Rank], list[_Span]] = {}
    for key, held in state.events.items():
        if held.actuated:
            base_w = baseline_w if held.baseline_w is None else held.baseline_w
            for place, own in signals.by_place(held.event, _rules_of(held, rules)).items():
                of_place_w = base_w if place == signals.SITE else None
                wanted.setdefault((place, Rank.GRID), []).extend(_spans(key, held, own, rules, of_place_w))
                wanted.setdefault((place, Rank.PRICE), []).extend(_dear(key, held, own, rules))
    found = [
        _bound(place, rank, number, span, state.events[span.key], baseline_w)
        for (place, rank), spans in wanted.items()
        for key, own in groupby(sorted(_decided(spans), key=lambda span: span.key), key=lambda span: span.key)
        for number, span in enumerate(own)
    ]
    return tuple(
        sorted(
            (one for one in found if one.end_unix_s > now_unix_s and one.start_unix_s < until_unix_s),
            key=lambda one: (one.start_unix_s, one.name),
        )
    )


def _bound(  # noqa: PLR0917 - what makes up a bound
    place: str, rank: Rank, number: int, span: _Span, held: Held, baseline_w: float | None
) -> Bound:
    of_price = rank is Rank.PRICE
    digest = hashlib.sha256("\0".join((*span.key, place, *(["price"] if of_price else []))).encode()).hexdigest()[:16]
    source = f"OpenADR event {one_line(span.key[1])[:_SOURCE_LENGTH]}"
    base_w = baseline_w if held.baseline_w is None else held.baseline_w
    return Bound(
        name=f"{OPENADR}{digest}-{number}",
        key=span.key,
        target=place,
        high_w=0.0 if span.high_w is None else span.high_w,
        start_unix_s=span.start_unix_s,
        end_unix_s=span.end_unix_s,
        source=f"price of {source}" if of_price else source,
        baseline_w=base_w if place == signals.SITE and not of_price else None,
        rank=rank,
    )


def _dear(key: Key, held: Held, own: Iterable[Signal], rules: Rules) -> Iterator[_Span]:
    """Yield what an event's prices come to at a place, by its signals for that (`own`)."""
    order = held.event.priority or math.inf
    for signal in filter(signals.is_price, own):
        for interval, start, end in _intervals(held, signal):
            yield _Span(start, end, signals.dear_w(signal, interval, rules), order, key)


def _intervals(held: Held, signal: Signal) -> Iterator[tuple[Interval, float, float]]:
    """Yield a signal's intervals with when each begins and ends, in s since 1970, as far as the event lasts."""
    shift_s = held.start_unix_s - held.event.start_unix_s
    for interval in signal.intervals:
        start = interval.start_unix_s + shift_s
        end = min(start + interval.duration_s if interval.duration_s else math.inf, held.end_unix_s)
        if end > start:
            yield interval, start, end


def _spans(key: Key, held: Held, own: Iterable[Signal], rules: Rules, base_w: float | None) -> Iterator[_Span]:
    """Yield what an event wants by its signals for a place (`own`), its ramps in steps."""
    order = held.event.priority or math.inf
    shift_s = held.start_unix_s - held.event.start_unix_s
    for signal in own:
        wanted = [
            (
                interval.start_unix_s + shift_s,
                held.end_unix_s if not interval.duration_s else interval.start_unix_s + shift_s + interval.duration_s,
                signals.most_w(signal, interval, rules, base_w),
            )
            for interval in signal.intervals
            if not signals.is_price(signal)
        ]
        for start, end, high_w in _with_ramps(wanted, held, base_w):
            cut = min(end, held.end_unix_s + max(0.0, held.event.recovery_s if held.ended_unix_s is None else 0.0))
            if cut > start and (held.ended_unix_s is None or start < held.ended_unix_s):
                # A ramp before or after its time takes nothing from what other events want then.
                within = held.start_unix_s <= start < held.end_unix_s
                yield _Span(start, cut, high_w, order if within else math.inf, key)


_Wanted: TypeAlias = "tuple[float, float, float | None]"


def _with_ramps(wanted: list[_Wanted], held: Held, base_w: float | None) -> Iterator[_Wanted]:
    """Yield what is wanted with the way there and back in steps, where the baseline is known that they lead from.

    A ramp before the start or after the end is added to the event; one within it takes the place of what is wanted.
    """
    event = held.event
    if not wanted:
        return
    first, last = wanted[0], wanted[-1]
    there_s = event.ramp_up_s if base_w is not None and first[2] is not None and first[2] < base_w else 0.0
    back_s = event.recovery_s if base_w is not None and last[2] is not None and last[2] < base_w else 0.0
    there_s = min(there_s, first[1] - first[0])
    back_s = max(back_s, first[0] - last[1]) if math.isfinite(last[1]) else 0.0
    inner = list(wanted)
    if there_s > 0:
        inner[0] = (first[0] + there_s, *inner[0][1:])
    if back_s < 0:
        inner[-1] = (inner[-1][0], max(inner[-1][0], last[1] + back_s), inner[-1][2])
    if there_s and base_w is not None and first[2] is not None:
        begin = first[0] + min(0.0, there_s)
        yield from _steps(begin, abs(there_s), base_w, first[2])
    yield from (one for one in inner if one[1] > one[0])
    if back_s and base_w is not None and last[2] is not None:
        begin = last[1] + min(0.0, back_s)
        yield from _steps(begin, abs(back_s), last[2], base_w)


def _steps(start_unix_s: float, length_s: float, from_w: float, to_w: float) -> Iterator[_Wanted]:
    """Yield a ramp in equal steps, none of which lets through more than the straight line at its end or beginning."""
    step_s, step_w = length_s / RAMP_STEPS, (to_w - from_w) / RAMP_STEPS
    ahead = 1 if to_w < from_w else 0
    for number in range(RAMP_STEPS):
        begin = start_unix_s + number * step_s
        yield begin, begin + step_s, from_w + (number + ahead) * step_w


def _decided(spans: Iterable[_Span]) -> Iterator[_Span]:
    """Yield what counts of spans that overlap, in the order of time; neighbours that say the same are one."""
    coming = sorted(spans, key=lambda span: span.start_unix_s, reverse=True)
    edges = sorted({edge for span in coming for edge in (span.start_unix_s, span.end_unix_s)})
    there: list[_Span] = []
    pending: _Span | None = None
    for start, end in pairwise(edges):
        there = [span for span in there if span.end_unix_s > start]
        while coming and coming[-1].start_unix_s <= start:
            there.append(coming.pop())
        top = min((span.order for span in there), default=math.inf)
        bounded = [span for span in there if span.order == top and span.high_w is not None]
        if not bounded:
            continue
        tightest = min(bounded, key=lambda span: (span.high_w, span.key))
        fresh = replace(tightest, start_unix_s=start, end_unix_s=end)
        if pending is not None and (pending.end_unix_s, pending.high_w, pending.key) == (
            start,
            fresh.high_w,
            fresh.key,
        ):
            pending = replace(pending, end_unix_s=end)
            continue
        if pending is not None:
            yield pending
        pending = fresh
    if pending is not None:
        yield pending


def prices(state: State, rules: Rules, now_unix_s: float) -> tuple[Price, ...]:
    """Return the prices from now on, in the order of time."""
    found = []
    for held in state.events.values():
        if not held.actuated:
            continue
        for signal in filter(signals.is_price, signals.obeyed(held.event, _rules_of(held, rules))):
            unit = "" if signal.unit is None else signal.unit.unit
            scale = 1.0 if signal.unit is None else signal.unit.scale
            for interval, start, end in _intervals(held, signal):
                if end > now_unix_s:
                    found.append(Price(start, end, interval.value * scale, signal.type, unit))
    return tuple(sorted(found, key=lambda price: price.start_unix_s))


# On disk


def to_json(state: State) -> dict[str, Any]:
    """Return the state as plain JSON."""
    return {
        "version": VERSION,
        "events": [_held_json(key, held) for key, held in state.events.items()],
    }


def _held_json(key: Key, held: Held) -> dict[str, Any]:
    return {
        "vtn_id": key[0],
        "event": dataclasses.asdict(held.event),
        "fraction": held.fraction,
        "received_unix_s": held.received_unix_s,
        "refusal": None if held.refusal is None else {"code": int(held.refusal.code), "why": held.refusal.why},
        "ended_unix_s": held.ended_unix_s,
        "implied": held.implied,
        "baseline_w": held.baseline_w,
        "ven_id": held.ven_id,
        "promised": held.promised,
    }


def changed(before: State, after: State) -> dict[str, Any]:
    """Return what makes one state of another, as plain JSON."""
    return {
        "events": [_held_json(key, held) for key, held in after.events.items() if before.events.get(key) is not held],
        "gone": [list(key) for key in before.events if key not in after.events],
    }


def replayed(document: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what `to_json` gave with what `changed` gave since, in its order; records that it has do no harm.

    Raises ValueError, TypeError or KeyError for anything else.
    """
    known = {(one["vtn_id"], one["event"]["id"]): one for one in document["events"]}
    for record in records:
        known |= {(one["vtn_id"], one["event"]["id"]): one for one in record["events"]}
        for vtn_id, event_id in record["gone"]:
            known.pop((vtn_id, event_id), None)
    return {**document, "events": [*known.values()]}


def from_json(document: Mapping[str, Any]) -> State:
    """Return what `to_json` gave. Raises ValueError, TypeError or KeyError for anything else."""
    if document["version"] != VERSION:
        raise ValueError(f"found version {document['version']}, expected {VERSION}")
    held = [(str(stored["vtn_id"]), _held(stored)) for stored in document["events"]]
    return State({(vtn_id, one.event.id): one for vtn_id, one in held})


def _held(stored: Mapping[str, Any]) -> Held:
    refusal = stored["refusal"]
    return Held(
        event=_event(stored["event"]),
        fraction=float(stored["fraction"]),
        received_unix_s=float(stored["received_unix_s"]),
        refusal=None if refusal is None else Refusal(Code(refusal["code"]), str(refusal["why"])),
        ended_unix_s=None if stored["ended_unix_s"] is None else float(stored["ended_unix_s"]),
        implied=bool(stored["implied"]),
        baseline_w=None if stored["baseline_w"] is None else float(stored["baseline_w"]),
        ven_id=str(stored.get("ven_id", "")),
        promised=bool(stored.get("promised", True)),
    )


def _event(stored: Mapping[str, Any]) -> Event:
    found = tuple(
        Signal(
            **{
                **signal,
                "intervals": tuple(Interval(**interval) for interval in signal["intervals"]),
                "unit": None if signal["unit"] is None else Unit(**signal["unit"]),
                "targets": _targets(signal["targets"]),
            }
        )
        for signal in stored["signals"]
    )
    return Event(
        **{
            **stored,
            "status": Status(stored["status"]),
            "signals": found,
            "targets": _targets(stored["targets"]),
        }
    )


def _targets(stored: Mapping[str, Any]) -> Targets:
    kinds = {kind: tuple(stored[kind]) for kind in ("vens", "resources", "groups", "parties")}
    return Targets(**kinds, others=int(stored["others"]))
