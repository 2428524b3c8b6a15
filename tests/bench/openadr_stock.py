# SPDX-License-Identifier: GPL-3.0-or-later
"""openleadr's own VEN as the openadr benchmarks' reference: python -m tests.bench.openadr_stock JSON.

It polls at the VTN's pace and prints a line of JSON for each event that reaches its handler: the event's id, and when.
Its argument has url, certificate, key and authorities.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from agent.tests.grid_gateway.stock_client import OUT, client_of

VEN_NAME = "stock"


async def main() -> None:
    """Poll until the process is ended."""

    async def handled(event: dict[str, Any]) -> str:
        at_s = time.monotonic()
        print(json.dumps({"event": event["event_descriptor"]["event_id"], "at_s": at_s}), file=OUT, flush=True)
        return "optIn"

    client = client_of(json.loads(sys.argv[1]), VEN_NAME)
    client.add_handler("on_event", handled)
    await client.run()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
