# SPDX-License-Identifier: Apache-2.0
"""The charge that stays in a battery: no discharge at or below the reserve, nor where the charge is not known.

A state of charge is a reading, so it is older than the moment at which it counts, and a discharge goes on until the
next limit is in force. What counts is therefore the *least* charge that the battery can have by then: the reading less
what a discharge at full power takes in its age and in `follow_s`. Discharge is allowed where that is above the reserve,
and bounded by what the energy between them lasts for in `horizon_s`: it fades out instead of stopping dead, and a
battery that obeys reaches the reserve only in the limit.

Unknown (never read, not a number, outside 0 to 100 %, read in the future, older than `fresh_s`) means no discharge.
Charging is never bounded here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from derms_agent.model import Limit, LimitQuantity, Rank, Session

SMALLEST_BATTERY_WH = 10_000.0
"""What an unknown battery is taken for: smaller ones lose their charge faster than is assumed here."""

_FULL_PERCENT = 100.0
_SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """SOC_RESERVE_PERCENT, how old a reading may be, how long a limit takes to be in force, and how discharge fades."""

    reserve_percent: float = 20.0
    fresh_s: float = 60.0
    follow_s: float = 15.0
    horizon_s: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Battery:
    """A vehicle's battery or stationary storage. `discharge_w` is the most that it gives; None is unknown."""

    target: str
    soc_percent: float | None
    read_at_s: float | None
    discharge_w: float
    capacity_wh: float | None = None


def of_session(session: Session, capacity_wh: float | None = None) -> Battery:
    """Return the battery of the vehicle at an EVSE."""
    return Battery(
        target=session.evse,
        soc_percent=session.soc_percent,
        read_at_s=session.soc_read_at_s,
        discharge_w=session.discharge_w,
        capacity_wh=capacity_wh,
    )


def reserve(battery: Battery, now_s: float, policy: Policy) -> tuple[Limit, ...]:
    """Return what a battery may give at the most, in W: 0 at or below the reserve and where its charge is not known."""
    low_w, source = _given(battery, now_s, policy)
    return (
        Limit(
            target=battery.target,
            quantity=LimitQuantity.ACTIVE_POWER,
            low=low_w,
            high=math.inf,
            source=source,
            rank=Rank.THERMAL_AND_SOC,
        ),
    )


def _given(battery: Battery, now_s: float, policy: Policy) -> tuple[float, str]:
    soc, read_at_s = battery.soc_percent, battery.read_at_s
    if soc is None or read_at_s is None or not 0 <= soc <= _FULL_PERCENT:
        return 0.0, "state of charge is unknown: no discharge"
    age_s = now_s - read_at_s
    if not 0 <= age_s <= policy.fresh_s:
        return 0.0, f"state of charge is {age_s:.0f} s old: no discharge"
    watts = max(battery.discharge_w, 0.0)
    capacity_wh = battery.capacity_wh if battery.capacity_wh is not None else SMALLEST_BATTERY_WH
    if capacity_wh <= 0 or not math.isfinite(watts):
        return 0.0, "the battery's size is unknown: no discharge"
    above_wh = (soc - policy.reserve_percent) / _FULL_PERCENT * capacity_wh
    least_wh = above_wh - watts * (age_s + policy.follow_s) / _SECONDS_PER_HOUR
    source = f"state of charge {soc:g} %, reserve {policy.reserve_percent:g} %"
    if above_wh <= 0 or least_wh <= 0:
        return 0.0, source
    return -min(watts, least_wh * _SECONDS_PER_HOUR / policy.horizon_s), source
