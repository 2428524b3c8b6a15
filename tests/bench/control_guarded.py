# SPDX-License-Identifier: GPL-3.0-or-later
"""How much of the energy is left when the schedule goes through the guard, to cars that follow late and taper.

The half-month of `control_energy` runs through the whole `Cycle.run`: ledger, obedience, limits, allocation with plans
made on arrivals, guard. Each EVSE does what it was told 12 s after the write arrived, up or down; a write arrives after
30 ms and is confirmed after 50 ms; what is measured is what flows. The reference is the same schedule for the same
vehicles at the same instants, without ledger and guard, where vehicles follow at once. Both learn from what flows what
a vehicle takes (`uptake`), and give to others what it leaves.

**The vehicles** charge in two stages. With s the part of the visit's need that has been delivered, one takes at most
P(s) = P_max · min(1, (1 - s) / (1 - 0.8)), but no less than 0.05 · P_max, and nothing from s = 1 on: constant up to
80 %, then power that falls linearly with the charge that is missing, down to the 5 % (C/20) at which batteries end it.
It draws the lesser of this and what it is offered. The energy between two changes is integrated in closed form.

**The clock** leaves out seconds in which nothing can happen. A cycle runs at each edge of a period (arrivals and
departures are there, and nothing else enters from outside), and at the first full second at which the ledger can let go
of a claim: `follow_s` after the write that superseded it was confirmed. A cycle in between would read the same values
but for the slow taper, and could let go of nothing, so what waits for room would wait on. So raises wait for the guard
as long as with a cycle each second. The reference has the same instants, so that the coarser look at tapers and at ends
of charge costs both the same. As seconds in between would have kept all readings fresh, no station is ever silent here:
faults are the campaign's. Hours without any vehicle are left out: each stretch between them is run by itself, with the
EVSEs that its vehicles come to, from a ledger that knows nothing yet.

**What is checked** at each instant at which anything changes, by the site's own formulas: what is drawn, and what could
be drawn if each vehicle took the larger of the pilot in force and those written and not yet followed. What is over a
limit ends the benchmark.

DERMS_BENCH_SESSIONS and DERMS_BENCH_CAPS are those of `control_energy`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from derms_agent.control import limits
from derms_agent.control.allocate import Allocation, Bounds, Params, allocate, circuit_limits, needs, reserved_a
from derms_agent.control.cycle import Cycle, EvseImage, Inputs, State
from derms_agent.control.ledger import Acknowledged, Event, Ledger, Span, Station, record, started
from derms_agent.control.network import Network
from derms_agent.control.plan import Outlook, Plan, plan
from derms_agent.control.uptake import learnt_a
from derms_agent.control.worst_case import ROUNDING, BaseLoad, Circuits
from derms_agent.model import Circuit, Evse, Limit, PerPhase, Phase, Session

from tests.bench.control_energy import (
    CAPS_KW,
    CONTINUOUS,
    PERIOD_S,
    STEPPED,
    TOLERANCE_A,
    VOLTAGE_V,
    Visit,
    overlapping,
    overload_a,
    site,
)
from tests.bench.figures import Figure

FOLLOW_S = 12.0
ARRIVES_S = 0.03
CONFIRMED_S = 0.05
WARM_UP_S, WARM_UP_STEP_S = 20.0, 4.0
KNEE, FLOOR = 0.8, 0.05
DONE_WH = 1e-3
MODES = {"continuous": replace(CONTINUOUS, cycle_s=1.0), "stepped": replace(STEPPED, cycle_s=1.0)}
GOAL = 0.98


@dataclass(slots=True)
class Car:
    """A vehicle at its EVSE: what is left of its need, and what it is believed to take at the most."""

    visit: Visit
    left_wh: float
    bound_a: float = math.inf

    @property
    def most_w(self) -> float:
        """Return what it takes in its first stage."""
        return self.visit.most_a * VOLTAGE_V

    @property
    def tail_wh(self) -> float:
        """Return what is missing where its second stage begins."""
        return (1 - KNEE) * self.visit.need_wh

    def takes_w(self) -> float:
        """Return what it takes at the most now."""
        if self.left_wh <= 0:
            return 0.0
        return self.most_w * min(1.0, max(FLOOR, self.left_wh / self.tail_wh))

    def charge(self, offered_w: float, seconds: float) -> None:
        """Charge at the lesser of what is offered and what it takes: constant, falling linearly, constant again."""
        tail_wh = self.tail_wh
        for least_wh, falls in (
            (min(1.0, offered_w / self.most_w) * tail_wh, False),
            (FLOOR * tail_wh, True),
            (0.0, False),
        ):
            if self.left_wh <= least_wh or offered_w <= 0 or seconds <= 0:
                continue
            if falls:
                rate = self.most_w / tail_wh / 3600
                spent_s = min(math.log(self.left_wh / least_wh) / rate, seconds)
                self.left_wh *= math.exp(-rate * spent_s)
            else:
                per_s = min(offered_w, self.takes_w()) / 3600
                spent_s = min((self.left_wh - least_wh) / per_s, seconds)
                self.left_wh -= per_s * spent_s
            seconds -= spent_s


@dataclass
class Plant:
    """The site as it is: pilots that vehicles follow late, and what flows. Times in s, currents in A."""

    cap_kw: float
    arriving: list[Visit]
    follow_s: float
    now_s: float
    between: dict[str, str] = field(init=False)
    in_force_a: dict[str, float] = field(init=False)
    coming: list[tuple[float, str, float]] = field(default_factory=list)
    cars: dict[str, Car] = field(default_factory=dict)
    delivered_wh: float = 0.0

    def __post_init__(self) -> None:
        """Have all pilots at nothing."""
        self.between = {visit.station: visit.between for visit in self.arriving}
        self.in_force_a = dict.fromkeys(self.between, 0.0)

    def set(self, station: str, current_a: float, at_s: float) -> None:
        """Write a pilot that arrives at a time, in order."""
        self.coming.append((at_s + self.follow_s, station, current_a))

    def offered_a(self, station: str) -> float:
        """Return the least that a vehicle was offered within the time that it may take to follow."""
        return min([self.in_force_a[station], *(current_a for _, name, current_a in self.coming if name == station)])

    def drawn_a(self, station: str) -> float:
        """Return what flows to a vehicle."""
        car = self.cars.get(station)
        return 0.0 if car is None else min(self.in_force_a[station], car.takes_w() / VOLTAGE_V)

    def advance(self, to_s: float) -> None:
        """Go on to a time: vehicles leave and come then."""
        self._check()
        while self.coming and self.coming[0][0] <= to_s:
            at_s, station, current_a = self.coming[0]
            self._flow(at_s)
            self.in_force_a[station] = current_a
            self.coming.pop(0)
            if not self.coming or self.coming[0][0] > at_s:
                self._check()
        self._flow(to_s)
        period = to_s / PERIOD_S
        for station, car in list(self.cars.items()):
            if car.visit.departure <= period or car.left_wh <= DONE_WH:
                self.delivered_wh += car.visit.need_wh - car.left_wh
                del self.cars[station]
        while self.arriving and self.arriving[0].arrival <= period:
            visit = self.arriving.pop(0)
            self.cars[visit.station] = Car(visit, visit.need_wh)

    def next_s(self) -> float:
        """Return the end of the period, or, where nobody is there, when somebody comes: a cycle is due then."""
        if self.cars or not self.arriving:
            return PERIOD_S * (self.now_s // PERIOD_S + 1)
        return self.arriving[0].arrival * float(PERIOD_S)

    def _flow(self, to_s: float) -> None:
        for station, car in self.cars.items():
            car.charge(self.in_force_a[station] * VOLTAGE_V, to_s - self.now_s)
        self.now_s = max(self.now_s, to_s)

    def _check(self) -> None:
        worst_a = dict(self.in_force_a)
        for _, station, current_a in self.coming:
            worst_a[station] = max(worst_a[station], current_a)
        flows = {station: self.drawn_a(station) for station in self.cars}
        for currents in (worst_a, flows):
            over = overload_a(((name, self.between[name], a) for name, a in currents.items()), self.cap_kw)
            if over > TOLERANCE_A:
                sys.exit(f"agent.control: {self.now_s:.2f} s at {self.cap_kw:g} kW is {over:.4f} A over a limit")


class Schedule:
    """The allocator, its plan, and what is learnt of vehicles: what both runs have in common."""

    def __init__(self, network: Network, evses: Iterable[Evse], params: Params, plant: Plant) -> None:
        self.network, self.params, self.plant = network, params, plant
        self.evses = {evse.name: evse for evse in evses}
        self.previous: dict[str, Allocation] = {}
        self.plan: Plan | None = None
        self.waited_for = len(plant.arriving)

    def learn(self) -> None:
        """Learn what vehicles take from what flows."""
        for station, car in self.plant.cars.items():
            car.bound_a = learnt_a(car.bound_a, self.plant.offered_a(station), self.plant.drawn_a(station))

    def share(self, names: Sequence[str], bounds: Bounds, now_s: float) -> Mapping[str, Allocation]:
        """Return what each EVSE gets, with a new plan where somebody came."""
        evses = [self.evses[name] for name in names]
        sessions = {station: session(car) for station, car in self.plant.cars.items()}
        if len(self.plant.arriving) < self.waited_for:
            self.waited_for = len(self.plant.arriving)
            self.plan = plan(
                self.network,
                needs(evses, sessions, bounds, self.network, self.previous),
                circuit_limits(self.network, bounds),
                reserved_a(evses, sessions, bounds, self.network, self.params),
                now_s=now_s,
                outlook=Outlook(),
            )
        found = allocate(
            evses,
            sessions,
            bounds,
            self.network,
            now_s=now_s,
            previous=self.previous,
            plan=self.plan,
            params=self.params,
        )
        self.previous.update(found)
        return found


def session(car: Car) -> Session:
    """Return what is known of a vehicle: what it said, what the meter counted, and what it was seen to take."""
    visit = car.visit
    return Session(
        evse=visit.station,
        started_at_s=visit.arrival * PERIOD_S,
        departure_at_s=visit.departure * PERIOD_S,
        energy_need_wh=visit.need_wh,
        delivered_wh=visit.need_wh - car.left_wh,
        power_w=min(visit.most_a, car.bound_a) * VOLTAGE_V,
    )


def site_of(group: Iterable[Visit], cap_kw: float) -> tuple[Network, tuple[Evse, ...]]:
    """Return the site with the EVSEs that these visits come to."""
    network, evses = site(cap_kw)
    names = {visit.station for visit in group}
    used = tuple(evse for evse in evses if evse.name in names)
    return Network(network.circuits, used), used


def stations(evses: Iterable[Evse], params: Params) -> tuple[Station, ...]:
    """Return the EVSEs as the ledger knows them; none is ever silent, for no reading is ever missed."""
    found = []
    for evse in evses:
        steps = params.steps.get(evse.name, params.otherwise)
        found.append(
            Station(
                name=evse.name,
                circuit=evse.circuit,
                phases=evse.phases,
                rating_a=evse.rating_a,
                after_boot=Span(),
                fallback=Span(),
                least_a=steps.lowest_a,
                step_a=steps.levels_a[0] if steps.levels_a else steps.step_a or 0.01,
                follow_s=FOLLOW_S,
                boot_s=math.inf,
                silent_s=math.inf,
                fresh_s=math.inf,
            )
        )
    return tuple(found)


def due_s(ledger: Ledger, now_s: float) -> float:
    """Return the full second at which a measurement lets go of a claim next."""
    claims = (claim for entry in ledger.entries.values() for claim in entry.claims)
    ended_s = min((claim.ended_s for claim in claims if claim.ended_s is not None), default=math.inf)
    return max(now_s + 1, math.ceil(ended_s + FOLLOW_S)) if ended_s < math.inf else math.inf


def guarded(group: Sequence[Visit], cap_kw: float, params: Params) -> tuple[float, list[float]]:
    """Return the Wh that visits get through the guard, and the instants of its cycles."""
    network, evses = site_of(group, cap_kw)
    known = stations(evses, params)
    first_s = group[0].arrival * float(PERIOD_S)
    now_s = first_s - WARM_UP_S
    plant = Plant(cap_kw, list(group), FOLLOW_S, now_s)
    schedule = Schedule(network, evses, params, plant)
    cycle = Cycle(circuits=Circuits(guarded_circuits(network), known), combine=limits.combine, allocate=schedule.share)
    rated = rated_limits(network)
    base = {name: BaseLoad() for name in network.circuits}
    state = State(started(known, now_s))
    events: list[Event] = []
    instants = []
    while plant.arriving or plant.cars:
        plant.advance(now_s)
        schedule.learn()
        instants.append(now_s)
        image = {
            one.name: EvseImage(sent_s=now_s, answered_s=now_s, current_a=lines_a(one.phases, plant.drawn_a(one.name)))
            for one in known
        }
        inputs = Inputs(now_s=now_s, image=image, limits=rated, events=tuple(events), base=base)
        outcome = cycle.run(state, inputs)
        state = outcome.state
        for write in outcome.writes:
            plant.set(write.evse, write.amount.active_a, now_s + ARRIVES_S)
        events = [Acknowledged(write.evse, write.id, now_s + CONFIRMED_S) for write in outcome.writes]
        now_s = min(
            now_s + WARM_UP_STEP_S if now_s < first_s else math.inf,
            due_s(record(state.ledger, events), now_s),
            plant.next_s(),
        )
    return plant.delivered_wh, instants


def guarded_circuits(network: Network) -> dict[str, Circuit]:
    """Return the circuits for the guard: what it allows for arithmetic, a part of each limit, ends at TOLERANCE_A."""

    def lower(ratings_a: PerPhase) -> PerPhase:
        first, second, third = (min(a, (a + TOLERANCE_A) / (1 + ROUNDING) - ROUNDING) for a in ratings_a)
        return first, second, third

    return {name: replace(circuit, rating_a=lower(circuit.rating_a)) for name, circuit in network.circuits.items()}


def unguarded(group: Sequence[Visit], cap_kw: float, params: Params, instants: Sequence[float]) -> float:
    """Return the Wh of the same schedule at the same instants, straight to vehicles that follow at once."""
    network, evses = site_of(group, cap_kw)
    rated = rated_limits(network)
    names = tuple(evse.name for evse in evses)
    plant = Plant(cap_kw, list(group), 0.0, instants[0])
    schedule = Schedule(network, evses, params, plant)
    for now_s in instants:
        plant.advance(now_s)
        schedule.learn()
        shared = schedule.share(names, limits.combine(rated, now_s), now_s)
        plant.in_force_a = {name: shared[name].current_a for name in names}
    return plant.delivered_wh


def rated_limits(network: Network) -> tuple[Limit, ...]:
    """Return the limits that circuits without base load set."""
    return limits.circuits(network.circuits, limits.base_loads(network.circuits, {}, 0.0, 0.0))


def both(cap_kw: float, params: Params) -> tuple[float, float, int]:
    """Return the kWh with the guard and without, and the number of cycles."""
    with_guard = without = 0.0
    cycles = 0
    for numbered in overlapping():
        group = [visit for _, visit in numbered]
        wh, instants = guarded(group, cap_kw, params)
        with_guard += wh / 1000
        without += unguarded(group, cap_kw, params, instants) / 1000
        cycles += len(instants)
    return with_guard, without, cycles


def lines_a(phases: Sequence[Phase], current_a: float) -> PerPhase:
    """Return what a meter shows on L1, L2 and L3."""
    first, second, third = (current_a if phase in phases else 0.0 for phase in Phase)
    return first, second, third


def guard_energy() -> list[Figure]:
    """Measure the energy through the guard at each cap, in both modes."""
    figures = []
    for cap_kw in CAPS_KW:
        for name, params in MODES.items():
            kwh, reference, cycles = both(cap_kw, params)
            figures.append(
                Figure(
                    f"agent.control.guarded_{name}_{cap_kw}",
                    kwh,
                    "kWh",
                    reference,
                    kwh / reference,
                    f"≥ {GOAL:.0%} of it without guard",
                    kwh / reference >= GOAL,
                    f"{kwh / reference:.2%}",
                )
            )
            print(f"{figures[-1].name} {figures[-1].spread}, {cycles} cycles", flush=True)
    return figures


BENCHMARKS: dict[tuple[str, ...], Callable[[], list[Figure]]] = {
    tuple(f"agent.control.guarded_{name}_{cap}" for cap in CAPS_KW for name in ("continuous", "stepped")): guard_energy,
}
