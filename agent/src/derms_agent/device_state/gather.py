# SPDX-License-Identifier: Apache-2.0
"""What devices are and hold, read and never written: identity, state, and all settings in a depot file's own form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import anyio

from derms_agent import profiles as built_in
from derms_agent.device_state import identity as identities
from derms_agent.device_state.access import Access
from derms_agent.device_state.capability import Capability
from derms_agent.device_state.declaration import Declaration, commented, declaration, meter, section
from derms_agent.device_state.der.held import Held, borne, held
from derms_agent.device_state.each import each
from derms_agent.device_state.results import Status, of_failure
from derms_agent.drivers.configured_device import ConfiguredDevice
from derms_agent.drivers.errors import BusError
from derms_agent.drivers.factory import open_configured
from derms_agent.drivers.modbus_device import IDENTITY
from derms_agent.drivers.register_map import stem
from derms_agent.model import Depot, Device, Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """What was read from one device; `note` is what blocks nothing. Values that it does not have are not there.

    `state` is what control polls. `capability` and `der` are those of a DER's controller, None for anything else.
    """

    device: Device
    status: Status
    detail: str = ""
    note: str = ""
    identity: Mapping[str, Value] = field(default_factory=dict)
    state: Mapping[str, Value] = field(default_factory=dict)
    settings: Mapping[str, Value] = field(default_factory=dict)
    capability: Capability | None = None
    der: Held | None = None

    @property
    def answered(self) -> bool:
        """Whether it was read."""
        return bool(self.identity or self.state or self.settings)

    def declaration(self) -> Declaration:
        """Return the device as a depot file would declare it, by what was read."""
        return declaration(self.device, built_in.load(self.device.profile), self.identity, self.settings, self.der)


async def gather(
    depot: Depot, devices: Iterable[Device], access: Access, *, deadline_s: float = 120.0
) -> list[Gathered]:
    """Read what devices are and hold; `deadline_s` is for all of them: what was not come to by then is `unknown`."""
    devices = tuple(devices)
    until_s = anyio.current_time() + deadline_s
    wanted = replace(depot, devices={device.name: device for device in devices})
    drivers = open_configured(wanted, access.buses, clock=anyio.current_time)

    async def asked(driver: ConfiguredDevice) -> Gathered:
        if anyio.current_time() >= until_s:
            return unknown(driver.device, "not come to before the deadline")
        return await read(driver)

    found = await each(drivers, lambda driver: driver.device.bus, asked)
    ders = borne(depot.circuits, {name: (one.device.circuit, one.der) for name, one in found.items() if one.der})
    found = {name: replace(one, der=ders.get(name)) for name, one in found.items()}
    return [
        found[device.name]
        if device.name in found
        else unknown(device, access.unknown.get(device.bus, "its bus is not this gateway's"))
        for device in devices
    ]


async def read(driver: ConfiguredDevice) -> Gathered:
    """Read what one device is and holds. What another device answers is told, and is `refused`."""
    device, profile = driver.device, driver.profile
    wanted = {*IDENTITY, *profile.poll, *profile.settings}
    try:
        found = await driver.read_settings(wanted)
    except BusError as failure:
        result = of_failure(device.name, failure)
        return Gathered(device=device, status=result.status, detail=result.detail)
    can = identities.capability(driver)
    gathered = Gathered(
        device=device,
        status=Status.OK,
        identity={name: value for name, value in found.items() if stem(name) in IDENTITY},
        state={name: value for name, value in found.items() if stem(name) in profile.poll},
        settings={name: value for name, value in found.items() if stem(name) in profile.settings},
        capability=can,
        der=None if can is None or driver.found is None else held(driver.found, profile, device.der_settings),
    )
    if not gathered.answered:
        return replace(gathered, status=Status.REFUSED, detail=f"it shows nothing that a {profile.title} has")
    another = identities.another(device.serial_number, gathered.identity)
    return replace(
        gathered,
        status=Status.REFUSED if another else Status.OK,
        detail=another,
        note=identities.note(device, gathered.identity, gathered.capability),
    )


def unknown(device: Device, why: str) -> Gathered:
    """Return the result of a device that was not asked."""
    return Gathered(device=device, status=Status.UNKNOWN, detail=why)


def text(depot: Depot, results: Iterable[Gathered]) -> str:
    """Return a depot file's devices and meters with what was read; who did not answer is named in comments."""
    sections: dict[str, list[str]] = {"devices": [], "meters": []}
    for result in results:
        sections["meters" if result.device.name in depot.meters else "devices"].append(_part(depot, result))
    return "".join(section(name, parts) for name, parts in sections.items() if parts)


def _part(depot: Depot, result: Gathered) -> str:
    name = result.device.name
    if not result.answered:
        return commented(f"{name} {result.status.value}: {result.detail}")
    declared = result.declaration()
    if name in depot.meters:
        declared = meter(declared, depot.meters[name])
    return replace(declared, remarks=(*filter(None, (result.detail,)), *declared.remarks)).text()


def plain(result: Gathered) -> dict[str, Any]:
    """Return a result as data of JSON's types."""
    return {
        "name": result.device.name,
        "status": result.status.value,
        "changed": False,
        "bus": result.device.bus,
        "unit_id": result.device.unit_id,
        "profile": result.device.profile,
        "identity": dict(result.identity),
        "state": dict(result.state),
        "settings": dict(result.settings),
        "der_settings": {} if result.der is None else {name: dict(own) for name, own in result.der.settings.items()},
        "ieee1547": None
        if result.capability is None
        else {"capable": result.capability.ieee_1547_2018, "missing": list(result.capability.missing)},
        "gathered": {result.device.name: dict(result.declaration().document)} if result.answered else {},
        "detail": result.detail,
        "note": result.note,
    }
