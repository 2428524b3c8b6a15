# SPDX-License-Identifier: Apache-2.0
"""Meters: one by registers of its own, one in SunSpec; both show what flows in a circuit. Consumption is positive."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from derms_agent.model import Circuit, Device, PerPhase, Value
from derms_agent.profiles.point import Point, PointType, Table
from derms_agent.profiles.profile import Profile
from derms_agent.twin import network
from derms_agent.twin.network import Phasors
from derms_agent.twin.pdu import Code, Refusal
from derms_agent.twin.sunspec import Image
from derms_agent.twin.unit import Cell, RegisterMap
from derms_agent.twin.words import to_words

_SECONDS_PER_HOUR = 3600.0
_SQRT3 = math.sqrt(3)
_SERIAL_NUMBERS = 100_000_000
_INT16 = 32_767
_HEADROOM = 1.8  # times the rating; what is more saturates


class Reading(NamedTuple):
    """What a meter has seen: A, W and var per phase, Hz, and Wh counted apart for either direction."""

    currents_a: PerPhase = (0.0, 0.0, 0.0)
    powers_w: PerPhase = (0.0, 0.0, 0.0)
    reactives_var: PerPhase = (0.0, 0.0, 0.0)
    frequency_hz: float = 50.0
    imported_wh: float = 0.0
    exported_wh: float = 0.0


def step(circuit: Circuit, reading: Reading, currents: Phasors, frequency_hz: float, dt_s: float) -> Reading:
    """Return the reading `dt_s` later, with these currents all along. Pure."""
    powers_w, reactives_var = network.powers(circuit, currents)
    magnitudes_a = (abs(currents[0]), abs(currents[1]), abs(currents[2]))
    return _counted(reading, magnitudes_a, powers_w, reactives_var, frequency_hz, dt_s)


def _counted(  # noqa: PLR0917 - those of a reading
    before: Reading, currents_a: PerPhase, powers_w: PerPhase, reactives_var: PerPhase, frequency_hz: float, dt_s: float
) -> Reading:
    energy_wh = sum(powers_w) * dt_s / _SECONDS_PER_HOUR
    imported_wh, exported_wh = before.imported_wh + max(energy_wh, 0.0), before.exported_wh + max(-energy_wh, 0.0)
    return Reading(currents_a, powers_w, reactives_var, frequency_hz, imported_wh, exported_wh)


@dataclass(slots=True)
class _Face:
    """What both kinds of meter share: the reading, and whether the registers still follow it.

    `currents` are those of the last step: what flows often stays as it is.
    """

    circuit: Circuit
    reading: Reading
    shown: Reading | None = None
    currents: Phasors | None = None

    def step(self, currents: Phasors, frequency_hz: float, dt_s: float) -> None:
        now = self.reading
        if currents == self.currents:
            self.reading = _counted(now, now.currents_a, now.powers_w, now.reactives_var, frequency_hz, dt_s)
        else:
            self.reading, self.currents = step(self.circuit, now, currents, frequency_hz, dt_s), currents

    def current(self) -> Reading:
        return self.reading if self.shown is None else self.shown


class RegisterMeter:
    """A meter whose profile lists plain registers."""

    def __init__(self, device: Device, profile: Profile, circuit: Circuit) -> None:
        self.device = device
        self._face = _Face(circuit, Reading())
        self._map = RegisterMap(profile.points.values(), (1,), profile.wire)
        self._memory: dict[str, tuple[int, ...]] = {}
        volts = network.neutral_voltage(circuit)
        self._sources: dict[str, Callable[[Reading], Value]] = {
            "active_power": lambda now: sum(now.powers_w),
            "reactive_power": lambda now: sum(now.reactives_var),
            "energy": lambda now: now.imported_wh,
            "frequency": lambda now: now.frequency_hz,
            "serial_number": lambda _now: zlib.crc32(device.name.encode()) % _SERIAL_NUMBERS,
            "model_name": lambda _now: profile.title,
        }
        for index, line in enumerate(("l1", "l2", "l3")):
            self._sources[f"current_{line}"] = lambda now, index=index: now.currents_a[index]  # type: ignore[misc]
            self._sources[f"voltage_{line}"] = lambda _now: volts

    @property
    def reading(self) -> Reading:
        """What it measures, stale registers or not."""
        return self._face.reading

    def step(self, currents: Phasors, frequency_hz: float, dt_s: float) -> None:
        """Measure for `dt_s`."""
        self._face.step(currents, frequency_hz, dt_s)

    def read(self, table: Table, address: int, count: int) -> list[int]:
        """Return registers. Raises `Refusal`."""
        return self._map.read(table, address, count, self._words)

    def write(self, table: Table, address: int, values: Sequence[int], function: int, now_s: float) -> None:
        """Write registers. Raises `Refusal`, having written nothing."""
        del now_s
        for cell, words in self._map.targets(table, address, values, function, self._words):
            self._memory[cell.of.name] = words

    def requested(self, now_s: float) -> None:
        """Do nothing: a meter has no watchdog."""

    def boot(self, now_s: float) -> None:
        """Do nothing: what a meter has counted is kept."""

    def hold(self, held: bool) -> None:
        """Stop, or resume, showing what it measures."""
        self._face.shown = self._face.reading if held else None

    def _words(self, cell: Cell) -> Sequence[int]:
        stored = self._memory.get(cell.of.name)
        if stored is not None:
            return stored
        return to_words(cell.point, self._value(cell.of))

    def _value(self, point: Point) -> Value:
        source = self._sources.get(point.name)
        if source is None:
            return "" if point.type is PointType.STRING else 0
        return source(self._face.current())


class SunSpecMeter:
    """A three-phase meter in SunSpec: model 1, and that of 201 to 204 in which its profile seeks the power first."""

    def __init__(self, device: Device, profile: Profile, circuit: Circuit) -> None:
        self.device = device
        self._face = _Face(circuit, Reading())
        self._sign = power_sign(profile, 1)
        self._model = profile.sunspec_points["active_power"].model
        self.image = Image(profile.base_addresses[0], (1, self._model), {})
        identify(self.image, profile, device)
        most_a = max(circuit.rating_a) * _HEADROOM
        most_va = most_a * 3 * network.neutral_voltage(circuit)
        for scale, most in (
            ("A_SF", most_a * 3),
            ("V_SF", circuit.voltage_v * _HEADROOM),
            ("W_SF", most_va),
            ("VA_SF", most_va),
            ("VAR_SF", most_va),
        ):
            self.image.set_raw(self._model, scale, decimals(most))
        for scale, exponent in (("Hz_SF", -2), ("PF_SF", -1), ("TotWh_SF", 0)):
            self.image.set_raw(self._model, scale, exponent)
        self.image.set_raw(self._model, "Evt", 0)
        self._filled: Reading | None = None

    @property
    def reading(self) -> Reading:
        """What it measures, stale registers or not."""
        return self._face.reading

    def step(self, currents: Phasors, frequency_hz: float, dt_s: float) -> None:
        """Measure for `dt_s`."""
        self._face.step(currents, frequency_hz, dt_s)

    def read(self, table: Table, address: int, count: int) -> list[int]:
        """Return registers. Raises `Refusal`."""
        if table is not Table.HOLDING:
            raise Refusal(Code.ILLEGAL_FUNCTION)
        reading = self._face.current()
        if reading is not self._filled:
            self._fill(reading)
            self._filled = reading
        return self.image.read(address, count)

    def write(self, table: Table, address: int, values: Sequence[int], function: int, now_s: float) -> None:
        """Write registers. Raises `Refusal`, having written nothing."""
        del function, now_s
        if table is not Table.HOLDING:
            raise Refusal(Code.ILLEGAL_FUNCTION)
        self.image.write(address, values)

    def requested(self, now_s: float) -> None:
        """Do nothing: a meter has no watchdog."""

    def boot(self, now_s: float) -> None:
        """Do nothing: what a meter has counted is kept."""

    def hold(self, held: bool) -> None:
        """Stop, or resume, showing what it measures."""
        self._face.shown = self._face.reading if held else None

    def _fill(self, now: Reading) -> None:
        sign = self._sign
        volts = network.neutral_voltage(self._face.circuit)
        values: dict[str, float] = {
            "A": sum(now.currents_a),
            "PhV": volts,
            "PPV": volts * _SQRT3,
            "Hz": now.frequency_hz,
            "W": sign * sum(now.powers_w),
            "VAR": sign * sum(now.reactives_var),
            "VA": math.hypot(sum(now.powers_w), sum(now.reactives_var)),
            "TotWhImp": now.imported_wh,
            "TotWhExp": now.exported_wh,
        }
        for index, (phase, pair) in enumerate((("A", "AB"), ("B", "BC"), ("C", "CA"))):
            values[f"Aph{phase}"] = now.currents_a[index]
            values[f"PhVph{phase}"] = volts
            values[f"PhVph{pair}"] = volts * _SQRT3
            values[f"Wph{phase}"] = sign * now.powers_w[index]
            values[f"VARph{phase}"] = sign * now.reactives_var[index]
            values[f"VAph{phase}"] = math.hypot(now.powers_w[index], now.reactives_var[index])
        fill(self.image, self._model, values)


def fill(image: Image, model: int, values: Mapping[str, float]) -> None:
    """Set those points of a model that it has."""
    for path, value in values.items():
        if image.has(model, path):
            image.set(model, path, value)


def decimals(most: float) -> int:
    """Return the power of ten of the finest step with which values up to `most` fit 16 bits and a sign."""
    return math.ceil(math.log10(max(most, 1.0) / _INT16))


def power_sign(profile: Profile, default: int) -> int:
    """Return 1 or -1: what consumption is multiplied by to be what the device's registers show."""
    point = profile.sunspec_points.get("active_power")
    return default if point is None else point.sign


def identify(image: Image, profile: Profile, device: Device) -> None:
    """Fill the common model."""
    image.set_raw(1, "Mn", "DERMS Edge")
    image.set_raw(1, "Md", profile.name)
    image.set_raw(1, "Opt", "twin")
    image.set_raw(1, "Vr", "1")
    image.set_raw(1, "SN", device.name)
    image.set_raw(1, "DA", device.unit_id)
