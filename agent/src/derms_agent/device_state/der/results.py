# SPDX-License-Identifier: Apache-2.0
"""What became of one device's profile: per setting its registers and its value, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from derms_agent.device_state.der.capability import Capability


class Status(str, Enum):
    """What became of a device, or of one of its functions. In check mode `changed` says that it would be."""

    OK = "ok"
    CHANGED = "changed"
    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    VERIFY_FAILED = "verify_failed"
    INDETERMINATE = "indeterminate"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingState:
    """One register value that was asked for. `after` is None where it could not be read back."""

    name: str
    point: str
    unit: str
    before: object
    wanted: object
    after: object
    before_raw: tuple[int, ...]
    wanted_raw: tuple[int, ...]
    after_raw: tuple[int, ...] | None

    @property
    def differs(self) -> bool:
        """Whether it did not hold what was asked."""
        return self.before_raw != self.wanted_raw


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionResult:
    """What became of one function."""

    function: str
    model: int
    status: Status
    settings: tuple[SettingState, ...] = ()
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceResult:
    """What became of one device. Nothing was written where it is refused, unknown or unreachable from the start.

    `changed`: what is in force in the device is, or in check mode would be, not what it was.
    """

    name: str
    status: Status
    functions: tuple[FunctionResult, ...] = ()
    capability: Capability | None = None
    changed: bool = False
    detail: str = ""
