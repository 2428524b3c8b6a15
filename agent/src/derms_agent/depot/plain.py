# SPDX-License-Identifier: Apache-2.0
"""A depot's parts as plain data of JSON's types: what an inventory hands to roles and modules."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from derms_agent.depot.assembly import LEVELS
from derms_agent.depot.circuit_loads import apparent_va
from derms_agent.model import Bus, Circuit, Depot, Device, Evse, GridLevel, PriceLimit, Transport

PLUGIN = "derms.edge.depot"
"""What a depot file names as its `plugin`, among the files of an inventory directory."""
BUS_DEFAULTS = {
    field.name: getattr(field.default, "value", field.default)
    for field in dataclasses.fields(Bus)
    if field.default is not dataclasses.MISSING
}
"""What a bus is where a depot file does not say."""
DEVICE_FIELDS = (
    "bus",
    "unit_id",
    "profile",
    "circuit",
    "serial_number",
    "firmware",
    "settings",
    "der_settings",
    "evses",
    "storage",
)
"""What is declared of a device, in the order in which it is written."""
SHARED = ("unit_id", "circuit", "firmware", "evses")
"""Fields of devices that `profile_defaults` may hold as a whole; their settings it may hold one by one."""


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
            **_said(
                {
                    "serial_number": device.serial_number,
                    "firmware": device.firmware,
                    "der_settings": device.der_settings,
                }
            ),
            "settings": device.settings,
            "evses": [_evse(evse) for evse in device.evses if not evse.stationary],
            **_said({"storage": next((_evse(evse) for evse in device.evses if evse.stationary), None)}),
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
        **_said(
            {
                "give_back_a": evse.give_back_a or None,
                "capacity_kwh": None if evse.capacity_wh is None else _in_thousands(evse.capacity_wh),
            }
        ),
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
    evses = depot.places()
    installed_va = sum(apparent_va(depot.circuits[evse.circuit], evse.phases, evse.limit_a) for evse in evses)
    return {"devices": len(depot.devices), "evses": len(evses), "installed_kw": round(installed_va / 1000, 1)}


def depot_document(depot: Depot) -> dict[str, Any]:
    """Return a whole depot in the form of a depot file, with every range written out.

    What the devices of a profile have in common is said once, under `profile_defaults`, and of buses what differs from
    the defaults: a thousand devices are a third as long, and whoever gets them has to go through all of it. Read again,
    it is the same depot. What Ansible alone can open is still `Vaulted` in it.
    """
    site, vtn = depot.site, depot.vtn
    devices = {name: device_document(device) for name, device in depot.devices.items()}
    shared = {profile: _shared(alike) for profile, alike in _by_profile(devices.values()).items()}
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
            "profile_defaults": {profile: fields for profile, fields in shared.items() if fields} or None,
            "devices": {name: _left(device, shared[device["profile"]]) for name, device in devices.items()},
            "meters": {
                name: {"device": meter.device, "measures": meter.measures.value, "circuit": meter.circuit}
                for name, meter in depot.meters.items()
            },
            "vehicles": {
                name: {
                    "capacity_kwh": _in_thousands(vehicle.capacity_wh),
                    "power_kw": _in_thousands(vehicle.power_w),
                    "phases": vehicle.phases,
                    **({"give_back_kw": _in_thousands(vehicle.give_back_w)} if vehicle.give_back_w else {}),
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
                    "xml_signatures": vtn.xml_signatures,
                    "levels": {name: _level(vtn.levels[level]) for name, level in LEVELS.items() if level in vtn.levels}
                    or None,
                    "price_limit": None if vtn.price_limit is None else _price_limit(vtn.price_limit),
                    "market_contexts": [*vtn.market_contexts] or None,
                    "resources": dict(vtn.resources) or None,
                    "groups": [*vtn.groups] or None,
                }
            ),
        }
    )


def _level(level: GridLevel) -> dict[str, Any]:
    limit_kw = None if level.limit_w is None else _in_thousands(level.limit_w)
    return _said({"limit_kw": limit_kw, "baseline_percent": level.baseline_percent})


def _price_limit(price: PriceLimit) -> dict[str, Any]:
    return {
        "currency": price.currency,
        "above_per_kwh": price.above_per_kwh,
        "limit_kw": _in_thousands(price.limit_w),
    }


def _said(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that hold something."""
    return {name: value for name, value in fields.items() if value is not None}


def devices_in(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the devices of what `depot_document` returned, each with all that is declared of it."""
    shared = document.get("profile_defaults", {})
    whole: dict[str, dict[str, Any]] = {}
    for name, device in document.get("devices", {}).items():
        beneath = shared.get(device.get("profile"), {})
        settings = {**beneath.get("settings", {}), **device.get("settings", {})}
        fields = {**beneath, **device, **({"settings": settings} if settings else {})}
        whole[name] = {field: fields[field] for field in dict.fromkeys((*DEVICE_FIELDS, *fields)) if field in fields}
    return whole


def _by_profile(devices: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for device in devices:
        found.setdefault(device["profile"], []).append(device)
    return found


def _shared(devices: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what most of a profile's devices have, of what all of them have something of: none could be without.

    Settings keep their order, in which they are written, so of them only those that all devices begin with are shared.
    """
    found = {name: _most(devices, name) for name in SHARED if all(name in device for device in devices)}
    settings = [device.get("settings", {}) for device in devices]
    first: dict[str, Any] = {}
    for names in zip(*settings, strict=False):
        if len(set(names)) > 1:
            break
        first[names[0]] = _most(settings, names[0])
    return {**found, "settings": first} if first else found


def _most(mappings: Iterable[Mapping[str, Any]], name: str) -> Any:
    """Return the value that most have."""
    values = {repr(one[name]): one[name] for one in mappings}
    ((most, _),) = Counter(repr(one[name]) for one in mappings).most_common(1)
    return values[most]


def _same(shared: Mapping[str, Any], name: str, value: Any) -> bool:
    """Tell whether a value is the shared one; 1, 1.0 and true are three."""
    return name in shared and repr(shared[name]) == repr(value)


def _left(device: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a device's document says that its profile's devices do not share."""
    left = {name: value for name, value in device.items() if name not in SHARED or not _same(shared, name, value)}
    if "settings" in shared:
        left["settings"] = {
            name: value for name, value in device["settings"].items() if not _same(shared["settings"], name, value)
        }
    return {name: value for name, value in left.items() if name != "settings" or value}


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
    fields = _said(
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
    return {name: value for name, value in fields.items() if name not in BUS_DEFAULTS or value != BUS_DEFAULTS[name]}


def device_document(device: Device) -> dict[str, Any]:
    """Return a device in the form of a depot file, with every default written out."""
    evses = {
        str(evse.connector): {**_power_document(evse), "circuit": evse.circuit}
        for evse in device.evses
        if not evse.stationary
    }
    storage = next((_power_document(evse) for evse in device.evses if evse.stationary), None)
    return _said(
        {
            "bus": device.bus,
            "unit_id": device.unit_id,
            "profile": device.profile,
            "circuit": device.circuit,
            "serial_number": device.serial_number,
            "firmware": device.firmware,
            "settings": dict(device.settings) or None,
            "der_settings": device.der_settings,
            "evses": evses or None,
            "storage": storage,
        }
    )


def _power_document(evse: Evse) -> dict[str, Any]:
    return _said(
        {
            "rating_a": evse.rating_a,
            "capacity_kwh": None if evse.capacity_wh is None else _in_thousands(evse.capacity_wh),
            "cable_a": evse.cable_a,
            "phases": [phase.value for phase in evse.phases],
            "give_back_a": evse.give_back_a if evse.give_back_a or evse.stationary else None,
        }
    )
