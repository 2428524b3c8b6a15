# SPDX-License-Identifier: Apache-2.0
"""A small depot whose twin answers on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from derms_agent import profiles
from derms_agent.device_state.access import Access, open_buses
from derms_agent.device_state.converge import chosen, converge
from derms_agent.device_state.results import DeviceResult
from derms_agent.device_state.run import depot_of
from derms_agent.model import Depot
from derms_agent.twin import Twin
from derms_agent.twin.rehearsal import Write

DOCUMENT: Mapping[str, Any] = {
    "plugin": "derms.edge.depot",
    "depot": "small",
    "site": {"limit_kva": 60},
    "gateways": {"gateway-1": {"address": "192.0.2.1"}, "gateway-2": {"address": "192.0.2.2"}},
    "circuits": {"main": {"voltage_v": 400, "rating_a": 130, "base_load_a": 10, "allocator": "gateway-1"}},
    "buses": {
        "line": {"gateway": "gateway-1", "transport": "rtu_over_tcp", "host": "192.0.2.20", "baud_rate": 115200},
        "front-[1:2]": {"gateway": "gateway-1", "transport": "tcp", "host": "192.0.2.[31:32]"},
        "back": {"gateway": "gateway-2", "transport": "tcp", "host": "192.0.2.41"},
    },
    "devices": {
        "yard-[1:4]": {
            "bus": "line",
            "unit_id": "1..4",
            "profile": "heidelberg_energy_control",
            "circuit": "main",
            "settings": {"failsafe_current": 6, "failsafe_timeout": 30},
            "evses": {"rating_a": 16},
        },
        "front-[1:2]": {
            "bus": "front-[1:2]",
            "unit_id": 255,
            "profile": "keba_p30",
            "circuit": "main",
            "settings": {"failsafe_current": 6, "failsafe_timeout": 30, "failsafe_persist": "kept"},
            "evses": {"rating_a": 16},
        },
        "back": {
            "bus": "back",
            "unit_id": 255,
            "profile": "keba_p30",
            "circuit": "main",
            "settings": {"failsafe_current": 6, "failsafe_timeout": 30},
            "evses": {"rating_a": 16},
        },
    },
}


@pytest.fixture
def document() -> Mapping[str, Any]:
    return DOCUMENT


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Field:
    """What the devices hold, and every write that came to one of them."""

    depot: Depot
    twin: Twin
    directory: Path

    def holds(self, device: str, **settings: Any) -> None:
        """Give a device settings by hand, as somebody with the vendor's tool does."""
        at, profile = self.depot.devices[device], profiles.load(self.depot.devices[device].profile)
        for name, value in settings.items():
            point = profile.points[name]
            self.twin.write(at.bus, at.unit_id, point.table, point.address, point.encode(value))
        self.twin.writes.clear()

    def writes(self) -> list[Write]:
        return list(self.twin.writes)

    def opened(self) -> AbstractAsyncContextManager[Access]:
        return open_buses(self.depot.buses, socket=self.directory / "none.sock", state_directory=self.directory)

    async def run(self, *only: str, check: bool = False, blind: bool = False, **more: Any) -> dict[str, DeviceResult]:
        """Converge gateway-1's devices, or some of them."""
        async with self.opened() as access:
            devices = chosen(self.depot, "gateway-1", only)
            found = await converge(self.depot, devices, access, check=check, blind=blind, **more)
        return {result.name: result for result in found}


Played = Callable[..., AbstractAsyncContextManager[Field]]


@pytest.fixture
def played(tmp_path: Path) -> Played:
    """Serve the twin of the small depot, whose parts may be other ones."""

    @asynccontextmanager
    async def serve(**parts: Any) -> AsyncIterator[Field]:
        depot = depot_of({**DOCUMENT, **parts})
        async with Twin(depot) as twin:
            addresses = await twin.serve(lambda _host, _port: ("127.0.0.1", 0))
            buses = {
                name: replace(bus, host=addresses[name][0], port=addresses[name][1])
                for name, bus in depot.buses.items()
            }
            yield Field(replace(depot, buses=buses), twin, tmp_path)

    return serve
