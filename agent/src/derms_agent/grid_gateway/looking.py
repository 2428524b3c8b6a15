# SPDX-License-Identifier: Apache-2.0
"""What the module openadr_events_info asks of the grid gateway: the events that are on or to come."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from derms_agent.device_state.calls import Unusable
from derms_agent.grid_gateway import iso8601
from derms_agent.grid_gateway.incoming import Status
from derms_agent.socket_client import Client, NoService
from derms_agent.socket_protocol import ProtocolError

ANSWER_S = 10.0
LINK = ("vtn", "registered", "absent", "ven_id", "vtn_id", "poll_s", "heard_s_ago", "link_lost", "trouble")
STATES = {Status.FAR.value: "pending", Status.NEAR.value: "pending", Status.ACTIVE.value: "active"}


def events(*, socket: Path) -> dict[str, Any]:
    """Return the link to the VTN and its events, as plain JSON; `unanswered` says why there is neither.

    :raises Unusable: the grid gateway does not take the question
    """
    try:
        with Client(socket, ANSWER_S) as client:
            status, found = client.ask("status"), client.ask("event.list")
    except NoService as why:
        return {"unanswered": str(why)}
    except ProtocolError as refusal:
        raise Unusable(f"the grid gateway does not tell its events: {refusal}") from refusal
    listed = [told(event) for event in found if event["phase"] in STATES]
    return {
        "link": {name: status[name] for name in LINK},
        "events": sorted(listed, key=lambda one: (one["state"], one["start"], one["id"])),
    }


def told(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return an event as the module returns it: times in UTC, powers in W, durations in s."""
    start_unix_s, end_unix_s = event["start_unix_s"], event["end_unix_s"]
    return {
        "id": event["event"],
        "vtn_id": event["vtn_id"],
        "modification_number": event["modification"],
        "state": STATES[event["phase"]],
        "status": event["phase"],
        **_times(event),
        "duration_s": None if end_unix_s is None else end_unix_s - start_unix_s,
        "priority": event["priority"],
        "test": event["test"],
        "market_context": event["market_context"],
        "signals": [
            {
                **{key: signal[key] for key in ("name", "type", "unit")},
                "intervals": [
                    {
                        "start": iso8601.time_text(one["start_unix_s"]),
                        "duration_s": one["duration_s"],
                        "value": one["value"],
                    }
                    for one in signal["intervals"]
                ],
            }
            for signal in event["signals"]
        ],
        "opt": event["opt"],
        "why": event["why"] or "",
        "baseline_w": event["baseline_w"],
        "limits": [
            {"target": bound["target"], "high_w": bound["high_w"], **_times(bound)} for bound in event["bounds"]
        ],
    }


def _times(found: Mapping[str, Any]) -> dict[str, str | None]:
    end_unix_s = found["end_unix_s"]
    return {
        "start": iso8601.time_text(found["start_unix_s"]),
        "end": None if end_unix_s is None else iso8601.time_text(end_unix_s),
    }
