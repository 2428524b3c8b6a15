# SPDX-License-Identifier: Apache-2.0
"""Shares what the circuits allow among the vehicles that are there, once a cycle.

1. **Wishes.** A vehicle whose departure and need are known wishes what the plan gives it now. Those of which too little
   is known wish their fair share: max-min of the energy delivered so far, by water-filling, so that whoever has had
   least comes first. Those that could be planned for and are not (there is no plan, or an older one) wish what all
   others' wishes leave, one after the other (`_wish_what_is_left`). So nobody who tells a departure waits for one who
   tells none to have more than a fair share; and nobody starves, for whoever can wait no longer has a turn.
2. **Order.** By what the plan, or the wish without one, gives in the near future, a running EVSE before one that would
   have to start; then by laxity, the time that a vehicle could still wait.
3. **Rounds**, each raising EVSEs in that order, by allowed steps and no further than the circuits have room:
   running ones that the plan still wants keep their minimum; each comes up to its wish; wishes that were too small for
   a minimum are gathered, EVSE by EVSE, up to the sum of those that load the root in the same way; what is left goes
   to whoever can take it, storage last.
4. **Holding.** A lower result is taken at once. What the circuits leave an EVSE *lastingly* falls with it, and rises no
   sooner than `hold_s` later; where it has trembled meanwhile, only to the lowest that it was, less a margin, and the
   wait begins anew. Beneath that, what an EVSE's own limits lower, as droop does, is followed up again `hold_s` after
   they first lowered it, and at once; while they hold it, they hide what the circuits leave, which therefore stays as
   it was known. So a droop that comes and goes brings an EVSE back to where it was, and starts no new trembling. What
   its own limits ask of storage at the least, as droop does, does not wait.

Before all rounds, EVSEs that were raised less than `hold_s` ago keep what they have, as far as it fits. So whatever
plan, order and wishes say, an EVSE's setpoint turns round at most once in `hold_s`; only a limit may lower it sooner.
Storage keeps it only from what vehicles do not wish: one that comes waits for no battery.

**Why it is safe.** All start at zero, which fits. Every raise is by at most the room that the exact phasors leave
(`Room`), for every subset of what flows, so the result fits after each raise, whatever plan, order or wishes say; these
loads are monotone, so holding an EVSE lower keeps it so. Discharge never makes room: it only meets a limit that asks
for power to be given back (a bound below zero), when nothing charges under it.

**Why it is quick.** No program is solved: an EVSE is raised at most once a round, a raise costs one square root for
each conductor above the EVSE, and a branch whose room is known not to reach an EVSE's next step is not asked again.
What is known of the EVSEs is held in columns, so that each step is one pass over two or three of them.
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
    are stationary storage. An EVSE that power came back to after an outage (`energised_at_s` says when) waits for a
    time of its own within `spread_s`, drawn from `seed`; those that are absent there do not wait.
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
    energised_at_s: Mapping[str, float] = field(default_factory=dict)
    spread_s: float = 600.0
    seed: str = ""


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
    energised_at_s = params.energised_at_s.get(evse)
    if energised_at_s is None:
        return -math.inf
    drawn = int.from_bytes(hashlib.blake2b(f"{params.seed}/{evse}".encode(), digest_size=_DRAWN_BYTES).digest(), "big")
    return energised_at_s + params.spread_s * drawn / (1 << 8 * _DRAWN_BYTES)


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


class _Seats(NamedTuple):
    """The EVSEs that take part while shares are worked out, as columns: the same position in each is the same EVSE.

    `places` are those in the network. In A: `usable_a` is what a session can use, `top_a` the highest step within that
    and its own limits, `low_a` and `high_a`; `had_a` is what it has had so far, as a current, and `claims_a` what it
    can claim of a fair share: no more than what it still needs, as such a current. `before` is what each got last.
    Columns are lists: a depot of a few EVSEs would wait longer for arrays than it takes.
    """

    names: list[str]
    places: list[int]
    steps: list[Steps]
    storage: list[bool]
    watts_per_a: list[float]
    low_a: list[float]
    high_a: list[float]
    usable_a: list[float]
    top_a: list[float]
    had_a: list[float]
    claims_a: list[float]
    laxity_s: list[float]
    before: list[Allocation]


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
        charge = _left_wh(session) * 3600 / watts
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
        tuple(evses), sessions, bounds, network, now_s=0.0, previous={}, params=replace(params, energised_at_s={})
    )
    return _fair_a(seats, network, circuit_limits(network, bounds))


def _fair_a(seats: _Seats, network: Network, limits: Floats) -> Floats:
    """Return the fair shares in A of those whose departure or need is unknown, by place."""
    tops, had = np.zeros(len(network.evses)), np.zeros(len(network.evses))
    unknown = np.zeros(len(network.evses), dtype=bool)
    vehicles = np.logical_not(seats.storage)
    tops[seats.places], had[seats.places] = vehicles * seats.claims_a, vehicles * seats.had_a
    unknown[seats.places] = vehicles & np.isinf(seats.laxity_s)
    return np.where(unknown, fair_shares(network, tops, had, limits), 0.0) if unknown.any() else tops * 0.0


def _top_a(watts: float, session: Session, high_a: float, params: Params) -> float:
    """Return the most that a session can use until the next allocation, at so many W per A."""
    top = high_a
    power_w = session.power_w
    if power_w is not None and power_w < top * watts:
        top = power_w / watts
    left_w = _left_wh(session) * 3600 / params.cycle_s
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
    wishes = _wishes(seats, network, limits, plan, now_s, params)
    could_a = _shared_a(seats, wishes, network, network.room(limits), now_s, params)
    result = _held(seats, could_a, now_s, params)
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
) -> _Seats:
    """Return the EVSEs with a session, as far as they may take power again after an outage."""
    taking = [evse for evse in evses if evse.name in sessions]
    if params.energised_at_s:
        taking = [evse for evse in taking if now_s >= may_start_at_s(evse.name, params)]
    names = [evse.name for evse in taking]
    present = [sessions[name] for name in names]
    places = [network.place[name] for name in names]
    all_watts_per_a: list[float] = network.watts_per_a.tolist()
    watts_per_a = [all_watts_per_a[place] for place in places]
    own = by_target(bounds)
    ranges = [own_bound(evse, own.get(evse.name), watts) for evse, watts in zip(taking, watts_per_a, strict=True)]
    high_a = [high for _low, high in ranges]
    usable_a = [_top_a(*each, params) for each in zip(watts_per_a, present, high_a, strict=True)]
    steps = [params.steps.get(name, params.otherwise) for name in names]
    return _Seats(
        names=names,
        places=places,
        steps=steps,
        storage=[name in params.storage for name in names],
        watts_per_a=watts_per_a,
        low_a=[low for low, _high in ranges],
        high_a=high_a,
        usable_a=usable_a,
        # What is less than a step is rounded up, for a vehicle takes no more than it needs; a limit is not.
        top_a=[
            one.down(min(high, one.up(usable))) if high > 0 else 0.0
            for one, usable, high in zip(steps, usable_a, high_a, strict=True)
        ],
        had_a=[
            session.delivered_wh / watts * 3600 / params.even_s
            for session, watts in zip(present, watts_per_a, strict=True)
        ],
        claims_a=[
            min(usable, _left_wh(session) / watts * 3600 / params.even_s)
            for session, watts, usable in zip(present, watts_per_a, usable_a, strict=True)
        ],
        laxity_s=[
            _laxity_s(session, usable * watts, now_s)
            for session, usable, watts in zip(present, usable_a, watts_per_a, strict=True)
        ],
        before=[previous.get(name, _NOTHING) for name in names],
    )


def _left_wh(session: Session) -> float:
    """Return what a vehicle still needs, in Wh; infinite where nobody told."""
    return math.inf if session.energy_need_wh is None else max(session.energy_need_wh - session.delivered_wh, 0.0)


def _laxity_s(session: Session, power_w: float, now_s: float) -> float:
    """Return for how long a vehicle could wait and still get its need; without a departure, none can be told."""
    if session.departure_at_s is None or session.energy_need_wh is None:
        return math.inf
    return session.departure_at_s - now_s - (_left_wh(session) * 3600 / power_w if power_w > 0 else 0.0)


class _Wishes(NamedTuple):
    """What each EVSE wishes now, and what it has coming in the near future, in A."""

    now_a: list[float]
    ahead_a: list[float]


def _wishes(  # noqa: PLR0917 - what is wished for depends on all of it
    seats: _Seats, network: Network, limits: Floats, plan: Plan | None, now_s: float, params: Params
) -> _Wishes:
    """Return the wishes: a fair share for those of which too little is known, for the others what the plan says."""
    shares_a = _fair_a(seats, network, limits).tolist()
    planned_a = {} if plan is None else plan.currents_at_a(now_s)
    ahead_as = {} if plan is None else plan.charges_as(now_s, now_s + params.look_s)
    wishes = _Wishes([], [])
    unplanned: list[int] = []
    for seat, (name, place, laxity_s, low_a, top_a) in enumerate(
        zip(seats.names, seats.places, seats.laxity_s, seats.low_a, seats.top_a, strict=True)
    ):
        if math.isinf(laxity_s):
            wish_a = ahead_a = shares_a[place]
        else:
            wish_a, ahead_a = planned_a.get(name, 0.0), ahead_as.get(name, 0.0) / params.look_s
            if name not in planned_a:
                unplanned.append(seat)
        wishes.now_a.append(min(max(wish_a, low_a), top_a))
        wishes.ahead_a.append(ahead_a)
    if unplanned:
        _wish_what_is_left(seats, unplanned, wishes, network.room(limits), params)
    return wishes


def _wish_what_is_left(seats: _Seats, unplanned: list[int], wishes: _Wishes, room: Room, params: Params) -> None:
    """Let some wish what the others' wishes leave, one after the other.

    First come those that have to charge within `look_s`, of these whoever has had least: what they need may be more
    than can be had, and then it is shared. Then whoever can least wait. One that charges goes before one that is hardly
    ahead of it, or the two would change places again and again.
    """
    for place, wish_a in zip(seats.places, wishes.now_a, strict=True):
        room.take(place, wish_a)

    def turn(seat: int) -> tuple[bool, float, str]:
        running = seats.before[seat].current_a > 0
        can_wait = seats.laxity_s[seat] > params.look_s
        if can_wait:
            return can_wait, seats.laxity_s[seat] - params.look_s * running, seats.names[seat]
        hardly_a = seats.usable_a[seat] * params.hold_s / params.even_s
        return can_wait, seats.had_a[seat] - hardly_a * running, seats.names[seat]

    for seat in sorted(unplanned, key=turn):
        place = seats.places[seat]
        more_a = min(seats.top_a[seat] - wishes.now_a[seat], room.left(place))
        room.take(place, more_a)
        wishes.now_a[seat] += more_a
        wishes.ahead_a[seat] = wishes.now_a[seat]


class _Rounds:
    """The raises of one cycle. A seat is a position in the columns; `open_a` is what its group still wishes, in A."""

    def __init__(self, seats: _Seats, groups: list[int], open_a: dict[int, float], room: Room) -> None:
        self.current_a = [0.0] * len(seats.names)
        self._useful_a = [max(steps.lowest_a - 2 * _CLOSE_A, _CLOSE_A) for steps in seats.steps]
        self._top_a, self._steps, self._places = seats.top_a, seats.steps, seats.places
        self._groups, self._open_a, self._room = groups, open_a, room

    def raised(self, seat: int, to_a: float, at_most_a: float = math.inf) -> float:
        """Raise an EVSE to an allowed current, by no more than `at_most_a` and the room; return by how much."""
        current_a, useful_a = self.current_a[seat], self._useful_a[seat]
        rise = min(min(self._top_a[seat], to_a) - current_a, at_most_a)
        if rise < useful_a:
            return 0.0
        place = self._places[seat]
        left = self._room.left(place, useful_a)
        if left < useful_a:
            return 0.0
        steps = self._steps[seat]
        reached = steps.down(current_a + min(rise, left))
        rise = reached - current_a
        if rise <= 0:
            return 0.0
        self._room.take(place, rise)
        self.current_a[seat] = reached
        self._useful_a[seat] = steps.useful_a(reached)
        return rise

    def lift(self, seat: int, to_a: float) -> None:
        """Raise an EVSE and count that as granted, whatever its group wished."""
        self._open_a[self._groups[seat]] -= self.raised(seat, to_a)

    def gather(self, seat: int, to_a: float) -> None:
        """Raise an EVSE by no more than what its group still wishes."""
        group = self._groups[seat]
        open_a = self._open_a[group]
        self._open_a[group] = open_a - self.raised(seat, to_a, open_a)

    def running_first(self, seats: Sequence[int]) -> list[int]:
        """Return those that can still be raised, the running ones first."""
        current_a, top_a, useful_a, places = self.current_a, self._top_a, self._useful_a, self._places
        may_have = self._room.may_have
        open_ = [
            seat
            for seat in seats
            if top_a[seat] - current_a[seat] >= useful_a[seat] and may_have(places[seat], useful_a[seat])
        ]
        return [seat for seat in open_ if current_a[seat] > 0] + [seat for seat in open_ if current_a[seat] <= 0]


def _going_on(seats: _Seats, wishes: _Wishes, params: Params) -> list[bool]:
    """Return which EVSEs run and still have something coming: they keep their minimum, and go before the others."""
    return [
        before.current_a > 0 and ahead_a >= params.keep * steps.lowest_a
        for before, ahead_a, steps in zip(seats.before, wishes.ahead_a, seats.steps, strict=True)
    ]


def _order(seats: _Seats, wishes: _Wishes, going_on: list[bool], network: Network, params: Params) -> list[int]:
    """Return the EVSEs in the order in which they are raised: by what they have coming, by laxity, by name."""
    coming_a = [-ahead_a - params.running * goes_on for ahead_a, goes_on in zip(wishes.ahead_a, going_on, strict=True)]
    keys = network.rank_of_name[seats.places], np.array(seats.laxity_s), np.array(coming_a)
    order: list[int] = np.lexsort(keys).tolist()  # the last key counts first
    return order


def _shared_a(  # noqa: PLR0917 - what the shares are made from
    seats: _Seats, wishes: _Wishes, network: Network, room: Room, now_s: float, params: Params
) -> list[float]:
    """Return what each EVSE could have, raised round by round as the module says."""
    steps, top_a = seats.steps, seats.top_a
    stood_a = [one.current_a for one in seats.before]
    going_on = _going_on(seats, wishes, params)
    order = _order(seats, wishes, going_on, network, params)
    vehicles = [seat for seat in order if not seats.storage[seat]]
    storage = [seat for seat in order if seats.storage[seat]]
    all_groups: list[int] = network.group_of.tolist()
    groups = [all_groups[place] for place in seats.places]
    open_a = dict.fromkeys(groups, _SLACK_A)
    for seat in vehicles:
        open_a[groups[seat]] += wishes.now_a[seat]
    just_raised = {
        seat
        for seat, before in enumerate(seats.before)
        if before.current_a > 0 and now_s - before.raised_at_s < params.hold_s
    }

    rounds = _Rounds(seats, groups, open_a, room)
    current_a = rounds.current_a
    for seat in filter(just_raised.__contains__, vehicles):
        rounds.lift(seat, stood_a[seat])
    for seat in filter(going_on.__getitem__, vehicles):
        rounds.lift(seat, steps[seat].lowest_a)
    for seat in vehicles:
        wish_a = wishes.now_a[seat]
        if wish_a > current_a[seat] and (current_a[seat] > 0 or wish_a >= params.start * steps[seat].lowest_a):
            rounds.gather(seat, steps[seat].near(wish_a))
    for seat in rounds.running_first(vehicles):
        rounds.gather(seat, top_a[seat])
    for seat in filter(just_raised.__contains__, storage):
        rounds.raised(seat, stood_a[seat])
    for seat in rounds.running_first([*vehicles, *storage]):
        rounds.raised(seat, top_a[seat])
    return current_a


def _reason(could_a: float, top_a: float, high_a: float) -> str:
    """Return in words what sets an EVSE's current."""
    if top_a <= 0:
        return "its own limits leave less than its minimum" if high_a > 0 else "its own limits leave nothing"
    if could_a >= top_a - _CLOSE_A:
        return "all that it can use"
    return "its share of the circuits" if could_a > 0 else "waits for its turn"


def _held(seats: _Seats, all_could_a: Sequence[float], now_s: float, params: Params) -> dict[str, Allocation]:
    """Return what each EVSE gets of what it could have: a lowering at once, a raise only where it will last."""
    result = {}
    for name, steps, watts, storage, low_a, high_a, top_a, before, could in zip(
        seats.names,
        seats.steps,
        seats.watts_per_a,
        seats.storage,
        seats.low_a,
        seats.high_a,
        seats.top_a,
        seats.before,
        all_could_a,
        strict=True,
    ):
        _evse, held, _power_w, _why, raised_at, lowered_at, _lasting_a, _cut_at_s, _least_a, _most_a = before
        held = max(0.0, held)
        own = could >= top_a - _CLOSE_A
        lasting, cut_at, least, most = _lasting(could, before, own, steps, now_s, params)
        current = wanted = min(could, lasting)
        if wanted < held - _CLOSE_A:
            lowered_at = lowered_at if own and lowered_at > raised_at else now_s
        elif now_s - lowered_at < params.hold_s or wanted <= held + _CLOSE_A:
            # What differs by rounding is the same.
            current = held
        else:
            raised_at = now_s
        if storage and low_a > current + _CLOSE_A:
            # What its own limits ask for at the least does not wait; a vehicle would be turned round by noise.
            current = max(current, steps.down(min(could, steps.up(low_a))))
        kept_back = current < could - _CLOSE_A
        why = "held, until more has been free for a while" if kept_back else _reason(could, top_a, high_a)
        found = (name, current, current * watts, why, raised_at, lowered_at, lasting, cut_at, least, most)
        result[name] = before if found == before else Allocation(*found)
    return result


def _lasting(  # noqa: PLR0917 - what it depends on
    could: float, before: Allocation, own: bool, steps: Steps, now_s: float, params: Params
) -> tuple[float, float, float, float]:
    """Return what the circuits leave an EVSE lastingly, when that was cut, and the least and the most seen since."""
    lasting, cut_at = before.lasting_a, before.cut_at_s
    if could <= lasting + _CLOSE_A and own:
        # Its own limits do not let it see what the circuits leave: nothing is known anew.
        return lasting, now_s if cut_at > -math.inf else cut_at, math.inf, -math.inf
    if could < lasting - _CLOSE_A:
        return could, now_s, math.inf, -math.inf
    least, most = min(before.least_a, could), max(before.most_a, could)
    if now_s - cut_at < params.hold_s:
        return lasting, cut_at, least, most
    if cut_at > -math.inf and most - least > _CLOSE_A:
        return max(lasting, steps.down(least - params.margin_a)), now_s, math.inf, -math.inf
    return max(lasting, could), -math.inf, math.inf, -math.inf


def _given_back(
    seats: _Seats, shared: Mapping[str, Allocation], bounds: Bounds, network: Network
) -> dict[str, Allocation]:
    """Return the EVSEs that discharge: because their own limit says so, or one of a circuit above them.

    Storage gives first, then the vehicle that can best wait; only EVSEs that do not charge.
    """
    asked = _asked_back(network, bounds)
    own = zip(seats.low_a, seats.high_a, strict=True)
    willing = [seat for seat, (low, high) in enumerate(own) if low < 0 and (asked or high < 0)]
    if not willing:
        return {}
    room = network.room(circuit_limits(network, bounds, export=True))
    names, places, watts_per_a = seats.names, seats.places, seats.watts_per_a
    given_a = dict.fromkeys(willing, 0.0)

    def give(seat: int, current_a: float) -> float:
        more = max(min(current_a, -seats.low_a[seat] - given_a[seat], room.left(places[seat])), 0.0)
        if more > 0 and shared[names[seat]].current_a <= 0:
            room.take(places[seat], more)
            given_a[seat] += more
            return more
        return 0.0

    for seat in willing:
        if seats.high_a[seat] < 0:
            give(seat, -seats.high_a[seat])
    willing.sort(key=lambda seat: (not seats.storage[seat], -seats.laxity_s[seat], names[seat]))
    for circuit, asked_w in asked:
        beneath = [seat for seat in willing if network.hangs_on(places[seat], circuit)]
        missing_w = asked_w - sum(given_a[seat] * watts_per_a[seat] for seat in beneath)
        for seat in beneath:
            if missing_w > 0:
                missing_w -= give(seat, missing_w / watts_per_a[seat]) * watts_per_a[seat]
    return {
        names[seat]: shared[names[seat]]._replace(
            current_a=-given_a[seat],
            power_w=-given_a[seat] * watts_per_a[seat],
            why="gives back what a limit asks for",
        )
        for seat in willing
        if given_a[seat] > 0
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
