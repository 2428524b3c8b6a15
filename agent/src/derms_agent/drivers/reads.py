# SPDX-License-Identifier: Apache-2.0
"""Which requests read which values: adjoining spans of registers joined into blocks, as a device's wire allows.

Pure. A value's registers are never split over two requests, for it could change between them. Registers that nobody
asked for are read through only where the profile says that the device minds no such gap: other devices answer with
exception 2, or the read itself does something.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from derms_agent.profiles.point import Table
from derms_agent.profiles.profile import Wire


@dataclass(frozen=True, slots=True)
class Span:
    """Registers (bits of coils and discrete inputs) that hold one value, from a PDU address on."""

    name: str
    table: Table
    address: int
    length: int

    @property
    def end(self) -> int:
        """The address after the last."""
        return self.address + self.length

    def overlaps(self, other: Span) -> bool:
        """Whether two spans have registers in common."""
        return self.table is other.table and self.address < other.end and other.address < self.end


@dataclass(frozen=True, slots=True)
class Block:
    """One read request, and the spans whose words its reply holds."""

    table: Table
    address: int
    count: int
    spans: tuple[Span, ...]

    def split(self, words: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Return each span's words, by its name, out of the `count` words of a reply."""
        return {span.name: tuple(words[span.address - self.address : span.end - self.address]) for span in self.spans}

    def apart(self) -> tuple[Block, ...]:
        """Return a block for each span, for a device that does not answer them together."""
        return tuple(Block(span.table, span.address, span.length, (span,)) for span in self.spans)


def plan_reads(spans: Iterable[Span], wire: Wire) -> tuple[Block, ...]:
    """Return the fewest blocks that cover the spans, in the order of table and address.

    Spans join into a block of at most `wire.max_read` registers, through at most `wire.max_gap` others between two of
    them. Raises ValueError for a span that no request can hold.
    """
    blocks: list[Block] = []
    current: list[Span] = []
    end = 0
    for span in sorted(set(spans), key=lambda span: (span.table.value, span.address, -span.length, span.name)):
        if not 1 <= span.length <= wire.max_read:
            raise ValueError(f"{span.name}: found {span.length} registers, expected 1 to {wire.max_read} in one read")
        if current and _joins(current[0], end, span, wire):
            current.append(span)
            end = max(end, span.end)
            continue
        if current:
            blocks.append(_block(current, end))
        current, end = [span], span.end
    if current:
        blocks.append(_block(current, end))
    return tuple(blocks)


def _joins(first: Span, end: int, span: Span, wire: Wire) -> bool:
    if span.table is not first.table or max(end, span.end) - first.address > wire.max_read:
        return False
    return span.address - end <= wire.max_gap


def _block(spans: list[Span], end: int) -> Block:
    first = spans[0]
    return Block(first.table, first.address, end - first.address, tuple(spans))
