# SPDX-License-Identifier: Apache-2.0
"""The orchestrator is told all of a bound over a real socket, also one that was restarted since it was last asked."""

from __future__ import annotations

import getpass
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from derms_agent.grid_gateway.control_link import ControlLink, Honour, NoControl, NotReady
from derms_agent.grid_gateway.events import Bound
from derms_agent.model import Rank
from derms_agent.socket_protocol import ProtocolError
from derms_agent.socket_server import Verbs, listening, serve

pytestmark = pytest.mark.anyio
BOUND = Bound(
    name="openadr-1", key=("VTN-1", "00123"), target="hall", high_w=42_000.0, start_unix_s=1_800_000_000.0,
    end_unix_s=1_800_003_600.0, source="OpenADR event 00123", baseline_w=80_000.0,
)  # fmt: skip
TOLD = {
    "name": "openadr-1", "source": "OpenADR event 00123", "rank": "grid", "target": "hall", "high_w": 42_000.0,
    "start": "2027-01-15T08:00:00Z", "end": "2027-01-15T09:00:00Z", "baseline_w": 80_000.0,
}  # fmt: skip


@dataclass
class Orchestrator:
    """Whoever answers at the orchestrator's socket."""

    path: Path
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    refusal: ProtocolError | None = None

    async def _answer(self, verb: str, arguments: Mapping[str, Any], _user: str) -> object:
        self.asked.append((verb, dict(arguments)))
        if self.refusal is not None:
            raise self.refusal
        return {"can_honour": True, "why": ""}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        changing = {verb: partial(self._answer, verb) for verb in ("limit.put", "limit.remove", "grid.link")}
        verbs = Verbs({"status": partial(self._answer, "status")}, changing, lambda: (getpass.getuser(),))
        async with anyio.create_task_group() as tasks, listening(self.path) as listener:
            tasks.start_soon(serve, listener, verbs)
            yield
            tasks.cancel_scope.cancel()


@pytest.fixture
def orchestrator(tmp_path: Path) -> Orchestrator:
    return Orchestrator(tmp_path / "o.sock")


async def test_all_of_a_bound_is_told(orchestrator: Orchestrator) -> None:
    link = ControlLink(orchestrator.path)
    async with orchestrator.running():
        assert await link.put(BOUND) == Honour(True, "")
        await link.put(replace(BOUND, rank=Rank.PRICE, target="site", end_unix_s=math.inf, baseline_w=None))
        await link.remove("openadr-1")
        await link.link(30.0)
    whole, open_ended = dict(TOLD), {**TOLD, "rank": "price", "target": "site"}
    del open_ended["end"], open_ended["baseline_w"]
    assert orchestrator.asked == [
        ("limit.put", whole),
        ("limit.put", open_ended),
        ("limit.remove", {"name": "openadr-1"}),
        ("grid.link", {"valid_for_s": 30.0}),
    ]


async def test_one_that_was_restarted_is_told_at_once_and_one_that_is_away_is_said_to_be(
    orchestrator: Orchestrator,
) -> None:
    link = ControlLink(orchestrator.path)
    for _again in range(2):
        async with orchestrator.running():
            assert (await link.put(BOUND)).can
            await link.status()
    with pytest.raises(NoControl):
        await link.put(BOUND)
    with pytest.raises(NoControl):
        await link.status()
    async with orchestrator.running():
        assert (await link.put(BOUND)).can


async def test_what_it_can_make_nothing_of_is_no_promise_what_it_cannot_store_none_yet_and_all_else_no_control(
    orchestrator: Orchestrator,
) -> None:
    link = ControlLink(orchestrator.path)
    async with orchestrator.running():
        orchestrator.refusal = ProtocolError("argument", "found no such circuit")
        honour = await link.put(BOUND)
        assert not honour.can
        assert "no such circuit" in honour.why
        await link.remove("openadr-1")
        orchestrator.refusal = ProtocolError("not stored", "no space left")
        for asked in (link.put(BOUND), link.remove("openadr-1")):
            with pytest.raises(NotReady, match="no space left"):
                await asked
        orchestrator.refusal = ProtocolError("failed", "it broke")
        with pytest.raises(NoControl, match="it broke") as failed:
            await link.put(BOUND)
        assert not isinstance(failed.value, NotReady)
