# SPDX-License-Identifier: Apache-2.0
"""What is looked at every 100 ms, in what physically happens, and at each write. It shares no code with the guard.

A *row* is a line of a circuit, or the site's power against its own limit or what the grid asks for.

- **Rows.** Above the limit is a violation unless within the last 6 s (12 s with slow cars; the *window*) base load rose
  in that row, its limit fell, or an EVSE in it began to draw more than it was told for a cause of its own (below).
- **Trip curves**, at all times, with no excuse: the lower edge of a circuit breaker's (IEC 60898-1, table 7: 1.13 times
  the rating for an hour; 2.55 times for 1 s; type B not below 3 times for 0.1 s), straight between them in logarithms.
- **Writes.** What each EVSE and the storage could draw at that moment (limit in force, pilot, what its car still may
  do, writes of ours that may still arrive, and what holds after its start) makes each row's flow; no write tells one
  more than that, and than it was told, where a row is or would be over. Discharge is no headroom.
- **The ledger** contains what flows and what is in force, of storage either way; an EVSE without a watchdog that is
  mute for 5 s is in it at its rating.
- **Watchdogs**: 1 s after its time-out the limit in force is the fallback; storage neither takes nor gives then.
- **Heat**: nothing flows above the enclosure's cut-off, nor once a sensor has been lost for as long as its reading may
  be old and a car needs to follow.
- **Discharge**: none at or below the reserve, nor with a state of charge that is unknown or old (60 s where the
  orchestrator plays, 10 s else).
- **Demand**: once an interval's energy is above its cap, no EVSE draws for the rest of it.
- **Droop**: while the frequency is low, an EVSE draws less than before by at least what the curve takes off its rating.

Where the orchestrator plays, generation is no headroom either, meters measure all of a circuit, the grid asks for the
default limit while its link is lost, and heat, demand and droop are asked of storage as of an EVSE. Whether storage
gives back what it is asked for is not looked at; but while the site is to give back, nothing draws.

In what follows, storage that takes counts as an EVSE that draws: it is to be lowered like the others.

What it allows, each for what nobody could have done sooner:

1. *Resolution*: 0.3 A and 0.3 % of a row, 0.8 A of an EVSE in the ledger (a meter's 0.5 A in it), 0.1 K.
2. *A meter that does not answer* while base load rises: its last reading stands for the 2.5 s that it may be old, and
   1 s until the next cycle; the window begins then. Only for the rows above that meter. The orchestrator's meters show
   a base load between readings of all EVSEs beneath, and may be 5 s old; only for the rows of their own circuit.
3. *A device that does not take requests* (silent, refusing, slow, restarting, or its requests lost) draws more than it
   was told. Only what it draws beyond that is excused, by working out the flow without it, and only for 8 s (5 s until
   control no longer relies on it, a time-out of 1 s, a cycle, a poll) and the window. The others are to be lowered.
4. *A frozen pilot*: the same, for the 15 s that obedience has and the window. As long the ledger need not hold what it
   draws; on a device that answers nothing either, never more than its rating.
5. *Nothing left*: past that no excess is a violation while all that could be told, beneath that row and wired to its
   line, draws less than 1 A; what the site and the grid ask for of control that is dead, while that is so of what it
   told.
6. *Control that starts* has seen nothing for 2 s (a poll, a cycle): the window begins then. The orchestrator waits up
   to 4 s until it is informed.
7. *Control that is dead* lowers nothing: what rose the base load since a window before its death is excused until the
   slowest watchdog beneath that row, 1 s and the window are over; from then on all must fit as the depot's check says,
   for every circuit. What the site and the grid ask for is not in that check: it is asked of what control told, not of
   what a device draws beyond that on its own. Nor is what a frozen pilot, or a device that starts, draws beyond it.
8. *A request in flight* when its process dies may still feed a watchdog; its time counts from the last one taken.
9. *Heat*, *demand* and *droop* are asked only of devices that took requests, from a control that ran, for the last
   window and 8 s; of cars at a frozen pilot not at all. Heat is not asked while a sensor is lost that is not required.
10. *Droop* has its response time, and the time of a shed, from when the frequency is low and the site's meter shows
    it; for a car that comes meanwhile, from then on.
    What an EVSE drew before is the most of the 2.5 s that its reading may be old when the frequency leaves the
    deadband, and of the 6 s after. It is not held against it where a car came since, or control started; what it drew
    before an earlier excursion still counts until the frequency was calm for as long as droop waits before it turns
    round.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from derms_agent.control.demand import Windows
from derms_agent.control.guard import Write
from derms_agent.control.ledger import Span
from derms_agent.model import Connection, Evse, PerPhase, Phase, per_phase
from derms_agent.orchestrator.controller import Policy
from derms_agent.twin import network
from derms_agent.twin.campaign.agent import SENSOR
from derms_agent.twin.campaign.scene import (
    CUT_OFF_C,
    GENERATOR,
    STORAGE,
    VOLTAGE_V,
    Scene,
    after_boot_a,
    fallbacks,
    storage_a,
)
from derms_agent.twin.faults import Fault, FaultKind
from derms_agent.twin.rehearsal import Rehearsal

STEP_S = 0.1
PROMPT_S, SLOW_S = 6.0, 12.0
STALE_S, CYCLE_S = 2.5, 1.0
WHOLE_STALE_S, WHOLE_KNOWN_S = 5.0, 5.5
PROOF_S = 15.0
UNRELIABLE_S = 8.0
START_S, INFORMED_S = 2.0, 4.0
DROOP_S = 30.0
LATE_S = 3.0
BOOT_S = 7.0
MUTE_S = 5.5
SOC_STALE_S, WHOLE_SOC_STALE_S, STORAGE_FOLLOWS_S = 10.0, 60.0, 4.0
_SAMPLED_S = 1.0
_NEAR_A = 0.3
_METER_A = 0.5
_NEAR_C = 0.1
_NEAR_W = 10.0
_SLACK = 1.003
_HELD_BACK_A = 1.0
_REGISTER_WS = 2 * 3600.0
_DROOP_SHARE = 0.025
_SETTLES_S = 6.0
_SQRT3 = math.sqrt(3)
_NEUTRAL_V = VOLTAGE_V / _SQRT3
_PHASES = tuple(Phase)
_NONE = (0.0, 0.0, 0.0)
_TRIP = ((1.13, 3600.0), (2.55, 1.0), (3.0, 0.1))
_UNREACHABLE = frozenset(
    {FaultKind.SILENT, FaultKind.REBOOT, FaultKind.EXCEPTION, FaultKind.DISCONNECT, FaultKind.SLOW}
)
_NO_KINDS: frozenset[FaultKind] = frozenset()
_MUTE = frozenset({FaultKind.SILENT, FaultKind.REBOOT, FaultKind.EXCEPTION, FaultKind.DISCONNECT})


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


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a circuit (`line` counts from 0), or with None the site's power; `asked`: what the grid asks for it."""

    circuit: str
    line: int | None
    asked: bool = False

    def __str__(self) -> str:
        """Return it in words."""
        if self.line is not None:
            return f"{self.circuit} {_PHASES[self.line].value}"
        return "grid" if self.asked else "site"


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
class _Doings:
    """What one EVSE, or the storage, was told and did.

    `told_a` is what was last written; `pending` what may still arrive, each with until when. `beyond_since_s`: since
    when it has drawn more than it was told; `frozen_since_s`: since when it has done so for a frozen pilot.
    """

    told_a: float = math.inf
    pending: list[tuple[float, float]] = field(default_factory=list)
    beyond_since_s: float | None = None
    frozen_since_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Load:
    """Where an EVSE, or the storage, draws from: its device, its circuit and the lines that it is wired to."""

    device: str
    circuit: str
    phases: tuple[Phase, ...]


@dataclass(slots=True)
class _Reach:
    """When a device last took a request, did not take one, started; since when that has been so."""

    taken_s: float = -math.inf
    missed_s: float = -math.inf
    missing_since_s: float = -math.inf
    mute_since_s: float | None = None
    off_since_s: float | None = None
    booted_s: float = -math.inf


@dataclass(slots=True)
class Judge:
    """Watches one episode. `limit_w` is what the grid asks for, `site_va` the site's limit; `alive`: control runs."""

    twin: Rehearsal
    scene: Scene
    limit_w: float = math.inf
    site_va: float = math.inf
    alive: bool = True
    violations: list[Violation] = field(default_factory=list)
    worst: Worst = field(default_factory=Worst)
    _evses: tuple[Evse, ...] = ()
    _window_s: float = PROMPT_S
    _died_s: float = -math.inf
    _started_s: float = 0.0
    _whole: bool = False
    _limit_fell_s: float = -math.inf
    _site_fell_s: float = -math.inf
    _base: dict[str, PerPhase] = field(default_factory=dict)
    _bases: dict[str, list[tuple[float, PerPhase]]] = field(default_factory=dict)
    _rose_s: dict[str, float] = field(default_factory=dict)
    _seen_s: dict[tuple[str, str], float] = field(default_factory=dict)
    _sampled_s: dict[str, float] = field(default_factory=dict)
    _doings: dict[str, _Doings] = field(default_factory=dict)
    _reach: dict[str, _Reach] = field(default_factory=dict)
    _lost_since_s: dict[str, float] = field(default_factory=dict)
    _lost_at_s: dict[str, float] = field(default_factory=dict)
    _imported_ws: list[float] = field(default_factory=lambda: [0.0])
    _spent_since_s: float | None = None
    _low: deque[float] = field(default_factory=deque)
    _lately_a: deque[Mapping[str, float]] = field(default_factory=deque)
    _low_since_s: float | None = None
    _before_a: dict[str, float] = field(default_factory=dict)
    _plugged_s: dict[str, float] = field(default_factory=dict)
    _low_s: float = -math.inf
    _hertz_s: float = -math.inf
    _over_since_s: dict[Row, float] = field(default_factory=dict)
    _trip: dict[Row, float] = field(default_factory=dict)
    _seen: set[tuple[str, str]] = field(default_factory=set)
    _rows: dict[Row, frozenset[str]] = field(default_factory=dict)
    _sensed: tuple[Evse, ...] = ()
    _loads: dict[str, _Load] = field(default_factory=dict)
    _mixed: frozenset[str] = frozenset()
    _falls_back: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        depot = self.scene.depot
        self._evses = depot.places()
        self._whole = self.scene.policy is not None
        self.site_va = depot.site.limit_va
        self._low = deque(maxlen=round(DROOP_S / STEP_S))
        self._lately_a = deque(maxlen=round(STALE_S / STEP_S))
        self._window_s = SLOW_S if self.scene.slow else PROMPT_S
        self._sensed = tuple(evse for evse in self._evses if "temperature" in self.scene.profile(evse.device).points)
        self._doings = {name: _Doings() for name in (*(evse.name for evse in self._evses), STORAGE)}
        self._reach = {name: _Reach() for name in depot.devices}
        self._loads = {evse.name: _Load(evse.device, evse.circuit, evse.phases) for evse in self._evses}
        self._base = dict.fromkeys(depot.circuits, _NONE)
        self._bases = {name: [(-math.inf, _NONE)] for name in depot.circuits}
        self._mixed = frozenset(
            name
            for name in depot.circuits
            if any(depot.circuits[each].connection is Connection.DELTA_WYE for each in _beneath(self.scene, name))
        )
        for name, circuit in depot.circuits.items():
            beneath = frozenset(_beneath(self.scene, name))
            for line in range(len(_PHASES)):
                self._rows[Row(name, line)] = beneath
            if circuit.parent is None:
                self._rows[Row(name, None)] = self._rows[Row(name, None, asked=True)] = beneath
        self._falls_back = fallbacks(self.scene)
        if self.scene.storage:
            device = depot.devices[STORAGE]
            watchdog_s = self.scene.profile(STORAGE).watchdog_s(device.settings)
            self._falls_back |= {} if watchdog_s is None else {STORAGE: (watchdog_s, 0.0)}
            self._loads[STORAGE] = _Load(device.name, str(device.circuit), _PHASES)

    # What it is told

    def base_stepped(self, circuit: str, amperes: PerPhase) -> None:
        """Take note of a circuit's own base load."""
        if any(new > old for new, old in zip(amperes, self._base[circuit], strict=True)):
            self._rose_s[circuit] = self.twin.now_s
            self._seen_s.update(
                {(row.circuit, circuit): self.twin.now_s for row in self._rows if circuit in self._rows[row]}
            )
        self._base[circuit] = amperes
        self._bases[circuit].append((self.twin.now_s, amperes))

    def limit_moved(self, watts: float) -> None:
        """Take note of what the grid asks for."""
        if watts < self.limit_w:
            self._limit_fell_s = self.twin.now_s
        self.limit_w = watts

    def site_moved(self, limit_va: float) -> None:
        """Take note of the site's own limit."""
        if limit_va < self.site_va:
            self._site_fell_s = self.twin.now_s
        self.site_va = limit_va

    def plugged(self, evse: str) -> None:
        """Take note of a car that comes: what was drawn before it says nothing of it."""
        self._before_a[evse] = math.inf
        self._plugged_s[evse] = self.twin.now_s

    def showed_hertz(self, sent_s: float) -> None:
        """Take note of when the site's meter last showed the frequency."""
        self._hertz_s = sent_s

    def died(self) -> None:
        """Take note that control was killed; whoever is dead already dies no more."""
        if self.alive:
            self.alive = False
            self._died_s = self.twin.now_s

    def started(self) -> None:
        """Take note that control runs again: it begins to be answerable for what it found."""
        self.alive = True
        self._started_s = self.twin.now_s
        self._sampled_s.clear()
        self._low_since_s = None
        self._before_a = dict.fromkeys(self._loads, math.inf)

    def sampled(self, circuit: str, sent_s: float) -> None:
        """Take note of when a circuit's meter was last asked and answered."""
        self._sampled_s[circuit] = sent_s

    def reached(self, taken: Mapping[str, float], losses: Mapping[str, float]) -> None:
        """Take note of when devices last took a request, and last did not."""
        for device, at_s in taken.items():
            reach = self._reach[device]
            reach.taken_s = max(reach.taken_s, at_s)
        for device, at_s in losses.items():
            self._miss(device, at_s)

    def _miss(self, device: str, at_s: float) -> None:
        reach = self._reach[device]
        if at_s > reach.missed_s:
            if at_s - reach.missed_s > self._window_s + UNRELIABLE_S:
                reach.missing_since_s = at_s
            reach.missed_s = at_s

    # Every step

    def look(self) -> None:
        """Look at what is so now."""
        now_s = self.twin.now_s
        faults = self.twin.faults()
        self._look_at_meters(now_s)
        self._look_at_devices(now_s, faults)
        self._look_at_evses(now_s, faults)
        self._look_at_rows(now_s)
        self._look_at_watchdogs(now_s)
        self._look_at_storage(now_s)
        self._look_at_heat(now_s)
        if self.scene.policy is not None:
            self._look_at_demand(self.scene.policy, now_s)
            self._look_at_droop(self.scene.policy, now_s)

    def _look_at_meters(self, now_s: float) -> None:
        """Let the window of a rise begin later while its meter does not answer and its last reading still stands."""
        stale_s = WHOLE_STALE_S if self._whole else STALE_S
        for above, circuit in self._seen_s:
            sampled_s = self._sampled_s.get(above if self._whole else circuit, self._started_s)
            if sampled_s < self._rose_s[circuit] < now_s - _SAMPLED_S and now_s <= sampled_s + stale_s + CYCLE_S:
                self._seen_s[above, circuit] = now_s

    def _look_at_devices(self, now_s: float, faults: Mapping[str, tuple[Fault, ...]]) -> None:
        for device, reach in self._reach.items():
            if device not in faults and reach.mute_since_s is reach.off_since_s is None:
                self._lost_since_s.pop(device, None)
                continue
            kinds = {fault.kind for fault in faults[device]} if device in faults else _NO_KINDS
            if kinds & _UNREACHABLE:
                self._miss(device, now_s)
            if not kinds & _MUTE:
                reach.mute_since_s = None
            elif reach.mute_since_s is None:
                reach.mute_since_s = now_s
            if FaultKind.REBOOT in kinds:
                reach.off_since_s = now_s if reach.off_since_s is None else reach.off_since_s
            elif reach.off_since_s is not None:
                reach.off_since_s, reach.booted_s = None, now_s
            if FaultKind.SENSOR_LOST in kinds:
                self._lost_since_s.setdefault(device, now_s)
                self._lost_at_s[device] = now_s
            else:
                self._lost_since_s.pop(device, None)

    def _look_at_evses(self, now_s: float, faults: Mapping[str, tuple[Fault, ...]]) -> None:
        frozen = {
            device for device, kinds in faults.items() if any(fault.kind is FaultKind.FROZEN_DUTY for fault in kinds)
        }
        for name, load in self._loads.items():
            does, drawn_a = self._doings[name], self._drawn_a(name)
            if drawn_a <= max(does.told_a, 0.0) + _NEAR_A:
                does.beyond_since_s = None
            elif does.beyond_since_s is None:
                does.beyond_since_s = now_s
            if does.beyond_since_s is None and drawn_a <= self._limit_a(name) + _NEAR_A:
                does.frozen_since_s = None
            elif load.device in frozen and does.frozen_since_s is None:
                does.frozen_since_s = now_s

    def _drawn_a(self, name: str) -> float:
        """Return what an EVSE draws, or the storage takes, in A per conductor; below 0 is what that gives back."""
        if name == STORAGE:
            return self.twin.inverters[STORAGE].state.power_w / (3 * _NEUTRAL_V)
        return self.twin.outlet(name).current_a

    def _limit_a(self, name: str) -> float:
        """Return the limit in force at an EVSE, or the set-point of the storage, in A per conductor."""
        if name != STORAGE:
            return self.twin.limit_a(name)
        inverter = self.twin.inverters[STORAGE]
        held = not inverter.off and inverter.image.raw(704, "WSetEna") == 1
        return -inverter.image.get(704, "WSet") / (3 * _NEUTRAL_V) if held else 0.0

    # Rows

    def _look_at_rows(self, now_s: float) -> None:
        over: set[Row] = set()
        flows: dict[bool, Mapping[str, network.Phasors]] = {}
        for row, found, limit in self._found(self.twin.currents):
            if row.line is not None and found > limit * 1.1:
                self._wear(row, found / limit)
            if found > _most(row, limit):
                over.add(row)
                alone = row.line is None and not self.alive
                if alone not in flows:
                    flows[alone] = self._flows(self._excused_draws(now_s, alone=alone))
                self._over(row, found, limit, flows[alone], now_s)
        for row in [row for row in self._over_since_s if row not in over]:
            del self._over_since_s[row]

    def _found(self, currents: Mapping[str, network.Phasors]) -> Iterator[tuple[Row, float, float]]:
        """Yield each row with what flows and what may: A of lines, W of the site."""
        circuits = self.scene.depot.circuits
        for row in self._rows:
            if row.line is not None:
                yield row, _flow(row, currents), circuits[row.circuit].rating_a[row.line]
            elif not row.asked:
                yield row, _flow(row, currents), self.site_va
            elif self.limit_w < math.inf:  # nothing is above no limit
                yield row, _flow(row, currents), self.limit_w

    def _over(self, row: Row, found: float, limit: float, excused: Mapping[str, network.Phasors], now_s: float) -> None:
        since_s = self._over_since_s.setdefault(row, now_s)
        if limit > 0:  # else more is to be given back than there may be
            self.worst.over_s = max(self.worst.over_s, now_s - since_s)
            self.worst.over_share = max(self.worst.over_share, found / limit - 1)
        if self._lately(row, now_s) or _flow(row, excused) <= _most(row, limit) or not self._is_left(row, now_s):
            return
        unit = "W" if row.line is None else "A"
        detail = f"{row}: found {found:.1f} {unit}, expected at most {limit:.1f}, over for {now_s - since_s:.1f} s"
        detail = f"{detail}, {_flow(row, excused):.1f} {unit} without what is excused"
        self._report("above the limit", str(row), now_s, f"{detail}; {self._situation()}")

    def _lately(self, row: Row, now_s: float) -> bool:
        """Whether within the window base load rose in a row, its limit fell, or control began to run."""
        window_s, starts_s = self._window_s, INFORMED_S if self._whole else START_S
        caused_s = [self._seen_s.get((row.circuit, circuit), -math.inf) for circuit in self._rows[row]]
        if row.line is None:
            caused_s.append(self._limit_fell_s if row.asked else self._site_fell_s)
        latest_s = max(caused_s)
        if not self.alive:
            if latest_s < self._died_s - window_s:
                return False
            return row.line is None or now_s <= self._fallen_back_s(row) + window_s
        return now_s - latest_s <= window_s or now_s - self._started_s <= starts_s + window_s

    def _fallen_back_s(self, row: Row) -> float:
        """Return by when all beneath a row have fallen back, if nobody feeds them since control died."""
        beneath = [name for name, load in self._loads.items() if load.circuit in self._rows[row]]
        slowest_s = max((self._falls_back[name][0] for name in beneath if name in self._falls_back), default=0.0)
        return self._died_s + slowest_s + 1

    def _excused_draws(self, now_s: float, *, alone: bool) -> dict[str, float]:
        """Return what each EVSE draws, in A, without what it draws for a cause of its own beyond what it was told.

        `alone`: whatever the cause. The storage as well.
        """
        drawn = {}
        for name, load in self._loads.items():
            does, amperes = self._doings[name], self._drawn_a(name)
            since_s = does.beyond_since_s
            if since_s is not None and (alone or self._excuses(load.device, does, since_s, now_s)):
                amperes = min(amperes, max(does.told_a, 0.0))
            drawn[name] = amperes
        return drawn

    def _excuses(self, device: str, does: _Doings, beyond_since_s: float, now_s: float) -> bool:
        reach = self._reach[device]
        if not self.alive:
            return does.frozen_since_s is not None or reach.booted_s > beyond_since_s - self._window_s
        if does.frozen_since_s is not None:
            since_s = max(beyond_since_s, does.frozen_since_s, self._started_s)
            return now_s - since_s <= PROOF_S + self._window_s
        if not self._is_stuck(reach, now_s):
            return False
        since_s = max(beyond_since_s, reach.missing_since_s, self._started_s)
        return now_s - since_s <= UNRELIABLE_S + self._window_s

    def _is_stuck(self, reach: _Reach, now_s: float) -> bool:
        """Whether a device lately did not take a request, so that it may draw more than it was told."""
        return now_s - reach.missed_s <= UNRELIABLE_S + self._window_s

    def _is_left(self, row: Row, now_s: float) -> bool:
        """Whether something beneath a row still draws that could be lowered, or could have been by who is dead."""
        left_a, alone = 0.0, row.line is None and not self.alive
        for name, load in self._loads.items():
            does, drawn_a = self._doings[name], max(self._drawn_a(name), 0.0)
            stuck = does.frozen_since_s is not None or self._is_stuck(self._reach[load.device], now_s)
            if self._is_in(row, load) and not (does.beyond_since_s is not None and stuck):
                left_a += min(drawn_a, max(does.told_a, 0.0)) if alone else drawn_a
        return left_a > _HELD_BACK_A

    def _is_in(self, row: Row, load: _Load) -> bool:
        """Whether what is drawn somewhere flows in a row.

        A transformer's line is of two windings; which of them an EVSE loads is not looked at.
        """
        on_line = row.line is None or _PHASES[row.line] in load.phases or row.circuit in self._mixed
        return on_line and load.circuit in self._rows[row]

    def _flows(
        self, drawn: Mapping[str, float], base: Mapping[str, PerPhase] | None = None
    ) -> dict[str, network.Phasors]:
        """Return what flows in each circuit with what EVSEs draw, and the storage takes, in A per conductor.

        With a base load as known, on all conductors an EVSE is wired to, and nothing generated; else as it is, on those
        its car loads.
        """
        circuits = self.scene.depot.circuits
        loads: dict[str, network.Phasors] = {}
        for name, amperes in (self._base if base is None else base).items():
            one, two, three = network.ANGLES
            loads[name] = (one * amperes[0], two * amperes[1], three * amperes[2])
        for evse in self._evses:
            loaded = self.twin.outlet(evse.name).conductors if base is None else len(evse.phases)
            each = network.currents_of(circuits[evse.circuit], evse.phases, loaded)
            flow = (each[0] * drawn[evse.name], each[1] * drawn[evse.name], each[2] * drawn[evse.name])
            loads[evse.circuit] = network.add(loads[evse.circuit], flow)
        for name, inverter in self.twin.inverters.items():
            if name == GENERATOR and base is not None:
                continue
            state = inverter.state
            at = str(self.scene.depot.devices[name].circuit)
            watts = drawn[STORAGE] * 3 * _NEUTRAL_V if name == STORAGE else state.power_w
            loads[at] = network.add(loads[at], network.power_currents(circuits[at], watts, state.reactive_var))
        return network.circuit_currents(circuits, loads)

    def _wear(self, row: Row, ratio: float) -> None:
        self._trip[row] = self._trip.get(row, 0.0) + STEP_S / trips_after_s(ratio)
        self.worst.trip = max(self.worst.trip, self._trip[row])
        if self._trip[row] >= 1:
            self._report("trip curve", row.circuit, self.twin.now_s, f"{row.circuit}: {ratio:.2f} times its rating")

    # Writes and the ledger

    def wrote(self, writes: Sequence[Write], base: Mapping[str, PerPhase] | None = None) -> None:
        """Judge writes as they leave.

        `base` is each circuit's base load as far as control can know it, in A; None: as circuits' own meters show it.
        """
        now_s = self.twin.now_s
        could = {evse.name: self._could(evse, now_s) for evse in self._evses}
        could[STORAGE] = self._could_take(now_s)
        for write in writes:
            does, amperes = self._doings[write.evse], write.amount.active_a
            told_a = does.told_a if does.told_a < math.inf else 0.0  # the ledger still has it: that again is no raise
            if amperes > max(could[write.evse], told_a) + _NEAR_A:
                could[write.evse] = amperes
                self._judge_raise(write.evse, could, base, now_s)
            does.told_a = amperes
            does.pending.append((now_s + LATE_S, amperes))

    def _could(self, evse: Evse, now_s: float) -> float:
        """Return what an EVSE could draw now, from the twin's own state, in A per conductor."""
        state = self.twin.outlet(evse.name)
        reach, does = self._reach[evse.device], self._doings[evse.name]
        limits = [self.twin.limit_a(evse.name), state.current_a, *self._pending(evse.name, now_s)]
        if does.frozen_since_s is None and not self._frozen(evse.device):
            vehicle = state.vehicle
            if vehicle is not None:
                limits += [vehicle.allowed_a, *(amperes for _due, amperes in vehicle.pending)]
            limits.append(state.pilot_a)
        if reach.off_since_s is not None and now_s - reach.off_since_s > BOOT_S:
            device = self.scene.depot.devices[evse.device]
            limits.append(after_boot_a(evse, device, self.scene.profile(evse.device)))
        return min(max(limits), max(evse.rating_a, state.current_a))

    def _could_take(self, now_s: float) -> float:
        """Return what the storage could take now, in A per conductor: what it gives is no headroom."""
        if not self.scene.storage:
            return 0.0
        told = (self._doings[STORAGE].told_a, *self._pending(STORAGE, now_s))
        reach = self._reach[STORAGE]
        if reach.off_since_s is not None and now_s - reach.off_since_s > BOOT_S:
            return storage_a()  # its profile does not say what holds after its start
        return min(max(self._drawn_a(STORAGE), self._limit_a(STORAGE), *told, 0.0), storage_a())

    def _pending(self, name: str, now_s: float) -> list[float]:
        does = self._doings[name]
        does.pending = [entry for entry in does.pending if entry[0] > now_s]
        return [amperes for _until_s, amperes in does.pending]

    def _frozen(self, device: str) -> bool:
        return any(fault.kind is FaultKind.FROZEN_DUTY for fault in self.twin.faults().get(device, ()))

    def _judge_raise(
        self, raised: str, could: Mapping[str, float], base: Mapping[str, PerPhase] | None, now_s: float
    ) -> None:
        after: Mapping[str, network.Phasors]
        if base is None:
            after = {name: self._flows(could, self._shown_base(name, now_s))[name] for name in self._base}
        else:
            after = self._flows(could, base)
        for row, found, limit in self._found(after):
            if self._is_in(row, self._loads[raised]) and found > _most(row, limit):
                drawing = ", ".join(f"{name} {value:.1f}" for name, value in could.items())
                detail = f"{raised} raised; {row}: could be {found:.1f}, expected at most {limit:.1f}; {drawing}"
                self._report("raised while over", raised, now_s, detail)

    def _shown_base(self, at: str, now_s: float) -> dict[str, PerPhase]:
        """Return the base loads beneath a circuit as its own meter shows them, or else its parts' meters; at the least.

        Where none does it is the declared worst. No meter is read through a transformer. All others are nothing.
        """
        found = dict.fromkeys(self._base, _NONE)
        waiting = [at]
        while waiting:
            name = waiting.pop()
            if name not in self._mixed and now_s - self._sampled_s.get(name, -math.inf) <= WHOLE_KNOWN_S:
                found.update({each: self._least_base(each, now_s) for each in _beneath(self.scene, name)})
            else:
                found[name] = self.scene.depot.circuits[name].base_load_a
                waiting += [other.name for other in self.scene.depot.circuits.values() if other.parent == name]
        return found

    def _least_base(self, circuit: str, now_s: float) -> PerPhase:
        """Return the least of a circuit's base load for as long as a reading may be old."""
        bases = self._bases[circuit]
        while bases[1:] and bases[1][0] <= now_s - WHOLE_KNOWN_S:
            bases.pop(0)
        return per_phase(map(min, zip(*(amperes for _since_s, amperes in bases), strict=True)))

    def accounts(self, spans: Mapping[str, tuple[Span, Span, Span]]) -> None:
        """Judge the ledger: it holds what flows and what is in force."""
        now_s = self.twin.now_s
        for evse in self._evses:
            does, reach = self._doings[evse.name], self._reach[evse.device]
            state = self.twin.outlet(evse.name)
            high = min(spans[evse.name][_PHASES.index(phase)].high for phase in evse.phases[: max(state.conductors, 1)])
            if reach.mute_since_s is not None and evse.name not in self._falls_back:
                mute_s = now_s - max(reach.mute_since_s, self._started_s)
                if mute_s > MUTE_S and high < evse.rating_a - _NEAR_A:
                    self._report("no watchdog", evse.name, now_s, f"{evse.name}: the ledger holds {high:.1f} A")
            since_s = now_s if self._frozen(evse.device) else -math.inf
            unproven = now_s - (since_s if does.frozen_since_s is None else does.frozen_since_s) <= PROOF_S
            # A pilot that is frozen above its EVSE's rating, on a device that is mute, cannot be known of.
            stuck = does.frozen_since_s is not None and self._is_stuck(reach, now_s)
            drawn_a = min(state.current_a, evse.rating_a) if stuck else state.current_a
            for what, amperes in (("draws", drawn_a), ("may draw", self.twin.limit_a(evse.name))):
                if unproven or (what == "may draw" and reach.off_since_s is not None):
                    continue
                if amperes > high + _NEAR_A + _METER_A:
                    detail = f"{evse.name} {what} {amperes:.1f} A, the ledger holds {high:.1f}"
                    self._report("ledger", evse.name, now_s, f"{detail}; {self._situation()}")
        if self.scene.storage:
            low, high = max(span.low for span in spans[STORAGE]), min(span.high for span in spans[STORAGE])
            for amperes in (self._drawn_a(STORAGE), self._limit_a(STORAGE)):
                if not low - _NEAR_A - _METER_A <= amperes <= high + _NEAR_A + _METER_A:
                    detail = f"{STORAGE} takes, or may take, {amperes:.1f} A, the ledger holds {low:.1f} to {high:.1f}"
                    self._report("ledger", STORAGE, now_s, f"{detail}; {self._situation()}")

    # What devices do

    def _look_at_watchdogs(self, now_s: float) -> None:
        for name, (watchdog_s, fallback_a) in self._falls_back.items():
            reach = self._reach[self._loads[name].device]
            if reach.off_since_s is not None:
                continue
            alone_s, limit_a = now_s - max(reach.taken_s, reach.booted_s, 0.0), abs(self._limit_a(name))
            if alone_s > watchdog_s + 1 and limit_a > fallback_a + _NEAR_A:
                detail = f"{name}: {limit_a:.1f} A {alone_s:.1f} s after its last request"
                self._report("watchdog", name, now_s, f"{detail}, expected {fallback_a:.1f} A")

    def _look_at_storage(self, now_s: float) -> None:
        if not self.scene.storage:
            return
        state = self.twin.inverters[STORAGE].state
        if state.power_w >= -_NEAR_W:
            return
        if state.soc * 100 <= self.scene.depot.site.soc_reserve_percent:
            self._report("reserve", STORAGE, now_s, f"{-state.power_w:.0f} W discharged at {state.soc * 100:.3f} %")
        lost_s = now_s - self._lost_since_s.get(STORAGE, now_s)
        stale_s = WHOLE_SOC_STALE_S if self._whole else SOC_STALE_S
        if lost_s > stale_s + CYCLE_S + STORAGE_FOLLOWS_S and self._told_lately(STORAGE, now_s):
            detail = f"{-state.power_w:.0f} W discharged {lost_s:.0f} s after its state of charge was lost"
            self._report("reserve", STORAGE, now_s, detail)

    def _told_lately(self, device: str, now_s: float) -> bool:
        """Whether control ran, and a device took requests, for long enough that it has done what it was told."""
        patience_s = self._window_s + UNRELIABLE_S
        return self.alive and now_s - max(self._started_s, self._reach[device].missed_s) > patience_s

    def _look_at_heat(self, now_s: float) -> None:
        for evse in self._sensed:
            state = self.twin.outlet(evse.name)
            if self._doings[evse.name].frozen_since_s is None:
                self._judge_heat(evse.name, evse.device, state.current_a, state.temperature_c, now_s)
        if self.scene.storage and self._whole:  # only the orchestrator watches the storage's
            celsius = self.twin.inverters[STORAGE].state.temperature_c
            self._judge_heat(STORAGE, STORAGE, self._drawn_a(STORAGE), celsius, now_s)

    def _judge_heat(self, name: str, device: str, drawn_a: float, celsius: float, now_s: float) -> None:
        if abs(drawn_a) <= _HELD_BACK_A or not self._told_lately(device, now_s):
            return
        policy = self.scene.policy
        lately = now_s - self._lost_at_s.get(device, -math.inf) <= self._window_s + UNRELIABLE_S
        if policy is not None and not policy.charger_sensor.required and lately:
            return
        if celsius > CUT_OFF_C + _NEAR_C:
            self._report("cut-off", name, now_s, f"{name}: {drawn_a:.1f} A at {celsius:.2f} degC")
        lost_s = now_s - self._lost_since_s.get(device, now_s)
        sensor = SENSOR if policy is None else policy.charger_sensor
        if sensor.required and lost_s > sensor.reach_s + CYCLE_S:
            detail = f"{name}: {drawn_a:.1f} A {lost_s:.0f} s after its sensor was lost"
            self._report("sensor lost", name, now_s, detail)

    # What the policy asks

    def _look_at_demand(self, policy: Policy, now_s: float) -> None:
        cap = policy.demand_cap
        if cap is None:
            return
        root = next(row for row in self._rows if row.line is None)
        self._imported_ws.append(self._imported_ws[-1] + max(_flow(root, self.twin.currents), 0.0) * STEP_S)
        # The wall's clock is a whole number of intervals ahead.
        since_s = now_s % cap.window_s if cap.windows is Windows.ALIGNED else cap.window_s
        used_ws = self._imported_ws[-1] - self._imported_ws[max(-1 - round(since_s / STEP_S), -len(self._imported_ws))]
        if used_ws <= cap.cap_w * cap.window_s * _SLACK + _REGISTER_WS:
            self._spent_since_s = None
            return
        self._spent_since_s = now_s if self._spent_since_s is None else self._spent_since_s
        if now_s - self._spent_since_s <= self._window_s + UNRELIABLE_S:
            return
        for evse, drawn_a in self._answerable(now_s):
            if drawn_a > _HELD_BACK_A:
                detail = f"{evse.name}: {drawn_a:.1f} A, {used_ws / 3.6e6:.3f} kWh used of the interval's"
                self._report("demand", evse.name, now_s, f"{detail} {cap.cap_w * cap.window_s / 3.6e6:.3f} kWh")

    def _answerable(self, now_s: float) -> Iterator[tuple[Evse, float]]:
        """Yield what each EVSE draws, in A, that did take what it was told for a while."""
        for evse in self.scene.depot.evses():
            if self._doings[evse.name].frozen_since_s is None and self._told_lately(evse.device, now_s):
                yield evse, self._drawn_a(evse.name)

    def _look_at_droop(self, policy: Policy, now_s: float) -> None:
        settings = policy.droop
        if settings is None:
            return
        self._lately_a.append({name: self._drawn_a(name) for name in self._loads})
        low_hz = settings.nominal_hz - settings.deadband_uf_hz - self.twin.frequency_hz
        if low_hz <= 0 or not self.alive or now_s - self._hertz_s > STALE_S:
            self._low_since_s = None
            if low_hz > 0:
                self._before_a = dict.fromkeys(self._loads, math.inf)
            elif now_s - self._low_s > settings.calm_s + DROOP_S:
                self._before_a.clear()
            return
        self._low_s = now_s
        if self._low_since_s is None:
            self._low_since_s = now_s
            self._low.clear()
        self._low.append(low_hz / (settings.nominal_hz * settings.k_uf))
        if now_s - self._low_since_s <= _SETTLES_S:
            self._before_a = {
                name: max(self._before_a.get(name, 0.0), *(drawn[name] for drawn in self._lately_a))
                for name in self._loads
            }
        if now_s - self._low_since_s <= DROOP_S + self._window_s:
            return
        least = min(self._low)
        for evse, drawn_a in self._answerable(now_s):
            before_a = min(self._before_a[evse.name], evse.limit_a)
            most_a = max(before_a - (least - _DROOP_SHARE) * evse.limit_a, 0.0) + _HELD_BACK_A
            came_s = now_s - self._plugged_s.get(evse.name, -math.inf)
            if drawn_a > most_a and came_s > self._window_s + UNRELIABLE_S:
                detail = f"{evse.name}: {drawn_a:.1f} A at {self.twin.frequency_hz:.2f} Hz, {before_a:.1f} A before"
                self._report("droop", evse.name, now_s, f"{detail}, expected at most {most_a:.1f}")

    # Reporting

    def _situation(self) -> str:
        drawing = ", ".join(
            f"{name} {self._drawn_a(name):.1f}/{self._limit_a(name):.1f}/{self._doings[name].told_a:.1f}"
            for name in self._loads
        )
        faults = ", ".join(f"{on}: {'+'.join(f.kind.value for f in kinds)}" for on, kinds in self.twin.faults().items())
        return f"drawing/limit/told {drawing}; faults {faults or 'none'}; control {'runs' if self.alive else 'is dead'}"

    def _report(self, rule: str, about: str, at_s: float, detail: str) -> None:
        """Take note of a violation; of each kind once for each thing."""
        if (rule, about) not in self._seen:
            self._seen.add((rule, about))
            self.violations.append(Violation(rule, round(at_s, 1), detail))


def _beneath(scene: Scene, name: str) -> set[str]:
    """Return a circuit and all beneath it."""
    found = {name}
    for other in scene.depot.circuits.values():
        if other.parent == name:
            found |= _beneath(scene, other.name)
    return found


def _flow(row: Row, currents: Mapping[str, network.Phasors]) -> float:
    """Return what flows in a row: A of a line, W of the site."""
    lines = currents[row.circuit]
    if row.line is not None:
        return abs(lines[row.line])
    return sum(_NEUTRAL_V * (line * turn.conjugate()).real for line, turn in zip(lines, network.ANGLES, strict=True))


def _most(row: Row, limit: float) -> float:
    """Return up to what a row is taken to be within its limit."""
    return limit * _SLACK + _NEAR_A * (1 if row.line is not None else 3 * _NEUTRAL_V)
