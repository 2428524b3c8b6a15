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

Only meters whose EVSEs are reached without a transformer are read this way (`reached`): behind one, amperes of a line
are not those of the EVSE.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from derms_agent.control.limits import PHASES, Metered
from derms_agent.model import SAME_VOLTAGE, Circuit, Connection, Evse, PerPhase, per_phase

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
    """A meter's answer: A of each line, W of each phase, var of all; sampled between two moments in s."""

    asked_s: float
    answered_s: float
    current_a: PerPhase
    active_w: PerPhase | None
    reactive_var: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """In s: how far two samples of an EVSE may be apart, how long a clear sample stands, and how long any may.

    `answers_s`: an EVSE that was not sampled for longer is not waited for.
    """

    gap_s: float = 5.0
    hold_s: float = 3.0
    fresh_s: float = 5.0
    answers_s: float = 2.5


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


def bracket(meter: Shown, samples: Sequence[Drawn], rules: Rules = Rules()) -> tuple[PerPhase, PerPhase] | None:
    """Return the least and the most that an EVSE drew while a meter was sampled; None where that is not known (yet).

    `samples` are in the order of time.
    """
    chosen: list[Drawn] = []
    for sample in samples:
        if sample.answered_s <= meter.asked_s:
            chosen = [sample]
            continue
        if not chosen or sample.answered_s - chosen[-1].asked_s > rules.gap_s:
            return None
        chosen.append(sample)
        if sample.asked_s >= meter.answered_s:
            break
    else:
        return None
    lows = zip(*(sample.low_a for sample in chosen), strict=True)
    highs = zip(*(sample.high_a for sample in chosen), strict=True)
    return per_phase(min(values) for values in lows), per_phase(max(values) for values in highs)


def metered(meter: Shown, brackets: Sequence[tuple[PerPhase, PerPhase] | None]) -> Metered:
    """Return a meter's sample with what the EVSEs beneath it drew; an unknown one may have drawn nothing, or all."""
    anything = ((0.0, 0.0, 0.0), meter.current_a)
    known = [anything if one is None else one for one in brackets]
    return Metered(
        read_at_s=meter.asked_s,
        current_a=meter.current_a,
        active_w=meter.active_w,
        reactive_var=meter.reactive_var,
        evse_low_a=per_phase(sum(low[line] for low, _ in known) for line in range(len(PHASES))),
        evse_high_a=per_phase(sum(high[line] for _, high in known) for line in range(len(PHASES))),
        complete=None not in brackets,
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
        least_a = newest.current_a[line] - newest.evse_high_a[line]
        if least_a > best.current_a[line] - best.evse_low_a[line] + _TOLERANCE_A:
            return newest
    return best


def standing(
    shown: Iterable[Shown], trails: Sequence[Sequence[Drawn]], now_s: float, rules: Rules = Rules()
) -> Metered | None:
    """Return what stands now of a meter's samples, given those of each EVSE beneath it, all in the order of time.

    A sample counts once every EVSE that still answers was sampled after it.
    """
    found = [
        metered(one, [bracket(one, trail, rules) for trail in trails])
        for one in shown
        if not any(
            trail and trail[-1].asked_s < one.answered_s and now_s - trail[-1].asked_s <= rules.answers_s
            for trail in trails
        )
    ]
    return clearest(found, now_s, rules)


def _width_a(one: Metered) -> float:
    return sum(high - low for low, high in zip(one.evse_low_a, one.evse_high_a, strict=True))
