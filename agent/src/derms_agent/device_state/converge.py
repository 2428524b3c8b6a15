# SPDX-License-Identifier: Apache-2.0
"""A gateway's devices, brought to hold the settings that the depot file declares for them.

All devices are read and every change is validated before the first write. Then those are written whose fallbacks do
not rise, and after them, on what was read back, those whose do: `fallbacks`. A device that fails leaves the others to
be tried; one whose write is in doubt counts from then on by the worst that it may hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import anyio

from derms_agent import profiles as built_in
from derms_agent.device_state import fallbacks, identity, results
from derms_agent.device_state.access import Access
from derms_agent.device_state.each import each
from derms_agent.device_state.results import CHANGED, DeviceResult, Status, of_failure, of_settings, of_unknown
from derms_agent.drivers.configured_device import ConfiguredDevice
from derms_agent.drivers.errors import BusError
from derms_agent.drivers.factory import open_configured
from derms_agent.drivers.settings import Outcome
from derms_agent.model import Depot, Device, Value
from derms_agent.profiles.profile import Profile

IN_DOUBT = frozenset({Status.INDETERMINATE, Status.VERIFY_FAILED})


class NoSuchDevice(ValueError):
    """A pattern that no device matches."""


def chosen(depot: Depot, gateway: str, only: Iterable[str] = (), *, configured: bool = True) -> list[Device]:
    """Return a gateway's devices, those that match one of the patterns where there are.

    `configured` leaves out those that neither settings nor an identity is declared for. Raises NoSuchDevice for a
    pattern that matches no device of the whole depot.
    """
    patterns = tuple(only)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in depot.devices):
            raise NoSuchDevice(f"found {pattern}, expected a device of depot {depot.name}, or a pattern of some")
    return [
        device
        for device in depot.devices.values()
        if (device.settings or identity.declared_points(device) or not configured)
        and depot.buses[device.bus].gateway == gateway
        and (not patterns or any(fnmatchcase(device.name, pattern) for pattern in patterns))
    ]


async def converge(
    depot: Depot,
    devices: Iterable[Device],
    access: Access,
    *,
    check: bool,
    deadline_s: float = 120.0,
    blind: bool = False,
    beside: Iterable[Device] = (),
) -> list[DeviceResult]:
    """See to it that devices hold their declared settings; `check` reads everything and writes nothing.

    `deadline_s` is for all of them: what was not come to by then is `unknown`. What a device does not show is written
    whenever another of its settings is; with `blind` also where no other is. Devices `beside` those are never written:
    they are read where a fallback is to rise, for what they hold adds up with it.
    """
    until_s = anyio.current_time() + deadline_s
    return await _Run(depot, tuple(devices), access, check, until_s, blind, tuple(beside)).whole()


@dataclass(frozen=True)
class _Run:
    depot: Depot
    devices: tuple[Device, ...]
    access: Access
    check: bool
    until_s: float
    blind: bool
    beside: tuple[Device, ...]

    async def whole(self) -> list[DeviceResult]:
        drivers = self._drivers(self.devices)
        found = {
            device.name: of_unknown(device.name, self.access.unknown.get(device.bus, "its bus is not this gateway's"))
            for device in self.devices
            if device.name not in drivers
        }
        found |= await self._each(drivers, check=True)
        others: dict[str, DeviceResult] = {}
        order = self._order(found, others)
        if self.beside and (order.then or order.refused):
            others = await self._each(self._drivers(self.beside), check=True)
            order = self._order(found, others)
        found |= {name: _not_raised(found[name], why) for name, why in order.refused.items()}
        if not self.check:
            found |= await self._written(found, drivers, order.first)
            # On what is held now: a device that failed may hold what it held before, or anything.
            order = self._order(found, others)
            found |= {name: _not_raised(found[name], why) for name, why in order.refused.items()}
            found |= await self._written(found, drivers, order.then)
        return [found[device.name] for device in self.devices]

    def _drivers(self, devices: Iterable[Device]) -> dict[str, ConfiguredDevice]:
        depot = replace(self.depot, devices={device.name: device for device in devices})
        return open_configured(depot, self.access.buses, clock=anyio.current_time)

    def _order(self, found: Mapping[str, DeviceResult], others: Mapping[str, DeviceResult]) -> fallbacks.Order:
        profiles = {device.name: built_in.load(device.profile) for device in self.depot.devices.values()}
        read = {**others, **found}
        held = {name: _states(result, profiles[name]) for name, result in read.items()}
        changes = {
            name: {
                one.name: one.wanted
                for one in result.settings
                if one.outcome is not Outcome.OK and one.wanted is not None
            }
            for name, result in found.items()
            if self._is_due(result)
        }
        return fallbacks.order(self.depot, profiles, held, changes)

    def _is_due(self, result: DeviceResult) -> bool:
        """Tell whether a device is to be written, and has not been."""
        outcomes = {one.outcome for one in result.settings}
        if result.status is Status.CHANGED:
            return Outcome.WOULD_CHANGE in outcomes
        return self.blind and result.status is Status.OK and Outcome.UNKNOWN in outcomes

    async def _written(
        self, found: Mapping[str, DeviceResult], drivers: Mapping[str, ConfiguredDevice], names: Iterable[str]
    ) -> dict[str, DeviceResult]:
        written = await self._each({name: drivers[name] for name in names}, check=False)
        return {name: results.merged(found[name], result) for name, result in written.items()}

    async def _each(self, drivers: Mapping[str, ConfiguredDevice], *, check: bool) -> dict[str, DeviceResult]:
        return await each(drivers, lambda driver: driver.device.bus, lambda driver: self._asked(driver, check=check))

    async def _asked(self, driver: ConfiguredDevice, *, check: bool) -> DeviceResult:
        device = driver.device
        if anyio.current_time() >= self.until_s:
            return of_unknown(device.name, "not come to before the deadline")
        try:
            if not check:
                return of_settings(device.name, await driver.write_settings(device.settings))
            declared = identity.declared_points(device)
            found = await driver.read_settings(declared) if declared else {}
            if why := identity.another(device.serial_number, found):
                return DeviceResult(device.name, Status.REFUSED, detail=why)
            result = of_settings(device.name, await driver.write_settings(device.settings, check=True))
            return replace(result, note=identity.note(device, found, identity.capability(driver)))
        except BusError as failure:
            return of_failure(device.name, failure)


def _states(result: DeviceResult, profile: Profile) -> list[Mapping[str, Value]]:
    """Return all that a device may hold now of what is declared; nothing where it was not read."""
    if not result.settings:
        return [{}] if result.status is Status.OK else []
    if result.status not in IN_DOUBT:
        return [result.held()]
    before = {one.name: one.before for one in result.settings if one.before is not None}
    wanted = {one.name: one.wanted for one in result.settings if one.wanted is not None}
    return [*fallbacks.mixtures(profile, before, wanted), result.held()]


def _not_raised(result: DeviceResult, why: str) -> DeviceResult:
    settings = tuple(
        replace(one, outcome=Outcome.REFUSED, after=one.before, detail="") if one.outcome in CHANGED else one
        for one in result.settings
    )
    return replace(result, status=Status.REFUSED, settings=settings, detail=why)
