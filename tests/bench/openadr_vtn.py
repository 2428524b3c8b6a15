# SPDX-License-Identifier: GPL-3.0-or-later
"""The VTN of the openadr benchmarks, a process of its own: python -m tests.bench.openadr_vtn JSON.

It is the laboratory's (agent/tests/grid_gateway/lab_vtn.py), which says when it sends an event, and pushes where it is
told an address: openleadr's own VTN has no push. Times are CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from derms_agent.grid_gateway.transport import Endpoint, Transport
from openleadr import utils

from agent.tests.grid_gateway.lab_vtn import Lab, main

FOR_S = 600.0


class TimedVtn(Lab):
    """The laboratory's VTN, with events whose sending is timed."""

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__(told)
        self._told = told
        self._sending: set[asyncio.Task[None]] = set()

    def do_shed(self, ven_id: str, push_url: str | None = None) -> dict[str, Any]:
        """Send SIMPLE level 1 from now on; return the event's id, and when add_event had returned."""
        interval = {
            "dtstart": datetime.now(timezone.utc),
            "duration": timedelta(seconds=FOR_S),
            "signal_payload": 1.0,
        }
        event_id = self.server.add_event(
            ven_id=ven_id,
            signal_name="SIMPLE",
            signal_type="level",
            intervals=[interval],
            callback=self.opted,
            market_context="http://utility.example/shed",
        )
        returned_s = time.monotonic()
        self._push(ven_id, push_url)
        return {"event": event_id, "returned_s": returned_s}

    def do_answer_to(self, event_id: str) -> str | None:
        """Return optIn or optOut; None: there is no answer yet."""
        return next((one["opt"] for one in self.opts if one["event_id"] == event_id), None)

    def do_polls(self) -> int:
        """Return how often this VTN was polled."""
        return self.polls

    def do_end(self, ven_id: str, event_id: str, push_url: str | None = None) -> None:
        """Cancel an event."""
        self.server.cancel_event(ven_id, event_id)
        self._push(ven_id, push_url)

    def do_withdraw(self, ven_id: str, event_id: str) -> None:
        """Take an event off the list and tell nobody: the stock client fails at cancellations that it sees twice."""
        utils.pop_by(self.server.events[ven_id], "event_descriptor.event_id", event_id)

    def _push(self, ven_id: str, push_url: str | None) -> None:
        if push_url is not None:
            task = asyncio.get_running_loop().create_task(self._send(ven_id, push_url))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _send(self, ven_id: str, push_url: str) -> None:
        """Send the list of events as a poll would bring it, over a connection made for it: none is kept for hours."""
        service = self.server.services["event_service"]
        asked = {"ven_id": ven_id, "request_id": utils.generate_id()}
        kind, payload = await service.handle_message("oadrRequestEvent", asked)
        body = service._create_message(kind, **payload)  # as it answers a request itself
        told = self._told
        transport = Transport(
            Endpoint(
                url=push_url,
                certificate=Path(told["cert"]),
                key=Path(told["key"]),
                authorities=Path(told["ca"]),
            )
        )
        await transport.post("EiEvent", body.encode())
        await transport.aclose()


if __name__ == "__main__":
    asyncio.run(main(TimedVtn))
