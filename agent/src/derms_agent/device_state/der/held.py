# SPDX-License-Identifier: Apache-2.0
"""What a DER holds by IEEE 1547-2018, as a depot file's `der_settings` would say it. Pure.

Each setting is declared only where what `der_settings` makes of the declaration is what the registers hold, so what was
read can be declared and then nothing is left to do. What cannot be declared is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from derms_agent.depot.der_loads import too_much
from derms_agent.device_state.der.plan import Unfit, in_force, plan_function
from derms_agent.device_state.der.registers import ModelRegisters
from derms_agent.drivers.sunspec import FoundMap
from derms_agent.grid_code.functions import FUNCTIONS, DerProfile, Limits
from derms_agent.grid_code.parse import ProfileProblem, controls_own, parse
from derms_agent.grid_code.settings import Switch, settings_of
from derms_agent.model import Circuit
from derms_agent.profiles.profile import Profile

_KEY = "der_settings"


@dataclass(frozen=True, slots=True)
class Held:
    """Settings by function, and in `remarks` what of those that the device has is not among them, and why."""

    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def without(self, function: str, why: str) -> Held:
        """Return it without a function, which is named in its place."""
        settings = {name: own for name, own in self.settings.items() if name != function}
        return replace(self, settings=settings, remarks=(*self.remarks, f"{_KEY}: {function}: {why}"))


def held(found: FoundMap, profile: Profile, declared: Mapping[str, Any] | None = None) -> Held:
    """Return what a DER with these models holds; settings that were `declared` and that it has not are named."""
    models: dict[int, ModelRegisters] = {}
    for model in found.models:
        models.setdefault(model.id, ModelRegisters.of(model))  # of several, the first
    before = DerProfile() if declared is None else parse(_KEY, declared)
    settings: dict[str, dict[str, Any]] = {}
    remarks: list[str] = []
    for function, key in _settings(profile):
        registers = models.get(FUNCTIONS[function].model)
        value = None if registers is None else in_force(FUNCTIONS[function], key, registers)
        if registers is None or value is None:
            if getattr(getattr(before, function), key, None) is not None:
                remarks.append(f"{_KEY}: {function}.{key}: declared, and the device does not have it")
        elif why := _undeclarable(function, key, value, registers, profile):
            remarks.append(why)
        else:
            settings.setdefault(function, {})[key] = value
    remarks += _reconciled(settings, profile)
    return Held({function: own for function, own in settings.items() if own}, tuple(remarks))


def _settings(profile: Profile) -> Iterator[tuple[str, str]]:
    """Yield the functions and keys of every setting that a depot file may declare."""
    own = controls_own(profile)
    for name, function in FUNCTIONS.items():
        for key in settings_of(function):
            if (name, key) not in own:
                yield name, key


def _undeclarable(function: str, key: str, value: Any, registers: ModelRegisters, profile: Profile) -> str:
    """Return why a setting cannot be declared as it is held; nothing where it can."""
    declared = {function: {key: value}}
    if mistakes := _mistakes(declared, profile):
        return "; ".join(mistakes.values())
    try:
        plan = plan_function(function, getattr(parse(_KEY, declared, profile), function), registers, profile)
    except Unfit as unfit:
        return f"{_KEY}: {unfit}"
    return f"{_KEY}: {function}.{key}: {value!r}, which would not be written as it is held" if plan.changes else ""


def _mistakes(declared: Mapping[str, Mapping[str, Any]], profile: Profile) -> dict[tuple[str, str], str]:
    """Return what may not be declared so, by function and key, in words."""
    try:
        parse(_KEY, {function: own for function, own in declared.items() if own}, profile)
    except ProfileProblem as problem:
        return {(mistake.path[0], mistake.path[1]): mistake.text(_KEY) for mistake in problem.mistakes}
    return {}


def _reconciled(settings: Mapping[str, dict[str, Any]], profile: Profile) -> Iterator[str]:
    """Take out settings that may not be declared beside one another, and yield why."""
    while mistakes := _mistakes(settings, profile):
        for (function, key), why in mistakes.items():
            switches = isinstance(settings_of(FUNCTIONS[function])[key], Switch)
            own = settings[function]
            for each in [one for one in own if (own[one] is True if switches else one == key)]:
                del own[each]
            yield why


def borne(circuits: Mapping[str, Circuit], ders: Mapping[str, tuple[str | None, Held]]) -> dict[str, Held]:
    """Return what DERs hold, each with its circuit, without the limits that the circuits could not bear."""
    limits: dict[str, tuple[str, Limits]] = {}
    for name, (circuit, own) in ders.items():
        parsed = parse(name, own.settings).limits
        if circuit is not None and circuit in circuits and parsed is not None:
            limits[name] = (circuit, parsed)
    burdens = too_much(circuits, limits)
    return {
        name: own
        if name not in burdens
        else own.without("limits", f"found {burdens[name].found}, expected {burdens[name].expected}")
        for name, (_, own) in ders.items()
    }
