# SPDX-License-Identifier: Apache-2.0
"""The functions of IEEE 1547-2018 that a profile may declare, and the SunSpec points that hold them.

Names and directions are those of the standard and of SunSpec's models 702 to 712 (as in pysunspec2 1.3.7): injected
power, active and reactive, is positive here, unlike everywhere else in this project. A setting that is None was not
asked for, and is neither compared nor changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from derms_agent.grid_code.settings import (
    AMPERES,
    APPARENT_POWER,
    DEADBAND,
    DROOP,
    FREQUENCY,
    POWER,
    POWER_FACTOR,
    REACTIVE_POWER,
    SHARE,
    TIME,
    VOLTAGE,
    VOLTS,
    Axis,
    Choice,
    Curve,
    Number,
    Quantity,
    Shape,
    Switch,
    declared,
    settings_of,
)

_LONGEST_S = 86_400.0
_LARGEST = 1e9
_REFERENCES = ("w_max_pct", "var_max_pct", "var_aval_pct", "va_max_pct")
_EXCITATIONS = ("over_excited", "under_excited")
_OF_VOLTAGE = Axis("V", VOLTAGE, 0, 200)
_OF_FREQUENCY = Axis("Hz", FREQUENCY, 40, 70)
_CLEARING_TIME = Axis("Tms", TIME, 0, _LONGEST_S)


def _limit(path: str, quantity: Quantity) -> Any:
    """Return a field for one of 702's settings, which may not exceed the rating of the same name."""
    return declared(Number(path, quantity, 0, _LARGEST, f"{path}Rtg"))


def _trip(of: Axis, prefix: str, shape: Shape) -> Any:
    return declared(Curve(f"{prefix}.", of, _CLEARING_TIME, shape, fewest=0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """One function: the model it lies in, and the group of stored sets, the first of which is in force, if it has."""

    model: ClassVar[int]
    group: ClassVar[str | None] = None

    @property
    def turns_off(self) -> bool:
        """Whether it is declared to be off."""
        return any(getattr(self, key) is False for key in self._switches())

    @property
    def turns_on(self) -> bool:
        """Whether it is declared to be on."""
        return any(getattr(self, key) is True for key in self._switches())

    def _switches(self) -> list[str]:
        return [key for key, setting in settings_of(self).items() if isinstance(setting, Switch)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits(Function):
    """What a DER is set to be able to do (model 702), within its ratings."""

    model = 702
    active_power_w: float | None = _limit("WMax", POWER)
    charge_power_w: float | None = _limit("WChaRteMax", POWER)
    discharge_power_w: float | None = _limit("WDisChaRteMax", POWER)
    apparent_power_va: float | None = _limit("VAMax", APPARENT_POWER)
    charge_apparent_power_va: float | None = _limit("VAChaRteMax", APPARENT_POWER)
    discharge_apparent_power_va: float | None = _limit("VADisChaRteMax", APPARENT_POWER)
    reactive_power_injected_var: float | None = _limit("VarMaxInj", REACTIVE_POWER)
    reactive_power_absorbed_var: float | None = _limit("VarMaxAbs", REACTIVE_POWER)
    nominal_voltage_v: float | None = declared(Number("VNom", VOLTS, 0, _LARGEST))
    current_a: float | None = _limit("AMax", AMPERES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantPowerFactor(Function):
    """Constant power factor, while injecting and while absorbing active power (model 704)."""

    model = 704
    power_factor: float | None = declared(Number("PFWInj.PF", POWER_FACTOR, 0, 1))
    excitation: str | None = declared(Choice("PFWInj.Ext", _EXCITATIONS))
    absorbing_power_factor: float | None = declared(Number("PFWAbs.PF", POWER_FACTOR, 0, 1))
    absorbing_excitation: str | None = declared(Choice("PFWAbs.Ext", _EXCITATIONS))
    enabled: bool | None = declared(Switch("PFWInjEna"))
    absorbing_enabled: bool | None = declared(Switch("PFWAbsEna"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivePowerLimit(Function):
    """The active power that is injected at most, in percent of the maximum (model 704)."""

    model = 704
    limit_percent: float | None = declared(Number("WMaxLimPct", SHARE, 0, 100))
    enabled: bool | None = declared(Switch("WMaxLimPctEna"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantReactivePower(Function):
    """Constant reactive power, injected as positive, in var or percent as `mode` says (model 704)."""

    model = 704
    mode: str | None = declared(
        Choice("VarSetMod", ("w_max_pct", "var_max_pct", "var_avail_pct", "va_max_pct", "vars"))
    )
    priority: str | None = declared(Choice("VarSetPri", ("active", "reactive", "vendor")))
    reactive_power_var: float | None = declared(Number("VarSet", REACTIVE_POWER, -_LARGEST, _LARGEST))
    reactive_power_percent: float | None = declared(Number("VarSetPct", SHARE, -100, 100))
    enabled: bool | None = declared(Switch("VarSetEna"))


@dataclass(frozen=True, slots=True, kw_only=True)
class VoltVar(Function):
    """Reactive power by voltage (model 705): percent of nominal voltage, percent of what `dept_ref` names."""

    model = 705
    group = "Crv"
    dept_ref: str | None = declared(Choice("DeptRef", _REFERENCES))
    priority: str | None = declared(Choice("Pri", ("active", "reactive", "vendor")))
    reference_voltage_percent: float | None = declared(Number("VRef", VOLTAGE, 50, 150))
    autonomous_reference: bool | None = declared(Choice("VRefAutoEna", ("disabled", "enabled")))
    autonomous_reference_s: float | None = declared(Number("VRefAutoTms", TIME, 0, _LONGEST_S))
    response_s: float | None = declared(Number("RspTms", TIME, 0, _LONGEST_S))
    points: tuple[tuple[float, float], ...] | None = declared(
        Curve("", _OF_VOLTAGE, Axis("Var", SHARE, -100, 100), Shape.FALLING, fewest=2)
    )
    enabled: bool | None = declared(Switch("Ena"))


@dataclass(frozen=True, slots=True, kw_only=True)
class VoltWatt(Function):
    """The active power that is injected at most, by voltage (model 706): percent of nominal voltage, percent."""

    model = 706
    group = "Crv"
    dept_ref: str | None = declared(Choice("DeptRef", ("w_max_pct", "w_aval_pct")))
    response_s: float | None = declared(Number("RspTms", TIME, 0, _LONGEST_S))
    points: tuple[tuple[float, float], ...] | None = declared(
        Curve("", _OF_VOLTAGE, Axis("W", SHARE, -100, 100), Shape.FALLING, fewest=2)
    )
    enabled: bool | None = declared(Switch("Ena"))


@dataclass(frozen=True, slots=True, kw_only=True)
class LowVoltageTrip(Function):
    """Trip at low voltage (model 707): percent of nominal voltage, clearing time in s."""

    model = 707
    group = "Crv"
    must_trip: tuple[tuple[float, float], ...] | None = _trip(_OF_VOLTAGE, "MustTrip", Shape.LOW_TRIP)
    may_trip: tuple[tuple[float, float], ...] | None = _trip(_OF_VOLTAGE, "MayTrip", Shape.LOW_TRIP)
    momentary_cessation: tuple[tuple[float, float], ...] | None = _trip(_OF_VOLTAGE, "MomCess", Shape.LOW_TRIP)
    enabled: bool | None = declared(Switch("Ena"))


@dataclass(frozen=True, slots=True, kw_only=True)
class HighVoltageTrip(Function):
    """Trip at high voltage (model 708): percent of nominal voltage, clearing time in s."""

    model = 708
    group = "Crv"
    must_trip: tuple[tuple[float, float], ...] | None = _trip(_OF_VOLTAGE, "MustTrip", Shape.HIGH_TRIP)
    may_trip: tuple[tuple[float, float], ...] | None = _trip(_OF_VOLTAGE, "MayTrip", Shape.HIGH_TRIP)
    momentary_cessation: tuple[tuple[float, float], ...] | None = _trip(_OF_VOLTAGE, "MomCess", Shape.HIGH_TRIP)
    enabled: bool | None = declared(Switch("Ena"))


@dataclass(frozen=True, slots=True, kw_only=True)
class LowFrequencyTrip(Function):
    """Trip at low frequency (model 709): Hz, clearing time in s."""

    model = 709
    group = "Crv"
    must_trip: tuple[tuple[float, float], ...] | None = _trip(_OF_FREQUENCY, "MustTrip", Shape.LOW_TRIP)
    may_trip: tuple[tuple[float, float], ...] | None = _trip(_OF_FREQUENCY, "MayTrip", Shape.LOW_TRIP)
    momentary_cessation: tuple[tuple[float, float], ...] | None = _trip(_OF_FREQUENCY, "MomCess", Shape.LOW_TRIP)
    enabled: bool | None = declared(Switch("Ena"))


@dataclass(frozen=True, slots=True, kw_only=True)
class HighFrequencyTrip(Function):
    """Trip at high frequency (model 710): Hz, clearing time in s."""

    model = 710
    group = "Crv"
    must_trip: tuple[tuple[float, float], ...] | None = _trip(_OF_FREQUENCY, "MustTrip", Shape.HIGH_TRIP)
    may_trip: tuple[tuple[float, float], ...] | None = _trip(_OF_FREQUENCY, "MayTrip", Shape.HIGH_TRIP)
    momentary_cessation: tuple[tuple[float, float], ...] | None = _trip(_OF_FREQUENCY, "MomCess", Shape.HIGH_TRIP)
    enabled: bool | None = declared(Switch("Ena"))


@dataclass(frozen=True, slots=True, kw_only=True)
class FrequencyDroop(Function):
    """Active power by frequency (model 711): deadbands in Hz, droops as per unit of frequency per unit of power."""

    model = 711
    group = "Ctl"
    deadband_over_hz: float | None = declared(Number("DbOf", DEADBAND, 0, 5))
    deadband_under_hz: float | None = declared(Number("DbUf", DEADBAND, 0, 5))
    droop_over: float | None = declared(Number("KOf", DROOP, 0.001, 1))
    droop_under: float | None = declared(Number("KUf", DROOP, 0.001, 1))
    response_s: float | None = declared(Number("RspTms", TIME, 0, _LONGEST_S))
    minimum_power_percent: float | None = declared(Number("PMin", SHARE, -100, 100))
    enabled: bool | None = declared(Switch("Ena"))


@dataclass(frozen=True, slots=True, kw_only=True)
class WattVar(Function):
    """Reactive power by active power (model 712): percent of maximum active power, percent of what `dept_ref` names."""

    model = 712
    group = "Crv"
    dept_ref: str | None = declared(Choice("DeptRef", _REFERENCES))
    priority: str | None = declared(Choice("Pri", ("active", "reactive")))
    points: tuple[tuple[float, float], ...] | None = declared(
        Curve("", Axis("W", SHARE, -100, 100), Axis("Var", SHARE, -100, 100), Shape.ONE_WAY, fewest=2)
    )
    enabled: bool | None = declared(Switch("Ena"))


@dataclass(frozen=True, slots=True, kw_only=True)
class EnterService(Function):
    """Whether a DER may enter service, and when (model 703); taking the permission away ceases to energise."""

    model = 703
    voltage_high_percent: float | None = declared(Number("ESVHi", VOLTAGE, 50, 150))
    voltage_low_percent: float | None = declared(Number("ESVLo", VOLTAGE, 50, 150))
    frequency_high_hz: float | None = declared(Number("ESHzHi", FREQUENCY, 40, 70))
    frequency_low_hz: float | None = declared(Number("ESHzLo", FREQUENCY, 40, 70))
    delay_s: float | None = declared(Number("ESDlyTms", TIME, 0, _LONGEST_S))
    random_delay_s: float | None = declared(Number("ESRndTms", TIME, 0, _LONGEST_S))
    ramp_s: float | None = declared(Number("ESRmpTms", TIME, 0, _LONGEST_S))
    permitted: bool | None = declared(Switch("ES"))


@dataclass(frozen=True, slots=True, kw_only=True)
class DerProfile:
    """What one DER must hold, function by function."""

    limits: Limits | None = None
    low_voltage_trip: LowVoltageTrip | None = None
    high_voltage_trip: HighVoltageTrip | None = None
    low_frequency_trip: LowFrequencyTrip | None = None
    high_frequency_trip: HighFrequencyTrip | None = None
    frequency_droop: FrequencyDroop | None = None
    volt_var: VoltVar | None = None
    volt_watt: VoltWatt | None = None
    watt_var: WattVar | None = None
    constant_power_factor: ConstantPowerFactor | None = None
    constant_reactive_power: ConstantReactivePower | None = None
    active_power_limit: ActivePowerLimit | None = None
    enter_service: EnterService | None = None

    def functions(self) -> Iterator[tuple[str, Function]]:
        """Return what was declared, by name, in the order in which it is written.

        What is turned off comes first, for of the functions that set reactive power one may be on at a time; permission
        to enter service comes last, so that no DER starts with half of its settings, and first where it is taken away.
        """
        there = ((each.name, getattr(self, each.name)) for each in fields(self))
        return iter(sorted((pair for pair in there if pair[1] is not None), key=lambda pair: not pair[1].turns_off))


FUNCTIONS: dict[str, type[Function]] = {
    "limits": Limits,
    "low_voltage_trip": LowVoltageTrip,
    "high_voltage_trip": HighVoltageTrip,
    "low_frequency_trip": LowFrequencyTrip,
    "high_frequency_trip": HighFrequencyTrip,
    "frequency_droop": FrequencyDroop,
    "volt_var": VoltVar,
    "volt_watt": VoltWatt,
    "watt_var": WattVar,
    "constant_power_factor": ConstantPowerFactor,
    "constant_reactive_power": ConstantReactivePower,
    "active_power_limit": ActivePowerLimit,
    "enter_service": EnterService,
}
"""Every function by its name in a profile."""

ONE_AT_A_TIME = ("constant_power_factor", "constant_reactive_power", "volt_var", "watt_var")
"""The functions that set reactive power: the standard has one of them on at a time (5.3.1, from memory)."""
