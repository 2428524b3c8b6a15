# SPDX-License-Identifier: Apache-2.0
"""SunSpec models over words that were read elsewhere: where their points lie, and what they hold. Pure.

Source: SunSpec Device Information Model Specification V1.1, clauses 4 to 6. The definitions of the models and the
conversion of each type are pysunspec2's (Apache-2.0). Its devices, clients and scan are not used, not even offline:

- its definitions may be shadowed by files in the current directory, so they are read from its package here;
- a point whose scale factor is not implemented comes out unscaled there; here it is absent;
- its repeating groups trust the count that the device tells; here they end with the model's own length;
- it keeps the last value of a point where a new one cannot be decoded.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from sunspec2 import mb

from derms_agent.model import Value
from derms_agent.profiles.point import NOISE, OutOfRange

HEADER = 2
"""Registers before what a model's length counts: its id and that length."""
END_MODEL = 0xFFFF
MARK = (0x5375, 0x6E53)
"""The words of "SunS", with which a SunSpec map begins."""
SCALES = range(-10, 11)
"""What a scale factor may be (clause 5, sunssf)."""
TEXTS = frozenset({"string", "eui48", "ipv6addr"})


@dataclass(frozen=True, slots=True)
class Field:
    """One point of a model. `offset` counts from the model's id; `scale` is a power of ten, or the point with it."""

    path: str
    type: str
    offset: int
    length: int
    scale: int | str | None
    symbols: Mapping[int, str]
    writable: bool


@cache
def definition(model: int) -> Mapping[str, Any] | None:
    """Return the top group of a model's definition; None for a model that pysunspec2 does not have."""
    file = resources.files("sunspec2").joinpath(f"models/json/model_{model}.json")
    if not file.is_file():
        return None
    group: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))["group"]
    return group


def lay_out(model: int, words: Sequence[int]) -> Mapping[str, Field]:
    """Return the points of a model by their paths, such as `W`, `PFWInj.PF` or `Crv[1].Pt[2].V`.

    `words` are the model's own from its id on; how many groups repeat is told there. What a definition has beyond the
    model's length, as the device gives it, is not there. An unknown model has no points.
    """
    group = definition(model)
    layout = _Layout(words)
    if group is not None:
        layout.place(group, "")
    return MappingProxyType(layout.fields)


class _Layout:
    """Walks through a model's groups, from one point to the next."""

    def __init__(self, words: Sequence[int]) -> None:
        self.fields: dict[str, Field] = {}
        self._words = words
        self._offset = 0

    def place(self, group: Mapping[str, Any], prefix: str) -> None:
        for point in group.get("points", ()):
            self._place_point(point, prefix)
        for inner in group.get("groups", ()):
            name = f"{prefix}{inner['name']}"
            count = inner.get("count")
            if count is None:
                self.place(inner, f"{name}.")
                continue
            # 0 stands for as many as fit; a count of the device's own is bounded by the model's length as well.
            most = len(self._words) if count == 0 else self._count(count)
            for index in range(1, most + 1):
                if self._offset >= len(self._words):
                    break
                self.place(inner, f"{name}[{index}].")

    def _place_point(self, point: Mapping[str, Any], prefix: str) -> None:
        path = f"{prefix}{point['name']}"
        length = int(point["size"])
        if self._offset + length <= len(self._words):
            self.fields[path] = Field(
                path,
                point["type"],
                self._offset,
                length,
                point.get("sf"),
                MappingProxyType({symbol["value"]: symbol["name"].lower() for symbol in point.get("symbols", ())}),
                point.get("access") == "RW",
            )
        self._offset += length

    def _count(self, count: int | str) -> int:
        if isinstance(count, int):
            return count
        field = self.fields.get(count)
        if field is None:
            return 0
        told = self._words[field.offset]
        return told if mb.is_impl_uint16(told) else 0


def scale_field(field: Field, fields: Mapping[str, Field]) -> Field | None:
    """Return the field of a point's scale factor: that of its own group, else of one around it; None without one."""
    if field.scale is None or isinstance(field.scale, int):
        return None
    groups = field.path.split(".")[:-1]
    while True:
        found = fields.get(".".join([*groups, field.scale]))
        if found is not None or not groups:
            return found
        groups.pop()


def raw(field: Field, words: Sequence[int]) -> int | float | str | None:
    """Return what a field's words hold, unscaled; None where the device does not implement it."""
    octets = struct.pack(f">{len(words)}H", *words)
    if field.type == "string":
        return octets.split(b"\0", 1)[0].decode("utf-8", "replace").strip() or None
    info = mb.point_type_info[field.type]
    found: int | float | str | None = info.data_to(octets)
    if found is None or not info.is_impl(found) or (isinstance(found, float) and not math.isfinite(found)):
        return None
    return found


def value(field: Field, words: Sequence[int], scale: int | None, sign: int) -> Value | None:
    """Return a field's value: scaled, with consumption positive, and enumerations by the names of their symbols.

    `scale` is the power of ten that holds now, None where there is none: then a point that ought to have one is absent,
    for nobody knows what it means.
    """
    found = raw(field, words)
    if found is None or isinstance(found, str):
        return found
    if field.type.startswith("enum"):
        return field.symbols.get(int(found), f"unknown {found}") if field.symbols else found
    if field.scale is not None:
        if scale is None or scale not in SCALES:
            return None
        found = found * 10**scale if scale >= 0 else found / 10**-scale
    return -found if sign < 0 and found else found


def encode(name: str, field: Field, wanted: Value, scale: int | None, sign: int) -> tuple[int, ...]:
    """Return a field's words for a value, the reverse of `value`; between two steps it is the one nearer to zero.

    Raises `OutOfRange`.
    """
    info = mb.point_type_info[field.type]
    found: int | float | str
    if field.type.startswith(("enum", "bitfield")):
        found = _enumerated(name, field, wanted)
    elif field.type in TEXTS:
        found = _text(name, field, wanted)
    else:
        found = _number(name, field, wanted, scale, sign)
    try:
        octets: bytes = info.to_data(found, 2 * field.length)
    except struct.error:
        raise OutOfRange(name, wanted, f"a value that fits {field.type}") from None
    if not info.is_impl(info.data_to(octets)) and field.type not in TEXTS:
        raise OutOfRange(name, wanted, f"a value that does not stand for an absent one in {field.type}")
    return struct.unpack(f">{field.length}H", octets)


def _enumerated(name: str, field: Field, wanted: Value) -> int:
    for number, symbol in field.symbols.items():
        if isinstance(wanted, str) and wanted.lower() == symbol:
            return number
    if isinstance(wanted, int) and (not field.symbols or wanted in field.symbols or field.type.startswith("bitfield")):
        return int(wanted)
    raise OutOfRange(name, wanted, f"one of {', '.join(field.symbols.values())}" if field.symbols else "a whole number")


def _text(name: str, field: Field, wanted: Value) -> str:
    if field.type != "string" or not isinstance(wanted, str) or len(wanted.encode()) > 2 * field.length:
        raise OutOfRange(name, wanted, f"text of at most {2 * field.length} bytes")
    return wanted


def _number(name: str, field: Field, wanted: Value, scale: int | None, sign: int) -> int | float:
    if isinstance(wanted, bool | str) or not math.isfinite(wanted):
        raise OutOfRange(name, wanted, "a number")
    if field.scale is not None and (scale is None or scale not in SCALES):
        raise OutOfRange(name, wanted, "a device that tells the scale of it")
    if field.type.startswith("float"):
        return wanted * sign
    exact = Fraction(repr(wanted)) * sign / 10 ** Fraction(scale or 0)
    nearest = round(exact)
    return nearest if abs(exact - nearest) <= NOISE * max(1, abs(exact)) else math.trunc(exact)
