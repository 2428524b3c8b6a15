# SPDX-License-Identifier: Apache-2.0
"""What the orchestrator knows and decides, without I/O: readings, asks and proofs in, writes and a report out.

It is the one owner of control's state. Whoever calls it stores the ledger before the writes of a cycle leave, tells
what became of each of them, and hands in every reading; times are of one clock that goes on through suspend, in s.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from derms_agent.control import allocate, demand, droop, guard, limits, metering, soc, thermal, uptake
from derms_agent.control import ledger as book
from derms_agent.control import state as grid_state
from derms_agent.control.cycle import Allocated, Bounds, Cycle, EvseImage, Inputs, Outcome, State
from derms_agent.control.guard import Write
from derms_agent.control.overdue import Overdue
from derms_agent.control.plan import Need, Plan
from derms_agent.control.worst_case import BaseLoad, Excess
from derms_agent.model import (
    Evse,
    Limit,
    LimitQuantity,
    Meter,
    PerPhase,
    Phase,
    Proof,
    ProofKind,
    Quality,
    Rank,
    Reading,
    Session,
    per_phase,
)
from derms_agent.orchestrator import asks as wishes
from derms_agent.orchestrator.asks import Ask
from derms_agent.orchestrator.batteries import Batteries, Battery, Kind
from derms_agent.orchestrator.handover import Memory
from derms_agent.orchestrator.image import (
    DC_EFFICIENCY,
    EvseReading,
    MeterSample,
    evse_readings,
    generated,
    meter_sample,
)
from derms_agent.orchestrator.sessions import Metering, followed
from derms_agent.orchestrator.site import Site, armed
from derms_agent.orchestrator.temperatures import Temperatures, ToldHeat
from derms_agent.profiles.profile import ASSUMED_STEP_WH, Refresh

READING_FRESH_S = 2.5
_METERING = metering.Rules(answers_s=READING_FRESH_S)
METER_FRESH_S = _METERING.fresh_s
"""How old a meter's reading may be and still count: its pace, the brackets around it, and for how long one stands."""
GAP_S = 4.0
"""A device that was silent for longer may have been restarted: its settings are read again."""
SETTLE_S = 20.0
"""After a start, or an ask: until writes that replace what was before are proven, and shares follow from that."""
RETURN_S = 30.0
"""Devices that were lost with one link come back within so long of one another: each tries anew after 10 s at most."""
OUTAGE_S = 5.0
"""A device that was silent for so long may have had no power: no start is shorter (`Station.boot_s`)."""
TOGETHER_S = 20.0
"""Devices that lose power together are seen to be silent within so long of one another: time-outs differ."""
OUTAGE_SHARE = 0.8
"""The share of the devices that answered until then that falls silent together in an outage.

An outage takes all of them, but for one that has a battery, or that is seen to be silent late. Where a depot's chargers
hang on two switches, one of those may well have more than half of them, but hardly ever as many as this.
"""
SUPPLIED_GAP_S = 2.0
"""The site's meter that shows a sound voltage that often has power itself: no start of one is shorter."""
BOOTS_S = 180.0
"""A charger answers within so long of the host, if it starts with it."""
SPREAD_EACH_S = 15.0
"""Starts after an outage are spread over so long for each EVSE, up to `Policy.spread_s`: few of them need not wait."""
WAKES_S = 60.0
"""For how long a vehicle may be offered something until it takes any of it: it may have to wake up first."""
ASKED_AGAIN_S = 300.0
"""After so long without an offer a vehicle that took nothing is offered the least again: it may want it by now."""
PLAN_LASTS_S = 900.0
"""A plan that is older is none: those that came since would wait for what it gives others. One is made each 5 min."""
_SHOWN_S = 1.0
"""How long after it acknowledged a limit a device may take until it shows it."""
_STEP_A = 1.0
_KEPT = 8
_NO_BASE = BaseLoad()
_NO_HEAT = ToldHeat()


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The depot's limits and how control behaves, from limits.conf and the depot file. None: there is none."""

    limit_va: float
    default_limit_w: float | None = None
    soc_reserve_percent: float = 20.0
    demand_cap: demand.Cap | None = None
    droop: droop.Settings | None = None
    nominal_hz: float = 50.0
    ramp_w_per_s: float | None = None
    enclosure_sensor: thermal.Sensor = thermal.DEFAULTS[thermal.SensorKind.ENCLOSURE]
    charger_sensor: thermal.Sensor = thermal.DEFAULTS[thermal.SensorKind.CHARGER]
    battery_sensor: thermal.Sensor = thermal.DEFAULTS[thermal.SensorKind.BATTERY]
    spread_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Honour:
    """Whether an ask can be obeyed, and what the site can be brought to, in W; `why` it is no less, in words."""

    can: bool
    reachable_w: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What people or telematics said of a session; None: nothing. Times by the control's clock.

    `air`: around the vehicle.
    """

    departure_at_s: float | None = None
    energy_need_wh: float | None = None
    vehicle: str | None = None
    soc_percent: float | None = None
    soc_read_at_s: float | None = None
    battery: thermal.Temperature | None = None
    air: thermal.Temperature | None = None


@dataclass(slots=True)
class Controller:
    """One gateway's control.

    `boot_id` names this start of the host. `energised_at_s`: it was then, and power may have been away before; None:
    this process only goes on. `stays_over`: what could be over its limit although there was time to lower it.
    `free_s`: since when those have shown that no limit of ours is in force that do.
    `link_until_s`: until then the grid's link stands as far as is known; None: there is none to wait for. `link_stood`:
    it ever did.
    """

    site: Site
    policy: Policy
    state: State
    boot_id: str = ""
    asks: dict[str, Ask] = field(default_factory=dict)
    told: dict[str, Told] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    readings: dict[str, EvseReading] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    answered_s: dict[str, float] = field(default_factory=dict)
    free_s: dict[str, float] = field(default_factory=dict)
    plan: Plan | None = None
    link_until_s: float | None = None
    link_stood: bool = False
    outcome: Outcome | None = None
    base: Mapping[str, limits.BaseLoad] = field(default_factory=dict)
    stays_over: tuple[Excess, ...] = ()
    batteries: Batteries = field(default_factory=Batteries)
    energised_at_s: float | None = None
    params: allocate.Params = field(init=False)
    _cycle: Cycle = field(init=False)
    _events: list[book.Event] = field(default_factory=list)
    _previous: Mapping[str, allocate.Allocation] = field(default_factory=dict)
    _metering: dict[str, Metering] = field(default_factory=dict)
    _drawn: dict[str, deque[metering.Drawn]] = field(default_factory=dict)
    _shown: dict[str, deque[metering.Shown]] = field(default_factory=dict)
    _generated: dict[tuple[str, str], deque[metering.Generated]] = field(default_factory=dict)
    _meters: dict[str, MeterSample] = field(default_factory=dict)
    _worked_by: MeterSample | None = None
    _beneath: dict[str, tuple[Evse, ...] | None] = field(default_factory=dict)
    _most_of: dict[str, tuple[metering.Most | None, ...]] = field(default_factory=dict)
    _beside_asks: tuple[Limit, ...] = ()
    _heat: dict[str, tuple[Limit, ...]] = field(default_factory=dict)
    _temperatures: Temperatures = field(init=False)
    _settled_s: float | None = None
    _in_force: frozenset[Ask] = frozenset()
    _doubted: frozenset[str] = frozenset()
    _doubted_from_s: float = math.inf
    _returned: frozenset[str] = frozenset()
    _returned_s: float = -math.inf
    _freed_until_s: float = -math.inf
    _dark: frozenset[str] = frozenset()
    _supplied_s: tuple[float, float] = (math.inf, -math.inf)
    _cycled_s: float = -math.inf
    _overdue: Overdue = field(default_factory=Overdue)
    _droop: droop.State = field(default_factory=droop.State)
    _demand: demand.Samples = field(default_factory=demand.Samples)
    _wall: demand.Wall | None = None
    _settings_asked_s: dict[str, float] = field(default_factory=dict)
    _armed: dict[str, book.Armed] = field(default_factory=dict)
    _offered: dict[str, tuple[float, float]] = field(default_factory=dict)
    _uptake_a: dict[str, float] = field(default_factory=dict)
    _acknowledged: dict[str, tuple[int, float, float]] = field(default_factory=dict)
    _contradicted: set[str] = field(default_factory=set)
    _fed_s: dict[str, float] = field(default_factory=dict)
    _by_name: dict[str, Evse] = field(default_factory=dict)
    _power_factor: float = field(init=False)
    _ramps: dict[str, tuple[float, float, tuple[Limit, ...]]] = field(default_factory=dict)
    _ratings: dict[str, tuple[tuple[float | None, float] | None, tuple[Limit, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        site = self.site
        self._cycle = Cycle(circuits=site.circuits, combine=limits.Combining(), allocate=self._allocate)
        self.params = allocate.Params(
            steps={
                one.name: allocate.Steps(minimum_a=one.least_a, step_a=one.step_a) for one in site.stations.values()
            },
            storage=frozenset(evse.name for evse in site.evses if evse.stationary),
            spread_s=min(self.policy.spread_s, SPREAD_EACH_S * len(site.evses)),
            # Else each depot of a fleet would wait alike, and one depot alike after each outage.
            seed=f"{site.depot.name}/{self.boot_id}",
        )
        self._by_name = {evse.name: evse for evse in site.evses}
        self._power_factor = min((evse.power_factor for evse in site.evses), default=1.0)
        self._temperatures = Temperatures(site)
        # What a predecessor told each EVSE is what it has: a new process is no reason to change anything.
        self._previous = {
            name: allocate.Allocation(
                evse=name,
                current_a=max(amount.active_a, 0.0),
                power_w=max(amount.active_a, 0.0) * self.watts_per_a(name),
                why="as before",
            )
            for name, entry in self.state.ledger.entries.items()
            if (amount := entry.told_amount) is not None
        }

    # What becomes known

    def take(self, device_name: str, reading: Reading, now_s: float) -> bool:
        """Take a device's reading in. Return whether it is such that control should work at once."""
        site = self.site
        device = site.devices[device_name]
        if reading.problem is None:
            self.problems.pop(device_name, None)
        else:
            self.problems[device_name] = reading.problem
        if reading.settings_asked_at_s is not None and reading.settings_asked_at_s > self._settings_asked_s.get(
            device_name, -math.inf
        ):
            self._settings_asked_s[device_name] = reading.settings_asked_at_s
            asked_s = reading.settings_asked_at_s
            for one in armed(site, device, reading.values, asked_s):
                self._armed[one.evse] = one
                # The ledger believes no settings of one that it has not heard, and no reading may be counted yet.
                self._events += [book.Answered(one.evse, asked_s, max(asked_s, reading.answered_at_s)), one]
        if reading.fed_at_s is not None and reading.fed_at_s > self._fed_s.get(device_name, -math.inf):
            self._fed_s[device_name] = reading.fed_at_s
            self._events.extend(book.Refreshed(evse.name, reading.fed_at_s) for evse in device.evses)
        self.answered_s[device_name] = reading.answered_at_s
        self._temperatures.take(device, reading)
        urgent = False
        for name, seen in evse_readings(site, device, reading).items():
            urgent |= self._take_evse(name, seen, now_s)
        charge = reading.values.get("soc")
        if isinstance(charge, int | float) and not device.evses and reading.quality is Quality.GOOD:
            self.batteries.read(Battery(Kind.STORAGE, device_name), charge, reading.asked_at_s)
        if device_name in self._dark and reading.quality is Quality.GOOD:
            self._dark -= {device_name}
        return self._take_meters(device_name, reading) or urgent

    def _take_meters(self, device_name: str, reading: Reading) -> bool:
        """Take in what a device shows as a meter. Return whether control should work at once."""
        urgent = False
        for circuit, meter in self.site.meters.items():
            if meter.device == device_name:
                urgent |= self._take_meter(circuit, reading)
        for circuit, meters in self.site.generators.items():
            for meter in meters:
                if meter.device == device_name:
                    self._take_generator(circuit, meter, reading)
        return urgent

    def foresee(self, device_name: str, armed: Sequence[book.Armed]) -> bool:
        """Count from the next cycle on what somebody is about to write to a device's fallback.

        Return whether that is more than was counted so far. What is read of its settings counts again from
        `seen_through` on.
        """
        self._settings_asked_s[device_name] = math.inf
        self._armed |= {one.evse: one for one in armed}
        self._events.extend(armed)
        entries = self.state.ledger.entries
        return any(_is_more(one, entries[one.evse]) for one in armed if one.evse in entries)

    def seen_through(self, device_name: str, at_s: float) -> None:
        """Believe again what is read of a device's settings, where that was asked for after a time."""
        self._settings_asked_s[device_name] = at_s

    def _take_evse(self, name: str, seen: EvseReading, now_s: float) -> bool:
        before = self.readings.get(name)
        self.readings[name] = seen
        if seen.image.quality is not Quality.GOOD:
            return before is not None and before.image.quality is Quality.GOOD
        if before is not None and seen.image.sent_s <= before.image.sent_s:
            return False
        if before is None or self._by_name[name].device in self._dark:
            self._notice_energised(name, seen, now_s)
        if before is not None and seen.image.sent_s - before.image.answered_s > GAP_S:
            self._notice_gap(name, before.image.answered_s)
        self._notice_free(name, seen)
        self._compare(name, seen.image)
        session, counted = followed(
            self.sessions.get(name),
            self._metering.get(name),
            name,
            seen,
            now_s,
            stationary=self._by_name[name].stationary,
        )
        self._metering[name] = counted
        if session is None:
            self.sessions.pop(name, None)
            self.told.pop(name, None)
            self._uptake_a.pop(name, None)
            self._temperatures.left(name)
        else:
            self._keep(session, seen)
        self._heated(name)
        self._trail(name, seen.image)
        if before is None or before.occupied != seen.occupied or before.image.quality is not Quality.GOOD:
            return True
        told = self.state.ledger.entries[name].told_amount
        if told is None or seen.image.current_a is None:
            return False
        # A vehicle that has just been told less is still on its way there.
        _, since_s = self._offered.get(name, (0.0, -math.inf))
        settled = seen.image.sent_s - since_s >= self.site.stations[name].follow_s
        return settled and max(seen.image.current_a) > max(told.active_a, 0.0) + _STEP_A

    def _trail(self, name: str, image: EvseImage) -> None:
        """Keep what was drawn at an EVSE, for what the meters above it show besides."""
        if image.current_a is None:
            return
        evse = self._by_name[name]
        low_a = high_a = image.current_a
        if not (evse.stationary or self._shows_currents(name)):
            # The vehicle's side of a rectifier: of what it gives back as well, less may flow on the supply's.
            ends = [(current, DC_EFFICIENCY * current) for current in high_a]
            low_a, high_a = per_phase(map(min, ends)), per_phase(map(max, ends))
        elif not evse.stationary and evse.lowest_a >= 0:  # else it is what is active, and no more
            high_a = per_phase(current / evse.power_factor for current in low_a)
        trail = self._drawn.setdefault(name, deque(maxlen=_KEPT))
        trail.append(metering.Drawn(image.sent_s, image.answered_s, low_a, high_a))

    def _notice_gap(self, name: str, heard_s: float) -> None:
        """Take into account that a device may have started anew, at something else than it was told, and unarmed."""
        told = self.state.ledger.entries[name].told_amount
        self._offered[name] = (0.0 if told is None else told.active_a, math.inf)
        if name in self._armed and self._armed[name].sent_s <= heard_s:
            del self._armed[name]

    def _notice_free(self, name: str, seen: EvseReading) -> None:
        """Count all that one can do that holds nothing of what it was told, until it is told anew.

        It may have started anew between two readings: what was read of its settings before stands no more.
        """
        if not seen.free:
            self.free_s.pop(name, None)
            return
        image = seen.image
        if name not in self.free_s and name in self._armed and self._armed[name].sent_s < image.sent_s:
            del self._armed[name]
        self.free_s.setdefault(name, image.answered_s)
        self._events += [
            book.Replaced(name, image.answered_s),
            book.Answered(name, image.sent_s, image.answered_s),
        ]
        if name in self._armed:
            self._events.append(self._armed[name])

    def _keep(self, session: Session, seen: EvseReading) -> None:
        """Keep a session that goes on, with what is told of it, what its vehicle takes, and what that goes through."""
        name = session.evse
        evse = self._by_name[name]
        informed, power_w = _informed(session, self.told.get(name)), self._taken_w(name, seen.image)
        if evse.stationary:
            power_w = None  # what it leaves vehicles have before it anyway
        powers = power_w, self._given_w(evse, informed)
        if powers != (informed.power_w, informed.discharge_w):
            informed = replace(informed, power_w=powers[0], discharge_w=powers[1])
        self.sessions[name] = informed
        if seen.soc_percent is not None:
            self.batteries.read(_battery_of(informed, evse), seen.soc_percent, seen.image.sent_s)

    def _given_w(self, evse: Evse, session: Session) -> float:
        """Return the most that may be given back at an EVSE: of a vehicle that is known to do so, or by storage."""
        most_w = -evse.lowest_a * self.watts_per_a(evse.name)
        if evse.stationary or most_w <= 0:
            return max(most_w, 0.0)
        vehicle = self.site.depot.vehicles.get(session.vehicle or "")
        return 0.0 if vehicle is None else min(most_w, vehicle.give_back_w)

    def _compare(self, name: str, image: EvseImage) -> None:
        """Look whether an EVSE shows more than what it acknowledged last: then it is not believed until it does not."""
        known = self._acknowledged.get(name)
        told = self.state.ledger.entries[name].told
        if image.limit_a is None or told is None or told.write is None:
            return
        if told.span.holds(book.span_of(book.Amount(image.limit_a)), book.SAME_A):
            self._acknowledged.pop(name, None)
            self._contradicted.discard(name)
        elif known is not None:
            write, at_s, first_s = known
            if write == told.write and image.sent_s >= max(at_s, first_s + _SHOWN_S):
                self._contradicted.add(name)

    def _taken_w(self, name: str, image: EvseImage) -> float | None:
        """Return the most that the vehicle at an EVSE is believed to take, in W; None where it never took less."""
        bound_a = self._uptake_a.get(name, math.inf)
        entry = self.state.ledger.entries[name]
        offered_a = 0.0 if entry.told_amount is None else entry.told_amount.active_a
        # A repetition for the watchdog is a new write of the same offer.
        known_a, since_s = self._offered.get(name, (math.nan, math.inf))
        if abs(offered_a - known_a) > book.SAME_A or math.isnan(known_a):
            since_s = math.inf
        # A vehicle is offered nothing before its device has it, which may be long after it was told.
        if since_s == math.inf and entry.told is not None and entry.told.acknowledged:
            since_s = image.answered_s
        self._offered[name] = (offered_a, since_s)
        station = self.site.stations[name]
        if image.current_a:
            drawn_a, for_s = max(image.current_a), image.sent_s - since_s
            takes = drawn_a > _STEP_A
            if for_s >= (station.follow_s if takes else max(station.follow_s, WAKES_S)):
                bound_a = uptake.learnt_a(bound_a, offered_a, drawn_a)
                # Beneath the least that it can be offered it would be offered nothing, which shows nothing for good.
                if takes or (offered_a <= 0 and for_s >= ASKED_AGAIN_S):
                    bound_a = max(bound_a, station.least_a)
                self._uptake_a[name] = bound_a
        return bound_a * self.watts_per_a(name) if math.isfinite(bound_a) else None

    def _shows_currents(self, name: str) -> bool:
        profile = self.site.profiles[self._by_name[name].device]
        return "current_l1" in profile.points or "current_l1" in profile.sunspec_points

    def _take_meter(self, circuit: str, reading: Reading) -> bool:
        sample = meter_sample(self.site, circuit, reading)
        known = self._meters.get(circuit)
        if sample is None or (known is not None and sample.asked_s <= known.asked_s):
            return False
        self._meters[circuit] = sample
        if circuit == self.site.root.name:
            self._supplied_s = self._supplied_through(sample)
        if sample.current_a is not None:
            self._shown.setdefault(circuit, deque(maxlen=_KEPT)).append(
                metering.Shown(
                    asked_s=sample.asked_s,
                    answered_s=sample.answered_s,
                    current_a=sample.current_a,
                    active_w=sample.active_w,
                    reactive_var=sample.reactive_var,
                )
            )
        cap = self.policy.demand_cap
        if cap is not None and circuit == self.site.root.name and sample.import_wh is not None:
            self._demand = demand.add(self._demand, demand.Sample(sample.answered_s, sample.import_wh), cap)
        return circuit == self.site.root.name and self._grid_moved(sample)

    def _supplied_through(self, sample: MeterSample) -> tuple[float, float]:
        """Return from when until when the site's meter has seen a sound voltage, without a pause."""
        if sample.voltage_share is None or grid_state.out_of_sync(self.grid(sample)) is not None:
            return math.inf, -math.inf
        from_s, until_s = self._supplied_s
        paused = sample.asked_s - until_s > SUPPLIED_GAP_S
        return sample.asked_s if paused else from_s, sample.answered_s

    def _grid_moved(self, sample: MeterSample) -> bool:
        """Whether the grid does what the last cycle did not know: the frequency leaves droop's deadband, say."""
        settings, before = self.policy.droop, self._worked_by
        if settings is not None and droop.excursion(
            settings, None if before is None else before.frequency_hz, sample.frequency_hz
        ):
            return True
        lost, was_lost = (grid_state.out_of_sync(self.grid(one)) is not None for one in (sample, before))
        return before is not None and lost is not was_lost

    def grid(self, sample: MeterSample | None) -> grid_state.Grid:
        """Return the supply as a sample of the site's meter shows it; None: nothing is known of it."""
        return grid_state.Grid(
            frequency_hz=None if sample is None else sample.frequency_hz,
            voltage_share=None if sample is None else sample.voltage_share,
            nominal_hz=self.policy.nominal_hz,
            required=self.policy.droop is not None,
        )

    def _take_generator(self, circuit: str, meter: Meter, reading: Reading) -> None:
        sample = generated(self.site, meter.circuit, reading)
        trail = self._generated.setdefault((circuit, meter.name), deque(maxlen=_KEPT))
        if sample is not None and not (trail and sample.asked_s <= trail[-1].asked_s):
            trail.append(metering.seen_from(self.site.depot.circuits, circuit, meter.circuit, sample))

    def proved(self, evse: str, write: int, proof: Proof | None, at_s: float) -> None:
        """Take in what became of a write; None: nobody waited for its answer."""
        kind = ProofKind.INDETERMINATE if proof is None else proof.kind
        match kind:
            # It has acknowledged before what it did not take: the next reading tells.
            case ProofKind.ACKNOWLEDGED if evse in self._contradicted:
                self._events.append(book.Lost(evse, write, at_s))
            case ProofKind.ACKNOWLEDGED | ProofKind.READ_BACK:
                # Of several that it has not shown since, the first one's time counts as well.
                *_, first_s = self._acknowledged.get(evse, (at_s,))
                self._acknowledged[evse] = write, at_s, first_s
                self._events.append(book.Acknowledged(evse, write, at_s))
            case ProofKind.UNSENT:
                self._events.append(book.NotExecuted(evse, write, at_s))
            # A device that refuses may have taken a part of it, or show something else since: what it shows decides.
            case _:
                self._events.append(book.Lost(evse, write, at_s))

    def tell(self, evse: str, told: Told) -> None:
        """Take in what is said of the session at an EVSE; what is not said stays as it was. Raises KeyError."""
        session = self.sessions[evse]
        before = self.told.get(evse, Told())
        merged = Told(
            **{
                name: getattr(before, name) if getattr(told, name) is None else getattr(told, name)
                for name in Told.__slots__
            }
        )
        self.told[evse] = merged
        self.sessions[evse] = informed = _informed(session, merged)
        seen = self.readings.get(evse)
        if merged.soc_percent is not None and merged.soc_read_at_s is not None and (not seen or not seen.soc_percent):
            battery = _battery_of(informed, self._by_name[evse])
            self.batteries.read(battery, merged.soc_percent, merged.soc_read_at_s)

    def recall(self, evse: str, stored: Mapping[str, Any], now_s: float, now_unix_s: float) -> None:
        """Take in what a predecessor knew of a session; its first reading says whether it still is.

        Raises KeyError, TypeError or ValueError for anything else.
        """

        def at(name: str) -> float | None:
            return None if stored[name] is None else now_s + float(stored[name]) - now_unix_s

        need_wh, vehicle = stored["energy_need_wh"], stored["vehicle"]
        started_s = at("started_unix_s")
        self.told[evse] = Told(
            departure_at_s=at("departure_unix_s"),
            energy_need_wh=None if need_wh is None else float(need_wh),
            vehicle=None if vehicle is None else str(vehicle),
        )
        session = Session(
            evse=evse,
            started_at_s=now_s if started_s is None else started_s,
            delivered_wh=float(stored["delivered_wh"]),
        )
        self.sessions[evse] = _informed(session, self.told[evse])

    def memory(self) -> Memory:
        """Return what a successor goes on from besides ledger, asks and sessions."""
        return Memory(
            shares=self._previous,
            uptake_a=self._uptake_a,
            in_force=self._in_force,
            settled_s=self._settled_s,
            plan=self.plan,
            samples=self._demand,
            wall=self._wall,
            heat=self._temperatures.learnt,
            droop=self._droop,
            energised_at_s=self.params.energised_at_s,
        )

    def remember(self, memory: Memory) -> None:
        """Go on from what a predecessor remembered; the first reading of an EVSE says whether its vehicle still is."""
        self._previous = {**self._previous, **memory.shares}
        self._uptake_a = dict(memory.uptake_a)
        self._in_force, self._settled_s = memory.in_force, memory.settled_s
        self.plan = memory.plan
        self._demand, self._wall, self._droop = memory.samples, memory.wall, memory.droop
        self.recall_heat(memory.heat)
        self._wait(memory.energised_at_s)

    def recall_heat(self, heat: Mapping[str, thermal.Learnt]) -> None:
        """Go on from what temperatures left before, a start of the host ago too: a silent sensor leaves no more."""
        self._temperatures.recall(heat)

    def put(self, ask: Ask) -> None:
        """Take an ask in; one with the same id is replaced."""
        self.asks[ask.id] = ask

    def forget(self, ask_id: str) -> bool:
        """Take an ask back. Return whether it was there."""
        return self.asks.pop(ask_id, None) is not None

    def honour(self, ask: Ask, now_s: float) -> Honour:
        """Return whether an ask can be obeyed, by what cannot be lowered: base load, and who does not take writes."""
        ledger = self.state.ledger
        entries = ledger.entries
        fixed = [
            one
            for one in self.site.stations.values()
            if not guard.reliable(entries[one.name], one, now_s, self._cycle.rules)
        ]
        if ask.target in self._by_name:
            fixed = [one for one in fixed if one.name == ask.target]
        elif ask.target not in {limits.SITE, self.site.root.name}:
            beneath = self._reached(ask.target)
            names = {evse.name for evse in (self.site.evses if beneath is None else beneath)}
            fixed = [one for one in fixed if one.name in names]
        reachable_w = 0.0
        for one in fixed:
            spans = guard.phase_spans(book.advanced(entries[one.name], one, now_s), one, now_s)
            reachable_w += max(span.high for span in spans) * self.watts_per_a(one.name)
        why = [f"{len(fixed)} EVSEs take no orders and count {reachable_w / 1000:.1f} kW"] if fixed else []
        base = self.base.get(self.site.root.name)
        if ask.target in {limits.SITE, self.site.root.name} and base is not None:
            reachable_w += base.high_w
            why.append(f"{base.source} {base.high_w / 1000:.1f} kW")
        if ask.high_w < 0:
            given_w = self._givable_w(ask.target, {one.name for one in fixed})
            reachable_w -= given_w
            why.append(f"{given_w / 1000:.1f} kW can be given back")
        return Honour(reachable_w <= ask.high_w, reachable_w, "; ".join(why))

    def _givable_w(self, target: str, besides: Collection[str]) -> float:
        """Return what can be given back beneath a target by the last cycle's bounds, in W, but for some EVSEs."""
        if self.outcome is None:
            return 0.0
        names = {target}
        if target not in self._by_name:
            beneath = self._reached(self.site.root.name if target == limits.SITE else target)
            names = {evse.name for evse in (self.site.evses if beneath is None else beneath)}
        bounds = self.outcome.bounds
        given_w = 0.0
        for name in names.difference(besides):
            bound = bounds.get((name, LimitQuantity.ACTIVE_POWER, None))
            given_w += 0.0 if bound is None else max(-bound.low, 0.0)
        whole = bounds.get((limits.SITE, LimitQuantity.ACTIVE_POWER, None))
        return given_w if whole is None else min(given_w, max(-whole.low, 0.0))

    # The cycle

    def cycle(self, now_s: float, wall_ahead_s: float | None = None) -> Outcome:
        """Return what one cycle comes to; its ledger is to be stored before its writes leave.

        :param wall_ahead_s: how far the wall's clock is ahead of control's, for what goes by it; None: not known
        """
        if wall_ahead_s is not None:
            self._wall = demand.looked(self._wall, wall_ahead_s, now_s)
            self.asks = {name: wishes.moved(ask, wall_ahead_s) for name, ask in self.asks.items()}
        self.asks = {name: ask for name, ask in self.asks.items() if not ask.over(now_s)}
        self._worked_by = self._meters.get(self.site.root.name)
        self._notice_outage(now_s)
        self._settle(now_s)
        events, self._events = tuple(self._events), []
        image = {name: _aged(seen.image, now_s) for name, seen in self.readings.items()}
        for name, since_s in self.free_s.items():
            if now_s - since_s >= self._cycle.rules.grace_s:
                # It is not relied on: what flows there says nothing of what it was told.
                image[name] = replace(image[name], current_a=None)
        inputs = Inputs(
            now_s=now_s,
            image=image,
            limits=self._limits(now_s),
            events=events,
            # Taken off the limits already.
            base=dict.fromkeys(self.site.depot.circuits, _NO_BASE),
            idle=self._idle(),
        )
        outcome = self._cycle.run(self.state, inputs)
        self.state = outcome.state
        self.outcome = outcome
        self.stays_over = self._overdue.among(outcome.admission.over, now_s)
        self._notice_return(outcome, now_s)
        return outcome

    def shed(self, now_s: float) -> tuple[Write, ...]:
        """Return the decreases that the asks of this moment call for, ahead of the next cycle: `control/shed.py`.

        Whatever else has changed since the last cycle is left to the next. The state's ledger counts these writes, and
        is to be stored before they leave.
        """
        if self.outcome is None:
            return ()
        self._settle(now_s)
        root = self.base[self.site.root.name]
        limits_now = (*self._beside_asks, *wishes.limits_of(self.asks.values(), root))
        self.state, writes = self._cycle.shed(self.state, limits_now, self._idle(), now_s)
        for write in writes:
            # The next cycle may offer as much again as the last, and what is drawn meanwhile is not all of that.
            self._offered[write.evse] = (write.amount.active_a, math.inf)
        return writes

    def _idle(self) -> frozenset[str]:
        return frozenset(self._by_name.keys() - self.sessions.keys())

    def _settle(self, now_s: float) -> None:
        """Let shares move freely after a start, and when an ask begins, ends or changes: that is news, and no noise.

        What was raised before the news is not kept for it; what is raised by it is.
        """
        in_force = frozenset(ask for ask in self.asks.values() if ask.in_force(now_s))
        if in_force != self._in_force or self._settled_s is None:
            self._in_force = in_force
            self._settled_s = now_s + SETTLE_S
            self._previous = {name: one._replace(raised_at_s=-math.inf) for name, one in self._previous.items()}
        freed_from_s = -math.inf if now_s <= self._settled_s else self._doubted_from_s
        if now_s <= max(self._settled_s, self._freed_until_s):
            self._previous = {
                name: one._replace(lowered_at_s=-math.inf, cut_at_s=-math.inf, least_a=math.inf, most_a=-math.inf)
                if max(one.lowered_at_s, one.cut_at_s) >= freed_from_s
                else one
                for name, one in self._previous.items()
            }

    def _notice_return(self, outcome: Outcome, now_s: float) -> None:
        """Free what was lowered while something could not be relied on, once that can be: it need not wait.

        Only once in `hold_s` for each: what comes and goes again and again is noise, by which no vehicle is turned. The
        guard alone decides what may leave, here as ever.
        """
        unmetered = {
            circuit for circuit, load in self.base.items() if circuit in self.site.meters and not load.measured
        }
        doubted = outcome.doubted | {f"base load of {circuit}" for circuit in unmetered}
        if doubted and not self._doubted and now_s > self._freed_until_s:
            self._doubted_from_s = now_s
        back, self._doubted = self._doubted - doubted, doubted
        lowered = any(one.lowered_at_s >= self._doubted_from_s for one in self._previous.values())
        since_s = now_s - self._returned_s
        if since_s >= self.params.hold_s:
            self._returned = frozenset()
        if lowered and back - self._returned and (not self._returned or since_s <= RETURN_S):
            self._returned_s = self._returned_s if self._returned else now_s
            self._returned |= back
            self._freed_until_s = now_s + SETTLE_S

    def _notice_outage(self, now_s: float) -> None:
        """See whether most devices have fallen silent together: then power may be away, and comes back with each.

        Those that were silent long before the others say nothing, nor do those that this process never heard; and after
        a pause of this process all are silent. While the site's meter has seen the voltage all along, it is a link to
        the chargers that is lost, and no power.
        """
        paused = now_s - self._cycled_s > READING_FRESH_S
        self._cycled_s = now_s
        silent_s = {
            name: now_s - self.answered_s.get(name, -math.inf)
            for name, device in self.site.devices.items()
            if device.evses
        }
        fell = {name for name, for_s in silent_s.items() if OUTAGE_S <= for_s < OUTAGE_S + TOGETHER_S}
        answering = sum(for_s < OUTAGE_S for for_s in silent_s.values())
        if fell and not paused and len(fell) >= OUTAGE_SHARE * (len(fell) + answering):
            from_s, until_s = self._supplied_s
            if from_s > min(self.answered_s[name] for name in fell) or now_s - until_s > READING_FRESH_S:
                self._dark |= fell
        waiting = self.params.energised_at_s
        over = {name for name, at_s in waiting.items() if now_s >= at_s + self.params.spread_s}
        if over:
            self._wait({name: at_s for name, at_s in waiting.items() if name not in over})

    def _notice_energised(self, name: str, seen: EvseReading, now_s: float) -> None:
        """Have an EVSE that answers for the first time after an outage wait for its start, unless it draws already.

        Whoever booted before the gateway did, or was only not reached, charges and has nothing to start.
        """
        with_the_host = self.energised_at_s is not None and now_s <= self.energised_at_s + BOOTS_S
        if not with_the_host and self._by_name[name].device not in self._dark:
            return
        waiting = dict(self.params.energised_at_s)
        if max(seen.image.current_a or (0.0,)) > _STEP_A:
            waiting.pop(name, None)
        elif allocate.may_start_at_s(name, self.params) <= now_s:  # who waits already is put off no further
            waiting[name] = now_s
        self._wait(waiting)

    def _wait(self, energised_at_s: Mapping[str, float]) -> None:
        self.params = replace(self.params, energised_at_s=energised_at_s)

    def _limits(self, now_s: float) -> tuple[Limit, ...]:
        site, policy = self.site, self.policy
        self.base = limits.base_loads(site.depot.circuits, self._metered(now_s), now_s, METER_FRESH_S)
        root = self.base[site.root.name]
        offered_w = sum(max(one.power_w, 0.0) for one in self._previous.values())
        of_site = limits.site(policy.limit_va, root, power_factor=self._power_factor, offered_w=offered_w)
        found = [*of_site, *limits.circuits(site.depot.circuits, self.base)]
        if policy.default_limit_w is not None and self.link_lost(now_s):
            default = limits.Ask(source="default limit: the grid's link is lost", high_w=policy.default_limit_w)
            found += limits.grid([default], root)
        for evse in site.evses:
            found += self._own(evse)
            found += self._reserved(evse, now_s)
            found += self._ramped(evse, now_s)
            self._heat[evse.name] = tuple(self._cooled(evse, now_s))
        for heat in self._heat.values():
            found += heat
        found += self._frequency(now_s)
        if policy.demand_cap is not None:
            found += self._capped(policy.demand_cap, root, now_s)
        self._beside_asks = tuple(found)
        return (*self._beside_asks, *wishes.limits_of(self.asks.values(), root))

    def link_lost(self, now_s: float) -> bool:
        """Whether the grid's link should be there, is not any more, and none of its events is in force."""
        if self.link_until_s is None or now_s < self.link_until_s:
            return False
        return not any(ask.rank is Rank.GRID and ask.in_force(now_s) for ask in self.asks.values())

    def _metered(self, now_s: float) -> dict[str, limits.Metered]:
        found = {}
        for circuit, shown in self._shown.items():
            beneath = self._reached(circuit)
            if beneath is None:
                continue
            chosen = metering.standing(
                shown,
                [self._drawn.get(evse.name, ()) for evse in beneath],
                now_s,
                _METERING,
                self._generators(circuit),
                self._most(circuit),
                self._may_give_a(beneath),
            )
            if chosen is not None:
                found[circuit] = chosen
        return found

    def _may_give_a(self, beneath: Sequence[Evse]) -> list[PerPhase]:
        """Return what each EVSE may give back by the ledger, in A of the supply's lines; nothing where none can."""
        if not any(evse.lowest_a < 0 for evse in beneath):
            return []
        entries, lines = self.state.ledger.entries, tuple(Phase)
        return [
            per_phase(-entries[evse.name].span.low if line in (evse.phases or lines) else 0.0 for line in lines)
            for evse in beneath
        ]

    def _generators(self, circuit: str) -> list[Sequence[metering.Generated]]:
        return [self._generated.get((circuit, meter.name), ()) for meter in self.site.generators.get(circuit, ())]

    def _most(self, circuit: str) -> tuple[metering.Most | None, ...]:
        """Return the most that each generator beneath a circuit may give; worked out once."""
        if circuit not in self._most_of:
            circuits, evses = self.site.depot.circuits, self.site.evses
            meters = self.site.generators.get(circuit, ())
            self._most_of[circuit] = tuple(metering.most_of(circuits, evses, circuit, meter) for meter in meters)
        return self._most_of[circuit]

    def informed(self) -> bool:
        """Whether every device has answered, and each meter has been read between two readings of all that is beneath.

        Before that the base load is its worst case, by which no setpoint that a predecessor left should be judged.
        """
        if len(self.readings) < len(self._by_name):
            return False
        for circuit in self.site.meters:
            beneath = self._reached(circuit)
            if beneath is not None and not any(
                all(metering.bracket(one, self._drawn.get(evse.name, ())) is not None for evse in beneath)
                and all(metering.given(one, samples) is not None for samples in self._generators(circuit))
                for one in self._shown.get(circuit, ())
            ):
                return False
        return True

    def _own(self, evse: Evse) -> tuple[Limit, ...]:
        session = self.sessions.get(evse.name)
        key = None if session is None else (session.power_w, session.discharge_w)
        known = self._ratings.get(evse.name)
        if known is not None and known[0] == key:
            return known[1]
        found = limits.ratings(evse, session)
        self._ratings[evse.name] = (key, found)
        return found

    def _reserved(self, evse: Evse, now_s: float) -> tuple[Limit, ...]:
        """Return what the battery's charge leaves to be given back, and to be taken where it is stationary storage."""
        session = self.sessions.get(evse.name)
        if session is None or (session.discharge_w <= 0 and not evse.stationary):
            return ()
        vehicle = self.site.depot.vehicles.get(session.vehicle or "")
        capacity_wh = evse.capacity_wh if evse.stationary or vehicle is None else vehicle.capacity_wh
        battery = soc.of_session(session, capacity_wh)
        rules = soc.Policy(reserve_percent=self.policy.soc_reserve_percent)
        # Once nobody controls it, a discharge goes on until the watchdog ends it.
        watchdog_s = self.state.ledger.entries[evse.name].watchdog_s or 0.0
        if watchdog_s > rules.horizon_s:
            rules = replace(rules, horizon_s=watchdog_s)
        found = (*soc.reserve(battery, now_s, rules), *self._watched(evse))
        if evse.stationary:
            found += soc.full(battery, evse.limit_a * self.watts_per_a(evse.name), now_s, rules)
        return found

    def _watched(self, evse: Evse) -> tuple[Limit, ...]:
        """Return that nothing is given back where that could go on below the reserve once nobody controls it.

        Until its settings are read for the first time, what a predecessor told it may stand.
        """
        station, armed_as = self.site.stations[evse.name], self._armed.get(evse.name)
        fed = station.refreshed_by is not Refresh.WRITE or station.refresh_s is not None
        if fed and armed_as is not None and armed_as.watchdog_s is not None and armed_as.fallback.low >= 0:
            return ()
        told = self.state.ledger.entries[evse.name].told_amount
        stands_a = min(told.active_a, 0.0) if told is not None and evse.device not in self._settings_asked_s else 0.0
        return (
            Limit(
                target=evse.name,
                quantity=LimitQuantity.ACTIVE_POWER,
                low=stands_a * self.watts_per_a(evse.name),
                high=math.inf,
                source="no watchdog that ends a discharge is known to be armed",
                rank=Rank.THERMAL_AND_SOC,
            ),
        )

    def _ramped(self, evse: Evse, now_s: float) -> tuple[Limit, ...]:
        """Return how far an EVSE's setpoint may have risen from where it stands: as long as that takes, one step.

        What it waits for longer does not add up, or it would rise at once after that. It starts at its minimum.
        """
        rate_w = self.policy.ramp_w_per_s
        if rate_w is None:
            self._ramps.clear()
            return ()
        entry = self.state.ledger.entries[evse.name]
        told, amount = entry.told, entry.told_amount
        if told is None or amount is None or evse.name not in self.sessions:
            self._ramps.pop(evse.name, None)
            return ()
        station, stands_a = self.site.stations[evse.name], amount.active_a
        rate_a = rate_w / self.watts_per_a(evse.name)
        known_a, since_s, found = self._ramps.get(evse.name, (stands_a, now_s, ()))
        if stands_a != known_a:
            known_a, since_s = stands_a, min(told.since_s, now_s)
        # What is nearer than `SAME_A` to what it was told would not be told.
        step_a = max(station.step_a, 2 * book.SAME_A, station.least_a - max(known_a, 0.0))
        elapsed_s = min(now_s - since_s, max(step_a / rate_a, self.params.cycle_s))
        fresh = limits.ramp(evse, limits.Ramp(up_per_s=rate_a), known_a, now_s - elapsed_s, now_s)
        if not found or not math.isclose(fresh[0].high, found[0].high, rel_tol=1e-9):
            found = fresh  # else the same object, which need not be combined anew
        self._ramps[evse.name] = known_a, since_s, found
        return found

    def _cooled(self, evse: Evse, now_s: float) -> Iterable[Limit]:
        """Return what the temperatures of the enclosure, the charger and the vehicle's battery leave."""
        battery = self._battery(evse.name) if evse.name in self.sessions and not evse.stationary else None
        rated_w = evse.limit_a * self.watts_per_a(evse.name)
        return self._temperatures.limits(evse, self._sensors(), battery, rated_w, now_s)

    def _sensors(self) -> tuple[thermal.Sensor, ...]:
        policy = self.policy
        return policy.enclosure_sensor, policy.charger_sensor, policy.battery_sensor

    def _battery(self, evse: str) -> ToldHeat:
        told = self.told.get(evse)
        return _NO_HEAT if told is None else ToldHeat(told.battery, told.air)

    def _heated(self, name: str) -> None:
        """Learn how what carries power here heats."""
        device, battery = self.site.devices[self._by_name[name].device], self._battery(name)
        if battery.air is None and not self._temperatures.shows_air(device.name):
            return
        at_s = self.readings[name].image.answered_s
        known = {
            evse.name: (self._carried_w(evse), evse.limit_a * self.watts_per_a(evse.name)) for evse in device.evses
        }
        all_w = [watts for watts, _ in known.values() if watts is not None]
        whole = sum(all_w) / sum(rated_w for _, rated_w in known.values()) if len(all_w) == len(known) else None
        watts, rated_w = known[name]
        self._temperatures.carry(name, None if watts is None else watts / rated_w, whole, at_s)
        self._temperatures.learn(name, self._sensors(), battery)

    def _carried_w(self, evse: Evse) -> float | None:
        """Return what an EVSE carries by magnitude, in W; None where that is not known."""
        seen = self.readings.get(evse.name)
        if seen is None or seen.image.quality is not Quality.GOOD:
            return None
        if seen.power_w is not None:
            return abs(seen.power_w)
        currents = seen.image.current_a
        return None if currents is None else max(map(abs, currents)) * self.watts_per_a(evse.name)

    def _frequency(self, now_s: float) -> tuple[Limit, ...]:
        settings = self.policy.droop
        if settings is None:
            return ()
        meter = self._meters.get(self.site.root.name)
        fresh = meter is not None and now_s - meter.asked_s <= READING_FRESH_S
        frequency_hz = meter.frequency_hz if meter is not None and fresh else None
        self._droop = droop.step(settings, self._droop, frequency_hz, now_s)
        powers = {name: seen.power_w or 0.0 for name, seen in self.readings.items()}
        self._droop = droop.remember(self._droop, powers)
        return droop.limits(self._droop, map(self._responder, self.sessions.values()))

    def _responder(self, session: Session) -> droop.Responder:
        evse = self._by_name[session.evse]
        rated_w = evse.limit_a * self.watts_per_a(evse.name)
        return droop.Responder(
            name=evse.name,
            rated_w=rated_w,
            floor_w=-session.discharge_w,
            ceiling_w=rated_w,
            own_droop=evse.device in self.site.droops,
            # A vehicle takes what it may already: over-frequency cannot make it draw more.
            raises=evse.stationary,
        )

    def _capped(self, cap: demand.Cap, root: limits.BaseLoad, now_s: float) -> tuple[Limit, ...]:
        limits_of = partial(
            demand.limits,
            samples=self._demand,
            base=root,
            now_s=now_s,
            unmeasured_w=self.policy.limit_va,
            step_wh=self._register_step_wh(),
            given_back=any(session.discharge_w > 0 for session in self.sessions.values()),
        )
        wall = self._wall
        found: tuple[Limit, ...] = ()
        if cap.windows is demand.Windows.SLIDING or wall is None or not wall.steady(cap, now_s):
            found = limits_of(replace(cap, windows=demand.Windows.SLIDING))
        if cap.windows is demand.Windows.ALIGNED and wall is not None:
            found += limits_of(cap, window_begin_s=wall.begin_s(cap, now_s))
        return found

    def _register_step_wh(self) -> float:
        """Return what the import register counts in, in Wh: as its profile says, or no more than it ever rose by."""
        meter = self.site.meters.get(self.site.root.name)
        declared_wh = None if meter is None else self.site.profiles[meter.device].step("energy")
        if declared_wh is not None:
            return declared_wh
        return ASSUMED_STEP_WH if self._demand.rise_wh is None else self._demand.rise_wh

    def _allocate(self, names: Sequence[str], bounds: Bounds, now_s: float) -> Mapping[str, Allocated]:
        relied = set(names)
        made_s = -math.inf if self.plan is None else self.plan.edges_s[0]
        given = allocate.allocate(
            self.site.evses,
            {name: session for name, session in self.sessions.items() if name in relied},
            bounds,
            self.site.network,
            now_s=now_s,
            previous=self._previous,
            plan=self.plan if now_s - made_s <= PLAN_LASTS_S else None,
            params=self.params,
        )
        # Who cannot be relied on stands as it was told, and so it is what it comes back to.
        self._previous = {name: one if name in relied else self._previous.get(name, one) for name, one in given.items()}
        return {name: one for name, one in given.items() if name in relied}

    # What the report asks

    def meter(self, circuit: str, now_s: float) -> MeterSample | None:
        """Return a circuit's last sample, if it is fresh."""
        sample = self._meters.get(circuit)
        return None if sample is None or now_s - sample.asked_s > METER_FRESH_S else sample

    def metered(self, circuit: str) -> bool:
        """Whether a circuit's power comes from a meter: it has one, and that has not shown currents alone."""
        shown = self._shown.get(circuit)
        return circuit in self.site.meters and (not shown or any(one.active_w is not None for one in shown))

    def watts_per_a(self, evse: str) -> float:
        """Return how many W an EVSE draws at 1 A per conductor."""
        return float(self.site.network.watts_per_a[self.site.network.place[evse]])

    def rated_w(self, evse: str) -> float:
        """Return the most that an EVSE, and the vehicle at it as far as it is known, can take, in W."""
        session = self.sessions.get(evse)
        most_w = self._by_name[evse].limit_a * self.watts_per_a(evse)
        return most_w if session is None or session.power_w is None else min(most_w, session.power_w)

    def cooled(self, evse: str) -> limits.Bound | None:
        """Return what temperatures left of an EVSE's active power in the last cycle; None where they left all."""
        found = self._heat.get(evse)
        return None if not found else limits.combine(found, 0.0)[evse, LimitQuantity.ACTIVE_POWER, None]

    def site_bound(self, outcome: Outcome) -> tuple[float, str]:
        """Return what the EVSEs may draw together, in W, and whose limit that is."""
        watts, by = math.inf, ""
        for target in (limits.SITE, self.site.root.name):
            for quantity in (LimitQuantity.ACTIVE_POWER, LimitQuantity.APPARENT_POWER):
                bound = outcome.bounds.get((target, quantity, None))
                if bound is not None and bound.high < watts:
                    watts, by = bound.high, "" if bound.high_by is None else bound.high_by.source
        return watts, by

    def counted_a(self, circuit: str, spans: Mapping[str, tuple[book.Span, ...]]) -> tuple[float, float, float] | None:
        """Return what the ledger counts on each line for the EVSEs beneath a circuit; None behind a transformer."""
        beneath = self._reached(circuit)
        if beneath is None:
            return None
        stations = self.site.stations
        return per_phase(
            sum(stations[evse.name].apparent_a(spans[evse.name][line].high) for evse in beneath) for line in range(3)
        )

    def visited(self) -> tuple[str, ...]:
        """Return the EVSEs at which vehicles are."""
        return tuple(name for name in self.sessions if not self._by_name[name].stationary)

    def told_a(self, evse: str) -> float:
        """Return what an EVSE is told to draw, in A per conductor; 0 where nothing is known of it."""
        amount = self.state.ledger.entries[evse].told_amount
        return 0.0 if amount is None else amount.active_a

    def binds(self, limit: Limit, active_a: Callable[[str], float]) -> bool:
        """Whether a limit is nearly used up by `active_a` of the EVSEs beneath it: it is what holds them."""
        if limit.target in self._by_name:
            per_a = 1.0 if limit.quantity is LimitQuantity.CURRENT else self.watts_per_a(limit.target)
            if (given := active_a(limit.target)) < 0:
                return given * per_a <= limit.low + 2 * book.SAME_A * per_a or limit.high < 0
            return (active_a(limit.target) + self.site.stations[limit.target].least_a) * per_a >= limit.high
        beneath = self._reached(self.site.root.name if limit.target == limits.SITE else limit.target)
        evses = self.site.evses if beneath is None else beneath
        total = slack = 0.0
        for evse in evses:
            per_a = 1.0 if limit.quantity is LimitQuantity.CURRENT else self.watts_per_a(evse.name)
            if not limit.phases or set(limit.phases) & set(evse.phases or limit.phases):
                total += max(active_a(evse.name), 0.0) * per_a
                slack = max(slack, self.site.stations[evse.name].least_a * per_a)
        return total >= limit.high - slack

    def _reached(self, circuit: str) -> tuple[Evse, ...] | None:
        if circuit not in self._beneath:
            self._beneath[circuit] = metering.reached(self.site.depot.circuits, self.site.evses, circuit)
        return self._beneath[circuit]

    def needs(self) -> tuple[Need, ...]:
        """Return what a planner needs to know; nothing where no departure is known."""
        if self.outcome is None:
            return ()
        return allocate.needs(self.site.evses, self.sessions, self.outcome.bounds, self.site.network, self._previous)


def _informed(session: Session, told: Told | None) -> Session:
    """Return a session with what is told of it; of two states of charge the one that was read last."""
    if told is None:
        return session
    known = {
        name: getattr(told, name)
        for name in ("departure_at_s", "energy_need_wh", "vehicle")
        if getattr(told, name) is not None
    }
    if told.soc_read_at_s is not None and told.soc_read_at_s >= (session.soc_read_at_s or -math.inf):
        known |= {"soc_percent": told.soc_percent, "soc_read_at_s": told.soc_read_at_s}
    return replace(session, **known)


def _battery_of(session: Session, evse: Evse) -> Battery:
    if evse.stationary:
        return Battery(Kind.STORAGE, evse.name)
    return Battery(Kind.EVSE, session.evse) if session.vehicle is None else Battery(Kind.VEHICLE, session.vehicle)


def _aged(image: EvseImage, now_s: float) -> EvseImage:
    """Return an image that is stale where the clock says so, whatever was published."""
    if image.quality is Quality.GOOD and now_s - image.sent_s > READING_FRESH_S:
        return replace(image, quality=Quality.STALE)
    return image


def _is_more(armed: book.Armed, entry: book.Entry) -> bool:
    """Whether a fallback may be higher, or come sooner, than what the ledger counts; at a rating nothing is more."""
    if entry.fallback is None:
        return False
    known_s, foreseen_s = (math.inf if one.watchdog_s is None else one.watchdog_s for one in (entry, armed))
    unproven = foreseen_s == math.inf > known_s
    return unproven or foreseen_s < known_s or not entry.fallback.holds(armed.fallback)
