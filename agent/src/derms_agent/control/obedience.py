# SPDX-License-Identifier: Apache-2.0
"""Has each EVSE followed? One verdict for each, from what it was told and what it draws. Pure.

**Against what a draw is judged.** A pilot changes at most every 5 s, and a vehicle then takes some seconds more: 6 to
12 s after the setpoint, 12 s with slow ones (EVerest issue 762). So a draw is judged against the hull of all that the
EVSE was told within the last `follow_s`, with the meter's tolerance on top. A limit that creeps down step by step is
judged all the same, for what was told longer ago does not count; a steady one is judged at once.

**States.** A sample is *good* when it lies within that hull, *bad* when it does not.

| from | to | when |
| --- | --- | --- |
| any but overdrawing, recovering | following | a good sample, or nothing was told yet and nothing flows |
| unproven, following | suspect | a bad sample |
| suspect | overdrawing | bad samples for `confirm_s`, two at least: reported, with what to check |
| overdrawing | recovering | a good sample |
| overdrawing | following | a good sample, and it had never drawn more than it had confirmed: it had not been reached |
| recovering | overdrawing | a bad sample; the time to recover doubles, up to `longest_clear_s` |
| recovering | following | good samples for the time to recover, `clear_s` at first |
| following, suspect | unproven | no fresh sample for `deadline_s`: reported, for nothing shows that it follows |

Overdrawing and recovering EVSEs are not trusted: the guard counts their ratings. It does not while one is *excused*:
all that it drew is within what it had confirmed `follow_s` ago, which the ledger still counts. A frozen pilot looks
obedient whenever the vehicle takes little, so a good sample alone is no proof; and each relapse makes the next pardon
slower, so a verdict does not flap. The time back to `clear_s` starts with `longest_clear_s` of following.

**In time.** A draw that stays over is bad from the first cycle on that is `follow_s` after the setpoint's issue, and
reported `confirm_s` later: with 12 and 2 s and a cycle each second within 15 s. A cycle that begins up to `early_s`
before its time counts as in time, or each of the two would wait for another one. A draw below the limit is no
disobedience: a vehicle need not take what it may.

**What to check.** The duty cycle of the control pilot is what tells the vehicle its limit (IEC 61851-1, Annex A: 0.6 A
per percent from 10 to 85 %, so 53 % is 32 A). A frozen pilot stays at one value. A steady pilot, a true 100 %, offers
nothing at all; a vehicle that charges at that does not charge by the pilot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from derms_agent.control.ledger import NOTHING, Amount, Span, span_of

_LINEAR_TO_PERCENT, _FASTEST_PERCENT, _LAST_PERCENT = 85.0, 96.0, 97.0
_LEAST_PERCENT, _LINEAR_FROM_PERCENT = 8.0, 10.0
_LEAST_A, _LINEAR_TO_A, _MOST_A = 6.0, 51.0, 80.0


def duty_percent(current_a: float) -> float:
    """Return the duty cycle that offers a current, in percent; 100, a steady pilot, below 6 A (IEC 61851-1, Annex A).

    Above 80 A there is none; 80 A's stands for it.
    """
    if current_a < _LEAST_A:
        return 100.0
    current_a = min(current_a, _MOST_A)
    return current_a / 0.6 if current_a <= _LINEAR_TO_A else current_a / 2.5 + 64.0


def offered_a(duty: float) -> float:
    """Return what a duty cycle in percent offers, in A; 0 where it offers nothing (IEC 61851-1, Annex A, Table A.8).

    From 3 to 7 % the current is agreed on by digital communication (ISO 15118), which the pilot does not tell.
    """
    if not _LEAST_PERCENT <= duty <= _LAST_PERCENT:
        return 0.0
    if duty < _LINEAR_FROM_PERCENT:
        return _LEAST_A
    if duty <= _LINEAR_TO_PERCENT:
        return duty * 0.6
    return min((duty - 64.0) * 2.5, _MOST_A) if duty <= _FASTEST_PERCENT else _MOST_A


class Following(str, Enum):
    """Whether an EVSE follows."""

    UNPROVEN = "unproven"
    FOLLOWING = "following"
    SUSPECT = "suspect"
    OVERDRAWING = "overdrawing"
    RECOVERING = "recovering"


_FOLLOWING = Following.FOLLOWING


class Check(str, Enum):
    """What to look at, in the order in which it is likely."""

    PILOT = "pilot"
    CONTACTOR = "contactor"
    BRIDGE = "bridge"
    METER = "meter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What an EVSE is allowed: times in s, tolerances in A and as a share of the limit.

    `early_s`: so much before its time a cycle may begin; `sample_s`: so old a sample may be when it is judged.
    """

    follow_s: float = 12.0
    confirm_s: float = 2.0
    early_s: float = 0.1
    sample_s: float = 1.0
    deadline_s: float = 15.0
    clear_s: float = 30.0
    longest_clear_s: float = 3600.0
    tolerance_a: float = 0.5
    tolerance_share: float = 0.02


class Sample(NamedTuple):
    """What is seen of an EVSE now: what it was told (None: nothing is known), and what flows in A, on L1, L2 and L3.

    `sampled_s`: not before then; None where nothing fresh is there. `proven`: the device confirmed what it was told, or
    shows it when read. `told_since_s`: when it was told that; None: now.
    """

    told: Amount | None
    currents_a: Sequence[float] = ()
    sampled_s: float | None = None
    proven: bool = True
    told_since_s: float | None = None


class Obedience(NamedTuple):
    """The verdict on one EVSE. `told`: what it was told, newest last, each with when that was.

    `since_s`: when the state began; `good_s`, `bad_s`: since when samples have been good, or bad; `clear_s`: how long
    they must be good to recover. `drawn_a` is the farthest of what was sampled last, `limit_a` what it exceeded.
    `confirmed`: as `told`, what it confirmed and when that was seen first; `excused`: all bad samples were within that.
    """

    state: Following
    since_s: float
    told: tuple[tuple[float, Amount], ...] = ()
    sampled_s: float | None = None
    good_s: float | None = None
    bad_s: float | None = None
    bad_samples: int = 0
    clear_s: float = 0.0
    drawn_a: float = 0.0
    limit_a: float = 0.0
    checks: tuple[Check, ...] = ()
    confirmed: tuple[tuple[float, Amount], ...] = ()
    excused: bool = False

    @property
    def trusted(self) -> bool:
        """Whether what it is told says anything about what it draws."""
        return self.state is not Following.OVERDRAWING and self.state is not Following.RECOVERING

    @property
    def believed(self) -> bool:
        """Whether the ledger may go by its claims: also of one that is reported, and got its setpoint late."""
        return self.trusted or self.excused


def unproven(now_s: float) -> Obedience:
    """Return the verdict on an EVSE of which nothing was seen."""
    return Obedience(state=Following.UNPROVEN, since_s=now_s)


def judge(before: Obedience, sample: Sample, now_s: float, allowance: Allowance) -> Obedience:
    """Return the verdict after a sample; the same one seen twice says nothing new."""
    steady = _steady(before, sample, now_s, allowance)
    if steady is not None:
        return steady
    span_s = allowance.follow_s - allowance.early_s
    told = _told(before.told, sample.told, sample.told_since_s, now_s, span_s)
    confirmed = _confirmed(before, sample, now_s, allowance)
    if sample.sampled_s is None or (before.sampled_s is not None and sample.sampled_s <= before.sampled_s):
        return _unseen(before._replace(told=told, confirmed=confirmed), now_s, allowance)
    currents = sample.currents_a or (0.0,)
    drawn_a = max(currents, key=abs)
    limits = _hull(told)
    good = not told or _within(currents, limits, allowance)
    if good:
        good_s = now_s if before.good_s is None else before.good_s
        excused = before.excused and not before.trusted
        kept = before.clear_s, drawn_a, before.limit_a, before.checks, confirmed, excused
        after = Obedience(before.state, before.since_s, told, sample.sampled_s, good_s, None, 0, *kept)
        return _pardoned(after, now_s, allowance)
    after = before._replace(
        told=told,
        sampled_s=sample.sampled_s,
        drawn_a=drawn_a,
        good_s=None,
        bad_s=now_s if before.bad_s is None else before.bad_s,
        bad_samples=before.bad_samples + 1,
        limit_a=limits.high if drawn_a > 0 else limits.low,
        confirmed=confirmed,
        excused=(before.excused or (before.trusted and before.bad_s is None))
        and bool(confirmed)
        and _within(currents, _hull(confirmed), allowance),
    )
    return _accused(after, sample, now_s, allowance)


def _steady(before: Obedience, sample: Sample, now_s: float, allowance: Allowance) -> Obedience | None:
    """Return the verdict on one that goes on to follow what it was told for long; None where there is more to it.

    That is what nearly all samples show: in one step, for it is taken for each EVSE in each cycle.
    """
    state, since_s, told, before_s, good_s, _bad_s, _bad, clear_s, _drawn_a, limit_a, checks, confirmed, _ = before
    amount, currents_a, sampled_s, _proven, _told_since_s = sample
    if state is not _FOLLOWING or clear_s != 0.0 or len(told) != 1 or told[0][1] != amount or not currents_a:
        return None
    if sampled_s is None or (before_s is not None and sampled_s <= before_s):
        return None
    told_a, tolerance_a = told[0][1].active_a, allowance.tolerance_a
    spread_a = abs(told_a) * allowance.tolerance_share + tolerance_a
    low, high = (-tolerance_a, told_a + spread_a) if told_a > 0 else (told_a - spread_a, tolerance_a)
    drawn_a = 0.0
    for current_a in currents_a:
        if not low <= current_a <= high:
            return None
        if abs(current_a) > abs(drawn_a):
            drawn_a = current_a
    if len(confirmed) != 1 or confirmed[0][1] != amount:
        confirmed = _confirmed(before, sample, now_s, allowance)
    good_s = now_s if good_s is None else good_s
    return Obedience(state, since_s, told, sampled_s, good_s, None, 0, clear_s, drawn_a, limit_a, checks, confirmed)


def _told(
    told: tuple[tuple[float, Amount], ...],
    now: Amount | None,
    since_s: float | None,
    now_s: float,
    span_s: float,
) -> tuple[tuple[float, Amount], ...]:
    """Return what was told within the last `span_s`: an entry counts until so long after the next one.

    What it is told again because the next one never got there counts from then on, and so does the next one.
    """
    if now is not None and (not told or told[-1][1] != now):
        at_s = now_s if since_s is None else min(since_s, now_s)
        told = (*told, (max(at_s, told[-1][0]) if told else at_s, now))
    if len(told) <= 1:
        return told
    first = next((index for index in range(len(told) - 1) if now_s - told[index + 1][0] < span_s), len(told) - 1)
    return told[max(first, 0) :]


def _confirmed(
    before: Obedience, sample: Sample, now_s: float, allowance: Allowance
) -> tuple[tuple[float, Amount], ...]:
    """Return what was confirmed within the last `follow_s`, and as much longer as a sample is old.

    Who got a setpoint late, by its bus, and is slow may be accused, for the time runs from the issue: it is excused.
    """
    span_s = allowance.follow_s + allowance.sample_s
    return _told(before.confirmed, sample.told if sample.proven else None, None, now_s, span_s - allowance.early_s)


def _hull(told: tuple[tuple[float, Amount], ...]) -> Span:
    limits = span_of(told[0][1]) if told else NOTHING
    for _since_s, amount in told[1:]:
        span = span_of(amount)
        limits = span if span.holds(limits) else limits.hull(span)
    return limits


def _within(currents_a: Sequence[float], limits: Span, allowance: Allowance) -> bool:
    high = limits.high * (1 + allowance.tolerance_share) + allowance.tolerance_a
    low = limits.low * (1 + allowance.tolerance_share) - allowance.tolerance_a
    for current_a in currents_a:  # noqa: SIM110 - a generator costs more than all of the rest
        if not low <= current_a <= high:
            return False
    return True


def _unseen(verdict: Obedience, now_s: float, allowance: Allowance) -> Obedience:
    last_s = verdict.since_s if verdict.sampled_s is None else verdict.sampled_s
    if now_s - last_s < allowance.deadline_s:
        return verdict
    if not verdict.trusted:
        # Nothing shows any more that what it draws is within what it had confirmed.
        clear_s = max(verdict.clear_s, allowance.clear_s) if verdict.excused else verdict.clear_s
        return verdict._replace(excused=False, clear_s=clear_s)
    return _turned(verdict, Following.UNPROVEN, now_s, (Check.METER, Check.BRIDGE))


def _turned(verdict: Obedience, state: Following, now_s: float, checks: tuple[Check, ...] = ()) -> Obedience:
    if verdict.state is state:
        return verdict._replace(checks=checks) if checks else verdict
    return verdict._replace(state=state, since_s=now_s, checks=checks)


def _pardoned(verdict: Obedience, now_s: float, allowance: Allowance) -> Obedience:
    """Return the verdict after a good sample."""
    if verdict.trusted:
        calm = verdict.state is Following.FOLLOWING and now_s - verdict.since_s >= allowance.longest_clear_s
        return _turned(verdict._replace(clear_s=0.0) if calm else verdict, Following.FOLLOWING, now_s)
    if verdict.state is Following.OVERDRAWING:
        over = Following.FOLLOWING if verdict.excused else Following.RECOVERING
        return _turned(verdict._replace(excused=False), over, now_s, verdict.checks)
    if verdict.good_s is not None and now_s - verdict.good_s >= verdict.clear_s:
        return _turned(verdict, Following.FOLLOWING, now_s)
    return verdict


def _accused(verdict: Obedience, sample: Sample, now_s: float, allowance: Allowance) -> Obedience:
    """Return the verdict after a bad sample."""
    checks = what_to_check(verdict.drawn_a, sample)
    if verdict.state is Following.RECOVERING:
        clear_s = min(2 * verdict.clear_s, allowance.longest_clear_s)
        return _turned(verdict._replace(clear_s=clear_s), Following.OVERDRAWING, now_s, checks)
    if verdict.state is Following.OVERDRAWING:
        clear_s = verdict.clear_s if verdict.excused else max(verdict.clear_s, allowance.clear_s)
        return verdict._replace(checks=checks, clear_s=clear_s)
    bad_s = now_s if verdict.bad_s is None else verdict.bad_s
    if verdict.bad_samples > 1 and now_s - bad_s >= allowance.confirm_s - allowance.early_s:
        clear_s = verdict.clear_s
        if not verdict.excused:
            clear_s = min(max(2 * clear_s, allowance.clear_s), allowance.longest_clear_s)
        return _turned(verdict._replace(clear_s=clear_s), Following.OVERDRAWING, now_s, checks)
    return _turned(verdict, Following.SUSPECT, now_s)


def what_to_check(drawn_a: float, sample: Sample) -> tuple[Check, ...]:
    """Return what to look at where an EVSE draws more than its limit, the likeliest first.

    Not confirmed what it was told: the bridge. Told nothing, and it draws: the contactor may be welded. Else the pilot.
    """
    order = [Check.PILOT, Check.BRIDGE, Check.CONTACTOR, Check.METER]
    if sample.told is not None and abs(sample.told.active_a) < _LEAST_A and abs(drawn_a) > 0:
        order.remove(Check.CONTACTOR)
        order.insert(1, Check.CONTACTOR)
    if not sample.proven:
        order.remove(Check.BRIDGE)
        order.insert(0, Check.BRIDGE)
    return tuple(order)


def advice(verdict: Obedience) -> str:
    """Return in words what is wrong with an EVSE and what to check; empty where nothing is."""
    if verdict.state is Following.UNPROVEN and verdict.checks:
        head = "nothing shows whether it follows its limit"
    elif not verdict.trusted:
        head = f"draws more than its limit: {verdict.drawn_a:.1f} A, allowed {verdict.limit_a:.1f} A"
    else:
        return ""
    words = {
        Check.PILOT: (
            f"the duty cycle of its control pilot: frozen? what it draws takes "
            f"{duty_percent(abs(verdict.drawn_a)):.0f} %, its limit {duty_percent(abs(verdict.limit_a)):.0f} %; "
            "53 % means 32 A, and at a true 100 % it offers nothing"
        ),
        Check.CONTACTOR: "its contactor: welded?",
        Check.BRIDGE: "the bridge between agent and charger: does the limit that was written arrive and stay?",
        Check.METER: "its meter: does it show what flows?",
    }
    return f"{head}. Check " + "; ".join(words[check] for check in verdict.checks)
