# SPDX-License-Identifier: Apache-2.0
"""What every simulated device offers to the wire, and registers laid out by a profile's points."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from derms_agent.model import Device
from derms_agent.profiles.point import BIT_TABLES, Access, Point, PointType, Table
from derms_agent.profiles.profile import Wire
from derms_agent.twin.pdu import Code, Refusal
from derms_agent.twin.words import from_words


class Unit(Protocol):
    """A simulated device behind its unit id. `now_s` counts from the twin's start."""

    device: Device

    def read(self, table: Table, address: int, count: int) -> list[int]:
        """Return registers (bits). Raises `Refusal`."""
        ...

    def write(self, table: Table, address: int, values: Sequence[int], function: int, now_s: float) -> None:
        """Write registers (bits). Raises `Refusal`, having written nothing."""
        ...

    def requested(self, now_s: float) -> None:
        """Take note that somebody spoke to the device."""
        ...

    def boot(self, now_s: float) -> None:
        """Start anew: what is not kept over a power loss is gone."""
        ...

    def hold(self, held: bool) -> None:
        """Stop, or resume, bringing the registers up to date."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """A point at one connector, from the PDU address `start` on. `of`: the point whose read-back this is, or itself."""

    point: Point
    connector: int
    start: int
    of: Point


_Spread: TypeAlias = "tuple[Cell, list[tuple[int, int]]]"
"""A cell, and which of a reply's registers show which of its words."""


class RegisterMap:
    """Where a device's points lie, and which requests it takes for them."""

    def __init__(self, points: Iterable[Point], connectors: Sequence[int], wire: Wire) -> None:
        self._wire = wire
        self._readable: dict[Table, dict[int, list[Cell]]] = {table: {} for table in Table}
        self._writable: dict[Table, dict[int, list[Cell]]] = {table: {} for table in Table}
        self._spreads: dict[tuple[Table, int, int], list[_Spread]] = {}
        for point in points:
            for connector in connectors if point.stride else (1,):
                for shown in (point, point.readback):
                    if shown is not None:
                        self._place(Cell(shown, connector, shown.address_of(connector), point))

    def _place(self, cell: Cell) -> None:
        readable = cell.point.access is not Access.WRITE
        writable = cell.point.access is not Access.READ and cell.point is cell.of
        for address in range(cell.start, cell.start + cell.point.length):
            if readable:
                self._readable[cell.point.table].setdefault(address, []).append(cell)
            if writable:
                self._writable[cell.point.table].setdefault(address, []).append(cell)

    def cells(self) -> set[Cell]:
        """Return all that can be read."""
        return {cell for table in self._readable.values() for cells in table.values() for cell in cells}

    def read(self, table: Table, address: int, count: int, words_of: Callable[[Cell], Sequence[int]]) -> list[int]:
        """Return registers; those between points read as 0 where the profile lets requests pass through them.

        Raises `Refusal`.
        """
        spreads = self._spreads.get((table, address, count))
        if spreads is None:  # the same requests come again and again
            spreads = self._spreads[table, address, count] = self._spread(table, address, count)
        result = [0] * count
        for cell, places in spreads:
            words = words_of(cell)
            for index, place in places:
                result[index] |= words[place]
        return result

    def _spread(self, table: Table, address: int, count: int) -> list[_Spread]:
        """Return what a request reads: the cells, each with where its words come to lie. Raises `Refusal`."""
        if table not in BIT_TABLES and count > self._wire.max_read:
            raise Refusal(Code.ILLEGAL_VALUE)
        at = self._readable[table]
        if address not in at or address + count - 1 not in at:
            raise Refusal(Code.ILLEGAL_ADDRESS)
        found: dict[Cell, list[tuple[int, int]]] = {}
        gap = 0
        for index in range(count):
            cells = at.get(address + index, ())
            gap = 0 if cells else gap + 1
            if gap > self._wire.max_gap:
                raise Refusal(Code.ILLEGAL_ADDRESS)
            for cell in cells:
                found.setdefault(cell, []).append((index, address + index - cell.start))
        return list(found.items())

    def targets(
        self, table: Table, address: int, values: Sequence[int], function: int, stored: Callable[[Cell], Sequence[int]]
    ) -> list[tuple[Cell, tuple[int, ...]]]:
        """Return which points a write sets, and to what words. Raises `Refusal`."""
        if self._wire.write_function is not None and function != self._wire.write_function:
            raise Refusal(Code.ILLEGAL_FUNCTION)
        if len(values) > self._wire.max_write:
            raise Refusal(Code.ILLEGAL_VALUE)
        cells: dict[Cell, None] = {}
        for at in range(address, address + len(values)):
            here = self._writable[table].get(at)
            if not here:
                raise Refusal(Code.ILLEGAL_ADDRESS)
            cells.update(dict.fromkeys(here))
        return [(cell, self._patched(cell, address, values, stored)) for cell in cells]

    def _patched(
        self, cell: Cell, address: int, values: Sequence[int], stored: Callable[[Cell], Sequence[int]]
    ) -> tuple[int, ...]:
        words: list[int] = []
        for offset in range(cell.point.length):
            index = cell.start + offset - address
            if 0 <= index < len(values):
                words.append(values[index])
            elif self._wire.whole_writes:
                raise Refusal(Code.ILLEGAL_VALUE)
            else:
                words.append(stored(cell)[offset])
        _check_range(cell.point, words)
        return tuple(words)


def _check_range(point: Point, words: Sequence[int]) -> None:
    if point.table in BIT_TABLES or point.type is PointType.STRING:
        return
    value = float(from_words(point, words))
    if point.or_zero and value == 0.0:
        return
    low = -math.inf if point.minimum is None else point.minimum
    high = math.inf if point.maximum is None else point.maximum
    tolerance = abs(point.scale) / 2
    if not low - tolerance <= value <= high + tolerance:
        raise Refusal(Code.ILLEGAL_VALUE)
