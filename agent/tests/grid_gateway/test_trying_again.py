# SPDX-License-Identifier: Apache-2.0
"""A VTN that fails is asked at random and ever more seldom, up to a bound; what is no valid answer is none at all."""

from __future__ import annotations

import inspect
from contextlib import suppress
from dataclasses import replace

import anyio
import pytest
from agent.tests.grid_gateway.scripted_vtn import VEN_ID, create_report, report_request
from agent.tests.grid_gateway.test_promises import Play, play
from agent.tests.grid_gateway.vtn_messages import eiresponse, payload
from lxml import etree

from derms_agent.grid_gateway import reports
from derms_agent.grid_gateway.incoming import parse
from derms_agent.grid_gateway.transport import Endpoint, Kind, Trouble, backoff_s
from derms_agent.grid_gateway.ven import Identity, NotRegistered, Refused, Ven

__all__ = ["play"]
EVER_MORE_SELDOM_S = [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
"""Half of 2, 4, 8 and 16 s, and then of two poll intervals of 10 s."""


@pytest.mark.parametrize(("attempt", "longest_s"), [(1, 2.0), (2, 4.0), (3, 8.0), (4, 10.0), (1000, 10.0)])
def test_a_pause_is_any_up_to_one_that_doubles(attempt: int, longest_s: float) -> None:
    shares = (0.0, 0.25, 0.5, 1.0)
    assert [backoff_s(attempt, share, most_s=10.0) for share in shares] == [longest_s * share for share in shares]


@pytest.mark.anyio
async def test_a_vtn_that_fails_is_asked_at_random_and_ever_more_seldom(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    draws = iter([0.5] * 6 + [0.0, 0.1, 0.5, 0.5])
    play.ven.draw = draws.__next__
    answers = {8}  # the ninth attempt has its events listed, and only then fails

    async def before(kind: str) -> None:
        if len(pauses) not in answers or kind != "oadrRequestEvent":
            raise Trouble(Kind.UNREACHABLE, "no")

    with anyio.fail_after(10), anyio.CancelScope() as scope:

        async def pause(_ven: Ven, seconds: float) -> bool:
            pauses.append(seconds)
            play.now_s += 1.0
            if len(pauses) == 10:
                scope.cancel()
                await anyio.sleep(0)
            return False

        play.way.before = before
        monkeypatch.setattr(Ven, "_pause", pause)
        play.ven._offered = reports.data_points(play.ven.offers)
        await play.ven._converse()

    assert pauses == pytest.approx([*EVER_MORE_SELDOM_S, 0.0, 2.0, 1.0, 2.0])


@pytest.mark.anyio
async def test_a_report_that_does_not_arrive_is_sent_at_random_and_ever_more_seldom(play: Play) -> None:
    request = report_request("r", "telemetry-usage", "site-power", "PT10S", "PT10S")
    await play.ven.reply_to(parse(create_report(request).encode()))

    async def before(_kind: str) -> None:
        raise Trouble(Kind.UNREACHABLE, "no")

    play.way.before = before
    pauses = []
    for draw in (0.5,) * 6 + (0.0, 0.1):
        play.ven.draw = lambda draw=draw: draw  # type: ignore[misc]
        play.now_s += 100.0
        await play.ven._try(play.ven.schedules["r"])
        pauses.append(play.ven.schedules["r"].again_s - play.now_s)

    assert pauses == pytest.approx([*EVER_MORE_SELDOM_S, 0.0, 2.0])


def test_luck_is_between_0_and_1_and_another_for_each_depot() -> None:
    draw = inspect.signature(Ven).parameters["draw"].default
    found = [draw() for _ in range(200)]
    assert all(0.0 <= one < 1.0 for one in found)
    assert len({*found}) > 100


def refused(code: int) -> str:
    return payload(f"<oadr:oadrResponse>{eiresponse(code)}<ei:venID>{VEN_ID}</ei:venID></oadr:oadrResponse>")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "answer", [None, "", " \n", "<a/>", "<!DOCTYPE a><a/>", refused(463), refused(459)], ids=lambda one: repr(one)[:20]
)
async def test_what_is_no_valid_answer_is_no_sign_of_life(
    play: Play, answer: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    stands_until_s: list[float] = []

    async def link(valid_for_s: float) -> None:
        stands_until_s.append(play.now_s + valid_for_s)

    alarms: list[str] = []
    play.ven.happened = lambda kind, what: alarms.append(what["words"]) if kind == "alarm" else None
    play.depot.link = link  # type: ignore[method-assign]
    play.vtn.script["oadrPoll"] = [answer] * 100
    while play.now_s < 60:
        await play.until(play.now_s + 5)
        with suppress(Trouble, NotRegistered, Refused):
            await play.ven._drain(VEN_ID)
        assert play.ven.link_lost == (play.now_s > 30)
    # Three intervals of 10 s after the last answer, and the orchestrator was told of no more.
    assert stands_until_s
    assert max(stands_until_s) <= 30
    assert caplog.text.count("Heartbeat Timeout VTN localhost") == 1
    assert len([words for words in alarms if words.startswith("Heartbeat Timeout")]) == 1
    # The first answer that is one lifts it.
    play.vtn.script.clear()
    await play.ven._drain(VEN_ID)
    await play.until(play.now_s + 5)
    assert not play.ven.link_lost
    assert stands_until_s[-1] == play.now_s + 25


@pytest.mark.anyio
async def test_a_vtn_that_says_463_is_registered_with_anew_at_once_and_with_fewer_ids_each_time(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    play.ven.identity = Identity(ven_name="depot", client_id="given")
    play.ven.registration = replace(play.ven._known(), asked_as=play.ven._asked_as)
    pauses: list[float] = []
    play.vtn.script["oadrPoll"] = [refused(463)] * 3

    with anyio.fail_after(10), anyio.CancelScope() as scope:

        async def pause(_ven: Ven, seconds: float) -> bool:
            pauses.append(seconds)
            play.now_s += seconds
            if play.vtn.count("oadrRequestEvent") == 4:
                scope.cancel()
                await anyio.sleep(0)
            return False

        monkeypatch.setattr(Ven, "_pause", pause)
        await play.ven._converse()

    trees = [etree.fromstring(one.encode()) for one in play.vtn.messages("oadrCreatePartyRegistration")]
    asked = [(one.findtext(".//{*}venID"), one.findtext(".//{*}registrationID")) for one in trees]
    assert asked == [(VEN_ID, "reg-1"), ("given", None), (None, None)]
    assert pauses[:2] == [0.0, 0.0]
    assert play.vtn.count("oadrRequestEvent") == 4
    assert play.ven.trouble is None


def test_a_registration_is_worth_nothing_at_another_url_or_as_somebody_else(play: Play) -> None:
    for url, client_id, known in (
        ("https://localhost:1", None, True),
        ("https://localhost:2", None, False),
        ("https://localhost:1", "other", False),
        ("https://localhost:1", None, True),
    ):
        play.ven.transport.endpoint = Endpoint(url=url)
        play.ven.identity = Identity(ven_name="depot", client_id=client_id)
        play.ven.recall()
        assert (play.ven.registration is not None) is known
