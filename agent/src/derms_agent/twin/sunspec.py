# SPDX-License-Identifier: Apache-2.0
"""The register image of a SunSpec device, laid out by the model definitions that pysunspec2 ships.

Only its JSON is read (SunSpec Device Information Model Specification V1.1, clauses 4 to 6); bytes are written here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from derms_agent.twin.pdu import Code, Refusal

MARK = (0x5375, 0x6E53)  # "SunS"
_END = (0xFFFF, 0)
_HEADER = 2  # a model's id and length stand before what the length counts
_UNIMPLEMENTED = {
    "int16": -0x8000,
    "int32": -0x80000000,
    "int64": -0x8000000000000000,
    "uint16": 0xFFFF,
    "uint32": 0xFFFFFFFF,
    "uint64": 0xFFFFFFFFFFFFFFFF,
    "enum16": 0xFFFF,
    "enum32": 0xFFFFFFFF,
    "bitfield16": 0xFFFF,
    "bitfield32": 0xFFFFFFFF,
    "sunssf": -0x8000,
    "pad": -0x8000,
}
_SIGNED = {"int16", "int32", "int64", "sunssf", "pad"}
_FLOATS = {"float32": ">f", "float64": ">d"}


@dataclass(frozen=True, slots=True)
class Field:
    """One point's place: the PDU address, and where its scale factor is, if it has one."""

    address: int
    size: int
    type: str
    writable: bool
    scale: str | int | None
    symbols: frozenset[int]


@cache
def _definition(model: int) -> Mapping[str, Any]:
    text = files("sunspec2").joinpath(f"models/json/model_{model}.json").read_text(encoding="utf-8")
    group: Mapping[str, Any] = json.loads(text)["group"]
    return group


class Image:
    """All registers of a SunSpec device, from the mark to the end model.

    Points are named by model and path: `set(705, "Crv.1.Pt.2.V", 98.0)`; groups that repeat count from 1. `counts`
    gives how often they do, by the point that says so (`NPt`, `NCrv`, …). What is never set reads as unimplemented.
    """

    def __init__(self, base: int, models: Sequence[int], counts: Mapping[str, int]) -> None:
        self.base = base
        self.fields: dict[tuple[int, str], Field] = {}
        self._at: dict[int, tuple[int, str]] = {}
        self._counts = counts
        self._words: list[int] = list(MARK)
        for model in models:
            self._lay_out(model)
        self._words.extend(_END)

    def _lay_out(self, model: int) -> None:
        start = len(self._words)
        self._lay_out_group(model, _definition(model), "")
        self.set_raw(model, "ID", model)
        self.set_raw(model, "L", len(self._words) - start - _HEADER)
        for (of, path), field in self.fields.items():
            if of == model and path in self._counts and field.type == "uint16":
                self.set_raw(model, path, self._counts[path])

    def _lay_out_group(self, model: int, group: Mapping[str, Any], prefix: str) -> None:
        for point in group.get("points", ()):
            self._lay_out_point(model, point, prefix + point["name"])
        for inner in group.get("groups", ()):
            count = inner.get("count", 1)
            if isinstance(count, str):
                count = self._counts[count]
            for index in range(1, count + 1):
                number = "" if "count" not in inner else f"{index}."
                self._lay_out_group(model, inner, f"{prefix}{inner['name']}.{number}")

    def _lay_out_point(self, model: int, point: Mapping[str, Any], path: str) -> None:
        symbols = frozenset(symbol["value"] for symbol in point.get("symbols", ()))
        writable = point.get("access") == "RW"
        address = self.base + len(self._words)
        self.fields[model, path] = Field(address, point["size"], point["type"], writable, point.get("sf"), symbols)
        for offset in range(point["size"]):
            self._at[address + offset] = (model, path)
        self._words.extend([0] * point["size"])
        unimplemented = _UNIMPLEMENTED.get(point["type"])
        if unimplemented is not None:
            self.set_raw(model, path, unimplemented)

    def has(self, model: int, path: str = "ID") -> bool:
        """Whether the device has a model, or a point of it."""
        return (model, path) in self.fields

    def address(self, model: int, path: str) -> int:
        """Return a point's PDU address."""
        return self.fields[model, path].address

    def set_raw(self, model: int, path: str, value: int | str | float) -> None:
        """Write a point as it stands in the registers."""
        field = self.fields[model, path]
        size = 2 * field.size
        if isinstance(value, str):
            content = value.encode("utf-8")[:size].ljust(size, b"\0")
        elif field.type in _FLOATS:
            content = struct.pack(_FLOATS[field.type], value)
        else:
            content = (int(value) & ((1 << 8 * size) - 1)).to_bytes(size, "big")
        start = field.address - self.base
        self._words[start : start + field.size] = struct.unpack(f">{field.size}H", content)

    def raw(self, model: int, path: str) -> int:
        """Read an integer point as it stands in the registers."""
        field = self.fields[model, path]
        start = field.address - self.base
        if field.size == 1:
            word = self._words[start]
            return word - 0x1_0000 if word >= 0x8000 and field.type in _SIGNED else word  # noqa: PLR2004 - 16 bits
        content = struct.pack(f">{field.size}H", *self._words[start : start + field.size])
        return int.from_bytes(content, "big", signed=field.type in _SIGNED)

    def set(self, model: int, path: str, value: float) -> None:
        """Write a number in its unit; outside the point's range it saturates, as in a device."""
        field = self.fields[model, path]
        raw = round(value / self._factor(model, field))
        if field.type == "acc32":
            raw &= 0xFFFFFFFF
        elif field.type in _SIGNED:
            most = (1 << (16 * field.size - 1)) - 1
            raw = min(max(raw, -most), most)
        else:
            raw = min(max(raw, 0), (1 << 16 * field.size) - 2)
        self.set_raw(model, path, raw)

    def set_named(self, model: int, path: str, name: str) -> None:
        """Write an enumeration by the name of its symbol, in letters of any size. Raises KeyError."""
        (point,) = (point for point in _definition(model)["points"] if point["name"] == path)
        self.set_raw(
            model, path, {symbol["name"].lower(): symbol["value"] for symbol in point["symbols"]}[name.lower()]
        )

    def get(self, model: int, path: str) -> float:
        """Read a number in its unit; not-a-number: unimplemented."""
        field = self.fields[model, path]
        raw = self.raw(model, path)
        if raw == _UNIMPLEMENTED.get(field.type):
            return float("nan")
        return raw * self._factor(model, field)

    def clear(self, model: int, path: str) -> None:
        """Make a point read as unimplemented."""
        self.set_raw(model, path, _UNIMPLEMENTED[self.fields[model, path].type])

    def _factor(self, model: int, field: Field) -> float:
        scale = field.scale
        if scale is None:
            return 1.0
        if isinstance(scale, str):
            scale = self.raw(model, scale)
        return float(10.0**scale)

    def read(self, address: int, count: int) -> list[int]:
        """Return registers. Raises `Refusal` outside the image."""
        start = address - self.base
        if start < 0 or start + count > len(self._words):
            raise Refusal(Code.ILLEGAL_ADDRESS)
        return self._words[start : start + count]

    def write(self, address: int, values: Sequence[int]) -> list[tuple[int, str]]:
        """Write whole points; return which. Raises `Refusal`, having written nothing."""
        written: list[tuple[int, str]] = []
        end = address + len(values)
        at = address
        while at < end:
            key = self._at.get(at)
            if key is None or not self._may_write(key):
                raise Refusal(Code.ILLEGAL_ADDRESS)
            field = self.fields[key]
            if field.address != at or at + field.size > end:
                raise Refusal(Code.ILLEGAL_VALUE)
            if field.symbols and field.type == "enum16" and values[at - address] not in field.symbols:
                raise Refusal(Code.ILLEGAL_VALUE)
            written.append(key)
            at += field.size
        start = address - self.base
        self._words[start : start + len(values)] = values
        return written

    def _may_write(self, key: tuple[int, str]) -> bool:
        """Whether a point takes writes; a curve whose ReadOnly says so does not."""
        model, path = key
        if not self.fields[key].writable:
            return False
        name, _, rest = path.partition(".")
        guard = (model, f"{name}.{rest.split('.', 1)[0]}.ReadOnly")
        return guard not in self.fields or self.raw(*guard) == 0

    def copy_group(self, model: int, source: str, target: str) -> None:
        """Copy every point but ReadOnly from one instance of a repeating group to another (`Crv.2` to `Crv.1`)."""
        for of, path in list(self.fields):
            if of == model and path.startswith(f"{source}.") and not path.endswith(".ReadOnly"):
                self.set_raw(model, target + path[len(source) :], self.raw(model, path))
