# SPDX-License-Identifier: Apache-2.0
"""From a depot's declaration to the objects that talk: its buses, and a driver for each device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from derms_agent import profiles
from derms_agent.drivers.configured_device import ConfiguredDevice
from derms_agent.drivers.interface import RegisterBus, SetpointBus
from derms_agent.drivers.modbus import ModbusBus
from derms_agent.drivers.modbus_device import ModbusDevice, Pace
from derms_agent.drivers.register_map import ModbusMap, connectors
from derms_agent.drivers.unit import Clock
from derms_agent.model import Circuit, Depot, Device
from derms_agent.profiles.profile import Profile


def open_device(
    device: Device,
    profile: Profile,
    bus: SetpointBus,
    *,
    circuits: Mapping[str, Circuit] | None = None,
    pace: Pace | None = None,
    clock: Clock = time.monotonic,
    repeats_limits: bool = True,
    reads_back: bool = True,
    registers: ModbusMap | None = None,
) -> ModbusDevice:
    """Return the driver of a device; nothing is sent yet.

    `circuits` give the voltage by which W become A; without them 230 V to neutral are taken. `clock`,
    `repeats_limits`, `reads_back` and `registers` are as `ModbusDevice` has them. Raises ValueError where the profile
    cannot limit each of the device's EVSEs.
    """
    known = circuits or {}
    voltages = {evse.name: known[evse.circuit].neutral_voltage_v for evse in device.evses if evse.circuit in known}
    return ModbusDevice(
        device,
        profile,
        bus,
        phase_voltage_v=voltages,
        pace=pace,
        clock=clock,
        repeats_limits=repeats_limits,
        reads_back=reads_back,
        registers=registers,
    )


def open_buses(depot: Depot, gateway: str | None = None) -> dict[str, ModbusBus]:
    """Return a depot's buses by name, those of one gateway where it is named; none is connected until it runs.

    A bus waits between requests as long as the most delicate of its devices wants. Raises ProfileError.
    """
    pauses: dict[str, float] = {}
    for device in depot.devices.values():
        wire = profiles.load(device.profile).wire
        pauses[device.bus] = max(pauses.get(device.bus, 0.0), wire.delay_between_s)
    return {
        bus.name: ModbusBus(replace(bus, delay_between_s=max(bus.delay_between_s, pauses.get(bus.name, 0.0))))
        for bus in depot.buses.values()
        if gateway in {None, bus.gateway}
    }


def open_devices(
    depot: Depot,
    buses: Mapping[str, SetpointBus],
    *,
    pace: Pace | None = None,
    clock: Clock = time.monotonic,
    repeats_limits: bool = True,
    reads_back: bool = True,
) -> dict[str, ModbusDevice]:
    """Return the drivers of the devices on those buses, by name. Raises ProfileError; ValueError as `open_device`."""
    map_of = _shared_maps()
    return {
        device.name: open_device(
            device,
            profiles.load(device.profile),
            buses[device.bus],
            circuits=depot.circuits,
            pace=pace,
            clock=clock,
            repeats_limits=repeats_limits,
            reads_back=reads_back,
            registers=map_of(device, profiles.load(device.profile)),
        )
        for device in depot.devices.values()
        if device.bus in buses
    }


def open_configured(
    depot: Depot, buses: Mapping[str, RegisterBus], *, clock: Clock = time.monotonic
) -> dict[str, ConfiguredDevice]:
    """Return the devices on those buses by name, to be read and configured alone. Raises ProfileError."""
    map_of = _shared_maps()
    return {
        device.name: ConfiguredDevice(
            device,
            profiles.load(device.profile),
            buses[device.bus],
            clock=clock,
            registers=map_of(device, profiles.load(device.profile)),
        )
        for device in depot.devices.values()
        if device.bus in buses
    }


def _shared_maps() -> Callable[[Device, Profile], ModbusMap]:
    """Return what gives devices that lie alike one map."""
    maps: dict[object, ModbusMap] = {}

    def map_of(device: Device, profile: Profile) -> ModbusMap:
        alike = (device.profile, connectors(device))
        if alike not in maps:
            maps[alike] = ModbusMap(device, profile)
        return maps[alike]

    return map_of
