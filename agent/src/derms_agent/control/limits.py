# SPDX-License-Identifier: Apache-2.0
"""What bounds the flow at every place of the depot, with whose bound it is, and how the bounds meet.

Each source is a function from explicit inputs to `Limit`s; `combine` intersects them. Droop, thermal, SoC and demand
have modules of their own and give the same `Limit`s.

**What a limit bounds.** A limit on an EVSE, a device or a vehicle is on its own flow. A limit on a circuit or on "site"
is on what *the EVSEs and storage beneath it* may take together: the base load is already taken off, by the functions
here, so that whoever shares power out needs no meter.

**Base load.** What is measured counts only while it is good and fresh; otherwise the circuit's configured worst case
stands, whose angle is unknown, so that its magnitude is taken off (triangle inequality). It is an interval
`low <= 0 <= high`: generation in it never raises what may be drawn (it can end within a cycle), consumption in it never
raises what may be fed in. So phases are not netted, and what the meters of generators show is added to what flows
beside them; of what is generated on the same phase without a meter, nobody can tell. Where the base load alone is above
a limit, nothing is left: 0, never less than 0, so that a standstill of all EVSEs keeps within every limit of this
module.

**Times** are monotonic s. A limit is in force from `start_s` inclusive to `end_s` exclusive: of two that follow each
other exactly one holds at the seam.

**Ranks.** `combine` goes from the highest rank (the lowest number) down. What a rank leaves is an interval that is
never empty; the next rank's interval is intersected with it, and where the two have nothing in common, it is clipped to
the end of the higher rank's that is nearest: the result is always inside every higher rank's interval (by induction
over the ranks) and does not depend on the order of the limits. Each clip is reported with both sources. Two limits of
one rank that exclude each other leave the one value between them that is nearest to no flow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from operator import is_
from typing import NamedTuple, TypeAlias

from derms_agent.model import (
    SAME_VOLTAGE,
    Circuit,
    Connection,
    Evse,
    Limit,
    LimitQuantity,
    PerPhase,
    Phase,
    Quality,
    Rank,
    Session,
)

SITE = "site"
PHASES = tuple(Phase)
NO_FLOW: PerPhase = (0.0, 0.0, 0.0)

_SQRT3 = math.sqrt(3)

Place: TypeAlias = "tuple[str, LimitQuantity, Phase | None]"
"""What is bounded: target, quantity, and the phase; None for all phases together."""


# --- how limits meet --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Clip:
    """A limit that could not hold: it asked for `low` to `high`, and `winner` left only `given`, which is outside."""

    loser: str
    loser_rank: Rank
    winner: str
    winner_rank: Rank
    low: float
    high: float
    given: float


class Bound(NamedTuple):
    """What all limits on one place leave, in the quantity's unit. `low_by` and `high_by` are the limits that set it.

    None where no limit bounds that side, which is then infinite.
    """

    low: float
    high: float
    low_by: Limit | None = None
    high_by: Limit | None = None
    clipped: tuple[Clip, ...] = ()

    @property
    def sources(self) -> tuple[str, ...]:
        """Return whose the bound is: of the low side, then of the high side, each once."""
        return tuple(dict.fromkeys(limit.source for limit in (self.low_by, self.high_by) if limit is not None))


UNBOUNDED = Bound(-math.inf, math.inf)


def by_target(bounds: Mapping[Place, Bound]) -> Mapping[str, Target]:
    """Return bounds by what they are on."""
    if isinstance(bounds, Combined):
        return bounds.of
    found: dict[str, Target] = {}
    for place, bound in bounds.items():
        found.setdefault(place[0], Target({}))[place] = bound
    return found


def in_force(limit: Limit, now_s: float) -> bool:
    """Return whether a limit holds: from its start, inclusive, to its end, exclusive."""
    return (limit.start_s is None or limit.start_s <= now_s) and (limit.end_s is None or now_s < limit.end_s)


def combine(limits: Iterable[Limit], now_s: float) -> Combined:
    """Return what all limits in force leave at each place, and which of them were clipped.

    A limit on several phases bounds each of them.

    :raises ValueError: a limit's low or high is not a number, or its low is above its high
    """
    return Combining()(limits, now_s)


class Target(dict[Place, Bound]):
    """What limits leave of one target."""

    __slots__ = ("_answer", "_asked")

    def __init__(self, bounds: Mapping[Place, Bound]) -> None:
        super().__init__(bounds)
        self._asked: tuple[tuple[Phase, ...], float] | None = None
        self._answer = -math.inf, math.inf

    def range_a(self, phases: tuple[Phase, ...], watts_per_a: float) -> tuple[float, float]:
        """Return the least and the most current of an EVSE on these phases, in A per conductor.

        Worked out once, for as a rule it is one EVSE that asks, again and again.
        """
        asked = phases, watts_per_a
        if asked != self._asked:
            self._asked, self._answer = asked, self._range_a(phases, watts_per_a)
        return self._answer

    def _range_a(self, phases: tuple[Phase, ...], watts_per_a: float) -> tuple[float, float]:
        low, high = -math.inf, math.inf
        for (_target, quantity, phase), bound in self.items():
            if quantity is LimitQuantity.CURRENT:
                if phase is None or phase in phases:
                    low, high = max(low, bound.low), min(high, bound.high)
            elif phase is None and quantity is LimitQuantity.ACTIVE_POWER:
                low, high = max(low, bound.low / watts_per_a), min(high, bound.high / watts_per_a)
            elif phase is None and quantity is LimitQuantity.APPARENT_POWER:  # it has no sign
                low, high = max(low, -bound.high / watts_per_a), min(high, bound.high / watts_per_a)
        return low, high


class Combined(Mapping[Place, Bound]):
    """Bounds by place. `of` has those of each target, and the same object as long as they are the same."""

    __slots__ = ("of",)

    def __init__(self, of: Mapping[str, Target]) -> None:
        self.of = of

    def __getitem__(self, place: Place) -> Bound:
        """Return the bound of a place. Raises KeyError where there is none."""
        return self.of[place[0]][place]

    def __iter__(self) -> Iterator[Place]:
        """Return all places, those of one target together."""
        return chain.from_iterable(self.of.values())

    def __len__(self) -> int:
        """Return how many places there are."""
        return sum(map(len, self.of.values()))

    def changed(self, bounds: Mapping[Place, Bound]) -> Combined:
        """Return the same with other bounds at some places."""
        of = dict(self.of)
        for place, bound in bounds.items():
            of[place[0]] = Target({**of.get(place[0], {}), place: bound})
        return Combined(of)


def bounds_on(bounds: Mapping[Place, Bound], targets: Iterable[str]) -> Iterator[tuple[Place, Bound]]:
    """Return the bounds on some targets, in the order of the bounds."""
    chosen = set(targets)
    for target, found in by_target(bounds).items():
        if target in chosen:
            yield from found.items()


class Combining:
    """`combine` for one cycle after another: what the same limits leave of a target is not worked out again."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[list[Limit], Target]] = {}

    def __call__(self, limits: Iterable[Limit], now_s: float) -> Combined:
        """Return what `combine` does."""
        on: dict[str, list[Limit]] = {}
        for limit in limits:
            found = on.get(limit.target)
            if found is None:
                on[limit.target] = [limit]
            else:
                found.append(limit)
        of: dict[str, Target] = {}
        known: dict[str, tuple[list[Limit], Target]] = {}
        for target, found in on.items():
            entry = self._known.get(target)
            if entry is not None and len(entry[0]) == len(found) and all(map(is_, entry[0], found)):
                known[target] = entry
            else:
                entry = found, _bounds(found, now_s)
                if all(limit.start_s is limit.end_s is None for limit in found):
                    known[target] = entry  # it holds at any time
            of[target] = entry[1]
        self._known = known
        return Combined(of)


def _bounds(limits: Iterable[Limit], now_s: float) -> Target:
    """Return what limits on one target leave at each of its places."""
    at: dict[Place, list[Limit]] = {}
    for limit in limits:
        if not limit.low <= limit.high:
            raise ValueError(
                f"found {limit.low} to {limit.high} in the limit of {limit.source!r} on {limit.target!r}, "
                "expected two numbers, the lower first"
            )
        if in_force(limit, now_s):
            for phase in limit.phases or (None,):
                at.setdefault((limit.target, limit.quantity, phase), []).append(limit)
    return Target({place: _meet(found) for place, found in at.items()})


def _meet(limits: list[Limit]) -> Bound:
    if len(limits) == 1:
        (only,) = limits
        low_by, high_by = only if only.low > -math.inf else None, only if only.high < math.inf else None
        return Bound(only.low, only.high, low_by, high_by)
    bound = UNBOUNDED
    for _, of_rank in groupby(sorted(limits, key=_order), key=lambda limit: limit.rank):
        bound = _within(bound, list(of_rank))
    return bound


def _order(limit: Limit) -> tuple[Rank, str, float, float]:
    return limit.rank, limit.source, limit.low, limit.high


def _within(above: Bound, limits: list[Limit]) -> Bound:
    """Return what one rank's limits leave of what the ranks above left."""
    low_by = max(limits, key=lambda limit: limit.low)
    high_by = min(limits, key=lambda limit: limit.high)
    low, high = low_by.low, high_by.high
    if low > high:
        # They exclude each other: of the values between them, the one that is nearest to no flow.
        low = high = min(max(0.0, high), low)
    low, high = (min(max(value, above.low), above.high) for value in (low, high))
    clips = list(above.clipped)
    for limit in limits:
        winner: Limit | None = None
        if high < limit.low:
            winner = above.high_by if above.high < limit.low else high_by
        elif low > limit.high:
            winner = above.low_by if above.low > limit.high else low_by
        if winner is not None:
            given = high if high < limit.low else low
            clips.append(Clip(limit.source, limit.rank, winner.source, winner.rank, limit.low, limit.high, given))
    return Bound(
        low,
        high,
        low_by if low > above.low else above.low_by,
        high_by if high < above.high else above.high_by,
        tuple(clips),
    )


# --- base load --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Metered:
    """What a meter said of a circuit, and what the EVSEs and storage beneath drew while it did.

    `current_a` are magnitudes per phase, `active_w` is signed per phase (None where the meter has no power per phase),
    `reactive_var` is signed for all phases (None where the meter does not show it). `evse_low_a` and `evse_high_a`
    bound, per phase, the active current of all EVSEs that the reading contains, over the time in which it may have been
    taken; leave both at no flow for a meter that measures the base load alone. EVSEs draw with a power factor of 1;
    `evse_var` bounds what deviates from that.
    `complete`: each of these EVSEs was sampled on both sides of the reading, so that none is wholly unknown.
    `generated_a`, `generated_reactive_a` and `generated_var` are the most that generators with meters gave meanwhile,
    by magnitude: without them so much more would be drawn. `unheard`: the meters of those that may have given anything
    up to what they can, which is in these.
    """

    read_at_s: float
    current_a: PerPhase
    active_w: PerPhase | None
    reactive_var: float | None = None
    quality: Quality = Quality.GOOD
    evse_low_a: PerPhase = NO_FLOW
    evse_high_a: PerPhase = NO_FLOW
    evse_var: float = 0.0
    complete: bool = True
    generated_a: PerPhase = NO_FLOW
    generated_reactive_a: PerPhase = NO_FLOW
    generated_var: float = 0.0
    unheard: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseLoad:
    """What is drawn on a circuit by everything that is no EVSE, beneath it included: `low <= 0 <= high`.

    A per phase, W, and the reactive power's largest magnitude in var, that of EVSEs in it. Where the angle is unknown,
    `apparent_va` is the magnitude of the sum; it is None where active and reactive power are known. `evse_taken_w` and
    `evse_given_w` are what EVSEs surely took, or gave, in the reading that it is from: their reactive power is in it.
    """

    circuit: str
    source: str
    low_a: PerPhase
    high_a: PerPhase
    low_w: float
    high_w: float
    reactive_var: float
    apparent_va: float | None
    evse_taken_w: float = 0.0
    evse_given_w: float = 0.0

    @property
    def measured(self) -> bool:
        """Whether it is what a meter shows, and no worst case."""
        return self.apparent_va is None


def base_loads(
    circuits: Mapping[str, Circuit], metered: Mapping[str, Metered], now_s: float, fresh_s: float
) -> Mapping[str, BaseLoad]:
    """Return each circuit's base load: measured where that is good and fresh, else its configured worst case.

    The worst case of a circuit holds that of its children, or what is measured on them, in its own voltage and through
    its winding connection. Magnitudes are added: no angle between them is assumed.

    :param metered: by circuit, the last reading of the meter that measures it
    :param fresh_s: how old a reading may be, that old included, and still count
    """
    found: dict[str, BaseLoad] = {}
    children: dict[str, list[str]] = {}
    for circuit in _children_first(circuits):
        reading = metered.get(circuit.name)
        measured = None if reading is None else _measured(circuit, reading, now_s, fresh_s)
        if measured is None or (reading is not None and reading.unheard):
            beneath = [(circuits[name], found[name]) for name in children.get(circuit.name, ())]
            assumed = _assumed(circuit, beneath, reading)
            # Both are never less than what is drawn.
            if measured is None or sum(assumed.high_a) < sum(measured.high_a):
                measured = assumed
        found[circuit.name] = measured
        if circuit.parent is not None:
            children.setdefault(circuit.parent, []).append(circuit.name)
    return found


def _children_first(circuits: Mapping[str, Circuit]) -> Iterator[Circuit]:
    def depth(circuit: Circuit) -> int:
        steps = 0
        while circuit.parent is not None:
            circuit, steps = circuits[circuit.parent], steps + 1
        return steps

    yield from sorted(circuits.values(), key=depth, reverse=True)


def _measured(circuit: Circuit, reading: Metered, now_s: float, fresh_s: float) -> BaseLoad | None:
    """Return the base load that a reading shows, or None where it shows none.

    Per phase, the reading's active current less the EVSEs' is the base load's; what is left of the magnitude is
    reactive and is not touched by EVSEs whose power factor is 1. It adds up to the reactive power where the meter does
    not show that. Each phase, and each of load and generators, may be left without the others.
    """
    if reading.quality is not Quality.GOOD or not 0 <= now_s - reading.read_at_s <= fresh_s:
        return None
    if reading.active_w is None:
        return None
    values = (*reading.current_a, *reading.active_w, *reading.evse_low_a, *reading.evse_high_a)
    generated = (*reading.generated_a, *reading.generated_reactive_a, reading.generated_var)
    if not all(map(math.isfinite, (*values, *generated, reading.reactive_var or 0.0))):
        return None
    volts = circuit.neutral_voltage_v
    low_a, high_a = [0.0] * 3, [0.0] * 3
    low_w = high_w = reactive_var = 0.0
    for index, (current_a, active_w) in enumerate(zip(reading.current_a, reading.active_w, strict=True)):
        active_a = active_w / volts
        reactive_a = math.sqrt(max(current_a * current_a - active_a * active_a, 0.0))
        reactive_var += reactive_a * volts
        reactive_a += reading.evse_var / volts
        given_a, given_reactive_a = reading.generated_a[index], reading.generated_reactive_a[index]
        least = min(active_a - reading.evse_high_a[index], -given_a, 0.0)
        most = max(active_a - reading.evse_low_a[index] + given_a, 0.0)
        high_a[index] = math.hypot(most, reactive_a + given_reactive_a)
        low_a[index] = -math.hypot(least, max(reactive_a, given_reactive_a))
        low_w += least * volts
        high_w += most * volts
    if reading.reactive_var is not None:
        reactive_var = abs(reading.reactive_var)
    beside = ", generators' meters beside it" if any(generated) else ""
    if reading.unheard:
        beside = f", {_silent(reading.unheard)} counted at its circuit's rating"
    return BaseLoad(
        circuit=circuit.name,
        source=f"base load of {circuit.name}, measured{beside}",
        low_a=(low_a[0], low_a[1], low_a[2]),
        high_a=(high_a[0], high_a[1], high_a[2]),
        low_w=low_w,
        high_w=high_w,
        reactive_var=reactive_var + reading.evse_var + reading.generated_var,
        apparent_va=None,
        evse_taken_w=sum(max(low, 0.0) for low in reading.evse_low_a) * volts,
        evse_given_w=sum(max(-high, 0.0) for high in reading.evse_high_a) * volts,
    )


def _silent(meters: Sequence[str]) -> str:
    return f"the generator's meter {' and '.join(meters)} is silent and"


def _assumed(circuit: Circuit, beneath: list[tuple[Circuit, BaseLoad]], reading: Metered | None) -> BaseLoad:
    volts = circuit.neutral_voltage_v
    low_a, high_a = [0.0] * 3, [0.0] * 3
    own_va = sum(circuit.base_load_a) * volts
    low_w, high_w, reactive_var, apparent_va = 0.0, own_va, own_va, own_va
    for child, load in beneath:
        ratio = child.neutral_voltage_v / volts
        if abs(ratio - 1) <= SAME_VOLTAGE:
            ratio = 1.0
        for sums, part in ((low_a, load.low_a), (high_a, load.high_a)):
            for index, current_a in enumerate(part):
                sums[index] += current_a * ratio
        low_w += load.low_w
        high_w += load.high_w
        reactive_var += load.reactive_var
        known_va = math.hypot(max(load.high_w, -load.low_w), load.reactive_var)
        apparent_va += known_va if load.apparent_va is None else load.apparent_va
    if circuit.connection is Connection.DELTA_WYE:
        low_a, high_a = _delta_lines(low_a), _delta_lines(high_a)
    high_a = [current_a + own_a for current_a, own_a in zip(high_a, circuit.base_load_a, strict=True)]
    why = "configured worst case"
    if reading is not None:
        unknown = f"{_silent(reading.unheard)} may hide more" if reading.unheard else "its meter is stale or bad"
        why = f"{unknown}, so the configured worst case"
    return BaseLoad(
        circuit=circuit.name,
        source=f"base load of {circuit.name}: {why}",
        low_a=(low_a[0], low_a[1], low_a[2]),
        high_a=(high_a[0], high_a[1], high_a[2]),
        low_w=low_w,
        high_w=high_w,
        reactive_var=reactive_var,
        apparent_va=apparent_va,
    )


def _delta_lines(windings_a: list[float]) -> list[float]:
    """Return the worst that each delta line carries of the two wye-side currents that may meet in it."""
    return [
        (own + max(windings_a[:place] + windings_a[place + 1 :], key=abs)) / _SQRT3
        for place, own in enumerate(windings_a)
    ]


# --- sources ----------------------------------------------------------------------------------------------------------


def circuits(circuits: Mapping[str, Circuit], base: Mapping[str, BaseLoad]) -> tuple[Limit, ...]:
    """Return what each circuit leaves to EVSEs: A per phase, and VA for all together, less the base load.

    Protection. A kVA rating less a base load of known angle is its circle's least distance from that load.
    """
    limits: list[Limit] = []
    for circuit in circuits.values():
        load = base[circuit.name]
        source = f"circuit {circuit.name} ({load.source})"
        for phase, rating_a, low_a, high_a in zip(PHASES, circuit.rating_a, load.low_a, load.high_a, strict=True):
            limits.append(
                Limit(
                    target=circuit.name,
                    quantity=LimitQuantity.CURRENT,
                    phases=(phase,),
                    low=min(-rating_a - low_a, 0.0),
                    high=max(rating_a - high_a, 0.0),
                    source=source,
                    rank=Rank.PROTECTION,
                )
            )
        if circuit.rating_kva is not None:
            limits.append(
                Limit(
                    target=circuit.name,
                    quantity=LimitQuantity.APPARENT_POWER,
                    low=0.0,
                    high=max(circuit.rating_kva * 1000 - _magnitude_va(load), 0.0),
                    source=source,
                    rank=Rank.PROTECTION,
                )
            )
    return tuple(limits)


def _magnitude_va(load: BaseLoad) -> float:
    if load.apparent_va is not None:
        return load.apparent_va
    return math.hypot(max(load.high_w, -load.low_w), load.reactive_var)


def site(
    limit_va: float, base: BaseLoad, evse_var: float = 0.0, *, power_factor: float = 1.0, offered_w: float = 0.0
) -> tuple[Limit, ...]:
    """Return SITE_LIMIT_KVA as what EVSEs may take or give in W, with reactive power in it. Protection.

    Where the base load's active and reactive power are known: P = sqrt(S^2 - Q^2), with Q the largest that the base
    load and the EVSEs may have together, less the base load's active power. Where only its magnitude is known, that
    comes off S first: |base + EVSEs| <= |base| + |EVSEs|.

    EVSEs have reactive power of their own. What they have now the meter shows, and it is in Q; what a raise brings is
    not known before, so a raise is by no more than is left of S, whatever its angle. Once it is measured the rest of S
    can follow: nothing is lost for good. What was offered so is not taken back where vehicles take less of it.

    :param limit_va: the site's limit in VA
    :param base: of the root circuit
    :param evse_var: the most reactive power that EVSEs and storage are told to exchange, by magnitude
    :param power_factor: the least of what EVSEs draw for each W that they are told: of those that are told A it is 1
    :param offered_w: what EVSEs were to have by the last limits
    """
    high_w = _raised(limit_va, base, base.high_w, base.evse_taken_w, abs(evse_var), power_factor, offered_w)
    low_w = -_raised(limit_va, base, -base.low_w, base.evse_given_w, abs(evse_var), power_factor)
    return (
        Limit(
            target=SITE,
            quantity=LimitQuantity.ACTIVE_POWER,
            low=min(low_w, 0.0),
            high=max(high_w, 0.0),
            source=f"site limit {limit_va / 1000:g} kVA ({base.source})",
            rank=Rank.PROTECTION,
        ),
    )


def _raised(  # noqa: PLR0917 - what `site` knows of one side
    limit_va: float,
    base: BaseLoad,
    base_w: float,
    evse_w: float,
    evse_var: float,
    power_factor: float,
    offered_w: float = 0.0,
) -> float:
    """Return how much EVSEs may take, or give, of a site's limit: `base_w` beside them, `evse_w` flows already."""
    if base.apparent_va is not None:
        return _leg(limit_va - base.apparent_va, evse_var) * power_factor
    reactive_var = base.reactive_var + evse_var
    left_va = max(limit_va - math.hypot(base_w + evse_w, reactive_var), 0.0)
    return min(_leg(limit_va, reactive_var) - base_w, max(evse_w + left_va * power_factor, offered_w))


def _leg(hypotenuse: float, other: float) -> float:
    return math.sqrt(hypotenuse * hypotenuse - other * other) if hypotenuse > abs(other) else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What somebody asks of a target: from `start_s` inclusive to `end_s` exclusive, between `low_w` and `high_w`.

    For "site" the figures are of the whole site, base load included, as a grid operator's meter sees it.
    """

    source: str
    high_w: float = math.inf
    low_w: float = -math.inf
    start_s: float | None = None
    end_s: float | None = None
    target: str = SITE


def grid(asks: Iterable[Ask], base: BaseLoad) -> tuple[Limit, ...]:
    """Return what the grid's events, and its default limit, leave to EVSEs."""
    return tuple(asked(ask, Rank.GRID, base) for ask in asks)


def operator(asks: Iterable[Ask], base: BaseLoad) -> tuple[Limit, ...]:
    """Return what the depot's operator has asked."""
    return tuple(asked(ask, Rank.OPERATOR, base) for ask in asks)


def asked(ask: Ask, rank: Rank, base: BaseLoad) -> Limit:
    """Return what one ask leaves to EVSEs, by its rank; `base` is the root circuit's."""
    low_w, high_w = ask.low_w, ask.high_w
    if ask.target == SITE:
        # A limit on import asks for no discharge against the base load, nor one on export for charging.
        low_w = min(low_w - base.low_w, 0.0) if low_w <= 0 else max(low_w - base.low_w, 0.0)
        high_w = max(high_w - base.high_w, 0.0) if high_w >= 0 else high_w - base.high_w
        high_w = max(low_w, high_w)
    return Limit(
        target=ask.target,
        quantity=LimitQuantity.ACTIVE_POWER,
        low=low_w,
        high=high_w,
        source=ask.source,
        rank=rank,
        start_s=ask.start_s,
        end_s=ask.end_s,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tariff:
    """One period of a price, per kWh in the contract's currency, from `start_s` inclusive to `end_s` exclusive."""

    per_kwh: float
    start_s: float
    end_s: float


def price(
    periods: Iterable[Tariff], base: BaseLoad, *, dear_per_kwh: float, dear_w: float, target: str = SITE
) -> tuple[Limit, ...]:
    """Return a limit of `dear_w` for each period whose price is `dear_per_kwh` or above."""
    return tuple(
        asked(
            Ask(
                source=f"price {period.per_kwh:g}/kWh",
                high_w=dear_w,
                start_s=period.start_s,
                end_s=period.end_s,
                target=target,
            ),
            Rank.PRICE,
            base,
        )
        for period in periods
        if period.per_kwh >= dear_per_kwh
    )


def ratings(evse: Evse, session: Session | None = None) -> tuple[Limit, ...]:
    """Return what an EVSE, its cable and the vehicle at it can carry. Protection.

    A per conductor for EVSE and cable. W for the vehicle: what it takes at the most, where that is known, and what it
    may give back; without a session, or with a vehicle that gives nothing back, no discharge.
    """
    weakest = "cable" if evse.cable_a is not None and evse.cable_a < evse.rating_a else "rating"
    limits = [
        Limit(
            target=evse.name,
            quantity=LimitQuantity.CURRENT,
            phases=evse.phases,
            low=-evse.limit_a,
            high=evse.limit_a,
            source=f"{weakest} of {evse.name}",
            rank=Rank.PROTECTION,
        )
    ]
    what = "storage" if evse.stationary else "vehicle at" if session is not None else "no vehicle at"
    discharge_w = 0.0 if session is None else max(session.discharge_w, 0.0)
    power_w = math.inf if session is None or session.power_w is None else max(session.power_w, 0.0)
    limits.append(
        Limit(
            target=evse.name,
            quantity=LimitQuantity.ACTIVE_POWER,
            low=-discharge_w,
            high=power_w,
            source=f"{what} {evse.name}",
            rank=Rank.PROTECTION,
        )
    )
    return tuple(limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ramp:
    """How fast a flow may change, in the quantity's unit per s; infinite: at once."""

    up_per_s: float = math.inf
    down_per_s: float = math.inf


def ramp(evse: Evse, rates: Ramp, previous_a: float, previous_at_s: float, now_s: float) -> tuple[Limit, ...]:
    """Return how far an EVSE's current may have moved from its previous setpoint, in A per conductor.

    The lowest rank of all: a ramp is a comfort and never stands in the way of a shed or a protection.

    :raises ValueError: the previous setpoint lies in the future
    """
    elapsed_s = now_s - previous_at_s
    if elapsed_s < 0:
        raise ValueError(f"found a previous setpoint {-elapsed_s:g} s after now, expected one before it")

    def reach(per_s: float) -> float:
        return math.inf if math.isinf(per_s) else per_s * elapsed_s

    return (
        Limit(
            target=evse.name,
            quantity=LimitQuantity.CURRENT,
            phases=evse.phases,
            low=previous_a - reach(rates.down_per_s),
            high=previous_a + reach(rates.up_per_s),
            source=f"ramp of {evse.name}",
            rank=Rank.PRICE,
        ),
    )
