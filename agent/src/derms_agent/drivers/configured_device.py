# SPDX-License-Identifier: Apache-2.0
"""A device on a bus that only carries reads and writes: found, read, and brought to hold settings."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator, Mapping

import anyio

from derms_agent.drivers.interface import RegisterBus
from derms_agent.drivers.reads import Span
from derms_agent.drivers.register_map import LayoutChanged, ModbusMap, RegisterMap
from derms_agent.drivers.settings import SettingResult, Settings
from derms_agent.drivers.sunspec import FoundMap, SunSpecMap, discover
from derms_agent.drivers.unit import Clock, Unit
from derms_agent.model import Device, Value
from derms_agent.profiles.point import Table
from derms_agent.profiles.profile import Profile, Protocol


class ConfiguredDevice:
    """One unit on a bus, whose values lie where its profile says; nothing goes on here unless it is asked for.

    A SunSpec device's models are `found` at first, and again whenever they turn out to have moved. `configure_s` is
    what one transaction for a setting may take, and `verify_s` how long the device may take until it shows the setting.
    `registers`: where its values lie, for devices that lie alike can share that.
    """

    found: FoundMap | None = None

    def __init__(
        self,
        device: Device,
        profile: Profile,
        bus: RegisterBus,
        *,
        configure_s: float = 10.0,
        verify_s: float = 3.0,
        clock: Clock = time.monotonic,
        registers: ModbusMap | None = None,
    ) -> None:
        self.device = device
        self._declared_map = registers
        self.profile = profile
        self._configure_s = configure_s
        self._verify_s = verify_s
        self._clock = clock
        self._unit = Unit(bus, device.unit_id, profile, clock)
        self._map: RegisterMap | None = None
        self._finding = anyio.Lock()

    async def find_map(self) -> RegisterMap:
        """Return where the device's values lie, found out first where it must be. Raises BusError."""
        if self._map is not None:
            return self._map
        async with self._finding:
            if self._map is None:
                self._map = await self._discover()
            return self._map

    async def _discover(self) -> RegisterMap:
        if self.profile.protocol is not Protocol.SUNSPEC:
            return self._declared_map or ModbusMap(self.device, self.profile)
        self.found = await discover(self._unit)
        return SunSpecMap(self.profile, self.found)

    @contextlib.contextmanager
    def _finding_anew(self) -> Iterator[None]:
        """Let the values be found again where it turns out that they have moved."""
        try:
            yield
        except LayoutChanged:
            self._map = None
            raise

    async def control_points_at(self, table: Table, address: int, count: int) -> tuple[str, ...]:
        """Return which of the points that only control writes lie in or across registers. Raises BusError."""
        own = self.profile.control_points
        if self.profile.protocol is not Protocol.SUNSPEC:
            return tuple(point.name for point in self.profile.points_at(table, address, count) if point.name in own)
        registers, written = await self.find_map(), Span("", table, address, count)
        return tuple(name for name in own if name in registers.names and registers.spans(name)[0].overlaps(written))

    async def read_settings(self, points: Collection[str] | None = None) -> dict[str, Value]:
        """Return every setting that the device shows, or what it shows of these points; see `Settings.read`."""
        with self._finding_anew():
            return await self._settings(await self.find_map()).read(points)

    async def write_settings(self, changes: Mapping[str, Value], *, check: bool = False) -> tuple[SettingResult, ...]:
        """See to it that settings hold values; see `Settings.write`."""
        with self._finding_anew():
            return await self._settings(await self.find_map()).write(changes, check=check)

    def _settings(self, registers: RegisterMap) -> Settings:
        return Settings(self._unit, registers, deadline_s=self._configure_s, verify_s=self._verify_s)
