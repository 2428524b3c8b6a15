# SPDX-License-Identifier: Apache-2.0
"""The charge that stays in a battery: no discharge at or below the reserve, nor where the charge is not known.

And what stationary storage may take: no charge at or above full, nor where the charge is not known.

A state of charge is a reading, so it is older than the moment at which it counts, and a discharge goes on until the
next limit is in force. What counts is therefore the *least* charge that the battery can have by then: the reading less
what a discharge at full power takes in its age and in `follow_s`. Discharge is allowed where that is above the reserve,
and bounded by what the energy between them lasts for in `horizon_s`: it fades out instead of stopping dead, and a
battery that obeys reaches the reserve only in the limit.

Unknown (never read, not a number, outside 0 to 100 %, read in the future, older than `fresh_s`) means no discharge.

Charging is bounded in the same way from the other end (`full`), for storage alone: a vehicle sees to that by itself.
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
    """Return the battery of the vehicle at an EVSE, or of storage."""
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


def full(battery: Battery, charge_w: float, now_s: float, policy: Policy) -> tuple[Limit, ...]:
    """Return what storage may take at the most, in W: 0 where it is full and where its charge is not known.

    :param charge_w: the most that it takes
    """
    high_w, source = _taken(battery, max(charge_w, 0.0), now_s, policy)
    return (
        Limit(
            target=battery.target,
            quantity=LimitQuantity.ACTIVE_POWER,
            low=-math.inf,
            high=high_w,
            source=source,
            rank=Rank.THERMAL_AND_SOC,
        ),
    )


def _given(battery: Battery, now_s: float, policy: Policy) -> tuple[float, str]:
    unknown = _unknown(battery, now_s, policy)
    if unknown is not None:
        return 0.0, f"{unknown}: no discharge"
    watts = max(battery.discharge_w, 0.0)
    capacity_wh = battery.capacity_wh if battery.capacity_wh is not None else SMALLEST_BATTERY_WH
    if capacity_wh <= 0 or not math.isfinite(watts):
        return 0.0, "the battery's size is unknown: no discharge"
    soc = battery.soc_percent or 0.0
    above_wh = (soc - policy.reserve_percent) / _FULL_PERCENT * capacity_wh
    source = f"state of charge {soc:g} %, reserve {policy.reserve_percent:g} %"
    return -_fading(above_wh, watts, battery, now_s, policy), source


def _taken(battery: Battery, watts: float, now_s: float, policy: Policy) -> tuple[float, str]:
    unknown = _unknown(battery, now_s, policy)
    if unknown is not None:
        return 0.0, f"{unknown}: no charge"
    if battery.capacity_wh is None or battery.capacity_wh <= 0 or not math.isfinite(watts):
        return 0.0, "the battery's size is unknown: no charge"
    soc = battery.soc_percent or 0.0
    beneath_wh = (_FULL_PERCENT - soc) / _FULL_PERCENT * battery.capacity_wh
    return _fading(beneath_wh, watts, battery, now_s, policy), f"state of charge {soc:g} %"


def _unknown(battery: Battery, now_s: float, policy: Policy) -> str | None:
    """Return why a battery's charge is not known, or None where it is."""
    soc, read_at_s = battery.soc_percent, battery.read_at_s
    if soc is None or read_at_s is None or not 0 <= soc <= _FULL_PERCENT:
        return "state of charge is unknown"
    age_s = now_s - read_at_s
    return None if 0 <= age_s <= policy.fresh_s else f"state of charge is {age_s:.0f} s old"


def _fading(left_wh: float, watts: float, battery: Battery, now_s: float, policy: Policy) -> float:
    """Return which part of a power may flow where energy is left at the reading that flows at that power since then."""
    age_s = now_s - (battery.read_at_s or 0.0)
    least_wh = left_wh - watts * (age_s + policy.follow_s) / _SECONDS_PER_HOUR
    return min(watts, max(least_wh, 0.0) * _SECONDS_PER_HOUR / policy.horizon_s)
