# SPDX-License-Identifier: Apache-2.0
"""What is wrong with TLS is said rightly, whichever peer it is wrong with; certificates rotate; bodies have an end."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import anyio
import pytest
from agent.tests.grid_gateway.conftest import Authority, LabVtn, endpoint_of, free_port
from hypothesis import given
from hypothesis import strategies as st

from derms_agent.grid_gateway import messages
from derms_agent.grid_gateway.incoming import CreatedPartyRegistration, parse
from derms_agent.grid_gateway.transport import (
    Connected,
    Endpoint,
    Kind,
    Transport,
    Trouble,
    backoff_s,
    fingerprint_fits,
    fingerprint_of,
)

pytestmark = pytest.mark.anyio
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: 4\r\nDate: %s\r\n\r\n<a/>"


def answer(off_s: float = 0.0) -> bytes:
    return OK % formatdate(time.time() + off_s, usegmt=True).encode()


def context(authority: Authority, **more: Any) -> ssl.SSLContext:
    """Return the context of a server that asks for a certificate."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    name = more.get("name", "vtn")
    made.load_cert_chain(authority.directory / f"{name}.crt", authority.directory / f"{name}.key")
    made.load_verify_locations(more.get("clients", authority).path)
    made.verify_mode = ssl.CERT_REQUIRED
    made.minimum_version = more.get("minimum", ssl.TLSVersion.TLSv1_3)
    made.maximum_version = more.get("maximum", ssl.TLSVersion.TLSv1_3)
    return made


@asynccontextmanager
async def asyncio_peer(tls: ssl.SSLContext | None, says: bytes | None = None) -> AsyncIterator[int]:
    """Run a server of asyncio's that answers each request alike."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(answer() if says is None else says)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@asynccontextmanager
async def openssl_peer(
    authority: Authority, *more: str, name: str = "vtn", clients: Authority | None = None
) -> AsyncIterator[int]:
    """Run `openssl s_server`, which answers with a page about the connection."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not on this machine (Debian: openssl)")
    port = free_port()
    process = subprocess.Popen(
        ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", str(authority.directory / f"{name}.crt"),
         "-key", str(authority.directory / f"{name}.key"), "-CAfile", str((clients or authority).path),
         "-Verify", "2", "-verify_return_error", "-www", "-quiet", *more],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        with anyio.fail_after(10):
            while socket.socket().connect_ex(("127.0.0.1", port)):
                await anyio.sleep(0.02)
        yield port
    finally:
        process.kill()
        process.wait()


async def trouble_of(endpoint: Endpoint, **more: Any) -> Trouble:
    """Return what goes wrong with a request."""
    transport = Transport(endpoint, **more)
    try:
        with pytest.raises(Trouble) as caught:
            await transport.post("OadrPoll", messages.poll("ven"))
    finally:
        await transport.aclose()
    return caught.value


def peers(authority: Authority, **told: Any) -> dict[str, Any]:
    """Return both peers with a server's certificate by name, and the authority of clients that they know."""
    clients = told.get("clients", authority)
    name = told.get("name", "vtn")
    return {
        "asyncio": lambda: asyncio_peer(context(authority, name=name, clients=clients)),
        "openssl": lambda: openssl_peer(authority, "-tls1_3", name=name, clients=clients),
    }


BOTH = pytest.mark.parametrize("peer", ["asyncio", "openssl"])


@BOTH
async def test_a_certificate_of_an_unknown_authority(peer: str, authority: Authority, stranger: Authority) -> None:
    async with peers(stranger)[peer]() as port:
        found = await trouble_of(endpoint_of(authority, port))

    assert found.kind is Kind.TLS
    assert "unknown CA" in str(found)
    assert "CA_PATH" in str(found)


@BOTH
async def test_an_expired_certificate_of_the_vtn(peer: str, authority: Authority) -> None:
    authority.issue("expired", -30, -1)
    async with peers(authority, name="expired")[peer]() as port:
        found = await trouble_of(endpoint_of(authority, port))

    assert found.kind is Kind.TLS
    assert "expired" in str(found)


async def test_a_certificate_for_another_host(authority: Authority) -> None:
    authority.issue("elsewhere", host="elsewhere.example")
    async with asyncio_peer(context(authority, name="elsewhere")) as port:
        found = await trouble_of(endpoint_of(authority, port))

    assert found.kind is Kind.TLS
    assert "another host" in str(found)


async def test_a_clock_that_is_off_is_told_from_a_certificate_that_is_not_valid(authority: Authority) -> None:
    authority.issue("tomorrow", 1, 30)
    async with asyncio_peer(context(authority, name="tomorrow"), answer(2 * 86400.0)) as port:
        found = await trouble_of(endpoint_of(authority, port))

    assert found.kind is Kind.TLS
    assert "clock is 172" in str(found)
    assert "behind" in str(found)
    async with asyncio_peer(context(authority, name="tomorrow")) as port:
        assert "begins in the future" in str(await trouble_of(endpoint_of(authority, port)))


@BOTH
async def test_no_client_certificate(peer: str, authority: Authority) -> None:
    async with peers(authority)[peer]() as port:
        found = await trouble_of(endpoint_of(authority, port, certificate=None, key=None))

    assert found.kind is Kind.TLS
    assert "no client certificate" in str(found)
    assert "CERT_PATH" in str(found)


@BOTH
async def test_a_client_certificate_of_an_authority_that_the_vtn_does_not_know(
    peer: str, authority: Authority, stranger: Authority
) -> None:
    own = {"certificate": stranger.directory / "ven.crt", "key": stranger.directory / "ven.key"}
    async with peers(authority)[peer]() as port:
        found = await trouble_of(endpoint_of(authority, port, **own))

    assert found.kind is Kind.TLS
    # OpenSSL says why, asyncio only ends the connection.
    assert ("unknown CA" if peer == "openssl" else "that the VTN refuses") in str(found)


@BOTH
async def test_a_client_certificate_that_has_expired(peer: str, authority: Authority) -> None:
    certificate, key = authority.issue("old", -30, -1)
    async with peers(authority)[peer]() as port:
        found = await trouble_of(endpoint_of(authority, port, certificate=certificate, key=key))

    assert found.kind is Kind.TLS
    assert ("expired" if peer == "openssl" else "that the VTN refuses") in str(found)


@BOTH
async def test_a_vtn_of_tls_1_2_only(peer: str, authority: Authority) -> None:
    old = {"minimum": ssl.TLSVersion.TLSv1_2, "maximum": ssl.TLSVersion.TLSv1_2}
    made = {
        "asyncio": lambda: asyncio_peer(context(authority, **old)),
        "openssl": lambda: openssl_peer(authority, "-tls1_2"),
    }
    connections: list[Connected] = []
    async with made[peer]() as port:
        found = await trouble_of(endpoint_of(authority, port))
        # TLS_MINIMUM=1.2, and it works, and is told of each connection.
        transport = Transport(endpoint_of(authority, port, tls_minimum="1.2"), connected=connections.append)
        if peer == "asyncio":
            assert await transport.post("OadrPoll", b"") == b"<a/>"
        await transport.aclose()

    assert found.kind is Kind.TLS
    assert "protocol version" in str(found)
    assert "TLS_MINIMUM" in str(found)
    assert [one.tls_version for one in connections] == ["TLSv1.2"] * (peer == "asyncio")


async def test_a_handshake_that_is_not_answered(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("derms_agent.grid_gateway.transport.CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = await trouble_of(endpoint_of(authority, silent.getsockname()[1]))

    assert found.kind is Kind.TLS
    assert "does not answer the handshake" in str(found)


async def test_a_port_without_tls(authority: Authority) -> None:
    async with asyncio_peer(None, b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        found = await trouble_of(endpoint_of(authority, port))

    assert found.kind in {Kind.TLS, Kind.UNREACHABLE}


async def test_nobody_there(authority: Authority) -> None:
    found = await trouble_of(endpoint_of(authority, free_port()))

    assert found.kind is Kind.UNREACHABLE


async def test_a_host_without_an_address(authority: Authority) -> None:
    found = await trouble_of(Endpoint(url="https://vtn.invalid", authorities=authority.path))

    assert found.kind is Kind.UNREACHABLE
    assert "no address" in str(found)


async def test_a_vtn_that_ends_a_connection_now_and_then_refuses_no_certificate(authority: Authority) -> None:
    """A crash looks like a refusal, once: only where each connection ends so is it one."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=context(authority))
    found = await trouble_of(endpoint_of(authority, server.sockets[0].getsockname()[1]))
    server.close()

    assert found.kind is Kind.CLOSED


async def test_a_certificate_without_the_fingerprint_is_sent_nothing(authority: Authority) -> None:
    asked: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            asked.append(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context(authority))
    port = server.sockets[0].getsockname()[1]
    found = await trouble_of(endpoint_of(authority, port, fingerprint="00" * 32))
    await anyio.sleep(0.1)
    server.close()

    assert found.kind is Kind.TLS
    assert "VTN_FINGERPRINT" in str(found)
    assert not any(asked)


async def test_a_certificate_with_the_fingerprint(authority: Authority) -> None:  # defect 16
    der = ssl.PEM_cert_to_DER_cert((authority.directory / "vtn.crt").read_text(encoding="ascii"))
    digits = fingerprint_of(der).upper()
    async with asyncio_peer(context(authority)) as port:
        for written in (digits, digits[-20:], ":".join(digits[place : place + 2] for place in range(44, 64, 2))):
            transport = Transport(endpoint_of(authority, port, fingerprint=written))
            assert await transport.post("OadrPoll", b"") == b"<a/>"
            await transport.aclose()

    assert not fingerprint_fits(digits[:-2], der)
    assert not fingerprint_fits("", der)
    assert not fingerprint_fits(digits, None)


async def test_certificates_rotate_without_a_restart(new_vtn: Callable[..., LabVtn], tmp_path: Path) -> None:
    utility = Authority(tmp_path / "pki")
    utility.issue("vtn")
    certificate, _ = utility.issue("ven")
    vtn = new_vtn(authority=utility)
    made: list[Connected] = []
    warned: list[str] = []
    transport = Transport(endpoint_of(utility, vtn.port), connected=made.append, warned=warned.append)

    async def registers() -> None:
        found = parse(await transport.post("EiRegisterParty", messages.query_registration("1")))
        assert isinstance(found, CreatedPartyRegistration)

    await registers()
    await registers()
    assert len(made) == 1
    certificate.write_text(Path(certificate).read_text(encoding="ascii")[:100], encoding="ascii")
    await registers()
    assert "cannot be used" in warned[-1]
    utility.issue("ven")
    await registers()
    await transport.aclose()
    assert len(made) == 2
    assert "replaced" in warned[-1]


# Bodies


async def test_a_body_without_end(authority: Authority) -> None:
    endless = b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 9_000_000
    async with asyncio_peer(context(authority), endless) as port:
        found = await trouble_of(endpoint_of(authority, port))

    assert found.kind is Kind.BODY


async def test_a_body_that_drips_is_cut_off(authority: Authority) -> None:  # defect 5
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        try:
            for _ in range(1000):
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.05)
        except ConnectionError:
            writer.close()

    server = await asyncio.start_server(drip, "127.0.0.1", 0, ssl=context(authority))
    began_s = time.monotonic()
    found = await trouble_of(endpoint_of(authority, server.sockets[0].getsockname()[1]), total_s=1.0)
    server.close()

    assert found.kind is Kind.TIMEOUT
    assert time.monotonic() - began_s < 5


async def test_a_redirect_is_not_followed(authority: Authority) -> None:
    async with asyncio_peer(
        context(authority), b"HTTP/1.1 302 Found\r\nLocation: https://localhost/\r\nContent-Length: 0\r\n\r\n"
    ) as port:
        found = await trouble_of(endpoint_of(authority, port))

    assert found.kind is Kind.HTTP


async def test_how_far_the_clock_is_off_is_known(authority: Authority) -> None:
    async with asyncio_peer(context(authority), answer(-90.0)) as port:
        transport = Transport(endpoint_of(authority, port))
        await transport.post("OadrPoll", b"")
        await transport.aclose()

    assert transport.clock_off_s == pytest.approx(90.0, abs=2.0)


@given(st.integers(1, 100), st.floats(0, 1))
def test_a_pause_is_within_its_bound(attempt: int, draw: float) -> None:
    assert 0.0 <= backoff_s(attempt, draw, most_s=10.0) <= 10.0
    assert backoff_s(attempt, draw) <= backoff_s(attempt + 1, draw)


@pytest.mark.parametrize(
    ("url", "service"),
    [
        ("https://vtn.example", "https://vtn.example/OpenADR2/Simple/2.0b/OadrPoll"),
        ("https://vtn.example:8443/", "https://vtn.example:8443/OpenADR2/Simple/2.0b/OadrPoll"),
        ("https://vtn.example/vtn/", "https://vtn.example/vtn/OadrPoll"),
    ],
)
def test_where_a_service_is(url: str, service: str) -> None:
    endpoint = Endpoint(url=url)

    assert endpoint.service("OadrPoll") == service
    assert endpoint.port == (8443 if "8443" in url else 443)
