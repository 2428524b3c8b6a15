# SPDX-License-Identifier: GPL-3.0-or-later
"""The grid gateway as it is in service, with notes of when: python -m tests.bench.openadr_gateway NOTES ARGUMENTS.

What runs is `derms-agent ARGUMENTS`. A line of JSON goes to the file NOTES for each answer of the VTN's that is in
hand, with the events that it lists and how many tasks there are, and for each bound that the orchestrator has
acknowledged, which it does once it has it on its disk. Times are CLOCK_MONOTONIC.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from pathlib import Path

from derms_agent.cli import main
from derms_agent.grid_gateway.control_link import ControlLink, Honour
from derms_agent.grid_gateway.events import Bound
from derms_agent.grid_gateway.transport import Transport

_EVENT = re.compile(rb"<ei:eventID>([^<]*)<")


def note_into(path: Path) -> None:
    """Have both ends of an event's way through the gateway noted."""
    notes = path.open("a", encoding="utf-8", buffering=1)
    post, put = Transport.post, ControlLink.put

    async def noted_post(self: Transport, service: str, body: bytes) -> bytes:
        answer = await post(self, service, body)
        at_s = time.monotonic()
        events = [one.decode() for one in _EVENT.findall(answer)] if service == "OadrPoll" else []
        notes.write(json.dumps({"answered_s": at_s, "events": events, "tasks": len(asyncio.all_tasks())}) + "\n")
        return answer

    async def noted_put(self: ControlLink, bound: Bound) -> Honour:
        honour = await put(self, bound)
        notes.write(json.dumps({"persisted_s": time.monotonic(), "event": bound.key[1]}) + "\n")
        return honour

    Transport.post = noted_post  # type: ignore[method-assign]
    ControlLink.put = noted_put  # type: ignore[method-assign]


if __name__ == "__main__":
    note_into(Path(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
