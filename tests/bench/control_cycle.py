# SPDX-License-Identifier: GPL-3.0-or-later
"""How quickly control answers: one cycle, alone and beside the planner in its process, and one plan."""

from __future__ import annotations

import gc
import itertools
import math
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from derms_agent.control import limits
from derms_agent.control.allocate import Allocation, Params, Steps, allocate, circuit_limits, needs, reserved_a
from derms_agent.control.cycle import Bounds, Cycle, EvseImage, Inputs, State
from derms_agent.control.ledger import NOTHING, Acknowledged, Armed, Event, Station, started
from derms_agent.control.network import Network
from derms_agent.control.plan import Outlook, Plan, plan
from derms_agent.control.worst_case import BaseLoad, Circuits
from derms_agent.model import Circuit, Connection, Evse, Phase, Session

from tests.bench.figures import Figure

CYCLES = 600


def fleet(count: int) -> tuple[Network, tuple[Evse, ...], dict[str, Session]]:
    """Return a depot of three-phase and single-phase EVSEs on feeders of fifty, all with a vehicle."""
    feeders = {f"feeder-{index}": 160.0 for index in range(-(-count // 50))}
    circuits = {
        "main": Circuit(
            name="main", parent=None, connection=Connection.WYE, voltage_v=400.0, rating_a=(3.0 * count,) * 3
        )
    }
    for name, rating in feeders.items():
        circuits[name] = Circuit(
            name=name, parent="main", connection=Connection.WYE, voltage_v=400.0, rating_a=(rating,) * 3
        )
    lines = tuple(Phase)
    evses = tuple(
        Evse(
            name=f"charger-{index}",
            device=f"charger-{index}",
            connector=1,
            circuit=f"feeder-{index // 50}",
            phases=lines[index % 3 :] + lines[: index % 3] if index % 4 else (lines[index // 4 % 3],),
            rating_a=32.0,
        )
        for index in range(count)
    )
    sessions = {
        evse.name: Session(
            evse=evse.name,
            started_at_s=0.0,
            departure_at_s=3600.0 + 37.0 * (index * 7919 % 800) if index % 5 else None,
            energy_need_wh=4000.0 + 23.0 * (index * 104729 % 997) if index % 5 else None,
            power_w=11_000.0,
        )
        for index, evse in enumerate(evses)
    }
    return Network(circuits, evses), evses, sessions


def planned(count: int, params: Params) -> Plan | None:
    """Return the plan of a fleet."""
    network, evses, sessions = fleet(count)
    reserved = reserved_a(evses, sessions, {}, network, params)
    wanted = needs(evses, sessions, {}, network, {})
    return plan(network, wanted, circuit_limits(network, {}), reserved, now_s=0.0, outlook=Outlook())


def plan_for_ever(count: int) -> None:
    """Plan again and again: what runs in the planner's process."""
    os.nice(5)
    while True:
        planned(count, Params())


class Site:
    """A fleet in motion, and the agent's cycle that holds it within its limits.

    Each second every EVSE's reading is new: what flows, which follows what was told 3 s later, and the limit as the
    device shows it; writes are acknowledged before the next cycle. Some vehicles leave and others come. Every
    `PERIOD` cycles the grid's limit falls by half, so that each EVSE is lowered at once, and later rises again.
    """

    PERIOD = 60
    FOLLOW = 3
    MOVES = 0.002  # of all EVSEs, each second

    def __init__(self, count: int) -> None:
        self.network, self.evses, self.sessions = fleet(count)
        self.circuits = self.network.circuits
        self.params = Params(otherwise=Steps(minimum_a=6.0, step_a=1.0), hold_s=10.0)
        self.plan = planned(count, self.params)
        stations = [
            Station(
                name=evse.name,
                circuit=evse.circuit,
                phases=evse.phases,
                rating_a=evse.rating_a,
                after_boot=NOTHING,
                fallback=NOTHING,
                watchdog_s=60.0,
                refresh_s=15.0,
            )
            for evse in self.evses
        ]
        self.stations = {station.name: station for station in stations}
        self.cycle = Cycle(
            circuits=Circuits(self.circuits, stations), combine=limits.Combining(), allocate=self._allocate
        )
        self.state = State(started(stations, 0.0))
        self.previous: Mapping[str, Allocation] = {}
        self.told = {evse.name: deque([0.0] * self.FOLLOW, self.FOLLOW) for evse in self.evses}
        self.shown = dict.fromkeys(self.told, 0.0)
        self.ratings = {evse.name: limits.ratings(evse, self.sessions[evse.name]) for evse in self.evses}
        self.most_w = 0.5 * sum(400.0 / math.sqrt(3) * amperes for amperes in self.circuits["main"].rating_a)
        self.events: list[Event] = [Armed(station.name, 60.0, NOTHING, 0.0) for station in stations]
        self.now_s = 0.0
        self.moves = itertools.cycle(self.told)

    def run(self, clock: Callable[[], float]) -> tuple[float, int]:
        """Let a second pass; return how long the cycle took, and how many writes it made."""
        self.now_s += 1.0
        self._move()
        inputs = self._inputs()
        begun = clock()
        outcome = self.cycle.run(self.state, inputs)
        took = clock() - begun
        self.state = outcome.state
        for write in outcome.writes:
            self.shown[write.evse] = write.amount.active_a
        self.events = [Acknowledged(write.evse, write.id, self.now_s + 0.1) for write in outcome.writes]
        return took, len(outcome.writes)

    def _move(self) -> None:
        """Let energy flow, and now and then a vehicle come in another's place."""
        for name, told in self.told.items():
            told.append(self.shown[name])
            session = self.sessions[name]
            self.sessions[name] = replace(session, delivered_wh=session.delivered_wh + 1.0)
        for _ in range(math.ceil(self.MOVES * len(self.told))):
            name = next(self.moves)
            self.sessions[name] = replace(self.sessions[name], started_at_s=self.now_s, delivered_wh=0.0)
            self.ratings[name] = limits.ratings(self.evses[self.network.place[name]], self.sessions[name])

    def _inputs(self) -> Inputs:
        now_s = self.now_s
        image = {}
        for number, evse in enumerate(self.evses):
            amperes = self.told[evse.name][0] * (0.97 + 0.03 * math.sin(number + now_s))  # no vehicle stands still
            current = tuple(amperes if phase in evse.phases else 0.0 for phase in Phase)
            image[evse.name] = EvseImage(
                sent_s=now_s - 0.6,
                answered_s=now_s - 0.5,
                current_a=(current[0], current[1], current[2]),
                limit_a=self.shown[evse.name],
            )
        flows = 5.0 + math.sin(now_s)
        metered = {
            name: limits.Metered(
                read_at_s=now_s - 0.3, current_a=(flows,) * 3, active_w=(flows * 400.0 / math.sqrt(3),) * 3
            )
            for name in self.circuits
        }
        base = limits.base_loads(self.circuits, metered, now_s, 3.0)
        most_w = self.most_w / 2 if now_s // self.PERIOD % 2 else self.most_w
        return Inputs(
            now_s=now_s,
            image=image,
            limits=(
                *limits.circuits(self.circuits, base),
                *limits.grid([limits.Ask(source="grid event", high_w=most_w)], base["main"]),
                *itertools.chain.from_iterable(self.ratings.values()),
            ),
            events=tuple(self.events),
            base={name: BaseLoad(active_a=(flows,) * 3) for name in self.circuits},
        )

    def _allocate(self, names: Sequence[str], bounds: Bounds, now_s: float) -> Mapping[str, Allocation]:
        relied = set(names)
        self.previous = allocate(
            self.evses,
            {name: session for name, session in self.sessions.items() if name in relied},
            bounds,
            self.network,
            now_s=now_s,
            previous=self.previous,
            plan=self.plan,
            params=self.params,
        )
        return self.previous


def cycles(count: int, number: int, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Return the times of cycles, one after the other, in s, whatever happens in them."""
    site = Site(count)
    first = site.run(clock)[0]
    gc.freeze()  # as the orchestrator does after its first cycle
    gc.disable()
    try:
        return [first, *(site.run(clock)[0] for _ in range(number - 1))]
    finally:
        gc.unfreeze()
        gc.enable()


def cycle_times() -> list[Figure]:
    """Measure one cycle alone and beside the planner in its process, and the plan of a large fleet."""
    figures = []
    for count, most_ms in ((54, 5.0), (1000, 50.0)):
        alone = 1000 * np.array(cycles(count, CYCLES))
        planner = multiprocessing.get_context("spawn").Process(target=plan_for_ever, args=(count,), daemon=True)
        planner.start()
        try:
            time.sleep(3)
            beside = 1000 * np.array(cycles(count, CYCLES))
        finally:
            planner.terminate()
            planner.join()
        p99 = float(np.percentile(alone, 99))
        for name, times, reference in ((f"cycle_{count}", alone, None), (f"cycle_{count}_planning", beside, p99)):
            value = float(np.percentile(times, 99))
            figures.append(
                Figure(
                    f"agent.control.{name}",
                    value,
                    "ms",
                    reference,
                    None if reference is None else value / reference,
                    f"p99 ≤ {most_ms:g} ms",
                    value <= most_ms,
                    f"median {np.median(times):.1f}, longest {np.max(times):.1f} of {len(times)}",
                )
            )
    begun = time.perf_counter()
    found = planned(1000, Params())
    took_s = time.perf_counter() - begun
    figures.append(
        Figure("agent.control.plan_1000", took_s, "s", None, None, "≤ 1 s", took_s <= 1 and found is not None)
    )
    return figures


BENCHMARKS: dict[tuple[str, ...], Callable[[], list[Figure]]] = {
    (
        "agent.control.cycle_54",
        "agent.control.cycle_54_planning",
        "agent.control.cycle_1000",
        "agent.control.cycle_1000_planning",
        "agent.control.plan_1000",
    ): cycle_times,
}
