# SPDX-License-Identifier: Apache-2.0
"""The orchestrator's socket as the gateway uses it: bounds are put and removed, the grid's link is said to stand."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import anyio
import anyio.to_thread

from derms_agent.grid_gateway import iso8601
from derms_agent.grid_gateway.events import Bound
from derms_agent.socket_client import Client, NoService
from derms_agent.socket_protocol import ProtocolError

ANSWER_S = 2.0


class NoControl(Exception):
    """The orchestrator does not answer, or does not take what it is asked for."""


class NotTaken(NoControl):
    """The orchestrator answers, and cannot make anything of this one ask: the others are well."""


class NotReady(NoControl):
    """The orchestrator obeys this one ask, and cannot promise it yet: the others do not wait.

    Whether it can in full it knows once its devices were heard; or its disk is full, and a successor would not know.
    """


class NotJudged(NotReady):
    """The former: its report says when it can judge, `informed`."""


_REFUSALS: Mapping[str, type[NoControl]] = {"argument": NotTaken, "not ready": NotJudged, "not stored": NotReady}
"""What a refusal of the orchestrator's is, by its code; all others are NoControl."""


@dataclass(frozen=True, slots=True)
class Honour:
    """Whether the depot can obey, and why no better."""

    can: bool
    why: str


class Control(Protocol):
    """Whoever controls the depot. Every method raises NoControl."""

    async def put(self, bound: Bound) -> Honour:
        """Have a bound obeyed; it is on the disk there when this returns. Raises NotReady."""

    async def remove(self, name: str) -> None:
        """Have a bound forgotten; one that is not there is no trouble. Raises NotReady."""

    async def link(self, valid_for_s: float) -> None:
        """Say that the grid's link stands, for so long."""

    async def status(self) -> Mapping[str, Any]:
        """Return the report."""


def changes(
    handed: Mapping[str, Bound], wanted: Iterable[Bound], now_unix_s: float
) -> tuple[tuple[Bound, ...], tuple[str, ...]]:
    """Return which bounds are to be put, and which removed after that, so that nothing is let loose in between.

    What is over is neither: whoever has it lets it go by itself.
    """
    by_name = {bound.name: bound for bound in wanted}
    fresh = tuple(bound for name, bound in by_name.items() if handed.get(name) != bound)
    gone = tuple(name for name, bound in handed.items() if name not in by_name and bound.end_unix_s > now_unix_s)
    return fresh, gone


class ControlLink:
    """The orchestrator, over two connections: what is looked up there keeps no bound waiting."""

    def __init__(self, path: Path) -> None:
        self._orders, self._looks = _Connection(path), _Connection(path)

    async def put(self, bound: Bound) -> Honour:
        """Have a bound obeyed. Raises NoControl, NotReady among them."""
        arguments: dict[str, Any] = {
            "name": bound.name,
            "source": bound.source,
            "rank": bound.rank.name.lower(),
            "target": bound.target,
            "high_w": bound.high_w,
            "start": iso8601.time_text(bound.start_unix_s),
        }
        if math.isfinite(bound.end_unix_s):
            arguments["end"] = iso8601.time_text(bound.end_unix_s)
        if bound.baseline_w is not None:
            arguments["baseline_w"] = bound.baseline_w
        try:
            answer = await self._orders.ask("limit.put", **arguments)
        except NotTaken as why:
            return Honour(False, str(why))
        return Honour(bool(answer["can_honour"]), str(answer["why"]))

    async def remove(self, name: str) -> None:
        """Have a bound forgotten. Raises NoControl, NotReady among them."""
        with contextlib.suppress(NotTaken):
            await self._orders.ask("limit.remove", name=name)

    async def link(self, valid_for_s: float) -> None:
        """Say that the grid's link stands, for so long. Raises NoControl."""
        await self._looks.ask("grid.link", valid_for_s=valid_for_s)

    async def status(self) -> Mapping[str, Any]:
        """Return the report. Raises NoControl."""
        found: Mapping[str, Any] = await self._looks.ask("status")
        return found


@dataclass(slots=True, eq=False)
class _Connection:
    """A connection to the orchestrator, made anew where it broke. Its calls block, so they are made in a thread."""

    path: Path
    _client: Client | None = None
    _lock: anyio.Lock = field(default_factory=anyio.Lock)

    async def ask(self, verb: str, **arguments: Any) -> Any:
        """Return the result of a verb. Raises NoControl."""
        async with self._lock:
            return await anyio.to_thread.run_sync(partial(self._asked, verb, arguments), abandon_on_cancel=False)

    def _asked(self, verb: str, arguments: Mapping[str, Any]) -> Any:
        kept = self._client is not None
        try:
            try:
                return self._connected().ask(verb, **arguments)
            except NoService:
                self._close()
                if not kept:
                    raise
                # The orchestrator may have been restarted since: whatever was asked may be asked again.
                return self._connected().ask(verb, **arguments)
        except NoService as problem:
            self._close()
            raise NoControl(str(problem)) from problem
        except ProtocolError as refusal:
            kind = _REFUSALS.get(refusal.code, NoControl)
            raise kind(f"{verb}: {refusal.code}: {refusal}") from refusal

    def _connected(self) -> Client:
        if self._client is None:
            self._client = Client(self.path, ANSWER_S)
        return self._client

    def _close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
