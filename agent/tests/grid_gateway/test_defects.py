# SPDX-License-Identifier: Apache-2.0
"""The gateway where openleadr's client fails, as far as no test of its parts shows it: see test_stock_client."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from agent.tests.grid_gateway.conftest import Authority, LabVtn, endpoint_of
from agent.tests.grid_gateway.scripted_vtn import (
    NOTHING_NEW,
    REREGISTER,
    ScriptedVtn,
    cancel_report,
    registered,
    registered_report,
    report_request,
    sent,
)
from agent.tests.grid_gateway.test_reach import reach
from agent.tests.grid_gateway.test_ven import RULES, Depot, Field, within
from agent.tests.grid_gateway.vtn_messages import event, interval, payload, signal

from derms_agent.document_store import Store
from derms_agent.grid_gateway import iso8601, messages
from derms_agent.grid_gateway import ven as ven_module
from derms_agent.grid_gateway.incoming import DistributeEvent, parse
from derms_agent.grid_gateway.reports import Buffer
from derms_agent.grid_gateway.transport import Kind, Transport, Trouble
from derms_agent.grid_gateway.ven import Identity, Ven

pytestmark = pytest.mark.anyio


class Scripted(Transport):
    """The way to a VTN that is a table."""

    vtn: ScriptedVtn

    async def post(self, service: str, body: bytes) -> bytes:  # noqa: ARG002 - a table has one place for all
        """Return its answer."""
        await anyio.sleep(0)
        text = self.vtn.answer(body.decode())
        if text is None:
            raise Trouble(Kind.CLOSED, "the answer is lost")
        return text.encode()


@asynccontextmanager
async def running(vtn: ScriptedVtn, depot: Depot, authority: Authority, directory: Path) -> AsyncIterator[Ven]:
    way = Scripted(endpoint_of(authority, 1))
    way.vtn = vtn
    ven = Ven(
        identity=Identity(ven_name="depot"),
        transport=way,
        control=depot,
        store=Store(directory),
        buffer=Buffer(directory / "samples.sqlite"),
        rules=RULES,
        tick_s=0.05,
        draw=lambda: 0.1,
    )
    ven.recall()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ven.run)
        yield ven
        tasks.cancel_scope.cancel()


def an_event(start_unix_s: float, **more: str) -> str:
    return sent(event("e1", start=iso8601.time_text(start_unix_s), **more))


@pytest.mark.parametrize("refusal", [registered("", ""), registered("", "", 459)], ids=["no_id", "459"])
@pytest.mark.parametrize("before", [[], [registered()]], ids=["first", "again"])
async def test_3_a_registration_that_is_refused_is_asked_for_until_it_is_given(
    refusal: str, before: list[str], authority: Authority, tmp_path: Path
) -> None:
    vtn, depot = ScriptedVtn(), Depot()
    refusals = [refusal] * 5
    vtn.script["oadrCreatePartyRegistration"] = [*before, *refusals]
    vtn.script["oadrPoll"] = [NOTHING_NEW, REREGISTER] if before else []
    async with running(vtn, depot, authority, tmp_path) as ven:
        await within(10, lambda: vtn.count("oadrCreatePartyRegistration") > len(before) + len(refusals))
        vtn.script["oadrPoll"] = [an_event(time.time())]
        await within(5, lambda: depot.high_w() == [60_000.0])
        assert ven.trouble is None


@pytest.fixture(params=["Asia/Kolkata", "America/St_Johns", "a file"])
def zone(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Have the host in a zone; a file is one without a name, as /etc/localtime is where it is no link."""
    name = str(request.param)
    if name == "a file":
        # By hand, for a host without zones: five hours and a half before UTC, all the year.
        rule = b"\xff\xff\xb2\xa8\x00\x00"
        found = tmp_path / "localtime"
        found.write_bytes(b"TZif" + bytes(16 + 16) + (1).to_bytes(4, "big") + (4).to_bytes(4, "big") + rule + b"LOC\0")
        name = f":{found}"
    monkeypatch.setenv("TZ", name)
    time.tzset()
    yield name
    monkeypatch.undo()
    time.tzset()


async def test_6_a_host_in_another_zone_reads_and_writes_the_same_times(
    zone: str, authority: Authority, tmp_path: Path
) -> None:
    if time.localtime().tm_gmtoff == 0:
        pytest.skip(f"found no zone {zone} on this host")
    vtn, depot = ScriptedVtn(), Depot()
    now = int(time.time())
    later = event("e2", start=iso8601.time_text(now + 7200), signals=signal([interval(2)]))
    vtn.standing["oadrRequestEvent"] = sent(event("e1", start=iso8601.time_text(now - 60)), later)
    async with running(vtn, depot, authority, tmp_path):
        await within(5, lambda: len(depot.bounds) > 1)
        await within(5, lambda: vtn.messages("oadrPoll"))

    bounds = {bound.key[1]: bound for bound in depot.bounds.values()}
    assert (bounds["e1"].end_unix_s, bounds["e2"].start_unix_s) == (now - 60 + 3600, now + 7200)
    (offer,) = vtn.messages("oadrRegisterReport")
    written = re.findall(r"<ei:createdDateTime>([^<]+)<", offer)
    assert written
    assert all(text.endswith("Z") and abs(iso8601.unix_s(text) - now) < 60 for text in written)


async def test_7_what_a_second_poller_takes_is_asked_for(
    vtn: LabVtn, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ven_module, "SYNC_EVERY_S", 3.0)
    field_ = Field(vtn, Depot(), authority, tmp_path)
    thief = Transport(endpoint_of(authority, vtn.port), total_s=5.0)
    async with field_.running():
        # It has asked for all events by then, and polls.
        await within(10, lambda: vtn.seen("polls") > 0)
        stolen: set[str | None] = set()
        while not stolen:  # whoever is first has it
            field_.add([1], start=3600)
            message = parse(await thief.post("OadrPoll", messages.poll(field_.ven_id)))
            if isinstance(message, DistributeEvent):
                stolen = {one.id for one in message.events}
        await within(8, lambda: stolen <= {key[1] for key in field_.ven.state.events})
    await thief.aclose()


async def test_7_whoever_looks_how_far_a_vtn_can_be_reached_takes_nothing(
    new_vtn: Callable[..., LabVtn], authority: Authority
) -> None:
    # Its own: what the VEN of another test sent in its last moment may still be on its way to a shared one.
    vtn = new_vtn()
    found = await reach(authority, vtn.port)

    assert [one["status"] for one in found["stages"]] == ["ok", "ok", "ok"]
    assert vtn.seen("requests") == ["EiRegisterParty"]


async def test_13_no_report_leaves_a_task_behind(authority: Authority, tmp_path: Path) -> None:
    vtn, depot = ScriptedVtn(), Depot()
    every = report_request("a", "telemetry-usage", "site-power", "PT1S", "PT1S")
    once = report_request("b", "telemetry-status", "site-status", "PT0S", "PT0S")
    async with running(vtn, depot, authority, tmp_path) as ven:
        await within(5, lambda: vtn.messages("oadrPoll"))
        before = len(asyncio.all_tasks())
        vtn.standing["oadrRegisterReport"] = registered_report(every, once)
        vtn.script["oadrPoll"] = [REREGISTER, REREGISTER, REREGISTER]
        await within(10, lambda: vtn.count("oadrRegisterReport") == 4)
        since = len(vtn.asked)
        await within(8, lambda: len(vtn.messages("oadrUpdateReport", since)) >= 2)
        # However often they were asked for; the one that is sent once is over.
        assert [*ven.schedules] == ["a"]
        vtn.script["oadrPoll"] = [payload(cancel_report("a"))]
        await within(5, lambda: vtn.messages("oadrCanceledReport"))
        since = len(vtn.asked)
        await within(5, lambda: len(vtn.messages("oadrPoll", since)) >= 2)
        assert not vtn.messages("oadrUpdateReport", since)
        assert not ven.schedules
        assert len(asyncio.all_tasks()) == before


async def test_17_an_event_is_obeyed_whatever_its_current_value_says(authority: Authority, tmp_path: Path) -> None:
    vtn, depot = ScriptedVtn(), Depot()
    value = "<ei:currentValue><ei:payloadFloat><ei:value>0</ei:value></ei:payloadFloat></ei:currentValue>"
    vtn.standing["oadrRequestEvent"] = an_event(
        time.time(), status="active", signals=signal([interval(1)]).replace("</ei:signalID>", f"</ei:signalID>{value}")
    )
    async with running(vtn, depot, authority, tmp_path):
        await within(5, lambda: depot.high_w() == [60_000.0] and vtn.messages("oadrCreatedEvent"))
        (answer,) = vtn.messages("oadrCreatedEvent")

    assert "optIn" in answer
