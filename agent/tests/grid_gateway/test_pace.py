# SPDX-License-Identifier: Apache-2.0
"""A VTN is polled at its own pace: no faster, whatever the clock does, and at once again for what waits there."""

from __future__ import annotations

import re
from collections.abc import Callable

import anyio
import pytest
from agent.tests.grid_gateway.scripted_vtn import NOTHING_NEW, create_report, registered, report_request, sent
from agent.tests.grid_gateway.test_promises import Play, an_event, play

from derms_agent.grid_gateway.ven import MOST_DRAINED, Ven

__all__ = ["play"]
pytestmark = pytest.mark.anyio
_PACE = re.compile("<oadr:oadrRequestedOadrPollFreq>.*</oadr:oadrRequestedOadrPollFreq>")


def at_pace(duration: str | None) -> str:
    """Return the answer to a query or a registration, in which the VTN wants to be polled so often, or does not say."""
    element = "oadr:oadrRequestedOadrPollFreq"
    said = f"<{element}><xcal:duration>{duration}</xcal:duration></{element}>"
    return _PACE.sub("" if duration is None else said, registered())


@pytest.fixture
def pauses(play: Play, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[float]]:
    """Return what has a session end at a pause, and gives all pauses of it."""
    made: list[float] = []
    most = [1]

    async def pause(_ven: Ven, seconds: float) -> bool:
        made.append(seconds)
        play.now_s += seconds
        if len(made) == most[0]:
            raise EndOfTest
        return False

    monkeypatch.setattr(Ven, "_pause", pause)

    def ending(number: int) -> list[float]:
        most[0] = number
        return made

    return ending


class EndOfTest(Exception):
    """Enough was seen."""


@pytest.mark.parametrize(
    ("query", "answer", "poll_s"),
    [
        ("PT30S", None, 30.0),
        ("PT30S", "PT20S", 20.0),
        (None, "PT2M", 120.0),
        (None, None, 10.0),
        ("PT0S", "PT0S", 10.0),
    ],
)
async def test_a_vtn_is_polled_as_often_as_it_says(
    play: Play, pauses: Callable[[int], list[float]], query: str | None, answer: str | None, poll_s: float
) -> None:
    play.vtn.standing |= {"oadrQueryRegistration": at_pace(query), "oadrCreatePartyRegistration": at_pace(answer)}
    play.ven.registration = None

    async def before(kind: str) -> None:
        play.now_s += 3.0 if kind == "oadrPoll" else 0.0

    play.way.before = before
    with pytest.raises(EndOfTest):
        await play.ven._session()
    assert pauses(0) == [poll_s - 3.0]
    assert play.ven.poll_s == poll_s


@pytest.mark.parametrize("step_s", [3600.0, -3600.0])
async def test_a_step_of_the_clock_amid_a_poll_moves_none(
    play: Play, pauses: Callable[[int], list[float]], step_s: float
) -> None:
    made = pauses(3)

    async def before(kind: str) -> None:
        play.stepped_s += step_s if kind == "oadrPoll" else 0.0

    play.way.before = before
    with pytest.raises(EndOfTest):
        await play.ven._session()
    assert made == [10.0, 10.0, 10.0]
    assert not play.ven.link_lost


async def test_what_waits_is_fetched_without_a_pause_and_a_vtn_that_has_no_end_of_it_is_left_alone(
    play: Play, pauses: Callable[[int], list[float]]
) -> None:
    request = report_request("r", "telemetry-usage", "site-power")
    play.vtn.script["oadrPoll"] = [sent(an_event("e1", 1, 0, 600)), create_report(request), NOTHING_NEW]
    play.vtn.standing["oadrPoll"] = sent(an_event("e1", 1, 0, 600))
    polls: list[int] = []
    made = pauses(2)

    async def before(kind: str) -> None:
        if kind == "oadrPoll":
            polls.append(len(made))

    play.way.before = before
    with anyio.fail_after(20), pytest.raises(EndOfTest):
        await play.ven._session()
    assert (polls.count(0), polls.count(1)) == (3, MOST_DRAINED)
    assert [*play.ven.schedules] == ["r"]


async def test_all_events_are_asked_for_when_a_session_begins_and_once_an_hour(
    play: Play, pauses: Callable[[int], list[float]]
) -> None:
    at: list[float] = []
    pauses(800)

    async def before(kind: str) -> None:
        if kind == "oadrRequestEvent":
            at.append(play.now_s)

    play.way.before = before
    with pytest.raises(EndOfTest):
        await play.ven._session()
    assert at == pytest.approx([0.0, 3600.0, 7200.0], abs=20.0)
    # What a lost answer took along comes with that.
    play.vtn.standing["oadrRequestEvent"] = sent(an_event("lost", 1, play.now_s, 600))
    play.ven._sync_s = play.now_s
    pauses(802)
    with pytest.raises(EndOfTest):
        await play.ven._session()
    assert play.held_to() == [("lost", 60_000.0)]
