# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a depot as a whole: circuits that would be overloaded, buses that are too slow, awkward wiring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from derms_agent.depot import bus_budget, circuit_loads, schema
from derms_agent.depot.assembly import Assembly
from derms_agent.depot.document import Data
from derms_agent.depot.problem import Path, Problem, Severity, Vaulted
from derms_agent.depot.unattended import TOLERANCE, overloads, rating, unattended_a
from derms_agent.model import Bus, Circuit, Depot, Device, Evse
from derms_agent.profiles import Profile

if TYPE_CHECKING:
    from derms_agent.grid_code.functions import Limits

# Where an encrypted value is no mistake; settings are judged by their profile.
SECRET = ("vtn", "client_id")


def check(data: Data, profiles: Mapping[str, Profile]) -> tuple[Depot | None, tuple[Problem, ...]]:
    """Return the depot that a file's content declares, and all that is wrong with it.

    :param data: what the file holds, as `document.parse` gives it
    :param profiles: the profiles that its devices may name
    :returns: the depot, or None where there is an error; errors and warnings, entry by entry
    """
    found = [*schema.problems(data), *_misplaced_secrets(data)]
    if not isinstance(data, dict):
        return None, tuple(found)
    assembly = Assembly(data, profiles, [problem.path for problem in found])
    assembly.assemble()
    whole = _Whole(assembly)
    found = [*dict.fromkeys(chain(found, assembly.found, whole.problems()))]
    wrong = any(problem.severity is Severity.ERROR for problem in found)
    return None if wrong else assembly.depot(), tuple(found)


def _misplaced_secrets(data: Data, path: Path = ()) -> Iterator[Problem]:
    if isinstance(data, Vaulted):
        if path != SECRET and path[-2:-1] != ("settings",):
            yield Problem(
                path, "an encrypted value", f"a plain one; only {'.'.join(SECRET)} and secret settings may be"
            )
    elif isinstance(data, (dict, list)):
        items: Iterable[tuple[Any, Data]] = data.items() if isinstance(data, dict) else enumerate(data)
        for key, value in items:
            if isinstance(value, (dict, list, Vaulted)):
                yield from _misplaced_secrets(value, (*path, str(key)))


class _Whole:
    """The checks that need more than one entry, on what could be assembled."""

    def __init__(self, assembly: Assembly) -> None:
        self.parts = assembly
        self.units: dict[str, dict[str, bus_budget.Unit]] = {name: {} for name in assembly.buses}
        for name, device in assembly.devices.items():
            unit = bus_budget.Unit(assembly.profiles[device.profile], len(device.evses))
            self.units[device.bus][name] = unit

    def problems(self) -> Iterator[Problem]:
        """Yield all that is wrong."""
        drawn_a = self._unattended_a()
        yield from self._cables(drawn_a)
        yield from self._circuits(drawn_a)
        yield from self._ders()
        for name, bus in self.parts.buses.items():
            yield from self._budget(bus)
            yield from self._foreign_gateway(name)
        yield from self._watchdogs()
        yield from self._site()
        yield from self._resources()

    def _evses(self) -> Iterator[Evse]:
        """Yield the EVSEs of all devices whose settings are known."""
        for name, device in self.parts.devices.items():
            if name not in self.parts.doubtful:
                yield from device.evses

    def _path(self, section: str, name: str) -> Path:
        return self.parts.entry_of[section, name].path

    def _device_path(self, name: str) -> Path:
        """Return where a device was declared; a meter is one too."""
        return self._path("devices" if ("devices", name) in self.parts.entry_of else "meters", name)

    # --- what flows when nobody controls --------------------------------------------------------------------------

    def _unattended_a(self) -> dict[str, float]:
        """Return what each EVSE may draw by itself, in A on each of its conductors."""
        # Devices of one entry share their settings, so that a thousand of them are one question.
        known: dict[tuple[object, ...], float] = {}
        result: dict[str, float] = {}
        for evse in self._evses():
            device = self.parts.devices[evse.device]
            key = (device.profile, id(device.settings), evse.circuit, evse.rating_a, len(evse.phases))
            if key not in known:
                known[key] = self._one_unattended_a(device, evse)
            result[evse.name] = known[key]
        return result

    def _one_unattended_a(self, device: Device, evse: Evse) -> float:
        settings = {name: value for name, value in device.settings.items() if not isinstance(value, Vaulted)}
        return unattended_a(self.parts.profiles[device.profile], evse, self.parts.circuits[evse.circuit], settings)

    def _cables(self, drawn_a: Mapping[str, float]) -> Iterator[Problem]:
        for evse in self._evses():
            current_a = drawn_a[evse.name]
            if evse.cable_a is not None and current_a > evse.cable_a + TOLERANCE:
                yield Problem(
                    self._device_path(evse.device),
                    f"an EVSE that may draw {current_a:g} A by itself on a cable of {evse.cable_a:g} A",
                    "a fallback and an after-boot limit no higher than cable_a, or a breaker that protects the cable",
                    severity=Severity.WARNING,
                    at_key=True,
                )

    def _circuits(self, drawn_a: Mapping[str, float]) -> Iterator[Problem]:
        loads = [circuit_loads.Load(evse.circuit, evse.phases, drawn_a[evse.name]) for evse in self._evses()]
        beneath = self._beneath()
        for name, over in overloads(self.parts.circuits, loads).items():
            path = self._path("circuits", name)
            shares = _shares(beneath[name], self.parts, drawn_a)
            if over.current is not None:
                base = ", ".join(f"{amperes:g}" for amperes in over.circuit.base_load_a)
                found = f"{over.current} when no EVSE is controlled: {shares}; base_load_a {base}"
                yield Problem(
                    (*path, "rating_a"),
                    found,
                    f"at most {rating(over.circuit)}; of fallback and after-boot limit the higher counts",
                )
            if over.apparent_kva is not None:
                yield Problem(
                    (*path, "rating_kva"),
                    f"{over.apparent_kva:.4g} kVA when no EVSE is controlled: {shares}",
                    f"at most {over.circuit.rating_kva:g} kVA; of fallback and after-boot limit the higher counts",
                )

    def _ders(self) -> Iterator[Problem]:
        """Yield the DERs whose declared limits the circuits could not bear."""
        if all(device.der_settings is None for device in self.parts.devices.values()):
            return
        # Few depots declare any, and a module's run would pay for it with each.
        from derms_agent.depot.der_loads import too_much  # noqa: PLC0415
        from derms_agent.grid_code import ProfileProblem, parse  # noqa: PLC0415

        declared: dict[str, tuple[str, Limits]] = {}
        for name, device in self.parts.devices.items():
            if device.circuit in self.parts.circuits and device.der_settings is not None:
                try:
                    limits = parse(name, device.der_settings).limits
                except ProfileProblem:
                    continue  # that is told of
                if limits is not None:
                    declared[name] = (device.circuit, limits)
        used = {name for name, device in self.parts.devices.items() if device.evses}
        for name, burden in too_much(self.parts.circuits, declared, used).items():
            path = (*self._device_path(name), "der_settings", "limits")
            yield Problem(path, burden.found, burden.expected, at_key=True)

    def _beneath(self) -> dict[str, list[Evse]]:
        """Return the EVSEs that each circuit feeds, directly or through others."""
        beneath: dict[str, list[Evse]] = {name: [] for name in self.parts.circuits}
        for evse in self._evses():
            above: str | None = evse.circuit
            while above is not None:
                beneath[above].append(evse)
                above = self.parts.circuits[above].parent
        return beneath

    # --- buses ----------------------------------------------------------------------------------------------------

    def _budget(self, bus: Bus) -> Iterator[Problem]:
        taken = bus_budget.budget(bus, list(self.units[bus.name].values()))
        if taken is None or taken.sweep_s <= bus_budget.USABLE_S:
            return
        yield Problem(
            self._path("buses", bus.name),
            f"{taken.units} units on {bus.name}, whose control points take {taken.sweep_s * 1000:.0f} ms to read at "
            f"{bus.baud_rate} baud; a shed of all takes {taken.shed_s * 1000:.0f} ms",
            f"at most {bus_budget.SWEEP_LIMIT_S * 1000:.0f} ms, which is enough for {taken.fitting} such units: "
            "more serial lines, or a faster one",
            severity=Severity.WARNING,
            at_key=True,
        )

    def _watchdogs(self) -> Iterator[Problem]:
        """Yield each watchdog that is too short, once, for the bus on which its refresh may take longest."""
        slowest = sorted(
            (
                (bus_budget.refresh_s(bus, list(self.units[name].values())), bus)
                for name, bus in self.parts.buses.items()
            ),
            key=lambda pair: -pair[0],
        )
        seen: set[Path] = set()
        for needed_s, bus in slowest:
            for name, unit in self.units[bus.name].items():
                device = self.parts.devices[name]
                watchdog_s = None if name in self.parts.doubtful else unit.profile.watchdog_s(device.settings)
                if watchdog_s is None or watchdog_s > needed_s:
                    continue
                path = self._device_path(name)
                timeout = unit.profile.fallback.timeout if unit.profile.fallback else None
                written = self.parts.setting_path(self.parts.entry_of[path[0], name], bus.name, timeout)
                if (written or path) in seen:
                    continue
                seen.add(written or path)
                units = len(self.units[bus.name])
                yield Problem(
                    written or path,
                    f"a watchdog of {watchdog_s:g} s",
                    f"more than {needed_s:.1f} s, which its refresh may take on the bus {bus.name} with {units} units",
                    at_key=written is None,
                )

    def _foreign_gateway(self, name: str) -> Iterator[Problem]:
        """Warn where setpoints leave by another gateway than that which works them out."""
        bus = self.parts.buses[name]
        if bus.gateway not in self.parts.gateways:
            return
        allocators = {
            self._allocator(self.parts.circuits[evse.circuit])
            for device in self.units[name]
            for evse in self.parts.devices[device].evses
        }
        others = sorted(other for other in allocators if other is not None and other != bus.gateway)
        if others:
            yield Problem(
                (*self._path("buses", name), "gateway"),
                f"{bus.gateway}, while {', '.join(others)} allocates the circuits of its EVSEs",
                f"{' or '.join(others)}: otherwise each setpoint needs both gateways and the line between them",
                severity=Severity.WARNING,
            )

    def _allocator(self, circuit: Circuit) -> str | None:
        while circuit.parent is not None:
            circuit = self.parts.circuits[circuit.parent]
        return circuit.allocator

    # --- the grid -------------------------------------------------------------------------------------------------

    def _resources(self) -> Iterator[Problem]:
        """Yield what the utility's resources are said to be and nothing here is."""
        vtn = self.parts.data.get("vtn")
        named = vtn.get("resources") if isinstance(vtn, Mapping) else None
        if not isinstance(named, Mapping) or ("vtn",) in self.parts.refused_sections:
            return
        known = {"site", *self.parts.circuits, *(evse.name for evse in self._evses())}
        for resource, place in named.items():
            if isinstance(place, str) and place not in known:
                yield Problem(("vtn", "resources", str(resource)), f'"{place}"', "site, a circuit or an EVSE")

    # --- the site -------------------------------------------------------------------------------------------------

    def _site(self) -> Iterator[Problem]:
        site = self.parts.data.get("site")
        if not isinstance(site, Mapping) or ("site",) in self.parts.refused_sections:
            return
        limit_kva, default_kw = site.get("limit_kva"), site.get("default_limit_kw")
        if limit_kva is not None and default_kw is not None and default_kw > limit_kva:
            yield Problem(("site", "default_limit_kw"), f"{default_kw:g}", f"at most limit_kva, {limit_kva:g}")


def _shares(evses: Iterable[Evse], parts: Assembly, drawn_a: Mapping[str, float]) -> str:
    """Return what makes a circuit's load up: how many EVSEs of which profile may draw how much."""
    counted = Counter(
        (
            parts.devices[evse.device].profile,
            round(drawn_a[evse.name], 1),
            drawn_a[evse.name] == evse.rating_a,
        )
        for evse in evses
    )
    words = [
        f"{count} × {profile} {amperes:g} A{' (its rating)' if rated else ''}"
        for (profile, amperes, rated), count in counted.items()
    ]
    return ", ".join(words) or "no EVSE"
