# SPDX-License-Identifier: Apache-2.0
"""What the VTN is promised is what the depot does: over events that follow one another, troubles, steps and restarts.

Time is the test's: the VEN ticks as its loop does it, and no message waits for a network.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from agent.tests.grid_gateway.scripted_vtn import (
    NOTHING_NEW,
    VEN_ID,
    VTN_ID,
    ScriptedVtn,
    create_report,
    registered_report,
    report_request,
    sent,
)
from agent.tests.grid_gateway.test_ven import RULES, Depot, within
from agent.tests.grid_gateway.vtn_messages import distribute, eiresponse, event, interval, payload, signal

from derms_agent.document_store import Store
from derms_agent.grid_gateway import iso8601, reports
from derms_agent.grid_gateway.control_link import Honour
from derms_agent.grid_gateway.event_store import EventStore
from derms_agent.grid_gateway.events import Bound
from derms_agent.grid_gateway.incoming import DistributeEvent, Status, parse
from derms_agent.grid_gateway.reports import Buffer
from derms_agent.grid_gateway.signals import Rules
from derms_agent.grid_gateway.terms import Terms
from derms_agent.grid_gateway.transport import Endpoint, Kind, Transport, Trouble
from derms_agent.grid_gateway.ven import Identity, Refused, Registration, Ven

pytestmark = pytest.mark.anyio
NOW = 1_800_000_000.0
TICK_S = 5.0
OURS = replace(RULES, ven_id=VEN_ID, vtn_id=VTN_ID)


class Way(Transport):
    """The way to a VTN that is a table; `before` is called with each kind of message, and may fail in its place."""

    vtn: ScriptedVtn
    before: Callable[[str], Awaitable[None]] | None = None
    stalls: frozenset[str] = frozenset()

    async def post(self, service: str, body: bytes) -> bytes:
        """Return the answer of the table."""
        kind = body.decode().partition("<oadr:oadrSignedObject")[2].partition("<oadr:")[2].split()[0]
        if self.before is not None:
            await self.before(kind)
        async with self._lock:  # one request at a time, as the real way has it
            if kind in self.stalls:
                await anyio.sleep_forever()
        text = self.vtn.answer(body.decode())
        if text is None:
            raise Trouble(Kind.CLOSED, service)
        return text.encode()


@dataclass
class Play:
    """A VEN that is registered, its depot, and the time."""

    directory: Path
    depot: Depot = field(default_factory=Depot)
    vtn: ScriptedVtn = field(default_factory=ScriptedVtn)
    now_s: float = 0.0
    stepped_s: float = 0.0
    ven: Ven = field(init=False)
    way: Way = field(init=False)

    def __post_init__(self) -> None:
        self.renew()

    def renew(self, rules: Rules = OURS) -> Ven:
        """Make a VEN as a process makes it that starts, with what the one before it left."""
        self.way = Way(Endpoint(url="https://localhost:1"))
        self.way.vtn = self.vtn
        self.ven = Ven(
            identity=Identity(ven_name="depot"),
            transport=self.way,
            control=self.depot,
            store=Store(self.directory),
            buffer=Buffer(self.directory / "samples.sqlite"),
            rules=rules,
            clock=lambda: self.now_s,
            wall=lambda: NOW + self.now_s + self.stepped_s,
            draw=lambda: 0.1,
            tick_s=0.02,
        )
        self.ven.registration = Registration(("https://localhost:1", ""), VEN_ID, VTN_ID, "reg-1", 10.0)
        self.ven._save_registration()
        self.ven.recall()
        self.ven.heard_s = self.now_s
        return self.ven

    async def until(self, at_s: float) -> None:
        """Let time go by."""
        while self.now_s < at_s:
            self.now_s += TICK_S
            await self.ven._tick()

    async def take(self, *listed: str) -> dict[str, tuple[int, str]]:
        """Have the VTN list these events; return the code and the opt that each is answered with."""
        message = parse(sent(*listed).encode())
        assert isinstance(message, DistributeEvent)
        return {one.event_id: (one.code, str(one.opt)) for one in await self.ven.take_events(message)}

    def held_to(self) -> list[tuple[str, float]]:
        """Return the events that the depot is held to now, and to what."""
        now = self.ven.wall()
        found = [one for one in self.depot.bounds.values() if one.start_unix_s <= now < one.end_unix_s]
        return [(one.key[1], one.high_w) for one in found]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    return Play(tmp_path)


def an_event(name: str, level: int, start_s: float, length_s: float, **more: Any) -> str:
    length = f"PT{length_s:.0f}S"
    given = signal([interval(level, length)])
    return event(name, start=iso8601.time_text(NOW + start_s), duration=length, **{"signals": given, **more})


# Baselines


@pytest.mark.parametrize("restart", [False, True])
async def test_an_event_right_after_another_has_a_baseline_of_before_both(play: Play, restart: bool) -> None:
    listed = [an_event("first", 1, 1200, 3600), an_event("second", 2, 4860, 3600)]
    play.depot.power_w = 80_000.0
    await play.until(600)
    await play.take(*listed)
    await play.until(1200)
    play.depot.power_w = 40_000.0
    await play.until(3000)
    if restart:
        play.renew()
    await play.until(4900)

    ((name, high_w),) = play.held_to()
    assert name == "second"
    # The minute between them counts as a minute.
    assert 38_000.0 < high_w < 40_000.0


async def test_an_event_in_the_middle_of_another_has_the_same_baseline(play: Play) -> None:
    await play.until(600)
    await play.take(
        an_event("long", 1, 600, 9000), an_event("short", 2, 4000, 600, priority="<ei:priority>1</ei:priority>")
    )
    play.depot.power_w = 30_000.0
    await play.until(4100)

    assert play.held_to() == [("short", 40_000.0)]


async def test_what_was_drawn_a_while_ago_without_an_event_since_is_no_baseline(play: Play) -> None:
    await play.until(600)

    async def nothing_measured() -> dict[str, Any]:
        return {"asks": [{"name": name} for name in play.depot.bounds]}

    play.depot.status = nothing_measured  # type: ignore[method-assign]
    await play.until(1600)
    await play.take(an_event("e1", 2, 1600, 600))

    assert play.held_to() == [("e1", 0.0)]


async def test_a_baseline_is_frozen_as_soon_as_an_event_is_there_that_holds(play: Play) -> None:
    await play.until(600)
    await play.take(an_event("e1", 2, 0, 3600))

    kept, _ = EventStore(Store(play.directory)).load()
    assert kept.events[VTN_ID, "e1"].baseline_w == 80_000.0


# Promises


async def test_nothing_is_let_loose_while_one_bound_takes_the_place_of_another(play: Play) -> None:
    await play.take(an_event("low", 1, 0, 3600, priority="<ei:priority>2</ei:priority>"))
    await play.until(60)
    in_force: list[int] = []
    remove = play.depot.remove

    async def removed(name: str) -> None:
        await remove(name)
        in_force.append(len(play.held_to()))

    play.depot.remove = removed  # type: ignore[method-assign]
    high = an_event("high", 3, 30, 600, priority="<ei:priority>1</ei:priority>")
    await play.take(an_event("low", 1, 0, 3600, priority="<ei:priority>2</ei:priority>"), high)
    assert play.held_to() == [("high", 0.0)]
    await play.take(an_event("low", 1, 0, 3600, priority="<ei:priority>2</ei:priority>"))
    assert play.held_to() == [("low", 60_000.0)]
    assert in_force
    assert all(in_force)


async def test_an_event_is_on_the_disk_before_the_depot_is_asked_and_that_before_the_answer(play: Play) -> None:
    order: list[str] = []
    put = play.depot.put

    async def asked(bound: Bound) -> Honour:
        known, _ = EventStore(Store(play.directory)).load()
        order.append("known" if (VTN_ID, "e1") in known.events else "not known")
        return await put(bound)

    async def before(kind: str) -> None:
        order.append(kind)

    play.depot.put, play.way.before = asked, before  # type: ignore[method-assign]
    await play.ven._take(parse(sent(an_event("e1", 1, 0, 600)).encode()))

    assert order == ["known", "oadrCreatedEvent"]


async def test_what_was_promised_stands_whoever_is_silent_meanwhile(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    half = an_event("half", 2, 7200, 3600)  # half of a baseline that changes: its bound is put again each minute
    await play.until(300)
    assert await play.take(half) == {"half": (200, "optIn")}
    play.depot.least_w = 70_000.0
    play.depot.power_w = 60_000.0
    await play.until(900)
    assert caplog.text.count("could not be honoured now") == 1
    play.depot.least_w = 0.0
    await play.until(1200)
    assert await play.take(half) == {"half": (200, "optIn")}
    # Asked once more when it begins; then, that a charger is silent is no reason to let go of the others.
    await play.until(7300)
    assert [(name, round(high_w)) for name, high_w in play.held_to()] == [("half", 30_000)]
    play.depot.least_w = 70_000.0
    play.depot.bounds.clear()
    await play.until(7400)
    play.renew()
    await play.until(7500)
    assert [(name, round(high_w)) for name, high_w in play.held_to()] == [("half", 30_000)]
    assert play.ven.state.events[VTN_ID, "half"].refusal is None


async def test_what_cannot_be_kept_when_it_begins_is_opted_out_of_then(play: Play) -> None:
    await play.until(300)
    assert await play.take(an_event("half", 2, 3600, 3600)) == {"half": (200, "optIn")}
    await play.until(3500)
    play.depot.least_w, play.depot.power_w = 70_000.0, 60_000.0
    await play.until(3700)
    assert play.depot.bounds == {}
    await play.ven._answer_late()
    (answer,) = play.vtn.messages("oadrCreatedEvent")
    assert "optOut" in answer
    assert "base load" in answer


async def test_what_the_depot_file_has_no_longer_is_opted_out_of_and_said(play: Play) -> None:
    listed = [an_event("mild", 1, -60, 3600), an_event("deep", 3, 3600, 60)]
    await play.take(*listed)
    assert play.held_to() == [("mild", 60_000.0)]
    await play.until(5)
    play.renew(replace(OURS, levels={3: OURS.levels[3]}))
    await play.until(10)
    assert {one.key[1] for one in play.depot.bounds.values()} == {"deep"}
    await play.ven._answer_late()
    (answer,) = play.vtn.messages("oadrCreatedEvent")
    assert ">mild<" in answer
    assert ">460<" in answer
    assert "optOut" in answer
    # It has it again: so it is when the VTN lists it again.
    play.renew()
    assert (await play.take(*listed))["mild"] == (200, "optIn")
    assert play.held_to() == [("mild", 60_000.0)]


async def test_a_disk_that_is_full_is_no_reason_not_to_obey_and_one_not_to_promise(
    play: Play, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError("No space left on device")

    await play.take()
    with monkeypatch.context() as patched:
        patched.setattr(play.ven.store, "append", full)
        patched.setattr(play.ven.store, "save", full)
        for _again in range(2):
            assert await play.take(an_event("e1", 1, 0, 600)) == {"e1": (469, "optOut")}
            assert play.held_to() == [("e1", 60_000.0)]
            await play.until(play.now_s + 10)
            await play.ven._answer_late()
        assert play.vtn.messages("oadrCreatedEvent") == []
    await play.until(play.now_s + 10)
    await play.ven._answer_late()
    (answer,) = play.vtn.messages("oadrCreatedEvent")
    assert "optIn" in answer
    assert caplog.text.count("cannot be kept: No space left") == 1
    play.depot.bounds.clear()
    play.renew()
    await play.until(play.now_s + 10)
    assert play.held_to() == [("e1", 60_000.0)]


async def test_an_answer_that_the_vtn_fails_at_is_sent_again(play: Play) -> None:
    fails = [True, True]

    async def before(kind: str) -> None:
        if kind == "oadrCreatedEvent" and fails and fails.pop():
            raise Trouble(Kind.HTTP, "500")

    play.way.before = before
    message = parse(sent(an_event("e1", 1, 0, 600)).encode())
    await play.ven._take(message)
    await play.ven._answer_late()
    assert play.vtn.messages("oadrCreatedEvent") == []
    await play.ven._answer_late()
    await play.ven._answer_late()
    (answer,) = play.vtn.messages("oadrCreatedEvent")
    assert "optIn" in answer


async def test_a_list_that_a_push_has_overtaken_cancels_nothing(play: Play) -> None:
    old, new = an_event("old", 1, 0, 600), an_event("new", 3, 0, 600)
    play.vtn.script["oadrRequestEvent"] = [sent(old), sent(old, new)]
    let_go: list[str] = []

    async def remove(name: str) -> None:
        let_go.append(name)

    play.depot.remove = remove  # type: ignore[method-assign]
    pushed = parse(sent(old, new).encode())
    assert isinstance(pushed, DistributeEvent)

    async def before(kind: str) -> None:
        if kind == "oadrRequestEvent" and play.vtn.count("oadrRequestEvent") == 0:
            await play.ven.take_and_answer(pushed, 20.0)

    play.way.before = before
    await play.ven._sync(VEN_ID)

    assert play.ven.state.events[VTN_ID, "new"].phase(play.ven.wall()) is Status.ACTIVE
    assert [one for one in let_go if one in play.depot.bounds and play.depot.bounds[one].key[1] == "new"] == []
    assert play.vtn.count("oadrRequestEvent") == 2


async def test_a_depot_that_leaves_is_held_to_nothing_that_nobody_can_take_back(play: Play) -> None:
    for_ever = event("e1", start=iso8601.time_text(NOW), duration="PT0S", signals=signal([interval(3, "PT0S")]))
    await play.take(for_ever)
    await play.until(10)
    assert play.held_to() == [("e1", 0.0)]
    play.vtn.standing["oadrCancelPartyRegistration"] = payload(
        f"<oadr:oadrCanceledPartyRegistration>{eiresponse()}<ei:registrationID>reg-1</ei:registrationID>"
        f"<ei:venID>{VEN_ID}</ei:venID></oadr:oadrCanceledPartyRegistration>"
    )
    await play.ven.cancel_registration()
    assert play.depot.bounds == {}
    # It stands again where the VEN is registered again, and the VTN lists it still.
    play.ven.registration = Registration(("https://localhost:1", ""), VEN_ID, VTN_ID, "reg-1", 10.0)
    assert await play.take(for_ever) == {"e1": (200, "optIn")}
    assert play.held_to() == [("e1", 0.0)]


# A VTN of which a part fails


async def test_a_list_that_says_an_error_changes_nothing(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    await play.until(20)
    await play.take(an_event("e1", 1, 0, 3600))
    before = play.ven.state
    error = distribute(vtn_id=VTN_ID, response=eiresponse(500)).decode()
    for kind in ("oadrPoll", "oadrRequestEvent"):
        play.vtn.standing[kind] = error
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(play.ven._converse)
        await within(2, lambda: play.vtn.count("oadrPoll"))
        tasks.cancel_scope.cancel()
    with pytest.raises(Refused, match="500"):
        await play.ven._drain(VEN_ID)

    assert play.ven.state == before
    assert play.held_to() == [("e1", 60_000.0)]
    assert "The VTN gives no list of events: 500" in caplog.text
    assert "The VTN refuses: 500" in caplog.text


async def test_a_vtn_that_says_at_the_list_of_events_that_it_does_not_know_the_ven_is_registered_with(
    play: Play,
) -> None:
    unknown = payload(f"<oadr:oadrResponse>{eiresponse(463)}</oadr:oadrResponse>")
    play.vtn.script["oadrRequestEvent"] = [unknown]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(play.ven._converse)
        await within(2, lambda: play.vtn.count("oadrCreatePartyRegistration") and play.vtn.count("oadrPoll"))
        tasks.cancel_scope.cancel()


FAILS = (Kind.HTTP, Kind.BODY, Kind.TIMEOUT)


@pytest.mark.parametrize(
    ("failing", "how"),
    [
        *(("oadrRegisterReport", how) for how in (*FAILS, 463, 459)),
        *(("oadrQueryRegistration", how) for how in (*FAILS, 463, 459)),
        *(("oadrRequestEvent", how) for how in (*FAILS, 459)),
    ],
)
async def test_events_come_whatever_else_of_a_vtn_fails(play: Play, failing: str, how: Kind | int) -> None:
    play.ven.clock, play.ven.wall = time.monotonic, time.time
    play.ven.registration = None
    play.vtn.script["oadrPoll"] = [NOTHING_NEW, sent(event("e1", start=iso8601.time_text(time.time())))]

    async def before(kind: str) -> None:
        if kind == failing and isinstance(how, Kind):
            raise Trouble(how, "no")

    play.way.before = before
    if not isinstance(how, Kind):
        play.vtn.standing[failing] = payload(f"<oadr:oadrResponse>{eiresponse(how)}</oadr:oadrResponse>")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(play.ven.run)
        await within(4, lambda: play.held_to() == [("e1", 60_000.0)])
        tasks.cancel_scope.cancel()
    assert play.vtn.count("oadrCreatePartyRegistration") == 1


async def test_no_event_waits_for_a_report_that_the_vtn_takes_its_time_over(play: Play) -> None:
    play.ven.clock, play.ven.wall = time.monotonic, time.time
    play.ven.reporting = way = Way(Endpoint(url="https://localhost:1"))
    way.vtn = play.vtn
    way.stalls = play.way.stalls = frozenset({"oadrUpdateReport"})
    asked: list[str] = []

    async def before(kind: str) -> None:
        asked.append(kind)

    way.before = play.way.before = before
    request = report_request("a", "telemetry-usage", "site-power", "PT1S", "PT1S")
    await play.ven.reply_to(parse(create_report(request).encode()))
    play.ven._offered = reports.data_points(play.ven.offers)  # else it waits for the VTN to be told of them
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(play.ven.run)
        await within(4, lambda: "oadrUpdateReport" in asked)
        play.vtn.script["oadrPoll"] = [sent(event("e1", start=iso8601.time_text(time.time())))]
        play.ven.wake()
        await within(2, lambda: play.held_to() == [("e1", 60_000.0)])
        tasks.cancel_scope.cancel()


# The link


@pytest.mark.parametrize("poll_h", [1, 9, 25, 24 * 30])
async def test_the_link_stands_for_three_polls_and_no_longer_however_seldom_these_are(play: Play, poll_h: int) -> None:
    poll_s = poll_h * 3600.0
    assert play.ven.registration is not None
    play.ven.registration = replace(play.ven.registration, poll_s=poll_s)
    stands_until_s = 0.0
    while play.now_s <= 3 * poll_s + 2 * 86400.0:
        await play.ven._tick()
        if play.depot.link_s:
            stands_until_s = play.now_s + play.depot.link_s.pop()
            assert stands_until_s <= play.now_s + 86400.0
        assert (play.now_s < stands_until_s) == (play.now_s < 3 * poll_s)
        play.now_s += 600.0
    assert stands_until_s == pytest.approx(3 * poll_s)


# The clock


@pytest.mark.parametrize("step_s", [3600.0, -3600.0])
async def test_a_step_begins_nothing_anew_that_was_cancelled_and_has_the_vtn_asked(play: Play, step_s: float) -> None:
    await play.take(an_event("e1", 1, -7200, 4 * 7200))
    await play.until(10)
    await play.take(an_event("e1", 1, -7200, 4 * 7200, status="cancelled", modification=1))
    assert play.depot.bounds == {}
    play.ven._sync_s = 3600.0
    play.stepped_s = step_s
    await play.until(20)

    assert play.depot.bounds == {}
    assert play.ven._sync_s < play.now_s
    assert play.renew().state.events[VTN_ID, "e1"].phase(play.ven.wall()) is Status.CANCELLED


async def test_a_clock_that_is_off_the_vtns_is_said_once_for_as_long_as_it_is(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    alarms: list[str] = []
    play.ven.happened = lambda kind, what: alarms.append(what["words"]) if kind == "alarm" else None
    for off_s in (59.0, -3600.0, -3600.0, None, 59.0, 61.0):
        play.way.clock_off_s = off_s
        await play.ven._drain(VEN_ID)

    assert caplog.text.count("; events begin and end by it") == 2
    assert alarms == [
        "this gateway's clock is 3600 s behind the VTN's",
        "this gateway's clock is 61 s ahead of the VTN's",
    ]


# Reports


async def test_a_report_that_is_asked_for_while_terms_change_is_sampled_by_the_new_ones(play: Play) -> None:
    play.ven.clock, play.ven.wall = time.monotonic, time.time
    asked = report_request("r", "telemetry-status", "status-R1", "PT1S", "PT1H")
    play.vtn.standing["oadrRegisterReport"] = registered_report(asked)

    async def before(kind: str) -> None:
        if kind == "oadrCreatedReport":
            await anyio.sleep(0.2)

    play.way.before = before
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(play.ven._report_loop)
        await play.ven.agree(Terms(resources={"R1": "site"}))
        await within(2, lambda: play.ven.buffer.count() > 0)
        # The VTN asks for what the depot file has, and is then not told that it is that again: it is not offered.
        play.vtn.script["oadrCreatedReport"] = [None]
        play.vtn.script["oadrRegisterReport"] = [registered_report(asked.replace(">r<", ">s<"))]
        with pytest.raises(Trouble):
            await play.ven.agree(Terms(resources={"R2": "site", "R1": "site"}))
        play.ven.terms = Terms()
        play.ven._adopt_rules()
        await within(2, lambda: not play.ven.schedules)
        tasks.cancel_scope.cancel()


async def test_a_report_that_is_cancelled_while_another_is_sent_stays_so(play: Play) -> None:
    play.ven.clock, play.ven.wall = time.monotonic, time.time
    requests = [report_request(name, "telemetry-usage", "site-power", "PT1S", "PT1S") for name in ("a", "b")]
    await play.ven.reply_to(parse(create_report(*requests).encode()))

    async def before(kind: str) -> None:
        if kind == "oadrUpdateReport" and not play.vtn.messages(kind):
            play.ven.schedules.pop("b")

    play.way.before = before
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(play.ven._report_loop)
        await within(4, lambda: play.vtn.messages("oadrUpdateReport"))
        await anyio.sleep(0.3)
        tasks.cancel_scope.cancel()

    assert [*play.ven.schedules] == ["a"]
