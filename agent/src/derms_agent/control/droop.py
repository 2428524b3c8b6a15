# SPDX-License-Identifier: Apache-2.0
"""Frequency droop: how a fleet's consumption follows the grid's frequency, after IEEE 1547-2018, 6.5.2.7.

**Curve.** In per unit of rated power, and consumption positive (the standard counts generation positive, so the signs
are the other way round), the shift from the power before the disturbance is exactly

- 0 within the deadband,
- -((f_n - db_uf) - f) / (f_n * k_uf) below it: less consumption, more discharge,
- +(f - (f_n + db_of)) / (f_n * k_of) above it: more consumption, less discharge,

bounded to 2: from full charge to full discharge. It is continuous (0 at both ends of the deadband) and non-decreasing,
with a slope of at most g = 1 / (f_n * k). The division by f_n * k, the frequency step per unit of power, is what a peer
forgot (facts on DERMS, clause 2); a test holds its numbers.

**Response.** First order with tau = T / ln 10, so that a step's response has covered 90 % at the open-loop response
time T; it cannot overshoot. Exact for a frequency that is constant between samples, whatever their spacing.

**No hunting.** Let w = noise_hz * g, so that a frequency within ±noise_hz of any constant asks for values no more than
2 w apart; a first-order lag, and a mean of its output, stay inside the interval of what is asked. The output moves for
two reasons only:

- *Coarse*: the response is more than 2 w away. The output is taken along to 2 w from it, at once and in either
  direction.
- *Fine*: the response's mean (time constant `_MEAN_S`, or twice T, never more than 2 w from the response) is more than
  half of `exactness` away. The output is set to the mean; but against the direction of its last move only `calm_s`
  (5 minutes) after that.

Once the output is inside the interval of what noise asks for, where the first move puts it, no coarse move happens, for
nothing in it is more than 2 w away; so **any** noise within ±noise_hz, fast, slow or wandering, turns the output round
at most once in `calm_s`. Nor does it turn anything round more often that follows the output by steps of any size, for
every move up is `calm_s` away from every move down, not just the first of a row. There is no limit cycle through the
grid either: curve, lag, mean and play are no steeper than the curve, and a depot moves the frequency of an
interconnected grid by far less than 1 / g per unit, so that the loop's gain is far below 1 and it contracts, whatever
delays are in it.

**Exact when steady.** At a constant frequency response and mean settle on the curve and the fine move leaves at most
half of `exactness` (0.5 % of rated): within 10 T (or 60 s, for a fast T) after the change. One case waits longer: a
change by less than 2 noise_hz that would turn the output round within `calm_s` of its last move looks like noise, is
answered once `calm_s` is over, and leaves up to 2 w until then (1.33 % at the defaults). The standard's own accuracy,
10 mHz and 5 % of rated power (clause 4.4, table 3), is wider.

**Unknown frequency.** Without a good reading nothing is known of the grid; a reduction stands as it is and an increase
is given up (`state.py` reports that the grid's sync is lost).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from derms_agent.model import Limit, LimitQuantity, Rank

FULL_SWING = 2.0
"""From full charge to full discharge, in per unit of rated power."""

_MEAN_S = 10.0


class Category(str, Enum):
    """The abnormal-performance category of a DER (IEEE 1547-2018, clause 1.4)."""

    I = "I"  # noqa: E741
    II = "II"
    III = "III"


@dataclass(frozen=True, slots=True)
class Range:
    """What may be set, ends included."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Allowable:
    """The ranges of allowable settings of one category: Hz, per unit, s."""

    deadband_hz: Range
    k: Range
    response_s: Range


ALLOWABLE: Mapping[Category, Allowable] = {
    Category.I: Allowable(Range(0.017, 1.0), Range(0.03, 0.05), Range(1.0, 10.0)),
    Category.II: Allowable(Range(0.017, 1.0), Range(0.03, 0.05), Range(1.0, 10.0)),
    Category.III: Allowable(Range(0.017, 1.0), Range(0.02, 0.05), Range(0.2, 10.0)),
}
"""IEEE 1547-2018, table 24. The defaults, 0.036 Hz, 0.05 and 5 s, are the same for all three."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A droop's settings, by the standard's terms; `of` is over-frequency, `uf` under-frequency.

    `noise_hz`: what is taken for noise; `exactness`: how close to the curve a steady output is, in per unit of rated;
    `calm_s`: how seldom noise may turn the output round.

    Raises `ValueError` unless deadbands are 0 or more and everything else is positive.
    """

    nominal_hz: float = 60.0
    deadband_of_hz: float = 0.036
    deadband_uf_hz: float = 0.036
    k_of: float = 0.05
    k_uf: float = 0.05
    response_s: float = 5.0
    noise_hz: float = 0.020
    exactness: float = 0.005
    calm_s: float = 300.0

    def __post_init__(self) -> None:
        positive = (self.nominal_hz, self.k_of, self.k_uf, self.response_s, self.exactness, self.calm_s)
        if not all(0 < value < math.inf for value in positive):
            raise ValueError(f"found a setting of 0 or less in {self}, expected positive ones")
        if not all(0 <= value < math.inf for value in (self.deadband_of_hz, self.deadband_uf_hz, self.noise_hz)):
            raise ValueError(f"found a negative deadband or noise in {self}, expected 0 or more")

    @property
    def gain(self) -> float:
        """Return the curve's steepest slope, in per unit of rated power per Hz."""
        return 1 / (self.nominal_hz * min(self.k_of, self.k_uf))


def outside(settings: Settings, category: Category) -> tuple[str, ...]:
    """Return, in words, each setting that is outside its category's range of allowable settings."""
    allowed = ALLOWABLE[category]
    checked = (
        ("deadband_of_hz", settings.deadband_of_hz, allowed.deadband_hz),
        ("deadband_uf_hz", settings.deadband_uf_hz, allowed.deadband_hz),
        ("k_of", settings.k_of, allowed.k),
        ("k_uf", settings.k_uf, allowed.k),
        ("response_s", settings.response_s, allowed.response_s),
    )
    return tuple(
        f"found {value:g} for {name}, expected {span.low:g} to {span.high:g} in category {category.value}"
        for name, value, span in checked
        if not span.low <= value <= span.high
    )


def shift(settings: Settings, frequency_hz: float) -> float:
    """Return the exact curve: the change of consumption that a frequency asks for, in per unit of rated power."""
    over_hz = frequency_hz - (settings.nominal_hz + settings.deadband_of_hz)
    under_hz = (settings.nominal_hz - settings.deadband_uf_hz) - frequency_hz
    if over_hz > 0:
        return min(over_hz / (settings.nominal_hz * settings.k_of), FULL_SWING)
    if under_hz > 0:
        return -min(under_hz / (settings.nominal_hz * settings.k_uf), FULL_SWING)
    return 0.0


def excursion(settings: Settings, before_hz: float | None, frequency_hz: float | None) -> bool:
    """Whether a frequency is news after another: it leaves the deadband or comes back, or moves on by more than noise.

    What is not known now is no news, for nothing is done about it in a hurry.
    """
    if frequency_hz is None:
        return False
    was, is_ = (0.0 if hz is None else shift(settings, hz) for hz in (before_hz, frequency_hz))
    if was == 0.0 or is_ == 0.0:
        return was != is_
    return before_hz is not None and abs(frequency_hz - before_hz) > settings.noise_hz


@dataclass(frozen=True, slots=True)
class State:
    """The droop's memory.

    `response` is the lag's output, `mean` the mean of that, and `output` what is asked for, all in per unit of rated
    power. `direction` is where the output went last, `moved_at_s` when. `before_w` is what each
    device drew before the disturbance, by name; it stands still while the output is not 0.
    """

    at_s: float | None = None
    response: float = 0.0
    mean: float = 0.0
    output: float = 0.0
    direction: int = 0
    moved_at_s: float = -math.inf
    known: bool = False
    before_w: Mapping[str, float] = field(default_factory=dict)


def step(settings: Settings, state: State, frequency_hz: float | None, now_s: float) -> State:
    """Return the state after a reading of the frequency; None where it is unknown, stale or bad.

    :raises ValueError: the time is before that of the state
    """
    elapsed_s = 0.0 if state.at_s is None else now_s - state.at_s
    if elapsed_s < 0:
        raise ValueError(f"found a step of {elapsed_s:g} s, expected 0 or more")
    if frequency_hz is None or not math.isfinite(frequency_hz) or frequency_hz <= 0:
        kept = min(state.output, 0.0)
        response, mean = min(state.response, kept), min(state.mean, kept)
        return replace(state, at_s=now_s, response=response, mean=mean, output=kept, known=False)
    lag = -math.expm1(-elapsed_s * math.log(10) / settings.response_s)
    response = state.response + (shift(settings, frequency_hz) - state.response) * lag
    noise = 2 * settings.noise_hz * settings.gain
    slow = -math.expm1(-elapsed_s / max(_MEAN_S, 2 * settings.response_s))
    mean = min(max(state.mean + (response - state.mean) * slow, response - noise), response + noise)
    moved = _moved(state, min(max(state.output, response - noise), response + noise), now_s)
    wanted = _moved(moved, _fine(settings, moved.output, mean), now_s)
    if wanted.direction != -moved.direction or now_s - moved.moved_at_s >= settings.calm_s:
        moved = wanted
    return replace(moved, at_s=now_s, response=response, mean=mean, known=True)


def _moved(state: State, output: float, now_s: float) -> State:
    """Return the state with another output, and where that moves it, with direction and time."""
    if output == state.output:
        return state
    return replace(state, output=output, direction=1 if output > state.output else -1, moved_at_s=now_s)


def _fine(settings: Settings, output: float, mean: float) -> float:
    """Return where the mean would have the output: on it, or where it is; 0 where the mean is next to nothing."""
    if abs(mean) <= settings.exactness / 4:
        return 0.0
    return mean if abs(mean - output) > settings.exactness / 2 else output


@dataclass(frozen=True, slots=True, kw_only=True)
class Responder:
    """A device or EVSE that the agent moves with the frequency.

    `floor_w` and `ceiling_w` are what it can do now: the most discharge, as a negative number, and the most charge.
    `own_droop`: it runs SunSpec model 711 itself, or an equal of it; the agent then leaves it alone, so that it does
    not respond twice. `raises`: whether over-frequency may make it draw more; otherwise it only ends its discharge.
    """

    name: str
    rated_w: float
    floor_w: float
    ceiling_w: float
    own_droop: bool = False
    raises: bool = True


def remember(state: State, power_w: Mapping[str, float]) -> State:
    """Return the state with what each device draws, for as long as nothing is asked of it.

    While something is asked, what is remembered stands.
    """
    if state.output == 0:
        return replace(state, before_w=dict(power_w))
    return state


def limits(state: State, responders: Iterable[Responder]) -> tuple[Limit, ...]:
    """Return what the droop asks of each device, in W; nothing within the deadband.

    Under-frequency bounds from above, over-frequency from below, both within what the device can do. A device that came
    since the disturbance began has no power before it: its shift counts from its ceiling below and from 0 above, so
    that it neither is locked out nor has to take more than its share.
    """
    if state.output == 0:
        return ()
    found = []
    for responder in responders:
        if responder.own_droop:
            continue
        newcomer_w = responder.ceiling_w if state.output < 0 else 0.0
        wanted_w = state.before_w.get(responder.name, newcomer_w) + state.output * responder.rated_w
        wanted_w = min(max(wanted_w, responder.floor_w), responder.ceiling_w)
        low_w, high_w = -math.inf, math.inf
        if state.output < 0:
            high_w = wanted_w
        else:
            low_w = wanted_w if responder.raises else min(wanted_w, 0.0)
        found.append(
            Limit(
                target=responder.name,
                quantity=LimitQuantity.ACTIVE_POWER,
                low=low_w,
                high=high_w,
                source=f"frequency droop, {100 * state.output:+.1f} % of rated",
                rank=Rank.DROOP,
            )
        )
    return tuple(found)
