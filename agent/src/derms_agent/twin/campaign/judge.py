# SPDX-License-Identifier: Apache-2.0
"""What is looked at every 100 ms, in what physically happens, and at each write. It shares no code with the guard.

- **Circuits.** The current of each line, and the site's power, against rating and limit. Above is a violation unless
  within the last 6 s (12 s with slow cars) base load rose, the limit fell or a pilot froze so as to draw more than its
  limit. That time starts anew for what nobody could have done sooner: a device that did not take requests, and control
  that was not running, at the end of that; a frozen pilot only shows once it disobeys, which obedience may take 15 s to
  prove. While whatever could be reached draws nothing any more, nothing is left to be done and it is no violation.
- **Trip curves**, at all times, with no excuse: the lower edge of a circuit breaker's (IEC 60898-1, table 7: 1.13 times
  the rating for an hour; 2.55 times for 1 s; type B not below 3 times for 0.1 s), straight between them in logarithms.
- **Writes.** What each EVSE could draw at that moment (limit in force, pilot, what its car still may do, writes of ours
  that may still arrive, and what holds after its start) is added up; no write raises that where it is or would be over.
- **The ledger** contains what flows and what is in force.
- **Watchdogs**: after the link or the agent died, the limit in force is the fallback within time-out + 1 s; where there
  is no watchdog the ledger holds the rating.
- **Heat**: nothing flows above the enclosure's cut-off, nor once a sensor has been lost for as long as its reading may
  be old and a car needs to follow; devices that could not be told are left out.
- **Discharge**: none at or below the reserve.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from derms_agent.control.guard import Write
from derms_agent.control.ledger import Span
from derms_agent.model import Connection, Evse, Phase
from derms_agent.twin.campaign.agent import SENSOR
from derms_agent.twin.campaign.scene import (
    STORAGE,
    VOLTAGE_V,
    Scene,
    after_boot_a,
    has_watchdog,
    known_settings,
    unattended_a,
)
from derms_agent.twin.faults import FaultKind
from derms_agent.twin.rehearsal import Rehearsal

STEP_S = 0.1
PROMPT_S, SLOW_S = 6.0, 12.0
PROOF_S = 15.0
GRACE_S = 8.0
LATE_S = 3.0
TOLD_S = 60.0
BOOT_S = 7.0
_NEAR_A = 0.3
_NEAR_C = 0.1
_SLACK = 1.003
_HELD_BACK_A = 1.0
_SQRT3 = math.sqrt(3)
_PHASES = tuple(Phase)
_TRIP = ((1.13, 3600.0), (2.55, 1.0), (3.0, 0.1))
_MUTE = frozenset({FaultKind.SILENT, FaultKind.REBOOT})
_UNREACHABLE = frozenset(
    {FaultKind.SILENT, FaultKind.REBOOT, FaultKind.EXCEPTION, FaultKind.DISCONNECT, FaultKind.SLOW}
)


@dataclass(frozen=True, slots=True)
class Violation:
    """What was not to happen: which rule, when, and in words what was found."""

    rule: str
    at_s: float
    detail: str


@dataclass(slots=True)
class Worst:
    """The worst seen that was no violation: how long a line was over, and by what share of its rating."""

    over_s: float = 0.0
    over_share: float = 0.0
    trip: float = 0.0


def trips_after_s(ratio: float) -> float:
    """Return for how long a breaker surely carries so many times its rating."""
    if ratio < _TRIP[0][0]:
        return math.inf
    for (low, low_s), (high, high_s) in itertools.pairwise(_TRIP):
        if ratio < high:
            share = math.log(ratio / low) / math.log(high / low)
            return math.exp(math.log(low_s) + share * (math.log(high_s) - math.log(low_s)))
    return _TRIP[-1][1]


@dataclass(slots=True)
class Judge:
    """Watches one episode. `limit_w` is what the grid asks for; `alive`: control runs."""

    twin: Rehearsal
    scene: Scene
    limit_w: float = math.inf
    alive: bool = True
    violations: list[Violation] = field(default_factory=list)
    worst: Worst = field(default_factory=Worst)
    _cause_s: float = 0.0
    _proof_s: float = -math.inf
    _unreachable_s: dict[str, float] = field(default_factory=dict)
    _died_s: float | None = None
    _off_since_s: dict[str, float] = field(default_factory=dict)
    _lost_since_s: dict[str, float] = field(default_factory=dict)
    _running_s: float = 0.0
    _silent_since_s: dict[str, float] = field(default_factory=dict)
    _pending: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    _disobeying: set[str] = field(default_factory=set)
    _over_since_s: dict[str, float] = field(default_factory=dict)
    _trip: dict[tuple[str, int], float] = field(default_factory=dict)
    _seen: set[tuple[str, str]] = field(default_factory=set)
    _evses: tuple[Evse, ...] = ()
    _window_s: float = PROMPT_S

    def __post_init__(self) -> None:
        self._evses = self.scene.depot.evses()
        self._window_s = SLOW_S if self.scene.slow else PROMPT_S

    def cause(self) -> None:
        """Take note that base load rose or the limit fell."""
        self._cause_s = self.twin.now_s

    def died(self) -> None:
        """Take note that control was killed."""
        self.alive = False
        self._died_s = self.twin.now_s

    def started(self) -> None:
        """Take note that control runs again: it begins to be answerable for what it found."""
        self.alive = True
        self._died_s = None
        self._running_s = self.twin.now_s
        self._cause_s = self.twin.now_s + GRACE_S

    def missed(self, losses: Mapping[str, float]) -> None:
        """Take note of when devices last did not take a request."""
        for device, at_s in losses.items():
            if at_s > self._unreachable_s.get(device, -math.inf):
                self._unreachable_s[device] = at_s

    def look(self) -> None:
        """Look at what is so now."""
        now_s = self.twin.now_s
        self._look_at_faults(now_s)
        self._look_at_circuits(now_s)
        self._look_at_watchdogs(now_s)
        self._look_at_storage(now_s)
        self._look_at_heat(now_s)

    def _look_at_faults(self, now_s: float) -> None:
        faults = self.twin.faults()
        off = {device for device, kinds in faults.items() if any(fault.kind is FaultKind.REBOOT for fault in kinds)}
        for device, kinds in faults.items():
            if any(fault.kind in _UNREACHABLE for fault in kinds):
                self._unreachable_s[device] = now_s
        silent = {device for device, kinds in faults.items() if any(fault.kind in _MUTE for fault in kinds)}
        for device in silent:
            self._silent_since_s.setdefault(device, now_s)
        for device in [device for device in self._silent_since_s if device not in silent]:
            del self._silent_since_s[device]
        for device in off:
            self._off_since_s.setdefault(device, now_s)
        for device in [device for device in self._off_since_s if device not in off]:
            del self._off_since_s[device]
            self._unreachable_s[device] = now_s
        for evse in self._evses:
            frozen = any(fault.kind is FaultKind.FROZEN_DUTY for fault in faults.get(evse.device, ()))
            state = self.twin.outlet(evse.name)
            more = state.current_a > self.twin.limit_a(evse.name) + _NEAR_A
            if frozen and more and evse.name not in self._disobeying:
                self._disobeying.add(evse.name)
                self._proof_s = now_s
            elif not more and not frozen:
                self._disobeying.discard(evse.name)

    # Circuits

    def _look_at_circuits(self, now_s: float) -> None:
        over: set[str] = set()
        for name, circuit in self.scene.depot.circuits.items():
            for line, current in enumerate(self.twin.currents[name]):
                amperes = abs(current)
                rating = circuit.rating_a[line]
                if amperes > rating * 1.1:
                    self._wear((name, line), amperes / rating)
                if amperes > rating * _SLACK + _NEAR_A:
                    what = f"{name} {_PHASES[line].value}"
                    over.add(what)
                    self._over(what, amperes, rating, "A", now_s)
            if circuit.parent is None:
                volts = VOLTAGE_V / _SQRT3
                currents = self.twin.currents[name]
                powers = [
                    volts * (current * (turn.conjugate())).real for current, turn in zip(currents, _TURNS, strict=True)
                ]
                watts = sum(powers)
                site_va = self.scene.depot.site.limit_va
                for what, limit in (("site", site_va), ("grid", self.limit_w)):
                    if watts > limit * _SLACK + 3 * volts * _NEAR_A:
                        over.add(what)
                        self._over(what, watts, limit, "W", now_s)
        for what in [what for what in self._over_since_s if what not in over]:
            del self._over_since_s[what]

    def _over(self, what: str, found: float, limit: float, unit: str, now_s: float) -> None:
        since_s = self._over_since_s.setdefault(what, now_s)
        self.worst.over_s = max(self.worst.over_s, now_s - since_s)
        self.worst.over_share = max(self.worst.over_share, found / limit - 1 if limit > 0 else 1.0)
        if not self.alive or self._excused(now_s):
            return
        left_a = [
            self.twin.outlet(evse.name).current_a
            for evse in self._evses
            if evse.name not in self._disobeying and not self._unreachable(evse.device, now_s)
        ]
        if sum(left_a) <= _HELD_BACK_A:
            return
        detail = f"{what}: found {found:.1f} {unit}, expected at most {limit:.1f}, over for {now_s - since_s:.1f} s"
        self._report("above the limit", what, now_s, f"{detail}; {self._situation()}")

    def _excused(self, now_s: float) -> bool:
        window_s = self._window_s
        lately_s = max(self._unreachable_s.values(), default=-math.inf)
        if now_s - lately_s <= window_s + GRACE_S:
            return True
        return now_s - self._cause_s <= window_s or now_s - self._proof_s <= PROOF_S + window_s

    def _unreachable(self, device: str, now_s: float) -> bool:
        return now_s - self._unreachable_s.get(device, -math.inf) <= GRACE_S

    def _wear(self, line: tuple[str, int], ratio: float) -> None:
        self._trip[line] = self._trip.get(line, 0.0) + STEP_S / trips_after_s(ratio)
        self.worst.trip = max(self.worst.trip, self._trip[line])
        if self._trip[line] >= 1:
            self._report("trip curve", line[0], self.twin.now_s, f"{line[0]}: {ratio:.2f} times its rating")

    # Writes and the ledger

    def wrote(self, writes: Sequence[Write], base: Mapping[str, Sequence[float]]) -> None:
        """Judge writes as they leave. `base` is each circuit's base load as far as control can know it, in A."""
        now_s = self.twin.now_s
        could = {evse.name: self._could(evse, now_s) for evse in self._evses}
        for write in writes:
            if write.evse != STORAGE:
                amperes = write.amount.active_a
                if amperes > could[write.evse] + _NEAR_A:
                    could[write.evse] = amperes
                    self._judge_raise(write.evse, could, base, now_s)
                self._pending.setdefault(write.evse, []).append((now_s + LATE_S, amperes))

    def _could(self, evse: Evse, now_s: float) -> float:
        """Return what an EVSE could draw now, from the twin's own state, in A per conductor."""
        state = self.twin.outlet(evse.name)
        limits = [self.twin.limit_a(evse.name), state.current_a]
        if evse.name not in self._disobeying and not self._frozen(evse.device):
            vehicle = state.vehicle
            if vehicle is not None:
                limits += [vehicle.allowed_a, *(amperes for _due, amperes in vehicle.pending)]
            limits.append(state.pilot_a)
        pending = [entry for entry in self._pending.get(evse.name, ()) if entry[0] > now_s]
        self._pending[evse.name] = pending
        limits += [amperes for _until_s, amperes in pending]
        if now_s - self._off_since_s.get(evse.device, math.inf) > BOOT_S:
            device = self.scene.depot.devices[evse.device]
            limits.append(after_boot_a(evse, device, self.scene.profile(evse.device)))
        return min(max(limits), max(evse.rating_a, state.current_a))

    def _frozen(self, device: str) -> bool:
        return any(fault.kind is FaultKind.FROZEN_DUTY for fault in self.twin.faults().get(device, ()))

    def _judge_raise(
        self, raised: str, could: Mapping[str, float], base: Mapping[str, Sequence[float]], now_s: float
    ) -> None:
        circuits = self.scene.depot.circuits
        at: str | None = next(evse.circuit for evse in self._evses if evse.name == raised)
        own = next(evse for evse in self._evses if evse.name == raised)
        while at is not None:
            circuit = circuits[at]
            beneath = self._beneath(at)
            if not any(circuits[name].connection is Connection.DELTA_WYE for name in beneath):
                for line, phase in enumerate(_PHASES):
                    if phase not in own.phases:
                        continue
                    amperes = sum(base[name][line] for name in beneath) + sum(
                        could[evse.name] for evse in self._evses if evse.circuit in beneath and phase in evse.phases
                    )
                    if amperes > circuit.rating_a[line] * _SLACK + _NEAR_A:
                        detail = (
                            f"{at} {phase.value}: could carry {amperes:.1f} A, expected {circuit.rating_a[line]:.0f}"
                        )
                        drawing = ", ".join(f"{name} {value:.1f}" for name, value in could.items())
                        self._report("raised while over", raised, now_s, f"{raised} raised; {detail}; {drawing}")
            at = circuit.parent

    def _beneath(self, name: str) -> set[str]:
        circuits = self.scene.depot.circuits
        found = {name}
        grown = True
        while grown:
            more = {other.name for other in circuits.values() if other.parent in found} - found
            found |= more
            grown = bool(more)
        return found

    def accounts(self, spans: Mapping[str, tuple[Span, Span, Span]]) -> None:
        """Judge the ledger: it holds what flows and what is in force."""
        now_s = self.twin.now_s
        for evse in self._evses:
            if self._frozen(evse.device) or evse.name in self._disobeying:
                continue
            device = self.scene.depot.devices[evse.device]
            profile = self.scene.profile(evse.device)
            state = self.twin.outlet(evse.name)
            high = min(spans[evse.name][_PHASES.index(phase)].high for phase in evse.phases[: max(state.conductors, 1)])
            for what, amperes in (("draws", state.current_a), ("may draw", self.twin.limit_a(evse.name))):
                if what == "may draw" and evse.device in self._off_since_s:
                    continue
                if amperes > high + _NEAR_A + 0.5:
                    detail = f"{evse.name} {what} {amperes:.1f} A, the ledger holds {high:.1f}"
                    self._report("ledger", evse.name, now_s, f"{detail}; {self._situation()}")
            silent_s = now_s - self._silent_since_s.get(evse.device, now_s)
            if silent_s > BOOT_S + 1 and not has_watchdog(device, profile) and high < evse.rating_a - _NEAR_A:
                self._report("no watchdog", evse.name, now_s, f"{evse.name}: the ledger holds {high:.1f} A")

    # What devices do

    def _look_at_watchdogs(self, now_s: float) -> None:
        if self._died_s is None:
            return
        for evse in self._evses:
            device, profile = self.scene.depot.devices[evse.device], self.scene.profile(evse.device)
            if not has_watchdog(device, profile) or evse.device in self._off_since_s:
                continue
            watchdog_s = profile.watchdog_s(known_settings(device, profile))
            if watchdog_s is None or now_s - self._died_s <= watchdog_s + 1 + LATE_S:
                continue
            allowed_a = unattended_a(evse, device, profile)
            if self.twin.limit_a(evse.name) > allowed_a + _NEAR_A:
                detail = (
                    f"{evse.name}: {self.twin.limit_a(evse.name):.1f} A {now_s - self._died_s:.1f} s after control died"
                )
                self._report("watchdog", evse.name, now_s, detail)

    def _look_at_storage(self, now_s: float) -> None:
        if not self.scene.storage:
            return
        state = self.twin.inverters[STORAGE].state
        if state.power_w < -100 and state.soc * 100 <= self.scene.depot.site.soc_reserve_percent:  # noqa: PLR2004
            self._report("reserve", STORAGE, now_s, f"{-state.power_w:.0f} W discharged at {state.soc * 100:.2f} %")

    def _look_at_heat(self, now_s: float) -> None:
        faults = self.twin.faults()
        for evse in self._evses:
            if "temperature" not in self.scene.profile(evse.device).points:
                continue
            lost = any(fault.kind is FaultKind.SENSOR_LOST for fault in faults.get(evse.device, ()))
            if not lost:
                self._lost_since_s.pop(evse.device, None)
            lost_s = now_s - self._lost_since_s.setdefault(evse.device, now_s) if lost else 0.0
            state = self.twin.outlet(evse.name)
            if state.current_a <= _HELD_BACK_A:
                continue
            told = self.alive and now_s - self._running_s > TOLD_S
            told = told and now_s - self._unreachable_s.get(evse.device, -math.inf) > TOLD_S
            if not told or evse.name in self._disobeying or self._frozen(evse.device):
                continue
            if state.temperature_c > SENSOR.cut_off_c + _NEAR_C:
                detail = f"{evse.name}: {state.current_a:.1f} A at {state.temperature_c:.2f} degC"
                self._report("cut-off", evse.name, now_s, detail)
            if lost_s > SENSOR.reach_s + GRACE_S:
                detail = f"{evse.name}: {state.current_a:.1f} A {lost_s:.0f} s after its sensor was lost"
                self._report("sensor lost", evse.name, now_s, detail)

    # Reporting

    def _situation(self) -> str:
        drawing = ", ".join(
            f"{evse.name} {self.twin.outlet(evse.name).current_a:.1f}/{self.twin.limit_a(evse.name):.1f}"
            for evse in self._evses
        )
        faults = ", ".join(f"{on}: {'+'.join(f.kind.value for f in kinds)}" for on, kinds in self.twin.faults().items())
        return f"drawing/limit {drawing}; faults {faults or 'none'}"

    def _report(self, rule: str, about: str, at_s: float, detail: str) -> None:
        """Take note of a violation; of each kind once for each thing."""
        if (rule, about) not in self._seen:
            self._seen.add((rule, about))
            self.violations.append(Violation(rule, round(at_s, 1), detail))


_TURNS = (1 + 0j, complex(-0.5, -_SQRT3 / 2), complex(-0.5, _SQRT3 / 2))


def first(violations: Iterable[Violation]) -> Violation | None:
    """Return the earliest violation."""
    return min(violations, key=lambda violation: violation.at_s, default=None)
