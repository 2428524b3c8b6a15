# SPDX-License-Identifier: GPL-3.0-or-later
"""How often setpoints turn round while nothing happens but noise.

A depot's vehicles stay as they are, and charge; its main is the bottleneck. Once a second the grid's frequency trembles
by ±20 mHz, within the droop's deadband, on its edge and beyond; the meter of the base load by ±1 A, and that load steps
up and down by 1 A. Droop, limits and allocation run as they do in a cycle. What is counted is for each EVSE how often
its setpoint changed direction in any five minutes, by however little, once it has settled.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product

from derms_agent.control import droop, limits
from derms_agent.control.allocate import Allocation, Params, Steps, allocate, circuit_limits, needs, reserved_a
from derms_agent.control.droop import Responder, Settings
from derms_agent.control.network import Network
from derms_agent.control.plan import Outlook, Plan, plan
from derms_agent.model import Circuit, Connection, Evse, Phase, Session

from tests.bench.control_droop import turns, wandering, wave, white
from tests.bench.figures import Figure

EVSES = 24
RUN_S = 3_000
SETTLING_S = 900
WINDOW_S = 300
PLAN_EVERY_S = 300
NOISE_A = 1.0
BASE_A = 40.0
FRESH_S = 10.0
VOLTAGE_V = 400.0
NOISES = (white, wave, wandering)
CENTRES_HZ = (0.0, -0.036, 0.036, -0.08, 0.08)
MODES: Mapping[str, Params] = {
    "continuous": Params(),
    "stepped": Params(otherwise=Steps(minimum_a=6.0, step_a=1.0)),
}


def depot() -> tuple[dict[str, Circuit], tuple[Evse, ...], dict[str, Session]]:
    """Return a main with two feeders; half of the departures are known, one EVSE in four has a single phase."""
    circuits = {
        name: Circuit(
            name=name, parent=parent, connection=Connection.WYE, voltage_v=VOLTAGE_V, rating_a=(rating_a,) * 3
        )
        for name, parent, rating_a in (("main", None, 250.0), ("north", "main", 125.0), ("south", "main", 125.0))
    }
    lines = tuple(Phase)
    evses = tuple(
        Evse(
            name=f"evse-{index}",
            device=f"evse-{index}",
            connector=1,
            circuit=("north", "south")[index % 2],
            phases=lines if index % 4 else (lines[index // 4 % 3],),
            rating_a=32.0,
        )
        for index in range(EVSES)
    )
    sessions = {
        evse.name: Session(
            evse=evse.name,
            started_at_s=0.0,
            departure_at_s=7_200.0 + 600.0 * index if index % 2 else None,
            energy_need_wh=40_000.0 + 500.0 * index if index % 2 else None,
            delivered_wh=300.0 * (index * 7 % 5),
            power_w=22_000.0 if index % 3 else 11_000.0,
        )
        for index, evse in enumerate(evses)
    }
    return circuits, evses, sessions


def setpoints(params: Params, frequency_hz: Callable[[float], float], rng: random.Random) -> dict[str, list[float]]:
    """Return the setpoints of each EVSE in A, second by second."""
    circuits, evses, sessions = depot()
    network = Network(circuits, evses)
    chosen, state = Settings(nominal_hz=50.0), droop.State()
    latest: Plan | None = None
    previous: Mapping[str, Allocation] = {}
    found: dict[str, list[float]] = {evse.name: [] for evse in evses}
    for second in range(RUN_S):
        now_s = float(second)
        state = droop.step(chosen, state, chosen.nominal_hz + frequency_hz(now_s), now_s)
        metered_a = BASE_A + second // 60 % 2 + rng.uniform(-NOISE_A, NOISE_A)
        metered = limits.Metered(
            read_at_s=now_s,
            current_a=(metered_a,) * 3,
            active_w=(metered_a * VOLTAGE_V / math.sqrt(3),) * 3,
        )
        base = limits.base_loads(circuits, {"main": metered}, now_s, FRESH_S)
        responders = [
            Responder(
                name=evse.name,
                rated_w=float(network.watts_per_a[place]) * evse.rating_a,
                floor_w=0.0,
                ceiling_w=min(float(network.watts_per_a[place]) * evse.rating_a, sessions[evse.name].power_w or 0.0),
            )
            for place, evse in enumerate(evses)
        ]
        bounds = limits.combine(
            (
                *limits.circuits(circuits, base),
                *droop.limits(state, responders),
                *(limit for evse in evses for limit in limits.ratings(evse, sessions[evse.name])),
            ),
            now_s,
        )
        if second % PLAN_EVERY_S == 0:
            wanted = needs(evses, sessions, bounds, network, previous)
            reserved = reserved_a(evses, sessions, bounds, network, params)
            latest = plan(network, wanted, circuit_limits(network, bounds), reserved, now_s=now_s, outlook=Outlook())
        previous = allocate(
            evses, sessions, bounds, network, now_s=now_s, previous=previous, plan=latest, params=params
        )
        for name, one in previous.items():
            found[name].append(one.current_a)
            drawn_wh = one.power_w / 3600
            sessions[name] = replace(sessions[name], delivered_wh=sessions[name].delivered_wh + drawn_wh)
        state = droop.remember(state, {name: one.power_w for name, one in previous.items()})
    return found


def stability() -> list[Figure]:
    """Measure the worst EVSE and the mean of all, in both modes, over all kinds of noise and frequencies."""
    figures = []
    for mode, params in MODES.items():
        worst, reversals, hours = 0, 0, 0.0
        for kind, centre_hz in product(NOISES, CENTRES_HZ):
            rng = random.Random(f"{kind.__name__} {centre_hz}")  # noqa: S311
            noise = kind(rng)
            found = setpoints(params, lambda at_s: centre_hz + noise(at_s), rng)  # noqa: B023
            for series in found.values():
                places = turns(series[SETTLING_S:])
                worst = max([worst, *(sum(at <= place < at + WINDOW_S for place in places) for at in places)])
                reversals += len(places)
                hours += (RUN_S - SETTLING_S) / 3600
        mean = reversals / hours * WINDOW_S / 3600
        spread = f"worst EVSE {worst}, mean {mean:.3f}"
        name, goal = f"agent.control.stability_{mode}", "≤ 1 per 5 min"
        figures.append(Figure(name, float(worst), "per 5 min", None, None, goal, worst <= 1, spread))
        print(name, spread, flush=True)
    return figures


BENCHMARKS: dict[tuple[str, ...], Callable[[], list[Figure]]] = {
    tuple(f"agent.control.stability_{mode}" for mode in MODES): stability,
}
