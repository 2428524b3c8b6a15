# SPDX-License-Identifier: Apache-2.0
"""What the module der_settings calls: plain data in, plain data out, in one blocking call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import anyio

from derms_agent import profiles as built_in
from derms_agent.depot.der_loads import too_much
from derms_agent.device_state.access import STATE_DIRECTORY, Access
from derms_agent.device_state.calls import Unusable
from derms_agent.device_state.converge import NoSuchDevice, chosen
from derms_agent.device_state.der.converge import Der, converge_in_turn
from derms_agent.device_state.der.results import DerResult, plain
from derms_agent.device_state.results import Status
from derms_agent.device_state.run import Unasked, depot_of, with_buses
from derms_agent.drivers.unit import Unit
from derms_agent.grid_code import DerProfile, ProfileProblem, parse
from derms_agent.grid_code.functions import Limits
from derms_agent.model import Depot, Device
from derms_agent.profiles.profile import Protocol
from derms_agent.socket_client import SOCKET


def der_settings(
    document: Mapping[str, Any],
    gateway: str,
    devices: Iterable[Mapping[str, Any]] | None = None,
    *,
    only: Iterable[str] = (),
    check: bool,
    deadline_s: float,
    socket: Path = SOCKET,
    state_directory: Path = STATE_DIRECTORY,
) -> list[dict[str, Any]]:
    """See to it that DERs hold their profiles; return what became of each, in the order given.

    `devices` are mappings with `name`, a device of the depot on one of the gateway's buses, and `profile`; None: those
    that the depot declares `der_settings` for. `only` leaves those that match one of its patterns. A profile that
    cannot be is that device's refusal; the others are tried. Raises Unusable.
    """
    depot = depot_of(document)
    if gateway not in depot.gateways:
        raise Unusable(f"gateway: found {gateway}, expected one of {', '.join(depot.gateways)}")
    try:
        own = {device.name: device for device in chosen(depot, gateway, only, configured=False)}
    except NoSuchDevice as problem:
        raise Unusable(f"only: {problem}") from problem
    declared: dict[str, Any]
    if devices is None:
        declared = {name: device.der_settings for name, device in own.items() if device.der_settings is not None}
    else:
        given = _given(depot, gateway, devices)
        declared = {name: profile for name, profile in given.items() if name in own}
    parsed: dict[str, DerProfile] = {}
    results: dict[str, DerResult] = {}
    for name, profile in declared.items():
        taken = _parsed(depot.devices[name], profile)
        if isinstance(taken, DerProfile):
            parsed[name] = taken
        else:
            results[name] = taken
    for name, why in _not_borne(depot, parsed).items():
        del parsed[name]
        results[name] = DerResult(name=name, status=Status.REFUSED, detail=f"nothing was written: {why}")

    async def converged(access: Access) -> dict[str, DerResult]:
        ders = [
            _der(device, access, profile)
            for name, profile in parsed.items()
            if (device := depot.devices[name]).bus in access.buses
        ]
        found = {
            name: DerResult(name=name, status=Status.UNKNOWN, detail=access.unknown[depot.devices[name].bus])
            for name in parsed
            if depot.devices[name].bus in access.unknown
        }
        return found | await converge_in_turn(ders, check=check, until_s=anyio.current_time() + deadline_s)

    if parsed:
        buses = {depot.devices[name].bus: depot.buses[depot.devices[name].bus] for name in parsed}
        try:
            results |= with_buses(buses, converged, socket=socket, state_directory=state_directory)
        except Unasked as problem:
            results |= {name: DerResult(name=name, status=Status.UNKNOWN, detail=str(problem)) for name in parsed}
    return [plain(results[name]) for name in declared]


def _given(depot: Depot, gateway: str, devices: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the profiles that were given, by device. Raises Unusable."""
    given: dict[str, Any] = {}
    for each in devices:
        name = str(each["name"])
        _expect_der(depot, gateway, name)
        if name in given:
            raise Unusable(f"devices: found {name} twice, expected each device once")
        given[name] = each.get("profile") or {}
    return given


def _parsed(device: Device, declared: object) -> DerProfile | DerResult:
    try:
        return parse(device.name, declared, built_in.load(device.profile))
    except ProfileProblem as problem:
        return DerResult(name=device.name, status=Status.REFUSED, detail=f"nothing was written: {problem}")


def _not_borne(depot: Depot, parsed: Mapping[str, DerProfile]) -> dict[str, str]:
    """Return which of these devices' limits the circuits could not bear, with what is declared of all others."""
    declared: dict[str, tuple[str, Limits]] = {}
    for device in depot.devices.values():
        profile = parsed.get(device.name)
        if profile is None and device.der_settings is not None:
            profile = parse(device.name, device.der_settings)
        if profile is not None and profile.limits is not None and device.circuit is not None:
            declared[device.name] = (device.circuit, profile.limits)
    found = too_much(depot.circuits, declared)
    return {
        name: f"{name}: limits: found {found[name].found}, expected {found[name].expected}"
        for name in parsed
        if name in found
    }


def _der(device: Device, access: Access, profile: DerProfile) -> Der:
    unit = Unit(access.buses[device.bus], device.unit_id, built_in.load(device.profile))
    return Der(device.name, device.bus, unit, profile, device.serial_number)


def _expect_der(depot: Depot, gateway: str, name: str) -> None:
    """Raise Unusable for a device that is not the gateway's, or does not speak SunSpec."""
    device = depot.devices.get(name)
    here = [each.name for each in depot.devices.values() if depot.buses[each.bus].gateway == gateway]
    if device is None or name not in here:
        raise Unusable(f"devices: found {name}, expected a device of gateway {gateway}: {', '.join(here) or 'none'}")
    profile = built_in.load(device.profile)
    if profile.protocol is not Protocol.SUNSPEC:
        raise Unusable(f"devices: {name}: found profile {profile.name}, expected one of a device that speaks SunSpec")
