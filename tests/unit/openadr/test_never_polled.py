# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing but the service polls: a VTN that is polled every ten minutes is asked by no module for what waits there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ansible_collections.derms.edge.plugins.modules import openadr_events_info, openadr_info, openadr_ven

from agent.tests.grid_gateway.conftest import LabVtn
from agent.tests.grid_gateway.test_grid_service import START_S, Gateway, within

if TYPE_CHECKING:
    from tests.unit.openadr.conftest import Play


@pytest.fixture
def seldom(new_vtn: Callable[..., LabVtn], tmp_path: Path) -> Iterator[Gateway]:
    """Run the grid gateway, which has just polled and is not to do so again for ten minutes."""
    if os.getuid() != 0:
        pytest.skip("the grid gateway takes orders from named users only: run as root")
    made = Gateway(tmp_path, new_vtn(poll_s=600))
    try:
        made.start("grid-gateway")
        within(START_S, lambda: made.answers("g.sock"))
        within(START_S, lambda: made.vtn.seen("polls") == 1)
        yield made
    finally:
        made.end("grid-gateway")


def test_no_module_polls(play: Play, seldom: Gateway) -> None:
    vtn, socket = seldom.vtn, str(seldom.directory / "g.sock")
    ven_id = seldom.ask("g.sock", "status")["ven_id"]
    # Whoever polls now takes this away from the service.
    vtn.do("add", ven_id=ven_id, values=[1], event_id="waits", start=time.time(), length_s=600)
    before = vtn.seen("requests")

    assert play(openadr_events_info, socket=socket)["events"] == []
    assert not play(openadr_ven, socket=socket)["changed"]
    assert play(openadr_ven, check=True, socket=socket, market_contexts=["http://utility.example/shed"])["changed"]
    assert vtn.seen("requests") == before
    pki = vtn.authority.directory
    assert play(
        openadr_info,
        vtn_url=f"https://localhost:{vtn.port}",
        certificate_path=str(pki / "ven.crt"),
        private_key_path=str(pki / "ven.key"),
        ca_path=str(vtn.authority.path),
    )["reachable"]
    assert vtn.seen("requests") == [*before, "EiRegisterParty"]
    assert vtn.seen("polls") == 1
    # It is there still for the service, once that asks.
    seldom.ask("g.sock", "event.sync")
    within(10, lambda: [one["event"] for one in seldom.ask("g.sock", "event.list")] == ["waits"])
