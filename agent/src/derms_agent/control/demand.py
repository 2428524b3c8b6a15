# SPDX-License-Identifier: Apache-2.0
"""The demand cap: no 15-minute mean of the billing period above DEMAND_CAP_KW (the manual's grid tax).

A utility bills the highest mean over one demand interval. Which intervals it looks at is in the tariff:

- **clock-aligned** (the usual fixed interval, :00, :15, :30, :45 of the meter's clock): what an interval has not used
  yet may be used before it ends. Most energy; needs a clock that agrees with the meter's to well within an interval.
- **sliding** (rolling demand): every stretch of 15 minutes counts, wherever it begins. It therefore also keeps every
  aligned interval of *any* clock under the cap, and is what to take where the meter's clock is not known to agree. It
  allows no more than the cap at any moment, and less for a while after a stretch above it.

**A clock that steps.** Aligned intervals begin by the gateway's wall clock. Once that is stepped, nobody knows which of
both clocks the meter's is: for an interval's length the lesser of aligned and sliding holds, and so it does while the
wall's clock is not known at all. So no step leaves more than sliding intervals do.

Both speak of the whole site's import, base load included, and are then reduced by the base load. Where that alone is
above them, nothing is left to EVSEs; what is missing is asked of storage and of vehicles that give back.

**Why it holds.** Let C be the cap, W the interval, P a power held from now on, E(a, b) the energy between two moments.

- Aligned: P is at most what solves E(begin, now) + P (end - now) = C W; a second limit of C holds from the interval's
  end on, so that a cycle that comes late does not carry P into the next one. At each later moment of the interval the
  same P still satisfies it, if the site has drawn at most P, and the interval ends at C W or under.
- Sliding: for every d in (0, W], E(now + d - W, now) + P d <= C W. If the site keeps to P, then at now + e the same P
  satisfies it again (take d' = d - e; what left the window had been counted), and d = W says P <= C. By induction
  over the cycles no stretch that ends after now is above C; P = 0 always satisfies it, once past stretches do.

A site that runs at exactly C has no room for a base load that rises for a second: the next stretch would be over, and P
0. So what is aimed at is `(1 - spare) C`, which leaves the spare share of an interval for what was not foreseen; and in
an aligned interval, what was saved is spread over a tenth of it at least, so that its end is no spurt. Both only lower
P.

**What is not measured counts as most.** Between the last reading and now, in a gap, and before the first reading, power
is `unmeasured_w`: the most that may have flowed. E between two readings is what the register says, and where a window
begins between them, the lesser of the register's whole difference and `unmeasured_w` for the part inside (or the
register's own mean, if that is more). A register counts in steps, of 1 Wh or of 1 kWh, so up to one of these more may
have flowed between two of its readings than it says, however many lie between them: it is added once. How large a step
is the meter's profile says, or else the least rise that was ever seen, which is never less than a step. So E is never
below the truth, and P never above what the truth would allow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from derms_agent.control.limits import SITE, BaseLoad
from derms_agent.model import Limit, LimitQuantity, Rank

_SECONDS_PER_HOUR = 3600.0
_ROUNDING = 1e-9  # what adding a few hundred numbers may leave over
_STEP_S = 1.0  # what two clocks that are looked at one after the other, or slewed, may differ by


class Windows(str, Enum):
    """Which demand intervals the tariff looks at."""

    ALIGNED = "aligned"
    SLIDING = "sliding"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """DEMAND_CAP_KW in W, and the interval over which demand is averaged. `spare`: what share of it is not aimed at.

    Raises `ValueError` unless the cap is 0 or more, the interval positive, and the spare share below 1.
    """

    cap_w: float
    windows: Windows = Windows.SLIDING
    window_s: float = 900.0
    spare: float = 0.02

    def __post_init__(self) -> None:
        if not (0 <= self.cap_w < math.inf and 0 < self.window_s < math.inf and 0 <= self.spare < 1):
            raise ValueError(
                f"found {self}, expected a cap of 0 or more over a positive time, and a spare share below 1"
            )


@dataclass(frozen=True, slots=True)
class Sample:
    """What the site's import register said, in Wh, and when (monotonic s)."""

    at_s: float
    import_wh: float


@dataclass(frozen=True, slots=True)
class Samples:
    """The register's readings that the running window still needs, oldest first.

    `rise_wh`: the least by which it ever rose from one reading to the next; None: it has not yet.
    """

    kept: tuple[Sample, ...] = ()
    rise_wh: float | None = None


@dataclass(frozen=True, slots=True)
class Wall:
    """How far the wall's clock is ahead of control's, in s, and when it was last seen to have been stepped."""

    ahead_s: float
    stepped_s: float = -math.inf

    def steady(self, cap: Cap, now_s: float) -> bool:
        """Whether it was not stepped for the length of an interval."""
        return now_s - self.stepped_s >= cap.window_s

    def begin_s(self, cap: Cap, now_s: float) -> float:
        """Return when the aligned interval around now began, by control's clock."""
        return now_s - (now_s + self.ahead_s) % cap.window_s


def looked(known: Wall | None, ahead_s: float, now_s: float) -> Wall:
    """Return what is known of the wall's clock once it is looked at again."""
    if known is None:
        return Wall(ahead_s)
    return known if abs(ahead_s - known.ahead_s) <= _STEP_S else Wall(ahead_s, now_s)


def add(samples: Samples, sample: Sample, cap: Cap, spacing_s: float = 10.0) -> Samples:
    """Return the readings with one more, less those that no window needs any more.

    Readings closer together than `spacing_s` replace each other (all but the newest of them says nothing that its
    neighbours do not), which bounds how many are kept. A register that ran backwards was replaced: all is forgotten.
    """
    kept, rise_wh = list(samples.kept), samples.rise_wh
    if kept and (sample.import_wh < kept[-1].import_wh or sample.at_s <= kept[-1].at_s):
        return Samples((sample,)) if sample.at_s > kept[-1].at_s else samples
    if kept and sample.import_wh > kept[-1].import_wh:
        rise_wh = min(sample.import_wh - kept[-1].import_wh, math.inf if rise_wh is None else rise_wh)
    if kept[1:] and sample.at_s - kept[-2].at_s < spacing_s:
        kept.pop()
    kept.append(sample)
    begin_s = sample.at_s - cap.window_s
    first = 0
    while first + 1 < len(kept) and kept[first + 1].at_s <= begin_s:
        first += 1
    return Samples(tuple(kept[first:]), rise_wh)


def used_ws(
    samples: Sequence[Sample], begin_s: float, now_s: float, unmeasured_w: float, step_ws: float = 0.0
) -> float:
    """Return the most that may have been imported between two moments, in Ws; the register counts in steps."""
    if not samples:
        return unmeasured_w * max(now_s - begin_s, 0.0)
    found = unmeasured_w * (max(samples[0].at_s - begin_s, 0.0) + max(now_s - max(samples[-1].at_s, begin_s), 0.0))
    for earlier, later in pairwise(samples):
        if later.at_s > begin_s:
            whole = _between_ws(earlier, later)
            found += min(whole, _most_w(earlier, later, unmeasured_w) * (later.at_s - max(earlier.at_s, begin_s)))
    return found + step_ws if samples[1:] and samples[-1].at_s > begin_s else found


def _between_ws(earlier: Sample, later: Sample) -> float:
    return (later.import_wh - earlier.import_wh) * _SECONDS_PER_HOUR


def _most_w(earlier: Sample, later: Sample, unmeasured_w: float) -> float:
    return max(unmeasured_w, _between_ws(earlier, later) / (later.at_s - earlier.at_s))


def allowed_w(  # noqa: PLR0917 - all that it depends on
    cap: Cap,
    samples: Samples,
    now_s: float,
    unmeasured_w: float,
    window_begin_s: float | None,
    step_wh: float = 0.0,
) -> float:
    """Return the import that may be held from now on, in W: to the interval's end, or for good where they slide.

    :param unmeasured_w: the most that may have flowed where no reading says what did: at least any limit in force
    :param window_begin_s: when the running interval began, by the monotonic clock; needed for aligned intervals
    :param step_wh: what the register counts in
    :raises ValueError: no begin is given for aligned intervals, or now is not in the interval that it begins
    """
    if cap.windows is Windows.SLIDING:
        return _sliding_w(cap, samples.kept, now_s, unmeasured_w, step_wh * _SECONDS_PER_HOUR)
    if window_begin_s is None or not window_begin_s <= now_s < window_begin_s + cap.window_s:
        raise ValueError(
            f"found {window_begin_s} as the begin of the interval around {now_s}, expected one that holds it"
        )
    used = used_ws(samples.kept, window_begin_s, now_s, unmeasured_w, step_wh * _SECONDS_PER_HOUR)
    left_s = window_begin_s + cap.window_s - now_s
    aim_w = cap.cap_w * (1 - cap.spare)
    saved_ws = aim_w * (now_s - window_begin_s) - used
    steady_w = aim_w + saved_ws / max(left_s, cap.window_s / 10)
    return max(min((cap.cap_w * cap.window_s - used) / left_s, steady_w), 0.0)


def _sliding_w(cap: Cap, samples: Sequence[Sample], now_s: float, unmeasured_w: float, step_ws: float) -> float:
    """Return the least of (C W - E(now + d - W, now)) / d over d.

    E's bound is continuous and piecewise linear in d, with kinks at the readings, and inside a pair where the
    register's whole difference becomes the lesser bound. Between kinks the quotient of two linear functions of d is
    monotone: its least lies at a kink.
    """
    budget_ws = cap.cap_w * cap.window_s
    begin_s = now_s - cap.window_s
    if used_ws(samples, begin_s, now_s, unmeasured_w, step_ws) > budget_ws * (1 + _ROUNDING):
        return 0.0  # the stretch that ends now has nothing left: d towards 0
    least_w = cap.cap_w * (1 - cap.spare)
    for kink_s, used in _kinks(samples, now_s, unmeasured_w, step_ws):
        if kink_s > begin_s:
            least_w = min(least_w, (budget_ws - used) / (kink_s - begin_s))
    return max(least_w, 0.0)


def _kinks(
    samples: Sequence[Sample], now_s: float, unmeasured_w: float, step_ws: float
) -> Iterator[tuple[float, float]]:
    """Yield where the bound of the energy up to now has its kinks, and the bound there in Ws, newest first.

    At the newest reading it jumps by the register's step, and it is the upper end that binds.
    """
    if not samples:
        return
    used = unmeasured_w * max(now_s - samples[-1].at_s, 0.0) + (step_ws if samples[1:] else 0.0)
    yield samples[-1].at_s, used
    for later, earlier in pairwise(reversed(samples)):
        whole = _between_ws(earlier, later)
        used += whole
        if whole > 0:
            yield later.at_s - whole / _most_w(earlier, later, unmeasured_w), used
        yield earlier.at_s, used


def limits(
    cap: Cap,
    samples: Samples,
    base: BaseLoad,
    now_s: float,
    *,
    unmeasured_w: float,
    window_begin_s: float | None = None,
    step_wh: float = 0.0,
    given_back: bool = False,
) -> tuple[Limit, ...]:
    """Return the demand cap as what it leaves to EVSEs, in W, by the operator's rank.

    :param given_back: somebody may give power back: where the base load that is measured is above what is left, the
        limit is below zero by what is missing, which asks for that
    """
    now_w = allowed_w(cap, samples, now_s, unmeasured_w, window_begin_s, step_wh)
    asks = given_back and base.measured
    if cap.windows is Windows.SLIDING or window_begin_s is None:
        return (_limit(cap, now_w, base, None, None, asks=asks),)
    end_s = window_begin_s + cap.window_s
    return (_limit(cap, now_w, base, None, end_s, asks=asks), _limit(cap, cap.cap_w, base, end_s, None, asks=asks))


def _limit(cap: Cap, watts: float, base: BaseLoad, start_s: float | None, end_s: float | None, *, asks: bool) -> Limit:
    left_w = watts - base.high_w
    return Limit(
        target=SITE,
        quantity=LimitQuantity.ACTIVE_POWER,
        low=-math.inf,
        high=left_w if asks else max(left_w, 0.0),
        source=f"demand cap {cap.cap_w / 1000:g} kW over {cap.window_s / 60:g} min ({base.source})",
        rank=Rank.OPERATOR,
        start_s=start_s,
        end_s=end_s,
    )
