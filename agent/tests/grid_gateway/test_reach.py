# SPDX-License-Identifier: Apache-2.0
"""How far a VTN can be reached, against servers of asyncio's and of OpenSSL's: each tells what it refuses otherwise."""

from __future__ import annotations

from typing import Any

import anyio.to_thread
import pytest
from agent.tests.grid_gateway.conftest import Authority, LabVtn
from agent.tests.grid_gateway.test_transport import BOTH, asyncio_peer, context, openssl_peer, peers
from agent.tests.grid_gateway.vtn_messages import eiresponse, payload

from derms_agent.device_state.calls import Unusable
from derms_agent.grid_gateway.reach import reached
from derms_agent.grid_gateway.transport import Transport

pytestmark = pytest.mark.anyio


async def reach(authority: Authority, port: int, **other: Any) -> dict[str, Any]:
    """Return what the module is told, from a thread, for it runs a loop of its own."""
    directory = authority.directory
    told = {
        "vtn_url": f"https://localhost:{port}",
        "tls_minimum": "1.3",
        "timeout_s": 5.0,
        "certificate_path": str(directory / "ven.crt"),
        "private_key_path": str(directory / "ven.key"),
        "ca_path": str(authority.path),
        **other,
    }
    return await anyio.to_thread.run_sync(lambda: reached(**told))


def statuses(found: dict[str, Any]) -> list[str]:
    return [one["status"] for one in found["stages"]]


@BOTH
async def test_what_a_vtn_shows_is_told_whether_or_not_it_is_trusted(
    peer: str, authority: Authority, stranger: Authority
) -> None:
    async with peers(authority)[peer]() as port:
        trusted = await reach(authority, port, timeout_s=1.0)
        other = await reach(authority, port, ca_path=str(stranger.path))
    # Neither peer speaks OpenADR, and OpenSSL's does not answer a POST at all: nobody has said yes or no.
    assert statuses(trusted) == ["ok", "ok" if peer == "asyncio" else "unknown", "failed"]
    assert statuses(other) == ["failed", "not_tried", "not_tried"]
    for found in (trusted, other):
        assert (found["tls_version"], found["chain"][0]["subject"]) == ("TLSv1.3", "CN=vtn")
        assert found["chain"][0]["issuer"] == "CN=authority"


@BOTH
async def test_a_client_that_is_refused_after_the_handshake(
    peer: str, authority: Authority, stranger: Authority
) -> None:
    async with peers(authority, clients=stranger)[peer]() as port:
        found = await reach(authority, port)
    assert statuses(found) == ["ok", "failed", "not_tried"]
    assert "CERT_PATH" in found["stages"][1]["advice"]


async def test_a_client_that_is_refused_within_the_handshake(authority: Authority, stranger: Authority) -> None:
    async with openssl_peer(authority, "-tls1_2", clients=stranger) as port:
        found = await reach(authority, port, tls_minimum="1.2")
    assert statuses(found) == ["ok", "failed", "not_tried"]


@pytest.mark.parametrize(
    ("message", "reason", "advice"),
    [
        (f"<oadr:oadrResponse>{eiresponse(463)}</oadr:oadrResponse>", "the VTN refuses: 463", "this VEN's name"),
        (f"<oadr:oadrResponse>{eiresponse(459)}</oadr:oadrResponse>", "the VTN refuses: 459", "utility operator"),
        (f"<oadr:oadrResponse>{eiresponse()}</oadr:oadrResponse>", "found Response, expected oadrCreated", "operator"),
    ],
)
async def test_an_answer_that_is_no_registration(authority: Authority, message: str, reason: str, advice: str) -> None:
    body = payload(message).encode()
    says = b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    async with asyncio_peer(context(authority), says) as port:
        found = await reach(authority, port)
    assert statuses(found) == ["ok", "ok", "failed"]
    assert found["stages"][2]["reason"].startswith(reason)
    assert advice in found["stages"][2]["advice"]
    assert found["registration"] is None


async def test_a_version_of_tls_that_is_none() -> None:
    with pytest.raises(Unusable, match=r"tls_minimum: found 1\.1, expected one of 1\.2, 1\.3"):
        reached(vtn_url="https://localhost", tls_minimum="1.1", timeout_s=1.0)


async def test_the_query_is_signed_and_its_answer_has_to_be(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []
    post = Transport.post

    async def noted_post(self: Transport, service: str, body: bytes) -> bytes:
        sent.append(body)
        return await post(self, service, body)

    monkeypatch.setattr(Transport, "post", noted_post)
    for signs, expected in ((True, "ok"), (False, "failed")):
        vtn = LabVtn(authority, more={"signs": signs}).start()
        try:
            found = await reach(authority, vtn.port, xml_signatures="require")
        finally:
            vtn.kill()
        assert statuses(found) == ["ok", "ok", expected]
    assert "found no signature" in found["stages"][2]["reason"]
    assert all(b"SignatureValue" in body for body in sent)


async def test_what_nothing_can_be_signed_with_is_named(authority: Authority) -> None:
    with pytest.raises(Unusable, match=r"xml_signatures: .*CERT_PATH"):
        await reach(authority, 1, certificate_path=None, private_key_path=None, xml_signatures="sign")
