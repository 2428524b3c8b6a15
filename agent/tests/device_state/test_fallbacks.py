# SPDX-License-Identifier: Apache-2.0
"""The order of safety settings: whatever is held and wanted, no circuit becomes overloaded while they are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st

from derms_agent import profiles as built_in
from derms_agent.depot.circuit_loads import Load, worst
from derms_agent.depot.unattended import overloads, unattended_a
from derms_agent.device_state import fallbacks
from derms_agent.device_state.run import depot_of
from derms_agent.drivers.register_map import stem
from derms_agent.model import Depot, Phase, Value
from derms_agent.profiles.profile import AfterBoot, Profile

RATING_A = 16
EVSE = {"rating_a": RATING_A}
SILENT, UNASKED = "silent", "unasked"
"""A device that was to be asked and did not answer, and one that nobody meant to ask."""
PROFILES = built_in.load_all()
PHASES = ((Phase.L1,), (Phase.L2, Phase.L3), (Phase.L1, Phase.L2, Phase.L3))
VALUES: Mapping[str, st.SearchStrategy[Value]] = {
    "failsafe_current": st.sampled_from([0, 6, 10, 13, 16, 32]),
    "failsafe_timeout": st.sampled_from([0, 15, 30]),
    "failsafe_persist": st.sampled_from(["kept", "not kept"]),
}
# Two have one EVSE; one has two of them, each with settings and a circuit of its own.
DOCUMENT: Mapping[str, Any] = {
    "plugin": "derms.edge.depot",
    "depot": "drawn",
    "site": {"limit_kva": 500},
    "gateways": {"gateway-1": {"address": "192.0.2.9"}},
    "circuits": {
        "root": {"voltage_v": 400, "rating_a": 500, "base_load_a": 5, "allocator": "gateway-1"},
        "left": {"voltage_v": 400, "rating_a": 500, "parent": "root"},
        "right": {"voltage_v": 400, "rating_a": 500, "parent": "root"},
    },
    "buses": {
        f"bus-{number}": {"gateway": "gateway-1", "transport": "tcp", "host": f"192.0.2.{number}"} for number in "123"
    },
    "devices": {
        name: {"bus": f"bus-{number}", "unit_id": 1, "profile": profile, "circuit": circuit, "evses": evses}
        for number, name, profile, circuit, evses in (
            (1, "a", "keba_p30", "left", EVSE),
            (2, "c", "keba_p30", "right", EVSE),
            (3, "d", "phoenix_charx", "right", {"1": EVSE, "2": {**EVSE, "circuit": "left"}}),
        )
    },
}


@dataclass(frozen=True)
class Case:
    """A depot, what each of its devices holds in truth, and what it is to be given."""

    depot: Depot
    profiles: Mapping[str, Profile]
    held: Mapping[str, Mapping[str, Value]]
    changes: Mapping[str, Mapping[str, Value]]
    reached: Mapping[str, str]

    def known(self) -> dict[str, tuple[Mapping[str, Value], ...]]:
        """Return what was found out before the order is asked for."""
        asked = {name: held for name, held in self.held.items() if self.reached[name] != UNASKED}
        return {name: () if self.reached[name] == SILENT else (held,) for name, held in asked.items()}

    def order(self) -> fallbacks.Order:
        return fallbacks.order(self.depot, self.profiles, self.known(), self.changes)

    def loads(self, held: Mapping[str, Mapping[str, Value]]) -> list[Load]:
        """Return what EVSEs may draw by themselves; who did not answer draws its rating, or more if so declared."""
        loads = []
        for device in self.depot.devices.values():
            for evse in device.evses:
                own = evse.name.removeprefix(device.name)
                there = device.settings if self.reached[device.name] == SILENT else held[device.name]
                mine = {name.removesuffix(own) if own else name: value for name, value in there.items()}
                drawn_a = unattended_a(self.profiles[device.name], evse, self.depot.circuits[evse.circuit], mine)
                if self.reached[device.name] == SILENT:
                    drawn_a = max(drawn_a, evse.rating_a)
                loads.append(Load(evse.circuit, evse.phases, drawn_a))
        return loads

    def overloaded(self, held: Mapping[str, Mapping[str, Value]]) -> set[str]:
        """Return the circuits that would be overloaded."""
        return set(overloads(self.depot.circuits, self.loads(held)))


DEPOT = depot_of(DOCUMENT)


def settings_of(name: str) -> list[str]:
    """Return the settings that say what a device does by itself, and one that does not, by the names of results."""
    device = DEPOT.devices[name]
    points = [point for point in VALUES if point in PROFILES[device.profile].points]
    return [point + evse.name.removeprefix(name) for point in points for evse in device.evses]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a case; circuits are rated for a little less or a little more than what flows before anything is written."""
    devices, profiles, held, changes, reached = {}, {}, {}, {}, {}
    for name, device in DEPOT.devices.items():
        values = st.fixed_dictionaries({one: VALUES[stem(one)] for one in settings_of(name)})
        profile = PROFILES[device.profile]
        assert profile.fallback is not None
        after_boot = draw(st.sampled_from([AfterBoot.FALLBACK, AfterBoot.OFF, AfterBoot.RATING]))
        profiles[name] = replace(profile, fallback=replace(profile.fallback, after_boot=after_boot))
        phases = draw(st.sampled_from(PHASES))
        evses = tuple(replace(evse, phases=phases) for evse in device.evses)
        devices[name] = replace(device, evses=evses, settings=draw(values))
        reached[name] = draw(st.sampled_from(["answers", "answers", "answers", SILENT, UNASKED]))
        held[name] = devices[name].settings if reached[name] == UNASKED else draw(values)
        if reached[name] == "answers":
            changes[name] = {one: value for one, value in draw(values).items() if value != held[name][one]}
    case = Case(
        replace(DEPOT, devices=devices), profiles, held, {one: new for one, new in changes.items() if new}, reached
    )
    flows = worst(DEPOT.circuits, case.loads(held))
    circuits = {}
    for name, circuit in DEPOT.circuits.items():
        rating_a = max(1.0, max(flows[name].current_a) + draw(st.sampled_from([-1.0, 1.0, 5.0, 11.0, 17.0])))
        circuits[name] = replace(circuit, rating_a=(rating_a,) * 3)
    return replace(case, depot=replace(case.depot, circuits=circuits))


@settings(max_examples=300)
@given(cases(), st.data())
def test_no_circuit_becomes_overloaded_while_settings_are_written(case: Case, data: st.DataObject) -> None:
    order = case.order()
    assert {*order.first, *order.then, *order.refused} == set(case.changes)
    assert len(order.first) + len(order.then) + len(order.refused) == len(case.changes)
    before = case.overloaded(case.held)
    event(f"{len(order.first)} first, {len(order.then)} then, {len(order.refused)} refused")
    held = {name: dict(settings) for name, settings in case.held.items()}
    for names in (order.first, order.then):
        writes = [(name, setting) for name in names for setting in case.changes[name]]
        for name, setting in data.draw(st.permutations(writes)):
            held[name][setting] = case.changes[name][setting]
            assert case.overloaded(held) <= before


@given(cases())
def test_what_says_nothing_of_a_fallback_is_never_held_back(case: Case) -> None:
    order = case.order()
    for name, change in case.changes.items():
        fallback = case.profiles[name].fallback
        assert fallback is not None
        if not any(stem(setting) in fallback.points for setting in change):
            assert name in order.first


def test_a_device_of_many_connectors_is_ordered_at_once() -> None:
    """Each connector's settings are old or new by themselves; all of their mixtures would be 2 to the 24."""
    document = {
        **DOCUMENT,
        "devices": {"d": {**DOCUMENT["devices"]["d"], "evses": dict.fromkeys(map(str, range(1, 13)), EVSE)}},
    }
    depot = depot_of(document)
    names = [f"{point}/{number}" for point in ("failsafe_current", "failsafe_timeout") for number in range(1, 13)]
    held = {name: 6 if name.startswith("failsafe_current") else 30 for name in names}
    change = {name: 16 if name.startswith("failsafe_current") else 15 for name in names}
    order = fallbacks.order(depot, {"d": PROFILES["phoenix_charx"]}, {"d": [held]}, {"d": change})
    assert (order.first, order.then, dict(order.refused)) == (("d",), (), {})
    assert len(list(fallbacks.mixtures(PROFILES["phoenix_charx"], held, change))) == 4
