# SPDX-License-Identifier: Apache-2.0
"""The report of a controller: what the socket's `status` answers, and what screen, page, LEDs and MQTT show. Pure.

Plain JSON; W, A, s; times are wall-clock, RFC 3339, UTC. Its fields are in docs/socket.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from typing import Any, TypeAlias

from derms_agent import __version__
from derms_agent.control import guard, limits, state
from derms_agent.control.cycle import Outcome, Why
from derms_agent.control.ledger import Span
from derms_agent.control.obedience import Following, advice
from derms_agent.model import Evse, Limit, LimitQuantity, Phase, Quality, Rank
from derms_agent.orchestrator import asks as wishes
from derms_agent.orchestrator.asks import Ask
from derms_agent.orchestrator.controller import Controller

PHASES = tuple(Phase)
_TOLD = frozenset({Following.OVERDRAWING, Following.UNPROVEN})
EVSE, STORAGE = "evse", "storage"
FREE_S = 15.0
"""For so long a device may show that it holds no setpoint: after its start, until it was told one."""
Intervals: TypeAlias = "Mapping[str, tuple[Span, Span, Span]]"
"""What the ledger counts for each EVSE, in A of L1, L2 and L3."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that a person should look at: what about, in words what, and since when by control's clock."""

    about: str
    words: str
    since_s: float


@dataclass(slots=True)
class Alarms:
    """The alarms that stand; each keeps the time at which it began."""

    standing: dict[tuple[str, str], Alarm] = field(default_factory=dict)

    def hold(self, found: Iterable[tuple[str, str, str]], now_s: float) -> tuple[list[Alarm], list[Alarm]]:
        """Take (about, kind, words) for all that is so now. Return those that began and those that ended."""
        before, now = self.standing, {}
        began = []
        for about, kind, words in found:
            known = before.get((about, kind))
            now[about, kind] = Alarm(about, words, now_s if known is None else known.since_s)
            if known is None:
                began.append(now[about, kind])
        ended = [alarm for key, alarm in before.items() if key not in now]
        self.standing = now
        return began, ended


def troubles(controller: Controller, outcome: Outcome, now_s: float) -> list[tuple[str, str, str]]:
    """Return (about, kind, words) for all that is wrong now."""
    found: list[tuple[str, str, str]] = []
    for name, verdict in outcome.state.obedience.items():
        shown = verdict.state in _TOLD and name not in outcome.fallback  # one that is silent is told below
        if shown and (words := advice(verdict)):
            found.append((name, verdict.state.value, words))
    for name in outcome.fallback:
        silent_s = outcome.state.ledger.entries[name].silent_for_s(now_s)
        words = "never answered" if math.isinf(silent_s) else f"has not answered for {silent_s:.0f} s"
        found.append((name, "silent", words))
    for name, since_s in controller.free_s.items():
        if now_s - since_s > FREE_S:
            found.append((name, "free", f"has shown for {now_s - since_s:.0f} s that it does not hold what it is told"))
    for excess in controller.stays_over:
        where = excess.circuit if excess.phase is None else f"{excess.circuit} {excess.phase.value}"
        unit = "VA" if excess.phase is None else "A"
        found.append(
            (where, "over", f"could carry {excess.found:.0f} {unit} at the worst, its limit is {excess.limit:.0f}")
        )
    for device, problem in controller.problems.items():
        found.append((device, "problem", problem))
    return found


def operating(controller: Controller, outcome: Outcome, now_s: float) -> state.Shown:
    """Return the depot's state in one word, and why."""
    known = state.Known(
        faults=outcome.faults
        + tuple(f"{excess.circuit} could be over its limit" for excess in controller.stays_over)
        + tuple(f"{name} does not answer" for name in outcome.fallback if name in controller.sessions),
        out_of_sync=_out_of_sync(controller, now_s),
        fallback=_fallback(controller, outcome, now_s),
        constrained=_constrained(controller) or state.constrained(_givers(controller, outcome)),
        shedding=tuple(
            ask.source
            for ask in controller.asks.values()
            if ask.rank is wishes.RANKS["grid"] and ask.in_force(now_s) and math.isfinite(ask.high_w)
        ),
        held=tuple(state.Held(limit.source, limit.rank) for limit in _holding(controller, outcome, now_s)),
    )
    return state.shown(known)


def _out_of_sync(controller: Controller, now_s: float) -> str | None:
    return state.out_of_sync(controller.grid(controller.meter(controller.site.root.name, now_s)))


def _fallback(controller: Controller, outcome: Outcome, now_s: float) -> str | None:
    if controller.policy.default_limit_w is not None and controller.link_lost(now_s):
        return "the grid's link is lost: the default limit holds"
    if outcome.fallback and len(outcome.fallback) == len(controller.site.evses):
        return "no EVSE answers: each is on its own fallback"
    return None


def _constrained(controller: Controller) -> str | None:
    """Return why temperatures leave less than the vehicles that are there could take."""
    found = []
    for name in controller.visited():
        bound = controller.cooled(name)
        if bound is not None:
            wanted_w = controller.rated_w(name)
            found.append(state.Resource(name=name, wanted_w=wanted_w, bound=bound))
    return state.constrained(found)


def _givers(controller: Controller, outcome: Outcome) -> Iterator[state.Resource]:
    """Yield what is asked of those that may give back, and what their charge and temperatures leave of that.

    What is asked of one is what its bound was clipped from; of what is asked of the site each has its share.
    """
    most_w = {name: session.discharge_w for name, session in controller.sessions.items() if session.discharge_w > 0}
    site = outcome.bounds.get((limits.SITE, LimitQuantity.ACTIVE_POWER, None))
    of_site = 0.0 if site is None else min(site.high, 0.0)
    for name, gives_w in most_w.items():
        bound = outcome.bounds[name, LimitQuantity.ACTIVE_POWER, None]
        asked = [clip.high for clip in bound.clipped if clip.winner_rank is Rank.THERMAL_AND_SOC]
        wanted_w = min([*asked, of_site * gives_w / sum(most_w.values())])
        harmed = bound.low_by is not None and bound.low_by.rank is Rank.THERMAL_AND_SOC
        left = limits.Bound(bound.low if harmed else -gives_w, math.inf, bound.low_by)
        yield state.Resource(name=name, wanted_w=max(wanted_w, -gives_w), bound=left)


def _holding(controller: Controller, outcome: Outcome, now_s: float) -> tuple[Limit, ...]:
    """Return the limits because of which some EVSE with a vehicle gets less than it could take.

    Of those on the EVSE itself what was asked and what the frequency asks for: its rating is what it could take,
    temperatures are told apart, and a ramp only lets it wait.
    """
    found: dict[Limit, None] = {}
    binds = _Binds(controller, now_s)
    asked = {ask.source for ask in controller.asks.values()}
    for name in controller.visited():
        wanted_w = outcome.admission.targets[name].active_a * controller.watts_per_a(name)
        if wanted_w < controller.rated_w(name) - 1:
            for limit in outcome.why[name].limits:
                counts = limit.target != name or limit.rank is Rank.DROOP or limit.source in asked
                if counts and math.isfinite(limit.high) and binds(limit):
                    found[limit] = None
    return tuple(found)


class _Binds:
    """Whether a limit binds, worked out once: many EVSEs have it, and all of them are added up for the answer.

    By what EVSEs are told, or by what the ledger counts for them: after a decrease they are told less than the limit
    for as long as what they drew before has to be counted, and it is the limit that holds them all the while.
    """

    def __init__(self, controller: Controller, now_s: float) -> None:
        self._controller = controller
        self._now_s = now_s
        self._known: dict[int, tuple[Limit, bool]] = {}

    def __call__(self, limit: Limit) -> bool:
        known = self._known.get(id(limit))
        if known is None:
            binds = self._controller.binds
            answer = binds(limit, self._controller.told_a) or binds(limit, self._counted_a)
            known = self._known[id(limit)] = limit, answer
        return known[1]

    @cached_property
    def _spans(self) -> Intervals:
        return guard.intervals(self._controller.state.ledger, self._now_s)

    def _counted_a(self, evse: str) -> float:
        return max(span.high for span in self._spans[evse])


def stamp(unix_s: float) -> str:
    """Return a wall-clock time in RFC 3339, UTC, to the millisecond."""
    return datetime.fromtimestamp(unix_s, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What the loop knows beside control: how many cycles, their times in ms, buses that do not stand, wall clock."""

    cycles: int
    median_ms: float
    p99_ms: float
    last_ms: float
    buses: Mapping[str, str | None]
    unix_s: float


def report(controller: Controller, outcome: Outcome, alarms: Alarms, running: Running, now_s: float) -> dict[str, Any]:
    """Return the whole report."""
    shown = operating(controller, outcome, now_s)
    spans = guard.intervals(outcome.state.ledger, now_s)
    binds = _Binds(controller, now_s)
    return {
        "version": __version__,
        "ready": True,
        "depot": controller.site.depot.name,
        "gateway": controller.site.gateway,
        "at": stamp(running.unix_s),
        "state": shown.state.value,
        "reason": shown.reason,
        "site": _site(controller, outcome, spans, now_s),
        "circuits": [_circuit(controller, name, spans, now_s) for name in controller.site.depot.circuits],
        "evses": [_evse(controller, outcome, evse, spans, now_s, binds) for evse in controller.site.evses],
        "batteries": [
            {
                "kind": battery.kind.value,
                "name": battery.name,
                "equivalent_full_cycles": _round(found.equivalent_full_cycles, 2),
                "deepest_percent": _round(found.deepest_percent),
                "mean_depth_percent": _round(found.mean_depth_percent),
            }
            for battery, found in controller.batteries.reports()
        ],
        "asks": [ask_json(ask, now_s) for ask in controller.asks.values()],
        "alarms": [
            {"about": alarm.about, "words": alarm.words, "for_s": round(now_s - alarm.since_s, 1)}
            for alarm in alarms.standing.values()
        ],
        "buses": [{"name": name, "problem": problem} for name, problem in running.buses.items()],
        "cycle": {
            "count": running.cycles,
            "median_ms": round(running.median_ms, 2),
            "p99_ms": round(running.p99_ms, 2),
            "last_ms": round(running.last_ms, 2),
        },
    }


def ask_json(ask: Ask, now_s: float) -> dict[str, Any]:
    """Return an ask as the socket shows it."""
    stored = wishes.to_json(ask)
    inner = {"id", "goes_by"}
    found = {
        "name": ask.id,
        **{key: value for key, value in stored.items() if key not in inner and not key.endswith("_s")},
    }
    for name, unix_s in (("start", ask.start_unix_s), ("end", ask.end_unix_s)):
        found[name] = None if unix_s is None else stamp(unix_s)
    return {**found, "in_force": ask.in_force(now_s)}


def _site(controller: Controller, outcome: Outcome, spans: Intervals, now_s: float) -> dict[str, Any]:
    site = controller.site
    meter = controller.meter(site.root.name, now_s)
    evse_w = sum(seen.power_w or 0.0 for seen in controller.readings.values() if seen.image.quality is Quality.GOOD)
    measured_w = None if meter is None or meter.active_w is None else sum(meter.active_w)
    base = controller.base.get(site.root.name)
    high_w, by = controller.site_bound(outcome)
    counted_w = sum(
        max(span.high for span in spans[evse.name]) * controller.watts_per_a(evse.name) for evse in site.evses
    )
    return {
        "power_w": _round(measured_w),
        "metered": controller.metered(site.root.name),
        "evse_power_w": _round(evse_w),
        "evse_limit_w": _round(high_w),
        "limit_by": by,
        "base_w": None if base is None else _round(base.high_w),
        "base_by": None if base is None else base.source,
        "counted_w": _round(counted_w),
        "frequency_hz": None if meter is None else meter.frequency_hz,
    }


def _circuit(controller: Controller, name: str, spans: Intervals, now_s: float) -> dict[str, Any]:
    circuit = controller.site.depot.circuits[name]
    meter = controller.meter(name, now_s)
    measured_a = None if meter is None else meter.current_a
    base = controller.base.get(name)
    counted = controller.counted_a(name, spans)
    return {
        "name": name,
        "parent": circuit.parent,
        "phases": [
            {
                "phase": phase.value,
                "rating_a": circuit.rating_a[line],
                "measured_a": None if measured_a is None else _round(measured_a[line]),
                "base_a": None if base is None else _round(base.high_a[line]),
                "counted_a": None if counted is None else _round(counted[line]),
            }
            for line, phase in enumerate(PHASES)
        ],
    }


def _evse(  # noqa: PLR0917 - what `report` has worked out for all
    controller: Controller, outcome: Outcome, evse: Evse, spans: Intervals, now_s: float, binds: _Binds
) -> dict[str, Any]:
    seen = controller.readings.get(evse.name)
    session = controller.sessions.get(evse.name)
    why: Why = outcome.why[evse.name]
    entry = outcome.state.ledger.entries[evse.name]
    silent_s = entry.silent_for_s(now_s)
    fresh = seen is not None and seen.image.quality is Quality.GOOD
    currents = seen.image.current_a if seen is not None and fresh else None
    soc_percent = None if seen is None else seen.soc_percent
    if session is not None and session.soc_percent is not None:
        soc_percent = session.soc_percent  # the newest of what the device shows and what was told
    return {
        "name": evse.name,
        "device": evse.device,
        "kind": STORAGE if evse.stationary else EVSE,
        "circuit": evse.circuit,
        "state": None if seen is None else seen.state,
        "vehicle": session is not None and not evse.stationary,
        "power_w": None if seen is None or not fresh else _round(seen.power_w),
        "measured_a": None if currents is None else [_round(current) for current in currents],
        "setpoint_a": None if math.isnan(why.told_a) else _round(why.told_a, 2),
        "wanted_a": _round(why.wanted_a, 2),
        "counted_a": _round(_counted_a(evse, spans[evse.name]), 2),
        "why": why.words,
        "limited_by": [limit.source for limit in why.limits if binds(limit)][:3],
        "following": outcome.state.obedience[evse.name].state.value,
        "silent_s": None if math.isinf(silent_s) else round(silent_s, 1),
        "delivered_wh": None if session is None else _round(session.delivered_wh),
        "soc_percent": soc_percent,
        "departure_in_s": None
        if session is None or session.departure_at_s is None
        else round(session.departure_at_s - now_s),
        "need_wh": None if session is None else session.energy_need_wh,
    }


def _counted_a(evse: Evse, spans: tuple[Span, Span, Span]) -> float:
    """Return the most that the ledger counts on a conductor, in A: drawn, or by storage given back (below 0)."""
    most_a = max(span.high for span in spans)
    least_a = min(span.low for span in spans) if evse.stationary else 0.0
    return max(most_a, least_a, key=abs)


def explanation(controller: Controller, outcome: Outcome, evse: str, now_s: float) -> dict[str, Any]:
    """Return the limits in force on one EVSE, the strongest rank first, and what the ledger counts for it and why.

    :raises KeyError: there is no such EVSE
    """
    why = outcome.why[evse]
    entry = outcome.state.ledger.entries[evse]
    spans = guard.intervals(outcome.state.ledger, now_s)
    declared = next(one for one in controller.site.evses if one.name == evse)
    return {
        **_evse(controller, outcome, declared, spans, now_s, _Binds(controller, now_s)),
        "limits": [
            {
                "rank": limit.rank.name.lower(),
                "target": limit.target,
                "quantity": limit.quantity.value,
                "phases": [phase.value for phase in limit.phases],
                "low": None if math.isinf(limit.low) else _round(limit.low, 2),
                "high": None if math.isinf(limit.high) else _round(limit.high, 2),
                "source": limit.source,
                "ends_in_s": None if limit.end_s is None else round(limit.end_s - now_s),
            }
            for limit in why.limits
        ],
        "claims": [
            {
                "cause": claim.cause.value,
                "low_a": _round(claim.span.low, 2),
                "high_a": _round(claim.span.high, 2),
                "for_s": round(now_s - claim.since_s, 1),
                "acknowledged": claim.acknowledged,
                "over_for_s": None if claim.ended_s is None else round(now_s - claim.ended_s, 1),
            }
            for claim in entry.claims
        ],
    }


def _round(value: float | None, digits: int = 1) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, digits) + 0.0
