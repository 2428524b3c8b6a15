# SPDX-License-Identifier: Apache-2.0
"""What modules call: plain data in, plain data out, in one blocking call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import anyio

from derms_agent import depot as depots
from derms_agent import profiles as built_in
from derms_agent.depot.problem import Severity
from derms_agent.device_state.access import STATE_DIRECTORY, Access, open_buses
from derms_agent.device_state.calls import Unusable
from derms_agent.device_state.converge import NoSuchDevice, chosen, converge
from derms_agent.device_state.results import DeviceResult, in_brief, of_unknown
from derms_agent.drivers.bus_lock import Locked
from derms_agent.model import Bus, Depot, Device
from derms_agent.socket_client import SOCKET, NoService
from derms_agent.socket_protocol import ProtocolError

T = TypeVar("T")


def depot_of(document: Mapping[str, Any]) -> Depot:
    """Return the depot that a document declares. Raises Unusable."""
    texts = set(_texts(document))
    # Each profile takes its time to be read, so those that it does not name are left out; but for a mistake's hint.
    named = {name: built_in.load(name) for name in built_in.names() if name in texts}
    found, problems = depots.check(dict(document), named)
    if found is None:
        found, problems = depots.check(dict(document), built_in.load_all())
    if found is None:
        wrong = [str(problem) for problem in problems if problem.severity is Severity.ERROR]
        raise Unusable("depot: " + "; ".join(wrong))
    return found


def _texts(value: object) -> Iterator[str]:
    """Yield every text in a document, keys among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def settings(
    document: Mapping[str, Any],
    gateway: str,
    *,
    only: Iterable[str] = (),
    check: bool,
    deadline_s: float,
    blind: bool = False,
    socket: Path = SOCKET,
    state_directory: Path = STATE_DIRECTORY,
) -> list[dict[str, Any]]:
    """See to it that a gateway's devices hold their declared settings; return what became of each, in brief.

    Raises Unusable.
    """
    depot, devices = depot_and_devices(document, gateway, only, configured=True)
    if not devices:
        return []

    every = chosen(depot, gateway)
    names = {device.name for device in devices}
    beside = [device for device in every if device.name not in names and device.evses]

    async def converged(access: Access) -> list[DeviceResult]:
        return await converge(depot, devices, access, check=check, deadline_s=deadline_s, blind=blind, beside=beside)

    buses = {device.bus: depot.buses[device.bus] for device in every}
    try:
        done = with_buses(buses, converged, socket=socket, state_directory=state_directory)
    except Unasked as problem:
        done = [of_unknown(device.name, str(problem)) for device in devices]
    return [in_brief(result) for result in done]


def depot_and_devices(
    document: Mapping[str, Any], gateway: str, only: Iterable[str], *, configured: bool
) -> tuple[Depot, list[Device]]:
    """Return the depot that a document declares, and of a gateway's devices those chosen. Raises Unusable."""
    depot = depot_of(document)
    if gateway not in depot.gateways:
        raise Unusable(f"gateway: found {gateway}, expected one of {', '.join(depot.gateways)}")
    try:
        return depot, chosen(depot, gateway, only, configured=configured)
    except NoSuchDevice as problem:
        raise Unusable(f"only: {problem}") from problem


class Unasked(Exception):
    """The agent runs and cannot be spoken to, or somebody else has the buses; the text says why."""


def with_buses(
    buses: Mapping[str, Bus],
    work: Callable[[Access], Awaitable[T]],
    *,
    socket: Path = SOCKET,
    state_directory: Path = STATE_DIRECTORY,
) -> T:
    """Return what some work on buses returns. Raises Unasked."""

    async def opened() -> T:
        async with open_buses(buses, socket=socket, state_directory=state_directory) as access:
            return await work(access)

    try:
        return anyio.run(opened)
    except (NoService, ProtocolError, Locked) as problem:
        raise Unasked(str(problem)) from problem
