# SPDX-License-Identifier: Apache-2.0
"""What the batteries that are seen here have been through: `control.cycles` for each of them, kept on disk. Pure.

A vehicle is counted under its own name where that was told, else under its EVSE's, as if it were always the same one
that comes there; stationary storage under its device's. What a charger shows of a vehicle stands before what is told:
the two differ by some percent, and a battery that seems to go to and fro between them has not moved. A state of charge
of nothing is what chargers show before they know it, and no battery's that can still be driven.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from derms_agent.control import cycles
from derms_agent.control.cycles import Counted, Report

MOST = 1000
"""So many are kept; of more, those that were seen longest ago are forgotten: names are what others say they are."""
_FULL = 1000  # steps of 0.1 %


class Kind(str, Enum):
    """Whose name a battery is counted under."""

    VEHICLE = "vehicle"
    EVSE = "evse"
    STORAGE = "storage"


class Battery(NamedTuple):
    """What one battery is known by."""

    kind: Kind
    name: str


@dataclass(slots=True)
class Batteries:
    """The counts, those seen last at the end. `changed`: they are not on the disk as they are."""

    counted: dict[Battery, Counted] = field(default_factory=dict)
    changed: bool = False
    _read_at_s: dict[Battery, float] = field(default_factory=dict)
    _reports: dict[Battery, tuple[Counted, Report]] = field(default_factory=dict)

    def read(self, battery: Battery, soc_percent: float, read_at_s: float) -> None:
        """Count a reading, if it is newer than the last one of this battery."""
        if soc_percent <= 0 or read_at_s <= self._read_at_s.get(battery, -math.inf):
            return
        known = self.counted.pop(battery, Counted())
        found = cycles.count(known, soc_percent)
        self.counted[battery], self._read_at_s[battery] = found, read_at_s
        self.changed = self.changed or found is not known
        while len(self.counted) > MOST:
            oldest = next(iter(self.counted))
            del self.counted[oldest]
            self._read_at_s.pop(oldest, None)
            self._reports.pop(oldest, None)

    def reports(self) -> Iterator[tuple[Battery, Report]]:
        """Return each battery with its cycles, by kind and name; worked out only where it has moved."""
        for battery, counted in sorted(self.counted.items(), key=lambda one: one[0]):
            known = self._reports.get(battery)
            if known is None or known[0] is not counted:
                known = self._reports[battery] = counted, cycles.report(counted)
            yield battery, known[1]


def to_json(counted: Mapping[Battery, Counted]) -> dict[str, Any]:
    """Return the counts as plain JSON."""
    return {
        "batteries": [
            {
                "kind": battery.kind.value,
                "name": battery.name,
                "reversals": list(one.reversals),
                "full": [list(each) for each in one.full.items()],
                "half": [list(each) for each in one.half.items()],
            }
            for battery, one in counted.items()
        ]
    }


def from_json(stored: Mapping[str, Any]) -> dict[Battery, Counted]:
    """Return what `to_json` gave. Raises ValueError, TypeError, KeyError or AttributeError for anything else."""
    return {
        Battery(Kind(one["kind"]), str(one["name"])): Counted(
            tuple(map(_step, one["reversals"])), _histogram(one["full"]), _histogram(one["half"])
        )
        for one in stored["batteries"]
    }


def _step(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _FULL:
        raise ValueError(f"found {value!r}, expected a whole number from 0 to {_FULL}")
    return value


def _histogram(pairs: list[tuple[object, object]]) -> dict[int, int]:
    found = {}
    for depth, number in pairs:
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise ValueError(f"found {number!r}, expected a number of cycles")
        found[_step(depth)] = number
    return found
