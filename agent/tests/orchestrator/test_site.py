# SPDX-License-Identifier: Apache-2.0
"""What of a depot a gateway controls."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from agent.tests.orchestrator.conftest import DEMO

from derms_agent import depot as depots
from derms_agent import profiles
from derms_agent.control.guard import Purpose, Write
from derms_agent.control.ledger import Amount
from derms_agent.model import Connection, Phase, Reading
from derms_agent.orchestrator.engine import watts_of
from derms_agent.orchestrator.image import evse_readings
from derms_agent.orchestrator.site import armed, site_of, tree_of

SQRT3 = math.sqrt(3)
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


@pytest.mark.parametrize(
    ("settings", "droops"), [(None, False), ({"enabled": True}, True), ({"enabled": False}, False)]
)
def test_what_is_declared_to_follow_the_frequency_by_itself_is_known(
    settings: dict[str, bool] | None, droops: bool
) -> None:
    depot = depots.load(DEMO)
    device = replace(depot.devices["fast-1"], der_settings=None if settings is None else {"frequency_droop": settings})
    depot = replace(depot, devices={**depot.devices, "fast-1": device})
    assert site_of(depot, "gateway-1", shed_s=2.0).droops == ({"fast-1"} if droops else set())


WIRED = [
    *((connection, phases) for connection in (Connection.WYE, Connection.DELTA) for phases in combinations(Phase, 2)),
    *((connection, tuple(Phase)) for connection in (Connection.WYE, Connection.DELTA)),
    *((Connection.WYE, (phase,)) for phase in Phase),
]


@pytest.mark.parametrize(("connection", "phases"), WIRED)
def test_what_is_told_and_shown_in_w_is_the_same_current_however_it_is_wired(
    connection: Connection, phases: tuple[Phase, ...]
) -> None:
    depot = depots.load(DEMO)
    device, profile = depot.devices["fast-1"], profiles.load("alpitronic_hyc")
    device = replace(device, evses=(replace(device.evses[0], phases=phases),))
    circuit = replace(depot.circuits["fast"], connection=connection)
    depot = replace(depot, devices={**depot.devices, "fast-1": device}, circuits={**depot.circuits, "fast": circuit})
    assert profile.fallback is not None
    own = replace(profile, fallback=replace(profile.fallback, fixed=3000.0))
    site = site_of(depot, "gateway-1", shed_s=2.0, own_profiles={profile.name: own})
    (evse,) = device.evses
    watts_per_a = (
        circuit.voltage_v if len(phases) == 2 and connection is Connection.DELTA else len(phases) * 400 / SQRT3
    )

    told_w = watts_of(site, evse, own, Write(1, evse.name, Amount(10.0), Purpose.RAISE))
    assert told_w == pytest.approx(10.0 * watts_per_a)
    # At its limit, with a rectifier of 0.95.
    values = {"power_limit/1": told_w, "active_power/1": 0.95 * told_w}
    image = evse_readings(site, device, Reading("fast-1", values, 5.0, answered_at_s=5.1))[evse.name].image
    assert image.limit_a == pytest.approx(10.0)
    assert image.current_a == pytest.approx([10.0 if phase in phases else 0.0 for phase in Phase])
    assert site.stations[evse.name].fallback.high == pytest.approx(3000.0 / watts_per_a)
    (proven,) = armed(site, device, {}, 5.0)
    assert proven.fallback.high == pytest.approx(3000.0 / watts_per_a)
    assert site.stations[evse.name].least_a == pytest.approx(1548.0 / watts_per_a)
