# SPDX-License-Identifier: Apache-2.0
"""The VTN sends, and the VEN listens: an event is obeyed at once, and nobody else is let in."""

from __future__ import annotations

import shutil
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from agent.tests.grid_gateway.conftest import Authority, LabVtn, endpoint_of, free_port
from agent.tests.grid_gateway.test_ven import Depot, Field, registered, within
from agent.tests.grid_gateway.vtn_messages import distribute, eiresponse, event, interval, payload, signal
from aiohttp import web

from derms_agent.grid_gateway import iso8601, push
from derms_agent.grid_gateway.incoming import Response, parse
from derms_agent.grid_gateway.signatures import Signatures
from derms_agent.grid_gateway.transport import Endpoint, Kind, Transport, Trouble, fingerprint_of

SIGNED_OBJECT = b'<oadr:oadrSignedObject oadr:Id="oadrSignedObject"'
pytestmark = pytest.mark.anyio


@pytest.fixture
def field_(vtn: LabVtn, authority: Authority, tmp_path: Path) -> Field:
    return Field(vtn, Depot(), authority, tmp_path)


@asynccontextmanager
async def pushed_to(field_: Field) -> AsyncIterator[Transport]:
    """Run a VEN that listens; yield the way there for a VTN."""
    port = free_port()
    field_.ven.push_address = f"https://localhost:{port}"
    async with field_.running(), anyio.create_task_group() as tasks:
        receiver = push.Receiver(field_.ven, tasks)
        async with push.listening(receiver, field_.ven.transport.endpoint, "127.0.0.1", port):
            await within(10, lambda: registered(field_))
            sender = Transport(vtn_of(field_.authority, port))
            yield sender
            await sender.aclose()
        tasks.cancel_scope.cancel()


def vtn_of(authority: Authority, port: int) -> Endpoint:
    return endpoint_of(
        authority, port, certificate=authority.directory / "vtn.crt", key=authority.directory / "vtn.key"
    )


def an_event(field_: Field) -> bytes:
    now = iso8601.time_text(time.time())
    found = event("e1", start=now, signals=signal([interval(1)]), targets=f"<ei:venID>{field_.ven_id}</ei:venID>")
    return distribute(found, vtn_id="00123")


async def test_an_event_is_obeyed_within_half_a_second(field_: Field) -> None:
    async with pushed_to(field_) as sender:
        body = an_event(field_)
        sent_s = time.monotonic()
        answer = parse(await sender.post("EiEvent", body))
        await within(5, lambda: field_.depot.put_at)

    assert isinstance(answer, Response)
    assert answer.ok
    assert field_.depot.put_at[0] - sent_s <= 0.5
    assert field_.depot.high_w() == [60_000.0]
    # The VTN is asked for events now and then, and never polled.
    assert field_.vtn.seen("polls") == 0
    assert "EiEvent" in field_.vtn.seen("requests")


async def test_a_list_that_says_an_error_changes_nothing(field_: Field, caplog: pytest.LogCaptureFixture) -> None:
    async with pushed_to(field_) as sender:
        event_id = field_.add([1], event_id="e1")
        field_.ven.wake()
        await within(5, lambda: field_.depot.high_w() == [60_000.0])
        field_.vtn.do("mode", mode="stall")  # no list of its own undoes what the push does
        answer = parse(await sender.post("EiEvent", distribute(vtn_id="00123", response=eiresponse(500))))
        await anyio.sleep(0.5)
        held = field_.ven.state.events["00123", event_id]
        assert field_.depot.high_w() == [60_000.0]
        assert held.ended_unix_s is None

    assert isinstance(answer, Response)
    assert answer.code == 454
    assert "changes nothing: found responseCode 500 (no reason is given), expected 200" in caplog.text


async def test_a_vtn_that_pushes_fast_and_takes_no_answers_is_told_to_come_again(field_: Field) -> None:
    waiting = field_.ven.transport._lock.statistics

    async def push_on(sender: Transport) -> None:
        for _ in range(10 * push.MOST_AT_WORK):
            await sender.post("EiEvent", an_event(field_))
            assert waiting().tasks_waiting <= push.MOST_AT_WORK + 1  # and the conversation

    async with pushed_to(field_) as sender:
        field_.vtn.do("mode", mode="stall")
        with pytest.raises(Trouble, match="503"):
            await push_on(sender)
        await within(5, lambda: field_.depot.high_w() == [60_000.0])
        field_.vtn.do("mode", mode="")
        # Each that waits ends by its time, and then there is room again.
        await within(20, lambda: waiting().tasks_waiting == 0)
        await sender.post("EiEvent", an_event(field_))


async def test_answers_that_the_vtn_does_not_take_keep_no_later_push_waiting_and_follow(
    field_: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "ANSWERED_WITHIN_S", 0.5)
    field_.ven.transport.total_s = 5.0
    async with pushed_to(field_) as sender:
        field_.vtn.do("mode", mode="stall")
        field_.add([1], event_id="e1")
        for _ in range(push.MOST_AT_WORK):
            await sender.post("EiEvent", an_event(field_))
        began_s = time.monotonic()
        await within(2, lambda: field_.ven.transport._lock.statistics().tasks_waiting == 0)
        await sender.post("EiEvent", an_event(field_))  # the ninth
        assert time.monotonic() - began_s < push.MOST_AT_WORK * 5.0
        assert field_.depot.high_w() == [60_000.0]
        field_.vtn.do("mode", mode="")
        await within(10, lambda: field_.opts() == {"e1": "optIn"})


async def test_a_vtn_may_ask_for_another_registration(field_: Field) -> None:
    async with pushed_to(field_) as sender:
        await sender.post(
            "EiRegisterParty",
            payload("<oadr:oadrRequestReregistration><ei:venID>v</ei:venID></oadr:oadrRequestReregistration>").encode(),
        )
        await within(10, lambda: len(field_.vtn.seen("registrations")) == 2)

    assert field_.vtn.seen("registrations")[1]["asked"] == "ven-0"


ENDED = payload(
    "<oadr:oadrCancelPartyRegistration><pyld:requestID>r</pyld:requestID><ei:registrationID>reg-1</ei:registrationID>"
    "<ei:venID>ven-0</ei:venID></oadr:oadrCancelPartyRegistration>"
).encode()


async def test_no_push_ends_the_time_for_which_a_vtn_is_to_be_left_alone(
    field_: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pushed_to(field_) as sender:
        listed = an_event(field_)
        await sender.post("EiRegisterParty", ENDED)
        await within(5, lambda: "ended the registration" in (field_.ven.trouble or ""))
        until_s = field_.ven._away_until_s
        await sender.post("EiEvent", distribute(vtn_id="00123", response=eiresponse(500)))
        await sender.post("EiEvent", listed)
        await sender.post("EiRegisterParty", ENDED)
        with monkeypatch.context() as patched:
            patched.setattr(push, "MOST_AT_WORK", 0)
            with pytest.raises(Trouble, match="503"):
                await sender.post("EiEvent", listed)
        await anyio.sleep(1.0)
        assert field_.ven._away_until_s == until_s
        assert len(field_.vtn.seen("registrations")) == 1
        assert field_.ven.registration is None


async def test_a_vtn_that_ends_the_registration_by_a_push_is_left_alone_as_well(field_: Field) -> None:
    async with pushed_to(field_) as sender:
        await sender.post("EiEvent", an_event(field_))
        await within(5, lambda: field_.depot.high_w() == [60_000.0])
        answer = await sender.post("EiRegisterParty", ENDED)
        assert b"oadrCanceledPartyRegistration" in answer
        assert field_.ven.registration is None
        await within(5, lambda: "ended the registration" in (field_.ven.trouble or ""))
        requests = field_.vtn.seen("requests")
        await anyio.sleep(1.5)
        assert field_.vtn.seen("requests") == requests
        # What was asked for before goes on by its own time.
        assert field_.depot.high_w() == [60_000.0]
        field_.ven.wake()
        await within(5, lambda: registered(field_))
        assert len(field_.vtn.seen("registrations")) == 2


async def test_what_is_no_message_is_refused(field_: Field) -> None:
    async with pushed_to(field_) as sender:
        for body in (b"<!DOCTYPE a><a/>", b"", b"<a/>"):
            with pytest.raises(Trouble) as caught:
                await sender.post("EiEvent", body)
            assert caught.value.kind is Kind.HTTP
        poll = parse(
            await sender.post("EiEvent", payload("<oadr:oadrPoll><ei:venID>v</ei:venID></oadr:oadrPoll>").encode())
        )

    assert isinstance(poll, Response)
    assert not poll.ok


async def test_nobody_else_gets_in(field_: Field, stranger: Authority) -> None:
    async with pushed_to(field_) as sender:
        ours = sender.endpoint
        theirs = replace(ours, certificate=stranger.directory / "vtn.crt", key=stranger.directory / "vtn.key")
        for who in (theirs, replace(ours, certificate=None, key=None)):
            other = Transport(who)
            with pytest.raises(Trouble) as caught:
                await other.post("EiEvent", an_event(field_))
            await other.aclose()
            assert caught.value.kind is Kind.TLS
        # Of the right authority, and not the one that was pinned.
        der = ssl.PEM_cert_to_DER_cert((field_.authority.directory / "vtn.crt").read_text(encoding="ascii"))
        field_.ven.transport.endpoint = replace(field_.ven.transport.endpoint, fingerprint=fingerprint_of(der))
        ven = Transport(endpoint_of(field_.authority, ours.port))
        with pytest.raises(Trouble, match="403"):
            await ven.post("EiEvent", an_event(field_))
        await ven.aclose()

    assert not field_.depot.bounds


async def test_what_is_pushed_is_verified_and_its_answer_signed(field_: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = field_.ven.signatures = Signatures(field_.ven.transport.endpoint)
    async with pushed_to(field_) as sender:
        theirs = Signatures(sender.endpoint)
        ours.required = True
        signed = theirs.signed(an_event(field_).replace(b"<oadr:oadrSignedObject", SIGNED_OBJECT))
        for body in (an_event(field_), signed.replace(b">e1<", b">e2<")):
            with pytest.raises(Trouble, match=r"400.*signature"):
                await sender.post("EiEvent", body)
        with monkeypatch.context() as patched:
            patched.setattr(push, "MOST_AT_WORK", 0)
            with pytest.raises(Trouble, match="503"):
                await sender.post("EiEvent", signed)
        theirs.required = True
        answer = theirs.read(await sender.post("EiEvent", signed))
        with pytest.raises(Trouble, match=r"400.*taken before"):
            await sender.post("EiEvent", signed)
        await within(5, lambda: field_.depot.put_at)

    assert isinstance(answer, Response)
    assert answer.ok
    assert [key[1] for key in field_.ven.state.events] == ["e1"]


async def test_certificates_that_are_replaced_hold_from_the_next_connection_on(
    authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    files = {name: tmp_path / name for name in ("certificate", "key", "authorities")}

    def replaced(by: Authority, *names: str) -> None:
        found = endpoint_of(by, 0)
        for name in names or files:
            shutil.copy(getattr(found, name), files[name])

    async def taken(by: Authority, shows: Authority) -> bool:
        """Whether a VTN of `by` gets through; what the gateway shows has to be from `shows`."""
        sender = Transport(replace(vtn_of(by, port), authorities=shows.path))
        try:
            return b"200" in await sender.post("EiEvent", b"")
        except Trouble as trouble:
            assert trouble.kind is Kind.TLS  # noqa: PT017
            return False
        finally:
            await sender.aclose()

    async def answered(_request: web.Request) -> web.Response:
        return web.Response(text="200")

    application = web.Application()
    application.add_routes([web.post("/{path:.*}", answered)])
    runner = web.AppRunner(application)
    await runner.setup()
    replaced(authority)
    context = push.renewed_context(endpoint_of(authority, 0, **files))
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    port = int(runner.addresses[0][1])
    try:
        assert await taken(authority, authority)
        assert not await taken(stranger, authority)
        replaced(stranger, "key")  # it does not fit the certificate: what was before goes on
        assert await taken(authority, authority)
        replaced(stranger)
        assert await taken(stranger, stranger)
        assert not await taken(authority, stranger)
    finally:
        await runner.cleanup()


def test_push_without_certificates_is_refused(authority: Authority) -> None:
    with pytest.raises(ValueError, match="CERT_PATH"):
        push.server_context(endpoint_of(authority, 1, certificate=None))
