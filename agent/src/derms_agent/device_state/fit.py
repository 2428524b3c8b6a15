# SPDX-License-Identifier: Apache-2.0
"""Which profile a device that nobody declared has, by what it shows where each profile has its points. Pure.

A device that answers is no proof: many answer at any address, with zeros. So what a profile's points show is judged,
and a profile is taken only where most of it is there, some of it shows more than nothing, and no other comes near.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from derms_agent.drivers.sunspec import FoundMap, SunSpecMap
from derms_agent.model import Value
from derms_agent.profiles.point import Point
from derms_agent.profiles.profile import Profile

ENOUGH = 0.55
"""The least score of a profile that is taken. Zeros wherever it has points make 0.5."""
LEAD = 0.1
"""How far the best must be before the next."""
LEAST_SHOWN = 2
"""Points that must show a value of their own."""
EVIDENCE_SHOWN = 4

PLAUSIBLE: Mapping[str, tuple[float, float]] = {
    "V": (0, 1500),
    "A": (-3000, 3000),
    "W": (-5e6, 5e6),
    "var": (-5e6, 5e6),
    "VA": (0, 5e6),
    "Hz": (40, 70),
    "degC": (-50, 150),
    "percent": (0, 100),
    "Wh": (0, 1e12),
    "s": (0, 1e9),
}
"""What a value in a unit may be in a depot, ends included; 0 always."""
TO_NEUTRAL_V = (80.0, 330.0)
"""What a phase's voltage to neutral may be where there is one."""


class Shown(Enum):
    """What a point showed, and what that is worth."""

    VALUE = 1.0
    NOTHING = 0.5  # it answered with zeros, or with what stands for absent
    REFUSED = 0.0
    NONSENSE = -1.0


@dataclass(frozen=True, slots=True)
class Fit:
    """How well a profile fits, 0 to 1 or less than 0, and what speaks for it, in words."""

    profile: str
    score: float
    shown: int
    evidence: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether it may be the device's profile at all."""
        return self.score >= ENOUGH and self.shown >= LEAST_SHOWN


def judged(point: Point, value: Value | None, words: Sequence[int]) -> Shown:
    """Return what a point shows by its words and their value."""
    if isinstance(value, str) and value.startswith("unknown ") and point.states is not None:
        return Shown.NONSENSE
    if isinstance(value, str) and not (value.isascii() and value.isprintable()):
        return Shown.NONSENSE
    if value is None or not any(words):
        return Shown.NOTHING
    if isinstance(value, bool | str):
        return Shown.VALUE
    low, high = PLAUSIBLE.get(point.unit, (-math.inf, math.inf))
    if point.name.startswith("voltage_l"):
        low, high = TO_NEUTRAL_V
    return Shown.VALUE if low <= value <= high else Shown.NONSENSE


def fit(profile: Profile, found: Mapping[str, tuple[Value | None, Sequence[int]] | None]) -> Fit:
    """Return how well a profile of plain registers fits: each point with its value and words, None where refused."""
    shown = {
        name: Shown.REFUSED if seen is None else judged(profile.points[name], *seen) for name, seen in found.items()
    }
    score = math.fsum(one.value for one in shown.values()) / max(1, len(shown))
    values = [name for name, one in shown.items() if one is Shown.VALUE]
    evidence = [_evidence(profile.points[name], found[name]) for name in values[:EVIDENCE_SHOWN]]
    return Fit(profile.name, round(score, 3), len(values), tuple(evidence))


def _evidence(point: Point, seen: tuple[Value | None, Sequence[int]] | None) -> str:
    value = None if seen is None else seen[0]
    return f"{point.name} {f'{value:g}' if isinstance(value, float) else value} {point.unit}".rstrip()


def sunspec_fit(profile: Profile, found: FoundMap) -> Fit:
    """Return how well a SunSpec profile fits a device's models: by the points that control polls."""
    there = SunSpecMap(profile, found).names
    polled = [name for name in profile.poll if name in there]
    models = ", ".join(str(model.id) for model in found.models)
    return Fit(
        profile.name, round(len(polled) / max(1, len(profile.poll)), 3), len(polled), (f"SunSpec models {models}",)
    )


def best(fits: Iterable[Fit]) -> tuple[Fit | None, tuple[Fit, ...]]:
    """Return the one that fits beyond doubt, or None, and all that may, best first."""
    ordered = sorted(fits, key=lambda one: (-one.score, one.profile))
    possible = tuple(one for one in ordered if one.fits)
    if not possible:
        return None, ()
    following = ordered[1].score if len(ordered) > 1 else -math.inf
    near = [one for one in ordered if possible[0].score - one.score < LEAD]
    return (possible[0] if possible[0].score - following >= LEAD else None), tuple(dict.fromkeys((*possible, *near)))
