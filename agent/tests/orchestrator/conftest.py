# SPDX-License-Identifier: Apache-2.0
"""The demo depot played second by second, without I/O: its devices take what they are written and show it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from derms_agent import depot as depots
from derms_agent.control import ledger as book
from derms_agent.control.cycle import Outcome, State
from derms_agent.control.guard import Write
from derms_agent.model import Evse, Measures, Meter, PerPhase, Phase, Proof, ProofKind, Quality, Reading, Value
from derms_agent.orchestrator.controller import Controller, Policy
from derms_agent.orchestrator.site import Site, site_of

DEMO = Path(__file__).parents[3] / "inventories" / "demo" / "depot.yml"
PHASES = tuple(Phase)
BEGAN_S = 1000.0
PERIOD_S = 1.0
ANSWER_S = 0.05
METER_AT_S = 0.5
CYCLE_AT_S = 0.6
PROVEN_S = 0.2
SETTLED_S = 40
"""After a start: until nobody counts at its rating any more, and shares were raised to what is free."""
VACANT: Mapping[str, Mapping[str, Value]] = {
    "heidelberg_energy_control": {"state": "no vehicle, allowed"},
    "keba_p30": {"state": "not ready", "cable": "in station"},
    "alpitronic_hyc": {"state": "available"},
}
TAKEN: Mapping[str, Mapping[str, Value]] = {
    "heidelberg_energy_control": {"state": "charging"},
    "keba_p30": {"state": "charging", "cable": "in station and vehicle, locked"},
    "alpitronic_hyc": {"state": "charging"},
}


def new_controller(site: Site, ledger: book.Ledger | None = None, **policy: Any) -> Controller:
    limits = {"limit_va": site.depot.site.limit_va, **policy}
    state = State(book.started(site.stations.values(), BEGAN_S) if ledger is None else ledger)
    return Controller(site=site, policy=Policy(**limits), state=state)


@dataclass
class Play:
    """A controller over devices that obey at once; `base_a` is what else is drawn at the root, `sun_a` is generated.

    The root's meter sees `voltage_share` of the nominal voltage; None: it has no such value.
    `silent` devices answer nothing, writes to `deaf` ones are lost, `blind` ones do not show what is
    drawn. `power_factor` is that of the chargers: one that is told A draws so many VA, one that is told W draws more of
    them. Where the cycle is told of the wall's clock, `wall_ahead_s`, the meter's register counts `imported_w`, what
    flowed in each second.
    """

    controller: Controller
    now_s: float = BEGAN_S
    base_a: PerPhase = (20.0, 20.0, 20.0)
    sun_a: PerPhase = (0.0, 0.0, 0.0)
    frequency_hz: float = 50.0
    voltage_share: float | None = 1.0
    power_factor: float = 1.0
    limit_a: dict[str, float] = field(default_factory=dict)
    most_a: dict[str, float] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    deaf: set[str] = field(default_factory=set)
    blind: set[str] = field(default_factory=set)
    writes: list[tuple[float, str, float]] = field(default_factory=list)
    urgent: list[str] = field(default_factory=list)
    last: dict[str, Reading] = field(default_factory=dict)
    wall_ahead_s: float | None = None
    frozen_a: dict[str, float] = field(default_factory=dict)
    air_c: dict[str, float] = field(default_factory=dict)
    boards_c: dict[str, float] = field(default_factory=dict)
    imported_w: list[float] = field(default_factory=list)

    @property
    def site(self) -> Site:
        return self.controller.site

    def vehicles(self, names: Iterable[str] | None = None) -> None:
        """Bring a vehicle that takes all that is offered to each EVSE."""
        chosen = None if names is None else set(names)
        self.most_a = {evse.name: evse.limit_a for evse in self.site.evses if chosen is None or evse.name in chosen}

    def drawn_a(self, evse: Evse) -> float:
        offered_a = self.frozen_a.get(evse.name, self.limit_a.get(evse.name, 0.0))
        return min(offered_a, self.most_a.get(evse.name, 0.0))

    def drawn_w(self) -> float:
        return sum(self.drawn_a(evse) * self.controller.watts_per_a(evse.name) for evse in self.site.evses)

    def flows_a(self) -> list[complex]:
        """Return what flows at the root on each line: active and reactive current."""
        lines = [complex(drawn - given) for drawn, given in zip(self.base_a, self.sun_a, strict=True)]
        turn = complex(self.power_factor, math.sqrt(1 - self.power_factor**2))
        for evse in self.site.evses:
            in_w = self.site.devices[evse.device].profile == "alpitronic_hyc"
            for phase in evse.phases:
                lines[PHASES.index(phase)] += self.drawn_a(evse) * turn / (self.power_factor if in_w else 1.0)
        return lines

    def told_w(self) -> float:
        entries = self.controller.state.ledger.entries
        return sum(
            amount.active_a * self.controller.watts_per_a(name)
            for name, entry in entries.items()
            if (amount := entry.told_amount) is not None
        )

    def take(self, device_name: str, values: Mapping[str, Value], at_s: float) -> None:
        reading = Reading(
            device=device_name,
            values=values,
            read_at_s=at_s,
            quality=Quality.GOOD,
            asked_at_s=at_s,
            answered_at_s=at_s + ANSWER_S,
            settings_asked_at_s=at_s,
        )
        self.last[device_name] = reading
        if self.controller.take(device_name, reading, at_s + ANSWER_S):
            self.urgent.append(device_name)

    def shown(self, device_name: str) -> dict[str, Value]:
        """Return what a charger shows: currents of its own conductors, in W on the DC side where it shows no A."""
        device = self.site.devices[device_name]
        found: dict[str, Value] = dict(device.settings)
        for evse in device.evses:
            own = evse.name.removeprefix(device_name)
            words = TAKEN if evse.name in self.most_a else VACANT
            found |= {point + own: value for point, value in words[device.profile].items()}
            amperes = self.drawn_a(evse)
            watts = amperes * self.controller.watts_per_a(evse.name)
            if device.profile == "alpitronic_hyc":
                limit_w = self.limit_a.get(evse.name, 0.0) * self.controller.watts_per_a(evse.name)
                found |= {f"active_power{own}": 0.95 * watts, f"power_limit{own}": limit_w}
            else:
                found |= {f"current_l{line}": amperes for line in (1, 2, 3)}
                found |= {"active_power": watts, "current_limit": self.limit_a.get(evse.name, 0.0)}
            if device_name in self.blind:
                found = {point: found[point] for point in found if not point.startswith(("current_l", "active_power"))}
            if evse.name in self.boards_c:
                found[f"temperature{own}"] = self.boards_c[evse.name]
            if evse.name in self.air_c:
                found[f"ambient_temperature{own}"] = self.air_c[evse.name]
        return found

    def read(self) -> None:
        """Let every device but the silent ones answer, the meter last; of those, what they said last becomes stale."""
        for name in self.silent & self.last.keys():
            self.controller.take(name, replace(self.last[name], quality=Quality.STALE), self.now_s)
        lines = self.flows_a()
        for name, device in self.site.devices.items():
            if device.evses and name not in self.silent:
                self.take(name, self.shown(name), self.now_s)
        volts = 400 / math.sqrt(3)
        if "sun" in self.site.devices and "sun" not in self.silent:
            sun = {f"current_l{line}": self.sun_a[line - 1] for line in (1, 2, 3)}
            sun |= {f"active_power_l{line}": -volts * self.sun_a[line - 1] for line in (1, 2, 3)}
            self.take("sun", sun, self.now_s)
        if "grid" not in self.silent:
            values = {f"current_l{line}": abs(lines[line - 1]) for line in (1, 2, 3)}
            values |= {f"active_power_l{line}": volts * lines[line - 1].real for line in (1, 2, 3)}
            values |= {"reactive_power": volts * sum(lines).imag}
            if self.wall_ahead_s is not None:
                self.imported_w.append(volts * sum(lines).real)
            energy_wh = 1e6 + sum(self.imported_w) * PERIOD_S / 3600
            values |= {"frequency": self.frequency_hz, "energy": energy_wh}
            if self.voltage_share is not None:
                values["voltage_l1"] = self.voltage_share * volts
            self.take("grid", values, self.now_s + METER_AT_S)

    def cycle(self) -> Outcome:
        at_s = self.now_s + CYCLE_AT_S
        outcome = self.controller.cycle(at_s, self.wall_ahead_s)
        for write in outcome.writes:
            self.take_write(write, at_s)
        return outcome

    def take_write(self, write: Write, at_s: float) -> None:
        """Let a device have a write, and answer it, unless it does not."""
        evse = self.site.evses[self.site.network.place[write.evse]]
        if evse.device in self.silent | self.deaf:
            self.controller.proved(write.evse, write.id, None, at_s + PROVEN_S)
            return
        amperes = max(write.amount.active_a, 0.0)
        self.limit_a[write.evse] = amperes
        self.writes.append((at_s, write.evse, amperes))
        proof = Proof(evse=write.evse, kind=ProofKind.ACKNOWLEDGED, asked=amperes, in_force=amperes)
        self.controller.proved(write.evse, write.id, proof, at_s + PROVEN_S)

    def step(self, seconds: int = 1) -> Outcome:
        """Go on; each second every device is read, and one cycle follows."""
        for _ in range(seconds):
            self.read()
            outcome = self.cycle()
            self.now_s += PERIOD_S
        return outcome

    def twin(self) -> Play:
        """Return another that goes on from here by itself."""
        return copy.deepcopy(self, {id(self.site): self.site})


MakePlay = Callable[..., Play]


@pytest.fixture(scope="session")
def site() -> Site:
    return site_of(depots.load(DEMO), "gateway-1", shed_s=2.0)


@pytest.fixture
def play(site: Site) -> MakePlay:
    """Return what makes a depot in which no vehicle is."""

    def make(ledger: book.Ledger | None = None, **policy: Any) -> Play:
        return Play(new_controller(site, ledger, **policy))

    return make


@pytest.fixture(scope="session")
def _charged(site: Site) -> Play:
    one = Play(new_controller(site))
    one.step(3)
    one.vehicles()
    one.step(SETTLED_S)
    return one


@pytest.fixture
def charging(_charged: Play) -> Play:
    """Return the depot with a vehicle at each EVSE, that take all that the site leaves them."""
    return _charged.twin()


@pytest.fixture
def sunny(site: Site) -> Play:
    """Return the depot with 60 A drawn beside its vehicles and 40 A from a generator that has a meter."""
    depot = depots.load(DEMO)
    meter = replace(depot.devices["grid"], name="sun", unit_id=2)
    sun = Meter(name="sun", device="sun", measures=Measures.GENERATOR, circuit="main")
    depot = replace(depot, devices={**depot.devices, "sun": meter}, meters={**depot.meters, "sun": sun})
    one = Play(new_controller(site_of(depot, site.gateway, shed_s=2.0)), base_a=(60.0,) * 3, sun_a=(40.0,) * 3)
    one.step(3)
    one.vehicles()
    return one
