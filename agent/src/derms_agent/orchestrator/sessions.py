# SPDX-License-Identifier: Apache-2.0
"""Which vehicle is where, since when, and what it has had: from what devices show and what people tell. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from derms_agent.model import Session
from derms_agent.orchestrator.image import EvseReading

LONGEST_GAP_S = 30.0
"""Energy is counted over no longer a gap between two readings; a device that was silent for longer tells it itself."""
SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Metering:
    """What energy was counted from last: W, Wh of the device's own register where it has one, and when, in s."""

    at_s: float
    power_w: float
    energy_wh: float | None


def followed(
    session: Session | None,
    last: Metering | None,
    evse: str,
    reading: EvseReading,
    now_s: float,
    *,
    stationary: bool = False,
) -> tuple[Session | None, Metering]:
    """Return the session at an EVSE after one more reading, and what the next counts from.

    A session begins when a vehicle is first seen and ends when it is seen no more. Its energy is the device's register
    where that goes on, else power over time: the mean of two readings, for a gap of `LONGEST_GAP_S` at the most.

    :param stationary: it is storage, whose charge is read as it is, nothing too
    """
    power_w = reading.power_w or 0.0
    metering = Metering(reading.image.answered_s, power_w, reading.energy_wh)
    if not reading.occupied:
        return None, metering
    if session is None:
        session = Session(evse=evse, started_at_s=now_s)
        last = None
    delivered_wh = session.delivered_wh + (0.0 if last is None else _counted_wh(last, metering))
    soc_percent, soc_read_at_s = session.soc_percent, session.soc_read_at_s
    # Nothing is what chargers show before they know it: it would stand before what is told.
    if reading.soc_percent is not None and (reading.soc_percent > 0 or stationary):
        soc_percent, soc_read_at_s = reading.soc_percent, reading.image.sent_s
    return replace(
        session, delivered_wh=max(delivered_wh, 0.0), soc_percent=soc_percent, soc_read_at_s=soc_read_at_s
    ), metering


def _counted_wh(last: Metering, this: Metering) -> float:
    gap_s = max(this.at_s - last.at_s, 0.0)
    if last.energy_wh is not None and this.energy_wh is not None:
        counted_wh = this.energy_wh - last.energy_wh
        # A register that ran backwards was reset, and one that jumps by more than ten times the power was replaced.
        if 0 < counted_wh <= 10 * max(last.power_w, this.power_w, 1000.0) * (gap_s + 60.0) / SECONDS_PER_HOUR:
            return counted_wh
        if counted_wh == 0:
            return 0.0
    return (last.power_w + this.power_w) / 2 * min(gap_s, LONGEST_GAP_S) / SECONDS_PER_HOUR
