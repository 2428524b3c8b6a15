# SPDX-License-Identifier: Apache-2.0
"""A VTN that has ended the registration is left alone, also by a process that starts after that."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from agent.tests.grid_gateway.scripted_vtn import VEN_ID
from agent.tests.grid_gateway.test_promises import Play
from agent.tests.grid_gateway.test_ven import within
from agent.tests.grid_gateway.vtn_messages import payload

from derms_agent.grid_gateway.ven import ENDS, Cancelled, Identity, Registration

pytestmark = pytest.mark.anyio
ENDED = payload(
    "<oadr:oadrCancelPartyRegistration><pyld:requestID>r</pyld:requestID><ei:registrationID>reg-1</ei:registrationID>"
    f"<ei:venID>{VEN_ID}</ei:venID></oadr:oadrCancelPartyRegistration>"
)


@pytest.fixture
async def play(tmp_path: Path) -> Play:
    """Return a play whose VTN has just ended the registration: for 330 s it is to be left alone."""
    made = Play(tmp_path)
    await end(made)
    return made


async def end(play: Play) -> None:
    play.vtn.script["oadrPoll"] = [ENDED]
    with pytest.raises(Cancelled):
        await play.ven._drain(VEN_ID)


def restart(play: Play, client_id: str | None = None) -> None:
    """Begin as a process does that is started anew, without a registration but what is on the disk."""
    play.renew()
    play.ven.registration = None
    play.ven.identity = Identity(ven_name="depot", client_id=client_id)
    play.ven._save_registration()
    play.ven.recall()
    play.vtn.asked.clear()


async def asked_within(play: Play, seconds: float) -> set[str]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(play.ven.run)
        await anyio.sleep(seconds)
        tasks.cancel_scope.cancel()
    return play.vtn.kinds()


async def test_it_is_left_alone_after_a_restart_for_what_is_left(play: Play) -> None:
    play.now_s = 200.0
    restart(play)
    assert await asked_within(play, 0.3) == set()
    assert "ended the registration" in (play.ven.trouble or "")
    assert play.ven._away_until_s == pytest.approx(360.0)
    assert not play.ven.link_lost

    play.now_s = 370.0
    restart(play)
    assert "oadrCreatePartyRegistration" in await asked_within(play, 0.3)


async def test_one_that_ends_it_again_and_again_is_left_alone_for_longer_over_restarts(play: Play) -> None:
    pauses_s = []
    for _ in range(3):
        play.now_s = play.ven._away_until_s + 60.0
        restart(play)
        play.ven.registration = Registration(("https://localhost:1", ""), VEN_ID, "VTN-1", "reg-1", 10.0)
        await end(play)
        pauses_s.append(play.ven._away_until_s - play.now_s)
    assert pauses_s == pytest.approx([420.0, 540.0, 660.0])

    play.now_s = play.ven._away_until_s + 3700.0  # it was well for over an hour
    restart(play)
    play.ven.registration = Registration(("https://localhost:1", ""), VEN_ID, "VTN-1", "reg-1", 10.0)
    await end(play)
    assert play.ven._away_until_s - play.now_s == pytest.approx(360.0)


async def test_a_person_who_wants_it_asked_is_not_kept_waiting(play: Play) -> None:
    restart(play)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(play.ven.run)
        await anyio.sleep(0.1)
        assert play.vtn.kinds() == set()
        play.ven.wake()
        await within(2, lambda: play.vtn.count("oadrCreatePartyRegistration"))
        tasks.cancel_scope.cancel()
    play.ven.join()
    restart(play)
    assert "oadrCreatePartyRegistration" in await asked_within(play, 0.3)


async def test_a_depot_that_leaves_meanwhile_is_not_registered_after_it(play: Play) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(play.ven.run)
        await anyio.sleep(0.1)
        play.vtn.asked.clear()
        await play.ven.cancel_registration()
        play.ven._away_until_s = play.now_s
        play.ven.wake()
        await anyio.sleep(0.2)
        assert play.vtn.kinds() == set()
        tasks.cancel_scope.cancel()


async def test_another_vtn_or_id_is_not_what_has_ended_it_nor_a_clock_that_was_years_off(play: Play) -> None:
    restart(play, client_id="another")
    assert "oadrCreatePartyRegistration" in await asked_within(play, 0.3)
    play.stepped_s = -1e9
    restart(play)
    assert play.ven._away_until_s == play.now_s + 3900.0


async def test_what_cannot_be_read_of_it_is_put_aside(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    (play.directory / ENDS).write_text('{"version": 1}', encoding="utf-8")
    restart(play)
    assert "ends.json" in caplog.text
    assert "oadrCreatePartyRegistration" in await asked_within(play, 0.3)
