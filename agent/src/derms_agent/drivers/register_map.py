# SPDX-License-Identifier: Apache-2.0
"""Where a device's values lie, and how they are laid out there; one view of it for plain registers and for SunSpec.

Pure. A value's name is its point's, followed by what the EVSE's name adds to its device's: the limit of charger-021 is
`current_limit`, those of the two connectors of dc-1 are `power_limit/1` and `power_limit/2`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Protocol

from derms_agent.drivers.errors import BadReply
from derms_agent.drivers.reads import Block, Span, plan_reads
from derms_agent.drivers.writes import Write, plan_write
from derms_agent.model import Device, Evse, Value
from derms_agent.profiles.point import Point
from derms_agent.profiles.profile import Profile

Words = Mapping[str, Sequence[int]]
"""Words that were read, by the names of their spans."""

READBACK = " (read back)"
"""What a span's name adds to that of the value that is read back there."""

FLOAT_TOLERANCE = 1e-6
"""How far, relatively, two floats may lie apart and be the same value: a 32-bit float has 24 bits, 6e-8 of itself."""


class LayoutChanged(BadReply):
    """Values are no longer where they were found; they are to be found again before anything is believed."""


class RegisterMap(Protocol):
    """Where a device's values lie. Names that it does not know raise KeyError."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every value that can be read or written."""
        ...

    def readable(self, name: str) -> bool:
        """Whether it can be read, itself or by its readback."""
        ...

    def spans(self, name: str) -> tuple[Span, ...]:
        """Return what must be read for the value; the spans' words are what `value` takes."""
        ...

    def value(self, name: str, words: Words) -> Value | None:
        """Return the value; None where the device does not have it. Raises LayoutChanged."""
        ...

    def before_write(self, name: str) -> tuple[Span, ...]:
        """Return what must be read before it is written: the other bits of its registers, or its scale factor."""
        ...

    def plan(self, names: Iterable[str], *, writing: bool = False) -> tuple[Block, ...]:
        """Return the reads that fetch the `spans` of values, or their `before_write`."""
        ...

    def write(self, name: str, value: Value, words: Words) -> Write:
        """Return the request that writes a value. Raises OutOfRange, Forbidden and LayoutChanged."""
        ...

    def held(self, name: str, value: Value, words: Words) -> Value:
        """Return what reading will show once `value` is written: it in the device's resolution.

        Raises OutOfRange and LayoutChanged.
        """
        ...


class ModbusMap:
    """The points of a profile, for one device: each point once, or once for each of its EVSEs where they stride.

    Devices of one profile with the same connectors have the same map, and share it where many are opened at once: what
    reads a set of values, and what a value is in registers, is then worked out once.
    """

    def __init__(self, device: Device, profile: Profile) -> None:
        self._profile = profile
        self._points: dict[str, tuple[Point, int]] = {}
        for name, point in profile.points.items():
            if point.stride == 0 or not device.evses:
                self._points[name] = (point, 1)
                continue
            for evse in device.evses:
                self._points[name + suffix(device, evse)] = (point, evse.connector)
        self._spans = {name: (_shown_at(name, point, connector),) for name, (point, connector) in self._points.items()}
        self._reads = lru_cache(maxsize=64)(self._planned)
        self._write_of = lru_cache(maxsize=1024, typed=True)(self._laid)
        self._held_of = lru_cache(maxsize=1024, typed=True)(self._quantised)

    @property
    def names(self) -> tuple[str, ...]:
        """Every value that can be read or written."""
        return tuple(self._points)

    def readable(self, name: str) -> bool:
        """Whether it can be read, itself or by its readback."""
        point, _ = self._points[name]
        return point.readable or point.readback is not None

    def spans(self, name: str) -> tuple[Span, ...]:
        """Return the registers that its value is read from: its own, or those of its readback."""
        return self._spans[name]

    def value(self, name: str, words: Words) -> Value | None:
        """Return the value that lies in the words of `spans`."""
        point, _ = self._points[name]
        if point.readable or point.readback is None:
            return point.decode(words[name])
        return point.readback.decode(words[name + READBACK])

    def before_write(self, name: str) -> tuple[Span, ...]:
        """Return its own registers where it shares them with other values."""
        point, connector = self._points[name]
        return () if point.mask is None else (_span(name, point, connector),)

    def plan(self, names: Iterable[str], *, writing: bool = False) -> tuple[Block, ...]:
        """Return the reads that fetch the `spans` of values, or their `before_write`."""
        return self._reads(tuple(names), writing)

    def _planned(self, names: tuple[str, ...], writing: bool) -> tuple[Block, ...]:
        of = self.before_write if writing else self.spans
        return plan_reads((span for name in names for span in of(name)), self._profile.wire)

    def write(self, name: str, value: Value, words: Words) -> Write:
        """Return the request that writes it, its registers' other bits as they were."""
        point, _ = self._points[name]
        return self._write_of(name, value, None if point.mask is None else tuple(words[name]))

    def _laid(self, name: str, value: Value, words: tuple[int, ...] | None) -> Write:
        point, connector = self._points[name]
        if not point.writable:
            raise KeyError(name)
        laid = point.encode(value) if words is None else point.replace_bits(words, value)
        return plan_write(_span(name, point, connector), laid, self._profile)

    def held(self, name: str, value: Value, words: Words) -> Value:  # noqa: ARG002
        """Return the value in the resolution of the point, then of its readback."""
        return self._held_of(name, value)

    def _quantised(self, name: str, value: Value) -> Value:
        point, _ = self._points[name]
        held = point.quantise(value)
        return held if point.readback is None else point.readback.quantise(held)


def connectors(device: Device) -> tuple[tuple[str, int], ...]:
    """Return what of a device its map depends on, beside the profile."""
    return tuple((suffix(device, evse), evse.connector) for evse in device.evses)


def suffix(device: Device, evse: Evse) -> str:
    """Return what an EVSE's name, and those of its values, add to the device's: nothing, or "/2"."""
    return evse.name.removeprefix(device.name)


def stem(name: str) -> str:
    """Return the name of the point whose value has that name."""
    return name.partition("/")[0]


def same(first: Value | None, second: Value | None) -> bool:
    """Whether two values are one, as far as a 32-bit float can tell."""
    if isinstance(first, float) or isinstance(second, float):
        if isinstance(first, str | None) or isinstance(second, str | None):
            return False
        return math.isclose(first, second, rel_tol=FLOAT_TOLERANCE)
    return first == second


def _shown_at(name: str, point: Point, connector: int) -> Span:
    if point.readable or point.readback is None:
        return _span(name, point, connector)
    return _span(name + READBACK, point.readback, connector)


def _span(name: str, point: Point, connector: int) -> Span:
    return Span(name, point.table, point.address_of(connector), point.length)
