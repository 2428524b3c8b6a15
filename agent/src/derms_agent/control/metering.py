# SPDX-License-Identifier: Apache-2.0
"""What a circuit's meter shows besides the EVSEs beneath it. Pure.

A meter measures all that flows; the base load is that less what the EVSEs drew *while it was sampled*. Nobody is
sampled at the same moment, so for each EVSE the current is bracketed: from the last sample that was answered before the
meter was asked, over all in between, to the first that was asked after the meter had answered. Which these are, their
time stamps alone say: where meter and EVSEs are polled in phase, the nearest sample that surely was before, or after,
is a whole period away. A pilot changes at most every `gap_s` (5 s), so an EVSE moves one way between two samples that
are no further apart, or not at all, and its current lies between the lowest and the highest of them. Where they are
further apart nothing is known of it: it may have drawn nothing, and all that the meter shows may be base load (the
ledger counts that EVSE besides, which is on the safe side).

While many vehicles start or stop within a second the brackets are wide, and the base load's upper bound with them. So
of the last `hold_s` the sample with the narrowest brackets stands. Where none of these has a bracket for each EVSE, the
newest that has stands beside them until it is `fresh_s` old, for what is not known is no rise. If the base load rose
meanwhile the newest sample's own lower bound says so, and it stands at once. What is held is thus at most `hold_s` old
as long as each EVSE is sampled on both sides, at most `fresh_s` old in any case, and never below what a newer sample
proves.

What generators with meters of their own give is bracketed in the same way, at its most, and added: it may end at once,
and what it covered flows from the grid then. Where that is not known, the last sample for which it was stands until it
is `fresh_s` old; then the most that it may give counts (`most_of`), for an inverter that is its own meter sleeps at
night. Where that is not known either, a circuit's meter shows no base load.

Only meters whose EVSEs are reached without a transformer are read this way (`reached`): behind one, amperes of a line
are not those of the EVSE.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from derms_agent.control.limits import PHASES, Metered
from derms_agent.model import SAME_VOLTAGE, Circuit, Connection, Evse, Meter, PerPhase, per_phase

_TOLERANCE_A = 1.0
_SQRT3 = math.sqrt(3)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A of L1, L2 and L3 that an EVSE drew, at the least and at the most, sampled between two moments in s."""

    asked_s: float
    answered_s: float
    low_a: PerPhase
    high_a: PerPhase


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A meter's answer: A of each line, W of each phase, var of all; sampled between two moments in s.

    None: it does not show it.
    """

    asked_s: float
    answered_s: float
    current_a: PerPhase
    active_w: PerPhase | None
    reactive_var: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """What a generator's meter showed, by magnitude: A of each line, A and var of it that may be reactive, at the most.

    Sampled between two moments in s.
    """

    asked_s: float
    answered_s: float
    current_a: PerPhase
    reactive_a: PerPhase
    reactive_var: float


class Most(NamedTuple):
    """The most that a generator may give, as a circuit above sees it, and the name of its meter."""

    meter: str
    generated: Generated


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """In s: how far two samples of an EVSE may be apart, how long a clear sample stands, and how long any may.

    `answers_s`: an EVSE that was not sampled for longer is not waited for.
    """

    gap_s: float = 5.0
    hold_s: float = 3.0
    fresh_s: float = 5.0
    answers_s: float = 2.5


_Sample = TypeVar("_Sample", Drawn, Generated)


def reached(circuits: Mapping[str, Circuit], evses: Iterable[Evse], circuit: str) -> tuple[Evse, ...] | None:
    """Return the EVSEs beneath a circuit; None where one of them is behind a transformer, or in a delta."""
    found = []
    for evse in evses:
        at: str | None = evse.circuit
        way = []
        while at is not None:
            way.append(circuits[at])
            if at == circuit:
                break
            at = circuits[at].parent
        if at is None:
            continue
        if any(one.connection in {Connection.DELTA, Connection.DELTA_WYE} for one in way):
            return None
        if any(abs(one.neutral_voltage_v / way[0].neutral_voltage_v - 1) > SAME_VOLTAGE for one in way):
            return None
        found.append(evse)
    return tuple(found)


def seen_from(circuits: Mapping[str, Circuit], circuit: str, of: str, sample: Generated) -> Generated:
    """Return a sample of a generator on the circuit `of` as the lines of a circuit above see it.

    Behind a transformer, or at another voltage, it may be on any line and at any angle.
    """
    way = [circuits[of]]
    while way[-1].name != circuit:
        parent = way[-1].parent
        if parent is None:
            raise ValueError(f"{of}: found nothing between it and its root that is {circuit}, expected it to be above")
        way.append(circuits[parent])
    ratio = way[0].neutral_voltage_v / way[-1].neutral_voltage_v
    same = abs(ratio - 1) <= SAME_VOLTAGE
    if same and not any(one.connection is Connection.DELTA_WYE for one in way):
        return sample
    most_a = max(sample.current_a) * ratio * 2 / _SQRT3  # two windings may meet in a line
    anywhere = (most_a, most_a, most_a)
    return replace(sample, current_a=anywhere, reactive_a=anywhere)


def most_of(circuits: Mapping[str, Circuit], evses: Iterable[Evse], circuit: str, meter: Meter) -> Most | None:
    """Return the most that a generator may give, as a circuit above sees it; None where its circuit is not its own.

    What flows out of its circuit is within the circuit's rating, at any angle, and beside that it may supply what is
    drawn on the circuit itself.
    """
    own = circuits[meter.circuit]
    shared = any(one.parent == own.name for one in circuits.values()) or any(one.circuit == own.name for one in evses)
    if shared:
        return None
    most_a = per_phase(rating_a + base_a for rating_a, base_a in zip(own.rating_a, own.base_load_a, strict=True))
    generated = Generated(
        asked_s=-math.inf,
        answered_s=math.inf,
        current_a=most_a,
        reactive_a=most_a,
        reactive_var=sum(most_a) * own.neutral_voltage_v,
    )
    return Most(meter.name, seen_from(circuits, circuit, own.name, generated))


def bracket(meter: Shown, samples: Sequence[Drawn], rules: Rules = Rules()) -> tuple[PerPhase, PerPhase] | None:
    """Return the least and the most that an EVSE drew while a meter was sampled; None where that is not known (yet).

    `samples` are in the order of time.
    """
    chosen = _around(meter, samples, rules)
    if not chosen:
        return None
    lows = zip(*(sample.low_a for sample in chosen), strict=True)
    highs = zip(*(sample.high_a for sample in chosen), strict=True)
    return per_phase(min(values) for values in lows), per_phase(max(values) for values in highs)


def given(meter: Shown, samples: Sequence[Generated], rules: Rules = Rules()) -> Generated | None:
    """Return the most that a generator gave while a meter was sampled; None where that is not known (yet)."""
    chosen = _around(meter, samples, rules)
    if not chosen:
        return None
    return Generated(
        asked_s=chosen[0].asked_s,
        answered_s=chosen[-1].answered_s,
        current_a=per_phase(map(max, zip(*(sample.current_a for sample in chosen), strict=True))),
        reactive_a=per_phase(map(max, zip(*(sample.reactive_a for sample in chosen), strict=True))),
        reactive_var=max(sample.reactive_var for sample in chosen),
    )


def _around(meter: Shown, samples: Sequence[_Sample], rules: Rules) -> list[_Sample]:
    """Return the samples from the last before a meter was asked to the first after it answered; none: not known."""
    chosen: list[_Sample] = []
    for sample in samples:
        if sample.answered_s <= meter.asked_s:
            chosen = [sample]
            continue
        if not chosen or sample.answered_s - chosen[-1].asked_s > rules.gap_s:
            return []
        chosen.append(sample)
        if sample.asked_s >= meter.answered_s:
            return chosen
    return []


def metered(
    meter: Shown,
    brackets: Sequence[tuple[PerPhase, PerPhase] | None],
    generators: Sequence[Generated] = (),
    unheard: Sequence[str] = (),
    may_give_a: Sequence[PerPhase] = (),
) -> Metered:
    """Return a meter's sample with what the EVSEs beneath it drew; an unknown one may have drawn nothing, or all.

    :param unheard: the meters of generators of which only the most that they may give is known
    :param may_give_a: what each EVSE may give back, by magnitude; empty: nothing
    """
    anything = ((0.0, 0.0, 0.0), meter.current_a)
    known = [anything if one is None else one for one in brackets]
    for place, most_a in enumerate(may_give_a):
        if brackets[place] is None and any(most_a):
            total_a = per_phase(flows + given for flows, given in zip(meter.current_a, most_a, strict=True))
            known[place] = per_phase(-given for given in most_a), total_a
    return Metered(
        read_at_s=meter.asked_s,
        current_a=meter.current_a,
        active_w=meter.active_w,
        reactive_var=meter.reactive_var,
        evse_low_a=per_phase(sum(low[line] for low, _ in known) for line in range(len(PHASES))),
        evse_high_a=per_phase(sum(high[line] for _, high in known) for line in range(len(PHASES))),
        complete=None not in brackets,
        generated_a=per_phase(sum(one.current_a[line] for one in generators) for line in range(len(PHASES))),
        generated_reactive_a=per_phase(sum(one.reactive_a[line] for one in generators) for line in range(len(PHASES))),
        generated_var=sum(one.reactive_var for one in generators),
        unheard=tuple(unheard),
    )


def clearest(found: Sequence[Metered], now_s: float, rules: Rules = Rules()) -> Metered | None:
    """Return which of a meter's samples, in the order of time, stands now; None where there is none."""
    if not found:
        return None
    newest = found[-1]
    lately = [one for one in found if now_s - one.read_at_s <= rules.hold_s] or [newest]
    if not any(one.complete for one in lately):
        lately = [*(one for one in found if one.complete and now_s - one.read_at_s <= rules.fresh_s)][-1:] + lately
    best = min(reversed(lately), key=_width_a)
    for line in range(len(PHASES)):
        least_a = _net_a(newest, line) - newest.evse_high_a[line]
        if least_a > _net_a(best, line) - best.evse_low_a[line] + _TOLERANCE_A:
            return newest
    return best


def _net_a(one: Metered, line: int) -> float:
    """Return what a line would carry without its generators; what flows back counts as less than nothing."""
    back = one.active_w is not None and one.active_w[line] < 0
    return (-one.current_a[line] if back else one.current_a[line]) + one.generated_a[line]


def standing(  # noqa: PLR0917 - what is known of all that the meter shows
    shown: Iterable[Shown],
    trails: Sequence[Sequence[Drawn]],
    now_s: float,
    rules: Rules = Rules(),
    generators: Sequence[Sequence[Generated]] = (),
    most: Sequence[Most | None] = (),
    may_give_a: Sequence[PerPhase] = (),
) -> Metered | None:
    """Return what stands now of a meter's samples, given those of each EVSE and generator beneath it, in order of time.

    A sample counts once every EVSE and generator that still answers was sampled after it. One for which it is known
    what each generator gave stands as long as it is fresh; after it those with the most that the others may give.

    :param most: of each generator, in their order
    :param may_give_a: as `metered` takes it
    """
    found, guessed = [], []
    newest_s = [trail[-1].asked_s for trail in trails if trail]
    newest_s += [samples[-1].asked_s for samples in generators if samples]
    for one in shown:
        if any(asked_s < one.answered_s and now_s - asked_s <= rules.answers_s for asked_s in newest_s):
            continue
        gave = [given(one, samples, rules) for samples in generators]
        assumed = [each for each, known in zip(most, gave, strict=False) if known is None and each is not None]
        known = [each for each in gave if each is not None]
        if len(known) + len(assumed) < len(generators):
            continue
        brackets = [bracket(one, trail, rules) for trail in trails]
        if assumed:
            everything = [*known, *(each.generated for each in assumed)]
            guessed.append(metered(one, brackets, everything, [each.meter for each in assumed], may_give_a))
        else:
            found.append(metered(one, brackets, known, may_give_a=may_give_a))
    sure = clearest(found, now_s, rules)
    if sure is not None and now_s - sure.read_at_s <= rules.fresh_s:
        return sure
    return clearest(guessed, now_s, rules) or sure


def _width_a(one: Metered) -> float:
    return sum(high - low for low, high in zip(one.evse_low_a, one.evse_high_a, strict=True))
