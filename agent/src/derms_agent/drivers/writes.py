# SPDX-License-Identifier: Apache-2.0
"""Which request writes a value: exactly its own registers, all of them at once. Pure.

A value of several registers goes out whole in one request of function 16, so that no device ever holds half of a new
value and half of an old one; what would need two requests is refused. A register that the profile forbids is refused
here too, below every caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from derms_agent.drivers.reads import Span
from derms_agent.profiles.point import Table
from derms_agent.profiles.profile import Profile

WRITE_SINGLE = {5, 6}
REGISTER_FUNCTIONS = {6, 16}
COIL_FUNCTIONS = {5, 15}


class Forbidden(ValueError):
    """A write that no request may make: to registers that are never written, or in a way that the device refuses."""


@dataclass(frozen=True, slots=True)
class Write:
    """One write request. `function` is what the device demands; None leaves 6 or 16 (5 or 15) to the bus."""

    name: str
    table: Table
    address: int
    words: tuple[int, ...]
    function: int | None = None


def plan_write(span: Span, words: Sequence[int], profile: Profile) -> Write:
    """Return the one request that writes a span's words. Raises `Forbidden`."""
    wire = profile.wire
    if span.table not in (Table.HOLDING, Table.COIL):
        raise Forbidden(f"{span.name}: found the table {span.table.value}, expected holding or coil")
    if len(words) != span.length:
        raise Forbidden(f"{span.name}: found {len(words)} words, expected {span.length}: a value is written whole")
    if len(words) > wire.max_write:
        raise Forbidden(f"{span.name}: found {len(words)} registers, expected at most {wire.max_write} in one write")
    if span.table is Table.HOLDING:
        for address in range(span.address, span.end):
            if address in profile.never_write:
                raise Forbidden(f"{span.name}: register {address} is never to be written on a {profile.title}")
    functions = REGISTER_FUNCTIONS if span.table is Table.HOLDING else COIL_FUNCTIONS
    function = wire.write_function if wire.write_function in functions else None
    if function in WRITE_SINGLE and len(words) > 1:
        raise Forbidden(
            f"{span.name}: found {len(words)} registers, expected one: "
            f"a {profile.title} takes function {function} only, and a value is written whole"
        )
    return Write(span.name, span.table, span.address, tuple(words), function)
