# SPDX-License-Identifier: Apache-2.0
"""The way to an agent's buses, over the socket that the agent serves."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import anyio
import pytest

from derms_agent.device_state import access
from derms_agent.device_state.access import Agent
from derms_agent.socket_server import Verbs, serve

pytestmark = pytest.mark.anyio

REQUESTS, PACE_S = 20, 0.03


async def test_an_agent_is_asked_no_faster_than_it_has_time_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many devices are asked at once: in a burst, its own work would wait behind all of them."""
    monkeypatch.setattr(access, "PACE_S", PACE_S)
    came_s: list[float] = []

    async def answer(_arguments: Mapping[str, object], _user: str) -> object:
        came_s.append(time.monotonic())
        return []

    verbs = Verbs({"version": answer, "bus.transact": answer}, {}, frozenset)
    listener = await anyio.create_unix_listener(tmp_path / "socket")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve, listener, verbs)
        async with Agent(tmp_path / "socket") as agent, anyio.create_task_group() as asked:
            for _ in range(REQUESTS):
                asked.start_soon(lambda: agent.ask("bus.transact"))
        await anyio.sleep(0.1)  # until the server has seen that everybody has gone
        tasks.cancel_scope.cancel()
    assert len(came_s) >= REQUESTS
    assert max(came_s) - min(came_s) >= 0.9 * PACE_S * (REQUESTS - 1)
