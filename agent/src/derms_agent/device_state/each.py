# SPDX-License-Identifier: Apache-2.0
"""Many devices asked: buses at once, the devices of one bus one after the other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import anyio

BUSES_AT_ONCE = 400

S = TypeVar("S")
T = TypeVar("T")


async def each(asked: Mapping[str, S], bus_of: Callable[[S], str], ask: Callable[[S], Awaitable[T]]) -> dict[str, T]:
    """Return what asking each device gives, by the device's name."""
    by_bus: dict[str, list[str]] = {}
    for name, one in asked.items():
        by_bus.setdefault(bus_of(one), []).append(name)
    done: dict[str, T] = {}
    room = anyio.CapacityLimiter(BUSES_AT_ONCE)

    async def of_one_bus(waiting: list[str]) -> None:
        async with room:
            for name in waiting:
                done[name] = await ask(asked[name])

    async with anyio.create_task_group() as tasks:
        for waiting in by_bus.values():
            tasks.start_soon(of_one_bus, waiting)
    return done
