# SPDX-License-Identifier: Apache-2.0
"""A SunSpec device: its models are found in large reads, then its values are polled like any other device's.

Source: SunSpec Device Information Model Specification V1.1, clause 6 (the mark at 40000, 0 or 50000, then models one
after another, each with its id and length, then the end model).

Discovery reads ahead: as many registers as one request takes, and whatever models they hold are walked through without
another request. Where the device refuses to be read past its end, each further request takes what is left of a model
and the next one's header. So 14 models of 614 registers take at most 16 requests, where asking for each header and
each model takes 52.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from derms_agent.drivers.errors import BadReply, NoAnswer, Refused
from derms_agent.drivers.interface import Priority
from derms_agent.drivers.reads import Block, Span, plan_reads
from derms_agent.drivers.register_map import LayoutChanged, Words
from derms_agent.drivers.sunspec_model import (
    END_MODEL,
    HEADER,
    MARK,
    Field,
    encode,
    lay_out,
    raw,
    scale_field,
)
from derms_agent.drivers.sunspec_model import value as field_value
from derms_agent.drivers.unit import Unit
from derms_agent.drivers.writes import Forbidden, Write, plan_write
from derms_agent.model import Value
from derms_agent.profiles.point import REGISTERS, OutOfRange, Table
from derms_agent.profiles.profile import Profile, SunSpecPoint

BASE_ADDRESSES = (40000, 0, 50000)
LONGEST_MAP = 10_000
"""Registers after which a map without an end is taken for nonsense; the largest known are a quarter of that."""
DEADLINE_S = 5.0


class NotSunSpec(BadReply):
    """What lies at the base addresses is no SunSpec map, or not one that ends."""


@dataclass(frozen=True, slots=True)
class FoundModel:
    """One model of a device: its id, the PDU address of that id, the length it tells, and its words when found."""

    id: int
    address: int
    length: int
    words: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FoundMap:
    """A device's models in their order, and the address of the mark before them."""

    base: int
    models: tuple[FoundModel, ...]


async def discover(unit: Unit, priority: Priority = Priority.POLL, deadline_s: float = DEADLINE_S) -> FoundMap:
    """Find a unit's SunSpec map and read it whole. `deadline_s` is for each request.

    Raises NotSunSpec where there is none, and every other BusError as it comes.
    """
    found: list[str] = []
    bases = unit.profile.base_addresses or BASE_ADDRESSES
    for base in bases:
        reader = _Reader(unit, base, priority, deadline_s)
        try:
            await reader.extend(len(MARK) + HEADER, ahead=False)
        except Refused as refusal:
            found.append(f"{base}: {refusal}")
            continue
        if tuple(reader.words[: len(MARK)]) == MARK:
            return FoundMap(base, await _walk(reader))
        found.append(f"{base}: {' '.join(f'{word:#06x}' for word in reader.words[: len(MARK)])}")
    raise NotSunSpec(f"found no SunS at {', '.join(map(str, bases))} ({'; '.join(found)})")


class _Reader:
    """The words of a map from its base on, as far as they were read."""

    def __init__(self, unit: Unit, base: int, priority: Priority, deadline_s: float) -> None:
        self.base = base
        self.words: list[int] = []
        self._unit = unit
        self._priority = priority
        self._deadline_s = deadline_s
        self._ahead = True

    async def extend(self, length: int, *, ahead: bool = True) -> None:
        """Read on until `length` words are there, and further where a request holds more and the device allows."""
        most = self._unit.profile.wire.max_read
        while len(self.words) < length:
            start = self.base + len(self.words)
            exact = min(most, length - len(self.words))
            count = min(most, REGISTERS - start) if ahead and self._ahead else exact
            if count < exact:
                raise NotSunSpec(f"found a model that ends at {self.base + length}, expected all within 0 to 65535")
            block = Block(Table.HOLDING, start, count, ())
            try:
                self.words += await self._unit.words(block, priority=self._priority, deadline_s=self._deadline_s)
            except (Refused, NoAnswer):
                if count == exact:
                    raise
                self._ahead = False  # the map ends here, or the device gives a model at a time


async def _walk(reader: _Reader) -> tuple[FoundModel, ...]:
    models: list[FoundModel] = []
    at = len(MARK)
    while True:
        if at > LONGEST_MAP:
            raise NotSunSpec(f"found {len(models)} models in {at} registers and no end")
        model = reader.words[at]
        if model == END_MODEL:
            return tuple(models)
        await reader.extend(at + HEADER)
        length = reader.words[at + 1]
        end = at + HEADER + length
        await _extend_past(reader, end)
        models.append(FoundModel(model, reader.base + at, length, tuple(reader.words[at:end])))
        at = end


async def _extend_past(reader: _Reader, end: int) -> None:
    """Read to a model's end and the header after it; of an end model some devices have the id only."""
    try:
        await reader.extend(end + HEADER)
    except Refused:
        await reader.extend(end + 1)


class SunSpecMap:
    """Where a profile's SunSpec points lie in one device. Points that the device has not are not in it.

    Each read takes a model's id and length along, and its scale factors: should the device lay its models out anew,
    after an update say, then nothing is read or written at the old places.
    """

    def __init__(self, profile: Profile, found: FoundMap) -> None:
        self._profile = profile
        self._points: dict[str, tuple[SunSpecPoint, FoundModel, Field, Field | None]] = {}
        models: dict[int, tuple[FoundModel, Mapping[str, Field]]] = {}
        for model in found.models:
            if model.id not in models:  # of several, the first
                models[model.id] = (model, lay_out(model.id, model.words))
        for name, point in profile.sunspec_points.items():
            for model, fields in (models[id_] for id_ in (point.model, *point.alternatives) if id_ in models):
                field = fields.get(point.point)
                if field is not None:
                    self._points[name] = (point, model, field, scale_field(field, fields))
                    break

    @property
    def names(self) -> tuple[str, ...]:
        """Every value that the device has."""
        return tuple(self._points)

    def readable(self, name: str) -> bool:
        """Whether it can be read."""
        return self._points[name][0].readable

    def spans(self, name: str) -> tuple[Span, ...]:
        """Return the value's registers, first, its scale factor's, and its model's header."""
        _, model, field, _ = self._points[name]
        return (_span(model, field), *self.before_write(name))

    def value(self, name: str, words: Words) -> Value | None:
        """Return the value that lies in the words of `spans`. Raises LayoutChanged."""
        point, model, field, _ = self._points[name]
        return field_value(field, words[_span(model, field).name], self._scale(name, words), point.sign)

    def found(self, name: str) -> dict[str, Value]:
        """Return, by its name, the value that was there when the map was found; nothing where the device has none."""
        if name not in self._points:
            return {}
        model = self._points[name][1]
        words = {
            span.name: model.words[span.address - model.address : span.end - model.address] for span in self.spans(name)
        }
        value = self.value(name, words)
        return {} if value is None else {name: value}

    def before_write(self, name: str) -> tuple[Span, ...]:
        """Return the registers of its scale factor and of its model's header."""
        _, model, _, scale = self._points[name]
        header = Span(f"{model.id}.header", Table.HOLDING, model.address, HEADER)
        return (header,) if scale is None else (header, _span(model, scale))

    def plan(self, names: Iterable[str], *, writing: bool = False) -> tuple[Block, ...]:
        """Return the reads: through all of a model where that saves one, through no other model."""
        of = self.before_write if writing else self.spans
        wire = self._profile.wire
        spans: dict[int, list[Span]] = {}
        for name in names:
            spans.setdefault(self._points[name][1].address, []).extend(of(name))
        within = replace(wire, max_gap=max(0, wire.max_read - 2))
        return tuple(block for _, model in sorted(spans.items()) for block in plan_reads(model, within))

    def write(self, name: str, value: Value, words: Words) -> Write:
        """Return the request that writes the point and nothing else. Raises OutOfRange, Forbidden, LayoutChanged."""
        point, model, field, _ = self._points[name]
        if not (point.writable and field.writable):
            raise Forbidden(f"{name}: found {model.id}.{field.path}, which is only read, expected a point to write")
        _check_bounds(point, value)
        laid = encode(name, field, value, self._scale(name, words), point.sign)
        return plan_write(_span(model, field), laid, self._profile)

    def held(self, name: str, value: Value, words: Words) -> Value:
        """Return the value in the resolution that the scale factor leaves. Raises OutOfRange and LayoutChanged."""
        point, _, field, _ = self._points[name]
        _check_bounds(point, value)
        scale = self._scale(name, words)
        held = field_value(field, encode(name, field, value, scale, point.sign), scale, point.sign)
        return value if held is None else held

    def _scale(self, name: str, words: Words) -> int | None:
        _, model, field, scale = self._points[name]
        header = tuple(words[f"{model.id}.header"])
        if header != (model.id, model.length):
            raise LayoutChanged(
                f"found {header[0]} of {header[1]} registers at {model.address}, "
                f"expected model {model.id} of {model.length}"
            )
        if scale is None:
            return field.scale if isinstance(field.scale, int) else None
        power = raw(scale, words[_span(model, scale).name])
        return power if isinstance(power, int) else None


def _check_bounds(point: SunSpecPoint, value: Value) -> None:
    if point.minimum is None and point.maximum is None:
        return
    low = -math.inf if point.minimum is None else point.minimum
    high = math.inf if point.maximum is None else point.maximum
    if isinstance(value, str) or not low <= value <= high:
        raise OutOfRange(point.name, value, f"{low:g} to {high:g} {point.unit}".strip())


def _span(model: FoundModel, field: Field) -> Span:
    return Span(f"{model.id}.{field.path}", Table.HOLDING, model.address + field.offset, field.length)
