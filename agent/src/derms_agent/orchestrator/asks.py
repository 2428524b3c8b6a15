# SPDX-License-Identifier: Apache-2.0
"""What others ask of the depot: a limit with a target, a time and a rank, kept on disk. Pure.

People and the grid speak wall-clock time; control counts on a clock that no step moves. Both are kept: an ask's times
are turned into the latter once, when it comes, and anew only after the host restarted, when nothing else is left. The
wall's clock may be wrong then, as on a gateway whose clock stands still without power, until it is set.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from derms_agent.control import limits
from derms_agent.model import Limit, Rank

_NUMBERS = ("low_w", "high_w", "start_unix_s", "end_unix_s", "start_s", "end_s", "baseline_w")
_FIRST_UNIX_S, _LAST_UNIX_S = -62_135_596_800.0, 253_402_300_799.0
"""The years that a time can be shown of."""
_STEP_S = 1.0
"""What moves the wall's clock by more than this, beside control's, is a step."""
RANKS: Mapping[str, Rank] = {"grid": Rank.GRID, "operator": Rank.OPERATOR, "price": Rank.PRICE}


class Clock(str, Enum):
    """By which clock an ask's times stay as they are where the wall's is stepped: those by the other follow."""

    WALL = "wall"
    CONTROL = "control"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A limit that somebody asks for, in W, consumption positive; infinite where a side is not bounded.

    `start_unix_s` and `end_unix_s` are as asked, None for always; `start_s` and `end_s` are the same by the control's
    clock. `goes_by`: by the wall's what was put before the host's start, by control's what is to last for so long;
    None: both stay as they were when it was put. `put_by` is the user who asked. `baseline_w`: what was drawn without
    it, from which whoever asks reckons; it bounds nothing, so that another baseline is no other ask to control.
    """

    id: str
    source: str
    rank: Rank
    target: str = limits.SITE
    low_w: float = -math.inf
    high_w: float = math.inf
    start_unix_s: float | None = None
    end_unix_s: float | None = None
    start_s: float | None = None
    end_s: float | None = None
    put_by: str = ""
    baseline_w: float | None = field(default=None, compare=False)
    goes_by: Clock | None = field(default=None, compare=False)

    def over(self, now_s: float) -> bool:
        """Whether its time is over."""
        return self.end_s is not None and self.end_s <= now_s

    def in_force(self, now_s: float) -> bool:
        """Whether it holds."""
        return (self.start_s is None or self.start_s <= now_s) and not self.over(now_s)


def placed(ask: Ask, now_s: float, now_unix_s: float) -> Ask:
    """Return an ask with its times by the control's clock, from those of the wall."""

    def at(unix_s: float | None) -> float | None:
        return None if unix_s is None else now_s + unix_s - now_unix_s

    return replace(ask, start_s=at(ask.start_unix_s), end_s=at(ask.end_unix_s))


def moved(ask: Ask, wall_ahead_s: float) -> Ask:
    """Return an ask after a step of the wall's clock, which is so far ahead of control's now."""
    times = ((ask.start_unix_s, ask.start_s), (ask.end_unix_s, ask.end_s))
    aheads_s = [unix_s - at_s for unix_s, at_s in times if unix_s is not None and at_s is not None]
    if ask.goes_by is None or all(abs(ahead_s - wall_ahead_s) <= _STEP_S for ahead_s in aheads_s):
        return ask
    if ask.goes_by is Clock.WALL:
        return placed(ask, 0.0, wall_ahead_s)
    return replace(ask, end_unix_s=None if ask.end_s is None else ask.end_s + wall_ahead_s)


def limits_of(asks: Iterable[Ask], base: limits.BaseLoad) -> tuple[Limit, ...]:
    """Return the limits that asks come to; those on the site have the base load taken off."""
    found: list[Limit] = []
    for ask in asks:
        plain = limits.Ask(
            source=ask.source,
            high_w=ask.high_w,
            low_w=ask.low_w,
            start_s=ask.start_s,
            end_s=ask.end_s,
            target=limits.SITE if ask.target == base.circuit else ask.target,
        )
        found.append(limits.asked(plain, ask.rank, base))
    return tuple(found)


def to_json(ask: Ask) -> dict[str, Any]:
    """Return an ask as plain JSON; an infinite side is absent, and a baseline that is not known."""
    found: dict[str, Any] = {"id": ask.id, "source": ask.source, "rank": ask.rank.name.lower(), "target": ask.target}
    for name in _NUMBERS:
        value = getattr(ask, name)
        if value is not None and math.isfinite(value):
            found[name] = value
    if ask.goes_by is not None:
        found["goes_by"] = ask.goes_by.value
    return {**found, "put_by": ask.put_by}


def from_json(stored: Mapping[str, Any]) -> Ask:
    """Return what `to_json` gave. Raises ValueError, TypeError, KeyError or OverflowError for anything else.

    What control or the report would stumble over in each cycle is refused here: a service that ends because of it would
    start with it again.
    """
    numbers = {name: float(stored[name]) for name in _NUMBERS if name in stored}
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise ValueError(f"{name}: found {value}, expected a finite number")
        if name.endswith("_unix_s") and not _FIRST_UNIX_S <= value <= _LAST_UNIX_S:
            raise ValueError(f"{name}: found {value:g}, expected a time in the years 1 to 9999")
    ask = Ask(
        id=str(stored["id"]),
        source=str(stored["source"]),
        rank=RANKS[stored["rank"]],
        target=str(stored["target"]),
        put_by=str(stored["put_by"]),
        goes_by=Clock(stored["goes_by"]) if "goes_by" in stored else None,
        **numbers,
    )
    if ask.low_w > ask.high_w:
        raise ValueError(f"low_w: found {ask.low_w:g}, expected at most high_w, {ask.high_w:g}")
    return ask
