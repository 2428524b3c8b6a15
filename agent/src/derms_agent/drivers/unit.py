# SPDX-License-Identifier: Apache-2.0
"""One unit on a bus, asked for values by name rather than for registers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import anyio

from derms_agent.drivers.errors import BusError
from derms_agent.drivers.interface import Priority, RegisterBus
from derms_agent.drivers.reads import Block
from derms_agent.drivers.register_map import RegisterMap
from derms_agent.drivers.writes import Write
from derms_agent.model import Value
from derms_agent.profiles.profile import Profile

Clock = Callable[[], float]
"""A monotonic clock, in s."""


@dataclass(frozen=True, slots=True)
class Found:
    """What reading back found: the value, None where the device has none, and the failure where nothing was read."""

    value: Value | None
    failure: BusError | None = None


class Unit:
    """One unit on a bus, asked only as its profile's wire allows. Every failure is a `BusError`."""

    def __init__(self, bus: RegisterBus, unit_id: int, profile: Profile, clock: Clock = time.monotonic) -> None:
        self.profile = profile
        self.clock = clock
        self._bus = bus
        self._id = unit_id

    async def read(self, block: Block, *, priority: Priority, deadline_s: float) -> dict[str, tuple[int, ...]]:
        """Read a block and return each span's words."""
        return block.split(await self.words(block, priority=priority, deadline_s=deadline_s))

    async def words(self, block: Block, *, priority: Priority, deadline_s: float) -> Sequence[int]:
        """Read a block and return its words."""
        return await self._bus.read(
            self._id, block.table, block.address, block.count, priority=priority, deadline_s=deadline_s
        )

    async def read_all(
        self, blocks: Iterable[Block], *, priority: Priority, deadline_s: float
    ) -> dict[str, tuple[int, ...]]:
        """Read blocks, one after the other, and return each span's words; `deadline_s` is for all of them."""
        until = self.clock() + deadline_s
        words: dict[str, tuple[int, ...]] = {}
        for block in blocks:
            words |= await self.read(block, priority=priority, deadline_s=max(0.0, until - self.clock()))
        return words

    async def write(self, write: Write, *, priority: Priority, deadline_s: float) -> None:
        """Make a write request, once."""
        await self._bus.write(
            self._id,
            write.table,
            write.address,
            write.words,
            priority=priority,
            deadline_s=deadline_s,
            function=write.function,
        )

    async def read_until(
        self,
        registers: RegisterMap,
        name: str,
        satisfied: Callable[[Value | None], bool],
        *,
        priority: Priority,
        within_s: float,
        every_s: float,
    ) -> Found:
        """Read a value until it satisfies or the time is up, and return what was found last.

        At least one read is tried. A read that fails is tried again: reading changes nothing.
        """
        until = self.clock() + within_s
        while True:
            left_s = max(every_s, until - self.clock())
            try:
                words = await self.read_all(registers.plan([name]), priority=priority, deadline_s=left_s)
                found = Found(registers.value(name, words))
            except BusError as failure:
                found = Found(None, failure)
            if (found.failure is None and satisfied(found.value)) or self.clock() + every_s >= until:
                return found
            await anyio.sleep(every_s)
