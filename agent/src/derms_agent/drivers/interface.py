# SPDX-License-Identifier: Apache-2.0
"""What every driver and every bus offers, so that control need not know what is spoken beneath."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from enum import IntEnum
from typing import Any, Protocol

from derms_agent.model import Proof, Reading, Setpoint
from derms_agent.profiles.point import Table


class Priority(IntEnum):
    """Which job of a bus goes first; a running transaction is never broken off for it."""

    SHED = 0
    WATCHDOG = 1
    POLL = 2
    CONFIGURATION = 3


class Pending(Protocol):
    """A request that a bus has taken: await it for the reply, which raises BusError where none comes."""

    def __await__(self) -> Generator[Any, None, object]:
        """Wait for the reply."""
        ...

    def withdraw(self) -> None:
        """See to it that it is not sent any more, if it has not been: then it ends as `Withdrawn`, and at once."""
        ...


class RegisterBus(Protocol):
    """A bus that carries register transactions to its units, one job at a time, by priority.

    `deadline_s` counts from the call and covers waiting, sending and the reply. Every failure is a
    `derms_agent.drivers.errors.BusError`.
    """

    async def read(
        self, unit_id: int, table: Table, address: int, count: int, *, priority: Priority, deadline_s: float
    ) -> tuple[int, ...]:
        """Read `count` registers (bits for coils and discrete inputs) from a PDU address on."""
        ...

    async def write(
        self,
        unit_id: int,
        table: Table,
        address: int,
        values: Sequence[int],
        *,
        priority: Priority,
        deadline_s: float,
        function: int | None = None,
    ) -> None:
        """Write registers (or coils) from a PDU address on, once.

        `function` forces a function code (5, 6, 15, 16); None takes 6 or 5 for one value and 16 or 15 for more.
        """
        ...


class SetpointBus(RegisterBus, Protocol):
    """A bus for control: its writes can be handed over before any of them is answered, and withdrawn."""

    def submit_write(
        self,
        unit_id: int,
        table: Table,
        address: int,
        values: Sequence[int],
        *,
        priority: Priority,
        deadline_s: float,
        function: int | None = None,
    ) -> Pending:
        """Hand a write over without waiting for anything, so that many leave one right after the other."""
        ...


class Driver(Protocol):
    """One device, whatever it speaks."""

    async def run(self, publish: Callable[[Reading], None]) -> None:
        """Keep the device's image fresh and its watchdog fed until cancelled; publish each reading."""
        ...

    async def apply(self, setpoint: Setpoint) -> Proof:
        """Write a setpoint at shed priority and say what became of it."""
        ...
