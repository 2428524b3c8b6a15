# SPDX-License-Identifier: Apache-2.0
"""What of a depot a gateway controls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from derms_agent import depot as depots
from derms_agent.orchestrator.site import site_of, tree_of

EXAMPLES = Path(__file__).parents[3] / "inventories" / "example"


def test_gateways_that_share_out_a_tree_each_split_the_sites_limits() -> None:
    depot = depots.load(EXAMPLES / "riverside.yml")
    # The yard's meter at the hall's switchboard, as where one cable leads to both.
    yards = replace(depot.devices["yard-supply"], bus="switchboard", unit_id=2)
    depot = replace(depot, devices={**depot.devices, "yard-supply": yards})
    sites = [site_of(depot, gateway, shed_s=2.0) for gateway in depot.gateways]
    assert [site.root.name for site in sites] == ["hall", "yard"]
    assert [set(site.stations) for site in sites] == [
        {name for name in (evse.name for evse in depot.evses()) if name.startswith(tree)} for tree in ("hall", "yard")
    ]
    assert sum(site.depot.site.limit_va for site in sites) == pytest.approx(depot.site.limit_va)
    assert sum(site.depot.site.default_limit_w or 0.0 for site in sites) == pytest.approx(depot.site.default_limit_w)
    assert sum(site.share for site in sites) == pytest.approx(1.0)
    # A meter of the other tree is polled where its bus is, and stands for nothing here.
    assert "yard-supply" in sites[0].devices
    assert [set(site.meters) for site in sites] == [{"hall", "hall-row-1", "hall-row-2"}, set()]


def test_a_gateway_that_shares_out_the_only_tree_has_the_whole_site() -> None:
    depot = depots.load(EXAMPLES / "northgate.yml")
    (gateway,) = {circuit.allocator for circuit in depot.circuits.values() if circuit.parent is None}
    assert tree_of(depot, str(gateway)) == (depot, 1.0)


def test_a_gateway_without_a_tree_controls_nothing() -> None:
    depot = depots.load(EXAMPLES / "riverside.yml")
    circuits = {name: replace(circuit, allocator="elsewhere") for name, circuit in depot.circuits.items()}
    with pytest.raises(ValueError, match="found the trees of circuits none for gateway riverside-gateway-1"):
        site_of(replace(depot, circuits=circuits), "riverside-gateway-1", shed_s=2.0)
