# SPDX-License-Identifier: Apache-2.0
"""What can be made to go wrong, and where it may."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from derms_agent.model import Depot, DeviceKind, Transport


class FaultKind(str, Enum):
    """One way for a device, or for its line, to fail. Unless said otherwise, requests are executed all the same."""

    SILENT = "silent"  # no answer, and nothing is executed
    SLOW = "slow"  # each answer `ms` later
    EXCEPTION = "exception"  # each request is refused with `code`
    WRONG_UNIT = "wrong_unit"  # the answer names the next unit
    WRONG_TRANSACTION_ID = "wrong_transaction_id"  # the answer names the next transaction; Modbus/TCP only
    SHORT_REPLY = "short_reply"  # half of the registers asked for, in a frame that is sound
    BYTE_DRIBBLE = "byte_dribble"  # one byte at a time, `ms` apart
    DISCONNECT = "disconnect"  # the connection is closed instead of an answer
    REBOOT = "reboot"  # silent for `for_s`, then as after a start
    FROZEN_DUTY = "frozen_duty"  # the pilot stays at what 32 A means, whatever the registers say
    SENSOR_LOST = "sensor_lost"  # temperature and state of charge read as absent
    STALE = "stale"  # the registers no longer follow what they measure
    ADOPTION_FAILED = "adoption_failed"  # no stored curve is adopted, and the device says so
    ADOPTION_STALE = "adoption_stale"  # none is, and the result of the adoption before stands
    ADOPTION_ENDLESS = "adoption_endless"  # none is, and the adoption stays in progress


DEFAULT_MS = {FaultKind.SLOW: 500.0, FaultKind.BYTE_DRIBBLE: 20.0}
DEFAULT_CODE = 4
DEFAULT_BOOT_S = 10.0
LARGEST_CODE = 0x7F


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault and its measures. `for_s` is how long it lasts; None: until it is cleared."""

    kind: FaultKind
    ms: float | None = None
    code: int = DEFAULT_CODE
    for_s: float | None = None

    @property
    def delay_s(self) -> float:
        """`ms`, or what stands for it, in s."""
        return (DEFAULT_MS.get(self.kind, 0.0) if self.ms is None else self.ms) / 1000


def targets(depot: Depot, kind: FaultKind) -> tuple[str, ...]:
    """Return the devices and buses that can have such a fault."""
    if kind is FaultKind.FROZEN_DUTY:
        return tuple(name for name, device in depot.devices.items() if device.kind is DeviceKind.CHARGER)
    if kind in (FaultKind.ADOPTION_FAILED, FaultKind.ADOPTION_STALE, FaultKind.ADOPTION_ENDLESS):
        return tuple(name for name, device in depot.devices.items() if device.kind is DeviceKind.INVERTER)
    if kind in (FaultKind.REBOOT, FaultKind.SENSOR_LOST, FaultKind.STALE):
        return tuple(depot.devices)
    buses = {
        name
        for name, bus in depot.buses.items()
        if kind is not FaultKind.WRONG_TRANSACTION_ID or bus.transport is Transport.TCP
    }
    return (*(name for name, device in depot.devices.items() if device.bus in buses), *sorted(buses))
