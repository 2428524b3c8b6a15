# SPDX-License-Identifier: Apache-2.0
"""What the depot is doing, in one word and its reason: the page, the LED and the log all show this.

Several things may be true at once; the one is shown that a person must know first. From the first to the last:

1. `FAULT`: something does not do what it must (an EVSE draws more than its limit, a ledger is over, a required device
   is silent). Somebody has to go there, whatever else is true.
2. `NO_GRID_SYNC` (flashing red in the manual): frequency or voltage is outside what IEEE 1547 rides through, or not
   known where it must be. Nothing can be promised to the grid then, so limits and events say little.
3. `FALLBACK`: the control's inputs are gone and a standing default holds: the grid's link is lost and its last event
   over, or devices run on their own fallback. It explains each limit that holds then.
4. `RESOURCE_CONSTRAINTS` (solid amber): the fleet cannot take or give more without harm; what was asked of it is
   beyond what temperatures and charges leave. It comes before shedding, because a shed that falls short is what the
   operator must tell the utility.
5. `SHEDDING`: a grid event or the frequency has taken power off.
6. `LIMITED`: another limit leaves less than is wanted.
7. `NORMAL`.

The function is total: every combination has a state, and it is the first in that list that is true.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from derms_agent.control.limits import Bound
from derms_agent.model import OperatingState, Rank

_TOLERANCE_W = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The supply as it is measured; None is unknown. The ranges are those of mandatory operation, ends included.

    Defaults: IEEE 1547-2018, 6.5.2, continuous operation at 58.8 to 61.2 Hz, and 6.4.2, 0.88 to 1.10 of the nominal
    voltage. `required`: without knowing, there is no sync; set it where droop is on.
    """

    frequency_hz: float | None
    voltage_share: float | None
    nominal_hz: float = 60.0
    below_hz: float = 1.2
    above_hz: float = 1.2
    voltage_shares: tuple[float, float] = (0.88, 1.10)
    required: bool = True


def out_of_sync(grid: Grid) -> str | None:
    """Return why there is no grid to be in step with, or None."""
    if grid.frequency_hz is None:
        if grid.required:
            return "the grid's frequency is not known"
    elif not grid.nominal_hz - grid.below_hz <= grid.frequency_hz <= grid.nominal_hz + grid.above_hz:
        return f"the grid's frequency is {grid.frequency_hz:.2f} Hz"
    low, high = grid.voltage_shares
    if grid.voltage_share is None:
        if grid.required:
            return "the grid's voltage is not known"
    elif not low <= grid.voltage_share <= high:
        return f"the grid's voltage is {100 * grid.voltage_share:.0f} % of nominal"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One EVSE or storage unit: what is wanted of it without its own state in mind, in W, and what holds it back.

    `wanted_w`: what plan, grid and frequency ask of it. `bound`: what `limits.combine` leaves of its active power by
    temperature and state of charge alone.
    """

    name: str
    wanted_w: float
    bound: Bound


def constrained(resources: Iterable[Resource]) -> str | None:
    """Return why the fleet as a whole cannot take or give what is wanted of it without harm, or None if it can.

    One battery that is full of heat is no constraint while others can stand in for it: the sums are compared.
    """
    wanted_w = low_w = high_w = 0.0
    low_by: list[str] = []
    high_by: list[str] = []
    for resource in resources:
        wanted_w += resource.wanted_w
        low_w += resource.bound.low
        high_w += resource.bound.high
        if resource.wanted_w < resource.bound.low - _TOLERANCE_W and resource.bound.low_by is not None:
            low_by.append(f"{resource.name} ({resource.bound.low_by.source})")
        if resource.wanted_w > resource.bound.high + _TOLERANCE_W and resource.bound.high_by is not None:
            high_by.append(f"{resource.name} ({resource.bound.high_by.source})")
    if wanted_w > high_w + _TOLERANCE_W:
        return f"the fleet can take {high_w / 1000:.1f} kW of {wanted_w / 1000:.1f}: {', '.join(high_by)}"
    if wanted_w < low_w - _TOLERANCE_W:
        return f"the fleet can give {abs(min(low_w, 0.0)) / 1000:.1f} kW of {-wanted_w / 1000:.1f}: {', '.join(low_by)}"
    return None


@dataclass(frozen=True, slots=True)
class Held:
    """A limit that leaves less than is wanted: whose it is, and its rank."""

    source: str
    rank: Rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """All that the state depends on. Each but `held` is a reason in words, or None or empty where it is not so."""

    faults: tuple[str, ...] = ()
    out_of_sync: str | None = None
    fallback: str | None = None
    constrained: str | None = None
    shedding: tuple[str, ...] = ()
    held: tuple[Held, ...] = ()


@dataclass(frozen=True, slots=True)
class Shown:
    """The state and its reason, in words for a person."""

    state: OperatingState
    reason: str


def shown(known: Known) -> Shown:
    """Return the first state that is true, and why.

    A limit of the grid's or the droop's rank that holds something back is a shed, whether or not its event is named.
    """
    sheds = (*known.shedding, *(held.source for held in known.held if held.rank in (Rank.GRID, Rank.DROOP)))
    others = tuple(held.source for held in known.held)
    candidates = (
        (OperatingState.FAULT, known.faults),
        (OperatingState.NO_GRID_SYNC, _of(known.out_of_sync)),
        (OperatingState.FALLBACK, _of(known.fallback)),
        (OperatingState.RESOURCE_CONSTRAINTS, _of(known.constrained)),
        (OperatingState.SHEDDING, sheds),
        (OperatingState.LIMITED, others),
    )
    for state, reasons in candidates:
        if reasons:
            return Shown(state, "; ".join(dict.fromkeys(reasons)))
    return Shown(OperatingState.NORMAL, "no limit holds anything back")


def _of(reason: str | None) -> tuple[str, ...]:
    return () if reason is None else (reason,)
