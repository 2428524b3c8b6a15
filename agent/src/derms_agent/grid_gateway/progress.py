# SPDX-License-Identifier: Apache-2.0
"""Whether the gateway's loops go on, by which systemd's watchdog is fed. Pure.

Each loop says with every step until when the next is due: after what it is about to wait for, and what a step may take,
in which a VTN or an orchestrator that answers nothing has run through all its time-outs many times. A loop that is not
back by then waits for something that has no end, and only a new process helps.

Times are s of a clock that stands still while the host is suspended, as the loops' own waits do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

CONVERSATION, EVENTS, REPORTS = "conversation with the VTN", "events", "reports"
STEP_S: Mapping[str, float] = {CONVERSATION: 600.0, EVENTS: 60.0, REPORTS: 600.0}
"""How long a step of each loop may take. Requests to a VTN end after some 40 s, those to the orchestrator after 4 s."""


@dataclass(frozen=True, slots=True)
class Progress:
    """When the next step of each loop is due."""

    due_s: Mapping[str, float] = field(default_factory=dict)


def stepped(progress: Progress, loop: str, now_s: float, wait_s: float = 0.0) -> Progress:
    """Return the progress after a step of a loop, which now waits for so long."""
    return replace(progress, due_s={**progress.due_s, loop: now_s + wait_s + STEP_S[loop]})


def prolonged(progress: Progress, loop: str, now_s: float) -> Progress:
    """Return the progress after something that a loop may be waiting behind; it makes nothing due sooner."""
    fresh = stepped(progress, loop, now_s)
    return fresh if fresh.due_s[loop] > progress.due_s.get(loop, now_s) else progress


def stuck(progress: Progress, now_s: float) -> tuple[str, ...]:
    """Return the loops whose next step is overdue."""
    return tuple(loop for loop, due_s in progress.due_s.items() if due_s < now_s)
