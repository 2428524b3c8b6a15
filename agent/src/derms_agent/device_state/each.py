# SPDX-License-Identifier: Apache-2.0
"""Many devices asked: buses at once, the devices of one bus one after the other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import anyio

from derms_agent.drivers.modbus_device import ModbusDevice

BUSES_AT_ONCE = 400

T = TypeVar("T")


async def each(drivers: Mapping[str, ModbusDevice], ask: Callable[[ModbusDevice], Awaitable[T]]) -> dict[str, T]:
    """Return what asking each device gives, by the device's name."""
    by_bus: dict[str, list[ModbusDevice]] = {}
    for driver in drivers.values():
        by_bus.setdefault(driver.device.bus, []).append(driver)
    done: dict[str, T] = {}
    room = anyio.CapacityLimiter(BUSES_AT_ONCE)

    async def of_one_bus(waiting: list[ModbusDevice]) -> None:
        async with room:
            for driver in waiting:
                done[driver.device.name] = await ask(driver)

    async with anyio.create_task_group() as tasks:
        for waiting in by_bus.values():
            tasks.start_soon(of_one_bus, waiting)
    return done
