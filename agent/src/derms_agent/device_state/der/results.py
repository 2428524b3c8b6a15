# SPDX-License-Identifier: Apache-2.0
"""What became of a device's profile, function by function, and the same as plain data for modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from derms_agent.device_state import results
from derms_agent.device_state.capability import Capability
from derms_agent.device_state.results import Status
from derms_agent.drivers.settings import SettingResult


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionResult:
    """What became of one function; `before` and `after` are its settings in force, as a profile would say them."""

    function: str
    model: int
    status: Status
    settings: tuple[SettingResult, ...] = ()
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DerResult:
    """What became of one device. Nothing was written where it is refused, unknown or unreachable as a whole.

    `capability` is None where its models could not be read.
    """

    name: str
    status: Status
    functions: tuple[FunctionResult, ...] = ()
    capability: Capability | None = None
    detail: str = ""

    @property
    def settings(self) -> tuple[SettingResult, ...]:
        """Every register value that was asked for."""
        return tuple(setting for function in self.functions for setting in function.settings)

    @property
    def changed(self) -> bool:
        """Whether what is in force was changed, or in check mode would be, whatever became of the rest."""
        return any(setting.outcome in results.CHANGED for setting in self.settings)


def plain(result: DerResult) -> dict[str, Any]:
    """Return a result as data of JSON's types, as `device_state.results.plain` does, and what is a DER's own."""
    common = results.plain(results.DeviceResult(result.name, result.status, result.settings, result.detail))
    capability = result.capability
    return {
        **common,
        "before": {each.function: dict(each.before) for each in result.functions if each.before},
        "after": {each.function: dict(each.after) for each in result.functions if each.after is not None},
        "functions": [
            {"name": each.function, "model": each.model, "status": each.status.value, "detail": each.detail}
            for each in result.functions
        ],
        "models": [] if capability is None else list(capability.models),
        "missing_models": [] if capability is None else list(capability.missing),
        "ieee_1547_2018": None if capability is None else capability.ieee_1547_2018,
        "incapable": "" if capability is None else capability.detail,
    }
