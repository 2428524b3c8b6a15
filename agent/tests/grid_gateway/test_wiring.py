# SPDX-License-Identifier: Apache-2.0
"""What agent.conf says reaches the wire: the service as it is assembled, by both of its ways to the VTN."""

from __future__ import annotations

import argparse
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import anyio
import pytest
from agent.tests.grid_gateway.conftest import Authority, free_port
from agent.tests.grid_gateway.scripted_vtn import NOTHING_NEW
from agent.tests.grid_gateway.test_push import vtn_of
from agent.tests.grid_gateway.test_refusals import DEPOT
from agent.tests.grid_gateway.test_transport import asyncio_peer, context
from agent.tests.grid_gateway.test_ven import Depot, within
from agent.tests.grid_gateway.vtn_messages import distribute, event, interval, signal

from derms_agent import settings
from derms_agent.engine_log import EngineLog
from derms_agent.grid_gateway import iso8601, tls_trouble
from derms_agent.grid_gateway import service as service_module
from derms_agent.grid_gateway.incoming import DistributeEvent, Malformed, Response, parse
from derms_agent.grid_gateway.messages import created_event
from derms_agent.grid_gateway.service import Service, assemble, run_service
from derms_agent.grid_gateway.transport import Transport, Trouble, fingerprint_of
from derms_agent.socket_protocol import ProtocolError

VTN = """\
vtn:
  url: "https://localhost"
  ven_name: small depot
  levels: {moderate: {limit_kw: 50}}
  market_contexts: ["http://utility.example/shed"]
  resources: {R-1: charger}
  groups: [G-1]
"""
Assembled: TypeAlias = Callable[..., Service]
pytestmark = pytest.mark.anyio


@pytest.fixture
def assembled(authority: Authority, tmp_path: Path) -> Iterator[Assembled]:
    """Return what assembles the service for a VTN's port, with further lines of agent.conf."""
    made: list[Service] = []

    def of(port: int, **lines: object) -> Service:
        directory = tmp_path / str(len(made))
        directory.mkdir()
        depot, conf, limits = (directory / name for name in ("depot.yml", "agent.conf", "limits.conf"))
        depot.write_text(DEPOT + str(lines.pop("vtn", "")), encoding="utf-8")
        limits.write_text("", encoding="utf-8")
        pki = authority.directory
        told = {
            "GATEWAY": "gateway-1", "DEPOT": depot, "GRID_STATE_DIRECTORY": directory,
            "VTN_URL": f"https://localhost:{port}", "CERT_PATH": pki / "ven.crt", "KEY_PATH": pki / "ven.key",
            "CA_PATH": pki / "ca.crt", "SOCKET": directory / "o.sock", **lines,
        }  # fmt: skip
        conf.write_text("".join(f"{key}={value}\n" for key, value in told.items()), encoding="utf-8")
        made.append(assemble(settings.load(conf, limits)))
        return made[-1]

    yield of
    for one in made:
        one.ven.buffer.close()


def ways(service: Service) -> tuple[Transport, Transport]:
    assert service.ven.reporting is not None
    return service.ven.transport, service.ven.reporting


async def trouble(way: Transport) -> Trouble | None:
    try:
        await way.post("OadrPoll", b"<a/>")
    except Trouble as found:
        return found
    finally:
        await way.aclose()
    return None


async def test_a_vtn_without_the_fingerprint_of_agent_conf_is_sent_nothing(
    assembled: Assembled, authority: Authority
) -> None:
    der = ssl.PEM_cert_to_DER_cert((authority.directory / "vtn.crt").read_text(encoding="ascii"))
    async with asyncio_peer(context(authority)) as port:
        for way in ways(assembled(port, VTN_FINGERPRINT="0" * 64)):
            found = await trouble(way)
            assert found is not None
            assert found.reason is tls_trouble.FINGERPRINT
        for way in ways(assembled(port, VTN_FINGERPRINT=fingerprint_of(der))):
            assert await trouble(way) is None


async def test_tls_1_2_is_not_spoken_where_agent_conf_does_not_say_so(
    assembled: Assembled, authority: Authority
) -> None:
    old = context(authority, minimum=ssl.TLSVersion.TLSv1_2, maximum=ssl.TLSVersion.TLSv1_2)
    async with asyncio_peer(old) as port:
        for way in ways(assembled(port)):
            found = await trouble(way)
            assert found is not None
            assert found.reason is tls_trouble.PROTOCOL_VERSION
        for way in ways(assembled(port, TLS_MINIMUM="1.2")):
            assert await trouble(way) is None


@pytest.mark.parametrize(("minimum", "taken"), [(None, False), ("1.2", True)])
async def test_a_vtn_that_pushes_over_tls_1_2_is_let_in_where_agent_conf_says_so(
    assembled: Assembled, authority: Authority, tmp_path: Path, minimum: str | None, taken: bool
) -> None:
    push_port = free_port()
    lines = {} if minimum is None else {"TLS_MINIMUM": minimum}
    service = assembled(free_port(), PUSH_URL=f"https://localhost:{push_port}", **lines)
    vtn = Transport(vtn_of(authority, push_port), total_s=5.0)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.load_verify_locations(authority.path)
    old.load_cert_chain(authority.directory / "vtn.crt", authority.directory / "vtn.key")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_service, service, tmp_path / "g.sock")
        with anyio.fail_after(20):
            while True:
                try:
                    answer = await vtn.post("EiEvent", distribute())
                    break
                except Trouble:
                    await anyio.sleep(0.1)
        # It is not registered yet, which it says: whoever pushes is spoken with.
        assert b"463" in answer or b"200" in answer
        try:
            stream = await anyio.connect_tcp("localhost", push_port, tls=True, ssl_context=old)
            spoken = True
            await anyio.aclose_forcefully(stream)  # how it ends is not what is asked
        except (ssl.SSLError, anyio.BrokenResourceError, anyio.EndOfStream):
            spoken = False
        await vtn.aclose()
        tasks.cancel_scope.cancel()
    assert spoken is taken


async def test_durations_are_counted_since_boot_whatever_the_wall_shows_and_asleep_too(
    assembled: Assembled, monkeypatch: pytest.MonkeyPatch
) -> None:
    ven = assembled(1).ven
    since_boot = {time.CLOCK_BOOTTIME: 4200.0}
    monkeypatch.setattr(time, "clock_gettime", since_boot.__getitem__)
    assert ven.clock() == 4200.0
    assert abs(ven.wall() - time.time()) < 10


async def test_what_happens_is_told_to_the_mirror(assembled: Assembled) -> None:
    service = assembled(1)
    service.ven.happened("event", {"event": "e1"})
    told = service.mirror._waiting.receive_nowait()
    assert (told["kind"], told["event"]) == ("event", "e1")


@pytest.mark.parametrize(
    ("of_event", "code", "bounds"),
    [
        ({}, 200, [("site", 50_000.0)]),
        ({"targets": "<ei:resourceID>R-1</ei:resourceID>"}, 200, [("charger", 50_000.0)]),
        ({"targets": "<ei:groupID>G-1</ei:groupID>"}, 200, [("site", 50_000.0)]),
        ({"targets": "<ei:groupID>G-2</ei:groupID>"}, 462, []),
        ({"targets": "<ei:resourceID>R-2</ei:resourceID>"}, 462, []),
        ({"context": "http://utility.example/other"}, 453, []),
        ({"signals": signal([interval(2)])}, 460, []),
        ({"signals": signal([interval(1)], name="BID_LOAD", kind="setpoint")}, 460, []),
        ({"test": "<ei:testEvent>true</ei:testEvent>"}, 200, []),
    ],
)
async def test_events_are_taken_by_what_the_depot_file_says(
    assembled: Assembled, of_event: dict[str, str], code: int, bounds: list[tuple[str, float]]
) -> None:
    ven = assembled(1, vtn=VTN).ven
    ven.control = depot = Depot()
    ven.rules = replace(ven.rules, ven_id="ven-1", vtn_id="VTN-1")
    listed = event("e1", start=iso8601.time_text(time.time()), **of_event)
    message = parse(distribute(listed, vtn_id="VTN-1"))
    assert isinstance(message, DistributeEvent)
    (answer,) = await ven.take_events(message)
    assert (answer.code, str(answer.opt)) == (code, "optIn" if code == 200 else "optOut")
    assert [(one.target, one.high_w) for one in depot.bounds.values()] == bounds


@pytest.mark.parametrize("said", ["none", "sign", "require"])
async def test_messages_are_signed_as_agent_conf_says(assembled: Assembled, said: str) -> None:
    ven = assembled(1, XML_SIGNATURES=said).ven
    body = created_event("r", "ven-1", ())
    assert (b"SignatureValue>" in ven.signed(body)) == (said != "none")
    if said == "require":
        with pytest.raises(Malformed, match="signature"):
            ven.read(body)
    else:
        assert isinstance(ven.read(NOTHING_NEW.encode()), Response)


async def test_the_ven_is_who_agent_conf_says(assembled: Assembled) -> None:
    named = assembled(1, vtn=VTN, CLIENT_ID="00123", VEN_NAME="A & B").ven
    assert (named.identity.client_id, named.identity.ven_name) == ("00123", "A & B")
    assert named._ladder() == (("00123", None), (None, None))
    assert assembled(1, vtn=VTN).ven.identity.ven_name == "small depot"
    assert assembled(1).ven.identity.ven_name == "small"


async def test_whoever_is_not_named_may_look_and_change_nothing(assembled: Assembled) -> None:
    verbs = assembled(1, CONTROL_PEERS="root").verbs()
    assert {*verbs.looking} == {"version", "status", "event.list"}
    changing = {
        "event.sync", "registration.cancel", "registration.create", "terms.put", "opt.create", "opt.cancel",
    }  # fmt: skip
    assert {*verbs.changing} == changing
    for verb in changing:
        with pytest.raises(ProtocolError) as caught:
            await verbs.run({"verb": verb}, "stranger")
        assert caught.value.code == "not allowed"
    assert await verbs.run({"verb": "event.list"}, "stranger") == []


async def test_a_port_that_cannot_be_listened_at_is_said_once_and_tried_again(
    assembled: Assembled, authority: Authority, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(service_module, "LISTEN_AGAIN_S", 0.05)
    ven = assembled(1).ven
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service_module._receive_pushes, ven, f"https://localhost:{port}")
            await anyio.sleep(0.5)
            assert caplog.text.count(f"The VTN cannot send to port {port}, and is asked for events") == 1
            taken.close()
            await within(5, lambda: f"The VTN may send to port {port}" in caplog.text)
            sender = Transport(vtn_of(authority, port))
            with pytest.raises(Trouble, match="400"):
                await sender.post("EiEvent", b"<a/>")
            await sender.aclose()
            tasks.cancel_scope.cancel()


def test_a_second_one_refuses_to_start_before_it_touches_anything(
    assembled: Assembled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touched(_configuration: object) -> Service:
        raise AssertionError

    path = tmp_path / "g.sock"
    assembled(1, GRID_SOCKET=path, ENGINE_LOG=tmp_path / "engine.log")
    monkeypatch.setattr(service_module, "assemble", touched)
    options = argparse.Namespace(agent_conf=tmp_path / "0" / "agent.conf", limits_conf=tmp_path / "0" / "limits.conf")
    with socket.socket(socket.AF_UNIX) as first:
        first.bind(str(path))
        first.listen()

        # One that is alive answers, or closes a connection that it has no room for.
        def turn_away() -> None:
            first.accept()[0].close()

        answering = threading.Thread(target=turn_away)
        answering.start()
        assert service_module.run(options) == 1
        answering.join()
    assert all(one.written(10.0) for one in logging.getLogger().handlers if isinstance(one, EngineLog))
    assert "Refused to start: another grid gateway runs" in (tmp_path / "engine.log").read_text(encoding="utf-8")
    # A socket that nobody listens at is what one that was killed has left.
    with pytest.raises(AssertionError):
        service_module.run(options)
