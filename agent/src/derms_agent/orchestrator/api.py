# SPDX-License-Identifier: Apache-2.0
"""What `limit.put` takes at the orchestrator's socket. docs/socket.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from derms_agent.control import limits
from derms_agent.orchestrator.asks import RANKS, Ask, Clock
from derms_agent.profiles.profile import nearest
from derms_agent.socket_protocol import ProtocolError
from derms_agent.socket_server import Arguments

_MOST_W = 1e9


def ask_of(found: Mapping[str, Any], user: str, targets: Mapping[str, Any], now_unix_s: float) -> Ask:
    """Return the ask that `limit.put` brings; its times are the wall's. Raises ProtocolError."""
    arguments = Arguments(found)
    ask_id = arguments.text("name")
    source = arguments.optional_text("source") or f"{user}: {ask_id}"
    rank = RANKS[arguments.one_of("rank", RANKS, "operator")]
    target = arguments.optional_text("target") or limits.SITE
    low_w, high_w = arguments.number("low_w", -_MOST_W, _MOST_W), arguments.number("high_w", -_MOST_W, _MOST_W)
    baseline_w = arguments.number("baseline_w", -_MOST_W, _MOST_W)
    start_unix_s, end_unix_s = arguments.time("start"), arguments.time("end")
    duration_s = arguments.number("duration_s", 0.0, 366 * 86400.0)
    arguments.end()
    if target not in targets:
        meant = nearest(target, targets)
        hint = f" (did you mean {meant}?)" if meant else ""
        raise ProtocolError("argument", f"target: found {target!r}, expected site, a circuit or an EVSE{hint}")
    if low_w is None and high_w is None:
        raise ProtocolError("argument", "found neither low_w nor high_w, expected one at least")
    low_w, high_w = -math.inf if low_w is None else low_w, math.inf if high_w is None else high_w
    if low_w > high_w:
        raise ProtocolError("argument", f"low_w: found {low_w:g}, expected at most high_w, {high_w:g}")
    if duration_s is not None:
        if end_unix_s is not None:
            raise ProtocolError("argument", "found both end and duration_s, expected one of them")
        end_unix_s = (now_unix_s if start_unix_s is None else start_unix_s) + duration_s
    if start_unix_s is not None and end_unix_s is not None and end_unix_s <= start_unix_s:
        raise ProtocolError("argument", "end: found a time before the start, expected one after it")
    return Ask(
        id=ask_id,
        source=source,
        rank=rank,
        target=target,
        low_w=low_w,
        high_w=high_w,
        start_unix_s=start_unix_s,
        end_unix_s=end_unix_s,
        put_by=user,
        baseline_w=baseline_w,
        goes_by=Clock.CONTROL if duration_s is not None and start_unix_s is None else None,
    )
