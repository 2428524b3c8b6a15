# SPDX-License-Identifier: Apache-2.0
"""In which order settings may be written, so that no circuit is overloaded should control end in between. Pure.

What an EVSE may draw by itself follows from its fallback's settings. While they are written one after the other, any
mixture of old and new may be in force, so the worst of all mixtures counts. Devices whose settings raise nothing go
first. Those that raise something go afterwards, on what the devices are then known to hold: where the sum of all, those
raised at their worst, would be too much for a circuit, none that feeds from it is raised. What a device could not be
asked of counts as its EVSEs' ratings; devices that nobody meant to ask count by what they are declared to hold.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product

from derms_agent.depot.circuit_loads import Load
from derms_agent.depot.unattended import TOLERANCE, overloads, unattended_a
from derms_agent.drivers.register_map import stem, suffix
from derms_agent.model import Depot, Device, Evse, Value
from derms_agent.profiles.profile import Profile

Settings = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Order:
    """Which devices may be written at once, which only after those, and which not, with the reason."""

    first: tuple[str, ...] = ()
    then: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)


def order(
    depot: Depot,
    profiles: Mapping[str, Profile],
    held: Mapping[str, Sequence[Settings]],
    changes: Mapping[str, Settings],
) -> Order:
    """Return in which order devices may be given their changes.

    `profiles` by device. `held`: everything that a device that was to be asked may hold now, nothing where it could not
    be asked. `changes`: the settings that differ, of each device that may be written.
    """
    if not changes:
        return Order()
    now, worst, after = (dict[str, float](), dict[str, float](), dict[str, float]())
    raised: set[str] = set()
    for device in depot.devices.values():
        profile = profiles[device.name]
        states = held.get(device.name, (device.settings,))
        change = changes.get(device.name, {})
        for evse in device.evses:
            own_a = partial(_drawn_a, depot, profile, device, evse)
            now[evse.name] = max(map(own_a, states), default=_unread_a(depot, profile, device, evse))
            between = [own_a(mixture) for state in states for mixture in mixtures(profile, state, change)]
            worst[evse.name] = max(between, default=now[evse.name])
            after[evse.name] = max((own_a({**state, **change}) for state in states), default=now[evse.name])
            if worst[evse.name] > now[evse.name] + TOLERANCE:
                raised.add(device.name)
    first = tuple(name for name in changes if name not in raised)
    drawn = {
        evse.name: after[evse.name] if evse.device in first else now[evse.name]
        for device in depot.devices.values()
        for evse in device.evses
    }
    refused = _refused(depot, drawn, worst, raised)
    return Order(first, tuple(name for name in changes if name in raised and name not in refused), refused)


def _refused(
    depot: Depot, drawn_a: Mapping[str, float], worst_a: Mapping[str, float], raised: Collection[str]
) -> dict[str, str]:
    refused: dict[str, str] = {}
    while True:
        loads = [
            Load(
                evse.circuit,
                evse.phases,
                worst_a[evse.name] if device.name in raised and device.name not in refused else drawn_a[evse.name],
            )
            for device in depot.devices.values()
            for evse in device.evses
        ]
        too_much = overloads(depot.circuits, loads)
        found = {
            device.name: f"its fallback is not raised: with no EVSE controlled, {too_much[above]}"
            for device in depot.devices.values()
            if device.name in raised and device.name not in refused
            for evse in device.evses
            for above in _feeding(depot, evse)
            if above in too_much
        }
        if not found:
            return refused
        refused |= found


def _feeding(depot: Depot, evse: Evse) -> Iterator[str]:
    above: str | None = evse.circuit
    while above is not None:
        yield above
        above = depot.circuits[above].parent


def _drawn_a(depot: Depot, profile: Profile, device: Device, evse: Evse, known: Settings) -> float:
    own = suffix(device, evse)
    settings = {name.removesuffix(own) if own else name: value for name, value in known.items()}
    return unattended_a(profile, evse, depot.circuits[evse.circuit], settings)


def _unread_a(depot: Depot, profile: Profile, device: Device, evse: Evse) -> float:
    return max(evse.rating_a, _drawn_a(depot, profile, device, evse, device.settings))


def mixtures(profile: Profile, known: Settings, change: Settings) -> Iterator[Settings]:
    """Yield all that an EVSE may have while its device is given changes: each of its settings is old or new.

    Those of several connectors are of one mind here, for no EVSE heeds another's: twelve of them have as few mixtures
    as one.
    """
    points = () if profile.fallback is None else profile.fallback.points
    touched = tuple(dict.fromkeys(stem(name) for name in change if stem(name) in points))
    for choice in product((False, True), repeat=len(touched)):
        fresh = {name for name, chosen in zip(touched, choice, strict=True) if chosen}
        yield {**known, **{name: value for name, value in change.items() if stem(name) in fresh}}
