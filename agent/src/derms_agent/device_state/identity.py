# SPDX-License-Identifier: Apache-2.0
"""Whether what answers is the device that the depot file means, and what it can do. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from derms_agent.device_state.capability import MODELS, Capability, capability_of
from derms_agent.drivers.configured_device import ConfiguredDevice
from derms_agent.model import Device, Value


def declared_points(device: Device) -> tuple[str, ...]:
    """Return the points of its identity that a device is declared by."""
    named = {"serial_number": device.serial_number, "firmware": device.firmware}
    return tuple(point for point, declared in named.items() if declared is not None)


def another(declared: str | None, found: Mapping[str, Value]) -> str:
    """Return why what answers is not the device with the declared serial number, or nothing where it is."""
    if declared is None:
        return ""
    serial_number = found.get("serial_number")
    if serial_number is None:
        return f"found no serial number, expected {declared}: which device answers here is not known"
    if str(serial_number) == declared:
        return ""
    return f"found serial number {serial_number}, expected {declared}: another device answers here"


def note(device: Device, shown: Mapping[str, Value], can: Capability | None) -> str:
    """Return what a device is to be known for and blocks nothing, or nothing."""
    return "; ".join(filter(None, (other_firmware(device, shown), "" if can is None else can.detail)))


def other_firmware(device: Device, found: Mapping[str, Value]) -> str:
    """Return how a device's firmware differs from what is declared, or nothing where it does not."""
    if device.firmware is None:
        return ""
    firmware = found.get("firmware")
    if firmware is not None and fnmatchcase(str(firmware), device.firmware):
        return ""
    return f"found {'no firmware' if firmware is None else f'firmware {firmware}'}, expected {device.firmware}"


def capability(driver: ConfiguredDevice) -> Capability | None:
    """Return what of IEEE 1547-2018 a controller can do, by the models that were found; None for what is no DER."""
    if driver.found is None or not set(MODELS) <= set(driver.profile.models):
        return None
    return capability_of(driver.found)
