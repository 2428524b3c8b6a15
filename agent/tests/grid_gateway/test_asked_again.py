# SPDX-License-Identifier: Apache-2.0
"""Whether the depot can obey is asked until it has said so: over restarts, and for what is days ahead."""

from __future__ import annotations

from pathlib import Path

import pytest
from agent.tests.grid_gateway.scripted_vtn import VTN_ID
from agent.tests.grid_gateway.test_promises import Play, an_event

pytestmark = pytest.mark.anyio
DAY_S = 86400


@pytest.fixture
def play(tmp_path: Path) -> Play:
    return Play(tmp_path)


@pytest.mark.parametrize("start_s", [0, 600])
@pytest.mark.parametrize(("least_w", "opt"), [(70_000.0, "optOut"), (0.0, "optIn")])
async def test_what_the_depot_was_not_asked_about_it_is_asked_after_a_restart(
    play: Play, start_s: float, least_w: float, opt: str
) -> None:
    await play.until(20)
    play.depot.down = True
    listed = an_event("e1", 1, start_s, 3600)
    assert await play.take(listed) == {"e1": (469, "optOut")}
    await play.until(30)
    play.renew()
    await play.ven._answer_late()
    assert play.vtn.messages("oadrCreatedEvent") == []  # nobody knows yet

    play.depot.down, play.depot.least_w = False, least_w
    await play.until(50)
    await play.ven._answer_late()
    (answer,) = play.vtn.messages("oadrCreatedEvent")
    assert opt in answer
    assert ("base load" in answer) == (opt == "optOut")
    assert bool(play.depot.bounds) == (opt == "optIn")
    assert await play.take(listed) == {"e1": (200, opt)}


async def test_what_was_promised_stands_over_a_restart_in_which_a_charger_is_silent(play: Play) -> None:
    await play.until(20)
    assert await play.take(an_event("e1", 1, 600, 3600)) == {"e1": (200, "optIn")}
    await play.until(30)
    play.depot.least_w = 70_000.0
    play.renew()
    await play.until(50)
    await play.ven._answer_late()
    assert play.vtn.messages("oadrCreatedEvent") == []
    assert {one.key[1] for one in play.depot.bounds.values()} == {"e1"}


async def test_what_is_days_ahead_is_asked_about_when_it_is_nearer(play: Play) -> None:
    await play.until(20)
    assert await play.take(an_event("e1", 1, 3 * DAY_S, 3600)) == {"e1": (200, "optIn")}
    play.depot.least_w = 70_000.0
    await play.until(30)
    assert play.ven.state.events[VTN_ID, "e1"].refusal is None
    play.now_s = DAY_S + 60.0
    await play.until(play.now_s + 10)
    await play.ven._answer_late()
    (answer,) = play.vtn.messages("oadrCreatedEvent")
    assert "optOut" in answer
    assert play.depot.bounds == {}
