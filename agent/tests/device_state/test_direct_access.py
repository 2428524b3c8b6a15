# SPDX-License-Identifier: Apache-2.0
"""Direct access to buses, while no agent runs."""

from __future__ import annotations

from pathlib import Path

import anyio
import anyio.abc
import pytest

from derms_agent.device_state.access import open_buses
from derms_agent.drivers.errors import BusError
from derms_agent.drivers.interface import Priority
from derms_agent.model import Bus, Transport
from derms_agent.profiles.point import Table


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_only_buses_that_are_asked_are_connected_to(tmp_path: Path) -> None:
    connected: list[str] = []
    async with anyio.create_task_group() as tasks:
        buses: dict[str, Bus] = {}
        for name in ("asked", "left-alone"):

            async def took(stream: anyio.abc.SocketStream, name: str = name) -> None:
                connected.append(name)
                await stream.aclose()

            listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
            port = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - it is no Django
            tasks.start_soon(listener.serve, took)
            buses[name] = Bus(name=name, gateway="g", transport=Transport.TCP, host="127.0.0.1", port=port)
        async with open_buses(buses, socket=tmp_path / "none.sock", state_directory=tmp_path) as access:
            assert sorted(access.buses) == ["asked", "left-alone"]
            with pytest.raises(BusError):
                await access.buses["asked"].read(
                    1, Table.HOLDING, 0, 1, priority=Priority.CONFIGURATION, deadline_s=2.0
                )
        tasks.cancel_scope.cancel()
    assert set(connected) == {"asked"}
