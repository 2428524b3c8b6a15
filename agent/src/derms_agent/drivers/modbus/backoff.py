# SPDX-License-Identifier: Apache-2.0
"""How long to wait before trying again."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Delays that double up to a ceiling, each drawn anew, so that a thousand connections do not return in step."""

    def __init__(self, first_s: float, most_s: float, draw: Callable[[], float] = random.random) -> None:
        """Take the first and the largest delay in s; `draw` gives numbers from 0 up to 1."""
        self._first_s = first_s
        self._most_s = most_s
        self._draw = draw
        self.attempts = 0
        """How many delays were drawn since the last reset."""

    def next_s(self) -> float:
        """Return the next delay in s: a quarter of the ceiling to the whole of it."""
        ceiling_s = min(self._most_s, self._first_s * 2.0 ** min(self.attempts, 30))
        self.attempts += 1
        return ceiling_s * (0.25 + 0.75 * self._draw())

    def reset(self) -> None:
        """Begin with the first delay again."""
        self.attempts = 0
