# SPDX-License-Identifier: Apache-2.0
"""The temperatures at each EVSE: what shows them, what is learnt of them, and what they leave it. Pure.

Three kinds of sensor may tell of an EVSE, each by itself: the enclosure's and the charger's are points of its device,
the battery's is told of a session. The first two are the device's for good; the battery's is forgotten when its vehicle
leaves. How a plant heats is learnt from each reading, where the air around it is measured as well: a point of the
device, or told with the battery's. It only ever bears on the prediction: barrier and taper stand
(`control/thermal.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from derms_agent.control import thermal
from derms_agent.control.thermal import Sensor, SensorKind, Temperature
from derms_agent.model import Device, Evse, Limit, Quality, Reading, Value
from derms_agent.orchestrator.site import Site
from derms_agent.profiles.profile import AMBIENT

AIR_STALE_S = 1800.0
"""How old what was told of the air around a vehicle may be."""
_COLDEST_AIR_C, _HOTTEST_AIR_C = -60.0, 60.0  # beyond these a reading is a broken sensor's
_KINDS = tuple(SensorKind)
_BATTERY = SensorKind.BATTERY


@dataclass(frozen=True, slots=True)
class ToldHeat:
    """What was told of a vehicle's battery, and of the air around it; None: nothing."""

    temperature: Temperature | None = None
    air: Temperature | None = None


@dataclass(slots=True)
class _Carried:
    """The share of its rating that was carried since the last reading; None: not known, at some time of it.

    `mean` counts over `span_s`, up to `at_s`; `share` is carried from then on.
    """

    at_s: float
    share: float | None
    mean: float | None = 0.0
    span_s: float = 0.0
    read_at_s: float | None = None

    def until(self, at_s: float, share: float | None) -> None:
        """Go on to a moment, from which on a share is carried."""
        lasted_s = at_s - self.at_s
        if lasted_s > 0:
            total_s = self.span_s + lasted_s
            if self.mean is not None:
                held = self.share
                self.mean = None if held is None else (self.mean * self.span_s + held * lasted_s) / total_s
            self.span_s, self.at_s = total_s, at_s
        self.share = share

    def read(self, read_at_s: float) -> float | None:
        """Return the mean up to a reading, and begin anew."""
        mean = self.mean if self.span_s > 0 else self.share
        self.mean, self.span_s, self.read_at_s = 0.0, 0.0, read_at_s
        return mean


@dataclass(slots=True)
class Temperatures:
    """What is known of all EVSEs' temperatures; sensors are handed in as one of each kind, in the order of these.

    `learnt`: what each has shown, by `key`.
    """

    site: Site
    learnt: dict[str, thermal.Learnt] = field(default_factory=dict)
    _points: dict[str, Mapping[str, str]] = field(default_factory=dict)
    _keys: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _shared: frozenset[str] = frozenset()
    _felt: dict[str, Temperature] = field(default_factory=dict)
    _air: dict[str, Temperature] = field(default_factory=dict)
    _carried: dict[str, _Carried] = field(default_factory=dict)
    _named: dict[str, tuple[Sensor, Sensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Work out which points show what."""
        shared = []
        for evse in self.site.evses:
            profile = self.site.profiles[evse.device]
            self._points[evse.device] = profile.temperatures
            self._keys[evse.name] = tuple(key(evse.name, kind) for kind in _KINDS)
            for kind, point in profile.temperatures.items():
                if point not in profile.points or not profile.points[point].stride:
                    shared.append(f"{evse.name} {kind}")
        self._shared = frozenset(shared)

    def recall(self, heat: Mapping[str, thermal.Learnt]) -> None:
        """Go on from what was learnt before, of sensors that there still are."""
        there = {
            key(evse.name, kind)
            for evse in self.site.evses
            for kind in _KINDS
            if kind is _BATTERY or kind.value in self._points[evse.device]
        }
        self.learnt = {name: learnt for name, learnt in heat.items() if name in there}

    def shows_air(self, device: str) -> bool:
        """Whether a device shows the temperature of the air around it."""
        return AMBIENT in self._points.get(device, ())

    def take(self, device: Device, reading: Reading) -> None:
        """Take in what a device shows.

        One that lacks a sensor's value for once leaves the last, until that is stale by its own time; air is not there.
        """
        points = self._points.get(device.name)
        if not points or reading.quality is not Quality.GOOD:
            return
        for evse in device.evses:
            own = evse.name.removeprefix(device.name)
            for kind, point in points.items():
                celsius = _number(reading.values, point, own)
                into, name = (self._air, evse.name) if kind == AMBIENT else (self._felt, f"{evse.name} {kind}")
                if celsius is not None:
                    into[name] = Temperature(celsius, reading.asked_at_s)
                elif kind == AMBIENT:
                    into.pop(name, None)

    def carry(self, evse: str, own: float | None, whole: float | None, at_s: float) -> None:
        """Take in what share of its rating an EVSE carries from a moment on, and its device as a whole."""
        for name in self._keys[evse]:
            share = whole if name in self._shared else own
            carried = self._carried.get(name)
            if carried is None:
                self._carried[name] = _Carried(at_s, share)
            else:
                carried.until(at_s, share)

    def learn(self, evse: str, sensors: Sequence[Sensor], battery: ToldHeat) -> None:
        """Learn from each reading that came since the last time.

        What is not known to have been carried, or in which air, teaches nothing.
        """
        for name, sensor in zip(self._keys[evse], sensors, strict=True):
            reading = battery.temperature if sensor.kind is _BATTERY else self._felt.get(name)
            carried = self._carried.get(name)
            if reading is None or carried is None or reading.read_at_s == carried.read_at_s:
                continue
            share = carried.read(reading.read_at_s)
            air_c = None if share is None else self._air_c(evse, sensor.kind, battery, reading.read_at_s)
            known = self.learnt.get(name) or thermal.fresh(sensor)
            self.learnt[name] = thermal.learn(sensor, known, reading, share or 0.0, air_c)

    def limits(
        self, evse: Evse, sensors: Sequence[Sensor], battery: ToldHeat | None, rated_w: float, now_s: float
    ) -> Iterable[Limit]:
        """Yield what each sensor leaves; the battery's leaves all where no vehicle is there (None)."""
        for name, sensor in zip(self._keys[evse.name], sensors, strict=True):
            reading = self._felt.get(name)
            if sensor.kind is _BATTERY:
                if battery is None:
                    continue
                reading = battery.temperature
            # One that has spoken and is silent now leaves no more than it did.
            if reading is None and not sensor.required and name not in self.learnt:
                continue
            named = self._sensor(name, sensor, evse.name)
            air_c = self._air_c(evse.name, sensor.kind, battery or ToldHeat(), now_s)
            known = self.learnt.get(name) or thermal.fresh(named)
            derating, self.learnt[name] = thermal.derate(named, known, reading, now_s, air_c)
            if derating.share < 1.0:
                yield from thermal.limits(derating, {evse.name: rated_w})

    def left(self, evse: str) -> None:
        """Forget the battery of a vehicle that has left; the charger and its enclosure are the same."""
        self.learnt.pop(key(evse, _BATTERY), None)
        self._carried.pop(key(evse, _BATTERY), None)

    def _air_c(self, evse: str, kind: SensorKind, battery: ToldHeat, at_s: float) -> float | None:
        """Return the temperature of the air around a sensor, in degC; None where nobody measures it."""
        told = battery.air if kind is _BATTERY else None
        air = self._air.get(evse) if told is None else told
        if air is None or at_s - air.read_at_s > AIR_STALE_S or not _COLDEST_AIR_C <= air.celsius <= _HOTTEST_AIR_C:
            return None
        return air.celsius

    def _sensor(self, name: str, sensor: Sensor, evse: str) -> Sensor:
        """Return a kind's sensor under an EVSE's name; made once, for each cycle asks for each EVSE's."""
        known = self._named.get(name)
        if known is None or known[0] is not sensor:
            known = self._named[name] = (sensor, replace(sensor, name=f"{sensor.kind.value} of {evse}"))
        return known[1]


def key(evse: str, kind: SensorKind) -> str:
    """Return what a sensor is known by."""
    return f"{evse} {kind.value}"


def _number(values: Mapping[str, Value], name: str, own: str) -> float | None:
    found = values.get(name + own) if own else None
    found = values.get(name) if found is None else found
    return None if isinstance(found, bool) or not isinstance(found, int | float) else float(found)
