# SPDX-License-Identifier: Apache-2.0
"""What lies between control and the twin: drivers and wires, in one process and under virtual time.

It does what the drivers do: polls each device once a second and its meters twice, reads settings back, feeds watchdogs
only while control is alive, has one request in flight for each bus, puts writes before polls, withdraws what a newer
write makes obsolete, and never sends a write again by itself. And it does what wires do: take time, lose requests, lose
answers, and now and then bring a request late of which nobody expects anything any more.

What became of it all comes back in the order in which it became known. The orchestrator gets what its drivers would
hand it: each device's `Reading`, and what became of each write. The campaign's own agent gets the ledger's own events
(`derms_agent.control.ledger`); meters' readings and the chargers' values beside them.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from types import MappingProxyType
from typing import TypeAlias

from derms_agent.control import ledger as book
from derms_agent.drivers.reads import Span
from derms_agent.drivers.sunspec import FoundMap, FoundModel, SunSpecMap
from derms_agent.drivers.sunspec_model import HEADER
from derms_agent.model import Device, DeviceKind, Evse, PerPhase, Phase, ProofKind, Reading, Value
from derms_agent.profiles.point import Point, Table
from derms_agent.profiles.profile import Profile, Refresh
from derms_agent.twin import meter as meters
from derms_agent.twin.campaign.scene import GENERATOR, STORAGE, VOLTAGE_V, Scene, has_watchdog, known_settings
from derms_agent.twin.faults import FaultKind
from derms_agent.twin.pdu import Refusal
from derms_agent.twin.rehearsal import Rehearsal, Silence

POLL_S = 1.0
METER_POLL_S = 0.5
SETTINGS_S = 60.0
TIMEOUT_S = 1.0
UNSENT_S = 2.0
"""A write that could not begin by then is given up, and so never executed."""
LATEST_S = 2.8
"""Whatever may still be executed of a lost write is so by then, counted from its issue."""
_CURRENTS = ("current_l1", "current_l2", "current_l3")
_POWERS = ("active_power_l1", "active_power_l2", "active_power_l3")
_SHORTEST_S, _LONGEST_S = 0.02, 0.25
_PHASES = tuple(Phase)
_SQRT3 = math.sqrt(3)


@dataclass(frozen=True, slots=True)
class Sample:
    """A meter's answer: A of each line, W and var of each phase; asked for at `sent_s`."""

    circuit: str
    currents_a: PerPhase
    powers_w: PerPhase
    reactives_var: PerPhase
    sent_s: float
    answered_s: float


@dataclass(frozen=True, slots=True)
class Values:
    """What a device showed beside its currents: temperature, state of charge, state."""

    device: str
    values: Mapping[str, Value]
    sent_s: float
    answered_s: float


@dataclass(frozen=True, slots=True)
class Proved:
    """What became of a write, and when that was known."""

    evse: str
    write: int
    kind: ProofKind
    at_s: float


News: TypeAlias = "book.Event | Sample | Values | Reading | Proved"


@dataclass(frozen=True, slots=True)
class Odds:
    """How often one request goes wrong: the request lost, its answer lost, the request brought late."""

    request: float = 0.0
    answer: float = 0.0
    late: float = 0.0


@dataclass(slots=True)
class _Job:
    """What is to be done on a bus: `steps` are requests, each of which returns what it reads."""

    device: str
    steps: list[Callable[[], object]]
    done: Callable[[list[object], float, float], None]
    failed: Callable[[bool, bool, float], None]
    issued_s: float
    write: int | None = None
    evse: str | None = None
    dead: bool = False
    began_s: float = 0.0
    results: list[object] = field(default_factory=list)


@dataclass(slots=True)
class _Line:
    """A bus: what waits, the urgent first, and what is in flight."""

    urgent: list[_Job] = field(default_factory=list)
    patient: list[_Job] = field(default_factory=list)
    busy: _Job | None = None


class Link:
    """The drivers of one agent process. `close` is its death: what is on the wire may still arrive.

    `odds` may be changed at any time, and so may `lacking`: which values a meter's answers lack. `news()` hands over
    what has become known, by the agent's clock, which is `offset_s` ahead of the twin's; all else is by the twin's.
    """

    def __init__(  # noqa: PLR0917 - what an episode has
        self,
        twin: Rehearsal,
        scene: Scene,
        rng: Random,
        odds: Odds,
        offset_s: float = 0.0,
        lacking: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self.odds = odds
        self._offset_s = offset_s
        self.losses: dict[str, float] = {}
        """When a device was last seen not to take a request, by device."""
        self.taken: dict[str, float] = {}
        """When a device last took one."""
        self._twin, self._scene, self._rng = twin, scene, rng
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._news: list[News] = []
        self._lines: dict[str, _Line] = {bus: _Line() for bus in scene.depot.buses}
        self._alive = True
        self._lease_until_s = -math.inf
        self._evses: dict[str, tuple[Evse, Device, Profile]] = {}
        self._settings_due: dict[str, float] = {}
        self._heard_s: dict[str, float] = {}
        self._whole = scene.policy is not None
        self._lacking: Mapping[str, tuple[str, ...]] = {} if lacking is None else lacking
        self._settings: dict[str, tuple[Mapping[str, Value], float]] = {}
        self._fed_s: dict[str, float] = {}
        self._points: dict[str, list[_Read]] = {}
        self._storage = _laid_out(twin, scene) if scene.storage else None
        self._setting_points: dict[str, list[_Read]] = {}
        for device in scene.depot.devices.values():
            profile = scene.profile(device.name)
            looked_at = [*_CURRENTS, "temperature", "soc", *_limit_points(profile)]
            self._points[device.name] = _shown(profile, profile.poll if self._whole else looked_at)
            self._setting_points[device.name] = _shown(profile, _setting_points(profile))
            for evse in device.evses:
                self._evses[evse.name] = (evse, device, profile)
            period_s = METER_POLL_S if device.kind is DeviceKind.METER and not self._whole else POLL_S
            self._at(twin.now_s + rng.uniform(0, period_s), lambda d=device, p=period_s: self._poll(d, p))  # type: ignore[misc]
            fallback = profile.fallback
            if fallback is not None and fallback.heartbeat is not None:
                every_s = fallback.heartbeat.every_s / 2
                self._at(twin.now_s + rng.uniform(0, 1), lambda d=device, e=every_s: self._beat(d, e))  # type: ignore[misc]

    def close(self) -> None:
        """End at once. Nothing is sent and nothing told any more."""
        self._alive = False
        for line in self._lines.values():
            line.urgent.clear()
            line.patient.clear()
        self._news.clear()

    def news(self) -> list[News]:
        """Return what has become known since the last call."""
        found, self._news = self._news, []
        return found

    def step(self) -> bool:
        """Do what is due by the twin's now; return whether anything was."""
        now_s = self._twin.now_s + 1e-9
        due = self._due
        if not due or due[0][0] > now_s:
            return False
        while due and due[0][0] <= now_s:
            heapq.heappop(due)[2]()
        return True

    def renew(self, until_s: float) -> None:
        """Say that control is alive: heartbeats go on until then."""
        self._lease_until_s = until_s

    def write(self, write: int, evse: str, amount: book.Amount, issued_s: float) -> None:
        """Write a limit. What became of it is told as an event with that id."""
        if evse == STORAGE:
            steps, bus, device = self._storage_steps(amount.active_a), STORAGE, STORAGE
        else:
            declared, unit, profile = self._evses[evse]
            steps, bus, device = self._limit_steps(declared, unit, profile, amount.active_a), unit.bus, unit.name
        line = self._lines[bus]
        for other in line.urgent:
            if other.evse == evse and other.write is not None and not other.dead:
                other.dead = True
                self._tell_write(evse, other.write, ProofKind.UNSENT, issued_s)
        line.urgent = [job for job in line.urgent if not job.dead]

        def done(_results: list[object], sent_s: float, answered_s: float) -> None:
            del sent_s
            self._tell_write(evse, write, ProofKind.ACKNOWLEDGED, answered_s)

        def failed(sent: bool, refused: bool, at_s: float) -> None:
            unsent = ProofKind.REFUSED if refused else ProofKind.UNSENT
            self._tell_write(evse, write, ProofKind.INDETERMINATE if sent and not refused else unsent, at_s)

        self._put(bus, _Job(device, steps, done, failed, issued_s, write, evse), urgent=True)

    # What is asked

    def _poll(self, device: Device, period_s: float) -> None:
        if not self._alive:
            return
        now_s = self._twin.now_s
        self._at(now_s + period_s, lambda: self._poll(device, period_s))
        line = self._lines[device.bus]
        if any(job.device == device.name for job in line.patient) or (line.busy and line.busy.device == device.name):
            return
        if device.kind is DeviceKind.METER:
            done = partial(self._read_whole, device.name) if self._whole else self._sampled
            self._put(device.bus, _Job(device.name, [lambda: self._sample(device)], done, _nothing, now_s))
            return
        if device.name == STORAGE and not self._whole:
            self._put(
                device.bus,
                _Job(device.name, [lambda: self._read_values(device)], self._storage_polled, _nothing, now_s),
            )
            return
        if device.name == GENERATOR:
            self._put(
                device.bus,
                _Job(device.name, [self._generator_values], partial(self._read_whole, GENERATOR), _nothing, now_s),
            )
            return
        profile = self._scene.profile(device.name)
        if now_s >= self._settings_due.get(device.name, -math.inf):
            self._put(
                device.bus,
                _Job(
                    device.name,
                    [lambda: self._read_settings(device)],
                    lambda results, sent_s, answered_s: self._armed(device, profile, results[0], sent_s, answered_s),
                    _nothing,
                    now_s,
                ),
            )
        self._put(
            device.bus,
            _Job(
                device.name,
                [lambda: self._read_values(device)],
                lambda results, sent_s, answered_s: self._polled(device, profile, results[0], sent_s, answered_s),
                _nothing,
                now_s,
            ),
        )

    def _beat(self, device: Device, every_s: float) -> None:
        if not self._alive:
            return
        now_s = self._twin.now_s
        self._at(now_s + every_s, lambda: self._beat(device, every_s))
        if now_s > self._lease_until_s:
            return
        profile = self._scene.profile(device.name)
        fallback = profile.fallback
        if fallback is None or fallback.heartbeat is None:
            return
        beat = fallback.heartbeat

        def done(_results: list[object], sent_s: float, _answered_s: float) -> None:
            self._fed_s[device.name] = sent_s
            for evse in () if self._whole else device.evses:
                self._tell(book.Refreshed(evse.name, sent_s))

        step = self._writing(device, profile.points[beat.point], beat.value)
        self._put(device.bus, _Job(device.name, [step], done, _nothing, now_s), urgent=True)

    def _limit_steps(self, evse: Evse, device: Device, profile: Profile, amperes: float) -> list[Callable[[], object]]:
        control = profile.control
        if control is None:
            return []
        point = profile.points[control.point]
        amperes = 0.0 if amperes < control.minimum else math.floor(amperes / control.step + _NOISE) * control.step
        if control.switch is None:
            return [self._writing(device, point, amperes, evse.connector)]
        switch = profile.points[control.switch.point]
        if amperes <= 0:
            return [self._writing(device, switch, control.switch.off, evse.connector)]
        return [
            self._writing(device, point, amperes, evse.connector),
            self._writing(device, switch, control.switch.on, evse.connector),
        ]

    def _writing(self, device: Device, point: Point, value: Value, connector: int = 1) -> Callable[[], object]:
        words = point.encode(value)
        function = self._scene.profile(device.name).wire.write_function

        def write() -> object:
            at = point.address_of(connector)
            self._twin.write(device.bus, device.unit_id, point.table, at, words, function=function)
            return None

        return write

    def _storage_steps(self, amperes: float) -> list[Callable[[], object]]:
        """Return the writes of a storage inverter's set-point: its power, then what makes it hold."""
        control = self._scene.profile(STORAGE).control
        if control is None:
            return []
        watts = amperes * _SQRT3 * VOLTAGE_V
        watts = math.copysign(math.floor(abs(watts) / control.step + _NOISE) * control.step, watts)
        return [
            self._storage_writing(name, value) for name, value in ((control.point, watts), *control.in_force.items())
        ]

    def _storage_writing(self, name: str, value: Value) -> Callable[[], object]:
        device = self._scene.depot.devices[STORAGE]

        def write() -> object:
            registers = self._storage
            if registers is not None:
                words = _words(self._twin, device, registers.before_write(name))
                request = registers.write(name, value, words)
                self._twin.write(device.bus, device.unit_id, request.table, request.address, request.words)
            return None

        return write

    # What comes back

    def _read_values(self, device: Device) -> dict[str, Value]:
        if device.name == STORAGE:
            return self._read_storage(device, self._scene.profile(STORAGE).poll)
        return self._read(device, self._points[device.name])

    def _read_settings(self, device: Device) -> dict[str, Value]:
        if device.name == STORAGE:
            fallback = self._scene.profile(STORAGE).fallback
            return self._read_storage(device, () if fallback is None else fallback.points)
        return self._read(device, self._setting_points[device.name])

    def _read_storage(self, device: Device, names: Iterable[str]) -> dict[str, Value]:
        registers = self._storage
        if registers is None:
            return {}
        # One request, so that silence, refusals and reboots act on it; the others are of the same moment.
        self._twin.read(device.bus, device.unit_id, _HOLDING, registers.before_write("power_setpoint")[0].address, 1)
        known = {name: registers.value(name, _words(self._twin, device, registers.spans(name))) for name in names}
        return {name: value for name, value in known.items() if value is not None}

    def _read(self, device: Device, points: Iterable[_Read]) -> dict[str, Value]:
        unit = self._twin.units[device.bus, device.unit_id]
        found: dict[str, Value] = {}
        asked = False
        for name, shown, at in points:
            # The first goes the whole way, so that faults act on it; the others are of the same moment.
            words = unit.read(*at) if asked else self._twin.read(device.bus, device.unit_id, *at)
            asked = True
            value = shown.decode(words)
            if value is not None:
                found[name] = value
        return found

    def _polled(self, device: Device, profile: Profile, found: object, sent_s: float, answered_s: float) -> None:
        if not isinstance(found, dict):
            return
        self._note_heard(device, sent_s)
        if self._whole:
            self._tell_reading(device.name, found, sent_s, answered_s)
            return
        for evse in device.evses:
            currents = [0.0, 0.0, 0.0]
            for phase, name in zip(evse.phases, _CURRENTS, strict=False):
                currents[_PHASES.index(phase)] = float(found.get(name, 0.0))
            self._tell(book.Measured(evse.name, (currents[0], currents[1], currents[2]), sent_s, answered_s))
            shown = _shown_a(profile, found)
            if shown is not None:
                self._tell(book.ReadBack(evse.name, book.Amount(shown), sent_s, answered_s))
        self._tell(Values(device.name, found, sent_s, answered_s))

    def _note_heard(self, device: Device, sent_s: float) -> None:
        """Let settings be read again where a restart may have come between."""
        heard_s = self._heard_s.get(device.name, -math.inf)
        if sent_s - heard_s > _GAP_S:
            self._settings_due[device.name] = -math.inf
        self._heard_s[device.name] = sent_s

    def _armed(self, device: Device, profile: Profile, found: object, sent_s: float, answered_s: float) -> None:
        del answered_s
        if not isinstance(found, dict):
            return
        self._settings_due[device.name] = self._twin.now_s + SETTINGS_S
        self._settings[device.name] = found, sent_s
        if self._whole:
            return
        known = {**known_settings(device, profile), **found}
        for evse in device.evses:
            watched = has_watchdog(device, profile)
            volts = VOLTAGE_V if len(evse.phases) > 1 else VOLTAGE_V / _SQRT3
            fallback = book.fallback_alone(evse, profile, known, volts) if watched else book.all_of(evse)
            watchdog_s = profile.watchdog_s(known) if watched else None
            self._tell(book.Armed(evse.name, watchdog_s, fallback, sent_s))

    def _sample(self, device: Device) -> Sample | dict[str, Value]:
        for fault in self._twin.faults_of(device.bus, device.unit_id):
            if fault in (FaultKind.SILENT, FaultKind.REBOOT):
                raise Silence
        meter = self._twin.meters[device.name].reading
        if self._whole:
            lacking = self._lacking.get(device.name, ())
            return {name: value for name, value in _metered(meter).items() if name not in lacking}
        now_s = self._twin.now_s
        return Sample(str(device.circuit), meter.currents_a, meter.powers_w, meter.reactives_var, now_s, now_s)

    def _sampled(self, results: list[object], sent_s: float, answered_s: float) -> None:
        found = results[0]
        if isinstance(found, Sample):
            at = (found.currents_a, found.powers_w, found.reactives_var)
            self._tell(Sample(found.circuit, *at, sent_s, answered_s))

    def _read_whole(self, device: str, results: list[object], sent_s: float, answered_s: float) -> None:
        found = results[0]
        if isinstance(found, dict):
            self._tell_reading(device, found, sent_s, answered_s)

    def _generator_values(self) -> dict[str, Value]:
        inverter = self._twin.inverters[GENERATOR]
        # One request, as for storage.
        unit = self._scene.depot.devices[GENERATOR].unit_id
        self._twin.read(GENERATOR, unit, _HOLDING, inverter.image.address(704, "WSet"), 2)
        state = inverter.state
        each_a = math.hypot(state.power_w, state.reactive_var) / (_SQRT3 * VOLTAGE_V)
        currents = dict.fromkeys(_CURRENTS, each_a)
        return {"active_power": state.power_w, "reactive_power": state.reactive_var, **currents}

    def _storage_polled(self, results: list[object], sent_s: float, answered_s: float) -> None:
        found = results[0]
        if isinstance(found, dict):
            amperes = float(found["active_power"]) / (_SQRT3 * VOLTAGE_V)
            self._tell(book.Measured(STORAGE, (amperes, amperes, amperes), sent_s, answered_s))
            self._tell(book.Armed(STORAGE, _STORAGE_WATCHDOG_S, book.NOTHING, sent_s))
            self._tell(Values(STORAGE, found, sent_s, answered_s))

    # The wire

    def _tell_reading(self, device: str, values: Mapping[str, Value], sent_s: float, answered_s: float) -> None:
        settings, settings_s = self._settings.get(device, (_NO_VALUES, None))
        fed_s, by_s = self._fed_s.get(device), self._offset_s
        reading = Reading(
            device,
            {**settings, **values},
            answered_s + by_s,
            asked_at_s=sent_s + by_s,
            answered_at_s=answered_s + by_s,
            settings_asked_at_s=None if settings_s is None else settings_s + by_s,
            fed_at_s=None if fed_s is None else fed_s + by_s,
        )
        if self._alive:
            self._news.append(reading)

    def _tell_write(self, evse: str, write: int, kind: ProofKind, at_s: float) -> None:
        if self._whole:
            self._tell(Proved(evse, write, kind, at_s))
        elif kind is ProofKind.ACKNOWLEDGED:
            self._tell(book.Acknowledged(evse, write, at_s))
        elif kind is ProofKind.INDETERMINATE:
            self._tell(book.Lost(evse, write, at_s))
        else:
            self._tell(book.NotExecuted(evse, write, at_s))

    def _tell(self, news: News) -> None:
        if self._alive:
            self._news.append(_shifted(news, self._offset_s) if self._offset_s else news)

    def _at(self, at_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._due, (at_s, next(self._order), what))

    def _put(self, bus: str, job: _Job, *, urgent: bool = False) -> None:
        line = self._lines[bus]
        (line.urgent if urgent else line.patient).append(job)
        if line.busy is None:
            self._next(line)

    def _next(self, line: _Line) -> None:
        line.busy = None
        now_s = self._twin.now_s
        while self._alive and (line.urgent or line.patient):
            job = (line.urgent or line.patient).pop(0)
            if now_s - job.issued_s > UNSENT_S:
                job.failed(False, False, now_s)
                continue
            job.began_s = now_s
            line.busy = job
            self._send(line, job, 0)
            return

    def _send(self, line: _Line, job: _Job, step: int) -> None:
        """Send one request of a job, and see what comes of it."""
        now_s, rng, odds = self._twin.now_s, self._rng, self.odds
        delay_s = rng.uniform(_SHORTEST_S, _LONGEST_S)
        chance = rng.random()
        executed_s, answered_s = now_s + delay_s / 2, now_s + delay_s
        lost = chance < odds.request + odds.answer + odds.late
        if lost:
            self.losses[job.device] = now_s
            answered_s = now_s + TIMEOUT_S
        if chance < odds.late and job.write is not None:
            executed_s = min(job.issued_s + LATEST_S, now_s + rng.uniform(0, LATEST_S))
        outcome: list[object] = []

        def execute() -> None:
            if chance < odds.request + odds.late and not (chance < odds.late and job.write is not None):
                return
            if not self._alive and executed_s > now_s + _LONGEST_S and job.write is None:
                return
            try:
                outcome.append(job.steps[step]())
                self.taken[job.device] = self._twin.now_s
            except (Silence, Refusal) as failure:
                outcome.append(failure)

        self._at(executed_s, execute)
        self._at(answered_s, lambda: self._answered(line, job, step, outcome, lost=lost))

    def _answered(self, line: _Line, job: _Job, step: int, outcome: list[object], *, lost: bool) -> None:
        now_s = self._twin.now_s
        result = outcome[0] if outcome else Silence()
        device = self._scene.depot.devices[job.device]
        faults = self._twin.faults_of(device.bus, device.unit_id)
        if not self._alive:
            return
        if isinstance(result, Silence) and not lost:
            # Nobody answers; that is known when the time is over.
            self.losses[job.device] = now_s
            self._at(now_s + TIMEOUT_S, lambda: self._answered(line, job, step, outcome, lost=True))
            return
        if FaultKind.SLOW in faults and not lost:
            late_s = faults[FaultKind.SLOW].delay_s
            if late_s > TIMEOUT_S:
                self.losses[job.device] = now_s
            at_s = now_s + min(late_s, TIMEOUT_S)
            self._at(at_s, lambda: self._finish(line, job, step, result, lost=late_s > TIMEOUT_S))
            return
        self._finish(line, job, step, result, lost=lost or FaultKind.DISCONNECT in faults)

    def _finish(self, line: _Line, job: _Job, step: int, result: object, *, lost: bool) -> None:
        if not self._alive:
            return
        now_s = self._twin.now_s
        if lost or isinstance(result, Refusal | Silence):
            if isinstance(result, Refusal):
                self.losses[job.device] = now_s
            job.failed(True, isinstance(result, Refusal) and not lost and step == 0, now_s)
            self._next(line)
            return
        job.results.append(result)
        if step + 1 < len(job.steps):
            self._send(line, job, step + 1)
            return
        job.done(job.results, job.began_s, now_s)
        self._next(line)


def _laid_out(twin: Rehearsal, scene: Scene) -> SunSpecMap:
    """Return where the storage inverter has its points, as its driver would find them."""
    image, profile = twin.inverters[STORAGE].image, scene.profile(STORAGE)
    models = []
    for model in profile.models:
        address, length = image.address(model, "ID"), image.raw(model, "L")
        models.append(FoundModel(model, address, length, tuple(image.read(address, HEADER + length))))
    return SunSpecMap(profile, FoundMap(image.base, tuple(models)))


def _words(twin: Rehearsal, device: Device, spans: Iterable[Span]) -> dict[str, tuple[int, ...]]:
    unit = twin.units[device.bus, device.unit_id]
    return {span.name: tuple(unit.read(span.table, span.address, span.length)) for span in spans}


_NO_VALUES: Mapping[str, Value] = MappingProxyType({})
_HOLDING = Table.HOLDING
_NOISE = 1e-6
_GAP_S = 4.0
_STORAGE_WATCHDOG_S = 20.0


def _shifted(news: News, by_s: float) -> News:
    """Return news with its times by another clock."""
    times = {name: getattr(news, name) + by_s for name in ("sent_s", "answered_s", "at_s") if hasattr(news, name)}
    return (
        news._replace(**times)
        if isinstance(news, book.Measured | book.ReadBack | book.Seen)
        else replace(news, **times)
    )


def _metered(meter: meters.Reading) -> dict[str, Value]:
    """Return what a meter shows, by the profile's names; its register counts whole Wh."""
    found: dict[str, Value] = {
        "active_power": sum(meter.powers_w),
        "reactive_power": sum(meter.reactives_var),
        "frequency": meter.frequency_hz,
        "voltage_l1": VOLTAGE_V / _SQRT3,
        "energy": math.floor(meter.imported_wh),
    }
    found.update(zip(_CURRENTS, meter.currents_a, strict=True))
    found.update(zip(_POWERS, meter.powers_w, strict=True))
    return found


def _nothing(_sent: bool, _refused: bool, _at_s: float) -> None:
    """Do nothing: a poll that got no answer leaves what was known to age."""


_Read: TypeAlias = "tuple[str, Point, tuple[Table, int, int]]"
"""A point's name, the point that shows it, and what is asked for: table, address and count."""


def _shown(profile: Profile, names: Iterable[str]) -> list[_Read]:
    """Return those of the named points that a device shows, each with where it does."""
    known = ((name, profile.points[name]) for name in names if name in profile.points)
    found = ((name, point if point.readable else point.readback) for name, point in known)
    return [
        (name, shown, (shown.table, shown.address_of(1), shown.length)) for name, shown in found if shown is not None
    ]


def _setting_points(profile: Profile) -> list[str]:
    fallback = profile.fallback
    return [] if fallback is None else [name for name in (fallback.current, fallback.timeout) if name]


def _limit_points(profile: Profile) -> list[str]:
    if profile.control is None:
        return []
    switch = profile.control.switch
    return [profile.control.point] + ([] if switch is None else [switch.point])


def _shown_a(profile: Profile, found: Mapping[str, Value]) -> float | None:
    """Return the limit that a device shows, in A; a switch that is off is a limit of 0."""
    control = profile.control
    if control is None:
        return None
    if control.switch is not None and found.get(control.switch.point) == control.switch.off:
        return 0.0
    value = found.get(control.point)
    return None if value is None or isinstance(value, str) else float(value)


def refreshed_by_request(profile: Profile) -> bool:
    """Whether any request keeps a device from falling back."""
    return profile.fallback is not None and profile.fallback.refreshed_by is Refresh.REQUEST
