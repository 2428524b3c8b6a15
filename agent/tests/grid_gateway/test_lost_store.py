# SPDX-License-Identifier: Apache-2.0
"""What the depot was handed is not let go of because the gateway has forgotten why."""

from __future__ import annotations

from pathlib import Path

import pytest
from agent.tests.grid_gateway.scripted_vtn import VTN_ID
from agent.tests.grid_gateway.test_promises import Play, an_event

from derms_agent.grid_gateway.event_store import EVENTS, JOURNAL
from derms_agent.grid_gateway.ven import Registration

pytestmark = pytest.mark.anyio


@pytest.fixture
async def play(tmp_path: Path) -> Play:
    """Return a play in the middle of an event."""
    made = Play(tmp_path)
    await made.until(20)
    await made.take(an_event("e1", 1, 0, 3600))
    await made.until(30)
    return made


@pytest.mark.parametrize("how", ["broken", "gone"])
async def test_bounds_go_on_where_the_events_are_lost_until_the_vtn_says_what_it_has(play: Play, how: str) -> None:
    (play.directory / JOURNAL).unlink()
    if how == "broken":
        (play.directory / EVENTS).write_text("{", encoding="utf-8")
    else:
        (play.directory / EVENTS).unlink()
    play.renew()
    assert play.ven.state.events == {}
    await play.until(100)
    (bound,) = play.depot.bounds.values()  # the VTN is not there
    assert bound.high_w == 60_000.0

    # It has another by now: that is all that holds then.
    assert await play.take(an_event("e2", 3, 100, 3600)) == {"e2": (200, "optIn")}
    await play.until(120)
    assert play.held_to() == [("e2", 0.0)]
    assert {one.key[1] for one in play.depot.bounds.values()} == {"e2"}


async def test_a_vtn_that_has_nothing_any_more_has_bounds_of_lost_events_let_go(play: Play) -> None:
    (play.directory / JOURNAL).unlink()
    (play.directory / EVENTS).unlink()
    play.renew()
    await play.take()
    await play.until(50)
    assert play.depot.bounds == {}


async def test_what_is_known_to_be_over_is_let_go_whether_or_not_the_vtn_is_there(play: Play) -> None:
    bounds = dict(play.depot.bounds)
    await play.take()
    assert play.depot.bounds == {}
    play.depot.bounds.update(bounds)  # as if it had been away just then
    play.renew()
    await play.until(50)
    assert play.depot.bounds == {}


async def test_a_vtn_is_not_answered_about_the_events_of_another(play: Play) -> None:
    play.ven._unanswered.add((VTN_ID, "e1"))
    play.ven.registration = Registration(("https://localhost:1", ""), "ven-1", "VTN-2", "reg-1", 10.0)
    await play.ven._answer_late()
    assert play.vtn.messages("oadrCreatedEvent") == []
    assert not play.ven._unanswered
