# SPDX-License-Identifier: Apache-2.0
"""What an event's signals ask of this depot: a bound on its power, or a price. Pure.

| signal | type | what the depot may draw |
| --- | --- | --- |
| SIMPLE | level | what the depot file says of the level; level 0 is as always |
| LOAD_DISPATCH | setpoint | the value |
| | delta | the baseline and the value |
| | multiplier | the baseline times the value |
| LOAD_CONTROL | x-loadControlCapacity | the value times the site's limit |
| | x-loadControlLevelOffset | as SIMPLE |
| | x-loadControlPercentOffset | the baseline, so many percent more: see `_offset_share` |
| | x-loadControlSetpoint | the value |
| ELECTRICITY_PRICE | price | what the depot file says of prices above one that it names; else not bounded |
| | priceRelative, priceMultiplier | not bounded: a schedule of prices |

A power has a unit, powerReal in W with its scale, or the event is refused: a guess could be a thousand times off. The
baseline is what the site drew before the event began. Where that is not known, 0 stands in for it: so much less than a
baseline that nobody knows is surely met by what is that much less than nothing, or by nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from derms_agent.grid_gateway.incoming import Code, Event, Interval, Signal, Targets
from derms_agent.grid_gateway.messages import Window
from derms_agent.model import GridLevel, PriceLimit

SITE = "site"
_LEVELS = (0, 1, 2, 3)
_POWER_UNITS = ("W", "J/s")
_PRICE_ITEM = "currencyPerKWh"
_SIMPLE = {("SIMPLE", "level"), ("simple", "level"), ("LOAD_CONTROL", "x-loadControlLevelOffset")}
_POWERS = {("LOAD_DISPATCH", "setpoint"), ("LOAD_DISPATCH", "delta"), ("LOAD_CONTROL", "x-loadControlSetpoint")}
_SHARES = {
    ("LOAD_DISPATCH", "multiplier"),
    ("LOAD_CONTROL", "x-loadControlCapacity"),
    ("LOAD_CONTROL", "x-loadControlPercentOffset"),
}
_PRICES = {
    ("ELECTRICITY_PRICE", "price"),
    ("ELECTRICITY_PRICE", "priceRelative"),
    ("ELECTRICITY_PRICE", "priceMultiplier"),
}


@dataclass(frozen=True, slots=True)
class Away:
    """A time for which the depot has opted out of the events of one market context; None: of all."""

    window: Window
    market_context: str | None = None

    def meets(self, event: Event, ends_unix_s: float) -> bool:
        """Whether an event that ends then is one of those that the depot takes no part in."""
        begins_unix_s = self.window.start_unix_s
        return (
            self.market_context in {None, event.market_context}
            and begins_unix_s < ends_unix_s
            and event.start_unix_s < begins_unix_s + self.window.duration_s
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Who this VEN is, and what the depot makes of signals.

    `market_contexts`: those that it takes part in; none named: any. `resources`: what each resourceID of the utility's
    stands for: site, a circuit, an EVSE. `unavailable`: what it has opted out of.
    """

    ven_id: str
    vtn_id: str
    site_limit_w: float
    levels: Mapping[int, GridLevel] = field(default_factory=dict)
    price_limit: PriceLimit | None = None
    market_contexts: frozenset[str] = frozenset()
    resources: Mapping[str, str] = field(default_factory=dict)
    groups: frozenset[str] = frozenset()
    unavailable: tuple[Away, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the depot does not take part, with the code that says so; a code of 200 is a choice and no mistake."""

    code: Code
    why: str


def _power(signal: Signal) -> bool:
    return signal.unit is not None and signal.unit.item == "powerReal" and signal.unit.unit in _POWER_UNITS


def refused_signal(signal: Signal, rules: Rules, whole: tuple[str, ...] = (SITE,)) -> Refusal | None:
    """Return why a signal cannot be obeyed, or None where it can.

    :param whole: what its event is for
    """
    own = _places_of(signal, rules, whole)
    if own is None:
        why = f"{signal.name} {signal.type}: found targets that are none of this depot's"
        return Refusal(Code.TARGET_MISMATCH, why)
    part = next((place for place in own if place != SITE), None)
    if part is not None and _of_the_site(signal, rules):
        why = f"{signal.name} {signal.type}: found it for {part}: what it is a share of is known of the site alone"
        return Refusal(Code.SIGNAL_NOT_SUPPORTED, why)
    return _refused_kind(signal, rules)


def _refused_kind(signal: Signal, rules: Rules) -> Refusal | None:
    """Return why a signal cannot be obeyed wherever it is for, or None where it can."""
    kind = (signal.name, signal.type)
    if kind in _SIMPLE:
        return _refused_levels(signal, rules)
    if kind in _POWERS and not _power(signal):
        found = "no unit" if signal.unit is None else f"{signal.unit.item} in {signal.unit.unit}"
        return Refusal(Code.INVALID_DATA, f"{signal.name} {signal.type}: found {found}, expected powerReal in W")
    if kind in _SHARES:
        return _refused_shares(signal)
    if kind in _POWERS | _PRICES:
        return None
    why = "this depot makes no bids" if signal.name.startswith("BID_") else "not supported"
    return Refusal(Code.SIGNAL_NOT_SUPPORTED, f"{signal.name} {signal.type}: {why}")


def _of_the_site(signal: Signal, rules: Rules) -> bool:
    """Whether a signal is about what the site draws, or may draw: nothing is known of that for a part of it."""
    if (signal.name, signal.type) in _SIMPLE:
        levels = (rules.levels.get(int(interval.value)) for interval in signal.intervals)
        return any(level is not None and level.limit_w is None for level in levels)
    return (signal.name, signal.type) in _SHARES or signal.type == "delta"


def _refused_shares(signal: Signal) -> Refusal | None:
    # 1.0 is all of a capacity: who means 50 by 50 % would be given all there is.
    highest = 1.0 if signal.type == "x-loadControlCapacity" else math.inf
    # 100 % less is nothing: there is no more of a baseline to take away.
    lowest = -100.0 if signal.type == "x-loadControlPercentOffset" else 0.0
    for interval in signal.intervals:
        if not lowest <= interval.value <= highest:
            expected = f"at least {lowest:g}" if highest == math.inf else "0 to 1"
            why = f"{signal.name} {signal.type}: found {interval.value:g}, expected {expected}"
            return Refusal(Code.INVALID_DATA, why)
    return None


def _refused_levels(signal: Signal, rules: Rules) -> Refusal | None:
    for interval in signal.intervals:
        if interval.value not in _LEVELS:
            return Refusal(Code.INVALID_DATA, f"{signal.name}: found level {interval.value:g}, expected 0 to 3")
        if interval.value and int(interval.value) not in rules.levels:
            why = f"{signal.name}: level {interval.value:g} has no meaning for this depot"
            return Refusal(Code.SIGNAL_NOT_SUPPORTED, why)
    return None


def by_place(event: Event, rules: Rules) -> dict[str, tuple[Signal, ...]]:
    """Return the signals of an event that the depot goes by, for each of its places.

    An event may say the same in several ways, so that each VEN finds one it knows: SIMPLE is for those that know no
    other, and counts only where there is no other but prices.
    """
    whole = places(event, rules)
    known: dict[str, list[Signal]] = {}
    for signal in event.signals:
        if whole is not None and refused_signal(signal, rules, whole) is None:
            for place in _places_of(signal, rules, whole) or ():
                known.setdefault(place, []).append(signal)
    return {
        place: tuple(found)
        if all(is_simple(one) or is_price(one) for one in found)
        else tuple(one for one in found if not is_simple(one))
        for place, found in known.items()
    }


def is_simple(signal: Signal) -> bool:
    """Whether a signal is of the levels that every VEN knows."""
    return signal.name.upper() == "SIMPLE"


def obeyed(event: Event, rules: Rules) -> tuple[Signal, ...]:
    """Return the signals of an event that the depot goes by anywhere."""
    found = [one for own in by_place(event, rules).values() for one in own]
    return tuple(signal for signal in event.signals if signal in found)


def refused(event: Event, rules: Rules) -> Refusal | None:
    """Return why none of an event's signals can be obeyed, or None where one can."""
    if obeyed(event, rules):
        return None
    whole = places(event, rules) or (SITE,)
    found = [why for signal in event.signals if (why := refused_signal(signal, rules, whole)) is not None]
    codes = {one.code for one in found}
    code = codes.pop() if len(codes) == 1 else Code.SIGNAL_NOT_SUPPORTED
    return Refusal(code, "; ".join(one.why for one in found))


def is_price(signal: Signal) -> bool:
    """Whether a signal is a schedule of prices."""
    return (signal.name, signal.type) in _PRICES


def dear_w(signal: Signal, interval: Interval, rules: Rules) -> float | None:
    """Return what may be drawn at an interval's price, in W; None: it is not bounded, as at one in another unit."""
    limit, unit = rules.price_limit, signal.unit
    if limit is None or signal.type != "price" or unit is None:
        return None
    if (unit.item, unit.unit) != (_PRICE_ITEM, limit.currency):
        return None
    return limit.limit_w if interval.value * unit.scale > limit.above_per_kwh else None


def most_w(signal: Signal, interval: Interval, rules: Rules, baseline_w: float | None) -> float | None:
    """Return what may be drawn in an interval of a signal that can be obeyed, in W; None: it is not bounded."""
    kind, value = (signal.name, signal.type), interval.value
    base_w = 0.0 if baseline_w is None else baseline_w
    if is_price(signal) or (kind in _SIMPLE and value == 0):
        return None
    if kind in _SIMPLE:
        level = rules.levels[int(value)]
        return level.limit_w if level.limit_w is not None else (level.baseline_percent or 0.0) / 100.0 * base_w
    if kind in _POWERS:
        power_w = value * (1.0 if signal.unit is None else signal.unit.scale)
        return base_w + power_w if signal.type == "delta" else power_w
    if signal.type == "x-loadControlCapacity":
        return value * rules.site_limit_w
    if signal.type == "x-loadControlPercentOffset":
        return base_w * (1.0 + _offset_share(value))
    return base_w * value


def _offset_share(value: float) -> float:
    """Return a percent offset as a share.

    The schema says "percentage change" and no more, beside an x-loadControlCapacity whose 1.0 is 100 %: -20 can only be
    20 % less, but -0.2 is either 20 % or 0.2 % less. Where it may be meant either way, what leaves less to draw counts.
    """
    return min(value, value / 100.0) if value >= -1.0 else value / 100.0


def leans_on_baseline(event: Event, rules: Rules) -> bool:
    """Whether what an event comes to depends on what the site draws before it."""
    return any(
        most_w(signal, interval, rules, 0.0) != most_w(signal, interval, rules, 1.0)
        for signal in obeyed(event, rules)
        for interval in signal.intervals
    )


def places(event: Event, rules: Rules) -> tuple[str, ...] | None:
    """Return what of the depot an event is for, or None where it is for others.

    A signal may have targets of its own: see `by_place`.
    """
    return _named(event.targets, rules, (SITE,))


def _places_of(signal: Signal, rules: Rules, whole: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return what a signal of an event that is for `whole` is for, or None where it is for others.

    A signal for the whole site is one for all that its event is for, and no more.
    """
    own = _named(signal.targets, rules, whole)
    return whole if own is not None and SITE in own else own


def _named(targets: Targets, rules: Rules, whole: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return what of the depot is named: all there is (`whole`) where nothing is, or this VEN; None: only others are.

    Resources that are named narrow it down, for a VTN often names the VEN beside them.
    """
    named = tuple(dict.fromkeys(rules.resources[one] for one in targets.resources if one in rules.resources))
    if named:
        return named
    ours = rules.ven_id in targets.vens or any(group in rules.groups for group in targets.groups)
    return whole if targets.all or (ours and not targets.resources) else None
