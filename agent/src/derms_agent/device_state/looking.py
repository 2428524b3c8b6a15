# SPDX-License-Identifier: Apache-2.0
"""What modules that only read call, as `run` is what those call that write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from derms_agent.depot.plain import depot_document
from derms_agent.depot.ranges import BadRange
from derms_agent.device_state import gather
from derms_agent.device_state import scan as scans
from derms_agent.device_state.access import STATE_DIRECTORY, Access
from derms_agent.device_state.adopted import adopted, entry
from derms_agent.device_state.calls import Unusable
from derms_agent.device_state.results import Status
from derms_agent.device_state.run import Unasked, depot_and_devices, with_buses
from derms_agent.socket_client import SOCKET


def info(
    document: Mapping[str, Any],
    gateway: str,
    *,
    only: Iterable[str] = (),
    deadline_s: float,
    socket: Path = SOCKET,
    state_directory: Path = STATE_DIRECTORY,
) -> dict[str, Any]:
    """Read what a gateway's devices are and hold: `devices`, and `gathered` as a depot file's text. Raises Unusable."""
    depot, devices = depot_and_devices(document, gateway, only, configured=False)

    async def gathered(access: Access) -> list[gather.Gathered]:
        return await gather.gather(depot, devices, access, deadline_s=deadline_s)

    buses = {device.bus: depot.buses[device.bus] for device in devices}
    try:
        found = with_buses(buses, gathered, socket=socket, state_directory=state_directory)
    except Unasked as problem:
        found = [gather.unknown(device, str(problem)) for device in devices]
    return {"devices": [gather.plain(one) for one in found], "gathered": gather.text(depot, found)}


def scan(
    document: Mapping[str, Any],
    gateway: str,
    *,
    unit_ids: Iterable[str] = (),
    circuit: str | None = None,
    rating_a: float | None = None,
    deadline_s: float,
    socket: Path = SOCKET,
    state_directory: Path = STATE_DIRECTORY,
) -> dict[str, Any]:
    """Read what answers on a gateway's buses: `buses`, `units`, and `gathered` as a depot file. Raises Unusable.

    `circuit` and `rating_a` (A per conductor) stand for what no device shows.
    """
    depot, _ = depot_and_devices(document, gateway, (), configured=False)
    if circuit is not None and circuit not in depot.circuits:
        raise Unusable(f"circuit: found {circuit}, expected one of {', '.join(depot.circuits) or 'none'}")
    given = tuple(unit_ids)
    buses = {name: bus for name, bus in depot.buses.items() if bus.gateway == gateway}
    try:
        to_try = {name: scans.units_to_try(bus, given) for name, bus in buses.items()}
    except BadRange as problem:
        raise Unusable(f"unit_ids: expected {problem}") from problem

    async def scanned(access: Access) -> list[scans.Scanned]:
        return await scans.scan(depot, access, to_try, deadline_s=deadline_s)

    try:
        found = with_buses(buses, scanned, socket=socket, state_directory=state_directory)
    except Unasked as problem:
        found = [scans.Scanned(name, Status.UNKNOWN, str(problem)) for name in buses]
    entries = [entry(unit, depot, circuit, rating_a) for bus in found for unit in bus.units]
    return {
        "buses": [
            {"name": bus.bus, "status": bus.status.value, "detail": bus.detail, "units": len(bus.units)}
            for bus in found
        ],
        "units": entries,
        "gathered": adopted(depot_document(depot), entries).text,
    }
