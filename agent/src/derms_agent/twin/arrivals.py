# SPDX-License-Identifier: Apache-2.0
"""Who comes when nobody says so: for each EVSE an endless, seeded sequence of visits."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from derms_agent.model import Depot
from derms_agent.twin.actions import vehicle_type
from derms_agent.twin.physics import LONGEST_LAG_S, SHORTEST_LAG_S, VehicleType

_HOUR_S = 3600.0
_PLUGGED_AT_START = 0.6
_STAY_H, _AWAY_H = (2.0, 9.0), (0.5, 6.0)
_SOC = (0.15, 0.7)
_FLEET = (
    VehicleType(name="van", capacity_wh=75_000, power_w=11_000, dc_power_w=110_000),
    VehicleType(name="car", capacity_wh=58_000, power_w=11_000, dc_power_w=120_000),
    VehicleType(name="city car", capacity_wh=42_000, power_w=7_400, phases=1, dc_power_w=75_000),
    VehicleType(name="lorry", capacity_wh=300_000, power_w=22_000, dc_power_w=250_000),
)


@dataclass(frozen=True, slots=True)
class Visit:
    """A vehicle from its arrival to its departure, in s from the twin's start. `soc` is a fraction."""

    arrives_s: float
    leaves_s: float
    vehicle: VehicleType
    soc: float


def lag_s(chance: random.Random) -> float:
    """Return how long some vehicle takes to follow a pilot."""
    return chance.uniform(SHORTEST_LAG_S, LONGEST_LAG_S)


def homes(depot: Depot) -> dict[str, VehicleType]:
    """Return which of the depot's vehicles always returns to which EVSE: the first to the first, and so on."""
    pairs = zip(depot.places(), depot.vehicles, strict=False)
    return {evse.name: vehicle_type(depot, vehicle) for evse, vehicle in pairs}


def visits(evse: str, own: VehicleType | None, seed: int) -> Iterator[Visit]:
    """Yield an EVSE's visits in order; `own` is the vehicle that always comes here, if one does."""
    chance = random.Random(f"{seed}/{evse}")  # noqa: S311 - a simulation is to repeat itself
    own = None if own is None else replace(own, lag_s=lag_s(chance))
    at_s = 0.0 if chance.random() < _PLUGGED_AT_START else chance.uniform(0, _AWAY_H[1]) * _HOUR_S
    while True:
        leaves_s = at_s + chance.uniform(*_STAY_H) * _HOUR_S
        visitor = replace(chance.choice(_FLEET), lag_s=lag_s(chance))
        yield Visit(at_s, leaves_s, own or visitor, chance.uniform(*_SOC))
        at_s = leaves_s + chance.uniform(*_AWAY_H) * _HOUR_S
