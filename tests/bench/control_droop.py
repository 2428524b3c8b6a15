# SPDX-License-Identifier: GPL-3.0-or-later
"""How exact the frequency droop is, and how often noise turns it round."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from itertools import pairwise

from derms_agent.control import droop
from derms_agent.control.droop import Category, Settings, State

from tests.bench.figures import Figure

NOISE_HZ = 0.020
HOLD_S = 60
WINDOW_S = 300
NOISY_S = 1800
SETTLING_S = 60
SEEDS = range(5)
CENTRES_HZ = (-0.5, -0.05, -0.036, 0.0, 0.02, 0.036, 0.1, 0.3)


def settings() -> Iterator[Settings]:
    """Yield the defaults at 50 and 60 Hz, and both ends of what each category allows."""
    for nominal_hz in (50.0, 60.0):
        yield Settings(nominal_hz=nominal_hz)
        for category in Category:
            allowed = droop.ALLOWABLE[category]
            for end in ("low", "high"):
                deadband_hz, k = getattr(allowed.deadband_hz, end), getattr(allowed.k, end)
                yield Settings(
                    nominal_hz=nominal_hz,
                    deadband_of_hz=deadband_hz,
                    deadband_uf_hz=deadband_hz,
                    k_of=k,
                    k_uf=k,
                    response_s=getattr(allowed.response_s, end),
                )


def exact(chosen: Settings, frequency_hz: float) -> float:
    """Return the curve of IEEE 1547-2018, table 22, written down a second time: consumption, in per unit of rated."""
    low_hz, high_hz = chosen.nominal_hz - chosen.deadband_uf_hz, chosen.nominal_hz + chosen.deadband_of_hz
    under = max(low_hz - frequency_hz, 0.0) / (chosen.nominal_hz * chosen.k_uf)
    over = max(frequency_hz - high_hz, 0.0) / (chosen.nominal_hz * chosen.k_of)
    return max(min(over - under, 2.0), -2.0)


def droop_error() -> list[Figure]:
    """Measure the largest distance from the exact curve after a sweep up and one down, held for a minute or 10 T."""
    errors = []
    for chosen in settings():
        hold_s = round(max(HOLD_S, 10 * chosen.response_s))
        for sign in (1, -1):
            state, worst = State(), 0.0
            # From the far end on: the way there may turn the output round, the sweep itself does not.
            for off_mhz in range(-1500, 1501, 37):
                frequency_hz = chosen.nominal_hz + sign * off_mhz / 1000
                begin_s = 0.0 if state.at_s is None else state.at_s
                for second in range(1, hold_s + (WINDOW_S if off_mhz == -1500 else 0) + 1):
                    state = droop.step(chosen, state, frequency_hz, begin_s + second)
                worst = max(worst, abs(state.output - exact(chosen, frequency_hz)))
            errors.append(100 * worst)
    spread = f"{min(errors):.2f} to {max(errors):.2f} in {len(errors)}"
    return [Figure("agent.control.droop", max(errors), "% of rated", None, None, "≤ 0.5 %", max(errors) <= 0.5, spread)]


def white(rng: random.Random) -> Callable[[float], float]:
    """Return noise that is new at each reading."""
    return lambda _at_s: rng.uniform(-NOISE_HZ, NOISE_HZ)


def wave(rng: random.Random) -> Callable[[float], float]:
    """Return a sine of a period between 2 s and 7 min."""
    period_s = math.exp(rng.uniform(0.7, 6.0))
    return lambda at_s: NOISE_HZ * math.sin(2 * math.pi * at_s / period_s)


def wandering(rng: random.Random) -> Callable[[float], float]:
    """Return a walk that turns back at the noise's ends, as a large grid's frequency does."""
    at_hz, stride_hz = 0.0, rng.choice([0.0005, 0.002, 0.008])

    def drawn(_at_s: float) -> float:
        nonlocal at_hz
        at_hz = min(max(at_hz + rng.uniform(-stride_hz, stride_hz), -NOISE_HZ), NOISE_HZ)
        return at_hz

    return drawn


def turns(outputs: list[float]) -> list[int]:
    """Return at which places a series turns round, by however little."""
    found, direction = [], 0
    for place, (before, after) in enumerate(pairwise(outputs)):
        if after != before:
            now = 1 if after > before else -1
            if now == -direction:
                found.append(place)
            direction = now
    return found


def droop_reversals() -> list[Figure]:
    """Measure how often noise of ±20 mHz turns the output round in any 5 minutes, once it is where it begins."""
    worst = []
    for chosen in settings():
        for kind in (white, wave, wandering):
            most = 0
            for seed in SEEDS:
                for centre_hz in CENTRES_HZ:
                    noise, state, outputs = kind(random.Random(seed)), State(), []  # noqa: S311
                    for second in range(NOISY_S):
                        state = droop.step(chosen, state, chosen.nominal_hz + centre_hz + noise(second), float(second))
                        outputs.append(state.output)
                    places = turns(outputs[round(max(SETTLING_S, 10 * chosen.response_s)) :])
                    most = max([most, *(sum(at <= p < at + WINDOW_S for p in places) for at in places)])
            worst.append(most)
    spread = f"{min(worst)} to {max(worst)} in {len(worst)}"
    name, goal = "agent.control.droop_reversals", "≤ 1 per 5 min"
    return [Figure(name, float(max(worst)), "per 5 min", None, None, goal, max(worst) <= 1, spread)]


BENCHMARKS: dict[tuple[str, ...], Callable[[], list[Figure]]] = {
    ("agent.control.droop",): droop_error,
    ("agent.control.droop_reversals",): droop_reversals,
}
