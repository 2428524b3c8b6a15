# SPDX-License-Identifier: GPL-3.0-or-later
"""How much energy the allocator delivers of what was possible, how fairly, and how quickly.

Half a month of a real site is replayed, one period of five minutes at a time: the allocator and the planner see the
need and the departure of vehicles that have arrived, and nothing else. The reference knows everything: it is the linear
program over all sessions, with each phasor circle replaced by a polygon around it. Least laxity first and round robin
run beside. Every schedule is checked against the site's own formulas, as its page gives them and not as the agent has
them: what is over a limit ends the benchmark.

DERMS_BENCH_SESSIONS names another file of sessions, DERMS_BENCH_CAPS other caps in kW, as in 10,20.
"""

from __future__ import annotations

import cmath
import csv
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
from derms_agent.control.allocate import Allocation, Params, Steps, allocate, circuit_limits, needs, reserved_a
from derms_agent.control.network import Network
from derms_agent.control.plan import Outlook, Plan, plan
from derms_agent.model import Circuit, Connection, Evse, Phase, Session
from scipy import sparse
from scipy.optimize import linprog

from tests.bench.figures import Figure

ROOT = Path(__file__).parents[2]
SESSIONS = Path(os.environ.get("DERMS_BENCH_SESSIONS", ROOT / "agent" / "tests" / "data" / "charging_sessions_a.csv"))
CAPS_KW = tuple(int(cap) for cap in os.environ.get("DERMS_BENCH_CAPS", "10,20,30,40,50,60").split(","))
FAIR_CAPS_KW = (20, 40)
PERIOD_S = 300
VOLTAGE_V = 208.0
FACETS = 48
TOLERANCE_A = 1e-4
POD_1 = frozenset(f"CA-{number}" for number in (322, 493, 496, 320, 495, 321, 323, 494))
POD_2 = frozenset(f"CA-{number}" for number in (324, 325, 326, 327, 489, 490, 491, 492))
COARSE = frozenset(f"CA-{number}" for number in (320, 321, 322, 323, 493, 494, 495, 496))
BETWEEN = {"AB": (Phase.L1, Phase.L2), "BC": (Phase.L2, Phase.L3), "CA": (Phase.L3, Phase.L1)}

CONTINUOUS = Params(otherwise=Steps(minimum_a=0.0), cycle_s=PERIOD_S)
STEPPED = replace(
    CONTINUOUS,
    steps=dict.fromkeys(COARSE, Steps(levels_a=(8.0, 16.0, 24.0, 32.0))),
    otherwise=Steps(minimum_a=6.0, step_a=1.0),
)


@dataclass(frozen=True)
class Visit:
    """One session of the file, in periods, Wh and A."""

    arrival: int
    departure: int
    station: str
    between: str
    need_wh: float
    most_a: float


@dataclass
class Outcome:
    """What a replay delivered, by visit, and what it took."""

    delivered_wh: list[float]
    starts: int = 0
    cycle_s: list[float] = field(default_factory=list)
    plan_s: list[float] = field(default_factory=list)

    @property
    def kwh(self) -> float:
        """Return the energy of all visits."""
        return sum(self.delivered_wh) / 1000


Chooser = Callable[[int, Mapping[int, float]], Mapping[str, float]]


@cache
def visits() -> tuple[Visit, ...]:
    """Read the sessions."""
    with SESSIONS.open(encoding="utf-8", newline="") as file:
        return tuple(
            sorted(
                (
                    Visit(
                        int(row["arrival_period"]),
                        int(row["departure_period"]),
                        row["station"],
                        row["phases"],
                        1000 * float(row["requested_kwh"]),
                        min(32.0, 1000 * float(row["max_kw"]) / VOLTAGE_V),
                    )
                    for row in csv.DictReader(file)
                ),
                key=lambda visit: (visit.arrival, visit.station),
            )
        )


def pod(station: str) -> str:
    """Return the circuit that a station hangs on."""
    return "pod-1" if station in POD_1 else "pod-2" if station in POD_2 else "secondary"


def site(cap_kw: float) -> tuple[Network, tuple[Evse, ...]]:
    """Return the site as the agent's model has it, under a cap."""
    secondary = (1000 * cap_kw / 3 / 120,) * 3
    circuits = {
        "primary": Circuit(
            name="primary",
            parent=None,
            connection=Connection.DELTA_WYE,
            # The turns ratio that makes (a - c) / 4 of the secondary's currents.
            voltage_v=VOLTAGE_V * 4 / math.sqrt(3),
            rating_a=(1000 * cap_kw / 3 / 277,) * 3,
        ),
        "secondary": Circuit(
            name="secondary", parent="primary", connection=Connection.DELTA, voltage_v=VOLTAGE_V, rating_a=secondary
        ),
        **{
            name: Circuit(
                name=name, parent="secondary", connection=Connection.DELTA, voltage_v=VOLTAGE_V, rating_a=(80.0,) * 3
            )
            for name in ("pod-1", "pod-2")
        },
    }
    stations = sorted({(visit.station, visit.between) for visit in visits()})
    evses = tuple(
        Evse(
            name=station,
            device=station,
            connector=1,
            circuit=pod(station),
            phases=BETWEEN[between],
            rating_a=32.0,
        )
        for station, between in stations
    )
    return Network(circuits, evses), evses


def overload_a(currents: Iterable[tuple[str, str, float]], cap_kw: float) -> float:
    """Return by how many A these (station, between, A) are over the site's limits at the most, by its own formulas."""
    sums, pods = dict.fromkeys(BETWEEN, 0.0), {"pod-1": 0.0, "pod-2": 0.0, "secondary": 0.0}
    for station, between, current in currents:
        sums[between] += current
        pods[pod(station)] += current
    ab, bc, ca = (cmath.rect(sums[name], math.radians(angle)) for name, angle in (("AB", 30), ("BC", -90), ("CA", 150)))
    a, b, c = ab - ca, bc - ab, ca - bc
    secondary = max(abs(a), abs(b), abs(c)) - 1000 * cap_kw / 3 / 120
    primary = max(abs(a - c), abs(b - a), abs(c - b)) / 4 - 1000 * cap_kw / 3 / 277
    return max(secondary, primary, pods["pod-1"] - 80, pods["pod-2"] - 80)


def replay(cap_kw: float, choose: Chooser, outcome: Outcome) -> Outcome:
    """Run a schedule through all periods, and check every one of them."""
    here: dict[int, float] = {}
    before: dict[str, float] = {}
    arriving = list(enumerate(visits()))[::-1]
    for period in range(visits()[0].arrival, max(visit.departure for visit in visits())):
        while arriving and arriving[-1][1].arrival <= period:
            number, visit = arriving.pop()
            here[number] = visit.need_wh
            before[visit.station] = 0.0
        here = {n: left for n, left in here.items() if visits()[n].departure > period and left > 1e-3}
        if not here:
            before = {}
            continue
        currents = choose(period, here)
        offered, drawn = [], []
        for number in here:
            visit = visits()[number]
            current = currents.get(visit.station, 0.0)
            taken = min(current, visit.most_a, here[number] * 3600 / PERIOD_S / VOLTAGE_V)
            outcome.starts += current > 0 and before.get(visit.station, 0.0) <= 0
            before[visit.station] = current
            here[number] -= taken * VOLTAGE_V * PERIOD_S / 3600
            outcome.delivered_wh[number] += taken * VOLTAGE_V * PERIOD_S / 3600
            offered.append((visit.station, visit.between, current))
            drawn.append((visit.station, visit.between, taken))
        over = max(overload_a(offered, cap_kw), overload_a(drawn, cap_kw))
        if over > TOLERANCE_A:
            sys.exit(f"agent.control: period {period} at {cap_kw:g} kW is {over:.4f} A over a limit")
    return outcome


def ours(cap_kw: float, params: Params, *, known: bool = True) -> Outcome:
    """Replay the allocator, with the planner on each arrival."""
    network, evses = site(cap_kw)
    outcome = Outcome([0.0] * len(visits()))
    previous: Mapping[str, Allocation] = {}
    latest: Plan | None = None
    seen = -1

    def choose(period: int, here: Mapping[int, float]) -> Mapping[str, float]:
        nonlocal previous, latest, seen
        now_s = float(period * PERIOD_S)
        sessions = {
            (visit := visits()[number]).station: Session(
                evse=visit.station,
                started_at_s=visit.arrival * PERIOD_S,
                departure_at_s=visit.departure * PERIOD_S if known else None,
                energy_need_wh=visit.need_wh if known else None,
                delivered_wh=visit.need_wh - left,
                power_w=visit.most_a * VOLTAGE_V,
            )
            for number, left in here.items()
        }
        if known and max(here) > seen:
            seen = max(here)
            begun = time.perf_counter()
            latest = plan(
                network,
                needs(evses, sessions, {}, network, previous),
                circuit_limits(network, {}),
                reserved_a(evses, sessions, {}, network, params),
                now_s=now_s,
                outlook=Outlook(),
            )
            outcome.plan_s.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        previous = allocate(evses, sessions, {}, network, now_s=now_s, previous=previous, plan=latest, params=params)
        outcome.cycle_s.append(time.perf_counter() - begun)
        return {name: allocation.current_a for name, allocation in previous.items()}

    return replay(cap_kw, choose, outcome)


def least_laxity_first(cap_kw: float) -> Outcome:
    """Replay the schedule that gives all it can to whoever can wait least."""
    network, _ = site(cap_kw)

    def choose(period: int, here: Mapping[int, float]) -> Mapping[str, float]:
        def laxity(number: int) -> float:
            visit = visits()[number]
            return visit.departure - period - here[number] * 3600 / PERIOD_S / VOLTAGE_V / visit.most_a

        room = network.room(network.limits())
        given = {}
        for number in sorted(here, key=laxity):
            visit = visits()[number]
            place = network.place[visit.station]
            given[visit.station] = min(room.left(place), visit.most_a, here[number] * 3600 / PERIOD_S / VOLTAGE_V)
            room.take(place, given[visit.station])
        return given

    return replay(cap_kw, choose, Outcome([0.0] * len(visits())))


def round_robin(cap_kw: float) -> Outcome:
    """Replay the schedule that gives 1 A to each in turn, until nobody can take another."""
    network, _ = site(cap_kw)

    def choose(_: int, here: Mapping[int, float]) -> Mapping[str, float]:
        room = network.room(network.limits())
        given = {visits()[number].station: 0.0 for number in here}
        rising = list(here)
        while rising:
            still = []
            for number in rising:
                visit = visits()[number]
                place = network.place[visit.station]
                top = min(visit.most_a, here[number] * 3600 / PERIOD_S / VOLTAGE_V)
                step = min(1.0, top - given[visit.station], room.left(place))
                if step > 1e-6:
                    room.take(place, step)
                    given[visit.station] += step
                    still.append(number)
            rising = still
        return given

    return replay(cap_kw, choose, Outcome([0.0] * len(visits())))


class Hindsight:
    """The linear program over visits that overlap in time, all known beforehand.

    Between two arrivals or departures nothing changes and constraints are convex, so that one current for each visit in
    each such slice loses nothing against one for each period.
    """

    def __init__(self, group: Sequence[tuple[int, Visit]], cap_kw: float) -> None:
        network, _ = site(cap_kw)
        polygon = network.polygon(network.limits(), inner=False, facets=FACETS)
        self.numbers = [number for number, _ in group]
        self.need_as = np.array([visit.need_wh * 3600 / VOLTAGE_V for _, visit in group])
        edges = np.array(sorted({edge for _, visit in group for edge in (visit.arrival, visit.departure)}))
        who, when = np.array(
            [
                (index, step)
                for index, (_, visit) in enumerate(group)
                for step in range(len(edges) - 1)
                if visit.arrival <= edges[step] < visit.departure
            ]
        ).T
        branches, steps, count = len(network.branches), len(edges) - 1, len(who)
        branch = np.array([network.branch_of[network.place[visit.station]] for _, visit in group])
        lengths = np.diff(edges)[when] * PERIOD_S
        columns = np.arange(count)
        self.charge = sparse.csr_array((lengths, (who, columns)), shape=(len(group), count + steps * branches))
        self.tied = sparse.hstack(
            [
                sparse.csr_array((np.ones(count), (when * branches + branch[who], columns)), (steps * branches, count)),
                -sparse.eye_array(steps * branches),
            ]
        ).tocsr()
        self.circuits = sparse.hstack(
            [
                sparse.csr_array((steps * len(polygon.limits), count)),
                sparse.kron(sparse.eye_array(steps), polygon.coefficients),
            ]
        ).tocsr()
        self.limits = np.tile(polygon.limits, steps)
        top = np.append(np.array([visit.most_a for _, visit in group])[who], np.full(steps * branches, np.inf))
        self.bounds = np.column_stack([np.zeros(len(top)), top])

    def most_wh(self) -> float:
        """Return the most energy that could be delivered."""
        result = linprog(
            -self.charge.sum(axis=0),
            A_ub=sparse.vstack([self.circuits, self.charge]),
            b_ub=np.concatenate([self.limits, self.need_as]),
            A_eq=self.tied,
            b_eq=np.zeros(self.tied.shape[0]),
            bounds=self.bounds,
        )
        return float(-result.fun) * VOLTAGE_V / 3600

    def fair_wh(self) -> dict[int, float]:
        """Return the max-min fair energies: the least is as high as can be, then the least of the others, and so on."""
        fixed = np.full(len(self.need_as), np.nan)
        while np.isnan(fixed).any():
            free = np.flatnonzero(np.isnan(fixed))
            set_ = np.flatnonzero(~np.isnan(fixed))
            level = sparse.csr_array(np.ones((len(free), 1)))
            none = sparse.csr_array((self.circuits.shape[0], 1))
            result = linprog(
                np.append(np.zeros(self.charge.shape[1]), -1.0),
                A_ub=sparse.vstack(
                    [
                        sparse.hstack([self.circuits, none]),
                        sparse.hstack([-self.charge[free], level]),
                        sparse.hstack([-self.charge[set_], sparse.csr_array((len(set_), 1))]),
                    ]
                ).tocsr(),
                b_ub=np.concatenate([self.limits, np.zeros(len(free)), -fixed[set_] * (1 - 1e-9)]),
                A_eq=sparse.hstack([self.tied, sparse.csr_array((self.tied.shape[0], 1))]).tocsr(),
                b_eq=np.zeros(self.tied.shape[0]),
                bounds=np.vstack([self.bounds, [0.0, float(self.need_as[free].min())]]),
            )
            reached = float(-result.fun)
            prices = -result.ineqlin.marginals[len(self.limits) : len(self.limits) + len(free)]
            stuck = (prices > 1e-9) | (self.need_as[free] <= reached * (1 + 1e-9))
            fixed[free[stuck] if stuck.any() else free] = reached
        return {n: float(c) * VOLTAGE_V / 3600 for n, c in zip(self.numbers, fixed, strict=True)}


def overlapping() -> list[list[tuple[int, Visit]]]:
    """Return the visits in groups that do not overlap in time."""
    groups: list[list[tuple[int, Visit]]] = []
    end = -1
    for number, visit in enumerate(visits()):
        if visit.arrival >= end:
            groups.append([])
        groups[-1].append((number, visit))
        end = max(end, visit.departure)
    return groups


@cache
def bound_kwh(cap_kw: float) -> float:
    """Return the offline bound."""
    return sum(Hindsight(group, cap_kw).most_wh() for group in overlapping()) / 1000


def energy() -> list[Figure]:
    """Measure the energy at each cap, in both modes, beside the simple schedules."""
    figures = []
    plans_s: list[float] = []
    for cap_kw in CAPS_KW:
        bound = bound_kwh(cap_kw)
        for name, outcome, least in (
            ("continuous", ours(cap_kw, CONTINUOUS), 0.99),
            ("stepped", stepped := ours(cap_kw, STEPPED), 0.97),
            ("least_laxity_first", least_laxity_first(cap_kw), 0.0),
            ("round_robin", round_robin(cap_kw), 0.0),
        ):
            ratio = outcome.kwh / bound
            figures.append(
                Figure(
                    f"agent.control.energy_{name}_{cap_kw}",
                    outcome.kwh,
                    "kWh",
                    bound,
                    ratio,
                    f"≥ {least:.0%} of the bound" if least else "for comparison",
                    ratio >= least,
                    f"{ratio:.2%}",
                )
            )
            plans_s += outcome.plan_s
        starts = stepped.starts / len(visits())
        figures.append(
            Figure(
                f"agent.control.starts_stepped_{cap_kw}",
                starts,
                "a session",
                None,
                None,
                "≤ 1.3",
                starts <= 1.3,
                f"{starts:.3f}",
            )
        )
        print(*(f"{figure.name} {figure.spread}" for figure in figures[-5:]), sep="\n", flush=True)
    worst_s = max(plans_s)
    figures.append(
        Figure(
            "agent.control.plan_54",
            worst_s,
            "s",
            None,
            None,
            "≤ 1 s",
            worst_s <= 1,
            f"{worst_s:.3f}, the longest of {len(plans_s)}",
        )
    )
    return figures


def jain(values: Sequence[float]) -> float:
    """Return Jain's index: 1 where all are equal, 1/n where one has all."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


def fairness() -> list[Figure]:
    """Measure how evenly energy is shared where nothing is known of departures and needs."""
    figures = []
    for cap_kw in FAIR_CAPS_KW:
        fair = {n: wh for group in overlapping() for n, wh in Hindsight(group, cap_kw).fair_wh().items()}
        for name, params in (("continuous", CONTINUOUS), ("stepped", STEPPED)):
            outcome = ours(cap_kw, params, known=False)
            index = jain([outcome.delivered_wh[n] / wh for n, wh in fair.items() if wh > 0])
            total = sum(fair.values()) / 1000
            figures += [
                Figure(
                    f"agent.control.fair_energy_{name}_{cap_kw}",
                    outcome.kwh,
                    "kWh",
                    total,
                    outcome.kwh / total,
                    "printed",
                    True,
                    f"least {min(outcome.delivered_wh) / 1000:.2f}, fair {min(fair.values()) / 1000:.2f}",
                ),
                Figure(
                    f"agent.control.fair_index_{name}_{cap_kw}",
                    index,
                    "",
                    None,
                    None,
                    "≥ 0.95",
                    index >= 0.95,
                    f"{index:.4f}",
                ),
            ]
            print(*(f"{figure.name} {figure.spread}" for figure in figures[-2:]), sep="\n", flush=True)
    return figures


BENCHMARKS: dict[tuple[str, ...], Callable[[], list[Figure]]] = {
    (
        *(
            f"agent.control.energy_{name}_{cap}"
            for cap in CAPS_KW
            for name in ("continuous", "stepped", "least_laxity_first", "round_robin")
        ),
        *(f"agent.control.starts_stepped_{cap}" for cap in CAPS_KW),
        "agent.control.plan_54",
    ): energy,
    tuple(
        f"agent.control.fair_{what}_{name}_{cap}"
        for cap in FAIR_CAPS_KW
        for name in ("continuous", "stepped")
        for what in ("energy", "index")
    ): fairness,
}
