# SPDX-License-Identifier: Apache-2.0
"""Which of IEEE 1547-2018's functions a controller has, by its SunSpec models. Pure.

Source: SunSpec's models 701 to 712. A controller without one of them cannot do what the standard asks of a DER's
interface over SunSpec Modbus; one with all of them may still lack single points.
"""

from __future__ import annotations

from dataclasses import dataclass

from derms_agent.drivers.sunspec import FoundMap

MODELS = {
    701: "measurements",
    702: "capacity",
    703: "enter service",
    704: "constant power factor, active and reactive power",
    705: "volt-var",
    706: "volt-watt",
    707: "low voltage trip",
    708: "high voltage trip",
    709: "low frequency trip",
    710: "high frequency trip",
    711: "frequency droop",
    712: "watt-var",
}


@dataclass(frozen=True, slots=True)
class Capability:
    """The models from 701 to 712 that a controller has, and those it lacks."""

    models: tuple[int, ...]
    missing: tuple[int, ...]

    @property
    def ieee_1547_2018(self) -> bool:
        """Whether it has all of them."""
        return not self.missing

    @property
    def detail(self) -> str:
        """What it lacks, in words; empty where it lacks nothing."""
        if self.ieee_1547_2018:
            return ""
        lacks = ", ".join(f"{model} ({MODELS[model]})" for model in self.missing)
        return f"cannot do IEEE 1547-2018: found no SunSpec model {lacks}"


def capability_of(found: FoundMap) -> Capability:
    """Return what a controller with these models can do."""
    there = {model.id for model in found.models}
    return Capability(
        tuple(model for model in MODELS if model in there), tuple(model for model in MODELS if model not in there)
    )
