# SPDX-License-Identifier: Apache-2.0
"""How much a vehicle takes of what it is offered, learnt from what it draws, so that others get the rest. Pure.

A vehicle near full takes less and less, and some never take what their EVSE could give. What it is offered and does not
take lies idle, for limits hold for what is offered. So an EVSE's share is bounded by what its vehicle is seen to take,
and a margin that lets it show that it takes more:

| what is seen | the bound |
| --- | --- |
| it draws less than the bound less the margin, though it was offered more | comes down to the draw and the margin |
| it draws all of an offer at the bound | goes up, by `growth` at least |
| it draws all of a lower offer | stays: others' needs say nothing about what it takes |
| it was offered nothing for certain | stays: nothing can be seen; whoever calls this has to offer it something again |

**Why nobody starves.** The bound is never below the draw and the margin, nor below `least_a`, which is above nothing. A
vehicle that is offered its bound and takes more draws all of it, so that its bound grows by `growth` with each sample
until it does not bind any more: how many that takes is logarithmic in how wrong the bound was.

**Why it does not flap.** A draw that stays the same moves the bound once: after it, the draw is below the bound by the
margin, which is more than the tolerance (not all is taken) and not less than itself (not too little). While the draw
falls, the bound comes down in steps of `step_a` at least.

**What it does not touch.** It is a wish, not a limit: a bound that is too high costs energy, and never safety, for
limits hold for what is offered whatever is taken.

Currents are A per conductor, consumption positive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Habit:
    """How a vehicle's uptake is judged.

    `margin_a` is offered above the draw, and is more than `tolerance_a`, what a draw may be below an offer that is
    taken. `step_a` is the least by which a bound comes down. `growth` is the factor by which it goes up, `least_a` the
    lowest that it gets.
    """

    margin_a: float = 1.0
    tolerance_a: float = 0.5
    step_a: float = 0.5
    growth: float = 2.0
    least_a: float = 1.0

    def __post_init__(self) -> None:
        """Check that a bound settles, and that it can grow again.

        :raises ValueError: it would not
        """
        if not 0 <= self.tolerance_a < self.margin_a or not self.growth > 1 or not self.least_a > 0 <= self.step_a:
            raise ValueError(f"found {self}, expected tolerance_a < margin_a, growth > 1 and least_a > 0")


def learnt_a(bound_a: float, offered_a: float, drawn_a: float, habit: Habit = Habit()) -> float:
    """Return the most that a vehicle is believed to take, in A per conductor, after a sample of what it draws.

    :param bound_a: what was believed before; infinite at first
    :param offered_a: the least that the EVSE was told within the time that a vehicle may take to follow: what it could
        draw for certain when the sample was taken
    :param drawn_a: what flows, on the conductor that carries the most
    """
    if offered_a <= 0 or not math.isfinite(drawn_a):
        return bound_a
    if drawn_a >= offered_a - habit.tolerance_a:
        if offered_a < bound_a - habit.tolerance_a:
            return bound_a
        return max(bound_a, habit.growth * offered_a + habit.margin_a)
    seen_a = max(drawn_a + habit.margin_a, habit.least_a)
    return seen_a if seen_a < bound_a - habit.step_a else max(bound_a, seen_a)
