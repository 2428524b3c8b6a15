# SPDX-License-Identifier: Apache-2.0
"""A day of control keeps no more in memory than its first hour did.

Every second of the day is played, at the processor's pace: readings, cycle, writes and proofs, and beside them what
the service does. Each hour is another one: vehicles come and go, asks are put and end, devices fall silent and return,
base load and frequency move, and now and then the report is made, and the ledger is stored and read again. At an hour's
end nobody is there, so that what is left is what somebody forgot. DERMS_HOURS=24 plays it (`make endurance`).
"""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from derms_agent.control import demand, droop, guard
from derms_agent.control import ledger as book
from derms_agent.model import Rank
from derms_agent.orchestrator import planning
from derms_agent.orchestrator.asks import Ask
from derms_agent.orchestrator.controller import Told
from derms_agent.orchestrator.report import Alarms, Running, explanation, report, troubles

if TYPE_CHECKING:
    from agent.tests.orchestrator.conftest import MakePlay, Play

logger = logging.getLogger(__name__)
HOURS = int(os.environ.get("DERMS_HOURS", "0"))
HOUR_S = 3600
EMPTY_FROM_S = 3000
GROWN_BLOCKS = 1000
GROWN_MIB = 4.0
"""Of blocks that Python has allocated, and of the process's memory, from the first hour's end to the last one's."""


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def used(play: Play) -> tuple[int, float]:
    """Return the blocks that Python has allocated and the process's MiB.

    What the play itself collects is let go, and what the guard remembers: that has a bound, but fills for hours.
    """
    play.writes.clear()
    play.urgent.clear()
    guard._on_step.cache_clear()
    gc.collect()
    return sys.getallocatedblocks(), resident_mib()


def disturb(one: Play, rng: random.Random, second: int, names: list[str]) -> None:
    """Let something happen, as it does in a depot."""
    if second >= EMPTY_FROM_S:
        one.most_a.clear()
        one.silent.clear()
        one.controller.asks.clear()
        return
    name = rng.choice(names)
    match rng.randrange(40):
        case 0 | 1 | 2:
            evse = one.site.evses[one.site.network.place[name]]
            one.most_a[name] = rng.choice([0.5, 0.8, 1.0]) * evse.limit_a
        case 3:
            one.most_a.pop(name, None)
        case 4:
            end_s = one.now_s + rng.uniform(5, 200)
            target = rng.choice(["site", name])
            rank = rng.choice([Rank.GRID, Rank.OPERATOR, Rank.PRICE])
            high_w = rng.uniform(10_000, 160_000)
            one.controller.put(
                Ask(id=f"ask-{one.now_s}", source="somebody", rank=rank, target=target, high_w=high_w, end_s=end_s)
            )
        case 5:
            one.silent = set(rng.sample([*one.site.devices], rng.randrange(3)))
        case 6 if name in one.controller.sessions:
            departure_at_s = one.now_s + rng.uniform(600, 9000)
            one.controller.tell(name, Told(departure_at_s=departure_at_s, energy_need_wh=rng.uniform(1e3, 5e4)))
        case 7:
            one.base_a = tuple(rng.uniform(5, 60) for _ in range(3))  # type: ignore[assignment]
        case 8:
            one.frequency_hz = 50 + rng.uniform(-0.3, 0.3)


@pytest.mark.skipif(
    not HOURS, reason="a simulated day takes a quarter of an hour: DERMS_HOURS=24, as in make endurance"
)
def test_memory_is_flat_from_the_first_hour_to_the_last(play: MakePlay) -> None:
    one = play(droop=droop.Settings(nominal_hz=50.0), demand_cap=demand.Cap(cap_w=150_000.0))
    controller, alarms = one.controller, Alarms()
    names = [evse.name for evse in one.site.evses]
    rng = random.Random(5)  # noqa: S311
    seen: list[tuple[int, float]] = []
    for hour in range(1, HOURS + 1):
        for second in range(HOUR_S):
            disturb(one, rng, second, names)
            outcome = one.step()
            alarms.hold(troubles(controller, outcome, one.now_s), one.now_s)
            if second % 60 == 0:
                running = Running(cycles=second, median_ms=1.0, p99_ms=1.0, last_ms=1.0, buses={}, unix_s=one.now_s)
                json.dumps(report(controller, outcome, alarms, running, one.now_s), default=str)
                explanation(controller, outcome, rng.choice(names), one.now_s)
                stored = book.to_json(controller.state.ledger, "boot-1", one.now_s)
                book.from_json(stored, one.site.stations.values(), "boot-1", one.now_s)
            if second % 300 == 0 and (needs := controller.needs()):
                controller.plan = planning.answer(planning.question(controller, needs, one.now_s))
        assert not controller.sessions
        seen.append(used(one))
        logger.info("after %d h: %d blocks, %.1f MiB", hour, *seen[-1])
    (blocks_first, mib_first), (blocks_last, mib_last) = seen[0], seen[-1]
    assert blocks_last - blocks_first <= GROWN_BLOCKS
    assert mib_last - mib_first <= GROWN_MIB
