# SPDX-License-Identifier: Apache-2.0
"""Which rows are over their limit although there was time to lower them: a fault, and no settling.

Why it is right: a limit that falls is obeyed within `STAYS_OVER_S`, by writes that are proven within less. So a row is
overdue if for all of that time it was over, and is now over the highest limit that it had in it: no limit that fell
within that time explains it, nor does a limit that goes up and down by a meter's noise, for the highest is compared.
What really stays over is found no later than `STAYS_OVER_S` after the last limit that it would have kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from derms_agent.control.worst_case import Excess
from derms_agent.model import Phase

STAYS_OVER_S = 20.0


@dataclass(slots=True)
class Overdue:
    """The limits, with the time of each in s, that the rows had since they were over."""

    _rows: dict[tuple[str, Phase | None, str], deque[tuple[float, float]]] = field(default_factory=dict)

    def among(self, over: Iterable[Excess], now_s: float) -> tuple[Excess, ...]:
        """Take the rows that are over now, and return those that are overdue; called once a cycle."""
        rows = {(excess.circuit, excess.phase, excess.side): excess for excess in over}
        self._rows = {row: self._rows.get(row, deque()) for row in rows}
        found = []
        for row, excess in rows.items():
            known = self._rows[row]
            known.append((now_s, excess.limit))
            # The first one stands for the beginning of that time.
            while len(known) > 1 and now_s - known[1][0] >= STAYS_OVER_S:
                known.popleft()
            if now_s - known[0][0] >= STAYS_OVER_S and excess.found > max(limit for _, limit in known):
                found.append(excess)
        return tuple(found)
