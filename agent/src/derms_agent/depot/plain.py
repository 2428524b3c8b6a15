# SPDX-License-Identifier: Apache-2.0
"""A depot's parts as plain data of JSON's types: what an inventory hands to roles and modules."""

from __future__ import annotations

from typing import Any

from derms_agent.depot.circuit_loads import apparent_va
from derms_agent.model import Depot, Evse


def buses_of(depot: Depot, gateway: str) -> list[dict[str, Any]]:
    """Return the buses that a gateway owns."""
    return [
        {
            "name": bus.name,
            "transport": bus.transport.value,
            "host": bus.host,
            "port": bus.port,
            "path": bus.path,
            "baud_rate": bus.baud_rate,
            "parity": bus.parity.value,
            "timeout_s": bus.timeout_s,
            "gateway_timeout_s": bus.gateway_timeout_s,
            "connect_timeout_s": bus.connect_timeout_s,
            "delay_after_connect_s": bus.delay_after_connect_s,
            "delay_between_s": bus.delay_between_s,
            "max_in_flight": bus.max_in_flight,
            "transaction_ids": bus.transaction_ids.value,
        }
        for bus in depot.buses.values()
        if bus.gateway == gateway
    ]


def devices_of(depot: Depot, gateway: str) -> list[dict[str, Any]]:
    """Return the devices on the buses that a gateway owns; devices that share settings share one mapping of them."""
    own = {name for name, bus in depot.buses.items() if bus.gateway == gateway}
    return [
        {
            "name": device.name,
            "kind": device.kind.value,
            "bus": device.bus,
            "unit_id": device.unit_id,
            "profile": device.profile,
            "circuit": device.circuit,
            "settings": device.settings,
            "evses": [_evse(evse) for evse in device.evses],
        }
        for device in depot.devices.values()
        if device.bus in own
    ]


def _evse(evse: Evse) -> dict[str, Any]:
    return {
        "name": evse.name,
        "connector": evse.connector,
        "circuit": evse.circuit,
        "phases": [phase.value for phase in evse.phases],
        "rating_a": evse.rating_a,
        "cable_a": evse.cable_a,
    }


def circuits_of(depot: Depot) -> list[dict[str, Any]]:
    """Return the circuits, in the order of the file."""
    return [
        {
            "name": circuit.name,
            "parent": circuit.parent,
            "connection": circuit.connection.value,
            "voltage_v": circuit.voltage_v,
            "rating_a": list(circuit.rating_a),
            "rating_kva": circuit.rating_kva,
            "base_load_a": list(circuit.base_load_a),
            "allocator": circuit.allocator,
        }
        for circuit in depot.circuits.values()
    ]


def totals(depot: Depot) -> dict[str, Any]:
    """Return how many devices and EVSEs there are, and what the EVSEs could draw together, in kW to a tenth."""
    evses = depot.evses()
    installed_va = sum(apparent_va(depot.circuits[evse.circuit], evse.phases, evse.limit_a) for evse in evses)
    return {"devices": len(depot.devices), "evses": len(evses), "installed_kw": round(installed_va / 1000, 1)}
