# SPDX-License-Identifier: Apache-2.0
"""What one declared setting is: its point in a SunSpec model, its unit, what it may be, and how near it must be held.

Pure. A device holds a number in steps of its own scale factor. The step taken is the nearest one; of a power it is the
nearest one that is not larger, for a limit may not grow by rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from itertools import pairwise
from typing import Any, TypeAlias

Points: TypeAlias = "tuple[tuple[float, float], ...]"
"""A curve, point by point: what it depends on, and what is to be there."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A unit, and how far what a device holds may be from what was asked: in that unit, or as a share of it."""

    unit: str
    tolerance: float
    relative: bool = False
    never_more: bool = False

    def near(self, asked: float, held: float) -> bool:
        """Whether a device that holds one value does what was asked with the other."""
        allowed = self.tolerance * abs(asked) if self.relative else self.tolerance
        return abs(held - asked) <= allowed * (1 + 1e-9) + 1e-12


VOLTAGE = Quantity("percent of nominal voltage", 0.25)
FREQUENCY = Quantity("Hz", 0.01)
DEADBAND = Quantity("Hz", 0.001)
DROOP = Quantity("per unit", 0.001)
TIME = Quantity("s", 0.01)
SHARE = Quantity("percent", 0.5)
POWER_FACTOR = Quantity("", 0.001)
POWER = Quantity("W", 0.005, relative=True, never_more=True)
REACTIVE_POWER = Quantity("var", 0.005, relative=True, never_more=True)
APPARENT_POWER = Quantity("VA", 0.005, relative=True, never_more=True)
VOLTS = Quantity("V", 0.005, relative=True)
AMPERES = Quantity("A", 0.005, relative=True, never_more=True)


@dataclass(frozen=True, slots=True)
class Number:
    """A number of a model's point. `rating` is the point beside it that it may not exceed."""

    path: str
    quantity: Quantity
    low: float
    high: float
    rating: str | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the names that a model's point has for its values."""

    path: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Switch:
    """What enables a function; it is written after everything else of the function."""

    path: str


class Shape(Enum):
    """How the points of a curve may follow one another.

    Of trip curves every point must allow no longer a time than one that is nearer to nominal, listed from either end;
    vertical edges are theirs alone.
    """

    FALLING = "the first number not falling, the second not rising"
    ONE_WAY = "the first number not falling, the second all not rising or all not falling"
    LOW_TRIP = "a time that is no longer the lower the first number is, in order from either end"
    HIGH_TRIP = "a time that is no longer the higher the first number is, in order from either end"

    def fits(self, points: Points) -> bool:
        """Whether the points follow one another so."""
        x, y = [point[0] for point in points], [point[1] for point in points]
        if self is Shape.LOW_TRIP:
            return (_rises(x) and _rises(y)) or (_falls(x) and _falls(y))
        if self is Shape.HIGH_TRIP:
            return (_rises(x) and _falls(y)) or (_falls(x) and _rises(y))
        steps = any(a[0] == b[0] and a[1] != b[1] for a, b in pairwise(points))
        return _rises(x) and not steps and (_falls(y) or (self is Shape.ONE_WAY and _rises(y)))


def _rises(values: Sequence[float]) -> bool:
    return all(a <= b for a, b in pairwise(values))


def _falls(values: Sequence[float]) -> bool:
    return all(a >= b for a, b in pairwise(values))


@dataclass(frozen=True, slots=True)
class Axis:
    """One of the two numbers of each point of a curve, by the name of its point."""

    point: str
    quantity: Quantity
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Curve:
    """A curve: `prefix` is the group within the set that has `ActPt` and the points `Pt[n]`."""

    prefix: str
    x: Axis
    y: Axis
    shape: Shape
    fewest: int

    @property
    def count(self) -> str:
        """The path of how many points are in use."""
        return f"{self.prefix}ActPt"

    def paths(self, number: int) -> tuple[str, str]:
        """Return the paths of a point's two numbers; the first point has number 1."""
        return f"{self.prefix}Pt[{number}].{self.x.point}", f"{self.prefix}Pt[{number}].{self.y.point}"


Setting: TypeAlias = "Number | Choice | Switch | Curve"


def declared(setting: Setting) -> Any:
    """Return a field of a function's dataclass: absent, and so not asked for, unless it is given."""
    return field(default=None, metadata={"setting": setting})


def settings_of(function: Any) -> dict[str, Setting]:
    """Return the settings of a function, or of its class, by name and in their order."""
    return {each.name: each.metadata["setting"] for each in fields(function)}
