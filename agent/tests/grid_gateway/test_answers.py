# SPDX-License-Identifier: Apache-2.0
"""Who wants no answer gets none, whatever is wrong with what it sent; and all others get theirs."""

from __future__ import annotations

import time
from dataclasses import replace

import anyio
import pytest
from agent.tests.grid_gateway.scripted_vtn import sent
from agent.tests.grid_gateway.test_promises import NOW, OURS, Play, an_event, play
from agent.tests.grid_gateway.test_ven import within
from agent.tests.grid_gateway.vtn_messages import distribute

from derms_agent.grid_gateway import reports
from derms_agent.grid_gateway.incoming import parse
from derms_agent.grid_gateway.transport import Kind, Trouble

__all__ = ["play"]
pytestmark = pytest.mark.anyio
VARIANTS = {
    "sound": ({}, {}),
    "of another VTN": ({}, {"vtn_id": "VTN-2"}),
    "for others": ({"targets": "<ei:venID>ven-2</ei:venID>"}, {}),
    "broken": ({"priority": "<ei:priority>x</ei:priority>"}, {}),
    "a test": ({"test": "<ei:testEvent>true</ei:testEvent>"}, {}),
    "cancelled": ({"status": "cancelled"}, {}),
}


@pytest.mark.parametrize("how", VARIANTS)
async def test_an_answer_is_sent_for_each_event_that_wants_one(play: Play, how: str) -> None:
    of_event, of_message = VARIANTS[how]
    events = [an_event(wants, 1, 0, 600, response_required=wants, **of_event) for wants in ("never", "always")]
    await play.ven._take(parse(distribute(*events, **{"vtn_id": "VTN-1", **of_message})))
    (answer,) = play.vtn.messages("oadrCreatedEvent")
    assert "<ei:eventID>always<" in answer
    assert "<ei:eventID>never<" not in answer
    # Alone, there is nothing to answer.
    await play.ven._take(parse(distribute(events[0], **{"vtn_id": "VTN-1", **of_message})))
    assert play.vtn.count("oadrCreatedEvent") == 1


async def test_what_wants_no_answer_gets_none_later_either(play: Play) -> None:
    """Control was away when it came: that it is obeyed now nobody asked to be told."""
    play.depot.down = True
    listed = [an_event(wants, 1, at_s, 600, response_required=wants) for wants, at_s in (("never", 0), ("always", 900))]
    assert await play.take(*listed) == {"always": (469, "optOut")}
    play.depot.down = False
    await play.until(10)
    assert play.held_to() == [("never", 60_000.0)]
    await play.ven._answer_late()
    (answer,) = play.vtn.messages("oadrCreatedEvent")
    assert "<ei:eventID>always<" in answer
    assert "optIn" in answer
    await play.ven._answer_late()
    assert play.vtn.count("oadrCreatedEvent") == 1


async def test_what_is_over_two_days_ahead_is_answered_at_once_and_handed_over_nearer_to_it(play: Play) -> None:
    hour_s = 3600.0
    listed = an_event("e1", 1, 72 * hour_s, hour_s)
    assert await play.take(listed) == {"e1": (200, "optIn")}
    assert play.depot.bounds == {}
    play.now_s = 23 * hour_s
    await play.until(play.now_s + 10)
    assert play.depot.bounds == {}
    play.now_s = 24 * hour_s
    await play.until(play.now_s + 10)
    assert play.depot.high_w() == [60_000.0]
    assert play.held_to() == []


DEEP_ALONE = replace(OURS, levels={3: OURS.levels[3]})
"""The rules of a depot file that has a level 1 no longer."""


async def test_what_is_opted_out_of_is_said_also_while_nothing_can_be_promised(play: Play) -> None:
    listed = an_event("mild", 1, 0, 3600), an_event("deep", 3, 3600, 60)
    assert await play.take(listed[0]) == {"mild": (200, "optIn")}
    play.depot.down = True
    assert await play.take(*listed) == {"mild": (200, "optIn"), "deep": (469, "optOut")}
    play.ven.rules = DEEP_ALONE
    await play.until(10)
    for _again in range(2):
        await play.ven._answer_late()
        (answer,) = play.vtn.messages("oadrCreatedEvent")
        assert ">mild<" in answer
        assert "optOut" in answer
    play.depot.down = False
    await play.until(20)
    await play.ven._answer_late()
    _, answer = play.vtn.messages("oadrCreatedEvent")
    assert ">deep<" in answer
    assert "optIn" in answer


async def test_what_is_opted_out_of_while_the_vtn_takes_another_answer_is_said_after_that(play: Play) -> None:
    play.depot.down = True
    await play.take(an_event("mild", 1, 0, 3600))
    play.depot.down = False
    await play.until(10)

    async def before(_kind: str) -> None:
        play.ven.rules = DEEP_ALONE
        await play.ven._tick()

    play.way.before = before
    for _again in range(3):
        await play.ven._answer_late()
    said_in, said_out = play.vtn.messages("oadrCreatedEvent")
    assert "optIn" in said_in
    assert "optOut" in said_out


async def test_a_late_answer_does_not_wait_for_a_poll_that_may_be_a_day_away_and_polls_nothing(play: Play) -> None:
    play.ven.clock, play.ven.wall = time.monotonic, lambda: NOW
    assert play.ven.registration is not None
    play.ven.registration = replace(play.ven.registration, poll_s=86400.0)
    play.ven.heard_s = time.monotonic()
    play.ven._offered = reports.data_points(play.ven.offers)  # else the VTN is told of them first
    failed: list[str] = []

    async def fail(kind: str) -> None:
        failed.append(kind)
        raise Trouble(Kind.HTTP, "500")

    listed = sent(an_event("mild", 1, 0, 3600), an_event("deep", 3, 3600, 60))
    play.vtn.standing["oadrRequestEvent"] = listed
    play.depot.down = True
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(play.ven._converse)
        await within(5, lambda: play.ven._between_polls)
        asked = len(play.vtn.asked)
        play.depot.down = False
        await play.ven._tick()
        await within(5, lambda: len(play.vtn.asked) == asked + 2)
        assert all("optIn" in answer for answer in play.vtn.messages("oadrCreatedEvent", asked))

        play.way.before, play.ven.rules = fail, DEEP_ALONE
        for _again in range(3):
            await play.ven._tick()
            await anyio.sleep(0.05)
        assert failed == ["oadrCreatedEvent"]  # and again with the next poll
        play.way.before, play.ven.rules = None, replace(OURS, levels={})
        for _again in range(3):
            await play.ven._tick()
            await anyio.sleep(0.05)
        assert [kind for kind, _ in play.vtn.asked[asked:]] == ["oadrCreatedEvent"] * 4
        assert all("optOut" in answer for answer in play.vtn.messages("oadrCreatedEvent", asked + 2))
        assert play.vtn.count("oadrPoll") == 1
        play.ven.wake()
        await within(5, lambda: play.vtn.count("oadrPoll") == 2)
        tasks.cancel_scope.cancel()
