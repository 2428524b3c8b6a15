# SPDX-License-Identifier: Apache-2.0
"""What a subscriber of a real broker sees of the gateway."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from derms_agent.grid_gateway.mirror import _SHOWN, Mirror
from derms_agent.mqtt import TlsFiles, anew

if TYPE_CHECKING:
    from agent.tests.conftest import Broker, Peer

pytestmark = pytest.mark.anyio


async def test_state_is_retained_and_events_are_told(
    broker: Broker, tls: TlsFiles, peer: Callable[[], Peer], tmp_path: Path
) -> None:
    shown: dict[str, Any] = dict.fromkeys(
        ("absent", "ven_id", "vtn_id", "link_lost", "trouble", "control_trouble", "events", "bounds", "prices")
    )
    shown |= {"registered": True, "heard_s_ago": 1.0}
    subscriber = peer()
    mirror = Mirror("small")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(mirror.run, broker.url, tls, tmp_path / "outbox.sqlite", lambda: shown)
        mirror.happened("event", {"event": "e1"})
        until_s = time.monotonic() + 15
        while not (subscriber.bodies("/grid-gateway/small/state") and subscriber.bodies("/grid-gateway/small/event")):
            assert time.monotonic() < until_s
            await anyio.sleep(0.1)
        # What only counts up is no change of state.
        shown["heard_s_ago"] = 2.0
        await anyio.sleep(1.5)
        tasks.cancel_scope.cancel()

    (state,) = subscriber.bodies("/grid-gateway/small/state")
    (event,) = subscriber.bodies("/grid-gateway/small/event")
    assert state["registered"] is True
    assert "heard_s_ago" not in state
    assert event["event"] == "e1"


async def test_a_state_beyond_what_the_broker_takes_is_said_and_ends_nothing(
    broker: Broker, tls: TlsFiles, peer: Callable[[], Peer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shown: dict[str, Any] = dict.fromkeys(
        ("absent", "ven_id", "vtn_id", "link_lost", "control_trouble", "events", "bounds", "prices")
    )
    shown |= {"registered": True, "trouble": "x" * 70_000}
    subscriber = peer()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Mirror("small").run, broker.url, tls, tmp_path / "outbox.sqlite", lambda: shown)
        with anyio.fail_after(15):
            while "not published" not in caplog.text:
                await anyio.sleep(0.05)
            shown["trouble"] = None
            while not subscriber.bodies("/grid-gateway/small/state"):
                await anyio.sleep(0.05)
        tasks.cancel_scope.cancel()


async def test_whatever_ends_it_is_said_once_and_it_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(anew, "AGAIN_S", 0.01)
    looks = 0

    def shown() -> dict[str, Any]:
        nonlocal looks
        looks += 1
        if looks <= 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return dict.fromkeys(_SHOWN)

    with anyio.fail_after(15):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Mirror("small").run, "mqtt://localhost:1", None, tmp_path / "outbox.sqlite", shown)
            while looks <= 3:
                await anyio.sleep(0.02)
            tasks.cancel_scope.cancel()
    (said,) = [one for one in caplog.records if "the gateway goes on without" in one.getMessage()]
    assert said.exc_info is not None
    assert "No space left on device" in str(said.exc_info[1])
