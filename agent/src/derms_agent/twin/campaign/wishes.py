# SPDX-License-Identifier: Apache-2.0
"""Shares that nobody would work out: some EVSEs want all, some nothing, and they change their minds together."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from random import Random

from derms_agent.control.cycle import Allocated

_WISHES_A = (0.0, 8.0, 32.0, 32.0)
_OF_STORAGE_A = (-32.0, -32.0, -8.0, 0.0, 32.0)


@dataclass(frozen=True, slots=True)
class Share:
    """What somebody gets, in A per conductor, and why."""

    current_a: float
    why: str


class Wishes:
    """What EVSEs wish for, anew every 10 to 60 s; `storage` are those among them that also want to give back."""

    def __init__(self, rng: Random, names: Iterable[str], storage: Collection[str] = ()) -> None:
        self._rng, self._names, self._storage = rng, tuple(names), storage
        self._until_s = -math.inf
        self._now: Mapping[str, Allocated] = {}

    def at(self, now_s: float) -> Mapping[str, Allocated]:
        """Return what they wish for now."""
        if now_s >= self._until_s:
            self._until_s = now_s + self._rng.uniform(10, 60)
            names = list(self._names)
            self._rng.shuffle(names)
            self._now = {
                name: Share(self._rng.choice(_OF_STORAGE_A if name in self._storage else _WISHES_A), "wild")
                for name in names
            }
        return self._now
