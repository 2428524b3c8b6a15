# SPDX-License-Identifier: Apache-2.0
"""Only the VTN may push: neither who shows no certificate, nor another VEN of the same utility, nor another utility."""

from __future__ import annotations

from dataclasses import replace

import pytest
from agent.tests.grid_gateway.conftest import Authority
from agent.tests.grid_gateway.test_push import an_event, field_, pushed_to
from agent.tests.grid_gateway.test_ven import Field, within
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificate

from derms_agent.grid_gateway.push import is_for_host
from derms_agent.grid_gateway.transport import Kind, Transport, Trouble

__all__ = ["field_"]
pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("given_for", "host", "fits"),
    [
        ("vtn.example", "vtn.example", True),
        ("VTN.example", "vtn.EXAMPLE", True),
        ("*.example", "vtn.example", True),
        ("*.example", "a.vtn.example", False),
        ("*.example", "example", False),
        ("vtn.example", "xvtn.example", False),
        ("vtn.example", "example", False),
        ("localhost", "127.0.0.1", True),
        ("localhost", "127.0.0.2", False),
    ],
)
def test_whom_a_certificate_was_given_for(authority: Authority, given_for: str, host: str, fits: bool) -> None:
    path, _ = authority.issue("named", host=given_for)
    der = load_pem_x509_certificate(path.read_bytes()).public_bytes(Encoding.DER)
    assert is_for_host(der, host) is fits
    assert not is_for_host(der[:-1], host)


async def test_neither_another_ven_nor_another_utility_nor_nobody_may(
    field_: Field, stranger: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = field_.authority.issue("other-ven", host="other-depot.example")
    async with pushed_to(field_) as vtn:
        others = {
            "another VEN": (replace(vtn.endpoint, certificate=certificate, key=key), Kind.HTTP),
            "another utility": (
                replace(vtn.endpoint, certificate=stranger.directory / "vtn.crt", key=stranger.directory / "vtn.key"),
                Kind.TLS,
            ),
            "nobody": (replace(vtn.endpoint, certificate=None, key=None), Kind.TLS),
        }
        for endpoint, kind in others.values():
            other = Transport(endpoint)
            with pytest.raises(Trouble) as caught:
                await other.post("EiEvent", an_event(field_))
            await other.aclose()
            assert caught.value.kind is kind
        assert not field_.ven.state.events
        assert caplog.text.count("A push was refused: its certificate is not that of the host of VTN_URL") == 1
        # The VTN's own is let in all the while.
        await vtn.post("EiEvent", an_event(field_))
        await within(5, lambda: field_.depot.high_w() == [60_000.0])
