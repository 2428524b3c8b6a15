# SPDX-License-Identifier: Apache-2.0
"""What a successor goes on from besides ledger, asks and sessions, so that a new process changes nothing. Pure.

None of it is needed to stay within limits: without it vehicles are shared out anew, learnt anew, and a demand cap takes
what is not known to have been drawn for the most. All times are of this boot's clock, and mean nothing after another;
what sensors of temperatures have shown (`heat`) has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from derms_agent.control import demand, droop, thermal
from derms_agent.control.allocate import Allocation
from derms_agent.control.plan import Plan
from derms_agent.orchestrator import asks
from derms_agent.orchestrator.asks import Ask

_OF_SHARE = ("current_a", "raised_at_s", "lowered_at_s", "lasting_a", "cut_at_s", "least_a", "most_a")
_OF_WALL = ("ahead_s", "stepped_s")
_OF_ESTIMATE = ("a", "b", "aa", "ab", "bb")
_OF_DROOP = ("at_s", "response", "mean", "output", "moved_at_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What control remembers from cycle to cycle.

    `shares`: what each EVSE was given last, and when it was raised and lowered. `uptake_a`: the most that each vehicle
    is seen to take, A per conductor. `in_force`: the asks that shares have been moved for; `settled_s`: until when they
    move freely for them. `heat`: what each sensor of temperatures has shown, but for the window that it is in.
    `energised_at_s`: since when those have had power again that wait for their start.
    """

    shares: Mapping[str, Allocation] = field(default_factory=dict)
    uptake_a: Mapping[str, float] = field(default_factory=dict)
    in_force: frozenset[Ask] = frozenset()
    settled_s: float | None = None
    plan: Plan | None = None
    samples: demand.Samples = field(default_factory=demand.Samples)
    wall: demand.Wall | None = None
    heat: Mapping[str, thermal.Learnt] = field(default_factory=dict)
    droop: droop.State = field(default_factory=droop.State)
    energised_at_s: Mapping[str, float] = field(default_factory=dict)


def to_json(memory: Memory) -> dict[str, Any]:
    """Return it as plain JSON; what is infinite or unknown is absent."""
    plan = memory.plan
    return {
        "shares": {name: _finite(one, _OF_SHARE) for name, one in memory.shares.items()},
        "uptake_a": {name: bound_a for name, bound_a in memory.uptake_a.items() if math.isfinite(bound_a)},
        "in_force": [asks.to_json(ask) for ask in memory.in_force],
        "settled_s": memory.settled_s,
        "plan": None
        if plan is None
        else {"edges_s": list(plan.edges_s), "currents_a": {name: list(a) for name, a in plan.currents_a.items()}},
        "samples": [[sample.at_s, sample.import_wh] for sample in memory.samples.kept],
        "rise_wh": memory.samples.rise_wh,
        "wall": None if memory.wall is None else _finite(memory.wall, _OF_WALL),
        "heat": {
            key: {**_finite(learnt.estimate, _OF_ESTIMATE), **_finite(learnt, ("last_share",))}
            for key, learnt in memory.heat.items()
        },
        "droop": {
            **_finite(memory.droop, _OF_DROOP),
            "direction": memory.droop.direction,
            "known": memory.droop.known,
            "before_w": dict(memory.droop.before_w),
        },
        "energised_at_s": dict(memory.energised_at_s),
    }


def from_json(stored: Mapping[str, Any], watts_per_a: Mapping[str, float]) -> Memory:
    """Return what `to_json` gave, of the EVSEs that there are now.

    :param watts_per_a: what each of those draws at 1 A per conductor, in W
    :raises ValueError: it is anything else; or TypeError, KeyError, AttributeError
    """
    plan, settled_s, wall = stored["plan"], stored["settled_s"], stored.get("wall")
    shares = {name: _numbers(one, _OF_SHARE) for name, one in stored["shares"].items() if name in watts_per_a}
    return Memory(
        shares={
            name: Allocation(evse=name, power_w=one["current_a"] * watts_per_a[name], why="as before", **one)
            for name, one in shares.items()
        },
        uptake_a={name: float(bound_a) for name, bound_a in stored["uptake_a"].items() if name in watts_per_a},
        in_force=frozenset(asks.from_json(ask) for ask in stored["in_force"]),
        settled_s=None if settled_s is None else float(settled_s),
        plan=None
        if plan is None
        else Plan(
            edges_s=tuple(map(float, plan["edges_s"])),
            currents_a={name: tuple(map(float, amperes)) for name, amperes in plan["currents_a"].items()},
        ),
        samples=demand.Samples(
            tuple(demand.Sample(float(at_s), float(wh)) for at_s, wh in stored["samples"]),
            None if stored.get("rise_wh") is None else float(stored["rise_wh"]),
        ),
        wall=None if wall is None else demand.Wall(**_numbers(wall, _OF_WALL)),
        heat=heat_from_json(stored),
        droop=droop.State(
            **_numbers(stored["droop"], _OF_DROOP),
            direction=int(stored["droop"]["direction"]),
            known=bool(stored["droop"]["known"]),
            before_w={name: float(watts) for name, watts in stored["droop"]["before_w"].items()},
        ),
        # A release that did not stagger starts has not stored it.
        energised_at_s={
            name: float(at_s) for name, at_s in stored.get("energised_at_s", {}).items() if name in watts_per_a
        },
    )


def heat_from_json(stored: Mapping[str, Any]) -> dict[str, thermal.Learnt]:
    """Return what sensors have shown, which holds after a start of the host as well. Raises as `from_json`."""
    return {
        key: thermal.Learnt(
            thermal.Estimate(*(float(one[name]) for name in _OF_ESTIMATE)),
            last_share=None if one.get("last_share") is None else min(max(float(one["last_share"]), 0.0), 1.0),
        )
        for key, one in stored.get("heat", {}).items()
    }


def _finite(one: object, names: tuple[str, ...]) -> dict[str, Any]:
    values = {name: getattr(one, name) for name in names}
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


def _numbers(stored: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, float]:
    return {name: float(stored[name]) for name in names if name in stored}
