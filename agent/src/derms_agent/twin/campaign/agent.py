# SPDX-License-Identifier: Apache-2.0
"""The campaign's own agent, in one of eight depots: control's cycle, with a ledger on a disk that outlives it.

It tries what the orchestrator (`orchestrator.py`) does not do: EVSEs on phases that nobody told, a base load that the
guard itself counts, settings that last through a restart, and storage that gives back whatever is read of its watchdog.

In every other scene, EVSEs' shares are what `allocate` makes them; in the rest they are wild, for whatever they are, no
limit may be exceeded: some want all they can take, some nothing, and they change their minds together.

The base load reaches the guard by one of three ways, which the scene's seed picks, so that each is tried alone: counted
by the guard itself, taken off the circuits' limits, or both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from random import Random
from typing import Any

from derms_agent.control import allocate, guard, limits, soc, thermal
from derms_agent.control import ledger as book
from derms_agent.control.cycle import Allocated, Bounds, Cycle, EvseImage, Inputs, State
from derms_agent.control.network import Network
from derms_agent.control.worst_case import BaseLoad, Circuits
from derms_agent.model import Circuit, Connection, Evse, Limit, PerPhase, Phase, Quality, Reading, Session
from derms_agent.profiles.profile import Refresh
from derms_agent.twin import network
from derms_agent.twin.campaign import scene as stage
from derms_agent.twin.campaign.link import News, Proved, Sample, Values
from derms_agent.twin.campaign.scene import STORAGE, VOLTAGE_V, Scene
from derms_agent.twin.campaign.wishes import Share, Wishes

FRESH_S = 2.5
"""How old a reading may be, of a meter and of a charger."""

_SQRT3 = math.sqrt(3)
_NEUTRAL_V = VOLTAGE_V / _SQRT3
_SOC_FRESH_S = 10.0
_NONE = BaseLoad()


class Base(Enum):
    """Who counts the base load."""

    GUARD = "guard"
    LIMITS = "limits"
    BOTH = "both"


@dataclass(slots=True)
class Disk:
    """What outlives the process: the ledger, the boot in which it was stored, and when.

    It becomes JSON and back where a successor reads it: a ledger never changes once it is made.
    """

    stored: tuple[book.Ledger, str, float] | None = None

    def document(self) -> dict[str, Any] | None:
        """Return the ledger as a successor reads it."""
        if self.stored is None:
            return None
        found: dict[str, Any] = json.loads(json.dumps(book.to_json(*self.stored)))
        return found


@dataclass(frozen=True, slots=True)
class Asked:
    """What the world asks of control: the site's highest active power in W, if any."""

    site_w: float = math.inf


@dataclass(slots=True)
class Agent:
    """One process of control. Times are those of its own clock."""

    scene: Scene
    disk: Disk
    boot_id: str
    now_s: float
    rng: Random
    cycle: Cycle = field(init=False)
    state: State = field(init=False)
    base_by: Base = field(init=False)
    params: allocate.Params = field(init=False)
    _image: dict[str, EvseImage] = field(default_factory=dict)
    _samples: dict[str, Sample] = field(default_factory=dict)
    _soc: tuple[float | None, float] | None = None
    _temperatures: dict[str, thermal.Temperature] = field(default_factory=dict)
    _sensors: dict[str, thermal.Sensor] = field(init=False)
    _learnt: dict[str, thermal.Learnt] = field(default_factory=dict)
    _previous: Mapping[str, allocate.Allocation] = field(default_factory=dict)
    _sessions: dict[str, Session] = field(default_factory=dict)
    _evses: tuple[Evse, ...] = ()
    _network: Network | None = None
    _wild: Wishes | None = None

    def __post_init__(self) -> None:
        scene = self.scene
        stations = stations_of(scene)
        chance = Random(f"agent {scene.depot.site.limit_va}")  # noqa: S311 - the same for each process of an episode
        self.base_by = chance.choice(tuple(Base))
        self.params = allocate.Params(
            steps={one.name: allocate.Steps(minimum_a=one.least_a, step_a=one.step_a) for one in stations},
            hold_s=chance.choice((5.0, 30.0, 300.0)),
            spread_s=20.0,
        )
        if chance.random() < 0.5:  # noqa: PLR2004 - every other scene
            self._wild = Wishes(self.rng, (evse.name for evse in scene.depot.evses()))
        self.cycle = Cycle(
            circuits=Circuits(scene.depot.circuits, stations), combine=limits.Combining(), allocate=self._allocate
        )
        document = self.disk.document()
        if document is None:
            ledger = book.started(stations, self.now_s)
        else:
            ledger = book.from_json(document, stations, self.boot_id, self.now_s)
        self.state = State(ledger)
        self._evses = tuple(
            replace(evse, phases=tuple(Phase)) if evse.name in scene.hidden else evse for evse in scene.depot.evses()
        )
        self._network = Network(scene.depot.circuits, self._evses)
        self._sensors = {
            evse.name: replace(SENSOR, name=evse.name)
            for evse in self._evses
            if "temperature" in scene.profile(evse.device).points
        }

    def run(self, news: Iterable[News], now_s: float, asked: Asked, plugged: Iterable[str]) -> Sequence[guard.Write]:
        """Take in what has become known, and return what is to be written."""
        events = self._take(news)
        self._sessions = {name: self._sessions.get(name) or Session(evse=name, started_at_s=now_s) for name in plugged}
        image = {
            name: seen if now_s - seen.sent_s <= FRESH_S else replace(seen, quality=Quality.STALE)
            for name, seen in self._image.items()
        }
        base = None if self.base_by is Base.LIMITS else self._measured(now_s)
        if self.base_by is Base.LIMITS:
            base = dict.fromkeys(self.scene.depot.circuits, _NONE)
        inputs = Inputs(
            now_s=now_s,
            image=image,
            limits=self._limits(now_s, asked),
            events=events,
            base=base,
            idle=frozenset(evse.name for evse in self._evses if evse.name not in self._sessions),
        )
        outcome = self.cycle.run(self.state, inputs)
        self.state = outcome.state
        if outcome.writes or self.disk.stored is None:
            self.disk.stored = self.state.ledger, self.boot_id, now_s
        return outcome.writes

    def spans(self, now_s: float) -> Mapping[str, tuple[book.Span, book.Span, book.Span]]:
        """Return what the ledger says each EVSE may do now, on each phase."""
        return guard.intervals(self.state.ledger, now_s)

    def _take(self, news: Iterable[News]) -> tuple[book.Event, ...]:
        """Sort what has become known into image, samples and events."""
        events: list[book.Event] = []
        for item in news:
            if isinstance(item, Sample):
                self._samples[item.circuit] = _before(self.scene.depot.circuits[item.circuit], item)
            elif isinstance(item, Values):
                self._take_values(item)
            elif isinstance(item, book.Measured):
                self._image[item.evse] = EvseImage(
                    sent_s=item.sent_s, answered_s=item.answered_s, current_a=item.active_a
                )
            elif isinstance(item, book.ReadBack):
                seen = self._image.get(item.evse)
                if seen is not None and seen.sent_s == item.sent_s:
                    self._image[item.evse] = replace(seen, limit_a=item.amount.active_a)
            elif not isinstance(item, Reading | Proved):  # which are the orchestrator's
                events.append(item)
        return tuple(events)

    def _take_values(self, item: Values) -> None:
        if item.device == STORAGE:
            charge = item.values.get("soc")
            self._soc = (None if charge is None else float(charge), item.sent_s)
            return
        celsius = item.values.get("temperature")
        if celsius is not None:
            self._temperatures[item.device] = thermal.Temperature(float(celsius), item.sent_s)

    # Limits

    def _measured(self, now_s: float) -> dict[str, BaseLoad]:
        """Return the base loads that were measured a moment ago, of each circuit its own."""
        return {
            name: BaseLoad(active_a=_divided(sample.powers_w), reactive_a=_divided(sample.reactives_var))
            for name, sample in self._samples.items()
            if now_s - sample.sent_s <= FRESH_S
        }

    def _limits(self, now_s: float, asked: Asked) -> tuple[Limit, ...]:
        depot = self.scene.depot
        base = limits.base_loads(depot.circuits, self._metered(), now_s, FRESH_S)
        root = base[next(name for name, circuit in depot.circuits.items() if circuit.parent is None)]
        found = [*limits.site(depot.site.limit_va, root)]
        if self.base_by is not Base.GUARD:
            found += limits.circuits(depot.circuits, base)
        if math.isfinite(asked.site_w):
            found += limits.grid([limits.Ask(source="grid event", high_w=asked.site_w)], root)
        for evse in self._evses:
            found += limits.ratings(evse, self._sessions.get(evse.name))
            found += self._cooled(evse, now_s)
        if self.scene.storage:
            charge, read_at_s = self._soc or (None, None)
            battery = soc.Battery(
                target=STORAGE,
                soc_percent=charge,
                read_at_s=read_at_s,
                discharge_w=stage.storage_a() * _SQRT3 * VOLTAGE_V,
                capacity_wh=100_000.0,
            )
            policy = soc.Policy(reserve_percent=depot.site.soc_reserve_percent, fresh_s=_SOC_FRESH_S)
            found += soc.reserve(battery, now_s, policy)
        return tuple(found)

    def _metered(self) -> dict[str, limits.Metered]:
        """Return what a meter of each circuit would show without its EVSEs: its own load and those beneath it."""
        found: dict[str, limits.Metered] = {}
        circuits = self.scene.depot.circuits
        for name in circuits:
            names = [name, *(other.name for other in circuits.values() if other.parent == name)]
            samples = [self._samples[each] for each in names if each in self._samples]
            if len(samples) == len(names):
                found[name] = limits.Metered(
                    read_at_s=min(sample.sent_s for sample in samples),
                    current_a=_summed([sample.currents_a for sample in samples]),
                    active_w=_summed([sample.powers_w for sample in samples]),
                )
        return found

    def _cooled(self, evse: Evse, now_s: float) -> tuple[Limit, ...]:
        """Return what the temperature in an EVSE's enclosure leaves, where the device has a sensor."""
        sensor = self._sensors.get(evse.name)
        if sensor is None:
            return ()
        learnt = self._learnt.get(evse.name) or thermal.fresh(sensor)
        derating, self._learnt[evse.name] = thermal.derate(sensor, learnt, self._temperatures.get(evse.device), now_s)
        volts = _NEUTRAL_V * len(evse.phases)
        return thermal.limits(derating, {evse.name: evse.rating_a * volts})

    def _allocate(self, names: Sequence[str], bounds: Bounds, now_s: float) -> Mapping[str, Allocated]:
        if self._network is None:
            return {}
        relied = set(names)
        if self._wild is not None:
            return {**self._wild.at(now_s), **self._storage_share(now_s)}
        self._previous = allocate.allocate(
            self._evses,
            {name: session for name, session in self._sessions.items() if name in relied},
            bounds,
            self._network,
            now_s=now_s,
            previous=self._previous,
            plan=None,
            params=self.params,
        )
        shares: dict[str, Allocated] = {name: given for name, given in self._previous.items() if name in relied}
        return shares | self._storage_share(now_s)

    def _storage_share(self, now_s: float) -> dict[str, Allocated]:
        if self.scene.storage:
            # It gives what it may, until its charge or its limits say otherwise; and takes in between.
            amperes = stage.storage_a()
            return {STORAGE: Share(-amperes if now_s % 60 < 40 else amperes, "storage")}  # noqa: PLR2004
        return {}


SENSOR = replace(thermal.DEFAULTS[thermal.SensorKind.ENCLOSURE], required=True)
"""What each enclosure that can be read is watched by."""


def _before(circuit: Circuit, sample: Sample) -> Sample:
    """Return a sample as control wants it: of a circuit's own side, where its rating holds.

    The meter of a delta-wye circuit's base load sits behind the transformer, where the load is.
    """
    if circuit.connection is not Connection.DELTA_WYE:
        return sample
    volts = network.neutral_voltage(circuit)
    one, two, three = (
        turn * complex(watts, -reactive) / volts
        for turn, watts, reactive in zip(network.ANGLES, sample.powers_w, sample.reactives_var, strict=True)
    )
    lines = network.circuit_currents({circuit.name: replace(circuit, parent=None)}, {circuit.name: (one, two, three)})
    powers_w, reactives_var = network.powers(circuit, lines[circuit.name])
    first, second, third = map(abs, lines[circuit.name])
    return replace(sample, currents_a=(first, second, third), powers_w=powers_w, reactives_var=reactives_var)


def _divided(watts: PerPhase) -> PerPhase:
    return (watts[0] / _NEUTRAL_V, watts[1] / _NEUTRAL_V, watts[2] / _NEUTRAL_V)


def _summed(found: Sequence[PerPhase]) -> PerPhase:
    one, two, three = (sum(values[line] for values in found) for line in range(3))
    return (one, two, three)


def stations_of(scene: Scene) -> tuple[book.Station, ...]:
    """Return the stations that the agent is told of."""
    found = []
    # The twin's chargers keep their settings through a restart; in every other scene the agent may rely on that.
    settings_last = Random(f"settings {scene.depot.site.limit_va}").random() < 0.5  # noqa: PLR2004, S311
    for device in scene.depot.devices.values():
        profile = scene.profile(device.name)
        for evse in device.evses:
            known: dict[str, Any] = {"shows_in_force": profile.shows_in_force, "settings_last": settings_last}
            settings = stage.known_settings(device, profile)
            if evse.name in scene.hidden:
                known["phases"] = ()
            if not stage.has_watchdog(device, profile):
                known |= {"watchdog_s": None, "refreshed_by": Refresh.NONE, "fallback": book.Span(high=evse.rating_a)}
            elif profile.fallback is not None and profile.fallback.refreshed_by is Refresh.WRITE:
                watchdog_s = profile.watchdog_s(settings)
                known["refresh_s"] = None if watchdog_s is None else watchdog_s / 4
            volts = VOLTAGE_V if len(evse.phases) > 1 else _NEUTRAL_V
            found.append(book.station_of(evse, profile, settings, voltage_v=volts, **known))
    if scene.storage:
        found.append(_storage_station(scene))
    return tuple(found)


def _storage_station(scene: Scene) -> book.Station:
    return book.Station(
        name=STORAGE,
        circuit=str(scene.depot.devices[STORAGE].circuit),
        phases=tuple(Phase),
        rating_a=stage.storage_a(),
        lowest_a=-stage.storage_a(),
        after_boot=book.NOTHING,
        fallback=book.NOTHING,
        watchdog_s=20.0,
        refresh_s=5.0,
        least_a=0.0,
        step_a=0.1,
        follow_s=4.0,
    )
