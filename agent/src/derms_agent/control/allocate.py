# SPDX-License-Identifier: Apache-2.0
"""Shares what the circuits allow among the vehicles that are there, once a cycle.

1. **Wishes.** A vehicle whose departure and need are known wishes what the plan gives it now. The others wish their
   fair share: max-min of the energy delivered so far, by water-filling, so that whoever has had least comes first.
2. **Order.** By what the plan gives in the near future, a running EVSE before one that would have to start; then by
   laxity, the time that a vehicle could still wait. Without a plan, laxity alone decides, and fair shares.
3. **Rounds**, each raising EVSEs in that order, by allowed steps and no further than the circuits have room:
   running ones that the plan still wants keep their minimum; each comes up to its wish; wishes that were too small for
   a minimum are gathered, EVSE by EVSE, up to the sum of those that load the root in the same way; what is left goes
   to whoever can take it, storage last.
4. **Holding.** A lower result is taken at once. What the circuits leave an EVSE *lastingly* falls with it, and rises no
   sooner than `hold_s` later; where it has trembled meanwhile, only to the lowest that it was, less a margin, and the
   wait begins anew. Beneath that, what an EVSE's own limits lower, as droop does, is followed up again `hold_s` after
   they first lowered it, and at once; while they hold it, they hide what the circuits leave, which therefore stays as
   it was known. So a droop that comes and goes brings an EVSE back to where it was, and starts no new trembling.

Before all rounds, EVSEs that were raised less than `hold_s` ago keep what they have, as far as it fits. So whatever
plan, order and wishes say, an EVSE's setpoint turns round at most once in `hold_s`; only a limit may lower it sooner.

**Why it is safe.** All start at zero, which fits. Every raise is by at most the room that the exact phasors leave
(`Room`), for every subset of what flows, so the result fits after each raise, whatever plan, order or wishes say; these
loads are monotone, so holding an EVSE lower keeps it so. Discharge never makes room: it only meets a limit that asks
for power to be given back (a bound below zero), when nothing charges under it.

**Why it is quick.** No program is solved: an EVSE is raised at most once a round, a raise costs one square root for
each conductor above the EVSE, and a branch whose room is known not to reach an EVSE's next step is not asked again.
Fair shares are found by looking at whole branches, at the levels where somebody begins or ends to rise; between two of
these, where a constraint is met is the root of a quadratic.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

import numpy as np

from derms_agent.control.limits import SITE, Bound, Place, Target, bounds_on, by_target
from derms_agent.control.network import Floats, Network, Room
from derms_agent.control.plan import Need, Plan
from derms_agent.model import Evse, LimitQuantity, Phase, Session

_CLOSE_A = 1e-6
_SLACK_A = 1.0
_DRAWN_BYTES = 6
_MET_A = 1e-3


Bounds: TypeAlias = "Mapping[Place, Bound]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The currents in A that an EVSE may be set to, besides 0: levels in order, or from a minimum by steps (0: any)."""

    minimum_a: float = 6.0
    step_a: float = 0.0
    levels_a: tuple[float, ...] = ()
    lowest_a: float = field(init=False, repr=False, compare=False)
    """The least that an EVSE can be set to when it is on."""

    def __post_init__(self) -> None:
        """Work out what is asked for again and again."""
        object.__setattr__(self, "lowest_a", self.levels_a[0] if self.levels_a else self.minimum_a)

    def useful_a(self, current_a: float) -> float:
        """Return the least that a raise from an allowed current above 0 must be, so that it reaches the next one."""
        if self.levels_a:
            following = next((level for level in self.levels_a if level > current_a + _CLOSE_A), math.inf)
        else:
            following = current_a + self.step_a
        return max(following - current_a - 2 * _CLOSE_A, _CLOSE_A)

    def down(self, current_a: float) -> float:
        """Return the highest allowed current that is not above this one; 0 below the lowest."""
        if current_a < self.lowest_a - _CLOSE_A:
            return 0.0
        if self.levels_a:
            return max(level for level in self.levels_a if level <= current_a + _CLOSE_A)
        if not self.step_a:
            return current_a
        return self.minimum_a + math.floor((current_a - self.minimum_a) / self.step_a + _CLOSE_A) * self.step_a

    def up(self, current_a: float) -> float:
        """Return the lowest allowed current that is not below this one; the highest level above it."""
        if current_a <= _CLOSE_A:
            return 0.0
        if current_a <= self.lowest_a:
            return self.lowest_a
        if self.levels_a:
            return next((level for level in self.levels_a if level >= current_a - _CLOSE_A), self.levels_a[-1])
        if not self.step_a:
            return current_a
        return self.minimum_a + math.ceil((current_a - self.minimum_a) / self.step_a - _CLOSE_A) * self.step_a

    def near(self, current_a: float) -> float:
        """Return the allowed current nearest to this one, and the lowest rather than 0."""
        lower, upper = self.down(current_a), self.up(current_a)
        return upper if not lower or upper - current_a < current_a - lower else lower


AC = Steps()
"""IEC 61851-1: 6 A at the least, and no step that the pilot's duty cycle would impose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """How power is shared.

    `cycle_s` is for how long an allocation stands. `look_s` is the near future of the order, and `running` what being
    on is worth in it, in A over all of it. `start` is the part of its minimum that the plan must give an EVSE now, and
    `keep` over the near future, so that it is started, or kept on. `even_s` is the time in which fair shares even out
    what has been delivered so far. `hold_s` and `margin_a` are for raises after a lowering. `storage` names EVSEs that
    are stationary storage. After an outage (`energised_at_s`) each EVSE waits for a time of its own within `spread_s`,
    drawn from `seed`.
    """

    steps: Mapping[str, Steps] = field(default_factory=dict)
    otherwise: Steps = AC
    cycle_s: float = 1.0
    look_s: float = 3_600.0
    running: float = 33.0
    start: float = 0.75
    keep: float = 0.02
    even_s: float = 3_600.0
    hold_s: float = 300.0
    margin_a: float = 0.5
    storage: frozenset[str] = frozenset()
    energised_at_s: float | None = None
    spread_s: float = 600.0
    seed: int = 0


class Allocation(NamedTuple):
    """What an EVSE gets, in A per conductor and in W, with the reason in words.

    What the next cycle needs so that it does not flap: `raised_at_s` and `lowered_at_s` are when it was last raised and
    lowered; `lasting_a` is what circuits leave it lastingly, `cut_at_s` when that was cut, `least_a` and `most_a` the
    lowest and the highest that it could have had since.
    """

    evse: str
    current_a: float
    power_w: float
    why: str
    raised_at_s: float = -math.inf
    lowered_at_s: float = -math.inf
    lasting_a: float = 0.0
    cut_at_s: float = -math.inf
    least_a: float = math.inf
    most_a: float = -math.inf


_NOTHING = Allocation(evse="", current_a=0.0, power_w=0.0, why="")


def may_start_at_s(evse: str, params: Params) -> float:
    """Return when an EVSE may take power again after an outage: a random time for each, always the same for a seed."""
    if params.energised_at_s is None:
        return -math.inf
    drawn = int.from_bytes(hashlib.blake2b(f"{params.seed}/{evse}".encode(), digest_size=_DRAWN_BYTES).digest(), "big")
    return params.energised_at_s + params.spread_s * drawn / (1 << 8 * _DRAWN_BYTES)


def circuit_limits(network: Network, bounds: Bounds, *, export: bool = False) -> Floats:
    """Return the limits of the network's constraints under the bounds on its circuits; "site" is every root.

    :param export: for what is given back, by the bounds' low sides, rather than for what is taken
    """
    roots = {name for name, circuit in network.circuits.items() if circuit.parent is None}
    found: dict[tuple[str, Phase | None], float] = {}
    for (target, quantity, phase), bound in bounds_on(bounds, (*network.circuits, SITE)):
        current = quantity is LimitQuantity.CURRENT
        if quantity is LimitQuantity.REACTIVE_POWER or (phase is not None and not current):
            continue
        # Apparent power has no sign: its high side is for both directions.
        most = -bound.low if export and quantity is not LimitQuantity.APPARENT_POWER else bound.high
        for circuit in roots if target == SITE else (target,):
            for place in tuple(Phase) if current and phase is None else (phase,):
                found[circuit, place] = min(found.get((circuit, place), math.inf), most)
    return network.limits(found)


def own_bound(evse: Evse, target: Target | None, watts_per_a: float) -> tuple[float, float]:
    """Return the least and the most A per conductor that what limits leave of an EVSE leaves to it by itself."""
    high = evse.limit_a
    if target is None:
        return -high, high
    least, most = target.range_a(evse.phases, watts_per_a)
    return max(-high, least), min(high, most)


@dataclass(slots=True)
class _Seat:
    """An EVSE while its share is worked out.

    In A: `wish_a` of the plan or of fairness, `top_a` at the most, `kept_a` what it keeps since it was raised just now,
    `useful_a` the least raise that comes to anything.
    """

    name: str
    place: int
    group: int
    watts_per_a: float
    steps: Steps
    low_a: float
    high_a: float
    usable_a: float
    top_a: float
    had_a: float
    kept_a: float
    running: bool
    storage: bool
    laxity_s: float
    useful_a: float
    wish_a: float = 0.0
    ahead_a: float = 0.0
    current_a: float = 0.0

    def lift(self, room: Room, to_a: float, at_most_a: float = math.inf) -> float:
        """Raise this EVSE to an allowed current, by no more than `at_most_a` and the room; return by how much."""
        top_a, useful_a = self.top_a, self.useful_a
        rise = (min(top_a, to_a)) - self.current_a
        rise = min(rise, at_most_a)
        if rise < useful_a:
            return 0.0
        left = room.left(self.place, useful_a)
        if left < useful_a:
            return 0.0
        reached = self.steps.down(self.current_a + (min(rise, left)))
        rise = reached - self.current_a
        if rise <= 0:
            return 0.0
        room.take(self.place, rise)
        self.current_a = reached
        self.useful_a = self.steps.useful_a(reached)
        return rise


def needs(
    evses: Sequence[Evse],
    sessions: Mapping[str, Session],
    bounds: Bounds,
    network: Network,
    previous: Mapping[str, Allocation],
) -> tuple[Need, ...]:
    """Return what the planner needs to know of the sessions whose departure and need are known."""
    found = []
    own = by_target(bounds)
    for evse in evses:
        session = sessions.get(evse.name)
        if session is None or session.departure_at_s is None or session.energy_need_wh is None:
            continue
        watts = float(network.watts_per_a[network.place[evse.name]])
        _least, most = own_bound(evse, own.get(evse.name), watts)
        if session.power_w is not None:
            most = min(most, session.power_w / watts)
        charge = max(session.energy_need_wh - session.delivered_wh, 0.0) * 3600 / watts
        found.append(
            Need(
                evse=evse.name,
                charge_as=charge,
                departure_at_s=session.departure_at_s,
                most_a=max(most, 0.0),
                running=evse.name in previous and previous[evse.name].current_a > 0,
            )
        )
    return tuple(found)


def fair_shares(network: Network, tops_a: Floats, had_a: Floats, limits: Floats) -> Floats:
    """Return the max-min fair currents: nobody can get more without taking it from one who has no more.

    Everyone's `had_a` plus current rises to one level; who reaches their top stays there, and where a constraint is
    met, all who load it stay where they are, while the others rise on.

    :param tops_a: the most for each EVSE; 0 for those that take no part
    :param had_a: what each has had already, as a current
    """
    part = np.flatnonzero(tops_a > 0)
    if not part.size:
        return np.zeros(len(tops_a))
    # Between two of these levels, each branch rises by a whole number of times what the level does.
    levels = np.unique(np.concatenate([had_a[part], (had_a + tops_a)[part]]))
    rates = np.zeros((len(levels), len(network.branches)))
    np.add.at(rates, (np.searchsorted(levels, had_a[part]), network.branch_of[part]), 1.0)
    np.add.at(rates, (np.searchsorted(levels, (had_a + tops_a)[part]), network.branch_of[part]), -1.0)
    rates = np.cumsum(rates, axis=0)
    sums = np.zeros_like(rates)
    np.cumsum(rates[:-1] * np.diff(levels)[:, None], axis=0, out=sums[1:])

    reached = np.full(len(network.branches), levels[-1])
    free = np.ones(len(network.branches), dtype=bool)
    stopped = np.zeros(len(network.branches))
    level, index = float(levels[0]), 0
    while free.any():
        index = _last(lambda row: network.branches_fit(np.where(free, sums[row], stopped), limits), index, len(levels))  # noqa: B023 (called at once)
        if index == len(levels) - 1:
            break
        level = max(level, float(levels[index]))
        rate = rates[index] * free
        at = np.where(free, sums[index] + rate * (level - levels[index]), stopped)
        rise = max(min(network.rise(at, rate, limits), float(levels[index + 1]) - level), 0.0)
        level, at = level + rise, at + rate * rise
        full = network.met(at, limits, within=_MET_A) & free
        if not full.any():
            full = free
        reached[full], stopped[full] = level, at[full]
        free = free & ~full
    return np.where(tops_a > 0, np.clip(reached[network.branch_of] - had_a, 0.0, tops_a), 0.0)


def _last(holds: Callable[[int], bool], index: int, count: int) -> int:
    """Return the last index below `count` for which that holds; it does for `index`, and for none after one that fails.

    By steps twice as wide each time, then half as wide: it is often near.
    """
    step, beyond = 1, count
    while index + 1 < beyond:
        tried = min(index + step, beyond - 1)
        if holds(tried):
            index, step = tried, step * 2 if beyond == count else (beyond - tried) // 2
        else:
            beyond, step = tried, (tried - index) // 2
        step = max(step, 1)
    return index


def reserved_a(
    evses: Iterable[Evse],
    sessions: Mapping[str, Session],
    bounds: Bounds,
    network: Network,
    params: Params,
) -> Floats:
    """Return the fair shares in A of sessions whose departure or need is unknown, by place; 0 for all others.

    All sessions count when shares are worked out, so that those that are known leave the others theirs.
    """
    seats = _seats(
        tuple(evses), sessions, bounds, network, now_s=0.0, previous={}, params=replace(params, energised_at_s=None)
    )
    return _fair_a(seats, network, circuit_limits(network, bounds))


def _fair_a(seats: list[_Seat], network: Network, limits: Floats) -> Floats:
    """Return the fair shares in A of those whose departure or need is unknown, by place."""
    tops, had = np.zeros(len(network.evses)), np.zeros(len(network.evses))
    unknown = np.zeros(len(network.evses), dtype=bool)
    vehicles = [seat for seat in seats if not seat.storage]
    places = [seat.place for seat in vehicles]
    tops[places], had[places] = [seat.usable_a for seat in vehicles], [seat.had_a for seat in vehicles]
    unknown[places] = [math.isinf(seat.laxity_s) for seat in vehicles]
    return np.where(unknown, fair_shares(network, tops, had, limits), 0.0) if unknown.any() else tops * 0.0


def _top_a(watts: float, session: Session, high_a: float, params: Params) -> float:
    """Return the most that a session can use until the next allocation, at so many W per A."""
    top = high_a
    power_w, need_wh = session.power_w, session.energy_need_wh
    if power_w is not None and power_w < top * watts:
        top = power_w / watts
    if need_wh is not None:
        left_w = (need_wh - session.delivered_wh) * 3600 / params.cycle_s
        if left_w < top * watts:
            top = left_w / watts
    return max(0.0, top)


def allocate(
    evses: Iterable[Evse],
    sessions: Mapping[str, Session],
    bounds: Bounds,
    network: Network,
    *,
    now_s: float,
    previous: Mapping[str, Allocation],
    plan: Plan | None,
    params: Params,
) -> Mapping[str, Allocation]:
    """Return what each EVSE gets now. Every EVSE is in the result; those without a session get 0.

    :param bounds: what the limits leave (`limits.combine`), the base load taken off circuits already
    :param previous: the result of the last cycle; empty at first
    :param plan: the planner's latest, however old; None does without
    """
    evses = tuple(evses)
    limits = circuit_limits(network, bounds)
    seats = _seats(evses, sessions, bounds, network, now_s=now_s, previous=previous, params=params)
    _wish(seats, _fair_a(seats, network, limits), plan, now_s, params)
    _share(seats, network.room(limits), params, planned=plan is not None)
    result = {seat.name: _held(seat, previous.get(seat.name), now_s, params) for seat in seats}
    for evse in evses:
        if evse.name not in result:
            why = "waits after the outage" if evse.name in sessions else "no vehicle"
            result[evse.name] = Allocation(evse=evse.name, current_a=0.0, power_w=0.0, why=why)
    return result | _given_back(seats, result, bounds, network)


def _seats(
    evses: tuple[Evse, ...],
    sessions: Mapping[str, Session],
    bounds: Bounds,
    network: Network,
    *,
    now_s: float,
    previous: Mapping[str, Allocation],
    params: Params,
) -> list[_Seat]:
    seats = []
    own = by_target(bounds)
    groups, watts_per_a = network.group_of.tolist(), network.watts_per_a.tolist()
    all_may_start = params.energised_at_s is None or now_s >= params.energised_at_s + params.spread_s
    for evse in evses:
        name = evse.name
        session = sessions.get(name)
        if session is None or not (all_may_start or now_s >= may_start_at_s(name, params)):
            continue
        place = network.place[name]
        watts = watts_per_a[place]
        low, high = own_bound(evse, own.get(name), watts)
        top = _top_a(watts, session, high, params)
        steps = params.steps.get(name, params.otherwise)
        before = previous.get(name)
        stood_a = 0.0 if before is None else before.current_a
        # What is less than a step is rounded up, for a vehicle takes no more than it needs; a limit is not.
        stepped = steps.up(top)
        seats.append(
            _Seat(
                name=name,
                place=place,
                group=groups[place],
                watts_per_a=watts,
                steps=steps,
                low_a=low,
                high_a=high,
                usable_a=top,
                top_a=steps.down(min(high, stepped)) if high > 0 else 0.0,
                had_a=session.delivered_wh / watts * 3600 / params.even_s,
                kept_a=stood_a if before is not None and now_s - before.raised_at_s < params.hold_s else 0.0,
                running=stood_a > 0,
                storage=name in params.storage,
                laxity_s=_laxity_s(session, top * watts, now_s),
                useful_a=max(steps.lowest_a - 2 * _CLOSE_A, _CLOSE_A),
            )
        )
    return seats


def _laxity_s(session: Session, power_w: float, now_s: float) -> float:
    """Return for how long a vehicle could wait and still get its need; without a departure, none can be told."""
    if session.departure_at_s is None or session.energy_need_wh is None:
        return math.inf
    left_wh = max(session.energy_need_wh - session.delivered_wh, 0.0)
    return session.departure_at_s - now_s - (left_wh * 3600 / power_w if power_w > 0 else 0.0)


def _wish(seats: list[_Seat], reserved: Floats, plan: Plan | None, now_s: float, params: Params) -> None:
    """Set what each EVSE wishes now, and what it has coming in the near future."""
    shares = reserved.tolist()
    planned_a = {} if plan is None else plan.currents_at_a(now_s)
    ahead_as = {} if plan is None else plan.charges_as(now_s, now_s + params.look_s)
    for seat in seats:
        wish_a = 0.0
        if math.isinf(seat.laxity_s):
            wish_a = seat.ahead_a = shares[seat.place]
        elif plan is not None:
            wish_a = planned_a.get(seat.name, 0.0)
            seat.ahead_a = ahead_as.get(seat.name, 0.0) / params.look_s
        seat.wish_a = min(max(wish_a, seat.low_a), seat.top_a)


class _Wishes:
    """The sums of wishes of EVSEs that load the root alike, and what has been granted of them, in A."""

    def __init__(self, seats: list[_Seat], planned: bool) -> None:
        self._open: dict[int, float] = dict.fromkeys((seat.group for seat in seats), _SLACK_A)
        for seat in seats:
            unplanned = not planned and math.isfinite(seat.laxity_s)
            self._open[seat.group] += math.inf if unplanned else seat.wish_a

    def lift(self, seat: _Seat, room: Room, to_a: float) -> None:
        """Raise an EVSE and count that as granted, whatever its group wished."""
        self._open[seat.group] -= seat.lift(room, to_a)

    def gather(self, seat: _Seat, room: Room, to_a: float) -> None:
        """Raise an EVSE by no more than what its group still wishes."""
        open_a = self._open[seat.group]
        self._open[seat.group] = open_a - seat.lift(room, to_a, open_a)


def _share(seats: list[_Seat], room: Room, params: Params, planned: bool) -> None:
    """Raise the EVSEs round by round, as the module says."""
    ordered = sorted(seats, key=lambda seat: (-seat.ahead_a - params.running * seat.running, seat.laxity_s, seat.name))
    vehicles = [seat for seat in ordered if not seat.storage]
    storage = [seat for seat in ordered if seat.storage]
    wishes = _Wishes(vehicles, planned)
    for seat in vehicles:
        if seat.kept_a > 0:
            wishes.lift(seat, room, seat.kept_a)
    for seat in storage:
        seat.lift(room, seat.kept_a)
    for seat in vehicles:
        if seat.running and seat.ahead_a >= params.keep * seat.steps.lowest_a:
            wishes.lift(seat, room, seat.steps.lowest_a)
    for seat in vehicles:
        wish_a = seat.wish_a
        if wish_a > seat.current_a and (seat.current_a > 0 or wish_a >= params.start * seat.steps.lowest_a):
            wishes.gather(seat, room, seat.steps.near(wish_a))
    for seat in _running_first(vehicles):
        wishes.gather(seat, room, seat.top_a)
    for seat in _running_first([*vehicles, *storage]):
        seat.lift(room, seat.top_a)


def _running_first(seats: list[_Seat]) -> list[_Seat]:
    """Return those that can still be raised, the running ones first."""
    open_ = [seat for seat in seats if seat.top_a - seat.current_a >= seat.useful_a]
    return [seat for seat in open_ if seat.current_a > 0] + [seat for seat in open_ if seat.current_a <= 0]


def _reason(seat: _Seat) -> str:
    """Return in words what sets an EVSE's current."""
    if seat.top_a <= 0:
        return "its own limits leave less than its minimum" if seat.high_a > 0 else "its own limits leave nothing"
    if seat.current_a >= seat.top_a - _CLOSE_A:
        return "all that it can use"
    return "its share of the circuits" if seat.current_a > 0 else "waits for its turn"


def _held(seat: _Seat, before: Allocation | None, now_s: float, params: Params) -> Allocation:
    """Return what an EVSE gets of what it could have: a lowering at once, a raise only where it will last."""
    could = seat.current_a
    before = _NOTHING if before is None else before
    _evse, held, _power_w, _why, raised_at, lowered_at, _lasting_a, _cut_at_s, _least_a, _most_a = before
    held = max(0.0, held)
    own = could >= seat.top_a - _CLOSE_A
    lasting, cut_at, least, most = _lasting(seat, before, own, now_s, params)
    current = wanted = min(could, lasting)
    if wanted < held - _CLOSE_A:
        lowered_at = lowered_at if own and lowered_at > raised_at else now_s
    elif now_s - lowered_at < params.hold_s or wanted <= held + _CLOSE_A:
        # What differs by rounding is the same.
        current = held
    else:
        raised_at = now_s
    why = _reason(seat) if current >= could - _CLOSE_A else "held, until more has been free for a while"
    power_w = current * seat.watts_per_a
    found = Allocation(seat.name, current, power_w, why, raised_at, lowered_at, lasting, cut_at, least, most)
    return before if found == before else found


def _lasting(
    seat: _Seat, before: Allocation, own: bool, now_s: float, params: Params
) -> tuple[float, float, float, float]:
    """Return what the circuits leave an EVSE lastingly, when that was cut, and the least and the most seen since."""
    could, lasting, cut_at = seat.current_a, before.lasting_a, before.cut_at_s
    least, most = min(before.least_a, could), max(before.most_a, could)
    if could <= lasting + _CLOSE_A and own:
        # Its own limits do not let it see what the circuits leave: nothing is known anew.
        return lasting, now_s if cut_at > -math.inf else cut_at, math.inf, -math.inf
    if could < lasting - _CLOSE_A:
        return could, now_s, math.inf, -math.inf
    if now_s - cut_at < params.hold_s:
        return lasting, cut_at, least, most
    if cut_at > -math.inf and most - least > _CLOSE_A:
        return max(lasting, seat.steps.down(least - params.margin_a)), now_s, math.inf, -math.inf
    return max(lasting, could), -math.inf, math.inf, -math.inf


def _given_back(
    seats: list[_Seat], shared: Mapping[str, Allocation], bounds: Bounds, network: Network
) -> dict[str, Allocation]:
    """Return the EVSEs that discharge: because their own limit says so, or one of a circuit above them.

    Storage gives first, then the vehicle that can best wait; only EVSEs that do not charge.
    """
    asked = _asked_back(network, bounds)
    willing = [seat for seat in seats if seat.low_a < 0 and (asked or seat.high_a < 0)]
    if not willing:
        return {}
    room = network.room(circuit_limits(network, bounds, export=True))
    given: dict[str, float] = {}

    def give(seat: _Seat, current_a: float) -> float:
        more = max(min(current_a, -seat.low_a - given.get(seat.name, 0.0), room.left(seat.place)), 0.0)
        if more > 0 and shared[seat.name].current_a <= 0:
            room.take(seat.place, more)
            given[seat.name] = given.get(seat.name, 0.0) + more
            return more
        return 0.0

    for seat in willing:
        if seat.high_a < 0:
            give(seat, -seat.high_a)
    willing.sort(key=lambda seat: (not seat.storage, -seat.laxity_s, seat.name))
    for circuit, asked_w in asked:
        beneath = [seat for seat in willing if network.hangs_on(seat.place, circuit)]
        missing_w = asked_w - sum(given.get(seat.name, 0.0) * seat.watts_per_a for seat in beneath)
        for seat in beneath:
            if missing_w > 0:
                missing_w -= give(seat, missing_w / seat.watts_per_a) * seat.watts_per_a
    return {
        seat.name: shared[seat.name]._replace(
            current_a=-given[seat.name],
            power_w=-given[seat.name] * seat.watts_per_a,
            why="gives back what a limit asks for",
        )
        for seat in willing
        if given.get(seat.name, 0.0) > 0
    }


def _asked_back(network: Network, bounds: Bounds) -> list[tuple[str, float]]:
    """Return the circuits that are to give power back, and how many W."""
    roots = [name for name, circuit in network.circuits.items() if circuit.parent is None]
    return [
        (name, -bound.high)
        for (target, quantity, _), bound in bounds_on(bounds, (*network.circuits, SITE))
        if quantity is LimitQuantity.ACTIVE_POWER and bound.high < 0
        for name in (roots if target == SITE else [target])
        if name in network.circuits
    ]
