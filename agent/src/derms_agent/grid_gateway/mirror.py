# SPDX-License-Identifier: Apache-2.0
"""What the gateway says over MQTT, at `derms/v1/<depot>/grid-gateway/<depot>/{state,event}`.

Nothing of the safety path is here. The broker lets it say nothing elsewhere (the role mqtt_broker).

The state is retained: the registration, the link, trouble, and every event with what it bounds. Events are told once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from derms_agent.grid_gateway import iso8601
from derms_agent.mqtt import Outbox, Publisher, TlsFiles, begun_anew, side_by_side, unsendable_said

GRID = "grid-gateway"
CLIENT_ID = "derms-grid-gateway"
LOOK_S = 1.0
MOST_WAITING = 1000
_SHOWN = (
    "registered", "absent", "ven_id", "vtn_id", "link_lost", "trouble", "control_trouble", "events", "bounds", "prices",
)  # fmt: skip

logger = logging.getLogger("derms.grid_gateway")


class Mirror:
    """Takes what happened, and publishes it with the state while it runs."""

    def __init__(self, depot: str) -> None:
        self._depot = depot
        self._happened, self._waiting = anyio.create_memory_object_stream[dict[str, Any]](MOST_WAITING)

    def happened(self, kind: str, what: Mapping[str, Any]) -> None:
        """Have an event published. Whatever happens here, the gateway goes on: beyond 1,000 that wait it is lost."""
        try:
            self._happened.send_nowait({"kind": kind, "at": iso8601.time_text(time.time()), **what})
        except anyio.WouldBlock:
            return

    async def run(self, url: str, tls: TlsFiles | None, outbox: Path, shown: Callable[[], Mapping[str, Any]]) -> None:
        """Publish until cancelled; whatever goes wrong with it is said, and the gateway goes on meanwhile."""
        await begun_anew(partial(self._publish, url, tls, outbox, shown), logger, "the gateway goes on without")

    async def _publish(
        self, url: str, tls: TlsFiles | None, outbox: Path, shown: Callable[[], Mapping[str, Any]]
    ) -> None:
        async with Outbox.open(outbox) as opened:
            publisher = Publisher(url, tls, CLIENT_ID, self._depot, opened)
            await side_by_side(
                publisher.run,
                partial(self._tell_events, publisher),
                partial(self._tell_state, publisher, shown),
            )

    async def _tell_state(self, publisher: Publisher, shown: Callable[[], Mapping[str, Any]]) -> None:
        told: Mapping[str, Any] | None = None
        while True:
            found = shown()
            state = {name: found[name] for name in _SHOWN}
            if state != told:
                told = state
                with unsendable_said(logger):
                    await publisher.state(GRID, self._depot, {"at": iso8601.time_text(time.time()), **state})
            await anyio.sleep(LOOK_S)

    async def _tell_events(self, publisher: Publisher) -> None:
        async for event in self._waiting:
            with unsendable_said(logger):
                await publisher.event(GRID, self._depot, event)
