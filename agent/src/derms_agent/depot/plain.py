# SPDX-License-Identifier: Apache-2.0
"""A depot's parts as plain data of JSON's types: what an inventory hands to roles and modules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from derms_agent.depot.circuit_loads import apparent_va
from derms_agent.model import Bus, Circuit, Depot, Device, Evse, Transport

PLUGIN = "derms.edge.depot"
"""What a depot file names as its `plugin`, among the files of an inventory directory."""


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
            **_said({"serial_number": device.serial_number, "firmware": device.firmware}),
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


def depot_document(depot: Depot) -> dict[str, Any]:
    """Return a whole depot in the form of a depot file, with every range and default written out.

    Read again, it is the same depot. What Ansible alone can open is still `Vaulted` in it.
    """
    site, vtn = depot.site, depot.vtn
    return _said(
        {
            "plugin": PLUGIN,
            "depot": depot.name,
            "region": depot.region,
            "utility": depot.utility,
            "site": _said(
                {
                    "limit_kva": _in_thousands(site.limit_va),
                    "default_limit_kw": None if site.default_limit_w is None else _in_thousands(site.default_limit_w),
                    "soc_reserve_percent": site.soc_reserve_percent,
                }
            ),
            "network": {name: list(blocks) for name, blocks in depot.network.items()},
            "gateways": {name: _said({"address": gateway.address}) for name, gateway in depot.gateways.items()},
            "circuits": {name: _circuit_document(circuit) for name, circuit in depot.circuits.items()},
            "buses": {name: _bus_document(bus) for name, bus in depot.buses.items()},
            "devices": {name: device_document(device) for name, device in depot.devices.items()},
            "meters": {
                name: {"device": meter.device, "measures": meter.measures.value, "circuit": meter.circuit}
                for name, meter in depot.meters.items()
            },
            "vehicles": {
                name: {
                    "capacity_kwh": _in_thousands(vehicle.capacity_wh),
                    "power_kw": _in_thousands(vehicle.power_w),
                    "phases": vehicle.phases,
                }
                for name, vehicle in depot.vehicles.items()
            },
            "vtn": None
            if vtn is None
            else _said(
                {
                    "url": vtn.url,
                    "ven_name": vtn.ven_name,
                    "client_id": vtn.client_id,
                    "tls_minimum": vtn.tls_minimum,
                }
            ),
        }
    )


def _said(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that hold something."""
    return {name: value for name, value in fields.items() if value is not None}


def _in_thousands(value: float) -> float:
    """Return the number that a thousand times is this one, to the last bit: a depot file says kW, kVA and kWh."""
    near = value / 1000
    if near.is_integer():
        return int(near)
    around = (near, math.nextafter(near, math.inf), math.nextafter(near, -math.inf))
    return next((one for one in around if one * 1000.0 == value), near)


def _circuit_document(circuit: Circuit) -> dict[str, Any]:
    return _said(
        {
            "parent": circuit.parent,
            "connection": circuit.connection.value,
            "voltage_v": circuit.voltage_v,
            "rating_a": list(circuit.rating_a),
            "rating_kva": circuit.rating_kva,
            "base_load_a": list(circuit.base_load_a),
            "allocator": circuit.allocator,
        }
    )


def _bus_document(bus: Bus) -> dict[str, Any]:
    serial = bus.transport is Transport.SERIAL
    end = {"path": bus.path, "parity": bus.parity.value} if serial else {"host": bus.host, "port": bus.port}
    return _said(
        {
            "gateway": bus.gateway,
            "transport": bus.transport.value,
            **end,
            "baud_rate": bus.baud_rate,
            "timeout_s": bus.timeout_s,
            "gateway_timeout_s": bus.gateway_timeout_s,
            "connect_timeout_s": bus.connect_timeout_s,
            "delay_after_connect_s": bus.delay_after_connect_s,
            "delay_between_s": bus.delay_between_s,
            "max_in_flight": bus.max_in_flight,
            "transaction_ids": bus.transaction_ids.value,
        }
    )


def device_document(device: Device) -> dict[str, Any]:
    """Return a device in the form of a depot file, with every default written out."""
    evses = {
        str(evse.connector): _said(
            {
                "rating_a": evse.rating_a,
                "cable_a": evse.cable_a,
                "phases": [phase.value for phase in evse.phases],
                "circuit": evse.circuit,
            }
        )
        for evse in device.evses
    }
    return _said(
        {
            "bus": device.bus,
            "unit_id": device.unit_id,
            "profile": device.profile,
            "circuit": device.circuit,
            "serial_number": device.serial_number,
            "firmware": device.firmware,
            "settings": dict(device.settings) or None,
            "evses": evses or None,
        }
    )
