# SPDX-License-Identifier: Apache-2.0
"""What comes is bounded in bytes, elements, depth and time, whatever else is wrong with it."""

from __future__ import annotations

import time

import anyio
import pytest
from agent.tests.grid_gateway.test_push import an_event, field_, pushed_to
from agent.tests.grid_gateway.test_ven import Field
from agent.tests.grid_gateway.vtn_messages import distribute, event

from derms_agent.grid_gateway import push, transport
from derms_agent.grid_gateway.incoming import MOST_BYTES, MOST_DEPTH, MOST_ELEMENTS, DistributeEvent, Malformed, parse
from derms_agent.grid_gateway.transport import Kind, Trouble, context_of

__all__ = ["field_"]


def test_a_sound_message_is_refused_by_one_byte_too_many() -> None:
    body = distribute(event())
    longest = body + b" " * (MOST_BYTES - len(body))
    assert isinstance(parse(longest), DistributeEvent)
    with pytest.raises(Malformed, match=f"found {MOST_BYTES + 1} bytes, expected at most {MOST_BYTES}"):
        parse(longest + b" ")


@pytest.mark.parametrize("end", [b"", b"</a>" * (MOST_DEPTH + 1)], ids=["broken off", "whole"])
def test_how_deep_a_message_may_be(end: bytes) -> None:
    with pytest.raises(Malformed, match=f"more than {MOST_DEPTH} deep"):
        parse(b"<a>" * (MOST_DEPTH + 1) + end)
    with pytest.raises(Malformed, match="oadrPayload"):
        parse(b"<a>" * MOST_DEPTH + b"</a>" * MOST_DEPTH)


def test_how_many_elements_a_message_may_have() -> None:
    most = b"<a>" + b"<b/>" * (MOST_ELEMENTS - 1)
    with pytest.raises(Malformed, match=f"more than {MOST_ELEMENTS} elements"):
        parse(most + b"<b/></a>")
    with pytest.raises(Malformed, match="oadrPayload"):
        parse(most + b"</a>")


@pytest.mark.anyio
async def test_a_push_that_is_too_long_is_not_read_to_its_end(field_: Field) -> None:
    async with pushed_to(field_) as sender:
        with pytest.raises(Trouble, match="413") as caught:
            await sender.post("EiEvent", an_event(field_) + b" " * MOST_BYTES)
    assert caught.value.kind is Kind.HTTP
    assert not field_.depot.bounds


@pytest.mark.anyio
async def test_a_push_that_drips_is_cut_off(field_: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "READ_S", 0.5)
    async with pushed_to(field_) as sender:
        endpoint = sender.endpoint
        async with await anyio.connect_tcp(
            "localhost", endpoint.port, tls=True, ssl_context=context_of(endpoint), tls_standard_compatible=False
        ) as stream:
            head = f"POST {transport.PATH}/EiEvent HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
            began_s = time.monotonic()
            await stream.send(head.encode())
            answered = b""
            with anyio.fail_after(8):
                while not answered:
                    await stream.send(b" ")
                    with anyio.move_on_after(0.1):
                        answered = await stream.receive()
            took_s = time.monotonic() - began_s
            await stream.send(b" " * 1000)  # or the server waits for the rest of it for a while
    assert b"408" in answered.partition(b"\r\n")[0]
    assert took_s < 5
