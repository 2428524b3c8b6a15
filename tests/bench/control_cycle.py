# SPDX-License-Identifier: GPL-3.0-or-later
"""How quickly control answers: one cycle, alone and beside the planner in its process, and one plan."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from derms_agent.control.allocate import Allocation, Params, Steps, allocate, circuit_limits, needs, reserved_a
from derms_agent.control.network import Network
from derms_agent.control.plan import Outlook, Plan, plan
from derms_agent.model import Circuit, Connection, Evse, Phase, Session

from tests.bench.figures import Figure


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


def cycles(count: int, seconds: float) -> list[float]:
    """Return the times of cycles, one after the other, in s."""
    network, evses, sessions = fleet(count)
    params = Params(otherwise=Steps(minimum_a=6.0, step_a=1.0))
    latest = planned(count, params)
    previous: Mapping[str, Allocation] = {}
    times: list[float] = []
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        sessions = {
            name: replace(session, delivered_wh=session.delivered_wh + 1.0) for name, session in sessions.items()
        }
        start = time.perf_counter()
        previous = allocate(
            evses, sessions, {}, network, now_s=float(len(times)), previous=previous, plan=latest, params=params
        )
        times.append(time.perf_counter() - start)
    return times


def cycle_times() -> list[Figure]:
    """Measure one cycle alone and beside the planner in its process, and the plan of a large fleet."""
    figures = []
    for count, most_ms in ((54, 5.0), (1000, 50.0)):
        alone = 1000 * float(np.percentile(cycles(count, 10.0), 99))
        planner = multiprocessing.get_context("spawn").Process(target=plan_for_ever, args=(count,), daemon=True)
        planner.start()
        try:
            time.sleep(3)
            beside = 1000 * float(np.percentile(cycles(count, 10.0), 99))
        finally:
            planner.terminate()
            planner.join()
        goal = f"p99 ≤ {most_ms:g} ms"
        figures += [
            Figure(f"agent.control.cycle_{count}", alone, "ms", None, None, goal, alone <= most_ms),
            Figure(
                f"agent.control.cycle_{count}_planning", beside, "ms", alone, beside / alone, goal, beside <= most_ms
            ),
        ]
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
