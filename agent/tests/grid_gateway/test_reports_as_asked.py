# SPDX-License-Identifier: Apache-2.0
"""A report is sampled and sent as often and as long as the VTN asked for it, and leaves the disk when it has it."""

from __future__ import annotations

import pytest
from agent.tests.grid_gateway.scripted_vtn import (
    UPDATED,
    cancel_report,
    create_report,
    report_request,
)
from agent.tests.grid_gateway.test_promises import NOW, TICK_S, Play, play
from agent.tests.grid_gateway.vtn_messages import payload
from lxml import etree

from derms_agent.grid_gateway import iso8601
from derms_agent.grid_gateway.incoming import parse
from derms_agent.grid_gateway.transport import Kind, Trouble

__all__ = ["play"]
pytestmark = pytest.mark.anyio


async def asked(play: Play, *requests: str) -> None:
    await play.ven.reply_to(parse(create_report(*requests).encode()))


async def goes_by(play: Play, seconds: float) -> None:
    """Let time go by, in which the VEN works on its reports."""
    ends_s = play.now_s + seconds
    while play.now_s < ends_s:
        for schedule in tuple(play.ven.schedules.values()):
            await play.ven._try(schedule)
        play.now_s += TICK_S


def reported(play: Play) -> list[list[str]]:
    """Return of each report that has come how long each of its intervals is said to be."""
    found = [etree.fromstring(one.encode()) for one in play.vtn.messages("oadrUpdateReport")]
    return [[one.findtext("{*}duration/{*}duration") for one in report.iter("{*}interval")] for report in found]


@pytest.mark.parametrize(
    ("every", "back", "in_an_hour"),
    [
        ("PT30S", "PT5M", (12, 10, "PT30S")),
        ("PT1M", "PT15M", (4, 15, "PT60S")),
        ("PT10M", "PT1H", (1, 6, "PT600S")),
        ("PT0S", "PT20M", (3, 1, "PT1200S")),
    ],
)
async def test_as_often_as_it_was_asked_for(
    play: Play, every: str, back: str, in_an_hour: tuple[int, int, str]
) -> None:
    reports, samples, each = in_an_hour
    await asked(play, report_request("r", "telemetry-usage", "site-power", every, back))
    await goes_by(play, 3600 + TICK_S)

    found = reported(play)
    assert len(found) == reports
    # The first begins with a sample of the moment in which it was asked for; each ends with one just before it is sent.
    assert [len(one) for one in found] == [samples + 1] + [samples] * (reports - 1)
    assert {length for one in found for length in one} == {each}


@pytest.mark.parametrize("lost", ["on its way", "by the VTN"])
async def test_no_sample_leaves_the_disk_before_the_vtn_has_it(play: Play, lost: str) -> None:
    fails = [True, True]

    async def before(kind: str) -> None:
        if lost == "on its way" and kind == "oadrUpdateReport" and fails and fails.pop():
            raise Trouble(Kind.CLOSED, "gone")

    play.way.before = before
    refused = UPDATED.replace(">200<", ">459<")
    play.vtn.script["oadrUpdateReport"] = [refused, refused] if lost == "by the VTN" else []
    await asked(play, report_request("r", "telemetry-usage", "site-power", "PT5S", "PT20S"))
    await goes_by(play, 120)
    taken = play.vtn.messages("oadrUpdateReport")[2 if lost == "by the VTN" else 0 :]
    trees = [etree.fromstring(one.encode()) for one in taken]
    at = [start.text for tree in trees for start in tree.iterfind(".//{*}interval//{*}date-time")]
    assert at == [iso8601.time_text(NOW + 5.0 * number) for number in range(len(at))]
    assert len(at) > 20
    # A process that dies before the answer leaves them to its successor.
    play.vtn.script["oadrUpdateReport"] = [None] * 9
    await goes_by(play, 60)
    waiting = play.ven.buffer.count()
    assert waiting > 10
    play.ven.buffer.close()
    assert play.renew().buffer.count() == waiting


async def test_a_report_that_is_to_be_sent_once_is_sent_once(play: Play) -> None:
    await asked(play, report_request("r", "telemetry-status", "site-status", "PT0S", "PT0S"))
    await goes_by(play, 3600)
    assert [len(one) for one in reported(play)] == [1]
    assert not play.ven.schedules
    assert not play.renew().schedules


async def test_a_report_ends_when_the_vtn_says_so_whether_by_itself_or_in_the_answer_to_one(play: Play) -> None:
    for name in ("a", "b", "c"):
        await asked(play, report_request(name, "telemetry-usage", "site-power", "PT10S", "PT10S"))
    await play.ven.reply_to(parse(payload(cancel_report("a")).encode()))
    assert {*play.ven.schedules} == {"b", "c"}
    with_it = UPDATED.replace("<ei:venID>", f"{cancel_report('b')}<ei:venID>")
    play.vtn.script["oadrUpdateReport"] = [with_it]
    await goes_by(play, 15)
    assert [*play.ven.schedules] == ["c"]
    sent = play.vtn.count("oadrUpdateReport")
    await goes_by(play, 60)
    later = play.vtn.messages("oadrUpdateReport")[sent:]
    assert later
    assert all("<ei:reportRequestID>c<" in one for one in later)
    assert [*play.renew().schedules] == ["c"]
