# SPDX-License-Identifier: Apache-2.0
"""What stays the same while the orchestrator runs: a gateway's part of a depot, as control takes it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from types import MappingProxyType
from typing import Any

from derms_agent import profiles
from derms_agent.control import ledger as book
from derms_agent.control.network import Network
from derms_agent.control.worst_case import Circuits, watts_per_a
from derms_agent.grid_code import parse
from derms_agent.model import Circuit, Depot, Device, DeviceKind, Evse, Measures, Meter, Phase, Value
from derms_agent.profiles.point import Table
from derms_agent.profiles.profile import Profile, Protocol, Refresh

REFRESH_SHARE = 4
"""Repeated writes per time-out of a watchdog that counts writes: one may be lost and another be late."""
ANSWER_S = 1.0
"""How long after its deadline a request that was sent may still be executed, by a gateway that stored it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A depot as one gateway sees it.

    `depot` has the tree of circuits that this gateway shares out, and its share of the site's limits (`tree_of`).
    `devices` are those on its buses; profiles, EVSEs and stations are the whole tree's, so that what hangs on another
    gateway's buses, and is never heard here, counts at its rating. `meters` are the own meters that measure a circuit,
    by that circuit, and `generators` those of generators on it or beneath it, whoever hears them; `root` is the circuit
    that "site" stands for. `droops`: the devices that follow the frequency by themselves, as declared.
    """

    depot: Depot
    gateway: str
    devices: Mapping[str, Device]
    profiles: Mapping[str, Profile]
    evses: tuple[Evse, ...]
    stations: Mapping[str, book.Station]
    circuits: Circuits
    network: Network
    meters: Mapping[str, Meter]
    generators: Mapping[str, tuple[Meter, ...]]
    root: Circuit
    share: float
    droops: frozenset[str] = frozenset()

    def voltage_v(self, evse: Evse) -> float:
        """Return the voltage that W of an EVSE are shared out by, in V: between lines, or to neutral for one phase."""
        return declared_voltage_v(self.depot.circuits[evse.circuit], evse)


def tree_of(depot: Depot, gateway: str) -> tuple[Depot, float]:
    """Return a depot as far as one gateway shares it out, and what share of the site that is.

    Where each of several gateways shares out a tree of its own, none knows what the others draw. So each is given of
    the site's limits what its root's rating is of all roots': together they are the whole.

    :raises ValueError: it shares out no tree, or more than one
    """
    roots = {circuit.name: circuit for circuit in depot.circuits.values() if circuit.parent is None}
    own = [name for name, circuit in roots.items() if circuit.allocator == gateway]
    if len(own) != 1:
        found = ", ".join(own) or "none"
        raise ValueError(f"found the trees of circuits {found} for gateway {gateway}, expected one that it shares out")
    circuits = {name: circuit for name, circuit in depot.circuits.items() if _root_of(depot.circuits, name) == own[0]}
    share = depot.share_of(own[0])
    devices = {}
    for name, device in depot.devices.items():
        evses = tuple(evse for evse in device.evses if evse.circuit in circuits)
        elsewhere = device.kind is not DeviceKind.METER and device.circuit not in {None, *circuits}
        if evses or not (device.evses or elsewhere):
            devices[name] = replace(device, evses=evses)
    default_w = depot.site.default_limit_w
    site = replace(
        depot.site,
        limit_va=depot.site.limit_va * share,
        default_limit_w=None if default_w is None else default_w * share,
    )
    return replace(depot, circuits=circuits, devices=devices, site=site), share


def _root_of(circuits: Mapping[str, Circuit], name: str) -> str:
    return _upwards(circuits, name)[-1]


def _upwards(circuits: Mapping[str, Circuit], name: str) -> list[str]:
    """Return a circuit and all above it; none for one that is not among them."""
    found: list[str] = []
    at: str | None = name
    while at is not None and at in circuits:
        found.append(at)
        at = circuits[at].parent
    return found


def site_of(
    depot: Depot, gateway: str, *, shed_s: float, own_profiles: Mapping[str, Profile] = MappingProxyType({})
) -> Site:
    """Return what a gateway of a depot controls.

    :param shed_s: how long a setpoint's write may take until it is given up
    :param own_profiles: these stand for the built-in ones of their names
    :raises ValueError: the gateway has no bus, or no tree of circuits, or several
    """
    buses = {bus.name for bus in depot.buses.values() if bus.gateway == gateway}
    if not buses:
        raise ValueError(f"found no bus of gateway {gateway} in depot {depot.name}, expected one at least")
    depot, share = tree_of(depot, gateway)
    devices = {name: device for name, device in depot.devices.items() if device.bus in buses}
    known = {
        name: own_profiles.get(device.profile) or profiles.load(device.profile)
        for name, device in depot.devices.items()
    }
    evses = depot.evses()
    stations = {
        evse.name: station_of(depot, device, known[device.name], evse, shed_s=shed_s)
        for device in depot.devices.values()
        for evse in device.evses
    }
    meters = {
        meter.circuit: meter
        for meter in depot.meters.values()
        if meter.measures is Measures.CIRCUIT and meter.device in devices and meter.circuit in depot.circuits
    }
    return Site(
        depot=depot,
        gateway=gateway,
        devices=devices,
        profiles=known,
        evses=evses,
        stations=stations,
        circuits=Circuits(depot.circuits, tuple(stations.values())),
        network=Network(depot.circuits, evses),
        meters=meters,
        generators={
            circuit: tuple(
                meter
                for meter in depot.meters.values()
                if meter.measures is Measures.GENERATOR and circuit in _upwards(depot.circuits, meter.circuit)
            )
            for circuit in meters
        },
        root=next(circuit for circuit in depot.circuits.values() if circuit.parent is None),
        share=share,
        droops=frozenset(name for name, device in devices.items() if device.evses and _droops(device)),
    )


def _droops(device: Device) -> bool:
    """Whether a device is declared to follow the frequency by itself (SunSpec model 711)."""
    if device.der_settings is None:
        return False
    of_frequency = parse(device.name, device.der_settings).frequency_droop
    return of_frequency is not None and of_frequency.turns_on


def declared_voltage_v(circuit: Circuit, evse: Evse) -> float:
    """Return the voltage that W of an EVSE are shared out by, in V: between lines, or to neutral for one phase.

    It is the nominal one, but for one load between two lines of a delta: each of its conductors has half of the voltage
    between them, not what there is to neutral.
    """
    conductors = len(evse.phases or Phase)
    each_v = watts_per_a(circuit, conductors) / conductors
    return each_v if conductors == 1 else each_v * math.sqrt(3)


def station_of(depot: Depot, device: Device, profile: Profile, evse: Evse, *, shed_s: float) -> book.Station:
    """Return what the ledger is told of an EVSE.

    A watchdog that counts writes is fed by the guard, whose writes are in the ledger; a write is executed within
    `late_s` of its issue or never, for the driver gives it up after `shed_s` and its gateway soon after.
    """
    known: dict[str, Any] = {"shows_in_force": profile.shows_in_force}
    watchdog_s = profile.watchdog_s(device.settings)
    if profile.fallback is None or watchdog_s is None:
        # Not proven armed: whatever it holds, its rating counts while it is silent.
        known |= {"watchdog_s": None, "fallback": book.all_of(evse)}
    elif profile.fallback.refreshed_by is Refresh.WRITE:
        known["refresh_s"] = watchdog_s / REFRESH_SHARE
    bus = depot.buses[device.bus]
    known["late_s"] = shed_s + max(ANSWER_S, bus.timeout_s, bus.gateway_timeout_s)
    volts = declared_voltage_v(depot.circuits[evse.circuit], evse)
    return book.station_of(evse, profile, device.settings, voltage_v=volts, **known)


def armed(site: Site, device: Device, settings: Mapping[str, Any], asked_at_s: float) -> tuple[book.Armed, ...]:
    """Return what settings that were read back, on top of those declared, prove of a device's watchdogs.

    `settings` by the points' names; those that each EVSE has for itself carry the EVSE's own suffix ("…/2"). Of what
    may give back nothing counts that is only declared: its discharge would go on where the device has no such point.
    """
    profile = site.profiles[device.name]
    needed = () if profile.fallback is None else profile.fallback.points
    found = []
    for evse in device.evses:
        own = evse.name.removeprefix(device.name)
        read = dict(settings)
        if own:
            read |= {name.removesuffix(own): value for name, value in settings.items() if name.endswith(own)}
        if evse.lowest_a < 0 and any(name not in read for name in needed):
            found.append(book.Armed(evse.name, None, book.all_of(evse), asked_at_s))
            continue
        known = {**device.settings, **read}
        fallback = book.fallback_alone(evse, profile, known, site.voltage_v(evse))
        found.append(book.Armed(evse.name, profile.watchdog_s(known), fallback, asked_at_s))
    return tuple(found)


def fallback_written(
    device: Device, profile: Profile, table: Table, address: int, words: Sequence[int]
) -> dict[str, Value | None]:
    """Return what a write brings to a device's fallback, by setting; None where that cannot be told from its words."""
    points = () if profile.fallback is None else profile.fallback.points
    if profile.protocol is Protocol.SUNSPEC:
        return dict.fromkeys(points)
    found: dict[str, Value | None] = {}
    end = address + len(words)
    for name in points:
        point = profile.points[name]
        for evse in device.evses if point.stride else device.evses[:1]:
            first = point.address_of(evse.connector if point.stride else 1)
            last = first + point.length
            if point.table is not table or end <= first or last <= address:
                continue
            whole = address <= first and last <= end and point.mask is None
            own = evse.name.removeprefix(device.name) if point.stride else ""
            found[name + own] = point.decode(words[first - address : last - address]) if whole else None
    return found


def foreseen(
    site: Site, device: Device, held: Mapping[str, Value], written: Mapping[str, Value | None], at_s: float
) -> tuple[book.Armed, ...]:
    """Return what a device's watchdogs may come to once settings were written, or were not, or some of them.

    The worst of it: the highest fallback, the shortest time-out; a rating for good where what is written is not known.
    """
    known = {name: value for name, value in written.items() if value is not None}
    if len(known) < len(written):
        return tuple(book.Armed(evse.name, None, book.all_of(evse), at_s) for evse in device.evses)
    worst: dict[str, book.Armed] = {}
    for choice in product((False, True), repeat=len(known)):
        fresh = {name: known[name] for name, taken in zip(known, choice, strict=True) if taken}
        for one in armed(site, device, {**held, **fresh}, at_s):
            other = worst.get(one.evse, one)
            timeouts = [at for at in (one.watchdog_s, other.watchdog_s) if at is not None]
            watchdog_s = min(timeouts) if len(timeouts) == len((one, other)) else None
            fallback = one.fallback.hull(other.fallback)
            worst[one.evse] = book.Armed(one.evse, watchdog_s, fallback, at_s)
    return tuple(worst.values())
