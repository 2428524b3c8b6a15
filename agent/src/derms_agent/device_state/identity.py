# SPDX-License-Identifier: Apache-2.0
"""Whether what answers is the device that the depot file means, and what it can do. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

from derms_agent.model import Device, Value
from derms_agent.profiles.profile import Profile

IEEE_1547_MODELS = tuple(range(701, 713))
"""What a DER shows by SunSpec Modbus to meet IEEE 1547-2018, clause 10: its nameplate, monitoring and settings."""


def declared_points(device: Device) -> tuple[str, ...]:
    """Return the points of its identity that a device is declared by."""
    named = {"serial_number": device.serial_number, "firmware": device.firmware}
    return tuple(point for point, declared in named.items() if declared is not None)


def another(device: Device, found: Mapping[str, Value]) -> str:
    """Return why what answers is not the device that is declared, or nothing where it is."""
    if device.serial_number is None:
        return ""
    serial_number = found.get("serial_number")
    if serial_number is None:
        return f"found no serial number, expected {device.serial_number}: which device answers here is not known"
    if str(serial_number) == device.serial_number:
        return ""
    return f"found serial number {serial_number}, expected {device.serial_number}: another device answers here"


def note(device: Device, profile: Profile, found: Mapping[str, Value], models: Collection[int]) -> str:
    """Return what a device is to be known for and blocks nothing, or nothing."""
    capability = ieee_1547(profile, models)
    lacking = "" if capability is None else ", ".join(map(str, capability["missing"]))
    notes = (
        other_firmware(device, found),
        f"cannot do IEEE 1547-2018, for it lacks the SunSpec models {lacking}" if lacking else "",
    )
    return "; ".join(one for one in notes if one)


def other_firmware(device: Device, found: Mapping[str, Value]) -> str:
    """Return how a device's firmware differs from what is declared, or nothing where it does not."""
    if device.firmware is None:
        return ""
    firmware = found.get("firmware")
    if firmware is not None and fnmatchcase(str(firmware), device.firmware):
        return ""
    return f"found {'no firmware' if firmware is None else f'firmware {firmware}'}, expected {device.firmware}"


def ieee_1547(profile: Profile, models: Collection[int]) -> dict[str, Any] | None:
    """Return whether a controller with these SunSpec models can do IEEE 1547-2018; None for what is no DER."""
    if not set(IEEE_1547_MODELS) <= set(profile.models):
        return None
    missing = [model for model in IEEE_1547_MODELS if model not in models]
    return {"capable": not missing, "missing": missing}
