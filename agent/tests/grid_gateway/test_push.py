# SPDX-License-Identifier: Apache-2.0
"""The VTN sends, and the VEN listens: an event is obeyed at once, and nobody else is let in."""

from __future__ import annotations

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
from agent.tests.grid_gateway.vtn_messages import distribute, event, interval, payload, signal

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


async def test_a_vtn_may_ask_for_another_registration(field_: Field) -> None:
    async with pushed_to(field_) as sender:
        await sender.post(
            "EiRegisterParty",
            payload("<oadr:oadrRequestReregistration><ei:venID>v</ei:venID></oadr:oadrRequestReregistration>").encode(),
        )
        await within(10, lambda: len(field_.vtn.seen("registrations")) == 2)

    assert field_.vtn.seen("registrations")[1]["asked"] == "ven-0"


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


async def test_what_is_pushed_is_verified_and_its_answer_signed(field_: Field) -> None:
    ours = field_.ven.signatures = Signatures(field_.ven.transport.endpoint)
    async with pushed_to(field_) as sender:
        theirs = Signatures(sender.endpoint)
        ours.required = True
        signed = theirs.signed(an_event(field_).replace(b"<oadr:oadrSignedObject", SIGNED_OBJECT))
        for body in (an_event(field_), signed.replace(b">e1<", b">e2<")):
            with pytest.raises(Trouble, match=r"400.*signature"):
                await sender.post("EiEvent", body)
        theirs.required = True
        answer = theirs.read(await sender.post("EiEvent", signed))
        with pytest.raises(Trouble, match=r"400.*taken before"):
            await sender.post("EiEvent", signed)
        await within(5, lambda: field_.depot.put_at)

    assert isinstance(answer, Response)
    assert answer.ok
    assert [key[1] for key in field_.ven.state.events] == ["e1"]


async def test_a_certificate_that_is_replaced_is_shown_by_the_next_connection(
    field_: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "LOOK_S", 0.05)
    certificate, key = (field_.authority.directory / f"ven.{ending}" for ending in ("crt", "key"))
    before = certificate.read_bytes(), key.read_bytes()

    async def shown_to(sender: Transport) -> bytes:
        try:
            return (await sender.shake_hands()).chain[0]
        except Trouble as trouble:  # between the one listener and the other
            assert trouble.kind is Kind.UNREACHABLE  # noqa: PT017
            return b""

    try:
        async with pushed_to(field_) as sender:
            old = await shown_to(sender)
            field_.authority.issue("ven")
            with anyio.fail_after(20):
                while (now := await shown_to(sender)) in {old, b""}:
                    await anyio.sleep(0.05)
            assert now == ssl.PEM_cert_to_DER_cert(certificate.read_text(encoding="ascii"))
            assert old == ssl.PEM_cert_to_DER_cert(before[0].decode())
            answer = parse(await sender.post("EiEvent", an_event(field_)))
    finally:
        certificate.write_bytes(before[0])
        key.write_bytes(before[1])
    assert isinstance(answer, Response)


def test_push_without_certificates_is_refused(authority: Authority) -> None:
    with pytest.raises(ValueError, match="CERT_PATH"):
        push.server_context(endpoint_of(authority, 1, certificate=None))
