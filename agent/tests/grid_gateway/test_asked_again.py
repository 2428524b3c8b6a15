# SPDX-License-Identifier: Apache-2.0
"""Whether the depot can obey is asked until it has said so: over restarts, and for what is days ahead."""

from __future__ import annotations

from pathlib import Path

import pytest
from agent.tests.grid_gateway.scripted_vtn import VTN_ID
from agent.tests.grid_gateway.test_promises import Play, an_event

from derms_agent.grid_gateway.control_link import ControlLink, Honour, NoControl, NotJudged, NotReady
from derms_agent.grid_gateway.events import Bound
from derms_agent.socket_protocol import ProtocolError

pytestmark = pytest.mark.anyio
DAY_S = 86400


@pytest.fixture
def play(tmp_path: Path) -> Play:
    return Play(tmp_path)


def judges_not_while(play: Play, early: list[bool], refusal: type[NotReady]) -> None:
    """Have the orchestrator obey, and refuse to judge, until nothing is in `early` any more."""
    put = play.depot.put

    async def judged(bound: Bound) -> Honour:
        honour = await put(bound)
        if early:
            raise refusal("not all devices were heard")
        return honour

    play.depot.put = judged  # type: ignore[method-assign]


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


@pytest.mark.parametrize(("least_w", "opt"), [(70_000.0, "optOut"), (0.0, "optIn")])
async def test_what_control_cannot_judge_yet_is_obeyed_and_asked_again_and_keeps_no_other_waiting(
    play: Play, least_w: float, opt: str
) -> None:
    await play.until(20)
    put, ready = play.depot.put, False

    async def judged(bound: Bound) -> Honour:
        honour = await put(bound)
        if not ready and bound.key[1] == "deep":
            raise NotReady("not all devices were heard")
        return honour

    play.depot.put = judged  # type: ignore[method-assign]
    listed = an_event("deep", 1, 0, 600), an_event("later", 1, 1200, 600)
    assert await play.take(*listed) == {"deep": (469, "optOut"), "later": (200, "optIn")}
    await play.until(30)
    await play.ven._answer_late()
    assert play.vtn.messages("oadrCreatedEvent") == []
    assert play.held_to() == [("deep", 60_000.0)]
    assert len(play.depot.bounds) == 2

    ready, play.depot.least_w = True, least_w
    await play.until(40)
    await play.ven._answer_late()
    (answer,) = play.vtn.messages("oadrCreatedEvent")
    assert ">deep<" in answer
    assert opt in answer
    assert bool(play.held_to()) == (opt == "optIn")


async def test_what_control_cannot_judge_yet_is_put_again_once_it_can_and_no_sooner(play: Play) -> None:
    status, early = play.depot.status, [True]
    judges_not_while(play, early, NotJudged)

    async def told() -> dict[str, object]:
        return {**await status(), "informed": not early}

    play.depot.status = told  # type: ignore[method-assign]
    assert await play.take(an_event("deep", 1, 0, 600)) == {"deep": (469, "optOut")}
    await play.until(40)
    assert len(play.depot.put_at) == 1
    assert play.held_to() == [("deep", 60_000.0)]
    # What is asked for otherwise does not wait, nor does another.
    mild = an_event("mild", 1, 1200, 600)
    assert await play.take(an_event("deep", 3, 0, 600, modification=1), mild) == {
        "deep": (469, "optOut"),
        "mild": (469, "optOut"),
    }
    assert len(play.depot.put_at) == 3
    assert play.held_to() == [("deep", 0.0)]

    early.clear()
    await play.until(45)  # with the very next tick
    assert len(play.depot.put_at) == 5
    await play.ven._answer_late()
    assert [answer.count("optIn") for answer in play.vtn.messages("oadrCreatedEvent")] == [1, 1]
    assert play.ven.control_trouble is None


@pytest.mark.parametrize("gone", [False, True])
async def test_where_nothing_says_whether_it_can_be_judged_by_now_it_is_put_again(play: Play, gone: bool) -> None:
    """As by an orchestrator of before, or by one that has been started anew."""
    early = [True]
    judges_not_while(play, early, NotJudged)

    async def away() -> dict[str, object]:
        raise NoControl("not there")

    if gone:
        play.depot.status = away  # type: ignore[method-assign]
    assert await play.take(an_event("deep", 1, 0, 600)) == {"deep": (469, "optOut")}
    early.clear()
    await play.until(5)
    assert len(play.depot.put_at) == 2
    await play.ven._answer_late()
    (answer,) = play.vtn.messages("oadrCreatedEvent")
    assert "optIn" in answer


@pytest.mark.parametrize("beside", [False, True])
async def test_what_was_promised_stands_while_control_cannot_judge_it_after_a_restart(play: Play, beside: bool) -> None:
    await play.until(20)
    e1, e2 = an_event("e1", 1, 0, 600), an_event("e2", 1, 1200, 600)
    assert await play.take(e1) == {"e1": (200, "optIn")}
    await play.until(30)
    early = [True]
    judges_not_while(play, early, NotReady)
    play.renew()
    await play.until(40)
    listed = [e1, e2] if beside else [e1]
    assert await play.take(*listed) == {"e1": (200, "optIn"), **({"e2": (469, "optOut")} if beside else {})}
    assert (play.ven.control_trouble is None) is not beside
    early.clear()
    await play.until(50)
    assert all(play.ven.handed[name] == bound for name, bound in play.depot.bounds.items())
    await play.ven._answer_late()
    assert len(play.vtn.messages("oadrCreatedEvent")) == beside


async def test_what_control_cannot_judge_yet_counts_as_in_force_and_makes_no_baseline(play: Play) -> None:
    await play.until(20)
    put = play.depot.put

    async def never(bound: Bound) -> Honour:
        await put(bound)
        raise NotReady("not all devices were heard")

    play.depot.put = never  # type: ignore[method-assign]
    await play.take(an_event("deep", 1, 0, 600))
    play.depot.power_w = 60_000.0
    await play.until(100)
    assert [one.key[1] for one in play.ven._in_force()] == ["deep"]
    assert play.ven._baseline() == 80_000.0
    assert [one["event"] for one in play.ven.shown()["bounds"]] == ["deep"]
    await play.until(700)
    assert play.ven.handed == {}


async def test_what_the_orchestrator_says_of_that_is_told_from_its_silence() -> None:
    class Early:
        def ask(self, verb: str, **_arguments: object) -> object:
            raise ProtocolError("not ready", f"{verb}: ask again")

    link = ControlLink(Path("/nonexistent"))
    link._orders._client = Early()  # type: ignore[assignment]
    with pytest.raises(NotJudged, match="ask again"):
        await link.put(
            Bound(name="b", key=("v", "e"), target="site", high_w=1, start_unix_s=0, end_unix_s=9, source="")
        )


async def test_what_control_cannot_judge_yet_is_let_go_where_it_is_cancelled(play: Play) -> None:
    async def never(bound: Bound) -> Honour:
        play.depot.bounds[bound.name] = bound
        raise NotReady("not all devices were heard")

    play.depot.put = never  # type: ignore[method-assign]
    await play.take(an_event("deep", 1, 0, 600))
    assert play.held_to() == [("deep", 60_000.0)]
    await play.take()
    assert play.depot.bounds == {}


async def test_a_full_disk_of_the_orchestrators_keeps_no_event_from_holding_and_none_that_is_cancelled_in_force(
    play: Play,
) -> None:
    old = an_event("old", 1, 0, 600)
    assert await play.take(old) == {"old": (200, "optIn")}
    put, remove, full = play.depot.put, play.depot.remove, [True]

    async def put_unstored(bound: Bound) -> Honour:
        honour = await put(bound)
        if full:
            raise NotReady("limit.put: not stored")
        return honour

    async def removed_unstored(name: str) -> None:
        await remove(name)
        if full:
            raise NotReady("limit.remove: not stored")

    play.depot.put, play.depot.remove = put_unstored, removed_unstored  # type: ignore[method-assign]
    assert await play.take(old, an_event("a", 2, 600, 600), an_event("b", 3, 1200, 600)) == {
        "old": (200, "optIn"),
        "a": (469, "optOut"),
        "b": (469, "optOut"),
    }
    assert {one.key[1] for one in play.depot.bounds.values()} == {"old", "a", "b"}
    listed = an_event("a", 2, 600, 600), an_event("c", 3, 1800, 600)
    assert await play.take(*listed) == {"a": (469, "optOut"), "c": (469, "optOut")}
    assert {one.key[1] for one in play.depot.bounds.values()} == {"a", "c"}
    full.clear()
    await play.until(10)
    assert play.ven.control_trouble is None
    assert await play.take(*listed) == {"a": (200, "optIn"), "c": (200, "optIn")}


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
