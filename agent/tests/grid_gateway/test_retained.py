# SPDX-License-Identifier: Apache-2.0
"""Whoever comes to the broker later finds what the utility limits: the program, its VTN and a broker, all real."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from agent.tests.grid_gateway.conftest import LabVtn
from agent.tests.grid_gateway.test_grid_service import START_S, Gateway, gateway, within

if TYPE_CHECKING:
    from agent.tests.conftest import Broker, Peer

__all__ = ["gateway"]


def state(peer: Peer) -> Mapping[str, Any]:
    """Return the latest state of the gateway that a peer has; nothing before there is one."""
    found: list[dict[str, Any]] = peer.bodies("/grid-gateway/small/state")
    return found[-1] if found else {}


def test_limits_and_events_are_retained(
    gateway: Gateway, broker: Broker, peer: Callable[[], Peer], pki: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vtn: LabVtn = gateway.vtn
    credentials = gateway.directory / "credentials"
    credentials.mkdir()
    for name, file in (("cert", "derms-orchestrator.crt"), ("key", "derms-orchestrator.key"), ("ca", "ca.crt")):
        (credentials / f"mqtt-{name}").symlink_to(pki / file)
    gateway.start("orchestrator")
    within(START_S, lambda: gateway.answers("o.sock"))
    with (gateway.directory / "agent.conf").open("a", encoding="utf-8") as conf:
        conf.write(f"MQTT_URL={broker.url}\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    gateway.start("grid-gateway")
    within(START_S, lambda: (gateway.answers("g.sock") or {}).get("registered"))
    ven_id = gateway.ask("g.sock", "status")["ven_id"]
    vtn.do("add", ven_id=ven_id, values=[1], start=time.time(), length_s=600, event_id="mild")
    within(10, lambda: gateway.asks() == [50_000.0])
    time.sleep(2.5)  # the state is looked at once a second

    later = peer()
    within(10, lambda: state(later))
    first = next(one for one in later.messages if one.topic.endswith("/grid-gateway/small/state"))
    assert first.retain
    found = state(later)
    assert (found["registered"], found["ven_id"], found["link_lost"]) == (True, ven_id, False)
    assert [(one["event"], one["phase"], one["opt"]) for one in found["events"]] == [("mild", "active", "optIn")]
    assert [(one["event"], one["target"], one["rank"], one["high_w"]) for one in found["bounds"]] == [
        ("mild", "site", "grid", 50_000.0)
    ]
    # It is told as it changes, and what happened is told once.
    vtn.do("cancel", ven_id=ven_id, event_id="mild")
    within(20, lambda: state(later)["bounds"] == [])
    assert state(later)["events"][0]["phase"] == "cancelled"
    told = "/grid-gateway/small/event"
    within(10, lambda: "cancelled" in [one.get("phase") for one in later.bodies(told)])
    vtn.kill()
    within(20, lambda: state(later)["link_lost"])
