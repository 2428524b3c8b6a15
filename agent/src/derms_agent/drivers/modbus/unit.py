# SPDX-License-Identifier: Apache-2.0
"""Whether a unit answers, and how often one that does not is asked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from derms_agent.drivers.modbus.backoff import Backoff

DEAD_AFTER_FAILURES = 3
DEAD_AFTER_S = 1.5
"""A device that is polled each second and falls silent is so declared dead 2.5 s after its last reply."""

FIRST_REST_S = 1.0
LONGEST_REST_S = 10.0


@dataclass(slots=True)
class Unit:
    """What is known of one unit of a bus. Times are the event loop's monotonic clock, in s.

    `failures` counts requests in a row that were sent and got no valid reply; a lost connection is not the unit's
    failure. `silent_since_s` is when the first of them was sent, `shed_at_s` when a shed was sent to it last.
    """

    failures: int = 0
    last_good_s: float | None = None
    silent_since_s: float | None = None
    shed_at_s: float = -math.inf
    _next_try_s: float = 0.0
    _rest: Backoff = field(default_factory=lambda: Backoff(FIRST_REST_S, LONGEST_REST_S))

    def dead(self, now_s: float) -> bool:
        """Whether it must be taken for dead: three failures in a row, or no valid reply for 1.5 s after one."""
        if self.silent_since_s is None:
            return False
        return self.failures >= DEAD_AFTER_FAILURES or now_s - self.silent_since_s >= DEAD_AFTER_S

    def answered(self, now_s: float) -> None:
        """Note a valid reply."""
        self.last_good_s = now_s
        if self.failures:
            self.failures = 0
            self.silent_since_s = None
            self._rest.reset()

    def failed(self, sent_at_s: float, now_s: float) -> None:
        """Note a request without a valid reply."""
        if not self.failures:
            self.silent_since_s = sent_at_s
        self.failures += 1
        if self.dead(now_s) and not self._rest.attempts:
            self._next_try_s = now_s + self._rest.next_s()

    def may_be_asked(self, now_s: float) -> bool:
        """Whether it may be asked what is not urgent; for a dead unit, a Yes puts off the next one, up to 10 s."""
        if not self.dead(now_s):
            return True
        if now_s < self._next_try_s:
            return False
        self._next_try_s = now_s + self._rest.next_s()
        return True
