# SPDX-License-Identifier: Apache-2.0
"""The process that a module of the collection starts with the agent's own Python: one request in, its answer out."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from derms_agent.device_state.calls import answered

NICENESS = 10


def give_way(arguments: Mapping[str, Any]) -> None:
    """Leave the processor to others; where an agent runs, whenever it or anything else wants it.

    The agent comes first, on a small gateway's processor as on its buses: a shed does not wait until a depot's document
    has been gone through.
    """
    os.nice(NICENESS)
    if Path(arguments["socket"]).exists():
        with suppress(PermissionError):  # a container may forbid it
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def main() -> None:
    """Answer the request on standard input, and end."""
    gc.disable()  # It ends soon, and finding nothing to collect took a fifth of its time.
    request = json.load(sys.stdin)
    give_way(request["arguments"])
    json.dump(answered(request), sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # To free a depot's objects one by one would take a tenth of it.


if __name__ == "__main__":
    main()
