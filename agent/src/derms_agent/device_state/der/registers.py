# SPDX-License-Identifier: Apache-2.0
"""One SunSpec model of a device as it was read: what its points hold, and the words for what is wanted. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from derms_agent.drivers.reads import Block, Span, plan_reads
from derms_agent.drivers.register_map import LayoutChanged
from derms_agent.drivers.sunspec import FoundModel
from derms_agent.drivers.sunspec_model import HEADER, SCALES, Field, encode, lay_out, raw, scale_field, value
from derms_agent.drivers.writes import Write, plan_write
from derms_agent.grid_code.settings import Quantity
from derms_agent.model import Value
from derms_agent.profiles.point import OutOfRange, Table
from derms_agent.profiles.profile import Profile, Wire

_AS_IT_IS = 1
"""The sign for what keeps its own: the models' directions, in which injected power is positive."""


@dataclass(frozen=True, slots=True)
class ModelRegisters:
    """A model's words, from its id on, and what they mean: its points by their paths."""

    found: FoundModel
    fields: Mapping[str, Field]

    @classmethod
    def of(cls, found: FoundModel) -> ModelRegisters:
        """Return a model as it was found."""
        return cls(found, lay_out(found.id, found.words))

    def words(self, path: str) -> tuple[int, ...]:
        """Return a point's words."""
        field = self.fields[path]
        return tuple(self.found.words[field.offset : field.offset + field.length])

    def implemented(self, path: str) -> bool:
        """Whether the device has the point."""
        return path in self.fields and raw(self.fields[path], self.words(path)) is not None

    def value(self, path: str) -> Value | None:
        """Return a point's value in its unit; None where the device has none."""
        if path not in self.fields:
            return None
        return self.shown(path, self.words(path))

    def shown(self, path: str, words: Sequence[int]) -> Value | None:
        """Return what the point would be with these words."""
        return value(self.fields[path], words, self.scale(path), _AS_IT_IS)

    def number(self, path: str) -> int | None:
        """Return a whole number that has no scale; None where the device has none."""
        found = self.value(path)
        return found if isinstance(found, int) else None

    def number_of_enum(self, path: str) -> int | None:
        """Return the number of an enumeration, whatever it stands for; None where the device has none."""
        found = raw(self.fields[path], self.words(path))
        return found if isinstance(found, int) else None

    def scale(self, path: str) -> int | None:
        """Return the power of ten that a point has now; None where it has none, or the device does not tell."""
        field = self.fields[path]
        if isinstance(field.scale, int):
            return field.scale
        told = scale_field(field, self.fields)
        found = None if told is None else raw(told, self.words(told.path))
        return found if isinstance(found, int) else None

    def encoded(self, name: str, path: str, wanted: float, quantity: Quantity) -> tuple[int, ...]:
        """Return the words for a number, in the device's own steps. Raises OutOfRange."""
        field = self.fields[path]
        scale = self.scale(path)
        if field.scale is not None and (scale is None or scale not in SCALES):
            raise OutOfRange(name, wanted, f"a device that tells {field.scale}, the scale of {path}")
        step: Fraction = Fraction(10) ** (scale or 0)
        count = Fraction(repr(wanted)) / step
        held = (int(count) if quantity.never_more else round(count)) * step
        if not quantity.near(wanted, float(held)):
            expected = f"within {quantity.tolerance:g} of what the device can hold, which in steps of {float(step):g}"
            raise OutOfRange(name, wanted, f"{expected} is {float(held):g} {quantity.unit}".rstrip())
        return encode(name, field, _plain(held), scale, _AS_IT_IS)

    def symbol(self, name: str, path: str, wanted: str) -> tuple[int, ...]:
        """Return the words for one of a point's names. Raises OutOfRange."""
        return encode(name, self.fields[path], wanted, None, _AS_IT_IS)

    def count(self, name: str, path: str, wanted: int) -> tuple[int, ...]:
        """Return the words for a whole number. Raises OutOfRange."""
        return encode(name, self.fields[path], wanted, None, _AS_IT_IS)

    def span(self, path: str) -> Span:
        """Return where a point lies."""
        field = self.fields[path]
        return Span(f"{self.found.id}.{path}", Table.HOLDING, self.found.address + field.offset, field.length)

    def writes(self, words: Mapping[str, tuple[int, ...]], profile: Profile) -> tuple[Write, ...]:
        """Return the requests that write these points and no other register, adjoining ones together.

        Where the device takes one register a request only, each point has its own. Raises Forbidden.
        """
        single = profile.wire.write_function == 6  # noqa: PLR2004 - write single register
        runs: list[list[str]] = []
        for path in sorted(words, key=lambda path: self.fields[path].offset):
            last = self.span(runs[-1][-1]) if runs else None
            length = sum(self.span(each).length for each in runs[-1]) if runs else 0
            here = self.span(path)
            fits = not single and length + here.length <= profile.wire.max_write
            if fits and last is not None and last.end == here.address:
                runs[-1].append(path)
            else:
                runs.append([path])
        return tuple(plan_write(self._joined(run), [w for path in run for w in words[path]], profile) for run in runs)

    def _joined(self, paths: Sequence[str]) -> Span:
        first, last = self.span(paths[0]), self.span(paths[-1])
        name = first.name if len(paths) == 1 else f"{first.name} to {paths[-1]}"
        return Span(name, Table.HOLDING, first.address, last.end - first.address)

    def reads(self, wire: Wire, paths: Iterable[str] | None = None) -> tuple[Block, ...]:
        """Return the requests that read points, all of them where none is named, and the model's header along.

        No value is split over two of them.
        """
        header = Span(self._header, Table.HOLDING, self.found.address, HEADER)
        wire = replace(wire, max_gap=max(0, wire.max_read - HEADER))  # all of it is within one model
        return plan_reads([header, *(self.span(path) for path in (self.fields if paths is None else paths))], wire)

    def updated(self, words: Mapping[str, tuple[int, ...]]) -> ModelRegisters:
        """Return the model with what `reads` gave. Raises LayoutChanged where another one lies there now."""
        if tuple(words[self._header]) != (self.found.id, self.found.length):
            raise LayoutChanged(
                f"found {words[self._header]} at {self.found.address}, "
                f"expected model {self.found.id} of {self.found.length} registers"
            )
        fresh = list(self.found.words)
        for path, field in self.fields.items():
            read = words.get(f"{self.found.id}.{path}")
            if read is not None:
                fresh[field.offset : field.offset + field.length] = read
        return ModelRegisters.of(replace(self.found, words=tuple(fresh)))

    def patched(self, words: Mapping[str, tuple[int, ...]]) -> ModelRegisters:
        """Return the model with other words at points that do not say how it is laid out."""
        fresh = list(self.found.words)
        for path, content in words.items():
            field = self.fields[path]
            fresh[field.offset : field.offset + field.length] = content
        return replace(self, found=replace(self.found, words=tuple(fresh)))

    @property
    def _header(self) -> str:
        return f"{self.found.id}.header"


def _plain(number: Fraction) -> float:
    return int(number) if number.denominator == 1 else float(number)
