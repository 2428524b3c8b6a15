# SPDX-License-Identifier: Apache-2.0
"""systemd's watchdog is fed while all loops go on, however slow a VTN or a depot is, and no longer than that."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from agent.tests.grid_gateway.scripted_vtn import create_report, report_request
from agent.tests.grid_gateway.test_promises import NOW, Play, an_event
from agent.tests.grid_gateway.test_ven import within
from hypothesis import given
from hypothesis import strategies as st

from derms_agent.grid_gateway import service
from derms_agent.grid_gateway.control_link import Honour
from derms_agent.grid_gateway.events import Bound
from derms_agent.grid_gateway.incoming import parse
from derms_agent.grid_gateway.progress import CONVERSATION, EVENTS, REPORTS, STEP_S, Progress, prolonged, stepped, stuck
from derms_agent.grid_gateway.ven import Registration

pytestmark = pytest.mark.anyio
LOOPS = st.sampled_from([CONVERSATION, EVENTS, REPORTS])


class Clock:
    """The time that the waits are counted on, and how far it was put ahead."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


@pytest.fixture
def awake() -> Clock:
    return Clock()


@pytest.fixture
def play(tmp_path: Path, awake: Clock) -> Play:
    """Return a play in which time goes by itself."""
    made = Play(tmp_path)
    made.ven.clock, made.ven.wall, made.ven.awake = time.monotonic, time.time, awake
    return made


# The logic


@given(st.lists(st.tuples(LOOPS, st.floats(0.0, 1e4), st.floats(0.0, 1e5)), max_size=20), st.floats(0.0, 2e5))
def test_a_loop_is_stuck_once_it_is_not_back_when_its_last_step_said(
    steps: list[tuple[str, float, float]], later_s: float
) -> None:
    now_s, found, last = 0.0, Progress(), dict[str, float]()
    for loop, after_s, wait_s in steps:
        now_s += after_s
        found = stepped(found, loop, now_s, wait_s)
        last[loop] = now_s + wait_s
    now_s += later_s

    assert {*stuck(found, now_s)} == {loop for loop, back_s in last.items() if now_s > back_s + STEP_S[loop]}


@given(st.floats(0.0, 1e5), st.floats(0.0, 1e5))
def test_what_goes_on_before_a_loop_makes_it_due_no_sooner(wait_s: float, now_s: float) -> None:
    before = stepped(Progress(), CONVERSATION, 0.0, wait_s)
    after = prolonged(before, CONVERSATION, now_s)

    assert after.due_s[CONVERSATION] == max(before.due_s[CONVERSATION], now_s + STEP_S[CONVERSATION])


# The loops


async def test_no_loop_is_stuck_in_a_wait_that_a_vtn_wants(play: Play, awake: Clock) -> None:
    play.ven.registration = Registration(("https://localhost:1", ""), "ven-1", "VTN-1", "reg-1", 86400.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(play.ven.run)
        await within(4, lambda: play.vtn.count("oadrPoll"))
        await anyio.sleep(0.1)
        awake.ahead_s = 86400.0
        await anyio.sleep(0.1)  # the two others go on
        assert not play.ven.stuck
        awake.ahead_s = 86400.0 + 2 * STEP_S[CONVERSATION]
        await anyio.sleep(0.1)
        assert play.ven.stuck == (CONVERSATION,)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("stalls", ["oadrPoll", "oadrCreatePartyRegistration", "oadrRequestEvent"])
async def test_a_request_that_never_ends_is_noticed(play: Play, awake: Clock, stalls: str) -> None:
    play.way.stalls = frozenset({stalls})
    if stalls == "oadrCreatePartyRegistration":
        play.ven.registration = None
    asked: list[str] = []

    async def before(kind: str) -> None:
        asked.append(kind)

    play.way.before = before
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(play.ven.run)
        await within(4, lambda: stalls in asked)
        for ahead_s, found in ((STEP_S[CONVERSATION] / 2, ()), (STEP_S[CONVERSATION] + 10.0, (CONVERSATION,))):
            awake.ahead_s = ahead_s
            await anyio.sleep(0.1)
            assert play.ven.stuck == found
        tasks.cancel_scope.cancel()


async def test_a_report_that_never_ends_is_noticed(play: Play, awake: Clock) -> None:
    play.ven.reporting, play.way.stalls = play.way, frozenset({"oadrUpdateReport"})
    request = report_request("a", "telemetry-usage", "site-power", "PT1S", "PT1S")
    await play.ven.reply_to(parse(create_report(request).encode()))
    asked: list[str] = []

    async def before(kind: str) -> None:
        asked.append(kind)

    play.way.before = before
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(play.ven._report_loop)
        await within(4, lambda: "oadrUpdateReport" in asked)
        awake.ahead_s = STEP_S[REPORTS] + 10.0
        await anyio.sleep(0.1)
        assert play.ven.stuck == (REPORTS,)
        tasks.cancel_scope.cancel()


async def test_a_depot_that_never_answers_is_noticed_and_one_that_is_slow_is_not(play: Play, awake: Clock) -> None:
    hangs = False

    async def put(bound: Bound) -> Honour:
        if hangs:
            await anyio.sleep_forever()
        awake.ahead_s += STEP_S[EVENTS] * 0.9
        return Honour(True, bound.name)

    play.depot.put = put  # type: ignore[method-assign]
    began_s = time.monotonic()
    play.ven.wall = lambda: NOW + time.monotonic() - began_s
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(play.ven._keep_time)
        await play.take(*(an_event(f"e{number}", 1, 600 * number, 300) for number in range(1, 5)))
        assert awake.ahead_s > 3 * STEP_S[EVENTS]
        assert not play.ven.stuck
        hangs = True
        tasks.start_soon(play.take, an_event("last", 3, 6000, 300))
        await anyio.sleep(0.1)
        awake.ahead_s += STEP_S[EVENTS] + 1.0
        await anyio.sleep(0.1)
        assert play.ven.stuck == (EVENTS,)
        tasks.cancel_scope.cancel()


# What systemd hears


async def test_the_watchdog_is_fed_no_more_once_a_loop_is_stuck(
    play: Play, awake: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service, "WATCHDOG_S", 0.01)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    play.ven._goes_on(EVENTS)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)

        def heard() -> list[str]:
            found: list[str] = []
            try:
                while True:
                    found.append(systemd.recv(4096).decode())
            except BlockingIOError:
                return found

        async def goes_on(feeds: bool) -> dict[str, Any]:
            await anyio.sleep(0.1)
            heard()
            await anyio.sleep(0.1)
            lines = heard()
            assert lines
            assert all(("WATCHDOG=1" in one) == feeds for one in lines)
            return {"last": lines[-1]}

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service._feed_watchdog, play.ven)
            await goes_on(True)
            awake.ahead_s = STEP_S[EVENTS] + 1.0
            assert "Stuck" in (await goes_on(False))["last"]
            play.ven._goes_on(EVENTS)
            await goes_on(True)
            tasks.cancel_scope.cancel()
    assert caplog.text.count("Stuck, to be started anew: events") == 1
