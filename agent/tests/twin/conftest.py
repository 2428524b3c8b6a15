# SPDX-License-Identifier: Apache-2.0
"""Small depots by hand, and a client that knows bytes only."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import pytest

from derms_agent import profiles
from derms_agent.model import (
    Bus,
    Circuit,
    Connection,
    Depot,
    Device,
    DeviceKind,
    Evse,
    Measures,
    Meter,
    PerPhase,
    Phase,
    Site,
    Transport,
    Value,
)

THREE = (Phase.L1, Phase.L2, Phase.L3)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class MakeDepot(Protocol):
    """Devices `device-1`, `device-2`, … with these profiles; each on a bus of its own, or all on the bus `line`."""

    def __call__(
        self,
        *device_profiles: str,
        line: Bus | None = None,
        settings: Mapping[str, Value] | None = None,
        base_load_a: PerPhase = (0.0, 0.0, 0.0),
        phases: Sequence[tuple[Phase, ...]] = (),
        connection: Connection = Connection.WYE,
        rating_a: float = 32.0,
        cable_a: float | None = None,
    ) -> Depot: ...


@pytest.fixture
def make_depot() -> MakeDepot:
    def make(
        *device_profiles: str,
        line: Bus | None = None,
        settings: Mapping[str, Value] | None = None,
        base_load_a: PerPhase = (0.0, 0.0, 0.0),
        phases: Sequence[tuple[Phase, ...]] = (),
        connection: Connection = Connection.WYE,
        rating_a: float = 32.0,
        cable_a: float | None = None,
    ) -> Depot:
        buses: dict[str, Bus] = {}
        devices: dict[str, Device] = {}
        meters: dict[str, Meter] = {}
        for number, name in enumerate(device_profiles, start=1):
            bus = line or Bus(
                name=f"bus-{number}", gateway="gateway-1", transport=Transport.TCP, host=f"203.0.113.{number}"
            )
            buses[bus.name] = bus
            kind = DeviceKind.METER if name not in profiles.names() else profiles.load(name).kind
            device = f"device-{number}"
            evse = Evse(
                name=device,
                device=device,
                connector=1,
                circuit="main",
                phases=phases[number - 1] if phases else THREE,
                rating_a=rating_a,
                cable_a=cable_a,
            )
            devices[device] = Device(
                name=device,
                kind=kind,
                bus=bus.name,
                unit_id=number if line else 1,
                profile=name,
                settings=settings or {},
                evses=(evse,) if kind is DeviceKind.CHARGER else (),
                circuit="main",
            )
            if kind is DeviceKind.METER:
                meters[device] = Meter(name=device, device=device, measures=Measures.CIRCUIT, circuit="main")
        main = Circuit(
            name="main",
            parent=None,
            connection=connection,
            voltage_v=400,
            rating_a=(250, 250, 250),
            base_load_a=base_load_a,
        )
        return Depot(
            name="small",
            region=None,
            utility=None,
            site=Site(limit_va=160_000),
            gateways={},
            buses=buses,
            devices=devices,
            circuits={"main": main},
            meters=meters,
        )

    return make


Ask = Callable[[tuple[str, int], str], Awaitable[str]]


@pytest.fixture
def ask() -> Ask:
    """Send bytes (in hex) on a new connection; return, in hex, what comes until 0.2 s are silent or it is closed."""

    async def ask_once(address: tuple[str, int], request: str) -> str:
        reader, writer = await asyncio.open_connection(*address)
        got = bytearray()
        closed = False
        try:
            writer.write(bytes.fromhex(request))
            while chunk := await asyncio.wait_for(reader.read(512), 0.2):
                got += chunk
            closed = True
        except ConnectionResetError:
            closed = True
        except asyncio.TimeoutError:
            pass
        finally:
            writer.close()
        return (got.hex(" ") + (" closed" if closed else "")).strip()

    return ask_once
